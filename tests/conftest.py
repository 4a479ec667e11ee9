"""What tests share."""

import logging
import sys

import pytest
import torch

from untrained import save, scene_recipe, untrained

torch.set_num_threads(1)  # tensors are tiny: more threads only wait for each other


@pytest.fixture(autouse=True)
def _close_logs():
    """Close what Hydra logs a program into, which it does not do when a program ends."""
    yield
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, logging.FileHandler)]:
        if handler.baseFilename.endswith(".log"):
            root.removeHandler(handler)
            handler.close()


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a program in this process; returns (exit code, what it printed or its line of error)."""

    def program(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        capsys.readouterr()
        try:
            module.main()
        except SystemExit as stop:
            return 1, str(stop.code)
        return 0, capsys.readouterr().out

    return program


@pytest.fixture(scope="session")
def afa_checkpoint(tmp_path_factory):
    """AFA of random weights for the three classes of `untrained.CLASSES`; its labels have several of them."""
    return save(untrained(scene_recipe()), tmp_path_factory.mktemp("afa") / "best.ckpt")
