/* SPDX-License-Identifier: Apache-2.0 */
/* What the unit tests share: cmocka with what it needs, a scratch folder, and an allocator that fails. */
#ifndef ICMA_TEST_SUPPORT_H
#define ICMA_TEST_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants those before it */
#include <cmocka.h>

#include "status.h"

/* A test's own folder, removed with all that is in it afterwards. For cmocka_unit_test_setup_teardown; *state
 * is its path. */
int scratch_setup(void **state);
int scratch_teardown(void **state);
/* folder/name, in one of eight buffers that take turns. */
const char *scratch_path(void **state, const char *name);
void write_file(const char *path, const void *data, size_t size);
/* Entries of a folder other than "." and "..". */
size_t count_entries(const char *folder);

/* Replaces the allocator: the first `successes` allocations succeed, the next one fails, and all later ones
 * too with `for_good`. Counts what is live, so that a test sees leaks without a sanitizer. */
void failing_allocator(size_t successes, bool for_good);
void plain_allocator(void);
bool allocation_failed(void); /* since failing_allocator */
size_t live_allocations(void);

/* Small, fast, the same everywhere. */
uint64_t next_random(uint64_t *state);

#define assert_status(call, wanted) assert_string_equal(icma_status_name(call), #wanted)

#endif
