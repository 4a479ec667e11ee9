"""What helps against wrong tags, rare classes and unreadable images: off by default, exact when on."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, log_loss
from wsss_afa.methods.afa.loss import AFALoss

from wsss_afa.data.folder.content import FolderDataModule
from wsss_afa.data.sampler import Augmented, Draw, DrawSampler, balanced_weights
from wsss_afa.data.synthetic import SyntheticDataModule
from wsss_afa.data.transforms import TrainTransform
from wsss_afa.errors import UserError
from wsss_afa.losses.classification import balanced_positive_weight, classification_loss
from wsss_afa.metrics import TagAveragePrecision

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-0.3, 0.2, 3.0]])
TAGS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


# Losses


def test_both_are_off_by_default():
    assert torch.equal(AFALoss().classification(LOGITS, TAGS), classification_loss(LOGITS, TAGS))
    assert not AFALoss(positive_weight=[1, 2, 3]).state_dict()


def test_smoothing_mixes_the_losses_of_both_answers():
    """Cross-entropy is linear in the target: ε/2 of the tag's opposite and the rest of the tag itself."""
    right, wrong = (log_loss(t.flatten(), LOGITS.sigmoid().flatten()) for t in (TAGS, 1 - TAGS))
    smooth = AFALoss(tag_smoothing=0.2).classification(LOGITS, TAGS)
    assert smooth.item() == pytest.approx(0.9 * right + 0.1 * wrong, rel=1e-5)
    best = torch.logit(torch.tensor([0.9, 0.1])).requires_grad_()
    AFALoss(tag_smoothing=0.2).classification(best[None], torch.tensor([[1.0, 0.0]])).backward()
    torch.testing.assert_close(best.grad, torch.zeros(2), rtol=0, atol=1e-7)


def test_positive_weight_counts_a_tag_so_often():
    weight = torch.tensor([5.0, 1.0, 2.0])
    per_class = [
        log_loss(TAGS[:, c], LOGITS[:, c].sigmoid(), labels=[0, 1], normalize=False,
                 sample_weight=torch.where(TAGS[:, c] > 0, weight[c], 1.0).tolist())
        for c in range(3)
    ]  # fmt: skip
    loss = AFALoss(positive_weight=weight.tolist()).classification(LOGITS, TAGS)
    assert loss.item() == pytest.approx(sum(per_class) / TAGS.numel(), rel=1e-5)


def test_balanced_weights_even_out_a_class():
    tags = torch.zeros(1000, 4)
    tags[:100, 0], tags[:750, 1], tags[0, 2] = 1, 1, 1
    weight = balanced_positive_weight(tags)
    assert weight.tolist() == pytest.approx([9, 1 / 3, 100, 1])
    present = tags.sum(0)[:2]
    torch.testing.assert_close(weight[:2] * present, 1000 - present)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tag_smoothing": 1.0}, r"loss\.tag_smoothing is 1\.0, need a share"),
        ({"positive_weight": [1, 0]}, r"loss\.positive_weight=\[1, 0\], need numbers above 0"),
        ({"positive_weight": "balanced"}, r"loss\.positive_weight=balanced, need numbers"),
    ],
)
def test_mistaken_losses(settings, words):
    with pytest.raises(UserError, match=words):
        AFALoss(**settings)


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


# Unreadable images


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


# Average precision


def test_precision_equals_scikit_learn_on_the_classes_that_are_there():
    rng = np.random.default_rng(0)
    logits, tags = rng.standard_normal((40, 5)).astype(np.float32), rng.random((40, 5)) < 0.3
    tags[:, 2] = False
    metric = TagAveragePrecision()
    for part in (slice(0, 13), slice(13, 40)):
        metric.update(torch.from_numpy(logits[part]), torch.from_numpy(tags[part]).int())
    expected = np.mean([average_precision_score(tags[:, c], logits[:, c]) for c in (0, 1, 3, 4)])
    assert metric.compute()["map"].item() == pytest.approx(expected, rel=1e-5)
    metric.reset()
    metric.update(torch.zeros(2, 1), torch.zeros(2, 1).int())
    assert metric.compute()["map"].isnan()
