/* SPDX-License-Identifier: Apache-2.0 */
/* From a text to tokens. */
#include "memory.h"
#include "tokenizer_inside.h"
#include "unicode.h"

#include <stdbool.h>
#include <string.h>

enum { NONE = -1 };

/* A piece of a word: it becomes its left neighbour's when the two are merged. */
typedef struct symbol {
    uint32_t id;
    bool gone;
    ptrdiff_t before, after; /* neighbours; NONE */
} symbol;

/* Two neighbours that may be merged, if they are still what they were. */
typedef struct candidate {
    uint32_t rank, joined;
    size_t left;
} candidate;

typedef struct encoder {
    const icma_tokenizer *tokenizer;
    const uint32_t *text; /* folded characters */
    size_t length;
    symbol *symbols;  /* room for the bytes of all characters */
    candidate *queue; /* a heap, with room for three a symbol */
    size_t queued;
    uint32_t *ids;
    size_t count, most;
} encoder;

/* --- merging a word's pieces
 * --------------------------------------------------------------------------------- */

static bool comes_before(const candidate *a, const candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->left < b->left;
}

static void push(encoder *e, candidate c) {
    size_t at = e->queued++;
    for (; at > 0 && comes_before(&c, &e->queue[(at - 1) / 2]); at = (at - 1) / 2)
        e->queue[at] = e->queue[(at - 1) / 2];
    e->queue[at] = c;
}

static candidate pop(encoder *e) {
    candidate first = e->queue[0], last = e->queue[--e->queued];
    size_t at = 0;
    for (size_t child = 1; child < e->queued; child = 2 * at + 1) {
        if (child + 1 < e->queued && comes_before(&e->queue[child + 1], &e->queue[child]))
            child++;
        if (!comes_before(&e->queue[child], &last))
            break;
        e->queue[at] = e->queue[child];
        at = child;
    }
    e->queue[at] = last;
    return first;
}

static void consider(encoder *e, ptrdiff_t left, ptrdiff_t right) {
    if (left == NONE || right == NONE)
        return;
    const icma_merge *merge = icma_tokenizer_merge(e->tokenizer, e->symbols[left].id, e->symbols[right].id);
    if (merge)
        push(e, (candidate){merge->rank, merge->joined, (size_t)left});
}

static void merge_symbols(encoder *e, size_t count) {
    symbol *s = e->symbols;
    e->queued = 0;
    for (size_t i = 0; i + 1 < count; i++)
        consider(e, (ptrdiff_t)i, (ptrdiff_t)i + 1);
    while (e->queued) {
        candidate c = pop(e);
        symbol *left = &s[c.left];
        if (left->gone || left->after == NONE)
            continue;
        symbol *right = &s[left->after];
        const icma_merge *merge = icma_tokenizer_merge(e->tokenizer, left->id, right->id);
        if (!merge || merge->joined != c.joined)
            continue;
        left->id = c.joined;
        left->after = right->after;
        right->gone = true;
        if (left->after != NONE)
            s[left->after].before = (ptrdiff_t)c.left;
        consider(e, left->before, (ptrdiff_t)c.left);
        consider(e, (ptrdiff_t)c.left, left->after);
    }
}

/* --- words
 * --------------------------------------------------------------------------------------------------- */

static size_t utf8_bytes(uint32_t c, uint8_t out[4]) {
    if (c < 0x80) {
        out[0] = (uint8_t)c;
        return 1;
    }
    size_t length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i > 0; i--, c >>= 6)
        out[i] = (uint8_t)(0x80 | (c & 0x3F));
    out[0] = (uint8_t)(0xF00u >> length | c);
    return length;
}

static void put_id(encoder *e, uint32_t id) {
    if (e->count < e->most)
        e->ids[e->count++] = id;
}

static void put_word(encoder *e, size_t first, size_t end) {
    size_t count = 0;
    for (size_t i = first; i < end; i++) {
        uint8_t bytes[4];
        size_t length = utf8_bytes(e->text[i], bytes);
        for (size_t b = 0; b < length; b++, count++) {
            bool is_last = i + 1 == end && b + 1 == length;
            e->symbols[count] =
                (symbol){.id = is_last ? e->tokenizer->last[bytes[b]] : e->tokenizer->inner[bytes[b]],
                         .before = (ptrdiff_t)count - 1,
                         .after = is_last ? NONE : (ptrdiff_t)count + 1};
        }
    }
    merge_symbols(e, count);
    for (size_t i = 0; i < count; i++)
        if (!e->symbols[i].gone)
            put_id(e, e->symbols[i].id);
}

/* How many characters of `text` stand at `at`. */
static size_t match(const encoder *e, size_t at, size_t end, const char *text) {
    size_t length = strlen(text);
    if (end - at < length)
        return 0;
    for (size_t i = 0; i < length; i++)
        if (e->text[at + i] != (uint8_t)text[i])
            return 0;
    return length;
}

static size_t match_ending(const encoder *e, size_t at, size_t end) {
    static const char *const endings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    size_t length = 0;
    for (size_t i = 0; e->text[at] == '\'' && length == 0 && i < sizeof endings / sizeof endings[0]; i++)
        length = match(e, at, end, endings[i]);
    return length;
}

typedef enum sort { SPACE, LETTER, NUMBER, OTHER } sort;

static sort sort_of(uint32_t c) {
    if (icma_unicode_is_letter(c))
        return LETTER;
    return icma_unicode_is_number(c) ? NUMBER : icma_unicode_is_space(c) ? SPACE : OTHER;
}

static void put_words(encoder *e, size_t at, size_t end) {
    while (at < end && e->count < e->most) {
        size_t first = at, ending = match_ending(e, at, end);
        sort s = sort_of(e->text[at]);
        at += ending ? ending : 1;
        while (!ending && (s == LETTER || s == OTHER) && at < end && sort_of(e->text[at]) == s)
            at++;
        if (s != SPACE)
            put_word(e, first, at);
    }
}

/* --- special tokens
 * ------------------------------------------------------------------------------------------ */

/* The longest special token at `at` of folded text; NULL: none. */
static const icma_special *folded_special(const encoder *e, size_t at) {
    const icma_special *best = NULL;
    for (size_t i = 0; i < e->tokenizer->special_count; i++) {
        const icma_special *s = &e->tokenizer->specials[i];
        size_t n = s->characters.count;
        if (s->folded && n && n <= e->length - at && (!best || n > best->characters.count) &&
            memcmp(s->characters.list, e->text + at, n * sizeof *e->text) == 0)
            best = s;
    }
    return best;
}

/* The same of text as it came. */
static const icma_special *raw_special(const icma_tokenizer *t, const char *at) {
    const icma_special *best = NULL;
    for (size_t i = 0; i < t->special_count; i++) {
        const icma_special *s = &t->specials[i];
        size_t n = strlen(s->text);
        if (!s->folded && (!best || n > strlen(best->text)) && strncmp(s->text, at, n) == 0)
            best = s;
    }
    return best;
}

/* Special tokens are found before words are. */
static void put_text(encoder *e) {
    size_t from = 0;
    for (size_t at = 0; at < e->length && e->count < e->most;) {
        const icma_special *special = folded_special(e, at);
        if (!special) {
            at++;
            continue;
        }
        put_words(e, from, at);
        put_id(e, special->id);
        at += special->characters.count;
        from = at;
    }
    put_words(e, from, e->length);
}

/* Words are merged in memory for the longest that there can be: the whole text. */
static icma_status put_folded(encoder *e, icma_error *error) {
    size_t bytes = 0;
    for (size_t i = 0; i < e->length; i++)
        bytes += utf8_bytes(e->text[i], (uint8_t[4]){0});
    if (bytes == 0)
        return ICMA_OK;
    e->symbols = icma_alloc_array(bytes, sizeof *e->symbols);
    e->queue = icma_alloc_array(bytes, 3 * sizeof *e->queue);
    icma_status status = e->symbols && e->queue
                             ? ICMA_OK
                             : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a text's tokens");
    if (!status)
        put_text(e);
    icma_free(e->symbols);
    icma_free(e->queue);
    return status;
}

static icma_status put_raw(encoder *e, const char *text, size_t size, icma_error *error) {
    icma_characters folded;
    icma_status status = icma_unicode_fold(text, size, &folded, error);
    if (status)
        return status;
    e->text = folded.list;
    e->length = folded.count;
    status = put_folded(e, error);
    icma_characters_free(&folded);
    return status;
}

/* Text between special tokens that are looked for as they are. All of it is read, so that what is no text is
 * refused wherever it stands. */
static icma_status encode(encoder *e, const char *text, icma_error *error) {
    const char *from = text, *at = text;
    icma_status status = ICMA_OK;
    while (!status && *at) {
        const icma_special *special = raw_special(e->tokenizer, at);
        if (!special) {
            at++;
            continue;
        }
        status = put_raw(e, from, (size_t)(at - from), error);
        put_id(e, special->id);
        at += strlen(special->text);
        from = at;
    }
    return status ? status : put_raw(e, from, (size_t)(at - from), error);
}

icma_status icma_tokenizer_encode(const icma_tokenizer *t, const char *text, size_t most, uint32_t *ids,
                                  size_t *count, icma_error *error) {
    size_t size = strlen(text);
    *count = 0;
    if (size > ICMA_MOST_TEXT)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "a text of %zu bytes; %d is the most", size,
                         ICMA_MOST_TEXT);
    encoder e = {.tokenizer = t, .ids = ids, .count = 1, .most = most - 1};
    ids[0] = t->start;
    icma_status status = encode(&e, text, error);
    if (status)
        return status;
    ids[e.count] = t->end;
    *count = e.count + 1;
    return ICMA_OK;
}

uint32_t icma_tokenizer_end(const icma_tokenizer *t) {
    return t->end;
}

size_t icma_tokenizer_size(const icma_tokenizer *t) {
    return t->size;
}
