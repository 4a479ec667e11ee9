"""AFANet: a Transformer with a classifier, an affinity head and a segmentation decoder (AFA, figure 2)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.methods.afa.classifiers import make_classifier
from wsss_afa.models.decoders import make_decoder
from wsss_afa.types import Activation, AffinityTokens, BackboneOutput, FeatureBackbone


class AFAOutput(NamedTuple):
    """What one training pass of the network yields."""

    class_logits: Tensor  # (B, C)
    seg_logits: Tensor  # (B, K, H/4, W/4)
    affinity_logits: Tensor  # (B, N, N) symmetric
    activation: Activation  # raw map and tokens of this pass

    @property
    def affinity(self) -> Tensor:
        """(B, N, N) in [0, 1], symmetric."""
        return self.affinity_logits.sigmoid()


class AffinityHead(nn.Module):
    """Affinity from attention, A = sigmoid(Σ_m w_m (S_m + S_mᵀ) + b) (AFA, section 3.3).

    S_m = q_m k_mᵀ are the raw logits of M attention heads. The weighted sum over heads commutes with the
    product, so it is *one* product of the concatenated w_m q_m with the concatenated k_m, and no per-head
    (N, N) map is ever stored. Computed in float32 whatever the autocast: raw logits are large.

    Some encoders have logits far outside the sigmoid's slope. ``gain`` multiplies the initial weights, which
    brings them back at the beginning. ``scale`` multiplies the logits S_m themselves, always: a step of
    AdamW, whose length does not depend on the gradient's, then changes the affinity by so much less.
    """

    def __init__(self, num_maps: int, gain: float = 1.0, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_maps))
        self.bias = nn.Parameter(torch.empty(1))
        # As a 1×1 convolution M → 1: kaiming normal with a = √5 over a fan-out of 1; the bias as torch's own.
        nn.init.normal_(self.weight, std=gain * math.sqrt(2 / (1 + 5)))
        nn.init.uniform_(self.bias, -gain / math.sqrt(num_maps), gain / math.sqrt(num_maps))

    def forward(self, tokens: AffinityTokens) -> Tensor:
        """Return the affinity (B, N, N) in [0, 1], symmetric."""
        return self.logits(tokens).sigmoid()

    def logits(self, tokens: AffinityTokens) -> Tensor:
        """The affinity (B, N, N) before the sigmoid."""
        with torch.autocast(tokens.queries[0].device.type, enabled=False):
            queries = torch.cat(tokens.queries, dim=1).float()  # (B, M, N, d)
            keys = torch.cat(tokens.keys, dim=1).float()
            queries = (
                (queries * (self.scale * self.weight)[:, None, None]).transpose(1, 2).flatten(2)
            )  # (B, N, M·d)
            logits = queries @ keys.transpose(1, 2).flatten(2).mT  # (B, N, N)
            return logits + logits.mT + self.bias


class AFANet(nn.Module):
    """Backbone, classifier of ``num_classes`` (C), affinity head, and decoder of these and background.

    Args:
        backbone: yields four feature maps and the queries and keys of its last blocks.
        decoder_dim: width of the decoder.
        pool_top_k: positions averaged by the classification pooling. 1 is global max pooling (the paper's
            table 1 finds it best), a number below 1 a share of them, None is global average pooling.
        affinity_gain: multiplies the initial weights of the affinity head.
        affinity_scale: multiplies the attention logits that it weighs.
        classifier: ``pooled`` classifies pooled features, ``positions`` standardised ones of each position:
            see `classifiers`.
        classifier_dropout: share of the classifier's features dropped in training.
        decoder: ``mlp`` or ``large_fov``, see `models.decoders`.
    """

    def __init__(
        self,
        backbone: FeatureBackbone, num_classes: int, decoder_dim: int = 256, pool_top_k: float | None = 1,
        affinity_gain: float = 1.0, affinity_scale: float = 1.0, classifier: str = "pooled",
        classifier_dropout: float = 0.0, decoder: str = "mlp",
    ):  # fmt: skip
        super().__init__()
        if num_classes < 1:
            raise UserError(f"num_classes={num_classes}: at least one foreground class is needed")
        if backbone.num_affinity_maps < 1:
            kind = type(backbone).__name__
            raise UserError(f"{kind} hands on no queries and keys to learn affinity from: use backbone=mit")
        self.num_classes, self.backbone = num_classes, backbone
        self.classifier = make_classifier(
            classifier, backbone.channels[-1], num_classes, pool_top_k, classifier_dropout
        )
        self.affinity_head = AffinityHead(backbone.num_affinity_maps, affinity_gain, affinity_scale)
        self.decoder = make_decoder(decoder, backbone.channels, num_classes + 1, decoder_dim)

    def forward(self, image: Tensor) -> AFAOutput:
        """Everything that training needs, from a normalised image (B, 3, H, W)."""
        encoded = self.backbone(image)
        activation = self.activation(encoded)
        tokens = activation.tokens._replace(queries=encoded.queries, keys=encoded.keys)  # with their gradient
        return AFAOutput(
            class_logits=self.class_logits(encoded.features[-1]),
            seg_logits=self.decoder(encoded.features),
            affinity_logits=self.affinity_head.logits(tokens),
            activation=activation,
        )

    def classify(self, image: Tensor) -> Tensor:
        """Class logits (B, C) alone, for the steps that train nothing else."""
        return self.class_logits(self.backbone(image).features[-1])

    def segment(self, image: Tensor) -> Tensor:
        """Segmentation logits (B, K, H/4, W/4) alone."""
        logits: Tensor = self.decoder(self.backbone(image).features)
        return logits

    @torch.no_grad()
    def activate(self, image: Tensor) -> Activation:
        """Raw class activation map (B, C, h, w) and affinity tokens, without gradient or decoder."""
        return self.activation(self.backbone(image))

    def activation(self, encoded: BackboneOutput) -> Activation:
        """Raw class activation map (B, C, h, w) and affinity tokens of what the backbone made, detached."""
        last = encoded.features[-1].detach()
        queries, keys = ([each.detach() for each in kind] for kind in (encoded.queries, encoded.keys))
        tokens = AffinityTokens(queries, keys, grid=(last.shape[-2], last.shape[-1]))
        return Activation(cam=self.classifier.activate(last), tokens=tokens)

    def class_logits(self, last: Tensor) -> Tensor:
        """Class logits (B, C) of the last feature map (B, D, h, w)."""
        logits: Tensor = self.classifier(last)
        return logits
