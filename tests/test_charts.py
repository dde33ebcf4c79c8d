"""Figures show the scores that they are given, and nothing else."""

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pages.shared import comparing_figures
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


AXIS = charts.histogram(np.linspace(-3, 5, 50)).axis
WIDE = charts.Histogram(AXIS, np.linspace(0, 1, 4), np.array([3, 1, 2]), zeros=4, not_finite=0)
GRID = pd.DataFrame({"low": [0, 0, 36], "high": [36, 72, 72], "n": [4, 5, 6], "mean": [1.0, -2.0, 3.0]})
NAMED = pd.DataFrame({"low": ["b", "a"], "high": ["b", "a"], "n": [4, 5], "mean": [1.0, 2.0]})
POINTS = pd.DataFrame({"x": [0.1, 0.2, 0.3], "y": [0.3, 0.2, 0.1], "label": list("abc")})
SPREAD = pd.DataFrame({"n": [3, 0, 5], **{f"q{share}": [-1.0, 0.0, 2.0] for share in ("05", "25", "50", "75", "95")}})
MEANS = pd.DataFrame({"name": ["a", "b"], "mean": [0.5, 0.6], "low": [0.4, 0.5], "high": [0.6, 0.7], "chosen": [False, True]})
CURVE = pd.DataFrame({"k": [1, 2], "shared": [1, 1], "chance": [0.5, 1.0]})
WORDS = {"k": "k", "share": "share", "here": "here", "chance": "chance", "seeds": "seeds"}
KINDS = {
    "histogram": lambda: charts.histogram_figure(WIDE, x="x", y="y", zeros="0", marks={"5%": -1.0}),
    "histogram over": lambda: charts.histogram_figure(WIDE, x="x", y="y", zeros="0", marks={"5%": -1.0}, over=("b", WIDE), name="a"),
    "cumulative": lambda: charts.cumulative_figure({"a": WIDE, "b": WIDE}, x="x", y="y"),
    "boxes": lambda: charts.boxes_figure(SPREAD, list("abc"), AXIS, x="x", y="y"),
    "points in groups": lambda: charts.points_figure(POINTS.assign(group=list("aab")), x="x", y="y", axes=(AXIS, AXIS)),
    "points of a value": lambda: charts.points_figure(POINTS.assign(value=[1.0, -2.0, 3.0]), x="x", y="y", name="v", select=True),
    "many points": lambda: charts.points_figure(pd.concat([POINTS] * 700, ignore_index=True), x="x", y="y"),
    "grid": lambda: charts.grid_figure(GRID, "mean", x="x", y="y", name="n", chosen=(0, 72)),
    "grid of names": lambda: charts.grid_figure(NAMED, "mean", x="x", y="y", name="n", chosen=("a", "a"), small=True),
    "ranked": lambda: charts.ranked_figure(pd.DataFrame({"v": [2.0, -1.0], "of": ["a<b", "c"]}), "v", "of", x="x"),
    "contributions": lambda: charts.contributions_figure([1.0, -2.0], ["a", "b"], x="x", y="y"),
    "lines": lambda: charts.lines_figure({"a": [1, 2], "b": [2, 3]}, ["1", "2"], x="x", y="y"),
    "arms": lambda: charts.arms_figure(pd.DataFrame({"arm": list("aab"), "score": [0.1, 0.2, 0.3]}), x="x", percent=True),
    "intervals": lambda: charts.intervals_figure(MEANS, x="x", chance=0.5, guessing="chance"),
    "overlap": lambda: comparing_figures.overlap_figure(CURVE, [CURVE, CURVE], WORDS),
    "scatter": lambda: comparing_figures.scatter_figure(*np.eye(2), np.array(["a", "b"]), (AXIS, AXIS), x="x", y="y", count="n"),
    "squares": lambda: comparing_figures.scatter_figure(
        *np.eye(2)[:, [0, 1] * 2501], np.array(["a"] * 5002), (AXIS, AXIS), x="x", y="y", count="n"
    ),
    "matrix": lambda: comparing_figures.overlap_matrix(np.eye(2), ["a", "b"], name="n"),
    "bars": lambda: comparing_figures.bars(pd.Series([1, 2], index=["a", "b"]), x="x", y="y"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_plotly_knows_every_word_and_value_of_a_figure(kind: str) -> None:
    """The figures are made without plotly's own checks (`charts.figure`); here it checks them, and finds the same figure."""
    figure = KINDS[kind]()
    checked = go.Figure(figure.to_dict())
    assert json.loads(pio.to_json(checked)) == json.loads(pio.to_json(figure, validate=False))


def test_a_word_that_plotly_does_not_know_is_found() -> None:
    with pytest.raises(ValueError, match="colour"):
        go.Figure(charts.figure([{"type": "bar", "colour": "red"}], x={}, y={}, height=100).to_dict())


def contrast(one: str, other: str) -> float:
    """The ratio of two colours' luminances (WCAG 2)."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
        linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_words_in_cells_are_readable_in_both_themes() -> None:
    light = (charts.INK, charts.SEQUENTIAL, charts.DIVERGING)
    for ink, *scales in (light, (charts.DARK["ink"], charts.DARK["sequential"], charts.DARK["diverging"])):
        assert all(contrast(str(ink), str(colour)) >= 4.5 for scale in scales for _, colour in scale)


@pytest.mark.parametrize(("column", "scale"), [("mean", "diverging"), ("n", "sequential")])
def test_a_dark_page_has_dark_cells(column: str, scale: str) -> None:
    figure = charts.darkened(charts.grid_figure(GRID, column, x="x", y="y", name="n"))
    assert [list(stop) for stop in figure.data[0].colorscale] == charts.DARK[scale]
    assert figure.data[0].textfont.color == charts.DARK["ink"]
    assert figure.data[1].marker.opacity == 0  # nothing else has changed
    go.Figure(figure.to_dict())
