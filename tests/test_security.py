"""What strangers wrote, checkpoints, archives, shards, text, images, runs no code and stays in its place."""

from __future__ import annotations

import ast
import io
import json
import os
import struct
import tarfile
import zlib
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import EpsImagePlugin, Image

from recipes import small_recipe
from wsss_afa.callbacks.checkpoints import BestAndLast
from wsss_afa.callbacks.resume import resume_point
from wsss_afa.data.archive import unpack
from wsss_afa.data.coco import COCO, COCO_CLASSES, read_category_ids
from wsss_afa.data.folder.tags import read_tags
from wsss_afa.data.images import read_image, read_kind, read_mask
from wsss_afa.data.label_folder import LabelFolder, label_path
from wsss_afa.data.shard_writer import write_shards
from wsss_afa.data.shards import ShardSet, _read_index, read_manifest
from wsss_afa.data.synthetic import SyntheticScenes
from wsss_afa.data.voc import parse_tags
from wsss_afa.errors import UserError
from wsss_afa.methods.recipe import build, load
from wsss_afa.models.backbones.timm_pyramid import TimmPyramid
from wsss_afa.models.weights import read_weights
from wsss_afa.programs.prepare import read_manifest as read_preparation

SOURCE = Path(__file__).parents[1] / "src" / "wsss_afa"
SOURCES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))
ALLOWED = {
    "data/images.py": ["Image.open"],  # with the formats that Pillow decodes by itself
    "methods/recipe.py": ["importlib.import_module"],  # of names below the library's own packages
}


class Evil:
    """Unpickled as code, this would make a folder."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def one_line(error):
    return len(str(error.value).splitlines()) == 1


# Checkpoints

DOORS = {
    "ckpt=": load,
    "resume=": lambda path: resume_point(str(path), path.parent / "none", {}),
    "pretrained=": lambda path: read_weights(str(path)),
    "pretrained= of timm": lambda path: TimmPyramid("resnet10t", pretrained=str(path)),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["x.ckpt", "x.pth", "x.bin"])
@pytest.mark.parametrize("door", DOORS)
def test_pickled_code_is_refused_wherever_weights_are_read(door, name, zipped, tmp_path):
    trace = tmp_path / "trace"
    content = {"state_dict": Evil(trace), "global_step": 1, "loops": {}, "wsss_afa": Evil(trace)}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="cannot be read") as error:
        DOORS[door](tmp_path / name)
    assert one_line(error)
    assert not trace.exists()


def test_pickled_code_among_a_runs_checkpoints_is_put_aside(tmp_path):
    torch.save({"global_step": Evil(tmp_path / "trace")}, tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match="is damaged and left out"):
        assert resume_point("auto", tmp_path, {}) is None
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt.damaged"]


def recipe(method=None, backbone=None):
    """A sound one, with other parts where they are given."""
    sound = small_recipe(class_names=("a",))
    method = sound["method"] if method is None else method
    backbone = sound["backbone"] if backbone is None else backbone
    return {"method": method, "backbone": backbone, "class_names": ["a"]}


def first_form(network, labels):
    return {"model": network, "pseudo_label": labels, "class_names": ["a"]}


def attacks(trace):
    mkdir = {"_target_": "os.mkdir", "_args_": [trace]}
    named = {"_target_": "os.mkdir", "path": trace}
    text = '{_target_: os.mkdir, _args_: ["%s"]}' % trace  # noqa: UP031
    method = recipe()["method"]
    old = {"_target_": "wsss_afa.models.afa.AFANet"}
    return {
        "the method": recipe(named),
        "the backbone": recipe(backbone=named),
        "a part of it": recipe({**method, "cam": named}),
        "in a list": recipe(backbone=[mkdir]),
        "in a tuple": recipe(backbone=(mkdir,)),
        "in a tuple in a list": recipe(backbone=[({"deep": [named]},)]),
        "an interpolation": recipe(backbone="${oc.create:%s}" % text),  # noqa: UP031
        "a name in parts": recipe(backbone={"_target_": "${oc.decode:os.mkdir}", "path": trace}),
        "one of ours, for its module": recipe(
            backbone={"_target_": "wsss_afa.files.os.mkdir", "path": trace}
        ),
        "a file with a trust of its own": recipe(
            {
                **method,
                "cam": {"_target_": "wsss_afa.methods.recipe.load", "path": trace, "trust": ["os.mkdir"]},
            }
        ),
        "through an environment": recipe({**method, "decoder_dim": "${oc.env:HOME}"}),
        "another container": recipe(backbone={1, 2}),
        "a key": recipe({**method, "${oc.env:HOME}": 1}),
        "in the first form": first_form({**old, "backbone": named}, {}),
        "in the labels of the first form": first_form(
            {**old, "backbone": recipe()["backbone"]}, {"cam": named}
        ),
    }


@pytest.mark.parametrize("attack", attacks("trace"))
def test_a_recipe_builds_nothing_but_ours(attack, tmp_path):
    """More of them in methods/test_recipe.py."""
    trace = tmp_path / "trace"
    torch.save({"wsss_afa": attacks(str(trace))[attack], "state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt: .*refused") as error:
        load(tmp_path / "x.ckpt")
    assert one_line(error)
    assert not trace.exists()


def test_the_recipe_that_the_attacks_alter_is_sound():
    assert build(recipe()).num_classes == 1


WEIGHTS = "http://127.0.0.1:9/weights.pth"
VIT = {
    "_target_": "wsss_afa.models.backbones.timm_vit.TimmViT",
    "name": "vit_tiny_patch16_224",
    "pretrained": WEIGHTS,
    "depth": 2,
    "model_args": {"checkpoint_path": "/nowhere.pth", "pretrained": True},
}


@pytest.mark.parametrize(
    "backbone", [{**recipe()["backbone"], "pretrained": WEIGHTS}, VIT], ids=["mit", "vit"]
)
def test_a_checkpoint_fetches_nothing(backbone, tmp_path):
    """Neither from an address that nobody answers at, nor from a file that is not there."""
    method, bare = recipe()["method"], {**backbone, "pretrained": None}
    state = build(recipe(method, bare | ({"model_args": {}} if backbone is VIT else {}))).state_dict()
    torch.save({"wsss_afa": recipe(method, backbone), "state_dict": state}, tmp_path / "x.ckpt")
    assert load(tmp_path / "x.ckpt").num_classes == 1


@pytest.mark.parametrize(
    "content",
    [
        5, [], {}, recipe(5), recipe({}), recipe(backbone={}), recipe(backbone=5),
        {**recipe(), "class_names": 3},
        recipe({**recipe()["method"], "decoder_dim": "x"}), recipe({**recipe()["method"], "_target_": "x"}),
        {"model": 5, "pseudo_label": {}}, {"model": {}, "pseudo_label": {}},
    ],
)  # fmt: skip
def test_a_broken_recipe_is_one_line(content, tmp_path):
    torch.save({"wsss_afa": content, "state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt: ") as error:
        load(tmp_path / "x.ckpt")
    assert one_line(error)


def test_a_former_best_is_not_deleted_elsewhere(tmp_path):
    """Lightning removes the file that a checkpoint calls the best so far."""
    victim = tmp_path / "precious"
    victim.write_text("mine")
    (tmp_path / "run").mkdir()
    keeper = BestAndLast(dirpath=str(tmp_path / "run"), filename="best", monitor="score", mode="max")
    path = f"{tmp_path}/run/../precious"
    keeper.load_state_dict(
        {"dirpath": keeper.dirpath, "best_k_models": {path: torch.tensor(0.1)}, "kth_best_model_path": path}
        | {"best_model_path": path, "best_model_score": torch.tensor(0.1), "kth_value": torch.tensor(0.1)}
        | {"last_model_path": ""}
    )
    strategy = SimpleNamespace(
        broadcast=lambda value: value,
        reduce_boolean_decision=lambda value, all=True: value,
        remove_checkpoint=lambda path: Path(path).unlink(),
    )
    trainer = SimpleNamespace(
        current_epoch=0, global_step=2, ckpt_path=None, save_checkpoint=lambda path, *_: Path(path).touch(),
        strategy=strategy, is_global_zero=True, loggers=[],
    )  # fmt: skip
    keeper._save_topk_checkpoint(trainer, {"score": torch.tensor(0.9), "epoch": torch.tensor(0)})
    assert victim.read_text() == "mine"
    assert (tmp_path / "run" / "best.ckpt").exists()


# Archives


def member(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


MEMBERS = {
    "a path that escapes": member("../evil"),
    "an absolute path": member("/tmp/evil"),  # noqa: S108 - never written
    "a symlink": member("evil", tarfile.SYMTYPE, "/etc"),
    "a hard link": member("evil", tarfile.LNKTYPE, "/etc/passwd"),
    "a device": member("evil", tarfile.CHRTYPE),
    "a pipe": member("evil", tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("kind", [*MEMBERS, "a bomb"])
def test_archives_stay_in_their_folder(kind, tmp_path):
    """More of them, zips too, in test_archive.py."""
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        info = MEMBERS.get(kind) or tarfile.TarInfo("zeros")
        info.size = 0 if kind in MEMBERS else 2**25
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(UserError, match="need plain files"):
        unpack([tmp_path / "x.tar.gz"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar.gz"]


# Shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "out"
    write_shards({"train": SyntheticScenes(4, 32)}, out, 1)
    return out


@pytest.fixture
def tampered(shards, tmp_path):
    """Writes a manifest with another row, or an index with another content, and reads it."""

    def write_and_read(index=None, **changes):
        manifest = json.loads((shards / "manifest.json").read_text())
        row = manifest["splits"]["train"]["shards"][0]
        content = (shards / row["file"]).with_suffix(".json").read_bytes() if index is None else index
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "00000.json").write_bytes(content)
        (tmp_path / "train" / "00000.tar").write_bytes((shards / row["file"]).read_bytes())
        row |= {"index_sha256": sha256(content).hexdigest(), **changes}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        _read_index.cache_clear()
        return ShardSet(read_manifest(str(tmp_path)), "train")

    return write_and_read


@pytest.mark.parametrize(
    "file",
    [
        "../other/00000.tar", "train/../../00000.tar", "/etc/00000.tar", "file:///etc/00000.tar",
        "..\\00000.tar", "http://127.0.0.1:9/00000.tar", "a.tar::file:///etc/passwd.tar", "C:/00000.tar",
        "train/passwd", "", 5,
    ],
)  # fmt: skip
def test_shards_lie_below_their_root(file, tampered):
    with pytest.raises(UserError, match="is no manifest of shards"):
        tampered(file=file)


@pytest.mark.parametrize("images", [10**12, -1, None])
def test_no_more_images_are_believed_than_fit(images, tampered):
    with pytest.raises(UserError, match="is no manifest of shards"):
        tampered(images=images)


def test_the_shards_that_the_attacks_alter_are_sound(tampered):
    assert tampered()[3]["image"].shape == (32, 32, 3)


@pytest.mark.parametrize("index", [b"5", b"[5]", b'[["a", [0], [1], null]]', b"[" * 100_000])
def test_a_broken_index_is_one_line(index, tampered):
    with pytest.raises(UserError, match="is no index") as error:
        tampered(index=index)[0]
    assert one_line(error)


# Text


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil"])
def test_labels_lie_in_their_folder(name, tmp_path):
    with pytest.raises(UserError, match="leads out of"):
        label_path(tmp_path / "labels", name)


def nested(path):
    path.write_text("[" * 100_000)
    return path


def read_deep_coco(root):
    (root / "val2014").mkdir()
    (root / "annotations").mkdir()
    nested(root / "annotations" / "instances_val2014.json")
    COCO(root, "val")


def read_deep_labels(root):
    nested(root / "manifest.json")
    LabelFolder(root, {})


READERS = {
    "tags": lambda root: read_tags(nested(root / "labels.json")),
    "tags by line": lambda root: read_tags(nested(root / "labels.jsonl")),
    "COCO": read_deep_coco,
    "COCO's ids": lambda root: read_category_ids(nested(root / "x.json")),
    "labels": read_deep_labels,
    "a preparation": lambda root: read_preparation(nested(root / "manifest.json").parent, "voc"),
    "shards": lambda root: read_manifest(str(nested(root / "manifest.json").parent)),
}


@pytest.mark.parametrize("reader", READERS)
def test_deep_nesting_is_one_line(reader, tmp_path):
    with pytest.raises(UserError) as error:
        READERS[reader](tmp_path)
    assert one_line(error)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("text", ["[" + "-" * 50_000 + "1]", "[" * 5000 + "]" * 5000, "[__import__('os')]"])
def test_lists_in_tag_files_are_no_programs(text, tmp_path):
    (tmp_path / "labels.csv").write_text(f'file,tags\na.jpg,"{text}"\n')
    with pytest.raises(UserError, match="broken list"):
        read_tags(tmp_path / "labels.csv")


@pytest.mark.parametrize("entity", ['<!ENTITY a "aaaa">', '<!ENTITY a SYSTEM "file:///etc/passwd">'])
def test_annotations_have_no_entities(entity, tmp_path):
    (tmp_path / "a.xml").write_text(
        f"<!DOCTYPE x [{entity}]><annotation><object><name>&a;</name></object></annotation>"
    )
    with pytest.raises(UserError):
        parse_tags(tmp_path / "a.xml")


def coco_folder(root, file_name="7.jpg", segmentation=()):
    """One image of a cat in COCO's layout; it lies beside the folder of images, too."""
    (root / "annotations").mkdir()
    (root / "val2014").mkdir()
    for path in (root / "val2014" / "7.jpg", root / "secret.jpg"):
        Image.new("RGB", (60, 40)).save(path)
    cat = {"image_id": 7, "category_id": 17, "iscrowd": 0, "segmentation": segmentation}
    images = [{"id": 7, "file_name": file_name, "height": 40, "width": 60}]
    categories = [{"id": i, "name": name} for i, name in enumerate(COCO_CLASSES, 2)]
    content = {"images": images, "annotations": [cat], "categories": categories}
    (root / "annotations" / "instances_val2014.json").write_text(json.dumps(content))


def test_images_of_coco_lie_in_their_folder(tmp_path):
    for number, name in enumerate(("../secret.jpg", str(tmp_path / "1" / "secret.jpg"))):
        (tmp_path / str(number)).mkdir()
        coco_folder(tmp_path / str(number), name)
        with pytest.raises(UserError, match="lacks 1 of the"):
            COCO(tmp_path / str(number), "val")


def box(left, top, right, bottom):
    return [[float(x) for x in (left, top, right, top, right, bottom, left, bottom)]]


REGIONS = {
    "far corners": box(0, 0, 1e9, 1e9),
    "no number": box(float("nan"), 0, 5, 5),
    "infinity": box(float("inf"), 0, 5, 5),
    "another size": {"counts": [10**9], "size": [10**5, 10**4]},
    "another size, packed": {"counts": "PPYo0", "size": [10**6, 10**6]},
}


@pytest.mark.parametrize("case", REGIONS)
def test_regions_do_not_fill_the_memory(case, tmp_path):
    """Outlines and run lengths go to a library in C that believes them."""
    coco_folder(tmp_path, segmentation=REGIONS[case])
    images = COCO(tmp_path, "val", with_mask=True, cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match="mend the file"):
        images[0]


# Images


def png(width, height):
    """A PNG of a few bytes that says it has many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_pixel_bombs_do_not_go_off(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60_000, 60_000))
    with pytest.raises(UserError, match=r"more than .* pixels"):
        read_image(path)
    with pytest.raises(UserError, match=r"more than .* pixels"):
        read_mask(path, (10, 10))
    assert read_kind(path) == ""


def test_no_program_is_started_for_an_image(tmp_path, monkeypatch):
    """PostScript under the name of a photograph: Pillow would call Ghostscript."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", pytest.fail)
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with Image.open(path) as image:
        assert image.format == "EPS", "or this shows nothing"
    with pytest.raises(UserError, match="cannot be read as an image"):
        read_image(path)
    with pytest.raises(UserError, match="cannot be read as an image"):
        read_mask(path, (10, 10))


# The sources

FORBIDDEN_IMPORTS = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "np.load", "numpy.load", "yaml.load",
    "torch.jit.load", "torch.hub.load", "importlib.import_module", "Image.open", "tempfile.mktemp",
}  # fmt: skip
PLAIN_ONLY = {"torch.load", "load_state_dict", "load_state_dict_from_hf", "trainer.fit"}
"""Calls that read weights: they must say ``weights_only=True``."""


def calls(tree):
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def findings(tree):
    """What a source must not have."""
    found = sorted(FORBIDDEN_IMPORTS & set(imported(tree)))
    for call in calls(tree):
        name, settings = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
        method = name.rpartition(".")[2]
        if name in FORBIDDEN_CALLS or method in {"extractall", "load_from_checkpoint"}:
            found.append(name)
        if name in PLAIN_ONLY and settings.get("weights_only") != "True":
            found.append(f"{name} without weights_only=True")
        if settings.get("shell") == "True":
            found.append(f"{name} with a shell")
    return found


@pytest.mark.parametrize("path", SOURCES)
def test_no_source_runs_what_it_reads(path):
    assert findings(ast.parse((SOURCE / path).read_text(encoding="utf-8"))) == ALLOWED.get(path, [])


def test_the_search_finds_what_it_is_for():
    text = """
import pickle
from yaml import load
eval(text); torch.load(path); torch.load(path, weights_only=False); model.eval(); re.compile(text)
subprocess.run(command, shell=True); tar.extractall(); Module.load_from_checkpoint(path)
"""
    assert findings(ast.parse(text)) == [
        "pickle", "yaml", "eval",
        "torch.load without weights_only=True", "torch.load without weights_only=True",
        "subprocess.run with a shell", "tar.extractall", "Module.load_from_checkpoint",
    ]  # fmt: skip
