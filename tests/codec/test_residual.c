/* SPDX-License-Identifier: Apache-2.0 */
/* Residual blocks (spec 4.11): steps, what is written comes back, damage is seen, and no number of threads
 * changes anything. */
#include "residual.h"

#include "memory.h"
#include "support.h"
#include "trellis.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* --- a signature, its generator and residuals ---------------------------------------------------------- */

enum { TENSORS = 6, VERBATIM = 2 };

typedef struct lab {
    support_image image;
    icma_generator g;
    uint8_t *classes; /* owned; NULL: one */
} lab;

/* Five modelled tensors and a verbatim one (2) between them; the last is long when `long_one`. */
static void make_lab(lab *l, bool long_one) {
    const support_tensor tensors[TENSORS] = {
        {.name = "a", .dtype = ICMA_F32, .rank = 2, .shape = {4, 8}},
        {.name = "b", .dtype = ICMA_F16, .rank = 2, .shape = {8, 4}},
        {.name = "c", .dtype = ICMA_I64, .rank = 1, .shape = {16}},
        {.name = "d", .dtype = ICMA_BF16, .rank = 1, .shape = {40}},
        {.name = "e", .dtype = ICMA_F32, .rank = 2, .shape = {3, 7}},
        {.name = "f", .dtype = ICMA_F16, .rank = 2, .shape = {long_one ? 1000 : 1, long_one ? 700 : 17}},
    };
    static const float scales[TENSORS] = {1, 0x1.8p-9F, 0, 0x1p-120F, 0x1.23p100F, 0.37F};
    icma_error error = {0};
    support_build_image(tensors, TENSORS, &l->image);
    l->classes = NULL;
    l->g = (icma_generator){.kind = ICMA_GENERATOR_NONE, .tensor_count = TENSORS};
    assert_int_equal(icma_generator_allocate(&l->g, &error), ICMA_OK);
    for (size_t t = 0; t < TENSORS; t++) {
        l->g.treatment[t] = t == VERBATIM ? ICMA_TREAT_VERBATIM : ICMA_TREAT_OTHER;
        l->g.scale[t] = scales[t];
    }
}

static void free_lab(lab *l) {
    free(l->classes);
    icma_generator_free(&l->g);
    support_free_image(&l->image);
}

/* Classes of all modelled weights, any of `most`, in stretches: tensors of one class and of many. */
static void make_classes(lab *l, size_t most, uint64_t seed) {
    size_t total = (size_t)icma_generator_modelled_weights(&l->g, &l->image.tensors);
    uint8_t now = ICMA_RESIDUAL_CLASSES - 1;
    free(l->classes);
    l->classes = malloc(total);
    assert_non_null(l->classes);
    for (size_t i = 0; i < total; i++) {
        if (support_uniform(&seed) < 0.3)
            now = (uint8_t)(63.99 * floor((double)most * support_uniform(&seed)) / (double)most);
        l->classes[i] = now;
    }
}

static size_t cells(const lab *l, size_t tensor) {
    return (size_t)l->image.tensors.tensors[tensor].count;
}

/* Of a tensor, which may be one that is not modelled: where there are no classes. */
static const uint8_t *classes_of(const lab *l, size_t tensor) {
    const uint8_t *at = l->classes;
    for (size_t t = 0; at && t < tensor; t++)
        at += t == VERBATIM ? 0 : cells(l, t);
    return at;
}

/* A tensor's runs, each in a random context; and its integers from symbols that lie in the order of the elements: class after class they are a sequence each. */
static void add_tensor(const lab *l, icma_residual *r, size_t i, size_t length, const int32_t *symbols, uint64_t *seed) {
    const uint8_t *classes = classes_of(l, r->list[i].tensor);
    int32_t *own = malloc((length + 1) * sizeof *own);
    assert_non_null(own);
    r->list[i].run = r->run_count;
    for (unsigned c = 0; c < (classes ? ICMA_RESIDUAL_CLASSES : 1); c++) {
        size_t count = 0;
        unsigned context = (unsigned)(support_uniform(seed) * icma_rans_contexts());
        for (size_t j = 0; j < length; j++)
            if (!classes || classes[j] == c)
                own[count++] = symbols[j];
        if (count == 0)
            continue;
        r->runs[r->run_count++] = (icma_rans_run){count, context};
        assert_true(!r->trellis || icma_trellis_expand(context, own, count));
        for (size_t j = length; j-- > 0;)
            if (!classes || classes[j] == c)
                r->integers[r->list[i].first + j] = (int16_t)own[--count];
    }
    free(own);
}

/* Residuals of these tensors. Integers of both signs, of every size that is allowed. */
static void make_residual(const lab *l, const uint32_t *tensors, size_t count, bool trellis, uint64_t seed,
                          icma_residual *r) {
    const double largest = trellis ? ICMA_TRELLIS_LARGEST : ICMA_RESIDUAL_LARGEST;
    *r = (icma_residual){.count = count, .trellis = trellis};
    for (size_t i = 0; i < count; i++)
        r->total += tensors[i] < TENSORS ? cells(l, tensors[i]) : 20;
    r->list = icma_alloc_zeroed(count + 1, sizeof *r->list);
    r->integers = icma_alloc_zeroed(r->total + 1, sizeof *r->integers);
    r->runs = icma_alloc_zeroed(count * ICMA_RESIDUAL_CLASSES + 1, sizeof *r->runs);
    int32_t *symbols = malloc((r->total + 1) * sizeof *symbols);
    assert_true(r->list && r->integers && r->runs && symbols);
    for (size_t i = 0, first = 0; i < count; i++) {
        size_t length = tensors[i] < TENSORS ? cells(l, tensors[i]) : 20;
        double spread = exp(6 * support_uniform(&seed));
        for (size_t j = 0; j < length; j++) {
            double value = round(spread * support_normal(&seed));
            if (support_uniform(&seed) < 0.01)
                value = support_uniform(&seed) < 0.5 ? -largest - trellis : largest;
            symbols[j] = (int32_t)fmax(-largest - trellis, fmin(largest, value));
        }
        r->list[i] = (icma_residual_tensor){
            .tensor = tensors[i],
            .code = (int32_t)(100 * support_uniform(&seed)) - 40,
            .first = first,
        };
        add_tensor(l, r, i, length, symbols, &seed);
        first += length;
    }
    free(symbols);
}

static icma_buffer write_block(const lab *l, const icma_residual *r) {
    icma_buffer block = {0};
    icma_error error = {0};
    if (icma_residual_write(r, &l->image.tensors, &l->g, l->classes, &block, &error) != ICMA_OK)
        fail_msg("%s", error.message);
    return block;
}

static icma_status read_block(const lab *l, const uint8_t *data, size_t size, icma_residual *out) {
    icma_error error = {0};
    memset(out, 0x5A, sizeof *out);
    icma_status status = icma_residual_read(data, size, &l->image.tensors, &l->g, l->classes, out, &error);
    assert_int_equal(status, error.status);
    if (status)
        assert_true(!out->list && !out->runs && !out->integers && !out->count && !out->run_count && !out->total);
    return status;
}

static void check_same(const icma_residual *a, const icma_residual *b) {
    assert_true(a->count == b->count && a->total == b->total && a->trellis == b->trellis && a->run_count == b->run_count);
    for (size_t i = 0; i < a->count; i++)
        assert_true(a->list[i].tensor == b->list[i].tensor && a->list[i].code == b->list[i].code &&
                    a->list[i].run == b->list[i].run && a->list[i].first == b->list[i].first);
    for (size_t i = 0; i < a->run_count; i++)
        assert_true(a->runs[i].count == b->runs[i].count && a->runs[i].context == b->runs[i].context);
    assert_memory_equal(a->integers, b->integers, a->total * sizeof *a->integers);
}

/* Whatever is read can be decoded with. */
static void check_usable(const lab *l, const icma_residual *r) {
    size_t total = 0, run = 0;
    for (size_t i = 0; i < r->count; i++) {
        const icma_residual_tensor *t = &r->list[i];
        assert_true(t->tensor < TENSORS && icma_generator_is_modelled(&l->g, t->tensor));
        assert_true(i == 0 || t->tensor > r->list[i - 1].tensor);
        assert_true(abs(t->code) <= ICMA_RESIDUAL_MOST_CODE);
        assert_int_equal(t->run, run);
        for (size_t held = 0; held < cells(l, t->tensor); held += r->runs[run++].count)
            assert_true(run < r->run_count && r->runs[run].count > 0 && r->runs[run].context < icma_rans_contexts());
        assert_true(isnormal(icma_residual_step(l->g.scale[t->tensor], t->code)));
        assert_int_equal(t->first, total);
        total += cells(l, t->tensor);
    }
    assert_int_equal(total, r->total);
    assert_int_equal(run, r->run_count);
}

/* Opened only, its streams are what a device makes the integers of. */
static void check_opened(const lab *l, const icma_buffer *block, const icma_residual *wanted) {
    const icma_ops *ops = icma_ops_reference();
    icma_residual r;
    icma_error error = {0};
    icma_tensor *tensor;
    assert_int_equal(icma_residual_open(block->data, block->size, &l->image.tensors, &l->g, NULL, &r, &error), ICMA_OK);
    assert_true(r.count == wanted->count && r.total == wanted->total && !r.integers);
    const icma_coded coded = icma_residual_coded(&r);
    int16_t *integers = malloc(r.total * sizeof *integers);
    assert_non_null(integers);
    assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_I16, r.total, &tensor, &error), ICMA_OK);
    assert_int_equal(ops->decode_integers(ops->device, &coded, 1, tensor, 0, &error), ICMA_OK);
    assert_int_equal(ops->download(ops->device, tensor, 0, integers, r.total, &error), ICMA_OK);
    assert_memory_equal(integers, wanted->integers, r.total * sizeof *integers);
    ops->release(ops->device, tensor);
    icma_residual_free(&r);
    free(integers);
}

/* --- steps --------------------------------------------------------------------------------------------- */

/* scale * 2^(code / 16), where the sixteenths are the nearest f32: everything else is exact, so one rounding
 * of a product that double holds exactly. */
static void steps_are_sixteenths_of_octaves(void **state) {
    (void)state;
    static const float scales[] = {1,         0x1.fffffep0F, 0x1.8p-9F,       0x1.23p100F, 0x1p-126F,
                                   0x1p-120F, 0x1p127F,      0x1.fffffep127F, 0.37F,       0x1.234568p-87F};
    double sixteenth[16];
    for (int i = 0; i < 16; i++) {
        long double exact = exp2l(i / 16.0L);
        float nearest = (float)exact;
        /* No other f32 is nearer. */
        assert_true(fabsl(nearest - exact) < fabsl(nextafterf(nearest, 0) - exact) &&
                    fabsl(nearest - exact) < fabsl(nextafterf(nearest, 4) - exact));
        assert_true(icma_residual_step(1, i) == nearest);
        sixteenth[i] = (double)nearest;
    }
    for (size_t s = 0; s < COUNT(scales); s++) {
        float before = 0;
        bool over = false;
        for (int32_t code = -ICMA_RESIDUAL_MOST_CODE; code <= ICMA_RESIDUAL_MOST_CODE; code++) {
            int octave = (int)floor(code / 16.0);
            float wanted = (float)ldexp((double)scales[s] * sixteenth[code - 16 * octave], octave);
            wanted = isnormal(wanted) ? wanted : 0;
            float step = icma_residual_step(scales[s], code);
            if (step != wanted)
                fail_msg("scale %a, code %d: %a, not %a", (double)scales[s], code, (double)step,
                         (double)wanted);
            /* 0 below the normal numbers, then ascending, then 0 beyond the largest. */
            assert_true(step == 0 ? before == 0 || scales[s] > 1 : step > before && !over);
            over = over || (step == 0 && before > 0);
            before = over ? 1 : step;
        }
    }
    assert_true(icma_residual_step(0x1p-126F, -1) == 0 && icma_residual_step(0x1p-126F, 0) == 0x1p-126F);
    assert_true(icma_residual_step(0x1p-87F, -ICMA_RESIDUAL_MOST_CODE) == 0 &&
                icma_residual_step(0x1p-86F, -ICMA_RESIDUAL_MOST_CODE) == 0x1p-126F);
    assert_true(icma_residual_step(0, 5) == 0);
}

/* --- blocks -------------------------------------------------------------------------------------------- */

static void blocks_come_back(void **state) {
    (void)state;
    static const uint32_t sets[][TENSORS] = {{0}, {5}, {0, 1}, {3, 5}, {0, 1, 3, 4, 5}};
    static const size_t counts[] = {1, 1, 2, 2, 5};
    lab l;
    make_lab(&l, false);
    for (uint64_t seed = 1; seed <= 80; seed++)
        for (size_t s = 0; s < COUNT(sets); s++) {
            icma_residual r, back;
            if (seed > 40)
                make_classes(&l, seed - 40, seed);
            make_residual(&l, sets[s], counts[s], seed % 2, seed, &r);
            icma_buffer block = write_block(&l, &r);
            if (read_block(&l, block.data, block.size, &back) != ICMA_OK)
                fail_msg("seed %llu, set %zu is not read", (unsigned long long)seed, s);
            check_same(&r, &back);
            check_usable(&l, &back);
            if (!l.classes)
                check_opened(&l, &block, &r);
            icma_residual_free(&back);
            icma_residual_free(&back); /* leaves it zeroed */
            icma_residual_free(&r);
            icma_buffer_free(&block);
        }
    free_lab(&l);
}

static void no_tensors_take_no_bytes(void **state) {
    (void)state;
    lab l;
    icma_residual none = {0}, back;
    make_lab(&l, false);
    icma_buffer block = write_block(&l, &none);
    assert_int_equal(block.size, 0);
    assert_int_equal(read_block(&l, NULL, 0, &back), ICMA_OK);
    assert_true(back.count == 0 && back.total == 0 && !back.list && !back.integers);
    const uint8_t zeros[4] = {0}; /* a block that says that it has none should not be there */
    for (size_t size = 1; size <= sizeof zeros; size++)
        assert_int_equal(read_block(&l, zeros, size, &back), ICMA_E_CORRUPT);
    free_lab(&l);
}

/* 700,000 integers after others: streams are cut every 2^18 of them, in the middle of a tensor. */
static void check_streams(bool trellis, bool classes) {
    static const uint32_t tensors[] = {0, 3, 5};
    lab l;
    icma_residual r, back[2];
    make_lab(&l, true);
    if (classes)
        make_classes(&l, ICMA_RESIDUAL_CLASSES, 8);
    make_residual(&l, tensors, COUNT(tensors), trellis, 7, &r);
    assert_true(r.total > 2 * ICMA_RESIDUAL_STREAM);
    icma_buffer block = write_block(&l, &r);
    for (int threads = 1; threads <= 2; threads++) {
        icma_set_threads(threads);
        icma_buffer again = write_block(&l, &r);
        assert_int_equal(again.size, block.size);
        assert_memory_equal(again.data, block.data, block.size);
        icma_buffer_free(&again);
        assert_int_equal(read_block(&l, block.data, block.size, &back[threads - 1]), ICMA_OK);
        check_same(&r, &back[threads - 1]);
    }
    /* Damage in each of the streams: the same answer from one thread and from two. */
    for (size_t place = 1; place < 40; place++) {
        size_t at = place * (block.size / 40);
        icma_status status[2];
        icma_residual bad[2];
        block.data[at] ^= 0x55;
        for (int threads = 1; threads <= 2; threads++) {
            icma_set_threads(threads);
            status[threads - 1] = read_block(&l, block.data, block.size, &bad[threads - 1]);
        }
        assert_int_equal(status[0], status[1]);
        assert_true(status[0] == ICMA_OK || status[0] == ICMA_E_CORRUPT);
        if (!status[0])
            check_same(&bad[0], &bad[1]);
        icma_residual_free(&bad[0]);
        icma_residual_free(&bad[1]);
        block.data[at] ^= 0x55;
    }
    icma_set_threads(0);
    icma_residual_free(&back[0]);
    icma_residual_free(&back[1]);
    icma_residual_free(&r);
    icma_buffer_free(&block);
    free_lab(&l);
}

static void long_tensors_have_several_streams(void **state) {
    (void)state;
    check_streams(false, false);
    check_streams(true, false);
    check_streams(true, true);
}

/* --- classes ------------------------------------------------------------------------------------------- */

/* round(v / ln 2) + 32 in the range, in double; near a tie the rounding of the product decides. */
static void classes_are_octaves_of_variance(void **state) {
    (void)state;
    uint64_t seed = 31;
    uint8_t got;
    for (int i = 0; i < 100000; i++) {
        float v = (float)(70 * support_uniform(&seed) - 35);
        double octaves = fmax(-32, fmin(31, (double)v / log(2)));
        assert_true(icma_residual_class(v, &got));
        if (fabs(fabs(octaves - floor(octaves)) - 0.5) > 1e-5)
            assert_int_equal(got, (int)floor(octaves + 0.5) + 32);
    }
    static const struct {
        float v;
        uint8_t wanted;
    } cases[] = {{0, 32}, {-0.0F, 32}, {0x1p-149F, 32}, {FLT_MAX, 63}, {-FLT_MAX, 0}, {0x1.62e43p-1F /* ln 2 */, 33}, {-0x1.62e43p-1F, 31},
                 /* times 1 / ln 2 exactly half, and a half and a bit: ties go to even */
                 {0x1.62e43p-2F, 32}, {0x1.62e434p-2F, 33}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        assert_true(icma_residual_class(cases[i].v, &got));
        assert_int_equal(got, cases[i].wanted);
    }
    assert_false(icma_residual_class(NAN, &got));
    assert_false(icma_residual_class(INFINITY, &got));
    assert_false(icma_residual_class(-INFINITY, &got));
}

/* Of one tensor of 32 elements in two classes, by hand: those of the lower class come first, and each has a context. */
static void lower_classes_come_first(void **state) {
    (void)state;
    static const uint32_t tensor = 0;
    lab l;
    icma_residual r, back;
    icma_error error = {0};
    icma_buffer wanted = {0};
    int32_t coded[32];
    make_lab(&l, false);
    make_classes(&l, 1, 1);
    make_residual(&l, &tensor, 1, false, 2, &r);
    r.run_count = 2;
    r.runs[0] = (icma_rans_run){16, 40};
    r.runs[1] = (icma_rans_run){16, 90};
    for (int i = 0; i < 32; i++) {
        l.classes[i] = i % 2 ? 7 : 50; /* odd elements first */
        r.integers[i] = (int16_t)(i - 11);
        coded[i % 2 ? i / 2 : 16 + i / 2] = i - 11;
    }
    icma_write_varint(&wanted, 2);
    icma_write_varint(&wanted, 0);
    icma_write_varint_signed(&wanted, r.list[0].code);
    icma_write_u8(&wanted, 40);
    icma_write_u8(&wanted, 90);
    assert_int_equal(icma_rans_encode(coded, r.runs, 2, &wanted, &error), ICMA_OK);
    icma_buffer block = write_block(&l, &r);
    assert_int_equal(block.size, wanted.size);
    assert_memory_equal(block.data, wanted.data, block.size);
    assert_int_equal(read_block(&l, block.data, block.size, &back), ICMA_OK);
    check_same(&r, &back);
    icma_residual_free(&back);
    icma_residual_free(&r);
    icma_buffer_free(&block);
    icma_buffer_free(&wanted);
    free_lab(&l);
}

/* --- damage -------------------------------------------------------------------------------------------- */

/* From a block of exactly this size, so that a sanitizer sees a byte too far. */
static icma_status attempt(const lab *l, const uint8_t *data, size_t size) {
    icma_residual r;
    uint8_t *copy = malloc(size + !size);
    assert_non_null(copy);
    memcpy(copy, data, size);
    icma_status status = read_block(l, copy, size, &r);
    if (status == ICMA_OK)
        check_usable(l, &r);
    else if (status != ICMA_E_CORRUPT)
        fail_msg("%s", icma_status_name(status));
    icma_residual_free(&r);
    free(copy);
    return status;
}

static void check_damage(bool trellis, bool classes) {
    static const uint32_t tensors[] = {0, 1, 3, 5};
    lab l;
    icma_residual r;
    make_lab(&l, false);
    if (classes)
        make_classes(&l, 5, 4);
    make_residual(&l, tensors, COUNT(tensors), trellis, 3, &r);
    icma_buffer block = write_block(&l, &r);
    for (size_t cut = 1; cut < block.size; cut++)
        if (attempt(&l, block.data, cut) == ICMA_OK)
            fail_msg("%zu of %zu bytes were taken for all", cut, block.size);
    for (size_t bit = 0; bit < 8 * block.size; bit++) {
        block.data[bit / 8] ^= (uint8_t)(1U << bit % 8);
        attempt(&l, block.data, block.size);
        block.data[bit / 8] ^= (uint8_t)(1U << bit % 8);
    }
    for (size_t at = 0; at < block.size; at++)
        for (unsigned value = 0; value < 256; value += 1 + value % 5) {
            uint8_t kept = block.data[at];
            block.data[at] = (uint8_t)value;
            attempt(&l, block.data, block.size);
            block.data[at] = kept;
        }
    uint8_t *longer = malloc(block.size + 1);
    assert_non_null(longer);
    memcpy(longer, block.data, block.size);
    longer[block.size] = 0;
    assert_int_equal(attempt(&l, longer, block.size + 1), ICMA_E_CORRUPT);
    free(longer);
    uint64_t random = 11;
    for (int trial = 0; trial < 20000; trial++) { /* noise after a start that is right */
        uint8_t noise[40];
        size_t size = 1 + (size_t)(support_uniform(&random) * (sizeof noise - 1));
        size_t right = (size_t)(support_uniform(&random) * 12);
        for (size_t i = 0; i < size; i++)
            noise[i] = i < right ? block.data[i] : (uint8_t)(support_uniform(&random) * 256);
        attempt(&l, noise, size);
    }
    icma_residual_free(&r);
    icma_buffer_free(&block);
    free_lab(&l);
}

static void damage_is_seen(void **state) {
    (void)state;
    check_damage(false, false);
    check_damage(true, false);
    check_damage(true, true);
}

/* The status of a block whose first tensor was changed; tensors {1, 3}. */
static icma_status spoiled(const lab *l, uint32_t tensor, int32_t code, unsigned context, int16_t integer) {
    const uint32_t tensors[] = {tensor, 3};
    icma_residual r;
    make_residual(l, tensors, tensor < 3 ? 2 : 1, false, 5, &r);
    r.list[0].code = code;
    r.runs[0].context = context;
    r.integers[r.total / 2] = integer;
    icma_buffer block = write_block(l, &r);
    icma_status status = attempt(l, block.data, block.size);
    icma_residual_free(&r);
    icma_buffer_free(&block);
    return status;
}

static void what_is_out_of_range_is_refused(void **state) {
    (void)state;
    lab l;
    make_lab(&l, false);
    assert_int_equal(spoiled(&l, 1, 0, 5, 0), ICMA_OK);
    /* Tensors: beyond the last, far beyond, one that is not modelled. */
    assert_int_equal(spoiled(&l, TENSORS, 0, 5, 0), ICMA_E_CORRUPT);
    assert_int_equal(spoiled(&l, UINT32_MAX, 0, 5, 0), ICMA_E_CORRUPT);
    assert_int_equal(spoiled(&l, VERBATIM, 0, 5, 0), ICMA_E_CORRUPT);
    /* Codes. Tensor 5 has a scale that leaves all of them normal, 3 and 4 have not. */
    assert_int_equal(spoiled(&l, 5, ICMA_RESIDUAL_MOST_CODE, 5, 0), ICMA_OK);
    assert_int_equal(spoiled(&l, 5, -ICMA_RESIDUAL_MOST_CODE, 5, 0), ICMA_OK);
    assert_int_equal(spoiled(&l, 5, ICMA_RESIDUAL_MOST_CODE + 1, 5, 0), ICMA_E_CORRUPT);
    assert_int_equal(spoiled(&l, 5, -ICMA_RESIDUAL_MOST_CODE - 1, 5, 0), ICMA_E_CORRUPT);
    assert_int_equal(spoiled(&l, 5, INT32_MAX, 5, 0), ICMA_E_CORRUPT);
    assert_int_equal(spoiled(&l, 5, INT32_MIN + 1, 5, 0), ICMA_E_CORRUPT);
    assert_int_equal(spoiled(&l, 3, -6 * 16, 5, 0), ICMA_OK); /* 2^-126 */
    assert_int_equal(spoiled(&l, 3, -6 * 16 - 1, 5, 0), ICMA_E_CORRUPT);
    assert_int_equal(spoiled(&l, 4, 27 * 16, 5, 0), ICMA_OK);
    assert_int_equal(spoiled(&l, 4, 28 * 16, 5, 0), ICMA_E_CORRUPT); /* infinite */
    /* Integers: all that int16 holds. */
    assert_int_equal(spoiled(&l, 1, 0, 5, INT16_MAX), ICMA_OK);
    assert_int_equal(spoiled(&l, 1, 0, 5, -ICMA_RESIDUAL_LARGEST), ICMA_OK);
    assert_int_equal(spoiled(&l, 1, 0, 5, INT16_MIN), ICMA_OK);
    free_lab(&l);
}

/* Integers that int16 does not hold and contexts that there are not, in a block made by hand: of tensor 0, `head` first. */
static icma_status by_hand(const lab *l, uint64_t head, unsigned context, int32_t symbol) {
    icma_buffer block = {0};
    icma_error error = {0};
    int32_t symbols[32] = {[7] = symbol};
    icma_rans_run run = {32, context < icma_rans_contexts() ? context : 0};
    icma_write_varint(&block, head);
    icma_write_varint(&block, 0);
    icma_write_varint_signed(&block, 0);
    icma_write_u8(&block, (uint8_t)context);
    assert_int_equal(icma_rans_encode(symbols, &run, 1, &block, &error), ICMA_OK);
    icma_status status = attempt(l, block.data, block.size);
    icma_buffer_free(&block);
    return status;
}

static void what_no_writer_says_is_refused(void **state) {
    (void)state;
    enum { PLAIN = 2, TRELLIS = 3 }; /* 2 n + f */
    static const int32_t wrong[] = {32768, -32769, 65536, -65536, 65537, INT32_MAX, INT32_MIN};
    lab l;
    make_lab(&l, false);
    assert_int_equal(by_hand(&l, PLAIN, 5, 32767), ICMA_OK);
    assert_int_equal(by_hand(&l, PLAIN, 60, -32768), ICMA_OK);
    for (unsigned context = 5; context < 100; context += 55) { /* with states and without */
        assert_int_equal(by_hand(&l, TRELLIS, context, 16383), ICMA_OK);
        assert_int_equal(by_hand(&l, TRELLIS, context, -16384), ICMA_OK);
        assert_int_equal(by_hand(&l, TRELLIS, context, 16384), ICMA_E_CORRUPT);
        assert_int_equal(by_hand(&l, TRELLIS, context, -16385), ICMA_E_CORRUPT);
        for (size_t i = 0; i < COUNT(wrong); i++) {
            assert_int_equal(by_hand(&l, PLAIN, context, wrong[i]), ICMA_E_CORRUPT);
            assert_int_equal(by_hand(&l, TRELLIS, context, wrong[i]), ICMA_E_CORRUPT);
        }
    }
    assert_int_equal(by_hand(&l, PLAIN, icma_rans_contexts() - 1, 3), ICMA_OK);
    assert_int_equal(by_hand(&l, PLAIN, icma_rans_contexts(), 3), ICMA_E_CORRUPT);
    assert_int_equal(by_hand(&l, TRELLIS, 255, 3), ICMA_E_CORRUPT);
    free_lab(&l);
}

/* All modelled tensors need no list, and may have one. */
static void all_tensors_need_no_list(void **state) {
    (void)state;
    static const uint32_t tensors[] = {0, 1, 3, 4, 5};
    lab l;
    make_lab(&l, false);
    for (int trellis = 0; trellis < 2; trellis++) {
        icma_residual r, back;
        make_residual(&l, tensors, COUNT(tensors), trellis, 21, &r);
        icma_buffer block = write_block(&l, &r), listed = {0};
        assert_int_equal(block.data[0], trellis);
        icma_write_varint(&listed, 2 * COUNT(tensors) + (uint64_t)trellis);
        for (size_t i = 0; i < COUNT(tensors); i++)
            icma_write_varint(&listed, tensors[i] - (i ? tensors[i - 1] + 1 : 0));
        icma_write_bytes(&listed, block.data + 1, block.size - 1);
        assert_int_equal(read_block(&l, listed.data, listed.size, &back), ICMA_OK);
        check_same(&r, &back);
        icma_residual_free(&back);
        for (size_t t = 0; t < TENSORS; t++) /* without modelled tensors there are none to mean */
            l.g.treatment[t] = ICMA_TREAT_VERBATIM;
        assert_int_equal(read_block(&l, block.data, block.size, &back), ICMA_E_CORRUPT);
        assert_int_equal(read_block(&l, listed.data, listed.size, &back), ICMA_E_CORRUPT);
        for (size_t t = 0; t < TENSORS; t++)
            l.g.treatment[t] = t == VERBATIM ? ICMA_TREAT_VERBATIM : ICMA_TREAT_OTHER;
        icma_residual_free(&r);
        icma_buffer_free(&block);
        icma_buffer_free(&listed);
    }
    free_lab(&l);
}

/* A few bytes that say they are a very long residual: refused, with little memory. */
typedef struct meter {
    size_t largest;
} meter;

static void *meter_resize(void *context, void *pointer, size_t size) {
    meter *m = context;
    m->largest = size > m->largest ? size : m->largest;
    return realloc(pointer, size);
}

static void meter_release(void *context, void *pointer) {
    (void)context;
    free(pointer);
}

static void short_blocks_do_not_make_many_tensors(void **state) {
    (void)state;
    static const uint8_t lies[][6] = {{0xFF, 0xFF, 0xFF, 0xFF, 0x0F, 0},
                                      {0x80, 0x80, 0x40, 0, 0, 0},
                                      {6, 0, 0, 0, 0, 0},
                                      {2, 0, 0, 0, 0, 0}};
    lab l;
    make_lab(&l, false);
    for (size_t i = 0; i < COUNT(lies); i++) {
        icma_residual r;
        meter m = {0};
        const icma_allocator allocator = {meter_resize, meter_release, &m};
        icma_memory_set_allocator(&allocator);
        icma_status status = read_block(&l, lies[i], sizeof lies[i], &r);
        icma_memory_set_allocator(NULL);
        assert_int_equal(status, ICMA_E_CORRUPT);
        assert_true(m.largest < 4096);
    }
    free_lab(&l);
}

/* Memory that ends at any allocation. */
static void memory_may_end(void **state) {
    (void)state;
    static const uint32_t tensors[] = {0, 1, 5};
    lab l;
    icma_residual r, back;
    make_lab(&l, false);
    make_classes(&l, 4, 10);
    make_residual(&l, tensors, COUNT(tensors), true, 9, &r);
    icma_buffer block = write_block(&l, &r);
    for (int reading = 0; reading < 2; reading++) {
        icma_status status = ICMA_E_MEMORY;
        for (size_t k = 0; status; k++) {
            support_budget budget = {k, 0};
            icma_buffer out = {0};
            icma_error error = {0};
            support_limit_memory(&budget);
            if (reading) {
                status = read_block(&l, block.data, block.size, &back);
                icma_residual_free(&back);
            } else {
                status = icma_residual_write(&r, &l.image.tensors, &l.g, l.classes, &out, &error);
                icma_buffer_free(&out);
            }
            support_limit_memory(NULL);
            assert_int_equal(budget.live, 0);
            assert_true((status == ICMA_OK && k > 2) || status == ICMA_E_MEMORY);
        }
    }
    icma_residual_free(&r);
    icma_buffer_free(&block);
    free_lab(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_are_sixteenths_of_octaves),
        cmocka_unit_test(blocks_come_back),
        cmocka_unit_test(no_tensors_take_no_bytes),
        cmocka_unit_test(long_tensors_have_several_streams),
        cmocka_unit_test(classes_are_octaves_of_variance),
        cmocka_unit_test(lower_classes_come_first),
        cmocka_unit_test(damage_is_seen),
        cmocka_unit_test(what_is_out_of_range_is_refused),
        cmocka_unit_test(what_no_writer_says_is_refused),
        cmocka_unit_test(all_tensors_need_no_list),
        cmocka_unit_test(short_blocks_do_not_make_many_tensors),
        cmocka_unit_test(memory_may_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
