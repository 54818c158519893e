/* SPDX-License-Identifier: Apache-2.0 */
/* icma embed: vectors of texts by CLIP's text encoder, as conditions of tasks. */
#include "bytes.h"
#include "dtype.h"
#include "file.h"
#include "json_out.h"
#include "memory.h"
#include "message.h"
#include "progress.h"
#include "sandbox.h"
#include "signals.h"
#include "source.h"
#include "text_encoder.h"
#include "verbs.h"

#include <inttypes.h>
#include <string.h>

typedef struct embed_arguments {
    cli_common common;
    cli_list texts;
    const char *encoder, *output;
    bool projection, force, scalar;
    cli_whole threads;
} embed_arguments;

#define AT(field) offsetof(embed_arguments, field)
/* Texts between two looks at signals. */
enum { AT_ONCE = 512 };

static const cli_option embed_options[] = {
    CLI_ROW_HEADING("What to embed"),
    CLI_ROW(CLI_LIST, 0, "text", "TEXT", AT(texts), "a text; may be repeated"),
    CLI_ROW(CLI_TEXT, 0, "encoder", "DIR", AT(encoder),
            "folder with config.json, model.safetensors, vocab.json and merges.txt\nof a CLIP, of its text "
            "encoder, or of a diffusers pipeline"),
    CLI_ROW_FLAG(0, "projection", AT(projection),
                 "multiply with the encoder's text projection (text_embeds of\na CLIP)"),
    CLI_ROW_HEADING("Where to"),
    CLI_ROW(CLI_TEXT, 'o', "output", "FILE", AT(output),
            "safetensors with the tensor text_embeds: of one text a vector, which\npack takes as "
            "task_vector.safetensors; of several one row each;\n- is standard output"),
    CLI_ROW_FLAG('f', "force", AT(force), "replace the output if it exists"),
    CLI_ROW_HEADING("Machine"),
    CLI_ROW_FLAG(0, "scalar", AT(scalar), "compute with the scalar reference: the same to rounding, slowly"),
    CLI_ROW_RANGE(CLI_WHOLE, 'T', "threads", "N", AT(threads), 1, 4096,
                  "threads (default: as many as the machine has)"),
    CLI_ROW_HEADING("Talk"),
    CLI_ROW_QUIET,
    CLI_ROW_VERBOSE("say if there is no sandbox"),
    CLI_ROW_JSON,
    CLI_ROW_NO_PROGRESS,
    CLI_ROW_NO_COLOR,
    CLI_ROW_HELP,
    CLI_ROW_END,
};

static icma_status usage(icma_error *error, const char *message) {
    return icma_fail(error, ICMA_E_USAGE, NULL, "%s; see icma embed --help", message);
}

static bool to_stdout(const embed_arguments *a) {
    return a->output && strcmp(a->output, "-") == 0;
}

static icma_status check_arguments(const embed_arguments *a, icma_error *error) {
    if (a->texts.count == 0)
        return usage(error, "there is no text to embed; add --text \"...\"");
    if (!a->encoder || !a->encoder[0])
        return usage(error, "no encoder was named; add --encoder DIR");
    if (!a->output && !a->common.json)
        return usage(error, "nothing says where the vectors are to go; add -o FILE or --json");
    if (a->output && !a->output[0])
        return usage(error, "the output's name is empty; name a file with -o");
    if (to_stdout(a) && a->common.json)
        return usage(error,
                     "standard output holds either the file or the JSON document; leave out -o - or --json");
    return a->output && !to_stdout(a) ? cli_try_output(a->output, a->force, error) : ICMA_OK;
}

/* --- the vectors
 * --------------------------------------------------------------------------------------------- */

typedef struct embeddings {
    icma_text_encoder *encoder;
    size_t width;
    float *rows; /* one a text */
} embeddings;

static icma_status open_encoder(const embed_arguments *a, embeddings *e, icma_error *error) {
    icma_set_threads(a->threads.given ? (int)a->threads.value : 0);
    if (!a->output || to_stdout(a)) {
        cli_sandbox_want(a->common.verbose);
        cli_sandbox_enter("cpu");
    }
    icma_status status = icma_text_encoder_open(a->encoder, a->scalar ? icma_ops_reference() : icma_ops_cpu(),
                                                &e->encoder, error);
    if (status)
        return status;
    e->width = icma_text_encoder_width(e->encoder, a->projection);
    if (!e->width)
        return icma_fail(error, ICMA_E_UNSUPPORTED, a->encoder,
                         "an encoder without text projection; leave out --projection");
    return ICMA_OK;
}

static icma_status embed_all(const embed_arguments *a, embeddings *e, icma_error *error) {
    icma_status status = open_encoder(a, e, error);
    if (!status && !(e->rows = icma_alloc_array(a->texts.count, e->width * sizeof *e->rows)))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the vectors");
    for (size_t done = 0; !status && done < a->texts.count; done += AT_ONCE) {
        size_t left = a->texts.count - done;
        cli_progress_show("embed", (double)done, (double)a->texts.count, "texts", NULL);
        status = icma_text_encoder_embed(e->encoder, a->texts.items + done, left < AT_ONCE ? left : AT_ONCE,
                                         a->projection, e->rows + done * e->width, error);
        if (!status)
            status = cli_check_signal(error);
    }
    cli_progress_clear();
    return status;
}

/* --- safetensors
 * --------------------------------------------------------------------------------------------- */

/* Metadata of safetensors are texts. Of several texts: a JSON array of them. */
static bool add_metadata(const embed_arguments *a, const embeddings *e, cJSON *root) {
    char hash[17];
    cJSON *metadata = cJSON_AddObjectToObject(root, "__metadata__"),
          *texts = cJSON_CreateStringArray(a->texts.items, (int)a->texts.count);
    char *list = texts ? cJSON_PrintUnformatted(texts) : NULL;
    snprintf(hash, sizeof hash, "%016" PRIx64, icma_text_encoder_hash(e->encoder));
    bool whole = list && cJSON_AddStringToObject(metadata, "encoder", icma_text_encoder_id(e->encoder)) &&
                 cJSON_AddStringToObject(metadata, "encoder_hash", hash) &&
                 cJSON_AddStringToObject(metadata, "pooling", icma_text_encoder_pooling(e->encoder)) &&
                 cJSON_AddStringToObject(metadata, "projection", a->projection ? "true" : "false") &&
                 cJSON_AddStringToObject(metadata, a->texts.count == 1 ? "text" : "texts",
                                         a->texts.count == 1 ? a->texts.items[0] : list);
    cJSON_Delete(texts);
    cJSON_free(list);
    return whole;
}

static char *make_header(const embed_arguments *a, const embeddings *e) {
    cJSON *root = cJSON_CreateObject();
    bool whole = add_metadata(a, e, root);
    cJSON *tensor = cJSON_AddObjectToObject(root, "text_embeds");
    cJSON *shape = cJSON_AddArrayToObject(tensor, "shape"),
          *place = cJSON_AddArrayToObject(tensor, "data_offsets");
    double count = (double)a->texts.count, width = (double)e->width;
    whole = whole && cJSON_AddStringToObject(tensor, "dtype", icma_dtype_name(ICMA_F32)) &&
            (a->texts.count == 1 || cJSON_AddItemToArray(shape, cJSON_CreateNumber(count))) &&
            cJSON_AddItemToArray(shape, cJSON_CreateNumber(width)) &&
            cJSON_AddItemToArray(place, cJSON_CreateNumber(0)) &&
            cJSON_AddItemToArray(place, cJSON_CreateNumber(4 * count * width));
    char *text = whole ? cJSON_PrintUnformatted(root) : NULL;
    cJSON_Delete(root);
    return text;
}

static icma_status make_file(const embed_arguments *a, const embeddings *e, icma_buffer *out,
                             icma_error *error) {
    char *header = make_header(a, e);
    size_t length = header ? strlen(header) : 0, padded = 0, count = a->texts.count * e->width;
    if (!header || !icma_round_up_size(length, 8, &padded))
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the vectors");
    icma_write_u64(out, padded);
    icma_write_bytes(out, header, length);
    while (length++ < padded)
        icma_write_u8(out, ' ');
    cJSON_free(header);
    uint8_t *data = icma_buffer_extend(out, count * sizeof(float));
    if (data)
        icma_store_floats(ICMA_F32, e->rows, count, data);
    return icma_buffer_status(out, error);
}

static icma_status write_file(const embed_arguments *a, const icma_buffer *file, icma_error *error) {
    icma_output *output;
    if (to_stdout(a))
        return fwrite(file->data, 1, file->size, stdout) == file->size
                   ? ICMA_OK
                   : icma_fail(error, ICMA_E_IO, "standard output", "could not be written");
    icma_status status = icma_output_create(a->output, a->force, &output, error);
    if (status)
        return status;
    status = icma_output_write(output, file->data, file->size, error);
    if (status) {
        icma_output_abandon(output);
        return status;
    }
    return icma_output_commit(output, error);
}

static icma_status write_vectors(const embed_arguments *a, const embeddings *e, icma_error *error) {
    icma_buffer file = {0};
    icma_status status = make_file(a, e, &file, error);
    if (!status)
        status = write_file(a, &file, error);
    icma_buffer_free(&file);
    if (!status && !a->common.quiet && !a->common.json && !to_stdout(a))
        fprintf(stderr, "embedded %zu text%s as %zu numbers each\n", a->texts.count,
                a->texts.count == 1 ? "" : "s", e->width);
    return status;
}

/* --- words
 * --------------------------------------------------------------------------------------------------- */

static icma_status print_json(const embed_arguments *a, const embeddings *e, icma_error *error) {
    cJSON *root = cli_json_object();
    cli_json_text(root, "encoder", icma_text_encoder_id(e->encoder));
    cli_json_hash(root, "encoder_hash", icma_text_encoder_hash(e->encoder));
    cli_json_text(root, "pooling", icma_text_encoder_pooling(e->encoder));
    cli_json_bool(root, "projection", a->projection);
    cli_json_whole(root, "width", e->width);
    cli_json_text(root, "output", a->output);
    cJSON *list = cli_json_add_array(root, "texts");
    for (size_t t = 0; t < a->texts.count; t++) {
        cJSON *text = cli_json_add_object(list, NULL);
        cli_json_text(text, "text", a->texts.items[t]);
        if (a->output) {
            cli_json_null(text, "embedding");
            continue;
        }
        cJSON *numbers = cli_json_add_array(text, "embedding");
        for (size_t i = 0; i < e->width; i++)
            cli_json_real(numbers, NULL, (double)e->rows[t * e->width + i]);
    }
    return cli_json_print(root, stdout, error);
}

static icma_status run_embed(const void *arguments, const cli_list *operands, icma_error *error) {
    const embed_arguments *a = arguments;
    embeddings e = {0};
    (void)operands;
    icma_status status = check_arguments(a, error);
    if (!status)
        status = embed_all(a, &e, error);
    if (!status && a->output)
        status = write_vectors(a, &e, error);
    if (!status && a->common.json)
        status = print_json(a, &e, error);
    icma_text_encoder_close(e.encoder);
    icma_free(e.rows);
    return status;
}

const cli_verb cli_verb_embed = {
    .name = "embed",
    .purpose = CLI_CONDITIONS,
    .also = "vector condition describe",
    .operands = "--text TEXT... --encoder DIR",
    .summary = "make a task's condition from its description",
    .description =
        "Embeds texts with CLIP's text encoder: the numbers of transformers' CLIPTextModel\n"
        "(pooler_output), or with --projection CLIPTextModelWithProjection (text_embeds), from the\n"
        "same files. The encoder's name, a hash of its weights, the text and where it was pooled are\n"
        "recorded in the file.",
    .options = embed_options,
    .examples =
        (const char *const[]){
            "icma embed --text \"detect the cat\" --encoder clip -o loras/cat/task_vector.safetensors",
            "the condition of loras/cat, which pack then finds",
            "icma embed --text \"a cat\" --text \"a dog\" --encoder clip --projection --json",
            "two vectors, in CLIP's joint space", NULL},
    .exits = (const int[]){0, 1, 2, 4, 6, 7, 8, 9, 10, -1},
    .least_operands = 0,
    .most_operands = 0,
    .arguments_size = sizeof(embed_arguments),
    .run = run_embed,
};
