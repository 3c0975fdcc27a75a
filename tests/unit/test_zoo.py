import json

import pytest

from irstd_edge.bundle import sha256
from irstd_edge.checkpoints import load_network
from irstd_edge.complexity import count_parameters
from irstd_edge.models.registry import MODELS, get_model
from irstd_edge.training.loop import TrainingError, train
from irstd_edge.training.recipe import Recipe
from irstd_edge.zoo import ZOO, zoo_card, zoo_weights
from irstd_edge.zoo.card import describe_run, main, publish, render


@pytest.fixture
def run(synthetic, tmp_path):
    recipe = Recipe("biisnet", "Synthetic", epochs=2, batch=4, crop=32, validation=0.2, validate_every=1)
    return train(recipe, synthetic, tmp_path / "run")


def test_a_run_becomes_weights_facts_and_a_card(run, synthetic, tmp_path, capsys):
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    card = describe_run(run, "biisnet", synthetic, note="Begun from nothing.")
    assert card["training"]["images"] == 8 and card["training"]["held_out"] == 2
    metrics = card["metrics"]["Synthetic"]
    assert metrics["protocol"] == "basicirstd" and metrics["images"] == metrics["targets"] == 10
    weights, facts, text = publish(card, run / "best.safetensors", zoo)
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


def test_an_unfinished_run_is_described_as_such(run, synthetic):
    record = json.loads((run / "recipe.json").read_text()) | {"epochs": 9, "validate_every": 2}
    (run / "recipe.json").write_text(json.dumps(record))
    with (run / "curves.csv").open("a") as file:
        file.write("3,0.5,1e-3,,,,,1.0\n")
    training = describe_run(run, "biisnet", synthetic, which="last")["training"]
    assert (training["epochs_done"], training["epoch_of_weights"], training["seconds"] >= 1) == (3, 2, True)


def test_wrong_runs_are_refused(run, synthetic, tmp_path):
    with pytest.raises(TrainingError, match="no folder of a training run"):
        describe_run(tmp_path / "absent", "biisnet", synthetic)
    with pytest.raises(TrainingError, match="trains biisnet, not biisnet-float"):
        describe_run(run, "biisnet-float", synthetic)
    (run / "last.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"no last\.safetensors"):
        describe_run(run, "biisnet", synthetic, which="last")


@pytest.mark.parametrize("name", MODELS)
def test_the_zoo_is_consistent(name):
    """Card, facts, weights and network of every network that has weights here agree."""
    weights, card = zoo_weights(name), zoo_card(name)
    assert (weights is None) == (card is None)
    if weights is None:
        pytest.skip(f"{name} has no weights in this release")
    assert card["weights"]["sha256"] == sha256(weights)
    assert (ZOO / f"{name}.md").read_text() == render(card)
    assert card["complexity"]["params"] == count_parameters(get_model(name).factory()).__dict__
    loaded = load_network(name)
    assert loaded.preprocessing.mean == card["normalisation"]["mean"] and loaded.checkpoint_sha256 == sha256(weights)
    assert card["source"] == get_model(name).source
