"""Training on a CPU: depth-wise convolutions without their dilation, against PyTorch's own; memory that is kept."""

import platform
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint

from irstd_edge import cli
from irstd_edge.checkpoints import build_network
from irstd_edge.nn.binary import BinaryUnit
from irstd_edge.nn.blocks import Down, FloatUnit, Up
from irstd_edge.nn.residual import ResidualBlock
from irstd_edge.training.cpu import undilated
from irstd_edge.training.loop import train
from irstd_edge.training.recipe import Recipe


@settings(deadline=None)
@given(channels=st.integers(1, 40), multiplier=st.integers(1, 2), kernel=st.tuples(*[st.sampled_from([1, 3, 5])] * 2),
       dilation=st.tuples(*[st.integers(1, 5)] * 2), size=st.tuples(*[st.integers(1, 24)] * 2),
       spare=st.tuples(*[st.integers(-1, 1)] * 2), stride=st.sampled_from([1, 1, 1, 2]), bias=st.booleans(),
       alike=st.booleans(), mode=st.sampled_from(["zeros", "zeros", "reflect"]))
def test_sums_and_gradients_are_those_of_the_dilated_convolution(channels, multiplier, kernel, dilation, size, spare,
                                                                  stride, bias, alike, mode):
    dilation = dilation[:1] * 2 if alike else dilation
    size = [s * d if alike else s for s, d in zip(size, dilation, strict=True)]
    pad = [max(0, d * (k // 2) + (0 if alike else e)) for d, k, e in zip(dilation, kernel, spare, strict=True)]
    pad = [max(p, -(-(d * (k - 1) + 1 - s) // 2)) for p, d, k, s in zip(pad, dilation, kernel, size, strict=True)]
    mode = mode if all(p < s for p, s in zip(pad, size, strict=True)) else "zeros"  # no more can be reflected
    torch.manual_seed(channels)
    conv = nn.Conv2d(channels, channels * multiplier, kernel, stride, pad, dilation, channels, bias, mode).double()
    leaves = [torch.randn(2, channels, *size, dtype=torch.double, requires_grad=True), *conv.parameters()]

    def sums_and_gradients():
        y = conv(leaves[0])
        return [y, *torch.autograd.grad(y, leaves, torch.sin(torch.arange(y.numel()).double()).view_as(y))]

    expected = sums_and_gradients()
    with undilated(conv):
        found = sums_and_gradients()
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a)


def dilations(network: nn.Module, run) -> list[list[int]]:
    """Those that PyTorch's kernels see."""
    with profile(record_shapes=True) as seen:
        run(network)
    return [e.concrete_inputs[5] for e in seen.events() if e.name == "aten::convolution"]


@pytest.mark.parametrize("dilation, size, groups, undone", [
    (4, (16, 24), 8, True), (2, (16, 24), 8, True), (1, (16, 24), 8, False), (4, (18, 24), 8, False),
    (4, (16, 24), 1, False), (4, (16, 24), 4, False),
])
def test_depthwise_alone_loses_its_dilation(dilation, size, groups, undone):
    network = nn.Conv2d(8, 8, 3, padding=dilation, dilation=dilation, groups=groups)
    x = torch.randn(2, 8, *size)
    with undilated(network):
        assert dilations(network, lambda n: n(x)) == [[1, 1] if undone else [dilation, dilation]]
    assert type(network) is nn.Conv2d and dilations(network, lambda n: n(x)) == [[dilation, dilation]]


@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding": 2, "padding_mode": "circular"}, {"padding": 1}])
def test_other_paddings_are_left_to_pytorch(options):
    network = nn.Conv2d(8, 8, 3, dilation=2, groups=8, **options)
    with undilated(network):
        assert type(network) is nn.Conv2d


def test_layers_that_run_again_in_the_backward_pass_find_it_too():
    network = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    network(x).square().sum().backward()
    expected, x.grad = x.grad, None
    with undilated(network):
        checkpoint(lambda x: network(x).square(), x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(x.grad, expected)


def test_a_whole_network_trains_alike():
    x = torch.randn(2, 1, 32, 32, dtype=torch.double)
    found = []
    for change in (nullcontext, undilated):
        torch.manual_seed(0)
        network = build_network("mdpnet", 1).double().train()
        with change(network):
            network(x).mean().backward()
        found.append([p.grad for p in network.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


class Dilated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.deep = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, padding=4, dilation=4, groups=4)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        return torch.sigmoid(self.head(self.deep(self.first(x))))


def test_runs_train_without_dilation_and_leave_the_network(synthetic, tmp_path):
    network = Dilated()
    settings = Recipe("x:Dilated", "Synthetic", epochs=1, batch=4, crop=32, validation=0)
    seen = dilations(network, lambda n: train(settings, synthetic, tmp_path / "run", network=n))
    steps = [d for d in seen if d != [1, 1]]  # none but of the look at the start, and of what validates
    assert len(seen) > 3 * 2 and len(steps) <= 2
    assert type(network.deep) is nn.Conv2d


def test_the_commands_keep_memory_on_a_cpu(synthetic, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("irstd_edge.training.cpu.keep_freed_memory", lambda: asked.append(True))
    (tmp_path / "r.toml").write_text('network = "resunet-one"\ndataset = "Synthetic"\nepochs = 1\nbatch = 4\n'
                                     'crop = 32\nvalidation = 0\n')
    assert cli.main(["train", str(tmp_path / "r.toml"), "--root", str(synthetic), "--out", str(tmp_path / "run")]) == 0
    assert asked == [True]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told to keep memory")
def test_freed_memory_is_kept():
    """More than glibc would ever keep by itself, 32 MB, made and freed again and again."""
    program = """
import ctypes, resource, sys
from irstd_edge.training.cpu import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
c, size = ctypes.CDLL(None), ctypes.c_size_t(64 << 20)
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def fill(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        memory = ctypes.c_void_p(c.malloc(size))
        ctypes.memset(memory, 1, size.value)
        c.free(memory)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fill(2)
print(fill(8))
"""
    faults = {how: int(subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, check=True,
                                      timeout=300).stdout) for how in ("give", "keep")}
    assert faults["keep"] * 10 < faults["give"], faults


@pytest.mark.parametrize("name", ["biisnet", "biisnet-fine", "biisnet-float", "resunet"])
def test_gradients_keep_the_layout_of_the_maps(name):
    # One gradient in the other layout makes all before it slower.
    network = build_network(name, 0).to(memory_format=torch.channels_last)
    seen = []

    def watch(module, inputs, y) -> None:
        y.register_hook(lambda grad: seen.append(grad.is_contiguous(memory_format=torch.channels_last)))

    for module in network.modules():
        if isinstance(module, (BinaryUnit, FloatUnit, Up, Down, ResidualBlock)):
            module.register_forward_hook(watch)
    network(torch.randn(2, 1, 64, 64).to(memory_format=torch.channels_last)).mean().backward()
    assert len(seen) > 10 and all(seen)
