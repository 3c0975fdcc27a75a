/* How fast processors multiply, each alone and then all at once, and how far apart they are: `probe CORE...`.
 *
 * Prints {"alone": [...], "together": [...], "round_trips": [...]}: multiplications per nanosecond of each core, and
 * nanoseconds that a cache line takes to the next core and back. Two virtual processors on one physical core have half
 * of its speed each, and so has one that another process uses. `alone` is the best of short chunks, what the core can
 * do; `together` the mean of 20 ms, longer than the turns that the system gives to processes. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CHAINS = 8, STEPS = 20000, ALONE_NS = 5000000, TOGETHER_NS = 20000000, TRIPS = 1000, CHUNKS = 5 };

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

static void pin(int core) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    if (pthread_setaffinity_np(pthread_self(), sizeof one, &one)) exit(1);
}

static void *run(void *argument) {
    struct spin *s = argument;
    pin(s->core);
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

static _Alignas(128) atomic_int turn;

static void *answer(void *core) {
    pin(*(int *)core);
    for (int i = 0; i < CHUNKS * TRIPS; i++) {
        while (atomic_load(&turn) != 2 * i + 1) {}
        atomic_store(&turn, 2 * i + 2);
    }
    return NULL;
}

static double round_trip(int core, int next) {
    pthread_t thread;
    double best = 1e9;
    atomic_store(&turn, 0);
    pin(core);
    if (pthread_create(&thread, NULL, answer, &next)) exit(1);
    for (int i = 0; i < CHUNKS; i++) {
        double start = now();
        for (int j = i * TRIPS; j < (i + 1) * TRIPS; j++) {
            atomic_store(&turn, 2 * j + 1);
            while (atomic_load(&turn) != 2 * j + 2) {}
        }
        double time = (now() - start) / TRIPS;
        best = time < best ? time : best;
    }
    pthread_join(thread, NULL);
    return best;
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
    printf("], \"round_trips\": [");
    for (int i = 0; i + 1 < n; i++) printf("%s%.0f", i ? ", " : "", round_trip(all[i].core, all[i + 1].core));
    printf("]}\n");
    return 0;
}
