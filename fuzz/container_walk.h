/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ICMA_FUZZ_CONTAINER_WALK_H
#define ICMA_FUZZ_CONTAINER_WALK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Opens `data` as an archive, loads all of it, and aborts where something accepted does not hold to what
 * container.h promises. Whether it opened. */
bool container_walk(const uint8_t *data, size_t size);

#endif
