"""Checkpoints of the WeCLIP and WeCLIP+ authors' programs: weights alone, CLIP's among them, under other names.

Their recipe is read off the weights' shapes, and what no shape shows is the program's own setting.
"""

from __future__ import annotations
