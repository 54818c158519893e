/* SPDX-License-Identifier: Apache-2.0 */
/*
 * icma: LoRA adapters in, one archive out, adapters back. The public C API.
 *
 * Thread-safety: different bundles may be used from different threads; one bundle from one thread at a time.
 * The library never prints, never exits and never changes signal handlers. Every function that can fail
 * returns an icma_status and fills an icma_error (see status.h); outputs are zeroed first, so a failed call
 * leaves nothing to free.
 */
#ifndef ICMA_H
#define ICMA_H

#include "allocator.h"
#include "dtype.h"
#include "inputs.h"
#include "status.h"
#include "threads.h"
#include "version.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

ICMA_API_BEGIN

struct icma_ops;    /* a device; device.h opens one. NULL, wherever one is taken, is the CPU */
struct icma_tensor; /* memory on it */

/* What was kept of a checkpoint (spec 4.1). */
typedef enum icma_tier {
    ICMA_TIER_GENERATE = 0, /* its task's condition only */
    ICMA_TIER_LATENT = 1,   /* its latent and coefficient corrections */
    ICMA_TIER_BOUNDED = 2,  /* those and a quantised residual, to an error bound */
    ICMA_TIER_LOSSLESS = 3, /* the file, bit for bit, predicted from all that */
    ICMA_TIER_VERBATIM = 15 /* all of its tensors, bit for bit */
} icma_tier;

const char *icma_tier_name(icma_tier tier); /* "generate", ... */

/* What an error bound limits, of the decoded file after the cast to its dtype. */
typedef enum icma_bound_kind {
    ICMA_BOUND_NONE = 0,
    ICMA_BOUND_DW = 1,  /* of each pair: |dW' - dW| / |dW| (Frobenius); of other tensors as ICMA_BOUND_REL */
    ICMA_BOUND_REL = 2, /* of each tensor: |x' - x| / |x| */
    ICMA_BOUND_ABS = 3, /* of each tensor: max |x'_i - x_i| */
} icma_bound_kind;

typedef struct icma_bound {
    icma_bound_kind kind;
    float value; /* above 0 */
} icma_bound;

const char *icma_bound_name(icma_bound_kind kind); /* "dw", "rel", "abs"; "none" */

typedef struct icma_progress {
    /* Told before each piece of work, from the calling thread: in phase "read", "train", ... so much of so much is done (total 0: of nobody knows how
     * much), counted in icma_progress_unit, with a note such as the current loss (may be NULL). May be NULL. */
    void (*update)(void *context, const char *phase, double done, double total, const char *note);
    /* Asked often; true stops the work with ICMA_E_CANCELLED. May be NULL. */
    bool (*cancelled)(void *context);
    /* Told seldom: a line that the user should read, such as that a device's memory was too small and the CPU goes on. May be NULL. */
    void (*say)(void *context, const char *line);
    /* Told with every decision that the data makes, for those who want to know why: `topic` is a word, `line` a sentence with its numbers. May be NULL. */
    void (*explain)(void *context, const char *topic, const char *line);
    void *context;
} icma_progress;

/* What a phase's amounts count: "bytes", "checkpoints", "epochs", ...; NULL for a phase that counts nothing, or is none of the library's. Static. */
const char *icma_progress_unit(const char *phase);

/* --- packing
 * --------------------------------------------------------------------------------------------------- */

typedef enum icma_generator_choice {
    ICMA_CHOOSE_AUTO,  /* a basis, where it pays */
    ICMA_CHOOSE_BASIS, /* a basis with at least one row a role */
    ICMA_CHOOSE_NONE,  /* residuals alone */
    ICMA_CHOOSE_CONV,  /* the convolutional CVAE of ICM-LoRA */
    ICMA_CHOOSE_DIFFUSION, /* a convolutional autoencoder, and a denoiser over its latents, after COND P-DIFF */
    ICMA_CHOOSE_SOUP,  /* each task's average (Wortsman et al. 2022) */
} icma_generator_choice;

typedef enum icma_loss {
    ICMA_LOSS_WATER_LEVEL, /* |p - q|^2 / (2 theta) + KL, theta the coder's water level */
    ICMA_LOSS_PAPER,       /* mean over the L weights of squared errors + kld_weight * KL (ICM-LoRA) */
} icma_loss;

enum { ICMA_AUTO = 0, ICMA_MOST_LAYERS = 16 };

/* How the weights of a convolutional decoder are stored. */
typedef enum icma_weights { ICMA_WEIGHTS_QUANTISED, ICMA_WEIGHTS_BF16, ICMA_WEIGHTS_F32 } icma_weights;

/* Scores an adapter for a task: lower is better, and finite (else packing is ICMA_E_USAGE). `file` is a complete safetensors file; `like` is a checkpoint whose side files (adapter_config.json) fit it. */
typedef struct icma_scorer {
    icma_status (*score)(void *context, const char *task, const uint8_t *file, size_t size, const icma_input_checkpoint *like, double *score,
                         icma_error *error);
    void *context;
} icma_scorer;

typedef struct icma_pack_options {
    size_t size;         /* of this struct, as the program was compiled with it; icma_pack_defaults fills it in */
    icma_tier tier;      /* all but ICMA_TIER_VERBATIM */
    icma_bound bound;    /* of ICMA_TIER_BOUNDED */
    double target_bits;  /* ICMA_TIER_BOUNDED: above 0, bits a parameter that the archive may take, all bytes counted; bound.value is then searched for (some
                            packings), bound.kind stays */
    icma_generator_choice generator; /* ICMA_CHOOSE_AUTO under ICMA_TIER_LOSSLESS: none, a basis does not pay there */
    size_t restart;      /* ICMA_TIER_LOSSLESS: checkpoints in a chain of predictions; at least 1 */
    bool keep_last_only; /* store only each task's last checkpoint; training still uses all */
    size_t train_last;   /* use only the last N checkpoints of each task; 0: all */
    size_t components;   /* basis rows a role; ICMA_AUTO: from the eigenvalues and the two targets below */
    double explain;      /* share of the within-task variance that the basis must span, 0..1; ICMA_AUTO: 0.85, or 0.70 where
                            the basis would else take more than 2.75 % of the files' bytes */
    double max_error;    /* auto: predicted mean relative error of dW that the basis must reach */
    icma_loss loss;
    double kld_weight; /* of ICMA_LOSS_PAPER; the water-level loss weighs KL with 1 */
    size_t latent_dim;
    size_t epochs; /* ICMA_AUTO: by the data */
    size_t batch;
    double learning_rate; /* at the start; a cosine from there to 0 */
    double weight_decay;  /* decoupled (AdamW); 0: Adam */
    size_t patience;      /* convolutional generators: stop when so many epochs have not lowered the loss by a thousandth; 0: never */
    icma_scorer scorer;   /* ICMA_CHOOSE_SOUP: if there is one, a greedy soup by its scores; score NULL: the average of all of a task's checkpoints */
    /* Convolutional generators. */
    size_t layers;                     /* 1 .. ICMA_MOST_LAYERS */
    size_t channels[ICMA_MOST_LAYERS]; /* of the encoder's layers; channels[0] = ICMA_AUTO: 8, 16, 32, ... 256 ... 16, 8 */
    size_t kernel;                     /* taps; odd */
    icma_weights weights;
    bool variance;                     /* ICMA_CHOOSE_CONV: the decoder predicts mean and variance of every weight (ICM-LoRA, eq. 6), and residuals are coded by the latter */
    size_t denoiser_epochs;            /* ICMA_CHOOSE_DIFFUSION; ICMA_AUTO: 2000 or so */
    /* Training that takes long can be saved and continued (ICMA_CHOOSE_CONV, ICMA_CHOOSE_DIFFUSION). */
    const char *training_file; /* its state is kept here and, one save older, in the same with ".old"; removed when the archive is there. NULL: nowhere */
    double save_seconds;       /* between saves */
    bool resume;               /* go on from the file, if it is there: to the same archive, bit for bit. Without it, a file that is there is ICMA_E_EXISTS (unless `overwrite`) */
    uint64_t seed;
    const char *precision; /* how a device that is not the CPU multiplies in training: "f32", "tf32" or "bf16". For the record only: the device knows */
    int threads; /* 0: as many as the machine has */
    bool overwrite;
    bool scalar; /* decode with the scalar reference ops: the same bits, slowly */
    icma_progress progress;
    /* Descriptions of tasks as their conditions, instead of files beside the adapters; a task without one keeps what it has. Both or none. */
    const char *text_from;    /* JSON file: {"task": "text", ...}; every name must be a task's. NULL: none */
    const char *text_encoder; /* folder of a CLIP text encoder (text_encoder.h); its name, a hash of its weights, and the texts are recorded */
    bool text_projection;     /* embeddings times the encoder's text projection */
} icma_pack_options;

/* What a program that is linked with the first libicma of this soname sets. */
enum { ICMA_PACK_OPTIONS_LEAST = offsetof(icma_pack_options, progress) + sizeof(icma_progress) };

/* Fills the first `size` bytes of options. */
void icma_pack_options_init(icma_pack_options *options, size_t size);
static inline icma_pack_options icma_pack_defaults(void) {
    icma_pack_options options;
    icma_pack_options_init(&options, sizeof options);
    return options;
}
/* Whether convolutional networks are trained for it, with the options of theirs. */
bool icma_choice_is_network(icma_generator_choice generator);
/* Chooses a generator with its own defaults of what depends on it: latent_dim, epochs, batch, learning_rate, kld_weight. */
void icma_pack_use_generator(icma_pack_options *options, icma_generator_choice generator);
/* Sets what `--preset NAME` sets ("paper"): ICMA_E_USAGE for an unknown name. */
icma_status icma_pack_preset(const char *name, icma_pack_options *options, icma_error *error);

/* Multiply-adds of training on so many adapters of so many weights each, about: 0 where no network is trained on the weights themselves. */
double icma_pack_work(const icma_pack_options *options, size_t adapters, size_t weights);

/* Bytes of an archive by kind; they add up to total (spec 3.4). `index` is header, index, footer; padding
 * counts with its section. */
typedef struct icma_bytes {
    uint64_t total, generator, conditions, latents, residuals, verbatim, index, metadata;
} icma_bytes;

typedef struct icma_pack_task {
    char *name;
    size_t checkpoints;
    size_t latents_active; /* dimensions whose posterior mean varies between this task's checkpoints (variance
                              over 0.01) */
    bool condition_learned;
    double dw_error_max, dw_error_mean; /* over modules and checkpoints, measured on the decoded files */
    double relative_error;              /* |x - y| / |x| over all its checkpoints */
    double cosine;
} icma_pack_task;

typedef struct icma_pack_result {
    icma_bytes bytes;
    uint64_t original_files, original_bytes, original_parameters;
    uint64_t zstd_sample_raw,
        zstd_sample_size; /* zstd -19 of each task's last file: raw bytes and compressed bytes */
    icma_pack_task *tasks;
    size_t task_count;
    size_t groups;
    uint64_t hashes_dropped; /* files that had hashes of their weights in their metadata (layout.h), which the decoded weights do not have */
    icma_tier tier;
    icma_bound bound; /* under ICMA_TIER_BOUNDED: as asked for, or as found for target_bits */
    const char *device;           /* that the generator was learned with: "cpu", "cuda:0"; static */
    bool has_generator;
    const char *generator;        /* "basis", "conv", "diffusion", "soup"; "none"; of the last group that has one. Static */
    size_t components;            /* rows over all roles and groups */
    size_t active_latents;        /* over all groups */
    double within_task_explained; /* share of the within-task variance that the decoded files explain; NAN
                                     without any (one checkpoint a task) */
    uint64_t
        break_even; /* adapters from which the bundle is smaller than 16-bit casts of the files; 0: never */
    struct {
        double read, gram, train, encode, check, write;
    } seconds;
} icma_pack_result;

/* Packs the inputs into a new archive at `path`. Nothing is left behind on failure. ICMA_E_BOUND if no bound gives target_bits. */
icma_status icma_pack(const icma_inputs *inputs, const char *path, const icma_pack_options *options,
                      const struct icma_ops *ops, icma_pack_result *result, icma_error *error);
void icma_pack_result_free(icma_pack_result *result); /* leaves it zeroed */

/* --- reading
 * --------------------------------------------------------------------------------------------------- */

typedef struct icma_limits {
    size_t size;         /* of this struct, as the program was compiled with it; icma_limits_defaults fills it in */
    uint64_t max_output; /* bytes that one decoded adapter may have, and its side files */
    uint64_t max_work;   /* multiply-adds that one decoded adapter may cost */
} icma_limits;

enum { ICMA_LIMITS_LEAST = offsetof(icma_limits, max_work) + sizeof(uint64_t) };

/* Fills the first `size` bytes of limits: 4 GiB, 2^40. */
void icma_limits_init(icma_limits *limits, size_t size);
static inline icma_limits icma_limits_defaults(void) {
    icma_limits limits;
    icma_limits_init(&limits, sizeof limits);
    return limits;
}

typedef struct icma_bundle icma_bundle;

/* Opens an archive; reads header, index and footer only. `ops` must outlive the bundle. limits NULL: the defaults. */
icma_status icma_bundle_open(const char *path, const struct icma_ops *ops, const icma_limits *limits,
                             icma_bundle **out, icma_error *error);
void icma_bundle_close(icma_bundle *bundle); /* NULL is fine */
/* Decodes on another device from now on; `ops` must outlive the bundle. ICMA_E_USAGE once something was decoded (or sampled): what that keeps lies on the device of before. */
icma_status icma_bundle_use_device(icma_bundle *bundle, const struct icma_ops *ops, icma_error *error);
/* Goes on with the CPU, after ICMA_E_MEMORY from a device: false if it was the CPU already. */
bool icma_bundle_leave_device(icma_bundle *bundle);

typedef struct icma_checkpoint_info {
    uint32_t group; /* signature group */
    bool has_step;
    uint64_t step;
    icma_tier tier;
    icma_bound bound; /* that its modelled tensors were measured to hold; ICMA_BOUND_NONE under tiers without one */
    uint64_t file_size; /* of the decoded safetensors file */
    uint64_t parameters;
    float relative_error; /* measured at packing, rounded up to bfloat16 */
    float dw_error_mean, dw_error_max;
    uint64_t hash; /* XXH3-64 of the decoded file */
} icma_checkpoint_info;

typedef struct icma_task_info {
    const char *name;
    const char *condition_origin;            /* file name it came from, "learned", "added" (without a vector, to a group with a basis), or "none" */
    size_t condition_size;                   /* numbers in the stored condition vector */
    const float *condition;                  /* NULL if none */
    uint64_t bytes;                          /* stored bytes of sections that belong to this task alone */
    const icma_checkpoint_info *checkpoints; /* by step; one without a step comes last */
    size_t checkpoint_count;
} icma_task_info;

size_t icma_bundle_task_count(const icma_bundle *bundle);
size_t icma_bundle_group_count(const icma_bundle *bundle);
/* SIZE_MAX if there is none of that name. */
size_t icma_bundle_find_task(const icma_bundle *bundle, const char *name);
const char *icma_bundle_task_name(const icma_bundle *bundle, size_t task);
/* Reads the task's sections on first use; *info stays valid until icma_bundle_close. Here and below ICMA_E_NOT_FOUND for a task, checkpoint or group that there is not, SIZE_MAX too. */
icma_status icma_bundle_task(icma_bundle *bundle, size_t task, icma_task_info *info, icma_error *error);
/* Drops what icma_bundle_task and decode have cached of a task (for walking through very many). */
void icma_bundle_forget_task(icma_bundle *bundle, size_t task);

icma_bytes icma_bundle_bytes(const icma_bundle *bundle);

typedef struct icma_section_info {
    const char *kind; /* "signature", "generator", "head", "task", "texts", "verbatim", "record", "unknown" */
    const char *coding; /* "raw", "zstd" */
    uint64_t offset, stored_size, raw_size;
    uint32_t group, task; /* UINT32_MAX: none */
    uint32_t first, count;
} icma_section_info;
size_t icma_bundle_section_count(const icma_bundle *bundle);
icma_section_info icma_bundle_section(const icma_bundle *bundle, size_t index);
/* Compares one section's checksum and padding. */
icma_status icma_bundle_check_section(icma_bundle *bundle, size_t index, icma_error *error);

/* What is lost of a task if the sections that `damaged` marks (a flag a section) are: *lost, owned by the caller (icma_free), has a flag
 * for each of its *count checkpoints, in icma_task_info's order; NULL: all of them. From the tables; nothing is decoded (spec 3.11). */
icma_status icma_bundle_losses(icma_bundle *bundle, size_t task, const bool *damaged, bool **lost, size_t *count, icma_error *error);

typedef struct icma_generator_info {
    const char *kind; /* "none", "basis", "conv", "diffusion" */
    size_t components_a, components_b, components_other;
    size_t latent_dim;    /* as stored: inactive dimensions are not */
    size_t condition_dim; /* coordinates that the trunk sees */
    size_t hidden, hidden_layers; /* of a convolutional decoder: its layers */
    uint64_t head_bytes, trunk_parameters /* of whatever network there is */, modelled_parameters;
    size_t tensors, tensors_verbatim;
    uint64_t decode_work; /* multiply-adds that decoding one adapter takes */
} icma_generator_info;
icma_status icma_bundle_generator(icma_bundle *bundle, uint32_t group, icma_generator_info *info,
                                  icma_error *error);
/* The group's record (spec 4.9): options, seed, losses, errors by tensor and module, as JSON text. *text is
 * owned by the caller (icma_free), NULL if the archive has none. */
icma_status icma_bundle_record(icma_bundle *bundle, uint32_t group, char **text, icma_error *error);

/* One adapter, decoded: the complete safetensors file and the side files that were packed with it. */
typedef struct icma_decoded_file {
    char *name;
    uint8_t *data;
    size_t size;
} icma_decoded_file;
typedef struct icma_decoded {
    uint8_t *data; /* header and all: write it to a file as it is */
    size_t size;
    icma_decoded_file *files;
    size_t file_count;
} icma_decoded;
void icma_decoded_free(icma_decoded *decoded); /* leaves it zeroed */

/* Whether icma_bundle_decode compares checksums; it does if nothing else is said. Without, what is damaged unnoticed by the sections' own
 * checksums, or decoded by another rule, comes out as it is. */
void icma_bundle_compare_checksums(icma_bundle *bundle, bool compare);

/* Of a checkpoint what costs nothing: `data` is its file's first bytes, the length and the header, and the side files are all there. */
icma_status icma_bundle_header(icma_bundle *bundle, size_t task, size_t checkpoint, icma_decoded *out, icma_error *error);

/* Decodes one checkpoint (an index into icma_task_info.checkpoints) and compares the result's checksum with
 * the stored one. */
icma_status icma_bundle_decode(icma_bundle *bundle, size_t task, size_t checkpoint, icma_decoded *out,
                               icma_error *error);
/* One tensor of an adapter. Name and shape belong to the bundle. */
typedef struct icma_adapter_tensor {
    const char *name;
    icma_dtype dtype;
    unsigned dims;
    const uint64_t *shape; /* dims numbers, the last one varies fastest */
    uint64_t offset, size; /* bytes, in the adapter's data; offsets are aligned only as the packed file's were */
} icma_adapter_tensor;

/* The tensors of a checkpoint, in the order of their offsets: what decoding it gives, and nothing is decoded. *list is owned by the caller (icma_free). */
icma_status icma_bundle_tensors(icma_bundle *bundle, size_t task, size_t checkpoint, icma_adapter_tensor **list, size_t *count, icma_error *error);
/* Those of a group that are kept as they are, in every checkpoint: as above. */
icma_status icma_bundle_verbatim_tensors(icma_bundle *bundle, uint32_t group, icma_adapter_tensor **list, size_t *count, icma_error *error);
/* Bytes that the archive stores for one checkpoint: its residual or link, and an even share of what it has in common with others of its task (tables,
 * texts, verbatim tensors). Over a task's checkpoints they add up to about icma_task_info.bytes, less its condition. Reads the sections that hold them. */
icma_status icma_bundle_checkpoint_bytes(icma_bundle *bundle, size_t task, size_t checkpoint, double *bytes, icma_error *error);
/* Decodes one tensor, an index into icma_bundle_tensors' list, to host memory: `size` bytes, as many as the tensor has (ICMA_E_USAGE). Below tier lossless a modelled tensor costs its chunk of the basis and the streams of the
 * residual that hold it, and the chunk is kept for the next call; a convolutional decoder runs as a whole, once as long as the checkpoint is the same. A lossless checkpoint is decoded as a whole and kept too. The
 * whole file's checksum is not compared: damage that the sections' checksums and the decoder do not see goes unnoticed. On failure `data` may have been written. */
icma_status icma_bundle_decode_tensor(icma_bundle *bundle, size_t task, size_t checkpoint, size_t tensor, void *data, size_t size, icma_error *error);

/* One adapter in a device's memory. */
typedef struct icma_device_adapter {
    struct icma_tensor *data; /* bytes (ICMA_ELEMENT_U8): the data part of its safetensors file as it is, without the header; NULL if that is empty */
    uint64_t size;            /* bytes of it */
    icma_adapter_tensor *tensors; /* in the order of their offsets */
    size_t tensor_count;
    const struct icma_ops *ops; /* the device */
} icma_device_adapter;
/* Leaves it zeroed; one that is zeroed is fine. The bundle may be closed by then, but not the device. */
void icma_device_adapter_free(icma_device_adapter *adapter);

/* Decodes one checkpoint as icma_bundle_decode does, into memory of the bundle's device: modelled tensors are put together there, others are uploaded, and a lossless checkpoint is decoded on the host and uploaded. *out is
 * the caller's; its names and shapes are good until icma_bundle_close. With `verify` the data is downloaded once to compare the whole file's checksum with the stored one (ICMA_E_CORRUPT); without it, damage that the
 * archive's own checksums and the decoder do not see goes unnoticed. Side files are icma_bundle_decode's. ICMA_E_NOT_FOUND, ICMA_E_LIMIT, ICMA_E_CORRUPT, ICMA_E_MEMORY and ICMA_E_DEVICE as there. Not thread-safe
 * for one bundle, nor for bundles that share a device that is not the CPU. */
icma_status icma_bundle_decode_on_device(icma_bundle *bundle, size_t task, size_t checkpoint, bool verify, icma_device_adapter *out, icma_error *error);
/* Generates an adapter from the task's condition alone: z ~ N(0, I) from `seed` (paper eq. 9; spec 4.8), no
 * latent, no corrections. Tensors that are not modelled come from the task's last checkpoint with the same
 * signature. ICMA_E_UNSUPPORTED for a task whose group has no generator. */
icma_status icma_bundle_sample(icma_bundle *bundle, size_t task, uint64_t seed, icma_decoded *out,
                               icma_error *error);

/* --- generating
 * ------------------------------------------------------------------------------------------------ */

/* What to generate an adapter from that was never packed: a condition, or a mix of packed tasks. */
typedef struct icma_generation {
    size_t size; /* of this struct, as the program was compiled with it; icma_generation_defaults fills it in */
    const float *condition; /* of the encoder that the packed tasks' vectors are from; finite, not all zero. It is rounded as packing rounds it (spec 2.7). NULL: a mix */
    size_t condition_size;
    const size_t *tasks;   /* a mix: the condition's coordinates are the sum of each task's, times its weight, */
    const double *weights; /* used as they are: those that add up to 1 lie between the tasks, others beyond. Finite */
    size_t task_count;
    size_t like;   /* the task whose last checkpoint gives the shape of the adapter, the tensors that are not modelled, the header and the side files; SIZE_MAX: of a condition the nearest
                      task, of a mix the one of the greatest weight (the first of several) */
    bool drawn;    /* z ~ N(0, I) from `seed`, as icma_bundle_sample; else z = 0, the mean: what tier generate restores */
    uint64_t seed;
    const char *origin; /* for people, into the file's metadata: "dog.safetensors", "cat:0.5,dog:0.5" */
    const char *bundle; /* likewise: the archive's name. Both may be NULL */
} icma_generation;

enum { ICMA_GENERATION_LEAST = offsetof(icma_generation, bundle) + sizeof(const char *) };

/* Fills the first `size` bytes: no condition, no mix, any task, the mean. */
void icma_generation_init(icma_generation *what, size_t size);
static inline icma_generation icma_generation_defaults(void) {
    icma_generation what;
    icma_generation_init(&what, sizeof what);
    return what;
}

/* Where it lies among what was packed. A condition, or the sum of a mix of given ones, is compared with given conditions of its length; a mix with learned ones in coordinates (spec 4.5), with the learned ones of its
 * group and those that it mixes. */
typedef struct icma_generated {
    size_t like;      /* as used */
    uint32_t group;
    size_t nearest;   /* task, by Euclidean distance */
    double cosine;    /* between the condition and its; NAN where one is zero */
    double distance;  /* |condition - its| / |its|; NAN likewise */
    double seen;      /* share of the condition's square that lies in the span of the packed ones, about: the generator sees nothing of the rest. 1 where there is no vector */
    uint64_t hash;    /* XXH3-64 of the rounded condition, or of a mix's coordinates, as little-endian f32 */
    uint64_t archive; /* the hash of the archive's footer */
} icma_generated;

/*
 * Generates an adapter (spec 4.8). *out is as icma_bundle_sample's, but its header's `__metadata__` says what it is: icma_generated "true", icma_from, icma_like, icma_nearest, icma_condition_xxh3,
 * icma_seed and icma_bundle. With `out` NULL only *told is filled in. For a task's own condition, or a mix of it alone with weight 1, the tensors are those of icma_bundle_sample with the same seed.
 *
 * ICMA_E_USAGE: neither a condition nor a mix, or numbers that are not finite. ICMA_E_UNSUPPORTED: the group predicts nothing; its conditions were learned, so that no vector means anything to
 * it, or have another length; the condition is zero, or too far from all that was packed to compute with; tasks of a mix, or like, that are not in one group. ICMA_E_NOT_FOUND: no such task.
 */
icma_status icma_bundle_generate(icma_bundle *bundle, const icma_generation *what, icma_decoded *out,
                                 icma_generated *told, icma_error *error);

/* --- changing an archive
 * ------------------------------------------------------------------------------------------------------ */

/* Where icma_bundle_add and icma_bundle_remove leave the new archive, and what they tell on the way. The new archive replaces its target in one step, or not at all. In place, `path` is locked (flock)
 * meanwhile: ICMA_E_IO if another process has locked it, or has replaced or changed it since it was opened, so that nobody's work is lost; a link stays, the file that it leads to is replaced. */
typedef struct icma_change_options {
    size_t size;        /* of this struct, as the program was compiled with it; icma_change_defaults fills it in */
    const char *output; /* NULL: in place */
    bool overwrite;     /* an `output` that exists; else that is ICMA_E_EXISTS */
    bool dry_run;       /* everything but the new archive's appearing */
    icma_progress progress;
} icma_change_options;

enum { ICMA_CHANGE_OPTIONS_LEAST = offsetof(icma_change_options, progress) + sizeof(icma_progress) };

void icma_change_options_init(icma_change_options *options, size_t size);
static inline icma_change_options icma_change_defaults(void) {
    icma_change_options options;
    icma_change_options_init(&options, sizeof options);
    return options;
}

typedef struct icma_remove_result {
    uint64_t bytes_before, bytes_after; /* of the whole file */
    size_t tasks, checkpoints, groups;  /* that went; a group goes with its last task */
    size_t tasks_left, groups_left;
} icma_remove_result;

/*
 * Removes tasks from the archive at `path`: their sections go, and those of groups that have no task then. All others keep their stored bytes and checksums, which are compared on the way (ICMA_E_CORRUPT); only the
 * index is new. What a group's generator has learned from a removed task stays in it, and what the record tells of packing: to be rid of that, pack the others again.
 * ICMA_E_NOT_FOUND for an unknown name; ICMA_E_USAGE if no task would be left; ICMA_E_LIMIT if what is left has more compressed bytes than a file of its size may have (spec 3.6).
 */
icma_status icma_bundle_remove(const char *path, const char *const *tasks, size_t task_count, const icma_change_options *options, icma_remove_result *result, icma_error *error);

/* Which generator predicts newcomers. */
typedef enum icma_add_choice {
    ICMA_ADD_AUTO, /* a group's of their signature, where the rate model says that it takes fewer bytes than one of their own (tiers latent and generate: where it predicts them to pack.max_error) */
    ICMA_ADD_OLD,  /* that of the group that serves them best */
    ICMA_ADD_NEW,  /* their own, in a group of their own */
} icma_add_choice;

typedef struct icma_add_options {
    size_t size;                       /* of this struct, as the program was compiled with it; icma_add_defaults fills it in */
    const icma_change_options *change; /* NULL: in place. Its progress is told */
    const icma_pack_options *pack;     /* how newcomers are encoded, and what their own generators are learned with; NULL: icma_pack_defaults(). Of it are heeded: tier, bound, restart, train_last, components, explain,
                                          max_error, loss, latent_dim, epochs, batch, learning_rate, seed, threads, scalar */
    const icma_limits *limits;         /* of decoding what is in the archive; NULL: icma_limits_defaults() */
    bool same_tier;                    /* as the archive's checkpoints are kept, all in one way (else ICMA_E_USAGE), whatever pack's tier and bound say */
    icma_add_choice choice;
} icma_add_options;

enum { ICMA_ADD_OPTIONS_LEAST = offsetof(icma_add_options, choice) + sizeof(icma_add_choice) };

void icma_add_options_init(icma_add_options *options, size_t size);
static inline icma_add_options icma_add_defaults(void) { /* in place, same_tier, ICMA_ADD_AUTO */
    icma_add_options options;
    icma_add_options_init(&options, sizeof options);
    return options;
}

/* The newcomers of one signature. */
typedef struct icma_add_group {
    uint32_t group;        /* where they are in the archive */
    bool joined;           /* an old group; else one of their own */
    const char *generator; /* of that group: "basis", "none", ...; static */
    size_t tasks, checkpoints;
    double explained;      /* share of their energy (squared standardised weights) in the span of the old basis that serves them best; NAN: there is no basis of their signature */
    double old_bytes;      /* that the rate model predicts with that old group; NAN: not predicted */
    double new_bytes;      /* and with a generator of their own */
    uint64_t bytes;        /* that they took: all sections that are new with them; with `task` without padding, and less those whose place these take */
    const char *task;      /* the one that goes on, in a group that it was in; NULL: new tasks. As in pack.tasks */
} icma_add_group;

typedef struct icma_add_result {
    icma_pack_result pack;  /* of the newcomers: tasks, originals, seconds; `bytes` is the whole archive's */
    uint64_t bytes_before;  /* of the whole file */
    icma_add_group *groups;
    size_t group_count;
    size_t old_checkpoints;
    uint64_t old_bytes;     /* of the sections that belong to old tasks alone */
    double packed_anew;     /* about what the whole archive would take if all were packed together: at most, because what new and old tasks would share beyond the old basis is not known; NAN: not predicted (other tiers than bounded, newcomers without an old basis, tasks that go on) */
    size_t *checkpoints_before; /* one a task of pack.tasks: so many it had in the archive; 0 for a new one; owned */
    size_t skipped;         /* checkpoints of the inputs that were not added: the archive has one of that task and step. Of each task the last of them was compared */
} icma_add_result;

/*
 * Adds the inputs' tasks to the archive at `path`, without retraining. Newcomers join a group of their signature, where they are projected on its basis (least squares on the decoded rows) and store an offset of their own
 * in place of what its trunk would make of their condition (spec 4.6); what that leaves is coded to the tier and bound asked for. Or they make a group of their own, as icma_pack would. Groups whose generator is a
 * convolutional network are not joined: the encoder is not in the archive. Sections that are there keep their stored bytes and checksums, which are compared on the way (ICMA_E_CORRUPT). All newcomers are decoded
 * again and checked before the archive appears.
 *
 * A task that is there goes on: its checkpoints of the inputs are added that come after the last one in the archive, those whose steps are there are skipped. They join the group that the task is in, with its condition; its
 * table and texts are written anew, and no other section changes. Of ICMA_ADD_NEW and pack.train_last: a task that goes on has its generator, and only the last train_last of its inputs are looked at.
 * The last one that is skipped is decoded and compared, lest another training of the same name be passed over unnoticed.
 * ICMA_E_EXISTS for a task whose checkpoints are all there if no other task has new ones; for one that is there, but is farther from the input of its step than is recorded; for a new one before the task's last, or after a last one without step. ICMA_E_UNSUPPORTED for a new one whose tensors are not
 * those of a group that its task is in, or if that group's generator is a network, or (tier latent) does not predict them to pack.max_error; and if ICMA_ADD_OLD cannot be had.
 */
icma_status icma_bundle_add(const char *path, const icma_inputs *inputs, const icma_add_options *options, const struct icma_ops *ops, icma_add_result *result, icma_error *error);
void icma_add_result_free(icma_add_result *result); /* leaves it zeroed */

ICMA_API_END

#endif
