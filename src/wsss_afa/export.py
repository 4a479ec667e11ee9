"""One file that runs without this library: ``wsss-afa export ckpt=FILE format=onnx``."""

from __future__ import annotations

from omegaconf import DictConfig

from wsss_afa.cli.entry_point import entry_point


@entry_point("export")
def main(cfg: DictConfig) -> float:
    """Write the file and return its size in bytes."""
    from wsss_afa.programs import export

    return export.run(cfg)


if __name__ == "__main__":
    main()
