/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The text encoder as a library: many texts of one call against each of them by itself, over several batches,
 * on both of the CPU's tables; each of its allocations failing. Its numbers are checked against a computation
 * of their own in tests/cli/test_embed.py and against transformers in tests/interop/test_embed.py.
 */
#include "bytes.h"
#include "memory.h"
#include "support.h"
#include "text_encoder.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 6, HIDDEN = 10, POSITIONS = 12, VOCABULARY = 30 };

typedef struct shape {
    const char *name;
    size_t rows, columns; /* rows 1: a vector */
} shape;

static const shape shapes[] = {
    {"embeddings.token_embedding.weight", VOCABULARY, WIDTH},
    {"embeddings.position_embedding.weight", POSITIONS, WIDTH},
    {"encoder.layers.0.self_attn.q_proj.weight", WIDTH, WIDTH},
    {"encoder.layers.0.self_attn.q_proj.bias", 1, WIDTH},
    {"encoder.layers.0.self_attn.k_proj.weight", WIDTH, WIDTH},
    {"encoder.layers.0.self_attn.k_proj.bias", 1, WIDTH},
    {"encoder.layers.0.self_attn.v_proj.weight", WIDTH, WIDTH},
    {"encoder.layers.0.self_attn.v_proj.bias", 1, WIDTH},
    {"encoder.layers.0.self_attn.out_proj.weight", WIDTH, WIDTH},
    {"encoder.layers.0.self_attn.out_proj.bias", 1, WIDTH},
    {"encoder.layers.0.mlp.fc1.weight", HIDDEN, WIDTH},
    {"encoder.layers.0.mlp.fc1.bias", 1, HIDDEN},
    {"encoder.layers.0.mlp.fc2.weight", WIDTH, HIDDEN},
    {"encoder.layers.0.mlp.fc2.bias", 1, WIDTH},
    {"encoder.layers.0.layer_norm1.weight", 1, WIDTH},
    {"encoder.layers.0.layer_norm1.bias", 1, WIDTH},
    {"encoder.layers.0.layer_norm2.weight", 1, WIDTH},
    {"encoder.layers.0.layer_norm2.bias", 1, WIDTH},
    {"final_layer_norm.weight", 1, WIDTH},
    {"final_layer_norm.bias", 1, WIDTH},
};

/* a .. n, within a word and at its end, and the two ends of a text. */
static void write_tokenizer(const char *folder) {
    char text[1024];
    int at = snprintf(text, sizeof text, "{\"<|startoftext|>\":28,\"<|endoftext|>\":29");
    for (int c = 0; c < 14; c++)
        at += snprintf(text + at, sizeof text - (size_t)at, ",\"%c\":%d,\"%c</w>\":%d", 'a' + c, 2 * c,
                       'a' + c, 2 * c + 1);
    snprintf(text + at, sizeof text - (size_t)at, "}");
    support_write_text(folder, "vocab.json", text);
    support_write_text(folder, "merges.txt", "#version: 0.2\n");
}

static char *make_folder(void) {
    char *folder = support_new_folder(), header[8192];
    uint64_t random = 5;
    size_t place = 0, count = sizeof shapes / sizeof *shapes, total = 0;
    int at = snprintf(header, sizeof header, "{");
    for (size_t i = 0; i < count; i++) {
        size_t numbers = shapes[i].rows * shapes[i].columns;
        char rows[24] = "";
        if (shapes[i].rows > 1)
            snprintf(rows, sizeof rows, "%zu,", shapes[i].rows);
        at += snprintf(header + at, sizeof header - (size_t)at,
                       "%s\"text_model.%s\":{\"dtype\":\"F32\",\"shape\":[%s%zu],\"data_offsets\":[%zu,%zu]}",
                       i ? "," : "", shapes[i].name, rows, shapes[i].columns, place, place + 4 * numbers);
        place += 4 * numbers;
        total += numbers;
    }
    snprintf(header + at, sizeof header - (size_t)at, "}");
    float *values = support_normals(&random, total);
    write_tokenizer(folder);
    support_write_text(folder, "config.json",
                       "{\"vocab_size\":30,\"hidden_size\":6,\"intermediate_size\":10,\"num_hidden_layers\":"
                       "1,\"num_attention_heads\":2,\"max_position_embeddings\":12,\"eos_token_id\":29}");
    support_write_safetensors(folder, "model.safetensors", header, values, 4 * total);
    support_free(values);
    return folder;
}

static char *folder;

static int make(void **state) {
    (void)state;
    folder = make_folder();
    return 0;
}

static int clean(void **state) {
    (void)state;
    support_remove_tree(folder);
    return 0;
}

static icma_text_encoder *open_encoder(const icma_ops *ops) {
    icma_text_encoder *encoder;
    icma_error error = {0};
    if (icma_text_encoder_open(folder, ops, &encoder, &error))
        fail_msg("%s: %s", error.file, error.message);
    assert_int_equal(icma_text_encoder_width(encoder, false), WIDTH);
    assert_int_equal(icma_text_encoder_width(encoder, true), 0);
    return encoder;
}

/* Of 3 to 14 letters in one word, some alike, some the beginning of others. */
static void make_text(char *text, uint64_t *random) {
    size_t length = 1 + (size_t)(support_uniform(random) * 14);
    for (size_t i = 0; i < length; i++)
        text[i] = (char)('a' + (int)(support_uniform(random) * (i < 3 ? 2 : 14)));
    text[length] = '\0';
}

/* More texts than a batch takes, and more rows. */
static void test_batches(void **state) {
    enum { TEXTS = 1500 };
    static char buffers[TEXTS][16];
    const char *texts[TEXTS];
    const icma_ops *list[] = {icma_ops_cpu(), icma_ops_reference()};
    float *all = malloc(sizeof(float) * TEXTS * WIDTH), one[WIDTH];
    uint64_t random = 3;
    (void)state;
    assert_non_null(all);
    for (size_t i = 0; i < TEXTS; i++) {
        make_text(buffers[i], &random);
        texts[i] = buffers[i];
    }
    for (size_t o = 0; o < 2; o++) {
        icma_text_encoder *encoder = open_encoder(list[o]);
        assert_int_equal(icma_text_encoder_embed(encoder, texts, TEXTS, false, all, NULL), ICMA_OK);
        for (size_t i = 0; i < TEXTS; i += 7) {
            assert_int_equal(icma_text_encoder_embed(encoder, &texts[i], 1, false, one, NULL), ICMA_OK);
            for (size_t j = 0; j < WIDTH; j++)
                assert_true(fabsf(one[j] - all[i * WIDTH + j]) < 1e-5F);
        }
        assert_int_equal(icma_text_encoder_embed(encoder, texts, 0, false, NULL, NULL), ICMA_OK);
        assert_int_equal(icma_text_encoder_embed(encoder, texts, 1, true, one, NULL), ICMA_E_USAGE);
        icma_text_encoder_close(encoder);
    }
    free(all);
}

static icma_status whole(void) {
    static const char *const texts[] = {"abc", "abd", "", "abc"};
    icma_text_encoder *encoder;
    float out[4 * WIDTH];
    icma_status status = icma_text_encoder_open(folder, icma_ops_reference(), &encoder, NULL);
    if (!status)
        status = icma_text_encoder_embed(encoder, texts, 4, false, out, NULL);
    assert_true(status || memcmp(out, out + 3 * WIDTH, WIDTH * sizeof *out) == 0);
    icma_text_encoder_close(encoder);
    return status;
}

static void test_memory(void **state) {
    (void)state;
    support_fail_each_allocation(whole, 100, 5000);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_batches), cmocka_unit_test(test_memory)};
    return cmocka_run_group_tests_name("text_encoder", tests, make, clean);
}
