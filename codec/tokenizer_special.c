/* SPDX-License-Identifier: Apache-2.0 */
/* Special tokens, as transformers (4.38) finds them in a tokenizer's folder. */
#include "json.h"
#include "tokenizer_inside.h"

#include <string.h>

icma_status icma_tokenizer_add_special(icma_tokenizer *t, const char *text, uint32_t id, bool folded,
                                       bool again, icma_error *error) {
    size_t at = 0;
    while (at < t->special_count && strcmp(t->specials[at].text, text) != 0)
        at++;
    if (at < t->special_count) {
        t->specials[at].folded = again ? folded : t->specials[at].folded;
        return ICMA_OK;
    }
    if (at == ICMA_MOST_SPECIAL || strlen(text) > ICMA_MOST_SPECIAL)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "more than %d special tokens, or one of more bytes",
                         ICMA_MOST_SPECIAL);
    icma_special *special = &t->specials[at];
    icma_status status = icma_unicode_fold(text, strlen(text), &special->characters, error);
    if (status)
        return status;
    strcpy(special->text, text);
    special->folded = folded;
    special->id = id;
    t->special_count++;
    return ICMA_OK;
}

typedef struct special_reader {
    icma_tokenizer *tokenizer;
    icma_find_token *find;
    const void *context;
    const char *name; /* of the file */
} special_reader;

/* A token's text, or an object with its "content". What is only a text changes nothing about a token that
 * there is. */
static icma_status add_item(const special_reader *r, const cJSON *item, bool folded, icma_error *error) {
    static const char *const flags[] = {"lstrip", "rstrip", "single_word"};
    const cJSON *content = cJSON_IsObject(item) ? cJSON_GetObjectItemCaseSensitive(item, "content") : item;
    const cJSON *normalized = cJSON_GetObjectItemCaseSensitive(item, "normalized");
    const char *text = cJSON_GetStringValue(content);
    uint32_t id;
    if (!text || !text[0] || !r->find(r->context, text, &id))
        return ICMA_OK;
    for (size_t i = 0; i < 3; i++)
        if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(item, flags[i])))
            return icma_fail(error, ICMA_E_UNSUPPORTED, r->name,
                             "the special token \"%.40s\" with %s; CLIP's have none", text, flags[i]);
    if (cJSON_IsBool(normalized))
        folded = cJSON_IsTrue(normalized);
    return icma_tokenizer_add_special(r->tokenizer, text, id, folded, cJSON_IsObject(item), error);
}

/* Those with names: of `map`, else of `config`. Only texts of the first three are looked for in what is
 * folded. */
static icma_status add_named(const special_reader *r, const cJSON *config, const cJSON *map,
                             icma_error *error) {
    static const char *const keys[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                       "pad_token", "cls_token", "mask_token"};
    static const char additional[] = "additional_special_tokens";
    icma_status status = ICMA_OK;
    for (size_t i = 0; !status && i < sizeof keys / sizeof *keys; i++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(map, keys[i]);
        status = add_item(r, item ? item : cJSON_GetObjectItemCaseSensitive(config, keys[i]), i < 3, error);
    }
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(map, additional), *item;
    if (!list)
        list = cJSON_GetObjectItemCaseSensitive(config, additional);
    for (item = cJSON_IsArray(list) ? list->child : NULL; !status && item; item = item->next)
        status = add_item(r, item, false, error);
    return status;
}

static icma_status parse(const icma_token_file *file, cJSON **out, icma_error *error) {
    static const icma_json_rules rules = {.max_depth = 16};
    *out = NULL;
    if (!file->data)
        return ICMA_OK;
    icma_status status = icma_json_parse(file->data, file->size, rules, out, error);
    icma_error_set_file(error, file->name);
    return status;
}

icma_status icma_tokenizer_read_specials(icma_tokenizer *t, const icma_token_file *config_file,
                                         const icma_token_file *map_file, icma_find_token *find,
                                         const void *context, icma_error *error) {
    special_reader r = {t, find, context, config_file->name ? config_file->name : map_file->name};
    cJSON *config, *map = NULL;
    icma_status status = parse(config_file, &config, error);
    const cJSON *added = cJSON_GetObjectItemCaseSensitive(config, "added_tokens_decoder"), *item;
    if (!status && !cJSON_IsObject(added))
        status = parse(map_file, &map, error);
    for (item = !status && cJSON_IsObject(added) ? added->child : NULL; !status && item; item = item->next)
        status = add_item(&r, item, false, error);
    if (!status)
        status = add_named(&r, config, map, error);
    cJSON_Delete(config);
    cJSON_Delete(map);
    return status;
}
