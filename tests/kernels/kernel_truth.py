"""What irstd.BinaryConv2d must give, in numpy, from the words of the specification; no code of the project.

Signs are int64, the convolution is a sum over shifted slices, and the epilogue is float32 step by step.
"""

from __future__ import annotations

import ctypes
import ctypes.util

import numpy as np

_tanhf = ctypes.CDLL(ctypes.util.find_library("m")).tanhf
_tanhf.restype, _tanhf.argtypes = ctypes.c_float, [ctypes.c_float]


def tanh(v: np.ndarray) -> np.ndarray:
    """The C library's tanhf: the specification's tanh, to the last bit."""
    return np.array([_tanhf(float(u)) for u in v.ravel()], np.float32).reshape(v.shape)


def pack(signs: np.ndarray) -> np.ndarray:
    """[OC, C, KH, KW] of +1/-1 to int32 [OC, KH, KW, words]; bit i of word j is channel 32 j + i."""
    bits = np.moveaxis(signs > 0, 1, -1)
    padded = np.zeros((*bits.shape[:-1], -(-bits.shape[-1] // 32) * 32), bool)
    padded[..., : bits.shape[-1]] = bits
    return np.packbits(padded, axis=-1, bitorder="little").view("<i4").astype(np.int32)


def signs_of(x: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    return np.where(x >= threshold[:, None, None], 1, -1).astype(np.int64)


def pad(b: np.ndarray, a: dict) -> np.ndarray:
    widths = ((0, 0), (0, 0), (a["pad_top"], a["pad_bottom"]), (a["pad_left"], a["pad_right"]))
    return np.pad(b, widths, constant_values=a["pad_value"])


def convolve(b: np.ndarray, w: np.ndarray, a: dict) -> np.ndarray:
    """Grouped, strided, dilated correlation of the padded signs, in int64."""
    n, _, h, width = b.shape
    oc, c, kh, kw = w.shape
    groups, (sh, sw), (dh, dw) = a["groups"], (a["stride_h"], a["stride_w"]), (a["dilation_h"], a["dilation_w"])
    oh, ow = (h - dh * (kh - 1) - 1) // sh + 1, (width - dw * (kw - 1) - 1) // sw + 1
    b, w = b.reshape(n, groups, c, h, width), w.reshape(groups, oc // groups, c, kh, kw)
    out = np.zeros((n, groups, oc // groups, oh, ow), np.int64)
    for i in range(kh):
        for j in range(kw):
            rows, columns = slice(i * dh, i * dh + sh * (oh - 1) + 1, sh), slice(j * dw, j * dw + sw * (ow - 1) + 1, sw)
            # float64 holds these integers exactly, and takes the fast matrix product
            out += np.einsum(
                "ngchw,goc->ngohw",
                b[..., rows, columns].astype(np.float64),
                w[..., i, j].astype(np.float64),
                optimize=True,
            ).astype(np.int64)
    return out.reshape(n, oc, oh, ow)


def match(residual: np.ndarray, channels: int) -> np.ndarray:
    count = residual.shape[1]
    if channels % count == 0:
        return residual[:, np.arange(channels) % count]
    total = residual[:, :channels]
    for j in range(1, count // channels):
        total = total + residual[:, j * channels : (j + 1) * channels]
    return total / np.float32(count // channels)


def clamp(v, low, high):
    v = np.where(np.float32(low) > v, np.float32(low), v)
    return np.where(np.float32(high) < v, np.float32(high), v)


def half_up(v):
    return np.floor(v + np.float32(0.5))


def sat(q):
    return np.where(q > -32768, np.minimum(q, np.float32(32767)), np.float32(-32768))


def integer_epilogue(acc, scale, bias, parameters, residual, a: dict) -> np.ndarray:
    """The steps of fraction_bits >= 0: integers held as float32."""
    step = np.float32(2 ** a["fraction_bits"])

    def column(p):
        return p.astype(np.float32)[:, None, None]

    def activate(v):
        if a["activation"] == 1:
            t = sat(v - half_up(column(parameters[0]) * step))
            t = np.where(t < 0, sat(half_up(t * column(parameters[1]))), t)
            return sat(t + half_up(column(parameters[2]) * step))
        bounds = [sat(half_up(np.float32(a[k]) * step)) for k in ("clamp_min", "clamp_max")]
        return clamp(v, *bounds) if a["activation"] == 2 else v

    def combine(v):
        if a["residual"] == 0:
            return v
        r = match(sat(half_up(residual * step)), len(scale))
        r = half_up(r) if residual.shape[1] > len(scale) else r
        if a["residual"] == 1:
            return sat(v + r)
        return sat(half_up((r / step + r / step * tanh(v / step)) * step))

    v = sat(half_up(acc.astype(np.float32) * column(scale) * step))
    v = sat(v + half_up(column(bias) * step))
    return (combine(activate(v)) if a["activation_first"] else activate(combine(v))) / step


def epilogue(acc, scale, bias, parameters, residual, a: dict) -> np.ndarray:
    def column(p):
        return p.astype(np.float32)[:, None, None]

    def activate(v):
        if a["activation"] == 1:
            t = v - column(parameters[0])
            return np.where(t >= 0, t, t * column(parameters[1])) + column(parameters[2])
        return clamp(v, a["clamp_min"], a["clamp_max"]) if a["activation"] == 2 else v

    def combine(v):
        if a["residual"] == 0:
            return v
        r = match(residual, len(scale))
        return v + r if a["residual"] == 1 else r + r * tanh(v)

    with np.errstate(all="ignore"):
        if a["fraction_bits"] >= 0:
            y = integer_epilogue(acc, scale, bias, parameters, residual, a)
            assert y.dtype == np.float32
            return y
        v = acc.astype(np.float32) * column(scale)
        v = v + column(bias)
        y = combine(activate(v)) if a["activation_first"] else activate(combine(v))
    assert y.dtype == np.float32
    return y


def bconv2d(x, w, threshold, scale, bias, parameters, residual, a: dict) -> np.ndarray:
    """NCHW in and out; `a` holds every attribute."""
    return epilogue(convolve(pad(signs_of(x, threshold), a), w, a), scale, bias, parameters, residual, a)


def assert_same_bits(actual: np.ndarray, expected: np.ndarray, context="") -> None:
    """Equal to the last bit, the sign of zero included; a NaN equals any NaN."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape, context)
    same = (actual.view(np.int32) == np.ascontiguousarray(expected).view(np.int32)) | (
        np.isnan(actual) & np.isnan(expected)
    )
    if not same.all():
        where = tuple(np.argwhere(~same)[0])
        raise AssertionError(
            f"{(~same).sum()} of {same.size} differ, first at {where}: "
            f"{actual[where]!r} is not {expected[where]!r}; {context}"
        )
