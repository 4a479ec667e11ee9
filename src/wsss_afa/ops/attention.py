"""Affinity read off attention as it is, which nothing has taught (AFA, table 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_afa.types import AffinityTokens


@torch.no_grad()
def attention_affinity(tokens: AffinityTokens) -> Tensor:
    """Mean over heads of the scaled, soft-maxed attention, as symmetric values that can be propagated with.

    A row of attention sums to 1, which leaves hundreds of tokens next to nothing each. So each row is taken
    relative to its largest value before it is averaged with the column.

    Args:
        tokens: queries and keys of the last blocks; one head's (N, N) matrix is made at a time.

    Returns:
        (B, N, N) in [0, 1], symmetric, float32.
    """
    total: Tensor | None = None
    for queries, keys in zip(tokens.queries, tokens.keys, strict=True):
        for query, key in zip(queries.float().unbind(1), keys.float().unbind(1), strict=True):  # (B, N, d)
            attention = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1)  # (B, N, N)
            total = attention if total is None else total.add_(attention)
    assert total is not None
    relative = total / total.amax(dim=-1, keepdim=True)
    return (relative + relative.mT) / 2
