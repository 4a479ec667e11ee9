"""What a user can mend."""

from __future__ import annotations
from typing import NamedTuple, NotRequired, TypedDict
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from wsss_afa.types import IGNORE_INDEX
from wsss_afa.types import MEAN
from wsss_afa.types import STD
from wsss_afa.types import Sample
from wsss_afa.types import Batch
from wsss_afa.types import BackboneOutput
from wsss_afa.types import AffinityTokens
from wsss_afa.types import Activation
from wsss_afa.types import AFAOutput
from wsss_afa.types import PseudoLabels
from wsss_afa.ops.boxes import inside_box


class UserError(ValueError):
    """What the user can mend: got, needed, what to do. Entry points print the message alone."""
