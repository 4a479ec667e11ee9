"""What a run and its continuation must share: settings, classes, photos and tags, and what validates.

Every setting binds but those that are listed as free, so that a new one, or one that a user adds, does too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.label_folder import LabelledImages, find_labels
from wsss_afa.data.sampler import SampleSet

SETTINGS_KEY, DATA_KEY = "wsss_afa_settings", "wsss_afa_data"
"""Where in a checkpoint the settings lie that a continuation must share, and what its data was."""

FREE = (
    # where files lie and how fast they are read; what is read is compared itself
    "data.root", "data.cache_dir", "data.num_workers", "data.skip_broken", "backbone.pretrained",
    "method.texts.pretrained", "method.texts.cache_dir",
    # how long the run is, how fast, and on what
    "optim.max_steps", "trainer.max_steps", "trainer.max_time", "trainer.accelerator", "trainer.devices",
    "trainer.num_nodes", "trainer.strategy", "trainer.precision", "trainer.deterministic", "deterministic",
    "trainer.benchmark", "backbone.activation_checkpointing", "compile", "patience",
    # what is watched, said and saved
    "task", "resume", "logger", "trainer.default_root_dir", "trainer.val_check_interval",
    "trainer.num_sanity_val_steps", "trainer.log_every_n_steps", "trainer.enable_model_summary",
    "trainer.enable_progress_bar", "trainer.profiler", "callbacks.progress", "callbacks.metrics",
    "callbacks.finite", "callbacks.steps", "callbacks.stop", "callbacks.best", "callbacks.validate_at_end",
    "callbacks.results", "callbacks.pictures", "callbacks.monitor",
)  # fmt: skip
"""Settings, and groups of them, that a continuation may change."""
_SHOWN = 3  # names in a message


def binding_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the whole resolved configuration that bind, by dotted name."""
    return {name: value for name, value in flatten(config).items() if not is_free(name)}


def is_free(name: str) -> bool:
    """Whether a continuation may change the setting of a dotted name."""
    return any(name == free or name.startswith(f"{free}.") for free in FREE)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name, without those that are empty groups."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


class Images(NamedTuple):
    """What is compared of the images of a split, or of a folder of labels."""

    names: Sequence[str]
    """In the order in which training numbers them."""
    marks: Tensor
    """(n,) int64: of each the hash of its name and its tags, or of its size where it is a label."""


class RunData:
    """The data of a run, as far as a continuation must share it.

    Args:
        data: with its sets set up; a validation set that is not there is not compared.
    """

    def __init__(self, data: TaggedDataModule):
        self.class_names = list(data.class_names)
        train = data.train_set
        self.sets = {"training": _images(train)}
        if data.val_set is not None:
            self.sets["validation"] = _images(data.val_set)
        if isinstance(train, LabelledImages):
            self.sets["label"] = _labels(train.folder)

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"class_names": self.class_names} | {name: images.marks for name, images in self.sets.items()}

    def other_classes(self, class_names: Sequence[str]) -> str | None:
        """What to say of a run of other classes, or of another order; None if they are the same."""
        if self.class_names == list(class_names):
            return None
        theirs, ours = (", ".join(names) for names in (class_names, self.class_names))
        return f"the run's classes are {theirs}, the data's are {ours}"

    def differences(self, record: Mapping[str, Any]) -> list[str]:
        """In what the photos differ from those of a record, in words; nothing if they are the same."""
        pairs = [(name, images, record.get(name)) for name, images in self.sets.items()]
        lines = [_difference(name, images, was) for name, images, was in pairs if isinstance(was, Tensor)]
        return [line for line in lines if line]


def _images(images: SampleSet) -> Images:
    names = getattr(images, "names", None) or [str(index) for index in range(len(images))]
    tags = [row.tobytes() for row in images.labels]
    return Images(
        names,
        _marks(
            f"{name}\0".encode(errors="surrogatepass") + row for name, row in zip(names, tags, strict=True)
        ),
    )


def _labels(folder: Path) -> Images:
    files = find_labels(folder)
    names = [path.relative_to(folder).as_posix() for path in files]
    sizes = (f"{name}\0{path.stat().st_size}" for name, path in zip(names, files, strict=True))
    return Images(names, _marks(each.encode(errors="surrogatepass") for each in sizes))


def _marks(contents: Any) -> Tensor:
    digests = (blake2b(content, digest_size=7).digest() for content in contents)
    return torch.tensor([int.from_bytes(digest) for digest in digests], dtype=torch.int64)


def _difference(kind: str, images: Images, was: Tensor) -> str | None:
    """What has changed in one set, or None."""
    if images.marks.shape == was.shape and torch.equal(images.marks, was):
        return None
    before = set(was.tolist())
    new = [name for name, mark in zip(images.names, images.marks.tolist(), strict=True) if mark not in before]
    gone = len(before - set(images.marks.tolist()))
    what = "labels" if kind == "label" else f"{kind} photos"
    if not new and not gone:
        return f"the same {what} in another order"
    more = f" and {len(new) - _SHOWN} more" if len(new) > _SHOWN else ""
    named = f" new or changed: {', '.join(new[:_SHOWN])}{more};" if new else ""
    return f"{len(images.names)} {what}, the run's {len(was)}:{named} {gone} of the run's are gone or changed"
