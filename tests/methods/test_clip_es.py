"""CLIP-ES: right masks of a tower that knows colours, images without tags, and what it does not do."""

from __future__ import annotations

import pytest
import torch

from clip_method import SMALL, Colours, batch_of, colour_photo, colour_tower
from quiet import QUIET
from vit_method import method_of
from wsss_afa.errors import UserError
from wsss_afa.methods.clip_es.method import CLIPES
from wsss_afa.ops.attention_walk import AttentionWalk
from wsss_afa.ops.labels import best_class, own_classes
from wsss_afa.ops.par import PixelAdaptiveRefinement

pytestmark = QUIET


def colours(inclusive=True):
    walk = AttentionWalk(0.4, inclusive)
    return CLIPES(colour_tower(), 2, ["red", "blue"], Colours(), walk, PixelAdaptiveRefinement(20), layers=3)


def batch(image, tags):
    size = image.shape[-2:]
    box = torch.tensor([[0, size[0], 0, size[1]]])
    return {"image": image, "class_label": torch.tensor([tags]).float(), "valid_box": box, "name": ["a"]}


def label(method, image, tags, source="static"):
    (scores,) = method.maps(batch(image, tags), source, ())
    return best_class(scores, own_classes(torch.tensor([tags])))


@pytest.mark.parametrize("source", ["static", "walk"])
def test_a_tower_that_knows_colours_gives_right_masks(source):
    method, (image, mask) = colours().eval(), colour_photo()
    found = label(method, image, (1, 1), source)
    assert (found == mask).float().mean() > 0.97
    alone = label(method, image, (0, 1), source)
    assert (alone == mask * (mask == 2)).float().mean() > 0.97


def test_an_image_without_tags_is_background():
    method, (image, _) = colours().eval(), colour_photo()
    assert not label(method, image, (0, 0)).any()


def test_segmentation_finds_the_classes_itself():
    """Two thirds of the image are red, which the class token sees; there is hardly any blue."""
    method, image = colours().eval(), torch.tensor([0.1, 0.8, 0.1])[None, :, None, None].repeat(1, 1, 96, 96)
    image[..., :64] = torch.tensor([0.9, 0.1, 0.1])[None, :, None, None]
    leads, expected = method.classify(image)[0], torch.zeros(96, 96, dtype=torch.long)
    expected[:, :64] = 1
    assert leads[0] > 0 > leads[1]
    found = method.protocol.probabilities(method, image).argmax(1)[0]
    assert (found == expected).float().mean() > 0.95


def test_boxes_that_lack_the_border_lose_objects_there():
    image = torch.tensor([0.1, 0.8, 0.1])[None, :, None, None].repeat(1, 1, 64, 64)
    image[..., 56:] = torch.tensor([0.9, 0.1, 0.1])[None, :, None, None]  # the last column of patches
    assert (label(colours(inclusive=True).eval(), image, (1, 0))[..., 58:] == 1).all()
    assert not label(colours(inclusive=False).eval(), image, (1, 0)).any()


def test_heat_maps_are_of_the_classes_asked_for():
    method, (image, mask) = colours().eval(), colour_photo()
    red, blue = method.heat_maps(image)[0]
    assert red[mask[0] == 1].mean() > 3 * red[mask[0] != 1].mean()
    assert blue[mask[0] == 2].mean() > 3 * blue[mask[0] != 2].mean()
    assert method.heat_maps(image, torch.tensor([[1]])).shape == (1, 1, 96, 128)


def test_an_evaluation_has_labels_of_the_tags():
    method = method_of("method=clip_es", *("method.layers=3",), small=SMALL).eval()
    found = method.evaluate({**batch_of(), "mask": torch.zeros(2, 64, 64)})
    assert found.labels.keys() == {"static"}
    assert set(found.labels["static"][1].unique().tolist()) <= {0, 2}
    assert found.seg_logits.shape == (2, 4, 4, 4)
    assert found.class_logits.shape == (2, 3)
    assert not method.net.encode(batch_of()["image"]).maps[0].requires_grad


def test_it_trains_nothing():
    method = method_of("method=clip_es", small=SMALL)
    assert not any(parameter.requires_grad for parameter in method.parameters())
    with pytest.raises(UserError, match=r"trains nothing: wsss-afa pseudo_labels method=clip_es"):
        method.losses(batch_of(), 0)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("backbone=vit_base", "no projection to texts, need a CLIP"),
        ("backbone.frozen=false", "stays frozen here: set backbone.frozen=true"),
        ("method.texts.backgrounds=[]", "has none, need one at least"),
    ],
)
def test_mistakes_are_named(override, words):
    with pytest.raises(Exception, match=words):
        method_of("method=clip_es", override, small=SMALL)
