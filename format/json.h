/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON from strangers: cJSON behind a strict check.
 *
 * The check runs first, without recursion or allocation for values, and refuses what parsers disagree about:
 * duplicate keys (compared after unescaping), nesting beyond `max_depth`, invalid UTF-8, lone surrogates, NUL
 * and raw control characters, numbers outside RFC 8259, of more than 63 characters or of a magnitude of 1e308
 * and more, more than ICMA_JSON_MAX_VALUES values, trailing bytes other than white space. So cJSON only ever
 * sees text that every parser reads alike.
 */
#ifndef ICMA_JSON_H
#define ICMA_JSON_H

#include "bytes.h"
#include "status.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    ICMA_JSON_MAX_DEPTH = 512,        /* whatever the rules say: cJSON recurses to the depth of the text */
    ICMA_JSON_MAX_VALUES = 1 << 21,   /* cJSON needs some 80 bytes for each */
    ICMA_JSON_MAX_NUMBER_LENGTH = 63, /* cJSON cuts longer literals in two */
};

typedef struct icma_json_rules {
    unsigned max_depth;  /* containers inside each other; 1 = one flat object or array */
    bool plain_integers; /* numbers must be 0 or [1-9][0-9]* and at most 2^53 - 1: no sign, fraction or
                            exponent */
} icma_json_rules;

/* The strict check alone. ICMA_E_CORRUPT with the byte offset in the message; ICMA_E_LIMIT for depth
 * and number of values; ICMA_E_MEMORY. */
icma_status icma_json_check(const char *text, size_t size, icma_json_rules rules, icma_error *error);

/* Check, then parse. *out is owned by the caller: cJSON_Delete. Nulled on failure. cJSON allocates through
 * icma_alloc. */
icma_status icma_json_parse(const char *text, size_t size, icma_json_rules rules, cJSON **out,
                            icma_error *error);

/* --- reading without a tree --------------------------------------------------------------------------------- */

/* A place in text that icma_json_check has passed; start with {text, size, 0}. What large texts are read with: a tree of cJSON takes some
 * hundred bytes a value. Each call reads one thing; none allocates but icma_json_take_string, into its buffer. */
typedef struct icma_json_cursor {
    const char *text;
    size_t size, at;
} icma_json_cursor;

/* The first byte of the value at the cursor: one of { [ " t f n - 0 ... 9. */
char icma_json_peek(icma_json_cursor *cursor);
/* Goes into an object or array, if there is one. Then icma_json_next goes to the next value or key, as long as there is one; when not, the
 * cursor has left it. */
bool icma_json_enter(icma_json_cursor *cursor, char bracket);
bool icma_json_next(icma_json_cursor *cursor);
/* A string, unescaped and without NUL, instead of what is in `out`; of a key, its colon too. False if it is something else (nothing is read), or for want of
 * memory (out->failed). */
bool icma_json_take_string(icma_json_cursor *cursor, icma_buffer *out);
bool icma_json_take_key(icma_json_cursor *cursor, icma_buffer *out);
/* A whole number of at most 2^53 - 1 in a text that has plain integers only; false, with nothing read, for something else. */
bool icma_json_take_whole(icma_json_cursor *cursor, uint64_t *value);
/* Any value. */
void icma_json_skip(icma_json_cursor *cursor);

/* True, and *value set, if `item` is a number that is a whole number in 0 .. 2^53 - 1. */
bool icma_json_whole(const cJSON *item, uint64_t *value);

#endif
