"""Write the labels of a whole split, one image after the other, over any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.label_folder import LabelFolder
from wsss_afa.data.sampler import Augmented, DrawLoader, SampleSet, own_share
from wsss_afa.data.transforms import EvalTransform
from wsss_afa.errors import UserError, say
from wsss_afa.inference.formats.labelled import from_names
from wsss_afa.inference.formats.writers import write_formats
from wsss_afa.inference.label_source import LabelSource, merge_labels
from wsss_afa.reports.visualize import save_label
from wsss_afa.types import Batch


def choose_images(data: TaggedDataModule, split: str, sweep: bool) -> SampleSet:
    """The images to label; those of ``val`` have masks, if there are any."""
    if split not in ("train", "val"):
        raise UserError(f"split={split} is not known; need train or val")
    if sweep and (split == "train" or not data.has_masks):
        raise UserError(
            "sweep_thresholds=true compares with masks, which training sets never have: set split=val, on "
            "data that has masks (VOC's training images: split=val data.val_split=train)"
        )
    return data.make_set(split)


class WholeImages(L.LightningDataModule):
    """Images of native size, one by one: every ``world_size``-th for each process, so that none comes twice.

    The transform normalises them. ``num_workers`` are the loader processes of each process; ``skip_broken``
    leaves out images that cannot be read. ``files`` are those of images that are files, by name.
    """

    def __init__(self, images: SampleSet, transform: EvalTransform, num_workers: int, skip_broken: bool):
        super().__init__()
        self.broken: set[str] = set()
        paths = getattr(images, "paths", ())
        self.files: dict[str, Path] = dict(zip(getattr(images, "names", ()), paths, strict=False))
        self._images = Augmented(images, transform, skip_broken)
        self._num_workers = num_workers

    def predict_dataloader(self) -> Share:
        """This process's share."""
        assert self.trainer is not None
        share = own_share(len(self._images), self.trainer, "images")
        return Share(DrawLoader(self._images, [[i] for i in share], self._num_workers, self.broken))


class Share:
    """A loader that Lightning takes as it is: for predictions it would rebuild a DataLoader."""

    def __init__(self, loader: DrawLoader):
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._loader)


class LabelWriter(L.LightningModule):
    """Write the label of every image that has none yet, for ``Trainer.predict``.

    There is one background score, or low and high. At the end all labels are written in the other
    ``formats``, too, with the names of the C foreground classes; ``images`` are the files of those that are
    files, by name.
    """

    def __init__(
        self, source: LabelSource, backgrounds: Sequence[float], folder: LabelFolder, formats: Sequence[str],
        class_names: Sequence[str], images: Mapping[str, Path],
    ):  # fmt: skip
        super().__init__()
        self.source, self.backgrounds, self.folder = source, backgrounds, folder
        self.formats, self.class_names, self.images = formats, class_names, images

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """Write one image's label, or keep the one that is there; return its name."""
        path = self.folder.path(batch["name"][0])
        if not path.exists():
            label = merge_labels(self.source(batch, self.backgrounds))
            save_label(label[0].cpu().numpy().astype(np.uint8), path)
        return batch["name"]

    def on_predict_end(self) -> None:
        """Once all processes are done, collect the labels."""
        self.trainer.strategy.barrier()
        if self.trainer.is_global_zero:
            names = self.folder.names()
            labelled = from_names(names, list(map(self.folder.path, names)), self.images)
            for path in write_formats(self.formats, self.folder.root, labelled, self.class_names):
                say("labels", path)
