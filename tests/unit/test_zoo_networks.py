"""The float networks of the zoo: sizes as published or counted from public code, shapes, names of parameters."""

import pytest
import torch

from irstd_edge.complexity import count_parameters
from irstd_edge.models.mdpnet import LAYOUTS, PyramidBlock, mdpnet
from irstd_edge.models.registry import MODELS, get_model
from irstd_edge.models.resunet import WIDTHS, ResUNet, resunet

#: Learned values of the public code: (network, its image channels, count).
PUBLISHED = [("resunet", 3, 914_057), ("resunet-one", 3, 229_765), ("mdpnet", 1, 226_477), ("mdpnet-b", 1, 230_825)]
FLOAT = [name for name, model in MODELS.items() if model.family != "BiisNet"]
SMALL = ["resunet-one", "mdpnet", "mdpnet-b"]


@pytest.mark.parametrize("name, channels, count", PUBLISHED)
def test_learned_values(name, channels, count):
    assert count_parameters(get_model(name).factory(in_channels=channels)).raw == count


def test_mdpnet_has_the_published_size():
    assert all(225_000 <= count_parameters(mdpnet(layout)).raw <= 235_000 for layout in LAYOUTS)


@pytest.mark.parametrize("name", SMALL)
def test_probability_at_the_size_of_the_image(name):
    network = get_model(name).factory().eval()
    height, width = 2 * network.size_multiple, 3 * network.size_multiple
    with torch.no_grad():
        y = network(torch.randn(2, 1, height, width))
    assert y.shape == (2, 1, height, width) and y.min() >= 0 and y.max() <= 1
    assert y.mean() < 0.1, "starts from a low probability"


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name):
    network = get_model(name).factory()
    size = 2 * network.size_multiple
    network(torch.randn(2, 1, size, size)).sum().backward()
    assert not [key for key, p in network.named_parameters() if p.grad is None]


def test_resunet_stages_by_hand():
    """The public code's names and shapes, three levels."""
    shapes = {k: list(v.shape) for k, v in ResUNet((2, 3, 5), in_channels=1).state_dict().items()}
    assert shapes["conv0_0.0.conv1.weight"] == [2, 1, 3, 3]
    assert shapes["conv0_0.0.shortcut.0.weight"] == [2, 1, 1, 1] and "conv0_0.1.conv1.weight" not in shapes
    assert shapes["conv1_0.1.conv2.weight"] == [3, 3, 3, 3] and "conv1_0.1.shortcut.0.weight" not in shapes
    assert shapes["conv1_1.0.conv1.weight"] == [3, 8, 3, 3]
    assert shapes["conv0_2.0.conv1.weight"] == [2, 5, 3, 3]
    assert shapes["final.weight"] == [1, 2, 1, 1]


def test_widths_double():
    assert resunet("one").size_multiple == 16
    assert all(w == [w[0] * 2**i for i in range(5)] for w in map(list, WIDTHS.values()))


def test_the_deepest_feature_of_mdpnet_can_be_hooked():
    network, seen = mdpnet(), []
    network.stages[-1].register_forward_hook(lambda module, inputs, y: seen.append(y.shape))
    network(torch.randn(1, 1, 32, 48))
    assert seen == [(1, 64, 8, 12)] and "stages.2" in dict(network.named_modules())


def test_a_pyramid_reaches_as_far_as_its_widest_dilation():
    """The response to a change of one pixel: the nine taps of every dilation, nothing beyond."""
    torch.manual_seed(0)
    block = PyramidBlock(2, 2, 2, (1, 4)).eval()
    with torch.no_grad():
        block.branches[0][2].weight.abs_()
        x = torch.rand(1, 2, 17, 17, dtype=torch.float32)
        changed = x.clone()
        changed[..., 8, 8] += 1
        touched = (block(changed) - block(x)).abs().sum(1)[0] > 0
    allowed = {(8 + d * i, 8 + d * j) for d in (1, 4) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    found = {tuple(p) for p in touched.nonzero().tolist()}
    assert found and found <= allowed and max(abs(i - 8) for i, _ in found) == 4
