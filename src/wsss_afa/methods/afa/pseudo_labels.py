"""From activation maps to labels that a segmentation network can learn (AFA, sections 3.3 and 3.4).

    CAM ──► PAR ──────────────────► refined label ──► L_seg, L_aff
     └────► propagation ──► PAR ──► propagated label ──► L_seg

Nothing here has a gradient. All classes, both thresholds and all images of a batch go through each step at
once. Maps of the classes that an image has are compacted to the front before anything is resized, and labels
get their class ids back at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.methods.afa.attention_points import Walk
from wsss_afa.methods.afa.network import AFANet, AFAOutput
from wsss_afa.ops.affinity import affinity_label, attention_affinity
from wsss_afa.ops.cam import MultiScaleCAM, normalize_cam
from wsss_afa.ops.images import resize, to_rgb
from wsss_afa.ops.labels import OwnClasses, cam_label, ignore_outside, own_classes, with_backgrounds
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.ops.random_walk import RandomWalkPropagation
from wsss_afa.ops.refined_labels import RefinedLabels, stacked_scores
from wsss_afa.types import MEAN, STD, Activation, AffinityTokens, Batch, PseudoLabels

LABELS = ("cam", "par", "afa")
"""How far labels are taken: thresholds alone (the paper's baseline), refined, refined and propagated."""


class PseudoLabeler(nn.Module):
    """Make the labels that the losses of a step need, and no others.

    Args:
        cam: makes multi-scale activation maps.
        refine: PAR.
        propagate: random walk.
        labels: how far labels are taken, one of ``LABELS``; ``afa`` asks for affinity labels.
        low: β_l, background score below which pixels are background.
        high: β_h, background score above which pixels are foreground.
        eval_threshold: background score of the activation map's label in evaluation.
        affinity_radius: pairs of tokens farther apart teach no affinity, in cells.
        affinity_from_propagated: where labels are propagated, affinity labels come from the propagated label
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

    Raises:
        UserError: ``labels`` is not known, or the background scores are not ascending numbers in [0, 1].
    """

    def __init__(
        self,
        cam: MultiScaleCAM, refine: PixelAdaptiveRefinement, propagate: RandomWalkPropagation,
        labels: str = "afa", low: float = 0.35, high: float = 0.55, eval_threshold: float = 0.45,
        affinity_radius: int = 8, affinity_from_propagated: bool = False, reuse_training_pass: bool = True,
        downscale: int = 2, raw_attention: bool = False, normalize_propagated: bool = False,
        mean: Sequence[float] = MEAN, std: Sequence[float] = STD,
    ):  # fmt: skip
        super().__init__()
        if labels not in LABELS:
            raise UserError(f"method.labels={labels} is not known; need {', '.join(LABELS)}")
        self.cam, self.propagate, self.labels = cam, propagate, labels
        self.refined = RefinedLabels(refine, low, high, downscale)
        self.eval_threshold, self.reuse_training_pass = eval_threshold, reuse_training_pass
        self.affinity_radius, self.affinity_from_propagated = affinity_radius, affinity_from_propagated
        self.raw_attention, self.normalize_propagated = raw_attention, normalize_propagated
        self.mean, self.std = tuple(mean), tuple(std)

    @torch.no_grad()
    def forward(self, net: AFANet, batch: Batch, output: AFAOutput, propagating: bool) -> PseudoLabels:
        """Return the labels of one step from the training pass's ``output``; ``batch`` needs no mask.

        ``propagating`` says whether the segmentation's label is propagated.
        """
        known = output.activation if self.reuse_training_pass else None
        classes = own_classes(batch["class_label"])
        activation = self.cam(net, batch["image"], known, classes.channels)
        own: Batch = {**batch, "class_label": classes.present[:, 1:].float()}
        with torch.autocast(batch["image"].device.type, enabled=False):
            grid = output.activation.tokens.grid
            labels = self._labels(net, own, activation, classes.compacted, grid, propagating)
        assert labels.segmentation is not None
        return labels._replace(segmentation=classes.expand(labels.segmentation))

    def _labels(
        self,
        net: AFANet, batch: Batch, activation: Activation, classes: OwnClasses, grid: tuple[int, int],
        propagating: bool,
    ) -> PseudoLabels:  # fmt: skip
        cam, tags, box = activation.cam, batch["class_label"], batch["valid_box"]
        if self.labels == "cam":
            return PseudoLabels(ignore_outside(cam_label(cam, tags, *self.refined.backgrounds), box))
        rgb = to_rgb(batch["image"], self.mean, self.std)
        if self.labels == "par":
            return PseudoLabels(self.refined(rgb, cam, classes, box))
        refined = propagated = None
        if propagating:
            maps = self.propagated_maps(activation, self.affinity(net, activation.tokens), classes)
            propagated = self.refined.label(self.refined.maps_in_box(rgb, maps, box), classes, box)
        if not propagating or not self.affinity_from_propagated:
            refined = self.refined(rgb, cam, classes, box)
        source = refined if refined is not None else propagated
        assert source is not None
        segmentation = propagated if propagated is not None else refined
        return PseudoLabels(segmentation, affinity_label(source, grid, self.affinity_radius))

    @torch.no_grad()
    def evaluate(self, net: AFANet, batch: Batch, output: AFAOutput) -> dict[str, Tensor]:
        """Labels of the activation map (``cam``) and of the propagated one (``affinity``) for an evaluation.

        The map is the multi-scale one of training; the propagated one has the low background score, and is
        missing where nothing is propagated. ``output`` is the network's on this batch.

        Returns:
            (B, H, W) int64 labels in [0, C]; classes come from the image's tags, as in the paper's tables.
        """
        classes = own_classes(batch["class_label"])
        activation = self.cam(net, batch["image"], output.activation, classes.channels)
        tags = classes.present[:, 1:].float()
        labels = {"cam": cam_label(activation.cam, tags, self.eval_threshold, self.eval_threshold)}
        if self.labels == "afa":
            with torch.autocast(batch["image"].device.type, enabled=False):
                affinity = self.affinity(net, activation.tokens)
                low, _ = self.propagated_maps(activation, affinity, classes.compacted)
                labels["affinity"] = resize(low, batch["image"].shape[-2:]).argmax(1)
        return {source: classes.expand(label) for source, label in labels.items()}

    @torch.no_grad()
    def maps(self, net: AFANet, batch: Batch, source: str, backgrounds: Sequence[float]) -> list[Tensor]:
        """Scores (B, G, H, W) of background and own classes for each background score.

        Sources are ``cam`` (the map against the background score), ``par`` (refined) and ``affinity``
        (propagated, then refined).
        """
        image, classes = batch["image"], own_classes(batch["class_label"])
        activation = self.cam(net, image, channels=classes.channels)
        tags = classes.present[:, 1:].float()  # (B, G − 1): the maps are the own classes' alone
        if source == "cam":
            cam = activation.cam * tags[:, :, None, None]
            return with_backgrounds(cam, backgrounds)
        with torch.autocast(image.device.type, enabled=False):
            rgb, own = to_rgb(image, self.mean, self.std), classes.compacted
            if source == "par":
                return self.refined.maps(rgb, activation.cam, own, backgrounds)
            affinity = self.affinity(net, activation.tokens)
            maps = self.propagated_maps(activation, affinity, own, backgrounds)
            return self.refined.maps_in_box(rgb, maps, batch["valid_box"])

    @torch.no_grad()
    def interpret(self, net: AFANet, batch: Batch) -> tuple[dict[str, Tensor], Walk | None]:
        """The map and the labels of a batch by title, and the propagation if there is one."""
        activation = self.cam(net, batch["image"])
        tags, box = batch["class_label"], batch["valid_box"]
        layers = {"CAM": (activation.cam * tags[:, :, None, None]).amax(1)}
        if self.labels == "cam":
            return layers, None
        rgb, classes = to_rgb(batch["image"], self.mean, self.std), own_classes(tags)
        with torch.autocast(rgb.device.type, enabled=False):
            layers["PAR label"] = self.refined(rgb, activation.cam, classes, box)
            if self.labels == "par":
                return layers, None
            affinity = self.affinity(net, activation.tokens)
            maps = self.propagated_maps(activation, affinity, classes)
            refined = self.refined.maps_in_box(rgb, maps, box)
            layers["propagated label"] = self.refined.label(refined, classes, box)
        return layers, Walk(activation, affinity, maps[0], classes)

    def affinity(self, net: AFANet, tokens: AffinityTokens) -> Tensor:
        """What maps are propagated with: (B, N, N) in [0, 1], symmetric."""
        if self.raw_attention:
            return attention_affinity(tokens)
        affinity: Tensor = net.affinity_head(tokens)
        return affinity

    def propagated_maps(
        self,
        activation: Activation, affinity: Tensor, classes: OwnClasses,
        backgrounds: Sequence[float] | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """Scores of each background score after the random walk, each (B, G, h, w).

        ``backgrounds`` are low and high unless others are given.
        """
        backgrounds = backgrounds or self.refined.backgrounds
        cam = resize(activation.cam, activation.tokens.grid)
        if self.normalize_propagated:
            scores = stacked_scores(normalize_cam(self.propagate(cam, affinity)), classes, backgrounds)
        else:
            scores = self.propagate(stacked_scores(cam, classes, backgrounds), affinity)
        return list(scores.chunk(len(backgrounds), dim=1))
