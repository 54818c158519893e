/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The version, which CMakeLists.txt reads from here too.
 *
 * Until 1.0 a new minor version may change the ABI and has another soname (libicma.so.0.1), so a program
 * never runs with a library that it was not built for. Within one, functions are only added, and options only
 * at the end of their structs, which tell their size.
 */
#ifndef ICMA_VERSION_H
#define ICMA_VERSION_H

#include "api.h"

#define ICMA_VERSION_MAJOR 0
#define ICMA_VERSION_MINOR 1
#define ICMA_VERSION_PATCH 0

ICMA_API_BEGIN

/* That of the library: "0.1.0"; static. */
const char *icma_version(void);

ICMA_API_END

#endif
