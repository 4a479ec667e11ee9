"""What tests share."""

import sys

import pytest
import torch

torch.set_num_threads(1)  # tensors are tiny: more threads only wait for each other


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
