"""Images drawn so that rare classes come as often, and images that cannot be read."""

import numpy as np
import pytest
from PIL import Image

from wsss_afa.data.folder.content import FolderDataModule
from wsss_afa.data.sampler import Augmented, Draw, DrawSampler, balanced_weights
from wsss_afa.data.synthetic import SyntheticDataModule
from wsss_afa.data.transforms import TrainTransform
from wsss_afa.errors import UserError

# Draws


def test_balanced_draws_even_out_classes():
    labels = np.zeros((200, 3), bool)
    labels[:150, 0], labels[150:190, 1] = True, True
    labels[190:195, 2] = True  # five images are background
    batches = DrawSampler(200, 10, 200, weights=balanced_weights(labels))
    drawn = np.array([draw.image for batch in batches for draw in batch])
    counts = [
        (drawn < 150).sum(),
        ((drawn >= 150) & (drawn < 190)).sum(),
        ((drawn >= 190) & (drawn < 195)).sum(),
    ]
    assert counts == pytest.approx([500, 500, 500], abs=15)
    assert np.bincount(drawn[:200]).max() == 10  # 200 images an epoch, a quarter of them from five images
    assert len(set(drawn)) >= 195  # in ten epochs, at a third of a draw each


def test_the_rarest_tag_decides():
    labels = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], bool)
    assert balanced_weights(labels).tolist() == pytest.approx([1 / 3, 1 / 3, 1, 1])


def test_balanced_draws_are_a_function_of_seed_and_step():
    def steps(**changes):
        weights = balanced_weights(np.random.default_rng(0).random((13, 4)) < 0.3)
        return [sorted(b) for b in DrawSampler(13, 6, 9, weights=weights, **{"seed": 3, **changes})]

    whole = steps()
    assert steps(start_step=4) == whole[4:]
    assert steps(seed=4) != whole
    halves = [steps(rank=rank, world_size=2) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == whole


def test_data_modules_balance():
    def names(balanced):
        data = SyntheticDataModule(32, train_images=6, crop_size=16, batch_size=6, balanced=balanced)
        data.setup("fit")
        assert data.train_tags.shape == (6, 6)
        return sorted(name for batch in data.train_dataloader() for name in batch["name"])

    assert len(set(names(False))) == 6
    assert len(set(names(True))) < 6


# UnreadableError images


@pytest.fixture
def root(tmp_path):
    """Twelve photos, of which two cannot be read."""
    for index in range(12):
        path = tmp_path / ("val" if index < 4 else "train") / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (index, 0, 0)).save(path)
    (tmp_path / "val" / "dog" / "1.png").write_bytes(b"")
    (tmp_path / "train" / "cat" / "6.png").write_bytes(b"text")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_photos_are_replaced_left_out_and_reported(root, capsys, workers):
    def names():
        data = FolderDataModule(
            str(root), batch_size=4, crop_size=16, num_workers=workers, skip_broken=True, seed=1
        )
        data.setup("fit")
        train = [(n, *b["image"].sum((1, 2, 3)).tolist()) for b in data.train_dataloader() for n in b["name"]]
        val = [batch["name"] for batch in data.val_dataloader()]
        assert all("broken" not in batch for batch in data.val_dataloader())
        data.teardown("fit")
        return train, val

    train, val = names()
    assert (len(train), val) == (8, [["val/cat/0"], ["val/cat/2"], ["val/dog/3"]])
    assert "train/cat/6" not in {name for name, *_ in train}
    report = capsys.readouterr().out.splitlines()
    assert report[0] == "skipped   2 unreadable images:"
    assert ["6.png cannot be read" in report[1], "1.png cannot be read" in report[2]] == [True, True]
    assert names() == (train, val)


def test_broken_photos_stop_a_run_by_default(root):
    data = FolderDataModule(str(root), batch_size=4, crop_size=16)
    data.setup("fit")
    with pytest.raises(UserError, match=r"6\.png cannot be read"):
        list(data.train_dataloader())


def test_a_replacement_depends_on_the_draw_alone(root):
    data = FolderDataModule(str(root), crop_size=16)
    images = Augmented(data.make_set("train"), TrainTransform(16), skip_broken=True)
    broken = images.dataset.files.index("train/cat/6.png")
    chosen = [images[Draw(broken, seed)]["name"] for seed in (5, 5, 6, 7, 8, 9)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 1


def test_a_folder_of_broken_photos_stops_anyway(root):
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"")
    images = Augmented(FolderDataModule(str(root)).make_set("train"), TrainTransform(16), skip_broken=True)
    with pytest.raises(UserError, match=r"21 images in a row .*png cannot be read"):
        images[Draw(0, 0)]
