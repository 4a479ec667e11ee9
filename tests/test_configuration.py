"""The files of ``conf/``: everything composes, methods are built, and an experiment says nothing twice."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from wsss_afa.files import CONFIG_DIR
from wsss_afa.methods.recipe import build, make_recipe

EXPERIMENTS = sorted(path.stem for path in Path(CONFIG_DIR, "experiment").glob("*.yaml"))
METHODS = sorted(path.stem for path in Path(CONFIG_DIR, "method").glob("*.yaml"))
SMALL = {
    "mix_transformer": ["backbone.variant=tiny"],
    "TimmViT": ["backbone.name=vit_tiny_patch16_224", "++backbone.model_args={embed_dim: 24, num_heads: 2}"],
}
"""Of each kind of backbone."""
CLIP = [
    "++backbone.model_args={embed_dim: 24, depth: 12, num_heads: 2, num_classes: 8}",
    "method.texts.pretrained=null",
]
"""Of methods that have texts, whose backbone keeps its name."""


def compose(*overrides):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        return hydra.compose("train", list(overrides))


def leaves(config, prefix=""):
    """Dotted names of the values in nested dictionaries."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def base_of(experiment):
    """What an experiment changes: the choices in its defaults, as overrides."""
    overrides = []
    for entry in experiment.pop("defaults", []):
        if isinstance(entry, dict):
            overrides += [f"{key.rpartition(' /')[-1]}={value}" for key, value in entry.items()]
        elif entry != "_self_":
            overrides.append(f"+experiment={entry}")
    return overrides


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_line_of_an_experiment_changes_something(name):
    text = Path(CONFIG_DIR, "experiment", f"{name}.yaml").read_text(encoding="utf-8")
    experiment = OmegaConf.to_container(OmegaConf.create(text))
    without, composed = compose(*base_of(experiment)), compose(f"+experiment={name}")
    for key, value in leaves(experiment):
        assert OmegaConf.select(composed, key) == value, key
        assert OmegaConf.select(without, key, throw_on_missing=False) != value, f"{key} repeats a default"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_method_of_an_experiment_is_built(name):
    """With the losses and the optimiser that it names, and parameters of every group that they train."""
    experiment = f"+experiment={name}"
    cfg = compose(experiment)
    small = CLIP if "texts" in cfg.method else SMALL[cfg.backbone._target_.rpartition(".")[-1]]
    dino = ["method.dino.pretrained=null"] if cfg.method.get("dino") else []
    cfg = compose(experiment, "backbone.pretrained=null", *small, *dino)
    names = ("a", "b") if "folder" in cfg.data._target_ else instantiate(cfg.data).class_names
    method = build(make_recipe(cfg, names), trust=None)
    assert method.num_classes == len(names)
    groups = {group["name"] for group in instantiate(cfg.optim)(method.parameter_kinds())[0].param_groups}
    assert groups == {"encoder", "norm", "head", "decoder"}
    firsts = [phase.first for phase in method.phases]
    assert 0 == firsts[0] <= firsts[-1] < cfg.trainer.max_steps
    assert firsts == sorted(firsts)
    assert set(method.weights) >= {"seg"}


@pytest.mark.parametrize("method", [name for name in METHODS if name != "supervised"])
@pytest.mark.parametrize("experiment", ["voc", "coco", "folder"])
def test_a_method_goes_with_every_data_set(experiment, method):
    """COCO's file has values of AFA's, the others have none that another method would not take."""
    cfg = compose(f"+experiment={experiment}", f"method={method}")
    assert cfg.method._target_.startswith("wsss_afa.methods.")


def test_every_sweep_composes():
    for path in sorted(Path(CONFIG_DIR, "sweep").rglob("*.yaml")):
        name = path.relative_to(Path(CONFIG_DIR, "sweep")).with_suffix("").as_posix()
        if name != "optuna":  # chooses a sweeper that is another package's
            folder, _, row = name.rpartition("/")
            choice = [f"+sweep={folder}", f"sweep/{folder}={row}"] if folder else [f"+sweep={name}"]
            assert compose("+experiment=synthetic", *choice).method.labels in ("cam", "par", "afa")
