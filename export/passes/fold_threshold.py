"""Fold a per-channel affine map or a sign before a binary convolution into its thresholds, exactly."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from irstd_edge.export.passes.graph import (
    THRESHOLD,
    WEIGHT,
    X,
    affine_of,
    binary_nodes,
    constant,
    per_channel,
    set_constant,
    sole_user,
    spec_of,
)
from irstd_edge.opspec import WORD_BITS, BinaryConv2dSpec


class FoldThreshold(ir.passes.InPlacePass):
    """``BinaryConv2d(gain * x + offset)`` becomes ``BinaryConv2d(x)`` with other thresholds; so does an explicit sign.

    The new threshold is the smallest float32 for which the two rounded operations reach the old one, found by
    bisection, so every bit is what it was for every finite input. A channel of negative gain compares the other way
    round: its weight bits are flipped, which is exact where no padding is ±1. A channel of zero gain is constant.

    Requires: constants are initializers (:class:`~irstd_edge.export.passes.simplify.Simplify`). Ensures: no
    BatchNormalization, Mul, Add, Sub, or Where-sign with a single use precedes a binary node, except a negative gain
    under a ±1 padding.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in binary_nodes(model):
            while _fold_sign(node) or _fold_affine(node):
                modified = True
        return ir.passes.PassResult(model, modified)


def _fold_affine(node: ir.Node) -> bool:
    spec, value = spec_of(node), node.inputs[X]
    before = value.producer()
    threshold = constant(node.inputs[THRESHOLD])
    chain = _affine_chain(before, value, node, spec.in_channels)
    if chain is None:
        return False
    source, steps, removed = chain
    folded, flip = folded_thresholds(steps, threshold)
    if flip.any() and spec.pad_value and (spec.pad_top or spec.pad_left or spec.pad_bottom or spec.pad_right):
        return False
    if flip.any():
        set_constant(node, WEIGHT, flip_input_channels(constant(node.inputs[WEIGHT]), flip, spec), "weight")
    set_constant(node, THRESHOLD, folded, "threshold")
    node.replace_input_with(X, source)
    for old in removed:
        old.graph.remove(old, safe=True)
    return True


def _affine_chain(before, value, user, channels):
    """The longest run of per-channel affine nodes, each used once, that ends at ``value``; None where there is none."""
    steps, removed = [], []
    while before is not None and sole_user(value) is user:
        source = next((v for v in before.inputs if v is not None and constant(v) is None), None)
        step = None if source is None else affine_of(before, source, channels)
        if step is None or source.shape is None or source.shape[1] != channels:
            break
        steps.insert(0, (before.op_type, *step))
        removed.append(before)
        value, user, before = source, before, source.producer()
    return (value, steps, removed) if steps else None


def _apply(steps, x: np.ndarray) -> np.ndarray:
    """The chain in float32, rounded as its operators round."""
    with np.errstate(over="ignore", invalid="ignore"):
        for op_type, gain, offset in steps:
            if op_type in ("Mul", "Div", "BatchNormalization"):
                x = (gain * x).astype(np.float32)
            if op_type in ("Add", "Sub", "BatchNormalization"):
                x = (x + offset).astype(np.float32)
    return x


def folded_thresholds(steps, threshold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(thresholds, flip)`` per channel for a chain of monotone rounded steps ``(op_type, gain, offset)``.

    Where ``flip`` is false ``chain(x) >= threshold`` is ``x >= thresholds``; where it is true, ``x < thresholds``.
    """
    gain = np.ones_like(threshold)
    for _, k, _ in steps:
        gain = np.sign(gain) * np.sign(k)
    flat, flip = gain == 0, gain < 0

    def reached(x):
        return _apply(steps, x) >= threshold

    found = smallest_float(lambda x: np.where(flip, ~reached(x), reached(x)), threshold.size)
    always = reached(np.zeros_like(threshold))
    found = np.where(flat, np.where(always, np.float32(-np.inf), np.float32(np.inf)), found)
    return found.astype(np.float32), flip


def smallest_float(holds, channels: int) -> np.ndarray:
    """The smallest float32 ``x`` per channel for which the monotone predicate ``holds(x)``; +inf where none does.

    ``holds`` takes and returns arrays of ``[channels]``; false at -inf's side, true from some x on. Bisection over
    the ordered bit patterns of float32, 32 steps.
    """
    top = _key(np.float32(np.inf))
    low = np.full(channels, -top - 1, np.int64)  # below -inf: does not hold
    high = np.full(channels, top, np.int64)
    while np.any(high - low > 1):
        middle = (low + high) >> 1
        true = holds(_from_key(np.maximum(middle, -top)))
        high = np.where(true, middle, high)
        low = np.where(true, low, middle)
    return _from_key(np.maximum(high, -top)) + np.float32(0)  # -0 becomes +0


def _key(x: np.float32) -> int:
    """A signed integer in the order of the floats; both zeros are 0."""
    bits = int(np.float32(x).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _from_key(key: np.ndarray) -> np.ndarray:
    magnitude = np.abs(key).astype(np.int32).view(np.float32)
    return np.where(key < 0, -magnitude, magnitude).astype(np.float32)


def flip_input_channels(words: np.ndarray, flip: np.ndarray, spec: BinaryConv2dSpec) -> np.ndarray:
    """Packed weights ``[OC, KH, KW, words]``, the bits of the input channels in ``flip`` (bool ``[IC]``) inverted."""
    per_group, out_per_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    bits = np.zeros((spec.groups, spec.words * WORD_BITS), np.uint64)
    bits[:, :per_group] = flip.reshape(spec.groups, per_group)
    masks = (bits.reshape(spec.groups, spec.words, WORD_BITS) << np.arange(WORD_BITS, dtype=np.uint64)).sum(-1)
    masks = np.repeat(masks.astype(np.uint32), out_per_group, 0)
    return (words.view(np.uint32) ^ masks[:, None, None, :]).view(np.int32)


def _fold_sign(node: ir.Node) -> bool:
    """``Where(x >= t, 1, -1)`` under thresholds in (-1, 1] is the comparison with t itself."""
    value = node.inputs[X]
    where = value.producer()
    if where is None or where.op_type != "Where" or where.domain or sole_user(value) is not node:
        return False
    high, low = (constant(v) for v in where.inputs[1:3])
    threshold = constant(node.inputs[THRESHOLD])
    if high is None or low is None or not (np.all(high == 1) and np.all(low == -1)):
        return False
    if not np.all((threshold > -1) & (threshold <= 1)):
        return False
    compare = where.inputs[0].producer()
    if compare is None or compare.op_type != "GreaterOrEqual" or sole_user(where.inputs[0]) is not where:
        return False
    bound = per_channel(constant(compare.inputs[1]), threshold.size)
    source = compare.inputs[0]
    if bound is None or source.shape is None or source.shape[1] != threshold.size:
        return False
    set_constant(node, THRESHOLD, bound, "threshold")
    node.replace_input_with(X, source)
    for old in (where, compare):
        old.graph.remove(old, safe=True)
    return True
