"""What flows between the parts: batches, network outputs, pseudo labels.

Shape legend, used in every file:

| | |
|---|---|
| B | batch |
| C | foreground classes (`num_classes`) |
| K | C + 1: background is class 0, foreground class c is c + 1 |
| H, W | image (crop) in pixels |
| h, w | token grid of the last stage, H/16 and W/16 |
| N | tokens, h · w |
| M | attention heads handed to the affinity head |
| box | valid part of a crop: top, bottom, left, right in pixels, half open |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, NotRequired, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

IGNORE_INDEX = 255
"""Mask value of pixels that neither losses nor metrics count."""
MAX_CLASSES = IGNORE_INDEX - 1
"""Most foreground classes that labels of 8 bits can tell apart."""
MEAN = (123.675, 116.28, 103.53)
"""ImageNet's mean RGB, in 0…255 units."""
STD = (58.395, 57.12, 57.375)
"""ImageNet's standard deviation of RGB, in 0…255 units."""


class Sample(TypedDict):
    """One item of a dataset, before augmentation."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    class_label: NDArray[np.float32]
    """(C,) multi-hot image tags."""
    name: str
    """Unique in its split."""
    mask: NotRequired[NDArray[np.uint8]]
    """(H, W) in [0, C] or 255; only in splits made for evaluation or with labels that are given."""


class Batch(TypedDict):
    """One collated batch; every dataset fills the same keys."""

    image: Tensor
    """(B, 3, H, W) float32, RGB, normalised."""
    class_label: Tensor
    """(B, C) float32 multi-hot image tags."""
    valid_box: Tensor
    """(B, 4) int64 box: what of the crop is image and not padding."""
    name: list[str]
    """Image names, B of them."""
    mask: NotRequired[Tensor]
    """(B, H, W) int64 in [0, C] or 255; in evaluation, and in training on labels that are given."""
    seed: NotRequired[Tensor]
    """(B,) int64, in training: what a method draws at random for an image it draws from this seed."""
    views: NotRequired[dict[str, Tensor]]
    """Further views of the images by name, (B, 3, H, W) each; in training, for methods that ask for them."""


class BackboneOutput(NamedTuple):
    """Features of every stage and what affinity is made of."""

    features: list[Tensor]
    """Four maps, (B, channels[i], H/reduction[i], W/reduction[i])."""
    queries: list[Tensor]
    """Of the last blocks, oldest first: (B, heads, N, head_dim)."""
    keys: list[Tensor]
    """Like the queries."""


class AffinityTokens(NamedTuple):
    """What the affinity head multiplies, and the grid that its N tokens lie on."""

    queries: list[Tensor]
    """Per block (B, heads, N, head_dim)."""
    keys: list[Tensor]
    """Per block (B, heads, N, head_dim)."""
    grid: tuple[int, int]
    """(h, w), h * w = N."""


class Activation(NamedTuple):
    """A class activation map and the tokens of the pass that made it, both without gradient."""

    cam: Tensor
    """(B, C, h, w) raw, or (B, C, H, W) in [0, 1] after scales are merged."""
    tokens: AffinityTokens
    """Of the same pass, or of the largest scale."""


class PseudoLabels(NamedTuple):
    """Supervision made from tags alone; a part is None where no loss uses it."""

    segmentation: Tensor | None = None
    """(B, H, W) int64 in [0, C] or 255."""
    affinity: Tensor | None = None
    """(B, N, N) int64: 1 same class, 0 different, 255 ignored."""


class Phase(NamedTuple):
    """Steps that train with the same losses and the same kind of labels."""

    name: str
    """As the configuration has it."""
    first: int
    """First step, counted from 0."""


class Evaluation(NamedTuple):
    """What one pass over evaluation images yields."""

    class_logits: Tensor
    """(B, C)."""
    seg_logits: Tensor
    """(B, K, h, w), on any grid."""
    labels: dict[str, Tensor]
    """Labels (B, H, W) int64 in [0, C] by source, of those in `Method.scored`."""


class Point(NamedTuple):
    """A pixel of an object, and what the network makes of it."""

    class_index: int
    """Foreground class of the object, from 0."""
    place: tuple[int, int]
    """Row and column."""
    maps: dict[str, Tensor]
    """Maps (H, W) in [0, 1] by title."""


class Interpretation(NamedTuple):
    """What stands between an image and its prediction, for pictures."""

    layers: dict[str, Tensor]
    """By title, in the order of the method: maps (B, H, W) in [0, 1] or labels (B, H, W) int64."""
    points: Sequence[Sequence[Point]] = ()
    """Of each image, if the method has any."""


class Backbone(Protocol):
    """What the rest of the library reads off a backbone."""

    reductions: Sequence[int]
    """Strides of its feature maps in pixels, finest first."""
    min_side: int
    """Shortest side of an image, in pixels, that it takes as it is; shorter ones it lengthens."""
    mean: Sequence[float]
    """Of the image's normalisation, RGB, 0…255."""
    std: Sequence[float]
    """Of the image's normalisation, RGB, 0…255."""
    any_size: bool
    """Whether it can be traced for images of any size."""


class FeatureBackbone(Backbone, Protocol):
    """A backbone that yields feature maps, queries and keys: `BackboneOutput`."""

    channels: Sequence[int]
    """Of the feature maps, finest first."""
    num_affinity_maps: int
    """Attention heads whose queries and keys are handed on, M."""

    def __call__(self, image: Tensor) -> BackboneOutput:
        """Encode a normalised image (B, 3, H, W)."""
