"""A trained method as a folder of the Hugging Face hub: weights, settings and a card that says what it is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download

from wsss_afa import __version__
from wsss_afa.errors import UserError
from wsss_afa.methods.base import Method
from wsss_afa.methods.weights_file import WEIGHTS, write_weights

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_LICENCES = {
    "nvidia/mit": "the NVIDIA Source Code License for SegFormer, for research alone",
    "dinov2": "Apache-2.0",
    "clip": "the MIT licence by OpenAI's repository, Apache-2.0 by timm's card",
    "deit": "Apache-2.0",
    "augreg": "Apache-2.0",
}
"""Of weights that training may begin with, by a part of the name of their source."""

_CARD = """\
---
library_name: wsss_afa
pipeline_tag: image-segmentation
tags: [weakly-supervised-segmentation]
---

# {method} on {data} with tags

{method} with the encoder {encoder}, trained from image tags alone by `wsss_afa`. It labels every pixel as
background or one of {count} classes: {names}.

## Use

```python
from wsss_afa import Predictor

predictor = Predictor.from_pretrained("user/name")  # or this folder
predictor("photo.jpg").save("results")
```

The network takes RGB pixels of 0…255, minus the mean {mean}, over the deviation {std}; `Predictor` does that.

## Scores

{scores}

## Weights that training began with, and licences

{origin}
"""


def find_weights(name: str | Path) -> Path:
    """The file of weights in a folder, or in one of the hub, from where it is fetched once.

    Raises:
        UserError: There is neither, or the hub does not give it.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if not _NAME.fullmatch(str(name)):
        raise UserError(f"{name}: no such folder; give one that export format=hf wrote, or user/name")
    try:
        return Path(hf_hub_download(str(name), WEIGHTS, endpoint=_endpoint()))
    except Exception as error:  # of whatever library the hub's client speaks through
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name}: neither a folder nor a model of the hub ({type(error).__name__}: {reason}): check the "
            "name, the connection, and HF_TOKEN if it is private"
        ) from error


def write_folder(folder: Path, method: Method, checkpoint: Path) -> None:
    """Write weights, ``config.json`` and the model card into a folder.

    Args:
        folder: Is made.
        method: As `methods.recipe.load` rebuilt it.
        checkpoint: Where it came from: scores and first weights are read from its run's folder, if it lies
            in one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / WEIGHTS, method.net.state_dict(), method.recipe)
    about: dict[str, Any] = {
        "library_name": "wsss_afa",
        "library": f"wsss-afa {__version__}",
        "recipe": method.recipe,
    }
    about |= {"class_names": method.recipe["class_names"], "mean": [*method.mean], "std": [*method.std]}
    content = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(content, encoding="utf-8")
    run = checkpoint.parent.parent
    card = model_card(method, _read(run / "metrics.json"), _read(run / "run.json"), _data(run))
    (folder / "README.md").write_text(card, encoding="utf-8")


def push_folder(folder: Path, name: str) -> str:
    """Upload a folder to the hub, as a model that is made if there is none; return its address.

    Raises:
        UserError: The hub refuses it, or cannot be reached.
    """
    api = HfApi(endpoint=_endpoint())
    try:
        api.create_repo(name, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=f"Written by wsss-afa {__version__}"
        )
    except Exception as error:  # of whatever library the hub's client speaks through
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"push={name} failed ({type(error).__name__}: {reason}): check the name, the connection and your "
            f"token (hf auth login); the folder {folder} is complete"
        ) from error
    return f"{api.endpoint}/{name}"


def model_card(method: Method, metrics: Mapping[str, Any], run: Mapping[str, Any], data: str | None) -> str:
    """What the model is, what it was trained on, its scores and how they were measured, and its licences."""
    names = method.recipe["class_names"]
    return _CARD.format(
        method=type(method).__name__,
        encoder=method.recipe["backbone"]["_target_"].rpartition(".")[2],
        data=data or "images",
        count=len(names),
        names=", ".join(names),
        mean=_numbers(method.mean),
        std=_numbers(method.std),
        scores=_scores(metrics),
        origin=_origin(run.get("backbone") or {}),
    )


def _numbers(values: Any) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _scores(metrics: Mapping[str, Any]) -> str:
    record = metrics.get("best", metrics)
    rows = [f"| {name} | {value:.1f} |" for name, value in record.items() if str(name).startswith("val/")]
    if not rows:
        return "Nothing is known of them."
    how = f"Measured on the split `{metrics.get('split')}` with the protocol `{metrics.get('protocol')}`:"
    return "\n".join([how, "", "| score | % |", "|---|---|", *rows])


def _origin(backbone: Mapping[str, Any]) -> str:
    source = backbone.get("source")
    if not backbone:
        return "Nothing is known of them. Ask who made this model before you pass it on."
    if source is None:
        return "They were random. What the images and tags allow is for who made this model to say."
    licence = next((text for part, text in _LICENCES.items() if part in str(source).lower()), None)
    terms = f"published under {licence}" if licence else "see there for their licence"
    digest = f" (SHA-256 `{backbone['sha256']}`)" if backbone.get("sha256") else ""
    return f"`{Path(str(source)).name if os.path.isabs(str(source)) else source}`{digest}, {terms}."


def _data(run: Path) -> str | None:
    """Name of the data that a run was trained on, from its composed settings."""
    path = run / ".hydra" / "hydra.yaml"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    match = re.search(r"^ {6}data: (\w+)$", text, re.MULTILINE)
    return match[1] if match else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")
