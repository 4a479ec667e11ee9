"""Values that no program can work with end in one line that names the setting."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from wsss_afa.cli.kinds import KINDS, check_kinds
from wsss_afa.cli.ranges import check_ranges
from wsss_afa.errors import UserError
from wsss_afa.files import CONFIG_DIR

WRONG = [
    "data.batch_size=0", "data.num_workers=-1", "optim.warmup_steps=-1", "seed=-1",
    "seed=99999999999", "trainer.accumulate_grad_batches=0", "trainer.gradient_clip_val=-1",
    "trainer.val_check_interval=0", "callbacks.pictures.num_images=-3", "patience=0", "method.weights.seg=-1",
]  # fmt: skip
WRONG_KINDS = {
    "train": ["patience=abc", "patience=null", "compile=abc", "deterministic=3", "resume=3", "resume=[a]",
              "resume=true", "seed=1.5", "labels=3"],
    "evaluate": ["ckpt=-1", "trust=abc", "patience=nan"],
    "predict": ["ckpt=1.5", "out=3", "out=null", "cams=1", "device=[cpu]", "format=3", "source=null"],
    "pseudo_labels": ["background=abc", "background=[a,b]", "out=[a]", "format=null", "crf=0",
                      "thresholds=[a]"],
    "inspect_data": ["workers=abc", "workers=nan", "pictures=null", "pictures=1.5", "listed=[1]"],
    "export": ["ckpt=0", "part=1"],
    "prepare": ["attempts=1.5", "wait=abc"],
    "shard": ["shards=nan", "splits=3"],
    "sweep_report": ["runs=3", "strict=1"],
    "voc_server": ["competition=6", "data.root=3"],
    "app": ["port=abc", "host=1"],
}  # fmt: skip


def config(*overrides, program="train"):
    with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        composed = compose(
            program, ["+experiment=synthetic", *overrides] if program == "train" else list(overrides)
        )
    return OmegaConf.to_container(composed)


@pytest.mark.parametrize("override", WRONG)
def test_what_is_out_of_range_is_named(override):
    with pytest.raises(UserError, match=rf"^{override.partition('=')[0]}=.*need .*: set "):
        check_ranges(config(override))


@pytest.mark.parametrize(
    ("program", "override"), [(name, each) for name, words in WRONG_KINDS.items() for each in words]
)
def test_what_is_of_another_kind_is_named(program, override):
    with pytest.raises(UserError, match=rf"^{override.partition('=')[0]}=.*, need .*: (set|write) ") as error:
        check_kinds(config(override, program=program), program)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted(Path(CONFIG_DIR).glob("*.yaml")), ids=lambda path: path.stem)
def test_every_setting_of_a_program_has_its_kinds(path):
    loaded = OmegaConf.to_container(OmegaConf.load(path))
    own = {name for name, value in loaded.items() if not isinstance(value, dict)}
    checked_by_programs = {"dataset", "tags", "long_side", "tile", "overlap", "max_pixels"}
    assert own - {"defaults"} - checked_by_programs <= {*KINDS}
    check_kinds(config(program=path.stem), path.stem)


def test_defaults_and_other_kinds_of_values_pass():
    for override in ("seed=0", "trainer.val_check_interval=00:12:00:00", "trainer.gradient_clip_val=null"):
        check_ranges(config(override))
    for program in ("evaluate", "predict", "prepare", "app"):
        check_ranges(config(program=program))
