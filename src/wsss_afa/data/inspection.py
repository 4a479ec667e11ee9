"""What is in a data set and what is wrong with it: every image is opened once, as training would open it.

Images are the same if their files have equal bytes; of sets without files, if they have equal pixels.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from wsss_afa.data.images import read_kind
from wsss_afa.data.sampler import SampleSet
from wsss_afa.errors import UserError
from wsss_afa.types import IGNORE_INDEX

CHUNK = 16  # images that a process opens before it reports
FEW = 10  # images below which it may be chance that a class always comes with another
FLAT = 16  # levels of 256 below which an image shows next to nothing
IMBALANCE = 10  # ratio of the most frequent class to the rarest from which balancing is worth trying


class Look(NamedTuple):
    """What opening one image told."""

    place: str  # its file, or its name where it has none; empty if neither is known
    problem: str  # why it cannot be used, in one line with the remedy; empty if it can
    size: tuple[int, int]  # (H, W) in pixels; zeros if it cannot be used
    kind: str  # format and colours of its file, such as "JPEG RGB"; empty if unknown
    digest: str  # equal for equal content; empty if it cannot be read
    labels: tuple[int, ...]  # values in its mask; empty without one
    contrast: int = 255  # largest difference between two pixels of a channel, in [0, 255]


class Split(NamedTuple):
    """One split after every image was opened."""

    name: str  # train or val
    class_names: tuple[str, ...]  # C foreground classes
    tags: NDArray[np.bool_]  # (n, C)
    looks: list[Look]  # of its n images, in order


class Finding(NamedTuple):
    """Something that the user may want to mend."""

    level: str  # "error" if a run would stop or its score would be wrong, else "warning"
    kind: str  # unreadable, leak, duplicate, mask, flat, tags or reading; layout if a split cannot be read
    message: str  # file, problem and remedy in one line


def look_at_all(images: SampleSet, workers: int) -> Iterator[Look]:
    """Open all images of a split, in order, each with its mask, if it has one; 0 workers are this process."""
    numbered = list(enumerate(getattr(images, "paths", [None] * len(images))))
    look, workers = partial(_look, images), min(workers, len(images) // CHUNK)
    for looks in DataLoader(cast(Any, numbered), CHUNK, num_workers=workers, collate_fn=look):
        yield from looks


def _look(images: SampleSet, files: list[tuple[int, Path | None]]) -> list[Look]:
    return [_open(images, index, path) for index, path in files]


def _open(images: SampleSet, index: int, path: Path | None) -> Look:
    place, content = str(path or ""), b""
    with suppress(OSError):  # opening the image says so
        content = path.read_bytes() if path else b""
    kind = read_kind(io.BytesIO(content)) if content else ""
    try:
        sample = images[index]
    except UserError as error:
        return Look(place, str(error), (0, 0), kind, _digest(content) if content else "", ())
    height, width = sample["image"].shape[:2]
    labels = tuple(np.unique(sample["mask"]).tolist()) if "mask" in sample else ()
    digest = _digest(content or np.ascontiguousarray(sample["image"]).tobytes())
    contrast = int(np.ptp(sample["image"], axis=(0, 1)).max())
    return Look(place or sample["name"], "", (height, width), kind, digest, labels, contrast)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def find_problems(splits: Sequence[Split]) -> list[Finding]:
    """All findings in opened splits, errors first."""
    problems = [each.problem for split in splits for each in split.looks if each.problem]
    findings = [Finding("error", "unreadable", problem) for problem in problems] + _repeated(splits)
    for split in splits:
        findings += [*_flat_images(split), *_strange_masks(split)]
        findings += _poor_tags(split) if split.name == "train" else ()
    return sorted(findings, key=lambda finding: finding.level)


def co_occurrence(split: Split, top: int) -> list[tuple[str, str, int, float]]:
    """The pairs of classes that images show together most often.

    Each is both names, the number of images with both, and its share of the images of the rarer class.
    """
    together, names = _together(split.tags), split.class_names
    totals, pairs = together.diagonal(), np.argwhere(np.triu(together, 1)).tolist()
    pairs = sorted(pairs, key=lambda pair: -together[*pair])[:top]
    return [
        (names[i], names[j], int(together[i, j]), float(together[i, j] / min(totals[i], totals[j])))
        for i, j in pairs
    ]


def describe(split: Split, top: int = 20) -> dict[str, Any]:
    """Counts of one split, as plain data for JSON, with the ``top`` pairs of classes."""
    sizes = np.array([each.size for each in split.looks if any(each.size)]).reshape(-1, 2)
    counts = zip(split.class_names, split.tags.sum(0).tolist(), strict=True)
    common = Counter(f"{width} × {height}" for height, width in sizes.tolist())
    return {
        "images": len(split.looks),
        "usable": len(sizes),
        "classes": dict(counts),
        "without_tags": int((~split.tags.any(1)).sum()),
        "tags_per_image": round(float(split.tags.sum(1).mean()), 2) if len(split.tags) else 0.0,
        "together": [
            {"classes": [one, other], "images": images, "share_of_rarer": round(share, 3)}
            for one, other, images, share in co_occurrence(split, top)
        ],
        "height": _spread(sizes[:, 0]),
        "width": _spread(sizes[:, 1]),
        "common_sizes": dict(common.most_common(3)),
        "kinds": dict(Counter(each.kind for each in split.looks if each.kind).most_common()),
        "masks": sum(bool(each.labels) for each in split.looks),
    }


def choose(tags: NDArray[np.bool_], count: int) -> list[int]:
    """Images to look at: one of each class while there is room, rare classes first, then evenly spaced ones.

    Of the n images with tags (n, C), ``count`` are chosen or all.
    """
    groups = np.column_stack([tags, ~tags.any(1)])
    chosen: dict[int, None] = {}
    for group in np.argsort(groups.sum(0), kind="stable"):
        free = (index for index in np.flatnonzero(groups[:, group]).tolist() if index not in chosen)
        chosen.update(dict.fromkeys(islice(free, 1)))
    spaced = np.linspace(0, len(tags) - 1, min(count, len(tags))).round().astype(int).tolist()
    return sorted(list(dict.fromkeys([*chosen, *spaced, *range(len(tags))]))[:count])


def _repeated(splits: Sequence[Split]) -> list[Finding]:
    groups = defaultdict[str, list[tuple[Split, int]]](list)
    for split in splits:
        for index, each in enumerate(split.looks):
            groups[each.digest].append((split, index))
    return [_repetition(group) for digest, group in groups.items() if digest and len(group) > 1]


def _repetition(group: list[tuple[Split, int]]) -> Finding:
    first = group[0]
    across = [each for each in group if each[0] is not first[0]]
    contrary = [each for each in group if name_tags(*each) != name_tags(*first)]
    other = (across or contrary or group[1:])[0]
    (here, mine, one), (there, yours, two) = (
        (split.looks[index].place, name_tags(split, index) or "no tag", split.name)
        for split, index in (first, other)
    )
    same = "are the same image" + (f" ({len(group)} copies)" if len(group) > 2 else "")
    if across:
        problem = f"{here} in {one} and {there} in {two} {same}, so that the score does not count"
        return Finding("error", "leak", f"{problem}: take it out of one of them")
    if contrary:
        problem = f"{here} ({mine}) and {there} ({yours}) {same} with different tags: delete the wrong one"
        return Finding("warning", "duplicate", problem)
    return Finding("warning", "duplicate", f"{here} and {there} {same}: delete all but one")


def name_tags(split: Split, index: int) -> str:
    """The tags of an image in words; empty if it has none."""
    return ", ".join(split.class_names[tag] for tag in np.flatnonzero(split.tags[index]))


def _flat_images(split: Split) -> Iterator[Finding]:
    for each in split.looks:
        if not each.problem and each.contrast < FLAT:
            problem = f"{each.place} is read as one colour, or nearly so"
            yield Finding("warning", "flat", f"{problem}: leave it out, or save it anew with 8 bits")


def _strange_masks(split: Split) -> Iterator[Finding]:
    for each, tags in zip(split.looks, split.tags, strict=True):
        shown = {label - 1 for label in each.labels} - {-1, IGNORE_INDEX - 1}
        untagged = [split.class_names[label] for label in sorted(shown) if not tags[label]]
        if untagged:
            problem = f"{each.place} has {', '.join(untagged)} in its mask and not in its tags"
            yield Finding("warning", "mask", f"{problem}: add the tag or mend the mask")
        elif each.labels == (0,) and tags.any():
            problem = f"{each.place} has tags and a mask of background alone"
            yield Finding("warning", "mask", f"{problem}: draw the mask or remove the tags")


def _poor_tags(split: Split) -> Iterator[Finding]:
    together, names = _together(split.tags), split.class_names
    totals = together.diagonal()
    empty = [name for name, total in zip(names, totals, strict=True) if not total]
    if empty:
        problem = f"{split.name} has no image of {_shorten(empty)}"
        yield Finding("warning", "tags", f"{problem}: add some, or expect nothing of these classes")
    for i in np.flatnonzero(totals >= FEW).tolist():
        always = [names[j] for j in np.flatnonzero(together[i] == totals[i]).tolist() if j != i]
        if always:
            problem = f"{names[i]} never comes without {_shorten(always)} in {totals[i]} images"
            yield Finding("warning", "tags", f"{problem}, and tags cannot tell them apart: add some without")
    common, rare = totals.argmax(), np.where(totals > 0, totals, totals.max()).argmin()
    if totals[common] and totals[common] >= IMBALANCE * totals[rare]:
        problem = f"{split.name} has {totals[common]} images of {names[common]} and {totals[rare]} of"
        remedy = "try data.balanced=true or method.classification.positive_weight=balanced"
        yield Finding("warning", "tags", f"{problem} {names[rare]}: {remedy}")


def _shorten(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _together(tags: NDArray[np.bool_]) -> NDArray[np.int64]:
    counts = tags.astype(np.float32)  # for BLAS; the diagonal counts each class
    return np.asarray((counts.T @ counts).round().astype(np.int64))


def _spread(values: NDArray[Any]) -> dict[str, int]:
    if not len(values):
        return {}
    return {"min": int(values.min()), "median": int(np.median(values)), "max": int(values.max())}
