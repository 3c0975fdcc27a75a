#include "flexbuffer.h"

#include <math.h>
#include <string.h>

/* The types of the format that this reader knows. */
enum {
    TYPE_INT = 1,
    TYPE_UINT = 2,
    TYPE_FLOAT = 3,
    TYPE_INDIRECT_INT = 6,
    TYPE_INDIRECT_UINT = 7,
    TYPE_INDIRECT_FLOAT = 8,
    TYPE_MAP = 9,
    TYPE_BOOL = 26,
};

static const char outside[] = "an offset leaves the buffer";

/* True where [position, position + bytes) lies in the buffer. */
static int inside(const irstd_flexmap *map, size_t position, size_t bytes) {
    return position <= map->size && bytes <= map->size - position;
}

/* Little-endian; the caller has checked the bounds. */
static uint64_t read_unsigned(const irstd_flexmap *map, size_t position, unsigned width) {
    uint64_t value = 0;
    for (unsigned i = 0; i < width; i++) value |= (uint64_t)map->data[position + i] << (8 * i);
    return value;
}

static int64_t read_signed(const irstd_flexmap *map, size_t position, unsigned width) {
    uint64_t value = read_unsigned(map, position, width);
    uint64_t sign = UINT64_C(1) << (8 * width - 1);
    if (width < 8 && value & sign) value |= ~((sign << 1) - 1);
    int64_t result;
    memcpy(&result, &value, sizeof result);
    return result;
}

static double read_half(uint16_t bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                       : exponent == 0 ? ldexp(fraction, -24)
                                       : ldexp(fraction + 1024, exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

static const char *read_real(const irstd_flexmap *map, size_t position, unsigned width, double *value) {
    uint64_t bits = read_unsigned(map, position, width);
    if (width == 8) {
        memcpy(value, &bits, sizeof *value);
    } else if (width == 4) {
        uint32_t low = (uint32_t)bits;
        float single;
        memcpy(&single, &low, sizeof single);
        *value = single;
    } else if (width == 2) {
        *value = read_half((uint16_t)bits);
    } else {
        return "a float of one byte";
    }
    return NULL;
}

/* Follows the backward offset that is stored at `position`. */
static const char *follow(const irstd_flexmap *map, size_t position, unsigned width, size_t *target) {
    uint64_t offset = read_unsigned(map, position, width);
    if (offset > position) return outside;
    *target = position - (size_t)offset;
    return NULL;
}

static int valid_width(uint64_t width) { return width == 1 || width == 2 || width == 4 || width == 8; }

const char *irstd_flexmap_open(const void *data, size_t size, irstd_flexmap *map) {
    *map = (irstd_flexmap){.data = data, .size = size};
    if (!data || size < 3) return "shorter than any FlexBuffer";
    /* The last byte is the width of the root, the one before its packed type. */
    unsigned width = map->data[size - 1], type = map->data[size - 2];
    if (!valid_width(width) || size - 2 < width) return "its root has an invalid width";
    if (type >> 2 != TYPE_MAP) return "its root is no map";
    map->value_width = 1u << (type & 3);
    const char *error = follow(map, size - 2 - width, width, &map->values);
    if (error) return error;
    /* Before the values: offset of the keys, their width, the number of entries. */
    size_t header = 3 * (size_t)map->value_width;
    if (map->values < header) return outside;
    size_t position = map->values - header;
    if ((error = follow(map, position, map->value_width, &map->keys))) return error;
    uint64_t key_width = read_unsigned(map, position + map->value_width, map->value_width);
    uint64_t count = read_unsigned(map, position + 2 * map->value_width, map->value_width);
    if (!valid_width(key_width)) return "its keys have an invalid width";
    map->key_width = (unsigned)key_width;
    if (count > size) return outside;
    map->count = (size_t)count;
    /* Values are followed by one type byte each; keys by nothing, but preceded by their own count. */
    if (!inside(map, map->values, map->count * (map->value_width + 1u)) ||
        !inside(map, map->keys, map->count * map->key_width) || map->keys < map->key_width)
        return outside;
    if (read_unsigned(map, map->keys - map->key_width, map->key_width) != count)
        return "its keys and values differ in number";
    return NULL;
}

const char *irstd_flexmap_item(const irstd_flexmap *map, size_t index, irstd_flexitem *item) {
    memset(item, 0, sizeof *item);
    if (index >= map->count) return "it has no such entry";
    size_t start;
    const char *error = follow(map, map->keys + index * map->key_width, map->key_width, &start);
    if (error) return error;
    if (!memchr(map->data + start, 0, map->size - start)) return "a key has no end";
    item->key = (const char *)map->data + start;
    size_t position = map->values + index * map->value_width;
    unsigned width = map->value_width;
    unsigned packed = map->data[map->values + map->count * map->value_width + index], type = packed >> 2;
    if (type == TYPE_INDIRECT_INT || type == TYPE_INDIRECT_UINT || type == TYPE_INDIRECT_FLOAT) {
        if ((error = follow(map, position, width, &position))) return error;
        width = 1u << (packed & 3);
        if (!inside(map, position, width)) return outside;
        type -= TYPE_INDIRECT_INT - TYPE_INT;
    }
    switch (type) {
    case TYPE_INT:
        item->integer = read_signed(map, position, width);
        break;
    case TYPE_UINT:
    case TYPE_BOOL: {
        uint64_t value = read_unsigned(map, position, width);
        if (value > INT64_MAX) return "an integer exceeds 63 bits";
        item->integer = type == TYPE_BOOL ? value != 0 : (int64_t)value;
        break;
    }
    case TYPE_FLOAT:
        item->kind = IRSTD_FLEX_REAL;
        return read_real(map, position, width, &item->real);
    default:
        return "a value is no scalar";
    }
    item->real = (double)item->integer;
    return NULL;
}
