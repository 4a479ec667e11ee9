"""A GPU does what the CPU does: each part alone, and whole training steps of all phases."""

from __future__ import annotations

import copy
from typing import Any

import hydra
import lightning as L
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from small_run import SMALL_RUN
from wsss_afa.files import CONFIG_DIR
from wsss_afa.losses.dense_energy import DenseEnergyLoss
from wsss_afa.methods.base import Method
from wsss_afa.methods.recipe import build, make_recipe
from wsss_afa.ops.affinity import affinity_label
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.ops.random_walk import propagate
from wsss_afa.types import Batch

DEVICE = "cuda"
PHASES = {"classification": (9, 10), "segmentation": (0, 9), "propagation": (0, 0)}
"""First steps of segmentation and propagation that begin a training with a phase."""
LAST_PHASE = ("method.phases.segmentation=0", "method.phases.propagation=0")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),  # float16 may skip a first step
]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Convolutions are TF32 on a GPU by default, which is too coarse to compare."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def make_module(*overrides: str) -> Method:
    """A small network, with the same weights each time, that draws nothing at random while it trains."""
    torch.manual_seed(0)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        cfg = hydra.compose("train", [*SMALL_RUN, "method.cam.scales=[1.0,1.5]", *overrides])
    method = build(make_recipe(cfg, ("a", "b", "c")), trust=None)
    method.optim = instantiate(cfg.optim)
    for part in method.modules():
        if isinstance(part, nn.Dropout2d):
            part.p = 0.0
    return method


def make_batch() -> Batch:
    image = F.interpolate(4 * rand(2, 3, 4, 4) - 2, size=(64, 64), mode="bicubic")
    tags = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    box = torch.tensor([[0, 64, 8, 56], [4, 60, 0, 64]])
    return {"image": image, "class_label": tags, "valid_box": box, "name": ["x", "y"]}


class Watch(Callback):
    """Keeps what a step logs, and the gradients."""

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        self.gradients = {name: p.grad.cpu() for name, p in module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
        self.devices = {x.device.type for x in (*module.parameters(), *module.buffers())}


def train_one_step(module: Method, device: str, precision: str = "32-true") -> Watch:
    watch = Watch()
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, precision=precision, max_steps=1,
        logger=False, callbacks=[watch], enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader([make_batch()], batch_size=None))
    return watch


@pytest.fixture(params=PHASES.values(), ids=PHASES)
def phase(request) -> list[str]:
    """Overrides that begin a training with a phase."""
    segmentation, propagation = request.param
    return [
        f"method.phases.segmentation={segmentation}",
        f"method.phases.propagation={propagation}",
        "method.weights.reg=0.01",
    ]


def test_a_training_step_is_the_cpus(phase):
    """Losses, gradients and weights; a few pixels of a label may be decided by rounding."""
    ours, theirs = make_module(*phase), make_module(*phase)
    on_gpu, on_cpu = train_one_step(ours, DEVICE), train_one_step(theirs, "cpu")
    assert on_gpu.devices == {DEVICE}
    assert on_gpu.logged == pytest.approx(on_cpu.logged, rel=5e-3, abs=1e-6)
    assert on_gpu.gradients.keys() == on_cpu.gradients.keys()
    for name, gradient in on_gpu.gradients.items():
        expected = on_cpu.gradients[name]
        assert (gradient - expected).norm() <= 0.02 * expected.norm() + 1e-6, name
    for name, weight in ours.net.state_dict().items():
        torch.testing.assert_close(
            weight.cpu(), theirs.net.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name
        )


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_half_precision_learns_the_same_losses(phase, precision):
    """Labels are made of maps in half precision: the losses are near those of float32, and finite."""
    half = train_one_step(make_module(*phase), DEVICE, precision).logged
    full = train_one_step(make_module(*phase), DEVICE).logged
    assert half["train/loss_cls"] == pytest.approx(full["train/loss_cls"], rel=0.05)
    assert half["train/loss"] == pytest.approx(full["train/loss"], rel=0.1)


def test_labels_stay_on_the_gpu():
    """What the labels of a step are made of and from lies where the image lies."""
    module = make_module(*LAST_PHASE).to(DEVICE)
    batch = make_batch()
    batch |= {key: batch[key].to(DEVICE) for key in ("image", "class_label", "valid_box")}
    output = module.net(batch["image"])
    labels = module.labeler(module.net, batch, output, propagating=True)
    made = (
        *labels,
        output.seg_logits,
        output.affinity,
        output.activation.cam,
        *output.activation.tokens.keys,
    )
    assert {x.device.type for x in made} == {DEVICE}


def test_labels_are_the_cpus():
    """Multi-scale maps, PAR, propagation and thresholds; rounding decides a pixel in a hundred at most."""
    module, batch = (
        make_module(*LAST_PHASE),
        make_batch(),
    )
    module.eval()
    made = []
    for device in ("cpu", DEVICE):
        moved = batch | {key: batch[key].to(device) for key in ("image", "class_label", "valid_box")}
        net, labeler = copy.deepcopy(module.net).to(device), copy.deepcopy(module.labeler).to(device)
        made.append([x.cpu() for x in labeler(net, moved, net(moved["image"]), propagating=True)])
    for ours, theirs in zip(*made, strict=True):
        assert (ours != theirs).float().mean() < 0.01
    assert len(made[0][0].unique()) > 2


def test_activation_maps_are_the_cpus():
    net, image = make_module().net.eval(), make_batch()["image"]
    expected = MultiScaleCAM()(net, image)
    activation = MultiScaleCAM()(net.to(DEVICE), image.to(DEVICE))
    torch.testing.assert_close(activation.cam.cpu(), expected.cam, rtol=1e-3, atol=1e-3)
    for ours, theirs in zip(activation.tokens.keys, expected.tokens.keys, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("num_log_steps", [0, 2])
def test_propagation_is_the_cpus(num_log_steps):
    maps, affinity = rand(2, 3, 9, 7), rand(2, 63, 63, seed=1)
    expected = propagate(maps, affinity, radius=3, num_log_steps=num_log_steps)
    ours = propagate(maps.to(DEVICE), affinity.to(DEVICE), radius=3, num_log_steps=num_log_steps)
    torch.testing.assert_close(ours.cpu(), expected, rtol=1e-5, atol=1e-6)


def test_affinity_labels_are_the_cpus():
    label = (rand(2, 48, 32) * 5).long()
    label[label == 4] = 255
    ours = affinity_label(label.to(DEVICE), (6, 4), radius=2)
    torch.testing.assert_close(ours.cpu(), affinity_label(label, (6, 4), radius=2), rtol=0, atol=0)


def test_dense_energy_is_the_cpus():
    logits, rgb = 4 * rand(2, 5, 12, 10), rand(2, 3, 48, 40, seed=1)
    label, box = (rand(2, 48, 40, seed=2) * 5).long(), torch.tensor([[0, 48, 0, 40], [6, 40, 3, 31]])
    label[0, :9] = 255
    results = []
    for device in ("cpu", DEVICE):
        moved = logits.detach().to(device).requires_grad_()
        energy = DenseEnergyLoss(weight=1.0)(moved, rgb.to(device), label.to(device), box.to(device))
        (gradient,) = torch.autograd.grad(energy, moved)
        results.append((energy.detach().cpu(), gradient.cpu()))
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
