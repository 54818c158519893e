/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finding adapters: which files under the given paths are checkpoints of which task.
 *
 * adapter_model.safetensors and pytorch_lora_weights.safetensors are the adapter of the folder that they lie
 * in; its task is the nearest folder at or above it that is not `checkpoint-N`, and N its step. Any other
 * safetensors file is a plain file: its task is its stem without `-000010` (six digits, kohya's epochs) or
 * `-step10`, which is its step. `task_vector.safetensors`, else `task_vector.npy`, in a task's folder is its
 * condition, never an adapter; among plain files it is taken where they are one task.
 *
 * Of two adapters in a task's folder, the last checkpoint and the task's own, which are equal byte for byte,
 * the checkpoint is taken, with both's side files; where those of one name differ, the task's own keeps it,
 * and the checkpoint's becomes "README.checkpoint-450.md". (Where the adapter_config.json differ, both are
 * taken.) adapter_model-00001-of-00003.safetensors and so on are one adapter, joined to the
 * adapter_model.safetensors that PEFT loads; their index is not kept. An adapter in a folder of an adapter's
 * folder (PEFT's named adapters) is a task of its own, below checkpoint-N its step N; where several tasks
 * have one of its name, it is "<task>.<name>".
 *
 * An archive that is named (tar, plain or with gzip, xz or zstd; zip; 7z; told by its first bytes) is
 * searched as if it were a folder of its name without the ending. Its members are unpacked to one nameless
 * temporary file, and their paths are the archive's path with theirs behind it. Refused are
 * (ICMA_E_CORRUPT) damaged and truncated archives, members of one name, names that are absolute, hold "..",
 * backslashes or control bytes; (ICMA_E_UNSUPPORTED) links, devices, encryption; (ICMA_E_LIMIT) more bytes or
 * members than the options allow, paths over 1024 bytes or 32 folders.
 */
#ifndef ICMA_INPUTS_H
#define ICMA_INPUTS_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

ICMA_API_BEGIN

typedef struct icma_input_side_file {
    char *name; /* in the checkpoint's folder: "adapter_config.json", "README.md" */
    char *path;
} icma_input_side_file;

typedef struct icma_input_checkpoint {
    char *path;    /* the safetensors file */
    bool has_step; /* false: the adapter in the task's own folder, or a plain file without a number */
    uint64_t step;
    icma_input_side_file *side_files; /* sorted by name */
    size_t side_file_count;
    char
        *final_path; /* the task's own adapter, equal to this one byte for byte and stored with it, or NULL */
    size_t shards;   /* so many files were joined to `path`; 0: it is a file */
} icma_input_checkpoint;

typedef struct icma_input_task {
    char *name;                         /* a safe path segment */
    char *folder;                       /* where it was found, to name it in messages */
    char *condition_path;               /* or NULL */
    icma_input_checkpoint *checkpoints; /* by step, natural order; one without a step comes last */
    size_t checkpoint_count;
} icma_input_task;

typedef struct icma_input_skip {
    char *path;
    char *reason; /* "a pickle, ...; convert it with ..." */
} icma_input_skip;

typedef struct icma_inputs {
    icma_input_task *tasks; /* natural order of names */
    size_t task_count;
    icma_input_skip
        *skips; /* named files that were not taken and are not known helpers: the caller tells, and exits 3 */
    size_t skip_count;
    struct icma_spool
        *spool; /* what came out of archives: while it lives, icma_pack finds their members; or NULL */
} icma_inputs;

struct icma_progress; /* icma.h */

typedef struct icma_input_options {
    size_t size; /* of this struct, as the program was compiled with it; icma_input_defaults fills it in */
    const char *temporary; /* the folder that archives are unpacked to; NULL: $TMPDIR, else /tmp */
    int standard_input;  /* the descriptor of an archive that a path "-" stands for; -1: "-" is a file's name
                          */
    uint64_t most_bytes; /* an archive may hold so many, unpacked (16 GiB), ... */
    uint64_t most_members;                /* ... in so many files and folders (100,000) */
    const struct icma_progress *progress; /* or NULL; phase "unpack" */
    struct icma_spool
        *spool; /* to unpack to, where no file can be made any more (the program's sandbox); NULL */
} icma_input_options;

/* What a program that is linked with the first libicma of this soname sets. */
enum { ICMA_INPUT_OPTIONS_LEAST = offsetof(icma_input_options, spool) + sizeof(struct icma_spool *) };

/* Fills the first `size` bytes of options. */
void icma_input_options_init(icma_input_options *options, size_t size);
static inline icma_input_options icma_input_defaults(void) {
    icma_input_options options;
    icma_input_options_init(&options, sizeof options);
    return options;
}

/* Searches folders (to a depth of 32; below: a skip) and takes files as they are, by content. Links are
 * followed, those to folders last; a folder reached twice is searched once, so loops end. Hidden entries and
 * helper files of trainers (optimizer.*, scheduler.*, rng_state*, trainer_state.json, training_args.bin,
 * scaler.pt, tokenizer files ...) are passed over silently; other pickles (.bin .pt .pth .ckpt, by magic) are
 * skips; so are archives, and safetensors files without any tensor of an adapter ("not a LoRA adapter"),
 * pipes and devices, and folders that cannot be read. What would be a skip in a folder is ICMA_E_UNSUPPORTED
 * (a pipe or device: ICMA_E_FORMAT, an unreadable folder: ICMA_E_IO) where the user named it; side files,
 * conditions and helpers that are named are passed over (a shell's "task" slash star names them). Side files
 * are the .json, .md and .txt beside a folder's adapter, but helpers; over 1 MiB they are a skip.
 * ICMA_E_USAGE naming both: two folders that give the same task name, the same step of a task twice, task
 * names that differ in ASCII case only. ICMA_E_USAGE also for a task name that is not a safe path segment. A
 * path that is missing, or nothing found: ICMA_E_NOT_FOUND. A damaged safetensors file: its reader's status.
 */
icma_status icma_inputs_find(const char *const *paths, size_t path_count, icma_inputs *out,
                             icma_error *error);
/* The same, with other options than icma_input_defaults(). */
icma_status icma_inputs_find_with(const char *const *paths, size_t path_count,
                                  const icma_input_options *options, icma_inputs *out, icma_error *error);
/* Whether icma_inputs_find would take this file for an archive. False where it cannot be read. */
bool icma_input_is_archive(const char *path);
void icma_inputs_free(icma_inputs *inputs); /* leaves it zeroed */

/* Natural order: runs of digits compare as numbers ("checkpoint-9" before "checkpoint-10"), ties by bytes.
 * Like strcmp. */
int icma_compare_natural(const char *a, const char *b);

ICMA_API_END

#endif
