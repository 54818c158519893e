/* SPDX-License-Identifier: Apache-2.0 */
/* The greedy soup: which checkpoints of a task take part in its average, by a score. */
#include "memory.h"
#include "progress.h"
#include "sort.h"
#include "soup.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct candidate {
    size_t source;
    double score;
} candidate;

typedef struct greedy {
    icma_group *group;
    const icma_generator *generator;
    const icma_inputs *inputs;
    icma_scorer scorer;
    const icma_progress *progress;
    size_t scored, scores; /* done, and of all tasks */
    /* One task. */
    uint8_t *image; /* its last file */
    size_t size;
    const icma_source *last;
    double *sum;    /* of the modelled weights of the soup's members */
    size_t members;
    double score;   /* of the soup */
} greedy;

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a soup");
}

/* Elements of one tensor as numbers, `values` having room for them: zeros for an exception. */
static void load_tensor(const greedy *g, size_t source, const uint8_t *file, size_t t, float *values) {
    const icma_tensor_info *info = &g->group->signature.tensors[t];
    if (icma_group_is_exception(g->group, source, t))
        memset(values, 0, (size_t)info->count * sizeof *values);
    else
        icma_load_floats(info->dtype, file + g->group->sources[source].data_offset + info->begin, (size_t)info->count, values);
}

static size_t widest(const greedy *g) {
    size_t most = 1;
    for (size_t t = 0; t < g->group->signature.tensor_count; t++)
        if (icma_generator_is_modelled(g->generator, t) && g->group->signature.tensors[t].count > most)
            most = (size_t)g->group->signature.tensors[t].count;
    return most;
}

/* Adds a checkpoint to the sum, or, with `trial`, writes the average of the sum and the checkpoint into the image. */
static icma_status mix(greedy *g, size_t source, bool trial, icma_error *error) {
    const icma_safetensors *signature = &g->group->signature;
    uint8_t *file;
    size_t size;
    float *values = icma_alloc_array(widest(g), sizeof *values);
    icma_status status = values ? icma_source_read(&g->group->sources[source], &file, &size, error) : no_memory(error);
    if (status) {
        icma_free(values);
        return status;
    }
    double *sum = g->sum;
    for (size_t t = 0; t < signature->tensor_count; t++) {
        const icma_tensor_info *info = &signature->tensors[t];
        if (!icma_generator_is_modelled(g->generator, t))
            continue;
        load_tensor(g, source, file, t, values);
        for (size_t i = 0; i < info->count; i++, sum++)
            if (trial)
                values[i] = (float)((*sum + values[i]) / (double)(g->members + 1));
            else
                *sum += values[i];
        if (trial)
            icma_store_floats(info->dtype, values, (size_t)info->count, g->image + g->last->data_offset + info->begin);
    }
    g->members += !trial;
    icma_free(values);
    icma_free(file);
    return ICMA_OK;
}

/* Scores the average of the soup and one checkpoint more. */
static icma_status try_source(greedy *g, size_t source, double *score, icma_error *error) {
    const char *task = g->inputs->tasks[g->last->task].name;
    const icma_progress *progress = g->progress;
    icma_tell(progress, "soup", (double)g->scored, (double)g->scores, task);
    icma_status status = icma_check_cancelled(progress, error);
    if (!status)
        status = mix(g, source, true, error);
    if (!status)
        status = g->scorer.score(g->scorer.context, task, g->image, g->size, g->last->input, score, error);
    if (!status && !isfinite(*score))
        status = icma_fail(error, ICMA_E_USAGE, NULL, "a score of task %.100s is not finite; there is nothing to choose by", task);
    g->scored++;
    return status;
}

/* Best first; of equal ones the later, which was trained for longer. */
static int compare_candidates(const void *left, const void *right, const void *context) {
    const candidate *a = left, *b = right;
    (void)context;
    if (a->score != b->score)
        return a->score < b->score ? -1 : 1;
    return (a->source < b->source) - (a->source > b->source);
}

static icma_status stir(greedy *g, candidate *list, size_t count, double *weight, icma_error *error) {
    icma_status status = ICMA_OK;
    for (size_t i = 0; !status && i < count; i++)
        status = try_source(g, list[i].source, &list[i].score, error);
    if (status)
        return status;
    icma_sort(list, count, sizeof *list, compare_candidates, NULL);
    g->score = list[0].score;
    for (size_t i = 0; !status && i < count; i++) {
        double score = list[i].score; /* the best one alone has been scored */
        if (i)
            status = try_source(g, list[i].source, &score, error);
        if (status || score > g->score)
            continue;
        g->score = score;
        weight[list[i].source] = 1;
        status = mix(g, list[i].source, false, error);
    }
    return status;
}

static icma_status choose_task(greedy *g, size_t first, size_t next, double *weight, icma_error *error) {
    size_t weights = 0;
    for (size_t t = 0; t < g->group->signature.tensor_count; t++)
        weights += icma_generator_is_modelled(g->generator, t) ? (size_t)g->group->signature.tensors[t].count : 0;
    candidate *list = icma_alloc_array(next - first, sizeof *list);
    g->last = &g->group->sources[next - 1];
    g->members = 0;
    g->sum = icma_alloc_zeroed(weights + 1, sizeof *g->sum);
    icma_status status = list && g->sum ? icma_source_read(&g->group->sources[next - 1], &g->image, &g->size, error) : no_memory(error);
    for (size_t i = first; !status && i < next; i++) {
        list[i - first].source = i;
        weight[i] = 0;
    }
    if (!status)
        status = stir(g, list, next - first, weight, error);
    for (size_t i = first; !status && i < next; i++)
        weight[i] /= (double)g->members;
    icma_free(list);
    icma_free(g->sum);
    icma_free(g->image);
    g->sum = NULL;
    g->image = NULL;
    return status;
}

icma_status icma_soup_greedy(icma_group *group, const icma_generator *generator, const icma_inputs *inputs, icma_scorer scorer, const icma_progress *progress, double *weight,
                             icma_error *error) {
    greedy g = {.group = group, .generator = generator, .inputs = inputs, .scorer = scorer, .progress = progress};
    icma_status status = ICMA_OK;
    for (size_t i = 0; i < group->count; i++)
        g.scores += i == 0 || group->sources[i].task != group->sources[i - 1].task ? 1 : 2;
    for (size_t first = 0, next; !status && first < group->count; first = next) {
        for (next = first; next < group->count && group->sources[next].task == group->sources[first].task; next++)
            ;
        status = choose_task(&g, first, next, weight, error);
    }
    return status;
}
