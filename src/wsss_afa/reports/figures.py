"""Figures of a sweep: its scores, and what its runs logged over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsss_afa.errors import UserError
from wsss_afa.reports.log import read_log
from wsss_afa.reports.table import SCORES

_LEAST_WIDTH = 4.0  # least range of an axis of scores in percent, so that a small difference looks small
_COLUMNS = 3  # panels of curves beside each other


def draw_scores(scores: pd.DataFrame, validation: str) -> Figure:
    """Draw each score of `tabulate`'s ``best`` or ``last`` validation: seeds, mean and standard deviation."""
    scores = scores[validation]
    titles = list(scores.index.unique("setting"))
    size = (1.5 + 0.07 * max(map(len, titles)) + 2.0 * scores.shape[1], 1.2 + 0.4 * len(titles))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    panels = figure.subplots(1, scores.shape[1], sharey=True, squeeze=False)[0]
    for axes, (name, column) in zip(panels, scores.items(), strict=True):
        for place, (_, values) in enumerate(column.groupby(level="setting", sort=False)):
            axes.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.4, ms=4)
            if values.count() > 1:
                error = {"xerr": values.std(), "fmt": "s", "color": "black", "ms": 3, "capsize": 3}
                axes.errorbar(values.mean(), place + 0.2, **error)
        axes.set_title(SCORES[name], fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        low, high = axes.get_xlim()
        half = 0.55 * max(high - low, _LEAST_WIDTH)
        axes.set_xlim((low + high) / 2 - half, (low + high) / 2 + half)
        axes.locator_params(axis="x", nbins=4)
    panels[0].set_yticks(range(len(titles)), titles, parse_math=False)
    panels[0].set_ylim(len(titles) - 0.5, -0.5)
    figure.supxlabel(f"{validation} validation (%); ■ mean ± standard deviation over seeds", fontsize=9)
    return figure


def draw_curves(settings: Mapping[str, Sequence[Path]], columns: Sequence[str]) -> Figure:
    """Draw a panel for each column: the mean over runs as a line, their standard deviation (n − 1) as a band.

    ``settings`` are the folders of each setting's runs, by its title; ``columns`` are of ``metrics.csv``.
    A run without that file, or a column that no run has, raises UserError.
    """
    logs = {title: [_read(folder) for folder in folders] for title, folders in settings.items()}
    known = sorted({name for each in logs.values() for log in each for name in log} - {"step", "epoch"})
    if absent := [name for name in columns if name not in known]:
        raise UserError(f"curves={absent[0]}: no run logged it; there are {', '.join(known)}")
    across = min(_COLUMNS, len(columns))
    down = -(-len(columns) // across)
    figure = Figure(figsize=(3.6 * across, 2.8 * down + 0.4), dpi=100, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, name in zip(panels, columns, strict=False):
        for title, each in logs.items():
            _draw_curve(axes, title, [log[name] for log in each if name in log])
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.3)
    for axes in panels[len(columns) :]:
        axes.set_axis_off()
    handles, titles = panels[0].get_legend_handles_labels()
    beside = max(1, int(figure.get_figwidth() / (0.5 + 0.075 * max(map(len, titles)))))  # inches of a title
    figure.legend(handles, titles, loc="outside lower center", ncols=beside, fontsize=8, frameon=False)
    return figure


def _read(folder: Path) -> dict[str, pd.Series]:
    if not (path := folder / "metrics.csv").is_file():
        raise UserError(f"{path} is missing, and curves are drawn from it: train with logger=csv")
    return read_log(path)


def _draw_curve(axes: Axes, title: str, runs: Sequence[pd.Series]) -> None:
    values = pd.DataFrame(dict(enumerate(runs)))
    mean, spread = values.mean(axis=1), values.std(axis=1).fillna(0)
    (line,) = axes.plot(mean, label=title)
    axes.fill_between(
        mean.index, mean - spread, mean + spread, color=line.get_color(), alpha=0.15, linewidth=0
    )
