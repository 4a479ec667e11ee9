"""Files that are whole or not there, and which of them a run goes on from."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import resource
import shutil
import warnings
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wsss_afa.callbacks.binding import DATA_KEY, SETTINGS_KEY, binding_settings
from wsss_afa.callbacks.checkpoints import (
    DurableCheckpointIO,
    StepCheckpoints,
    step_files,
)
from wsss_afa.callbacks.reproducibility import KeepMetrics, RunRecord
from wsss_afa.callbacks.resume import read_checked, resume_point
from wsss_afa.errors import UserError
from wsss_afa.loggers.metrics_file import MetricsFile, MetricsRows
from wsss_afa.methods.recipe import RECIPE_KEY

SETTINGS = {"seed": 0, "data.batch_size": 8}


def content(step, settings=SETTINGS):
    weights = torch.randn(300, generator=torch.Generator().manual_seed(step))
    return {
        RECIPE_KEY: {},
        "global_step": step,
        "loops": {},
        SETTINGS_KEY: settings,
        DATA_KEY: {},
        "weights": weights,
    }


def save(folder, name, step, **kwargs):
    DurableCheckpointIO().save_checkpoint(content(step, **kwargs), folder / name)
    return folder / name


def test_what_is_written_is_read(tmp_path):
    path = save(tmp_path / "new" / "folder", "a.ckpt", 3)
    assert torch.equal(read_checked(path)["weights"], content(3)["weights"])
    assert [file.name for file in path.parent.iterdir()] == ["a.ckpt"]


def test_an_altered_byte_is_noticed_or_harmless(tmp_path):
    whole = save(tmp_path, "a.ckpt", 3).read_bytes()
    rng, noticed = np.random.default_rng(0), 0
    for place in rng.integers(0, len(whole), 100):
        altered = bytearray(whole)
        altered[place] ^= int(rng.integers(1, 256))
        (tmp_path / "b.ckpt").write_bytes(altered)
        try:
            assert torch.equal(read_checked(tmp_path / "b.ckpt")["weights"], content(3)["weights"])
        except ValueError:
            noticed += 1
    assert noticed > 30  # the rest is padding between the parts


def test_every_altered_byte_of_the_weights_is_noticed(tmp_path):
    path = save(tmp_path, "a.ckpt", 3)
    whole, weights = path.read_bytes(), content(3)["weights"].numpy().tobytes()
    start = whole.index(weights)
    for place in range(start, start + len(weights), 101):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="checksum"):
            read_checked(path)


@pytest.mark.parametrize("share", [0, 0.2, 0.9, 0.999])
def test_a_torn_file_is_noticed(share, tmp_path):
    path = save(tmp_path, "a.ckpt", 3)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="cannot be read"):
        read_checked(path)


def test_other_files_are_no_checkpoints(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of a training run"):
        read_checked(tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "b.ckpt", "w") as archive:
        archive.writestr("photo.jpg", b"")
    with pytest.raises(ValueError, match="cannot be read"):
        read_checked(tmp_path / "b.ckpt")


def limited(size):
    """Let this process write files of so many bytes; returns what undoes it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("how", ["limit", "fsync", "read-only"])
def test_a_full_disk_leaves_the_old_file_and_a_warning(how, tmp_path, monkeypatch):
    path = save(tmp_path, "last.ckpt", 3)
    io, undo = DurableCheckpointIO(), lambda: None
    if how == "limit":
        undo = limited(1000)
    elif how == "fsync":
        monkeypatch.setattr(os, "fsync", no_space)
    else:
        monkeypatch.setattr("pathlib.Path.replace", no_space)
    try:
        with pytest.warns(
            UserWarning, match=r"last\.ckpt: not written, training goes on without it \(.*MiB free"
        ):
            io.save_checkpoint(content(4), path)
    finally:
        undo()
        monkeypatch.undo()
    assert read_checked(path)["global_step"] == 3
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert io.failed == {str(path)}
    io.save_checkpoint(content(5), path)
    assert read_checked(path)["global_step"] == 5
    assert not io.failed


def test_what_cannot_be_serialised_is_a_bug_and_raises(tmp_path):
    with pytest.raises(Exception, match="pickle"):
        DurableCheckpointIO().save_checkpoint({"step": lambda: 0}, tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())


def test_auto_takes_the_newest_by_step_and_says_so(tmp_path, capsys):
    save(tmp_path, "step_000500.ckpt", 500)
    last = save(tmp_path, "last.ckpt", 700)
    os.utime(save(tmp_path, "best.ckpt", 300), (2e9, 2e9))  # a clock that jumped
    assert resume_point("auto", tmp_path, SETTINGS) == last
    assert capsys.readouterr().out == f"resuming  from step 700: {last}\n"


def test_auto_starts_anew_in_an_empty_folder(tmp_path, capsys):
    assert resume_point("auto", tmp_path / "none", SETTINGS) is None
    assert resume_point(None, tmp_path, SETTINGS) is None
    assert capsys.readouterr().out == ""


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_it_used(tmp_path):
    before, newest = save(tmp_path, "step_000500.ckpt", 500), save(tmp_path, "step_001000.ckpt", 1000)
    newest.write_bytes(newest.read_bytes()[:-400])
    with pytest.warns(UserWarning, match=r"step_001000\.ckpt is damaged and left out"):
        assert resume_point("auto", tmp_path, SETTINGS) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "step_000500.ckpt",
        "step_001000.ckpt.damaged",
    ]
    assert resume_point("auto", tmp_path, SETTINGS) == before  # and no warning


def test_another_run_is_not_continued_by_itself(tmp_path):
    path = save(tmp_path, "last.ckpt", 5)
    with pytest.raises(UserError, match=r"seed=1 \(was 0\); give another hydra\.run\.dir") as error:
        resume_point("auto", tmp_path, SETTINGS | {"seed": 1})
    assert "\n" not in str(error.value)
    with pytest.warns(UserWarning, match=r"data\.size=4 \(was None\), seed=1 \(was 0\)"):
        assert resume_point(str(path), tmp_path, SETTINGS | {"seed": 1, "data.size": 4}) == path


def test_a_run_does_not_write_among_another_runs_files(tmp_path):
    old, new = save(tmp_path, "step_000500.ckpt", 500), save(tmp_path, "last.ckpt", 700)
    for resume in (None, str(old)):
        with pytest.raises(UserError, match=r"last\.ckpt belongs to a run that went beyond"):
            resume_point(resume, tmp_path, SETTINGS)
    assert resume_point(str(new), tmp_path, SETTINGS) == new
    assert resume_point(str(old), tmp_path / "elsewhere", SETTINGS) == old


def test_a_named_file_must_be_there_and_whole(tmp_path):
    with pytest.raises(UserError, match=r"resume=nowhere\.ckpt: no such file"):
        resume_point("nowhere.ckpt", tmp_path, SETTINGS)
    (tmp_path / "torn").mkdir()
    torn = save(tmp_path / "torn", "a.ckpt", 1)
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        resume_point(str(torn), tmp_path, SETTINGS)


def test_settings_that_bind_a_continuation():
    config = {
        "seed": 3,
        "data": {"root": "/here", "num_workers": 4, "batch_size": 8},
        "method": {"decoder_dim": 16, "low": 0.35},
        "backbone": {"variant": "b1", "pretrained": None},
        "optim": {"lr": 1e-4, "max_steps": 20000},
        "trainer": {"accumulate_grad_batches": 2, "devices": 4},
        "callbacks": {},
    }
    assert binding_settings(config) == {
        "seed": 3,
        "data.batch_size": 8,
        "method.decoder_dim": 16,
        "method.low": 0.35,
        "backbone.variant": "b1",
        "optim.lr": 1e-4,
        "trainer.accumulate_grad_batches": 2,
    }


@pytest.mark.parametrize(("every", "keep"), [(0, 2), (10, 1)])
def test_intervals_out_of_range(every, keep, tmp_path):
    with pytest.raises(UserError, match=f"every_n_steps={every} and keep={keep}, need 1 and 2 or more"):
        StepCheckpoints(str(tmp_path), every, keep)


def test_a_validation_inside_a_step_is_refused(tmp_path):
    trainer = SimpleNamespace(accumulate_grad_batches=2, enable_validation=True, val_check_batch=3)
    with pytest.raises(UserError, match=r"val_check_interval=3 batches, need a multiple of .*batches=2"):
        StepCheckpoints(str(tmp_path)).on_train_start(trainer, None)


def log(folder, steps, resumed_rows=None, die_before_rows_are_back=False):
    """One process that logs a value for each step; the state of its `KeepMetrics`."""
    keep = KeepMetrics()
    if resumed_rows is not None:
        keep.load_state_dict({"rows": resumed_rows})
    logger = MetricsFile(str(folder))
    if die_before_rows_are_back:
        return
    keep.on_fit_start(SimpleNamespace(is_global_zero=True, ckpt_path=None, loggers=[logger]), None)
    for step in steps:
        logger.log_metrics({"loss": step / 8, **({"late": 1.0} if step > 3 else {})}, step)
        logger.save()
    assert keep.state_dict() == {"rows": max(steps) + 1}


@pytest.mark.parametrize("accident", [False, True])
def test_metrics_go_on_without_double_rows(accident, tmp_path):
    log(tmp_path / "whole", range(8))
    log(tmp_path / "broken", range(6))
    if accident:
        log(tmp_path / "broken", [], resumed_rows=5, die_before_rows_are_back=True)
    log(tmp_path / "broken", range(5, 8), resumed_rows=5)
    whole, broken = (tmp_path / name / "metrics.csv" for name in ("whole", "broken"))
    assert broken.read_text() == whole.read_text()
    with broken.open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == [str(step) for step in range(8)]
    assert [file.name for file in broken.parent.iterdir()] == ["metrics.csv"]


def test_a_run_begun_anew_begins_its_metrics_anew(tmp_path):
    log(tmp_path, range(6))
    log(tmp_path, range(2))
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3


def test_metrics_are_not_shorter_for_a_moment_while_a_column_is_added(tmp_path, monkeypatch):
    """A process that is killed before the new file has its name leaves the old one."""

    def killed(*_):
        raise KeyboardInterrupt

    log(tmp_path, range(4))
    before = (tmp_path / "metrics.csv").read_text()
    rows = MetricsRows(tmp_path / "metrics.csv")
    assert rows.keep(4) == 0
    rows.log_metrics({"late": 1.0}, 4)
    monkeypatch.setattr("wsss_afa.loggers.metrics_file.write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        rows.save()
    assert (tmp_path / "metrics.csv").read_text() == before


def test_rows_that_could_not_be_written_are_written_later_and_once(tmp_path):
    rows = MetricsRows(tmp_path / "metrics.csv")
    rows.log_metrics({"a": 1}, 0)
    rows.save()
    rows.path.rename(tmp_path / "away")
    rows.path.mkdir()  # no file can be appended to
    rows.log_metrics({"a": 2}, 1)
    for _ in range(2):
        with pytest.raises(OSError, match=r"metrics\.csv"):
            rows.save()
    rows.path.rmdir()
    rows.save()
    assert rows.path.read_text() == "a,step\n1,0\n2,1\n"


TORN = {
    "empty": lambda text: "",
    "of zeros": lambda text: "\0" * len(text),
    "cut": lambda text: text[: len(text) // 2],
    "of another encoding": lambda text: text.encode("utf-16").decode("latin-1"),
}


@pytest.mark.parametrize("how", TORN)
def test_metrics_that_have_lost_rows_say_so(how, tmp_path):
    log(tmp_path, range(6))
    path = tmp_path / "metrics.csv"
    path.write_text(TORN[how](path.read_text()))
    left, keep = path.read_bytes(), KeepMetrics()
    keep.load_state_dict({"rows": 6})
    with pytest.warns(UserWarning, match=r"metrics\.csv lacks \d of the 6 rows that were logged"):
        keep.on_fit_start(
            SimpleNamespace(is_global_zero=True, ckpt_path=None, loggers=[MetricsFile(str(tmp_path))]), None
        )
    assert (tmp_path / "metrics.csv.damaged").read_bytes() == left


@pytest.mark.parametrize("own", [True, False])
def test_rows_are_missed_where_the_checkpoint_lies(own, tmp_path):
    """A run that begins from the checkpoint of another folder has no rows to miss."""
    folder = tmp_path / ("run" if own else "other")
    keep = KeepMetrics()
    keep.load_state_dict({"rows": 6})
    trainer = SimpleNamespace(
        is_global_zero=True, ckpt_path=folder / "checkpoints" / "last.ckpt",
        loggers=[MetricsFile(str(tmp_path / "run"))],
    )  # fmt: skip
    with pytest.warns(UserWarning, match="lacks 6 of the 6 rows") if own else contextlib.nullcontext():
        keep.on_fit_start(trainer, None)


@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=64k tmpfs {disk} 2> /dev/null"):  # noqa: S605
        pytest.skip("mounting is not permitted")
    try:
        path = save(disk, "last.ckpt", 3)
        (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - 4096))
        io = DurableCheckpointIO()
        with pytest.warns(UserWarning, match="No space left on device; 0 MiB free"):
            io.save_checkpoint(content(4) | {"more": torch.zeros(9000)}, path)
        assert read_checked(path)["global_step"] == 3
    finally:
        assert not os.system(f"umount -l {disk}")  # noqa: S605


def test_a_disk_that_does_not_answer_is_no_damage(tmp_path, monkeypatch):
    """Neither is a file renamed then, nor does a run begin anew."""
    path = save(tmp_path, "last.ckpt", 5)
    for error in (
        OSError(errno.EIO, "Input/output error"),
        MemoryError(),
        PermissionError(errno.EACCES, "denied"),
    ):

        def fail(*_, error=error, **__):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(zipfile, "ZipFile", fail)
            for resume in ("auto", str(path)):
                with pytest.raises(UserError, match=r"last\.ckpt cannot be read now .*: the same command"):
                    resume_point(resume, tmp_path, SETTINGS)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert resume_point("auto", tmp_path, SETTINGS) == path


STRANGE = {
    "a step that is none": {"global_step": "x"},
    "settings that are none": {SETTINGS_KEY: 5},
    "data that is none": {DATA_KEY: [1]},
    "no loops": {"loops": None},
    "another program's": {"global_step": None, RECIPE_KEY: None},
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_strange_checkpoint_stops_no_start_and_stays(kind, tmp_path):
    before = save(tmp_path, "last.ckpt", 5)
    torch.save(content(9) | STRANGE[kind], tmp_path / "mine.ckpt")
    (tmp_path / "folder.ckpt").mkdir()
    (tmp_path / "link.ckpt").symlink_to(tmp_path / "nowhere")
    with pytest.warns(UserWarning, match=r"mine\.ckpt is left out \(no checkpoint of a training run\)"):
        assert resume_point("auto", tmp_path, SETTINGS) == before
    assert {file.name for file in tmp_path.iterdir()} == {
        "last.ckpt",
        "mine.ckpt",
        "folder.ckpt",
        "link.ckpt",
    }


def test_a_strange_checkpoint_of_our_name_is_not_written_over(tmp_path):
    torch.save({"theirs": 1}, tmp_path / "best.ckpt")
    with pytest.warns(UserWarning, match="renamed"):
        assert resume_point("auto", tmp_path, SETTINGS) is None
    assert (tmp_path / "best.ckpt.damaged").is_file()


def test_step_files_are_sorted_as_numbers(tmp_path):
    for name in ("step_1000000", "step_999500", "step_999000", "step_x", "step_12_old"):
        (tmp_path / f"{name}.ckpt").touch()
    names = [path.stem for path in step_files(tmp_path)]
    assert names == ["step_999000", "step_999500", "step_1000000"]


@pytest.mark.parametrize("text", ["", "{", "5", "{}", '{"started_at_step": 3}', "\0\0", "[" * 100_000])
def test_a_torn_record_stops_no_start(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    trainer = SimpleNamespace(is_global_zero=True, world_size=1, global_step=7)
    record = RunRecord(str(tmp_path), {"seed": 0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record.on_train_start(trainer, SimpleNamespace(device=torch.device("cpu")))
    assert json.loads((tmp_path / "run.json").read_text())["started_at_step"] == [7]
