/* SPDX-License-Identifier: Apache-2.0 */
#include "bundle_walk.h"

#include "fuzz_target.h"
#include "icma.h"
#include "memory.h"
#include "ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A few kB of archive need no more; a larger one is a matter of time, not of what is reached. */
enum { MOST_TASKS = 8, MOST_CHECKPOINTS = 16, MOST_TENSORS = 16, MOST_OUTPUT = 1 << 20, MOST_WORK = 1 << 22 };

static bool is_refusal(icma_status status) {
    return status == ICMA_E_FORMAT || status == ICMA_E_CORRUPT || status == ICMA_E_UNSUPPORTED ||
           status == ICMA_E_LIMIT;
}

/* A bundle opens by name: the bytes go into one file without a name, the same in every run. */
const char *fuzz_put_in_file(const uint8_t *data, size_t size) {
    static char path[64];
    static int descriptor = -1;
    if (descriptor < 0) {
        char name[] = "/tmp/icma-fuzz-XXXXXX";
        descriptor = mkstemp(name);
        EXPECT(descriptor >= 0 && unlink(name) == 0);
        snprintf(path, sizeof path, "/dev/fd/%d", descriptor);
    }
    EXPECT(ftruncate(descriptor, 0) == 0);
    for (size_t done = 0; done < size;) {
        ssize_t count = pwrite(descriptor, data + done, size - done, (off_t)done);
        EXPECT(count > 0);
        done += (size_t)count;
    }
    return path;
}

static void check_decoded(icma_status status, icma_decoded *decoded, const icma_error *error) {
    uint8_t sum = 0;
    EXPECT(status == error->status && (status == ICMA_OK) == (decoded->data != NULL));
    EXPECT(status == ICMA_OK || is_refusal(status));
    EXPECT(status == ICMA_OK || (!decoded->files && !decoded->file_count && !decoded->size));
    for (size_t i = 0; i < decoded->size; i++)
        sum = (uint8_t)(sum + decoded->data[i]); /* all of it is there and was written */
    for (size_t i = 0; i < decoded->file_count; i++) {
        EXPECT(strlen(decoded->files[i].name) > 0);
        for (size_t j = 0; j < decoded->files[i].size; j++)
            sum = (uint8_t)(sum + decoded->files[i].data[j]);
    }
    if (sum == 1 && decoded->size)
        memset(decoded->data, 0, 1); /* so that the sum is not optimised away */
    icma_decoded_free(decoded);
}

/* Tensors one by one, of a checkpoint whose first decoding ended with `whole`; where it did not fail they do
 * not, and are what it gave. */
static void check_tensors(icma_bundle *bundle, size_t task, size_t checkpoint, icma_status whole,
                          const icma_decoded *decoded) {
    icma_adapter_tensor *list;
    size_t count, size = 0;
    icma_error error = {0};
    EXPECT(icma_bundle_tensors(bundle, task, checkpoint, &list, &count, &error) == ICMA_OK);
    for (size_t t = 0; t < count; t++)
        size += (size_t)list[t].size;
    for (size_t t = 0; t < count && size <= MOST_OUTPUT; t += 1 + count / MOST_TENSORS) {
        uint8_t *data = malloc((size_t)list[t].size + 1);
        EXPECT(data);
        error = (icma_error){0};
        icma_status status =
            icma_bundle_decode_tensor(bundle, task, checkpoint, t, data, (size_t)list[t].size, &error);
        EXPECT(status == error.status && (status == ICMA_OK || (is_refusal(status) && whole)));
        EXPECT(whole || memcmp(data, decoded->data + decoded->size - size + list[t].offset,
                               (size_t)list[t].size) == 0);
        free(data);
    }
    icma_free(list);
}

static void walk_task(icma_bundle *bundle, size_t task) {
    icma_task_info info;
    icma_error error = {0};
    icma_decoded decoded;
    icma_status status = icma_bundle_task(bundle, task, &info, &error);
    EXPECT(status == error.status && (status == ICMA_OK || is_refusal(status)));
    /* From the last to the first, as unpack goes; chains are remembered. */
    for (size_t i = status ? 0 : info.checkpoint_count; i-- > 0;) {
        if (i >= MOST_CHECKPOINTS)
            continue;
        const icma_checkpoint_info *checkpoint = &info.checkpoints[i];
        bool bounded = checkpoint->bound.kind != ICMA_BOUND_NONE;
        EXPECT(checkpoint->group < icma_bundle_group_count(bundle));
        EXPECT(!bounded || (checkpoint->bound.kind <= ICMA_BOUND_ABS && checkpoint->bound.value > 0));
        error = (icma_error){0};
        check_decoded(icma_bundle_decode(bundle, task, i, &decoded, &error), &decoded, &error);
    }
    /* And one from the middle of a chain, with nothing remembered. */
    size_t count = status ? 0 : info.checkpoint_count;
    icma_bundle_forget_task(bundle, task);
    error = (icma_error){0};
    if (count && count <= MOST_CHECKPOINTS) {
        icma_status whole = icma_bundle_decode(bundle, task, 0, &decoded, &error);
        check_tensors(bundle, task, 0, whole, &decoded);
        check_decoded(whole, &decoded, &error);
    }
    error = (icma_error){0};
    if (count)
        check_decoded(icma_bundle_sample(bundle, task, 1, &decoded, &error), &decoded, &error);
}

static void walk_group(icma_bundle *bundle, uint32_t group) {
    icma_generator_info info;
    icma_error error = {0};
    char *text = NULL;
    icma_status status = icma_bundle_generator(bundle, group, &info, &error);
    EXPECT(status == error.status && (status == ICMA_OK || is_refusal(status)));
    EXPECT(status != ICMA_OK || info.tensors_verbatim <= info.tensors);
    error = (icma_error){0};
    status = icma_bundle_record(bundle, group, &text, &error);
    EXPECT(status == error.status && (status == ICMA_OK || is_refusal(status)));
    EXPECT(status == ICMA_OK || !text);
    icma_free(text);
}

void bundle_walk(const uint8_t *data, size_t size) {
    icma_limits limits = {sizeof limits, MOST_OUTPUT, MOST_WORK};
    icma_bundle *bundle;
    icma_error error = {0};
    icma_set_threads(1);
    icma_status status =
        icma_bundle_open(fuzz_put_in_file(data, size), icma_ops_reference(), &limits, &bundle, &error);
    EXPECT(status == error.status && (status == ICMA_OK) == (bundle != NULL));
    EXPECT(status == ICMA_OK || is_refusal(status));
    if (status != ICMA_OK)
        return;
    size_t groups = icma_bundle_group_count(bundle), tasks = icma_bundle_task_count(bundle);
    for (size_t i = 0; i < groups && i < MOST_TASKS; i++)
        walk_group(bundle, (uint32_t)i);
    for (size_t i = 0; i < tasks && i < MOST_TASKS; i++)
        walk_task(bundle, i);
    icma_bundle_close(bundle);
}
