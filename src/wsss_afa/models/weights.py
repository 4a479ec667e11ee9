"""Published checkpoints: their names → ours, as pure functions over state dictionaries, and reading files.

Names in, names out (i: stage from 0, j: block):

    NVIDIA            patch_embed{i+1}.  block{i+1}.{j}.  norm{i+1}.                   head.
    Hugging Face      patch_embeddings.{i}.  block.{i}.{j}.  layer_norm.{i}.           classifier.
    ours              stages.{i}.patch_embed.  stages.{i}.blocks.{j}.  stages.{i}.norm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import file_digest, sha256
from pathlib import Path

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from timm.models import load_state_dict
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.files import check_stored

Rules = tuple[tuple[str, str], ...]

_NVIDIA: Rules = (
    (r"^patch_embed([1-4])\.", r"stages.\1.patch_embed."),
    (r"^block([1-4])\.", r"stages.\1.blocks."),
    (r"^norm([1-4])\.", r"stages.\1.norm."),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
)
_HUGGING_FACE: Rules = (
    (r"^patch_embeddings\.(\d)\.layer_norm\.", r"stages.\1.patch_embed.norm."),
    (r"^patch_embeddings\.(\d)\.", r"stages.\1.patch_embed."),
    (r"^block\.(\d)\.", r"stages.\1.blocks."),
    (r"^layer_norm\.(\d)\.", r"stages.\1.norm."),
    (r"\.layer_norm_([12])\.", r".norm\1."),
    (r"\.attention\.self\.query\.", ".attn.q."),
    (r"\.attention\.self\.(key|value|sr)\.", r".attn.\1."),
    (r"\.attention\.self\.layer_norm\.", ".attn.norm."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
    (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
)
_PUBLISHED_HEAD = re.compile(r"^(head|classifier)\.(weight|bias)$")
_VIT_HEAD = re.compile(r"^(head|head_dist|pre_logits|attn_pool)\.")
_VIT_FOREIGN = {"mask_token", "visual.class_embedding"}
"""Keys by which files of DINOv2's and CLIP's authors are known."""
_FILE_TYPES = (".pth", ".pt", ".bin", ".safetensors", ".ckpt")
_PATIENCE = 10.0  # seconds until the hub counts as silent
_HUB_FILES = ("pytorch_model.bin", "model.safetensors")  # the better one last
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?")
_SOURCES = "a file (.pth, .bin, .safetensors), a URL, or a hub id such as nvidia/mit-b1"
_HUGGING_FACE_PREFIX = re.compile(r"^(segformer\.)?encoder\.")


def rename_mit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a Mix Transformer's published weights our names, whichever of the three sets they have now.

    The layout is recognised by the keys: NVIDIA's, Hugging Face's (with or without the prefix
    `segformer.encoder.`) or our own. Separate keys and values become one `kv`. The classification head goes;
    a key that no rule knows stays as it is, so that `check_fit` can name it.

    Raises:
        UserError: the keys are those of no Mix Transformer.
    """
    state = {key: value for key, value in state.items() if not _PUBLISHED_HEAD.match(key)}
    if "stages.0.patch_embed.proj.weight" in state:
        return state
    if "patch_embed1.proj.weight" in state:
        return {count_from_zero(apply_rules(_NVIDIA, key), "stages"): value for key, value in state.items()}
    bare = {_HUGGING_FACE_PREFIX.sub("", key): value for key, value in state.items()}
    if "patch_embeddings.0.proj.weight" in bare:
        return _join_keys_and_values({apply_rules(_HUGGING_FACE, key): value for key, value in bare.items()})
    raise UserError(
        f"these weights are no Mix Transformer's (keys such as {some_keys(state)}); need NVIDIA's mit_b*.pth "
        "or Hugging Face's nvidia/mit-b*: set pretrained to one of those, or pretrained=null"
    )


def check_fit(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the weights if they fill the model exactly under its own names; else say in one line why not.

    Raises:
        UserError: a weight is missing, unexpected, or of another shape.
    """
    own = model.state_dict()
    missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
    reshaped = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    sets = (("missing", missing), ("unexpected", unexpected))
    problems = [f"{len(keys)} {what} ({some_keys(keys)})" for what, keys in sets if keys]
    for key in sorted(reshaped)[:1]:
        shapes = f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        problems.append(f"{len(reshaped)} of another shape ({shapes})")
    if problems:
        what = f"the weights are not this variant's: {', '.join(problems)}"
        raise UserError(f"{what}; choose the variant that the weights belong to, or other weights")
    return dict(state)


def fit_mit(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`rename_mit`, then `check_fit`: published weights, ready for `model.load_state_dict`."""
    return check_fit(rename_mit(state), model)


def fit_vit(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Give a plain ViT's published weights timm's names, and leave out heads that the model does not have.

    Args:
        state: timm's names, or those in the files of DINOv2's or CLIP's authors.
        model: timm's `VisionTransformer`.

    Raises:
        UserError: a weight is missing, unexpected, or of another shape.
    """
    if not _VIT_FOREIGN.isdisjoint(state):
        state = checkpoint_filter_fn(dict(state), model)
    state = {re.sub(r"^fc_norm\.", "norm.", key): value for key, value in state.items()}
    own = model.state_dict()
    return check_fit({key: v for key, v in state.items() if key in own or not _VIT_HEAD.match(key)}, model)


def read_weights(source: str) -> dict[str, Tensor]:
    """Read a state dictionary from a file, a URL or the Hugging Face hub; downloads are kept and used again.

    Nothing in a file is ever executed (`weights_only=True`). URLs are kept in torch's hub folder
    (`TORCH_HOME`), hub models in `HF_HOME`, where `HF_HUB_OFFLINE=1` keeps to what is there already.

    Args:
        source: path to a .pth, .bin or .safetensors file; http(s) or file URL; or hub id `owner/name`, with
            `@revision` if wanted.

    Raises:
        UserError: there is no such file, it cannot be fetched, or it is no checkpoint.
    """
    path = _locate(source)
    name = source if path == Path(source).expanduser() else f"{source} (kept as {path})"
    try:
        check_stored(path)
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # torch, pickle, zip and safetensors each raise their own
        raise UserError(
            f"{name}: cannot be read as tensors alone ({_first_line(error)}); need a state dictionary that "
            "torch.save or safetensors wrote: delete the file and fetch it again, or set pretrained=null"
        ) from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"{name}: holds no state dictionary (entries such as {some_keys(state)}); need tensors by "
            "name, alone or under 'state_dict' or 'model': save model.state_dict()"
        )
    return dict(state)


def weights_sha256(source: str) -> str:
    """SHA-256, in hexadecimal, of the file that `read_weights` reads for a source; raises as it does."""
    with _locate(source).open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def kept_copy(source: str) -> Path | None:
    """The file that `read_weights` reads for a source without asking anybody; None where there is none."""
    path = _kept(source) if "://" in source else Path(source).expanduser()
    if not path.is_file() and _HUB_ID.fullmatch(source):
        repository, _, revision = source.partition("@")
        for name in _HUB_FILES:
            found = try_to_load_from_cache(repository, name, revision=revision or None)
            path = Path(found) if isinstance(found, str) else path
    return path if path.is_file() else None


def _locate(source: str) -> Path:
    path, null = Path(source).expanduser(), "or null (random weights)"
    if "://" in source:
        return _download(source)
    if path.is_file():
        return path
    if _HUB_ID.fullmatch(source) and path.suffix not in _FILE_TYPES:
        return _from_hub(source)
    raise UserError(f"{source}: no such file; need {_SOURCES}: set pretrained to one of them, {null}")


def _from_hub(source: str) -> Path:
    repository, _, revision = source.partition("@")
    try:
        try:
            return _hub_file(repository, _HUB_FILES[-1], revision or None)
        except EntryNotFoundError:
            return _hub_file(repository, _HUB_FILES[0], revision or None)
    except Exception as error:  # unreachable, unknown, private, offline without a copy, or damaged
        raise UserError(
            f"{source}: no such file, and no weights from the hub: check name and connection, or download "
            f"pytorch_model.bin from the hub page of {source} elsewhere and set pretrained=FILE, or "
            f"pretrained=null (random weights) ({_first_line(error)})"
        ) from error


def _hub_file(repository: str, name: str, revision: str | None) -> Path:
    """The hub's file, or the copy that is here; a hub that does not answer is asked once."""
    try:
        get_hf_file_metadata(hf_hub_url(repository, name, revision=revision), timeout=_PATIENCE)
        there = True
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except Exception:  # offline, or nobody answers
        there = False
    return Path(hf_hub_download(repository, name, revision=revision, local_files_only=not there))


def _kept(url: str) -> Path:
    # The name alone (often pytorch_model.bin) would let one model's cached file pass for another's.
    name = f"{sha256(url.encode()).hexdigest()[:16]}-{url.split('?')[0].rsplit('/', 1)[-1]}"
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _download(url: str) -> Path:
    path = _kept(url)
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{url}: cannot be downloaded ({_first_line(error)}); need an address that answers: check it and "
            "the connection, or download it elsewhere and set pretrained=FILE, or pretrained=null"
        ) from error
    return path


def apply_rules(rules: Rules, key: str) -> str:
    """The key after every substitution (pattern, replacement), one after the other."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def count_from_zero(key: str, list_name: str) -> str:
    """Count the members of a module list from 0 where the published name counts from 1."""
    return re.sub(rf"^({re.escape(list_name)})\.(\d)\.", lambda m: f"{m[1]}.{int(m[2]) - 1}.", key)


def _join_keys_and_values(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stack each block's key and value projection, (C, C) each, into one `kv`, (2C, C): keys first."""
    for key in [name for name in state if ".attn.key." in name]:
        value, joined = (key.replace(".attn.key.", f".attn.{part}.") for part in ("value", "kv"))
        if value in state:
            state[joined] = torch.cat([state.pop(key), state.pop(value)])
    return state


def some_keys(keys: Iterable[object]) -> str:
    """The first two keys in order, for a message."""
    return ", ".join(sorted(map(str, keys))[:2]) or "none"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
