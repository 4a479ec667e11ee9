"""Oracle curves: what maps and affinity made from masks must be, and what holds on generated scenes."""

from __future__ import annotations

import json
import math
import sys

import hydra
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console

from wsss_afa import oracle
from wsss_afa.cli.config_dir import CONFIG_DIR
from wsss_afa.data.synthetic import SyntheticScenes
from wsss_afa.metrics import SegmentationMetrics
from wsss_afa.ops.affinity import affinity_label
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.methods.afa.pseudo_labels import PseudoLabeler
from wsss_afa.ops.labels import own_classes
from wsss_afa.ops.random_walk import RandomWalkPropagation
from wsss_afa.oracle import Labelled, Tally, refine
from wsss_afa.oracle_maps import KINDS, make_scene
from wsss_afa.oracle_report import curves, stops_helping
from wsss_afa.errors import UserError

SMALL = ["data.val_images=20", "stride=8", "backgrounds=[0.1,0.2,0.3,0.4,0.5]"]


@pytest.fixture(scope="module")
def scene():
    return make_scene(SyntheticScenes(4, seed=1, split="val", with_mask=True)[0], stride=8, seed=0, index=0)


def study(*overrides):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        cfg = hydra.compose("oracle", [*SMALL, *overrides])
    plain = OmegaConf.to_container(cfg)
    return oracle.run(plain, instantiate(cfg.data), instantiate(cfg.crf.model), Console(quiet=True)), plain


def test_a_clean_map_is_the_mask_averaged_over_cells(scene):
    for cell, class_id in zip(scene.coarse_map(0, 0)[0], scene.ids[1:], strict=True):
        own = (scene.mask[0] == class_id).float().view(12, 8, 12, 8).mean((1, 3))
        torch.testing.assert_close(cell, own / own.max(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("blur", [0.0, 1.5])
def test_maps_are_as_activation_maps_are(scene, blur):
    maps = scene.coarse_map(blur, 0.6)
    assert maps.shape == (1, len(scene.ids) - 1, 12, 12)
    assert maps.min() >= 0
    torch.testing.assert_close(maps.amax((2, 3)), torch.ones(1, len(scene.ids) - 1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dropped", [0.0, 0.3, 0.6, 0.99])
def test_the_share_dropped_is_exact_and_more_drops_the_same_first(scene, dropped):
    whole, fired = scene.coarse_map(0, 0) > 0, scene.coarse_map(0, dropped) > 0
    for all_cells, left in zip(whole[0], fired[0], strict=True):
        cells = int(all_cells.sum())
        assert cells - int(left.sum()) == math.floor(dropped * cells)
    assert not (fired & ~(scene.coarse_map(0, dropped / 2) > 0)).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("false", "missed"), [(0.0, 0.0), (0.2, 0.0), (0.3, 0.5), (1.0, 1.0)])
def test_affinity_is_as_wrong_as_asked(scene, kind, false, missed):
    affinity = scene.affinity(kind, false, missed, radius=4)[0]
    truth = affinity_label(scene.mask, scene.grid, 4)[0].fill_diagonal_(255)
    assert torch.equal(affinity, affinity.T)
    assert torch.equal(affinity.diag(), torch.ones(144))
    assert affinity[truth == 0].mean().item() == pytest.approx(false, abs=2e-3)
    assert affinity[truth == 1].mean().item() == pytest.approx(1 - missed, abs=2e-3)
    assert not affinity[(truth == 255) & ~torch.eye(144, dtype=torch.bool)].any()


def test_border_affinity_goes_wrong_between_cells_beside_another_class(scene):
    tokens = torch.nn.functional.interpolate(scene.mask[:, None].float(), scene.grid)[0, 0].numpy()
    beside = [
        len(np.unique(tokens[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2])) > 1
        for row, column in np.ndindex(tokens.shape)
    ]
    truth = affinity_label(scene.mask, scene.grid, 8)[0].fill_diagonal_(255)
    for wrong in (
        (scene.affinity("border", 0.02, 0, 8)[0] == 1) & (truth == 0),
        (scene.affinity("border", 0, 0.02, 8)[0] == 0) & (truth == 1),
    ):
        assert wrong.any()
        assert set(wrong.nonzero().flatten().tolist()) <= set(np.flatnonzero(beside).tolist())


def test_par_in_stages_is_the_pseudo_labels_own(scene):
    cam = torch.nn.functional.interpolate(scene.coarse_map(1, 0.5), scene.size, mode="bilinear")
    par = PixelAdaptiveRefinement(5, (1, 2, 4))
    labeler = PseudoLabeler(MultiScaleCAM(), par, RandomWalkPropagation())
    classes = own_classes(torch.ones(cam.shape[:2]))
    expected = labeler.refined_maps(scene.rgb / 255, cam, classes, (0.2, 0.4))
    stages = dict(refine(scene, cam, (0.2, 0.4), (1, 2, 4), (5, 2), downscale=2))
    assert list(stages) == [2, 5]
    for got, wanted in zip(stages[5], expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_halves_are_scored_where_the_other_half_is_best():
    truth = torch.tensor([[[0, 1, 1, 255]], [[0, 1, 0, 2]]])
    good, bad = truth % 255, torch.zeros_like(truth)
    tally = Tally(3)
    tally.add(Labelled("par", {"a": 1}, [0.1, 0.2], [good[:1], bad[:1]]), truth[:1], half=0)
    tally.add(Labelled("par", {"a": 1}, [0.1, 0.2], [bad[1:], good[1:]]), truth[1:], half=1)
    metric = SegmentationMetrics(3)
    metric.update(bad, truth)  # each half prefers the other's worse label
    record = {"a": 1, "miou": round(100 * float(metric.compute()["miou"]), 2), "background": [0.2, 0.1]}
    assert tally.records("par") == [record]
    assert tally.records("propagation") == []


@pytest.mark.parametrize(
    ("gain", "end"), [([4, 2, -2], 0.2), ([-1, 2, 3], 0.0), ([3, 2, 1], math.inf), ([1, 0, 1], 0.1)]
)
def test_where_propagation_stops_helping(gain, end):
    assert stops_helping([0.0, 0.1, 0.3], gain) == pytest.approx(end)


@pytest.fixture(scope="module")
def refined():
    results, _ = study("studies=[refinement]", "coarse.blur=[1.0]", "coarse.dropped=[0.0,0.6]")
    return {(each["dropped"], each["method"]): each["miou"] for each in results["refinement"]}


@pytest.mark.parametrize("dropped", [0.0, 0.6])
def test_par_beats_the_coarse_map(refined, dropped):
    assert refined[dropped, "PAR"] > refined[dropped, "coarse"] + 5


def test_a_crf_beats_the_coarse_map(refined):
    assert refined[0.6, "CRF"] > refined[0.6, "coarse"] + 5


@pytest.fixture(scope="module")
def gains():
    chosen = "curves=[{},{kind:faint},{kind:faint,power:4},{missed:0.5},{num_log_steps:3}]"
    results, plain = study("studies=[propagation]", "false_affinity=[0.0,0.1,0.3,0.5]", chosen)
    return {
        name: [gain for _, gain in line]
        for name, line in curves(results["propagation"], plain["walk"])[1].items()
    }


def test_true_affinity_helps(gains):
    assert gains["border"][0] > 3


@pytest.mark.parametrize("kind", ["border", "faint"])
def test_enough_false_affinity_hurts(gains, kind):
    assert gains[kind][-1] < -1
    assert gains[kind] == sorted(gains[kind], reverse=True)


def test_an_exponent_forgives_faint_false_affinity(gains):
    assert gains["faint, power 4"][-1] > gains["faint"][-1] + 5


def test_missed_affinity_and_more_steps_make_false_affinity_worse(gains):
    assert gains["border, missed 0.5"][1] < gains["border"][1] - 5
    assert gains["border, log steps 3"][1] < gains["border"][1] - 5


def test_a_walk_that_is_normalized_keeps_what_a_high_background_would_take():
    chosen = "curves=[{},{normalize:true}]"
    results, plain = study("studies=[propagation]", "false_affinity=[0.0]", "backgrounds=[0.55]", chosen)
    _, found = curves(results["propagation"], plain["walk"])
    assert found["border, normalize"][0][1] > found["border"][0][1] + 5


@pytest.fixture
def program(monkeypatch, tmp_path):
    def start(*overrides):
        quick = [
            "data.val_images=2",
            "stride=8",
            "par.iterations=[2,4]",
            "par.downscale=[2,1]",
            "par.kernels=[[0.3,0.01],[0.3,0.0]]",
            "false_affinity=[0.0,0.5]",
        ]
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        monkeypatch.setattr(sys, "argv", ["oracle", *quick, f"hydra.run.dir={folder}", *overrides])
        oracle.main()
        return folder

    return start


def test_the_program_leaves_tables_plots_and_equal_records(program, capsys):
    first, again = program(), program()
    text = (first / "oracle.json").read_text()
    assert text == (again / "oracle.json").read_text()
    results = json.loads(text)
    assert len(results["refinement"]) == 9 * 2 + 2 * 2
    assert len(results["par"]) == 1 + 3 * 2 * 2 * 2  # dilations, sizes, kernels, iterations
    assert len(results["propagation"]) == 1 + 2 * len(results["settings"]["curves"])
    for name in oracle.STUDIES:
        with Image.open(first / f"oracle_{name}.png") as picture:
            assert np.asarray(picture).std() > 10
    printed = capsys.readouterr().out
    assert "stops at" in printed
    assert f"{results['refinement'][0]['miou']:.1f}" in printed
    assert (
        printed.count("w1 0.3, w2 0.01 ") == printed.count("w1 0.3, w2 0 ") == 2 * 3 * 2
    )  # runs, dilations, sizes


MISTAKES = {
    "studies=[rotation]": "studies is rotation, need some of",
    "curves=[{kind:blue}]": "kind is blue, need one of faint",
    "curves=[{radios:3}]": "curves is {'radios': 3}, need some of kind",
    "start.dropped=1.0": "dropped is 1.0, need a share",
    "false_affinity=[2]": "false_affinity is 2, need a share",
    "images=1": "images is 1, need two or more",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(program, mistake):
    with pytest.raises(SystemExit, match="error: oracle: ") as stop:
        program("studies=[par]", mistake)
    assert MISTAKES[mistake] in str(stop.value)
    assert len(str(stop.value).splitlines()) == 1


def test_data_without_masks_is_refused(monkeypatch):
    monkeypatch.setattr(SyntheticScenes, "__getitem__", lambda self, index: {"image": np.zeros((8, 8, 3))})
    with pytest.raises(UserError, match="no masks"):
        study("studies=[par]")
