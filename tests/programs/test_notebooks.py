"""The notebooks: as committed they hold no results, and as a reader runs them they work."""

from __future__ import annotations

import ast
import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
SCHEDULE = [
    "method.phases.segmentation=2", "method.phases.propagation=4", "optim.warmup_steps=2",
    "trainer.max_steps=6", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu", "callbacks.pictures.num_images=2",
]  # fmt: skip
SCENES = [*SCHEDULE, "data.image_size=48", "data.val_images=6"]
SHORT: dict[str, dict[str, Any]] = {
    "01_quickstart": {"settings": SCENES},
    "02_inside_a_pseudo_label": {"settings": SCENES, "images": 3},
    "03_your_own_photos": {"settings": SCHEDULE, "count": 30},
    "04_reading_a_run": {"settings": SCENES, "worst": 3},
}
"""Values that make the parameters of each notebook short."""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def place_of_parameters(notebook: nbformat.NotebookNode) -> int:
    (place,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    return place


def parameters(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """Names and plain values that the tagged cell assigns; it does nothing else."""
    values = {}
    for line in ast.parse(notebook.cells[place_of_parameters(notebook)].source).body:
        assert isinstance(line, ast.Assign)
        (target,) = line.targets
        assert isinstance(target, ast.Name)
        values[target.id] = ast.literal_eval(line.value)
    return values


def test_there_are_these_notebooks():
    assert {path.stem for path in NOTEBOOKS.iterdir() if path.suffix == ".ipynb"} == set(SHORT)


@pytest.mark.parametrize("name", SHORT)
def test_committed_notebooks_hold_no_results(name):
    path, notebook = NOTEBOOKS / f"{name}.ipynb", read(name)
    nbformat.validate(notebook)
    assert path.stat().st_size < 40_000
    assert notebook.metadata == METADATA, "clear the notebook's metadata"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell.id for cell in code if cell.outputs or cell.execution_count], "clear all outputs"
    tags = [cell.metadata for cell in notebook.cells if cell.metadata]
    assert tags == [{"tags": ["parameters"]}], "clear the cells' metadata"


@pytest.mark.parametrize("name", SHORT)
def test_notebooks_are_short_and_say_what_they_are(name):
    notebook = read(name)
    assert 10 <= len(notebook.cells) <= 20
    assert re.match(r"# \w.*\n(.*\n)*\*\*Time:\*\* ", notebook.cells[0].source)
    assert place_of_parameters(notebook) == 1
    assert SHORT[name].keys() < parameters(notebook).keys()
    text = "\n".join(cell.source for cell in notebook.cells)
    assert not re.search(r"(?<![\w.…}])/\w+/|~/|[A-Z]:\\", text), "a path of one machine"
    for link in re.findall(r"\]\((\S+?)\)", text):
        assert (NOTEBOOKS / link).is_file()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the notebooks run; like a reader's, they share its ``runs/``."""
    return tmp_path_factory.mktemp("notebooks")


def execute(name: str, folder: Path, probe: str) -> tuple[nbformat.NotebookNode, Any]:
    """Run a notebook with short parameters, then one more cell; return all outputs and the last cell's JSON.

    The values are assigned in a cell behind that of the parameters. A cell that fails raises.
    """
    notebook = read(name)
    values = "\n".join(f"{key} = {value!r}" for key, value in SHORT[name].items())
    notebook.cells.insert(place_of_parameters(notebook) + 1, nbformat.v4.new_code_cell(values))
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\n{probe}\nprint(json.dumps(probe))"))
    client = NotebookClient(
        notebook,
        timeout=120,  # a cell takes seconds; a reply whose arrival the client missed is found when this ends
        startup_timeout=300,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    assert not [each for each in outputs(notebook) if each.get("name") == "stderr"], "a warning"
    assert not [each for each in outputs(notebook) if each.output_type == "error"], "a slider's function"
    return notebook, json.loads(notebook.cells[-1].outputs[-1].text.splitlines()[-1])


def outputs(notebook: nbformat.NotebookNode) -> list[Any]:
    """Of all cells, and of the widgets in them."""
    found = [each for cell in notebook.cells if cell.cell_type == "code" for each in cell.outputs]
    widgets = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    for widget in widgets.get("state", {}).values():
        found += [nbformat.from_dict(each) for each in widget["state"].get("outputs", ())]
    return found


def pictures(notebook: nbformat.NotebookNode) -> list[np.ndarray]:
    """All that are shown; none is blank."""
    encoded = [each.data["image/png"] for each in outputs(notebook) if "image/png" in each.get("data", {})]
    decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB")) for each in encoded]
    assert all(min(each.shape[:2]) > 100 and each.std() > 10 for each in decoded)
    return decoded


def printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(each.text for each in outputs(notebook) if each.output_type == "stream")


@pytest.mark.slow
def test_quickstart_trains_and_predicts(folder):
    probe = "probe = {'best': best, 'size': prediction.label.shape, 'scores': prediction.scores.tolist()}"
    notebook, found = execute("01_quickstart", folder, probe)
    assert len(pictures(notebook)) == 3
    assert found["best"] == json.loads((folder / "runs/quickstart/metrics.json").read_text())["best"]
    assert 0 < found["best"]["val/miou_seg"] < 100
    assert found["size"] == [96, 96]
    assert all(0 < score < 1 for score in found["scores"])
    assert "found: " in printed(notebook)


@pytest.mark.slow
def test_every_slider_draws_from_end_to_end(folder):
    probe = """import json
draw((0, 1)), draw((0.5, 0.5)), refine(1), refine(40), label((0, 0)), label((1, 1))
look_from(0, 0), look_from(grid[0] - 1, grid[1] - 1), walk(1, 1, 0), walk(8, 8, 3)
probe = curves"""
    notebook, curves = execute("02_inside_a_pseudo_label", folder, probe)
    sliders = [
        each for each in outputs(notebook) if "interactive(" in each.get("data", {}).get("text/plain", "")
    ]
    assert len(sliders) == 5
    assert len(pictures(notebook)) == 5 + 3
    assert set(curves) == {"cam", "par", "affinity"}
    assert all(0 < score < 100 for curve in curves.values() for score in curve)
    assert printed(notebook).count("% of these") == 3 + 2 * 3


@pytest.mark.slow
def test_a_folder_of_photos_trains_and_is_predicted(folder):
    notebook, best = execute("03_your_own_photos", folder, "probe = best")
    assert len(pictures(notebook)) == 3
    assert len((folder / "runs/photos/labels.csv").read_text().splitlines()) == 31
    assert 0 < best["val/map_cls"] <= 100
    assert "val/miou_seg" not in best, "nobody drew a mask"
    report = json.loads((folder / "runs/photos_run_inspection/report.json").read_text())
    assert [finding for finding in report["findings"] if finding["level"] == "error"] == []
    answers = json.loads((folder / "runs/photos_run_predictions/predictions.json").read_text())
    assert [record.get("error") for record in answers["images"]] == [None] * 6


@pytest.mark.slow
def test_a_run_is_read_as_it_was_scored(folder):
    probe = "probe = {'confusion': confusion.tolist(), 'scores': scores, 'best': best, 'rows': len(rows)}"
    notebook, found = execute("04_reading_a_run", folder, probe)
    assert len(pictures(notebook)) == 5
    confusion = np.array(found["confusion"], dtype=float)
    assert confusion.sum() == 6 * 48 * 48
    hits, truth = confusion.diagonal(), confusion.sum(1)
    iou = (hits / (truth + confusion.sum(0) - hits))[truth > 0]
    assert 100 * iou.mean() == pytest.approx(found["best"]["val/miou_seg"], abs=1e-3)
    assert len(found["scores"]) == 6
    assert found["rows"] == 3
