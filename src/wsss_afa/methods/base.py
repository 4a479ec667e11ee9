"""The contract of a method: the base steps, logs, scores and optimises; a method adds losses and maps.

What a program, a callback, an inference or a report wants of a method, it asks for by the names below, and
never by the method's class. ``docs/adding_a_method.md`` writes a method step by step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.losses.classification import ClassificationLoss
from wsss_afa.methods.optim import AdamWPoly, parameter_kinds
from wsss_afa.methods.towers import check_same, pin, towers, weights_of
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.ops.metrics import SegmentationMetrics, TagAgreement, TagAveragePrecision
from wsss_afa.ops.multi_scale import MultiScaleSegmentation
from wsss_afa.types import (
    IGNORE_INDEX,
    MAX_CLASSES,
    Activation,
    Backbone,
    Batch,
    Evaluation,
    Interpretation,
    Phase,
)

RECIPE_KEY = "wsss_afa"  # where in a checkpoint its recipe lies


class Network(Protocol):
    """What the base asks of a method's network, which holds all that is trained."""

    backbone: Backbone

    def classify(self, image: Tensor) -> Tensor:
        """Class logits (B, C)."""

    def segment(self, image: Tensor) -> Tensor:
        """Segmentation logits (B, K, h, w), on any grid."""

    def activate(self, image: Tensor) -> Activation:
        """Raw class activation maps (B, C, h, w), without gradient."""


class Method(L.LightningModule):
    """A way to train segmentation from image tags.

    A method implements `losses`, and sets ``cam`` if its network has activation maps. What else it can do it
    says by overriding `scored` with `evaluate`, `sources` with `maps`, `interpret`, and `export_heads` with
    `trace`. Every image is a normalised one, (B, 3, H, W).

    Args:
        net: see `Network`.
        num_classes: C, foreground classes.
        phases: first step of each phase by name, counted from 0; the first phase begins at 0.
        weights: factor of each loss by the name that `losses` gives it: a number, or numbers by phase, see
            `at`; before the first of these phases it is 0.

    Attributes:
        recipe: what rebuilds the method; it goes into checkpoints. `recipe.build` sets it.
        optim: recipe of optimiser and schedule; a training program sets it.
        protocol: how an evaluation segments; one pass at the image's own size unless a program sets another.
        mean, std: of the image's normalisation, RGB, 0…255: those of the backbone.
        cam: makes activation maps of the network's raw ones, over scales and mirror images.

    Raises:
        UserError: the phases do not begin at step 0, a weight is of a phase that there is not, or there are
            more classes than labels can hold.
    """

    recipe: Mapping[str, Any]
    optim: AdamWPoly | None = None
    cam: MultiScaleCAM | None
    backgrounds: tuple[float, ...] = ()
    """Background scores of the labels that it makes for its own training: one, or low and high."""
    sources: tuple[str, ...] = ()
    """What labels can be made of beside the segmentation, see `maps`; ``static`` needs no training."""
    scores_background: bool = False
    """Whether `maps` scores the background itself, so that no background score is asked for."""
    scored: tuple[str, ...] = ()
    """Which labels an evaluation scores beside the segmentation's."""
    augmentation: Mapping[str, Any] = {}
    """Padding and views of training images, as `data.transforms.TrainTransform` takes them."""
    needs_labels: bool = False
    """Whether training batches carry labels that are given (``mask``); else no training mask is opened."""
    export_heads: Mapping[str, Sequence[str]] = {"probability": ["decoder"]}
    """Outputs that an exported file can have; parts of ``net`` beside the backbone that each needs."""

    def __init__(
        self, net: nn.Module, num_classes: int, phases: Mapping[str, int],
        weights: Mapping[str, float | Mapping[str, float]],
    ):  # fmt: skip
        super().__init__()
        if num_classes > MAX_CLASSES:
            need = f"need {MAX_CLASSES} at most, for labels are of 8 bits"
            raise UserError(f"there are {num_classes} classes, {need}: leave some out or merge them")
        self.net, self.num_classes, self.weights, self.cam = net, num_classes, dict(weights), None
        self.phases = tuple(Phase(*each) for each in sorted(phases.items(), key=lambda item: item[1]))
        if not self.phases or self.phases[0].first != 0:
            raise UserError(f"method.phases={dict(phases)}: one phase has to begin at step 0: set it to 0")
        for name, weight in self.weights.items():
            self.check_phases(f"weights.{name}", weight)
        self.mean, self.std = tuple(self.backbone.mean), tuple(self.backbone.std)
        self.protocol = MultiScaleSegmentation(mean=self.mean, std=self.std)
        self.average_precision, self.agreement = TagAveragePrecision(), TagAgreement(num_classes)
        self._scores = nn.ModuleDict()

    # What a method defines.

    @abstractmethod
    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Unweighted terms of a training step, scalars by name; a phase leaves out what it does not train.

        ``step`` is the number of optimiser steps done so far.
        """

    def classify(self, image: Tensor) -> Tensor:
        """Class logits (B, C)."""
        return cast(Network, self.net).classify(image)

    def segment(self, image: Tensor) -> Tensor:
        """Segmentation logits (B, K, h, w), on any grid."""
        return cast(Network, self.net).segment(image)

    def answer(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What `classify` and `segment` give; a method says by overriding it how one pass yields both."""
        return self.classify(image), self.segment(image)

    def evaluate(self, batch: Batch) -> Evaluation:
        """Class and segmentation logits, and labels of the sources in `scored`.

        The first of these is what the segmentation is held against where there are no masks.
        """
        return Evaluation(*self.answer(batch["image"]), {})

    def maps(self, batch: Batch, source: str, backgrounds: Sequence[float]) -> list[Tensor]:
        """Scores that labels are made of: for each background score (B, G, H, W), at least 0.

        Channels are background and the image's own classes, as `ops.labels.own_classes` has them; filling
        is 0. Of the batch ``image``, ``class_label`` and ``valid_box`` are read; source is one of `sources`.
        """
        raise UserError(f"{type(self).__name__} has no source {source}: override maps for all its sources")

    def interpret(self, batch: Batch) -> Interpretation:
        """What stands between image and prediction, for pictures."""
        return Interpretation({})

    def heat_maps(self, image: Tensor, channels: Tensor | None = None) -> Tensor:
        """Activation maps (B, G, H, W) in [0, 1] of classes ``channels`` (B, G) in [0, C); None is all."""
        if self.cam is None:
            raise UserError(f"{type(self).__name__} has no activation maps: set cams=false")
        if channels is None:
            channels = torch.arange(self.num_classes, device=image.device).expand(len(image), -1)
        activation: Activation = self.cam(cast(Network, self.net), image, channels=channels)
        return activation.cam

    def after_step(self) -> None:
        """What follows an optimiser step, such as a teacher that follows the network."""

    def trace(self, image: Tensor, outputs: Sequence[str]) -> dict[str, Tensor]:
        """What an exported file computes: the outputs, keys of `export_heads`, by name."""
        return {"probability": self.protocol.probabilities(self, image)}

    def parameter_kinds(self) -> dict[str, Sequence[nn.Parameter]]:
        """Parameters as the schedule treats them: encoder, norm (the encoder's), head, decoder."""
        return parameter_kinds(self.net)

    # What all methods share.

    @property
    def backbone(self) -> Backbone:
        """What images pass first."""
        return cast(Network, self.net).backbone

    def phase(self, step: int) -> str:
        """Name of the phase that a step (counted from 0) belongs to."""
        return [each.name for each in self.phases if each.first <= step][-1]

    def at(self, setting: Any, step: int) -> Any:
        """Value of a setting at a step.

        A setting that changes during training is a mapping: it has the value of the newest phase that it
        names, and None before the first of them. Any other setting is its own value at every step.
        """
        if not isinstance(setting, Mapping):
            return setting
        named = [each.name for each in self.phases if each.first <= step and each.name in setting]
        return setting[named[-1]] if named else None

    def weight(self, loss: str, step: int) -> float:
        """Factor of a loss at a step, 0 where it is left out."""
        return float(self.at(self.weights.get(loss), step) or 0)

    @property
    def segmentation_step(self) -> int:
        """First step (counted from 0) that trains the segmentation, as the weight of ``seg`` says."""
        return next((each.first for each in self.phases if self.weight("seg", each.first)), 0)

    def check_phases(self, name: str, setting: Any, values: Sequence[str] = ()) -> None:
        """Raise a UserError for a phase that there is not, or for none of the values where some are named.

        The setting is that of ``method.{name}``, see `at`.
        """
        known = {each.name for each in self.phases}
        if isinstance(setting, Mapping) and (strange := sorted(set(setting) - known)):
            raise UserError(
                f"method.{name} names the phase {strange[0]}, need one of {', '.join(sorted(known))}: mend it"
            )
        chosen = setting.values() if isinstance(setting, Mapping) else [setting]
        if values and (strange := [each for each in chosen if each not in values]):
            raise UserError(f"method.{name}={strange[0]} is not known; need {' or '.join(values)}")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted sum of the losses of this step."""
        step = self.global_step
        terms = self.losses(batch, step)
        total = self.total(terms, step)
        groups = self.trainer.optimizers[0].param_groups
        self.log_dict({f"train/loss_{name}": value.detach() for name, value in terms.items()})
        self.log("train/loss", total.detach(), prog_bar=True)
        self.log("lr", groups[0]["lr"], prog_bar=True, logger=False)
        if self.is_logged():
            self.log_dict({f"lr/{group['name']}": group["lr"] for group in groups})
        return total + self._idle()

    def total(self, terms: Mapping[str, Tensor], step: int) -> Tensor:
        """The weighted sum of what `losses` gave; a UserError says that a term has no weight."""
        if missing := [name for name in terms if name not in self.weights]:
            raise UserError(f"the loss {missing[0]} has no weight: set method.weights.{missing[0]}=1")
        return torch.stack([self.weight(name, step) * term for name, term in terms.items()]).sum()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's, then `after_step`: once, however many micro-batches the step has."""
        super().optimizer_step(*args, **kwargs)
        self.after_step()

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Score labels (B, H, W), the segmentation's alone without masks, and return them by source."""
        found = self.evaluate(batch)
        probabilities = self.protocol.probabilities(self, batch["image"], found.seg_logits)
        labels = {"seg": probabilities.max(1).indices}
        if self.protocol.crf is not None:
            labels["crf"] = self.protocol.refine(batch["image"], probabilities).max(1).indices
        labels |= found.labels
        assert "mask" not in batch or labels.keys() == self.scores.keys(), "evaluate labels what is scored"
        mask = batch.get("mask", torch.full_like(labels["seg"], IGNORE_INDEX))
        for source, label in labels.items():
            self.scores[source].update(label, mask)
        self.average_precision.update(found.class_logits.float(), batch["class_label"].int())
        made = found.labels.get(self.scored[0]) if self.scored else None
        self.agreement.update(labels["seg"], batch["class_label"], made)
        return labels

    @property
    def scores(self) -> dict[str, SegmentationMetrics]:
        """Running scores by source: ``seg``, those of `scored`, and ``crf`` where the protocol has one."""
        return cast(dict[str, SegmentationMetrics], dict(self._scores.items()))

    def use_tags(self, tags: Tensor) -> None:
        """Hand the tags (n, C) of all training images to the losses that weigh classes by their number."""
        for loss in (each for each in self.modules() if isinstance(each, ClassificationLoss)):
            loss.balance(tags)

    def setup(self, stage: str) -> None:
        """Make the scores that the protocol asks for."""
        sources = ["seg", *self.scored] + ["crf"] * (self.protocol.crf is not None)
        self._scores = nn.ModuleDict({each: SegmentationMetrics(self.num_classes + 1) for each in sources})

    def on_validation_epoch_start(self) -> None:
        """Start counting anew; the last counts stay readable until then."""
        for metric in (*self.scores.values(), self.average_precision, self.agreement):
            metric.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the whole set, reduced over processes by the metrics themselves."""
        for source, metric in self.scores.items() if self._has_truth() else ():
            self.log(f"val/miou_{source}", metric.compute()["miou"].float(), prog_bar=source == "seg")
        self.log("val/agreement", self.agreement.compute().float())
        self.log("val/map_cls", self.average_precision.compute()["map"])

    def class_table(self) -> dict[str, list[float]]:
        """IoU (%) of each class by source, background first, NaN without a true pixel; {} without masks."""
        scores = self.scores if self._has_truth() else {}
        return {name: (100 * metric.compute()["iou"]).tolist() for name, metric in scores.items()}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW and a schedule that advances with every optimiser step."""
        assert self.optim is not None
        optimizer, scheduler = self.optim(self.parameter_kinds())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the method from the file, and leave frozen towers out."""
        checkpoint[RECIPE_KEY] = pin(self.recipe, self.net)
        for key in weights_of(towers(self.net), checkpoint["state_dict"], "net."):
            del checkpoint["state_dict"][key]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fill in the frozen towers that this run has; a UserError says that those of the file are others."""
        check_same(checkpoint[RECIPE_KEY], self.recipe, self.net)
        checkpoint["state_dict"] |= weights_of(towers(self.net), self.state_dict(), "net.")

    def compile_network(self) -> None:
        """Compile the parts that take most of the time: backbone and decoder."""
        for name in ("backbone", "decoder"):
            if hasattr(self.net, name):
                getattr(self.net, name).compile()

    def is_logged(self) -> bool:
        """Whether values of the current step go to the loggers; never without a Trainer."""
        return self._trainer is not None and is_logged(self.trainer, self.global_step)

    def _has_truth(self) -> bool:
        """Whether any image of any process had a mask."""
        return bool(self.scores["seg"].compute()["miou"].isfinite())

    def _idle(self) -> Tensor:
        """Zero, with a gradient of zero for parameters that a phase leaves out.

        The released programs multiply their losses by 0: AdamW counts the step and decays the weight. And
        processes that average gradients need one for every parameter.
        """
        kinds = self.parameter_kinds()
        sums = [each.sum() for each in (*kinds["decoder"], *kinds["head"])]
        return 0.0 * torch.stack(sums).sum() if sums else torch.zeros((), device=self.device)


def is_logged(trainer: L.Trainer, step: int) -> bool:
    """Whether the values of a step (counted from 0) go to the loggers."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # a part of the trainer sets it
    return every > 0 and (step + 1) % every == 0
