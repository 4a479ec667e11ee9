"""Labels of pixels and of tokens, made of the two activation maps of an `AuxiliaryCAMNet`.

The last tokens' map is refined by PAR to the labels of pixels; the auxiliary map, which is better for a long
time, labels tokens (ToCo, CVPR 2023; MoRe, AAAI 2025). Nothing here has a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from wsss_afa.ops.cam import Localizer, MultiScaleCAM
from wsss_afa.ops.images import resize, to_rgb
from wsss_afa.ops.labels import OwnClasses, cam_label, own_classes, with_backgrounds
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.ops.refined_labels import RefinedLabels
from wsss_afa.types import MEAN, STD, Activation, Batch


class TwoLevelLocalizer(Localizer, Protocol):
    """A network whose raw activation (B, 2C, h, w) has the auxiliary maps behind the others."""

    num_classes: int


class OwnMaps(NamedTuple):
    """Activation maps of the classes that each image has, in the order of ``classes``; filling is 0."""

    cam: Tensor
    """(B, G − 1, H, W) in [0, 1]."""
    aux: Tensor
    """Likewise, of the auxiliary tokens."""
    classes: OwnClasses

    def of(self, source: str) -> Tensor:
        """The maps ``cam`` or ``aux``."""
        return self.cam if source == "cam" else self.aux

    @property
    def tags(self) -> Tensor:
        """(B, G − 1), 1 where a map is of a class and 0 where it is filling."""
        return self.classes.present[:, 1:].float()

    def label(self, source: str, low: float, high: float, size: Sequence[int] | None = None) -> Tensor:
        """Threshold maps as `cam_label` does, at a size (h, w) or their own: (B, h, w) int64, class ids."""
        maps = self.of(source) if size is None else resize(self.of(source), size)
        return self.classes.expand(cam_label(maps, self.tags, low, high))


class AuxiliaryLabels(nn.Module):
    """Make labels of the maps of both levels.

    Args:
        cam: makes multi-scale activation maps, of both levels at once.
        refine: PAR.
        low: β_l, background score below which pixels are background.
        high: β_h, background score above which pixels are foreground.
        eval_threshold: background score of maps in evaluation.
        downscale: factor by which images are reduced before refinement.

    Attributes:
        mean, std: of the image's normalisation, 0…255; ImageNet's unless a method sets others.
    """

    def __init__(
        self, cam: MultiScaleCAM, refine: PixelAdaptiveRefinement, low: float = 0.25, high: float = 0.7,
        eval_threshold: float = 0.5, downscale: int = 2,
    ):  # fmt: skip
        super().__init__()
        self.cam, self.refined = cam, RefinedLabels(refine, low, high, downscale)
        self.eval_threshold = eval_threshold
        self.mean: Sequence[float] = MEAN
        self.std: Sequence[float] = STD

    @property
    def backgrounds(self) -> tuple[float, float]:
        """β_l and β_h."""
        return self.refined.backgrounds

    @torch.no_grad()
    def own_maps(
        self, net: TwoLevelLocalizer, image: Tensor, tags: Tensor, known: Activation | None = None
    ) -> OwnMaps:
        """Maps of the classes that images (B, 3, H, W) have by their tags (B, C).

        ``known`` is the raw activation of a pass over these images, if there is one.
        """
        classes = own_classes(tags)
        channels = torch.cat([classes.channels, classes.channels + net.num_classes], dim=1)
        maps = self.cam(net, image, known, channels).cam
        maps = maps * classes.present[:, 1:].repeat(1, 2)[:, :, None, None]
        cam, aux = maps.chunk(2, dim=1)
        return OwnMaps(cam, aux, classes)

    @torch.no_grad()
    def pixel_label(self, image: Tensor, maps: OwnMaps, source: str, box: Tensor) -> Tensor:
        """Refined label (B, H, W) int64 in [0, C] or 255 of a map, which stands outside the box (B, 4)."""
        with torch.autocast(image.device.type, enabled=False):
            rgb, own = to_rgb(image, self.mean, self.std), maps.classes.compacted
            return maps.classes.expand(self.refined(rgb, maps.of(source), own, box))

    def evaluate(
        self, net: TwoLevelLocalizer, image: Tensor, tags: Tensor, known: Activation | None = None
    ) -> dict[str, Tensor]:
        """Labels (B, H, W) of both maps, with the classes of the tags (B, C) and no ignored pixel."""
        maps = self.own_maps(net, image, tags, known)
        threshold = self.eval_threshold
        return {source: maps.label(source, threshold, threshold) for source in ("cam", "aux")}

    @torch.no_grad()
    def maps(
        self, net: TwoLevelLocalizer, batch: Batch, source: str, backgrounds: Sequence[float]
    ) -> list[Tensor]:
        """Scores (B, G, H, W) of background and own classes for each background score.

        Sources are the maps ``cam`` and ``aux``, and ``par``, which is the first one refined.
        """
        image = batch["image"]
        maps = self.own_maps(net, image, batch["class_label"])
        if source != "par":
            return with_backgrounds(maps.of(source), backgrounds)
        with torch.autocast(image.device.type, enabled=False):
            rgb = to_rgb(image, self.mean, self.std)
            return self.refined.maps(rgb, maps.cam, maps.classes.compacted, backgrounds)

    def layers(self, net: TwoLevelLocalizer, batch: Batch) -> dict[str, Tensor]:
        """Both maps and the refined label of a batch by title, for pictures."""
        maps = self.own_maps(net, batch["image"], batch["class_label"])
        label = self.pixel_label(batch["image"], maps, "cam", batch["valid_box"])
        return {"CAM": maps.cam.amax(1), "auxiliary CAM": maps.aux.amax(1), "PAR label": label}
