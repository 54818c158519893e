/* SPDX-License-Identifier: Apache-2.0 */
/* What the filter of cli/sandbox.h lets through and what not; 77 where there is none. */
#define _DEFAULT_SOURCE
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static int failures;

static void denied(const char *what, int result) {
    if (result != -1 || errno != EPERM) {
        printf("FAILED: %s is let through (%d, errno %d)\n", what, result, errno);
        failures++;
    }
}

static void allowed(const char *what, int good) {
    if (!good) {
        printf("FAILED: %s is not let through (errno %d)\n", what, errno);
        failures++;
    }
}

static void *try_in_thread(void *path) {
    denied("opening for writing in a thread", open(path, O_WRONLY));
    return NULL;
}

static pthread_barrier_t started, restricted;

/* One that was there before. */
static void *try_in_old_thread(void *path) {
    pthread_barrier_wait(&started);
    pthread_barrier_wait(&restricted);
    denied("opening for writing in an older thread", open(path, O_RDWR));
    return NULL;
}

int main(int count, char **arguments) {
    (void)count;
    char *path = arguments[0], *const words[] = {(char *)"true", NULL}; /* this program, of which nothing must change */
    char byte;
    struct stat seen;
    pthread_t old, new;
    FILE *without_name = tmpfile();
    int file = without_name ? fileno(without_name) : -1, reading;
    pthread_barrier_init(&started, NULL, 2);
    pthread_barrier_init(&restricted, NULL, 2);
    if (file < 0 || pthread_create(&old, NULL, try_in_old_thread, path) != 0)
        return 1;
    pthread_barrier_wait(&started);
    const char *fault = cli_sandbox_restrict();
    pthread_barrier_wait(&restricted);
    pthread_join(old, NULL);
    if (fault) {
        printf("skipped: %s\n", fault);
        return 77;
    }
    denied("opening for writing", open(path, O_WRONLY));
    denied("opening for both", open(path, O_RDWR | O_CLOEXEC));
    denied("creating", open("/tmp/icma-sandbox-new", O_CREAT | O_EXCL | O_RDONLY, 0600));
    denied("truncating", open(path, O_RDONLY | O_TRUNC));
    denied("removing", unlink(path));
    denied("renaming", rename(path, "/tmp/icma-sandbox-new"));
    denied("linking", link(path, "/tmp/icma-sandbox-new"));
    denied("making a folder", mkdir("/tmp/icma-sandbox-new", 0700));
    denied("changing permissions", chmod(path, 0644));
    denied("shortening", ftruncate(file, 0));
    denied("a socket", socket(AF_INET, SOCK_STREAM, 0));
    denied("a program", execv("/bin/true", words));
    allowed("opening for reading", (reading = open(arguments[0], O_RDONLY)) >= 0);
    allowed("reading", pread(reading, &byte, 1, 0) == 1);
    allowed("examining", fstat(reading, &seen) == 0 && stat(path, &seen) == 0);
    allowed("closing", close(reading) == 0);
    allowed("writing to what is open", write(file, "x", 1) == 1);
    allowed("a thread", pthread_create(&new, NULL, try_in_thread, path) == 0 && pthread_join(new, NULL) == 0);
    printf("%d failures\n", failures);
    return failures != 0;
}
