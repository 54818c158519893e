/* SPDX-License-Identifier: Apache-2.0 */
#include "fuzz_shape.h"

#include "coded.h"
#include "fuzz_target.h"
#include "head.h"
#include "memory.h"

static const char header[] = "{\"a.lora_A.weight\":{\"dtype\":\"F32\",\"shape\":[2,12],\"data_offsets\":[0,96]},"
                             "\"a.lora_B.weight\":{\"dtype\":\"BF16\",\"shape\":[9,2],\"data_offsets\":[96,132]},"
                             "\"m\":{\"dtype\":\"F16\",\"shape\":[7],\"data_offsets\":[132,146]},"
                             "\"none\":{\"dtype\":\"F32\",\"shape\":[0,3],\"data_offsets\":[146,146]},"
                             "\"steps\":{\"dtype\":\"I64\",\"shape\":[3],\"data_offsets\":[146,170]}}";

const icma_safetensors *fuzz_signature(void) {
    static icma_safetensors signature;
    if (!signature.header)
        EXPECT(icma_safetensors_parse_header(header, sizeof header - 1, &signature, NULL) == ICMA_OK);
    return &signature;
}

static void make_generator(icma_generator *g, bool basis) {
    static const uint8_t treatments[] = {ICMA_TREAT_A, ICMA_TREAT_B, ICMA_TREAT_OTHER};
    const icma_safetensors *signature = fuzz_signature();
    g->kind = basis ? ICMA_GENERATOR_BASIS : ICMA_GENERATOR_NONE;
    g->tensor_count = signature->tensor_count;
    if (basis) {
        g->components[ICMA_ROLE_A] = 2;
        g->components[ICMA_ROLE_B] = 3;
        g->components[ICMA_ROLE_OTHER] = 1;
        g->total = 6;
        g->latent = g->coordinates = g->given_coordinates = 2;
        g->hidden = 4;
        g->condition_size = 3;
    }
    EXPECT(icma_generator_allocate(g, NULL) == ICMA_OK);
    for (size_t t = 0; t < g->tensor_count; t++) {
        /* The first three; where there are no elements, or integers, nothing can be modelled. */
        g->treatment[t] = t < 3 ? treatments[t] : ICMA_TREAT_VERBATIM;
        g->scale[t] = g->treatment[t] == ICMA_TREAT_VERBATIM ? 0 : 0.25f;
    }
    for (size_t i = 0; i < g->latent; i++)
        g->latent_step[i] = 0.125f;
    for (size_t i = 0; i < g->total; i++)
        g->correction_step[i] = g->head_step[i] = 0.0625f;
}

const icma_generator *fuzz_generator(bool basis) {
    static icma_generator made[2];
    if (!made[basis].treatment)
        make_generator(&made[basis], basis);
    return &made[basis];
}

uint8_t fuzz_take(const uint8_t **data, size_t *size) {
    if (*size == 0)
        return 0;
    --*size;
    return *(*data)++;
}

icma_status fuzz_read_head(const uint8_t *payload, size_t size, size_t first, size_t count, int16_t **integers, icma_error *error) {
    icma_head_coded head;
    *integers = NULL;
    icma_status status = icma_head_open(payload, size, fuzz_signature(), fuzz_generator(true), first, count, &head, error);
    if (status != ICMA_OK)
        return status;
    icma_coded coded = icma_head_stream(&head);
    *integers = icma_alloc_array(icma_head_integers(fuzz_signature(), fuzz_generator(true), first, count) + 1, sizeof **integers);
    EXPECT(*integers);
    status = icma_coded_decode(&coded, 1, *integers, error);
    icma_head_close(&head);
    if (status != ICMA_OK) {
        icma_free(*integers);
        *integers = NULL;
    }
    return status;
}

uint32_t fuzz_noise(uint32_t *state) {
    *state = *state * 1664525 + 1013904223;
    return *state >> 8;
}

bool fuzz_is_refusal(icma_status status) {
    return status == ICMA_E_CORRUPT || status == ICMA_E_UNSUPPORTED || status == ICMA_E_LIMIT;
}
