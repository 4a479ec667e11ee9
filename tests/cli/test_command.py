"""One command for all programs; what it answers without its work, it answers without importing that."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import DictConfig

from wsss_afa import __main__ as command
from wsss_afa.cli.entry_point import Program
from wsss_afa.files import CONFIG_DIR

HEAVY = {"torch", "timm", "torchvision", "lightning", "wandb", "numpy", "pandas", "matplotlib"}
ANSWER = """
import runpy, sys
sys.argv = ["wsss-afa", *sys.argv[1:]]
try:
    runpy.run_module("wsss_afa", run_name="__main__", alter_sys=True)
except SystemExit as stop:
    print(stop.code)
print(*{name.partition(".")[0] for name in sys.modules})
"""


def answer(*words):
    """What the command prints, and the packages that it has imported then."""
    done = subprocess.run([sys.executable, "-c", ANSWER, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, names = done.stdout.splitlines()
    return "\n".join(lines), set(names.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "wsss-afa train +experiment=demo"),
        (["train", "--help"], "trainer.max_steps="),
        (["train", "trainer.max_stepz=3"], "did you mean trainer.max_steps?"),
        (["train", "experiment=demo"], "+experiment=demo"),
        (["evaluate", "ckpt=x", "data=pascal"], "there are coco, folder"),
    ],
)
def test_help_and_mistakes_import_nothing_that_takes_time(words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed, packages = answer(*words)
    assert expected in printed
    assert "wsss_afa" in packages
    assert not packages & HEAVY
    assert not list(tmp_path.iterdir()), "nothing was run"


def test_the_package_itself_imports_nothing():
    code = "import sys; before = set(sys.modules); import wsss_afa; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in done.stdout.split()}
    assert packages - set(sys.stdlib_module_names) == {"wsss_afa"}


def test_the_command_alone_lists_the_programs(run):
    _, printed = run(command)
    names = {path.stem for path in Path(CONFIG_DIR).glob("*.yaml")}
    assert names <= {line.partition(" ")[0] for line in printed.splitlines()}
    assert printed.count("\n  wsss-afa ") == 3
    assert max(map(len, printed.splitlines())) < 130
    assert run(command, "--help") == run(command, "help") == (0, printed)


@pytest.mark.parametrize(
    ("word", "line"),
    [("trian", "trian is no program; did you mean train?"), ("xyz", "xyz is no program; there are train, ")],
)
def test_a_program_that_is_not_there(word, line, run):
    code, printed = run(command, word)
    assert code == 1
    assert printed.startswith(f"error: {line}")


def test_packages_are_quiet_when_the_work_begins(run, tmp_path):
    """They set the levels of their loggers when they are imported, which is after the settings are read."""
    levels = {f"lightning.{name}": logging.WARNING for name in ("pytorch", "fabric")}
    levels["huggingface_hub"] = logging.ERROR
    for name in levels:
        logging.getLogger(name).setLevel(logging.INFO)
    seen = {}

    def look(_: DictConfig) -> float:
        seen.update({name: logging.getLogger(name).level for name in levels})
        return 0.0

    program = SimpleNamespace(__name__="sweep_report", main=Program("sweep_report", look))
    assert run(program, f"hydra.run.dir={tmp_path}/run")[0] == 0
    assert seen == levels


def test_a_program_is_run_as_its_module_is(run, tmp_path, monkeypatch):
    """Lightning starts further processes by the module's name and the words behind it."""
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(command.runpy, "run_module", lambda *_, **__: seen.append(sys.argv[1:]))
    assert run(command, "pseudo-labels", "ckpt=a b") == (0, "")
    assert seen == [["ckpt=a b"]]
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "wsss_afa.evaluate", raising=False)
    code, line = run(command, "evaluate", f"hydra.run.dir={tmp_path}/run")
    assert code == 1
    assert line.startswith("error: ckpt is missing: give ckpt=FILE")
