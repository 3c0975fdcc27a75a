/* Errors, and the attributes of irstd.BinaryConv2d: their defaults and ranges. */
#include <stdarg.h>
#include <stdio.h>

#include "internal.h"

irstd_status irstd_fail(irstd_error *error, irstd_status status, const char *format, ...) {
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(error->message, sizeof error->message, format, arguments);
        va_end(arguments);
    }
    return status;
}

void irstd_bconv2d_attributes_init(irstd_bconv2d_attributes *attributes) {
    if (!attributes) return;
#define IRSTD_SET(type, name, mandatory, default_value, minimum, maximum) attributes->name = default_value;
    IRSTD_BINARY_CONV2D_ATTRIBUTES(IRSTD_SET)
#undef IRSTD_SET
}

irstd_status irstd_bconv2d_check(const irstd_bconv2d_attributes *a, irstd_error *error) {
    /* Written so that a NaN fails; %g shows both int32 and float exactly enough. */
#define IRSTD_CHECK(type, name, mandatory, default_value, minimum, maximum)                                  \
    if (mandatory && (double)a->name == INT32_MIN)                                                           \
        return irstd_fail(error, IRSTD_INVALID, "%s is mandatory and was not set", #name);                   \
    if (!(a->name >= minimum && a->name <= maximum))                                                         \
        return irstd_fail(error, IRSTD_INVALID, "%s must be in %.9g..%.9g, got %.10g", #name, (double)minimum, \
                          (double)maximum, (double)a->name);
    IRSTD_BINARY_CONV2D_ATTRIBUTES(IRSTD_CHECK)
#undef IRSTD_CHECK
    if (a->in_channels % a->groups || a->out_channels % a->groups)
        return irstd_fail(error, IRSTD_INVALID,
                          "groups must divide in_channels and out_channels: groups=%d, in_channels=%d, out_channels=%d",
                          a->groups, a->in_channels, a->out_channels);
    if (!(a->clamp_min <= a->clamp_max))
        return irstd_fail(error, IRSTD_INVALID, "clamp_min must not exceed clamp_max: %.9g > %.9g",
                          (double)a->clamp_min, (double)a->clamp_max);
    return IRSTD_OK;
}
