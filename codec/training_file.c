/* SPDX-License-Identifier: Apache-2.0 */
#include "training_file.h"

#include "compress.h"
#include "file.h"
#include "memory.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* magic, size of the state, its hash; then the state */
#define HEADER ((size_t)24)
static const char magic[8] = {'i','c','m','a','t','r','n','0'};

static char *older(const char *path) {
    size_t length = strlen(path);
    char *name = icma_alloc(length + 5);
    if (name)
        snprintf(name, length + 5, "%s.old", path);
    return name;
}

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the training's state");
}

icma_status icma_training_file_save(const char *path, const icma_buffer *state, icma_error *error) {
    uint8_t header[HEADER];
    icma_output *output = NULL;
    char *old = older(path);
    if (!old)
        return no_memory(error);
    memcpy(header, magic, sizeof magic);
    icma_store_u64(header + 8, state->size);
    icma_store_u64(header + 16, icma_hash(state->data, state->size));
    icma_status status = icma_output_create(path, true, &output, error);
    if (!status)
        status = icma_output_write(output, header, sizeof header, error);
    if (!status)
        status = icma_output_write(output, state->data, state->size, error);
    if (status)
        icma_output_abandon(output);
    else {
        /* The first save has nothing to rename. A kill between the two renames leaves the old generation, whole. */
        (void)rename(path, old);
        status = icma_output_commit(output, error);
    }
    icma_free(old);
    return status;
}

/* *data stays NULL where the file is missing or not whole; only what is wrong with the machine is an error. */
static icma_status load(const char *path, size_t limit, uint8_t **data, size_t *size, icma_error *error) {
    uint8_t *bytes = NULL;
    size_t length = 0;
    icma_status status = icma_file_read_all(path, limit + HEADER, &bytes, &length, error);
    if (status == ICMA_E_MEMORY || status == ICMA_E_IO)
        return status;
    bool whole = !status && length >= HEADER && memcmp(bytes, magic, sizeof magic) == 0 && icma_load_u64(bytes + 8) == length - HEADER &&
                 icma_load_u64(bytes + 16) == icma_hash(bytes + HEADER, length - HEADER);
    if (whole) {
        memmove(bytes, bytes + HEADER, length - HEADER);
        *data = bytes;
        *size = length - HEADER;
    } else
        icma_free(bytes);
    return ICMA_OK;
}

icma_status icma_training_file_load(const char *path, size_t limit, uint8_t **data, size_t *size, icma_error *error) {
    char *old = older(path);
    *data = NULL;
    *size = 0;
    icma_status status = old ? load(path, limit, data, size, error) : no_memory(error);
    if (!status && !*data)
        status = load(old, limit, data, size, error);
    icma_free(old);
    return status;
}

bool icma_training_file_exists(const char *path) {
    char *old = older(path);
    bool there = access(path, F_OK) == 0 || (old && access(old, F_OK) == 0);
    icma_free(old);
    return there;
}

void icma_training_file_remove(const char *path) {
    char *old = older(path);
    (void)unlink(path);
    if (old)
        (void)unlink(old);
    icma_free(old);
}
