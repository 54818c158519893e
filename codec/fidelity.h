/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How far a reconstruction is from its original: per tensor and per LoRA pair.
 *
 * For a tensor x and its reconstruction y:  relative error = |x - y| / |x|,  cosine = <x, y> / (|x| |y|),
 * maximum = max |x_i - y_i|, SNR = 20 log10(|x| / |x - y|) dB. |x| = 0 gives relative error 0 if y = x and
 * infinity otherwise. For a pair the same of dW = scale * B A, without forming it: dW' - dW = [B' - B, B]
 * [A'; A' - A], and for any factors |M N|_F^2 = trace((M^T M)(N N^T)), 2r x 2r matrices in double; no
 * cancellation because the differences are taken first (only factors in another gauge cancel, to about 1e-8).
 * Where the rank is high for the shape the product is cheaper, and is formed in tiles. The maximum over dW
 * needs its elements, so the tiles too: only when `deep`.
 */
#ifndef ICMA_FIDELITY_H
#define ICMA_FIDELITY_H

#include "adapter.h"

typedef struct icma_distance {
    uint64_t count; /* elements compared */
    double energy;  /* |x|^2 */
    double other;   /* |y|^2 */
    double error;   /* |x - y|^2 */
    double dot;     /* <x, y> */
    double maximum; /* max |x_i - y_i|; NAN when it was not computed (a pair, not deep) */
    bool identical; /* bit for bit; for a pair: both factors */
} icma_distance;

double icma_distance_relative(const icma_distance *distance);
/* 1 when both are zero, 0 when the error is infinite. */
double icma_distance_cosine(const icma_distance *distance);
double icma_distance_snr(const icma_distance *distance); /* dB; INFINITY when the error is 0 */
/* Sums `more` into `total`; a zeroed one is an empty sum. An unknown maximum makes the sum's unknown. */
void icma_distance_add(icma_distance *total, const icma_distance *more);

typedef struct icma_fidelity {
    icma_distance *tensors; /* one a tensor of the original, in its data order; owned */
    size_t tensor_count;
    icma_distance *pairs; /* one a pair, in icma_pairs order; owned */
    size_t pair_count;
    icma_distance total;  /* over all tensors */
    double dw_error_mean; /* mean and maximum over pairs of the relative error of dW; 0 without pairs */
    double dw_error_max;
    size_t dw_worst; /* index of the pair with dw_error_max; 0 without pairs */
} icma_fidelity;

/* Compares two adapters with the same signature (else ICMA_E_UNSUPPORTED naming the first difference: order
 * of tensors in the file may differ, and the dtype may, names and shapes may not). Elements of dtypes that
 * are no numbers to us (F4, F6, C64) count as identical or as infinitely wrong, byte for byte. NaN and
 * infinities equal those of the same bits and then count nothing, else the error is infinite; a pair with any
 * of them is identical or infinitely wrong. `identical` wants the same dtype too. The results do not depend
 * on the number of threads. `config` (adapter_config.json text, may be NULL) gives the scale. */
icma_status icma_fidelity_compare(const icma_safetensors *original, const uint8_t *original_data,
                                  const icma_safetensors *other, const uint8_t *other_data,
                                  const icma_pairs *pairs, const char *config, size_t config_size, bool deep,
                                  icma_fidelity *out, icma_error *error);
void icma_fidelity_free(icma_fidelity *fidelity); /* leaves it zeroed */

/* One tensor, and one pair at scale 1, of two adapters of one signature: the same numbers as above. */
void icma_fidelity_tensor(const icma_tensor_info *tensor, const uint8_t *original_data, const uint8_t *other_data, icma_distance *out);
icma_status icma_fidelity_pair(const icma_safetensors *tensors, const icma_pair *pair, const uint8_t *original_data, const uint8_t *other_data,
                               icma_distance *out); /* ICMA_OK, ICMA_E_MEMORY or, for a rank beyond 2^31 / 3, ICMA_E_LIMIT */

#endif
