"""Values that no program can work with end in one line that names the setting."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from wsss_afa.cli.ranges import check_ranges
from wsss_afa.errors import UserError
from wsss_afa.files import CONFIG_DIR

WRONG = [
    "data.batch_size=0", "data.num_workers=-1", "optim.warmup_steps=-1", "seed=-1",
    "seed=99999999999", "trainer.accumulate_grad_batches=0", "trainer.gradient_clip_val=-1",
    "trainer.val_check_interval=0", "callbacks.pictures.num_images=-3", "patience=abc", "patience=null",
    "patience=0", "method.weights.seg=-1", "compile=abc",
    "deterministic=3", "resume=3", "resume=[a]", "resume=true",
]  # fmt: skip


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


def test_defaults_and_other_kinds_of_values_pass():
    for override in ("seed=0", "trainer.val_check_interval=00:12:00:00", "trainer.gradient_clip_val=null"):
        check_ranges(config(override))
    for program in ("evaluate", "predict", "prepare", "app"):
        check_ranges(config(program=program))
