/* SPDX-License-Identifier: Apache-2.0 */
/* vocab.json and merges.txt. */
#include "bytes.h"
#include "file.h"
#include "input_names.h"
#include "json.h"
#include "memory.h"
#include "sort.h"
#include "tokenizer_inside.h"

#include <stdbool.h>
#include <string.h>

enum { MOST_MERGES = 49152 - 256 - 2 }; /* as transformers' CLIPTokenizer has it */
static const char start_text[] = "<|startoftext|>", end_text[] = "<|endoftext|>", word_end[] = "</w>";

typedef struct token {
    size_t offset, length; /* in `texts` */
    uint32_t id;
} token;

typedef struct vocabulary {
    icma_buffer texts, tokens; /* bytes; token */
    const char *name;
} vocabulary;

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a tokenizer");
}

/* --- vocabulary
 * ---------------------------------------------------------------------------------------------- */

static int compare_texts(const uint8_t *a, size_t a_length, const uint8_t *b, size_t b_length) {
    int order = memcmp(a, b, a_length < b_length ? a_length : b_length);
    return order ? order : (a_length > b_length) - (a_length < b_length);
}

static int compare_tokens(const void *a, const void *b, const void *context) {
    const uint8_t *texts = context;
    const token *x = a, *y = b;
    return compare_texts(texts + x->offset, x->length, texts + y->offset, y->length);
}

static const token *find_token(const vocabulary *v, const void *text, size_t length) {
    const token *tokens = (const token *)(const void *)v->tokens.data;
    size_t low = 0, high = v->tokens.size / sizeof(token);
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = compare_texts(v->texts.data + tokens[middle].offset, tokens[middle].length, text, length);
        if (order == 0)
            return &tokens[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static icma_status bad_vocabulary(const vocabulary *v, icma_error *error) {
    return icma_fail(error, ICMA_E_CORRUPT, v->name,
                     "not a vocabulary; an object of tokens and whole numbers is");
}

static icma_status take_token(vocabulary *v, icma_json_cursor *at, icma_buffer *key, size_t *size,
                              icma_error *error) {
    uint64_t id = 0;
    if (!icma_json_take_key(at, key))
        return key->failed ? no_memory(error) : bad_vocabulary(v, error);
    if (!icma_json_take_whole(at, &id))
        return bad_vocabulary(v, error);
    if (id >= ICMA_MOST_VOCABULARY || v->tokens.size / sizeof(token) >= ICMA_MOST_VOCABULARY)
        return icma_fail(error, ICMA_E_LIMIT, v->name, "a vocabulary of more than %d tokens",
                         ICMA_MOST_VOCABULARY);
    token t = {v->texts.size, key->size - 1, (uint32_t)id}; /* the key ends with a NUL */
    icma_write_bytes(&v->texts, key->data, t.length);
    icma_write_bytes(&v->tokens, &t, sizeof t);
    *size = *size > id ? *size : (size_t)id + 1;
    return ICMA_OK;
}

static icma_status read_vocabulary(vocabulary *v, const void *data, size_t length, size_t *size,
                                   icma_error *error) {
    static const icma_json_rules rules = {.max_depth = 1, .plain_integers = true};
    icma_buffer key = {0};
    icma_json_cursor at = {data, length, 0};
    icma_status status = icma_json_check(data, length, rules, error);
    if (!status && !icma_json_enter(&at, '{'))
        status = bad_vocabulary(v, error);
    while (!status && icma_json_next(&at))
        status = take_token(v, &at, &key, size, error);
    icma_buffer_free(&key);
    if (!status)
        status = icma_buffer_status(&v->texts, error);
    if (!status)
        status = icma_buffer_status(&v->tokens, error);
    if (!status && v->tokens.size)
        icma_sort(v->tokens.data, v->tokens.size / sizeof(token), sizeof(token), compare_tokens,
                  v->texts.data);
    return status;
}

static icma_status find_special(const vocabulary *v, const char *text, uint32_t *id, icma_error *error) {
    const token *found = find_token(v, text, strlen(text));
    if (!found)
        return icma_fail(error, ICMA_E_CORRUPT, v->name, "a vocabulary without %s; CLIP's has it", text);
    *id = found->id;
    return ICMA_OK;
}

/* The character that stands for a byte, UTF-8: printable ones for themselves, others, in order, from U+0100
 * on (GPT-2's bytes_to_unicode). */
static size_t spell_byte(unsigned byte, unsigned *next, char *out) {
    bool itself = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    unsigned c = itself ? byte : 0x100 + (*next)++;
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xC0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3F));
    return 2;
}

static void find_bytes(const vocabulary *v, icma_tokenizer *t) {
    unsigned next = 0;
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[2 + sizeof word_end];
        size_t length = spell_byte(byte, &next, text);
        const token *inner = find_token(v, text, length);
        memcpy(text + length, word_end, sizeof word_end);
        const token *last = find_token(v, text, length + strlen(word_end));
        t->inner[byte] = inner ? inner->id : t->end;
        t->last[byte] = last ? last->id : t->end;
    }
}

/* --- merges
 * -------------------------------------------------------------------------------------------------- */

typedef struct merge_reader {
    const vocabulary *vocabulary;
    const char *name;
    icma_buffer joined;
    icma_tokenizer *out;
    size_t room; /* of out->merges */
} merge_reader;

static bool is_blank(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* The next run of other than blanks in a line; its length, 0: none. */
static size_t take_part(const char **at, const char *end, const char **part) {
    while (*at < end && is_blank(**at))
        ++*at;
    *part = *at;
    while (*at < end && !is_blank(**at))
        ++*at;
    return (size_t)(*at - *part);
}

static icma_status add_merge(merge_reader *r, const char *line, const char *end, size_t number,
                             icma_error *error) {
    const char *left, *right, *more;
    size_t left_length = take_part(&line, end, &left), right_length = take_part(&line, end, &right);
    if (!left_length || !right_length || take_part(&line, end, &more))
        return icma_fail(error, ICMA_E_CORRUPT, r->name, "line %zu is no merge; two tokens are", number);
    r->joined.size = 0;
    icma_write_bytes(&r->joined, left, left_length);
    icma_write_bytes(&r->joined, right, right_length);
    if (r->joined.failed)
        return no_memory(error);
    const token *a = find_token(r->vocabulary, left, left_length),
                *b = find_token(r->vocabulary, right, right_length);
    const token *joined = find_token(r->vocabulary, r->joined.data, r->joined.size);
    if (!a || !b || !joined)
        return icma_fail(error, ICMA_E_CORRUPT, r->name,
                         "line %zu merges what is not in the vocabulary; take both files from one model",
                         number);
    icma_tokenizer *t = r->out;
    if (t->merge_count == r->room) {
        r->room = r->room ? r->room * 2 : 1024;
        icma_merge *merges = icma_resize_array(t->merges, r->room, sizeof *merges);
        if (!merges)
            return no_memory(error);
        t->merges = merges;
    }
    t->merges[t->merge_count] = (icma_merge){a->id, b->id, (uint32_t)t->merge_count, joined->id};
    t->merge_count++;
    return ICMA_OK;
}

static int compare_pairs(const icma_merge *m, uint32_t left, uint32_t right) {
    if (m->left != left)
        return m->left < left ? -1 : 1;
    return (m->right > right) - (m->right < right);
}

static int compare_merges(const void *a, const void *b, const void *context) {
    const icma_merge *x = a, *y = b;
    (void)context;
    int order = compare_pairs(x, y->left, y->right);
    return order ? order : (x->rank > y->rank) - (x->rank < y->rank);
}

/* By their pairs; of equal ones the first is kept. */
static void sort_merges(icma_tokenizer *t) {
    size_t kept = 0;
    if (t->merge_count)
        icma_sort(t->merges, t->merge_count, sizeof *t->merges, compare_merges, NULL);
    for (size_t i = 0; i < t->merge_count; i++)
        if (kept == 0 || compare_pairs(&t->merges[kept - 1], t->merges[i].left, t->merges[i].right) != 0)
            t->merges[kept++] = t->merges[i];
    t->merge_count = kept;
}

static icma_status read_merges(merge_reader *r, const char *text, size_t size, icma_error *error) {
    const char *end = text + size;
    icma_status status = ICMA_OK;
    size_t number = 1;
    while (text < end && is_blank(*text))
        number += *text++ == '\n';
    while (end > text && is_blank(end[-1]))
        end--;
    for (bool first = true; !status && text < end && r->out->merge_count < MOST_MERGES;
         number++, first = false) {
        const char *line = text, *stop = memchr(text, '\n', (size_t)(end - text));
        text = stop ? stop + 1 : end;
        if (!first)
            status = add_merge(r, line, stop ? stop : end, number, error);
    }
    icma_buffer_free(&r->joined);
    if (!status)
        sort_merges(r->out);
    return status;
}

const icma_merge *icma_tokenizer_merge(const icma_tokenizer *t, uint32_t left, uint32_t right) {
    size_t low = 0, high = t->merge_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = compare_pairs(&t->merges[middle], left, right);
        if (order == 0)
            return &t->merges[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* --- all of them
 * --------------------------------------------------------------------------------------------- */

static bool find_id(const void *context, const char *text, uint32_t *id) {
    const token *found = find_token(context, text, strlen(text));
    *id = found ? found->id : 0;
    return found != NULL;
}

static icma_status parse(icma_tokenizer *t, vocabulary *v, const icma_tokenizer_files *files,
                         icma_error *error) {
    icma_status status = read_vocabulary(v, files->vocabulary.data, files->vocabulary.size, &t->size, error);
    if (!status)
        status = find_special(v, start_text, &t->start, error);
    if (!status)
        status = find_special(v, end_text, &t->end, error);
    if (!status)
        status = icma_tokenizer_add_special(t, start_text, t->start, true, true, error);
    if (!status)
        status = icma_tokenizer_add_special(t, end_text, t->end, true, true, error);
    if (!status)
        status = icma_tokenizer_read_specials(t, &files->config, &files->map, find_id, v, error);
    if (status)
        return status;
    find_bytes(v, t);
    merge_reader reader = {.vocabulary = v, .name = files->merges.name, .out = t};
    return read_merges(&reader, files->merges.data, files->merges.size, error);
}

icma_status icma_tokenizer_parse(const icma_tokenizer_files *files, icma_tokenizer **out, icma_error *error) {
    const icma_token_file *all[] = {&files->vocabulary, &files->merges, &files->config, &files->map};
    vocabulary v = {.name = files->vocabulary.name};
    *out = NULL;
    for (size_t i = 0; i < 4; i++)
        if (all[i]->size > ICMA_MOST_TOKEN_FILE)
            return icma_fail(error, ICMA_E_LIMIT, all[i]->name, "more than %d bytes", ICMA_MOST_TOKEN_FILE);
    icma_tokenizer *t = icma_alloc_zeroed(1, sizeof *t);
    if (!t)
        return no_memory(error);
    icma_status status = parse(t, &v, files, error);
    icma_buffer_free(&v.texts);
    icma_buffer_free(&v.tokens);
    if (status) {
        icma_error_set_file(error, files->vocabulary.name);
        icma_tokenizer_close(t);
        return status;
    }
    *out = t;
    return ICMA_OK;
}

/* One that is missing and need not be there is left empty. */
static icma_status read_file(const char *folder, const char *name, bool needed, char **path, uint8_t **data,
                             icma_token_file *out, icma_error *error) {
    icma_error detail = {0};
    size_t size = 0;
    if (!(*path = icma_path_join(folder, name)))
        return no_memory(error);
    icma_status status = icma_file_read_all(*path, ICMA_MOST_TOKEN_FILE, data, &size, &detail);
    if (status == ICMA_E_NOT_FOUND && !needed)
        return ICMA_OK;
    if (status)
        return icma_fail(error, status, detail.file, "%s", detail.message);
    *out = (icma_token_file){*data ? (const void *)*data : "", size, *path};
    return ICMA_OK;
}

icma_status icma_tokenizer_open(const char *folder, icma_tokenizer **out, icma_error *error) {
    static const char *const names[] = {"vocab.json", "merges.txt", "tokenizer_config.json",
                                        "special_tokens_map.json"};
    icma_tokenizer_files files = {0};
    icma_token_file *list[] = {&files.vocabulary, &files.merges, &files.config, &files.map};
    char *paths[4] = {0};
    uint8_t *data[4] = {0};
    icma_status status = ICMA_OK;
    *out = NULL;
    for (size_t i = 0; !status && i < 4; i++)
        status = read_file(folder, names[i], i < 2, &paths[i], &data[i], list[i], error);
    if (!status)
        status = icma_tokenizer_parse(&files, out, error);
    for (size_t i = 0; i < 4; i++) {
        icma_free(paths[i]);
        icma_free(data[i]);
    }
    return status;
}

void icma_tokenizer_close(icma_tokenizer *t) {
    if (!t)
        return;
    for (size_t i = 0; i < t->special_count; i++)
        icma_characters_free(&t->specials[i].characters);
    icma_free(t->merges);
    icma_free(t);
}
