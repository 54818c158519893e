/* SPDX-License-Identifier: Apache-2.0 */
#include "conv_train.h"

#include "conv_data.h"
#include "conv_net.h"
#include "compress.h"
#include "latents.h"
#include "memory.h"
#include "progress.h"
#include "training_file.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum {
    ENCODER_HIDDEN = 256,    /* numbers in e: the reference's */
    AUTOMATIC_STEPS = 1000,  /* of training, within 20 to 400 epochs */
    MOST_LANDMARKS = 8,      /* tasks that the coding of the weights is chosen by */
};
static const float latent_noise = 0.1F;      /* of the autoencoder, so that its decoder bears what the denoiser misses (P-diff, section 3.2) */
static const double plateau = 1e-3;          /* a loss this much lower is progress */
static const double most_nats = 1e6;         /* of KL: a posterior that is lost, though its loss is a number */
static const double coding_share = 0.05;     /* how much rounding the weights may add to the squared error, */
static const double coding_aim = 0.6;        /* or to which share of the bound their error may go: modules differ */

typedef enum phase { PHASE_NETWORK, PHASE_DENOISER, PHASE_DONE } phase;

typedef struct session {
    icma_group *group;
    const icma_gram *gram;
    const icma_pack_options *options;
    const icma_ops *ops, *decode_ops; /* of training, and of the decoder, which gives the same numbers on every device */
    icma_generator *generator;
    icma_training *training;
    icma_conv_shape shape;
    icma_conv_data data;
    icma_conv_net *net;
    icma_denoising *denoising;
    icma_denoiser_options denoiser_options;
    icma_posterior posterior;
    float kl_weight;
    float condition_gain;
    bool diffusion;
    /* of a step; `all`: every adapter, where the device has room for them, from which the rows of a step are gathered */
    icma_tensor *x, *a, *noise, *all, *rows;
    float *x_values, *a_values, *noise_values;
    /* what is saved, beside the networks */
    icma_rng rng;
    phase phase;
    uint64_t epoch, position; /* steps done in this epoch */
    double losses[2];         /* summed over the epoch so far */
    double best;
    uint64_t since_best;
    uint32_t *order;
    /* saving */
    char *path;
    uint64_t fingerprint;
    double saved; /* when */
    bool kept;    /* the file holds this training */
    bool retreated; /* from what was asked for, for want of memory */
    /* what a training with less memory starts from */
    size_t batch;
    icma_rng begin;
} session;

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for training");
}

static double seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Frees what lies on the device, and what has the size of a batch. */
static void leave_device(session *s) {
    icma_tensor **tensors[] = {&s->x, &s->a, &s->noise, &s->all, &s->rows};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        s->ops->release(s->ops->device, *tensors[i]);
        *tensors[i] = NULL;
    }
    icma_conv_net_free(s->net);
    icma_denoising_free(s->denoising);
    s->net = NULL;
    s->denoising = NULL;
    float **values[] = {&s->x_values, &s->a_values, &s->noise_values};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        icma_free(*values[i]);
        *values[i] = NULL;
    }
}

static void session_free(session *s) {
    leave_device(s);
    icma_conv_data_close(&s->data);
    icma_free(s->posterior.mu);
    icma_free(s->posterior.logvar);
    icma_free(s->order);
    icma_free(s->path);
}

/* --- plan -------------------------------------------------------------------------------------------------------- */

/* Rising from 8 by octaves to 256 and falling again, as the paper's 8 16 32 64 128 256 256 128 64 32 16 8 for any number of layers. */
static size_t automatic_channels(size_t layer, size_t layers) {
    size_t edge = layer < layers - 1 - layer ? layer : layers - 1 - layer;
    return (size_t)8 << (edge < 5 ? edge : 5);
}

static icma_conv_shape shape_of(const icma_pack_options *o, size_t used, size_t coordinates) {
    bool diffusion = o->generator == ICMA_CHOOSE_DIFFUSION;
    icma_conv_shape shape = {.used = used, .length = icma_conv_padded(used, o->layers), .layers = o->layers, .width = o->kernel, .hidden = ENCODER_HIDDEN, .latent = o->latent_dim,
                             .coordinates = diffusion ? 0 : coordinates, .autoencoder = diffusion, .variance = o->variance};
    for (size_t l = 0; l < shape.layers; l++)
        shape.channels[l] = o->channels[0] ? o->channels[l] : automatic_channels(l, shape.layers);
    return shape;
}

static icma_status make_shape(session *s, icma_error *error) {
    s->shape = shape_of(s->options, s->data.used, s->generator->coordinates);
    if (icma_conv_parameters(&s->shape) > SIZE_MAX / 64)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "a network of this size; use fewer channels or latents");
    return ICMA_OK;
}

static size_t batch_for(const icma_pack_options *o, size_t adapters) {
    return o->batch < adapters ? o->batch : adapters;
}

static size_t epochs_for(const icma_pack_options *o, size_t adapters, size_t batch) {
    size_t epochs = AUTOMATIC_STEPS / ((adapters + batch - 1) / batch);
    return o->epochs ? o->epochs : epochs < 20 ? 20 : epochs > 400 ? 400 : epochs;
}

double icma_conv_train_work(const icma_pack_options *o, size_t adapters, size_t weights) {
    icma_conv_shape shape = shape_of(o, weights, 0);
    return adapters ? 3 * icma_conv_work(&shape) * (double)adapters * (double)epochs_for(o, adapters, batch_for(o, adapters)) : 0;
}

static void make_plan(session *s) {
    const icma_pack_options *o = s->options;
    s->training->batch = s->batch;
    s->training->epochs = epochs_for(o, s->group->count, s->batch);
    s->kl_weight = s->diffusion ? 0 : (float)o->kld_weight;
    /* Coordinates are few, each of unit variance, where the paper's c has hundreds of numbers: so that the condition weighs as much as the latent, they are as long. The decoder's weights take this over. */
    s->condition_gain = sqrtf((float)o->latent_dim / (float)(s->generator->coordinates ? s->generator->coordinates : 1));
    s->denoiser_options = icma_denoiser_defaults(s->group->count);
    s->denoiser_options.hidden = o->latent_dim < 2 ? 32 : o->latent_dim > 16 ? 256 : 16 * o->latent_dim;
    if (o->denoiser_epochs)
        s->denoiser_options.epochs = o->denoiser_epochs;
}

static icma_status upload_room(session *s, icma_error *error) {
    size_t batch = s->training->batch, m = s->shape.coordinates, d = s->shape.latent;
    const icma_ops *ops = s->ops;
    icma_status status = ops->alloc(ops->device, ICMA_ELEMENT_F32, batch * s->shape.length, &s->x, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, batch * m + 1, &s->a, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, batch * d, &s->noise, error);
    s->x_values = icma_alloc_zeroed(batch * s->shape.length, sizeof(float)); /* zero beyond L, and it stays so */
    s->a_values = icma_alloc_zeroed(batch * m + 1, sizeof(float));
    s->noise_values = icma_alloc_zeroed(batch * d, sizeof(float));
    return status || (s->x_values && s->a_values && s->noise_values) ? status : no_memory(error);
}

/* All adapters go to the device at once where that takes at most half of the room it can spare. Where it does not after all, they go step by step. */
static icma_status upload_all(session *s, icma_error *error) {
    const icma_ops *ops = s->ops;
    size_t n = s->group->count, length = s->shape.length, cells;
    icma_error why = {0};
    if (!icma_multiply_size(n, length, &cells) || cells > ops->room / 2 / sizeof(float))
        return ICMA_OK;
    icma_status status = ops->alloc(ops->device, ICMA_ELEMENT_F32, cells, &s->all, &why);
    if (status) /* no room is no failure */
        return status == ICMA_E_MEMORY ? ICMA_OK : icma_fail(error, status, NULL, "%s", why.message);
    status = ops->alloc(ops->device, ICMA_ELEMENT_U32, s->training->batch, &s->rows, error);
    for (uint32_t i = 0; !status && i < n; i++) {
        status = icma_conv_data_load(&s->data, &i, 1, length, s->x_values, error);
        if (!status)
            status = ops->upload(ops->device, s->all, i * length, s->x_values, length, error);
    }
    return status;
}

/* --- saving and resuming ----------------------------------------------------------------------------------------- */

char *icma_conv_training_path(const icma_pack_options *options, uint32_t index) {
    size_t size = strlen(options->training_file) + 16;
    char *path = icma_alloc(size);
    if (path && index == 0)
        snprintf(path, size, "%s", options->training_file);
    else if (path)
        snprintf(path, size, "%s.%u", options->training_file, index);
    return path;
}

static void write_f64(icma_buffer *out, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    icma_write_u64(out, bits);
}

static double read_f64(icma_cursor *from) {
    uint64_t bits = icma_read_u64(from);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* What makes a training this one: data (by the Gram matrices), conditions, network, options. */
static icma_status find_fingerprint(session *s, icma_error *error) {
    const icma_pack_options *o = s->options;
    const icma_conv_shape *shape = &s->shape;
    const uint64_t numbers[] = {1, s->group->count, shape->used, shape->layers, shape->width, shape->hidden, shape->latent, shape->coordinates, shape->autoencoder, shape->variance,
                                s->training->epochs, s->training->batch, o->seed, o->patience, s->denoiser_options.epochs};
    const double reals[] = {o->learning_rate, o->weight_decay, o->kld_weight};
    size_t n = s->gram->count;
    icma_buffer all = {0};
    icma_write_bytes(&all, s->ops->name, strlen(s->ops->name));
    if (!icma_ops_on_host(s->ops))
        icma_write_bytes(&all, o->precision, strlen(o->precision));
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        icma_write_u64(&all, numbers[i]);
    for (size_t l = 0; l < shape->layers; l++)
        icma_write_u64(&all, shape->channels[l]);
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++)
        write_f64(&all, reals[i]);
    icma_write_bytes(&all, s->group->signature.header, s->group->signature.header_size);
    icma_write_bytes(&all, s->training->conditions.slot, s->group->count * sizeof(uint32_t));
    icma_write_bytes(&all, s->training->conditions.table, s->training->conditions.count * s->generator->coordinates * sizeof(float));
    icma_write_bytes(&all, s->generator->scale, s->generator->tensor_count * sizeof(float));
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        if (s->gram->matrix[role])
            icma_write_bytes(&all, s->gram->matrix[role], n * n * sizeof(double));
    icma_status status = icma_buffer_status(&all, error);
    if (!status)
        s->fingerprint = icma_hash(all.data, all.size);
    icma_buffer_free(&all);
    return status;
}

static const icma_conv_state saved_states[] = {ICMA_CONV_PARAMETERS, ICMA_CONV_MOMENT1, ICMA_CONV_MOMENT2, ICMA_CONV_RUNNING};
enum { SAVED_STATES = 4 };

static icma_status write_tensor(session *s, icma_tensor *tensor, size_t count, icma_buffer *out, icma_error *error) {
    float *values = icma_alloc_array(count + 1, sizeof *values);
    icma_status status = values ? s->ops->download(s->ops->device, tensor, 0, values, count, error) : no_memory(error);
    if (!status)
        icma_write_bytes(out, values, count * sizeof *values);
    icma_free(values);
    return status;
}

static icma_status write_denoising(session *s, icma_buffer *out, icma_error *error) {
    size_t count = icma_denoising_state_size(s->denoising);
    float *values = icma_alloc_array(count + 1, sizeof *values);
    icma_status status = values ? icma_denoising_get(s->denoising, values, error) : no_memory(error);
    if (!status)
        icma_write_bytes(out, values, count * sizeof *values);
    icma_free(values);
    return status;
}

static icma_status save(session *s, icma_error *error) {
    const icma_training *t = s->training;
    icma_buffer out = {0};
    if (!s->path)
        return ICMA_OK;
    icma_status status = icma_conv_collect(s->net, s->losses, error);
    icma_write_u64(&out, s->fingerprint);
    icma_write_u64(&out, s->phase);
    icma_write_u64(&out, s->epoch);
    icma_write_u64(&out, s->position);
    icma_write_u64(&out, s->rng.state);
    write_f64(&out, s->losses[0]);
    write_f64(&out, s->losses[1]);
    write_f64(&out, s->best);
    icma_write_u64(&out, s->since_best);
    icma_write_u64(&out, t->epochs_done);
    icma_write_u64(&out, t->loss_count);
    for (size_t i = 0; i < t->loss_count; i++) {
        icma_write_u64(&out, t->loss_epoch[i]);
        write_f64(&out, t->loss_reconstruction[i]);
        write_f64(&out, t->loss_kl[i]);
    }
    icma_write_bytes(&out, s->order, s->group->count * sizeof *s->order);
    for (int i = 0; !status && i < SAVED_STATES; i++) {
        size_t count;
        icma_tensor *tensor = icma_conv_net_state(s->net, saved_states[i], &count);
        status = write_tensor(s, tensor, count, &out, error);
    }
    if (!status && s->phase != PHASE_NETWORK && s->diffusion)
        status = write_denoising(s, &out, error);
    if (!status)
        status = icma_buffer_status(&out, error);
    if (!status)
        status = icma_training_file_save(s->path, &out, error);
    icma_buffer_free(&out);
    s->saved = seconds();
    s->kept |= !status;
    return status;
}

static icma_status other_training(const session *s, icma_error *error) {
    if (s->retreated)
        return icma_fail(error, ICMA_E_DEVICE, s->path, "the GPU's memory does not hold the training that is kept here; go on with --resume when it does, or remove it");
    return icma_fail(error, ICMA_E_USAGE, s->path, "this is the training of other adapters, options or another build; repeat the options that it was started with, or remove it");
}

static icma_status read_tensor(session *s, icma_cursor *from, icma_tensor *tensor, size_t count, icma_error *error) {
    const uint8_t *bytes = icma_read_bytes(from, count * sizeof(float));
    return bytes ? s->ops->upload(s->ops->device, tensor, 0, bytes, count, error) : other_training(s, error);
}

/* Reads what `save` wrote; the file's hash was right, so what does not fit was written by something else. */
static icma_status restore(session *s, icma_cursor *from, icma_error *error) {
    icma_training *t = s->training;
    if (icma_read_u64(from) != s->fingerprint || from->failed)
        return other_training(s, error);
    s->kept = true;
    uint64_t reached = icma_read_u64(from);
    s->phase = reached;
    s->epoch = icma_read_u64(from);
    s->position = icma_read_u64(from);
    s->rng.state = icma_read_u64(from);
    s->losses[0] = read_f64(from);
    s->losses[1] = read_f64(from);
    s->best = read_f64(from);
    s->since_best = icma_read_u64(from);
    t->epochs_done = (size_t)icma_read_u64(from);
    t->loss_count = (size_t)icma_read_u64(from);
    if (reached > PHASE_DONE || t->loss_count > ICMA_LOSS_POINTS)
        return other_training(s, error);
    for (size_t i = 0; i < t->loss_count; i++) {
        t->loss_epoch[i] = (size_t)icma_read_u64(from);
        t->loss_reconstruction[i] = read_f64(from);
        t->loss_kl[i] = read_f64(from);
    }
    const uint8_t *order = icma_read_bytes(from, s->group->count * sizeof *s->order);
    if (!order)
        return other_training(s, error);
    memcpy(s->order, order, s->group->count * sizeof *s->order);
    icma_status status = ICMA_OK;
    for (int i = 0; !status && i < SAVED_STATES; i++) {
        size_t count;
        icma_tensor *tensor = icma_conv_net_state(s->net, saved_states[i], &count);
        status = read_tensor(s, from, tensor, count, error);
    }
    return status;
}

static icma_status start_denoising(session *s, icma_error *error);

static icma_status resume(session *s, icma_error *error) {
    uint8_t *data = NULL;
    size_t size = 0, limit = 64 * icma_conv_parameters(&s->shape) + ((size_t)1 << 28);
    icma_status status = icma_training_file_load(s->path, limit, &data, &size, error);
    if (status || !data)
        return status;
    icma_cursor from = icma_cursor_over(data, size);
    status = restore(s, &from, error);
    if (!status && s->diffusion && s->phase != PHASE_NETWORK) {
        /* Made again as it was made then, which takes random numbers; the saved state then replaces it. */
        icma_rng now = s->rng;
        status = start_denoising(s, error);
        s->rng = now;
        size_t count = status ? 0 : icma_denoising_state_size(s->denoising);
        const uint8_t *bytes = status ? NULL : icma_read_bytes(&from, count * sizeof(float));
        float *values = bytes ? icma_alloc_array(count + 1, sizeof *values) : NULL;
        if (!status && !bytes)
            status = other_training(s, error);
        if (!status && !values)
            status = no_memory(error);
        if (!status) {
            memcpy(values, bytes, count * sizeof *values);
            status = icma_denoising_set(s->denoising, values, error);
        }
        icma_free(values);
    }
    icma_free(data);
    return status;
}

/* A training file that is in the way, or that one goes on from. */
static icma_status prepare_saving(session *s, uint32_t index, icma_error *error) {
    if (!s->options->training_file)
        return ICMA_OK;
    if (!s->path && !(s->path = icma_conv_training_path(s->options, index)))
        return no_memory(error);
    icma_status status = find_fingerprint(s, error);
    if (!status && s->options->resume)
        return resume(s, error);
    if (!status && icma_training_file_exists(s->path) && !s->options->overwrite)
        return icma_fail(error, ICMA_E_EXISTS, s->path, "an interrupted training lies here; go on with --resume, or start over with -f");
    if (!status)
        icma_training_file_remove(s->path);
    s->saved = seconds();
    return status;
}

/* Between steps: saves now and then, and before it gives in to a cancellation. */
static icma_status pause_for_breath(session *s, icma_error *error) {
    const icma_progress *progress = &s->options->progress;
    bool cancelled = progress->cancelled && progress->cancelled(progress->context);
    icma_status status = ICMA_OK;
    if (s->path && (cancelled || seconds() - s->saved >= s->options->save_seconds))
        status = save(s, error);
    if (!status && cancelled)
        status = s->path ? icma_fail(error, ICMA_E_CANCELLED, NULL, "stopped; the training is kept in %s: go on with --resume", s->path) : icma_fail(error, ICMA_E_CANCELLED, NULL, "stopped; no archive was written");
    return status;
}

/* --- the network's loop ------------------------------------------------------------------------------------------ */

static icma_conv_batch batch_of(session *s, size_t count) {
    return (icma_conv_batch){.count = count, .x = icma_matrix_of(s->x, count * s->shape.length, 1), .a = icma_matrix_of(s->a, count, s->shape.coordinates),
                             .noise = icma_matrix_of(s->noise, count, s->shape.latent), .kl_weight = s->kl_weight, .latent_noise = latent_noise};
}

/* x, of the sources rows[0 .. count - 1]. */
static icma_status put_adapters(session *s, const uint32_t *rows, size_t count, icma_error *error) {
    const icma_ops *ops = s->ops;
    size_t length = s->shape.length;
    icma_status status = s->all ? ops->upload(ops->device, s->rows, 0, rows, count, error) : icma_conv_data_load(&s->data, rows, count, length, s->x_values, error);
    if (status)
        return status;
    if (!s->all)
        return ops->upload(ops->device, s->x, 0, s->x_values, count * length, error);
    ops->gather_rows(ops->device, icma_matrix_of(s->all, s->group->count, length), s->rows, 0, icma_matrix_of(s->x, count, length));
    return ICMA_OK;
}

/* Uploads adapters, conditions and noise of the sources rows[0 .. count - 1]; `quiet`: noise is 0. */
static icma_status upload_batch(session *s, const uint32_t *rows, size_t count, bool quiet, icma_error *error) {
    size_t m = s->shape.coordinates, d = s->shape.latent;
    const icma_conditions *c = &s->training->conditions;
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < m; j++)
            s->a_values[i * m + j] = s->condition_gain * c->table[c->slot[rows[i]] * m + j];
    for (size_t i = 0; i < count * d; i++)
        s->noise_values[i] = quiet ? 0 : icma_rng_normal(&s->rng);
    icma_status status = put_adapters(s, rows, count, error);
    if (!status)
        status = s->ops->upload(s->ops->device, s->a, 0, s->a_values, count * m, error);
    return status ? status : s->ops->upload(s->ops->device, s->noise, 0, s->noise_values, count * d, error);
}

static icma_status run_step(session *s, size_t per_epoch, icma_error *error) {
    size_t n = s->group->count, batch = s->training->batch, first = (size_t)s->position * batch, count = n - first < batch ? n - first : batch;
    uint64_t step = s->epoch * per_epoch + s->position + 1, steps = (uint64_t)s->training->epochs * per_epoch;
    icma_status status = upload_batch(s, s->order + first, count, false, error);
    if (status)
        return status;
    icma_conv_batch b = batch_of(s, count);
    status = icma_conv_step(s->net, &b, s->losses, error);
    if (status)
        return status;
    double rate = s->options->learning_rate * 0.5 * (1 + cos(3.14159265358979323846 * (double)(step - 1) / (double)steps));
    icma_conv_adam(s->net, (icma_adam){.learning_rate = (float)rate, .beta1 = 0.9F, .beta2 = 0.999F, .epsilon = 1e-8F, .weight_decay = (float)s->options->weight_decay, .step = step});
    s->position++;
    return ICMA_OK;
}

static void tell(const session *s, const char *what, double done, double total) {
    const icma_progress *progress = &s->options->progress;
    const icma_training *t = s->training;
    char note[80] = "";
    if (t->loss_count && s->phase == PHASE_NETWORK)
        snprintf(note, sizeof note, "loss %.4g, KL %.3g", t->loss_reconstruction[t->loss_count - 1], t->loss_kl[t->loss_count - 1]);
    else if (s->phase == PHASE_DENOISER)
        snprintf(note, sizeof note, "noise %.4g", s->losses[0]);
    icma_tell(progress, what, done, total, note);
}

/* Notes the epoch's losses, in a history of fifty points and the last. *stop: on a plateau. */
static icma_status finish_epoch(session *s, bool *stop, icma_error *error) {
    icma_training *t = s->training;
    double n = (double)s->group->count, reconstruction = s->losses[0] / n, kl = s->losses[1] / n, loss = reconstruction + s->kl_weight * kl;
    size_t every = (t->epochs + ICMA_LOSS_POINTS - 2) / (ICMA_LOSS_POINTS - 1);
    if (!isfinite(loss) || kl > most_nats)
        return icma_fail(error, ICMA_E_USAGE, NULL, "training ran away: reconstruction %g, KL %g; use a smaller learning rate than %g", reconstruction, kl, s->options->learning_rate);
    s->since_best = isinf(s->best) || loss < s->best - plateau * fabs(s->best) ? 0 : s->since_best + 1; /* a likelihood goes below 0 */
    s->best = fmin(s->best, loss);
    *stop = s->options->patience && s->since_best >= s->options->patience;
    if ((s->epoch % every == 0 || s->epoch + 1 == t->epochs || *stop) && t->loss_count < ICMA_LOSS_POINTS) {
        t->loss_epoch[t->loss_count] = (size_t)s->epoch + 1;
        t->loss_reconstruction[t->loss_count] = reconstruction;
        t->loss_kl[t->loss_count++] = kl;
    }
    t->epochs_done = (size_t)s->epoch + 1;
    s->losses[0] = s->losses[1] = 0;
    s->position = 0;
    s->epoch++;
    return ICMA_OK;
}

static icma_status train_network(session *s, icma_error *error) {
    size_t n = s->group->count, per_epoch = (n + s->training->batch - 1) / s->training->batch;
    icma_status status = ICMA_OK;
    bool stop = false;
    while (!status && !stop && s->epoch < s->training->epochs) {
        if (s->position == 0)
            icma_rng_shuffle(&s->rng, s->order, n);
        while (!status && s->position < per_epoch) {
            status = run_step(s, per_epoch, error);
            if (!status && s->position < per_epoch) {
                tell(s, "train", (double)s->epoch + (double)s->position / (double)per_epoch, (double)s->training->epochs);
                status = pause_for_breath(s, error);
            }
        }
        if (!status)
            status = icma_conv_collect(s->net, s->losses, error);
        if (!status)
            status = finish_epoch(s, &stop, error);
        if (!status && !stop) {
            tell(s, "train", (double)s->epoch, (double)s->training->epochs);
            status = pause_for_breath(s, error);
        }
    }
    if (!status) {
        s->phase = s->diffusion ? PHASE_DENOISER : PHASE_DONE;
        s->epoch = s->position = 0;
    }
    return status;
}

/* --- latents ----------------------------------------------------------------------------------------------------- */

/* Posterior means and log-variances of all sources, with running statistics. */
static icma_status encode_all(session *s, icma_error *error) {
    size_t n = s->group->count, d = s->shape.latent;
    icma_status status = ICMA_OK;
    for (size_t first = 0, count; !status && first < n; first += count) {
        count = n - first < s->training->batch ? n - first : s->training->batch;
        uint32_t *rows = icma_alloc_array(count, sizeof *rows);
        for (size_t i = 0; rows && i < count; i++)
            rows[i] = (uint32_t)(first + i);
        status = rows ? upload_batch(s, rows, count, true, error) : no_memory(error);
        icma_free(rows);
        if (status)
            break;
        icma_conv_batch b = batch_of(s, count);
        icma_conv_forward(s->net, &b, false);
        icma_matrix mu = icma_conv_mu(s->net, count), logvar = icma_conv_logvar(s->net, count);
        status = s->ops->download(s->ops->device, mu.tensor, mu.offset, s->posterior.mu + first * d, count * d, error);
        if (!status && !s->diffusion)
            status = s->ops->download(s->ops->device, logvar.tensor, logvar.offset, s->posterior.logvar + first * d, count * d, error);
    }
    for (size_t i = 0; s->diffusion && i < n * d; i++)
        s->posterior.logvar[i] = 2 * logf(latent_noise);
    return status;
}

static icma_status start_denoising(session *s, icma_error *error) {
    size_t n = s->group->count, m = s->generator->coordinates;
    const icma_conditions *c = &s->training->conditions;
    float *a = icma_alloc_array(n * m + 1, sizeof *a);
    icma_status status = a ? encode_all(s, error) : no_memory(error);
    for (size_t i = 0; !status && i < n; i++)
        memcpy(a + i * m, c->table + c->slot[i] * m, m * sizeof *a);
    if (!status)
        status = icma_denoising_create(s->ops, s->posterior.mu, a, n, s->shape.latent, m, s->denoiser_options, &s->rng, &s->denoising, error);
    icma_free(a);
    return status;
}

static icma_status train_denoiser(session *s, icma_error *error) {
    icma_status status = s->denoising ? ICMA_OK : start_denoising(s, error);
    while (!status && s->epoch < s->denoiser_options.epochs) {
        status = icma_denoising_epoch(s->denoising, (size_t)s->epoch, &s->rng, &s->losses[0], error);
        s->epoch++;
        tell(s, "denoise", (double)s->epoch, (double)s->denoiser_options.epochs);
        if (!status)
            status = pause_for_breath(s, error);
    }
    if (!status)
        s->phase = PHASE_DONE;
    return status;
}

/* --- what was learned -------------------------------------------------------------------------------------------- */

/* Takes the gain of conditions into the weights. */
static void absorb_gain(const session *s, icma_conv_decoder *d) {
    size_t rows, columns;
    icma_conv_layer_shape(d, 0, &rows, &columns);
    for (size_t i = s->shape.latent * columns; i < rows * columns; i++)
        d->weight[0][i] *= s->condition_gain;
}

/* Leaves out the decoder's inputs of latents that tell nothing. */
static void drop_latents(icma_conv_decoder *d, size_t latent, const size_t *kept, size_t kept_count) {
    size_t rows, columns;
    icma_conv_layer_shape(d, 0, &rows, &columns);
    size_t row = columns * sizeof(float);
    for (size_t j = 0; j < kept_count; j++)
        memmove(d->weight[0] + j * columns, d->weight[0] + kept[j] * columns, row);
    memmove(d->weight[0] + kept_count * columns, d->weight[0] + latent * columns, (rows - latent) * row);
    d->inputs = kept_count + rows - latent;
}

static icma_status store_latents(session *s, const size_t *kept, icma_error *error) {
    icma_generator *g = s->generator;
    size_t n = s->group->count;
    s->training->latent = icma_alloc_zeroed(n * g->latent + 1, sizeof *s->training->latent);
    if (!s->training->latent)
        return no_memory(error);
    for (size_t j = 0; j < g->latent; j++) {
        g->latent_step[j] = icma_latents_step(&s->posterior, kept[j]);
        for (size_t i = 0; i < n; i++)
            s->training->latent[i * g->latent + j] = icma_latents_integer(s->posterior.mu[i * s->shape.latent + kept[j]], g->latent_step[j]);
    }
    return ICMA_OK;
}

/* Mean squared error of the decoder over the last sources of some tasks, from their stored latents. */
static icma_status decoder_error(session *s, const icma_conv_decoder *decoder, double *out, icma_error *error) {
    const icma_generator *g = s->generator;
    const icma_conditions *c = &s->training->conditions;
    size_t used = s->data.used, tasks = c->count < MOST_LANDMARKS ? c->count : MOST_LANDMARKS, n = s->group->count;
    float *x = icma_alloc_array(used, sizeof *x), *y = icma_alloc_array(used, sizeof *y), *input = icma_alloc_array(decoder->inputs + 1, sizeof *input);
    icma_conv_engine *engine = NULL;
    icma_status status = x && y && input ? icma_conv_engine_create(decoder, s->decode_ops, &engine, error) : no_memory(error);
    *out = 0;
    for (size_t t = 0; !status && t < tasks; t++) {
        uint32_t source = (uint32_t)n - 1;
        icma_matrix output;
        while (c->slot[source] != t)
            source--;
        for (size_t j = 0; j < g->latent; j++)
            input[j] = (float)s->training->latent[source * g->latent + j] * g->latent_step[j];
        if (!s->diffusion)
            memcpy(input + g->latent, c->table + t * g->coordinates, g->coordinates * sizeof *input);
        status = icma_conv_data_load(&s->data, &source, 1, used, x, error);
        if (!status)
            status = icma_conv_engine_run(engine, input, &output, error);
        if (!status)
            status = s->decode_ops->download(s->decode_ops->device, output.tensor, output.offset, y, used, error);
        for (size_t l = 0; !status && l < used; l++)
            *out += ((double)y[l] - x[l]) * ((double)y[l] - x[l]) / (double)(used * tasks);
    }
    icma_conv_engine_free(engine);
    icma_free(x);
    icma_free(y);
    icma_free(input);
    return status;
}

static icma_status copy_decoder(const icma_conv_decoder *from, icma_conv_decoder *to, icma_error *error) {
    *to = *from;
    memset(to->weight, 0, sizeof to->weight);
    memset(to->bias, 0, sizeof to->bias);
    icma_status status = icma_conv_decoder_allocate(to, error);
    for (size_t l = 0; !status && l < from->layers + 2; l++) {
        size_t rows, columns;
        icma_conv_layer_shape(from, l, &rows, &columns);
        memcpy(to->weight[l], from->weight[l], rows * columns * sizeof(float));
        memcpy(to->bias[l], from->bias[l], columns * sizeof(float));
    }
    return status;
}

/* The error after the decoder has been written and read with so much noise. */
static icma_status coded_error(session *s, icma_conv_coding coding, double noise, double *out, icma_error *error) {
    icma_conv_decoder copy, coded = {0};
    icma_buffer payload = {0};
    icma_status status = copy_decoder(&s->generator->conv, &copy, error); /* writing rounds in place */
    if (status)
        return status;
    status = icma_conv_decoder_write(&copy, coding, noise, &payload, error);
    if (!status)
        status = icma_buffer_status(&payload, error);
    icma_cursor from = icma_cursor_over(payload.data, payload.size);
    if (!status)
        status = icma_conv_decoder_read(&from, &coded, error);
    if (!status)
        status = decoder_error(s, &coded, out, error);
    icma_conv_decoder_free(&copy);
    icma_conv_decoder_free(&coded);
    icma_buffer_free(&payload);
    return status;
}

/* The squared error that is good enough for what was asked. To first order relative errors of factors add in squares in that of dW; the mean is aimed at where there is no bound. */
static double tolerated_error(const icma_pack_options *o) {
    double aim = o->max_error;
    if (o->tier == ICMA_TIER_BOUNDED)
        aim = o->bound.kind == ICMA_BOUND_ABS ? 0 : coding_aim * (double)o->bound.value;
    return o->tier == ICMA_TIER_LOSSLESS ? 0 : o->tier == ICMA_TIER_BOUNDED && o->bound.kind == ICMA_BOUND_REL ? aim * aim : aim * aim / 2;
}

/* The coarsest steps of the weights that leave the error nearly as it is, or good enough, by bisection over a sixteenth of an octave of noise. */
static icma_status choose_coding(session *s, icma_error *error) {
    icma_generator *g = s->generator;
    double plain, now;
    g->coding = s->options->weights == ICMA_WEIGHTS_F32 ? ICMA_CONV_F32 : s->options->weights == ICMA_WEIGHTS_BF16 ? ICMA_CONV_BF16 : ICMA_CONV_QUANTISED;
    g->coding_noise = 1;
    if (g->coding != ICMA_CONV_QUANTISED)
        return ICMA_OK;
    int fine = -16 * 12, coarse = 0, trials = 1; /* noise = 2^(i / 16) */
    double all = 1 + ceil(log2(coarse - fine));
    icma_tell(&s->options->progress, "weights", 0, all, NULL);
    icma_status status = decoder_error(s, &g->conv, &plain, error);
    while (!status && coarse - fine > 1) {
        int middle = (fine + coarse) / 2;
        icma_tell(&s->options->progress, "weights", trials++, all, NULL);
        status = coded_error(s, ICMA_CONV_QUANTISED, exp2(middle / 16.0), &now, error);
        if (!status && now <= fmax(plain * (1 + coding_share), tolerated_error(s->options)))
            fine = middle;
        else
            coarse = middle;
    }
    g->coding_noise = exp2(fine / 16.0);
    return status;
}

static icma_status choose_coding_somewhere(session *s, icma_error *error) {
    icma_error detail = {0};
    s->decode_ops = s->ops;
    icma_status status = choose_coding(s, &detail);
    if (status == ICMA_E_MEMORY && !icma_ops_on_host(s->ops)) {
        icma_say(&s->options->progress, "the GPU's memory does not hold the decoder; trying how coarsely its weights can be stored on the CPU");
        s->decode_ops = icma_ops_cpu();
        return choose_coding(s, error);
    }
    return status ? icma_fail(error, status, detail.file, "%s", detail.message) : ICMA_OK;
}

static icma_status finish(session *s, icma_error *error) {
    icma_generator *g = s->generator;
    size_t d = s->shape.latent, *kept = icma_alloc_array(d + 1, sizeof *kept);
    icma_tell(&s->options->progress, "weights", 0, 0, NULL); /* until they can be tried */
    icma_status status = kept ? encode_all(s, error) : no_memory(error);
    if (!status) {
        g->kind = ICMA_GENERATOR_CONV;
        g->prior = s->diffusion ? ICMA_PRIOR_DIFFUSION : ICMA_PRIOR_NORMAL;
        g->latent = icma_latents_active(&s->posterior, &s->training->conditions, s->training->active, kept);
    }
    if (!status && s->diffusion) { /* the denoiser makes them all */
        g->latent = d;
        for (size_t j = 0; j < d; j++)
            kept[j] = j;
    }
    if (!status)
        status = icma_generator_allocate(g, error);
    if (!status)
        status = store_latents(s, kept, error);
    if (!status)
        status = icma_conv_fold(s->net, &g->conv, error);
    if (!status)
        absorb_gain(s, &g->conv);
    if (!status)
        drop_latents(&g->conv, d, kept, g->latent);
    if (!status && s->diffusion)
        status = icma_denoising_finish(s->denoising, &g->denoiser, error);
    icma_free(kept);
    leave_device(s); /* the decoder has it to itself */
    return status ? status : choose_coding_somewhere(s, error);
}

/* What does not depend on the device. */
static icma_status prepare(session *s, const icma_condition *conditions, icma_error *error) {
    size_t n = s->group->count, cells = n * s->options->latent_dim;
    icma_status status = icma_conditions_prepare(s->group, s->ops, conditions, &s->rng, s->generator, &s->training->conditions, error);
    if (status)
        return status;
    /* Learned conditions stay where they start, on axes of their own: the decoder's first layer, which is linear, learns what they mean. */
    icma_conditions_settle(&s->training->conditions, s->generator->coordinates);
    for (size_t i = 0; i < s->training->conditions.count; i++)
        if (s->training->conditions.learned[i])
            memcpy(s->training->conditions.table + i * s->generator->coordinates, s->training->conditions.learned[i], s->generator->coordinates * sizeof(float));
    s->begin = s->rng;
    s->batch = batch_for(s->options, n);
    s->training->active = icma_alloc_zeroed(s->training->conditions.count, sizeof *s->training->active);
    s->order = icma_alloc_array(n, sizeof *s->order);
    s->posterior = (icma_posterior){.mu = icma_alloc_zeroed(cells, sizeof(float)), .logvar = icma_alloc_zeroed(cells, sizeof(float)), .sources = n, .dimensions = s->options->latent_dim};
    if (!s->training->active || !s->order || !s->posterior.mu || !s->posterior.logvar)
        return no_memory(error);
    return icma_conv_data_open(s->group, s->generator, s->batch, &s->data, error);
}

/* The network and its data on the device, at the beginning of the training or where it was left. */
static icma_status start(session *s, uint32_t index, icma_error *error) {
    s->rng = s->begin;
    s->best = INFINITY;
    s->phase = PHASE_NETWORK;
    s->epoch = s->position = s->since_best = 0;
    s->losses[0] = s->losses[1] = 0;
    s->training->loss_count = s->training->epochs_done = 0;
    for (uint32_t i = 0; i < s->group->count; i++)
        s->order[i] = i;
    make_plan(s);
    icma_status status = make_shape(s, error);
    if (!status)
        status = upload_room(s, error);
    if (!status)
        status = icma_conv_net_create(s->ops, s->shape, s->training->batch, &s->rng, &s->net, error);
    if (!status)
        status = upload_all(s, error);
    return status ? status : prepare_saving(s, index, error);
}

static icma_status train(session *s, uint32_t index, icma_error *error) {
    icma_status status = start(s, index, error);
    if (!status && s->phase == PHASE_NETWORK)
        status = train_network(s, error);
    if (!status && s->phase == PHASE_DENOISER)
        status = train_denoiser(s, error);
    return status ? status : save(s, error);
}

/* After a device ran out of memory: half the batch, and where there is no half the CPU. */
static void retreat(session *s) {
    char line[128];
    size_t batch = s->batch;
    leave_device(s);
    s->retreated = true;
    if (batch > 1) {
        s->batch = batch / 2;
        snprintf(line, sizeof line, "the GPU's memory does not hold a batch of %zu; training with %zu", batch, s->batch);
    } else {
        s->ops = icma_ops_cpu();
        s->batch = batch_for(s->options, s->group->count);
        snprintf(line, sizeof line, "the GPU's memory does not hold a batch of 1; training on the CPU, with %zu", s->batch);
    }
    icma_say(&s->options->progress, line);
}

/* With as much of what was asked for as the device's memory holds. What was saved is not given up for it: with another batch it would be another training. */
static icma_status learn(session *s, uint32_t index, icma_error *error) {
    icma_error detail = {0};
    icma_status status = train(s, index, &detail);
    while (status == ICMA_E_MEMORY && !icma_ops_on_host(s->ops) && !s->kept) {
        retreat(s);
        memset(&detail, 0, sizeof detail);
        status = train(s, index, &detail);
    }
    if (!status)
        status = finish(s, &detail);
    if (status == ICMA_E_MEMORY && s->kept && !icma_ops_on_host(s->ops))
        return icma_fail(error, ICMA_E_DEVICE, s->path, "the GPU's memory has run out; the training is kept here: go on with --resume");
    return status ? icma_fail(error, status, detail.file, "%s", detail.message) : ICMA_OK;
}

icma_status icma_conv_train(icma_group *group, uint32_t index, const icma_gram *gram, const icma_condition *conditions, const icma_pack_options *options, const icma_ops *ops, icma_generator *generator,
                            icma_training *out, icma_error *error) {
    memset(out, 0, sizeof *out);
    session s = {.group = group, .gram = gram, .options = options, .ops = ops, .generator = generator, .training = out, .rng = icma_rng_seed(options->seed),
                 .diffusion = options->generator == ICMA_CHOOSE_DIFFUSION};
    icma_tell(&options->progress, "prepare", 0, 0, NULL);
    icma_status status = prepare(&s, conditions, error);
    if (!status)
        status = learn(&s, index, error);
    out->ops = s.ops;
    session_free(&s);
    if (status)
        icma_training_free(out);
    return status;
}
