"""Where a run goes on: the newest checkpoint of its folder that is whole and of the same run."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities import rank_zero_only, rank_zero_warn

from wsss_afa.callbacks.binding import DATA_KEY, SETTINGS_KEY, RunData, is_free
from wsss_afa.errors import UserError
from wsss_afa.files import check_stored
from wsss_afa.methods.base import RECIPE_KEY
from wsss_afa.methods.untrusted import UnreadableError, read_plain

_OWN = re.compile(r"(best|last|step_\d+)\.ckpt")
"""Names of the files that a run writes."""


class TornError(UnreadableError):
    """A file that was not written to its end, or altered since."""


def read_checked(path: Path) -> Mapping[str, Any]:
    """The content of a checkpoint, its tensors still on the disk, once every byte's checksum was right.

    Raises:
        TornError: a part of it is missing or altered.
        UnreadableError: it is no checkpoint of a training run.
        OSError: the disk does not give it now, which says nothing about the file.
        MemoryError: there is too little for it now.
    """
    try:
        check_stored(path)
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the reader of zip files raises nearly anything on altered bytes
        raise TornError(f"cannot be read: {(str(error) or repr(error)).splitlines()[0]}") from error
    if broken is not None:
        raise TornError(f"checksum of {broken} is wrong")
    content = read_plain(path, mmap=True)
    if not _of_training(content):
        raise UnreadableError("no checkpoint of a training run")
    return content


def _of_training(content: Mapping[str, Any]) -> bool:
    step, recipe = content.get("global_step"), content.get(RECIPE_KEY)
    whole = isinstance(step, int) and not isinstance(step, bool) and step >= 0
    kept = (content.get("loops"), recipe, content.get(SETTINGS_KEY, {}), content.get(DATA_KEY, {}))
    return whole and all(isinstance(each, Mapping) for each in kept)


def resume_point(
    resume: str | None, directory: Path, settings: dict[str, Any], data: RunData | None = None
) -> Path | None:
    """The checkpoint that a run starts from, announced in one line; None where it starts anew.

    UserError is raised where the file is missing or damaged, its classes are others, ``auto`` finds a run
    with other settings or data, or the directory holds checkpoints from beyond the starting point, which this
    run would mix with its own.

    Args:
        resume: ``auto`` for the newest intact checkpoint in the directory, a file, or None.
        directory: Where this run writes its checkpoints.
        settings: What the checkpoint's run must have shared, by dotted name.
        data: What this run trains on; None compares none.
    """
    found = _intact(directory)
    path: Path | None = None
    content: Mapping[str, Any] = {"global_step": -1}
    if resume == "auto" and found:
        path, content = found[-1]
    elif resume not in ("auto", None):
        path, content = Path(resume), _read_named(Path(resume))
    if later := [other for other, its in found if its["global_step"] > content["global_step"]]:
        what = f"{later[-1]} belongs to a run that went beyond resume={resume or 'null'}: resume=auto"
        raise UserError(f"{what} goes on with it; else give another hydra.run.dir, or move it away")
    if path is not None:
        _compare_settings(resume == "auto", path, content, settings)
        if data is not None:
            _compare_data(resume == "auto", path, content, data)
        rank_zero_only(print)(f"resuming  from step {content['global_step']}: {path}", flush=True)
    return path


def _intact(directory: Path) -> list[tuple[Path, Mapping[str, Any]]]:
    """Checkpoints of the directory by step; torn ones, and strange ones of our names, are put aside."""
    found = []
    for path in sorted(directory.glob("*.ckpt")):
        try:
            if path.is_file():
                found.append((path, read_checked(path)))
        except FileNotFoundError:
            continue  # the first process has put it aside
        except UnreadableError as error:
            if isinstance(error, TornError) or _OWN.fullmatch(path.name):
                rank_zero_warn(f"{path} is damaged and left out, renamed to *.damaged ({error})")
                rank_zero_only(path.replace)(f"{path}.damaged")
            else:
                rank_zero_warn(f"{path} is left out ({error})")
        except (OSError, MemoryError) as error:
            raise UserError(_not_now(path, error)) from error
    return sorted(found, key=lambda item: item[1]["global_step"])


def _not_now(path: Path, error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{path} cannot be read now ({reason}): the same command goes on with it once it can"


def _read_named(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"resume={path}: no such file; give auto, null or a .ckpt of a training run")
    try:
        return read_checked(path)
    except UnreadableError as error:
        raise UserError(f"resume={path}: {error}; resume=auto takes the newest intact one") from error
    except (OSError, MemoryError) as error:
        raise UserError(f"resume={_not_now(path, error)}") from error


def _compare_settings(
    auto: bool, path: Path, content: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    theirs = content.get(SETTINGS_KEY, settings)
    known = settings.keys() | theirs.keys() if DATA_KEY in content else theirs.keys()  # older ones have fewer
    names = [str(name) for name in sorted(known, key=str) if settings.get(name) != theirs.get(name)]
    names = [name for name in names if not is_free(name)]
    changed = [f"{name}={settings.get(name)} (was {theirs.get(name)})" for name in names]
    more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
    if changed:
        _refuse(auto, path, f"of a run with other settings: {', '.join(changed[:5])}{more}")


def _compare_data(auto: bool, path: Path, content: Mapping[str, Any], data: RunData) -> None:
    class_names = content[RECIPE_KEY].get("class_names")
    if class_names is not None and (other := data.other_classes([*class_names])):
        raise UserError(f"{path}: {other}; its outputs mean no others: give another hydra.run.dir")
    if changed := data.differences(content.get(DATA_KEY, {})):
        _refuse(auto, path, f"of a run with other data: {'; '.join(changed)}")


def _refuse(auto: bool, path: Path, message: str) -> None:
    if auto:
        remedy = f"give another hydra.run.dir, or resume={path} to go on all the same"
        raise UserError(f"{path} is {message}; {remedy}")
    rank_zero_warn(f"{path} is {message}; the resumed run is not the run that it was")
