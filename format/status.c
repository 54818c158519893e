/* SPDX-License-Identifier: Apache-2.0 */
#include "status.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static void copy_truncated(char *to, size_t capacity, const char *from) {
    size_t length = strlen(from);
    if (length >= capacity)
        length = capacity - 1;
    memcpy(to, from, length);
    to[length] = '\0';
}

icma_status icma_fail(icma_error *error, icma_status status, const char *file, const char *format, ...) {
    if (!error || error->status != ICMA_OK)
        return status;
    error->status = status;
    copy_truncated(error->file, sizeof error->file, file ? file : "");
    va_list arguments;
    va_start(arguments, format);
    if (vsnprintf(error->message, sizeof error->message, format, arguments) < 0)
        error->message[0] = '\0';
    va_end(arguments);
    return status;
}

void icma_error_set_file(icma_error *error, const char *file) {
    if (error && error->status != ICMA_OK && file && !error->file[0])
        copy_truncated(error->file, sizeof error->file, file);
}

const char *icma_status_name(icma_status status) {
    switch (status) {
#define STATUS_NAME(name, exit_code, text)                                                                   \
    case name:                                                                                               \
        return #name;
        ICMA_STATUS_TABLE(STATUS_NAME)
#undef STATUS_NAME
    }
    return "ICMA_E_?";
}

const char *icma_status_text(icma_status status) {
    switch (status) {
#define STATUS_TEXT(name, exit_code, text)                                                                   \
    case name:                                                                                               \
        return text;
        ICMA_STATUS_TABLE(STATUS_TEXT)
#undef STATUS_TEXT
    }
    return "failed";
}

int icma_status_exit_code(icma_status status) {
    switch (status) {
#define STATUS_EXIT(name, exit_code, text)                                                                   \
    case name:                                                                                               \
        return exit_code;
        ICMA_STATUS_TABLE(STATUS_EXIT)
#undef STATUS_EXIT
    }
    return 1;
}
