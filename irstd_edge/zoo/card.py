"""Put the weights of finished runs into the zoo, measured, with their model card.

    python -m irstd_edge.zoo.card RUN_DIR... --name biisnet --root PATH

writes ``<name>.safetensors``, ``<name>.json`` and ``<name>.md`` beside this file. Of several runs, equal but for their
seeds, the one with the highest IoU on the held-out images is published and the spread of all is told. The card is a
rendering of the JSON file and says nothing that is not in it; ``--render NAME`` writes it again from the JSON file
alone.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from irstd_edge.bundle import sha256
from irstd_edge.checkpoints import LoadedNetwork, load_network
from irstd_edge.complexity import measure_complexity
from irstd_edge.data import DATASETS, PROTOCOLS, Dataset
from irstd_edge.errors import USAGE, first_line
from irstd_edge.files import replacing, write_text
from irstd_edge.models.registry import MODELS, get_model
from irstd_edge.nn.binary import BinaryConv2d
from irstd_edge.nn.quant import QuantConv2d
from irstd_edge.training.loop import TrainingError, evaluate_network, read_curve
from irstd_edge.training.recipe import Recipe, parse_datasets
from irstd_edge.training.seen import count_seen, earlier_trainings, recipes_of
from irstd_edge.zoo import ZOO, network_of

SCHEMA_VERSION = 2
#: Weights of the zoo are no larger, bytes.
LARGEST = 12_000_000
#: The weights that a run leaves, and what cards call them.
_WEIGHTS = {"best": "highest IoU on the held-out images", "last": "last epoch", "quantised": "as calibrated"}
WHICH = tuple(_WEIGHTS)
#: Of a trained network the card tells the figures of both, published or not.
_OTHER = {"best": "last", "last": "best"}
#: What the quantiser leaves beside its weights.
_QUANTISATION = "quantisation.json"
_FIGURES = ("iou", "niou", "pd", "fa")
#: What a run records besides the fields of its recipe.
_FACTS = ("normalisation", "held_out", "images", "initial", "started", "machine", "processes", "threads", "compiled",
          "teacher", "earlier")


def describe_runs(runs: Sequence[Path], name: str, root: Path, *, weights: Path | None = None, which: str = "best",
                  datasets: Sequence[str] = (), protocols: Sequence[str] = PROTOCOLS[:1], note: str = "",
                  half: bool = False, device: str = "cpu", summary: str = "", source: str = "") -> dict:
    """The facts of runs of :func:`irstd_edge.training.loop.train`, their weights measured on the test splits.

    Nothing is written but ``weights``, once all facts are known.

    Args:
        runs: the folders of the runs, of one recipe but for the seed.
        name: the network of the registry that the weights are for, with ``@DATASET`` where they were last trained on
            that set alone and the zoo has others; of runs of ``package.module:factory`` any name.
        root: the folder that holds the data sets.
        weights: where to write the weights of the published run, as they are measured.
        which: ``best`` (highest IoU on the held-out images), ``last``, or ``quantised``: as it was calibrated, before
            any training in low bits.
        datasets: test splits to measure on, ``NAME`` or ``NAME:SPLIT``; default those of the training sets.
        protocols: see :func:`irstd_edge.data.to_protocol`.
        note: what the runs themselves do not record, such as where their initial weights came from.
        half: publish the weights of convolutions and linear layers as float16; they are measured so.
        device: to measure on.
        summary, source: what the network is and where it is from; default what the registry says of it.

    Raises :class:`~irstd_edge.training.loop.TrainingError`, :class:`~irstd_edge.checkpoints.CheckpointError`,
    :class:`~irstd_edge.data.DataError`.
    """
    records = [_read_record(run, name, which) for run in runs]
    own = records[0]["network"] if ":" in records[0]["network"] else None
    if not own:
        model = get_model(network_of(name))
        summary, source = summary or model.summary, source or model.source
    _check_alike(runs, records)
    if not datasets:
        datasets = tuple(parse_datasets(records[0]["dataset"])) if records[0].get("dataset") else ()
        own_splits = [d.partition(":")[0] for d in datasets if ":" in d]
        if own_splits or not datasets:
            example = f"{own_splits[0]}:SPLIT" if own_splits else "NAME"
            raise TrainingError(f"{runs[0]}: does not say what to measure on: give --dataset {example}")
    for dataset in datasets:
        for record in records:
            _check_unseen(record, root, Dataset.named(root, dataset, "test"))
    held_out = [_chosen(run, record, which).get("iou") or "-1" for run, record in zip(runs, records, strict=True)]
    published = max(range(len(runs)), key=lambda i: float(held_out[i]))
    with TemporaryDirectory() as scratch:

        def measure(i: int, which: str) -> tuple[Path, LoadedNetwork, dict]:
            file = Path(scratch) / f"{which}{i}.safetensors"
            _copy_weights(runs[i] / f"{which}.safetensors", file, half)
            constants = records[i]["normalisation"]
            loaded = load_network(network_of(name), model=own, checkpoint=file, mean=constants["mean"],
                                  std=constants["std"])
            network = loaded.network.to(device)
            return file, loaded, {
                key: {"split": split, "protocol": protocol, **evaluate_network(
                    network, Dataset(root, dataset, split), loaded.preprocessing, device, protocol).as_dict(),
                    "command": _command(name, own, constants, dataset, split, protocol)}
                for key, dataset, split, protocol in _splits(datasets, protocols)}

        measured = [measure(i, which) for i in range(len(runs))]
        run, record = runs[published], records[published]
        file, loaded, metrics = measured[published]
        network = loaded.network.cpu()
        # Of all runs or of none: a mean over some of them would be of others than that beside it.
        second, others = _OTHER.get(which), None
        if second and all((r / f"{second}.safetensors").is_file() for r in runs):
            others = [{"which": second, "epoch": int(_chosen(r, records[i], second)["epoch"]), "metrics": _figures(
                measured[i][2] if _same(r / f"{second}.safetensors", r / f"{which}.safetensors")
                else measure(i, second)[2])} for i, r in enumerate(runs)]
        card = {
            "schema_version": SCHEMA_VERSION, "name": name, "summary": summary or f"network made by {own}",
            "source": source or "the user's own",
            "weights": {"file": f"{name}.safetensors", "which": which, "sha256": sha256(file),
                        "bytes": file.stat().st_size, "half": half},
            "complexity": measure_complexity(network).as_dict(),
            "precision": describe_precision(network),
            "normalisation": {"mean": loaded.preprocessing.mean, "std": loaded.preprocessing.std},
            "threshold": loaded.threshold,
            "training": _describe_training(run, record, root, which, note),
            "quantisation": _describe_quantisation(run, record),
            "metrics": metrics,
            "other_weights": others and others[published],
            "runs": [] if len(runs) == 1 else [
                {"seed": records[i]["seed"], "published": i == published, "initial": records[i]["initial"],
                 "epochs_done": _epochs_done(runs[i], records[i]), "metrics": _figures(found),
                 "other": others and others[i]}
                for i, (_, _, found) in enumerate(measured)],
        }
        if weights is not None:
            with replacing(weights) as temporary:
                shutil.copyfile(file, temporary)
    return card


def describe_precision(network: nn.Module) -> dict:
    """``kind``: float, binary or quantised; of the last: mean bits, weighted by weights, and the bits of each layer."""
    binary = any(isinstance(m, BinaryConv2d) for m in network.modules())
    layers = [{"layer": name, "weight_bits": m.weight_bits, "activation_bits": m.activation_bits,
               "weights": m.weight.numel()} for name, m in network.named_modules() if isinstance(m, QuantConv2d)]
    if not layers:
        return {"kind": "binary" if binary else "float"}
    count = sum(layer["weights"] for layer in layers)
    return {"kind": "quantised", "layers": layers, "mean_weight_bits": sum(
        layer["weights"] * layer["weight_bits"] for layer in layers) / count}


def _read_record(run: Path, name: str, which: str) -> dict:
    """What ``recipe.json`` says, or of a network as it was quantised ``quantisation.json``."""
    try:
        if which == "quantised":
            record = json.loads((run / _QUANTISATION).read_text())
            # Where bits were judged on a data set, that is the one to measure on.
            record["dataset"] = record.get("held_out", {}).get("dataset")
        else:
            record = json.loads((run / "recipe.json").read_text())
    except (OSError, ValueError) as e:
        if which == "quantised":
            raise TrainingError(f"{run}: no folder of irstd-edge quantize ({first_line(e)}); leave out "
                                "--which quantised for a training run") from e
        hint = ""
        if (run / _QUANTISATION).is_file():
            hint = "; give --which quantised for a network that was quantised without training"
        raise TrainingError(f"{run}: no folder of a training run ({first_line(e)}){hint}") from e
    record["initial"] = record.get("initial") or None
    if "epochs" in record:
        # Fields that the recipe of an older run lacks have their defaults.
        record = Recipe("-", "-").as_dict() | record
    # A quantised network has a name of its own, beside that of the float network that it is made from.
    trained, network = network_of(record["network"]), network_of(name)
    if ":" not in trained and trained != network and not (
            trained in MODELS and MODELS[trained].factory is get_model(network).factory):
        raise TrainingError(f"{run}: trains {trained}, not {network}: give --name {trained}")
    if name != network and [*parse_datasets(record.get("dataset") or "?")] != [name.partition("@")[2]]:
        raise TrainingError(f"{run}: is of {record.get('dataset')}: name its weights so, or {network}")
    return record


def _epochs_done(run: Path, record: dict) -> int | None:
    """None where nothing was trained."""
    return int(read_curve(run / "curves.csv")[-1]["epoch"]) if "epochs" in record else None


def _check_unseen(record: dict, root: Path, samples: Dataset) -> None:
    if seen := count_seen(recipes_of(record), root, samples):
        raise TrainingError(f"{seen} of the {len(samples)} images of {samples.name}, split {samples.split}, were "
                            "trained on, in this run or by what it began or learned from: give --dataset "
                            f"{samples.name}:SPLIT with a split of others")


def _check_alike(runs: Sequence[Path], records: Sequence[dict]) -> None:
    for run, record in zip(runs[1:], records[1:], strict=True):
        for key in {*records[0], *record} - {*_FACTS, "seed"}:
            if record.get(key) != records[0].get(key):
                raise TrainingError(f"{run}: its {key} is {record.get(key)!r}, that of {runs[0]} "
                                    f"{records[0].get(key)!r}; runs of one card differ by their seeds alone")
    if len({bool(record["initial"]) for record in records}) > 1:
        raise TrainingError(f"{', '.join(map(str, runs))}: one of them began from other weights than random ones, one "
                            "did not; runs of one card do alike")
    seeds = [record.get("seed") for record in records]
    if len(set(seeds)) < len(seeds):
        raise TrainingError(f"{', '.join(map(str, runs))}: runs of one card need different seeds, got {seeds}")


def _copy_weights(source: Path, target: Path, half: bool) -> None:
    """A weights file as it is published; ``half`` makes float16 of what has two dimensions or more."""
    if not source.is_file():
        raise TrainingError(f"{source.parent}: the run has saved no {source.name} yet")
    shutil.copyfile(source, target)
    if half:
        with safe_open(source, "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - no dictionary
            metadata = file.metadata()
        save_file({k: v.half() if v.dtype == torch.float32 and v.ndim >= 2 else v for k, v in tensors.items()}, target,
                  metadata)
    if target.stat().st_size > LARGEST:
        raise TrainingError(f"{source}: {target.stat().st_size:,} bytes, the zoo takes {LARGEST:,}"
                            + ("" if half else ": publish them as float16 by --half"))


def _same(a: Path, b: Path) -> bool:
    return a.stat().st_size == b.stat().st_size and sha256(a) == sha256(b)


def _figures(metrics: dict) -> dict:
    return {key: {k: m[k] for k in _FIGURES} for key, m in metrics.items()}


def _splits(datasets: Sequence[str], protocols: Sequence[str]):
    for reference in datasets:
        dataset, _, split = reference.partition(":")
        for protocol in protocols:
            yield reference + ("" if protocol == PROTOCOLS[0] else f", {protocol}"), dataset, split or "test", protocol


def _command(name: str, own: str | None, constants: dict, dataset: str, split: str, protocol: str) -> str:
    network = name if own is None else (f"{name} --model {own} --checkpoint {name}.safetensors "
                                        f"--mean {constants['mean']} --std {constants['std']}")
    return (f"irstd-edge evaluate {network} --dataset {dataset} --root PATH"
            + ("" if split == "test" else f" --split {split}")
            + ("" if protocol == PROTOCOLS[0] else f" --protocol {protocol}"))


def _chosen(run: Path, record: dict, which: str) -> dict[str, str]:
    """The row of the curves that the weights are of; empty where nothing was trained."""
    saved = [row for row in read_curve(run / "curves.csv") if int(row["epoch"]) % record["validate_every"] == 0
             or int(row["epoch"]) == record["epochs"]] if "epochs" in record else []
    if not saved:
        return {}
    return max(saved, key=lambda row: float(row["iou"] or "-1")) if which == "best" else saved[-1]


def _published(record: dict) -> dict:
    """The recipe in a run's record; of the teacher's checkpoint the file's name alone, as of the initial weights'."""
    recipe = {k: v for k, v in record.items() if k not in _FACTS}
    if distill := recipe.get("distill"):
        recipe["distill"] = distill | {"checkpoint": Path(distill.get("checkpoint", "")).name}
    return recipe


def _describe_training(run: Path, record: dict, root: Path, which: str, note: str) -> dict | None:
    if "epochs" not in record:
        return None
    curve, chosen = read_curve(run / "curves.csv"), _chosen(run, record, which)
    sets = {d: len(Dataset.named(root, d, "train")) for d in parse_datasets(record["dataset"])}
    held_out = len(record["held_out"])
    names = [d.partition(":")[0] for d in sets]
    return {
        "datasets": sets,
        "sources": {d: DATASETS[d].source for d in names if d in DATASETS},
        "images": sum(sets.values()) - held_out,
        "held_out": held_out,
        "recipe": _published(record),
        "teacher": record.get("teacher"),
        "initial": record["initial"],
        "earlier": earlier_trainings(recipes_of(record)[1:]),
        "note": note,
        "epochs_done": _epochs_done(run, record),
        "epoch_of_weights": int(chosen["epoch"]),
        "held_out_accuracy": {k: float(chosen[k]) for k in _FIGURES if chosen[k]},
        "final_loss": float(curve[-1]["loss"]),
        "seconds": round(sum(float(row["seconds"]) for row in curve)),
        "date": record["started"],
        "machine": record["machine"],
    }


def _describe_quantisation(run: Path, record: dict) -> dict | None:
    """How a quantised network was made, as the folder of the weights that it began from says; None of any other."""
    path = (run / record.get("quantised_from", _QUANTISATION)).with_name(_QUANTISATION)
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    return {"method": record["method"], "images": len(record["images"]), "precision": record["precision"],
            "checkpoint_sha256": record["checkpoint_sha256"]}


def render(card: dict) -> str:
    """The model card, markdown, of the facts of :func:`describe_runs`."""
    c, t, p = card["complexity"], card["training"], card["complexity"]["params"]
    height, width = c["input"]
    rows = "\n".join(
        f"| {key.partition(',')[0]} {m['split'] if ':' not in key else ''}".rstrip()
        + f" ({m['images']} images, {m['targets']} targets) | {m['protocol']} | "
        + " | ".join(_format(k, m[k]) for k in (*_FIGURES, "fa_by_area")) + f" | `{m['command']}` |"
        for key, m in card["metrics"].items())
    names = list(dict.fromkeys(key.partition(",")[0].partition(":")[0] for key in card["metrics"]))
    others = sorted(set(DATASETS) - set(names))
    runs = card.get("runs", [])
    spread = ("" if runs else
              f" One training run, seed {t['recipe']['seed']}: no spread is known." if t else "")
    return f"""# {card['name']}

{card['summary'][:1].upper() + card['summary'][1:]}; {card['source']}.{_reconstruction(card['source'])}

## What it is for
Finding small targets in single grey infrared images: a probability per pixel, target where it exceeds
{card['threshold']:g}. Input is `(grey - {card['normalisation']['mean']:.4f}) / \
{card['normalisation']['std']:.4f}` on the 0..255 scale.

## Size
| count | value |
|---|---|
| learned values (raw) | {p['raw']:,} |
| compressed bits / 32 + full-precision convolutions (the field's "Params") | {p['binary_div32_plus_conv']:,} |
| compressed bits / 32 + all other learned values | {p['binary_div32_plus_all']:,} |
| full-precision multiply-accumulates at {height} x {width} | {c['macs']:,} |
| BOPs (compressed layers: multiply-accumulates x weight bits x activation bits) | {c['bops']:,} |
| OPs = full-precision + BOPs / 64 | {c['ops']:,.0f} |
{_render_precision(card)}
## Accuracy
| data | protocol | IoU | nIoU | Pd | Fa | Fa, older code | command |
|---|---|---|---|---|---|---|---|
{rows}

Threshold {card['threshold']:g}. The definitions, and why Fa has two columns: docs/metrics.md.
{_render_other(card)}{_render_seeds(card)}{_render_training(card)}
## Limits
- Measured on {', '.join(names)} alone{'; not on ' + ' or '.join(others) if others else ''}.{spread}
- Images of another sensor, band or scale may need training anew. It looks at single images, knows no classes, and no
  range of target size or contrast is guaranteed.
- Not for safety-critical decisions without validation on your own data.
"""


def _render_training(card: dict) -> str:
    t, w = card["training"], card["weights"]
    digest = f"- SHA-256 of {w['file']}: `{w['sha256']}`" + (
        "; convolutions and linear layers as float16" if w.get("half") else "")
    if t is None:
        return f"\n## Training\nNone: quantised after training.\n\n{digest}\n"
    distill = t["recipe"].get("distill")
    recipe = ", ".join(f"{k} {v}" for k, v in t["recipe"].items() if k not in ("network", "dataset", "distill"))
    epoch = {"best": "epoch {}", "last": "{}"}[w["which"]].format(t["epoch_of_weights"])
    which = f"{_WEIGHTS[w['which']]} ({epoch})"
    held_out = "; ".join(f"{_LABELS[k]} {_format(k, v)}" for k, v in t["held_out_accuracy"].items())
    taught = ""
    if distill:
        teacher = t["teacher"]
        taught = (f"\n- distilled (method {distill['method']}, reconstructed) from {teacher['name']}, "
                  f"{teacher['parameters']:,} parameters, weights SHA-256 `{teacher['sha256']}`; layers "
                  f"teacher=student: {', '.join(distill['features'])}; weight {distill['weight']:g}")
    note = f"\n- {t['note']}" if t["note"] else ""
    return f"""
## Training
- data: train split of {', '.join(f'{d} ({n} images)' for d, n in t['datasets'].items())}: {t['images']} images to \
train on, {t['held_out']} held out to validate on
- sources: {', '.join(t['sources'].values()) or 'not public'}
- weights: running average, {which}; held-out images: {held_out or 'none'}
- recipe: {recipe}{_render_initial(t.get("initial"))}{taught}
- epochs done: {t['epochs_done']} of {t['recipe']['epochs']} in {t['seconds'] / 60:.0f} minutes; training loss at \
the end {t['final_loss']:.4f}{note}
- date: {t['date'][:10]}; machine: {t['machine']}
{digest}
"""


def _render_initial(initial: dict | None) -> str:
    """Which weights a training began from."""
    if not initial:
        return ""
    layout = f", read by --from-layout {initial['from_layout']}" if initial["from_layout"] else ""
    new = f", but for {', '.join(f'`{k}`' for k in initial['new'])}, which began anew" if initial.get("new") else ""
    return f"\n- began from the weights {initial['file']}, SHA-256 `{initial['sha256']}`{layout}{new}"


def _render_other(card: dict) -> str:
    """The figures of the weights that were not published, of the best and the last epoch; older cards have none."""
    other = card.get("other_weights")
    if not other:
        return ""
    title = _WEIGHTS[other["which"]]
    rows = "".join(f"| {key} | " + " | ".join(_format(k, m[k]) for k in _FIGURES) + " |\n"
                   for key, m in other["metrics"].items())
    return (f"\n### Not published: {title} ({other['epoch']})\n| data | IoU | nIoU | Pd | Fa |\n|---|---|---|---|---|\n"
            f"{rows}")


def _render_precision(card: dict) -> str:
    """The bits of a quantised network, by layer, and how they were found."""
    p, q = card.get("precision", {}), card.get("quantisation")
    if p.get("kind") != "quantised":
        return ""
    rows = "\n".join(f"| `{layer['layer']}` | {layer['weight_bits']} | {layer['activation_bits']} | "
                     f"{layer['weights']:,} |" for layer in p["layers"])
    how = "" if q is None else (f" Steps first found by {q['method']} on {q['images']} calibration images, from float "
                                f"weights of SHA-256 `{q['checkpoint_sha256']}`.")
    return f"""
## Bits
{p['mean_weight_bits']:.2f} bits a weight on average over the layers below; all others are full precision.{how}

| layer | weight bits | activation bits | weights |
|---|---|---|---|
{rows}
"""


def _render_seeds(card: dict) -> str:
    """Mean and standard deviation over the runs, and each run, of the weights published and of the other ones."""
    runs = card.get("runs", [])
    if not runs:
        return ""
    lines = []
    for title, of_run in ((_WEIGHTS[card["weights"]["which"]], lambda run: run),
                          *(((_WEIGHTS[runs[0]["other"]["which"]], lambda run: run["other"]),)
                            if runs[0].get("other") else ())):
        lines += ["", f"### Over {len(runs)} seeds, {title}", "| data | run | IoU | nIoU | Pd | Fa |",
                  "|---|---|---|---|---|---|"]
        for key in runs[0]["metrics"]:
            found = [of_run(run)["metrics"][key] for run in runs]
            for label, figure in (("mean", statistics.fmean), ("standard deviation", statistics.stdev)):
                lines.append(f"| {key} | {label} | " + " | ".join(
                    _format(k, figure([metrics[k] for metrics in found])) for k in _FIGURES) + " |")
            lines += [f"| {key} | {_seed_of(run, card)} | " + " | ".join(_format(k, metrics[k]) for k in _FIGURES)
                      + " |" for run, metrics in zip(runs, found, strict=True)]
    chosen = ("the run of the highest IoU on the held-out training images" if card["training"]["held_out"] else
              "the first run: none held images out")
    began = len({str(run.get("initial")) for run in runs}) > 1
    return "\n".join([*lines, "", f"Published is {chosen}."
                      + (" Each began from weights of its own." if began else ""), ""])


def _seed_of(run: dict, card: dict) -> str:
    """The seed of one of several runs; whether it is published, and where it did not end, its epochs."""
    done, asked = run.get("epochs_done"), (card["training"] or {"recipe": {}})["recipe"].get("epochs")
    unfinished = f", {done} of {asked} epochs" if done is not None and done < asked else ""
    return f"seed {run['seed']}{', published' if run['published'] else ''}{unfinished}"


def publish(card: dict, weights: Path, folder: Path = ZOO) -> list[Path]:
    """Write weights, facts and card into the zoo; returns the paths.

    All three are whole before the first takes its name, so that a failure leaves the old ones, which fit each other.
    Raises :class:`~irstd_edge.data.DataError`.
    """
    paths = [folder / f"{card['name']}{suffix}" for suffix in (".safetensors", ".json", ".md")]
    contents = (weights.read_bytes(), (json.dumps(card, indent=2) + "\n").encode(), render(card).encode())
    with ExitStack() as stack:
        for path, content in zip(paths, contents, strict=True):
            stack.enter_context(replacing(path)).write_bytes(content)
    return paths


def _reconstruction(source: str) -> str:
    if "reconstructed" not in source:
        return ""
    return ("\nIt is not the paper's network or weights: layout, formulas and recipe beyond the abstract are this "
            "project's own.")


_LABELS = {"iou": "IoU", "niou": "nIoU", "pd": "Pd", "fa": "Fa"}


def _format(key: str, value: float) -> str:
    return f"{value * 1e6:.2f}e-6" if key.startswith("fa") else f"{value:.4f}"


@click.command(help=__doc__.split("\n\n")[0])
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1)
@click.option("--name", help="Network of the registry, with @DATASET where it was last trained on that set "
                             "alone; or what to call your own.")
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the data sets.")
@click.option("--which", type=click.Choice(WHICH), default="best", show_default=True)
@click.option("--dataset", "datasets", multiple=True, metavar="NAME[:SPLIT]",
              help="Test split to measure on, repeatable; default the training sets'.")
@click.option("--protocol", "protocols", type=click.Choice(PROTOCOLS), multiple=True, default=PROTOCOLS[:1],
              show_default=True, help="Repeatable.")
@click.option("--half", is_flag=True, help="Publish weights as float16, measured so.")
@click.option("--device", default="cpu", show_default=True, help="To measure on.")
@click.option("--note", default="", help="What the run does not record, such as where its initial weights came from.")
@click.option("--summary", default="", help="What the network is; default what the registry says of it.")
@click.option("--source", default="", help="Where it is from, likewise.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="Folder to write to, made where it is not there; default the package's zoo, for its own networks.")
@click.option("--render", "render_name", metavar="NAME", help="Only write the card of NAME again from its JSON file.")
def main(runs, name, root, which, datasets, protocols, half, device, note, summary, source, out, render_name) -> None:
    if name and network_of(name) not in MODELS and out is None:
        raise click.UsageError(f"{name} is no network of the registry, whose weights the package's zoo holds: "
                               "give --out")
    out = out or ZOO
    try:
        if render_name:
            card = json.loads((out / f"{render_name}.json").read_text())
            write_text(out / f"{render_name}.md", render(card))
            return
        if not (runs and name and root):
            raise click.UsageError("RUN_DIR..., --name and --root are needed")
        with TemporaryDirectory() as scratch:
            weights = Path(scratch) / "weights"
            card = describe_runs(runs, name, root, weights=weights, which=which, datasets=datasets,
                                 protocols=protocols, note=note, half=half, device=device,
                                 summary=summary, source=source)
            if training := card["training"]:
                done = {run["seed"]: run["epochs_done"] for run in card["runs"]} or {
                    training["recipe"]["seed"]: training["epochs_done"]}
                for seed, epochs in done.items():
                    if epochs < training["recipe"]["epochs"]:
                        click.echo(f"warning: the run of seed {seed} has {epochs} of {training['recipe']['epochs']} "
                                   "epochs: go on with it by --resume first", err=True)
            for path in publish(card, weights, out):
                click.echo(path)
    except (ValueError, OSError) as e:
        error = click.ClickException(str(e))
        error.exit_code = USAGE
        raise error from e


if __name__ == "__main__":
    main()
