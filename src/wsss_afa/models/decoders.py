"""Segmentation heads: the all-MLP one of SegFormer (Xie et al., NeurIPS 2021, section 3.2), and LargeFOV of
DeepLab (Chen et al., TPAMI 2018) in the form that ToCo (Ru et al., CVPR 2023) gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_afa.errors import UserError


class MLPDecoder(nn.Module):
    """Four feature maps to class logits at the resolution of the first.

    Every stage is projected to ``dim`` channels, up-sampled to stage 1, concatenated and fused by a 1×1
    convolution. A 1×1 convolution and bilinear up-sampling act on different axes and so commute: each stage
    is projected *and* fused on its own coarse grid, and only the sum is taken at full resolution. The numbers
    are those of concatenating first; the product over 4 · ``dim`` channels at full resolution is saved.

    Args:
        in_channels: channels of the four stages, finest first.
        num_outputs: K, background included.
        dim: width of the head.
        dropout: share of channels dropped before the last layer, in training.

    Examples:
        >>> features = [torch.zeros(2, 8, 16, 16), torch.zeros(2, 12, 8, 8)]
        >>> MLPDecoder(in_channels=[8, 12], num_outputs=21)(features).shape
        torch.Size([2, 21, 16, 16])
    """

    def __init__(self, in_channels: Sequence[int], num_outputs: int, dim: int = 256, dropout: float = 0.1):
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(channels, dim) for channels in in_channels)
        self.fuse = nn.Conv2d(dim * len(in_channels), dim, 1, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.dropout = nn.Dropout2d(dropout)
        self.predict = nn.Conv2d(dim, num_outputs, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (B, num_outputs, h1, w1) for features [(B, C_i, h_i, w_i)], finest first."""
        size = features[0].shape[-2:]
        # The published layout of the fusion's input channels is coarsest first.
        fusions = self.fuse.weight.chunk(len(features), dim=1)[::-1]
        maps = [
            F.conv2d(_project(projection, feature), fusion)
            for feature, projection, fusion in zip(features, self.projections, fusions, strict=True)
        ]
        fused = maps[0]  # (B, dim, h1, w1)
        for coarse in maps[1:]:
            fused = fused + F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
        predicted: Tensor = self.predict(self.dropout(torch.relu(self.norm(fused))))
        return predicted


class LargeFOV(nn.Module):
    """Two dilated 3×3 convolutions and a linear layer on the last feature map, without biases.

    Args:
        channels: of the map.
        num_outputs: K, background included.
        dim: width of the head.
        dilation: of the convolutions, in cells: each looks this far.

    Examples:
        >>> LargeFOV(channels=8, num_outputs=21)([torch.zeros(2, 8, 16, 16)]).shape
        torch.Size([2, 21, 16, 16])
    """

    def __init__(self, channels: int, num_outputs: int, dim: int = 512, dilation: int = 5):
        super().__init__()
        wide = partial(nn.Conv2d, kernel_size=3, padding=dilation, dilation=dilation, bias=False)
        self.near, self.far = wide(channels, dim), wide(dim, dim)
        self.predict = nn.Conv2d(dim, num_outputs, 1, bias=False)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (B, num_outputs, h, w) on the grid of the last of the features."""
        near = torch.relu(self.near(features[-1]))
        predicted: Tensor = self.predict(torch.relu(self.far(near)))
        return predicted


def make_decoder(kind: str, channels: Sequence[int], num_outputs: int, dim: int) -> MLPDecoder | LargeFOV:
    """The head of that name: ``mlp`` on all feature maps, ``large_fov`` on the last.

    Args:
        kind: its name.
        channels: of the feature maps.
        num_outputs: K, background included.
        dim: width of the head.

    Raises:
        UserError: there is no such head.
    """
    if kind == "mlp":
        return MLPDecoder(channels, num_outputs, dim)
    if kind == "large_fov":
        return LargeFOV(channels[-1], num_outputs, dim)
    raise UserError(f"method.decoder={kind} is not known; need mlp or large_fov")


def _project(linear: nn.Module, feature: Tensor) -> Tensor:
    assert isinstance(linear, nn.Linear)
    return F.conv2d(feature, linear.weight[:, :, None, None], linear.bias)
