/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of adding to an archive. Private to add*.c. */
#ifndef ICMA_ADD_H
#define ICMA_ADD_H

#include "change.h"
#include "fit.h"
#include "packer.h"

/* Newcomers of one signature: who predicts them, and what is known of that. */
typedef struct icma_add_plan {
    bool joined;
    uint32_t group;                         /* the old one, if joined */
    icma_fit fit;                           /* on its basis, if it has one; owned */
    double explained, old_bytes, new_bytes; /* as in icma_add_group */
    double beside; /* of new_bytes what is not for the newcomers but for having a group more */
} icma_add_plan;

typedef struct icma_adder {
    const icma_add_options *options;
    const icma_inputs *inputs;
    icma_pack_options pack; /* options->pack, made complete */
    icma_change change;
    icma_packer packer;
    icma_add_result *result;
    size_t old_groups, groups; /* in the archive, and with new ones */
    const char **names;        /* of all tasks, in their new order; owned */
    size_t task_count;
    bool estimated;   /* `anew` is of all newcomers */
    double anew;      /* bytes that newcomers are expected to take, packed with the others */
    uint32_t *owners; /* the inputs' tasks among them; owned */
} icma_adder;

/* add_plan.c: decides for group `index` of the packer's dataset. *plan is owned by the caller
 * (icma_add_plan_free), also on failure. */
icma_status icma_add_decide(icma_adder *adder, size_t index, icma_add_plan *plan, icma_error *error);
void icma_add_plan_free(icma_add_plan *plan);

#endif
