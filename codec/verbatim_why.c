/* SPDX-License-Identifier: Apache-2.0 */
#include "verbatim_why.h"

#include "progress.h"

#include <string.h>

enum { FEWEST_ELEMENTS = 16 };
static const uint64_t most_elements = UINT64_C(1) << 26, most_other_elements = UINT64_C(1) << 20;

/* What is neither a factor of a pair nor named as a part of a low-rank adapter (DoRA's magnitudes are) is a
 * module that was trained whole: its owner wants it as it is. */
icma_why icma_why_verbatim(const icma_tensor_info *info, icma_role role) {
    if (!icma_dtype_is_modelled(info->dtype))
        return ICMA_WHY_DTYPE;
    if (info->count < FEWEST_ELEMENTS)
        return ICMA_WHY_SMALL;
    if (role == ICMA_ROLE_OTHER && !strstr(info->name, "lora_") && !strstr(info->name, "dora_"))
        return ICMA_WHY_WHOLE;
    return info->count > (role == ICMA_ROLE_OTHER ? most_other_elements : most_elements) ? ICMA_WHY_LARGE
                                                                                         : ICMA_WHY_NOT;
}

static size_t count_exceptions(const icma_group *group) {
    size_t bits = group->count * group->signature.tensor_count, count = 0;
    for (size_t i = 0; i < bits; i++)
        count += group->exceptions[i / 8] >> (i % 8) & 1;
    return count;
}

void icma_explain_verbatim(const icma_progress *progress, const icma_group *group, const uint8_t *why) {
    static const char *const reasons[ICMA_WHY_COUNT] = {
        [ICMA_WHY_DTYPE] = "a dtype that is not modelled (integers, booleans, F64, 8-bit floats)",
        [ICMA_WHY_SMALL] = "fewer than 16 numbers",
        [ICMA_WHY_LARGE] = "more numbers than a basis is made for",
        [ICMA_WHY_WHOLE] = "no part of a low-rank pair, so a module that was trained whole "
                           "(modules_to_save), which must not change",
        [ICMA_WHY_EMPTY] = "zero, or not finite, in every checkpoint",
        [ICMA_WHY_CONSTANT] = "one number throughout in every checkpoint, which costs next to nothing",
    };
    const icma_safetensors *s = &group->signature;
    for (int reason = ICMA_WHY_NOT + 1; icma_explains(progress) && reason < ICMA_WHY_COUNT; reason++) {
        size_t count = 0, first = 0;
        for (size_t t = s->tensor_count; t-- > 0;)
            if (why[t] == reason) {
                count++;
                first = t;
            }
        if (count)
            icma_explain(progress, "verbatim", "%zu of %zu tensors (%.100s%s) kept bit for bit: %s", count,
                         s->tensor_count, s->tensors[first].name, count > 1 ? ", ..." : "", reasons[reason]);
    }
    size_t exceptions = icma_explains(progress) ? count_exceptions(group) : 0;
    if (exceptions)
        icma_explain(progress, "verbatim",
                     "%zu tensor%s of single checkpoints kept bit for bit: zero or not finite there",
                     exceptions, exceptions == 1 ? "" : "s");
}
