"""Class maps from likeness of patches to texts less what all texts share (ExCEL, CVPR 2025).

Shapes beside the legend in `wsss_afa.types`: n = 1 + N tokens, the class token first; T texts, those of the C
classes first; d width of the space.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SHARPNESS = 2.0  # of the weights of texts


def patch_text_maps(features: Tensor, texts: Tensor, num_classes: int) -> Tensor:
    """Maps (B, C, N) in [0, 1] of features (B, n, d) and texts (T, d); all texts are at least two.

    A text weighs w, its soft-maxed likeness to the class token relative to the mean text; what weighted texts
    have in common, their mean, is taken from each. Maps are the likeness of patches to what is left of a
    class's text, each stretched over all tokens, the class token included.
    """
    weights = (_SHARPNESS * features[:, 0] @ texts.T).softmax(-1) * len(texts)  # (B, T), mean 1
    weighted = weights[:, :, None] * texts  # (B, T, d)
    own = (weighted - weighted.mean(1, keepdim=True))[:, :num_classes]
    likeness = own @ features.mT  # (B, C, n)
    low, high = likeness.amin(2, keepdim=True), likeness.amax(2, keepdim=True)
    return ((likeness - low) / (high - low).clamp(min=1e-7))[:, :, 1:]


def normalize_tokens(features: Tensor) -> Tensor:
    """Features (B, n, d) over their length along the tokens, each channel for itself, as in CLIP Surgery."""
    length: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / length.clamp(min=1e-12)
