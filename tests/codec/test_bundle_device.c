/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checkpoints decoded into a device's memory, and tensors decoded one by one: the bytes of icma_bundle_decode for every tier and generator, from every table; what describes them; damage that is seen only by the checksum; memory that ends anywhere.
 */
#include "memory.h"
#include "packing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const icma_ops *table(int which) {
    return which == 0 ? icma_ops_reference() : icma_ops_cpu();
}
enum { TABLES = 2 };

/* --- a tree of everything ------------------------------------------------------------------------------ */

/* A pair, integers and bytes between them, an empty tensor and a half that starts at an odd byte; in checkpoint 2 a factor that is not finite. */
static void write_checkpoint(const char *root, size_t step) {
    uint64_t seed = 77;
    float *a = support_normals(&seed, 48), *b = support_normals(&seed, 40), *c = support_normals(&seed, 21);
    const int64_t counters[2] = {(int64_t)step, -5};
    const uint8_t bytes[3] = {(uint8_t)step, 200, 7};
    for (size_t i = 0; i < 40; i++)
        b[i] += 0.01F * (float)(step * i % 7);
    if (step == 2)
        a[17] = INFINITY;
    const support_tensor tensors[] = {
        {.name = "m.lora_A.weight", .dtype = ICMA_F32, .rank = 2, .shape = {4, 12}, .values = a},
        {.name = "m.counters", .dtype = ICMA_I64, .rank = 1, .shape = {2}, .bytes = counters},
        {.name = "m.bytes", .dtype = ICMA_U8, .rank = 3, .shape = {1, 3, 1}, .bytes = bytes},
        {.name = "m.empty", .dtype = ICMA_F32, .rank = 2, .shape = {0, 3}},
        {.name = "m.bias", .dtype = ICMA_F16, .rank = 1, .shape = {21}, .values = c},
        {.name = "m.lora_B.weight", .dtype = ICMA_BF16, .rank = 2, .shape = {10, 4}, .values = b},
    };
    packing_write_tensors(root, "odd", step, tensors, COUNT(tensors));
    support_free(a);
    support_free(b);
    support_free(c);
}

static int make_tree(void **state) {
    char *root = support_new_folder();
    trajectory wide = small_trajectory;
    wide.seed = 9;
    wide.rank = 3;
    wide.dtype = ICMA_F16;
    packing_write(root, "plain", &small_trajectory, 1, 3);
    packing_write(root, "plain", &wide, 50, 1);
    for (size_t step = 1; step <= 4; step++)
        write_checkpoint(root, step);
    icma_set_threads(1);
    *state = root;
    return 0;
}

static int drop_tree(void **state) {
    support_remove_tree(*state);
    icma_set_threads(0);
    return 0;
}

static icma_pack_options options_of(icma_generator_choice generator, icma_tier tier) {
    icma_pack_options options = packing_options();
    icma_pack_use_generator(&options, generator);
    options.tier = tier;
    options.epochs = options.denoiser_epochs = 2;
    options.latent_dim = 2;
    options.layers = 2;
    options.kernel = 3;
    options.bound = (icma_bound){ICMA_BOUND_DW, 0.01F};
    options.overwrite = true;
    return options;
}

/* --- decoding ------------------------------------------------------------------------------------------ */

static void check_views(const icma_device_adapter *a, const uint8_t *file, size_t size) {
    icma_safetensors tensors;
    const uint8_t *data;
    icma_error error = {0};
    assert_int_equal(icma_safetensors_view(file, size, &tensors, &data, &error), ICMA_OK);
    assert_true(a->size == tensors.data_size && a->tensor_count == tensors.tensor_count);
    for (size_t t = 0; t < a->tensor_count; t++) {
        const icma_adapter_tensor *view = &a->tensors[t];
        const icma_tensor_info *info = &tensors.tensors[t];
        assert_string_equal(view->name, info->name);
        assert_true(view->dtype == info->dtype && view->dims == info->rank && view->offset == info->begin && view->size == info->size);
        assert_memory_equal(view->shape, info->shape, info->rank * sizeof *info->shape);
    }
    icma_safetensors_free(&tensors);
}

static void check_adapter(const icma_device_adapter *a, const icma_decoded *d) {
    icma_error error = {0};
    uint8_t *data = malloc((size_t)a->size + 1);
    assert_non_null(data);
    assert_int_equal(a->ops->download(a->ops->device, a->data, 0, data, (size_t)a->size, &error), ICMA_OK);
    assert_memory_equal(data, d->data + d->size - a->size, (size_t)a->size);
    check_views(a, d->data, d->size);
    free(data);
}

/* Every tensor by itself, from the last to the first, is what the whole has in its place. */
static void check_tensors(icma_bundle *bundle, size_t task, size_t checkpoint, const icma_decoded *d) {
    icma_adapter_tensor *list;
    icma_error error = {0};
    size_t count, size = 0;
    assert_int_equal(icma_bundle_tensors(bundle, task, checkpoint, &list, &count, &error), ICMA_OK);
    for (size_t t = 0; t < count; t++)
        size += (size_t)list[t].size;
    for (size_t t = count; t-- > 0;) {
        const icma_adapter_tensor *view = &list[t];
        uint8_t *data = malloc((size_t)view->size + 1);
        assert_non_null(data);
        data[view->size] = 0xA5;
        if (icma_bundle_decode_tensor(bundle, task, checkpoint, t, data, (size_t)view->size, &error) != ICMA_OK)
            fail_msg("tensor %s of checkpoint %zu: %s", view->name, checkpoint, error.message);
        if (memcmp(data, d->data + d->size - size + view->offset, (size_t)view->size) != 0)
            fail_msg("tensor %s of checkpoint %zu of task %zu is another", view->name, checkpoint, task);
        assert_int_equal(data[view->size], 0xA5);
        free(data);
    }
    icma_free(list);
}

/* Every checkpoint of every task, twice: the decoder keeps what it has loaded. */
static void check_bundle(const char *root, const char *name, const icma_ops *ops) {
    icma_bundle *plain = packing_open(root, name, icma_ops_reference()), *bundle = packing_open(root, name, icma_ops_reference());
    icma_error error = {0};
    assert_int_equal(icma_bundle_use_device(bundle, ops, &error), ICMA_OK);
    for (size_t t = 0; t < icma_bundle_task_count(plain); t++) {
        icma_task_info info;
        assert_int_equal(icma_bundle_task(plain, t, &info, &error), ICMA_OK);
        for (size_t c = 0; c < 2 * info.checkpoint_count; c++) {
            icma_decoded decoded;
            icma_device_adapter adapter;
            assert_int_equal(icma_bundle_decode(plain, t, c / 2, &decoded, &error), ICMA_OK);
            if (icma_bundle_decode_on_device(bundle, t, c / 2, c % 2, &adapter, &error) != ICMA_OK)
                fail_msg("%s, checkpoint %zu of task %zu: %s", ops->name, c / 2, t, error.message);
            assert_true(adapter.ops == ops);
            check_adapter(&adapter, &decoded);
            check_tensors(bundle, t, c / 2, &decoded);
            icma_device_adapter_free(&adapter);
            assert_true(!adapter.data && !adapter.tensors);
            icma_device_adapter_free(&adapter);
            icma_decoded_free(&decoded);
        }
    }
    assert_int_equal(icma_bundle_use_device(bundle, icma_ops_cpu(), &error), ICMA_E_USAGE);
    icma_bundle_close(plain);
    icma_bundle_close(bundle);
}

static void check_packing(const char *root, const icma_pack_options *options) {
    packing_pack(root, "b.icma", options, NULL);
    for (int t = 0; t < TABLES; t++)
        check_bundle(root, "b.icma", table(t));
}

static void adapters_are_what_decoding_gives(void **state) {
    static const icma_tier tiers[] = {ICMA_TIER_GENERATE, ICMA_TIER_LATENT, ICMA_TIER_BOUNDED, ICMA_TIER_LOSSLESS};
    for (size_t i = 0; i < COUNT(tiers); i++) {
        icma_pack_options options = options_of(ICMA_CHOOSE_BASIS, tiers[i]);
        check_packing(*state, &options);
    }
}

static void every_generator_decodes(void **state) {
    static const icma_generator_choice generators[] = {ICMA_CHOOSE_NONE, ICMA_CHOOSE_SOUP, ICMA_CHOOSE_CONV, ICMA_CHOOSE_DIFFUSION};
    for (size_t i = 0; i < COUNT(generators); i++) {
        icma_pack_options options = options_of(generators[i], ICMA_TIER_BOUNDED);
        check_packing(*state, &options);
        options.variance = true; /* integers are reordered on the host */
        if (generators[i] == ICMA_CHOOSE_CONV)
            check_packing(*state, &options);
    }
}

/* A residual of several streams: tensors begin and end within them, and one is longer than any. */
static void a_tensor_takes_its_streams(void **state) {
    static const icma_bound bounds[] = {{ICMA_BOUND_DW, 0.05F}, {ICMA_BOUND_ABS, 0.01F}}; /* with a trellis, and without */
    const trajectory large = {5, 2, 8, 40000, 9000, ICMA_F32, 0.002};
    char *root = support_new_folder();
    (void)state;
    packing_write(root, "large", &large, 1, 1);
    for (size_t i = 0; i < COUNT(bounds); i++) {
        icma_pack_options options = options_of(ICMA_CHOOSE_NONE, ICMA_TIER_BOUNDED);
        options.bound = bounds[i];
        check_packing(root, &options);
    }
    support_remove_tree(root);
}

/* --- what goes wrong ----------------------------------------------------------------------------------- */

static void what_is_not_there_is_not_found(void **state) {
    icma_pack_options options = options_of(ICMA_CHOOSE_BASIS, ICMA_TIER_BOUNDED);
    icma_device_adapter adapter;
    icma_error error = {0};
    packing_pack(*state, "b.icma", &options, NULL);
    icma_bundle *bundle = packing_open(*state, "b.icma", icma_ops_cpu());
    memset(&adapter, 0x5A, sizeof adapter);
    assert_int_equal(icma_bundle_decode_on_device(bundle, 0, 1000, true, &adapter, &error), ICMA_E_NOT_FOUND);
    assert_true(!adapter.data && !adapter.tensors && !adapter.size && !adapter.tensor_count);
    uint8_t byte;
    error = (icma_error){0};
    assert_int_equal(icma_bundle_decode_tensor(bundle, 0, 1000, 0, &byte, 1, &error), ICMA_E_NOT_FOUND);
    error = (icma_error){0};
    assert_int_equal(icma_bundle_decode_tensor(bundle, 0, 0, 1000, &byte, 1, &error), ICMA_E_NOT_FOUND);
    error = (icma_error){0};
    assert_int_equal(icma_bundle_decode_tensor(bundle, 0, 0, 0, &byte, 1, &error), ICMA_E_USAGE);
    /* Nothing was decoded yet. */
    error = (icma_error){0};
    assert_int_equal(icma_bundle_use_device(bundle, icma_ops_reference(), &error), ICMA_OK);
    icma_bundle_close(bundle);
}

/* A table whose uploads of bytes lose a bit, which nothing but the file's checksum tells. */
static icma_ops lossy;
static icma_tensor *bytes_of_adapter;

static icma_status lossy_alloc(void *device, icma_element element, size_t count, icma_tensor **out, icma_error *error) {
    icma_status status = icma_ops_reference()->alloc(device, element, count, out, error);
    bytes_of_adapter = element == ICMA_ELEMENT_U8 ? *out : bytes_of_adapter;
    return status;
}

static icma_status lossy_upload(void *device, icma_tensor *to, size_t offset, const void *from, size_t count, icma_error *error) {
    const icma_ops *ops = icma_ops_reference();
    const uint8_t other = (uint8_t)(*(const uint8_t *)from ^ 1);
    icma_status status = ops->upload(device, to, offset, from, count, error);
    return status || to != bytes_of_adapter ? status : ops->upload(device, to, offset, &other, 1, error);
}

static void a_checksum_is_compared_if_asked_for(void **state) {
    icma_pack_options options = options_of(ICMA_CHOOSE_BASIS, ICMA_TIER_BOUNDED);
    icma_device_adapter adapter;
    packing_pack(*state, "b.icma", &options, NULL);
    lossy = *icma_ops_reference();
    lossy.alloc = lossy_alloc;
    lossy.upload = lossy_upload;
    icma_bundle *bundle = packing_open(*state, "b.icma", &lossy);
    size_t task = icma_bundle_find_task(bundle, "odd");
    for (int verify = 0; verify < 2; verify++) {
        icma_error error = {0};
        icma_status status = icma_bundle_decode_on_device(bundle, task, 0, verify, &adapter, &error);
        assert_int_equal(status, verify ? ICMA_E_CORRUPT : ICMA_OK);
        assert_true(verify ? !adapter.data && error.file[0] : adapter.data != NULL);
        icma_device_adapter_free(&adapter);
    }
    icma_bundle_close(bundle);
}

typedef struct failing {
    size_t at, seen, live;
} failing;

static void *fail_resize(void *context, void *pointer, size_t size) {
    failing *f = context;
    if (f->seen++ == f->at)
        return NULL;
    f->live += pointer == NULL;
    return realloc(pointer, size);
}

static void fail_release(void *context, void *pointer) {
    failing *f = context;
    f->live -= pointer != NULL;
    free(pointer);
}

static icma_status decode_tensors(icma_bundle *bundle, size_t task, size_t checkpoint, icma_error *error) {
    icma_adapter_tensor *list;
    size_t count;
    uint8_t data[1024];
    icma_status status = icma_bundle_tensors(bundle, task, checkpoint, &list, &count, error);
    for (size_t t = 0; !status && t < count; t++)
        status = icma_bundle_decode_tensor(bundle, task, checkpoint, t, data, (size_t)list[t].size, error);
    icma_free(list);
    return status;
}

/* Opens, decodes all to the device and tensor by tensor, and closes. */
static icma_status decode_all(const char *path, icma_error *error) {
    icma_bundle *bundle;
    icma_task_info info;
    icma_status status = icma_bundle_open(path, icma_ops_cpu(), NULL, &bundle, error);
    for (size_t t = 0; !status && t < icma_bundle_task_count(bundle); t++) {
        status = icma_bundle_task(bundle, t, &info, error);
        for (size_t c = 0; !status && c < info.checkpoint_count; c++) {
            icma_device_adapter adapter;
            status = icma_bundle_decode_on_device(bundle, t, c, true, &adapter, error);
            assert_true((status == ICMA_OK) == (adapter.data != NULL));
            icma_device_adapter_free(&adapter);
            if (!status)
                status = decode_tensors(bundle, t, c, error);
        }
    }
    icma_bundle_close(bundle);
    return status;
}

static void check_memory(const char *root, icma_tier tier) {
    icma_pack_options options = options_of(ICMA_CHOOSE_BASIS, tier);
    icma_status status = ICMA_E_MEMORY;
    size_t k = 0;
    packing_pack(root, "b.icma", &options, NULL);
    char *path = support_path(root, "b.icma");
    for (; status; k++) {
        failing f = {.at = k};
        const icma_allocator allocator = {fail_resize, fail_release, &f};
        icma_error error = {0};
        icma_memory_set_allocator(&allocator);
        status = decode_all(path, &error);
        icma_memory_set_allocator(NULL);
        if (f.live)
            fail_msg("allocation %zu failed: %zu blocks are left", k, f.live);
        if (f.seen > k && status != ICMA_E_MEMORY)
            fail_msg("allocation %zu failed: %s", k, icma_status_name(status));
    }
    assert_true(k > 100);
    support_free(path);
}

static void memory_may_end_anywhere(void **state) {
    check_memory(*state, ICMA_TIER_BOUNDED);
    check_memory(*state, ICMA_TIER_LOSSLESS);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_tree, drop_tree)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(adapters_are_what_decoding_gives),
        TEST(every_generator_decodes),
        cmocka_unit_test(a_tensor_takes_its_streams),
        TEST(what_is_not_there_is_not_found),
        TEST(a_checksum_is_compared_if_asked_for),
        TEST(memory_may_end_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
