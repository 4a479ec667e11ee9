"""MoRe: what a phase computes, that no batch makes a loss NaN, its graph, and its authors' files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vit_method import check_finite, method_of
from wsss_afa.inference.predictor import Predictor, Sizes
from wsss_afa.methods.more.graph import GraphCategory
from wsss_afa.methods.recipe import load
from wsss_afa.ops.localization_map import LocalizationSegmentation

EARLY = {"cls", "aux", "tokens", "ptc", "cle", "une"}
ALL = EARLY | {"seg", "reg"}
PATCHES = "++backbone.model_args={embed_dim: 24, depth: 3, num_heads: 2, patch_size: 8}"


def make(*overrides, experiment="voc_more", **settings) -> Any:
    scales = ("method.cam.scales=[1.0,0.5]", "method.lam.scales=[1.0,1.5]")
    return method_of(f"+experiment={experiment}", PATCHES, *scales, *overrides, **settings)


def batch_of(tags=((1, 0, 1), (0, 1, 0)), box=(0, 64, 0, 64), side=64) -> Any:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(len(tags), 3, side, side, generator=generator),
        "class_label": torch.tensor(tags, dtype=torch.float),
        "valid_box": torch.tensor([box] * len(tags)),
        "name": ["a", "b"],
        "seed": torch.arange(len(tags)),
    }


@pytest.mark.parametrize(
    ("experiment", "step", "terms", "source"),
    [
        ("voc_more", 2000, EARLY, "aux"),
        ("voc_more", 2001, ALL, "aux"),
        ("voc_more", 10001, ALL, "cam"),
        ("coco_more", 8000, {"cls", "aux", "tokens"}, "aux"),
        ("coco_more", 8001, {"cls", "aux", "tokens", "ptc"}, "aux"),
        ("coco_more", 12001, EARLY, "aux"),
        ("coco_more", 16001, ALL, "aux"),
        ("coco_more", 50001, ALL, "cam"),
    ],
)
def test_each_phase_has_the_losses_and_the_regions_of_the_schedule(experiment, step, terms, source):
    method = make(experiment=experiment)
    assert method.losses(batch_of(), step).keys() == terms
    assert method.at(method.regions_from, step) == source


NONE = ((0, 0, 0), (0, 0, 0))
CERTAIN = dict.fromkeys(("low", "high", "certain_high", "main_low", "main_high"), 0.0)
IGNORED = {"low": 0.0, "high": 1.0, "certain_high": 1.0, "main_low": 0.0, "main_high": 1.0}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("thresholds", "changes"),
    [
        (CERTAIN, {}),
        (IGNORED, {}),
        ({}, {"tags": NONE}),
        ({}, {"tags": ((0, 1, 0), (0, 0, 0)), "box": (5, 6, 7, 8)}),
        ({}, {"side": 48, "box": (0, 48, 0, 48)}),
    ],
    ids=["no uncertain token", "all ignored", "no class", "no token", "no inner token"],
)
def test_no_batch_makes_a_loss_nan(precision, thresholds, changes):
    method = make(*(f"method.{name}={value}" for name, value in thresholds.items()))
    check_finite(method, batch_of(**changes), (5000, 15000), precision)


def test_one_class_is_enough():
    method = make(classes=("cat",))
    terms = method.losses(batch_of(((1,), (0,))), 5000)
    assert all(term.isfinite() for term in terms.values())


def test_all_parameters_have_a_gradient():
    method = make()
    method.total(method.losses(batch_of(), 15000), 15000).backward()
    assert [name for name, p in method.named_parameters() if p.grad is None] == []


def test_tokens_hang_on_the_seed_of_their_image():
    everywhere = ("method.low=0.0", "method.high=1.0", "method.uncertain.surroundings=0.0")
    method, batch = make(*everywhere), batch_of(side=96, box=(0, 96, 0, 96))
    first = method.losses(batch, 0)["une"]
    assert torch.equal(first, method.losses(batch, 0)["une"])
    assert not torch.equal(first, method.losses(batch | {"seed": batch["seed"] + 5}, 0)["une"])


def test_class_tokens_start_alike_unless_noise_tells_them_apart():
    alike, apart = (make(f"method.class_token_std={std}").net.backbone.cls_token[0] for std in (0, 0.02))
    assert torch.equal(alike, alike[:1].expand_as(alike))
    assert 0.01 < (apart - alike).std() < 0.03


def slow_graph(graph, classes, patches):
    """Class tokens of one image, one class at a time."""
    nodes = torch.cat([classes, patches])
    out = []
    for token in classes:
        e, t = graph.head(token), graph.tail(nodes)
        logits, index = (t @ (e * len(e) ** -0.5)).topk(max(1, int(graph.share * len(classes))))
        weight, gathered = [], 0
        for p, j in zip(logits.softmax(0), index, strict=True):
            r = (1 - p) * e + p * t[j]
            weight.append(t[j].sum() * torch.tanh(e + r).sum())
        for a, j in zip(torch.stack(weight).softmax(0), index, strict=True):
            gathered = gathered + a * t[j]
        added = F.leaky_relu(graph.add(token + 0.1 * (e + gathered)))
        out.append(graph.norm(added + F.leaky_relu(graph.multiply(token + 0.1 * e * gathered))))
    return torch.stack(out)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_graph_equals_the_loop_over_classes(count):
    torch.manual_seed(0)
    graph, classes, patches = GraphCategory(6), torch.randn(2, count, 6), torch.randn(2, 7, 6)
    expected = torch.stack([slow_graph(graph, *each) for each in zip(classes, patches, strict=True)])
    torch.testing.assert_close(graph(classes, patches), expected, atol=1e-5, rtol=1e-4)


def test_localization_maps_are_products_of_class_tokens_and_patches():
    net, image = make().net.eval(), batch_of()["image"]
    with torch.no_grad():
        levels = net.encode(image)
        product = net.class_tokens(levels)[1, 2] @ levels.last[1, :, 3, 4]
    torch.testing.assert_close(net.localize(image).cam[1, 2, 3, 4], product)


@pytest.mark.parametrize("source", ["cam", "aux", "lam", "par"])
def test_maps_of_every_source_have_background_and_own_classes(source):
    (scores,) = make().eval().maps(batch_of(), source, [0.4])
    assert scores.shape == (2, 3, 64, 64)
    assert scores.min() >= 0
    assert (scores[1, 2] == 0).all(), "filling"


# Files of the authors' program


def test_a_photo_is_predicted_as_it_is_published():
    """Localization maps of predicted classes, of the whole photo; tags leave some of these classes."""
    method = make().eval()
    published = LocalizationSegmentation("lam", [1.0, 0.5], True, [64, 64], "classifier", 3,
                                         mean=method.mean, std=method.std)  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    image = torch.from_numpy(pixels).movedim(-1, 0) - torch.tensor(method.mean)[:, None, None]
    expected = published(method, (image / torch.tensor(method.std)[:, None, None])[None])[0]
    predictor = Predictor(method, "cpu", published, Sizes(tile=64, overlap=16))
    found, only = predictor(pixels), predictor(pixels, tags=["dog"])
    np.testing.assert_allclose(found.probability("dog"), expected[2], atol=1e-6)
    assert np.array_equal(found.label, expected.argmax(0)), "by the scores of all classes"
    assert np.array_equal(only.label, 2 * (expected[2] > expected[0])), "by those that the tags leave"
    assert set(np.unique(found.label)) > {0}


def released(method):
    """Weights as the program writes them: registers before class tokens, and parts that nothing uses."""
    names = {
        "head": "head_proj",
        "tail": "tail_proj",
        "add": "linear1",
        "multiply": "linear2",
        "norm": "norm",
    }
    names = {f"graph.{ours}.": f"graph_layer.{theirs}." for ours, theirs in names.items()}
    names |= {"decoder.near.": "decoder.conv6.", "decoder.far.": "decoder.conv7."}
    names |= {"decoder.predict.": "decoder.conv8.", "backbone.": "encoder."}
    state = {}
    for name, value in method.net.state_dict().items():
        old, new = next(((old, new) for old, new in names.items() if name.startswith(old)), ("", ""))
        state[f"module.{new}{name.removeprefix(old)}"] = value
    registers, count = state.pop("module.encoder.reg_token"), method.num_classes
    state["module.encoder.cls_token"] = torch.cat([registers, state["module.encoder.cls_token"]], dim=1)
    positions = state["module.encoder.pos_embed"]
    first, second = positions[:, :count], positions[:, count : count + registers.shape[1]]
    state["module.encoder.pos_embed"] = torch.cat(
        [second, first, positions[:, count + registers.shape[1] :]], 1
    )
    return state | {
        "module.encoder.head.bias": torch.zeros(9),
        "module.graph_layer._fc1.0.bias": torch.zeros(2),
    }


def test_a_released_file_is_loaded(tmp_path):
    published = make(
        "++backbone.model_args={embed_dim: 192, depth: 2, num_heads: 3}", "method.aux_block=-2"
    ).eval()
    torch.save(released(published), tmp_path / "model_iter_20000.pth")
    state = published.net.state_dict()
    method = load_two_blocks(tmp_path / "model_iter_20000.pth")
    for name, value in state.items():
        assert torch.equal(method.net.state_dict()[name], value), name
    image = torch.randn(1, 3, 48, 64)
    assert torch.equal(method.localize(image).cam, published.localize(image).cam)
    assert torch.equal(method.segment(image), published.segment(image))
    assert method.recipe["backbone"]["positions"] == "bicubic_scale"


def load_two_blocks(path):
    method = load(path).eval()
    method.net.aux_block = -2  # no published network has so few blocks that −3 is none
    return method
