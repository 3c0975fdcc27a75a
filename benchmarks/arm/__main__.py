"""``python -m irstd_edge.benchmarks.arm``: counts instructions and writes build/arm/instructions.json."""

from __future__ import annotations

import json
import sys
import time

import click

from irstd_edge.benchmarks.peers import rows
from irstd_edge.files import write_text

from . import models, ours
from .emulate import BUILD, HERE, MissingError
from .peers import count_peer

WORKS = tuple(dict.fromkeys((*(work for found in ours.WORKS.values() for work in found), *models.WORKS)))
ENGINES = (*ours.WORKS, *models.PEERS)
CORES = tuple(name for name in rows.MACHINES if name != "host")


def count(work: str, engine: str, core: str) -> dict:
    if engine in ours.WORKS:
        isa, counted = ours.count_ours(work, core, engine=engine)
        return {"isa": isa, "precision": ours.precision(work, engine), "instructions": counted.windows[-1]}
    return count_peer(work, engine, core)


@click.command()
@click.option("--work", "works", multiple=True, default=WORKS, type=click.Choice(WORKS), show_default=True)
@click.option("--engine", "engines", multiple=True, default=ENGINES, type=click.Choice(ENGINES), show_default=True)
@click.option("--core", "cores", multiple=True, default=CORES, type=click.Choice(CORES), show_default=True)
@click.option("--write-budgets", is_flag=True, help="Take our counts as the budgets that the tests hold them to.")
def main(works, engines, cores, write_budgets):
    """Count the instructions of one inference, one thread, on emulated cores. Rows of other runs are kept."""
    path = BUILD / "instructions.json"
    found = {}
    for work in works:
        for engine in engines:
            if work not in ours.WORKS.get(engine, models.WORKS):
                continue
            for core in cores:
                start = time.monotonic()
                row = rows.row(work, engine, core, **count(work, engine, core))
                # Read anew each time: another run may have added its own.
                found = {(r["work"], r["engine"], r["machine"]): r for r in rows.read(path)}
                found[work, engine, core] = row
                write_text(path, json.dumps({"rows": list(found.values())}, indent=1) + "\n")
                text = f"{row['instructions'] / 1e6:9.2f} M" if row["instructions"] else row["skipped"]
                print(f"{work:21} {engine:12} {core:10} {text}  ({time.monotonic() - start:.0f} s)", flush=True)
    if write_budgets:
        path = HERE / "budgets.json"
        held = ours.WORKS[ours.ENGINE]
        budgets = {work: cores for work, cores in json.loads(path.read_text()).items() if work in held}
        for (work, engine, core), row in sorted(found.items()):
            if engine == ours.ENGINE:
                budgets.setdefault(work, {})[core] = {"isa": row["isa"], "instructions": row["instructions"]}
        write_text(path, json.dumps(dict(sorted(budgets.items())), indent=1) + "\n")


try:
    main()
except MissingError as e:
    sys.exit(f"error: {e}")
