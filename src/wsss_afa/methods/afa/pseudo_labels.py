"""From activation maps to labels that a segmentation network can learn (AFA, sections 3.3 and 3.4).

    CAM ──► PAR ──────────────────► refined label ──► L_seg, L_aff
     └────► propagation ──► PAR ──► propagated label ──► L_seg

Nothing here has a gradient. All classes, both thresholds and all images of a batch go through each step at
once. Maps of the classes that an image has are compacted to the front before anything is resized, and labels
get their class ids back at the end.
"""

from __future__ import annotations
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
from wsss_afa.ops.images import resize
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
from wsss_afa.ops.images import to_rgb


class PseudoLabeler(nn.Module):
    """Make the labels that the losses of a step need, and no others.

    Args:
        cam: makes multi-scale activation maps.
        refine: PAR.
        propagate: random walk.
        stage: how far labels are taken: ``cam`` (the paper's baseline: thresholds alone), ``par`` (refined),
            ``afa`` (refined, then propagated; asks for affinity labels).
        low: β_l, background score below which pixels are background.
        high: β_h, background score above which pixels are foreground.
        eval_threshold: background score of the activation map's label in evaluation.
        start_step: up to this step only the classification loss is trained.
        propagation_step: up to this step labels are refined only, after it propagated as well.
        affinity_radius: pairs of tokens farther apart teach no affinity, in cells.
        affinity_from_propagated: after ``propagation_step`` affinity labels come from the propagated label
            (the released COCO program) instead of the refined one.
        reuse_training_pass: the training pass's own features serve as the un-mirrored map of scale 1. The
            released program passes the image again, which differs by drop path only.
        downscale: factor by which images are reduced before refinement.
        raw_attention: propagate with the attention itself instead of the affinity learned from it (table 3).
        normalize_propagated: propagate the maps and normalise them again before they meet the background
            scores. In the method their scores are propagated, and a walk that averages over an object may
            bring the whole of it below the background.
        mean: of the image's normalisation, 0…255.
        std: of the image's normalisation, 0…255.
    """

    def __init__(
        self,
        cam: MultiScaleCAM,
        refine: PixelAdaptiveRefinement,
        propagate: RandomWalkPropagation,
        stage: str = "afa",
        low: float = 0.35,
        high: float = 0.55,
        eval_threshold: float = 0.45,
        start_step: int = 2000,
        propagation_step: int = 6000,
        affinity_radius: int = 8,
        affinity_from_propagated: bool = False,
        reuse_training_pass: bool = True,
        downscale: int = 2,
        raw_attention: bool = False,
        normalize_propagated: bool = False,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ):
        super().__init__()
        if not 0 <= low <= high <= 1:
            raise UserError(f"thresholds low={low}, high={high}: need 0 ≤ low ≤ high ≤ 1")
        if stage not in ("cam", "par", "afa"):
            raise UserError(f"stage={stage} is not known; need cam, par or afa")
        self.cam = cam
        self.refine = None if stage == "cam" else refine
        self.propagate = propagate if stage == "afa" else None
        self.mean, self.std = tuple(mean), tuple(std)
        self.low, self.high, self.eval_threshold = low, high, eval_threshold
        self.start_step, self.propagation_step = start_step, propagation_step
        self.affinity_radius = affinity_radius
        self.affinity_from_propagated = affinity_from_propagated
        self.reuse_training_pass = reuse_training_pass
        self.downscale = downscale
        self.raw_attention = raw_attention
        self.normalize_propagated = normalize_propagated

    @property
    def sources(self) -> tuple[str, ...]:
        """Which labels ``evaluate`` makes."""
        return ("cam",) if self.propagate is None else ("cam", "affinity")

    def needed(self, step: int) -> bool:
        """Whether any loss of this step (counted from 0) uses a pseudo label."""
        return step > self.start_step

    @torch.no_grad()
    def forward(self, net: Localizer, batch: Batch, output: AFAOutput, step: int) -> PseudoLabels:
        """Return the labels of one step (counted from 0) after ``start_step``.

        Args:
            net: an AFANet in training mode.
            batch: ``image``, ``class_label`` and ``valid_box`` are read.
            output: of the training pass on the same batch.
            step: optimiser steps done so far.
        """
        known = output.activation if self.reuse_training_pass else None
        classes = own_classes(batch["class_label"])
        activation = self.cam(net, batch["image"], known, classes.channels)
        own: Batch = {**batch, "class_label": classes.present[:, 1:].float()}
        with torch.autocast(batch["image"].device.type, enabled=False):
            labels = self._labels(net, own, activation, output.activation.tokens.grid, step)
        assert labels.segmentation is not None
        return labels._replace(segmentation=classes.expand(labels.segmentation))

    def _labels(
        self, net: Localizer, batch: Batch, activation: Activation, grid: tuple[int, int], step: int
    ) -> PseudoLabels:
        cam, tags, box = activation.cam, batch["class_label"], batch["valid_box"]
        if self.refine is None:
            label = cam_label(cam, tags, self.low, self.high)
            return PseudoLabels(segmentation=ignore_outside(label, box))
        rgb = to_rgb(batch["image"], self.mean, self.std)
        classes = own_classes(tags)
        propagating = self.propagate is not None and step > self.propagation_step
        refined = propagated = None
        if propagating:
            maps = self.propagated_maps(activation, self.affinity(net, activation.tokens), classes)
            propagated = self.label(self.refine_in_box(rgb, maps, box), classes, box)
        if not propagating or not self.affinity_from_propagated:
            refined = self.label(self.refined_maps(rgb, cam, classes), classes, box)
        segmentation = propagated if propagated is not None else refined
        if self.propagate is None:
            return PseudoLabels(segmentation=segmentation)
        source = refined if refined is not None else propagated
        assert source is not None
        return PseudoLabels(segmentation, affinity_label(source, grid, self.affinity_radius))

    @torch.no_grad()
    def evaluate(self, net: Localizer, batch: Batch, output: AFAOutput) -> dict[str, Tensor]:
        """Labels of the activation map (``cam``) and of the propagated one (``affinity``) for an evaluation.

        The map is the multi-scale one of training; the propagated one has the low background score.

        Args:
            net: an AFANet in evaluation mode.
            batch: ``image`` and ``class_label`` are read.
            output: of the network on this batch.

        Returns:
            (B, H, W) int64 labels in [0, C]; classes come from the image's tags, as in the paper's tables.
            ``affinity`` is missing where there is no propagation.
        """
        classes = own_classes(batch["class_label"])
        activation = self.cam(net, batch["image"], output.activation, classes.channels)
        tags = classes.present[:, 1:].float()
        labels = {"cam": cam_label(activation.cam, tags, self.eval_threshold, self.eval_threshold)}
        if self.propagate is not None:
            with torch.autocast(batch["image"].device.type, enabled=False):
                affinity = self.affinity(net, activation.tokens)
                low, _ = self.propagated_maps(activation, affinity, own_classes(tags))
                labels["affinity"] = resize(low, batch["image"].shape[-2:]).argmax(1)
        return {source: classes.expand(label) for source, label in labels.items()}

    def affinity(self, net: Localizer, tokens: AffinityTokens) -> Tensor:
        """What maps are propagated with: (B, N, N) in [0, 1], symmetric."""
        return attention_affinity(tokens) if self.raw_attention else net.affinity_head(tokens)

    def refined_maps(
        self, rgb: Tensor, cam: Tensor, classes: OwnClasses, backgrounds: Sequence[float] | None = None
    ) -> list[Tensor]:
        """PAR over the whole crop of the scores of each background score, each (B, G, H, W).

        ``backgrounds`` are low and high unless others are given.
        """
        size = cam.shape[-2:]
        small = (size[0] // self.downscale, size[1] // self.downscale)
        backgrounds = backgrounds or (self.low, self.high)
        scores = _scores(resize(cam, small), classes, backgrounds)
        assert self.refine is not None
        refined = resize(self.refine(resize(rgb, small), scores), size)
        return list(refined.chunk(len(backgrounds), dim=1))

    def propagated_maps(
        self,
        activation: Activation,
        affinity: Tensor,
        classes: OwnClasses,
        backgrounds: Sequence[float] | None = None,
    ) -> list[Tensor]:
        """Scores of each background score after the random walk, each (B, G, h, w).

        ``backgrounds`` are low and high unless others are given.
        """
        backgrounds = backgrounds or (self.low, self.high)
        cam = resize(activation.cam, activation.tokens.grid)
        assert self.propagate is not None
        if self.normalize_propagated:
            scores = _scores(normalize_cam(self.propagate(cam, affinity)), classes, backgrounds)
        else:
            scores = self.propagate(_scores(cam, classes, backgrounds), affinity)
        return list(scores.chunk(len(backgrounds), dim=1))

    def refine_in_box(self, rgb: Tensor, maps: Sequence[Tensor], box: Tensor) -> list[Tensor]:
        """PAR inside each image's box alone, of maps on any grid: each (B, G, H, W), 0 outside the box."""
        assert self.refine is not None
        size = (rgb.shape[-2], rgb.shape[-1])
        small = (size[0] // self.downscale, size[1] // self.downscale)
        sides = torch.stack([box[:, 1] - box[:, 0], box[:, 3] - box[:, 2]], dim=1)
        extent = (sides // self.downscale).clamp(min=1)
        corner = torch.stack([z := torch.zeros_like(box[:, 0]), extent[:, 0], z, extent[:, 1]], dim=1)
        full = resize(torch.cat(list(maps), dim=1), size)
        crop = resize_boxes(full, box, corner, small, align_corners=True)
        refined = self.refine(resize_boxes(rgb, box, corner, small), crop, extent)
        return list(resize_boxes(refined, corner, box, size).chunk(len(maps), dim=1))

    def label(self, maps: Sequence[Tensor], classes: OwnClasses, box: Tensor) -> Tensor:
        """Merge the maps of both thresholds (low, high) to a label (B, H, W), 255 outside the box."""
        low, high = (best_class(scores, classes) for scores in maps)
        return ignore_outside(merge_thresholds(low, high), box)


def _scores(cam: Tensor, classes: OwnClasses, backgrounds: Sequence[float]) -> Tensor:
    """Scores of one background score after the other, (B, len(backgrounds)·G, h, w)."""
    return torch.cat([class_scores(cam, classes, beta) for beta in backgrounds], dim=1)
