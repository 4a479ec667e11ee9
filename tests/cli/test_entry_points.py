"""Programs as a user runs them: files they leave, numbers that agree, and one line for a mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from quiet import QUIET
from wsss_afa import evaluate, train
from wsss_afa.errors import UserError
from wsss_afa.methods.recipe import load

SMALL = [
    "+experiment=synthetic",
    "data.image_size=32",
    "data.num_classes=3",
    "data.train_images=40",
    "data.val_images=6",
    "data.batch_size=4",
    "method.decoder_dim=16",
    "method.phases.segmentation=2",
    "method.phases.propagation=4",
    "trainer.max_steps=6",
    "trainer.val_check_interval=4",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.log_every_n_steps=1",
    "callbacks.pictures.num_images=2",
]

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a program in this process with command-line arguments; returns (exit code, standard error)."""

    def program(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
        try:
            module.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            return code, stop.code if isinstance(stop.code, str) else capsys.readouterr().err
        return 0, ""

    return program


def test_a_mistake_prints_nothing_but_its_line(tmp_path):
    command = [sys.executable, "-m", "wsss_afa.evaluate", "ckpt=nowhere.ckpt", f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ckpt=nowhere.ckpt: no such file")
    assert len(done.stderr.splitlines()) == 1


def test_a_run_folder_that_cannot_be_is_one_line(run, tmp_path):
    (tmp_path / "file").touch()
    code, message = run(train, *SMALL, f"hydra.run.dir={tmp_path}/file/run")
    assert code == 1
    assert message.startswith("error: hydra.run.dir cannot be written (")
    assert len(message.splitlines()) == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of one short training run through all three phases."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *SMALL, f"hydra.run.dir={folder}"])
        train.main()
    return folder


def test_training_leaves_what_the_readme_promises(trained):
    results = json.loads((trained / "metrics.json").read_text())
    assert results["last"]["step"] == 6
    assert results["best"]["val/miou_seg"] >= results["last"]["val/miou_seg"]
    assert set(results["last"]["iou"]) == {"cam", "affinity", "seg"}
    header = (trained / "metrics.csv").read_text().splitlines()[0]
    assert {"train/loss_cls", "train/loss_seg", "train/loss_aff", "val/miou_seg"} <= set(header.split(","))
    with Image.open(trained / "pictures" / "step_000006.png") as picture:
        assert np.asarray(picture).std() > 10
    assert (trained / ".hydra" / "config.yaml").is_file()


def test_checkpoints_hold_plain_data_and_rebuild_the_network(trained):
    for name in ("best", "last"):
        method = load(trained / "checkpoints" / f"{name}.ckpt")
        assert method.recipe["class_names"] == ["disc", "box", "triangle"]
        assert method.segment(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 8, 8)


def test_evaluation_needs_only_checkpoint_and_data(trained, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    last = trained / "checkpoints" / "last.ckpt"
    data = ["data.image_size=32", "data.num_classes=3", "data.val_images=6", "trainer.accelerator=cpu"]
    assert run(evaluate, f"ckpt={last}", *data, f"hydra.run.dir={tmp_path}/eval") == (0, "")
    scores = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    record = json.loads((trained / "metrics.json").read_text())
    assert scores.pop("checkpoint") == str(last)
    assert record["last"].pop("step") == 6
    assert scores == record["last"] | {"protocol": record["protocol"], "split": "val"}


def test_resuming_goes_on_from_the_saved_step(trained, run, tmp_path):
    checkpoint = trained / "checkpoints" / "last.ckpt"
    overrides = [*SMALL, "trainer.max_steps=8", f"resume={checkpoint}", f"hydra.run.dir={tmp_path}"]
    assert run(train, *overrides) == (0, "")
    assert json.loads((tmp_path / "metrics.json").read_text())["last"]["step"] == 8


@pytest.mark.slow
def test_bfloat16_trains(run, tmp_path):
    changes = ["trainer.precision=bf16-mixed", "callbacks.pictures.num_images=0"]
    assert run(train, *SMALL, *changes, f"hydra.run.dir={tmp_path}") == (0, "")
    assert json.loads((tmp_path / "metrics.json").read_text())["last"]["val/miou_seg"] >= 0


def tagged_folder(root: Path) -> Path:
    """Two photos, of a class each."""
    for name in ("cat", "dog"):
        (root / name).mkdir()
        Image.new("RGB", (16, 12)).save(root / name / "photo.jpg")
    return root


def voc_folder(root: Path, broken: bool = False) -> Path:
    """Two images in VOC's layout; the second may be no image at all."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for index, name in enumerate(("a", "b")):
        pixels = np.random.default_rng(index).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
        Image.fromarray(np.zeros((40, 48), np.uint8)).save(root / "SegmentationClass" / f"{name}.png")
        xml = "<annotation><object><name>dog</name></object></annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(xml)
    if broken:
        (root / "JPEGImages" / "b.jpg").write_bytes(b"this is no image")
    for split in ("train_aug", "val"):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("a\nb\n")
    return root


VOC_SMALL = [
    "+experiment=voc",
    "logger=csv",
    "data.num_workers=0",
    "data.batch_size=2",
    "data.crop_size=64",
    "backbone.variant=b0",
    "backbone.pretrained=null",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.max_steps=2",
]

MISTAKES = {
    "misspelt": ([*SMALL, "trainer.max_stepz=3"], r"trainer\.max_stepz .*did you mean trainer\.max_steps\?"),
    "misspelt in another group": (
        ["data=voc", "data.train_splt=train"],
        r"data\.train_splt .*did you mean data\.train_split\?",
    ),
    "misspelt, added": ([*SMALL, "+data.hue=1"], r"data\.hue is no setting"),
    "unknown option": ([*SMALL, "data=pascal"], r"pascal"),
    "bad value": ([*SMALL, "method.pool_top_k=0"], r"pool_top_k=0"),
    "missing root": ([*VOC_SMALL, "data.root=nowhere"], r"nowhere.*data\.root"),
    "unknown variant": ([*SMALL, "backbone.variant=b9"], r"b9.*b0"),
    "an experiment without its plus": (
        ["experiment=syntetic"],
        r"experiment is added, with a plus; write wsss-afa train \+experiment=synthetic ",
    ),
    "a sweep without its plus": (["sweep=table2"], r"a plus; write wsss-afa train \+sweep=table2 "),
    "a group of other programs": (["protocol=afa"], "no choice of train; .* evaluate, predict"),
    "a file that is not there": (
        ["logger=wandbb"],
        "logger=wandbb: no such file; did you mean wandb\\? there are csv",
    ),
    "the other program's name": (
        [*SMALL, "device=cuda"],
        r"here it is trainer\.accelerator; .*trainer\.accelerator=gpu ",
    ),
    "a comma": (["data=voc", "data.root=/a,b"], r"""several values take -m; .* "data\.root='/a,b'" """),
    "brackets": ([*SMALL, "data.root=/a(b)"], r"""write .* "data\.root='/a\(b\)'" """),
    "a word": ([*SMALL, "fast"], "fast is no setting: write SETTING=VALUE"),
    "twice": (["+experiment=voc", "+experiment=coco"], "experiment is given several times"),
    "settings of another backbone": (
        ["backbone=timm_pyramid", "+backbone.depth=3", "+backbone.fit=crop"],
        r"backbone\.depth, backbone\.fit are no settings of TimmPyramid: leave out, with ~backbone\.depth ~",
    ),
    "no number": ([*SMALL, "trainer.max_steps=ten"], r"trainer\.max_steps='ten', need a whole number"),
    "refused by Lightning": (
        [*SMALL, "trainer.strategy=foo"],
        "trainer: You selected an invalid strategy name",
    ),
    "refused by torch": ([*SMALL, "optim.lr=-1"], "optim: Invalid learning rate: -1"),
    "no class": (
        [*SMALL, "backbone._target_=no.ViT"],
        r"backbone\._target_=no\.ViT cannot be imported .*PYTHONPATH",
    ),
    "double precision": ([*SMALL, "trainer.precision=64-true"], "take 32-true"),
    "uneven batch": ([*SMALL, "trainer.accumulate_grad_batches=3"], r"multiple of 3"),
    "no weights": ([*SMALL, "backbone.pretrained=nowhere.pth"], r"nowhere\.pth.*null"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line(mistake, run, tmp_path):
    arguments, pattern = MISTAKES[mistake]
    code, message = run(train, *arguments, f"hydra.run.dir={tmp_path}/run")
    assert code == 1
    assert len(message.strip().splitlines()) == 1
    assert message.startswith("error: ")
    assert re.search(pattern, message)
    assert not list(tmp_path.rglob("metrics.*"))
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(workers, run, tmp_path):
    root = voc_folder(tmp_path / "VOC2012", broken=True)
    overrides = [*VOC_SMALL, f"data.root={root}", f"data.num_workers={workers}"]
    code, message = run(train, *overrides, f"hydra.run.dir={tmp_path}/run")
    assert code == 1
    assert re.fullmatch(r"error: .*b\.jpg.*", message.strip())
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_a_checkpoint_of_other_classes_is_refused(trained, run, tmp_path):
    root = voc_folder(tmp_path / "VOC2012")
    checkpoint = trained / "checkpoints" / "best.ckpt"
    overrides = [f"ckpt={checkpoint}", "data=voc", f"data.root={root}", f"hydra.run.dir={tmp_path}/run"]
    code, message = run(evaluate, *overrides)
    assert code == 1
    assert re.search(r"knows 3 classes .* the data has 20", message)
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_missing_and_damaged_checkpoints_are_refused(run, tmp_path):
    assert "ckpt is missing: give ckpt=FILE" in run(evaluate, f"hydra.run.dir={tmp_path}/run")[1]
    assert "no such file" in run(evaluate, "ckpt=nowhere.ckpt", f"hydra.run.dir={tmp_path}/run")[1]
    (tmp_path / "broken.ckpt").write_bytes(b"\x80\x04not a checkpoint")
    message = run(evaluate, f"ckpt={tmp_path}/broken.ckpt", f"hydra.run.dir={tmp_path}/run")[1]
    assert "cannot be read" in message


def test_a_checkpoint_may_not_build_what_it_likes(trained, tmp_path):
    content = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    content["wsss_afa"]["method"]["_target_"] = "wsss_afa.files.os.system"
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="refused"):
        load(tmp_path / "evil.ckpt")
