"""What CLIP-ES, WeCLIP and WeCLIP+ share: GradCAM of a frozen CLIP, carried along its attention and refined.

    image ─► frozen CLIP ─► last block ─► GradCAM of each tag ─► walk along attention ─► PAR ─► label

Shapes beside the legend in `wsss_afa.types`: n = 1 + N tokens, the class token first; D channels of a token;
E of CLIP's space of texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import QuickGELU
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.methods.base import Method
from wsss_afa.models.backbones.plain_vit import run_block
from wsss_afa.models.backbones.timm_vit import Encoded, TimmViT
from wsss_afa.models.text import ClassTexts, TextFeatures
from wsss_afa.ops.attention_walk import AttentionWalk, label_scores
from wsss_afa.ops.grad_cam import GradCAM, check_block, softmax_grad_cam
from wsss_afa.ops.images import resize
from wsss_afa.ops.labels import OwnClasses
from wsss_afa.ops.par import PixelAdaptiveRefinement

_AT_ONCE = 16  # classes whose maps are made together where nobody chose them


class CLIPNet(nn.Module):
    """A frozen CLIP whose last block is run apart, and the directions of texts.

    Args:
        backbone: CLIP's image tower with its projection.
        num_classes: C.
        texts: directions of classes and backgrounds, kept with the weights.
        logit_scale: s, what likeness to texts is multiplied by: CLIP's logit scale.
        cam_input: block whose output the last one is given for GradCAM, from the end: −2 is the one before.
        blocks: further blocks whose maps are handed on, from 0.

    Raises:
        UserError: the backbone is no CLIP with a class token and a projection, is not frozen, or has OpenAI's
            weights with another activation than theirs.
    """

    texts: Tensor
    scenes: Tensor

    def __init__(
        self, backbone: TimmViT, num_classes: int, texts: TextFeatures, logit_scale: float = 100.0,
        cam_input: int = -2, blocks: Sequence[int] = (),
    ):  # fmt: skip
        super().__init__()
        check_tower(backbone)
        self.backbone, self.num_classes, self.logit_scale = backbone, num_classes, logit_scale
        depth = len(backbone.blocks)
        if not -depth <= cam_input <= -2:
            raise UserError(f"method.cam_input={cam_input}, need -{depth} to -2, the last block but one")
        if not len(texts.backgrounds):
            need = "need one at least, which the only class of an image is told from"
            raise UserError(f"method.texts.backgrounds has none, {need}: name what surrounds objects")
        self.cam_input = depth + cam_input
        self.blocks = sorted({*blocks, self.cam_input, depth - 2})
        self.register_buffer("texts", texts.classes)
        self.register_buffer("scenes", texts.backgrounds)

    def encode(self, image: Tensor, layers: int = 1) -> Encoded:
        """Run the blocks before the last one; those of the last ``layers`` blocks hand on their attention.

        The last one, which is run apart, has attention of its own.
        """
        depth = len(self.backbone.blocks)
        attended = range(max(0, depth - layers), depth - 1)
        return self.backbone.encode(image, self.blocks, "none", attention=attended, average_heads=True)

    def map_of(self, encoded: Encoded, block: int) -> Tensor:
        """Patch tokens (B, D, h, w) of a block, from 0."""
        return encoded.maps[self.blocks.index(block)]

    def tokens_of(self, encoded: Encoded, block: int) -> Tensor:
        """Tokens (B, n, D) of a block, from 0, in float32."""
        leading, patches = encoded.leading[self.blocks.index(block)], self.map_of(encoded, block)
        return torch.cat([leading, patches.flatten(2).mT], dim=1).float()

    @torch.no_grad()
    def localize(self, encoded: Encoded, classes: OwnClasses) -> GradCAM:
        """GradCAM of own classes, in float32."""
        tower, grid = self.backbone, encoded.maps[0].shape[-2:]
        with torch.autocast(self.texts.device.type, enabled=False):
            return softmax_grad_cam(
                tower.blocks[-1], tower.norm, tower.head, self.tokens_of(encoded, self.cam_input),
                (grid[0], grid[1]), self.texts, self.scenes, classes, self.logit_scale,
            )  # fmt: skip

    def localize_all(self, encoded: Encoded, channels: Tensor) -> Tensor:
        """GradCAM (B, G, h, w) of classes ``channels`` (B, G) that nobody said are there, some at a time."""
        maps = []
        for part in torch.split(channels, _AT_ONCE, dim=1):
            ids = F.pad(part + 1, (1, 0))
            maps.append(self.localize(encoded, OwnClasses(ids, torch.ones_like(ids, dtype=torch.bool))).cam)
        return torch.cat(maps, dim=1)

    @torch.no_grad()
    def leads(self, encoded: Encoded) -> Tensor:
        """By how much each class is ahead of all backgrounds together, (B, C): logits of CLIP itself."""
        tower = self.backbone
        with torch.autocast(self.texts.device.type, enabled=False):
            output, _, _ = run_block(tower.blocks[-1], self.tokens_of(encoded, len(tower.blocks) - 2))
            token = F.normalize(tower.head(tower.norm(output[:, 0])), dim=-1)  # (B, E)
            classes, scenes = (self.logit_scale * token @ rows.T for rows in (self.texts, self.scenes))
            return classes - scenes.logsumexp(1, keepdim=True)


def check_tower(backbone: TimmViT) -> None:
    """Raise a UserError unless a backbone is a frozen CLIP, with the activation of its weights."""
    if not isinstance(backbone, TimmViT) or not hasattr(backbone, "head") or backbone.cls_token is None:
        raise UserError("the backbone has no projection to texts, need a CLIP: use backbone=clip_base")
    last = cast(Any, backbone.blocks[-1])
    check_block(last)
    if not backbone.frozen:
        raise UserError("the backbone is to be trained, CLIP stays frozen here: set backbone.frozen=true")
    if str(backbone.source).endswith(".openai") and not isinstance(last.mlp.act, QuickGELU):
        need = "need a name such as vit_base_patch16_clip_quickgelu_224.openai"
        raise UserError(f"OpenAI's CLIP was trained with QuickGELU, {need}: set backbone.name")


class CLIPLabeler(nn.Module):
    """Make scores and labels of images from GradCAM.

    Args:
        walk: carries maps along attention.
        refine: PAR.
    """

    def __init__(self, walk: AttentionWalk, refine: PixelAdaptiveRefinement):
        super().__init__()
        self.walk, self.refine = walk, refine

    @torch.no_grad()
    def carried(
        self,
        net: CLIPNet, encoded: Encoded, classes: OwnClasses, gate: Tensor | None = None,
        probability: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Maps (B, G − 1, h, w) of own classes, at least 0.

        They are carried along all maps of attention that the pass handed on, and the last block's.

        Args:
            net: the network.
            encoded: a pass of it.
            classes: own classes.
            gate: (B, N, N), a learned affinity that chooses and weighs attention; see `layer_affinity`.
            probability: (B, K, h, w), of a segmentation; a class's map, inside its boxes, is multiplied by
                its own.
        """
        found, weights = net.localize(encoded, classes), None
        if probability is not None:
            index = classes.channels.clamp(min=0)[:, :, None, None] + 1
            weights = probability.float().gather(1, index.expand(-1, -1, *probability.shape[-2:]))
        attention = torch.stack([*(each.float() for each in encoded.attention), found.attention])
        with torch.autocast(attention.device.type, enabled=False):
            carried: Tensor = self.walk(found.cam, attention[:, :, 1:, 1:], gate, weights)
        return carried

    @torch.no_grad()
    def scores(self, image: Tensor, carried: Tensor, classes: OwnClasses, refined: bool = True) -> Tensor:
        """Scores (B, G, H, W) of background, which is 1 − the best class, and own classes, refined by PAR.

        The image (B, 3, H, W) is a normalised one, as PAR compares colours with their neighbours' alone.
        """
        with torch.autocast(image.device.type, enabled=False):
            scores = label_scores(carried, classes, image.shape[-2:])
            return self.refine(image.float(), scores) if refined else scores


class CLIPMethod(Method):
    """A method of a `CLIPNet`.

    Args:
        net: the network.
        num_classes: C, foreground classes.
        phases: see `Method`, as for ``weights``.
        weights: see there.
        labeler: makes scores of GradCAM.
    """

    scores_background = True

    def __init__(
        self, net: CLIPNet, num_classes: int, phases: Mapping[str, int],
        weights: Mapping[str, float | Mapping[str, float]], labeler: CLIPLabeler,
    ):  # fmt: skip
        super().__init__(net, num_classes, phases, weights)
        self.labeler = labeler

    @staticmethod
    def directions(backbone: TimmViT, class_names: Sequence[str], texts: ClassTexts) -> TextFeatures:
        """Directions of texts in the space of a tower; a UserError where it has none."""
        check_tower(backbone)
        found: TextFeatures = texts(class_names, backbone.head.out_features)
        return found

    def heat_maps(self, image: Tensor, channels: Tensor | None = None) -> Tensor:
        """GradCAM (B, G, H, W) in [0, 1] of classes ``channels`` (B, G) in [0, C); None is all."""
        net = self.net
        assert isinstance(net, CLIPNet)
        if channels is None:
            channels = torch.arange(self.num_classes, device=image.device).expand(len(image), -1)
        return resize(net.localize_all(net.encode(image), channels), image.shape[-2:])
