"""Figures show the scores that they are given, and nothing else."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tracin_core import charts
from tracin_core.errors import ViewError

SCORES = arrays(np.float64, st.integers(2, 60), elements=st.floats(-1e6, 1e6).map(lambda score: round(score, 3)))


@given(scores=SCORES, scale=st.sampled_from(charts.SCALES))
def test_every_score_is_counted_once(scores: np.ndarray, scale: charts.Scale) -> None:
    values = np.abs(scores) if scale == "log" else scores
    if not values.any():
        return
    bins = charts.histogram(values, scale)
    assert bins.total == len(values)
    assert bins.zeros == (values == 0).sum()


@given(scores=SCORES, scale=st.sampled_from(charts.SCALES))
def test_a_place_and_its_score_are_inverse(scores: np.ndarray, scale: charts.Scale) -> None:
    values = np.abs(scores) if scale == "log" else scores
    if not values.any():
        return
    axis = charts.histogram(values, scale).axis
    places = np.linspace(0, 1, 7)
    assert np.allclose(axis.place(axis.score(places)), places, atol=1e-6)
    assert axis.place([axis.low, axis.high]) == pytest.approx([0, 1])


@given(scores=SCORES, threshold=st.floats(-1e6, 0))
def test_slider_steps_ascend_to_zero_and_hold_the_threshold_itself(scores: np.ndarray, threshold: float) -> None:
    if not scores.any():
        return
    steps = charts.threshold_steps(charts.histogram(scores).axis, threshold)
    assert threshold in steps
    assert (np.diff(steps) > 0).all()
    assert steps[-1] <= 0


def test_scores_that_are_no_finite_number_are_counted_apart() -> None:
    bins = charts.histogram([1.0, -2.0, 0.0, np.inf, np.nan])
    assert (bins.counts.sum(), bins.zeros, bins.not_finite) == (2, 1, 2)


def test_nothing_but_zeros_is_said_to_be_so() -> None:
    with pytest.raises(ViewError, match="exactly 0"):
        charts.histogram(np.zeros(5))


def test_a_logarithm_of_negative_scores_is_refused() -> None:
    with pytest.raises(ViewError, match="asinh"):
        charts.histogram([-1.0, 2.0], "log")


def test_a_click_names_the_cell_under_it() -> None:
    grid = pd.DataFrame({"low": [0, 0, 36], "high": [36, 72, 72], "n": [4, 5, 6], "mean": [1.0, -2.0, 3.0]})
    figure = charts.grid_figure(grid, "mean", x="x2", y="x1", name="mean", chosen=(0, 72))
    targets = figure.data[1]
    for row, (x, y, number) in enumerate(zip(targets.x, targets.y, targets.customdata, strict=True)):
        assert (y, x) == (f"{grid['low'][row]}°", f"{grid['high'][row]}°")
        assert charts.clicked({"selection": {"points": [{"customdata": number}]}}) == row
    assert charts.clicked({"selection": {"points": []}}) is None
    heat = figure.data[0]
    assert heat.z[list(heat.y).index("0°")][list(heat.x).index("72°")] == -2.0
    assert heat.text[list(heat.y).index("36°")][list(heat.x).index("72°")].endswith("n = 6")


def test_a_figure_too_heavy_for_a_browser_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "LIMIT", 20)
    ranked = pd.DataFrame({"influence": np.ones(11), "name": "a"})
    with pytest.raises(ViewError, match="22 numbers"):
        charts.ranked_figure(ranked, "influence", "name", x="influence")


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (-5.0, "-5"), (1234.0, "1.23k"), (999_900.0, "1M"), (0.00123, "0.00123")])
def test_numbers_are_short(value: float, text: str) -> None:
    assert charts.short(value) == text


def test_a_mark_without_a_place_on_the_axis_is_not_drawn() -> None:
    bins = charts.histogram([0.0, 1.0, 10.0, 100.0], "log")
    figure = charts.histogram_figure(bins, x="score", y="pairs", zeros="0", marks={"5%": 0.0, "50%": 10.0})
    assert [note.text for note in figure.layout.annotations] == ["50%"]
