"""Runs of a sweep as one table: ``wsss-afa sweep_report runs=runs/train/…``."""

from __future__ import annotations

from omegaconf import DictConfig

from wsss_afa.cli.entry_point import entry_point


@entry_point("sweep_report")
def main(cfg: DictConfig) -> float:
    """Write and print the table of all runs below the folders; return how many things are missing."""
    from wsss_afa.programs import sweep_report

    return sweep_report.run(cfg)


if __name__ == "__main__":
    main()
