"""Write pseudo labels of a training set: ``wsss-afa pseudo_labels ckpt=FILE data=… out=DIR``."""

from __future__ import annotations

from omegaconf import DictConfig

from wsss_afa.cli.entry_point import entry_point


@entry_point("pseudo_labels")
def main(cfg: DictConfig) -> float:
    """Write labels and return their number; with ``sweep_thresholds`` return the best mIoU."""
    from wsss_afa.programs import pseudo_labels

    return pseudo_labels.run(cfg)


if __name__ == "__main__":
    main()
