"""Texts of classes drawn towards phrases that describe classes (ExCEL, CVPR 2025, text semantic enrichment).

Shapes: C texts of classes, P phrases, K centres of them, d width of CLIP's space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from torch import Tensor


def phrase_centers(phrases: Tensor, clusters: int, seed: int = 0) -> Tensor:
    """Centres (K, d) by k-means of phrases (P, d), not scaled to length 1; phrases that are no more."""
    if len(phrases) <= clusters:
        return phrases
    centers, _ = kmeans2(phrases.double().numpy(), clusters, iter=100, minit="++", rng=seed)
    return torch.from_numpy(centers).to(phrases)


def enrich(texts: Tensor, centers: Tensor, dropped: float = 0.1) -> Tensor:
    """Texts (C, d) plus what describes them, scaled to length 1.

    What describes a text is the mean of the centres (K, d), weighted by their soft-maxed likeness to it;
    the ``dropped`` share of them that is least alike counts nothing. Without centres texts stay as they are.
    """
    if not len(centers):
        return texts
    likeness = texts @ centers.T  # (C, K)
    kept = len(centers) - int(dropped * len(centers))
    best = likeness.topk(kept, dim=1)
    weights = torch.zeros_like(likeness).scatter_(1, best.indices, best.values.softmax(1))
    return F.normalize(texts + weights @ centers, dim=1)
