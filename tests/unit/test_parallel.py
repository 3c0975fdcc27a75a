"""Two gloo processes, started by torchrun as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from irstd_edge.training import loop
from irstd_edge.training.loop import TrainingError, read_curve
from irstd_edge.training.recipe import Recipe

RECIPE = """network = "test_parallel:network"
dataset = "Synthetic"
epochs = 3
batch = 4
crop = 32
validate_every = 1
validation = 0.2
[distill]
teacher = "test_parallel:network"
checkpoint = "teacher.safetensors"
features = ["0=0"]
"""
#: Trains, then every process leaves its own weights.
SCRIPT = """
import sys, torch
from pathlib import Path
from irstd_edge.training.loop import Run, train_side_by_side
from irstd_edge.training.parallel import process_group
from irstd_edge.training.recipe import Recipe
torch.set_num_threads(1)
with process_group("cpu") as device:
    run = Run(Recipe.find("tiny.toml"), Path("data"), Path("run"), device=device, resume="--resume" in sys.argv)
    train_side_by_side([run], minutes=None if "--resume" in sys.argv else 0)
    torch.save({"network": run.network.state_dict(), "fit": [p.detach() for p in run.objective.parameters()],
                "average": run.average.state_dict(), "epoch": run.epoch, "beta": run.objective.beta}, f"{run.rank}.pt")
"""


def network():
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 1, 1),
                               torch.nn.Sigmoid())


def torchrun(folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_two_processes_hold_equal_weights_and_go_on(synthetic, tmp_path):
    torch.manual_seed(1)
    save_file(network().state_dict(), tmp_path / "teacher.safetensors")
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "go.py").write_text(SCRIPT)
    for arguments, epoch in (((), 1), (("--resume",), 3)):
        done = torchrun(tmp_path, "go.py", *arguments)
        assert done.returncode == 0, done.stderr[-2000:]
        first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
        assert first["epoch"] == second["epoch"] == epoch and first["beta"] == second["beta"] > 0
        for part in ("network", "average"):
            assert all(torch.equal(first[part][k], second[part][k]) for k in first[part])
        assert all(torch.equal(a, b) for a, b in zip(first["fit"], second["fit"], strict=True))
    saved = load_file(tmp_path / "run" / "last.safetensors")
    assert all(torch.equal(saved[k], first["average"][f"module.{k}"]) for k in saved)
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["processes"] == 2
    assert [r["epoch"] for r in read_curve(tmp_path / "run" / "curves.csv")] == ["1", "2", "3"]


def test_a_batch_that_cannot_be_shared_is_refused(synthetic, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "rank_and_size", lambda: (0, 3))
    with pytest.raises(TrainingError, match="batch 16 cannot be shared by 3 processes"):
        loop.Run(Recipe("biisnet", "Synthetic"), synthetic, tmp_path / "run")
