/* Features of CPUs that a compiler's flags let a source use, told by the macros that they define: IRSTD_CPU_NEEDS is the
 * set of those that the source it stands in was compiled for. Kernels tell theirs, and dispatch asks for all of them. */
#ifndef IRSTD_CPU_H
#define IRSTD_CPU_H

#include <stdint.h>

/* F(macro, word, bit, state): where the CPU tells of it, and what the operating system must save for it. */
#if defined(__x86_64__) || defined(__i386__)
enum { CPUID_1_ECX, CPUID_7_EBX, CPUID_7_ECX, CPUID_7_1_EAX, IRSTD_CPU_WORDS };
enum { XCR0_YMM = 0x6, XCR0_ZMM = 0xe6 };
#define IRSTD_CPU_FEATURES(F)                                                                                           \
    F(__SSE3__, CPUID_1_ECX, 0, 0)                                                                                      \
    F(__SSSE3__, CPUID_1_ECX, 9, 0)                                                                                     \
    F(__FMA__, CPUID_1_ECX, 12, XCR0_YMM)                                                                               \
    F(__SSE4_1__, CPUID_1_ECX, 19, 0)                                                                                   \
    F(__SSE4_2__, CPUID_1_ECX, 20, 0)                                                                                   \
    F(__CRC32__, CPUID_1_ECX, 20, 0)                                                                                    \
    F(__POPCNT__, CPUID_1_ECX, 23, 0)                                                                                   \
    F(__XSAVE__, CPUID_1_ECX, 26, 0)                                                                                    \
    F(__AVX__, CPUID_1_ECX, 28, XCR0_YMM)                                                                               \
    F(__F16C__, CPUID_1_ECX, 29, XCR0_YMM)                                                                              \
    F(__AVX2__, CPUID_7_EBX, 5, XCR0_YMM)                                                                               \
    F(__AVX512F__, CPUID_7_EBX, 16, XCR0_ZMM)                                                                           \
    F(__AVX512DQ__, CPUID_7_EBX, 17, XCR0_ZMM)                                                                          \
    F(__AVX512CD__, CPUID_7_EBX, 28, XCR0_ZMM)                                                                          \
    F(__AVX512BW__, CPUID_7_EBX, 30, XCR0_ZMM)                                                                          \
    F(__AVX512VL__, CPUID_7_EBX, 31, XCR0_ZMM)                                                                          \
    F(__AVX512VNNI__, CPUID_7_ECX, 11, XCR0_ZMM)                                                                        \
    F(__AVX512BITALG__, CPUID_7_ECX, 12, XCR0_ZMM)                                                                      \
    F(__AVX512VPOPCNTDQ__, CPUID_7_ECX, 14, XCR0_ZMM)                                                                   \
    F(__AVXVNNI__, CPUID_7_1_EAX, 4, XCR0_YMM)
#elif defined(__aarch64__)
enum { HWCAP, IRSTD_CPU_WORDS };
#define IRSTD_CPU_FEATURES(F)                                                                                           \
    F(__ARM_FEATURE_CRC32, HWCAP, 7, 0)                                                                                 \
    F(__ARM_FEATURE_ATOMICS, HWCAP, 8, 0)                                                                               \
    F(__ARM_FEATURE_QRDMX, HWCAP, 12, 0)                                                                                \
    F(__ARM_FEATURE_DOTPROD, HWCAP, 20, 0)
#elif defined(__arm__)
enum { HWCAP, IRSTD_CPU_WORDS };
#define IRSTD_CPU_FEATURES(F)                                                                                           \
    F(__ARM_NEON, HWCAP, 12, 0)                                                                                         \
    F(__ARM_FEATURE_FMA, HWCAP, 16, 0)
#else
enum { IRSTD_CPU_WORDS = 1 };
#define IRSTD_CPU_FEATURES(F)
#endif

#define IRSTD_CPU_NUMBER(macro, word, bit, state) IRSTD_CPU_##macro,
enum { IRSTD_CPU_FEATURES(IRSTD_CPU_NUMBER) IRSTD_CPU_FEATURE_COUNT };
#undef IRSTD_CPU_NUMBER

/* 1 where the macro is defined as 1, else 0. */
#define IRSTD_IS_ONE(value) IRSTD_IS_ONE_(value)
#define IRSTD_IS_ONE_(value) IRSTD_IS_ONE__(IRSTD_COMMA_##value)
#define IRSTD_IS_ONE__(comma) IRSTD_SECOND(comma 1, 0, 0)
#define IRSTD_SECOND(first, second, ...) second
#define IRSTD_COMMA_1 0,

#define IRSTD_CPU_NEED(macro, word, bit, state) | (uint64_t)IRSTD_IS_ONE(macro) << IRSTD_CPU_##macro
#define IRSTD_CPU_NEEDS (0 IRSTD_CPU_FEATURES(IRSTD_CPU_NEED))

/* Whether this CPU, and its operating system, have all of them. */
int irstd_cpu_has(uint64_t features);

#endif
