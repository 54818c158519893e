/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing adapters: in which layout and dtype, into a tree, one file, or a tar or zip archive. What verbs
 * that make adapters have in common: cli_writing_open, and for each adapter cli_writing_place (where it will
 * lie), cli_writing_look (whether something is in the way), cli_writing_write; cli_writing_close in the end.
 */
#ifndef CLI_WRITING_H
#define CLI_WRITING_H

#include "archive_out.h"
#include "json_out.h"
#include "layout.h"
#include "layout_place.h"
#include "options.h"

/* As the user asked; a member of a verb's arguments. */
typedef struct cli_writing_options {
    const char *folder, *output, *layout, *format, *dtype, *base_model;
    bool force, keep_existing;
} cli_writing_options;

/* In which form; and all of it, with where to. */
#define CLI_ROWS_FORM(type, member)                                                                          \
    CLI_ROW_CHOICE(0, "layout", "LAYOUT", "original|peft|kohya", offsetof(type, member.layout),              \
            "original: files and names as they were packed (default)\npeft: adapter_model.safetensors and "  \
            "adapter_config.json, for\nPEFT, vLLM and LoRAX\n"                                               \
            "kohya: one file, lora_te_....lora_down.weight and .alpha"),                                     \
        CLI_ROW(CLI_TEXT, 0, "base-model", "NAME", offsetof(type, member.base_model),                        \
                "base model of an adapter that names none (peft, kohya)"),                                   \
        CLI_ROW(CLI_TEXT, 0, "dtype", "keep|f32|f16|bf16", offsetof(type, member.dtype),                     \
                "cast weights, to nearest even; voids the error bound")
#define CLI_ROWS_WRITING(type, member)                                                                       \
    CLI_ROW(CLI_TEXT, 'C', "directory", "DIR", offsetof(type, member.folder),                                \
            "folder to write into (default: the current one)"),                                              \
        CLI_ROW(CLI_TEXT, 'o', "output", "FILE", offsetof(type, member.output),                              \
                "one adapter's safetensors, or the archive of --format,\ninto FILE or, with -, to standard " \
                "output"),                                                                                   \
        CLI_ROW(CLI_TEXT, 0, "format", "tar|zip", offsetof(type, member.format),                             \
                "everything as one archive, into -o FILE"),                                                  \
        CLI_ROW_FLAG('f', "force", offsetof(type, member.force), "replace what exists"),                     \
        CLI_ROW_FLAG('k', "keep-existing", offsetof(type, member.keep_existing),                             \
                     "keep what exists, write the rest"),                                                    \
        CLI_ROW_HEADING("As what"), CLI_ROWS_FORM(type, member)

/* Where one adapter goes. */
typedef struct cli_writing_part {
    const char *component; /* static; "" where there is only one */
    char *path;            /* of its safetensors file, below the folder or in the archive, or -o's; owned */
    uint64_t bytes;        /* 0 before it is written */
    size_t side_files;
} cli_writing_part;
typedef struct cli_writing_place {
    char *folder; /* in the tree; "" for a plain file; owned */
    cli_writing_part parts[ICMA_MOST_COMPONENTS];
    size_t count;
    bool kept; /* it is there already, and -k says to keep it */
    bool written;
} cli_writing_place;
void cli_writing_place_free(cli_writing_place *place); /* leaves it zeroed */

/* What is to be told of everything that was written. */
typedef struct cli_writing_told {
    size_t adapters, cast, left_out, configs_made, hashes_made,
        hashes_dropped; /* adapters, tensors, tensors, adapters, adapters, adapters */
    uint64_t overflowed;
    bool lossless; /* some of the cast adapters were bit for bit those that were packed */
} cli_writing_told;

typedef struct cli_writing {
    const cli_writing_options *options; /* the caller's */
    icma_layout_options layout;
    cli_archive_format format;
    cli_archive *archive; /* NULL but while one is written */
    char **remarks;       /* that the user has read; owned */
    size_t remark_count;
    bool archive_kept; /* -k, and it is there */
    cli_writing_told told;
} cli_writing;

/* Checks the options and reads them; nothing is written yet. `keep_going`: tensors without a place are left
 * out. */
icma_status cli_writing_open(cli_writing *writing, const cli_writing_options *options, bool keep_going,
                             icma_error *error);
/* Commits the archive, if there is one and `good`, else drops it. To be called once after cli_writing_open
 * has succeeded. */
icma_status cli_writing_close(cli_writing *writing, bool good, icma_error *error);

/* An adapter and how its file was named; of `header` only the file's header and the side files are looked at
 * (icma_bundle_header). */
typedef struct cli_writing_subject {
    const icma_decoded *header;
    const icma_file_naming *naming;
    const char *task;
    bool has_step,
        in_tree; /* in_tree: one of several checkpoints of its task, so that the step goes into its path */
    uint64_t step;
} cli_writing_subject;
icma_status cli_writing_place_of(const cli_writing *writing, const cli_writing_subject *subject,
                                 cli_writing_place *out, icma_error *error);
/* ICMA_E_EXISTS if something is in the way of it; marks what -k keeps. */
icma_status cli_writing_look(cli_writing *writing, cli_writing_place *place, icma_error *error);
/* Converts, warns of what servers will not take, writes. Takes `decoded` over. `exact`: its weights are bit
 * for bit what was packed. `who` names it in warnings. */
icma_status cli_writing_write(cli_writing *writing, cli_writing_place *place, icma_decoded *decoded,
                              bool exact, const char *who, icma_error *error);

/* Where a part is: below -C's folder, in the archive, or -o's file. The caller's (icma_free); NULL for want
 * of memory. */
char *cli_writing_path(const cli_writing_options *options, const cli_writing_part *part);
/* Lines on stderr about casts, hashes and what was left out. */
void cli_writing_tell(const cli_writing *writing);
void cli_writing_to_json(const cli_writing *writing, cJSON *root);

#endif
