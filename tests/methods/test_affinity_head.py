"""What is measured of the affinity head, and the curves and the sweep that compare its starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import same_color
from sklearn.metrics import log_loss
from torch.autograd import gradcheck
from wsss_afa.methods.afa.loss import AFALoss
from wsss_afa.reports.sweep_curves import draw_curves

from wsss_afa.errors import UserError
from wsss_afa.losses.affinity import affinity_cross_entropy, affinity_loss
from wsss_afa.methods.afa.network import AffinityHead
from wsss_afa.metrics import describe_labels
from wsss_afa.types import Activation, AFAOutput, AffinityTokens, PseudoLabels


def shares(affinity, label):
    segmentation = torch.zeros(1, 2, 2, dtype=torch.long)
    return describe_labels(PseudoLabels(segmentation, label), affinity)


def test_saturated_pairs_are_counted_among_labelled_ones_alone():
    rng = np.random.default_rng(0)
    affinity = rng.choice([0.0, 0.019, 0.021, 0.5, 0.979, 0.981, 1.0], (2, 30, 30)).astype(np.float32)
    label = rng.choice([0, 1, 255], affinity.shape)
    expected = np.mean([a < 0.02 or a > 0.98 for a in affinity[label != 255]])
    measured = shares(torch.tensor(affinity), torch.tensor(label))["saturated_affinity"]
    assert measured.item() == pytest.approx(expected)
    assert 0.4 < expected < 0.8


def test_without_labelled_pairs_nothing_is_saturated():
    label = torch.full((1, 4, 4), 255)
    measured = shares(torch.ones(1, 4, 4), label)
    assert all(measured[f"{what}_affinity"] == 0 for what in ("saturated", "false", "missed"))


def test_a_small_gain_leaves_large_logits_on_the_slope():
    """Heads whose logits have a standard deviation of 10, as training from scratch makes them."""
    torch.manual_seed(0)
    queries, keys = (10**0.5 * torch.randn(4, 16, 50, 20) / 20**0.25 for _ in range(2))
    tokens = AffinityTokens([queries], [keys], (5, 10))
    label = torch.ones(4, 50, 50, dtype=torch.long)

    def saturated(gain):
        torch.manual_seed(1)
        return shares(AffinityHead(16, gain)(tokens).detach(), label)["saturated_affinity"].item()

    assert saturated(1.0) > 0.75
    assert saturated(0.05) < 0.1


@pytest.fixture
def folders(tmp_path):
    """Two runs as the CSV logger leaves them: empty where a column has no value at a step."""
    for run, last in enumerate((0.5, 0.3)):
        (tmp_path / str(run)).mkdir()
        text = f"epoch,step,train/loss,val/miou_seg\n0,49,1.0,\n0,99,{last},\n0,99,,0.{run + 5}\n"
        (tmp_path / str(run) / "metrics.csv").write_text(text)
    return [tmp_path / "0", tmp_path / "1"]


def test_curves_are_read_by_steps_counted_from_one(folders):
    log = read_log(folders[1] / "metrics.csv")
    assert dict(log["train/loss"]) == {50: 1.0, 100: 0.3}
    assert dict(log["val/miou_seg"]) == {100: 0.6}


def test_a_line_is_the_mean_over_runs_and_a_band_their_deviation(folders):
    figure = draw_curves({"both": folders, "one": folders[:1]}, ["train/loss", "val/miou_seg"])
    loss, score = figure.axes
    both, one = loss.get_lines()
    np.testing.assert_allclose(both.get_xydata(), [[50, 1.0], [100, 0.4]])
    np.testing.assert_allclose(one.get_ydata(), [1.0, 0.5])
    np.testing.assert_allclose(score.get_lines()[0].get_xydata(), [[100, 0.55]])
    band = loss.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.4 - np.std([0.5, 0.3], ddof=1))
    assert same_color(loss.collections[0].get_facecolor()[0][:3], both.get_color())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["both", "one"]


def test_mistakes_say_what_there_is(folders, tmp_path):
    with pytest.raises(
        UserError, match=r"curves=train/nothing: no run logged it; there are train/loss, val/"
    ):
        draw_curves({"both": folders}, ["train/nothing"])
    with pytest.raises(UserError, match=r"metrics.csv is missing.*logger=csv"):
        draw_curves({"both": [tmp_path]}, ["train/loss"])


# Cross-entropy in place of the linear loss


def random_pairs():
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(2, 6, 6, dtype=torch.float64, generator=generator)
    label = torch.randint(0, 3, logits.shape, generator=generator)
    return logits, label.where(label < 2, 255)


def test_cross_entropy_is_scikit_learns_of_each_kind_of_pairs():
    logits, label = random_pairs()
    expected = 0.0
    for kind in (0, 1):
        truth, answer = [kind] * int((label == kind).sum()), logits[label == kind].sigmoid().numpy()
        expected += log_loss(truth, answer, labels=[0, 1], normalize=False) / (len(truth) + 1) / 2
    assert affinity_cross_entropy(logits, label).item() == pytest.approx(expected)
    assert gradcheck(lambda z: affinity_cross_entropy(z, label), (logits.requires_grad_(),))


@pytest.mark.parametrize(("kind", "wrong"), [(0, 1.0), (1, -1.0)])
def test_quite_wrong_pairs_teach_most_where_the_linear_loss_teaches_nothing(kind, wrong):
    logits = wrong * torch.tensor([[[-200.0, -2.0, 0.0, 2.0, 200.0]]])
    label = torch.full_like(logits, kind, dtype=torch.long)

    def gradient(loss):
        leaf = logits.clone().requires_grad_()
        loss(leaf).backward()
        return wrong * leaf.grad.flatten() * 6 * 2  # (N + 1), and each kind counts half

    linear = gradient(lambda z: affinity_loss(z.sigmoid(), label))
    entropy = gradient(lambda z: affinity_cross_entropy(z, label))
    slope = (logits.sigmoid() * (1 - logits.sigmoid())).flatten()
    torch.testing.assert_close(linear, slope)
    torch.testing.assert_close(entropy, (wrong * logits).sigmoid().flatten())
    assert linear[4] == 0
    assert entropy[4] == 1


def test_ignored_pairs_cost_nothing():
    logits, label = random_pairs()
    loss = affinity_cross_entropy(logits.requires_grad_(), torch.full_like(label, 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("chosen", [False, True])
def test_the_setting_chooses_the_loss(chosen):
    logits, label = random_pairs()
    empty = torch.zeros(2, 3)
    activation = Activation(torch.zeros(2, 2, 1, 1), AffinityTokens([], [], (1, 1)))
    output = AFAOutput(empty, torch.zeros(2, 4, 2, 2), logits, activation)
    batch = {"class_label": torch.ones(2, 3), "valid_box": torch.tensor([[0, 4, 0, 4]] * 2)}
    labels = PseudoLabels(torch.zeros(2, 4, 4, dtype=torch.long), label)
    terms = AFALoss(affinity_cross_entropy=chosen)(output, batch, labels)
    expected = affinity_cross_entropy(logits, label) if chosen else affinity_loss(logits.sigmoid(), label)
    assert terms["aff"].item() == pytest.approx(expected.item())
