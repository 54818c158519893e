/* SPDX-License-Identifier: Apache-2.0 */
/* Where files of adapters lie in a tree: told by what was packed, remembered in the record (spec 4.9), else
 * guessed. */
#ifndef ICMA_LAYOUT_PLACE_H
#define ICMA_LAYOUT_PLACE_H

#include "icma.h"

/* How files of adapters lie in a tree. */
typedef enum icma_file_form {
    ICMA_FORM_PEFT,      /* <task>/[checkpoint-N/]adapter_model.safetensors */
    ICMA_FORM_DIFFUSERS, /* <task>/[checkpoint-N/]pytorch_lora_weights.safetensors */
    ICMA_FORM_PLAIN      /* <task>[-NNNNNN|-stepN].safetensors */
} icma_file_form;

const char *icma_file_form_name(icma_file_form form); /* "peft", "diffusers", "plain" */

typedef struct icma_file_naming {
    icma_file_form form;
    bool by_step;    /* plain: "-step<N>", not "-<N>" with six digits */
    unsigned digits; /* of a "-step<N>", filled up with zeros */
} icma_file_naming;

/* Of a file that was packed, by its path; false where it is none of the forms for this task and step. */
bool icma_file_naming_of(const char *path, const char *task, bool has_step, uint64_t step,
                         icma_file_naming *out);
/* From the record of its group (icma_bundle_record), where the files of the group were not all PEFT folders;
 * `record` may be NULL. */
bool icma_file_naming_from_record(const char *record, icma_file_naming *out);
/* Where the archive does not tell: by the names of the tensors and, of kohya's files, by ss_epoch and
 * ss_steps. */
icma_status icma_file_naming_guess(const icma_decoded *header, bool has_step, uint64_t step,
                                   icma_file_naming *out, icma_error *error);
/* Folder and file name, the caller's (icma_free); *folder is "" for a plain file. `in_tree`: with the step in
 * a folder's name (plain files always have theirs). */
icma_status icma_file_place(const icma_file_naming *naming, const char *task, bool has_step, uint64_t step,
                            bool in_tree, char **folder, char **name, icma_error *error);

#endif
