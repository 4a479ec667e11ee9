"""Weakly supervised semantic segmentation from image-level tags: AFA (CVPR 2022) as a library."""

__version__ = "0.1.0"
