/* SPDX-License-Identifier: Apache-2.0 */
#include "terminal.h"

#include "utf8.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool colour_out, colour_err;

void cli_terminal_setup(bool no_color) {
    const char *no = getenv("NO_COLOR"), *term = getenv("TERM");
    bool wanted = !no_color && !(no && no[0]) && !(term && strcmp(term, "dumb") == 0);
    colour_out = wanted && isatty(STDOUT_FILENO);
    colour_err = wanted && isatty(STDERR_FILENO);
}

const char *cli_style(FILE *stream, cli_look look) {
    static const char *const codes[] = {"\033[0m", "\033[1m", "\033[1;31m", "\033[1;33m", "\033[1;32m"};
    bool colour = (stream == stdout && colour_out) || (stream == stderr && colour_err);
    return colour ? codes[look] : "";
}

size_t cli_utf8_decode(const char *text, uint32_t *character) {
    const uint8_t *byte = (const uint8_t *)text;
    size_t length = text[0] ? icma_utf8_length(byte, strnlen(text, 4)) : 1;
    if (length == 0)
        return 0;
    *character = length == 1 ? byte[0] : byte[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++)
        *character = *character << 6 | (byte[i] & 0x3Fu);
    return length;
}

bool cli_is_unsafe(uint32_t character) {
    static const uint32_t ranges[][2] = {
        {0, 0x1F},        {0x7F, 0x9F},     {0xAD, 0xAD},     {0x61C, 0x61C},   {0x200B, 0x200F},
        {0x2028, 0x202E}, {0x2060, 0x206F}, {0xFEFF, 0xFEFF}, {0xFFF9, 0xFFFB}, {0xE0000, 0xE007F}};
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
        if (character >= ranges[i][0] && character <= ranges[i][1])
            return true;
    return false;
}

void cli_append_safe(icma_buffer *out, const char *text) {
    while (*text) {
        uint32_t character = 0;
        size_t length = cli_utf8_decode(text, &character);
        if (length && !cli_is_unsafe(character)) {
            icma_write_bytes(out, text, length);
        } else {
            length = length ? length : 1;
            for (size_t i = 0; i < length; i++)
                cli_append(out, "\\x%02X", (unsigned)(unsigned char)text[i]);
        }
        text += length;
    }
}

void cli_append(icma_buffer *out, const char *format, ...) {
    char text[1024];
    va_list list;
    va_start(list, format);
    int length = vsnprintf(text, sizeof text, format, list);
    va_end(list);
    if (length > 0)
        icma_write_bytes(out, text, (size_t)length < sizeof text ? (size_t)length : sizeof text - 1);
}

void cli_print_safe(FILE *stream, const char *text) {
    icma_buffer safe = {0};
    cli_append_safe(&safe, text);
    fwrite(safe.data, 1, safe.failed ? 0 : safe.size, stream);
    icma_buffer_free(&safe);
}

/* After Unicode's EastAsianWidth (W and F) and the marks of the Latin, Arabic and Hebrew scripts, in blocks. */
static size_t columns_of(uint32_t character) {
    static const struct {
        uint32_t first, last;
        size_t columns;
    } ranges[] = {{0x300, 0x36F, 0},      {0x591, 0x5BD, 0},      {0x64B, 0x65F, 0},      {0x1100, 0x115F, 2},   {0x2E80, 0x303E, 2},
                  {0x3041, 0xA4CF, 2},    {0xAC00, 0xD7A3, 2},    {0xF900, 0xFAFF, 2},    {0xFE00, 0xFE0F, 0},   {0xFE30, 0xFE6F, 2},
                  {0xFF01, 0xFF60, 2},    {0xFFE0, 0xFFE6, 2},    {0x1F300, 0x1F64F, 2},  {0x1F680, 0x1F6FF, 2}, {0x1F900, 0x1FAFF, 2},
                  {0x20000, 0x3FFFD, 2}};
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
        if (character >= ranges[i].first && character <= ranges[i].last)
            return ranges[i].columns;
    return 1;
}

size_t cli_fitting(const char *text, size_t columns) {
    size_t bytes = 0;
    while (text[bytes]) {
        uint32_t character = 0;
        size_t length = cli_utf8_decode(text + bytes, &character), wide = length ? columns_of(character) : 1;
        if (wide > columns)
            break;
        columns -= wide;
        bytes += length ? length : 1;
    }
    return bytes;
}

size_t cli_width(const char *text) {
    size_t width = 0;
    for (size_t length; *text; text += length) {
        uint32_t character = 0;
        size_t valid = cli_utf8_decode(text, &character);
        width += valid ? columns_of(character) : 1;
        length = valid ? valid : 1;
    }
    return width;
}

cli_small cli_size(uint64_t bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    cli_small out;
    double value = (double)bytes;
    size_t unit = 0;
    for (; value >= 1023.95 && unit < 6; unit++)
        value /= 1024;
    int places = unit == 0 ? 0 : value < 9.995 ? 2 : 1;
    snprintf(out.text, sizeof out.text, "%.*f %s", places, value, units[unit]);
    return out;
}

cli_small cli_whole_text(uint64_t n) {
    char digits[24];
    cli_small out;
    size_t length = (size_t)snprintf(digits, sizeof digits, "%" PRIu64, n), at = 0;
    for (size_t i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0)
            out.text[at++] = ',';
        out.text[at++] = digits[i];
    }
    out.text[at] = '\0';
    return out;
}

cli_small cli_many(double n) {
    static const char *const units[] = {"", " million", " billion", " trillion"};
    if (n < 1e6)
        return cli_whole_text((uint64_t)n);
    cli_small out;
    size_t unit = 1;
    for (n /= 1e6; n >= 999.95 && unit < 3; unit++)
        n /= 1e3;
    snprintf(out.text, sizeof out.text, "%.1f%s", n, units[unit]);
    return out;
}

cli_small cli_deviation(double error) {
    cli_small out;
    if (isnan(error))
        snprintf(out.text, sizeof out.text, "-");
    else if (error == 0)
        snprintf(out.text, sizeof out.text, "0");
    else if (fabs(error) >= 1e-4 && fabs(error) < 1e4)
        snprintf(out.text, sizeof out.text, "%.4f", error);
    else
        snprintf(out.text, sizeof out.text, "%.1e", error); /* "inf" as well */
    return out;
}

cli_small cli_cosine(double cosine) {
    cli_small out;
    if (isnan(cosine))
        snprintf(out.text, sizeof out.text, "-");
    else
        snprintf(out.text, sizeof out.text, "%.6f", cosine > 1 - 1e-9 ? 1.0 : floor(cosine * 1e6) / 1e6);
    return out;
}

cli_small cli_percent(double part, double whole) {
    cli_small out;
    double share = whole > 0 ? 100 * part / whole : 0;
    snprintf(out.text, sizeof out.text, share < 9.995 ? "%.2f %%" : "%.1f %%", share);
    return out;
}

cli_small cli_seconds(double seconds) {
    cli_small out;
    if (seconds < 9.95)
        snprintf(out.text, sizeof out.text, "%.1f s", seconds);
    else if (seconds < 99.5)
        snprintf(out.text, sizeof out.text, "%.0f s", seconds);
    else if (seconds < 3570)
        snprintf(out.text, sizeof out.text, "%.0f min %02.0f s", floor(seconds / 60), fmod(seconds, 60));
    else
        snprintf(out.text, sizeof out.text, "%.0f h %02.0f min", floor(seconds / 3600),
                 floor(fmod(seconds, 3600) / 60));
    return out;
}

const char *cli_plural(uint64_t n) {
    return n == 1 ? "" : "s";
}
