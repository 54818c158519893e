/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of CUDA that icma's kernels use, for a host compiler: included before the .cu files, it lets the
 * very same sources compile as C++17 and run on a CPU.
 *
 * See README.md for what it emulates and what it cannot show.
 */
#ifndef ICMA_CUDA_ON_HOST_H
#define ICMA_CUDA_ON_HOST_H

#include "types.h"

#include "runtime_api.h"

#include "blas_api.h"
#include "device_functions.h"
#include "launch.h"
#include "solver_api.h"

extern "C" {
/* The `k`-th call from now (counting from 1) of the function `name` fails; "any" counts every function that
 * can fail, "launch" is a kernel. k = 0 or no name: none fails. It replaces what ICMA_EMULATION_FAIL=NAME:K
 * said. */
void icma_emulation_fail(const char *name, long k);
/* How many calls were counted since then. Less than k after a run: there was nothing left to fail. */
long icma_emulation_calls(void);
}

#endif
