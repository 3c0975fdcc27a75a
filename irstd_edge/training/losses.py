"""Training losses."""

from __future__ import annotations

import torch


def soft_iou(probability: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``1 - (sum p g + 1) / (sum p + sum g - sum p g + 1)``, sums over the whole batch (BasicIRSTD); in 0..1."""
    overlap = (probability * target).sum()
    return 1 - (overlap + 1) / (probability.sum() + target.sum() - overlap + 1)
