"""A command line beside what its program knows: every word that is wrong, as it should have been.

A word is right if its name is a group or a setting of the program, its sign is the one that this takes, and
its value can be read as what the setting holds. There is no list of mistakes: each word is written anew from
what is known, and a command that does not compose then is not offered.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wsss_afa.errors import UserError
from wsss_afa.files import CONFIG_DIR

TWINS = {
    "device": "trainer.accelerator", "trainer.accelerator": "device", "ckpt": "resume", "resume": "ckpt",
    "source": "data.root", "data.root": "source",
}  # fmt: skip
"""Two names of one thing: some programs have the one, some the other."""
_DEVICES = {"cuda": "gpu", "gpu": "cuda"}


class Known:
    """What a program knows: groups and their files, settings and their defaults.

    Args:
        program: Name of its file in ``conf/``.
        words: Of the command line; they choose which settings there are.
    """

    def __init__(self, program: str, words: Sequence[str]):
        self.program = program
        self.options, self.words = _split(words)
        config_dir = _parser().parse_known_args(list(words))[0].config_dir
        self.folders = [Path(CONFIG_DIR), *([] if config_dir is None else [Path(config_dir)])]

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """The files of every group."""
        found: dict[str, set[str]] = {}
        for folder in self.folders:
            for path in folder.rglob("*.yaml"):
                found.setdefault(path.parent.relative_to(folder).as_posix(), set()).add(path.stem)
        return {group: sorted(names) for group, names in found.items() if group != "."}

    @cached_property
    def signs(self) -> dict[str, str]:
        """What stands before a group: nothing if the program chooses a file of it, else a plus."""
        text = Path(CONFIG_DIR, f"{self.program}.yaml").read_text(encoding="utf-8")
        defaults = cast(DictConfig, OmegaConf.create(text)).get("defaults", [])
        chosen = {str(key) for entry in defaults if not isinstance(entry, str) for key in entry}
        own = {group for group in self.groups if not Path(CONFIG_DIR, group).is_dir()}
        return dict.fromkeys(own | set(re.findall(r"\+(\w+)=", text)), "+") | dict.fromkeys(chosen, "")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Defaults by dotted name, as the groups of the command line compose them."""
        chosen = [word for word in map(self._correct_group, self.words) if _name(word) in self.signs]
        found = next((cfg for cfg in map(self._compose, (chosen, [])) if cfg is not None), {})
        return dict(_leaves(found))

    def programs_with(self, name: str) -> list[str]:
        """Other programs that have a group or a setting of this name."""
        others = [Known(path.stem, []) for path in sorted(Path(CONFIG_DIR).glob("*.yaml"))]
        have = [other.signs if name in self.groups else other.settings for other in others]
        return [other.program for other, names in zip(others, have, strict=True) if name in names]

    def strangers(self) -> list[str]:
        """Names that are added and that nothing of the program reads; Hydra takes them as they are."""
        added = [_name(word) for word in self.words if word.startswith("+")]
        doubtful = [name for name in added if _top(name) not in {"hydra", *map(_top, self.signs)}]
        return [name for name in doubtful if _top(name) not in self.settings]

    def why_not(self, name: str) -> str:
        """Why a group or a setting cannot be given in this way, or which programs have it."""
        if name in self.signs:
            return f"{name} is added, with a plus" if self.signs[name] else f"{name} takes no plus"
        if name in self.groups:
            others = self.programs_with(name)
            where = f"it is a choice of {', '.join(others)}" if others else "no program has it"
            return f"{name} is no choice of {self.program}; {where}"
        near = self.nearest(name)
        if near is not None and near == TWINS.get(name):
            return f"{name} is no setting of this run; here it is {near}"
        others = [] if near else self.programs_with(name)
        if self.program in others:  # without the words of this run
            chosen = [word for word in self.words if _name(word) == _top(name)]
            return f"{name} is no setting of {' '.join(chosen) or 'this run'}; leave it out"
        if others:
            return f"{name} is no setting of {self.program}; it is one of {', '.join(others)}"
        hint = f"did you mean {near}?" if near else "--help lists those there are"
        return f"{name} is no setting of this run; {hint}"

    def nearest(self, name: str) -> str | None:
        """The setting of this run that a wrong name may mean."""
        if TWINS.get(name) in self.settings:
            return TWINS[name]
        own = {each: value for each, value in self.settings.items() if not str(value).startswith("${")}
        last = [each for each in own if each.rpartition(".")[2] == name.lower()]
        groups = () if "." in name else self.signs
        near = difflib.get_close_matches(name.lower(), [*self.settings, *groups], n=1, cutoff=0.75)
        return last[0] if len(last) == 1 else near[0] if near else None

    def command(self) -> str | None:
        """The whole command with every word as it should be; None if nothing changes, or it does not help."""
        corrected = [self._correct(word) for word in _join(self._named())]
        multirun = {"-m", "--multirun"} & set(self.options)
        several = not multirun and any(map(_is_sweep, corrected))
        options = [*(["-m"] if several else []), *self.options]
        if (corrected, options) == (self.words, self.options) or not all(map(_reads, corrected)):
            return None
        read = all(map(_reads, self.words)) and not (several or multirun)
        if read and self._compose(corrected) is None:
            return None
        return " ".join(map(shell, ["wsss-afa", self.program, *options, *corrected]))

    def _named(self) -> list[str]:
        """The words, with the names of what must be given before values that stand alone."""
        given = {_name(word) for word in self.words if "=" in word}
        needed = [name for name, value in self.settings.items() if value == "???"]
        if not needed and self.settings.get("ckpt", "") is None:  # it, or a method that needs no training
            needed = ["ckpt"]
        missing = [name for name in needed if name not in given]
        alone = [word for word in self.words if re.fullmatch(r"[^=:+~-][^=:]*", word)]
        if len(alone) != len(missing) or set(alone) & (self.settings.keys() | self.groups):
            return self.words
        names = dict(zip(alone, missing, strict=False))
        return [f"{names[word]}={word}" if word in names else word for word in self.words]

    def _compose(self, words: Sequence[str]) -> dict[str, Any] | None:
        path = [
            f"hydra.searchpath=['file://{folder.absolute()}']"
            for folder in self.folders[1:]
            if folder.is_dir()
        ]
        instance = GlobalHydra.instance()
        running, instance.hydra = instance.hydra, None  # of the program, if it is at work
        try:
            with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
                cfg = hydra.compose(self.program, [*words, *path])
            return cast(dict[str, Any], OmegaConf.to_container(cfg))
        except (HydraException, OmegaConfBaseException):
            return None
        finally:
            instance.hydra = running

    def _correct(self, word: str) -> str:
        word = self._correct_group(word)
        name, (sign, value) = _name(word), _parts(word)
        if name in self.groups or (value is None and sign != "~"):
            return word
        misnamed = name not in self.settings and _top(name) != "hydra"
        if misnamed and (not sign.startswith("+") or name in self.strangers()):
            name = self.nearest(name) or name
            if name in self.signs:
                return self._correct_group(f"{name}={value}")
            value = _DEVICES.get(str(value), value) if name in TWINS else value
        if value is None:
            return f"{sign}{name}"
        sign = "" if sign == "+" and name in self.settings else sign
        return f"{sign}{name}={self._value(name, value)}"

    def _correct_group(self, word: str) -> str:
        """A word that chooses a file of a group, with its sign and the nearest file; any other as it is."""
        (sign, value), name = _parts(word), _name(word)
        if name not in self.signs or value is None or sign == "~":
            return _bare(word)
        files = [self._file(name, each.strip()) for each in value.strip("[]'\"").split(",")]
        text = ",".join(files)
        return f"{self.signs[name]}{name}={f'[{text}]' if value.startswith('[') and len(files) > 1 else text}"

    def _file(self, group: str, value: str) -> str:
        stem = value.replace("\\", "/").rpartition("/")[2].removesuffix(".yaml")
        near = difflib.get_close_matches(stem, self.groups[group], n=1)
        return value if value in ("null", *self.groups[group]) else near[0] if near else value

    def _value(self, name: str, value: str) -> str:
        """As the setting takes it: a list in brackets, text with signs of Hydra's in quotes."""
        default, text = self.settings.get(name, ""), value.strip("'\"").lstrip("=")
        if isinstance(default, list) and (value[:1] in ("'", '"') or "," in value):
            return value if value.startswith("[") or "(" in value else f"[{text.strip('[]')}]"
        value = value.lstrip("=")
        path = default in (None, "???") or (isinstance(default, str) and "/" in value)
        reads = _reads(f"{name}={value}") and not (path and _is_sweep(f"{name}={value}"))
        return value if reads else _quoted(text)


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options of Hydra's with their values, and all other words."""
    known = get_args_parser()._option_string_actions
    options, rest, left = list[str](), list[str](), list(words)
    while left:
        word = left.pop(0)
        action = known.get(word.partition("=")[0]) if word.startswith("-") else None
        if action is None:
            rest.append(word)
        else:
            options += [word, *(left.pop(0) for _ in left[:1] if action.nargs != 0 and "=" not in word)]
    return options, rest


def check_options(words: Sequence[str]) -> None:
    """Raise a UserError for an option that there is not, or a folder of settings that is not there."""
    known = Known("", words)
    for word in known.words:
        if word.startswith("-"):
            raise UserError(f"{word} is no option: settings have no dashes; --help lists them")
    for folder in known.folders:
        if not folder.is_dir():
            raise UserError(f"--config-dir={folder}: no such folder")


def _join(words: Sequence[str]) -> list[str]:
    """Words that a blank has torn apart, whole again."""
    found: list[str] = []
    for word in words:
        last = found[-1] if found else ""
        torn = ("=" not in _bare(word) and re.search("^-|=", last)) or word.startswith("=")
        if last and torn and not word.startswith(("~", "-")):
            blank = " " if "=" in last and _parts(last)[1] and not word.startswith("=") else ""
            found[-1] = f"{last}{blank}{'' if '=' in last + word else '='}{word}"
        else:
            found.append(word)
    return found


def _bare(word: str) -> str:
    """Without dashes before it, and quotes or brackets around it."""
    if len(word) > 1 and word[0] + word[-1] in ("''", '""', "[]"):
        word = word[1:-1]
    name, equals, value = word.partition("=")
    return f"{name.lstrip('-').replace('-', '_')}{equals}{value}" if word.startswith("-") else word


def _name(word: str) -> str:
    return re.split(r"[=:]", _bare(word).lstrip("+~"), maxsplit=1)[0].strip()


def _top(name: str) -> str:
    return re.split(r"[./]", name, maxsplit=1)[0]


def _parts(word: str) -> tuple[str, str | None]:
    """The sign before the name, and the value if there is one."""
    sign, value = re.fullmatch(r"([+~]*)[^=:]*(?:[=:](.*))?", _bare(word), re.DOTALL).groups()  # type: ignore[union-attr]
    return sign, None if value is None else value.strip()


def _quoted(text: str) -> str:
    return str(QuotedString(text.strip("'\""), Quote.single).with_quotes())


def _reads(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def _is_sweep(word: str) -> bool:
    return _reads(word) and OverridesParser.create().parse_override(word).is_sweep_override()


def shell(word: str) -> str:
    """A word as a shell takes it; overrides have single quotes, so that double ones are read more easily."""
    plain = shlex.quote(word) == word or re.fullmatch(r"[\w.…=/+~,:@%-]+", word)
    return word if plain else shlex.quote(word) if re.search(r'["$`!\\]', word) else f'"{word}"'


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")  # as Hydra has it
    return parser


def overrides() -> list[str]:
    """The overrides of the command line, and as one of them a user's folder of settings, ``--config-dir``."""
    known = Known("", sys.argv[1:])
    found = [word for word in known.words if not word.startswith("-")]
    return found + [f"hydra.searchpath=['file://{folder.absolute()}']" for folder in known.folders[1:]]


def _leaves(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Every setting and every block of settings, by dotted name."""
    if not isinstance(config, dict):
        return []
    own = [(f"{prefix}{key}", value) for key, value in config.items()]
    return own + [leaf for key in config for leaf in _leaves(config[key], f"{prefix}{key}.")]
