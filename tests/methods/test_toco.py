"""ToCo: what a phase computes, that no batch makes a loss NaN, the teacher's pace, and its authors' files."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from torch.utils.data import DataLoader

from quiet import QUIET
from vit_method import check_finite, method_of
from wsss_afa.errors import UserError
from wsss_afa.methods.recipe import load
from wsss_afa.ops.local_crops import certainty

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:You defined a `validation_step`")]
SMALL = (
    "method.projection={hidden: 16, bottleneck: 8, outputs: 12}", "method.crops.side=32",
    "method.crops.count=4", "method.cam.scales=[1.0,0.5]",
)  # fmt: skip
ALL = {"cls", "aux", "ptc", "ctc", "seg", "reg"}


def make(*overrides, experiment="voc_toco", **settings) -> Any:
    return method_of(f"+experiment={experiment}", *SMALL, *overrides, **settings)


def batch_of(tags=((1, 0, 1), (0, 1, 0)), box=(0, 64, 0, 64)) -> Any:
    generator = torch.Generator().manual_seed(1)
    image, local, wide = torch.randn(3, len(tags), 3, 64, 64, generator=generator)
    return {
        "image": image,
        "class_label": torch.tensor(tags, dtype=torch.float),
        "valid_box": torch.tensor([box] * len(tags)),
        "name": ["a", "b"],
        "seed": torch.arange(len(tags)),
        "views": {"local": local, "global": wide},
    }


@pytest.mark.parametrize(
    ("experiment", "step", "terms", "source"),
    [
        ("voc_toco", 0, ALL - {"seg", "reg"}, "cam"),
        ("voc_toco", 2000, ALL - {"seg", "reg"}, "cam"),
        ("voc_toco", 2001, ALL, "cam"),
        ("coco_toco", 8000, {"cls", "aux"}, None),
        ("coco_toco", 8001, ALL - {"ptc", "ctc"}, "aux"),
        ("coco_toco", 12000, ALL - {"ptc", "ctc"}, "aux"),
        ("coco_toco", 12001, ALL, "cam"),
    ],
)
def test_each_phase_has_the_losses_and_the_labels_of_the_schedule(experiment, step, terms, source):
    method = make(experiment=experiment)
    assert method.losses(batch_of(), step).keys() == terms
    assert method.at(method.labels_from, step) == source


def test_a_loss_without_weight_is_not_computed():
    method = make("method.weights.ctc=0", "method.weights.reg=0")
    batch = batch_of()
    del batch["views"], batch["seed"]
    assert method.losses(batch, 5000).keys() == {"cls", "aux", "ptc", "seg"}


CERTAIN = {"low": 0.0, "high": 0.0}  # every score above 0 is an object: no background
UNSURE = {"low": 0.0, "high": 1.0}  # every score is uncertain: all labels are ignored
BACKGROUND = {"low": 1.0, "high": 1.0}
NONE = ((0, 0, 0), (0, 0, 0))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("thresholds", "tags", "box"),
    [
        (CERTAIN, ((1, 0, 1), (0, 1, 0)), (0, 64, 0, 64)),
        (UNSURE, ((1, 0, 1), (0, 1, 0)), (0, 64, 0, 64)),
        (BACKGROUND, ((1, 0, 1), (0, 1, 0)), (0, 64, 0, 64)),
        ({}, NONE, (0, 64, 0, 64)),
        ({}, ((0, 1, 0), (0, 0, 0)), (5, 6, 7, 8)),  # no token's centre, hardly a pixel
    ],
    ids=["no negative crop", "all ignored", "all background", "no class", "no token"],
)
def test_no_batch_makes_a_loss_nan(precision, thresholds, tags, box):
    method = make(*(f"method.{name}={value}" for name, value in thresholds.items()))
    check_finite(method, batch_of(tags, box), [5000], precision)


def test_one_class_is_enough():
    method = make(classes=("cat",))
    terms = method.losses(batch_of(((1,), (0,))), 5000)
    assert all(term.isfinite() for term in terms.values())


def test_crops_hang_on_the_seed_of_their_image():
    method, batch = make(), batch_of()
    first = method.losses(batch, 0)
    assert torch.equal(first["ctc"], method.losses(batch, 0)["ctc"])
    maps = method.labeler.own_maps(method.net, batch["image"], batch["class_label"])
    mask = certainty(maps.aux.amax(1), *method.backgrounds)
    corners = method.crops.corners(mask, batch["seed"])
    assert not torch.equal(corners, method.crops.corners(mask, batch["seed"] + 2))


def test_the_box_in_pixels_is_that_of_the_released_program():
    """A box that begins at pixel 5 leaves a grid of 4 × 4 tokens nothing."""
    batch = batch_of(box=(5, 64, 0, 64))
    kept = []
    for pixels in ("true", "false"):
        method = make(f"method.pixel_box={pixels}")
        maps = method.labeler.own_maps(method.net, batch["image"], batch["class_label"])
        kept.append(bool((method.token_label(batch, maps, (4, 4)) != 255).any()))
    assert kept == [False, True]


class OneTerm:
    """Losses of one term, which leave the teacher out."""

    def __init__(self, method):
        self.method = method

    def __call__(self, batch, step):
        return {"cls": self.method.net.projection(torch.ones(1, 24)).square().sum()}


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_teacher_moves_once_with_each_optimiser_step(accumulation, monkeypatch):
    method, moves = make(), []
    monkeypatch.setattr(method, "losses", OneTerm(method))
    monkeypatch.setattr(method, "after_step", lambda: moves.append(method.global_step))  # not yet counted
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, logger=False, limit_val_batches=0, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, accumulate_grad_batches=accumulation,
    )  # fmt: skip
    trainer.log_every_n_steps = 0
    trainer.fit(method, DataLoader([{"image": torch.zeros(3, 4, 4)} for _ in range(6)]))
    assert moves == [0, 1]


def test_the_teacher_is_not_trained():
    method = make()
    assert torch.equal(method.net.teacher.directions, method.net.projection.directions)
    trained = {id(p) for group in method.parameter_kinds().values() for p in group}
    assert not trained & {id(p) for p in method.net.teacher.parameters()}
    assert not method.net.backbone.pos_embed.requires_grad


def test_norms_are_decayed_and_have_the_rate_of_the_encoder():
    method = make()
    optimizer, _ = method.optim(method.parameter_kinds())
    rates = {group["name"]: (group["initial_lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert rates == {
        "encoder": (6e-5, 0.01), "norm": (6e-5, 0.01), "head": (pytest.approx(6e-4), 0.01),
        "decoder": (pytest.approx(6e-4), 0.01),
    }  # fmt: skip


def test_another_backbone_is_refused():
    with pytest.raises(Exception, match="need a plain ViT: use backbone=vit_base"):
        instantiate({
            "_target_": "wsss_afa.models.auxiliary_cam.AuxiliaryCAMNet", "num_classes": 2,
            "backbone": {
                "_target_": "wsss_afa.models.backbones.mix_transformer.mix_transformer", "variant": "tiny",
                "pretrained": None,
            },
        })  # fmt: skip


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.labels_from=par", "method.labels_from=par is not known; need cam or aux"),
        ("method.labels_from={late: cam}", "method.labels_from names the phase late"),
        ("method.weights.seg={late: 1.0}", "method.weights.seg names the phase late"),
    ],
)
def test_mistakes_are_named(override, words):
    with pytest.raises(Exception, match=words):
        make(f"++{override}")


# Files of the authors' program

RENAMED = (
    ("backbone.", "encoder."), ("decoder.near.", "decoder.conv6."), ("decoder.far.", "decoder.conv7."),
    ("decoder.predict.", "decoder.conv8."), ("projection.directions", "proj_head.last_layer.weight_v"),
    ("teacher.directions", "proj_head_t.last_layer.weight_v"), ("projection.", "proj_head."),
    ("teacher.", "proj_head_t."),
)  # fmt: skip


def released(method):
    """Weights as the program writes them."""
    state = {}
    for name, value in method.net.state_dict().items():
        old, new = next(((old, new) for old, new in RENAMED if name.startswith(old)), ("", ""))
        state[f"module.{new}{name.removeprefix(old)}"] = value
    outputs = len(method.net.projection.directions)
    for head in ("proj_head", "proj_head_t"):
        state[f"module.{head}.last_layer.weight_g"] = torch.ones(outputs, 1)
    state["module.encoder.head.weight"] = torch.zeros(1000, 2)
    return state


@pytest.fixture(scope="module")
def published():
    """A network of a published width, but of two blocks."""
    return make("++backbone.model_args={embed_dim: 192, depth: 2, num_heads: 3}").eval()


def test_a_released_file_is_loaded(published, tmp_path):
    torch.save(released(published), tmp_path / "model_iter_20000.pth")
    method = load(tmp_path / "model_iter_20000.pth").eval()
    assert method.recipe["class_names"] == ["class_1", "class_2", "class_3"]
    image = torch.randn(1, 3, 48, 64)
    assert torch.equal(method.segment(image), published.segment(image))
    assert torch.equal(method.classify(image), published.classify(image))
    for name, value in published.net.state_dict().items():
        assert torch.equal(method.net.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("module.decoder.conv7.weight"), "1 missing .decoder.far.weight"),
        (lambda s: s["module.proj_head.last_layer.weight_g"].fill_(2), "rows of another length than 1"),
        (
            lambda s: s.update({"module.encoder.patch_embed.proj.weight": torch.zeros(5, 3, 16, 16)}),
            "width 5",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_a_line(published, tmp_path, change, words):
    state = released(published)
    change(state)
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(UserError, match=words) as error:
        load(tmp_path / "broken.pth")
    assert "\n" not in str(error.value)
