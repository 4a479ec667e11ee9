"""Evaluate a checkpoint: ``wsss-afa evaluate ckpt=FILE``, or ``wsss_afa.evaluate(FILE)`` in Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from wsss_afa.cli.entry_point import entry_point
from wsss_afa.cli.in_python import Run, in_folder, let_call, read_run, setting


@entry_point("evaluate")
def main(cfg: DictConfig) -> float:
    """Score the validation split; return the last map's mIoU, without masks the agreement with the tags."""
    from wsss_afa.programs import evaluate

    return evaluate.run(cfg)


def evaluate(checkpoint: str | Path, overrides: Sequence[str] = (), folder: str | Path | None = None) -> Run:
    """Evaluate a checkpoint as the command ``wsss-afa evaluate`` does, in this process, on one device.

    Args:
        checkpoint: A file that training wrote, or one that the authors of a method released.
        overrides: Settings as on the command line, such as ``["data=voc", "data.root=VOC2012"]``.
        folder: Of the results, among them ``report.html``; None makes a new folder in ``runs/evaluate``.

    Returns:
        The folder of the results, and the scores.

    Raises:
        UserError: A setting, the checkpoint or the data is wrong; the line says what to do.
    """
    words = [setting("ckpt", checkpoint), "trainer.devices=1", *overrides, *in_folder(folder)]
    return read_run(main.in_python(words))


let_call(__name__, evaluate)

if __name__ == "__main__":
    main()
