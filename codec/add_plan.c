/* SPDX-License-Identifier: Apache-2.0 */
/* Which generator predicts newcomers: one of the archive's, or their own. */
#include "add.h"

#include "memory.h"
#include "progress.h"
#include "residual_rate.h"

#include <math.h>
#include <string.h>

enum {
    MOST_CANDIDATES = 8,  /* old groups of one signature that are tried, from the first on */
    MOST_SAMPLED = 4096,  /* sources that are looked at */
    COEFFICIENT_BITS = 8, /* a correction, about */
    GROUP_BYTES = 1024,   /* index entries, padding and what else a group of its own takes beside the sections
                             that are counted */
    RECORD_BYTES_A_TENSOR = 24, /* compressed */
};

/* What a candidate would make of newcomers. */
typedef struct trial {
    uint32_t group;
    bool possible;
    icma_fit fit; /* owned */
    double explained, bytes;
    double error; /* mean relative error of dW that is predicted without residuals */
} trial;

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for new checkpoints");
}

void icma_add_plan_free(icma_add_plan *plan) {
    icma_fit_free(&plan->fit);
}

/* Bytes of tensors that this generator keeps verbatim and another might model. */
static double verbatim_bytes(const icma_group *group, const icma_generator *g) {
    double bytes = 0;
    for (size_t t = 0; t < g->tensor_count; t++)
        if (!icma_generator_is_modelled(g, t))
            bytes += (double)group->signature.tensors[t].size * (double)group->count;
    return bytes;
}

/* Energies that rows leave over, a role and sampled source each; all-zero noise beside them. Owned by the
 * caller. */
typedef struct leftovers {
    double *left[ICMA_ROLE_COUNT], *noise[ICMA_ROLE_COUNT];
} leftovers;

static void free_leftovers(leftovers *l) {
    for (int role = 0; role < ICMA_ROLE_COUNT; role++) {
        icma_free(l->left[role]);
        icma_free(l->noise[role]);
    }
}

static icma_status make_leftovers(const icma_gram *gram, trial *t, leftovers *out, icma_error *error) {
    double energy = 0, captured = 0;
    size_t n = gram->count;
    memset(out, 0, sizeof *out);
    for (int role = 0; role < ICMA_ROLE_COUNT; role++) {
        if (!gram->matrix[role])
            continue;
        out->left[role] = icma_alloc_array(n, sizeof(double));
        out->noise[role] = icma_alloc_zeroed(n, sizeof(double));
        if (!out->left[role] || !out->noise[role])
            return no_memory(error);
        for (size_t i = 0; i < n; i++) {
            double own = gram->matrix[role][i * n + i],
                   rows = t->fit.captured[role] ? fmin(own, t->fit.captured[role][gram->rows[i]]) : 0;
            out->left[role][i] = own - rows;
            energy += own;
            captured += rows;
        }
    }
    t->explained = t->fit.coordinates && energy > 0 ? captured / energy : NAN;
    return ICMA_OK;
}

/* As in basis_choose.c: dW = B A is linear in each factor. */
static double mean_error(const icma_gram *gram, const leftovers *l) {
    double mean = 0;
    for (size_t i = 0; i < gram->count; i++) {
        double square = 0;
        for (int role = 0; role < ICMA_ROLE_COUNT; role++)
            if (l->left[role] && gram->matrix[role][i * gram->count + i] > 0)
                square += l->left[role][i] / gram->matrix[role][i * gram->count + i];
        mean += sqrt(square) / (double)gram->count;
    }
    return mean;
}

static icma_status predict_bytes(const icma_adder *a, const icma_group *group, const icma_generator *g,
                                 const icma_gram *gram, const leftovers *l, double *bytes,
                                 icma_error *error) {
    icma_residual_model *model;
    *bytes = NAN;
    if (a->pack.tier != ICMA_TIER_BOUNDED)
        return ICMA_OK;
    icma_status status =
        icma_residual_model_create(group, gram, g, a->pack.bound, ICMA_RATE_SOURCES, &model, error);
    if (status)
        return status;
    double bits = icma_residual_model_bits(model, l->left, l->noise) +
                  COEFFICIENT_BITS * (double)g->total * (double)gram->count;
    *bytes = bits / 8 * (double)group->count / (double)gram->count + verbatim_bytes(group, g);
    icma_residual_model_free(model);
    return ICMA_OK;
}

static icma_status try_old(icma_adder *a, icma_group *group, trial *t, icma_error *error) {
    icma_bundle *b = a->change.bundle;
    const icma_generator *g = &b->groups[t->group].generator;
    icma_gram gram = {0};
    leftovers l = {{0}, {0}};
    t->possible = g->kind == ICMA_GENERATOR_BASIS ||
                  (g->kind == ICMA_GENERATOR_NONE && a->pack.tier >= ICMA_TIER_BOUNDED);
    t->explained = t->bytes = NAN;
    if (!t->possible)
        return ICMA_OK;
    uint64_t work = icma_decode_work(&group->signature, g);
    if (work > b->limits.max_work)
        return icma_fail(error, ICMA_E_LIMIT, NULL,
                         "decoding takes %llu multiply-adds; raise --max-work if you trust the file",
                         (unsigned long long)work);
    icma_status status = icma_bundle_open_decoder(b, t->group, error);
    if (!status)
        status = icma_gram_compute_as(group, a->packer.ops, MOST_SAMPLED, a->pack.seed, &a->pack.progress, g,
                                      &gram, error);
    if (!status && g->kind == ICMA_GENERATOR_BASIS)
        status = icma_fit_project(group, g, b->groups[t->group].decoder, a->packer.ops, &a->pack.progress,
                                  &t->fit, error);
    if (!status)
        status = make_leftovers(&gram, t, &l, error);
    if (!status)
        status = predict_bytes(a, group, g, &gram, &l, &t->bytes, error);
    if (!status)
        t->error = mean_error(&gram, &l);
    free_leftovers(&l);
    icma_gram_free(&gram);
    return status;
}

/* What a generator of their own would take, by the rate model that chooses its rows, and beside that for
 * having a group more. */
static icma_status try_new(icma_adder *a, icma_group *group, uint32_t like, icma_add_plan *plan,
                           icma_error *error) {
    icma_pack_options quiet = a->pack; /* what it would choose is not what is chosen */
    icma_generator g = {.tensor_count = group->signature.tensor_count};
    icma_gram gram = {0};
    icma_basis basis = {.bits = NAN};
    const icma_section *signature =
        icma_container_find(a->change.bundle->container, ICMA_SECTION_SIGNATURE, like, ICMA_NO_OWNER);
    quiet.progress.explain = NULL;
    if (a->pack.tier != ICMA_TIER_BOUNDED)
        return ICMA_OK;
    icma_status status = icma_generator_allocate(&g, error);
    if (!status)
        status = icma_gram_compute(group, a->packer.ops, MOST_SAMPLED, quiet.seed, &quiet.progress, &g, &gram,
                                   error);
    if (!status)
        status = icma_basis_choose(group, a->packer.ops, &gram, &g, icma_pack_target(&quiet), &basis, error);
    if (!status) {
        plan->beside = (double)signature->stored_size + GROUP_BYTES +
                       (double)(sizeof(float) + RECORD_BYTES_A_TENSOR) * (double)g.tensor_count;
        plan->new_bytes = basis.bits / 8 * (double)group->count / (double)gram.count +
                          verbatim_bytes(group, &g) + plan->beside;
    }
    icma_basis_free(&basis);
    icma_gram_free(&gram);
    icma_generator_free(&g);
    return status;
}

/* Under a bound the fewer bytes; without one the smaller error. What leaves both open (tier lossless): the
 * first. */
static bool is_better(const icma_adder *a, const trial *t, const trial *best) {
    if (!best->possible)
        return t->possible;
    return t->possible &&
           (a->pack.tier == ICMA_TIER_BOUNDED ? t->bytes < best->bytes : t->error < best->error);
}

static icma_status find_best(icma_adder *a, size_t index, trial *best, icma_error *error) {
    icma_group *group = &a->packer.dataset.groups[index];
    icma_status status = ICMA_OK;
    size_t tried = 0;
    memset(best, 0, sizeof *best);
    for (size_t g = index; !status && g < a->old_groups && tried < MOST_CANDIDATES; g++) {
        trial t = {.group = (uint32_t)g};
        if (g != index &&
            !icma_safetensors_same_signature(&a->packer.dataset.groups[g].signature, &group->signature))
            continue;
        tried++;
        status = try_old(a, group, &t, error);
        if (!status && is_better(a, &t, best)) {
            icma_fit_free(&best->fit);
            *best = t;
        } else
            icma_fit_free(&t.fit);
    }
    return status;
}

static bool prefers_old(const icma_adder *a, const trial *best, double new_bytes) {
    if (a->options->choice != ICMA_ADD_AUTO)
        return a->options->choice == ICMA_ADD_OLD;
    switch (a->pack.tier) {
    case ICMA_TIER_BOUNDED:
        return !(new_bytes < best->bytes);
    case ICMA_TIER_LOSSLESS:
        return true; /* a prediction more costs next to nothing */
    default:
        return best->error <= a->pack.max_error;
    }
}

/* For -v: what is known before the choice. */
static void explain(const icma_adder *a, const icma_group *group, const trial *best,
                    const icma_add_plan *plan) {
    const icma_progress *p = &a->pack.progress;
    if (!best->possible) {
        icma_explain(p, "generator",
                     "%zu checkpoints get one of their own: no old group of their tensors can be joined",
                     group->count);
        return;
    }
    if (isnan(plan->old_bytes) || isnan(plan->new_bytes))
        icma_explain(p, "generator", "%zu checkpoints: old group %u alone predicts dW to %.3g on average",
                     group->count, best->group, best->error);
    else
        icma_explain(
            p, "generator",
            "%zu checkpoints: about %.0f bytes with old group %u, %.0f with a generator of their own",
            group->count, plan->old_bytes, best->group, plan->new_bytes);
}

icma_status icma_add_decide(icma_adder *a, size_t index, icma_add_plan *plan, icma_error *error) {
    icma_group *group = &a->packer.dataset.groups[index];
    trial best = {0};
    *plan = (icma_add_plan){.explained = NAN, .old_bytes = NAN, .new_bytes = NAN};
    if (index >= a->old_groups)
        return a->options->choice != ICMA_ADD_OLD
                   ? ICMA_OK
                   : icma_fail(error, ICMA_E_UNSUPPORTED, group->sources->input->path,
                               "no group of the archive has its tensors; leave out --generator old");
    icma_status status = try_new(a, group, (uint32_t)index, plan, error);
    if (!status)
        status = find_best(a, index, &best, error);
    if (!status && a->options->choice == ICMA_ADD_OLD && !best.possible)
        status = icma_fail(error, ICMA_E_UNSUPPORTED, group->sources->input->path,
                           "no group of the archive with its tensors has a basis to project on (an encoder "
                           "is not in the archive); leave out --generator old");
    if (!status && best.possible) {
        plan->explained = best.explained;
        plan->old_bytes = best.bytes;
    }
    if (!status)
        explain(a, group, &best, plan);
    if (!status && best.possible && prefers_old(a, &best, plan->new_bytes)) {
        plan->joined = true;
        plan->group = best.group;
        plan->fit = best.fit;
        return ICMA_OK;
    }
    icma_fit_free(&best.fit);
    return status;
}

icma_status icma_add_decide_steps(icma_adder *a, icma_group *group, uint32_t old, icma_add_plan *plan,
                                  icma_error *error) {
    trial t = {.group = old};
    const char *name = a->wanted.tasks[group->sources->task].name;
    *plan = (icma_add_plan){.joined = true, .group = old, .new_bytes = NAN};
    icma_status status = try_old(a, group, &t, error);
    plan->fit = t.fit;
    plan->explained = t.explained;
    plan->old_bytes = t.bytes;
    if (!status && !t.possible)
        return icma_fail(
            error, ICMA_E_UNSUPPORTED, NULL,
            "new checkpoints of %s cannot follow the old ones %s; rename the task and add it as "
            "another, or take it out first (icma remove) and add all of it",
            name,
            a->change.bundle->groups[old].generator.kind == ICMA_GENERATOR_NONE
                ? "under this tier, because their group has no generator"
                : "in a group whose generator is a network, because its encoder is not in the archive");
    if (!status && a->pack.tier == ICMA_TIER_LATENT && !(t.error <= a->pack.max_error))
        return icma_fail(
            error, ICMA_E_UNSUPPORTED, NULL,
            "the generator predicts new checkpoints of %s to a relative error of dW of about %.3g only, "
            "and tier latent keeps nothing else; add them with --tier bounded or lossless",
            name, t.error);
    if (!status)
        icma_explain(&a->pack.progress, "generator",
                     "%zu new checkpoints of %s: its group %u predicts dW to %.3g on average", group->count,
                     name, old, t.error);
    return status;
}
