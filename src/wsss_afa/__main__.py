"""All programs as one command: ``wsss-afa`` lists them, and ``wsss-afa train …`` runs one."""

from __future__ import annotations

import difflib
import runpy
import sys
from pathlib import Path

from wsss_afa.files import CONFIG_DIR

_EXAMPLES = """\
Three examples:
  wsss-afa train +experiment=demo                               generated scenes, minutes on a CPU
  wsss-afa train +experiment=folder data.root=photos            your own tagged photos
  wsss-afa predict ckpt=runs/…/best.ckpt source=photos          masks of any photos

wsss-afa PROGRAM --help lists the settings of a program."""


def programs() -> dict[str, str]:
    """Every program, and what it does: the first line of its file in ``conf/``."""
    files = sorted(Path(CONFIG_DIR).glob("*.yaml"), key=lambda path: (path.stem != "train", path))
    return {path.stem: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for path in files}


def main() -> None:
    """Run the program that the first word names, as ``python -m wsss_afa.PROGRAM`` does."""
    name, known = "".join(sys.argv[1:2]).replace("-", "_"), programs()
    if name in ("", "_h", "__help", "help"):
        print("\n".join([*(f"{name:<14} {text}" for name, text in known.items()), "", _EXAMPLES]))
    elif name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        sys.exit(f"error: {sys.argv[1]} is no program; {hint}")
    else:
        del sys.argv[1]
        runpy.run_module(f"wsss_afa.{name}", run_name="__main__", alter_sys=True)  # Lightning starts it again


if __name__ == "__main__":
    main()
