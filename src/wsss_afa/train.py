"""Train: ``python -m wsss_afa.train +experiment=synthetic`` (or another file of ``conf/experiment``)."""

from __future__ import annotations

from omegaconf import DictConfig

from wsss_afa.cli.entry_point import entry_point


@entry_point("train")
def main(cfg: DictConfig) -> float:
    """Train and return the best monitored score, in [0, 1], for sweeps."""
    from wsss_afa.programs import train

    return train.run(cfg)


if __name__ == "__main__":
    main()
