/* SPDX-License-Identifier: Apache-2.0 */
/* Model soup: tasks' averages through head, trunk and the decoder that readers have, and which checkpoints
 * the greedy soup takes. */
#include "soup.h"

#include "decode.h"
#include "memory.h"
#include "packing.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_SOURCES = 64, ALL = 4096, MOST_TASKS = 40 };

static const trajectory shape = {
    .seed = 1, .modules = 3, .rank = 4, .in = 40, .out = 30, .dtype = ICMA_F32, .noise = 0.01};

/* --- the way into an archive and back ------------------------------------------------------------------ */

typedef struct lab {
    char *root;
    icma_inputs inputs;
    icma_dataset data;
    icma_group *group;
    icma_condition given[MOST_TASKS];
    icma_generator g;
    icma_gram gram;
    icma_basis basis;
    icma_conditions conditions;
    double weight[MOST_SOURCES];
    icma_container_writer *writer;
    icma_section *chunks;
    size_t chunk_count;
    icma_decoder *decoder;
    size_t head_bytes;
} lab;

static int make_lab(void **state) {
    lab *l = calloc(1, sizeof *l);
    assert_non_null(l);
    l->root = support_new_folder();
    *state = l;
    return 0;
}

static void let_go_of_soup(lab *l) {
    icma_decoder_free(l->decoder);
    icma_container_abandon(l->writer);
    icma_free(l->chunks);
    icma_conditions_free(&l->conditions);
    icma_basis_free(&l->basis);
    icma_gram_free(&l->gram);
    icma_generator_free(&l->g);
    l->decoder = NULL;
    l->writer = NULL;
    l->chunks = NULL;
}

static void close_tree(lab *l) {
    let_go_of_soup(l);
    icma_dataset_close(&l->data);
    icma_inputs_free(&l->inputs);
}

static int drop_lab(void **state) {
    lab *l = *state;
    close_tree(l);
    support_remove_tree(l->root);
    free(l);
    return 0;
}

static void open_tree(lab *l) {
    char *in = support_path(l->root, "in");
    const char *paths[] = {in};
    icma_error error = {0};
    assert_int_equal(icma_inputs_find(paths, 1, &l->inputs, &error), ICMA_OK);
    assert_int_equal(icma_dataset_open(&l->inputs, 0, NULL, &l->data, &error), ICMA_OK);
    assert_int_equal(l->data.count, 1);
    l->group = &l->data.groups[0];
    assert_true(l->group->count <= MOST_SOURCES && l->inputs.task_count <= MOST_TASKS);
    icma_soup_uniform(l->group, l->weight);
    support_free(in);
}

static icma_status compute_gram(lab *l, size_t limit, icma_error *error) {
    icma_progress none = {0};
    l->g.tensor_count = l->group->signature.tensor_count;
    icma_status status = icma_generator_allocate(&l->g, error);
    return status ? status
                  : icma_gram_compute(l->group, icma_ops_cpu(), limit, 9, &none, &l->g, &l->gram, error);
}

static icma_status load_chunk(void *context, const icma_section *section, size_t max_raw, uint8_t **out,
                              icma_error *error) {
    icma_file *file;
    (void)max_raw;
    assert_int_equal(section->coding, ICMA_CODING_RAW);
    *out = NULL;
    icma_status status = icma_file_open(icma_container_temporary(context), &file, error);
    if (status)
        return status;
    *out = icma_alloc((size_t)section->raw_size);
    status =
        *out ? icma_file_read(file, section->offset, *out, (size_t)section->raw_size, error) : ICMA_E_MEMORY;
    icma_file_close(file);
    return status;
}

static icma_status write_head(lab *l, icma_error *error) {
    char *path = support_path(l->root, "head.icma");
    icma_progress none = {0};
    memcpy(l->g.components, l->basis.components, sizeof l->g.components);
    l->g.head_step = l->basis.step; /* moves */
    l->basis.step = NULL;
    icma_status status = icma_container_create(path, true, &l->writer, error);
    if (!status)
        status = icma_basis_write_head(l->group, 0, &l->gram, &l->g, icma_ops_cpu(), &none, &l->basis,
                                       l->writer, &l->chunks, &l->chunk_count, error);
    support_free(path);
    l->head_bytes = 0;
    for (size_t c = 0; !status && c < l->chunk_count; c++)
        l->head_bytes += (size_t)l->chunks[c].stored_size;
    return status;
}

static icma_status fit_trunk(lab *l, icma_error *error) {
    icma_rng rng = icma_rng_seed(1);
    icma_status status =
        icma_conditions_prepare(l->group, icma_ops_cpu(), l->given, &rng, &l->g, &l->conditions, error);
    if (status)
        return status;
    icma_conditions_settle(&l->conditions, l->g.coordinates);
    return icma_soup_trunk(l->group, &l->basis, l->weight, &l->conditions, 1e-4, &l->g, error);
}

/* Writes the generator, and goes on with what a reader has. */
static icma_status reread_generator(lab *l, icma_error *error) {
    icma_buffer payload = {0};
    icma_status status = icma_generator_write(&l->g, &payload, error);
    icma_generator_free(&l->g);
    if (!status)
        status = icma_generator_read(payload.data, payload.size, &l->group->signature, &l->g, error);
    icma_buffer_free(&payload);
    icma_section_loader loader = {load_chunk, l->writer};
    return status ? status
                  : icma_decoder_create(icma_ops_cpu(), &l->group->signature, &l->g, l->chunks,
                                        l->chunk_count, loader, UINT64_MAX, &l->decoder, error);
}

static icma_status try_soup(lab *l, size_t limit, double max_error, icma_error *error) {
    let_go_of_soup(l);
    icma_status status = compute_gram(l, limit, error);
    if (!status)
        status = icma_soup_basis(l->group, icma_ops_cpu(), &l->gram, &l->g, l->weight, max_error, &l->basis,
                                 error);
    if (!status)
        status = write_head(l, error);
    if (!status)
        status = fit_trunk(l, error);
    return status ? status : reread_generator(l, error);
}

static void make_soup(lab *l, size_t limit, double max_error) {
    icma_error error = {0};
    if (try_soup(l, limit, max_error, &error) != ICMA_OK)
        fail_msg("%s", error.message);
}

/* --- what it has to be --------------------------------------------------------------------------------- */

/* A task's last file with the weighted average of every tensor, in double: from the definition. */
static uint8_t *average_file(lab *l, size_t task, size_t *size, size_t *header) {
    const icma_safetensors *s = &l->group->signature;
    uint8_t *out = NULL, *file;
    icma_error error = {0};
    double *sum = calloc((size_t)s->data_size, sizeof *sum); /* more than enough */
    float *values = malloc((size_t)s->data_size * sizeof *values);
    assert_true(sum && values);
    for (size_t i = 0; i < l->group->count; i++) {
        if (l->group->sources[i].task != task)
            continue;
        icma_free(out);
        assert_int_equal(icma_source_read(&l->group->sources[i], &file, size, &error), ICMA_OK);
        *header = (size_t)l->group->sources[i].data_offset;
        out = file;
        for (size_t t = 0; t < s->tensor_count; t++) {
            icma_load_floats(s->tensors[t].dtype, file + *header + s->tensors[t].begin,
                             (size_t)s->tensors[t].count, values);
            for (size_t k = 0; k < s->tensors[t].count; k++)
                sum[s->tensors[t].begin + k] += l->weight[i] * values[k];
        }
    }
    assert_non_null(out);
    for (size_t t = 0; t < s->tensor_count; t++) {
        for (size_t k = 0; k < s->tensors[t].count; k++)
            values[k] = (float)sum[s->tensors[t].begin + k];
        icma_store_floats(s->tensors[t].dtype, values, (size_t)s->tensors[t].count,
                          out + *header + s->tensors[t].begin);
    }
    free(sum);
    free(values);
    return out;
}

/* The table of a task with one checkpoint of tier generate. */
static icma_checkpoints task_table(lab *l, size_t slot, icma_checkpoint *checkpoint) {
    uint32_t task = l->conditions.task[slot];
    bool learned = l->conditions.learned[slot] != NULL;
    *checkpoint = (icma_checkpoint){.tier = ICMA_TIER_GENERATE};
    return (icma_checkpoints){
        .origin = learned ? ICMA_CONDITION_LEARNED : ICMA_CONDITION_GIVEN,
        .condition = learned ? l->conditions.learned[slot] : (float *)l->given[task].vector,
        .condition_size = learned ? l->g.coordinates : l->given[task].size,
        .list = checkpoint,
        .count = 1,
    };
}

/* The largest error of dW of what the decoder makes of the tasks' conditions, against their averages. */
static double worst_error(lab *l) {
    double worst = 0;
    for (size_t slot = 0; slot < l->conditions.count; slot++) {
        size_t size = 0, header = 0;
        icma_error error = {0};
        icma_checkpoint checkpoint;
        icma_checkpoints table = task_table(l, slot, &checkpoint);
        uint8_t *average = average_file(l, l->conditions.task[slot], &size, &header);
        uint8_t *decoded = malloc(size);
        assert_non_null(decoded);
        memcpy(decoded, average, size);
        memset(decoded + header, 0, size - header);
        if (icma_decoder_model(l->decoder, &table, &checkpoint, decoded + header, &error) != ICMA_OK)
            fail_msg("%s", error.message);
        worst = fmax(worst, packing_bound_error(average, decoded, size, ICMA_BOUND_DW));
        icma_free(average);
        free(decoded);
    }
    return worst;
}

static void write_task(lab *l, const char *name, uint64_t seed, size_t checkpoints) {
    trajectory t = shape;
    t.seed = seed;
    packing_write(l->root, name, &t, 1, checkpoints);
}

static void give(lab *l, size_t task, const float *vector, size_t size) {
    l->given[task] = (icma_condition){vector, size};
}

/* --- tests --------------------------------------------------------------------------------------------- */

static void averages_come_back_within_the_error(void **state) {
    lab *l = *state;
    static const double targets[] = {0.3, 0.1, 0.05, 0.01, 0.001};
    write_task(l, "bird", 1, 5);
    write_task(l, "cat", 2, 7);
    write_task(l, "dog", 3, 1);
    open_tree(l);
    size_t before = 0;
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        make_soup(l, ALL, targets[i]);
        double worst = worst_error(l);
        if (!(worst <= targets[i] && worst > targets[i] / 4))
            fail_msg("error %g for a target of %g", worst, targets[i]);
        assert_true(l->basis.predicted_error <= targets[i] && worst < 1.3 * l->basis.predicted_error);
        assert_true(l->head_bytes > before && l->g.latent == 0);
        before = l->head_bytes;
    }
    assert_true(l->basis.components[0] == 3 && l->basis.components[1] == 3 && l->basis.components[2] == 0);
}

/* What icma_basis says of the sources, for the record and for latents and residuals on top. */
static void sources_are_measured(void **state) {
    lab *l = *state;
    icma_error error = {0};
    write_task(l, "bird", 1, 5);
    write_task(l, "cat", 2, 7);
    open_tree(l);
    assert_int_equal(compute_gram(l, ALL, &error), ICMA_OK);
    assert_int_equal(
        icma_soup_basis(l->group, icma_ops_cpu(), &l->gram, &l->g, l->weight, 1e-4, &l->basis, &error),
        ICMA_OK);
    double energy = 0, spanned = 0, n = (double)l->group->count;
    for (size_t role = 0, first = 0; role < 2; first += l->basis.components[role++])
        for (size_t i = 0; i < l->group->count; i++) {
            const double *gram = l->gram.matrix[role];
            energy += gram[i * l->group->count + i] / n;
            for (size_t k = 0; k < l->basis.components[role]; k++) {
                double p = 0, found = l->basis.coordinates[i * l->basis.total + first + k];
                for (size_t j = 0; j < l->group->count; j++)
                    p += l->basis.mixing[role][k * l->group->count + j] * gram[i * l->group->count + j];
                assert_true(fabs(found - p) < 1e-9 * sqrt(energy * n));
                spanned += p * p / n;
            }
        }
    assert_true(fabs(l->basis.energy / energy - 1) < 1e-9);
    assert_true(fabs(l->basis.leftover - (energy - spanned)) < 1e-6 * energy);
    assert_true(l->basis.within > l->basis.leftover * 0.99 && l->basis.explained < 0.5);
}

static void one_task_is_one_row(void **state) {
    lab *l = *state;
    static const float vector[] = {0.5F, -1, 2};
    write_task(l, "only", 1, 6);
    open_tree(l);
    make_soup(l, ALL, 0.02);
    assert_true(l->basis.components[0] == 1 && l->basis.components[1] == 1);
    assert_true(worst_error(l) <= 0.02);
    give(l, 0, vector, 3);
    make_soup(l, ALL, 0.02);
    assert_true(l->conditions.learned[0] == NULL && worst_error(l) <= 0.02);
}

static void equal_checkpoints_are_their_own_average(void **state) {
    lab *l = *state;
    for (size_t i = 0; i < 4; i++) { /* one checkpoint, at 0, has no drift: only the noise differs by step */
        trajectory t = shape;
        t.noise = 0;
        packing_write(l->root, "same", &t, 1 + 10 * i, 1);
        packing_write(l->root, "twin", &t, 1 + 10 * i, 1);
    }
    open_tree(l);
    make_soup(l, ALL, 0.01);
    assert_true(l->basis.components[0] == 1 && l->basis.components[1] == 1);
    assert_true(isnan(l->basis.explained));
    assert_true(worst_error(l) <= 0.01);
}

/* Writes checkpoints of "between" whose average is share of a's and 1 - share of b's. */
static void write_between(lab *l, const char *name, const char *a, const char *b, float share) {
    size_t size, other;
    uint8_t *x = packing_original(l->root, a, 1, &size), *y = packing_original(l->root, b, 1, &other);
    char path[100];
    assert_int_equal(size, other);
    icma_safetensors s;
    const uint8_t *data;
    icma_error error = {0};
    assert_int_equal(icma_safetensors_view(x, size, &s, &data, &error), ICMA_OK);
    float *from = (float *)malloc(size), *to = (float *)malloc(size);
    size_t count = (size_t)s.data_size / 4, header = (size_t)(data - x);
    icma_load_floats(ICMA_F32, x + header, count, from);
    icma_load_floats(ICMA_F32, y + header, count, to);
    for (size_t i = 0; i < count; i++)
        from[i] = share * from[i] + (1 - share) * to[i];
    icma_store_floats(ICMA_F32, from, count, x + header);
    snprintf(path, sizeof path, "in/%s/checkpoint-1/adapter_model.safetensors", name);
    support_write_file(l->root, path, x, size);
    icma_safetensors_free(&s);
    free(from);
    free(to);
    free(x);
    free(y);
}

static void averages_in_a_line_share_rows(void **state) {
    lab *l = *state;
    write_task(l, "a", 1, 1);
    write_task(l, "b", 2, 1);
    write_between(l, "c", "a", "b", 0.5F);
    write_between(l, "d", "a", "b", 0.25F);
    open_tree(l);
    make_soup(l, ALL, 0.01);
    assert_true(l->basis.components[0] == 2 && l->basis.components[1] == 2);
    assert_true(worst_error(l) <= 0.01);
}

static void averages_need_conditions_that_differ(void **state) {
    lab *l = *state;
    static const float one[] = {1, 2, 3, 4}, two[] = {2, 4, 6, 8}, three[] = {1, 0, 0, -1};
    icma_error error = {0};
    write_task(l, "a", 1, 3);
    write_task(l, "b", 2, 3);
    write_task(l, "c", 3, 3);
    open_tree(l);
    /* Along a line, with a constant: two points of it are enough for two averages, not for three. */
    give(l, 0, one, 4);
    give(l, 1, two, 4);
    make_soup(l, ALL, 0.02);
    assert_true(worst_error(l) <= 0.02);
    give(l, 2, three, 4);
    make_soup(l, ALL, 0.02);
    assert_true(worst_error(l) <= 0.02);
    give(l, 2, one, 4);
    assert_int_equal(try_soup(l, ALL, 0.02, &error), ICMA_E_UNSUPPORTED);
    assert_non_null(strstr(error.message, "tell"));
}

/* Many tasks with an axis each, as icma_conditions makes them. */
static void many_learned_conditions(void **state) {
    lab *l = *state;
    char name[16];
    icma_error error = {0};
    for (size_t i = 0; i < ICMA_LEARNED_COORDINATES; i++) {
        snprintf(name, sizeof name, "task%zu", i);
        write_task(l, name, i + 1, 1);
    }
    open_tree(l);
    make_soup(l, ALL, 0.05);
    assert_true(l->basis.components[0] == ICMA_LEARNED_COORDINATES);
    assert_true(worst_error(l) <= 1.2 * 0.05); /* of 96 modules, some have bad luck */
    close_tree(l);
    write_task(l, "task40", 41, 1);
    write_task(l, "task41", 42, 1);
    open_tree(l);
    assert_int_equal(try_soup(l, ALL, 0.05, &error), ICMA_E_UNSUPPORTED);
}

static void shares_are_kept_to(void **state) {
    lab *l = *state;
    write_task(l, "a", 1, 4);
    write_task(l, "b", 2, 4);
    open_tree(l);
    static const double shares[] = {0, 0, 1, 0, 0.5, 0, 0.25, 0.25};
    memcpy(l->weight, shares, sizeof shares);
    make_soup(l, ALL, 0.01);
    assert_true(worst_error(l) <= 0.01);
}

/* With a sample the rows span other averages, not far from these; the trunk knows all sources. */
static void a_sample_does_nearly_as_well(void **state) {
    lab *l = *state;
    trajectory t = shape;
    for (uint64_t i = 0; i < 3; i++) {
        t.seed = i + 1;
        packing_write(l->root, i == 0 ? "a" : i == 1 ? "b" : "c", &t, 1, 12);
    }
    open_tree(l);
    make_soup(l, 15, 0.01);
    assert_int_equal(l->gram.count, 15);
    double sampled = worst_error(l);
    make_soup(l, ALL, 0.01);
    double whole = worst_error(l);
    assert_true(whole <= 0.01 && sampled > whole && sampled < 0.15);
}

/* A tensor that one checkpoint has not trained counts as zeros; one that is nowhere trained is no part of it.
 */
static void untrained_factors_are_zeros(void **state) {
    lab *l = *state;
    write_task(l, "a", 1, 3);
    write_task(l, "b", 2, 3);
    size_t size, cells = (size_t)shape.out * shape.rank;
    uint8_t *file = packing_original(l->root, "a", 1, &size);
    memset(file + size - 4 * cells, 0, 4 * cells); /* the last B */
    support_write_file(l->root, "in/a/checkpoint-1/adapter_model.safetensors", file, size);
    free(file);
    open_tree(l);
    make_soup(l, ALL, 0.02);
    assert_true(icma_group_is_exception(l->group, 0, l->group->signature.tensor_count - 1));
    assert_true(worst_error(l) <= 0.02);
}

/* --- the greedy soup ----------------------------------------------------------------------------------- */

enum { CELLS = 32, TENSORS = 3 };

/* Every weight of a checkpoint is its level, but for a pattern without a mean; and a count that is not
 * modelled.
 */
static void write_level(lab *l, const char *task, size_t step, double level, icma_dtype dtype) {
    float values[CELLS];
    int64_t count = (int64_t)step;
    for (size_t i = 0; i < CELLS; i++)
        values[i] = (float)(level + (i % 2 ? 0.5 : -0.5));
    const support_tensor tensors[TENSORS] = {
        {.name = "base_model.model.q.lora_A.weight",
         .dtype = dtype,
         .rank = 2,
         .shape = {4, 8},
         .values = values},
        {.name = "base_model.model.q.lora_B.weight",
         .dtype = dtype,
         .rank = 2,
         .shape = {8, 4},
         .values = values},
        {.name = "steps", .dtype = ICMA_I64, .rank = 1, .shape = {1}, .bytes = &count},
    };
    packing_write_tensors(l->root, task, step, tensors, TENSORS);
}

typedef struct judge {
    const char *tasks[2];
    double target[2]; /* the best level of each */
    size_t last[2];   /* step of its last checkpoint */
    size_t calls[2];
    size_t fail_at; /* the call that fails; 0: none */
} judge;

static icma_status score(void *context, const char *task, const uint8_t *file, size_t size,
                         const icma_input_checkpoint *like, double *out, icma_error *error) {
    judge *j = context;
    icma_safetensors s;
    const uint8_t *data;
    float values[CELLS];
    int64_t steps;
    double level = 0;
    size_t t = strcmp(task, j->tasks[0]) ? 1 : 0;
    assert_string_equal(task, j->tasks[t]);
    j->calls[t]++;
    if (j->calls[0] + j->calls[1] == j->fail_at)
        return icma_fail(error, ICMA_E_IO, "judge", "no judge today; come back tomorrow");
    assert_int_equal(icma_safetensors_view(file, size, &s, &data, NULL), ICMA_OK);
    assert_int_equal(s.tensor_count, TENSORS);
    for (size_t i = 0; i < TENSORS; i++)
        if (s.tensors[i].dtype == ICMA_I64) {
            memcpy(&steps, data + s.tensors[i].begin, sizeof steps);
            assert_int_equal(steps, j->last[t]); /* what is not averaged is the last checkpoint's */
        } else {
            icma_load_floats(s.tensors[i].dtype, data + s.tensors[i].begin, CELLS, values);
            for (size_t k = 0; k < CELLS; k++)
                level += values[k] / (2 * CELLS);
        }
    assert_int_equal(like->step, j->last[t]);
    icma_safetensors_free(&s);
    *out = fabs(level - j->target[t]);
    return ICMA_OK;
}

static void write_levels(lab *l, icma_dtype dtype) {
    static const double levels[] = {0, 10, 1, 2};
    icma_error error = {0};
    for (size_t i = 0; i < 4; i++) {
        write_level(l, "a", i + 1, levels[i], dtype);
        write_level(l, "b", i + 1, levels[i], dtype);
    }
    open_tree(l);
    assert_int_equal(compute_gram(l, ALL, &error), ICMA_OK);
    size_t modelled = 0;
    for (size_t t = 0; t < TENSORS; t++)
        modelled += icma_generator_is_modelled(&l->g, t);
    assert_int_equal(modelled, 2);
}

static icma_status stir(lab *l, judge *j, const icma_progress *progress, icma_error *error) {
    icma_progress none = {0};
    icma_scorer scorer = {score, j};
    return icma_soup_greedy(l->group, &l->g, &l->inputs, scorer, progress ? progress : &none, l->weight,
                            error);
}

static void greedy_takes_what_does_not_hurt(void **state) {
    lab *l = *state;
    icma_error error = {0};
    for (icma_dtype dtype = 0; dtype < ICMA_DTYPE_COUNT; dtype++) {
        if (!icma_dtype_is_modelled(dtype))
            continue;
        write_levels(l, dtype);
        /* a: 1 (0.4 off), then 2 (1.5: 0.1 off); 0 and 10 would lead away. b: 10 alone is nearest, with 2 as
         * near on the other side, and then nothing beats being there. */
        judge j = {.tasks = {"a", "b"}, .target = {1.4, 6}, .last = {4, 4}};
        for (size_t i = 0; i < l->group->count; i++)
            l->weight[i] = NAN; /* all of them are set */
        assert_int_equal(stir(l, &j, NULL, &error), ICMA_OK);
        static const double expected[] = {0, 0, 0.5, 0.5, 0, 0.5, 0, 0.5};
        for (size_t i = 0; i < 8; i++)
            assert_true(l->weight[i] == expected[i]);
        assert_true(j.calls[0] == 7 && j.calls[1] == 7);
        close_tree(l);
    }
}

static void equals_join_the_greedy_soup(void **state) {
    lab *l = *state;
    icma_error error = {0};
    for (size_t i = 1; i <= 3; i++)
        write_level(l, "a", i, 1, ICMA_F32);
    write_level(l, "b", 1, 1, ICMA_F32);
    open_tree(l);
    assert_int_equal(compute_gram(l, ALL, &error), ICMA_OK);
    judge j = {.tasks = {"a", "b"}, .target = {0, 0}, .last = {3, 1}};
    assert_int_equal(stir(l, &j, NULL, &error), ICMA_OK);
    for (size_t i = 0; i < 3; i++)
        assert_true(fabs(l->weight[i] - 1.0 / 3) < 1e-15);
    assert_true(l->weight[3] == 1 && j.calls[0] == 5 && j.calls[1] == 1);
}

static void a_scorer_that_fails_is_heard(void **state) {
    lab *l = *state;
    write_levels(l, ICMA_F32);
    for (size_t at = 1; at <= 14; at++) {
        judge j = {.tasks = {"a", "b"}, .target = {1.4, 6}, .last = {4, 4}, .fail_at = at};
        icma_error error = {0};
        assert_int_equal(stir(l, &j, NULL, &error), ICMA_E_IO);
        assert_string_equal(error.message, "no judge today; come back tomorrow");
        assert_int_equal(j.calls[0] + j.calls[1], at);
    }
}

static void a_score_is_finite(void **state) {
    static const double targets[] = {NAN, INFINITY};
    lab *l = *state;
    write_levels(l, ICMA_F32);
    for (size_t i = 0; i < 2; i++) {
        judge j = {.tasks = {"a", "b"}, .target = {1.4, targets[i]}, .last = {4, 4}};
        icma_error error = {0};
        assert_int_equal(stir(l, &j, NULL, &error), ICMA_E_USAGE);
        assert_non_null(strstr(error.message, "a score of task b is not finite"));
        assert_int_equal(j.calls[1], 1);
    }
}

typedef struct watcher {
    size_t updates, stop_at;
    double done, total;
} watcher;

static void watch(void *context, const char *phase, double done, double total, const char *note) {
    watcher *w = context;
    assert_string_equal(phase, "soup");
    assert_true(note && done == (double)w->updates && done < total);
    w->updates++;
    w->done = done;
    w->total = total;
}

static bool stop(void *context) {
    watcher *w = context;
    return w->updates == w->stop_at;
}

static void greedy_can_be_watched_and_stopped(void **state) {
    lab *l = *state;
    icma_error error = {0};
    write_levels(l, ICMA_F32);
    judge j = {.tasks = {"a", "b"}, .target = {1.4, 6}, .last = {4, 4}};
    watcher w = {0};
    icma_progress progress = {.update = watch, .cancelled = stop, .context = &w};
    w.stop_at = SIZE_MAX;
    assert_int_equal(stir(l, &j, &progress, &error), ICMA_OK);
    assert_true(w.updates == 14 && w.done == 13 && w.total == 14);
    w = (watcher){.stop_at = 5};
    memset(j.calls, 0, sizeof j.calls);
    assert_int_equal(stir(l, &j, &progress, &error), ICMA_E_CANCELLED);
    assert_int_equal(j.calls[0] + j.calls[1], 4);
}

/* --- memory -------------------------------------------------------------------------------------------- */

/* Does nothing that may fail. */
static icma_status plain_score(void *context, const char *task, const uint8_t *file, size_t size,
                               const icma_input_checkpoint *like, double *out, icma_error *error) {
    (void)context;
    (void)task;
    (void)like;
    (void)error;
    *out = file[size - 10];
    return ICMA_OK;
}

static void every_allocation_may_fail(void **state) {
    lab *l = *state;
    icma_status status = ICMA_E_MEMORY;
    write_levels(l, ICMA_F32);
    for (size_t left = 0; status == ICMA_E_MEMORY; left++) {
        support_budget budget = {.left = left};
        icma_error error = {0};
        icma_scorer scorer = {plain_score, NULL};
        icma_progress none = {0};
        assert_true(left < 100);
        support_limit_memory(&budget);
        status = icma_soup_greedy(l->group, &l->g, &l->inputs, scorer, &none, l->weight, &error);
        if (!status)
            status = icma_soup_basis(l->group, icma_ops_cpu(), &l->gram, &l->g, l->weight, 0.05, &l->basis,
                                     &error);
        icma_basis_free(&l->basis);
        support_limit_memory(NULL);
        assert_int_equal(budget.live, 0);
    }
    assert_int_equal(status, ICMA_OK);
}

static void the_trunk_may_lack_memory(void **state) {
    lab *l = *state;
    icma_status status = ICMA_E_MEMORY;
    write_task(l, "a", 1, 2);
    write_task(l, "b", 2, 2);
    open_tree(l);
    make_soup(l, ALL, 0.05);
    for (size_t left = 0; status == ICMA_E_MEMORY; left++) {
        support_budget budget = {.left = left};
        icma_error error = {0};
        icma_generator g = {.tensor_count = l->g.tensor_count, .coordinates = l->g.coordinates};
        memcpy(g.components, l->g.components, sizeof g.components);
        assert_true(left < 100);
        support_limit_memory(&budget);
        status = icma_soup_trunk(l->group, &l->basis, l->weight, &l->conditions, 1e-4, &g, &error);
        icma_generator_free(&g);
        support_limit_memory(NULL);
        assert_int_equal(budget.live, 0);
    }
    assert_int_equal(status, ICMA_OK);
}

#define LAB_TEST(function) cmocka_unit_test_setup_teardown(function, make_lab, drop_lab)

int main(void) {
    const struct CMUnitTest tests[] = {
        LAB_TEST(averages_come_back_within_the_error),
        LAB_TEST(sources_are_measured),
        LAB_TEST(one_task_is_one_row),
        LAB_TEST(equal_checkpoints_are_their_own_average),
        LAB_TEST(averages_in_a_line_share_rows),
        LAB_TEST(averages_need_conditions_that_differ),
        LAB_TEST(many_learned_conditions),
        LAB_TEST(shares_are_kept_to),
        LAB_TEST(a_sample_does_nearly_as_well),
        LAB_TEST(untrained_factors_are_zeros),
        LAB_TEST(greedy_takes_what_does_not_hurt),
        LAB_TEST(equals_join_the_greedy_soup),
        LAB_TEST(a_scorer_that_fails_is_heard),
        LAB_TEST(a_score_is_finite),
        LAB_TEST(greedy_can_be_watched_and_stopped),
        LAB_TEST(every_allocation_may_fail),
        LAB_TEST(the_trunk_may_lack_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
