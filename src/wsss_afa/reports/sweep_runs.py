"""What the runs of a sweep left: settings, seed and scores; and which of its runs are missing."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from wsss_afa.errors import UserError

_NO_SETTING = (
    "seed",
    "sweep",
    "callbacks",
    "logger",
    "task",
    "resume",
    "patience",
    "data.root",
    "data.cache_dir",
    "data.num_workers",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.default_root_dir",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
)
"""Parts of a configuration in which runs of one setting may differ."""
_EVALUATED = ("ckpt=", "protocol")
"""How the overrides begin that tell evaluations apart."""


class Run(NamedTuple):
    """One finished run."""

    folder: Path
    """Of the run."""
    settings: str
    """Its configuration without the seed and the machine; equal for runs of one setting."""
    overrides: tuple[str, ...]
    """Its command line, without the seed and the machine."""
    seed: int
    """Of training."""
    scores: dict[str, dict[str, float]]
    """Percent by name (cam, affinity, seg, crf, map), of the best and of the last validation."""


class Job(NamedTuple):
    """What a run was started as, or should have been."""

    task: str
    """``train`` or ``evaluate``."""
    words: tuple[str, ...]
    """Its overrides."""


class Sweep(NamedTuple):
    """What is there and what is not."""

    runs: list[Run]
    """Finished, in order of the folders and of their numbers."""
    missing: list[str]
    """A line for each run that failed, is unfinished, or was announced and never started."""
    common: frozenset[str]
    """Overrides that all runs share, the missing ones too."""


def label(overrides: Sequence[str], common: Collection[str]) -> str:
    """A setting by the overrides that others do not share; rows of ``conf/sweep`` by their name alone."""
    own = [word for word in overrides if word not in common]
    return (
        " ".join(word.partition("=")[2] if word.startswith("sweep/") else word for word in own) or "unchanged"
    )


def find_runs(folders: Sequence[Path]) -> Sweep:
    """Read all runs of training and of evaluation below the folders.

    Raises:
        UserError: a folder does not exist.
    """
    found = {folder: _load(folder / ".hydra" / "config.yaml") for folder in _run_folders(folders)}
    found = {folder: config for folder, config in found.items() if config.get("task") in _READERS}
    results = {folder: _read(folder, config) for folder, config in found.items()}
    runs = [run for run in results.values() if isinstance(run, Run)]
    jobs = [Job(config.task, _words(folder)) for folder, config in found.items()]
    absent = _never_started(folders, jobs)
    known = [_setting(job.words) for job in (*jobs, *absent) if job.task == "train"]
    known += [run.overrides for run in runs]
    common = frozenset.intersection(*map(frozenset, known)) if known else frozenset()
    missing = [
        f"{_job_label(job, common)}: {problem} ({folder})"
        for job, (folder, problem) in zip(jobs, results.items(), strict=True)
        if isinstance(problem, str)
    ]
    return Sweep(runs, missing + [f"{_job_label(job, common)}: never started" for job in absent], common)


def _job_label(job: Job, common: Collection[str]) -> str:
    if job.task == "evaluate":
        return " ".join(word for word in job.words if word.startswith(_EVALUATED))
    seed = [word for word in job.words if word.startswith("seed=")]
    return label([*_setting(job.words), *seed], common)


def _run_folders(folders: Sequence[Path]) -> list[Path]:
    """Folders of runs, in the given order, and below one of these 10 after 9."""
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"runs={folder}: no such folder; name the folder of a sweep, or of a run")
        below = [path.parents[1] for path in folder.rglob(".hydra/config.yaml")]
        found += sorted(below, key=lambda path: (path.parent, len(path.name), path.name))
    return list(dict.fromkeys(found))


def _load(path: Path) -> DictConfig:
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    return config


def _words(folder: Path) -> tuple[str, ...]:
    """A run's overrides; whether one adds or replaces is no difference."""
    return _plain(OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "overrides.yaml")))


def _plain(overrides: Any) -> tuple[str, ...]:
    return tuple(str(word).lstrip("+") for word in overrides)


def _setting(words: Sequence[str]) -> tuple[str, ...]:
    """Overrides without those of seed and machine."""
    parts = tuple(f"{name}." for name in _NO_SETTING)
    return tuple(word for word in words if not f"{word.partition('=')[0]}.".startswith(parts))


def _read(folder: Path, config: DictConfig) -> Run | str:
    """The run, or why it does not count."""
    try:
        results = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "failed, or not validated yet: no metrics.json"
    except ValueError:
        return "metrics.json cannot be read"
    return _READERS[config.task](folder, config, results)


def _training(folder: Path, config: DictConfig, results: dict[str, Any]) -> Run | str:
    step, wanted = results["last"]["step"], config.trainer.max_steps
    if step < wanted:
        return f"stopped, or still running: step {step} of {wanted}"
    scores = {name: _scores(results[name]) for name in ("best", "last")}
    return Run(folder, _fingerprint(config, results), _setting(_words(folder)), config.seed, scores)


def _evaluation(folder: Path, config: DictConfig, results: dict[str, Any]) -> Run | str:
    """An evaluation has the setting and the seed of the training run that its checkpoint lies in."""
    checkpoint = Path(_load(folder / ".hydra" / "hydra.yaml").hydra.runtime.cwd, config.ckpt)
    trained = checkpoint.parents[1]
    if not (trained / ".hydra" / "config.yaml").is_file():
        return f"evaluates {config.ckpt}, which lies in no run's folder: its setting is unknown"
    origin = _load(trained / ".hydra" / "config.yaml")
    fingerprint = json.dumps([_fingerprint(origin, results), checkpoint.name])
    protocol = [word for word in _words(folder) if word.startswith("protocol")]
    overrides = (*_setting(_words(trained)), f"ckpt={checkpoint.name}", *protocol)
    return Run(folder, fingerprint, overrides, origin.seed, dict.fromkeys(("best", "last"), _scores(results)))


_READERS = {"train": _training, "evaluate": _evaluation}
"""By the configuration's ``task``."""


def _scores(record: dict[str, Any]) -> dict[str, float]:
    named = {name.removeprefix("val/"): value for name, value in record.items() if name.startswith("val/")}
    return {name.removeprefix("miou_").removesuffix("_cls"): value for name, value in named.items()}


def _fingerprint(config: DictConfig, results: dict[str, Any]) -> str:
    """The configuration without seed and machine, and what the scores were measured with."""
    container = OmegaConf.to_container(config)
    for name in _NO_SETTING:
        *path, key = name.split(".")
        part: Any = container
        for each in path:
            part = part.get(each, {})
        part.pop(key, None)
    return json.dumps([container, results["protocol"], results["split"]], sort_keys=True)


def _never_started(folders: Sequence[Path], started: Sequence[Job]) -> list[Job]:
    """The jobs that a grid announced and no run's folder has."""
    paths = {path for folder in folders for path in folder.rglob("multirun.yaml")}
    configs = [_load(path) for path in sorted(paths)]
    jobs = [Job(config.task, words) for config in configs for words in _announced(config.hydra)]
    seen = {frozenset(job.words) for job in started}
    return [job for job in jobs if job.task in _READERS and frozenset(job.words) not in seen]


def _announced(config: DictConfig) -> list[tuple[str, ...]]:
    """Overrides of the jobs of a grid; none where the sweeper chooses as it goes."""
    if not config.sweeper._target_.endswith(".BasicSweeper"):
        return []
    params = [f"{key}={value}" for key, value in (config.sweeper.params or {}).items()]
    words = cast(list[str], OmegaConf.to_container(config.overrides.task))  # may hold ${…}
    try:
        parsed = OverridesParser.create().parse_overrides([*params, *words])
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException:  # a glob, which needs the sweep's search path
        return []
    return [_plain(job) for job in jobs]
