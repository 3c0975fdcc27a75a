"""Binarised layers: gradients against the published check values, training against evaluation."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from unit_truth import integer_convolution

from irstd_edge.nn.binary import (
    DOT_READINGS,
    STYLES,
    SURROGATES,
    Binarize,
    BinaryConv2d,
    BinaryUnit,
    DotBinaryConv2d,
    DynamicSoftsign,
    RPReLU,
    _Sign,
    dot_style,
    sign_ste,
)
from irstd_edge.nn.inference import freeze
from irstd_edge.opspec import OpSpecError

# dDS/dx as the reconstruction's specification lists it.
CHECK_VALUES = {1.0: [(0.0, 1.0), (0.5, 0.4444), (1.0, 0.25), (3.0, 0.0625)],
                2.0: [(0.0, 2.0), (0.5, 0.5), (1.0, 0.2222), (3.0, 0.0408)]}


def dynamic_sign(x, shift, k):
    return _Sign.apply(x, shift, k, "dynamic-softsign")


def _gradients(function, x, shift, k):
    x, shift, k = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (x, shift, k))
    function(x, shift, k).sum().backward()
    return x.grad, shift.grad, k.grad


@pytest.mark.parametrize("k", CHECK_VALUES)
def test_dynamic_softsign_gradient_has_the_check_values(k):
    x, expected = zip(*CHECK_VALUES[k], strict=True)
    gradient, _, _ = _gradients(dynamic_sign, x, [0.0] * len(x), [k] * len(x))
    assert gradient.tolist() == pytest.approx(expected, abs=5e-5)
    negative, _, _ = _gradients(dynamic_sign, [-v for v in x], [0.0] * len(x), [k] * len(x))
    assert torch.equal(negative, gradient)


def test_surrogate_equals_autograd_of_the_closed_form():
    rng = np.random.default_rng(0)
    x, shift, k = rng.normal(0, 2, 200), rng.normal(0, 1, 200), rng.uniform(0.1, 5, 200)
    ours = _gradients(dynamic_sign, x, shift, k)
    closed = _gradients(lambda x, s, k: k * (x + s) / (1 + k * (x + s).abs()), x, shift, k)
    for a, b in zip(ours, closed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    # dDS/dk = x / (1 + k |x|)^2
    torch.testing.assert_close(ours[2], torch.tensor((x + shift) / (1 + k * abs(x + shift)) ** 2))


def test_layer_binarises_by_channel_and_reduces_its_gradients():
    layer = DynamicSoftsign(2)
    assert layer.k.flatten().tolist() == pytest.approx([1.0, 1.0])
    with torch.no_grad():
        layer.shift[1] = 0.5
    x = torch.tensor([[0.0, -0.2], [-0.5, -0.6]]).view(1, 2, 1, 2).requires_grad_()
    y = layer(x)
    assert y.flatten().tolist() == [1, -1, 1, -1]
    assert layer.threshold().tolist() == [0, -0.5]
    y.sum().backward()
    assert layer.shift.grad.shape == layer.slope.grad.shape == (2, 1, 1)
    assert layer.shift.grad[1].item() == pytest.approx(1 + 1 / 1.1**2)


def test_sign_of_zero_is_plus_one_and_the_clipped_gradient_stops_at_one():
    x = torch.tensor([0.0, -0.0, 0.5, -1.5], requires_grad=True)
    sign_ste(x).backward(torch.ones(4))
    assert sign_ste(x).tolist() == [1, 1, 1, -1]
    assert x.grad.tolist() == [1, 1, 1, 0]


def test_rprelu():
    layer = RPReLU(1, slope=0.5)
    nn.init.constant_(layer.shift_in, 1.0)
    nn.init.constant_(layer.shift_out, 3.0)
    assert layer(torch.tensor([2.0, -1.0]).view(1, 1, 1, 2)).flatten().tolist() == [4, 2]


def test_rprelu_has_the_gradients_of_pytorchs_prelu():
    torch.manual_seed(0)
    layer, x = RPReLU(3), torch.randn(2, 3, 4, 5, requires_grad=True)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(3))
        x[0, 1, 2, 3] = layer.shift_in[1]  # where the slope changes
    leaves, weight = (x, *layer.parameters()), torch.randn(2, 3, 4, 5)
    column = [p.view(-1, 1, 1) for p in (layer.shift_in, layer.shift_out)]
    expected = torch.nn.functional.prelu(x - column[0], layer.slope) + column[1]
    torch.testing.assert_close(layer(x), expected)
    for a, b in zip(torch.autograd.grad(layer(x), leaves, weight), torch.autograd.grad(expected, leaves, weight),
                    strict=True):
        torch.testing.assert_close(a, b)


def test_a_unit_trains_as_one_compiled_graph():
    unit = DotBinaryConv2d(4, 4).to(memory_format=torch.channels_last)
    compiled = torch.compile(unit, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)
    gradients = []
    for call in (unit, compiled):
        unit.zero_grad()
        call(x).square().sum().backward()
        gradients.append([p.grad for p in unit.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("pad_value", [0, 1, -1])
@pytest.mark.parametrize("groups", [1, 2])
def test_binary_convolution_equals_integers_in_training_and_evaluation(pad_value, groups):
    torch.manual_seed(1)
    layer = BinaryConv2d(6, 4, (3, 2), (2, 1), (1, 2), groups=groups, pad_value=pad_value, scale=False)
    x = torch.randn(2, 6, 7, 6)
    x[0, 0] = 0
    signs = np.where(layer.weight.detach().numpy() >= 0, 1, -1)
    expected = integer_convolution(x.numpy(), signs, layer.spec)
    np.testing.assert_array_equal(layer.train()(x).detach().numpy(), expected)
    np.testing.assert_array_equal(layer.eval()(x).detach().numpy(), expected)
    layer.scale = True
    alpha = layer.weight.detach().abs().mean((1, 2, 3)).view(-1, 1, 1).numpy()
    for mode in (True, False):
        np.testing.assert_allclose(layer.train(mode)(x).detach().numpy(), expected * alpha, rtol=1e-5, atol=1e-6)


def test_impossible_sizes_are_refused():
    with pytest.raises(OpSpecError, match="groups"):
        BinaryConv2d(6, 4, 3, groups=4)
    with pytest.raises(OpSpecError, match="pad_value"):
        BinaryConv2d(6, 4, 3, pad_value=2)


def trained_unit(reading: str, in_channels: int = 4, out_channels: int = 4) -> DotBinaryConv2d:
    """A unit whose statistics and parameters are not those of the start."""
    torch.manual_seed(2)
    unit = DotBinaryConv2d(in_channels, out_channels, reading=reading)
    with torch.no_grad():
        for name, parameter in unit.named_parameters():
            if not name.endswith("conv.weight"):
                parameter.add_(0.1 * torch.randn_like(parameter))
        for _ in range(30):
            unit(torch.randn(8, in_channels, 12, 12))
    return unit


def unfolded(unit: DotBinaryConv2d, x: torch.Tensor) -> torch.Tensor:
    """The reading's formula in plain torch, running statistics in place of the batch's."""
    signs = torch.where(unit.conv.weight >= 0, 1.0, -1.0) * unit.conv.weight.abs().mean((1, 2, 3), keepdim=True)
    b = torch.where(x + unit.sign.shift >= 0, 1.0, -1.0)
    y = unit.norm.eval()(nn.functional.conv2d(b, signs, padding=1))
    if unit.reading == "modulate":
        return x + x * torch.tanh(y)
    r = nn.functional.conv2d(x, unit.path.weight, padding=1, groups=x.shape[1]) if unit.reading == "pointwise" else x
    return unit.activation(y) + r


@pytest.mark.parametrize("reading", DOT_READINGS)
def test_evaluation_is_the_reading_on_the_fixed_point_grid(reading):
    unit = trained_unit(reading)
    x = torch.randn(2, 4, 9, 11)
    with torch.no_grad():
        got, expected = unit.eval()(x), unfolded(unit, x)
    # Half a step of each grid on the way; the weights of the full-precision path lie on a coarser one.
    assert (got - expected).abs().max() <= (0.05 if reading == "pointwise" else 0.02)
    assert torch.equal(got, torch.round(got * 256) / 256)


@pytest.mark.parametrize("reading", DOT_READINGS)
def test_frozen_unit_equals_evaluation_bit_for_bit(reading):
    unit = trained_unit(reading).eval()
    x = torch.randn(2, 4, 9, 11)
    frozen = freeze(nn.Sequential(copy.deepcopy(unit)))
    assert not any(isinstance(m, DotBinaryConv2d) for m in frozen.modules())
    with torch.no_grad():
        assert torch.equal(frozen(x), unit(x))
        assert torch.equal(freeze(unit)(x), unit(x))


def test_folded_constants_lie_on_their_grids():
    unit = DotBinaryConv2d(1, 2)
    with torch.no_grad():
        unit.norm.bias[:] = torch.tensor([1.5 / 256, -1.5 / 256])
        unit.norm.running_var.fill_(1 - unit.norm.eps)
        unit.activation.shift_in[:] = torch.tensor([0.5 / 256, -0.5 / 256])
        unit.activation.slope[:] = torch.tensor([0.3, -2.5 / 256])
        unit.activation.shift_out[:] = torch.tensor([0.4 / 256, 0.6 / 256])
    folded = unit.fold()
    assert (folded.bias * 256).tolist() == [2, -1]  # half up
    assert (folded.activation_parameters * 256).tolist() == [[1, 0], [77, -2], [0, 1]]
    scaled = folded.scale * 2**14
    assert torch.equal(scaled, scaled.round())
    unit.fraction_bits = -1
    assert (unit.fold().bias * 256).tolist() == [1.5, -1.5]


def test_training_reaches_every_parameter():
    for reading in DOT_READINGS:
        unit = DotBinaryConv2d(4, 8, reading=reading)
        unit(torch.randn(2, 4, 8, 8)).square().sum().backward()
        for name, parameter in unit.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, (reading, name)


@pytest.mark.parametrize("residual_channels, fits", [(2, True), (4, True), (8, True), (3, False)])
def test_residual_of_other_channels(residual_channels, fits):
    unit = DotBinaryConv2d(4, 4)
    x, r = torch.randn(1, 4, 6, 6), torch.randn(1, residual_channels, 6, 6)
    if fits:
        assert unit(x, r).shape == unit.eval()(x, r).shape == (1, 4, 6, 6)
    else:
        for mode in (True, False):
            with pytest.raises(OpSpecError, match="residual has 3 channels"):
                unit.train(mode)(x, r)


def test_unknown_reading_is_refused():
    with pytest.raises(ValueError, match="add, modulate, pointwise"):
        DotBinaryConv2d(4, 4, reading="dot")


#: Derivatives at 0, 0.5, 1 and 3 with k = 1, by hand from each paper's formula.
SURROGATE_VALUES = {
    "dynamic-softsign": (1, 0.4444, 0.25, 0.0625), "ste": (1, 1, 1, 0), "approxsign": (2, 1, 0, 0),
    "scaled-tanh": (1, 0.7864, 0.4200, 0.0099),
}


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_surrogates_have_the_derivatives_of_their_formulas(surrogate):
    x = torch.tensor([0.0, 0.5, 1.0, 3.0], dtype=torch.float64).view(1, 1, 1, 4).requires_grad_()
    layer = Binarize(1, surrogate).double()
    layer(x).sum().backward()
    assert x.grad.flatten().tolist() == pytest.approx(SURROGATE_VALUES[surrogate], abs=5e-5)
    assert layer.shift.grad.item() == pytest.approx(sum(SURROGATE_VALUES[surrogate]), abs=1e-3)
    assert (layer.slope is not None) == (surrogate in ("dynamic-softsign", "scaled-tanh"))
    assert Binarize(1, surrogate, shifted=False).shift is None


def test_the_scaled_tanh_equals_autograd_of_tanh():
    x, k = torch.randn(50, dtype=torch.float64), torch.full((50,), 1.7, dtype=torch.float64)
    ours = _gradients(lambda x, s, k: _Sign.apply(x, s, k, "scaled-tanh"), x.tolist(), [0.2] * 50, k.tolist())
    closed = _gradients(lambda x, s, k: torch.tanh(k * (x + s)), x.tolist(), [0.2] * 50, k.tolist())
    for a, b in zip(ours, closed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_unknown_surrogate_is_refused():
    with pytest.raises(ValueError, match=r"ste, approxsign, scaled-tanh, got 'relu'"):
        Binarize(2, "relu")


def styled(style, in_channels=4, out_channels=4):
    """A unit away from its start, its statistics those of some data."""
    torch.manual_seed(3)
    unit = BinaryUnit(in_channels, out_channels, style=style)
    with torch.no_grad():
        for name, parameter in unit.named_parameters():
            if not name.endswith("conv.weight"):
                parameter.add_(0.2 * torch.randn_like(parameter))
        for _ in range(30):
            unit(0.3 + torch.randn(8, in_channels, 12, 12))
    return unit


def by_paper(name, unit, x):
    """Each paper's unit written out in plain torch, running statistics for the batch's."""
    def bconv(b):
        weight = unit.conv.weight
        return nn.functional.conv2d(b, torch.where(weight >= 0, 1.0, -1.0), padding=1) \
            * weight.abs().mean((1, 2, 3)).view(-1, 1, 1)

    def sign(v):
        return torch.where(v >= 0, 1.0, -1.0)

    if name == "xnor":
        return bconv(sign(unit.norm(x) + unit.sign.shift)).relu()
    if name == "bireal":
        return unit.norm(bconv(sign(x))) + x
    if name == "reactnet":
        return unit.activation(unit.norm(bconv(sign(x + unit.sign.shift))) + x)
    if name == "bisrnet":
        return unit.activation(bconv(sign(x + unit.sign.shift))) + x
    if name == "nopath":
        return unit.activation(unit.norm(bconv(sign(x + unit.sign.shift))))
    return unit.activation(unit.norm(bconv(sign(x + unit.sign.shift)))) + x


@pytest.mark.parametrize("name", [*STYLES, "nopath"])
def test_every_style_is_its_papers_unit_on_the_grid_and_frozen_the_same(name):
    unit = styled(dot_style("none") if name == "nopath" else STYLES[name]).eval()
    x = torch.round(256 * torch.randn(2, 4, 9, 11)) / 256
    with torch.no_grad():
        got, expected = unit(x), by_paper(name, unit, x)
        assert (got - expected).abs().max() <= 0.02
        assert torch.equal(got, torch.round(got * 256) / 256)
        assert torch.equal(freeze(nn.Sequential(unit))(x), got)
        assert expected.std() > 0.1, "an output that says something"
        # Training with the statistics of evaluation is the same formula.
        unit.train()
        unit.norm.eval()
        torch.testing.assert_close(unit(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*STYLES, "nopath"])
def test_training_reaches_every_parameter_of_every_style(name):
    unit = BinaryUnit(4, 8, style=dot_style("none") if name == "nopath" else STYLES[name])
    unit(torch.randn(2, 4, 8, 8)).square().sum().backward()
    for key, parameter in unit.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
