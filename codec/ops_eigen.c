/* SPDX-License-Identifier: Apache-2.0 */
/* Symmetric eigenproblems on the host: the entry of both tables on the CPU. */
#include "ops_host.h"

#include <lapacke.h>

icma_status icma_eigen_host(void *device, size_t n, double *a, double *values, icma_error *error) {
    (void)device;
    /* Column-major with rows of vectors: eigenvector k is a[k * n ...]. The matrix is symmetric, so its order
     * does not matter. */
    if (n && LAPACKE_dsyevd(LAPACK_COL_MAJOR, 'V', 'L', (lapack_int)n, a, (lapack_int)n, values) != 0)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "the eigenproblem of %zu checkpoints did not converge",
                         n);
    return ICMA_OK;
}
