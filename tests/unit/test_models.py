import tomllib

import pytest
import torch

from irstd_edge.complexity import count_parameters
from irstd_edge.models.biisnet import VARIANTS, biisnet, biisnet_fine, biisnet_float, biisnet_variant
from irstd_edge.models.registry import MODELS, UnknownModelError, get_model
from irstd_edge.nn.binary import DOT_READINGS, DotBinaryConv2d
from irstd_edge.nn.blocks import ExactConv2d, FixedPoint
from irstd_edge.nn.functional import fixed_point
from irstd_edge.nn.inference import freeze
from irstd_edge.training.recipe import RECIPES


def test_exact_convolution_does_not_depend_on_order_or_precision():
    torch.manual_seed(0)
    conv = ExactConv2d(1, 16, 3, padding=1)
    with torch.no_grad():
        conv.weight.mul_(9)
    conv.eval()
    x = 6 * torch.randn(1, 1, 33, 47)
    frozen = conv.freeze()
    y = conv(x)
    assert torch.equal(frozen(x), y)
    assert torch.equal(frozen.double()(x.double()), y.double())
    flipped = conv.freeze()
    flipped.weight = flipped.weight.flip(-1, -2)
    assert torch.equal(flipped(x.flip(-1, -2)).flip(-1, -2), y)


def test_exact_convolution_refuses_sums_that_are_too_long():
    with pytest.raises(ValueError, match="15"):
        ExactConv2d(2, 4, 3)


def check_frozen(network) -> torch.Tensor:
    """The output of a network that saw some images, which its frozen form must give bit for bit."""
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(2, 1, 32, 32))
        network.eval()
        x = torch.randn(2, 1, 20, 28)
        y = network(x)
        assert torch.equal(freeze(network)(x), y)
    assert y.shape == x.shape
    return y


@pytest.mark.parametrize("reading", DOT_READINGS)
def test_frozen_network_equals_evaluation_bit_for_bit(reading):
    torch.manual_seed(0)
    y = check_frozen(biisnet(reading, channels=8, blocks=1, bottleneck=1))
    assert y.min() >= 0 and y.max() <= 1


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_have_the_budget_and_freeze_to_the_same_bits(name):
    # The depth-wise path costs nine values per channel and unit.
    assert count_parameters(biisnet_variant(name)).binary_div32_plus_conv < (13_500 if name == "pointwise" else 10_500)
    torch.manual_seed(0)
    assert check_frozen(biisnet_variant(name, channels=8, blocks=1, bottleneck=1)).std() > 0


def test_the_fine_network_has_its_budget_and_freezes_to_the_same_bits():
    # 7,665 and 9 per channel that enters one of four units of 16 channels, four of 32, or one before them or after.
    assert count_parameters(biisnet_fine()).binary_div32_plus_conv == 7_665 + 9 * (4 * 16 + 4 * 32 + 16 + 32 + 32)
    torch.manual_seed(0)
    assert check_frozen(biisnet_fine(channels=8, blocks=1, bottleneck=1)).std() > 0


def test_training_and_evaluation_agree_but_for_what_the_grids_round():
    # On noise and untrained, where many values lie near a threshold; unit by unit: test_binary.py.
    torch.manual_seed(0)
    network = biisnet(channels=8, blocks=1, bottleneck=1)
    x = torch.randn(4, 1, 64, 64)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        trained = network(x)
        evaluated = network.eval()(x)
    assert (trained - evaluated).abs().mean() < 0.05
    assert torch.corrcoef(torch.stack([trained.flatten(), evaluated.flatten()]))[0, 1] > 0.85


@pytest.mark.parametrize("reading", DOT_READINGS)
def test_every_map_that_meets_a_unit_lies_on_the_grid(reading):
    torch.manual_seed(0)
    network, seen = biisnet(reading, channels=8, blocks=1, bottleneck=1), []
    with torch.no_grad():
        network(torch.randn(2, 1, 32, 32))
        for module in network.modules():
            if isinstance(module, DotBinaryConv2d):
                module.register_forward_hook(lambda m, inputs, y: seen.extend([*inputs, y]))
        network.eval()(200 * torch.randn(1, 1, 20, 28))
    assert len(seen) >= 18
    for x in seen:
        assert torch.equal(fixed_point(x, 8, 16), x)


def test_nothing_is_rounded_in_training_nor_in_the_float_twin():
    x = torch.randn(1, 1, 16, 16) / 3
    for module in (ExactConv2d(1, 2, 3, padding=1), FixedPoint(2)):
        rounded = module.eval()(x)
        assert not torch.equal(module.train()(x), rounded)
        assert torch.equal(rounded * 256, (rounded * 256).round())
    assert torch.equal(FixedPoint(-1).eval()(x), x)
    twin = biisnet_float().eval()
    assert not any(isinstance(m, ExactConv2d) for m in twin.modules())
    assert all(m.fraction_bits < 0 for m in twin.modules() if isinstance(m, FixedPoint))


def test_twin_has_the_same_shapes():
    x = torch.randn(1, 1, 16, 20)
    assert biisnet_float().eval()(x).shape == x.shape


def test_registry():
    for name, model in MODELS.items():
        assert name == model.name and model.summary and model.source
        assert model.family
        assert {model.float_twin, model.teacher} <= {None, *MODELS} and name not in (model.float_twin, model.teacher)
    with pytest.raises(UnknownModelError, match="did you mean 'biisnet'"):
        get_model("bisnet")


def test_every_shipped_recipe_is_of_a_network_here():
    names = {tomllib.loads(path.read_text())["network"] for path in RECIPES.glob("*.toml")}
    assert names <= MODELS.keys() and {"mdpnet", "resunet", "dnanet", "biisnet-xnor", "sformer"} <= names
