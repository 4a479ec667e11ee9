"""Notebooks as pages: their text and code. What they print and draw is seen by running them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from settings import ROOT

RUN = "This page is `notebooks/{name}` ([download]({name})). Run it to see what it prints and draws."


def paths() -> list[Path]:
    """The notebooks, in order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def page(path: Path) -> str:
    """Markdown of a notebook, with where to get it below its heading."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = [("".join(cell["source"]), cell["cell_type"]) for cell in cells]
    parts = [f"````python\n{text}\n````" if kind == "code" else text for text, kind in sources]
    heading, _, rest = parts[0].partition("\n")
    text = "\n\n".join([rest.strip(), *parts[1:]]).replace(".ipynb)", ".md)")  # links to other notebooks
    return "\n\n".join([heading, RUN.format(name=path.name), text]) + "\n"


def title(path: Path) -> str:
    """The notebook's heading."""
    return page(path).partition("\n")[0].lstrip("# ")


def index() -> str:
    """All notebooks with the first sentences of each."""
    parts = ["# Tutorials", "These notebooks run on a CPU with generated scenes, and download nothing."]
    for path in paths():
        first = re.sub(r"\s+", " ", page(path).split("\n\n")[2])
        parts += [f"## [{title(path)}]({path.stem}.md)", first]
    return "\n\n".join(parts) + "\n"
