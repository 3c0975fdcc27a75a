"""The plan of the engine's memory as a picture."""

from __future__ import annotations

from pathlib import Path

from irstd_edge.errors import UnsupportedError
from irstd_edge.export.inspect import Inspection, Plan
from irstd_edge.plots import plotting

#: Buffers of at least this share of the arena have their names in the picture.
_NAMED = 0.018
_SCRATCH = "0.6"


def draw_arena(inspection: Inspection, path: Path) -> None:
    """Write a PNG or SVG (by suffix) of every plan: where each buffer lies in the arena, over the steps of a run.

    On the left the whole run, on the right as many steps from its middle as there are layers. Each row of pictures is
    one plan: a file has one, or one for each Program in it.

    Raises :class:`UnsupportedError` where the file holds nothing that our engine runs,
    :class:`~irstd_edge.errors.MissingError` without matplotlib, and :class:`~irstd_edge.data.DataError`.
    """
    if not inspection.plans:
        raise UnsupportedError(f"{inspection.file}: no part of it runs in our engine, so there is no arena to draw; "
                               "export with --to native")
    title = f"{inspection.file} at {'x'.join(map(str, inspection.input))}, {inspection.isa}"
    with plotting(path, title, rows=len(inspection.plans), size=(9, 6)) as axes:
        for plan, (whole, part) in zip(inspection.plans, axes, strict=True):
            steps, count = len(plan.steps), len(plan.layers)
            start = max(0, min(steps // 2, steps - count))
            _draw(whole, plan, 0, steps)
            _draw(part, plan, start, min(steps, start + count))
            whole.set_title(f"{plan.name}: the run, {plan.arena_bytes / 1024:,.1f} KiB, at least "
                            f"{plan.arena_lower_bound_bytes / 1024:,.1f} KiB alive at once", fontsize="small")
            part.set_title(f"{part.get_xlim()[1] - part.get_xlim()[0]:.0f} steps of its middle", fontsize="small")


def in_use(plan: Plan, buffer: dict, first: int, last: int) -> list[tuple[int, int]]:
    """The parts of steps ``first`` to ``last - 1`` in which a buffer is in use, as (first step, number of steps)."""
    found: list[tuple[int, int]] = []
    for step in range(max(first, buffer["first_step"]), min(last, buffer["last_step"] + 1)):
        if buffer["first_layer"] <= plan.steps[step][0] <= buffer["last_layer"]:
            if found and sum(found[-1]) == step:
                found[-1] = (found[-1][0], found[-1][1] + 1)
            else:
                found.append((step, 1))
    return found


def _draw(axis, plan: Plan, first: int, last: int) -> None:
    from matplotlib import colormaps

    colours = colormaps["tab20"].colors
    for i, buffer in enumerate(plan.buffers):
        place, size = buffer["offset"] / 1024, buffer["bytes"] / 1024
        spans = in_use(plan, buffer, first, last)
        axis.broken_barh(spans, (place, size), facecolor=colours[i % len(colours)], linewidth=0)
        if spans and buffer["bytes"] >= _NAMED * plan.arena_bytes:
            text = f"{buffer['name']}, {buffer['rows']} rows of {buffer['holds']}"
            axis.text(spans[0][0], place + size / 2, text, fontsize="xx-small", va="center", clip_on=True)
    if plan.scratch_bytes:
        place, size = plan.scratch_offset / 1024, plan.scratch_bytes / 1024
        axis.broken_barh([(first, last - first)], (place, size), facecolor=_SCRATCH, linewidth=0)
        if plan.scratch_bytes >= _NAMED * plan.arena_bytes:
            axis.text(first, place + size / 2, "scratch", fontsize="xx-small", va="center")
    axis.set_xlim(first, last)
    axis.set_ylim(0, plan.arena_bytes / 1024)
    axis.set_xlabel("step of the run")
    axis.set_ylabel("KiB of the arena")
