"""How scores are spread within groups and parts: against a loop over the examples; and the pages that show it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_cases import FLOAT64, make_case, slow_influence, slow_self
from lab import Studio
from streamlit.testing.v1 import AppTest
from test_pages import said, texts_of, viewer

from pages.shared import spread
from pages.shared.i18n import LANGUAGES
from tracin_core import charts
from tracin_core.errors import ViewError
from tracin_core.scores.spread import group_spread, share_interval, strata, thirds
from tracin_core.scores.view import View


@pytest.fixture
def look(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    return viewer(studio.place.root, monkeypatch)


@given(st.integers(2, 12), st.integers(0, 40), st.integers(0, 2**32 - 1), st.sampled_from(["both", "first", "own"]))
@settings(max_examples=60, deadline=None)
def test_quantiles_of_groups_are_those_of_a_loop(samples: int, pairs: int, seed: int, ends: str) -> None:
    generator = np.random.default_rng(seed)
    table = pd.DataFrame({"id": [f"s{i}" for i in range(samples)], "kind": generator.integers(0, 3, samples)})
    drawn = pd.DataFrame(generator.integers(0, samples, (pairs, 2)), columns=["first", "second"]).assign(
        kind=lambda t: t["first"] % 2
    )
    values = np.where(generator.random(pairs) < 0.2, np.nan, generator.normal(size=pairs))
    found = group_spread(values, drawn, table, by="kind", ends=ends)  # type: ignore[arg-type]
    for _, row in found.iterrows():
        held = []
        for value, (_, pair) in zip(values, drawn.iterrows(), strict=True):
            kinds = {
                "own": {pair["kind"]},
                "first": {table["kind"][pair["first"]]},
                "both": {table["kind"][pair["first"]], table["kind"][pair["second"]]},
            }[ends]
            if row["group"] in kinds:
                held.append(value)
        known = [value for value in held if not np.isnan(value)]
        assert (row["n"], row["undefined"]) == (len(known), len(held) - len(known))
        if known:
            np.testing.assert_allclose(
                row[["mean", "q05", "q50", "q95"]].to_numpy(dtype=float), [np.mean(known), *np.quantile(known, [0.05, 0.5, 0.95])]
            )
        else:
            assert np.isnan(row["q50"])


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0, np.nan]), st.sampled_from([0.0, 0.5, 1.0])), max_size=30))
def test_thirds_hold_every_known_value_once_and_in_order(examples: list[tuple[float, float]]) -> None:
    values, reached = [value for value, _ in examples], [right for _, right in examples]
    found = thirds(values, reached)
    known = sorted(value for value in values if not np.isnan(value))
    assert found["n"].sum() == len(known)
    assert found["lowest"].tolist() == sorted(found["lowest"])
    for row in found.itertuples():
        inside = [right for value, right in examples if row.lowest <= value <= row.highest]
        assert (len(inside), pytest.approx(np.mean(inside))) == (row.n, row.reached)
    if known and "low" in set(found["third"]):
        cut = np.quantile(known, 1 / 3)
        assert found["highest"].iloc[0] <= cut


def test_thirds_say_what_the_model_reaches(studio: Studio, look: Callable[..., AppTest]) -> None:
    """By hand: the pairs that the last checkpoint orders right, among the third with the highest self-influence."""
    run, view = studio.run, studio.run.view()
    own, last = view.self_influence(), run.kernels.train_outputs[-1].astype(float)
    right = [1.0 if pair.target * (last[pair.first] - last[pair.second]) > 0 else 0.0 for pair in run.train_pairs.itertuples()]
    top = own > np.quantile(own, 2 / 3)
    page = look("distribution", run=run.id)
    table = next(frame.value for frame in page.dataframe if "third" in frame.value)
    assert table["reached"].iloc[-1] == f"{np.mean(np.array(right)[top]):.1%}"
    assert table["n"].iloc[-1] == top.sum()
    low, high = share_interval(np.array(right)[top])
    assert table["interval"].iloc[-1] == f"{low:.1%} – {high:.1%}"


@given(right=st.integers(0, 40), wrong=st.integers(0, 40))
def test_the_interval_of_a_share_is_where_the_score_test_does_not_reject(right: int, wrong: int) -> None:
    """Wilson's: its ends are the shares p at which (found - p)^2 = z^2 p (1 - p) / n."""
    count = right + wrong
    low, high = share_interval([1.0] * right + [0.0] * wrong)
    if not count:
        assert np.isnan(low)
        return
    for end in (low, high):
        assert (right / count - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / count, abs=1e-9)
    assert low <= right / count <= high


def test_numbers_have_no_interval_of_a_share_and_half_a_success_is_left_out() -> None:
    assert np.isnan(share_interval([0.3, 2.0])).all()
    assert share_interval([1.0, 0.5, 0.0]) == share_interval([1.0, 0.0, 0.0])


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_strata_are_of_the_sums_of_each_row_and_column(seed: int) -> None:
    case = make_case(seed)
    view = case.view()
    influence, found = slow_influence(view, case), strata(view)
    for side, table, own in (("train", influence, "train"), ("test", influence.T, "test")):
        told = found[side]
        np.testing.assert_allclose(told["self_influence"], slow_self(view, case, own), **FLOAT64)
        counted = len(table[0]) if side == "test" else int((~view.dead_tests).sum())
        for row in range(len(table)):
            assert told["mean_influence"][row] == pytest.approx(sum(table[row]) / max(counted, 1), abs=1e-9)
            assert told["total_influence"][row] == pytest.approx(sum(abs(value) for value in table[row]), abs=1e-9)
    if not view.dead_tests.all():
        np.testing.assert_allclose(found["train"]["mean_influence"], view.mean_influence(), **FLOAT64)


@pytest.mark.parametrize("measure", ["cosine", "cosine_mean", "relative", "rank"])
def test_strata_are_of_values_that_add_up(measure: Any) -> None:
    with pytest.raises(ViewError, match=f"Values of {measure} do not add up"):
        strata(make_case(1).view(measure=measure))


def test_tests_are_shown_by_third_and_one_by_one(studio: Studio, look: Callable[..., AppTest]) -> None:
    """By hand: the tests that the last checkpoint orders right, among the third on which most influence lies."""
    run, view = studio.run, studio.run.view()
    total, last = np.abs(view.influence()).sum(axis=0), run.kernels.test_outputs[-1].astype(float)
    right = np.array([pair.target * (last[pair.first] - last[pair.second]) > 0 for pair in run.test_pairs.itertuples()])
    top = total > np.quantile(total, 2 / 3)
    page = look("distribution", run=run.id)
    assert not any("score" in frame.value and "range" in frame.value for frame in page.dataframe)
    page.session_state["strata.open"] = True
    page.run()
    assert not page.error
    _, tests = (frame.value for frame in page.dataframe if "score" in frame.value and "range" in frame.value)
    row = tests[(tests["score"] == said("en", "strata.total_influence")) & (tests["third"] == said("en", "thirds.high"))].iloc[0]
    low, high = share_interval(right[top].astype(float))
    assert (row["n"], row["reached"]) == (top.sum(), f"{right[top].mean():.1%}")
    assert row["interval"] == f"{low:.1%} – {high:.1%}"
    each = next(frame.value for frame in page.dataframe if "test" in frame.value)
    order = np.argsort(-total, kind="stable")
    assert len(each) == min(len(total), spread.TESTS)
    assert each["reached"].tolist() == [said("en", "preview.right" if right[place] else "preview.wrong") for place in order]
    assert set(each["total_influence"][top[order]]) == {said("en", "thirds.high")}


def test_a_line_over_a_histogram_is_on_its_axis() -> None:
    one, other = np.array([-3.0, -1, 0, 2, 5]), np.array([0.0, 0, 40])
    axis = charts.common_axis(one, other)
    first, second = charts.histogram(one, axis=axis), charts.histogram(other, axis=axis)
    assert (axis.low, axis.high) == (-3, 40)
    assert (first.total, second.total, second.zeros) == (5, 3, 2)
    figure = charts.histogram_figure(first, x="x", y="y", zeros="0", over=("other", second), name="one")
    assert [trace.name for trace in figure.data if trace.showlegend is not False] == ["one", "other"]
    share = charts.cumulative_figure({"one": first, "other": second}, x="x", y="y")
    for trace, values in zip(share.data, (one, other), strict=True):
        edges = first.edges[1:-1]  # the last edge is its own rounding away from the highest score
        np.testing.assert_allclose(trace.y[:-1], [(values <= edge).mean() for edge in edges])
        assert trace.y[-1] == 1


@pytest.mark.parametrize("count", [20, charts.MANY_POINTS + 1])
def test_many_points_are_counted_instead_of_drawn(count: int) -> None:
    generator = np.random.default_rng(0)
    points = pd.DataFrame(generator.normal(size=(count, 3)), columns=["x", "y", "value"]).assign(label="p")
    figure = charts.points_figure(points, x="x", y="y")
    drawn = figure.data[0]
    if count > charts.MANY_POINTS:
        assert drawn.type == "heatmap"
        assert np.nansum(drawn.z) == count
    else:
        assert list(drawn.customdata) == list(range(count))


# ---- pages ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("which", spread.LOOKS)
def test_every_look_is_shown(look: Callable[..., AppTest], studio: Studio, which: str, language: str) -> None:
    test = look("distribution", lang=language, look=which)
    assert not (test.exception)
    assert not (test.error)
    assert not (test.warning)
    assert test.header[0].value == said(language, "page.distribution")
    assert len(test.dataframe) >= 1


def test_a_part_is_what_is_shown(look: Callable[..., AppTest], studio: Studio) -> None:
    view: View = studio.run.view()
    test = look("distribution", only="angle", **{"is": "36"})
    assert not test.error
    touching = view.train_pairs[["angle1", "angle2"]].eq(36).any(axis=1)
    assert f"{int(touching.sum())} " in texts_of(test)
    expected = view.ranked(view.self_influence(), among=touching.to_numpy())
    assert next(frame.value for frame in test.dataframe if "id" in frame.value)["id"].tolist() == expected["id"].head(20).tolist()
    assert expected["percentile"].max() <= view.ranked(view.self_influence())["percentile"].max()


def test_a_part_that_is_not_there_is_said_not_to_be(look: Callable[..., AppTest]) -> None:
    told = look("distribution", only="colour").warning[0].value.replace("\\", "")
    assert "only = colour" in told


def test_another_loss_is_laid_over(look: Callable[..., AppTest], studio: Studio) -> None:
    test = look("distribution", over="loss:logistic")
    assert not (test.error)
    assert not (test.warning)
    assert "logistic" in texts_of(test)


def test_the_share_of_a_cell_is_that_of_its_pairs(look: Callable[..., AppTest], studio: Studio) -> None:
    view: View = studio.run.view()
    own = view.self_influence()
    line = float(f"{np.quantile(own, 0.95):.3g}")
    test = look("angles", statistic="share")
    assert not (test.error)
    assert not (test.warning)
    assert charts.short(line) in texts_of(test)
    cells = view.angle_grid((own > line).astype(float))
    highest = cells.loc[cells["mean"].idxmax()]
    assert f"({charts.short(highest['mean'])})" in texts_of(test).replace("\\", "")


@pytest.mark.parametrize("column", ["angle", "gap", "sequence"])
def test_training_groups_onto_test_groups(look: Callable[..., AppTest], studio: Studio, column: str) -> None:
    test = look("angles", grid="onto", by=column)
    assert not (test.error)
    assert not (test.warning)
    table = test.dataframe[0].value
    assert table["mean"].is_monotonic_increasing
    if column == "angle":
        view: View = studio.run.view()
        row = table.iloc[0]
        low, high = ([int(part.strip(" °")) for part in row[end].split("–")] for end in ("low", "high"))
        train, tests = (
            (pairs[["angle1", "angle2"]].min(axis=1).eq(end[0]) & pairs[["angle1", "angle2"]].max(axis=1).eq(end[1])).to_numpy()
            for pairs, end in ((view.train_pairs, low), (view.test_pairs, high))
        )
        live = tests & ~view.dead_tests
        assert row["mean"] == pytest.approx(view.influence()[train][:, live].mean())
