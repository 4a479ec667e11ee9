"""Offline labels: what training would make, whole and of one setting; the sweep counts what is written."""

from __future__ import annotations

import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from sklearn.metrics import confusion_matrix
from torch import nn

from two_processes import run_as_two
from untrained import CLASSES, save, scene_recipe, untrained
from wsss_afa import pseudo_labels
from wsss_afa.data.label_folder import LabelFolder, label_path
from wsss_afa.data.synthetic import SyntheticScenes
from wsss_afa.data.transforms import EvalTransform
from wsss_afa.errors import UserError
from wsss_afa.inference import label_writer
from wsss_afa.inference.label_source import LabelSource, merge_labels
from wsss_afa.inference.threshold_choice import border_contrast
from wsss_afa.ops.multi_scale import MultiScaleSegmentation
from wsss_afa.reports.visualize import save_label, voc_palette

DATA = ["data.image_size=32", "data.num_classes=3", "data.train_images=5", "data.val_images=6"]

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(untrained(scene_recipe(), seed=3), tmp_path_factory.mktemp("net") / "best.ckpt")


@pytest.fixture
def run(run, checkpoint, tmp_path):
    """Run the program in this process; returns what it prints, or the line of a mistake."""

    def program(*arguments, scenes=DATA):
        settings = [f"ckpt={checkpoint}", *scenes, "trainer.accelerator=cpu", "trainer.devices=1"]
        return run(pseudo_labels, *settings, f"hydra.run.dir={tmp_path}/run", *arguments)[1]

    return program


def make_batch(height=34, width=46, tags=(1, 0, 1)):
    torch.manual_seed(0)
    return {
        "image": torch.randn(1, 3, height, width),
        "class_label": torch.tensor([tags], dtype=torch.float),
        "valid_box": torch.tensor([[0, height, 0, width]]),
        "name": ["one"],
    }


@pytest.mark.parametrize("source", ["cam", "par", "affinity"])
def test_a_band_is_what_training_would_make_of_the_whole_image(source):
    stage = "cam" if source == "cam" else "afa"
    recipe = scene_recipe(f"method.labels={stage}", "method.low=0.1", "method.high=0.2")
    method, batch = untrained(recipe, seed=1), make_batch()
    net, labeler = method.net, method.labeler
    trained = labeler(net, batch, net(batch["image"]), source == "affinity").segmentation
    labels = LabelSource(method, source, MultiScaleSegmentation())(batch, method.backgrounds)
    assert torch.equal(merge_labels(labels), trained)
    assert set(trained.unique().tolist()) & {1, 3}
    assert 2 not in trained


def test_one_score_decides_pixel_by_pixel():
    method, raw = untrained(scene_recipe("method.cam.mirror=false")), torch.rand(1, 3, 34, 46)
    method.net.activate = lambda image: SimpleNamespace(cam=raw, tokens=None)
    (label,) = LabelSource(method, "cam", MultiScaleSegmentation())(make_batch(), [0.4])
    cam = raw[0] - raw[0].amin((1, 2), keepdim=True)
    cam = cam / (cam.amax((1, 2), keepdim=True) + 1e-5)
    for y, x in [(0, 0), (7, 40), (33, 45), (20, 20), (5, 9)]:
        first, third = cam[0, y, x].item(), cam[2, y, x].item()
        assert label[0, y, x] == (0 if max(first, third) <= 0.4 else 1 if first >= third else 3)


def test_segmentation_is_the_best_of_background_and_own_classes():
    method, logits = untrained(scene_recipe()), torch.randn(1, 4, 34, 46)
    method.net.segment = lambda image: logits
    (label,) = LabelSource(method, "seg", MultiScaleSegmentation())(make_batch(), [0.0])
    wanted = torch.tensor([0, 1, 3])[logits[:, [0, 1, 3]].argmax(1)]
    assert torch.equal(label, wanted)


@pytest.mark.parametrize("source", ["cam", "par", "affinity", "seg"])
def test_the_crf_gets_probabilities_and_has_the_last_word(source):
    class Crf(nn.Module):
        def forward(self, rgb, probability):
            assert rgb.dtype == torch.uint8
            torch.testing.assert_close(probability.sum(1), torch.ones_like(probability[:, 0]))
            return torch.stack([torch.zeros_like(probability[:, 0])] * 2 + [probability[:, 0]], 1)

    label_source = LabelSource(untrained(scene_recipe()), source, MultiScaleSegmentation(crf=Crf()))
    labels = label_source(make_batch(), [0.3, 0.5])
    assert all((label == 3).all() for label in labels)


def read(folder):
    return {path.stem: np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def test_all_images_get_a_label_of_their_size_and_tags(run, tmp_path):
    out = tmp_path / "labels"
    assert f"{out}: 5 PNGs" in run("source=par", f"out={out}")
    scenes = SyntheticScenes(5, 32, 3)
    labels = read(out)
    assert list(labels) == [scenes[i]["name"] for i in range(5)]
    for scene, label in zip(scenes, labels.values(), strict=True):
        assert label.shape == (32, 32)
        assert set(np.unique(label)) <= {0, 255, *(np.flatnonzero(scene["class_label"]) + 1)}
    with Image.open(out / "train_000000.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[: 3 * 21] == voc_palette(21).ravel().tolist()
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["source"], manifest["background"], manifest["split"]) == ("par", [0.35, 0.55], "train")
    assert manifest["class_names"] == list(CLASSES)


def test_a_run_that_was_stopped_goes_on(run, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run("source=cam", f"out={whole}")
    written = []

    def save_three(label, path):
        if len(written) == 3:
            raise OSError("power is gone")
        written.append(path)
        save_label(label, path)

    with monkeypatch.context() as patch:
        patch.setattr(label_writer, "save_label", save_three)
        with pytest.raises(OSError, match="power"):
            run("source=cam", f"out={broken}")
    before = {path: path.stat().st_mtime_ns for path in broken.glob("*.png")}
    assert len(before) == 3
    assert "5 PNGs, 3 of them from before" in run("source=cam", f"out={broken}")
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert {p.name: p.read_bytes() for p in broken.iterdir()} == {
        p.name: p.read_bytes() for p in whole.iterdir()
    }


def test_labels_of_other_settings_are_not_mixed(run, tmp_path):
    out = tmp_path / "labels"
    run("source=cam", f"out={out}", "background=0.4")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for change in ("background=0.5", "source=par", "data.scene_seed=1", "split=val", "crf=true"):
        message = run("source=cam", f"out={out}", "background=0.4", change)
        assert message.startswith(f"error: out={out} has labels of ")
        assert len(message.splitlines()) == 1
    other = save(untrained(scene_recipe(), seed=4), tmp_path / "other.ckpt")
    assert "checkpoint_sha256" in run("source=cam", f"out={out}", "background=0.4", f"ckpt={other}")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    assert "a folder of its own" in run("source=cam", f"out={tmp_path}/photos")


def test_loading_settings_do_not_count(run, tmp_path):
    run("source=cam", f"out={tmp_path}/labels")
    assert "5 of them from before" in run("source=cam", f"out={tmp_path}/labels", "data.batch_size=3")


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools under NumPy 2
def test_coco_gives_the_labels_back(run, tmp_path, capsys):
    out = tmp_path / "labels"
    run("source=par", f"out={out}", "format=[png,coco]")
    coco = COCO(str(out / "coco.json"))
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == [*CLASSES, "ignored"]
    names = {image["file_name"]: image["id"] for image in coco.loadImgs(coco.getImgIds())}
    for name, label in read(out).items():
        found = np.zeros_like(label)
        for annotation in coco.loadAnns(coco.getAnnIds(names[f"{name}.png"])):
            found[coco.annToMask(annotation).astype(bool)] = annotation["category_id"]
            assert annotation["iscrowd"] == (annotation["category_id"] == 255)
            assert annotation["area"] == (label == annotation["category_id"]).sum()
        assert np.array_equal(found, label)


def test_the_sweep_counts_what_would_be_written(run, tmp_path):
    out = run("source=par", "split=val", "sweep_thresholds=true", "thresholds=[0.2,0.3,0.6]")
    sweep = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert (tmp_path / "run" / "sweep.png").stat().st_size > 1000
    assert [each["background"] for each in sweep["thresholds"]] == [0.2, 0.3, 0.6]
    assert sweep["best"]["miou"] == max(each["miou"] for each in sweep["thresholds"])
    assert f"background={sweep['best']['background']:g}: mIoU {sweep['best']['miou']:.1f}" in out
    truth = np.stack([scene["mask"] for scene in SyntheticScenes(6, 32, 3, split="val", with_mask=True)])
    for background, record in [("0.3", sweep["thresholds"][1]), ("null", sweep["chosen"])]:
        run("source=par", "split=val", f"background={background}", f"out={tmp_path}/{background}")
        label = np.stack(list(read(tmp_path / background).values()))
        counted = label != 255
        confusion = confusion_matrix(truth[counted], label[counted], labels=range(4)).astype(float)
        union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        iou = (confusion.diagonal() / union)[confusion.sum(1) > 0]
        assert record["miou"] == pytest.approx(100 * iou.mean(), abs=1e-3)
    assert sweep["chosen"]["labelled"] == pytest.approx(100 * counted.mean(), abs=1e-3)


def told(run, tmp_path, source, scores):
    """What is told of a source, beside the labels that would be written."""
    words = f"thresholds={list(scores)}".replace(" ", "")
    printed = run(f"source={source}", "choose_threshold=true", words)
    content = json.loads((tmp_path / "run" / "choice.json").read_text())
    assert f"suggested background={content['suggested']['background']:g}" in printed
    labels = {}
    for score in scores:
        run(f"source={source}", f"background={score}", f"out={tmp_path}/{source}{score}")
        labels[score] = np.stack(list(read(tmp_path / f"{source}{score}").values()))
    return content, labels


def test_what_is_told_without_masks(run, tmp_path):
    """Against plain counting over the labels that would be written."""
    content, labels = told(run, tmp_path, "par", (0.2, 0.3, 0.6))
    with Image.open(tmp_path / "run" / "choice.png") as sheet:
        assert min(sheet.size) > 300
    scenes = SyntheticScenes(5, 32, 3)
    tags = np.stack([scene["class_label"] for scene in scenes]).astype(bool)
    sides = [(0.2, 0.2, 0.3), (0.2, 0.3, 0.6), (0.3, 0.6, 0.6)]
    for record, (lower, score, upper) in zip(content["thresholds"], sides, strict=True):
        own = labels[score]
        assert record["background"] == score
        assert record["covered"] == pytest.approx((own > 0).mean(), abs=1e-4)
        assert record["undecided"] == pytest.approx((labels[lower] != labels[upper]).mean(), abs=1e-4)
        shares = np.stack([(own == c).mean((1, 2)) for c in (1, 2, 3)], 1)
        assert record["found"] == pytest.approx(((shares >= 0.01) & tags).sum() / tags.sum(), abs=1e-4)
    sharpest = max(content["thresholds"], key=lambda record: record["contrast"])
    assert content["suggested"]["contrast"] == sharpest["contrast"] > 0


def test_a_raw_map_covers_as_much_as_the_sharpest_refined_label(run, tmp_path):
    scores = (0.1, 0.3, 0.5)
    refined, _ = told(run, tmp_path, "par", scores)
    raw, labels = told(run, tmp_path, "cam", scores)
    sharpest = max(refined["thresholds"], key=lambda record: record["contrast"])
    assert raw["sharpest"]["source"] == "par"
    assert raw["sharpest"]["covered"] == sharpest["covered"]
    away = {score: abs((label > 0).mean() - sharpest["covered"]) for score, label in labels.items()}
    assert raw["suggested"]["background"] == min(away, key=away.get)


def test_contrast_along_borders():
    """Against a loop over all pairs of neighbours."""
    image, labels = torch.rand(3, 7, 9), torch.randint(3, (2, 7, 9))
    labels[1] = 0
    along, all_pairs = [], []
    for y, x in itertools.product(range(7), range(9)):
        for below, right in ((y + 1, x), (y, x + 1)):
            if below < 7 and right < 9:
                change = (image[:, y, x] - image[:, below, right]).abs().mean().item()
                all_pairs.append(change)
                if labels[0, y, x] != labels[0, below, right]:
                    along.append(change)
    expected = [np.mean(along) / np.mean(all_pairs), 0]
    assert border_contrast(image, labels).tolist() == pytest.approx(expected, rel=1e-5)


def test_processes_share_the_images_out():
    scenes = SyntheticScenes(7, 32, 3)
    seen = []
    for rank in range(3):
        images = label_writer.WholeImages(scenes, EvalTransform(), 0, False)
        images.trainer = SimpleNamespace(global_rank=rank, world_size=3)
        share = images.predict_dataloader()
        seen.append([batch["name"][0] for batch in share])
        assert len(share) == len(seen[-1])
    assert sorted(itertools.chain(*seen)) == [scenes[i]["name"] for i in range(7)]


@pytest.mark.slow
def test_two_processes_count_the_same(run, tmp_path, checkpoint):
    own = ["source=cam", "split=val", "sweep_thresholds=true"]
    run(*own)
    words = [f"ckpt={checkpoint}", *DATA, *own, "trainer.accelerator=cpu", f"hydra.run.dir={tmp_path}/both"]
    run_as_two(pseudo_labels, tmp_path / "both", *words)
    one, two = (json.loads((tmp_path / name / "sweep.json").read_text()) for name in ("run", "both"))
    assert one == two


MISTAKES = {
    "no folder": ([], r"out=VALUE"),
    "unknown source": (["source=crf"], r"source=crf: .* cam, par, affinity, seg"),
    "unknown split": (["split=test", "out=x"], r"split=test .* train or val"),
    "unknown format": (["format=[jpg]", "out=x"], r"format=\['jpg'\]"),
    "coco alone": (["format=[coco]", "out=x"], r"\[png, coco\]"),
    "thresholds crossed": (["background=[0.5,0.4]", "out=x"], r"background=\[0\.5, 0\.4\].*low ≤ high"),
    "background too high": (["background=45", "out=x"], r"background=45"),
    "background of seg": (["source=seg", "background=0.4", "out=x"], r"seg has no background"),
    "sweep without masks": (["sweep_thresholds=true"], r"split=val.*data\.val_split=train"),
    "sweep of seg": (["sweep_thresholds=true", "split=val", "source=seg"], r"wsss-afa evaluate"),
    "thresholds out of range": (
        ["sweep_thresholds=true", "split=val", "thresholds=[4]"],
        r"thresholds=\[4\]",
    ),
    "choice of seg": (
        ["choose_threshold=true", "source=seg"],
        r"choose_threshold=true: source=seg has no back",
    ),
    "sweep and choice": (
        ["sweep_thresholds=true", "choose_threshold=true", "split=val", "out=x"],
        r"does without: set one",
    ),
    "other classes": (["data.num_classes=4", "out=x"], r"knows 3 classes .*give data of"),
    "misspelt": (["backgroud=0.4", "out=x"], r"did you mean background\?"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line(mistake, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, pattern = MISTAKES[mistake]
    message = run(*arguments)
    assert re.fullmatch(rf"error: .*{pattern}.*", message), message
    assert not (tmp_path / "x").exists()


def test_affinity_that_was_not_trained_is_refused(run, tmp_path):
    baseline = save(untrained(scene_recipe("method.labels=cam")), tmp_path / "none.ckpt")
    assert "source=affinity: this checkpoint has none such; set source to cam, par, seg" in run(
        f"ckpt={baseline}", f"out={tmp_path}/x", "source=affinity"
    )
    assert "5 PNGs" in run(f"ckpt={baseline}", f"out={tmp_path}/x", "source=par")


def test_names_stay_in_the_folder(tmp_path):
    folder = LabelFolder(tmp_path / "labels", {"source": "cam"})
    assert folder.path("cats/1") == tmp_path / "labels" / "cats" / "1.png"
    with pytest.raises(UserError, match="leads out"):
        label_path(tmp_path / "labels", "../1")


def test_unreadable_images_are_named_or_skipped(run, tmp_path):
    for name in ("disc", "box", "triangle"):
        (tmp_path / "photos" / "train" / name).mkdir(parents=True)
        (tmp_path / "photos" / "val" / name).mkdir(parents=True)
        for split in ("train", "val"):
            Image.new("RGB", (40, 33)).save(tmp_path / "photos" / split / name / f"{split}_{name}.png")
    (tmp_path / "photos" / "classes.txt").write_text("\n".join(CLASSES))
    (tmp_path / "photos" / "train" / "box" / "train_box.png").write_bytes(b"no image")
    own = ["data=folder", f"data.root={tmp_path}/photos", "data.num_workers=0"]
    own += ["source=cam", f"out={tmp_path}/labels"]
    message = run(*own, scenes=[])
    assert re.fullmatch(r"error: .*train_box\.png cannot be read.*", message)
    assert "skipped   1 unreadable images" in run(*own, "data.skip_broken=true", scenes=[])
    found = sorted(path.stem for path in (tmp_path / "labels").rglob("*.png"))
    assert found == ["train_disc", "train_triangle"]


def test_labels_for_annotation_tools(run, tmp_path):
    formats = "format=[png,coco,yolo,cvat,labelstudio,labelme]"
    for i, place in enumerate(("train/disc", "train/box", "train/triangle", "val/disc")):
        (tmp_path / "photos" / place).mkdir(parents=True)
        Image.new("RGB", (40, 33), (90 * (i % 2), 9, 9)).save(tmp_path / "photos" / place / f"{i} x.jpg")
    (tmp_path / "photos" / "classes.txt").write_text("\n".join(CLASSES))
    own = ["data=folder", f"data.root={tmp_path}/photos", "data.num_workers=0", f"out={tmp_path}/labels"]
    printed = run("source=cam", *own, formats, scenes=[])
    names = ("coco.json", "yolo/data.yaml", "cvat.zip", "label_studio.json", "labelme")
    assert all(f"labels    {tmp_path}/labels/{name}\n" in printed for name in names)
    files = [
        image["file_name"] for image in json.loads((tmp_path / "labels/coco.json").read_text())["images"]
    ]
    assert files == ["train/box/1 x.jpg", "train/disc/0 x.jpg", "train/triangle/2 x.jpg"]
    tasks = json.loads((tmp_path / "labels/label_studio.json").read_text())
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=photos/train/box/1%20x.jpg"
    assert "3 of them from before" in run("source=cam", *own, formats, scenes=[])  # nothing of it is a label
