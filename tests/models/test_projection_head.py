"""The projection head against PyTorch's own weight normalisation, and its average."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from wsss_afa.models.projection_head import ProjectionHead, update_ema


@pytest.fixture
def head():
    torch.manual_seed(0)
    return ProjectionHead(6, hidden=10, bottleneck=4, outputs=7)


def test_it_ends_in_a_layer_of_rows_of_length_one(head):
    tokens = torch.randn(3, 6)
    last = weight_norm(nn.Linear(4, 7, bias=False))
    last.parametrizations.weight.original0.data.fill_(1)
    last.parametrizations.weight.original1.data.copy_(head.directions)
    torch.testing.assert_close(head(tokens), last(F.normalize(head.mlp(tokens), dim=-1)))


def test_a_token_of_zeros_has_a_projection(head):
    head(torch.zeros(1, 6, requires_grad=True)).sum().backward()
    assert head.directions.grad.isfinite().all()


def test_the_average_moves_a_tenth_of_the_way(head):
    teacher = copy.deepcopy(head)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(1)
    before = {name: value.clone() for name, value in teacher.named_parameters()}
    update_ema(teacher, head, 0.9)
    for name, value in teacher.named_parameters():
        torch.testing.assert_close(value, before[name] + 0.1)
