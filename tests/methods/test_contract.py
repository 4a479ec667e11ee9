"""What every method promises, over all files of ``conf/method``."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from fake_cuda import FakeCuda, FakeTensorMode, move_to_gpu, on_gpu
from quiet import QUIET
from two_processes import run_as_two
from untrained import save
from wsss_afa import evaluate, export, predict, pseudo_labels, train
from wsss_afa.files import CONFIG_DIR
from wsss_afa.inference.label_source import SEGMENTATION
from wsss_afa.methods.recipe import build, load, make_recipe
from wsss_afa.ops import attention_walk

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:The dirpath has changed")]
METHODS = sorted(path.stem for path in Path(CONFIG_DIR, "method").glob("*.yaml"))
SCENES = [
    "data=synthetic",
    "data.image_size=64",
    "data.num_classes=3",
    "data.train_images=8",
    "data.val_images=3",
]
TINY = {
    "mix_transformer": ["backbone.variant=tiny", "backbone.strides=[4,2,1,1]"],
    "TimmViT": [
        "backbone.name=vit_tiny_patch16_224",
        "++backbone.model_args={embed_dim: 24, depth: 3, num_heads: 2}",
    ],
}
"""A small backbone of each kind that methods have."""
CLIP = [
    "++backbone.model_args={embed_dim: 24, depth: 3, num_heads: 2, num_classes: 8}",
    "method.texts.pretrained=null",
]
"""A small tower of those methods that have texts, under the name of CLIP's."""
SMALL = {
    "excel": [
        "method.calibrated=1",
        "method.attended=2",
        "method.size=[64,64]",
        "method.dropout=0",
        "optim.head_multiplier=1",
        "optim.decoder_multiplier=1",
    ],
    "clip_es": ["method.layers=3"],
    "more": [],
    "weclip": [
        "method.layers={static: 2, affinity: 3}", "method.dropout=0", "optim.head_multiplier=1",
        "optim.decoder_multiplier=1",
    ],
    "weclip_plus": [
        "method.layers={static: 2, affinity: 3}", "method.dropout=0", "method.dino.pretrained=null",
        "++method.dino.model_args={embed_dim: 24, depth: 2, num_heads: 2}", "optim.head_multiplier=1",
        "optim.decoder_multiplier=1",
    ],
    "toco": ["method.projection={hidden: 32, bottleneck: 8, outputs: 24}", "method.crops.side=32"],
}  # fmt: skip
"""Small parts of single methods."""
CHOICES = {name: [f"method={name}"] for name in METHODS} | {
    "afa_on_frozen_vit": [
        "method=afa", "backbone=dinov2_small_frozen", "backbone.depth=2", "backbone.trainable_from=2",
        "method.classifier=positions", "method.classifier_dropout=0.5",
    ],
}  # fmt: skip
"""Every method on the backbone that it names itself, and AFA on a plain ViT."""
TOKENS = sorted(set(SMALL) - {"clip_es", "weclip"})
"""Methods without statistics of a batch and without dropout, which train. A tower of random weights attends
nearly evenly, and labels along its attention alone, WeCLIP's first ones, are made of rounding errors."""
FLIPS = {"excel": 0.01}
"""Share of a weight's entries that may differ: AdamW makes whole steps of a gradient that is next to 0."""
PHASE_STEPS = 2


def compose(*overrides):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        return hydra.compose("train", list(overrides))


def tiny(choice):
    """Overrides that make a choice small."""
    cfg = compose(*CHOICES[choice])
    small = CLIP if "texts" in cfg.method else TINY[cfg.backbone._target_.rpartition(".")[-1]]
    common = ["backbone.pretrained=null", *["method.decoder_dim=16"] * ("decoder_dim" in cfg.method)]
    return [*CHOICES[choice], *SCENES, *small, *common, *SMALL.get(choice, [])]


def trains(choice):
    """Whether a choice learns anything: it has phases then."""
    return "phases" in compose(*CHOICES[choice]).method


def phases(choice):
    """Phases of two steps each, in the order of the configuration."""
    cfg = compose(*CHOICES[choice])
    names = sorted(cfg.method.phases, key=lambda name: cfg.method.phases[name])
    return {name: PHASE_STEPS * index for index, name in enumerate(names)}


@pytest.fixture(scope="module")
def program():
    """Run a program in this process; it must not fail."""

    def call(module, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
            module.main()

    return call


@pytest.fixture(scope="module")
def labels(tmp_path_factory, program):
    """A folder of labels of the training scenes: half of each is of one class."""
    names = [f"train_{i:06d}" for i in range(8)]
    folder = tmp_path_factory.mktemp("labels")
    for name in names:
        label = np.zeros((64, 64), np.uint8)
        label[:, 32:] = 1
        Image.fromarray(label).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module", params=sorted(CHOICES))
def trained(request, tmp_path_factory, program, labels):
    """Name, folder and command of a run through all phases of a method, if it has any."""
    folder = tmp_path_factory.mktemp(request.param)
    if not trains(request.param):
        (folder / "checkpoints").mkdir()
        recipe = make_recipe(compose(*tiny(request.param)), ("disc", "box", "triangle"))
        save(build(recipe, trust=None), folder / "checkpoints" / "last.ckpt")
        return request.param, folder, []
    steps = phases(request.param)
    command = [*tiny(request.param), "data.batch_size=2", "trainer.accelerator=cpu"]
    command += ["optim.lr=1.0e-3", "optim.warmup_steps=0"]
    command += [f"method.phases.{name}={first}" for name, first in steps.items()]
    total = PHASE_STEPS * len(steps)
    command += [
        f"trainer.max_steps={total}",
        f"trainer.val_check_interval={total}",
        "trainer.log_every_n_steps=1",
    ]
    command += [
        "callbacks.pictures.num_images=1",
        "callbacks.steps.every_n_steps=1",
        f"callbacks.steps.keep={total}",
    ]
    if build(make_recipe(compose(*tiny(request.param)), ("a", "b", "c")), trust=None).needs_labels:
        command.append(f"labels={labels}")
    program(train, *command, f"hydra.run.dir={folder}")
    return request.param, folder, command


@pytest.fixture
def run(trained):
    """`trained`, of a method that learns."""
    if not trains(trained[0]):
        pytest.skip("it trains nothing")
    return trained


def test_losses_are_finite_in_each_phase(run):
    _, folder, _ = run
    rows = (folder / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/loss")
    losses = [float(value) for row in rows[1:] if (value := row.split(",")[column])]
    assert len(losses) == int(json.loads((folder / "metrics.json").read_text())["last"]["step"])
    assert np.isfinite(losses).all()


def test_a_killed_run_goes_on_bit_for_bit(run, program, tmp_path):
    """Of a run that is killed its newest checkpoint is left: here that of a step in the middle."""
    _, folder, command = run
    steps = sorted((folder / "checkpoints").glob("step_*.ckpt"))
    step = steps[len(steps) // 2]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / step.name).write_bytes(step.read_bytes())
    (tmp_path / "metrics.csv").write_bytes((folder / "metrics.csv").read_bytes())
    program(train, *command, f"hydra.run.dir={tmp_path}")
    ours, theirs = (
        torch.load(root / "checkpoints" / "last.ckpt", weights_only=True) for root in (tmp_path, folder)
    )
    assert ours["global_step"] == theirs["global_step"]
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value), name
    states = [each["optimizer_states"][0]["state"] for each in (ours, theirs)]
    for index, state in states[1].items():
        assert all(torch.equal(states[0][index][key], value) for key, value in state.items())


@pytest.mark.slow
def test_two_processes_learn_what_one_does_with_the_whole_batch(run, tmp_path):
    """Through all phases; of AFA, whose network has statistics of a batch, `test_processes` does it."""
    name, folder, command = run
    if name not in TOKENS:
        pytest.skip("its network has statistics of a batch, or its first labels hang on rounding")
    run_as_two(train, tmp_path, *command, f"hydra.run.dir={tmp_path}/run")
    runs = (tmp_path / "run", folder)
    two, one = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in runs
    )
    first = min((folder / "checkpoints").glob("step_*.ckpt"))
    start = torch.load(first, weights_only=True)["state_dict"]
    for key in (key for key in one if not key.endswith("qkv.bias")):  # keys have noise for a gradient
        moved, off = (one[key] - start[key]).abs().max(), (two[key] - one[key]).abs()
        far = off > max(1e-6, 0.02 * moved)
        assert far.sum() <= FLIPS.get(name, 0) * far.numel(), key


def test_a_checkpoint_rebuilds_the_method(trained):
    name, folder, _ = trained
    method = load(folder / "checkpoints" / "last.ckpt")
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert method.recipe["class_names"] == ["disc", "box", "triangle"]
    for key, value in method.net.state_dict().items():
        assert torch.equal(value, state[f"net.{key}"]), (name, key)


@torch.no_grad()
def test_one_pass_answers_what_two_do(trained):
    _, folder, _ = trained
    method = load(folder / "checkpoints" / "last.ckpt").eval()
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    scores, logits = method.classify(image), method.segment(image)
    passes = []
    first = next(each for each in method.backbone.modules() if isinstance(each, torch.nn.Conv2d))
    first.register_forward_hook(lambda *_: passes.append(1))
    found = method.answer(image)
    torch.testing.assert_close(found, (scores, logits))
    assert len(passes) == 1


def test_it_is_evaluated(trained, program, tmp_path):
    """An evaluation of the last checkpoint has the scores of the last validation, if there was one."""
    name, folder, _ = trained
    program(evaluate, f"ckpt={folder}/checkpoints/last.ckpt", *SCENES, "trainer.accelerator=cpu",
            f"hydra.run.dir={tmp_path}")  # fmt: skip
    ours = json.loads((tmp_path / "metrics.json").read_text())
    theirs = json.loads((folder / "metrics.json").read_text())["last"] if trains(name) else {}
    assert {name: ours[name] for name in theirs if name != "step"} == {
        name: value for name, value in theirs.items() if name != "step"
    }
    assert (tmp_path / "report.html").is_file()


def test_it_predicts(trained, program, tmp_path):
    _, folder, _ = trained
    pixels = np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    program(predict, f"ckpt={folder}/checkpoints/last.ckpt", f"source={tmp_path}/a.png",
            f"out={tmp_path}/out", "device=cpu", f"hydra.run.dir={tmp_path}/run")  # fmt: skip
    with Image.open(tmp_path / "out" / "masks" / "a.png") as mask:
        assert mask.size == (56, 40)


def test_it_makes_labels_from_every_source(trained, program, tmp_path):
    _, folder, _ = trained
    for source in (*load(folder / "checkpoints" / "last.ckpt").sources, SEGMENTATION):
        out = tmp_path / source
        program(pseudo_labels, f"ckpt={folder}/checkpoints/last.ckpt", *SCENES, f"source={source}",
                f"out={out}", "split=val", "trainer.accelerator=cpu",
                f"hydra.run.dir={tmp_path}/run_{source}")  # fmt: skip
        made = [np.asarray(Image.open(path)) for path in sorted(out.glob("*.png"))]
        assert len(made) == 3
        assert {value for label in made for value in np.unique(label)} <= {0, 1, 2, 3, 255}


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # torch.export's own
@pytest.mark.filterwarnings("ignore:No complete tensor found in the group:UserWarning")  # likewise
def test_its_file_runs_without_the_library(trained, program, tmp_path, monkeypatch):
    """Its graph gives the probabilities that the method gives.

    ONNX takes three times as long to write, so one method with a plain ViT stands for all of them here.
    """
    choice, folder, _ = trained
    method = load(folder / "checkpoints" / "last.ckpt").eval()
    if not method.export_heads:
        pytest.skip("it needs the images' tags")
    if choice == "afa":
        pytest.skip("test_export does it, in both forms")
    part = "all" if "cam" in method.export_heads else "segmentation"
    rgb = np.random.default_rng(0).integers(0, 255, (2, 3, 72, 88), np.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (method.mean, method.std))
    with torch.no_grad():
        expected = method.protocol.probabilities(method, (torch.from_numpy(rgb).float() - mean) / std)
    monkeypatch.setattr("logging.root.manager.disable", logging.WARNING)  # the tracer's take half of the time
    form, ending, run = ("onnx", "onnx", run_onnx) if choice == "weclip" else ("torch", "pt2", run_torch)
    path, ckpt = tmp_path / f"network.{ending}", folder / "checkpoints" / "last.ckpt"
    program(export, f"ckpt={ckpt}", f"part={part}", f"format={form}", f"output={path}")
    np.testing.assert_allclose(run(path, rgb), expected, atol=1e-4)


def run_torch(path, rgb):
    with torch.no_grad():
        return torch.export.load(path).module()(torch.from_numpy(rgb))["probability"]


def run_onnx(path, rgb):
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    return session.run(["probability"], {"image": rgb})[0]


@pytest.mark.parametrize("choice", sorted(CHOICES))
def test_a_gpu_is_left_to_itself(choice, labels, monkeypatch):
    """No tensor of a step or an evaluation is left on the CPU, and a step hardly waits for the GPU."""
    cfg = compose(*tiny(choice), "data.batch_size=2", "data.num_workers=0")
    data = instantiate(cfg.data)
    data.setup("fit")
    data.setup("validate")
    method = build(make_recipe(cfg, data.class_names), trust=None)
    data.normalize(method.mean, method.std, method.augmentation)
    if method.needs_labels:
        data.use_labels(labels)
    training, validation = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    method.setup("validate")
    with FakeTensorMode(), FakeCuda() as gpu:
        monkeypatch.setattr(attention_walk, "box_mask", gpu.box_mask)  # components are found on the CPU
        move_to_gpu(method)
        for phase in method.phases if trains(choice) else ():
            gpu.waits.clear()
            total = method.total(method.losses(on_gpu(training), phase.first), phase.first)
            assert total.device.type == "cuda"
            assert gpu.waits <= Counter(own_classes=1, box_mask=1), phase.name
        found = method.eval().validation_step(on_gpu(validation), 0)
        assert {label.device.type for label in found.values()} == {"cuda"}
