"""Frozen towers: they stay out of checkpoints, come back from their file, and from no other."""

from __future__ import annotations

from pathlib import Path

import hydra
import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from safetensors.torch import save_file

from quiet import QUIET
from wsss_afa.data.synthetic import SyntheticDataModule
from wsss_afa.errors import UserError
from wsss_afa.files import CONFIG_DIR
from wsss_afa.methods.recipe import build, load, make_recipe

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:You defined a `validation_step`")]
TINY = (
    "method=afa", "backbone=dinov2_small", "++backbone.model_args={embed_dim: 24, depth: 2, num_heads: 2}",
    "method.decoder_dim=8", "method.cam.scales=[1.0]", "method.cam.mirror=false",
)  # fmt: skip
CLASSES = ("disc", "box", "triangle")


def make(*overrides):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        cfg = hydra.compose("train", [*TINY, *overrides])
    torch.manual_seed(0)
    method = build(make_recipe(cfg, CLASSES), trust=None)
    method.optim = instantiate(cfg.optim)
    return method


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tower.safetensors"
    save_file(make("backbone.pretrained=null").backbone.state_dict(), path)
    return path


def train(method, folder, steps=1, start=None):
    """Train a few steps; return the checkpoint's path."""
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, limit_val_batches=0, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.log_every_n_steps = 0
    data = SyntheticDataModule(
        image_size=32, num_classes=3, train_images=4, val_images=1, crop_size=32, batch_size=2
    )
    trainer.fit(method, data, ckpt_path=start, weights_only=True)
    path = Path(folder, "a.ckpt")
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def saved(weights, tmp_path_factory):
    method = make("backbone.frozen=true", f"backbone.pretrained={weights}")
    return method, train(method, tmp_path_factory.mktemp("run"))


def state_of(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_checkpoint_has_all_but_the_tower(saved, weights):
    method, path = saved
    keys = {key for key in method.state_dict() if not key.startswith("net.backbone.")}
    assert state_of(path).keys() == keys
    backbone = torch.load(path, weights_only=True)["wsss_afa"]["backbone"]
    assert (backbone["pretrained"], backbone["sha256"]) == (str(weights), method.backbone.sha256)
    assert not method.parameter_kinds()["encoder"]


def test_loading_reads_the_tower_again(saved):
    method, path = saved
    loaded = load(path)
    assert loaded.backbone.sha256 == method.backbone.sha256
    for key, value in method.net.state_dict().items():
        assert torch.equal(loaded.net.state_dict()[key], value), key
    assert not any(parameter.requires_grad for parameter in loaded.backbone.parameters())
    assert not any(part.training for part in loaded.train().backbone.modules())


def test_the_file_may_lie_beside_the_checkpoint(saved, weights, tmp_path):
    _, path = saved
    content = torch.load(path, weights_only=True)
    content["wsss_afa"]["backbone"]["pretrained"] = f"/nowhere/{weights.name}"
    torch.save(content, tmp_path / "b.ckpt")
    with pytest.raises(UserError, match=r"b\.ckpt: its backbone is the file /nowhere/.*put it beside"):
        load(tmp_path / "b.ckpt")
    (tmp_path / weights.name).write_bytes(weights.read_bytes())
    load(tmp_path / "b.ckpt")


def test_another_file_is_refused_before_it_is_read(saved, weights, tmp_path):
    _, path = saved
    (tmp_path / "a.ckpt").write_bytes(path.read_bytes())
    (tmp_path / weights.name).write_bytes(b"not even tensors")
    with pytest.raises(UserError, match="has the SHA-256") as error:
        load(tmp_path / "a.ckpt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["http://127.0.0.1:9/weights.pth", "somebody/weights"])
def test_no_address_of_a_checkpoint_is_asked(saved, source, tmp_path):
    content = torch.load(saved[1], weights_only=True)
    content["wsss_afa"]["backbone"]["pretrained"] = source
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="which is not here: put it beside the checkpoint"):
        load(tmp_path / "a.ckpt")


def test_a_run_goes_on_with_the_same_tower_alone(saved, weights, tmp_path):
    _, path = saved
    again = make("backbone.frozen=true", f"backbone.pretrained={weights}")
    on = train(again, tmp_path, steps=2, start=path)
    assert torch.load(on, weights_only=True)["global_step"] == 2
    state = make("backbone.pretrained=null").backbone.state_dict()
    save_file({key: value + 1 for key, value in state.items()}, tmp_path / "other.safetensors")
    other = make("backbone.frozen=true", f"backbone.pretrained={tmp_path}/other.safetensors")
    with pytest.raises(UserError, match="another file than here"):
        train(other, tmp_path, steps=2, start=path)


@pytest.mark.parametrize(
    "setting", ["backbone.trainable_from=2", "backbone.trainable_from=null", "backbone.frozen=true"]
)
def test_other_backbones_are_kept_in_the_file(setting, weights, tmp_path):
    """Those that are trained, those of older files, and frozen ones of random weights, which no file has."""
    source = "null" if setting == "backbone.frozen=true" else weights
    method = make(setting, f"backbone.pretrained={source}")
    path = train(method, tmp_path)
    assert state_of(path).keys() == method.state_dict().keys()
    method = load(path)
    assert torch.equal(
        method.state_dict()["net.backbone.pos_embed"], state_of(path)["net.backbone.pos_embed"]
    )
