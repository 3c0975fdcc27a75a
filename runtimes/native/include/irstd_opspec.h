/* Generated from irstd_edge/opspec.py by `python -m irstd_edge.opspec_c`. Do not edit. */
#ifndef IRSTD_OPSPEC_H
#define IRSTD_OPSPEC_H

#include <math.h>
#include <stdint.h>

#define IRSTD_DOMAIN "irstd"
#define IRSTD_BINARY_CONV2D "BinaryConv2d"
#define IRSTD_QUANT_CONV2D "QuantConv2d"
#define IRSTD_FIXED_POINT "FixedPoint"
#define IRSTD_PROGRAM "Program"
#define IRSTD_OPSET_VERSION 1
#define IRSTD_WORD_BITS 32
#define IRSTD_BIT_ORDER_LSB_PLUS_ONE 1
#define IRSTD_MAX_KERNEL 31
#define IRSTD_MAX_CHANNELS 65536
#define IRSTD_MAX_STEP 4096
#define IRSTD_MAX_SIDE 32768
#define IRSTD_MAX_IMAGES 16
#define IRSTD_RESIDUAL_NONE 0
#define IRSTD_RESIDUAL_ADD 1
#define IRSTD_RESIDUAL_MODULATE 2
#define IRSTD_ACTIVATION_NONE 0
#define IRSTD_ACTIVATION_RPRELU 1
#define IRSTD_ACTIVATION_CLAMP 2

/* X(type, name, mandatory, default, minimum, maximum) */
#define IRSTD_BINARY_CONV2D_ATTRIBUTES(X) \
    X(int32_t, version, 1, INT32_MIN, 1, 1) \
    X(int32_t, bit_order, 1, INT32_MIN, 1, 1) \
    X(int32_t, in_channels, 1, INT32_MIN, 1, 65536) \
    X(int32_t, out_channels, 1, INT32_MIN, 1, 65536) \
    X(int32_t, kernel_h, 1, INT32_MIN, 1, 31) \
    X(int32_t, kernel_w, 1, INT32_MIN, 1, 31) \
    X(int32_t, stride_h, 0, 1, 1, 4096) \
    X(int32_t, stride_w, 0, 1, 1, 4096) \
    X(int32_t, dilation_h, 0, 1, 1, 4096) \
    X(int32_t, dilation_w, 0, 1, 1, 4096) \
    X(int32_t, pad_top, 0, 0, 0, 4096) \
    X(int32_t, pad_left, 0, 0, 0, 4096) \
    X(int32_t, pad_bottom, 0, 0, 0, 4096) \
    X(int32_t, pad_right, 0, 0, 0, 4096) \
    X(int32_t, groups, 0, 1, 1, 65536) \
    X(int32_t, pad_value, 1, INT32_MIN, -1, 1) \
    X(int32_t, residual, 0, 0, 0, 2) \
    X(int32_t, activation, 0, 0, 0, 2) \
    X(int32_t, activation_first, 0, 1, 0, 1) \
    X(float, clamp_min, 0, -INFINITY, -INFINITY, INFINITY) \
    X(float, clamp_max, 0, INFINITY, -INFINITY, INFINITY) \
    X(int32_t, fraction_bits, 0, -1, -1, 15)

#define IRSTD_QUANT_CONV2D_ATTRIBUTES(X) \
    X(int32_t, version, 1, INT32_MIN, 1, 1) \
    X(int32_t, in_channels, 1, INT32_MIN, 1, 65536) \
    X(int32_t, out_channels, 1, INT32_MIN, 1, 65536) \
    X(int32_t, kernel_h, 1, INT32_MIN, 1, 31) \
    X(int32_t, kernel_w, 1, INT32_MIN, 1, 31) \
    X(int32_t, stride_h, 0, 1, 1, 4096) \
    X(int32_t, stride_w, 0, 1, 1, 4096) \
    X(int32_t, dilation_h, 0, 1, 1, 4096) \
    X(int32_t, dilation_w, 0, 1, 1, 4096) \
    X(int32_t, pad_top, 0, 0, 0, 4096) \
    X(int32_t, pad_left, 0, 0, 0, 4096) \
    X(int32_t, pad_bottom, 0, 0, 0, 4096) \
    X(int32_t, pad_right, 0, 0, 0, 4096) \
    X(int32_t, groups, 0, 1, 1, 65536) \
    X(int32_t, weight_bits, 1, INT32_MIN, 1, 8) \
    X(int32_t, activation_bits, 1, INT32_MIN, 1, 8) \
    X(int32_t, activation_signed, 0, 0, 0, 1) \
    X(int32_t, zero_point, 0, 0, -128, 255) \
    X(float, inverse_step, 1, INT32_MIN, 1.1754943508222875e-38f, 8.507059173023462e+37f) \
    X(float, clamp_min, 0, -INFINITY, -INFINITY, INFINITY) \
    X(float, clamp_max, 0, INFINITY, -INFINITY, INFINITY)

#define IRSTD_FIXED_POINT_ATTRIBUTES(X) \
    X(int32_t, version, 1, INT32_MIN, 1, 1) \
    X(int32_t, fraction_bits, 1, INT32_MIN, 0, 15) \
    X(int32_t, bits, 1, INT32_MIN, 2, 16)

#define IRSTD_PROGRAM_ATTRIBUTES(X) \
    X(int32_t, version, 1, INT32_MIN, 1, 1) \
    X(int32_t, height, 1, INT32_MIN, 1, 32768) \
    X(int32_t, width, 1, INT32_MIN, 1, 32768)

#endif
