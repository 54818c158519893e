/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever is packed, at whatever bound: what comes back holds it, or is the same bits. Random trees of
 * adversarial adapters under random options; everything is measured on the decoded files, from the definition
 * of the bound (packing.h).
 *
 * ctest runs a few hundred cases. For a long run: ICMA_PROPERTY_CASES=5000 ICMA_PROPERTY_SEED=1000000
 * icma_test_codec_properties. Case i has the seed ICMA_PROPERTY_SEED + i, and a failure names its own:
 * ICMA_PROPERTY_CASES=1 with that seed is the same case.
 */
#include "packing.h"

#include "compress.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { USUAL_CASES = 200, USUAL_SEED = 1, NAME = 96, MOST_TASKS = 4, MOST_CHECKPOINTS = 64 };

/* --- random things ------------------------------------------------------------------------------------- */

static size_t pick(uint64_t *r, size_t bound) {
    return (size_t)(support_uniform(r) * (double)bound);
}

static bool chance(uint64_t *r, double share) {
    return support_uniform(r) < share;
}

/* Log-uniform. */
static double between(uint64_t *r, double low, double high) {
    return low * pow(high / low, support_uniform(r));
}

/* --- tensors ------------------------------------------------------------------------------------------- */

/* What a tensor is like in all checkpoints, and what may happen to it in one. */
typedef enum kind {
    SERIES,    /* a start, and small steps from it */
    UNRELATED, /* nothing in common */
    SAME,      /* the very same in all */
    CONSTANT,  /* one number throughout */
    ZERO,
    NEGATIVE_ZERO,
    OUTLIER, /* one weight that is far out */
    NOT_A_NUMBER,
    INFINITE,
    DENORMAL,
    HUGE_ONES, /* near the largest number of the dtype */
    TINY,      /* near the smallest normal number */
    LOW_RANK,  /* rank 1 */
    SPARSE,    /* mostly zeros, of both signs */
    INTEGERS,  /* few distinct numbers */
    KINDS
} kind;

typedef struct tensor {
    char name[NAME];
    icma_dtype dtype;
    unsigned rank;
    uint64_t shape[3];
    size_t count;
    kind kind;
    double size, step; /* of a typical weight; of what moves */
    double odd;        /* chance that a checkpoint has something else in this tensor */
} tensor;

typedef struct plan {
    uint64_t seed;
    tensor *tensors;
    size_t count;
    size_t tasks, checkpoints[MOST_TASKS];
    bool shifted; /* tasks have a start of their own */
    icma_pack_options options;
} plan;

static const icma_dtype modelled[] = {ICMA_F32, ICMA_F16, ICMA_BF16};
static const icma_dtype others[] = {ICMA_F64, ICMA_I64,  ICMA_I32,     ICMA_I16, ICMA_I8,
                                    ICMA_U8,  ICMA_BOOL, ICMA_F8_E4M3, ICMA_C64};

static kind any_kind(uint64_t *r) {
    double u = support_uniform(r);
    return u < 0.5 ? SERIES : u < 0.6 ? UNRELATED : (kind)pick(r, KINDS);
}

static void set_tensor(uint64_t *r, tensor *t, icma_dtype dtype, unsigned rank, uint64_t rows,
                       uint64_t columns) {
    t->dtype = dtype;
    t->rank = rank;
    t->shape[0] = rows;
    t->shape[1] = columns;
    t->count = rank == 0 ? 1 : (size_t)(rank == 1 ? rows : rows * columns);
    t->kind = any_kind(r);
    t->size = between(r, 1e-4, 10);
    t->step = chance(r, 0.3) ? 0 : between(r, 1e-4, 0.5);
    t->odd = chance(r, 0.1) ? 0.3 : chance(r, 0.1) ? 0.02 : 0;
}

/* A pair; what PEFT calls embeddings and DoRA's magnitude beside it, now and then. */
static size_t add_module(uint64_t *r, plan *p, size_t m, bool small, icma_dtype dtype) {
    size_t rank = small ? 1 + pick(r, 3) : 1 + pick(r, 12), in = small ? 1 + pick(r, 12) : 1 + pick(r, 70),
           out = small ? 1 + pick(r, 12) : 1 + pick(r, 70), first = p->count;
    for (int b = 0; b < 2; b++) {
        tensor *t = &p->tensors[p->count++];
        set_tensor(r, t, chance(r, 0.1) ? modelled[pick(r, 3)] : dtype, 2, b ? out : rank, b ? rank : in);
        snprintf(t->name, NAME, "base_model.model.layers.%zu.q_proj.lora_%c.weight", m, b ? 'B' : 'A');
    }
    if (!small && chance(r, 0.2)) {
        tensor *t = &p->tensors[p->count++];
        set_tensor(r, t, dtype, 1, out, 0);
        snprintf(t->name, NAME, "base_model.model.layers.%zu.q_proj.lora_magnitude_vector", m);
    }
    return p->count - first;
}

/* What is no pair: other dtypes, scalars, nothing at all, modules that were trained whole, half a pair. */
static void add_other(uint64_t *r, plan *p, size_t i) {
    tensor *t = &p->tensors[p->count++];
    bool number = chance(r, 0.5);
    icma_dtype dtype = number ? modelled[pick(r, 3)] : others[pick(r, sizeof others / sizeof *others)];
    switch (pick(r, 5)) {
    case 0:
        set_tensor(r, t, dtype, 0, 0, 0);
        snprintf(t->name, NAME, "other.%zu.scalar", i);
        break;
    case 1:
        set_tensor(r, t, dtype, 2, pick(r, 2) ? 0 : 3, 0);
        snprintf(t->name, NAME, "other.%zu.nothing", i);
        break;
    case 2:
        set_tensor(r, t, dtype, 2, 1 + pick(r, 20), 1 + pick(r, 20));
        snprintf(t->name, NAME, "other.%zu.modules_to_save.weight", i);
        break;
    case 3:
        set_tensor(r, t, dtype, 1, 1 + pick(r, 90), 0);
        snprintf(t->name, NAME, "other.%zu.lora_vector", i);
        break;
    default:
        set_tensor(r, t, dtype, 2, 1 + pick(r, 9), 1 + pick(r, 40));
        snprintf(t->name, NAME, "other.%zu.lora_%c.weight", i, pick(r, 2) ? 'A' : 'B'); /* no partner */
    }
}

static void any_options(uint64_t *r, icma_pack_options *o) {
    *o = icma_pack_defaults();
    o->epochs = 1 + pick(r, 4);
    o->latent_dim = pick(r, 6);
    o->threads = 1 + (int)pick(r, 3);
    o->scalar = chance(r, 0.15);
    o->seed = pick(r, 1000);
    o->keep_last_only = chance(r, 0.1);
    o->train_last = chance(r, 0.1) ? 1 + pick(r, 3) : 0;
    o->components = chance(r, 0.1) ? 1 + pick(r, 4) : 0;
    o->explain = chance(r, 0.1) ? support_uniform(r) : 0;
    o->bound.kind = (icma_bound_kind)(ICMA_BOUND_DW + pick(r, 3));
    o->bound.value = (float)(chance(r, 0.8) ? between(r, 1e-3, 0.5) : between(r, 1e-9, 30));
    static const icma_tier usual[] = {ICMA_TIER_BOUNDED, ICMA_TIER_BOUNDED, ICMA_TIER_LOSSLESS};
    o->tier = chance(r, 0.9) ? usual[pick(r, 3)] : chance(r, 0.5) ? ICMA_TIER_LATENT : ICMA_TIER_GENERATE;
    o->generator = (icma_generator_choice)pick(r, o->tier >= ICMA_TIER_BOUNDED ? 3 : 2);
    if (chance(r, 0.5)) /* chains of one checkpoint and of few */
        o->restart = 1 + pick(r, 6);
    if (chance(r, 0.05))
        o->loss = ICMA_LOSS_PAPER;
}

static void make_plan(uint64_t seed, plan *p) {
    uint64_t random = seed * 0x9E3779B97F4A7C15u, *r = &random;
    bool many = chance(r, 0.004);
    size_t modules = many ? 200 + pick(r, 2300) : 1 + pick(r, 5), rest = chance(r, 0.4) ? pick(r, 5) : 0;
    *p = (plan){.seed = seed, .tasks = many ? 1 : 1 + pick(r, MOST_TASKS), .shifted = chance(r, 0.8)};
    p->tensors = calloc(3 * modules + rest, sizeof *p->tensors);
    assert_non_null(p->tensors);
    icma_dtype dtype = modelled[pick(r, 3)];
    for (size_t m = 0; m < modules; m++)
        add_module(r, p, m, many || chance(r, 0.2), dtype);
    for (size_t i = 0; i < rest; i++)
        add_other(r, p, i);
    bool all = chance(r, 0.1); /* one kind for all */
    kind only = (kind)pick(r, KINDS);
    for (size_t t = 0; all && t < p->count; t++)
        p->tensors[t].kind = only;
    for (size_t t = 0; t < p->tasks; t++)
        p->checkpoints[t] = many              ? 1 + pick(r, 2)
                            : chance(r, 0.05) ? 1 + pick(r, MOST_CHECKPOINTS / p->tasks)
                                              : 1 + pick(r, 6);
    any_options(r, &p->options);
}

/* --- files --------------------------------------------------------------------------------------------- */

static double largest_of(icma_dtype dtype) {
    return dtype == ICMA_F16 ? 65504 : (double)FLT_MAX;
}

static double smallest_of(icma_dtype dtype) {
    return dtype == ICMA_F16 ? 0x1p-14 : (double)FLT_MIN;
}

static void fill_series(const tensor *t, uint64_t start, uint64_t own, float *x) {
    double scale = support_normal(&own);
    uint64_t direction = start + 17;
    for (size_t i = 0; i < t->count; i++) {
        double move = scale * support_normal(&direction) + 0.1 * support_normal(&own);
        x[i] = (float)(t->size * (support_normal(&start) + t->step * move));
    }
}

static void fill_sparse(const tensor *t, uint64_t own, float *x) {
    for (size_t i = 0; i < t->count; i++)
        x[i] = chance(&own, 0.03)  ? (float)(t->size * support_normal(&own))
               : chance(&own, 0.5) ? 0.0F
                                   : -0.0F;
}

/* start: of this tensor (and task); own: of this checkpoint, too. */
static void fill(const tensor *t, kind what, uint64_t start, uint64_t own, float *x) {
    fill_series(t, start, own, x);
    uint64_t r = own + 5;
    size_t place = t->count ? pick(&r, t->count) : 0;
    float factor = 1;
    switch (what) {
    case SERIES:
        break;
    case UNRELATED:
        fill_series(t, own, own, x);
        break;
    case SAME:
        fill_series(t, start, start, x);
        break;
    case LOW_RANK: {
        size_t columns = t->rank == 2 ? (size_t)t->shape[1] : 1;
        for (size_t i = 0; i < t->count; i++) {
            uint64_t row = start + i / columns, column = own + 1000003 * (i % columns);
            x[i] = (float)(t->size * support_normal(&row) * support_normal(&column));
        }
        break;
    }
    case SPARSE:
        fill_sparse(t, own, x);
        break;
    case CONSTANT:
    case ZERO:
    case NEGATIVE_ZERO:
    case DENORMAL:
    case HUGE_ONES:
    case TINY:
    case INTEGERS:
        for (size_t i = 0; i < t->count; i++) {
            double u = support_uniform(&r);
            double sign = support_uniform(&r) < 0.5 ? -1 : 1;
            x[i] = what == CONSTANT        ? (float)t->size
                   : what == ZERO          ? 0.0F
                   : what == NEGATIVE_ZERO ? -0.0F
                   : what == DENORMAL      ? (float)(sign * u * smallest_of(t->dtype))
                   : what == HUGE_ONES     ? (float)(sign * (0.5 + u / 2) * largest_of(t->dtype))
                   : what == TINY          ? (float)(sign * (1 + 8 * u) * smallest_of(t->dtype))
                                           : (float)(floor(5 * u) - 2);
        }
        break;
    case OUTLIER:
        factor = (float)between(&r, 1e2, t->dtype == ICMA_F16 ? 1e3 : 1e12);
        break;
    case NOT_A_NUMBER:
        factor = chance(&r, 0.5) ? NAN : -NAN;
        break;
    case INFINITE:
        factor = chance(&r, 0.5) ? INFINITY : -INFINITY;
        break;
    case KINDS:
        break;
    }
    if (t->count && factor != 1)
        x[place] = isfinite(factor) ? x[place] * factor : factor;
}

static void write_checkpoint(const char *root, const plan *p, size_t task, size_t checkpoint) {
    support_tensor *list = calloc(p->count, sizeof *list);
    char name[8] = {(char)('a' + task), 0};
    assert_non_null(list);
    for (size_t i = 0; i < p->count; i++) {
        const tensor *t = &p->tensors[i];
        uint64_t start = (p->seed * 8191 + i * 31 + (p->shifted ? task : 0)) * 0x9E3779B97F4A7C15u;
        uint64_t own = start + (task * 977 + checkpoint + 1) * 0xD1B54A32D192ED03u, odd = own + 3;
        list[i] = (support_tensor){
            .name = t->name, .dtype = t->dtype, .rank = t->rank, .shape = {t->shape[0], t->shape[1]}};
        if (icma_dtype_is_modelled(t->dtype)) {
            float *x = malloc((t->count + 1) * sizeof *x);
            assert_non_null(x);
            fill(t, chance(&odd, t->odd) ? (kind)pick(&odd, KINDS) : t->kind, start, own, x);
            list[i].values = x;
        } else {
            uint8_t *bytes = malloc(t->count * 16 + 1);
            assert_non_null(bytes);
            for (size_t b = 0; b < t->count * 16; b++)
                bytes[b] = t->dtype == ICMA_BOOL ? (uint8_t)pick(&own, 2) : (uint8_t)pick(&own, 256);
            list[i].bytes = bytes;
        }
    }
    packing_write_tensors(root, name, 1 + checkpoint, list, p->count);
    for (size_t i = 0; i < p->count; i++) {
        free((void *)list[i].values);
        free((void *)list[i].bytes);
    }
    free(list);
}

static void write_plan(const char *root, const plan *p) {
    uint64_t r = p->seed + 99;
    bool conditions = chance(&r, 0.2);
    for (size_t t = 0; t < p->tasks; t++) {
        char name[8] = {(char)('a' + t), 0};
        for (size_t c = 0; c < p->checkpoints[t]; c++)
            write_checkpoint(root, p, t, c);
        if (conditions && chance(&r, 0.7)) {
            float *vector = support_normals(&r, 9);
            packing_write_npy(root, name, vector, 9);
            support_free(vector);
        }
    }
}

/* --- what must hold ------------------------------------------------------------------------------------ */

static void print_case(const plan *p) {
    const icma_pack_options *o = &p->options;
    print_message("           case ICMA_PROPERTY_SEED=%llu: %zu tensors, %zu tasks of %zu ..; tier %s, %s "
                  "%g, generator %d, components %zu, keep last %d, "
                  "train last %zu, threads %d, scalar %d, latents %zu, restart %zu\n",
                  (unsigned long long)p->seed, p->count, p->tasks, p->checkpoints[0], icma_tier_name(o->tier),
                  icma_bound_name(o->bound.kind), (double)o->bound.value, (int)o->generator, o->components,
                  o->keep_last_only, o->train_last, o->threads, o->scalar, o->latent_dim,
                  o->restart);
}

#define MUST(condition)                                                                                      \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            print_case(p);                                                                                   \
            fail_msg("%s", #condition);                                                                      \
        }                                                                                                    \
    } while (0)

/* Tier lossless: the file, bit for bit. */
static void check_lossless(const plan *p, const icma_checkpoint_info *info, const uint8_t *original,
                           const icma_decoded *decoded) {
    MUST(info->bound.kind == ICMA_BOUND_NONE);
    MUST(memcmp(original, decoded->data, decoded->size) == 0);
    MUST(info->relative_error == 0 && info->dw_error_mean == 0 && info->dw_error_max == 0);
}

static void check_bounded(const plan *p, const icma_checkpoint_info *info, const uint8_t *original,
                          const icma_decoded *decoded) {
    const icma_bound bound = p->options.bound;
    MUST(info->bound.kind == bound.kind && info->bound.value == bound.value);
    double error = packing_bound_error(original, decoded->data, decoded->size, bound.kind);
    if (!packing_within(error, bound)) {
        print_case(p);
        fail_msg("%s %g, but it is %g", icma_bound_name(bound.kind), (double)bound.value, error);
    }
}

static void check_checkpoint(const plan *p, const icma_checkpoint_info *info, const uint8_t *original,
                             size_t size, const icma_decoded *decoded) {
    MUST(decoded->size == size && info->file_size == size &&
         info->hash == icma_hash(decoded->data, decoded->size));
    MUST(info->tier == p->options.tier ||
         (info->tier == ICMA_TIER_VERBATIM && p->options.tier != ICMA_TIER_LOSSLESS));
    if (info->tier == ICMA_TIER_BOUNDED)
        check_bounded(p, info, original, decoded);
    if (info->tier == ICMA_TIER_LOSSLESS)
        check_lossless(p, info, original, decoded);
    if (info->tier == ICMA_TIER_VERBATIM)
        MUST(memcmp(original, decoded->data, size) == 0);
}

static size_t kept_of(const plan *p, size_t task) {
    size_t all = p->checkpoints[task], last = p->options.train_last;
    return p->options.keep_last_only ? 1 : last && last < all ? last : all;
}

static void check_task(const char *root, const plan *p, icma_bundle *bundle, icma_bundle *other,
                       size_t task) {
    icma_task_info info;
    icma_error error = {0};
    icma_decoded decoded, again;
    MUST(icma_bundle_task(bundle, task, &info, &error) == ICMA_OK);
    MUST(info.checkpoint_count == kept_of(p, task));
    for (size_t c = 0; c < info.checkpoint_count; c++) {
        size_t size;
        uint8_t *original = packing_original(root, info.name, info.checkpoints[c].step, &size);
        MUST(info.checkpoints[c].step == p->checkpoints[task] - info.checkpoint_count + c + 1);
        icma_status status = icma_bundle_decode(bundle, task, c, &decoded, &error);
        if (status) {
            print_case(p);
            fail_msg("%s, checkpoint %zu: %s: %s", info.name, c, icma_status_name(status), error.message);
        }
        check_checkpoint(p, &info.checkpoints[c], original, size, &decoded);
        if (c == 0) { /* by the reference: the same bits */
            MUST(icma_bundle_decode(other, task, c, &again, &error) == ICMA_OK);
            MUST(again.size == decoded.size && memcmp(again.data, decoded.data, again.size) == 0);
            icma_decoded_free(&again);
        }
        icma_decoded_free(&decoded);
        free(original);
    }
}

static void check_archive(const char *root, const plan *p, const icma_pack_result *result) {
    icma_bundle *bundle = packing_open(root, "b.icma", icma_ops_cpu()),
                *other = packing_open(root, "b.icma", icma_ops_reference());
    const icma_bytes *b = &result->bytes;
    MUST(icma_bundle_task_count(bundle) == p->tasks && result->task_count == p->tasks);
    MUST(b->generator + b->conditions + b->latents + b->residuals + b->verbatim + b->index + b->metadata ==
         b->total);
    MUST(p->options.generator != ICMA_CHOOSE_NONE || !result->has_generator);
    for (size_t t = 0; t < p->tasks; t++)
        check_task(root, p, bundle, other, t);
    for (size_t s = 0; s < icma_bundle_section_count(bundle); s++) {
        icma_error error = {0};
        MUST(icma_bundle_check_section(bundle, s, &error) == ICMA_OK);
    }
    icma_bundle_close(bundle);
    icma_bundle_close(other);
}

static void run_case(uint64_t seed) {
    plan made, *p = &made;
    icma_pack_result result;
    icma_error error = {0};
    char *root = support_new_folder();
    make_plan(seed, p);
    write_plan(root, p);
    icma_status status = packing_try(root, "b.icma", &p->options, &result, &error);
    if (status) {
        print_case(p);
        fail_msg("%s: %s: %s", icma_status_name(status), error.file, error.message);
    }
    check_archive(root, p, &result);
    icma_pack_result_free(&result);
    packing_check_folder(root, "b.icma");
    support_remove_tree(root);
    free(p->tensors);
}

static uint64_t wish(const char *name, uint64_t usual) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 10) : usual;
}

static void what_is_packed_comes_back(void **state) {
    (void)state;
    uint64_t cases = wish("ICMA_PROPERTY_CASES", USUAL_CASES), seed = wish("ICMA_PROPERTY_SEED", USUAL_SEED);
    for (uint64_t i = 0; i < cases; i++) {
        run_case(seed + i);
        if (cases > 4 * USUAL_CASES && (i + 1) % 500 == 0)
            print_message("           %llu cases\n", (unsigned long long)(i + 1));
    }
    icma_set_threads(0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_packed_comes_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
