"""The commands ``data``, ``train`` and ``distill``."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path
from time import monotonic

import click
from rich.console import Console
from rich.table import Table

from irstd_edge.data import DATASETS, DataError, DatasetCheck, check_dataset
from irstd_edge.json_output import JsonFile, json_option
from irstd_edge.layouts import LAYOUTS

_PATH = click.Path(path_type=Path)
_SHOWN_PROBLEMS = 10
#: The picture of the curves is drawn again after so long, and at the end.
_CURVES_SECONDS = 60
#: Without a terminal an epoch is told of where none was for longer than this, or its accuracy is known.
_LINE_SECONDS = 60


@click.command(help="Show the public data sets, where to get them and how to lay them out; check a local copy.")
@click.option("--root", type=_PATH, help="Folder that holds the data sets' folders: check what is there.")
@json_option("the list and the checks")
def data(root: Path | None, json_file: JsonFile | None) -> None:
    console = Console()
    table = Table(title="Public data sets (none is part of this package)")
    for name in ("data set", "train", "test", "mean", "std"):
        table.add_column(name, justify="left" if name == "data set" else "right")
    for d in DATASETS.values():
        table.add_row(d.name, str(d.train), str(d.test), f"{d.normalisation.mean:.4f}", f"{d.normalisation.std:.4f}")
    console.print(table)
    for d in DATASETS.values():  # whole addresses, to click on or copy
        console.print(f"{d.name}: {d.source}", highlight=False, soft_wrap=True)
    console.print("Layout (BasicIRSTD): ROOT/NAME/images/X.png, ROOT/NAME/masks/X.png, "
                  "ROOT/NAME/img_idx/{train,test}_NAME.txt\nSplits: https://github.com/XinyiYing/BasicIRSTD. "
                  "Any folder of this layout can be used by its name.", highlight=False, soft_wrap=True)
    checks = [] if root is None else _checks(root)
    if json_file is not None:
        json_file.write({"public": [asdict(d) for d in DATASETS.values()], "checks": [asdict(c) for c in checks]})
    for check in checks:
        state = f"{len(check.problems)} problems" if check.problems else "ok"
        click.echo(f"{check.name}: train {check.train}, test {check.test}: {state}")
        for problem in check.problems[:_SHOWN_PROBLEMS]:
            click.echo(f"  {problem}")
        if len(check.problems) > _SHOWN_PROBLEMS:
            click.echo(f"  ... and {len(check.problems) - _SHOWN_PROBLEMS} more")
    if bad := [c.name for c in checks if c.problems]:
        raise DataError(f"{root}: problems in {', '.join(bad)}, listed above")


def _checks(root: Path) -> list[DatasetCheck]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    names = sorted(p.parent.name for p in root.glob("*/img_idx"))
    if not names:
        raise DataError(f"{root}: holds no data set; expected ROOT/NAME/img_idx/train_NAME.txt, "
                        f"with NAME one of {', '.join(DATASETS)} or your own")
    return [check_dataset(root, name) for name in names]


def _adding(*options):
    """A decorator that adds options to a command."""
    def decorate(command):
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


#: The options of every command that trains.
training_options = _adding(
    click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="To train on."),
    click.option("--precision", type=click.Choice(["fp32", "bf16"]),
                 help="Of training; default bf16 on CUDA, else fp32."),
    click.option("--threads", type=click.IntRange(1), help="CPU threads; default torch's own choice."),
    click.option("--compile", "compile_network", is_flag=True,
                 help="Train through torch.compile (needs a C++ compiler)."),
    click.option("--minutes", type=click.FloatRange(0), help="Stop then, resumable, at the end of an epoch."),
    click.option("--epochs", type=click.IntRange(1), help="Epochs in place of the recipe's."),
    click.option("--seed", "seeds", type=click.IntRange(0), multiple=True,
                 help="Seed in place of the recipe's; repeatable, each is a run."),
)
_run_options = _adding(
    click.option("--root", type=_PATH, required=True, help="Folder that holds the data sets' folders."),
    click.option("--out", type=_PATH, required=True, help="Folder of the run: weights, curves, state. Of several "
                                                          "runs: one folder each in it."),
    click.option("--resume", is_flag=True, help="Go on after the last saved state of the run in --out."),
    click.option("--dataset", metavar="NAME[:SPLIT][+...]", help="Data set in place of the recipe's."),
    training_options,
    click.option("--init", "initial", type=_PATH, help="Weights to start from."),
    click.option("--from-layout", type=click.Choice(list(LAYOUTS)),
                 help="Whose public checkpoint --init is: its keys are mapped onto the network here."),
    click.option("--new", multiple=True, metavar="KEYS",
                 help="Keys like this ('*.path.weight') may be absent from --init: those layers begin anew; "
                      "repeatable."),
    click.option("--allow-pickle", is_flag=True,
                 help="Let --init and a teacher's checkpoint be pickles, which can run code."),
)


@click.command(help="Train by RECIPES: TOML files, or names of shipped ones (biisnet-nuaa). Several, or several seeds, "
                    "are trained side by side in one process, a step of each in turn. Under torchrun one run is "
                    "shared by all processes.")
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@json_option("what came of the runs")
@_run_options
@click.option("--network", metavar="NAME|MODULE:FACTORY", help="Network in place of the recipe's.")
def train(recipes, network, **options) -> None:
    from irstd_edge.training.recipe import Recipe

    _train([(Path(name).stem, Recipe.find(name)) for name in recipes], network=network, **options)


@click.command(help="Train the network of RECIPE with a teacher's help. Options go before the recipe's table "
                    "[distill]; layers are named as in PyTorch's named_modules().")
@click.argument("recipe")
@json_option("what came of the run")
@_run_options
@click.option("--student", metavar="NAME|MODULE:FACTORY", help="Network in place of the recipe's.")
@click.option("--teacher", metavar="NAME|MODULE:FACTORY", help="The network to learn from.")
@click.option("--teacher-checkpoint", "checkpoint", metavar="FILE", help="Its weights; default those of the zoo.")
@click.option("--teacher-layout", type=click.Choice(list(LAYOUTS)),
              help="Whose public checkpoint that is: its keys are mapped onto the network here.")
@click.option("--features", multiple=True, metavar="TEACHER.LAYER=STUDENT.LAYER", help="A pair of layers; repeatable.")
@click.option("--method", type=click.Choice(["msa", "semantic"]),
              help="msa: feature maps, guided by spatial attention; semantic: tokens, through self-attention.")
@click.option("--weight", type=click.FloatRange(0), help="Norm of distillation's gradient over that of the loss.")
@click.option("--attention", type=click.FloatRange(0), help="Of msa: what the most salient place counts more.")
def distill(recipe, student, teacher, checkpoint, teacher_layout, features, method, weight, attention, **options
            ) -> None:
    from irstd_edge.training.recipe import Recipe, RecipeError

    settings = Recipe.find(recipe)
    table = {"teacher": teacher, "checkpoint": checkpoint, "from_layout": teacher_layout, "features": features,
             "method": method, "weight": weight, "attention": attention}
    table = {k: v for k, v in table.items() if v not in (None, ())}
    known = settings.as_dict().get("distill", {})
    if attention is not None and (method or known.get("method", "msa")) != "msa":
        raise click.UsageError("--attention would do nothing with --method semantic: it is of msa")
    if missing := [name for name in ("teacher", "features") if name not in known | table]:
        raise click.UsageError(f"{recipe} has no [distill] {' and '.join(missing)}: give "
                               + " and ".join(f"--{name}" for name in missing))
    if "teacher" in table and "checkpoint" not in table:
        known.pop("checkpoint", None)  # it belongs to the recipe's teacher
    if "teacher" in table or "checkpoint" in table:
        known.pop("from_layout", None)  # it belongs to the recipe's checkpoint
    try:
        settings = Recipe.from_dict(settings.as_dict() | {"distill": known | table})
    except RecipeError as e:
        raise click.UsageError(str(e)) from e
    _train([(Path(recipe).stem, settings)], network=student, **options)


def _train(recipes, root, out, resume, device, precision, threads, compile_network, minutes, dataset, epochs, seeds,
           initial, from_layout, new, allow_pickle, network, json_file) -> None:
    from dataclasses import replace

    from irstd_edge.checkpoints import initial_weights
    from irstd_edge.plots import require_matplotlib
    from irstd_edge.training.loop import Run, holds_run

    began = monotonic()
    given = {"network": network, "dataset": dataset, "epochs": epochs}
    given = {k: v for k, v in given.items() if v is not None}
    planned = plan_runs([(name, replace(r, **given)) for name, r in recipes], seeds, out)
    for option, value in (("--from-layout", from_layout), ("--new", new)):
        if value and not initial:
            raise click.UsageError(f"{option} is of the weights that --init names: give both")
    require_matplotlib()
    prepare_training(device, threads)
    cache: dict = {}
    # Of several runs some may not have begun: one of them failed then, or a seed is new.
    begun = [folder for *_, folder in planned if holds_run(folder)]

    def make(recipe, folder, own_device) -> Run:
        start = initial and initial_weights(recipe.network, initial, allow_pickle, from_layout, new)
        run = Run(recipe, root, folder, device=own_device, precision=precision, compile_network=compile_network,
                  resume=resume and (not begun or folder in begun), initial=start, allow_pickle=allow_pickle,
                  cache=cache)
        if run.taught_by and run.rank == 0:
            _warn_of_teacher(run, root)
        return run

    train_runs(planned, make, device, minutes, began, json_file)


def _warn_of_teacher(run, root: Path) -> None:
    """Say where a teacher has seen test images: through it the student does, too."""
    from irstd_edge.data import Dataset
    from irstd_edge.training.seen import count_seen

    for name in dict.fromkeys(reference.partition(":")[0] for reference in run.recipe.datasets):
        try:
            test = Dataset(root, name, "test")
        except DataError:
            continue
        if seen := count_seen(run.taught_by, root, test):
            click.echo(f"warning: the teacher {run.recipe.distill.teacher} was trained on {seen} of the {len(test)} "
                       f"images of the test split of {name}: no figure on that split will tell how the student does on "
                       "others; give --teacher-checkpoint of one that was not", err=True)


def plan_runs(recipes, seeds, out: Path) -> list[tuple]:
    """Name, recipe and folder of each run of recipes, given with their names: one for each seed.

    Of several runs each has a folder in ``out``. Raises :class:`click.UsageError` where two have one name.
    """
    from dataclasses import replace

    if seeds:
        recipes = [(f"{name}-seed{seed}" if len(seeds) > 1 else name, replace(r, seed=seed))
                   for name, r in recipes for seed in seeds]
    names = [name for name, _ in recipes]
    if twice := {name for name in names if names.count(name) > 1}:
        raise click.UsageError(f"{', '.join(sorted(twice))} is given twice: each run needs a name of its own")
    return [(name, r, out if len(recipes) == 1 else out / name) for name, r in recipes]


def prepare_training(device: str, threads: int | None) -> None:
    """Set torch up. Raises :class:`~irstd_edge.errors.MissingError` where the device is not there."""
    import torch

    from irstd_edge.errors import MissingError
    from irstd_edge.training.cpu import keep_freed_memory

    if device == "cuda" and not torch.cuda.is_available():
        raise MissingError("no CUDA device that this torch can use: train with --device cpu, or install a CUDA build "
                           "(https://pytorch.org/get-started)")
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    if device == "cpu":
        keep_freed_memory()


def train_runs(planned, make, device: str, minutes: float | None, began: float, json_file: JsonFile | None = None,
               facts: dict | None = None) -> None:
    """Train side by side what :func:`plan_runs` planned, show how far it is, draw the curves, name the weights.

    ``make`` makes the :class:`~irstd_edge.training.loop.Run` of a recipe, a folder and a device; ``minutes`` count from
    ``began``, of :func:`time.monotonic`; ``json_file`` takes ``facts`` and what came of the runs, of those that failed
    too. Raises what ``make`` raises, and once all other runs have ended
    :class:`~irstd_edge.training.loop.TrainingError`.
    """
    from irstd_edge.training.curves import plot_curves
    from irstd_edge.training.loop import TrainingError, train_side_by_side
    from irstd_edge.training.parallel import process_group, rank_and_size

    def draw(run) -> str | None:
        """Why there is no picture: no reason to stop a training."""
        try:
            plot_curves(run.out / "curves.csv", run.out / "curves.png")
        except (DataError, OSError) as e:
            return f"{run.out / 'curves.png'}: cannot be drawn ({e})"

    failed = None
    with process_group(device) as own_device:
        rank, size = rank_and_size()
        if size > 1 and len(planned) > 1:
            raise click.UsageError("torchrun shares one run among its processes: give one recipe and one seed")
        runs = [make(recipe, folder, own_device) for _, recipe, folder in planned]
        for (name, *_), run in zip(planned, runs, strict=True) if rank == 0 else ():
            click.echo(f"{name}: {run.recipe.network}, {len(run.indices)} images an epoch, epochs {run.epoch + 1} to "
                       f"{run.recipe.epochs}", err=True)
        with _progress(visible=rank == 0) as progress:
            tasks = {id(run): progress.add_task(name, total=run.recipe.epochs, completed=run.epoch, loss="")
                     for (name, *_), run in zip(planned, runs, strict=True)}
            drawn, told = dict.fromkeys(tasks, monotonic()), dict.fromkeys(tasks, -math.inf)

            def on_epoch(run, epoch) -> None:
                if rank:
                    return
                if monotonic() - drawn[id(run)] > _CURVES_SECONDS:
                    draw(run)
                    drawn[id(run)] = monotonic()
                task = tasks[id(run)]
                progress.update(task, completed=epoch.epoch, loss=f"loss {epoch.loss:.4f}")
                line = (f"{progress.tasks[task].description} epoch {epoch.epoch}/{run.recipe.epochs} "
                        f"loss {epoch.loss:.4f}")
                if a := epoch.accuracy:
                    line += f" IoU {a.iou:.3f} nIoU {a.niou:.3f} Pd {a.pd:.3f} Fa {a.fa * 1e6:.1f}e-6"
                # On a terminal above the bars, which would have no room for it; else where the output goes.
                if not progress.console.is_terminal:
                    if a or monotonic() - told[id(run)] > _LINE_SECONDS:
                        told[id(run)] = monotonic()
                        print(line, flush=True)
                elif a:
                    progress.console.print(line, highlight=False, soft_wrap=True)

            left = None if minutes is None else max(0, minutes - (monotonic() - began) / 60)
            try:
                train_side_by_side(runs, on_epoch=on_epoch, minutes=left)
            except TrainingError as e:
                failed = e
            except KeyboardInterrupt:
                progress.stop()
                for run in (run for run in runs if rank == 0 and not run.finished):
                    click.echo(f"{run.out}: stopped; its state after epoch {run.saved_epoch} of {run.recipe.epochs} is "
                               "saved: go on by --resume", err=True)
                raise
    results = []
    for (name, *_), run in zip(planned, runs, strict=True) if rank == 0 else ():
        if problem := draw(run):
            failed = failed or DataError(problem)
        results.append(_describe_run(name, run))
        state = "" if run.finished else f" (epoch {run.epoch} of {run.recipe.epochs}: go on by --resume)"
        click.echo(f"{results[-1]['weights'] or run.out}{state}")
    if json_file is not None and rank == 0:
        json_file.write({**(facts or {}), "runs": results})
    if failed:
        raise failed


def _describe_run(name: str, run) -> dict:
    """What came of a run: its weights, the best or, where none is held out, the last ones, and their accuracy there."""
    from irstd_edge.training.loop import read_curve

    weights = next((p for p in (run.out / f"{k}.safetensors" for k in ("best", "last")) if p.exists()), None)
    curve = read_curve(run.out / "curves.csv")
    best = max((row for row in curve if row["iou"]), key=lambda row: float(row["iou"]), default=None)
    held_out = best and {"epoch": int(best["epoch"])} | {k: float(best[k]) for k in ("iou", "niou", "pd", "fa")}
    return {"name": name, "folder": str(run.out), "weights": weights and str(weights), "network": run.recipe.network,
            "dataset": run.recipe.dataset, "seed": run.recipe.seed, "epochs": run.recipe.epochs,
            "epochs_done": run.epoch, "finished": run.finished, "loss": float(curve[-1]["loss"]) if curve else None,
            "held_out": held_out}


def _progress(visible: bool = True):
    from rich import progress as p

    # With a name as long as resunet-spmix-nuaa-seed1 they fit into 80 columns.
    columns = (p.TextColumn("{task.description}"), p.BarColumn(10), p.MofNCompleteColumn(),
               p.TextColumn("{task.fields[loss]}"), p.TimeElapsedColumn(), p.TextColumn("ETA"),
               p.TimeRemainingColumn())
    # The estimate looks back over 10 minutes: a validation every few epochs does not make it jump.
    return p.Progress(*columns, console=Console(file=sys.stderr), speed_estimate_period=600,
                      disable=not visible)
