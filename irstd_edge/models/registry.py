"""The networks known by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from irstd_edge.models.acm import ACMFPN, ACMUNet, ALCNet
from irstd_edge.models.biisnet import VARIANTS, biisnet, biisnet_fine, biisnet_float, biisnet_variant
from irstd_edge.models.dnanet import dnanet
from irstd_edge.models.mdpnet import mdpnet
from irstd_edge.models.mshnet import mshnet
from irstd_edge.models.resunet import resunet, resunet_basicirstd
from irstd_edge.models.sformer import SFormer


class UnknownModelError(ValueError):
    """No network of this name; the message lists the nearest."""


@dataclass(frozen=True)
class Model:
    name: str
    #: Makes the network with fresh weights; takes what its class takes, such as ``in_channels``.
    factory: Callable[..., nn.Module]
    summary: str
    source: str
    #: The heading it is listed under.
    family: str
    #: The float network of the same topology to compare speed with, if any.
    float_twin: str | None = None
    #: The larger network to distil from, if any.
    teacher: str | None = None


_BINARY_BASELINES = {
    "xnor": ("XNOR-Net", "arXiv 1603.05279"), "bireal": ("Bi-Real Net", "arXiv 1808.00278"),
    "reactnet": ("ReActNet", "arXiv 2003.03488"), "bisrnet": ("BiSRNet, without its layer norm,", "arXiv 2305.10299"),
}
_ABLATIONS = {
    "modulate": "the binary result modulates the full-precision feature",
    "pointwise": "a full-precision depth-wise path", "nopath": "no full-precision path",
    "ste": "the clipped straight-through estimator for Dynamic Softsign",
    "approxsign": "ApproxSign for Dynamic Softsign", "tanh": "the scaled tanh for Dynamic Softsign",
}


def _variant(name: str) -> Model:
    """A network of biisnet's topology."""
    if name in _BINARY_BASELINES:
        network, paper = _BINARY_BASELINES[name]
        summary, source = f"biisnet's topology with the unit of {network}", f"unit after {paper}, topology ours"
    else:
        summary, source = f"biisnet with one change: {_ABLATIONS[name]}", "ours"
    return Model(f"biisnet-{name}", partial(biisnet_variant, name), summary.removesuffix(","), source, "BiisNet",
                 "biisnet-float")


_MDPNET = "reconstructed after the abstract of Infrared Phys. & Technol. 131 (2023) 104671"
_RESUNET = "public code of DNANet's authors, own implementation"
_DNANET = "arXiv 2106.00487 and its public code, own implementation"
_BASICIRSTD = "public code of BasicIRSTD, own implementation"
_ACM = "arXiv 2009.14530 and acm-pytorch's public code, own implementation"

MODELS: dict[str, Model] = {
    m.name: m
    for m in (
        Model("biisnet", biisnet, "binarised three-level U-Net, Dot-binary convolutions",
              "reconstructed after the abstract of arXiv 2503.02662", "BiisNet", "biisnet-float"),
        Model("biisnet-fine", biisnet_fine, "biisnet with full-precision depth-wise paths in its two finer levels",
              "ours", "BiisNet", "biisnet-float"),
        Model("biisnet-float", biisnet_float, "float twin of biisnet: same topology, float convolutions", "ours",
              "BiisNet"),
        *map(_variant, VARIANTS),
        Model("mdpnet", mdpnet, "parallel pyramids of dilated depth-wise separable convolutions, layout a", _MDPNET,
              "MDPNet", teacher="sformer"),
        Model("mdpnet-b", partial(mdpnet, "b"), "layout b of mdpnet: wider, narrow branches, 13 blocks", _MDPNET,
              "MDPNet", teacher="sformer"),
        Model("sformer", SFormer, "segmentation transformer at 1/8 of the size, to teach mdpnet", "ours", "MDPNet"),
        Model("resunet", resunet, "residual U-Net of five levels, 8 to 128 channels (width two)", _RESUNET, "ResUNet",
              teacher="resunet-three"),
        Model("resunet-one", partial(resunet, "one"), "resunet of 4 to 64 channels", _RESUNET, "ResUNet",
              teacher="resunet-three"),
        Model("resunet-three", partial(resunet, "three"), "resunet of 16 to 256 channels", _RESUNET, "ResUNet"),
        Model("resunet-four", partial(resunet, "four"), "resunet of 32 to 512 channels", _RESUNET, "ResUNet"),
        Model("resunet-spmix", resunet, "resunet in 2 to 8 bits: fewer for coarser levels; weights trained so",
              "reconstructed after the abstract of doi 10.1109/TGRS.2023.3346904", "ResUNet", "resunet"),
        Model("resunet-basicirstd", resunet_basicirstd, "BasicIRSTD's resunet of four levels, 16 to 128 channels",
              _BASICIRSTD, "ResUNet"),
        Model("dnanet", dnanet, "dense nested attention network of ResNet-18's depth, 16 to 256 channels", _DNANET,
              "DNANet"),
        Model("dnanet-two", partial(dnanet, "two"), "dnanet of 8 to 128 channels, attention ratio 8", _DNANET,
              "DNANet", teacher="dnanet"),
        Model("dnanet-one", partial(dnanet, "one"), "dnanet of 4 to 64 channels, attention ratio 4", _DNANET,
              "DNANet", teacher="dnanet"),
        Model("mshnet", mshnet, "residual U-Net with attention and a head at every scale",
              "arXiv 2403.19366 and its public code, own implementation", "MSHNet"),
        Model("acm", ACMUNet, "asymmetric contextual modulation on a U-Net, three blocks a stage", _BASICIRSTD, "ACM"),
        Model("acm-unet", partial(ACMUNet, blocks=4, project=True),
              "asymmetric contextual modulation on a U-Net, four blocks a stage", _ACM, "ACM"),
        Model("acm-fpn", ACMFPN, "asymmetric contextual modulation on a feature pyramid", _ACM, "ACM"),
        Model("alcnet", ALCNet, "BasicIRSTD's ALCNet: ACM's fusion, transposed convolutions, a light decoder",
              _BASICIRSTD, "ACM"),
    )
}


def get_model(name: str) -> Model:
    """The entry of a name; raises :class:`UnknownModelError`."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, 1, 0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownModelError(f"unknown model {name!r}; {hint}known: {', '.join(MODELS)}")
    return MODELS[name]
