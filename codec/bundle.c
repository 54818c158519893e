/* SPDX-License-Identifier: Apache-2.0 */
/* Reading archives: the second half of icma.h. */
#include "bundle_inside.h"
#include "memory.h"
#include "sized.h"
#include "sort.h"

#include <math.h>
#include <string.h>

/* Most raw bytes of sections whose size nothing else tells. */
enum { MOST_TABLE = 1 << 28, MOST_TEXTS = 1 << 28, MOST_RECORD = 1 << 26 };

void icma_limits_init(icma_limits *limits, size_t size) {
    const icma_limits standard = {size, UINT64_C(4) << 30, UINT64_C(1) << 40};
    icma_sized_fill(limits, size, &standard, sizeof standard);
}

/* Limits as this library knows them, from a program that may have been compiled with fewer. */
static icma_status take_limits(const icma_limits *limits, icma_limits *out, icma_error *error) {
    icma_limits_init(out, sizeof *out);
    if (!limits)
        return ICMA_OK;
    return icma_sized_take(out, sizeof *out, limits, ICMA_LIMITS_LEAST, "limits of", "icma_limits_defaults", error);
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
    case ICMA_SECTION_LINK:
        return s->count > 0;
    case ICMA_SECTION_TASK:
        return s->first == 0 && s->count > 0;
    default:
        return s->first == 0 && s->count == 0;
    }
}

static bool is_of_task(const icma_section *s) {
    return s->kind == ICMA_SECTION_TASK || s->kind == ICMA_SECTION_VERBATIM ||
           s->kind == ICMA_SECTION_CONDITION || s->kind == ICMA_SECTION_RESIDUAL || s->kind == ICMA_SECTION_LINK;
}

/* Every section of a known kind has the owners and ranges that its kind asks for, and what belongs to a task part has that part's table beside it. */
static icma_status check_owners(const icma_container *c, icma_error *error) {
    for (size_t i = 0; i < icma_container_section_count(c); i++) {
        const icma_section *s = icma_container_section(c, i);
        if (s->kind < ICMA_SECTION_SIGNATURE || s->kind > ICMA_SECTION_LINK)
            continue;
        /* Texts are a task's, or shared by its group. */
        bool of_task = is_of_task(s) || (s->kind == ICMA_SECTION_TEXTS && s->task != ICMA_NO_OWNER);
        bool owned = s->group != ICMA_NO_OWNER && of_task == (s->task != ICMA_NO_OWNER);
        if (!owned || !ranges_fit(s) || (of_task && !icma_container_find(c, ICMA_SECTION_TASK, s->group, s->task)))
            return icma_fail(error, ICMA_E_CORRUPT, icma_container_path(c), "section %zu has owners or a range that its kind cannot have", i);
    }
    return ICMA_OK;
}

/* --- which tables a task has -------------------------------------------------------------------------------------------- */

static int compare_tables(const void *a, const void *b, const void *context) {
    (void)context;
    const icma_section *x = *(const icma_section *const *)a, *y = *(const icma_section *const *)b;
    if (x->task != y->task)
        return x->task < y->task ? -1 : 1;
    return x->group < y->group ? -1 : x->group > y->group;
}

/* The index has sections by group, then task; who looks for a task in every group does too much in a file of many of both. */
static icma_status sort_tables(icma_bundle *b, icma_error *error) {
    size_t count = icma_container_section_count(b->container);
    b->tables = icma_alloc_array(count + 1, sizeof *b->tables);
    if (!b->tables)
        return icma_fail(error, ICMA_E_MEMORY, icma_container_path(b->container), "no memory to open it");
    for (size_t i = 0; i < count; i++)
        if (icma_container_section(b->container, i)->kind == ICMA_SECTION_TASK)
            b->tables[b->table_count++] = icma_container_section(b->container, i);
    if (b->table_count)
        icma_sort(b->tables, b->table_count, sizeof *b->tables, compare_tables, NULL);
    return ICMA_OK;
}

/* The first of the tables whose task is not under `task`. */
static size_t first_table(const icma_bundle *b, uint64_t task) {
    size_t low = 0, high = b->table_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (b->tables[middle]->task < task)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

size_t icma_bundle_tables(const icma_bundle *b, uint32_t task, size_t *first) {
    *first = first_table(b, task);
    return first_table(b, (uint64_t)task + 1) - *first;
}

/* --- opening ----------------------------------------------------------------------------------------------------- */

icma_status icma_bundle_open(const char *path, const icma_ops *ops, const icma_limits *limits, icma_bundle **out, icma_error *error) {
    *out = NULL;
    icma_bundle *b = icma_alloc_zeroed(1, sizeof *b);
    if (!b)
        return icma_fail(error, ICMA_E_MEMORY, path, "no memory to open it");
    b->ops = ops ? ops : icma_ops_cpu();
    icma_status status = take_limits(limits, &b->limits, error);
    if (!status)
        status = icma_container_open(path, &b->container, error);
    if (!status)
        status = check_owners(b->container, error);
    if (!status)
        status = sort_tables(b, error);
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

icma_status icma_bundle_use_device(icma_bundle *b, const icma_ops *ops, icma_error *error) {
    for (size_t g = 0; g < icma_container_group_count(b->container); g++)
        if (b->groups[g].decoder)
            return icma_fail(error, ICMA_E_USAGE, icma_container_path(b->container), "the device cannot change once something was decoded; open the archive again");
    b->ops = ops ? ops : icma_ops_cpu();
    return ICMA_OK;
}

bool icma_bundle_leave_device(icma_bundle *b) {
    if (icma_ops_on_host(b->ops))
        return false;
    for (size_t g = 0; g < icma_container_group_count(b->container); g++) {
        icma_decoder_free(b->groups[g].decoder);
        b->groups[g].decoder = NULL; /* made again when something is decoded */
    }
    b->ops = icma_ops_cpu();
    return true;
}

void icma_bundle_forget_task(icma_bundle *b, size_t index) {
    icma_task_state *t = &b->tasks[index];
    for (size_t p = 0; p < t->part_count; p++) {
        icma_checkpoints_free(&t->parts[p].table);
        icma_texts_free(&t->parts[p].texts);
        icma_free(t->parts[p].text_bytes);
        icma_part_forget_streams(&t->parts[p]);
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
        icma_texts_free(&b->groups[g].texts);
        icma_free(b->groups[g].text_bytes);
        icma_generator_free(&b->groups[g].generator);
        icma_safetensors_free(&b->groups[g].signature);
    }
    for (size_t t = 0; b->tasks && t < icma_container_task_count(b->container); t++)
        icma_bundle_forget_task(b, t);
    icma_free(b->groups);
    icma_free(b->tasks);
    icma_free(b->tables);
    icma_container_close(b->container);
    icma_free(b);
}

/* --- sections ---------------------------------------------------------------------------------------------------- */

icma_status icma_bundle_corrupt(const icma_bundle *b, icma_error *error, const char *what) {
    return icma_fail(error, ICMA_E_CORRUPT, icma_container_path(b->container), "%s", what);
}

/* The single section of a kind, or NULL. More than one is corrupt. */
static icma_status single(const icma_bundle *b, uint16_t kind, uint32_t group_index, uint32_t task_index, const icma_section **out, icma_error *error) {
    const icma_section *first;
    size_t count = icma_container_range(b->container, kind, group_index, task_index, &first);
    *out = count ? first : NULL;
    return count > 1 ? icma_bundle_corrupt(b, error, "two sections where there may be one") : ICMA_OK;
}

static icma_status load_section(void *context, const icma_section *section, size_t max_raw, uint8_t **out, icma_error *error) {
    return icma_container_load(context, section, max_raw, out, error);
}

/* The texts of one TEXTS section; none without it. */
static icma_status load_texts(icma_bundle *b, uint32_t group, uint32_t task, uint8_t **bytes, icma_texts *texts, icma_error *error) {
    const icma_section *section;
    icma_status status = single(b, ICMA_SECTION_TEXTS, group, task, &section, error);
    if (status || !section)
        return status;
    status = icma_container_load(b->container, section, MOST_TEXTS, bytes, error);
    if (!status)
        status = icma_texts_read(*bytes, (size_t)section->raw_size, texts, error);
    if (status) {
        icma_free(*bytes);
        *bytes = NULL;
    }
    return status;
}

static icma_status read_group(icma_bundle *b, uint32_t index, icma_error *error) {
    icma_group_state *g = &b->groups[index];
    const icma_section *signature, *generator;
    uint8_t *raw = NULL;
    icma_status status = single(b, ICMA_SECTION_SIGNATURE, index, ICMA_NO_OWNER, &signature, error);
    if (!status)
        status = single(b, ICMA_SECTION_GENERATOR, index, ICMA_NO_OWNER, &generator, error);
    if (!status && (!signature || !generator))
        status = icma_bundle_corrupt(b, error, "a group without signature or generator");
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
        status = load_texts(b, index, ICMA_NO_OWNER, &g->text_bytes, &g->texts, error);
    if (!status)
        g->loaded = true;
    else {
        icma_generator_free(&g->generator);
        icma_safetensors_free(&g->signature);
    }
    icma_error_set_file(error, icma_container_path(b->container));
    return status;
}

icma_status icma_bundle_load_group(icma_bundle *b, uint32_t index, icma_error *error) {
    icma_group_state *g = &b->groups[index];
    icma_error detail = {0};
    if (index >= icma_bundle_group_count(b))
        return icma_fail(error, ICMA_E_NOT_FOUND, icma_container_path(b->container), "no group %u; there are %zu", index, icma_bundle_group_count(b));
    if (g->loaded)
        return ICMA_OK;
    icma_status status = g->refused ? g->refusal.status : read_group(b, index, &detail);
    if (g->refused)
        detail = g->refusal;
    g->refused = status == ICMA_E_CORRUPT || status == ICMA_E_LIMIT || status == ICMA_E_UNSUPPORTED;
    if (g->refused)
        g->refusal = detail;
    if (status && error)
        *error = detail;
    return status;
}

icma_status icma_bundle_open_decoder(icma_bundle *b, uint32_t index, icma_error *error) {
    icma_group_state *g = &b->groups[index];
    const icma_section *chunks = NULL;
    if (g->decoder)
        return ICMA_OK;
    size_t count = icma_container_range(b->container, ICMA_SECTION_HEAD, index, ICMA_NO_OWNER, &chunks);
    icma_section_loader loader = {load_section, b->container};
    return icma_decoder_create(b->ops, &g->signature, &g->generator, chunks, count, loader, b->limits.max_output, &g->decoder, error);
}

/* --- tasks ------------------------------------------------------------------------------------------------------- */

const struct icma_text *icma_part_text(const icma_bundle *b, const icma_part *p, uint64_t index) {
    const icma_texts *shared = &b->groups[p->group].texts;
    if (index < shared->count)
        return &shared->list[index];
    index -= shared->count;
    return index < p->texts.count ? &p->texts.list[index] : NULL;
}

icma_status icma_part_load_texts(icma_bundle *b, uint32_t task_index, icma_part *p, icma_error *error) {
    if (p->texts_loaded)
        return ICMA_OK;
    icma_status status = load_texts(b, p->group, task_index, &p->text_bytes, &p->texts, error);
    p->texts_loaded = !status;
    return status;
}

static bool any_of_tier(const icma_checkpoint *list, size_t count, icma_tier tier) {
    for (size_t i = 0; i < count; i++)
        if (list[i].tier == tier)
            return true;
    return false;
}

/* The sections of a kind that hold parts of some checkpoints follow each other without overlap and end with the task's (spec 4.7, 4.11). */
static icma_status check_ranges(const icma_bundle *b, uint16_t kind, uint32_t task_index, const icma_part *p, icma_error *error) {
    const icma_section *list = NULL;
    size_t count = icma_container_range(b->container, kind, p->group, task_index, &list), next = 0;
    for (size_t i = 0; i < count; i++) {
        if (list[i].first < next || list[i].first > p->table.count || list[i].count > p->table.count - list[i].first)
            return icma_bundle_corrupt(b, error, "a section that does not fit its task's checkpoints");
        if (kind != ICMA_SECTION_VERBATIM &&
            !any_of_tier(p->table.list + list[i].first, list[i].count, kind == ICMA_SECTION_LINK ? ICMA_TIER_LOSSLESS : ICMA_TIER_BOUNDED))
            return icma_bundle_corrupt(b, error, "a section of blocks that no checkpoint has");
        next = (size_t)list[i].first + list[i].count;
    }
    return ICMA_OK;
}

static icma_status load_part(icma_bundle *b, uint32_t task_index, icma_part *p, const icma_section *table, icma_error *error) {
    uint8_t *raw = NULL;
    const icma_section *condition;
    const icma_generator *g = &b->groups[p->group].generator;
    icma_status status = icma_bundle_load_group(b, p->group, error);
    if (!status)
        status = single(b, ICMA_SECTION_CONDITION, p->group, task_index, &condition, error);
    if (!status && !condition && icma_generator_predicts(g))
        status = icma_bundle_corrupt(b, error, "a task without a condition");
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
        status = icma_checkpoints_read(raw, (size_t)table->raw_size, table->count, g, p->table.origin, &list, error);
    icma_free(raw);
    p->table.list = list.list;
    p->table.count = list.count;
    static const uint16_t ranged[] = {ICMA_SECTION_VERBATIM, ICMA_SECTION_RESIDUAL, ICMA_SECTION_LINK};
    for (size_t k = 0; !status && k < sizeof ranged / sizeof *ranged; k++)
        status = check_ranges(b, ranged[k], task_index, p, error);
    /* A checkpoint's own header lies among the texts, and the size of its file depends on it. */
    for (size_t i = 0; !status && i < list.count; i++) {
        if (list.list[i].header)
            status = icma_part_load_texts(b, task_index, p, error);
        if (!status && list.list[i].header && !icma_part_text(b, p, list.list[i].header - 1))
            status = icma_bundle_corrupt(b, error, "a checkpoint's header is missing");
    }
    return status;
}

static icma_checkpoint_info describe(const icma_bundle *b, const icma_part *p, const icma_checkpoint *c, uint64_t parameters) {
    const icma_safetensors *s = &b->groups[p->group].signature;
    size_t header = c->header ? icma_part_text(b, p, c->header - 1)->size : s->header_size;
    icma_checkpoint_info info = {.group = p->group, .has_step = c->has_step, .step = c->step, .tier = c->tier, .bound = c->bound, .relative_error = c->relative_error,
                                 .dw_error_mean = c->dw_error_mean, .dw_error_max = c->dw_error_max, .hash = c->hash,
                                 .file_size = 8 + header + s->data_size, .parameters = parameters};
    /* Stored errors are rounded up; what pack has proved is never above the bound. */
    if (c->bound.kind == ICMA_BOUND_DW)
        info.dw_error_max = fminf(info.dw_error_max, c->bound.value);
    return info;
}

static uint64_t parameters_of(const icma_safetensors *signature) {
    uint64_t sum = 0;
    for (size_t t = 0; t < signature->tensor_count; t++)
        sum += signature->tensors[t].count;
    return sum;
}

/* By step; one without a step comes last. */
static int compare_places(const void *a, const void *b, const void *context) {
    const icma_part *parts = context;
    const icma_place *x = a, *y = b;
    const icma_checkpoint *c = &parts[x->part].table.list[x->index], *d = &parts[y->part].table.list[y->index];
    if (c->has_step != d->has_step)
        return c->has_step ? -1 : 1;
    return !c->has_step || c->step == d->step ? 0 : c->step < d->step ? -1 : 1;
}

/* The checkpoints of all parts, as one list. */
static icma_status merge_parts(icma_bundle *b, icma_task_state *t, icma_error *error) {
    for (size_t p = 0; p < t->part_count; p++)
        t->count += t->parts[p].table.count;
    t->infos = icma_alloc_array(t->count, sizeof *t->infos);
    t->places = icma_alloc_array(t->count, sizeof *t->places);
    uint64_t *parameters = icma_alloc_array(t->part_count, sizeof *parameters);
    if (!t->infos || !t->places || !parameters) {
        icma_free(parameters);
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a task");
    }
    for (uint32_t p = 0, at = 0; p < t->part_count; p++) {
        parameters[p] = parameters_of(&b->groups[t->parts[p].group].signature);
        for (uint32_t i = 0; i < t->parts[p].table.count; i++)
            t->places[at++] = (icma_place){p, i};
    }
    if (t->part_count > 1)
        icma_sort(t->places, t->count, sizeof *t->places, compare_places, t->parts);
    icma_status status = ICMA_OK;
    for (size_t i = 0; i < t->count; i++) {
        const icma_part *part = &t->parts[t->places[i].part];
        if (i && compare_places(&t->places[i - 1], &t->places[i], t->parts) == 0)
            status = icma_bundle_corrupt(b, error, "a task has two checkpoints of one step");
        t->infos[i] = describe(b, part, &part->table.list[t->places[i].index], parameters[t->places[i].part]);
    }
    icma_free(parameters);
    return status;
}

static void count_bytes(icma_bundle *b, uint32_t task_index) {
    static const uint16_t kinds[] = {ICMA_SECTION_TASK, ICMA_SECTION_TEXTS, ICMA_SECTION_VERBATIM, ICMA_SECTION_CONDITION, ICMA_SECTION_RESIDUAL,
                                     ICMA_SECTION_LINK};
    icma_task_state *t = &b->tasks[task_index];
    for (size_t p = 0; p < t->part_count; p++)
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            const icma_section *first;
            size_t count = icma_container_range(b->container, kinds[k], t->parts[p].group, task_index, &first);
            for (size_t i = 0; i < count; i++)
                t->bytes += first[i].stored_size;
        }
}

icma_status icma_bundle_load_task(icma_bundle *b, uint32_t index, icma_error *error) {
    icma_task_state *t = &b->tasks[index];
    if (index >= icma_bundle_task_count(b)) /* such as what icma_bundle_find_task did not find */
        return icma_fail(error, ICMA_E_NOT_FOUND, icma_container_path(b->container), "no task %u; there are %zu", index, icma_bundle_task_count(b));
    if (t->loaded)
        return ICMA_OK;
    size_t first, count = icma_bundle_tables(b, index, &first);
    icma_status status = ICMA_OK;
    if (count && !(t->parts = icma_alloc_zeroed(count, sizeof *t->parts)))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a task");
    for (size_t i = 0; !status && i < count; i++) {
        /* One a group: check_owners lets their first be 0 only, and no two sections are alike (spec 3.4). */
        const icma_section *table = b->tables[first + i];
        t->parts[t->part_count] = (icma_part){.group = table->group};
        status = load_part(b, index, &t->parts[t->part_count++], table, error);
    }
    if (!status && t->part_count == 0)
        status = icma_bundle_corrupt(b, error, "a task without checkpoints");
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

static const char *origin_of(const icma_checkpoints *table) {
    if (table->origin == ICMA_CONDITION_LEARNED)
        return "learned";
    if (table->condition)
        return table->condition_name;
    return table->origin == ICMA_CONDITION_OFFSET ? "added" : "none";
}

icma_status icma_bundle_task(icma_bundle *b, size_t index, icma_task_info *info, icma_error *error) {
    memset(info, 0, sizeof *info);
    icma_status status = icma_bundle_load_task(b, (uint32_t)index, error);
    if (status)
        return status;
    const icma_task_state *t = &b->tasks[index];
    const icma_checkpoints *table = &t->parts[0].table;
    *info = (icma_task_info){.name = icma_bundle_task_name(b, index), .condition_size = table->condition_size, .condition = table->condition,
                             .bytes = t->bytes, .checkpoints = t->infos, .checkpoint_count = t->count};
    info->condition_origin = origin_of(table);
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
    [ICMA_SECTION_LINK] = {"link", offsetof(icma_bytes, residuals)},
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
    icma_status status = icma_bundle_load_group(b, index, error);
    if (status)
        return status;
    const icma_group_state *g = &b->groups[index];
    *info = (icma_generator_info){.kind = icma_generator_name(&g->generator),
                                  .components_a = g->generator.components[ICMA_ROLE_A], .components_b = g->generator.components[ICMA_ROLE_B],
                                  .components_other = g->generator.components[ICMA_ROLE_OTHER], .latent_dim = g->generator.latent,
                                  .condition_dim = g->generator.coordinates, .hidden = g->generator.hidden,
                                  .hidden_layers = g->generator.kind == ICMA_GENERATOR_BASIS ? 2 : g->generator.conv.layers,
                                  .trunk_parameters = icma_generator_trunk_parameters(&g->generator) + icma_generator_network_parameters(&g->generator), .tensors = g->signature.tensor_count,
                                  .decode_work = icma_decode_work(&g->signature, &g->generator)};
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

icma_status icma_bundle_verbatim_tensors(icma_bundle *b, uint32_t group, icma_adapter_tensor **list, size_t *count, icma_error *error) {
    *list = NULL;
    *count = 0;
    icma_status status = icma_bundle_load_group(b, group, error);
    if (status)
        return status;
    const icma_group_state *g = &b->groups[group];
    *list = icma_alloc_array(g->signature.tensor_count + 1, sizeof **list);
    if (!*list)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a list of tensors");
    for (size_t i = 0; i < g->signature.tensor_count; i++) {
        const icma_tensor_info *t = &g->signature.tensors[i];
        if (!icma_generator_is_modelled(&g->generator, i))
            (*list)[(*count)++] = (icma_adapter_tensor){t->name, t->dtype, t->rank, t->shape, t->begin, t->size};
    }
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
