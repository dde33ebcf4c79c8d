"""The questions that pages ask of a view: rankings, sums by sample and by angle, choosing, and what has no answer."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from influence_cases import CASES, CHECKPOINTS, FEW, FLOAT64, SETTINGS, TRAIN, Case, make_case

from tracin_core.data.samples import all_pairs
from tracin_core.errors import ExclusionError, NotFoundError, ViewError
from tracin_core.scores import exclusions as rules
from tracin_core.scores import influence, selection
from tracin_core.scores.exclusions import choose_pairs
from tracin_core.scores.influence import percentiles
from tracin_core.scores.losses import PairLoss, pair_loss

TOP_COLUMNS = ["id", "id1", "id2", "angle1", "angle2", "influence", "percentile", "self_influence", "contributions"]


# ---- rankings


@FEW
@given(case=CASES, loss=SETTINGS, k=st.integers(1, 30), measure=st.sampled_from(["dot", "cosine", "relative", "rank"]))
def test_top_lists_the_strongest_of_each_sign(case: Case, loss: PairLoss, k: int, measure: Any) -> None:
    """Strongest first, ties by id, no pair without influence; percentile, self-influence and contributions are each pair's own."""
    view, plain = case.view(loss, measure=measure), case.view(loss)
    test = view.test_pairs["id"].iloc[3]
    dot, values, own = plain.influence(test), view.influence(test), view.self_influence()
    ids = view.train_pairs["id"].tolist()
    sides = view.top(test, k)
    for listed, sign in zip(sides, (1, -1), strict=True):
        rows = [row for row in range(len(ids)) if sign * dot[row] > 0 and not np.isnan(values[row])]
        expected = sorted(rows, key=lambda row: (-sign * values[row], ids[row]))[:k]
        assert list(listed.columns) == TOP_COLUMNS
        assert listed["id"].tolist() == [ids[row] for row in expected]
        np.testing.assert_array_equal(listed["influence"], values[expected])
        np.testing.assert_array_equal(listed["percentile"], percentiles(dot[:, None])[expected, 0])
        np.testing.assert_array_equal(listed["self_influence"], own[expected])
        assert (listed["id1"] + "_" + listed["id2"]).tolist() == listed["id"].tolist()
        for row, parts in zip(expected, listed["contributions"], strict=True):
            assert len(parts) == CHECKPOINTS
            np.testing.assert_allclose(parts, view.contributions(ids[row], test), **FLOAT64)
            np.testing.assert_allclose(sum(parts), dot[row], **FLOAT64)


def test_top_of_a_dead_test_is_empty_with_its_columns() -> None:
    case = make_case(9)
    calm = replace(case, test_outputs=np.float32(90 * case.test_samples["label"].to_numpy())[None].repeat(CHECKPOINTS, axis=0))
    for listed in calm.view().top("x0_x1"):
        assert list(listed.columns) == TOP_COLUMNS
        assert len(listed) == 0


def test_equal_influences_are_ordered_by_id_on_both_sides() -> None:
    case = make_case(10)
    flat = replace(case, train_gradients=np.ones_like(case.train_gradients), weights=np.ones(CHECKPOINTS))
    flat.train_gradients[:, :, 2:] += 1
    for listed in flat.view(PairLoss(name="logistic", margin=0.0), test_quantity="score_difference").top("x0_x3"):
        tied = listed.groupby("influence", sort=False)["id"].apply(list)
        assert all(names == sorted(names) for names in tied)


@FEW
@given(case=CASES, loss=SETTINGS, k=st.integers(1, 12), measure=st.sampled_from(get_args(influence.Measure)))
def test_top_tests_reads_a_row_of_the_table(case: Case, loss: PairLoss, k: int, measure: Any) -> None:
    """Which tests a training pair helped or harmed: the whole table's row, sorted by hand; places and checkpoints are each test's own."""
    view, plain = case.view(loss, measure=measure), case.view(loss)
    table, dot = view.influence(), plain.influence()
    ids, pair = view.test_pairs["id"].tolist(), view.train_pairs["id"].iloc[3]
    np.testing.assert_allclose(view.train_influence(pair), table[3], **FLOAT64)
    np.testing.assert_array_equal(plain.train_influence(pair), dot[3])
    signs = table if measure == "cosine_mean" else dot
    for listed, sign in zip(view.top_tests(pair, k), (1, -1), strict=True):
        chosen = [column for column in range(len(ids)) if sign * signs[3, column] > 0 and not np.isnan(table[3, column])]
        np.testing.assert_allclose(listed["influence"], sorted((table[3, chosen]), key=lambda value: -sign * value)[:k], **FLOAT64)
        assert len(listed) == min(k, len(chosen))
        assert list(listed.columns) == [name for name in TOP_COLUMNS if name != "self_influence"]
        for row in listed.itertuples():
            column = ids.index(row.id)
            assert column in chosen
            np.testing.assert_allclose(row.influence, table[3, column], **FLOAT64)
            assert row.percentile == percentiles(dot[:, [column]])[3, 0]
            np.testing.assert_allclose(row.contributions, plain.contributions(pair, row.id), **FLOAT64)


def test_equal_influences_on_tests_are_ordered_by_id() -> None:
    case = make_case(10)
    flat = replace(case, test_gradients=np.ones_like(case.test_gradients), weights=np.ones(CHECKPOINTS))
    flat.test_gradients[:, :, 2:] += 1
    backwards = all_pairs(flat.test_samples).iloc[::-1].reset_index(drop=True)
    view = flat.view(PairLoss(name="logistic", margin=0.0), test_quantity="score_difference", test_pairs=backwards)
    for listed in view.top_tests(view.train_pairs["id"].iloc[5]):
        tied = listed.groupby("influence", sort=False)["id"].apply(list)
        assert all(names == sorted(names) for names in tied)


@FEW
@given(
    case=CASES,
    loss=SETTINGS,
    measure=st.sampled_from(get_args(influence.Measure)),
    how=st.sampled_from(["mean", "sum"]),
    cell=st.sampled_from([None, (0, 36), (0, 72), (36, 72)]),
)
def test_a_groups_influence_is_that_of_its_live_tests_together(
    case: Case, loss: PairLoss, measure: Any, how: Any, cell: Any
) -> None:
    """The columns of the whole table, taken one by one; a dead test is no part of a mean."""
    view = case.view(loss, measure=measure)
    names = [pair.id for pair in view.test_pairs.itertuples() if cell is None or sorted((pair.angle1, pair.angle2)) == list(cell)]
    assert view.tests_in(cell) == names
    without = measure in ("cosine", "cosine_mean") and view.test_self_influence() <= 0  # a direction lost in rounding
    columns = [row for row, pair in enumerate(view.test_pairs["id"]) if pair in names and not (view.dead_tests | without)[row]]
    if not columns:
        with pytest.raises(ViewError, match=r"dead|live"):
            view.group_influence(names, how)
        return
    expected = sum(view.influence()[:, column] for column in columns) / (len(columns) if how == "mean" else 1)
    np.testing.assert_allclose(view.group_influence(names, how), expected, **FLOAT64)
    if cell is None and how == "mean":
        np.testing.assert_allclose(view.group_influence(names), view.mean_influence(), **FLOAT64)
    sides = view.top_of_group(names, 4, how)
    for listed, sign in zip(sides, (1, -1), strict=True):
        assert list(listed.columns) == TOP_COLUMNS
        assert (np.diff(sign * listed["influence"]) <= 0).all()
        for row in listed.itertuples():
            place = view.train_row(row.id)
            np.testing.assert_allclose(row.influence, expected[place], **FLOAT64)
            assert row.self_influence == view.self_influence()[place]
            parts = sum(case.view(loss).contributions(row.id, view.test_pairs["id"].iloc[column]) for column in columns)
            np.testing.assert_allclose(row.contributions, parts / (len(columns) if how == "mean" else 1), **FLOAT64)
    if measure == "dot":
        assert len(sides[0]) == min(4, int((view.group_influence(names, how) > 0).sum()))


def test_influences_that_cancel_are_none() -> None:
    """Under a hinge of whole numbers every influence is exact; thirds of those that add up to 0 would leave rounding, of either sign."""
    cancelled = 0
    for seed in range(40):
        view = make_case(seed).view(PairLoss(margin=4.0))
        names = view.test_pairs["id"][~view.dead_tests].head(7).tolist()
        if len(names) == 7:
            exact = sum(view.influence(name) for name in names)
            together = view.group_influence(names)
            np.testing.assert_array_equal(together == 0, exact == 0)
            listed = pd.concat(view.top_of_group(names, k=100))
            assert set(listed["id"]) == set(view.train_pairs["id"][exact != 0])
            cancelled += int((~view.dead_train & (exact == 0)).sum())
    assert cancelled


def test_a_group_counts_its_live_tests() -> None:
    case = make_case(8)
    outputs = case.test_outputs.copy()
    outputs[:, 3] = 90  # label 2, far above all others
    view = replace(case, test_outputs=outputs, weights=np.ones(CHECKPOINTS)).view()
    cells = view.test_cells().set_index(["low", "high"])
    for cell, told in cells.iterrows():
        names = view.tests_in(cell)
        assert told["n"] == len(names)
        assert told["live"] == sum(not view.dead_tests[view.test_row(name)] for name in names)
    assert cells["n"].sum() > cells["live"].sum() > 0
    dead = view.test_pairs["id"][view.dead_tests].tolist()
    with pytest.raises(ViewError, match=f"None of the {len(dead)} test pairs chosen is live"):
        view.group_influence(dead)


# ---- sums by sample and by angle


@FEW
@given(case=CASES, loss=SETTINGS)
def test_sample_influence_sums_the_samples_pairs(case: Case, loss: PairLoss) -> None:
    """Each pair stands with both of its samples, so the sum over samples is twice the sum over pairs."""
    view = case.view(loss)
    expected = np.zeros((TRAIN, len(view.test_pairs)))
    for row, pair in enumerate(view.train_pairs.itertuples()):
        expected[pair.first] += view.influence()[row]
        expected[pair.second] += view.influence()[row]
    np.testing.assert_allclose(view.sample_influence(), expected, **FLOAT64)
    np.testing.assert_allclose(view.sample_influence().sum(axis=0), 2 * view.influence().sum(axis=0), **FLOAT64)


def test_the_angle_grid_rolls_up_unordered_angle_pairs() -> None:
    view = make_case(11).view()
    values = np.arange(len(view.train_pairs), dtype=float)
    values[0] = np.nan
    grid = view.angle_grid(values)
    assert grid[["low", "high"]].to_numpy().tolist() == [[0, 36], [0, 72], [36, 72]]
    for cell in grid.itertuples():
        own = [
            value
            for value, pair in zip(values, view.train_pairs.itertuples(), strict=True)
            if sorted((pair.angle1, pair.angle2)) == [cell.low, cell.high] and not np.isnan(value)
        ]
        assert (cell.n, cell.mean, cell.median) == (len(own), np.mean(own), np.median(own))
    with pytest.raises(ViewError, match="One value is needed for each of 16 training pairs"):
        view.angle_grid(values[:3])


# ---- choosing


@FEW
@given(case=CASES, threshold=st.sampled_from([-30.0, -5.0, -0.5]), least=st.integers(1, 4))
@pytest.mark.parametrize("mode", ["ranking_pair", "full_pair", "sample"])
def test_a_views_exclusions_are_the_rule_on_its_scores(mode: Any, case: Case, threshold: float, least: int) -> None:
    """And its sweep counts, at that threshold, what the list holds."""
    view = case.view()
    chosen = view.exclusions(threshold, least, None, mode)
    expected = choose_pairs(
        view.influence(),
        view.train_pairs,
        view.test_pairs,
        threshold=threshold,
        min_occurrences=least,
        max_exclusions=None,
        pair_mode=mode,
        sample_ids=case.train_samples["id"].to_numpy(),
        sample_scores=view.sample_influence(),
    )
    pd.testing.assert_frame_equal(chosen, expected)
    counts = view.sweep(least, mode).counts(threshold).iloc[0]
    assert counts["pairs" if mode == "ranking_pair" else "samples"] == len(chosen)
    assert len(view.exclusions(threshold, least, 2, mode)) == min(2, len(chosen))


@FEW
@given(case=CASES, loss=SETTINGS, measure=st.sampled_from(["cosine", "cosine_mean", "relative", "rank"]), least=st.integers(1, 3))
def test_the_harm_rule_reads_any_measure(case: Case, loss: PairLoss, measure: Any, least: int) -> None:
    """Undefined values are no harm; a rank is read as its distance below the middle, where the influence is negative."""
    view = case.view(loss, measure=measure)
    scores = view.influence()
    if measure == "rank":
        scores = np.where(case.view(loss).influence() < 0, np.minimum(scores - 50, 0), 0.0)
    scores = np.where(np.isnan(scores), 0.0, scores)
    threshold = {"rank": -20.0, "relative": -2.0}.get(measure, -0.2)
    rule: dict[str, Any] = {"threshold": threshold, "min_occurrences": least, "max_exclusions": None}
    expected = choose_pairs(scores, view.train_pairs, view.test_pairs, **rule)
    pd.testing.assert_frame_equal(view.exclusions(**rule), expected)
    assert view.sweep(least).counts([threshold])["pairs"][0] == len(expected)


def test_relative_thresholds_say_what_they_are_relative_to() -> None:
    view = make_case(14).view()
    scores = view.influence()
    for asked, expected in (
        ({"quantile": 0.2}, rules.quantile_threshold(scores, 0.2)),
        ({"robust_z": -1.5}, rules.robust_threshold(scores, -1.5)),
    ):
        threshold, people = view.threshold_at(**asked)
        assert threshold == expected < 0
        assert people.describe() == rules.population(scores).describe()
        assert not view.exclusions(threshold, 1).empty


def test_suspects_lie_strictly_above_the_line_highest_first() -> None:
    case = make_case(12)
    view = case.view()
    own = view.self_influence()
    line = float(np.sort(own)[10])
    found = view.suspects(threshold=line)
    assert list(found.columns) == ["id", "id1", "id2", "score"]
    assert set(found["id"]) == {pair for pair, value in zip(view.train_pairs["id"], own, strict=True) if value > line}
    ranked = list(zip(found["score"], found["id"], strict=True))
    assert all(-one <= -two and (one != two or a < b) for (one, a), (two, b) in pairwise(ranked))
    pd.testing.assert_frame_equal(view.suspects(quantile=0.5), view.suspects(threshold=float(np.quantile(own, 0.5))))
    assert view.suspects(quantile=1.0).empty
    loss = PairLoss(margin=4.0)
    first, second = (case.train_outputs[:, view.train_pairs[end]] for end in ("first", "second"))
    mean = pair_loss(loss, first, second, view.train_pairs["target"].to_numpy()).mean(axis=0)
    assert view.suspects("mean_loss", quantile=0.9)["score"].iloc[0] == mean.max()


# ---- refusals


def test_all_influences_above_the_budget_are_refused_with_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """One test pair, blocks, samples and the harm rule still answer: they never hold the table."""
    whole = make_case(13).view()
    expected = whole.exclusions(-1.0, 2), whole.sweep(2).counts([-9.0, -1.0, 0.0])
    monkeypatch.setattr(influence, "CELL_BUDGET", 100)
    monkeypatch.setattr(influence, "BLOCK_CELLS", 10)  # as many blocks as can be
    monkeypatch.setattr(rules, "BLOCK_CELLS", 10)
    monkeypatch.setattr(selection, "BLOCK_CELLS", 10)
    view = make_case(13).view()
    for ask in (view.influence, lambda: view.threshold_at(quantile=0.1), make_case(13).view(measure="rank").exclusions):
        with pytest.raises(ViewError, match=r"16 x 8 = 128 numbers, more than 100.*view\.blocks"):
            ask()
    assert view.influence("x0_x1").shape == (16,)
    assert len(list(view.blocks(4))) == 2
    assert view.sample_influence().shape == (TRAIN, 8)
    told: list[tuple[int, int]] = []
    pd.testing.assert_frame_equal(
        view.sweep(2, progress=lambda done, all_: told.append((done, all_))).counts([-9.0, -1.0, 0.0]), expected[1]
    )
    pd.testing.assert_frame_equal(view.exclusions(-1.0, 2), expected[0])
    assert len(told) > 2
    assert told[-1][0] == told[-1][1]
    assert told == sorted(told)


VIEW = make_case(0).view()


@pytest.mark.parametrize(
    ("ask", "kind", "told"),
    [
        (lambda: VIEW.influence("nobody"), NotFoundError, "no test pair 'nobody'"),
        (lambda: VIEW.contributions("nobody", "x0_x1"), NotFoundError, "no training pair 'nobody'"),
        (lambda: VIEW.top("nobody"), NotFoundError, "no test pair 'nobody'"),
        (lambda: VIEW.top("x0_x1", 0), ViewError, "choose at least 1"),
        (lambda: VIEW.top_tests("nobody"), NotFoundError, "no training pair 'nobody'"),
        (lambda: VIEW.top_tests("a0_a2", 0), ViewError, "choose at least 1"),
        (lambda: VIEW.train_influence("nobody"), NotFoundError, "no training pair 'nobody'"),
        (lambda: VIEW.group_influence(["nobody"]), NotFoundError, "no test pair 'nobody'"),
        (lambda: VIEW.group_influence(["x0_x1"], "median"), ViewError, "no way to take tests together 'median'"),
        (lambda: VIEW.top_of_group(["x0_x1"], 0), ViewError, "choose at least 1"),
        (lambda: next(VIEW.blocks(0)), ViewError, "width of at least 1"),
        (lambda: VIEW.suspects(), ViewError, "either a threshold or a quantile"),
        (lambda: VIEW.suspects(threshold=1.0, quantile=0.5), ViewError, "not both"),
        (lambda: VIEW.suspects(threshold=float("nan")), ViewError, "threshold is nan"),
        (lambda: VIEW.suspects(quantile=1.5), ViewError, "quantile is 1.5"),
        (lambda: VIEW.suspects("drift", quantile=0.5), ViewError, "no suspect score 'drift'; choose from self_influence"),
        (lambda: VIEW.exclusions(threshold=1.0), ExclusionError, "threshold is 1"),
        (lambda: VIEW.sweep(0), ExclusionError, "min_occurrences is 0"),
        (lambda: make_case(0).view(measure="rank").exclusions(pair_mode="sample"), ViewError, "which rank values do not"),
        (lambda: make_case(0).view(measure="cosine").sweep(pair_mode="sample"), ViewError, "which cosine values do not"),
        (lambda: VIEW.threshold_at(), ViewError, "either a quantile or a robust z-score"),
        (lambda: VIEW.suspects_by([1.0], quantile=0.5), ViewError, "One value is needed for each of 16"),
    ],
)
def test_a_question_without_an_answer_is_refused(ask: Callable[[], object], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        ask()
