#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

enum { SPIN_NANOSECONDS = 50000, PAUSES_PER_CLOCK = 32 };

struct irstd_pool {
    int workers;
    pthread_t *threads;
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    atomic_flag busy;
    atomic_bool stop;
    atomic_int sleepers; /* workers that wait on `wake`, or are about to */
    atomic_int caller_sleeps;
    atomic_uint generation; /* counts the runs */
    /* The present run. An index is taken by decrementing `next`, which is positive only while the two fields
     * below belong to that run; they change only after `pending` has reached zero. */
    atomic_int next, pending;
    void (*task)(void *argument, int index);
    void *argument;
};

static void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield");
#endif
}

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Takes and runs tasks until none is left. */
static void work(irstd_pool *pool) {
    int next = atomic_load(&pool->next);
    while (next > 0) {
        if (!atomic_compare_exchange_weak(&pool->next, &next, next - 1)) continue;
        pool->task(pool->argument, next - 1);
        if (atomic_fetch_sub(&pool->pending, 1) == 1 && atomic_load(&pool->caller_sleeps)) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->done);
            pthread_mutex_unlock(&pool->lock);
        }
        next = atomic_load(&pool->next);
    }
}

static void *worker(void *argument) {
    irstd_pool *pool = argument;
    unsigned seen = 0;
    for (;;) {
        long long end = now() + SPIN_NANOSECONDS;
        for (int i = 1; atomic_load(&pool->generation) == seen; i++) {
            pause_cpu();
            if (i % PAUSES_PER_CLOCK || now() < end) continue;
            /* Counted before the last look at `generation`, so that a caller either is seen or sees us. */
            pthread_mutex_lock(&pool->lock);
            atomic_fetch_add(&pool->sleepers, 1);
            while (atomic_load(&pool->generation) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
            atomic_fetch_sub(&pool->sleepers, 1);
            pthread_mutex_unlock(&pool->lock);
        }
        seen = atomic_load(&pool->generation);
        if (atomic_load(&pool->stop)) return NULL;
        work(pool);
    }
}

static void start(irstd_pool *pool) {
    atomic_fetch_add(&pool->generation, 1);
    if (!atomic_load(&pool->sleepers)) return;
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

irstd_pool *irstd_pool_create(int threads) {
    irstd_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->threads = calloc(threads > 1 ? (size_t)threads - 1 : 1, sizeof *pool->threads);
    if (!pool->threads) {
        free(pool);
        return NULL;
    }
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->done, NULL);
    atomic_flag_clear(&pool->busy);
    while (pool->workers < threads - 1 &&
           !pthread_create(&pool->threads[pool->workers], NULL, worker, pool))
        pool->workers++;
    return pool;
}

void irstd_pool_destroy(irstd_pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, true);
    start(pool);
    for (int i = 0; i < pool->workers; i++) pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_cond_destroy(&pool->done);
    pthread_mutex_destroy(&pool->lock);
    free(pool->threads);
    free(pool);
}

int irstd_pool_threads(const irstd_pool *pool) { return pool ? pool->workers + 1 : 1; }

void irstd_pool_run(irstd_pool *pool, int tasks, void (*task)(void *argument, int index), void *argument) {
    if (!pool || !pool->workers || tasks < 2 || atomic_flag_test_and_set(&pool->busy)) {
        for (int i = 0; i < tasks; i++) task(argument, i);
        return;
    }
    pool->task = task;
    pool->argument = argument;
    atomic_store(&pool->pending, tasks);
    atomic_store(&pool->next, tasks);
    start(pool);
    work(pool);
    long long end = now() + SPIN_NANOSECONDS;
    for (int i = 1; atomic_load(&pool->pending); i++) {
        pause_cpu();
        if (i % PAUSES_PER_CLOCK || now() < end) continue;
        pthread_mutex_lock(&pool->lock);
        atomic_store(&pool->caller_sleeps, 1);
        while (atomic_load(&pool->pending)) pthread_cond_wait(&pool->done, &pool->lock);
        atomic_store(&pool->caller_sleeps, 0);
        pthread_mutex_unlock(&pool->lock);
    }
    atomic_flag_clear(&pool->busy);
}
