"""Files that ask for more than they have: refused in a line, at once, and before anything is made."""

from __future__ import annotations

import io
import time
import zipfile

import pytest
import torch

import fuzz_recipes
from recipes import small_recipe
from wsss_afa.callbacks.resume import resume_point
from wsss_afa.errors import UserError
from wsss_afa.files import check_stored
from wsss_afa.methods import recipe as recipes
from wsss_afa.methods.recipe import build, load
from wsss_afa.methods.schema import check_parts, check_settings
from wsss_afa.methods.untrusted import UnreadableError, read_plain
from wsss_afa.models.weights import read_weights


def write(path, content):
    torch.save(content, path)
    return path


def deflated(path):
    """The same file, compressed."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    return path


def many_times(levels):
    content = [0]
    for _ in range(levels):
        content = [content] * 10
    return content


def itself():
    content = []
    content.append(content)
    return content


GREEDY = {
    "strides of 0": torch.zeros(1).expand(10**6, 10**6),
    "one storage many times": [torch.zeros(1000)] * 1000,
    "sparse": torch.zeros(3).to_sparse(),
    "without content": torch.zeros(10**9, device="meta"),
    "complex": torch.zeros(3, dtype=torch.cfloat),
    "a list of lists of lists": many_times(12),
    "a list that holds itself": itself(),
}


@pytest.mark.parametrize("kind", GREEDY)
def test_a_file_that_outgrows_itself_is_refused(kind, tmp_path):
    path, start = (
        write(tmp_path / "x.ckpt", {"state_dict": {"a": GREEDY[kind]}, "wsss_afa": {}}),
        time.process_time(),
    )
    with pytest.raises(UnreadableError) as error:
        read_plain(path)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match=r"ckpt=.*x\.ckpt: "):
        load(path)
    assert time.process_time() - start < 10


def test_a_compressed_file_is_refused_wherever_weights_are_read(tmp_path):
    path = deflated(write(tmp_path / "x.ckpt", {"a": torch.zeros(10**6)}))
    assert path.stat().st_size < 10**5
    for door in (load, read_weights, lambda file: resume_point(file, tmp_path / "none", {})):
        with pytest.raises(UserError, match="bytes are packed into"):
            door(str(path))
    with pytest.raises(ValueError, match="does not compress"):
        check_stored(path)


def test_what_training_writes_is_not_refused(tmp_path):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(30))])
    content = {"state_dict": {"a": torch.zeros(20)}, "o": optimizer.state_dict(), "n": [1, None, "x", (2, 3)]}
    assert read_plain(write(tmp_path / "x.ckpt", content)).keys() == content.keys()


def test_a_disk_that_fails_is_no_broken_file(tmp_path, monkeypatch):
    path = write(tmp_path / "x.ckpt", {})
    monkeypatch.setattr(
        "wsss_afa.methods.untrusted.check_stored", lambda _: (_ for _ in ()).throw(OSError(5, "EIO"))
    )
    with pytest.raises(OSError, match="EIO"):
        read_plain(path)
    with pytest.raises(UserError, match=r"x\.ckpt: .*EIO"):
        load(path)


# Settings

WRONG = [
    ("method", "cam.scales", [1e-9], "0.1 to 3"),
    ("method", "cam.scales", [1.0] * 500, "1 to 8"),
    ("method", "cam.scales", "x", "need a list"),
    ("method", "cam", {}, "MultiScaleCAM"),
    ("method", "cam", None, "MultiScaleCAM"),
    ("method", "decoder_dim", 10**7, "1 to 65536"),
    ("method", "decoder_dim", True, "whole number"),
    ("method", "refine.num_iter", 10**9, "0 to 200"),
    ("method", "refine.dilations", [0], "1 to 256"),
    ("method", "propagate.num_log_steps", 10**6, "0 to 12"),
    ("method", "downscale", 0, "1 to 16"),
    ("method", "low", float("nan"), "need a number"),
    ("method", "phases", {"classification": "x"}, r"phases\.classification='x', need a whole number"),
    ("method", "labels", "x" * 5000, "characters"),
    ("method", "other", 1, "no setting of AFA"),
    ("backbone", "strides", [0, 2, 2, 1], "1 to 64"),
    ("backbone", "strides", [4, 2, 2, None], "whole number"),
    ("backbone", "variant", 5, "need a text"),
    ("backbone", "drop_path_rate", 2, "0 to 1"),
]


@pytest.mark.parametrize(("part", "setting", "value", "need"), WRONG)
def test_a_setting_of_another_type_or_size_is_named_before_anything_is_built(
    part, setting, value, need, monkeypatch
):
    monkeypatch.setattr(recipes, "instantiate", pytest.fail)
    recipe = small_recipe()
    *path, last = [part, *setting.split(".")]
    place = recipe
    for name in path:
        place = place[name]
    place[last] = value
    with pytest.raises(UserError, match=need) as error:
        build(recipe)
    assert f"{part}.{setting}" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_part_of_another_kind_is_refused():
    recipe = small_recipe()
    recipe["method"]["refine"] = recipe["method"]["cam"]
    with pytest.raises(
        UserError, match=r"method\.refine\._target_=.*MultiScaleCAM, need .*PixelAdaptiveRefinement"
    ):
        build(recipe)
    recipe["method"]["refine"] = {
        "_target_": "wsss_afa.models.backbones.timm_pyramid.TimmPyramid",
        "name": "x",
    }
    with pytest.raises(UserError, match=r"method\.refine\._target_"):
        build(recipe)


CLASSES = [[], [""], ["a", "a"], "abc", None, 3, [1], ["a", None], ["x" * 2000], {"a": 1}, ["a"] * 70_000]


@pytest.mark.parametrize("class_names", CLASSES, ids=lambda names: repr(names)[:12])
def test_class_names_are_a_list_of_names(class_names):
    with pytest.raises(UserError):
        build({**small_recipe(), "class_names": class_names})


def test_a_class_may_be_called_what_it_likes(tmp_path):
    names = ["???", "${seed}", "_target_", "[/b]", "ö"]
    made = build({**small_recipe(), "class_names": names})
    state = {f"net.{name}": value for name, value in made.net.state_dict().items()}
    path = write(
        tmp_path / "x.ckpt", {"wsss_afa": {**small_recipe(), "class_names": names}, "state_dict": state}
    )
    assert load(path).recipe["class_names"] == names


def test_weights_decide_whether_a_network_is_made(tmp_path, monkeypatch):
    """A large one of a small file is known by its sizes; its memory is never asked for."""
    recipe = small_recipe("method.decoder_dim=60000")
    made = []
    build_one = recipes.build

    def watch(*arguments):
        method = build_one(*arguments)
        made.append(next(method.net.parameters()).device.type)
        return method

    monkeypatch.setattr(recipes, "build", watch)
    state = {f"net.{name}": value for name, value in build(small_recipe()).net.state_dict().items()}
    with pytest.raises(UserError, match="not this variant's"):
        load(write(tmp_path / "x.ckpt", {"wsss_afa": recipe, "state_dict": state}))
    assert made == ["meta"]


TIMM = "wsss_afa.models.backbones.timm_"
FETCHING = {
    "left out": {"_target_": f"{TIMM}vit.TimmViT", "name": "vit_tiny_patch16_224", "depth": 2},
    "named": {
        "_target_": f"{TIMM}vit.TimmViT",
        "name": "vit_tiny_patch16_224",
        "depth": 2,
        "pretrained": "a/b",
    },
    "true": {"_target_": f"{TIMM}pyramid.TimmPyramid", "name": "resnet10t", "pretrained": True},
    "left out of a pyramid": {"_target_": f"{TIMM}pyramid.TimmPyramid", "name": "resnet10t"},
    "in the model's name": {"_target_": f"{TIMM}pyramid.TimmPyramid", "name": "hf-hub:a/b"},
    "by position": {
        "_target_": "wsss_afa.models.backbones.mix_transformer.mix_transformer",
        "_args_": ["tiny", "a/b"],
    },
}


@pytest.mark.parametrize("how", FETCHING)
def test_no_weights_are_fetched_for_a_checkpoint(how, tmp_path, monkeypatch):
    for door in ("wsss_afa.models.weights._locate", "timm.models._builder.load_pretrained"):
        monkeypatch.setattr(door, pytest.fail)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", pytest.fail)
    recipe = {**small_recipe("method=supervised"), "backbone": FETCHING[how]}
    with pytest.raises(UserError):
        load(write(tmp_path / "x.ckpt", {"wsss_afa": recipe, "state_dict": {"net.a": torch.zeros(1)}}))


def test_a_users_own_part_may_take_what_it_likes():
    recipe = small_recipe()
    recipe["method"]["refine"] = {"_target_": "own.Part", "anything": "at all"}
    check_settings(recipe["method"], "method")


def test_types_of_a_programs_parts_are_checked_and_missing_values_are_not():
    data = {"_target_": "wsss_afa.data.folder.content.FolderDataModule", "root": "???", "batch_size": 8}
    check_parts({"data": data, "seed": 0, "callbacks": {"a": {"b": 1}}})
    with pytest.raises(UserError, match=r"data\.batch_size='x', need a whole number"):
        check_parts({"data": {**data, "batch_size": "x"}})
    with pytest.raises(UserError, match=r"""data\.root=2012, need a text: write "data\.root='2012'"$"""):
        check_parts({"data": {**data, "root": 2012}})
    with pytest.raises(UserError, match=r"trainer\.precision='fp16', need null or one of .*16-mixed"):
        check_parts({"trainer": {"_target_": "lightning.Trainer", "precision": "fp16"}})


def test_altered_checkpoints_are_refused_or_work():
    counts, wrong = fuzz_recipes.run(cases=30, seed=0, seconds=20)
    assert not wrong
    assert counts["refused"] > counts["works"] > 0
