"""Commands with a mistake in them, and the command that each line offers; what is offered composes."""

from __future__ import annotations

import shlex

import hydra
import pytest

from wsss_afa import train
from wsss_afa.cli.corrections import Known
from wsss_afa.files import CONFIG_DIR

CORRECTED = {
    "a group without its plus": ("train experiment=demo", "train +experiment=demo"),
    "a plus too many": ("train ++experiment=demo", "train +experiment=demo"),
    "a plus before a group that is chosen": ("train +data=voc", "train data=voc"),
    "a plus before a setting": ("train +seed=1", "train seed=1"),
    "a file as a value": ("train +experiment=conf/experiment/voc.yaml", "train +experiment=voc"),
    "a file of Windows": (r"train '+experiment=conf\experiment\voc.yaml'", "train +experiment=voc"),
    "a misspelt file": ("train +experiment=syntetic", "train +experiment=synthetic"),
    "a misspelt setting": ("train trainer.max_stepz=3", "train trainer.max_steps=3"),
    "a setting without its group": ("train max_steps=3", "train trainer.max_steps=3"),
    "capitals": ("train SEED=1", "train seed=1"),
    "a misspelt setting of the group that was chosen": (
        "train data=voc data.train_splt=train",
        "train data=voc data.train_split=train",
    ),
    "two mistakes": (
        "train experiment=demo trainer.max_stepz=3",
        "train +experiment=demo trainer.max_steps=3",
    ),
    "dashes": ("train --experiment=demo --max-steps 3", "train +experiment=demo trainer.max_steps=3"),
    "a colon": ("train seed:1", "train seed=1"),
    "two signs": ("train seed==1", "train seed=1"),
    "blanks around the sign": ("train seed = 1", "train seed=1"),
    "a blank behind the sign": ("train seed= 1", "train seed=1"),
    "a blank in a path": ("train data=voc data.root=my photos", "train data=voc 'data.root=my photos'"),
    "a comma in a path": ("train data=voc data.root=/a,b", "train data=voc \"data.root='/a,b'\""),
    "brackets in a path": ("train data=voc 'data.root=/a(b'", "train data=voc \"data.root='/a(b'\""),
    "half a quote": ('train data=voc data.root="\'a"', "train data=voc \"data.root='a'\""),
    "a quoted word": ("train '\"+experiment=voc\"'", "train +experiment=voc"),
    "a quoted list": ("train \"method.cam.scales='[1.0,0.5]'\"", "train 'method.cam.scales=[1.0,0.5]'"),
    "a list without brackets": ("train method.cam.scales=1.0,0.5", "train 'method.cam.scales=[1.0,0.5]'"),
    "several values": ("train seed=0,1", "train -m seed=0,1"),
    "several experiments": ("train +experiment=voc,coco", "train -m +experiment=voc,coco"),
    "names that are left out": ("predict best.ckpt photos", "predict ckpt=best.ckpt source=photos"),
    "one name that is left out": ("evaluate best.ckpt data=voc", "evaluate ckpt=best.ckpt data=voc"),
    "ckpt of another program": ("train ckpt=last.ckpt", "train resume=last.ckpt"),
    "the other way round": ("evaluate resume=best.ckpt", "evaluate ckpt=best.ckpt"),
    "another program's device": ("train device=cuda", "train trainer.accelerator=gpu"),
    "another program's folder": ("predict ckpt=x data.root=a", "predict ckpt=x source=a"),
    "an option stays": ("train -m seed=0,1 optim.lrr=1", "train -m seed=0,1 optim.lr=1"),
    "an addition stays": (
        "train +trainer.profiler=simple optim.lrr=1",
        "train +trainer.profiler=simple optim.lr=1",
    ),
    "Hydra's own stays": (
        "train hydra.run.dir=a hydra/launcher=joblib sed=1",
        "train hydra.run.dir=a hydra/launcher=joblib seed=1",
    ),
}


@pytest.mark.parametrize("mistake", CORRECTED)
def test_every_word_is_written_as_it_should_be(mistake):
    wrong, right = CORRECTED[mistake]
    program, *words = shlex.split(wrong)
    command = Known(program, words).command()
    assert command is not None
    assert shlex.split(command) == ["wsss-afa", *shlex.split(right)]


@pytest.mark.parametrize("mistake", CORRECTED)
def test_what_is_offered_is_right(mistake):
    program, *words = shlex.split(CORRECTED[mistake][1])
    assert Known(program, words).command() is None, "it would be corrected again"
    if "-m" not in words and not any(word.startswith("hydra/") for word in words):
        with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
            assert hydra.compose(program, words)


@pytest.mark.parametrize(
    "words",
    [
        "train protocol=afa",  # no program has both
        "train data=pascal",
        "train nothing=1",
        "train +experiment=",
        "predict photos",  # may be either
        "evaluate +experiment=voc ckpt=x",
    ],
)
def test_nothing_is_offered_that_would_not_help(words):
    program, *words = shlex.split(words)
    assert Known(program, words).command() is None


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["experiment=demo"], "experiment is added, with a plus; write wsss-afa train +experiment=demo"),
        (["+protocol=afa"], "protocol is no choice of train; it is a choice of app, evaluate, predict, "),
        (["+foo=1"], "foo is no setting of this run; --help lists those there are"),
        (["source=photos"], "source is no setting of train; it is one of predict, pseudo_labels"),
        (
            ["data=voc", "data.val_images=3"],
            "data.val_images is no setting of data=voc; leave it out",
        ),
        (["--config-dir=nowhere"], "--config-dir=nowhere: no such folder"),
        (["--experimental=demo"], "--experimental=demo is no option: settings have no dashes; --help lists"),
        (["-m", "seed=0,1", "--cfg", "job"], "Only one of --run, --multirun"),
        (["+experiment"], "+experiment is no setting: write SETTING=VALUE"),
        (["data=a/b.yaml"], "data=a/b.yaml: no such file; there are coco, folder, "),
    ],
)
def test_a_program_ends_with_one_line(words, line, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed = run(train, *words)
    assert code == 1
    assert printed.startswith(f"error: {line}")
    assert len(printed.splitlines()) == 1
