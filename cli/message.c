/* SPDX-License-Identifier: Apache-2.0 */
#include "message.h"

#include "json_out.h"
#include "progress.h"
#include "signals.h"
#include "terminal.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

static bool as_json, quiet, verbose;

void cli_messages_as_json(bool json) {
    as_json = json;
}

void cli_messages_quiet(bool on) {
    quiet = on;
}

void cli_messages_verbose(bool on) {
    verbose = on;
}

static void print_line(cli_look look, const char *label, const char *file, const char *message) {
    cli_progress_clear();
    fprintf(stderr, "icma: %s%s:%s ", cli_style(stderr, look), label, cli_style(stderr, CLI_PLAIN));
    if (file && file[0]) {
        cli_print_safe(stderr, file);
        fputs(": ", stderr);
    }
    cli_print_safe(stderr, message);
    fputc('\n', stderr);
}

/* {"error": {...}}, {"warning": {...}} or {"note": {...}} on one line. */
static void print_object(const char *label, const char *file, const char *message, const icma_error *error) {
    cJSON *root = cli_json_object();
    cJSON *object = cli_json_add_object(root, label);
    if (error)
        cli_json_text(object, "status", icma_status_name(error->status));
    cli_json_text(object, "file", file && file[0] ? file : NULL);
    cli_json_text(object, "message", message);
    if (error)
        cli_json_whole(object, "exit", (uint64_t)cli_exit_code(error->status));
    cli_progress_clear();
    cli_json_print_line(root, stderr);
}

void cli_error(const icma_error *error) {
    if (as_json)
        print_object("error", error->file, error->message, error);
    else
        print_line(CLI_RED, "error", error->file, error->message);
}

void cli_warning(const char *file, const char *format, ...) {
    char message[ICMA_ERROR_MESSAGE_SIZE];
    va_list list;
    va_start(list, format);
    vsnprintf(message, sizeof message, format, list);
    va_end(list);
    if (as_json)
        print_object("warning", file, message, NULL);
    else
        print_line(CLI_YELLOW, "warning", file, message);
}

void cli_note(const char *format, ...) {
    char message[ICMA_ERROR_MESSAGE_SIZE];
    va_list list;
    va_start(list, format);
    vsnprintf(message, sizeof message, format, list);
    va_end(list);
    if (quiet)
        return;
    if (as_json)
        print_object("note", NULL, message, NULL);
    else
        print_line(CLI_PLAIN, "note", NULL, message);
}

static void print_detail(const char *topic, const char *message) {
    cli_progress_clear();
    fprintf(stderr, "icma: %s%s:%s ", cli_style(stderr, CLI_BOLD), topic, cli_style(stderr, CLI_PLAIN));
    cli_print_safe(stderr, message);
    fputc('\n', stderr);
}

static void print_detail_object(const char *topic, const char *message) {
    cJSON *root = cli_json_object(), *object = cli_json_add_object(root, "detail");
    cli_json_text(object, "topic", topic);
    cli_json_text(object, "message", message);
    cli_progress_clear();
    cli_json_print_line(root, stderr);
}

void cli_detail(const char *topic, const char *format, ...) {
    char message[ICMA_ERROR_MESSAGE_SIZE];
    va_list list;
    va_start(list, format);
    vsnprintf(message, sizeof message, format, list);
    va_end(list);
    if (verbose)
        (as_json ? print_detail_object : print_detail)(topic, message);
}

int cli_exit_code(icma_status status) {
    if (status == ICMA_E_CANCELLED && cli_signal_received())
        return 128 + cli_signal_received();
    return icma_status_exit_code(status);
}

int cli_finish_stdout(void) {
    errno = 0;
    bool failed = fflush(stdout) != 0;
    int reason = errno;
    if (!failed && !ferror(stdout))
        return 0;
    if (cli_pipe_broken())
        return 128 + 13; /* the reader has left: as if SIGPIPE had ended us, and as quietly */
    icma_error error = {0};
    icma_fail(&error, ICMA_E_IO, "standard output", "cannot write (%s); check where it goes to",
              reason ? strerror(reason) : "an earlier write failed");
    cli_error(&error);
    return icma_status_exit_code(ICMA_E_IO);
}
