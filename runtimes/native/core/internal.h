/* Shared by the core and the engine; not installed. */
#ifndef IRSTD_INTERNAL_H
#define IRSTD_INTERNAL_H

#include "irstd.h"

#if defined(__GNUC__)
#define IRSTD_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define IRSTD_PRINTF(text, first)
#endif

/* Writes the message, returns the status. */
irstd_status irstd_fail(irstd_error *error, irstd_status status, const char *format, ...) IRSTD_PRINTF(3, 4);

/* Whether every attribute is in its range and they fit together. */
irstd_status irstd_bconv2d_check(const irstd_bconv2d_attributes *attributes, irstd_error *error);

static inline int64_t irstd_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t irstd_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t irstd_round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

#endif
