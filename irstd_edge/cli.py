"""The command line. Commands are imported only when called, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from irstd_edge import __version__, errors

#: Command -> (module:attribute, one line of help). Each floor brings its own commands in its own ``cli.py``.
COMMANDS: dict[str, tuple[str, str]] = {
    "models": ("irstd_edge.models.cli:models", "List the networks: size, operations, measured accuracy."),
    "data": ("irstd_edge.training.cli:data", "Show the public data sets, where to get them, and check a local copy."),
    "train": ("irstd_edge.training.cli:train", "Train networks by recipes, one or several side by side."),
    "distill": ("irstd_edge.training.cli:distill", "Train a network with the help of a teacher."),
    "quantize": ("irstd_edge.training.quantise_cli:quantize",
                 "Quantise a network: calibrate, measure sensitivity, search bits, train."),
    "evaluate": ("irstd_edge.runtimes.cli:evaluate", "Measure IoU, nIoU, Pd and Fa of a network or bundle."),
    "export": ("irstd_edge.export.cli:export", "Export a network to a bundle of ONNX, TFLite and native files."),
    "inspect": ("irstd_edge.export.cli:inspect", "Show the layers of a file: precision, kernel, bytes, memory."),
    "verify": ("irstd_edge.runtimes.cli:verify", "Compare every artefact of a bundle with PyTorch on real images."),
    "detect": ("irstd_edge.runtimes.cli:detect", "Detect targets in images, folders and videos."),
    "benchmark": ("irstd_edge.benchmarks.cli:benchmark", "Measure latency, memory and accuracy; write a report."),
    "report": ("irstd_edge.benchmarks.cli:report", "Render report.json as HTML, markdown or a table."),
    "doctor": ("irstd_edge.runtimes.cli:doctor", "Tell which runtimes, instruction sets and tools are here."),
}


class LazyCommands(click.Group):
    """A group that lists its commands from the table and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name][0].split(":")
        return getattr(import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="irstd-edge")
def cli() -> None:
    """From a trained infrared small-target network to a measured deployment."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; known errors end in one line on standard error and the exit code of :mod:`irstd_edge.errors`."""
    try:
        code = cli.main(arguments, prog_name="irstd-edge", standalone_mode=False)
        return code if isinstance(code, int) else errors.OK
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.Abort:
        print("irstd-edge: stopped", file=sys.stderr)
        return 130
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except (errors.UnsupportedError, errors.ParityError, errors.MissingError) as e:
        code = {errors.UnsupportedError: errors.UNSUPPORTED, errors.ParityError: errors.PARITY}.get(
            type(e), errors.MISSING if isinstance(e, errors.MissingError) else errors.UNSUPPORTED
        )
        print(f"irstd-edge: {e}", file=sys.stderr)
        return code
    except (ValueError, OSError) as e:
        # Every error of ours that a user can cause is a ValueError whose message is one line with the way out; what may
        # be looked up besides, such as a long list of keys, follows.
        print("\n".join([f"irstd-edge: {e}", *errors.details(e)]), file=sys.stderr)
        return errors.USAGE


def entry_point() -> None:
    sys.exit(main())
