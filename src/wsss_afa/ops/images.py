"""Images and maps as tensors: bilinear resizing, and pixels back from normalised values."""

from __future__ import annotations
from collections.abc import Sequence
import torch.nn.functional as F
from torch import Tensor
from collections.abc import Sequence
from typing import NamedTuple
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from wsss_afa.ops.affinity import affinity_label
from wsss_afa.ops.affinity import attention_affinity
from wsss_afa.ops.boxes import resize_boxes
from wsss_afa.ops.cam import Localizer, MultiScaleCAM, normalize_cam
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.ops.random_walk import RandomWalkPropagation

from wsss_afa.types import IGNORE_INDEX, MEAN, STD, Activation, AFAOutput, AffinityTokens, Batch, PseudoLabels
from wsss_afa.errors import UserError
from wsss_afa.ops.boxes import inside_box
from wsss_afa.ops.labels import OwnClasses
from wsss_afa.ops.labels import own_classes
from wsss_afa.ops.labels import class_scores
from wsss_afa.ops.labels import best_class
from wsss_afa.ops.labels import cam_label
from wsss_afa.ops.labels import merge_thresholds
from wsss_afa.ops.labels import ignore_outside
from wsss_afa.methods.afa.pseudo_labels import PseudoLabeler
from wsss_afa.methods.afa.pseudo_labels import _scores


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (B, G, h, w) to ``size`` (H, W); images as well."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def to_rgb(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo the normalisation, truncate to 8 bits and scale to [0, 1], as the released program does.

    Args:
        image: (B, 3, H, W) normalised.
        mean: of the channels, 0…255.
        std: of the channels, 0…255.
    """
    channels = [image[:, i].float() * std[i] + mean[i] for i in range(3)]
    return torch.stack(channels, dim=1).clamp_(0, 255).to(torch.uint8) / 255.0
