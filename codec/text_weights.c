/* SPDX-License-Identifier: Apache-2.0 */
/* The tensors of a text encoder: found in one file or several, whatever stands before their names, and put
 * where they are computed with. */
#include "bytes.h"
#include "compress.h"
#include "file.h"
#include "input_names.h"
#include "json.h"
#include "memory.h"
#include "safetensors.h"
#include "text_inside.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { MOST_PARTS = 64, MOST_INDEX = 1 << 26, MOST_PREFIX = 128 };
static const char token_name[] = "embeddings.token_embedding.weight", inner_prefix[] = "text_model.";

typedef struct weight_part {
    icma_file *file;
    icma_safetensors header;
} weight_part;

typedef struct weight_loader {
    const icma_text_shape *shape;
    const icma_ops *ops;
    weight_part parts[MOST_PARTS];
    size_t part_count;
    char prefix[MOST_PREFIX]; /* of all names but the projection's: "text_model." */
    icma_buffer hashes;
    icma_text_weights *out;
} weight_loader;

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a text encoder's weights");
}

/* --- files
 * --------------------------------------------------------------------------------------------------- */

static icma_status add_part(weight_loader *l, const char *path, icma_error *error) {
    if (l->part_count == MOST_PARTS)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "weights in more than %d files", MOST_PARTS);
    weight_part *part = &l->parts[l->part_count];
    icma_status status = icma_file_open(path, &part->file, error);
    if (status)
        return status;
    l->part_count++;
    status = icma_safetensors_read(part->file, &part->header, error);
    icma_error_set_file(error, path);
    return status;
}

static icma_status add_part_in(weight_loader *l, const char *folder, const char *name, icma_error *error) {
    char *path = icma_path_join(folder, name);
    icma_status status = path ? add_part(l, path, error) : no_memory(error);
    icma_free(path);
    return status;
}

static bool has_part(const weight_loader *l, const char *name) {
    for (size_t p = 0; p < l->part_count; p++) {
        const char *path = icma_file_path(l->parts[p].file), *last = strrchr(path, '/');
        if (strcmp(last ? last + 1 : path, name) == 0)
            return true;
    }
    return false;
}

/* The files that model.safetensors.index.json maps names to. */
static icma_status add_indexed(weight_loader *l, const char *folder, const char *path, icma_error *error) {
    static const icma_json_rules rules = {.max_depth = 8};
    uint8_t *text = NULL;
    size_t size = 0;
    cJSON *root = NULL;
    icma_status status = icma_file_read_all(path, MOST_INDEX, &text, &size, error);
    if (!status)
        status = icma_json_parse((const char *)text, size, rules, &root, error);
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(root, "weight_map"), *item;
    if (!status && !cJSON_IsObject(map))
        status =
            icma_fail(error, ICMA_E_CORRUPT, path, "not an index of weights; an object with a weight_map is");
    if (!status && !map->child)
        status = icma_fail(error, ICMA_E_CORRUPT, path, "a weight_map without weights");
    for (item = map ? map->child : NULL; !status && item; item = item->next) {
        const char *name = cJSON_GetStringValue(item);
        if (!name || !icma_path_segment_is_safe(name))
            status = icma_fail(error, ICMA_E_CORRUPT, path, "a weight_map that names no file beside it");
        else if (!has_part(l, name))
            status = add_part_in(l, folder, name, error);
    }
    cJSON_Delete(root);
    icma_free(text);
    icma_error_set_file(error, path);
    return status;
}

static icma_status open_parts(weight_loader *l, const char *folder, icma_error *error) {
    static const char *const names[] = {"model.safetensors", "model.fp16.safetensors",
                                        "model.safetensors.index.json"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        icma_error trial = {0};
        char *path = icma_path_join(folder, names[i]);
        if (!path)
            return no_memory(error);
        icma_status status = i < 2 ? add_part(l, path, &trial) : add_indexed(l, folder, path, &trial);
        bool missing = status == ICMA_E_NOT_FOUND && strcmp(trial.file, path) == 0;
        icma_free(path);
        if (!missing)
            return status ? icma_fail(error, status, trial.file, "%s", trial.message) : ICMA_OK;
    }
    return icma_fail(error, ICMA_E_NOT_FOUND, folder,
                     "no model.safetensors; name a folder that transformers' save_pretrained made, with "
                     "safe_serialization");
}

/* --- tensors
 * ------------------------------------------------------------------------------------------------- */

static const icma_tensor_info *find(const weight_loader *l, const char *name, icma_file **file,
                                    const icma_safetensors **header) {
    for (size_t p = 0; p < l->part_count; p++) {
        size_t t = icma_safetensors_find(&l->parts[p].header, name);
        if (t == SIZE_MAX)
            continue;
        *file = l->parts[p].file;
        *header = &l->parts[p].header;
        return &l->parts[p].header.tensors[t];
    }
    return NULL;
}

/* What stands before the names: that of the first tensor that ends like the tokens'. */
static icma_status find_prefix(weight_loader *l, icma_error *error) {
    size_t ending = strlen(token_name);
    for (size_t p = 0; p < l->part_count; p++)
        for (size_t t = 0; t < l->parts[p].header.tensor_count; t++) {
            const char *name = l->parts[p].header.tensors[t].name;
            size_t length = strlen(name);
            if (length < ending || strcmp(name + length - ending, token_name) != 0 ||
                length - ending >= MOST_PREFIX)
                continue;
            memcpy(l->prefix, name, length - ending);
            return ICMA_OK;
        }
    return icma_fail(error, ICMA_E_UNSUPPORTED, icma_file_path(l->parts[0].file),
                     "no text_model.%s; these are not the weights of a CLIP text encoder", token_name);
}

/* A tensor of rows x columns (rows 1: a vector), as in the file; the caller's. */
static icma_status read_tensor(weight_loader *l, const char *name, size_t rows, size_t columns,
                               icma_dtype *dtype, uint8_t **bytes, icma_error *error) {
    icma_file *file;
    const icma_safetensors *header;
    const icma_tensor_info *t = find(l, name, &file, &header);
    *bytes = NULL;
    if (!t)
        return icma_fail(error, ICMA_E_NOT_FOUND, icma_file_path(l->parts[0].file),
                         "no tensor %s; the file is not whole, or config.json is another model's", name);
    const char *path = icma_file_path(file);
    if (!icma_dtype_is_modelled(t->dtype))
        return icma_fail(error, ICMA_E_UNSUPPORTED, path, "%s is %s; F32, F16 and BF16 are possible", name,
                         icma_dtype_name(t->dtype));
    bool fits = rows == 1 ? t->rank == 1 && t->shape[0] == columns
                          : t->rank == 2 && t->shape[0] == rows && t->shape[1] == columns;
    if (!fits)
        return icma_fail(error, ICMA_E_CORRUPT, path,
                         "%s has another shape than the %zu x %zu of config.json", name, rows, columns);
    *dtype = t->dtype;
    if (!(*bytes = icma_alloc((size_t)t->size)))
        return no_memory(error);
    icma_status status =
        icma_file_read(file, icma_safetensors_data_offset(header) + t->begin, *bytes, (size_t)t->size, error);
    icma_write_u64(&l->hashes, icma_hash(*bytes, (size_t)t->size));
    return status;
}

static icma_status read_floats(weight_loader *l, const char *name, size_t rows, size_t columns, float **out,
                               icma_error *error) {
    icma_dtype dtype;
    uint8_t *bytes;
    icma_status status = read_tensor(l, name, rows, columns, &dtype, &bytes, error);
    *out = status ? NULL : icma_alloc_array(rows * columns, sizeof **out);
    if (*out)
        icma_load_floats(dtype, bytes, rows * columns, *out);
    else if (!status)
        status = no_memory(error);
    icma_free(bytes);
    return status;
}

/* Into `to` from row `row` on; `to` is made, with `all` rows, if it is not there yet. */
static icma_status put_rows(weight_loader *l, const char *name, size_t rows, size_t columns, size_t row,
                            size_t all, icma_tensor **to, icma_error *error) {
    float *values;
    icma_status status = read_floats(l, name, rows, columns, &values, error);
    if (!status && !*to)
        status = l->ops->alloc(l->ops->device, ICMA_ELEMENT_F32, all * columns, to, error);
    if (!status)
        status = l->ops->upload(l->ops->device, *to, row * columns, values, rows * columns, error);
    icma_free(values);
    return status;
}

static icma_status put(weight_loader *l, const char *name, size_t rows, size_t columns, icma_tensor **to,
                       icma_error *error) {
    char full[ICMA_MAX_NAME + 1];
    snprintf(full, sizeof full, "%s%s", l->prefix, name);
    return put_rows(l, full, rows, columns, 0, rows, to, error);
}

static icma_status put_layer(weight_loader *l, size_t index, icma_error *error) {
    static const char *const qkv[] = {"q", "k", "v"};
    icma_text_layer *y = &l->out->layers[index];
    size_t w = l->shape->width, h = l->shape->hidden;
    char name[ICMA_MAX_NAME + 1];
    icma_status status = ICMA_OK;
    for (size_t i = 0; !status && i < 3; i++) {
        snprintf(name, sizeof name, "%sencoder.layers.%zu.self_attn.%s_proj.weight", l->prefix, index,
                 qkv[i]);
        status = put_rows(l, name, w, w, i * w, 3 * w, &y->qkv, error);
        snprintf(name, sizeof name, "%sencoder.layers.%zu.self_attn.%s_proj.bias", l->prefix, index, qkv[i]);
        /* a row of 3 w, filled in three places */
        if (!status)
            status = put_rows(l, name, 1, w, i, 3, &y->qkv_bias, error);
    }
    const struct {
        const char *name;
        size_t rows, columns;
        icma_tensor **to;
    } rest[] = {
        {"self_attn.out_proj.weight", w, w, &y->out},
        {"self_attn.out_proj.bias", 1, w, &y->out_bias},
        {"layer_norm1.weight", 1, w, &y->norm1_gamma},
        {"layer_norm1.bias", 1, w, &y->norm1_beta},
        {"mlp.fc1.weight", h, w, &y->up},
        {"mlp.fc1.bias", 1, h, &y->up_bias},
        {"mlp.fc2.weight", w, h, &y->down},
        {"mlp.fc2.bias", 1, w, &y->down_bias},
        {"layer_norm2.weight", 1, w, &y->norm2_gamma},
        {"layer_norm2.bias", 1, w, &y->norm2_beta},
    };
    for (size_t i = 0; !status && i < sizeof rest / sizeof rest[0]; i++) {
        snprintf(name, sizeof name, "encoder.layers.%zu.%s", index, rest[i].name);
        status = put(l, name, rest[i].rows, rest[i].columns, rest[i].to, error);
    }
    return status;
}

/* It stands beside the text model: "text_projection.weight" where that is "text_model.". */
static icma_status put_projection(weight_loader *l, icma_error *error) {
    char name[ICMA_MAX_NAME + 1];
    icma_file *file;
    const icma_safetensors *header;
    size_t length = strlen(l->prefix), inner = strlen(inner_prefix);
    if (length >= inner && strcmp(l->prefix + length - inner, inner_prefix) == 0)
        length -= inner;
    snprintf(name, sizeof name, "%.*stext_projection.weight", (int)length, l->prefix);
    const icma_tensor_info *t = find(l, name, &file, &header);
    if (!t)
        return ICMA_OK;
    if (t->rank != 2 || t->shape[0] < 2 || t->shape[0] > ICMA_MOST_TEXT_WIDTH)
        return icma_fail(error, ICMA_E_CORRUPT, icma_file_path(file), "%s is no matrix of 2 to %d rows", name,
                         ICMA_MOST_TEXT_WIDTH);
    l->out->projected = (size_t)t->shape[0];
    return put_rows(l, name, l->out->projected, l->shape->width, 0, l->out->projected, &l->out->projection,
                    error);
}

static icma_status put_all(weight_loader *l, icma_error *error) {
    icma_text_weights *out = l->out;
    const icma_text_shape *s = l->shape;
    char name[ICMA_MAX_NAME + 1];
    snprintf(name, sizeof name, "%s%s", l->prefix, token_name);
    icma_status status =
        read_tensor(l, name, s->vocabulary, s->width, &out->token_dtype, &out->tokens, error);
    snprintf(name, sizeof name, "%sembeddings.position_embedding.weight", l->prefix);
    if (!status)
        status = read_floats(l, name, s->positions, s->width, &out->positions, error);
    if (!status && !(out->layers = icma_alloc_zeroed(s->layers, sizeof *out->layers)))
        status = no_memory(error);
    for (size_t i = 0; !status && i < s->layers; i++)
        status = put_layer(l, i, error);
    if (!status)
        status = put(l, "final_layer_norm.weight", 1, s->width, &out->norm_gamma, error);
    if (!status)
        status = put(l, "final_layer_norm.bias", 1, s->width, &out->norm_beta, error);
    return status ? status : put_projection(l, error);
}

icma_status icma_text_weights_load(const char *folder, const icma_text_shape *shape, const icma_ops *ops,
                                   icma_text_weights *out, icma_error *error) {
    memset(out, 0, sizeof *out);
    weight_loader *l = icma_alloc_zeroed(1, sizeof *l);
    if (!l)
        return no_memory(error);
    *l = (weight_loader){.shape = shape, .ops = ops, .out = out};
    icma_status status = open_parts(l, folder, error);
    if (!status)
        status = find_prefix(l, error);
    if (!status)
        status = put_all(l, error);
    if (!status)
        status = icma_buffer_status(&l->hashes, error);
    if (!status)
        out->hash = icma_hash(l->hashes.data, l->hashes.size);
    icma_buffer_free(&l->hashes);
    for (size_t p = 0; p < l->part_count; p++) {
        if (!status)
            status = icma_file_check_unchanged(l->parts[p].file, error);
        icma_safetensors_free(&l->parts[p].header);
        icma_file_close(l->parts[p].file);
    }
    icma_free(l);
    return status;
}

void icma_text_weights_free(icma_text_weights *weights, const icma_text_shape *shape, const icma_ops *ops) {
    for (size_t i = 0; weights->layers && i < shape->layers; i++) {
        icma_text_layer *y = &weights->layers[i];
        icma_tensor *list[] = {y->norm1_gamma, y->norm1_beta, y->norm2_gamma, y->norm2_beta,
                               y->qkv,         y->qkv_bias,   y->out,         y->out_bias,
                               y->up,          y->up_bias,    y->down,        y->down_bias};
        for (size_t t = 0; t < sizeof list / sizeof list[0]; t++)
            ops->release(ops->device, list[t]);
    }
    icma_tensor *list[] = {weights->norm_gamma, weights->norm_beta, weights->projection};
    for (size_t t = 0; t < sizeof list / sizeof list[0]; t++)
        ops->release(ops->device, list[t]);
    icma_free(weights->tokens);
    icma_free(weights->positions);
    icma_free(weights->layers);
    memset(weights, 0, sizeof *weights);
}
