"""Results for VOC's evaluation server: ``wsss-afa voc_server ckpt=FILE data.root=…/VOC2012``."""

from __future__ import annotations

from omegaconf import DictConfig

from wsss_afa.cli.entry_point import entry_point


@entry_point("voc_server")
def main(cfg: DictConfig) -> float:
    """Write results, or take those that are there, check them and return their number."""
    from wsss_afa.programs import voc_server

    return voc_server.run(cfg)


if __name__ == "__main__":
    main()
