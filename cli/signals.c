/* SPDX-License-Identifier: Apache-2.0 */
#include "signals.h"

#include "file.h"

#include <signal.h>
#include <stddef.h>
#include <unistd.h>

static volatile sig_atomic_t received, broken_pipe;

static void stop(int number) {
    if (received) {
        icma_output_unlink_all();
        _exit(128 + number);
    }
    received = number;
}

static void note_broken_pipe(int number) {
    (void)number;
    broken_pipe = 1; /* write fails with EPIPE and is handled where it failed */
}

void cli_signals_setup(void) {
    static const int stopping[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_flags = SA_RESTART}, old;
    sigemptyset(&action.sa_mask);
    action.sa_handler = stop;
    for (size_t i = 0; i < sizeof stopping / sizeof stopping[0]; i++)
        /* nohup and background jobs of plain shells start us with signals ignored: leave them so */
        if (sigaction(stopping[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            sigaction(stopping[i], &action, NULL);
    action.sa_handler = note_broken_pipe;
    sigaction(SIGPIPE, &action, NULL);
    /* A file over the user's limit (ulimit -f) is a failed write with EFBIG, which cleans up; not a death by SIGXFSZ. */
    action.sa_handler = SIG_IGN;
    sigaction(SIGXFSZ, &action, NULL);
}

int cli_signal_received(void) {
    return received;
}

bool cli_pipe_broken(void) {
    return broken_pipe;
}

icma_status cli_check_signal(icma_error *error) {
    if (!received)
        return ICMA_OK;
    return icma_fail(error, ICMA_E_CANCELLED, NULL, "stopped by a signal");
}
