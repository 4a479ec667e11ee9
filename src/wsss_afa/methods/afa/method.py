"""AFA: affinity learned from attention corrects the labels that segmentation is trained on (CVPR 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from wsss_afa.errors import UserError
from wsss_afa.losses.affinity import AffinityLoss
from wsss_afa.losses.classification import ClassificationLoss
from wsss_afa.losses.dense_energy import DenseEnergyLoss
from wsss_afa.losses.segmentation import balanced_cross_entropy
from wsss_afa.methods.afa.attention_points import look
from wsss_afa.methods.afa.network import AFANet, AFAOutput
from wsss_afa.methods.afa.pseudo_labels import PseudoLabeler
from wsss_afa.methods.base import Method
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.ops.images import to_rgb
from wsss_afa.ops.metrics import describe_labels
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.ops.random_walk import RandomWalkPropagation
from wsss_afa.types import Batch, Evaluation, FeatureBackbone, Interpretation, PseudoLabels


class AFA(Method):
    """End-to-end weakly supervised segmentation (AFA, figure 2).

        image ─► backbone ─► classifier ─► L_cls
                    ├──────► affinity head ─► L_aff
                    └──────► decoder ─► L_seg (+ L_reg)
        CAM ─► PAR, propagation along the affinity ─► labels of L_aff and L_seg

    L_seg begins with the phase ``segmentation``, and so does L_aff; labels are propagated from the phase
    ``propagation`` on (AFA, equation 12 and section 4.1).

    Args:
        backbone: yields feature maps and the queries and keys of its last blocks.
        num_classes: C, foreground classes.
        cam: multi-scale activation maps.
        refine: pixel-adaptive refinement.
        propagate: random walk along the affinity.
        classification: L_cls.
        affinity: L_aff.
        dense_energy: L_reg, computed where its weight is not 0.
        phases: first step of ``classification``, ``segmentation`` and ``propagation``, counted from 0.
        weights: factor of ``cls``, ``seg``, ``aff`` and ``reg``.
        labels: how far labels are taken: ``cam``, ``par`` or ``afa``; see `PseudoLabeler`, as for ``low`` and
            all that follow but the last.
        decoder_dim: see `AFANet`, as for ``pool_top_k``, ``affinity_gain``, ``affinity_scale``,
            ``classifier``, ``classifier_dropout`` and ``decoder``.
        shared_counts: whether L_seg divides by the pixels of all processes; see `losses.counts`.
    """

    sources: tuple[str, ...] = ("cam", "par", "affinity")
    export_heads: Mapping[str, Sequence[str]] = {
        "probability": ["decoder"], "cam": ["classifier"], "score": ["classifier"],
    }  # fmt: skip
    net: AFANet

    def __init__(
        self,
        backbone: FeatureBackbone, num_classes: int,
        cam: MultiScaleCAM, refine: PixelAdaptiveRefinement, propagate: RandomWalkPropagation,
        classification: ClassificationLoss, affinity: AffinityLoss, dense_energy: DenseEnergyLoss,
        phases: Mapping[str, int], weights: Mapping[str, float], labels: str = "afa",
        decoder_dim: int = 256, pool_top_k: float | None = 1, affinity_gain: float = 1.0,
        affinity_scale: float = 1.0, classifier: str = "pooled", classifier_dropout: float = 0.0,
        decoder: str = "mlp",
        low: float = 0.35, high: float = 0.55, eval_threshold: float = 0.45, affinity_radius: int = 8,
        affinity_from_propagated: bool = False, reuse_training_pass: bool = True, downscale: int = 2,
        raw_attention: bool = False, normalize_propagated: bool = False, shared_counts: bool = True,
    ):  # fmt: skip
        net = AFANet(
            backbone, num_classes, decoder_dim, pool_top_k, affinity_gain, affinity_scale,
            classifier, classifier_dropout, decoder,
        )  # fmt: skip
        super().__init__(net, num_classes, phases, weights)
        if [each.name for each in self.phases] != ["classification", "segmentation", "propagation"]:
            raise UserError(f"method.phases={phases}: need classification ≤ segmentation ≤ propagation")
        self.cam, self.one_scale_cam = cam, MultiScaleCAM(scales=(1.0,), mirror=False)
        self.labeler = PseudoLabeler(
            cam, refine, propagate, labels, low, high, eval_threshold, affinity_radius,
            affinity_from_propagated, reuse_training_pass, downscale, raw_attention, normalize_propagated,
            self.mean, self.std,
        )  # fmt: skip
        self.classification, self.affinity, self.dense_energy = classification, affinity, dense_energy
        self.shared_counts = shared_counts
        self.backgrounds = self.labeler.refined.backgrounds
        self.scored = ("cam", "affinity") if labels == "afa" else ("cam",)
        if labels != "afa":
            self.phases = tuple(phase for phase in self.phases if phase.name != "propagation")
            self.sources = ("cam", "par")  # nothing has taught affinity

    @property
    def segmentation_step(self) -> int:
        """First step of the second phase: the first has no other loss than the classification's."""
        return self.phases[1].first

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One pass and the losses of this phase; later parts are not computed before their phase."""
        phase = self.phase(step)
        if phase == "classification":
            return {"cls": self.classification(self.net.classify(batch["image"]), batch["class_label"])}
        output: AFAOutput = self.net(batch["image"])
        labels: PseudoLabels = self.labeler(self.net, batch, output, phase == "propagation")
        assert labels.segmentation is not None
        terms = {
            "cls": self.classification(output.class_logits, batch["class_label"]),
            "seg": balanced_cross_entropy(output.seg_logits, labels.segmentation, self.shared_counts),
        }
        if self.weights["reg"]:
            rgb = to_rgb(batch["image"], self.mean, self.std)
            terms["reg"] = self.dense_energy(output.seg_logits, rgb, labels.segmentation, batch["valid_box"])
        if labels.affinity is not None:
            terms["aff"] = self.affinity(output.affinity_logits, labels.affinity)
        if self.is_logged():
            shares = describe_labels(labels, None if labels.affinity is None else output.affinity)
            self.log_dict({f"train/{name}": share for name, share in shares.items()})
        return terms

    def answer(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Class and segmentation logits of one pass of the backbone."""
        features = self.net.backbone(image).features
        return self.net.class_logits(features[-1]), self.net.decoder(features)

    def evaluate(self, batch: Batch) -> Evaluation:
        """One pass; the activation map and the propagated map are labelled, too."""
        output: AFAOutput = self.net(batch["image"])
        labels = self.labeler.evaluate(self.net, batch, output)
        return Evaluation(output.class_logits, output.seg_logits, labels)

    def maps(self, batch: Batch, source: str, backgrounds: Sequence[float]) -> list[Tensor]:
        """See `PseudoLabeler.maps`."""
        return self.labeler.maps(self.net, batch, source, backgrounds)

    def interpret(self, batch: Batch) -> Interpretation:
        """Map and labels, and for the point of each object what it attends to (AFA, figure 3)."""
        layers, walk = self.labeler.interpret(self.net, batch)
        points = [] if walk is None else [look(walk, index) for index in range(len(batch["image"]))]
        return Interpretation(layers, points)

    def trace(self, image: Tensor, outputs: Sequence[str]) -> dict[str, Tensor]:
        """Probabilities, activation maps of one scale, and class scores, of one pass of the backbone."""
        encoded = self.net.backbone(image)
        found: dict[str, Tensor] = {}
        if "probability" in outputs:
            logits = self.net.decoder(encoded.features)
            found["probability"] = self.protocol.probabilities(self, image, logits)
        if "cam" in outputs:
            found["cam"] = self.one_scale_cam(self.net, image, self.net.activation(encoded)).cam
            found["score"] = self.net.class_logits(encoded.features[-1]).sigmoid()
        return found
