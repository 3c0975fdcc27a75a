"""The table of accuracy, measured and still to be measured, of ``docs/results.md``.

``python -m irstd_edge.zoo.results`` rewrites it from the cards of the zoo, and from the facts of networks that are
measured but not shipped: :data:`MEASURED` holds ``DATASET/NAME.json`` as :mod:`irstd_edge.zoo.card` writes it. A test
asserts that the page is up to date.
"""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from irstd_edge.data import DATASETS
from irstd_edge.zoo import network_of, zoo_card, zoo_names

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "results.md"
MEASURED = PAGE.with_suffix("")
HEAD = "| network | data set | asked | IoU | nIoU | Pd | Fa | trained |"
_OPTIONS = "--dataset DATASET --root DATA --seed 1 --seed 2 --seed 3 --device cuda --out runs/DATASET/"
NUAA, NUDT, IRSTD = DATASETS


@dataclass(frozen=True)
class Row:
    """A network that is to be measured on data sets.

    ``commands`` train it, NETWORK, DATASET and DATA to be replaced; ``asked`` is what it should reach, by data set;
    ``card`` measures it, where that needs another command than :data:`_EVALUATION`.
    """

    network: str
    commands: tuple[str, ...]
    asked: dict[str, str] = field(default_factory=dict)
    datasets: tuple[str, ...] = (NUAA, NUDT, IRSTD)
    card: str = ""


def _trained(network: str, recipe: str = "NETWORK-nuaa", **more) -> Row:
    return Row(network, (f"irstd-edge train {recipe} {_OPTIONS}NETWORK",), **more)


def _everywhere(text: str) -> dict[str, str]:
    return dict.fromkeys((NUAA, NUDT, IRSTD), text)


_BIISNET = {NUAA: "IoU 0.70, Pd 0.92", NUDT: "IoU 0.75, Pd 0.96", IRSTD: "IoU 0.60, Pd 0.88"}
_RESUNET, _SFORMER = (f"runs/DATASET/{n}/{n}-nuaa-seed1/best.safetensors" for n in ("resunet", "sformer"))
_TEACHER = "runs/DATASET/resunet-three/resunet-nuaa-seed1/best.safetensors"
_CARD = "python -m irstd_edge.zoo.card runs/{0}/NETWORK/*/ --name NETWORK --root DATA --out cards/{0}"
#: The official 341 / 86 split.
_OFFICIAL = f"{NUAA}:idx_427"
_MDPNET = (f"irstd-edge train sformer-nuaa {_OPTIONS}sformer",
           f"irstd-edge distill mdpnet-sformer-nuaa --teacher-checkpoint {_SFORMER} {_OPTIONS}mdpnet")


def _official(command: str) -> str:
    return command.replace("--dataset DATASET", f"--dataset {_OFFICIAL}/trainval").replace("DATASET", "official")


ROWS = (
    _trained("acm"), _trained("alcnet"), _trained("dnanet"), _trained("resunet"),
    _trained("resunet-three", "resunet-nuaa --network NETWORK"),
    _trained("biisnet", asked=_BIISNET), _trained("biisnet-fine", "biisnet-nuaa --network NETWORK", asked=_BIISNET),
    *(_trained(f"biisnet-{kind}", "biisnet-nuaa --network NETWORK", datasets=(NUAA,)) for kind in (
        "float", "modulate", "pointwise", "nopath", "ste", "approxsign", "tanh", "xnor", "bireal", "reactnet",
        "bisrnet")),
    Row("mdpnet", tuple(map(_official, _MDPNET)), {f"{_OFFICIAL}/test": "nIoU 0.7488, Pd 0.9908"},
        (f"{_OFFICIAL}/test",), _CARD.format("official").replace("NETWORK", "mdpnet") + f" --dataset {_OFFICIAL}/test"),
    Row("sformer", (_official(_MDPNET[0]),), datasets=(f"{_OFFICIAL}/test",)),
    Row("mdpnet", _MDPNET, {NUDT: "nIoU 0.7510, Pd 0.9788", IRSTD: "IoU 0.63"}, (NUDT, IRSTD)),
    Row("resunet-one", (
        f"irstd-edge distill resunet-one-msa-nuaa --teacher-checkpoint {_TEACHER} {_OPTIONS}resunet-one",
    ), _everywhere("IoU within 0.005 of resunet-three, 1/4 of its MACs or less; 0.015 above the plain student")),
    Row("resunet-spmix", (
        f"irstd-edge quantize resunet --checkpoint {_RESUNET} --spm --max-weight-bits 2.25 --train resunet-spmix-nuaa "
        f"{_OPTIONS}resunet-spmix",
    ), _everywhere("IoU within 0.01 of resunet, at least 0.03 above homogeneous quantisation of equal size")),
)
_EVALUATION = (_CARD.format("DATASET"),
               "mkdir -p docs/results/DATASET && cp cards/DATASET/NETWORK.json docs/results/DATASET/",
               "python -m irstd_edge.zoo.results")


def cards_of(network: str) -> list[tuple[dict, bool]]:
    """Facts of the weights of a network, and whether the zoo ships them; the shipped ones first."""
    files = [f for f in sorted(MEASURED.glob("*/*.json")) if network_of(f.stem) == network]
    return ([(zoo_card(name), True) for name in zoo_names(network)]
            + [(json.loads(f.read_text(encoding="utf-8")), False) for f in files])


def _measured(row: Row, dataset: str) -> list[tuple[str, ...]]:
    """What every card of a network says of a data set."""
    found = [(f"`{card['name']}`", _figures(card, dataset, shipped)) for card, shipped in cards_of(row.network)
             if dataset in card["metrics"]]
    return [(name, dataset, row.asked.get(dataset, ""), *figures)
            for name, figures in found or [(f"`{row.network}`", ("-",) * 5)]]


def _figures(card: dict, dataset: str, shipped: bool) -> tuple[str, ...]:
    found = card["metrics"][dataset]
    sets = " + ".join(card["training"]["datasets"])
    ious = [run["metrics"][dataset]["iou"] for run in card.get("runs", [])]
    spread = (f", one of {len(ious)} seeds: IoU {statistics.fmean(ious):.4f} ± {statistics.stdev(ious):.4f}"
              if ious else "")
    return (*(f"{found[k]:.4f}" for k in ("iou", "niou", "pd")), f"{1e6 * found['fa']:.1f}e-6",
            f"{sets}, {card['training']['epochs_done']} epochs{spread}{'' if shipped else '; not in the zoo'}")


def _work(student: str, teacher: str) -> str:
    """How far a student is from a quarter of its teacher's work, which no training changes."""
    own, whole = (zoo_card(name)["complexity"]["macs"] for name in (student, teacher))
    kept = "keeps to" if 4 * own <= whole else "misses"
    return (f"`{student}` has {own:,} of `{teacher}`'s {whole:,} MACs, {own / whole:.4f}: it {kept} 1/4 by "
            "construction, whatever its training.")


def tables() -> str:
    """The table as markdown, what its cards say of the asked sizes, and the commands of its rows."""
    lines = [HEAD, "|---" * HEAD.count(" | ") + "|---|"]
    for row in ROWS:
        lines += ["| " + " | ".join(cells) + " |" for dataset in row.datasets for cells in _measured(row, dataset)]
    commands = dict.fromkeys(command for row in ROWS for command in row.commands)
    work = _work("resunet-one", "resunet-three")
    cards = [*(row.card for row in ROWS if row.card), *_EVALUATION]
    return "\n".join([*lines, "", work, "", "```sh", *commands, *cards, "```", ""])


def page(text: str) -> str:
    """The page with its table and commands up to date."""
    other = r"(?:(?!```).*\n)*"
    found = re.search(rf"^{re.escape(HEAD)}\n(\|.*\n)+{other}```sh\n{other}```\n", text, re.MULTILINE)
    return text[:found.start()] + tables() + text[found.end():]


if __name__ == "__main__":
    from irstd_edge.files import write_text

    write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))
