import pytest
import torch
from torch import nn

from irstd_edge.complexity import Parameters, count_layers, count_parameters, measure_complexity
from irstd_edge.models.registry import get_model
from irstd_edge.nn.attention import SelfAttention, TransformerBlock
from irstd_edge.nn.binary import BinaryConv2d, DotBinaryConv2d
from irstd_edge.nn.inference import freeze
from irstd_edge.nn.quant import QuantConv2d


def test_biisnet_by_hand():
    """Channels 16-32-64, two units a stage, four at the bottleneck, as counted on paper."""
    result = measure_complexity(get_model("biisnet").factory())
    units = (16, 16), (16, 16), (16, 32), (32, 32), (32, 32), (32, 64), *[(64, 64)] * 4, (64, 32), (32, 32), (32, 32), \
        (32, 16), (16, 16), (16, 16)
    binary = sum(9 * i * o for i, o in units)
    convolutions = 9 * 16 + 16 + 16 + 1
    # Shift and slope of each input channel; BN's two and RPReLU's three of each output channel.
    others = sum(2 * i + 5 * o for i, o in units)
    assert binary == 239_616
    assert result.params == Parameters(
        binary + convolutions + others, binary // 32 + convolutions, binary // 32 + convolutions + others)
    assert result.params.binary_div32_plus_conv <= 10_500
    full, half, quarter = 256 * 256, 128 * 128, 64 * 64
    assert result.macs == full * (9 * 16 + 16)
    # Up-sampling units run at the lower resolution.
    sizes = [full] * 2 + [half] * 3 + [quarter] * 6 + [half] * 3 + [full] * 2
    assert result.bops == sum(9 * i * o * s for (i, o), s in zip(units, sizes, strict=True))
    assert result.ops == result.macs + result.bops / 64
    assert result.as_dict()["input"] == [256, 256]


@pytest.mark.parametrize("layer, shape, macs", [
    (nn.Conv2d(4, 6, (3, 1), stride=2, padding=1, groups=2), (8, 8), 4 * 5 * 6 * 3 * 2),
    (nn.ConvTranspose2d(4, 6, 2, stride=2), (8, 8), 8 * 8 * 4 * 6 * 4),
    (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7)), (8, 8), 28),
])
def test_full_precision_layers(layer, shape, macs):
    result = measure_complexity(layer, shape, channels=4)
    assert (result.macs, result.bops) == (macs, 0)
    learned = sum(p.numel() for p in layer.parameters())
    assert result.params == Parameters(learned, learned, learned)


def test_binary_layers_in_every_form():
    layer = BinaryConv2d(4, 6, 3, stride=2, groups=2)
    assert measure_complexity(layer, (9, 9), 4).bops == 4 * 4 * 6 * 9 * 2
    assert count_parameters(layer) == Parameters(108, 4, 4)
    unit = DotBinaryConv2d(4, 4, reading="pointwise")
    result = measure_complexity(nn.Sequential(unit), (8, 8), 4)
    assert (result.macs, result.bops) == (8 * 8 * 4 * 9, 8 * 8 * 4 * 4 * 9)
    assert result.params == Parameters(144 + 36 + 8 + 20, 5 + 36, 5 + 36 + 28)
    frozen = measure_complexity(freeze(nn.Sequential(unit)), (8, 8), 4)
    assert (frozen.macs, frozen.bops) == (result.macs, result.bops)


@pytest.mark.parametrize("bits", [(1, 1), (4, 3), (8, 8)])
def test_quantised_layers_count_their_bits(bits):
    weight_bits, activation_bits = bits
    layer = nn.Sequential(QuantConv2d(4, 6, 3, padding=1, weight_bits=weight_bits, activation_bits=activation_bits))
    result, macs = measure_complexity(layer, (8, 8), 4), 8 * 8 * 6 * 36
    assert (result.macs, result.bops) == (0, macs * weight_bits * activation_bits)
    assert result.ops == macs * weight_bits * activation_bits / 64
    words = -(-216 * weight_bits // 32)
    # Six biases; six steps of weights and one of inputs.
    assert result.params == Parameters(216 + 13, words + 6, words + 13)
    frozen = measure_complexity(freeze(layer), (8, 8), 4)
    assert (frozen.macs, frozen.bops) == (result.macs, result.bops)


def test_precision_by_hand():
    network = nn.Sequential(nn.Conv2d(1, 4, 1), QuantConv2d(4, 2, 3, padding=1, weight_bits=3, activation_bits=5),
                            BinaryConv2d(2, 2, 1))
    result = measure_complexity(network, (8, 8))
    assert result.mac_bits == 64 * (4 * 1024 + 72 * 3 * 5 + 4) == result.as_dict()["mac_bits"]
    assert result.weight_bits_mean == (4 * 32 + 72 * 3 + 4) / 80
    assert result.activation_bits_mean == (1 * 32 + 4 * 5 + 2) / 7
    first, second, third = count_layers(network, (8, 8))
    assert (first.name, first.weights, first.inputs, first.macs, first.output_size) == ("0", 4, 64, 256, (8, 8))
    assert (second.weight_bits, second.activation_bits, third.weight_bits) == (3, 5, 1)
    assert measure_complexity(nn.Sequential(nn.Conv2d(1, 1, 1)), (4, 4)).mac_bits == 16 * 1024


def test_attention_counts_its_products_of_matrices():
    attention = nn.Sequential(nn.Flatten(2), SelfAttention(24, 4))  # 4 channels become tokens of 24 values
    projections, products = 4 * 24 * 24 * 4, 2 * 4 * 4 * 24
    assert measure_complexity(attention, (4, 6), 4).macs == projections + products
    block, tokens = TransformerBlock(8, 2), 6 * 4
    layers = 9 * 8 + 4 * 64 + 2 * 4 * 64
    assert measure_complexity(block, (6, 4), 8).macs == tokens * layers + 2 * tokens * tokens * 8


def test_shared_weights_count_once_and_the_mode_is_kept():
    layer = nn.Conv2d(1, 1, 1)
    network = nn.Sequential(layer, layer)
    network[0].train()
    assert count_parameters(network).binary_div32_plus_conv == 2
    assert measure_complexity(network, (4, 4)).macs == 32
    assert network.training and not layer._forward_hooks
    with pytest.raises(RuntimeError):
        measure_complexity(nn.Conv2d(2, 1, 1), (4, 4))
    assert torch.is_grad_enabled()
