/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of a training on disk, so that it can go on after a kill: one file, replaced as a whole, and the one before it beside it (".old"). Not an interchange format: the same build reads it.
 */
#ifndef ICMA_TRAINING_FILE_H
#define ICMA_TRAINING_FILE_H

#include "bytes.h"
#include "status.h"

/* Saves `state` at `path`; what was there becomes path.old. A kill at any moment leaves at least one whole generation. */
icma_status icma_training_file_save(const char *path, const icma_buffer *state, icma_error *error);
/* *data (owned by the caller, icma_free) is the newest generation that is whole, of at most `limit` bytes; NULL if there is none. A damaged one is passed over. */
icma_status icma_training_file_load(const char *path, size_t limit, uint8_t **data, size_t *size, icma_error *error);
bool icma_training_file_exists(const char *path);
/* Removes both generations. */
void icma_training_file_remove(const char *path);

#endif
