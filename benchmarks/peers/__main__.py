"""``python -m irstd_edge.benchmarks.peers``: our engines and others on the same networks. See docs/peers.md."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click

from irstd_edge.benchmarks.peers.engines import ENGINES
from irstd_edge.benchmarks.peers.works import WORKS


def _names(known) -> object:
    def parse(context, parameter, text: str | None) -> tuple[str, ...]:
        names = tuple(known) if text is None else tuple(name.strip() for name in text.split(","))
        if unknown := [name for name in names if name not in known]:
            raise click.BadParameter(f"no {', '.join(unknown)}; known: {', '.join(known)}")
        return names

    return parse


@click.command()
@click.option("--works", metavar="A,B", callback=_names(WORKS), help=f"Of: {', '.join(WORKS)}. Default: all.")
@click.option("--engines", metavar="A,B", callback=_names(ENGINES), help=f"Of: {', '.join(ENGINES)}. Default: all.")
@click.option("--rounds", type=click.IntRange(2), default=40, show_default=True, help="Interleaved rounds per work.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of every engine.")
@click.option("--isa", type=click.Choice(["avx2"]), help="Hold all engines to it; where that fails they say auto.")
@click.option("--patience", type=click.FloatRange(0), default=600, show_default=True,
              help="Seconds in all to wait for processors that others use, and to measure again.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order within rounds and of intervals.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="build/peers", show_default=True,
              help="Folder of the environments, models and results.")  # fmt: skip
def main(works, engines, rounds, threads, isa, patience, seed, out) -> None:
    """Build an environment per engine, measure all of them interleaved, write peers.json, peers.md and peers.png."""
    from irstd_edge.benchmarks.peers import figures, report
    from irstd_edge.benchmarks.peers.rows import RowError
    from irstd_edge.benchmarks.peers.run import Options, run
    from irstd_edge.files import write_text

    command = shlex.join(["python", "-m", __package__, *sys.argv[1:]])
    try:
        document = run(
            Options(works=works, engines=engines, rounds=rounds, threads=threads, isa=isa, patience=patience, seed=seed,
                    out=out),
            command, lambda text: click.echo(text, err=True),
        )  # fmt: skip
    except RowError as e:
        raise click.ClickException(str(e)) from e
    document["extras"] = figures.extras(out)
    text = report.markdown(document) + "\n## Figures\n\n" + figures.markdown(document)
    write_text(out / "peers.json", json.dumps(document, indent=1) + "\n")
    write_text(out / "peers.md", text)
    report.plot(document, out / "peers.png")
    click.echo(text)


if __name__ == "__main__":
    main()
