/* SPDX-License-Identifier: Apache-2.0 */
/* What a text encoder is made of. Private to text_*.c. */
#ifndef ICMA_TEXT_INSIDE_H
#define ICMA_TEXT_INSIDE_H

#include "dtype.h"
#include "text_encoder.h"
#include "tokenizer.h"

/* config.json */
typedef struct icma_text_shape {
    size_t vocabulary, width, hidden, layers, heads, positions; /* hidden: of the mlp */
    float epsilon;
    bool quick;      /* activation: quick_gelu, else gelu */
    bool largest_id; /* pooling: at the largest token number, as transformers does for eos_token_id 2; else at
                        the first `end` */
    uint32_t end;    /* eos_token_id */
} icma_text_shape;
enum {
    ICMA_MOST_TEXT_WIDTH = 8192,
    ICMA_MOST_TEXT_HIDDEN = 32768,
    ICMA_MOST_TEXT_LAYERS = 128,
    ICMA_MOST_TEXT_POSITIONS = ICMA_MOST_SEEN,
};

/* Reads `path`. *name is _name_or_path or NULL; the caller's. text_config.c */
icma_status icma_text_shape_read(const char *path, icma_text_shape *out, char **name, icma_error *error);
/* The same of its bytes; errors do not name a file. */
icma_status icma_text_shape_parse(const void *text, size_t size, icma_text_shape *out, char **name,
                                  icma_error *error);

/* Weights of linear layers are outputs x inputs, as in the file; vectors one row. */
typedef struct icma_text_layer {
    icma_tensor *norm1_gamma, *norm1_beta, *norm2_gamma, *norm2_beta;
    icma_tensor *qkv, *qkv_bias; /* query, key, value: 3 width x width */
    icma_tensor *out, *out_bias;
    icma_tensor *up, *up_bias, *down, *down_bias; /* hidden x width, width x hidden */
} icma_text_layer;

typedef struct icma_text_weights {
    icma_dtype token_dtype;
    uint8_t *tokens;  /* vocabulary x width, as in the file; owned */
    float *positions; /* positions x width; owned */
    icma_text_layer *layers;
    icma_tensor *norm_gamma, *norm_beta;
    icma_tensor *projection; /* projected x width; NULL: none */
    size_t projected;
    uint64_t hash;
} icma_text_weights;

/* Finds the tensors in the folder's files and loads them. On failure `out` may hold some: free it in every
 * case. text_weights.c */
icma_status icma_text_weights_load(const char *folder, const icma_text_shape *shape, const icma_ops *ops,
                                   icma_text_weights *out, icma_error *error);
void icma_text_weights_free(icma_text_weights *weights, const icma_text_shape *shape, const icma_ops *ops);

/*
 * Texts that are computed together. Rows are places in the tree of their tokens: a row for each different
 * beginning of theirs, so that what texts share is there once. Queries of the last layer are the ends alone.
 */
typedef struct icma_text_batch {
    size_t rows, ends, texts;
    uint32_t *id, *position;  /* per row */
    uint32_t *first, *length; /* per row: what it sees, of `seen` */
    uint32_t *seen;           /* rows, from the first token to its end, text after text */
    size_t seen_count;
    uint32_t *end_row;                /* per end: its row */
    uint32_t *end_first, *end_length; /* as of its row */
    uint32_t *end_of;                 /* per text, in the order of `text`: its end */
    size_t *text;                     /* per text: which of the caller's */
    size_t room_rows, room_seen, room_texts;
} icma_text_batch;

/* A text's tokens up to the one that it is pooled at. */
typedef struct icma_text_tokens {
    const uint32_t *ids;
    size_t count;
    size_t text; /* which of the caller's */
} icma_text_tokens;

/* Sorts by tokens, so that texts that begin alike are neighbours. */
void icma_text_sort(icma_text_tokens *list, size_t count);
/* Room for batches of up to so many rows, places that are seen, and texts; a text may fill it alone.
 * text_batch.c */
icma_status icma_text_batch_make(icma_text_batch *batch, size_t rows, size_t seen, size_t texts,
                                 icma_error *error);
/* Rows of a sorted list's tree. */
size_t icma_text_rows(const icma_text_tokens *list, size_t count);
/* Fills the batch from a sorted list, until it has `rows` rows or the next text does not fit; returns how
 * many texts it took, at least one. */
size_t icma_text_batch_fill(icma_text_batch *batch, const icma_text_tokens *list, size_t count, size_t rows);
void icma_text_batch_free(icma_text_batch *batch);

#endif
