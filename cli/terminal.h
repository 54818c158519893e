/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text for people: hostile names made harmless, sizes and numbers to read, colour where it is wanted.
 */
#ifndef CLI_TERMINAL_H
#define CLI_TERMINAL_H

#include "bytes.h"

#include <stdio.h>

/* Colour is on for a stream that is a terminal, unless `no_color`, NO_COLOR or TERM=dumb says otherwise. */
void cli_terminal_setup(bool no_color);

typedef enum cli_look { CLI_PLAIN, CLI_BOLD, CLI_RED, CLI_YELLOW, CLI_GREEN } cli_look;
/* The escape sequence that starts (CLI_PLAIN: ends) a look on this stream; "" where colour is off. */
const char *cli_style(FILE *stream, cli_look look);

/* Decodes one UTF-8 character: its length, or 0 if the bytes are not valid. The text ends with a NUL. */
size_t cli_utf8_decode(const char *text, uint32_t *character);
/* Characters that change what a terminal shows around them: controls, bidi marks and overrides, line
 * separators, tags. */
bool cli_is_unsafe(uint32_t character);

/* Appends `text` with unsafe and invalid bytes as \xNN. */
void cli_append_safe(icma_buffer *out, const char *text);
void cli_append(icma_buffer *out, const char *format, ...) ICMA_PRINTF(2, 3);
/* Prints `text` escaped. */
void cli_print_safe(FILE *stream, const char *text);
/* Columns that safe text takes on a terminal: East Asian wide characters and pictures two, combining marks none. */
size_t cli_width(const char *text);
/* Bytes of as many of its first characters as have room in `columns`. */
size_t cli_fitting(const char *text, size_t columns);

/* Small texts by value, for use inside a printf call: cli_size(n).text. */
typedef struct cli_small {
    char text[48];
} cli_small;
cli_small cli_size(uint64_t bytes);    /* "1.09 MiB" */
cli_small cli_whole_text(uint64_t n);  /* "1,143,240" */
cli_small cli_many(double n);          /* "9.2 million" */
cli_small cli_deviation(double error); /* "0.0312", "3.1e-06", "0", "inf", "-" for NAN */
cli_small cli_cosine(double cosine);   /* six places, never rounded up to 1 */
cli_small cli_percent(double part, double whole);
cli_small cli_seconds(double seconds); /* "6.2 s", "3 min 20 s" */
const char *cli_plural(uint64_t n);    /* "" for 1, else "s" */

#endif
