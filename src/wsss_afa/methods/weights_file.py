"""A method as a file of safetensors: the weights of its network, and its recipe as JSON in the header.

The file has no code and no pickled objects. Its recipe is checked as that of a checkpoint is, so it may build
the same parts and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wsss_afa.methods.base import RECIPE_KEY
from wsss_afa.methods.untrusted import UnreadableError

ENDING = ".safetensors"
WEIGHTS = f"model{ENDING}"
"""Name of the file in a folder, as the hub has it."""


def write_weights(path: Path, weights: Mapping[str, Tensor], recipe: Mapping[str, Any]) -> None:
    """Write weights by name and the recipe that builds their network."""
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    save_file(whole, path, {RECIPE_KEY: json.dumps(recipe), "format": "pt"})


def read_weights(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """The recipe, which nobody has checked yet, and the weights on the CPU.

    Raises:
        UnreadableError: The file is torn, or has no recipe.
        OSError: The disk does not give it now.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get(RECIPE_KEY)
            weights: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about is None:
            raise UnreadableError("has no recipe: wsss-afa export format=safetensors writes one")
        return json.loads(about), weights
    except (SafetensorError, ValueError, RecursionError) as error:
        if isinstance(error, UnreadableError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UnreadableError(f"cannot be read as safetensors with a recipe: {reason}") from error
