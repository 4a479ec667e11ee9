"""From official archives to a folder that trains: ``wsss-afa prepare dataset=voc2012 root=…``."""

from __future__ import annotations

from omegaconf import DictConfig

from wsss_afa.cli.entry_point import entry_point


@entry_point("prepare")
def main(cfg: DictConfig) -> float:
    """Prepare a data set and return the number of its images."""
    from wsss_afa.programs import prepare

    return prepare.run(cfg)


if __name__ == "__main__":
    main()
