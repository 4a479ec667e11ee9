"""Views of training images: functions of image and seed, geometry shared where it should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from wsss_afa.data.sampler import Augmented, Draw
from wsss_afa.data.synthetic import SyntheticDataModule, SyntheticScenes
from wsss_afa.data.transforms import TrainTransform
from wsss_afa.data.views import View
from wsss_afa.errors import UserError
from wsss_afa.types import MEAN, STD

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def test_a_view_is_a_function_of_its_seed_and_name():
    one, same, other = (View(name, 32, jitter=1, blur=1) for name in ("a", "a", "b"))
    assert np.array_equal(one(IMAGE, 5), same(IMAGE, 5))
    assert not np.array_equal(one(IMAGE, 5), one(IMAGE, 6))
    assert not np.array_equal(one(IMAGE, 5), other(IMAGE, 5))


def test_without_probabilities_nothing_changes():
    assert np.array_equal(View("a", 32)(IMAGE, 0), IMAGE)


def test_jitter_grey_and_solarisation_are_torchvisions():
    """Brightness is within its range; grey has torchvision's weights; values from 128 on are inverted."""
    tensor = torch.from_numpy(IMAGE).permute(2, 0, 1)
    ratios = [
        View("a", 8, jitter=1, strength=(0.4, 0, 0, 0))(IMAGE, seed).mean() / IMAGE.mean()
        for seed in range(99)
    ]
    assert 0.6 <= min(ratios) < 0.7
    assert 1.2 < max(ratios) <= 1.4
    grey = torch.from_numpy(View("a", 8, grey=1)(IMAGE, 0)).permute(2, 0, 1)
    assert (grey.int() - TF.rgb_to_grayscale(tensor, 3).int()).abs().max() <= 1
    solarized = torch.from_numpy(View("a", 8, solarize=1)(IMAGE, 0)).permute(2, 0, 1)
    assert torch.equal(solarized, TF.solarize(tensor, 128))


def test_a_cut_view_has_the_side_of_crops_and_shows_a_share_of_the_image():
    ramp = np.arange(100, dtype=np.uint8)[:, None, None].repeat(100, 1).repeat(3, 2)
    spans = []
    for seed in range(50):
        cut = View("a", 32, area=(0.25, 0.25), aspect=(1.0, 1.0))(ramp, seed)
        assert cut.shape == (32, 32, 3)
        spans.append(int(cut[-1, 0, 0]) - int(cut[0, 0, 0]))
    assert 45 <= np.mean(spans) <= 51  # half a side


def transform(**views):
    return TrainTransform(48, (0.5, 1.5), padding="black", views=views)


@pytest.mark.parametrize("seed", range(6))
def test_views_lie_on_the_image_pixel_on_pixel(seed):
    plain, box = TrainTransform(48, (0.5, 1.5))(IMAGE, seed)
    both = transform(image={"jitter": 0.0}, local={})
    image, same = both(IMAGE, seed)
    top, bottom, left, right = box.tolist()
    assert torch.equal(box, same)
    assert torch.equal(image[:, top:bottom, left:right], plain[:, top:bottom, left:right])
    assert torch.equal(both.views(IMAGE, seed)["local"], image)


def test_padding_is_black():
    image, (top, bottom, left, right) = transform()(IMAGE[:20, :20], 0)
    outside = torch.ones(48, 48, dtype=torch.bool)
    outside[top:bottom, left:right] = False
    black = (0 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(image[:, outside], black[:, None].expand(-1, int(outside.sum())))


def test_a_cut_image_fills_its_crop():
    image, box = transform(image={"area": [0.3, 1.0]})(IMAGE, 0)
    assert image.shape == (3, 48, 48)
    assert box.tolist() == [0, 48, 0, 48]


def test_items_carry_their_views_and_the_seed_of_their_draw():
    items = Augmented(SyntheticScenes(4, size=32), transform(local={"blur": 1.0}))
    item = items[Draw(2, 7)]
    assert item["seed"] == 7
    assert item["views"]["local"].shape == (3, 48, 48)
    assert not torch.equal(item["views"]["local"], item["image"])


def test_batches_of_a_data_module_have_the_views_of_a_method():
    data = SyntheticDataModule(image_size=32, train_images=4, batch_size=2, crop_size=32)
    data.normalize(MEAN, STD, {"padding": "black", "views": {"global": {"area": [0.4, 1.0]}}})
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["views"]["global"].shape == (2, 3, 32, 32)
    assert batch["seed"].shape == (2,)


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        ({"padding": "white"}, "padding=white is not known; need mean or black"),
        ({"views": {"local": {"blur": 2}}}, "the view local has blur=2, need a probability"),
        ({"views": {"local": {"area": [0, 1]}}}, r"area=\[0, 1\], need shares"),
        ({"views": {"local": {"blurr": 1}}}, "method.augmentation=.*blurr"),
    ],
)
def test_mistakes_are_named(augmentation, words):
    with pytest.raises(UserError, match=words):
        SyntheticDataModule(image_size=32).normalize(MEAN, STD, augmentation)
