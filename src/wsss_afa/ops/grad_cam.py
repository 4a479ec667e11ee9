"""Softmax-GradCAM of the last block of a frozen CLIP, in closed form (CLIP-ES, arXiv 2212.09506; WeCLIP).

A class's score is the softmax, over the texts of its image, of the scaled likeness of texts and the mean
patch token. GradCAM weighs the block's normed input by the mean gradient of this score. The gradient passes
through attention alone, and only its mean over patches is wanted: sums over rows and columns of attention's
gradient have short forms, so that no matrix (n, n) is built for a class, and no graph is kept.

Shapes beside the legend in `wsss_afa.types`: n = 1 + N tokens, the class token first; D channels,
d = D / heads; E channels of texts; T texts, those of the C classes first, then backgrounds; G − 1 own classes
of an image.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import QuickGELU
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.ops.labels import OwnClasses


class GradCAM(NamedTuple):
    """What the last block yields."""

    cam: Tensor
    """(B, G − 1, h, w) in [0, 1], of own classes; 0 for filling."""
    attention: Tensor
    """(B, n, n), soft-maxed, mean over heads."""
    logits: Tensor
    """(B, T): scaled likeness of the mean patch token to all texts."""


class _Pass(NamedTuple):
    """What the gradient needs of a forward pass."""

    normed: Tensor  # A, (B, n, D)
    query: Tensor  # (B, heads, n, d), as key, value and attended
    key: Tensor
    value: Tensor
    attention: Tensor  # a, (B, heads, n, n)
    attended: Tensor  # a v
    middle: Tensor  # y, behind attention, (B, n, D)
    hidden: Tensor  # u, before the activation, (B, n, 4D)
    output: Tensor  # (B, n, D)


def softmax_grad_cam(
    block: Any, norm: nn.LayerNorm, head: nn.Linear, tokens: Tensor, grid: tuple[int, int], texts: Tensor,
    backgrounds: Tensor, classes: OwnClasses, scale: float = 100.0,
) -> GradCAM:  # fmt: skip
    """Class activation maps of own classes, all at once, without autograd.

    A class's gradient is that of its softmax score but for the factor p (1 − p), which normalisation takes
    away and half precision would lose.

    Args:
        block: the last block, as timm builds it for CLIP.
        norm: the final norm.
        head: from D to E channels.
        tokens: (B, n, D), what the block is given.
        grid: (h, w), N = h · w.
        texts: (C, E), of length 1.
        backgrounds: (T − C, E), of length 1.
        classes: own classes of the images.
        scale: s, exponential of CLIP's logit scale.

    Raises:
        UserError: the block is of another kind, or there is no text of background, without which the only
            class of an image has nothing to be told from.
    """
    check_block(block)
    if not len(backgrounds):
        raise UserError("there are no texts of backgrounds, need one at least: name what surrounds objects")
    passed, rows = _forward(block, tokens), torch.cat([texts, backgrounds])
    feature = head(norm(passed.output)[:, 1:].mean(1))  # (B, E)
    length = feature.norm(dim=-1, keepdim=True)
    direction = feature / length
    logits = scale * direction @ rows.T  # (B, T)
    pull = scale * _contrasts(logits, classes, len(texts)) @ rows  # (B, G − 1, E)
    direction = direction[:, None]
    pull = (pull - direction * (pull * direction).sum(-1, keepdim=True)) / length[:, None]
    pulled = pull @ head.weight / (tokens.shape[1] - 1)  # (B, G − 1, D), the same for every patch
    weights = _mean_gradient(block, passed, _before_projection(block, norm, passed, pulled))
    maps = (weights @ passed.normed[:, 1:].mT).relu()  # (B, G − 1, N)
    maps = normalize_maps(normalize_maps(maps.view(*maps.shape[:2], *grid)))
    cam = maps * classes.present[:, 1:, None, None]
    return GradCAM(cam, passed.attention.mean(1), logits)


def normalize_maps(maps: Tensor) -> Tensor:
    """Subtract the minimum of each map (B, G, h, w), and divide by its maximum + 1e-7."""
    maps = maps - maps.amin((-2, -1), keepdim=True)
    return maps / (maps.amax((-2, -1), keepdim=True) + 1e-7)


def check_block(block: Any) -> None:
    """Raise a UserError for a block of another kind than CLIP's."""
    extras = (block.ls1, block.ls2, block.attn.q_norm, block.attn.k_norm, block.attn.norm, block.mlp.norm)
    plain = all(isinstance(each, nn.Identity) for each in extras)
    if not plain or not isinstance(block.mlp.act, QuickGELU | nn.GELU):
        raise UserError("the tower's blocks are not those of CLIP: choose one, such as backbone=clip_base")


def _forward(block: Any, tokens: Tensor) -> _Pass:
    normed = block.norm1(tokens)
    heads = block.attn.qkv(normed).unflatten(2, (3, block.attn.num_heads, -1))  # (B, n, 3, heads, d)
    query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
    attention = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
    attended = attention @ value
    middle = tokens + block.attn.proj(attended.transpose(1, 2).flatten(2))
    hidden = block.mlp.fc1(block.norm2(middle))
    output = middle + block.mlp.fc2(block.mlp.act(hidden))
    return _Pass(normed, query, key, value, attention, attended, middle, hidden, output)


def _contrasts(logits: Tensor, classes: OwnClasses, num_classes: int) -> Tensor:
    """[k = c] − softmax over k ≠ c of each own class c, (B, G − 1, T); k are own classes and backgrounds."""
    columns = torch.arange(logits.shape[1], device=logits.device)
    of_class = classes.channels[:, :, None] == columns  # (B, G − 1, T)
    present = classes.present[:, 1:, None]
    allowed = (of_class & present).any(1) | (columns >= num_classes)  # (B, T)
    rivals = allowed[:, None] & ~of_class
    others = logits[:, None].masked_fill(~rivals, float("-inf")).softmax(-1)
    return of_class.to(others) - others


def _before_projection(block: Any, norm: nn.LayerNorm, passed: _Pass, pulled: Tensor) -> Tensor:
    """Gradient behind each head's attention, (B, G − 1, heads, n, d), of one at each normed patch token."""
    pulled = pulled[:, :, None].expand(-1, -1, passed.output.shape[1] - 1, -1)  # (B, G − 1, N, D)
    gradient = F.pad(_through_norm(norm, passed.output[:, None, 1:], pulled), (0, 0, 1, 0))
    inner = gradient @ block.mlp.fc2.weight * _slope(block.mlp.act, passed.hidden)[:, None]
    gradient = gradient + _through_norm(block.norm2, passed.middle[:, None], inner @ block.mlp.fc1.weight)
    split: Tensor = (gradient @ block.attn.proj.weight).unflatten(-1, (block.attn.num_heads, -1))
    return split.transpose(-2, -3)


def _mean_gradient(block: Any, passed: _Pass, gradient: Tensor) -> Tensor:
    """Mean over patches of the gradient at the block's normed input, (B, G − 1, D).

    With S the logits of attention, i its rows and j its columns: dS = a ⊙ (do vᵀ − do · o). Patches' rows of
    dS kᵀ sum up to the columns' sums times k. Rows of dS sum to 0, so that of its columns the class token's
    alone is needed for keys; rows of a sum to 1, likewise for values. The class token's own row has no
    gradient.
    """
    query, key, value, attention, attended = (each[:, None] for each in passed[1:6])  # (B, 1, heads, …)
    own = (gradient * attended).sum(-1, keepdim=True)  # do · o, (B, G − 1, heads, n, 1)
    seen = attention.mT @ torch.cat([gradient, own], -1)  # of each column, (B, G − 1, heads, n, d + 1)
    columns = (seen[..., :-1] * value).sum(-1, keepdim=True) - seen[..., -1:]
    to_class = attention[..., :1]  # (B, 1, heads, n, 1)
    class_column = to_class * ((gradient * value[..., :1, :]).sum(-1, keepdim=True) - own)
    root = math.sqrt(query.shape[-1])
    means = [(columns * key).sum(-2) / root, -(class_column * query).sum(-2) / root]
    means.append(((1 - to_class) * gradient).sum(-2))
    joined = torch.cat([each.flatten(-2) for each in means], -1)  # (B, G − 1, 3D)
    mean: Tensor = joined @ block.attn.qkv.weight / (query.shape[-2] - 1)
    return mean


def _through_norm(norm: nn.LayerNorm, inputs: Tensor, gradient: Tensor) -> Tensor:
    """Gradient before a LayerNorm of its gradient (…, D) behind it."""
    centred = inputs - inputs.mean(-1, keepdim=True)
    inverse = (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    unit, gradient = centred * inverse, gradient * norm.weight
    along = (gradient * unit).mean(-1, keepdim=True)
    return (gradient - gradient.mean(-1, keepdim=True) - unit * along) * inverse


def _slope(activation: nn.Module, inputs: Tensor) -> Tensor:
    """Derivative of QuickGELU, x σ(1.702 x), or of GELU, x Φ(x)."""
    if isinstance(activation, QuickGELU):
        gate = (1.702 * inputs).sigmoid()
        return gate * (1 + 1.702 * inputs * (1 - gate))
    density = (-0.5 * inputs.square()).exp() / math.sqrt(2 * math.pi)
    return 0.5 * (1 + (inputs / math.sqrt(2)).erf()) + inputs * density
