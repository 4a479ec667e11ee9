"""Four feature maps of any timm model, of any image; weights and mistakes."""

from __future__ import annotations

import pytest
import timm
import torch

from wsss_afa.errors import UserError
from wsss_afa.models.backbones.timm_pyramid import TimmPyramid


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "pvt_v2_b0", "mobilenetv3_small_050"])
def test_any_timm_backbone_gives_four_maps_of_any_image(name):
    backbone = TimmPyramid(name, pretrained=None).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 70, 33)).features
    wanted = [
        (1, channels, -(-70 // step), -(-33 // step))
        for channels, step in zip(backbone.channels, backbone.reductions, strict=True)
    ]
    assert [tuple(feature.shape) for feature in features] == wanted


def test_timm_maps_that_lie_channels_last_are_turned():
    backbone = TimmPyramid("swin_tiny_patch4_window7_224", pretrained=None).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 224, 224)).features
    assert [feature.shape[1] for feature in features] == backbone.channels


def test_timm_weights_are_read_from_a_file(tmp_path):
    source = timm.create_model("resnet10t", pretrained=False)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    backbone = TimmPyramid("resnet10t", pretrained=str(tmp_path / "weights.pth"))
    own = backbone.model.state_dict()
    assert len(own) > 30
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in own.items())


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (("resnet5o", None), r"resnet5o.*did you mean resnet\d+"),
        (("resnet10t", "nowhere.pth"), "nowhere.pth: no such file"),
        (("dla34", None, 0.1), "cannot be built .*drop_path_rate"),
    ],
)
def test_mistakes_about_timm(arguments, pattern):
    with pytest.raises(UserError, match=pattern):
        TimmPyramid(*arguments)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(timm.create_model("resnet10t", pretrained=False).state_dict(), tmp_path / "weights.pth")
    for name in ("convnext_atto", "pvt_v2_b0"):  # of the second timm would take nothing, and not mind
        with pytest.raises(UserError, match=f"{name}.*weights|weights of {name}"):
            TimmPyramid(name, pretrained=str(tmp_path / "weights.pth"))
