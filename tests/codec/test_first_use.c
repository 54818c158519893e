/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that use the library for the first time at the same moment: it is made ready once, before any goes
 * on. */
#include "ops.h"
#include "support.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

enum { THREADS = 4 };

static atomic_int made;

/* In OpenBLAS's place: making ready takes long enough for all threads to come to it. */
void openblas_set_num_threads(int threads);
void openblas_set_num_threads(int threads) {
    (void)threads;
    made++;
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
}

typedef struct user {
    pthread_t thread;
    pthread_barrier_t *start;
    icma_ops seen;
} user;

static void *use(void *context) {
    user *u = context;
    pthread_barrier_wait(u->start);
    u->seen = *icma_ops_cpu();
    return NULL;
}

static void the_table_is_made_once(void **state) {
    pthread_barrier_t start;
    user list[THREADS];
    (void)state;
    assert_int_equal(pthread_barrier_init(&start, NULL, THREADS), 0);
    for (size_t i = 0; i < THREADS; i++) {
        list[i].start = &start;
        assert_int_equal(pthread_create(&list[i].thread, NULL, use, &list[i]), 0);
    }
    for (size_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_join(list[i].thread, NULL), 0);
    pthread_barrier_destroy(&start);
    assert_int_equal(made, 1);
    for (size_t i = 0; i < THREADS; i++) {
        assert_string_equal(list[i].seen.name, "cpu");
        assert_true(list[i].seen.assemble == icma_ops_cpu()->assemble && list[i].seen.assemble);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_is_made_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
