"""Exported files answer as the checkpoint does, at any size, without this library."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from released import add_toy, random_net, save_toy
from untrained import supervised_recipe, untrained
from wsss_afa import export
from wsss_afa.data.transforms import EvalTransform
from wsss_afa.data.voc import VOC_CLASSES
from wsss_afa.errors import UserError
from wsss_afa.inference.exportable import OPSET, PARTS, Exportable, make_program
from wsss_afa.methods.recipe import load
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.programs import export as work
from wsss_afa.reports.visualize import voc_palette
from wsss_afa.types import MEAN, STD

SIZES = [(1, 96, 96), (2, 74, 131), (3, 101, 74), (1, 200, 85)]
"""Batch, height and width; 74 is the shortest side."""
TOLERANCE = {"probability": 1e-5, "score": 1e-5, "cam": 1e-3}
"""A map is scaled by its own range, which is small in a random network."""

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The given buffer is not writable"),  # torch's own, on loading
]


@pytest.fixture(scope="module", autouse=True)
def _no_logs():
    """The tracer logs every step where a handler listens, as pytest's does; it takes half of the time."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The checkpoint of a toy network, and both formats of all parts from one trace, made by the program."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        add_toy(patch)
        save_toy(folder / "wetr_iter_5.pth")
        program = make_program(Exportable(load(folder / "wetr_iter_5.pth")))
        patch.setattr(work, "make_program", lambda model: program)  # one trace for all, as it takes long
        for name in ("onnx", "torch"):
            run(patch, f"ckpt={folder}/wetr_iter_5.pth", "part=all", f"format={name}")
    return folder


def run(patch, *arguments):
    patch.setattr(sys, "argv", ["export", *arguments])
    export.main()


def photographs(size) -> np.ndarray:
    """(B, H, W, 3) uint8."""
    batch, height, width = size
    return np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


@torch.no_grad()
def expected(net, photos) -> dict[str, torch.Tensor]:
    """What training's own preparation and modules give."""
    image = torch.stack([EvalTransform()(photo)[0] for photo in photos])
    logits = F.interpolate(net.segment(image), image.shape[-2:], mode="bilinear", align_corners=False)
    cam = MultiScaleCAM(scales=[1.0], mirror=False)(net, image).cam
    return {"probability": logits.softmax(1), "cam": cam, "score": net.classify(image).sigmoid()}


def assert_close(outputs, net, photos):
    wanted = expected(net, photos)
    assert outputs.keys() == wanted.keys()
    for name, output in outputs.items():
        assert output.shape == wanted[name].shape
        assert (output - wanted[name]).abs().max() < TOLERANCE[name], name


@pytest.fixture
def net(monkeypatch):
    add_toy(monkeypatch)
    return random_net("toy", decoder_dim=16)


def test_onnx_answers_as_the_checkpoint_does(files, net):
    session = onnxruntime.InferenceSession(files / "wetr_iter_5.onnx", providers=["CPUExecutionProvider"])
    for size in SIZES:
        photos = photographs(size)
        outputs = session.run(None, {"image": photos.transpose(0, 3, 1, 2)})
        names = [output.name for output in session.get_outputs()]
        assert_close(dict(zip(names, map(torch.from_numpy, outputs), strict=True)), net, photos)


def test_onnx_says_what_it_takes_and_gives(files):
    model = onnx.load(files / "wetr_iter_5.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    session = onnxruntime.InferenceSession(files / "wetr_iter_5.onnx", providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert (image.name, image.type) == ("image", "tensor(uint8)")
    assert image.shape == ["batch", 3, "height", "width"]
    assert {output.name: output.shape for output in session.get_outputs()} == {
        "probability": ["batch", 21, "height", "width"],
        "cam": ["batch", 20, "height", "width"],
        "score": ["batch", 20],
    }
    stored = session.get_modelmeta().custom_metadata_map
    check_metadata({key: json.loads(value) for key, value in stored.items()})


def check_metadata(metadata):
    assert metadata["class_names"] == ["background", *VOC_CLASSES]
    assert metadata["palette"] == voc_palette(21).tolist()
    assert (metadata["mean"], metadata["std"]) == (list(MEAN), list(STD))
    assert metadata["outputs"] == ["probability", "cam", "score"]
    assert metadata["protocol"] == "plain (native size; scale 1; no CRF)"
    assert metadata["min_side"] == 74
    assert "uint8 RGB" in metadata["input"]


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_a_file_names_no_path_of_the_computer_it_was_made_on(ending, files):
    content = (files / f"wetr_iter_5.{ending}").read_bytes()
    assert b"image" in content
    assert str(Path(export.__file__).parent).encode() not in content
    assert str(files).encode() not in content
    assert b"site-packages" not in content


ALONE = """
import json, sys
sys.modules["wsss_afa"] = sys.modules["timm"] = None  # importing either fails
import numpy, torch
extra = {"wsss_afa.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra)
photos = numpy.load(sys.argv[2])
outputs = [program.module()(torch.from_numpy(photos[name])) for name in photos.files]
torch.save((outputs, json.loads(extra["wsss_afa.json"])), sys.argv[3])
"""


@pytest.mark.slow
def test_pt2_runs_in_a_process_without_this_library(files, net, tmp_path):
    photos = [photographs(size) for size in SIZES]
    np.savez(tmp_path / "photos.npz", *[each.transpose(0, 3, 1, 2) for each in photos])
    command = [sys.executable, "-c", ALONE, files / "wetr_iter_5.pt2", "photos.npz", "outputs.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    outputs, metadata = torch.load(tmp_path / "outputs.pt")
    for each, own in zip(outputs, photos, strict=True):
        assert_close(each, net, own)
    check_metadata(metadata)


def test_pt2_refuses_a_side_that_is_too_short(files):
    program = torch.export.load(files / "wetr_iter_5.pt2").module()
    with pytest.raises(AssertionError, match="74"):
        program(torch.zeros(1, 3, 96, 73, dtype=torch.uint8))


def test_the_program_says_what_it_wrote_and_leaves_one_file(files, tmp_path, monkeypatch, capsys):
    add_toy(monkeypatch)
    program = torch.export.load(files / "wetr_iter_5.pt2")
    monkeypatch.setattr(work, "make_program", lambda model: program)
    path = tmp_path / "folder" / "part.pt2"
    run(monkeypatch, f"ckpt={files}/wetr_iter_5.pth", "format=torch", f"output={path}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"written   {path}, ")
    assert lines[-1] == "outputs   probability"
    assert [each.name for each in path.parent.iterdir()] == ["part.pt2"]


HEADS = {"segmentation": {"decoder"}, "cam": {"classifier"}, "all": {"decoder", "classifier"}}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_holds_what_it_needs_alone(part, monkeypatch, tmp_path):
    add_toy(monkeypatch)
    save_toy(tmp_path / "toy.pth")
    model, photos = Exportable(load(tmp_path / "toy.pth"), part).eval(), photographs((1, 80, 90))
    assert {name for name, _ in model.method.net.named_children()} == {"backbone"} | HEADS[part]
    with torch.no_grad():
        outputs = model(torch.from_numpy(photos.transpose(0, 3, 1, 2)))
    assert tuple(outputs) == PARTS[part]
    wanted = expected(random_net("toy", decoder_dim=16), photos)
    for name, output in outputs.items():
        assert (output - wanted[name]).abs().max() < TOLERANCE[name]


MISTAKES = {
    "format": (
        ["format=tflite"],
        "error: format=tflite is not known, need onnx, torch, safetensors, hf: set format=onnx",
    ),
    "part": (["part=logits"], "error: part=logits is not known, need segmentation, cam, all"),
    "ending": (["format=torch", "output=model.onnx"], "error: output=model.onnx does not end in .pt2"),
    "folder": (["output=/dev/null/model.onnx"], "error: output=/dev/null/model.onnx cannot be written"),
    "checkpoint": (["ckpt=nowhere.pth"], "error: ckpt=nowhere.pth: no such file"),
    "misspelt": (["opset=17"], "error: opset is no setting of this run"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line(mistake, files, tmp_path, monkeypatch):
    add_toy(monkeypatch)
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *([] if "checkpoint" in mistake else [f"ckpt={files}/wetr_iter_5.pth"]), *arguments)
    assert str(stop.value).startswith(message)
    assert len(str(stop.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert not list(files.glob(".*"))


def test_a_missing_package_is_named(files, tmp_path, monkeypatch):
    add_toy(monkeypatch)
    monkeypatch.setattr(work, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"needs onnx and onnxscript.*pip install 'wsss-afa\[export\]'"):
        run(monkeypatch, f"ckpt={files}/wetr_iter_5.pth", f"output={tmp_path}/model.onnx")
    assert not list(tmp_path.iterdir())


def test_methods_that_lack_something():
    plain = Exportable(untrained(supervised_recipe()), "segmentation")
    assert plain.outputs == ("probability",)
    with pytest.raises(UserError, match="part=cam needs cam and score, Supervised has none"):
        Exportable(untrained(supervised_recipe()), "cam")
    of_timm = supervised_recipe("backbone=timm_pyramid", "backbone.name=resnet10t")
    with pytest.raises(UserError, match="backbone TimmPyramid cannot be exported for images of any size"):
        Exportable(untrained(of_timm), "segmentation")
