"""Data modules: the same keys from every set, and a run that resumes on the very next batch."""

from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from wsss_afa.data.coco import COCO_CLASSES, COCODataModule
from wsss_afa.data.sampler import own_share
from wsss_afa.data.synthetic import SyntheticDataModule
from wsss_afa.data.voc import VOC_CLASSES, VOCDataModule
from wsss_afa.errors import UserError

QUIET = {
    "accelerator": "cpu", "devices": 1, "max_epochs": -1, "use_distributed_sampler": False, "logger": False,
    "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:GPU available but not used", "ignore:.*LeafSpec"
)


def scenes(**changes):
    arguments = {"image_size": 32, "crop_size": 24, "train_images": 13, "val_images": 5, "batch_size": 4}
    return SyntheticDataModule(**{**arguments, **changes})


class Recorder(L.LightningModule):
    """Remembers what it is fed."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], []

    def training_step(self, batch, index):
        self.seen.append((*batch["name"], batch["image"].sum().item()))
        return self.weight * batch["image"].mean()

    def validation_step(self, batch, index):
        self.validated += batch["name"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(steps, accumulation=1, checkpoint=None, data=None, **changes):
    options = {**QUIET, "limit_val_batches": 0, "accumulate_grad_batches": accumulation, **changes}
    trainer = L.Trainer(max_steps=steps, **options)
    module = Recorder()
    trainer.fit(module, data or scenes(), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return trainer, module


@pytest.mark.parametrize("workers", [0, 1])
def test_batches(workers):
    data = scenes(num_workers=workers)
    assert (data.num_classes, len(data.class_names)) == (6, 6)
    data.setup("fit")
    train, val = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert set(train) == {"image", "class_label", "valid_box", "name", "seed"}
    assert set(val) == {*train, "mask"} - {"seed"}
    assert (train["image"].shape, train["class_label"].shape, train["valid_box"].shape) == (
        (4, 3, 24, 24), (4, 6), (4, 4),
    )  # fmt: skip
    assert (val["image"].shape, val["mask"].shape, val["mask"].dtype) == (
        (1, 3, 32, 32), (1, 32, 32), torch.int64,
    )  # fmt: skip
    assert isinstance(train["name"], list)


def test_one_pass_without_a_trainer():
    data = scenes()
    data.setup("fit")
    names = [name for batch in data.train_dataloader() for name in batch["name"]]
    assert (len(names), len(set(names))) == (16, 13)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_sees_what_the_unbroken_one_would(tmp_path, accumulation):
    _, whole = fit(10, accumulation)
    trainer, first = fit(4, accumulation, data=scenes())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    _, rest = fit(10, accumulation, tmp_path / "end.ckpt")
    assert first.seen + rest.seen == whole.seen


def test_a_run_cut_in_mid_epoch_resumes(tmp_path):
    """The checkpoint is written while the one endless epoch goes on."""

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if index == 7:
                trainer.save_checkpoint(tmp_path / "cut.ckpt")

    _, whole = fit(7, 2, callbacks=[Save()])
    trainer, rest = fit(7, 2, tmp_path / "cut.ckpt")
    assert (trainer.global_step, rest.seen) == (7, whole.seen[8:])


def test_accumulation_changes_no_step():
    seen = {a: [set(names) for *names, _ in fit(3, a)[1].seen] for a in (1, 2)}
    assert seen[1] == [a | b for a, b in zip(seen[2][::2], seen[2][1::2], strict=True)]


def test_every_validation_image_is_seen_once():
    data = scenes()
    L.Trainer(**QUIET).validate(module := Recorder(), data)
    assert module.validated == [f"val_{index:06d}" for index in range(5)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_is_shared_without_duplicates(world_size):
    class Place:
        limit_val_batches = 1.0

    seen = []
    for rank in range(world_size):
        data, place = scenes(), Place()
        place.global_rank, place.world_size = rank, world_size
        data.trainer = place
        data.setup("validate")
        seen += [name for batch in data.val_dataloader() for name in batch["name"]]
    assert sorted(seen) == [f"val_{index:06d}" for index in range(5)]


def test_more_processes_than_validation_images_are_refused():
    place = SimpleNamespace(global_rank=0, world_size=6)
    assert list(own_share(6, place, "validation images")) == [0]
    with pytest.raises(UserError, match=r"^5 validation images for 6 processes.*raise data\.val_fraction"):
        own_share(5, place, "validation images")


def test_a_run_without_validation_asks_for_no_validation_images():
    data = scenes()
    data.make_set = {"train": data.make_set("train")}.__getitem__
    data.setup("fit")
    trainer, seen = fit(2, data=data)
    assert (trainer.global_step, len(seen.seen)) == (2, 2)


def test_mistakes_come_before_training(tmp_path):
    with pytest.raises(UserError, match=r"trainer\.max_steps is -1"):
        fit(-1)
    with pytest.raises(UserError, match="multiple of 3"):
        fit(2, accumulation=3)
    for module in (VOCDataModule, COCODataModule):
        with pytest.raises(UserError, match=r"data\.root=.*need"):
            module(str(tmp_path / "nowhere")).setup("fit")
    with pytest.raises(TypeError, match="batchsize"):
        VOCDataModule(str(tmp_path), batchsize=8)


def test_classes_are_known_without_files():
    assert VOCDataModule("nowhere").class_names == VOC_CLASSES
    assert (COCODataModule("nowhere").class_names, COCODataModule("nowhere").num_classes) == (
        COCO_CLASSES,
        80,
    )


def test_a_folder_without_masks_trains(tmp_path):
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("a", "b"):
        pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        (tmp_path / "Annotations" / f"{name}.xml").write_text("<a><object><name>cat</name></object></a>")
    (tmp_path / "ImageSets/Segmentation/train_aug.txt").write_text("a\nb\n")
    _, module = fit(3, data=VOCDataModule(str(tmp_path), batch_size=2, crop_size=16))
    assert [set(names) for *names, _ in module.seen] == [{"a", "b"}] * 3


def test_seeds_stay_on_the_cpu():
    batch = {"image": torch.zeros(1, 3, 2, 2), "seed": torch.tensor([7]), "name": ["a"]}
    moved = scenes().transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert (moved["image"].device.type, moved["seed"].tolist(), moved["name"]) == ("meta", [7], ["a"])
