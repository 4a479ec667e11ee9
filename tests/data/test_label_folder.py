"""Labels that are given move with their images, and a folder of them fits the data or is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_afa.data.label_folder import LabelFolder, LabelledImages
from wsss_afa.data.synthetic import SyntheticDataModule, SyntheticScenes
from wsss_afa.data.transforms import EvalTransform, TrainTransform
from wsss_afa.data.voc import VOCDataModule
from wsss_afa.errors import UserError
from wsss_afa.reports.visualize import save_label

PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def two_tone(height=40, width=56):
    """A label of 0 and 1 in blobs, and an image that is 0 and 200 in the same pixels."""
    coarse = np.random.default_rng(0).random((height // 8, width // 8)) < 0.5
    label = np.kron(coarse, np.ones((8, 8))).astype(np.uint8)
    return np.repeat(200 * label[..., None], 3, axis=2), label


@pytest.mark.parametrize("crop_size", [24, 90])
def test_an_unscaled_label_stays_pixel_on_pixel(crop_size):
    image, label = two_tone()
    transform = TrainTransform(crop_size, scale=(1, 1), **PLAIN)
    for seed in range(40):
        pixels, (top, bottom, left, right) = transform(image, seed)
        moved = transform.label(label, seed)
        assert (moved.shape, moved.dtype) == ((crop_size, crop_size), torch.int64)
        inside = torch.zeros_like(moved, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert torch.equal(moved[inside] * 200, pixels[0][inside].long())
        assert (moved[~inside] == 255).all()


def test_an_enlarged_label_changes_where_its_image_crosses_the_middle():
    """Bilinear interpolation of an edge is above half where the nearest pixel lies beyond the edge."""
    image, label = two_tone()
    transform = TrainTransform(64, scale=(1.0, 2.0), **PLAIN)
    for seed in range(40):
        pixels, _ = transform(image, seed)
        moved = transform.label(label, seed)
        sure = ((pixels[0] - 100).abs() > 2) & (moved != 255)
        # in the corner of four blobs bilinear surfaces bend: there the nearest pixel may differ
        wrong = ((pixels[0] > 100) != (moved == 1))[sure].float().mean()
        assert wrong < 0.004, seed
        assert set(moved.unique().tolist()) <= {0, 1, 255}


def test_a_reduced_label_is_not_shifted():
    image, label = two_tone(160, 160)
    transform = TrainTransform(100, scale=(0.5, 0.9), flip=0.5, **PLAIN)
    for seed in range(20):
        pixels, _ = transform(image, seed)
        moved = transform.label(label, seed)
        inside = moved != 255
        shifts = {
            shift: ((pixels[0].roll(shift, 1) > 100) == (moved == 1))[inside].float().mean().item()
            for shift in (-1, 0, 1)
        }
        assert max(shifts, key=shifts.get) == 0
        assert shifts[0] > 0.95


def test_labels_do_not_change_the_image():
    image, label = two_tone()
    one, other = TrainTransform(24), TrainTransform(24)
    other.label(label, 4)
    assert torch.equal(one(image, 5)[0], other(image, 5)[0])
    assert torch.equal(EvalTransform().label(label), torch.from_numpy(label).long())


def write_truth(folder, count=8, size=32):
    """Labels without a mistake, for the training scenes."""
    scenes = SyntheticScenes(count, size, 3, with_mask=True)
    for scene in scenes:
        save_label(scene["mask"], folder / f"{scene['name']}.png")
    return folder


def test_batches_carry_the_labels_of_the_folder(tmp_path):
    folder = write_truth(tmp_path / "labels")
    data = SyntheticDataModule(32, 3, train_images=8, val_images=1, batch_size=4, crop_size=32, flip=0)
    data.setup("fit")
    data.use_labels(folder)
    scenes = SyntheticScenes(8, 32, 3, with_mask=True)
    truth = {scene["name"]: scene["mask"] for scene in scenes}
    batch = next(iter(data.train_dataloader()))
    assert batch["mask"].dtype == torch.int64
    for name, mask in zip(batch["name"], batch["mask"], strict=True):
        assert np.array_equal(mask.numpy(), truth[name])
    assert np.array_equal(data.train_tags, scenes.labels)


def test_only_the_folder_named_is_opened(tmp_path):
    root = tmp_path / "VOC2012"
    for name in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (48, 40)).save(root / "JPEGImages" / f"{name}.jpg")
        xml = "<annotation><object><name>dog</name></object></annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(xml)
        save_label(np.full((40, 48), 12, np.uint8), tmp_path / "labels" / f"{name}.png")
    (root / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("a\nb\n")
    data = VOCDataModule(str(root), batch_size=2, crop_size=32)
    data.setup("fit")  # there are no masks to be found
    data.use_labels(tmp_path / "labels")
    batch = next(iter(data.train_dataloader()))
    assert set(batch["mask"].unique().tolist()) <= {12, 255}
    assert (batch["mask"] == 12).any()


def test_folders_that_do_not_fit_are_refused(tmp_path):
    scenes = SyntheticScenes(8, 32, 3)
    with pytest.raises(UserError, match="no such folder"):
        LabelledImages(scenes, tmp_path / "nowhere")
    folder = write_truth(tmp_path / "labels", 7)
    with pytest.raises(UserError, match="7 PNGs, need one for each of the 8"):
        LabelledImages(scenes, folder)
    name = scenes[7]["name"]
    save_label(np.full((32, 32), 4, np.uint8), folder / f"{name}.png")
    with pytest.raises(UserError, match=f"{name}.png has label 4, need 0 to 3"):
        LabelledImages(scenes, folder)[7]
    save_label(np.zeros((30, 32), np.uint8), folder / f"{name}.png")
    with pytest.raises(UserError, match="replace one of them"):
        LabelledImages(scenes, folder)[7]
    other = LabelFolder(tmp_path / "other", {"class_names": ["cat", "dog"]})
    with pytest.raises(UserError, match="labels of the classes"):
        LabelledImages(scenes, other.root)
