/* SPDX-License-Identifier: Apache-2.0 */
#include "bytes.h"
#include "file.h"
#include "input_names.h"
#include "memory.h"
#include "text_inside.h"
#include "utf8.h"

#include <math.h>
#include <string.h>

/* Of a batch: enough rows for matrix products to be fast, few enough for caches. */
enum { BATCH_ROWS = 512, BATCH_SEEN = 1 << 14, BATCH_TEXTS = 512 };

struct icma_text_encoder {
    const icma_ops *ops;
    icma_text_shape shape;
    icma_text_weights weights;
    icma_tokenizer *tokenizer;
    char *id;
    icma_text_batch batch;
    /* On the device, rows of a batch: the residual stream; norms; what attention finds; queries, keys and
     * values; the mlp. */
    icma_tensor *x, *h, *a, *qkv, *mlp;
    icma_tensor *ends; /* the residual stream of the ends alone */
    icma_tensor *first, *length, *seen, *end_row, *end_first, *end_length;
    float *rows; /* in host memory */
};

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a text encoder");
}

/* --- opening
 * ------------------------------------------------------------------------------------------------- */

static icma_status look_for(const char *path) {
    icma_file *file;
    icma_status status = icma_file_open(path, &file, NULL);
    icma_file_close(file);
    return status;
}

/* The first of folder/places[i] that has the file `name`; NULL in *found: none does. */
static icma_status find_folder(const char *folder, const char *const *places, size_t count, const char *name,
                               char **found, icma_error *error) {
    *found = NULL;
    for (size_t i = 0; i < count && !*found; i++) {
        char *there = places[i] ? icma_path_join(folder, places[i]) : icma_copy_string(folder);
        char *path = there ? icma_path_join(there, name) : NULL;
        icma_status status = path ? look_for(path) : ICMA_E_MEMORY;
        if (!status) {
            *found = there;
            there = NULL;
        }
        icma_free(path);
        icma_free(there);
        if (status == ICMA_E_MEMORY)
            return no_memory(error);
    }
    return ICMA_OK;
}

static icma_status open_tokenizer(icma_text_encoder *e, const char *folder, icma_error *error) {
    static const char *const places[] = {NULL, "tokenizer", "../tokenizer"};
    char *there, *vocab = NULL;
    icma_status status = find_folder(folder, places, 3, "vocab.json", &there, error);
    if (!status && !there)
        status = icma_fail(error, ICMA_E_NOT_FOUND, folder,
                           "no vocab.json, nor tokenizer/vocab.json; name a folder with the tokenizer's "
                           "vocab.json and merges.txt");
    if (!status && !(vocab = icma_path_join(there, "vocab.json")))
        status = no_memory(error);
    if (!status)
        status = icma_tokenizer_open(there, &e->tokenizer, error);
    if (!status && icma_tokenizer_size(e->tokenizer) > e->shape.vocabulary)
        status = icma_fail(
            error, ICMA_E_CORRUPT, vocab,
            "a token of number %zu, but config.json has a vocabulary of %zu; take both from one model",
            icma_tokenizer_size(e->tokenizer) - 1, e->shape.vocabulary);
    if (!status && !e->shape.largest_id && e->shape.end != icma_tokenizer_end(e->tokenizer))
        status = icma_fail(
            error, ICMA_E_CORRUPT, vocab,
            "texts end with token %u, but config.json has eos_token_id %u; take both from one model",
            icma_tokenizer_end(e->tokenizer), e->shape.end);
    icma_free(vocab);
    icma_free(there);
    return status;
}

/* The folder's name where config.json has none; bytes of it that are no UTF-8 are question marks, for it
 * becomes JSON. */
static icma_status name_encoder(icma_text_encoder *e, const char *folder, icma_error *error) {
    size_t end = strlen(folder), start;
    if (e->id)
        return ICMA_OK;
    while (end > 1 && folder[end - 1] == '/')
        end--;
    for (start = end; start > 0 && folder[start - 1] != '/';)
        start--;
    if (!(e->id = icma_copy_text(folder + start, end - start)))
        return no_memory(error);
    for (size_t at = 0, length; at < end - start; at += length ? length : 1) {
        length = icma_utf8_length((const uint8_t *)e->id + at, end - start - at);
        if (!length)
            e->id[at] = '?';
    }
    return ICMA_OK;
}

static icma_status load(icma_text_encoder *e, const char *folder, icma_error *error) {
    static const char *const places[] = {NULL, "text_encoder"};
    char *there, *config = NULL;
    icma_status status = find_folder(folder, places, 2, "config.json", &there, error);
    if (!status && !there)
        status = icma_fail(error, ICMA_E_NOT_FOUND, folder,
                           "no config.json; name a folder with a CLIP text encoder");
    if (!status && !(config = icma_path_join(there, "config.json")))
        status = no_memory(error);
    if (!status)
        status = icma_text_shape_read(config, &e->shape, &e->id, error);
    if (!status)
        status = open_tokenizer(e, folder, error);
    if (!status)
        status = name_encoder(e, folder, error);
    if (!status)
        status = icma_text_weights_load(there, &e->shape, e->ops, &e->weights, error);
    icma_free(config);
    icma_free(there);
    return status;
}

static icma_status make_room(icma_text_encoder *e, icma_error *error) {
    const icma_text_shape *s = &e->shape;
    size_t rows = s->positions > BATCH_ROWS ? s->positions : BATCH_ROWS,
           seen = s->positions > BATCH_SEEN ? s->positions : BATCH_SEEN;
    size_t widest = e->weights.projected > s->width ? e->weights.projected : s->width;
    const struct {
        icma_tensor **tensor;
        icma_element element;
        size_t count;
    } list[] = {
        {&e->x, ICMA_ELEMENT_F32, rows * s->width},
        {&e->h, ICMA_ELEMENT_F32, rows * widest},
        {&e->a, ICMA_ELEMENT_F32, rows * s->width},
        {&e->qkv, ICMA_ELEMENT_F32, rows * 3 * s->width},
        {&e->mlp, ICMA_ELEMENT_F32, rows * (s->hidden > s->width ? s->hidden : s->width)},
        {&e->ends, ICMA_ELEMENT_F32, BATCH_TEXTS * s->width},
        {&e->first, ICMA_ELEMENT_U32, rows},
        {&e->length, ICMA_ELEMENT_U32, rows},
        {&e->seen, ICMA_ELEMENT_U32, seen},
        {&e->end_row, ICMA_ELEMENT_U32, BATCH_TEXTS},
        {&e->end_first, ICMA_ELEMENT_U32, BATCH_TEXTS},
        {&e->end_length, ICMA_ELEMENT_U32, BATCH_TEXTS},
    };
    icma_status status = icma_text_batch_make(&e->batch, rows, seen, BATCH_TEXTS, error);
    for (size_t i = 0; !status && i < sizeof list / sizeof list[0]; i++)
        status = e->ops->alloc(e->ops->device, list[i].element, list[i].count, list[i].tensor, error);
    if (!status && !(e->rows = icma_alloc_array(rows, widest * sizeof *e->rows)))
        status = no_memory(error);
    return status;
}

icma_status icma_text_encoder_open(const char *folder, const icma_ops *ops, icma_text_encoder **out,
                                   icma_error *error) {
    *out = NULL;
    icma_text_encoder *e = icma_alloc_zeroed(1, sizeof *e);
    if (!e)
        return no_memory(error);
    e->ops = ops->attention ? ops : icma_ops_cpu();
    icma_status status = load(e, folder, error);
    if (!status)
        status = make_room(e, error);
    if (status) {
        icma_text_encoder_close(e);
        return status;
    }
    *out = e;
    return ICMA_OK;
}

void icma_text_encoder_close(icma_text_encoder *e) {
    if (!e)
        return;
    icma_tensor *list[] = {e->x,     e->h,      e->a,    e->qkv,     e->mlp,       e->ends,
                           e->first, e->length, e->seen, e->end_row, e->end_first, e->end_length};
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        e->ops->release(e->ops->device, list[i]);
    icma_text_weights_free(&e->weights, &e->shape, e->ops);
    icma_text_batch_free(&e->batch);
    icma_tokenizer_close(e->tokenizer);
    icma_free(e->rows);
    icma_free(e->id);
    icma_free(e);
}

size_t icma_text_encoder_width(const icma_text_encoder *e, bool projected) {
    return projected ? e->weights.projected : e->shape.width;
}

const char *icma_text_encoder_id(const icma_text_encoder *e) {
    return e->id;
}

uint64_t icma_text_encoder_hash(const icma_text_encoder *e) {
    return e->weights.hash;
}

const char *icma_text_encoder_pooling(const icma_text_encoder *e) {
    return e->shape.largest_id ? "largest id" : "first end token";
}

/* --- layers
 * -------------------------------------------------------------------------------------------------- */

/* y = x w^T + keep y */
static void multiply(const icma_text_encoder *e, icma_matrix x, icma_matrix w, float keep, icma_matrix y) {
    e->ops->gemm(e->ops->device, 1, x, false, w, true, keep, y);
}

static void norm(const icma_text_encoder *e, icma_matrix x, icma_tensor *gamma, icma_tensor *beta,
                 icma_matrix y) {
    size_t w = e->shape.width;
    e->ops->layer_norm(e->ops->device, x, icma_matrix_of(gamma, 1, w), icma_matrix_of(beta, 1, w),
                       e->shape.epsilon, y);
}

/* x += mlp(norm(x)) */
static void add_mlp(const icma_text_encoder *e, const icma_text_layer *y, icma_matrix x) {
    size_t w = e->shape.width, h = e->shape.hidden;
    icma_matrix normed = icma_matrix_of(e->h, x.rows, w), inner = icma_matrix_of(e->mlp, x.rows, h);
    norm(e, x, y->norm2_gamma, y->norm2_beta, normed);
    multiply(e, normed, icma_matrix_of(y->up, h, w), 0, inner);
    e->ops->gelu(e->ops->device, e->shape.quick, icma_matrix_of(y->up_bias, 1, h), inner);
    multiply(e, inner, icma_matrix_of(y->down, w, h), 1, x);
    e->ops->add_row(e->ops->device, icma_matrix_of(y->down_bias, 1, w), x);
}

/* x += attention's last product, of what the heads found */
static void add_attention(const icma_text_encoder *e, const icma_text_layer *y, icma_attention who,
                          icma_matrix q, icma_matrix k, icma_matrix v, icma_matrix x) {
    size_t w = e->shape.width;
    icma_matrix found = icma_matrix_of(e->a, x.rows, w);
    e->ops->attention(e->ops->device, who, 1 / sqrtf((float)(w / e->shape.heads)), q, k, v, found);
    multiply(e, found, icma_matrix_of(y->out, w, w), 1, x);
    e->ops->add_row(e->ops->device, icma_matrix_of(y->out_bias, 1, w), x);
}

static void run_layer(const icma_text_encoder *e, const icma_text_layer *y, icma_matrix x) {
    size_t w = e->shape.width;
    icma_matrix normed = icma_matrix_of(e->h, x.rows, w), qkv = icma_matrix_of(e->qkv, x.rows, 3 * w);
    icma_attention who = {e->shape.heads, e->seen, e->first, e->length};
    norm(e, x, y->norm1_gamma, y->norm1_beta, normed);
    multiply(e, normed, icma_matrix_of(y->qkv, 3 * w, w), 0, qkv);
    e->ops->add_row(e->ops->device, icma_matrix_of(y->qkv_bias, 1, 3 * w), qkv);
    add_attention(e, y, who, icma_matrix_block(qkv, 0, 0, x.rows, w), icma_matrix_block(qkv, 0, w, x.rows, w),
                  icma_matrix_block(qkv, 0, 2 * w, x.rows, w), x);
    add_mlp(e, y, x);
}

/* Of the last layer only the ends' rows are wanted: keys and values of all, the rest of them alone. */
static void run_last_layer(const icma_text_encoder *e, const icma_text_layer *y, icma_matrix x,
                           icma_matrix ends) {
    size_t w = e->shape.width;
    const icma_ops *ops = e->ops;
    icma_matrix normed = icma_matrix_of(e->h, x.rows, w), q = icma_matrix_of(e->mlp, ends.rows, w),
                kv = icma_matrix_of(e->qkv, x.rows, 2 * w);
    icma_matrix weights = icma_matrix_of(y->qkv, 3 * w, w), bias = icma_matrix_of(y->qkv_bias, 1, 3 * w),
                some = icma_matrix_of(e->a, ends.rows, w);
    icma_attention who = {e->shape.heads, e->seen, e->end_first, e->end_length};
    ops->gather_rows(ops->device, x, e->end_row, 0, ends);
    norm(e, x, y->norm1_gamma, y->norm1_beta, normed);
    multiply(e, normed, icma_matrix_block(weights, w, 0, 2 * w, w), 0, kv);
    ops->add_row(ops->device, icma_matrix_block(bias, 0, w, 1, 2 * w), kv);
    ops->gather_rows(ops->device, normed, e->end_row, 0, some);
    multiply(e, some, icma_matrix_block(weights, 0, 0, w, w), 0, q);
    ops->add_row(ops->device, icma_matrix_block(bias, 0, 0, 1, w), q);
    add_attention(e, y, who, q, icma_matrix_block(kv, 0, 0, x.rows, w),
                  icma_matrix_block(kv, 0, w, x.rows, w), ends);
    add_mlp(e, y, ends);
}

/* --- a batch
 * ------------------------------------------------------------------------------------------------- */

static icma_status upload_batch(icma_text_encoder *e, icma_error *error) {
    const icma_text_batch *b = &e->batch;
    size_t w = e->shape.width, step = w * icma_dtype_bits(e->weights.token_dtype) / 8;
    for (size_t i = 0; i < b->rows; i++) {
        float *row = e->rows + i * w;
        const float *position = e->weights.positions + b->position[i] * w;
        icma_load_floats(e->weights.token_dtype, e->weights.tokens + b->id[i] * step, w, row);
        for (size_t j = 0; j < w; j++)
            row[j] += position[j];
    }
    const struct {
        icma_tensor *to;
        const void *from;
        size_t count;
    } list[] = {{e->x, e->rows, b->rows * w},           {e->first, b->first, b->rows},
                {e->length, b->length, b->rows},        {e->seen, b->seen, b->seen_count},
                {e->end_row, b->end_row, b->ends},      {e->end_first, b->end_first, b->ends},
                {e->end_length, b->end_length, b->ends}};
    icma_status status = ICMA_OK;
    for (size_t i = 0; !status && i < sizeof list / sizeof list[0]; i++)
        status = e->ops->upload(e->ops->device, list[i].to, 0, list[i].from, list[i].count, error);
    return status;
}

/* Embeddings of the batch's ends into e->rows. */
static icma_status run_batch(icma_text_encoder *e, bool project, icma_error *error) {
    const icma_text_batch *b = &e->batch;
    size_t w = e->shape.width, width = icma_text_encoder_width(e, project);
    icma_matrix x = icma_matrix_of(e->x, b->rows, w), ends = icma_matrix_of(e->ends, b->ends, w),
                normed = icma_matrix_of(e->a, b->ends, w), out = normed;
    icma_status status = upload_batch(e, error);
    if (status)
        return status;
    for (size_t l = 0; l + 1 < e->shape.layers; l++)
        run_layer(e, &e->weights.layers[l], x);
    run_last_layer(e, &e->weights.layers[e->shape.layers - 1], x, ends);
    norm(e, ends, e->weights.norm_gamma, e->weights.norm_beta, normed);
    if (project) {
        out = icma_matrix_of(e->h, b->ends, width);
        multiply(e, normed, icma_matrix_of(e->weights.projection, width, w), 0, out);
    }
    status = e->ops->download(e->ops->device, out.tensor, 0, e->rows, b->ends * width, error);
    for (size_t i = 0; !status && i < b->ends * width; i++)
        if (!isfinite(e->rows[i]))
            status = icma_fail(
                error, ICMA_E_UNSUPPORTED, NULL,
                "the encoder %.100s gives an embedding that is not finite; its weights are damaged", e->id);
    return status;
}

/* --- texts
 * --------------------------------------------------------------------------------------------------- */

/* Where transformers' CLIPTextModel pools. */
static size_t pooled_at(const icma_text_shape *s, const uint32_t *ids, size_t count) {
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        if (!s->largest_id && ids[i] == s->end)
            return i;
        if (s->largest_id && ids[i] > ids[at])
            at = i;
    }
    return at;
}

/* `ids` has room for all positions of all texts. */
static icma_status tokenize(const icma_text_encoder *e, const char *const *texts, size_t count, uint32_t *ids,
                            icma_text_tokens *list, icma_error *error) {
    icma_status status = ICMA_OK;
    for (size_t i = 0; !status && i < count; i++) {
        uint32_t *here = ids + i * e->shape.positions;
        size_t tokens;
        status = icma_tokenizer_encode(e->tokenizer, texts[i], e->shape.positions, here, &tokens, error);
        if (!status)
            list[i] = (icma_text_tokens){here, pooled_at(&e->shape, here, tokens) + 1, i};
    }
    return status;
}

static icma_status embed(icma_text_encoder *e, const icma_text_tokens *list, size_t count, bool project,
                         float *out, icma_error *error) {
    size_t width = icma_text_encoder_width(e, project);
    size_t rows = icma_text_rows(list, count), batches = (rows + BATCH_ROWS - 1) / BATCH_ROWS,
           each = (rows + batches - 1) / batches; /* batches of one size */
    icma_status status = ICMA_OK;
    for (size_t done = 0; !status && done < count;) {
        done += icma_text_batch_fill(&e->batch, list + done, count - done, each);
        status = run_batch(e, project, error);
        for (size_t t = 0; !status && t < e->batch.texts; t++)
            memcpy(out + e->batch.text[t] * width, e->rows + e->batch.end_of[t] * width, width * sizeof *out);
    }
    return status;
}

icma_status icma_text_encoder_embed(icma_text_encoder *e, const char *const *texts, size_t count,
                                    bool project, float *out, icma_error *error) {
    size_t all;
    if (project && !e->weights.projection)
        return icma_fail(error, ICMA_E_USAGE, NULL, "the encoder %.100s has no projection; leave it out",
                         e->id);
    if (count == 0)
        return ICMA_OK;
    uint32_t *ids =
        icma_multiply_size(count, e->shape.positions, &all) ? icma_alloc_array(all, sizeof *ids) : NULL;
    icma_text_tokens *list = icma_alloc_array(count, sizeof *list);
    icma_status status = ids && list ? tokenize(e, texts, count, ids, list, error) : no_memory(error);
    if (!status) {
        icma_text_sort(list, count);
        status = embed(e, list, count, project, out, error);
    }
    icma_free(ids);
    icma_free(list);
    return status;
}
