"""Losses between class tokens and patch tokens, which keep localization maps clean (MoRe, section 3.3).

Shapes: C class tokens and N patch tokens of D channels. All are computed in float32 whatever the autocast:
patches are not normalised, and their exponentials overflow.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_afa.losses.counts import count_over_processes

_EPSILON = 1e-4  # one more patch of this weight, as in the released program


def class_separation(classes: Tensor, temperature: float = 0.07) -> Tensor:
    """Class tokens should differ: cross-entropy of their cosines against the diagonal.

    Args:
        classes: (B, C, D), of all classes, whether an image has them or not.
        temperature: of the cosines.
    """
    with torch.autocast(classes.device.type, enabled=False):
        unit = F.normalize(classes.float(), dim=-1)
        logits = (unit @ unit.mT / temperature).flatten(0, 1)  # (B·C, C)
        target = torch.arange(classes.shape[1], device=classes.device).repeat(len(classes))
        return F.cross_entropy(logits, target)


def certain_region_loss(classes: Tensor, patches: Tensor, label: Tensor, temperature: float = 0.5) -> Tensor:
    """A class token should point to the patches of its class; patches get no gradient.

    With a_i the product of the normalised class token and patch i over τ, a class has the mean over its own
    patches of −log(exp a_i / (Σ_j exp a_j + 1e-4)). Classes are added, images averaged.

    Args:
        classes: (B, C, D).
        patches: map (B, D, h, w).
        label: of the patches, (B, h, w) int64 in [0, C] or 255.
        temperature: τ.
    """
    with torch.autocast(classes.device.type, enabled=False):
        unit = F.normalize(classes.float(), dim=-1, eps=1e-8)
        logits = unit @ patches.detach().float().flatten(2) / temperature  # (B, C, N)
        epsilon = logits.new_full((*logits.shape[:2], 1), math.log(_EPSILON))
        missed = torch.cat([logits, epsilon], dim=-1).logsumexp(-1, keepdim=True) - logits
    own = label.flatten(1)[:, None] == torch.arange(1, classes.shape[1] + 1, device=label.device)[:, None]
    per_class = torch.where(own, missed, 0.0).sum(-1) / (own.sum(-1) + _EPSILON)
    return per_class.sum(1).mean()


def uncertain_region_loss(
    classes: Tensor, patches: Tensor, tags: Tensor, chosen: Tensor, shared_counts: bool = False
) -> Tensor:
    """Uncertain patches should be like the classes that the image has; class tokens get no gradient.

    With s_c the absolute cosine of a patch and class c, of which the image has n, a patch has
    ½ (1 − Σ₊ s_c / (n + 1)) + ½ Σ₋ s_c / (C − n + 1). The mean is over all chosen patches, and 0 of none.

    Args:
        classes: (B, C, D).
        patches: map (B, D, h, w).
        tags: (B, C) multi-hot.
        chosen: flat indices (B, m) int64 of patches; −1 is filling.
        shared_counts: the mean is over the patches of all processes, see `losses.counts`.
    """
    index = chosen.clamp(min=0)[:, None].expand(-1, patches.shape[1], -1)
    with torch.autocast(classes.device.type, enabled=False):
        drawn = F.normalize(patches.float().flatten(2).gather(2, index), dim=1, eps=1e-8)  # (B, D, m)
        unit = F.normalize(classes.detach().float(), dim=-1, eps=1e-8)
        alike = (unit @ drawn).abs()  # (B, C, m)
        own = tags[:, :, None].float()
        near = (alike * own).sum(1) / (own.sum(1) + 1)
        far = (alike * (1 - own)).sum(1) / ((1 - own).sum(1) + 1)
        counted = chosen >= 0
        total = torch.where(counted, (1 - near + far) / 2, 0.0).sum()
    count, processes = count_over_processes(counted.sum(), shared_counts)
    return processes * total / count.clamp(min=1)
