"""The network's heads against convolutions over whole attention maps, and its views against each other."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

import reference
from wsss_afa.errors import UserError
from wsss_afa.methods.afa.network import AFANet, AffinityHead
from wsss_afa.methods.optim import parameter_kinds
from wsss_afa.models.backbones.mix_transformer import MixTransformer, attention_logits
from wsss_afa.types import AffinityTokens


def make_net(num_classes: int = 3, pool_top_k: int | None = 1, drop_path_rate: float = 0.0) -> AFANet:
    torch.manual_seed(0)
    backbone = MixTransformer((8, 16, 20, 32), (1, 1, 1, 2), drop_path_rate=drop_path_rate)
    return AFANet(backbone, num_classes, decoder_dim=12, pool_top_k=pool_top_k)


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def net() -> AFANet:
    return make_net().eval()


# Affinity


def random_tokens(grid: tuple[int, int] = (2, 3), scale: float = 1.0) -> AffinityTokens:
    generator, count = torch.Generator().manual_seed(2), math.prod(grid)
    drawn = [scale * torch.randn(2, 3, count, 4, dtype=torch.float64, generator=generator) for _ in range(4)]
    return AffinityTokens(drawn[:2], drawn[2:], grid)


def test_affinity_equals_the_convolution_over_heads(net, image):
    encoded = net.backbone(image)
    logits = attention_logits(encoded.queries, encoded.keys)
    head = net.affinity_head
    expected = F.conv2d(logits + logits.mT, head.weight.view(1, 16, 1, 1), head.bias)[:, 0].sigmoid()
    affinity = net(image).affinity
    assert affinity.shape == (2, 12, 12)
    torch.testing.assert_close(affinity, expected, rtol=0, atol=1e-5)


def test_affinity_of_tokens_equals_the_loop_over_blocks():
    head, tokens = AffinityHead(6), random_tokens()
    expected = reference.affinity(tokens.queries, tokens.keys, head.weight.double(), head.bias.double())
    affinity = head(tokens)
    torch.testing.assert_close(affinity, expected.float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(affinity, affinity.mT)
    assert affinity.min() >= 0
    assert affinity.max() <= 1


def test_affinity_gradient():
    head, tokens = AffinityHead(6), random_tokens(scale=0.5)
    inputs = [part.requires_grad_() for part in (*tokens.queries, *tokens.keys)]
    assert gradcheck(
        lambda *parts: head(AffinityTokens([*parts[:2]], [*parts[2:]], (2, 3))),
        inputs,
        eps=1e-2,  # the head computes in float32
        atol=1e-3,
        rtol=1e-2,
    )


def test_affinity_parameters_have_the_gradients_of_the_convolution():
    head, tokens = AffinityHead(6), random_tokens(scale=0.5)
    ours = torch.autograd.grad(head(tokens).square().sum(), (head.weight, head.bias))
    plain = reference.affinity(tokens.queries, tokens.keys, head.weight.double(), head.bias.double())
    theirs = torch.autograd.grad(plain.square().sum(), (head.weight, head.bias))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_affinity_starts_as_the_released_convolution():
    torch.manual_seed(0)
    head, convolution = AffinityHead(4096), torch.nn.Conv2d(4096, 1, 1)
    torch.nn.init.kaiming_normal_(convolution.weight, a=5**0.5, mode="fan_out")
    assert head.weight.std().item() == pytest.approx(convolution.weight.std().item(), rel=0.05)
    assert abs(head.weight.mean()) < 0.05
    assert abs(head.bias) <= 1 / 64


def test_gain_scales_the_start():
    torch.manual_seed(0)
    full = AffinityHead(16)
    torch.manual_seed(0)
    small = AffinityHead(16, gain=0.1)
    torch.testing.assert_close(small.weight, 0.1 * full.weight)
    torch.testing.assert_close(small.bias, 0.1 * full.bias)


def test_a_scale_is_one_of_the_logits():
    torch.manual_seed(0)
    head = AffinityHead(6, scale=0.25)
    tokens = random_tokens()
    smaller = AffinityTokens([query * 0.25 for query in tokens.queries], tokens.keys, tokens.grid)
    plain = AffinityHead(6)
    plain.load_state_dict(head.state_dict())
    torch.testing.assert_close(head.logits(tokens), plain.logits(smaller))


def test_a_small_gain_leaves_large_logits_on_the_slope():
    """Heads whose logits have a standard deviation of 10, as training from scratch makes them."""
    torch.manual_seed(0)
    queries, keys = (10**0.5 * torch.randn(4, 16, 50, 20) / 20**0.25 for _ in range(2))
    tokens = AffinityTokens([queries], [keys], (5, 10))

    def saturated(gain):
        torch.manual_seed(1)
        affinity = AffinityHead(16, gain)(tokens)
        return ((affinity < 0.02) | (affinity > 0.98)).float().mean().item()

    assert saturated(1.0) > 0.75
    assert saturated(0.05) < 0.1


def test_affinity_is_one_half_without_weights():
    head = AffinityHead(6)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    assert (head(random_tokens()) == 0.5).all()


# Classification


@pytest.mark.parametrize("top_k", [1, 3, None, 99])
def test_pooling(image, top_k):
    net = make_net(pool_top_k=top_k).eval()
    last = net.backbone(image).features[-1].flatten(2)  # (B, D, 12)
    best = last.sort(dim=-1, descending=True).values[..., : top_k or 12]
    expected = best.mean(-1) @ net.classifier.weight.flatten(1).T
    torch.testing.assert_close(net(image).class_logits, expected, rtol=1e-4, atol=1e-5)


def test_average_pooling_is_the_mean_of_the_map(image):
    output = make_net(pool_top_k=None).eval()(image)
    torch.testing.assert_close(output.class_logits, output.activation.cam.mean((2, 3)), rtol=1e-4, atol=1e-5)


# Views


def test_shapes(net, image):
    output = net(image)
    assert output.class_logits.shape == (2, 3)
    assert output.seg_logits.shape == (2, 4, 16, 12)
    assert output.activation.cam.shape == (2, 3, 4, 3)
    assert output.activation.tokens.grid == (4, 3)


def test_views_agree_with_forward(net, image):
    output = net(image)
    assert torch.equal(net.classify(image), output.class_logits)
    assert torch.equal(net.segment(image), output.seg_logits)
    activation = net.activate(image)
    assert torch.equal(activation.cam, output.activation.cam)
    assert torch.equal(net.affinity_head(activation.tokens), output.affinity)


def test_map_is_the_classifier_at_every_position(net, image):
    last = net.backbone(image).features[-1]
    expected = torch.einsum("bdhw,cd->bchw", last, net.classifier.weight[:, :, 0, 0])
    torch.testing.assert_close(net(image).activation.cam, expected, rtol=1e-4, atol=1e-5)


def test_activation_has_no_gradient_and_affinity_has(image):
    output = make_net().train()(image)
    tokens = output.activation.tokens
    assert not any(t.requires_grad for t in (output.activation.cam, *tokens.queries, *tokens.keys))
    output.affinity.square().sum().backward()
    net = make_net().train()
    net(image).affinity.square().sum().backward()
    assert net.backbone.stages[3].blocks[1].attn.q.weight.grad.count_nonzero() > 0
    assert net.decoder.fuse.weight.grad is None
    assert not make_net().activate(image).cam.requires_grad


def test_activation_leaves_batch_norm_alone(image):
    net = make_net().train()
    net.activate(image)
    assert net.decoder.norm.num_batches_tracked == 0
    net(image)
    assert net.decoder.norm.num_batches_tracked == 1


def test_odd_sizes_and_one_class():
    output = make_net(num_classes=1).eval()(torch.randn(1, 3, 45, 70))
    assert output.class_logits.shape == (1, 1)
    assert output.seg_logits.shape[1] == 2
    height, width = output.activation.tokens.grid
    assert output.affinity.shape == (1, height * width, height * width)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(image, dtype):
    net = make_net().eval()
    exact = net(image)
    with torch.autocast("cpu", dtype):
        output = net(image)
    assert output.seg_logits.dtype == dtype
    assert output.affinity.dtype == torch.float32
    for name in ("class_logits", "seg_logits", "affinity"):
        ours, theirs = getattr(output, name).float(), getattr(exact, name)
        assert ours.isfinite().all()
        assert (ours - theirs).abs().max() < 0.1 * theirs.abs().max()


# Construction


def test_every_parameter_has_one_kind(net):
    kinds = parameter_kinds(net)
    assert list(kinds) == ["encoder", "norm", "head", "decoder"]
    sorted_ids = [id(parameter) for group in kinds.values() for parameter in group]
    assert len(sorted_ids) == len(set(sorted_ids))
    assert set(sorted_ids) == {id(parameter) for parameter in net.parameters()}
    assert kinds["head"][0] is net.classifier.weight
    assert {id(parameter) for parameter in net.decoder.parameters()} == {id(p) for p in kinds["decoder"]}


def test_norms_are_the_encoders_layer_norms(net):
    norms = [module for module in net.backbone.modules() if isinstance(module, torch.nn.LayerNorm)]
    expected = {id(parameter) for module in norms for parameter in module.parameters()}
    assert {id(parameter) for parameter in parameter_kinds(net)["norm"]} == expected


@pytest.mark.parametrize(("num_classes", "pool_top_k"), [(0, 1), (-2, 1), (3, 0), (3, -1)])
def test_settings_are_checked(num_classes, pool_top_k):
    with pytest.raises(UserError, match=r"num_classes=|pool_top_k=") as error:
        make_net(num_classes, pool_top_k)
    assert "\n" not in str(error.value)
