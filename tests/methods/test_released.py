"""Released AFA checkpoints: files of the authors' names become our network, with equal outputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from released import add_toy, random_net, released_names, save_toy
from wsss_afa import evaluate, predict, pseudo_labels
from wsss_afa.data.coco import COCO_CLASSES
from wsss_afa.data.voc import VOC_CLASSES
from wsss_afa.errors import UserError
from wsss_afa.methods.afa.method import AFA
from wsss_afa.methods.afa.network import AFANet
from wsss_afa.methods.afa.released import released_recipe, rename_afa
from wsss_afa.methods.recipe import build, load
from wsss_afa.models.backbones.mix_transformer import VARIANTS

GOLDEN = Path(__file__).parents[1] / "data" / "train_step_a.npz"


@pytest.fixture(scope="module")
def released() -> AFANet:
    return random_net()


@pytest.mark.parametrize(
    ("prefix", "entry"), [("", None), ("module.", None), ("", "state_dict"), ("module.", "model")]
)
def test_a_released_file_gives_the_same_outputs(released, prefix, entry, tmp_path):
    state, image = released_names(released, prefix), torch.randn(1, 3, 96, 112)
    assert {f"{prefix}encoder.block1.0.mlp.dwconv.dwconv.weight", f"{prefix}classifier.weight"} < set(state)
    torch.save({entry: state, "iteration": 18000} if entry else state, tmp_path / "wetr_iter_18000.pth")
    method = load(tmp_path / "wetr_iter_18000.pth").eval()
    assert isinstance(method, AFA)
    assert method.recipe["class_names"] == list(VOC_CLASSES)
    assert method.labeler.refined.refine.num_iter == 10
    assert not method.labeler.affinity_from_propagated
    with torch.no_grad():
        expected, output = released(image), method.net(image)
    for name in ("class_logits", "seg_logits", "affinity"):
        assert torch.equal(getattr(output, name), getattr(expected, name))
    assert torch.equal(output.activation.cam, expected.activation.cam)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as archive:
        return dict(archive)


def state_of(golden: dict[str, np.ndarray], prefix: str = "") -> dict[str, torch.Tensor]:
    """The weights of the released program."""
    names = [name for name in golden if name.startswith("state/")]
    return {prefix + name.removeprefix("state/"): torch.from_numpy(golden[name]) for name in names}


def test_golden_values_from_a_released_file(golden, tmp_path, monkeypatch):
    """The released program's outputs, at its own tiny widths."""
    meta = json.loads(str(golden["meta"]))
    monkeypatch.setitem(VARIANTS, "golden", (meta["embed_dims"], meta["depths"], meta["num_heads"]))
    torch.save(state_of(golden), tmp_path / "wetr_iter_5.pth")
    method = load(tmp_path / "wetr_iter_5.pth").eval()
    assert method.recipe["class_names"] == ["class_1", "class_2", "class_3", "class_4", "class_5"]
    assert method.recipe["method"]["decoder_dim"] == meta["decoder_dim"]
    with torch.no_grad():
        output = method.net(torch.from_numpy(golden["in/image"]))
    for name in ("class_logits", "seg_logits", "affinity"):
        expected = torch.from_numpy(golden[f"out/{name}"])
        assert (getattr(output, name) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "tiny"])
def test_variant_width_and_classes_are_read_off_the_shapes(variant):
    with torch.device("meta"):
        net = random_net(variant, num_classes=80, decoder_dim=768)
    recipe = released_recipe(rename_afa(released_names(net)))
    assert recipe["backbone"]["variant"] == variant
    assert recipe["backbone"]["strides"] == [4, 2, 2, 1]
    assert recipe["method"]["decoder_dim"] == 768
    assert recipe["class_names"] == list(COCO_CLASSES)
    with torch.device("meta"):
        method = build(recipe)
    assert {k: v.shape for k, v in method.net.state_dict().items()} == {
        k: v.shape for k, v in net.state_dict().items()
    }
    assert method.labeler.refined.refine.num_iter == 15
    assert [phase.first for phase in method.phases] == [0, 5001, 15001]
    assert method.labeler.affinity_from_propagated


@pytest.mark.parametrize("prefix", ["", "module."])
def test_names(golden, prefix):
    state = state_of(golden, prefix)
    renamed = rename_afa(state)
    assert len(renamed) == len(state)
    assert {key for key in renamed if not key.startswith("backbone.stages.")} == {
        *(f"decoder.projections.{i}.{part}" for i in range(4) for part in ("weight", "bias")),
        "decoder.fuse.weight",
        *(f"decoder.norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
        "decoder.norm.num_batches_tracked",
        *(f"{head}.{part}" for head in ("decoder.predict", "affinity_head") for part in ("weight", "bias")),
        "classifier.weight",
    }
    assert [renamed[f"decoder.projections.{i}.weight"].shape[1] for i in range(4)] == [8, 16, 20, 32]
    assert renamed["affinity_head.weight"].shape == (16,)
    assert torch.equal(renamed["affinity_head.weight"], state[f"{prefix}attn_proj.weight"][0, :, 0, 0])
    sr = renamed["backbone.stages.1.blocks.0.attn.sr.weight"]
    assert torch.equal(sr, state[f"{prefix}encoder.block2.0.attn.sr.weight"])


def test_names_of_another_network():
    with pytest.raises(UserError, match=r"no released AFA checkpoint .*block1.*; need encoder"):
        rename_afa({"block1.0.norm1.weight": torch.zeros(1)})


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


MISTAKES = {
    "an encoder alone": (
        lambda s: {k[8:]: v for k, v in s.items() if k.startswith("encoder.")},
        "no released",
    ),
    "no classifier": (lambda s: without(s, "classifier.weight"), "no released AFA"),
    "a lost weight": (lambda s: without(s, "encoder.norm3.bias"), r"1 missing \(backbone\.stages\.2\.norm"),
    "other widths": (
        lambda s: s | {"encoder.block1.0.norm1.weight": torch.zeros(64)},
        "channels .*need those of",
    ),
    "other depths": (
        lambda s: s | {"encoder.block2.2.norm1.weight": torch.zeros(64)},
        r"depths \[2, 3, 2, 2\]",
    ),
    "classes that differ": (
        lambda s: s | {"classifier.weight": torch.zeros(3, 256, 1, 1)},
        "of another shape",
    ),
    "an image": (lambda s: torch.zeros(3), "holds a Tensor, need weights by name"),
    "numbers": (lambda s: {1: 2}, r"not written by wsss_afa\.train .*no released AFA"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_no_checkpoint_is_told_in_a_line(mistake, released, tmp_path):
    change, pattern = MISTAKES[mistake]
    torch.save(change(released_names(released)), tmp_path / "a.pth")
    with pytest.raises(UserError, match=pattern) as error:
        load(tmp_path / "a.pth")
    assert str(error.value).startswith(f"ckpt={tmp_path}/a.pth: ")
    assert "\n" not in str(error.value)
    assert str(error.value).count("ckpt=") == 1


def voc_folder(root: Path) -> Path:
    """Two images in VOC's layout, which validate and train."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate("ab"):
        pixels = np.random.default_rng(seed).integers(0, 256, (80, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
        Image.fromarray(np.full((80, 96), 12, np.uint8)).save(root / "SegmentationClass" / f"{name}.png")
        xml = "<annotation><object><name>dog</name></object></annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(xml)
    for split in ("train_aug", "val"):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("a\nb\n")
    return root


PROGRAMS = {
    "evaluate": (
        evaluate,
        ["data=voc", "data.root=VOC2012", "data.num_workers=0", "trainer.accelerator=cpu"],
    ),
    "predict": (predict, ["source=VOC2012/JPEGImages", "device=cpu", "out=run"]),
    "pseudo_labels": (
        pseudo_labels,
        ["data=voc", "data.root=VOC2012", "data.num_workers=0", "trainer.accelerator=cpu", "out=run/labels"],
    ),
}
WRITTEN = {"evaluate": "metrics.json", "predict": "masks/a.png", "pseudo_labels": "labels/**/a.png"}


@pytest.mark.filterwarnings(r"ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_takes_a_released_file(program, tmp_path, monkeypatch):
    add_toy(monkeypatch)
    save_toy(tmp_path / "wetr_iter_5.pth")
    voc_folder(tmp_path / "VOC2012")
    monkeypatch.chdir(tmp_path)
    module, arguments = PROGRAMS[program]
    monkeypatch.setattr(sys, "argv", [program, "ckpt=wetr_iter_5.pth", *arguments, "hydra.run.dir=run"])
    module.main()
    assert list((tmp_path / "run").glob(WRITTEN[program]))
