/* Bounds of what the instruction counter of benchmarks/arm counts: hints that no core knows, so they do nothing on
 * real cores, and nothing at all is emitted for other architectures. */
#ifndef IRSTD_MARKERS_H
#define IRSTD_MARKERS_H

/* The encodings are spelled out: not every assembler takes a hint without a name. */
#if defined(__aarch64__)
#define IRSTD_MARK_START() __asm__ volatile(".inst 0xd5032c9f" ::: "memory") /* hint #100 */
#define IRSTD_MARK_STOP() __asm__ volatile(".inst 0xd5032cbf" ::: "memory")  /* hint #101 */
#elif defined(__thumb2__)
#define IRSTD_MARK_START() __asm__ volatile(".inst.w 0xf3af8064" ::: "memory")
#define IRSTD_MARK_STOP() __asm__ volatile(".inst.w 0xf3af8065" ::: "memory")
#elif defined(__arm__)
#define IRSTD_MARK_START() __asm__ volatile(".inst 0xe320f064" ::: "memory")
#define IRSTD_MARK_STOP() __asm__ volatile(".inst 0xe320f065" ::: "memory")
#else
#define IRSTD_MARK_START() ((void)0)
#define IRSTD_MARK_STOP() ((void)0)
#endif

#endif
