"""Synthetic scenes: reproducible, exactly labelled, and as hard as asked."""

from __future__ import annotations

import hashlib
import math
import pickle

import cv2
import numpy as np
import pytest

from soak import _SERVER
from wsss_afa.data import shapes
from wsss_afa.data.shapes import KINDS, MIN_VISIBLE, Pose
from wsss_afa.data.synthetic import SyntheticScenes
from wsss_afa.errors import UserError
from wsss_afa.types import Sample

NAMES = [kind.name for kind in KINDS]
LENS = (  # where the crescent's unit disc and its bite of radius 0.75, centres 0.55 apart, overlap
    math.acos((0.55**2 + 1 - 0.75**2) / (2 * 0.55))
    + 0.75**2 * math.acos((0.55**2 + 0.75**2 - 1) / (2 * 0.55 * 0.75))
    - 0.5 * math.sqrt((1.75 - 0.55) * (0.55 + 0.25) * (0.55 - 0.25) * (0.55 + 1.75))
)
UNIT_AREAS = {  # schoolbook geometry, half side 1
    "disc": math.pi,
    "box": 1.76**2,
    "triangle": 3 * math.sqrt(3) * 0.55**2,
    "star": 5 * 0.5 * math.sin(math.pi / 5),
    "ring": math.pi * (1 - 0.3**2),
    "cross": 2 * 2 * 0.72 - 0.72**2,
    "crescent": math.pi - LENS,
    "bar": 2 * 0.84,
}


def digest(sample: Sample) -> str:
    mask = sample.get("mask", np.zeros(0, np.uint8))
    content = [
        sample["image"].tobytes(),
        sample["class_label"].tobytes(),
        mask.tobytes(),
        sample["name"].encode(),
    ]
    return hashlib.sha256(b"".join(content)).hexdigest()


def digest_of(index: int) -> str:
    return digest(SyntheticScenes(12, with_mask=True, seed=7)[index])


def saturation(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1] / 255


def hue_errors(scenes: SyntheticScenes) -> np.ndarray:
    """Of every object: distance on the colour circle between its median hue and its class's, in [0, 0.5]."""
    errors = []
    for sample in scenes:
        smooth = cv2.GaussianBlur(sample["image"], (5, 5), 0)
        hue = cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV_FULL)[..., 0] / 256
        for category in np.flatnonzero(sample["class_label"]):
            inside = cv2.erode((sample["mask"] == category + 1).astype(np.uint8), np.ones((5, 5))) > 0
            offset = (hue[inside] - category / len(scenes.class_names) + 0.5) % 1 - 0.5
            errors.append(abs(np.median(offset)))
    return np.array(errors)


def test_sample_contract() -> None:
    scenes = SyntheticScenes(5, size=40, num_classes=4, with_mask=True)
    sample = scenes[3]
    assert len(scenes) == len(list(scenes)) == 5
    assert scenes.class_names == ("disc", "box", "triangle", "star")
    assert (sample["image"].shape, sample["image"].dtype) == ((40, 40, 3), np.uint8)
    assert (sample["mask"].shape, sample["mask"].dtype) == ((40, 40), np.uint8)
    assert (sample["class_label"].shape, sample["class_label"].dtype) == ((4,), np.float32)
    assert len({each["name"] for each in scenes}) == 5


def test_mask_only_when_asked_for_and_changes_nothing_else() -> None:
    with_mask, without = SyntheticScenes(1, with_mask=True)[0], SyntheticScenes(1)[0]
    assert "mask" not in without
    np.testing.assert_array_equal(with_mask["image"], without["image"])


def test_same_scene_in_any_order_and_process() -> None:
    scenes = SyntheticScenes(20, with_mask=True, seed=7)
    forward = [digest(scenes[i]) for i in range(20)]
    copy = pickle.loads(pickle.dumps(scenes))  # noqa: S301
    assert [digest(copy[i]) for i in reversed(range(20))] == forward[::-1]
    with _SERVER.Pool(1) as pool:  # of another hash seed
        assert pool.apply(digest_of, (11,)) == forward[11]


def test_drawing_leaves_global_randomness_alone() -> None:
    np.random.seed(0)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    SyntheticScenes(1)[0]
    assert np.random.random() == expected  # noqa: NPY002


def test_splits_and_seeds_share_no_scene() -> None:
    sets = [
        SyntheticScenes(60, size=32, split=split, seed=seed) for split in ("train", "val") for seed in (0, 1)
    ]
    images = {sample["image"].tobytes() for scenes in sets for sample in scenes}
    assert len(images) == 4 * 60


@pytest.mark.parametrize(
    ("num_classes", "max_objects", "size"), [(6, 3, 96), (8, 5, 64), (2, 3, 32), (1, 1, 48)]
)
def test_tags_are_the_classes_of_the_mask(num_classes: int, max_objects: int, size: int) -> None:
    scenes = SyntheticScenes(
        150, size=size, num_classes=num_classes, max_objects=max_objects, split="val", with_mask=True
    )
    counts = set()
    np.testing.assert_array_equal(scenes.labels, [sample["class_label"] == 1 for sample in scenes])
    for sample in scenes:
        pixels = np.bincount(sample["mask"].ravel(), minlength=num_classes + 1)
        assert len(pixels) == num_classes + 1
        np.testing.assert_array_equal(pixels[1:] > 0, sample["class_label"] == 1)
        assert pixels[pixels > 0].min() > MIN_VISIBLE * size**2
        counts.add(int(sample["class_label"].sum()))
    assert counts == set(range(1, min(max_objects, num_classes) + 1))


def test_classes_are_balanced() -> None:
    share = np.mean([sample["class_label"] for sample in SyntheticScenes(1200, size=32)], axis=0)
    np.testing.assert_allclose(share, share.mean(), atol=4 * math.sqrt(0.33 * 0.67 / 1200))  # four sigma


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("angle", [0.3, 0.7, 4.0])
def test_mask_area_is_the_schoolbook_area(name: str, angle: float) -> None:
    pose = Pose(100.3, 99.6, half_width=60.0, half_height=45.0, angle=angle)
    window = pose.window(200)
    shape = KINDS[NAMES.index(name)].shape
    area = np.count_nonzero(shape(*pose.coordinates(window)) <= 0)
    assert area == pytest.approx(UNIT_AREAS[name] * 60 * 45, rel=0.01)
    everywhere = pose.coordinates((slice(0, 200), slice(0, 200)))
    assert np.count_nonzero(shape(*everywhere) <= 0) == area  # the window cuts nothing off


@pytest.mark.parametrize("name", NAMES)
def test_pixels_follow_the_mask_and_show_two_tones(name: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(10):
        item = shapes.outline(rng, 96, NAMES.index(name))
        canvas = np.zeros((96, 96, 3), np.float32)
        shapes.paint(canvas, item, 0.3, rng)
        inside, value = np.zeros((96, 96), np.uint8), canvas.max(2)
        inside[item.window] = item.distance <= 0
        assert value[inside == 1].min() > 0
        assert value[cv2.dilate(inside, np.ones((5, 5))) == 0].max() < 0.15 * 255  # a horn's faint tip
        assert canvas.min() >= 0
        assert canvas.max() <= 255.5
        core = value[cv2.erode(inside, np.ones((3, 3)), borderValue=0) == 1]
        light = np.mean(core > (np.quantile(core, 0.05) + np.quantile(core, 0.95)) / 2)
        assert 0.1 < light < 0.9
        assert np.quantile(core, 0.95) > 1.5 * np.quantile(core, 0.05)


def test_later_objects_leave_most_of_earlier_ones() -> None:
    for seed in range(100):
        objects, mask = shapes.place(np.random.default_rng(seed), 96, 8, 5)
        for item in objects:
            assert np.count_nonzero(mask == item.category + 1) >= 0.6 * item.area


def test_full_hue_probability_gives_every_object_its_hue() -> None:
    errors = hue_errors(SyntheticScenes(100, size=128, with_mask=True))
    assert errors.max() < 0.05  # 0.03 and noise


@pytest.mark.parametrize("hue_probability", [0.0, 0.5])
def test_hue_probability_is_the_share_of_objects_with_their_hue(hue_probability: float) -> None:
    errors = hue_errors(SyntheticScenes(200, hue_probability=hue_probability, with_mask=True))
    expected = hue_probability + (1 - hue_probability) * 0.08  # any hue falls within ± 0.04 by chance
    sigma = math.sqrt(expected * (1 - expected) / len(errors))
    assert np.mean(errors < 0.04) == pytest.approx(expected, abs=3 * sigma + 0.02)


def test_objects_are_more_saturated_than_background() -> None:
    margins = []
    for sample in SyntheticScenes(50, with_mask=True):
        foreground = sample["mask"] > 0
        vivid = saturation(sample["image"])
        margins.append(np.median(vivid[foreground]) - np.median(vivid[~foreground]))
    assert np.median(margins) > 0.25


def test_backgrounds_vary() -> None:
    means = np.array([s["image"][s["mask"] == 0].mean(0) for s in SyntheticScenes(60, with_mask=True)])
    assert (means.std(0) > 25).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"length": 0}, "length is 0, needed is at least 1"),
        ({"size": 31}, "size is 31, needed is at least 32 pixels"),
        ({"num_classes": 9}, "num_classes is 9, needed is 1 to 8"),
        ({"num_classes": 0}, "num_classes is 0, needed is 1 to 8"),
        ({"hue_probability": 1.1}, "hue_probability is 1.1, needed is 0 to 1"),
        ({"max_objects": 0}, "max_objects is 0, needed is at least 1"),
        ({"seed": -1}, "seed is -1, needed is 0 or more"),
        ({"split": "test"}, "split is 'test', needed is train or val"),
    ],
)
def test_wrong_values_are_told_in_one_line(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        SyntheticScenes(**{"length": 4, **arguments})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("index", [-1, 4])
def test_index_outside_raises(index: int) -> None:
    with pytest.raises(IndexError):
        SyntheticScenes(4)[index]
