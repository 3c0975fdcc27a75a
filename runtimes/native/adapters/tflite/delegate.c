#include "delegate.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flexbuffer.h"

enum { MAX_THREADS = 64 };

int irstd_tflite_threads(const delegate *d, const tfl_context *context) {
    int threads = d->threads ? d->threads : context->recommended_num_threads;
    return threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
}

void irstd_tflite_share_threads(delegate *d, const tfl_context *context) {
    const int threads = irstd_tflite_threads(d, context);
    if (threads == irstd_pool_threads(d->pool)) return;
    irstd_pool_destroy(d->pool);
    d->pool = threads > 1 ? irstd_pool_create(threads) : NULL;
}

bool irstd_tflite_fail(message *m, const char *operator, const tfl_context *context, int output, const char *format, ...) {
    char detail[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(detail, sizeof detail, format, arguments);
    va_end(arguments);
    const char *name = output >= 0 && (size_t)output < context->tensors_size ? context->tensors[output].name : NULL;
    snprintf(m->text, sizeof m->text, IRSTD_DOMAIN ".%s node '%.160s': %s", operator, name ? name : "?", detail);
    return false;
}

bool irstd_tflite_options(const tfl_node *node, const option *table, int rows, void *target, char *wrong, size_t size) {
    bool given[MAX_OPTIONS] = {false};
    irstd_flexmap map;
    irstd_flexitem item;
    size_t bytes = node->custom_initial_data_size > 0 ? (size_t)node->custom_initial_data_size : 0;
    const char *malformed = irstd_flexmap_open(node->custom_initial_data, bytes, &map);
    *wrong = 0;
    for (size_t i = 0; !malformed && i < map.count; i++) {
        if ((malformed = irstd_flexmap_item(&map, i, &item))) break;
        int row = 0;
        while (row < rows && strcmp(item.key, table[row].name)) row++;
        if (row == rows) {
            snprintf(wrong, size, "unknown option %.64s", item.key);
            return false;
        }
        char *field = (char *)target + table[row].offset;
        given[row] = true;
        if (table[row].is_float) {
            float value = (float)item.real;
            memcpy(field, &value, sizeof value);
        } else if (item.kind != IRSTD_FLEX_INTEGER) {
            snprintf(wrong, size, "option %s must be an integer", table[row].name);
            return false;
        } else if (item.integer <= INT32_MIN || item.integer > INT32_MAX) {
            snprintf(wrong, size, "option %s is out of range: %lld", table[row].name, (long long)item.integer);
            return false;
        } else {
            int32_t value = (int32_t)item.integer;
            memcpy(field, &value, sizeof value);
        }
    }
    if (malformed) snprintf(wrong, size, "malformed options: %s", malformed);
    for (int row = 0; row < rows && !*wrong; row++)
        if (table[row].mandatory && !given[row]) snprintf(wrong, size, "option %s is missing", table[row].name);
    return !*wrong;
}

void irstd_tflite_make_dynamic(tfl_tensor *tensor) {
    if (tensor->allocation_type == TFL_DYNAMIC) return;
    tensor->allocation_type = TFL_DYNAMIC;
    tensor->data = NULL;
}

bool irstd_tflite_resize(tfl_context *context, tfl_tensor *tensor, const int64_t dims[4], bool dynamic) {
    if (dynamic) irstd_tflite_make_dynamic(tensor);
    tfl_int_array *size = malloc(sizeof *size + 4 * sizeof *size->data); /* ResizeTensor takes it over */
    if (!size) return false;
    size->size = 4;
    for (int d = 0; d < 4; d++) size->data[d] = (int)dims[d];
    return context->ResizeTensor(context, tensor, size) == TFL_OK;
}
