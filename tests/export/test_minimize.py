"""An export that is refused names the operator, its place in the user's code, and the smallest part that fails."""

import subprocess
import sys
import textwrap

import onnx
import pytest
import torch

from irstd_edge import cli
from irstd_edge.export import minimize as module
from irstd_edge.export.minimize import minimize
from irstd_edge.export.refusal import RefusedError, place_of

NETWORKS = textwrap.dedent("""
    import torch
    from torch import nn
    from irstd_edge.nn.binary import BinaryConv2d

    class Sums(nn.Module):
        def forward(self, x):
            return x.cumsum(2) * 0.1

    class Branch(nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return x
            return x + 1

    class Bessel(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x) * 2

    class Largest(nn.Module):
        def forward(self, x):
            values, places = torch.topk(x, 2, dim=1)
            return x * values[:, :1]

    class Net(nn.Module):
        size_multiple = 2

        def __init__(self, middle):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
                                      BinaryConv2d(4, 4, 3, padding=1, pad_value=0), middle, nn.Conv2d(4, 1, 1),
                                      nn.Sigmoid())

        def forward(self, x):
            return self.body(x)

    def sums(): return Net(Sums())
    def branch(): return Net(Branch())
    def bessel(): return Net(Bessel())
    def largest(): return Net(Largest())
""")


def export(factory, target, *options):
    return cli.main(["export", "--model", f"refused:{factory}", "--mean", "1", "--std", "1", "--input-size", "16",
                     "--to", target, "--out", "out", *options])


@pytest.mark.parametrize("factory, target, named, part", [
    ("sums", "tflite", "CumSum of layer body.4 (refused.py:8, `return x.cumsum(2) * 0.1`) has no TFLite form",
     "torch.ops.aten.cumsum.default(x0, 2)"),
    ("sums", "native", "CumSum of layer body.4 (refused.py:8, `return x.cumsum(2) * 0.1`) has no native form",
     "torch.ops.aten.cumsum.default(x0, 2)"),
    ("branch", "onnx", "PyTorch cannot export the network (refused.py:12, `if x.sum() > 0:`)",
     "get_submodule('body.4')"),
    ("bessel", "onnx", "bessel_j0.default (refused.py:18, `return torch.special.bessel_j0(x) * 2`) has no ONNX form",
     "torch.ops.aten.special_bessel_j0.default(x0)"),
    ("largest", "native", "TopK of layer body.4 (refused.py:22, `values, places = torch.topk(x, 2, dim=1)`) has no",
     "torch.ops.aten.topk.default(x0, 2, 1)"),
])
def test_the_error_and_its_repro(project, capfd, factory, target, named, part):
    (project / "refused.py").write_text(NETWORKS)
    assert export(factory, target, "--minimize") == 3
    error = capfd.readouterr().err
    assert named in error and "the smallest part that fails: out-repro.py" in error and "Traceback" not in error
    text = (project / "out-repro.py").read_text()
    assert part in text and text.count("torch.ops.") <= 1 and str(project) not in text
    assert not (project / "out").exists()
    # Where it does not need the user's own code it stands alone.
    if "build_network" not in text:
        (project / "refused.py").unlink()
    done = subprocess.run([sys.executable, "out-repro.py"], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    operator = named.partition(" ")[0]
    assert operator in done.stdout


def test_without_the_option_the_error_tells_of_it(project, capfd):
    (project / "refused.py").write_text(NETWORKS)
    assert export("sums", "native") == 3
    assert "--minimize writes the smallest part" in capfd.readouterr().err
    assert not list(project.glob("*repro*"))


def test_no_file_holds_places_of_the_code(project):
    (project / "refused.py").write_text(NETWORKS + "\ndef fine(): return Net(nn.Identity())\n")
    assert export("fine", "onnx,portable") == 0
    for file in (project / "out").glob("*.onnx"):
        keys = {p.key for node in onnx.load(file).graph.node for p in node.metadata_props}
        assert keys <= {"layer", "requested"} and b"refused.py" not in file.read_bytes()


class Chain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x):
        y = torch.tanh(self.conv(torch.exp(x)))
        return torch.sigmoid(torch.atan(y)).mean(1, keepdim=True)


@pytest.mark.parametrize("needed, expected", [
    ({"tanh"}, ["tanh"]), ({"conv2d", "tanh"}, ["conv2d", "tanh"]),
    ({"exp", "sigmoid"}, ["exp", "conv2d", "tanh", "atan", "sigmoid"]),
])
def test_the_fewest_operators_are_found(tmp_path, monkeypatch, needed, expected):
    """A target that refuses these operators together, and only so."""
    def refusal(part, inputs, target):
        assert torch.is_tensor(part(*inputs))
        names = {str(n.target).split(".")[1] for n in part.graph.nodes if n.op == "call_function"}
        return RefusedError("", target, "Pair", "") if needed <= names else None

    monkeypatch.setattr(module, "_refusal", refusal)
    minimize(Chain(), "nowhere:f", (8, 8), RefusedError("", "native", "Pair", "does not go together"),
             tmp_path / "repro.py")
    text = (tmp_path / "repro.py").read_text()
    found = [line.split("torch.ops.aten.")[1].partition(".")[0] for line in text.splitlines() if "torch.ops" in line]
    assert found == expected and "does not go together" in text
    assert ("torch.rand([2, 1, 3, 3])" in text) == ("conv2d" in expected)
    compile(text, "repro.py", "exec")


def test_a_failure_of_the_whole_alone_names_the_network(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_refusal", lambda part, inputs, target: None)
    minimize(Chain(), "nowhere:f", (8, 8), RefusedError("", "native", "Pair", "why"), tmp_path / "repro.py")
    assert "build_network('nowhere:f')).get_submodule('')" in (tmp_path / "repro.py").read_text()


def test_places(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("")
    trace = (f'  File "{own}", line 3, in forward\n    return self.body(x)\n'
             f'  File "{torch.nn.modules.conv.__file__}", line 5, in forward\n    return 1\n'
             '  File "<eval_with_key>.0", line 9, in forward\n    x = 1\n')
    assert place_of(trace) == f"{own}:3, `return self.body(x)`"
    assert place_of("") == "" and place_of('File "/nowhere.py", line 1, in f') == ""
