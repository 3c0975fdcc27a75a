import csv
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from irstd_edge import plots
from irstd_edge.bundle import sha256
from irstd_edge.checkpoints import CheckpointError, build_network, initial_weights, load_weights, save_weights
from irstd_edge.data import Normalisation, Sample
from irstd_edge.errors import MissingError, UnsupportedError
from irstd_edge.nn.binary import BinaryConv2d
from irstd_edge.training import curves
from irstd_edge.training.loop import (
    Run,
    TrainingError,
    _averaging,
    clip_latent_weights,
    evaluate_network,
    make_batch,
    read_curve,
    split_validation,
    train,
    train_side_by_side,
)
from irstd_edge.training.losses import LOSSES, Supervised, soft_iou
from irstd_edge.training.recipe import LOSS_NAMES, OPTIMIZERS, RECIPES, Distill, Recipe, RecipeError, parse_datasets

TINY = Recipe("biisnet", "Synthetic", epochs=6, batch=4, crop=32, learning_rate=5e-3, average=0.5, validation=0.2,
              validate_every=2, contrast=0.1, brightness=0.1)


def write(path, text):
    path.write_text(text)
    return path


def test_soft_iou():
    p, g = torch.tensor([[1.0, 0.5], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # overlap 1, sums 1.5 and 2: 1 - 2 / 3.5
    assert soft_iou(p, g).item() == pytest.approx(1 - 2 / 3.5)
    assert soft_iou(g, g).item() == 0


def test_split_holds_out_every_nth():
    assert split_validation(5, 0) == ([0, 1, 2, 3, 4], [])
    kept, held = split_validation(213, 0.1)
    assert held == list(range(9, 213, 10)) and sorted(kept + held) == list(range(213))
    for share, count in ((0.04, 4), (0.15, 15), (1 / 3, 33), (0.4, 40), (0.6, 60), (0.9, 90)):
        assert len(split_validation(100, share)[1]) == count
    assert split_validation(8, 0.4)[1] == [2, 4, 7]
    assert split_validation(10, 0.05) == (list(range(9)), [9]) and split_validation(1, 0.5) == ([0], [])


def test_running_average_forgets_the_first_weights_soon():
    average, update = [torch.zeros(1), torch.zeros(1, dtype=torch.long)], _averaging(0.99)
    for step in range(1, 61):
        update(average, [torch.ones(1), torch.tensor([step])], torch.tensor(step))
    assert average[0].item() > 0.999 and average[1].item() == 60


def test_running_average_looks_back_over_a_share_of_the_steps_at_first_and_then_as_far_as_its_decay():
    for decay, behind in ((0.9999, 1000 / 4), (0.99, 99)):  # mean of k weighted by k^2; decay / (1 - decay)
        average, update = [torch.zeros(1)], _averaging(decay)
        for step in range(1, 1001):
            update(average, [torch.tensor([float(step)])], torch.tensor(step))
        assert 1000 - average[0].item() == pytest.approx(behind, rel=0.02)


def test_latent_weights_are_clipped():
    layer = BinaryConv2d(1, 1, 1)
    nn.init.constant_(layer.weight, 3.0)
    clip_latent_weights(nn.Sequential(layer))
    assert layer.weight.item() == 1


def test_evaluation_takes_the_protocol():
    sample = Sample("a", np.full((40, 40), 9, np.float32), np.zeros((40, 40), np.uint8))
    sizes = []

    class Probe(nn.Module):
        def forward(self, x):
            assert not self.training
            sizes.append(tuple(x.shape[2:]))
            return torch.zeros_like(x)

    for protocol in ("basicirstd", "resize256"):
        assert evaluate_network(Probe(), [sample], Normalisation(0, 1), protocol=protocol).images == 1
    assert sizes == [(64, 64), (256, 256)]
    network = Probe()
    network.size_multiple = 48  # padded to multiples of 96
    evaluate_network(network, [sample], Normalisation(0, 1))
    assert sizes[2:] == [(96, 96)]


def test_training_lowers_the_loss_and_leaves_its_files(synthetic, tmp_path):
    out = tmp_path / "run"
    seen = []
    train(TINY, synthetic, out, on_epoch=lambda e: seen.append((e.epoch, e.accuracy is not None)))
    assert seen == [(i, i % 2 == 0) for i in range(1, 7)]
    assert {p.name for p in out.iterdir()} == {
        "best.safetensors", "last.safetensors", "curves.csv", "recipe.json", "resume.pt"}
    rows = list(csv.DictReader((out / "curves.csv").open()))
    assert [int(r["epoch"]) for r in rows] == list(range(1, 7))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert all(bool(r["iou"]) == (int(r["epoch"]) % 2 == 0) for r in rows)
    record = json.loads((out / "recipe.json").read_text())
    assert TINY.as_dict().items() <= record.items() and record["held_out"] == [4, 9] and record["machine"]
    png = tmp_path / "curves.png"
    curves.plot_curves(out / "curves.csv", png)
    assert png.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(TrainingError, match="--resume"):
        train(TINY, synthetic, out)
    for changes, message in (
        ({"seed": 1}, "another recipe, seed is 42 there, 1 here: give --seed 42, or another --out"),
        ({"seed": 1, "epochs": 9}, "epochs is 6 there, 9 here; seed is 42 there, 1 here: give --epochs 6 --seed 42"),
        ({"crop": 64}, "crop is 32 there, 64 here: use that recipe, or another --out"),
    ):
        with pytest.raises(TrainingError, match=re.escape(message)):
            train(replace(TINY, **changes), synthetic, out, resume=True)
    with pytest.raises(TrainingError, match="holds no run to go on with: leave out --resume"):
        train(TINY, synthetic, tmp_path / "absent", resume=True)
    assert not (tmp_path / "absent").exists()


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(synthetic, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(TINY, synthetic, whole)

    class Stop(Exception):
        pass

    def stop(epoch):
        # After the validation of epoch 2, so that epoch 3 is in the curves but not in the state.
        if epoch.epoch == 3:
            raise Stop

    with pytest.raises(Stop):
        train(TINY, synthetic, broken, on_epoch=stop)
    assert [r["epoch"] for r in read_curve(broken / "curves.csv")] == ["1", "2", "3"]
    train(TINY, synthetic, broken, resume=True)

    def curve(run):
        return [{k: v for k, v in r.items() if k != "seconds"} for r in read_curve(run / "curves.csv")]

    assert curve(broken) == curve(whole)
    for name in ("best", "last"):
        a, b = (load_file(run / f"{name}.safetensors") for run in (whole, broken))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_state_that_holds_code_is_refused(synthetic, tmp_path):
    recipe = replace(TINY, epochs=2)
    train(recipe, synthetic, tmp_path)
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    torch.save(state | {"best": Recipe}, tmp_path / "resume.pt")
    with pytest.raises(TrainingError, match="cannot be read"):
        train(recipe, synthetic, tmp_path, resume=True)


def test_a_run_stopped_before_its_first_epoch_goes_on_as_it_was_begun(synthetic, tmp_path):
    first, out = train(TINY, synthetic, tmp_path / "first"), tmp_path / "run"
    initial = initial_weights(TINY.network, first / "last.safetensors")
    begun = Run(TINY, synthetic, out, initial=initial)
    began = {k: v.clone() for k, v in begun.network.state_dict().items()}
    record = json.loads((out / "recipe.json").read_text())
    assert record["initial"] == initial.record and record["threads"] == torch.get_num_threads()
    assert record["compiled"] is False
    with pytest.raises(TrainingError, match="another recipe, epochs is 6 there, 9 here: give --epochs 6"):
        Run(replace(TINY, epochs=9), synthetic, out, resume=True)
    resumed = Run(TINY, synthetic, out, resume=True).network.state_dict()
    assert all(torch.equal(resumed[k], v) for k, v in began.items())
    assert json.loads((out / "recipe.json").read_text()) == record
    Run(TINY, synthetic, out, resume=True, initial=initial)
    save_weights(build_network(TINY.network, 5), tmp_path / "other.safetensors")
    with pytest.raises(TrainingError, match=r"begun from other weights, last\.safetensors: leave out --init"):
        Run(TINY, synthetic, out, resume=True,
            initial=initial_weights(TINY.network, tmp_path / "other.safetensors"))
    with pytest.raises(TrainingError, match="begun without --init: leave out --init"):
        Run(TINY, synthetic, first, resume=True, initial=initial)
    (out / "resume.pt").unlink()
    with pytest.raises(TrainingError, match="holds no run to go on with"):
        Run(TINY, synthetic, out, resume=True)


def test_a_run_may_have_the_normalisation_of_its_weights(synthetic, tmp_path):
    recipe = replace(TINY, contrast=0.0, brightness=0.0)
    run = Run(recipe, synthetic, tmp_path, normalisation=Normalisation(10, 200))
    x, _ = next(run._batches(1))
    assert x.max() == pytest.approx((240 - 10) / 200)
    assert json.loads((tmp_path / "recipe.json").read_text())["normalisation"] == {"mean": 10, "std": 200}


def test_crops_of_other_scales_show_larger_and_smaller_targets():
    mask = np.zeros((200, 200), np.uint8)
    mask[95:105, 95:105] = 255
    samples = [Sample("a", mask.astype(np.float32), mask)]
    normalisation, rng = Normalisation(0, 255), np.random.default_rng(0)

    def areas(scale: float) -> np.ndarray:
        x, target = make_batch(samples, [0] * 200, replace(TINY, crop=64, contrast=0, brightness=0, scale=scale),
                               normalisation, rng)
        assert x.shape == target.shape == (200, 1, 64, 64)
        assert x.numpy() == pytest.approx(target.numpy(), abs=1e-5), "the mask follows the image"
        return target.sum((1, 2, 3)).numpy()

    assert areas(0.0).max() == 100
    large = areas(0.5).max()
    assert 100 * np.exp(0.8) < large < 100 * np.exp(1.0) + 20
    whole = [a for a in areas(0.5) if a > 100 * np.exp(-1.0) - 20]
    assert min(whole) < 100 * np.exp(-0.7)


def test_the_share_of_crops_that_hold_a_target_is_as_asked():
    mask = np.zeros((320, 320), np.uint8)
    mask[150:153, 150:153] = 255
    samples = [Sample("a", mask.astype(np.float32), mask)]

    def share(targets: float) -> float:
        _, crops = make_batch(samples, [0] * 400, replace(TINY, crop=32, targets=targets), Normalisation(0, 255),
                              np.random.default_rng(0))
        return float((crops.amax((1, 2, 3)) > 0).float().mean())

    # A crop that is drawn from all places meets the 3 x 3 target in (34 / 305)^2 of cases, 1.2 %.
    assert share(0.0) < 0.05 and share(1.0) == 1 and share(0.5) == pytest.approx(0.506, abs=0.08)


def test_batch_normalisation_takes_its_averaged_statistics_in_the_last_epochs(synthetic, tmp_path):
    recipe = replace(TINY, epochs=4, validation=0.0, fixed_norm=0.5)
    run = Run(recipe, synthetic, tmp_path / "whole")
    norm, average = (next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
                     for network in (run.network, run.average.module))
    seen = [(norm.training, norm.running_var.clone(), average.running_var.clone(), norm.weight.clone())
            for report in run.steps() if report is not None]
    training, own, averaged, weights = zip(*seen, strict=True)
    assert training == (True, True, False, False)
    assert not own[0].equal(own[1]) and not own[1].equal(averaged[1])
    assert own[2].equal(averaged[1]) and own[3].equal(own[2]) and averaged[3].allclose(own[3])
    assert not weights[2].equal(weights[3]), "gain and offset are trained on"
    assert replace(recipe, fixed_norm=0.0).fixed_norm_from == 5 and replace(recipe, fixed_norm=1.0).fixed_norm_from == 1

    train(recipe, synthetic, tmp_path / "parts", minutes=0)
    for _ in range(3):
        train(recipe, synthetic, tmp_path / "parts", minutes=0, resume=True)
    whole, parts = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    assert all(whole[k].equal(parts[k]) for k in whole)


def test_the_seconds_of_a_run_are_its_own(synthetic, tmp_path, monkeypatch):
    run, clock = Run(replace(TINY, epochs=2, validation=0.0), synthetic, tmp_path), [0.0]
    monkeypatch.setattr("irstd_edge.training.loop.time", SimpleNamespace(monotonic=lambda: clock[0]))
    reports = []
    for report in run.steps(deadline=60.0):
        reports.append(report)
        clock[0] += 20  # what other runs beside it take for their steps
    # Two steps and the report of an epoch; a second would end after the deadline.
    assert len(reports) == 3 and reports[-1].seconds == 0 and run.epoch == 1


def test_several_sets_are_joined_and_nothing_need_be_held_out(synthetic, tmp_path):
    root = tmp_path / "two"
    for name in ("Synthetic", "Other"):
        shutil.copytree(synthetic / "Synthetic", root / name)
    for split in ("train", "test"):
        index = root / "Other" / "img_idx" / f"{split}_Synthetic.txt"
        if index.exists():
            index.rename(index.with_name(f"{split}_Other.txt"))
    recipe = replace(TINY, dataset="Synthetic*2+Other", epochs=1, validation=0.0)
    train(recipe, root, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["images"] == 20
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert read_curve(tmp_path / "run" / "curves.csv")[0]["iou"] == ""


def test_wrong_starts_leave_nothing_behind(synthetic, tmp_path):
    out = tmp_path / "run"
    save_file({"stem.weight": torch.zeros(16, 1, 3, 3)}, tmp_path / "few.safetensors")
    with pytest.raises(CheckpointError, match=r"few\.safetensors: the checkpoint does not fit BiisNet: .* missing"):
        train(TINY, synthetic, out, initial=initial_weights("biisnet", tmp_path / "few.safetensors"))
    resunet = replace(TINY, network="resunet")
    with pytest.raises(CheckpointError, match=r"few\.safetensors: .*; a public one needs --from-layout dnanet"):
        train(resunet, synthetic, out, initial=initial_weights("resunet", tmp_path / "few.safetensors"))
    with pytest.raises(ValueError, match="no such file"):
        train(replace(TINY, dataset="Absent"), synthetic, out)
    assert not out.exists()
    write(tmp_path / "file", "")
    with pytest.raises(TrainingError, match="cannot be written"):
        train(TINY, synthetic, tmp_path / "file" / "run")


class Deep(nn.Module):
    """Two probabilities in training mode, the second of half the size; drops activations."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout2d(0.2)
        self.head = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x):
        y = torch.sigmoid(self.head(self.drop(self.norm(self.body(x)).relu())))
        return (y, nn.functional.avg_pool2d(y, 2)) if self.training else y


def test_deep_supervision_averages_the_losses():
    p, q, g = torch.full((1, 1, 2, 2), 0.5), torch.full((1, 1, 1, 1), 0.25), torch.ones(1, 1, 2, 2)
    # p: overlap 2, union 4: 1 - 3 / 5; q enlarged: overlap 1, union 4: 1 - 2 / 5
    assert Supervised().measure({"out": [p, q]}, g).item() == pytest.approx((0.4 + 0.6) / 2)


def test_losses_by_hand():
    p = torch.tensor([[[[0.5, 0.5]]], [[[1.0, 0.0]]]])
    g = torch.tensor([[[[1.0, 0.0]]], [[[1.0, 0.0]]]])
    # Images: overlap .5 and 1, union 1.5 and 1: mean of 1 - 1.5 / 2.5 and 0.
    assert LOSSES["image_iou"](p, g).item() == pytest.approx(0.2)
    # Batch: overlap 1.5, union 2.5: 1 - 2.5 / 3.5; cross-entropy 2 log 2 over four pixels.
    assert LOSSES["bce_iou"](p, g).item() == pytest.approx(1 / 3.5 + math.log(2) / 2, abs=1e-5)
    assert set(LOSSES) == set(LOSS_NAMES)


def test_runs_side_by_side_equal_runs_alone_bit_for_bit(synthetic, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    recipes = [replace(TINY, epochs=2, network="test_training:Deep", seed=seed) for seed in (1, 2)]
    cache = {}
    together = [Run(r, synthetic, tmp_path / f"together{r.seed}", cache=cache) for r in recipes]
    assert together[0].samples[0] is together[1].samples[0]
    train_side_by_side(together)
    for recipe, run in zip(recipes, together, strict=True):
        alone = load_file(train(recipe, synthetic, tmp_path / f"alone{recipe.seed}") / "last.safetensors")
        beside = load_file(run.out / "last.safetensors")
        assert alone.keys() == beside.keys() and all(torch.equal(alone[k], beside[k]) for k in alone)
    first, second = (load_file(run.out / "last.safetensors") for run in together)
    assert not torch.equal(first["body.weight"], second["body.weight"])


class Wrong(nn.Module):
    """A network that is not one for training here, in the way that its class says."""

    def __init__(self, channels=1, out=1):
        super().__init__()
        self.body = nn.Conv2d(channels, out, 3, padding=1)
        nn.init.constant_(self.body.bias, -3.0)

    def forward(self, x):
        return torch.sigmoid(self.body(x))


class Logits(Wrong):
    def forward(self, x):
        return self.body(x)


class DeepLogits(Wrong):
    """Only what it returns besides in training mode is no probability."""

    def forward(self, x):
        y = super().forward(x)
        return [y, self.body(x)] if self.training else y


class Half(Wrong):
    def forward(self, x):
        return nn.functional.max_pool2d(super().forward(x), 2)


class Multiple(Wrong):
    def forward(self, x):
        return nn.functional.interpolate(nn.functional.max_pool2d(super().forward(x), 32), scale_factor=32) + 0 * x


class Large(Wrong):
    """Runs on crops and not on the held-out images, padded to 64 x 64."""

    def forward(self, x):
        return super().forward(x).reshape(x.shape[0], 1, 32, 32)


@pytest.mark.parametrize("network, changes, message", [
    (Wrong(channels=3), {}, r"does not run on an input \[2, 1, 32, 32\]: Given groups=1.*one grey channel: wrap it"),
    (Wrong(out=2), {}, r"returns \[2, 2, 32, 32\] for an input \[2, 1, 32, 32\]; return one probability map"),
    (Logits(), {}, r"returns values in \[.*\], no probabilities; end forward\(\) with torch\.sigmoid"),
    (DeepLogits(), {}, r"returns values in \[.*\], no probabilities; end forward\(\) with torch\.sigmoid"),
    (Logits(), {"validation": 0.0}, "no probabilities"),
    (Half(), {}, r"returns \[2, 1, 16, 16\] for an input \[2, 1, 32, 32\]"),
    (Multiple(), {"crop": 40}, "choose another crop in the recipe than 40, such as a multiple of 32"),
    (Large(), {}, r"does not run on an input \[1, 1, 64, 64\]: shape .*use images of another size"),
    (Wrong(), {}, None),
    (Multiple(), {}, None),
], ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "")
def test_networks_that_cannot_be_trained_are_told_at_the_start(synthetic, tmp_path, network, changes, message):
    out = tmp_path / "run"
    recipe = replace(TINY, epochs=1, **changes)
    if message is None:
        assert Run(recipe, synthetic, out, network=network).epoch == 0
        return
    with pytest.raises(UnsupportedError, match=message) as e:
        Run(recipe, synthetic, out, network=network)
    assert len(str(e.value).splitlines()) == 1 and not out.exists()


def test_the_look_at_the_start_changes_nothing(synthetic, tmp_path):
    torch.manual_seed(0)
    network, generator = Deep(), torch.get_rng_state()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    run = Run(TINY, synthetic, tmp_path / "run", network=network)
    assert torch.equal(torch.get_rng_state(), generator)
    for found in (network, run.average.module):
        assert all(torch.equal(v, before[k]) for k, v in found.state_dict().items())


def test_initial_weights_and_precision_are_recorded(synthetic, tmp_path):
    first = train(replace(TINY, epochs=1), synthetic, tmp_path / "first")
    assert json.loads((first / "recipe.json").read_text())["initial"] is None
    initial = initial_weights("biisnet", first / "last.safetensors")
    run = Run(TINY, synthetic, tmp_path / "second", initial=initial)
    assert torch.equal(run.network.state_dict()["stem.weight"], load_file(first / "last.safetensors")["stem.weight"])
    assert json.loads((tmp_path / "second" / "recipe.json").read_text())["initial"] == {
        "file": "last.safetensors", "sha256": sha256(first / "last.safetensors"), "from_layout": None}


def test_layers_named_as_new_may_be_absent_from_initial_weights(synthetic, tmp_path):
    first = train(replace(TINY, epochs=1), synthetic, tmp_path / "first") / "last.safetensors"
    grown = replace(TINY, network="biisnet-fine")
    with pytest.raises(CheckpointError, match=r"last\.safetensors: .*11 missing \(encoder1\.0\.path\.weight"
                       r".*\); keys of layers that shall begin anew are named by --new$"):
        Run(grown, synthetic, tmp_path / "strict", initial=initial_weights("biisnet-fine", first))
    initial = initial_weights("biisnet-fine", first, new=["*.path.weight"])
    run = Run(grown, synthetic, tmp_path / "grown", initial=initial)
    assert json.loads((tmp_path / "grown" / "recipe.json").read_text())["initial"]["new"] == ["*.path.weight"]
    # Fresh paths are the identity, but for the coarser grid of evaluation: it begins as the network that it grew from.
    before = build_network("biisnet").to(memory_format=torch.channels_last)
    load_weights(before, load_file(first))
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(run.network.train()(x), before.train()(x))
    for pattern, text in (("*.nothing", r"lacks no key like \*\.nothing of biisnet-fine.*it lacks encoder1\.0\.path"),
                          ("stem.*", r"lacks no key like stem\.\*")):
        with pytest.raises(CheckpointError, match=text):
            Run(grown, synthetic, tmp_path / "none",
                initial=initial_weights("biisnet-fine", first, new=["*.path.weight", pattern]))
    with pytest.raises(TrainingError, match=r"begun with --new \*\.path\.weight: leave out --init and --new"):
        Run(grown, synthetic, tmp_path / "grown", resume=True, initial=initial_weights("biisnet-fine", first))
    assert not (tmp_path / "strict").exists() and not (tmp_path / "none").exists()


def test_a_run_goes_on_in_its_precision(synthetic, tmp_path):
    recipe = replace(TINY, epochs=2, network="test_training:Deep")
    train(recipe, synthetic, tmp_path, network=Deep(), precision="bf16", minutes=0)
    assert Run(recipe, synthetic, tmp_path, network=Deep(), resume=True).precision == "bf16"
    with pytest.raises(TrainingError, match="was begun in bf16: go on with --precision bf16, or name another --out"):
        Run(recipe, synthetic, tmp_path, network=Deep(), resume=True, precision="fp32")
    assert json.loads((tmp_path / "recipe.json").read_text())["precision"] == "bf16"


class Failing(nn.Module):
    """An objective that fails at its third call, in the way that it is told."""

    def __init__(self, error):
        super().__init__()
        self.error, self.calls = error, 0

    def forward(self, network, x, target):
        self.calls += 1
        if self.calls == 3 and self.error:
            raise self.error
        return {"loss": soft_iou(network(x)[0], target)}


def test_whatever_stops_one_run_leaves_the_others(synthetic, tmp_path):
    found = {"memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
             "disk": OSError(28, "No space left on device"), "fault": RuntimeError("shapes differ\nat length"),
             "well": None}
    runs = [Run(replace(TINY, epochs=2, seed=i), synthetic, tmp_path / name, network=Deep(), objective=Failing(error))
            for i, (name, error) in enumerate(found.items())]
    with pytest.raises(TrainingError) as e:
        train_side_by_side(runs)
    text = str(e.value)
    assert text.startswith("3 of 4 runs failed: ") and len(text.splitlines()) == 1
    for part in (f"{tmp_path / 'memory'}: out of memory (CUDA out of memory. Tried to allocate 2 GiB.): lower batch",
                 f"{tmp_path / 'disk'}: OSError: [Errno 28] No space left",
                 f"{tmp_path / 'fault'}: RuntimeError: shapes differ"):
        assert part in text
    assert [run.finished for run in runs] == [False, False, False, True]
    assert len(read_curve(tmp_path / "well" / "curves.csv")) == 2 and (tmp_path / "well" / "best.safetensors").exists()


def test_a_time_limit_leaves_a_run_to_go_on_with(synthetic, tmp_path):
    seen = []
    train(TINY, synthetic, tmp_path / "run", minutes=0, on_epoch=lambda e: seen.append(e.epoch))
    assert seen == [1] and (tmp_path / "run" / "resume.pt").exists()
    train(TINY, synthetic, tmp_path / "run", resume=True, on_epoch=lambda e: seen.append(e.epoch))
    assert seen == list(range(1, 7))
    train(TINY, synthetic, tmp_path / "whole")
    a, b = (load_file(tmp_path / run / "last.safetensors") for run in ("run", "whole"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_network_and_an_objective_of_the_caller(synthetic, tmp_path):
    class Objective(nn.Module):
        record = {"told": 1}

        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, network, x, target):
            loss = soft_iou(network(x)[0], target)
            return {"loss": loss + (self.gain - 3) ** 2, "task": loss}

    network, objective = Deep(), Objective()
    recipe = replace(TINY, epochs=2, network="test_training:Deep")
    out = train(recipe, synthetic, tmp_path / "run", network=network, objective=objective, record={"more": 2})
    assert objective.gain.item() != 1 and load_file(out / "last.safetensors").keys() == {
        k for k in network.state_dict() if not k.endswith("num_batches_tracked")}
    assert {"told": 1, "more": 2}.items() <= json.loads((out / "recipe.json").read_text()).items()
    row = read_curve(out / "curves.csv")[0]
    assert float(row["loss"]) > float(row["task"]) + 3 and row["iou"] == ""
    again = Objective()
    Run(recipe, synthetic, out, network=Deep(), objective=again, resume=True)
    assert torch.equal(again.gain, objective.gain)


def test_schedules_by_hand():
    def rates(at, **changes):
        recipe = replace(TINY, **{"epochs": 400, "learning_rate": 1.0, "final_learning_rate": 0.2} | changes)
        return [recipe.learning_rate_at(e) for e in at]

    # 0.2 + 0.4 (1 + cos of 0, 45, 90 and 135 degrees): the last epoch is one step before the end of the half period.
    assert rates((1, 2, 3, 4), epochs=4) == pytest.approx([1.0, 0.4 * 2**0.5 / 2 + 0.6, 0.6, 0.6 - 0.4 * 2**0.5 / 2])
    # pi / 400 before it: 1 + cos(pi - pi / 400) is nearly (pi / 400)^2 / 2.
    assert rates((1, 201, 400)) == pytest.approx([1.0, 0.6, 0.2 + 0.4 * 3.0843e-5], rel=1e-7)
    assert rates((1,), epochs=1) == [1.0]
    # A milestone is the last epoch of its rate.
    assert rates((1, 200, 201, 300, 301, 400), schedule="multistep", milestones=(200, 300), gamma=0.5) == [
        1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert rates((1, 2, 3), schedule="multistep", milestones=(1,), gamma=0.1) == pytest.approx([1.0, 0.1, 0.1])
    assert rates((1, 5, 400), schedule="constant") == [1.0, 1.0, 1.0]


def test_optimizers_step_downhill():
    for name in OPTIMIZERS:
        weight = nn.Parameter(torch.ones(1))
        optimizer = replace(TINY, optimizer=name, weight_decay=0.1).make_optimizer([weight])
        (weight * 2).sum().backward()
        optimizer.step()
        assert weight.item() < 1 and optimizer.param_groups[0]["weight_decay"] == 0.1


def test_recipes_as_dictionaries():
    recipe = replace(TINY, milestones=(1, 2), distill=Distill("a:b", ("x=y",)))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe
    assert "distill" not in TINY.as_dict() and Recipe.from_dict({"network": "a", "dataset": "b"}).epochs == 400
    assert recipe.distill.pairs == [("x", "y")]


def test_a_damaged_state_is_refused(synthetic, tmp_path):
    write(tmp_path / "resume.pt", "no state")
    with pytest.raises(TrainingError, match="cannot be read"):
        train(TINY, synthetic, tmp_path, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(synthetic, tmp_path, monkeypatch):
    monkeypatch.setattr("irstd_edge.training.losses.LOSSES", {"soft_iou": lambda p, g: p.sum() * float("nan")})
    with pytest.raises(TrainingError, match="loss is nan in epoch 1"):
        train(TINY, synthetic, tmp_path / "run")


def test_missing_matplotlib_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingError, match=r"pip install irstd-edge\[train\]"):
        plots.require_matplotlib()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_valid(path):
    assert Recipe.find(path.stem) == Recipe.read(path)


@pytest.mark.parametrize("text, message", [
    ('network = "biisnet"', "dataset missing"),
    ('network = "biisnet"\ndataset = "A"\nepoch = 3', "unknown field epoch"),
    ('network = "biisnet"\ndataset = "A"\nepochs = 0', "epochs must be at least 1"),
    ('network = "biisnet"\ndataset = "A"\nepochs = "3"', "epochs must be int"),
    ('network = "biisnet"\ndataset = "A"\nbatch = true', "batch must be int"),
    ('network = "biisnet"\ndataset = "A"\nlearning_rate = -1.0', "learning_rate must be positive"),
    ('network = "biisnet"\ndataset = "A"\nlearning_rate = nan', "learning_rate must be positive"),
    ('network = "biisnet"\ndataset = "A"\naverage = 1.0', r"average must be in \[0, 1\)"),
    ('network = "biisnet"\ndataset = "A"\nvalidation = -0.1', r"validation must be in \[0, 1\)"),
    ('network = "biisnet"\ndataset = "A"\ncontrast = -0.1', "contrast must not be negative"),
    ('network = "biisnet"\ndataset = "A"\ntargets = 1.1', r"targets must be in \[0, 1\]"),
    ('network = "biisnet"\ndataset = "A"\nfixed_norm = -0.1', r"fixed_norm must be in \[0, 1\]"),
    ('network = "biisnet"\ndataset = "A"\nscale = 1.5', r"scale must be in \[0, 1\]"),
    ('network = "biisnet"\ndataset = "A"\nseed = -1', "seed must not be negative"),
    ("network = ", "Invalid value"),
    *((f'network = "biisnet"\ndataset = "A"\n{line}', message) for line, message in (
        ('loss = "iou"', "loss must be one of soft_iou"),
        ('optimizer = "lion"', "optimizer must be one of adam"),
        ('schedule = "step"', "schedule must be one of cosine"),
        ("milestones = [3, 2]", r"milestones must be rising epochs, got \[3, 2\]"),
        ('milestones = ["3"]', r"milestones must be a list of int, got \['3'\]"),
        ("gamma = 0", r"gamma must be in \(0, 1\]"),
        ("weight_decay = -1", "weight_decay must not be negative"),
        ('distill = "x"', "distill must be a table"),
        ('[distill]\nteacher = "x"', "distill: features missing"),
        ('[distill]\nteacher = "x"\nfeatures = []', "distill: features must name at least one pair"),
        ('[distill]\nteacher = "x"\nfeatures = ["a"]', "distill: features must be teacher.layer=student.layer, got"),
        ('[distill]\nteacher = "x"\nfeatures = ["a=b"]\nmethod = "kd"', "distill: method must be one of msa, semantic"),
        ('[distill]\nteacher = "x"\nfeatures = ["a=b"]\ncheckpoint = "c"\nfrom_layout = "larq"',
         "distill: from_layout must be one of basicirstd, dnanet, acm, mshnet, got 'larq'"),
        ('[distill]\nteacher = "x"\nfeatures = ["a=b"]\nfrom_layout = "acm"',
         r"distill: from_layout acm .*: give checkpoint \(--teacher-checkpoint\) too"),
        ('[distill]\nteacher = "x"\nfeatures = ["a=b"]\nweight = -1', "distill: weight must not be negative"),
    )),
])
def test_wrong_recipes_name_the_field(tmp_path, text, message):
    path = write(tmp_path / "wrong.toml", text)
    with pytest.raises(RecipeError, match=message) as e:
        Recipe.read(path)
    assert str(path) in str(e.value)


def test_recipes_are_found_by_name_or_path():
    with pytest.raises(RecipeError, match="biisnet-nuaa"):
        Recipe.find("biisnet-nuua")
    with pytest.raises(RecipeError):
        Recipe.read("absent.toml")


def test_a_dataset_may_be_taken_several_times_an_epoch():
    assert parse_datasets("A*3+B") == {"A": 3, "B": 1}


@pytest.mark.parametrize("text", ["", "A+", "A*0", "A*x", "A*", "A+A"])
def test_malformed_data_sets_are_refused(text):
    with pytest.raises(RecipeError, match="names joined by"):
        parse_datasets(text)
