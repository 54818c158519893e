/* SPDX-License-Identifier: Apache-2.0 */
#include "train.h"

#include "latents.h"
#include "memory.h"
#include "progress.h"

#include <lapacke.h>
#include <math.h>
#include <stdio.h>
#include <string.h>


typedef struct trainer {
    const icma_group *group;
    const icma_basis *basis;
    const icma_pack_options *options;
    const icma_ops *ops;
    icma_generator *generator;
    icma_training *training;
    icma_training_plan plan;
    icma_rng rng;
    double *sigma;      /* K: within-task spread of each coordinate */
    double *task_mean;  /* tasks x K */
    icma_cvae *cvae;
    icma_tensor *p, *u, *weight, *rows, *tasks, *noise, *trainable;
    uint32_t *order, *order_task; /* of the current epoch */
    float *noise_values;
    double kl_weight;
} trainer;

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for training");
}

void icma_training_free(icma_training *t) {
    icma_conditions_free(&t->conditions);
    icma_free(t->active);
    icma_free(t->latent);
    memset(t, 0, sizeof *t);
}

static void trainer_free(trainer *t) {
    icma_tensor *tensors[] = {t->p, t->u, t->weight, t->rows, t->tasks, t->noise, t->trainable};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++)
        t->ops->release(t->ops->device, tensors[i]);
    icma_cvae_free(t->cvae);
    icma_free(t->sigma);
    icma_free(t->task_mean);
    icma_free(t->order);
    icma_free(t->order_task);
    icma_free(t->noise_values);
}

/* --- statistics ---------------------------------------------------------------------------------------- */

/* Task means and within-task spread of every coordinate; a coordinate that does not vary gets the coding noise as its spread. */
static icma_status measure(trainer *t, icma_error *error) {
    size_t n = t->group->count, k = t->basis->total, tasks = t->training->conditions.count;
    const double *p = t->basis->coordinates;
    t->sigma = icma_alloc_zeroed(k, sizeof *t->sigma);
    t->task_mean = icma_alloc_zeroed(tasks * k, sizeof *t->task_mean);
    double *count = icma_alloc_zeroed(tasks, sizeof *count);
    if (!t->sigma || !t->task_mean || !count) {
        icma_free(count);
        return no_memory(error);
    }
    for (size_t i = 0; i < n; i++)
        count[t->training->conditions.slot[i]]++;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < k; j++)
            t->task_mean[t->training->conditions.slot[i] * k + j] += p[i * k + j] / count[t->training->conditions.slot[i]];
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < k; j++) {
            double d = p[i * k + j] - t->task_mean[t->training->conditions.slot[i] * k + j];
            t->sigma[j] += d * d / (double)n;
        }
    for (size_t j = 0; j < k; j++)
        t->sigma[j] = sqrt(fmax(t->sigma[j], t->plan.theta));
    icma_free(count);
    return ICMA_OK;
}

/* The widest trunk that stays within 5 % of the head. */
static size_t widest_trunk(const trainer *t, size_t coordinates, uint64_t head_bytes) {
    static const size_t widths[] = {64, 48, 32, 24, 16, 12, 8};
    const size_t count = sizeof widths / sizeof *widths;
    for (size_t i = 0; i < count; i++) {
        uint64_t h = widths[i], in = t->plan.latent + coordinates, k = t->basis->total;
        uint64_t bytes = 2 * (in * h + h * h + h * k) + 4 * (2 * h + (in + 1) * k); /* bfloat16 and f32 parts */
        if (bytes * 20 <= head_bytes)
            return widths[i];
    }
    return widths[count - 1];
}

static void make_plan(trainer *t, uint64_t head_bytes) {
    const icma_pack_options *o = t->options;
    size_t n = t->group->count;
    t->plan.theta = icma_basis_water_level(t->basis);
    t->plan.latent = o->latent_dim < ICMA_MAX_LATENT ? o->latent_dim : ICMA_MAX_LATENT;
    t->plan.batch = o->batch < n ? o->batch : n;
    size_t steps = (n + t->plan.batch - 1) / t->plan.batch;
    size_t automatic = 4000 / steps < 50 ? 50 : 4000 / steps > 500 ? 500 : 4000 / steps;
    t->plan.epochs = o->epochs ? o->epochs : automatic;
    t->plan.encoder_hidden = 64;
    t->plan.hidden = widest_trunk(t, t->generator->coordinates, head_bytes);
    icma_explain(&o->progress, "train", "%zu epochs of %zu steps (%s), %zu latent dimensions, %zu hidden units (%s)", t->plan.epochs, steps,
                 o->epochs ? "as asked for" : "4,000 steps are enough, in 50 to 500 epochs", t->plan.latent, t->plan.hidden, "the most that stay under 5 % of the rows' bytes");
    t->training->theta = t->plan.theta;
    t->training->epochs = t->plan.epochs;
    t->training->batch = t->plan.batch;
}

/* --- the network's start ----------------------------------------------------------------------------------------- */

/* S and b3 start as the least-squares map from conditions to task means, in spreads: the MLP has only to learn what varies within a task. */
static icma_status start_from_means(trainer *t, icma_error *error) {
    size_t m = t->generator->coordinates, k = t->basis->total, d = t->plan.latent, tasks = t->training->conditions.count;
    double *normal = icma_alloc_zeroed(m * m, sizeof *normal), *right = icma_alloc_zeroed(m * k, sizeof *right);
    float *skip = icma_alloc_zeroed((d + m) * k, sizeof *skip);
    icma_status status = normal && right && skip ? ICMA_OK : no_memory(error);
    for (size_t i = 0; !status && i < tasks; i++)
        for (size_t a = 0; a < m; a++) {
            double x = t->training->conditions.table[i * m + a];
            for (size_t b = 0; b < m; b++)
                normal[a * m + b] += x * t->training->conditions.table[i * m + b];
            for (size_t j = 0; j < k; j++)
                right[a * k + j] += x * t->task_mean[i * k + j] / t->sigma[j];
        }
    double trace = 0;
    for (size_t a = 0; !status && a < m; a++)
        trace += normal[a * m + a];
    for (size_t a = 0; !status && a < m; a++)
        normal[a * m + a] += 1e-9 * trace; /* fewer tasks than coordinates, or equal conditions: the smallest solution */
    if (!status && m && LAPACKE_dposv(LAPACK_ROW_MAJOR, 'U', (lapack_int)m, (lapack_int)k, normal, (lapack_int)m, right, (lapack_int)k) != 0)
        status = icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "the tasks' condition vectors are degenerate");
    for (size_t i = 0; !status && i < m * k; i++)
        skip[d * k + i] = (float)right[i];
    if (!status)
        status = icma_cvae_set(t->cvae, ICMA_P_S, skip, error);
    icma_free(normal);
    icma_free(right);
    icma_free(skip);
    return status;
}

static icma_status upload(trainer *t, icma_tensor **out, icma_element element, const void *values, size_t count, icma_error *error) {
    icma_status status = t->ops->alloc(t->ops->device, element, count ? count : 1, out, error);
    return status || !values ? status : t->ops->upload(t->ops->device, *out, 0, values, count, error);
}

/* p: coordinates in spreads. u: their deviation from the task's mean, which is what z has to tell. */
static icma_status upload_targets(trainer *t, icma_error *error) {
    size_t n = t->group->count, k = t->basis->total;
    float *p = icma_alloc_array(n * k, sizeof *p), *u = icma_alloc_array(n * k, sizeof *u), *w = icma_alloc_array(k, sizeof *w);
    icma_status status = p && u && w ? ICMA_OK : no_memory(error);
    for (size_t i = 0; !status && i < n; i++)
        for (size_t j = 0; j < k; j++) {
            double x = t->basis->coordinates[i * k + j];
            p[i * k + j] = (float)(x / t->sigma[j]);
            u[i * k + j] = (float)((x - t->task_mean[t->training->conditions.slot[i] * k + j]) / t->sigma[j]);
        }
    uint64_t weights = 0;
    for (size_t i = 0; i < t->group->signature.tensor_count; i++)
        if (icma_generator_is_modelled(t->generator, i))
            weights += ICMA_SCALE_WEIGHTS; /* standardised, a mean square of 1 */
    for (size_t j = 0; !status && j < k; j++) {
        double square = t->sigma[j] * t->sigma[j];
        w[j] = (float)(t->options->loss == ICMA_LOSS_PAPER ? square / (double)weights : square / (2 * t->plan.theta));
    }
    if (!status)
        status = upload(t, &t->p, ICMA_ELEMENT_F32, p, n * k, error);
    if (!status)
        status = upload(t, &t->u, ICMA_ELEMENT_F32, u, n * k, error);
    if (!status)
        status = upload(t, &t->weight, ICMA_ELEMENT_F32, w, k, error);
    icma_free(p);
    icma_free(u);
    icma_free(w);
    return status;
}

static icma_status upload_trainable(trainer *t, icma_error *error) {
    size_t tasks = t->training->conditions.count, m = t->generator->coordinates;
    float *mask = icma_alloc_zeroed(tasks * m, sizeof *mask);
    if (!mask)
        return no_memory(error);
    for (size_t i = 0; i < tasks; i++)
        for (size_t j = 0; j < m; j++)
            mask[i * m + j] = t->training->conditions.learned[i] ? 1 : 0;
    icma_status status = upload(t, &t->trainable, ICMA_ELEMENT_F32, mask, tasks * m, error);
    icma_free(mask);
    return status;
}

static icma_status prepare(trainer *t, icma_error *error) {
    size_t n = t->group->count;
    icma_cvae_shape shape = {t->basis->total, t->plan.latent, t->generator->coordinates, t->plan.hidden, t->plan.encoder_hidden, t->training->conditions.count, n};
    icma_status status = icma_cvae_create(t->ops, shape, &t->rng, &t->cvae, error);
    if (!status)
        status = icma_cvae_set(t->cvae, ICMA_P_CONDITIONS, t->training->conditions.table, error);
    if (!status)
        status = start_from_means(t, error);
    if (!status)
        status = upload_targets(t, error);
    if (!status)
        status = upload_trainable(t, error);
    if (!status)
        status = upload(t, &t->rows, ICMA_ELEMENT_U32, NULL, n, error);
    if (!status)
        status = upload(t, &t->tasks, ICMA_ELEMENT_U32, NULL, n, error);
    if (!status)
        status = upload(t, &t->noise, ICMA_ELEMENT_F32, NULL, n * t->plan.latent, error);
    t->order = icma_alloc_array(n, sizeof *t->order);
    t->order_task = icma_alloc_array(n, sizeof *t->order_task);
    t->noise_values = icma_alloc_zeroed(n * (t->plan.latent ? t->plan.latent : 1), sizeof *t->noise_values);
    if (!status && (!t->order || !t->order_task || !t->noise_values))
        status = no_memory(error);
    for (size_t i = 0; !status && i < n; i++)
        t->order[i] = (uint32_t)i;
    t->kl_weight = t->options->loss == ICMA_LOSS_PAPER ? t->options->kld_weight : 1;
    return status;
}

/* --- the loop ---------------------------------------------------------------------------------------------------- */

static icma_cvae_batch batch_at(trainer *t, size_t first, size_t count) {
    size_t n = t->group->count, k = t->basis->total;
    return (icma_cvae_batch){
        .p = icma_matrix_of(t->p, n, k), .u = icma_matrix_of(t->u, n, k), .weight = icma_matrix_of(t->weight, 1, k),
        .rows = t->rows, .tasks = t->tasks, .first = first, .count = count,
        .noise = icma_matrix_of(t->noise, count, t->plan.latent), .kl_weight = (float)t->kl_weight,
    };
}

static icma_status upload_order(trainer *t, icma_error *error) {
    size_t n = t->group->count;
    for (size_t i = 0; i < n; i++)
        t->order_task[i] = t->training->conditions.slot[t->order[i]];
    icma_status status = t->ops->upload(t->ops->device, t->rows, 0, t->order, n, error);
    return status ? status : t->ops->upload(t->ops->device, t->tasks, 0, t->order_task, n, error);
}

static icma_status run_step(trainer *t, icma_cvae_batch *b, uint64_t step, uint64_t steps, double losses[2], icma_error *error) {
    size_t cells = b->count * t->plan.latent;
    for (size_t i = 0; i < cells; i++)
        t->noise_values[i] = icma_rng_normal(&t->rng);
    icma_status status = t->ops->upload(t->ops->device, t->noise, 0, t->noise_values, cells, error);
    if (status)
        return status;
    icma_cvae_forward(t->cvae, b);
    if (losses) {
        double reconstruction, kl;
        status = icma_cvae_loss(t->cvae, b, &reconstruction, &kl, error);
        losses[0] += reconstruction * (double)b->count;
        losses[1] += kl * (double)b->count;
    }
    icma_cvae_backward(t->cvae, b);
    double rate = t->options->learning_rate * 0.5 * (1 + cos(3.14159265358979323846 * (double)(step - 1) / (double)steps));
    icma_adam adam = {.learning_rate = (float)rate, .beta1 = 0.9F, .beta2 = 0.999F, .epsilon = 1e-8F, .step = step};
    icma_cvae_adam(t->cvae, adam, icma_matrix_of(t->trainable, t->training->conditions.count, t->generator->coordinates));
    return status;
}

static void note_losses(trainer *t, size_t epoch, const double losses[2]) {
    icma_training *out = t->training;
    size_t n = t->group->count;
    if (out->loss_count < ICMA_LOSS_POINTS) {
        out->loss_epoch[out->loss_count] = epoch + 1;
        out->loss_reconstruction[out->loss_count] = losses[0] / (double)n;
        out->loss_kl[out->loss_count++] = losses[1] / (double)n;
    }
}

static icma_status report_epoch(const trainer *t, size_t epoch, icma_error *error) {
    const icma_progress *progress = &t->options->progress;
    char note[64] = "";
    if (t->training->loss_count) {
        size_t last = t->training->loss_count - 1;
        snprintf(note, sizeof note, "loss %.4g, KL %.3g", t->training->loss_reconstruction[last], t->training->loss_kl[last]);
    }
    icma_tell(progress, "train", (double)epoch, (double)t->plan.epochs, note);
    return icma_check_cancelled(progress, error);
}

static icma_status run_epochs(trainer *t, icma_error *error) {
    size_t n = t->group->count, batch = t->plan.batch, per_epoch = (n + batch - 1) / batch;
    size_t every = (t->plan.epochs + ICMA_LOSS_POINTS - 2) / (ICMA_LOSS_POINTS - 1);
    icma_status status = ICMA_OK;
    for (size_t epoch = 0; !status && epoch < t->plan.epochs; epoch++) {
        double losses[2] = {0, 0};
        bool measured = epoch % every == 0 || epoch + 1 == t->plan.epochs;
        icma_rng_shuffle(&t->rng, t->order, n);
        status = upload_order(t, error);
        for (size_t s = 0; !status && s < per_epoch; s++) {
            size_t first = s * batch;
            icma_cvae_batch b = batch_at(t, first, n - first < batch ? n - first : batch);
            status = run_step(t, &b, epoch * per_epoch + s + 1, t->plan.epochs * per_epoch, measured ? losses : NULL, error);
        }
        if (!status && measured) {
            note_losses(t, epoch, losses);
            if (!isfinite(losses[0] + losses[1]))
                status = icma_fail(error, ICMA_E_USAGE, NULL, "training ran away: its loss is not finite; use a smaller learning rate than %g",
                                   t->options->learning_rate);
        }
        if (!status)
            status = report_epoch(t, epoch, error);
    }
    return status;
}

/* --- what was learned -------------------------------------------------------------------------------------------- */

static icma_status read_parameter(trainer *t, icma_parameter which, float **out, size_t *rows, size_t *columns, icma_error *error) {
    icma_matrix m = icma_cvae_parameter(t->cvae, which);
    *rows = m.rows;
    *columns = m.columns;
    *out = icma_alloc_array(m.rows * m.columns + 1, sizeof(float));
    return *out ? icma_cvae_get(t->cvae, which, *out, error) : no_memory(error);
}

/* Copies one part of the trunk: rows of latents that were dropped are left out, outputs go back from spreads to coordinates. */
static icma_status copy_part(trainer *t, icma_trunk_part part, icma_parameter which, bool latent_rows, bool scaled, const size_t *kept, icma_error *error) {
    float *from;
    size_t rows, columns, d = t->plan.latent, active = t->generator->latent;
    icma_status status = read_parameter(t, which, &from, &rows, &columns, error);
    size_t wanted, same;
    icma_trunk_shape(t->generator, part, &wanted, &same);
    for (size_t i = 0; !status && i < wanted; i++) {
        size_t row = !latent_rows ? i : i < active ? kept[i] : i - active + d;
        for (size_t j = 0; j < columns; j++)
            t->generator->trunk[part][i * columns + j] = (float)(from[row * columns + j] * (scaled ? t->sigma[j] : 1));
    }
    icma_free(from);
    return status;
}

static icma_status copy_trunk(trainer *t, const size_t *kept, icma_error *error) {
    static const struct {
        icma_trunk_part part;
        icma_parameter parameter;
        bool latent_rows, scaled;
    } parts[ICMA_TRUNK_PARTS] = {
        {ICMA_TRUNK_V1, ICMA_P_V1, true, false}, {ICMA_TRUNK_B1, ICMA_P_b1, false, false}, {ICMA_TRUNK_V2, ICMA_P_V2, false, false},
        {ICMA_TRUNK_B2, ICMA_P_b2, false, false}, {ICMA_TRUNK_V3, ICMA_P_V3, false, true}, {ICMA_TRUNK_S, ICMA_P_S, true, true},
        {ICMA_TRUNK_B3, ICMA_P_b3, false, true},
    };
    icma_status status = ICMA_OK;
    for (int i = 0; !status && i < ICMA_TRUNK_PARTS; i++)
        status = copy_part(t, parts[i].part, parts[i].parameter, parts[i].latent_rows, parts[i].scaled, kept, error);
    return status;
}

static icma_status copy_learned(trainer *t, icma_error *error) {
    icma_status status = icma_cvae_get(t->cvae, ICMA_P_CONDITIONS, t->training->conditions.table, error);
    if (!status)
        icma_conditions_settle(&t->training->conditions, t->generator->coordinates);
    return status;
}

/* Posterior means of all checkpoints: the encoder without noise. */
static icma_status encode_all(trainer *t, float *mu, float *logvar, icma_error *error) {
    size_t n = t->group->count, cells = n * t->plan.latent;
    for (size_t i = 0; i < n; i++)
        t->order[i] = (uint32_t)i;
    memset(t->noise_values, 0, cells * sizeof *t->noise_values);
    icma_status status = upload_order(t, error);
    if (!status)
        status = t->ops->upload(t->ops->device, t->noise, 0, t->noise_values, cells, error);
    if (status)
        return status;
    icma_cvae_batch all = batch_at(t, 0, n);
    icma_cvae_forward(t->cvae, &all);
    status = t->ops->download(t->ops->device, icma_cvae_mu(t->cvae, n).tensor, 0, mu, cells, error);
    return status ? status : t->ops->download(t->ops->device, icma_cvae_logvar(t->cvae, n).tensor, 0, logvar, cells, error);
}

static icma_status finish(trainer *t, icma_error *error) {
    icma_generator *g = t->generator;
    size_t n = t->group->count, d = t->plan.latent;
    size_t *kept = icma_alloc_array(d + 1, sizeof *kept);
    float *mu = icma_alloc_array(n * d + 1, sizeof *mu), *logvar = icma_alloc_array(n * d + 1, sizeof *logvar);
    icma_status status = kept && mu && logvar ? encode_all(t, mu, logvar, error) : no_memory(error);
    if (status)
        goto done;
    g->kind = ICMA_GENERATOR_BASIS;
    icma_posterior posterior = {mu, logvar, n, d};
    g->latent = icma_latents_active(&posterior, &t->training->conditions, t->training->active, kept);
    g->hidden = t->plan.hidden;
    status = icma_generator_allocate(g, error);
    if (status)
        goto done;
    t->training->latent = icma_alloc_zeroed(n * (g->latent ? g->latent : 1), sizeof *t->training->latent);
    if (!t->training->latent) {
        status = no_memory(error);
        goto done;
    }
    for (size_t j = 0; j < g->latent; j++) {
        g->latent_step[j] = icma_latents_step(&posterior, kept[j]);
        for (size_t i = 0; i < n; i++)
            t->training->latent[i * g->latent + j] = icma_latents_integer(mu[i * d + kept[j]], g->latent_step[j]);
    }
    for (size_t k = 0; k < g->total; k++)
        g->correction_step[k] = (float)sqrt(12 * t->plan.theta);
    status = copy_trunk(t, kept, error);
    if (!status)
        status = copy_learned(t, error);
done:
    icma_free(kept);
    icma_free(mu);
    icma_free(logvar);
    return status;
}

icma_status icma_train(const icma_group *group, const icma_basis *basis, const icma_condition *conditions,
                       const icma_pack_options *options, uint64_t head_bytes, const icma_ops *ops, icma_generator *generator,
                       icma_training *out, icma_error *error) {
    *out = (icma_training){.ops = ops};
    trainer t = {.group = group, .basis = basis, .options = options, .ops = ops, .generator = generator, .training = out,
                 .rng = icma_rng_seed(options->seed)};
    memcpy(generator->components, basis->components, sizeof generator->components);
    icma_status status = icma_conditions_prepare(group, ops, conditions, &t.rng, generator, &out->conditions, error);
    if (!status && !(out->active = icma_alloc_zeroed(out->conditions.count, sizeof *out->active)))
        status = no_memory(error);
    if (!status) {
        make_plan(&t, head_bytes);
        status = measure(&t, error);
    }
    if (!status)
        status = prepare(&t, error);
    if (!status)
        status = run_epochs(&t, error);
    if (!status)
        status = finish(&t, error);
    if (!status)
        icma_explain(&options->progress, "train", "%zu of %zu latent dimensions vary between checkpoints and are kept", generator->latent, t.plan.latent);
    trainer_free(&t);
    if (status)
        icma_training_free(out);
    return status;
}
