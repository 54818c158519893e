/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Status codes and the error detail that goes with them.
 *
 * Every fallible function returns an icma_status. What went wrong in words goes into an
 * icma_error that the caller owns and may pass as NULL. Libraries never print and never exit.
 *
 * One table gives each status its name and its process exit code (README, "Exit codes").
 */
#ifndef ICMA_STATUS_H
#define ICMA_STATUS_H

#include "api.h"

#if defined(__GNUC__)
#define ICMA_PRINTF(format_index, first_argument)                                                            \
    __attribute__((format(printf, format_index, first_argument)))
#else
#define ICMA_PRINTF(format_index, first_argument)
#endif

ICMA_API_BEGIN

/*      name           exit  meaning */
#define ICMA_STATUS_TABLE(X)                                                                                 \
    X(ICMA_OK, 0, "done")                                                                                    \
    X(ICMA_E_IO, 1, "input or output failed")                                                                \
    X(ICMA_E_USAGE, 2, "wrong usage")                                                                        \
    X(ICMA_E_PARTIAL, 3, "done in part")                                                                     \
    X(ICMA_E_FORMAT, 4, "not this format")                                                                   \
    X(ICMA_E_CORRUPT, 4, "corrupt")                                                                          \
    X(ICMA_E_BOUND, 5, "fidelity bound missed")                                                              \
    X(ICMA_E_UNSUPPORTED, 6, "unsupported")                                                                  \
    X(ICMA_E_NOT_FOUND, 7, "not found")                                                                      \
    X(ICMA_E_EXISTS, 8, "exists already")                                                                    \
    X(ICMA_E_MEMORY, 9, "not enough memory")                                                                 \
    X(ICMA_E_DEVICE, 9, "no such device")                                                                    \
    X(ICMA_E_LIMIT, 10, "over a limit")                                                                      \
    X(ICMA_E_CANCELLED, 130, "cancelled")

typedef enum icma_status {
#define ICMA_STATUS_ENUM(name, exit_code, text) name,
    ICMA_STATUS_TABLE(ICMA_STATUS_ENUM)
#undef ICMA_STATUS_ENUM
} icma_status;

enum { ICMA_ERROR_FILE_SIZE = 1024, ICMA_ERROR_MESSAGE_SIZE = 512 };

/* The detail of a failure. Zero-initialise; `message` reads "<what is wrong>; <what to do>".
 * Both strings are always NUL-terminated; they may quote hostile bytes: escape before printing. */
typedef struct icma_error {
    icma_status status;
    char file[ICMA_ERROR_FILE_SIZE];       /* the file it is about, or "" */
    char message[ICMA_ERROR_MESSAGE_SIZE]; /* one sentence, no newline */
} icma_error;

/* Fills `error` (if not NULL) and returns `status`, so that a failing function can `return icma_fail(...)`.
 * `file` may be NULL. The first failure wins: an error that already holds a failure is kept, so that
 * clean-up which also fails does not hide the cause. */
icma_status icma_fail(icma_error *error, icma_status status, const char *file, const char *format, ...)
    ICMA_PRINTF(4, 5);

/* Sets the file of a failure that was raised by a parser which did not know it. No-op if one is set. */
void icma_error_set_file(icma_error *error, const char *file);

/* "ICMA_E_CORRUPT" and the like; never NULL. */
const char *icma_status_name(icma_status status);
/* "corrupt" and the like; never NULL. */
const char *icma_status_text(icma_status status);
/* The process exit code of a status. ICMA_E_CANCELLED gives 130 (SIGINT); the CLI puts in its own signal. */
int icma_status_exit_code(icma_status status);

ICMA_API_END

#endif
