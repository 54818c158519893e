/* SPDX-License-Identifier: Apache-2.0 */
#include "progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* In the order in which packing comes by them; "soup" and "denoise" in the place of, or after, "train". */
static const struct {
    const char *phase, *unit;
} phases[] = {
    {"unpack", "bytes"},
    {"embed", "texts"},       {"read", "files"},     {"gram", "bytes"},      {"choose", "steps"},
    {"basis", "bytes"},       {"copy", "bytes"},     {"project", "tensors"}, {"soup", "scores"},
    {"train", "epochs"},      {"denoise", "epochs"}, {"weights", "trials"},  {"encode", "checkpoints"},
    {"check", "checkpoints"}, {"zstd", "bytes"},     {"write", "bytes"},
};

const char *icma_progress_unit(const char *phase) {
    for (size_t i = 0; i < sizeof phases / sizeof phases[0]; i++)
        if (strcmp(phases[i].phase, phase) == 0)
            return phases[i].unit;
    return NULL;
}

void icma_tell(const icma_progress *progress, const char *phase, double done, double total,
               const char *note) {
    if (progress && progress->update)
        progress->update(progress->context, phase, done, total, note);
}

icma_status icma_check_cancelled(const icma_progress *progress, icma_error *error) {
    if (progress && progress->cancelled && progress->cancelled(progress->context))
        return icma_fail(error, ICMA_E_CANCELLED, NULL, "stopped; no archive was written");
    return ICMA_OK;
}

void icma_say(const icma_progress *progress, const char *line) {
    if (progress && progress->say)
        progress->say(progress->context, line);
}

bool icma_explains(const icma_progress *progress) {
    return progress && progress->explain;
}

void icma_explain(const icma_progress *progress, const char *topic, const char *format, ...) {
    char line[ICMA_ERROR_MESSAGE_SIZE];
    va_list list;
    if (!icma_explains(progress))
        return;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    progress->explain(progress->context, topic, line);
}
