"""Evaluation: exact scores under every protocol."""

from __future__ import annotations

import json

import lightning as L
import numpy as np
import pytest
from lightning.pytorch.callbacks import Callback
from sklearn.metrics import confusion_matrix, jaccard_score

from wsss_afa import evaluate
from wsss_afa.data.synthetic import SyntheticDataModule
from wsss_afa.methods.recipe import load

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]
SCENES = {"image_size": 48, "num_classes": 3, "val_images": 7, "train_images": 4}


class Keep(Callback):
    """Every label and mask of a validation, pixel after pixel."""

    def __init__(self):
        self.labels, self.masks = {}, []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        for source, label in outputs.items():
            self.labels.setdefault(source, []).append(label.flatten().numpy())
        self.masks.append(batch["mask"].flatten().numpy())


def test_scores_are_those_of_scikit_learn_over_all_pixels(afa_checkpoint):
    method, keep = load(afa_checkpoint), Keep()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, callbacks=[keep],
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    data = SyntheticDataModule(**SCENES)
    trainer.validate(method, datamodule=data, verbose=False)
    truth = np.concatenate(keep.masks)
    assert set(keep.labels) == {"seg", "cam", "affinity"}
    for source, labels in keep.labels.items():
        label = np.concatenate(labels)[truth != 255]
        counted = truth[truth != 255]
        classes = np.unique(counted)
        assert len(np.unique(label)) > 1
        expected = jaccard_score(counted, label, labels=classes, average=None)
        computed = method.scores[source].compute()
        assert computed["miou"].item() == pytest.approx(expected.mean(), abs=1e-9)
        np.testing.assert_allclose(computed["iou"][classes].numpy(), expected, atol=1e-9)
        confusion = method.scores[source].confusion.numpy()
        np.testing.assert_array_equal(confusion, confusion_matrix(counted, label, labels=range(4)))


def arguments(checkpoint, folder, *more):
    scenes = [f"data.{key}={value}" for key, value in SCENES.items()]
    return [f"ckpt={checkpoint}", *scenes, "trainer.accelerator=cpu", f"hydra.run.dir={folder}", *more]


@pytest.mark.parametrize("protocol", ["plain", "afa"])
def test_numbers_name_protocol_split_and_checkpoint(run, afa_checkpoint, protocol, tmp_path):
    more = [f"protocol={protocol}", "trainer.devices=1", "data.val_images=2"]
    more += ["protocol.long_side=64"] * (protocol == "afa")
    code, out = run(evaluate, *arguments(afa_checkpoint, tmp_path, *more))
    assert code == 0
    scores = json.loads((tmp_path / "metrics.json").read_text())
    assert scores["checkpoint"] == str(afa_checkpoint)
    assert scores["split"] == "val"
    assert scores["protocol"].startswith(f"{protocol} (")
    assert ("val/miou_crf" in scores) == (protocol == "afa")
    assert scores["protocol"] in out
    assert f"{afa_checkpoint} on val" in out


def test_an_evaluation_of_nothing_is_refused(run, afa_checkpoint, tmp_path):
    code, said = run(evaluate, *arguments(afa_checkpoint, tmp_path, "trainer.limit_val_batches=0"))
    assert code == 1
    assert said.startswith("error: trainer.limit_val_batches=0: nothing would be evaluated")
