"""Put the weights of a finished training run into the zoo, measured, with their model card.

    python -m irstd_edge.zoo.card RUN_DIR --name biisnet --root PATH

writes ``<name>.safetensors``, ``<name>.json`` and ``<name>.md`` beside this file. The card is a rendering of the JSON
file and says nothing that is not in it; ``--render NAME`` writes it again from the JSON file alone.
"""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import click

from irstd_edge.bundle import sha256
from irstd_edge.checkpoints import load_network
from irstd_edge.complexity import measure_complexity
from irstd_edge.data import DATASETS, PROTOCOLS, Dataset
from irstd_edge.files import replacing, write_text
from irstd_edge.models.registry import get_model
from irstd_edge.training.loop import TrainingError, describe_machine, evaluate_network, read_curve
from irstd_edge.training.recipe import parse_datasets
from irstd_edge.zoo import ZOO

SCHEMA_VERSION = 1


def describe_run(run: Path, name: str, root: Path, *, which: str = "best", datasets: tuple[str, ...] = (),
                 protocol: str = PROTOCOLS[0], note: str = "") -> dict:
    """The facts of a run of :func:`irstd_edge.training.loop.train`, its weights measured on the test splits.

    Args:
        run: the folder of the run.
        name: the network of the registry that the weights are for.
        root: the folder that holds the data sets.
        which: ``best`` (highest IoU on the held-out images) or ``last``.
        datasets: test splits to measure on; default those of the training sets.
        note: what the run itself does not record, such as where its initial weights came from.
        protocol: see :func:`irstd_edge.data.to_protocol`.

    Raises :class:`~irstd_edge.training.loop.TrainingError`, :class:`~irstd_edge.checkpoints.CheckpointError`,
    :class:`~irstd_edge.data.DataError`.
    """
    weights = run / f"{which}.safetensors"
    curve = read_curve(run / "curves.csv")
    try:
        record = json.loads((run / "recipe.json").read_text())
    except (OSError, ValueError) as e:
        raise TrainingError(f"{run}: no folder of a training run ({e})") from e
    if not weights.is_file():
        raise TrainingError(f"{run}: the run has saved no {weights.name} yet")
    model = get_model(name)
    if record["network"] != name:
        raise TrainingError(f"{run}: trains {record['network']}, not {name}")
    loaded = load_network(name, checkpoint=weights)
    training_sets = {name: len(Dataset(root, name, "train")) for name in parse_datasets(record["dataset"])}
    held_out = len(record["held_out"])
    saved = [row for row in curve
             if int(row["epoch"]) % record["validate_every"] == 0 or int(row["epoch"]) == record["epochs"]]
    chosen = max(saved, key=lambda row: float(row["iou"])) if which == "best" else saved[-1]
    metrics = {}
    for dataset in datasets or training_sets:
        samples = Dataset(root, dataset, "test")
        accuracy = evaluate_network(loaded.network, samples, loaded.preprocessing, protocol=protocol)
        metrics[dataset] = {"split": "test", "protocol": protocol, **accuracy.as_dict(),
                            "command": f"irstd-edge evaluate {name} --dataset {dataset} --root PATH"
                                       + ("" if protocol == PROTOCOLS[0] else f" --protocol {protocol}")}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "summary": model.summary,
        "source": model.source,
        "weights": {"file": f"{name}.safetensors", "which": which, "sha256": sha256(weights),
                    "bytes": weights.stat().st_size},
        "complexity": measure_complexity(loaded.network).as_dict(),
        "normalisation": {"mean": loaded.preprocessing.mean, "std": loaded.preprocessing.std},
        "threshold": loaded.threshold,
        "training": {
            "datasets": training_sets,
            "sources": {d: DATASETS[d].source for d in training_sets if d in DATASETS},
            "images": sum(training_sets.values()) - held_out,
            "held_out": held_out,
            "recipe": {k: v for k, v in record.items()
                       if k not in ("normalisation", "held_out", "images", "initial", "started", "machine")},
            "note": note,
            "epochs_done": int(curve[-1]["epoch"]),
            "epoch_of_weights": int(chosen["epoch"]),
            "held_out_accuracy": {k: float(chosen[k]) for k in ("iou", "niou", "pd", "fa") if chosen[k]},
            "final_loss": float(curve[-1]["loss"]),
            "seconds": round(sum(float(row["seconds"]) for row in curve)),
            "date": record.get("started", _date(weights)),
            "machine": record.get("machine", describe_machine()),
        },
        "metrics": metrics,
    }


def render(card: dict) -> str:
    """The model card, markdown, of the facts of :func:`describe_run`."""
    c, t, p = card["complexity"], card["training"], card["complexity"]["params"]
    height, width = c["input"]
    recipe = ", ".join(f"{k} {v}" for k, v in t["recipe"].items() if k not in ("network", "dataset"))
    which = {"best": f"highest IoU on the held-out images (epoch {t['epoch_of_weights']})",
             "last": f"last epoch ({t['epoch_of_weights']})"}[card["weights"]["which"]]
    held_out = "; ".join(f"{_LABELS[k]} {_format(k, v)}" for k, v in t["held_out_accuracy"].items())
    rows = "\n".join(
        f"| {name} {m['split']} ({m['images']} images, {m['targets']} targets) | {m['protocol']} | "
        + " | ".join(_format(k, m[k]) for k in ("iou", "niou", "pd", "fa", "fa_by_area")) + f" | `{m['command']}` |"
        for name, m in card["metrics"].items())
    note = f"\n- {t['note']}" if t["note"] else ""
    others = sorted(set(DATASETS) - set(card["metrics"]))
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
| binary / 32 + full-precision convolutions (the field's "Params") | {p['binary_div32_plus_conv']:,} |
| binary / 32 + all other learned values | {p['binary_div32_plus_all']:,} |
| full-precision multiply-accumulates at {height} x {width} | {c['macs']:,} |
| binary multiply-accumulates at {height} x {width} | {c['bops']:,} |
| OPs = full-precision + binary / 64 | {c['ops']:,.0f} |

## Accuracy
| data | protocol | IoU | nIoU | Pd | Fa | Fa, older code | command |
|---|---|---|---|---|---|---|---|
{rows}

Threshold {card['threshold']:g}. The definitions, and why Fa has two columns: docs/metrics.md.

## Training
- data: train split of {', '.join(f'{d} ({n} images)' for d, n in t['datasets'].items())}: {t['images']} images to \
train on, {t['held_out']} held out to validate on
- sources: {', '.join(t['sources'].values()) or 'not public'}
- weights: running average, {which}; held-out images: {held_out or 'none'}
- recipe: {recipe}
- epochs done: {t['epochs_done']} of {t['recipe']['epochs']} in {t['seconds'] / 60:.0f} minutes; training loss at \
the end {t['final_loss']:.4f}{note}
- date: {t['date'][:10]}; machine: {t['machine']}
- SHA-256 of {card['weights']['file']}: `{card['weights']['sha256']}`

## Limits
- Measured on {', '.join(card['metrics'])} alone{'; not on ' + ' or '.join(others) if others else ''}. \
One training run, seed {t['recipe']['seed']}: no spread is known.
- Images of another sensor, band or scale may need training anew. It looks at single images, knows no classes, and no
  range of target size or contrast is guaranteed.
- Not for safety-critical decisions without validation on your own data.
"""


def publish(card: dict, weights: Path, folder: Path = ZOO) -> list[Path]:
    """Write weights, facts and card into the zoo, each under a temporary name, then renamed; returns the paths."""
    paths = [folder / f"{card['name']}{suffix}" for suffix in (".safetensors", ".json", ".md")]
    contents = (None, json.dumps(card, indent=2) + "\n", render(card))
    for path, text in zip(paths, contents, strict=True):
        if text is not None:
            write_text(path, text)
            continue
        with replacing(path) as temporary:
            shutil.copyfile(weights, temporary)
            temporary.chmod(0o644)
    return paths


def _reconstruction(source: str) -> str:
    if "reconstructed" not in source:
        return ""
    return ("\nIt is not the paper's network or weights: layout, formulas and recipe beyond the abstract are this "
            "project's own.")


_LABELS = {"iou": "IoU", "niou": "nIoU", "pd": "Pd", "fa": "Fa"}


def _format(key: str, value: float) -> str:
    return f"{value * 1e6:.2f}e-6" if key.startswith("fa") else f"{value:.4f}"


def _date(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")


@click.command(help=__doc__.split("\n\n")[0])
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.option("--name", help="Network of the registry.")
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the data sets.")
@click.option("--which", type=click.Choice(["best", "last"]), default="best", show_default=True)
@click.option("--dataset", "datasets", multiple=True, help="Test split to measure on; default the training sets'.")
@click.option("--note", default="", help="What the run does not record, such as where its initial weights came from.")
@click.option("--protocol", type=click.Choice(PROTOCOLS), default=PROTOCOLS[0], show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False, exists=True), default=ZOO,
              help="Folder to write to; default the package's zoo.")
@click.option("--render", "render_name", metavar="NAME", help="Only write the card of NAME again from its JSON file.")
def main(run, name, root, which, datasets, protocol, note, out, render_name) -> None:
    if render_name:
        card = json.loads((out / f"{render_name}.json").read_text())
        write_text(out / f"{render_name}.md", render(card))
        return
    if not (run and name and root):
        raise click.UsageError("RUN_DIR, --name and --root are needed")
    try:
        card = describe_run(run, name, root, which=which, datasets=datasets, protocol=protocol, note=note)
    except ValueError as e:
        raise click.ClickException(str(e)) from e
    for path in publish(card, run / f"{which}.safetensors", out):
        click.echo(path)


if __name__ == "__main__":
    main()
