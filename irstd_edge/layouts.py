"""Public checkpoints of other projects: what their tensors are called, and how weights for three image channels become
weights for one.

:data:`LAYOUTS` says all that differs. The networks here keep the names of the public code wherever they can.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Mean and deviation per channel on the 0..1 scale.
ImageNorm = tuple[tuple[float, float, float], tuple[float, float, float]]
_IMAGENET: ImageNorm = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Layout:
    """The tensors of one project's checkpoints.

    ``networks`` are the networks of the registry that it holds; ``rename`` pairs of a pattern and what replaces it in
    a key; ``unused`` a pattern of tensors that the public code makes but never runs; ``image`` the normalisation of its
    three image channels, None where it trains on one.
    """

    source: str
    networks: tuple[str, ...]
    rename: tuple[tuple[str, str], ...] = ()
    unused: str | None = None
    image: ImageNorm | None = None


_RESUNETS = ("resunet", "resunet-one", "resunet-three", "resunet-four")

LAYOUTS: dict[str, Layout] = {
    "basicirstd": Layout("github.com/XinyiYing/BasicIRSTD", ("acm", "alcnet", "dnanet", "resunet-basicirstd"),
                         ((r"\.downsample\.", ".shortcut."),), r"uplayer\d\."),
    "dnanet": Layout("github.com/YeRen123455/Infrared-Small-Target-Detection", ("dnanet", *_RESUNETS),
                     image=_IMAGENET),
    "acm": Layout("github.com/Tianfang-Zhang/acm-pytorch", ("acm-unet", "acm-fpn"),
                  ((r"\.body\.0\.", ".conv1."), (r"\.body\.1\.", ".bn1."), (r"\.body\.3\.", ".conv2."),
                   (r"\.body\.4\.", ".bn2."), (r"\.downsample\.", ".shortcut.")), image=_IMAGENET),
    "mshnet": Layout("github.com/Lliu666/MSHNet", ("mshnet",), image=_IMAGENET),
}


def convert(tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], layout: Layout,
            mean: float | None = None, std: float | None = None
            ) -> tuple[dict[str, torch.Tensor], tuple[float, float] | None]:
    """A checkpoint's tensors under the names of a network, for its one image channel, and the normalisation they need.

    Grey is the same in all channels, so their weights are added up; what the channels' normalisations differ by goes
    into scale and offset. That is exact but for the outermost pixels, whose padding is zero in every channel's own
    normalisation; with a 1x1 convolution first (MSHNet), and where all channels have one normalisation, there too.

    Args:
        tensors: of the checkpoint, wrappers and prefixes taken off.
        own: the network's state_dict.
        layout: an entry of :data:`LAYOUTS`.
        mean, std: on the 0..255 scale where all channels were trained with these; default the layout's.

    Returns: the tensors, not checked against the network yet; mean and std on the 0..255 scale, None where the layout
    does not know them.
    """
    named = {_renamed(key, layout): value for key, value in tensors.items()}
    if layout.unused:
        named = {k: v for k, v in named.items() if k in own or not re.match(layout.unused, k)}
    if layout.image is None:
        return named, None
    means, stds = layout.image if mean is None else ((mean / 255,) * 3, (std / 255,) * 3)
    grey_mean, grey_std = sum(means) / 3, sum(stds) / 3
    gain = [grey_std / s for s in stds]
    offset = [(grey_mean - m) / s for m, s in zip(means, stds, strict=True)]
    _merge_channels(named, own, gain, offset)
    return named, (255 * grey_mean, 255 * grey_std)


def _renamed(key: str, layout: Layout) -> str:
    for pattern, replacement in layout.rename:
        key = re.sub(pattern, replacement, key)
    return key


def _merge_channels(tensors: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor], gain, offset) -> None:
    """Give the first convolutions one image channel where they have three: channel c holds ``gain x + offset``."""
    first = [k for k, v in tensors.items() if k in own and v.dim() == 4 and v.shape[1] == 3 and own[k].shape[1] == 1
             and v.shape[:1] == own[k].shape[:1] and v.shape[2:] == own[k].shape[2:]]
    if not first:
        return
    shape = (1, 3, 1, 1)
    gain, offset = (tensors[first[0]].new_tensor(v).view(shape) for v in (gain, offset))
    norm = "stem.0." if first == ["stem.1.weight"] else None  # ACM normalises the image by BN before it convolves
    if norm is not None and all(norm + k in tensors for k in ("weight", "bias", "running_mean", "running_var")):
        weight, bias, mean, variance = (tensors[norm + k].view(shape)
                                        for k in ("weight", "bias", "running_mean", "running_var"))
        scale = weight / (variance + 1e-5).sqrt()
        gain, offset = gain * scale, (offset - mean) * scale + bias
        for key, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1 - 1e-5)):
            tensors[norm + key] = gain.new_full((1,), value)
    for key in first:
        weight = tensors[key]
        constant = (weight * offset).sum((1, 2, 3))
        tensors[key] = (weight * gain).sum(1, keepdim=True)
        if norm is not None and "stem.2.running_mean" in tensors:
            tensors["stem.2.running_mean"] = tensors["stem.2.running_mean"] - constant
        elif (bias := key.removesuffix("weight") + "bias") in tensors:
            tensors[bias] = tensors[bias] + constant
