/* SPDX-License-Identifier: Apache-2.0 */
/* icma generate --mix: tasks and their weights. */
#include "generate.h"

#include "memory.h"
#include "source.h"
#include "terminal.h"

#include <stdint.h>
#include <string.h>

typedef struct reader {
    const icma_bundle *bundle;
    const char *path;
    cli_mix *mix;
    size_t weighted; /* parts that had a weight */
    icma_error *error;
} reader;

void cli_mix_free(cli_mix *mix) {
    icma_free(mix->tasks);
    icma_free(mix->weights);
    icma_free(mix->text);
    *mix = (cli_mix){0};
}

double cli_mix_sum(const cli_mix *mix) {
    double sum = 0;
    for (size_t i = 0; i < mix->count; i++)
        sum += mix->weights[i];
    return sum;
}

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for a mix");
}

static icma_status add(reader *r, size_t task, bool weighted, double weight) {
    cli_mix *mix = r->mix;
    for (size_t i = 0; i < mix->count; i++)
        if (mix->tasks[i] == task)
            return icma_fail(r->error, ICMA_E_USAGE, NULL, "--mix names \"%.100s\" twice; give it one weight",
                             icma_bundle_task_name(r->bundle, task));
    size_t *tasks = icma_resize_array(mix->tasks, mix->count + 1, sizeof *tasks);
    mix->tasks = tasks ? tasks : mix->tasks;
    double *weights = icma_resize_array(mix->weights, mix->count + 1, sizeof *weights);
    mix->weights = weights ? weights : mix->weights;
    if (!tasks || !weights)
        return no_memory(r->error);
    tasks[mix->count] = task;
    weights[mix->count++] = weight;
    r->weighted += weighted;
    return ICMA_OK;
}

/* "TASK:WEIGHT" cut in two at its last colon; false: there is no weight. */
static bool cut_weight(char *text, double *weight) {
    char *colon = strrchr(text, ':');
    if (!colon || !cli_parse_real(colon + 1, weight))
        return false;
    *colon = '\0';
    return true;
}

/* TASK or TASK:WEIGHT. `wanted`: there must be such a task; else *task is SIZE_MAX where there is none. */
static icma_status find_part(reader *r, const char *text, bool wanted, size_t *task, bool *weighted,
                             double *weight) {
    char *name = icma_copy_string(text);
    *weighted = false;
    *weight = 0;
    if (!name)
        return no_memory(r->error);
    icma_status status = ICMA_OK;
    *task = icma_bundle_find_task(r->bundle, name);
    if (*task == SIZE_MAX) {
        *weighted = cut_weight(name, weight);
        if (wanted)
            status = cli_choose_task(r->bundle, r->path, name, task, r->error);
        else
            *task = icma_bundle_find_task(r->bundle, name);
    }
    icma_free(name);
    return status;
}

static icma_status read_pieces(reader *r, const char *item) {
    icma_status status = ICMA_OK;
    for (const char *at = item; !status && at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        size_t task;
        bool weighted;
        double weight;
        char *piece = icma_copy_text(at, strcspn(at, ","));
        if (!piece)
            return no_memory(r->error);
        status = piece[0] ? find_part(r, piece, true, &task, &weighted, &weight)
                          : icma_fail(r->error, ICMA_E_USAGE, NULL,
                                      "--mix has an empty name in \"%.200s\"; write TASK:WEIGHT,TASK:WEIGHT",
                                      item);
        if (!status)
            status = add(r, task, weighted, weight);
        icma_free(piece);
    }
    return status;
}

static icma_status read_item(reader *r, const char *item) {
    size_t task;
    bool weighted;
    double weight;
    icma_status status = find_part(r, item, false, &task, &weighted, &weight);
    if (status)
        return status;
    return task == SIZE_MAX ? read_pieces(r, item) : add(r, task, weighted, weight);
}

static icma_status write_text(reader *r) {
    icma_buffer text = {0};
    for (size_t i = 0; i < r->mix->count; i++) {
        const char *name = icma_bundle_task_name(r->bundle, r->mix->tasks[i]);
        icma_write_bytes(&text, i ? "," : "", i > 0);
        icma_write_bytes(&text, name, strlen(name));
        cli_append(&text, ":%.6g", r->mix->weights[i]);
    }
    r->mix->text = text.failed ? NULL : icma_copy_text((const char *)text.data, text.size);
    icma_buffer_free(&text);
    return r->mix->text ? ICMA_OK : no_memory(r->error);
}

icma_status cli_mix_read(const icma_bundle *bundle, const char *path, const cli_list *items, cli_mix *mix,
                         icma_error *error) {
    reader r = {.bundle = bundle, .path = path, .mix = mix, .error = error};
    icma_status status = ICMA_OK;
    *mix = (cli_mix){0};
    for (size_t i = 0; !status && i < items->count; i++)
        status = read_item(&r, items->items[i]);
    if (!status && r.weighted && r.weighted != mix->count)
        status =
            icma_fail(error, ICMA_E_USAGE, NULL,
                      "some tasks of --mix have a weight and some have none; give all of them one, or none");
    for (size_t i = 0; !r.weighted && i < mix->count; i++)
        mix->weights[i] = 1.0 / (double)mix->count;
    return status ? status : write_text(&r);
}
