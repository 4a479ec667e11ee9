"""Semantic segmentation from image tags: methods that train end to end, on PyTorch Lightning and Hydra.

``Predictor``, ``train`` and ``evaluate`` are imported when they are first asked for.

Examples:
    >>> from wsss_afa import Predictor, evaluate, train
    >>> run = train("demo")  # doctest: +SKIP
    >>> Predictor.from_checkpoint(run.checkpoint)("photo.jpg").found  # doctest: +SKIP
    ('dog', 'sofa')
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsss_afa.evaluate import evaluate as evaluate
    from wsss_afa.inference.predictor import Predictor as Predictor
    from wsss_afa.train import train as train

__version__ = "0.1.0"
__all__ = ["Predictor", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    if name in ("evaluate", "train"):
        return import_module(f"wsss_afa.{name}")  # the module is its own function
    if name == "Predictor":
        return import_module("wsss_afa.inference.predictor").Predictor
    raise AttributeError(f"module 'wsss_afa' has no attribute {name!r}")
