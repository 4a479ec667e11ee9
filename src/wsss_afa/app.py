"""A page in the browser to try, tune and review labels: ``wsss-afa app ckpt=FILE data.root=photos``."""

from __future__ import annotations

from omegaconf import DictConfig

from wsss_afa.cli.entry_point import entry_point


@entry_point("app")
def main(cfg: DictConfig) -> float:
    """Serve the page until it is stopped, and return the number of photos that were decided."""
    from wsss_afa.programs import app

    return app.run(cfg)


if __name__ == "__main__":
    main()
