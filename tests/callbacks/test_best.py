"""Which checkpoint is best: none before the segmentation is trained, and of equal scores the later one."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from wsss_afa.files import CONFIG_DIR

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")


class Scripted(L.LightningModule):
    """Its validations have the scores that it is given, in their order."""

    def __init__(self, scores, segmentation_step):
        super().__init__()
        self.layer, self.scripted, self.segmentation_step = nn.Linear(1, 1), iter(scores), segmentation_step

    def training_step(self, batch, _):
        return self.layer(batch).sum()

    def validation_step(self, *_):
        pass

    def on_validation_epoch_end(self):
        self.log("score", next(self.scripted))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def best_step(folder, scores, segmentation_step):
    """The step of ``best.ckpt`` after a validation at every step; None if there is no such file."""
    settings = OmegaConf.load(f"{CONFIG_DIR}/callbacks/default.yaml").best
    best = instantiate(settings, dirpath=str(folder), monitor="score")
    trainer = L.Trainer(
        max_steps=len(scores), val_check_interval=1, num_sanity_val_steps=0, callbacks=[best], logger=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    batches = torch.zeros(len(scores), 1)
    trainer.fit(Scripted(scores, segmentation_step), batches, torch.zeros(1, 1))
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == len(scores)
    path = folder / "best.ckpt"
    return torch.load(path, weights_only=True)["global_step"] if path.exists() else None


@pytest.mark.parametrize(
    ("scores", "segmentation_step", "expected"),
    [
        ([1.0, 1.0, 0.2, 0.4], 2, 4),  # at its ceiling before the decoder has had a step
        ([0.5, 0.9, 0.9, 0.2], 0, 3),
        ([0.9, 0.5, 0.9, 0.7], 0, 3),
        ([0.9, 0.5, 0.4, 0.3], 0, 1),
        ([0.9, 0.5, 0.4, 0.3], 4, None),
    ],
)
def test_the_best_is_trained_and_of_equal_ones_the_later(tmp_path, scores, segmentation_step, expected):
    assert best_step(tmp_path, scores, segmentation_step) == expected
