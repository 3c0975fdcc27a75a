/* Which rows and columns of its source a pool or a resize reads: the planner and the kernels ask the same functions. */
#include <math.h>

#include "engine.h"

int irstd_leaves_image(const irstd_node *n) {
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    const int32_t *i = n->i;
    for (int side = 0; side < 4; side++)
        if (i[IRSTD_MAX_POOL_PAD_TOP + side]) return 1;
    return (y->height - 1) * i[IRSTD_MAX_POOL_STRIDE_H] + i[IRSTD_MAX_POOL_KERNEL_H] > x->height ||
           (y->width - 1) * i[IRSTD_MAX_POOL_STRIDE_W] + i[IRSTD_MAX_POOL_KERNEL_W] > x->width;
}

/* In float32 as in PyTorch, so that nearest takes the same pixels. */
float irstd_resize_step(const irstd_node *n, int across) {
    const int32_t *i = n->i;
    const int64_t size = across ? n->inputs[0]->width : n->inputs[0]->height;
    const int64_t made = across ? n->output->width : n->output->height;
    if (i[IRSTD_RESIZE_SIZE] == IRSTD_RESIZE_SIZE_SCALED && made != size) /* PyTorch copies what keeps its size */
        return (float)i[IRSTD_RESIZE_DIVISOR_H + across] / (float)i[IRSTD_RESIZE_SCALE_H + across];
    return (float)size / (float)made;
}

irstd_mix irstd_resize_source(const irstd_node *n, int across, int64_t to) {
    const int64_t size = across ? n->inputs[0]->width : n->inputs[0]->height;
    const int64_t made = across ? n->output->width : n->output->height;
    const int mode = n->i[IRSTD_RESIZE_MODE];
    float at;
    if (mode == IRSTD_RESIZE_MODE_NEAREST && (made == size || made == 2 * size)) /* whatever the factor was */
        at = (float)(to / (made / size));
    else if (mode == IRSTD_RESIZE_MODE_NEAREST)
        at = floorf((float)to * irstd_resize_step(n, across));
    else if (mode == IRSTD_RESIZE_MODE_BILINEAR)
        at = ((float)to + 0.5f) * irstd_resize_step(n, across) - 0.5f;
    else
        at = made > 1 ? (float)to * (float)(size - 1) / (float)(made - 1) : 0;
    if (at < 0) at = 0;
    irstd_mix mix = {.first = irstd_min((int64_t)at, size - 1)};
    mix.fraction = mode == IRSTD_RESIZE_MODE_NEAREST ? 0 : at - (float)mix.first;
    mix.second = mix.fraction > 0 ? irstd_min(mix.first + 1, size - 1) : mix.first; /* what is not there yet may be NaN */
    return mix;
}
