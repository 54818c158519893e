/* SPDX-License-Identifier: Apache-2.0 */
/* Tests on this floor know no device but the CPU. */
#include "support.h"

const icma_ops *support_device(void) {
    return NULL;
}
