/* SPDX-License-Identifier: Apache-2.0 */
/* What is lost with damaged sections (spec 3.11): told from who needs which section, without decoding. */
#include "bundle_inside.h"
#include "memory.h"

static bool any_damaged(const icma_bundle *b, const bool *damaged, uint16_t kind, uint32_t group, uint32_t task) {
    const icma_section *first = NULL, *base = icma_container_section(b->container, 0);
    size_t count = icma_container_range(b->container, kind, group, task, &first);
    for (size_t i = 0; i < count; i++)
        if (damaged[first + i - base])
            return true;
    return false;
}

static bool covering_damaged(const icma_bundle *b, const bool *damaged, uint16_t kind, uint32_t group, uint32_t task, size_t index) {
    const icma_section *found = icma_bundle_covering(b, kind, group, task, index);
    return found && damaged[found - icma_container_section(b->container, 0)];
}

/* A task is read by all of its tables, one a group; without one of them the order of its checkpoints is not known. */
static bool all_is_lost(const icma_bundle *b, const bool *damaged, uint32_t task, size_t *count) {
    static const uint16_t shared[] = {ICMA_SECTION_SIGNATURE, ICMA_SECTION_GENERATOR, ICMA_SECTION_TEXTS};
    static const uint16_t own[] = {ICMA_SECTION_TASK, ICMA_SECTION_CONDITION};
    bool lost = false;
    size_t first, tables = icma_bundle_tables(b, task, &first);
    *count = 0;
    for (size_t i = 0; i < tables; i++) {
        uint32_t g = b->tables[first + i]->group;
        *count += b->tables[first + i]->count;
        for (size_t k = 0; k < sizeof shared / sizeof *shared; k++)
            lost |= any_damaged(b, damaged, shared[k], g, ICMA_NO_OWNER);
        for (size_t k = 0; k < sizeof own / sizeof *own; k++)
            lost |= any_damaged(b, damaged, own[k], g, task);
    }
    return lost;
}

/* Backwards: a lossless checkpoint is lost with those that it is predicted from. */
static void mark_part(const icma_bundle *b, const bool *damaged, uint32_t task, const icma_part *p, bool *lost) {
    bool everything = any_damaged(b, damaged, ICMA_SECTION_HEAD, p->group, ICMA_NO_OWNER) || any_damaged(b, damaged, ICMA_SECTION_TEXTS, p->group, task);
    for (size_t i = p->table.count; i-- > 0;) {
        const icma_checkpoint *c = &p->table.list[i];
        lost[i] = everything || covering_damaged(b, damaged, ICMA_SECTION_VERBATIM, p->group, task, i);
        if (c->tier == ICMA_TIER_BOUNDED)
            lost[i] |= covering_damaged(b, damaged, ICMA_SECTION_RESIDUAL, p->group, task, i);
        if (c->tier == ICMA_TIER_LOSSLESS)
            lost[i] |= covering_damaged(b, damaged, ICMA_SECTION_LINK, p->group, task, i);
        for (size_t tap = 1; tap <= c->taps; tap++)
            lost[i] |= lost[i + tap];
    }
}

icma_status icma_bundle_losses(icma_bundle *b, size_t task, const bool *damaged, bool **lost, size_t *count, icma_error *error) {
    *lost = NULL;
    if (all_is_lost(b, damaged, (uint32_t)task, count))
        return ICMA_OK;
    icma_status status = icma_bundle_load_task(b, (uint32_t)task, error);
    if (status)
        return status == ICMA_E_CORRUPT ? ICMA_OK : status;
    const icma_task_state *t = &b->tasks[task];
    bool *flags = icma_alloc_zeroed(t->count, sizeof *flags), *part = icma_alloc_zeroed(t->count, sizeof *part);
    if (!flags || !part) {
        icma_free(flags);
        icma_free(part);
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a task");
    }
    for (uint32_t p = 0; p < t->part_count; p++) {
        mark_part(b, damaged, (uint32_t)task, &t->parts[p], part);
        for (size_t i = 0; i < t->count; i++)
            if (t->places[i].part == p)
                flags[i] = part[t->places[i].index];
    }
    icma_free(part);
    *lost = flags;
    return ICMA_OK;
}
