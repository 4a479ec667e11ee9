"""Where the configuration lives: inside the wheel, or beside ``src`` in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGED = Path(__file__).parent / "conf"

CONFIG_DIR = str(_PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "conf")
"""Absolute path of the ``conf/`` folder, as Hydra's ``config_path``."""
