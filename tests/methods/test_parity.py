"""The released program's numbers, as far as they were copied to ``tests/data``."""

from pathlib import Path

import pytest

import parity

FILES = sorted((Path(__file__).parents[1] / "data").glob("*.npz"))
BESIDE = sorted((Path(__file__).parents[3] / "shared" / "golden").glob("*.npz"))
MORE = [path for path in BESIDE if path.name not in {copied.name for copied in FILES}]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_quantity_of_the_released_program(path):
    rows = parity.compare(path)
    assert rows
    assert not [row for row in rows if not row.ok]


def test_a_wrong_number_is_out(tmp_path, capsys):
    import numpy as np

    with np.load(FILES[0]) as archive:
        file = {name: archive[name] for name in archive.files}
    file["0/par_iter10"] = file["0/par_iter10"] + 1e-3
    np.savez(tmp_path / "wrong.npz", **file)
    assert parity.main([str(tmp_path / "wrong.npz")]) == 1
    assert "OUT 0/par_iter10" in capsys.readouterr().out


@pytest.mark.skipif(not MORE, reason="no folder ../shared/golden with further files")
@pytest.mark.parametrize("path", MORE, ids=lambda path: path.stem)
def test_further_files(path):
    assert all(row.ok for row in parity.compare(path))
