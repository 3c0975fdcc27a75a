"""Training on a CPU: depth-wise convolutions without their dilation, against PyTorch's own; memory that is kept."""

import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from irstd_edge.training.cpu import UndilatedDepthwise


def gradients(call, *leaves):
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    y = call(*leaves)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    return [y, *torch.autograd.grad(y, leaves, g)]


@settings(deadline=None)
@given(channels=st.integers(1, 40), multiplier=st.integers(1, 2), kernel=st.tuples(*[st.sampled_from([1, 3, 5])] * 2),
       dilation=st.tuples(*[st.integers(1, 5)] * 2), size=st.tuples(*[st.integers(1, 24)] * 2),
       spare=st.tuples(*[st.integers(-1, 1)] * 2), stride=st.sampled_from([1, 1, 1, 2]), bias=st.booleans(),
       alike=st.booleans())
def test_sums_and_gradients_are_those_of_the_dilated_convolution(channels, multiplier, kernel, dilation, size, spare,
                                                                  stride, bias, alike):
    dilation = dilation[:1] * 2 if alike else dilation
    size = [s * d if alike else s for s, d in zip(size, dilation, strict=True)]
    pad = [max(0, d * (k // 2) + (0 if alike else e)) for d, k, e in zip(dilation, kernel, spare, strict=True)]
    pad = [max(p, -(-(d * (k - 1) + 1 - s) // 2)) for p, d, k, s in zip(pad, dilation, kernel, size, strict=True)]
    torch.manual_seed(channels)
    x = torch.randn(2, channels, *size, dtype=torch.double)
    w = torch.randn(channels * multiplier, 1, *kernel, dtype=torch.double)
    leaves = [x, w, torch.randn(channels * multiplier, dtype=torch.double)] if bias else [x, w]

    def convolve(x, w, b=None):
        return F.conv2d(x, w, b, stride, pad, dilation, channels)

    expected = gradients(convolve, *leaves)
    with UndilatedDepthwise():
        found = gradients(convolve, *leaves)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a)


def called_with(network: nn.Module, x: torch.Tensor, **autocast) -> list[tuple[int, ...]]:
    """The dilations that PyTorch's kernels see in training."""
    from torch.profiler import profile

    with UndilatedDepthwise(), profile(record_shapes=True) as seen:
        network(x).sum().backward()
    return [e.concrete_inputs[5] for e in seen.events() if e.name == "aten::convolution"]


@pytest.mark.parametrize("dilation, size, groups, undone", [
    (4, (16, 24), 8, True), (2, (16, 24), 8, True), (1, (16, 24), 8, False), (4, (18, 24), 8, False),
    (4, (16, 24), 1, False), (4, (16, 24), 4, False),
])
def test_depthwise_alone_loses_its_dilation(dilation, size, groups, undone):
    network = nn.Conv2d(8, 8, 3, padding=dilation, dilation=dilation, groups=groups)
    assert called_with(network, torch.randn(2, 8, *size)) == [[1, 1] if undone else [dilation, dilation]]


def test_words_for_padding_are_left_to_pytorch():
    network = nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=8)
    x = torch.randn(1, 8, 8, 8)
    with UndilatedDepthwise():
        y = network(x)
    torch.testing.assert_close(y, network(x))


def test_a_whole_network_trains_alike():
    from irstd_edge.checkpoints import build_network

    x = torch.randn(2, 1, 32, 32, dtype=torch.double)
    found = []
    for undone in (False, True):
        torch.manual_seed(0)
        network = build_network("mdpnet", 1).double().train()
        if undone:
            with UndilatedDepthwise():
                y = network(x)
        else:
            y = network(x)
        y.mean().backward()
        found.append([p.grad for p in network.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told to keep memory")
def test_freed_memory_is_kept():
    program = """
import resource, sys, torch
from irstd_edge.training.cpu import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)
network = torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Conv2d(16, 16, 1), torch.nn.ReLU()) for _ in range(8)])
x = torch.ones(4, 16, 256, 256)
def train(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        network(x).mean().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
train(4)
print(train(4))
"""
    faults = {how: int(subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, check=True,
                                      timeout=300).stdout) for how in ("give", "keep")}
    assert faults["keep"] * 10 < faults["give"], faults
