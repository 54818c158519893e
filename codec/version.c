/* SPDX-License-Identifier: Apache-2.0 */
#include "version.h"

#define TEXT(value) #value
#define VERSION(major, minor, patch) TEXT(major) "." TEXT(minor) "." TEXT(patch)

const char *icma_version(void) {
    return VERSION(ICMA_VERSION_MAJOR, ICMA_VERSION_MINOR, ICMA_VERSION_PATCH);
}
