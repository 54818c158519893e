/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options as data: one table a verb, which drives the parser and `--help` (and can drive a man page and
 * completion).
 *
 * Forms: --name=value, --name value, -o value, -ovalue, bundled letters (-fqv), `--` ends options. Options
 * and operands mix freely. Abbreviated names are refused: a script must not change its meaning when a longer
 * name is added.
 */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef struct cli_list {
    const char **items; /* owned; the strings are argv's */
    size_t count;
} cli_list;

/* Values that tell whether they were given, so that presets and defaults can fill the rest. */
typedef struct cli_whole {
    bool given;
    uint64_t value;
} cli_whole;
typedef struct cli_real {
    bool given;
    double value;
} cli_real;

typedef enum cli_kind {
    CLI_END,     /* the last row of a table */
    CLI_HEADING, /* `name` is a heading of --help */
    CLI_FLAG,    /* bool */
    CLI_TEXT,    /* const char * */
    CLI_LIST,    /* cli_list: may be repeated */
    CLI_WHOLE,   /* cli_whole, decimal, least..most */
    CLI_REAL,    /* cli_real, least..most */
    CLI_SIZE,    /* cli_whole in bytes; suffixes K, M, G, T are powers of 1024 */
} cli_kind;

typedef struct cli_option {
    cli_kind kind;
    char letter;          /* 0: none */
    const char *name;     /* without the dashes */
    const char *argument; /* what --help calls the value; NULL for flags */
    const char *help;     /* may hold newlines */
    size_t target;        /* offset of the field in the verb's arguments */
    double least, most;   /* of CLI_WHOLE and CLI_REAL; both 0: any */
    const char *values;   /* what completion offers, "a|b"; NULL: what `argument` tells (completion.c) */
} cli_option;

#define CLI_ROW_HEADING(text)                                                                                \
    { .kind = CLI_HEADING, .name = (text) }
#define CLI_ROW_FLAG(letter_, name_, target_, help_)                                                         \
    { .kind = CLI_FLAG, .letter = (letter_), .name = (name_), .target = (target_), .help = (help_) }
#define CLI_ROW(kind_, letter_, name_, argument_, target_, help_)                                            \
    {                                                                                                        \
        .kind = (kind_), .letter = (letter_), .name = (name_), .argument = (argument_), .target = (target_), \
        .help = (help_)                                                                                      \
    }
#define CLI_ROW_CHOICE(letter_, name_, argument_, values_, target_, help_)                                   \
    {                                                                                                        \
        .kind = CLI_TEXT, .letter = (letter_), .name = (name_), .argument = (argument_),                     \
        .values = (values_), .target = (target_), .help = (help_)                                            \
    }
#define CLI_ROW_RANGE(kind_, letter_, name_, argument_, target_, least_, most_, help_)                       \
    {                                                                                                        \
        .kind = (kind_), .letter = (letter_), .name = (name_), .argument = (argument_), .target = (target_), \
        .least = (least_), .most = (most_), .help = (help_)                                                  \
    }
#define CLI_ROW_END                                                                                          \
    { .kind = CLI_END }

/* The first member of every verb's arguments; a verb's table has rows for those that it heeds. */
typedef struct cli_common {
    bool help;
    bool json;
    bool quiet;
    bool verbose;
    bool no_progress, progress;
    bool no_color;
} cli_common;

#define CLI_ROW_HELP CLI_ROW_FLAG('h', "help", offsetof(cli_common, help), "show this help")
#define CLI_ROW_JSON                                                                                         \
    CLI_ROW_FLAG(0, "json", offsetof(cli_common, json),                                                      \
                 "print one JSON document (spec/json.md), errors as JSON too")
#define CLI_ROW_QUIET                                                                                        \
    CLI_ROW_FLAG('q', "quiet", offsetof(cli_common, quiet), "say nothing but warnings and errors")
/* Both ways. */
#define CLI_ROW_NO_PROGRESS                                                                                  \
    CLI_ROW_FLAG(0, "no-progress", offsetof(cli_common, no_progress), "no progress bars"),                   \
        CLI_ROW_FLAG(0, "progress", offsetof(cli_common, progress),                                          \
                     "tell progress where there is no terminal too: in lines, with\n"                        \
                     "--json as JSON lines on standard error")
#define CLI_ROW_NO_COLOR                                                                                     \
    CLI_ROW_FLAG(0, "no-color", offsetof(cli_common, no_color), "no colours (nor with NO_COLOR set)")
#define CLI_ROW_VERBOSE(help_) CLI_ROW_FLAG('v', "verbose", offsetof(cli_common, verbose), help_)

/* What a verb is for; the overview is told in this order. */
typedef enum cli_purpose { CLI_MAKES, CLI_TAKES, CLI_LOOKS, CLI_CONDITIONS, CLI_PURPOSES } cli_purpose;

typedef struct cli_verb {
    const char *name;
    cli_purpose purpose;
    const char *alias; /* or NULL */
    const char *also;  /* what other programs call it, with blanks between; for suggestions; may be NULL */
    const char *other_options;   /* what they call its options: "jobs=threads j=threads"; may be NULL */
    const char *operands;        /* after the verb in the usage line */
    const char *summary;         /* one line of `icma --help` */
    const char *description;     /* the paragraph of its own help */
    const cli_option *options;   /* up to CLI_END */
    const char *const *examples; /* command, what it does, ..., NULL */
    const int *exits;            /* exit codes that it may give, up to -1 */
    size_t least_operands, most_operands;
    const char *surplus; /* what operands beyond the most may have been meant for: "a folder to unpack into is
                            -C DIR"; may be NULL */
    /* Writes the default of an option where there is one to tell beyond what `help` says; may be NULL. */
    void (*tell_default)(const cli_option *option, char *text, size_t size);
    size_t arguments_size; /* of a struct that starts with cli_common; zeroed before parsing */
    /* Done in part is ICMA_E_PARTIAL with no message, everything having been named already. */
    icma_status (*run)(const void *arguments, const cli_list *operands, icma_error *error);
} cli_verb;

/* Fills `arguments` and `operands` from what follows the verb. Stops at --help. Both may hold lists on
 * failure: free them in every case. */
icma_status cli_options_parse(const cli_verb *verb, int argc, char **argv, void *arguments,
                              cli_list *operands, icma_error *error);
void cli_options_free(const cli_verb *verb, void *arguments, cli_list *operands);
icma_status cli_list_add(cli_list *list, const char *item, icma_error *error);

/* Whole text as a number; false if it is none. */
bool cli_parse_whole(const char *text, uint64_t *value);
bool cli_parse_real(const char *text, double *value);

/* Edits (insert, delete, replace, swap of neighbours) from a to b; what "did you mean" goes by. */
size_t cli_edit_distance(const char *a, const char *b);
bool cli_is_near(const char *a, const char *b);
/* Looks `word` up in "a b=c d": what follows its '=', of *length bytes, or itself; NULL if it is not there.
 * `between` parts the words. */
const char *cli_look_up(const char *word, const char *list, char between, size_t *length);

/* help.c */
enum { CLI_HELP_SIZE = 800 };
extern const char *const cli_help_purpose; /* what icma is for */
/* An option's help with its default; at most CLI_HELP_SIZE. */
void cli_help_option(const cli_verb *verb, const cli_option *option, char *text, size_t size);
const char *cli_exit_meaning(int code); /* NULL: none */
void cli_help_verb(const cli_verb *verb, FILE *out);
void cli_help_all(const cli_verb *const *verbs, FILE *out);
/* manual.c: the manual page icma(1), for man */
void cli_manual(const cli_verb *const *verbs, FILE *out);
/* completion.c: a script for "bash", "zsh" or "fish"; ICMA_E_USAGE for another shell */
icma_status cli_completion(const cli_verb *const *verbs, const char *shell, FILE *out, icma_error *error);

#endif
