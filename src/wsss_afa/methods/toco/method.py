"""ToCo: patch and class tokens are contrasted, lest a ViT smooth its last tokens (CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wsss_afa.losses.classification import ClassificationLoss
from wsss_afa.losses.dense_energy import DenseEnergyLoss
from wsss_afa.losses.token_contrast import class_token_contrast, patch_token_contrast
from wsss_afa.methods.toco.network import ToCoNet
from wsss_afa.methods.two_level import TwoLevelMethod
from wsss_afa.models.auxiliary_cam import Levels
from wsss_afa.models.backbones.timm_vit import TimmViT
from wsss_afa.models.projection_head import ProjectionHead, update_ema
from wsss_afa.ops.affinity import pair_label
from wsss_afa.ops.auxiliary_labels import AuxiliaryLabels, OwnMaps
from wsss_afa.ops.boxes import cells_of
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.ops.labels import ignore_outside
from wsss_afa.ops.local_crops import LocalCrops, certainty, cut
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.types import Batch


class ToCo(TwoLevelMethod):
    """Token contrast (ToCo, figure 2).

        image ─► ViT ─► last patches ──► classifier ─► L_cls      decoder ─► L_seg, L_reg
                  ├───► earlier patches ─► classifier ─► L_aux     auxiliary CAM ─► pairs of L_ptc
                  └───► class tokens of image, global view, local crops ─► projections ─► L_ctc
        CAM ─► PAR ─► label of L_seg and L_reg

    Which losses a phase has, the weights say; what has no weight is not computed. Batches need the views
    ``global``, another view of the whole image, and ``local``, which lies on the image pixel on pixel, and a
    seed for each image, from which its local crops are drawn.

    Args:
        backbone: a plain ViT.
        num_classes: C, foreground classes.
        cam: multi-scale activation maps.
        refine: pixel-adaptive refinement.
        crops: of the local view.
        classification: L_cls and L_aux.
        dense_energy: L_reg.
        phases: first step of each phase, counted from 0, of any names.
        weights: factors of ``cls``, ``aux``, ``ptc``, ``ctc``, ``seg`` and ``reg``.
        labels_from: the map that L_seg's label is made of, ``cam`` or ``aux``; or maps by phase, `Method.at`.
        augmentation: padding and views of training images, see `Method`.
        aux_block: whose tokens make the auxiliary map, see `AuxiliaryCAMNet`, as for ``decoder_dim``.
        projection: widths ``hidden``, ``bottleneck`` and ``outputs`` of the projection head.
        momentum: of the teacher, the projection head's average over steps.
        temperature: τ of L_ctc.
        low: β_l, scores up to here are background.
        high: β_h, scores above it are foreground.
        eval_threshold: background score of the maps' labels in evaluation.
        downscale: image reduction before PAR.
        pixel_box: as in the released program, a box of pixels is laid on the grid of tokens as it is, which
            drops what L_ptc could learn from; false brings it to cells first.
        shared_counts: whether losses divide by the pixels and pairs of all processes, see `losses.counts`.

    Raises:
        UserError: ``labels_from`` names no map.
    """

    net: ToCoNet

    def __init__(
        self,
        backbone: TimmViT, num_classes: int,
        cam: MultiScaleCAM, refine: PixelAdaptiveRefinement, crops: LocalCrops,
        classification: ClassificationLoss, dense_energy: DenseEnergyLoss,
        phases: Mapping[str, int], weights: Mapping[str, float | Mapping[str, float]],
        labels_from: str | Mapping[str, str], augmentation: Mapping[str, Any],
        projection: Mapping[str, int], aux_block: int = -3, decoder_dim: int = 512, momentum: float = 0.9,
        temperature: float = 0.5, low: float = 0.25, high: float = 0.7, eval_threshold: float = 0.5,
        downscale: int = 2, pixel_box: bool = False, shared_counts: bool = True,
    ):  # fmt: skip
        head = ProjectionHead(backbone.channels[-1], **projection)
        net = ToCoNet(backbone, num_classes, aux_block, decoder_dim, head)
        labeler = AuxiliaryLabels(cam, refine, low, high, eval_threshold, downscale)
        super().__init__(
            net, num_classes, labeler, classification, dense_energy, phases, weights, shared_counts
        )
        self.check_phases("labels_from", labels_from, ("cam", "aux"))
        self.crops, self.augmentation, self.labels_from = crops, augmentation, labels_from
        self.momentum, self.temperature, self.pixel_box = momentum, temperature, pixel_box

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One pass over images and global views, one over local crops, and the losses of this phase."""
        image = batch["image"]
        contrasted = self.weight("ctc", step) > 0
        encoded = self.net.encode(torch.cat([image, batch["views"]["global"]]) if contrasted else image)
        own = encoded.first(len(image))
        terms = self.tag_losses(batch, own)
        if not any(self.weight(name, step) for name in ("ptc", "ctc", "seg", "reg")):
            return terms
        maps = self.labeler.own_maps(self.net, image, batch["class_label"], self.net.activation(own))
        if self.weight("ptc", step):
            terms["ptc"] = patch_token_contrast(own.last, self.pairs(batch, maps, own), self.shared_counts)
        if contrasted:
            terms["ctc"] = self.class_contrast(batch, maps, encoded)
        return terms | self.pixel_losses(batch, maps, own, step, self.at(self.labels_from, step) or "cam")

    def token_label(self, batch: Batch, maps: OwnMaps, grid: Sequence[int]) -> Tensor:
        """What the auxiliary map says of each token of a grid: (B, h, w) int64 in [0, C] or 255."""
        label = maps.label("aux", *self.labeler.backgrounds, size=grid)
        box = batch["valid_box"]
        return ignore_outside(label, box if self.pixel_box else cells_of(box, self.net.backbone.stride))

    def pairs(self, batch: Batch, maps: OwnMaps, own: Levels) -> Tensor:
        """Which pairs of tokens share a class by the auxiliary map, (B, N, N)."""
        return pair_label(self.token_label(batch, maps, own.last.shape[-2:]).flatten(1))

    def class_contrast(self, batch: Batch, maps: OwnMaps, encoded: Levels) -> Tensor:
        """L_ctc of image, global view and local crops where the auxiliary map is unsure."""
        mask = certainty(maps.aux.amax(1), *self.backgrounds)
        corners = self.crops.corners(mask, batch["seed"])
        crops = cut(batch["views"]["local"], corners, self.crops.side).transpose(0, 1)  # (V − 2, B, 3, L, L)
        tokens = torch.cat([encoded.leading[:, 0], self.net.class_tokens(crops.flatten(0, 1))])  # (V·B, D)
        student, teacher = self.net.projection(tokens), self.net.teach(encoded.leading[:, 0])
        local = self.crops.is_object(mask, corners).T  # (V − 2, B)
        positive = torch.cat([torch.ones_like(local[:2]), local])
        student, teacher = (
            each.view(-1, len(mask), each.shape[1]) for each in (student, teacher)
        )  # (V, B, E)
        return class_token_contrast(student, teacher, positive, self.temperature)

    def after_step(self) -> None:
        """Average the projection head."""
        update_ema(self.net.teacher, self.net.projection, self.momentum)
