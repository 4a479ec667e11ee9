"""Train: ``wsss-afa train +experiment=synthetic``, or ``wsss_afa.train("synthetic")`` in Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from wsss_afa.cli.entry_point import entry_point
from wsss_afa.cli.in_python import Run, in_folder, let_call, read_run


@entry_point("train")
def main(cfg: DictConfig) -> float:
    """Train and return the best monitored score, in [0, 1], for sweeps."""
    from wsss_afa.programs import train

    return train.run(cfg)


def train(
    experiment: str | None = None, overrides: Sequence[str] = (), folder: str | Path | None = None
) -> Run:
    """Train as the command ``wsss-afa train`` does, in this process, on one device.

    Args:
        experiment: Of ``conf/experiment``, such as ``"voc"``; None takes the defaults alone.
        overrides: Further settings as on the command line, such as ``["data.root=VOC2012", "seed=1"]``.
        folder: Of the run. A run that was stopped there goes on, and one that is complete is not repeated.
            None makes a new folder in ``runs/train``.

    Returns:
        The folder of the run, and the scores of its best validation.

    Raises:
        UserError: A setting or the data is wrong; the line says what to do.
    """
    chosen = [] if experiment is None else [f"+experiment={experiment}"]
    return read_run(main.in_python([*chosen, "trainer.devices=1", *overrides, *in_folder(folder)]))


let_call(__name__, train)

if __name__ == "__main__":
    main()
