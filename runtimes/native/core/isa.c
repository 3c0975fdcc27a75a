/* Which instruction sets this CPU has, and which one dispatch takes. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#if defined(IRSTD_HAVE_AVX2) || defined(IRSTD_HAVE_AVX512)
#include <cpuid.h>

/* The operating system must save the wide registers too: XCR0 tells. */
static int x86_has(unsigned leaf7_ebx, unsigned leaf7_ecx, unsigned xcr0) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_AVX)) return 0;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & xcr0) != xcr0) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & leaf7_ebx) == leaf7_ebx && (c & leaf7_ecx) == leaf7_ecx;
}

enum {
    EBX_AVX2 = 1u << 5,
    EBX_AVX512F = 1u << 16,
    EBX_AVX512DQ = 1u << 17,
    EBX_AVX512BW = 1u << 30,
    ECX_AVX512_VNNI = 1u << 11,
    ECX_AVX512_BITALG = 1u << 12,
    ECX_AVX512_VPOPCNTDQ = 1u << 14,
    XCR0_YMM = 0x6,
    XCR0_ZMM = 0xe6,
};
#define EBX_AVX512VL (1u << 31)
#endif

static int has_ref(void) { return 1; }

#ifdef IRSTD_HAVE_AVX2
static int has_avx2(void) { return x86_has(EBX_AVX2, 0, XCR0_YMM); }
#endif

#ifdef IRSTD_HAVE_AVX512
static int has_avx512(void) {
#ifdef IRSTD_SIMDE
    return has_avx2(); /* the same source, its AVX-512 intrinsics emulated */
#else
    return x86_has(EBX_AVX2 | EBX_AVX512F | EBX_AVX512DQ | EBX_AVX512BW | EBX_AVX512VL,
                   ECX_AVX512_VPOPCNTDQ | ECX_AVX512_BITALG | ECX_AVX512_VNNI, XCR0_ZMM);
#endif
}
#endif

#ifdef IRSTD_HAVE_NEON
#if defined(IRSTD_SIMDE)
static int has_neon(void) { return has_avx2(); } /* emulated likewise */
#elif defined(__aarch64__)
static int has_neon(void) { return 1; } /* part of ARMv8 */
#else
#include <sys/auxv.h>
static int has_neon(void) { return (getauxval(AT_HWCAP) >> 12 & 1) && (getauxval(AT_HWCAP) >> 16 & 1); } /* NEON, VFPv4 */
#endif
#endif

static const struct {
    const char *name;
    int (*available)(void);
} isas[] = {
    {"ref", has_ref},
#ifdef IRSTD_HAVE_NEON
    {"neon", has_neon},
#endif
#ifdef IRSTD_HAVE_AVX2
    {"avx2", has_avx2},
#endif
#ifdef IRSTD_HAVE_AVX512
    {"avx512", has_avx512},
#endif
};

int irstd_isa_count(void) { return (int)(sizeof isas / sizeof *isas); }

const char *irstd_isa_name(int index) { return index >= 0 && index < irstd_isa_count() ? isas[index].name : NULL; }

int irstd_isa_available(int index) { return index >= 0 && index < irstd_isa_count() && isas[index].available(); }

const char *irstd_isa(irstd_error *error) {
    const char *forced = getenv("IRSTD_ISA");
    if (forced && *forced) {
        for (int i = 0; i < irstd_isa_count(); i++) {
            if (strcmp(forced, isas[i].name)) continue;
            if (isas[i].available()) return isas[i].name;
            irstd_fail(error, IRSTD_UNSUPPORTED, "IRSTD_ISA=%s: this CPU does not have it", forced);
            return NULL;
        }
        char known[64] = "";
        for (int i = 0; i < irstd_isa_count(); i++) {
            if (i) strcat(known, ", ");
            strcat(known, isas[i].name);
        }
        irstd_fail(error, IRSTD_UNSUPPORTED, "IRSTD_ISA=%.32s: not in this build, which knows %s", forced, known);
        return NULL;
    }
    int best = irstd_isa_count() - 1;
    while (best > 0 && !isas[best].available()) best--;
    return isas[best].name;
}
