"""The report: exact numbers, the right pictures, whatever the names, and nothing from elsewhere."""

from __future__ import annotations

import base64
import csv
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, precision_score, recall_score

from two_processes import run_as_two
from wsss_afa import evaluate
from wsss_afa.callbacks.report import Shortlist, choose
from wsss_afa.errors import UserError
from wsss_afa.ops.metrics import count_pairs
from wsss_afa.reports.evaluation import (
    Evaluation,
    Shot,
    class_rows,
    confusion_csv,
    read_history,
    render,
    score,
    shrink,
    top_confusions,
)
from wsss_afa.reports.visualize import Panel, confusion_figure, curve_figure, to_svg

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*srun"),
]
NASTY = ["<script>alert(1)</script>", 'R&B "quoted"', "it's, a; name", "猫", "x" * 60]


class Tables(HTMLParser):
    """Rows of cells by the table's id, text by element id, and every address."""

    def __init__(self, page: str):
        super().__init__()
        self.tables, self.addresses, self.tags, self.text = {}, [], set(), ""
        self._rows = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.add(tag)
        self.addresses += [values[key] for key in ("src", "href", "xlink:href") if key in values]
        if tag == "table":
            self._rows = self.tables.setdefault(values.get("id", values["class"]), [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_data(self, data):
        self.text += data
        if self._rows and self._rows[-1]:
            self._rows[-1][-1] += data.strip()

    def handle_endtag(self, tag):
        self._rows = None if tag == "table" else self._rows


def random_confusion(count, seed=0):
    rng = np.random.default_rng(seed)
    matrix = rng.integers(0, 50, (count, count)) + np.diag(rng.integers(100, 5000, count))
    return torch.from_numpy(matrix)


def make_evaluation(names, **changes):
    rng = np.random.default_rng(0)
    pictures = shrink(
        [Panel(t, rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)) for t in ("image", "truth")]
    )
    shots = [Shot(f"photo {name}", i, 0.5, 0.75, [1], [], pictures) for i, name in enumerate(names[:3])]
    confusion = {"CAM": random_confusion(len(names) + 1), "segmentation": random_confusion(len(names) + 1, 1)}
    whole = Evaluation(
        facts={"checkpoint": "runs/<best>.ckpt", "split": "val", "protocol": "plain (…)"},
        class_names=names,
        confusion=confusion,
        average_precision=rng.random(len(names)).tolist(),
        pictures={"Best images": shots},
        history={"segmentation": [(100, 20.0), (200, 41.5)]},
    )
    return whole._replace(**changes)


def test_scores_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 4, (900,), generator=generator)
    label = truth.where(torch.rand(900, generator=generator) < 0.7, 3 - truth)
    confusion = count_pairs(label, truth, 4)
    computed = score(confusion)
    assert computed.pixel_accuracy == pytest.approx((label == truth).double().mean().item())
    assert computed.mean_accuracy == pytest.approx(balanced_accuracy_score(truth, label))
    rows = class_rows(make_evaluation(["1", "2", "3"], confusion={"segmentation": confusion}))
    by_label = sorted(rows, key=lambda row: row["name"].replace("background", "0"))
    expected = {"precision": precision_score, "recall": recall_score}
    for key, function in expected.items():
        np.testing.assert_allclose([row[key] for row in by_label], function(truth, label, average=None))
    ious = [row["ious"][-1] for row in rows]
    assert ious == sorted(ious, reverse=True)


def test_classes_without_a_true_pixel_come_last_and_count_for_nothing():
    confusion = torch.tensor([[8, 2, 0], [0, 0, 0], [1, 0, 3]])
    rows = class_rows(make_evaluation(["a", "b"], confusion={"segmentation": confusion}))
    assert [row["name"] for row in rows] == ["b", "background", "a"]
    assert math.isnan(rows[-1]["ious"][0])
    assert score(confusion).mean_accuracy == pytest.approx((8 / 10 + 3 / 4) / 2)


def test_the_largest_confusions_are_listed():
    confusion = torch.tensor([[90, 10, 0], [5, 80, 15], [0, 1, 1]])
    among, with_background = top_confusions(confusion, ["background", "cat", "dog"])
    assert [(pair["true"], pair["predicted"], pair["pixels"]) for pair in among] == [
        ("dog", "cat", 1),
        ("cat", "dog", 15),
    ]
    assert [(pair["true"], pair["share"]) for pair in with_background] == [("background", 0.1), ("cat", 0.05)]


def test_csv_has_names_and_exact_counts():
    confusion = random_confusion(len(NASTY) + 1)
    confusion[0, 0] = 2**53 + 1
    names = ["background", *NASTY]
    header, *rows = csv.reader(confusion_csv(confusion, names).splitlines())
    assert header[1:] == [row[0] for row in rows] == names
    assert [[int(value) for value in row[1:]] for row in rows] == confusion.tolist()


def charts(page):
    """The texts of the SVG files in a page."""
    files = [
        base64.b64decode(uri.split(",")[1]) for uri in page.addresses if uri.startswith("data:image/svg")
    ]
    return ["".join(ElementTree.fromstring(file).itertext()) for file in files]  # noqa: S314 - ours


def test_heat_map_shows_shares_of_the_true_class():
    confusion = np.array([[90, 10, 0], [30, 70, 0], [0, 0, 0]])
    (axis, _) = confusion_figure(confusion, ["background", "cat", "dog"]).axes
    numbers = {text.get_position()[::-1]: text.get_text() for text in axis.texts}
    assert numbers == {(0, 0): "90", (0, 1): "10", (1, 0): "30", (1, 1): "70"}
    assert [text.get_color() for text in axis.texts] == ["white", "black", "black", "white"]


def test_many_classes_have_no_numbers_and_long_names_are_cut():
    (axis, _) = confusion_figure(random_confusion(81).numpy(), [str(i) * 30 for i in range(81)]).axes
    assert not axis.texts
    assert axis.get_yticklabels()[7].get_text() == "7" * 23 + "…"


def test_curves_lie_where_the_scores_are():
    curves = {"CAM": [(0, 0.0), (100, 50.0)], "segmentation": [(100, 100.0)]}
    cam, segmentation = curve_figure(curves, {"CAM": "#ff0000"}).axes[0].get_lines()
    assert cam.get_xydata().tolist() == [[0, 0], [100, 50]]
    assert (cam.get_color(), segmentation.get_color()) == ("#ff0000", "black")


def test_equal_charts_are_equal_files():
    first, second = (to_svg(curve_figure({"CAM": [(1, 2.0), (3, 4.0)]}, {})) for _ in range(2))
    assert first == second


def test_history_reads_validations_and_nothing_else(tmp_path):
    titles = {"cam": "CAM", "seg": "segmentation", "crf": "after CRF"}
    assert read_history(tmp_path, titles) == {}
    text = "epoch,step,train/loss,val/miou_cam,val/miou_seg\n0,49,0.5,,\n0,99,,0.25,0.5\n0,199,,nan,x\n"
    (tmp_path / "metrics.csv").write_text(text)
    assert read_history(tmp_path, titles) == {"CAM": [(100, 25.0)], "segmentation": [(100, 50.0)]}
    (tmp_path / "metrics.csv").write_bytes(b"\xff\xfe\x00something else")
    assert read_history(tmp_path, titles) == {}


def test_the_shortlist_keeps_both_ends_of_any_stream():
    shots = [Shot(str(i), i, (7 * i % 9) / 8, 0.5, [], [], []) for i in range(60)]
    ordered = sorted(shots, key=lambda shot: shot.rank)
    halves = [Shortlist(4), Shortlist(4)]
    for i, shot in enumerate(shots):
        own = halves[i % 2]
        if own.wants(shot.rank):
            own.add(shot)
    assert all(len(half.ranked) == 8 for half in halves)
    ranks = [shot.rank for half in halves for shot in half.ranked]
    best, worst = choose(ranks, 4)
    assert worst == [shot.rank for shot in ordered[:4]]
    assert best == [shot.rank for shot in ordered[:-5:-1]]


def test_few_images_are_never_best_and_worst_at_once():
    for length in range(6):
        best, worst = choose([(0.1 * i, 0.0, -i) for i in range(length)], 3)
        assert not set(best) & set(worst)
        assert len(best) + len(worst) == length
    assert choose([], 0) == ([], [])
    assert not Shortlist(0).wants((0.5, 0.5, 0))


def test_a_negative_number_of_images_is_refused():
    from wsss_afa.callbacks.report import Report

    with pytest.raises(UserError, match="num_images=-1, need 0 or more"):
        Report("folder", "best.ckpt", -1)


@pytest.mark.parametrize("count", [1, 20, 80])
def test_a_page_loads_nothing(count):
    page = Tables(render(make_evaluation([f"class {i}" for i in range(count)])))
    assert page.addresses
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not page.tags & {"script", "iframe", "object", "form"}
    assert "url(" not in page.text
    assert "@import" not in page.text
    assert len(page.tables["class-table"]) == count + 2


def test_names_are_text_and_nothing_more():
    source = render(make_evaluation(NASTY))
    page = Tables(source)
    assert "<script" not in source
    assert "script" not in page.tags
    assert {row[0] for row in page.tables["class-table"][1:]} == {"background", *NASTY}
    assert "photo <script>alert(1)</script>" in page.text
    heat_map, _ = charts(page)
    assert all(name[:23] in heat_map for name in NASTY)
    assert "runs/<best>.ckpt" in page.text


def test_a_perfect_result_has_no_confusions():
    source = render(make_evaluation(["a"], confusion={"segmentation": torch.diag(torch.tensor([5, 6]))}))
    assert "every counted pixel is right" in source
    assert Tables(source).tables["score-table"][1][1] == "100.00"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to look with")
@pytest.mark.parametrize("names", [NASTY, [f"class {i}" for i in range(80)]], ids=["nasty", "80"])
def test_a_browser_shows_it_without_complaint(names, tmp_path):
    (tmp_path / "report.html").write_text(render(make_evaluation(names)), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--enable-logging=stderr", f"--user-data-dir={tmp_path}/profile", "--window-size=1100,2000"]
    command += [f"--screenshot={tmp_path}/page.png", (tmp_path / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    with Image.open(tmp_path / "page.png") as screenshot:
        pixels = np.asarray(screenshot.convert("RGB"), dtype=np.int64)
    assert pixels.shape == (2000, 1100, 3)
    assert (pixels < 60).all(2).mean() > 0.002  # letters
    assert (np.ptp(pixels, axis=2) > 60).mean() > 0.002  # bars
    assert (pixels[:20] == 255).all()  # margin


# Programs


@pytest.fixture(scope="module")
def run_folder(afa_checkpoint, tmp_path_factory):
    """A training run's folder: a checkpoint and its history."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    shutil.copy(afa_checkpoint, folder / "checkpoints" / "best.ckpt")
    (folder / "metrics.csv").write_text("step,val/miou_seg\n99,0.25\n199,0.43219\n")
    (folder / "metrics.json").write_text('{"best_by": "val/agreement"}')
    return folder


def arguments(run_folder, folder, *more):
    return [
        f"ckpt={run_folder}/checkpoints/best.ckpt",
        "trainer.accelerator=cpu",
        "callbacks.pictures.num_images=0",
        f"hydra.run.dir={folder}",
        *more,
    ]


SCENES = ["data.image_size=48", "data.num_classes=3", "data.val_images=7", "data.train_images=4"]


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["evaluate", *words])
    evaluate.main()


def test_an_evaluation_leaves_a_report_with_its_numbers(run_folder, tmp_path, monkeypatch, capsys):
    more = ["trainer.devices=1", "protocol=afa", "protocol.long_side=64", "callbacks.report.num_images=2"]
    run(monkeypatch, *arguments(run_folder, tmp_path, *SCENES, *more))
    record = json.loads((tmp_path / "metrics.json").read_text())
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Tables(source)
    titles = {"CAM": "cam", "propagated CAM": "affinity", "segmentation": "seg", "after CRF": "crf"}
    scores = {row[0]: row[1] for row in page.tables["score-table"][1:]}
    assert scores == {title: f"{record[f'val/miou_{key}']:.2f}" for title, key in titles.items()}
    assert f"mean average precision {record['val/map_cls']:.2f} %" in page.text
    for row in page.tables["class-table"][1:]:
        ious = [record["iou"][key][row[0]] for key in titles.values()]
        assert row[2:6] == [f"{iou:.1f}" for iou in ious]
    for text in (
        record["protocol"], record["checkpoint"], "43.2", "at step 200",
        "best of its run by agreement with tags",
    ):  # fmt: skip
        assert text in page.text
    assert source.count('<section class="shot">') == 4
    assert source.count("<img") == 4 * 7 + 2
    assert len(source) < 1_000_000
    for key in titles.values():
        with (tmp_path / f"confusion_{key}.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert header[1:] == ["background", "disc", "box", "triangle"]
        counts = np.array([row[1:] for row in rows], dtype=np.int64)
        assert counts.sum() == 7 * 48 * 48
        ious = counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())
        np.testing.assert_allclose(100 * ious, list(record["iou"][key].values()), atol=5e-4)
    assert not list(tmp_path.glob("*.partial"))
    assert f"report    {tmp_path}/report.html" in capsys.readouterr().out


def test_without_masks_it_tells_of_tags(run_folder, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in ("disc", "box", "triangle"):
        (tmp_path / "photos" / "val" / name).mkdir(parents=True)
        (tmp_path / "photos" / "train" / name).mkdir(parents=True)
        for split in ("train", "val"):
            pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{split} & {name}.png")
    (tmp_path / "photos" / "classes.txt").write_text("disc\nbox\ntriangle\n")
    more = ["trainer.devices=1", "data.num_workers=0", "data=folder", f"data.root={tmp_path}/photos"]
    run(monkeypatch, *arguments(run_folder, tmp_path / "out", *more))
    source = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = Tables(source)
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "no masks" in page.text
    assert f"mean average precision {record['val/map_cls']:.2f} %" in page.text
    assert "score-table" not in page.tables
    precision = [float(row[-1]) for row in page.tables["class-table"][1:]]
    assert np.mean(precision) == pytest.approx(record["val/map_cls"], abs=0.06)
    assert source.count('<section class="shot">') == 3
    assert "val & triangle" in page.text
    assert not list((tmp_path / "out").glob("confusion*"))


@pytest.mark.slow
def test_two_processes_score_and_report_what_one_does(run_folder, tmp_path, monkeypatch):
    """Seven images: one process has four of them, the other three."""
    more = [*SCENES, "callbacks.report.num_images=2"]
    run(monkeypatch, *arguments(run_folder, tmp_path / "1", *more, "trainer.devices=1"))
    run_as_two(evaluate, tmp_path / "2", *arguments(run_folder, tmp_path / "2", *more))
    one, two = (json.loads((tmp_path / str(n) / "metrics.json").read_text()) for n in (1, 2))
    assert one == two
    assert 0 < one["val/miou_seg"] < 100
    one, two = ((tmp_path / str(n) / "report.html").read_text(encoding="utf-8") for n in (1, 2))
    assert Tables(one).tables == Tables(two).tables
    shots = [re.findall(r"<b>(val_\d+)</b>", page) for page in (one, two)]
    assert shots[0] == shots[1]
    assert len(set(shots[0])) == 4
    assert re.findall('data:image/jpeg[^"]*', one) == re.findall('data:image/jpeg[^"]*', two)
    assert "2 processes" in two
    for name in ("confusion_seg.csv", "confusion_cam.csv", "confusion_affinity.csv"):
        assert (tmp_path / "1" / name).read_text() == (tmp_path / "2" / name).read_text()


def test_any_number_of_scored_labels_has_colours():
    """A method may score more labels than there are colours; the last one keeps the darkest."""
    matrix = next(iter(make_evaluation(["cat"]).confusion.values()))
    titles = ["a", "b", "c", "d", "segmentation"]
    page = render(make_evaluation(["cat"], confusion=dict.fromkeys(titles, matrix), pictures={}))
    assert "#16304f" in page
