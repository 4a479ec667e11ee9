"""What a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """What the user can mend: got, needed, what to do. Entry points print the message alone."""
