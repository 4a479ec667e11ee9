"""Curves of runs: means over runs and their deviations, from what the CSV logger leaves."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import same_color

from wsss_afa.errors import UserError
from wsss_afa.reports.figures import draw_curves
from wsss_afa.reports.log import read_log


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
