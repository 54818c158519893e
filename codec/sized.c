/* SPDX-License-Identifier: Apache-2.0 */
#include "sized.h"

#include <string.h>

void icma_sized_fill(void *out, size_t size, const void *standard, size_t known) {
    memset(out, 0, size);
    memcpy(out, standard, size < known ? size : known);
}

icma_status icma_sized_take(void *out, size_t known, const void *given, size_t least, const char *what,
                            const char *defaults, icma_error *error) {
    size_t size;
    memcpy(&size, given, sizeof size);
    if (size < least || size > known)
        return icma_fail(
            error, ICMA_E_USAGE, NULL,
            "%s another libicma; start from %s(), and link the library whose header was compiled", what,
            defaults);
    memcpy(out, given, size);
    memcpy(out, &known, sizeof known);
    return ICMA_OK;
}
