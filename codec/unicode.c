/* SPDX-License-Identifier: Apache-2.0 */
#include "unicode.h"

#include "bytes.h"
#include "memory.h"
#include "sort.h"
#include "unicode_tables.h"
#include "utf8.h"

#include <string.h>

/* Hangul syllables are composed by arithmetic (The Unicode Standard, 3.12). */
enum {
    HANGUL_FIRST = 0xAC00,
    HANGUL_L = 0x1100,
    HANGUL_V = 0x1161,
    HANGUL_T = 0x11A7,
    HANGUL_L_COUNT = 19,
    HANGUL_V_COUNT = 21,
    HANGUL_T_COUNT = 28,
    HANGUL_COUNT = HANGUL_L_COUNT * HANGUL_V_COUNT * HANGUL_T_COUNT,
    CAPITAL_I_WITH_DOT = 0x130, /* the only character whose lower case is two */
    DOT_ABOVE = 0x307,
};

/* --- tables
 * -------------------------------------------------------------------------------------------------- */

/* The last row of a table whose first member, a uint32_t, is at most c; NULL: none. */
static const void *find_row(const void *table, size_t count, size_t width, uint32_t c) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        uint32_t first;
        memcpy(&first, (const char *)table + middle * width, sizeof first);
        if (first <= c)
            low = middle + 1;
        else
            high = middle;
    }
    return low ? (const char *)table + (low - 1) * width : NULL;
}

static bool is_within(const icma_unicode_range *ranges, size_t count, uint32_t c) {
    const icma_unicode_range *range = find_row(ranges, count, sizeof *ranges, c);
    return range && c <= range->last;
}

bool icma_unicode_is_letter(uint32_t c) {
    return is_within(icma_unicode_letters, icma_unicode_letters_count, c);
}

bool icma_unicode_is_number(uint32_t c) {
    return is_within(icma_unicode_numbers, icma_unicode_numbers_count, c);
}

bool icma_unicode_is_space(uint32_t c) {
    return is_within(icma_unicode_spaces, icma_unicode_spaces_count, c);
}

static uint32_t class_of(uint32_t c) {
    const icma_unicode_class *range =
        find_row(icma_unicode_classes, icma_unicode_classes_count, sizeof *range, c);
    return range && c <= range->last ? range->value : 0;
}

static uint32_t lower_of(uint32_t c) {
    const icma_unicode_lower *range =
        find_row(icma_unicode_lowers, icma_unicode_lowers_count, sizeof *range, c);
    return range && c <= range->last && (c - range->first) % range->step == 0
               ? (uint32_t)((int64_t)c + range->difference)
               : c;
}

static uint32_t pair_of(uint32_t first, uint32_t second) {
    if (first - HANGUL_L < HANGUL_L_COUNT && second - HANGUL_V < HANGUL_V_COUNT)
        return HANGUL_FIRST + ((first - HANGUL_L) * HANGUL_V_COUNT + second - HANGUL_V) * HANGUL_T_COUNT;
    if (first - HANGUL_FIRST < HANGUL_COUNT && (first - HANGUL_FIRST) % HANGUL_T_COUNT == 0 &&
        second - HANGUL_T - 1 < HANGUL_T_COUNT - 1)
        return first + second - HANGUL_T;
    size_t low = 0, high = icma_unicode_pairs_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const icma_unicode_pair *pair = &icma_unicode_pairs[middle];
        if (pair->first == first && pair->second == second)
            return pair->composed;
        if (pair->first < first || (pair->first == first && pair->second < second))
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

/* --- canonical composition
 * ----------------------------------------------------------------------------------- */

/* A character on its way, with its combining class and where it stood. */
typedef struct mark {
    uint32_t character, class;
    size_t place;
} mark;

static void put_mark(icma_buffer *out, uint32_t c) {
    mark m = {c, class_of(c), out->size / sizeof m};
    icma_write_bytes(out, &m, sizeof m);
}

static void put_apart(icma_buffer *out, uint32_t c) {
    const icma_unicode_parts *parts =
        find_row(icma_unicode_apart, icma_unicode_apart_count, sizeof *parts, c);
    if (c - HANGUL_FIRST < HANGUL_COUNT) {
        uint32_t syllable = c - HANGUL_FIRST, tail = syllable % HANGUL_T_COUNT;
        put_mark(out, HANGUL_L + syllable / (HANGUL_V_COUNT * HANGUL_T_COUNT));
        put_mark(out, HANGUL_V + syllable / HANGUL_T_COUNT % HANGUL_V_COUNT);
        if (tail)
            put_mark(out, HANGUL_T + tail);
    } else if (parts && parts->character == c) {
        for (size_t i = 0; i < parts->count; i++)
            put_mark(out, icma_unicode_part_list[parts->start + i]);
    } else {
        put_mark(out, c);
    }
}

static int compare_marks(const void *a, const void *b, const void *context) {
    const mark *x = a, *y = b;
    (void)context;
    if (x->class != y->class)
        return x->class < y->class ? -1 : 1;
    return (x->place > y->place) - (x->place < y->place);
}

/* Marks of a character in the order of their classes, equal ones as they stood. */
static void order_marks(mark *marks, size_t count) {
    for (size_t i = 0; i < count; i++) {
        size_t first = i;
        while (i < count && marks[i].class)
            i++;
        if (i - first > 1)
            icma_sort(marks + first, i - first, sizeof *marks, compare_marks, NULL);
    }
}

/* In place; returns how many are left. A mark meets its starter where none of its own class or a higher one
 * stands between. */
static size_t compose(const mark *marks, size_t count, uint32_t *out) {
    size_t written = 0, starter = SIZE_MAX;
    uint32_t last = 0; /* class of what stands between starter and this one; 0: nothing does */
    for (size_t i = 0; i < count; i++) {
        uint32_t composed = 0;
        bool between = starter != SIZE_MAX && written > starter + 1;
        if (starter != SIZE_MAX && (!between || (last != 0 && last < marks[i].class)))
            composed = pair_of(out[starter], marks[i].character);
        if (composed) {
            out[starter] = composed;
            continue;
        }
        if (marks[i].class == 0)
            starter = written;
        last = marks[i].class;
        out[written++] = marks[i].character;
    }
    return written;
}

/* --- folding
 * ------------------------------------------------------------------------------------------------- */

static uint32_t take_character(const uint8_t *at, size_t length) {
    if (length == 1)
        return at[0];
    uint32_t c = at[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++)
        c = c << 6 | (at[i] & 0x3Fu);
    return c;
}

static icma_status take_apart(const char *text, size_t size, icma_buffer *out, icma_error *error) {
    const uint8_t *bytes = (const uint8_t *)text;
    for (size_t at = 0; at < size;) {
        size_t length = icma_utf8_length(bytes + at, size - at);
        if (length == 0)
            return icma_fail(error, ICMA_E_FORMAT, NULL, "a text that is not UTF-8 at byte %zu; convert it",
                             at);
        put_apart(out, take_character(bytes + at, length));
        at += length;
    }
    return icma_buffer_status(out, error);
}

static void put_character(icma_buffer *out, uint32_t c) {
    icma_write_bytes(out, &c, sizeof c);
}

static void put_folded(const uint32_t *from, size_t count, icma_buffer *out) {
    bool space = false;
    for (size_t i = 0; i < count; i++) {
        bool is_space = icma_unicode_is_space(from[i]);
        if (is_space && !space)
            put_character(out, ' ');
        space = is_space;
        if (is_space)
            continue;
        put_character(out, from[i] == CAPITAL_I_WITH_DOT ? 'i' : lower_of(from[i]));
        if (from[i] == CAPITAL_I_WITH_DOT)
            put_character(out, DOT_ABOVE);
    }
}

icma_status icma_unicode_fold(const char *text, size_t size, icma_characters *out, icma_error *error) {
    icma_buffer apart = {0}, folded = {0};
    uint32_t *composed = NULL;
    memset(out, 0, sizeof *out);
    icma_status status = take_apart(text, size, &apart, error);
    size_t count = apart.size / sizeof(mark);
    if (!status && count) {
        composed = icma_alloc_array(count, sizeof *composed);
        status = composed ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a text");
    }
    if (!status && count) {
        order_marks((mark *)(void *)apart.data, count);
        put_folded(composed, compose((mark *)(void *)apart.data, count, composed), &folded);
        status = icma_buffer_status(&folded, error);
    }
    icma_free(composed);
    icma_buffer_free(&apart);
    if (status) {
        icma_buffer_free(&folded);
        return status;
    }
    *out = (icma_characters){(uint32_t *)(void *)folded.data, folded.size / sizeof(uint32_t)};
    return ICMA_OK;
}

void icma_characters_free(icma_characters *characters) {
    icma_free(characters->list);
    memset(characters, 0, sizeof *characters);
}
