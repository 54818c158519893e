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

/* What goes on a task of the archive, or is a new one. */
typedef struct icma_add_steps {
    uint32_t old; /* the task's number in the old archive; ICMA_NO_OWNER: it is new, and has nothing of what
                     follows */
    icma_dataset dataset; /* of the checkpoints that are new: first the groups of the task's parts; owned */
    size_t groups;        /* with such checkpoints */
} icma_add_steps;

typedef struct icma_adder {
    const icma_add_options *options;
    icma_inputs
        wanted;       /* of the inputs what the archive has not; `tasks` is owned, what it points to is not */
    icma_inputs view; /* the same tasks, of which some are as if they had no checkpoints; likewise */
    icma_add_steps *steps;  /* one a wanted task; owned */
    icma_pack_options pack; /* options->pack, made complete */
    icma_change change;
    icma_packer packer;
    icma_add_result *result;
    size_t step_groups;        /* of tasks that go on: parts with new checkpoints */
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
/* The same for a task's new steps, which are predicted by `old`, a group that the task is in;
 * ICMA_E_UNSUPPORTED if they cannot be. */
icma_status icma_add_decide_steps(icma_adder *adder, icma_group *group, uint32_t old, icma_add_plan *plan,
                                  icma_error *error);

/* add.c: encodes a group of sources with the old generator of the plan, as `target`, which is zeroed but for
 * a past (and is to be freed also on failure). */
icma_status icma_add_join(icma_adder *adder, icma_group *group, icma_add_plan *plan, icma_pack_group *target,
                          icma_error *error);

/* add_steps.c: compares the inputs with the archive, by task and step: wanted, steps and result.skipped. */
icma_status icma_add_find_steps(icma_adder *adder, const icma_inputs *inputs, icma_error *error);
/* Opens new checkpoints of tasks that go on, and leaves out what is written anew of these. Counts their
 * groups and files. `view` is of new tasks then. */
icma_status icma_add_open_steps(icma_adder *adder, size_t *groups, uint64_t *files, icma_error *error);
/* Writes those of wanted task `task`, which goes on. */
icma_status icma_add_write_steps(icma_adder *adder, size_t task, icma_error *error);
/* Once all is written: what tasks that go on take more than they did, in the result. */
void icma_add_measure_steps(icma_adder *adder, const icma_bundle *written);
void icma_add_steps_free(icma_adder *adder);

#endif
