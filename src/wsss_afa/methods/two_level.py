"""What ToCo and MoRe share: activation maps at two depths, labels of pixels from PAR, LargeFOV's losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from wsss_afa.losses.classification import ClassificationLoss
from wsss_afa.losses.dense_energy import DenseEnergyLoss
from wsss_afa.losses.segmentation import balanced_cross_entropy
from wsss_afa.methods.base import Method
from wsss_afa.models.auxiliary_cam import AuxiliaryCAMNet, Levels
from wsss_afa.ops.auxiliary_labels import AuxiliaryLabels, OwnMaps
from wsss_afa.ops.images import denormalize
from wsss_afa.types import Batch, Evaluation, Interpretation


class TwoLevelMethod(Method):
    """A method of an `AuxiliaryCAMNet`.

    Args:
        net: the network.
        num_classes: C, foreground classes.
        labeler: makes labels of both maps.
        classification: L_cls and L_aux.
        dense_energy: L_reg.
        phases: see `Method`, as for ``weights``.
        shared_counts: whether losses divide by the pixels and pairs of all processes, see `losses.counts`.
    """

    sources: tuple[str, ...] = ("cam", "par", "aux")
    scored: tuple[str, ...] = ("cam", "aux")

    def __init__(
        self,
        net: AuxiliaryCAMNet, num_classes: int, labeler: AuxiliaryLabels,
        classification: ClassificationLoss, dense_energy: DenseEnergyLoss,
        phases: Mapping[str, int], weights: Mapping[str, float | Mapping[str, float]], shared_counts: bool,
    ):  # fmt: skip
        super().__init__(net, num_classes, phases, weights)
        labeler.mean, labeler.std = self.mean, self.std
        self.labeler, self.cam, self.backgrounds = labeler, labeler.cam, labeler.backgrounds
        self.classification, self.dense_energy = classification, dense_energy
        self.shared_counts = shared_counts

    def tag_losses(self, batch: Batch, own: Levels) -> dict[str, Tensor]:
        """L_cls and L_aux of one pass over the images."""
        logits, tags = self._net.class_logits(own), batch["class_label"]
        return {
            name: self.classification(each, tags) for name, each in zip(("cls", "aux"), logits, strict=True)
        }

    def pixel_losses(
        self, batch: Batch, maps: OwnMaps, own: Levels, step: int, source: str = "cam"
    ) -> dict[str, Tensor]:
        """L_seg and L_reg, each where it has a weight, on the refined label of a map."""
        seg, reg = self.weight("seg", step), self.weight("reg", step)
        if not (seg or reg):
            return {}
        logits: Tensor = self._net.decoder([own.last])
        label = self.labeler.pixel_label(batch["image"], maps, source, batch["valid_box"])
        terms = {"seg": balanced_cross_entropy(logits, label, self.shared_counts)} if seg else {}
        if reg:
            rgb = denormalize(batch["image"], self.mean, self.std)
            terms["reg"] = self.dense_energy(logits, rgb, label, batch["valid_box"])
        return terms

    def answer(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Class and segmentation logits of one pass of the backbone."""
        return self._logits(self._net.encode(image))

    def _logits(self, own: Levels) -> tuple[Tensor, Tensor]:
        return self._net.class_logits(own)[0], self._net.decoder([own.last])

    def evaluate(self, batch: Batch) -> Evaluation:
        """Logits of one pass, and labels of both maps."""
        own = self._net.encode(batch["image"])
        return Evaluation(*self._logits(own), self.map_labels(batch, own))

    def map_labels(self, batch: Batch, own: Levels) -> dict[str, Tensor]:
        """Labels (B, H, W) of what is `scored`, by the images' tags."""
        known = self._net.activation(own)
        return self.labeler.evaluate(self._net, batch["image"], batch["class_label"], known)

    def maps(self, batch: Batch, source: str, backgrounds: Sequence[float]) -> list[Tensor]:
        """See `AuxiliaryLabels.maps`."""
        return self.labeler.maps(self._net, batch, source, backgrounds)

    def interpret(self, batch: Batch) -> Interpretation:
        """Both maps and the refined label."""
        return Interpretation(self.labeler.layers(self._net, batch))

    @property
    def _net(self) -> AuxiliaryCAMNet:
        assert isinstance(self.net, AuxiliaryCAMNet)
        return self.net
