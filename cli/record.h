/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The training record of a group: JSON that the archive carries for people. It is read defensively: whatever
 * is missing, or not what it should be, is not told.
 */
#ifndef CLI_RECORD_H
#define CLI_RECORD_H

#include "icma.h"
#include "json_out.h"

/* *record is NULL if the archive has none. cJSON_Delete it. */
icma_status cli_record_load(icma_bundle *bundle, uint32_t group, cJSON **record, icma_error *error);

/* NAN, NULL or an empty list's size where there is none. */
double cli_record_number(const cJSON *object, const char *key);
const char *cli_record_text(const cJSON *object, const char *key);
const cJSON *cli_record_list(const cJSON *object, const char *key);
/* The loss (reconstruction + KL) of the first and the last epoch on record. */
bool cli_record_losses(const cJSON *record, double *first, double *last);

#endif
