"""What programs say: the page of --help, a run's lines on a terminal and in a log, a missing package."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import sys
import tomllib
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import hydra
import lightning.fabric.loggers.tensorboard as board
import pytest
from hydra.utils import instantiate
from rich.console import Console

from quiet import QUIET
from two_processes import run_as_two
from wsss_afa import train
from wsss_afa.callbacks import progress
from wsss_afa.callbacks.progress import Progress, describe_phases, format_seconds, too_short
from wsss_afa.cli import messages
from wsss_afa.cli.help_page import help_page
from wsss_afa.files import CONFIG_DIR
from wsss_afa.types import Phase

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(path.stem for path in Path(CONFIG_DIR).glob("*.yaml"))
SMALL = [
    "+experiment=synthetic",
    "data.image_size=32",
    "data.num_classes=3",
    "data.train_images=40",
    "data.val_images=2",
    "data.batch_size=2",
    "method.decoder_dim=16",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.log_every_n_steps=1",
    "callbacks.pictures.num_images=0",
]

pytestmark = QUIET


@pytest.fixture
def run(run):
    """What a program printed, or its line of error."""
    return lambda *arguments: run(*arguments)[1]


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_says_purpose_examples_groups_and_settings(program, run):
    page = run(import_module(f"wsss_afa.{program}"), "--help")
    first, *rest = page.splitlines()
    assert re.match(r"[A-Z][^#]{20,}[.:]", first)
    examples = [line for line in rest if re.match(rf"  wsss-afa {program} ", line)]
    assert 3 <= len(examples) <= 7
    assert max(map(len, page.splitlines())) <= 125
    text = Path(CONFIG_DIR, f"{program}.yaml").read_text()
    comments = re.findall(r"^(?!task)(\w+): *[^ #\n].*?# (.+)", text, re.MULTILINE)
    assert comments
    for name, comment in comments:
        assert re.search(rf"^  {name}[=.]", page, re.MULTILINE)
        assert comment in " ".join(page.split())


@pytest.mark.parametrize("program", PROGRAMS)
def test_examples_of_help_compose(program):
    """Whatever a file or a folder is called, groups and settings of an example are those there are."""
    for line in (line for line in help_page(program, []).splitlines() if f"wsss-afa {program} " in line):
        words = line.partition("#")[0].split()[2:]
        sweep = "-m" in words
        words = [re.sub(r"=(\S*[…'*]\S*)$", "=x", word) for word in words if word[0] != "-"]
        words = [word.partition(",")[0] if sweep else word for word in words]
        with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
            hydra.compose(program, words)


def test_help_shows_what_the_words_before_it_compose(run):
    page = run(train, "+experiment=voc", "method.labels=cam", "optim.lr=0.125", "-h")
    assert re.search(r"^  data +coco folder streaming synthetic \[voc\]$", page, re.MULTILINE)
    assert re.search(r"^  \+experiment +coco [\w\s]*demo\s+folder", page, re.MULTILINE)
    assert re.search(r"^  optim\.lr=0\.125 +of the encoder$", page, re.MULTILINE)
    assert re.search(r"^  method\.low=0\.35 +β_l: scores", page, re.MULTILINE)
    assert "_target_" not in page
    assert run(train, "--help", "optim.lrr=1").startswith("error: optim.lrr is no setting of this run")


def test_phases_that_have_no_step_are_left_out():
    phases = [Phase("one", 0), Phase("two", 4), Phase("three", 7)]
    assert describe_phases(phases, 10) == "one 0–3, two 4–6, three 7–9"
    assert describe_phases(phases[:2], 7) == "one 0–3, two 4–6"


def test_a_run_too_short_for_its_phases_is_told_so():
    phases = [Phase("classification", 0), Phase("segmentation", 2001), Phase("propagation", 6001)]
    lines = too_short(phases, warmup_steps=1500, max_steps=1000)
    assert lines[0] == (
        "segmentation begins at step 2001, this run ends at 1000: set a smaller method.phases.segmentation, "
        "or more trainer.max_steps"
    )
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "propagation begins at step 6001, this run ends at 1000",
        "the learning rate rises until step 1500, this run ends at 1000",
    ]
    assert too_short([*phases[:2], Phase("propagation", 4000)], 300, 4000) == [], "never, on purpose"


def test_the_next_command_has_what_an_evaluation_reads(monkeypatch):
    words = [
        "+experiment=x",
        "data.root=a b",
        "data.crop_size=64",
        "data.batch_size=2",
        "trainer.accelerator=cpu",
    ]
    assert progress._kept([*words, "+data.val_split=test", "optim.lr=1"]) == [
        "data.root=a b", "trainer.accelerator=cpu", "+data.val_split=test",
    ]  # fmt: skip
    for options, kept in (
        (["--config-dir", "my conf"], "--config-dir 'my conf' "),
        (["-cd=x"], "-cd=x "),
        ([], ""),
    ):
        monkeypatch.setattr(sys, "argv", ["train", *options, *words])
        assert progress._own_folder() == kept


def test_the_pace_is_measured_without_warm_up_and_validation(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(progress, "Method", SimpleNamespace)
    summary = progress.Summary("run", {"data": {"batch_size": 8}}, "synthetic", [])
    monkeypatch.setattr(summary, "_open", lambda *_: None)
    trainer = SimpleNamespace(global_step=0, max_steps=100, is_global_zero=True)
    trainer.callback_metrics, trainer.sanity_checking = {}, True
    summary.on_train_start(trainer, SimpleNamespace(phases=[Phase("one", 0), Phase("two", 50)]))
    for step in range(1, 41):
        clock[0] += 10.0 if step <= 5 else 2.0
        trainer.global_step = step
        summary.on_train_batch_end(trainer)
        if step == 30:
            summary.on_validation_start(trainer, None)
            clock[0] += 7.0
            summary.on_validation_end(trainer, None)
    lines = capsys.readouterr().out.splitlines()
    pace = "2 s a step in phase 1 of 2 (one): about 2 min 30 s to go if later steps cost the same"
    assert f"pace      {pace}" in lines
    assert lines[-1] == "step      40 of 100 (40 %), phase 1 of 2; 2 min 7 s gone, about 2 min 0 s to go"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (250, "4 min 10 s"),
        (3540, "59 min"),
        (3599, "1 h 0 min"),
        (11400, "3 h 10 min"),
        (200000, "2 d 8 h"),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert format_seconds(seconds) == text


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Folder, and what a run and its continuation print where nobody watches."""
    folder = tmp_path_factory.mktemp("log")
    texts = []
    for steps in (40, 44):
        words = [*SMALL, "hydra.run.dir=run", f"trainer.max_steps={steps}", "trainer.val_check_interval=16"]
        words += ["method.phases.segmentation=29", "method.phases.propagation=34", "optim.warmup_steps=10"]
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as output:
            patch.setattr(sys, "argv", ["train", *words])
            patch.chdir(folder)
            train.main()
        texts.append(output.getvalue())
    return folder, texts


def test_a_log_has_plain_lines_and_no_bar(log):
    _, texts = log
    for text in texts:
        assert not re.search(r"\x1b|\r|\x08|it/s", text)
    steps = re.findall(
        r"^step +(\d+) of 40 \(\d+ %\), phase (\d) of 3: loss [\d.]+; ", texts[0], re.MULTILINE
    )
    assert [step for step, _ in steps] == [str(step) for step in range(4, 44, 4)]
    assert [phase for _, phase in steps] == ["1"] * 7 + ["2", "3", "3"]
    assert (
        len(re.findall(r"^validated step (16|32|40): CAM .* segmentation .* %$", texts[0], re.MULTILINE)) == 3
    )
    (pace,) = re.findall(r"^pace .*", texts[0], re.MULTILINE)
    assert re.search(r"s a step in phase 1 of 3 \(classification\): about .* to go", pace)


def test_the_start_says_what_begins(log):
    _, texts = log
    opening = texts[0].partition("\nstep ")[0].splitlines()
    assert len(opening) <= 20
    assert opening[0] == "run       run, 40 steps"
    assert re.fullmatch(
        r"data      synthetic: 40 training images with \d\.\d tags each, 2 validation images .* 3 classes",
        opening[1],
    )
    assert "mix_transformer tiny, random weights: backbone 1.2 M" in opening[2]
    assert "classification 0–28, segmentation 29–33, propagation 34–39" in opening[3]
    assert "2 images a step, 1 process × 2" in opening[4]
    assert "32-true" in opening[5]
    assert "\nrun       run, 44 steps; at step 40\n" in texts[1]


def test_the_end_says_what_is_where_and_what_to_do(log):
    folder, texts = log
    assert "\ndone      40 steps in " in texts[0]
    assert "\ndone      4 steps in " in texts[1]
    end = texts[0].partition("\ndone ")[2].splitlines()
    assert len(end) <= 20
    assert any(
        re.fullmatch(r"best      segmentation \d.* % at step \d+; last .* % at step 40", line) for line in end
    )
    for path in re.findall(r"(?:ckpt=|curves +|weights +|, )(run/\S+?)(?:,|\s|$)", "\n".join(end)):
        assert (folder / path).is_file()
    (words,) = (line.partition("wsss-afa evaluate ")[2].split() for line in end if "evaluate" in line)
    assert words[:2] == ["ckpt=run/checkpoints/best.ckpt", "data=synthetic"]
    assert "data.num_classes=3" in words


def test_a_terminal_has_a_bar(monkeypatch):
    primary, secondary = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(secondary, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        assert Console().is_terminal
        assert Progress().is_enabled
        patch.setenv("TERM", "dumb")
        assert Progress().is_disabled
    os.close(primary)
    assert Progress().is_disabled


def test_a_missing_package_is_named_with_its_extra(run, monkeypatch, tmp_path):
    monkeypatch.setattr(board, "_TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr(board, "_TENSORBOARDX_AVAILABLE", False)
    message = run(train, *SMALL, "logger=tensorboard", f"hydra.run.dir={tmp_path}")
    assert message == (
        "error: logger.tensorboard needs a package that is not installed: pip install 'wsss-afa[tensorboard]'"
    )


def test_a_missing_launcher_is_named_with_its_extra(run):
    message = run(train, *SMALL, "hydra/launcher=joblib_of_another_day")
    assert message.startswith("error: hydra/launcher=joblib_of_another_day needs a package")
    assert message.endswith("pip install 'wsss-afa[sweep]'")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("wandb", "pip install 'wsss-afa[wandb]'"),
        ("optuna.samplers", "pip install 'wsss-afa[sweep]'"),
        ("wsss_afa.x", None),
    ],
)
def test_a_module_missing_while_building(name, line, monkeypatch):
    def fail():
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(train, "make_nothing", fail, raising=False)
    with pytest.raises(hydra.errors.InstantiationException) as caught:
        instantiate({"_target_": "wsss_afa.train.make_nothing"})
    text = messages.message(caught.value, "train")
    assert text is None if line is None else text.endswith(f"not installed: {line}")


def test_every_extra_that_an_error_names_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in messages._EXTRAS.items():
        assert any(package in line for line in extras[extra])


@pytest.mark.slow
def test_two_processes_train_with_the_same_total_batch_and_warn_of_nothing(tmp_path):
    words = [*SMALL, "trainer.max_steps=6", "method.phases.segmentation=2", "method.phases.propagation=4"]
    words.append("optim.warmup_steps=3")
    output = run_as_two(train, tmp_path, *words, f"hydra.run.dir={tmp_path}")
    assert output.count("2 images a step, 2 processes × 1;") == 1
    assert output.count("\ndone ") == 1
    assert "warn" not in output.lower()
    assert json.loads((tmp_path / "metrics.json").read_text())["last"]["step"] == 6
