"""WeCLIP and WeCLIP+: what a phase computes, edges, mistakes, towers, files of the authors' programs."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from safetensors.torch import save_file

from clip_method import Colours, batch_of, colour_photo, colour_tower, weclip
from quiet import QUIET
from vit_method import check_finite
from wsss_afa.errors import UserError
from wsss_afa.methods.recipe import load
from wsss_afa.methods.weclip.method import WeCLIP
from wsss_afa.ops.attention_walk import AttentionWalk
from wsss_afa.ops.par import PixelAdaptiveRefinement

pytestmark = QUIET
BOTH = ("weclip", "weclip_plus")
TERMS = {"weclip": {"seg", "aff"}, "weclip_plus": {"seg", "aff", "cross", "dice"}}


@pytest.fixture(scope="module")
def methods():
    return {name: weclip(method=name) for name in BOTH}


@pytest.mark.parametrize(
    ("experiment", "name", "step", "source", "layers", "confidence"),
    [
        ("voc_weclip", "weclip", 9144, "static", 8, None),
        ("voc_weclip", "weclip", 9145, "affinity", 6, None),
        ("coco_weclip", "weclip", 40000, "static", 8, None),
        ("coco_weclip", "weclip", 40001, "affinity", 10, None),
        ("voc_weclip_plus", "weclip_plus", 18000, "affinity", 6, None),
        ("voc_weclip_plus", "weclip_plus", 18001, "affinity", 6, 0.75),
        ("coco_weclip_plus", "weclip_plus", 40001, "affinity", 8, 0.75),
    ],
)
def test_each_phase_has_the_labels_of_the_schedule(experiment, name, step, source, layers, confidence):
    own = f"~method.layers +method.layers={{static: 8, affinity: {layers}}}".split(" ", 1)
    method = weclip(f"+experiment={experiment}", *own, method=name)
    assert method.at(method.labels_from, step) == source
    assert method.layers[source] == layers
    assert method.at(method.confidence, step) == confidence


@pytest.mark.parametrize("name", BOTH)
def test_losses_are_those_that_have_a_weight(methods, name):
    assert methods[name].losses(batch_of(), 0).keys() == TERMS[name]
    less = (
        weclip("method.weights.cross=0", "method.weights.dice=0", method=name) if name != "weclip" else None
    )
    assert less is None or less.losses(batch_of(), 0).keys() == TERMS["weclip"]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("tags", "box"),
    [
        (((1, 0, 1), (0, 1, 0)), (0, 64, 0, 64)),
        (((0, 0, 0), (0, 0, 0)), (0, 64, 0, 64)),
        (((0, 1, 0), (0, 0, 0)), (5, 6, 7, 8)),
        (((1, 1, 1), (0, 1, 0)), (0, 0, 0, 0)),
    ],
    ids=["tags", "no class", "hardly a pixel", "nothing but padding"],
)
def test_no_batch_makes_a_loss_nan(methods, precision, name, tags, box):
    check_finite(methods[name], batch_of(tags, box), [0, 20000], precision)


@pytest.mark.parametrize("name", BOTH)
def test_padding_is_ignored_and_an_image_without_tags_is_background(methods, name):
    batch = batch_of(((1, 0, 1), (0, 0, 0)), (0, 48, 0, 64))
    method = methods[name]
    passed = method.net.run(batch["image"], 4)
    label = method.within(batch, method.label(batch, passed, "affinity"))
    assert (label[:, 48:] == 255).all()
    assert not label[1, :48].any()
    assert set(label[0, :48].unique().tolist()) <= {0, 1, 3}
    assert (method.mixed(label, passed.segmentation, 20000)[:, 48:] == 255).all()
    released = weclip("method.label_padding=true", method=name)
    assert (released.within(batch, released.label(batch, passed, "static")) != 255).all()


def test_sure_pixels_are_labelled_by_the_segmentation(methods):
    method = methods["weclip_plus"]
    logits = torch.zeros(1, 4, 2, 2)
    logits[0, 3, 0, 0], logits[0, 2, 1, 1] = 20.0, 1.0
    label = torch.tensor([[[1, 1], [255, 1]]])
    assert method.mixed(label, logits, 20000).tolist() == [[[3, 1], [255, 1]]]
    assert method.mixed(label, logits, 0) is label


@pytest.mark.parametrize("name", BOTH)
def test_only_fusion_and_decoder_are_trained(methods, name):
    method = methods[name]
    kinds = method.parameter_kinds()
    assert not kinds["encoder"]
    assert not kinds["norm"]
    trained = {id(parameter) for parameter in chain(*kinds.values())}
    towers = [method.net.backbone] + ([method.net.dino] if name == "weclip_plus" else [])
    for tower in towers:
        assert not any(part.training for part in tower.modules())
        assert not trained & {id(parameter) for parameter in tower.parameters()}
    method.zero_grad()
    batch = batch_of()
    method.total(method.losses(batch, 0), 0).backward()
    assert all(parameter.grad is not None for parameter in method.parameters() if id(parameter) in trained)
    optimizer, _ = method.optim(kinds)
    rate = {"weclip": 2e-3, "weclip_plus": 2e-4}[name]
    rates = {group["name"]: group["initial_lr"] for group in optimizer.param_groups}
    assert rates["decoder"] == rates["head"] == pytest.approx(rate)


def test_static_labels_are_of_the_frozen_tower_alone():
    """A tower that knows colours labels them, whatever fusion and decoder have learned."""
    walk, phases = AttentionWalk(0.4, inclusive=True), {"static": 0}
    method = WeCLIP(
        colour_tower(), 2, ["red", "blue"], Colours(), walk, PixelAdaptiveRefinement(20), phases,
        {"seg": 1.0, "aff": 0.1}, "static", {"static": 3, "affinity": 3}, {}, decoder_dim=8, decoder_heads=2,
    )  # fmt: skip
    image, mask = colour_photo()
    batch = {"image": image, "class_label": torch.ones(1, 2), "valid_box": torch.tensor([[0, 96, 0, 128]])}
    label = method.label(batch, method.net.run(image, 3), "static")
    assert (label == mask).float().mean() > 0.97


def test_towers_of_files_stay_out_of_checkpoints(tmp_path):
    """Both of them: CLIP and DINOv2."""
    first = weclip(method="weclip_plus")
    for part in ("backbone", "dino"):
        save_file(getattr(first.net, part).state_dict(), tmp_path / f"{part}.safetensors")
    files = (f"backbone.pretrained={tmp_path}/backbone.safetensors",
             f"method.dino.pretrained={tmp_path}/dino.safetensors")  # fmt: skip
    method = weclip(*files, method="weclip_plus")
    checkpoint = {"state_dict": dict(method.state_dict())}
    method.on_save_checkpoint(checkpoint)
    kept = {key.split(".")[1] for key in checkpoint["state_dict"]}
    assert kept == {"fusion", "dino_fusion", "decoder", "texts", "scenes"}
    torch.save(checkpoint, tmp_path / "a.ckpt")
    loaded = load(tmp_path / "a.ckpt").eval()
    image = batch_of()["image"]
    assert torch.equal(loaded.segment(image), method.eval().segment(image))
    assert torch.equal(loaded.net.texts, method.net.texts)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.labels_from=par", "method.labels_from=par is not known; need static or affinity"),
        ("method.labels_from={early: static}", "method.labels_from names the phase early"),
        ("method.confidence={never: 0.5}", "method.confidence names the phase never"),
        ("~method.layers.static", "need a number for static and affinity"),
        ("method.fused_blocks=4", "fused_blocks=4: need 1 to 3"),
        ("method.cam_input=-1", "cam_input=-1, need -4 to -2"),
        ("backbone.frozen=false", "set backbone.frozen=true"),
        ("method.dino.frozen=false", r"set method\.dino\.frozen=true"),
    ],
)
def test_mistakes_are_named(override, words):
    with pytest.raises(Exception, match=words):
        weclip(f"++{override}" if not override.startswith("~") else override, method="weclip_plus")


# Files of the authors' programs


RENAMED = (
    ("backbone.patch_embed.proj.", "encoder.visual.conv1."), ("backbone.norm_pre.", "encoder.visual.ln_pre."),
    ("backbone.norm.", "encoder.visual.ln_post."),
    ("backbone.blocks.", "encoder.visual.transformer.resblocks."),
    ("dino_fusion.mlps.0.0.", "dino_decoder_fts_fuse.linears_modulelist.0.proj."),
    ("dino_fusion.mlps.0.2.", "dino_decoder_fts_fuse.linears_modulelist.0.proj_2."),
    ("dino_fusion.fuse.", "dino_decoder_fts_fuse.linear_fuse."), ("dino.", "dino_encoder."),
    ("fusion.mlps.0.0.", "decoder_fts_fuse.linears_modulelist.0.proj."),
    ("fusion.mlps.0.2.", "decoder_fts_fuse.linears_modulelist.0.proj_2."),
    ("fusion.fuse.", "decoder_fts_fuse.linear_fuse."), ("decoder.blocks.", "decoder.transformer.resblocks."),
    ("decoder.predict.", "decoder.linear_pred."),
)  # fmt: skip
INSIDE = (
    (".attn.qkv.", ".attn.in_proj_"), (".attn.proj.", ".attn.out_proj."), (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."), (".norm1.", ".ln_1."), (".norm2.", ".ln_2."),
)  # fmt: skip


def released(method, text_state):
    """Weights as the programs write them, with a text tower and a copy of the positions."""
    own = dict(method.net.state_dict())
    state = {
        "encoder.visual.class_embedding": own.pop("backbone.cls_token")[0, 0],
        "encoder.visual.positional_embedding": own.pop("backbone.pos_embed")[0],
        "encoder.visual.positional_embedding_new": torch.zeros(3, 24),
        "encoder.visual.proj": own.pop("backbone.head.weight").T,
        "par.kernel": torch.zeros(8, 1, 3, 3),
    }
    for name in ("backbone.head.bias", "texts", "scenes"):
        own.pop(name)
    for name, value in own.items():
        old, new = next((old, new) for old, new in RENAMED if name.startswith(old))
        key = new + name.removeprefix(old)
        for ours, theirs in INSIDE if "resblocks" in key else ():
            key = key.replace(ours, theirs)
        state[key] = value
    return state | {f"encoder.{key}": value for key, value in text_state.items()}


@pytest.fixture(scope="module")
def text_state():
    """A text tower of random weights, under OpenAI's names."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    tower = open_clip.transformer.TextTransformer(77, 49408, 16, 1, 1, output_dim=8)
    return tower.state_dict()


@pytest.mark.parametrize("name", BOTH)
def test_a_released_file_is_loaded(name, text_state, tmp_path):
    """Widths are such that heads have 64 channels, as in all published towers."""
    sizes = "{embed_dim: 64, depth: 4, num_heads: 1, num_classes: 8}"
    more = ["++method.fused_blocks=1", f"++backbone.model_args={sizes}", "method.decoder_heads=8"]
    if name == "weclip_plus":
        more += ["method.dino.model_args={embed_dim: 64, depth: 2, num_heads: 1}"]
    method = weclip(*more, "backbone.fit=crop", method=name).eval()
    torch.save(released(method, text_state), tmp_path / "model_iter_30000.pth")
    loaded = load(tmp_path / "model_iter_30000.pth").eval()
    assert loaded.recipe["class_names"] == ["class_1", "class_2", "class_3"]
    image = batch_of()["image"]
    assert torch.equal(loaded.segment(image), method.segment(image))
    assert loaded.net.texts.shape == (3, 8)
    assert loaded.net.scenes.shape == (25, 8)
    assert loaded.net.texts.norm(dim=1).sub(1).abs().max() < 1e-5
    assert loaded.layers["affinity"] == 6
    assert (loaded.net.cam_input == 1) == loaded.class_gated == (name == "weclip_plus")


def test_a_released_file_without_its_text_tower_is_refused_in_a_line(text_state, tmp_path):
    method = weclip("++method.fused_blocks=1")
    torch.save(released(method, {}), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth: .*need CLIP's text tower") as error:
        load(tmp_path / "a.pth")
    assert "\n" not in str(error.value)
