"""Evaluate a checkpoint: ``python -m wsss_afa.evaluate ckpt=FILE data=voc data.root=… protocol=afa``."""

from __future__ import annotations

from omegaconf import DictConfig

from wsss_afa.cli.entry_point import entry_point


@entry_point("evaluate")
def main(cfg: DictConfig) -> float:
    """Score the validation split; return the last map's mIoU, or without masks the mAP, in [0, 1]."""
    from wsss_afa.programs import evaluate

    return evaluate.run(cfg)


if __name__ == "__main__":
    main()
