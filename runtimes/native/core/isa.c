/* Which instruction sets this CPU has, and which one dispatch takes. */
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "engine.h"

/* What the CPU tells of itself; returns what the operating system saves of its registers. */
#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

static unsigned ask(unsigned *words) {
    unsigned a, b, c, d, saved = 0;
    if (!__get_cpuid(1, &a, &b, &words[CPUID_1_ECX], &d)) return 0;
    if (words[CPUID_1_ECX] & bit_OSXSAVE) __asm__ volatile("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));
    if (__get_cpuid_count(7, 0, &a, &words[CPUID_7_EBX], &words[CPUID_7_ECX], &d) && a)
        __get_cpuid_count(7, 1, &words[CPUID_7_1_EAX], &b, &c, &d);
    return saved;
}
#elif defined(__aarch64__) || defined(__arm__)
#include <sys/auxv.h>

static unsigned ask(unsigned *words) {
    words[HWCAP] = (unsigned)getauxval(AT_HWCAP);
    return 0;
}
#else
static unsigned ask(unsigned *words) { return *words; }
#endif

int irstd_cpu_has(uint64_t features) {
    unsigned words[IRSTD_CPU_WORDS] = {0}, saved = ask(words);
    (void)saved;
#define HAS(macro, word, bit, state) \
    if ((features >> IRSTD_CPU_##macro & 1) && (!(words[word] >> bit & 1) || (saved & (state)) != (state))) return 0;
    IRSTD_CPU_FEATURES(HAS)
#undef HAS
    return 1;
}

static int available(const irstd_kernels *set) { return irstd_cpu_has(set->needs | set->rows->needs); }

int irstd_isa_count(void) { return irstd_kernel_set_count; }

const char *irstd_isa_name(int index) {
    return index >= 0 && index < irstd_kernel_set_count ? irstd_kernel_sets[index]->isa : NULL;
}

int irstd_isa_available(int index) {
    return index >= 0 && index < irstd_kernel_set_count && available(irstd_kernel_sets[index]);
}

const char *irstd_isa(irstd_error *error) {
    const char *forced = getenv("IRSTD_ISA");
    if (forced && *forced) {
        for (int i = 0; i < irstd_kernel_set_count; i++) {
            if (strcmp(forced, irstd_kernel_sets[i]->isa)) continue;
            if (available(irstd_kernel_sets[i])) return irstd_kernel_sets[i]->isa;
            irstd_fail(error, IRSTD_UNSUPPORTED, "IRSTD_ISA=%s: this CPU does not have it", forced);
            return NULL;
        }
        char known[64] = "";
        for (int i = 0; i < irstd_kernel_set_count; i++) {
            if (i) strcat(known, ", ");
            strcat(known, irstd_kernel_sets[i]->isa);
        }
        irstd_fail(error, IRSTD_UNSUPPORTED, "IRSTD_ISA=%.32s: not in this build, which knows %s", forced, known);
        return NULL;
    }
    int best = irstd_kernel_set_count - 1;
    while (best > 0 && !available(irstd_kernel_sets[best])) best--;
    return irstd_kernel_sets[best]->isa;
}
