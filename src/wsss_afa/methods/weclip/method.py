"""WeCLIP and WeCLIP+: a decoder learns on a frozen CLIP from what CLIP localises (CVPR 2024, TPAMI 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from wsss_afa.errors import UserError
from wsss_afa.losses.affinity import affinity_loss
from wsss_afa.losses.dice import dice_loss
from wsss_afa.losses.segmentation import balanced_cross_entropy
from wsss_afa.methods.clip_cam import CLIPLabeler, CLIPMethod
from wsss_afa.methods.weclip.network import Pass, WeCLIPNet
from wsss_afa.models.backbones.timm_vit import TimmViT
from wsss_afa.models.text import ClassTexts
from wsss_afa.ops.affinity import affinity_label, feature_affinity
from wsss_afa.ops.attention_walk import AttentionWalk
from wsss_afa.ops.images import resize
from wsss_afa.ops.labels import OwnClasses, best_class, ignore_outside, own_classes
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.types import IGNORE_INDEX, Batch, Evaluation, Interpretation

SOURCES = ("static", "affinity")


class WeCLIP(CLIPMethod):
    """Frozen CLIP as a backbone (WeCLIP, figure 2), and DINOv2 beside it (WeCLIP+).

        image ─► frozen CLIP ─► tokens ─► fusion ─┬─► decoder ─► L_seg
                     │                            └─► affinity ─► L_aff
                     └─► GradCAM ─► walk along attention, gated by the affinity ─► PAR ─► label

    The first labels of WeCLIP are ``static``: nothing that is trained takes part in them. Labels of
    ``affinity`` come of attention that the learned affinity weighs. In WeCLIP+ the segmentation's probability
    weighs GradCAM, too. There one decoder segments the maps of both towers, and each learns from the other.

    Args:
        backbone: CLIP's image tower with its projection, frozen.
        num_classes: C, foreground classes.
        class_names: of these classes.
        texts: what they and backgrounds are called.
        walk: carries GradCAM along attention.
        refine: PAR.
        phases: first step of each phase, counted from 0, of any names.
        weights: factors of ``seg`` and ``aff``; in WeCLIP+ also of ``cross`` and ``dice``.
        labels_from: what labels are made of, ``static`` or ``affinity``, or these by phase, `Method.at`.
        layers: how many of the last maps of attention are used for labels of each kind.
        augmentation: padding of training images, see `Method`.
        dino: see `WeCLIPNet`, as for ``fused_blocks``, ``logit_scale``, ``cam_input``, ``decoder_dim``,
            ``decoder_depth``, ``decoder_heads`` and ``dropout``.
        class_gated: whether GradCAM is weighed by the segmentation for labels of ``affinity``.
        confidence: pixels whose best class is more probable than that are labelled by the segmentation; a
            number, or numbers by phase; None labels none so.
        affinity_radius: pairs of tokens farther apart teach no affinity, in cells.
        label_padding: padding is labelled like image, as released; else it is ignored.
        shared_counts: whether losses divide by the pixels and pairs of all processes, see `losses.counts`.

    Raises:
        UserError: a setting is not known.
    """

    sources = SOURCES
    scored: tuple[str, ...] = ("affinity",)
    export_heads: Mapping[str, Sequence[str]] = {"probability": ["fusion", "decoder", "dino", "dino_fusion"]}
    net: WeCLIPNet

    def __init__(
        self,
        backbone: TimmViT, num_classes: int, class_names: Sequence[str], texts: ClassTexts,
        walk: AttentionWalk, refine: PixelAdaptiveRefinement, phases: Mapping[str, int],
        weights: Mapping[str, float | Mapping[str, float]], labels_from: str | Mapping[str, str],
        layers: Mapping[str, int], augmentation: Mapping[str, str], dino: TimmViT | None = None,
        fused_blocks: int | None = None, logit_scale: float = 100.0, cam_input: int = -2,
        class_gated: bool = False, confidence: float | Mapping[str, float] | None = None,
        affinity_radius: int = 8, label_padding: bool = False, decoder_dim: int = 256,
        decoder_depth: int = 3, decoder_heads: int = 8, dropout: float = 0.1, shared_counts: bool = True,
    ):  # fmt: skip
        directions = self.directions(backbone, class_names, texts)
        net = WeCLIPNet(
            backbone, num_classes, directions, dino, fused_blocks, logit_scale, cam_input, decoder_dim,
            decoder_depth, decoder_heads, dropout,
        )  # fmt: skip
        super().__init__(net, num_classes, phases, weights, CLIPLabeler(walk, refine))
        self.check_phases("labels_from", labels_from, SOURCES)
        self.check_phases("confidence", confidence)
        if set(layers) != set(SOURCES):
            raise UserError(f"method.layers={dict(layers)}: need a number for {' and '.join(SOURCES)}")
        self.labels_from, self.layers, self.class_gated = labels_from, dict(layers), class_gated
        self.confidence, self.augmentation = confidence, augmentation
        self.affinity_radius, self.label_padding = affinity_radius, label_padding
        self.shared_counts = shared_counts

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One pass of the frozen towers, and the losses of this phase."""
        source = self.at(self.labels_from, step)
        passed = self.net.run(batch["image"], self.layers[source])
        affinity = self.affinity(passed)
        label = self.within(batch, self.label(batch, passed, source))
        grid = passed.fused[0].shape[-2:]
        pairs = affinity_label(label, (grid[0], grid[1]), self.affinity_radius)
        taught, logits = self.mixed(label, passed.segmentation, step), passed.segmentation
        terms = {
            "seg": balanced_cross_entropy(logits, taught, self.shared_counts),
            "aff": affinity_loss(affinity, pairs, self.shared_counts),
        }
        if self.weight("cross", step):
            terms["cross"] = torch.stack(self.cross_losses(batch, passed)).sum()
        if self.weight("dice", step):
            terms["dice"] = dice_loss(logits, taught, self.shared_counts)
        return terms

    def affinity(self, passed: Pass) -> Tensor:
        """The learned affinity of tokens, (B, N, N) in [0, 1]."""
        return feature_affinity(torch.cat(passed.fused, dim=1))

    def label(self, batch: Batch, passed: Pass, source: str) -> Tensor:
        """Label (B, H, W) int64 in [0, C] of a source, padding included."""
        classes = own_classes(batch["class_label"])
        carried = self.carried(passed, classes, source)
        return best_class(self.labeler.scores(batch["image"], carried, classes), classes)

    @torch.no_grad()
    def carried(self, passed: Pass, classes: OwnClasses, source: str) -> Tensor:
        """Maps (B, G − 1, h, w) of own classes, carried along attention."""
        gated = source == "affinity"
        probability = passed.segmentation.float().softmax(1) if gated and self.class_gated else None
        gate = self.affinity(passed) if gated else None
        return self.labeler.carried(self.net, passed.encoded, classes, gate, probability)

    def within(self, batch: Batch, label: Tensor) -> Tensor:
        """A label with padding ignored, unless padding is to be labelled."""
        return label if self.label_padding else ignore_outside(label, batch["valid_box"])

    @torch.no_grad()
    def mixed(self, label: Tensor, logits: Tensor, step: int) -> Tensor:
        """The label, or the segmentation where it is sure of itself; what is ignored stays so."""
        least = self.at(self.confidence, step)
        if least is None:
            return label
        probability, best = resize(logits.float(), label.shape[-2:]).softmax(1).max(1)
        return torch.where((probability > least) & (label != IGNORE_INDEX), best, label)

    def cross_losses(self, batch: Batch, passed: Pass) -> list[Tensor]:
        """What each segmentation learns of the other's best classes: CLIP's, then DINOv2's."""
        size = batch["image"].shape[-2:]
        best = [resize(each.detach().float(), size).argmax(1) for each in passed.logits]
        return [
            balanced_cross_entropy(logits, self.within(batch, label), self.shared_counts)
            for logits, label in zip(passed.logits, reversed(best), strict=True)
        ]

    def answer(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Class and segmentation logits of one pass of the towers."""
        passed = self.net.run(image)
        return self.net.leads(passed.encoded), passed.segmentation

    def evaluate(self, batch: Batch) -> Evaluation:
        """Logits of one pass, and labels of the source that is scored, by the images' tags."""
        (source,) = self.scored
        passed = self.net.run(batch["image"], self.layers[source])
        labels = {source: self.label(batch, passed, source)}
        return Evaluation(self.net.leads(passed.encoded), passed.segmentation, labels)

    def maps(self, batch: Batch, source: str, backgrounds: Sequence[float]) -> list[Tensor]:
        """Refined scores: background is 1 − the best class, and no score of it is asked for."""
        passed, classes = self.net.run(batch["image"], self.layers[source]), own_classes(batch["class_label"])
        return [self.labeler.scores(batch["image"], self.carried(passed, classes, source), classes)]

    def interpret(self, batch: Batch) -> Interpretation:
        """GradCAM, and the label along the learned affinity."""
        passed = self.net.run(batch["image"], self.layers["affinity"])
        cam = self.net.localize(passed.encoded, own_classes(batch["class_label"])).cam
        shown = {"GradCAM": resize(cam.amax(1, keepdim=True), batch["image"].shape[-2:])[:, 0]}
        return Interpretation(shown | {"walk label": self.label(batch, passed, "affinity")})
