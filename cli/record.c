/* SPDX-License-Identifier: Apache-2.0 */
#include "record.h"

#include "json.h"
#include "memory.h"

#include <math.h>
#include <string.h>

icma_status cli_record_load(icma_bundle *bundle, uint32_t group, cJSON **record, icma_error *error) {
    static const icma_json_rules rules = {.max_depth = 16};
    char *text = NULL;
    *record = NULL;
    icma_status status = icma_bundle_record(bundle, group, &text, error);
    if (!status && text)
        status = icma_json_parse(text, strlen(text), rules, record, error);
    icma_free(text);
    return status;
}

double cli_record_number(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNumber(item) ? item->valuedouble : NAN;
}

const char *cli_record_text(const cJSON *object, const char *key) {
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));
}

const cJSON *cli_record_list(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsArray(item) ? item : NULL;
}

static bool number_of(const cJSON *item, const char *key, double *value) {
    *value = cJSON_IsNumber(item) ? item->valuedouble : cli_record_number(item, key);
    return !isnan(*value);
}

bool cli_record_ends(const cJSON *list, const char *key, double *first, double *last) {
    const cJSON *item = list ? list->child : NULL;
    if (!item || !number_of(item, key, first))
        return false;
    while (item->next)
        item = item->next;
    return number_of(item, key, last);
}
