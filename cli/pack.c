/* SPDX-License-Identifier: Apache-2.0 */
/* icma pack: options into icma_pack_options, and the order of things. */
#include "pack.h"

#include "device.h"
#include "evaluate.h"
#include "file.h"
#include "memory.h"
#include "message.h"
#include "ops.h"
#include "progress.h"
#include "source.h"
#include "terminal.h"
#include "verbs.h"

#include <ctype.h>
#include <float.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>

typedef struct pack_arguments {
    cli_common common;
    cli_finding finding;
    const char *output;
    bool force, dry_run, scalar, resume, variance, projection;
    const char *tier, *generator, *preset, *max_error, *checkpoints, *keep, *device, *precision, *channels, *weights, *training, *eval, *text_from, *encoder;
    cli_whole components, restart, epochs, seed, latent_dim, batch, threads, layers, kernel, patience, denoiser_epochs;
    cli_real explain, target_bits, kld_weight, learning_rate, weight_decay, save_every;
} pack_arguments;

#define AT(field) offsetof(pack_arguments, field)

static const cli_option pack_options[] = {
    CLI_ROW_HEADING("Output"),
    CLI_ROW(CLI_TEXT, 'o', "output", "B.icma", AT(output), "the archive to write"),
    CLI_ROW_FLAG('f', "force", AT(force), "replace the output if it exists"),
    CLI_ROW_FLAG('n', "dry-run", AT(dry_run), "show what was found; write nothing"),
    CLI_ROW_HEADING("What to keep"),
    CLI_ROW_CHOICE(0, "tier", "TIER", "bounded|lossless|latent|generate", AT(tier),
            "bounded: to an error bound, checked (default)\n"
            "lossless: the very files\n"
            "latent: each checkpoint's latent and small corrections\n"
            "generate: only each task's condition"),
    CLI_ROW(CLI_TEXT, 0, "keep", "all|last", AT(keep), "which checkpoints can be restored (default all)"),
    CLI_ROW(CLI_TEXT, 0, "checkpoints", "all|last:N", AT(checkpoints),
            "which checkpoints of each task to use at all (default all)"),
    CLI_ROW_HEADING("Conditions from texts"),
    CLI_ROW(CLI_TEXT, 0, "text-from", "MAP.json", AT(text_from),
            "texts as the tasks' conditions: {\"cat\": \"detect the cat\", ...}; a task\n"
            "that is not in it keeps its task_vector, or has a condition learned"),
    CLI_ROW(CLI_TEXT, 0, "encoder", "DIR", AT(encoder), "folder of the CLIP text encoder that embeds them (see icma embed --help)"),
    CLI_ROW_FLAG(0, "projection", AT(projection), "multiply them with its text projection"),
    CLI_ROW_HEADING("Size against fidelity"),
    CLI_ROW_RANGE(CLI_REAL, 0, "explain", "X", AT(explain), 1e-6, 1,
                  "share of the variance within tasks to span"),
    CLI_ROW(CLI_TEXT, 0, "max-error", "dw=X|rel=X|abs=X", AT(max_error),
            "bounded: most relative error of dW a module, relative error or\n"
            "largest difference a tensor (default dw=0.1); latent: dw=X is the\n"
            "mean that the basis aims at (default dw=0.05)"),
    CLI_ROW_RANGE(CLI_REAL, 0, "target-bits", "X", AT(target_bits), 1e-6, 64,
                  "bounded: instead of --max-error, find the least dw=X that takes at\n"
                  "most so many bits a parameter, all bytes counted (packs several times)"),
    CLI_ROW_RANGE(CLI_WHOLE, 0, "restart", "N", AT(restart), 1, 1e9,
                  "lossless: most checkpoints in a chain of predictions"),
    CLI_ROW_RANGE(CLI_WHOLE, 0, "components", "N", AT(components), 1, 4096,
                  "basis rows a role, instead of --explain and, in tiers latent and\n"
                  "generate, --max-error"),
    CLI_ROW_CHOICE(0, "generator", "KIND", "auto|basis|none|conv|diffusion|soup", AT(generator),
            "auto: a basis where it pays (default); basis; none: residuals alone;\n"
            "conv: the convolutional CVAE of the ICM-LoRA paper; diffusion: latent\n"
            "diffusion after COND P-DIFF; soup: each task's average"),
    CLI_ROW(CLI_TEXT, 0, "eval", "COMMAND", AT(eval),
            "soup: a greedy one, by the number that COMMAND prints last (lower is\n"
            "better), with {adapter} and {task} replaced"),
    CLI_ROW_HEADING("Training"),
    CLI_ROW_CHOICE(0, "preset", "NAME", "paper", AT(preset),
            "paper: --generator conv with the ICM-LoRA paper's loss and numbers;\n"
            "with --generator basis, its loss"),
    CLI_ROW_RANGE(CLI_WHOLE, 0, "epochs", "N", AT(epochs), 1, 1e9, "passes over the checkpoints"),
    CLI_ROW_RANGE(CLI_WHOLE, 0, "batch", "N", AT(batch), 1, 1e6, "checkpoints in a training step"),
    CLI_ROW_RANGE(CLI_REAL, 0, "lr", "X", AT(learning_rate), 1e-12, 1e3, "learning rate"),
    CLI_ROW_RANGE(CLI_WHOLE, 0, "latent-dim", "N", AT(latent_dim), 1, 1024, "latent dimensions"),
    CLI_ROW_RANGE(CLI_REAL, 0, "kld-weight", "X", AT(kld_weight), 0, 1e9,
                  "weight of the KL term, with --preset paper"),
    CLI_ROW_RANGE(CLI_REAL, 0, "weight-decay", "X", AT(weight_decay), 0, 1e3, "conv, diffusion: AdamW with this decay (default 0: Adam)"),
    CLI_ROW_RANGE(CLI_WHOLE, 0, "patience", "N", AT(patience), 1, 1e9,
                  "conv, diffusion: stop after N epochs that have not lowered the loss\n"
                  "by a thousandth (default: never)"),
    CLI_ROW(CLI_WHOLE, 0, "seed", "N", AT(seed), "seed of every random choice"),
    CLI_ROW_HEADING("Convolutional networks (conv, diffusion)"),
    CLI_ROW_RANGE(CLI_WHOLE, 0, "layers", "N", AT(layers), 1, 16, "convolutions of the encoder, and of the decoder"),
    CLI_ROW(CLI_TEXT, 0, "channels", "N,N,...", AT(channels), "channels of the encoder's layers (default 8,16,32 ... 256 ... 16,8)"),
    CLI_ROW_RANGE(CLI_WHOLE, 0, "kernel", "N", AT(kernel), 1, 31, "taps of a convolution, an odd number"),
    CLI_ROW_CHOICE(0, "weights", "KIND", "auto|bf16|f32", AT(weights),
            "how the decoder's weights are stored: auto (quantised, as coarsely as\n"
            "its error hardly shows; default), bf16, f32"),
    CLI_ROW_FLAG(0, "variance", AT(variance), "conv: predict the variance of every weight as well (the paper's equation\n6), and code residuals by it"),
    CLI_ROW_RANGE(CLI_WHOLE, 0, "denoiser-epochs", "N", AT(denoiser_epochs), 1, 1e9, "diffusion: passes of the denoiser over the latents"),
    CLI_ROW_FLAG(0, "resume", AT(resume), "go on with an interrupted training, to the same archive"),
    CLI_ROW(CLI_TEXT, 0, "training", "FILE", AT(training), "where its state is kept (default: the archive's name with .training);\nit is removed when the archive is there"),
    CLI_ROW_RANGE(CLI_REAL, 0, "save-every", "SECONDS", AT(save_every), 0, 1e9, "time between saves"),
    CLI_ROW_HEADING("Machine"),
    CLI_ROW_CHOICE(0, "device", "NAME", "auto|cpu|cuda", AT(device), "auto, cpu, cuda or cuda:N (default auto: a GPU if there is one and\nenough to train)"),
    CLI_ROW_CHOICE(0, "precision", "KIND", "f32|tf32|bf16", AT(precision),
            "of products in training on a GPU: f32 (default), tf32 or bf16, which\nare faster; decoding is exact whatever this says"),
    CLI_ROW_RANGE(CLI_WHOLE, 'T', "threads", "N", AT(threads), 1, 4096,
                  "threads (default: as many as the machine has)"),
    CLI_ROW_FLAG(0, "scalar", AT(scalar), "encode and check with the scalar reference: the same bytes, slowly"),
    CLI_ROWS_FINDING(pack_arguments, finding),
    CLI_ROW_HEADING("Talk"),
    CLI_ROW_QUIET,
    CLI_ROW_VERBOSE("what is decided, and why; with --dry-run every checkpoint"),
    CLI_ROW_JSON,
    CLI_ROW_NO_PROGRESS,
    CLI_ROW_NO_COLOR,
    CLI_ROW_HELP,
    CLI_ROW_END,
};

/* What the library does by default, asked of it rather than repeated. */
static void tell_default(const cli_option *option, char *text, size_t size) {
    icma_pack_options standard = icma_pack_defaults();
    const struct {
        size_t target;
        double value;
    } values[] = {
        {AT(epochs), (double)standard.epochs},
        {AT(batch), (double)standard.batch},
        {AT(learning_rate), standard.learning_rate},
        {AT(latent_dim), (double)standard.latent_dim},
        {AT(seed), (double)standard.seed},
        {AT(kld_weight), standard.kld_weight},
        {AT(explain), standard.explain},
        {AT(restart), (double)standard.restart},
        {AT(denoiser_epochs), (double)standard.denoiser_epochs},
        {AT(layers), (double)standard.layers},
        {AT(kernel), (double)standard.kernel},
        {AT(save_every), standard.save_seconds},
    };
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++)
        if (option->kind != CLI_HEADING && option->target == values[i].target && values[i].value != ICMA_AUTO)
            snprintf(text, size, "%g", values[i].value);
        else if (option->kind != CLI_HEADING && option->target == values[i].target)
            snprintf(text, size, "by the data");
}

static icma_status usage(icma_error *error, const char *message) {
    return icma_fail(error, ICMA_E_USAGE, NULL, "%s; see icma pack --help", message);
}

icma_status cli_pack_read_tier(const char *tier, icma_pack_options *options, icma_error *error) {
    for (icma_tier t = ICMA_TIER_GENERATE; tier && t <= ICMA_TIER_LOSSLESS; t++)
        if (strcmp(tier, icma_tier_name(t)) == 0) {
            options->tier = t;
            return ICMA_OK;
        }
    if (!tier)
        return ICMA_OK;
    return icma_fail(error, ICMA_E_USAGE, NULL, "--tier takes bounded, lossless, latent or generate, not \"%s\"", tier);
}

static icma_status read_generator(const char *generator, icma_pack_options *options, icma_error *error) {
    static const char *const names[] = {[ICMA_CHOOSE_AUTO] = "auto", [ICMA_CHOOSE_BASIS] = "basis", [ICMA_CHOOSE_NONE] = "none",
                                        [ICMA_CHOOSE_CONV] = "conv", [ICMA_CHOOSE_DIFFUSION] = "diffusion", [ICMA_CHOOSE_SOUP] = "soup"};
    for (size_t i = 0; generator && i < sizeof names / sizeof names[0]; i++)
        if (strcmp(generator, names[i]) == 0) {
            icma_pack_use_generator(options, (icma_generator_choice)i);
            return ICMA_OK;
        }
    if (!generator)
        return ICMA_OK;
    return icma_fail(error, ICMA_E_USAGE, NULL, "--generator takes auto, basis, conv, diffusion, soup or none, not \"%s\"", generator);
}

/* "8,16,32": a number a layer. */
static icma_status read_channels(const pack_arguments *a, icma_pack_options *options, icma_error *error) {
    const char *text = a->channels;
    size_t count = 0;
    while (text && *text) {
        char digits[8];
        size_t length = strcspn(text, ",");
        uint64_t value = 0;
        if (length < sizeof digits) {
            memcpy(digits, text, length);
            digits[length] = '\0';
        }
        if (length >= sizeof digits || !cli_parse_whole(digits, &value) || value < 1 || value > 1024 || count == ICMA_MOST_LAYERS)
            return icma_fail(error, ICMA_E_USAGE, NULL, "--channels takes up to 16 numbers from 1 to 1024 with commas between them, not \"%s\"", a->channels);
        options->channels[count++] = (size_t)value;
        text += length + (text[length] == ',');
    }
    if (count && a->layers.given && a->layers.value != count)
        return usage(error, "--channels and --layers do not agree; leave out --layers");
    if (count)
        options->layers = count;
    return ICMA_OK;
}

static icma_status read_weights(const char *weights, icma_pack_options *options, icma_error *error) {
    static const char *const names[] = {[ICMA_WEIGHTS_QUANTISED] = "auto", [ICMA_WEIGHTS_BF16] = "bf16", [ICMA_WEIGHTS_F32] = "f32"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!weights || strcmp(weights, names[i]) == 0) {
            options->weights = (icma_weights)i;
            return ICMA_OK;
        }
    return icma_fail(error, ICMA_E_USAGE, NULL, "--weights takes auto, bf16 or f32, not \"%s\"", weights);
}

static icma_status read_network(const pack_arguments *a, icma_pack_options *options, icma_error *error) {
    const struct {
        bool given;
        const char *name;
    } of_networks[] = {{a->layers.given, "layers"}, {a->channels, "channels"}, {a->kernel.given, "kernel"}, {a->weights, "weights"}, {a->patience.given, "patience"},
                       {a->weight_decay.given, "weight-decay"}, {a->resume, "resume"}, {a->training, "training"}, {a->save_every.given, "save-every"}};
    for (size_t i = 0; i < sizeof of_networks / sizeof of_networks[0]; i++)
        if (of_networks[i].given && !icma_choice_is_network(options->generator))
            return icma_fail(error, ICMA_E_USAGE, NULL, "--%s belongs to --generator conv or diffusion; other trainings take seconds (icma pack --help)", of_networks[i].name);
    if (a->layers.given)
        options->layers = (size_t)a->layers.value;
    if (a->kernel.given && a->kernel.value % 2 == 0)
        return usage(error, "--kernel takes an odd number");
    if (a->denoiser_epochs.given && options->generator != ICMA_CHOOSE_DIFFUSION)
        return usage(error, "--denoiser-epochs belongs to --generator diffusion");
    if (a->variance && options->generator != ICMA_CHOOSE_CONV)
        return usage(error, "--variance belongs to --generator conv");
    options->variance = a->variance;
    if (a->denoiser_epochs.given)
        options->denoiser_epochs = (size_t)a->denoiser_epochs.value;
    if (a->kernel.given)
        options->kernel = (size_t)a->kernel.value;
    if (a->patience.given)
        options->patience = (size_t)a->patience.value;
    if (a->weight_decay.given)
        options->weight_decay = a->weight_decay.value;
    if (a->save_every.given)
        options->save_seconds = a->save_every.value;
    options->resume = a->resume;
    if (a->eval && options->generator != ICMA_CHOOSE_SOUP)
        return usage(error, "--eval judges the checkpoints of a soup; add --generator soup");
    icma_status status = read_weights(a->weights, options, error);
    return status ? status : read_channels(a, options, error);
}

icma_status cli_pack_read_checkpoints(const char *checkpoints, icma_pack_options *options, icma_error *error) {
    uint64_t last = 0;
    if (!checkpoints || strcmp(checkpoints, "all") == 0)
        return ICMA_OK;
    if (strncmp(checkpoints, "last:", 5) != 0 || !cli_parse_whole(checkpoints + 5, &last) || last == 0 || last > SIZE_MAX)
        return icma_fail(error, ICMA_E_USAGE, NULL, "--checkpoints takes all or last:N, not \"%s\"", checkpoints);
    options->train_last = (size_t)last;
    return ICMA_OK;
}

static icma_status read_selection(const pack_arguments *a, icma_pack_options *options, icma_error *error) {
    if (a->keep && strcmp(a->keep, "all") != 0 && strcmp(a->keep, "last") != 0)
        return icma_fail(error, ICMA_E_USAGE, NULL, "--keep takes all or last, not \"%s\"", a->keep);
    options->keep_last_only = a->keep && strcmp(a->keep, "last") == 0;
    return cli_pack_read_checkpoints(a->checkpoints, options, error);
}

/* Never above what was asked for, whatever f32 can hold. */
static float round_down(double value) {
    float near = (float)value;
    return (double)near > value ? nextafterf(near, 0) : near;
}

/* Says how what was meant is written, where that can be guessed. */
static icma_status refuse_bound(const char *text, icma_error *error) {
    const char *equals = strchr(text, '='), *number = equals ? equals + 1 : text;
    char copy[32];
    double value;
    snprintf(copy, sizeof copy, "%s", number);
    size_t length = strlen(copy);
    bool percent = length > 1 && copy[length - 1] == '%';
    if (percent)
        copy[length - 1] = '\0';
    if (strchr(copy, ','))
        *strchr(copy, ',') = '.';
    if ((percent || strchr(number, ',')) && cli_parse_real(copy, &value) && value > 0)
        return icma_fail(error, ICMA_E_USAGE, NULL, "--max-error takes dw=X, rel=X or abs=X, not \"%s\"; write %.*s=%g", text,
                         (int)(equals ? equals - text : 2), equals ? text : "dw", percent ? value / 100 : value);
    return icma_fail(error, ICMA_E_USAGE, NULL, "--max-error takes dw=X, rel=X or abs=X with X above 0, not \"%s\"; dw=0.05 allows 5 %% in the dW of a module", text);
}

icma_status cli_pack_read_bound(const char *text, icma_pack_options *options, icma_error *error) {
    const char *equals = strchr(text, '=');
    double value;
    icma_bound_kind kind = equals ? ICMA_BOUND_NONE : ICMA_BOUND_DW;
    for (icma_bound_kind k = ICMA_BOUND_DW; equals && k <= ICMA_BOUND_ABS; k++)
        if (strlen(icma_bound_name(k)) == (size_t)(equals - text) && strncmp(text, icma_bound_name(k), (size_t)(equals - text)) == 0)
            kind = k;
    if (kind == ICMA_BOUND_NONE || !cli_parse_real(equals ? equals + 1 : text, &value) || !(round_down(value) >= FLT_MIN) || value > 1e30)
        return refuse_bound(text, error);
    if (options->tier == ICMA_TIER_LOSSLESS)
        return icma_fail(error, ICMA_E_USAGE, NULL, "--tier lossless has no error to bound; leave out --max-error");
    if (options->tier != ICMA_TIER_BOUNDED && kind != ICMA_BOUND_DW)
        return icma_fail(error, ICMA_E_USAGE, NULL, "--max-error %s=X belongs to --tier bounded; --tier %s takes dw=X", icma_bound_name(kind), icma_tier_name(options->tier));
    if (options->tier == ICMA_TIER_BOUNDED)
        options->bound = (icma_bound){kind, round_down(value)};
    else
        options->max_error = value;
    return ICMA_OK;
}

static icma_status read_target(const pack_arguments *a, icma_pack_options *options, icma_error *error) {
    if (a->components.given && (a->explain.given || (a->max_error && options->tier != ICMA_TIER_BOUNDED)))
        return usage(error, "--components sets the basis outright; leave out --explain and, but for --tier bounded, --max-error");
    if (a->components.given)
        options->components = (size_t)a->components.value;
    if (a->explain.given)
        options->explain = a->explain.value;
    if (a->target_bits.given && (a->max_error || options->tier != ICMA_TIER_BOUNDED))
        return usage(error, "--target-bits finds the bound of --tier bounded; leave out --max-error and other tiers");
    if (a->target_bits.given)
        options->target_bits = a->target_bits.value;
    if (a->restart.given && options->tier != ICMA_TIER_LOSSLESS)
        return usage(error, "--restart belongs to --tier lossless");
    if (a->restart.given)
        options->restart = (size_t)a->restart.value;
    if (!a->max_error)
        return ICMA_OK;
    return cli_pack_read_bound(a->max_error, options, error);
}

static icma_status read_training(const pack_arguments *a, icma_pack_options *options, icma_error *error) {
    if (a->preset) {
        icma_status status = icma_pack_preset(a->preset, options, error);
        if (status)
            return status;
    }
    if (a->kld_weight.given && options->loss != ICMA_LOSS_PAPER)
        return usage(error, "--kld-weight belongs to the paper's loss; add --preset paper");
    if (a->kld_weight.given)
        options->kld_weight = a->kld_weight.value;
    if (a->learning_rate.given)
        options->learning_rate = a->learning_rate.value;
    if (a->epochs.given)
        options->epochs = (size_t)a->epochs.value;
    if (a->batch.given)
        options->batch = (size_t)a->batch.value;
    if (a->latent_dim.given)
        options->latent_dim = (size_t)a->latent_dim.value;
    if (a->seed.given)
        options->seed = a->seed.value;
    return ICMA_OK;
}

static icma_status read_precision(const pack_arguments *a, icma_pack_options *options, icma_error *error) {
    icma_precision precision;
    if (!a->precision)
        return ICMA_OK;
    icma_status status = icma_precision_from_name(a->precision, &precision, error);
    if (!status && precision != ICMA_PRECISION_F32 && a->device && (strcmp(a->device, "cpu") == 0 || strcmp(a->device, "reference") == 0))
        return usage(error, "--precision tells how a GPU multiplies; leave it out, or leave out --device");
    options->precision = a->precision;
    return status;
}

static icma_status read_texts(const pack_arguments *a, icma_pack_options *options, icma_error *error) {
    if (a->text_from && !a->encoder)
        return usage(error, "--text-from needs the encoder that embeds its texts; add --encoder DIR");
    if ((a->encoder || a->projection) && !a->text_from)
        return usage(error, "--encoder and --projection belong to --text-from");
    options->text_from = a->text_from;
    options->text_encoder = a->encoder;
    options->text_projection = a->projection;
    return ICMA_OK;
}

static icma_status read_options(const pack_arguments *a, icma_pack_options *options, icma_error *error) {
    *options = icma_pack_defaults();
    if (a->output && !a->output[0])
        return usage(error, "the output's name is empty; name a file with -o");
    if (a->output && strcmp(a->output, "-") == 0)
        return usage(error, "an archive cannot be written to a pipe; name a file with -o");
    icma_status status = read_generator(a->generator, options, error); /* each comes before what overrides it */
    if (!status)
        status = read_training(a, options, error);
    if (!status)
        status = read_network(a, options, error);
    if (!status)
        status = cli_pack_read_tier(a->tier, options, error);
    if (!status)
        status = read_selection(a, options, error);
    if (!status)
        status = read_target(a, options, error);
    if (!status)
        status = read_precision(a, options, error);
    if (!status)
        status = read_texts(a, options, error);
    options->threads = a->threads.given ? (int)a->threads.value : 0;
    options->overwrite = a->force;
    options->scalar = a->scalar;
    options->progress = cli_progress_hooks();
    return status;
}

/* The training's state lies beside the archive, unless told otherwise. */
static char *name_training(const pack_arguments *a) {
    icma_buffer name = {0};
    cli_append(&name, "%s.training", a->output);
    icma_write_u8(&name, 0);
    char *copy = name.failed ? NULL : icma_copy_string((const char *)name.data);
    icma_buffer_free(&name);
    return copy;
}

static icma_status pack_saving(const pack_arguments *a, const icma_inputs *inputs, icma_pack_options *options, const struct icma_ops *ops, icma_pack_result *result, icma_error *error) {
    char *name = a->training ? NULL : name_training(a);
    options->training_file = a->training ? a->training : name;
    icma_status status = options->training_file ? icma_pack(inputs, a->output, options, ops, result, error) : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a name");
    icma_free(name);
    return status;
}

/* Of a file or a member of an archive; 0 for what cannot be opened, which is told soon enough. */
static double size_of(const char *path) {
    icma_file *file;
    double size = 0;
    if (icma_file_open(path, &file, NULL) == ICMA_OK)
        size = (double)icma_file_size(file);
    icma_file_close(file);
    return size;
}

/* Of files as if all of their numbers were weights of 32 bits: which device is worth waking is a matter of powers of ten. */
icma_device_work cli_pack_work(const icma_inputs *inputs, const icma_pack_options *options) {
    icma_device_work work = {0};
    size_t adapters = 0;
    for (size_t t = 0; t < inputs->task_count; t++) {
        const icma_input_task *task = &inputs->tasks[t];
        size_t first = options->train_last && options->train_last < task->checkpoint_count ? task->checkpoint_count - options->train_last : 0;
        for (size_t c = first; c < task->checkpoint_count; c++, adapters++)
            work.bytes += size_of(task->checkpoints[c].path);
    }
    work.operations = adapters ? icma_pack_work(options, adapters, (size_t)(work.bytes / (double)adapters / sizeof(float)) + 1) : 0;
    return work;
}

static icma_status open_device(const pack_arguments *a, const icma_inputs *inputs, const icma_pack_options *options, const struct icma_ops **ops, icma_error *error) {
    icma_precision precision;
    icma_status status = icma_precision_from_name(options->precision, &precision, error);
    icma_device_work work = cli_pack_work(inputs, options);
    const char *name = a->device ? a->device : "auto";
    char why[256];
    if (!status)
        status = icma_device_open(name, precision, work, ops, error);
    if (status)
        return status;
    icma_device_explain(name, work, *ops, why, sizeof why);
    cli_detail("device", "%s", why);
    return ICMA_OK;
}

static icma_status pack_found(const pack_arguments *a, const icma_inputs *inputs, icma_pack_options *options, icma_error *error) {
    const struct icma_ops *ops;
    icma_status status = open_device(a, inputs, options, &ops, error);
    if (status)
        return status;
    icma_pack_result result;
    cli_evaluator *evaluator = NULL;
    if (a->eval) {
        status = cli_evaluate_open(a->eval, &evaluator, error);
        if (status)
            return status;
        options->scorer = cli_evaluator_scorer(evaluator);
    }
    status = icma_choice_is_network(options->generator) ? pack_saving(a, inputs, options, ops, &result, error) : icma_pack(inputs, a->output, options, ops, &result, error);
    cli_progress_clear();
    cli_evaluator_close(evaluator);
    if (status)
        return status;
    status = cli_pack_tell_result(a->output, &result, &a->common, error);
    if (!status)
        cli_pack_tell_joined(inputs, &a->common);
    icma_pack_result_free(&result);
    return status;
}

/* Without one; "pack loras x.icma" means it, but so might what is an adapter of that name. */
static icma_status check_output(const pack_arguments *a, const cli_list *operands, icma_error *error) {
    const char *last = operands->items[operands->count - 1];
    size_t length = strlen(last);
    struct stat info;
    if (a->dry_run || a->output)
        return ICMA_OK;
    if (operands->count > 1 && length > 5 && strcmp(last + length - 5, ".icma") == 0 && stat(last, &info) != 0)
        return icma_fail(error, ICMA_E_USAGE, NULL, "no output was named; did you mean -o %s? (icma pack --help)", last);
    return usage(error, "no output was named; add -o B.icma");
}

static icma_status run_pack(const void *arguments, const cli_list *operands, icma_error *error) {
    const pack_arguments *a = arguments;
    icma_pack_options options;
    icma_inputs inputs = {0};
    bool skipped = false;
    icma_status status = check_output(a, operands, error);
    if (!status)
        status = read_options(a, &options, error);
    if (!status && !a->dry_run)
        status = cli_try_output(a->output, a->force, error);
    if (!status)
        status = cli_inputs_find(operands, &a->finding, &inputs, &skipped, error);
    if (!status && !a->dry_run)
        cli_pack_explain_found(&inputs, a->text_from);
    if (!status && a->dry_run)
        status = cli_pack_tell_found(&inputs, a->text_from, &a->common, error);
    else if (!status)
        status = pack_found(a, &inputs, &options, error);
    icma_inputs_free(&inputs);
    return status == ICMA_OK && skipped ? ICMA_E_PARTIAL : status;
}

const cli_verb cli_verb_pack = {
    .name = "pack",
    .also = "compress create encode train make build zip archive",
    .other_options = "out=output outfile=output quality=tier level=tier error=max-error tolerance=max-error eps=max-error jobs=threads j=threads t=threads workers=threads gpu=device",
    .operands = "DIR|FILE|ARCHIVE... -o B.icma",
    .summary = "pack LoRA adapters into an archive",
    .description =
        "Finds LoRA adapters, trains a conditional VAE on them, stores its generator with what each\n"
        "checkpoint needs, decodes everything again, checks it, and only then lets the archive\n"
        "appear. Takes PEFT folders, trees of <task>/checkpoint-N/, safetensors files, and tar, zip\n"
        "or 7z archives of all these (- is one from standard input); task_vector.safetensors or .npy\n"
        "beside a task's checkpoints is its condition.",
    .options = pack_options,
    .examples = (const char *const[]){"icma pack loras -o loras.icma", "every adapter below loras/",
                                      "icma pack loras --dry-run", "what would be packed",
                                      "icma pack cat dog -o pets.icma --keep last",
                                      "train on all checkpoints, keep each task's last",
                                      "icma pack loras -o conv.icma --generator conv --epochs 100",
                                      "the paper's network; --resume goes on after Ctrl-C", NULL},
    .exits = (const int[]){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, -1},
    .least_operands = 1,
    .most_operands = SIZE_MAX,
    .tell_default = tell_default,
    .arguments_size = sizeof(pack_arguments),
    .run = run_pack,
};
