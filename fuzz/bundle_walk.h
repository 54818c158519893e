/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ICMA_FUZZ_BUNDLE_WALK_H
#define ICMA_FUZZ_BUNDLE_WALK_H

#include <stddef.h>
#include <stdint.h>

/* The bytes as a file, the same in every run; its path, which stays until the next call. */
const char *fuzz_put_in_file(const uint8_t *data, size_t size);

/* Opens `data` as a bundle and decodes all of it: task tables, texts, generators, every checkpoint
 * (residuals, links, verbatim tensors), a sample of each task. Aborts where something accepted does not hold
 * to what icma.h promises. */
void bundle_walk(const uint8_t *data, size_t size);

#endif
