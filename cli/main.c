/* SPDX-License-Identifier: Apache-2.0 */
/* icma: finds the verb, parses its options, runs it, turns its status into words and an exit code. */
#include "memory.h"
#include "message.h"
#include "options.h"
#include "progress.h"
#include "signals.h"
#include "terminal.h"
#include "verbs.h"
#include "version.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const cli_verb *const verbs[] = {
    &cli_verb_pack, &cli_verb_add,  &cli_verb_remove, &cli_verb_unpack, &cli_verb_generate, &cli_verb_embed,
    &cli_verb_list, &cli_verb_info, &cli_verb_verify, &cli_verb_diff,   &cli_verb_report,   NULL};

/* Descriptors 0 to 2 must be taken, or the first file we open becomes somebody's stdout. A closed one is
 * opened the wrong way round, so that using it still fails. */
static void occupy_standard_descriptors(void) {
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) == -1 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) != fd)
            _exit(1);
}

static const cli_verb *find_verb(const char *name) {
    for (const cli_verb *const *verb = verbs; *verb; verb++)
        if (strcmp(name, (*verb)->name) == 0 || ((*verb)->alias && strcmp(name, (*verb)->alias) == 0))
            return *verb;
    return NULL;
}

/* A file or folder where the verb should be: whoever names it first has a verb in mind. */
static icma_status path_for_verb(const char *name, icma_error *error) {
    struct stat info;
    size_t length = strlen(name);
    if (stat(name, &info) != 0)
        return ICMA_OK;
    bool archive = length > 5 && strcmp(name + length - 5, ".icma") == 0;
    return icma_fail(
        error, ICMA_E_USAGE, NULL,
        archive
            ? "\"%s\" is a file, and the verb comes first; did you mean icma list %s, or icma unpack %s?"
            : "\"%s\" is a file or folder, and the verb comes first; did you mean icma pack %s -o B.icma?",
        name, name, name);
}

static const cli_verb *find_by_other_name(const char *name) {
    size_t length;
    for (const cli_verb *const *verb = verbs; *verb; verb++)
        if (cli_look_up(name, (*verb)->also, ' ', &length))
            return *verb;
    return NULL;
}

static icma_status unknown_verb(const char *name, icma_error *error) {
    icma_status status = path_for_verb(name, error);
    const cli_verb *other = find_by_other_name(name);
    if (status)
        return status;
    if (other)
        return icma_fail(error, ICMA_E_USAGE, NULL, "icma has no verb \"%s\"; did you mean %s? (icma --help)",
                         name, other->name);
    if (name[0] == '-')
        return icma_fail(error, ICMA_E_USAGE, NULL,
                         "%s is no option of icma itself; the verb comes first (icma --help)", name);
    const char *nearest = NULL;
    for (const cli_verb *const *verb = verbs; *verb; verb++)
        if (cli_is_near(name, (*verb)->name) &&
            (!nearest || cli_edit_distance(name, (*verb)->name) < cli_edit_distance(name, nearest)))
            nearest = (*verb)->name;
    if (nearest)
        return icma_fail(error, ICMA_E_USAGE, NULL, "icma has no verb \"%s\"; did you mean %s? (icma --help)",
                         name, nearest);
    return icma_fail(error, ICMA_E_USAGE, NULL, "icma has no verb \"%s\"; see icma --help", name);
}

/* Errors in the options themselves are to be JSON as well, wherever --json stands. */
static bool wants_json(int argc, char **argv) {
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--json") == 0)
            return true;
    return false;
}

static icma_status run_verb(const cli_verb *verb, int argc, char **argv, icma_error *error) {
    cli_list operands = {0};
    void *arguments = icma_alloc_zeroed(1, verb->arguments_size);
    if (!arguments)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory to start");
    const cli_common *common = arguments;
    icma_status status = cli_options_parse(verb, argc, argv, arguments, &operands, error);
    cli_terminal_setup(common->no_color);
    cli_progress_setup(common);
    cli_messages_quiet(common->quiet);
    cli_messages_verbose(common->verbose && !common->quiet);
    if (!status && common->help)
        cli_help_verb(verb, stdout);
    else if (!status)
        status = verb->run(arguments, &operands, error);
    cli_progress_clear();
    cli_options_free(verb, arguments, &operands);
    icma_free(arguments);
    return status;
}

/* `icma help --man`, `icma help --completion SHELL`: what an installation is given of the tables. False if it
 * is neither. */
static bool run_tables(int argc, char **argv, icma_status *status, icma_error *error) {
    bool completion = argc > 0 && strcmp(argv[0], "--completion") == 0;
    *status = ICMA_OK;
    if (argc == 1 && strcmp(argv[0], "--man") == 0)
        cli_manual(verbs, stdout);
    else if (completion && argc == 2)
        *status = cli_completion(verbs, argv[1], stdout, error);
    else if (completion)
        *status = icma_fail(error, ICMA_E_USAGE, NULL, "usage: icma help --completion bash|zsh|fish");
    else
        return false;
    return true;
}

/* `icma help [VERB]` */
static icma_status run_help(int argc, char **argv, icma_error *error) {
    cli_terminal_setup(false);
    const cli_verb *verb = argc > 0 ? find_verb(argv[0]) : NULL;
    icma_status status;
    if (run_tables(argc, argv, &status, error))
        return status;
    if (argc > 1)
        return icma_fail(error, ICMA_E_USAGE, NULL,
                         "\"%s\" is one argument too many; usage: icma help [VERB]", argv[1]);
    if (argc > 0 && !verb && strcmp(argv[0], "help") != 0)
        return unknown_verb(argv[0], error);
    if (verb)
        cli_help_verb(verb, stdout);
    else
        cli_help_all(verbs, stdout);
    return ICMA_OK;
}

static icma_status run(int argc, char **argv, icma_error *error) {
    const char *name = argc > 1 ? argv[1] : "";
    const cli_verb *verb = find_verb(name);
    if (argc < 2)
        return icma_fail(
            error, ICMA_E_USAGE, NULL,
            "no verb was given; icma pack DIR -o B.icma packs adapters, icma --help tells the rest");
    if (verb)
        return run_verb(verb, argc - 2, argv + 2, error);
    if (strcmp(name, "help") == 0 || strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        return run_help(argc - 2, argv + 2, error);
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0 || strcmp(name, "version") == 0) {
        printf("icma %s\n", icma_version());
        return ICMA_OK;
    }
    return unknown_verb(name, error);
}

int main(int argc, char **argv) {
    icma_error error = {0};
    occupy_standard_descriptors();
    cli_signals_setup();
    cli_terminal_setup(false);
    cli_messages_as_json(argc > 1 && wants_json(argc - 1, argv + 1));
    icma_status status = run(argc, argv, &error);
    int code = cli_exit_code(status);
    if (status && cli_pipe_broken())
        return 128 + 13;
    if (status && error.message[0])
        cli_error(&error);
    if (code)
        return code;
    return cli_finish_stdout();
}
