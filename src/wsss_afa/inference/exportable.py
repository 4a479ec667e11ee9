"""A trained method as one file that runs without this library: ONNX, or torch.export's.

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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from wsss_afa import __version__
from wsss_afa.errors import UserError
from wsss_afa.methods.base import Method
from wsss_afa.ops.multi_scale import MultiScaleSegmentation
from wsss_afa.reports.visualize import voc_palette

OPSET = 18  # ONNX Runtime has it since 1.14
METADATA_FILE = "wsss_afa.json"
"""Name of the metadata among the extra files of a ``.pt2``; ONNX has an entry for each key instead."""
PARTS = {"segmentation": ("probability",), "cam": ("cam", "score"), "all": ("probability", "cam", "score")}
"""Outputs by part, in order."""


class Exportable(nn.Module):
    """From decoded photographs to named maps, in one pass of the encoder.

    The method's network loses the heads that no output of the part, a key of `PARTS`, needs. ``outputs``
    names what is returned, in order; ``min_side`` is the shortest image side in pixels. A UserError says that
    the backbone takes images of one size only, or that the method has not what the part needs.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, method: Method, part: str = "all") -> None:
        super().__init__()
        backbone, self.outputs = method.backbone, PARTS[part]
        if not backbone.any_size:
            what = f"the backbone {type(backbone).__name__} cannot be exported for images of any size"
            raise UserError(f"{what}: train with another, such as backbone=mit")
        if missing := [output for output in self.outputs if output not in method.export_heads]:
            what = f"part={part} needs {' and '.join(missing)}, {type(method).__name__} has none"
            raise UserError(f"{what}: set part=segmentation")
        needed = {"backbone"}.union(*(method.export_heads[output] for output in self.outputs))
        for head in {name for name, _ in method.net.named_children()} - needed:
            delattr(method.net, head)
        method.protocol = MultiScaleSegmentation(mean=method.mean, std=method.std)
        self.method = method
        # Two cells or keys a side in every grid: torch.export takes a dimension of 1 for a constant.
        self.min_side = 2 * backbone.min_side + backbone.reductions[-1]
        self.register_buffer("mean", torch.tensor(method.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(method.std)[:, None, None])

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name for an image (B, 3, H, W), uint8 RGB."""
        return self.method.trace((image.float() - self.mean) / self.std, self.outputs)


def make_program(model: Exportable) -> ExportedProgram:
    """Trace the model in evaluation mode, for any batch and any sides from ``min_side`` on."""
    side = 2 * model.min_side + 40  # no side, nor grid, is like another or like a constant of the network
    example = torch.zeros(2, 3, side, side + 20, dtype=torch.uint8)
    sizes = {0: Dim.DYNAMIC} | dict.fromkeys((2, 3), Dim.DYNAMIC(min=model.min_side))
    with torch.no_grad():
        program = torch.export.export(model.eval(), (example,), dynamic_shapes={"image": sizes}, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this computer, of no use on another
    return program


def describe(model: Exportable) -> dict[str, Any]:
    """The metadata, plain values by name.

    ``class_names`` and ``palette`` begin with the background, as the channels of ``probability`` do; channel
    c of ``cam`` and ``score`` is class c + 1.
    """
    method, class_names = model.method, ["background", *model.method.recipe["class_names"]]
    return {
        "library": f"wsss-afa {__version__}",
        "input": "image: uint8 RGB 0…255, (batch, 3, height, width), as decoded; the file normalises it",
        "outputs": list(model.outputs),
        "class_names": class_names,
        "palette": voc_palette(len(class_names)).tolist(),
        "mean": list(method.mean),
        "std": list(method.std),
        "protocol": method.protocol.extra_repr(),
        "cam": "one scale, ReLU, each map shifted and scaled to [0, 1]; score: sigmoid of the class logits",
        "min_side": model.min_side,
    }


def write_onnx(program: ExportedProgram, metadata: dict[str, Any], path: Path) -> None:
    """Write an ONNX file; each entry of the metadata is one of its ``metadata_props``, as JSON."""
    written = torch.onnx.export(
        program, opset_version=OPSET, input_names=["image"], output_names=metadata["outputs"],
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},), dynamo=True, verbose=False,
    )  # fmt: skip
    assert written is not None
    written.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    written.save(path)


def write_torch(program: ExportedProgram, metadata: dict[str, Any], path: Path) -> None:
    """Write a ``.pt2`` of torch.export; the metadata is its extra file `METADATA_FILE`, in JSON."""
    torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata)})


FORMATS = {"onnx": (".onnx", write_onnx), "torch": (".pt2", write_torch)}
"""Ending and writer by format."""
