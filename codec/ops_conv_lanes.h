/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernels of convolutions, batch norm, ELU and Adam, written once for vectors of LANES floats;
 * ops_conv_x86.c includes this for each kernel set after defining
 *
 *   NAME(x)  x with the set's suffix              TARGET  attributes of every function here
 *   LANES, V                                      floats of a vector, its type
 *   V_LOAD V_STORE V_SET V_ADD V_SUB V_MUL V_DIV V_SQRT V_FMA (one rounding)
 *   V_MULTIPLY_ADD                                the same in one rounding or two, whichever is faster
 *   V_MAX(a, b)                                   a > b ? a : b, so b where either is a NaN
 *   V_POWER(n)                                    2^(n - 1.5 * 2^23) as icma_elu_scalar makes it
 *   V_IF_ABOVE(x, a, b), V_IF_LEAST(x, a, b)      x > 0 ? a : b,  x >= 0 ? a : b
 *   W, W_ADD, W_SUB, W_LOAD, W_STORE              the same in double: a vector of LANES / 2
 *   W_ADD_SQUARE(a, b)                            a * a + b, in double
 *   W_LOW(v), W_HIGH(v)                           halves of a V as W
 *   POSITIONS_2, POSITIONS_1                      positions of a register tile of 2 and 1 vectors
 *   OUTER_ROWS_2, OUTER_ROWS_1                    rows of such a tile of sums of outer products
 *   NARROW_POSITIONS                              8 * LANES
 *   TURN_ROWS(x, stride, rows, columns, y, s)     y[j * s + i] = x[i * stride + j]
 *   CONV_REST, OUTER_REST                         kernels for fewer than LANES outputs and columns
 *
 * and this header undefines them all.
 */

/* --- convolutions --------------------------------------------------------------------------------------- */

/* `positions` x `vectors` chains in registers; both are constants where this is inlined. */
TARGET static inline INLINED void NAME(conv_tile)(const icma_conv_run *run, const float *x, const float *w,
                                                  const float *bias, float *y, int positions, int vectors) {
    V sum[MOST_CHAINS];
    for (int v = 0; v < vectors; v++) {
        const V start = bias ? V_LOAD(bias + LANES * v) : V_SET(0);
        for (int p = 0; p < positions; p++)
            sum[p * vectors + v] = start;
    }
    const ptrdiff_t position = run->x_position, input = run->x_input;
    for (size_t t = 0; t < run->taps; t++) {
        /* Three positions share a pointer: addresses are pointer + {0, 1, 2} * position, and few registers
         * hold them all. */
        const float *from[(MOST_CHAINS + 2) / 3], *factor = w + t * run->w_tap;
        for (int p = 0; p < positions; p += 3)
            from[p / 3] = x + (ptrdiff_t)t * run->x_tap + p * position;
        for (size_t i = 0; i < run->inputs; i++) {
            V column[2];
            for (int v = 0; v < vectors; v++)
                column[v] = V_LOAD(factor + LANES * v);
            for (int p = 0; p < positions; p++) {
                const V value = V_SET(from[p / 3][(p % 3) * position]);
                for (int v = 0; v < vectors; v++)
                    sum[p * vectors + v] = V_FMA(value, column[v], sum[p * vectors + v]);
            }
            for (int p = 0; p < positions; p += 3)
                from[p / 3] += input;
            factor += run->w_row;
        }
    }
    for (int p = 0; p < positions; p++)
        for (int v = 0; v < vectors; v++)
            V_STORE(y + p * run->y_position + LANES * v, sum[p * vectors + v]);
}

/* All positions of `vectors` vectors of outputs from `o` on. The last tile begins early enough to be whole:
 * what it does again gives the same bits. */
TARGET static inline INLINED void NAME(conv_panel)(const icma_conv_run *run, size_t o, int positions,
                                                   int vectors) {
    const float *bias = run->bias ? run->bias + o : NULL, *w = run->w + o;
    size_t whole = (size_t)positions;
    for (size_t p = 0; p < run->positions && run->positions >= whole; p += whole) {
        ptrdiff_t at = (ptrdiff_t)(p + whole <= run->positions ? p : run->positions - whole);
        NAME(conv_tile)
        (run, run->x + at * run->x_position, w, bias, run->y + at * run->y_position + (ptrdiff_t)o, positions,
         vectors);
    }
    for (ptrdiff_t p = 0; run->positions < whole && p < (ptrdiff_t)run->positions; p++)
        NAME(conv_tile)
    (run, run->x + p * run->x_position, w, bias, run->y + p * run->y_position + (ptrdiff_t)o, 1, vectors);
}

TARGET static void NAME(conv)(const icma_conv_run *run) {
    size_t o = 0;
    for (; o + 2 * LANES <= run->outputs; o += 2 * LANES)
        NAME(conv_panel)(run, o, POSITIONS_2, 2);
    for (; o + LANES <= run->outputs; o += LANES)
        NAME(conv_panel)(run, o, POSITIONS_1, 1);
    if (o < run->outputs) {
        icma_conv_run rest = *run;
        rest.w += o;
        rest.y += o;
        rest.bias = run->bias ? run->bias + o : NULL;
        rest.outputs = run->outputs - o;
        CONV_REST(&rest);
    }
}

/* Few outputs and a stride of 1: lanes are positions. A block of x is laid out channel by channel, then every
 * tap is a shift. */
TARGET static inline INLINED void NAME(narrow_block)(const icma_conv_run *run, float (*turned)[NARROW_ROW],
                                                     size_t first) {
    for (size_t o = 0; o < run->outputs; o++) {
        V sum[NARROW_POSITIONS / LANES];
        const V start = V_SET(run->bias ? run->bias[o] : 0);
        for (int v = 0; v < NARROW_POSITIONS / LANES; v++)
            sum[v] = start;
        for (size_t t = 0; t < run->taps; t++)
            for (size_t i = 0; i < run->inputs; i++) {
                const V factor = V_SET(run->w[t * run->w_tap + i * run->w_row + o]);
                for (int v = 0; v < NARROW_POSITIONS / LANES; v++)
                    sum[v] = V_FMA(V_LOAD(turned[i] + t + LANES * v), factor, sum[v]);
            }
        float row[NARROW_POSITIONS];
        for (int v = 0; v < NARROW_POSITIONS / LANES; v++)
            V_STORE(row + LANES * v, sum[v]);
        for (size_t p = 0; p < NARROW_POSITIONS && first + p < run->positions; p++)
            run->y[(ptrdiff_t)(first + p) * run->y_position + (ptrdiff_t)o] = row[p];
    }
}

TARGET static void NAME(narrow)(const icma_conv_run *run) {
    float turned[ICMA_NARROW_INPUTS][NARROW_ROW] = {{0}};
    for (size_t first = 0; first < run->positions; first += NARROW_POSITIONS) {
        size_t left = run->positions - first,
               rows = (left < NARROW_POSITIONS ? left : NARROW_POSITIONS) + run->taps - 1;
        const float *x = run->x + (ptrdiff_t)first * run->x_position;
        TURN_ROWS(x, run->x_position, rows, run->inputs, turned[0], NARROW_ROW);
        NAME(narrow_block)(run, turned, first);
    }
}

/* --- gradients of weights ------------------------------------------------------------------------------- */

/* `rows` x `vectors` sums in registers; `rows` and `vectors` are constants where this is inlined, and `step`
 * where it is 1. */
TARGET static inline INLINED void NAME(outer_tile)(const icma_outer_run *run, const float *a, ptrdiff_t step,
                                                   const float *b, float *out, int rows, int vectors) {
    V sum[MOST_CHAINS];
    for (int k = 0; k < rows * vectors; k++)
        sum[k] = V_SET(0);
    const ptrdiff_t position_a = run->a_position, position_b = run->b_position;
    for (size_t p = 0; p < run->positions; p++) {
        V column[2];
        for (int v = 0; v < vectors; v++)
            column[v] = V_LOAD(b + LANES * v);
        for (int r = 0; r < rows; r++) {
            const V value = V_SET(a[r * step]);
            for (int v = 0; v < vectors; v++)
                sum[r * vectors + v] = V_MULTIPLY_ADD(value, column[v], sum[r * vectors + v]);
        }
        a += position_a;
        b += position_b;
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) {
            float *to = out + r * run->out_row + LANES * v * run->out_column, lane[LANES];
            if (run->out_column == 1) {
                V_STORE(to, run->fresh ? sum[r * vectors + v] : V_ADD(V_LOAD(to), sum[r * vectors + v]));
                continue;
            }
            V_STORE(lane, sum[r * vectors + v]);
            for (ptrdiff_t l = 0; l < LANES; l++)
                to[l * run->out_column] = run->fresh ? lane[l] : to[l * run->out_column] + lane[l];
        }
}

/* `most` rows at a time, then what is left; `most` and `vectors` are constants where this is inlined. */
TARGET static inline INLINED void NAME(outer_rows)(const icma_outer_run *run, ptrdiff_t step, size_t column,
                                                   int most, int vectors) {
    const float *a = run->a, *b = run->b + column;
    float *out = run->out + (ptrdiff_t)column * run->out_column;
    size_t rows = run->rows;
    for (; rows >= (size_t)most; rows -= (size_t)most) {
        NAME(outer_tile)(run, a, step, b, out, most, vectors);
        a += most * step;
        out += most * run->out_row;
    }
    switch (rows) {
#define OUTER_CASE(count)                                                                                    \
    case count:                                                                                              \
        NAME(outer_tile)(run, a, step, b, out, count, vectors);                                              \
        break;
        OUTER_CASE(11)
        OUTER_CASE(10)
        OUTER_CASE(9)
        OUTER_CASE(8)
        OUTER_CASE(7)
        OUTER_CASE(6)
        OUTER_CASE(5)
        OUTER_CASE(4)
        OUTER_CASE(3)
        OUTER_CASE(2)
        OUTER_CASE(1)
#undef OUTER_CASE
    default:
        break;
    }
}

TARGET static inline INLINED void NAME(outer_panel)(const icma_outer_run *run, size_t column, int most,
                                                    int vectors) {
    if (run->a_row == 1)
        NAME(outer_rows)(run, 1, column, most, vectors);
    else
        NAME(outer_rows)(run, run->a_row, column, most, vectors);
}

TARGET static void NAME(outer)(const icma_outer_run *run) {
    size_t j = 0;
    for (; j + 2 * LANES <= run->columns; j += 2 * LANES)
        NAME(outer_panel)(run, j, OUTER_ROWS_2, 2);
    for (; j + LANES <= run->columns; j += LANES)
        NAME(outer_panel)(run, j, OUTER_ROWS_1, 1);
    if (j < run->columns) {
        icma_outer_run rest = *run;
        rest.b += j;
        rest.out += (ptrdiff_t)j * run->out_column;
        rest.columns = run->columns - j;
        OUTER_REST(&rest);
    }
}

/* --- activations ---------------------------------------------------------------------------------------- */

TARGET static inline INLINED V NAME(elu_lanes)(V x) {
    const V round = V_SET(0x1.8p23F), v = V_MAX(V_SET(-32), x), n = V_FMA(v, V_SET(0x1.715476p0F), round),
            k = V_SUB(n, round);
    const V r = V_FMA(k, V_SET(-0x1.7f7d1cp-20F), V_FMA(k, V_SET(-0x1.62e4p-1F), v));
    V p = V_SET(1.0F / 5040);
    p = V_FMA(p, r, V_SET(1.0F / 720));
    p = V_FMA(p, r, V_SET(1.0F / 120));
    p = V_FMA(p, r, V_SET(1.0F / 24));
    p = V_FMA(p, r, V_SET(1.0F / 6));
    p = V_FMA(p, r, V_SET(1.0F / 2));
    const V power = V_POWER(n);
    return V_IF_LEAST(x, x, V_FMA(power, V_FMA(V_MUL(r, r), p, r), V_SUB(power, V_SET(1))));
}

TARGET static inline INLINED V NAME(activate)(icma_activation act, V x) {
    if (act == ICMA_ACTIVATION_LEAKY_RELU)
        return V_IF_ABOVE(x, x, V_MUL(x, V_SET(0.01F)));
    return act == ICMA_ACTIVATION_ELU ? NAME(elu_lanes)(x) : x;
}

TARGET static inline INLINED V NAME(slope)(icma_activation act, V x) {
    if (act == ICMA_ACTIVATION_LEAKY_RELU)
        return V_IF_ABOVE(x, V_SET(1), V_SET(0.01F));
    return act == ICMA_ACTIVATION_ELU ? V_IF_ABOVE(x, V_SET(1), V_ADD(NAME(elu_lanes)(x), V_SET(1)))
                                      : V_SET(1);
}

TARGET static void NAME(elu)(const float *x, size_t count, float *y) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        V_STORE(y + i, NAME(elu_lanes)(V_LOAD(x + i)));
    for (; i < count; i++)
        y[i] = icma_elu_scalar(x[i]);
}

TARGET static void NAME(activation_backward)(icma_activation act, const float *x, const float *dy,
                                             size_t count, float *dx) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        V_STORE(dx + i, V_MUL(V_LOAD(dy + i), NAME(slope)(act, V_LOAD(x + i))));
    for (; i < count; i++)
        dx[i] = dy[i] * icma_slope_scalar(act, x[i]);
}

/* --- batch norm ----------------------------------------------------------------------------------------- */

/* sum[j] += x[i, j] - origin[j] and squares[j] += (x[i, j] - origin[j])^2, in double: the mean may be large
 * beside the spread. */
TARGET static void NAME(moments)(const float *x, size_t stride, size_t rows, size_t columns,
                                 const float *origin, double *sum, double *squares) {
    size_t j = 0;
    for (; j + LANES <= columns; j += LANES) {
        const V middle = V_LOAD(origin + j);
        const W middles[2] = {W_LOW(middle), W_HIGH(middle)};
        W s[2] = {W_LOAD(sum + j), W_LOAD(sum + j + LANES / 2)},
          q[2] = {W_LOAD(squares + j), W_LOAD(squares + j + LANES / 2)};
        for (size_t i = 0; i < rows; i++) {
            const V v = V_LOAD(x + i * stride + j);
            const W low = W_SUB(W_LOW(v), middles[0]), high = W_SUB(W_HIGH(v), middles[1]);
            s[0] = W_ADD(s[0], low);
            s[1] = W_ADD(s[1], high);
            q[0] = W_ADD_SQUARE(low, q[0]);
            q[1] = W_ADD_SQUARE(high, q[1]);
        }
        for (int k = 0; k < 2; k++) {
            W_STORE(sum + j + k * (LANES / 2), s[k]);
            W_STORE(squares + j + k * (LANES / 2), q[k]);
        }
    }
    for (size_t i = 0; i < rows; i++)
        for (size_t l = j; l < columns; l++) {
            double apart = (double)x[i * stride + l] - (double)origin[l];
            sum[l] += apart;
            squares[l] += apart * apart;
        }
}

TARGET static inline INLINED void NAME(norm_as)(icma_activation act, const icma_norm_band *n, const float *x,
                                                size_t stride, size_t rows, float *y, size_t stride_y) {
    size_t whole = n->columns / LANES * LANES;
    for (size_t i = 0; i < rows; i++, x += stride, y += stride_y) {
        for (size_t j = 0; j < whole; j += LANES)
            V_STORE(y + j, NAME(activate)(act, V_FMA(V_SUB(V_LOAD(x + j), V_LOAD(n->mean + j)),
                                                     V_LOAD(n->scale + j), V_LOAD(n->beta + j))));
        for (size_t j = whole; j < n->columns; j++)
            y[j] = icma_activate_scalar(act, fmaf(x[j] - n->mean[j], n->scale[j], n->beta[j]));
    }
}

TARGET static void NAME(norm)(icma_activation act, const icma_norm_band *n, const float *x, size_t stride,
                              size_t rows, float *y, size_t stride_y) {
    if (act == ICMA_ACTIVATION_ELU)
        NAME(norm_as)(ICMA_ACTIVATION_ELU, n, x, stride, rows, y, stride_y);
    else if (act == ICMA_ACTIVATION_LEAKY_RELU)
        NAME(norm_as)(ICMA_ACTIVATION_LEAKY_RELU, n, x, stride, rows, y, stride_y);
    else
        NAME(norm_as)(ICMA_ACTIVATION_NONE, n, x, stride, rows, y, stride_y);
}

/* sum[j] += d and product[j] += d (x - mean), where d = dy act'(scale (x - mean) + beta): SUM_ROWS of them in
 * single precision, those sums in double. */
TARGET static inline INLINED void NAME(norm_sums_as)(icma_activation act, const icma_norm_band *n,
                                                     const float *x, size_t stride, const float *dy,
                                                     size_t stride_dy, size_t rows, double *sum,
                                                     double *product) {
    size_t j = 0;
    for (; j + LANES <= n->columns; j += LANES) {
        const V mean = V_LOAD(n->mean + j), scale = V_LOAD(n->scale + j), beta = V_LOAD(n->beta + j);
        for (size_t first = 0; first < rows; first += SUM_ROWS) {
            V s = V_SET(0), q = V_SET(0);
            for (size_t i = first; i < rows && i < first + SUM_ROWS; i++) {
                const V apart = V_SUB(V_LOAD(x + i * stride + j), mean);
                const V d =
                    V_MUL(V_LOAD(dy + i * stride_dy + j), NAME(slope)(act, V_FMA(apart, scale, beta)));
                s = V_ADD(s, d);
                q = V_MULTIPLY_ADD(d, apart, q);
            }
            W_STORE(sum + j, W_ADD(W_LOAD(sum + j), W_LOW(s)));
            W_STORE(sum + j + LANES / 2, W_ADD(W_LOAD(sum + j + LANES / 2), W_HIGH(s)));
            W_STORE(product + j, W_ADD(W_LOAD(product + j), W_LOW(q)));
            W_STORE(product + j + LANES / 2, W_ADD(W_LOAD(product + j + LANES / 2), W_HIGH(q)));
        }
    }
    for (size_t i = 0; i < rows; i++)
        for (size_t l = j; l < n->columns; l++) {
            float apart = x[i * stride + l] - n->mean[l],
                  d = dy[i * stride_dy + l] * icma_slope_scalar(act, fmaf(apart, n->scale[l], n->beta[l]));
            sum[l] += (double)d;
            product[l] += (double)(d * apart);
        }
}

TARGET static void NAME(norm_sums)(icma_activation act, const icma_norm_band *n, const float *x,
                                   size_t stride, const float *dy, size_t stride_dy, size_t rows, double *sum,
                                   double *product) {
    if (act == ICMA_ACTIVATION_ELU)
        NAME(norm_sums_as)(ICMA_ACTIVATION_ELU, n, x, stride, dy, stride_dy, rows, sum, product);
    else if (act == ICMA_ACTIVATION_LEAKY_RELU)
        NAME(norm_sums_as)(ICMA_ACTIVATION_LEAKY_RELU, n, x, stride, dy, stride_dy, rows, sum, product);
    else
        NAME(norm_sums_as)(ICMA_ACTIVATION_NONE, n, x, stride, dy, stride_dy, rows, sum, product);
}

/* dx = scale (d - constant - linear (x - mean)). */
TARGET static inline INLINED void NAME(norm_backward_as)(icma_activation act, const icma_norm_band *n,
                                                         const float *x, size_t stride, const float *dy,
                                                         size_t stride_dy, size_t rows, float *dx,
                                                         size_t stride_dx) {
    size_t whole = n->columns / LANES * LANES;
    for (size_t i = 0; i < rows; i++, x += stride, dy += stride_dy, dx += stride_dx) {
        for (size_t j = 0; j < whole; j += LANES) {
            const V scale = V_LOAD(n->scale + j), apart = V_SUB(V_LOAD(x + j), V_LOAD(n->mean + j));
            const V d = V_MUL(V_LOAD(dy + j), NAME(slope)(act, V_FMA(apart, scale, V_LOAD(n->beta + j))));
            V_STORE(dx + j, V_MUL(scale, V_SUB(V_SUB(d, V_LOAD(n->constant + j)),
                                               V_MUL(apart, V_LOAD(n->linear + j)))));
        }
        for (size_t j = whole; j < n->columns; j++) {
            float apart = x[j] - n->mean[j],
                  d = dy[j] * icma_slope_scalar(act, fmaf(apart, n->scale[j], n->beta[j]));
            dx[j] = n->scale[j] * (d - n->constant[j] - apart * n->linear[j]);
        }
    }
}

TARGET static void NAME(norm_backward)(icma_activation act, const icma_norm_band *n, const float *x,
                                       size_t stride, const float *dy, size_t stride_dy, size_t rows,
                                       float *dx, size_t stride_dx) {
    if (act == ICMA_ACTIVATION_ELU)
        NAME(norm_backward_as)(ICMA_ACTIVATION_ELU, n, x, stride, dy, stride_dy, rows, dx, stride_dx);
    else if (act == ICMA_ACTIVATION_LEAKY_RELU)
        NAME(norm_backward_as)(ICMA_ACTIVATION_LEAKY_RELU, n, x, stride, dy, stride_dy, rows, dx, stride_dx);
    else
        NAME(norm_backward_as)(ICMA_ACTIVATION_NONE, n, x, stride, dy, stride_dy, rows, dx, stride_dx);
}

/* --- Adam ----------------------------------------------------------------------------------------------- */

TARGET static void NAME(adam)(const icma_adam_factors *f, size_t count, const float *gradient, float *moment1,
                              float *moment2, float *parameter) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const V g = V_LOAD(gradient + i);
        const V m = V_ADD(V_MUL(V_SET(f->keep1), V_LOAD(moment1 + i)), V_MUL(V_SET(f->add1), g));
        const V v = V_ADD(V_MUL(V_SET(f->keep2), V_LOAD(moment2 + i)), V_MUL(V_MUL(V_SET(f->add2), g), g));
        V p = V_LOAD(parameter + i);
        p = V_SUB(p, V_MUL(V_SET(f->decay), p));
        p = V_SUB(p, V_DIV(V_MUL(V_SET(f->rate), m),
                           V_ADD(V_SQRT(V_MUL(v, V_SET(f->inverse2))), V_SET(f->epsilon))));
        V_STORE(moment1 + i, m);
        V_STORE(moment2 + i, v);
        V_STORE(parameter + i, p);
    }
    for (; i < count; i++) {
        float g = gradient[i], p = parameter[i];
        moment1[i] = f->keep1 * moment1[i] + f->add1 * g;
        moment2[i] = f->keep2 * moment2[i] + f->add2 * g * g;
        p -= f->decay * p;
        parameter[i] = p - f->rate * moment1[i] / (sqrtf(moment2[i] * f->inverse2) + f->epsilon);
    }
}

static const icma_conv_kernels NAME(kernels) = {
    .conv = NAME(conv),
    .narrow = NAME(narrow),
    .outer = NAME(outer),
    .elu = NAME(elu),
    .activation_backward = NAME(activation_backward),
    .moments = NAME(moments),
    .norm = NAME(norm),
    .norm_sums = NAME(norm_sums),
    .norm_backward = NAME(norm_backward),
    .adam = NAME(adam),
};

#undef NAME
#undef TARGET
#undef LANES
#undef POSITIONS_2
#undef POSITIONS_1
#undef OUTER_ROWS_2
#undef OUTER_ROWS_1
#undef NARROW_POSITIONS
#undef V
#undef V_LOAD
#undef V_STORE
#undef V_SET
#undef V_ADD
#undef V_SUB
#undef V_MUL
#undef V_DIV
#undef V_SQRT
#undef V_FMA
#undef V_MULTIPLY_ADD
#undef V_MAX
#undef V_POWER
#undef V_IF_ABOVE
#undef V_IF_LEAST
#undef W
#undef W_ADD
#undef W_SUB
#undef W_ADD_SQUARE
#undef W_LOAD
#undef W_STORE
#undef W_LOW
#undef W_HIGH
#undef TURN_ROWS
#undef CONV_REST
#undef OUTER_REST
