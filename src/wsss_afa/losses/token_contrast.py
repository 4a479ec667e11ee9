"""Contrast of patch tokens and of class tokens (ToCo, CVPR 2023, sections 3.2 and 3.3).

Both are computed in float32 whatever the autocast: projections have no bound, so exponentials overflow.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_afa.losses.counts import count_over_processes

_EPSILON = 1e-4  # one more negative of this weight, as in the released program


def patch_token_contrast(tokens: Tensor, label: Tensor, shared_counts: bool = False) -> Tensor:
    """Patches of one class should be alike, those of two classes not (ToCo, section 3.2).

    With A the absolute cosine of two tokens, ½ (1 − Σ₊ A/(N⁺ + 1)) + ½ Σ₋ A/(N⁻ + 1), over the whole batch.

    Args:
        tokens: map of patch tokens (B, D, h, w).
        label: of pairs of them (B, N, N) int64: 1 same, 0 different, 255 ignored.
        shared_counts: N⁺ and N⁻ are of all processes, see `losses.counts`.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        unit = F.normalize(tokens.float().flatten(2), dim=1, eps=1e-8)  # (B, D, N)
        alike = (unit.mT @ unit).abs()
    same, different = label == 1, label == 0
    counts, processes = count_over_processes(torch.stack([same.sum(), different.sum()]), shared_counts)
    sums = torch.stack([(alike * same).sum(), (alike * different).sum()])
    near, far = (processes * sums / (counts + 1)).unbind()
    return (1 - near + far) / 2


def class_token_contrast(
    student: Tensor, teacher: Tensor, positive: Tensor, temperature: float = 0.5
) -> Tensor:
    """Views of an image should be alike but for those that show background (ToCo, section 3.3).

    With e_ij = exp(p_i · q_j / τ), n_i their sum over the negative views and ε = 1e-4, an image has
    Σ_i [Σ_j −log(e_ij / (e_ij + n_i + ε)) − log(1 / (1 + n_i + ε))] / (2 (N⁺ + ε)) over its positive views j;
    the mean is over images. The second logarithm is that of the released program, not of the paper.

    Args:
        student: projections q of V views (V, B, E).
        teacher: projections p of the 2 global views (2, B, E); they get no gradient.
        positive: (V, B) bool, which views are positive: the global ones and those of objects.
        temperature: τ.
    """
    with torch.autocast(student.device.type, enabled=False):
        logits = torch.einsum("ibe,jbe->ijb", teacher.detach().float(), student.float()) / temperature
    against = logits.masked_fill(positive, -math.inf)
    epsilon = logits.new_full((len(teacher), 1, logits.shape[-1]), math.log(_EPSILON))
    rest = torch.cat([against, epsilon], dim=1).logsumexp(1)  # (2, B): log(n_i + ε)
    pulled = (F.softplus(rest[:, None] - logits) * positive).sum(1)
    per_view = (pulled + F.softplus(rest)) / (positive.sum(0) + _EPSILON)
    return per_view.mean()  # over global views and images
