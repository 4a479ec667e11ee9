"""What refinement and propagation can give: ``python -m wsss_afa.oracle data=voc data.root=…``.

No network takes part. Maps are made from the true masks, as coarse as activation maps, and so is affinity,
wrong to a known share; what PAR, a dense CRF and the random walk make of them is scored on the masks:

    refinement    maps of several coarseness: thresholded, after PAR, after a CRF, after both
    par           one map, over dilations, iterations, kernels and size of PAR (AFA, figure 4)
    propagation   one map, over false and missed affinity, radius, exponent and steps of the walk

Each half of the images is scored at the background score that suits the other half best; one confusion matrix
counts both.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from torch import Tensor

from wsss_afa.cli.entry_point import entry_point
from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.files import write_whole
from wsss_afa.metrics import class_iou, count_pairs
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.ops.dense_crf import DenseCRF
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.methods.afa.pseudo_labels import PseudoLabeler
from wsss_afa.ops.labels import class_scores, own_classes
from wsss_afa.ops.random_walk import RandomWalkPropagation
from wsss_afa.ops.images import resize
from wsss_afa.oracle_maps import KINDS, Scene, make_scene
from wsss_afa.oracle_report import draw, print_tables
from wsss_afa.types import Activation, AffinityTokens
from wsss_afa.errors import UserError
from wsss_afa.visualize import save_figure

Config = dict[str, Any]


class Labelled(NamedTuple):
    """One image under one setting."""

    study: str
    """Name of the study."""
    setting: Config
    """What tells it from the others of the study."""
    backgrounds: Sequence[float]
    """Scores β of the background."""
    labels: list[Tensor]
    """Of each β, (1, H, W) int64 in [0, C]."""


class Tally:
    """Confusion matrices of every setting, by half of the images and background score.

    Args:
        num_outputs: K, background included.
    """

    def __init__(self, num_outputs: int):
        self.num_outputs = num_outputs
        self._settings: dict[str, Labelled] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, result: Labelled, mask: Tensor, half: int) -> None:
        """Count one image, ``mask`` (1, H, W), in a half, 0 or 1."""
        key = json.dumps([result.study, result.setting])
        if key not in self._counts:
            shape = (2, len(result.backgrounds), self.num_outputs, self.num_outputs)
            self._settings[key] = result._replace(labels=[])
            self._counts[key] = torch.zeros(shape, dtype=torch.long)
        for counts, label in zip(self._counts[key][half], result.labels, strict=True):
            counts += count_pairs(label, mask, self.num_outputs)

    def records(self, study: str) -> list[Config]:
        """Settings of a study with ``miou`` in percent and each half's background score ``background``."""
        return [
            {**each.setting, **_cross_score(self._counts[key], each.backgrounds)}
            for key, each in self._settings.items()
            if each.study == study
        ]


def _cross_score(counts: Tensor, backgrounds: Sequence[float]) -> Config:
    """Score each half of (2, len(backgrounds), K, K) where the other half is best."""
    best = [max(range(len(half)), key=lambda b: float(class_iou(half[b]).nanmean())) for half in counts]
    chosen = best[::-1]
    confusion = counts[0, chosen[0]] + counts[1, chosen[1]]
    miou = round(100 * float(class_iou(confusion).nanmean()), 2)
    return {"miou": miou, "background": [backgrounds[b] for b in chosen]}


def refinement(scene: Scene, cfg: Config, crf: DenseCRF) -> Iterator[Labelled]:
    """Maps of every coarseness: as they are, after PAR, and some after a CRF or both."""
    own, few = cfg["backgrounds"], cfg["crf"]["backgrounds"]
    par = {key: cfg["coarse"][key] for key in ("dilations", "downscale")}
    steps = [cfg["coarse"]["iterations"]]
    for blur in cfg["coarse"]["blur"]:
        for dropped in cfg["coarse"]["dropped"]:
            cam = _enlarged(scene, blur, dropped)
            name = {"blur": blur, "dropped": dropped}
            plain = [_scores(cam, beta) for beta in own]
            yield Labelled("refinement", {**name, "method": "coarse"}, own, _best(scene, plain))
            _, refined = next(refine(scene, cam, own, iterations=steps, **par))
            yield Labelled("refinement", {**name, "method": "PAR"}, own, _best(scene, refined))
            if [blur, dropped] not in cfg["crf"]["maps"]:
                continue
            plain = [_scores(cam, beta) for beta in few]
            _, refined = next(refine(scene, cam, few, iterations=steps, **par))
            for method, maps in {"CRF": plain, "PAR + CRF": refined}.items():
                sharp = [_run_crf(scene, each, crf, cfg["crf"]) for each in maps]
                yield Labelled("refinement", {**name, "method": method}, few, _best(scene, sharp))


def par_settings(scene: Scene, cfg: Config) -> Iterator[Labelled]:
    """One map under every setting of PAR."""
    own, par = cfg["backgrounds"], cfg["par"]
    cam = _enlarged(scene, **cfg["start"])
    plain = [_scores(cam, beta) for beta in own]
    yield Labelled("par", {"iterations": 0}, own, _best(scene, plain))
    for downscale, dilations, kernel in itertools.product(par["downscale"], par["dilations"], par["kernels"]):
        name = {"downscale": downscale, "dilations": dilations, "kernel": kernel}
        for count, maps in refine(scene, cam, own, dilations, par["iterations"], downscale, kernel):
            yield Labelled("par", {**name, "iterations": count}, own, _best(scene, maps))


def propagation(scene: Scene, cfg: Config) -> Iterator[Labelled]:
    """One map, propagated along affinity that is wrong to every share."""
    own = cfg["backgrounds"]
    cam = scene.coarse_map(**cfg["start"])
    plain = [_scores(_enlarged(scene, **cfg["start"]), beta) for beta in own]
    yield Labelled("propagation", {"false": None}, own, _best(scene, plain))
    activation = Activation(cam, AffinityTokens([], [], (cam.shape[-2], cam.shape[-1])))
    classes = own_classes(torch.ones(cam.shape[:2]))
    for curve in cfg["curves"]:
        walk = {**cfg["walk"], **curve}
        how = {key: walk[key] for key in ("radius", "power", "num_log_steps")}
        labeler = PseudoLabeler(
            MultiScaleCAM(),
            PixelAdaptiveRefinement(),
            RandomWalkPropagation(**how),
            normalize_propagated=walk["normalize"],
        )
        for false in cfg["false_affinity"]:
            affinity = scene.affinity(walk["kind"], false, walk["missed"], walk["radius"])
            moved = labeler.propagated_maps(activation, affinity, classes, own)
            maps = [resize(scores, scene.size) for scores in moved]
            yield Labelled("propagation", {**walk, "false": false}, own, _best(scene, maps))


def refine(
    scene: Scene,
    cam: Tensor,
    backgrounds: Sequence[float],
    dilations: Sequence[int],
    iterations: Sequence[int],
    downscale: int,
    kernel: Sequence[float] = (),
) -> Iterator[tuple[int, Sequence[Tensor]]]:
    """Each number of iterations, and what PAR has made of the scores of each β by then: (1, G + 1, H, W).

    ``kernel`` is PAR's w1 and w2. As ``PseudoLabeler.refined_maps`` does it; PAR of 15 iterations is PAR of 5
    on what PAR of 10 made.
    """
    small = (max(1, scene.size[0] // downscale), max(1, scene.size[1] // downscale))
    rgb, reduced = resize(scene.rgb / 255, small), resize(cam, small)
    scores, done = torch.cat([_scores(reduced, beta) for beta in backgrounds], dim=1), 0
    for count in sorted(iterations):
        scores, done = PixelAdaptiveRefinement(count - done, dilations, *kernel)(rgb, scores), count
        yield count, resize(scores, scene.size).chunk(len(backgrounds), dim=1)


def _run_crf(scene: Scene, maps: Tensor, crf: DenseCRF, cfg: Config) -> Tensor:
    small = (max(1, scene.size[0] // cfg["downscale"]), max(1, scene.size[1] // cfg["downscale"]))
    rgb = resize(scene.rgb.float(), small).round().to(torch.uint8)
    sharp = resize(maps, small) ** cfg["sharpness"]
    return resize(crf(rgb, sharp / sharp.sum(1, keepdim=True)), scene.size)


def _enlarged(scene: Scene, blur: float, dropped: float) -> Tensor:
    return resize(scene.coarse_map(blur, dropped), scene.size)


def _scores(cam: Tensor, background: float) -> Tensor:
    """Soft-max over the background and all classes of a map (1, G, …)."""
    return class_scores(cam, own_classes(torch.ones(cam.shape[:2])), background)


def _best(scene: Scene, maps: Sequence[Tensor]) -> list[Tensor]:
    return [scene.ids[scores.max(dim=1).indices] for scores in maps]


STUDIES = ("refinement", "par", "propagation")
"""In the order of the tables."""


def check(cfg: Config) -> None:
    """Refuse settings that no study can be made of.

    Raises:
        UserError: A value is out of its range or a name is not known.
    """
    for study in cfg["studies"]:
        _need(study in STUDIES, "studies", study, f"some of {', '.join(STUDIES)}")
    for blur in [cfg["start"]["blur"], *cfg["coarse"]["blur"]]:
        _need(blur >= 0, "blur", blur, "cells, at least 0")
    for dropped in [cfg["start"]["dropped"], *cfg["coarse"]["dropped"]]:
        _need(0 <= dropped < 1, "dropped", dropped, "a share from 0 to below 1")
    for curve in cfg["curves"]:
        walk = {**cfg["walk"], **curve}
        _need(set(curve) <= set(cfg["walk"]), "curves", curve, f"some of {', '.join(cfg['walk'])}")
        _need(walk["kind"] in KINDS, "kind", walk["kind"], f"one of {', '.join(KINDS)}")
        for share in (walk["missed"], *cfg["false_affinity"]):
            _need(0 <= share <= 1, "missed or false_affinity", share, "a share from 0 to 1")


def _need(valid: bool, name: str, value: object, need: str) -> None:
    if not valid:
        raise UserError(f"oracle: {name} is {value}, need {need}; change {name}")


@torch.no_grad()
def run(cfg: Config, data: TaggedDataModule, crf: DenseCRF, console: Console) -> Config:
    """Make all studies; return their records by study, ``images`` and what they are of."""
    check(cfg)
    images = data.make_val_set()
    order = np.random.default_rng(cfg["seed"]).permutation(len(images))[: cfg["images"]].tolist()
    tally, used = Tally(data.num_classes + 1), 0
    for index in track(order, "oracle", console=console, disable=not console.is_terminal):
        sample = images[index]
        if "mask" not in sample:
            raise UserError("oracle: the validation split has no masks, need masks; give data that has them")
        scene = make_scene(sample, cfg["stride"], cfg["seed"], index)
        if len(scene.ids) == 1:  # all background
            continue
        for study in cfg["studies"]:
            for result in _make(study, scene, cfg, crf):
                tally.add(result, scene.mask, half=used % 2)
        used += 1
    _need(used > 1, "images", used, "two or more that have an object")
    return {"images": used, "seed": cfg["seed"], **{study: tally.records(study) for study in cfg["studies"]}}


def _make(study: str, scene: Scene, cfg: Config, crf: DenseCRF) -> Iterator[Labelled]:
    if study == "refinement":
        return refinement(scene, cfg, crf)
    return par_settings(scene, cfg) if study == "par" else propagation(scene, cfg)


@entry_point("oracle")
def main(cfg: DictConfig) -> float:
    """Write ``oracle.json`` and a plot of each study, print the tables; return how many images were used."""
    console = Console()
    plain: Config = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    results = run(plain, instantiate(cfg.data), instantiate(cfg.crf.model), console)
    folder = Path(HydraConfig.get().runtime.output_dir)
    text = json.dumps({**results, "settings": plain}, indent=1, ensure_ascii=False)
    write_whole(folder / "oracle.json", text + "\n")
    for study, figure in draw(results, plain["walk"]).items():
        save_figure(figure, folder / f"oracle_{study}.png")
    print_tables(results, plain["walk"], console)
    console.print(f"oracle    {folder}/oracle.json, .png", markup=False, highlight=False, soft_wrap=True)
    return float(results["images"])


if __name__ == "__main__":
    main()
