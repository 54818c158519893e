/* SPDX-License-Identifier: Apache-2.0 */
#include "sort.h"
#include "support.h"

#include <string.h>

/* Elements wider than the sort's swap block; only the first word counts. */
typedef struct element {
    uint64_t key;
    uint64_t rest[12];
} element;

static size_t compares;

static int by_key(const void *a, const void *b, const void *context) {
    assert_string_equal(context, "context");
    uint64_t x = ((const element *)a)->key, y = ((const element *)b)->key;
    compares++;
    return (x > y) - (x < y);
}

static void sorts_any_order(void **state) {
    (void)state;
    static element elements[3000];
    uint64_t random = 1;
    for (int pattern = 0; pattern < 5; pattern++) {
        for (size_t count = 0; count < 3000; count = count * 2 + 1) {
            uint64_t sum = 0, after = 0;
            for (size_t i = 0; i < count; i++) {
                uint64_t key = pattern == 0   ? i
                               : pattern == 1 ? count - i
                               : pattern == 2 ? 5
                               : pattern == 3 ? next_random(&random) % 16
                                              : next_random(&random);
                elements[i].key = key;
                elements[i].rest[11] = ~key;
                sum += key;
            }
            compares = 0;
            icma_sort(elements, count, sizeof *elements, by_key, "context");
            assert_true(compares <= 2 * 13 * (count + 1)); /* n log n whatever comes in */
            for (size_t i = 0; i < count; i++) {
                assert_true(i == 0 || elements[i - 1].key <= elements[i].key);
                assert_true(elements[i].rest[11] == ~elements[i].key);
                after += elements[i].key;
            }
            assert_true(sum == after);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(sorts_any_order)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
