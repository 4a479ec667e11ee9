"""The second stage: labels move with their images, and a network learns them and is rebuilt from its file."""

from __future__ import annotations

import csv
import json
import re
import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image

from quiet import QUIET
from wsss_afa import train
from wsss_afa.methods.recipe import load
from wsss_afa.data.synthetic import SyntheticDataModule
from wsss_afa.data.voc import VOCDataModule
from wsss_afa.data.label_folder import LabelFolder, LabelledImages
from wsss_afa.data.synthetic import SyntheticScenes
from wsss_afa.data.transforms import EvalTransform, TrainTransform
from wsss_afa.losses.segmentation import SegmentationLoss
from wsss_afa.methods.afa.network import AFANet, parameter_kinds
from wsss_afa.models.backbones.mix_transformer import mix_transformer
from wsss_afa.models.segmentation_net import SegmentationNet, SegmentationOutput
from wsss_afa.models.backbones.timm_pyramid import TimmFeatures
from wsss_afa.methods.supervised import GivenLabels
from wsss_afa.inference.predictor import Predictor
from wsss_afa.types import PseudoLabels
from wsss_afa.errors import UserError
from wsss_afa.visualize import save_label

pytestmark = QUIET

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


def test_the_loss_is_cross_entropy_over_labelled_pixels():
    logits = torch.randn(2, 4, 5, 7, requires_grad=True)
    label = torch.randint(0, 4, (2, 20, 28))
    label[:, :9] = 255
    output = SegmentationOutput(torch.zeros(2, 3), logits)
    terms = SegmentationLoss()(output, {}, PseudoLabels(label))
    full = F.interpolate(logits, (20, 28), mode="bilinear", align_corners=False)
    wanted = -full.log_softmax(1).gather(1, label[:, None].clamp(max=3))[:, 0][label != 255].mean()
    torch.testing.assert_close(terms["total"], wanted)
    empty = SegmentationLoss()(output, {}, PseudoLabels(torch.full_like(label, 255)))["total"]
    empty.backward()
    assert empty == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "pvt_v2_b0", "mobilenetv3_small_050"])
def test_any_timm_backbone_gives_four_maps_of_any_image(name):
    backbone = TimmFeatures(name, pretrained=None).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 70, 33)).features
    wanted = [
        (1, channels, -(-70 // step), -(-33 // step))
        for channels, step in zip(backbone.channels, backbone.reductions, strict=True)
    ]
    assert [tuple(feature.shape) for feature in features] == wanted


def test_timm_maps_that_lie_channels_last_are_turned():
    backbone = TimmFeatures("swin_tiny_patch4_window7_224", pretrained=None).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 224, 224)).features
    assert [feature.shape[1] for feature in features] == backbone.channels


def test_timm_weights_are_read_from_a_file(tmp_path):
    source = timm.create_model("resnet10t", pretrained=False)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    backbone = TimmFeatures("resnet10t", pretrained=str(tmp_path / "weights.pth"))
    own = backbone.model.state_dict()
    assert len(own) > 30
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in own.items())


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (("resnet5o", None), r"resnet5o.*did you mean resnet\d+"),
        (("resnet10t", "nowhere.pth"), "nowhere.pth: no such file"),
        (("dla34", None, 0.1), "cannot be built .*drop_path_rate"),
    ],
)
def test_mistakes_about_timm(arguments, pattern):
    with pytest.raises(UserError, match=pattern):
        TimmFeatures(*arguments)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(timm.create_model("resnet10t", pretrained=False).state_dict(), tmp_path / "weights.pth")
    for name in ("convnext_atto", "pvt_v2_b0"):  # of the second timm would take nothing, and not mind
        with pytest.raises(UserError, match=f"{name}.*weights|weights of {name}"):
            TimmFeatures(name, pretrained=str(tmp_path / "weights.pth"))


def test_every_parameter_has_one_kind():
    afa = AFANet(mix_transformer("tiny"), 3, decoder_dim=8)
    plain = SegmentationNet(TimmFeatures("resnet10t", pretrained=None), 3, decoder_dim=8)
    for net in (afa, plain):
        kinds = parameter_kinds(net)
        listed = [parameter for kind in kinds.values() for parameter in kind]
        assert {id(p) for p in listed} == {id(p) for p in net.parameters()}
        assert len(listed) == len({id(p) for p in listed})
    heads = [*afa.classifier.parameters(), *afa.affinity_head.parameters()]
    assert [id(p) for p in parameter_kinds(afa)["head"]] == [id(p) for p in heads]
    assert not parameter_kinds(plain)["head"]


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


SMALL = [
    "+experiment=second_stage",
    "data.image_size=32",
    "data.num_classes=3",
    "data.train_images=8",
    "data.val_images=4",
    "data.batch_size=4",
    "model.decoder_dim=16",
    "model.backbone.pretrained=null",
    "optim.lr=1e-3",
    "optim.warmup_steps=2",
    "trainer.max_steps=24",
    "trainer.val_check_interval=24",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "callbacks.pictures.num_images=2",
]
NETWORKS = {
    "mit": ["model.backbone.variant=tiny", "model.backbone.strides=[4,2,1,1]"],
    "timm": ["model/backbone=timm", "model.backbone.name=resnet10t"],
}


@pytest.fixture
def run(monkeypatch):
    """Train in this process; returns the line of a mistake, or None."""

    def program(*arguments):
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        try:
            train.main()
        except SystemExit as stop:
            return str(stop.code)
        return None

    return program


@pytest.mark.parametrize("network", NETWORKS)
def test_a_run_learns_its_labels_and_is_rebuilt_from_its_file(network, run, tmp_path):
    labels = write_truth(tmp_path / "labels")
    folder = tmp_path / "run"
    assert run(*SMALL, *NETWORKS[network], f"labels={labels}", f"hydra.run.dir={folder}") is None
    with (folder / "metrics.csv").open() as file:
        losses = [float(row["train/loss_seg"]) for row in csv.DictReader(file) if row["train/loss_seg"]]
    assert len(losses) == 24
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])
    results = json.loads((folder / "metrics.json").read_text())
    assert set(results["last"]["iou"]) == {"seg"}
    assert (folder / "pictures" / "step_000024.png").is_file()
    net, labeler, recipe = load(folder / "checkpoints" / "best.ckpt")
    assert isinstance(labeler, GivenLabels)
    assert recipe["class_names"] == ["disc", "box", "triangle"]
    image = torch.randn(1, 3, 45, 38)
    assert torch.equal(net.eval().segment(image), net(image).seg_logits)
    prediction = Predictor.from_checkpoint(folder / "checkpoints" / "best.ckpt", "cpu")(
        np.zeros((45, 38, 3), np.uint8)
    )
    assert prediction.label.shape == (45, 38)


def test_only_the_folder_named_is_opened(run, tmp_path):
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
    with pytest.raises(UserError, match="equal sizes"):
        LabelledImages(scenes, folder)[7]
    other = LabelFolder(tmp_path / "other", {"class_names": ["cat", "dog"]})
    with pytest.raises(UserError, match="labels of the classes"):
        LabelledImages(scenes, other.root)


MISTAKES = {
    "no labels": (SMALL, r"labels=DIR"),
    "no second stage": (["+experiment=synthetic", "labels=."], r"labels=\.: .*second_stage"),
    "missing folder": ([*SMALL, "labels=nowhere"], r"labels=nowhere: no such folder"),
    "unknown backbone": (
        [*SMALL, "model/backbone=timm", "model.backbone.name=resnet5o", "labels=."],
        r"resnet5o",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line(mistake, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, pattern = MISTAKES[mistake]
    message = run(*arguments, *NETWORKS["mit"][: 1 - ("unknown" in mistake)], f"hydra.run.dir={tmp_path}/run")
    assert re.fullmatch(rf"error: .*{pattern}.*", message), message
    assert not list(tmp_path.rglob("*.ckpt"))
