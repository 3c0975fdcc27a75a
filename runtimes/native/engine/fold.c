/* Nodes that a convolution computes along the way: the sum of its result and another tensor, with the activation of that
 * sum, and, in float, the concatenation that it reads. Their maps are then neither written nor read. */
#include <string.h>

#include <math.h>
#include "quant.h"

static int is_float(const irstd_tensor *t) { return t->type == IRSTD_TENSOR_TYPE_FLOAT32 && !t->external; }

/* How often a tensor is read. */
static int count_readers(const struct irstd_session *s, const irstd_tensor *t) {
    int count = 0;
    for (int k = 0; k < s->node_count; k++)
        for (int j = 0; j < s->nodes[k].input_count; j++) count += s->nodes[k].inputs[j] == t;
    return count;
}

static void retire(irstd_node *n, const irstd_node *into) {
    n->folded_into = into;
    n->input_count = 0;
    n->has_addend = 0;
    n->macs = 0;
}

/* A concatenation whose every reader can read its parts instead. */
static void fold_concat(struct irstd_session *s, irstd_node *concat) {
    const irstd_tensor *joined = concat->output;
    irstd_node *reader = NULL;
    if (!is_float(joined) || joined->map_count) return;
    for (int j = 0; j < concat->input_count; j++)
        if (!is_float(concat->inputs[j])) return;
    for (int k = 0; k < s->node_count; k++) {
        irstd_node *n = &s->nodes[k];
        for (int j = 0; j < n->input_count; j++) {
            if (n->inputs[j] != joined) continue;
            if (n->op != IRSTD_OP_CONV2D || j || concat->input_count + n->has_addend > MAX_INPUTS ||
                n->i[IRSTD_CONV2D_GROUPS] != 1 || n->i[IRSTD_CONV2D_STRIDE_W] != 1)
                return;
            reader = n;
        }
    }
    if (!reader) return;
    for (int k = 0; k < s->node_count; k++) {
        irstd_node *n = &s->nodes[k];
        if (!n->input_count || n->inputs[0] != joined) continue;
        irstd_tensor *addend = n->inputs[n->input_count - 1];
        memcpy(n->inputs, concat->inputs, sizeof n->inputs);
        n->input_count = concat->input_count + n->has_addend;
        if (n->has_addend) n->inputs[concat->input_count] = addend;
    }
    retire(concat, reader);
}

/* Whether a convolution can go on with the activation of a sum. */
static int goes_on(const irstd_node *n, const irstd_node *sum) {
    if (n->op == IRSTD_OP_CONV2D) return n->i[IRSTD_CONV2D_ACTIVATION] == IRSTD_FLOAT_ACTIVATION_NONE;
    const int activation = sum->i[IRSTD_ADD_ACTIVATION];
    return n->op == IRSTD_OP_QUANT_CONV2D && n->qconv->a.clamp_min == -INFINITY && n->qconv->a.clamp_max == INFINITY &&
           (activation == IRSTD_FLOAT_ACTIVATION_NONE || activation == IRSTD_FLOAT_ACTIVATION_RELU ||
            activation == IRSTD_FLOAT_ACTIVATION_CLAMP);
}

/* The convolution that makes input j of a sum, where the sum can take its place. */
static irstd_node *summand(struct irstd_session *s, const irstd_node *sum, int j) {
    const irstd_tensor *t = sum->inputs[j];
    for (int k = 0; k < s->node_count; k++) {
        irstd_node *n = &s->nodes[k];
        if (n->output != t) continue;
        const int fits = goes_on(n, sum) && !n->has_addend && n->input_count < MAX_INPUTS && is_float(t) &&
                         is_float(sum->inputs[1 - j]) && !t->map_count && count_readers(s, t) == 1;
        return fits ? n : NULL;
    }
    return NULL;
}

/* The convolution moves to the place of the sum, where both summands are known. */
static irstd_status fold_sum(struct irstd_session *s, irstd_node *sum, irstd_error *error) {
    const irstd_tensor *b = sum->inputs[1], *total = sum->output;
    if (!is_float(total) || b->channels != total->channels || b->height != total->height || b->width != total->width)
        return IRSTD_OK;
    irstd_node *first = summand(s, sum, 0), *second = summand(s, sum, 1), *conv = first > second ? first : second;
    if (!conv) return IRSTD_OK;
    irstd_node made = *conv, left = *sum;
    made.output = sum->output;
    made.inputs[made.input_count++] = sum->inputs[conv == first];
    made.has_addend = 1;
    if (conv->qconv) {
        const int activation = sum->i[IRSTD_ADD_ACTIVATION];
        if (activation == IRSTD_FLOAT_ACTIVATION_RELU) conv->qconv->a.clamp_min = 0;
        if (activation == IRSTD_FLOAT_ACTIVATION_CLAMP) {
            conv->qconv->a.clamp_min = sum->f[IRSTD_ADD_CLAMP_MIN];
            conv->qconv->a.clamp_max = sum->f[IRSTD_ADD_CLAMP_MAX];
        }
    } else {
        const size_t bytes = (size_t)irstd_operator_integers(conv->op) * sizeof(int32_t);
        int32_t *i = irstd_own(s, bytes);
        if (!i) return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory");
        memcpy(i, conv->i, bytes);
        i[IRSTD_CONV2D_ACTIVATION] = sum->i[IRSTD_ADD_ACTIVATION];
        made.i = i;
        made.f = sum->f;
        made.constants[IRSTD_CONV2D_SLOPE] = sum->constants[IRSTD_ADD_SLOPE];
    }
    left.output = conv->output;
    *conv = left;
    *sum = made;
    retire(conv, sum);
    return IRSTD_OK;
}

irstd_status irstd_fold(struct irstd_session *s, irstd_error *error) {
    irstd_status status = IRSTD_OK;
    for (int k = 0; k < s->node_count && !status; k++)
        if (s->nodes[k].op == IRSTD_OP_ADD && !s->nodes[k].folded_into) status = fold_sum(s, &s->nodes[k], error);
    for (int k = 0; k < s->node_count && !status; k++)
        if (s->nodes[k].op == IRSTD_OP_CONCAT) fold_concat(s, &s->nodes[k]);
    return status;
}
