"""Feature maps of any timm backbone, as a segmentation decoder wants them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import timm
import torch.nn.functional as F
from timm.layers import Format
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.models.weights import read_weights
from wsss_afa.types import MEAN, STD, BackboneOutput


class TimmPyramid(nn.Module):
    """The last four feature maps of a timm model; there are no queries and keys, so no affinity.

    Images are padded to whole cells of the coarsest map, on the right and below, and maps cut to the image.

    Args:
        name: of the model, such as ``convnext_tiny`` or ``resnet50``. It must take images of any size.
        pretrained: True for the weights that timm names, a file, a URL or a hub id for others, None or False
            for random ones.
        drop_path_rate: of the last block, in [0, 1), where the architecture has it.

    Raises:
        UserError: timm has no such model, it has not four feature maps or no such setting, or the weights
            cannot be had.
    """

    def __init__(self, name: str, pretrained: bool | str | None = True, drop_path_rate: float = 0.0):
        super().__init__()
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=1)
            hint = f"did you mean {near[0]}?" if near else "timm.list_models() names them"
            raise UserError(f"backbone.name={name}: timm has no such model; {hint}")
        settings: dict[str, Any] = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
        weights = read_weights(pretrained) if isinstance(pretrained, str) else {}
        if weights:
            settings["pretrained_cfg_overlay"] = {"state_dict": dict(weights)}
        try:
            self.model = timm.create_model(
                name, bool(pretrained), features_only=True, out_indices=(-4, -3, -2, -1), **settings
            )
        except Exception as error:  # architectures and hubs raise what they like
            raise UserError(
                f"backbone.name={name} pretrained={pretrained} cannot be built "
                f"({' '.join(str(error).split())}): need a model with four feature maps, and its weights"
            ) from error
        if weights and not _holds(self.model, weights):
            raise UserError(
                f"backbone.pretrained={pretrained}: these are no weights of {name}; choose its own"
            )
        self.channels: list[int] = self.model.feature_info.channels()
        self.reductions: list[int] = self.model.feature_info.reduction()
        self.min_side = 1
        self.mean, self.std = MEAN, STD
        self.any_size = False
        self.num_affinity_maps = 0
        self._channels_last = getattr(self.model, "output_fmt", Format.NCHW) == Format.NHWC

    def forward(self, image: Tensor) -> BackboneOutput:
        """Return four maps (B, channels[i], ⌈H / reductions[i]⌉, ⌈W / reductions[i]⌉) of (B, 3, H, W)."""
        height, width = image.shape[-2:]
        cell = max(self.reductions)
        features = self.model(F.pad(image, (0, -width % cell, 0, -height % cell)))
        if self._channels_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        cut = [
            feature[..., : -(-height // step), : -(-width // step)]
            for feature, step in zip(features, self.reductions, strict=True)
        ]
        return BackboneOutput(cut, queries=[], keys=[])


def _holds(model: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether most of a model's weights are among these, under any names; timm may take none, in silence."""
    known = {_fingerprint(weight) for weight in weights.values()}
    own = [_fingerprint(weight) in known for weight in model.parameters() if weight.ndim > 1]
    return 2 * sum(own) > len(own)


def _fingerprint(weight: Tensor) -> tuple[int, float]:
    return weight.numel(), weight.detach().flatten().double().sum().item()
