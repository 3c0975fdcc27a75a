"""Self-attention over the pixels of a feature map, written out in operators that every target has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product self-attention (arXiv 1706.03762): ``[N, T, C]`` to ``[N, T, C]``.

    Args:
        channels: C, a multiple of ``heads``; raises :class:`ValueError` otherwise.
        heads: of C / heads channels each.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared out to {heads} heads")
        self.heads = heads
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = (x.shape[-1] // self.heads) ** -0.5
        parts = self.qkv(x).chunk(3 * self.heads, -1)
        # Head by head: rank 3 throughout, which has one layout in every runtime.
        heads = (torch.softmax(q @ k.transpose(1, 2) * scale, -1) @ v
                 for q, k, v in zip(*(parts[i::3] for i in range(3)), strict=True))
        return self.out(torch.cat(list(heads), -1))


class TransformerBlock(nn.Module):
    """A pre-norm transformer block on a map ``[N, C, H, W]``: self-attention, then two 1x1 layers with GELU.

    A depth-wise 3x3 convolution before the attention tells it where a token lies (conditional positional encoding,
    arXiv 2102.10882), so any size of image fits.
    """

    def __init__(self, channels: int, heads: int, expansion: int = 4):
        super().__init__()
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm1, self.attention = nn.LayerNorm(channels), SelfAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.expand, self.shrink = nn.Linear(channels, expansion * channels), nn.Linear(expansion * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.position(x)
        size = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(self.norm1(tokens))
        tokens = tokens + self.shrink(F.gelu(self.expand(self.norm2(tokens)), approximate="tanh"))
        return tokens.transpose(1, 2).unflatten(2, size)
