/* SPDX-License-Identifier: Apache-2.0 */
/* Which tensors of a group are kept bit for bit rather than modelled, and why. Private to gram.c and pack.c.
 */
#ifndef ICMA_VERBATIM_WHY_H
#define ICMA_VERBATIM_WHY_H

#include "dataset.h"

typedef enum icma_why {
    ICMA_WHY_NOT, /* it is modelled */
    ICMA_WHY_DTYPE,
    ICMA_WHY_SMALL,
    ICMA_WHY_LARGE,
    ICMA_WHY_WHOLE,    /* a module that was trained whole (PEFT's modules_to_save) */
    ICMA_WHY_EMPTY,    /* nowhere finite, or nowhere but zero */
    ICMA_WHY_CONSTANT, /* one number throughout, in every checkpoint */
    ICMA_WHY_COUNT
} icma_why;

/* By the header alone: ICMA_WHY_NOT where the numbers decide. */
icma_why icma_why_verbatim(const icma_tensor_info *info, icma_role role);
/* Tells how many of the group's tensors are kept for which reason (`why` has one a tensor), and how many of
 * single checkpoints are exceptions. */
void icma_explain_verbatim(const icma_progress *progress, const icma_group *group, const uint8_t *why);

#endif
