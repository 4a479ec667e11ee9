"""From class maps to labels: the walk along attention, PAR, the best class (ExCEL, CVPR 2025).

Static maps and labels come of the frozen CLIP alone; others are guided by the fused map that is trained.
Nothing here has a gradient but the learned affinity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.methods.excel.network import Calibrated, ExCELNet
from wsss_afa.ops.affinity import feature_affinity, feature_products
from wsss_afa.ops.attention_walk import AttentionWalk, label_scores
from wsss_afa.ops.cam import normalize_cam
from wsss_afa.ops.images import resize, to_rgb
from wsss_afa.ops.labels import OwnClasses, best_class, own_classes
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.types import MEAN, STD

SOURCES = ("static", "affinity", "guided")


class Pass(NamedTuple):
    """What labels are made of: one pass of encoder and fusion."""

    encoded: Calibrated
    fused: Tensor
    """(B, D, h, w)."""
    affinity: Tensor
    """Learned, (B, N, N) in [0, 1]."""


class ExCELLabeler(nn.Module):
    """Make labels of class maps and attention.

    Args:
        walk: carries maps along attention, for the labels of training.
        refine: PAR.
        box_thresholds: of the walk by source, ``static``, ``affinity`` and ``guided``, for other labels.
        gain: factor on the products of fused features.
        center: whose mean product is taken from them in training, the ``batch``'s or each ``image``'s.
        eval_center: likewise in evaluation.
        size: height and width that images are resized to before labels are made of them, outside of training;
            None keeps their own.
        native_guide: PAR is then guided by the image itself; else by the resized one, enlarged again.

    Attributes:
        mean, std: of the image's normalisation, 0…255; ImageNet's unless a method sets others.

    Raises:
        UserError: there is no such centre, or a source has no threshold.
    """

    def __init__(
        self, walk: AttentionWalk, refine: PixelAdaptiveRefinement, box_thresholds: Mapping[str, float],
        gain: float = 3.0, center: str = "batch", eval_center: str = "image",
        size: Sequence[int] | None = (320, 320), native_guide: bool = False,
    ):  # fmt: skip
        super().__init__()
        if not {center, eval_center} <= {"batch", "image"}:
            raise UserError(f"method.center={center}, eval_center={eval_center}: need batch or image")
        if set(box_thresholds) != set(SOURCES):
            raise UserError(f"method.box_thresholds={dict(box_thresholds)}: need {', '.join(SOURCES)}")
        self.walk, self.refine = walk, refine
        self.walks = {
            name: AttentionWalk(value, walk.inclusive, walk.rounds) for name, value in box_thresholds.items()
        }
        self.gain, self.centers = gain, (eval_center, center)
        self.size, self.native_guide = None if size is None else tuple(size), native_guide
        self.mean: Sequence[float] = MEAN
        self.std: Sequence[float] = STD

    def forward(self, net: ExCELNet, image: Tensor) -> Pass:
        """Pass an image (B, 3, H, W)."""
        encoded = net.encode(image)
        fused = net.fuse(encoded)
        center = self.centers[self.training]
        return Pass(encoded, fused, feature_affinity(fused, self.gain, center, self.training))

    def guidance(self, fused: Tensor) -> Tensor:
        """What is added to the likeness of patches, (B, N, N): soft-maxed products that are not below 0."""
        center = self.centers[self.training]
        products = feature_products(fused.detach(), self.gain, center, self.training)
        return products.masked_fill(products < 0, float("-inf")).softmax(-1)

    @torch.no_grad()
    def label(self, net: ExCELNet, image: Tensor, passed: Pass, tags: Tensor, guided: bool) -> Tensor:
        """Label (B, H, W) int64 in [0, C] of training images and their tags (B, C), padding included."""
        maps = net.class_maps(passed.encoded, self.guidance(passed.fused) if guided else None)
        classes = own_classes(tags)
        carried = self.carried(maps, passed, classes, self.walk, guided)
        rgb = to_rgb(image, self.mean, self.std)
        return best_class(self.refined(carried, classes, rgb, image.shape[-2:]), classes)

    def carried(
        self, maps: Tensor, passed: Pass, classes: OwnClasses, walk: AttentionWalk, gated: bool
    ) -> Tensor:
        """The own classes' maps (B, G − 1, h, w), of maps (B, C, h, w), carried along a pass's attention."""
        own = maps.gather(1, classes.channels[:, :, None, None].expand(-1, -1, *maps.shape[-2:]))
        attention = passed.encoded.attention[:, :, 1:, 1:].float()
        carried: Tensor = walk(own, attention, passed.affinity.detach() if gated else None)
        return carried

    def refined(self, carried: Tensor, classes: OwnClasses, guide: Tensor, size: Sequence[int]) -> Tensor:
        """Refined scores (B, G, H, W) of background and own classes at a size (H, W).

        The image (B, 3, ·, ·) that guides PAR is enlarged to the size, corner on corner.
        """
        if guide.shape[-2:] != tuple(size):
            guide = F.interpolate(guide, size=tuple(size), mode="bilinear", align_corners=True)
        with torch.autocast(guide.device.type, enabled=False):
            refined: Tensor = self.refine(guide, label_scores(carried.float(), classes, size))
        return refined

    def resized(self, image: Tensor) -> Tensor:
        """An image as labels are made of it outside of training."""
        return image if self.size is None else resize(image, self.size)

    @torch.no_grad()
    def scores(
        self, net: ExCELNet, image: Tensor, tags: Tensor, source: str, known: Pass | None = None
    ) -> Tensor:
        """Refined scores (B, G, H, W) of background and own classes, for images of any size.

        Sources are ``static`` (nothing that is trained), ``affinity`` (static maps, carried along the learned
        affinity) and ``guided`` (maps of the image and its mirror image, guided). ``known`` is the pass of
        the resized images, if there is one.
        """
        small, classes = self.resized(image), own_classes(tags)
        passed = known or self(net, small)
        maps = self.guided_maps(net, small) if source == "guided" else net.class_maps(passed.encoded)
        carried = self.carried(maps, passed, classes, self.walks[source], source != "static")
        guide = image if self.native_guide else small  # normalised: PAR looks at colours relative to others
        return self.refined(carried, classes, guide, image.shape[-2:])

    def guided_maps(self, net: ExCELNet, image: Tensor) -> Tensor:
        """Maps (B, C, h, w) in [0, 1]: the larger of an image's and its un-mirrored mirror image's."""
        both = self(net, torch.cat([image, image.flip(-1)]))
        plain, mirrored = net.class_maps(both.encoded, self.guidance(both.fused)).chunk(2)
        return normalize_cam(torch.maximum(plain, mirrored.flip(-1)))
