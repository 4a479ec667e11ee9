"""GradCAM in closed form against autograd through timm's own block, class by class."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers import QuickGELU
from torch import nn

from wsss_afa.errors import UserError
from wsss_afa.models.backbones.timm_vit import TimmViT
from wsss_afa.ops.grad_cam import normalize_maps, softmax_grad_cam
from wsss_afa.ops.labels import OwnClasses, own_classes

TAGS = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0.0]])
GRID = (3, 5)


def tower(seed=0, activation="quickgelu_"):
    torch.manual_seed(seed)
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 12}
    vit = TimmViT(f"vit_base_patch16_clip_{activation}224.openai", None, projection=True, model_args=sizes)
    for name, parameter in vit.named_parameters():
        std = 0.5 if name.endswith("bias") else 2 / parameter.shape[-1] ** 0.5
        nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=std)
    nn.init.zeros_(vit.head.bias)
    return vit.eval().requires_grad_(False)


def texts(count, generator):
    return F.normalize(torch.randn(count, 12, generator=generator), dim=-1)


def inputs(seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(3, 16, 32, generator=generator)
    return tokens, texts(4, generator), texts(6, generator)


def by_autograd(vit, tokens, rows, position, scale):
    """Map (h, w) of one class of one image: the gradient of its score at what attention is given."""
    block = vit.blocks[-1]
    normed = block.norm1(tokens).detach().requires_grad_()
    middle = tokens + block.attn(normed)
    output = middle + block.mlp(block.norm2(middle))
    feature = vit.head(vit.norm(output)[:, 1:].mean(1))
    logits = scale * F.normalize(feature, dim=-1) @ rows.T
    # a class's logit against all others: the gradient of log (p / (1 − p)), a multiple of that of p
    others = torch.cat([logits[:, :position], logits[:, position + 1 :]], dim=1).logsumexp(1)
    (gradient,) = torch.autograd.grad((logits[:, position] - others).sum(), normed)
    weights = gradient[:, 1:].mean(1)
    return normalize_maps(normalize_maps((normed[:, 1:] @ weights[0]).relu().unflatten(1, GRID)))[0].detach()


@pytest.mark.parametrize("scale", [5.0, 100.0])
@pytest.mark.parametrize(("seed", "activation"), [(0, "quickgelu_"), (1, "quickgelu_"), (2, "")])
def test_it_equals_autograd_class_by_class(seed, activation, scale):
    vit, (tokens, names, backgrounds) = tower(seed, activation), inputs(seed)
    assert isinstance(vit.blocks[-1].mlp.act, QuickGELU if activation else nn.GELU)
    classes = own_classes(TAGS)
    found = softmax_grad_cam(
        vit.blocks[-1], vit.norm, vit.head, tokens, GRID, names, backgrounds, classes, scale
    )
    for image, own in enumerate(([0, 2], [3])):
        rows = torch.cat([names[own], backgrounds])
        for position in range(len(own)):
            expected = by_autograd(vit, tokens[image : image + 1], rows, position, scale)
            torch.testing.assert_close(found.cam[image, position], expected, rtol=1e-5, atol=1e-5)
    assert not found.cam[1, 1:].any()  # filling
    assert not found.cam[2].any()  # no tag
    assert found.cam[0].amax((-2, -1)).gt(0.99).any()
    assert not found.cam.requires_grad


def test_logits_are_likeness_of_the_mean_patch_to_all_texts():
    vit, (tokens, names, backgrounds) = tower(), inputs(0)
    found = softmax_grad_cam(
        vit.blocks[-1], vit.norm, vit.head, tokens, GRID, names, backgrounds, own_classes(TAGS), 10.0
    )
    feature = F.normalize(vit.head(vit.norm(vit.blocks[-1](tokens))[:, 1:].mean(1)), dim=-1)
    torch.testing.assert_close(found.logits, 10 * feature @ torch.cat([names, backgrounds]).T)
    torch.testing.assert_close(found.attention.sum(-1), torch.ones(3, 16))


def test_the_factor_of_a_saturated_score_is_gone():
    """Where the true gradient is too small for any map, the map is there."""
    vit, (tokens, names, backgrounds) = tower(), inputs(0)
    arguments = (vit.blocks[-1], vit.norm, vit.head, tokens, GRID, names, backgrounds, own_classes(TAGS))
    found = softmax_grad_cam(*arguments, scale=1000.0)
    chosen = found.logits[0, [0, 2, *range(4, 10)]].double().softmax(0)[0]
    assert chosen * (1 - chosen) < 1e-12
    assert found.cam[0, 0].max() > 0.99


def test_it_is_exported_for_any_number_of_images():
    vit = tower()

    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.vit = vit

        def forward(self, tokens, names, backgrounds, ids, present):
            parts, classes = (self.vit.blocks[-1], self.vit.norm, self.vit.head), OwnClasses(ids, present)
            return softmax_grad_cam(*parts, tokens, GRID, names, backgrounds, classes).cam

    classes, (tokens, names, backgrounds) = own_classes(TAGS), inputs(0)
    arguments, any_number = (tokens, names, backgrounds, *classes), {0: torch.export.Dim("batch")}
    shapes = (any_number, None, None, any_number, any_number)
    program = torch.export.export(Maps(), arguments, dynamic_shapes=shapes).module()
    torch.testing.assert_close(program(*arguments), Maps()(*arguments))
    fewer = (tokens[:2], names, backgrounds, *own_classes(TAGS[:2]))
    torch.testing.assert_close(program(*fewer), Maps()(*fewer))


def test_no_background_is_refused():
    vit, (tokens, names, backgrounds) = tower(), inputs(0)
    parts = (vit.blocks[-1], vit.norm, vit.head)
    with pytest.raises(UserError, match="no texts of backgrounds"):
        softmax_grad_cam(*parts, tokens, GRID, names, backgrounds[:0], own_classes(TAGS))


def test_another_block_is_refused():
    sizes = {"num_heads": 4, "embed_dim": 32, "depth": 1}
    vit = TimmViT("vit_small_patch14_dinov2.lvd142m", None, num_affinity_blocks=0, model_args=sizes)
    _, names, backgrounds = inputs(0)
    with pytest.raises(UserError, match="not those of CLIP"):
        softmax_grad_cam(
            vit.blocks[-1], vit.norm, nn.Linear(32, 12), torch.zeros(3, 16, 32), GRID, names, backgrounds,
            own_classes(TAGS),
        )  # fmt: skip
