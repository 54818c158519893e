/* SPDX-License-Identifier: Apache-2.0 */
/* Texts put together so that what they share is there once. */
#include "memory.h"
#include "sort.h"
#include "text_inside.h"

#include <string.h>

static int compare(const void *a, const void *b, const void *context) {
    const icma_text_tokens *x = a, *y = b;
    (void)context;
    for (size_t i = 0; i < x->count && i < y->count; i++)
        if (x->ids[i] != y->ids[i])
            return x->ids[i] < y->ids[i] ? -1 : 1;
    if (x->count != y->count)
        return x->count < y->count ? -1 : 1;
    return (x->text > y->text) - (x->text < y->text);
}

void icma_text_sort(icma_text_tokens *list, size_t count) {
    if (count)
        icma_sort(list, count, sizeof *list, compare, NULL);
}

icma_status icma_text_batch_make(icma_text_batch *b, size_t rows, size_t seen, size_t texts,
                                 icma_error *error) {
    *b = (icma_text_batch){.room_rows = rows, .room_seen = seen, .room_texts = texts};
    uint32_t **by_row[] = {&b->id, &b->position, &b->first, &b->length},
             **by_text[] = {&b->end_row, &b->end_first, &b->end_length, &b->end_of};
    bool made = true;
    for (size_t i = 0; i < 4; i++) {
        *by_row[i] = icma_alloc_array(rows, sizeof **by_row[i]);
        *by_text[i] = icma_alloc_array(texts, sizeof **by_text[i]);
        made = made && *by_row[i] && *by_text[i];
    }
    b->seen = icma_alloc_array(seen, sizeof *b->seen);
    b->text = icma_alloc_array(texts, sizeof *b->text);
    return made && b->seen && b->text
               ? ICMA_OK
               : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a batch of texts");
}

void icma_text_batch_free(icma_text_batch *b) {
    uint32_t *lists[] = {b->id,      b->position,  b->first,      b->length, b->seen,
                         b->end_row, b->end_first, b->end_length, b->end_of};
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++)
        icma_free(lists[i]);
    icma_free(b->text);
    memset(b, 0, sizeof *b);
}

static size_t common(const icma_text_tokens *a, const icma_text_tokens *b) {
    size_t i = 0;
    while (a && i < a->count && i < b->count && a->ids[i] == b->ids[i])
        i++;
    return i;
}

/* `before` is its neighbour, whose rows are the last of `seen`; NULL: there is none. */
static void add_text(icma_text_batch *b, const icma_text_tokens *t, size_t shared, size_t before_count) {
    size_t start = b->seen_count;
    if (shared)
        memcpy(b->seen + start, b->seen + start - before_count, shared * sizeof *b->seen);
    for (size_t p = shared; p < t->count; p++) {
        uint32_t row = (uint32_t)b->rows++;
        b->seen[start + p] = row;
        b->id[row] = t->ids[p];
        b->position[row] = (uint32_t)p;
        b->first[row] = (uint32_t)start;
        b->length[row] = (uint32_t)p + 1;
    }
    b->seen_count = start + t->count;
    if (shared < t->count || b->ends == 0) {
        b->end_row[b->ends] = b->seen[b->seen_count - 1];
        b->end_first[b->ends] = (uint32_t)start;
        b->end_length[b->ends] = (uint32_t)t->count;
        b->ends++;
    }
    b->end_of[b->texts] = (uint32_t)(b->ends - 1);
    b->text[b->texts++] = t->text;
}

size_t icma_text_rows(const icma_text_tokens *list, size_t count) {
    size_t rows = 0;
    for (size_t i = 0; i < count; i++)
        rows += list[i].count - common(i ? &list[i - 1] : NULL, &list[i]);
    return rows;
}

size_t icma_text_batch_fill(icma_text_batch *b, const icma_text_tokens *list, size_t count, size_t rows) {
    const icma_text_tokens *before = NULL;
    size_t i = 0;
    b->rows = b->ends = b->texts = b->seen_count = 0;
    for (; i < count && b->texts < b->room_texts && b->rows < rows; i++) {
        size_t shared = common(before, &list[i]), more = list[i].count - shared;
        if (b->rows + more > b->room_rows || b->seen_count + list[i].count > b->room_seen)
            break;
        add_text(b, &list[i], shared, before ? before->count : 0);
        before = &list[i];
    }
    return i;
}
