"""What the app does without a page: labels, the queue, decisions that survive a kill, and the commands."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest

from photo_folder import NAMES, NASTY, open_app, save_checkpoint, write_photos
from wsss_afa import app, pseudo_labels, train
from wsss_afa.cli.run_folder import release
from wsss_afa.data.folder.content import read_folder
from wsss_afa.data.images import read_image, read_kind, read_mask
from wsss_afa.errors import UserError
from wsss_afa.reports.visualize import Panel
from wsss_afa.web.commands import labels_command, second_stage_command
from wsss_afa.web.labeller import Settings, enlarge
from wsss_afa.web.review import REVIEW, Review

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("ckpt") / "best.ckpt")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "my photos")


@pytest.fixture
def opened(ckpt, photos, tmp_path):
    yield open_app(ckpt, photos, tmp_path / "review")
    release()


LABEL = np.array([[0, 1], [2, 255]], np.uint8)


def test_the_queue_goes_from_the_least_sure_on_and_comes_back(tmp_path):
    review = Review(tmp_path, ["a", "sub/b", "c"])
    assert review.begin({"source": "par"}) == ["a", "sub/b", "c"]
    for name, sure in (("a", 0.5), ("sub/b", 0.1)):
        review.propose(name, LABEL, sure)
    again = Review(tmp_path, ["a", "sub/b", "c"])
    assert again.begin({"source": "par"}) == ["c"]
    again.propose("c", LABEL, 0.3)
    assert again.order == ["sub/b", "c", "a"]
    assert again.next_open() == "sub/b"
    again.decide("c", "reject")
    assert again.next_open("sub/b") == "a"
    assert again.next_open("a") == "sub/b"
    assert again.begin({"source": "cam"}) == ["a", "sub/b", "c"], "other settings begin another queue"
    assert again.decisions == {"c": "reject"}


def test_the_last_decision_counts_and_masks_of_others_go(tmp_path):
    review = Review(tmp_path, ["a"])
    for decision in ("accept", "paint"):
        review.decide("a", decision, LABEL)
    assert not (tmp_path / "masks" / "a.png").exists()
    np.testing.assert_array_equal(read_mask(tmp_path / "corrected" / "a.png", (2, 2)), LABEL)
    assert read_kind(tmp_path / "corrected" / "a.png") == "PNG P"
    assert Review(tmp_path, ["a"]).decisions == {"a": "paint"}
    review.decide("a", "reject")
    assert not list(tmp_path.rglob("*.png"))
    assert Review(tmp_path, ["a"]).count() == {"reject": 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_kill_loses_no_decision(tmp_path):
    """A process decides as fast as it can and says so; whatever it said before it was killed is there."""
    names, (reader, writer) = [str(i) for i in range(9999)], os.pipe()
    if (child := os.fork()) == 0:
        review = Review(tmp_path, names)
        for i, name in enumerate(names):
            review.decide(name, "accept", np.full((9, 9), i % 200, np.uint8))
            os.write(writer, f"{name}\n".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = [file.readline().strip() for _ in range(40)]
        os.kill(child, signal.SIGKILL)
        said += file.read().split()
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    review = Review(tmp_path, names)
    for name in said:
        assert review.decisions[name] == "accept"
        assert (read_mask(tmp_path / "masks" / f"{name}.png", (9, 9)) == int(name) % 200).all()


def test_a_torn_line_is_passed_over(tmp_path):
    review = Review(tmp_path, ["a", "b"])
    review.decide("a", "reject")
    with (tmp_path / REVIEW).open("a") as file:
        file.write('{"name": "b", "deci')
    again = Review(tmp_path, ["a", "b"])
    assert again.decisions == {"a": "reject"}
    again.decide("b", "accept", LABEL)
    assert Review(tmp_path, ["a", "b"]).decisions == {"a": "reject", "b": "accept"}


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "holiday.txt").touch()
    with pytest.raises(UserError, match="need a folder of its own"):
        Review(tmp_path, [])
    with pytest.raises(UserError, match="leads out"):
        Review(tmp_path / "new", []).decide("../../x", "accept", LABEL)


def test_a_label_is_enlarged_with_smooth_borders():
    y, x = np.mgrid[:40, :60]
    disc = ((y - 20) ** 2 + (x - 30) ** 2 < 225).astype(np.uint8) * 3
    disc[:, :4] = 255
    large = enlarge(disc, (400, 600))
    assert set(np.unique(large)) == {0, 3, 255}
    y, x = np.mgrid[:400, :600] / 10
    truth = ((y + 0.05 - 20.5) ** 2 + (x + 0.05 - 30.5) ** 2 < 225) * 3
    blocks = disc.repeat(10, 0).repeat(10, 1)
    right = slice(60, None)
    assert (large != truth)[:, right].mean() < 0.9 * (blocks != truth)[:, right].mean()
    np.testing.assert_array_equal(enlarge(disc, disc.shape), disc)


def test_names_of_any_kind_are_photos_of_the_session(opened):
    assert opened.labeller.class_names == tuple(sorted(NASTY))
    assert len(opened.labeller.photos) == len(NAMES)
    assert {photo.split for photo in opened.labeller.photos} == {"train", "val"}


def test_pictures_legends_and_mistakes_show_names_as_text():
    controls, drawing = (importlib.import_module(f"wsss_afa.web.{name}") for name in ("controls", "drawing"))
    shown = drawing.figures([Panel(NASTY[0], np.zeros((2, 2, 3), np.uint8))], 8)
    shown += drawing.legend([1], NASTY) + drawing.score_table([(NASTY[0], 0.5, 0.5)])
    assert shown.count("&lt;img src=x onerror=alert(1)&gt;") == 3
    assert "<img src=x" not in shown

    def fail():
        raise UserError(f"{NASTY[0]} is broken")

    with pytest.raises(Exception, match="&lt;img src=x"):
        controls.answers(fail)()


def test_sureness_is_the_agreement_with_the_segmentation(opened):
    labeller = opened.labeller
    image = labeller.read(0)
    guess = labeller.label_of(image, range(3), Settings("seg", 0, 0, False))
    assert labeller.sureness(image, guess) == 1
    other = np.where(guess == guess[0, 0], 255, guess)
    assert labeller.sureness(image, other) <= 1
    wrong = (guess + 1) % 4
    assert labeller.sureness(image, wrong) < 0.1


@pytest.mark.parametrize(
    "settings",
    [
        Settings("seg", 0.0, 0.0, False), Settings("par", 0.4, 0.4, False),
        Settings("cam", 0.35, 0.55, False), Settings("affinity", 0.3, 0.3, False),
        Settings("seg", 0.0, 0.0, True),
    ],
)  # fmt: skip
def test_the_command_that_is_shown_writes_the_same_labels(opened, run, settings, tmp_path):
    out = tmp_path / "labels"
    scored = opened.labeller.has_background(settings.source)
    words = shlex.split(labels_command(opened.given, settings, scored, str(out)))
    assert words[:2] == ["wsss-afa", "pseudo_labels"]
    code, text = run(
        pseudo_labels, *words[2:], "trainer.accelerator=cpu", "trainer.devices=1", "data.num_workers=0",
        f"hydra.run.dir='{tmp_path / 'run'}'",
    )  # fmt: skip
    assert code == 0, text
    compared = 0
    for i, photo in enumerate(opened.labeller.photos):
        if photo.split == "train":
            label = opened.labeller.label(i, settings)
            np.testing.assert_array_equal(read_mask(out / f"{photo.name}.png", label.shape), label)
            compared += len(np.unique(label)) > 1
    assert compared > 5


def test_accepted_masks_train_and_corrected_ones_validate(opened, run, tmp_path):
    """The command that is shown runs, though masks are of the photos' own size and training reduces these."""
    labeller, review = opened.labeller, opened.review
    labeller.data.max_side = 40
    settings = Settings("par", 0.4, 0.4, False)
    for name in opened.begin(settings):
        opened.propose(name, settings)
    decisions = ["accept"] * 5 + ["paint"] * 2 + ["reject"]
    tagged = [photo for photo in labeller.photos if photo.tags]
    for photo, decision in zip(tagged, decisions, strict=False):
        painted = np.full_like(opened.shown(photo.name), photo.tags[0] + 1)
        painted[:, ::2] = 0
        opened.decide(photo.name, decision, painted if decision == "paint" else None)
        if decision == "paint":
            np.testing.assert_array_equal(opened.shown(photo.name), painted)
    sizes = {read_image(photo.path).shape[:2] for photo in tagged[:7]}
    assert {read_image(path).shape[:2] for path in review.root.glob("[mc]*s/*.png")} <= sizes
    content = read_folder(labeller.data.root, str(review.root / "photos.json"), ignore_unlisted=True)
    assert content.class_names == labeller.class_names
    assert (content.splits.count("train"), content.splits.count("val")) == (5, 2)
    words = shlex.split(second_stage_command(opened))
    small = [
        "backbone.variant=tiny",
        "backbone.pretrained=null",
        "method.decoder_dim=16",
        "data.batch_size=2",
    ]
    code, text = run(
        train, *words[2:], *small, "data.batch_size=2", "data.crop_size=32", "data.num_workers=0",
        "trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.devices=1", "logger=csv",
        "callbacks.pictures.num_images=0", f"hydra.run.dir='{tmp_path / 'run'}'",
    )  # fmt: skip
    assert code == 0, text
    results = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert results["best_by"] == "val/miou_seg", "corrected masks are the truth of the validation"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["data=synthetic"], "set data=folder"),
        (["out={taken}"], "need a folder of its own"),
        (["host=256.1.1.1"], "set another port"),
        (["port=99999"], "set another port"),
    ],
)
def test_mistakes_are_one_line(ckpt, photos, tmp_path, run, words, line):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "x").touch()
    own = [f"data.root='{photos}'", f"out='{tmp_path / 'review'}'"]
    words = [word.format(taken=taken) for word in words]
    kept = [each for each in own if "data=synthetic" not in words or "root" not in each]
    kept = [each for each in kept if not any(word.startswith("out=") for word in words) or "out=" not in each]
    code, text = run(app, f"ckpt='{ckpt}'", *kept, *words, f"hydra.run.dir='{tmp_path / 'run'}'")
    assert code == 1
    assert line in text
    assert "\n" not in text


def test_a_review_among_the_photos_is_no_photo(photos, tmp_path):
    folder = write_photos(tmp_path / "photos")
    review = Review(folder / "review", ["p6"])
    review.decide("p6", "accept", LABEL)
    assert len(read_folder(folder).files) == len(NAMES)


def test_help_is_cheap():
    code = (
        "import sys\nfrom wsss_afa import app\napp.main()\nassert not {'torch', 'gradio'} & set(sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    page = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, env=env)
    assert page.returncode == 0, page.stderr
    assert "127.0.0.1" in page.stdout


def test_without_gradio_a_line_names_the_extra(tmp_path, ckpt, photos, run, monkeypatch):
    own = [name for name in sys.modules if name.startswith(("wsss_afa.web", "wsss_afa.programs.app"))]
    for name in own:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    words = [f"ckpt='{ckpt}'", f"data.root='{photos}'", f"hydra.run.dir='{tmp_path}'"]
    code, text = run(app, *words)
    assert (code, text) == (
        1,
        "error: this needs a package that is not installed: pip install 'wsss-afa[app]'",
    )
