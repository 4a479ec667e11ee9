"""Plain ViTs by timm's names, against timm's own forward pass, transformers, and recorded values."""

from __future__ import annotations

import hashlib
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from wsss_afa.errors import UserError
from wsss_afa.methods.afa.network import AFANet
from wsss_afa.models.backbones.patches import resize_positions
from wsss_afa.models.backbones.plain_vit import project
from wsss_afa.models.backbones.timm_vit import TimmViT
from wsss_afa.types import MEAN, STD

SHARED = Path(__file__).parents[3] / "shared"
CONF = Path(__file__).parents[2] / "conf"
SMALL = {"embed_dim": 48, "depth": 4, "num_heads": 4, "img_size": 64}
NAMES = {
    "vit": "vit_base_patch16_224.orig_in21k_ft_in1k",
    "deit": "deit_small_patch16_224.fb_in1k",
    "dinov2": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_reg": "vit_small_patch14_reg4_dinov2.lvd142m",
    "clip": "vit_base_patch16_clip_quickgelu_224.openai",
}
SIDE = {16: 64, 14: 56}
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


def small(family: str, **settings: Any) -> TimmViT:
    """A network of four narrow blocks on a grid of 4 × 4, every parameter drawn anew."""
    name = NAMES[family]
    sizes = SMALL | {"img_size": 56 if "patch14" in name else 64} | settings.pop("model_args", {})
    vit = TimmViT(name, **({"pretrained": None} | settings), model_args=sizes)
    if "pretrained" not in settings:
        generator = torch.Generator().manual_seed(0)
        for parameter in vit.parameters():
            parameter.data.normal_(0, 0.2, generator=generator)
    return vit.eval()


def picture(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height + width))


def timm_model(vit: TimmViT, family: str, fused: bool = True) -> torch.nn.Module:
    """timm's own network with the same weights, under the same names."""
    sizes = SMALL | {"img_size": vit.grid[0] * vit.stride}
    model = timm.create_model(
        NAMES[family], num_classes=0, global_pool="", dynamic_img_size=True, dynamic_img_pad=True, **sizes
    )
    model.load_state_dict(vit.state_dict())
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model.eval()


def as_map(tokens: Tensor, vit: TimmViT, image: Tensor) -> Tensor:
    height, width = (-(-side // vit.stride) for side in image.shape[-2:])
    return tokens[:, vit.num_leading_tokens :].unflatten(1, (height, width)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(64, 64), (96, 70), (33, 128)])
@pytest.mark.parametrize("family", NAMES)
def test_equals_timm(family, size):
    vit, image = small(family, blocks=[1, -1]), picture(*size)
    theirs, (middle, last) = timm_model(vit, family).forward_intermediates(
        image, [1, 3], output_fmt="NLC", return_prefix_tokens=True
    )
    encoded = vit.encode(image, [1, -1])
    close(encoded.maps[1], as_map(theirs, vit, image))
    close(encoded.leading[1], theirs[:, : vit.num_leading_tokens])
    close(encoded.maps[0].flatten(2).mT, middle[0])
    close(encoded.leading[0], middle[1])
    unnormed = vit.encode(image, [-1], final_norm="none").maps[0]
    close(unnormed.flatten(2).mT, last[0])
    output = vit(image)
    close(output.features, encoded.maps)
    assert output.features[-1].shape[2:] == (-(-size[0] // vit.stride), -(-size[1] // vit.stride))


@pytest.mark.parametrize("family", ["vit", "dinov2_reg", "clip"])
def test_attention_equals_that_of_timm_without_fusing(family):
    vit, image = small(family), picture(80, 56)
    model, matrices = timm_model(vit, family, fused=False), []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: matrices.append(output))
    model(image)
    found = vit.encode(image, attention=[-2, 1], queries_and_keys=[1, -2], average_heads=False)
    close(found.attention, [matrices[1], matrices[2]])
    close(vit.encode(image, attention=[3], average_heads=True).attention[0], matrices[3].mean(1))
    skipped = vit.num_leading_tokens
    for query, key, matrix in zip(found.queries, found.keys, matrices[1:3], strict=True):
        rebuilt = (query @ key.mT * vit.affinity_head_dim**-0.5).softmax(-1)
        patches = matrix[:, :, skipped:, skipped:]
        close(rebuilt, patches / patches.sum(-1, keepdim=True))


def test_blocks_no_one_asks_for_do_not_run():
    vit, image = small("vit"), picture(64, 64)
    for block in vit.blocks[2:]:
        block.attn.qkv.register_forward_pre_hook(lambda *_: pytest.fail("a block ran"))
    found = vit.encode(image, [0, 1])
    assert [len(part) for part in found] == [2, 2, 0, 0, 0]
    assert [len(part) for part in vit.encode(image)] == [0] * 5


def test_projected_tokens_are_those_of_the_block():
    vit, image = small("vit", num_affinity_blocks=1), picture(64, 48)
    before = vit.encode(image, [2], final_norm="none")
    tokens = torch.cat([before.leading[0], before.maps[0].flatten(2).mT], dim=1)
    query, key, value = project(vit.blocks[3], tokens)
    output = vit(image)
    close([query[:, :, 1:], key[:, :, 1:]], [output.queries[0], output.keys[0]])
    assert value.shape == query.shape == (2, 4, 13, 12)


# transformers

RULES = [
    (r"^embeddings\.(patch_embeddings\.projection|patch_embedding)\.", "patch_embed.proj."),
    (r"^embeddings\.(position_embeddings|position_embedding\.weight)$", "pos_embed"),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.", ""),
    (r"^(encoder\.layer|encoder\.layers|layers)\.(\d+)\.", r"blocks.\2."),
    (r"\.(self_attn|attention)\.", ".attn."),
    (r"\.(o_proj|out_proj)\.", ".proj."),
    (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1", r".ls\1.gamma"),
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"^pre_layrnorm\.", "norm_pre."),
]


def published(model: torch.nn.Module) -> dict[str, Tensor]:
    """transformers' weights under the names of timm and of DINOv2's authors."""
    state = {}
    for key, value in model.state_dict().items():
        for pattern, name in RULES:
            key = re.sub(pattern, name, key)
        state[key] = value
    for key in [key for key in state if ".q_proj." in key]:
        parts = [state.pop(key.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        state[key.replace("q_proj", "qkv")] = torch.cat(parts)
    shapes = {"cls_token": (1, 1, -1), "pos_embed": (1, 17, -1)}
    return {
        key: value.reshape(shapes.get(key, value.shape))
        for key, value in state.items()
        if "pooler" not in key
    }


CONFIG = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
THEIRS = {
    "vit": (ViTModel, ViTConfig, {"intermediate_size": 192, "layer_norm_eps": 1e-6}, "bicubic"),
    "dinov2": (Dinov2Model, Dinov2Config, {"patch_size": 14}, "bicubic"),
    "dinov2_reg": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig, {"patch_size": 14}, "timm"),
    "clip": (CLIPVisionModel, CLIPVisionConfig, {"intermediate_size": 192, "patch_size": 16}, "bicubic"),
}


@pytest.mark.parametrize("family", THEIRS)
def test_equals_transformers(family, tmp_path):
    model_type, config_type, more, positions = THEIRS[family]
    patch = more.get("patch_size", 16)
    torch.manual_seed(0)
    model = model_type(config_type(**CONFIG, **more, image_size=4 * patch)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_file(published(model), tmp_path / "weights.safetensors")
    vit = small(family, pretrained=str(tmp_path / "weights.safetensors"), positions=positions)
    for size in ((4 * patch, 4 * patch), (6 * patch, 3 * patch)):
        image = picture(*size)
        asked = {} if "dinov2" in family else {"interpolate_pos_encoding": True}
        theirs = model(image, output_hidden_states=True, **asked)
        found = vit.encode(image, [0, 3], final_norm="none")
        for leading, patches, tokens in zip(
            found.leading, found.maps, (theirs.hidden_states[1], theirs.hidden_states[4]), strict=True
        ):
            close(torch.cat([leading, patches.flatten(2).mT], 1), tokens)
        if (
            family != "clip"
        ):  # its last tokens are handed on without the final norm, which the class token passes
            close(vit(image).features[0], as_map(theirs.last_hidden_state, vit, image))


# Values recorded from the programs of ToCo, MoRe, WeCLIP and WeCLIP+

needs_golden = pytest.mark.skipif(
    not (SHARED / "golden/methods").is_dir(), reason="needs ../shared/golden/methods beside the checkout"
)


def golden(name: str, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
    """Recorded arrays, settings, and the state under a prefix without it."""
    with np.load(SHARED / f"golden/methods/{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind == "f"}
        meta = json.loads(str(file["meta"]))
    state = {key.removeprefix(prefix): v.clone() for key, v in arrays.items() if key.startswith(prefix)}
    return arrays, meta, state


@needs_golden
def test_toco_tokens(tmp_path):
    values, meta, state = golden("toco_a", "state/encoder.")
    torch.save(state, tmp_path / "toco.pth")
    sizes = {"img_size": meta["pre"], "depth": meta["depth"], "num_heads": meta["heads"]}
    vit = small("deit", pretrained=str(tmp_path / "toco.pth"), positions="bicubic", model_args=sizes)
    found = vit.encode(values["in/image"], [meta["aux"], -1])
    close(found.leading[1][:, 0], values["out/class_token"], rtol=1e-4, atol=1e-4)
    close(found.maps[1].flatten(2).mT, values["out/tokens"], rtol=1e-4, atol=1e-4)
    close(found.maps[0].flatten(2).mT, values["out/aux_tokens"], rtol=1e-4, atol=1e-4)


@needs_golden
def test_more_class_tokens():
    values, meta, state = golden("more_a", "state/encoder.")
    sizes = {key: meta[key] for key in ("img_size", "patch_size", "depth", "num_heads")}
    vit = small("vit", positions="bicubic_scale", model_args=sizes)
    classes, registers = meta["num_classes"] - 1, meta["num_registers"]
    vit.set_leading_tokens(classes, registers)
    order = [*range(registers, registers + classes), *range(registers)]  # theirs has the registers first
    leading, places = state["cls_token"][:, order], state["pos_embed"][:, : classes + registers][:, order]
    state = {key: value for key, value in state.items() if not key.startswith("head")}
    state["cls_token"], state["reg_token"] = leading[:, :classes], leading[:, classes:]
    state["pos_embed"] = torch.cat([places, state["pos_embed"][:, classes + registers :]], dim=1)
    vit.load_state_dict(state)
    found = vit.encode(values["in/image"], [-1])
    close(found.leading[0][:, :classes], values["out/encoder_class_tokens"], rtol=1e-4, atol=1e-4)


@needs_golden
@pytest.mark.parametrize("name", ["weclip_a", "weclip_plus_a"])
def test_weclip_tokens_and_attention(name, tmp_path):
    values, meta, state = golden(name, "state/encoder.")
    state = {key: value for key, value in state.items() if key.startswith("visual.")}
    state.pop("visual.positional_embedding_new", None)
    torch.save(state, tmp_path / "clip.pth")
    sizes = {"img_size": meta["resolution"], "depth": meta["layers"], "num_heads": meta["heads"]}
    sizes["num_classes"] = len(state["visual.proj"].T)
    vit = small(
        "clip", pretrained=str(tmp_path / "clip.pth"), positions="bilinear", projection=True, model_args=sizes
    )
    close(vit.head.weight, state["visual.proj"].T)
    asked = list(range(meta["layers"] - 1))
    found = vit.encode(values["in/image"], asked, final_norm="none", attention=asked, average_heads=True)
    tokens = [torch.cat([a, b.flatten(2).mT], 1) for a, b in zip(found.leading, found.maps, strict=True)]
    close(torch.stack(tokens), values["out/tokens"], rtol=1e-4, atol=1e-4)
    close(torch.stack(found.attention), values["out/attention"])


@needs_golden
def test_weclip_plus_dino_tokens(tmp_path):
    values, meta, state = golden("weclip_plus_a", "state/dino_encoder.")
    torch.save(state, tmp_path / "dino.pth")
    sizes = {
        "img_size": meta["dino_resolution"],
        "depth": meta["dino_layers"],
        "num_heads": meta["dino_heads"],
    }
    vit = small(
        "dinov2",
        pretrained=str(tmp_path / "dino.pth"),
        positions="bicubic_scale",
        fit="resize",
        model_args=sizes,
    )
    close(vit(values["in/image"]).features[0].flatten(2).mT, values["out/dino_tokens"], rtol=1e-4, atol=1e-4)


# Positions and sides


RESIZE: dict[str, dict[str, Any]] = {
    "timm": {"size": (7, 3), "mode": "bicubic", "antialias": True},
    "bicubic": {"size": (7, 3), "mode": "bicubic"},
    "bilinear": {"size": (7, 3), "mode": "bilinear"},
    "bicubic_scale": {"scale_factor": (7.1 / 4, 3.1 / 5), "mode": "bicubic"},
}


@pytest.mark.parametrize("rule", RESIZE)
def test_positions_are_interpolated(rule):
    grid = torch.randn(1, 8, 4, 5, generator=torch.Generator().manual_seed(0))
    positions = grid.flatten(2).mT
    resized = resize_positions(positions, (4, 5), (7, 3), rule)
    close(resized, F.interpolate(grid, **RESIZE[rule]).flatten(2).mT)
    close(resize_positions(positions, (4, 5), (4, 5), rule), positions)


@pytest.mark.slow
def test_an_exported_graph_takes_images_of_any_size():
    vit = small("dinov2_reg", positions="bicubic_scale", depth=1, num_affinity_blocks=1)
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(vit, (picture(70, 90),), dynamic_shapes=(sizes,)).module()
    for size in ((56, 56), (40, 100)):
        close(exported(picture(*size)), vit(picture(*size)))


def test_sides_that_are_no_multiples_of_the_patch():
    image = picture(70, 50)
    padded = F.pad(image, (0, 14, 0, 10))
    resized = F.interpolate(image, size=(64, 48), mode="bilinear")
    for rule, whole in {"pad": padded, "crop": image[..., :64, :48], "resize": resized}.items():
        vit = small("vit", fit=rule)
        close(vit(image).features[0], vit(whole).features[0])
        close(vit(whole).features[0].shape[2:], torch.Size(side // 16 for side in whole.shape[2:]))
    assert small("vit").min_side == 1
    assert small("vit")(picture(1, 3)).features[0].shape == (2, 48, 1, 1)
    short = picture(15, 64)
    longer = F.pad(short, (0, 0, 0, 1), mode="replicate")
    vit = small("vit", fit="crop")
    close(vit(short).features[0], vit(longer).features[0])


def test_afa_learns_from_it():
    vit = small("deit", blocks=[0, 1, 2, 3])
    output = AFANet(vit, num_classes=5, decoder_dim=16)(picture(72, 48))
    assert output.class_logits.shape == (2, 5)
    assert output.seg_logits.shape == (2, 6, 5, 3)
    assert output.affinity.shape == (2, 15, 15)
    assert output.activation.tokens.grid == (5, 3)


# What is trained, and with which memory


def test_frozen_blocks_have_no_gradient_and_no_graph():
    vit = small("dinov2", trainable_from=2, drop_path_rate=0.5).train()
    assert [block.training for block in vit.blocks] == [False, False, True, True]
    image = picture(56, 56).requires_grad_()
    found = vit.encode(image, [1, -1])
    assert not found.maps[0].requires_grad
    found.maps[1].sum().backward()
    assert image.grad is None
    for key, parameter in vit.named_parameters():
        trained = key.startswith(("blocks.2.", "blocks.3.", "norm."))
        assert (parameter.grad is not None) == parameter.requires_grad == trained, key


@pytest.mark.parametrize(("first", "trained"), [(None, True), (4, False)])
def test_all_or_nothing_is_trained(first, trained):
    vit = small("vit", trainable_from=first).train()
    assert {parameter.requires_grad for parameter in vit.parameters()} == {trained}
    assert vit(picture(32, 32)).features[0].requires_grad == trained
    assert vit.norm.training == vit.patch_embed.training == trained


def test_embeddings_alone_are_frozen():
    frozen = {
        key for key, value in small("vit", trainable_from=0).named_parameters() if not value.requires_grad
    }
    assert frozen == {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    vit = small("vit", trainable_positions=False)
    assert {key for key, value in vit.named_parameters() if not value.requires_grad} == {"pos_embed"}


def test_checkpointing_gives_the_same_gradients():
    gradients = []
    for on in (False, True):
        vit = small("vit", activation_checkpointing=on, drop_path_rate=0.3).train()
        torch.manual_seed(1)
        output = vit(picture(48, 64))
        sum(part.square().sum() for group in output for part in group).backward()
        gradients.append([parameter.grad for parameter in vit.parameters()])
    close(gradients[0], gradients[1])


def test_drop_path_rises_to_the_last_block_that_is_kept():
    vit = small("vit", depth=3, drop_path_rate=0.2)
    assert [block.drop_path1.drop_prob for block in vit.blocks] == pytest.approx([0, 0.1, 0.2])


def test_depth_ends_the_network_early():
    whole, short = small("vit"), small("vit", depth=2)
    short.load_state_dict(
        {key: v for key, v in whole.state_dict().items() if not re.match(r"blocks\.[23]", key)}
    )
    image = picture(64, 32)
    close(short(image).features[0], whole.encode(image, [1]).maps[0])
    close(short(image).queries, whole.encode(image, queries_and_keys=[0, 1]).queries)


def test_states_its_sizes():
    vit = small("dinov2_reg", blocks=[0, 1, 2, 3], num_affinity_blocks=1)
    assert (vit.channels, vit.reductions, vit.stride) == ((48,) * 4, (14,) * 4, 14)
    assert (vit.num_heads, vit.num_affinity_maps, vit.affinity_head_dim) == (4, 4, 12)
    assert (vit.num_leading_tokens, vit.grid, vit.source, vit.sha256) == (5, (4, 4), None, None)
    assert vit.mean == pytest.approx(MEAN)
    assert vit.std == pytest.approx(STD)
    assert small("clip", mean=(1, 2, 3)).mean == (1, 2, 3)
    assert small("clip").mean == pytest.approx((122.771, 116.746, 104.094), abs=1e-3)


def test_leading_tokens_start_as_the_class_token():
    vit = small("vit")
    single, image = vit.encode(picture(64, 64), [-1]), picture(64, 64)
    vit.set_leading_tokens(3)
    found = vit.encode(image, [-1])
    close(found.leading[0], found.leading[0][:, :1].expand(-1, 3, -1))
    assert found.maps[0].shape == single.maps[0].shape
    vit.set_leading_tokens(2, registers=4)
    assert vit.num_leading_tokens == 6
    assert vit.pos_embed.shape == (1, 6 + 16, 48)
    assert len(vit.pos_embed[0, 2:6].unique()) == 4 * 48
    assert vit(image).queries[0].shape == (2, 4, 16, 12)
    for unfit in (vit, small("vit", trainable_from=0), small("dinov2_reg")):
        with pytest.raises(UserError, match=r"leading tokens cannot be repeated"):
            unfit.set_leading_tokens(2)


# Weights


def test_weights_of_a_file_are_loaded_and_named(tmp_path):
    vit = small("clip", projection=True, model_args={"num_classes": 8})
    path = tmp_path / "clip.safetensors"
    save_file(vit.state_dict(), path)
    same = small("clip", pretrained=str(path), depth=2)  # without the projection
    close(
        same.state_dict(), {key: value for key, value in vit.state_dict().items() if key in same.state_dict()}
    )
    assert same.source == str(path)
    assert same.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("norm.bias"), r"1 missing \(norm.bias\)"),
        (lambda state: state.update(extra=torch.zeros(1)), r"1 unexpected \(extra\)"),
        (
            lambda state: state.update(pos_embed=torch.zeros(1, 10, 48)),
            r"pos_embed is \(1, 10, 48\), not \(1, 17, 48\)",
        ),
    ],
)
def test_weights_that_do_not_fill_the_model_are_refused(tmp_path, change, message):
    state = small("vit").state_dict()
    change(state)
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(
        UserError, match=rf"backbone.pretrained=.*vit.safetensors for backbone.name=.*{message}"
    ) as caught:
        small("vit", pretrained=str(tmp_path / "vit.safetensors"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vit_base_patch16_225"}, "timm has no such model; did you mean vit_base_patch16_224"),
        ({"name": "vit_base_patch16_224.nothing"}, "cannot be built"),
        ({"name": "resnet18"}, "cannot be built|no plain ViT"),
        ({"name": "vit_small_patch16_18x2_224", "model_args": SMALL}, "is no plain ViT"),
        ({"name": "vit_tiny_patch16_224", "blocks": [12]}, "backbone.blocks=12: need -12 to 11"),
        ({"name": "vit_tiny_patch16_224", "depth": 13}, "backbone.depth=13: need 1 to 12"),
        ({"name": "vit_tiny_patch16_224", "depth": 2, "blocks": [2]}, "backbone.blocks=2: need -2 to 1"),
        ({"name": "vit_tiny_patch16_224", "trainable_from": 13}, "backbone.trainable_from=13: need 0 to 12"),
        ({"name": "vit_tiny_patch16_224", "num_affinity_blocks": 13}, "num_affinity_blocks=13: need 0 to 12"),
        ({"name": "vit_tiny_patch16_224", "positions": "nearest"}, "backbone.positions=nearest is not known"),
        ({"name": "vit_tiny_patch16_224", "fit": "stretch"}, "need one of pad, crop, resize"),
        ({"name": "vit_tiny_patch16_224", "final_norm": "first"}, "need one of last, all, none"),
        ({"name": NAMES["dinov2"], "projection": True}, "has no projection"),
        ({"name": "vit_tiny_patch16_224", "pretrained": "no/such.pth"}, "no such file"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        TimmViT(**({"pretrained": None} | settings))
    assert "\n" not in str(caught.value)


CONFIGS = sorted(path.stem for path in (CONF / "backbone").glob("*.yaml") if "timm_vit," in path.read_text())


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_build(name):
    small_one = "{depth:1,embed_dim:48,num_heads:4}"
    settings = [
        "+backbone.model_args=" + small_one,
        "backbone.pretrained=null",
        "backbone.num_affinity_blocks=1",
    ]
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(overrides=[f"+backbone={name}", *settings])
    assert isinstance(instantiate(config.backbone), TimmViT)


@pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="needs ../shared/weights beside the checkout")
def test_weights_beside_the_checkout():
    path = next((SHARED / "weights").glob("vit_small_patch14_dinov2*.safetensors"))
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(
            overrides=["+backbone=dinov2_small", f"backbone.pretrained={path}", "backbone.depth=2"]
        )
    vit = instantiate(config.backbone).eval()
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True, depth=2)
    model.load_state_dict(vit.state_dict())
    vit.positions = "timm"
    image = picture(56, 84)
    close(
        vit(image).features[0], as_map(model.eval().forward_features(image), vit, image), rtol=1e-4, atol=1e-4
    )
    assert len(vit.sha256) == 64
    assert vit.pos_embed.dtype == torch.float32
