"""COCO: index, tags and rasterised masks, on a generated folder in its layout."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from wsss_afa.data.coco import COCO, COCO_CLASSES
from wsss_afa.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "data" / "coco_mini"
GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
IDS = [number for number in range(1, 91) if number not in GAPS]
HEIGHT, WIDTH = 40, 60


def annotation(image, category, segmentation, crowd=0):
    return {"image_id": image, "category_id": category, "iscrowd": crowd, "segmentation": segmentation}


def box(left, top, right, bottom):
    return [float(x) for x in (left, top, right, top, right, bottom, left, bottom)]


def run_length(mask):
    """COCO's uncompressed counts: column by column, zeros first."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"counts": [0, *counts] if flat[0] else counts, "size": list(mask.shape)}


CROWD = np.zeros((HEIGHT, WIDTH), np.uint8)
CROWD[0:10, 20:60] = 1
ANNOTATIONS = [  # the small one is listed first: order in the file must not matter
    annotation(7, 90, [box(12, 12, 20, 18)]),
    annotation(7, 18, [box(5, 8, 40, 35)]),
    annotation(7, 1, run_length(CROWD), crowd=1),
    annotation(7, 1, [box(50, 2, 54, 6), box(2, 36, 6, 39)]),
    annotation(3, 1, run_length(CROWD), crowd=1),
]


def write(root, split="val", year=2014, annotations=ANNOTATIONS):
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"{split}{year}").mkdir(exist_ok=True)
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": HEIGHT, "width": WIDTH} for i in (3, 5, 7)]
    for image in images:
        mode = "L" if image["id"] == 3 else "RGB"
        Image.new(mode, (WIDTH, HEIGHT), 80).save(root / f"{split}{year}" / image["file_name"])
    categories = [{"id": i, "name": name} for i, name in zip(IDS, COCO_CLASSES, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories[::-1]}
    (root / "annotations" / f"instances_{split}{year}.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "coco"
    folder.mkdir()
    write(folder)
    return folder


def test_index_and_tags(root):
    data = COCO(root, "val")
    assert [data[i]["name"] for i in range(len(data))] == [f"{i:012d}" for i in (3, 7)]  # 5 has no annotation
    tags = [[COCO_CLASSES[c] for c in np.flatnonzero(data[i]["class_label"])] for i in range(2)]
    assert tags == [["person"], ["person", "dog", "toothbrush"]]
    assert data[0]["image"].shape == (HEIGHT, WIDTH, 3)
    assert all("mask" not in data[i] for i in range(2))


def test_mask_by_hand(root, tmp_path):
    """Large below small; the crowd is larger than the person in it and smaller than the dog."""
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    truth[8:35, 5:40] = IDS.index(18) + 1
    truth[CROWD == 1] = 255
    truth[12:18, 12:20] = 80
    truth[2:6, 50:54] = 1
    truth[36:39, 2:6] = 1
    sample = COCO(root, "val", with_mask=True, cache_dir=tmp_path / "cache")[1]
    assert sample["mask"].dtype == np.uint8
    assert np.array_equal(sample["mask"], truth)


def test_polygon_agrees_with_another_rasteriser(root, tmp_path):
    corners = [(3.0, 5.0), (50.0, 9.0), (40.0, 36.0), (20.0, 15.0), (8.0, 33.0)]
    flat = [float(x) for corner in corners for x in corner]
    write(root, annotations=[annotation(7, 5, [flat])])
    mask = COCO(root, "val", with_mask=True, cache_dir=tmp_path / "cache")[0]["mask"]
    other = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(other).polygon(corners, fill=5)
    differ = (mask != np.asarray(other)).sum()
    assert set(np.unique(mask)) == {0, 5}
    assert differ < 0.15 * (mask > 0).sum()  # outlines are drawn differently, insides are not


def test_masks_are_cached_outside_the_data(root, tmp_path):
    before = sorted(path for path in root.rglob("*"))
    cache = tmp_path / "cache"
    first = COCO(root, "val", with_mask=True, cache_dir=cache)[1]["mask"]
    (png,) = (path for path in cache.rglob("*") if path.is_file())
    assert png.name == "000000000007.png"
    assert sorted(path for path in root.rglob("*")) == before
    Image.fromarray(np.full_like(first, 9)).save(png)
    assert (COCO(root, "val", with_mask=True, cache_dir=cache)[1]["mask"] == 9).all()
    write(root, annotations=ANNOTATIONS[:2])
    assert set(np.unique(COCO(root, "val", with_mask=True, cache_dir=cache)[0]["mask"])) == {0, 17, 80}


def test_year_is_found_and_2014_comes_first(root):
    write(root, year=2017, annotations=ANNOTATIONS[:1])
    assert len(COCO(root, "val")) == 2
    assert len(COCO(root, "val", year=2017)) == 1
    (root / "annotations" / "instances_val2014.json").unlink()
    assert len(COCO(root, "val")) == 1


def test_images_may_lie_one_folder_deeper(root):
    (root / "images").mkdir()
    (root / "val2014").rename(root / "images" / "val2014")
    assert COCO(root, "val")[0]["image"].shape == (HEIGHT, WIDTH, 3)


def test_mistakes(root, tmp_path):
    with pytest.raises(UserError, match=r"data.root=.* has no train2014 or 2017, need annotations"):
        COCO(root, "train")
    Image.new("RGB", (9, 9)).save(root / "val2014" / "000000000007.jpg")
    with pytest.raises(UserError, match="copy the original image"):
        COCO(root, "val", with_mask=True, cache_dir=tmp_path / "cache")[1]
    (root / "val2014" / "000000000007.jpg").unlink()
    with pytest.raises(UserError, match="lacks 1 of the 2 files"):
        COCO(root, "val")
    path = root / "annotations" / "instances_val2014.json"
    for text, words in (("{", "no JSON"), ("{}", "has no images, annotations, categories")):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            COCO(root, "val")
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "cell"}]}))
    with pytest.raises(UserError, match="1 categories"):
        COCO(root, "val")


def test_cache_that_cannot_be_written(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache_dir"):
        COCO(root, "val", with_mask=True, cache_dir=tmp_path / "file")[0]


@pytest.mark.skipif(not REAL.is_dir(), reason="real photographs are not there")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_real_masks_agree_with_their_annotations(tmp_path):
    """Tags and masks against pycocotools' own index and its own rasterisation."""
    tools = pytest.importorskip("pycocotools.coco")
    with open(os.devnull, "w") as null, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", null)
        api = tools.COCO(str(REAL / "annotations" / "instances_val2017.json"))
    data = COCO(REAL, "val", with_mask=True, cache_dir=tmp_path)
    assert len(data) == len({a["image_id"] for a in api.anns.values()})
    for index in range(0, len(data), 8):
        sample = data[index]
        annotations = api.imgToAnns[int(sample["name"])]
        names = {api.cats[a["category_id"]]["name"] for a in annotations}
        assert names == {COCO_CLASSES[c] for c in np.flatnonzero(sample["class_label"])}
        union = np.zeros(sample["mask"].shape, bool)
        for item in annotations:
            union |= api.annToMask(item).astype(bool)
        assert np.array_equal(union, sample["mask"] > 0)
        smallest = min(annotations, key=lambda a: api.annToMask(a).sum())
        value = (
            255 if smallest["iscrowd"] else COCO_CLASSES.index(api.cats[smallest["category_id"]]["name"]) + 1
        )
        assert (sample["mask"][api.annToMask(smallest).astype(bool)] == value).all()
