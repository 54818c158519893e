/* SPDX-License-Identifier: Apache-2.0 */
/* icma generate --text: the condition that icma embed would make. */
#include "generate.h"

#include "device.h"
#include "memory.h"
#include "terminal.h"
#include "text_encoder.h"

#include <inttypes.h>
#include <string.h>

/* "TEXT", by ENCODER HASH */
static char *describe(const char *text, const icma_text_encoder *encoder) {
    icma_buffer out = {0};
    icma_write_u8(&out, '"');
    icma_write_bytes(&out, text, strlen(text));
    cli_append(&out, "\", by %s %016" PRIx64, icma_text_encoder_id(encoder), icma_text_encoder_hash(encoder));
    char *described = out.failed ? NULL : icma_copy_text((const char *)out.data, out.size);
    icma_buffer_free(&out);
    return described;
}

static icma_status embed(icma_text_encoder *encoder, const char *text, const char *folder, bool projection,
                         cli_text_condition *out, icma_error *error) {
    out->count = icma_text_encoder_width(encoder, projection);
    if (!out->count)
        return icma_fail(error, ICMA_E_UNSUPPORTED, folder,
                         "an encoder without text projection; leave out --projection");
    out->values = icma_alloc_array(out->count, sizeof *out->values);
    out->origin = describe(text, encoder);
    out->encoder = icma_text_encoder_hash(encoder);
    if (!out->values || !out->origin)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for a condition");
    return icma_text_encoder_embed(encoder, &text, 1, projection, out->values, error);
}

icma_status cli_text_embed(const char *text, const char *folder, bool projection, cli_text_condition *out,
                           icma_error *error) {
    const struct icma_ops *ops;
    icma_text_encoder *encoder = NULL;
    *out = (cli_text_condition){0};
    icma_status status = icma_device_open("cpu", ICMA_PRECISION_F32, (icma_device_work){0}, &ops, error);
    if (!status)
        status = icma_text_encoder_open(folder, ops, &encoder, error);
    if (!status)
        status = embed(encoder, text, folder, projection, out, error);
    icma_text_encoder_close(encoder);
    return status;
}

void cli_text_condition_free(cli_text_condition *condition) {
    icma_free(condition->values);
    icma_free(condition->origin);
    *condition = (cli_text_condition){0};
}
