import itertools
import json
import shutil
from dataclasses import replace

import click
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_networks import small_unet
from torch import nn

from irstd_edge import cli, errors
from irstd_edge.bundle import sha256
from irstd_edge.checkpoints import CheckpointError, form_of, initial_weights, load_network
from irstd_edge.complexity import count_parameters
from irstd_edge.data import DataError, Dataset
from irstd_edge.models.registry import MODELS, get_model
from irstd_edge.nn.quant import QuantConv2d
from irstd_edge.training.loop import TrainingError, train
from irstd_edge.training.recipe import Distill, Recipe
from irstd_edge.training.seen import count_seen, training_recipes
from irstd_edge.zoo import ZOO, network_of, results, zoo_card, zoo_names, zoo_weights
from irstd_edge.zoo.card import describe_precision, describe_runs, main, publish, render

RECIPE = Recipe("biisnet", "Synthetic", epochs=2, batch=4, crop=32, validation=0.2, validate_every=1)


def invoke(*args) -> None:
    assert cli.main([str(a) for a in args]) == 0


@pytest.fixture
def run(synthetic, tmp_path):
    return train(RECIPE, synthetic, tmp_path / "run")


def test_a_run_becomes_weights_facts_and_a_card(run, synthetic, tmp_path, capsys):
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    card = describe_runs([run], "biisnet", synthetic, weights=tmp_path / "w", note="Begun from nothing.")
    assert card["training"]["images"] == 8 and card["training"]["held_out"] == 2
    metrics = card["metrics"]["Synthetic"]
    assert metrics["protocol"] == "basicirstd" and metrics["images"] == metrics["targets"] == 10
    weights, facts, text = publish(card, tmp_path / "w", zoo)
    assert weights.read_bytes() == (run / "best.safetensors").read_bytes() and card["precision"] == {"kind": "binary"}
    assert {p.name for p in zoo.iterdir()} == {"biisnet.safetensors", "biisnet.json", "biisnet.md"}
    assert json.loads(facts.read_text()) == card and sha256(weights) == card["weights"]["sha256"]
    words = text.read_text()
    for part in ("reconstructed after the abstract of arXiv 2503.02662", "243,937", "7,665", "11,809", "Limits",
                 "irstd-edge evaluate biisnet --dataset Synthetic --root PATH", "Begun from nothing.",
                 "What it is for", f"{metrics['iou']:.4f}"):
        assert part in words
    assert str(tmp_path) not in words + facts.read_text()
    text.unlink()
    main(["--render", "biisnet", "--out", str(zoo)], standalone_mode=False)
    assert text.read_text() == words == render(card)


def test_an_unfinished_run_is_described_as_such(run, synthetic, tmp_path, capsys):
    record = json.loads((run / "recipe.json").read_text()) | {"epochs": 9, "validate_every": 2}
    (run / "recipe.json").write_text(json.dumps(record))
    with (run / "curves.csv").open("a") as file:
        file.write("3,0.5,1e-3,,,,,1.0\n")
    training = describe_runs([run], "biisnet", synthetic, which="last")["training"]
    assert (training["epochs_done"], training["epoch_of_weights"], training["seconds"] >= 1) == (3, 2, True)
    main([str(run), "--name", "biisnet", "--root", str(synthetic), "--out", str(tmp_path / "zoo"), "--which", "last"],
         standalone_mode=False)
    assert "warning: the run of seed 42 has 3 of 9 epochs" in capsys.readouterr().err


def test_a_run_may_go_by_another_name_of_its_network(run, synthetic, monkeypatch):
    monkeypatch.setitem(MODELS, "other", replace(MODELS["biisnet"], name="other"))
    assert describe_runs([run], "other", synthetic, which="last")["name"] == "other"


def test_wrong_runs_are_refused(run, synthetic, tmp_path):
    with pytest.raises(TrainingError, match="no folder of a training run"):
        describe_runs([tmp_path / "absent"], "biisnet", synthetic)
    with pytest.raises(TrainingError, match=r"no folder of irstd-edge quantize .*; leave out --which"):
        describe_runs([run], "biisnet", synthetic, which="quantised")
    with pytest.raises(TrainingError, match="trains biisnet, not biisnet-float: give --name biisnet"):
        describe_runs([run], "biisnet-float", synthetic)
    (run / "last.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"no last\.safetensors"):
        describe_runs([run], "biisnet", synthetic, which="last")


def test_a_card_names_the_file_of_a_teacher_not_its_place(run, synthetic):
    record = json.loads((run / "recipe.json").read_text())
    record["distill"] = {"teacher": "resunet", "checkpoint": "/home/somebody/runs/teacher/last.safetensors"}
    (run / "recipe.json").write_text(json.dumps(record))
    training = describe_runs([run], "biisnet", synthetic)["training"]
    assert training["recipe"]["distill"] == {"teacher": "resunet", "checkpoint": "last.safetensors"}


def test_weights_for_one_data_set_are_of_it(run, synthetic):
    assert describe_runs([run], "biisnet@Synthetic", synthetic)["name"] == "biisnet@Synthetic"
    with pytest.raises(TrainingError, match=r"is of Synthetic: name its weights so, or biisnet$"):
        describe_runs([run], "biisnet@Other", synthetic)


def test_seeds_are_told_with_their_spread(run, synthetic, tmp_path, capsys, monkeypatch):
    other = train(replace(RECIPE, seed=7), synthetic, tmp_path / "other")
    zoo = tmp_path / "made" / "zoo"
    (synthetic / "Synthetic" / "img_idx" / "few.txt").write_text("10\n11\n")
    main([str(run), str(other), "--name", "biisnet", "--root", str(synthetic), "--out", str(zoo),
          "--dataset", "Synthetic", "--dataset", "Synthetic:few"], standalone_mode=False)
    card = json.loads((zoo / "biisnet.json").read_text())
    assert list(card["metrics"]) == ["Synthetic", "Synthetic:few"]
    assert card["metrics"]["Synthetic:few"]["command"].endswith("--dataset Synthetic --root PATH --split few")
    assert [r["seed"] for r in card["runs"]] == [42, 7] and sum(r["published"] for r in card["runs"]) == 1
    published = next(r for r in card["runs"] if r["published"])
    assert card["training"]["recipe"]["seed"] == published["seed"]
    assert published["metrics"]["Synthetic"]["iou"] == card["metrics"]["Synthetic"]["iou"]
    source = {42: run, 7: other}[published["seed"]]
    assert (zoo / "biisnet.safetensors").read_bytes() == (source / "best.safetensors").read_bytes()
    words = (zoo / "biisnet.md").read_text()
    a, b = (r["metrics"]["Synthetic"]["pd"] for r in card["runs"])
    assert f"{(a + b) / 2:.4f}" in words and f"{abs(a - b) / 2 ** 0.5:.4f}" in words and "Over 2 seeds" in words
    assert "Published is the run of the highest IoU on the held-out training images.\n" in words
    with pytest.raises(TrainingError, match="need different seeds"):
        describe_runs([run, run], "biisnet", synthetic)
    record = json.loads((other / "recipe.json").read_text())
    (other / "recipe.json").write_text(json.dumps(record | {"crop": 64}))
    with pytest.raises(TrainingError, match=r"its crop is 64, that of .* 32"):
        describe_runs([run, other], "biisnet", synthetic)


def test_of_several_seeds_best_and_last_are_told_and_none_that_did_not_end_is_taken_for_a_whole_one(
        run, synthetic, tmp_path, capsys):
    other = train(replace(RECIPE, seed=7), synthetic, tmp_path / "other")
    rows = (other / "curves.csv").read_text().splitlines()
    (other / "curves.csv").write_text("\n".join(rows[:-1]) + "\n")
    # A run that was begun before its recipe had a field is of that field's default.
    record = json.loads((other / "recipe.json").read_text())
    del record["scale"]
    (other / "recipe.json").write_text(json.dumps(record))
    main([str(run), str(other), "--name", "biisnet", "--root", str(synthetic), "--out", str(tmp_path / "zoo")],
         standalone_mode=False)
    assert "warning: the run of seed 7 has 1 of 2 epochs" in capsys.readouterr().err
    card, words = (json.loads((tmp_path / "zoo/biisnet.json").read_text()), (tmp_path / "zoo/biisnet.md").read_text())
    assert [r["epochs_done"] for r in card["runs"]] == [2, 1]
    published = ", published" if card["runs"][1]["published"] else ""
    assert f"| seed 7{published}, 1 of 2 epochs |" in words and "of 2 epochs |" not in words.replace("1 of 2", "")
    last = describe_runs([other], "biisnet", synthetic, which="last")["metrics"]["Synthetic"]
    told = card["runs"][1]["other"]
    assert told["which"] == "last" and all(told["metrics"]["Synthetic"][k] == last[k] for k in ("iou", "pd"))
    assert "Over 2 seeds, highest IoU on the held-out images" in words and "Over 2 seeds, last epoch" in words
    a, b = (r["other"]["metrics"]["Synthetic"]["niou"] for r in card["runs"])
    assert f"{(a + b) / 2:.4f} | " in words.partition("last epoch")[2]
    (other / "last.safetensors").unlink()
    one = describe_runs([run, other], "biisnet", synthetic)
    assert one["other_weights"] is None and one["runs"][0]["other"] is None


def test_seeds_that_held_nothing_out_publish_the_first_and_may_each_begin_from_other_weights(synthetic, tmp_path):
    recipe = replace(RECIPE, network="biisnet-float", epochs=1, validation=0.0)
    runs = []
    for seed in (3, 1):
        first = train(replace(recipe, seed=seed), synthetic, tmp_path / f"first{seed}")
        initial = initial_weights("biisnet-float", first / "last.safetensors")
        runs.append(train(replace(recipe, seed=seed), synthetic, tmp_path / f"second{seed}", initial=initial))
    card = describe_runs(runs, "biisnet-float", synthetic, which="last", datasets=["Synthetic"])
    assert [(r["seed"], r["published"]) for r in card["runs"]] == [(3, True), (1, False)]
    assert [r["initial"]["sha256"] for r in card["runs"]] == [
        sha256(tmp_path / f"first{seed}" / "last.safetensors") for seed in (3, 1)]
    assert "Published is the first run: none held images out. Each began from weights of its own." in render(card)


def test_a_card_is_not_made_of_images_that_were_trained_on(run, synthetic):
    with pytest.raises(TrainingError, match=r"8 of the 10 images of Synthetic, split train, were trained on, in "
                                            r"this run or .*: give --dataset Synthetic:SPLIT"):
        describe_runs([run], "biisnet", synthetic, datasets=["Synthetic:train"])
    index = synthetic / "Synthetic" / "img_idx" / "mixed.txt"
    index.write_text("4\n10\n")  # held out of training, and to test
    describe_runs([run], "biisnet", synthetic, datasets=["Synthetic:mixed"])
    index.write_text("3\n10\n")
    with pytest.raises(TrainingError, match="1 of the 2 images"):
        describe_runs([run], "biisnet", synthetic, datasets=["Synthetic:mixed"])


def test_a_network_of_ones_own_has_a_card(synthetic, tmp_path, monkeypatch):
    recipe = replace(RECIPE, network="small_networks:small_unet", epochs=1)
    out = train(recipe, synthetic, tmp_path / "run")
    options = [str(out), "--name", "mine", "--root", str(synthetic)]
    with pytest.raises(click.ClickException, match="no folder of a training run") as wrong:
        main([str(tmp_path / "absent"), "--name", "mine", "--root", str(synthetic), "--out", str(tmp_path)],
             standalone_mode=False)
    assert wrong.value.exit_code == errors.USAGE
    with pytest.raises(click.UsageError, match="mine is no network of the registry"):
        main(options, standalone_mode=False)
    main([*options, "--out", str(tmp_path), "--source", "our laboratory"], standalone_mode=False)
    card, words = json.loads((tmp_path / "mine.json").read_text()), (tmp_path / "mine.md").read_text()
    assert words.startswith("# mine\n\nNetwork made by small_networks:small_unet; our laboratory.\n")
    assert sha256(tmp_path / "mine.safetensors") == card["weights"]["sha256"]
    monkeypatch.chdir(tmp_path)
    command = card["metrics"]["Synthetic"]["command"].split()[1:]
    command[command.index("PATH")] = str(synthetic)
    cli.cli.main([*command, "--json", "found.json"], standalone_mode=False)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["accuracy"]["iou"] == pytest.approx(card["metrics"]["Synthetic"]["iou"])


def test_each_protocol_is_a_row_of_its_own(synthetic, tmp_path):
    recipe = replace(RECIPE, network="biisnet-float", epochs=1, validation=0.0)
    index = synthetic / "Synthetic" / "img_idx" / "test_Synthetic.txt"
    index.write_text("10\n")
    out = train(recipe, synthetic, tmp_path / "run")
    card = describe_runs([out], "biisnet-float", synthetic, which="last", protocols=("basicirstd", "resize256"))
    assert list(card["metrics"]) == ["Synthetic", "Synthetic, resize256"]
    assert card["metrics"]["Synthetic, resize256"]["command"].endswith("--root PATH --protocol resize256")
    assert render(card).count("| Synthetic test (1 images, 1 targets) |") == 2
    with pytest.raises(TrainingError, match=r"no best\.safetensors"):
        describe_runs([out], "biisnet-float", synthetic)


def test_half_the_bytes(run, synthetic, tmp_path, monkeypatch):
    card = describe_runs([run], "biisnet", synthetic, weights=tmp_path / "w.safetensors", half=True)
    tensors, whole = load_file(tmp_path / "w.safetensors"), load_file(run / "best.safetensors")
    assert all(t.dtype == (torch.float16 if whole[k].ndim > 1 else whole[k].dtype) for k, t in tensors.items())
    assert card["weights"]["bytes"] < 0.6 * (run / "best.safetensors").stat().st_size
    assert "as float16" in render(card)
    assert load_network("biisnet", checkpoint=tmp_path / "w.safetensors", mean=1, std=1).checkpoint_sha256
    monkeypatch.setattr("irstd_edge.zoo.card.LARGEST", 1000)
    with pytest.raises(TrainingError, match=r"the zoo takes 1,000: publish them as float16 by --half"):
        describe_runs([run], "biisnet", synthetic)


def test_a_distilled_run_names_its_teacher(synthetic, tmp_path):
    recipe = replace(RECIPE, network="biisnet-float", epochs=1, distill=Distill("biisnet", ("encoder1=encoder1",)))
    card = describe_runs([train(recipe, synthetic, tmp_path / "run")], "biisnet-float", synthetic)
    assert card["precision"] == {"kind": "float"}
    teacher = zoo_card("biisnet")["weights"]["sha256"]
    assert f"from biisnet, 243,937 parameters, weights SHA-256 `{teacher}`; layers teacher=student: encoder1=encoder1" \
        in render(card)


def test_a_quantised_network_shows_its_bits(run, synthetic, tmp_path):
    network = nn.Sequential(QuantConv2d(1, 4, 3, weight_bits=8, activation_bits=4), nn.Conv2d(4, 4, 1),
                            QuantConv2d(4, 4, 3, weight_bits=2, activation_bits=3))
    found = describe_precision(network)
    assert [(x["layer"], x["weight_bits"], x["activation_bits"], x["weights"]) for x in found["layers"]] == [
        ("0", 8, 4, 36), ("2", 2, 3, 144)]
    assert found["mean_weight_bits"] == pytest.approx((36 * 8 + 144 * 2) / 180)
    (run / "best.safetensors").rename(run / "quantised.safetensors")
    normalisation = json.loads((run / "recipe.json").read_text())["normalisation"]
    (run / "recipe.json").unlink()
    (run / "quantisation.json").write_text(json.dumps({
        "network": "biisnet", "method": "mse", "images": [{}, {}], "precision": {}, "checkpoint_sha256": "abc",
        "normalisation": normalisation}))
    with pytest.raises(TrainingError, match="does not say what to measure on: give --dataset NAME"):
        describe_runs([run], "biisnet", synthetic, which="quantised")
    card = describe_runs([run], "biisnet", synthetic, which="quantised", datasets=("Synthetic",))
    words = render(card | {"precision": found})
    assert "| `2` | 2 | 3 | 144 |" in words and "by mse on 2 calibration images" in words
    assert "3.20 bits a weight" in words and "quantised after training" in words


@pytest.fixture
def quantised(synthetic, tmp_path, monkeypatch):
    """A small network, quantised and trained so by two seeds: the folder, and the network's name."""
    monkeypatch.setitem(MODELS, "small", replace(MODELS["biisnet"], name="small", factory=small_unet))
    recipe = replace(RECIPE, network="small")
    weights = train(recipe, synthetic, tmp_path / "float") / "last.safetensors"
    (tmp_path / "r.toml").write_text('network = "small"\ndataset = "Synthetic"\nepochs = 2\nbatch = 4\ncrop = 32\n'
                                     'validate_every = 1\n')
    assert cli.main(["quantize", "small", "--checkpoint", str(weights), "--dataset", "Synthetic", "--root",
                     str(synthetic), "--train", str(tmp_path / "r.toml"), "--seed", "1", "--seed", "2", "--out",
                     str(tmp_path / "q")]) == 0
    return tmp_path / "q", "small"


def test_a_quantised_network_before_and_after_its_training(quantised, synthetic, tmp_path):
    folder, name = quantised
    zoo = tmp_path / "zoo"
    call = ["--name", name, "--root", str(synthetic), "--out", str(zoo)]
    main([str(folder), *call, "--which", "quantised"], standalone_mode=False)
    card = json.loads((zoo / "small.json").read_text())
    assert card["training"] is None and card["other_weights"] is None and list(card["metrics"]) == ["Synthetic"]
    assert (zoo / "small.safetensors").read_bytes() == (folder / "quantised.safetensors").read_bytes()
    assert "quantised after training" in (zoo / "small.md").read_text()
    with pytest.raises(click.ClickException, match="give --which quantised for a network that was quantised without"):
        main([str(folder), *call], standalone_mode=False)
    runs = sorted(folder.glob("*/"))
    main([*map(str, runs), *call], standalone_mode=False)
    card = json.loads((zoo / "small.json").read_text())
    assert [r["seed"] for r in card["runs"]] == [1, 2] and card["training"]["epochs_done"] == 2
    manifest = json.loads((folder / "quantisation.json").read_text())
    assert card["quantisation"]["checkpoint_sha256"] == manifest["checkpoint_sha256"]
    assert (zoo / "small.safetensors").read_bytes() in [(r / "best.safetensors").read_bytes() for r in runs]
    # On a run that was trained as well, in its own folder.
    for file in runs[0].iterdir():
        file.rename(folder / file.name)
    card = describe_runs([folder], name, synthetic, which="quantised")
    assert card["training"] is None and card["weights"]["sha256"] == sha256(folder / "quantised.safetensors")


def test_a_card_that_fails_leaves_the_old_one(run, synthetic, tmp_path, monkeypatch):
    zoo = tmp_path / "zoo"
    call = [str(run), "--name", "biisnet", "--root", str(synthetic), "--out", str(zoo)]
    main(call, standalone_mode=False)
    before = {p.name: p.read_bytes() for p in zoo.iterdir()}
    assert len(before) == 3
    changed = load_file(run / "best.safetensors")
    changed["stem.weight"] = changed["stem.weight"] + 1
    save_file(changed, run / "best.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr("irstd_edge.zoo.card._render_seeds", lambda runs: {}["absent"])
        with pytest.raises(KeyError):
            main(call, standalone_mode=False)
    assert {p.name: p.read_bytes() for p in zoo.iterdir()} == before
    (zoo / "biisnet.md").unlink()
    (zoo / "biisnet.md").mkdir()
    with pytest.raises(click.ClickException, match="is a folder"):
        main(call, standalone_mode=False)
    assert {p.name: p.read_bytes() for p in zoo.iterdir() if p.is_file()} == {
        k: v for k, v in before.items() if k != "biisnet.md"}


def test_a_card_tells_what_its_training_began_from(run, synthetic, tmp_path):
    began = initial_weights("biisnet", run / "last.safetensors")
    card = describe_runs([train(RECIPE, synthetic, tmp_path / "on", initial=began)], "biisnet", synthetic)
    assert f"- began from the weights last.safetensors, SHA-256 `{sha256(run / 'last.safetensors')}`\n" in render(card)
    plain = describe_runs([run], "biisnet", synthetic)
    assert "began from" not in render(plain)
    with pytest.raises(TrainingError, match="one of them began from other weights than random ones, one did not"):
        describe_runs([tmp_path / "on", run], "biisnet", synthetic)


def test_no_card_is_made_of_images_that_an_earlier_training_or_a_teacher_saw(run, synthetic, tmp_path):
    """Whatever led to the weights: a stage before, float weights that were quantised, a teacher."""
    index = synthetic / "Synthetic" / "img_idx"
    (index / "all.txt").write_text((index / "train_Synthetic.txt").read_text()
                                   + (index / "test_Synthetic.txt").read_text())
    whole = replace(RECIPE, network="biisnet-float", dataset="Synthetic:all", validation=0.0, epochs=1)
    first = train(whole, synthetic, tmp_path / "first") / "last.safetensors"
    recipe = replace(whole, dataset="Synthetic", seed=1)
    second = train(recipe, synthetic, tmp_path / "second", initial=initial_weights("biisnet-float", first))
    third = train(recipe, synthetic, tmp_path / "third",
                  initial=initial_weights("biisnet-float", second / "last.safetensors"))
    table = Distill("biisnet-float", ("bottleneck.0=bottleneck.0",), checkpoint=str(first))
    taught = train(replace(recipe, distill=table), synthetic, tmp_path / "taught")
    images = synthetic / "Synthetic" / "images"
    quantised = tmp_path / "quantised"
    invoke("quantize", "biisnet-float", "--checkpoint", first, "--calibrate", images, "--images", 2, "--out", quantised)
    (tmp_path / "qat.toml").write_text('network = "biisnet-float"\ndataset = "Synthetic"\nbatch = 4\ncrop = 32\n'
                                       "epochs = 1\nvalidation = 0\n")
    low = tmp_path / "low"
    shutil.copytree(quantised, low)
    invoke("quantize", "--train", tmp_path / "qat.toml", "--resume", "--root", synthetic, "--out", low)
    for folder, which in ((second, "last"), (third, "last"), (taught, "last"), (quantised, "quantised"),
                          (low, "last")):
        with pytest.raises(TrainingError, match="10 of the 10 images of Synthetic, split test, were trained on"):
            describe_runs([folder], "biisnet-float", synthetic, which=which, datasets=["Synthetic"])
        recipes = training_recipes(folder / f"{which}.safetensors", None)
        assert count_seen(recipes, synthetic, Dataset(synthetic, "Synthetic", "test")) == 10
    own = train(replace(recipe, seed=5), synthetic, tmp_path / "own", initial=initial_weights(
        "biisnet-float", train(recipe, synthetic, tmp_path / "clean") / "last.safetensors"))
    assert describe_runs([own], "biisnet-float", synthetic, which="last")["training"]["earlier"] == [
        {"network": "biisnet-float", "dataset": "Synthetic", "validation": 0.0}]
    with pytest.raises(TrainingError, match="were trained on"):  # of several runs each is looked at
        describe_runs([own, second], "biisnet-float", synthetic, which="last")


def test_best_and_last_are_both_told(run, synthetic):
    last = describe_runs([run], "biisnet", synthetic, which="last")
    best = describe_runs([run], "biisnet", synthetic)
    figures = ("iou", "niou", "pd", "fa")
    for card, other, title in ((best, last, "Not published: last epoch (2)"),
                               (last, best, "Not published: highest IoU on the held-out images")):
        told = card["other_weights"]
        assert (told["which"], told["epoch"]) == (other["weights"]["which"], other["training"]["epoch_of_weights"])
        assert told["metrics"] == {"Synthetic": {k: other["metrics"]["Synthetic"][k] for k in figures}}
        assert title in render(card)
    (run / "last.safetensors").unlink()
    assert describe_runs([run], "biisnet", synthetic)["other_weights"] is None


def test_sets_with_a_split_of_their_own_need_a_test_split(run, synthetic):
    record = json.loads((run / "recipe.json").read_text()) | {"dataset": "Synthetic:train"}
    (run / "recipe.json").write_text(json.dumps(record))
    with pytest.raises(TrainingError, match="give --dataset Synthetic:SPLIT"):
        describe_runs([run], "biisnet", synthetic)


def test_all_weights_are_of_networks_of_the_registry():
    assert {network_of(p.stem) for p in ZOO.glob("*.safetensors")} <= MODELS.keys()
    assert {p.stem for p in ZOO.glob("*.safetensors")} == {p.stem for p in ZOO.glob("*.json")}


@pytest.mark.parametrize("name", dict.fromkeys([*MODELS, *(name for m in MODELS for name in zoo_names(m))]))
def test_the_zoo_is_consistent(name):
    """Card, facts, weights and network of every network that has weights here agree."""
    weights, card = zoo_weights(name), zoo_card(name)
    assert (weights is None) == (card is None)
    if weights is None:
        pytest.skip(f"{name} has no weights in this release")
    assert card["weights"]["sha256"] == sha256(weights)
    assert (ZOO / f"{name}.md").read_text() == render(card)
    network = form_of(get_model(network_of(name)).factory(), weights)
    assert card["complexity"]["params"] == count_parameters(network).__dict__
    loaded = load_network(name)
    assert loaded.preprocessing.mean == card["normalisation"]["mean"] and loaded.checkpoint_sha256 == sha256(weights)
    assert card["source"] == get_model(network_of(name)).source
    checkpoint = ((card["training"] or {}).get("recipe", {}).get("distill") or {}).get("checkpoint", "")
    assert "/" not in checkpoint, "where a teacher lay on somebody's machine is nobody's business"
    assert (loaded.name, loaded.factory) == (name, network_of(name))
    if name != network_of(name):
        assert [*card["metrics"]] == [*card["training"]["datasets"]] == [name.partition("@")[2]]


def test_the_page_of_results_is_up_to_date():
    text = results.PAGE.read_text(encoding="utf-8")
    assert results.page(text) == text, "run python -m irstd_edge.zoo.results"
    assert {row.network for row in results.ROWS} <= MODELS.keys()
    assert {row.network for row in results.ROWS} >= {name for name in MODELS if zoo_names(name)}


def test_networks_that_are_measured_but_not_shipped_have_rows_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "MEASURED", tmp_path)
    row = f"| `dnanet` | {results.NUDT} |  | "
    assert row + "- | - | - | - | - |" in results.tables()
    card = zoo_card("dnanet")
    card["metrics"] = {results.NUDT: card["metrics"][results.NUAA] | {"iou": 0.4321}}
    card["training"]["datasets"] = {results.NUDT: 663}
    (tmp_path / results.NUDT).mkdir()
    (tmp_path / results.NUDT / "dnanet.json").write_text(json.dumps(card))
    lines = results.tables().splitlines()
    found = [line for line in lines if line.startswith(row)]
    assert len(found) == 1 and "| 0.4321 |" in found[0] and found[0].endswith("epochs; not in the zoo |")
    shipped = [line for line in lines if line.startswith(f"| `dnanet` | {results.NUAA} |  | ")]
    assert len(shipped) == 1 and "not in the zoo" not in shipped[0]


def test_the_commands_of_the_results_are_those_of_the_cards():
    """What is shipped as quantised keeps to the ceiling, by the recipe, that the page's command names."""
    row = next(row for row in results.ROWS if row.network == "resunet-spmix")
    options = dict(itertools.pairwise(row.commands[0].split()))
    card = zoo_card("resunet-spmix")
    bits = card["quantisation"]["precision"]["weight_bits_mean"]
    assert bits <= float(options["--max-weight-bits"]) < 32 / 13
    recipe, shipped = Recipe.find(options["--train"]).as_dict(), card["training"]["recipe"]
    assert recipe.pop("learning_rate") / 10 == pytest.approx(shipped["learning_rate"])
    assert f"--seed {shipped['seed']}" in row.commands[0] and recipe.pop("seed") is not None
    # Fields that recipes had not yet when it was trained have their defaults.
    assert {k: (Recipe("-", "-").as_dict() | shipped)[k] for k in recipe} == recipe


@pytest.mark.parametrize("command", dict.fromkeys(c for row in results.ROWS for c in row.commands))
def test_the_commands_of_the_results_are_complete(command, monkeypatch, tmp_path):
    """As far as they go without the data: recipes and options are right."""
    networks = [row.network for row in results.ROWS if command in row.commands]
    monkeypatch.chdir(tmp_path)
    for network in networks if "NETWORK" in command else networks[:1]:
        arguments = command.replace("NETWORK", network).replace("DATASET", "NUAA-SIRST").replace("cuda", "cpu").split()
        with pytest.raises((DataError, CheckpointError), match=r"[Nn]o such file"):
            cli.cli.main(arguments[1:], standalone_mode=False)
