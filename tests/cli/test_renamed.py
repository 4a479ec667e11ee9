"""Overrides of old: each is answered with one of today that composes."""

import hydra
import pytest
from omegaconf import OmegaConf

from wsss_afa import evaluate, train
from wsss_afa.cli.renamed import CHOICES, SETTINGS, renamed
from wsss_afa.files import CONFIG_DIR


def composed(*overrides):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        return hydra.compose("train", list(overrides))


def test_all_that_is_named_exists():
    cfg = composed()
    for new in SETTINGS.values():
        assert OmegaConf.select(cfg, new.removesuffix("."), throw_on_missing=True) is not None, new
    for new in CHOICES.values():
        composed(new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pseudo_label=par", "method.labels=par"),
        ("pseudo_label=none,par,afa", "method.labels=cam,par,afa"),
        ("pseudo_label=par,given", "method.labels=par method=supervised"),
        ("loss=afa,afa_reg", "method.weights.reg=0,0.01"),
        ("+model=segmentation", "method=supervised"),
        ("model/backbone=timm", "backbone=timm_pyramid"),
        ("model.backbone.variant=b0,b1", "backbone.variant=b0,b1"),
        ("model.decoder_dim=64", "method.decoder_dim=64"),
        ("++pseudo_label.cam.scales=[1.0,0.5]", "++method.cam.scales=[1.0,0.5]"),
        ("~pseudo_label.low", "~method.low"),
        ("pseudo_label.start_step=2000,4000", "method.phases.segmentation=2001,4001"),
        ("pseudo_label.propagation_step=0", "method.phases.propagation=1"),
        ("loss.positive_weight=balanced", "method.classification.positive_weight=balanced"),
        ("loss.dense_energy.scale=0.25", "method.dense_energy.scale=0.25"),
        ("hydra.run.dir=pseudo_label=par", None),
        ("pseudo_labels.low=1", None),
        ("method.labels=par", None),
        ("--multirun", None),
    ],
)
def test_values_are_taken_along(old, new):
    assert renamed(old) == new


def test_a_program_ends_with_one_line(run, tmp_path):
    words = [
        "+experiment=synthetic",
        "pseudo_label=par",
        "loss.seg_weight=0.3",
        f"hydra.run.dir={tmp_path}/x",
    ]
    line = (
        "error: pseudo_label=par is now method.labels=par; loss.seg_weight=0.3 is now method.weights.seg=0.3"
    )
    for more in ([], ["-m"], ["--help"]):
        assert run(train, *words, *more) == (1, line)
    assert run(evaluate, "callbacks=pruning") == (1, "error: callbacks=pruning is now callbacks=default")
    assert not list(tmp_path.iterdir())
