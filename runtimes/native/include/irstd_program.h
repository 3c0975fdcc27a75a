/* Generated from irstd_edge/program.py by `python -m irstd_edge.program_c`. Do not edit.
 * The file model.irstd; little endian, offsets from its start. */
#ifndef IRSTD_PROGRAM_H
#define IRSTD_PROGRAM_H

#include <stdint.h>

#define IRSTD_PROGRAM_MAGIC "\x89" "IRSTD\r\n"
#define IRSTD_PROGRAM_VERSION 2
#define IRSTD_PROGRAM_ALIGNMENT 64
#define IRSTD_MAX_TENSORS 4096
#define IRSTD_MAX_NODES 4096
#define IRSTD_NODE_INPUTS 8
#define IRSTD_NODE_CONSTANTS 6

#define IRSTD_TENSOR_TYPE_FLOAT32 0
#define IRSTD_TENSOR_TYPE_INT16 1

#define IRSTD_FLOAT_ACTIVATION_NONE 0
#define IRSTD_FLOAT_ACTIVATION_RELU 1
#define IRSTD_FLOAT_ACTIVATION_PRELU 2
#define IRSTD_FLOAT_ACTIVATION_CLAMP 3
#define IRSTD_FLOAT_ACTIVATION_SIGMOID 4
#define IRSTD_FLOAT_ACTIVATION_TANH 5

#define IRSTD_RESIZE_MODE_NEAREST 0
#define IRSTD_RESIZE_MODE_BILINEAR 1
#define IRSTD_RESIZE_MODE_BILINEAR_ALIGN_CORNERS 2

#define IRSTD_RESIZE_SIZE_SCALED 0
#define IRSTD_RESIZE_SIZE_LIKE 1
#define IRSTD_RESIZE_SIZE_GIVEN 2

/* bytes 0: none. */
typedef struct irstd_constant_record {
    uint32_t offset;
    uint32_t bytes;
} irstd_constant_record;

/* The first bytes of the file. */
typedef struct irstd_file_header {
    uint8_t magic[8];
    uint32_t version;
    uint32_t opset;
    uint64_t file_bytes;
    uint32_t crc32;
    uint32_t tensor_count;
    uint32_t node_count;
    uint32_t input_count;
    uint32_t output_count;
    uint32_t outputs_offset;
    uint32_t tensors_offset;
    uint32_t nodes_offset;
    uint32_t strings_offset;
    uint32_t strings_bytes;
} irstd_file_header;
_Static_assert(sizeof(irstd_file_header) == 64, "irstd_file_header");

/* One image [channels, H, W]: int16 of value q * 2^-fraction_bits, or float32 where that is -1.
 * name: its place in the strings, from strings_offset. */
typedef struct irstd_tensor_record {
    uint32_t name;
    int32_t fraction_bits;
    uint32_t channels;
} irstd_tensor_record;
_Static_assert(sizeof(irstd_tensor_record) == 12, "irstd_tensor_record");

/* One operation; name: as a tensor's. There follow inputs[input_count], and i[], f[] and constant[] of its
 * operator; an absent constant has offset and bytes 0. */
typedef struct irstd_node_record {
    uint32_t op;
    uint32_t name;
    uint32_t input_count;
    uint32_t output;
} irstd_node_record;
_Static_assert(sizeof(irstd_node_record) == 16, "irstd_node_record");

enum {
    IRSTD_OP_BINARY_CONV2D = 1,
    IRSTD_OP_CONV2D = 2,
    IRSTD_OP_FIXED_POINT = 3,
    IRSTD_OP_AVERAGE_POOL = 4,
    IRSTD_OP_MAX_POOL = 5,
    IRSTD_OP_RESIZE = 6,
    IRSTD_OP_ADD = 7,
    IRSTD_OP_MULTIPLY = 8,
    IRSTD_OP_ACTIVATION = 9,
    IRSTD_OP_CONCAT = 10,
    IRSTD_OP_GLOBAL_AVERAGE_POOL = 11,
    IRSTD_OP_CONV_TRANSPOSE2D = 12,
    IRSTD_OP_SLICE = 13,
    IRSTD_OP_QUANT_CONV2D = 14,
    IRSTD_OP_GLOBAL_MAX_POOL = 15,
    IRSTD_OP_CHANNEL_AVERAGE_POOL = 16,
    IRSTD_OP_CHANNEL_MAX_POOL = 17,
};

/* X(NAME, number, text, fewest inputs, most inputs, integers, floats, constants) */
#define IRSTD_PROGRAM_OPERATORS(X) \
    X(BINARY_CONV2D, 1, "BinaryConv2d", 1, 2, 20, 2, 5) \
    X(CONV2D, 2, "Conv2d", 1, 1, 14, 2, 3) \
    X(FIXED_POINT, 3, "FixedPoint", 1, 1, 2, 0, 0) \
    X(AVERAGE_POOL, 4, "AveragePool", 1, 1, 10, 0, 0) \
    X(MAX_POOL, 5, "MaxPool", 1, 1, 9, 0, 0) \
    X(RESIZE, 6, "Resize", 1, 2, 8, 0, 0) \
    X(ADD, 7, "Add", 2, 2, 1, 2, 1) \
    X(MULTIPLY, 8, "Multiply", 2, 2, 0, 0, 0) \
    X(ACTIVATION, 9, "Activation", 1, 1, 1, 2, 1) \
    X(CONCAT, 10, "Concat", 1, 8, 0, 0, 0) \
    X(GLOBAL_AVERAGE_POOL, 11, "GlobalAveragePool", 1, 1, 0, 0, 0) \
    X(CONV_TRANSPOSE2D, 12, "ConvTranspose2d", 1, 1, 16, 2, 3) \
    X(SLICE, 13, "Slice", 1, 1, 1, 0, 0) \
    X(QUANT_CONV2D, 14, "QuantConv2d", 1, 8, 18, 3, 3) \
    X(GLOBAL_MAX_POOL, 15, "GlobalMaxPool", 1, 1, 0, 0, 0) \
    X(CHANNEL_AVERAGE_POOL, 16, "ChannelAveragePool", 1, 1, 0, 0, 0) \
    X(CHANNEL_MAX_POOL, 17, "ChannelMaxPool", 1, 1, 0, 0, 0)

/* X(OPERATOR, NAME, text, slot, minimum, maximum) of every i[] slot */
#define IRSTD_PROGRAM_INTEGERS(X) \
    X(BINARY_CONV2D, VERSION, "version", 0, 1, 1) \
    X(BINARY_CONV2D, BIT_ORDER, "bit_order", 1, 1, 1) \
    X(BINARY_CONV2D, IN_CHANNELS, "in_channels", 2, 1, 65536) \
    X(BINARY_CONV2D, OUT_CHANNELS, "out_channels", 3, 1, 65536) \
    X(BINARY_CONV2D, KERNEL_H, "kernel_h", 4, 1, 31) \
    X(BINARY_CONV2D, KERNEL_W, "kernel_w", 5, 1, 31) \
    X(BINARY_CONV2D, STRIDE_H, "stride_h", 6, 1, 4096) \
    X(BINARY_CONV2D, STRIDE_W, "stride_w", 7, 1, 4096) \
    X(BINARY_CONV2D, DILATION_H, "dilation_h", 8, 1, 4096) \
    X(BINARY_CONV2D, DILATION_W, "dilation_w", 9, 1, 4096) \
    X(BINARY_CONV2D, PAD_TOP, "pad_top", 10, 0, 4096) \
    X(BINARY_CONV2D, PAD_LEFT, "pad_left", 11, 0, 4096) \
    X(BINARY_CONV2D, PAD_BOTTOM, "pad_bottom", 12, 0, 4096) \
    X(BINARY_CONV2D, PAD_RIGHT, "pad_right", 13, 0, 4096) \
    X(BINARY_CONV2D, GROUPS, "groups", 14, 1, 65536) \
    X(BINARY_CONV2D, PAD_VALUE, "pad_value", 15, -1, 1) \
    X(BINARY_CONV2D, RESIDUAL, "residual", 16, 0, 2) \
    X(BINARY_CONV2D, ACTIVATION, "activation", 17, 0, 2) \
    X(BINARY_CONV2D, ACTIVATION_FIRST, "activation_first", 18, 0, 1) \
    X(BINARY_CONV2D, FRACTION_BITS, "fraction_bits", 19, -1, 15) \
    X(CONV2D, IN_CHANNELS, "in_channels", 0, 1, 65536) \
    X(CONV2D, OUT_CHANNELS, "out_channels", 1, 1, 65536) \
    X(CONV2D, KERNEL_H, "kernel_h", 2, 1, 31) \
    X(CONV2D, KERNEL_W, "kernel_w", 3, 1, 31) \
    X(CONV2D, STRIDE_H, "stride_h", 4, 1, 4096) \
    X(CONV2D, STRIDE_W, "stride_w", 5, 1, 4096) \
    X(CONV2D, DILATION_H, "dilation_h", 6, 1, 4096) \
    X(CONV2D, DILATION_W, "dilation_w", 7, 1, 4096) \
    X(CONV2D, PAD_TOP, "pad_top", 8, 0, 4096) \
    X(CONV2D, PAD_LEFT, "pad_left", 9, 0, 4096) \
    X(CONV2D, PAD_BOTTOM, "pad_bottom", 10, 0, 4096) \
    X(CONV2D, PAD_RIGHT, "pad_right", 11, 0, 4096) \
    X(CONV2D, GROUPS, "groups", 12, 1, 65536) \
    X(CONV2D, ACTIVATION, "activation", 13, 0, 5) \
    X(FIXED_POINT, FRACTION_BITS, "fraction_bits", 0, 0, 15) \
    X(FIXED_POINT, BITS, "bits", 1, 2, 16) \
    X(AVERAGE_POOL, KERNEL_H, "kernel_h", 0, 1, 4096) \
    X(AVERAGE_POOL, KERNEL_W, "kernel_w", 1, 1, 4096) \
    X(AVERAGE_POOL, STRIDE_H, "stride_h", 2, 1, 4096) \
    X(AVERAGE_POOL, STRIDE_W, "stride_w", 3, 1, 4096) \
    X(AVERAGE_POOL, PAD_TOP, "pad_top", 4, 0, 4096) \
    X(AVERAGE_POOL, PAD_LEFT, "pad_left", 5, 0, 4096) \
    X(AVERAGE_POOL, PAD_BOTTOM, "pad_bottom", 6, 0, 4096) \
    X(AVERAGE_POOL, PAD_RIGHT, "pad_right", 7, 0, 4096) \
    X(AVERAGE_POOL, CEIL_MODE, "ceil_mode", 8, 0, 1) \
    X(AVERAGE_POOL, COUNT_PADDING, "count_padding", 9, 0, 1) \
    X(MAX_POOL, KERNEL_H, "kernel_h", 0, 1, 4096) \
    X(MAX_POOL, KERNEL_W, "kernel_w", 1, 1, 4096) \
    X(MAX_POOL, STRIDE_H, "stride_h", 2, 1, 4096) \
    X(MAX_POOL, STRIDE_W, "stride_w", 3, 1, 4096) \
    X(MAX_POOL, PAD_TOP, "pad_top", 4, 0, 4096) \
    X(MAX_POOL, PAD_LEFT, "pad_left", 5, 0, 4096) \
    X(MAX_POOL, PAD_BOTTOM, "pad_bottom", 6, 0, 4096) \
    X(MAX_POOL, PAD_RIGHT, "pad_right", 7, 0, 4096) \
    X(MAX_POOL, CEIL_MODE, "ceil_mode", 8, 0, 1) \
    X(RESIZE, SCALE_H, "scale_h", 0, 1, 4096) \
    X(RESIZE, SCALE_W, "scale_w", 1, 1, 4096) \
    X(RESIZE, MODE, "mode", 2, 0, 2) \
    X(RESIZE, DIVISOR_H, "divisor_h", 3, 1, 4096) \
    X(RESIZE, DIVISOR_W, "divisor_w", 4, 1, 4096) \
    X(RESIZE, SIZE, "size", 5, 0, 2) \
    X(RESIZE, HEIGHT, "height", 6, 0, 32768) \
    X(RESIZE, WIDTH, "width", 7, 0, 32768) \
    X(ADD, ACTIVATION, "activation", 0, 0, 5) \
    X(ACTIVATION, ACTIVATION, "activation", 0, 0, 5) \
    X(CONV_TRANSPOSE2D, IN_CHANNELS, "in_channels", 0, 1, 65536) \
    X(CONV_TRANSPOSE2D, OUT_CHANNELS, "out_channels", 1, 1, 65536) \
    X(CONV_TRANSPOSE2D, KERNEL_H, "kernel_h", 2, 1, 31) \
    X(CONV_TRANSPOSE2D, KERNEL_W, "kernel_w", 3, 1, 31) \
    X(CONV_TRANSPOSE2D, STRIDE_H, "stride_h", 4, 1, 4096) \
    X(CONV_TRANSPOSE2D, STRIDE_W, "stride_w", 5, 1, 4096) \
    X(CONV_TRANSPOSE2D, DILATION_H, "dilation_h", 6, 1, 4096) \
    X(CONV_TRANSPOSE2D, DILATION_W, "dilation_w", 7, 1, 4096) \
    X(CONV_TRANSPOSE2D, PAD_TOP, "pad_top", 8, 0, 4096) \
    X(CONV_TRANSPOSE2D, PAD_LEFT, "pad_left", 9, 0, 4096) \
    X(CONV_TRANSPOSE2D, PAD_BOTTOM, "pad_bottom", 10, 0, 4096) \
    X(CONV_TRANSPOSE2D, PAD_RIGHT, "pad_right", 11, 0, 4096) \
    X(CONV_TRANSPOSE2D, GROUPS, "groups", 12, 1, 65536) \
    X(CONV_TRANSPOSE2D, ACTIVATION, "activation", 13, 0, 5) \
    X(CONV_TRANSPOSE2D, OUTPUT_PAD_H, "output_pad_h", 14, 0, 4096) \
    X(CONV_TRANSPOSE2D, OUTPUT_PAD_W, "output_pad_w", 15, 0, 4096) \
    X(SLICE, FIRST, "first", 0, 0, 65536) \
    X(QUANT_CONV2D, VERSION, "version", 0, 1, 1) \
    X(QUANT_CONV2D, IN_CHANNELS, "in_channels", 1, 1, 65536) \
    X(QUANT_CONV2D, OUT_CHANNELS, "out_channels", 2, 1, 65536) \
    X(QUANT_CONV2D, KERNEL_H, "kernel_h", 3, 1, 31) \
    X(QUANT_CONV2D, KERNEL_W, "kernel_w", 4, 1, 31) \
    X(QUANT_CONV2D, STRIDE_H, "stride_h", 5, 1, 4096) \
    X(QUANT_CONV2D, STRIDE_W, "stride_w", 6, 1, 4096) \
    X(QUANT_CONV2D, DILATION_H, "dilation_h", 7, 1, 4096) \
    X(QUANT_CONV2D, DILATION_W, "dilation_w", 8, 1, 4096) \
    X(QUANT_CONV2D, PAD_TOP, "pad_top", 9, 0, 4096) \
    X(QUANT_CONV2D, PAD_LEFT, "pad_left", 10, 0, 4096) \
    X(QUANT_CONV2D, PAD_BOTTOM, "pad_bottom", 11, 0, 4096) \
    X(QUANT_CONV2D, PAD_RIGHT, "pad_right", 12, 0, 4096) \
    X(QUANT_CONV2D, GROUPS, "groups", 13, 1, 65536) \
    X(QUANT_CONV2D, WEIGHT_BITS, "weight_bits", 14, 1, 8) \
    X(QUANT_CONV2D, ACTIVATION_BITS, "activation_bits", 15, 1, 8) \
    X(QUANT_CONV2D, ACTIVATION_SIGNED, "activation_signed", 16, 0, 1) \
    X(QUANT_CONV2D, ZERO_POINT, "zero_point", 17, -128, 255)

/* BinaryConv2d(x, residual?) */
#define IRSTD_BINARY_CONV2D_VERSION 0 /* i[] */
#define IRSTD_BINARY_CONV2D_BIT_ORDER 1 /* i[] */
#define IRSTD_BINARY_CONV2D_IN_CHANNELS 2 /* i[] */
#define IRSTD_BINARY_CONV2D_OUT_CHANNELS 3 /* i[] */
#define IRSTD_BINARY_CONV2D_KERNEL_H 4 /* i[] */
#define IRSTD_BINARY_CONV2D_KERNEL_W 5 /* i[] */
#define IRSTD_BINARY_CONV2D_STRIDE_H 6 /* i[] */
#define IRSTD_BINARY_CONV2D_STRIDE_W 7 /* i[] */
#define IRSTD_BINARY_CONV2D_DILATION_H 8 /* i[] */
#define IRSTD_BINARY_CONV2D_DILATION_W 9 /* i[] */
#define IRSTD_BINARY_CONV2D_PAD_TOP 10 /* i[] */
#define IRSTD_BINARY_CONV2D_PAD_LEFT 11 /* i[] */
#define IRSTD_BINARY_CONV2D_PAD_BOTTOM 12 /* i[] */
#define IRSTD_BINARY_CONV2D_PAD_RIGHT 13 /* i[] */
#define IRSTD_BINARY_CONV2D_GROUPS 14 /* i[] */
#define IRSTD_BINARY_CONV2D_PAD_VALUE 15 /* i[] */
#define IRSTD_BINARY_CONV2D_RESIDUAL 16 /* i[] */
#define IRSTD_BINARY_CONV2D_ACTIVATION 17 /* i[] */
#define IRSTD_BINARY_CONV2D_ACTIVATION_FIRST 18 /* i[] */
#define IRSTD_BINARY_CONV2D_FRACTION_BITS 19 /* i[] */
#define IRSTD_BINARY_CONV2D_CLAMP_MIN 0 /* f[] */
#define IRSTD_BINARY_CONV2D_CLAMP_MAX 1 /* f[] */
#define IRSTD_BINARY_CONV2D_WEIGHT 0 /* constant[] */
#define IRSTD_BINARY_CONV2D_THRESHOLD 1 /* constant[] */
#define IRSTD_BINARY_CONV2D_SCALE 2 /* constant[] */
#define IRSTD_BINARY_CONV2D_BIAS 3 /* constant[] */
#define IRSTD_BINARY_CONV2D_ACTIVATION_PARAMETERS 4 /* constant[] */

/* Conv2d(x) */
#define IRSTD_CONV2D_IN_CHANNELS 0 /* i[] */
#define IRSTD_CONV2D_OUT_CHANNELS 1 /* i[] */
#define IRSTD_CONV2D_KERNEL_H 2 /* i[] */
#define IRSTD_CONV2D_KERNEL_W 3 /* i[] */
#define IRSTD_CONV2D_STRIDE_H 4 /* i[] */
#define IRSTD_CONV2D_STRIDE_W 5 /* i[] */
#define IRSTD_CONV2D_DILATION_H 6 /* i[] */
#define IRSTD_CONV2D_DILATION_W 7 /* i[] */
#define IRSTD_CONV2D_PAD_TOP 8 /* i[] */
#define IRSTD_CONV2D_PAD_LEFT 9 /* i[] */
#define IRSTD_CONV2D_PAD_BOTTOM 10 /* i[] */
#define IRSTD_CONV2D_PAD_RIGHT 11 /* i[] */
#define IRSTD_CONV2D_GROUPS 12 /* i[] */
#define IRSTD_CONV2D_ACTIVATION 13 /* i[] */
#define IRSTD_CONV2D_CLAMP_MIN 0 /* f[] */
#define IRSTD_CONV2D_CLAMP_MAX 1 /* f[] */
#define IRSTD_CONV2D_WEIGHT 0 /* constant[] */
#define IRSTD_CONV2D_BIAS 1 /* constant[] */
#define IRSTD_CONV2D_SLOPE 2 /* constant[] */

/* FixedPoint(x) */
#define IRSTD_FIXED_POINT_FRACTION_BITS 0 /* i[] */
#define IRSTD_FIXED_POINT_BITS 1 /* i[] */

/* AveragePool(x) */
#define IRSTD_AVERAGE_POOL_KERNEL_H 0 /* i[] */
#define IRSTD_AVERAGE_POOL_KERNEL_W 1 /* i[] */
#define IRSTD_AVERAGE_POOL_STRIDE_H 2 /* i[] */
#define IRSTD_AVERAGE_POOL_STRIDE_W 3 /* i[] */
#define IRSTD_AVERAGE_POOL_PAD_TOP 4 /* i[] */
#define IRSTD_AVERAGE_POOL_PAD_LEFT 5 /* i[] */
#define IRSTD_AVERAGE_POOL_PAD_BOTTOM 6 /* i[] */
#define IRSTD_AVERAGE_POOL_PAD_RIGHT 7 /* i[] */
#define IRSTD_AVERAGE_POOL_CEIL_MODE 8 /* i[] */
#define IRSTD_AVERAGE_POOL_COUNT_PADDING 9 /* i[] */

/* MaxPool(x) */
#define IRSTD_MAX_POOL_KERNEL_H 0 /* i[] */
#define IRSTD_MAX_POOL_KERNEL_W 1 /* i[] */
#define IRSTD_MAX_POOL_STRIDE_H 2 /* i[] */
#define IRSTD_MAX_POOL_STRIDE_W 3 /* i[] */
#define IRSTD_MAX_POOL_PAD_TOP 4 /* i[] */
#define IRSTD_MAX_POOL_PAD_LEFT 5 /* i[] */
#define IRSTD_MAX_POOL_PAD_BOTTOM 6 /* i[] */
#define IRSTD_MAX_POOL_PAD_RIGHT 7 /* i[] */
#define IRSTD_MAX_POOL_CEIL_MODE 8 /* i[] */

/* Resize(x, addend or like?) */
#define IRSTD_RESIZE_SCALE_H 0 /* i[] */
#define IRSTD_RESIZE_SCALE_W 1 /* i[] */
#define IRSTD_RESIZE_MODE 2 /* i[] */
#define IRSTD_RESIZE_DIVISOR_H 3 /* i[] */
#define IRSTD_RESIZE_DIVISOR_W 4 /* i[] */
#define IRSTD_RESIZE_SIZE 5 /* i[] */
#define IRSTD_RESIZE_HEIGHT 6 /* i[] */
#define IRSTD_RESIZE_WIDTH 7 /* i[] */

/* Add(a, b) */
#define IRSTD_ADD_ACTIVATION 0 /* i[] */
#define IRSTD_ADD_CLAMP_MIN 0 /* f[] */
#define IRSTD_ADD_CLAMP_MAX 1 /* f[] */
#define IRSTD_ADD_SLOPE 0 /* constant[] */

/* Multiply(a, b) */

/* Activation(x) */
#define IRSTD_ACTIVATION_ACTIVATION 0 /* i[] */
#define IRSTD_ACTIVATION_CLAMP_MIN 0 /* f[] */
#define IRSTD_ACTIVATION_CLAMP_MAX 1 /* f[] */
#define IRSTD_ACTIVATION_SLOPE 0 /* constant[] */

/* Concat(x, x1?, x2?, x3?, x4?, x5?, x6?, x7?) */

/* GlobalAveragePool(x) */

/* ConvTranspose2d(x) */
#define IRSTD_CONV_TRANSPOSE2D_IN_CHANNELS 0 /* i[] */
#define IRSTD_CONV_TRANSPOSE2D_OUT_CHANNELS 1 /* i[] */
#define IRSTD_CONV_TRANSPOSE2D_KERNEL_H 2 /* i[] */
#define IRSTD_CONV_TRANSPOSE2D_KERNEL_W 3 /* i[] */
#define IRSTD_CONV_TRANSPOSE2D_STRIDE_H 4 /* i[] */
#define IRSTD_CONV_TRANSPOSE2D_STRIDE_W 5 /* i[] */
#define IRSTD_CONV_TRANSPOSE2D_DILATION_H 6 /* i[] */
#define IRSTD_CONV_TRANSPOSE2D_DILATION_W 7 /* i[] */
#define IRSTD_CONV_TRANSPOSE2D_PAD_TOP 8 /* i[] */
#define IRSTD_CONV_TRANSPOSE2D_PAD_LEFT 9 /* i[] */
#define IRSTD_CONV_TRANSPOSE2D_PAD_BOTTOM 10 /* i[] */
#define IRSTD_CONV_TRANSPOSE2D_PAD_RIGHT 11 /* i[] */
#define IRSTD_CONV_TRANSPOSE2D_GROUPS 12 /* i[] */
#define IRSTD_CONV_TRANSPOSE2D_ACTIVATION 13 /* i[] */
#define IRSTD_CONV_TRANSPOSE2D_OUTPUT_PAD_H 14 /* i[] */
#define IRSTD_CONV_TRANSPOSE2D_OUTPUT_PAD_W 15 /* i[] */
#define IRSTD_CONV_TRANSPOSE2D_CLAMP_MIN 0 /* f[] */
#define IRSTD_CONV_TRANSPOSE2D_CLAMP_MAX 1 /* f[] */
#define IRSTD_CONV_TRANSPOSE2D_WEIGHT 0 /* constant[] */
#define IRSTD_CONV_TRANSPOSE2D_BIAS 1 /* constant[] */
#define IRSTD_CONV_TRANSPOSE2D_SLOPE 2 /* constant[] */

/* Slice(x) */
#define IRSTD_SLICE_FIRST 0 /* i[] */

/* QuantConv2d(x, x1?, x2?, x3?, x4?, x5?, x6?, x7?) */
#define IRSTD_QUANT_CONV2D_VERSION 0 /* i[] */
#define IRSTD_QUANT_CONV2D_IN_CHANNELS 1 /* i[] */
#define IRSTD_QUANT_CONV2D_OUT_CHANNELS 2 /* i[] */
#define IRSTD_QUANT_CONV2D_KERNEL_H 3 /* i[] */
#define IRSTD_QUANT_CONV2D_KERNEL_W 4 /* i[] */
#define IRSTD_QUANT_CONV2D_STRIDE_H 5 /* i[] */
#define IRSTD_QUANT_CONV2D_STRIDE_W 6 /* i[] */
#define IRSTD_QUANT_CONV2D_DILATION_H 7 /* i[] */
#define IRSTD_QUANT_CONV2D_DILATION_W 8 /* i[] */
#define IRSTD_QUANT_CONV2D_PAD_TOP 9 /* i[] */
#define IRSTD_QUANT_CONV2D_PAD_LEFT 10 /* i[] */
#define IRSTD_QUANT_CONV2D_PAD_BOTTOM 11 /* i[] */
#define IRSTD_QUANT_CONV2D_PAD_RIGHT 12 /* i[] */
#define IRSTD_QUANT_CONV2D_GROUPS 13 /* i[] */
#define IRSTD_QUANT_CONV2D_WEIGHT_BITS 14 /* i[] */
#define IRSTD_QUANT_CONV2D_ACTIVATION_BITS 15 /* i[] */
#define IRSTD_QUANT_CONV2D_ACTIVATION_SIGNED 16 /* i[] */
#define IRSTD_QUANT_CONV2D_ZERO_POINT 17 /* i[] */
#define IRSTD_QUANT_CONV2D_INVERSE_STEP 0 /* f[] */
#define IRSTD_QUANT_CONV2D_CLAMP_MIN 1 /* f[] */
#define IRSTD_QUANT_CONV2D_CLAMP_MAX 2 /* f[] */
#define IRSTD_QUANT_CONV2D_WEIGHT 0 /* constant[] */
#define IRSTD_QUANT_CONV2D_SCALE 1 /* constant[] */
#define IRSTD_QUANT_CONV2D_BIAS 2 /* constant[] */

/* GlobalMaxPool(x) */

/* ChannelAveragePool(x) */

/* ChannelMaxPool(x) */

#endif
