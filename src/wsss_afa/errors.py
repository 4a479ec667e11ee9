"""What a user can mend."""

from __future__ import annotations

from wsss_afa.text import printable


class UserError(ValueError):
    """What the user can mend: got, needed, what to do, in one printable line. Entry points print it alone."""

    def __init__(self, message: str) -> None:
        own = message.rpartition("wsss_afa.errors.UserError: ")[2]  # of a loader process's traceback
        super().__init__(printable(own.strip()))
