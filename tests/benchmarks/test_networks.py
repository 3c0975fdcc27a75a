import pytest
import torch

from irstd_edge.benchmarks.kernels import networks
from irstd_edge.models.registry import UnknownModelError
from irstd_edge.nn.quant import QuantConv2d


@pytest.mark.parametrize(("name", "expected"), [
    ("resunet-w4a3", ("resunet", (4, 3))), ("biisnet-float", ("biisnet-float", None)), ("mdpnet", ("mdpnet", None))])
def test_names(name, expected):
    assert networks.parse(name) == expected


def test_a_quantised_network_is_calibrated_in_its_bits():
    network = networks.resunet_one_w4a3()
    layers = [m for m in network.modules() if isinstance(m, QuantConv2d)]
    assert layers and not any(type(m) is torch.nn.Conv2d for m in network.modules())
    assert {(m.weight_bits, m.activation_bits) for m in layers} == {(4, 3)}
    assert all(m.activation_step != 1 for m in layers)
    assert [m.activation_signed for m in layers if m.weight.shape[1] == 1] == [True] * 2  # they see the image


def test_a_float_network_stays_float():
    assert not any(isinstance(m, QuantConv2d) for m in networks.resunet_one().modules())


def test_unknown_networks_are_named():
    with pytest.raises(UnknownModelError, match="resunot"):
        networks.resunot()
