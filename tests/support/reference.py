"""The method in its slowest and most obvious form: loops, whole tensors, one image and one class at a time.

Nothing of the library is used here but plain tensors of its parameters, so that agreement means something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Box = Sequence[int]
"""Top, bottom, left, right."""


def resize(maps: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Bilinear resizing of (G, H, W)."""
    return F.interpolate(maps[None], size=tuple(size), mode="bilinear", align_corners=align_corners)[0]


# Affinity


def radius_mask(height: int, width: int, radius: int) -> Tensor:
    """(N, N) bool: pairs of cells at most ``radius`` rows and ``radius`` columns apart."""
    cells = [(row, column) for row in range(height) for column in range(width)]
    return torch.tensor([[abs(a - c) <= radius and abs(b - d) <= radius for c, d in cells] for a, b in cells])


def affinity_label(label: Tensor, grid: tuple[int, int], radius: int) -> Tensor:
    """(N, N) int64 for one label (H, W)."""
    (height, width), (h, w) = label.shape, grid
    tokens = [int(label[i * height // h, j * width // w]) for i in range(h) for j in range(w)]
    near = radius_mask(h, w, radius)
    pairs = torch.full((h * w, h * w), 255)
    for i, first in enumerate(tokens):
        for j, second in enumerate(tokens):
            if near[i, j] and first != 255 and second != 255:
                pairs[i, j] = int(first == second)
    return pairs


def affinity(queries: Sequence[Tensor], keys: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """sigmoid(conv1×1(S + Sᵀ)) with every head's map (B, M, N, N) in memory."""
    logits = torch.cat([query @ key.mT for query, key in zip(queries, keys, strict=True)], dim=1)
    return F.conv2d(logits + logits.mT, weight.view(1, -1, 1, 1), bias)[:, 0].sigmoid()


def propagate(maps: Tensor, affinity: Tensor, radius: int, power: int = 2, num_log_steps: int = 0) -> Tensor:
    """Random walk of maps (G, h, w) along an affinity (N, N), entry by entry."""
    count = len(affinity)
    near = radius_mask(*maps.shape[-2:], radius)
    walk = torch.zeros_like(affinity)
    for j in range(count):
        column = [float(affinity[i, j]) ** power if near[i, j] else 0.0 for i in range(count)]
        for i in range(count):
            walk[i, j] = column[i] / (sum(column) + 0.1)
    for _ in range(num_log_steps):
        walk = torch.stack([torch.stack([row @ column for column in walk.T]) for row in walk])
    moved = torch.stack([sum(source[i] * walk[i] for i in range(count)) for source in maps.flatten(1)])
    return moved.view_as(maps)


# Refinement


def neighbours(maps: Tensor, dilations: Sequence[int]) -> Tensor:
    """Every neighbour of every pixel, (B, G, P, H, W) for maps (B, G, H, W); the border is repeated."""
    height, width = maps.shape[-2:]
    shifted = []
    for dilation in dilations:
        for y in (-dilation, 0, dilation):
            for x in (-dilation, 0, dilation):
                if (y, x) != (0, 0):
                    rows = (torch.arange(height) + y).clamp(0, height - 1)
                    columns = (torch.arange(width) + x).clamp(0, width - 1)
                    shifted.append(maps[:, :, rows][:, :, :, columns])
    return torch.stack(shifted, dim=2)


def par_weights(
    image: Tensor, dilations: Sequence[int], color_width: float = 0.3, position_weight: float = 0.01
) -> Tensor:
    """(B, P, H, W) for images (B, 3, H, W)."""
    around = neighbours(image, dilations)
    spread = around.std(dim=2, keepdim=True)
    colour = -(((image[:, :, None] - around).abs() / (spread + 1e-8) / color_width) ** 2)
    colour = colour.mean(dim=1).softmax(dim=1)  # (B, P, H, W)
    steps = [d * r for d in dilations for r in (2**0.5, 1, 2**0.5, 1, 1, 2**0.5, 1, 2**0.5)]
    distance = torch.tensor(steps, dtype=image.dtype)
    position = (-((distance / (distance.std() + 1e-8) / color_width) ** 2)).softmax(dim=0)
    return colour + position_weight * position[None, :, None, None]


def par(image: Tensor, maps: Tensor, num_iter: int, dilations: Sequence[int], **widths: float) -> Tensor:
    """Maps (B, G, H, W) refined, with the tensor of all neighbours of all maps in memory."""
    weights = par_weights(image, dilations, **widths)
    for _ in range(num_iter):
        maps = (weights[:, None] * neighbours(maps, dilations)).sum(dim=2)
    return maps


# Activation maps


def multi_scale_cam(
    activate: Callable[[Tensor], Tensor], image: Tensor, scales: Sequence[float], mirror: bool = True
) -> Tensor:
    """(C, H, W) in [0, 1] for one image (3, H, W); ``activate`` gives raw maps (C, h, w)."""
    height, width = image.shape[-2:]
    total = 0.0
    for scale in scales:
        scaled = resize(image, (int(scale * height), int(scale * width)))
        merged = resize(activate(scaled), (height, width))
        if mirror:
            twin = resize(activate(scaled.flip(-1)), (height, width)).flip(-1)
            merged = torch.where(merged > twin, merged, twin)
        total = total + torch.where(merged > 0, merged, 0.0)
    return normalize(total)


def normalize(maps: Tensor) -> Tensor:
    """Each of the maps (C, H, W) shifted and scaled to [0, 1]."""
    shifted = [one - one.min() for one in maps]
    return torch.stack([one / (one.max() + 1e-5) for one in shifted])


# Pseudo labels of one image


def in_box(row: int, column: int, box: Box) -> bool:
    """Whether a pixel lies in a half-open box."""
    top, bottom, left, right = box
    return top <= row < bottom and left <= column < right


def cam_label(cam: Tensor, tags: Sequence[float], low: float, high: float, box: Box) -> Tensor:
    """(H, W) int64 for maps (C, H, W), pixel by pixel."""
    label = torch.full(cam.shape[-2:], 255)
    for row in range(label.shape[0]):
        for column in range(label.shape[1]):
            scores = [float(cam[c, row, column]) if tag else 0.0 for c, tag in enumerate(tags)]
            best = max(range(len(tags)), key=lambda c: scores[c])
            if not in_box(row, column, box) or low < scores[best] <= high:
                continue
            label[row, column] = 0 if scores[best] <= low else best + 1
    return label


def merge(low: Tensor, high: Tensor, box: Box) -> Tensor:
    """Label (H, W) from those of both thresholds, pixel by pixel."""
    label = torch.full_like(high, 255)
    for row in range(label.shape[0]):
        for column in range(label.shape[1]):
            if in_box(row, column, box):
                if high[row, column] > 0:
                    label[row, column] = high[row, column]
                elif low[row, column] == 0:
                    label[row, column] = 0
    return label


def own_maps(cam: Tensor, tags: Sequence[float], background: float) -> tuple[Tensor, list[int]]:
    """A constant background and the maps of the classes present (1 + n, H, W), and their ids."""
    ids = [0] + [c + 1 for c, tag in enumerate(tags) if tag]
    maps = [torch.full_like(cam[0], background)] + [cam[i - 1] for i in ids[1:]]
    return torch.stack(maps), ids


def best_ids(maps: Tensor, ids: Sequence[int]) -> Tensor:
    """Class ids (H, W) of the best of the maps (1 + n, H, W)."""
    return torch.tensor(ids)[maps.argmax(dim=0)]


def refined_label(
    rgb: Tensor,
    cam: Tensor,
    tags: Sequence[float],
    box: Box,
    thresholds: tuple[float, float],
    refine: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The PAR label (H, W), from rgb (3, H, W), cam (C, H, W), background scores low and high, and a
    refinement of maps (G, h, w) by colours (3, h, w).
    """
    size = cam.shape[-2:]
    half = (size[0] // 2, size[1] // 2)
    labels = []
    for beta in thresholds:
        maps, ids = own_maps(cam, tags, beta)
        refined = refine(resize(rgb, half), resize(maps, half).softmax(dim=0))
        labels.append(best_ids(resize(refined, size), ids))
    return merge(labels[0], labels[1], box)


def propagated_label(
    rgb: Tensor,
    cam: Tensor,
    tags: Sequence[float],
    box: Box,
    thresholds: tuple[float, float],
    refine: Callable[[Tensor, Tensor], Tensor],
    walk: Callable[[Tensor], Tensor],
    grid: tuple[int, int],
    normalized: bool = False,
) -> Tensor:
    """The label (H, W) after the random walk ``walk`` on the token grid and PAR in the box; see above.

    The walk moves scores or, ``normalized``, the map, of which each class is then scaled to [0, 1] again.
    """
    size = cam.shape[-2:]
    top, bottom, left, right = box
    crop = rgb[:, top:bottom, left:right]
    half = (crop.shape[-2] // 2, crop.shape[-1] // 2)
    labels = []
    for beta in thresholds:
        coarse = resize(cam, grid)
        if normalized:
            coarse = normalize(walk(coarse))
        maps, ids = own_maps(coarse, tags, beta)
        scores = maps.softmax(dim=0)
        if not normalized:
            scores = walk(scores)
        full = resize(scores, size)[:, top:bottom, left:right]
        refined = refine(resize(crop, half), resize(full, half, align_corners=True))
        label = torch.zeros(size, dtype=torch.long)
        label[top:bottom, left:right] = best_ids(resize(refined, crop.shape[-2:]), ids)
        labels.append(label)
    return merge(labels[0], labels[1], box)


# Losses


def balanced_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Half the mean over background pixels plus half the mean over foreground pixels, pixel by pixel."""
    full = F.interpolate(logits, size=label.shape[-2:], mode="bilinear", align_corners=False)
    background, foreground = [], []
    for image, target in zip(full, label, strict=True):
        for row in range(target.shape[0]):
            for column in range(target.shape[1]):
                wanted = int(target[row, column])
                if wanted == 255:
                    continue
                pixel = image[:, row, column]
                surprise = pixel.exp().sum().log() - pixel[wanted]
                (foreground if wanted else background).append(surprise)
    halves = [sum(half) / len(half) for half in (background, foreground) if half]
    return sum(halves, torch.zeros(())) / 2


def affinity_loss(affinity: Tensor, label: Tensor) -> Tensor:
    """Mean miss of same pairs and of different pairs, each over its count + 1, pair by pair."""
    same, different = [], []
    for value, target in zip(affinity.flatten(), label.flatten().tolist(), strict=True):
        if target == 1:
            same.append(1 - value)
        elif target == 0:
            different.append(value)
    return (sum(same) / (len(same) + 1) + sum(different) / (len(different) + 1)) / 2


def dense_energy(
    probability: Tensor,
    colour: Tensor,
    roi: Tensor,
    unknown: Tensor,
    sigma_position: float,
    sigma_color: float,
) -> tuple[float, Tensor]:
    """Energy of one halved image and its gradient as defined, −2 · gate · K S, pixel by pixel.

    From probability (K, h, w), colour (3, h, w) in 0…255, roi (h, w), 1 inside the image part, and unknown
    (h, w) bool, where the pseudo label is 255; position is in pixels of this size.
    """
    height, width = roi.shape
    cells = [(row, column) for row in range(height) for column in range(width)]
    energy, gradient = 0.0, torch.zeros_like(probability)
    for a, b in cells:
        smooth = torch.zeros(len(probability), dtype=probability.dtype)
        for c, d in cells:
            near = ((a - c) ** 2 + (b - d) ** 2) / sigma_position**2
            alike = float((colour[:, a, b] - colour[:, c, d]).square().sum()) / sigma_color**2
            kernel = torch.exp(torch.tensor(-(near + alike) / 2, dtype=probability.dtype))
            smooth += kernel * probability[:, c, d] * roi[c, d]
        gate = 1.0 if unknown[a, b] else max(0.0, float(roi[a, b] - probability[:, a, b].max()))
        energy -= gate * float(smooth @ probability[:, a, b] * roi[a, b])
        gradient[:, a, b] = -2 * gate * smooth * roi[a, b]
    return energy, gradient


# Decoder


def mlp_decoder(features: Sequence[Tensor], state: dict[str, Tensor], training: bool = False) -> Tensor:
    """Project, up-sample, concatenate coarsest first, fuse at full resolution; dropout left out."""
    size = features[0].shape[-2:]
    maps = []
    for i, feature in reversed(list(enumerate(features))):
        weight, bias = state[f"projections.{i}.weight"], state[f"projections.{i}.bias"]
        projected = (feature.permute(0, 2, 3, 1) @ weight.T + bias).permute(0, 3, 1, 2)
        maps.append(F.interpolate(projected, size=size, mode="bilinear", align_corners=False))
    fused = F.conv2d(torch.cat(maps, dim=1), state["fuse.weight"])
    mean, variance = state["norm.running_mean"], state["norm.running_var"]
    if training:
        mean, variance = fused.mean(dim=(0, 2, 3)), fused.var(dim=(0, 2, 3), unbiased=False)
    shape = (1, -1, 1, 1)
    scaled = (fused - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
    scaled = scaled * state["norm.weight"].view(shape) + state["norm.bias"].view(shape)
    return F.conv2d(scaled.clamp(min=0), state["predict.weight"], state["predict.bias"])
