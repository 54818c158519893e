/* SPDX-License-Identifier: Apache-2.0 */
/* Ops whose outputs are elements of their own, each made by one thread. */
#include "context.cuh"
#include "numbers.cuh"

#include <math.h>

namespace {

enum { BLOCK = 256 };

/* f(i, j) for every element of a matrix. */
template <class F> __global__ void each_element(size_t cells, size_t columns, F f) {
    for (size_t n = (size_t)blockIdx.x * blockDim.x + threadIdx.x; n < cells;
         n += (size_t)gridDim.x * blockDim.x) {
        /* 32-bit division where it does: the 64-bit one takes longer than most ops. */
        size_t i = cells >> 32 ? n / columns : (uint32_t)n / (uint32_t)columns;
        f(i, (size_t)(n - i * columns));
    }
}

template <class F> void run(void *device, size_t rows, size_t columns, F f, const char *name) {
    icma_context *c = icma_context_of(device);
    size_t cells = rows * columns;
    if (cells == 0)
        return;
    ICMA_LAUNCH_FLAT((each_element<F>), icma_grid(cells, BLOCK), BLOCK, c->stream, cells, columns, f);
    icma_context_launched(c, name);
}

/* --- sums and products ---------------------------------------------------------------------------------- */

struct add_row {
    icma_floats row, y;
    __device__ void operator()(size_t i, size_t j) const {
        y.at(i, j) += row.at(0, j);
    }
};

void cuda_add_row(void *device, icma_matrix row, icma_matrix y) {
    run(device, y.rows, y.columns, add_row{icma_floats_of(row), icma_floats_of(y)}, "add_row");
}

struct gather_rows {
    icma_floats x, y;
    const uint32_t *index;
    __device__ void operator()(size_t i, size_t j) const {
        y.at(i, j) = x.at(index[i], j);
    }
};

void cuda_gather_rows(void *device, icma_matrix x, const icma_tensor *index, size_t first, icma_matrix y) {
    run(device, y.rows, y.columns,
        gather_rows{icma_floats_of(x), icma_floats_of(y), (const uint32_t *)index->data + first},
        "gather_rows");
}

/* One thread a column, so that rows with equal indices are added in order. */
struct scatter_column {
    icma_floats y, x;
    const uint32_t *index;
    size_t rows;
    __device__ void operator()(size_t, size_t j) const {
        for (size_t i = 0; i < rows; i++)
            x.at(index[i], j) += y.at(i, j);
    }
};

void cuda_scatter_rows(void *device, icma_matrix y, const icma_tensor *index, size_t first, icma_matrix x) {
    run(device, 1, y.columns,
        scatter_column{icma_floats_of(y), icma_floats_of(x), (const uint32_t *)index->data + first, y.rows},
        "scatter_rows");
}

struct axpy {
    float alpha;
    icma_floats x, y;
    __device__ void operator()(size_t i, size_t j) const {
        y.at(i, j) = __fadd_rn(y.at(i, j), __fmul_rn(alpha, x.at(i, j)));
    }
};

void cuda_axpy(void *device, float alpha, icma_matrix x, icma_matrix y) {
    run(device, y.rows, y.columns, axpy{alpha, icma_floats_of(x), icma_floats_of(y)}, "axpy");
}

struct multiply {
    icma_floats x, y;
    bool one_row;
    __device__ void operator()(size_t i, size_t j) const {
        y.at(i, j) = __fmul_rn(y.at(i, j), x.at(one_row ? 0 : i, j));
    }
};

void cuda_multiply(void *device, icma_matrix x, icma_matrix y) {
    run(device, y.rows, y.columns, multiply{icma_floats_of(x), icma_floats_of(y), x.rows == 1}, "multiply");
}

struct fill {
    float value;
    icma_floats y;
    __device__ void operator()(size_t i, size_t j) const {
        y.at(i, j) = value;
    }
};

void cuda_fill(void *device, float value, icma_matrix y) {
    run(device, y.rows, y.columns, fill{value, icma_floats_of(y)}, "fill");
}

struct blend {
    float keep, add;
    icma_floats x, y;
    __device__ void operator()(size_t i, size_t j) const {
        y.at(i, j) = keep * y.at(i, j) + add * x.at(i, j);
    }
};

void cuda_blend(void *device, float keep, float add, icma_matrix x, icma_matrix y) {
    run(device, y.rows, y.columns, blend{keep, add, icma_floats_of(x), icma_floats_of(y)}, "blend");
}

/* --- the variational parts ------------------------------------------------------------------------------ */

struct reparameterise {
    icma_floats mu, logvar, noise, z;
    __device__ void operator()(size_t i, size_t j) const {
        z.at(i, j) = mu.at(i, j) + expf(0.5F * logvar.at(i, j)) * noise.at(i, j);
    }
};

void cuda_reparameterise(void *device, icma_matrix mu, icma_matrix logvar, icma_matrix noise, icma_matrix z) {
    run(device, z.rows, z.columns,
        reparameterise{icma_floats_of(mu), icma_floats_of(logvar), icma_floats_of(noise), icma_floats_of(z)},
        "reparameterise");
}

struct latent_backward {
    icma_floats mu, logvar, noise, dz;
    float weight;
    icma_floats dmu, dlogvar;
    __device__ void operator()(size_t i, size_t j) const {
        float d = dz.at(i, j), spread = expf(0.5F * logvar.at(i, j));
        dmu.at(i, j) = d + weight * mu.at(i, j);
        dlogvar.at(i, j) = 0.5F * (d * noise.at(i, j) * spread + weight * (spread * spread - 1));
    }
};

void cuda_latent_backward(void *device, icma_matrix mu, icma_matrix logvar, icma_matrix noise, icma_matrix dz,
                          float weight, icma_matrix dmu, icma_matrix dlogvar) {
    run(device, dz.rows, dz.columns,
        latent_backward{icma_floats_of(mu), icma_floats_of(logvar), icma_floats_of(noise), icma_floats_of(dz),
                        weight, icma_floats_of(dmu), icma_floats_of(dlogvar)},
        "latent_backward");
}

struct divergence {
    icma_floats mu, logvar, out;
    __device__ void operator()(size_t i, size_t j) const {
        float m = mu.at(i, j), v = logvar.at(i, j);
        out.at(i, j) = 0.5F * (expf(v) + m * m - 1 - v);
    }
};

void cuda_kl(void *device, icma_matrix mu, icma_matrix logvar, icma_matrix out) {
    run(device, out.rows, out.columns,
        divergence{icma_floats_of(mu), icma_floats_of(logvar), icma_floats_of(out)}, "kl");
}

/* --- losses' gradients ---------------------------------------------------------------------------------- */

struct squared_error_backward {
    icma_floats p, q, weight;
    float scale;
    icma_floats dq;
    __device__ void operator()(size_t i, size_t j) const {
        dq.at(i, j) = 2 * scale * weight.at(0, j) * (q.at(i, j) - p.at(i, j));
    }
};

void cuda_squared_error_backward(void *device, icma_matrix p, icma_matrix q, icma_matrix weight, float scale,
                                 icma_matrix dq) {
    run(device, p.rows, p.columns,
        squared_error_backward{icma_floats_of(p), icma_floats_of(q), icma_floats_of(weight), scale,
                               icma_floats_of(dq)},
        "squared_error_backward");
}

struct gaussian_nll_backward {
    icma_floats x, y;
    float scale;
    icma_floats dy;
    __device__ void operator()(size_t i, size_t j) const {
        float apart = x.at(i, j) - y.at(i, 2 * j), inverse = expf(-y.at(i, 2 * j + 1));
        dy.at(i, 2 * j) = -scale * apart * inverse;
        dy.at(i, 2 * j + 1) = scale * 0.5F * (1 - apart * apart * inverse);
    }
};

void cuda_gaussian_nll_backward(void *device, icma_matrix x, icma_matrix y, float scale, icma_matrix dy) {
    run(device, x.rows, x.columns,
        gaussian_nll_backward{icma_floats_of(x), icma_floats_of(y), scale, icma_floats_of(dy)},
        "gaussian_nll_backward");
}

/* --- activations ---------------------------------------------------------------------------------------- */

struct softsign {
    icma_floats x, y;
    __device__ void operator()(size_t i, size_t j) const {
        float value = x.at(i, j);
        y.at(i, j) = __fdiv_rn(value, __fadd_rn(1, fabsf(value)));
    }
};

void cuda_softsign(void *device, icma_matrix x, icma_matrix y) {
    run(device, x.rows, x.columns, softsign{icma_floats_of(x), icma_floats_of(y)}, "softsign");
}

struct softsign_backward {
    icma_floats x, dy, dx;
    __device__ void operator()(size_t i, size_t j) const {
        float s = 1 + fabsf(x.at(i, j));
        dx.at(i, j) = dy.at(i, j) / (s * s);
    }
};

void cuda_softsign_backward(void *device, icma_matrix x, icma_matrix dy, icma_matrix dx) {
    run(device, x.rows, x.columns,
        softsign_backward{icma_floats_of(x), icma_floats_of(dy), icma_floats_of(dx)}, "softsign_backward");
}

struct elu {
    icma_floats x, y;
    __device__ void operator()(size_t i, size_t j) const {
        y.at(i, j) = icma_device_elu(x.at(i, j));
    }
};

void cuda_elu(void *device, icma_matrix x, icma_matrix y) {
    run(device, y.rows, y.columns, elu{icma_floats_of(x), icma_floats_of(y)}, "elu");
}

struct activation_backward {
    icma_activation act;
    icma_floats x, dy, dx;
    __device__ void operator()(size_t i, size_t j) const {
        dx.at(i, j) = dy.at(i, j) * icma_device_slope(act, x.at(i, j));
    }
};

void cuda_activation_backward(void *device, icma_activation act, icma_matrix x, icma_matrix dy,
                              icma_matrix dx) {
    run(device, x.rows, x.columns,
        activation_backward{act, icma_floats_of(x), icma_floats_of(dy), icma_floats_of(dx)},
        "activation_backward");
}

/* --- Adam ----------------------------------------------------------------------------------------------- */

struct adam {
    float keep1, add1, keep2, add2, decay, rate, inverse1, inverse2, epsilon;
    icma_floats gradient, moment1, moment2, parameter;
    __device__ void operator()(size_t i, size_t j) const {
        float g = gradient.at(i, j), m = keep1 * moment1.at(i, j) + add1 * g,
              v = keep2 * moment2.at(i, j) + add2 * g * g, p = parameter.at(i, j);
        moment1.at(i, j) = m;
        moment2.at(i, j) = v;
        p -= decay * p;
        parameter.at(i, j) = p - rate * (m * inverse1) / (sqrtf(v * inverse2) + epsilon);
    }
};

void cuda_adam(void *device, icma_adam o, icma_matrix gradient, icma_matrix moment1, icma_matrix moment2,
               icma_matrix parameter) {
    float inverse1 = (float)(1 / (1 - pow(o.beta1, (double)o.step))),
          inverse2 = (float)(1 / (1 - pow(o.beta2, (double)o.step)));
    run(device, parameter.rows, parameter.columns,
        adam{o.beta1, 1 - o.beta1, o.beta2, 1 - o.beta2, o.learning_rate * o.weight_decay, o.learning_rate,
             inverse1, inverse2, o.epsilon, icma_floats_of(gradient), icma_floats_of(moment1),
             icma_floats_of(moment2), icma_floats_of(parameter)},
        "adam");
}

} /* namespace */

void icma_elementwise_ops(icma_ops *table) {
    table->add_row = cuda_add_row;
    table->gather_rows = cuda_gather_rows;
    table->scatter_rows = cuda_scatter_rows;
    table->axpy = cuda_axpy;
    table->multiply = cuda_multiply;
    table->fill = cuda_fill;
    table->blend = cuda_blend;
    table->reparameterise = cuda_reparameterise;
    table->latent_backward = cuda_latent_backward;
    table->kl = cuda_kl;
    table->squared_error_backward = cuda_squared_error_backward;
    table->gaussian_nll_backward = cuda_gaussian_nll_backward;
    table->softsign = cuda_softsign;
    table->softsign_backward = cuda_softsign_backward;
    table->elu = cuda_elu;
    table->activation_backward = cuda_activation_backward;
    table->adam = cuda_adam;
}
