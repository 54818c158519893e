/* SPDX-License-Identifier: Apache-2.0 */
#include "sort.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

typedef struct heap {
    uint8_t *base;
    size_t width;
    icma_compare *compare;
    const void *context;
} heap;

static uint8_t *item(const heap *h, size_t index) {
    return h->base + index * h->width;
}

static bool less(const heap *h, size_t a, size_t b) {
    return h->compare(item(h, a), item(h, b), h->context) < 0;
}

static void swap(const heap *h, size_t a, size_t b) {
    uint8_t held[64];
    uint8_t *x = item(h, a), *y = item(h, b);
    for (size_t left = h->width; left;) {
        size_t part = left < sizeof held ? left : sizeof held;
        memcpy(held, x, part);
        memcpy(x, y, part);
        memcpy(y, held, part);
        x += part;
        y += part;
        left -= part;
    }
}

static void sink(const heap *h, size_t root, size_t count) {
    for (;;) {
        size_t child = 2 * root + 1;
        if (child >= count)
            return;
        if (child + 1 < count && less(h, child, child + 1))
            child++;
        if (!less(h, root, child))
            return;
        swap(h, root, child);
        root = child;
    }
}

void icma_sort(void *base, size_t count, size_t width, icma_compare *compare, const void *context) {
    heap h = {base, width, compare, context};
    size_t ordered = 1;
    while (ordered < count && !less(&h, ordered, ordered - 1))
        ordered++;
    if (ordered >= count)
        return;
    for (size_t root = count / 2; root-- > 0;)
        sink(&h, root, count);
    for (size_t end = count; end-- > 1;) {
        swap(&h, 0, end);
        sink(&h, 0, end);
    }
}
