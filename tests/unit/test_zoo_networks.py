"""The float networks of the zoo: sizes as published or counted from public code, shapes, names of parameters."""

import pytest
import torch

from irstd_edge.complexity import count_parameters
from irstd_edge.models.acm import AsymmetricFusion
from irstd_edge.models.dnanet import DNANet
from irstd_edge.models.mdpnet import LAYOUTS, PyramidBlock, mdpnet
from irstd_edge.models.mshnet import MSHNet
from irstd_edge.models.registry import get_model
from irstd_edge.models.resunet import WIDTHS, ResUNet, resunet
from irstd_edge.nn.residual import ChannelAttention, ResidualBlock, SpatialAttention

#: Learned values: (network, its image channels, count). MDPNet's are our own reconstruction's.
COUNTS = [
    ("resunet", 3, 914_057), ("resunet-one", 3, 229_765), ("mdpnet", 1, 226_477), ("mdpnet-b", 1, 230_825),
    ("dnanet", 1, 4_696_568), ("dnanet-two", 1, 1_186_680), ("dnanet-one", 1, 303_896),
]
#: Published in millions, to three decimals (BasicIRSTD's table).
PUBLISHED = [("acm", 0.398), ("alcnet", 0.427), ("dnanet", 4.697)]
SMALL = ["resunet-one", "mdpnet", "mdpnet-b", "dnanet-one", "acm", "acm-unet", "acm-fpn", "alcnet", "mshnet", "sformer"]


@pytest.mark.parametrize("name, channels, count", COUNTS)
def test_learned_values(name, channels, count):
    assert count_parameters(get_model(name).factory(in_channels=channels)).raw == count


@pytest.mark.parametrize("name, millions", PUBLISHED)
def test_published_sizes(name, millions):
    assert round(count_parameters(get_model(name).factory()).raw / 1e6, 3) == millions


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
    size = 4 * network.size_multiple
    y = network(torch.randn(2, 1, size, size))
    (sum(part.sum() for part in y) if isinstance(y, list) else y.sum()).backward()
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


def up(x, factor=2.0):
    return torch.nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=True)(x)


def set_random_statistics(network):
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)


def test_dnanet_node_by_node():
    """Three levels written out as the paper draws them."""
    torch.manual_seed(0)
    network = DNANet((2, 3, 4), ratio=1)
    set_random_statistics(network)
    m, x, pool = dict(network.named_modules()), torch.randn(2, 1, 16, 24), torch.nn.MaxPool2d(2)

    def cat(*inputs):
        return torch.cat(inputs, 1)

    with torch.no_grad():
        network.eval()
        x00 = m["conv0_0"](x)
        x10 = m["conv1_0"](pool(x00))
        x01 = m["conv0_1"](cat(x00, up(x10)))
        x20 = m["conv2_0"](pool(x10))
        x11 = m["conv1_1"](cat(x10, up(x20), up(x01, 0.5)))
        x02 = m["conv0_2"](cat(x00, x01, up(x11)))
        joined = m["conv0_2_final"](cat(up(m["conv0_2_1x1"](x20), 4.0), up(m["conv0_1_1x1"](x11)), x02))
        expected = [m["final1"](x01).sigmoid(), m["final2"](joined).sigmoid()]
        assert torch.equal(network(x), expected[-1])
        for module in network.modules():  # statistics of evaluation, outputs of training
            module.training = not isinstance(module, torch.nn.BatchNorm2d)
        assert all(torch.equal(a, b) for a, b in zip(network(x), expected, strict=True))


def test_mshnet_scale_by_scale():
    torch.manual_seed(0)
    network = MSHNet((2, 3, 4), ratio=1)
    set_random_statistics(network)
    m, x, pool = dict(network.named_modules()), torch.randn(2, 1, 16, 24), torch.nn.MaxPool2d(2)
    with torch.no_grad():
        network.eval()
        e0 = m["encoder_0"](m["conv_init"](x))
        e1 = m["encoder_1"](pool(e0))
        d1 = m["decoder_1"](torch.cat([e1, up(m["middle_layer"](pool(e1)))], 1))
        d0 = m["decoder_0"](torch.cat([e0, up(d1)], 1))
        scales = [m["output_0"](d0), up(m["output_1"](d1))]
        assert torch.equal(network(x), m["final"](torch.cat(scales, 1)).sigmoid())
    network.train()
    assert [tuple(y.shape) for y in network(x)] == [(2, 1, 16, 24)] * 3


def test_the_narrow_dnanet_lowers_the_attention_ratio():
    assert get_model("dnanet-one").factory().conv0_0[0].ca.fc1.weight.shape == (1, 4, 1, 1)
    with pytest.raises(ValueError, match="ratio 16 leaves no hidden channel of 4"):
        ChannelAttention(4, 16)


def test_attention_by_hand():
    channel, spatial = ChannelAttention(2, 2), SpatialAttention()
    x = torch.tensor([[[[1.0, 3.0]], [[-2.0, 0.0]]]])
    with torch.no_grad():
        channel.fc1.weight.copy_(torch.tensor([1.0, 1.0]).view(1, 2, 1, 1))
        channel.fc2.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        # Means 2 and -1, peaks 3 and 0: hidden 1 and 3, together 4.
        assert torch.allclose(channel(x).flatten(), torch.sigmoid(torch.tensor([4.0, -4.0])))
        spatial.conv1.weight.zero_()
        spatial.conv1.weight[0, :, 3, 3] = torch.tensor([2.0, 1.0])
        # Means -0.5 and 1.5, peaks 1 and 3.
        assert torch.allclose(spatial(x).flatten(), torch.sigmoid(torch.tensor([0.0, 6.0])))


def test_a_residual_block_halves_and_keeps():
    assert ResidualBlock(2, 2, stride=2)(torch.randn(2, 2, 8, 6)).shape == (2, 2, 4, 3)
    block = ResidualBlock(3, 3).eval()
    with torch.no_grad():
        block.bn2.weight.zero_()
        x = torch.randn(1, 3, 4, 4)
        assert torch.equal(block(x), x.relu())


def test_asymmetric_fusion_by_hand():
    """With gates of 1/2 the sum of both features reaches the last convolution."""
    fusion = AsymmetricFusion(4, 6).eval()
    high, low = torch.randn(1, 6, 5, 5), torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        for gate in (fusion.topdown, fusion.bottomup):
            gate[-2].weight.zero_()
        expected = fusion.post(low + fusion.feature_high(high))
        assert torch.allclose(fusion(high, low), expected, atol=1e-6)
        # The low feature is weighed by the global mean of the high one: by one number per channel.
        fusion.topdown[-2].weight.fill_(1.0)
        shuffled = fusion.topdown(fusion.feature_high(high.flatten(2).flip(-1).view_as(high)))
        assert torch.allclose(fusion.topdown(fusion.feature_high(high)), shuffled, atol=1e-6)
