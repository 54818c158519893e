/* SPDX-License-Identifier: Apache-2.0 */
#include "input_names.h"

#include "inputs.h"
#include "memory.h"

#include <string.h>

enum { MAX_STEP_DIGITS = 18 }; /* any number of so many digits fits 64 bits */

/* --- names --------------------------------------------------------------------------------------------- */

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

/* Compares the runs of digits at *a and *b as numbers of any size and steps over them. */
static int compare_numbers(const char **a, const char **b) {
    while (**a == '0')
        ++*a;
    while (**b == '0')
        ++*b;
    const char *x = *a, *y = *b;
    while (is_digit(**a))
        ++*a;
    while (is_digit(**b))
        ++*b;
    size_t x_length = (size_t)(*a - x), y_length = (size_t)(*b - y);
    return x_length != y_length ? (x_length < y_length ? -1 : 1) : memcmp(x, y, x_length);
}

int icma_compare_natural(const char *a, const char *b) {
    const char *x = a, *y = b;
    while (*x && *y) {
        int order;
        if (is_digit(*x) && is_digit(*y)) {
            order = compare_numbers(&x, &y);
        } else {
            order = (unsigned char)*x - (unsigned char)*y;
            x++;
            y++;
        }
        if (order != 0)
            return order;
    }
    if (*x || *y)
        return *x ? 1 : -1;
    return strcmp(a, b);
}

static bool has_prefix(const char *text, const char *prefix) {
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

bool icma_name_ends_with(const char *text, const char *suffix) {
    size_t length = strlen(text), tail = strlen(suffix);
    return length >= tail && strcmp(text + length - tail, suffix) == 0;
}

/* All of `digits` as a step. */
static bool parse_step(const char *digits, size_t length, uint64_t *step) {
    if (length == 0 || length > MAX_STEP_DIGITS)
        return false;
    uint64_t value = 0;
    for (size_t i = 0; i < length; i++) {
        if (!is_digit(digits[i]))
            return false;
        value = value * 10 + (uint64_t)(digits[i] - '0');
    }
    *step = value;
    return true;
}

bool icma_name_checkpoint(const char *name, uint64_t *step) {
    static const char prefix[] = "checkpoint-";
    return has_prefix(name, prefix) &&
           parse_step(name + sizeof prefix - 1, strlen(name) - sizeof prefix + 1, step);
}

size_t icma_name_stem(const char *stem, size_t length, bool *has_step, uint64_t *step) {
    static const char word[] = "step";
    const size_t word_length = sizeof word - 1, epoch_digits = 6, toolkit_digits = 9;
    size_t dash = length;
    if (length > toolkit_digits + 1 && stem[length - toolkit_digits - 1] == '_' &&
        parse_step(stem + length - toolkit_digits, toolkit_digits, step)) {
        *has_step = true;
        return length - toolkit_digits - 1;
    }
    while (dash > 0 && stem[dash - 1] != '-')
        dash--;
    const char *tail = stem + dash;
    size_t tail_length = length - dash;
    *has_step = false;
    if (dash == 0)
        return length;
    if (tail_length > word_length && memcmp(tail, word, word_length) == 0)
        *has_step = parse_step(tail + word_length, tail_length - word_length, step);
    else if (tail_length == epoch_digits)
        *has_step = parse_step(tail, tail_length, step);
    return *has_step ? dash - 1 : length;
}

static bool is_listed(const char *name, const char *const *list,
                      bool (*matches)(const char *, const char *)) {
    for (; *list; list++)
        if (matches(name, *list))
            return true;
    return false;
}

bool icma_name_is_folder_adapter(const char *name) {
    return strcmp(name, "adapter_model.safetensors") == 0 ||
           strcmp(name, "pytorch_lora_weights.safetensors") == 0;
}

bool icma_name_is_condition(const char *name) {
    return strcmp(name, "task_vector.safetensors") == 0 || strcmp(name, "task_vector.npy") == 0;
}

bool icma_name_is_helper(const char *name) {
    static const char *const prefixes[] = {"optimizer.",
                                           "optimizer_",
                                           "scheduler.",
                                           "rng_state",
                                           "random_states",
                                           "scaler.",
                                           "training_args.",
                                           "trainer_state.",
                                           "trainer_log.",
                                           "tokenizer.",
                                           "tokenizer_",
                                           "special_tokens_",
                                           "added_tokens.",
                                           "vocab.",
                                           "merges.",
                                           "chat_template.",
                                           "preprocessor_",
                                           "processor_config.",
                                           "all_results.",
                                           "train_results.",
                                           "eval_results.",
                                           "zero_pp_rank_",
                                           "bf16_zero_pp_rank_",
                                           "mp_rank_",
                                           "generation_config.",
                                           "pytorch_model_fsdp",
                                           "model.safetensors.index.",
                                           "adapter_model.safetensors.index.",
                                           "sentencepiece.",
                                           NULL};
    return is_listed(name, prefixes, has_prefix);
}

bool icma_name_is_pickle(const char *name) {
    static const char *const suffixes[] = {".bin", ".pt", ".pth", ".ckpt", NULL};
    return is_listed(name, suffixes, icma_name_ends_with);
}

bool icma_name_is_side(const char *name) {
    static const char *const suffixes[] = {".json", ".md", ".txt", NULL};
    return is_listed(name, suffixes, icma_name_ends_with) && !icma_name_is_helper(name);
}

size_t icma_name_archive_stem(const char *name) {
    static const char *const suffixes[] = {".tar",     ".tar.gz", ".tgz",     ".tar.xz", ".txz",
                                           ".tar.zst", ".tzst",   ".tar.bz2", ".tbz2",   ".zip",
                                           ".7z",      ".rar",    NULL};
    size_t length = strlen(name);
    for (const char *const *suffix = suffixes; *suffix; suffix++)
        if (length > strlen(*suffix) && icma_name_ends_with(name, *suffix))
            return length - strlen(*suffix);
    return length;
}

bool icma_name_is_archive(const char *name) {
    return icma_name_archive_stem(name) < strlen(name);
}

/* --- paths --------------------------------------------------------------------------------------------- */

char *icma_path_join(const char *folder, const char *name) {
    size_t length = strlen(folder), name_size = strlen(name) + 1;
    bool slash = length > 0 && folder[length - 1] != '/';
    char *path = icma_alloc(length + slash + name_size);
    if (!path)
        return NULL;
    memcpy(path, folder, length);
    if (slash)
        path[length] = '/';
    memcpy(path + length + slash, name, name_size);
    return path;
}

const char *icma_path_last(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

char *icma_path_parent(const char *path) {
    const char *name = icma_path_last(path);
    if (name == path)
        return icma_copy_string(".");
    size_t length = (size_t)(name - path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    return icma_copy_text(path, length);
}
