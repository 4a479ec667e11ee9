"""timm's plain Vision Transformers: built by name, filled with published weights, run block by block.

Shapes as in `timm_vit`: n tokens, D channels, d = D / heads.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import timm
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from wsss_afa.errors import UserError
from wsss_afa.models.weights import fit_vit, read_weights, weights_sha256


def project(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, heads, n, d) that a block makes of the tokens (B, n, D) given."""
    attn = block.attn
    heads = attn.qkv(block.norm1(tokens)).unflatten(2, (3, attn.num_heads, -1))  # (B, n, 3, heads, d)
    query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
    return attn.q_norm(query), attn.k_norm(key), value


def run_block(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One block with fused attention: tokens (B, n, D) → tokens, and the queries and keys used."""
    query, key, value = project(block, tokens)
    attended = F.scaled_dot_product_attention(query, key, value)  # scale d^-0.5
    attended = block.attn.proj(block.attn.norm(attended.transpose(1, 2).flatten(2)))
    tokens = tokens + block.drop_path1(block.ls1(attended))
    tokens = tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
    return tokens, query, key


def plain_vit(name: str, projection: bool, arguments: Mapping[str, Any]) -> Any:
    """timm's `VisionTransformer` of plain blocks with random weights, for images of any size.

    ``projection`` keeps the linear layer behind the tower, which is CLIP's projection; further ``arguments``
    are those of timm's constructor. A UserError says that timm has no such model, cannot build it so, or that
    it is no plain ViT.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models("*vit*") + timm.list_models("deit*"), n=1)
        hint = f"did you mean {near[0]}?" if near else "timm.list_models('*vit*') names them"
        raise UserError(f"backbone.name={name}: timm has no such model; {hint}")
    settings = {"dynamic_img_size": True, "global_pool": "", **arguments}
    if not projection:
        settings["num_classes"] = 0
    try:
        model = timm.create_model(name, **settings)
    except Exception as error:  # architectures raise what they like
        what = f"backbone.name={name} cannot be built with {settings} ({' '.join(str(error).split())})"
        raise UserError(f"{what}: need a plain ViT, such as vit_base_patch16_224") from error
    blocks = getattr(model, "blocks", [])
    plain = type(model) is VisionTransformer and model.pos_embed is not None
    if not plain or any(type(b) is not Block or type(b.attn) is not Attention or b.attn.gate for b in blocks):
        raise UserError(f"backbone.name={name} is no plain ViT; need one, such as vit_base_patch16_224")
    if projection and not model.num_classes:
        raise UserError(f"backbone.name={name} has no projection; need a CLIP, or backbone.projection=false")
    return model


def fill(
    model: Any, name: str, pretrained: bool | str | None, sha256: str | None = None
) -> tuple[str | None, str | None]:
    """Load all weights into a model of `plain_vit`; return source and SHA-256 of the file that has them.

    ``pretrained`` is True for the weights that timm names; a file, URL or hub id; or None or False for
    weights that stay random, which have neither source nor SHA-256. A UserError says that weights cannot
    be had, do not fit, or have another SHA-256 than the one given, which is found before they are read.
    """
    if not pretrained:
        return None, None
    published = model.pretrained_cfg
    source = pretrained if isinstance(pretrained, str) else published.get("hf_hub_id") or published.get("url")
    if not source:
        raise UserError(f"backbone.pretrained=true: timm has no weights for {name}; need a file, URL or null")
    found = weights_sha256(source)
    if sha256 is not None and found != sha256:
        what = f"backbone.pretrained={source} has the SHA-256 {found[:12]}…, need {sha256[:12]}…"
        raise UserError(f"{what}: give the file that the network was trained with")
    state = read_weights(source)
    try:
        model.load_state_dict(fit_vit(state, model))
    except UserError as error:
        raise UserError(f"backbone.pretrained={source} for backbone.name={name}: {error}") from None
    return source, found
