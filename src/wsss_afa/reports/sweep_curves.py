"""What the runs of a sweep logged, drawn over steps: a line for each setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsss_afa.errors import UserError
from wsss_afa.reports.run_log import read_log

_COLUMNS = 3
"""Panels beside each other."""


def read_curves(folder: Path) -> dict[str, dict[int, float]]:
    """Values by step, counted from 1, of every column of a run's ``metrics.csv``.

    Raises:
        UserError: there is no such file.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        raise UserError(f"{path} is missing, and curves are drawn from it: train with logger=csv")
    return read_log(path)


def draw_curves(settings: Mapping[str, Sequence[Path]], columns: Sequence[str]) -> Figure:
    """A panel for each column: mean over runs as a line, their standard deviation (n − 1) as a band.

    Args:
        settings: folders of the runs of each setting, by its title.
        columns: of ``metrics.csv``.

    Raises:
        UserError: no run has one of the columns.
    """
    runs = {title: [read_curves(folder) for folder in folders] for title, folders in settings.items()}
    known = sorted({name for each in runs.values() for run in each for name in run} - {"step", "epoch"})
    if absent := [name for name in columns if name not in known]:
        raise UserError(f"curves={absent[0]}: no run logged it; there are {', '.join(known)}")
    across = min(_COLUMNS, len(columns))
    down = -(-len(columns) // across)
    figure = Figure(figsize=(3.6 * across, 2.8 * down + 0.4), dpi=100, layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, name in zip(panels, columns, strict=False):
        for title, each in runs.items():
            _draw(axes, title, [run.get(name, {}) for run in each])
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.3)
    for axes in panels[len(columns) :]:
        axes.set_axis_off()
    handles, titles = panels[0].get_legend_handles_labels()
    beside = max(1, int(figure.get_figwidth() / (0.5 + 0.075 * max(map(len, titles)))))  # inches of a title
    figure.legend(handles, titles, loc="outside lower center", ncols=beside, fontsize=8, frameon=False)
    return figure


def _draw(axes: Axes, title: str, curves: Sequence[Mapping[int, float]]) -> None:
    steps = sorted({step for curve in curves for step in curve})
    values = [np.array([curve[step] for curve in curves if step in curve]) for step in steps]
    mean = np.array([each.mean() for each in values])
    spread = np.array([each.std(ddof=1) if len(each) > 1 else 0.0 for each in values])
    (line,) = axes.plot(steps, mean, label=title)
    axes.fill_between(steps, mean - spread, mean + spread, color=line.get_color(), alpha=0.15, linewidth=0)
