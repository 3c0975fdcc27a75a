/* libirstd_tflite.so: an external delegate that runs custom operators `irstd.*` in TFLite and LiteRT.
 *
 * Entry points: tflite_plugin_create_delegate and tflite_plugin_destroy_delegate. Nothing of TFLite is linked.
 * A delegate belongs to one interpreter. Option: num_threads, else the interpreter's own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "delegate.h"

#define EXPORT __attribute__((visibility("default")))

enum { MAX_THREADS = 64 };

/* The kernel of an operator, or NULL. */
static const tfl_registration *kernel_of(const tfl_registration *operator) {
    const char *code = operator->custom_name;
    if (!code) return NULL;
    return !strcmp(code, CUSTOM_CODE(IRSTD_BINARY_CONV2D)) ? &irstd_tflite_bconv2d
           : !strcmp(code, CUSTOM_CODE(IRSTD_PROGRAM))     ? &irstd_tflite_program
                                                           : NULL;
}

/* Each node alone: what is between two of them is a tensor of TFLite's. */
static tfl_status claim(tfl_context *context, tfl_delegate *base) {
    tfl_int_array *order;
    if (context->GetExecutionPlan(context, &order)) return TFL_ERROR;
    const int count = order->size; /* replacing nodes changes the plan */
    tfl_int_array *nodes = malloc(sizeof *nodes + (size_t)(count > 0 ? count : 1) * sizeof *nodes->data);
    tfl_int_array *one = malloc(sizeof *one + sizeof *one->data);
    tfl_status status = nodes && one ? TFL_OK : TFL_ERROR;
    if (status == TFL_OK) memcpy(nodes->data, order->data, (size_t)count * sizeof *nodes->data);
    for (int i = 0; status == TFL_OK && i < count; i++) {
        tfl_node *node;
        tfl_registration *operator;
        status = context->GetNodeAndRegistration(context, nodes->data[i], &node, &operator);
        const tfl_registration *kernel = status ? NULL : kernel_of(operator);
        if (!kernel) continue;
        one->size = 1;
        one->data[0] = nodes->data[i];
        status = context->ReplaceNodeSubsetsWithDelegateKernels(context, *kernel, one, base);
    }
    free(one);
    free(nodes);
    return status;
}

EXPORT tfl_delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count,
                                                   void (*report_error)(const char *message)) {
    char message[160] = "";
    int threads = 0;
    for (size_t i = 0; i < count && !*message; i++) {
        if (strcmp(keys[i], "num_threads")) {
            snprintf(message, sizeof message, "irstd delegate: unknown option %.64s; it knows num_threads", keys[i]);
            continue;
        }
        char *end;
        long value = strtol(values[i], &end, 10);
        if (end == values[i] || *end || value < 1 || value > MAX_THREADS)
            snprintf(message, sizeof message, "irstd delegate: num_threads must be in 1..%d, got %.32s", MAX_THREADS,
                     values[i]);
        else
            threads = (int)value;
    }
    delegate *d = *message ? NULL : calloc(1, sizeof *d);
    if (!d) {
        if (report_error) report_error(*message ? message : "irstd delegate: out of memory");
        return NULL;
    }
    d->base.Prepare = claim;
    d->base.flags = TFL_DELEGATE_ALLOW_DYNAMIC_TENSORS;
    d->threads = threads;
    return &d->base;
}

EXPORT void tflite_plugin_destroy_delegate(tfl_delegate *base) {
    delegate *d = (delegate *)base;
    if (!d) return;
    irstd_pool_destroy(d->pool);
    free(d);
}

/* ---- what this build and CPU can run, for reports ---- */

EXPORT const char *irstd_library_isa(irstd_error *error) { return irstd_isa(error); }
EXPORT int irstd_library_isa_count(void) { return irstd_isa_count(); }
EXPORT const char *irstd_library_isa_name(int index) { return irstd_isa_name(index); }
EXPORT int irstd_library_isa_available(int index) { return irstd_isa_available(index); }
