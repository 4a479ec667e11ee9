"""The data that a trained method is run on: of its classes, normalised and reduced as in its training."""

from __future__ import annotations

from collections.abc import Sequence

from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.errors import UserError
from wsss_afa.methods.base import Method


def match_data(data: TaggedDataModule, method: Method, ckpt: str, given: Sequence[str]) -> None:
    """Let a data module hand out images as the method of a checkpoint knows them; ``setup`` comes after it.

    Images are reduced as they were in training, unless one of the overrides that were ``given`` sets
    ``data.max_side``: a network knows objects of the size that it has seen.

    Raises:
        UserError: the data has other classes than the checkpoint.
    """
    known, there = tuple(method.recipe["class_names"]), data.class_names
    if known != there:
        raise UserError(
            f"ckpt={ckpt} knows {len(known)} classes ({known[0]}, …), the data has {len(there)} "
            f"({there[0]}, …): give data of the checkpoint's classes"
        )
    data.normalize(method.mean, method.std)
    side = method.recipe.get("max_side")
    own = any(word.lstrip("+").startswith("data.max_side=") for word in given)
    if side is not None and hasattr(data, "max_side") and not own:
        data.max_side = side
