/* SPDX-License-Identifier: Apache-2.0 */
/* `icma help --man`: the manual page, told from the very tables that parse. */
#include "options.h"
#include "version.h"

#include <string.h>

/* "lossless: the very files": a line of its own. */
static bool starts_item(const char *line) {
    size_t length = strspn(line, "abcdefghijklmnopqrstuvwxyz0123456789");
    return length > 0 && line[length] == ':';
}

/* Text for roff: hyphens that can be copied, backslashes that are none, lines that are no requests,
 * paragraphs. */
static void print_roff(const char *text, FILE *out) {
    bool line_start = true;
    for (const char *c = text; *c; c++) {
        if (line_start && (*c == '.' || *c == '\''))
            fputs("\\&", out);
        if (*c == '\\')
            fputs("\\e", out);
        else if (*c == '-')
            fputs("\\-", out);
        else if (*c == '\n' && c[1] == '\n')
            fputs("\n.PP", out);
        else if (*c == '\n' && starts_item(c + 1))
            fputs("\n.br\n", out);
        else
            fputc(*c, out);
        line_start = *c == '\n';
    }
}

static void print_line(const char *before, const char *text, FILE *out) {
    fputs(before, out);
    print_roff(text, out);
    fputc('\n', out);
}

static void print_usage(const cli_verb *verb, const char *name, FILE *out) {
    fputs("\\fBicma ", out);
    print_roff(name, out);
    fputs("\\fR [\\fIoptions\\fR] ", out);
    print_line("", verb->operands, out);
}

static void print_option(const cli_verb *verb, const cli_option *option, FILE *out) {
    char help[CLI_HELP_SIZE];
    fputs(".TP\n", out);
    if (option->letter)
        fprintf(out, "\\fB\\-%c\\fR, ", option->letter);
    fputs("\\fB\\-\\-", out);
    print_roff(option->name, out);
    fputs("\\fR", out);
    if (option->argument) {
        fputs(" \\fI", out);
        print_roff(option->argument, out);
        fputs("\\fR", out);
    }
    cli_help_option(verb, option, help, sizeof help);
    print_line("\n", help, out);
}

static void print_verb(const cli_verb *verb, FILE *out) {
    print_line(".SS ", verb->name, out);
    print_usage(verb, verb->name, out);
    if (verb->alias) {
        fputs(".br\n", out);
        print_usage(verb, verb->alias, out);
    }
    print_line(".PP\n", verb->description, out);
    for (const cli_option *row = verb->options; row->kind != CLI_END; row++)
        if (row->kind == CLI_HEADING)
            print_line(".PP\n.I ", row->name, out);
        else
            print_option(verb, row, out);
}

static void print_examples(const cli_verb *verb, FILE *out) {
    for (const char *const *example = verb->examples; *example; example += 2) {
        print_line(".TP\n.B ", example[0], out);
        print_line("", example[1], out);
    }
}

static void print_exits(FILE *out) {
    fputs(".SH EXIT STATUS\n", out);
    for (int code = 0; code < 128; code++)
        if (cli_exit_meaning(code)) {
            fprintf(out, ".TP\n.B %d\n", code);
            print_line("", cli_exit_meaning(code), out);
        }
    fputs(".TP\n.B 128+N\nended by signal N\n", out);
}

void cli_manual(const cli_verb *const *verbs, FILE *out) {
    fprintf(out, ".TH ICMA 1 \"\" \"icma %s\" \"User Commands\"\n", icma_version());
    fputs(".SH NAME\nicma \\- many LoRA adapters in one archive\n.SH SYNOPSIS\n", out);
    for (const cli_verb *const *verb = verbs; *verb; verb++) {
        print_usage(*verb, (*verb)->name, out);
        fputs(".br\n", out);
    }
    fputs("\\fBicma help\\fR [\\fIVERB\\fR | \\fB\\-\\-man\\fR | \\fB\\-\\-completion\\fR "
          "\\fBbash\\fR|\\fBzsh\\fR|\\fBfish\\fR]\n",
          out);
    print_line(".SH DESCRIPTION\n", cli_help_purpose, out);
    fputs("Data goes to standard output, everything else to standard error.\n.SH VERBS\n", out);
    for (const cli_verb *const *verb = verbs; *verb; verb++)
        print_verb(*verb, out);
    fputs(".SS help\nWithout more, the verbs; with the name of one, its options. \\fB\\-\\-man\\fR writes "
          "this page,\n"
          "\\fB\\-\\-completion\\fR a script with which a shell completes verbs, options, their values and "
          "the names of tasks.\n",
          out);
    fputs(".SH EXAMPLES\n", out);
    for (const cli_verb *const *verb = verbs; *verb; verb++)
        print_examples(*verb, out);
    print_exits(out);
}
