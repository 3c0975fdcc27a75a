import json

from irstd_edge.data import Dataset
from irstd_edge.training.seen import count_seen, names_trained_on, training_recipe
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
    assert count_seen(recipe, root, Dataset(root, "A", "test")) == 0
    assert count_seen(recipe, root, Dataset(root, "A", "mixed")) == 1
    assert count_seen(recipe, root, Dataset(root, "A", "mixed"), ["5"]) == 0
    assert count_seen(recipe, root, Dataset(root, "B", "test")) == 0  # the same name in another set


def test_recipes_are_found_beside_weights_and_on_cards(tmp_path):
    recipe = {"dataset": "A", "validation": 0.1}
    write(tmp_path / "recipe.json", json.dumps(recipe))
    assert training_recipe("biisnet", tmp_path / "best.safetensors", "0") == recipe
    assert training_recipe("biisnet", tmp_path / "else.safetensors", "0") is None
    assert training_recipe("biisnet", tmp_path / "absent" / "best.safetensors", "0") is None
    card = zoo_card("biisnet")
    for checkpoint in (None, zoo_weights("biisnet")):
        found = training_recipe("biisnet", checkpoint, card["weights"]["sha256"])
        assert found["dataset"] == "NUAA-SIRST*3+NUDT-SIRST+IRSTD-1K" and found["validation"] == 0.04
    assert training_recipe("biisnet", None, "0") is None and training_recipe("dnanet", None, "0") is None
