"""Tables and plots of the oracle's records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Record = dict[str, Any]
METHODS = ("coarse", "PAR", "CRF", "PAR + CRF")
"""Of the study refinement, in the order of the columns."""


def stops_helping(false: Sequence[float], gain: Sequence[float]) -> float:
    """False affinity at which the gain first falls to 0, between points in a straight line.

    0 where there is never a gain, infinity where it never ends.
    """
    if gain[0] <= 0:
        return 0.0
    for i in range(1, len(gain)):
        if gain[i] <= 0:
            return false[i - 1] + (false[i] - false[i - 1]) * gain[i - 1] / (gain[i - 1] - gain[i])
    return math.inf


def curves(records: Sequence[Record], walk: Record) -> tuple[float, dict[str, list[tuple[float, float]]]]:
    """The coarse map's mIoU, and by name of a walk its (false affinity, gain)."""
    coarse = next(each["miou"] for each in records if each["false"] is None)
    found: dict[str, list[tuple[float, float]]] = {}
    for each in records:
        if each["false"] is not None:
            found.setdefault(_title(each, walk), []).append((each["false"], each["miou"] - coarse))
    return coarse, found


def _title(record: Record, walk: Record) -> str:
    changed = [
        key if record[key] is True else f"{key.removeprefix('num_').replace('_', ' ')} {record[key]:g}"
        for key in walk
        if key != "kind" and record[key] != walk[key]
    ]
    return ", ".join([record["kind"], *changed])


def print_tables(results: Record, walk: Record, console: Console) -> None:
    """Print what was studied."""
    console.print(f"images    {results['images']}, seed {results['seed']}; mIoU (%)", highlight=False)
    if "refinement" in results:
        console.print(_refinement_table(results["refinement"]))
    if "par" in results:
        console.print(_par_table(results["par"]))
    if "propagation" in results:
        console.print(_propagation_table(results["propagation"], walk))


def _table(title: str, columns: Sequence[str], names: int) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < names else "right", no_wrap=True)
    return table


def _refinement_table(records: Sequence[Record]) -> Table:
    table = _table("refinement of coarse maps: mIoU (background scores)", ["blur", "dropped", *METHODS], 2)
    for maps in dict.fromkeys((each["blur"], each["dropped"]) for each in records):
        own = {each["method"]: each for each in records if (each["blur"], each["dropped"]) == maps}
        cells = [_cell(own[method]) if method in own else "" for method in METHODS]
        table.add_row(*(f"{value:g}" for value in maps), *cells)
    return table


def _cell(record: Record) -> str:
    backgrounds = " ".join(f"{score:g}".lstrip("0") for score in record["background"])
    return f"{record['miou']:.1f} ({backgrounds})"


def _par_table(records: Sequence[Record]) -> Table:
    coarse = next(each["miou"] for each in records if each["iterations"] == 0)
    counts = sorted({each["iterations"] for each in records} - {0})
    title = f"settings of PAR: mIoU by iterations; the coarse map has {coarse:.1f}"
    table = _table(title, ["size", "dilations", *map(str, counts)], 2)
    for (size, dilations), points in _par_lines(records).items():
        table.add_row(size, dilations, *(f"{miou:.1f}" for _, miou in points))
    return table


def _par_lines(records: Sequence[Record]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """By size and dilations, and kernel where there are several: (iterations, mIoU)."""
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    kernels = {tuple(each["kernel"]) for each in records if each["iterations"]}
    for each in records:
        if each["iterations"]:
            name = " ".join(map(str, each["dilations"]))
            if len(kernels) > 1:
                name += "; w1 {:g}, w2 {:g}".format(*each["kernel"])
            key = (f"1/{each['downscale']}", name)
            lines.setdefault(key, []).append((each["iterations"], each["miou"]))
    return lines


def _propagation_table(records: Sequence[Record], walk: Record) -> Table:
    coarse, lines = curves(records, walk)
    shares = [false for false, _ in next(iter(lines.values()))]
    title = f"propagation: gain by mean false affinity; the coarse map has {coarse:.1f}"
    table = _table(title, ["affinity", *(f"{share:g}" for share in shares), "stops at"], 1)
    for name, points in lines.items():
        gains = [gain for _, gain in points]
        end = stops_helping(shares, gains)
        limit = f"> {shares[-1]:g}" if math.isinf(end) else f"{end:.2f}"
        table.add_row(name, *(f"{gain:+.1f}" for gain in gains), limit)
    return table


def draw(results: Record, walk: Record) -> dict[str, Figure]:
    """A figure for each study."""
    figures = {}
    if "refinement" in results:
        figures["refinement"] = _draw_refinement(results["refinement"])
    if "par" in results:
        figures["par"] = _draw_par(results["par"])
    if "propagation" in results:
        figures["propagation"] = _draw_propagation(results["propagation"], walk)
    return figures


def _panels(titles: Sequence[str], label: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(0.8 + 2.5 * len(titles), 4.2), dpi=90, layout="constrained")
    panels = list(figure.subplots(1, len(titles), sharey=True, squeeze=False)[0])
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(label)
    return figure, panels


def _legend(axes: Axes, title: str | None = None) -> None:
    """Below the panel, where it hides no line."""
    axes.legend(fontsize=8, title=title, title_fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.2))


def _draw_refinement(records: Sequence[Record]) -> Figure:
    blurs = list(dict.fromkeys(each["blur"] for each in records))
    figure, panels = _panels([f"blur {blur:g} cells" for blur in blurs], "mIoU (%)")
    for axes, blur in zip(panels, blurs, strict=True):
        for place, method in enumerate(METHODS):
            own = [each for each in records if (each["blur"], each["method"]) == (blur, method)]
            shares, scores = [each["dropped"] for each in own], [each["miou"] for each in own]
            line = "--" if method == "coarse" else "-"
            axes.plot(shares, scores, line, marker=".", color=f"C{place}", label=method if own else None)
        axes.set_xlabel("share of cells dropped")
        _legend(axes)
    return figure


def _draw_par(records: Sequence[Record]) -> Figure:
    coarse = next(each["miou"] for each in records if each["iterations"] == 0)
    lines = _par_lines(records)
    sizes = list(dict.fromkeys(size for size, _ in lines))
    figure, panels = _panels([f"size {size}" for size in sizes], "mIoU (%)")
    for axes, own in zip(panels, sizes, strict=True):
        axes.axhline(coarse, color="grey", linestyle="--", label="coarse")
        for (size, dilations), points in lines.items():
            if size == own:
                axes.plot(*zip(*[(0, coarse), *points], strict=True), marker=".", label=dilations)
        axes.set_xlabel("iterations")
        axes.set_xticks([0, *sorted({each["iterations"] for each in records} - {0})])
        _legend(axes, "dilations")
    return figure


def _draw_propagation(records: Sequence[Record], walk: Record) -> Figure:
    """A panel for the kinds, and one for each thing that curves change, beside the same kind unchanged."""
    _, lines = curves(records, walk)
    groups: dict[str, list[str]] = {"kind": [name for name in lines if "," not in name]}
    for name in lines:
        kind, *changes = name.split(", ")
        for change in changes[:1]:
            group = groups.setdefault(change.rpartition(" ")[0] or change, [])
            group += [each for each in (kind, name) if each in lines and each not in group]
    figure, panels = _panels(list(groups), "gain in mIoU (points)")
    for axes, names in zip(panels, groups.values(), strict=True):
        axes.axhline(0, color="grey", linewidth=1)
        for name in names:
            axes.plot(*zip(*lines[name], strict=True), marker=".", label=name)
        axes.set_xlabel("mean false affinity")
        _legend(axes)
    return figure
