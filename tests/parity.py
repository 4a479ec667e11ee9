"""Compare the library with values computed by the programs of the methods' authors.

    python tests/parity.py FILE.npz [FILE.npz …]

Three forms of file are understood: a training step of the method that ``meta`` names (``state/*``, ``in/*``,
``out/*``, ``grad_norm/*``, ``final_norm/*`` …; of AFA where it names none), and refinement (``0/image``,
``0/mask``, ``0/par_iter10`` …). Sizes, classes, thresholds and variants are those of ``meta``. Prints a row
per quantity with its largest difference and its tolerance; exits 1 if any is out. Everything is computed by
the classes that training uses.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parent / "support"))
import parity_afa
import parity_excel
import parity_more
import parity_toco
import parity_weclip
from parity_rows import Row, settings

FORMS = {
    "afa": parity_afa.compare_step,
    "toco": parity_toco.compare_step,
    "more": parity_more.compare_step,
    "weclip": parity_weclip.compare_step,
    "weclip_plus": parity_weclip.compare_step,
    "excel": parity_excel.compare_step,
}
"""What compares a training step of each method."""


def compare(path: str | Path) -> list[Row]:
    """All rows of a file of any form."""
    with np.load(path, allow_pickle=False) as archive:
        file = {name: archive[name] for name in archive.files}
    if "in/image" not in file:
        return list(parity_afa.compare_refinement(file))
    return list(FORMS[settings(file).get("method", "afa")](file))


def main(paths: list[str]) -> int:
    if not paths:
        print(__doc__)
        return 2
    failed = False
    for path in paths:
        print(path)
        for row in compare(path):
            failed |= not row.ok
            print(
                f"  {'ok ' if row.ok else 'OUT'} {row.name:60s} {row.difference:10.2e} ≤ {row.tolerance:.0e}"
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
