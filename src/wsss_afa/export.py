"""One file that runs without this library: ``python -m wsss_afa.export ckpt=FILE format=onnx``.

The exported network takes photographs as they are decoded, uint8 RGB (B, 3, H, W), any number and size; it
normalises them itself. One pass at native size makes, by name:

| output | shape | | `part=` |
|---|---|---|---|
| probability | (B, K, H, W) | of background and classes, in [0, 1] | segmentation, all |
| cam | (B, C, H, W) | activation maps, one scale, in [0, 1] | cam, all |
| score | (B, C) | whether a class is in the image, in [0, 1] | cam, all |

Class names, palette, normalisation and what has been done to the image travel in the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from wsss_afa import __version__
from wsss_afa.methods.recipe import Recipe, load
from wsss_afa.cli.entry_point import entry_point
from wsss_afa.methods.afa.network import AFANet
from wsss_afa.models.backbones.mix_transformer import MixTransformer
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.ops.multi_scale import MultiScaleSegmentation
from wsss_afa.errors import UserError
from wsss_afa.visualize import voc_palette

OPSET = 18
"""Of the ONNX operators; ONNX Runtime has it since 1.14."""
METADATA_FILE = "wsss_afa.json"
"""Name of the metadata among the extra files of a ``.pt2``; ONNX has an entry for each key instead."""
PARTS = {"segmentation": ("probability",), "cam": ("cam", "score"), "all": ("probability", "cam", "score")}
"""Outputs by part, in order."""
_HEADS = {"probability": "decoder", "cam": "classifier", "score": "classifier"}


class Exportable(nn.Module):
    """From decoded photographs to named maps, in one pass of the encoder.

    Args:
        net: an AFANet, or for the part ``segmentation`` a SegmentationNet; it loses the heads that no output
            needs.
        recipe: of its checkpoint; the normalisation is read.
        part: key of `PARTS`.

    Attributes:
        outputs: names of what is returned, in order.
        min_side: shortest image side in pixels.

    Raises:
        UserError: the network has another backbone than a Mix Transformer, or not what the part needs.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: AFANet, recipe: Recipe, part: str = "all") -> None:
        super().__init__()
        if not isinstance(net.backbone, MixTransformer):
            kind = type(net.backbone).__name__
            raise UserError(
                f"the backbone is {kind}, need a Mix Transformer: others cannot take images of any size"
            )
        if part != "segmentation" and not isinstance(net, AFANet):
            kind = type(net).__name__
            raise UserError(f"part={part} needs activation maps, {kind} has none: set part=segmentation")
        self.outputs = PARTS[part]
        needed = {"backbone"} | {_HEADS[output] for output in self.outputs}
        for head in {name for name, _ in net.named_children()} - needed:
            delattr(net, head)
        self.net = net
        # Two cells or keys a side in every grid: torch.export takes a dimension of 1 for a constant.
        self.min_side = 2 * net.backbone.min_side + net.backbone.reductions[-1]
        self.segmentation = MultiScaleSegmentation()
        self.cam = MultiScaleCAM(scales=(1.0,), mirror=False)
        self.register_buffer("mean", torch.tensor(recipe["mean"])[:, None, None])
        self.register_buffer("std", torch.tensor(recipe["std"])[:, None, None])

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name for an image (B, 3, H, W), uint8 RGB."""
        normalised = (image.float() - self.mean) / self.std
        encoded = self.net.backbone(normalised)
        found: dict[str, Tensor] = {}
        if "probability" in self.outputs:
            logits = self.net.decoder(encoded.features)
            found["probability"] = self.segmentation.probabilities(self.net, normalised, logits)
        if "cam" in self.outputs:
            found["cam"] = self.cam(self.net, normalised, self.net.activation(encoded)).cam
            found["score"] = self.net.class_logits(encoded.features[-1]).sigmoid()
        return found


def make_program(model: Exportable) -> ExportedProgram:
    """Trace the model in evaluation mode, for any batch and any sides from ``min_side`` on."""
    side = 2 * model.min_side
    example = torch.zeros(2, 3, side, side + 8, dtype=torch.uint8)
    sizes = {0: Dim("batch"), 2: Dim("height", min=model.min_side), 3: Dim("width", min=model.min_side)}
    with torch.no_grad():
        program = torch.export.export(model.eval(), (example,), dynamic_shapes={"image": sizes}, strict=True)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this computer, of no use on another
    return program


def describe(model: Exportable, recipe: Recipe) -> dict[str, Any]:
    """The metadata: plain containers, by name.

    ``class_names`` and ``palette`` begin with the background, as the channels of ``probability`` do; channel
    c of ``cam`` and ``score`` is class c + 1.
    """
    class_names = ["background", *recipe["class_names"]]
    return {
        "library": f"wsss-afa {__version__}",
        "input": "image: uint8 RGB 0…255, (batch, 3, height, width), as decoded; the file normalises it",
        "outputs": list(model.outputs),
        "class_names": class_names,
        "palette": voc_palette(len(class_names)).tolist(),
        "mean": recipe["mean"],
        "std": recipe["std"],
        "protocol": model.segmentation.extra_repr(),
        "cam": "one scale, ReLU, each map shifted and scaled to [0, 1]; score: sigmoid of the class logits",
        "min_side": model.min_side,
    }


def write_onnx(program: ExportedProgram, metadata: dict[str, Any], path: Path) -> None:
    """Write an ONNX file; each entry of the metadata is one of its ``metadata_props``, as JSON."""
    written = torch.onnx.export(
        program,
        opset_version=OPSET,
        input_names=["image"],
        output_names=metadata["outputs"],
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
        dynamo=True,
        verbose=False,
    )
    assert written is not None
    written.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    written.save(path)


def write_torch(program: ExportedProgram, metadata: dict[str, Any], path: Path) -> None:
    """Write a ``.pt2`` of torch.export; the metadata is its extra file `METADATA_FILE`, in JSON."""
    torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata)})


FORMATS: dict[str, tuple[str, Callable[[ExportedProgram, dict[str, Any], Path], None]]] = {
    "onnx": (".onnx", write_onnx),
    "torch": (".pt2", write_torch),
}
"""Ending and writer by format."""


def find_output(cfg: DictConfig) -> Path:
    """The file to write.

    Raises:
        UserError: The format or the part is unknown, the file has the ending of another format, or a package
            is missing.
    """
    for key, known in (("format", FORMATS), ("part", PARTS)):
        if cfg[key] not in known:
            raise UserError(f"{key}={cfg[key]} is not known, need {', '.join(known)}: set {key}={min(known)}")
    ending, _ = FORMATS[cfg.format]
    path = Path(str(cfg.output or Path(str(cfg.ckpt)).with_suffix(ending))).expanduser()
    if path.suffix != ending:
        raise UserError(f"output={path} does not end in {ending}, as format={cfg.format} does: rename it")
    missing = [name for name in ("onnx", "onnxscript") if cfg.format == "onnx" and find_spec(name) is None]
    if missing:
        raise UserError(
            f"format=onnx needs {' and '.join(missing)}, not installed: pip install 'wsss-afa[export]', or "
            "set format=torch"
        )
    return path


@entry_point("export")
def main(cfg: DictConfig) -> float:
    """Write the file and return its size in bytes."""
    path = find_output(cfg)
    net, _, recipe = load(cfg.ckpt)
    model = Exportable(net, recipe, cfg.part)
    metadata = describe(model, recipe)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=path.parent) as folder:
            FORMATS[cfg.format][1](make_program(model), metadata, Path(folder, path.name))
            Path(folder, path.name).replace(path)
    except OSError as error:
        raise UserError(f"output={path} cannot be written ({error}): choose another file") from error
    print(f"written   {path}, {path.stat().st_size / 1e6:.1f} MB")
    print(f"input     {metadata['input']}; sides from {model.min_side} px")
    print(f"outputs   {', '.join(model.outputs)}")
    return float(path.stat().st_size)


if __name__ == "__main__":
    main()
