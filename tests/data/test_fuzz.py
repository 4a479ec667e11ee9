"""A short run of the fuzzing in ``tests/fuzz.py``: no traceback, and both answers and refusals."""

import pytest

import fuzz


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_made_up_data_is_read_or_refused(kind):
    answered, refused = fuzz.run(kind, cases=60, seconds=20)
    assert answered
    assert refused
