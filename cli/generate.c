/* SPDX-License-Identifier: Apache-2.0 */
/* icma generate: an adapter for a condition that was never packed. */
#include "generate.h"

#include "condition_file.h"
#include "facts.h"
#include "memory.h"
#include "message.h"
#include "near.h"
#include "progress.h"
#include "record.h"
#include "source.h"
#include "verbs.h"
#include "writing.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

typedef struct generate_arguments {
    cli_common common;
    cli_decoding decoding;
    cli_writing_options writing;
    const char *condition, *like, *text, *encoder;
    cli_list mix;
    cli_whole seed;
    bool dry_run, projection;
} generate_arguments;

#define AT(field) offsetof(generate_arguments, field)

static const cli_option generate_options[] = {
    CLI_ROW_HEADING("From what"),
    CLI_ROW(CLI_TEXT, 0, "condition", "FILE", AT(condition),
            "a task vector (.safetensors or .npy), of the encoder\nthat the packed tasks' vectors came from"),
    CLI_ROW(CLI_TEXT, 0, "text", "TEXT", AT(text),
            "what the task is; for archives whose vectors icma embed\nmade of texts, with the same encoder"),
    CLI_ROW(CLI_TEXT, 0, "encoder", "DIR", AT(encoder), "CLIP text encoder of --text; see icma embed --help"),
    CLI_ROW_FLAG(0, "projection", AT(projection), "multiply with its text projection"),
    CLI_ROW(CLI_LIST, 0, "mix", "TASK[:W],...", AT(mix),
            "packed tasks, with weights or in equal shares; weights\nare used as they are and should add up "
            "to 1"),
    CLI_ROW(CLI_WHOLE, 0, "seed", "S", AT(seed), "draw a latent from this seed (default: the mean, z = 0)"),
    CLI_ROW(CLI_TEXT, 0, "like", "TASK", AT(like),
            "take the shape, the tensors that are not modelled and\nthe files beside it from this task's "
            "last checkpoint\n(default: the nearest task; of a mix the heaviest)"),
    CLI_ROW_HEADING("Where to"),
    CLI_ROW(CLI_TEXT, 'C', "directory", "DIR", AT(writing.folder),
            "adapter_model.safetensors and adapter_config.json into\nthis folder"),
    CLI_ROW(CLI_TEXT, 'o', "output", "FILE", AT(writing.output),
            "the safetensors alone, into FILE or, with -, to\nstandard output"),
    CLI_ROW_FLAG('f', "force", AT(writing.force), "replace what exists"),
    CLI_ROW_FLAG('n', "dry-run", AT(dry_run), "only tell how far it is from what was packed"),
    CLI_ROW_HEADING("As what"),
    CLI_ROWS_FORM(generate_arguments, writing),
    CLI_ROW_HEADING("Machine"),
    CLI_ROWS_DECODING(generate_arguments, decoding),
    CLI_ROW_HEADING("Talk"),
    CLI_ROW_QUIET,
    CLI_ROW_JSON,
    CLI_ROW_NO_PROGRESS,
    CLI_ROW_NO_COLOR,
    CLI_ROW_HELP,
    CLI_ROW_END,
};

/* The part of the condition below which it is said that the generator misses some. */
static const double seen_enough = 0.9;
/* Weights of a mix are typed by hand: thirds are 0.33. */
static const double sum_tolerance = 0.02;

typedef struct job {
    const generate_arguments *a;
    const char *path;
    icma_bundle *bundle;
    icma_generation what;
    icma_generated told;
    float *condition;        /* of a file; owned */
    cli_text_condition text; /* owned */
    cli_mix mix;             /* owned */
    cli_writing writing;
    cli_writing_place place; /* owned; of no parts where nothing says where to */
} job;

static icma_status check_options(const generate_arguments *a, icma_error *error) {
    const cli_writing_options *w = &a->writing;
    const char *wrong = NULL;
    bool to_stdout = w->output && strcmp(w->output, "-") == 0;
    int sources = (a->condition != NULL) + (a->text != NULL) + (a->mix.count > 0);
    if (sources == 0)
        wrong =
            "from what? --condition names a task vector, --text says it in words, --mix names packed tasks";
    else if (sources > 1)
        wrong = "--condition, --text and --mix each say what to generate; choose one";
    else if (!a->text != !a->encoder)
        wrong = a->text ? "--text needs --encoder DIR, the one that made the packed vectors"
                        : "--encoder belongs to --text";
    else if (a->projection && !a->text)
        wrong = "--projection belongs to --text";
    else if (!w->folder && !w->output && !a->dry_run)
        wrong = "where to? -C names a folder for the adapter and its config, -o a file";
    else if ((a->condition && !a->condition[0]) || (a->encoder && !a->encoder[0]))
        wrong = "a name is empty; name a folder with --encoder, a file with --condition";
    else if (to_stdout && a->common.json)
        wrong = "-o - and --json both want standard output; choose one";
    else if (to_stdout && !a->dry_run && isatty(STDOUT_FILENO))
        wrong = "an adapter is not for reading on a terminal; redirect standard output or name a file";
    return wrong ? icma_fail(error, ICMA_E_USAGE, NULL, "%s", wrong) : ICMA_OK;
}

static const char *last_segment(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

/* --- from what ------------------------------------------------------------------------------------------ */

static icma_status read_what(job *j, icma_error *error) {
    const generate_arguments *a = j->a;
    icma_status status;
    j->what = icma_generation_defaults();
    j->what.drawn = a->seed.given;
    j->what.seed = a->seed.value;
    j->what.bundle = last_segment(j->path);
    if (a->condition) {
        status = icma_condition_load(a->condition, &j->condition, &j->what.condition_size, error);
        if (status == ICMA_E_NOT_FOUND)
            cli_suggest_path(error, a->condition);
        icma_error_set_file(error, a->condition);
        j->what.condition = j->condition;
        j->what.origin = last_segment(a->condition);
    } else if (a->text) {
        status = cli_text_embed(a->text, a->encoder, a->projection, &j->text, error);
        j->what.condition = j->text.values;
        j->what.condition_size = j->text.count;
        j->what.origin = j->text.origin;
    } else {
        status = cli_mix_read(j->bundle, j->path, &a->mix, &j->mix, error);
        j->what.tasks = j->mix.tasks;
        j->what.weights = j->mix.weights;
        j->what.task_count = j->mix.count;
        j->what.origin = j->mix.text;
    }
    if (!status && a->like)
        status = cli_choose_task(j->bundle, j->path, a->like, &j->what.like, error);
    return status;
}

/* --- what is told --------------------------------------------------------------------------------------- */

/* A vector of another text encoder is as long, and means something else. */
static void warn_of_encoder(const job *j) {
    char hash[17];
    cJSON *record = NULL;
    if (!j->a->text || cli_record_load(j->bundle, j->told.group, &record, NULL))
        return;
    const cJSON *packed = cJSON_GetObjectItemCaseSensitive(record, "text_encoder");
    const char *id = cli_record_text(packed, "id"), *wanted = cli_record_text(packed, "hash");
    bool projected = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(packed, "projection"));
    snprintf(hash, sizeof hash, "%016" PRIx64, j->text.encoder);
    if (wanted && strcmp(wanted, hash) != 0)
        cli_warning(NULL,
                    "the packed vectors are of another text encoder, \"%.100s\" (its weights have the hash "
                    "%.16s): name that one with --encoder",
                    id ? id : "?", wanted);
    else if (wanted && projected != j->a->projection)
        cli_warning(NULL, "the packed vectors were made %s --projection: make this one so too",
                    projected ? "with" : "without");
    cJSON_Delete(record);
}

/* Of a generated adapter nobody has measured anything. */
static void warn(const job *j) {
    const icma_generated *told = &j->told;
    double sum = cli_mix_sum(&j->mix);
    char seen[80] = "";
    warn_of_encoder(j);
    if (j->mix.count && fabs(sum - 1) > sum_tolerance)
        cli_warning(
            NULL,
            "the weights of --mix add up to %g: the condition lies not between these tasks but beyond them",
            sum);
    if (told->seen < seen_enough)
        snprintf(seen, sizeof seen, "; the generator sees %.0f %% of the condition", 100 * told->seen);
    if (told->distance > 0 || isnan(told->distance))
        cli_warning(NULL,
                    "never packed, so never checked: the nearest condition is that of \"%.100s\" (cosine "
                    "%.3f, distance %.2f of its length)%s; evaluate the adapter before you use it",
                    icma_bundle_task_name(j->bundle, told->nearest), told->cosine, told->distance, seen);
    else
        cli_note("the condition is that of \"%.100s\", as it was packed",
                 icma_bundle_task_name(j->bundle, told->nearest));
}

static icma_status tell_json(const job *j, icma_error *error) {
    const icma_generated *told = &j->told;
    cJSON *root = cli_json_object();
    cli_json_text(root, "bundle", j->path);
    cli_json_bool(root, "dry_run", j->a->dry_run);
    cJSON *from = cli_json_add_object(root, "from");
    cli_json_text(from, "condition", j->a->condition);
    cli_json_text(from, "text", j->a->text);
    cJSON *mix = j->mix.count ? cli_json_add_array(from, "mix") : NULL;
    if (!mix)
        cli_json_null(from, "mix");
    for (size_t i = 0; i < j->mix.count; i++) {
        cJSON *part = cli_json_add_object(mix, NULL);
        cli_json_text(part, "task", icma_bundle_task_name(j->bundle, j->mix.tasks[i]));
        cli_json_real(part, "weight", j->mix.weights[i]);
    }
    cli_json_hash(root, "condition_xxh3", told->hash);
    if (j->what.drawn)
        cli_json_whole(root, "seed", j->what.seed);
    else
        cli_json_null(root, "seed");
    cli_json_text(root, "like", icma_bundle_task_name(j->bundle, told->like));
    cli_json_whole(root, "group", told->group);
    cJSON *nearest = cli_json_add_object(root, "nearest");
    cli_json_text(nearest, "task", icma_bundle_task_name(j->bundle, told->nearest));
    cli_json_real(nearest, "cosine", told->cosine);
    cli_json_real(nearest, "distance", told->distance);
    cli_json_real(root, "seen", told->seen);
    cli_writing_to_json(&j->writing, root);
    cJSON *adapter = cli_json_add_object(root, "adapter");
    const cli_writing_part *part = j->place.count ? j->place.parts : NULL; /* none: a dry run to nowhere */
    char *path = part ? cli_writing_path(&j->a->writing, part) : NULL;
    cli_json_text(adapter, "path", path);
    cli_json_whole(adapter, "bytes", part ? part->bytes : 0);
    cli_json_whole(adapter, "side_files", part ? part->side_files : 0);
    cli_json_text(adapter, "state", j->place.written ? "written" : "planned");
    icma_free(path);
    return cli_json_print(root, stdout, error);
}

static icma_status tell(const job *j, icma_error *error) {
    const generate_arguments *a = j->a;
    const cli_writing_options *w = &a->writing;
    cli_progress_clear();
    warn(j);
    cli_writing_tell(&j->writing);
    if (a->common.json)
        return tell_json(j, error);
    if (a->common.quiet || a->dry_run || (w->output && strcmp(w->output, "-") == 0))
        return ICMA_OK;
    uint64_t bytes = 0;
    for (size_t i = 0; i < j->place.count; i++)
        bytes += j->place.parts[i].bytes;
    fprintf(stderr, "%sgenerated%s an adapter, %s, like ", cli_style(stderr, CLI_GREEN),
            cli_style(stderr, CLI_PLAIN), cli_size(bytes).text);
    cli_print_safe(stderr, icma_bundle_task_name(j->bundle, j->told.like));
    fputs(", into ", stderr);
    cli_print_safe(stderr, w->output ? w->output : w->folder);
    fputc('\n', stderr);
    return ICMA_OK;
}

/* --- the work ------------------------------------------------------------------------------------------- */

/* Its header is like that of the last checkpoint in its group of the task that it is like. */
static icma_status like_header(job *j, icma_decoded *header, icma_error *error) {
    icma_task_info info;
    icma_status status = icma_bundle_task(j->bundle, j->told.like, &info, error);
    size_t last = status ? 0 : info.checkpoint_count;
    while (last > 1 && info.checkpoints[last - 1].group != j->told.group)
        last--;
    return status ? status : icma_bundle_header(j->bundle, j->told.like, last - 1, header, error);
}

/* Where it will lie, as PEFT and diffusers have it: in the folder itself; and whether something is in the
 * way. */
static icma_status look_first(job *j, icma_error *error) {
    icma_file_naming naming;
    icma_decoded header = {0};
    if (!j->a->writing.folder && !j->a->writing.output)
        return ICMA_OK;
    icma_status status = like_header(j, &header, error);
    if (!status)
        status = icma_file_naming_guess(&header, false, 0, &naming, error);
    if (!status && naming.form == ICMA_FORM_PLAIN && j->writing.layout.layout == ICMA_LAYOUT_ORIGINAL)
        naming.form = ICMA_FORM_PEFT; /* a generated file has no name that could be given back */
    cli_writing_subject subject = {.header = &header,
                                   .naming = &naming,
                                   .task = j->writing.layout.layout == ICMA_LAYOUT_KOHYA ? "generated" : ""};
    if (!status)
        status = cli_writing_place_of(&j->writing, &subject, &j->place, error);
    if (!status)
        status = cli_writing_look(&j->writing, &j->place, error);
    icma_decoded_free(&header);
    return status;
}

static icma_status generate(job *j, icma_error *error) {
    const generate_arguments *a = j->a;
    icma_decoded decoded = {0};
    icma_status status = a->dry_run ? ICMA_OK : cli_bundle_choose_device(j->bundle, &a->decoding, 1, error);
    cli_progress_show("generate", 0, 0, NULL, NULL); /* one adapter: in one piece */
    if (!status)
        status = cli_bundle_generate(j->bundle, &j->what, NULL, &j->told, error);
    if (!status)
        status = look_first(j, error);
    if (status || a->dry_run)
        return status;
    status = cli_bundle_generate(j->bundle, &j->what, &decoded, &j->told, error);
    return status ? status : cli_writing_write(&j->writing, &j->place, &decoded, false, NULL, error);
}

static icma_status run_generate(const void *arguments, const cli_list *operands, icma_error *error) {
    const generate_arguments *a = arguments;
    char *path = NULL;
    job j = {.a = a};
    icma_status status = check_options(a, error);
    if (!status)
        status = cli_writing_open(&j.writing, &a->writing, false, error);
    if (!status)
        status = cli_bundle_open(operands, &a->decoding, &j.bundle, &path, error);
    j.path = path;
    if (!status)
        status = read_what(&j, error);
    if (!status)
        status = generate(&j, error);
    if (!status)
        status = tell(&j, error);
    if (status && path)
        icma_error_set_file(error, path);
    cli_writing_close(&j.writing, false, NULL); /* it wrote no archive */
    cli_writing_place_free(&j.place);
    icma_free(j.condition);
    cli_text_condition_free(&j.text);
    cli_mix_free(&j.mix);
    icma_bundle_close(j.bundle);
    icma_free(path);
    return status;
}

const cli_verb cli_verb_generate = {
    .name = "generate",
    .purpose = CLI_TAKES,
    .also = "sample mix merge new",
    .operands = "[B.icma]",
    .summary = "make an adapter for a task that was not packed",
    .description =
        "Generates an adapter from a task vector that is not in the archive, or from a mix of packed\n"
        "tasks. Its file says so in its metadata, and how far its condition is from the nearest packed\n"
        "one is told: whether such an adapter works, only an evaluation can tell.",
    .options = generate_options,
    .examples = (const char *const[]){"icma generate loras.icma --condition bird.safetensors -C bird",
                                      "for a vector of the encoder that made the others",
                                      "icma generate loras.icma --text \"a bird\" --encoder clip -C bird",
                                      "for words, where icma embed made the others of words",
                                      "icma generate --mix cat:0.7,dog:0.3 -C catdog",
                                      "between two tasks of the only .icma file here",
                                      "icma generate --mix cat,dog --seed 7 -o - | sha256sum",
                                      "drawn, to standard output", NULL},
    .exits = (const int[]){0, 1, 2, 4, 6, 7, 8, 9, 10, -1},
    .most_operands = 1,
    .arguments_size = sizeof(generate_arguments),
    .run = run_generate,
};
