/* SPDX-License-Identifier: Apache-2.0 */
#include "progress.h"

#include "message.h"
#include "signals.h"
#include "terminal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static struct {
    bool enabled;
    bool drawn;
    char phase[24];
    double started, last_drawn; /* seconds */
    double first_done;          /* what was done when the phase was first told */
} bar;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int terminal_columns(void) {
#ifdef TIOCGWINSZ
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        return size.ws_col;
#endif
    return 80;
}

void cli_progress_setup(const cli_common *common) {
    const char *term = getenv("TERM");
    bar.enabled = !common->no_progress && !common->quiet && isatty(STDERR_FILENO) &&
                  !(term && strcmp(term, "dumb") == 0);
}

void cli_progress_clear(void) {
    if (bar.drawn)
        fputs("\r\033[K", stderr);
    bar.drawn = false;
}

/* "12.1 MiB of 36.7 MiB, 9.1 MiB/s" */
static void describe_amount(icma_buffer *line, double done, double total, double rate, const char *unit) {
    if (strcmp(unit, "bytes") == 0)
        cli_append(line, "  %s of %s, %s/s", cli_size((uint64_t)done).text, cli_size((uint64_t)total).text,
                   cli_size((uint64_t)rate).text);
    else
        cli_append(line, rate < 10 ? "  %.0f/%.0f %s, %.1f/s" : "  %.0f/%.0f %s, %.0f/s", done, total, unit,
                   rate);
}

static void draw(double done, double total, const char *unit, const char *note) {
    enum { CELLS = 16 };
    double elapsed = bar.last_drawn - bar.started, share = total > 0 ? done / total : 0;
    double rate = elapsed > 0.2 ? (done - bar.first_done) / elapsed : 0;
    share = share < 0 ? 0 : share > 1 ? 1 : share;
    icma_buffer line = {0};
    cli_append(&line, "%-7s [", bar.phase);
    for (int i = 0; i < CELLS; i++)
        icma_write_u8(&line, i < (int)(share * CELLS) ? '#' : '.');
    cli_append(&line, "] %3.0f %%", 100 * share);
    if (unit)
        describe_amount(&line, done, total, rate, unit);
    if (rate > 0 && done < total)
        cli_append(&line, ", %s left", cli_seconds((total - done) / rate).text);
    if (note && note[0]) {
        cli_append(&line, "  ");
        cli_append_safe(&line, note);
    }
    size_t columns = (size_t)terminal_columns() - 1, length = line.size < columns ? line.size : columns;
    while (length < line.size && length > 0 && (line.data[length] & 0xC0) == 0x80)
        length--; /* not in the middle of a character */
    if (!line.failed)
        fprintf(stderr, "\r\033[K%.*s", (int)length, (const char *)line.data);
    fflush(stderr);
    icma_buffer_free(&line);
    bar.drawn = true;
}

void cli_progress_show(const char *phase, double done, double total, const char *unit, const char *note) {
    if (!bar.enabled)
        return;
    double time = now();
    if (strncmp(bar.phase, phase, sizeof bar.phase - 1) != 0) {
        snprintf(bar.phase, sizeof bar.phase, "%s", phase);
        bar.started = time;
        bar.last_drawn = 0;
        bar.first_done = done;
    }
    /* Not for work that is over in a blink, and ten times a second at most. */
    if (time - bar.started < 0.3 || time - bar.last_drawn < 0.1)
        return;
    bar.last_drawn = time;
    draw(done, total, unit, note);
}

static void library_update(void *context, const char *phase, double done, double total, const char *note) {
    static const char *const units[][2] = {{"gram", "tensors"}, {"basis", "tensors"}, {"train", "epochs"}, {"denoise", "epochs"}};
    const char *unit = NULL;
    (void)context;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++)
        if (strcmp(phase, units[i][0]) == 0)
            unit = units[i][1];
    cli_progress_show(phase, done, total, unit, note);
}

static bool library_cancelled(void *context) {
    (void)context;
    return cli_signal_received() != 0;
}

static void library_say(void *context, const char *line) {
    (void)context;
    cli_note("%s", line);
}

icma_progress cli_progress_hooks(void) {
    return (icma_progress){.update = library_update, .cancelled = library_cancelled, .say = library_say};
}
