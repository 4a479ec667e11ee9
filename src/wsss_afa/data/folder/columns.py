"""Under which names people keep files, tags and splits in a table."""

from __future__ import annotations

import re
from collections.abc import Iterable

from wsss_afa.data.names import tidy

FILE = (
    "file", "filename", "image", "imagename", "imageid", "img", "path", "filepath", "imagepath", "name", "id",
)  # fmt: skip
TAGS = ("tags", "labels", "classes", "categories", "choices", "keywords")
TAG = (
    "tagname", "labelname", "classname", "categoryname", "tag", "label", "class", "category", "choice",
    "keyword", "tagid", "labelid", "classid", "categoryid",
)  # fmt: skip
CONFIDENCE = ("confidence", "conf", "score", "probability", "prob")
SPLIT = ("split", "subset", "set", "partition")


def find_column(columns: Iterable[str], names: tuple[str, ...]) -> str | None:
    """The column that has one of these names, as `plain` has them; the earlier name comes first."""
    spelt = {plain(column): column for column in reversed(list(columns))}
    return next((spelt[name] for name in names if name in spelt), None)


def plain(column: str) -> str:
    """A column's name in small letters, without what stands between its words."""
    return re.sub(r"[\W_]", "", tidy(column).casefold())
