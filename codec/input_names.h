/* SPDX-License-Identifier: Apache-2.0 */
/* What names tell inputs.c about files and folders. Private to it. */
#ifndef ICMA_INPUT_NAMES_H
#define ICMA_INPUT_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

bool icma_name_ends_with(const char *text, const char *suffix);
/* "checkpoint-N". */
bool icma_name_checkpoint(const char *name, uint64_t *step);
/* The length of a plain file's stem without its step: "name-000010" (six digits, as kohya writes epochs),
 * "name-step10", "name_000001000" (nine digits, as ai-toolkit writes steps). */
size_t icma_name_stem(const char *stem, size_t length, bool *has_step, uint64_t *step);
/* "adapter_model.safetensors" and the like: the adapter of the folder that it lies in. */
bool icma_name_is_folder_adapter(const char *name);
bool icma_name_is_condition(const char *name);
/* What trainers leave beside an adapter and nobody needs to use it. */
bool icma_name_is_helper(const char *name);
bool icma_name_is_pickle(const char *name); /* may be one: told by magic then */
bool icma_name_is_side(const char *name);
bool icma_name_is_archive(const char *name); /* by its ending */
/* The length of an archive's name without its ending; all of it where it has none. */
size_t icma_name_archive_stem(const char *name);

#define ICMA_PICKLE_REASON                                                                                   \
    "a pickle, which may run code when it is loaded; convert it with safetensors.torch.save_file"

/* Text only. Copies are the caller's, NULL when memory is short. */
char *icma_path_join(const char *folder, const char *name);
const char *icma_path_last(const char *path);
char *icma_path_parent(const char *path);

#endif
