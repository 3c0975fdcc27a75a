import json

from irstd_edge import zoo
from irstd_edge.data import Dataset
from irstd_edge.training.seen import count_seen, earlier_trainings, names_trained_on, training_recipes
from irstd_edge.zoo import zoo_card, zoo_weights


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def data(root):
    """Set A: 0 to 4 to train, 5 and 6 to test, 4 and 5 mixed; set B: x and y to train."""
    write(root / "A/img_idx/train_A.txt", "0\n1\n2\n3\n4\n")
    write(root / "A/img_idx/test_A.txt", "5\n6\n")
    write(root / "A/img_idx/mixed.txt", "4\n5\n")
    write(root / "B/img_idx/train_B.txt", "x\ny\n")
    write(root / "B/img_idx/test_B.txt", "0\n")
    return root


def test_names_are_those_of_the_training_split_less_the_held_out(tmp_path):
    root, every = data(tmp_path), {"0", "1", "2", "3", "4"}
    assert names_trained_on({"dataset": "A", "validation": 0.0}, root, "A") == every
    assert names_trained_on({"dataset": "A", "validation": 0.2}, root, "A") == every - {"4"}
    assert names_trained_on({"dataset": "A:mixed", "validation": 0.0}, root, "A") == {"4", "5"}
    # Held out is every third of 0 1 2 3 4 x y.
    joined = {"dataset": "A*2+B", "validation": 1 / 3}
    assert names_trained_on(joined, root, "A") == every - {"2"}
    assert names_trained_on(joined, root, "B") == {"y"}
    assert names_trained_on(joined, root, "C") == set()


def test_a_set_that_is_not_there_is_passed_over(tmp_path):
    root = data(tmp_path)
    # What was held out is unknown then.
    assert names_trained_on({"dataset": "A+C", "validation": 0.2}, root, "A") == {"0", "1", "2", "3", "4"}
    assert names_trained_on({"dataset": "C", "validation": 0.2}, root, "A") == set()


def test_counts_of_a_split(tmp_path):
    root, recipe = data(tmp_path), {"dataset": "A", "validation": 0.0}
    assert count_seen([recipe], root, Dataset(root, "A", "test")) == 0
    assert count_seen([recipe], root, Dataset(root, "A", "mixed")) == 1
    assert count_seen([recipe], root, Dataset(root, "A", "mixed"), ["5"]) == 0
    assert count_seen([recipe], root, Dataset(root, "B", "test")) == 0  # the same name in another set
    assert count_seen([{"dataset": "B", "validation": 0}, recipe], root, Dataset(root, "A", "mixed")) == 1
    assert count_seen([], root, Dataset(root, "A", "mixed")) is None


def test_recipes_are_found_beside_weights_and_on_cards(tmp_path):
    recipe = {"dataset": "A", "validation": 0.1}
    write(tmp_path / "recipe.json", json.dumps(recipe))
    assert training_recipes(tmp_path / "best.safetensors", "0") == [recipe]
    assert training_recipes(tmp_path / "else.safetensors", "0") == []
    assert training_recipes(tmp_path / "absent" / "best.safetensors", "0") == []
    card = zoo_card("biisnet")
    for checkpoint in (None, zoo_weights("biisnet")):
        found = training_recipes(checkpoint, card["weights"]["sha256"])
        assert found[0]["dataset"] == "NUAA-SIRST*3+NUDT-SIRST+IRSTD-1K" and found[0]["validation"] == 0.04
    assert training_recipes(None, "0") == training_recipes(None, None) == []


def test_recipes_of_earlier_stages_are_those_of_the_weights_they_left(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "ZOO", tmp_path)
    for digest, dataset, initial in (("1", "A", None), ("2", "B", {"sha256": "1"}), ("3", "C", {"sha256": "other"})):
        write(tmp_path / f"n@{dataset}.json", json.dumps({"weights": {"sha256": digest}, "training": {
            "recipe": {"dataset": dataset, "validation": 0.0}, "initial": initial}}))
    write(tmp_path / "n.json", json.dumps({"weights": {"sha256": "4"}, "training": None}))

    def sets(recipes):
        return [recipe["dataset"] for recipe in recipes]

    assert sets(training_recipes(None, "2")) == ["B", "A"]
    assert sets(training_recipes(None, "3")) == ["C"] and training_recipes(None, "4") == []
    write(tmp_path / "run" / "recipe.json", json.dumps(
        {"dataset": "D", "validation": 0.0, "initial": {"sha256": "2"}}))
    assert sets(training_recipes(tmp_path / "run" / "last.safetensors", None)) == ["D", "B", "A"]
    # A network that was quantised; a student; and records that tell it all themselves.
    write(tmp_path / "low" / "quantisation.json", json.dumps({"checkpoint_sha256": "2", "images": []}))
    assert sets(training_recipes(tmp_path / "low" / "quantised.safetensors", None)) == ["B", "A"]
    write(tmp_path / "run" / "recipe.json", json.dumps(
        {"dataset": "E", "validation": 0.0, "initial": None, "teacher": {"sha256": "1"}}))
    assert sets(training_recipes(tmp_path / "run" / "last.safetensors", None)) == ["E", "A"]
    write(tmp_path / "run" / "recipe.json", json.dumps(
        {"dataset": "F", "validation": 0.0, "initial": {"sha256": "2"}, "earlier": [{"dataset": "G"}]}))
    assert sets(training_recipes(tmp_path / "run" / "last.safetensors", None)) == ["F", "G"]


def test_of_earlier_trainings_a_record_keeps_what_tells_their_images_once():
    first = {"network": "n", "dataset": "A", "validation": 0.1, "epochs": 3, "seed": 1}
    kept = {"network": "n", "dataset": "A", "validation": 0.1}
    assert earlier_trainings([first, first | {"seed": 2}, kept | {"dataset": "B"}]) == [kept, kept | {"dataset": "B"}]
