/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `icma help --completion SHELL`: scripts with which shells complete a command line, told from the very
 * tables that parse.
 *
 * What an option takes is told by its `values`, else by the word that --help has for it: "all|last:N" are
 * alternatives (what is in capitals stands for something), "B.icma" and "TASK" name an archive and a task in
 * it. Names of tasks come from whoever made the archive: no script evaluates them.
 */
#include "options.h"

#include <ctype.h>
#include <string.h>

typedef enum kind { NOTHING, WORDS, FILES, FOLDERS, ARCHIVES, TASKS, COMMANDS } kind;

static const char *argument_of(const cli_option *option) {
    return option->values ? option->values : option->argument;
}

static kind kind_of(const cli_option *option) {
    static const struct {
        const char *argument;
        kind kind;
    } known[] = {
        {"FILE", FILES}, {"B.icma", ARCHIVES}, {"DIR", FOLDERS}, {"TASK", TASKS}, {"COMMAND", COMMANDS}};
    if (strchr(argument_of(option), '|') || option->values)
        return WORDS;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strncmp(option->argument, known[i].argument, strlen(known[i].argument)) == 0)
            return known[i].kind;
    return NOTHING;
}

/* The next alternative of "a|b:N|N" into `word`, as far as it is literal: "a", "b:"; false at the end. */
static bool next_word(const char **at, char word[64]) {
    while (**at) {
        size_t length = strcspn(*at, "|"), literal = 0;
        while (literal < length && !isupper((unsigned char)(*at)[literal]))
            literal++;
        snprintf(word, 64, "%.*s", (int)(literal < 63 ? literal : 63), *at);
        *at += length + ((*at)[length] == '|');
        if (word[0])
            return true;
    }
    return false;
}

static void print_words(const cli_option *option, FILE *out) {
    const char *at = argument_of(option);
    char word[64];
    for (const char *between = ""; next_word(&at, word); between = " ")
        fprintf(out, "%s%s", between, word);
}

static kind operand_kind(const cli_verb *verb) {
    return verb->most_operands == 0 ? NOTHING
           : strncmp(verb->operands, "[B.icma]", 8) == 0 || strncmp(verb->operands, "B.icma", 6) == 0
               ? ARCHIVES
               : FILES;
}

/* Help on one line, for within single quotes; characters of `special` get a backslash. `quote` stands for a
 * single quote. */
static void print_quoted(const char *text, const char *special, const char *quote, FILE *out) {
    for (; *text; text++) {
        if (*text == '\'')
            fputs(quote, out);
        else if (strchr(special, *text))
            fprintf(out, "\\%c", *text);
        else
            fputc(*text == '\n' ? ' ' : *text, out);
    }
}

/* --- bash
 * ------------------------------------------------------------------------------------------------------- */

static const char bash_start[] =
    "# bash completion of icma, written by: icma help --completion bash\n"
    "_icma_words() {\n"
    "    local word\n"
    "    for word; do\n"
    "        [[ $word == \"$cur\"* ]] && COMPREPLY+=(\"$word\")\n"
    "        [[ $word == *[:=] ]] && compopt -o nospace\n"
    "    done\n"
    "}\n"
    "_icma_paths() {\n"
    "    local path\n"
    "    compopt -o filenames\n"
    "    while IFS= read -r path; do COMPREPLY+=(\"$path\"); done < <(compgen \"$@\" -- \"$cur\")\n"
    "}\n"
    "_icma_tasks() {\n"
    "    local word archive= task\n"
    "    for word in \"${COMP_WORDS[@]:1}\"; do [[ $word == *.icma && -f $word ]] && archive=$word; done\n"
    "    while IFS= read -r task; do\n"
    "        [[ $task == \"$cur\"* ]] && COMPREPLY+=(\"$(printf %q \"$task\")\")\n"
    "    done < <(\"${COMP_WORDS[0]/#\\~\\//$HOME/}\" list --names ${archive:+-- \"$archive\"} 2>/dev/null)\n"
    "}\n"
    "_icma() {\n"
    "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} verb=${COMP_WORDS[1]}\n"
    "    COMPREPLY=()\n"
    "    [[ $cur == = ]] && cur=\n"
    "    [[ $prev == = ]] && prev=${COMP_WORDS[COMP_CWORD-2]}\n"
    "    ((COMP_CWORD == 1)) && verb=\n"
    "    case $verb in\n";

static const char *const bash_actions[] = {":",
                                           NULL,
                                           "_icma_paths -f",
                                           "_icma_paths -d",
                                           "_icma_paths -f -X '!*.icma'; _icma_paths -d",
                                           "_icma_tasks",
                                           "_icma_paths -c"};

static void bash_value(const cli_option *option, FILE *out) {
    fprintf(out, "        --%s", option->name);
    if (option->letter)
        fprintf(out, " | -%c", option->letter);
    fputs(") ", out);
    if (kind_of(option) == WORDS) {
        fputs("_icma_words ", out);
        print_words(option, out);
    } else
        fputs(bash_actions[kind_of(option)], out);
    fputs("; return ;;\n", out);
}

static void bash_verb(const cli_verb *verb, FILE *out) {
    fprintf(out, "    %s%s%s)\n        case $prev in\n", verb->name, verb->alias ? " | " : "",
            verb->alias ? verb->alias : "");
    for (const cli_option *row = verb->options; row->kind != CLI_END; row++)
        if (row->kind != CLI_HEADING && row->argument)
            bash_value(row, out);
    fputs("        esac\n        if [[ $cur == -* ]]; then\n            _icma_words", out);
    for (const cli_option *row = verb->options; row->kind != CLI_END; row++)
        if (row->kind != CLI_HEADING)
            fprintf(out, " --%s", row->name);
    fprintf(out, "\n        else\n            %s\n        fi ;;\n", bash_actions[operand_kind(verb)]);
}

static void bash_script(const cli_verb *const *verbs, FILE *out) {
    fputs(bash_start, out);
    fputs("    '') _icma_words", out);
    for (const cli_verb *const *verb = verbs; *verb; verb++)
        fprintf(out, " %s", (*verb)->name);
    fputs(" help --help --version ;;\n    help) _icma_words", out);
    for (const cli_verb *const *verb = verbs; *verb; verb++)
        fprintf(out, " %s", (*verb)->name);
    fputs(" --man --completion bash zsh fish ;;\n", out);
    for (const cli_verb *const *verb = verbs; *verb; verb++)
        bash_verb(*verb, out);
    fputs("    esac\n}\ncomplete -F _icma icma\n", out);
}

/* --- zsh
 * -------------------------------------------------------------------------------------------------------- */

static const char zsh_start[] =
    "#compdef icma\n"
    "# zsh completion of icma, written by: icma help --completion zsh\n"
    "_icma_tasks() {\n"
    "    local archive=${(Q)${(M)words:#*.icma}[-1]}\n"
    "    local -a tasks=(\"${(@f)$($program list --names ${archive:+--} ${archive:+$archive} "
    "2>/dev/null)}\")\n"
    "    compadd -a tasks\n"
    "}\n"
    "_icma() {\n"
    "    local program=${~words[1]} curcontext=$curcontext state line\n"
    "    _arguments -C '(-h --help)'{-h,--help}'[show help]' '(-V --version)'{-V,--version}'[print the "
    "version]' '1:verb:->verb' '*::argument:->rest'\n"
    "    case $state in\n"
    "    verb)\n"
    "        local -a verbs=(\n";

static const char *const zsh_actions[] = {
    "", NULL, "_files", "_files -/", "_files -g \"*.icma\"", "_icma_tasks", "_command_names -e"};

static void zsh_option(const cli_verb *verb, const cli_option *option, FILE *out) {
    char help[CLI_HELP_SIZE];
    const char *many = option->kind == CLI_LIST ? "*" : "", *takes = option->argument ? "=" : "";
    cli_help_option(verb, option, help, sizeof help);
    fputs("            ", out);
    if (option->letter && !*many)
        fprintf(out, "'(-%c --%s)'{-%c%s,--%s%s}'[", option->letter, option->name, option->letter,
                option->argument ? "+" : "", option->name, takes);
    else
        fprintf(out, "'%s--%s%s[", many, option->name, takes);
    print_quoted(help, "[]:\\", "'\\''", out);
    fputc(']', out);
    if (option->argument) {
        fputc(':', out);
        print_quoted(option->argument, ":", "'\\''", out);
        fputc(':', out);
        if (kind_of(option) == WORDS) {
            const char *at = argument_of(option);
            char word[64];
            fputc('(', out);
            for (const char *between = ""; next_word(&at, word); between = " ") {
                fputs(between, out);
                print_quoted(word, ":", "", out);
            }
            fputc(')', out);
        } else
            fputs(zsh_actions[kind_of(option)], out);
    }
    fputs("' \\\n", out);
}

static void zsh_verb(const cli_verb *verb, FILE *out) {
    fprintf(out, "        %s%s%s)\n            _arguments -s -S \\\n", verb->name, verb->alias ? " | " : "",
            verb->alias ? verb->alias : "");
    for (const cli_option *row = verb->options; row->kind != CLI_END; row++)
        if (row->kind != CLI_HEADING)
            zsh_option(verb, row, out);
    fprintf(out, "            '*:argument:%s' ;;\n", zsh_actions[operand_kind(verb)]);
}

static void zsh_script(const cli_verb *const *verbs, FILE *out) {
    fputs(zsh_start, out);
    for (const cli_verb *const *verb = verbs; *verb; verb++) {
        fprintf(out, "            '%s:", (*verb)->name);
        print_quoted((*verb)->summary, ":\\", "'\\''", out);
        fputs("'\n", out);
    }
    fputs("            'help:show help'\n        )\n        _describe verb verbs ;;\n    rest)\n        case "
          "$words[1] in\n        help) _values 'verb'",
          out);
    for (const cli_verb *const *verb = verbs; *verb; verb++)
        fprintf(out, " %s", (*verb)->name);
    fputs(" ;;\n", out);
    for (const cli_verb *const *verb = verbs; *verb; verb++)
        zsh_verb(*verb, out);
    fputs("        esac ;;\n    esac\n}\nif [[ $funcstack[1] == _icma ]]; then _icma \"$@\"; else compdef "
          "_icma icma; fi\n",
          out);
}

/* --- fish
 * ------------------------------------------------------------------------------------------------------- */

static const char fish_start[] =
    "# fish completion of icma, written by: icma help --completion fish\n"
    "function __icma_tasks\n"
    "    set -l words (commandline -opc)\n"
    "    set -l archive (string match -- '*.icma' $words | tail -n 1)\n"
    "    if test -n \"$archive\"\n"
    "        command $words[1] list --names -- $archive 2>/dev/null\n"
    "    else\n"
    "        command $words[1] list --names 2>/dev/null\n"
    "    end\n"
    "end\n"
    "complete -c icma -f\n"
    "complete -c icma -n __fish_use_subcommand -s h -l help -d 'show help'\n"
    "complete -c icma -n __fish_use_subcommand -s V -l version -d 'print the version'\n"
    "complete -c icma -n __fish_use_subcommand -a help -d 'show help'\n";

static const char *const fish_actions[] = {" -x",
                                           NULL,
                                           " -r -F",
                                           " -x -a '(__fish_complete_directories)'",
                                           " -x -a '(__fish_complete_suffix .icma)'",
                                           " -x -a '(__icma_tasks)'",
                                           " -x -a '(__fish_complete_command)'"};

static void fish_condition(const cli_verb *verb, FILE *out) {
    fprintf(out, "complete -c icma -n '__fish_seen_subcommand_from %s%s%s'", verb->name,
            verb->alias ? " " : "", verb->alias ? verb->alias : "");
}

static void fish_option(const cli_verb *verb, const cli_option *option, FILE *out) {
    char help[CLI_HELP_SIZE];
    cli_help_option(verb, option, help, sizeof help);
    fish_condition(verb, out);
    if (option->letter)
        fprintf(out, " -s %c", option->letter);
    fprintf(out, " -l %s", option->name);
    if (option->argument && kind_of(option) == WORDS) {
        fputs(" -x -a '", out);
        print_words(option, out);
        fputc('\'', out);
    } else if (option->argument)
        fputs(fish_actions[kind_of(option)], out);
    fputs(" -d '", out);
    print_quoted(help, "\\", "\\'", out);
    fputs("'\n", out);
}

static void fish_script(const cli_verb *const *verbs, FILE *out) {
    fputs(fish_start, out);
    for (const cli_verb *const *verb = verbs; *verb; verb++) {
        fprintf(out,
                "complete -c icma -n '__fish_use_subcommand; or __fish_seen_subcommand_from help' -a %s -d '",
                (*verb)->name);
        print_quoted((*verb)->summary, "\\", "\\'", out);
        fputs("'\n", out);
    }
    for (const cli_verb *const *verb = verbs; *verb; verb++) {
        fish_condition(*verb, out);
        fputs(operand_kind(*verb) == ARCHIVES ? " -k -a '(__fish_complete_suffix .icma)'\n" : " -F\n", out);
        for (const cli_option *row = (*verb)->options; row->kind != CLI_END; row++)
            if (row->kind != CLI_HEADING)
                fish_option(*verb, row, out);
    }
}

icma_status cli_completion(const cli_verb *const *verbs, const char *shell, FILE *out, icma_error *error) {
    static const struct {
        const char *shell;
        void (*script)(const cli_verb *const *verbs, FILE *out);
    } shells[] = {{"bash", bash_script}, {"zsh", zsh_script}, {"fish", fish_script}};
    for (size_t i = 0; i < sizeof shells / sizeof shells[0]; i++)
        if (strcmp(shell, shells[i].shell) == 0) {
            shells[i].script(verbs, out);
            return ICMA_OK;
        }
    return icma_fail(error, ICMA_E_USAGE, NULL, "no completion for \"%s\"; there are bash, zsh and fish",
                     shell);
}
