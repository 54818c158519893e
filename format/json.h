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

/* True, and *value set, if `item` is a number that is a whole number in 0 .. 2^53 - 1. */
bool icma_json_whole(const cJSON *item, uint64_t *value);

#endif
