"""Runs of a sweep as one table: ``wsss-afa sweep_report runs=runs/train/…``."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from wsss_afa.errors import UserError, plain_console, say
from wsss_afa.files import write_whole
from wsss_afa.reports.figures import draw_curves, draw_scores
from wsss_afa.reports.sweep import find_runs
from wsss_afa.reports.table import VALIDATIONS, make_rows, tabulate, write_csv, write_markdown
from wsss_afa.reports.visualize import save_figure

FILE = "sweep_report"
"""Name of the files that are written, without ending."""


def run(cfg: DictConfig) -> float:
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
    scores = tabulate(rows)
    text = write_markdown(scores, problems)
    figures = {f"{FILE}.png": draw_scores(scores, cfg.plot)}
    if cfg.curves:
        logged = {title: [run.folder for run in row.values()] for title, row in rows.items()}
        figures[f"{FILE}_curves.png"] = draw_curves(logged, cfg.curves)
    out = folders[0] if cfg.out is None else Path(cfg.out)
    try:
        write_whole(out / f"{FILE}.md", text)
        write_whole(out / f"{FILE}.csv", write_csv(scores))
        for name, figure in figures.items():
            save_figure(figure, out / name)
    except OSError as error:
        raise UserError(f"out={out} cannot be written ({error}): choose another folder") from error
    plain_console().print(text)
    say("report", f"{out / FILE}.md, .csv, " + ", ".join(figures))
    if problems and cfg.strict:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"strict=true, and not all is there: {problems[0]}{more}; see {out}/{FILE}.md")
    return float(len(problems))
