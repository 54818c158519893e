/* SPDX-License-Identifier: Apache-2.0 */
#include "generator.h"

#include "coarse.h"
#include "memory.h"
#include "numbers.h"

#include <math.h>
#include <string.h>

void icma_trunk_shape(const icma_generator *g, icma_trunk_part part, size_t *rows, size_t *columns) {
    const size_t inputs = g->latent + g->coordinates;
    const size_t shapes[ICMA_TRUNK_PARTS][2] = {
        {inputs, g->hidden}, {1, g->hidden}, {g->hidden, g->hidden}, {1, g->hidden},
        {g->hidden, g->total}, {inputs, g->total}, {1, g->total},
    };
    *rows = shapes[part][0];
    *columns = shapes[part][1];
}

size_t icma_generator_first(const icma_generator *generator, size_t role) {
    size_t first = 0;
    for (size_t r = 0; r < role; r++)
        first += generator->components[r];
    return first;
}

size_t icma_generator_trunk_parameters(const icma_generator *generator) {
    size_t sum = 0;
    for (int part = 0; part < ICMA_TRUNK_PARTS; part++) {
        size_t rows, columns;
        icma_trunk_shape(generator, part, &rows, &columns);
        sum += rows * columns;
    }
    return sum;
}

size_t icma_generator_network_parameters(const icma_generator *g) {
    const icma_denoiser *d = &g->denoiser;
    size_t denoiser = (d->latent + d->coordinates + d->embedding + 2 * d->hidden + 3) * d->hidden + (d->hidden + 1) * d->latent;
    return g->kind == ICMA_GENERATOR_CONV ? icma_conv_decoder_parameters(&g->conv) + denoiser : 0;
}

bool icma_generator_is_modelled(const icma_generator *generator, size_t tensor) {
    return generator->treatment[tensor] != ICMA_TREAT_VERBATIM;
}

const char *icma_generator_name(const icma_generator *g) {
    if (g->kind == ICMA_GENERATOR_CONV)
        return g->prior == ICMA_PRIOR_DIFFUSION ? "diffusion" : "conv";
    return g->kind == ICMA_GENERATOR_BASIS ? "basis" : "none";
}

bool icma_generator_has_classes(const icma_generator *generator) {
    return generator->kind == ICMA_GENERATOR_CONV && generator->conv.outputs == 2;
}

bool icma_generator_predicts(const icma_generator *generator) {
    return generator->kind != ICMA_GENERATOR_NONE;
}

size_t icma_generator_code_size(const icma_generator *generator) {
    return generator->kind == ICMA_GENERATOR_CONV ? generator->conv.inputs : generator->total;
}

float icma_generator_rms(float scale, uint64_t count) {
    float root = sqrtf((float)count), factor = 64 / root;
    return scale * factor;
}

uint64_t icma_generator_modelled_weights(const icma_generator *generator, const icma_safetensors *signature) {
    uint64_t sum = 0; /* at most the file's bytes */
    for (size_t t = 0; t < signature->tensor_count; t++)
        if (icma_generator_is_modelled(generator, t))
            sum += signature->tensors[t].count;
    return sum;
}

icma_status icma_generator_allocate(icma_generator *g, icma_error *error) {
    g->total = icma_generator_first(g, ICMA_ROLE_COUNT);
    if (!g->treatment)
        g->treatment = icma_alloc_zeroed(g->tensor_count ? g->tensor_count : 1, 1);
    bool done = g->treatment && (g->scale || icma_make_floats(&g->scale, g->tensor_count, 1)) &&
                (g->projection || icma_make_floats(&g->projection, g->given_coordinates, g->condition_size)) &&
                icma_make_floats(&g->latent_step, g->latent, 1) && icma_make_floats(&g->correction_step, g->total, 1) &&
                (g->head_step || icma_make_floats(&g->head_step, g->total, 1));
    for (int part = 0; done && part < ICMA_TRUNK_PARTS; part++) {
        size_t rows, columns;
        icma_trunk_shape(g, part, &rows, &columns);
        done = icma_make_floats(&g->trunk[part], rows, columns);
    }
    if (done)
        return ICMA_OK;
    icma_generator_free(g);
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the generator");
}

void icma_generator_free(icma_generator *g) {
    icma_free(g->treatment);
    icma_free(g->scale);
    icma_free(g->projection);
    icma_free(g->latent_step);
    icma_free(g->correction_step);
    icma_free(g->head_step);
    for (int part = 0; part < ICMA_TRUNK_PARTS; part++)
        icma_free(g->trunk[part]);
    icma_conv_decoder_free(&g->conv);
    icma_denoiser_free(&g->denoiser);
    memset(g, 0, sizeof *g);
}

/* --- payload (spec 4.3) ---------------------------------------------------------------------------------------- */

/* The large matrices of the trunk are stored as bfloat16: what its rounding costs, the corrections carry (spec 4.3). */
static icma_dtype stored_as(int part) {
    return part == ICMA_TRUNK_V1 || part == ICMA_TRUNK_V2 || part == ICMA_TRUNK_V3 ? ICMA_BF16 : ICMA_F32;
}

static void write_projection(icma_generator *g, icma_buffer *out) {
    icma_write_varint(out, g->condition_size);
    icma_write_varint(out, g->given_coordinates);
    for (size_t k = 0; k < g->given_coordinates; k++)
        icma_coarse_write(out, g->projection + k * g->condition_size, g->condition_size);
}

static icma_status write_conv(icma_generator *g, icma_buffer *out, icma_error *error) {
    icma_write_varint(out, g->latent);
    icma_write_varint(out, g->coordinates);
    write_projection(g, out);
    icma_write_u8(out, (uint8_t)g->prior);
    icma_write_floats(out, g->latent_step, g->latent, ICMA_F32);
    icma_status status = icma_conv_decoder_write(&g->conv, g->coding, g->coding_noise, out, error);
    if (!status && g->prior == ICMA_PRIOR_DIFFUSION)
        icma_denoiser_write(&g->denoiser, out);
    return status;
}

static void write_basis(icma_generator *g, icma_buffer *out) {
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        icma_write_varint(out, g->components[role]);
    icma_write_varint(out, g->latent);
    icma_write_varint(out, g->coordinates);
    icma_write_varint(out, g->hidden);
    write_projection(g, out);
    icma_write_floats(out, g->latent_step, g->latent, ICMA_F32);
    icma_write_floats(out, g->correction_step, g->total, ICMA_F32);
    icma_write_floats(out, g->head_step, g->total, ICMA_F32);
    for (int part = 0; part < ICMA_TRUNK_PARTS; part++) {
        size_t rows, columns;
        icma_trunk_shape(g, part, &rows, &columns);
        icma_write_floats(out, g->trunk[part], rows * columns, stored_as(part));
    }
}

icma_status icma_generator_write(icma_generator *g, icma_buffer *out, icma_error *error) {
    icma_status status = ICMA_OK;
    icma_write_u8(out, (uint8_t)g->kind);
    icma_write_varint(out, g->tensor_count);
    icma_write_bytes(out, g->treatment, g->tensor_count);
    for (size_t t = 0; t < g->tensor_count; t++)
        if (icma_generator_is_modelled(g, t))
            icma_write_floats(out, &g->scale[t], 1, ICMA_F32);
    if (g->kind == ICMA_GENERATOR_BASIS)
        write_basis(g, out);
    if (g->kind == ICMA_GENERATOR_CONV)
        status = write_conv(g, out, error);
    return status ? status : icma_buffer_status(out, error);
}

static icma_status corrupt(icma_error *error, const char *what) {
    return icma_fail(error, ICMA_E_CORRUPT, NULL, "generator: %s", what);
}

/* Reads `count` sizes and compares each with its limit. */
static icma_status read_limited(icma_cursor *from, const uint64_t *limits, int count, size_t *sizes, icma_error *error) {
    for (int i = 0; i < count; i++) {
        uint64_t size = icma_read_varint(from);
        if (from->failed)
            return corrupt(error, "truncated");
        if (size > limits[i])
            return icma_fail(error, ICMA_E_LIMIT, NULL, "generator: size %d is %llu, the limit is %llu", i, (unsigned long long)size, (unsigned long long)limits[i]);
        sizes[i] = (size_t)size;
    }
    return ICMA_OK;
}

/* Reads the sizes of a basis generator; what they imply is allocated only when the section has bytes enough for it. */
static icma_status read_sizes(icma_cursor *from, icma_generator *g, icma_error *error) {
    static const uint64_t limits[8] = {ICMA_MAX_COMPONENTS, ICMA_MAX_COMPONENTS, ICMA_MAX_COMPONENTS, ICMA_MAX_LATENT,
                                       ICMA_MAX_COORDINATES, ICMA_MAX_HIDDEN, ICMA_MAX_CONDITION, ICMA_MAX_COORDINATES};
    size_t sizes[8];
    icma_status status = read_limited(from, limits, 8, sizes, error);
    if (status)
        return status;
    memcpy(g->components, sizes, sizeof g->components);
    g->latent = sizes[3];
    g->coordinates = sizes[4];
    g->hidden = sizes[5];
    g->condition_size = sizes[6];
    g->given_coordinates = sizes[7];
    g->total = icma_generator_first(g, ICMA_ROLE_COUNT);
    if (g->total == 0 || g->hidden == 0)
        return corrupt(error, "sizes that do not fit together");
    if (icma_generator_trunk_parameters(g) > from->left / 2)
        return corrupt(error, "truncated");
    return ICMA_OK;
}

static icma_status read_conv_sizes(icma_cursor *from, icma_generator *g, icma_error *error) {
    static const uint64_t limits[4] = {ICMA_MAX_LATENT, ICMA_MAX_COORDINATES, ICMA_MAX_CONDITION, ICMA_MAX_COORDINATES};
    size_t sizes[4];
    icma_status status = read_limited(from, limits, 4, sizes, error);
    if (status)
        return status;
    g->latent = sizes[0];
    g->coordinates = sizes[1];
    g->condition_size = sizes[2];
    g->given_coordinates = sizes[3];
    return g->latent > from->left / 4 ? corrupt(error, "truncated") : ICMA_OK;
}

/* What both kinds have: M has a byte a number. */
static icma_status check_projection(const icma_cursor *from, const icma_generator *g, icma_error *error) {
    if (g->given_coordinates > g->coordinates || (g->given_coordinates == 0) != (g->condition_size == 0))
        return corrupt(error, "sizes that do not fit together");
    size_t bytes = g->given_coordinates * g->condition_size; /* capped above: at most 2^30 */
    return bytes > from->left ? corrupt(error, "truncated") : ICMA_OK;
}

static icma_status read_scales(icma_cursor *from, const uint8_t *treatment, size_t tensors, float **scale, icma_error *error) {
    if (tensors && !(*scale = icma_alloc_zeroed(tensors, sizeof **scale)))
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the generator");
    for (size_t t = 0; t < tensors; t++)
        if (treatment[t] != ICMA_TREAT_VERBATIM && !(icma_read_floats(from, &(*scale)[t], 1, ICMA_F32) && (*scale)[t] > 0))
            return corrupt(error, "truncated, or a scale that is not a positive normal number");
    return ICMA_OK;
}

static bool read_projection(icma_cursor *from, icma_generator *g) {
    for (size_t k = 0; k < g->given_coordinates; k++)
        if (!icma_coarse_read(from, g->projection + k * g->condition_size, g->condition_size))
            return false;
    return true;
}

/* The decoder must be made for the code, and for so many weights and no more. */
static icma_status check_decoder(const icma_generator *g, const icma_safetensors *signature, icma_error *error) {
    const icma_conv_decoder *d = &g->conv;
    size_t inputs = g->latent + (g->prior == ICMA_PRIOR_NORMAL ? g->coordinates : 0);
    uint64_t weights = icma_generator_modelled_weights(g, signature), factor = UINT64_C(1) << d->layers;
    if (d->inputs != inputs || weights == 0 || d->start != (weights - 1) / factor + 1)
        return corrupt(error, "a decoder that does not fit the tensors");
    return ICMA_OK;
}

static icma_status read_conv(icma_cursor *from, icma_generator *g, const icma_safetensors *signature, icma_error *error) {
    if (!read_projection(from, g))
        return corrupt(error, "truncated, or a number out of range");
    uint8_t prior = icma_read_u8(from);
    if (!from->failed && prior > ICMA_PRIOR_DIFFUSION)
        return icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "generator: unknown prior %u; a newer icma may know it", prior);
    g->prior = prior;
    if (from->failed || !icma_read_floats(from, g->latent_step, g->latent, ICMA_F32) || !icma_all_positive(g->latent_step, g->latent))
        return corrupt(error, "truncated, or a step that is not positive and normal");
    icma_status status = icma_conv_decoder_read(from, &g->conv, error);
    if (!status)
        status = check_decoder(g, signature, error);
    if (!status && g->prior == ICMA_PRIOR_DIFFUSION)
        status = icma_denoiser_read(from, g->latent, g->coordinates, &g->denoiser, error);
    return status;
}

static bool read_numbers(icma_cursor *from, icma_generator *g) {
    if (!read_projection(from, g) || !icma_read_floats(from, g->latent_step, g->latent, ICMA_F32) || !icma_all_positive(g->latent_step, g->latent) ||
        !icma_read_floats(from, g->correction_step, g->total, ICMA_F32) || !icma_all_positive(g->correction_step, g->total) ||
        !icma_read_floats(from, g->head_step, g->total, ICMA_F32) || !icma_all_positive(g->head_step, g->total))
        return false;
    for (int part = 0; part < ICMA_TRUNK_PARTS; part++) {
        size_t rows, columns;
        icma_trunk_shape(g, part, &rows, &columns);
        if (!icma_read_floats(from, g->trunk[part], rows * columns, stored_as(part)))
            return false;
    }
    return true;
}

/* A tensor may only be modelled if its dtype is a float that we model and it has elements. */
static icma_status check_treatments(const uint8_t *treatments, const icma_safetensors *signature, icma_error *error) {
    for (size_t t = 0; t < signature->tensor_count; t++) {
        uint8_t treatment = treatments[t];
        if (treatment > ICMA_TREAT_VERBATIM)
            return icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "generator: unknown treatment %u of a tensor", treatment);
        if (treatment == ICMA_TREAT_VERBATIM)
            continue;
        const icma_tensor_info *info = &signature->tensors[t];
        if (!icma_dtype_is_modelled(info->dtype) || info->count == 0)
            return corrupt(error, "a tensor is modelled that cannot be");
    }
    return ICMA_OK;
}

icma_status icma_generator_read(const void *data, size_t size, const icma_safetensors *signature, icma_generator *out,
                                icma_error *error) {
    icma_cursor from = icma_cursor_over(data, size);
    icma_generator g = {.kind = icma_read_u8(&from)};
    memset(out, 0, sizeof *out);
    if (g.kind > ICMA_GENERATOR_CONV)
        return icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "generator: unknown kind %d; a newer icma may know it", g.kind);
    uint64_t tensors = icma_read_varint(&from);
    const uint8_t *treatment = NULL;
    if (!from.failed && tensors == signature->tensor_count)
        treatment = tensors ? icma_read_bytes(&from, (size_t)tensors) : (const uint8_t *)"";
    if (!treatment)
        return corrupt(error, "truncated, or its tensors are not the signature's");
    icma_status status = check_treatments(treatment, signature, error);
    if (!status)
        status = read_scales(&from, treatment, (size_t)tensors, &g.scale, error);
    if (!status && g.kind == ICMA_GENERATOR_BASIS)
        status = read_sizes(&from, &g, error);
    if (!status && g.kind == ICMA_GENERATOR_CONV)
        status = read_conv_sizes(&from, &g, error);
    if (!status && g.kind != ICMA_GENERATOR_NONE)
        status = check_projection(&from, &g, error);
    g.tensor_count = (size_t)tensors;
    if (!status)
        status = icma_generator_allocate(&g, error); /* frees all on failure */
    else
        icma_generator_free(&g);
    if (status)
        return status;
    memcpy(g.treatment, treatment, g.tensor_count);
    if (g.kind == ICMA_GENERATOR_BASIS && !read_numbers(&from, &g))
        status = corrupt(error, "truncated, or a number that is not finite, denormal, or not positive where it must be");
    if (!status && g.kind == ICMA_GENERATOR_CONV)
        status = read_conv(&from, &g, signature, error);
    if (!status && !icma_cursor_finished(&from))
        status = corrupt(error, "bytes after its end");
    if (status)
        icma_generator_free(&g);
    else
        *out = g;
    return status;
}

/* --- exact evaluation ------------------------------------------------------------------------------------------ */

struct icma_trunk {
    const icma_ops *ops;
    size_t latent, coordinates, hidden, total;
    icma_tensor *part[ICMA_TRUNK_PARTS];
    icma_tensor *input, *hidden1, *hidden2, *output;
};

static icma_status upload_part(const icma_generator *g, icma_trunk *trunk, int part, icma_error *error) {
    size_t rows, columns;
    icma_trunk_shape(g, part, &rows, &columns);
    if (rows * columns == 0)
        return ICMA_OK;
    icma_status status = trunk->ops->alloc(trunk->ops->device, ICMA_ELEMENT_F32, rows * columns, &trunk->part[part], error);
    if (!status)
        status = trunk->ops->upload(trunk->ops->device, trunk->part[part], 0, g->trunk[part], rows * columns, error);
    return status;
}

icma_status icma_trunk_upload(const icma_generator *g, const icma_ops *ops, icma_trunk **out, icma_error *error) {
    *out = NULL;
    icma_trunk *trunk = icma_alloc_zeroed(1, sizeof *trunk);
    if (!trunk)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the trunk");
    *trunk = (icma_trunk){.ops = ops, .latent = g->latent, .coordinates = g->coordinates, .hidden = g->hidden, .total = g->total};
    icma_status status = ICMA_OK;
    for (int part = 0; !status && part < ICMA_TRUNK_PARTS; part++)
        status = upload_part(g, trunk, part, error);
    size_t inputs = g->latent + g->coordinates;
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, inputs ? inputs : 1, &trunk->input, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, g->hidden, &trunk->hidden1, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, g->hidden, &trunk->hidden2, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, g->total, &trunk->output, error);
    if (status)
        icma_trunk_free(trunk);
    else
        *out = trunk;
    return status;
}

void icma_trunk_free(icma_trunk *trunk) {
    if (!trunk)
        return;
    for (int part = 0; part < ICMA_TRUNK_PARTS; part++)
        trunk->ops->release(trunk->ops->device, trunk->part[part]);
    trunk->ops->release(trunk->ops->device, trunk->input);
    trunk->ops->release(trunk->ops->device, trunk->hidden1);
    trunk->ops->release(trunk->ops->device, trunk->hidden2);
    trunk->ops->release(trunk->ops->device, trunk->output);
    icma_free(trunk);
}

/* y = [bias +] x W, one row; a part without rows adds nothing. */
static void apply(icma_trunk *t, icma_tensor *x, size_t inputs, int weight, int bias, icma_tensor *y, size_t outputs) {
    icma_matrix none = {0};
    icma_matrix from = icma_matrix_of(x, 1, inputs), to = icma_matrix_of(y, 1, outputs);
    icma_matrix w = icma_matrix_of(t->part[weight], inputs, outputs);
    icma_matrix b = bias < 0 ? none : icma_matrix_of(t->part[bias], 1, outputs);
    if (inputs == 0) { /* no latents and no conditions: the bias is the answer */
        w = icma_matrix_of(y, 0, outputs);
        from = icma_matrix_of(x, 1, 0);
    }
    t->ops->linear(t->ops->device, from, w, b, to);
}

icma_status icma_trunk_evaluate(icma_trunk *t, const float *z, const float *a, float *q, icma_error *error) {
    const icma_ops *ops = t->ops;
    size_t inputs = t->latent + t->coordinates;
    icma_status status = ops->upload(ops->device, t->input, 0, z, t->latent, error);
    if (!status)
        status = ops->upload(ops->device, t->input, t->latent, a, t->coordinates, error);
    if (status)
        return status;
    icma_matrix h1 = icma_matrix_of(t->hidden1, 1, t->hidden), h2 = icma_matrix_of(t->hidden2, 1, t->hidden);
    apply(t, t->input, inputs, ICMA_TRUNK_V1, ICMA_TRUNK_B1, t->hidden1, t->hidden);
    ops->softsign(ops->device, h1, h1);
    apply(t, t->hidden1, t->hidden, ICMA_TRUNK_V2, ICMA_TRUNK_B2, t->hidden2, t->hidden);
    ops->softsign(ops->device, h2, h2);
    apply(t, t->hidden2, t->hidden, ICMA_TRUNK_V3, ICMA_TRUNK_B3, t->output, t->total);
    if (inputs)
        apply(t, t->input, inputs, ICMA_TRUNK_S, -1, t->output, t->total);
    status = ops->download(ops->device, t->output, 0, q, t->total, error);
    for (size_t k = 0; !status && k < t->total; k++)
        if (!isfinite(q[k]))
            status = icma_fail(error, ICMA_E_CORRUPT, NULL, "generator: coefficient %zu is not finite", k);
    return status;
}

void icma_generator_coordinates(const icma_generator *g, const float *condition, bool learned, float *a) {
    for (size_t i = 0; i < g->coordinates; i++) {
        a[i] = 0;
        if (learned)
            a[i] = condition[i];
        else if (i < g->given_coordinates)
            for (size_t j = 0; j < g->condition_size; j++)
                a[i] = fmaf(condition[j], g->projection[i * g->condition_size + j], a[i]);
    }
}
