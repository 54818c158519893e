/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CPU table's last steps of decoding. Tensors are put together block by block: prediction, residual, check and cast of a block happen while it lies in the first cache, and threads go over the blocks of all
 * tensors together, most of which are too small for threads of their own.
 */
#include "coded.h"
#include "memory.h"
#include "ops_host.h"

#include <string.h>

/* Below this many multiply-adds a list is not worth waking threads for; a thread takes so many blocks at once. */
enum { SMALL_LIST = 1 << 22, BLOCKS_A_TURN = 8 };

static icma_kernels kernels;

static icma_status cpu_decode_integers(void *device, const icma_coded *list, size_t count, icma_tensor *integers, size_t first, icma_error *error) {
    (void)device;
    assert(integers->element == ICMA_ELEMENT_I16 && first <= integers->count && icma_coded_total(list, count) <= integers->count - first);
    return icma_coded_decode(list, count, (int16_t *)integers->data + first, error);
}

/* What precedes each tensor of a list: blocks, and coefficients times steps. One more than there are tensors. */
typedef struct part {
    size_t block, factor;
} part;

typedef struct plan {
    const icma_assembly *list;
    part *parts;    /* owned */
    float *factors; /* owned */
    size_t count, blocks;
    double work; /* multiply-adds */
    uint8_t *out, *host;
} plan;

static size_t rows_of(const icma_assembly *a) {
    return a->head.tensor ? a->head.rows : 0;
}

static void fill_factors(const icma_assembly *a, float *factors) {
    for (size_t k = 0; k < rows_of(a); k++)
        factors[k] = icma_row(a->q, 0)[k] * icma_row(a->steps, 0)[k];
}

static icma_status make_plan(const icma_assembly *list, size_t count, plan *p, icma_error *error) {
    size_t factors = 0;
    p->list = list;
    p->count = count;
    p->parts = icma_alloc_array(count + 1, sizeof *p->parts);
    for (size_t i = 0; p->parts && i < count; i++) {
        p->parts[i] = (part){p->blocks, factors};
        p->blocks += (list[i].count + ICMA_BASIS_BLOCK - 1) / ICMA_BASIS_BLOCK;
        p->work += (double)list[i].count * (double)(rows_of(&list[i]) + 1);
        factors += rows_of(&list[i]);
    }
    p->factors = icma_alloc_array(factors + 1, sizeof *p->factors);
    if (!p->parts || !p->factors)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory to put %zu tensors together; close other programs", count);
    p->parts[count] = (part){p->blocks, factors};
    for (size_t i = 0; i < count; i++)
        fill_factors(&list[i], p->factors + p->parts[i].factor);
    return ICMA_OK;
}

/* The tensor that a block belongs to. */
static size_t tensor_of(const plan *p, size_t block) {
    size_t low = 0, high = p->count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (p->parts[middle].block <= block)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* On the bits, so that the loop vectorises: an exponent of all ones carries into the top bit. */
static bool all_finite(const float *values, size_t count) {
    uint32_t carry = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        carry |= (bits & 0x7f800000U) + 0x00800000U;
    }
    return !(carry & 0x80000000U);
}

/* Elements first .. first + count - 1 of tensor i. False if one is not finite. */
static bool assemble_block(const plan *p, size_t i, size_t first, size_t count) {
    const icma_assembly *a = &p->list[i];
    size_t place = a->place + first * (icma_dtype_bits(a->dtype) / 8);
    float y[ICMA_BASIS_BLOCK];
    if (a->head.tensor)
        kernels.basis(p->factors + p->parts[i].factor, a->head.rows, icma_row_i16(a->head, 0) + first, a->head.stride, count, a->scale, y);
    else if (a->model.tensor)
        memcpy(y, icma_row(a->model, 0) + first, count * sizeof *y);
    else
        memset(y, 0, count * sizeof *y);
    if (a->integers)
        kernels.dequantise((const int16_t *)a->integers->data + a->first + first, count, a->step, y);
    if (p->out)
        icma_store_floats(a->dtype, y, count, p->out + place);
    if (p->host)
        icma_store_floats(a->dtype, y, count, p->host + place);
    return all_finite(y, count);
}

/* Blocks first .. end - 1; the first tensor among them that is bad, or SIZE_MAX. */
static size_t assemble_blocks(const plan *p, size_t first, size_t end) {
    size_t bad = SIZE_MAX;
    for (size_t b = first, i = tensor_of(p, first); b < end; b++) {
        i += b == p->parts[i + 1].block;
        size_t from = (b - p->parts[i].block) * ICMA_BASIS_BLOCK, left = p->list[i].count - from;
        if (!assemble_block(p, i, from, left < ICMA_BASIS_BLOCK ? left : ICMA_BASIS_BLOCK) && bad == SIZE_MAX)
            bad = i;
    }
    return bad;
}

static icma_status cpu_assemble(void *device, const icma_assembly *list, size_t count, icma_tensor *out, uint8_t *host, size_t *bad, icma_error *error) {
    (void)device;
    plan p = {.out = out ? out->data : NULL, .host = host};
    icma_status status = make_plan(list, count, &p, error);
    size_t turns = status ? 0 : (p.blocks + BLOCKS_A_TURN - 1) / BLOCKS_A_TURN, worst = SIZE_MAX;
#pragma omp parallel for schedule(dynamic) num_threads(icma_threads()) if (p.work > SMALL_LIST) reduction(min : worst)
    for (size_t t = 0; t < turns; t++) {
        size_t first = t * BLOCKS_A_TURN, end = p.blocks - first < BLOCKS_A_TURN ? p.blocks : first + BLOCKS_A_TURN;
        size_t found = assemble_blocks(&p, first, end);
        worst = found < worst ? found : worst;
    }
    *bad = worst;
    icma_free(p.parts);
    icma_free(p.factors);
    return status;
}

void icma_decode_ops(icma_ops *table, icma_kernels chosen) {
    kernels = chosen;
    table->decode_integers = cpu_decode_integers;
    table->assemble = cpu_assemble;
}
