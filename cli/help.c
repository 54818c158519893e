/* SPDX-License-Identifier: Apache-2.0 */
/* `--help`, told from the very tables that parse. */
#include "options.h"

#include "terminal.h"

#include <string.h>

enum { HELP_COLUMN = 26 }; /* where the explanations start */

const char *const cli_help_purpose =
    "Packs many LoRA adapters into one archive with a trained conditional VAE, and\n"
    "gets working adapters back.";

static const struct {
    int code;
    const char *meaning;
} exit_meanings[] = {
    {0, "done"},
    {1, "input or output failed"},
    {2, "wrong usage"},
    {3, "done in part: what was left out is named on stderr"},
    {4, "corrupt, truncated or not this format; a checksum does not match"},
    {5, "fidelity bound missed"},
    {6, "unsupported format, version or dtype"},
    {7, "no such file, task or checkpoint"},
    {8, "the output exists already"},
    {9, "not enough memory, or no such device"},
    {10, "over a limit"},
};

static void print_heading(const char *text, FILE *out) {
    fprintf(out, "\n%s%s%s\n", cli_style(out, CLI_BOLD), text, cli_style(out, CLI_PLAIN));
}

/* `help` in its column; lines after the first are indented there too. */
static void print_help_text(const char *help, size_t used, FILE *out) {
    if (used + 2 > HELP_COLUMN)
        fprintf(out, "\n%*s", HELP_COLUMN, "");
    else
        fprintf(out, "%*s", (int)(HELP_COLUMN - used), "");
    for (const char *c = help; *c; c++)
        if (*c == '\n')
            fprintf(out, "\n%*s", HELP_COLUMN, "");
        else
            fputc(*c, out);
    fputc('\n', out);
}

void cli_help_option(const cli_verb *verb, const cli_option *option, char *text, size_t size) {
    char standard[64] = "";
    if (verb->tell_default)
        verb->tell_default(option, standard, sizeof standard);
    snprintf(text, size, standard[0] ? "%s (default %s)" : "%s", option->help, standard);
}

static void print_option(const cli_verb *verb, const cli_option *option, FILE *out) {
    char left[80], help[CLI_HELP_SIZE];
    char letter[8] = "    ";
    if (option->letter)
        snprintf(letter, sizeof letter, "-%c, ", option->letter);
    int used = snprintf(left, sizeof left, "  %s--%s%s%s", letter, option->name, option->argument ? " " : "",
                        option->argument ? option->argument : "");
    fputs(left, out);
    cli_help_option(verb, option, help, sizeof help);
    print_help_text(help, (size_t)used, out);
}

const char *cli_exit_meaning(int code) {
    for (size_t i = 0; i < sizeof exit_meanings / sizeof exit_meanings[0]; i++)
        if (exit_meanings[i].code == code)
            return exit_meanings[i].meaning;
    return NULL;
}

static void print_exits(const int *exits, FILE *out) {
    print_heading("Exit codes", out);
    for (; *exits >= 0; exits++)
        if (cli_exit_meaning(*exits))
            fprintf(out, "  %-6d%s\n", *exits, cli_exit_meaning(*exits));
    fprintf(out, "  128+N ended by signal N\n");
}

void cli_help_verb(const cli_verb *verb, FILE *out) {
    fprintf(out, "Usage: icma %s [options] %s\n", verb->name, verb->operands);
    if (verb->alias)
        fprintf(out, "       icma %s [options] %s\n", verb->alias, verb->operands);
    fprintf(out, "\n%s\n", verb->description);
    if (verb->options[0].kind != CLI_HEADING)
        print_heading("Options", out);
    for (const cli_option *row = verb->options; row->kind != CLI_END; row++)
        if (row->kind == CLI_HEADING)
            print_heading(row->name, out);
        else
            print_option(verb, row, out);
    print_heading("Examples", out);
    for (const char *const *example = verb->examples; *example; example += 2)
        fprintf(out, "  %s\n      %s\n", example[0], example[1]);
    print_exits(verb->exits, out);
}

static void print_verbs(const cli_verb *const *verbs, cli_purpose purpose, FILE *out) {
    static const char *const headings[CLI_PURPOSES] = {
        [CLI_MAKES] = "Make an archive, and change it",
        [CLI_TAKES] = "Get adapters",
        [CLI_LOOKS] = "Look and check",
        [CLI_CONDITIONS] = "Describe tasks",
    };
    print_heading(headings[purpose], out);
    for (; *verbs; verbs++) {
        char name[32];
        snprintf(name, sizeof name, "%s%s%s", (*verbs)->name, (*verbs)->alias ? ", " : "",
                 (*verbs)->alias ? (*verbs)->alias : "");
        if ((*verbs)->purpose == purpose)
            fprintf(out, "  %-14s%s\n", name, (*verbs)->summary);
    }
}

void cli_help_all(const cli_verb *const *verbs, FILE *out) {
    fprintf(out, "Usage: icma VERB [options] ...\n\n%s\n", cli_help_purpose);
    for (int purpose = 0; purpose < CLI_PURPOSES; purpose++)
        print_verbs(verbs, (cli_purpose)purpose, out);
    print_heading("Options", out);
    fputs("  -h, --help    show this help; icma VERB --help shows a verb's\n"
          "  -V, --version print the version\n",
          out);
    print_heading("Examples", out);
    fputs("  icma pack loras -o loras.icma\n"
          "  icma list loras.icma\n"
          "  icma unpack loras.icma --task cat -C out\n",
          out);
}
