"""A checkpoint as another file: one that runs without this library, or a folder for the hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig

from wsss_afa.errors import UserError, say
from wsss_afa.inference.exportable import FORMATS, PARTS, Exportable, describe, make_program
from wsss_afa.inference.hub import push_folder, write_folder
from wsss_afa.methods.recipe import load
from wsss_afa.methods.weights_file import ENDING, write_weights

_ENDINGS = {name: ending for name, (ending, _) in FORMATS.items()} | {"safetensors": ENDING, "hf": ""}


def find_output(cfg: DictConfig) -> Path:
    """The file to write, once format, part, ending and the packages that are needed are known to be right."""
    for key, known in (("format", _ENDINGS), ("part", PARTS)):
        if cfg[key] not in known:
            default = {"format": "onnx", "part": "all"}[key]
            raise UserError(f"{key}={cfg[key]} is not known, need {', '.join(known)}: set {key}={default}")
    ending = _ENDINGS[cfg.format]
    path = Path(str(cfg.output or Path(str(cfg.ckpt)).with_suffix(ending))).expanduser()
    if path.suffix != ending and ending:
        raise UserError(f"output={path} does not end in {ending}, as format={cfg.format} does: rename it")
    missing = [name for name in ("onnx", "onnxscript") if cfg.format == "onnx" and find_spec(name) is None]
    if missing:
        what = f"format=onnx needs {' and '.join(missing)}, not installed"
        raise UserError(f"{what}: pip install 'wsss-afa[export]', or set format=torch")
    if cfg.push is not None and cfg.format != "hf":
        raise UserError(f"push={cfg.push} uploads a folder: set format=hf")
    return path


def write_program(cfg: DictConfig, path: Path) -> list[tuple[str, str]]:
    """Write a file that runs without this library; return what there is to say of it."""
    model = Exportable(load(cfg.ckpt, cfg.trust), cfg.part)
    metadata = describe(model)
    FORMATS[cfg.format][1](make_program(model), metadata, path)
    sides = f"{metadata['input']}; sides from {model.min_side} px"
    return [("input", sides), ("outputs", ", ".join(model.outputs))]


def write_method(cfg: DictConfig, path: Path) -> list[tuple[str, str]]:
    """Write the whole method, which this library rebuilds; return what there is to say of it."""
    method = load(cfg.ckpt, cfg.trust)
    if cfg.format == "hf":
        write_folder(path, method, Path(str(cfg.ckpt)))
    else:
        write_weights(path, method.net.state_dict(), method.recipe)
    return [("use", f"Predictor.from_pretrained({str(cfg.push or cfg.output or path.name)!r})")]


def run(cfg: DictConfig) -> float:
    """Write the file or the folder, upload it if asked to, and return its size in bytes."""
    path = find_output(cfg)
    write = write_program if cfg.format in FORMATS else write_method
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=path.parent) as folder:
            lines = write(cfg, Path(folder, path.name))
            _put(Path(folder, path.name), path)
    except OSError as error:
        raise UserError(f"output={path} cannot be written ({error}): choose another file") from error
    files = [path] if path.is_file() else [each for each in path.iterdir() if each.is_file()]
    size = sum(each.stat().st_size for each in files)
    say("written", f"{path}, {size / 1e6:.1f} MB")
    for word, text in lines:
        say(word, text)
    if cfg.push is not None:
        say("pushed", push_folder(path, str(cfg.push)))
    return float(size)


def _put(made: Path, path: Path) -> None:
    """Give a file its name, or the files of a folder theirs, where an earlier export may lie."""
    if made.is_file():
        made.replace(path)
        return
    path.mkdir(exist_ok=True)
    for file in made.iterdir():
        file.replace(path / file.name)
