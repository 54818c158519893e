/* SPDX-License-Identifier: Apache-2.0 */
#include "generator.h"

#include "coarse.h"
#include "memory.h"

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

bool icma_generator_is_modelled(const icma_generator *generator, size_t tensor) {
    return generator->treatment[tensor] != ICMA_TREAT_VERBATIM;
}

/* Zeroed floats; an array of none is not an error, and is NULL. */
static bool make_floats(float **out, size_t rows, size_t columns) {
    size_t count;
    *out = NULL;
    if (rows == 0 || columns == 0)
        return true;
    if (!icma_multiply_size(rows, columns, &count))
        return false;
    *out = icma_alloc_zeroed(count, sizeof(float));
    return *out != NULL;
}

icma_status icma_generator_allocate(icma_generator *g, icma_error *error) {
    g->total = icma_generator_first(g, ICMA_ROLE_COUNT);
    if (!g->treatment)
        g->treatment = icma_alloc_zeroed(g->tensor_count ? g->tensor_count : 1, 1);
    bool done = g->treatment && (g->scale || make_floats(&g->scale, g->tensor_count, 1)) &&
                (g->projection || make_floats(&g->projection, g->given_coordinates, g->condition_size)) &&
                make_floats(&g->latent_step, g->latent, 1) && make_floats(&g->correction_step, g->total, 1) &&
                (g->head_step || make_floats(&g->head_step, g->total, 1));
    for (int part = 0; done && part < ICMA_TRUNK_PARTS; part++) {
        size_t rows, columns;
        icma_trunk_shape(g, part, &rows, &columns);
        done = make_floats(&g->trunk[part], rows, columns);
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
    memset(g, 0, sizeof *g);
}

/* --- payload (spec 4.3) ---------------------------------------------------------------------------------------- */

/* The large matrices of the trunk are stored as bfloat16: what its rounding costs, the corrections carry (spec 4.3). */
static bool stored_as_bf16(int part) {
    return part == ICMA_TRUNK_V1 || part == ICMA_TRUNK_V2 || part == ICMA_TRUNK_V3;
}

/* Numbers of an archive are normal or zero: some processors flush denormals, and no weight needs them. */
static float flush(float value) {
    return isnormal(value) ? value : 0;
}

static void write_floats(icma_buffer *out, float *values, size_t count, bool bf16) {
    for (size_t i = 0; i < count; i++) {
        uint16_t bits = icma_f32_to_bf16(values[i]);
        values[i] = flush(bf16 ? icma_bf16_to_f32(bits) : values[i]);
        if (bf16)
            icma_write_u16(out, icma_f32_to_bf16(values[i]));
        else
            icma_write_f32(out, values[i]);
    }
}

static void write_basis(icma_generator *g, icma_buffer *out) {
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        icma_write_varint(out, g->components[role]);
    icma_write_varint(out, g->latent);
    icma_write_varint(out, g->coordinates);
    icma_write_varint(out, g->hidden);
    icma_write_varint(out, g->condition_size);
    icma_write_varint(out, g->given_coordinates);
    for (size_t k = 0; k < g->given_coordinates; k++)
        icma_coarse_write(out, g->projection + k * g->condition_size, g->condition_size);
    write_floats(out, g->latent_step, g->latent, false);
    write_floats(out, g->correction_step, g->total, false);
    write_floats(out, g->head_step, g->total, false);
    for (int part = 0; part < ICMA_TRUNK_PARTS; part++) {
        size_t rows, columns;
        icma_trunk_shape(g, part, &rows, &columns);
        write_floats(out, g->trunk[part], rows * columns, stored_as_bf16(part));
    }
}

void icma_generator_write(icma_generator *g, icma_buffer *out) {
    icma_write_u8(out, (uint8_t)g->kind);
    icma_write_varint(out, g->tensor_count);
    icma_write_bytes(out, g->treatment, g->tensor_count);
    for (size_t t = 0; t < g->tensor_count; t++)
        if (icma_generator_is_modelled(g, t))
            write_floats(out, &g->scale[t], 1, false);
    if (g->kind == ICMA_GENERATOR_BASIS)
        write_basis(g, out);
}

static icma_status corrupt(icma_error *error, const char *what) {
    return icma_fail(error, ICMA_E_CORRUPT, NULL, "generator: %s", what);
}

/* False when the cursor ran dry or a number is not finite, or denormal. */
static bool read_floats(icma_cursor *from, float *values, size_t count, bool bf16) {
    const uint8_t *bytes = count ? icma_read_bytes(from, count * (bf16 ? 2 : 4)) : NULL;
    if (!bytes)
        return count == 0;
    icma_load_floats(bf16 ? ICMA_BF16 : ICMA_F32, bytes, count, values);
    for (size_t i = 0; i < count; i++)
        if (values[i] != 0 && !isnormal(values[i]))
            return false;
    return true;
}

static bool all_positive(const float *values, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!(values[i] > 0))
            return false;
    return true;
}

/* Reads the sizes of a basis generator; what they imply is allocated only when the section has bytes enough for it. */
static icma_status read_sizes(icma_cursor *from, icma_generator *g, icma_error *error) {
    uint64_t sizes[8];
    for (int i = 0; i < 8; i++)
        sizes[i] = icma_read_varint(from);
    const uint64_t limits[8] = {ICMA_MAX_COMPONENTS, ICMA_MAX_COMPONENTS, ICMA_MAX_COMPONENTS, ICMA_MAX_LATENT,
                                ICMA_MAX_COORDINATES, ICMA_MAX_HIDDEN, ICMA_MAX_CONDITION, ICMA_MAX_COORDINATES};
    if (from->failed)
        return corrupt(error, "truncated");
    for (int i = 0; i < 8; i++)
        if (sizes[i] > limits[i])
            return icma_fail(error, ICMA_E_LIMIT, NULL, "generator: size %d is %llu, the limit is %llu", i,
                             (unsigned long long)sizes[i], (unsigned long long)limits[i]);
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        g->components[role] = (size_t)sizes[role];
    g->latent = (size_t)sizes[3];
    g->coordinates = (size_t)sizes[4];
    g->hidden = (size_t)sizes[5];
    g->condition_size = (size_t)sizes[6];
    g->given_coordinates = (size_t)sizes[7];
    g->total = icma_generator_first(g, ICMA_ROLE_COUNT);
    if (g->total == 0 || g->hidden == 0 || g->given_coordinates > g->coordinates ||
        (g->given_coordinates == 0) != (g->condition_size == 0))
        return corrupt(error, "sizes that do not fit together");
    size_t bytes = g->given_coordinates * g->condition_size; /* capped above: below 2^30 */
    if (bytes > from->left || icma_generator_trunk_parameters(g) > from->left / 2)
        return corrupt(error, "truncated");
    return ICMA_OK;
}

static icma_status read_scales(icma_cursor *from, const uint8_t *treatment, size_t tensors, float **scale, icma_error *error) {
    if (tensors && !(*scale = icma_alloc_zeroed(tensors, sizeof **scale)))
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the generator");
    for (size_t t = 0; t < tensors; t++)
        if (treatment[t] != ICMA_TREAT_VERBATIM && !(read_floats(from, &(*scale)[t], 1, false) && (*scale)[t] > 0))
            return corrupt(error, "truncated, or a scale that is not a positive normal number");
    return ICMA_OK;
}

static bool read_numbers(icma_cursor *from, icma_generator *g) {
    for (size_t k = 0; k < g->given_coordinates; k++)
        if (!icma_coarse_read(from, g->projection + k * g->condition_size, g->condition_size))
            return false;
    if (!read_floats(from, g->latent_step, g->latent, false) || !all_positive(g->latent_step, g->latent) ||
        !read_floats(from, g->correction_step, g->total, false) || !all_positive(g->correction_step, g->total) ||
        !read_floats(from, g->head_step, g->total, false) || !all_positive(g->head_step, g->total))
        return false;
    for (int part = 0; part < ICMA_TRUNK_PARTS; part++) {
        size_t rows, columns;
        icma_trunk_shape(g, part, &rows, &columns);
        if (!read_floats(from, g->trunk[part], rows * columns, stored_as_bf16(part)))
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
    if (g.kind > ICMA_GENERATOR_BASIS)
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
