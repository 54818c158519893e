/* SPDX-License-Identifier: Apache-2.0 */
/* icma verify: checksums; --deep decodes everything; --against compares with the originals. */
#include "facts.h"
#include "measure.h"
#include "memory.h"
#include "message.h"
#include "progress.h"
#include "sandbox.h"
#include "signals.h"
#include "source.h"
#include "verbs.h"

#include <inttypes.h>
#include <string.h>

typedef struct verify_arguments {
    cli_common common;
    cli_finding finding;
    cli_decoding decoding;
    const char *against;
    bool deep;
} verify_arguments;

#define AT(field) offsetof(verify_arguments, field)

static const cli_option verify_options[] = {
    CLI_ROW_FLAG(0, "deep", AT(deep),
                 "decode every checkpoint and compare its checksum; with\n"
                 "--against also the largest element of each dW difference"),
    CLI_ROW(CLI_TEXT, 0, "against", "DIR", AT(against), "compare with the original adapters below DIR, or in an\narchive"),
    CLI_ROWS_FINDING(verify_arguments, finding),
    CLI_ROWS_DECODING(verify_arguments, decoding),
    CLI_ROW_QUIET,
    CLI_ROW_VERBOSE("what is read, and how; with --against every checkpoint"),
    CLI_ROW_JSON,
    CLI_ROW_NO_PROGRESS,
    CLI_ROW_NO_COLOR,
    CLI_ROW_HELP,
    CLI_ROW_END,
};

typedef struct verification {
    const verify_arguments *a;
    icma_bundle *bundle;
    const char *path;
    size_t sections, damaged_sections;
    size_t stored; /* checkpoints, to be decoded */
    size_t decoded, damaged_checkpoints;
    bool *damaged;                              /* a flag a section; owned */
    size_t tasks_whole, survivors, checkpoints; /* after damage */
    cJSON *damage, *losses;                     /* arrays, or NULL */
} verification;

/* Names one piece of damage and goes on. */
static void note_damage(verification *v, const char *what, const icma_error *detail) {
    icma_error told = *detail;
    snprintf(told.message, sizeof told.message, "%.100s: %.400s", what, detail->message);
    snprintf(told.file, sizeof told.file, "%s", v->path);
    cli_error(&told);
    if (!v->damage)
        return;
    cJSON *object = cli_json_add_object(v->damage, NULL);
    cli_json_text(object, "where", what);
    cli_json_text(object, "message", detail->message);
}

static void describe_section(const verification *v, size_t index, char *text, size_t size) {
    icma_section_info section = icma_bundle_section(v->bundle, index);
    int used = snprintf(text, size, "section %zu (kind %s", index, section.kind);
    if (section.task != UINT32_MAX)
        snprintf(text + used, size - (size_t)used, ", task %.60s)",
                 icma_bundle_task_name(v->bundle, section.task));
    else
        snprintf(text + used, size - (size_t)used, ")");
}

static bool is_damage(icma_status status) {
    return status == ICMA_E_CORRUPT || status == ICMA_E_FORMAT;
}

static icma_status check_sections(verification *v, icma_error *error) {
    double bytes = (double)icma_bundle_bytes(v->bundle).total, done = 0;
    v->sections = icma_bundle_section_count(v->bundle);
    v->damaged = icma_alloc_zeroed(v->sections + 1, sizeof *v->damaged);
    if (!v->damaged)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory to check it");
    for (size_t i = 0; i < v->sections; i++) {
        icma_error detail = {0};
        char what[128];
        cli_progress_show("check", done, bytes, "bytes", NULL);
        done += (double)icma_bundle_section(v->bundle, i).stored_size;
        icma_status status = cli_check_signal(error);
        if (status)
            return status;
        status = icma_bundle_check_section(v->bundle, i, &detail);
        if (is_damage(status)) {
            describe_section(v, i, what, sizeof what);
            note_damage(v, what, &detail);
            v->damaged[i] = true;
            v->damaged_sections++;
        } else if (status) {
            *error = detail;
            return status;
        }
    }
    return ICMA_OK;
}

static icma_status decode_task(verification *v, size_t task, icma_error *error) {
    icma_task_info info = {0};
    icma_error detail = {0};
    char what[128];
    icma_status status = icma_bundle_task(v->bundle, task, &info, &detail);
    if (is_damage(status)) {
        snprintf(what, sizeof what, "task %.60s", icma_bundle_task_name(v->bundle, task));
        note_damage(v, what, &detail);
        v->damaged_checkpoints++;
        return ICMA_OK;
    }
    /* Backwards: lossless checkpoints are predicted from those that follow. */
    for (size_t i = info.checkpoint_count; !status && i-- > 0;) {
        icma_decoded decoded;
        detail = (icma_error){0};
        cli_progress_show("decode", (double)(v->decoded + v->damaged_checkpoints), (double)v->stored,
                          "checkpoints", info.name);
        status = cli_check_signal(&detail);
        if (!status)
            status = cli_bundle_decode(v->bundle, task, i, &decoded, &detail);
        if (!status)
            icma_decoded_free(&decoded);
        v->decoded += status == ICMA_OK;
        if (is_damage(status)) {
            const icma_checkpoint_info *checkpoint = &info.checkpoints[i];
            snprintf(what, sizeof what, "%.60s/%s", info.name,
                     cli_checkpoint_name(checkpoint->has_step, checkpoint->step).text);
            note_damage(v, what, &detail);
            v->damaged_checkpoints++;
            status = ICMA_OK;
        }
    }
    if (status)
        *error = detail;
    return status;
}

static icma_status decode_all(verification *v, icma_error *error) {
    size_t tasks = icma_bundle_task_count(v->bundle);
    v->stored = cli_bundle_checkpoints(v->bundle);
    for (size_t i = 0; i < tasks; i++) {
        icma_status status = decode_task(v, i, error);
        if (status)
            return status;
        icma_bundle_forget_task(v->bundle, i);
    }
    return ICMA_OK;
}

/* --- what survives -----------------------------------------------------------------------------------------
 */

/* "10, 20, final": the checkpoints that `flags` marks. */
static char *name_checkpoints(const icma_task_info *info, const bool *flags) {
    icma_buffer text = {0};
    for (size_t i = 0; i < info->checkpoint_count; i++)
        if (flags[i] && info->checkpoints[i].has_step)
            cli_append(&text, "%s%" PRIu64, text.size ? ", " : "", info->checkpoints[i].step);
        else if (flags[i])
            cli_append(&text, "%sfinal", text.size ? ", " : "");
    char *names = text.failed ? NULL : icma_copy_text((const char *)text.data, text.size);
    icma_buffer_free(&text);
    return names;
}

static void losses_to_json(verification *v, const char *task, size_t count, const icma_task_info *info,
                           const bool *lost) {
    cJSON *object = cli_json_add_object(v->losses, NULL);
    cli_json_text(object, "task", task);
    cli_json_bool(object, "all", !lost);
    cli_json_whole(object, "checkpoints", count);
    cJSON *steps = cli_json_add_array(object, "lost");
    for (size_t i = 0; lost && i < count; i++)
        if (lost[i]) {
            cJSON *step = cli_json_add_object(steps, NULL);
            if (info->checkpoints[i].has_step)
                cli_json_whole(step, "step", info->checkpoints[i].step);
            else
                cli_json_null(step, "step");
        }
}

static icma_status tell_losses_of(verification *v, size_t task, icma_error *error) {
    bool *lost;
    size_t count, gone = 0;
    icma_task_info info = {0};
    icma_error ignored = {0};
    const char *name = icma_bundle_task_name(v->bundle, task);
    icma_status status = icma_bundle_losses(v->bundle, task, v->damaged, &lost, &count, error);
    if (status)
        return status;
    if (lost && icma_bundle_task(v->bundle, task, &info, &ignored) == ICMA_OK)
        for (size_t i = 0; i < count; i++)
            gone += lost[i];
    else
        gone = count;
    v->checkpoints += count;
    v->survivors += count - gone;
    v->tasks_whole += gone == 0;
    char *names = lost ? name_checkpoints(&info, lost) : NULL;
    if (gone == count)
        cli_warning(v->path, "task \"%s\" is lost: %s %zu checkpoint%s", name, count == 1 ? "its" : "all",
                    count, cli_plural(count));
    else if (gone)
        cli_warning(v->path, "task \"%s\" has lost %zu of %zu checkpoints: %s", name, gone, count,
                    names ? names : "?");
    if (gone && v->losses)
        losses_to_json(v, name, count, &info, gone == count ? NULL : lost);
    icma_free(names);
    icma_free(lost);
    icma_bundle_forget_task(v->bundle, task);
    return ICMA_OK;
}

static icma_status tell_losses(verification *v, icma_error *error) {
    icma_status status = ICMA_OK;
    for (size_t i = 0; !status && i < icma_bundle_task_count(v->bundle); i++)
        status = tell_losses_of(v, i, error);
    return status;
}

/* --- what is told ----------------------------------------------------------------------------------------
 */

static void print_verdict(const verification *v) {
    bool bad = v->damaged_sections || v->damaged_checkpoints;
    cli_print_safe(stdout, v->path);
    printf(": %s%s%s", cli_style(stdout, bad ? CLI_RED : CLI_GREEN), bad ? "damaged" : "intact",
           cli_style(stdout, CLI_PLAIN));
    if (v->damaged_sections)
        printf("; %zu of %zu sections do not match their checksums", v->damaged_sections, v->sections);
    else
        printf("; all %zu sections match their checksums", v->sections);
    if (v->damaged_sections)
        printf("; %zu of %zu tasks and %zu of %zu checkpoints survive", v->tasks_whole,
               icma_bundle_task_count(v->bundle), v->survivors, v->checkpoints);
    if (v->a->deep && v->damaged_checkpoints)
        printf("; %zu checkpoint%s decoded, the others could not be", v->decoded, cli_plural(v->decoded));
    else if (v->a->deep)
        printf("; all %zu checkpoint%s decode to the packed bits", v->decoded, cli_plural(v->decoded));
    putchar('\n');
}

static icma_status tell(const verification *v, const cli_measure *measure, cJSON *root, icma_error *error) {
    if (v->a->common.json) {
        cli_json_whole(root, "sections", v->sections);
        cli_json_whole(root, "damaged_sections", v->damaged_sections);
        if (v->damaged_sections) {
            cli_json_whole(root, "surviving_tasks", v->tasks_whole);
            cli_json_whole(root, "surviving_checkpoints", v->survivors);
        } else {
            cli_json_null(root, "surviving_tasks");
            cli_json_null(root, "surviving_checkpoints");
        }
        cli_json_bool(root, "deep", v->a->deep);
        cli_json_whole(root, "decoded_checkpoints", v->decoded);
        cli_json_whole(root, "damaged_checkpoints", v->damaged_checkpoints);
        cli_json_bool(root, "intact", !v->damaged_sections && !v->damaged_checkpoints);
        if (measure)
            cli_measure_to_json(measure, root);
        else
            cli_json_null(root, "against");
        return cli_json_print(root, stdout, error);
    }
    if (v->a->common.quiet)
        return ICMA_OK;
    print_verdict(v);
    if (!measure)
        return ICMA_OK;
    putchar('\n');
    icma_status status = cli_measure_print(measure, stdout, error);
    if (status || !v->a->common.verbose)
        return status;
    putchar('\n');
    return cli_measure_print_checkpoints(measure, stdout, error);
}

static icma_status verdict(const verification *v, const cli_measure *measure, icma_error *error) {
    if (v->damaged_sections || v->damaged_checkpoints || (measure && measure->damaged))
        return ICMA_E_CORRUPT; /* each piece was named */
    if (measure && measure->worse)
        return icma_fail(error, ICMA_E_BOUND, v->path,
                         "%zu checkpoint%s differ%s more from the originals than when packed; "
                         "are these the files that were packed?",
                         measure->worse, cli_plural(measure->worse), measure->worse == 1 ? "s" : "");
    return measure && (measure->unmatched || measure->skipped) ? ICMA_E_PARTIAL : ICMA_OK;
}

static icma_status verify_bundle(verification *v, icma_error *error) {
    cli_measure measure = {.deep = v->a->deep, .finding = &v->a->finding};
    cJSON *root = NULL;
    if (v->a->common.json) {
        root = cli_json_object();
        cli_json_text(root, "bundle", v->path);
        v->damage = cli_json_add_array(root, "damage");
        v->losses = cli_json_add_array(root, "losses");
    }
    icma_status status = check_sections(v, error);
    if (!status && v->damaged_sections)
        status = tell_losses(v, error);
    if (!status && v->a->deep)
        status = decode_all(v, error);
    if (!status && v->a->against)
        status = cli_measure_bundle(v->bundle, v->path, v->a->against, &measure, error);
    cli_progress_clear();
    if (status)
        cJSON_Delete(root);
    else
        status = tell(v, v->a->against ? &measure : NULL, root, error);
    if (!status)
        status = verdict(v, v->a->against ? &measure : NULL, error);
    cli_measure_free(&measure);
    return status;
}

static icma_status run_verify(const void *arguments, const cli_list *operands, icma_error *error) {
    verification v = {.a = arguments};
    char *path;
    if (v.a->against)
        cli_finding_prepare(&v.a->finding);
    cli_sandbox_want(v.a->common.verbose);
    icma_status status = cli_bundle_open(operands, &v.a->decoding, &v.bundle, &path, error);
    v.path = path;
    if (!status) {
        cli_bundle_explain(v.bundle, path, &v.a->decoding);
        if (!v.a->decoding.device && !v.a->decoding.scalar)
            cli_detail("device", "cpu: in the sandbox there is no GPU; --device cuda leaves the sandbox");
        status = verify_bundle(&v, error);
    }
    if (status)
        icma_error_set_file(error, path);
    icma_bundle_close(v.bundle);
    icma_free(v.damaged);
    icma_free(path);
    cli_finding_done();
    return status;
}

const cli_verb cli_verb_verify = {
    .name = "verify",
    .purpose = CLI_LOOKS,
    .alias = "test",
    .also = "check validate fsck",
    .surplus = "originals to compare with are --against DIR",
    .operands = "[B.icma]",
    .summary = "check an archive, or compare it with the originals",
    .description =
        "Compares the checksum of every section. With --deep it decodes every checkpoint too, and with\n"
        "--against it measures how far each is from its original. Damage is named piece by piece, and\n"
        "so are the adapters that are lost with it; unpack --keep-going brings out the others. It reads\n"
        "in a sandbox, which a GPU's driver does not fit in: --device auto is the CPU here.",
    .options = verify_options,
    .examples = (const char *const[]){"icma verify loras.icma", "checksums only: fast",
                                      "icma verify loras.icma --deep --against loras",
                                      "decode everything, compare with the originals", NULL},
    .exits = (const int[]){0, 1, 2, 3, 4, 5, 6, 7, 9, 10, -1},
    .most_operands = 1,
    .arguments_size = sizeof(verify_arguments),
    .run = run_verify,
};
