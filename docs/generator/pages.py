"""Pages that are written from the sources: settings, programs, experiments, the interface in Python."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

import settings
from settings import CONF, ROOT, ConfigFile

PACKAGE = ROOT / "src" / "wsss_afa"
FOLDERS = {
    "": "Commands, and what all parts share",
    "programs": "What the commands do",
    "methods": "Methods",
    "losses": "Losses",
    "ops": "Mathematics without parameters",
    "models": "Backbones, decoders and their weights",
    "data": "Data sets, samplers and loaders",
    "inference": "Using a trained method",
    "callbacks": "What happens beside the training steps",
    "loggers": "Dashboards",
    "reports": "Reports of evaluations and sweeps",
    "web": "The pages of the app",
    "cli": "The command line",
}
"""Folders of the package, in the order of the table of modules, and what they hold."""


def programs() -> str:
    """Every entry point and its own settings."""
    parts = [
        "# Programs",
        "A program is run as `wsss-afa NAME`, or as `python -m wsss_afa.NAME`. `group=file` chooses the "
        "file of a group, and `name=value` changes a setting. A setting of `???` must be given. "
        "`--help` lists groups and settings, and `--cfg job` prints the composed configuration. "
        "`--config-dir DIR` adds [a folder of your own settings](adding_a_method.md#the-commands).",
    ]
    for file in settings.programs():
        name = file.path.stem
        parts += [
            f"## {name}",
            f"`wsss-afa {name}` · [`wsss_afa.programs.{name}`](api/wsss_afa.programs.{name}.md)",
        ]
        parts += [_header(file), _groups(file), _table(file)]
    return _join(parts)


def groups() -> str:
    """Every file of a group and its settings."""
    parts = [
        "# Settings",
        "There is a table for each file below `conf/`. `group=file` chooses a file, and "
        "`group.setting=value` changes a setting. The names are the arguments of what the file builds. An "
        "[experiment](experiments.md) may have other defaults than these files.",
    ]
    for name, files in settings.groups().items():
        parts += [f"## {name}"]
        for file in files:
            parts += [f"### {name}={file.path.stem}", _header(file), _built(file), _table(file)]
    return _join(parts)


def experiments() -> str:
    """Experiments and sweeps as they are written."""
    parts = [
        "# Experiments and sweeps",
        "An experiment, `+experiment=NAME`, is a list of settings that differ from the defaults. A sweep, "
        "`+sweep=NAME` with `-m`, is a list of values that are trained one after the other. It stands behind "
        "the experiment.",
    ]
    for group, title in (("experiment", "Experiments"), ("sweep", "Sweeps")):
        parts.append(f"## {title}")
        for path in sorted((CONF / group).rglob("*.yaml")):
            name = path.relative_to(CONF / group).with_suffix("").as_posix()
            text = path.read_text(encoding="utf-8").removeprefix("# @package _global_\n")
            parts += [f"### {group}={name}", f"```yaml\n{text}```"]
    return _join(parts)


def _header(file: ConfigFile) -> str:
    """The comment on top: text, and commands, which are indented there."""
    parts = []
    for indented, lines in groupby(file.header, lambda line: line.startswith("  ")):
        text = list(lines)
        code = "\n".join(line.strip() for line in text)
        parts.append(f"```bash\n{code}\n```" if indented else _plain(" ".join(text).strip()))
    return _join(parts).strip()


def _groups(file: ConfigFile) -> str:
    """Which groups a program has, with the default and the other choices."""
    chosen = {group: name for group, name in file.chosen.items() if (CONF / group).is_dir()}
    if not chosen:
        return ""
    rows = []
    for group, choice in chosen.items():
        names = ", ".join(
            f"[`{name}`](settings.md#{_anchor(group, name)})" for name in settings.choices(group)
        )
        rows.append(f"| `{group}` | `{choice}` | {names} |")
    return "\n".join(["| group | default | files |", "|---|---|---|", *rows])


def _anchor(group: str, name: str) -> str:
    """Of the heading `group=name`."""
    return re.sub(r"[^\w-]", "", f"{group}{name}").lower()


def _built(file: ConfigFile) -> str:
    """What a file builds, and what it starts from."""
    parts = []
    if file.target:
        own = file.target.startswith("wsss_afa.")
        parts.append(f"Builds [`{file.target}`][{file.target}]." if own else f"Builds `{file.target}`.")
    bases = [f"[`{name}`](#{_anchor(file.group, name)})" for name in file.bases]
    return " ".join([*parts, f"Starts from {', '.join(bases)}." if bases else ""])


def _table(file: ConfigFile) -> str:
    rows = [
        f"| `{file.package}{row.name}` | {_code(row.default)} | {_plain(row.meaning)} |"
        for row in file.settings
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows]) if rows else ""


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def _plain(text: str) -> str:
    """Text of a comment: nothing in it is markup but backticks."""
    parts = text.replace("``", "`").split("`")
    parts[::2] = [re.sub(r"([*_<|\[\]])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def _join(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def modules() -> dict[str, Path]:
    """Dotted name and file of every module with contents."""
    files = sorted(path for path in PACKAGE.rglob("*.py") if not path.name.startswith("_"))
    return {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in files}


def module_index() -> str:
    """All modules and the first line of each."""
    parts = [
        "# In Python",
        "The tables list every module. Shapes are named as in [`wsss_afa.types`](wsss_afa.types.md).",
    ]
    for folder, title in FOLDERS.items():
        rows = [
            f"| [`{name}`]({name}.md) | {_plain(settings.describe_module(name))} |"
            for name, path in modules().items()
            if path.relative_to(PACKAGE).parts[:-1][:1] == ((folder,) if folder else ())
        ]
        parts += [f"## {title}", "\n".join(["| module | |", "|---|---|", *rows])]
    return _join(parts)
