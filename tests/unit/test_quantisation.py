import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from small_networks import NORMALISATION, SmallUNet, randomise, small_unet
from synthetic_data import write_dataset
from torch import nn

from irstd_edge import cli, errors
from irstd_edge.bundle import Preprocessing, sha256
from irstd_edge.checkpoints import LoadedNetwork, load_network, recorded_normalisation, save_weights
from irstd_edge.data import DataError, Dataset, Sample
from irstd_edge.errors import UnsupportedError
from irstd_edge.nn.quant import QuantConv2d
from irstd_edge.training.bits import find_blocks
from irstd_edge.training.loop import evaluate_network, read_curve, train
from irstd_edge.training.quantisation import (
    KINDS,
    METHODS,
    Calibrated,
    CalibrationImage,
    HeldOut,
    InputRange,
    QuantisationError,
    evenly,
    image_files,
    keep_sensitive,
    load_images,
    losses_of,
    measure_sensitivity,
    observe_inputs,
    weight_step,
)
from irstd_edge.training.quantise_cli import quantize
from irstd_edge.training.recipe import Recipe

#: At so low a rate every processor trains the same network; at a high one the order of its sums decides.
RECIPE = Recipe("small", "Synthetic", epochs=60, batch=5, crop=32, learning_rate=1e-3, average=0.8, validation=0.0,
                validate_every=60)


def source_of(network):
    return LoadedNetwork("small", "small_networks:small_unet", network.eval(),
                         Preprocessing(NORMALISATION.mean, NORMALISATION.std), 0.5, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small U-Net that finds the synthetic targets: its data set's root and the folder of its run."""
    folder = tmp_path_factory.mktemp("float")
    root = write_dataset(folder / "data")
    torch.manual_seed(0)
    train(RECIPE, root, folder / "run", network=small_unet())
    return root, folder / "run"


@pytest.fixture
def calibrated(trained):
    root, run = trained
    loaded = load_network("small", model="small_networks:small_unet", checkpoint=run / "last.safetensors")
    data = Dataset(root, "Synthetic", "train")
    images = load_images([data.image_path(i) for i in range(4)], loaded)
    return Calibrated(loaded.network, images, size=(64, 64)), HeldOut(data, loaded), loaded


def uniform(calibrated, bits):
    return dict.fromkeys(calibrated.trace.convolutions, bits)


def test_ranges_and_steps_by_hand():
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1, bias=False))
    nn.init.constant_(network[0].weight, 2.0)
    nn.init.constant_(network[0].bias, -1.0)
    images = [CalibrationImage("a", "", torch.tensor([[[[-1.0, 2.0]]]])),
              CalibrationImage("b", "", torch.tensor([[[[0.0, 3.0]]]]))]
    found = observe_inputs(network, ["0", "2"], images)
    assert (found["0"].low, found["0"].high, found["0"].signed) == (-1, 3, True)
    assert (found["2"].low, found["2"].high, found["2"].signed) == (0, 5, False)
    assert found["0"].counts.sum() == found["2"].counts.sum() == 4
    assert found["0"].step(8, "minmax") == 3 / 127 and found["2"].step(4, "minmax") == 5 / 15
    assert InputRange(-4, 1, np.zeros(2048)).step(3, "minmax") == 1.0


def test_percentile_leaves_out_the_largest():
    counts = np.zeros(2048)
    counts[:1024], counts[-1] = 10, 1  # 10240 values below a half, one at 1
    r = InputRange(0.0, 1.0, counts)
    assert r.step(8, "percentile", 99.99) == pytest.approx(1023.5 / 2048 / 255, rel=1e-2)
    assert r.step(8, "percentile", 100) == pytest.approx(1 / 255, rel=1e-3)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed", [False, True])
def test_least_squares_beat_the_whole_range_and_near_the_optimum(bits, signed):
    values = torch.randn(20000, generator=torch.Generator().manual_seed(0)).double().numpy()
    values = values if signed else np.maximum(values, 0)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)

    def error(step):
        return ((np.clip(np.rint(values / step), low, high) * step - values) ** 2).mean()

    counts, edges = np.histogram(values, 2048, (values.min(), values.max()))
    r = InputRange(edges[0], edges[-1], counts.astype(float))
    found = error(r.step(bits, "mse"))
    assert found <= error(r.step(bits, "minmax")) * 1.001
    assert found <= min(error(s) for s in np.linspace(1e-3, values.max(), 3000)) * 1.03


def test_weight_steps():
    weight = torch.tensor([[1.0, -2.0, 0.5, 0.25], [0.0, 0.0, 0.0, 0.0]])
    assert weight_step(weight, 8, "minmax").tolist() == pytest.approx([2 / 127, 1e-6])
    assert weight_step(weight, 1).tolist() == pytest.approx([3.75 / 4, 1e-6])
    assert weight_step(torch.tensor([[0.3, -0.6, 0.3]]), 2).item() == pytest.approx(0.3, rel=0.05)


def test_inputs_that_are_not_finite_name_layer_and_image():
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))
    nn.init.constant_(network[0].weight, float("nan"))
    with pytest.raises(QuantisationError, match=r"x\.png: the inputs of 1 are not finite"):
        observe_inputs(network, ["0", "1"], [CalibrationImage("x.png", "", torch.ones(1, 1, 2, 2))])


@pytest.mark.parametrize("method", METHODS)
def test_eight_bits_err_by_little_and_more_bits_by_less(calibrated, method):
    c, held, loaded = calibrated
    c = Calibrated(loaded.network, c.images, method=method, size=c.size)
    x = torch.cat([i.x for i in c.images])
    with torch.no_grad():
        want = loaded.network.logits(x)
        errors_ = {b: float((c.quantise(uniform(c, (b, b))).logits(x) - want).square().mean()) for b in (2, 4, 8)}
    # What a percentile clips costs more than rounding.
    assert errors_[8] < (5e-3 if method == "percentile" else 1e-3) * float(want.var())
    assert errors_[8] < errors_[4] < errors_[2]
    assert held.measure(c.quantise(uniform(c, (8, 8)))).iou >= held.measure(loaded.network).iou - 0.02


def test_rounded_layers_are_bounded_by_half_a_step(calibrated):
    c, _, _ = calibrated
    network = c.quantise(uniform(c, (8, 8)))
    for name, layer in network.named_modules():
        if isinstance(layer, QuantConv2d):
            float_weight = c.folded.get_submodule(name).weight
            step = layer.weight_step.view(-1, 1, 1, 1)
            inside = float_weight.abs() <= 127 * step
            assert inside.float().mean() > 0.97
            error = (layer.integer_weight() * step - float_weight).abs()
            assert (error <= step / 2 * 1.001)[inside].all()
            assert layer.activation_signed == (name == "down.0")


def test_held_out_scores_are_those_of_the_metrics(calibrated, trained):
    _, held, loaded = calibrated
    data = Dataset(trained[0], "Synthetic", "train")
    score = held.measure(loaded.network)
    accuracy = evaluate_network(loaded.network, data, loaded.preprocessing)
    assert score.iou == pytest.approx(accuracy.iou) and held.images == 10
    p, g = [], []
    for sample in data:  # 40 x 56, padded to 64 x 64
        x = np.zeros((1, 1, 64, 64), np.float32)
        x[0, 0, :40, :56] = (sample.image - np.float32(loaded.preprocessing.mean)) / np.float32(
            loaded.preprocessing.std)
        with torch.no_grad():
            p.append(loaded.network(torch.from_numpy(x)).numpy()[0, 0, :40, :56].astype(np.float64))
        g.append(sample.mask / 255)
    p, g = np.stack(p), np.stack(g)
    assert score.loss == pytest.approx(1 - ((p * g).sum() + 1) / ((p + g - p * g).sum() + 1), rel=1e-5)


def test_sensitivity_rounds_one_block_at_a_time_and_leaves_the_network(calibrated):
    c, held, _ = calibrated
    blocks = find_blocks(c.counts, c.size)
    before = {k: v.clone() for k, v in c.folded.state_dict().items()}
    steps = []
    found = measure_sensitivity(c, blocks, held, (2, 8), lambda: steps.append(1))
    assert len(found) == len(steps) == len(blocks) * 2 * 2
    assert all(torch.equal(v, before[k]) for k, v in c.folded.state_dict().items())
    assert not any(m._forward_pre_hooks for m in c.folded.modules())
    losses = losses_of(found)
    assert all(abs(losses[b.name, kind, 8]) < 0.05 for b in blocks for kind in KINDS)
    total = {n: sum(losses[b.name, kind, n] for b in blocks for kind in KINDS) for n in (2, 8)}
    assert total[2] > total[8] + 0.01
    # Weights and inputs of one block rounded are what the quantised layers compute.
    both = held.measure(c.quantise({"head": (8, 8)}))
    alone = {s.kind: s for s in found if s.block.name == "head" and s.bits == 8}
    assert both.loss == pytest.approx(found[0].full.loss + sum(s.loss_rise for s in alone.values()), abs=5e-3)


def test_sensitive_layers_are_kept_until_the_floor_holds(calibrated):
    c, held, loaded = calibrated
    full = held.measure(loaded.network).iou
    table = uniform(c, (2, 2))
    dropped = full - held.measure(c.quantise(table)).iou
    assert dropped > 0.1
    kept_table, kept = keep_sensitive(c, table, held, 0.05)
    assert 0 < len(kept) <= 4 and {k.layer for k in kept} == {n for n, b in kept_table.items() if b is None}
    assert full - held.measure(c.quantise(kept_table)).iou <= 0.05
    assert kept[-1].iou == held.measure(c.quantise(kept_table)).iou
    assert [k.loss_rise for k in kept] == sorted((k.loss_rise for k in kept), reverse=True)
    assert keep_sensitive(c, table, held, 1.0) == (table, [])
    with pytest.raises(QuantisationError, match=r"every layer kept at \(2, 2\).*keep layers in float, or allow more"):
        keep_sensitive(c, table, held, 0.0, (2, 2))


def test_what_cannot_be_calibrated():
    image = CalibrationImage("x", "", torch.ones(1, 1, 32, 32))
    with pytest.raises(QuantisationError, match="at least one image"):
        Calibrated(small_unet(), [])
    with pytest.raises(QuantisationError, match=r"no plain nn\.Conv2d.*ConvTranspose2d"):
        Calibrated(nn.Sequential(nn.ConvTranspose2d(1, 1, 2)), [image])
    quantised = Calibrated(small_unet(), [image], size=(32, 32)).quantise({"head": (8, 8)})
    with pytest.raises(QuantisationError, match="quantised already"):
        Calibrated(quantised, [image])


class Returning(SmallUNet):
    """Returns what it is told to make of its logits."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(self.logits(x))


@pytest.mark.parametrize("make, message", [
    (lambda y: y, r"returns values in \[.*\], no probabilities; end forward\(\) with torch\.sigmoid"),
    (lambda y: torch.sigmoid(y)[..., ::2, ::2], r"returns \[1, 1, 16, 16\] for an input \[1, 1, 32, 32\]"),
    (lambda y: [torch.sigmoid(y).repeat(1, 2, 1, 1)], r"returns \[1, 2, 32, 32\] for an input"),
    (lambda y: [None], "returns NoneType for an input"),
])
def test_what_is_no_probability_is_neither_calibrated_nor_measured(make, message):
    image = CalibrationImage("x", "", torch.ones(1, 1, 32, 32))
    with pytest.raises(UnsupportedError, match=message):
        Calibrated(Returning(make), [image], size=(32, 32))
    sample = Sample("a", np.ones((32, 32), np.float32), np.zeros((32, 32), np.uint8))
    with pytest.raises(UnsupportedError, match=message):
        HeldOut([sample], source_of(small_unet())).measure(Returning(make))


def test_a_network_that_returns_a_list_is_quantised_by_its_first_tensor(calibrated):
    c, held, loaded = calibrated
    several = Returning(lambda y: [torch.sigmoid(y), y])
    several.load_state_dict(loaded.network.state_dict())
    found = Calibrated(several, c.images, size=c.size)
    assert held.measure(found.quantise(uniform(c, (8, 8)))) == held.measure(c.quantise(uniform(c, (8, 8))))


def test_images_are_taken_evenly(tmp_path, synthetic):
    assert evenly("abcdefgh", 4) == list("aceg") and evenly("ab", 5) == ["a", "b"]
    folder = synthetic / "Synthetic" / "images"
    assert [p.name for p in image_files(folder, 2)] == ["0.png", "18.png"]  # by name, not by number
    with pytest.raises(DataError, match="no such folder"):
        image_files(tmp_path / "absent", 1)
    with pytest.raises(DataError, match="holds no image"):
        image_files(synthetic / "Synthetic" / "img_idx", 1)


def test_training_in_low_bits_lowers_the_loss_and_resumes_bit_for_bit(calibrated, trained, tmp_path):
    c, held, _ = calibrated
    table = uniform(c, (2, 2)) | {"down.0": (8, 8), "head": (8, 8)}
    recipe = replace(RECIPE, epochs=20, learning_rate=1e-3, validate_every=10)
    before = held.measure(c.quantise(table))
    train(recipe, trained[0], tmp_path / "whole", network=c.quantise(table), record={"quantised_from": "here"})
    whole = tmp_path / "whole" / "last.safetensors"
    loaded = load_network("small", model="small_networks:small_unet", checkpoint=whole)
    after = held.measure(loaded.network)
    assert after.loss < before.loss - 0.05 and after.iou > before.iou
    rows = read_curve(tmp_path / "whole" / "curves.csv")
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert json.loads((tmp_path / "whole" / "recipe.json").read_text())["quantised_from"] == "here"

    class Stop(Exception):
        pass

    def stop(epoch):
        if epoch.epoch == 13:
            raise Stop

    with pytest.raises(Stop):
        train(recipe, trained[0], tmp_path / "parts", network=c.quantise(table), on_epoch=stop)
    train(recipe, trained[0], tmp_path / "parts", network=c.quantise(table), resume=True)
    with safe_open(whole, "pt") as a, safe_open(tmp_path / "parts" / "last.safetensors", "pt") as b:
        assert a.metadata() == b.metadata() and list(a.keys()) == list(b.keys())
        assert all(torch.equal(a.get_tensor(k), b.get_tensor(k)) for k in a.keys())  # noqa: SIM118


def run_cli(*arguments):
    return cli.main(["quantize", "small", "--model", "small_networks:small_unet", *map(str, arguments)])


def test_the_command_quantises_and_says_what_it_did(trained, tmp_path, capsys):
    root, run = trained
    weights, out = run / "last.safetensors", tmp_path / "out"
    assert run_cli("--checkpoint", weights, "--dataset", "Synthetic", "--root", root, "--out", out, "--images", 3,
                   "--layer", "up=float", "--layer", "deep.0=4,5", "--json", tmp_path / "told.json") == 0
    manifest = json.loads((out / "quantisation.json").read_text())
    assert json.loads((tmp_path / "told.json").read_text()) == manifest
    images = root / "Synthetic" / "images"
    assert manifest["images"] == [{"file": f"{i}.png", "sha256": sha256(images / f"{i}.png")} for i in (0, 3, 6)]
    assert manifest["method"] == "mse" and manifest["checkpoint_sha256"] == sha256(weights)
    assert manifest["layers"].keys() == {"down.0", "deep.0", "head"}
    assert manifest["layers"]["down.0"]["signed"] and manifest["layers"]["down.0"]["minimum"] < 0
    assert manifest["held_out"]["images"] == 1 and manifest["versions"]["torch"] == torch.__version__
    rows = list(csv.DictReader((out / "layers.csv").open()))
    assert [(r["layer"], r["weight_bits"], r["activation_bits"]) for r in rows] == [
        ("down.0", "8", "8"), ("deep.0", "4", "5"), ("up.0", "32", "32"), ("head", "8", "8")]
    loaded = load_network("small", model="small_networks:small_unet", checkpoint=out / "quantised.safetensors")
    assert isinstance(loaded.network.down[0], QuantConv2d) and type(loaded.network.up[0]) is nn.Conv2d
    mean = (72 * 8 + 1152 * 4 + 1728 * 32 + 8 * 8) / 2960
    assert manifest["precision"]["weight_bits_mean"] == pytest.approx(mean)
    assert f"weights {mean:.3f}" in capsys.readouterr().out
    # The table that it leaves asks for the same again.
    assert run_cli("--checkpoint", weights, "--calibrate", images, "--out", tmp_path / "again", "--images", 3,
                   "--table", out / "bits.toml") == 0
    again = json.loads((tmp_path / "again" / "quantisation.json").read_text())
    assert {k: v["weight_bits"] for k, v in again["layers"].items()} == {"down.0": 8, "deep.0": 4, "head": 8}


def test_the_command_searches_trains_and_resumes(trained, tmp_path, capsys):
    root, run = trained
    out = tmp_path / "out"
    data = ("--checkpoint", run / "last.safetensors", "--dataset", "Synthetic", "--root", root, "--out", out)
    (tmp_path / "r.toml").write_text('network = "small"\ndataset = "Elsewhere"\nepochs = 2\nbatch = 4\ncrop = 32\n'
                                     'validate_every = 1\nlearning_rate = 1e-3\n')
    training = ("--train", tmp_path / "r.toml")
    assert run_cli(*data, "--spm", "--candidates", "2,4", "--max-weight-bits", 3, "--max-activation-bits", 4.4,
                   *training) == 0
    text = capsys.readouterr().out
    assert "as published" in text and "by side: encoder" in text
    manifest = json.loads((out / "quantisation.json").read_text())
    w, a = manifest["assignment"]["weight_bits"], manifest["assignment"]["activation_bits"]
    assert list(w) == sorted(w, reverse=True) and list(a) == sorted(a, reverse=True) and len(w) == 2
    assert manifest["precision"]["weight_bits_mean"] <= 3 and manifest["precision"]["activation_bits_mean"] <= 4.4
    assert manifest["layers"]["head"]["weight_bits"] == 8
    rows = list(csv.DictReader((out / "sensitivity.csv").open()))
    assert len(rows) == 4 * 2 * 2 and (out / "sensitivity.png").stat().st_size > 1000
    first = next(csv.DictReader((out / "assignments.csv").open()))
    assert first["weights"] == " ".join(map(str, w))
    assert float(first["weight_bits_mean"]) == manifest["precision"]["weight_bits_mean"]
    record = json.loads((out / "recipe.json").read_text())
    assert (record["learning_rate"], record["epochs"], record["dataset"]) == (1e-4, 2, "Synthetic")
    assert record["network"] == "small_networks:small_unet"
    assert len(read_curve(out / "curves.csv")) == 2
    with safe_open(out / "last.safetensors", "pt") as file:
        assert json.loads(file.metadata()["irstd_edge.conversion"])["layers"]["head"] == [8, 8, False]
    # A second start is refused, --resume goes on.
    assert run_cli(*data, *training) == errors.USAGE
    assert "--resume" in capsys.readouterr().err
    assert run_cli("--dataset", "Synthetic", "--root", root, "--out", out, *training, "--resume") == 0


def train_cli(*arguments):
    """Without NETWORK: the folder of results tells it."""
    return cli.main(["quantize", *map(str, arguments)])


def test_training_goes_on_from_what_lies_quantised_by_several_seeds(trained, tmp_path, capsys, monkeypatch):
    root, run = trained
    out = tmp_path / "out"
    (tmp_path / "r.toml").write_text('network = "small"\ndataset = "Synthetic"\nepochs = 2\nbatch = 4\ncrop = 32\n'
                                     'validate_every = 1\nlearning_rate = 1e-3\n')
    training = ("--root", root, "--out", out, "--train", tmp_path / "r.toml", "--resume", "--seed", 1, "--seed", 2)
    for call in (train_cli, run_cli):
        assert call(*training) == errors.USAGE
        assert "holds no quantised network to go on with: leave out --resume" in capsys.readouterr().err
    begin = ("--checkpoint", run / "last.safetensors", "--dataset", "Synthetic", "--root", root, "--out", out)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_cli(*begin) == errors.USAGE
    assert "torchrun shares the training alone: quantise in one process" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
    monkeypatch.delenv("WORLD_SIZE")
    assert run_cli(*begin) == 0
    assert train_cli(*training, "--minutes", 0) == 0
    assert "epoch 1 of 2: go on by --resume" in capsys.readouterr().out
    assert train_cli(*training, "--json", tmp_path / "told.json") == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["layers"] and [r["seed"] for r in told["runs"] if r["finished"]] == [1, 2]
    folders = [out / f"r-seed{seed}" for seed in (1, 2)]
    records = [json.loads((folder / "recipe.json").read_text()) for folder in folders]
    assert [(r["seed"], r["network"], r["quantised_from"]) for r in records] == [
        (seed, "small_networks:small_unet", "../quantised.safetensors") for seed in (1, 2)]
    assert all(len(read_curve(f / "curves.csv")) == 2 and (f / "curves.png").is_file() for f in folders)
    first, second = ((f / "last.safetensors").read_bytes() for f in folders)
    assert first != second
    assert run_cli(*begin) == errors.USAGE
    assert "holds a run already: go on with it by --resume" in capsys.readouterr().err
    # A run alone, from the same calibration, is the same.
    assert run_cli(*begin[:-1], tmp_path / "one", "--train", tmp_path / "r.toml", "--seed", 1) == 0
    assert (tmp_path / "one" / "last.safetensors").read_bytes() == first


def test_a_ceiling_out_of_reach_is_told_before_anything_is_measured(trained, tmp_path, capsys, monkeypatch):
    root, run = trained
    monkeypatch.setattr("irstd_edge.training.quantisation.measure_sensitivity", lambda *args: pytest.fail("measured"))
    call = ("--checkpoint", run / "last.safetensors", "--dataset", "Synthetic", "--root", root, "--out",
            tmp_path / "out", "--spm", "--candidates", "2,4")
    # 72 + 8 weights of 8 bits at the edges, 1152 + 1728 of 2.
    least = (80 * 8 + 2880 * 2) / 2960
    assert run_cli(*call, "--max-weight-bits", 2, "--max-activation-bits", 8) == errors.USAGE
    assert f"2 bits everywhere make {least:.2f} with the 2 layers of fixed bits: raise --max-weight-bits, or give " \
        "those fewer bits by --edges or --layer" in capsys.readouterr().err
    assert run_cli(*call, "--max-weight-bits", 4, "--max-activation-bits", 2) == errors.USAGE
    assert "raise --max-activation-bits" in capsys.readouterr().err


def test_the_share_that_is_held_out(trained, tmp_path, capsys):
    root, run = trained
    call = ("--checkpoint", run / "last.safetensors", "--dataset", "Synthetic", "--root", root, "--out",
            tmp_path / "out")
    assert run_cli(*call, "--held-out", 0.5) == 0
    assert "small was trained on 5 of the 5 images that are held out here" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / "quantisation.json").read_text())
    assert (manifest["held_out"]["images"], manifest["held_out"]["share"]) == (5, 0.5)
    assert manifest["held_out"]["trained_on"] == 5
    assert [i["file"] for i in manifest["images"]] == ["0.png", "2.png", "4.png", "6.png", "8.png"]
    other = write_dataset(tmp_path / "other", "Other", count=1)
    call = ("--checkpoint", run / "last.safetensors", "--dataset", "Other", "--root", other, "--out", tmp_path / "one")
    assert run_cli(*call) == 0
    assert json.loads((tmp_path / "one" / "quantisation.json").read_text()).get("held_out") is None
    assert run_cli(*call, "--max-drop", 0.1) == errors.USAGE
    assert "--held-out 0.1 of 1 images of Other is none to measure on" in capsys.readouterr().err


def test_training_keeps_the_normalisation_of_the_float_network(trained, tmp_path):
    root, run = trained
    (tmp_path / "r.toml").write_text('network = "small"\ndataset = "Synthetic"\nepochs = 1\nbatch = 4\ncrop = 32\n')
    out, given = tmp_path / "out", {"mean": 10.0, "std": 200.0}
    assert run_cli("--checkpoint", run / "last.safetensors", "--mean", 10, "--std", 200, "--dataset", "Synthetic",
                   "--root", root, "--out", out, "--train", tmp_path / "r.toml") == 0
    assert json.loads((out / "recipe.json").read_text())["normalisation"] == given
    # Of folders where training went on otherwise, too.
    (out / "recipe.json").write_text(json.dumps({"normalisation": {"mean": 1, "std": 2}}))
    assert recorded_normalisation(out / "quantised.safetensors") == given
    assert recorded_normalisation(out / "best.safetensors") == {"mean": 1, "std": 2}


def test_the_floor_of_the_command(trained, tmp_path, capsys):
    root, run = trained
    assert run_cli("--checkpoint", run / "last.safetensors", "--dataset", "Synthetic", "--root", root, "--out",
                   tmp_path / "out", "--bits", 2, "--edges", "2", "--max-drop", 0.01) == 0
    manifest = json.loads((tmp_path / "out" / "quantisation.json").read_text())
    scores = manifest["held_out"]
    assert manifest["kept"] and scores["float"]["iou"] - scores["quantised"]["iou"] <= 0.01
    assert f"kept float: {manifest['kept'][0]['layer']}" in capsys.readouterr().out


#: Below the folder that a test of wrong calls runs in.
MEASURED = ("--dataset", "Synthetic", "--root", "data")


@pytest.mark.parametrize("arguments, message", [
    ((), "give images to calibrate on"),
    (("--bits", 3, "--spm", "--calibrate", "x"), "exclude each other"),
    (("--dataset", "Synthetic"), "--dataset and --root go together"),
    (("--calibrate", "x", "--train", "r"), "--train needs --root"),
    (("--calibrate", "x", "--spm"), "held-out images with masks"),
    (("--calibrate", "x", "--max-drop", 0.1), "held-out images with masks"),
    (("--calibrate", "absent", "--untold"), "No such option"),
    (("--calibrate", "absent"), "absent: no such folder"),
    (("--calibrate", "x", "--bits", 9), "--bits: bits are"),
    (("--calibrate", "x", "--edges", "half"), "--edges: bits are"),
    ((*MEASURED, "--max-drop", 0.1, "--keep", "0"), "--keep: bits are"),
    (("--calibrate", "x", "--layer", "up"), "write PATTERN=BITS"),
    (("--calibrate", "x", "--layer", "up=0"), "--layer up=0: bits are"),
    (("--calibrate", "x", "--layer", "upp=3"), "'upp' matches no convolution"),
    ((*MEASURED, "--sensitivity", "--candidates", "1,2"), "--candidates 1,2: numbers of bits, 2 to 8"),
    (("--calibrate", "x", "--table", "absent.toml"), "absent.toml"),
    (("--calibrate", "x", "--bits", "8,1", "--edges", "8,1"), "down.0: activation_bits must be at least 2"),
    (("--calibrate", "x", "--checkpoint", "absent"), "absent: cannot be read"),
    (("--calibrate", "x", "--from-layout", "larq"), "Invalid value for '--from-layout': 'larq'"),
    # Options that would do nothing.
    (("--calibrate", "x", "--seed", 1, "--compile", "--device", "cpu"),
     "--device, --compile, --seed would do nothing without training: give --train RECIPE"),
    *((("--calibrate", "x", *option), f"{option[0]} would do nothing without training: give --train RECIPE")
      for option in (("--learning-rate", 1), ("--precision", "bf16"), ("--minutes", 1), ("--epochs", 1))),
    *((("--calibrate", "x", option, 2.5), f"{option} would do nothing without a search of bits: give --spm")
      for option in ("--max-weight-bits", "--max-activation-bits")),
    (("--calibrate", "x", "--candidates", "2,4"), "where no block is measured: give --sensitivity or --spm"),
    (("--calibrate", "x", "--keep", "8"), "--keep would do nothing without a floor: give --max-drop IOU"),
    (("--calibrate", "x", "--percentile", 99.99),
     "--percentile would do nothing with another method: give --method percentile"),
    (("--calibrate", "x", "--table", "t.toml", "--edges", "8"),
     "--edges would do nothing with --table, which has the edges too: give --layer"),
    (("--calibrate", "x", "--held-out", 0.1),
     "--held-out would do nothing without a data set: give --dataset NAME and --root FOLDER"),
])
def test_wrong_calls_name_the_option_and_leave_nothing(trained, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("x").symlink_to(trained[0] / "Synthetic" / "images")
    Path("data").symlink_to(trained[0])
    out = tmp_path / "out"
    weights = () if "--checkpoint" in arguments else ("--checkpoint", trained[1] / "last.safetensors")
    assert run_cli("--out", out, *weights, *arguments) == errors.USAGE
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_with_resume_every_option_of_quantising_is_refused(tmp_path, capsys):
    values = {"checkpoint": "a", "from_layout": "acm", "mean": 1, "std": 1, "calibrate": "a", "images": 1,
              "held_out": 0.1, "method": "mse", "percentile": 99, "bits": 8, "table_file": "a", "edges": 8,
              "layers": "a=8", "max_weight_bits": 3, "max_activation_bits": 3, "candidates": "2,4", "max_drop": 0.1,
              "keep": 8, "spm": None, "sensitivity": None}
    options = {p.name: p.opts[0] for p in quantize.params}
    assert set(options) - set(values) == {
        "network", "model", "out", "dataset", "root", "allow_pickle", "recipe", "learning_rate", "resume", "json_file",
        "device", "precision", "threads", "compile_network", "minutes", "epochs", "seeds"}
    for name, value in values.items():
        given = [options[name]] if value is None else [options[name], value]
        assert train_cli("--out", tmp_path / "out", "--root", "r", "--train", "t", "--resume", *given) == errors.USAGE
        assert f"{given[0]} would do nothing with --resume: that belongs to the quantising already done in --out; " \
            "leave it out, or name another --out" in " ".join(capsys.readouterr().err.split())
    assert train_cli("--out", tmp_path / "out", "--resume") == errors.USAGE
    assert "give --train RECIPE too" in capsys.readouterr().err
    assert train_cli("--out", tmp_path / "out", "--bits", 8, "--resume", "--max-drop", 0.1) == errors.USAGE
    assert "--bits, --max-drop would do nothing" in capsys.readouterr().err


def test_resume_knows_the_network(trained, tmp_path, capsys):
    root, run = trained
    out = tmp_path / "out"
    (tmp_path / "r.toml").write_text('network = "biisnet"\ndataset = "Synthetic"\nepochs = 1\nbatch = 4\ncrop = 32\n')
    assert run_cli("--checkpoint", run / "last.safetensors", "--calibrate", root / "Synthetic" / "images", "--out",
                   out) == 0
    resume = ("--root", root, "--out", out, "--train", tmp_path / "r.toml", "--resume")
    for other, message in ((("smal",), "not smal: leave out NETWORK"), (("resunet",), "not resunet: leave out NETWORK"),
                           (("--model", "small_networks:other"), "not small_networks:other: leave out --model"),
                           (("small", "--model", "small"), "not small: leave out --model")):
        assert train_cli(*other, *resume) == errors.USAGE
        assert f"{message}, which --resume knows" in " ".join(capsys.readouterr().err.split())
    # By the label of its beginning, with or without --model, by its factory, or without a name.
    for same in (("small",), ("small", "--model", "small_networks:small_unet"), ("small_networks:small_unet",), ()):
        assert train_cli(*same, *resume) == 0
    assert json.loads((out / "recipe.json").read_text())["network"] == "small_networks:small_unet"


def test_a_teacher_helps_in_low_bits(trained, tmp_path, capsys):
    root, run = trained
    out, teacher = tmp_path / "out", tmp_path / "teacher.pth"
    torch.save(small_unet().state_dict(), teacher)
    (tmp_path / "r.toml").write_text(
        'network = "small"\ndataset = "Synthetic"\nepochs = 1\nbatch = 4\ncrop = 32\n[distill]\n'
        f'teacher = "small_networks:small_unet"\nfeatures = ["deep=deep"]\ncheckpoint = "{teacher}"\n')
    images = root / "Synthetic" / "images"
    assert run_cli("--checkpoint", run / "last.safetensors", "--calibrate", images, "--out", out) == 0
    resume = ("--root", root, "--out", out, "--train", tmp_path / "r.toml", "--resume")
    assert train_cli(*resume) == errors.USAGE
    assert f"the teacher: {teacher}: pickled checkpoint refused" in capsys.readouterr().err
    assert train_cli(*resume, "--allow-pickle") == 0
    assert json.loads((out / "recipe.json").read_text())["teacher"]["sha256"] == sha256(teacher)


def test_a_folder_holds_the_files_of_its_last_quantising_alone(trained, tmp_path, capsys):
    root, run = trained
    out = tmp_path / "out"
    data = ("--checkpoint", run / "last.safetensors", "--dataset", "Synthetic", "--root", root, "--out", out)
    search = ("--spm", "--candidates", "2,4", "--max-weight-bits", 3, "--max-activation-bits", 4.4)

    def held():
        return {p.name: p.read_bytes() for p in out.iterdir()}

    always = {"quantised.safetensors", "quantisation.json", "bits.toml", "layers.csv"}
    assert run_cli(*data, *search) == 0
    assert f"{out / 'sensitivity.csv'}\n{out / 'sensitivity.png'}\n" in capsys.readouterr().out
    first = held()
    assert first.keys() == always | {"sensitivity.csv", "sensitivity.png", "assignments.csv"}
    # What fails, at once or once all is measured, leaves the earlier files as they are.
    assert run_cli(*data, "--layer", "nowhere=3") == errors.USAGE
    assert run_cli(*data, "--sensitivity", "--candidates", "3", "--bits", 2, "--edges", "2", "--max-drop", 0, "--keep",
                   "2") == errors.USAGE
    assert "every layer kept at (2, 2)" in capsys.readouterr().err
    assert held() == first
    assert run_cli(*data, "--sensitivity", "--candidates", "3") == 0
    assert held().keys() == always | {"sensitivity.csv", "sensitivity.png"}
    assert held()["sensitivity.csv"] != first["sensitivity.csv"]
    assert run_cli(*data) == 0
    assert held().keys() == always


def test_the_command_knows_every_method():
    assert tuple(next(p for p in quantize.params if p.name == "method").type.choices) == METHODS


def test_saved_weights_of_a_small_network_evaluate_identically(calibrated, tmp_path):
    c, held, _ = calibrated
    network = c.quantise(uniform(c, (3, 4)))
    save_weights(network, tmp_path / "q.safetensors")
    again = load_network("s", model="small_networks:small_unet", checkpoint=tmp_path / "q.safetensors", mean=1, std=1)
    assert held.measure(again.network) == held.measure(network)
    assert SmallUNet().state_dict().keys() != again.network.state_dict().keys()
    assert randomise(small_unet()).training is False
