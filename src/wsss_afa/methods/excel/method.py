"""ExCEL: what a frozen CLIP knows of patches labels images, and a light decoder learns it (CVPR 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from wsss_afa.losses.affinity import affinity_loss
from wsss_afa.losses.segmentation import balanced_cross_entropy
from wsss_afa.methods.base import Method
from wsss_afa.methods.excel.network import ExCELNet
from wsss_afa.methods.excel.pseudo_labels import SOURCES, ExCELLabeler
from wsss_afa.models.backbones.timm_vit import TimmViT
from wsss_afa.models.text import ClassTexts
from wsss_afa.ops.affinity import affinity_label
from wsss_afa.ops.attention_walk import AttentionWalk
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.ops.images import resize
from wsss_afa.ops.labels import best_class, ignore_outside, own_classes
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.ops.text_enrichment import enrich, phrase_centers
from wsss_afa.types import Batch, Evaluation, Interpretation


class ExCEL(Method):
    """Patch-text alignment of a frozen CLIP (ExCEL, figure 2).

        texts ─► enriched by phrases ─┐
        image ─► frozen CLIP ─► calibrated patches ─► class maps ─► walk along attention ─► PAR ─► label
                     └─► tokens of all blocks ─► fusion ─┬─► decoder ─► L_seg ◄──────────────────────┤
                                                         └─► affinity ─► L_aff ◄─────────────────────┘

    Once maps are guided, the fused map guides calibrated patches, and its affinity gates the walk.

    Args:
        backbone: CLIP's image tower with its projection, frozen.
        num_classes: C, foreground classes.
        class_names: of these classes.
        texts: what they and backgrounds are called.
        walk: carries class maps along attention, for the labels of training.
        refine: pixel-adaptive refinement.
        phases: first step of each phase, counted from 0, of any names.
        weights: factors of ``seg`` and ``aff``.
        maps_from: what labels are made of by phase, ``static`` or ``guided`` maps; see `Method.at`.
        affinity_from: what affinity labels are made of by phase, the ``label`` or the ``segmentation``.
        box_thresholds: see `ExCELLabeler`, as for ``gain``, ``center``, ``eval_center``, ``size`` and
            ``native_guide``.
        augmentation: padding of training images, see `Method`.
        clusters: centres that phrases are brought to; None is 5.6 for each class, the authors' ratio.
        dropped: share of the centres, the least alike ones, that do not enrich a class.
        affinity_radius: pairs of tokens farther apart teach no affinity, in cells.
        label_padding: padding is labelled like image, as released; else it is ignored.
        calibrated: see `ExCELNet`, as for ``attended``, ``aliased``, ``decoder_dim``, ``decoder_depth``,
            ``decoder_heads`` and ``dropout``.
        shared_counts: whether losses divide by the pixels and pairs of all processes, see `losses.counts`.

    Raises:
        UserError: a setting is not known.
    """

    sources = SOURCES
    scored: tuple[str, ...] = ("affinity",)
    scores_background = True
    export_heads: Mapping[str, Sequence[str]] = {"probability": ["fusion", "decoder"]}
    net: ExCELNet

    def __init__(
        self,
        backbone: TimmViT, num_classes: int, class_names: Sequence[str], texts: ClassTexts,
        walk: AttentionWalk, refine: PixelAdaptiveRefinement, phases: Mapping[str, int],
        weights: Mapping[str, float], maps_from: str | Mapping[str, str],
        affinity_from: str | Mapping[str, str], box_thresholds: Mapping[str, float],
        augmentation: Mapping[str, str], gain: float = 3.0, center: str = "batch",
        eval_center: str = "image", size: Sequence[int] | None = (320, 320), native_guide: bool = False,
        clusters: int | None = None, dropped: float = 0.1, affinity_radius: int = 8,
        label_padding: bool = False, calibrated: int = 5, attended: int = 6, aliased: bool = True,
        decoder_dim: int = 256, decoder_depth: int = 3, decoder_heads: int = 8, dropout: float = 0.1,
        shared_counts: bool = True,
    ):  # fmt: skip
        features = texts(class_names, backbone.head.out_features)
        centers = phrase_centers(features.phrases, clusters or round(5.6 * num_classes))
        directions = torch.cat([enrich(features.classes, centers, dropped), features.backgrounds])
        net = ExCELNet(
            backbone, num_classes, directions, calibrated, attended, aliased, decoder_dim, decoder_depth,
            decoder_heads, dropout,
        )  # fmt: skip
        super().__init__(net, num_classes, phases, weights)
        self.check_phases("maps_from", maps_from, ("static", "guided"))
        self.check_phases("affinity_from", affinity_from, ("label", "segmentation"))
        self.maps_from, self.affinity_from = maps_from, affinity_from
        self.labeler = ExCELLabeler(
            walk, refine, box_thresholds, gain, center, eval_center, size, native_guide
        )  # fmt: skip
        self.labeler.mean, self.labeler.std = self.mean, self.std
        self.cam = MultiScaleCAM((1.0,), mirror=False)
        self.augmentation, self.affinity_radius = augmentation, affinity_radius
        self.label_padding, self.shared_counts = label_padding, shared_counts

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One pass of the frozen encoder, and both losses."""
        image, tags = batch["image"], batch["class_label"]
        passed = self.labeler(self.net, image)
        logits = self.net.decoder(passed.fused)
        guided = self.at(self.maps_from, step) == "guided"
        label = self.within(batch, self.labeler.label(self.net, image, passed, tags, guided))
        taught = label
        if self.at(self.affinity_from, step) == "segmentation":
            taught = self.within(batch, resize(logits.detach().float(), label.shape[-2:]).argmax(1))
        pairs = affinity_label(taught, passed.encoded.grid, self.affinity_radius)
        return {
            "seg": balanced_cross_entropy(logits, label, self.shared_counts),
            "aff": affinity_loss(passed.affinity, pairs, self.shared_counts),
        }

    def within(self, batch: Batch, label: Tensor) -> Tensor:
        """A label with padding ignored, unless padding is to be labelled."""
        return label if self.label_padding else ignore_outside(label, batch["valid_box"])

    def answer(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Class and segmentation logits of one pass of the tower."""
        encoded = self.net.encode(image)
        return self.net.class_logits(encoded), self.net.decoder(self.net.fuse(encoded))

    def evaluate(self, batch: Batch) -> Evaluation:
        """Logits of one pass of the resized images, and labels of the source that is scored."""
        (source,) = self.scored
        passed = self.labeler(self.net, self.labeler.resized(batch["image"]))
        scores = self.labeler.scores(self.net, batch["image"], batch["class_label"], source, passed)
        labels = {source: best_class(scores, own_classes(batch["class_label"]))}
        return Evaluation(self.net.class_logits(passed.encoded), self.net.decoder(passed.fused), labels)

    def maps(self, batch: Batch, source: str, backgrounds: Sequence[float]) -> list[Tensor]:
        """See `ExCELLabeler.scores`: background is 1 − the best class, and no score of it is asked for."""
        return [self.labeler.scores(self.net, batch["image"], batch["class_label"], source)]

    def interpret(self, batch: Batch) -> Interpretation:
        """Static class maps, and the label along the learned affinity."""
        image, tags = batch["image"], batch["class_label"]
        passed = self.labeler(self.net, self.labeler.resized(image))
        maps = self.net.class_maps(passed.encoded) * tags[:, :, None, None]
        scores = self.labeler.scores(self.net, image, tags, "affinity", passed)
        shown = {"class map": resize(maps.amax(1, keepdim=True), image.shape[-2:])[:, 0]}
        return Interpretation(shown | {"walk label": best_class(scores, own_classes(tags))})
