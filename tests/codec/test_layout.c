/* SPDX-License-Identifier: Apache-2.0 */
/* Names of modules in both directions, and that every allocation of a conversion may fail. What conversions
 * give is tested from outside (tests/cli/test_layouts.py, tests/interop/test_layouts.py). */
#include "layout.h"
#include "layout_names.h"
#include "layout_place.h"
#include "memory.h"
#include "support.h"

#include <stdlib.h>
#include <string.h>

static void flat_names(void **state) {
    static const char *const names[][2] = {
        {"text_model_encoder_layers_11_self_attn_out_proj",
         "text_model.encoder.layers.11.self_attn.out_proj"},
        {"down_blocks_0_attentions_1_transformer_blocks_0_ff_net_0_proj",
         "down_blocks.0.attentions.1.transformer_blocks.0.ff.net.0.proj"},
        {"up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_out_0",
         "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0"},
        {"mid_block_resnets_0_time_emb_proj", "mid_block.resnets.0.time_emb_proj"},
        {"time_embedding_linear_1", "time_embedding.linear_1"},
        {"encoder_block_0_layer_1_DenseReluDense_wi_0", "encoder.block.0.layer.1.DenseReluDense.wi_0"},
        {"encoder_block_3_layer_0_SelfAttention_q", "encoder.block.3.layer.0.SelfAttention.q"},
        {"model_layers_7_mlp_gate_up_proj", "model.layers.7.mlp.gate_up_proj"},
        {"transformer_h_0_attn_c_attn", "transformer.h.0.attn.c_attn"},
        {"gpt_neox_layers_1_mlp_dense_h_to_4h", "gpt_neox.layers.1.mlp.dense_h_to_4h"},
        {"model_layers_0_block_sparse_moe_experts_7_w2", "model.layers.0.block_sparse_moe.experts.7.w2"},
        {"", NULL},
        {"model_", NULL},
        {"_model", NULL},
        {"model__layers", NULL},
        {"models_layers_0", NULL},
        {"linear_3", NULL},
        {"to_quantize", NULL},
        {"4h", NULL},
        {"model_layers_0_q_proj_", NULL}};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path;
        bool memory;
        bool known = icma_path_from_flat(names[i][0], strlen(names[i][0]), &path, &memory);
        assert_false(memory);
        assert_int_equal(known, names[i][1] != NULL);
        if (known)
            assert_string_equal(path, names[i][1]);
        else
            assert_null(path);
        icma_free(path);
    }
}

static void the_unet_of_sdxl(void **state) {
    static const char *const names[][2] = {
        {"input_blocks.0.0", "conv_in"},
        {"input_blocks.1.0.in_layers.2", "down_blocks.0.resnets.0.conv1"},
        {"input_blocks.6.0.op", "down_blocks.1.downsamplers.0.conv"},
        {"input_blocks.8.1.transformer_blocks.9.ff.net.2",
         "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.2"},
        {"middle_block.0.emb_layers.1", "mid_block.resnets.0.time_emb_proj"},
        {"middle_block.1.transformer_blocks.0.attn1.to_k",
         "mid_block.attentions.0.transformer_blocks.0.attn1.to_k"},
        {"middle_block.2.out_layers.3", "mid_block.resnets.1.conv2"},
        {"output_blocks.0.1.proj_in", "up_blocks.0.attentions.0.proj_in"},
        {"output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv"},
        {"output_blocks.8.0.skip_connection", "up_blocks.2.resnets.2.conv_shortcut"},
        {"time_embed.2", "time_embedding.linear_2"},
        {"label_emb.0.0", "add_embedding.linear_1"},
        {"out.2", "conv_out"}};
    static const char *const neither[] = {"input_blocks.0.1.x",
                                          "input_blocks.3.1.op",
                                          "input_blocks.x.0.op",
                                          "input_blocks.1.2.proj_in",
                                          "output_blocks.1.1.conv",
                                          "middle_block.3.proj_in",
                                          "middle_block",
                                          "input_blocks.1.0.conv1",
                                          "down_blocks.0.resnets.2.conv1",
                                          "down_blocks.0.upsamplers.0.conv",
                                          "mid_block.resnets.2.conv1",
                                          "mid_block.attentions.1.proj_in",
                                          "up_blocks.0.attentions.3.proj_in",
                                          "down_blocks.0.attentions.0",
                                          "input_blocks.1.1",
                                          "output_blocks.99999999999.0.op"};
    (void)state;
    bool memory;
    char *path;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_true(icma_path_from_ldm(names[i][0], &path, &memory));
        assert_string_equal(path, names[i][1]);
        icma_free(path);
        assert_true(icma_path_to_ldm(names[i][1], &path, &memory));
        assert_string_equal(path, names[i][0]);
        icma_free(path);
    }
    for (size_t i = 0; i < sizeof neither / sizeof *neither; i++) {
        assert_false(icma_path_from_ldm(neither[i], &path, &memory));
        assert_false(icma_path_to_ldm(neither[i], &path, &memory));
        assert_false(memory);
    }
}

static void file_names(void **state) {
    static const struct {
        const char *path, *task;
        bool has_step;
        uint64_t step;
        bool known;
        icma_file_form form;
    } files[] = {{"a/cat/checkpoint-10/adapter_model.safetensors", "cat", true, 10, true, ICMA_FORM_PEFT},
                 {"pytorch_lora_weights.safetensors", "cat", false, 0, true, ICMA_FORM_DIFFUSERS},
                 {"a/cat.safetensors", "cat", false, 0, true, ICMA_FORM_PLAIN},
                 {"a/cat-000010.safetensors", "cat", true, 10, true, ICMA_FORM_PLAIN},
                 {"cat-step10.safetensors", "cat", true, 10, true, ICMA_FORM_PLAIN},
                 {"cat-step00000010.safetensors", "cat", true, 10, true, ICMA_FORM_PLAIN},
                 {"cat-000011.safetensors", "cat", true, 10, false, ICMA_FORM_PLAIN},
                 {"spool-1234", "cat", false, 0, false, ICMA_FORM_PLAIN},
                 {"cat-step0000000000000000000010.safetensors", "cat", true, 10, false, ICMA_FORM_PLAIN}};
    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        icma_file_naming naming;
        char *folder, *name;
        bool known =
            icma_file_naming_of(files[i].path, files[i].task, files[i].has_step, files[i].step, &naming);
        assert_int_equal(known, files[i].known);
        if (!known)
            continue;
        assert_int_equal(naming.form, files[i].form);
        assert_int_equal(icma_file_place(&naming, files[i].task, files[i].has_step, files[i].step, true,
                                         &folder, &name, NULL),
                         ICMA_OK);
        const char *slash = strrchr(files[i].path, '/');
        assert_string_equal(name, slash ? slash + 1 : files[i].path);
        icma_free(folder);
        icma_free(name);
    }
}

static void records(void **state) {
    icma_file_naming naming;
    (void)state;
    assert_true(icma_file_naming_from_record("{\"files\":{\"form\":\"plain\",\"step_digits\":8}}", &naming));
    assert_true(naming.form == ICMA_FORM_PLAIN && naming.by_step && naming.digits == 8);
    assert_true(icma_file_naming_from_record("{\"files\":{\"form\":\"diffusers\"}}", &naming));
    assert_true(naming.form == ICMA_FORM_DIFFUSERS && !naming.by_step);
    static const char *const others[] = {
        "",        "{}", "{\"files\":[]}", "{\"files\":{\"form\":\"../x\"}}", "{\"files\":{\"form\":1}}",
        "nonsense"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_false(icma_file_naming_from_record(others[i], &naming));
    assert_false(icma_file_naming_from_record(NULL, &naming));
    assert_true(
        icma_file_naming_from_record("{\"files\":{\"form\":\"plain\",\"step_digits\":1000}}", &naming));
    assert_false(naming.by_step);
}

/* --- without memory ------------------------------------------------------------------------------------- */

static const char header[] =
    "{\"unet.mid_block.attn1.to_q.lora_A.weight\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]},"
    "\"unet.mid_block.attn1.to_q.lora_B.weight\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[8,16]},"
    "\"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight\":{\"dtype\":\"F32\",\"shape\":[1,2],"
    "\"data_offsets\":[16,24]},"
    "\"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_B.weight\":{\"dtype\":\"F32\",\"shape\":[2,1],"
    "\"data_offsets\":[24,32]},"
    "\"other\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[32,36]},"
    "\"__metadata__\":{\"ss_epoch\":\"1\",\"sshs_model_hash\":\"0\",\"lora_adapter_metadata\":\"{\\\"unet."
    "r\\\":1,\\\"unet.lora_alpha\\\":3}\"}}";

static bool make_file(icma_decoded *out) {
    size_t size = strlen(header);
    memset(out, 0, sizeof *out);
    out->size = 8 + size + 36;
    out->data = icma_alloc_zeroed(out->size, 1);
    if (!out->data)
        return false;
    out->data[0] = (uint8_t)size;
    out->data[1] = (uint8_t)(size >> 8);
    memcpy(out->data + 8, header, size);
    return true;
}

static icma_status try_converting(icma_layout layout) {
    icma_layout_options options = icma_layout_defaults();
    icma_layout_result result = {0};
    icma_decoded file;
    icma_error error = {0};
    const char *components[ICMA_MOST_COMPONENTS];
    size_t count;
    options.layout = layout;
    options.leave_out = options.cast = options.other_weights = true;
    options.dtype = ICMA_BF16;
    icma_status status = make_file(&file)
                             ? icma_layout_components(&file, &options, components, &count, &error)
                             : ICMA_E_MEMORY;
    if (!status)
        status = icma_layout_convert(&file, &options, &result, &error);
    if (!status)
        status = icma_layout_check_serving(&result.list[0].decoded, &result, &error);
    if (!status)
        assert_int_equal(result.count, layout == ICMA_LAYOUT_PEFT ? 2 : 1);
    icma_decoded_free(&file);
    icma_layout_result_free(&result);
    return status;
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    for (int layout = ICMA_LAYOUT_ORIGINAL; layout <= ICMA_LAYOUT_KOHYA; layout++) {
        icma_status status = ICMA_E_MEMORY;
        size_t k = 0;
        for (; status == ICMA_E_MEMORY; k++) {
            support_budget budget = {.left = k};
            support_limit_memory(&budget);
            status = try_converting((icma_layout)layout);
            support_limit_memory(NULL);
            assert_int_equal(budget.live, 0);
        }
        assert_int_equal(status, ICMA_OK);
        assert_true(k > 40);
    }
}

static void options_of_another_library(void **state) {
    icma_layout_options options = icma_layout_defaults();
    icma_layout_result result;
    icma_decoded file;
    (void)state;
    for (int i = 0; i < 4; i++) {
        options = icma_layout_defaults();
        options.size = i == 0 ? 0 : i == 1 ? sizeof options + 8 : sizeof options;
        options.layout = i == 2 ? (icma_layout)7 : ICMA_LAYOUT_PEFT;
        options.cast = i == 3;
        options.dtype = ICMA_I64;
        assert_true(make_file(&file));
        assert_int_equal(icma_layout_convert(&file, &options, &result, NULL), ICMA_E_USAGE);
        assert_null(file.data);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(flat_names),
                                       cmocka_unit_test(the_unet_of_sdxl),
                                       cmocka_unit_test(file_names),
                                       cmocka_unit_test(records),
                                       cmocka_unit_test(every_allocation_may_fail),
                                       cmocka_unit_test(options_of_another_library)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
