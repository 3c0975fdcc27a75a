import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from irstd_edge.nn.functional import pack_integers, quant_conv2d, quantize, unpack_integers
from irstd_edge.nn.quant import QuantConv2d, fake_quantize, initial_step
from irstd_edge.opspec import OpSpecError, QuantConv2dSpec


def _spec(**changes):
    return QuantConv2dSpec(**{"in_channels": 3, "out_channels": 4, "kernel_h": 3, "kernel_w": 3, "weight_bits": 2,
                              "activation_bits": 4, "inverse_step": 2.0} | changes)


def test_packed_by_hand():
    # Two bits: 1 -> 01, -2 -> 10, -1 -> 11, 0 -> 00; first value in the lowest bits: 0b00_11_10_01.
    weight = torch.tensor([1.0, -2.0, -1.0, 0.0]).view(1, 4, 1, 1)
    assert pack_integers(weight, 2).tolist() == [[0b00111001]]
    # Three bits, two rows of one column: channel runs fastest, then the row. 3 -> 011, -4 -> 100, -1 -> 111 | rest 0.
    weight = torch.tensor([[[[3.0], [-1.0]], [[-4.0], [0.0]]]])
    assert pack_integers(weight, 3).tolist() == [[0b11100011, 0b00000001]]
    assert pack_integers(torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1), 1).tolist() == [[0b101]]


@given(bits=st.integers(1, 8), oc=st.integers(1, 4), ic=st.integers(1, 7), k=st.integers(1, 3), seed=st.integers(0, 99))
def test_unpacks_what_it_packed(bits, oc, ic, k, seed):
    spec = _spec(weight_bits=bits, out_channels=oc, in_channels=ic, kernel_h=k, kernel_w=1)
    low, high = spec.weight_range
    weight = torch.from_numpy(np.random.default_rng(seed).integers(low, high + 1, (oc, ic, k, 1))).float()
    weight = torch.where(weight == 0, 1.0, weight) if bits == 1 else weight
    packed = pack_integers(weight, bits)
    assert packed.shape == spec.weight_shape
    assert torch.equal(unpack_integers(packed, spec), weight)


@pytest.mark.parametrize(("value", "bits"), [(2.0, 2), (-3.0, 2), (0.5, 4), (0.0, 1), (128.0, 8)])
def test_refuses_weights_that_are_no_integers_of_so_many_bits(value, bits):
    with pytest.raises(OpSpecError, match=f"integers of {bits} bits"):
        pack_integers(torch.full((1, 1, 1, 1), value), bits)


def test_quantize_rounds_half_to_even_and_saturates():
    x = torch.tensor([0.25, 0.75, 1.25, -1.0, 9.0, float("nan"), float("inf"), -float("inf")])
    assert quantize(x, 2.0, 0, 15).tolist() == [0, 2, 2, 0, 15, 0, 15, 0]
    assert quantize(x, 2.0, -2, 1).tolist() == [0, 1, 1, -2, 1, -2, 1, -2]
    assert quantize(x[:4], 2.0, 0, 15, zero_point=3).tolist() == [3, 5, 5, 1]


@settings(max_examples=40)
@given(weight_bits=st.integers(1, 8), activation_bits=st.integers(1, 8), signed=st.booleans(), zero=st.booleans(),
       groups=st.sampled_from([1, 3]), stride=st.integers(1, 2), dilation=st.integers(1, 2), seed=st.integers(0, 99))
def test_operator_against_integers(weight_bits, activation_bits, signed, zero, groups, stride, dilation, seed):
    signed = signed and activation_bits > 1
    spec = _spec(in_channels=6, out_channels=3, groups=groups, weight_bits=weight_bits, activation_bits=activation_bits,
                 activation_signed=int(signed), stride_h=stride, dilation_w=dilation, pad_top=1, pad_right=2,
                 zero_point=int(zero), clamp_min=-3.0)
    rng = np.random.default_rng(seed)
    low, high = spec.weight_range
    w = rng.integers(low, high + 1, (3, 6 // groups, 3, 3))
    w = np.where(w == 0, 1, w) if weight_bits == 1 else w
    x = rng.normal(0, 4, (2, 6, 7, 9)).astype(np.float32)
    scale, bias = (rng.normal(0, 0.1, 3).astype(np.float32) for _ in range(2))
    got = quant_conv2d(torch.from_numpy(x), pack_integers(torch.from_numpy(w), weight_bits), torch.from_numpy(scale),
                       torch.from_numpy(bias), spec).numpy()
    # The truth: int64 sums by numpy, and float32 steps after them.
    a_low, a_high = spec.activation_range
    q = np.clip(np.rint(x * np.float32(2)) + int(zero), a_low, a_high).astype(np.int64) - int(zero)
    q = np.pad(q, ((0, 0), (0, 0), (1, 0), (0, 2)))
    oh, ow = spec.output_size(7, 9)
    acc = np.zeros((2, 3, oh, ow), np.int64)
    for o in range(3):
        inputs = slice(o * 6 // groups // (3 // groups) if groups == 1 else o * 2, None)
        channels = q if groups == 1 else q[:, inputs.start : inputs.start + 2]
        for dy in range(3):
            for dx in range(3):
                rows = channels[:, :, dy : dy + stride * (oh - 1) + 1 : stride, dx * dilation : dx * dilation + ow]
                acc[:, o] += np.einsum("ncyx,c->nyx", rows, w[o, :, dy, dx])
    v = acc.astype(np.float32) * scale.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)
    np.testing.assert_array_equal(got, np.maximum(v, np.float32(-3)))


@pytest.mark.parametrize(("changes", "message"), [
    ({"weight_bits": 9}, "weight_bits must be at most 8"),
    ({"activation_bits": 0}, "activation_bits must be at least 1"),
    ({"inverse_step": 0.0}, "inverse_step"), ({"inverse_step": math.inf}, "inverse_step"),
    ({"groups": 2}, "groups must divide"), ({"clamp_min": 1.0, "clamp_max": 0.0}, "clamp_min"),
    ({"activation_bits": 1, "activation_signed": 1}, "BinaryConv2d"), ({"zero_point": 16}, "zero_point"),
    ({"in_channels": 65536, "weight_bits": 8, "activation_bits": 8}, "exceed 32 bits"),
])
def test_refuses(changes, message):
    with pytest.raises(OpSpecError, match=message):
        _spec(**changes)


def test_fake_quantize_by_hand():
    x = torch.tensor([-1.0, 0.2, 0.6, 5.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    y = fake_quantize(x, step, 0, 3, 4)
    assert y.tolist() == pytest.approx([0, 0, 0.5, 1.5])
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]
    # LSQ: 0 below the range, q - x / s inside it, the highest level above it; times 1 / sqrt(4 * 3).
    assert step.grad.item() == pytest.approx((0 + (0 - 0.4) + (1 - 1.2) + 3) / math.sqrt(12))


def test_initial_step_by_hand():
    x = torch.tensor([[1.0, -3.0], [2.0, 2.0]])
    assert initial_step(x, 0, 15).item() == pytest.approx(4 / math.sqrt(15))
    assert initial_step(x, -1, 1, (1,)).tolist() == [2, 2]


@pytest.mark.parametrize("bits", [(1, 1), (2, 4), (4, 3), (8, 8)])
def test_evaluation_is_training_rounded_otherwise(bits):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2)
    layer = QuantConv2d.from_float(conv, *bits)
    x = torch.rand(2, 4, 9, 8) * 3
    layer.calibrate(x)
    trained = layer.train()(x)
    evaluated = layer.eval()(x)
    assert torch.allclose(trained, evaluated, atol=1e-4)
    if bits == (8, 8):
        assert F.mse_loss(evaluated, conv(x)) < 1e-2 * conv(x).var()


def test_training_moves_steps_and_weights():
    torch.manual_seed(0)
    layer = QuantConv2d(3, 5, 3, weight_bits=3, activation_bits=3)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
    layer(torch.rand(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_other_padding_is_refused():
    with pytest.raises(ValueError, match="reflect"):
        QuantConv2d.from_float(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), 4, 4)
