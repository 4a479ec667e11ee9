"""Methods of a small CLIP of random weights, composed as training does; a tower that knows three colours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vit_method import method_of
from wsss_afa.models.backbones.timm_vit import TimmViT
from wsss_afa.models.text import TextFeatures
from wsss_afa.types import Batch

SMALL = (
    "backbone.pretrained=null", "method.texts.pretrained=null",
    "++backbone.model_args={embed_dim: 24, depth: 4, num_heads: 2, num_classes: 8}",
)  # fmt: skip
DECODER = ("method.decoder_dim=8", "method.decoder_heads=2", "method.layers={static: 3, affinity: 4}")
DINO = ("method.dino.pretrained=null", "++method.dino.model_args={embed_dim: 24, depth: 2, num_heads: 2}")
"""Overrides that make parts small."""


def weclip(*overrides: str, method: str = "weclip", **settings: Any) -> Any:
    """WeCLIP, or WeCLIP+ with ``method="weclip_plus"``, in training mode."""
    small = (*SMALL, *DECODER, *(DINO if method == "weclip_plus" else ()))
    return method_of(f"method={method}", *overrides, small=small, **settings)


def batch_of(tags: Any = ((1, 0, 1), (0, 1, 0)), box: Any = (0, 64, 0, 64)) -> Batch:
    """Random images of 64 pixels."""
    return {
        "image": torch.randn(len(tags), 3, 64, 64, generator=torch.Generator().manual_seed(1)),
        "class_label": torch.tensor(tags, dtype=torch.float),
        "valid_box": torch.tensor([box] * len(tags)),
        "name": ["a", "b"],
    }


class Colours(nn.Module):
    """Texts of red and blue, and of green as background."""

    def forward(self, class_names: Any, dim: int) -> TextFeatures:
        directions = torch.eye(3, dim)
        return TextFeatures(directions[:2], directions[2:], directions[:0])


def colour_tower(patch: int = 8) -> TimmViT:
    """A CLIP of three blocks whose patches see their colour, and attend to patches of the same colour."""
    sizes = {
        "embed_dim": 4, "depth": 3, "num_heads": 1, "num_classes": 3, "patch_size": patch,
        "img_size": 4 * patch,
    }  # fmt: skip
    vit = TimmViT(
        "vit_base_patch16_clip_quickgelu_224.openai", None, projection=True, frozen=True, fit="resize",
        num_affinity_blocks=0, positions="bilinear", mean=(0, 0, 0), std=(255, 255, 255), model_args=sizes,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            parameter.fill_(float("norm" in name and name.endswith("weight")))
        for channel, colour in enumerate((0, 2, 1)):  # red, blue, green
            vit.patch_embed.proj.weight[channel, colour] = 1 / patch**2
        for block in vit.blocks:
            block.attn.qkv.weight[:8] = 2 * torch.eye(4).repeat(2, 1)  # queries and keys
            block.attn.qkv.weight[8:] = torch.eye(4)  # values
        vit.blocks[-1].attn.proj.weight.copy_(torch.eye(4))
        vit.head.weight.copy_(torch.eye(3, 4))
    return vit.eval()


def colour_photo() -> tuple[Tensor, Tensor]:
    """An image (1, 3, 96, 128) in [0, 1] of a red and a blue box on green, and its mask (1, 96, 128)."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(1, 96, 128, dtype=torch.long)
    mask[:, 8:48, 16:56], mask[:, 40:88, 72:112] = 1, 2
    palette = torch.tensor([[0.1, 0.8, 0.1], [0.9, 0.1, 0.1], [0.1, 0.1, 0.9]])
    image = palette[mask[0]].permute(2, 0, 1)[None]
    return image + 0.02 * torch.randn(image.shape, generator=generator), mask
