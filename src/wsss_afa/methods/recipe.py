"""Checkpoints that rebuild their network by themselves, and run no code while doing so.

Beside Lightning's state a checkpoint carries a recipe of plain containers: the resolved configuration of the
network and of the pseudo labels, the class names and the normalisation. A file from a stranger may name any
Python object in that configuration, so only the targets listed here are ever instantiated, and only plain
values are handed to them: neither interpolations nor weights to fetch.

Checkpoints that the AFA authors' program wrote (``wetr_iter_*.pth``) hold weights alone. Their recipe is read
off the weights' shapes, and what no shape shows is the program's own setting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from torch import Tensor

from wsss_afa.data.coco import COCO_CLASSES
from wsss_afa.data.voc import VOC_CLASSES
from wsss_afa.methods.afa.network import AFANet
from wsss_afa.models.backbones.mix_transformer import VARIANTS
from wsss_afa.models.weights import check_fit, rename_afa
from wsss_afa.methods.afa.pseudo_labels import PseudoLabeler
from wsss_afa.types import MEAN, STD
from wsss_afa.errors import UserError

RECIPE_KEY = "wsss_afa"
"""Where in the checkpoint the recipe lies."""

_TARGETS = frozenset(
    {
        "wsss_afa.methods.afa.network.AFANet",
        "wsss_afa.models.segmentation_net.SegmentationNet",
        "wsss_afa.models.backbones.timm_pyramid.TimmFeatures",
        "wsss_afa.methods.supervised.GivenLabels",
        "wsss_afa.models.backbones.mix_transformer.mix_transformer",
        "wsss_afa.ops.cam.MultiScaleCAM",
        "wsss_afa.ops.par.PixelAdaptiveRefinement",
        "wsss_afa.methods.afa.pseudo_labels.PseudoLabeler",
        "wsss_afa.ops.random_walk.RandomWalkPropagation",
    }
)


class Recipe(TypedDict):
    """What rebuilds a network and names its outputs."""

    model: dict[str, Any]
    """Resolved configuration of the AFANet, without its ``num_classes``."""
    pseudo_label: dict[str, Any]
    """Resolved configuration of the PseudoLabeler."""
    class_names: list[str]
    """C foreground classes, in order."""
    mean: list[float]
    """Of the normalisation, RGB, 0…255."""
    std: list[float]
    """Of the normalisation, RGB, 0…255."""


def build(recipe: Recipe) -> tuple[AFANet, PseudoLabeler]:
    """Network with random weights, and labeler, from a recipe.

    Raises:
        UserError: the recipe names something that no checkpoint of this library names.
    """
    _check_plain(recipe["model"])
    _check_plain(recipe["pseudo_label"])
    net = instantiate(recipe["model"], num_classes=len(recipe["class_names"]))
    return cast(AFANet, net), cast(PseudoLabeler, instantiate(recipe["pseudo_label"]))


def load(path: str | Path) -> tuple[AFANet, PseudoLabeler, Recipe]:
    """Rebuild a trained network from its file alone.

    Args:
        path: a ``.ckpt`` written by training, or a ``.pth`` of the AFA authors' program, with or without the
            prefix ``module.`` on its names. Such a file has the classes of VOC if there are 20, of COCO if
            there are 80, else class_1, class_2, ….

    Returns:
        Network with the file's weights, labeler and recipe.

    Raises:
        UserError: there is no such file, it cannot be read as plain tensors and containers, or neither of the
            two programs wrote it.
    """
    content = _read(Path(path))
    try:
        recipe, state = _own(content) if RECIPE_KEY in content else _released(content)
        net, labeler = build(recipe)
        net.load_state_dict(check_fit(state, net))
    except UserError as error:
        raise UserError(f"ckpt={path}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, HydraException) as error:
        reason = f"{type(error).__name__}: {str(error.__cause__ or error).partition(chr(10))[0]}"
        raise UserError(f"ckpt={path}: its recipe builds no network ({reason}): give another file") from error
    return net, labeler, recipe


def released_recipe(state: Mapping[str, Tensor]) -> Recipe:
    """What rebuilds the network of a released AFA checkpoint.

    The encoder's variant, the decoder's width and the number of classes are those of the shapes. Strides,
    normalisation and pseudo labels are the released program's, for 80 classes those of its COCO settings.

    Args:
        state: weights under our names, from `rename_afa`.

    Raises:
        UserError: the encoder has the widths and depths of no variant.
    """
    num_classes = len(state["classifier.weight"])
    names = {len(classes): list(classes) for classes in (VOC_CLASSES, COCO_CLASSES)}
    return Recipe(
        model={
            "_target_": "wsss_afa.methods.afa.network.AFANet",
            "decoder_dim": len(state["decoder.fuse.weight"]),
            "backbone": {
                "_target_": "wsss_afa.models.backbones.mix_transformer.mix_transformer",
                "variant": _find_variant(state),
                "strides": [4, 2, 2, 1],
                "pretrained": None,
            },
        },
        pseudo_label=_released_labels(coco=num_classes == len(COCO_CLASSES)),
        class_names=names.get(num_classes, [f"class_{i + 1}" for i in range(num_classes)]),
        mean=list(MEAN),
        std=list(STD),
    )


def _released_labels(coco: bool) -> dict[str, Any]:
    """The released program's settings: the constructors' defaults on VOC, some others on COCO."""
    config: dict[str, Any] = {
        "_target_": "wsss_afa.methods.afa.pseudo_labels.PseudoLabeler",
        "cam": {"_target_": "wsss_afa.ops.cam.MultiScaleCAM"},
        "refine": {"_target_": "wsss_afa.ops.par.PixelAdaptiveRefinement", "num_iter": 15 if coco else 10},
        "propagate": {"_target_": "wsss_afa.ops.random_walk.RandomWalkPropagation"},
    }
    if coco:
        config |= {"start_step": 5000, "propagation_step": 15000, "affinity_from_propagated": True}
    return config


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"ckpt={path}: no such file; give the path of a checkpoint, such as runs/…/best.ckpt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"ckpt={path}: cannot be read as tensors and plain containers ({reason})") from error
    if not isinstance(content, Mapping):
        raise UserError(
            f"ckpt={path}: holds a {type(content).__name__}, need weights by name: give another file"
        )
    return content


def _own(content: Mapping[str, Any]) -> tuple[Recipe, dict[str, Tensor]]:
    """Recipe and weights of a checkpoint written by training."""
    recipe, prefix = cast(Recipe, _without_pretrained(content[RECIPE_KEY])), "net."
    state = {k[len(prefix) :]: v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    return recipe, state


def _without_pretrained(config: Any) -> Any:
    """Weights come from the checkpoint; those that it began with, or names, are not fetched."""
    if isinstance(config, Mapping):
        return {k: None if k == "pretrained" else _without_pretrained(v) for k, v in config.items()}
    return [_without_pretrained(value) for value in config] if isinstance(config, list | tuple) else config


def _released(content: Mapping[str, Any]) -> tuple[Recipe, dict[str, Tensor]]:
    """Recipe and weights of a checkpoint written by the AFA authors' program."""
    for key in ("state_dict", "model"):
        content = content[key] if isinstance(content.get(key), Mapping) else content
    try:
        state = rename_afa({str(key): value for key, value in content.items()})
    except UserError as error:
        raise UserError(f"was not written by wsss_afa.train (no entry '{RECIPE_KEY}'), and {error}") from None
    return released_recipe(state), state


def _find_variant(state: Mapping[str, Tensor]) -> str:
    blocks = r"backbone\.stages\.%d\.blocks\.\d+\.norm1\.weight"
    norms = [[len(state[key]) for key in state if re.fullmatch(blocks % i, key)] for i in range(4)]
    shape = tuple(max(stage, default=0) for stage in norms), tuple(len(stage) for stage in norms)
    for variant, (channels, depths, _) in VARIANTS.items():
        if shape == (tuple(channels), tuple(depths)):
            return variant
    raise UserError(
        f"its encoder has channels {list(shape[0])} and depths {list(shape[1])}, need those of one of "
        f"{', '.join(VARIANTS)}: give a checkpoint of a Mix Transformer"
    )


def _check_plain(config: Any) -> None:
    """Refuse what Hydra would make more of than a value or a part of ours."""
    if isinstance(config, Mapping):
        target = config.get("_target_")
        if target is not None and target not in _TARGETS:
            raise UserError(
                f"the checkpoint wants to build {target}, which no checkpoint of ours does: refused"
            )
        config = [*config, *config.values()]
    if isinstance(config, list | tuple):
        for value in config:
            _check_plain(value)
    elif isinstance(config, str) and "${" in config:  # Hydra would resolve it, and build what comes out
        raise UserError(f"the checkpoint has the setting {config!r}, which is no plain value: refused")
    elif not isinstance(config, str | int | float | None):
        raise UserError(f"the checkpoint has a {type(config).__name__} among its settings: refused")
