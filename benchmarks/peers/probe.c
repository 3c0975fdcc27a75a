/* How fast processors multiply, each alone and then all at once: `probe CORE...`.
 *
 * Prints {"alone": [...], "together": [...]}, multiplications per nanosecond and core. Two virtual processors on one
 * physical core have half each, and so has one that another process uses. `alone` is the best of short chunks, what the
 * core can do; `together` the mean of 20 ms, longer than the turns that the system gives to processes. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CHAINS = 8, STEPS = 20000, ALONE_NS = 5000000, TOGETHER_NS = 20000000 };

struct spin {
    int core;
    double length, best, mean;
    pthread_barrier_t *start;
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

/* Eight chains keep the multiplier busy in every cycle: a second thread on the same core gets only what this one loses.
 * One chain would leave room for it. */
static void chunk(void) {
    uint64_t a = 1, b = 2, c = 3, d = 4, e = 5, f = 6, g = 7, h = 8;
    for (int i = 0; i < STEPS; i++) {
        a *= a, b *= b, c *= c, d *= d, e *= e, f *= f, g *= g, h *= h;
        __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f), "+r"(g), "+r"(h));
    }
}

static void *run(void *argument) {
    struct spin *s = argument;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(s->core, &one);
    if (pthread_setaffinity_np(pthread_self(), sizeof one, &one)) exit(1);
    pthread_barrier_wait(s->start);
    double start = now(), last = start, count = 0;
    while (last - start < s->length) {
        chunk();
        double rate = CHAINS * STEPS, time = now();
        count += rate;
        rate /= time - last;
        s->best = rate > s->best ? rate : s->best;
        last = time;
    }
    s->mean = count / (last - start);
    return NULL;
}

static void spin(struct spin *all, int n, double length) {
    pthread_t threads[n];
    pthread_barrier_t start;
    pthread_barrier_init(&start, NULL, (unsigned)n);
    for (int i = 0; i < n; i++) {
        all[i].start = &start, all[i].length = length, all[i].best = 0;
        if (pthread_create(&threads[i], NULL, run, &all[i])) exit(1);
    }
    for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
}

int main(int count, char **arguments) {
    int n = count - 1;
    if (n < 1) return 2;
    struct spin all[n];
    for (int i = 0; i < n; i++) all[i].core = atoi(arguments[i + 1]);
    printf("{\"alone\": [");
    for (int i = 0; i < n; i++) {
        spin(&all[i], 1, ALONE_NS);
        printf("%s%.4f", i ? ", " : "", all[i].best);
    }
    spin(all, n, TOGETHER_NS);
    printf("], \"together\": [");
    for (int i = 0; i < n; i++) printf("%s%.4f", i ? ", " : "", all[i].mean);
    printf("]}\n");
    return 0;
}
