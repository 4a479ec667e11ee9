"""Entry points: compose with Hydra, run one function, and answer a user's mistake with one line."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wsss_afa.cli.config_dir import CONFIG_DIR
from wsss_afa.cli.help_page import help_page
from wsss_afa.cli.messages import message, overrides
from wsss_afa.cli.renamed import refuse_renamed
from wsss_afa.cli.run_folder import release
from wsss_afa.errors import UserError, printable


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], float]], Callable[[], None]]:
    """Make a program of a function of the configuration that ``conf/{config_name}.yaml`` composes.

    A mistake of the user ends with exit code 1 and one line on the standard error; anything else is a bug
    and keeps its traceback.
    """

    def decorate(task: Callable[[DictConfig], float]) -> Callable[[], None]:
        started = False

        @wraps(task)
        def guarded(cfg: DictConfig) -> float:
            nonlocal started
            started = True
            try:
                _check(cfg)
                return task(cfg)
            except _MISTAKES as error:  # before Hydra announces it with a line of its own
                _stop(error, config_name)

        @wraps(task)
        def main() -> None:
            nonlocal started
            started = False
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands errors on instead of printing them
            _quieten()
            _write_all_characters()
            try:
                refuse_renamed(sys.argv[1:])
                if {"-h", "--help"} & set(sys.argv[1:]):
                    print(help_page(config_name, overrides()))
                    return
                hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name=config_name)(guarded)()
            except _MISTAKES as error:
                _stop(error, config_name)
            except OSError as error:
                if started:
                    raise
                sys.exit(f"error: hydra.run.dir cannot be written ({error}): choose another folder")
            finally:
                release()

        return main

    return decorate


_MISTAKES = (UserError, HydraException, OmegaConfBaseException, ImportError)  # they may be the user's


def _stop(error: Exception, config_name: str) -> NoReturn:
    text = message(error, config_name)
    if text is None:
        raise error
    sys.exit(f"error: {printable(text)}")


def _check(cfg: DictConfig) -> None:
    """Raise a UserError for a setting of a type that its part does not take."""
    try:
        config = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException:  # one is missing, or is for the program to say
        return
    if isinstance(config, dict) and "_target_" in str(config):
        from wsss_afa.methods.schema import check_parts  # takes torch's time

        check_parts(
            {name: config[name] for name in sorted(config, key="trainer".__ne__)}
        )  # others repeat its


def _quieten() -> None:
    """Keep Lightning's advertisements and notes about itself out of the output."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # our error says what its warnings say
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
