/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ICMA_UTF8_H
#define ICMA_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of the UTF-8 sequence (RFC 3629: shortest form, no surrogates, at most U+10FFFF) at `text`, of which
 * `left` > 0 bytes may be read; 0 if there is none. */
size_t icma_utf8_length(const uint8_t *text, size_t left);

#endif
