/* SPDX-License-Identifier: Apache-2.0 */
/* Seeds of the targets that take one section's payload, a name, a command line: written by the encoders themselves, over the shape of fuzz_shape.h. */
#include "fuzz_corpus.h"

#include "bytes.h"
#include "compress.h"
#include "conv_decoder.h"
#include "denoiser.h"
#include "fuzz_shape.h"
#include "fuzz_target.h"
#include "head.h"
#include "lossless.h"
#include "memory.h"
#include "rans.h"
#include "residual.h"

#include <stdio.h>
#include <string.h>

typedef void put_function(const char *folder, const char *name, const void *data, size_t size);

static put_function *put_one;

static void put_buffer(const char *folder, const char *name, icma_buffer *buffer) {
    EXPECT(!buffer->failed);
    put_one(folder, name, buffer->size ? (const void *)buffer->data : "", buffer->size);
    icma_buffer_free(buffer);
}

static void put_entropy(void) {
    static const unsigned contexts[] = {0, 30, 56, 57, 97, 160, 224};
    for (size_t c = 0; c < sizeof contexts / sizeof *contexts; c++) {
        int32_t symbols[300];
        uint32_t state = (uint32_t)c;
        char name[32];
        icma_buffer out = {0};
        icma_rans_run runs[] = {{200, contexts[c]}, {100, contexts[(c + 1) % 7]}};
        for (size_t i = 0; i < 300; i++)
            symbols[i] = (int32_t)(fuzz_noise(&state) % 9) - 4 + (i % 50 == 0 ? 100000 : 0);
        icma_write_u8(&out, 2);
        for (size_t r = 0; r < 2; r++) {
            icma_write_u8(&out, (uint8_t)runs[r].context);
            icma_write_u16(&out, (uint16_t)runs[r].count);
        }
        EXPECT(icma_rans_encode(symbols, runs, 2, &out, NULL) == ICMA_OK);
        snprintf(name, sizeof name, "good-%u", contexts[c]);
        put_buffer("entropy", name, &out);
    }
}

static void put_heads(void) {
    float values[3 * 24], step[3] = {0.5f, 0.25f, 1};
    static const size_t rows[] = {2, 3, 1}, counts[] = {24, 18, 7};
    icma_head_chunk chunk = {0};
    for (uint32_t seed = 0; seed < 3; seed++) {
        uint32_t state = seed;
        icma_buffer out = {0}, all = {0};
        char name[32];
        for (size_t t = 0; t < 3; t++) {
            for (size_t i = 0; i < rows[t] * counts[t]; i++)
                values[i] = ((float)(fuzz_noise(&state) % 2001) - 1000) / (seed ? 100 : 3000);
            EXPECT(icma_head_add_tensor(&chunk, values, step, rows[t], counts[t], NULL) == ICMA_OK);
        }
        EXPECT(icma_head_take(&chunk, &out, NULL) == ICMA_OK);
        icma_write_u8(&all, 20); /* all five tensors */
        icma_write_bytes(&all, out.data, out.size);
        icma_buffer_free(&out);
        snprintf(name, sizeof name, "good-%u", seed);
        put_buffer("head", name, &all);
    }
    icma_head_free(&chunk);
}

static void put_residuals(void) {
    static const size_t counts[] = {24, 18, 7};
    for (unsigned trellis = 0; trellis < 2; trellis++) {
        int16_t integers[49];
        icma_residual_tensor list[3];
        icma_rans_run runs[3];
        uint32_t state = trellis;
        icma_buffer out = {0};
        size_t at = 0;
        for (size_t t = 0; t < 3; t++) {
            list[t] = (icma_residual_tensor){(uint32_t)t, (int32_t)t * 7 - 30, t, at};
            runs[t] = (icma_rans_run){counts[t], 40};
            for (size_t i = 0; i < counts[t]; i++)
                integers[at++] = (int16_t)((int)(fuzz_noise(&state) % 7) - 3);
        }
        icma_residual residual = {.list = list, .count = 3, .runs = runs, .run_count = 3, .trellis = false, .integers = integers, .total = at};
        icma_write_u8(&out, 0);
        EXPECT(icma_residual_write(&residual, fuzz_signature(), fuzz_generator(false), NULL, &out, NULL) == ICMA_OK);
        if (trellis)
            out.data[0] = 1; /* the same block where weights have classes */
        put_buffer("residual", trellis ? "edge-classes" : "good-plain", &out);
    }
    put_one("residual", "edge-none", "\0", 1);
}

static void put_links(void) {
    enum { BYTES = 170 };
    static uint8_t taps[4][BYTES], original[BYTES];
    uint32_t state = 1;
    bool coded[8];
    const uint8_t *places[] = {taps[0], taps[1], taps[2], taps[3]};
    for (size_t i = 0; i < BYTES; i++)
        for (size_t k = 0; k < 4; k++)
            taps[k][i] = k ? taps[k - 1][i] ^ (uint8_t)(fuzz_noise(&state) % 7 == 0) : (uint8_t)fuzz_noise(&state);
    icma_mark_linked(fuzz_signature(), coded);
    for (size_t count = 0; count <= 4; count++) {
        char name[32];
        icma_buffer out = {0};
        icma_lossless_link link = {fuzz_signature(), coded, places, count};
        for (size_t i = 0; i < BYTES; i++)
            original[i] = count ? taps[0][i] ^ (uint8_t)(fuzz_noise(&state) % 5 == 0) : (uint8_t)(i * 3);
        icma_write_u8(&out, (uint8_t)count);
        EXPECT(icma_lossless_encode(&link, original, &out, NULL) == ICMA_OK);
        snprintf(name, sizeof name, "good-%zu-taps", count);
        put_buffer("link", name, &out);
    }
    /* The example of spec 4.14 has all methods' bytes in reach of small changes. */
    put_one("link", "edge-example", "\x01\x01\x08\x00\x01\x00\x00\x02\xf0\x02\x06\x01\x40\xc9\x02\x00\x13\x0a\x15", 19);
}

static void put_generators(void) {
    icma_buffer out = {0};
    EXPECT(icma_generator_write((icma_generator *)fuzz_generator(false), &out, NULL) == ICMA_OK);
    put_buffer("generator", "good-none", &out);
    EXPECT(icma_generator_write((icma_generator *)fuzz_generator(true), &out, NULL) == ICMA_OK);
    put_buffer("generator", "good-basis", &out);
    put_one("generator", "edge-decoder", "\x02\x05\x00\x01\x02\x02\x03", 7);
}

static void put_networks(void) {
    for (int coding = 0; coding < 3; coding++) {
        icma_conv_decoder d = {.inputs = 3, .start = 2, .layers = 2, .width = 3, .channels = {2, 3, 2}, .outputs = 1 + (size_t)coding % 2};
        uint32_t state = (uint32_t)coding;
        icma_buffer out = {0};
        char name[32];
        EXPECT(icma_conv_decoder_allocate(&d, NULL) == ICMA_OK);
        for (size_t l = 0; l < d.layers + 2; l++) {
            size_t rows, columns;
            icma_conv_layer_shape(&d, l, &rows, &columns);
            for (size_t i = 0; i < rows * columns; i++)
                d.weight[l][i] = ((float)(fuzz_noise(&state) % 2001) - 1000) / 1024;
            for (size_t i = 0; i < columns; i++)
                d.bias[l][i] = (float)(i % 3) / 4;
        }
        icma_write_u8(&out, 0);
        EXPECT(icma_conv_decoder_write(&d, (icma_conv_coding)coding, 0.01, &out, NULL) == ICMA_OK);
        snprintf(name, sizeof name, "good-decoder-%d", coding);
        put_buffer("networks", name, &out);
        icma_conv_decoder_free(&d);
    }
    put_one("networks", "edge-example", "\0\x02\x01\x01\x01\x03\x01\x01\x01\x3f\0\0\0\0\x1f\x38\x38\x38\x38\x38\x38\x08\xf5\x9f\x38\x06\xfa\x6f\x42\x2e", 30);
    uint8_t plain[400] = {1, 1, 2, 2}; /* a denoiser: e 1, h 2, 2 steps; zeros, but for what must be positive */
    for (size_t i = 0; i < 3; i++)
        memcpy(plain + 4 + 12 + 4 * i, "\0\0\x80\x3f", 4);
    for (size_t size = 100; size < 200; size += 2) {
        char name[32];
        snprintf(name, sizeof name, "edge-denoiser-%zu", size);
        put_one("networks", name, plain, size);
    }
}

static void put_tables(void) {
    for (unsigned basis = 0; basis < 2; basis++) {
        uint64_t files[] = {0, 1};
        uint32_t exception = 1;
        int32_t integers[] = {1, -2, 3, -4, 5, -6};
        icma_checkpoint list[3] = {{.has_step = true, .step = 10, .tier = ICMA_TIER_BOUNDED, .bound = {ICMA_BOUND_DW, 0.1f}, .hash = 1, .latent = integers, .correction = integers},
                                   {.has_step = true, .step = 20, .tier = ICMA_TIER_LOSSLESS, .taps = 1, .hash = 2, .header = 2, .files = files, .file_count = 1, .latent = integers, .correction = integers},
                                   {.tier = ICMA_TIER_LOSSLESS, .hash = 3, .exceptions = &exception, .exception_count = 1, .latent = integers, .correction = integers}};
        icma_checkpoints table = {.origin = ICMA_CONDITION_GIVEN, .condition_name = (char *)"v.npy", .condition = (float[]){1, 0.5f, -2}, .condition_size = 3, .list = list, .count = 3};
        icma_buffer out = {0};
        icma_write_u8(&out, (uint8_t)(basis << 2 | 2 << 3));
        icma_checkpoints_write(&table, fuzz_generator(basis), &out);
        put_buffer("tables", basis ? "good-table-basis" : "good-table", &out);
        icma_write_u8(&out, (uint8_t)(basis << 2 | 2));
        icma_condition_write(&table, fuzz_generator(basis), &out);
        put_buffer("tables", basis ? "good-condition-basis" : "good-condition", &out);
        if (!basis)
            continue;
        table.origin = ICMA_CONDITION_OFFSET;
        table.offset = integers;
        EXPECT(fuzz_generator(basis)->total <= sizeof integers / sizeof *integers);
        icma_write_u8(&out, (uint8_t)(basis << 2 | 2));
        icma_condition_write(&table, fuzz_generator(basis), &out);
        put_buffer("tables", "good-offset", &out);
        icma_write_u8(&out, (uint8_t)(basis << 2 | 2 << 3 | 1));
        icma_checkpoints_write(&table, fuzz_generator(basis), &out);
        put_buffer("tables", "good-table-offset", &out);
    }
    put_one("tables", "good-texts", "\x03\x03\x02{}\0\x0eREADME content", 20);
    put_one("tables", "edge-texts", "\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11);
}

static void put_frames(void) {
    uint8_t raw[500];
    icma_buffer out = {0};
    for (size_t i = 0; i < sizeof raw; i++)
        raw[i] = (uint8_t)(i / 9 % 11);
    icma_write_u16(&out, sizeof raw - 1);
    EXPECT(icma_zstd_compress(raw, sizeof raw, 19, &out, NULL) == ICMA_OK);
    put_buffer("zstd", "good-frame", &out);
    icma_write_u16(&out, 9);
    EXPECT(icma_zstd_compress("0123456789", 10, 1, &out, NULL) == ICMA_OK);
    put_buffer("zstd", "good-raw-block", &out);
    put_one("zstd", "edge-none", "", 0);
}

static void put_vectors(void) {
    static const char *const headers[] = {"{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }", "{'descr': '<f2', 'fortran_order': False, 'shape': (4,), }",
                                          "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }", "{'descr': '>f4', 'fortran_order': True, 'shape': (2, 2), }"};
    for (size_t i = 0; i < 4; i++) {
        icma_buffer out = {0};
        char name[32];
        icma_write_bytes(&out, "\x93NUMPY\x01\0", 8);
        icma_write_u16(&out, (uint16_t)(strlen(headers[i]) + 1));
        icma_write_bytes(&out, headers[i], strlen(headers[i]));
        icma_write_u8(&out, '\n');
        icma_write_zeros(&out, 16);
        snprintf(name, sizeof name, "%s-%zu", i < 3 ? "good" : "bad", i);
        put_buffer("npy", name, &out);
    }
}

/* A header of pairs of 2 x 3 and 3 x 2 factors of these modules, and what `more` adds, after a configuration. */
static void put_layout(const char *name, uint8_t how, const char *config, const char *down, const char *up, const char *const *modules, const char *more) {
    icma_buffer out = {0};
    char text[512];
    unsigned at = 0;
    icma_write_u8(&out, how);
    icma_write_u16(&out, (uint16_t)strlen(config));
    icma_write_bytes(&out, config, strlen(config));
    icma_write_bytes(&out, "{", 1);
    for (; *modules; modules++, at += 48) {
        int length = snprintf(text, sizeof text,
                              "\"%s%s\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[%u,%u]},\"%s%s\":{\"dtype\":\"F32\",\"shape\":[3,2],\"data_offsets\":[%u,%u]},",
                              *modules, down, at, at + 24, *modules, up, at + 24, at + 48);
        icma_write_bytes(&out, text, (size_t)length);
    }
    int length = snprintf(text, sizeof text, "%s\"__metadata__\":{\"ss_epoch\":\"10\",\"sshs_model_hash\":\"00\"}}", more);
    icma_write_bytes(&out, text, (size_t)length);
    put_buffer("layouts", name, &out);
}

static void put_layouts(void) {
    static const char *const peft[] = {"base_model.model.model.layers.0.self_attn.q_proj", "base_model.model.model.layers.1.mlp.down_proj", NULL};
    static const char *const kohya[] = {"lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_unet_mid_block_attentions_0_proj_in", NULL};
    static const char *const sdxl[] = {"lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", "lora_unet_output_blocks_8_0_skip_connection", "lora_te2_text_projection", NULL};
    static const char *const diffusers[] = {"unet.down_blocks.0.resnets.1.conv1", "text_encoder.text_model.encoder.layers.0.mlp.fc2", NULL};
    static const char *const processors[] = {"unet.mid_block.attn1.processor.to_out", "unet.mid_block.attn1.processor.to_q", NULL};
    static const char *const embedding[] = {"base_model.model.model.embed_tokens", NULL};
    static const char config[] = "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"q_proj\":3},\"use_rslora\":true}";
    put_layout("good-peft", 0, config, ".lora_A.weight", ".lora_B.weight", peft, "");
    put_layout("good-peft-bare", 48, "", ".lora_A.default.weight", ".lora_B.default.weight", peft, "");
    put_layout("good-kohya", 1, "", ".lora_down.weight", ".lora_up.weight", kohya, "");
    put_layout("good-sdxl", 19, "", ".lora_down.weight", ".lora_up.weight", sdxl, "\"lora_te2_text_projection.alpha\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[144,146]},");
    put_layout("good-diffusers", 21, "", ".lora_A.weight", ".lora_B.weight", diffusers, "");
    put_layout("good-processors", 0, "", "_lora.down.weight", "_lora.up.weight", processors, "");
    put_layout("good-embedding", 0, config, ".lora_embedding_A", ".lora_embedding_B", embedding, "");
    put_layout("bad-core", 8, "", ".lora_down.weight", ".lora_up.weight", kohya, "\"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_mid.weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[96,100]},");
}

/* Words with NUL between. */
#define WORDS(folder, name, text) put_one(folder, name, text, sizeof text - 1)

static void put_words(void) {
    WORDS("names", "good-names", "task 1\0checkpoint-10\0name-000010\0name-step10.safetensors\0adapter_model.safetensors");
    WORDS("names", "bad-names", "../x\0a/../../x\0-rf\0a\\b\0\xff\0a//b\0.\0..");
    WORDS("names", "edge-names", "a/b/c/file\0CON\0a9\0a10\0a09\0a010\0\xc3\xa9\0optimizer.pt");
    WORDS("options", "good-pack", "\0loras\0-o\0x.icma\0--tier\0bounded\0--max-error\0dw=0.1\0--epochs=3\0-fqv\0-T2");
    WORDS("options", "good-unpack", "\1--task\0cat\0--task=dog\0-Cout\0--checkpoint\0all\0--max-output\0" "4G\0x.icma");
    WORDS("options", "good-verify", "\4--deep\0--against\0d\0--\0-x.icma");
    WORDS("options", "bad-options", "\2--jsonn\0--max-work\0-1\0-\0--=\0-z");
    WORDS("options", "edge-numbers", "\0--epochs\0" "99999999999999999999\0--explain\0nan\0--lr\0" "1e999\0--seed\0" "18446744073709551615\0-o");
}

/* The files of a text encoder and a text, with NUL between. */
static void put_tokenizers(void) {
    static const char *const parts[][6] = {
        {"{\"<|startoftext|>\":0,\"<|endoftext|>\":1,\"a\":2,\"a</w>\":3,\"aa\":4,\"aa</w>\":5,\"b\":6,\"b</w>\":7,\"ab\":8}", "#version: 0.2\na a\na a</w>\na b\n", "AAA ab's <|endoftext|>b",
         "{\"hidden_size\":64,\"num_attention_heads\":4,\"hidden_act\":\"gelu\",\"eos_token_id\":2,\"_name_or_path\":\"x\"}",
         "{\"pad_token\":\"b\",\"bos_token\":{\"content\":\"<|startoftext|>\",\"normalized\":false}}", "{\"pad_token\":\"aa\"}"},
        {"", "", "E\xCC\x81\xC4\xB0\xCE\xA3 \xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8 1\xC2\xBD\t!?\xF0\x9F\x98\x80", "{\"model_type\":\"clip\",\"text_config\":{\"num_hidden_layers\":2},\"text_config_dict\":null}"},
        {"{\"a\":-1}", "x", "a\xCC\x95\xCC\x80\xD6\xAE\xCC\x80", "{\"hidden_size\":0}"},
        {"{\"<|startoftext|>\":1048576}", "a b c", "\xFF", "[]"},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char name[32];
        icma_buffer out = {0};
        for (size_t p = 0; p < 6 && parts[i][p]; p++) {
            icma_write_bytes(&out, parts[i][p], strlen(parts[i][p]));
            icma_write_u8(&out, 0);
        }
        snprintf(name, sizeof name, "%s-%zu", i < 2 ? "good" : "bad", i);
        put_buffer("tokenizer", name, &out);
    }
}

void put_parts(put_function *put, void (*make_folder)(const char *name)) {
    static const char *const folders[] = {"entropy", "head", "residual", "link", "generator", "networks", "tables", "zstd", "npy", "names", "options", "roundtrip", "layouts", "allocation", "tokenizer"};
    put_one = put;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        make_folder(folders[i]);
    put_entropy();
    put_heads();
    put_residuals();
    put_links();
    put_generators();
    put_networks();
    put_tables();
    put_frames();
    put_vectors();
    put_layouts();
    put_words();
    put_tokenizers();
    uint8_t bytes[400];
    for (uint32_t seed = 0; seed < 4; seed++) {
        uint32_t state = seed;
        char name[32];
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = seed == 0 ? 0 : seed == 1 ? 0xff : (uint8_t)fuzz_noise(&state);
        snprintf(name, sizeof name, "good-%u", seed);
        put("roundtrip", name, bytes, 100 * (seed + 1));
    }
}
