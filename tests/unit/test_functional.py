"""The reference operator against independent numpy integer arithmetic."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unit_truth import integer_convolution

from irstd_edge.nn.functional import binary_conv2d, fixed_point, match_channels, pack_bits, unpack_bits
from irstd_edge.opspec import BinaryConv2dSpec, OpSpecError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "binary_conv2d_fixed_point.json").read_text())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 100), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_packing_round_trips_for_any_channel_count(oc, ic, kh, kw, seed):
    positive = torch.from_numpy(np.random.default_rng(seed).random((oc, ic, kh, kw)) < 0.5)
    words = pack_bits(positive)
    assert words.dtype == torch.int32 and words.shape == (oc, kh, kw, -(-ic // 32))
    assert torch.equal(unpack_bits(words, ic), torch.where(positive, 1.0, -1.0))


def test_bit_order_and_tail():
    positive = torch.zeros(1, 40, 1, 1, dtype=torch.bool)
    positive[0, [0, 31, 33], 0, 0] = True
    words = pack_bits(positive).flatten().numpy().view(np.uint32)
    assert words.tolist() == [(1 << 0) | (1 << 31), 1 << 1]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_convolution_equals_integer_arithmetic(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    groups, kernel_h, kernel_w = data.draw(st.sampled_from([1, 1, 2, 3])), draw(1, 3), draw(1, 3)
    s = BinaryConv2dSpec(
        groups * draw(1, 35), groups * draw(1, 3), kernel_h, kernel_w, draw(-1, 1), draw(1, 3), draw(1, 2), draw(1, 2),
        draw(1, 3), draw(0, 2), draw(0, 2), draw(0, 2), draw(0, 2), groups,
    )
    rng = np.random.default_rng(draw(0, 2**32 - 1))
    x = rng.integers(-2, 3, (2, s.in_channels, draw(5, 8), draw(7, 8))).astype(np.float32)
    signs = rng.choice([-1, 1], (s.out_channels, s.in_channels // groups, kernel_h, kernel_w))
    threshold = rng.integers(-1, 2, s.in_channels).astype(np.float32)
    got = binary_conv2d(torch.from_numpy(x), pack_bits(torch.from_numpy(signs) > 0), torch.from_numpy(threshold),
                        torch.ones(s.out_channels), torch.zeros(s.out_channels), s)
    np.testing.assert_array_equal(got.numpy(), integer_convolution(x, signs, s, threshold))


def point(residual=0, activation=0, activation_first=1, fraction_bits=-1, **more):
    """A 1 x 1 convolution of one channel with weight +1, so that acc is the input's sign."""
    spec = BinaryConv2dSpec(1, 1, 1, 1, 0, residual=residual, activation=activation,
                            activation_first=activation_first, fraction_bits=fraction_bits, **more)

    def run(x, scale=1.0, bias=0.0, parameters=None, r=None):
        return binary_conv2d(
            torch.tensor(x).view(1, 1, 1, -1), torch.ones(1, 1, 1, 1, dtype=torch.int32), torch.zeros(1),
            torch.tensor([scale]), torch.tensor([bias]), spec,
            None if parameters is None else torch.tensor(parameters).view(3, 1),
            None if r is None else torch.tensor(r).view(1, 1, 1, -1),
        ).flatten().tolist()

    return run


def test_sign_of_zero_is_plus_one_and_of_nan_minus_one():
    assert point()([0.0, -0.0, 1e-30, -1e-30, float("nan")]) == [1, 1, 1, -1, -1]


def test_scale_bias_activation_and_residual_orders():
    x = [1.0, -1.0]
    assert point()(x, 2.0, 0.5) == [2.5, -1.5]
    # RPReLU: (v - 1) * (0.5 where negative) + 3, then the residual; or the residual first.
    rprelu = [1.0, 0.5, 3.0]
    assert point(1, 1)(x, 2.0, 0.5, rprelu, [10.0, 20.0]) == [14.5, 21.75]
    assert point(1, 1, 0)(x, 2.0, 0.5, rprelu, [10.0, -20.0]) == [14.5, -8.25]
    assert point(0, 2, clamp_min=-1.0, clamp_max=2.0)(x, 2.0, 0.5) == [2.0, -1.0]
    modulated = point(2)(x, 2.0, 0.0, None, [10.0, 20.0])
    assert modulated == pytest.approx([10 + 10 * np.tanh(2), 20 - 20 * np.tanh(2)], rel=1e-6)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: c["name"])
def test_fixed_point_steps_by_hand(case):
    def tensor(name, *shape):
        return torch.tensor([[float(v) for v in np.atleast_1d(row)] for row in case[name]]).reshape(shape) \
            if name in case else None

    oc, width = len(case["scale"]), len(case["x"])
    spec = BinaryConv2dSpec(1, oc, 1, 1, 0, **case["attributes"])
    got = binary_conv2d(tensor("x", 1, 1, 1, width), torch.ones(oc, 1, 1, 1, dtype=torch.int32), torch.zeros(1),
                        tensor("scale", oc), tensor("bias", oc), spec, tensor("parameters", 3, oc),
                        tensor("residual", 1, -1, 1, width))
    assert got.reshape(oc, width).tolist() == case["y"]


def test_fixed_point_rounds_half_up_and_saturates():
    x = torch.tensor([0.125, 0.375, -0.125, -0.375, 0.3, 1e9, -1e9, torch.nan, torch.inf, -torch.inf])
    low, high = -32768 / 4, 32767 / 4
    assert fixed_point(x, 2).tolist() == [0.25, 0.5, 0.0, -0.25, 0.25, high, low, low, high, low]
    assert fixed_point(torch.tensor([8.0, -9.0, 7.99]), 7, 11).tolist() == [8 - 1 / 128, -8.0, 8 - 1 / 128]
    for fraction_bits, bits in ((16, 16), (-1, 16), (0, 17), (0, 1)):
        with pytest.raises(OpSpecError, match="bits must be"):
            fixed_point(x, fraction_bits, bits)


@given(st.lists(st.floats(width=32, allow_subnormal=False), min_size=1, max_size=20), st.integers(0, 15),
       st.integers(2, 16))
@settings(max_examples=300, deadline=None)
def test_fixed_point_is_the_nearest_number_of_its_grid(values, fraction_bits, bits):
    x = np.array(values, np.float32)
    y = fixed_point(torch.from_numpy(x), fraction_bits, bits)
    q = y.numpy().astype(np.float64) * 2.0**fraction_bits
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    assert np.all(q == np.rint(q)) and np.all((low <= q) & (q <= high))
    assert torch.equal(fixed_point(y, fraction_bits, bits), y)  # once is enough
    wanted = np.clip(np.where(np.isnan(x), -np.inf, x.astype(np.float64)) * 2.0**fraction_bits, low, high)
    # Beside the exact half there is float32's own rounding of x * 2^f + 1/2.
    assert np.all(np.abs(q - wanted) <= 0.5 + 2.0**-8)
    order = np.argsort(x[~np.isnan(x)])
    assert np.all(np.diff(q[~np.isnan(x)][order]) >= 0)


def test_residual_channels_are_repeated_or_averaged():
    r = torch.tensor([1.0, 3.0, 5.0, 9.0]).view(1, 4, 1, 1)
    assert match_channels(r, 4).flatten().tolist() == [1, 3, 5, 9]
    assert match_channels(r, 8).flatten().tolist() == [1, 3, 5, 9, 1, 3, 5, 9]
    assert match_channels(r, 2).flatten().tolist() == [3, 6]
    assert match_channels(r, 1).flatten().tolist() == [4.5]
    for channels in (3, 6):
        with pytest.raises(OpSpecError, match=f"residual has 4 channels, the convolution {channels}"):
            match_channels(r, channels)
