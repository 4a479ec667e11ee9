"""The whole way of somebody with tagged photos and no masks, on generated scenes, command by command."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
from PIL import Image

from photo_folder import open_app
from wsss_afa import inspect_data, predict, train
from wsss_afa.cli.run_folder import release
from wsss_afa.data.synthetic import SyntheticScenes
from wsss_afa.web.commands import second_stage_command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(r"ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]

FORMATS = ("coco", "yolo", "cvat", "labelstudio", "labelme")
HERE = ("trainer.accelerator=cpu", "trainer.devices=1", "data.num_workers=0", "logger=csv")
SMALL = (
    "backbone=mit", "backbone.variant=tiny", "backbone.pretrained=null", "method.decoder_dim=16",
    "data.crop_size=48", "data.batch_size=2", "trainer.max_steps=6", "trainer.val_check_interval=3",
    "callbacks.pictures.num_images=0",
)  # fmt: skip


def photograph(root, count=12):
    """Scenes as photos of a phone, larger than training wants them, and a table of their tags."""
    scenes, rows = SyntheticScenes(count, size=96, num_classes=3), ["file,tags"]
    root.mkdir()
    for i in range(count):
        sample = scenes[i]
        names = [scenes.class_names[c] for c in np.flatnonzero(sample["class_label"])]
        Image.fromarray(sample["image"]).resize((150, 150)).save(root / f"IMG_{i:04}.jpg", quality=95)
        rows.append(f"IMG_{i:04}.jpg,{';'.join(names)}")
    (root / "labels.csv").write_text("\n".join(rows), encoding="utf-8")


def test_from_tags_to_reviewed_masks_and_a_second_network(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photograph(tmp_path / "photos")
    said = run(inspect_data, "data=folder", "data.root=photos", "workers=1", "hydra.run.dir=looked")
    assert said[0] == 0, said
    phases = "method.phases={classification: 0, segmentation: 2, propagation: 4}"
    first = ["+experiment=folder", "data.root=photos", "data.max_side=96", phases, *SMALL, *HERE]
    said = run(train, *first, "method.classifier=pooled", "method.affinity_scale=1", "hydra.run.dir=first")
    assert said[0] == 0, said
    assert "wsss-afa app ckpt=first/checkpoints/best.ckpt data.root=photos data.max_side=96" in said[1]
    assert json.loads((tmp_path / "first/metrics.json").read_text())["best_by"] == "val/agreement"
    ckpt = tmp_path / "first/checkpoints/best.ckpt"
    form = f"format=[png,{','.join(FORMATS)}]"
    said = run(
        predict, f"ckpt={ckpt}", "source=photos", "out=masks", form, "cams=false", "hydra.run.dir=masked"
    )
    assert said[0] == 0, said
    review(tmp_path, ckpt)
    words = shlex.split((tmp_path / "command.txt").read_text(encoding="utf-8"))
    small = [word for word in SMALL if not word.startswith("backbone=")]
    said = run(train, *words[2:], *small, *HERE, "hydra.run.dir=second")
    assert said[0] == 0, said
    assert json.loads((tmp_path / "second/metrics.json").read_text())["best_by"] == "val/miou_seg"
    last = tmp_path / "second/checkpoints/best.ckpt"
    said = run(predict, f"ckpt={last}", "source=photos", "out=better", "hydra.run.dir=again")
    assert (said[0], len(list((tmp_path / "better/masks").glob("*.png")))) == (0, 12)


def review(folder, ckpt):
    """Decide every photo of the queue, the least sure first, and write down the next command."""
    session = open_app(ckpt, folder / "photos", folder / "review")
    settings = session.labeller.default()
    for name in session.begin(settings):
        session.propose(name, settings)
    for i, name in enumerate(session.review.order):
        painted = np.flipud(session.shown(name)) if i % 4 == 0 else None
        session.decide(name, ("paint", "accept", "accept", "reject")[i % 4], painted)
    assert session.review.count() == {"accept": 6, "paint": 3, "reject": 3}
    assert session.review.next_open() is None
    assert len(session.hand_on(FORMATS)) == 1 + len(FORMATS)
    (folder / "command.txt").write_text(second_stage_command(session), encoding="utf-8")
    release()
