/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include "memory.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct parser {
    const cli_verb *verb;
    char **argv;
    int argc;
    int at; /* the argument being read */
    char *arguments;
    cli_list *operands;
    icma_error *error;
} parser;

size_t cli_edit_distance(const char *a, const char *b) {
    enum { LONGEST = 64 };
    size_t rows[3][LONGEST + 1];
    size_t length_a = strlen(a), length_b = strlen(b);
    if (length_a > LONGEST || length_b > LONGEST)
        return strcmp(a, b) == 0 ? 0 : SIZE_MAX;
    for (size_t j = 0; j <= length_b; j++)
        rows[0][j] = j;
    for (size_t i = 1; i <= length_a; i++) {
        size_t *row = rows[i % 3], *above = rows[(i + 2) % 3], *above2 = rows[(i + 1) % 3];
        row[0] = i;
        for (size_t j = 1; j <= length_b; j++) {
            size_t best = above[j - 1] + (a[i - 1] != b[j - 1]);
            if (above[j] + 1 < best)
                best = above[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && above2[j - 2] + 1 < best)
                best = above2[j - 2] + 1;
            row[j] = best;
        }
    }
    return rows[length_a % 3][length_b];
}

bool cli_is_near(const char *a, const char *b) {
    size_t longest = strlen(a) > strlen(b) ? strlen(a) : strlen(b);
    size_t edits = cli_edit_distance(a, b);
    return edits <= 1 + longest / 4 && edits < longest;
}

const char *cli_look_up(const char *word, const char *list, char between, size_t *length) {
    const char parting[] = {between, '\0'}, ends[] = {between, '=', '\0'};
    size_t wanted = strlen(word);
    for (const char *at = list; at && *at && wanted; at += strspn(at, parting)) {
        size_t item = strcspn(at, parting), name = strcspn(at, ends);
        if (name == wanted && strncmp(at, word, name) == 0) {
            *length = name < item ? item - name - 1 : item;
            return name < item ? at + name + 1 : at;
        }
        at += item;
    }
    return NULL;
}

icma_status cli_list_add(cli_list *list, const char *item, icma_error *error) {
    const char **items = icma_resize_array(list->items, list->count + 1, sizeof *items);
    if (!items)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the arguments");
    items[list->count++] = item;
    list->items = items;
    return ICMA_OK;
}

bool cli_parse_whole(const char *text, uint64_t *value) {
    if (!isdigit((unsigned char)text[0]))
        return false; /* strtoull takes blanks and signs */
    char *end;
    errno = 0;
    unsigned long long parsed = strtoull(text, &end, 10);
    if (errno || *end)
        return false;
    *value = parsed;
    return true;
}

bool cli_parse_real(const char *text, double *value) {
    /* strtod takes hexadecimal, "inf" and blanks too */
    if (!text[0] || strspn(text, "0123456789.eE+-") != strlen(text))
        return false;
    char *end;
    double parsed = strtod(text, &end);
    if (*end || end == text || !isfinite(parsed))
        return false;
    *value = parsed;
    return true;
}

static bool parse_size(const char *text, uint64_t *value) {
    char digits[32];
    size_t length = strspn(text, "0123456789");
    if (length == 0 || length >= sizeof digits)
        return false;
    memcpy(digits, text, length);
    digits[length] = '\0';
    if (!cli_parse_whole(digits, value))
        return false;
    const char *unit = text + length, *found;
    unsigned shift = 0;
    if (*unit && (found = strchr("KMGT", toupper((unsigned char)*unit)))) {
        shift = 10 * (unsigned)(found - "KMGT" + 1);
        unit++;
        if (strcmp(unit, "iB") == 0 || strcmp(unit, "B") == 0)
            unit = "";
    }
    if (*unit || *value > UINT64_MAX >> shift)
        return false;
    *value <<= shift;
    return true;
}

static bool in_range(const cli_option *option, double value) {
    return (option->least == 0 && option->most == 0) || (value >= option->least && value <= option->most);
}

static icma_status refuse_value(const parser *p, const cli_option *option, const char *value,
                                const char *wanted) {
    char range[64] = "";
    if (option->least != 0 || option->most != 0)
        snprintf(range, sizeof range, " from %g to %g", option->least, option->most);
    return icma_fail(p->error, ICMA_E_USAGE, NULL, "--%s takes %s%s, not \"%s\"; see icma %s --help",
                     option->name, wanted, range, value, p->verb->name);
}

/* Stores one option. `value` is NULL for flags only. */
static icma_status store(const parser *p, const cli_option *option, const char *value) {
    void *target = p->arguments + option->target;
    cli_whole whole = {.given = true};
    cli_real real = {.given = true};
    switch (option->kind) {
    case CLI_FLAG:
        *(bool *)target = true;
        break;
    case CLI_TEXT:
        *(const char **)target = value;
        break;
    case CLI_LIST:
        return cli_list_add(target, value, p->error);
    case CLI_WHOLE:
        if (!cli_parse_whole(value, &whole.value) || !in_range(option, (double)whole.value))
            return refuse_value(p, option, value, "a whole number");
        *(cli_whole *)target = whole;
        break;
    case CLI_SIZE:
        if (!parse_size(value, &whole.value))
            return refuse_value(p, option, value, "a size such as 500M or 2G");
        *(cli_whole *)target = whole;
        break;
    case CLI_REAL:
        if (!cli_parse_real(value, &real.value) || !in_range(option, real.value))
            return refuse_value(p, option, value, "a number");
        *(cli_real *)target = real;
        break;
    case CLI_END:
    case CLI_HEADING:
        break;
    }
    return ICMA_OK;
}

/* The option that other programs call so, or whose value this is. */
static icma_status other_name(const parser *p, const char *name, const char *dashes) {
    size_t length, chosen;
    const char *verb = p->verb->name, *meant = cli_look_up(name, p->verb->other_options, ' ', &length);
    for (const cli_option *row = p->verb->options; row->kind != CLI_END; row++) {
        if (row->kind == CLI_HEADING)
            continue;
        if (meant && strlen(row->name) == length && strncmp(meant, row->name, length) == 0)
            return icma_fail(p->error, ICMA_E_USAGE, NULL, "icma %s has no option %s%s; did you mean --%s%s%s? (icma %s --help)", verb, dashes, name, row->name,
                             row->argument ? " " : "", row->argument ? row->argument : "", verb);
        if (name[1] && cli_look_up(name, row->values, '|', &chosen))
            return icma_fail(p->error, ICMA_E_USAGE, NULL, "icma %s has no option %s%s; did you mean --%s %s? (icma %s --help)", verb, dashes, name, row->name, name, verb);
    }
    return ICMA_OK;
}

static icma_status unknown_option(const parser *p, const char *name) {
    const cli_option *nearest = NULL;
    icma_status status = other_name(p, name, "--");
    if (status)
        return status;
    for (const cli_option *row = p->verb->options; row->kind != CLI_END; row++)
        if (row->kind != CLI_HEADING && cli_is_near(name, row->name) &&
            (!nearest || cli_edit_distance(name, row->name) < cli_edit_distance(name, nearest->name)))
            nearest = row;
    if (nearest)
        return icma_fail(p->error, ICMA_E_USAGE, NULL,
                         "icma %s has no option --%s; did you mean --%s? (icma %s --help)", p->verb->name,
                         name, nearest->name, p->verb->name);
    return icma_fail(p->error, ICMA_E_USAGE, NULL, "icma %s has no option --%s; see icma %s --help",
                     p->verb->name, name, p->verb->name);
}

/* The value that follows in argv, for `--name value` and `-o value`. */
static icma_status next_value(parser *p, const cli_option *option, const char **value) {
    if (p->at + 1 >= p->argc)
        return icma_fail(p->error, ICMA_E_USAGE, NULL, "--%s needs a value (%s); see icma %s --help",
                         option->name, option->argument, p->verb->name);
    *value = p->argv[++p->at];
    return ICMA_OK;
}

static icma_status parse_long(parser *p, const char *text) {
    char name[64];
    size_t length = strcspn(text, "=");
    const char *value = text[length] == '=' ? text + length + 1 : NULL;
    snprintf(name, sizeof name, "%.*s", (int)(length < sizeof name ? length : sizeof name - 1), text);
    const cli_option *option = p->verb->options;
    while (option->kind != CLI_END && (option->kind == CLI_HEADING || strcmp(option->name, name) != 0))
        option++;
    if (option->kind == CLI_END || length >= sizeof name)
        return unknown_option(p, name);
    if (!option->argument && value)
        return icma_fail(p->error, ICMA_E_USAGE, NULL, "--%s takes no value; leave out \"=%s\"", name, value);
    if (option->argument && !value) {
        icma_status status = next_value(p, option, &value);
        if (status)
            return status;
    }
    return store(p, option, value);
}

static icma_status parse_letters(parser *p, const char *letters) {
    for (; *letters; letters++) {
        const cli_option *option = p->verb->options;
        while (option->kind != CLI_END && option->letter != *letters)
            option++;
        if (option->kind == CLI_END && other_name(p, (const char[]){*letters, '\0'}, "-"))
            return ICMA_E_USAGE;
        if (option->kind == CLI_END)
            return icma_fail(p->error, ICMA_E_USAGE, NULL, "icma %s has no option -%c; see icma %s --help",
                             p->verb->name, *letters, p->verb->name);
        const char *value = NULL;
        icma_status status = ICMA_OK;
        if (option->argument && letters[1])
            value = letters + 1;
        else if (option->argument)
            status = next_value(p, option, &value);
        if (!status)
            status = store(p, option, value);
        if (status || value)
            return status;
    }
    return ICMA_OK;
}

static icma_status check_operands(const parser *p) {
    const cli_verb *verb = p->verb;
    for (size_t i = 0; i < p->operands->count; i++)
        if (!p->operands->items[i][0])
            return icma_fail(p->error, ICMA_E_USAGE, NULL, "an argument is empty; name a file or folder");
    if (p->operands->count < verb->least_operands)
        return icma_fail(p->error, ICMA_E_USAGE, NULL, "too few arguments; usage: icma %s %s", verb->name,
                         verb->operands);
    if (p->operands->count > verb->most_operands)
        return icma_fail(p->error, ICMA_E_USAGE, NULL, "\"%s\" is one argument too many; %s%susage: icma %s %s",
                         p->operands->items[verb->most_operands], verb->surplus ? verb->surplus : "",
                         verb->surplus ? "; " : "", verb->name, verb->operands);
    return ICMA_OK;
}

icma_status cli_options_parse(const cli_verb *verb, int argc, char **argv, void *arguments,
                              cli_list *operands, icma_error *error) {
    parser p = {.verb = verb, .argv = argv, .argc = argc, .operands = operands, .error = error};
    p.arguments = arguments;
    bool options_end = false;
    for (p.at = 0; p.at < argc; p.at++) {
        const char *text = argv[p.at];
        icma_status status;
        if (options_end || text[0] != '-' || !text[1])
            status = cli_list_add(operands, text, error);
        else if (strcmp(text, "--") == 0) {
            options_end = true;
            continue;
        } else
            status = text[1] == '-' ? parse_long(&p, text + 2) : parse_letters(&p, text + 1);
        if (status)
            return status;
        if (((const cli_common *)arguments)->help)
            return ICMA_OK;
    }
    return check_operands(&p);
}

void cli_options_free(const cli_verb *verb, void *arguments, cli_list *operands) {
    for (const cli_option *row = verb->options; row->kind != CLI_END; row++)
        if (row->kind == CLI_LIST)
            icma_free(((cli_list *)((char *)arguments + row->target))->items);
    icma_free(operands->items);
    *operands = (cli_list){0};
}
