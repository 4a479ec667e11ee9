"""The settings of `conf/`: names, defaults and meanings, read from the files that Hydra composes.

What a setting means is the comment beside it; where there is none, that of the file it starts from, or what
the docstring says of the argument of what is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import griffe
import yaml

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"


class Setting(NamedTuple):
    """One line of a table."""

    name: str
    """Dotted, within its file."""
    default: str
    """As the file has it; empty for a block of settings."""
    meaning: str
    """Empty if nothing says it."""


class ConfigFile(NamedTuple):
    """One file of `conf/`."""

    path: Path
    header: list[str]
    """Lines of the comment on top, without the one that Hydra reads."""
    bases: list[str]
    """Files of its group that it starts from."""
    chosen: dict[str, str]
    """Files of other groups, by group."""
    target: str | None
    """What it builds."""
    settings: list[Setting]

    @property
    def group(self) -> str:
        """Folder below `conf/`, empty for a program's own file."""
        return self.path.parent.relative_to(CONF).as_posix().replace(".", "")

    @property
    def package(self) -> str:
        """What its settings' names begin with on the command line."""
        whole = self.path.read_text(encoding="utf-8").startswith("# @package _global_\n")
        return self.group.replace("/", ".") + "." if self.group and not whole else ""


@cache
def read(path: Path) -> ConfigFile:
    """Read one file."""
    text = path.read_text(encoding="utf-8")
    node = yaml.compose(text)
    header = [line[2:] for line in re.match(r"(#.*\n)*", text)[0].splitlines() if "@package" not in line]
    values = yaml.safe_load(text) or {}
    entries = [entry for entry in values.get("defaults", []) if entry != "_self_"]
    bases = [entry for entry in entries if isinstance(entry, str)]
    chosen = {
        group: str(name) for entry in entries if isinstance(entry, dict) for group, name in entry.items()
    }
    target = values.get("_target_")
    inherited = [read(path.with_name(f"{name}.yaml")) for name in bases]
    target = target or next((base.target for base in inherited), None)
    known = {row.name: row.meaning for base in inherited for row in base.settings}
    settings = [] if node is None else list(_walk(node, text, target, known))  # a file may be empty
    return ConfigFile(path, header, bases, chosen, target, settings)


def _walk(
    node: yaml.Node, text: str, target: str | None, known: dict[str, str], prefix: str = ""
) -> Iterator[Setting]:
    """Settings of a block, those of its blocks after each."""
    arguments = describe(target)[1] if target else {}
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if key.value == "_target_" or name == "defaults":
            continue
        block = isinstance(value, yaml.MappingNode) and not value.flow_style
        beside = value if isinstance(value, yaml.ScalarNode) or value.flow_style else key
        comment = _comment(text, beside.end_mark.index) or known.get(name, "")
        if not block:
            yield Setting(name, _as_written(value, text), comment or arguments.get(key.value, ""))
            continue
        inner = next((v.value for k, v in value.value if k.value == "_target_"), None)
        meaning = comment or (describe(inner)[0] if inner else "")
        if meaning:
            yield Setting(name, "", meaning)
        yield from _walk(value, text, inner, known, f"{name}.")


def _comment(text: str, end: int) -> str:
    """What stands behind a value on its line."""
    match = re.match(r":?[ ]*#[ ]?(.*)", text[end:])
    return match[1].strip() if match else ""


def _as_written(value: yaml.Node, text: str) -> str:
    if isinstance(value, yaml.SequenceNode) and not value.flow_style:
        return f"[{', '.join(_as_written(item, text) for item in value.value)}]"
    return text[value.start_mark.index : value.end_mark.index]


@cache
def describe(target: str) -> tuple[str, dict[str, str]]:
    """First line and arguments of the docstring of something of this package's; of others, nothing."""
    if not target.startswith("wsss_afa."):
        return "", {}
    docstring = package()[target.removeprefix("wsss_afa.")].docstring
    sections = docstring.parse("google", warnings=False)
    arguments = {
        each.name: " ".join(each.description.split())
        for section in sections
        if section.kind is griffe.DocstringSectionKind.parameters
        for each in section.value
    }
    return docstring.value.partition("\n")[0], arguments


@cache
def package() -> griffe.Module:
    """The package, read and not imported."""
    return griffe.load("wsss_afa", search_paths=[ROOT / "src"])


def programs() -> list[ConfigFile]:
    """The files of programs, training first."""
    return [read(path) for path in sorted(CONF.glob("*.yaml"), key=lambda path: (path.stem != "train", path))]


def groups() -> dict[str, list[ConfigFile]]:
    """The files of groups that have settings of their own, by group, those of training first."""
    folders = sorted({path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*/*.yaml")})
    training = read(CONF / "train.yaml").chosen
    own = [name for name in folders if name.split("/")[0] not in ("experiment", "sweep")]
    ordered = [name for name in training if name in own] + [name for name in own if name not in training]
    return {name: [read(CONF / name / f"{file}.yaml") for file in choices(name)] for name in ordered}


def choices(group: str) -> list[str]:
    """The files that a group has."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def describe_module(name: str) -> str:
    """First line of a module's docstring."""
    return package()[name.removeprefix("wsss_afa.")].docstring.value.partition("\n")[0]
