"""Runs of a sweep as a table: a row for each setting, over its seeds.

Seeds are shared between rows, so differences are paired. What is missing is named, because a mean over fewer
seeds than its neighbour's is not comparable with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd
from scipy import stats

from wsss_afa.ops.metrics import COLUMNS
from wsss_afa.reports.sweep import Run, Sweep, label

SCORES = {**COLUMNS, "map": "mAP"}
"""Titles of the table's columns by name of the score."""
VALIDATIONS = ("best", "last")
"""What of a training run is shown; an evaluation has one record, which stands for both."""
_FINAL = ("crf", "seg", "map")  # differences are taken of the first of these that a run has


class Difference(NamedTuple):
    """A setting's paired difference to another one."""

    mean: float
    error: float  # standard error of the mean; NaN of fewer than two seeds
    p: float  # two-sided, by Student's t (Gosset, 1908); NaN where seeds do not differ
    seeds: list[int]  # those that both settings have


def make_rows(sweep: Sweep) -> tuple[dict[str, dict[int, Run]], list[str]]:
    """Group runs by their setting's title and by seed, the later of two equal ones; and say what is wrong."""
    rows: dict[str, dict[int, Run]] = {}
    titles: dict[str, str] = {}
    problems = []
    for run in sweep.runs:
        title = label(run.overrides, sweep.common)
        if run.settings not in titles:  # equal overrides of other defaults are another setting
            titles[run.settings] = f"{title} (row {len(rows) + 1})" if title in rows else title
        row = rows.setdefault(titles[run.settings], {})
        if former := row.get(run.seed):
            problems.append(f"{former.folder}: has setting and seed of {run.folder}, which counts")
        row[run.seed] = run
    seeds = sorted({seed for row in rows.values() for seed in row})
    absent = [f"{title}: no seed {seed}" for title, row in rows.items() for seed in seeds if seed not in row]
    return rows, problems + absent


def tabulate(rows: dict[str, dict[int, Run]]) -> pd.DataFrame:
    """Put all scores, in percent, into one table by (setting, seed) and (validation, score).

    Both validations have a column for each score that any run has, NaN where a run lacks it.
    """
    keys = [(title, seed) for title, runs in rows.items() for seed in sorted(runs)]
    index = pd.MultiIndex.from_tuples(keys, names=["setting", "seed"])
    runs = [rows[title][seed] for title, seed in keys]
    parts = {each: pd.DataFrame([run.scores[each] for run in runs], index) for each in VALIDATIONS}
    scores = pd.concat(parts, axis=1).dropna(axis=1, how="all")
    present = [name for name in SCORES if name in scores.columns.get_level_values(1)]
    return scores.reindex(columns=pd.MultiIndex.from_product([VALIDATIONS, present]))


def paired_difference(values: pd.Series, first: pd.Series) -> Difference:
    """Compare percentages by seed, at the seeds that both have."""
    each = (values - first).dropna()
    p = stats.ttest_1samp(each, 0).pvalue if each.std() > 0 else math.nan
    return Difference(each.mean(), each.sem(), p, sorted(each.index))


def write_markdown(scores: pd.DataFrame, problems: Sequence[str]) -> str:
    """Write a table for the best and one for the last validation, and what is missing."""
    lines = [
        f"Runs: {len(scores)}. Percent: mean ± standard deviation over seeds.",
        "Δ: of segmentation, after the CRF where there is one, to the first row: mean of the differences at",
        "common seeds ± its standard error, and p of a paired t-test.",
    ]
    for validation in VALIDATIONS:
        lines += ["", f"**{validation} validation**", "", *_table(scores[validation])]
    if problems:
        lines += ["", "**missing**", "", *(f"- {problem}" for problem in problems)]
    return "\n".join(lines) + "\n"


def _table(scores: pd.DataFrame) -> list[str]:
    final = scores.reindex(columns=_FINAL).bfill(axis=1)[_FINAL[0]]
    first, all_seeds = None, set(scores.index.unique("seed"))
    head = " | ".join(["setting", "seeds", *(SCORES[name] for name in scores), "Δ"])
    lines = [f"| {head} |", "|---|---|" + "---:|" * (scores.shape[1] + 1)]
    for title, row in scores.groupby(level="setting", sort=False):
        own = final[title]
        delta = "" if first is None else _signed(paired_difference(own, first), own.count())
        first = own if first is None else first
        lacking = sorted(all_seeds - set(own.index))
        seeds = _join(own.index) + (f" (not {_join(lacking)})" if lacking else "")
        means = [_spread(row[name].mean(), row[name].std()) for name in scores]
        lines.append("| " + " | ".join([title.replace("|", "\\|"), seeds, *means, delta]) + " |")
    return lines


def _join(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def _spread(mean: float, spread: float) -> str:
    if math.isnan(mean):
        return "–"
    return f"{round(mean, 1) + 0:.1f}" + ("" if math.isnan(spread) else f" ± {spread:.1f}")


def _signed(difference: Difference, seeds: int) -> str:
    mean, error, p, common = difference
    text = _spread(mean, error)
    notes = [] if math.isnan(p) else ["p < 0.001" if p < 5e-4 else f"p = {p:.3f}"]
    notes += [f"seeds {_join(common)}"] if 0 < len(common) < seeds else []
    return "+" * (not text.startswith(("-", "–"))) + text + (f" ({'; '.join(notes)})" if notes else "")


def write_csv(scores: pd.DataFrame) -> str:
    """Write a line for each setting, validation and score; seeds and their values are separated by spaces."""
    lines, first = [], None
    for title, row in scores.groupby(level="setting", sort=False):
        row = row.droplevel("setting")
        for validation, name in row:
            values = row[validation, name].dropna()
            difference = paired_difference(values, values[:0] if first is None else first[validation, name])
            lines.append({
                "setting": title, "validation": validation, "score": name,
                "mean": values.mean(), "std": values.std(),
                "seeds": " ".join(map(str, values.index)),
                "values": " ".join(f"{value:.3f}" for value in values),
                "delta": difference.mean, "delta_se": difference.error,
                "p": "" if math.isnan(difference.p) else f"{difference.p:.2g}",
            })  # fmt: skip
        first = row if first is None else first
    return str(pd.DataFrame(lines).to_csv(index=False, float_format="%.3f"))
