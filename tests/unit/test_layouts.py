"""Public checkpoints: key lists written out by hand from the public code, and networks that compute the same."""

import pytest
import torch
from click.testing import CliRunner

from irstd_edge import checkpoints
from irstd_edge.checkpoints import CheckpointError, load_network, load_weights
from irstd_edge.data import Normalisation
from irstd_edge.layouts import LAYOUTS, convert
from irstd_edge.models.acm import ACMFPN
from irstd_edge.models.dnanet import DNANet
from irstd_edge.models.mshnet import MSHNet
from irstd_edge.models.registry import MODELS
from irstd_edge.models.resunet import WIDTHS, ResUNet
from irstd_edge.training.cli import train
from irstd_edge.training.distillation import load_teacher
from irstd_edge.training.recipe import Distill


def bn(name, channels):
    return {f"{name}.{k}": [channels] for k in ("weight", "bias", "running_mean", "running_var")} | {
        f"{name}.num_batches_tracked": []}


def conv(name, out, inputs, kernel=3, bias=True):
    return {f"{name}.weight": [out, inputs, kernel, kernel]} | ({f"{name}.bias": [out]} if bias else {})


def cbam_block(name, inputs, out, ratio=16):
    """Res_CBAM_block of DNANet, ResNet of MSHNet; without attention (ratio 0) Res_block of ResUNet."""
    keys = conv(f"{name}.conv1", out, inputs) | bn(f"{name}.bn1", out)
    keys |= conv(f"{name}.conv2", out, out) | bn(f"{name}.bn2", out)
    if inputs != out:
        keys |= conv(f"{name}.shortcut.0", out, inputs, 1) | bn(f"{name}.shortcut.1", out)
    if ratio:
        keys |= conv(f"{name}.ca.fc1", out // ratio, out, 1, False)
        keys |= conv(f"{name}.ca.fc2", out, out // ratio, 1, False)
        keys |= {f"{name}.sa.conv1.weight": [1, 2, 7, 7]}
    return keys


def stage(name, inputs, out, count, block=cbam_block, **options):
    return {k: v for i in range(count)
            for k, v in block(f"{name}.{i}", out if i else inputs, out, **options).items()}


def dnanet_keys(image):
    c, keys = [16, 32, 64, 128, 256], {}
    inputs = {
        "0_0": image, "1_0": 16, "2_0": 32, "3_0": 64, "4_0": 128,
        "0_1": 16 + 32, "1_1": 32 + 64 + 16, "2_1": 64 + 128 + 32, "3_1": 128 + 256 + 64,
        "0_2": 2 * 16 + 32, "1_2": 2 * 32 + 64 + 16, "2_2": 2 * 64 + 128 + 32,
        "0_3": 3 * 16 + 32, "1_3": 3 * 32 + 64 + 16, "0_4": 4 * 16 + 32,
    }
    for node, count in inputs.items():
        level = int(node[0])
        keys |= stage(f"conv{node}", count, c[level], 2 if level else 1)
    keys |= stage("conv0_4_final", 5 * 16, 16, 1)
    for level in (1, 2, 3, 4):
        keys |= conv(f"conv0_{level}_1x1", 16, c[level], 1) | conv(f"final{level}", 1, 16, 1)
    return keys


def resunet_keys(c, image, levels):
    keys = stage("conv0_0", image, c[0], 1, ratio=0)
    for i in range(1, levels):
        keys |= stage(f"conv{i}_0", c[i - 1], c[i], 2, ratio=0)
        keys |= stage(f"conv{i - 1}_{levels - i}", c[i - 1] + c[i], c[i - 1], 1, ratio=0)
    return keys | conv("final", 1, c[0], 1)


def mshnet_keys():
    c, keys = [16, 32, 64, 128, 256], conv("conv_init", 16, 3, 1)
    for i in range(4):
        keys |= stage(f"encoder_{i}", c[max(i - 1, 0)], c[i], 2 if i else 1)
        keys |= stage(f"decoder_{i}", c[i] + c[i + 1], c[i], 2 if i else 1) | conv(f"output_{i}", 1, c[i], 1)
    return keys | stage("middle_layer", 128, 256, 2) | conv("final", 1, 4)


def basic_block(name, inputs, out, stride=1):
    """torchvision's BasicBlock."""
    keys = conv(f"{name}.conv1", out, inputs, bias=False) | bn(f"{name}.bn1", out)
    keys |= conv(f"{name}.conv2", out, out, bias=False) | bn(f"{name}.bn2", out)
    if inputs != out or stride != 1:
        keys |= conv(f"{name}.downsample.0", out, inputs, 1, False) | bn(f"{name}.downsample.1", out)
    return keys


def body_block(name, inputs, out):
    """acm-pytorch's ResidualBlock."""
    keys = conv(f"{name}.body.0", out, inputs, bias=False) | bn(f"{name}.body.1", out)
    keys |= conv(f"{name}.body.3", out, out, bias=False) | bn(f"{name}.body.4", out)
    if inputs != out:
        keys |= conv(f"{name}.downsample.0", out, inputs, 1, False) | bn(f"{name}.downsample.1", out)
    return keys


def acm_encoder(image, blocks, block):
    keys = bn("stem.0", image) | conv("stem.1", 8, image, bias=False) | bn("stem.2", 8)
    keys |= conv("stem.4", 8, 8, bias=False) | bn("stem.5", 8) | conv("stem.7", 16, 8, bias=False) | bn("stem.8", 16)
    return (keys | stage("layer1", 16, 16, blocks, block) | stage("layer2", 16, 32, blocks, block)
            | stage("layer3", 32, 64, blocks, block))


def fusion(name, channels, high=None):
    keys = {} if high is None else conv(f"{name}.feature_high.0", channels, high, 1) | bn(
        f"{name}.feature_high.1", channels)
    for gate, first in (("topdown", 1), ("bottomup", 0)):
        keys |= conv(f"{name}.{gate}.{first}", channels // 4, channels, 1) | bn(
            f"{name}.{gate}.{first + 1}", channels // 4)
        keys |= conv(f"{name}.{gate}.{first + 3}", channels, channels // 4, 1) | bn(
            f"{name}.{gate}.{first + 4}", channels)
    return keys | conv(f"{name}.post.0", channels, channels) | bn(f"{name}.post.1", channels)


def head(channels):
    return (conv("head.block.0", channels // 4, channels, bias=False) | bn("head.block.1", channels // 4)
            | conv("head.block.4", 1, channels // 4, 1))


def up(name, inputs, out):
    return {f"{name}.weight": [inputs, out, 4, 4], f"{name}.bias": [out]}


def unet_keys(image, blocks, block, project):
    return (acm_encoder(image, blocks, block) | up("deconv2", 64, 32) | up("deconv1", 32, 16)
            | fusion("fuse2", 32, 32 if project else None) | fusion("fuse1", 16, 16 if project else None)
            | stage("uplayer2", 32, 32, blocks, block) | stage("uplayer1", 16, 16, blocks, block) | head(16))


def alcnet_keys():
    """With the stages that BasicIRSTD makes and never runs."""
    return (acm_encoder(1, 4, basic_block) | up("deconv2", 64, 32) | up("deconv1", 32, 16) | up("deconv0", 16, 8)
            | fusion("fuse23", 32) | fusion("fuse12", 16) | head(8)
            | stage("uplayer2", 32, 32, 4, basic_block) | stage("uplayer1", 16, 16, 4, basic_block))


TWO, THREE = (8, 16, 32, 64, 128), (16, 32, 64, 128, 256)
#: (layout, network, keys and shapes of its checkpoint, how the file holds them)
CHECKPOINTS = [
    ("basicirstd", "acm", unet_keys(1, 3, basic_block, False), {"wrap": "state_dict", "prefix": "model."}),
    ("basicirstd", "alcnet", alcnet_keys(), {"wrap": "state_dict", "prefix": "model."}),
    ("basicirstd", "dnanet", dnanet_keys(1), {"wrap": "state_dict", "prefix": "model."}),
    ("basicirstd", "resunet-basicirstd", resunet_keys(THREE[:4], 1, 4), {"wrap": "state_dict", "prefix": "model."}),
    ("dnanet", "dnanet", dnanet_keys(3), {"wrap": "state_dict"}),
    ("dnanet", "resunet", resunet_keys(TWO, 3, 5), {"wrap": "state_dict", "prefix": "module."}),
    ("dnanet", "resunet-three", resunet_keys(THREE, 3, 5), {}),
    ("acm", "acm-unet", unet_keys(3, 4, body_block, True), {}),
    ("acm", "acm-fpn", acm_encoder(3, 4, body_block) | fusion("fuse23", 32, 64) | fusion("fuse12", 16, 32) | head(16),
     {}),
    ("mshnet", "mshnet", mshnet_keys(), {"wrap": "net"}),
    ("mshnet", "mshnet", mshnet_keys(), {}),
]


def random_tensors(keys):
    generator = torch.Generator().manual_seed(0)
    return {k: torch.tensor(0) if k.endswith("tracked") else
            0.5 + 0.1 * torch.rand(shape, generator=generator) if "running_var" in k else
            0.1 * torch.randn(shape, generator=generator) for k, shape in keys.items()}


def write(path, tensors, wrap=None, prefix=""):
    state = {prefix + k: v for k, v in tensors.items()}
    torch.save({wrap: state, "epoch": 400} if wrap else state, path)


@pytest.mark.parametrize("layout, network, keys, file", CHECKPOINTS)
def test_every_layout_loads(tmp_path, layout, network, keys, file):
    tensors = random_tensors(keys)
    write(tmp_path / "a.pth.tar", tensors, **file)
    given = {} if LAYOUTS[layout].image else {"mean": 100, "std": 30}
    loaded = load_network(network, checkpoint=tmp_path / "a.pth.tar", allow_pickle=True, from_layout=layout, **given)
    state = loaded.network.state_dict()
    deep = next(k for k in state if "layer3.1.conv2.weight" in k or k.startswith(("conv1_0.1.conv2.weight",
                                                                                   "decoder_1.1.conv2.weight")))
    source = deep if deep in tensors else deep.replace("conv2", "body.3")
    assert torch.equal(state[deep], tensors[source])
    expected = (100, 30) if given else (0.449 * 255, 0.226 * 255)
    assert (loaded.preprocessing.mean, loaded.preprocessing.std) == pytest.approx(expected)


def test_a_training_starts_from_a_public_checkpoint(tmp_path):
    layout, network, keys, file = CHECKPOINTS[5]
    write(tmp_path / "a.pth.tar", random_tensors(keys), **file)
    initial = checkpoints.initial_weights(network, tmp_path / "a.pth.tar", True, layout)
    started = checkpoints.build_network(network)
    initial.load_into(started)
    evaluated = load_network(network, checkpoint=tmp_path / "a.pth.tar", allow_pickle=True, from_layout=layout)
    x = torch.randn(1, 1, 32, 32)
    assert torch.equal(started.eval()(x), evaluated.network(x))
    with pytest.raises(CheckpointError, match="hold acm"):
        checkpoints.initial_weights(network, tmp_path / "a.pth.tar", True, "basicirstd")


@torch.no_grad()
def test_a_public_checkpoint_teaches_what_it_computes(tmp_path):
    torch.manual_seed(0)
    public, path = randomise(ResUNet(WIDTHS["one"], in_channels=3)), tmp_path / "a.pth.tar"
    write(path, public.state_dict(), "state_dict", "module.")
    settings = Distill("resunet-one", ("conv0_0=a",), checkpoint=str(path), from_layout="dnanet")
    teacher = load_teacher(settings, Normalisation(100.0, 30.0), allow_pickle=True)
    p, image = teacher.preprocessing, torch.randint(0, 256, (1, 1, 32, 48)).float()
    assert (p.mean, p.std) == pytest.approx((0.449 * 255, 0.226 * 255))  # the layout's, not the student's
    # The padding of the first two convolutions is another grey there: two pixels at the border.
    inner = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(teacher.network.conv0_0((image - p.mean) / p.std)[inner],
                               public.conv0_0(imagenet(image))[inner], rtol=1e-4, atol=1e-4)


def test_the_teacher_of_a_layout_without_a_normalisation_sees_the_students(tmp_path):
    write(tmp_path / "a.pth.tar", random_tensors(resunet_keys(THREE[:4], 1, 4)), "state_dict", "model.")
    settings = Distill("resunet-basicirstd", ("a=b",), checkpoint=str(tmp_path / "a.pth.tar"), from_layout="basicirstd")
    teacher = load_teacher(settings, Normalisation(100.0, 30.0), allow_pickle=True)
    assert (teacher.preprocessing.mean, teacher.preprocessing.std) == (100, 30)


def test_a_public_teacher_without_its_layout_is_told_how_to_name_it(tmp_path):
    write(tmp_path / "a.pth.tar", random_tensors(resunet_keys((4, 8, 16, 32, 64), 3, 5)))
    settings = Distill("resunet-one", ("a=b",), checkpoint=str(tmp_path / "a.pth.tar"))
    with pytest.raises(CheckpointError, match=r"the teacher: .*a\.pth\.tar: .*; a public one needs --teacher-layout "
                                              r"\(from_layout in \[distill\]\) dnanet"):
        load_teacher(settings, Normalisation(100.0, 30.0), allow_pickle=True)


def test_a_layout_without_initial_weights_is_refused(tmp_path):
    done = CliRunner().invoke(train, ["resunet-nuaa", "--root", str(tmp_path), "--out", str(tmp_path / "run"),
                                      "--from-layout", "dnanet"])
    assert done.exit_code == 2
    assert "--init" in done.output


def test_the_lists_cover_every_layout_and_network():
    assert {(layout, network) for layout, network, _, _ in CHECKPOINTS} | {
        ("dnanet", "resunet-one"), ("dnanet", "resunet-four")} == {
        (name, network) for name, layout in LAYOUTS.items() for network in layout.networks}
    assert {n for layout in LAYOUTS.values() for n in layout.networks} <= MODELS.keys()


def imagenet(grey):
    """Three channels of a grey image 0..255, each with its own normalisation."""
    means, stds = (torch.tensor(v).view(1, 3, 1, 1) for v in LAYOUTS["dnanet"].image)
    return (grey / 255 - means) / stds


@torch.no_grad()
def randomise(network):
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(module, torch.nn.Conv2d) and module.out_channels == 1 and module.bias is not None:
            torch.nn.init.zeros_(module.bias)  # an output around 1/2
            module.weight.mul_(3)
    return network.eval()


def merged(make, layout, **given):
    """A three-channel network and the one-channel network of its converted weights, with its normalisation."""
    torch.manual_seed(0)
    rgb, grey = randomise(make(in_channels=3)), make(in_channels=1).eval()
    tensors, normalisation = convert(rgb.state_dict(), grey.state_dict(), LAYOUTS[layout], **given)
    load_weights(grey, tensors)
    return rgb, grey, normalisation


def test_mshnet_on_one_channel_equals_three_everywhere():
    rgb, grey, (mean, std) = merged(lambda **k: MSHNet((4, 6), ratio=2, **k), "mshnet")
    image = torch.randint(0, 256, (1, 1, 24, 32)).float()
    with torch.no_grad():
        torch.testing.assert_close(grey((image - mean) / std), rgb(imagenet(image)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make, layout, first", [
    (lambda **k: DNANet((4, 6), ratio=2, **k), "dnanet", "conv0_0.0.bn1"),
    (lambda **k: ResUNet((4, 6), **k), "dnanet", "conv0_0.0.bn1"),
    (lambda **k: ACMFPN(blocks=1, **k), "acm", "stem.2"),
])
def test_one_channel_equals_three_but_for_the_padded_pixels(make, layout, first):
    rgb, grey, (mean, std) = merged(make, layout)
    image = torch.randint(0, 256, (1, 1, 32, 48)).float()
    seen = []
    for network in (rgb, grey):
        network.get_submodule(first).register_forward_hook(lambda m, i, y: seen.append(y))
    with torch.no_grad():
        a, b = rgb(imagenet(image)), grey((image - mean) / std)
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(seen[0][inner], seen[1][inner], rtol=1e-4, atol=1e-4)
    assert (a - b).abs().mean() < 0.1 * a.std()


@pytest.mark.parametrize("make, layout", [(lambda **k: DNANet((4, 6), ratio=2, **k), "dnanet")])
def test_one_normalisation_for_all_channels_is_exact_everywhere(make, layout):
    rgb, grey, normalisation = merged(make, layout, mean=90.0, std=40.0)
    assert normalisation == pytest.approx((90, 40))
    x = torch.randn(1, 1, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(grey(x), rgb(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_mismatches_are_listed_by_key_and_wrong_requests_refused(tmp_path):
    path = tmp_path / "a.pth"
    write(path, random_tensors(resunet_keys(THREE, 3, 5)))
    with pytest.raises(CheckpointError, match=r"of another shape \(conv0_0.0.conv1.weight \[16, 3, 3, 3\], network"):
        load_network("resunet", checkpoint=path, allow_pickle=True, from_layout="dnanet")
    keys = dnanet_keys(1)
    del keys["final4.bias"]
    write(path, random_tensors(keys | {"extra.weight": [1]}), "state_dict", "model.")
    with pytest.raises(CheckpointError, match=r"1 missing \(final4\.bias\); 1 unexpected \(extra\.weight\)"):
        load_network("dnanet", checkpoint=path, allow_pickle=True, from_layout="basicirstd", mean=100, std=30)
    with pytest.raises(CheckpointError, match="hold mshnet, not dnanet"):
        load_network("dnanet", checkpoint=path, allow_pickle=True, from_layout="mshnet")
    for name in ("dnanet", "mshnet"):  # with weights in the zoo, and without
        with pytest.raises(CheckpointError, match="says how to read a checkpoint: give --checkpoint"):
            load_network(name, from_layout=name)
    with pytest.raises(CheckpointError, match="unknown layout 'larq'; known: basicirstd"):
        load_network("dnanet", checkpoint=path, from_layout="larq")
    with pytest.raises(CheckpointError, match="needs --from-layout basicirstd or dnanet"):
        load_network("dnanet", checkpoint=path, allow_pickle=True)
    with pytest.raises(CheckpointError, match="together"):
        load_network("dnanet", checkpoint=path, allow_pickle=True, from_layout="dnanet", mean=3)


def test_a_layout_without_a_normalisation_of_its_own_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "zoo_card", lambda name: None)
    path = tmp_path / "a.pth"
    write(path, random_tensors(dnanet_keys(1)), "state_dict", "model.")
    with pytest.raises(CheckpointError, match="give --mean and --std"):
        load_network("dnanet", checkpoint=path, allow_pickle=True, from_layout="basicirstd")
