/* SPDX-License-Identifier: Apache-2.0 */
/* Adapters for conditions that were not packed: the last part of icma.h. */
#include "bundle_inside.h"
#include "coarse.h"
#include "compress.h"
#include "memory.h"
#include "metadata.h"
#include "sized.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Coordinates of packed conditions have a mean square of 1 (conditions.c). So far beyond, sums of decoding
 * need not stay finite, and the archive would be blamed for it. */
static const float farthest_coordinate = 0x1p20F;

typedef struct generation {
    icma_bundle *b;
    const icma_generation *what;
    icma_generated *told;
    bool in_group; /* told->group is settled */
    float *vector; /* the condition, rounded, or the sum of given ones; NULL: known in coordinates alone;
                      owned */
    size_t size;   /* numbers in it */
    float *a;      /* coordinates; owned */
    float *noise;  /* latent numbers; owned */
    bool found;    /* told->nearest, at the square distance `least` */
    double least;
    bool predicted, learned; /* seen on the way: a group that predicts, a learned condition, */
    size_t other_size;       /* a given one of another length */
} generation;

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a condition");
}

static const icma_generator *generator_of(const generation *g, const icma_part *p) {
    return &g->b->groups[p->group].generator;
}

static const char *name_of(const generation *g, size_t task) {
    return icma_bundle_task_name(g->b, task);
}

/* Of a loaded task what it has in the group; without one yet, in its last checkpoint's. NULL: nothing. */
static icma_part *part_of(const generation *g, size_t task) {
    icma_task_state *t = &g->b->tasks[task];
    if (!g->in_group)
        return &t->parts[t->places[t->count - 1].part];
    for (size_t p = 0; p < t->part_count; p++)
        if (t->parts[p].group == g->told->group)
            return &t->parts[p];
    return NULL;
}

/* The group of the adapter is that of the task's last checkpoint. */
static icma_status settle_group(generation *g, size_t task, icma_error *error) {
    icma_status status = icma_bundle_load_task(g->b, (uint32_t)task, error);
    if (status)
        return status;
    g->told->like = task;
    g->told->group = part_of(g, task)->group;
    g->in_group = true;
    if (!icma_generator_predicts(&g->b->groups[g->told->group].generator))
        return icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                         "task %s has no generator to generate with; pack it with --generator basis",
                         name_of(g, task));
    return ICMA_OK;
}

/* --- among what was packed
 * --------------------------------------------------------------------------------------- */

static void measure(generation *g, size_t task, const float *x, const float *y, size_t count) {
    double square = 0, xx = 0, yy = 0, xy = 0;
    for (size_t i = 0; i < count; i++) {
        double d = (double)x[i] - (double)y[i];
        square += d * d;
        xx += (double)x[i] * (double)x[i];
        yy += (double)y[i] * (double)y[i];
        xy += (double)x[i] * (double)y[i];
    }
    if (g->found && square >= g->least)
        return;
    g->found = true;
    g->least = square;
    g->told->nearest = task;
    g->told->cosine = xx > 0 && yy > 0 ? fmin(xy / (sqrt(xx) * sqrt(yy)), 1) : NAN;
    g->told->distance = yy > 0 ? sqrt(square / yy) : NAN;
}

static void measure_vector(generation *g, size_t task, const icma_part *p) {
    if (!icma_generator_predicts(generator_of(g, p)))
        return;
    if (p->table.origin == ICMA_CONDITION_OFFSET)
        return; /* added: the generator knows nothing of its vector */
    g->predicted = true;
    if (p->table.origin != ICMA_CONDITION_GIVEN)
        g->learned = true;
    else if (p->table.condition_size != g->size)
        g->other_size = p->table.condition_size;
    else
        measure(g, task, g->vector, p->table.condition, g->size);
}

static bool is_mixed(const generation *g, size_t task) {
    for (size_t i = 0; i < g->what->task_count; i++)
        if (g->what->tasks[i] == task)
            return true;
    return false;
}

/* A given condition's coordinates take work in proportion to M: those of the mix alone are worth it. */
static void measure_coordinates(generation *g, size_t task, const icma_part *p, float *scratch) {
    const icma_generator *generator = generator_of(g, p);
    bool learned = p->table.origin == ICMA_CONDITION_LEARNED;
    if (p->table.origin == ICMA_CONDITION_OFFSET || (!learned && !is_mixed(g, task)))
        return;
    icma_generator_coordinates(generator, p->table.condition, learned, scratch);
    measure(g, task, g->a, scratch, generator->coordinates);
}

static icma_status find_nearest(generation *g, icma_error *error) {
    float *scratch = icma_alloc_array(ICMA_MAX_COORDINATES, sizeof *scratch);
    icma_status status = scratch ? ICMA_OK : no_memory(error);
    for (size_t t = 0; !status && t < icma_bundle_task_count(g->b); t++) {
        bool was_loaded = g->b->tasks[t].loaded;
        status = icma_bundle_load_task(g->b, (uint32_t)t, error);
        const icma_part *p = status ? NULL : part_of(g, t);
        if (p && g->vector)
            measure_vector(g, t, p);
        else if (p)
            measure_coordinates(g, t, p, scratch);
        if (!status && !was_loaded)
            icma_bundle_forget_task(g->b, t);
    }
    icma_free(scratch);
    return status;
}

static icma_status nothing_near(const generation *g, icma_error *error) {
    if (g->other_size)
        return icma_fail(
            error, ICMA_E_UNSUPPORTED, NULL,
            "a condition of %zu numbers, and those that were packed have %zu; take one of the same encoder",
            g->size, g->other_size);
    if (g->learned)
        return icma_fail(
            error, ICMA_E_UNSUPPORTED, NULL,
            "conditions were learned in packing, so no vector means anything to them; mix packed tasks, or "
            "pack again with a task_vector.safetensors beside each task's checkpoints");
    return icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                     g->predicted ? "no task has a condition"
                                  : "there is no generator to generate with; pack with --generator basis");
}

/* --- the condition
 * ----------------------------------------------------------------------------------------------- */

static icma_status take_condition(generation *g, icma_error *error) {
    size_t count = g->what->condition_size;
    float largest = 0;
    if (count == 0 || count > ICMA_MAX_CONDITION)
        return icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                         "a condition of %zu numbers; at least 1 and at most %d", count, ICMA_MAX_CONDITION);
    if (!(g->vector = icma_alloc_array(count, sizeof *g->vector)))
        return no_memory(error);
    for (size_t i = 0; i < count; i++) {
        g->vector[i] = g->what->condition[i];
        if (!isfinite(g->vector[i]))
            return icma_fail(error, ICMA_E_USAGE, NULL, "a condition with a number that is not finite");
    }
    icma_coarse_round(g->vector, count);
    for (size_t i = 0; i < count; i++)
        largest = fmaxf(largest, fabsf(g->vector[i]));
    if (largest == 0)
        return icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                         "a condition of nothing but zeros has no direction; make it anew");
    g->size = count;
    return ICMA_OK;
}

static icma_status condition_in_group(generation *g, icma_error *error) {
    icma_status status = take_condition(g, error);
    if (!status && g->what->like != SIZE_MAX)
        status = settle_group(g, g->what->like, error);
    if (!status)
        status = find_nearest(g, error);
    if (!status && !g->found)
        status = nothing_near(g, error);
    if (!status && !g->in_group)
        status = settle_group(g, g->told->nearest, error);
    if (status)
        return status;
    const icma_generator *generator = &g->b->groups[g->told->group].generator;
    if (!(g->a = icma_alloc_zeroed(generator->coordinates + 1, sizeof *g->a)))
        return no_memory(error);
    icma_generator_coordinates(generator, g->vector, false, g->a);
    return ICMA_OK;
}

/* --- a mix
 * ------------------------------------------------------------------------------------------------------- */

static size_t heaviest(const icma_generation *what) {
    size_t at = 0;
    for (size_t i = 1; i < what->task_count; i++)
        if (what->weights[i] > what->weights[at])
            at = i;
    return what->tasks[at];
}

/* Adds what a task has to the sums: of coordinates, and of vectors as long as all are given. */
static icma_status add_task(generation *g, size_t i, double *coordinates, double *vector, float *scratch,
                            bool *given, icma_error *error) {
    size_t task = g->what->tasks[i];
    double weight = g->what->weights[i];
    icma_status status = icma_bundle_load_task(g->b, (uint32_t)task, error);
    if (status)
        return status;
    const icma_part *p = part_of(g, task);
    if (!p)
        return icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                         "tasks %.100s and %.100s have no generator in common (adapters of different shapes, "
                         "or packed apart); mix tasks of one group (icma list -v --json)",
                         name_of(g, g->told->like), name_of(g, task));
    if (p->table.origin == ICMA_CONDITION_OFFSET)
        return icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                         "task %.100s was added (icma add): the generator has learned no condition for it that "
                         "could be mixed; pack it with the others to mix it",
                         name_of(g, task));
    const icma_generator *generator = generator_of(g, p);
    bool learned = p->table.origin == ICMA_CONDITION_LEARNED;
    icma_generator_coordinates(generator, p->table.condition, learned, scratch);
    for (size_t k = 0; k < generator->coordinates; k++)
        coordinates[k] += weight * (double)scratch[k];
    *given &= !learned;
    for (size_t k = 0; *given && k < generator->condition_size; k++)
        vector[k] += weight * (double)p->table.condition[k];
    return ICMA_OK;
}

static icma_status sum_tasks(generation *g, double *sums, float *scratch, icma_error *error) {
    const icma_generator *generator = &g->b->groups[g->told->group].generator;
    size_t coordinates = generator->coordinates;
    bool given = true;
    icma_status status = ICMA_OK;
    for (size_t i = 0; !status && i < g->what->task_count; i++)
        status = add_task(g, i, sums, sums + coordinates, scratch, &given, error);
    for (size_t k = 0; !status && k < coordinates; k++)
        g->a[k] = (float)sums[k];
    if (status || !given)
        return status;
    g->size = generator->condition_size;
    if (!(g->vector = icma_alloc_array(g->size + 1, sizeof *g->vector)))
        return no_memory(error);
    for (size_t k = 0; k < g->size; k++)
        g->vector[k] = (float)sums[coordinates + k];
    return ICMA_OK;
}

static icma_status mix_in_group(generation *g, icma_error *error) {
    for (size_t i = 0; i < g->what->task_count; i++)
        if (!isfinite(g->what->weights[i]))
            return icma_fail(error, ICMA_E_USAGE, NULL, "a weight that is not finite");
    icma_status status =
        settle_group(g, g->what->like == SIZE_MAX ? heaviest(g->what) : g->what->like, error);
    if (status)
        return status;
    const icma_generator *generator = &g->b->groups[g->told->group].generator;
    double *sums = icma_alloc_zeroed(generator->coordinates + generator->condition_size + 1, sizeof *sums);
    float *scratch = icma_alloc_array(generator->coordinates + 1, sizeof *scratch);
    g->a = icma_alloc_zeroed(generator->coordinates + 1, sizeof *g->a);
    status = sums && scratch && g->a ? sum_tasks(g, sums, scratch, error) : no_memory(error);
    icma_free(sums);
    icma_free(scratch);
    return status ? status : find_nearest(g, error);
}

/* --- the adapter
 * ------------------------------------------------------------------------------------------------- */

/* Share of the vector's square in the rows of M, which are at right angles to each other but for their
 * rounding. */
static double share_seen(const generation *g) {
    const icma_generator *generator = &g->b->groups[g->told->group].generator;
    double all = 0, seen = 0;
    for (size_t j = 0; g->vector && j < g->size; j++)
        all += (double)g->vector[j] * (double)g->vector[j];
    for (size_t i = 0; all > 0 && i < generator->given_coordinates; i++) {
        const float *row = generator->projection + i * generator->condition_size;
        double product = 0, square = 0;
        for (size_t j = 0; j < g->size; j++) {
            product += (double)row[j] * (double)g->vector[j];
            square += (double)row[j] * (double)row[j];
        }
        seen += square > 0 ? product * product / square : 0;
    }
    return all > 0 ? fmin(seen / all, 1) : 1;
}

static icma_status tell(generation *g, icma_error *error) {
    const icma_generator *generator = &g->b->groups[g->told->group].generator;
    for (size_t k = 0; k < generator->coordinates; k++)
        if (!(fabsf(g->a[k]) <= farthest_coordinate))
            return icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                             "the condition is %g times as far out as those that were packed: nothing can be "
                             "computed from it; check its scale",
                             (double)fabsf(g->a[k]));
    g->told->seen = share_seen(g);
    g->told->hash = g->vector ? icma_hash(g->vector, g->size * sizeof(float))
                              : icma_hash(g->a, generator->coordinates * sizeof(float));
    g->told->archive = icma_container_hash(g->b->container);
    return ICMA_OK;
}

static icma_status generated_code(icma_group_state *group, const icma_part *p, const icma_checkpoint *c,
                                  const void *context, float *code, icma_error *error) {
    const generation *g = context;
    (void)p;
    (void)c;
    return icma_decoder_sample(group->decoder, g->noise, g->a, true, code, error);
}

/* "B.icma 0123456789abcdef" */
static char *describe_bundle(const generation *g) {
    char hash[24];
    icma_buffer text = {0};
    snprintf(hash, sizeof hash, "%016" PRIx64, g->told->archive);
    if (g->what->bundle) {
        icma_write_bytes(&text, g->what->bundle, strlen(g->what->bundle));
        icma_write_u8(&text, ' ');
    }
    icma_write_bytes(&text, hash, strlen(hash) + 1);
    char *described = text.failed ? NULL : icma_copy_string((const char *)text.data);
    icma_buffer_free(&text);
    return described;
}

/* Puts the file's header into its place, which moves the data. */
static icma_status replace_header(icma_decoded *out, const icma_buffer *header, icma_error *error) {
    size_t before = 8 + (size_t)icma_load_u64(out->data), data = out->size - before, size;
    if (!icma_add_size(8 + header->size, data, &size))
        return icma_fail(error, ICMA_E_LIMIT, NULL, "an adapter that is too large");
    if (size > out->size) {
        uint8_t *larger = icma_resize_array(out->data, size, 1);
        if (!larger)
            return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for an adapter of %zu bytes", size);
        out->data = larger;
    }
    memmove(out->data + 8 + header->size, out->data + before, data);
    icma_store_u64(out->data, header->size);
    memcpy(out->data + 8, header->data, header->size);
    out->size = size;
    return ICMA_OK;
}

static icma_status mark(const generation *g, icma_decoded *out, icma_error *error) {
    char nearest[400], hash[24], seed[24];
    char *bundle = describe_bundle(g);
    icma_buffer header = {0};
    snprintf(nearest, sizeof nearest, "%s, cosine %.4f, distance %.4f", name_of(g, g->told->nearest),
             g->told->cosine, g->told->distance);
    snprintf(hash, sizeof hash, "%016" PRIx64, g->told->hash);
    snprintf(seed, sizeof seed, "%" PRIu64, g->what->seed);
    const icma_metadata_entry entries[] = {{"icma_generated", "true"},
                                           {"icma_from", g->what->origin      ? g->what->origin
                                                         : g->what->condition ? "a condition"
                                                                              : "a mix"},
                                           {"icma_condition_xxh3", hash},
                                           {"icma_seed", g->what->drawn ? seed : "none: the mean"},
                                           {"icma_like", name_of(g, g->told->like)},
                                           {"icma_nearest", nearest},
                                           {"icma_bundle", bundle}};
    icma_status status = bundle ? icma_metadata_put(out->data + 8, (size_t)icma_load_u64(out->data), entries,
                                                    sizeof entries / sizeof *entries, &header, error)
                                : no_memory(error);
    if (!status)
        status = replace_header(out, &header, error);
    icma_buffer_free(&header);
    icma_free(bundle);
    return status;
}

static icma_status decode(generation *g, icma_decoded *out, icma_error *error) {
    icma_task_state *t = &g->b->tasks[g->told->like];
    const icma_generator *generator = &g->b->groups[g->told->group].generator;
    if (!(g->noise = icma_alloc_zeroed(generator->latent + 1, sizeof *g->noise)))
        return no_memory(error);
    if (g->what->drawn)
        icma_bundle_draw(generator, g->what->seed, g->noise);
    icma_status status = icma_bundle_decode_place(g->b, g->told->like, t->places[t->count - 1],
                                                  generated_code, g, false, out, error);
    return status ? status : mark(g, out, error);
}

void icma_generation_init(icma_generation *what, size_t size) {
    const icma_generation standard = {.size = size, .like = SIZE_MAX};
    icma_sized_fill(what, size, &standard, sizeof standard);
}

/* As this library knows it, from a program that may have been compiled with less. */
static icma_status take_what(const icma_generation *what, icma_generation *out, icma_error *error) {
    icma_generation_init(out, sizeof *out);
    return icma_sized_take(out, sizeof *out, what, ICMA_GENERATION_LEAST, "what to generate is from",
                           "icma_generation_defaults", error);
}

icma_status icma_bundle_generate(icma_bundle *b, const icma_generation *what, icma_decoded *out,
                                 icma_generated *told, icma_error *error) {
    icma_generation taken;
    generation g = {.b = b, .what = &taken, .told = told};
    memset(told, 0, sizeof *told);
    if (out)
        memset(out, 0, sizeof *out);
    icma_status status = take_what(what, &taken, error);
    if (!status && !taken.condition && !taken.task_count)
        status = icma_fail(error, ICMA_E_USAGE, NULL, "neither a condition nor a mix of tasks");
    if (!status)
        status = taken.condition ? condition_in_group(&g, error) : mix_in_group(&g, error);
    if (!status)
        status = tell(&g, error);
    if (!status && out)
        status = decode(&g, out, error);
    if (status) {
        icma_error_set_file(error, icma_container_path(b->container));
        if (out)
            icma_decoded_free(out);
    }
    icma_free(g.vector);
    icma_free(g.a);
    icma_free(g.noise);
    return status;
}
