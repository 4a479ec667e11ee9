"""Look through a data set before training: ``wsss-afa inspect_data data=folder data.root=…``."""

from __future__ import annotations

from omegaconf import DictConfig

from wsss_afa.cli.entry_point import entry_point


@entry_point("inspect_data")
def main(cfg: DictConfig) -> float:
    """Look through the data and return the number of warnings; a UserError counts the errors."""
    from wsss_afa.programs import inspect_data

    return inspect_data.run(cfg)


if __name__ == "__main__":
    main()
