/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as an archive of adapters from standard input, unpacked and searched: what is found can be opened
 * and lies below the archive's name. */
#define _GNU_SOURCE /* memfd_create */
#include "fuzz_target.h"

#include "file.h"
#include "inputs.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void check_found(const icma_inputs *inputs) {
    static const char name[] = "<standard input>/";
    for (size_t t = 0; t < inputs->task_count; t++) {
        EXPECT(icma_path_segment_is_safe(inputs->tasks[t].name));
        for (size_t c = 0; c < inputs->tasks[t].checkpoint_count; c++) {
            const icma_input_checkpoint *checkpoint = &inputs->tasks[t].checkpoints[c];
            icma_file *file;
            EXPECT(strncmp(checkpoint->path, name, sizeof name - 1) == 0 &&
                   !strstr(checkpoint->path, "/../"));
            EXPECT(icma_file_open(checkpoint->path, &file, NULL) == ICMA_OK);
            icma_file_close(file);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *paths[] = {"-"};
    icma_input_options options = icma_input_defaults();
    icma_inputs inputs;
    icma_error error = {0};
    options.most_bytes = 1 << 22;
    options.most_members = 1000;
    options.standard_input = memfd_create("archive", MFD_CLOEXEC);
    EXPECT(options.standard_input >= 0);
    EXPECT(write(options.standard_input, data, size) == (ssize_t)size &&
           lseek(options.standard_input, 0, SEEK_SET) == 0);
    icma_status status = icma_inputs_find_with(paths, 1, &options, &inputs, &error);
    EXPECT(status == error.status);
    if (status == ICMA_OK)
        check_found(&inputs);
    else
        EXPECT(status != ICMA_E_IO && !inputs.tasks && !inputs.spool);
    icma_inputs_free(&inputs);
    close(options.standard_input);
    return 0;
}
