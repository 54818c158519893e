/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON documents for other programs. Building never needs checking step by step: a failure is remembered and
 * told when the document is printed. Keys: spec/json.md.
 *
 * Strings come out as they are where they are valid UTF-8 (characters that would disturb a terminal as \u
 * escapes); bytes that are not UTF-8, which JSON cannot hold, as the text \xNN.
 */
#ifndef CLI_JSON_OUT_H
#define CLI_JSON_OUT_H

#include "status.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

cJSON *cli_json_object(void);
/* `key` NULL: `to` is an array. The child belongs to `to`. */
cJSON *cli_json_add_object(cJSON *to, const char *key);
cJSON *cli_json_add_array(cJSON *to, const char *key);
void cli_json_text(cJSON *to, const char *key, const char *text); /* NULL: null */
void cli_json_whole(cJSON *to, const char *key, uint64_t value);  /* all 64 bits */
void cli_json_real(cJSON *to, const char *key, double value);     /* null unless finite */
void cli_json_bool(cJSON *to, const char *key, bool value);
void cli_json_null(cJSON *to, const char *key);
void cli_json_hash(cJSON *to, const char *key, uint64_t hash); /* 16 hexadecimal digits, a string */

void cli_json_copy(cJSON *to, const char *key, const cJSON *value); /* NULL: null */

/* Prints the document, indented, and deletes it. */
icma_status cli_json_print(cJSON *root, FILE *out, icma_error *error);
/* The same on one line, for stderr; failures are lost. */
void cli_json_print_line(cJSON *root, FILE *out);

#endif
