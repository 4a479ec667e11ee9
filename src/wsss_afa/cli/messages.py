"""One line for a mistake: what is wrong, and the words that are right.

Hydra, Lightning, torch and timm say what they refuse in paragraphs of their own; a line keeps the cause.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import hydra
from hydra.errors import ConfigCompositionException, InstantiationException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from wsss_afa.cli.config_dir import CONFIG_DIR
from wsss_afa.errors import UserError

_PLUGINS = ("optuna", "joblib", "submitit")
_EXTRAS = {"tensorboard": "tensorboard", "onnx": "export", **dict.fromkeys(_PLUGINS, "sweep")}
"""The extra of ours that brings packages with this in their names."""
_DEVICES = {"auto": "auto", "cpu": "cpu", "cuda": "gpu", "gpu": "cuda"}
_TWINS = {"device": "trainer.accelerator", "trainer.accelerator": "device"}
"""Two names of one thing: programs with a Trainer have one, the others the other."""
_REMEDIES = {"No supported gpu backend found!": " Without one: trainer.accelerator=cpu"}
"""What to do about a sentence of Lightning's that does not say it."""


def message(error: Exception, config_name: str) -> str | None:
    """What the user can mend, or None for a bug of ours; entry points print it as one line."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, InstantiationException | ImportError):
        return _package(error) or _construction(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{str(error).splitlines()[0]}: give it on the command line, as in {error.full_key}=VALUE"
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
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
    """What a constructor refused; one of our own has to say it as a UserError."""
    cause, text = error.__cause__, str(error)
    if isinstance(cause, UserError):
        return str(cause)
    key, target = re.search(r"full_key: (\S+)", text), re.search(r"target '([^']+)'", text)
    if target is not None and text.startswith("Error locating target"):
        reason = f"{type(_root(error)).__name__}: {_first(str(_root(error)))}"
        where = "correct the name, or put its folder into PYTHONPATH"
        return f"{f'{key[1]}.' if key else ''}_target_={target[1]} cannot be imported ({reason}): {where}"
    if isinstance(cause, TypeError) and (
        extra := re.search(r"unexpected keyword argument '(\w+)'", str(cause))
    ):
        name, kind = f"{f'{key[1]}.' if key else ''}{extra[1]}", target[1] if target else "it"
        return f"{name} is no setting of {kind}: leave it out"
    foreign = target is not None and target[1].partition(".")[0] in ("lightning", "torch", "timm", "wandb")
    if not foreign or target is None:
        return None
    reason = _first(str(cause))
    return f"{key[1] if key else target[1]}: {reason}{_REMEDIES.get(reason, '')}"


def _root(error: BaseException) -> BaseException:
    """The first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first(text: str) -> str:
    """The first two sentences of a paragraph."""
    words = " ".join(text.split())
    return " ".join(re.split(r"(?<=[.!?]) (?=[A-Z])", words)[:2])


def _unreadable(word: str) -> str:
    """How to write a word that the grammar of overrides does not take."""
    key, equals, value = word.partition("=")
    if not equals:
        return f"{word} is no setting: write SETTING=VALUE; --help lists those there are"
    quoted = f"{key}='{value.strip(chr(39))}'"
    return f'{word} has a sign with a meaning of its own: write "{quoted}"'


def _override(error: Exception, config_name: str) -> str:
    """What is wrong with an override, and the nearest setting that exists."""
    text = " ".join(str(error).split())
    if match := re.search(r"Ambiguous value for argument '(.+?)' 1\. To use", text):
        return f"{_unreadable(match[1])}; several values take -m"
    if match := re.search(r"Could not find '(?:([^']+)/)?([^'/]+)'", text):
        return _file(match[1] or "", match[2])
    if match := re.search(r"Multiple values for (\S+)\. To", text):
        return f"{match[1]} is given several times: give it once"
    match = re.search(r"Could not override '([^'@]+)", text)
    if match is None:
        return re.split(r" Config search path:| See https?:", text)[0]
    name = match[1]
    if name.partition("/")[0] in _groups():
        return _group(name, config_name)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        known = _keys(OmegaConf.to_container(hydra.compose(config_name, _choices(overrides(), config_name))))
    if _TWINS.get(name) in known:
        value = _DEVICES.get(_value(name).partition(":")[0], "auto")
        return f"{name} is no setting of this run; here it is {_TWINS[name]}={value}"
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "--help lists those there are"
    return f"{name} is no setting of this run; {hint}"


def _file(group: str, name: str) -> str:
    """What to choose in the place of a file that is not there."""
    if plugin := re.match(rf"(?:{'|'.join(_PLUGINS)})\w*", name) if group.startswith("hydra/") else None:
        return f"{group}={plugin[0]} needs a package that is not installed: pip install 'wsss-afa[sweep]'"
    names = _names(group)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    sign = next((word[0] for word in sys.argv if re.match(rf"[+~]{re.escape(group)}=", word)), "")
    there = f"there are {', '.join(names)}" if names else "--help lists the groups there are"
    return f"{sign}{group}={name}: no such file; {hint}{there}"


def _names(group: str) -> list[str]:
    """The files of a group."""
    folders = [Path(CONFIG_DIR, group), *(Path(each, group) for each in _own_folders())]
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def _group(name: str, config_name: str) -> str:
    """How a group that the program does not choose by itself is chosen, or which programs have it."""
    chosen = f"{name}={_value(name)}"
    if name in _offered(config_name):
        near = difflib.get_close_matches(_value(name), _names(name), n=1)
        chosen = f"{name}={near[0]}" if near else chosen
        return f"{name}={_value(name)}: it is added, with a plus: +{chosen}"
    others = [path.stem for path in sorted(Path(CONFIG_DIR).glob("*.yaml")) if name in _offered(path.stem)]
    where = f"it is a choice of {', '.join(others)}" if others else "no program has it"
    return f"{chosen} is no choice of {config_name}; {where}"


def _offered(config_name: str) -> set[str]:
    """The groups that a program chooses, or shows an example of."""
    path = Path(CONFIG_DIR, f"{config_name}.yaml")
    defaults = cast(DictConfig, OmegaConf.load(path)).get("defaults", [])
    chosen = {str(key) for entry in defaults if not isinstance(entry, str) for key in entry}
    return chosen | set(re.findall(r"\+(\w+)=", path.read_text(encoding="utf-8")))


def _value(name: str) -> str:
    """What the command line gives a setting."""
    words = (word.lstrip("+").partition("=") for word in sys.argv[1:])
    return next((value for key, _, value in words if key == name), "…")


def overrides() -> list[str]:
    """The overrides of the command line, and as one of them a user's folder of settings, ``--config-dir``."""
    options, words = _parser().parse_known_args(sys.argv[1:])
    found = [word for word in words if not word.startswith("-")]
    if options.config_dir is not None:
        found.append(f"hydra.searchpath=['file://{Path(options.config_dir).absolute()}']")
    return found


def _own_folders() -> list[str]:
    folder = _parser().parse_known_args(sys.argv[1:])[0].config_dir
    return [] if folder is None else [folder]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")  # as Hydra has it
    return parser


def _groups() -> set[str]:
    folders = [Path(CONFIG_DIR), *map(Path, _own_folders())]
    return {path.name for folder in folders for path in folder.iterdir() if path.is_dir()}


def _choices(words: Sequence[str], config_name: str) -> list[str]:
    """The overrides that choose a group's file or say where it lies; the others may be the mistake."""
    groups = _groups() - {"hydra"}
    found = []
    for word in words:
        name = word.lstrip("+").partition("=")[0]
        if name == "hydra.searchpath" or (
            name in groups and (word[0] == "+" or name in _offered(config_name))
        ):
            found.append(word)
    return found


def _keys(config: object, prefix: str = "") -> list[str]:
    if not isinstance(config, dict):
        return []
    names = [f"{prefix}{key}" for key in config]
    return names + [name for key in config for name in _keys(config[key], f"{prefix}{key}.")]
