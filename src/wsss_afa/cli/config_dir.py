"""Where the configuration lives, for the programs."""

from __future__ import annotations

from wsss_afa.files import CONFIG_DIR as CONFIG_DIR
