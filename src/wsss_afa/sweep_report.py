"""Runs of a sweep as one table: ``python -m wsss_afa.sweep_report runs=runs/train/…``.

A row is a setting, over its seeds; seeds are shared between rows, so differences are paired. What is
missing is named: a mean over fewer seeds than its neighbour's is not comparable with it.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console
from scipy import stats

from wsss_afa.callbacks.scores import COLUMNS
from wsss_afa.cli.entry_point import entry_point
from wsss_afa.errors import UserError
from wsss_afa.files import write_whole
from wsss_afa.reports.sweep_curves import draw_curves
from wsss_afa.reports.sweep_runs import Run, Sweep, find_runs, label
from wsss_afa.visualize import save_figure

SCORES = {**COLUMNS, "map": "mAP"}
"""Columns of the table by name of the score."""
VALIDATIONS = ("best", "last")
"""What of a training run is shown; an evaluation has one record, which stands for both."""
FILE = "sweep_report"
"""Of what is written, without ending."""
_LEAST_WIDTH = 4.0
"""Of a panel, in percent: what is next to nothing shall look so."""


class Row(NamedTuple):
    """One setting."""

    title: str
    """The overrides that other rows do not share."""
    runs: dict[int, Run]
    """By seed."""

    def values(self, validation: str, score: str) -> dict[int, float]:
        """Percent by seed, of the runs that have this score."""
        scores = {seed: run.scores[validation].get(score, math.nan) for seed, run in self.runs.items()}
        return {seed: value for seed, value in scores.items() if not math.isnan(value)}

    def final(self, validation: str) -> dict[int, float]:
        """What differences are taken of: after the CRF, else segmentation, else without masks the mAP."""
        return next(filter(None, (self.values(validation, name) for name in ("crf", "seg", "map"))), {})


class Spread(NamedTuple):
    """A mean and how sure it is."""

    mean: float
    """NaN of nothing."""
    spread: float
    """Standard deviation or standard error; NaN of fewer than two."""
    seeds: tuple[int, ...]
    """That it is made of."""

    def __str__(self) -> str:
        if not self.seeds:
            return "–"
        return f"{round(self.mean, 1) + 0:.1f}" + ("" if math.isnan(self.spread) else f" ± {self.spread:.1f}")


def summarise(values: dict[int, float]) -> Spread:
    """Mean and standard deviation (n − 1) over seeds."""
    numbers = np.array(list(values.values()))
    mean = float(numbers.mean()) if len(numbers) else math.nan
    spread = float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan
    return Spread(mean, spread, tuple(sorted(values)))


def paired_difference(values: dict[int, float], first: dict[int, float]) -> Spread:
    """Mean of the differences at common seeds, and its standard error."""
    differences = summarise({seed: values[seed] - first[seed] for seed in values.keys() & first.keys()})
    return differences._replace(spread=differences.spread / math.sqrt(max(len(differences.seeds), 1)))


def p_value(difference: Spread) -> float:
    """Of a paired difference, two-sided, by Student's t (Gosset, 1908); NaN where seeds do not differ.

    Args:
        difference: from `paired_difference`.
    """
    if not difference.spread > 0:
        return math.nan
    t = abs(difference.mean) / difference.spread
    return float(2 * stats.t.sf(t, len(difference.seeds) - 1))


def make_rows(sweep: Sweep) -> tuple[list[Row], list[str]]:
    """Runs by setting, in order of appearance, and what is wrong with them.

    Of two runs of one setting and seed the later one counts.
    """
    groups: dict[str, dict[int, Run]] = {}
    problems = []
    for run in sweep.runs:
        group = groups.setdefault(run.settings, {})
        if run.seed in group:
            problems.append(f"{group[run.seed].folder}: has setting and seed of {run.folder}, which counts")
        group[run.seed] = run
    first = [next(iter(group.values())) for group in groups.values()]
    rows = [
        Row(label(run.overrides, sweep.common), group)
        for run, group in zip(first, groups.values(), strict=True)
    ]
    return rows, problems + [f"{row.title}: no seed {seed}" for row in rows for seed in _lacking(row, rows)]


def _lacking(row: Row, rows: Sequence[Row]) -> list[int]:
    """Seeds that other rows have."""
    return sorted({seed for other in rows for seed in other.runs} - row.runs.keys())


def _seeds(row: Row, rows: Sequence[Row]) -> str:
    lacking = _lacking(row, rows)
    return _join(sorted(row.runs)) + (f" (not {_join(lacking)})" if lacking else "")


def _join(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _present(rows: Sequence[Row]) -> list[str]:
    return [name for name in SCORES if any(row.values(each, name) for row in rows for each in VALIDATIONS)]


def write_markdown(rows: Sequence[Row], problems: Sequence[str]) -> str:
    """A table for the best and one for the last validation, and what is missing."""
    lines = [
        f"Runs: {sum(len(row.runs) for row in rows)}. Percent: mean ± standard deviation over seeds.",
        "Δ: of segmentation, after the CRF where there is one, to the first row: mean of the differences at",
        "common seeds ± its standard error, and p of a paired t-test.",
    ]
    for validation in VALIDATIONS:
        lines += ["", f"**{validation} validation**", "", *_table(rows, validation)]
    if problems:
        lines += ["", "**missing**", "", *(f"- {problem}" for problem in problems)]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row], validation: str) -> list[str]:
    names = _present(rows)
    lines = [
        "| " + " | ".join(["setting", "seeds", *(SCORES[name] for name in names), "Δ"]) + " |",
        "|---|---|" + "---:|" * (len(names) + 1),
    ]
    first = rows[0].final(validation)
    for row in rows:
        cells = [str(summarise(row.values(validation, name))) for name in names]
        delta = "" if row is rows[0] else _signed(paired_difference(row.final(validation), first), row)
        cells = [row.title.replace("|", "\\|"), _seeds(row, rows), *cells, delta]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _signed(difference: Spread, row: Row) -> str:
    """With a sign and p; and with the seeds where they are not all of the row's."""
    sign = "+" * (not math.isnan(difference.mean) and not str(difference).startswith("-"))
    fewer = difference.seeds and len(difference.seeds) < len(row.runs)
    notes = [] if math.isnan(p := p_value(difference)) else ["p < 0.001" if p < 5e-4 else f"p = {p:.3f}"]
    notes += [f"seeds {_join(difference.seeds)}"] if fewer else []
    return f"{sign}{difference}" + (f" ({'; '.join(notes)})" if notes else "")


def write_csv(rows: Sequence[Row]) -> str:
    """A line for each row, validation and score; seeds and their values are separated by spaces."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    header = ["setting", "validation", "score", "mean", "std", "seeds", "values", "delta", "delta_se", "p"]
    writer.writerow(header)
    for row in rows:
        for validation in VALIDATIONS:
            for name in _present(rows):
                values, first = row.values(validation, name), rows[0].values(validation, name)
                summary = summarise(values)
                delta = paired_difference(values, {} if row is rows[0] else first)
                each = " ".join(f"{values[seed]:.3f}" for seed in summary.seeds)
                numbers = [_number(summary.mean), _number(summary.spread)]
                deltas = [
                    _number(delta.mean),
                    _number(delta.spread),
                    "" if math.isnan(p := p_value(delta)) else f"{p:.2g}",
                ]
                seeds = " ".join(map(str, summary.seeds))
                writer.writerow([row.title, validation, name, *numbers, seeds, each, *deltas])
    return buffer.getvalue()


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def draw_rows(rows: Sequence[Row], validation: str) -> Figure:
    """A panel for each score: seeds as dots, mean and standard deviation beside them."""
    names = _present(rows)
    size = (1.5 + 0.07 * max(len(row.title) for row in rows) + 2.0 * len(names), 1.2 + 0.4 * len(rows))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for place, row in enumerate(rows):
            values = row.values(validation, name)
            mean, spread, _ = summarise(values)
            axes.plot(list(values.values()), [place] * len(values), "o", color="tab:blue", alpha=0.4, ms=4)
            if len(values) > 1:
                axes.errorbar(mean, place + 0.2, xerr=spread, fmt="s", color="black", ms=3, capsize=3)
        axes.set_title(SCORES[name], fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        low, high = axes.get_xlim()
        wide = max(high - low, _LEAST_WIDTH) / 2
        axes.set_xlim((low + high) / 2 - 1.1 * wide, (low + high) / 2 + 1.1 * wide)
        axes.locator_params(axis="x", nbins=4)
    panels[0].set_yticks(range(len(rows)), [row.title for row in rows], parse_math=False)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel(f"{validation} validation (%); ■ mean ± standard deviation over seeds", fontsize=9)
    return figure


@entry_point("sweep_report")
def main(cfg: DictConfig) -> float:
    """Write and print the table of all runs below the folders; return how many things are missing."""
    if cfg.plot not in VALIDATIONS:
        raise UserError(f"plot={cfg.plot}: need best or last")
    folders = [Path(each) for each in ([cfg.runs] if isinstance(cfg.runs, str) else cfg.runs)]
    sweep = find_runs(folders)
    if not sweep.runs:
        reason = sweep.missing[0] if sweep.missing else "no run"
        raise UserError(f"runs={cfg.runs}: nothing finished below ({reason}); name the folder of a sweep")
    rows, problems = make_rows(sweep)
    problems = [*sweep.missing, *problems]
    out = folders[0] if cfg.out is None else Path(cfg.out)
    text = write_markdown(rows, problems)
    curves = None
    if cfg.curves:
        folders_of = {row.title: [run.folder for run in row.runs.values()] for row in rows}
        curves = draw_curves(folders_of, cfg.curves)
    try:
        write_whole(out / f"{FILE}.md", text)
        write_whole(out / f"{FILE}.csv", write_csv(rows))
        save_figure(draw_rows(rows, cfg.plot), out / f"{FILE}.png")
        if curves is not None:
            save_figure(curves, out / f"{FILE}_curves.png")
    except OSError as error:
        raise UserError(f"out={out} cannot be written ({error}): choose another folder") from error
    console = Console()
    console.print(text, markup=False, highlight=False, soft_wrap=True, end="")
    console.print(f"\nreport  {out}/{FILE}.md, .csv, .png", markup=False, highlight=False, soft_wrap=True)
    if problems and cfg.strict:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"strict=true, and not all is there: {problems[0]}{more}; see {out}/{FILE}.md")
    return float(len(problems))


if __name__ == "__main__":
    main()
