"""Class maps from likeness of patches and texts in CLIP's space, without what all texts share (ExCEL, CVPR 2025).

Shapes beside the legend in `wsss_afa.types`: n = 1 + N tokens, the class token first; T texts, those of the C
classes first; d width of the space.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SHARPNESS = 2.0  # of the weights of texts


def patch_text_maps(features: Tensor, texts: Tensor, num_classes: int) -> Tensor:
    """Maps (B, C, N) in [0, 1] of features (B, n, d) and texts (T, d); all texts are at least two.

    A text weighs w, its soft-maxed likeness to the class token relative to the mean text; from a patch's
    weighted likenesses the mean over all texts is taken. Each map is stretched over all tokens, the class
    token included.
    """
    weights = (_SHARPNESS * features[:, 0] @ texts.T).softmax(-1) * len(texts)  # (B, T), mean 1
    shared = weights @ texts / len(texts)  # (B, d)
    likeness = (features @ texts.T) * weights[:, None] - features @ shared[:, :, None]  # (B, n, T)
    likeness = likeness[..., :num_classes]
    low, high = likeness.amin(1, keepdim=True), likeness.amax(1, keepdim=True)
    return ((likeness - low) / (high - low).clamp(min=1e-7))[:, 1:].mT


def normalize_tokens(features: Tensor) -> Tensor:
    """Features (B, n, d) over their length along the tokens, each channel for itself, as in CLIP Surgery."""
    return features / torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp(min=1e-12)
