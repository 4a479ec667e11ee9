"""Scores of masks and of tags, and what labels consist of.

VOC's mean intersection over union is of one confusion matrix. Where there are no masks, a segmentation can be
held against the images' tags.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat

from wsss_afa.types import IGNORE_INDEX, PseudoLabels

COLUMNS = {
    "cam": "CAM", "aux": "auxiliary CAM", "lam": "localization map", "affinity": "propagated CAM",
    "seg": "segmentation", "crf": "after CRF",
}  # fmt: skip
"""What is scored, in the order of tables."""
RULES = {"val/agreement": "agreement with tags", "val/map_cls": "mAP"}
"""Titles of scores that need no masks."""
FOUND = 0.01
"""Share of an image's pixels from which on a class counts as found."""
_SATURATED = 0.02  # affinity this near to 0 or 1 has next to no gradient


def titles(sources: Collection[str]) -> dict[str, str]:
    """Titles of what is scored, in the order of tables; sources that only their method knows come first."""
    known = {source: title for source, title in COLUMNS.items() if source in sources}
    return {source: source for source in sources if source not in known} | known


def rule_title(score: str) -> str:
    """Title of a score by which the best checkpoint of a run is chosen, such as ``val/miou_seg``."""
    source = score.removeprefix("val/miou_")
    return RULES.get(score) or titles([source])[source]


def count_pairs(prediction: Tensor, target: Tensor, num_outputs: int) -> Tensor:
    """Confusion matrix (K, K) int64: pixels of each true class, by row, and predicted class.

    Both are int64 in [0, C] and of one shape, and the target is 255 where nothing counts. ``num_outputs``
    is K, background included.

    Examples:
        >>> count_pairs(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 255]), num_outputs=2)
        tensor([[1, 1],
                [0, 1]])
    """
    rows = torch.where(target == IGNORE_INDEX, num_outputs, target)  # a row of their own, which is cut off
    index = (rows * num_outputs + prediction).flatten()
    pairs = torch.bincount(index, minlength=num_outputs * (num_outputs + 1))
    return pairs.view(num_outputs + 1, num_outputs)[:num_outputs]


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union (K,) float64 in [0, 1] of a confusion matrix; NaN without a true pixel.

    Examples:
        >>> class_iou(torch.tensor([[3, 1], [0, 4]]))
        tensor([0.7500, 0.8000], dtype=torch.float64)
    """
    counts = confusion.double()
    hits, truth = counts.diag(), counts.sum(1)
    iou = hits / (truth + counts.sum(0) - hits)
    return iou.masked_fill(truth == 0, float("nan"))


class SegmentationMetrics(Metric):
    """One confusion matrix, summed over images and processes; never an average of per-image scores.

    ``num_outputs`` is K, background included.

    Examples:
        >>> metric = SegmentationMetrics(num_outputs=2)
        >>> metric.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 255]]))
        >>> metric.compute()["miou"]
        tensor(1., dtype=torch.float64)
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_outputs: int):
        super().__init__()
        self.num_outputs = num_outputs
        zeros = torch.zeros(num_outputs, num_outputs, dtype=torch.long)
        self.add_state("confusion", default=zeros, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch (B, H, W) int64 in [0, C]; the target is 255 where nothing counts."""
        self.confusion += count_pairs(prediction, target, self.num_outputs)

    def compute(self) -> dict[str, Tensor]:
        """Return ``confusion`` (K, K) int64 of all processes, ``iou`` (K,) in [0, 1] and its mean ``miou``.

        Classes without a true pixel have NaN and are left out of the mean.
        """
        iou = class_iou(self.confusion)
        return {"confusion": self.confusion.clone(), "iou": iou, "miou": iou.nanmean()}


class TagAveragePrecision(Metric):
    """Average precision of each class's logits, and its mean; classes that no image has are left out.

    Examples:
        >>> metric = TagAveragePrecision()
        >>> metric.update(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([[1, 0], [0, 0]]))
        >>> metric.compute()["map"]
        tensor(1.)
    """

    full_state_update = False
    logits: list[Tensor]
    tags: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("logits", default=[], dist_reduce_fx="cat")
        self.add_state("tags", default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, tags: Tensor) -> None:
        """Keep a batch of logits (B, C) and tags (B, C) int64 in {0, 1}."""
        self.logits.append(logits)
        self.tags.append(tags)

    def compute(self) -> dict[str, Tensor]:
        """Return ``ap`` (C,) in [0, 1], NaN for classes that no image has, and their mean ``map``."""
        logits, tags = dim_zero_cat(self.logits), dim_zero_cat(self.tags)
        scores = torch.full(tags.shape[1:], float("nan"), device=logits.device)
        for c in tags.any(0).nonzero().flatten().tolist():
            scores[c] = binary_average_precision(logits[:, c], tags[:, c])
        return {"ap": scores, "map": scores.nanmean()}


class TagAgreement(Metric):
    """How well a segmentation keeps to the images' tags, which is what can be known of it without masks.

    It is the mean of two scores. The first is of tags and pixels: for each class the harmonic mean of two
    shares, and of that the mean over classes that an image has. Of the class's pixels, counted in shares of
    their image, it is the share that lies in images with its tag; of the images with its tag, the share where
    it has a hundredth of the pixels. The second is the mIoU with labels that a method makes of the tags;
    where it makes none, the first stands alone.

    ``num_classes`` is C, foreground classes.

    Examples:
        >>> metric = TagAgreement(num_classes=1)
        >>> metric.update(torch.tensor([[[0, 1]], [[0, 0]]]), torch.tensor([[1], [1]]))
        >>> metric.compute()
        tensor(0.6667, dtype=torch.float64)
    """

    full_state_update = False
    inside: Tensor
    outside: Tensor
    tagged: Tensor
    found: Tensor
    pairs: Tensor

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        for name in ("inside", "outside", "tagged", "found"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.float64), dist_reduce_fx="sum")
        pairs = torch.zeros(num_classes + 1, num_classes + 1, dtype=torch.long)
        self.add_state("pairs", pairs, dist_reduce_fx="sum")

    def update(self, label: Tensor, tags: Tensor, made: Tensor | None = None) -> None:
        """Count a batch of labels (B, H, W) int64 in [0, C], whose images have the tags (B, C) in {0, 1}.

        ``made`` are labels made of the tags, likewise; 255 is ignored.
        """
        outputs = self.num_classes + 1
        counts = torch.stack([each.flatten().bincount(minlength=outputs) for each in label])
        shares, own = counts[:, 1:].double() / label[0].numel(), tags.double()
        self.inside += (shares * own).sum(0)
        self.outside += (shares * (1 - own)).sum(0)
        self.tagged += own.sum(0)
        self.found += (own * (shares >= FOUND)).sum(0)
        if made is not None:
            self.pairs += count_pairs(label, made, outputs)

    def compute(self) -> Tensor:
        """The score in [0, 1], NaN where no image has a tag."""
        right = self.inside / (self.inside + self.outside).clamp(min=1e-12)
        found = self.found / self.tagged.clamp(min=1)
        scores = 2 * right * found / (right + found).clamp(min=1e-12)
        of_tags = scores[self.tagged > 0].mean()
        return (of_tags + class_iou(self.pairs).nanmean()) / 2 if self.pairs.any() else of_tags


def describe_labels(labels: PseudoLabels, affinity: Tensor | None = None) -> dict[str, Tensor]:
    """What a step's labels consist of, and how far affinity (B, N, N) is from them; each a scalar in [0, 1].

    Shares of pixels are ``ignored_pixels``, ``background_pixels`` and ``foreground_pixels``. With affinity
    labels there are, as shares of all N² pairs, ``positive_pairs`` and ``negative_pairs`` (the rest is
    ignored), the mean affinity of negative pairs, ``false_affinity``, and one minus that of positive ones,
    ``missed_affinity``. ``saturated_affinity`` is the share of labelled pairs whose affinity is below 0.02 or
    above 0.98, right or wrong: there the sigmoid has less than 8 % of its steepest slope. All three are 0
    where there is no such pair. The labels have a segmentation; predicted affinity (B, N, N) in [0, 1] is
    read where they have affinity too.
    """
    assert labels.segmentation is not None
    ignored = (labels.segmentation == IGNORE_INDEX).float().mean()
    background = (labels.segmentation == 0).float().mean()
    shares = {"ignored_pixels": ignored, "background_pixels": background}
    shares["foreground_pixels"] = 1 - ignored - background
    if labels.affinity is None:
        return shares
    assert affinity is not None
    same, different = labels.affinity == 1, labels.affinity == 0
    labelled, affinity = same | different, affinity.detach()
    saturated = (affinity < _SATURATED) | (affinity > 1 - _SATURATED)
    return shares | {
        "positive_pairs": same.float().mean(),
        "negative_pairs": different.float().mean(),
        "false_affinity": (affinity * different).sum() / different.sum().clamp(min=1),
        "missed_affinity": ((1 - affinity) * same).sum() / same.sum().clamp(min=1),
        "saturated_affinity": (saturated & labelled).sum() / labelled.sum().clamp(min=1),
    }
