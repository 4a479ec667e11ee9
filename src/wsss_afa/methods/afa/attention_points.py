"""What points of objects look at: attention, learned affinity, the map carried along it (AFA, figure 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wsss_afa.ops.cam import normalize_cam
from wsss_afa.ops.images import resize
from wsss_afa.ops.labels import OwnClasses
from wsss_afa.types import Activation, AffinityTokens, Point


class Walk(NamedTuple):
    """One propagation of a batch, before refinement."""

    activation: Activation
    """What is propagated, (B, C, H, W) in [0, 1], and the tokens that affinity is made of."""
    affinity: Tensor  # (B, N, N) in [0, 1]
    scores: Tensor  # (B, G, h, w), of background and the own classes, propagated
    classes: OwnClasses


def attention_of(tokens: AffinityTokens, index: int, token: int) -> Tensor:
    """What a token in [0, N) of an image of the batch attends to, (h, w) with a sum of 1.

    It is the soft-max of the token's scaled logits, averaged over heads and blocks.
    """
    rows = []
    for queries, keys in zip(tokens.queries, tokens.keys, strict=True):
        query = queries[index, :, token, :, None].float() * queries.shape[-1] ** -0.5  # (heads, d, 1)
        rows.append((keys[index].float() @ query).squeeze(-1).softmax(-1))  # (heads, N)
    return torch.cat(rows).mean(0).view(tokens.grid)


def look(walk: Walk, index: int) -> list[Point]:
    """For every class of an image the point where its activation is highest.

    Attention and the propagated map are stretched from their lowest to their highest value; affinity is shown
    as it is, beyond the radius of propagation as well.
    """
    positions = walk.classes.present[index].nonzero().flatten().tolist()[1:]  # without background
    return [_look(walk, index, position) for position in positions]


def _look(walk: Walk, index: int, position: int) -> Point:
    channel = int(walk.classes.ids[index, position]) - 1
    cam, (h, w) = walk.activation.cam[index, channel], walk.activation.tokens.grid
    height, width = cam.shape
    y, x = divmod(int(cam.argmax()), width)
    token = (y * h // height) * w + x * w // width
    attention = attention_of(walk.activation.tokens, index, token)
    propagated = walk.scores[index, position].float()
    stretched = normalize_cam(torch.stack([attention / attention.amax(), propagated])[None])[0]
    on_grid = [stretched[0], walk.affinity[index, token].view(h, w).float(), stretched[1]]
    full = resize(torch.stack(on_grid)[None], (height, width))
    titles = ("attention", "affinity", "propagated CAM")
    return Point(channel, (y, x), {"CAM": cam} | dict(zip(titles, full[0], strict=True)))
