/* SPDX-License-Identifier: Apache-2.0 */
/* Where files of adapters lie in a tree: told by what was packed, remembered in the record (spec 4.9), else
 * guessed. */
#include "layout_place.h"
#include "input_names.h"

#include "layout_inside.h"
#include "memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EPOCH_DIGITS = 6, STEP_DIGITS = 8, MOST_DIGITS = 18 };

static const uint64_t epochs_end = 1000000;
static const char folder_model[] = "adapter_model.safetensors",
                  diffusers_model[] = "pytorch_lora_weights.safetensors", suffix[] = ".safetensors";

static const char *const form_names[] = {
    [ICMA_FORM_PEFT] = "peft", [ICMA_FORM_DIFFUSERS] = "diffusers", [ICMA_FORM_PLAIN] = "plain"};

const char *icma_file_form_name(icma_file_form form) {
    return form_names[form];
}

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a file's name");
}

/* "<task>.safetensors", "<task>-000010.safetensors", "<task>-step00000010.safetensors". */
static void print_plain(const icma_file_naming *naming, const char *task, bool has_step, uint64_t step,
                        icma_buffer *out) {
    char text[48] = "";
    bool by_step = naming->by_step || step >= epochs_end;
    if (has_step && by_step)
        snprintf(text, sizeof text, "-step%0*" PRIu64, naming->digits ? (int)naming->digits : STEP_DIGITS,
                 step);
    else if (has_step)
        snprintf(text, sizeof text, "-%0*" PRIu64, EPOCH_DIGITS, step);
    icma_write_bytes(out, task, strlen(task));
    icma_write_bytes(out, text, strlen(text));
    icma_write_bytes(out, suffix, sizeof suffix);
}

bool icma_file_naming_of(const char *path, const char *task, bool has_step, uint64_t step,
                         icma_file_naming *out) {
    const char *name = icma_path_last(path), *word;
    icma_buffer made = {0};
    *out = (icma_file_naming){ICMA_FORM_PEFT, false, 0};
    if (strcmp(name, folder_model) == 0)
        return true;
    out->form = ICMA_FORM_DIFFUSERS;
    if (strcmp(name, diffusers_model) == 0)
        return true;
    out->form = ICMA_FORM_PLAIN;
    word = name + (strlen(name) > strlen(task) ? strlen(task) : strlen(name));
    out->by_step = has_step && strncmp(word, "-step", 5) == 0;
    out->digits = out->by_step ? (unsigned)strspn(word + 5, "0123456789") : 0;
    if (out->digits > MOST_DIGITS)
        return false;
    print_plain(out, task, has_step, step, &made);
    bool same = !made.failed && strcmp((const char *)made.data, name) == 0;
    icma_buffer_free(&made);
    return same;
}

bool icma_file_naming_from_record(const char *record, icma_file_naming *out) {
    icma_json_rules rules = {.max_depth = 32, .plain_integers = false};
    cJSON *root = NULL;
    bool found = false;
    if (!record || icma_json_parse(record, strlen(record), rules, &root, NULL))
        return false;
    const cJSON *files = cJSON_GetObjectItemCaseSensitive(root, "files"),
                *form = cJSON_GetObjectItemCaseSensitive(files, "form");
    const cJSON *digits = cJSON_GetObjectItemCaseSensitive(files, "step_digits");
    uint64_t count = 0;
    for (int f = ICMA_FORM_PEFT; cJSON_IsString(form) && f <= ICMA_FORM_PLAIN; f++)
        if (strcmp(form->valuestring, form_names[f]) == 0) {
            *out = (icma_file_naming){.form = (icma_file_form)f};
            found = true;
        }
    if (found && icma_json_whole(digits, &count) && count >= 1 && count <= MOST_DIGITS) {
        out->by_step = true;
        out->digits = (unsigned)count;
    }
    cJSON_Delete(root);
    return found;
}

static bool says(const icma_metadata *metadata, const char *key, uint64_t value) {
    const char *text = icma_metadata_find(metadata, key);
    char *end;
    return text && text[0] >= '0' && text[0] <= '9' && strtoull(text, &end, 10) == value && !*end;
}

icma_status icma_file_naming_guess(const icma_decoded *header, bool has_step, uint64_t step,
                                   icma_file_naming *out, icma_error *error) {
    icma_safetensors tensors;
    icma_metadata metadata = {0};
    icma_component component = ICMA_COMPONENT_NONE;
    *out = (icma_file_naming){.form = ICMA_FORM_PEFT};
    if (icma_config_find(header))
        return ICMA_OK;
    icma_status status = icma_layout_parse_header(header, &tensors, error);
    if (status)
        return status;
    status = icma_metadata_read(tensors.header, tensors.header_size, &metadata, error);
    for (size_t t = 0; t < tensors.tensor_count; t++) {
        const char *name = tensors.tensors[t].name;
        if (icma_flat_prefix(name, strlen(name), &component))
            out->form = ICMA_FORM_PLAIN;
        else if (icma_dotted_prefix(name, strlen(name), &component) && out->form == ICMA_FORM_PEFT)
            out->form = ICMA_FORM_DIFFUSERS;
    }
    if (header->file_count && out->form == ICMA_FORM_PLAIN)
        out->form = ICMA_FORM_PEFT; /* plain files have nothing beside them: it had a folder */
    out->by_step = has_step && !says(&metadata, "ss_epoch", step) && says(&metadata, "ss_steps", step);
    icma_metadata_free(&metadata);
    icma_safetensors_free(&tensors);
    return status;
}

icma_status icma_file_place(const icma_file_naming *naming, const char *task, bool has_step, uint64_t step,
                            bool in_tree, char **folder, char **name, icma_error *error) {
    icma_buffer file = {0}, place = {0};
    char text[40];
    if (naming->form == ICMA_FORM_PLAIN) {
        print_plain(naming, task, has_step, step, &file);
        icma_write_u8(&place, 0);
    } else {
        text[0] = '\0';
        if (in_tree && has_step)
            snprintf(text, sizeof text, "/checkpoint-%" PRIu64, step);
        icma_write_bytes(&place, task, strlen(task));
        icma_write_bytes(&place, text, strlen(text) + 1);
        const char *model = naming->form == ICMA_FORM_PEFT ? folder_model : diffusers_model;
        icma_write_bytes(&file, model, strlen(model) + 1);
    }
    *folder = place.failed ? NULL : icma_copy_string((const char *)place.data);
    *name = file.failed ? NULL : icma_copy_string((const char *)file.data);
    icma_buffer_free(&file);
    icma_buffer_free(&place);
    if (*folder && *name)
        return ICMA_OK;
    icma_free(*folder);
    icma_free(*name);
    *folder = *name = NULL;
    return no_memory(error);
}
