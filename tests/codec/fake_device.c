/* SPDX-License-Identifier: Apache-2.0 */
#include "fake_device.h"

#include "ops_host.h"
#include "support.h"

#include <stdlib.h>

/* One op with its arguments, in their order by kind. */
typedef struct call {
    void (*run)(const struct call *call);
    icma_matrix m[11];
    float f[2];
    bool b[2];
    icma_conv shape;
    icma_activation act;
    size_t size;
    icma_tensor *t;
} call;

struct icma_recording {
    call *list;
    size_t count;
};

static fake_device *fake;
static icma_recording *open_recording; /* NULL: ops run as they come */

static void note(call c) {
    icma_recording *r = open_recording;
    if (!r) {
        c.run(&c);
        return;
    }
    r->list = realloc(r->list, (r->count + 1) * sizeof *r->list);
    assert_non_null(r->list);
    r->list[r->count++] = c;
}

/* An op as it is recorded: its name, its parameters, how they are packed, and how they are handed on. */
#define OP(name, parameters, packed, arguments)                                                              \
    static void run_##name(const call *c) {                                                                  \
        const icma_ops *o = icma_ops_cpu();                                                                  \
        o->name arguments;                                                                                   \
    }                                                                                                        \
    static void fake_##name parameters {                                                                     \
        (void)device;                                                                                        \
        note((call)packed);                                                                                  \
    }
#define P(...)                                                                                               \
    { .run = __VA_ARGS__ }
#define D o->device

OP(gemm,
   (void *device, float alpha, icma_matrix a, bool ta, icma_matrix b, bool tb, float beta, icma_matrix c),
   P(run_gemm, .f = {alpha, beta}, .b = {ta, tb}, .m = {a, b, c}),
   (D, c->f[0], c->m[0], c->b[0], c->m[1], c->b[1], c->f[1], c->m[2]))
OP(add_row, (void *device, icma_matrix a, icma_matrix b), P(run_add_row, .m = {a, b}), (D, c->m[0], c->m[1]))
OP(sum_rows, (void *device, icma_matrix a, icma_matrix b), P(run_sum_rows, .m = {a, b}),
   (D, c->m[0], c->m[1]))
OP(axpy, (void *device, float f, icma_matrix a, icma_matrix b), P(run_axpy, .f = {f}, .m = {a, b}),
   (D, c->f[0], c->m[0], c->m[1]))
OP(fill, (void *device, float f, icma_matrix a), P(run_fill, .f = {f}, .m = {a}), (D, c->f[0], c->m[0]))
OP(reparameterise, (void *device, icma_matrix a, icma_matrix b, icma_matrix n, icma_matrix z),
   P(run_reparameterise, .m = {a, b, n, z}), (D, c->m[0], c->m[1], c->m[2], c->m[3]))
OP(latent_backward,
   (void *device, icma_matrix a, icma_matrix b, icma_matrix n, icma_matrix dz, float w, icma_matrix x,
    icma_matrix y),
   P(run_latent_backward, .f = {w}, .m = {a, b, n, dz, x, y}),
   (D, c->m[0], c->m[1], c->m[2], c->m[3], c->f[0], c->m[4], c->m[5]))
OP(kl, (void *device, icma_matrix a, icma_matrix b, icma_matrix out), P(run_kl, .m = {a, b, out}),
   (D, c->m[0], c->m[1], c->m[2]))
OP(squared_error, (void *device, icma_matrix a, icma_matrix b, icma_matrix w, icma_matrix out),
   P(run_squared_error, .m = {a, b, w, out}), (D, c->m[0], c->m[1], c->m[2], c->m[3]))
OP(squared_error_backward,
   (void *device, icma_matrix a, icma_matrix b, icma_matrix w, float f, icma_matrix out),
   P(run_squared_error_backward, .f = {f}, .m = {a, b, w, out}),
   (D, c->m[0], c->m[1], c->m[2], c->f[0], c->m[3]))
OP(gaussian_nll, (void *device, icma_matrix a, icma_matrix b, icma_matrix out),
   P(run_gaussian_nll, .m = {a, b, out}), (D, c->m[0], c->m[1], c->m[2]))
OP(gaussian_nll_backward, (void *device, icma_matrix a, icma_matrix b, float f, icma_matrix out),
   P(run_gaussian_nll_backward, .f = {f}, .m = {a, b, out}), (D, c->m[0], c->m[1], c->f[0], c->m[2]))
OP(conv_down, (void *device, icma_conv s, icma_matrix x, icma_matrix w, icma_matrix y),
   P(run_conv_down, .shape = s, .m = {x, w, y}), (D, c->shape, c->m[0], c->m[1], c->m[2]))
OP(conv_up, (void *device, icma_conv s, icma_matrix x, icma_matrix w, icma_matrix b, icma_matrix y),
   P(run_conv_up, .shape = s, .m = {x, w, b, y}), (D, c->shape, c->m[0], c->m[1], c->m[2], c->m[3]))
OP(conv, (void *device, icma_conv s, icma_matrix x, icma_matrix w, icma_matrix b, icma_matrix y),
   P(run_conv, .shape = s, .m = {x, w, b, y}), (D, c->shape, c->m[0], c->m[1], c->m[2], c->m[3]))
OP(turn_weights, (void *device, icma_conv s, icma_matrix w, bool flip, icma_matrix out),
   P(run_turn_weights, .shape = s, .b = {flip}, .m = {w, out}), (D, c->shape, c->m[0], c->b[0], c->m[1]))
OP(conv_weights,
   (void *device, icma_conv s, size_t stride, icma_matrix x, icma_matrix y, bool turned, icma_tensor *scratch,
    icma_matrix g),
   P(run_conv_weights, .shape = s, .size = stride, .b = {turned}, .t = scratch, .m = {x, y, g}),
   (D, c->shape, c->size, c->m[0], c->m[1], c->b[0], c->t, c->m[2]))
OP(batch_norm,
   (void *device, icma_matrix x, icma_matrix g, icma_matrix b, float e, icma_activation act, icma_matrix mean,
    icma_matrix variance, icma_matrix y),
   P(run_batch_norm, .f = {e}, .act = act, .m = {x, g, b, mean, variance, y}),
   (D, c->m[0], c->m[1], c->m[2], c->f[0], c->act, c->m[3], c->m[4], c->m[5]))
OP(batch_norm_backward,
   (void *device, icma_matrix x, icma_matrix g, icma_matrix b, float e, icma_activation act, icma_matrix mean,
    icma_matrix variance, icma_matrix dy, icma_matrix dg, icma_matrix db, icma_matrix dx),
   P(run_batch_norm_backward, .f = {e}, .act = act, .m = {x, g, b, mean, variance, dy, dg, db, dx}),
   (D, c->m[0], c->m[1], c->m[2], c->f[0], c->act, c->m[3], c->m[4], c->m[5], c->m[6], c->m[7], c->m[8]))
OP(blend, (void *device, float keep, float add, icma_matrix x, icma_matrix y),
   P(run_blend, .f = {keep, add}, .m = {x, y}), (D, c->f[0], c->f[1], c->m[0], c->m[1]))

static icma_status fake_alloc(void *device, icma_element element, size_t count, icma_tensor **out,
                              icma_error *error) {
    (void)device;
    *out = NULL;
    assert_null(open_recording);
    size_t k = ++fake->allocations;
    bool fails = fake->fails_at && (k == fake->fails_at || (fake->fails_on && k > fake->fails_at));
    if (fails || (fake->largest && count > fake->largest / icma_element_size(element)))
        return icma_fail(error, ICMA_E_MEMORY, NULL, "the fake device has no memory for %zu elements", count);
    icma_status status = icma_ops_cpu()->alloc(icma_ops_cpu()->device, element, count, out, error);
    fake->live += !status;
    return status;
}

static void fake_release(void *device, icma_tensor *tensor) {
    (void)device;
    assert_null(open_recording);
    fake->live -= tensor != NULL;
    icma_ops_cpu()->release(icma_ops_cpu()->device, tensor);
}

static icma_status fake_upload(void *device, icma_tensor *to, size_t offset, const void *from, size_t count,
                               icma_error *error) {
    (void)device;
    assert_null(open_recording);
    fake->uploaded += count;
    return icma_ops_cpu()->upload(icma_ops_cpu()->device, to, offset, from, count, error);
}

static icma_status fake_download(void *device, const icma_tensor *from, size_t offset, void *to, size_t count,
                                 icma_error *error) {
    (void)device;
    assert_null(open_recording);
    fake->downloads++;
    return icma_ops_cpu()->download(icma_ops_cpu()->device, from, offset, to, count, error);
}

static void fake_forget(void *device, icma_recording *recording) {
    (void)device;
    if (recording)
        free(recording->list);
    fake->recordings -= recording != NULL;
    free(recording);
}

static icma_status fake_record(void *device, icma_error *error) {
    (void)device, (void)error;
    assert_null(open_recording);
    open_recording = calloc(1, sizeof *open_recording);
    assert_non_null(open_recording);
    fake->recordings++;
    return ICMA_OK;
}

static icma_status fake_recorded(void *device, icma_recording **out, icma_error *error) {
    assert_non_null(open_recording);
    *out = open_recording;
    open_recording = NULL;
    if (!fake->refuses)
        return ICMA_OK;
    fake_forget(device, *out);
    *out = NULL;
    return icma_fail(error, ICMA_E_MEMORY, NULL, "the fake device records nothing");
}

static icma_status fake_replay(void *device, icma_recording *recording, icma_error *error) {
    (void)device, (void)error;
    assert_non_null(recording);
    for (size_t i = 0; i < recording->count; i++)
        recording->list[i].run(&recording->list[i]);
    fake->replays++;
    return ICMA_OK;
}

const icma_ops *fake_device_open(fake_device *device, size_t room) {
    static icma_ops table;
    fake = device;
    table = *icma_ops_cpu();
    table.name = "fake:0";
    table.room = room;
    table.alloc = fake_alloc;
    table.release = fake_release;
    table.upload = fake_upload;
    table.download = fake_download;
    table.record = fake_record;
    table.recorded = fake_recorded;
    table.replay = fake_replay;
    table.forget = fake_forget;
    table.gemm = fake_gemm;
    table.add_row = fake_add_row;
    table.sum_rows = fake_sum_rows;
    table.axpy = fake_axpy;
    table.fill = fake_fill;
    table.reparameterise = fake_reparameterise;
    table.latent_backward = fake_latent_backward;
    table.kl = fake_kl;
    table.squared_error = fake_squared_error;
    table.squared_error_backward = fake_squared_error_backward;
    table.gaussian_nll = fake_gaussian_nll;
    table.gaussian_nll_backward = fake_gaussian_nll_backward;
    table.conv_down = fake_conv_down;
    table.conv_up = fake_conv_up;
    table.conv = fake_conv;
    table.turn_weights = fake_turn_weights;
    table.conv_weights = fake_conv_weights;
    table.batch_norm = fake_batch_norm;
    table.batch_norm_backward = fake_batch_norm_backward;
    table.blend = fake_blend;
    return &table;
}
