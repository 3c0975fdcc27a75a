"""The rows of ``peers.json``: one work on one engine and machine, measured or skipped with a reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from irstd_edge.benchmarks import statistics

SCHEMA_VERSION = 1
MACHINES = ("host", "cortex-a53", "cortex-a76")
_NUMBERS = ("ms_p50", "ms_p10", "ms_p90", "instructions", "peak_bytes", "max_abs", "error", "runs", "rounds")
_TEXTS = ("isa", "precision", "runtime", "skipped", "note")


class RowError(ValueError):
    """A row or a file of rows does not have the format; the message names it."""


def row(work: str, engine: str, machine: str = "host", **known) -> dict:
    """A row of every key, null where nothing is known; keys that are not ours are kept. Raises :class:`RowError`."""
    made = {"work": work, "engine": engine, "machine": machine}
    made |= dict.fromkeys((*_TEXTS, *_NUMBERS, "ratio")) | known
    name = f"{work}/{engine} on {machine}"
    if not (isinstance(work, str) and isinstance(engine, str) and machine in MACHINES):
        raise RowError(f"{name}: work and engine are texts, machine one of {', '.join(MACHINES)}")
    for keys, kinds in ((_NUMBERS, (int, float)), (_TEXTS, str)):
        if wrong := [k for k in keys if made[k] is not None and not isinstance(made[k], kinds)]:
            raise RowError(f"{name}: {', '.join(wrong)}: wrong type")
    ratio = made["ratio"]
    if ratio is not None and not (isinstance(ratio, dict) and {"to", "value", "ci95"} <= ratio.keys()):
        raise RowError(f"{name}: ratio is null or holds to, value and ci95")
    if made["skipped"] is None and made["ms_p50"] is None and made["instructions"] is None:
        raise RowError(f"{name}: neither measured nor skipped")
    return made


def latencies(rounds: Sequence[np.ndarray]) -> dict:
    """``ms_p50``, ``ms_p10``, ``ms_p90``, ``runs`` and ``rounds`` of latencies in ms, one array per round."""
    samples = np.concatenate(rounds)
    p10, p50, p90 = (float(v) for v in np.percentile(samples, [10, 50, 90]))
    return {"ms_p50": p50, "ms_p10": p10, "ms_p90": p90, "runs": len(samples), "rounds": len(rounds)}


def ratio(rounds: Sequence[np.ndarray], base: Sequence[np.ndarray], to: str, rng: np.random.Generator) -> dict:
    """``{to, value, ci95}``: time over the time of ``to`` (below 1 is faster), paired by rounds."""
    value, interval = statistics.paired_ratio(rounds, base, rng)
    return {"to": to, "value": value, "ci95": list(interval)}


def read(file: Path) -> list[dict]:
    """The rows of another part's file (a list, or under ``rows``); none where there is no file."""
    if not file.is_file():
        return []
    try:
        found = json.loads(file.read_text())
        found = found["rows"] if isinstance(found, dict) else found
        return [row(**one) for one in found]
    except (json.JSONDecodeError, KeyError, TypeError) as e:
        raise RowError(f"{file}: holds no rows ({e})") from e
    except RowError as e:
        raise RowError(f"{file}: {e}") from e
