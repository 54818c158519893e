/* SPDX-License-Identifier: Apache-2.0 */
#include "command.h"

#include "signals.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum {
    LISTEN_MS = 200,    /* between looks at signals */
    PATIENCE_MS = 2000, /* from asking a command to end to ending it */
};

typedef struct run {
    pid_t child;
    int output, errors; /* to read from; -1: closed, or not ours */
    double deadline;    /* of a monotonic clock, in seconds; 0: none */
} run;

static icma_status failed_to(icma_error *error, const char *program, const char *what, int why) {
    return icma_fail(error, ICMA_E_IO, NULL, "cannot %s the program %s: %s", what, program, strerror(why));
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* A pipe whose writing end becomes `descriptor` of the command; an errno, or 0. */
static int add_pipe(posix_spawn_file_actions_t *actions, int descriptor, int *reading, int *writing) {
    int ends[2];
    if (pipe(ends) != 0)
        return errno;
    *reading = ends[0];
    *writing = ends[1];
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    return posix_spawn_file_actions_adddup2(actions, ends[1], descriptor);
}

static void close_end(int *end) {
    if (*end >= 0)
        close(*end);
    *end = -1;
}

/* In a process group of its own, so that it ends with all that it has started. */
static int spawn(run *r, char **arguments, posix_spawn_file_actions_t *actions) {
    posix_spawnattr_t attributes;
    int why = posix_spawnattr_init(&attributes);
    if (why)
        return why;
    why = posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP); /* group 0: its own */
    if (!why)
        why = posix_spawnp(&r->child, arguments[0], actions, &attributes, arguments, environ);
    posix_spawnattr_destroy(&attributes);
    return why;
}

static icma_status start(run *r, const cli_command *c, icma_error *error) {
    posix_spawn_file_actions_t actions;
    int writing[2] = {-1, -1}, why = posix_spawn_file_actions_init(&actions);
    if (why)
        return failed_to(error, c->arguments[0], "start", why);
    why = add_pipe(&actions, STDOUT_FILENO, &r->output, &writing[0]);
    if (!why && c->quote)
        why = add_pipe(&actions, STDERR_FILENO, &r->errors, &writing[1]);
    if (!why)
        why = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (!why)
        why = spawn(r, c->arguments, &actions);
    posix_spawn_file_actions_destroy(&actions);
    close_end(&writing[0]);
    close_end(&writing[1]);
    if (!why)
        return ICMA_OK;
    close_end(&r->output);
    close_end(&r->errors);
    return failed_to(error, c->arguments[0], "run", why);
}

/* Keeps the last CLI_COMMAND_TAIL bytes. */
static void hear(cli_tail *t, const char *data, size_t size) {
    size_t keep = size > CLI_COMMAND_TAIL             ? 0
                  : t->size + size > CLI_COMMAND_TAIL ? CLI_COMMAND_TAIL - size
                                                      : t->size;
    memmove(t->text, t->text + t->size - keep, keep);
    t->size = keep;
    if (size > CLI_COMMAND_TAIL) {
        data += size - CLI_COMMAND_TAIL;
        size = CLI_COMMAND_TAIL;
    }
    memcpy(t->text + t->size, data, size);
    t->size += size;
}

/* What is there of one pipe; closes it at its end. */
static void take_in(int *end, cli_tail *t, short events) {
    char data[4096];
    if (!events)
        return;
    ssize_t size = read(*end, data, sizeof data);
    if (size > 0)
        hear(t, data, (size_t)size);
    else if (size == 0 || errno != EINTR)
        close_end(end);
}

/* Why to stop waiting for the command, if there is a reason. */
static cli_outcome look_up(const run *r) {
    return cli_signal_received()                    ? CLI_INTERRUPTED
           : r->deadline > 0 && now() > r->deadline ? CLI_TOO_LONG
                                                    : CLI_RAN;
}

/* Listens until the command closes its outputs. */
static cli_outcome listen_to(run *r, cli_command *c) {
    while (r->output >= 0 || r->errors >= 0) {
        struct pollfd ends[2] = {{.fd = r->output, .events = POLLIN}, {.fd = r->errors, .events = POLLIN}};
        int ready = poll(ends, 2, LISTEN_MS); /* negative descriptors are passed over */
        cli_outcome why = look_up(r);
        if (why)
            return why;
        if (ready < 0 && errno != EINTR)
            return CLI_RAN;
        if (ready > 0) {
            take_in(&r->output, &c->output, ends[0].revents);
            take_in(&r->errors, &c->errors, ends[1].revents);
        }
    }
    return CLI_RAN;
}

static void sleep_ms(long ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* Asks a command, and what it has started, to end, and ends it where it does not. */
static void stop_child(const run *r, int *how) {
    kill(-r->child, SIGTERM);
    for (int waited = 0; waited < PATIENCE_MS; waited += LISTEN_MS / 10) {
        if (waitpid(r->child, how, WNOHANG) != 0) {
            kill(-r->child, SIGKILL); /* what of it has not heard */
            return;
        }
        sleep_ms(LISTEN_MS / 10);
    }
    kill(-r->child, SIGKILL);
    waitpid(r->child, how, 0);
}

icma_status cli_command_run(cli_command *c, icma_error *error) {
    run r = {.output = -1, .errors = -1, .deadline = c->seconds > 0 ? now() + c->seconds : 0};
    c->output.size = c->errors.size = 0;
    c->how = 0;
    icma_status status = start(&r, c, error);
    if (status)
        return status;
    c->outcome = listen_to(&r, c);
    close_end(&r.output);
    close_end(&r.errors);
    while (!c->outcome &&
           waitpid(r.child, &c->how, WNOHANG) == 0) { /* it may go on after closing its output */
        c->outcome = look_up(&r);
        sleep_ms(1);
    }
    if (c->outcome)
        stop_child(&r, &c->how);
    return ICMA_OK;
}
