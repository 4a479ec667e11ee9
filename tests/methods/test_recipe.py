"""Checkpoints rebuild their method, those of the first form too, and build nothing that is not trusted."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import wsss_afa
from recipes import CONF, small_recipe
from wsss_afa.errors import UserError
from wsss_afa.methods.afa.method import AFA
from wsss_afa.methods.base import RECIPE_KEY, Method
from wsss_afa.methods.first_form import is_first_form, renew
from wsss_afa.methods.recipe import build, check_plain, load
from wsss_afa.methods.supervised import Supervised
from wsss_afa.ops.par import PixelAdaptiveRefinement

# The first form, as training wrote it while there was one method.

NORMALIZATION = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
OLD_AFA: dict[str, Any] = {
    "model": {
        "_target_": "wsss_afa.models.afa.AFANet",
        "decoder_dim": 8,
        "pool_top_k": 3,
        "affinity_gain": 0.5,
        "backbone": {
            "_target_": "wsss_afa.models.mix_transformer.mix_transformer",
            "variant": "tiny",
            "pretrained": "nvidia/mit-tiny",
            "strides": [4, 2, 1, 1],
            "drop_path_rate": 0.1,
            "activation_checkpointing": False,
        },
    },
    "pseudo_label": {
        "_target_": "wsss_afa.ops.pseudo_label.PseudoLabeler",
        "stage": "afa",
        "cam": {"_target_": "wsss_afa.ops.cam.MultiScaleCAM", "scales": [1.0, 0.5], "mirror": True},
        "refine": {
            "_target_": "wsss_afa.ops.par.PixelAdaptiveRefinement",
            "num_iter": 2,
            "dilations": [1, 2],
            "color_width": 0.3,
            "position_weight": 0.01,
        },
        "propagate": {
            "_target_": "wsss_afa.ops.random_walk.RandomWalkPropagation",
            "radius": 3,
            "power": 2,
            "num_log_steps": 0,
        },
        "low": 0.3,
        "high": 0.5,
        "eval_threshold": 0.4,
        "start_step": 20,
        "propagation_step": 60,
        "affinity_radius": 3,
        "affinity_from_propagated": True,
        "raw_attention": False,
        "normalize_propagated": True,
        "reuse_training_pass": True,
        "downscale": 1,
    },
    "class_names": ["cat", "dog", "cow"],
    **NORMALIZATION,
}
OLD_SUPERVISED: dict[str, Any] = {
    "model": {
        "_target_": "wsss_afa.models.segmentation_net.SegmentationNet",
        "decoder_dim": 8,
        "backbone": OLD_AFA["model"]["backbone"],
    },
    "pseudo_label": {"_target_": "wsss_afa.models.segmentation_net.GivenLabels"},
    "class_names": ["cat", "dog", "cow"],
    **NORMALIZATION,
}
TIMM = {
    "_target_": "wsss_afa.models.timm_features.TimmFeatures",
    "name": "resnet10t",
    "pretrained": True,
    "drop_path_rate": 0.0,
}
NEW_AFA = [
    *("method.decoder_dim=8", "method.pool_top_k=3", "method.affinity_gain=0.5", "method.cam.scales=[1,0.5]"),
    *("method.refine.num_iter=2", "method.refine.dilations=[1,2]", "method.propagate.radius=3"),
    *("method.low=0.3", "method.high=0.5", "method.eval_threshold=0.4", "method.downscale=1"),
    *("method.affinity_from_propagated=true", "method.normalize_propagated=true"),
    *("method.phases.segmentation=21", "method.phases.propagation=61", "backbone.strides=[4,2,1,1]"),
]


def old_and_new(kind: str) -> tuple[dict[str, Any], Method]:
    """A recipe of the first form, and its method made of today's configuration, with weights of chance."""
    name, _, part = kind.partition(" ")
    old = deepcopy(OLD_AFA if name == "afa" else OLD_SUPERVISED)
    if name == "afa":
        old["pseudo_label"]["stage"] = part
        overrides = [*NEW_AFA, f"method.labels={part}"]
    else:
        old["model"]["backbone"] = TIMM if part == "timm" else old["model"]["backbone"]
        backbone = ["backbone=timm_pyramid", "backbone.name=resnet10t"] if part == "timm" else [NEW_AFA[-1]]
        overrides = ["method=supervised", *backbone]
    torch.manual_seed(0)
    new = build(small_recipe(*overrides, class_names=("cat", "dog", "cow")))
    for name, parameter in new.named_parameters():
        if "norm" in name or "bias" in name:
            nn.init.normal_(parameter, 0.5, 0.2)
    return old, new.eval()


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn(2, 3, 64, 72, generator=generator),
        "class_label": torch.tensor([[1.0, 0, 1], [0, 1, 0]]),
        "valid_box": torch.tensor([[0, 64, 0, 72], [8, 60, 0, 40]]),
        "mask": torch.zeros(2, 64, 72, dtype=torch.long),
    }


@pytest.mark.parametrize("kind", ["afa afa", "afa par", "afa cam", "supervised mit", "supervised timm"])
def test_a_checkpoint_of_the_first_form_gives_the_same_outputs(kind, batch, tmp_path):
    recipe, method = old_and_new(kind)
    state = {f"net.{name}": value for name, value in method.net.state_dict().items()}
    torch.save({RECIPE_KEY: recipe, "state_dict": state}, tmp_path / "old.ckpt")
    loaded = load(tmp_path / "old.ckpt").eval()
    assert type(loaded) is type(method)
    assert loaded.recipe["class_names"] == ["cat", "dog", "cow"]
    assert (loaded.phases, loaded.sources, loaded.backgrounds) == (
        method.phases,
        method.sources,
        method.backgrounds,
    )
    ours, theirs = loaded.evaluate(batch), method.evaluate(batch)
    assert torch.equal(ours.class_logits, theirs.class_logits)
    assert torch.equal(ours.seg_logits, theirs.seg_logits)
    assert ours.labels.keys() == theirs.labels.keys()
    assert all(torch.equal(ours.labels[name], theirs.labels[name]) for name in ours.labels)
    assert torch.equal(loaded.heat_maps(batch["image"]), method.heat_maps(batch["image"]))
    for source in method.sources:
        for one, other in zip(
            loaded.maps(batch, source, [0.3, 0.6]), method.maps(batch, source, [0.3, 0.6]), strict=True
        ):
            assert torch.equal(one, other)


def test_all_settings_of_the_first_form_are_kept():
    renewed = renew(OLD_AFA)
    assert not is_first_form(renewed)
    today = small_recipe(*NEW_AFA, class_names=("cat", "dog", "cow"))
    losses = ("classification", "affinity", "dense_energy", "shared_counts", "weights")
    later = (
        "affinity_scale",
        "classifier",
        "classifier_dropout",
        "decoder",
    )  # as they were, where nothing is said
    wanted = {name: value for name, value in today["method"].items() if name not in (*losses, *later)}
    wanted["cam"] = {name: value for name, value in wanted["cam"].items() if name != "precision"}
    assert {name: value for name, value in renewed["method"].items() if name not in losses} == wanted
    assert renewed["backbone"] | {"pretrained": None} == today["backbone"]


# Today's form


@pytest.mark.parametrize(("method", "kind"), [("afa", AFA), ("supervised", Supervised)])
def test_a_method_is_rebuilt_from_its_own_checkpoint(method, kind, batch, tmp_path):
    made = build(small_recipe(f"method={method}"))
    content: dict[str, Any] = {"state_dict": made.state_dict()}
    made.on_save_checkpoint(content)
    torch.save(content, tmp_path / "new.ckpt")
    loaded = load(tmp_path / "new.ckpt")
    assert type(loaded) is type(made) is kind
    assert loaded.recipe == made.recipe
    assert torch.equal(loaded.eval().segment(batch["image"]), made.eval().segment(batch["image"]))


def targets(config: Any) -> set[str]:
    """All that a configuration would build."""
    if isinstance(config, dict):
        own = {config["_target_"]} if "_target_" in config else set()
        return own.union(*map(targets, config.values()))
    return set().union(*map(targets, config)) if isinstance(config, list) else set()


FILES = sorted(path for group in ("method", "backbone") for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_target_of_the_configuration_is_a_part_of_ours(path):
    found = targets(OmegaConf.to_container(OmegaConf.load(path)))
    assert found or "defaults" in path.read_text() or path.stem == "none"
    for target in found:
        check_plain({"_target_": target})


# What strangers ask for

STRANGE = [
    "os.mkdir",
    "builtins.print",
    "subprocess.run",
    "torch.load",
    "torch.nn.Linear",  # a module, but none of ours
    "hydra.utils.instantiate",
    "wsss_afa.files.write_whole",
    "wsss_afa.data.voc.VOCDataModule",
    "wsss_afa.data.archive.unpack",
    "wsss_afa.train.main",
    "wsss_afa.inference.predictor.Predictor",
    "wsss_afa.methods.recipe.load",
    "wsss_afa.methods.recipe.check_plain",
    "wsss_afa.methods.recipe.importlib.import_module",
    "wsss_afa.methods.recipe.torch.load",
    "wsss_afa.methods.recipe.instantiate",
    "wsss_afa.methods.optim.AdamWPoly",  # ours, but no module
    "wsss_afa.methods.base.L.Trainer",
    "wsss_afa.models.weights.read_weights",
    "wsss_afa.models.weights.Path",
    "wsss_afa.models.backbones.mix_transformer.VARIANTS",
    "wsss_afa.models.backbones.mix_transformer.MixTransformer.load_state_dict",
    "wsss_afa.models.backbones.mix_transformer.nn.Module",
    "wsss_afa.ops.cam.torch.hub.load",
    "wsss_afa.ops.nothing.Thing",
    "wsss_afa.ops.",
    "wsss_afa.ops",
    "wsss_afa.losses.affinity.affinity_loss",
    "wsss_afa.ops.par.__builtins__",
    "wsss_afa.ops..par.PixelAdaptiveRefinement",
    "wsss_afa.opsx.Thing",
    "",
    5,
]


@pytest.mark.parametrize("target", STRANGE)
def test_strange_targets_are_refused(target):
    with pytest.raises(UserError, match=r"wants to build .*: refused") as error:
        check_plain({"a": [{"b": {"_target_": target}}]})
    assert "\n" not in str(error.value)


def test_no_function_of_ours_is_called_but_makers_of_backbones():
    accepted = set()
    for module in pkgutil.walk_packages(wsss_afa.__path__, "wsss_afa."):
        for name, found in vars(importlib.import_module(module.name)).items():
            with suppress(UserError):
                check_plain({"_target_": f"{module.name}.{name}"})
                accepted.add((module.name, isinstance(found, type) and issubclass(found, nn.Module)))
    assert len(accepted) > 10
    assert {name for name, is_module in accepted if not is_module} == {
        "wsss_afa.models.backbones.mix_transformer"
    }


@pytest.mark.parametrize("key", ["_args_", "_partial_", "_recursive_", "_convert_", "_other", "__class__"])
def test_keys_that_mean_something_to_hydra_are_refused(key):
    recipe = small_recipe()
    recipe["backbone"][key] = True
    with pytest.raises(UserError, match=rf"the setting '{key}', which no recipe has: refused"):
        build(recipe)


NO_VALUES = {
    "interpolation": "${oc.env:HOME}",
    "interpolation in a list": [["x ${a}"]],
    "interpolation as a key": {"${oc.env:HOME}": 1},
    "set": {1, 2},
    "bytes": b"x",
    "tensor": torch.zeros(1),
    "path": Path("x"),
    "complex": 1j,
    "a set in a tuple": ({1},),
}


@pytest.mark.parametrize("case", NO_VALUES)
@pytest.mark.parametrize("part", ["method", "backbone"])
def test_what_is_no_plain_value_is_refused(case, part):
    recipe = small_recipe()
    recipe[part]["extra"] = NO_VALUES[case]
    with pytest.raises(UserError, match="refused"):
        build(recipe)


def test_plain_values_are_none_of_it():
    plain = {
        "a": [1, 2.5, True, None, "x $y {z}", (1, {"b": "c"})],
        "_target_": "wsss_afa.ops.cam.MultiScaleCAM",
    }
    check_plain(plain)


# Own parts


class Smooth(PixelAdaptiveRefinement):
    """A user's own refinement."""


OWN = "own_parts.Smooth"


@pytest.fixture
def own_checkpoint(tmp_path, monkeypatch) -> Path:
    """A checkpoint whose refinement is the user's own."""
    module = ModuleType("own_parts")
    module.Smooth = Smooth
    monkeypatch.setitem(sys.modules, "own_parts", module)
    recipe = small_recipe()
    recipe["method"]["refine"]["_target_"] = OWN
    made = build(recipe, trust=None)
    torch.save({RECIPE_KEY: recipe, "state_dict": made.state_dict()}, tmp_path / "own.ckpt")
    return tmp_path / "own.ckpt"


def test_an_own_part_is_refused_until_it_is_trusted(own_checkpoint):
    with pytest.raises(UserError, match=r"own\.ckpt: .*own_parts\.Smooth, .*add trust=\[own_parts\.Smooth\]"):
        load(own_checkpoint)
    assert isinstance(load(own_checkpoint, trust=[OWN]).labeler.refined.refine, Smooth)


def test_trust_in_one_is_none_in_others(own_checkpoint):
    with pytest.raises(UserError, match=r"trust=\[own_parts\.Smooth\]"):
        load(own_checkpoint, trust=["own_parts", "own_parts.Other"])
    with pytest.raises(UserError, match=r"wants to build os\.mkdir"):
        check_plain([{"_target_": OWN}, {"_target_": "os.mkdir"}], trust=[OWN])


def test_what_is_built_has_to_be_a_method():
    recipe = small_recipe()
    network = {"_target_": "wsss_afa.methods.afa.network.AFANet"}
    with pytest.raises(UserError, match=r"method\._target_=.*AFANet is no method: name a class of one"):
        build({**recipe, "method": network})
