"""The report of ``gpu.py`` as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def render(report: dict[str, Any]) -> str:
    """Its tables, and last what failed or was left out."""
    lines = [report["title"], "", "```bash", report["command"], "```", ""]
    done: dict[str, list[dict[str, Any]]] = {}
    for entry in report["parts"].values():
        if "result" in entry:
            done.setdefault(entry["kind"], []).append(entry)
    for entry in done.get("tests", []):
        counts = entry["result"]["counts"].items()
        lines += ["Tests marked `gpu`: " + ", ".join(f"{n} {name}" for name, n in counts) + ".", ""]
    lines += _par_table([row for entry in done.get("par", []) for row in entry["result"]])
    lines += _step_table(done.get("eager", []) + done.get("compiled", []))
    lines += _validation_table(done.get("validation", []))
    missing = {name: entry["error"] for name, entry in report["parts"].items() if "error" in entry}
    lines += [f"- {name}: {last_line(error)}" for name, error in missing.items()]
    return "\n".join(lines)


def last_line(text: str) -> str:
    """What a traceback ends with."""
    return text.strip().splitlines()[-1]


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [list(columns), ["---"] * len(columns), *rows]
    return [f"| {' | '.join(str(cell) for cell in row)} |" for row in cells] + [""] if rows else []


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _par_table(rows: list[dict[str, Any]]) -> list[str]:
    columns = ("PAR", "maps", "ms", "MiB beside its input", "largest difference to float64", "first run, s")
    return _table(
        columns,
        [
            (row["form"], row["maps"], _number(row["ms"], 3), _number(row.get("extra_mib"), 0),
             f"{row['difference']:.1e}" if "difference" in row else "failed", _number(row.get("first"), 1))
            for row in rows
        ],
    )  # fmt: skip


def _step_table(entries: list[dict[str, Any]]) -> list[str]:
    columns = (
        "training step", "batch × crop", "precision", "TF32", "compiled", "PAR", "ms, by phase", "peak GiB",
        "GPU idle", "waits", "first steps, s", "h of the run",
    )  # fmt: skip
    rows = []
    for entry in entries:
        row, phases = entry["row"], entry["result"]["phases"]
        rows.append(
            (
                row["name"], f"{entry['result']['batch']} × {entry['result']['crop']}",
                row["precision"], row["tf32"], "yes" if row["compiled"] else "no", row["par"],
                " / ".join(_number(1e3 * phase["seconds"], 1) for phase in phases),
                " / ".join(_number(phase["peak_gib"], 1) for phase in phases),
                " / ".join(f"{phase['idle']:.0%}" if "idle" in phase else "" for phase in phases),
                " / ".join(str(sum(phase["waits"].values())) for phase in phases),
                " / ".join(_number(phase["first"], 1) for phase in phases),
                _number(entry["result"]["hours"]),
            )
        )  # fmt: skip
    return _table(columns, rows) + _wait_lines(entries)


def _wait_lines(entries: list[dict[str, Any]]) -> list[str]:
    """Where the first case's third phase waits for the GPU."""
    waits = entries[0]["result"]["phases"][-1]["waits"] if entries else {}
    lines = [f"- {count} × `{where}`" for where, count in waits.items()]
    return ["Where a step of the third phase waits for the GPU:", "", *lines, ""] if lines else []


def _validation_table(entries: list[dict[str, Any]]) -> list[str]:
    columns = ("validation", "precision", "images a second", "peak GiB")
    rows = [
        (entry["row"]["name"], entry["row"]["precision"], _number(entry["result"]["images_per_second"]),
         _number(entry["result"]["peak_gib"]))
        for entry in entries
    ]  # fmt: skip
    return _table(columns, rows)
