/* SPDX-License-Identifier: Apache-2.0 */
#include "writing.h"

#include "facts.h"
#include "file.h"
#include "inputs.h"
#include "memory.h"
#include "message.h"
#include "progress.h"
#include "sort.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_REMARKS = 20 };

static const char config_name[] = "adapter_config.json", model_name[] = "adapter_model.safetensors";

static icma_status no_path(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for a path");
}

/* first/second/third as an owned string, without those that are NULL or empty; NULL when memory is short. */
static char *join(const char *first, const char *second, const char *third) {
    icma_buffer path = {0};
    const char *parts[] = {first, second, third};
    for (size_t i = 0; i < 3; i++) {
        if (!parts[i] || !parts[i][0])
            continue;
        if (path.size && path.data[path.size - 1] != '/')
            icma_write_u8(&path, '/');
        icma_write_bytes(&path, parts[i], strlen(parts[i]));
    }
    char *joined = path.failed ? NULL : icma_copy_text((const char *)path.data, path.size);
    icma_buffer_free(&path);
    return joined;
}

static bool to_stdout(const cli_writing_options *o) {
    return o->output && strcmp(o->output, "-") == 0;
}

/* --- options -------------------------------------------------------------------------------------------- */

static icma_status read_dtype(const char *text, icma_layout_options *out, icma_error *error) {
    static const struct {
        const char *name;
        icma_dtype dtype;
    } names[] = {{"f32", ICMA_F32}, {"f16", ICMA_F16}, {"bf16", ICMA_BF16}};
    if (!text || strcmp(text, "keep") == 0)
        return ICMA_OK;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(text, names[i].name) == 0) {
            out->cast = true;
            out->dtype = names[i].dtype;
            return ICMA_OK;
        }
    return icma_fail(error, ICMA_E_USAGE, NULL, "--dtype takes keep, f32, f16 or bf16, not \"%s\"", text);
}

static const char *contradiction(const cli_writing_options *o, cli_archive_format format) {
    if (o->output && o->folder)
        return "-o names the file; leave out -C";
    if ((o->folder && !o->folder[0]) || (o->output && !o->output[0]))
        return "the output's name is empty; name a folder with -C or a file with -o";
    if (o->force && o->keep_existing)
        return "-f replaces what exists and -k keeps it; choose one";
    if (format && !o->output)
        return "--format writes one archive; name it with -o FILE, or -o - for standard output";
    if (o->base_model && !o->base_model[0])
        return "--base-model takes a name";
    return NULL;
}

icma_status cli_writing_open(cli_writing *w, const cli_writing_options *o, bool keep_going,
                             icma_error *error) {
    *w = (cli_writing){.options = o, .layout = icma_layout_defaults()};
    w->layout.leave_out = keep_going;
    w->layout.base_model = o->base_model;
    if (o->layout && !icma_layout_from_name(o->layout, &w->layout.layout))
        return icma_fail(error, ICMA_E_USAGE, NULL, "--layout takes original, peft or kohya, not \"%s\"",
                         o->layout);
    if (o->format && !cli_archive_format_from_name(o->format, &w->format))
        return icma_fail(error, ICMA_E_USAGE, NULL, "--format takes tar or zip, not \"%s\"", o->format);
    const char *wrong = contradiction(o, w->format);
    if (!wrong && o->base_model && w->layout.layout == ICMA_LAYOUT_ORIGINAL)
        wrong = "--base-model belongs to --layout peft or kohya";
    if (wrong)
        return icma_fail(error, ICMA_E_USAGE, NULL, "%s", wrong);
    return read_dtype(o->dtype, &w->layout, error);
}

icma_status cli_writing_close(cli_writing *w, bool good, icma_error *error) {
    icma_status status = ICMA_OK;
    if (w->archive && good)
        status = cli_archive_commit(w->archive, error);
    else
        cli_archive_abandon(w->archive);
    w->archive = NULL;
    for (size_t i = 0; i < w->remark_count; i++)
        icma_free(w->remarks[i]);
    icma_free(w->remarks);
    w->remarks = NULL;
    w->remark_count = 0;
    return status;
}

/* --- places --------------------------------------------------------------------------------------------- */

void cli_writing_place_free(cli_writing_place *place) {
    for (size_t i = 0; i < place->count; i++)
        icma_free(place->parts[i].path);
    icma_free(place->folder);
    *place = (cli_writing_place){0};
}

/* kohya's files lie side by side; PEFT's adapters have a folder each. */
static void adjust(const cli_writing *w, const cli_writing_subject *s, icma_file_naming *naming,
                   bool *has_step) {
    icma_layout layout = w->layout.layout;
    *has_step = s->has_step;
    if (layout == ICMA_LAYOUT_PEFT)
        naming->form = ICMA_FORM_PEFT;
    if (layout == ICMA_LAYOUT_KOHYA && naming->form != ICMA_FORM_PLAIN) {
        *naming = (icma_file_naming){.form = ICMA_FORM_PLAIN};
        *has_step = s->has_step && s->in_tree;
    }
}

static icma_status fill_parts(const cli_writing *w, const char *name, const char *const *components,
                              size_t count, cli_writing_place *out, icma_error *error) {
    for (size_t i = 0; i < count; i++) {
        cli_writing_part *part = &out->parts[out->count++];
        part->component = components[i];
        part->path = w->options->output && !w->format ? icma_copy_string(w->options->output)
                                                      : join(out->folder, components[i], name);
        if (!part->path)
            return no_path(error);
    }
    return ICMA_OK;
}

icma_status cli_writing_place_of(const cli_writing *w, const cli_writing_subject *s, cli_writing_place *out,
                                 icma_error *error) {
    const char *components[ICMA_MOST_COMPONENTS];
    icma_file_naming naming = *s->naming;
    char *name = NULL;
    bool has_step;
    size_t count;
    *out = (cli_writing_place){0};
    adjust(w, s, &naming, &has_step);
    icma_status status = icma_layout_components(s->header, &w->layout, components, &count, error);
    if (!status && count > 1 && w->options->output && !w->format)
        status = icma_fail(error, ICMA_E_USAGE, NULL,
                           "-o takes one file, and this adapter becomes one for each of %zu models; write it "
                           "into a folder or an archive",
                           count);
    if (!status)
        status = icma_file_place(&naming, s->task, has_step, s->step, s->in_tree, &out->folder, &name, error);
    if (!status)
        status = fill_parts(w, name, components, count, out, error);
    icma_free(name);
    if (status)
        cli_writing_place_free(out);
    return status;
}

/* -1: out of memory. */
static int is_there(const char *first, const char *second, const char *third) {
    struct stat info;
    char *path = join(first, second, third);
    if (!path)
        return -1;
    bool there = lstat(path, &info) == 0;
    icma_free(path);
    return there;
}

/* Where a part's side files lie. */
static char *folder_of(const cli_writing_part *part) {
    const char *slash = strrchr(part->path, '/');
    return slash ? icma_copy_text(part->path, (size_t)(slash - part->path)) : icma_copy_string("");
}

static icma_status in_the_way(const char *folder, const char *path, icma_error *error) {
    char *whole = join(folder, path, NULL);
    icma_fail(error, ICMA_E_EXISTS, whole ? whole : path,
              "exists already; nothing was written; -f replaces it, -k keeps it");
    icma_free(whole);
    return ICMA_E_EXISTS;
}

/* -o's file. */
static icma_status look_at_output(cli_writing *w, cli_writing_place *place, icma_error *error) {
    const char *path = w->options->output;
    if (to_stdout(w->options) || is_there(NULL, path, NULL) <= 0)
        return ICMA_OK;
    place->kept = w->options->keep_existing;
    w->archive_kept |= place->kept && w->format;
    return place->kept ? ICMA_OK : in_the_way(NULL, path, error);
}

icma_status cli_writing_look(cli_writing *w, cli_writing_place *place, icma_error *error) {
    const cli_writing_options *o = w->options;
    size_t kept = 0;
    if (o->force)
        return ICMA_OK;
    if (o->output)
        return look_at_output(w, place, error);
    for (size_t i = 0; i < place->count; i++) {
        const cli_writing_part *part = &place->parts[i];
        int there = is_there(o->folder, part->path, NULL);
        char *folder = folder_of(part);
        bool configured =
            strcmp(part->path + strlen(folder ? folder : "") + (folder && *folder), model_name) == 0;
        int beside = folder && configured ? is_there(o->folder, folder, config_name) : folder ? 0 : -1;
        icma_status status = there < 0 || beside < 0 ? no_path(error) : ICMA_OK;
        kept += there > 0;
        if (!status && !o->keep_existing && there)
            status = in_the_way(o->folder, part->path, error);
        else if (!status && !o->keep_existing && beside) {
            char *path = join(folder, config_name, NULL);
            status = path ? in_the_way(o->folder, path, error) : no_path(error);
            icma_free(path);
        }
        icma_free(folder);
        if (status)
            return status;
    }
    place->kept = kept == place->count && o->keep_existing;
    return ICMA_OK;
}

/* --- files ---------------------------------------------------------------------------------------------- */

static icma_status write_file(const char *path, bool overwrite, const void *data, size_t size,
                              icma_error *error) {
    icma_output *output;
    icma_status status = icma_output_create(path, overwrite, &output, error);
    if (status)
        return status;
    status = icma_output_write(output, data, size, error);
    if (status) {
        icma_output_abandon(output);
        return status;
    }
    return icma_output_commit(output, error);
}

static icma_status write_stdout(const void *data, size_t size, icma_error *error) {
    cli_progress_clear();
    errno = 0;
    if (fwrite(data, 1, size, stdout) == size && fflush(stdout) == 0)
        return ICMA_OK;
    return icma_fail(error, ICMA_E_IO, "standard output", "cannot write (%s); check where it goes to",
                     strerror(errno));
}

/* A path below the folder, or in the archive. Folders are made on the way. */
static icma_status put_file(cli_writing *w, const char *relative, const void *data, size_t size,
                            icma_error *error) {
    if (w->archive)
        return cli_archive_add(w->archive, relative, data, size, error);
    const cli_writing_options *o = w->options;
    char *path = NULL;
    if (o->keep_existing && is_there(o->folder, relative, NULL) > 0)
        return ICMA_OK;
    icma_status status = icma_make_folders(o->folder ? o->folder : ".", relative, &path, error);
    if (!status)
        status = write_file(path, o->force, data, size, error);
    icma_free(path);
    return status;
}

/* One of the files of an adapter. */
typedef struct member {
    const char *name;
    const uint8_t *data;
    size_t size;
} member;

static int compare_members(const void *left, const void *right, const void *context) {
    (void)context;
    return icma_compare_natural(((const member *)left)->name, ((const member *)right)->name);
}

static icma_status put_member(cli_writing *w, const char *folder, const member *m, icma_error *error) {
    char *path = join(folder, m->name, NULL);
    icma_status status = path ? put_file(w, path, m->data, m->size, error) : no_path(error);
    icma_free(path);
    return status;
}

/* In a tree the adapter itself comes last: where it is, everything beside it is too. In an archive all files
 * are in order. */
static icma_status put_members(cli_writing *w, cli_writing_part *part, const char *folder,
                               const icma_decoded *d, icma_error *error) {
    member *list = icma_alloc_array(d->file_count + 1, sizeof *list);
    const char *slash = strrchr(part->path, '/');
    if (!list)
        return no_path(error);
    for (size_t i = 0; i < d->file_count; i++)
        list[i] = (member){d->files[i].name, d->files[i].data, d->files[i].size};
    list[d->file_count] = (member){slash ? slash + 1 : part->path, d->data, d->size};
    if (w->archive)
        icma_sort(list, d->file_count + 1, sizeof *list, compare_members, NULL);
    icma_status status = ICMA_OK;
    for (size_t i = 0; !status && i <= d->file_count; i++)
        status = put_member(w, folder, &list[i], error);
    icma_free(list);
    part->side_files = d->file_count;
    return status;
}

/* Before the first file of a folder is written: none of them may replace what is there. */
static icma_status look_beside(const cli_writing *w, const char *folder, const icma_decoded *d,
                               icma_error *error) {
    const cli_writing_options *o = w->options;
    for (size_t i = 0; i < d->file_count && !w->archive && !o->force && !o->keep_existing; i++)
        if (is_there(o->folder, folder, d->files[i].name) > 0)
            return icma_fail(error, ICMA_E_EXISTS, d->files[i].name,
                             "exists already in %s; -f replaces it, -k keeps it", folder);
    return ICMA_OK;
}

static icma_status write_part(cli_writing *w, cli_writing_part *part, const icma_decoded *d,
                              icma_error *error) {
    const cli_writing_options *o = w->options;
    part->bytes = d->size;
    if (o->output && !w->format)
        return to_stdout(o) ? write_stdout(d->data, d->size, error)
                            : write_file(o->output, o->force, d->data, d->size, error);
    char *folder = folder_of(part);
    icma_status status = folder ? look_beside(w, folder, d, error) : no_path(error);
    if (!status)
        status = put_members(w, part, folder, d, error);
    icma_free(folder);
    return status;
}

/* --- one adapter ---------------------------------------------------------------------------------------- */

/* Each line once, however many adapters it is true of. */
static icma_status warn(cli_writing *w, const char *who, const char *remark, icma_error *error) {
    for (size_t i = 0; i < w->remark_count; i++)
        if (strcmp(w->remarks[i], remark) == 0)
            return ICMA_OK;
    if (w->remark_count >= MOST_REMARKS)
        return ICMA_OK;
    char **more = icma_resize_array(w->remarks, w->remark_count + 1, sizeof *more);
    if (!more)
        return no_path(error);
    w->remarks = more;
    more[w->remark_count] = icma_copy_string(remark);
    if (!more[w->remark_count++])
        return no_path(error);
    cli_warning(who, "%s%s", remark,
                w->remark_count == MOST_REMARKS ? "; further warnings are not shown" : "");
    return ICMA_OK;
}

static void count(cli_writing *w, const icma_layout_result *r, bool exact) {
    cli_writing_told *t = &w->told;
    t->adapters++;
    t->cast += r->cast;
    t->overflowed += r->overflowed;
    t->left_out += r->left_out;
    t->hashes_made += r->hashes_made;
    t->hashes_dropped += r->hashes_dropped;
    t->lossless |= exact && r->cast;
    for (size_t i = 0; i < r->count; i++)
        t->configs_made += r->list[i].config_made;
}

static icma_status write_all(cli_writing *w, cli_writing_place *place, icma_layout_result *r, const char *who,
                             icma_error *error) {
    icma_status status = ICMA_OK;
    for (size_t i = 0; !status && w->layout.layout == ICMA_LAYOUT_PEFT && i < r->count; i++)
        status = icma_layout_check_serving(&r->list[i].decoded, r, error);
    for (size_t i = 0; !status && i < r->remark_count; i++)
        status = warn(w, who, r->remarks[i], error);
    if (!status && w->format && !w->archive)
        status = cli_archive_create(w->format, w->options->output, w->options->force, &w->archive, error);
    for (size_t i = 0; !status && i < r->count && i < place->count; i++)
        status = write_part(w, &place->parts[i], &r->list[i].decoded, error);
    place->written = !status;
    return status;
}

icma_status cli_writing_write(cli_writing *w, cli_writing_place *place, icma_decoded *decoded, bool exact,
                              const char *who, icma_error *error) {
    icma_layout_result result;
    icma_layout_options options = w->layout;
    options.other_weights = !exact;
    icma_status status = icma_layout_convert(decoded, &options, &result, error);
    if (status)
        return status;
    status = write_all(w, place, &result, who, error);
    if (!status)
        count(w, &result, exact);
    icma_layout_result_free(&result);
    return status;
}

/* --- what is told --------------------------------------------------------------------------------------- */

char *cli_writing_path(const cli_writing_options *o, const cli_writing_part *part) {
    return join(o->output ? NULL : o->folder, part->path, NULL);
}

void cli_writing_tell(const cli_writing *w) {
    const cli_writing_told *t = &w->told;
    if (t->cast)
        cli_note("%zu tensor%s cast to %s: %s", t->cast, t->cast == 1 ? " was" : "s were", w->options->dtype,
                 t->lossless ? "these are not the packed files any more"
                             : "no error bound of the archive holds for them");
    if (t->overflowed)
        cli_warning(NULL, "%llu weight%s became infinite, too large for %s",
                    (unsigned long long)t->overflowed, cli_plural(t->overflowed), w->options->dtype);
    if (t->hashes_made)
        cli_note("hashes in the metadata of %zu file%s were made anew, for the weights that were written",
                 t->hashes_made, cli_plural(t->hashes_made));
    if (t->hashes_dropped)
        cli_note("hashes in the metadata of %zu file%s were left out: they were of other weights",
                 t->hashes_dropped, cli_plural(t->hashes_dropped));
    if (t->configs_made)
        cli_note("%zu adapter_config.json made from shapes and alphas", t->configs_made);
}

void cli_writing_to_json(const cli_writing *w, cJSON *root) {
    const cli_writing_options *o = w->options;
    const cli_writing_told *t = &w->told;
    cli_json_text(root, "layout", icma_layout_name(w->layout.layout));
    cli_json_text(root, "format", o->format);
    cli_json_text(root, "output", o->output);
    cli_json_text(root, "dtype", w->layout.cast ? o->dtype : "keep");
    cli_json_whole(root, "cast_tensors", t->cast);
    cli_json_whole(root, "overflowed", t->overflowed);
    cli_json_bool(root, "bound_void", t->cast != 0);
    cli_json_whole(root, "tensors_left_out", t->left_out);
    cli_json_whole(root, "configs_made", t->configs_made);
    cli_json_whole(root, "hashes_made", t->hashes_made);
    cli_json_whole(root, "hashes_dropped", t->hashes_dropped);
}
