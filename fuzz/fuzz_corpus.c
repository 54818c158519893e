/* SPDX-License-Identifier: Apache-2.0 */
/* Writes the seeds: icma_fuzz_corpus FOLDER makes FOLDER/json, FOLDER/safetensors, FOLDER/container and, in
 * fuzz_corpus_parts.c, a folder for each target of a section's payload. The same on every run. */
#include "fuzz_corpus.h"

#include "bytes.h"
#include "compress.h"
#include "container.h"
#include "icma.h"
#include "inputs.h"
#include "memory.h"
#include "ops.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char *root;

static void die(const char *what) {
    fprintf(stderr, "icma_fuzz_corpus: %s\n", what);
    exit(1);
}

static void put(const char *folder, const char *name, const void *data, size_t size) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s/%s", root, folder, name);
    FILE *file = fopen(path, "wb");
    if (!file || (size && fwrite(data, 1, size, file) != size) || fclose(file) != 0)
        die(path);
}

static void make_folder(const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", root, name);
    if (mkdir(path, 0777) != 0 && errno != EEXIST)
        die(path);
}

/* --- JSON ---------------------------------------------------------------------------------------------- */

static const struct {
    const char *name, *text;
} json_seeds[] = {
    {"good-config",
     "{\"r\": 8, \"lora_alpha\": 16.0, \"target_modules\": [\"q_proj\", \"v_proj\"], \"bias\": null}"},
    {"good-escapes", "[\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\ud83d\\ude00\xe2\x82\xac\"]"},
    {"good-numbers", "[0, -0, 1.5, -2e3, 1E+2, 9007199254740991, 1e-400, 9.9e307]"},
    {"good-nested", "[[[[[[[[{\"a\":{\"b\":{}}}]]]]]]]]"},
    {"good-scalar", " true "},
    {"bad-duplicate", "{\"a\": 1, \"\\u0061\": 2}"},
    {"bad-surrogate", "\"\\ud83d\""},
    {"bad-utf8", "\"\xc0\xaf\""},
    {"bad-number", "[01, 1., .5, 1e, +1]"},
    {"bad-trailing", "{} x"},
    {"edge-empty", ""},
    {"edge-deep", "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["},
};

/* --- safetensors --------------------------------------------------------------------------------------- */

#define ONE(dtype, shape, begin, end)                                                                        \
    "{\"t\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}}"

static const struct {
    const char *name, *header;
    size_t data_size;
} safetensors_seeds[] = {
    {"good-empty", "{}", 0},
    {"good-metadata", "{\"__metadata__\":{\"format\":\"pt\"}}   ", 0},
    {"good-scalar", ONE("F32", "[]", "0", "4"), 4},
    {"good-matrix", ONE("BF16", "[2,3]", "0", "12"), 12},
    {"good-zero", ONE("F16", "[0,4]", "0", "0"), 0},
    {"good-subbyte", ONE("F4", "[2,3]", "0", "3"), 3},
    {"good-pair",
     "{\"b\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[4,12]},"
     "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
     12},
    {"good-lora",
     "{\"base.q_proj.lora_A.weight\":{\"dtype\":\"F32\",\"shape\":[2,4],\"data_offsets\":[0,32]},"
     "\"base.q_proj.lora_B.weight\":{\"dtype\":\"F32\",\"shape\":[4,2],\"data_offsets\":[32,64]}}",
     64},
    {"bad-dtype", ONE("F128", "[1]", "0", "16"), 16},
    {"bad-hole", ONE("F32", "[1]", "4", "8"), 8},
    {"bad-overflow", ONE("U8", "[4294967296,4294967296]", "0", "0"), 0},
    {"bad-rank", ONE("U8", "[1,1,1,1,1,1,1,1,1]", "0", "1"), 1},
    {"bad-short", ONE("F32", "[4]", "0", "16"), 3},
};

static void put_safetensors(void) {
    for (size_t i = 0; i < sizeof safetensors_seeds / sizeof *safetensors_seeds; i++) {
        icma_buffer image = {0};
        const char *header = safetensors_seeds[i].header;
        char name[64];
        icma_write_u64(&image, strlen(header));
        icma_write_bytes(&image, header, strlen(header));
        icma_write_zeros(&image, safetensors_seeds[i].data_size);
        put("safetensors", safetensors_seeds[i].name, image.data, image.size);
        snprintf(name, sizeof name, "%s-header", safetensors_seeds[i].name);
        put("safetensors", name, header, strlen(header));
        icma_buffer_free(&image);
    }
    static const uint8_t pickle[] = "\x80\x02\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19.";
    put("safetensors", "edge-pickle", pickle, sizeof pickle - 1);
    put("safetensors", "edge-zip", "PK\3\4\x14\0\0\0\x08\0", 10);
    put("safetensors", "edge-huge", "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    put("safetensors", "edge-none", "", 0);
}

/* --- containers ---------------------------------------------------------------------------------------- */

/* What an archive is made of: sections_of[kind] for each of the tasks. */
typedef struct recipe {
    const char *name;
    uint32_t tasks;
    size_t section_size;
    int level;
} recipe;

static const recipe recipes[] = {
    {"none", 0, 0, 0},     {"one", 1, 10, 0},  {"two-packed", 2, 300, 3},
    {"aligned", 1, 64, 0}, {"nine", 9, 65, 0},
};

static void write_archive(const char *path, const recipe *made) {
    static const char *const names[] = {"ant", "bee", "Cat", "dog 4",       "eel",
                                        "fox", "gnu", "hen", "\xc3\xa9ider"};
    uint8_t data[512];
    icma_container_writer *writer;
    icma_error error = {0};
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i / 7);
    if (icma_container_create(path, true, &writer, &error) != ICMA_OK)
        die(error.message);
    for (uint32_t task = 0; task < made->tasks; task++) {
        icma_section sections[] = {
            {.kind = ICMA_SECTION_HEAD, .group = 0, .task = ICMA_NO_OWNER, .first = 2 * task, .count = 2},
            {.kind = ICMA_SECTION_TASK, .group = 0, .task = task, .count = 5},
            {.kind = 99, .flags = ICMA_SECTION_OPTIONAL, .group = ICMA_NO_OWNER, .task = task},
        };
        for (size_t i = 0; i < 3; i++)
            if (icma_container_add(writer, &sections[i], data + i, made->section_size, made->level, &error) !=
                ICMA_OK)
                die(error.message);
    }
    if (icma_container_finish(writer, names, made->tasks, made->tasks > 0, &error) != ICMA_OK ||
        icma_container_commit(writer, &error) != ICMA_OK)
        die(error.message);
}

/* The same archive with its index stored raw, which mutations change more gently. */
static void put_with_raw_index(const char *name, const uint8_t *image, size_t size) {
    const uint8_t *footer = image + size - 64;
    size_t offset = (size_t)icma_load_u64(footer), stored = (size_t)icma_load_u64(footer + 8);
    size_t raw_size = (size_t)icma_load_u64(footer + 16);
    icma_buffer out = {0};
    if (footer[40] == ICMA_CODING_RAW)
        return;
    icma_write_bytes(&out, image, offset);
    uint8_t *raw = icma_buffer_extend(&out, raw_size);
    if (!raw || icma_zstd_decompress(image + offset, stored, raw, raw_size, NULL) != ICMA_OK)
        die("cannot unpack an index");
    uint64_t hash = icma_hash(raw, raw_size);
    icma_write_zeros(&out, (64 - out.size % 64) % 64);
    size_t start = out.size;
    icma_write_u64(&out, offset);
    icma_write_u64(&out, raw_size);
    icma_write_u64(&out, raw_size);
    icma_write_u64(&out, hash);
    icma_write_u64(&out, start + 64);
    icma_write_u64(&out, 0);
    icma_write_bytes(&out, footer + 48, 8);
    icma_write_u64(&out, icma_hash(out.data + start, 56));
    put("container", name, out.data, out.size);
    icma_buffer_free(&out);
}

static void put_variants(const char *name, uint8_t *image, size_t size) {
    char variant[64];
    snprintf(variant, sizeof variant, "good-%s", name);
    put("container", variant, image, size);
    for (uint8_t at = 0; at < 128 && size < 8192; at = (uint8_t)(at + 31)) { /* memory runs out at that allocation */
        char where[80];
        icma_buffer failing = {0};
        icma_write_u8(&failing, at);
        icma_write_u16(&failing, at % 2 ? 256 : 0);
        icma_write_bytes(&failing, image, size);
        snprintf(where, sizeof where, "%s-%u", variant, at);
        put("allocation", where, failing.data, failing.size);
        icma_buffer_free(&failing);
    }
    snprintf(variant, sizeof variant, "good-%s-raw", name);
    put_with_raw_index(variant, image, size);
    snprintf(variant, sizeof variant, "bad-%s-cut", name);
    put("container", variant, image, size - 64);
    snprintf(variant, sizeof variant, "bad-%s-version", name);
    image[8] = 1;
    icma_store_u64(image + 56, icma_hash(image, 56));
    put("container", variant, image, size);
}

/* --- containers with adapters in them ------------------------------------------------------------------ */

/* A tree of two tasks' adapters, one LoRA pair of rank 2 each, and what it is packed with. */
typedef struct bundle_recipe {
    const char *name;
    size_t width, checkpoints; /* of each task */
    const char *dtype;         /* of the factors */
    icma_pack_options options;
} bundle_recipe;

static uint32_t noise_state;

/* Some 24 bits from -1 to 1, the same everywhere. */
static float noise(void) {
    noise_state = noise_state * 1664525 + 1013904223;
    return (float)((int32_t)(noise_state >> 8) - (1 << 23)) / (float)(1 << 23);
}

static void write_number(icma_buffer *out, const char *dtype, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (strcmp(dtype, "F32") == 0)
        icma_write_u32(out, bits);
    else
        icma_write_u16(out, (uint16_t)(bits >> 16)); /* BF16 */
}

/* Checkpoint `step` of a task: its start, then a walk; beside the pair three integers. */
static void put_adapter(const char *folder, const bundle_recipe *made, uint32_t task, size_t step) {
    size_t count = 2 * made->width, size = strcmp(made->dtype, "F32") == 0 ? 4 : 2, bytes = count * size;
    char header[1024];
    icma_buffer image = {0};
    int length =
        snprintf(header, sizeof header,
                 "{\"__metadata__\":{\"format\":\"pt\"},"
                 "\"q.lora_A.weight\":{\"dtype\":\"%s\",\"shape\":[2,%zu],\"data_offsets\":[0,%zu]},"
                 "\"q.lora_B.weight\":{\"dtype\":\"%s\",\"shape\":[%zu,2],\"data_offsets\":[%zu,%zu]},"
                 "\"steps\":{\"dtype\":\"I64\",\"shape\":[3],\"data_offsets\":[%zu,%zu]}}",
                 made->dtype, made->width, bytes, made->dtype, made->width, bytes, 2 * bytes, 2 * bytes,
                 2 * bytes + 24);
    icma_write_u64(&image, (uint64_t)length);
    icma_write_bytes(&image, header, (size_t)length);
    for (size_t i = 0; i < 2 * count; i++) {
        float value;
        noise_state = 77 * task + (uint32_t)i;
        noise();
        value = noise() / 8;
        for (size_t s = 0; s < step; s++)
            value += noise() / 256;
        write_number(&image, made->dtype, value);
    }
    for (size_t i = 0; i < 3; i++)
        icma_write_u64(&image, step * i);
    put(folder + strlen(root) + 1, "adapter_model.safetensors", image.data, image.size);
    icma_buffer_free(&image);
}

/* Makes, or removes, the folders and files of a tree. */
static void visit_tree(const bundle_recipe *made, bool make) {
    char tree[1024], task[1100], folder[1200], file[1300];
    snprintf(tree, sizeof tree, "%s/tree", root);
    if (make)
        make_folder("tree");
    for (uint32_t t = 0; t < 2; t++) {
        snprintf(task, sizeof task, "%s/%s", tree, t ? "bee" : "ant");
        if (make)
            make_folder(task + strlen(root) + 1);
        for (size_t i = 0; i < made->checkpoints; i++) {
            snprintf(folder, sizeof folder, "%s/checkpoint-%zu", task, 10 * (i + 1));
            snprintf(file, sizeof file, "%s/adapter_model.safetensors", folder);
            if (make) {
                make_folder(folder + strlen(root) + 1);
                put_adapter(folder, made, t, i);
            } else if (remove(file) != 0 || remove(folder) != 0)
                die(folder);
        }
        if (!make && remove(task) != 0)
            die(task);
    }
    if (!make && remove(tree) != 0)
        die(tree);
}

static void pack_tree(const bundle_recipe *made, const char *path) {
    char tree[1024];
    const char *paths[] = {tree};
    icma_inputs inputs;
    icma_pack_result result;
    icma_error error = {0};
    snprintf(tree, sizeof tree, "%s/tree", root);
    visit_tree(made, true);
    if (icma_inputs_find(paths, 1, &inputs, &error) != ICMA_OK ||
        icma_pack(&inputs, path, &made->options, icma_ops_reference(), &result, &error) != ICMA_OK)
        die(error.message);
    icma_inputs_free(&inputs);
    icma_pack_result_free(&result);
    visit_tree(made, false);
}

/* The archive at `path` with every section stored raw: mutations reach what is in them. */
static void store_raw(const char *path) {
    icma_container *from;
    icma_container_writer *to;
    icma_error error = {0};
    const char *names[16];
    if (icma_container_open(path, &from, &error) != ICMA_OK ||
        icma_container_create(path, true, &to, &error) != ICMA_OK)
        die(error.message);
    for (size_t i = 0; i < icma_container_section_count(from); i++) {
        icma_section section = *icma_container_section(from, i);
        uint8_t *data;
        if (icma_container_load(from, &section, 1 << 20, &data, &error) != ICMA_OK ||
            icma_container_add(to, &section, data, (size_t)section.raw_size, 0, &error) != ICMA_OK)
            die(error.message);
        icma_free(data);
    }
    for (size_t i = 0; i < icma_container_task_count(from); i++)
        names[i] = icma_container_task_name(from, i);
    if (icma_container_finish(to, names, icma_container_task_count(from), icma_container_group_count(from),
                              &error) != ICMA_OK ||
        icma_container_commit(to, &error) != ICMA_OK)
        die(error.message);
    icma_container_close(from);
}

static bundle_recipe recipe_of(const char *name, icma_tier tier, icma_generator_choice generator) {
    bundle_recipe out = {
        .name = name, .width = 12, .checkpoints = 3, .dtype = "F32", .options = icma_pack_defaults()};
    out.options.tier = tier;
    out.options.generator = generator;
    out.options.epochs = 5;
    out.options.threads = 1;
    out.options.overwrite = true;
    return out;
}

static void put_bundle(const bundle_recipe *made) {
    char path[4096];
    snprintf(path, sizeof path, "%s/seed.icma", root);
    pack_tree(made, path);
    for (int raw = 0; raw < 2; raw++) {
        char name[64];
        uint8_t *image;
        size_t size;
        if (raw)
            store_raw(path);
        if (icma_file_read_all(path, 1 << 20, &image, &size, NULL) != ICMA_OK)
            die(path);
        snprintf(name, sizeof name, "%s%s", made->name, raw ? "-sections" : "");
        put_variants(name, image, size);
        icma_free(image);
    }
    remove(path);
}

static void put_bundles(void) {
    bundle_recipe made = recipe_of("generate", ICMA_TIER_GENERATE, ICMA_CHOOSE_BASIS);
    put_bundle(&made);
    made = recipe_of("latent", ICMA_TIER_LATENT, ICMA_CHOOSE_BASIS);
    put_bundle(&made);
    made = recipe_of("bounded", ICMA_TIER_BOUNDED, ICMA_CHOOSE_NONE); /* a trellis */
    put_bundle(&made);
    made = recipe_of("bounded-basis", ICMA_TIER_BOUNDED, ICMA_CHOOSE_BASIS);
    made.options.bound.value = 5e-4f;
    put_bundle(&made);
    made = recipe_of("bounded-abs", ICMA_TIER_BOUNDED, ICMA_CHOOSE_BASIS); /* no trellis */
    made.options.bound = (icma_bound){ICMA_BOUND_ABS, 1e-4f};
    put_bundle(&made);
    made = recipe_of("bounded-wide", ICMA_TIER_BOUNDED, ICMA_CHOOSE_NONE);
    made.width = 300;
    made.dtype = "BF16";
    made.options.bound = (icma_bound){ICMA_BOUND_REL, 0.3f};
    put_bundle(&made);
    for (int kind = 0; kind < 3; kind++) { /* networks: quantised, with a spread for every weight, with a denoiser */
        static const char *const names[] = {"conv", "conv-variance", "diffusion"};
        icma_generator_choice choice = kind < 2 ? ICMA_CHOOSE_CONV : ICMA_CHOOSE_DIFFUSION;
        made = recipe_of(names[kind], kind == 1 ? ICMA_TIER_BOUNDED : ICMA_TIER_LATENT, choice);
        icma_pack_use_generator(&made.options, choice);
        made.options.layers = 2;
        made.options.channels[0] = made.options.channels[1] = 3;
        made.options.kernel = 3;
        made.options.latent_dim = 4;
        made.options.batch = 3;
        made.options.epochs = 3;
        made.options.denoiser_epochs = 2;
        made.options.variance = kind == 1;
        made.options.weights = kind == 2 ? ICMA_WEIGHTS_BF16 : ICMA_WEIGHTS_QUANTISED;
        put_bundle(&made);
    }
    made = recipe_of("lossless", ICMA_TIER_LOSSLESS, ICMA_CHOOSE_AUTO);
    made.checkpoints = 5;
    put_bundle(&made);
    made = recipe_of("lossless-short", ICMA_TIER_LOSSLESS, ICMA_CHOOSE_AUTO);
    made.dtype = "BF16";
    made.options.restart = 2;
    put_bundle(&made);
    made = recipe_of("lossless-basis", ICMA_TIER_LOSSLESS, ICMA_CHOOSE_BASIS);
    made.width = 150;
    put_bundle(&made);
}

static void put_containers(void) {
    char path[4096];
    snprintf(path, sizeof path, "%s/seed.icma", root);
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        uint8_t *image;
        size_t size;
        write_archive(path, &recipes[i]);
        if (icma_file_read_all(path, 1 << 20, &image, &size, NULL) != ICMA_OK)
            die(path);
        put_variants(recipes[i].name, image, size);
        icma_free(image);
    }
    remove(path);
    put("container", "edge-none", "", 0);
    put("container", "edge-magic", "\x89ICMA\r\n\x1a", 8);
}

int main(int count, char **arguments) {
    if (count != 2)
        die("usage: icma_fuzz_corpus FOLDER");
    root = arguments[1];
    make_folder("");
    make_folder("json");
    make_folder("safetensors");
    make_folder("container");
    for (size_t i = 0; i < sizeof json_seeds / sizeof *json_seeds; i++)
        put("json", json_seeds[i].name, json_seeds[i].text, strlen(json_seeds[i].text));
    put_safetensors();
    put_parts(put, make_folder);
    put_archives(put, make_folder);
    put_containers();
    put_bundles();
    return 0;
}
