"""The data that a trained method is run on has its classes, and images as large as it learned from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from PIL import Image

from wsss_afa.data.folder.content import FolderDataModule
from wsss_afa.errors import UserError
from wsss_afa.inference.match_data import match_data


@pytest.fixture
def data(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(4):
            Image.new("RGB", (90, 60), (20 * index, 0, 0)).save(tmp_path / name / f"{index}.png")
    return FolderDataModule(root=str(tmp_path), max_side=60, val_fraction=0.5)


def method_of(*class_names, **recipe):
    return SimpleNamespace(recipe={"class_names": class_names} | recipe, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.mark.parametrize(
    ("recipe", "given", "side"),
    [({"max_side": 30}, [], 30), ({"max_side": 30}, ["data.max_side=60"], 60), ({}, [], 60)],
)
def test_images_are_reduced_as_in_training_unless_told_otherwise(data, recipe, given, side):
    match_data(data, method_of("cat", "dog", **recipe), "best.ckpt", given)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    assert max(batch["image"].shape) == side


def test_other_classes_are_refused(data):
    with pytest.raises(UserError, match=r"knows 2 classes .cow, ….*2 .cat, …"):
        match_data(data, method_of("cow", "dog"), "best.ckpt", [])
