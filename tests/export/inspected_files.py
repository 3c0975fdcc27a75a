"""Networks and their files, for the tests of ``inspect`` and of its comparisons."""

import torch
from torch import nn

from irstd_edge.export.capture import capture
from irstd_edge.export.passes import compress
from irstd_edge.export.targets.fused import find_parts, fuse
from irstd_edge.export.targets.native import to_native
from irstd_edge.export.targets.onnx import to_onnx
from irstd_edge.export.targets.tflite import to_tflite

SIZE = (64, 96)


def write_files(network, folder, size=SIZE):
    """model.onnx, model.tflite and model.irstd of a network, without a bundle around them."""
    model = compress(capture(network, size, dynamic=False).model)
    parts = find_parts(model, size)
    (folder / "model.onnx").write_bytes(to_onnx(fuse(model, parts)))
    (folder / "model.tflite").write_bytes(to_tflite(model, size, parts=parts).data)
    (folder / "model.irstd").write_bytes(to_native(model, size).data)
    return [folder / f"model.{suffix}" for suffix in ("onnx", "tflite", "irstd")]


class Float(nn.Module):
    """Groups, depth, strides, odd padding, a transposed convolution, and one layer that is called twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(1, 8, 5, padding=1, stride=2)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.group = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.twice = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=0)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        y = self.group(torch.relu(self.depth(self.stem(x))))
        y = self.up(torch.relu(self.twice(torch.relu(self.twice(y)))))
        return torch.sigmoid(self.head(y))
