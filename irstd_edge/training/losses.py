"""Training losses and the supervised objective.

A loss takes the probability and the target, both ``[N, 1, H, W]`` in 0..1, and returns a scalar tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves


def soft_iou(probability: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``1 - (sum p g + 1) / (sum p + sum g - sum p g + 1)``, sums over the whole batch (BasicIRSTD); in 0..1."""
    overlap = (probability * target).sum()
    return 1 - (overlap + 1) / (probability.sum() + target.sum() - overlap + 1)


def image_iou(probability: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Soft IoU loss with the sums over each image, then the mean over the images (MSHNet before its warm-up ends)."""
    overlap = (probability * target).sum((1, 2, 3))
    union = probability.sum((1, 2, 3)) + target.sum((1, 2, 3)) - overlap
    return 1 - ((overlap + 1) / (union + 1)).mean()


def bce_iou(probability: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy plus :func:`soft_iou`."""
    return F.binary_cross_entropy(probability.clamp(1e-6, 1 - 1e-6), target) + soft_iou(probability, target)


#: The losses that a recipe may name.
LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "soft_iou": soft_iou, "image_iou": image_iou, "bce_iou": bce_iou,
}


class Supervised(nn.Module):
    """The objective of plain training: one of :data:`LOSSES`, averaged over the outputs of the network.

    In training mode a network may return several probabilities (deep supervision), in any nesting of lists, tuples and
    dictionaries; each is enlarged bilinearly to the target's size where it is smaller. What is no tensor is left out.
    """

    def __init__(self, loss: str = "soft_iou"):
        super().__init__()
        self.loss = loss

    def measure(self, outputs, target: torch.Tensor) -> torch.Tensor:
        """The loss of the outputs of a network, in float32 whatever they are in."""
        losses = []
        for probability in (y.float() for y in tree_leaves(outputs) if isinstance(y, torch.Tensor)):
            if probability.shape[2:] != target.shape[2:]:
                probability = F.interpolate(probability, target.shape[2:], mode="bilinear", align_corners=False)
            with torch.autocast(target.device.type, enabled=False):
                losses.append(LOSSES[self.loss](probability, target))
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def forward(self, network: nn.Module, x: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.measure(network(x), target)}
