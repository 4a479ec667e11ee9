"""Checkpoint files as the AFA authors' program writes them, from random networks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wsss_afa.methods.afa.network import AFANet
from wsss_afa.models.backbones.mix_transformer import VARIANTS, mix_transformer

_RENAMES = (
    (r"^backbone\.stages\.(\d)\.(patch_embed|norm)\.", lambda m: f"encoder.{m[2]}{int(m[1]) + 1}."),
    (r"^backbone\.stages\.(\d)\.blocks\.", lambda m: f"encoder.block{int(m[1]) + 1}."),
    (r"\.dwconv\.", ".dwconv.dwconv."),
    (r"^decoder\.projections\.(\d)\.", lambda m: f"decoder.linear_c{int(m[1]) + 1}.proj."),
    (r"^decoder\.fuse\.", "decoder.linear_fuse.conv."),
    (r"^decoder\.norm\.", "decoder.linear_fuse.bn."),
    (r"^decoder\.predict\.", "decoder.linear_pred."),
    (r"^affinity_head\.", "attn_proj."),
)
TOY = ((8, 16, 20, 32), (1, 1, 1, 2), (1, 2, 5, 8))
"""Channels, depths and heads of a variant that is quick; `add_toy` makes it known."""


def add_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make checkpoints of the toy variant loadable during a test."""
    monkeypatch.setitem(VARIANTS, "toy", TOY)


def random_net(variant: str = "b0", num_classes: int = 20, decoder_dim: int = 256) -> AFANet:
    """A network whose batch statistics are not trivial either, in evaluation mode."""
    torch.manual_seed(0)
    net = AFANet(mix_transformer(variant), num_classes, decoder_dim).eval()
    with torch.no_grad():
        net.decoder.norm.running_mean.uniform_(-0.1, 0.1)
        net.decoder.norm.running_var.uniform_(0.5, 1.5)
    return net


def released_names(net: AFANet, prefix: str = "") -> dict[str, Tensor]:
    """The weights under the names, and in the shapes, of the authors' program."""
    state = {}
    for key, value in net.state_dict().items():
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        state[prefix + key] = value[None, :, None, None] if key == "attn_proj.weight" else value
    return state


def save_toy(path: Path, num_classes: int = 20) -> AFANet:
    """Write a file of the toy variant and return its network; `add_toy` comes first."""
    net = random_net("toy", num_classes, decoder_dim=16)
    torch.save(released_names(net), path)
    return net
