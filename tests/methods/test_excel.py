"""ExCEL: calibration and guidance against loops, texts, labels in corner cases, files of the authors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import parity_excel
from clip_method import Colours, colour_photo, colour_tower
from parity_rows import settings
from wsss_afa.errors import UserError
from wsss_afa.methods.excel.method import ExCEL
from wsss_afa.methods.excel.released import native_positions
from wsss_afa.methods.recipe import load
from wsss_afa.models.backbones.plain_vit import project
from wsss_afa.ops.attention_walk import AttentionWalk
from wsss_afa.ops.labels import best_class, own_classes
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.ops.patch_text import patch_text_maps
from wsss_afa.ops.text_enrichment import enrich, phrase_centers

DATA = Path(__file__).parents[1] / "data" / "excel_part.npz"


@pytest.fixture(scope="module")
def file():
    with np.load(DATA) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture
def method(file):
    return parity_excel.build(settings(file), file).train()


@pytest.fixture
def batch(file):
    image = torch.from_numpy(file["in/image"])
    return {
        "image": image,
        "class_label": torch.from_numpy(file["in/class_labels"]).float(),
        "valid_box": torch.tensor([[0, 96, 0, 96], [16, 80, 0, 64]]),
        "name": ["a", "b"],
    }


@torch.no_grad()
def by_hand(net, image, guidance=None):
    """Both paths, head by head: tokens, and features of the side path, before the division by length."""
    tokens, _ = net.backbone.embed(image)
    side = None
    for index, block in enumerate(net.backbone.blocks):
        side = tokens if index == net.first else side
        query, key, value = project(block, tokens)

        def alike(one, other):
            return (one @ other.mT / one.shape[-1] ** 0.5).softmax(-1)

        attended = torch.cat([alike(q, k) @ v for q, k, v in zip(query[0], key[0], value[0], strict=True)], 1)
        if index >= net.first:
            calibrated = torch.zeros(())
            for q, k, v in zip(query[0], key[0], value[0], strict=True):
                head = (alike(q, q) + alike(k, k) + alike(v, v)) / 3
                if guidance is not None:
                    head = head + F.pad(guidance[0], (1, 0, 1, 0))
                calibrated = calibrated + head
            side = side + block.attn.proj(torch.cat([calibrated @ v for v in value[0]], 1))[None]
        tokens = tokens + block.attn.proj(attended)[None]
        tokens = tokens + block.mlp(block.norm2(tokens))
    side = torch.cat([tokens[:, :1], side[:, 1:]], 1)
    return tokens, net.backbone.head(net.backbone.norm(side))


@pytest.mark.parametrize("guided", [False, True])
def test_both_paths(method, batch, guided):
    """Guidance that is added to the end of the side path is that of a second pass."""
    net, image = method.net, batch["image"][:1]
    passed = method.labeler(net, image)
    guidance = method.labeler.guidance(passed.fused) if guided else None
    tokens, features = by_hand(net, image, guidance)
    torch.testing.assert_close(passed.encoded.side[:, 0], tokens[:, 0], rtol=1e-4, atol=1e-4)
    expected = features / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(net.features(passed.encoded, guidance), expected, rtol=1e-4, atol=1e-4)


def test_layers_are_the_outputs_of_blocks_unless_aliased(method, batch):
    net = method.net
    net.aliased = False
    clean = net.encode(batch["image"]).layers
    net.aliased = True
    aliased = net.encode(batch["image"]).layers
    expected = net.backbone.encode(batch["image"], range(12), "none").maps
    for index, (ours, theirs) in enumerate(zip(clean, expected, strict=True)):
        torch.testing.assert_close(ours[:, 1:].mT, theirs.flatten(2), rtol=1e-4, atol=1e-4)
        assert torch.equal(ours, aliased[index]) == (index < 6 or index == 11)


def test_class_maps_of_each_patch_and_text():
    generator = torch.Generator().manual_seed(0)
    features, texts = torch.randn(2, 7, 5, generator=generator), torch.randn(4, 5, generator=generator)
    maps = patch_text_maps(features, texts, num_classes=3)
    for index, image in enumerate(features):
        weights = (2 * image[0] @ texts.T).softmax(0)
        weights = weights / weights.mean()
        products = image[:, None] * texts[None] * weights[None, :, None]  # (n, T, d)
        likeness = (products - products.mean(1, keepdim=True)).sum(-1)
        low, high = likeness.amin(0), likeness.amax(0)
        expected = ((likeness - low) / (high - low))[1:, :3].T
        torch.testing.assert_close(maps[index], expected, rtol=1e-4, atol=1e-5)


def test_enrichment_of_each_text():
    generator = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(3, 5, generator=generator), dim=1)
    bank = torch.randn(24, 5, generator=generator)
    for text, found in zip(texts, enrich(texts, bank), strict=True):
        likeness = bank @ text
        weights = likeness.masked_fill(likeness <= likeness.sort().values[1], float("-inf")).softmax(0)
        expected = text + weights @ bank
        torch.testing.assert_close(found, expected / expected.norm())
    assert enrich(texts, bank[:4]).isfinite().all()  # of so few none is dropped
    assert torch.equal(enrich(texts, bank[:0]), texts)


def test_centers_of_phrases():
    around = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    phrases = around.repeat(8, 1) + 0.01 * torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
    centers = phrase_centers(phrases, 3)
    order = torch.cdist(around, centers).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(centers[order], phrases.view(8, 3, 2).mean(0))
    assert torch.equal(phrase_centers(phrases, 24), phrases)


def test_padding_is_ignored_unless_it_is_to_be_labelled(method, batch):
    passed = method.labeler(method.net, batch["image"])
    made = method.labeler.label(method.net, batch["image"], passed, batch["class_label"], True)
    assert (method.within(batch, made) != 255).all()
    method.label_padding = False
    label = method.within(batch, made)
    assert (label[0] != 255).all()
    assert (label[1] != 255).sum() == 64 * 64


@pytest.mark.parametrize("source", ["static", "affinity", "guided"])
def test_images_without_tags_are_background(method, batch, source):
    method.eval()
    untagged = {**batch, "class_label": torch.zeros(2, 5)}
    (scores,) = method.maps(untagged, source, [0.0])
    assert not scores.argmax(1).any()


def test_labels_of_an_evaluation_hang_on_their_image_alone(method, batch):
    method.eval()
    method.labeler.centers = ("image", "batch")
    (both,) = method.maps(batch, "guided", [0.0])
    alone = {**batch, "image": batch["image"][1:], "class_label": batch["class_label"][1:]}
    (one,) = method.maps(alone, "guided", [0.0])
    torch.testing.assert_close(both[1:, : one.shape[1]], one, rtol=1e-3, atol=1e-3)


def test_the_tower_is_neither_trained_nor_moved(method, batch):
    trained = {id(p) for kind in method.parameter_kinds().values() for p in kind}
    assert not trained & {id(p) for p in method.net.backbone.parameters()}
    assert not any(part.training for part in method.net.backbone.modules())
    sum(method.losses(batch, 4).values()).backward()
    assert all(p.grad is not None for p in method.net.parameters() if id(p) in trained)


def test_mistakes_are_named(method):
    with pytest.raises(UserError, match="maps_from=guided_maps is not known; need static or guided"):
        method.check_phases("maps_from", {"static": "guided_maps"}, ("static", "guided"))
    with pytest.raises(UserError, match="fewer than the backbone's 12 blocks"):
        type(method.net)(method.net.backbone, 5, method.net.texts, calibrated=12)


def test_resized_positions_are_undone(file):
    native = torch.from_numpy(file["in/positional_embedding_native"])[None]
    resized = torch.from_numpy(file["state/encoder.visual.positional_embedding"])[None]
    torch.testing.assert_close(native_positions(resized, 4), native, rtol=1e-4, atol=1e-5)
    assert native_positions(native, 14) is native


def test_a_released_file_is_opened(file, tmp_path):
    """With a text tower of CLIP's vocabulary, as theirs; the golden file's has another."""
    open_clip = pytest.importorskip("open_clip")
    meta = settings(file)
    tower = open_clip.transformer.TextTransformer(77, 49408, 16, 1, 1, output_dim=meta["clip_dim"])
    state = parity_excel.state_of(file)
    state |= {f"encoder.{name}": value for name, value in tower.state_dict().items()}
    rows = torch.randn(21, meta["embedding_dim"], 1, 1)
    state |= {"decoder.linear_pred.weight": rows, "decoder.linear_pred.bias": torch.zeros(21)}
    state["encoder.visual.attn.qkv.weight"] = torch.zeros(1)
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "excel.pth")
    method = load(tmp_path / "excel.pth").eval()
    assert method.recipe["class_names"][:2] == ["aeroplane", "bicycle"]
    assert method.net.texts.shape == (20 + 25, meta["clip_dim"])
    assert method.segment(torch.randn(1, 3, 64, 96)).shape == (1, 21, 4, 6)


@pytest.mark.parametrize("tags", [(1, 1), (0, 1), (1, 0), (0, 0)])
def test_a_tower_that_knows_colours_gives_right_masks(tags):
    """Static maps; a class that the tags lack is background."""
    image, mask = colour_photo()
    thresholds = dict.fromkeys(("static", "affinity", "guided"), 0.79)
    method = ExCEL(
        colour_tower(), 2, ["red", "blue"], Colours(), AttentionWalk(0.79, inclusive=True),
        PixelAdaptiveRefinement(20), phases={"static": 0}, weights={"seg": 1.0, "aff": 0.1},
        maps_from="static", affinity_from="label", box_thresholds=thresholds, augmentation={}, size=None,
        calibrated=2, attended=2, decoder_dim=8, decoder_heads=2,
    )  # fmt: skip
    batch = {"image": image, "class_label": torch.tensor([tags]).float(), "name": ["a"],
             "valid_box": torch.tensor([[0, 96, 0, 128]])}  # fmt: skip
    (scores,) = method.eval().maps(batch, "static", ())
    found = best_class(scores, own_classes(torch.tensor([tags])))
    assert (found == mask * torch.tensor((1, *tags))[mask]).float().mean() > 0.97


def test_each_phase_steps_in_mixed_precision(method, batch):
    for phase in method.phases:
        with torch.autocast("cpu", torch.bfloat16):
            terms = method.losses(batch, phase.first)
        assert all(term.isfinite() for term in terms.values())
