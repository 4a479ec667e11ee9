"""Freed memory stays: blocks that come again cost no page faults."""

import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from wsss_afa.cli.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for turn in range(30):
    if turn == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux alone is asked")
def test_a_large_block_that_comes_again_is_not_cleared_anew():
    def faults(choice):
        done = subprocess.run([sys.executable, "-c", COUNT, choice], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert 5 * faults("keep") < faults("default")
