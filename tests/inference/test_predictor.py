"""Prediction in Python: answers that are known, images of every kind and size, files as promised."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from painter import COLOURS, NAMES, Painter, painter, save_checkpoint, scene
from untrained import supervised_recipe, untrained
from wsss_afa.errors import UserError
from wsss_afa.inference import prediction as prediction_module
from wsss_afa.inference.predictor import Predictor, Sizes
from wsss_afa.methods.recipe import load
from wsss_afa.ops.multi_scale import MultiScaleSegmentation
from wsss_afa.reports.visualize import paint_label, voc_palette
from wsss_afa.types import MEAN, STD


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "net.ckpt")


def test_a_checkpoint_predicts_what_its_network_says(checkpoint, tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(rgb).save(tmp_path / "photo.png")
    predictor = Predictor.from_checkpoint(checkpoint)
    prediction = predictor(tmp_path / "photo.png")

    net = load(checkpoint).eval()
    image = ((torch.tensor(rgb).float() - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)[None]
    with torch.no_grad():
        probabilities = F.interpolate(net.segment(image), (70, 90), mode="bilinear").softmax(1)[0].numpy()
        scores = net.classify(image)[0].sigmoid().numpy()
    assert np.array_equal(prediction.label, probabilities.argmax(0))
    assert len(prediction.found) >= 2  # the test would see channels mixed up
    np.testing.assert_allclose(prediction.scores, scores, rtol=1e-5)
    for label, name in enumerate(("background", *NAMES)):
        np.testing.assert_allclose(prediction.probability(name), probabilities[label], atol=1e-5)
    assert prediction.name == "photo"
    assert prediction.class_names == ("red", "green", "deep blue")


def test_label_areas_and_scores_are_the_pictures():
    rgb, label = scene()
    prediction = painter()(rgb)
    assert np.array_equal(prediction.label, label)
    assert prediction.label.dtype == np.uint8
    np.testing.assert_allclose(prediction.areas, [(label == k).mean() for k in range(4)])
    assert prediction.found == ("green", "red", "deep blue")  # largest first
    assert prediction.scores.round().tolist() == [1, 1, 1]
    assert painter()(COLOURS[np.zeros((9, 9), int)]).found == ()


def in_mode(mode: str, rgb: np.ndarray) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(rgb).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "L", "LA", "1", "I;16", "YCbCr"])
@pytest.mark.parametrize("kind", ["path", "text", "image", "array"])
def test_every_mode_and_source(mode, kind, tmp_path):
    rgb, label = scene()
    image = in_mode(mode, rgb)
    path = tmp_path / ("image.tif" if mode in ("CMYK", "YCbCr") else "image.png")
    image.save(path, compression="tiff_lzw" if mode == "YCbCr" else None)  # it cannot read its raw one
    given = {"path": path, "text": str(path), "image": image, "array": np.array(image.convert("RGB"))}[kind]
    if mode == "I;16" and kind == "array":
        pytest.skip("Pillow cannot convert it")
    prediction = painter()(given)
    assert prediction.label.shape == label.shape
    if mode not in ("L", "LA", "1", "I;16"):
        assert np.array_equal(prediction.label, label)
    if mode == "I;16":
        assert np.array_equal(prediction.image, np.repeat(rgb[..., :1], 3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["path", "image"])
def test_results_are_upright(orientation, kind, tmp_path):
    """The inverse of each turn, stored, comes back upright."""
    rgb, label = scene()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose: mirrors, then quarter turns
    stored = Image.fromarray(rgb)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as image:
        prediction = painter()(image if kind == "image" else tmp_path / "photo.png")
    assert np.array_equal(prediction.label, label)
    assert np.array_equal(prediction.image, rgb)


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp", "png"])
def test_of_several_frames_the_first_counts(suffix, tmp_path):
    rgb, label = scene()
    first, second = Image.fromarray(rgb), Image.new("RGB", (40, 24), (20, 230, 20))
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(tmp_path / f"frames.{suffix}", save_all=True, append_images=[second], **options)
    assert np.array_equal(painter()(tmp_path / f"frames.{suffix}").label, label)


SIZES = [(1, 1), (1, 700), (700, 1), (7, 3), (28, 30), (29, 29), (31, 200)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "protocol",
    [
        None,
        MultiScaleSegmentation(scales=(1.0, 0.5, 0.75), mirror=True),
        MultiScaleSegmentation(scales=(1.0, 0.5), long_side=64),
    ],
    ids=["plain", "scales", "long side"],
)
def test_every_size_is_answered_at_its_size(size, protocol, checkpoint):
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    predictor = Predictor.from_checkpoint(checkpoint, protocol=protocol, sizes=Sizes(tile=256, overlap=64))
    prediction = predictor(rgb)
    assert prediction.label.shape == prediction.cam("red").shape == size
    assert prediction.overlay().shape[0] >= size[0]
    total = sum(prediction.probability(name) for name in ("background", *prediction.class_names))
    np.testing.assert_allclose(total, 1, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 1), (20, 40)])
def test_images_that_are_shorter_than_the_network_takes(checkpoint, size):
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    prediction = Predictor.from_checkpoint(checkpoint)(rgb)
    assert prediction.label.shape == prediction.cam(prediction.class_names[0]).shape == size


@pytest.mark.parametrize("reduction", [1, 4])
def test_tiles_equal_the_whole(reduction):
    rgb, _ = scene(150, 210)
    whole = painter(reduction, sizes=Sizes(tile=None))
    tiled = painter(reduction, sizes=Sizes(tile=48, overlap=16))
    expected, got = whole(rgb), tiled(rgb)
    assert np.array_equal(got.label, expected.label)
    np.testing.assert_allclose(got.probability("green"), expected.probability("green"), atol=1e-5)
    assert whole.method.net.sizes[0] == (150, 210)
    assert max(max(size) for size in tiled.method.net.sizes) < 48 + reduction


def test_tiles_of_a_transformer_join_without_a_seam(checkpoint):
    """Nowhere a step between neighbours that the whole image's result has not as well, nearly."""
    x, y = np.meshgrid(np.linspace(0, 9, 320), np.linspace(0, 9, 320))
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=2)
    rgb = (127 + 120 * waves).astype(np.uint8)
    steps = []
    for tile, overlap in ((None, 0), (128, 64), (128, 0)):
        sizes = Sizes(tile=tile, overlap=overlap)
        shares = Predictor.from_checkpoint(checkpoint, sizes=sizes)(rgb).probability("green")
        steps.append(np.abs(np.diff(shares, axis=1))[:, 16:-16].max())
    whole, blended, cut = steps
    assert blended < 1.25 * whole
    assert cut > blended


def test_large_images_are_reduced_and_enlarged_again():
    rgb, label = scene(300, 500)
    predictor = painter(sizes=Sizes(long_side=250))
    prediction = predictor(rgb)
    assert set(predictor.method.net.sizes) == {(150, 250)}
    assert prediction.label.shape == prediction.cam("red").shape == (300, 500)
    assert (prediction.label == label).mean() > 0.99
    assert prediction.image.shape == rgb.shape


def test_class_scores_and_heat_maps_see_a_large_image_at_once():
    rgb, label = scene(300, 500)
    predictor = painter(sizes=Sizes(tile=100, overlap=20))
    prediction = predictor(rgb)
    assert predictor.method.net.sizes[0] == (60, 100)
    assert np.array_equal(prediction.label, label)
    heat = prediction.cam("red")
    assert heat.shape == (300, 500)
    assert heat[label == 1].mean() > 0.9 > heat[label != 1].mean()


@pytest.mark.parametrize(("tile", "passes"), [(1024, 1), (96, 5)])
def test_class_scores_come_from_the_pass_that_segments(afa_checkpoint, tile, passes):
    """An image in four tiles is passed once more, reduced, for its scores."""
    predictor = Predictor.from_checkpoint(afa_checkpoint, sizes=Sizes(tile=tile, overlap=32))
    calls = []
    predictor.method.net.backbone.register_forward_hook(lambda *_: calls.append(1))
    rgb, _ = scene(128, 128)
    prediction = predictor(rgb)
    assert len(calls) == passes
    whole = predictor.method.classify(predictor._normalise(rgb))[0].sigmoid().detach()
    if passes == 1:
        np.testing.assert_allclose(prediction.scores, whole, atol=1e-6)


def test_tags_restrict_the_classes():
    rgb, label = scene()
    prediction = painter()(rgb, tags=["deep blue", "red"])
    assert set(np.unique(prediction.label)) <= {0, 1, 3}
    assert np.array_equal(prediction.label == 1, label == 1)
    assert np.array_equal(prediction.label == 3, label == 3)
    assert set(prediction.found) == {"red", "deep blue"}
    assert not prediction.probability("green").any()
    total = sum(prediction.probability(name) for name in ("background", "red", "deep blue"))
    np.testing.assert_allclose(total, 1, atol=1e-6)
    absent = painter()(COLOURS[np.zeros((9, 9), int)], tags=["green"])
    assert absent.found == ("green",)  # it was asked for
    assert absent.areas.tolist() == [1, 0, 0, 0]


def test_heat_maps_are_made_once_when_asked_for():
    rgb, label = scene()
    predictor = painter()
    prediction = predictor(rgb)
    assert predictor.method.net.passes == 0
    for k, name in enumerate(prediction.class_names, 1):
        heat = prediction.cam(name)
        assert (heat.dtype, heat.min()) == (np.float32, 0)
        assert heat.max() <= 1
        assert heat[label == k].min() > heat[label != k].max()
    assert predictor.method.net.passes == 1


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_a_network_of_the_second_stage_predicts(name):
    own = ("backbone=timm_pyramid", f"backbone.name={name}")
    method = untrained(supervised_recipe(*own, class_names=NAMES), std=2)
    predictor = Predictor(method, "cpu", sizes=Sizes(tile=64, overlap=32))
    rgb = np.random.default_rng(0).integers(0, 256, (70, 101, 3), np.uint8)
    prediction = predictor(rgb)
    assert prediction.label.shape == prediction.cam("red").shape == (70, 101)
    assert prediction.scores.shape == (3,)


def test_evaluation_mode_in_float32(checkpoint):
    rgb, _ = scene(64, 64)
    method = load(checkpoint)
    predictor = Predictor(method.train(), "cpu")
    assert not any(module.training for module in method.modules())
    before = method.net.decoder.norm.running_mean.clone()
    first = predictor(rgb)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        second = predictor(rgb)
    assert np.array_equal(first.probability("red"), second.probability("red"))
    assert torch.equal(method.net.decoder.norm.running_mean, before)


def test_saved_files(tmp_path):
    rgb, label = scene()
    prediction = painter()(rgb)
    record = json.loads(json.dumps(prediction.save(tmp_path, "below/name")))
    with Image.open(tmp_path / record["mask"]) as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.array(mask), label)
        assert np.array_equal(np.reshape(mask.getpalette(), (-1, 3))[:21], voc_palette(21))
    with Image.open(tmp_path / record["overlay"]) as overlay:
        pixels = np.array(overlay)
        assert np.array_equal(pixels[:24, :40], paint_label(rgb, label))
        assert pixels.shape[0] > 24
    assert (record["width"], record["height"]) == (40, 24)
    assert [(each["name"], each["label"]) for each in record["classes"]] == [
        ("green", 2), ("red", 1), ("deep blue", 3),
    ]  # fmt: skip
    areas = [each["area"] for each in record["classes"]]
    assert record["background_area"] + sum(areas) == pytest.approx(1)
    assert record["classes"][2]["cam"] == "cams/below/name/3_deep_blue.png"
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {record["mask"], record["overlay"], *(each["cam"] for each in record["classes"])}


def test_painting_in_bands_is_painting_at_once(monkeypatch):
    prediction = painter()(scene()[0])
    at_once = prediction.overlay()
    monkeypatch.setattr(prediction_module, "_BAND", 5)
    assert np.array_equal(prediction.overlay(), at_once)


def test_the_legend_names_the_classes(tmp_path):
    rgb, _ = scene(100, 400)
    overlay = painter()(rgb).overlay()
    assert overlay.shape[1] == 400
    strip = overlay[100:]
    for k in (1, 2, 3):
        assert (strip == voc_palette()[k]).all(axis=2).any()
    assert (strip < 100).all(axis=2).any()  # letters
    background = painter()(COLOURS[np.zeros((9, 9), int)]).overlay()
    assert background.shape == (9, 9, 3)


MISTAKES = {
    "floats": (np.zeros((4, 4, 3)), "float64 of shape"),
    "grey array": (np.zeros((4, 4), np.uint8), r"shape \(4, 4\), need uint8 RGB"),
    "no pixels": (np.zeros((0, 4, 3), np.uint8), "shape"),
    "no pixels, image": (Image.new("RGB", (0, 4)), "shape"),
    "missing file": ("nowhere.jpg", r"nowhere\.jpg does not exist"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_no_image_is_refused(mistake):
    image, pattern = MISTAKES[mistake]
    with pytest.raises(UserError, match=pattern) as error:
        painter()(image)
    assert len(str(error.value).splitlines()) == 1


def test_a_truncated_image_in_memory_is_refused():
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(stream, "JPEG")
    with (
        Image.open(io.BytesIO(stream.getvalue()[:900])) as image,
        pytest.raises(UserError, match="cannot be read"),
    ):
        painter()(image)


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"tile": 0}, r"tile=0, need 1 or more pixels or null"),
        ({"tile": -512}, "tile=-512"),
        ({"tile": "auto"}, "tile=auto"),
        ({"tile": 64, "overlap": 64}, r"overlap=64, need 0 to 63"),
        ({"overlap": -1}, "overlap=-1"),
        ({"long_side": 0}, "long_side=0"),
        ({"long_side": 99.5}, "long_side=99.5"),
        ({"max_pixels": 10**9}, "max_pixels=1000000000, need 1 to 178956970"),
    ],
)
def test_sizes_out_of_range_are_refused(settings, pattern):
    with pytest.raises(UserError, match=pattern):
        Sizes(**settings)


def test_settings_that_do_not_fit_are_refused(checkpoint, tmp_path):
    rgb, _ = scene()
    with pytest.raises(UserError, match="tile=28, need 29 pixels or more"):
        Predictor.from_checkpoint(checkpoint, sizes=Sizes(tile=28, overlap=0))
    with pytest.raises(UserError, match="device=cuda:99 cannot be used"):
        Predictor.from_checkpoint(checkpoint, device="cuda:99")
    with pytest.raises(UserError, match="device=gpu cannot be used"):
        Predictor.from_checkpoint(checkpoint, device="gpu")
    for tags, pattern in {("rad",): "'rad' is no class .* did you mean red?", (): "need a list"}.items():
        with pytest.raises(UserError, match=pattern):
            painter()(rgb, tags=tags)
    with pytest.raises(UserError, match="'yellow' is no class"):
        painter()(rgb).cam("yellow")


def test_broken_weights_are_named(checkpoint):
    method = load(checkpoint)
    nn.init.constant_(method.net.decoder.predict.bias, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        Predictor(method, "cpu")(scene()[0])


def test_too_little_memory_is_named(monkeypatch):
    def fail(self: Painter, image: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(Painter, "segment", fail)
    with pytest.raises(UserError, match=r"image needs more memory .*long_side or tile"):
        painter()(scene()[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_answers_as_the_cpu(checkpoint):
    rgb = np.random.default_rng(0).integers(0, 256, (150, 210, 3), np.uint8)
    sizes = Sizes(tile=96, overlap=32)
    cpu, gpu = (Predictor.from_checkpoint(checkpoint, device, sizes=sizes)(rgb) for device in ("cpu", "cuda"))
    assert (cpu.label == gpu.label).mean() > 0.999
    np.testing.assert_allclose(cpu.probability("red"), gpu.probability("red"), atol=1e-3)
    np.testing.assert_allclose(cpu.cam("red"), gpu.cam("red"), atol=1e-2)
