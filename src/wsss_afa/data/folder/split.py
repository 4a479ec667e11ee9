"""Validation images that show every class about as often as the rest (Sechidis et al., ECML PKDD 2011)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def stratified_split(
    labels: NDArray[np.bool_], fraction: float, seed: int, candidates: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Choose validation images by iterative stratification.

    Images are dealt out class by class, the one with the fewest images left first; each goes where more of
    its class is still wanted. Images without tags count as a class of their own. A class of one image stays
    in training. At least one image is chosen.

    Args:
        labels: (n, C) tags.
        fraction: Share of the images, in (0, 1).
        seed: Of what the counts leave open, not negative.
        candidates: (n,) images that may be chosen; None is all of them.

    Returns:
        (n,) whether an image is for validation.
    """
    rng = np.random.default_rng(seed)
    groups = np.column_stack([labels, ~labels.any(1)])
    left = groups.sum(0)
    wanted = np.outer([1 - fraction, fraction], [*left, len(groups)])  # by side and group; last: all images
    members = [rng.permutation(np.flatnonzero(group)) for group in groups.T]
    own = [np.flatnonzero(row) for row in groups]
    side = np.full(len(groups), -1)

    def assign(image: int, to: int) -> None:
        side[image] = to
        wanted[to, own[image]] -= 1
        wanted[to, -1] -= 1
        left[own[image]] -= 1

    for image in np.flatnonzero(~candidates).tolist() if candidates is not None else ():
        assign(image, 0)
    while left.any():
        group = int(np.where(left > 0, left, left.max() + 1).argmin())
        for image in members[group]:
            if side[image] < 0:
                need = wanted[:, [group, -1]] / [[1, 1 - fraction], [1, fraction]]  # ties: the emptier side
                assign(image, int(tuple(need[1].round(9)) > tuple(need[0].round(9))))
    if not (side == 1).any():
        frequency = np.array([groups.sum(0)[row].min() for row in own])
        allowed = frequency if candidates is None else np.where(candidates, frequency, -1)
        side[allowed.argmax()] = 1
    return np.asarray(side == 1)
