/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A map of the tasks' vectors: of the conditions in the archive, one a task, or of samples that the user has
 * beside it (--vectors DIR: TASK.safetensors or TASK.npy, a row a sample).
 */
#ifndef CLI_REPORT_MAP_H
#define CLI_REPORT_MAP_H

#include "report.h"

enum {
    CLI_MAP_POINTS = 1000,      /* more are thinned evenly: the work grows with the square */
    CLI_MAP_LEAST_FOR_TSNE = 8, /* neighbours of fewer mean nothing */
};

typedef struct cli_map_point {
    size_t task; /* index into cli_report.tasks */
    double pca[2], tsne[2];
} cli_map_point;

typedef struct cli_map {
    bool samples;            /* of --vectors; else the archive's conditions */
    cli_map_point *points;   /* task by task; owned */
    size_t count, all, dims; /* all: before thinning */
    size_t tasks;            /* that have points */
    size_t left_out;         /* tasks without a vector, or of another size than most */
    double share[2];         /* of the variance along the principal components */
    bool has_tsne;
    double perplexity, divergence;
    double silhouette; /* mean over the points, in all dimensions; NAN for one point a task */
    double *by_task;   /* one for each of cli_report.tasks, NAN where it has no points; owned */
} cli_map;

/* `folder` NULL: the archive's conditions. Without `places` only what words tell: silhouettes. *map is NULL
 * where there are fewer than 2 points; free it with cli_map_free. */
icma_status cli_map_make(const cli_report *report, const char *folder, bool places, cli_map **map,
                         icma_error *error);
void cli_map_free(cli_map *map); /* NULL is fine */

#endif
