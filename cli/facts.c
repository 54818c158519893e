/* SPDX-License-Identifier: Apache-2.0 */
#include "facts.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static const struct {
    const char *name;
    size_t offset;
} kinds[] = {
    {"generator", offsetof(icma_bytes, generator)}, {"conditions", offsetof(icma_bytes, conditions)},
    {"latents", offsetof(icma_bytes, latents)},     {"residuals", offsetof(icma_bytes, residuals)},
    {"verbatim", offsetof(icma_bytes, verbatim)},   {"index", offsetof(icma_bytes, index)},
    {"metadata", offsetof(icma_bytes, metadata)},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static uint64_t bytes_of(const icma_bytes *bytes, size_t kind) {
    uint64_t value;
    memcpy(&value, (const char *)bytes + kinds[kind].offset, sizeof value);
    return value;
}

void cli_json_bytes(cJSON *to, const icma_bytes *bytes) {
    cJSON *object = cli_json_add_object(to, "bytes");
    cli_json_whole(object, "total", bytes->total);
    for (size_t i = 0; i < KINDS; i++)
        cli_json_whole(object, kinds[i].name, bytes_of(bytes, i));
}

icma_status cli_print_bytes(const icma_bytes *bytes, FILE *out, icma_error *error) {
    cli_table table = cli_table_of((const char *[]){"bytes by kind", ">", ">share", NULL});
    for (size_t i = 0; i < KINDS; i++) {
        uint64_t value = bytes_of(bytes, i);
        if (value == 0)
            continue;
        cli_table_cell(&table, "%s", kinds[i].name);
        cli_table_cell(&table, "%s", cli_whole_text(value).text);
        cli_table_cell(&table, "%s", cli_percent((double)value, (double)bytes->total).text);
    }
    cli_table_cell(&table, "total");
    cli_table_cell(&table, "%s", cli_whole_text(bytes->total).text);
    cli_table_cell(&table, "100 %%");
    return cli_table_print(&table, 0, out, error);
}

void cli_json_dw_error(cJSON *to, double mean, double max) {
    cJSON *object = cli_json_add_object(to, "dw_error");
    cli_json_real(object, "max", max);
    cli_json_real(object, "mean", mean);
}

void cli_json_distance(cJSON *to, const icma_distance *distance) {
    cli_json_real(to, "relative_error", icma_distance_relative(distance));
    cli_json_real(to, "cosine", icma_distance_cosine(distance));
    cli_json_real(to, "maximum", distance->maximum);
    cli_json_real(to, "snr_db", icma_distance_snr(distance));
    cli_json_bool(to, "identical", distance->identical);
}

void cli_json_score(cJSON *to, const cli_score *score) {
    cli_json_whole(to, "adapters", score->adapters);
    cli_json_whole(to, "identical_adapters", score->identical);
    cli_json_dw_error(to, cli_score_dw_mean(score), score->dw_max);
    cli_json_real(to, "dw_maximum", score->dw_maximum);
    cli_json_distance(to, &score->total);
}

cli_small cli_steps(bool any, uint64_t first, uint64_t last, bool final) {
    cli_small out;
    const char *more = any && final ? ", final" : final ? "final" : any ? "" : "-";
    if (!any)
        snprintf(out.text, sizeof out.text, "%s", more);
    else if (first == last)
        snprintf(out.text, sizeof out.text, "%" PRIu64 "%s", first, more);
    else
        snprintf(out.text, sizeof out.text, "%" PRIu64 "-%" PRIu64 "%s", first, last, more);
    return out;
}

cli_small cli_steps_of(const icma_task_info *info) {
    size_t count = info->checkpoint_count;
    bool final = count && !info->checkpoints[count - 1].has_step;
    size_t numbered = count - final;
    return cli_steps(numbered > 0, numbered ? info->checkpoints[0].step : 0,
                     numbered ? info->checkpoints[numbered - 1].step : 0, final);
}

cli_small cli_checkpoint_name(bool has_step, uint64_t step) {
    cli_small out;
    snprintf(out.text, sizeof out.text, "final");
    if (has_step)
        snprintf(out.text, sizeof out.text, "checkpoint-%" PRIu64, step);
    return out;
}

cli_small cli_tiers_of(const icma_task_info *info) {
    cli_small out = {""};
    for (size_t j = 0; j < info->checkpoint_count; j++) {
        cli_small one = cli_tier_of(&info->checkpoints[j]);
        size_t used = strlen(out.text);
        size_t room = sizeof out.text - used;
        if (!strstr(out.text, one.text) && strlen(one.text) + 3 <= room)
            snprintf(out.text + used, room, "%s%.*s", used ? ", " : "", (int)room - 3, one.text);
    }
    return out;
}

cli_small cli_tier_of(const icma_checkpoint_info *info) {
    cli_small out;
    snprintf(out.text, sizeof out.text, "%s", icma_tier_name(info->tier));
    if (info->bound.kind != ICMA_BOUND_NONE)
        snprintf(out.text, sizeof out.text, "%s %s %.4g", icma_tier_name(info->tier), icma_bound_name(info->bound.kind), (double)info->bound.value);
    return out;
}

void cli_json_bound(cJSON *to, icma_bound bound) {
    if (bound.kind == ICMA_BOUND_NONE) {
        cli_json_null(to, "bound");
        return;
    }
    cJSON *object = cli_json_add_object(to, "bound");
    cli_json_text(object, "kind", icma_bound_name(bound.kind));
    cli_json_real(object, "value", (double)bound.value);
}

cli_stored cli_stored_of(const icma_task_info *info) {
    cli_stored sums = {0};
    double squares = 0;
    for (size_t i = 0; i < info->checkpoint_count; i++) {
        const icma_checkpoint_info *checkpoint = &info->checkpoints[i];
        double relative = (double)checkpoint->relative_error;
        sums.file_bytes += checkpoint->file_size;
        sums.parameters += checkpoint->parameters;
        sums.dw_mean += (double)checkpoint->dw_error_mean / (double)info->checkpoint_count;
        sums.dw_max = fmax(sums.dw_max, (double)checkpoint->dw_error_max);
        squares += (double)checkpoint->parameters * relative * relative;
    }
    sums.relative_error = sums.parameters ? sqrt(squares / (double)sums.parameters) : 0;
    return sums;
}

icma_status cli_totals_of(icma_bundle *bundle, cli_totals *totals, icma_error *error) {
    *totals = (cli_totals){.tasks = icma_bundle_task_count(bundle)};
    for (size_t i = 0; i < totals->tasks; i++) {
        icma_task_info info;
        icma_status status = icma_bundle_task(bundle, i, &info, error);
        if (status)
            return status;
        cli_stored stored = cli_stored_of(&info);
        totals->checkpoints += info.checkpoint_count;
        totals->file_bytes += stored.file_bytes;
        totals->parameters += stored.parameters;
        icma_bundle_forget_task(bundle, i);
    }
    return ICMA_OK;
}

cli_balance cli_balance_of(const icma_bytes *archive, const cli_totals *totals) {
    uint64_t own = archive->latents + archive->residuals + archive->verbatim;
    cli_balance out = {.shared = archive->total - own, .half_size = 2 * totals->parameters};
    out.saved = (int64_t)out.half_size - (int64_t)archive->total;
    if (totals->checkpoints == 0)
        return out;
    double adapters = (double)totals->checkpoints;
    out.marginal = (double)own / adapters;
    double gain = (double)out.half_size / adapters - out.marginal; /* bytes that each adapter wins back */
    if (gain > 0)
        out.break_even = (uint64_t)floor((double)out.shared / gain) + 1;
    return out;
}
