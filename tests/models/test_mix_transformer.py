"""The encoder against `transformers`' SegFormer, the released AFA program's values, and its own promises."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.methods.afa.released import rename_afa
from wsss_afa.models.backbones.mix_transformer import (
    VARIANTS,
    MixTransformer,
    attention_logits,
    mix_transformer,
    to_map,
    to_tokens,
)
from wsss_afa.models.weights import fit_mit, read_weights

GOLDEN = Path(__file__).parents[1] / "data" / "train_step_a.npz"

# Of transformers' SegformerModel with the same sizes; classification head not counted.
PARAMETERS = {
    "b0": 3_319_392,
    "b1": 13_151_424,
    "b2": 24_196_288,
    "b3": 44_072_128,
    "b4": 60_842_688,
    "b5": 81_443_008,
}


def segformer(variant: str, **config: object) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    channels, depths, heads = VARIANTS[variant]
    sizes = {
        "hidden_sizes": channels,
        "depths": depths,
        "num_attention_heads": heads,
        "strides": (4, 2, 2, 1),
    }
    sizes = {key: list(value) for key, value in sizes.items()}
    config = transformers.SegformerConfig(**sizes, attn_implementation="eager", **config)
    return transformers.SegformerModel(config).eval()


def shake(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter, biases and norms too, a value of its own, large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = max(parameter[0].numel(), 1)
        with torch.no_grad():
            parameter.copy_(noise / fan_in**0.5 if parameter.ndim > 1 else parameter + 0.1 * noise)


def use_paper_eps(model: nn.Module) -> None:
    """1e-6 in blocks and stages, 1e-5 in patch embeddings and spatial reductions."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            inner = "patch_embeddings" in name or "attention" in name
            module.eps = 1e-5 if inner else 1e-6


def test_parameter_counts_are_published_ones():
    with torch.device("meta"):
        for variant, expected in PARAMETERS.items():
            ours = sum(parameter.numel() for parameter in mix_transformer(variant).parameters())
            theirs = sum(parameter.numel() for parameter in segformer(variant).parameters())
            assert ours == theirs == expected, variant


@pytest.mark.parametrize(
    ("variant", "size"),
    [("b0", (64, 64)), ("b0", (75, 101)), ("b1", (64, 96)), ("b2", (64, 64))],
)
def test_equals_segformer_of_transformers(variant: str, size: tuple[int, int], tmp_path: Path, capfd):
    theirs = segformer(variant)
    shake(theirs)
    use_paper_eps(theirs)
    theirs.save_pretrained(tmp_path)  # writes the published names
    ours = mix_transformer(variant, pretrained=str(tmp_path / "model.safetensors")).eval()
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        encoded = ours(image)
        expected = theirs(image, output_hidden_states=True, output_attentions=True)
    for feature, hidden in zip(encoded.features, expected.hidden_states, strict=True):
        torch.testing.assert_close(feature, hidden, rtol=1e-5, atol=1e-5 * hidden.abs().max().item())
    for query, key, attention in zip(encoded.queries, encoded.keys, expected.attentions[-2:], strict=True):
        logits = attention_logits([query], [key])
        softmax = (logits * ours.affinity_head_dim**-0.5).softmax(-1)
        assert attention.max() > 1.5 / attention.shape[-1]  # not flat, so it tells queries from keys
        torch.testing.assert_close(softmax, attention, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as archive:
        return dict(archive)


def golden_encoder(golden: dict[str, np.ndarray]) -> MixTransformer:
    meta = json.loads(str(golden["meta"]))
    names = ("embed_dims", "depths", "num_heads", "sr_ratios", "mlp_ratio", "strides")
    model = MixTransformer(**{name: meta[name] for name in names}, drop_path_rate=0.0)
    state = {
        key.removeprefix("state/"): torch.from_numpy(value)
        for key, value in golden.items()
        if key.startswith("state/")
    }
    renamed = rename_afa(state)
    model.load_state_dict(
        {
            key.removeprefix("backbone."): value
            for key, value in renamed.items()
            if key.startswith("backbone.")
        }
    )
    return model.eval()


def close_to_scale(actual: Tensor, expected: np.ndarray) -> None:
    truth = torch.from_numpy(expected)
    torch.testing.assert_close(actual, truth, rtol=0, atol=1e-5 * truth.abs().max().item())


def test_equals_released_program(golden: dict[str, np.ndarray]):
    model = golden_encoder(golden)
    with torch.no_grad():
        encoded = model(torch.from_numpy(golden["in/image"]))
    for i, feature in enumerate(encoded.features, start=1):
        close_to_scale(feature, golden[f"out/feature{i}"])
    close_to_scale(attention_logits(encoded.queries, encoded.keys), golden["out/attention_logits"])


@pytest.mark.parametrize("size", [(128, 128), (97, 65), (29, 200)])
def test_describes_itself(size: tuple[int, int]):
    model = mix_transformer("tiny").eval()
    encoded = model(torch.randn(2, 3, *size))
    assert model.reductions == (4, 8, 16, 16)
    for feature, channels, reduction in zip(encoded.features, model.channels, model.reductions, strict=True):
        assert feature.shape == (2, channels, -(-size[0] // reduction), -(-size[1] // reduction))
    tokens = encoded.features[-1][0, 0].numel()
    heads = model.num_affinity_maps // len(encoded.queries)
    assert len(encoded.queries) == len(encoded.keys) == 2
    assert all(
        tensor.shape == (2, heads, tokens, model.affinity_head_dim)
        for tensor in encoded.queries + encoded.keys
    )
    assert attention_logits(encoded.queries, encoded.keys).shape == (
        2,
        model.num_affinity_maps,
        tokens,
        tokens,
    )


def test_strides_of_segformer():
    model = mix_transformer("tiny", strides=[4, 2, 2, 2])
    assert model.reductions == (4, 8, 16, 32)
    assert model(torch.randn(1, 3, 64, 64)).features[-1].shape[2:] == (2, 2)


def test_number_of_affinity_blocks():
    model = MixTransformer(*VARIANTS["b0"][:2], num_affinity_blocks=1)
    assert model.num_affinity_maps == 8
    assert len(model(torch.randn(1, 3, 32, 32)).keys) == 1


def test_attention_logits_are_block_major():
    queries = [torch.randn(2, 3, 5, 4) for _ in range(2)]
    keys = [torch.randn(2, 3, 5, 4) for _ in range(2)]
    logits = attention_logits(queries, keys)
    for block in range(2):
        for head in range(3):
            expected = queries[block][1, head] @ keys[block][1, head].T
            torch.testing.assert_close(logits[1, 3 * block + head], expected)


def test_gradients_reach_queries_and_keys():
    model = mix_transformer("tiny")
    encoded = model(torch.randn(1, 3, 64, 64))
    attention_logits(encoded.queries, encoded.keys).square().mean().backward()
    attention = model.stages[3].blocks[-1].attn
    assert attention.q.weight.grad.abs().sum() > 0
    assert attention.kv.weight.grad.chunk(2)[0].abs().sum() > 0  # keys
    assert attention.kv.weight.grad.chunk(2)[1].abs().sum() == 0  # values take no part in the last block
    assert model.stages[0].patch_embed.proj.weight.grad.abs().sum() > 0


def test_drop_path_rises_linearly_and_rests_in_evaluation():
    model = mix_transformer("b0", drop_path_rate=0.7)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.stages for block in stage.blocks]
    np.testing.assert_allclose(rates, np.arange(8) / 10, atol=1e-6)
    assert not any(isinstance(m, DropPath) for m in mix_transformer("b0", drop_path_rate=0.0).modules())
    image = torch.randn(2, 3, 64, 64)
    assert not torch.equal(model(image).features[-1], model(image).features[-1])
    model.eval()
    assert torch.equal(model(image).features[-1], model(image).features[-1])


def test_norm_names_the_norm_parameters_and_no_others():
    model = mix_transformer("b0")
    norms = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for part in ("weight", "bias")
    }
    assert norms == {name for name, _ in model.named_parameters() if "norm" in name}
    eps = {name: m.eps for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    assert all(e == (1e-5 if "attn" in n or "patch_embed" in n else 1e-6) for n, e in eps.items())


def test_initial_weights():
    torch.manual_seed(0)
    model = mix_transformer("b1")
    assert model.stages[3].blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    embed = model.stages[1].patch_embed.proj.weight
    assert embed.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    depthwise = model.stages[3].blocks[0].mlp.dwconv.weight
    assert depthwise.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.02)
    assert all(p.eq(0).all() for name, p in model.named_parameters() if name.endswith("bias"))
    assert all(p.eq(1).all() for name, p in model.named_parameters() if name.endswith("norm.weight"))


def test_copies_are_equal():
    model = mix_transformer("tiny").eval()
    other = mix_transformer("tiny").eval()
    other.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 64, 48)
    truth = model(image).features[-1]
    assert torch.equal(copy.deepcopy(model)(image).features[-1], truth)
    assert torch.equal(other(image).features[-1], truth)


@pytest.mark.parametrize("batch", [1, 2])
def test_passing_between_tokens_and_maps_moves_no_data(batch: int):
    tokens = torch.randn(batch, 12, 8)
    assert to_map(tokens, (3, 4))[0, 5, 1, 2] == tokens[0, 1 * 4 + 2, 5]
    assert to_tokens(to_map(tokens, (3, 4))).data_ptr() == tokens.data_ptr()
    assert to_tokens(to_map(tokens, (3, 4))).is_contiguous()

    def channels_last(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert inputs[0].is_contiguous(memory_format=torch.channels_last)
        assert output.is_contiguous(memory_format=torch.channels_last)

    model = mix_transformer("tiny").eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(channels_last)
    encoded = model(torch.randn(batch, 3, 64, 80).to(memory_format=torch.channels_last))
    assert all(f.is_contiguous(memory_format=torch.channels_last) for f in encoded.features)


def test_timm_knows_the_variants():
    torch.manual_seed(0)
    ours = mix_transformer("b0")
    torch.manual_seed(0)
    theirs = timm.create_model("mit_b0", drop_path_rate=0.1)
    assert isinstance(theirs, MixTransformer)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert timm.list_models("mit_b*", pretrained=True) == [f"mit_b{i}" for i in range(6)]
    assert timm.models.get_pretrained_cfg("mit_b4").hf_hub_id == "nvidia/mit-b4"
    with pytest.raises(TypeError, match="num_classes"):
        timm.create_model("mit_b0", num_classes=3)


def test_timm_loads_published_names(tmp_path: Path):
    source = mix_transformer("b0")
    torch.save(source.state_dict(), tmp_path / "mit.pth")
    overlay = {"file": str(tmp_path / "mit.pth")}
    loaded = timm.create_model("mit_b0", pretrained=True, pretrained_cfg_overlay=overlay)
    state = fit_mit(read_weights(overlay["file"]), loaded)
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "b9"}, "variant=b9 is not known; need one of b0, .*set variant=b1"),
        ({"variant": "b0", "strides": (4, 2, 2)}, "strides=.*got 3, need one per stage: set"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str):
    with pytest.raises(UserError, match=message) as error:
        mix_transformer(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(1, 1), (20, 64), (64, 28), (3, 300)])
def test_a_short_side_is_lengthened_by_its_border(size: tuple[int, int]):
    torch.manual_seed(0)
    model = mix_transformer("tiny").eval()
    image = torch.randn(1, 3, *size)
    below, right = (max(0, 29 - side) for side in size)
    longer = np.pad(image.numpy(), ((0, 0), (0, 0), (0, below), (0, right)), mode="edge")
    with torch.no_grad():
        short, whole = model(image), model(torch.from_numpy(longer))
    for step, mine, theirs in zip(model.reductions, short.features, whole.features, strict=True):
        h, w = (-(-side // step) for side in size)
        assert torch.equal(mine, theirs[:, :, :h, :w])
    grid = whole.features[-1].shape[2:]
    for mine, theirs in zip(short.queries + short.keys, whole.queries + whole.keys, strict=True):
        assert torch.equal(mine, theirs.unflatten(2, grid)[:, :, :h, :w].flatten(2, 3))


def test_activation_checkpointing_changes_no_number():
    torch.manual_seed(0)
    plain = mix_transformer("tiny", drop_path_rate=0.0)
    saving = mix_transformer("tiny", drop_path_rate=0.0, activation_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 64, 64)
    for model in (plain, saving):
        encoded = model(image)
        (encoded.features[-1].sum() + encoded.queries[0].sum()).backward()
    for name, parameter in plain.named_parameters():
        gradient = saving.get_parameter(name).grad
        assert (gradient is None) == (parameter.grad is None)
        assert gradient is None or torch.equal(gradient, parameter.grad)
