"""Entry points: compose with Hydra, run one function, and answer a user's mistake with one line."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import update_wrapper, wraps
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wsss_afa.cli.corrections import Known, check_options, overrides
from wsss_afa.cli.help_page import help_page
from wsss_afa.cli.kinds import check_kinds
from wsss_afa.cli.messages import message
from wsss_afa.cli.ranges import check_ranges
from wsss_afa.cli.renamed import refuse_renamed
from wsss_afa.cli.run_folder import release
from wsss_afa.errors import UserError, printable
from wsss_afa.files import CONFIG_DIR

_MISTAKES = (UserError, HydraException, OmegaConfBaseException, ImportError)  # they may be the user's


class Program:
    """A function of a configuration as a command.

    A mistake of the user ends with exit code 1 and one line on the standard error; anything else is a bug
    and keeps its traceback. The function should import what takes time, torch above all: help and mistakes
    in the settings are answered before it is called.

    Args:
        name: Of the file of ``conf/`` that composes the configuration.
        task: Does the work, and returns a score for sweeps.
    """

    def __init__(self, name: str, task: Callable[[DictConfig], float]):
        self.name, self.task = name, task
        self.folder: Path | None = None
        """Of the latest run that has begun in this process."""
        self.at_work = False
        update_wrapper(self, task)

    def __call__(self) -> None:
        """Do what the command line says."""
        self.folder, self.at_work = None, False
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands errors on instead of printing them
        _write_all_characters()
        try:
            refuse_renamed(sys.argv[1:])
            check_options(sys.argv[1:])
            if {"-h", "--help"} & set(sys.argv[1:]):
                print(help_page(self.name, overrides()))
                return
            hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name=self.name)(self._job())()
        except _MISTAKES as error:
            self._stop(error)
        except BrokenPipeError:  # whoever read the output, such as head, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except (OSError, ValueError) as error:
            if self.folder is not None:
                raise
            if isinstance(error, ValueError):  # Hydra's word for options that contradict each other
                sys.exit(f"error: {printable(error)}")
            sys.exit(f"error: hydra.run.dir cannot be written ({error}): choose another folder")
        finally:
            release()

    def in_python(self, words: Sequence[str]) -> Path:
        """Do what the command would do with these overrides; return the folder of the run.

        Raises:
            UserError: Where the command ends with a line.
        """
        options = [word for word in words if word.startswith("-") and not word.startswith("--config-dir=")]
        if options:
            raise UserError(f"{options[0]} is an option of the command {self.name}: leave it out in Python")
        try:
            with _command_line([self.name, *words]):
                self()
        except SystemExit as stop:
            if not isinstance(stop.code, str):
                raise
            raise UserError(stop.code.removeprefix("error: ")) from None
        assert self.folder is not None
        return self.folder

    def _job(self) -> Callable[[DictConfig], float]:
        """What Hydra calls: a function, which looks to it as if it were the program's own."""

        @wraps(self.task)
        def guarded(cfg: DictConfig) -> float:
            self.folder = Path(HydraConfig.get().runtime.output_dir)
            try:
                self._check(cfg)
                import_module(f"wsss_afa.programs.{self.name}")
                _quieten()  # now, for packages set the levels of their loggers when they are imported
                self.at_work = True
                return self.task(cfg)
            except _MISTAKES as error:  # before Hydra announces it with a line of its own
                self._stop(error)

        return guarded

    def _check(self, cfg: DictConfig) -> None:
        """Raise a UserError for a setting that nothing reads, or of a type that its part does not take."""
        known = Known(self.name, sys.argv[1:])
        for name in known.strangers():
            raise UserError(known.why_not(name))
        try:
            config = OmegaConf.to_container(cfg, resolve=True)
        except OmegaConfBaseException:  # one is missing, or is for the program to say
            return
        assert isinstance(config, dict)
        check_kinds(config, self.name)
        check_ranges(config)
        if "_target_" in str(config):
            from wsss_afa.methods.schema import check_parts  # takes torch's time

            others_repeat = sorted(config, key="trainer".__ne__)
            check_parts({name: config[name] for name in others_repeat})

    def _stop(self, error: Exception) -> NoReturn:
        text = message(error, self.name, self.at_work)
        if text is None:
            raise error
        sys.exit(f"error: {printable(text)}")


def entry_point(name: str) -> Callable[[Callable[[DictConfig], float]], Program]:
    """Make a `Program` of a function of the configuration that ``conf/{name}.yaml`` composes."""
    return lambda task: Program(name, task)


@contextmanager
def _command_line(words: list[str]) -> Iterator[None]:
    """Have these words stand on the command line, and leave no trace in how warnings are shown."""
    before, shown = sys.argv, warnings.formatwarning
    sys.argv = words
    try:
        with warnings.catch_warnings():
            yield
    finally:
        sys.argv, warnings.formatwarning = before, shown


def _quieten() -> None:
    """Keep Lightning's advertisements and notes about itself out of the output, and what our errors say."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*LeafSpec")  # Lightning calls what torch has deprecated
    warnings.filterwarnings("ignore", message="Experiment logs directory")  # it is the run's folder
    warnings.filterwarnings("ignore", message="The '.*_dataloader' does not have many workers")
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # 3×3 kernels are small
    warnings.filterwarnings("ignore", message="The number of training batches")  # runs of few steps
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")  # masks were added
    warnings.filterwarnings("ignore", message=".*sync_dist=True")  # scores are of all processes already


def _write_all_characters() -> None:
    """Let what the output's encoding lacks, such as Greek on a Windows console, be escaped; it would fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
