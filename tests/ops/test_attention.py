"""Propagation with attention that nothing has taught."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from wsss_afa.ops.affinity import attention_affinity
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.methods.afa.pseudo_labels import PseudoLabeler
from wsss_afa.ops.random_walk import RandomWalkPropagation
from wsss_afa.types import AffinityTokens


def random_tokens(blocks=2, heads=3, size=(2, 3), dim=4):
    generator = torch.Generator().manual_seed(0)
    shape = (2, heads, size[0] * size[1], dim)
    queries, keys = ([torch.randn(shape, generator=generator) * 3 for _ in range(blocks)] for _ in range(2))
    return AffinityTokens(queries, keys, size)


def test_it_is_the_attention_of_the_network_averaged_over_heads():
    """torch's own attention, of the identity as values, is the soft-maxed matrix of every head."""
    tokens = random_tokens()
    identity = torch.eye(6).expand(2, 3, 6, 6)
    matrices = [
        F.scaled_dot_product_attention(query, key, identity)
        for query, key in zip(tokens.queries, tokens.keys, strict=True)
    ]
    mean = torch.cat(matrices, dim=1).mean(dim=1)
    torch.testing.assert_close(mean.sum(-1), torch.ones(2, 6))
    relative = mean / mean.max(dim=-1, keepdim=True).values
    torch.testing.assert_close(attention_affinity(tokens), (relative + relative.transpose(1, 2)) / 2)


def test_it_is_an_affinity():
    affinity = attention_affinity(random_tokens())
    assert torch.equal(affinity, affinity.mT)
    assert affinity.min() >= 0
    assert affinity.max() <= 1
    assert (affinity.amax(-1) >= 0.5).all()  # no token is left without a neighbour
    nothing = AffinityTokens([torch.zeros(1, 2, 6, 4)], [torch.zeros(1, 2, 6, 4)], (2, 3))
    torch.testing.assert_close(attention_affinity(nothing), torch.ones(1, 6, 6))


@pytest.mark.parametrize("raw", [False, True])
def test_the_labeler_asks_the_head_or_reads_the_attention(raw):
    labeler = PseudoLabeler(
        MultiScaleCAM(), PixelAdaptiveRefinement(), RandomWalkPropagation(), raw_attention=raw
    )
    net = torch.nn.Module()
    net.affinity_head = lambda tokens: torch.full((2, 6, 6), 7.0)
    affinity = labeler.affinity(net, random_tokens())
    assert (affinity == 7).all() == (not raw)
