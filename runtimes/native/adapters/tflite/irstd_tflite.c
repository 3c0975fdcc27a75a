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

/* The nodes of an operator in their order; NULL on failure. The caller frees them. */
static tfl_int_array *nodes_of(tfl_context *context, const char *code) {
    tfl_int_array *order;
    if (context->GetExecutionPlan(context, &order)) return NULL;
    tfl_int_array *nodes = malloc(sizeof *nodes + (size_t)order->size * sizeof *nodes->data);
    if (!nodes) return NULL;
    nodes->size = 0;
    for (int i = 0; i < order->size; i++) {
        tfl_node *node;
        tfl_registration *registration;
        if (context->GetNodeAndRegistration(context, order->data[i], &node, &registration)) {
            free(nodes);
            return NULL;
        }
        if (registration->custom_name && !strcmp(registration->custom_name, code))
            nodes->data[nodes->size++] = order->data[i];
    }
    return nodes;
}

static tfl_status claim_bconv2d(tfl_context *context, tfl_delegate *base) {
    tfl_int_array *nodes = nodes_of(context, CUSTOM_CODE(IRSTD_BINARY_CONV2D));
    if (!nodes) return TFL_ERROR;
    tfl_status status = TFL_OK;
    if (nodes->size)
        status = context->ReplaceNodeSubsetsWithDelegateKernels(context, irstd_tflite_bconv2d, nodes, base);
    free(nodes);
    return status;
}

/* Each node alone: what is between two of them is a tensor of TFLite's. */
static tfl_status claim_programs(tfl_context *context, tfl_delegate *base) {
    tfl_int_array *nodes = nodes_of(context, CUSTOM_CODE(IRSTD_PROGRAM));
    tfl_int_array *one = malloc(sizeof *one + sizeof *one->data);
    tfl_status status = nodes && one ? TFL_OK : TFL_ERROR;
    for (int i = 0; status == TFL_OK && i < nodes->size; i++) {
        one->size = 1;
        one->data[0] = nodes->data[i];
        status = context->ReplaceNodeSubsetsWithDelegateKernels(context, irstd_tflite_program, one, base);
    }
    free(one);
    free(nodes);
    return status;
}

static tfl_status claim(tfl_context *context, tfl_delegate *base) {
    tfl_status status = claim_bconv2d(context, base);
    return status ? status : claim_programs(context, base);
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
