import copy
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from small_networks import SmallUNet, randomise, small_unet
from torch import nn

from irstd_edge.checkpoints import CheckpointError, build_network, load_network, restore, save_weights
from irstd_edge.nn.convert import Conversion, ConversionError, QuantLayer, convert, fold_batch_norm, trace
from irstd_edge.nn.quant import QuantConv2d

EIGHT = Conversion({"down.1": "down.0", "deep.1": "deep.0", "up.1": "up.0"},
                   {"down.0": QuantLayer(8, 8, True), "deep.0": QuantLayer(2, 3, False)})


class Wired(nn.Module):
    """A network of one forward function."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def test_one_pass_shows_what_can_be_folded():
    network = small_unet()
    network.up.train()
    found = trace(network, (16, 16))
    assert found.convolutions == ("down.0", "deep.0", "up.0", "head")
    assert found.edges == ("down.0", "head")
    assert found.folded == EIGHT.folded
    assert found.left == found.other == {}
    assert network.training and network.up[1].training and not network.down[0]._forward_hooks
    assert torch.equal(network.down[1].running_mean, torch.zeros(8))


@pytest.mark.parametrize("name", ["resunet-one", "mdpnet"])
def test_folding_changes_no_logit_of_the_zoo(name):
    network = randomise(build_network(name))
    with torch.no_grad():
        found = trace(network, (64, 64))
        assert not found.left
        folded = convert(network, Conversion(found.folded))
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        x = torch.randn(1, 1, 64, 64)
        want, got = torch.logit(network(x).double()), torch.logit(folded(x).double())
    finite = want.isfinite() & got.isfinite()
    assert finite.float().mean() > 0.5
    torch.testing.assert_close(got[finite], want[finite], atol=2e-2, rtol=1e-3)


def test_folded_by_hand():
    conv, norm = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0).eval()
    nn.init.constant_(conv.weight, 3.0)
    for tensor, value in ((norm.weight, 5.0), (norm.bias, 7.0), (norm.running_mean, 2.0), (norm.running_var, 4.0)):
        nn.init.constant_(tensor, value)
    fold_batch_norm(conv, norm)
    # (3 x - 2) / 2 * 5 + 7
    assert conv.weight.item() == 7.5 and conv.bias.item() == 2.0


def test_what_cannot_be_folded_is_left_with_the_reason():
    before = Wired(lambda n, x: n.conv(n.norm(x)), norm=nn.BatchNorm2d(1), conv=nn.Conv2d(1, 2, 1))
    assert trace(before, (4, 4)).left == {"norm": "its input is not that of one convolution alone"}
    twice = Wired(lambda n, x: (lambda y: n.norm(y) + y)(n.conv(x)), norm=nn.BatchNorm2d(2), conv=nn.Conv2d(1, 2, 1))
    assert trace(twice, (4, 4)).left == {"norm": "the output of conv is used elsewhere too"}
    relu = Wired(lambda n, x: n.norm(F.relu_(n.conv(x))), norm=nn.BatchNorm2d(2), conv=nn.Conv2d(1, 2, 1))
    assert "norm" in trace(relu, (4, 4)).left
    other = Wired(lambda n, x: n.b(n.conv(x)) + n.a(n.conv(x)), a=nn.BatchNorm2d(2), b=nn.BatchNorm2d(2),
                  conv=nn.Conv2d(1, 2, 1))
    assert set(trace(other, (4, 4)).left) == {"a", "b"} and not trace(other, (4, 4)).folded


def test_a_layer_called_twice_folds_once_and_shared_weights_stay_apart():
    shared = Wired(lambda n, x: n.norm(n.conv(x)) - n.norm(n.conv(2 * x)), norm=nn.BatchNorm2d(2),
                   conv=nn.Conv2d(1, 2, 3))
    tied = Wired(lambda n, x: n.norm(n.conv(x)) + n.again(x), norm=nn.BatchNorm2d(2), conv=nn.Conv2d(1, 2, 3),
                 again=nn.Conv2d(1, 2, 3))
    tied.again.weight = tied.conv.weight
    x = torch.randn(1, 1, 6, 6)
    for network in (shared, tied):
        randomise(network)
        found = trace(network, (6, 6))
        assert found.folded == {"norm": "conv"}
        torch.testing.assert_close(convert(network, Conversion(found.folded))(x), network(x), atol=1e-5, rtol=1e-5)


def test_a_layer_of_two_names_is_replaced_under_both():
    conv = nn.Conv2d(1, 1, 3, padding=1)
    network = convert(nn.Sequential(conv, nn.ReLU(), conv), Conversion({}, {"0": QuantLayer(4, 4, True)}))
    assert isinstance(network[0], QuantConv2d) and network[0] is network[2]


def test_the_given_network_stays_as_it_was():
    network = randomise(small_unet())
    before = copy.deepcopy(network.state_dict())
    quantised = convert(network, EIGHT)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert quantised.conversion == EIGHT and not hasattr(network, "conversion")
    assert [type(m) for m in (quantised.down[0], quantised.down[1], quantised.up[0])] == [
        QuantConv2d, nn.Identity, nn.Conv2d]


@pytest.mark.parametrize("network, message", [
    (nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)), "1: .*no running statistics"),
    (nn.Sequential(nn.Conv2d(3, 2, 1)), "cannot be run on an image of 8 x 8"),
])
def test_networks_that_cannot_be_traced(network, message):
    with pytest.raises(ConversionError, match=message):
        trace(network, (8, 8))


@pytest.mark.parametrize("network, layers, message", [
    (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")), {"0": QuantLayer(8, 8, False)},
     "0: .*reflect.*leave it float"),
    (nn.Sequential(nn.Conv2d(1, 1, 3)), {"0": QuantLayer(1, 1, True)}, "0: .*BinaryConv2d.*other bits"),
    (nn.Sequential(nn.Conv2d(1, 1, 3)), {"1": QuantLayer(8, 8, True)}, "no Conv2d named '1'"),
    (nn.Sequential(nn.Linear(1, 1)), {"0": QuantLayer(8, 8, True)}, "no Conv2d named '0'"),
    (nn.Conv2d(1, 1, 3), {"": QuantLayer(8, 8, True)}, "single convolution"),
])
def test_layers_that_cannot_be_quantised(network, layers, message):
    with pytest.raises(ConversionError, match=message):
        convert(network, Conversion({}, layers))


def test_saved_weights_rebuild_the_network_and_its_outputs_bit_for_bit(tmp_path):
    quantised = convert(randomise(small_unet()), EIGHT).eval()
    quantised.down[0].calibrate(torch.randn(1, 1, 16, 16))
    save_weights(quantised, tmp_path / "q.safetensors")
    restored = restore(SmallUNet(), tmp_path / "q.safetensors").eval()
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(restored(x), quantised(x))
    assert restored.conversion == EIGHT
    # By the command line's way too, which takes the normalisation from the manifest beside it.
    (tmp_path / "quantisation.json").write_text(json.dumps({"normalisation": {"mean": 85.0, "std": 15.0}}))
    loaded = load_network("small", model="small_networks:small_unet", checkpoint=tmp_path / "q.safetensors")
    assert torch.equal(loaded.network(x), quantised(x)) and loaded.preprocessing.mean == 85.0


@pytest.mark.parametrize("text, message", [
    ("no json", "damaged table"), ("[]", "damaged table"), ('{"folded": {}, "layers": {"down.0": [8, 8]}}', "damaged"),
    ('{"folded": {}, "layers": {"down.9": [8, 8, true]}}', "no Conv2d named 'down.9'"),
    ('{"folded": {}, "layers": {"down.0": [9, 8, true]}}', "weight_bits must be at most 8"),
    ('{"folded": {"down.0": "down.1"}, "layers": {}}', "it belongs to another network"),
    ('{"folded": {}, "layers": {"down.0": [8, 8, true]}}', "missing"),
])
def test_damaged_files_are_refused(tmp_path, text, message):
    path = tmp_path / "q.safetensors"
    save_file(small_unet().state_dict(), path, {"irstd_edge.conversion": text})
    with pytest.raises(CheckpointError, match=message) as e:
        restore(small_unet(), path)
    assert str(path) in str(e.value)


def test_a_float_checkpoint_loads_as_ever(tmp_path):
    network = randomise(small_unet())
    save_weights(network, tmp_path / "f.safetensors")
    restored = restore(small_unet(), tmp_path / "f.safetensors")
    assert not hasattr(restored, "conversion")
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in restored.state_dict().items() if "tracked" not in k)
