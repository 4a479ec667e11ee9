"""What binds a run: every setting that is not listed as free, its classes, its photos and their split."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from test_configuration import EXPERIMENTS, METHODS, compose
from wsss_afa.callbacks.binding import DATA_KEY, FREE, RunData, binding_settings, flatten, is_free
from wsss_afa.callbacks.resume import resume_point
from wsss_afa.data.label_folder import LabelledImages
from wsss_afa.errors import UserError


def test_every_setting_binds_or_is_listed_as_free():
    """The list names settings that there are, but for those of Lightning's that a user may add."""
    names = set()
    for choice in (*(f"+experiment={name}" for name in EXPERIMENTS), *(f"method={name}" for name in METHODS)):
        config = OmegaConf.to_container(compose(choice))
        names |= set(flatten(config))
        assert set(binding_settings(config)) == {name for name in flatten(config) if not is_free(name)}
    added = {"trainer.max_time", "trainer.benchmark", "trainer.enable_progress_bar", "trainer.profiler"}
    unused = {free for free in FREE if not any(f"{name}.".startswith(f"{free}.") for name in names)}
    assert unused == added


BOUND = [
    "seed", "labels", "method.low", "backbone.variant", "optim.lr", "data.batch_size", "data.val_fraction",
    "trainer.gradient_clip_val", "trainer.accumulate_grad_batches", "trainer.limit_val_batches",
    "trainer.max_epochs", "trainer.gradient_clip_algorithm", "trainer.limit_train_batches",
    "callbacks.own.decay", "callbacks.seeds.seed",
]  # fmt: skip


@pytest.mark.parametrize("name", BOUND)
def test_what_changes_training_binds(name):
    assert not is_free(name)


@pytest.mark.parametrize(
    "name", ["trainer.max_steps", "data.root", "logger.wandb.name", "callbacks.finite.skip_nan_steps"]
)
def test_what_does_not_is_free(name):
    assert is_free(name)


class Photos:
    def __init__(self, names, tags):
        self.names, self.labels = names, np.array(tags, bool)
        self.class_names = ("cat", "dog")

    def __len__(self):
        return len(self.names)


def data(train=("a", "b", "c"), val=("d",), tags=None, class_names=("cat", "dog")):
    tags = tags or [[1, 0]] * len(train)
    return SimpleNamespace(
        class_names=class_names,
        train_set=Photos(list(train), tags),
        val_set=Photos(list(val), [[0, 1]] * len(val)),
    )


def checkpoint(path, run, settings=None):
    content = {"wsss_afa": {"class_names": run.class_names}, "global_step": 3, "loops": {}}
    torch.save(content | {"wsss_afa_settings": settings or {}, DATA_KEY: run.record()}, path)
    return path


OTHER = {
    "a photo more": (
        data(train=("a", "b", "c", "e")),
        r"4 training photos, the run's 3: new or changed: e; 0 of",
    ),
    "another split": (
        data(("a", "b", "d"), ("c",)),
        r"new or changed: d; 1 of .*validation photos.*: c; 1 of",
    ),
    "another order": (data(("b", "a", "c")), "the same training photos in another order"),
    "another tag": (
        data(tags=[[1, 0], [1, 0], [0, 1]]),
        r"3 training photos.*: new or changed: c; 1 of the run's",
    ),
    "nothing left": (data(("x",), ("y",)), "3 of the run's are gone"),
}


@pytest.mark.parametrize("how", OTHER)
def test_other_photos_are_refused_by_name(how, tmp_path):
    path = checkpoint(tmp_path / "last.ckpt", RunData(data()))
    other, message = OTHER[how]
    with pytest.raises(UserError, match=message) as error:
        resume_point("auto", tmp_path, {}, RunData(other))
    assert len(str(error.value).splitlines()) == 1
    with pytest.warns(UserWarning, match="the resumed run is not the run that it was"):
        assert resume_point(str(path), tmp_path, {}, RunData(other)) == path


@pytest.mark.parametrize("names", [("dog", "cat"), ("cow", "zebra"), ("bird", "cat", "dog")])
def test_other_classes_are_refused_even_where_the_file_is_named(names, tmp_path):
    path = checkpoint(tmp_path / "last.ckpt", RunData(data()))
    message = rf"the run's classes are cat, dog, the data's are {', '.join(names)}"
    for resume in ("auto", str(path)):
        with pytest.raises(UserError, match=message):
            resume_point(resume, tmp_path, {}, RunData(data(class_names=names)))


def test_the_same_data_and_masks_that_were_added_go_on(tmp_path):
    path = checkpoint(tmp_path / "last.ckpt", RunData(data()))
    assert resume_point("auto", tmp_path, {}, RunData(data())) == path


def test_labels_bind_by_their_names_and_sizes(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"x")
    labelled = data()
    labelled.train_set = LabelledImages(labelled.train_set, tmp_path)
    before = RunData(labelled)
    assert not RunData(labelled).differences(before.record())
    (tmp_path / "b.png").write_bytes(b"xy")
    assert RunData(labelled).differences(before.record()) == [
        "3 labels, the run's 3: new or changed: b.png; 1 of the run's are gone or changed"
    ]


def test_a_checkpoint_that_recorded_less_is_compared_by_what_it_has(tmp_path):
    content = {"wsss_afa": {}, "global_step": 3, "loops": {}, "wsss_afa_settings": {"seed": 0}}
    torch.save(content, tmp_path / "last.ckpt")
    assert resume_point("auto", tmp_path, {"seed": 0, "trainer.max_epochs": 1}, RunData(data()))
    with pytest.raises(UserError, match=r"seed=1 \(was 0\)"):
        resume_point("auto", tmp_path, {"seed": 1}, RunData(data()))
