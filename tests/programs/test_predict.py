"""The prediction program: what it finds, what it leaves in its folder, what a second run makes of that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from PIL import Image

from painter import NAMES, run_predict, save_checkpoint, scene
from wsss_afa.errors import UserError
from wsss_afa.files import CONFIG_DIR
from wsss_afa.inference.predictor import Predictor, Sizes
from wsss_afa.programs.predict import find_images, open_predictor, output_names
from wsss_afa.reports.visualize import voc_palette


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "net.ckpt")


@pytest.fixture
def photos(tmp_path):
    """Images of one name in two folders and in two formats, a hidden one, and files that are no images."""
    root = tmp_path / "photos"
    for index, name in enumerate(("a.png", "b.jpg", "b.png", "below/a.png", ".hidden/a.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        rgb = np.roll(scene(40, 50 + index)[0], index, axis=2)
        Image.fromarray(rgb).save(root / name)
    (root / "notes.txt").write_text("no image")
    (root / "film.MP4").write_bytes(b"\0" * 99)
    return root


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "predictions.json").read_text(encoding="utf-8"))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_predicted(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / "run"
    assert run_predict(f"ckpt={checkpoint}", f"source={photos}", f"hydra.run.dir={out}") == (0, "")
    content = results(out)
    assert [Path(image["file"]).relative_to(photos).as_posix() for image in content["images"]] == [
        "a.png", "b.jpg", "b.png", "below/a.png",
    ]  # fmt: skip
    masks = [image["mask"] for image in content["images"]]
    assert masks == ["masks/a.png", "masks/b.jpg.png", "masks/b.png.png", "masks/below/a.png"]
    predictor = Predictor.from_checkpoint(checkpoint)
    for image in content["images"]:
        expected = predictor(image["file"])
        with Image.open(out / image["mask"]) as mask:
            assert np.array_equal(np.array(mask), expected.label)
            assert (image["width"], image["height"]) == mask.size
        with Image.open(out / image["overlay"]) as overlay:
            assert overlay.size[0] >= image["width"]
        assert [each["name"] for each in image["classes"]] == list(expected.found)
        for each in image["classes"]:
            assert each["score"] == pytest.approx(float(expected.scores[each["label"] - 1]))
            assert each["area"] == pytest.approx((expected.label == each["label"]).mean())
            assert (out / each["cam"]).is_file()
    assert content["complete"]
    assert content["checkpoint"] == str(checkpoint)
    assert content["protocol"]["name"] == "plain"
    assert content["class_names"] == ["background", *NAMES]
    assert content["palette"] == voc_palette(4).tolist()
    printed = capsys.readouterr().out
    assert "predicted 4 of 4 images" in printed
    assert "left out  2 without the ending of an image: .mp4 1, .txt 1" in printed
    assert str(out) in printed
    assert not [name for name in files(out) if "partial" in name]


def test_tags_and_settings_reach_the_predictor(checkpoint, photos, tmp_path):
    out = tmp_path / "out"
    arguments = [
        f"ckpt={checkpoint}",
        f"source={photos}/a.png",
        f"out={out}",
        f"hydra.run.dir={tmp_path}/run",
    ]
    settings = ["tags=[red,'deep blue']", "cams=false", "long_side=40", "tile=32", "overlap=8"]
    assert run_predict(*arguments, *settings) == (0, "")
    content = results(out)
    (image,) = content["images"]
    assert {each["name"] for each in image["classes"]} == {"red", "deep blue"}
    assert not any("cam" in each for each in image["classes"])
    assert files(out) == {"masks/a.png", "overlays/a.png", "predictions.json"}
    sizes = Sizes(long_side=40, tile=32, overlap=8)
    expected = Predictor.from_checkpoint(checkpoint, sizes=sizes)(photos / "a.png", ["red", "deep blue"])
    with Image.open(out / "masks/a.png") as mask:
        assert np.array_equal(np.array(mask), expected.label)
    assert (content["long_side"], content["tile"], content["overlap"]) == (40, 32, 8)
    assert content["tags"] == ["red", "deep blue"]


def test_masks_for_annotation_tools(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [f"ckpt={checkpoint}", f"out={out}", f"hydra.run.dir={tmp_path}/run", "cams=false"]
    formats = "format=[png,coco,cvat,labelstudio,labelme]"
    (photos / "below" / "broken.jpg").write_bytes(b"no image")
    code, message = run_predict(*arguments, f"source={photos}", formats)
    assert (code, "1 of 5 images failed" in message) == (1, True)
    assert f"written   {out}/cvat.zip" in capsys.readouterr().out
    content = json.loads((out / "coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png", "b.jpg", "b.png", "below/a.png"]
    assert {category["name"] for category in content["categories"]} == set(NAMES)
    shapes = json.loads((out / "labelme/below/a.json").read_text())
    assert (out / "labelme/below" / shapes["imagePath"]).resolve() == photos / "below/a.png"
    assert (out / "labelme/b.jpg.json").is_file()
    assert run_predict(*arguments, f"source={photos}/a.png", "format=[png,yolo]") == (0, "")
    assert (out / "yolo/labels/train/a.txt").read_text()
    code, message = run_predict(*arguments, f"source=[{photos}/b.jpg,{photos}/b.png]", "format=[png,yolo]")
    assert "format=yolo: b.jpg and b.png have one label file: rename one" in message
    assert "need [png], or" in run_predict(*arguments, f"source={photos}/a.png", "format=coco")[1]


def test_one_tag_needs_no_brackets(checkpoint, photos, tmp_path):
    arguments = [f"ckpt={checkpoint}", f"source={photos}/a.png", f"hydra.run.dir={tmp_path}/run"]
    assert run_predict(*arguments, "tags=red") == (0, "")
    assert [each["name"] for each in results(tmp_path / "run")["images"][0]["classes"]] == ["red"]


@pytest.mark.parametrize("protocol", ["plain", "afa", "toco_coco"])
def test_every_protocol_composes(protocol, checkpoint):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        cfg = hydra.compose("predict", [f"ckpt={checkpoint}", "source=.", f"protocol={protocol}"])
    predictor = open_predictor(cfg)
    assert predictor.protocol.name == protocol
    assert predictor.sizes == Sizes()  # the settings' values are those of the code


def test_a_protocol_with_a_crf(checkpoint, photos, tmp_path):
    arguments = [f"ckpt={checkpoint}", f"source={photos}/a.png", f"hydra.run.dir={tmp_path}/run"]
    small = ["protocol=afa", "protocol.long_side=64", "protocol.crf.num_iter=1"]
    assert run_predict(*arguments, *small) == (0, "")
    content = results(tmp_path / "run")
    assert content["protocol"]["crf"]["num_iter"] == 1
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (50, 40)


def test_patterns_lists_and_names(photos, tmp_path):
    def found(*sources: str) -> list[str]:
        images, _ = find_images([f"{photos}/{source}" for source in sources], tmp_path)
        return [path.relative_to(photos).as_posix() for path in images]

    assert found("*.png") == ["a.png", "b.png"]
    assert found("**/*.png") == ["a.png", "b.png", "below/a.png"]
    assert found("b.*", "below") == ["b.jpg", "b.png", "below/a.png"]
    assert found("a.png", "a.png", "below/../a.png") == ["a.png"]
    assert found("notes.txt", "missing.jpg") == ["notes.txt", "missing.jpg"]  # what is named is tried
    (photos / "[odd].png").write_bytes((photos / "a.png").read_bytes())
    assert found("[odd].png") == ["[odd].png"]


def test_names_are_all_different(tmp_path):
    def names(*files: str) -> list[str]:
        return output_names([tmp_path / file for file in files])

    assert names("a.jpg") == ["a"]
    assert names("x/a.jpg", "x/b.jpg") == ["a", "b"]
    assert names("x/a.jpg", "y/a.jpg") == ["x/a", "y/a"]
    assert names("a.jpg", "a.png", "b.png") == ["a.jpg", "a.png", "b"]
    assert names("a.jpg", "a.jpg.bmp") == ["a", "a.jpg.bmp"]
    assert names("a", "a.jpg") == ["a", "a.jpg"]
    assert names("a.jpg", "a.png/b.jpg") == ["a.jpg", "a.png/b"]  # a.png would be file and folder
    assert names("holiday.2020.jpg", "noending") == ["holiday.2020", "noending"]


def test_a_second_run_leaves_the_first_ones_results_alone(checkpoint, photos, tmp_path):
    arguments = [f"ckpt={checkpoint}", f"source={photos}", f"hydra.run.dir={tmp_path}/run", "cams=false"]
    assert run_predict(*arguments, f"out={photos}/results") == (0, "")
    first = files(photos / "results")
    assert run_predict(*arguments, f"out={photos}/again") == (0, "")
    assert files(photos / "again") == files(photos / "results") == first


def test_an_interruption_leaves_what_is_done(checkpoint, photos, tmp_path, monkeypatch):
    predict_one = Predictor.__call__

    def interrupted(self: Predictor, image: Path, tags: Any) -> Any:
        if image.name == "b.png":
            raise KeyboardInterrupt
        return predict_one(self, image, tags)

    monkeypatch.setattr(Predictor, "__call__", interrupted)
    arguments = [f"ckpt={checkpoint}", f"source={photos}", f"hydra.run.dir={tmp_path}/run"]
    assert run_predict(*arguments, f"out={tmp_path}/out")[0] == 130
    content = results(tmp_path / "out")
    assert not content["complete"]
    assert [Path(image["file"]).name for image in content["images"]] == ["a.png", "b.jpg"]
    for image in content["images"]:
        for name in (image["mask"], image["overlay"], *(each["cam"] for each in image["classes"])):
            with Image.open(tmp_path / "out" / name) as picture:
                picture.load()
    assert not [name for name in files(tmp_path / "out") if "partial" in name]


def test_an_interruption_while_writing_leaves_no_half_file(checkpoint, photos, tmp_path, monkeypatch):
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if target.parent != tmp_path / "out":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    arguments = [f"ckpt={checkpoint}", f"source={photos}", f"hydra.run.dir={tmp_path}/run"]
    assert run_predict(*arguments, f"out={tmp_path}/out")[0] == 130
    assert files(tmp_path / "out") == {"predictions.json"}


def test_results_do_not_go_among_the_images(photos):
    with pytest.raises(UserError, match="is the folder of the images"):
        find_images([str(photos)], photos)


def test_an_image_that_fails_is_told_and_costs_no_other(checkpoint, photos, tmp_path, capsys):
    (photos / "c.jpg").write_text("text")
    arguments = [f"ckpt={checkpoint}", f"source={photos}", "cams=false", f"hydra.run.dir={tmp_path}/run"]
    line = "error: 1 of 5 images failed: mend what is listed above and in predictions.json"
    assert run_predict(*arguments) == (1, line)
    printed = capsys.readouterr().out
    assert "predicted 4 of 5 images" in printed
    assert f"failed    {photos}/c.jpg cannot be read as an image" in printed
    assert len(results(tmp_path / "run")["images"]) == 5
