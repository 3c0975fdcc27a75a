import io
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from irstd_edge import cli, errors
from irstd_edge.bundle import sha256
from irstd_edge.checkpoints import save_weights
from irstd_edge.complexity import measure_complexity
from irstd_edge.data import DATASETS
from irstd_edge.models.cli import describe_models
from irstd_edge.models.registry import MODELS, get_model
from irstd_edge.training.cli import _describe_run, _progress
from irstd_edge.training.loop import read_curve
from irstd_edge.training.recipe import Recipe
from irstd_edge.zoo import zoo_names, zoo_weights


def test_help_lists_every_command_without_heavy_imports(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)
    code = "import sys, irstd_edge.cli as c; c.main(['--help']); " \
           "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'rich', 'onnx')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("command", ["models", "data", "train", "distill", "quantize"])
def test_the_commands_of_this_floor_have_help(command, capsys):
    assert find_spec(cli.COMMANDS[command][0].split(":")[0])
    assert cli.main([command, "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, code", [
    (["nothing"], errors.USAGE),
    (["train"], errors.USAGE),
    (["train", "biisnet-nuaa", "--root", "absent", "--out", "run", "--device", "tpu"], errors.USAGE),
    (["train", "absent", "--root", "absent", "--out", "run"], errors.USAGE),
    (["train", "biisnet-nuaa", "--root", "absent", "--out", "run"], errors.USAGE),
    (["train", "biisnet-nuaa", "--root", "absent", "--out", "run", "--init", "absent"], errors.USAGE),
    (["train", "biisnet-nuaa", "--root", "absent", "--out", "run", "--new", "*.path.weight"], errors.USAGE),
    (["data", "--root", "absent"], errors.USAGE),
])
def test_wrong_calls_end_in_a_message_and_leave_nothing(tmp_path, monkeypatch, capsys, arguments, code):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == code
    assert capsys.readouterr().err.strip()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error, code", [
    (errors.UnsupportedError, 3), (errors.ParityError, 4), (errors.MissingError, 5), (ValueError, 2), (OSError, 2)])
def test_errors_become_one_line_and_their_exit_code(monkeypatch, capsys, error, code):
    def fail(*args, **kwargs):
        raise error("what and the way out")

    monkeypatch.setattr(cli.cli, "main", fail)
    assert cli.main([]) == code
    assert capsys.readouterr().err == "irstd-edge: what and the way out\n"


def test_models(tmp_path, capsys):
    assert cli.main(["models", "--json", str(tmp_path / "models.json")]) == 0
    out = capsys.readouterr().out
    entries = json.loads((tmp_path / "models.json").read_text())
    assert [e["name"] for e in entries] == list(MODELS)
    for entry in entries:
        assert entry["params"].keys() == {"raw", "binary_div32_plus_conv", "binary_div32_plus_all"}
        assert {"macs", "bops", "ops", "summary", "source", "family", "teacher", "weights"} <= entry.keys()
        assert all(f"{v:,}" in out for v in entry["params"].values())
        assert [w["name"] for w in entry["weights"]] == zoo_names(entry["name"])
        for weights in entry["weights"]:
            size = zoo_weights(weights["name"]).stat().st_size
            assert weights["bytes"] == size and f"weights {weights['name']}, {size / 1e6:.2f} MB" in out
            assert all(f"{name} ({m['protocol']}): IoU {m['iou']:.4f}" in out for name, m in weights["metrics"].items())


def test_models_counts_without_computing_what_a_real_network_counts():
    entry = next(e for e in describe_models() if e["name"] == "biisnet")
    assert entry | measure_complexity(get_model("biisnet").factory()).as_dict() == entry


def test_models_to_a_place_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main(["models", "--json", str(tmp_path / "file" / "models.json")]) == errors.USAGE
    assert "cannot be written" in capsys.readouterr().err
    assert cli.main(["models", "--json", str(tmp_path)]) == errors.USAGE
    assert "name a file" in capsys.readouterr().err


def test_data(synthetic, capsys):
    assert cli.main(["data"]) == 0
    out = re.sub(r"[\s│]", "", capsys.readouterr().out)
    for info in DATASETS.values():
        assert info.name in out and info.source in out
    assert cli.main(["data", "--root", str(synthetic)]) == 0
    assert "Synthetic: train 10, test 10: ok" in capsys.readouterr().out
    (synthetic / "Synthetic" / "masks" / "3.png").unlink()
    assert cli.main(["data", "--root", str(synthetic)]) == errors.USAGE
    captured = capsys.readouterr()
    assert "masks/3.png: no such file" in captured.out and "problems in Synthetic" in captured.err
    assert cli.main(["data", "--root", str(synthetic), "--json", "-"]) == errors.USAGE
    found = json.loads(capsys.readouterr().out)
    assert [d["name"] for d in found["public"]] == list(DATASETS)
    assert found["checks"][0]["name"] == "Synthetic" and "masks/3.png" in found["checks"][0]["problems"][0]


RECIPE = """network = "biisnet"
dataset = "Synthetic"
epochs = 9
batch = 5
crop = 32
validate_every = 1
validation = 0.2
"""


def test_train_then_resume_then_refuse(synthetic, tmp_path, capsys):
    recipe, out = tmp_path / "tiny.toml", tmp_path / "run"
    recipe.write_text(RECIPE)
    call = ["train", str(recipe), "--root", str(synthetic), "--out", str(out), "--epochs", "1", "--threads", "1"]
    assert cli.main(call) == 0
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr()
    assert "epoch 1/1" in told.out and "images an epoch, epochs 1 to 1" in told.err
    assert cli.main(call) == errors.USAGE
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*call, "--resume"]) == 0
    again = [*call[:5], str(tmp_path / "again"), *call[6:], "--init", str(out / "last.safetensors")]
    assert cli.main(again) == 0


def test_an_interrupted_training_says_from_where_it_goes_on(synthetic, tmp_path, capsys, monkeypatch):
    recipe, out = tmp_path / "tiny.toml", tmp_path / "run"
    recipe.write_text(RECIPE.replace("validate_every = 1", "validate_every = 2"))
    call = ["train", str(recipe), "--root", str(synthetic), "--out", str(out), "--epochs", "5", "--threads", "1"]
    steps = []

    def interrupt(network):
        steps.append(network)
        if len(steps) == 4:  # one of each epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("irstd_edge.training.loop.clip_latent_weights", interrupt)
        assert cli.main(call) == 130
    assert f"{out}: stopped; its state after epoch 2 of 5 is saved: go on by --resume" in capsys.readouterr().err
    assert cli.main([*call, "--resume"]) == 0
    assert [row["epoch"] for row in read_curve(out / "curves.csv")] == ["1", "2", "3", "4", "5"]


def test_of_several_runs_those_that_could_not_begin_begin_when_the_others_go_on(synthetic, tmp_path, capsys):
    good, other = (tmp_path / f"{name}.toml" for name in ("good", "other"))
    good.write_text(RECIPE)
    other.write_text(RECIPE.replace("crop = 32", "crop = 33"))
    call = ["train", str(good), str(other), "--root", str(synthetic), "--out", str(tmp_path / "runs"), "--epochs", "1"]
    assert cli.main(call) == 3 and (tmp_path / "runs" / "good" / "resume.pt").exists()
    other.write_text(RECIPE)
    assert cli.main(call) == 2
    assert "good holds a run already: go on with it by --resume" in capsys.readouterr().err
    assert cli.main([*call, "--resume"]) == 0
    for name in ("good", "other"):
        assert len(read_curve(tmp_path / "runs" / name / "curves.csv")) == 1
    call[call.index("--out") + 1] = str(tmp_path / "none")
    assert cli.main([*call, "--resume"]) == 2
    assert "holds no run to go on with: leave out --resume" in capsys.readouterr().err


def test_progress_fits_into_a_terminal_of_80_columns():
    with Progress(*_progress().columns, console=Console(width=80, force_terminal=True, file=io.StringIO())) as progress:
        progress.add_task("resunet-spmix-nuaa-seed1", total=400, completed=123, loss="loss 0.1234")
    shown = progress.console.file.getvalue()
    assert "resunet-spmix-nuaa-seed1" in shown and "123/400" in shown and "loss 0.1234" in shown and "ETA" in shown
    assert "…" not in shown


def test_several_recipes_and_seeds_train_side_by_side(synthetic, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(RECIPE)
    out = tmp_path / "runs"
    call = ["train", str(tmp_path / "a.toml"), str(tmp_path / "b.toml"), "--root", str(synthetic), "--out", str(out),
            "--epochs", "2", "--seed", "1", "--seed", "2"]
    assert cli.main([*call, "--minutes", "0"]) == 0
    assert {p.name for p in out.iterdir()} == {"a-seed1", "a-seed2", "b-seed1", "b-seed2"}
    assert "epoch 1 of 2: go on by --resume" in capsys.readouterr().out
    assert json.loads((out / "b-seed2" / "recipe.json").read_text())["seed"] == 2
    capsys.readouterr()
    assert cli.main([*call, "--resume", "--json", "-"]) == 0
    shown = capsys.readouterr()
    runs = json.loads(shown.out)["runs"]
    assert [(r["name"], r["seed"], r["epochs_done"], r["finished"]) for r in runs] == [
        (f"{name}-seed{seed}", seed, 2, True) for name in "ab" for seed in (1, 2)]
    assert all(r["weights"] == f"{r['folder']}/best.safetensors" and r["weights"] in shown.err for r in runs)
    curve = read_curve(out / "b-seed2" / "curves.csv")
    assert runs[3]["loss"] == float(curve[-1]["loss"])
    same = [(out / run / "last.safetensors").read_bytes() for run in ("a-seed1", "b-seed1", "a-seed2")]
    assert same[0] == same[1] != same[2]
    assert cli.main(["train", str(tmp_path / "a.toml"), str(tmp_path / "a.toml"), *call[3:7]]) == errors.USAGE
    assert "a is given twice" in capsys.readouterr().err


def test_the_accuracy_told_is_that_of_the_weights(synthetic, tmp_path):
    (tmp_path / "a.toml").write_text(RECIPE)
    call = ["train", str(tmp_path / "a.toml"), "--root", str(synthetic), "--out", str(tmp_path / "run"),
            "--json", str(tmp_path / "a.json")]
    assert cli.main([*call, "--minutes", "0"]) == 0
    curve = tmp_path / "run" / "curves.csv"
    head, row = curve.read_text().splitlines()
    columns = dict(zip(head.split(","), row.split(","), strict=True))
    rows = [columns | {"epoch": str(epoch), "iou": iou} for epoch, iou in enumerate(("0.25", "0.5", "0.125"), 1)]
    run = SimpleNamespace(out=tmp_path / "run", recipe=Recipe.find(str(tmp_path / "a.toml")), epoch=3, finished=False)
    curve.write_text("\n".join([head, *(",".join(r.values()) for r in rows)]) + "\n")
    told = _describe_run("a", run)
    assert told["weights"].endswith("best.safetensors") and told["epochs_done"] == 3
    assert (told["held_out"]["epoch"], told["held_out"]["iou"]) == (2, 0.5)
    assert json.loads((tmp_path / "a.json").read_text())["runs"][0]["held_out"]["epoch"] == 1


def test_distill(synthetic, tmp_path, capsys):
    recipe, out = tmp_path / "tiny.toml", tmp_path / "run"
    recipe.write_text(RECIPE)
    call = ["distill", str(recipe), "--root", str(synthetic), "--out", str(out), "--epochs", "1"]
    assert cli.main(call) == errors.USAGE
    assert "give --teacher and --features" in capsys.readouterr().err
    assert cli.main([*call, "--teacher", "biisnet", "--features", "encoder1"]) == errors.USAGE
    assert "distill: features must be teacher.layer=student.layer" in capsys.readouterr().err
    assert cli.main([*call, "--teacher", "biisnet", "--features", "encoder1=encodr1"]) == errors.USAGE
    assert "the student has no layer 'encodr1'; nearest: encoder1" in capsys.readouterr().err
    assert cli.main([*call, "--teacher", "biisnet", "--features", "encoder1=encoder1", "--method", "semantic",
                     "--attention", "2"]) == errors.USAGE
    assert "--attention would do nothing with --method semantic" in capsys.readouterr().err
    with recipe.open("a") as file:
        file.write('[distill]\nteacher = "biisnet"\nfeatures = ["bottleneck=bottleneck"]\n')
    assert cli.main([*call, "--student", "biisnet-float", "--features", "encoder1=encoder1", "--method", "semantic",
                     "--weight", "0.5"]) == 0
    record = json.loads((out / "recipe.json").read_text())
    assert record["network"] == "biisnet-float" and record["distill"] == {
        "teacher": "biisnet", "features": ["encoder1=encoder1"], "method": "semantic", "checkpoint": "",
        "from_layout": "", "weight": 0.5, "attention": 1.0}


def test_a_teacher_that_knows_the_test_images_is_told_of(synthetic, tmp_path, capsys):
    recipe, index = tmp_path / "tiny.toml", synthetic / "Synthetic" / "img_idx"
    recipe.write_text(RECIPE.replace("biisnet", "biisnet-float"))
    (index / "mixed.txt").write_text("0\n1\n2\n3\n10\n11\n12\n13\n")
    call = ["--root", str(synthetic), "--epochs", "1", "--out"]
    for name, dataset, told in (("mixed", "Synthetic:mixed", True), ("train", "Synthetic", False)):
        teacher = tmp_path / name
        assert cli.main(["train", str(recipe), "--dataset", dataset, *call, str(teacher)]) == 0
        assert cli.main(["distill", str(recipe), *call, str(tmp_path / f"of {name}"), "--teacher", "biisnet-float",
                         "--teacher-checkpoint", str(teacher / "best.safetensors"),
                         "--features", "encoder1=encoder1"]) == 0
        # Every fifth of eight is held out of the teacher's training.
        warning = "was trained on 3 of the 10 images of the test split of Synthetic" if told else "warning"
        assert (warning in capsys.readouterr().err) == told


def test_a_public_checkpoint_teaches(synthetic, tmp_path, capsys):
    """BasicIRSTD's files hold the keys of our resunet-basicirstd, under ``state_dict`` and behind ``model.``."""
    recipe, public, own = tmp_path / "tiny.toml", tmp_path / "public.pth.tar", tmp_path / "own.safetensors"
    network = get_model("resunet-basicirstd").factory()
    torch.save({"state_dict": {f"model.{k}": v for k, v in network.state_dict().items()}}, public)
    save_weights(network, own)
    recipe.write_text(RECIPE)

    def distill(*arguments):
        return cli.main(["distill", str(recipe), "--root", str(synthetic), "--out", str(tmp_path / "run"), "--epochs",
                         "1", "--student", "biisnet-float", *map(str, arguments)])

    teacher = ["--teacher", "resunet-basicirstd", "--features", "conv0_0=encoder1", "--teacher-layout", "basicirstd"]
    for arguments, message in (
        (teacher, "from_layout basicirstd says how to read a checkpoint of the teacher: give checkpoint "
                  "(--teacher-checkpoint) too"),
        ([*teacher[:-1], "larq", "--teacher-checkpoint", public], "Invalid value for '--teacher-layout': 'larq'"),
        ([*teacher, "--teacher-checkpoint", public], "pickled checkpoint refused"),
        ([*teacher[:-1], "mshnet", "--teacher-checkpoint", public, "--allow-pickle"],
         "the teacher: checkpoints of github.com/Lliu666/MSHNet hold mshnet, not resunet-basicirstd"),
    ):
        assert distill(*arguments) == errors.USAGE
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "run").exists()
    assert distill(*teacher, "--teacher-checkpoint", public, "--allow-pickle") == 0
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert record["distill"]["from_layout"] == "basicirstd" and record["teacher"]["sha256"] == sha256(public)
    # A layout is of the checkpoint that it stands with: a teacher or a checkpoint from the command line has none.
    recipe.write_text(f'{RECIPE}[distill]\nteacher = "resunet-basicirstd"\nfeatures = ["conv0_0=encoder1"]\n'
                      f'checkpoint = "{public}"\nfrom_layout = "basicirstd"\n')
    for name, given in (("own", ["--teacher-checkpoint", own]), ("zoo", ["--teacher", "resunet"]), ("recipe", [])):
        assert distill("--out", tmp_path / name, "--allow-pickle", *given) == 0
        record = json.loads((tmp_path / name / "recipe.json").read_text())
        assert record["distill"]["from_layout"] == ("basicirstd" if name == "recipe" else "")


def test_of_several_runs_all_are_drawn_and_named_though_one_fails(synthetic, tmp_path, capsys):
    (tmp_path / "good.toml").write_text(RECIPE)
    (tmp_path / "bad.toml").write_text(RECIPE + "learning_rate = 1e30\n")
    recipes = [str(tmp_path / f"{name}.toml") for name in ("bad", "good")]
    out = tmp_path / "runs"
    assert cli.main(["train", *recipes, "--network", "biisnet-float", "--root", str(synthetic), "--out", str(out),
                     "--epochs", "2", "--json", str(tmp_path / "runs.json")]) == errors.USAGE
    bad, good = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert bad["weights"] is None and bad["held_out"] is None and not bad["finished"] and good["finished"]
    shown = capsys.readouterr()
    last = shown.err.splitlines()[-1]
    assert last.startswith(f"irstd-edge: 1 of 2 runs failed: {out / 'bad'}: the network returns NaN or infinity")
    assert last.endswith("if it diverged in epoch 1, lower learning_rate in the recipe")
    assert str(out / "good" / "best.safetensors") in shown.out and "go on by --resume" in shown.out
    assert (out / "good" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_drawn_stops_no_training(synthetic, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("irstd_edge.training.cli._CURVES_SECONDS", -1)
    (tmp_path / "a.toml").write_text(RECIPE)
    (tmp_path / "run" / "curves.png").mkdir(parents=True)
    assert cli.main(["train", str(tmp_path / "a.toml"), "--root", str(synthetic), "--out", str(tmp_path / "run"),
                     "--epochs", "2"]) == errors.USAGE
    shown = capsys.readouterr()
    assert "curves.png: cannot be drawn" in shown.err and str(tmp_path / "run" / "best.safetensors") in shown.out
