/* SPDX-License-Identifier: Apache-2.0 */
#include "estimate.h"

#include <math.h>

static const double memory = 8;       /* seconds, after which a rate counts 1/e */
static const double shortest = 0.1;   /* that a sample is worth */
static const double before_words = 1; /* of experience, before anything is said */

void cli_estimate_start(cli_estimate *e, double now, double done) {
    *e = (cli_estimate){.started = now, .first = done, .changed = now, .done = done};
}

void cli_estimate_update(cli_estimate *e, double now, double done) {
    double seconds = now - e->changed;
    if (done < e->done)
        cli_estimate_start(e, now, done);
    if (done <= e->done || seconds < shortest)
        return;
    double decay = exp(-seconds / memory);
    e->mean = e->mean * decay + (done - e->done) / seconds * (1 - decay);
    e->weight = e->weight * decay + 1 - decay;
    e->lump = seconds;
    e->changed = now;
    e->done = done;
    e->samples++;
}

double cli_estimate_rate(const cli_estimate *e, double now) {
    double waited = now - e->changed;
    if (e->samples < 2 || now - e->started < before_words)
        return NAN;
    double rate = e->mean / e->weight;
    return waited > 2 * e->lump ? rate * 2 * e->lump / waited : rate;
}

double cli_estimate_left(const cli_estimate *e, double now, double total) {
    double rate = cli_estimate_rate(e, now), waited = now - e->changed;
    if (!(total > e->done) || isnan(rate))
        return NAN;
    /* Of the lump that is being worked on, what it has had already. */
    return fmax(0, (total - e->done) / rate - fmin(waited, e->lump));
}
