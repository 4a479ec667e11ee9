"""A network that tells red, green and blue pixels, one of random weights, and the program run in-process."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from untrained import save, scene_recipe, untrained
from wsss_afa import predict
from wsss_afa.inference.predictor import Predictor
from wsss_afa.methods.base import Method
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.types import MEAN, STD, Activation, AffinityTokens

COLOURS = np.array([[90, 90, 90], [230, 20, 20], [20, 230, 20], [20, 20, 230]], np.uint8)
"""Of background, red, green and blue."""

NAMES = ("red", "green", "deep blue")


class Painter(nn.Module):
    """Logit k is high where a pixel is nearest to colour k; the class score says whether any pixel is.

    Args:
        reduction: pixels per logit along a side.
    """

    def __init__(self, reduction: int = 1):
        super().__init__()
        self.backbone = SimpleNamespace(reductions=(reduction,), min_side=1, mean=MEAN, std=STD)
        self.sizes: list[tuple[int, ...]] = []
        self.passes = 0

    def segment(self, image: Tensor) -> Tensor:
        self.sizes.append(tuple(image.shape[-2:]))
        rgb = image * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        near = -(rgb[:, None] - torch.tensor(COLOURS)[:, :, None, None].float()).abs().sum(2)
        return torch.nn.functional.avg_pool2d(near, self.backbone.reductions[0], ceil_mode=True)

    def classify(self, image: Tensor) -> Tensor:
        label = self.segment(image).argmax(1)
        return torch.stack([(label == k).flatten(1).any(1) * 8.0 - 4 for k in (1, 2, 3)], dim=1)

    def activate(self, image: Tensor) -> Activation:
        self.passes += 1
        cam = self.segment(image)[:, 1:] + 765
        return Activation(cam, AffinityTokens([], [], (cam.shape[-2], cam.shape[-1])))


class Colours(Method):
    """The method of that network; it has nothing to learn."""

    def __init__(self, reduction: int = 1):
        super().__init__(Painter(reduction), len(NAMES), {"never": 0}, {})
        self.cam = MultiScaleCAM((1.0,), mirror=False)
        self.recipe = {"class_names": NAMES}


def painter(reduction: int = 1, **settings: Any) -> Predictor:
    """A predictor around it."""
    return Predictor(Colours(reduction), "cpu", **settings)


def scene(height: int = 24, width: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles of the three colours: RGB (H, W, 3) and label (H, W)."""
    label = np.zeros((height, width), np.uint8)
    label[: height // 2, : width // 4] = 1
    label[height // 3 :, width // 2 :] = 2
    label[height // 2 :, : width // 5] = 3
    return COLOURS[label], label


def save_checkpoint(path: Path) -> Path:
    """Write the checkpoint of a network of random weights."""
    own = ("backbone.strides=[4,2,2,1]", "method.cam.scales=[1.0,0.5]")
    return save(untrained(scene_recipe(*own, class_names=NAMES), std=2), path)


def run_predict(*arguments: str) -> tuple[int, str]:
    """Run the program in this process; returns its exit code and, of a mistake, its line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["predict", *arguments])
        try:
            predict.main()
        except SystemExit as stop:
            return (stop.code, "") if isinstance(stop.code, int) else (1, str(stop.code))
    return 0, ""
