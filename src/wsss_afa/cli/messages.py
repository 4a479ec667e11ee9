"""One line for a mistake: what is wrong, and the words that are right.

Hydra, Lightning, torch and timm say what they refuse in paragraphs of their own; a line keeps the cause.
"""

from __future__ import annotations

import difflib
import re
import sys

from hydra.errors import ConfigCompositionException, InstantiationException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from wsss_afa.cli.corrections import Known
from wsss_afa.errors import UserError

_PLUGINS = ("optuna", "joblib", "submitit")
_EXTRAS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "onnx": "export",
    "gradio": "app",
    **dict.fromkeys(_PLUGINS, "sweep"),
}
"""The extra of ours that brings packages with this in their names."""
_REMEDIES = {"No supported gpu backend found!": " Without one: trainer.accelerator=cpu"}
"""What to do about a sentence of Lightning's that does not say it."""


def message(error: Exception, config_name: str, at_work: bool = False) -> str | None:
    """What the user can mend, or None for a bug of ours; entry points print it as one line.

    Args:
        error: What was raised.
        config_name: Name of the program.
        at_work: Whether the settings were right, and the program did its work.
    """
    known = Known(config_name, sys.argv[1:])
    text = _reason(error, known)
    command = None if at_work or text is None else known.command()
    if command is None:
        return text
    return f"{text}{' Write' if str(text).endswith('?') else '; write'} {command}"


def _reason(error: Exception, known: Known) -> str | None:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, InstantiationException | ImportError):
        return _package(error) or _construction(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{str(error).splitlines()[0]}: give it on the command line, as in {error.full_key}=VALUE"
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, ConfigCompositionException | OmegaConfBaseException):
        return _override(error, known)
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
    """What is wrong with a word that the grammar of overrides does not take."""
    if "=" not in word:
        return f"{word} is no setting: write SETTING=VALUE; --help lists those there are"
    return f"{word} has a sign with a meaning of its own"


def _override(error: Exception, known: Known) -> str:
    """What is wrong with an override, and the nearest setting that exists."""
    text = " ".join(str(error).split())
    if match := re.search(r"Ambiguous value for argument '(.+?)' 1\. To use", text):
        return f"{_unreadable(match[1])}; several values take -m"
    if match := re.search(r"Could not find '([^']*)'", text):
        return _file(match[1], known)
    if match := re.search(r"Multiple values for (\S+)\. To|An item is already at '(\S+)'", text):
        return f"{match[1] or match[2]} is given several times: give it once, without a plus"
    match = re.search(
        r"(?:Could not override|delete from config\.|groups is not supported:) '\+*([^'@=]+)", text
    )
    if match is None:
        return re.split(r" Config search path:| See https?:", text)[0]
    return known.why_not(match[1])


def _file(path: str, known: Known) -> str:
    """What to choose in the place of a file that is not there."""
    group = path.rpartition("/")[0]
    if group not in known.groups and not group.startswith("hydra/"):
        group = next((each for each in known.groups if path.startswith(f"{each}/")), group)
    name = path.removeprefix(f"{group}/")
    if plugin := re.match(rf"(?:{'|'.join(_PLUGINS)})\w*", name) if group.startswith("hydra/") else None:
        return f"{group}={plugin[0]} needs a package that is not installed: pip install 'wsss-afa[sweep]'"
    names = known.groups.get(group, [])
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    there = f"there are {', '.join(names)}" if names else "--help lists the groups there are"
    return f"{known.signs.get(group, '')}{group}={name}: no such file; {hint}{there}"
