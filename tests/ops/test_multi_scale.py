"""Multi-scale segmentation against a loop written from the protocol's definition."""

from __future__ import annotations

import hydra
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsss_afa.errors import UserError
from wsss_afa.files import CONFIG_DIR
from wsss_afa.ops.multi_scale import MultiScaleSegmentation
from wsss_afa.types import MEAN, STD


class Net(nn.Module):
    """Something that answers as a network does: four classes on a quarter of the grid."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 5, stride=4, padding=2)
        self.sizes: list[tuple[int, int]] = []

    def segment(self, image):
        self.sizes.append(tuple(image.shape[-2:]))
        return self.conv(image)


def by_definition(net, image, sizes, mirror, fusion):
    """Probabilities from a list of every scale's logits."""
    maps = []
    for size in sizes:
        scaled = F.interpolate(image, size, mode="bilinear", align_corners=False)
        views = [net.conv(scaled)] + ([net.conv(scaled.flip(3)).flip(3)] if mirror else [])
        views = [F.interpolate(v, image.shape[2:], mode="bilinear", align_corners=False) for v in views]
        maps.append(torch.stack(views).amax(0))
    if fusion == "mean":
        return torch.stack([each.softmax(1) for each in maps]).mean(0)
    stacked = torch.stack(maps)
    return (stacked.amax(0) if fusion == "max" else stacked.sum(0)).softmax(1)


IMAGE = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("fusion", ["max", "sum", "mean"])
@pytest.mark.parametrize("mirror", [False, True])
def test_scales_mirror_and_fusion_are_those_of_the_definition(fusion, mirror):
    net = Net()
    merge = MultiScaleSegmentation(scales=(1.0, 0.5, 1.25), mirror=mirror, fusion=fusion)
    expected = by_definition(net, IMAGE, [(48, 64), (24, 32), (60, 80)], mirror, fusion)
    torch.testing.assert_close(merge(net, IMAGE), expected)


@pytest.mark.parametrize("mirror", [False, True])
def test_logits_are_averaged_on_the_grid_of_the_first_scale(mirror):
    net, sizes = Net(), [(48, 64), (36, 48), (72, 96)]
    merge = MultiScaleSegmentation(
        scales=(1.0, 0.75, 1.5), mirror=mirror, fusion="mean_logits", mirror_fusion="mean", merged_at="first"
    )
    maps = []
    for size in sizes:
        scaled = F.interpolate(IMAGE, size, mode="bilinear", align_corners=False)
        views = [net.conv(scaled)] + [net.conv(scaled.flip(3)).flip(3)] * mirror
        maps.append(F.interpolate(torch.stack(views).mean(0), (12, 16), mode="bilinear", align_corners=False))
    mean = F.interpolate(torch.stack(maps).mean(0), (48, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(merge.merged(net, IMAGE), mean)
    torch.testing.assert_close(merge(net, IMAGE), mean.softmax(1))


def test_logits_are_averaged_at_the_size_of_the_image():
    net = Net()
    merge = MultiScaleSegmentation(scales=(1.0, 0.5), fusion="mean_logits", size=(32, 32), stepwise=True)
    maps = [net.conv(F.interpolate(IMAGE, (side, side), mode="bilinear")) for side in (32, 32)]
    maps[1] = net.conv(
        F.interpolate(F.interpolate(IMAGE, (32, 32), mode="bilinear"), (16, 16), mode="bilinear")
    )
    mean = sum(F.interpolate(each, (48, 64), mode="bilinear") for each in maps) / 2
    torch.testing.assert_close(merge.merged(net, IMAGE), mean)


def test_the_long_side_rule_comes_before_the_scales():
    net = Net()
    merge = MultiScaleSegmentation(scales=(1.0, 0.5), long_side=96)
    torch.testing.assert_close(
        merge(net, IMAGE), by_definition(net, IMAGE, [(72, 96), (36, 48)], False, "max")
    )
    assert net.sizes == [(72, 96), (36, 48)]


def test_scales_are_made_of_the_resized_image_where_that_is_asked_for():
    net, merge = Net(), MultiScaleSegmentation(scales=(1.0, 0.75), long_side=90, stepwise=True)
    first = F.interpolate(IMAGE, (67, 90), mode="bilinear")
    second = F.interpolate(first, (50, 67), mode="bilinear")
    maps = [F.interpolate(net.conv(each), (48, 64), mode="bilinear") for each in (first, second)]
    torch.testing.assert_close(merge.merged(net, IMAGE), torch.maximum(*maps))


def test_logits_that_are_there_already_are_not_made_again():
    net = Net()
    merge = MultiScaleSegmentation(scales=(1.0, 0.5))
    torch.testing.assert_close(merge.probabilities(net, IMAGE, net.conv(IMAGE)), merge(Net(), IMAGE))
    assert net.sizes == [(24, 32)]


def test_a_resized_image_is_not_mistaken_for_the_known_one():
    net = Net()
    MultiScaleSegmentation(long_side=32).probabilities(net, IMAGE, net.conv(IMAGE))
    assert net.sizes == [(24, 32)]


def test_the_crf_sees_the_photograph_in_eight_bits():
    seen = []

    class CRF(nn.Module):
        def forward(self, rgb, prob):
            seen.append(rgb)
            return prob.flip(1)

    photo = torch.randint(256, (1, 3, 48, 64), generator=torch.Generator().manual_seed(2))
    image = (photo - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    net, merge = Net(), MultiScaleSegmentation(crf=CRF())
    torch.testing.assert_close(merge(net, image), merge.probabilities(net, image).flip(1))
    assert seen[0].dtype == torch.uint8
    assert torch.equal(seen[0].long(), photo)


@pytest.mark.parametrize(
    ("setting", "text"),
    [({"scales": []}, "scales"), ({"scales": [0]}, "scales"), ({"fusion": "min"}, "fusion"),
     ({"long_side": 0}, "long_side"), ({"mirror_fusion": "min"}, "mirror_fusion"),
     ({"merged_at": "last"}, "merged_at")],
)  # fmt: skip
def test_a_setting_out_of_range_says_what_is_needed(setting, text):
    with pytest.raises(UserError, match=text):
        MultiScaleSegmentation(**setting)


@pytest.mark.parametrize("name", ["plain", "afa", "toco_voc", "toco_coco"])
def test_protocols_compose_and_name_themselves(name):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        cfg = hydra.compose("evaluate", [f"protocol={name}", "ckpt=x"])
    protocol = hydra.utils.instantiate(cfg.protocol)
    line = protocol.extra_repr()
    assert line.startswith(f"{name} (")
    assert ("no CRF" in line) == (protocol.crf is None) == (name == "plain")
    assert "\n" not in line
