"""Predict images: ``wsss-afa predict ckpt=FILE source=FOLDER``. One that fails stops no other."""

from __future__ import annotations

from omegaconf import DictConfig

from wsss_afa.cli.entry_point import entry_point


@entry_point("predict")
def main(cfg: DictConfig) -> float:
    """Predict all images and return their number; those that fail are printed before the error."""
    from wsss_afa.programs import predict

    return predict.run(cfg)


if __name__ == "__main__":
    main()
