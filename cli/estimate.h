/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast work goes and how long it will take yet, from what is told of it now and then. Knows no clock:
 * times are seconds that the caller brings, from any start.
 *
 * The rate is a mean over the past that forgets with a time constant of some seconds (an exponential moving
 * average over time rather than over samples, for they come when they come), divided by the weight it has
 * seen so far, so that the first seconds count in full. Work that comes in lumps is counted from lump to
 * lump; while one lasts longer than it should, the rate sinks.
 */
#ifndef CLI_ESTIMATE_H
#define CLI_ESTIMATE_H

#include <stddef.h>

typedef struct cli_estimate {
    double started, first; /* when, and what was done by then */
    double changed, done;  /* when the last sample was taken, and what was done by then */
    double mean, weight;   /* sum of decayed rates and of their weights */
    double lump;           /* seconds that the last step took */
    size_t samples;
} cli_estimate;

void cli_estimate_start(cli_estimate *e, double now, double done);
void cli_estimate_update(cli_estimate *e, double now, double done);
/* Of done, a second; NAN while nothing is known: in the first second, and before the second step. */
double cli_estimate_rate(const cli_estimate *e, double now);
/* Seconds until `total`; NAN while the rate is, or where it is reached. */
double cli_estimate_left(const cli_estimate *e, double now, double total);

#endif
