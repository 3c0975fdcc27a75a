"""The command ``models``."""

from __future__ import annotations

from itertools import groupby

import click

from irstd_edge.json_output import JsonFile, json_option

_COUNTS = {"raw": "raw", "binary_div32_plus_conv": "/32+conv", "binary_div32_plus_all": "/32+all"}
_OPERATIONS = {"macs": "MACs", "bops": "BOPs", "ops": "OPs"}
_METRICS = {"iou": "IoU", "niou": "nIoU", "pd": "Pd"}


@click.command(help="List the networks by family: size, operations at 256 x 256, measured accuracy.")
@json_option("the list")
def models(json_file: JsonFile | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    entries = describe_models()
    table = Table(title="Networks at 256 x 256", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("network", no_wrap=True)
    for name in (*_COUNTS.values(), *_OPERATIONS.values()):
        table.add_column(name, justify="right", no_wrap=True)
    console, notes = Console(highlight=False), []
    for family, group in groupby(entries, lambda e: e["family"]):
        table.add_section()
        notes += ["", family]
        for e in group:
            table.add_row(e["name"], *(f"{e['params'][k]:,}" for k in _COUNTS), *(_short(e[k]) for k in _OPERATIONS))
            notes.append(f"  {e['name']}: {e['summary']}; {e['source']}")
            for w in e["weights"]:
                notes.append(f"    weights {w['name']}, {w['bytes'] / 1e6:.2f} MB")
                notes += [f"      {name} ({m['protocol']}): "
                          + "  ".join(f"{v} {m[k]:.4f}" for k, v in _METRICS.items())
                          + f"  Fa {m['fa'] * 1e6:.2f}e-6" for name, m in w["metrics"].items()]
    console.print(table)
    console.print("Learned values: raw = all; /32+conv = bits of compressed weights / 32 + full-precision\n"
                  "convolutions (the field's count); /32+all = those bits / 32 + all else. OPs = MACs + BOPs / 64.\n"
                  "Accuracy stands with the networks whose trained weights are here; details: docs/models.md",
                  soft_wrap=True)
    console.print("\n".join(notes), soft_wrap=True)
    if json_file:
        json_file.write(entries)


def describe_models() -> list[dict]:
    """Every network of the registry: name, family, summary, source, float_twin, teacher, params, macs, bops, ops,
    input, and weights in the zoo: name, bytes, metrics by data set. Counted on PyTorch's meta device, where nothing is
    computed; quantised ones on the CPU."""
    import torch

    from irstd_edge.checkpoints import form_of
    from irstd_edge.complexity import measure_complexity
    from irstd_edge.models.registry import MODELS
    from irstd_edge.zoo import zoo_card, zoo_names, zoo_weights

    entries = []
    for m in MODELS.values():
        names = zoo_names(m.name)
        # A quantised form has steps, which the meta device does not hold.
        network = form_of(m.factory(), zoo_weights(names[0])) if names else None
        if getattr(network, "conversion", None) is None:
            with torch.device("meta"):
                network = m.factory()
        complexity = measure_complexity(network).as_dict()
        entries.append({
            "name": m.name, "family": m.family, "summary": m.summary, "source": m.source, "float_twin": m.float_twin,
            "teacher": m.teacher, **complexity, "weights": [
                {"name": name, "bytes": zoo_weights(name).stat().st_size, "metrics": zoo_card(name)["metrics"]}
                for name in names]})
    return entries


def _short(count: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if count >= limit:
            return f"{count / limit:.3g}{unit}"
    return f"{count:.0f}"
