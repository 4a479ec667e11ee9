"""AFA on a plain ViT that is frozen: its phases, its grid of patches, and the heads that are made for it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.inference.predictor import Predictor
from wsss_afa.methods.afa.classifiers import PooledClassifier, PositionClassifier, make_classifier, pool
from wsss_afa.methods.base import Method
from wsss_afa.methods.recipe import build, make_recipe
from wsss_afa.models.decoders import LargeFOV

CONF = Path(__file__).parents[2] / "conf"
TINY = [
    "+experiment=photos", "method.labels=afa", "backbone.pretrained=null",
    "++backbone.model_args={embed_dim: 24, depth: 3, num_heads: 2}",
    "backbone.depth=2", "backbone.trainable_from=2", "backbone.num_affinity_blocks=2", "method.decoder_dim=8",
    "method.phases={segmentation: 1, propagation: 2}",
]  # fmt: skip
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


def make(*overrides: str) -> Method:
    torch.manual_seed(0)
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train", overrides=[*TINY, *overrides])
    method = build(make_recipe(cfg, ("cat", "dog", "car")), trust=None)
    method.optim = instantiate(cfg.optim)
    return method


@pytest.fixture
def batch() -> Any:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(2, 3, 56, 70, generator=generator),
        "class_label": torch.tensor([[1.0, 0, 0], [0, 1, 1]]),
        "valid_box": torch.tensor([[0, 56, 0, 70], [7, 56, 0, 63]]),
        "name": ["a", "b"],
    }


def step(method: Method, batch: Any, number: int) -> dict[str, Tensor]:
    """One step of training without a Trainer."""
    (optimizer,) = (method.configure_optimizers()["optimizer"],)
    for group in optimizer.param_groups:
        group["lr"] = 0.01  # the schedule's first is next to nothing
    terms = method.train().losses(batch, number)
    sum(terms.values()).backward()
    optimizer.step()
    return {name: term.detach() for name, term in terms.items()}


@pytest.mark.parametrize("decoder", ["mlp", "large_fov"])
@pytest.mark.parametrize(
    ("number", "terms"), [(0, {"cls"}), (1, {"cls", "seg", "aff"}), (2, {"cls", "seg", "aff"})]
)
def test_every_phase_trains_the_heads_and_leaves_the_encoder(batch, decoder, number, terms):
    method = make(f"method.decoder={decoder}")
    before = {name: value.clone() for name, value in method.net.named_parameters()}
    losses = step(method, batch, number)
    assert losses.keys() == terms
    assert all(loss.isfinite() for loss in losses.values())
    changed = {name for name, value in method.net.named_parameters() if not value.equal(before[name])}
    heads = {name.partition(".")[0] for name in changed}
    assert heads == ({"classifier"} if number == 0 else {"classifier", "affinity_head", "decoder"})


def test_an_encoder_that_is_frozen_has_no_part_in_the_schedule():
    kinds = make().parameter_kinds()
    assert not kinds["encoder"]
    assert not kinds["norm"]


def test_maps_have_the_stride_of_the_patches(batch):
    method = make().eval()
    output = method.net(batch["image"])
    assert output.seg_logits.shape == (2, 4, 4, 5)  # 56 × 70 pixels in patches of 14
    assert output.affinity.shape == (2, 20, 20)
    assert output.activation.cam.shape == (2, 3, 4, 5)
    assert output.activation.tokens.grid == (4, 5)


def test_affinity_is_taught_within_the_radius_in_patches(batch):
    method = make("method.cam.scales=[1.0]", "method.propagate.radius=1")
    assert method.labeler.affinity_radius == 1
    output = method.net(batch["image"])
    label = method.labeler(method.net, batch, output, False).affinity
    rows, columns = torch.arange(20) // 5, torch.arange(20) % 5
    far = ((rows[:, None] - rows).abs() > 1) | ((columns[:, None] - columns).abs() > 1)
    assert (label[:, far] == 255).all()
    assert (label[:, ~far] != 255).any()


def test_pooled_classifier_is_a_convolution_of_pooled_features():
    torch.manual_seed(0)
    head, feature = PooledClassifier(6, 3), torch.randn(2, 6, 4, 5)
    expected = nn.functional.adaptive_max_pool2d(feature, 1).flatten(1) @ head.weight.flatten(1).T
    close(head(feature), expected)
    torch.manual_seed(0)
    close(head.weight, nn.Conv2d(6, 3, 1, bias=False).weight, rtol=0, atol=0)


def test_position_classifier_equals_the_loop_over_positions():
    torch.manual_seed(0)
    head, feature = PositionClassifier(6, 3, 0.2), torch.randn(2, 6, 4, 5) * 5 + 3
    flat = feature.movedim(1, 0).flatten(1)
    standard = (feature - flat.mean(1)[:, None, None]) / flat.std(1, correction=0)[:, None, None]
    for image, logits in zip(standard, head(feature), strict=True):
        scores = [head.weight.flatten(1) @ image[:, y, x] + head.bias for y in range(4) for x in range(5)]
        best = torch.stack(scores).sort(0, descending=True).values[:4]  # a fifth of 20 positions
        close(logits, best.mean(0), rtol=1e-4, atol=1e-4)


def test_position_classifier_shows_what_it_adds_up():
    torch.manual_seed(0)
    head, feature = PositionClassifier(6, 3, None), torch.randn(2, 6, 4, 5)
    for _ in range(3):
        head(feature + 2)
    head.eval()
    close(head.activate(feature).mean((-2, -1)) + head.bias, head(feature))


@pytest.mark.parametrize("kind", [PooledClassifier, PositionClassifier])
def test_dropout_of_a_classifier_is_for_training_alone(kind):
    torch.manual_seed(0)
    head, feature = kind(64, 3, 1, dropout=0.5), torch.randn(2, 64, 4, 5)
    assert not head(feature).equal(head(feature))
    close(head.activate(feature), head.activate(feature), rtol=0, atol=0)
    close(head.eval()(feature), head(feature), rtol=0, atol=0)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_wrong_share_of_dropout_is_named(dropout):
    with pytest.raises(UserError, match="classifier_dropout"):
        make_classifier("pooled", 6, 3, 1, dropout)


@pytest.mark.parametrize(
    ("top_k", "expected"), [(1, 4.0), (2, 3.5), (0.5, 3.5), (0.01, 4.0), (None, 2.0), (9, 2.0)]
)
def test_pool(top_k, expected):
    assert pool(torch.tensor([[[[0.0, 4.0], [1.0, 3.0]]]]), top_k).item() == expected


@pytest.mark.parametrize("top_k", [0, -1, 2.5])
def test_a_wrong_number_of_positions_is_named(top_k):
    with pytest.raises(UserError, match="pool_top_k"):
        make_classifier("pooled", 6, 3, top_k)


@pytest.mark.parametrize("key", ["classifier", "decoder"])
def test_an_unknown_head_is_named(key):
    with pytest.raises(Exception, match=f"method.{key}=linear is not known"):
        make(f"method.{key}=linear")


def test_large_fov_looks_ten_cells_far():
    torch.manual_seed(0)
    head, feature = LargeFOV(4, 3, dim=8), torch.randn(1, 4, 25, 25, requires_grad=True)
    head([feature])[0, :, 12, 12].sum().backward()
    reached = feature.grad[0].abs().amax(0).nonzero()
    assert set(reached.flatten().tolist()) == {2, 7, 12, 17, 22}


def test_a_trained_network_predicts_and_exports(tmp_path, batch):
    method = make()
    for number in range(3):
        step(method, batch, number)
    checkpoint: dict[str, Any] = {"state_dict": method.state_dict()}
    method.on_save_checkpoint(checkpoint)
    torch.save({**checkpoint, "pytorch-lightning_version": L.__version__}, tmp_path / "best.ckpt")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 75, 3), dtype=np.uint8)
    prediction = Predictor.from_checkpoint(tmp_path / "best.ckpt", device="cpu")(Image.fromarray(pixels))
    assert prediction.label.shape == (60, 75)
    assert set(np.unique(prediction.label)) <= {0, 1, 2, 3}
