"""Robust places and top lists against plain loops; the gauges of "the same suspects" at their two ends; nothing large is held."""

import tracemalloc
from collections.abc import Callable
from itertools import combinations
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_scores import Lazy, Scores, given_scores, make_view

from tracin_core.data.samples import all_pairs
from tracin_core.errors import ViewError
from tracin_core.scores import reading
from tracin_core.scores.exclusions import robust_threshold
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.view import View

FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}
FEW = settings(deadline=None, max_examples=40)
VALUES = st.sampled_from([-50.0, -3.0, -1.0, -0.0, 0.0, 0.5, 2.0, np.nan])


# ---- one score among the others


@FEW
@given(values=st.lists(VALUES, max_size=12))
def test_places_are_among_values_and_z_among_those_that_are_not_zero(values: list[float]) -> None:
    found = reading.robust_table(values)
    known = [value for value in values if not np.isnan(value)]
    members = [value for value in known if value]
    assert (found.counted, found.values, found.undefined) == (len(members), len(values), len(values) - len(known))
    median = np.median(members) if members else np.nan
    mad = np.median([abs(value - median) for value in members]) if members else np.nan
    np.testing.assert_equal([found.median, found.mad], [median, mad])
    assert found.table["value"].tolist() == pytest.approx(values, nan_ok=True)
    for row, value in zip(found.table.itertuples(), values, strict=True):
        below = sum(other < value for other in known) + sum(other == value for other in known) / 2
        np.testing.assert_allclose(row.percentile, np.nan if np.isnan(value) else 100 * below / len(known), **FLOAT64)
        defined = bool(value) and not np.isnan(value) and mad > 0
        np.testing.assert_allclose(row.robust_z, (value - median) / (1.4826 * mad) if defined else np.nan, **FLOAT64)


def test_a_robust_z_is_the_one_that_thresholds_are_given_in() -> None:
    values = np.random.default_rng(0).normal(size=50) - 3
    values[:20] = 0.0
    found = reading.robust_table(values).table
    threshold = robust_threshold(values[:, None], -1.5)
    assert threshold < 0
    assert ((found["robust_z"] < -1.5) == (values < threshold)).all()


def test_one_huge_value_moves_no_other() -> None:
    values = np.arange(1.0, 12.0)
    huge = np.r_[values[:-1], 1e12]
    before, after = (reading.robust_table(given_).table for given_ in (values, huge))
    pd.testing.assert_frame_equal(before[:-1], after[:-1])


EQUAL = "more than half of them equal 2, so a robust z is undefined"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([1.0, 2.0, 4.0, 0.0], "3 scores that are not 0 (75.0% of 4): median 2, MAD 1"),
        ([2.0, 2.0, np.nan], f"2 scores that are not 0 (66.7% of 3); 1 undefined: {EQUAL}"),
        ([0.0, 0.0], "0 scores that are not 0 (0.0% of 2): no robust z"),
        ([], "0 scores that are not 0 (0.0% of 0): no robust z"),
    ],
)
def test_the_population_is_told(values: list[float], told: str) -> None:
    assert reading.robust_table(values).describe() == told


def test_one_test_is_read_three_ways() -> None:
    """Raw, cosine and rank of a real view, with the examples that have no gradient."""
    view, cosine = (make_view(8, PairLoss(margin=1.0), measure=measure) for measure in ("dot", "cosine"))
    test = view.test_pairs["id"].iloc[int(np.flatnonzero(~view.dead_tests)[0])]
    table = reading.readings(view.train_pairs, view.influence(test), cosine.influence(test))
    rank = make_view(8, PairLoss(margin=1.0), measure="rank").influence(test)
    np.testing.assert_allclose(table["influence"], view.influence(test), **FLOAT64)
    np.testing.assert_allclose(table["percentile"], rank, **FLOAT64)
    np.testing.assert_allclose(table["cosine"], cosine.influence(test), **FLOAT64)
    np.testing.assert_allclose(table["robust_z"], reading.robust_table(view.influence(test)).table["robust_z"], **FLOAT64)
    undefined = table["cosine"].isna()
    assert 0 < undefined.sum() < len(table)
    assert (table["cosine_percentile"].isna() == undefined).all()
    assert (table["shift"].isna() == undefined).all()
    held = table[~undefined]
    expected = 100 * (held["cosine"].rank() - 0.5) / len(held)
    np.testing.assert_allclose(held["cosine_percentile"], expected, **FLOAT64)
    np.testing.assert_allclose(held["shift"], held["percentile"] - expected, **FLOAT64)
    assert table[["id", "id1", "id2", "angle1", "angle2"]].equals(view.train_pairs[["id", "id1", "id2", "angle1", "angle2"]])


# ---- the same examples for every test


def slow_list(values: np.ndarray, k: int, side: str) -> set[int]:
    signed = {"strongest": np.abs(values), "proponents": values, "opponents": -values}[side]
    able = [(-value, row) for row, value in enumerate(signed) if value > 0]
    return {row for _, row in sorted(able)[:k]}


@FEW
@given(
    scores=given_scores(), k=st.integers(1, 5), side=st.sampled_from(get_args(reading.Side)), least=st.sampled_from([0.3, 0.5, 1.0])
)
def test_who_is_listed_for_how_many_tests(scores: Scores, k: int, side: Any, least: float) -> None:
    found = reading.influencers(scores, k=k, side=side, least_share=least)
    live = np.flatnonzero(~scores.dead_tests)
    lists = [slow_list(scores.matrix[:, column], k, side) for column in live]
    counts = {row: sum(row in one for one in lists) for row in set().union(*lists)}
    expected = sorted(counts, key=lambda row: (-counts[row], row))
    assert found.table["id"].tolist() == scores.train_pairs["id"].iloc[expected].tolist()
    assert found.table["tests"].tolist() == [counts[row] for row in expected]
    np.testing.assert_allclose(found.table["share"], [counts[row] / len(live) for row in expected], **FLOAT64)
    assert found.table["flagged"].tolist() == [counts[row] >= least * len(live) and len(live) > 1 for row in expected]
    assert (found.live_tests, found.dead_tests) == (len(live), scores.dead_tests.sum())
    assert found.empty_tests == sum(not one for one in lists)
    full = [one for one in lists if one]
    overlaps = [len(a & b) / np.sqrt(len(a) * len(b)) for a, b in combinations(full, 2)]
    np.testing.assert_allclose(found.overlap, np.mean(overlaps) if overlaps else np.nan, rtol=1e-12, atol=1e-12)
    chance = [np.sqrt(len(a) * len(b)) / len(scores.train_pairs) for a, b in combinations(full, 2)]
    np.testing.assert_allclose(found.expected_overlap, np.mean(chance) if chance else np.nan, **FLOAT64)
    entries = sum(map(len, lists))
    np.testing.assert_allclose(found.cardinality, len(counts) / entries if entries else np.nan, **FLOAT64)


def scores_of(matrix: np.ndarray) -> Scores:
    """A matrix with tables that fit it."""
    samples = pd.DataFrame({"id": [f"a{n}" for n in range(len(matrix))], "label": range(len(matrix))})
    tests = pd.DataFrame({"id": [f"x{n}" for n in range(matrix.shape[1])], "label": range(matrix.shape[1])})
    return Scores(samples, samples, tests, tests, matrix, np.zeros(matrix.shape[1], dtype=bool))


def test_the_gauges_at_their_ends() -> None:
    """The same list for every test, a list of its own for each test, and random lists."""
    same = reading.influencers(scores_of(np.tile(np.arange(1.0, 13.0)[:, None], (1, 6))), k=2)
    assert (same.overlap, same.cardinality) == (pytest.approx(1), 2 / 12)
    assert same.table["flagged"].tolist() == [True, True]
    own = reading.influencers(scores_of(np.kron(np.eye(6), np.ones((2, 1)))), k=2)
    assert (own.overlap, own.cardinality) == (pytest.approx(0), 1.0)
    assert not own.table["flagged"].any()
    chance = reading.influencers(scores_of(np.random.default_rng(0).normal(size=(50, 400))), k=10)
    assert chance.expected_overlap == pytest.approx(10 / 50)
    assert chance.overlap == pytest.approx(10 / 50, abs=0.01)


def test_a_large_gradient_is_everywhere_in_raw_and_not_in_cosine() -> None:
    """One training gradient made 100 times larger: flagged by influence, not by cosine, which does not know its size."""
    generator = np.random.default_rng(1)
    train, test = generator.normal(size=(60, 5)), generator.normal(size=(40, 5))
    train[7] *= 100
    cosine = train @ test.T / np.linalg.norm(train, axis=1)[:, None]
    raw, turned = (reading.influencers(scores_of(matrix), k=5) for matrix in (train @ test.T, cosine))
    assert raw.table["id"].iloc[0] == "a7"
    assert raw.table[raw.table["flagged"]]["id"].tolist() == ["a7"]
    assert not turned.table["flagged"].any()
    assert raw.overlap > turned.overlap


# ---- what is refused, what is empty, and what is held


VIEW = make_view(8)


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: reading.robust_table([1.0, np.inf]), "The value in row 1 is infinite"),
        (lambda: reading.robust_table(np.ones((2, 2))), r"One value per example is needed, not \(2, 2\)"),
        (lambda: reading.readings(VIEW.train_pairs, [1.0], [1.0, 2.0]), "1 influences and 2 cosines were given for 13 examples"),
        (lambda: reading.influencers(VIEW, k=0), "The 0 strongest examples are none"),
        (lambda: reading.influencers(VIEW, side="both"), "no side 'both'; choose from strongest, opponents, proponents"),
        (lambda: reading.influencers(VIEW, least_share=0), "least_share is 0; choose a number above 0, up to 1"),
        (lambda: reading.influencers(make_view(8, measure="rank")), "A percentile has no sign"),
        (lambda: reading.influencers(make_view(0, calm=True)), "All 8 tests are dead"),
    ],
)
def test_what_has_no_answer_is_refused(ask: Callable[[], Any], told: str) -> None:
    with pytest.raises(ViewError, match=told):
        ask()


def test_without_a_training_pair_tables_are_empty_and_typed() -> None:
    none: View = make_view(8, train_pairs=VIEW.train_pairs[:0])
    for read in (
        lambda view: reading.robust_table(view.self_influence()).table,
        lambda view: reading.readings(view.train_pairs, view.self_influence(), view.self_influence()),
        lambda view: reading.influencers(view).table,
    ):
        empty, full = read(none), read(VIEW)
        assert (len(empty), list(empty.columns)) == (0, list(full.columns))
    found = reading.influencers(none)
    assert np.isnan([found.overlap, found.expected_overlap, found.cardinality]).all()
    assert found.empty_tests == found.live_tests == 8


def test_the_matrix_is_never_held() -> None:
    """4,750 x 1,128 scores would be 43 MB."""
    samples, tests = (
        pd.DataFrame({"id": np.arange(n).astype(str), "label": np.arange(n), "angle": np.arange(n)}) for n in (98, 48)
    )
    pairs, test_pairs = all_pairs(samples), all_pairs(tests)
    view = Lazy(samples, pairs, tests, test_pairs, np.zeros(0), np.zeros(len(test_pairs), dtype=bool), width=4)
    tracemalloc.start()
    reading.influencers(view)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(pairs) * len(test_pairs) * 8 / 10
