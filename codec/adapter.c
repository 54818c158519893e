/* SPDX-License-Identifier: Apache-2.0 */
#include "adapter.h"

#include "json.h"
#include "memory.h"
#include "sort.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *icma_role_name(icma_role role) {
    static const char *const names[ICMA_ROLE_COUNT] = {"A", "B", "other"};
    return (unsigned)role < ICMA_ROLE_COUNT ? names[role] : "other";
}

/* --- names --------------------------------------------------------------------------------------------- */

/* How one naming style marks a factor. The marker stands after a '.', at the start of the name or, where
 * `joined`, after a '_' ("to_q_lora.down.weight", old diffusers). */
typedef struct factor_style {
    const char *marker;
    icma_role role;
    icma_naming naming;
    bool has_adapter;     /* "<marker>.<adapter>" is fine too */
    bool may_lack_weight; /* parameters that are no module's weight: "lora_embedding_A" */
    bool joined;
} factor_style;

/* kohya's lora_mid and LyCORIS's t1 and t2 (Tucker cores between two factors) are listed as "other" so that
 * they spoil their pairs: dW is not B A there. */
static const factor_style factor_styles[] = {
    {"lora_A", ICMA_ROLE_A, ICMA_NAMING_PEFT, true, false, false},
    {"lora_B", ICMA_ROLE_B, ICMA_NAMING_PEFT, true, false, false},
    {"lora_embedding_A", ICMA_ROLE_A, ICMA_NAMING_EMBEDDING, true, true, false},
    {"lora_embedding_B", ICMA_ROLE_B, ICMA_NAMING_EMBEDDING, true, true, false},
    {"lora_down", ICMA_ROLE_A, ICMA_NAMING_KOHYA, false, false, false},
    {"lora_up", ICMA_ROLE_B, ICMA_NAMING_KOHYA, false, false, false},
    {"lora_mid", ICMA_ROLE_OTHER, ICMA_NAMING_KOHYA, false, false, false},
    {"lora.down", ICMA_ROLE_A, ICMA_NAMING_DIFFUSERS, false, false, true},
    {"lora.up", ICMA_ROLE_B, ICMA_NAMING_DIFFUSERS, false, false, true},
    {"lora_linear_layer.down", ICMA_ROLE_A, ICMA_NAMING_LINEAR, false, false, false},
    {"lora_linear_layer.up", ICMA_ROLE_B, ICMA_NAMING_LINEAR, false, false, false},
    {"hada_w1_b", ICMA_ROLE_A, ICMA_NAMING_HADA1, true, true, false},
    {"hada_w1_a", ICMA_ROLE_B, ICMA_NAMING_HADA1, true, true, false},
    {"hada_t1", ICMA_ROLE_OTHER, ICMA_NAMING_HADA1, true, true, false},
    {"hada_w2_b", ICMA_ROLE_A, ICMA_NAMING_HADA2, true, true, false},
    {"hada_w2_a", ICMA_ROLE_B, ICMA_NAMING_HADA2, true, true, false},
    {"hada_t2", ICMA_ROLE_OTHER, ICMA_NAMING_HADA2, true, true, false},
    {"lokr_w1_b", ICMA_ROLE_A, ICMA_NAMING_LOKR1, true, true, false},
    {"lokr_w1_a", ICMA_ROLE_B, ICMA_NAMING_LOKR1, true, true, false},
    {"lokr_w2_b", ICMA_ROLE_A, ICMA_NAMING_LOKR2, true, true, false},
    {"lokr_w2_a", ICMA_ROLE_B, ICMA_NAMING_LOKR2, true, true, false},
    {"lokr_t2", ICMA_ROLE_OTHER, ICMA_NAMING_LOKR2, true, true, false},
};

static bool ends_with(const char *text, size_t length, const char *tail, size_t *rest) {
    size_t tail_length = strlen(tail);
    if (length < tail_length || memcmp(text + length - tail_length, tail, tail_length) != 0)
        return false;
    *rest = length - tail_length;
    return true;
}

/* Whether the first `length` bytes of `name` end in the style's marker, properly separated. */
static bool ends_in_marker(const char *name, size_t length, const factor_style *style,
                           size_t *module_length) {
    if (!ends_with(name, length, style->marker, module_length))
        return false;
    if (*module_length == 0)
        return true;
    char before = name[*module_length - 1];
    return before == '.' || (style->joined && before == '_');
}

bool icma_factor_name_parse(const char *name, icma_factor_name *out) {
    size_t length = strlen(name), stem = length;
    bool weight = ends_with(name, length, ".weight", &stem);
    size_t last = stem; /* where the last segment of the stem starts, and its dot before it */
    while (last > 0 && name[last - 1] != '.')
        last--;
    for (size_t i = 0; i < sizeof factor_styles / sizeof *factor_styles; i++) {
        const factor_style *style = &factor_styles[i];
        if (!weight && !style->may_lack_weight)
            continue;
        bool plain = ends_in_marker(name, stem, style, &out->module_length);
        bool named = !plain && style->has_adapter && last > 0 && last < stem &&
                     ends_in_marker(name, last - 1, style, &out->module_length);
        if (!plain && !named)
            continue;
        out->module = name;
        out->adapter = named ? name + last : name;
        out->adapter_length = named ? stem - last : 0;
        out->naming = style->naming;
        out->role = style->role;
        return true;
    }
    return false;
}

static int compare_bytes(const char *a, size_t a_length, const char *b, size_t b_length) {
    size_t shorter = a_length < b_length ? a_length : b_length;
    int order = shorter > 0 ? memcmp(a, b, shorter) : 0;
    return order != 0 ? order : (a_length > b_length) - (a_length < b_length);
}

static int compare_factor_keys(const icma_factor_name *a, const icma_factor_name *b) {
    int order = compare_bytes(a->module, a->module_length, b->module, b->module_length);
    if (order == 0)
        order = compare_bytes(a->adapter, a->adapter_length, b->adapter, b->adapter_length);
    return order != 0 ? order : (a->naming > b->naming) - (a->naming < b->naming);
}

static int compare_factors(const void *left, const void *right, const void *context) {
    (void)context;
    const icma_factor_name *a = left, *b = right;
    int order = compare_factor_keys(a, b);
    if (order == 0)
        order = (a->role > b->role) - (a->role < b->role);
    return order != 0 ? order : (a->index > b->index) - (a->index < b->index);
}

bool icma_adapter_names(const char *name) {
    static const char *const starts[] = {
        "lora_", "hada_", "lokr_", "oft_", "boft_", "vera_", "ia3_", "adaption_", "prompt_embeddings", NULL};
    static const char *const wholes[] = {"dora_scale", "diff",     "diff_b",       "w_norm",
                                         "b_norm",     "on_input", "bias_indices", NULL};
    icma_factor_name factor;
    if (icma_factor_name_parse(name, &factor))
        return true;
    for (const char *segment = name; segment;) {
        size_t length = strcspn(segment, ".");
        /* What only tells something at the end of a name may be any module's elsewhere. */
        for (const char *const *start = starts; *start; start++)
            if (strncmp(segment, *start, strlen(*start)) == 0 && (segment > name || !segment[length]))
                return true;
        for (const char *const *whole = wholes; !segment[length] && *whole; whole++)
            if (strcmp(segment, *whole) == 0)
                return true;
        segment = segment[length] ? segment + length + 1 : NULL;
    }
    return false;
}

/* --- pairs --------------------------------------------------------------------------------------------- */

/* A is (r, in...), B is (out, r) or (out, r, 1, ...). */
static bool shapes_fit(const icma_tensor_info *a, const icma_tensor_info *b) {
    if (!icma_dtype_is_modelled(a->dtype) || !icma_dtype_is_modelled(b->dtype))
        return false;
    if (a->rank < 2 || b->rank < 2 || a->count == 0 || b->count == 0)
        return false;
    for (unsigned i = 2; i < b->rank; i++)
        if (b->shape[i] != 1)
            return false;
    return a->shape[0] == b->shape[1];
}

/* Sets partner[a] = b for every key that has exactly one A and one B that fit. */
static void match_factors(const icma_safetensors *tensors, icma_factor_name *factors, size_t count,
                          size_t *partner) {
    icma_sort(factors, count, sizeof *factors, compare_factors, NULL);
    for (size_t first = 0, next; first < count; first = next) {
        next = first + 1;
        while (next < count && compare_factor_keys(&factors[first], &factors[next]) == 0)
            next++;
        const icma_factor_name *a = &factors[first], *b = &factors[next - 1];
        if (next - first == 2 && a->role == ICMA_ROLE_A && b->role == ICMA_ROLE_B &&
            shapes_fit(&tensors->tensors[a->index], &tensors->tensors[b->index]))
            partner[a->index] = b->index;
    }
}

/* The module's name without the separator; with the matrix's, "x.hada_w1", where a module has two. */
static char *copy_module(const char *name, bool *is_half) {
    static const size_t matrix = sizeof "hada_w1" - 1; /* "lokr_w1" is as long */
    icma_factor_name factor;
    if (!icma_factor_name_parse(name, &factor))
        return NULL;
    *is_half = !icma_naming_is_lora(factor.naming);
    if (*is_half)
        return icma_copy_text(factor.module, factor.module_length + matrix);
    return icma_copy_text(factor.module, factor.module_length > 0 ? factor.module_length - 1 : 0);
}

static icma_status fill_pairs(const icma_safetensors *tensors, const size_t *partner, icma_pairs *out,
                              icma_error *error) {
    size_t total = 0;
    for (size_t i = 0; i < tensors->tensor_count; i++)
        total += partner[i] != SIZE_MAX;
    if (total == 0)
        return ICMA_OK;
    out->list = icma_alloc_zeroed(total, sizeof *out->list);
    if (!out->list)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for %zu LoRA pairs", total);
    for (size_t i = 0; i < tensors->tensor_count; i++) {
        if (partner[i] == SIZE_MAX)
            continue;
        const icma_tensor_info *a = &tensors->tensors[i], *b = &tensors->tensors[partner[i]];
        icma_pair *pair = &out->list[out->count];
        pair->module = copy_module(a->name, &pair->is_half);
        if (!pair->module)
            return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the name of a module");
        out->count++;
        pair->a = i;
        pair->b = partner[i];
        pair->rank = a->shape[0];
        pair->rows = b->shape[0];
        pair->columns = a->count / a->shape[0];
        out->roles[pair->a] = ICMA_ROLE_A;
        out->roles[pair->b] = ICMA_ROLE_B;
    }
    return ICMA_OK;
}

icma_status icma_pairs_find(const icma_safetensors *tensors, icma_pairs *out, icma_error *error) {
    *out = (icma_pairs){0};
    size_t count = tensors->tensor_count;
    if (count == 0)
        return ICMA_OK;
    icma_status status = ICMA_E_MEMORY;
    icma_factor_name *factors = icma_alloc_array(count, sizeof *factors);
    size_t *partner = icma_alloc_array(count, sizeof *partner);
    out->roles = icma_alloc_array(count, sizeof *out->roles);
    if (!factors || !partner || !out->roles) {
        icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the roles of %zu tensors", count);
        goto fail;
    }
    size_t factor_count = 0;
    for (size_t i = 0; i < count; i++) {
        partner[i] = SIZE_MAX;
        out->roles[i] = ICMA_ROLE_OTHER;
        if (!icma_factor_name_parse(tensors->tensors[i].name, &factors[factor_count]))
            continue;
        factors[factor_count++].index = i;
    }
    match_factors(tensors, factors, factor_count, partner);
    status = fill_pairs(tensors, partner, out, error);
fail:
    icma_free(factors);
    icma_free(partner);
    if (status != ICMA_OK)
        icma_pairs_free(out);
    return status;
}

void icma_pairs_free(icma_pairs *pairs) {
    for (size_t i = 0; i < pairs->count; i++)
        icma_free(pairs->list[i].module);
    icma_free(pairs->list);
    icma_free(pairs->roles);
    *pairs = (icma_pairs){0};
}

/* --- scale --------------------------------------------------------------------------------------------- */

/* rank_pattern or alpha_pattern: sorted by key, so that a module costs one search for each of its dots. */
typedef struct scale_pattern {
    const char *key; /* in the cJSON tree */
    double value;
    size_t order; /* PEFT takes the first that matches */
} scale_pattern;

typedef struct scale_patterns {
    scale_pattern *list;
    size_t count;
} scale_patterns;

static int compare_patterns(const void *left, const void *right) {
    return strcmp(((const scale_pattern *)left)->key, ((const scale_pattern *)right)->key);
}

static int order_patterns(const void *left, const void *right, const void *context) {
    (void)context;
    return compare_patterns(left, right);
}

static bool usable_number(const cJSON *item) {
    return cJSON_IsNumber(item) && isfinite(item->valuedouble) && item->valuedouble != 0.0;
}

static bool read_patterns(const cJSON *config, const char *name, scale_patterns *out) {
    *out = (scale_patterns){0};
    const cJSON *object = cJSON_GetObjectItemCaseSensitive(config, name);
    size_t size = 0;
    if (!cJSON_IsObject(object) || !object->child)
        return true;
    for (const cJSON *item = object->child; item; item = item->next)
        size++;
    out->list = icma_alloc_array(size, sizeof *out->list);
    if (!out->list)
        return false;
    for (const cJSON *item = object->child; item; item = item->next) {
        if (!usable_number(item) || !item->string)
            continue;
        out->list[out->count] = (scale_pattern){item->string, item->valuedouble, out->count};
        out->count++;
    }
    icma_sort(out->list, out->count, sizeof *out->list, order_patterns, NULL);
    return true;
}

static double match_pattern(const scale_patterns *patterns, const char *module, double otherwise) {
    const scale_pattern *best = NULL;
    for (const char *tail = module; tail && patterns->count > 0;) {
        scale_pattern key = {tail, 0.0, 0};
        const scale_pattern *found =
            bsearch(&key, patterns->list, patterns->count, sizeof key, compare_patterns);
        if (found && (!best || found->order < best->order))
            best = found;
        tail = strchr(tail, '.');
        if (tail)
            tail++;
    }
    return best ? best->value : otherwise;
}

typedef struct scale_rules {
    cJSON *config;
    scale_patterns ranks, alphas;
    bool stabilised;    /* use_rslora */
    double alpha, rank; /* rank 0: not told */
} scale_rules;

static void free_scale_rules(scale_rules *rules) {
    cJSON_Delete(rules->config);
    icma_free(rules->ranks.list);
    icma_free(rules->alphas.list);
    *rules = (scale_rules){0};
}

/* A configuration that says nothing of use leaves alpha 0: every scale is 1 then. */
static icma_status read_scale_rules(const char *config, size_t config_size, scale_rules *rules) {
    *rules = (scale_rules){0};
    if (!config || config_size == 0)
        return ICMA_OK;
    icma_json_rules strict = {.max_depth = 32, .plain_integers = false};
    icma_status status = icma_json_parse(config, config_size, strict, &rules->config, NULL);
    if (status != ICMA_OK)
        return status == ICMA_E_MEMORY ? status : ICMA_OK;
    const cJSON *alpha = cJSON_GetObjectItemCaseSensitive(rules->config, "lora_alpha");
    const cJSON *rank = cJSON_GetObjectItemCaseSensitive(rules->config, "r");
    if (!alpha) /* LoHa and LoKr */
        alpha = cJSON_GetObjectItemCaseSensitive(rules->config, "alpha");
    rules->alpha = usable_number(alpha) ? alpha->valuedouble : 0.0;
    rules->rank = usable_number(rank) ? rank->valuedouble : 0.0;
    rules->stabilised = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(rules->config, "use_rslora"));
    if (read_patterns(rules->config, "rank_pattern", &rules->ranks) &&
        read_patterns(rules->config, "alpha_pattern", &rules->alphas))
        return ICMA_OK;
    free_scale_rules(rules);
    return ICMA_E_MEMORY;
}

/* Scales that no trainer writes could overflow when they are squared. */
static bool plausible_scale(double scale) {
    return fabs(scale) >= 1e-30 && fabs(scale) <= 1e30;
}

static double apply_scale_rules(const scale_rules *rules, const char *module, uint64_t rank) {
    double alpha = match_pattern(&rules->alphas, module, rules->alpha);
    double r = match_pattern(&rules->ranks, module, rank > 0 ? (double)rank : rules->rank);
    if (!(r > 0.0))
        return 1.0;
    double scale = rules->stabilised ? alpha / sqrt(r) : alpha / r;
    return plausible_scale(scale) ? scale : 1.0;
}

double icma_pair_scale(const char *config, size_t config_size, const char *module, uint64_t rank) {
    scale_rules rules;
    if (read_scale_rules(config, config_size, &rules) != ICMA_OK)
        return 1.0;
    double scale = apply_scale_rules(&rules, module, rank);
    free_scale_rules(&rules);
    return scale;
}

/* The number of "<module>.alpha", which a pair of the file may have beside it. */
static bool read_alpha(const icma_safetensors *tensors, const uint8_t *data, const icma_pair *pair,
                       double *alpha) {
    char name[ICMA_MAX_NAME + 8];
    icma_factor_name factor;
    const icma_tensor_info *a = &tensors->tensors[pair->a];
    if (!icma_factor_name_parse(a->name, &factor) || factor.module_length == 0)
        return false;
    memcpy(name, factor.module, factor.module_length);
    memcpy(name + factor.module_length, "alpha", sizeof "alpha");
    size_t at = icma_safetensors_find(tensors, name);
    if (at == SIZE_MAX || tensors->tensors[at].count != 1)
        return false;
    const icma_tensor_info *found = &tensors->tensors[at];
    return icma_element_to_double(found->dtype, data + found->begin, alpha) && isfinite(*alpha) &&
           *alpha != 0.0;
}

icma_status icma_pairs_scales_in(const icma_safetensors *tensors, const uint8_t *data, const char *config,
                                 size_t config_size, const icma_pairs *pairs, double *scales,
                                 icma_error *error) {
    icma_status status = icma_pairs_scales(config, config_size, pairs, scales, error);
    for (size_t i = 0; status == ICMA_OK && i < pairs->count; i++) {
        double alpha = 0.0;
        if (read_alpha(tensors, data, &pairs->list[i], &alpha) &&
            plausible_scale(alpha / (double)pairs->list[i].rank))
            scales[i] = alpha / (double)pairs->list[i].rank;
    }
    return status;
}

icma_status icma_pairs_scales(const char *config, size_t config_size, const icma_pairs *pairs, double *scales,
                              icma_error *error) {
    scale_rules rules;
    if (read_scale_rules(config, config_size, &rules) != ICMA_OK)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the adapter's configuration");
    for (size_t i = 0; i < pairs->count; i++)
        scales[i] = apply_scale_rules(&rules, pairs->list[i].module, pairs->list[i].rank);
    free_scale_rules(&rules);
    return ICMA_OK;
}
