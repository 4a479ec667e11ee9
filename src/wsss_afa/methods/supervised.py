"""Labels that come with the images: the second stage, or full supervision."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.types import MEAN, STD, Batch, PseudoLabels
from wsss_afa.errors import UserError


class GivenLabels(nn.Module):
    """Hand through the labels that a batch carries; takes the place of a ``PseudoLabeler``.

    Args:
        mean: of the image's normalisation, 0…255.
        std: of the image's normalisation, 0…255.
    """

    sources: tuple[str, ...] = ()
    """Of labels to evaluate there are none but the network's own."""

    def __init__(self, mean: Sequence[float] = MEAN, std: Sequence[float] = STD):
        super().__init__()
        self.cam = MultiScaleCAM(scales=(1.0,), mirror=False)  # for heat maps
        self.mean, self.std = tuple(mean), tuple(std)

    def needed(self, step: int) -> bool:
        """Whether this step uses labels: every step does."""
        return True

    def forward(self, net: nn.Module, batch: Batch, output: object, step: int) -> PseudoLabels:
        """Return the batch's own labels.

        Args:
            net: not asked.
            batch: ``mask`` is read.
            output: not read.
            step: all are alike.

        Raises:
            UserError: the batch has no labels.
        """
        if "mask" not in batch:
            raise UserError("pseudo_label=given has no labels to hand on: name their folder, labels=DIR")
        return PseudoLabels(segmentation=batch["mask"])
