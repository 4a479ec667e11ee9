"""Fusion against a loop over cells, the decoder against PyTorch's own Transformer layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wsss_afa.models.token_decoder import RELEASED_NAMES, TokenFusion, TransformerDecoder
from wsss_afa.models.weights import apply_rules


def test_fusion_of_each_cell():
    torch.manual_seed(0)
    fusion = TokenFusion(channels=6, num_maps=2, dim=4).eval()
    maps = torch.randn(2, 3, 6, 2, 5)
    fused = fusion(maps)
    assert fused.shape == (3, 4, 2, 5)
    for y, x in ((0, 0), (1, 3)):
        tokens = [mlp(each[:, :, y, x]) for mlp, each in zip(fusion.mlps, maps, strict=True)]
        expected = torch.cat(tokens, 1) @ fusion.fuse.weight[:, :, 0, 0].T + fusion.fuse.bias
        torch.testing.assert_close(fused[:, :, y, x], expected)


def test_fusion_drops_whole_channels():
    fusion = TokenFusion(channels=6, num_maps=1, dim=8, dropout=0.5).train()
    dropped = (fusion([torch.randn(4, 6, 3, 3)]) == 0).flatten(2)
    assert torch.equal(dropped.all(-1), dropped.any(-1))
    assert dropped.any()


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return TransformerDecoder(dim=16, num_outputs=5, depth=2, num_heads=4)


def test_its_blocks_are_pytorchs(decoder):
    fused = torch.randn(2, 16, 3, 4)
    tokens = fused.flatten(2).mT
    for block in decoder.blocks:
        layer = nn.TransformerEncoderLayer(
            16, 4, 64, 0.0, lambda x: x * torch.sigmoid(1.702 * x), batch_first=True, norm_first=True
        )  # fmt: skip
        pairs = {
            "self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj": "attn.proj", "linear1": "mlp.fc1",
            "linear2": "mlp.fc2",
        }  # fmt: skip
        state = block.state_dict()
        for theirs, ours in pairs.items():
            state = {key.replace(ours, theirs): value for key, value in state.items()}
        layer.load_state_dict(state)
        tokens = layer(tokens)
    expected = torch.einsum("bnd,kd->bkn", tokens, decoder.predict.weight[:, :, 0, 0])
    expected = expected + decoder.predict.bias[None, :, None]
    torch.testing.assert_close(decoder(fused).flatten(2), expected)


def test_it_begins_as_pytorchs_attention_does(decoder):
    attn = decoder.blocks[0].attn
    bound = (6 / (16 + 48)) ** 0.5
    assert attn.qkv.weight.abs().max() <= bound
    assert attn.qkv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert not attn.qkv.bias.any()
    assert not attn.proj.bias.any()


def test_places_make_no_difference(decoder):
    fused = torch.randn(1, 16, 2, 6)
    order = torch.randperm(12)
    moved = decoder(fused.flatten(2)[:, :, order].view(1, 16, 2, 6)).flatten(2)
    torch.testing.assert_close(moved, decoder(fused).flatten(2)[:, :, order])


@pytest.mark.parametrize(
    ("released", "ours"),
    [
        ("decoder_fts_fuse.linears_modulelist.10.proj_2.bias", "fusion.mlps.10.2.bias"),
        ("dino_decoder_fts_fuse.linears_modulelist.0.proj.weight", "dino_fusion.mlps.0.0.weight"),
        ("decoder_fts_fuse.linear_fuse.weight", "fusion.fuse.weight"),
        ("decoder.transformer.resblocks.2.attn.in_proj_bias", "decoder.blocks.2.attn.qkv.bias"),
        ("decoder.transformer.resblocks.2.attn.out_proj.bias", "decoder.blocks.2.attn.proj.bias"),
        ("decoder.transformer.resblocks.0.mlp.c_proj.bias", "decoder.blocks.0.mlp.fc2.bias"),
        ("decoder.transformer.resblocks.0.ln_2.weight", "decoder.blocks.0.norm2.weight"),
        ("decoder.linear_pred.weight", "decoder.predict.weight"),
    ],
)
def test_released_names(released, ours):
    assert apply_rules(RELEASED_NAMES, released) == ours
