/* A reader of FlexBuffers maps with scalar values: the options of our custom operators.
 * The input is untrusted: nothing is read outside [data, data + size). */
#ifndef IRSTD_FLEXBUFFER_H
#define IRSTD_FLEXBUFFER_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const uint8_t *data;
    size_t size;
    size_t count;        /* entries of the map */
    size_t values, keys; /* offsets of the first value and of the first key */
    unsigned value_width, key_width;
} irstd_flexmap;

typedef enum { IRSTD_FLEX_INTEGER, IRSTD_FLEX_REAL } irstd_flexkind;

typedef struct {
    const char *key; /* NUL-terminated, inside the buffer */
    irstd_flexkind kind;
    int64_t integer; /* also booleans, as 0 and 1 */
    double real;
} irstd_flexitem;

/* Both return NULL, or what is wrong with the buffer. */
const char *irstd_flexmap_open(const void *data, size_t size, irstd_flexmap *map);
const char *irstd_flexmap_item(const irstd_flexmap *map, size_t index, irstd_flexitem *item);

#endif
