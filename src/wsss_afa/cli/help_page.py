"""What ``--help`` prints: purpose and examples, groups and their files, every setting and what it means.

All of it is read from ``conf/``: the comment at the top of a file says what it is for, the comment behind a
setting explains it, and values are those that the words on the command line compose.
"""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
from omegaconf import OmegaConf

from wsss_afa.files import CONFIG_DIR

_COLUMN = 40  # where comments begin
_SETTING = re.compile(r"( *)(\w+):(?:\s|$)(?:[^#]*\S)?\s*(?:# (.*))?$")
_MORE = """\
GROUP=FILE chooses a file, +GROUP=FILE adds one, SETTING=VALUE sets a value; ??? must be given.
hydra.run.dir=DIR names the folder of a run. -m SETTING=A,B runs once for each value. --cfg job prints the
composed configuration, --hydra-help Hydra's own options. --help after other words shows what they compose."""


def help_page(config_name: str, overrides: Sequence[str]) -> str:
    """The page of the program of ``conf/{config_name}.yaml``, as the overrides compose it."""
    program = Path(CONFIG_DIR, f"{config_name}.yaml")
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        cfg = hydra.compose(config_name, list(overrides), return_hydra_config=True)
    config = cast(dict[str, Any], OmegaConf.to_container(cfg))
    runtime = config.pop("hydra")["runtime"]
    sources = runtime["config_sources"]  # the library's folder, and one of the user's
    folders = [Path(source["path"]) for source in sources if source["schema"] == "file"]
    choices = _choices(runtime["choices"], list(config))
    groups = _groups(program, folders, choices)
    lines = [*_header(program), "", *(["Groups and their files", *groups, ""] if groups else []), _MORE]
    settings = dict(_leaves(config))
    chosen = {group: name for group, name in choices.items() if name is not None}
    prefixes = ["", *(f"{group.replace('/', '.')}." for group in chosen)]
    general = _comments([program], "")
    for prefix, (group, name) in zip(prefixes, [("", config_name), *chosen.items()], strict=True):
        files = sorted(_files(folders, group), key=lambda file: file.stem == name)  # the chosen one last
        comments = _comments(files, prefix) | general if group else general
        own = [n for n in settings if max(filter(n.startswith, prefixes), key=len) == prefix]
        rows = [_row(setting, settings[setting], comments) for setting in own]
        title = f"{group}={name}: {_header(files[-1])[0]}".rstrip(": ") if group else "Settings"
        lines += ["", title, *rows] if rows else []
    return "\n".join(lines)


def _choices(choices: Mapping[str, str | None], order: Sequence[str]) -> dict[str, str | None]:
    """The file of each group, if any, in the order of the configuration."""
    tops = {group: group.partition("/")[0] for group in choices}
    placed = sorted((order.index(top), group) for group, top in tops.items() if top in order)
    return {group: choices[group] for _, group in placed}


def _files(folders: Sequence[Path], group: str) -> list[Path]:
    files = [file for folder in folders for file in (folder / group).glob("*.yaml")]
    return sorted(files, key=lambda file: file.stem)


def _header(path: Path) -> list[str]:
    """The comment at the top of a file, without its marks."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "@package" not in line]
    end = next(i for i, line in enumerate([*lines, ""]) if not line.startswith("#"))
    return [line[1:].removeprefix(" ") for line in lines[:end]] or [""]


def _groups(program: Path, folders: Sequence[Path], choices: Mapping[str, str | None]) -> list[str]:
    """The groups that are composed, and those that the program's examples add as ``+GROUP``."""
    examples = [line for line in _header(program) if re.search(rf"wsss[-_]afa[. ]{program.stem} ", line)]
    offered = re.findall(r"\+(\w+)=", "\n".join(examples))
    rows = []
    for group in sorted({*choices, *offered}):
        files = [path.stem for path in _files(folders, group)]
        if len(files) > 1:
            mark = "" if group in choices else "+"
            names = " ".join(f"[{name}]" if name == choices.get(group) else name for name in files)
            rows.append(_wrap(f"  {mark}{group}", names))
    return rows


def _comments(files: Sequence[Path], prefix: str) -> dict[str, str]:
    """What is said behind each setting, by dotted name; the last file that says something counts."""
    found: dict[str, str] = {}
    for file in files:
        parents = [(-1, prefix)]
        for line in file.read_text(encoding="utf-8").splitlines():
            if match := _SETTING.match(line):
                depth = len(match[1])
                parents = [parent for parent in parents if parent[0] < depth]
                setting = parents[-1][1] + match[2]
                parents.append((depth, f"{setting}."))
                found |= {setting: match[3]} if match[3] else {}
    return found


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name; classes, and what only Hydra knows, are none."""
    for key, value in config.items():
        hidden = key in ("_target_", "task") or value == {} or (prefix and str(value).startswith("${hydra:"))
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif not hidden:
            yield f"{prefix}{key}", value


def _row(name: str, value: Any, comments: Mapping[str, str]) -> str:
    """A setting, and what is said of it or of all below its parent."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    setting = textwrap.fill(f"  {name}={text}", _width(), subsequent_indent=" " * 6, break_on_hyphens=False)
    return _wrap(setting, comments.get(name) or comments.get(name.rpartition(".")[0], ""))


def _width() -> int:
    return max(shutil.get_terminal_size((110, 24)).columns, 70)


def _wrap(word: str, text: str) -> str:
    """A word, and behind it a text that keeps to its column."""
    lines = textwrap.wrap(text, _width() - _COLUMN, break_long_words=False, break_on_hyphens=False)
    first = f"{word:<{_COLUMN}}{lines.pop(0)}" if lines and len(word) < _COLUMN else word
    return "\n".join([first, *(" " * _COLUMN + line for line in lines)])
