/* libirstd_ort.so: the operators of domain `irstd` for ONNX Runtime 1.18 and newer.
 *
 * Entry point: RegisterCustomOps, which SessionOptions.register_custom_ops_library() calls. Nothing of ORT is
 * linked. The session configuration entry `irstd.threads` tells how many threads an operator takes (default: the
 * processors that this process may use). */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node.h"

#define EXPORT __attribute__((visibility("default")))

enum { MAX_THREADS = 64 };

static const irstd_ort_custom_op *const operators[] = {&irstd_ort_bconv2d, &irstd_ort_program};
enum { OPERATORS = sizeof operators / sizeof *operators };

/* Domains live as long as the process: session options hold a pointer to theirs, and may outlive any session. */
typedef struct domain_entry {
    struct domain_entry *next;
    const OrtApi *api;
    OrtCustomOpDomain *domain;
    descriptor operators[OPERATORS];
} domain_entry;

static pthread_mutex_t domains_lock = PTHREAD_MUTEX_INITIALIZER;
static domain_entry *domains;

static int usable_processors(void) {
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    return count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
}

static OrtStatus *configured_threads(const OrtApi *api, const OrtSessionOptions *options, int *threads) {
    char text[16];
    size_t size = sizeof text;
    int given = 0;
    *threads = usable_processors();
    TRY(ORT(api, HasSessionConfigEntry)(options, "irstd.threads", &given));
    if (!given) return NULL;
    if (irstd_ort_succeeded(api, ORT(api, GetSessionConfigEntry)(options, "irstd.threads", text, &size))) {
        char *end;
        long value = strtol(text, &end, 10);
        if (end != text && !*end && value >= 1 && value <= MAX_THREADS) {
            *threads = (int)value;
            return NULL;
        }
    }
    return ORT(api, CreateStatus)(ORT_INVALID_ARGUMENT, "irstd.threads must be a number in 1..64");
}

static OrtStatus *find_domain(const OrtApi *api, int threads, OrtCustomOpDomain **result) {
    for (domain_entry *entry = domains; entry; entry = entry->next)
        if (entry->api == api && entry->operators[0].threads == threads) {
            *result = entry->domain;
            return NULL;
        }
    domain_entry *entry = calloc(1, sizeof *entry);
    if (!entry) return ORT(api, CreateStatus)(ORT_FAIL, "out of memory");
    entry->api = api;
    OrtStatus *status = ORT(api, CreateCustomOpDomain)(IRSTD_DOMAIN, &entry->domain);
    for (int i = 0; i < OPERATORS && !status; i++) {
        entry->operators[i] = (descriptor){*operators[i], threads};
        status = ORT(api, CustomOpDomain_Add)(entry->domain, (const OrtCustomOp *)(const void *)&entry->operators[i].op);
    }
    if (status) { /* the domain, if made, stays with ORT and may hold an operator already: neither is released */
        return status;
    }
    entry->next = domains;
    domains = entry;
    *result = entry->domain;
    return NULL;
}

EXPORT OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    const OrtApi *api = base->GetApi(IRSTD_ORT_API_LEVEL);
    if (!api) {
        char message[160];
        snprintf(message, sizeof message, "irstd needs ONNX Runtime 1.18 or newer, this one is %s",
                 base->GetVersionString());
        const OrtApi *oldest = base->GetApi(1);
        return oldest ? ORT(oldest, CreateStatus)(ORT_NOT_IMPLEMENTED, message) : NULL;
    }
    int threads;
    OrtCustomOpDomain *domain = NULL;
    TRY(configured_threads(api, options, &threads));
    pthread_mutex_lock(&domains_lock);
    OrtStatus *status = find_domain(api, threads, &domain);
    pthread_mutex_unlock(&domains_lock);
    TRY(status);
    return ORT(api, AddCustomOpDomain)(options, domain);
}

/* ---- what this build and CPU can run, for reports ---- */

EXPORT const char *irstd_library_isa(irstd_error *error) { return irstd_isa(error); }
EXPORT int irstd_library_isa_count(void) { return irstd_isa_count(); }
EXPORT const char *irstd_library_isa_name(int index) { return irstd_isa_name(index); }
EXPORT int irstd_library_isa_available(int index) { return irstd_isa_available(index); }
