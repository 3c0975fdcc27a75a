/* Runs many small jobs on pools of several sizes, from one caller and from several at once; every index must be
 * run exactly once, and be visible to the caller afterwards. Argument: rounds. Meant for ThreadSanitizer. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pool.h"

enum { TASKS = 70 };

typedef struct {
    irstd_pool *pool;
    int rounds, failed;
} caller;

static void task(void *argument, int index) { ((int *)argument)[index]++; }

static void *call(void *argument) {
    caller *c = argument;
    for (int r = 0; r < c->rounds; r++) {
        int counts[TASKS] = {0}, tasks = 1 + r % TASKS;
        irstd_pool_run(c->pool, tasks, task, counts);
        for (int i = 0; i < TASKS; i++) c->failed |= counts[i] != (i < tasks);
        if (r % 500 == 499) nanosleep(&(struct timespec){0, 300000}, NULL); /* workers fall asleep */
    }
    return NULL;
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 1000;
    for (int threads = 1; threads <= 5; threads++) {
        irstd_pool *pool = irstd_pool_create(threads);
        if (!pool || irstd_pool_threads(pool) != threads) return 2;
        caller callers[3];
        pthread_t handles[3];
        callers[0] = (caller){pool, rounds, 0};
        call(&callers[0]);
        for (int i = 0; i < 3; i++) {
            callers[i].pool = pool;
            callers[i].rounds = rounds / 4;
            callers[i].failed = i ? 0 : callers[i].failed;
            if (pthread_create(&handles[i], NULL, call, &callers[i])) return 2;
        }
        int failed = 0;
        for (int i = 0; i < 3; i++) {
            pthread_join(handles[i], NULL);
            failed |= callers[i].failed;
        }
        irstd_pool_destroy(pool);
        if (failed) return 1;
    }
    for (int i = 0; i < 50; i++) irstd_pool_destroy(irstd_pool_create(1 + i % 4)); /* without any run */
    irstd_pool_destroy(NULL);
    puts("ok");
    return 0;
}
