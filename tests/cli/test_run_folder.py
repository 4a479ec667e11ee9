"""A run's folder is one process's, and folders of runs that begin together have other names."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
from omegaconf import OmegaConf

from wsss_afa import prepare, train
from wsss_afa.cli import run_folder
from wsss_afa.cli.run_folder import LOCK, hold
from wsss_afa.files import CONFIG_DIR, partial_name

OWNER = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("process 7 on node3\\n")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process(lock):
    """Another process that has a lock; calling what this yields ends that process."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"

    def end():
        process.kill()
        process.communicate()

    yield end
    end()


@pytest.fixture
def other(tmp_path):
    """Another process that has the folder."""
    with another_process(tmp_path / LOCK) as end:
        yield end


@pytest.fixture(autouse=True)
def _held_for_a_test(monkeypatch):
    held = {}
    monkeypatch.setattr(run_folder, "_held", held)
    yield
    for file in held.values():
        file.close()


def test_the_second_run_is_told_who_is_there_and_writes_nothing(other, run, tmp_path):
    code, line = run(train, "+experiment=synthetic", f"hydra.run.dir={tmp_path}")
    assert code == 1
    assert line == (
        f"error: {tmp_path} is in use by process 7 on node3: "
        "wait until it has ended, or give another hydra.run.dir"
    )
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    other()
    hold(tmp_path)
    assert (tmp_path / LOCK).read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"


def test_a_second_sweep_is_told_so_too(other, run, tmp_path):
    code, line = run(train, "-m", "+experiment=synthetic", "seed=0,1", f"hydra.sweep.dir={tmp_path}")
    assert (code, "in use by process 7 on node3" in line) == (1, True)


def test_the_owner_may_come_again_and_a_child_leaves_the_lock_to_it(tmp_path):
    hold(tmp_path)
    hold(tmp_path)
    if (child := os.fork()) == 0:
        try:
            hold(tmp_path)
        except SystemExit:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3, "a fork is another process"


def test_a_data_set_is_prepared_by_one_process(run, tmp_path):
    with another_process(tmp_path / ".VOC.lock"):
        code, line = run(prepare, "dataset=voc2012", f"root={tmp_path / 'VOC'}", f"archives={tmp_path}")
    assert code == 1
    assert line == (
        f"error: {tmp_path / 'VOC'} is in use by process 7 on node3: "
        "wait until it has ended, or give another root"
    )


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_processes_that_train_together_leave_it_to_the_first(name, other, tmp_path, monkeypatch):
    monkeypatch.setenv(name, "1")
    hold(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"hydra\.run\.dir cannot be written .*: choose another folder"):
        hold(tmp_path / "file" / "run")


def test_a_system_without_locks_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    hold(tmp_path)


def test_names_of_folders_have_fractions_of_a_second_and_partial_files_are_ones_own():
    config = OmegaConf.load(f"{CONFIG_DIR}/hydra/default.yaml")
    for folder in (config._get_node("run"), config._get_node("sweep")):
        assert "%S-%f" in folder._get_node("dir")._value()
    assert len({partial_name() for _ in range(100)}) == 100
