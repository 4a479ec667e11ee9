"""MoRe: class tokens and patches are regularised, so that their products localise classes (AAAI 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from wsss_afa.losses.classification import ClassificationLoss
from wsss_afa.losses.dense_energy import DenseEnergyLoss
from wsss_afa.losses.localization import certain_region_loss, class_separation, uncertain_region_loss
from wsss_afa.losses.token_contrast import patch_token_contrast
from wsss_afa.methods.more.network import MoReNet, as_activation
from wsss_afa.methods.two_level import TwoLevelMethod
from wsss_afa.models.auxiliary_cam import Levels
from wsss_afa.models.backbones.timm_vit import TimmViT
from wsss_afa.ops.affinity import pair_label
from wsss_afa.ops.auxiliary_labels import AuxiliaryLabels, OwnMaps
from wsss_afa.ops.boxes import cells_of
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.ops.labels import cam_label, ignore_outside, own_classes, with_backgrounds
from wsss_afa.ops.localization_map import Localized
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.ops.uncertain_tokens import UncertainTokens
from wsss_afa.types import Activation, Batch, Interpretation


class MoRe(TwoLevelMethod):
    """Class-patch attention with regularisers (MoRe, figure 2).

        image ─► ViT ─► last patches ──► classifier ─► L_cls      decoder ─► L_seg, L_reg ◄─ PAR ◄─ CAM
                  ├───► earlier patches ─► classifier ─► L_aux     auxiliary CAM ─► pairs ─► L_ptc
                  └───► class tokens ─► graph ─► L_tokens, L_cle, L_une; × patches ─► localization map

    Which losses a phase has, the weights say; what has no weight is not computed. Batches need a seed for
    each image, from which its uncertain tokens are drawn.

    Args:
        backbone: a plain ViT.
        num_classes: C, foreground classes.
        cam: multi-scale activation maps.
        lam: multi-scale localization maps.
        refine: pixel-adaptive refinement.
        uncertain: draws the tokens of L_une.
        classification: L_cls and L_aux.
        dense_energy: L_reg.
        phases: first step of each phase, counted from 0, of any names.
        weights: factors of ``cls``, ``aux``, ``tokens``, ``ptc``, ``cle``, ``une``, ``seg`` and ``reg``.
        regions_from: the map that regions of L_cle and L_une are taken from, ``aux`` or ``cam``; or maps by
            phase, see `Method.at`.
        augmentation: padding and views of training images, see `Method`.
        aux_block: whose tokens make the auxiliary map, see `AuxiliaryCAMNet`, as for ``decoder_dim``.
        registers: see `MoReNet`, as for ``class_token_std`` and ``graph_share``.
        low: β_l, scores up to here are background.
        high: β_h, scores above it are foreground.
        certain_high: scores of the auxiliary map above it are certain regions.
        main_low: scores of the other map up to here are background, where regions are taken from it.
        main_high: scores of it above this are foreground there.
        token_temperature: of L_tokens.
        temperature: τ of L_cle.
        eval_threshold: background score of the maps' labels in evaluation.
        downscale: image reduction before PAR.
        shared_counts: whether losses divide by the pixels and pairs of all processes, see `losses.counts`.

    Raises:
        UserError: ``regions_from`` names no map.
    """

    sources = ("cam", "par", "aux", "lam")
    scored = ("cam", "aux", "lam")
    net: MoReNet

    def __init__(
        self,
        backbone: TimmViT, num_classes: int,
        cam: MultiScaleCAM, lam: MultiScaleCAM, refine: PixelAdaptiveRefinement, uncertain: UncertainTokens,
        classification: ClassificationLoss, dense_energy: DenseEnergyLoss,
        phases: Mapping[str, int], weights: Mapping[str, float | Mapping[str, float]],
        regions_from: str | Mapping[str, str], augmentation: Mapping[str, Any],
        aux_block: int = -3, decoder_dim: int = 512, registers: int = 4, class_token_std: float = 0.0,
        graph_share: float = 0.5, low: float = 0.25, high: float = 0.7, certain_high: float = 0.5,
        main_low: float = 0.35, main_high: float = 0.6, token_temperature: float = 0.07,
        temperature: float = 0.5, eval_threshold: float = 0.5, downscale: int = 2, shared_counts: bool = True,
    ):  # fmt: skip
        net = MoReNet(backbone, num_classes, aux_block, decoder_dim, registers, class_token_std, graph_share)
        labeler = AuxiliaryLabels(cam, refine, low, high, eval_threshold, downscale)
        super().__init__(
            net, num_classes, labeler, classification, dense_energy, phases, weights, shared_counts
        )
        self.check_phases("regions_from", regions_from, ("cam", "aux"))
        self.lam, self.one_scale_lam = lam, MultiScaleCAM((1.0,), mirror=False, rectify=False)
        self.uncertain, self.augmentation, self.regions_from = uncertain, augmentation, regions_from
        self.certain_high, self.main = certain_high, (main_low, main_high)
        self.token_temperature, self.temperature = token_temperature, temperature

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One pass over images, and the losses of this phase."""
        own = self.net.encode(batch["image"])
        terms, classes = self.tag_losses(batch, own), self.net.class_tokens(own)
        terms["tokens"] = class_separation(classes, self.token_temperature)
        wanted = [name for name in ("ptc", "cle", "une", "seg", "reg") if self.weight(name, step)]
        if not wanted:
            return terms
        known = self.net.activation(own)
        maps = self.labeler.own_maps(self.net, batch["image"], batch["class_label"], known)
        if "ptc" in wanted:
            pairs = pair_label(self.token_label(batch, maps, own, "aux", *self.backgrounds).flatten(1))
            terms["ptc"] = patch_token_contrast(own.last, pairs, self.shared_counts)
        certain, unsure = self.regions(batch, maps, own, step)
        if "cle" in wanted:
            terms["cle"] = certain_region_loss(classes, own.last, certain, self.temperature)
        if "une" in wanted:
            chosen, tags = self.uncertain(unsure, batch["seed"]), batch["class_label"]
            terms["une"] = uncertain_region_loss(classes, own.last, tags, chosen, self.shared_counts)
        return terms | self.pixel_losses(batch, maps, own, step)

    def regions(self, batch: Batch, maps: OwnMaps, own: Levels, step: int) -> tuple[Tensor, Tensor]:
        """Labels of tokens (B, h, w) whose classes are certain, and whose ignored tokens are uncertain."""
        if self.at(self.regions_from, step) == "cam":
            main = self.token_label(batch, maps, own, "cam", *self.main)
            return main, main
        low, high = self.labeler.backgrounds
        certain = self.token_label(batch, maps, own, "aux", low, self.certain_high)
        return certain, self.token_label(batch, maps, own, "aux", low, high)

    def token_label(
        self, batch: Batch, maps: OwnMaps, own: Levels, source: str, low: float, high: float
    ) -> Tensor:
        """What a map says of each token, (B, h, w) int64 in [0, C] or 255, which stands outside the box."""
        label = maps.label(source, low, high, own.last.shape[-2:])
        return ignore_outside(label, cells_of(batch["valid_box"], self.net.backbone.stride))

    def localize(self, image: Tensor) -> Activation:
        """Raw localization maps (B, C, h, w), without gradient."""
        return self.net.localize(image)

    def map_labels(self, batch: Batch, own: Levels) -> dict[str, Tensor]:
        """Labels (B, H, W) of both activation maps and of the localization map of one scale."""
        raw, threshold = as_activation(self.net.localization(own)), self.labeler.eval_threshold
        lam = self.one_scale_lam(Localized(self), batch["image"], raw).cam
        label = cam_label(lam, batch["class_label"], threshold, threshold)
        return super().map_labels(batch, own) | {"lam": label}

    def maps(self, batch: Batch, source: str, backgrounds: Sequence[float]) -> list[Tensor]:
        """See `AuxiliaryLabels.maps`; the source ``lam`` is the multi-scale localization map."""
        if source != "lam":
            return super().maps(batch, source, backgrounds)
        classes = own_classes(batch["class_label"])
        lam = self.lam(Localized(self), batch["image"], channels=classes.channels).cam
        lam = lam * classes.present[:, 1:, None, None]
        return with_backgrounds(lam, backgrounds)

    def interpret(self, batch: Batch) -> Interpretation:
        """Both activation maps, the localization map and the refined label."""
        lam = self.one_scale_lam(Localized(self), batch["image"]).cam
        shown = {"localization map": (lam * batch["class_label"][:, :, None, None]).amax(1)}
        return Interpretation(self.labeler.layers(self.net, batch) | shown)
