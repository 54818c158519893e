/* SPDX-License-Identifier: Apache-2.0 */
/* The reference table: what every op means, in plain loops, one thread, sums in ascending order. */
#include "memory.h"
#include "ops_host.h"

#include <math.h>
#include <string.h>

static icma_status host_alloc(void *device, icma_element element, size_t count, icma_tensor **out, icma_error *error) {
    (void)device;
    *out = NULL;
    icma_tensor *tensor = icma_alloc_zeroed(1, sizeof *tensor);
    void *data = icma_alloc_zeroed(count, icma_element_size(element));
    if (!tensor || !data) {
        icma_free(tensor);
        icma_free(data);
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a tensor of %zu elements", count);
    }
    *tensor = (icma_tensor){element, count, data};
    *out = tensor;
    return ICMA_OK;
}

static void host_release(void *device, icma_tensor *tensor) {
    (void)device;
    if (tensor) {
        icma_free(tensor->data);
        icma_free(tensor);
    }
}

static icma_status host_upload(void *device, icma_tensor *to, size_t offset, const void *from, size_t count,
                               icma_error *error) {
    (void)device, (void)error;
    assert(offset <= to->count && count <= to->count - offset);
    size_t size = icma_element_size(to->element);
    if (count)
        memcpy((char *)to->data + offset * size, from, count * size);
    return ICMA_OK;
}

static icma_status host_download(void *device, const icma_tensor *from, size_t offset, void *to, size_t count,
                                 icma_error *error) {
    (void)device, (void)error;
    assert(offset <= from->count && count <= from->count - offset);
    size_t size = icma_element_size(from->element);
    if (count)
        memcpy(to, (const char *)from->data + offset * size, count * size);
    return ICMA_OK;
}

static float at(icma_matrix m, bool transposed, size_t i, size_t j) {
    return transposed ? icma_row(m, j)[i] : icma_row(m, i)[j];
}

static void ref_gemm(void *device, float alpha, icma_matrix a, bool transpose_a, icma_matrix b, bool transpose_b, float beta,
                     icma_matrix c) {
    (void)device;
    size_t inner = transpose_a ? a.rows : a.columns;
    assert((transpose_a ? a.columns : a.rows) == c.rows && (transpose_b ? b.columns : b.rows) == inner);
    assert((transpose_b ? b.rows : b.columns) == c.columns);
    for (size_t i = 0; i < c.rows; i++)
        for (size_t j = 0; j < c.columns; j++) {
            float sum = 0;
            for (size_t k = 0; k < inner; k++)
                sum += at(a, transpose_a, i, k) * at(b, transpose_b, k, j);
            float *out = icma_row(c, i) + j;
            *out = beta == 0 ? alpha * sum : alpha * sum + beta * *out;
        }
}

static void ref_gram(void *device, icma_matrix a, double factor, icma_matrix c) {
    (void)device;
    assert(c.rows == a.rows && c.columns == a.rows);
    for (size_t i = 0; i < c.rows; i++)
        for (size_t j = 0; j < c.columns; j++) {
            float sum = 0;
            for (size_t k = 0; k < a.columns; k++)
                sum += icma_row(a, i)[k] * icma_row(a, j)[k];
            icma_row_f64(c, i)[j] += factor * (double)sum;
        }
}

static void ref_add_row(void *device, icma_matrix row, icma_matrix y) {
    (void)device;
    for (size_t i = 0; i < y.rows; i++)
        for (size_t j = 0; j < y.columns; j++)
            icma_row(y, i)[j] += icma_row(row, 0)[j];
}

static void ref_sum_rows(void *device, icma_matrix x, icma_matrix row) {
    (void)device;
    for (size_t j = 0; j < x.columns; j++)
        icma_row(row, 0)[j] = 0;
    for (size_t i = 0; i < x.rows; i++)
        for (size_t j = 0; j < x.columns; j++)
            icma_row(row, 0)[j] += icma_row(x, i)[j];
}

static const uint32_t *indices(const icma_tensor *index, size_t first, size_t count) {
    assert(index->element == ICMA_ELEMENT_U32 && first <= index->count && count <= index->count - first);
    (void)count;
    return (const uint32_t *)index->data + first;
}

static void ref_gather_rows(void *device, icma_matrix x, const icma_tensor *index, size_t first, icma_matrix y) {
    (void)device;
    const uint32_t *from = indices(index, first, y.rows);
    for (size_t i = 0; i < y.rows; i++)
        memcpy(icma_row(y, i), icma_row(x, from[i]), y.columns * sizeof(float));
}

static void ref_scatter_rows(void *device, icma_matrix y, const icma_tensor *index, size_t first, icma_matrix x) {
    (void)device;
    const uint32_t *to = indices(index, first, y.rows);
    for (size_t i = 0; i < y.rows; i++)
        for (size_t j = 0; j < y.columns; j++)
            icma_row(x, to[i])[j] += icma_row(y, i)[j];
}

static void ref_axpy(void *device, float alpha, icma_matrix x, icma_matrix y) {
    (void)device;
    for (size_t i = 0; i < y.rows; i++)
        for (size_t j = 0; j < y.columns; j++)
            icma_row(y, i)[j] += alpha * icma_row(x, i)[j];
}

static void ref_multiply(void *device, icma_matrix x, icma_matrix y) {
    (void)device;
    for (size_t i = 0; i < y.rows; i++)
        for (size_t j = 0; j < y.columns; j++)
            icma_row(y, i)[j] *= icma_row(x, x.rows == 1 ? 0 : i)[j];
}

static void ref_fill(void *device, float value, icma_matrix y) {
    (void)device;
    for (size_t i = 0; i < y.rows; i++)
        for (size_t j = 0; j < y.columns; j++)
            icma_row(y, i)[j] = value;
}

static void ref_reparameterise(void *device, icma_matrix mu, icma_matrix logvar, icma_matrix noise, icma_matrix z) {
    (void)device;
    for (size_t i = 0; i < z.rows; i++)
        for (size_t j = 0; j < z.columns; j++)
            icma_row(z, i)[j] = icma_row(mu, i)[j] + expf(0.5F * icma_row(logvar, i)[j]) * icma_row(noise, i)[j];
}

static void ref_latent_backward(void *device, icma_matrix mu, icma_matrix logvar, icma_matrix noise, icma_matrix dz,
                                float weight, icma_matrix dmu, icma_matrix dlogvar) {
    (void)device;
    for (size_t i = 0; i < dz.rows; i++)
        for (size_t j = 0; j < dz.columns; j++) {
            float d = icma_row(dz, i)[j], spread = expf(0.5F * icma_row(logvar, i)[j]);
            icma_row(dmu, i)[j] = d + weight * icma_row(mu, i)[j];
            icma_row(dlogvar, i)[j] =
                0.5F * (d * icma_row(noise, i)[j] * spread + weight * (spread * spread - 1));
        }
}

static void ref_kl(void *device, icma_matrix mu, icma_matrix logvar, icma_matrix out) {
    (void)device;
    for (size_t i = 0; i < out.rows; i++)
        for (size_t j = 0; j < out.columns; j++) {
            float m = icma_row(mu, i)[j], v = icma_row(logvar, i)[j];
            icma_row(out, i)[j] = 0.5F * (expf(v) + m * m - 1 - v);
        }
}

static void ref_squared_error(void *device, icma_matrix p, icma_matrix q, icma_matrix weight, icma_matrix out) {
    (void)device;
    for (size_t i = 0; i < p.rows; i++) {
        float sum = 0;
        for (size_t j = 0; j < p.columns; j++) {
            float d = icma_row(q, i)[j] - icma_row(p, i)[j];
            sum += icma_row(weight, 0)[j] * d * d;
        }
        icma_row(out, i)[0] = sum;
    }
}

static void ref_squared_error_backward(void *device, icma_matrix p, icma_matrix q, icma_matrix weight, float scale,
                                       icma_matrix dq) {
    (void)device;
    for (size_t i = 0; i < p.rows; i++)
        for (size_t j = 0; j < p.columns; j++)
            icma_row(dq, i)[j] =
                2 * scale * icma_row(weight, 0)[j] * (icma_row(q, i)[j] - icma_row(p, i)[j]);
}

static void ref_softsign_backward(void *device, icma_matrix x, icma_matrix dy, icma_matrix dx) {
    (void)device;
    for (size_t i = 0; i < x.rows; i++)
        for (size_t j = 0; j < x.columns; j++) {
            float s = 1 + fabsf(icma_row(x, i)[j]);
            icma_row(dx, i)[j] = icma_row(dy, i)[j] / (s * s);
        }
}

static void ref_adam(void *device, icma_adam o, icma_matrix gradient, icma_matrix moment1, icma_matrix moment2,
                     icma_matrix parameter) {
    (void)device;
    float correct1 = (float)(1 - pow(o.beta1, (double)o.step)), correct2 = (float)(1 - pow(o.beta2, (double)o.step));
    for (size_t i = 0; i < parameter.rows; i++)
        for (size_t j = 0; j < parameter.columns; j++) {
            float g = icma_row(gradient, i)[j];
            float *m = icma_row(moment1, i) + j, *v = icma_row(moment2, i) + j;
            *m = o.beta1 * *m + (1 - o.beta1) * g;
            *v = o.beta2 * *v + (1 - o.beta2) * g * g;
            float *p = icma_row(parameter, i) + j;
            *p -= o.learning_rate * o.weight_decay * *p;
            *p -= o.learning_rate * (*m / correct1) / (sqrtf(*v / correct2) + o.epsilon);
        }
}

static void ref_softsign(void *device, icma_matrix x, icma_matrix y) {
    (void)device;
    for (size_t i = 0; i < x.rows; i++)
        for (size_t j = 0; j < x.columns; j++) {
            float value = icma_row(x, i)[j];
            icma_row(y, i)[j] = value / (1 + fabsf(value));
        }
}

void icma_linear_scalar(const float *x, size_t inputs, const float *w, size_t stride, size_t count, float *y) {
    for (size_t j = 0; j < inputs; j++)
        for (size_t o = 0; o < count; o++)
            y[o] = fmaf(x[j], w[j * stride + o], y[o]);
}

static void ref_linear(void *device, icma_matrix x, icma_matrix w, icma_matrix bias, icma_matrix y) {
    (void)device;
    assert(x.columns == w.rows && w.columns == y.columns && x.rows == y.rows);
    for (size_t i = 0; i < y.rows; i++) {
        if (bias.tensor)
            memcpy(icma_row(y, i), icma_row(bias, 0), y.columns * sizeof(float));
        icma_linear_scalar(icma_row(x, i), w.rows, icma_row(w, 0), w.stride, y.columns, icma_row(y, i));
    }
}

void icma_basis_scalar(const float *a, size_t rows, const int16_t *head, size_t stride, size_t count, float scale,
                       float *y) {
    for (size_t l = 0; l < count; l++) {
        float sum = 0;
        for (size_t k = 0; k < rows; k++)
            sum = fmaf(a[k], (float)head[k * stride + l], sum);
        y[l] = sum * scale;
    }
}

static void ref_basis(void *device, icma_matrix q, icma_matrix step, icma_matrix head, float scale, icma_matrix y) {
    (void)device;
    assert(q.columns == head.rows && q.rows == y.rows && head.columns == y.columns);
    for (size_t i = 0; i < y.rows; i++)
        for (size_t l = 0; l < y.columns; l++) {
            float sum = 0;
            for (size_t k = 0; k < head.rows; k++)
                sum = fmaf(icma_row(q, i)[k] * icma_row(step, 0)[k], (float)icma_row_i16(head, k)[l], sum);
            icma_row(y, i)[l] = sum * scale;
        }
}

void icma_dequantise_scalar(const int16_t *integers, size_t count, float step, float *y) {
    for (size_t l = 0; l < count; l++)
        y[l] = fmaf((float)integers[l], step, y[l]);
}

static void ref_dequantise(void *device, icma_matrix integers, float step, icma_matrix y) {
    (void)device;
    assert(integers.rows == y.rows && integers.columns == y.columns);
    for (size_t i = 0; i < y.rows; i++)
        icma_dequantise_scalar(icma_row_i16(integers, i), y.columns, step, icma_row(y, i));
}

const icma_ops *icma_ops_reference(void) {
    static const icma_ops table = {
        .name = "reference",
        .alloc = host_alloc,
        .release = host_release,
        .upload = host_upload,
        .download = host_download,
        .gemm = ref_gemm,
        .gram = ref_gram,
        .eigen = icma_eigen_host,
        .add_row = ref_add_row,
        .sum_rows = ref_sum_rows,
        .gather_rows = ref_gather_rows,
        .scatter_rows = ref_scatter_rows,
        .axpy = ref_axpy,
        .multiply = ref_multiply,
        .fill = ref_fill,
        .reparameterise = ref_reparameterise,
        .latent_backward = ref_latent_backward,
        .kl = ref_kl,
        .squared_error = ref_squared_error,
        .squared_error_backward = ref_squared_error_backward,
        .softsign_backward = ref_softsign_backward,
        .adam = ref_adam,
        .conv_down = icma_conv_down_reference,
        .conv_up_training = icma_conv_up_training_reference,
        .turn_weights = icma_turn_weights_reference,
        .conv_weights = icma_conv_weights_reference,
        .batch_norm = icma_batch_norm_reference,
        .batch_norm_given = icma_batch_norm_given_reference,
        .batch_norm_backward = icma_batch_norm_backward_reference,
        .activation_backward = icma_activation_backward_reference,
        .gaussian_nll = icma_gaussian_nll_reference,
        .gaussian_nll_backward = icma_gaussian_nll_backward_reference,
        .blend = icma_blend_reference,
        .layer_norm = icma_layer_norm_reference,
        .gelu = icma_gelu_reference,
        .attention = icma_attention_reference,
        .softsign = ref_softsign,
        .linear = ref_linear,
        .basis = ref_basis,
        .conv = icma_conv_reference,
        .conv_up = icma_conv_up_reference,
        .elu = icma_elu_reference,
        .dequantise = ref_dequantise,
        .decode_integers = icma_decode_integers_reference,
        .assemble = icma_assemble_reference,
    };
    return &table;
}
