"""Pseudo labels against loops over images, thresholds and classes that crop what they refine."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import reference
from wsss_afa.errors import UserError
from wsss_afa.methods.afa.network import AFANet, AFAOutput
from wsss_afa.methods.afa.pseudo_labels import PseudoLabeler
from wsss_afa.models.backbones.mix_transformer import MixTransformer
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.ops.labels import best_class, own_classes
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.ops.random_walk import RandomWalkPropagation
from wsss_afa.types import MEAN, STD, Activation, AffinityTokens, Batch, PseudoLabels

TAGS = torch.tensor([[1.0, 0, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]])
BOXES = [(0, 32, 0, 48), (5, 30, 0, 41), (3, 20, 7, 48), (1, 32, 2, 33)]
DILATIONS, RADIUS, THRESHOLDS = (1, 2, 4), 2, (0.35, 0.55)
REFINED, PROPAGATED = False, True
"""Whether labels are propagated already."""


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class Blobs:
    """A localizer whose maps follow the image's colours, and whose affinity is made of its tokens."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def activate(self, image: Tensor) -> Activation:
        self.asked.append("activate")
        coarse = F.avg_pool2d(image, 8)
        cam = torch.cat([coarse, coarse.mean(1, keepdim=True)], dim=1)
        tokens = coarse.flatten(2).mT[:, None]
        return Activation(cam, AffinityTokens([tokens], [tokens], (coarse.shape[-2], coarse.shape[-1])))

    def affinity_head(self, tokens: AffinityTokens) -> Tensor:
        self.asked.append("affinity")
        token = tokens.queries[0][:, 0]
        return torch.exp(-torch.cdist(token, token))


def output_of(activation: Activation) -> AFAOutput:
    empty = torch.zeros(0)
    return AFAOutput(empty, empty, empty, activation)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Four smooth images, black outside their boxes."""
    small = torch.randn(4, 3, 6, 8, generator=torch.Generator().manual_seed(4)) * 1.5
    image = F.interpolate(small, size=(32, 48), mode="bicubic") + 0.1 * rand(4, 3, 32, 48)
    box = torch.tensor(BOXES)
    rows, columns = torch.arange(32)[None, :, None], torch.arange(48)[None, None, :]
    edge = box[:, :, None, None]
    inside = (rows >= edge[:, 0]) & (rows < edge[:, 1]) & (columns >= edge[:, 2]) & (columns < edge[:, 3])
    return {"image": image * inside[:, None], "class_label": TAGS, "valid_box": box, "name": list("abcd")}


def make_labeler(**settings: object) -> PseudoLabeler:
    defaults = {
        "cam": MultiScaleCAM(),
        "refine": PixelAdaptiveRefinement(3, DILATIONS),
        "propagate": RandomWalkPropagation(RADIUS),
        "affinity_radius": RADIUS,
    }
    return PseudoLabeler(**defaults | settings)


def run(labeler: PseudoLabeler, batch: Batch, propagating: bool, net: Blobs | None = None) -> PseudoLabels:
    return labeler(net or Blobs(), batch, output_of(Blobs().activate(batch["image"])), propagating)


def refine(rgb: Tensor, maps: Tensor) -> Tensor:
    return reference.par(rgb[None], maps[None], 3, DILATIONS)[0]


@pytest.fixture(scope="module")
def expected(batch: Batch) -> dict[str, Tensor]:
    """CAM, PAR and propagated labels, image by image."""
    made: dict[str, list[Tensor]] = {"cam": [], "par": [], "propagated": [], "normalized": []}
    for image, tags, box in zip(batch["image"], TAGS.tolist(), BOXES, strict=True):
        cam = reference.multi_scale_cam(lambda x: Blobs().activate(x[None]).cam[0], image, (1, 0.5, 1.5))
        large = Blobs().activate(reference.resize(image, (48, 72))[None])
        affinity = Blobs().affinity_head(large.tokens)[0]
        mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
        rgb = (image * std + mean).clamp(0, 255).floor() / 255
        made["cam"].append(reference.cam_label(cam, tags, *THRESHOLDS, box))
        made["par"].append(reference.refined_label(rgb, cam, tags, box, THRESHOLDS, refine))
        walk = lambda maps, a=affinity: reference.propagate(maps, a, RADIUS)  # noqa: E731
        for name in ("propagated", "normalized"):
            label = reference.propagated_label(
                rgb, cam, tags, box, THRESHOLDS, refine, walk, (6, 9), normalized=name == "normalized"
            )
            made[name].append(label)
    return {name: torch.stack(labels) for name, labels in made.items()}


def assert_same_label(ours: Tensor, theirs: Tensor) -> None:
    """Equal, but for a pixel in a thousand where rounding decides."""
    assert (ours.dtype, ours.shape) == (torch.int64, theirs.shape)
    assert (ours != theirs).float().mean() < 1e-3


# Whole labels


def test_the_example_has_everything(expected):
    assert set(expected["cam"][1].unique().tolist()) == {0, 1, 3, 4, 255}
    labels = ("par", "propagated", "normalized")
    for name, other in zip(labels, labels[1:] + labels[:1], strict=True):
        assert {0, 255} < set(expected[name].unique().tolist())
        assert (expected[name] != expected[other]).float().mean() > 0.01


def test_cam_label_of_the_baseline(batch, expected):
    labels = run(make_labeler(labels="cam"), batch, REFINED)
    assert labels.affinity is None
    assert_same_label(labels.segmentation, expected["cam"])


def test_refined_label(batch, expected):
    labels = run(make_labeler(), batch, REFINED)
    assert_same_label(labels.segmentation, expected["par"])
    pairs = [reference.affinity_label(label, (4, 6), RADIUS) for label in labels.segmentation]
    assert torch.equal(labels.affinity, torch.stack(pairs))


def test_propagated_label(batch, expected):
    labels = run(make_labeler(), batch, PROPAGATED)
    assert_same_label(labels.segmentation, expected["propagated"])
    refined = run(make_labeler(), batch, REFINED)
    assert torch.equal(labels.affinity, refined.affinity)  # still taught by the refined label


def test_normalized_propagated_label(batch, expected):
    labels = run(make_labeler(normalize_propagated=True), batch, PROPAGATED)
    assert_same_label(labels.segmentation, expected["normalized"])


def test_normalizing_keeps_an_object_that_the_walk_averages():
    """Half of an object fires; its affinity is whole, so that a walk makes its mean of every cell."""
    cam = torch.tensor([[1.0, 1.0, 0.1, 0.1, 0.0, 0.0]]).view(1, 1, 1, 6)
    affinity = torch.block_diag(torch.ones(4, 4), torch.eye(2))[None]
    activation = Activation(cam, AffinityTokens([], [], (1, 6)))
    classes = own_classes(torch.ones(1, 1))
    for normalized, object_label in ((False, 0), (True, 1)):
        labeler = make_labeler(propagate=RandomWalkPropagation(8), normalize_propagated=normalized)
        (scores,) = labeler.propagated_maps(activation, affinity, classes, [0.6])
        assert best_class(scores, classes).flatten().tolist() == [object_label] * 4 + [0, 0]


def test_affinity_from_the_propagated_label(batch, expected):
    labels = run(make_labeler(affinity_from_propagated=True), batch, PROPAGATED)
    assert_same_label(labels.segmentation, expected["propagated"])
    pairs = [reference.affinity_label(label, (4, 6), RADIUS) for label in labels.segmentation]
    assert torch.equal(labels.affinity, torch.stack(pairs))
    early = run(make_labeler(affinity_from_propagated=True), batch, REFINED)
    assert torch.equal(early.affinity, run(make_labeler(), batch, REFINED).affinity)


def test_refinement_alone_has_no_affinity(batch, expected):
    for propagating in (REFINED, PROPAGATED):
        labels = run(make_labeler(labels="par"), batch, propagating)
        assert labels.affinity is None
        assert_same_label(labels.segmentation, expected["par"])


FORMS = {
    "cam": {"labels": "cam"},
    "par": {"labels": "par"},
    "afa": {},
    "coco": {"affinity_from_propagated": True},
    "normalized": {"normalize_propagated": True},
    "quarter": {"downscale": 4},
    "full": {"downscale": 1},
}


@pytest.mark.parametrize("propagating", [REFINED, PROPAGATED])
@pytest.mark.parametrize("form", FORMS)
def test_properties(batch, form, propagating):
    labels = run(make_labeler(**FORMS[form]), batch, propagating)
    for label, tags, (top, bottom, left, right) in zip(labels.segmentation, TAGS, BOXES, strict=True):
        own = {0, 255} | {c + 1 for c in range(4) if tags[c]}
        assert set(label.unique().tolist()) <= own
        outside = torch.ones_like(label, dtype=torch.bool)
        outside[top:bottom, left:right] = False
        assert (label[outside] == 255).all()
        assert (label[~outside] != 255).any()


@pytest.mark.parametrize("propagating", [REFINED, PROPAGATED])
@pytest.mark.parametrize("form", FORMS)
def test_a_batch_is_its_images(batch, form, propagating):
    labels = run(make_labeler(**FORMS[form]), batch, propagating)
    for i in range(4):
        alone: Batch = {key: values[i : i + 1] for key, values in batch.items()}
        one = run(make_labeler(**FORMS[form]), alone, propagating)
        assert_same_label(one.segmentation[0], labels.segmentation[i])
        if labels.affinity is not None:
            assert (one.affinity[0] != labels.affinity[i]).float().mean() < 1e-2


def test_an_image_without_tags_is_background(batch):
    for propagating in (REFINED, PROPAGATED):
        label = run(make_labeler(), batch, propagating).segmentation[2]
        assert set(label.unique().tolist()) == {0, 255}
        assert (label == 0).sum() == (20 - 3) * (48 - 7)


def test_inputs_are_untouched(batch):
    before = {name: batch[name].clone() for name in ("image", "class_label", "valid_box")}
    run(make_labeler(), batch, PROPAGATED)
    assert all(torch.equal(batch[name], value) for name, value in before.items())


# What is computed when


class Counting(PixelAdaptiveRefinement):
    """Notes the type of everything it refines."""

    def __init__(self) -> None:
        super().__init__(1, (1,))
        self.seen: list[tuple[torch.dtype, torch.dtype]] = []

    def forward(self, image: Tensor, maps: Tensor, extent: Tensor | None = None) -> Tensor:
        self.seen.append((image.dtype, maps.dtype))
        return super().forward(image, maps, extent)


@pytest.mark.parametrize(
    ("propagating", "from_propagated", "affinities", "refinements"),
    [(False, False, 0, 1), (True, False, 1, 2), (False, True, 0, 1), (True, True, 1, 1)],
)
def test_parts_are_computed_where_they_are_used(batch, propagating, from_propagated, affinities, refinements):
    net, par = Blobs(), Counting()
    run(make_labeler(refine=par, affinity_from_propagated=from_propagated), batch, propagating, net)
    assert net.asked.count("affinity") == affinities
    assert len(par.seen) == refinements


def test_the_training_pass_is_used_again(batch):
    passes = []
    for reuse in (True, False):
        net = Blobs()
        run(make_labeler(reuse_training_pass=reuse), batch, REFINED, net)
        passes.append(net.asked.count("activate"))
    assert passes == [5, 6]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_refinement_stays_in_float32_under_autocast(dtype):
    torch.manual_seed(0)
    net = AFANet(MixTransformer((8, 16, 20, 32), (1, 1, 1, 2)), num_classes=4, decoder_dim=8)
    par = Counting()
    image = torch.randn(2, 3, 64, 64)
    tags, box = TAGS[:2], torch.tensor([(0, 64, 0, 64), (10, 64, 0, 50)])
    batch: Batch = {"image": image, "class_label": tags, "valid_box": box, "name": ["a", "b"]}
    with torch.autocast("cpu", dtype):
        output = net(image)
        labels = make_labeler(refine=par)(net, batch, output, PROPAGATED)
    assert par.seen == [(torch.float32, torch.float32)] * 2
    assert set(labels.segmentation[0].unique().tolist()) <= {0, 1, 255}
    assert set(labels.affinity.unique().tolist()) <= {0, 1, 255}


# Evaluation


def test_evaluation_labels(batch):
    labeler = make_labeler(cam=MultiScaleCAM((1.0,), mirror=False))
    made = labeler.evaluate(Blobs(), batch, output_of(Blobs().activate(batch["image"])))
    for i, (image, tags) in enumerate(zip(batch["image"], TAGS.tolist(), strict=True)):
        whole = (0, 32, 0, 48)
        activation = Blobs().activate(image[None])
        cam = reference.multi_scale_cam(lambda x: Blobs().activate(x[None]).cam[0], image, (1.0,), False)
        assert_same_label(made["cam"][i], reference.cam_label(cam, tags, 0.45, 0.45, whole))
        maps, ids = reference.own_maps(reference.resize(cam, (4, 6)), tags, 0.35)
        affinity = Blobs().affinity_head(activation.tokens)[0]
        walked = reference.propagate(maps.softmax(0), affinity, RADIUS)
        assert_same_label(made["affinity"][i], reference.best_ids(reference.resize(walked, (32, 48)), ids))


def test_evaluation_ignores_nothing_and_the_baseline_has_one_label(batch):
    output = output_of(Blobs().activate(batch["image"]))
    both = make_labeler().evaluate(Blobs(), batch, output)
    assert both.keys() == {"cam", "affinity"}
    assert all((label != 255).all() for label in both.values())
    assert make_labeler(labels="par").evaluate(Blobs(), batch, output).keys() == {"cam"}


def test_unknown_labels_are_refused():
    with pytest.raises(UserError, match=r"method\.labels=none is not known; need cam, par, afa"):
        make_labeler(labels="none")


@pytest.mark.parametrize(("low", "high"), [(0.6, 0.5), (-0.1, 0.5), (0.3, 1.1)])
def test_thresholds_are_checked(low, high):
    with pytest.raises(UserError, match="need 0 ≤ low ≤ high ≤ 1") as error:
        make_labeler(low=low, high=high)
    assert "\n" not in str(error.value)
