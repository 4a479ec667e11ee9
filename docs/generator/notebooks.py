"""Notebooks as pages: their text, their code, and the pictures that they draw.

Notebooks are kept without outputs, so pictures are files of their own. `python docs/generator/notebooks.py`
runs all notebooks, which takes some minutes, and draws them anew.
"""

from __future__ import annotations

import base64
import io
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from settings import ROOT

RUN = "This page is `notebooks/{name}` ([download]({name})), with the pictures that it drew on one machine."
COLAB = """
[Open in Colab]({address}){{ .md-button }}

There, run this in a cell of its own before the others:

```python
%pip install 'wsss-afa[notebooks] @ git+https://github.com/{repository}'
```
"""
PICTURES = ROOT / "docs" / "assets" / "tutorials"
WIDGETS = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"
WIDTH = 1100  # pixels of a picture at most


def paths() -> list[Path]:
    """The notebooks, in order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def page(path: Path, repository: str = "") -> str:
    """Markdown of a notebook, with where to get it below its heading.

    Args:
        repository: The project's ``owner/name`` on GitHub, from where Colab opens notebooks; without it the
            page does not mention Colab.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = [_part(cell, picture(path, cell["id"])) for cell in cells]
    heading, _, rest = parts[0].partition("\n")
    text = "\n\n".join([rest.strip(), *parts[1:]]).replace(".ipynb)", ".md)")  # links to other notebooks
    where = RUN.format(name=path.name)
    if repository:
        address = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{path.name}"
        where += "\n" + COLAB.format(address=address, repository=repository)
    return "\n\n".join([heading, where, text]) + "\n"


def picture(path: Path, cell: str) -> Path:
    """Where the picture lies that a cell draws, if it draws one."""
    return PICTURES / f"{path.stem}_{cell}.webp"


def _part(cell: dict[str, Any], drawn: Path) -> str:
    text = "".join(cell["source"])
    if cell["cell_type"] != "code":
        return text
    image = f"\n\n![What this cell draws](../assets/tutorials/{drawn.name})" if drawn.is_file() else ""
    return f"````python\n{text}\n````{image}"


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


def draw() -> None:
    """Run the notebooks one after the other in one empty folder, and keep the first picture of each cell."""
    import nbformat
    from nbclient import NotebookClient

    PICTURES.mkdir(exist_ok=True)
    for old in PICTURES.glob("*.webp"):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        for path in paths():
            print(f"{path.name}: runs", flush=True)
            notebook = nbformat.read(path, as_version=4)
            NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": folder}}).execute()
            widgets = notebook.metadata.get("widgets", {}).get(WIDGETS, {}).get("state", {})
            for cell in notebook.cells:
                if drawn := [*_pictures(cell.get("outputs", []), widgets)]:
                    _save(drawn[0], picture(path, cell["id"]))


def _pictures(outputs: list[Any], widgets: dict[str, Any]) -> Iterator[str]:
    """PNGs in base64 among outputs, and among those that a slider's widget holds."""
    for data in (output.get("data", {}) for output in outputs):
        if "image/png" in data:
            yield data["image/png"]
        elif view := data.get(VIEW):
            for child in widgets[view["model_id"]]["state"].get("children", []):
                yield from _pictures(
                    widgets[child.removeprefix("IPY_MODEL_")]["state"].get("outputs", []), widgets
                )


def _save(png: str, target: Path) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(png))) as opened:
        image = opened.convert("RGB")
        image.thumbnail((WIDTH, image.height))
        image.save(target, quality=80, method=6)


if __name__ == "__main__":
    draw()
