/* SPDX-License-Identifier: Apache-2.0 */
#include "report_map.h"

#include "memory.h"
#include "message.h"
#include "points.h"
#include "progress.h"
#include "sample_file.h"
#include "signals.h"
#include "sort.h"
#include "tsne.h"

#include <math.h>
#include <string.h>
#include <sys/stat.h>

enum { MOST_NUMBERS = 1 << 26 }; /* of one file */

/* Rows of numbers, task after task. */
typedef struct table {
    float *values; /* owned */
    size_t *task;  /* of each row; owned */
    size_t count, dims;
} table;

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for a map of the vectors");
}

static void table_free(table *t) {
    icma_free(t->values);
    icma_free(t->task);
}

/* --- thinning ------------------------------------------------------------------------------------------ */

/* Of `all` rows, evenly, the so manyth that is kept: whether row `index` is one of at most `most`. */
static bool is_kept(size_t index, size_t all, size_t most) {
    return all <= most || index * most / all != (index + 1) * most / all;
}

static icma_status add_row(table *t, const float *row, size_t task, icma_error *error) {
    float *values = icma_resize_array(t->values, (t->count + 1) * t->dims, sizeof *values);
    if (values)
        t->values = values;
    size_t *tasks = icma_resize_array(t->task, t->count + 1, sizeof *tasks);
    if (tasks)
        t->task = tasks;
    if (!values || !tasks)
        return no_memory(error);
    memcpy(values + t->count * t->dims, row, t->dims * sizeof *values);
    tasks[t->count++] = task;
    return ICMA_OK;
}

/* --- where vectors come from --------------------------------------------------------------------------- */

static int compare_sizes(const void *a, const void *b, const void *context) {
    size_t x = *(const size_t *)a, y = *(const size_t *)b;
    (void)context;
    return x < y ? -1 : x > y;
}

/* The size that most conditions have, of equal ones the larger; 0 without any. Vectors of others are not
 * comparable. */
static icma_status usual_size(const cli_report *r, size_t *out, icma_error *error) {
    size_t *sizes = icma_alloc_array(r->task_count + 1, sizeof *sizes), count = 0, most = 0;
    *out = 0;
    if (!sizes)
        return no_memory(error);
    for (size_t i = 0; i < r->task_count; i++)
        if (r->tasks[i].condition_size)
            sizes[count++] = r->tasks[i].condition_size;
    if (count)
        icma_sort(sizes, count, sizeof *sizes, compare_sizes, NULL);
    for (size_t first = 0, next; first < count; first = next) {
        for (next = first; next < count && sizes[next] == sizes[first]; next++)
            ;
        if (next - first >= most) {
            most = next - first;
            *out = sizes[first];
        }
    }
    icma_free(sizes);
    return ICMA_OK;
}

static icma_status take_conditions(const cli_report *r, cli_map *map, table *t, icma_error *error) {
    icma_status status = usual_size(r, &t->dims, error);
    for (size_t i = 0; i < r->task_count; i++)
        map->all += t->dims && r->tasks[i].condition_size == t->dims;
    map->left_out = r->task_count - map->all;
    size_t seen = 0;
    for (size_t i = 0; !status && i < r->task_count; i++)
        if (t->dims && r->tasks[i].condition_size == t->dims && is_kept(seen++, map->all, CLI_MAP_POINTS))
            status = add_row(t, r->tasks[i].condition, i, error);
    return status;
}

/* folder/task + ending; NULL without memory. */
static char *path_of(const char *folder, const char *task, const char *ending) {
    size_t size = strlen(folder) + strlen(task) + strlen(ending) + 2;
    char *path = icma_alloc(size);
    if (path)
        snprintf(path, size, "%s/%s%s", folder, task, ending);
    return path;
}

/* The task's file, or NULL. */
static icma_status find_file(const char *folder, const char *task, char **path, icma_error *error) {
    static const char *const endings[] = {".safetensors", ".npy"};
    struct stat info;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        *path = path_of(folder, task, endings[i]);
        if (!*path)
            return no_memory(error);
        if (stat(*path, &info) == 0)
            return ICMA_OK;
        icma_free(*path);
        *path = NULL;
    }
    return ICMA_OK;
}

/* The task's samples, thinned to its part of the points. */
static icma_status take_file(const cli_report *r, size_t task, const char *path, cli_map *map, table *t,
                             icma_error *error) {
    float *values;
    size_t rows, columns, most = CLI_MAP_POINTS / r->task_count;
    icma_status status = icma_samples_read(path, MOST_NUMBERS, &values, &rows, &columns, error);
    if (status)
        return status;
    t->dims = t->dims ? t->dims : columns;
    if (columns != t->dims)
        status = icma_fail(
            error, ICMA_E_UNSUPPORTED, path,
            "vectors of %zu numbers, where those of other tasks have %zu; give vectors of one encoder",
            columns, t->dims);
    map->all += rows;
    for (size_t i = 0; !status && i < rows; i++)
        if (is_kept(i, rows, most ? most : 1))
            status = add_row(t, values + i * columns, task, error);
    icma_free(values);
    return status;
}

static icma_status take_samples(const cli_report *r, const char *folder, cli_map *map, table *t,
                                icma_error *error) {
    icma_status status = ICMA_OK;
    for (size_t i = 0; !status && i < r->task_count; i++) {
        char *path;
        if (!is_kept(i, r->task_count, CLI_MAP_POINTS)) /* of thousands of tasks, evenly */
            continue;
        status = find_file(folder, r->tasks[i].name, &path, error);
        if (!status && path)
            status = take_file(r, i, path, map, t, error);
        else if (!status && map->left_out++ == 0)
            cli_warning(folder, "no vectors of task \"%s\": neither %s.safetensors nor .npy is there",
                        r->tasks[i].name, r->tasks[i].name);
        icma_free(path);
        if (!status)
            status = cli_check_signal(error);
    }
    if (!status && map->left_out > 1)
        cli_warning(folder, "%zu tasks have no vectors there", map->left_out);
    if (!status && t->count == 0)
        status = icma_fail(error, ICMA_E_NOT_FOUND, folder,
                           "no vectors of any task; it holds TASK.safetensors or TASK.npy, a row a sample");
    return status;
}

/* --- the map ------------------------------------------------------------------------------------------- */

static icma_status check_step(void *context, double done, icma_error *error) {
    (void)context;
    cli_progress_show("map", done, 1, NULL, NULL);
    return cli_check_signal(error);
}

static icma_status lay_out(cli_map *map, const double *squares, icma_error *error) {
    double *pca = NULL, *tsne = icma_alloc_array(map->count, 2 * sizeof *tsne);
    icma_status status =
        tsne ? icma_points_pca(squares, map->count, 2, icma_ops_cpu(), &pca, map->share, error)
             : no_memory(error);
    map->has_tsne = map->count >= CLI_MAP_LEAST_FOR_TSNE;
    if (!status && map->has_tsne) {
        icma_tsne_options o = icma_tsne_defaults();
        o.check = check_step;
        status = icma_tsne(squares, map->count, pca, &o, tsne, &map->perplexity, &map->divergence, error);
    }
    for (size_t i = 0; !status && i < map->count; i++)
        for (size_t axis = 0; axis < 2; axis++) {
            map->points[i].pca[axis] = pca[2 * i + axis];
            map->points[i].tsne[axis] = map->has_tsne ? tsne[2 * i + axis] : NAN;
        }
    icma_free(pca);
    icma_free(tsne);
    return status;
}

/* One point a task has no cluster to be in. */
static icma_status judge(const cli_report *r, cli_map *map, const table *t, const double *squares,
                         icma_error *error) {
    map->silhouette = NAN;
    map->by_task = icma_alloc_array(r->task_count + 1, sizeof *map->by_task);
    if (!map->by_task)
        return no_memory(error);
    for (size_t i = 0; i < r->task_count; i++)
        map->by_task[i] = NAN;
    for (size_t i = 0; i < t->count; i++)
        map->tasks += i == 0 || t->task[i] != t->task[i - 1];
    if (map->tasks == t->count)
        return ICMA_OK;
    return icma_points_silhouette(squares, t->count, t->task, r->task_count, NULL, map->by_task,
                                  &map->silhouette, error);
}

static icma_status fill(const cli_report *r, const table *t, bool places, cli_map *map, icma_error *error) {
    double *squares;
    map->count = t->count;
    map->dims = t->dims;
    map->points = icma_alloc_zeroed(t->count, sizeof *map->points);
    if (!map->points)
        return no_memory(error);
    for (size_t i = 0; i < t->count; i++)
        map->points[i].task = t->task[i];
    icma_status status = icma_points_distances(t->values, t->count, t->dims, &squares, error);
    if (status)
        return status;
    status = judge(r, map, t, squares, error);
    if (!status && places)
        status = lay_out(map, squares, error);
    icma_free(squares);
    return status;
}

void cli_map_free(cli_map *map) {
    if (!map)
        return;
    icma_free(map->points);
    icma_free(map->by_task);
    icma_free(map);
}

icma_status cli_map_make(const cli_report *r, const char *folder, bool places, cli_map **out,
                         icma_error *error) {
    table t = {0};
    *out = NULL;
    cli_map *map = icma_alloc_zeroed(1, sizeof *map);
    icma_status status = map ? ICMA_OK : no_memory(error);
    if (!status) {
        map->samples = folder != NULL;
        status = folder ? take_samples(r, folder, map, &t, error) : take_conditions(r, map, &t, error);
    }
    if (!status && t.count >= 2)
        status = fill(r, &t, places, map, error);
    if (status || t.count < 2)
        cli_map_free(map);
    else
        *out = map;
    table_free(&t);
    return status;
}
