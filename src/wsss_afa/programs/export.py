"""One file that runs without this library: ``python -m wsss_afa.export ckpt=FILE format=onnx``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig

from wsss_afa.errors import UserError, say
from wsss_afa.inference.exportable import FORMATS, PARTS, Exportable, describe, make_program
from wsss_afa.methods.recipe import load


def find_output(cfg: DictConfig) -> Path:
    """The file to write, once format, part, ending and the packages that are needed are known to be right."""
    for key, known in (("format", FORMATS), ("part", PARTS)):
        if cfg[key] not in known:
            raise UserError(f"{key}={cfg[key]} is not known, need {', '.join(known)}: set {key}={min(known)}")
    ending, _ = FORMATS[cfg.format]
    path = Path(str(cfg.output or Path(str(cfg.ckpt)).with_suffix(ending))).expanduser()
    if path.suffix != ending:
        raise UserError(f"output={path} does not end in {ending}, as format={cfg.format} does: rename it")
    missing = [name for name in ("onnx", "onnxscript") if cfg.format == "onnx" and find_spec(name) is None]
    if missing:
        what = f"format=onnx needs {' and '.join(missing)}, not installed"
        raise UserError(f"{what}: pip install 'wsss-afa[export]', or set format=torch")
    return path


def run(cfg: DictConfig) -> float:
    """Write the file and return its size in bytes."""
    path = find_output(cfg)
    model = Exportable(load(cfg.ckpt, cfg.trust), cfg.part)
    metadata = describe(model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=path.parent) as folder:
            FORMATS[cfg.format][1](make_program(model), metadata, Path(folder, path.name))
            Path(folder, path.name).replace(path)
    except OSError as error:
        raise UserError(f"output={path} cannot be written ({error}): choose another file") from error
    size = path.stat().st_size
    say("written", f"{path}, {size / 1e6:.1f} MB")
    say("input", f"{metadata['input']}; sides from {model.min_side} px")
    say("outputs", ", ".join(model.outputs))
    return float(size)
