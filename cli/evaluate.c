/* SPDX-License-Identifier: Apache-2.0 */
#include "evaluate.h"

#include "bytes.h"
#include "command.h"
#include "file.h"
#include "memory.h"
#include "signals.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    MOST_CONFIG = 1 << 20,
    DEEPEST = 32, /* folders that a command may leave in each other */
};

struct cli_evaluator {
    char **words; /* of the command; NULL after the last; owned */
    size_t count;
    char *folder;   /* of the adapter that is being scored; owned */
    double seconds; /* that it may take; 0: any */
    bool quote;     /* what it says on stderr, when it fails */
};

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for an evaluation");
}

/* --- the command's words
 * ----------------------------------------------------------------------------------------- */

static bool is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n';
}

/* Reads one word from *at, which is not a space; false at a quote without its end. */
static bool read_word(const char **at, icma_buffer *word) {
    const char *c = *at;
    char quote = 0;
    for (; *c && (quote || !is_space(*c)); c++) {
        if (!quote && (*c == '\'' || *c == '"'))
            quote = *c;
        else if (*c == quote)
            quote = 0;
        else if (*c == '\\' && quote != '\'' && c[1] && (!quote || c[1] == '"' || c[1] == '\\'))
            icma_write_u8(word, (uint8_t) * ++c);
        else
            icma_write_u8(word, (uint8_t)*c);
    }
    *at = c;
    return !quote;
}

static icma_status add_word(cli_evaluator *e, icma_buffer *word, icma_error *error) {
    icma_write_u8(word, 0);
    char **more = word->failed ? NULL : icma_resize_array(e->words, e->count + 2, sizeof *more);
    if (!more)
        return no_memory(error);
    e->words = more;
    e->words[e->count] = icma_copy_string((const char *)word->data);
    e->words[e->count + 1] = NULL;
    return e->words[e->count++] ? ICMA_OK : no_memory(error);
}

static icma_status split(cli_evaluator *e, const char *command, const char *option, bool base,
                         icma_error *error) {
    icma_status status = ICMA_OK;
    bool adapter = false;
    for (const char *at = command; !status && *at;) {
        icma_buffer word = {0};
        if (is_space(*at)) {
            at++;
            continue;
        }
        if (!read_word(&at, &word))
            status = icma_fail(error, ICMA_E_USAGE, NULL, "%s: a quote has no end in: %s", option, command);
        else
            status = add_word(e, &word, error);
        adapter = adapter || (!status && e->count > 1 && strstr(e->words[e->count - 1], "{adapter}"));
        icma_buffer_free(&word);
    }
    if (!status && !base && !adapter)
        status = icma_fail(error, ICMA_E_USAGE, NULL,
                           "--eval takes a program and {adapter} where the adapter's folder goes, as in "
                           "'score.py {task} {adapter}'; not \"%s\"",
                           command);
    if (!status && base && (adapter || e->count == 0))
        status = icma_fail(error, ICMA_E_USAGE, NULL,
                           "%s takes a number, TASK=NUMBER, or a program that scores the model without an "
                           "adapter, as in 'score.py {task}'; not \"%s\"",
                           option, command);
    return status;
}

/* What is told late costs the minutes until then: is there such a program at all? */
static bool program_exists(const char *name, bool *found) {
    icma_buffer path = {0};
    const char *folders = getenv("PATH");
    *found = strchr(name, '/') && access(name, X_OK) == 0;
    for (const char *at = strchr(name, '/') || !folders ? "" : folders; *at && !*found && !path.failed;) {
        size_t length = strcspn(at, ":");
        path.size = 0;
        icma_write_bytes(&path, length ? at : ".", length ? length : 1);
        icma_write_u8(&path, '/');
        icma_write_bytes(&path, name, strlen(name) + 1);
        *found = !path.failed && access((const char *)path.data, X_OK) == 0;
        at += length + (at[length] == ':');
    }
    bool known = !path.failed;
    icma_buffer_free(&path);
    return known;
}

static icma_status open_command(const char *command, const char *option, bool base, cli_evaluator **out,
                                icma_error *error) {
    bool found = false;
    *out = NULL;
    cli_evaluator *e = icma_alloc_zeroed(1, sizeof *e);
    icma_status status = e ? split(e, command, option, base, error) : no_memory(error);
    if (!status && !program_exists(e->words[0], &found))
        status = no_memory(error);
    if (!status && !found)
        status = icma_fail(error, ICMA_E_USAGE, NULL, "%s: there is no program %s; name one that can be run",
                           option, e->words[0]);
    if (status)
        cli_evaluator_close(e);
    else
        *out = e;
    return status;
}

icma_status cli_evaluate_open(const char *command, cli_evaluator **out, icma_error *error) {
    return open_command(command, "--eval", false, out, error);
}

icma_status cli_evaluate_open_base(const char *command, cli_evaluator **out, icma_error *error) {
    return open_command(command, "--eval-base", true, out, error);
}

void cli_evaluator_limit(cli_evaluator *e, double seconds) {
    e->seconds = seconds;
}

void cli_evaluator_quote(cli_evaluator *e) {
    e->quote = true;
}

void cli_evaluator_close(cli_evaluator *e) {
    for (size_t i = 0; e && i < e->count; i++)
        icma_free(e->words[i]);
    if (e)
        icma_free(e->words);
    icma_free(e);
}

/* A word with {adapter} and {task} filled in; NULL without memory. */
static char *fill_word(const char *word, const char *adapter, const char *task) {
    static const char *const names[] = {"{adapter}", "{task}"};
    const char *const values[] = {adapter, task};
    icma_buffer out = {0};
    for (size_t i; *word;) {
        for (i = 0; i < 2 && strncmp(word, names[i], strlen(names[i])) != 0; i++)
            ;
        if (i < 2) {
            icma_write_bytes(&out, values[i], strlen(values[i]));
            word += strlen(names[i]);
        } else {
            icma_write_u8(&out, (uint8_t)*word++);
        }
    }
    icma_write_u8(&out, 0);
    char *filled = out.failed ? NULL : icma_copy_string((const char *)out.data);
    icma_buffer_free(&out);
    return filled;
}

static void free_arguments(char **arguments) {
    for (size_t i = 0; arguments && arguments[i]; i++)
        icma_free(arguments[i]);
    icma_free(arguments);
}

static char **fill_words(const cli_evaluator *e, const char *task) {
    char **arguments = icma_alloc_zeroed(e->count + 1, sizeof *arguments);
    for (size_t i = 0; arguments && i < e->count; i++)
        if (!(arguments[i] = fill_word(e->words[i], e->folder ? e->folder : "", task))) {
            free_arguments(arguments);
            return NULL;
        }
    return arguments;
}

/* --- the adapter's folder
 * ---------------------------------------------------------------------------------------- */

static const char model_name[] = "adapter_model.safetensors", config_name[] = "adapter_config.json";

/* folder/name; NULL without memory. */
static char *path_of(const char *folder, const char *name) {
    size_t length = strlen(folder), more = strlen(name);
    char *path = icma_alloc(length + more + 2);
    if (path) {
        memcpy(path, folder, length);
        path[length] = '/';
        memcpy(path + length + 1, name, more + 1);
    }
    return path;
}

static icma_status write_file(const char *folder, const char *name, const uint8_t *data, size_t size,
                              icma_error *error) {
    icma_output *output;
    char *path = path_of(folder, name);
    icma_status status = path ? icma_output_create(path, false, &output, error) : no_memory(error);
    if (!status) {
        status = icma_output_write(output, data, size, error);
        if (status)
            icma_output_abandon(output);
        else
            status = icma_output_commit(output, error);
    }
    icma_free(path);
    return status;
}

static icma_status make_folder(cli_evaluator *e, icma_error *error) {
    const char *parent = getenv("TMPDIR");
    e->folder = path_of(parent && *parent ? parent : "/tmp", "icma-eval-XXXXXX");
    if (!e->folder)
        return no_memory(error);
    if (mkdtemp(e->folder))
        return ICMA_OK;
    icma_status status =
        icma_fail(error, ICMA_E_IO, e->folder,
                  "cannot make a folder: %s; set TMPDIR to one that can be written", strerror(errno));
    icma_free(e->folder);
    e->folder = NULL;
    return status;
}

/* Removes what is beneath the folder `at`, which it closes: the command may have left files of its own. Links
 * are not followed. */
static void empty_folder(int at, int depth) {
    DIR *folder = fdopendir(at);
    if (!folder) {
        close(at);
        return;
    }
    for (struct dirent *entry = readdir(folder); entry; entry = readdir(folder)) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            unlinkat(at, entry->d_name, 0) == 0)
            continue;
        int below =
            depth < DEEPEST ? openat(at, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
        if (below >= 0)
            empty_folder(below, depth + 1);
        unlinkat(at, entry->d_name, AT_REMOVEDIR);
    }
    closedir(folder);
}

static void remove_folder(cli_evaluator *e) {
    int at = e->folder ? open(e->folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
    if (at >= 0)
        empty_folder(at, 0);
    if (e->folder)
        rmdir(e->folder);
    icma_free(e->folder);
    e->folder = NULL;
}

/* --- the score
 * --------------------------------------------------------------------------------------------------- */

/* With `labelled`, what follows the last '=' or ':' of the word. */
static bool read_number(const char *word, size_t length, bool labelled, double *out) {
    char text[64], *rest;
    size_t first = labelled ? length : 0;
    while (labelled && first > 0 && word[first - 1] != '=' && word[first - 1] != ':')
        first--;
    if (length - first == 0 || length - first >= sizeof text || (labelled && first == 0))
        return false;
    memcpy(text, word + first, length - first);
    text[length - first] = '\0';
    *out = strtod(text, &rest);
    return *rest == '\0' && rest != text;
}

static bool is_blank(char c) {
    return is_space(c) || c == '\r' || c == '\0';
}

/* The last number of a line. */
static bool find_number(const char *line, size_t length, bool labelled, double *out) {
    while (length > 0) {
        size_t first = length;
        while (first > 0 && !is_blank(line[first - 1]))
            first--;
        if (first < length && read_number(line + first, length - first, labelled, out))
            return true;
        length = first > 0 ? first - 1 : 0;
    }
    return false;
}

/* The last line that is not empty; "" if there is none. */
static const char *last_line(const cli_tail *t, size_t *length) {
    size_t last = t->size;
    while (last > 0 && is_blank(t->text[last - 1]))
        last--;
    size_t first = last;
    while (first > 0 && t->text[first - 1] != '\n')
        first--;
    *length = last - first;
    return t->text + first;
}

/* A word of its own first, for a path may end in "=5" as well as a label. */
static bool find_score(const cli_command *c, double *out) {
    size_t length;
    const char *line = last_line(&c->output, &length);
    return find_number(line, length, false, out) || find_number(line, length, true, out);
}

/* ": its last words" of a command that has failed, or "". */
typedef struct words {
    char text[200];
} words;

static words last_words(const cli_command *c) {
    words out = {""};
    size_t length;
    const char *line = last_line(&c->errors, &length);
    if (length)
        snprintf(out.text, sizeof out.text, ": %.*s",
                 (int)(length < sizeof out.text - 8 ? length : sizeof out.text - 8), line);
    return out;
}

static icma_status judge(const cli_command *c, int how, const char *program, const char *task, double *score,
                         icma_error *error) {
    if (WIFSIGNALED(how))
        return icma_fail(error, ICMA_E_IO, NULL, "the evaluation %s was killed by signal %d at task %s%s",
                         program, WTERMSIG(how), task, last_words(c).text);
    if (WEXITSTATUS(how) == 127)
        return icma_fail(error, ICMA_E_IO, NULL, "the evaluation %s cannot be run%s", program,
                         last_words(c).text);
    if (WEXITSTATUS(how) != 0)
        return icma_fail(error, ICMA_E_IO, NULL, "the evaluation %s failed with exit code %d at task %s%s%s",
                         program, WEXITSTATUS(how), task, c->errors.size ? "" : "; try it by hand",
                         last_words(c).text);
    if (!find_score(c, score))
        return icma_fail(
            error, ICMA_E_IO, NULL,
            "the evaluation %s printed no number on its last line at task %s; let it print the score there",
            program, task);
    if (!isfinite(*score))
        return icma_fail(error, ICMA_E_IO, NULL,
                         "the evaluation %s printed a score that is not finite at task %s", program, task);
    return ICMA_OK;
}

static icma_status run_words(const cli_evaluator *e, const char *task, double *score, icma_error *error) {
    cli_command *c = icma_alloc_zeroed(1, sizeof *c);
    char **arguments = fill_words(e, task);
    icma_status status = c && arguments ? ICMA_OK : no_memory(error);
    if (!status) {
        c->arguments = arguments;
        c->seconds = e->seconds;
        c->quote = e->quote;
        status = cli_command_run(c, error);
    }
    if (!status)
        status = cli_check_signal(error);
    if (!status && c->outcome == CLI_TOO_LONG)
        status = icma_fail(error, ICMA_E_IO, NULL,
                           "the evaluation %s took longer than %g seconds at task %s and was ended; "
                           "--eval-timeout gives it more%s",
                           e->words[0], e->seconds, task, last_words(c).text);
    else if (!status)
        status = judge(c, c->how, e->words[0], task, score, error);
    free_arguments(arguments);
    icma_free(c);
    return status;
}

icma_status cli_evaluator_run(cli_evaluator *e, const char *task, const uint8_t *file, size_t size,
                              const void *config, size_t config_size, double *score, icma_error *error) {
    icma_status status = file ? make_folder(e, error) : ICMA_OK;
    if (!status && file)
        status = write_file(e->folder, model_name, file, size, error);
    if (!status && file && config)
        status = write_file(e->folder, config_name, config, config_size, error);
    if (!status)
        status = run_words(e, task, score, error);
    remove_folder(e);
    return status;
}

/* As a scorer: with the configuration of a checkpoint like it. */
static icma_status evaluate(void *context, const char *task, const uint8_t *file, size_t size,
                            const icma_input_checkpoint *like, double *score, icma_error *error) {
    uint8_t *config = NULL;
    size_t config_size = 0;
    icma_status status = ICMA_OK;
    bool there = false;
    for (size_t i = 0; !status && !there && i < like->side_file_count; i++) {
        there = strcmp(like->side_files[i].name, config_name) == 0;
        if (there)
            status = icma_file_read_all(like->side_files[i].path, MOST_CONFIG, &config, &config_size, error);
    }
    if (!status)
        status = cli_evaluator_run(context, task, file, size, there && !config ? "" : (const char *)config,
                                   config_size, score, error);
    icma_free(config);
    return status;
}

icma_scorer cli_evaluator_scorer(cli_evaluator *evaluator) {
    return (icma_scorer){evaluate, evaluator};
}
