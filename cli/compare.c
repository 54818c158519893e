/* SPDX-License-Identifier: Apache-2.0 */
#include "compare.h"

#include "file.h"
#include "memory.h"

#include <math.h>
#include <string.h>

enum { LARGEST_CONFIG = 1 << 20 };

/* adapter_config.json in the folder of `path`; a missing or unreadable one only costs the scale. */
static void load_config(const char *path, cli_adapter *adapter) {
    static const char name[] = "adapter_config.json";
    const char *slash = strrchr(path, '/');
    size_t folder = slash ? (size_t)(slash - path) + 1 : 0;
    char *config_path = icma_alloc(folder + sizeof name);
    if (!config_path)
        return;
    memcpy(config_path, path, folder);
    memcpy(config_path + folder, name, sizeof name);
    uint8_t *text = NULL;
    if (icma_file_read_all(config_path, LARGEST_CONFIG, &text, &adapter->config_size, NULL) == ICMA_OK)
        adapter->config = (char *)text;
    icma_free(config_path);
}

icma_status cli_adapter_view(const char *name, const uint8_t *image, size_t size, cli_adapter *out,
                             icma_error *error) {
    *out = (cli_adapter){.image = image, .size = size};
    icma_status status = icma_safetensors_view(image, size, &out->tensors, &out->data, error);
    if (!status)
        status = icma_pairs_find(&out->tensors, &out->pairs, error);
    if (status) {
        icma_error_set_file(error, name);
        cli_adapter_free(out);
    }
    return status;
}

icma_status cli_adapter_load(const char *path, cli_adapter *out, icma_error *error) {
    uint8_t *image = NULL;
    size_t size = 0;
    *out = (cli_adapter){0};
    icma_status status =
        icma_file_read_all(path, (size_t)icma_limits_defaults().max_output, &image, &size, error);
    if (!status)
        status = cli_adapter_view(path, image, size, out, error);
    if (status) {
        icma_error_set_file(error, path);
        icma_free(image);
        return status;
    }
    out->owned = image;
    load_config(path, out);
    return ICMA_OK;
}

void cli_adapter_free(cli_adapter *adapter) {
    icma_safetensors_free(&adapter->tensors);
    icma_pairs_free(&adapter->pairs);
    icma_free(adapter->owned);
    icma_free(adapter->config);
    *adapter = (cli_adapter){0};
}

cli_score cli_score_none(void) {
    return (cli_score){.dw_maximum = NAN, .total = {.identical = true}};
}

void cli_score_add(cli_score *score, const icma_fidelity *fidelity) {
    score->adapters++;
    score->identical += fidelity->total.identical;
    score->modules += fidelity->pair_count;
    score->dw_sum += fidelity->dw_error_mean * (double)fidelity->pair_count;
    score->dw_max = fmax(score->dw_max, fidelity->dw_error_max);
    for (size_t i = 0; i < fidelity->pair_count; i++)
        score->dw_maximum = fmax(score->dw_maximum, fidelity->pairs[i].maximum); /* fmax drops a NAN */
    icma_distance_add(&score->total, &fidelity->total);
}

double cli_score_dw_mean(const cli_score *score) {
    return score->modules ? score->dw_sum / (double)score->modules : 0;
}

const icma_input_checkpoint *cli_find_checkpoint(const icma_input_task *task, bool has_step, uint64_t step,
                                                 bool is_last) {
    for (size_t i = 0; i < task->checkpoint_count; i++)
        if (task->checkpoints[i].has_step == has_step && (!has_step || task->checkpoints[i].step == step))
            return &task->checkpoints[i];
    if (task->checkpoint_count == 0)
        return NULL;
    const icma_input_checkpoint *last = &task->checkpoints[task->checkpoint_count - 1];
    return (!has_step || (is_last && !last->has_step)) ? last : NULL;
}

const icma_input_task *cli_find_task(const icma_inputs *inputs, const char *name) {
    for (size_t i = 0; i < inputs->task_count; i++)
        if (strcmp(inputs->tasks[i].name, name) == 0)
            return &inputs->tasks[i];
    return NULL;
}
