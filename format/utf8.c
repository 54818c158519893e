/* SPDX-License-Identifier: Apache-2.0 */
#include "utf8.h"

static int continues(uint8_t byte) {
    return (byte & 0xc0) == 0x80;
}

/* RFC 3629, section 4: only the second byte's range depends on the first. */
size_t icma_utf8_length(const uint8_t *text, size_t left) {
    uint8_t first = text[0];
    if (first < 0x80)
        return 1;
    size_t length = first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
    if (length == 0 || left < length || !continues(text[1]))
        return 0;
    if ((first == 0xe0 && text[1] < 0xa0) || (first == 0xed && text[1] > 0x9f) ||
        (first == 0xf0 && text[1] < 0x90) || (first == 0xf4 && text[1] > 0x8f))
        return 0;
    for (size_t i = 2; i < length; i++)
        if (!continues(text[i]))
            return 0;
    return length;
}
