"""AFA as a LightningModule: build, step, log, optimise. Mathematics lives in ``ops`` and ``losses``."""

from __future__ import annotations

from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from wsss_afa.methods.recipe import RECIPE_KEY, Recipe
from wsss_afa.methods.afa.loss import AFALoss
from wsss_afa.losses.segmentation import SegmentationLoss
from wsss_afa.metrics import SegmentationMetrics, TagAveragePrecision, describe_labels
from wsss_afa.methods.afa.network import AFANet, parameter_kinds
from wsss_afa.models.segmentation_net import SegmentationNet
from wsss_afa.methods.supervised import GivenLabels
from wsss_afa.ops.multi_scale import MultiScaleSegmentation
from wsss_afa.methods.afa.pseudo_labels import PseudoLabeler
from wsss_afa.ops.images import to_rgb
from wsss_afa.methods.optim import AdamWPoly
from wsss_afa.types import IGNORE_INDEX, AFAOutput, Batch, PseudoLabels


class AFALightningModule(L.LightningModule):
    """End-to-end weakly supervised segmentation (AFA, figure 2), or training on labels that are given.

    Args:
        net: the network.
        labeler: makes pseudo labels, and knows from which step on; or hands on those that batches carry.
        loss: sums the terms; not needed for evaluation.
        optim: recipe of optimiser and schedule; not needed for evaluation.
        recipe: goes into checkpoints, so that they can be used without the configuration.
        protocol: how an evaluation segments; None passes the image once, at its own size.
    """

    def __init__(
        self,
        net: AFANet | SegmentationNet,
        labeler: PseudoLabeler | GivenLabels,
        recipe: Recipe,
        loss: AFALoss | SegmentationLoss | None = None,
        optim: AdamWPoly | None = None,
        protocol: MultiScaleSegmentation | None = None,
    ):
        super().__init__()
        self.net = net
        self.labeler = labeler
        self.recipe = recipe
        self.loss = loss
        self.optim = optim
        self.protocol = protocol or MultiScaleSegmentation(mean=recipe["mean"], std=recipe["std"])
        num_outputs = net.num_classes + 1
        sources = ["seg", *labeler.sources] + ["crf"] * (self.protocol.crf is not None)
        self._scores = nn.ModuleDict({source: SegmentationMetrics(num_outputs) for source in sources})
        self.average_precision = TagAveragePrecision()

    @property
    def scores(self) -> dict[str, SegmentationMetrics]:
        """Running scores of segmentation (``seg``) and, if any, activation map (``cam``), propagated map
        (``affinity``) and segmentation after the CRF (``crf``).
        """
        return cast(dict[str, SegmentationMetrics], dict(self._scores.items()))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One pass and the losses of this phase; later parts are not computed before their phase."""
        assert self.loss is not None
        if not self.labeler.needed(self.global_step):
            assert isinstance(self.loss, AFALoss), "labels that are given are needed from the start"
            loss = self.loss.classification(self.net.classify(batch["image"]), batch["class_label"])
            self._log_terms({"cls": loss, "total": loss})
            return loss + self._idle()
        output: AFAOutput = self.net(batch["image"])
        labels: PseudoLabels = self.labeler(self.net, batch, output, self.global_step)
        rgb = None
        if self.loss.dense_energy is not None:
            rgb = to_rgb(batch["image"], self.labeler.mean, self.labeler.std)
        terms: dict[str, Tensor] = self.loss(output, batch, labels, rgb)
        self._log_terms(terms)
        self._log_labels(labels, output)
        return terms["total"] + self._idle()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Score segmentation, activation map and propagated map; return their labels (B, H, W).

        Without a mask the classification alone is scored, and the segmentation's labels alone returned.
        """
        output: AFAOutput = self.net(batch["image"])
        probabilities = self.protocol.probabilities(self.net, batch["image"], output.seg_logits)
        labels = {"seg": probabilities.max(1).indices}
        if self.protocol.crf is not None:
            labels["crf"] = self.protocol.refine(batch["image"], probabilities).max(1).indices
        if "mask" in batch and isinstance(self.labeler, PseudoLabeler):
            assert isinstance(self.net, AFANet)
            labels |= self.labeler.evaluate(self.net, batch, output)
        mask = batch.get("mask", torch.full_like(labels["seg"], IGNORE_INDEX))
        for source, label in labels.items():
            self.scores[source].update(label, mask)
        self.average_precision.update(output.class_logits.float(), batch["class_label"].int())
        return labels

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the whole set, reduced over processes by the metrics themselves."""
        for source, metric in self.scores.items() if self._has_truth() else ():
            self.log(f"val/miou_{source}", metric.compute()["miou"].float(), prog_bar=source == "seg")
        self.log("val/map_cls", self.average_precision.compute()["map"])

    def class_table(self) -> dict[str, list[float]]:
        """Per-class IoU in percent by source, background first; NaN where the truth has no pixel.

        Empty where no image had a mask.
        """
        scores = self.scores if self._has_truth() else {}
        return {name: (100 * metric.compute()["iou"]).tolist() for name, metric in scores.items()}

    def _has_truth(self) -> bool:
        """Whether any image of any process had a mask."""
        return bool(self.scores["seg"].compute()["miou"].isfinite())

    def on_validation_epoch_start(self) -> None:
        """Start counting anew; the last counts stay readable until then."""
        for metric in (*self.scores.values(), self.average_precision):
            metric.reset()

    def _idle(self) -> Tensor:
        """Zero, with a gradient of zero for parameters that a phase leaves out.

        The released program multiplies their losses by 0: AdamW counts the step and decays the weight. And
        processes that average gradients need one for every parameter.
        """
        kinds = parameter_kinds(self.net)
        heads = (*kinds["decoder"], *kinds["head"])
        return 0.0 * torch.stack([parameter.sum() for parameter in heads]).sum()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW and a schedule that advances with every optimiser step."""
        assert self.optim is not None
        optimizer, scheduler = self.optim(parameter_kinds(self.net))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the network from the file alone."""
        checkpoint[RECIPE_KEY] = dict(self.recipe)

    def _log_terms(self, terms: dict[str, Tensor]) -> None:
        named = {f"train/loss_{name}": value.detach() for name, value in terms.items() if name != "total"}
        self.log_dict(named)
        self.log("train/loss", terms["total"].detach(), prog_bar=True)
        groups = self.trainer.optimizers[0].param_groups
        self.log("lr", groups[0]["lr"], prog_bar=True, logger=False)
        if is_logged(self.trainer, self.global_step):
            self.log_dict({f"lr/{group['name']}": group["lr"] for group in groups})

    def _log_labels(self, labels: PseudoLabels, output: AFAOutput) -> None:
        if is_logged(self.trainer, self.global_step):
            shares = describe_labels(labels, None if labels.affinity is None else output.affinity)
            self.log_dict({f"train/{name}": share for name, share in shares.items()})


def is_logged(trainer: L.Trainer, step: int) -> bool:
    """Whether the values of a step (counted from 0) go to the loggers."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # a part of the trainer sets it
    return every > 0 and (step + 1) % every == 0
