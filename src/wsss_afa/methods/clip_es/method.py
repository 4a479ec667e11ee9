"""CLIP-ES: masks from tags by a frozen CLIP, without training (CVPR 2023, arXiv 2212.09506)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from wsss_afa.errors import UserError
from wsss_afa.methods.clip_cam import CLIPLabeler, CLIPMethod, CLIPNet
from wsss_afa.models.backbones.timm_vit import Encoded, TimmViT
from wsss_afa.models.text import ClassTexts
from wsss_afa.ops.attention_walk import AttentionWalk, label_scores
from wsss_afa.ops.images import resize
from wsss_afa.ops.labels import OwnClasses, best_class, own_classes
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.types import Batch, Evaluation, Interpretation

_LEAST = 1e-6  # score that a logit is made of


class CLIPES(CLIPMethod):
    """GradCAM of a frozen CLIP, carried along its attention (CLIP-ES, figure 2).

    Labels come of the images' tags: refined by PAR (``static``, WeCLIP's first labels), or as they are
    (``walk``), which a dense CRF may follow, as in the paper. Segmentation, which knows no tags, is of those
    classes that are nearer to the image than all backgrounds together.

    Args:
        backbone: CLIP's image tower with its projection, frozen.
        num_classes: C, foreground classes.
        class_names: of these classes.
        texts: what they and backgrounds are called.
        walk: carries GradCAM along attention.
        refine: PAR.
        layers: how many of the last maps of attention are used.
        logit_scale: see `CLIPNet`.
    """

    sources = ("static", "walk")
    scored = ("static",)
    export_heads: Mapping[str, Sequence[str]] = {}
    net: CLIPNet

    def __init__(
        self, backbone: TimmViT, num_classes: int, class_names: Sequence[str], texts: ClassTexts,
        walk: AttentionWalk, refine: PixelAdaptiveRefinement, layers: int = 8, logit_scale: float = 100.0,
    ):  # fmt: skip
        directions = self.directions(backbone, class_names, texts)
        net, labeler = CLIPNet(backbone, num_classes, directions, logit_scale), CLIPLabeler(walk, refine)
        super().__init__(net, num_classes, {"static": 0}, {}, labeler)
        self.layers = layers

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """None: a UserError says how labels are made."""
        how = "wsss-afa pseudo_labels method=clip_es"
        raise UserError(f"method=clip_es trains nothing: {how} labels images, method=weclip trains on them")

    def classify(self, image: Tensor) -> Tensor:
        """See `CLIPNet.leads`."""
        return self.net.leads(self.net.encode(image))

    def segment(self, image: Tensor) -> Tensor:
        """Logarithms of scores (B, K, h, w) of background and the classes that CLIP sees."""
        return self.answer(image)[1]

    def answer(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What CLIP sees, and the scores, of one pass."""
        encoded = self.net.encode(image, self.layers)
        leads = self.net.leads(encoded)
        return leads, self.segmentation(encoded, leads)

    @torch.no_grad()
    def segmentation(self, encoded: Encoded, leads: Tensor) -> Tensor:
        """See `segment`; ``leads`` (B, C) are those of the pass, see `CLIPNet.leads`."""
        seen = own_classes(leads > 0)
        carried = self.labeler.carried(self.net, encoded, seen)
        own = label_scores(carried, seen, carried.shape[-2:])  # (B, G, h, w)
        own = own * seen.present[:, :, None, None]
        scores = own.new_zeros(len(own), self.num_classes + 1, *own.shape[-2:])
        scores.scatter_add_(1, seen.ids[:, :, None, None].expand_as(own), own)
        return scores.clamp(min=_LEAST).log()

    def own_scores(self, batch: Batch, encoded: Encoded, classes: OwnClasses, refined: bool = True) -> Tensor:
        """Scores (B, G, H, W) of background and own classes; see `CLIPLabeler.scores`."""
        carried = self.labeler.carried(self.net, encoded, classes)
        return self.labeler.scores(batch["image"], carried, classes, refined)

    def evaluate(self, batch: Batch) -> Evaluation:
        """One pass: what CLIP sees, and refined labels by the images' tags."""
        encoded, classes = self.net.encode(batch["image"], self.layers), own_classes(batch["class_label"])
        labels = {"static": best_class(self.own_scores(batch, encoded, classes), classes)}
        leads = self.net.leads(encoded)
        return Evaluation(leads, self.segmentation(encoded, leads), labels)

    def maps(self, batch: Batch, source: str, backgrounds: Sequence[float]) -> list[Tensor]:
        """Scores of a source: background is 1 − the best class, and no score of it is asked for."""
        encoded, classes = self.net.encode(batch["image"], self.layers), own_classes(batch["class_label"])
        return [self.own_scores(batch, encoded, classes, refined=source == "static")]

    def interpret(self, batch: Batch) -> Interpretation:
        """GradCAM and the refined label."""
        encoded, classes = self.net.encode(batch["image"], self.layers), own_classes(batch["class_label"])
        cam = self.net.localize(encoded, classes).cam.amax(1, keepdim=True)
        label = best_class(self.own_scores(batch, encoded, classes), classes)
        return Interpretation({"GradCAM": resize(cam, label.shape[-2:])[:, 0], "walk label": label})
