"""The command ``quantize``."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic

import click
from click.core import ParameterSource

from irstd_edge import terminal
from irstd_edge.json_output import json_option
from irstd_edge.layouts import LAYOUTS
from irstd_edge.training.cli import plan_runs, prepare_training, train_runs, training_options

_PATH = click.Path(path_type=Path)
#: Those of quantisation.py, which imports torch: --help is not to wait for that.
_METHODS = ("mse", "minmax", "percentile")
#: Calls in which some options would do nothing, why and the way out, the parameters of these options.
_IDLE = (
    (lambda call: call["resume"],
     "with --resume: that belongs to the quantising already done in --out; leave it out, or name another --out",
     ("checkpoint", "from_layout", "mean", "std", "calibrate", "images", "held_out", "method", "percentile", "bits",
      "table_file", "spm", "edges", "layers", "max_weight_bits", "max_activation_bits", "sensitivity", "candidates",
      "max_drop", "keep")),
    (lambda call: not call["recipe"], "without training: give --train RECIPE",
     ("learning_rate", "device", "precision", "compile_network", "minutes", "epochs", "seeds")),
    (lambda call: not call["spm"], "without a search of bits: give --spm", ("max_weight_bits", "max_activation_bits")),
    (lambda call: not (call["spm"] or call["sensitivity"]), "where no block is measured: give --sensitivity or --spm",
     ("candidates",)),
    (lambda call: call["max_drop"] is None, "without a floor: give --max-drop IOU", ("keep",)),
    (lambda call: call["method"] != "percentile", "with another method: give --method percentile", ("percentile",)),
    (lambda call: call["table_file"], "with --table, which has the edges too: give --layer", ("edges",)),
    (lambda call: not call["dataset"], "without a data set: give --dataset NAME and --root FOLDER", ("held_out",)),
)


@click.command(help="""Quantise NETWORK: a name of `irstd-edge models`, or a label for --model.

By default to 8 bits, calibrated on images, without training. --bits 3 takes other bits, --table a file of bits by
layer, --spm searches a symmetric progressive assignment under ceilings of mean bits. --train goes on with training in
low bits from there.""")
@click.argument("network", required=False)
@click.option("--out", type=_PATH, required=True, help="Folder of the results.")
@click.option("--checkpoint", type=_PATH, help="Weights of the float network; default those that come with it.")
@click.option("--model", metavar="PACKAGE.MODULE:FACTORY", help="A network of your own.")
@click.option("--from-layout", type=click.Choice(list(LAYOUTS)),
              help="Whose public checkpoint it is: its keys are mapped onto the network here.")
@click.option("--allow-pickle", is_flag=True,
              help="Let the checkpoint, and that of a recipe's teacher, be pickles, which can run code.")
@click.option("--mean", type=float, help="Mean of the training images on the 0..255 scale.")
@click.option("--std", type=float, help="Their standard deviation on the 0..255 scale.")
@click.option("--calibrate", type=_PATH, help="Folder of images to calibrate on; default the data set's.")
@click.option("--dataset", help="Name of a data set's folder: calibrates on its training split, of which --held-out "
              "images are measured on.")
@click.option("--root", type=_PATH, help="The folder that holds the data set's folder.")
@click.option("--images", type=click.IntRange(1), default=32, show_default=True, help="Images to calibrate on.")
@click.option("--held-out", type=click.FloatRange(0, 0.5, min_open=True), metavar="SHARE", default=0.1,
              show_default=True, help="Share of the training split that is not calibrated on, to measure on.")
@click.option("--method", type=click.Choice(_METHODS), default="mse", show_default=True, help="How steps are found.")
@click.option("--percentile", type=click.FloatRange(50, 100), default=99.99, show_default=True,
              help="Share of the magnitudes that --method percentile keeps.")
@click.option("--bits", metavar="W[,A]", help="Bits of weights and activations of all layers; default 8.")
@click.option("--table", "table_file", type=_PATH, help="TOML or JSON file of bits by layer.")
@click.option("--spm", is_flag=True, help="Search a symmetric progressive assignment of bits.")
@click.option("--edges", metavar="W[,A]|float", default="8", show_default=True,
              help="Bits of the layers at the image and at the output; not with --table.")
@click.option("--layer", "layers", multiple=True, metavar="PATTERN=W[,A]|float",
              help="Bits of the layers that a pattern matches (repeatable).")
@click.option("--max-weight-bits", type=float, default=2.42, show_default=True, help="Of --spm: mean over all weights.")
@click.option("--max-activation-bits", type=float, default=3.82, show_default=True,
              help="Of --spm: mean over all elements of layers' inputs.")
@click.option("--sensitivity", is_flag=True, help="Round one block at a time and measure; --spm does it too.")
@click.option("--candidates", default="2,3,4,5,6,8", show_default=True, help="Bits to measure, and to search among.")
@click.option("--max-drop", type=click.FloatRange(0, 1), metavar="IOU",
              help="Keep the most sensitive layers precise until the IoU has dropped by no more than this.")
@click.option("--keep", metavar="W[,A]|float", default="float", show_default=True, help="Precision of --max-drop.")
@click.option("--train", "recipe", metavar="RECIPE", help="Train on by this recipe of the float network.")
@click.option("--learning-rate", type=float, help="Default a tenth of the recipe's.")
@click.option("--resume", is_flag=True,
              help="Go on in --out: with the training there, or train what lies quantised there; its bits stay.")
@training_options
@json_option("the calibration manifest and what came of training")
def quantize(network, out, checkpoint, model, from_layout, allow_pickle, mean, std, calibrate, dataset, root, images,
             held_out, method, percentile, bits, table_file, spm, edges, layers, max_weight_bits, max_activation_bits,
             sensitivity, candidates, max_drop, keep, recipe, epochs, minutes, learning_rate, resume, device, precision,
             compile_network, threads, seeds, json_file) -> None:
    began = monotonic()
    _refuse_idle(click.get_current_context())
    if sum(map(bool, (bits, table_file, spm))) > 1:
        raise click.UsageError("--bits, --table and --spm exclude each other")
    if (dataset is None) != (root is None) and not (resume and root):
        raise click.UsageError("--dataset and --root go together")
    if resume and not recipe:
        raise click.UsageError("--resume goes on with training: give --train RECIPE too")
    if recipe and root is None:
        raise click.UsageError("--train needs --root, and --dataset to measure on")
    if not resume and calibrate is None and dataset is None:
        raise click.UsageError("give images to calibrate on: --calibrate FOLDER, or --dataset NAME --root FOLDER")
    if (spm or sensitivity or max_drop is not None) and dataset is None:
        raise click.UsageError("--spm, --sensitivity and --max-drop measure on held-out images with masks: "
                               "give --dataset and --root")
    from irstd_edge.checkpoints import load_network
    from irstd_edge.plots import require_matplotlib
    from irstd_edge.training.bits import parse_bits
    from irstd_edge.training.loop import check_folder
    from irstd_edge.training.parallel import launched_processes
    from irstd_edge.training.seen import training_recipes
    from irstd_edge.zoo import network_of

    if launched_processes() > 1 and not resume:
        raise click.UsageError("torchrun shares the training alone: quantise in one process, without --train, then "
                               "train in its --out under torchrun by --train RECIPE --resume")
    default = parse_bits(bits or "8", "--bits")
    factory = _quantised_factory(out, network, model) if resume else model or (network and network_of(network))
    planned = []
    if recipe:
        planned = plan_runs([(Path(recipe).stem, _recipe(recipe, factory, dataset, epochs, learning_rate))], seeds, out)
    if recipe or spm or sensitivity:
        require_matplotlib()
    prepare_training(device, threads)
    if not resume:
        for folder in (out, *out.glob("*/")):  # runs of several seeds began from what lies in --out
            check_folder(folder, resume=False)
        source = load_network(network, checkpoint=checkpoint, model=model, allow_pickle=allow_pickle, mean=mean,
                              std=std, from_layout=from_layout)
        trained_by = training_recipes(checkpoint, source.checkpoint_sha256)
        _quantise(source, trained_by, out, calibrate, dataset, root, images, held_out, method, percentile, default,
                  table_file, spm, edges, layers, max_weight_bits, max_activation_bits, sensitivity, candidates,
                  max_drop, keep)
    if recipe:
        _train(planned, factory, root, out, device, precision, compile_network, minutes, began, json_file, allow_pickle)
    elif json_file is not None:
        json_file.write(_manifest(out))


def _refuse_idle(context: click.Context) -> None:
    """Raise :class:`click.UsageError` where options on the command line would do nothing."""
    options = {p.name: p.opts[0] for p in context.command.params}
    for applies, reason, names in _IDLE:
        given = [options[name] for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        if given and applies(context.params):
            raise click.UsageError(f"{', '.join(given)} would do nothing {reason}")


def _quantised_factory(out: Path, network: str | None, model: str | None) -> str:
    """What builds the float network whose quantised form lies in a folder; NETWORK and --model may tell no other."""
    from irstd_edge.training.loop import TrainingError

    try:
        manifest = _manifest(out)
        factory, name = manifest["factory"], manifest["network"]
    except (OSError, ValueError, KeyError) as e:
        raise TrainingError(f"{out} holds no quantised network to go on with: leave out --resume to begin one there"
                            ) from e
    for given, what, known in ((network, "NETWORK", (name, factory)), (model, "--model", (factory,))):
        if given is not None and given not in known:
            raise click.UsageError(f"{out} holds {' or '.join(dict.fromkeys(known))} quantised, not {given}: leave out "
                                   f"{what}, which --resume knows, or name another --out")
    return factory


def _manifest(out: Path) -> dict:
    from irstd_edge.training.quantisation import MANIFEST

    return json.loads((out / MANIFEST).read_text())


def _recipe(reference: str, factory: str | None, dataset: str | None, epochs: int | None, learning_rate: float | None):
    from irstd_edge.training.recipe import Recipe

    recipe = Recipe.find(reference)
    rate = learning_rate if learning_rate is not None else recipe.learning_rate / 10
    return replace(recipe, network=factory or recipe.network, dataset=dataset or recipe.dataset,
                   epochs=epochs or recipe.epochs, learning_rate=rate,
                   final_learning_rate=min(recipe.final_learning_rate, rate))


def _quantise(source, trained_by, out, calibrate, dataset, root, images, held_out, method, percentile, default,
              table_file, spm, edges, layers, max_weight_bits, max_activation_bits, sensitivity, candidates, max_drop,
              keep) -> None:
    from irstd_edge.data import Dataset, split_validation
    from irstd_edge.files import check_writable
    from irstd_edge.training import quantisation as q
    from irstd_edge.training.bits import (
        BitTable,
        BitTableError,
        check_ceilings,
        find_blocks,
        parse_bits,
        search_assignments,
    )
    from irstd_edge.training.seen import count_seen, earlier_trainings

    check_writable(out / q.MANIFEST)
    rules = []
    for text in layers:
        pattern, equals, value = text.partition("=")
        if not equals:
            raise BitTableError(f"--layer {text}: write PATTERN=BITS, as 'conv0_0=float' or 'conv1_*=6,3'")
        rules.append((pattern, parse_bits(value, f"--layer {text}")))
    edge, kept_bits = parse_bits(edges, "--edges"), parse_bits(keep, "--keep")
    wanted = _candidates(candidates)

    held, paths = None, None
    if dataset:
        data = Dataset.named(root, dataset, "train")
        train_indices, held_indices = split_validation(len(data), held_out)
        if held_indices:
            held = q.HeldOut([data[i] for i in held_indices], source)
            if seen := count_seen(trained_by, root, data, [data.names[i] for i in held_indices]):
                click.echo(f"warning: {source.name} was trained on {seen} of the {len(held_indices)} images that are "
                           f"held out here: what it loses on them may differ from what it loses on others", err=True)
        elif spm or sensitivity or max_drop is not None:
            raise q.QuantisationError(f"--held-out {held_out:g} of {len(data)} images of {dataset} is none to measure "
                                      "on: give a larger share")
        paths = [data.image_path(i) for i in q.evenly(train_indices, images)]
    paths = q.image_files(calibrate, images) if calibrate else paths
    calibrated = q.Calibrated(source.network, q.load_images(paths, source), method=method, percentile=percentile)
    names = calibrated.trace.convolutions
    edge_rules = [(name, edge) for name in calibrated.trace.edges]
    convolutions = [c for c in calibrated.counts if c.name in names]
    blocks = find_blocks(convolutions, calibrated.size)
    facts = {"earlier": earlier_trainings(trained_by)}

    fixed, found, assignments = {}, [], []
    if spm:
        file = BitTable(None, (*edge_rules, *rules)).resolve(names)
        fixed = {name: file[name] for name in names if name in calibrated.trace.edges or _named(rules, name)} | {
            c.name: None for c in calibrated.counts if c.name not in names}
        # What the search leaves alone is left alone in its blocks' measurement, too.
        blocks = [replace(b, layers=tuple(n for n in b.layers if n not in fixed) or b.layers) for b in blocks]
        ceilings = {"max_weight_bits": max_weight_bits, "max_activation_bits": max_activation_bits}
        check_ceilings(calibrated.counts, blocks, wanted, fixed, **ceilings)
    if spm or sensitivity:
        with _progress("sensitivity", len(blocks) * len(wanted) * 2) as step:
            found = q.measure_sensitivity(calibrated, blocks, held, wanted, step)
        _show_sensitivity(found)
    if spm:
        assignments = search_assignments(calibrated.counts, blocks, q.losses_of(found), fixed, **ceilings)
        _show_assignments(assignments)
        table = {name: assignments[0].table[name] for name in names}
        facts["assignment"] = {k: v for k, v in asdict(assignments[0]).items() if k not in ("table", "precision")}
    elif table_file:
        file = BitTable.read(table_file)
        table = replace(file, rules=(*file.rules, *rules)).resolve(names)
    else:
        table = BitTable(default, (*edge_rules, *rules)).resolve(names)
    if max_drop is not None:
        table, kept = q.keep_sensitive(calibrated, table, held, max_drop, kept_bits)
        facts["kept"] = [asdict(k) for k in kept]
        for k in kept:
            click.echo(f"kept {keep}: {k.layer} (loss +{k.loss_rise:.4f} alone); IoU now {k.iou:.4f}")
    if held:
        scores = {"float": held.measure(calibrated.folded), "quantised": held.measure(calibrated.quantise(table))}
        facts["held_out"] = {"dataset": dataset, "share": held_out, "images": held.images, "trained_on": seen} | {
            k: asdict(v) for k, v in scores.items()}
    # All files at the end: until then those of an earlier quantising stay, and stay together.
    q.write_result(out, source, calibrated, table, facts, found, assignments)
    _show_result(calibrated, table, facts)
    for name in (q.SENSITIVITY, q.SENSITIVITY_PLOT) if found else ():
        click.echo(str(out / name))
    click.echo(str(out / q.WEIGHTS))


def _candidates(text: str) -> list[int]:
    from irstd_edge.training.bits import BitTableError

    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() and 2 <= int(p) <= 8 for p in parts):
        raise BitTableError(f"--candidates {text}: numbers of bits, 2 to 8, joined by commas")
    return sorted({int(p) for p in parts})


def _named(rules, name: str) -> bool:
    from irstd_edge.training.bits import matches

    return any(matches(pattern, name) for pattern, _ in rules)


def _train(planned, factory, root, out, device, precision, compile_network, minutes, began, json_file, allow_pickle
           ) -> None:
    from irstd_edge.checkpoints import build_network, restore
    from irstd_edge.data import Normalisation
    from irstd_edge.training.loop import Run, holds_run
    from irstd_edge.training.quantisation import WEIGHTS
    from irstd_edge.training.seen import recipes_of

    cache: dict = {}
    # The steps were found on images normalised so.
    normalisation = Normalisation(**_manifest(out)["normalisation"])

    def make(recipe, folder, own_device) -> Run:
        return Run(recipe, root, folder, device=own_device, precision=precision, compile_network=compile_network,
                   resume=holds_run(folder), network=restore(build_network(factory), out / WEIGHTS),
                   normalisation=normalisation, allow_pickle=allow_pickle, cache=cache,
                   record={"quantised_from": os.path.relpath(out / WEIGHTS, folder),
                           "earlier": recipes_of(_manifest(out))})

    train_runs(planned, make, device, minutes, began, json_file, _manifest(out))


def _progress(title: str, total: int):
    from contextlib import contextmanager

    from rich import progress as p
    from rich.console import Console

    @contextmanager
    def show():
        columns = (p.TextColumn("{task.description}"), p.BarColumn(20), p.MofNCompleteColumn(), p.TimeElapsedColumn(),
                   p.TextColumn("ETA"), p.TimeRemainingColumn())
        with p.Progress(*columns, console=Console(file=sys.stderr)) as progress:
            task = progress.add_task(title, total=total)
            yield lambda: progress.advance(task)

    return show()


def _show_sensitivity(found) -> None:
    bits = sorted({s.bits for s in found})
    full = found[0].full
    table = terminal.table("block", "side", "level", *(f"W{b}" for b in bits), *(f"A{b}" for b in bits),
                           title=f"IoU lost (points) with one block rounded, float {full.iou:.4f}")
    drops = {(s.block.name, s.kind, s.bits): 100 * s.iou_drop for s in found}
    for block in dict.fromkeys(s.block for s in found):
        table.add_row(block.name, block.side, str(block.level),
                      *(f"{drops[block.name, kind, b]:.1f}" for kind in ("weights", "activations") for b in bits))
    console = terminal.console()
    console.print(table)
    low = [s for s in found if s.bits == bits[0]]
    for title, groups in (("side", {s.block.side: [t for t in low if t.block.side == s.block.side] for s in low}),
                          ("level", {s.block.level: [t for t in low if t.block.level == s.block.level]
                                     for s in sorted(low, key=lambda t: t.block.level)})):
        means = ", ".join(f"{name} {100 * sum(s.iou_drop for s in group) / len(group):.1f}"
                          for name, group in groups.items())
        console.print(f"mean at {bits[0]} bits by {title}: {means}")


def _show_assignments(assignments) -> None:
    from irstd_edge.training.bits import PUBLISHED

    table = terminal.table("weights / activations", "mean W", "mean A", "1/size", "1/memory", "1/compute",
                           "loss, summed", title="Symmetric progressive assignments, bits by level, finest first")
    for a in assignments:
        p = a.precision
        table.add_row(f"{a.weight_bits} / {a.activation_bits}", f"{p.weight_bits_mean:.3f}",
                      f"{p.activation_bits_mean:.3f}", f"{p.size_ratio:.1f}", f"{p.memory_ratio:.1f}",
                      f"{p.compute_ratio:.1f}", f"+{a.loss:.4f}")
    table.add_row("SPMix-Q as published, its bits are not", *(f"{v:g}" for v in PUBLISHED.values()), "-")
    terminal.console().print(table)


def _show_result(calibrated, table, facts) -> None:
    from irstd_edge.training import quantisation as q

    shown = terminal.table("layer", "W", "A", "inputs", "weights", "MACs", "reason")
    for row in q.layer_rows(calibrated, table):
        shown.add_row(row["layer"], str(row["weight_bits"]), str(row["activation_bits"]), row["inputs"],
                      f"{row['weights']:,}", f"{row['macs']:,}", row["reason"])
    console = terminal.console()
    console.print(shown)
    p = q.precision_facts(calibrated, table)
    console.print(f"mean bits: weights {p['weight_bits_mean']:.3f}, activations {p['activation_bits_mean']:.3f}; of "
                  f"float: size 1/{p['size_ratio']:.1f}, memory 1/{p['memory_ratio']:.1f}, MAC x bits "
                  f"1/{p['compute_ratio']:.1f}")
    for norm, reason in calibrated.trace.left.items():
        console.print(f"note: {norm} stays a batch normalisation: {reason}", soft_wrap=True)
    if scores := facts.get("held_out"):
        console.print(f"IoU on {scores['images']} held-out images of {scores['dataset']}: float "
                      f"{scores['float']['iou']:.4f}, quantised {scores['quantised']['iou']:.4f}")
