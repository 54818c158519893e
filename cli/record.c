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

static double loss_at(const cJSON *record, const cJSON *point) {
    double weight = cli_record_number(cJSON_GetObjectItemCaseSensitive(record, "options"), "kld_weight");
    return cli_record_number(point, "reconstruction") + (isnan(weight) ? 1 : weight) * cli_record_number(point, "kl");
}

bool cli_record_losses(const cJSON *record, double *first, double *last) {
    const cJSON *losses = cli_record_list(record, "losses");
    const cJSON *point = losses ? losses->child : NULL;
    if (!point)
        return false;
    *first = loss_at(record, point);
    while (point->next)
        point = point->next;
    *last = loss_at(record, point);
    return !isnan(*first) && !isnan(*last);
}
