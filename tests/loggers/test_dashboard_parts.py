"""Parts of the dashboards: what is measured, what points look at, who is told, and what happens offline."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import CSVLogger

from wandb_file import isolated
from wsss_afa.callbacks import monitor as dashboard_monitor
from wsss_afa.files import CONFIG_DIR
from wsss_afa.loggers import dashboards as dashboard_screens
from wsss_afa.loggers.dashboards import Screen, screens, tell
from wsss_afa.loggers.wandb_run import RunFolderWandbLogger
from wsss_afa.methods.afa.attention_points import Walk, attention_of, look
from wsss_afa.models.backbones.mix_transformer import attention_logits
from wsss_afa.ops.labels import own_classes
from wsss_afa.ops.metrics import describe_labels
from wsss_afa.programs import train as work
from wsss_afa.reports.visualize import Scene, confusion_figure, mark_point, paint_scene, to_pixels
from wsss_afa.types import Activation, AffinityTokens, PseudoLabels


def test_labels_are_described():
    label = torch.tensor([[[0, 0, 0, 1], [1, 2, 255, 255]]])
    pairs = torch.tensor([[[1, 0, 255], [0, 1, 0], [255, 0, 1]]])
    affinity = torch.tensor([[[0.5, 0.2, 1.0], [0.2, 1.0, 0.4], [1.0, 0.4, 0.9]]])
    shares = describe_labels(PseudoLabels(label, pairs), affinity)
    expected = {
        "ignored_pixels": 2 / 8,
        "background_pixels": 3 / 8,
        "foreground_pixels": 3 / 8,
        "positive_pairs": 3 / 9,
        "negative_pairs": 4 / 9,
        "false_affinity": (0.2 + 0.2 + 0.4 + 0.4) / 4,
        "missed_affinity": (0.5 + 0.0 + 0.1) / 3,
        "saturated_affinity": 1 / 7,
    }
    assert {name: share.item() for name, share in shares.items()} == pytest.approx(expected)


def test_labels_without_pairs_are_described():
    shares = describe_labels(PseudoLabels(torch.full((1, 2, 2), 255)))
    assert {name: share.item() for name, share in shares.items()} == {
        "ignored_pixels": 1.0,
        "background_pixels": 0.0,
        "foreground_pixels": 0.0,
    }


def test_images_a_second_leave_out_validations(monkeypatch):
    moments = iter([0.0, 2.0, 10.0, 12.0, 12.0])  # start, validation from 2 to 10, end of the interval
    monkeypatch.setattr(dashboard_monitor.time, "perf_counter", lambda: next(moments))
    trainer = SimpleNamespace(global_step=0, world_size=2, log_every_n_steps=2, sanity_checking=False)
    logged, module = {}, SimpleNamespace(device=torch.device("cpu"))
    module.log = logged.__setitem__
    monitor, batch = dashboard_monitor.StepMonitor(), {"image": torch.zeros(4, 3, 8, 8)}
    monitor.on_train_start(trainer, module)
    for batch_idx in range(4):  # two parts a step
        trainer.global_step = (batch_idx + 1) // 2
        monitor.on_train_batch_end(trainer, module, None, batch, batch_idx)
        if batch_idx == 1:
            monitor.on_validation_start(trainer, module)
            monitor.on_validation_end(trainer, module)
    assert logged == {"speed/images_per_s": 4 * 4 * 2 / 4.0}


@pytest.fixture
def walk():
    """Two images with two of three classes each, on a grid of 2 × 3 tokens, 4 pixels a token."""
    generator = torch.Generator().manual_seed(0)
    queries = [torch.randn(2, 4, 6, 8, generator=generator) for _ in range(2)]
    keys = [torch.randn(2, 4, 6, 8, generator=generator) for _ in range(2)]
    cam = torch.rand(2, 3, 8, 12, generator=generator) * 0.9
    cam[0, 2, 5, 9] = cam[1, 0, 0, 3] = 1.0
    affinity = torch.rand(2, 6, 6, generator=generator)
    classes = own_classes(torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))
    scores = torch.rand(2, 3, 2, 3, generator=generator)
    return Walk(Activation(cam, AffinityTokens(queries, keys, (2, 3))), affinity, scores, classes)


def test_attention_is_the_mean_of_every_heads_soft_max(walk):
    tokens = walk.activation.tokens
    heads = (attention_logits(tokens.queries, tokens.keys) / 8**0.5).softmax(-1)  # (B, M, N, N)
    for index, token in itertools.product(range(2), range(6)):
        attention = attention_of(tokens, index, token)
        assert attention.shape == (2, 3)
        assert torch.allclose(attention.flatten(), heads[index].mean(0)[token], atol=1e-6)
        assert attention.sum().item() == pytest.approx(1)


def test_points_lie_where_activation_is_highest(walk):
    first, second = look(walk, 0)
    assert (first.class_index, second.class_index) == (1, 2)
    assert second.place == (5, 9)
    (third,) = look(walk, 1)
    assert (third.class_index, third.place) == (0, (0, 3)), "a class that fills the table is none"
    for point in (first, second, third):
        assert list(point.maps) == ["CAM", "attention", "affinity", "propagated CAM"]
        assert all(values.shape == (8, 12) for values in point.maps.values())
        assert all(values.min() >= 0 and values.max() <= 1 for values in point.maps.values())


def test_affinity_is_that_of_the_points_token(walk):
    alike = walk._replace(affinity=torch.full((2, 6, 6), 0.25))
    alike.affinity[0, 1 * 3 + 2] = 0.75  # row 5 of 8, column 9 of 12
    assert torch.equal(look(alike, 0)[1].maps["affinity"], torch.full((8, 12), 0.75))


def test_scenes_are_painted_with_their_point():
    image = np.full((40, 40, 3), 100, np.uint8)
    layers = {"CAM": np.zeros((40, 40), np.float32), "label": np.full((40, 40), 15)}
    plain, marked = paint_scene(Scene("", image, layers)), paint_scene(Scene("", image, layers, (20, 10)))
    assert [panel.title for panel in marked] == ["image", "CAM", "label"]
    assert np.array_equal(plain[0].pixels, image)
    assert plain[2].pixels[0, 0, 0] > 150, "the person's colour"
    for before, after in zip(plain, marked, strict=True):
        assert after.pixels[20, 10].tolist() == [255, 255, 255]
        assert np.array_equal(after.pixels[30:], before.pixels[30:])
    assert (image == 100).all()


@pytest.mark.parametrize("point", [(0, 0), (39, 39)])
def test_a_point_at_the_edge_is_marked(point):
    assert mark_point(np.zeros((40, 40, 3), np.uint8), point)[point].tolist() == [255, 255, 255]


def test_confusion_is_drawn_by_rows():
    figure = confusion_figure(np.array([[30, 10], [0, 0]]), ["background", "cat"])
    axis = figure.axes[0]
    assert np.array_equal(axis.images[0].get_array().filled(np.nan), [[0.75, 0.25], [np.nan, np.nan]], True)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["background", "cat"]
    pixels = to_pixels(figure)
    assert pixels.shape == (360, 360, 3)
    assert pixels.std() > 10


def test_a_logger_of_numbers_has_no_screen(tmp_path):
    trainer = SimpleNamespace(loggers=[CSVLogger(tmp_path)], is_global_zero=True)
    assert screens(trainer) == []
    tell(trainer, lambda screen: pytest.fail("nobody is told"))


def test_a_failing_screen_is_a_warning(monkeypatch):
    trainer, told = SimpleNamespace(loggers=[], is_global_zero=True), []

    def show(screen):
        if not told:
            told.append(screen)
            raise OSError("no space left")
        told.append(screen)

    monkeypatch.setattr(dashboard_screens, "screens", lambda _: [Screen(), Screen()])
    with pytest.warns(UserWarning, match=r"Screen shows less, training goes on: OSError: no space left"):
        tell(trainer, show)
    assert len(told) == 2


LOGGERS = {
    "+experiment=voc": ["csv", "wandb"],
    "+experiment=coco": ["csv", "wandb"],
    "+experiment=synthetic": ["csv"],
    "+experiment=folder": ["csv"],
    "+experiment=voc logger=csv": ["csv"],
    "+experiment=voc logger=none": [],
    "logger=[wandb,tensorboard]": ["csv", "tensorboard", "wandb"],
}


@pytest.mark.parametrize("overrides", LOGGERS)
def test_loggers_by_configuration(overrides):
    with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        cfg = compose("train", overrides.split())
    assert sorted(cfg.logger) == LOGGERS[overrides]


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """No W&B account anywhere."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return monkeypatch


def reason(tmp_path, **settings):
    return RunFolderWandbLogger(str(tmp_path / "run"), **settings)._without


def test_a_run_is_offline_without_a_key(environment, tmp_path):
    assert reason(tmp_path) == "no API key"
    assert reason(tmp_path, offline=True) == "offline=true"


def test_a_key_in_the_environment_is_found(environment, tmp_path):
    environment.setenv("WANDB_API_KEY", "0" * 40)
    assert reason(tmp_path) is None
    assert reason(tmp_path, offline=True) == "offline=true"


def test_a_key_in_netrc_is_found_for_its_server_alone(environment, tmp_path):
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    assert reason(tmp_path) is None
    environment.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert reason(tmp_path) == "no API key"


@pytest.mark.parametrize("mode", ["offline", "disabled", "dryrun"])
def test_the_environments_mode_needs_no_key(mode, environment, tmp_path):
    environment.setenv("WANDB_MODE", mode)
    assert reason(tmp_path) is None


def test_a_folder_that_is_started_again_goes_on_with_its_run(environment, tmp_path):
    assert RunFolderWandbLogger(str(tmp_path)).version is None
    for name in ("run-20260102_030405-older", "offline-run-20260203_040506-newer"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    assert RunFolderWandbLogger(str(tmp_path)).version == "newer"
    assert RunFolderWandbLogger(str(tmp_path), id="mine").version == "mine"


def test_names_and_groups_are_those_of_folders(environment, tmp_path):
    sweep = tmp_path / "table2"
    swept = RunFolderWandbLogger(str(sweep / "3"), sweep_dir=str(sweep))._wandb_init
    assert (swept["name"], swept["group"]) == ("table2/3", "table2")
    alone = RunFolderWandbLogger(str(sweep), sweep_dir=str(sweep))._wandb_init
    assert (alone["name"], alone["group"]) == ("table2", None)
    named = RunFolderWandbLogger(str(sweep / "3"), name="a", group="b", sweep_dir=str(sweep))._wandb_init
    assert (named["name"], named["group"]) == ("a", "b")


SILENT = """
import sys
from wsss_afa.loggers.wandb_run import RunFolderWandbLogger
logger = RunFolderWandbLogger(sys.argv[1], patience=1)
logger.log_metrics({"train/loss": 1.0}, 0)
logger.finalize("success")
"""


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        variables = isolated(tmp_path) | {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": address}
        command = [sys.executable, "-c", SILENT, str(tmp_path / "run")]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = done.stdout.splitlines()
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert line.startswith("wandb     offline (")
    assert line.endswith(f"upload with: wandb sync {folder}")


def test_without_the_package_an_experiments_choice_is_left_out_and_ones_own_is_an_error(monkeypatch, capsys):
    words = []
    monkeypatch.setattr(work, "find_spec", lambda name: None)
    chosen = SimpleNamespace(overrides=SimpleNamespace(task=words))
    monkeypatch.setattr(work, "HydraConfig", SimpleNamespace(get=lambda: chosen))
    for word, left in (("seed=1", ["csv"]), ("logger=wandb", ["csv", "wandb"])):
        words[:] = [word]
        with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
            cfg = compose("train", ["+experiment=voc"])
        work.leave_out_missing_logger(cfg)
        assert sorted(cfg.logger) == left
    line = "logger    metrics.csv alone: wandb is not installed (pip install 'wsss-afa[wandb]')\n"
    assert capsys.readouterr().out == line
