/* SPDX-License-Identifier: Apache-2.0 */
/* What encloses the declarations of every public header: C linkage, also for C++, and visible outside the
 * shared library, which is compiled with hidden visibility. */
#ifndef ICMA_API_H
#define ICMA_API_H

#if defined(__GNUC__)
#define ICMA_API_VISIBLE _Pragma("GCC visibility push(default)")
#define ICMA_API_HIDDEN _Pragma("GCC visibility pop")
#else
#define ICMA_API_VISIBLE
#define ICMA_API_HIDDEN
#endif

#ifdef __cplusplus
#define ICMA_API_BEGIN                                                                                       \
    extern "C" {                                                                                             \
    ICMA_API_VISIBLE
#define ICMA_API_END                                                                                         \
    ICMA_API_HIDDEN                                                                                          \
    }
#else
#define ICMA_API_BEGIN ICMA_API_VISIBLE
#define ICMA_API_END ICMA_API_HIDDEN
#endif

#endif
