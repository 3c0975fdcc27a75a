"""The commands ``export`` and ``inspect``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from irstd_edge import terminal
from irstd_edge.json_output import json_option
from irstd_edge.layouts import LAYOUTS

_PATH = click.Path(path_type=Path)


def _size(context, parameter, text: str) -> tuple[int, int]:
    from irstd_edge.data import parse_size

    return parse_size(text)


def _targets(context, parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    names = (name.strip() for text in texts for name in text.split(","))
    return tuple(dict.fromkeys(name for name in names if name))


@click.command()
@click.argument("network", required=False)
@click.option("--to", "targets", default=["onnx,tflite,portable"], show_default=True, multiple=True,
              callback=_targets,
              help="Targets, by comma or repeated: onnx, tflite and native (our own engine) hold compressed "
                   "operators, portable standard ones alone.")
@click.option("--out", type=_PATH, required=True, help="Folder of the bundle; appears only when all of it is verified.")
@click.option("--checkpoint", type=_PATH, help="Weights; default those that come with the network.")
@click.option("--from-layout", type=click.Choice(list(LAYOUTS)),
              help="Whose public checkpoint it is: its keys are mapped onto the network here.")
@click.option("--model", metavar="PACKAGE.MODULE:FACTORY",
              help="A network of your own; the current directory is searched first.")
@click.option("--allow-pickle", is_flag=True, help="Read a pickled checkpoint: it can run code; trust its source.")
@click.option("--untrained", is_flag=True, help="Take random weights where no checkpoint is given.")
@click.option("--input-size", default="256", show_default=True, metavar="H[xW]", callback=_size,
              help="Size of fixed-size files (tflite), of the test vectors, and at which operations are counted.")
@click.option("--strict", is_flag=True,
              help="Fail (exit 3) when a layer is not realised at the precision it asks for; for a compressed network "
                   "that excludes portable, which is lowered by definition.")
@click.option("--per-layer", is_flag=True,
              help="Keep one node for each layer in onnx and tflite, to look into them; by default the parts that our "
                   "engine runs are one node each, which is faster.")
@click.option("--minimize", is_flag=True,
              help="Where an operator is refused, write the smallest part of the network that fails to OUT-repro.py.")
@click.option("--weights", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True,
              help="What the weights of float layers are stored in; they are computed with in float32 either way.")
@click.option("--output", type=int, default=0, show_default=True,
              help="Place of the probability map among the tensors that the network returns; -1 is the last.")
@click.option("--all-outputs", is_flag=True, help="Keep the others behind it, such as those of deep supervision.")
@click.option("--mean", type=float, help="Mean of the training images on the 0..255 scale.")
@click.option("--std", type=float, help="Their standard deviation on the 0..255 scale.")
@json_option("the manifest and the notes")
def export(network, targets, out, checkpoint, from_layout, model, allow_pickle, untrained, input_size, strict,
           per_layer, minimize, weights, output, all_outputs, mean, std, json_file):
    """Export NETWORK (irstd-edge models lists them), or one of your own, to a bundle of files that run elsewhere.

    Prints the precision of every layer, requested and realised, and compares each file with PyTorch on the test
    vectors that it writes: a difference beyond the tolerance is an error (exit 4), and then nothing is written.
    """
    from rich.console import Console

    console = Console(stderr=True)
    notes: list[str] = []
    with console.status("loading") as status:
        import torch

        from irstd_edge.checkpoints import load_network
        from irstd_edge.export.pipeline import check_targets, export_bundle

        # One thread, as every runtime that verifies: others only wait for each other on small maps.
        torch.set_num_threads(1)
        targets = check_targets(targets)
        loaded = load_network(network, checkpoint=checkpoint, model=model, allow_pickle=allow_pickle, mean=mean,
                              std=std, untrained=untrained, from_layout=from_layout)
        status.update("exporting and verifying")
        manifest = export_bundle(loaded, targets, out, input_size, strict, per_layer=per_layer,
                                 repro=out.with_name(f"{out.name}-repro.py") if minimize else None,
                                 weights=weights, output=output, all_outputs=all_outputs, note=notes.append)
    show(manifest, out, notes)
    if json_file is not None:
        json_file.write({**asdict(manifest), "notes": notes})


def show(manifest, out: Path, notes: list[str]) -> None:
    """Print one row per layer, then a line per file."""
    from rich import box
    from rich.table import Table

    console = terminal.console()
    size = "x".join(map(str, manifest.reference_input))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{manifest.network} at {size}", title_justify="left")
    for name, justify in (("layer", "left"), ("requested", "left"), ("MACs", "right")):
        table.add_column(name, justify=justify, no_wrap=True)
    for artefact in manifest.artefacts:
        table.add_column(artefact.kind, no_wrap=True)
        table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("reason")
    by_kind = [{layer.name: layer for layer in a.layers} for a in manifest.artefacts]
    for name in dict.fromkeys(name for layers in by_kind for name in layers):
        found = [layers.get(name) for layers in by_kind]
        first = next(layer for layer in found if layer is not None)
        cells = [cell for layer in found for cell in _cells(layer)]
        reasons = [f"{a.kind}: {layer.reason}" for a, layer in zip(manifest.artefacts, found, strict=True)
                   if layer is not None and layer.reason]
        macs = "unknown" if first.macs is None else f"{first.macs:,}"
        table.add_row(name, first.requested, macs, *cells, "; ".join(reasons))
    console.print(table)
    for a in manifest.artefacts:
        lowered = sum(layer.downgraded for layer in a.layers)
        compressed = sum(layer.realised not in ("float32", "float16") for layer in a.layers)
        halved = sum(layer.realised == "float16" for layer in a.layers)
        shape = "any size" if a.input is None else f"{'x'.join(map(str, a.input))}{', resizable' * a.resizable}"
        console.print(f"{out / a.file}: {a.bytes / 1024:,.1f} KiB, {a.layout}, {shape}, "
                      f"{compressed} of {len(a.layers)} layers compressed"
                      f"{f', {halved} with 16-bit weights' if halved else ''}"
                      f"{f', {lowered} lowered' if lowered else ''}, verified", soft_wrap=True)
    for text in notes:
        console.print(f"note: {text}", soft_wrap=True)


def _cells(layer) -> tuple[str, str]:
    if layer is None:
        return "-", ""
    return (f"[yellow]{layer.realised}[/]" if layer.downgraded else layer.realised), f"{layer.bytes:,}"


def _given_size(context, parameter, text: str | None) -> tuple[int, int] | None:
    return _size(context, parameter, text) if text else None


@click.command()
@click.argument("path", type=_PATH, metavar="FILE|DIR", required=False)
@click.option("--input-size", metavar="H[xW]", callback=_given_size,
              help="Size at which memory and operations are counted; default the bundle's, or 256.")
@click.option("--arena-map", "map_file", type=_PATH, metavar="FILE.png|.svg",
              help="Draw where the engine keeps each map between layers, over the steps of a run (needs matplotlib).")
@click.option("--compare", "pair", type=(_PATH, _PATH), metavar="FILE FILE",
              help="Show two files side by side instead, tensor by tensor, on one input.")
@click.option("--input", "image", type=_PATH, metavar="IMAGE", help="Of --compare; default normal noise.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the noise.")
@json_option("the result")
def inspect(path, input_size, map_file, pair, image, seed, json_file):
    """Show the layers of a model.irstd, .onnx or .tflite, or of every file of a bundle.

    For all that our engine runs there are also the kernel of each layer on this machine, and the memory between layers.
    """
    from irstd_edge.export.inspect import inspect_path
    from irstd_edge.files import check_writable

    if (path is None) == (pair is None):
        raise click.UsageError("name a file or bundle, or --compare FILE FILE")
    if pair is None and image is not None:
        raise click.UsageError("--input goes with --compare FILE FILE")
    if map_file is not None and (pair is not None or path.is_dir()):
        raise click.UsageError("--arena-map draws one file; name it")
    if map_file is not None:
        if map_file.suffix.lower() not in (".png", ".svg"):
            raise click.UsageError(f"{map_file}: no picture format of that name; use .png or .svg")
        check_writable(map_file)
    if pair is not None:
        if image is not None and input_size is not None:
            raise click.UsageError("--input-size is that of noise; --input has its own")
        from irstd_edge.export.compare import compare_files

        comparison = compare_files(pair, image, input_size, seed)
        _show_comparison(comparison, pair)
        if json_file is not None:
            json_file.write(comparison.as_dict())
        return
    found = inspect_path(path, input_size)
    for inspection in found:
        _show_layers(inspection)
        if input_size not in (None, inspection.input):
            height, width = inspection.input
            click.echo(f"note: {inspection.file} is counted at {height}x{width}, for which it is written", err=True)
    if map_file is not None:
        from irstd_edge.export.arena import draw_arena

        draw_arena(found[0], map_file)
        click.echo(f"{map_file}: the memory of {found[0].file}")
    if json_file is not None:
        result = [i.as_dict() for i in found]
        json_file.write({"artefacts": result} if path.is_dir() else result[0])


def _print_table(columns: list[tuple[str, str]], rows: list[list]) -> None:
    """Names and alignments of the columns; whole numbers with separators, None as nothing."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in columns:
        table.add_column(name, justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else escape(v or "") for v in row))
    terminal.console().print(table)


def _show_layers(inspection) -> None:
    """Print one row per layer, then what the file is."""
    columns = [("layer", "left", lambda x: x.name), ("operator", "left", lambda x: x.op),
               ("precision", "left", lambda x: x.precision), ("kernel", "left", lambda x: x.kernel),
               ("result", "right", lambda x: x.shape and _times(x.shape)), ("bytes", "right", lambda x: x.bytes),
               ("memory", "right", lambda x: x.output_bytes), ("MACs", "right", lambda x: x.macs),
               ("MAC bits", "right", lambda x: x.mac_bits)]
    columns = [c for c in columns if any(c[2](layer) is not None for layer in inspection.layers)]
    _print_table([(name, justify) for name, justify, _ in columns],
                 [[value(layer) for _, _, value in columns] for layer in inspection.layers])
    terminal.console().print(f"{inspection.file}: {'; '.join(_facts(inspection))}", soft_wrap=True)


def _times(shape) -> str:
    return "x".join(map(str, shape))


def _facts(inspection) -> list[str]:
    facts = [f"{inspection.file_bytes / 1024:,.1f} KiB at {_times(inspection.input)}"]
    if inspection.is_counted and (p := inspection.precision).macs:
        facts += [f"{p.macs:,} MACs, {p.mac_bits:,} MAC bits (float32 / {p.compute_ratio:.1f})",
                  f"mean bits W {p.weight_bits_mean:.2f}, A {p.activation_bits_mean:.2f}"]
    if inspection.plans:
        facts.append(f"{inspection.arena_bytes / 1024:,.1f} KiB between layers "
                     f"(at least {inspection.arena_lower_bound_bytes / 1024:,.1f} KiB), {inspection.isa}")
    return facts


def _show_comparison(comparison, paths: tuple[Path, Path]) -> None:
    """Print one row per tensor that both files have, then the files and their outputs."""
    def row(name, x, shape: str, flipped: int | None = None) -> list:
        return [name, shape, f"{x.max_abs:.2g}", f"{x.cosine:.6f}", flipped]

    rows = [row(t.name, t, _times(t.shape)) for t in comparison.tensors]
    rows.append(row("output", comparison.output, "", comparison.output.flipped_pixels))
    _print_table([("tensor", "left"), ("shape", "right"), ("max abs", "right"), ("cosine", "right"),
                  (f"flipped at {comparison.threshold:g}", "right")], rows)
    console = terminal.console()
    console.print(f"on {comparison.input}", soft_wrap=True, markup=False)
    for path, inspection, only in zip(paths, comparison.files, comparison.only, strict=True):
        console.print(f"{path}: {'; '.join(_facts(inspection))}; {only} inner tensors that the other has not",
                      soft_wrap=True, markup=False)
