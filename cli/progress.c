/* SPDX-License-Identifier: Apache-2.0 */
#include "progress.h"

#include "estimate.h"
#include "json_out.h"
#include "message.h"
#include "signals.h"
#include "terminal.h"

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

typedef enum manner { SILENT, BAR, LINES, OBJECTS } manner;

static const double patience = 0.3;  /* seconds: work that is over in a blink has no bar */
static const double redraw = 0.1;    /* seconds between two bars when there is something new */
static const double heartbeat = 0.5; /* and when only time has gone on */
static const double between_lines = 5, between_objects = 1;

/* What was told last, and what is drawn of it. The thread that redraws looks on: every use holds the lock. */
static struct {
    manner manner;
    bool verbose;
    pthread_mutex_t lock;
    bool ticking; /* the thread runs */
    bool told;    /* there is a phase, since the last clear */
    char phase[24], unit[24], note[160];
    double started, shown; /* when the phase began, and when it was last shown */
    double done, total;
    cli_estimate estimate;
    size_t columns, width; /* the terminal's when drawn, and of what is drawn: 0 if nothing is */
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static size_t terminal_columns(void) {
#ifdef TIOCGWINSZ
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        return size.ws_col;
#endif
    return 80;
}

void cli_progress_setup(const cli_common *common) {
    const char *term = getenv("TERM");
    bool terminal = isatty(STDERR_FILENO) && !(term && strcmp(term, "dumb") == 0);
    state.verbose = common->verbose && !common->quiet;
    state.manner = SILENT;
    if (common->no_progress || common->quiet)
        return;
    if (common->json)
        state.manner = common->progress ? OBJECTS : SILENT;
    else if (terminal)
        state.manner = BAR;
    else if (common->progress)
        state.manner = LINES;
}

/* --- the words
 * ----------------------------------------------------------------------------------------------- */

/* ", 9.1 MiB/s", ", 41/s", ", 2.5 s each" */
static void append_rate(icma_buffer *line, double rate) {
    if (!(rate > 0))
        return;
    if (strcmp(state.unit, "bytes") == 0)
        cli_append(line, ", %s/s", cli_size((uint64_t)rate).text);
    else if (state.unit[0] && rate < 1)
        cli_append(line, ", %s each", cli_seconds(1 / rate).text);
    else if (state.unit[0])
        cli_append(line, rate < 10 ? ", %.1f/s" : ", %.0f/s", rate);
}

/* "12.1 MiB of 36.7 MiB", "156/300 epochs" */
static void append_amount(icma_buffer *line) {
    bool known = state.total > 0;
    if (strcmp(state.unit, "bytes") == 0 && known)
        cli_append(line, "%s of %s", cli_size((uint64_t)state.done).text,
                   cli_size((uint64_t)state.total).text);
    else if (strcmp(state.unit, "bytes") == 0)
        cli_append(line, "%s", cli_size((uint64_t)state.done).text);
    else if (known) /* of few, which take long, a part shows too */
        cli_append(line, "%.*f/%.0f %s", state.done > floor(state.done) && state.total < 100, state.done,
                   state.total, state.unit);
    else
        cli_append(line, "%.0f %s", floor(state.done), state.unit);
}

/* ", 3 s left"; where that cannot be known, for how long it has been going on. */
static void append_time(icma_buffer *line, double time) {
    double left = cli_estimate_left(&state.estimate, time, state.total), elapsed = time - state.started;
    if (!isnan(left) && left < 9.5)
        cli_append(line, ", %.0f s left", ceil(left));
    else if (!isnan(left))
        cli_append(line, ", %s left", cli_seconds(left).text);
    else if (elapsed >= 1)
        cli_append(line, ", %s so far", cli_seconds(elapsed).text);
}

/* What a line has, from all to little. */
typedef enum fullness { EVERYTHING, NO_RATE, NO_BAR, NO_AMOUNT, FULLNESSES } fullness;

static void append_bar(icma_buffer *line, double share) {
    enum { CELLS = 16 };
    icma_write_u8(line, '[');
    for (int i = 0; i < CELLS; i++)
        icma_write_u8(line, i < (int)(share * CELLS) ? '#' : '.');
    cli_append(line, "] ");
}

static void describe(icma_buffer *line, fullness full, double time) {
    double share = state.total > 0 ? fmax(0, fmin(1, state.done / state.total)) : 0;
    size_t start = line->size;
    if (state.total > 0 && full < NO_BAR)
        append_bar(line, share);
    if (state.total > 0)
        cli_append(line, "%3.0f %%", floor(100 * share)); /* 100 is for what is done */
    if (state.unit[0] && full < NO_AMOUNT && (state.total > 0 || state.done > 0)) {
        cli_append(line, line->size > start ? "  " : "");
        append_amount(line);
    }
    if (full < NO_RATE)
        append_rate(line, cli_estimate_rate(&state.estimate, time));
    append_time(line, time);
    if (!line->failed && line->size > start + 1 &&
        memcmp(line->data + start, ", ", 2) == 0) { /* nothing came before the time */
        memmove(line->data + start, line->data + start + 2, line->size - start - 2);
        line->size -= 2;
    }
}

/* As much of the note as there is room for, if that is worth it. */
static void append_note(icma_buffer *line, size_t room) {
    enum { WORTH = 10 };
    icma_buffer note = {0};
    cli_append_safe(&note, state.note);
    icma_write_u8(&note, 0);
    if (!note.failed && note.size > 1 && room >= WORTH) {
        size_t fits = cli_fitting((const char *)note.data, room - 2);
        cli_append(line, "  %.*s", (int)fits, (const char *)note.data);
    }
    icma_buffer_free(&note);
}

/* --- the bar
 * ------------------------------------------------------------------------------------------------- */

/* A line that was drawn on a wider terminal lies in several rows now. */
static void append_erasure(icma_buffer *out, size_t columns) {
    size_t rows = state.width ? (state.width - 1) / columns : 0;
    if (rows)
        cli_append(out, "\r\033[%zuA\033[J", rows);
    else
        cli_append(out, "\r\033[K");
}

/* The fullest line that fits, one column short of the edge, where some terminals break it. */
static void draw_bar(double time) {
    size_t columns = terminal_columns(), most = columns - 1, width = 0;
    icma_buffer out = {0}, line = {0};
    for (fullness full = EVERYTHING; full < FULLNESSES; full++) {
        line.size = 0;
        cli_append(&line, "%-7s ", state.phase);
        describe(&line, full, time);
        width = line.size; /* ASCII so far */
        if (width <= most)
            break;
    }
    if (width < most)
        append_note(&line, most - width);
    icma_write_u8(&line, 0);
    append_erasure(&out, columns);
    if (!line.failed) {
        size_t fits = cli_fitting((const char *)line.data, most);
        icma_write_bytes(&out, line.data, fits);
        line.data[fits] = 0;
        state.width = cli_width((const char *)line.data);
    }
    if (!out.failed)
        fwrite(out.data, 1, out.size, stderr);
    fflush(stderr);
    state.columns = columns;
    state.shown = time;
    icma_buffer_free(&line);
    icma_buffer_free(&out);
}

/* Time goes on, and windows change their size, while the work tells nothing. */
static void *tick(void *unused) {
    for (;;) {
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
        pthread_mutex_lock(&state.lock);
        double time = now();
        if (state.told && time - state.started >= patience &&
            (time - state.shown >= heartbeat || (state.width && terminal_columns() != state.columns)))
            draw_bar(time);
        pthread_mutex_unlock(&state.lock);
    }
    return unused;
}

/* Signals are for the thread that works. Without the thread the bar only moves when the work does. */
static void start_ticking(void) {
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&thread, NULL, tick, NULL) == 0)
        pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    state.ticking = true;
}

void cli_progress_clear(void) {
    pthread_mutex_lock(&state.lock);
    if (state.width) {
        icma_buffer out = {0};
        append_erasure(&out, terminal_columns());
        fwrite(out.data, 1, out.failed ? 0 : out.size, stderr);
        icma_buffer_free(&out);
    }
    state.width = 0;
    state.told = false;
    pthread_mutex_unlock(&state.lock);
}

/* --- lines and objects
 * ----------------------------------------------------------------------------------------- */

static void print_progress_line(double time) {
    icma_buffer line = {0};
    cli_append(&line, "icma: %s: ", state.phase);
    describe(&line, NO_BAR, time);
    append_rate(&line, cli_estimate_rate(&state.estimate, time));
    if (state.note[0])
        cli_append(&line, "  ");
    cli_append_safe(&line, state.note);
    icma_write_u8(&line, '\n');
    fwrite(line.data, 1, line.failed ? 0 : line.size, stderr);
    icma_buffer_free(&line);
    state.shown = time;
}

static void print_progress_object(double time) {
    cJSON *root = cli_json_object(), *object = cli_json_add_object(root, "progress");
    cli_json_text(object, "phase", state.phase);
    cli_json_real(object, "done", state.done);
    cli_json_real(object, "total", state.total > 0 ? state.total : NAN);
    cli_json_text(object, "unit", state.unit[0] ? state.unit : NULL);
    cli_json_real(object, "rate", cli_estimate_rate(&state.estimate, time));
    cli_json_real(object, "seconds", time - state.started);
    cli_json_real(object, "seconds_left", cli_estimate_left(&state.estimate, time, state.total));
    cli_json_text(object, "note", state.note[0] ? state.note : NULL);
    cli_json_print_line(root, stderr);
    state.shown = time;
}

/* --- what is told
 * ----------------------------------------------------------------------------------------------- */

/* A copy that does not end in the middle of a character. */
static void copy_text(char *to, size_t size, const char *text) {
    size_t length = strnlen(text ? text : "", size - 1);
    while (length > 0 && text[length] && ((unsigned char)text[length] & 0xC0) == 0x80)
        length--;
    memcpy(to, text ? text : "", length);
    to[length] = '\0';
}

static void take(const char *phase, double done, double total, const char *unit, const char *note,
                 double time) {
    if (strncmp(state.phase, phase, sizeof state.phase - 1) != 0) {
        copy_text(state.phase, sizeof state.phase, phase);
        state.started = time;
        state.shown = -INFINITY;
        cli_estimate_start(&state.estimate, time, done);
    } else {
        cli_estimate_update(&state.estimate, time, done);
    }
    state.done = done;
    state.total = total;
    copy_text(state.unit, sizeof state.unit, unit);
    copy_text(state.note, sizeof state.note, note);
    state.told = true;
}

void cli_progress_show(const char *phase, double done, double total, const char *unit, const char *note) {
    if (state.manner == SILENT)
        return;
    pthread_mutex_lock(&state.lock);
    double time = now();
    take(phase, done, total, unit, note, time);
    if (state.manner == BAR && !state.ticking)
        start_ticking();
    if (state.manner == BAR && time - state.started >= patience && time - state.shown >= redraw)
        draw_bar(time);
    else if (state.manner == LINES && time - state.started >= 1 && time - state.shown >= between_lines)
        print_progress_line(time);
    else if (state.manner == OBJECTS && time - state.shown >= between_objects)
        print_progress_object(time);
    pthread_mutex_unlock(&state.lock);
}

/* --- for the library
 * ------------------------------------------------------------------------------------------------ */

static void library_update(void *context, const char *phase, double done, double total, const char *note) {
    (void)context;
    cli_progress_show(phase, done, total, icma_progress_unit(phase), note);
}

static bool library_cancelled(void *context) {
    (void)context;
    return cli_signal_received() != 0;
}

static void library_say(void *context, const char *line) {
    (void)context;
    cli_note("%s", line);
}

static void library_explain(void *context, const char *topic, const char *line) {
    (void)context;
    cli_detail(topic, "%s", line);
}

icma_progress cli_progress_hooks(void) {
    return (icma_progress){.update = library_update,
                           .cancelled = library_cancelled,
                           .say = library_say,
                           .explain = state.verbose ? library_explain : NULL};
}
