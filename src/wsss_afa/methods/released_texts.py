"""Directions of texts for files that have CLIP's text tower: those of the authors of WeCLIP and ExCEL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from wsss_afa.data.coco import COCO_CLASSES
from wsss_afa.files import CONFIG_DIR
from wsss_afa.models.released_clip import text_weights
from wsss_afa.models.text import ClassTexts, directions, text_tower


def released_texts(
    state: Mapping[str, Tensor], class_names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration of the texts of COCO for its 80 classes, else of VOC, and their directions.

    The text tower of the weights makes them: ``classes`` (C, d) and ``backgrounds`` (M, d).

    Raises:
        UserError: the package that has the vocabulary is missing, or the weights have no text tower.
    """
    coco = len(class_names) == len(COCO_CLASSES)
    files = [Path(CONFIG_DIR, "text", f"{name}.yaml") for name in ("own", "voc", *["coco"] * coco)]
    config = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(*map(OmegaConf.load, files))))
    config = {key: value for key, value in config.items() if key != "defaults"} | {"pretrained": None}
    texts: ClassTexts = instantiate(config)
    sentences = texts.texts(class_names)
    tower = text_tower(text_weights(state))
    made = {name: directions(tower, sentences[name]) for name in ("classes", "backgrounds")}
    return config, made
