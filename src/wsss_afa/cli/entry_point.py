"""Entry points: compose with Hydra, run one function, and answer a user's mistake with one line."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from wsss_afa.cli.config_dir import CONFIG_DIR
from wsss_afa.cli.help_page import help_page
from wsss_afa.cli.renamed import refuse_renamed
from wsss_afa.errors import UserError


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
                return task(cfg)
            except _MISTAKES as error:  # before Hydra announces it with a line of its own
                _stop(error, config_name)

        @wraps(task)
        def main() -> None:
            nonlocal started
            started = False
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands errors on instead of printing them
            _quieten()
            try:
                refuse_renamed(sys.argv[1:])
                if {"-h", "--help"} & set(sys.argv[1:]):
                    print(help_page(config_name, _overrides()))
                    return
                hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name=config_name)(guarded)()
            except _MISTAKES as error:
                _stop(error, config_name)
            except OSError as error:
                if started:
                    raise
                sys.exit(f"error: hydra.run.dir cannot be written ({error}): choose another folder")

        return main

    return decorate


_MISTAKES = (UserError, HydraException, OmegaConfBaseException, ImportError)  # they may be the user's
_PLUGINS = ("optuna", "joblib", "submitit")
_EXTRAS = {"tensorboard": "tensorboard", "onnx": "export", **dict.fromkeys(_PLUGINS, "sweep")}
"""The extra of ours that brings packages with this in their names."""


def _stop(error: Exception, config_name: str) -> NoReturn:
    message = _message(error, config_name)
    if message is None:
        raise error
    sys.exit(f"error: {message}")


def _quieten() -> None:
    """Keep Lightning's advertisements and notes about itself out of the output."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # our error says what its warnings say
    warnings.filterwarnings("ignore", message=".*LeafSpec")  # Lightning calls what torch has deprecated
    warnings.filterwarnings("ignore", message="Experiment logs directory")  # it is the run's folder
    warnings.filterwarnings("ignore", message="The '.*_dataloader' does not have many workers")
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # 3×3 kernels are small
    warnings.filterwarnings("ignore", message=".*sync_dist=True")  # scores are of all processes already


def _message(error: Exception, config_name: str) -> str | None:
    """One line for what the user can mend, or None for a bug of ours."""
    if isinstance(error, UserError):
        return str(error).strip().splitlines()[-1].removeprefix("wsss_afa.errors.UserError: ")
    if isinstance(error, InstantiationException | ImportError):
        return _package(error) or _construction(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{str(error).splitlines()[0]}: give it on the command line, as in {error.full_key}=VALUE"
    if isinstance(error, ConfigCompositionException | OmegaConfBaseException):
        return _override(error, config_name)
    return " ".join(str(error).split())


def _package(error: BaseException) -> str | None:
    """What to install for a module that is missing somewhere among the causes."""
    missing: BaseException | None = error
    while missing is not None and not isinstance(missing, ImportError):
        missing = missing.__cause__ or missing.__context__
    if missing is None:
        return None
    name = (missing.name or "").partition(".")[0]
    extra = next((extra for package, extra in _EXTRAS.items() if package in f"{name} {missing}"), None)
    if extra is None and (isinstance(error, ImportError) or name in ("", "wsss_afa")):
        return None
    key = re.search(r"full_key: (\S+)", str(error))
    package = f"'wsss-afa[{extra}]'" if extra else name
    return f"{key[1] if key else 'this'} needs a package that is not installed: pip install {package}"


def _construction(error: Exception) -> str | None:
    cause = error.__cause__
    if isinstance(cause, UserError):
        return str(cause)
    match = re.search(r"unexpected keyword argument '(\w+)'", str(cause))
    if match is None or not isinstance(cause, TypeError):
        return None
    key = re.search(r"full_key: (\S+)", str(error))
    name = f"{key[1] + '.' if key else ''}{match[1]}"
    if match[1] in {word.partition("=")[0].rpartition(".")[2] for word in sys.argv[1:]}:
        return f"{name} is no setting; --help lists those there are"
    return f"{name} is no setting of what was chosen; an experiment or a sweep sets it: choose its method"


def _override(error: Exception, config_name: str) -> str:
    """What is wrong with an override, and the nearest setting that exists."""
    text = " ".join(str(error).split())
    if plugin := re.search(rf"Could not find '(hydra/\w+)/((?:{'|'.join(_PLUGINS)})\w*)'", text):
        return f"{plugin[1]}={plugin[2]} needs a package that is not installed: pip install 'wsss-afa[sweep]'"
    match = re.search(r"Could not override '([^']+)'", text)
    if match is None:
        return text
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        known = _keys(OmegaConf.to_container(hydra.compose(config_name, _choices(_overrides()))))
    near = difflib.get_close_matches(match[1], known, n=1)
    hint = f"did you mean {near[0]}?" if near else "--help lists those there are"
    return f"{match[1]} is no setting of this run; {hint}"


def _overrides() -> list[str]:
    """The overrides of the command line, and as one of them a user's folder of settings, ``--config-dir``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")  # as Hydra has it
    options, words = parser.parse_known_args(sys.argv[1:])
    overrides = [word for word in words if not word.startswith("-")]
    if options.config_dir is not None:
        overrides.append(f"hydra.searchpath=['file://{Path(options.config_dir).absolute()}']")
    return overrides


def _choices(overrides: Sequence[str]) -> list[str]:
    """The overrides that choose a group's file or say where it lies; the others may be the mistake."""
    groups = {path.name for path in Path(CONFIG_DIR).iterdir() if path.is_dir()} | {"hydra.searchpath"}
    return [word for word in overrides if word.lstrip("+").partition("=")[0] in groups]


def _keys(config: object, prefix: str = "") -> list[str]:
    if not isinstance(config, dict):
        return []
    names = [f"{prefix}{key}" for key in config]
    return names + [name for key in config for name in _keys(config[key], f"{prefix}{key}.")]
