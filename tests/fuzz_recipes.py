"""Alter checkpoints at random, and see whether each is refused in one line or works.

    python tests/fuzz_recipes.py cases=2000 seed=0 seconds=1200

A case is a small network's checkpoint whose recipe or weights were altered in one or more places. It passes
if `load` raises a `UserError` of one line, or if what it loads predicts an image; both within seconds, and
without more memory than a sound file takes. The exit code is 1 if a case does not pass.
"""

from __future__ import annotations

import copy
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent / "support"))

from recipes import small_recipe
from wsss_afa.errors import UserError
from wsss_afa.inference.predictor import Predictor
from wsss_afa.methods.recipe import build

CASE_SECONDS = 20
"""Longest time for one case; a sound one takes about a tenth of a second."""
MEMORY = 400 * 2**20
"""By how many bytes the process may grow."""
IMAGE = np.zeros((40, 48, 3), np.uint8)

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 10**3, 10**5, 10**7, 10**12, 10**30, -(10**9), 0.0, 0.5, 1.5,
    -0.5, 1e-9, 1e9, 1e300, float("nan"), float("inf"), float("-inf"), "", "x", "afa", "cam", "par", "x"
    * 5000, "a\nb", "\x1b[31m", "\ud800", "${seed}", "???", "http://127.0.0.1:9/w.pth", "/etc/passwd",
    b"x", [], [0], [1.0], [1e-9], [[]], ["x"], [None], [0, 0, 0, 0], [4, 2, 2, 1], [1.0] * 500,
    list(range(70_000)), {}, {"a": 1}, {1: 2}, {"x": {}}, (), (1, 2), {"_target_": "os.getcwd"},
    {"_target_": "wsss_afa.ops.cam.MultiScaleCAM"}, {"_target_": "wsss_afa.ops.par"}, {"_target_":
    "wsss_afa.ops.par.PixelAdaptiveRefinement"}, {"_target_": None}, {"_target_": []}, {"_target_":
    "wsss_afa.models.backbones.mix_transformer.mix_transformer"}, {"_args_": ["tiny"]}, {1, 2},
    {"_target_": "wsss_afa.models.backbones.timm_vit.TimmViT", "name": "vit_tiny_patch16_224"},
    {"_target_": "wsss_afa.models.backbones.timm_pyramid.TimmPyramid", "name": "resnet10t"},
    {"_target_": "wsss_afa.methods.supervised.Supervised"}, torch.zeros(2), 1j, torch.Size([2]),
]  # fmt: skip
KEYS: list[Any] = [
    "_args_", "_partial_", "_recursive_", "_convert_", "_target_", "pretrained", "checkpoint_path", "x",
    "", 0, None, "num_classes", "backbone", "scales", "${a}", "\n", "mean", "std", "decoder_dim",
    "img_size",
]  # fmt: skip


def containers(config: Any, depth: int = 0) -> Iterator[dict[Any, Any] | list[Any]]:
    """All dictionaries and lists of a recipe, which may hold itself by now."""
    if isinstance(config, dict | list) and depth < 8:
        yield config
        for value in config.values() if isinstance(config, dict) else config[:10]:
            yield from containers(value, depth + 1)


def alter_recipe(recipe: dict[str, Any], rng: random.Random) -> str:
    """Change one place of a recipe; what was done."""
    place = rng.choice([each for each in containers(recipe) if each] or [recipe])
    value = copy.deepcopy(rng.choice(VALUES))
    kind = rng.choice(["replace", "replace", "replace", "delete", "add", "grow", "itself"])
    key = rng.choice([*place]) if isinstance(place, dict) else rng.randrange(len(place))
    if kind == "replace":
        place[key] = value
    elif kind == "delete":
        del place[key]
    elif kind == "add" and isinstance(place, dict):
        key = rng.choice(KEYS)
        place[key] = value
    elif kind == "itself":
        place[key] = place if rng.random() < 0.3 else [place] * 10
    else:
        place[key] = [copy.deepcopy(place[key]) for _ in range(rng.choice([2, 100]))]
    return f"{kind} {key!r} {value!r:.60}"


def alter_state(state: dict[Any, Any], rng: random.Random) -> str:
    """Change one weight; what was done."""
    key = rng.choice([*state])
    weight = state[key]
    kind = rng.choice(["drop", "rename", "huge", "strides", "other", "type", "value"])
    if kind in ("drop", "rename"):
        del state[key]
    if kind == "rename":
        state[rng.choice([5, "x", f"net.{key}"])] = weight
    if kind == "huge":
        state[key] = torch.zeros(1).expand(10**5, 10**5)
    if kind == "strides" and isinstance(weight, torch.Tensor):
        state[key] = torch.zeros((), dtype=weight.dtype).expand(weight.shape)
    if kind == "other":
        state[key] = rng.choice([None, 5, "x", [1], torch.zeros(0), torch.zeros(3, device="meta")])
    if kind == "type" and isinstance(weight, torch.Tensor) and weight.numel() < 10**6:
        made = [weight.half, weight.cfloat, weight.long, weight.to_sparse, weight.double]
        state[key] = rng.choice(made)()
    if kind == "value" and isinstance(weight, torch.Tensor) and weight.is_floating_point():
        state[key] = torch.full_like(weight, rng.choice([float("nan"), float("inf"), 1e38]))
    return f"{kind} weight {key!r}"


def alter(content: dict[str, Any], rng: random.Random) -> str:
    """Change one place of a checkpoint; what was done."""
    if rng.random() < 0.75 and isinstance(content.get("wsss_afa"), dict):
        return alter_recipe(content["wsss_afa"], rng)
    if rng.random() < 0.9 and isinstance(content.get("state_dict"), dict) and content["state_dict"]:
        return alter_state(content["state_dict"], rng)
    key, value = rng.choice([*content]), rng.choice(VALUES)
    content[key] = value
    return f"replace {key} by {value!r:.60}"


def sound() -> list[dict[str, Any]]:
    """Checkpoints that load: of AFA, of a supervised network."""
    found = []
    for overrides in ((), ("method=supervised",)):
        recipe = small_recipe("method.cam.scales=[1.0]" if not overrides else overrides[0])
        state = {f"net.{name}": value for name, value in build(recipe).net.state_dict().items()}
        found.append({"wsss_afa": dict(recipe), "state_dict": state})
    return found


def outcome(path: Path) -> str:
    """What comes of a file: ``refused``, ``works``, or what is wrong."""
    try:
        Predictor.from_checkpoint(path, device="cpu")(IMAGE)
    except UserError as error:
        return "refused" if str(error).isprintable() else f"a line that is none: {error!r}"
    except (Exception, Late) as error:
        return f"{type(error).__name__}: {error} " + "".join(traceback.format_tb(error.__traceback__)[-3:])
    return "works"


class Late(BaseException):
    """A case takes too long."""


def run(cases: int, seed: int, seconds: float) -> tuple[Counter[str], list[str]]:
    """Outcomes by kind, and lines about cases that do not pass; ends early when the time is over."""
    originals, counts, wrong, end = sound(), Counter[str](), list[str](), time.monotonic() + seconds
    signal.signal(signal.SIGALRM, _late)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        path = Path(folder, "x.ckpt")
        for number in range(cases):
            if time.monotonic() > end:
                break
            rng = random.Random(f"{seed} {number}")  # noqa: S311
            content = copy.deepcopy(rng.choice(originals))
            done = [alter(content, rng)]
            while rng.random() < 0.4 and not done[-1].startswith("itself"):
                done.append(alter(content, rng))
            torch.save(content, path)
            before, _ = memory(), signal.alarm(CASE_SECONDS)
            what = outcome(path)
            signal.alarm(0)
            grown = memory() - before
            if grown > MEMORY:
                what = f"{grown / 2**20:.0f} MiB more"
            counts[what if what in ("refused", "works") else "wrong"] += 1
            if what not in ("refused", "works"):
                wrong.append(f"case {number}: {'; '.join(done)}: {what}")
    return counts, wrong


def memory() -> int:
    """Most memory that this process has ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _late(*_: object) -> None:
    raise Late("too late")


def main() -> int:
    """Run what the command line asks for."""
    words = dict(word.split("=") for word in sys.argv[1:])
    torch.set_num_threads(1)
    counts, wrong = run(
        int(words.get("cases", 200)), int(words.get("seed", 0)), float(words.get("seconds", 600))
    )
    print(*wrong, *(f"{count:6} {what}" for what, count in counts.items()), sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
