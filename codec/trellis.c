/* SPDX-License-Identifier: Apache-2.0 */
#include "trellis.h"

#include "rans.h"
#include "rate.h"

#include <math.h>
#include <string.h>

enum { STATES = 16, PRICES = 16 };

/* Squared error, in squared steps, that a bit is worth: -dD/dR = 2 ln 2 D of the trellis; rounding to even integers has D = 4 / 12. */
static const double slope_of_trellis = 0.3514, slope_of_rounding = 0.4621;

/* parity(s & 5), parity(s & 12) */
static const uint8_t offset_of[STATES] = {0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1, 0};
static const uint8_t twist_of[STATES] = {0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0};

static unsigned next_state(unsigned state, unsigned parity) {
    return (state << 1 | (parity ^ twist_of[state])) & (STATES - 1);
}

static void expand_block(int32_t *symbols, size_t count) {
    unsigned state = 0;
    for (size_t i = 0; i < count; i++) {
        int32_t k = symbols[i];
        symbols[i] = 2 * k + offset_of[state];
        state = next_state(state, (unsigned)k & 1);
    }
}

/*
 * 64 symbols at a time. Call u_i the lowest bit of the state before symbol i: the state is u_i, u_(i-1), u_(i-2), u_(i-3), from the lowest bit up, so that with parities p
 *
 *   u_(i+1) = p_i ^ u_(i-2) ^ u_(i-3)   and the offset is   u_i ^ u_(i-2)
 *
 * As series over GF(2), U = P / (1 + x^3 + x^4), and a division by f is a product of f, f^2, f^4, .. f^16, since f^32 = 1 + x^96 + x^128 is 1 as far as 64 terms go. Returns the offsets, a bit a symbol, and moves
 * the state on.
 */
static uint64_t offsets_of(uint64_t parities, unsigned *state) {
    uint64_t b0 = *state & 1, b1 = *state >> 1 & 1, b2 = *state >> 2 & 1, b3 = *state >> 3 & 1;
    uint64_t u = parities ^ (b2 ^ b3) ^ (b1 ^ b2) << 1 ^ (b0 ^ b1) << 2 ^ b0 << 3;
    u ^= u << 3 ^ u << 4;
    u ^= u << 6 ^ u << 8;
    u ^= u << 12 ^ u << 16;
    u ^= u << 24 ^ u << 32;
    u ^= u << 48;
    *state = (unsigned)(u >> 63 | (u >> 62 & 1) << 1 | (u >> 61 & 1) << 2 | (u >> 60 & 1) << 3);
    return (u << 1 | b0) ^ (u << 3 | b0 << 2 | b1 << 1 | b2);
}

/* 8 x 8 bits, bit 8 r + l to 8 l + r (Warren, Hacker's Delight, 7-3). */
static uint64_t turn_bits(uint64_t x) {
    uint64_t t = (x ^ x >> 7) & UINT64_C(0x00aa00aa00aa00aa);
    x ^= t ^ t << 7;
    t = (x ^ x >> 14) & UINT64_C(0x0000cccc0000cccc);
    x ^= t ^ t << 14;
    t = (x ^ x >> 28) & UINT64_C(0x00000000f0f0f0f0);
    return x ^ t ^ t << 28;
}

/* Parities are gathered and offsets handed out over 8 symbols side by side, which compilers make vectors of. */
static void expand_64(int16_t *symbols, unsigned *state) {
    uint16_t bits[8] = {0};
    uint64_t all = 0;
    for (unsigned r = 0; r < 8; r++)
        for (unsigned l = 0; l < 8; l++)
            bits[l] |= (uint16_t)((symbols[8 * r + l] & 1) << r);
    for (unsigned l = 0; l < 8; l++)
        all |= (uint64_t)bits[l] << 8 * l;
    all = turn_bits(offsets_of(turn_bits(all), state));
    for (unsigned l = 0; l < 8; l++)
        bits[l] = (uint16_t)(all >> 8 * l & 0xff);
    for (unsigned r = 0; r < 8; r++)
        for (unsigned l = 0; l < 8; l++)
            symbols[8 * r + l] = (int16_t)(2 * symbols[8 * r + l] + (bits[l] >> r & 1));
}

void icma_trellis_expand_block(int16_t *symbols, size_t count) {
    unsigned state = 0;
    for (; count >= 64; count -= 64, symbols += 64)
        expand_64(symbols, &state);
    for (size_t i = 0; i < count; i++) {
        int16_t k = symbols[i];
        symbols[i] = (int16_t)(2 * k + offset_of[state]);
        state = next_state(state, (unsigned)k & 1);
    }
}

bool icma_trellis_expand(unsigned context, int32_t *symbols, size_t count) {
    int32_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        int32_t size = symbols[i] < 0 ? ~symbols[i] : symbols[i]; /* of -2^31 too */
        largest = size > largest ? size : largest;
    }
    if (largest > ICMA_TRELLIS_LARGEST)
        return false;
    for (size_t first = 0; context >= ICMA_TRELLIS_CONTEXT && first < count; first += ICMA_TRELLIS_BLOCK)
        expand_block(symbols + first, count - first < ICMA_TRELLIS_BLOCK ? count - first : ICMA_TRELLIS_BLOCK);
    for (size_t i = 0; context < ICMA_TRELLIS_CONTEXT && i < count; i++)
        symbols[i] *= 2;
    return true;
}

/* The symbol of this parity whose integer, with this offset, is nearest. */
static int32_t nearest_symbol(float value, unsigned offset, unsigned parity) {
    return 2 * (int32_t)lrintf((value - (float)offset - 2 * (float)parity) * 0.25F) + (int32_t)parity;
}

typedef struct prices {
    float bits[PRICES];
    float slope; /* beyond them: bits of k squared */
} prices;

static prices make_prices(double spread, double price) {
    prices p;
    spread = fmax(spread, 0.3);
    for (int k = 0; k < PRICES; k++)
        p.bits[k] = (float)(price * icma_rate_cell(spread, k));
    p.slope = (float)(price * 0.5 / log(2) / (spread * spread));
    return p;
}

static float price_of(const prices *p, int32_t k) {
    const int32_t last = PRICES - 1;
    k = k < 0 ? -k : k;
    return k <= last ? p->bits[k] : p->bits[last] + p->slope * ((float)k * (float)k - (float)(last * last));
}

/* What each of the four kinds of branch (offset, parity) costs at one value. */
static void branch_costs(const prices *p, float value, float cost[2][2]) {
    for (unsigned offset = 0; offset < 2; offset++)
        for (unsigned parity = 0; parity < 2; parity++) {
            int32_t k = nearest_symbol(value, offset, parity);
            float error = value - (float)(2 * k + (int32_t)offset);
            cost[offset][parity] = error * error + price_of(p, k);
        }
}

/* One step. State n is reached from m = n / 2 and from m + 8, whichever is cheaper; choices[n] says the latter. Both have one offset, and opposite parities lead to n. */
static void advance(const float cost[2][2], const float *restrict from, float *restrict to, uint8_t *restrict choices) {
    float even[STATES / 2], odd[STATES / 2];
    for (unsigned m = 0; m < STATES / 2; m++) {
        even[m] = cost[offset_of[m]][twist_of[m]];
        odd[m] = cost[offset_of[m]][1 ^ twist_of[m]];
    }
    for (unsigned m = 0; m < STATES / 2; m++) {
        float low = from[m] + even[m], high = from[m + STATES / 2] + odd[m];
        float low_odd = from[m] + odd[m], high_odd = from[m + STATES / 2] + even[m];
        choices[2 * m] = high < low;
        choices[2 * m + 1] = high_odd < low_odd;
        to[2 * m] = high < low ? high : low;
        to[2 * m + 1] = high_odd < low_odd ? high_odd : low_odd;
    }
}

/* Takes the least sum from all, so that their differences stay exact enough. */
static void settle(float *sums) {
    float least = sums[0];
    for (unsigned s = 1; s < STATES; s++)
        least = sums[s] < least ? sums[s] : least;
    for (unsigned s = 0; s < STATES; s++)
        sums[s] -= least;
}

static void search_block(const prices *p, const float *values, size_t count, int32_t *symbols, uint8_t *scratch) {
    float sums[2][STATES];
    for (unsigned s = 0; s < STATES; s++)
        sums[0][s] = s ? INFINITY : 0;
    for (size_t i = 0; i < count; i++) {
        float cost[2][2];
        branch_costs(p, values[i], cost);
        advance((const float(*)[2])cost, sums[i % 2], sums[1 - i % 2], scratch + i * STATES);
        if (i % 64 == 63)
            settle(sums[0]);
    }
    const float *last = sums[count % 2];
    unsigned state = 0;
    for (unsigned s = 1; s < STATES; s++)
        state = last[s] < last[state] ? s : state;
    for (size_t i = count; i-- > 0;) {
        unsigned before = state >> 1 | scratch[i * STATES + state] * (unsigned)(STATES / 2);
        symbols[i] = nearest_symbol(values[i], offset_of[before], (state & 1) ^ twist_of[before]);
        state = before;
    }
}

/* Rounding to even integers, towards zero where the bits that saves are worth the error. */
static void round_all(const prices *p, const float *values, size_t count, int32_t *symbols) {
    for (size_t i = 0; i < count; i++) {
        float size = fabsf(values[i]) / 2, k = floorf(size + 0.5F);
        float here = 4 * (size - k) * (size - k), below = 4 * (size - k + 1) * (size - k + 1);
        if (k > 0 && below - here < price_of(p, (int32_t)k) - price_of(p, (int32_t)k - 1))
            k -= 1;
        symbols[i] = (int32_t)(values[i] < 0 ? -k : k);
    }
}

unsigned icma_trellis_quantise(const float *values, size_t count, double price, int32_t *symbols, uint8_t *scratch, double *bits) {
    double squares = 0;
    for (size_t i = 0; i < count; i++)
        squares += (double)values[i] * (double)values[i];
    double spread = count ? sqrt(squares / (double)count) / 2 : 0;
    bool trellis = spread >= icma_rans_spread(ICMA_TRELLIS_CONTEXT);
    prices p = make_prices(spread, price * (trellis ? slope_of_trellis : slope_of_rounding));
    for (size_t first = 0; trellis && first < count; first += ICMA_TRELLIS_BLOCK)
        search_block(&p, values + first, count - first < ICMA_TRELLIS_BLOCK ? count - first : ICMA_TRELLIS_BLOCK, symbols + first, scratch);
    if (!trellis)
        round_all(&p, values, count, symbols);
    return icma_rans_best_context_among(symbols, count, trellis ? ICMA_TRELLIS_CONTEXT : 0, trellis ? icma_rans_contexts() : ICMA_TRELLIS_CONTEXT, bits);
}
