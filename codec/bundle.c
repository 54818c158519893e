/* SPDX-License-Identifier: Apache-2.0 */
/* Reading archives: the second half of icma.h. */
#include "checkpoints.h"
#include "compress.h"
#include "container.h"
#include "decode.h"
#include "icma.h"
#include "memory.h"
#include "rng.h"
#include "verbatim.h"

#include <math.h>
#include <string.h>

/* Most raw bytes of sections whose size nothing else tells. */
enum { MOST_TABLE = 1 << 28, MOST_TEXTS = 1 << 28, MOST_RECORD = 1 << 26 };

/* A signature group, loaded on first use. */
typedef struct group {
    bool loaded;
    icma_safetensors signature;
    icma_generator generator;
    icma_decoder *decoder; /* made when something is decoded */
} group;

/* What one task has in one group. */
typedef struct part {
    uint32_t group;
    icma_checkpoints table;
    uint8_t *text_bytes;
    icma_texts texts;
    bool texts_loaded;
    uint8_t *stream; /* the verbatim section that was read last */
    const icma_section *stream_section;
    uint8_t *blocks; /* the residual section that was read last */
    const icma_section *blocks_section;
} part;

typedef struct place {
    uint32_t part, index;
} place;

typedef struct task {
    bool loaded;
    part *parts;
    size_t part_count;
    icma_checkpoint_info *infos; /* all checkpoints, by step */
    place *places;               /* where each of them is */
    size_t count;
    uint64_t bytes;
} task;

struct icma_bundle {
    icma_container *container;
    const icma_ops *ops;
    icma_limits limits;
    group *groups;
    task *tasks;
};

icma_limits icma_limits_defaults(void) {
    return (icma_limits){UINT64_C(64) << 30, UINT64_C(1) << 44};
}

const char *icma_tier_name(icma_tier tier) {
    switch (tier) {
    case ICMA_TIER_GENERATE:
        return "generate";
    case ICMA_TIER_LATENT:
        return "latent";
    case ICMA_TIER_BOUNDED:
        return "bounded";
    case ICMA_TIER_LOSSLESS:
        return "lossless";
    case ICMA_TIER_VERBATIM:
        return "verbatim";
    }
    return "unknown";
}

const char *icma_bound_name(icma_bound_kind kind) {
    switch (kind) {
    case ICMA_BOUND_NONE:
        return "none";
    case ICMA_BOUND_DW:
        return "dw";
    case ICMA_BOUND_REL:
        return "rel";
    case ICMA_BOUND_ABS:
        return "abs";
    }
    return "unknown";
}

/* --- who owns what (spec 3.5) --------------------------------------------------------------------------------------- */

static bool ranges_fit(const icma_section *s) {
    switch (s->kind) {
    case ICMA_SECTION_HEAD:
    case ICMA_SECTION_VERBATIM:
    case ICMA_SECTION_RESIDUAL:
        return s->count > 0;
    case ICMA_SECTION_TASK:
        return s->first == 0 && s->count > 0;
    default:
        return s->first == 0 && s->count == 0;
    }
}

static bool is_of_task(const icma_section *s) {
    return s->kind == ICMA_SECTION_TASK || s->kind == ICMA_SECTION_TEXTS || s->kind == ICMA_SECTION_VERBATIM ||
           s->kind == ICMA_SECTION_CONDITION || s->kind == ICMA_SECTION_RESIDUAL;
}

/* Every section of a known kind has the owners and ranges that its kind asks for, and what belongs to a task part has that part's table beside it. */
static icma_status check_owners(const icma_container *c, icma_error *error) {
    for (size_t i = 0; i < icma_container_section_count(c); i++) {
        const icma_section *s = icma_container_section(c, i);
        if (s->kind < ICMA_SECTION_SIGNATURE || s->kind > ICMA_SECTION_RESIDUAL)
            continue;
        bool owned = s->group != ICMA_NO_OWNER && is_of_task(s) == (s->task != ICMA_NO_OWNER);
        if (!owned || !ranges_fit(s) || (is_of_task(s) && !icma_container_find(c, ICMA_SECTION_TASK, s->group, s->task)))
            return icma_fail(error, ICMA_E_CORRUPT, icma_container_path(c), "section %zu has owners or a range that its kind cannot have", i);
    }
    return ICMA_OK;
}

/* --- opening ----------------------------------------------------------------------------------------------------- */

icma_status icma_bundle_open(const char *path, const icma_ops *ops, const icma_limits *limits, icma_bundle **out, icma_error *error) {
    *out = NULL;
    icma_bundle *b = icma_alloc_zeroed(1, sizeof *b);
    if (!b)
        return icma_fail(error, ICMA_E_MEMORY, path, "no memory to open it");
    b->ops = ops;
    b->limits = limits ? *limits : icma_limits_defaults();
    icma_status status = icma_container_open(path, &b->container, error);
    if (!status)
        status = check_owners(b->container, error);
    if (!status) {
        b->groups = icma_alloc_zeroed(icma_container_group_count(b->container) + 1, sizeof *b->groups);
        b->tasks = icma_alloc_zeroed(icma_container_task_count(b->container) + 1, sizeof *b->tasks);
        if (!b->groups || !b->tasks)
            status = icma_fail(error, ICMA_E_MEMORY, path, "no memory to open it");
    }
    if (status)
        icma_bundle_close(b);
    else
        *out = b;
    return status;
}

void icma_bundle_forget_task(icma_bundle *b, size_t index) {
    task *t = &b->tasks[index];
    for (size_t p = 0; p < t->part_count; p++) {
        icma_checkpoints_free(&t->parts[p].table);
        icma_texts_free(&t->parts[p].texts);
        icma_free(t->parts[p].text_bytes);
        icma_free(t->parts[p].stream);
        icma_free(t->parts[p].blocks);
    }
    icma_free(t->parts);
    icma_free(t->infos);
    icma_free(t->places);
    memset(t, 0, sizeof *t);
}

void icma_bundle_close(icma_bundle *b) {
    if (!b)
        return;
    for (size_t g = 0; b->groups && g < icma_container_group_count(b->container); g++) {
        icma_decoder_free(b->groups[g].decoder);
        icma_generator_free(&b->groups[g].generator);
        icma_safetensors_free(&b->groups[g].signature);
    }
    for (size_t t = 0; b->tasks && t < icma_container_task_count(b->container); t++)
        icma_bundle_forget_task(b, t);
    icma_free(b->groups);
    icma_free(b->tasks);
    icma_container_close(b->container);
    icma_free(b);
}

/* --- sections ---------------------------------------------------------------------------------------------------- */

static icma_status corrupt(const icma_bundle *b, icma_error *error, const char *what) {
    return icma_fail(error, ICMA_E_CORRUPT, icma_container_path(b->container), "%s", what);
}

/* The single section of a kind, or NULL. More than one is corrupt. */
static icma_status single(const icma_bundle *b, uint16_t kind, uint32_t group_index, uint32_t task_index, const icma_section **out, icma_error *error) {
    const icma_section *first;
    size_t count = icma_container_range(b->container, kind, group_index, task_index, &first);
    *out = count ? first : NULL;
    return count > 1 ? corrupt(b, error, "two sections where there may be one") : ICMA_OK;
}

static icma_status load_section(void *context, const icma_section *section, size_t max_raw, uint8_t **out, icma_error *error) {
    return icma_container_load(context, section, max_raw, out, error);
}

static icma_status load_group(icma_bundle *b, uint32_t index, icma_error *error) {
    group *g = &b->groups[index];
    const icma_section *signature, *generator;
    uint8_t *raw = NULL;
    if (g->loaded)
        return ICMA_OK;
    icma_status status = single(b, ICMA_SECTION_SIGNATURE, index, ICMA_NO_OWNER, &signature, error);
    if (!status)
        status = single(b, ICMA_SECTION_GENERATOR, index, ICMA_NO_OWNER, &generator, error);
    if (!status && (!signature || !generator))
        status = corrupt(b, error, "a group without signature or generator");
    if (!status)
        status = icma_container_load(b->container, signature, ICMA_MAX_HEADER, &raw, error);
    if (!status)
        status = icma_safetensors_parse_header(raw, (size_t)signature->raw_size, &g->signature, error);
    icma_free(raw);
    raw = NULL;
    if (!status)
        status = icma_container_load(b->container, generator, MOST_TABLE, &raw, error);
    if (!status)
        status = icma_generator_read(raw, (size_t)generator->raw_size, &g->signature, &g->generator, error);
    icma_free(raw);
    if (!status)
        g->loaded = true;
    else
        icma_safetensors_free(&g->signature);
    icma_error_set_file(error, icma_container_path(b->container));
    return status;
}

static icma_status open_decoder(icma_bundle *b, uint32_t index, icma_error *error) {
    group *g = &b->groups[index];
    const icma_section *chunks = NULL;
    if (g->decoder)
        return ICMA_OK;
    size_t count = icma_container_range(b->container, ICMA_SECTION_HEAD, index, ICMA_NO_OWNER, &chunks);
    icma_section_loader loader = {load_section, b->container};
    return icma_decoder_create(b->ops, &g->signature, &g->generator, chunks, count, loader, b->limits.max_output, &g->decoder, error);
}

/* --- tasks ------------------------------------------------------------------------------------------------------- */

static icma_status load_texts(icma_bundle *b, uint32_t task_index, part *p, icma_error *error) {
    const icma_section *section;
    if (p->texts_loaded)
        return ICMA_OK;
    icma_status status = single(b, ICMA_SECTION_TEXTS, p->group, task_index, &section, error);
    if (!status && section) {
        status = icma_container_load(b->container, section, MOST_TEXTS, &p->text_bytes, error);
        if (!status)
            status = icma_texts_read(p->text_bytes, (size_t)section->raw_size, &p->texts, error);
        if (status) {
            icma_free(p->text_bytes);
            p->text_bytes = NULL;
        }
    }
    p->texts_loaded = !status;
    return status;
}

static icma_status load_part(icma_bundle *b, uint32_t task_index, part *p, const icma_section *table, icma_error *error) {
    uint8_t *raw = NULL;
    const icma_section *condition;
    const icma_generator *g = &b->groups[p->group].generator;
    icma_status status = load_group(b, p->group, error);
    if (!status)
        status = single(b, ICMA_SECTION_CONDITION, p->group, task_index, &condition, error);
    if (!status && !condition && g->kind == ICMA_GENERATOR_BASIS)
        status = corrupt(b, error, "a task without a condition");
    if (!status && condition) {
        status = icma_container_load(b->container, condition, MOST_TABLE, &raw, error);
        if (!status)
            status = icma_condition_read(raw, (size_t)condition->raw_size, g, &p->table, error);
        icma_free(raw);
        raw = NULL;
    }
    if (status)
        return status;
    icma_checkpoints list = {0};
    status = icma_container_load(b->container, table, MOST_TABLE, &raw, error);
    if (!status)
        status = icma_checkpoints_read(raw, (size_t)table->raw_size, table->count, g, &list, error);
    icma_free(raw);
    p->table.list = list.list;
    p->table.count = list.count;
    /* A checkpoint's own header lies among the texts, and the size of its file depends on it. */
    for (size_t i = 0; !status && i < list.count; i++) {
        if (list.list[i].header)
            status = load_texts(b, task_index, p, error);
        if (!status && list.list[i].header > p->texts.count)
            status = corrupt(b, error, "a checkpoint's header is missing");
    }
    return status;
}

static icma_checkpoint_info describe(const icma_bundle *b, const part *p, const icma_checkpoint *c) {
    const icma_safetensors *s = &b->groups[p->group].signature;
    size_t header = c->header ? p->texts.list[c->header - 1].size : s->header_size;
    icma_checkpoint_info info = {.group = p->group, .has_step = c->has_step, .step = c->step, .tier = c->tier, .bound = c->bound, .relative_error = c->relative_error,
                                 .dw_error_mean = c->dw_error_mean, .dw_error_max = c->dw_error_max, .hash = c->hash,
                                 .file_size = 8 + header + s->data_size};
    for (size_t t = 0; t < s->tensor_count; t++)
        info.parameters += s->tensors[t].count;
    /* Stored errors are rounded up; what pack has proved is never above the bound. */
    if (c->bound.kind == ICMA_BOUND_DW)
        info.dw_error_max = fminf(info.dw_error_max, c->bound.value);
    return info;
}

static bool earlier(const icma_checkpoint_info *a, const icma_checkpoint_info *b) {
    if (a->has_step != b->has_step)
        return a->has_step;
    return a->has_step && a->step < b->step;
}

/* Merges the parts' lists, each ascending, into one: repeatedly the earliest head. Parts are few. */
static icma_status merge_parts(icma_bundle *b, task *t, icma_error *error) {
    for (size_t p = 0; p < t->part_count; p++)
        t->count += t->parts[p].table.count;
    t->infos = icma_alloc_array(t->count, sizeof *t->infos);
    t->places = icma_alloc_array(t->count, sizeof *t->places);
    uint32_t *next = icma_alloc_zeroed(t->part_count, sizeof *next);
    if (!t->infos || !t->places || !next) {
        icma_free(next);
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a task");
    }
    for (size_t i = 0; i < t->count; i++) {
        size_t best = SIZE_MAX;
        icma_checkpoint_info best_info = {0};
        for (size_t p = 0; p < t->part_count; p++) {
            if (next[p] >= t->parts[p].table.count)
                continue;
            icma_checkpoint_info info = describe(b, &t->parts[p], &t->parts[p].table.list[next[p]]);
            if (best == SIZE_MAX || earlier(&info, &best_info)) {
                best = p;
                best_info = info;
            }
        }
        bool again = i > 0 && t->infos[i - 1].has_step == best_info.has_step && t->infos[i - 1].step == best_info.step;
        if (again) {
            icma_free(next);
            return corrupt(b, error, "a task has two checkpoints of one step");
        }
        t->infos[i] = best_info;
        t->places[i] = (place){(uint32_t)best, next[best]++};
    }
    icma_free(next);
    return ICMA_OK;
}

static void count_bytes(icma_bundle *b, uint32_t task_index) {
    static const uint16_t kinds[] = {ICMA_SECTION_TASK, ICMA_SECTION_TEXTS, ICMA_SECTION_VERBATIM, ICMA_SECTION_CONDITION, ICMA_SECTION_RESIDUAL};
    task *t = &b->tasks[task_index];
    for (size_t p = 0; p < t->part_count; p++)
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            const icma_section *first;
            size_t count = icma_container_range(b->container, kinds[k], t->parts[p].group, task_index, &first);
            for (size_t i = 0; i < count; i++)
                t->bytes += first[i].stored_size;
        }
}

static icma_status load_task(icma_bundle *b, uint32_t index, icma_error *error) {
    task *t = &b->tasks[index];
    if (t->loaded)
        return ICMA_OK;
    size_t groups = icma_container_group_count(b->container);
    icma_status status = ICMA_OK;
    for (uint32_t g = 0; !status && g < groups; g++) {
        const icma_section *table;
        status = single(b, ICMA_SECTION_TASK, g, index, &table, error);
        if (status || !table)
            continue;
        part *more = icma_resize_array(t->parts, t->part_count + 1, sizeof *more);
        if (!more) {
            status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a task");
            break;
        }
        t->parts = more;
        t->parts[t->part_count] = (part){.group = g};
        status = load_part(b, index, &t->parts[t->part_count++], table, error);
    }
    if (!status && t->part_count == 0)
        status = corrupt(b, error, "a task without checkpoints");
    if (!status)
        status = merge_parts(b, t, error);
    icma_error_set_file(error, icma_container_path(b->container));
    if (status) {
        icma_bundle_forget_task(b, index);
        return status;
    }
    count_bytes(b, index);
    t->loaded = true;
    return ICMA_OK;
}

size_t icma_bundle_task_count(const icma_bundle *b) {
    return icma_container_task_count(b->container);
}

size_t icma_bundle_group_count(const icma_bundle *b) {
    return icma_container_group_count(b->container);
}

const char *icma_bundle_task_name(const icma_bundle *b, size_t index) {
    return icma_container_task_name(b->container, index);
}

size_t icma_bundle_find_task(const icma_bundle *b, const char *name) {
    for (size_t t = 0; t < icma_bundle_task_count(b); t++)
        if (strcmp(icma_bundle_task_name(b, t), name) == 0)
            return t;
    return SIZE_MAX;
}

icma_status icma_bundle_task(icma_bundle *b, size_t index, icma_task_info *info, icma_error *error) {
    memset(info, 0, sizeof *info);
    icma_status status = load_task(b, (uint32_t)index, error);
    if (status)
        return status;
    const task *t = &b->tasks[index];
    const icma_checkpoints *table = &t->parts[0].table;
    *info = (icma_task_info){.name = icma_bundle_task_name(b, index), .condition_size = table->condition_size, .condition = table->condition,
                             .bytes = t->bytes, .checkpoints = t->infos, .checkpoint_count = t->count};
    info->condition_origin = table->origin == ICMA_CONDITION_GIVEN ? table->condition_name : table->origin == ICMA_CONDITION_LEARNED ? "learned" : "none";
    return ICMA_OK;
}

/* --- sizes and sections ------------------------------------------------------------------------------------------ */

static const struct {
    const char *name;
    size_t field; /* of icma_bytes */
} kind_table[] = {
    [0] = {"unknown", offsetof(icma_bytes, metadata)},
    [ICMA_SECTION_SIGNATURE] = {"signature", offsetof(icma_bytes, metadata)},
    [ICMA_SECTION_GENERATOR] = {"generator", offsetof(icma_bytes, generator)},
    [ICMA_SECTION_HEAD] = {"head", offsetof(icma_bytes, generator)},
    [ICMA_SECTION_TASK] = {"task", offsetof(icma_bytes, latents)},
    [ICMA_SECTION_TEXTS] = {"texts", offsetof(icma_bytes, metadata)},
    [ICMA_SECTION_VERBATIM] = {"verbatim", offsetof(icma_bytes, verbatim)},
    [ICMA_SECTION_RECORD] = {"record", offsetof(icma_bytes, metadata)},
    [ICMA_SECTION_CONDITION] = {"condition", offsetof(icma_bytes, conditions)},
    [ICMA_SECTION_RESIDUAL] = {"residual", offsetof(icma_bytes, residuals)},
};

static size_t kind_index(const icma_section *section) {
    return section->kind < sizeof kind_table / sizeof *kind_table ? section->kind : 0;
}

icma_bytes icma_bundle_bytes(const icma_bundle *b) {
    icma_bytes bytes = {.total = icma_container_size(b->container)};
    bytes.index = bytes.total;
    for (size_t i = 0; i < icma_container_section_count(b->container); i++) {
        const icma_section *s = icma_container_section(b->container, i);
        uint64_t *field = (uint64_t *)(void *)((char *)&bytes + kind_table[kind_index(s)].field);
        uint64_t size = (s->stored_size + ICMA_SECTION_ALIGNMENT - 1) / ICMA_SECTION_ALIGNMENT * ICMA_SECTION_ALIGNMENT;
        *field += size;
        bytes.index -= size;
    }
    return bytes;
}

size_t icma_bundle_section_count(const icma_bundle *b) {
    return icma_container_section_count(b->container);
}

icma_section_info icma_bundle_section(const icma_bundle *b, size_t index) {
    const icma_section *s = icma_container_section(b->container, index);
    return (icma_section_info){.kind = kind_table[kind_index(s)].name, .coding = s->coding == ICMA_CODING_ZSTD ? "zstd" : "raw", .offset = s->offset,
                               .stored_size = s->stored_size, .raw_size = s->raw_size, .group = s->group, .task = s->task, .first = s->first, .count = s->count};
}

icma_status icma_bundle_check_section(icma_bundle *b, size_t index, icma_error *error) {
    return icma_container_check(b->container, icma_container_section(b->container, index), error);
}

icma_status icma_bundle_generator(icma_bundle *b, uint32_t index, icma_generator_info *info, icma_error *error) {
    memset(info, 0, sizeof *info);
    icma_status status = load_group(b, index, error);
    if (status)
        return status;
    const group *g = &b->groups[index];
    *info = (icma_generator_info){.kind = g->generator.kind == ICMA_GENERATOR_BASIS ? "basis" : "none",
                                  .components_a = g->generator.components[ICMA_ROLE_A], .components_b = g->generator.components[ICMA_ROLE_B],
                                  .components_other = g->generator.components[ICMA_ROLE_OTHER], .latent_dim = g->generator.latent,
                                  .condition_dim = g->generator.coordinates, .hidden = g->generator.hidden,
                                  .hidden_layers = g->generator.kind == ICMA_GENERATOR_BASIS ? 2 : 0,
                                  .trunk_parameters = icma_generator_trunk_parameters(&g->generator), .tensors = g->signature.tensor_count};
    for (size_t t = 0; t < g->signature.tensor_count; t++)
        if (icma_generator_is_modelled(&g->generator, t))
            info->modelled_parameters += g->signature.tensors[t].count;
        else
            info->tensors_verbatim++;
    const icma_section *first = NULL;
    size_t count = icma_container_range(b->container, ICMA_SECTION_HEAD, index, ICMA_NO_OWNER, &first);
    for (size_t i = 0; i < count; i++)
        info->head_bytes += first[i].stored_size;
    return ICMA_OK;
}

icma_status icma_bundle_record(icma_bundle *b, uint32_t index, char **text, icma_error *error) {
    const icma_section *section;
    uint8_t *raw;
    *text = NULL;
    icma_status status = single(b, ICMA_SECTION_RECORD, index, ICMA_NO_OWNER, &section, error);
    if (status || !section)
        return status;
    status = icma_container_load(b->container, section, MOST_RECORD, &raw, error);
    if (status)
        return status;
    *text = icma_copy_text((const char *)raw, (size_t)section->raw_size);
    icma_free(raw);
    return *text ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the record");
}

/* --- decoding ---------------------------------------------------------------------------------------------------- */

void icma_decoded_free(icma_decoded *d) {
    for (size_t i = 0; i < d->file_count; i++) {
        icma_free(d->files[i].name);
        icma_free(d->files[i].data);
    }
    icma_free(d->files);
    icma_free(d->data);
    memset(d, 0, sizeof *d);
}

/* The checkpoint's own header, if it is not the signature's: it must describe the same tensors. */
static icma_status own_header(icma_bundle *b, const part *p, const icma_checkpoint *c, const uint8_t **header, size_t *size, icma_error *error) {
    const icma_safetensors *signature = &b->groups[p->group].signature;
    *header = signature->header;
    *size = signature->header_size;
    if (c->header == 0)
        return ICMA_OK;
    if (c->header > p->texts.count)
        return corrupt(b, error, "a checkpoint's header is missing");
    *header = p->texts.list[c->header - 1].data;
    *size = p->texts.list[c->header - 1].size;
    icma_safetensors own;
    icma_status status = icma_safetensors_parse(*header, *size, signature->data_size, &own, error);
    if (!status && !icma_safetensors_same_signature(signature, &own))
        status = corrupt(b, error, "a checkpoint's header is not its group's");
    if (!status)
        icma_safetensors_free(&own);
    return status;
}

static icma_status decode_files(icma_bundle *b, const part *p, const icma_checkpoint *c, icma_decoded *out, icma_error *error) {
    if (c->file_count && !(out->files = icma_alloc_zeroed(c->file_count, sizeof *out->files)))
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for side files");
    for (size_t f = 0; f < c->file_count; f++) {
        uint64_t name = c->files[2 * f], content = c->files[2 * f + 1];
        if (name >= p->texts.count || content >= p->texts.count || memchr(p->texts.list[name].data, 0, p->texts.list[name].size))
            return corrupt(b, error, "a side file is missing");
        icma_decoded_file *file = &out->files[out->file_count++];
        file->name = icma_copy_text((const char *)p->texts.list[name].data, p->texts.list[name].size);
        file->size = p->texts.list[content].size;
        file->data = file->size ? icma_alloc(file->size) : NULL;
        if (!file->name || (file->size && !file->data))
            return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for side files");
        if (file->size)
            memcpy(file->data, p->texts.list[content].data, file->size);
        if (!icma_path_segment_is_safe(file->name))
            return corrupt(b, error, "a side file's name is not safe");
    }
    return ICMA_OK;
}

/* The section of a kind whose range of checkpoints has `index`, or NULL. */
static const icma_section *find_covering(const icma_bundle *b, uint16_t kind, const part *p, uint32_t task_index, size_t index) {
    const icma_section *first = NULL;
    size_t count = icma_container_range(b->container, kind, p->group, task_index, &first);
    for (size_t i = 0; i < count; i++)
        if (first[i].first <= index && index - first[i].first < first[i].count)
            return &first[i];
    return NULL;
}

static icma_status load_blocks(icma_bundle *b, part *p, const icma_section *found, icma_error *error) {
    if (p->blocks_section == found)
        return ICMA_OK;
    if (found->count > p->table.count - found->first)
        return corrupt(b, error, "a residual section does not fit its checkpoints");
    if (found->raw_size > b->limits.max_output)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "residuals of %llu bytes; raise --max-output if you trust the file", (unsigned long long)found->raw_size);
    icma_free(p->blocks);
    p->blocks = NULL;
    p->blocks_section = NULL;
    icma_status status = icma_container_load(b->container, found, (size_t)found->raw_size, &p->blocks, error);
    if (!status)
        p->blocks_section = found;
    return status;
}

/* The block of checkpoint `index` in a section over checkpoints `first` .. (spec 4.11): sizes of all that may have a residual, then their blocks. */
static icma_status find_block(const icma_bundle *b, const part *p, size_t index, const uint8_t **data, size_t *size, icma_error *error) {
    icma_cursor from = icma_cursor_over(p->blocks, (size_t)p->blocks_section->raw_size);
    size_t first = p->blocks_section->first, before = 0, all = 0;
    *size = 0;
    for (size_t i = first; i < first + p->blocks_section->count; i++) {
        uint64_t each = icma_may_have_residual(&p->table.list[i]) ? icma_read_varint(&from) : 0;
        if (from.failed || each > from.left || !icma_add_size(all, (size_t)each, &all))
            return corrupt(b, error, "a residual section that is cut short");
        if (i < index)
            before = all;
        if (i == index)
            *size = (size_t)each;
    }
    if (all != from.left)
        return corrupt(b, error, "a residual section that is not as long as its blocks");
    *data = icma_read_bytes(&from, from.left);
    *data += *data ? before : 0;
    return ICMA_OK;
}

static icma_status load_residual(icma_bundle *b, uint32_t task_index, part *p, size_t index, icma_residual *out, icma_error *error) {
    const icma_section *found = find_covering(b, ICMA_SECTION_RESIDUAL, p, task_index, index);
    const group *g = &b->groups[p->group];
    const uint8_t *data = NULL;
    size_t size = 0;
    memset(out, 0, sizeof *out);
    if (!found || !icma_may_have_residual(&p->table.list[index]))
        return ICMA_OK;
    icma_status status = load_blocks(b, p, found, error);
    if (!status)
        status = find_block(b, p, index, &data, &size, error);
    return status ? status : icma_residual_read(data, size, &g->signature, &g->generator, out, error);
}

/* Finds and loads the verbatim section that holds checkpoint `index` of a part. NULL where nothing is verbatim. */
static icma_status load_stream(icma_bundle *b, uint32_t task_index, part *p, size_t index, icma_error *error) {
    const icma_safetensors *signature = &b->groups[p->group].signature;
    const icma_generator *g = &b->groups[p->group].generator;
    const icma_section *found = find_covering(b, ICMA_SECTION_VERBATIM, p, task_index, index);
    size_t size;
    if (!found) {
        if (!icma_verbatim_size(signature, g, &p->table.list[index], 1, &size) || size > 0)
            return corrupt(b, error, "verbatim tensors are missing");
        return ICMA_OK;
    }
    if (p->stream_section == found)
        return ICMA_OK;
    if (found->count > p->table.count - found->first ||
        !icma_verbatim_size(signature, g, p->table.list + found->first, found->count, &size) || size != found->raw_size)
        return corrupt(b, error, "a verbatim section does not fit its checkpoints");
    if (size > b->limits.max_output)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "verbatim tensors of %zu bytes; raise --max-output if you trust the file", size);
    icma_free(p->stream);
    p->stream = NULL;
    p->stream_section = NULL;
    icma_status status = icma_container_load(b->container, found, size, &p->stream, error);
    if (!status)
        p->stream_section = found;
    return status;
}

/* Before anything is allocated for a checkpoint. */
static icma_status check_cost(const icma_bundle *b, const part *p, const icma_checkpoint *c, icma_error *error) {
    const group *g = &b->groups[p->group];
    uint64_t work = icma_decode_work(&g->signature, &g->generator), size = g->signature.data_size;
    uint64_t header = c->header && c->header <= p->texts.count ? p->texts.list[c->header - 1].size : g->signature.header_size;
    if (size > b->limits.max_output || header + 8 > b->limits.max_output - size || size > SIZE_MAX / 2)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "an adapter of %llu bytes; raise --max-output if you trust the file", (unsigned long long)size);
    if (work > b->limits.max_work)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "decoding takes %llu multiply-adds; raise --max-work if you trust the file", (unsigned long long)work);
    return ICMA_OK;
}

/* Header, modelled tensors from the coefficients q (NULL without a basis) and, if asked for, the residual; verbatim tensors. */
static icma_status assemble(icma_bundle *b, uint32_t task_index, part *p, size_t index, const float *q, bool with_residual, icma_decoded *out,
                            icma_error *error) {
    group *g = &b->groups[p->group];
    const icma_checkpoint *c = &p->table.list[index];
    const uint8_t *header;
    size_t header_size;
    icma_residual residual = {0};
    icma_status status = own_header(b, p, c, &header, &header_size, error);
    out->size = 8 + header_size + (size_t)g->signature.data_size;
    if (!status && !(out->data = icma_alloc_zeroed(out->size, 1)))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for an adapter of %zu bytes", out->size);
    if (status)
        return status;
    icma_store_u64(out->data, header_size);
    memcpy(out->data + 8, header, header_size);
    uint8_t *data = out->data + 8 + header_size;
    if (with_residual)
        status = load_residual(b, task_index, p, index, &residual, error);
    if (!status)
        status = icma_decoder_tensors(g->decoder, q, &residual, c->exceptions, c->exception_count, data, error);
    icma_residual_free(&residual);
    if (!status)
        status = load_stream(b, task_index, p, index, error);
    if (!status && p->stream_section && p->stream_section->first <= index && index - p->stream_section->first < p->stream_section->count)
        icma_verbatim_read(&g->signature, &g->generator, p->table.list + p->stream_section->first, p->stream_section->count,
                           index - p->stream_section->first, p->stream, data);
    return status;
}

typedef icma_status (*coefficient_source)(group *g, const part *p, const icma_checkpoint *c, const void *context, float *q, icma_error *error);

static icma_status stored_coefficients(group *g, const part *p, const icma_checkpoint *c, const void *context, float *q, icma_error *error) {
    (void)context;
    return icma_decoder_coefficients(g->decoder, &p->table, c, q, error);
}

/* spec 4.8: z from the seed alone, one normal variate a dimension, in order. */
static icma_status sampled_coefficients(group *g, const part *p, const icma_checkpoint *c, const void *context, float *q, icma_error *error) {
    (void)c;
    icma_rng rng = icma_rng_seed(*(const uint64_t *)context);
    float *z = icma_alloc_array(g->generator.latent + 1, sizeof *z);
    if (!z)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a latent");
    for (size_t j = 0; j < g->generator.latent; j++)
        z[j] = icma_rng_normal(&rng);
    icma_status status = icma_decoder_trunk(g->decoder, z, p->table.condition, p->table.origin == ICMA_CONDITION_LEARNED, q, error);
    icma_free(z);
    return status;
}

static icma_status decode_place(icma_bundle *b, size_t task_index, place at, coefficient_source source, const void *context, bool with_residual,
                                icma_decoded *out, icma_error *error) {
    part *p = &b->tasks[task_index].parts[at.part];
    group *g = &b->groups[p->group];
    const icma_checkpoint *c = &p->table.list[at.index];
    float *q = NULL;
    icma_status status = load_texts(b, (uint32_t)task_index, p, error);
    if (!status)
        status = check_cost(b, p, c, error);
    if (!status)
        status = open_decoder(b, p->group, error);
    if (!status && g->generator.kind == ICMA_GENERATOR_BASIS) {
        q = icma_alloc_array(g->generator.total, sizeof *q);
        status = q ? source(g, p, c, context, q, error) : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for coefficients");
    }
    if (!status)
        status = assemble(b, (uint32_t)task_index, p, at.index, q, with_residual, out, error);
    if (!status)
        status = decode_files(b, p, c, out, error);
    icma_free(q);
    return status;
}

static icma_status finish_decode(icma_bundle *b, icma_status status, icma_decoded *out, icma_error *error) {
    if (status) {
        icma_error_set_file(error, icma_container_path(b->container));
        icma_decoded_free(out);
    }
    return status;
}

icma_status icma_bundle_decode(icma_bundle *b, size_t task_index, size_t checkpoint, icma_decoded *out, icma_error *error) {
    memset(out, 0, sizeof *out);
    icma_status status = load_task(b, (uint32_t)task_index, error);
    const task *t = &b->tasks[task_index];
    if (!status && checkpoint >= t->count)
        status = icma_fail(error, ICMA_E_NOT_FOUND, NULL, "no checkpoint %zu", checkpoint);
    if (!status)
        status = decode_place(b, task_index, t->places[checkpoint], stored_coefficients, NULL, true, out, error);
    if (!status && icma_hash(out->data, out->size) != t->infos[checkpoint].hash)
        status = icma_fail(error, ICMA_E_CORRUPT, NULL, "a decoded checkpoint of task %s is not what was packed (checksum)", icma_bundle_task_name(b, task_index));
    return finish_decode(b, status, out, error);
}

icma_status icma_bundle_sample(icma_bundle *b, size_t task_index, uint64_t seed, icma_decoded *out, icma_error *error) {
    memset(out, 0, sizeof *out);
    icma_status status = load_task(b, (uint32_t)task_index, error);
    const task *t = &b->tasks[task_index];
    if (!status && b->groups[t->infos[t->count - 1].group].generator.kind == ICMA_GENERATOR_NONE)
        status = icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "task %s has no generator to sample from", icma_bundle_task_name(b, task_index));
    if (!status)
        status = decode_place(b, task_index, t->places[t->count - 1], sampled_coefficients, &seed, false, out, error);
    return finish_decode(b, status, out, error);
}
