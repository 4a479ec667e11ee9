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
    "seed", "sweep", "callbacks", "logger", "task", "resume", "patience", "data.root", "data.cache_dir",
    "data.num_workers", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
    "trainer.default_root_dir", "trainer.log_every_n_steps", "trainer.enable_progress_bar",
)  # fmt: skip
"""Parts of a configuration in which runs of one setting may differ: the seed and the machine."""

Job = tuple[str, tuple[str, ...]]
"""What a run was started as: its task, ``train`` or ``evaluate``, and its overrides."""


class Run(NamedTuple):
    """One finished run."""

    folder: Path
    settings: str  # its configuration without seed and machine; equal for runs of one setting
    overrides: tuple[str, ...]  # its command line without seed and machine
    seed: int  # the seed of training
    scores: dict[str, dict[str, float]]
    """Percent by name (cam, affinity, seg, crf, map), of the best and of the last validation."""


class Sweep(NamedTuple):
    """What is there and what is not."""

    runs: list[Run]  # finished runs, in order of the folders and of their numbers
    missing: list[str]  # a line for each run that failed, is unfinished, or was announced and never started
    common: frozenset[str]  # overrides that all runs share, the missing ones too


def label(overrides: Sequence[str], common: Collection[str]) -> str:
    """Name a setting by the overrides that others do not share; rows of ``conf/sweep`` by name alone."""
    own = (word for word in overrides if word not in common)
    names = [word.partition("=")[2] if word.startswith("sweep/") else word for word in own]
    return " ".join(names) or "unchanged"


def find_runs(folders: Sequence[Path]) -> Sweep:
    """Read all runs of training and of evaluation below the folders; a missing folder raises UserError."""
    configs = {folder: _config(folder) for folder in _run_folders(folders)}
    configs = {folder: config for folder, config in configs.items() if config.get("task") in _READERS}
    results = [_read(folder, config) for folder, config in configs.items()]
    runs = [result for result in results if isinstance(result, Run)]
    jobs: list[Job] = [(config.task, _words(folder)) for folder, config in configs.items()]
    started = {frozenset(words) for _, words in jobs}
    absent = [job for job in _announced(folders) if frozenset(job[1]) not in started]
    known = [_setting(words) for task, words in (*jobs, *absent) if task == "train"]
    known += [run.overrides for run in runs]
    common = frozenset.intersection(*map(frozenset, known)) if known else frozenset()
    ends = zip(jobs, configs, results, strict=True)
    lost = [f"{_job_label(job, common)}: {end} ({path})" for job, path, end in ends if isinstance(end, str)]
    return Sweep(runs, lost + [f"{_job_label(job, common)}: never started" for job in absent], common)


def _job_label(job: Job, common: Collection[str]) -> str:
    task, words = job
    if task == "evaluate":
        return " ".join(word for word in words if word.startswith(("ckpt=", "protocol")))
    return label([*_setting(words), *(word for word in words if word.startswith("seed="))], common)


def _run_folders(folders: Sequence[Path]) -> list[Path]:
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"runs={folder}: no such folder; name the folder of a sweep, or of a run")
        below = [path.parents[1] for path in folder.rglob(".hydra/config.yaml")]
        found += sorted(below, key=lambda path: (path.parent, len(path.name), path.name))  # 10 after 9
    return list(dict.fromkeys(found))


def _config(folder: Path, name: str = "config") -> DictConfig:
    return cast(DictConfig, OmegaConf.load(folder / ".hydra" / f"{name}.yaml"))


def _words(folder: Path) -> tuple[str, ...]:
    return _plain(OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "overrides.yaml")))


def _plain(overrides: Any) -> tuple[str, ...]:
    return tuple(str(word).lstrip("+") for word in overrides)  # adding or replacing is no difference


def _setting(words: Sequence[str]) -> tuple[str, ...]:
    parts = tuple(f"{name}." for name in _NO_SETTING)
    return tuple(word for word in words if not f"{word.partition('=')[0]}.".startswith(parts))


def _read(folder: Path, config: DictConfig) -> Run | str:
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
    checkpoint = Path(_config(folder, "hydra").hydra.runtime.cwd, config.ckpt)
    trained = checkpoint.parents[1]
    if not (trained / ".hydra" / "config.yaml").is_file():
        return f"evaluates {config.ckpt}, which lies in no run's folder: its setting is unknown"
    origin = _config(trained)
    protocol = [word for word in _words(folder) if word.startswith("protocol")]
    overrides = (*_setting(_words(trained)), f"ckpt={checkpoint.name}", *protocol)
    settings = f"{checkpoint.name} {_fingerprint(origin, results)}"
    return Run(folder, settings, overrides, origin.seed, dict.fromkeys(("best", "last"), _scores(results)))


_READERS = {"train": _training, "evaluate": _evaluation}  # readers by the configuration's ``task``


def _scores(record: dict[str, Any]) -> dict[str, float]:
    named = {name.removeprefix("val/"): value for name, value in record.items() if name.startswith("val/")}
    return {name.removeprefix("miou_").removesuffix("_cls"): value for name, value in named.items()}


def _fingerprint(config: DictConfig, results: dict[str, Any]) -> str:
    shared = config.copy()
    for name in _NO_SETTING:
        OmegaConf.update(shared, name, None)
    return json.dumps([OmegaConf.to_container(shared), results["protocol"], results["split"]], sort_keys=True)


def _announced(folders: Sequence[Path]) -> list[Job]:
    paths = {path for folder in folders for path in folder.rglob("multirun.yaml")}
    configs = [cast(DictConfig, OmegaConf.load(path)) for path in sorted(paths)]
    return [(each.task, words) for each in configs if each.task in _READERS for words in _grid(each.hydra)]


def _grid(config: DictConfig) -> list[tuple[str, ...]]:
    if not config.sweeper._target_.endswith(".BasicSweeper"):
        return []  # others choose as they go
    params = [f"{key}={value}" for key, value in (config.sweeper.params or {}).items()]
    words = cast(list[str], OmegaConf.to_container(config.overrides.task))  # may hold ${…}
    try:
        parsed = OverridesParser.create().parse_overrides([*params, *words])
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException:  # a glob, which needs the sweep's search path
        return []
    return [_plain(job) for job in jobs]
