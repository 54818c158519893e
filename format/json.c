/* SPDX-License-Identifier: Apache-2.0 */
#include "json.h"

#include "bytes.h"
#include "compress.h"
#include "memory.h"
#include "sort.h"
#include "utf8.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

#define MAX_WHOLE ((UINT64_C(1) << 53) - 1)

/* An object key, unescaped, in the arena. */
typedef struct json_key {
    uint64_t hash;
    size_t offset;
    size_t length;
} json_key;

typedef struct json_frame {
    bool is_object;
    size_t first_key;  /* the object's keys are keys[first_key ..] */
    size_t first_byte; /* and their bytes start here in the arena */
} json_frame;

typedef struct json_scan {
    const uint8_t *text;
    size_t size, at;
    icma_json_rules rules;
    uint64_t seed;       /* of the keys' hashes */
    json_frame *frames; /* rules.max_depth of them */
    unsigned depth;
    size_t values;
    icma_buffer keys;  /* json_key */
    icma_buffer arena; /* their unescaped bytes */
    icma_error *error;
    icma_status status;
} json_scan;

static bool refuse(json_scan *scan, const char *problem) {
    scan->status =
        icma_fail(scan->error, ICMA_E_CORRUPT, NULL, "invalid JSON at byte %zu: %s", scan->at, problem);
    return false;
}

static bool refuse_memory(json_scan *scan) {
    scan->status = icma_fail(scan->error, ICMA_E_MEMORY, NULL, "not enough memory to check JSON");
    return false;
}

/* --- duplicate keys ------------------------------------------------------------------------------------ */

static int compare_keys(const void *a, const void *b, const void *context) {
    const json_key *x = a, *y = b;
    const uint8_t *bytes = context;
    if (x->hash != y->hash)
        return x->hash < y->hash ? -1 : 1;
    if (x->length != y->length)
        return x->length < y->length ? -1 : 1;
    return x->length ? memcmp(bytes + x->offset, bytes + y->offset, x->length) : 0;
}

static bool any_twice(json_key *keys, size_t count, const uint8_t *bytes) {
    icma_sort(keys, count, sizeof *keys, compare_keys, bytes);
    for (size_t i = 1; i < count; i++)
        if (compare_keys(&keys[i - 1], &keys[i], bytes) == 0)
            return true;
    return false;
}

enum { FEW_KEYS = 64, KEYS_IN_BUCKET = 4 };

/* Of many keys, bucket by bucket of their hashes: sorting them all takes several times as long. Hashes are seeded; who finds keys for one
 * bucket all the same gains no more than that. */
static bool many_are_distinct(json_scan *scan, json_key *keys, size_t count, bool *twice) {
    size_t buckets = count / KEYS_IN_BUCKET;
    uint32_t *ends = icma_alloc_zeroed(buckets + 1, sizeof *ends); /* a text has fewer than 2^32 keys: ICMA_JSON_MAX_VALUES */
    json_key *sorted = icma_alloc_array(count, sizeof *sorted);
    if (!ends || !sorted) {
        icma_free(ends);
        icma_free(sorted);
        return refuse_memory(scan);
    }
    for (size_t i = 0; i < count; i++)
        ends[keys[i].hash % buckets + 1]++;
    for (size_t b = 1; b <= buckets; b++)
        ends[b] += ends[b - 1];
    for (size_t i = 0; i < count; i++)
        sorted[ends[keys[i].hash % buckets]++] = keys[i];
    *twice = false;
    for (size_t b = 0, begin = 0; !*twice && b < buckets; begin = ends[b++])
        *twice = ends[b] - begin > 1 && any_twice(sorted + begin, ends[b] - begin, scan->arena.data);
    icma_free(ends);
    icma_free(sorted);
    return true;
}

static bool end_object(json_scan *scan, const json_frame *frame) {
    /* The buffer comes from the allocator, so it is aligned for json_key. */
    json_key *keys = scan->keys.data ? (json_key *)(void *)scan->keys.data + frame->first_key : NULL;
    size_t count = scan->keys.size / sizeof *keys - frame->first_key;
    bool twice = false;
    if (count > FEW_KEYS && !many_are_distinct(scan, keys, count, &twice))
        return false;
    if (count > 1 && count <= FEW_KEYS)
        twice = any_twice(keys, count, scan->arena.data);
    if (twice)
        return refuse(scan, "an object that ends here has the same key twice");
    scan->keys.size = frame->first_key * sizeof *keys;
    scan->arena.size = frame->first_byte;
    return true;
}

/* --- tokens -------------------------------------------------------------------------------------------- */

static void skip_space(json_scan *scan) {
    for (; scan->at < scan->size; scan->at++) {
        uint8_t c = scan->text[scan->at];
        if (c != ' ' && c != '\t' && c != '\n' && c != '\r')
            return;
    }
}

/* The next byte, or 0 at the end (0 is nowhere valid). */
static uint8_t peek(const json_scan *scan) {
    return scan->at < scan->size ? scan->text[scan->at] : 0;
}

static uint32_t hex_digit(uint8_t c) {
    static const char digits[] = "0123456789abcdef";
    const char *found = c ? strchr(digits, c >= 'A' && c <= 'F' ? c + ('a' - 'A') : c) : NULL;
    return found ? (uint32_t)(found - digits) : 16;
}

static bool read_hex4(json_scan *scan, uint32_t *value) {
    *value = 0;
    for (int i = 0; i < 4; i++, scan->at++) {
        uint32_t digit = hex_digit(peek(scan));
        if (digit == 16)
            return refuse(scan, "a \\u escape without four hexadecimal digits");
        *value = *value << 4 | digit;
    }
    return true;
}

static void put_utf8(icma_buffer *to, uint32_t code) {
    if (code < 0x80) {
        icma_write_u8(to, (uint8_t)code);
        return;
    }
    unsigned tails = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const uint8_t leads[] = {0, 0xc0, 0xe0, 0xf0};
    icma_write_u8(to, (uint8_t)(leads[tails] | code >> 6 * tails));
    while (tails-- > 0)
        icma_write_u8(to, (uint8_t)(0x80 | (code >> 6 * tails & 0x3f)));
}

/* After "\u". */
static bool unicode_escape(json_scan *scan, icma_buffer *to) {
    uint32_t code, low;
    if (!read_hex4(scan, &code))
        return false;
    if (code == 0)
        return refuse(scan, "an escaped NUL");
    if (code >= 0xdc00 && code < 0xe000)
        return refuse(scan, "a lone surrogate");
    if (code >= 0xd800 && code < 0xdc00) {
        if (scan->size - scan->at < 2 || memcmp(scan->text + scan->at, "\\u", 2) != 0)
            return refuse(scan, "a lone surrogate");
        scan->at += 2;
        if (!read_hex4(scan, &low))
            return false;
        if (low < 0xdc00 || low >= 0xe000)
            return refuse(scan, "a lone surrogate");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    if (to)
        put_utf8(to, code);
    return true;
}

/* After the backslash. */
static bool escape(json_scan *scan, icma_buffer *to) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    uint8_t c = peek(scan);
    if (c == 'u') {
        scan->at++;
        return unicode_escape(scan, to);
    }
    const char *found = c ? strchr(names, c) : NULL;
    if (!found)
        return refuse(scan, "an unknown escape");
    scan->at++;
    if (to)
        icma_write_u8(to, (uint8_t)values[found - names]);
    return true;
}

/* One run of a string without escapes; stops before a quote or backslash. */
static bool plain_run(json_scan *scan, icma_buffer *to) {
    size_t start = scan->at;
    for (;;) {
        uint8_t c = peek(scan);
        if (c == '"' || c == '\\')
            break;
        if (c < 0x20)
            return refuse(scan, scan->at < scan->size ? "a control character in a string"
                                                      : "a string without an end");
        size_t length = c < 0x80 ? 1 : icma_utf8_length(scan->text + scan->at, scan->size - scan->at);
        if (length == 0)
            return refuse(scan, "invalid UTF-8");
        scan->at += length;
    }
    if (to)
        icma_write_bytes(to, scan->text + start, scan->at - start);
    return true;
}

/* At the opening quote. Appends the unescaped bytes to `to` unless that is NULL. */
static bool scan_string(json_scan *scan, icma_buffer *to) {
    if (peek(scan) != '"')
        return refuse(scan, "a string is missing");
    scan->at++;
    for (;;) {
        if (!plain_run(scan, to))
            return false;
        uint8_t c = scan->text[scan->at++];
        if (c == '"')
            return true;
        if (!escape(scan, to))
            return false;
    }
}

static size_t skip_digits(json_scan *scan) {
    size_t start = scan->at;
    while (peek(scan) >= '0' && peek(scan) <= '9')
        scan->at++;
    return scan->at - start;
}

static bool whole_in_range(const uint8_t *digits, size_t count) {
    uint64_t value = 0;
    if (count > 16)
        return false;
    for (size_t i = 0; i < count; i++)
        value = value * 10 + (digits[i] - '0');
    return value <= MAX_WHOLE;
}

/* [eE][+-]?[0-9]+, saturated so that it cannot overflow. */
static bool scan_exponent(json_scan *scan, long *exponent) {
    bool negative = false;
    *exponent = 0;
    if (peek(scan) != 'e' && peek(scan) != 'E')
        return true;
    scan->at++;
    if (peek(scan) == '+' || peek(scan) == '-')
        negative = scan->text[scan->at++] == '-';
    size_t digits = skip_digits(scan);
    if (digits == 0)
        return refuse(scan, "a number without an exponent after e");
    for (size_t i = scan->at - digits; i < scan->at && *exponent < 100000; i++)
        *exponent = *exponent * 10 + (scan->text[i] - '0');
    if (negative)
        *exponent = -*exponent;
    return true;
}

static bool scan_number(json_scan *scan) {
    size_t start = scan->at;
    long exponent;
    bool negative = peek(scan) == '-';
    scan->at += negative;
    size_t digits = skip_digits(scan);
    if (digits == 0)
        return refuse(scan, "a value is missing or misspelt");
    if (digits > 1 && scan->text[scan->at - digits] == '0')
        return refuse(scan, "a number with a leading zero");
    bool fraction = peek(scan) == '.';
    scan->at += fraction;
    if (fraction && skip_digits(scan) == 0)
        return refuse(scan, "a number without digits after the point");
    size_t mantissa_end = scan->at;
    if (!scan_exponent(scan, &exponent))
        return false;
    if (scan->at - start > ICMA_JSON_MAX_NUMBER_LENGTH)
        return refuse(scan, "a number of more than 63 characters");
    if (exponent > 308 - (long)digits)
        return refuse(scan, "a number too large for a double");
    if (!scan->rules.plain_integers)
        return true;
    if (negative || fraction || mantissa_end != scan->at)
        return refuse(scan, "a number with a sign, fraction or exponent where a whole number belongs");
    if (!whole_in_range(scan->text + start, digits))
        return refuse(scan, "a whole number over 2^53 - 1");
    return true;
}

static bool scan_word(json_scan *scan, const char *word) {
    size_t length = strlen(word);
    if (scan->size - scan->at < length || memcmp(scan->text + scan->at, word, length) != 0)
        return refuse(scan, "a value is missing or misspelt");
    scan->at += length;
    return true;
}

static bool scan_scalar(json_scan *scan) {
    switch (peek(scan)) {
    case '"':
        return scan_string(scan, NULL);
    case 't':
        return scan_word(scan, "true");
    case 'f':
        return scan_word(scan, "false");
    case 'n':
        return scan_word(scan, "null");
    default:
        return scan_number(scan);
    }
}

/* --- structure ----------------------------------------------------------------------------------------- */

/* "key" : */
static bool scan_key(json_scan *scan) {
    json_key key = {0, scan->arena.size, 0};
    skip_space(scan);
    if (!scan_string(scan, &scan->arena))
        return false;
    if (scan->arena.failed)
        return refuse_memory(scan);
    key.length = scan->arena.size - key.offset;
    key.hash = icma_hash_seeded(key.length ? scan->arena.data + key.offset : NULL, key.length, scan->seed);
    icma_write_bytes(&scan->keys, &key, sizeof key);
    if (scan->keys.failed)
        return refuse_memory(scan);
    skip_space(scan);
    if (peek(scan) != ':')
        return refuse(scan, "a colon is missing");
    scan->at++;
    return true;
}

static bool open_container(json_scan *scan) {
    if (scan->depth == scan->rules.max_depth) {
        scan->status = icma_fail(scan->error, ICMA_E_LIMIT, NULL, "JSON nested deeper than %u at byte %zu",
                                 scan->rules.max_depth, scan->at);
        return false;
    }
    scan->frames[scan->depth++] =
        (json_frame){scan->text[scan->at] == '{', scan->keys.size / sizeof(json_key), scan->arena.size};
    scan->at++;
    return true;
}

/* Before a closing bracket of the innermost container. */
static bool close_container(json_scan *scan) {
    const json_frame *frame = &scan->frames[scan->depth - 1];
    if (peek(scan) != (frame->is_object ? '}' : ']'))
        return refuse(scan, "a comma or closing bracket is missing");
    scan->at++;
    scan->depth--;
    return !frame->is_object || end_object(scan, frame);
}

/* One value up to the point where the next value starts (*more) or the text's value is complete (!*more). */
static bool scan_step(json_scan *scan, bool *more) {
    skip_space(scan);
    if (++scan->values > ICMA_JSON_MAX_VALUES) {
        scan->status = icma_fail(scan->error, ICMA_E_LIMIT, NULL, "JSON with more than %d values",
                                 (int)ICMA_JSON_MAX_VALUES);
        return false;
    }
    uint8_t c = peek(scan);
    if (c == '{' || c == '[') {
        if (!open_container(scan))
            return false;
        skip_space(scan);
        if (peek(scan) != (c == '{' ? '}' : ']')) {
            *more = true;
            return c == '[' || scan_key(scan);
        }
        if (!close_container(scan))
            return false;
    } else if (!scan_scalar(scan)) {
        return false;
    }
    while (scan->depth > 0) {
        skip_space(scan);
        if (peek(scan) == ',') {
            scan->at++;
            *more = true;
            return !scan->frames[scan->depth - 1].is_object || scan_key(scan);
        }
        if (!close_container(scan))
            return false;
    }
    *more = false;
    return true;
}

static bool scan_text(json_scan *scan) {
    bool more = true;
    while (more)
        if (!scan_step(scan, &more))
            return false;
    skip_space(scan);
    return scan->at == scan->size || refuse(scan, "something follows the value");
}

/* Whatever differs from run to run; what is accepted does not depend on it. */
static uint64_t draw_seed(const void *somewhere) {
    struct timespec now = {0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return ((uint64_t)now.tv_nsec << 32 ^ (uint64_t)(uintptr_t)somewhere) * UINT64_C(0x9e3779b97f4a7c15);
}

icma_status icma_json_check(const char *text, size_t size, icma_json_rules rules, icma_error *error) {
    if (rules.max_depth > ICMA_JSON_MAX_DEPTH)
        rules.max_depth = ICMA_JSON_MAX_DEPTH;
    json_scan scan = {.text = (const uint8_t *)text, .size = size, .rules = rules, .error = error};
    scan.seed = draw_seed(&scan);
    scan.frames = icma_alloc_array(rules.max_depth + 1, sizeof *scan.frames);
    if (!scan.frames)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory to check JSON");
    scan_text(&scan);
    icma_free(scan.frames);
    icma_buffer_free(&scan.keys);
    icma_buffer_free(&scan.arena);
    return scan.status;
}

static pthread_once_t hooks_once = PTHREAD_ONCE_INIT;

static void install_hooks(void) {
    cJSON_Hooks hooks = {icma_alloc, icma_free};
    cJSON_InitHooks(&hooks);
}

icma_status icma_json_parse(const char *text, size_t size, icma_json_rules rules, cJSON **out,
                            icma_error *error) {
    *out = NULL;
    icma_status status = icma_json_check(text, size, rules, error);
    if (status != ICMA_OK)
        return status;
    pthread_once(&hooks_once, install_hooks);
    *out = cJSON_ParseWithLength(text, size);
    /* What passed the check parses: only memory can have failed. */
    return *out ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory to parse JSON");
}

/* --- reading without a tree ---------------------------------------------------------------------------- */

static char byte_at(const icma_json_cursor *cursor) {
    return cursor->at < cursor->size ? cursor->text[cursor->at] : '\0';
}

char icma_json_peek(icma_json_cursor *cursor) {
    for (char c; (c = byte_at(cursor)) == ' ' || c == '\t' || c == '\n' || c == '\r'; cursor->at++)
        continue;
    return byte_at(cursor);
}

bool icma_json_enter(icma_json_cursor *cursor, char bracket) {
    if (icma_json_peek(cursor) != bracket)
        return false;
    cursor->at++;
    return true;
}

bool icma_json_next(icma_json_cursor *cursor) {
    char c = icma_json_peek(cursor);
    cursor->at += c == ',' || c == '}' || c == ']';
    return c && c != '}' && c != ']';
}

bool icma_json_take_string(icma_json_cursor *cursor, icma_buffer *out) {
    if (icma_json_peek(cursor) != '"')
        return false;
    json_scan scan = {.text = (const uint8_t *)cursor->text, .size = cursor->size, .at = cursor->at};
    out->size = 0;
    bool read = scan_string(&scan, out);
    icma_write_u8(out, 0);
    cursor->at = scan.at;
    return read && !out->failed;
}

bool icma_json_take_key(icma_json_cursor *cursor, icma_buffer *out) {
    bool read = icma_json_take_string(cursor, out);
    cursor->at += icma_json_peek(cursor) == ':';
    return read;
}

bool icma_json_take_whole(icma_json_cursor *cursor, uint64_t *value) {
    char c = icma_json_peek(cursor);
    if (c < '0' || c > '9')
        return false;
    for (*value = 0; (c = byte_at(cursor)) >= '0' && c <= '9'; cursor->at++)
        *value = *value * 10 + (uint64_t)(c - '0');
    return true;
}

void icma_json_skip(icma_json_cursor *cursor) {
    size_t depth = 0;
    icma_json_peek(cursor);
    do {
        char c = byte_at(cursor);
        if (c == '"')
            for (cursor->at++; (c = byte_at(cursor)) != '"' && c; cursor->at++)
                cursor->at += c == '\\';
        depth += c == '{' || c == '[';
        depth -= c == '}' || c == ']';
        cursor->at += c != 0;
        if (!c)
            return;
        /* A number or a word ends before what may follow a value. */
        while (depth == 0 && c != '"' && c != '}' && c != ']' && (c = byte_at(cursor)) && !strchr(",]} \t\n\r", c))
            cursor->at++;
    } while (depth > 0);
}

bool icma_json_whole(const cJSON *item, uint64_t *value) {
    if (!cJSON_IsNumber(item))
        return false;
    double number = item->valuedouble;
    if (!(number >= 0 && number <= (double)MAX_WHOLE) || number != (double)(uint64_t)number)
        return false;
    *value = (uint64_t)number;
    return true;
}
