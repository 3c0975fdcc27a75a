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
        channels = x.shape[-1]
        # [N, T, C] to [N, heads, T, C / heads]
        q, k, v = (part.unflatten(-1, (self.heads, channels // self.heads)).transpose(1, 2)
                   for part in self.qkv(x).chunk(3, -1))
        weights = torch.softmax(q @ k.transpose(-2, -1) * (channels // self.heads) ** -0.5, -1)
        return self.out((weights @ v).transpose(1, 2).flatten(-2))


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
