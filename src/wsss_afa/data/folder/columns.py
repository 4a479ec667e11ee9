"""Under which names people keep files, tags and splits in a table."""

from __future__ import annotations

from collections.abc import Iterable

from wsss_afa.data.names import tidy

FILE = (
    "file", "filename", "file_name", "image", "image_name", "image_id", "img", "path", "filepath",
    "file_path", "image_path", "name", "id",
)  # fmt: skip
TAGS = ("tags", "labels", "classes", "categories", "choices", "keywords")
TAG = ("tag", "label", "class", "category", "choice", "keyword")
SPLIT = ("split", "subset", "set", "partition")


def find_column(columns: Iterable[str], names: tuple[str, ...]) -> str | None:
    """The column that has one of these names, in whatever case; the earlier name comes first."""
    spelt = {tidy(column).casefold(): column for column in reversed(list(columns))}
    return next((spelt[name] for name in names if name in spelt), None)
