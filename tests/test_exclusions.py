"""The harm rule against plain loops; its counts at every threshold; thresholds by quantile and robust z; what is refused."""

from collections.abc import Callable
from itertools import combinations
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracin_core.errors import ExclusionError
from tracin_core.scores import exclusions as rules
from tracin_core.scores.exclusions import PAIR_COLUMNS, SAMPLE_COLUMNS, PairMode, choose_pairs, count_below, kth_lowest

FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}
MODES = get_args(PairMode)
SAMPLES = 5
RULE: dict[str, Any] = {"threshold": -1.0, "min_occurrences": 1, "max_exclusions": None}


def pair_frame(count: int, prefix: str = "s", samples: int = SAMPLES) -> pd.DataFrame:
    """The first so many unordered pairs of some samples."""
    ends = list(combinations(range(samples), 2))[:count]
    one, two = ([f"{prefix}{end[side]}" for end in ends] for side in (0, 1))
    return pd.DataFrame(
        {
            "id": [f"{a}_{b}" for a, b in zip(one, two, strict=True)],
            "id1": one,
            "id2": two,
            "first": [end[0] for end in ends],
            "second": [end[1] for end in ends],
        }
    )


@st.composite
def tables(draw: st.DrawFn) -> np.ndarray:
    """[N, M] of few different values, so that ties, exact thresholds and -0.0 are common."""
    rows, columns = draw(st.integers(1, 10)), draw(st.integers(1, 8))
    values = st.sampled_from([-7.5, -5.0, -3.0, -1.0, -0.0, 0.0, 1.0, 4.0])
    return np.array(draw(st.lists(values, min_size=rows * columns, max_size=rows * columns))).reshape(rows, columns)


THRESHOLDS = st.sampled_from([-8.0, -5.0, -4.0, -1.0, -0.0, 0.0])


def slow_pairs(scores: np.ndarray, ids: list[str], tests: list[str], threshold: float, least: int) -> list[dict[str, Any]]:
    rows = []
    for row, pair in enumerate(ids):
        hit = [(tests[column], score) for column, score in enumerate(scores[row]) if score < threshold]
        if len(hit) >= least:
            harm = sum(score for _, score in hit)
            rows.append({"id": pair, "occurrences": len(hit), "harm": harm, "tests": [test for test, _ in hit]})
    return sorted(rows, key=lambda found: (-found["occurrences"], found["harm"] / found["occurrences"], found["id"]))


@settings(deadline=None, max_examples=40)
@given(scores=tables(), threshold=THRESHOLDS, least=st.integers(1, 9), most=st.one_of(st.none(), st.integers(1, 4)))
def test_ranking_pair_is_its_definition(scores: np.ndarray, threshold: float, least: int, most: int | None) -> None:
    """Occurrences descending, then average ascending, then id; the cap comes after the order."""
    pairs, tests = pair_frame(len(scores)), pair_frame(scores.shape[1], "t")
    chosen = choose_pairs(scores, pairs, tests, threshold=threshold, min_occurrences=least, max_exclusions=most)
    expected = slow_pairs(scores, pairs["id"].tolist(), tests["id"].tolist(), threshold, least)[:most]
    assert chosen["id"].tolist() == [row["id"] for row in expected]
    assert chosen["occurrences"].tolist() == [row["occurrences"] for row in expected]
    assert chosen["affected_tests"].tolist() == [row["tests"] for row in expected]
    np.testing.assert_allclose(chosen["average_influence"], [row["harm"] / row["occurrences"] for row in expected], **FLOAT64)
    assert list(chosen.columns) == PAIR_COLUMNS
    assert (chosen["id1"] + "_" + chosen["id2"]).tolist() == chosen["id"].tolist()


@settings(deadline=None, max_examples=40)
@given(scores=tables(), threshold=THRESHOLDS, least=st.integers(1, 9), most=st.one_of(st.none(), st.integers(1, 4)))
def test_full_pair_is_its_definition(scores: np.ndarray, threshold: float, least: int, most: int | None) -> None:
    """Both samples of every chosen pair, before any cap on pairs: total harm ascending, occurrences descending, id."""
    pairs, tests = pair_frame(len(scores)), pair_frame(scores.shape[1], "t")
    found = slow_pairs(scores, pairs["id"].tolist(), tests["id"].tolist(), threshold, least)
    expected = []
    for sample in {end for row in found for end in row["id"].split("_")}:
        own = [row for row in found if sample in row["id"].split("_")]
        affected = sorted({test for row in own for test in row["tests"]})
        expected.append((sum(row["harm"] for row in own), -sum(row["occurrences"] for row in own), sample, affected))
    expected = sorted(expected)[:most]
    chosen = choose_pairs(
        scores, pairs, tests, threshold=threshold, min_occurrences=least, max_exclusions=most, pair_mode="full_pair"
    )
    assert chosen["id"].tolist() == [row[2] for row in expected]
    assert chosen["occurrences"].tolist() == [-row[1] for row in expected]
    assert chosen["affected_tests"].tolist() == [row[3] for row in expected]
    np.testing.assert_allclose(chosen["total_harm"], [row[0] for row in expected], **FLOAT64)
    np.testing.assert_allclose(chosen["average_influence"], [row[0] / -row[1] for row in expected], **FLOAT64)
    assert list(chosen.columns) == SAMPLE_COLUMNS


@settings(deadline=None, max_examples=40)
@given(scores=tables(), threshold=THRESHOLDS, least=st.integers(1, 9), most=st.one_of(st.none(), st.integers(1, 4)))
def test_sample_mode_is_the_pair_rule_on_samples(scores: np.ndarray, threshold: float, least: int, most: int | None) -> None:
    ids, tests = [f"s{row}" for row in range(len(scores))], pair_frame(scores.shape[1], "t")
    chosen = choose_pairs(
        None,
        pair_frame(3),
        tests,
        threshold=threshold,
        min_occurrences=least,
        max_exclusions=most,
        pair_mode="sample",
        sample_ids=np.array(ids, dtype=object),
        sample_scores=scores,
    )
    expected = slow_pairs(scores, ids, tests["id"].tolist(), threshold, least)[:most]
    assert chosen["id"].tolist() == [row["id"] for row in expected]
    np.testing.assert_allclose(chosen["total_harm"], [row["harm"] for row in expected], **FLOAT64)
    assert list(chosen.columns) == SAMPLE_COLUMNS


def test_equals_are_ordered_most_harmful_first_then_by_id() -> None:
    """Same occurrences: the lower average comes first; same average: the lower id."""
    scores = np.array([[-2.0, -2.0, 0.0], [-4.0, -4.0, 9.0], [-2.0, -2.0, 0.0], [-1.5, -1.5, -1.5]])
    chosen = choose_pairs(scores, pair_frame(4).iloc[::-1], pair_frame(3, "t"), **RULE)
    assert chosen["id"].tolist() == ["s0_s1", "s0_s3", "s0_s2", "s0_s4"]


def test_the_threshold_itself_is_not_below_it() -> None:
    chosen = choose_pairs(np.array([[-1.0], [np.nextafter(-1.0, -2)]]), pair_frame(2), pair_frame(1, "t"), **RULE)
    assert chosen["id"].tolist() == ["s0_s2"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_found_is_an_empty_list_with_its_columns(mode: PairMode, rows: int) -> None:
    """The same columns and types as a list with entries: what is written and shown from it needs no special case."""
    pairs, tests, ids = pair_frame(rows), pair_frame(2, "t"), np.array([f"s{row}" for row in range(rows)], dtype=object)

    def choose(scores: np.ndarray, pairs: pd.DataFrame, ids: np.ndarray) -> pd.DataFrame:
        return choose_pairs(scores, pairs, tests, **RULE, pair_mode=mode, sample_ids=ids, sample_scores=scores)

    empty = choose(np.zeros((rows, 2)), pairs, ids)
    full = choose(np.full((1, 2), -9.0), pair_frame(1), np.array(["s0"], dtype=object))
    assert len(empty) == 0
    assert len(full) > 0
    assert list(empty.columns) == list(full.columns)
    numbers = [name for name in full.columns if name in rules.COLUMN_TYPES]
    assert empty.dtypes[numbers].tolist() == full.dtypes[numbers].tolist()


def mirrored(pairs: pd.DataFrame) -> pd.DataFrame:
    swapped = pairs.rename(columns={"id1": "id2", "id2": "id1", "first": "second", "second": "first"})
    return swapped.assign(id=swapped["id1"] + "_" + swapped["id2"])[list(pairs.columns)]


@pytest.mark.parametrize("mode", ["ranking_pair", "full_pair"])
@settings(deadline=None, max_examples=40)
@given(scores=tables(), threshold=THRESHOLDS, least=st.integers(1, 4))
def test_a_mirrored_or_repeated_pair_counts_once(mode: PairMode, scores: np.ndarray, threshold: float, least: int) -> None:
    """On the test side and on the training side the list is what it is without the copies."""
    pairs, tests = pair_frame(len(scores)), pair_frame(scores.shape[1], "t")
    rule: dict[str, Any] = {"threshold": threshold, "min_occurrences": least, "max_exclusions": None, "pair_mode": mode}
    once = choose_pairs(scores, pairs, tests, **rule)
    doubled = np.block([[scores, scores], [scores, scores]])
    twice = choose_pairs(doubled, pd.concat([pairs, mirrored(pairs)]), pd.concat([tests, mirrored(tests)]), **rule)
    pd.testing.assert_frame_equal(once, twice)


@settings(deadline=None, max_examples=40)
@given(scores=tables(), threshold=THRESHOLDS, k=st.integers(1, 10))
def test_the_kth_lowest_decides(scores: np.ndarray, threshold: float, k: int) -> None:
    """At least k scores are below T iff the k-th lowest is, ties and too few tests included."""
    expected = [sum(score < threshold for score in row) >= k for row in scores]
    kth = kth_lowest(scores, k)
    assert (kth < threshold).tolist() == expected
    assert count_below(np.sort(kth), [threshold]).tolist() == [sum(expected)]


@settings(deadline=None, max_examples=40)
@given(scores=tables(), thresholds=st.lists(THRESHOLDS, min_size=1, max_size=5), least=st.integers(1, 4))
def test_a_sweep_counts_what_the_lists_hold(scores: np.ndarray, thresholds: list[float], least: int) -> None:
    """At every threshold: pairs as many as ranking_pair lists, samples as many as full_pair lists, uncapped."""
    pairs, tests = pair_frame(len(scores)), pair_frame(scores.shape[1], "t")
    sweep = rules.sweep_of_pairs(kth_lowest(scores, least), pairs["first"].to_numpy(), pairs["second"].to_numpy(), SAMPLES)
    counts = sweep.counts(thresholds)
    assert counts["threshold"].tolist() == thresholds
    for name, mode in (("pairs", "ranking_pair"), ("samples", "full_pair")):
        listed = [
            len(choose_pairs(scores, pairs, tests, threshold=t, min_occurrences=least, max_exclusions=None, pair_mode=mode))
            for t in thresholds
        ]
        assert counts[name].tolist() == listed


@settings(deadline=None, max_examples=40)
@given(table=st.lists(st.lists(st.sampled_from([-5.0, -1.0, 0.0, 2.0]), min_size=3, max_size=3), min_size=5, max_size=5))
def test_a_sweep_of_samples_counts_the_pairs_that_go_with_them(table: list[list[float]]) -> None:
    pairs, scores = pair_frame(10), np.array(table)
    sweep = rules.sweep_of_samples(kth_lowest(scores, 2), pairs["first"].to_numpy(), pairs["second"].to_numpy())
    out = {row for row in range(5) if sum(score < -0.5 for score in scores[row]) >= 2}
    gone = [pair for pair in combinations(range(5), 2) if out & set(pair)]
    assert sweep.counts(-0.5).iloc[0].tolist() == [-0.5, len(gone), len(out)]


@settings(deadline=None, max_examples=40)
@given(scores=tables(), thresholds=st.tuples(THRESHOLDS, THRESHOLDS), mode=st.sampled_from(["ranking_pair", "full_pair"]))
def test_two_lists_differ_by_what_only_one_of_them_names(
    scores: np.ndarray, thresholds: tuple[float, float], mode: PairMode
) -> None:
    """Each entry once, with its place in both lists; a mirrored pair is the same entry."""
    pairs, tests = pair_frame(len(scores)), pair_frame(scores.shape[1], "t")
    rule: dict[str, Any] = {"min_occurrences": 1, "max_exclusions": None, "pair_mode": mode}
    one, other = (choose_pairs(scores, pairs, tests, threshold=threshold, **rule) for threshold in thresholds)
    turned = mirrored(other.assign(first=0, second=0)) if mode == "ranking_pair" else other
    found = rules.compare_lists(one, turned)
    ids = one["id"].tolist(), other["id"].tolist()
    expected = {name: ("both" if name in ids[1] else "first only") for name in ids[0]}
    expected |= {name: "second only" for name in ids[1] if name not in ids[0]}
    names = ["_".join(sorted(name.split("_"))) for name in found["id"]]
    assert dict(zip(names, found["side"], strict=True)) == expected
    assert len(found) == len(expected)
    for place, listed in (("place1", ids[0]), ("place2", ids[1])):
        given_ = {name: int(row) for name, row in zip(names, found[place], strict=True) if not np.isnan(row)}
        assert given_ == {name: row for row, name in enumerate(listed, start=1)}


def test_lists_of_different_kinds_are_not_compared() -> None:
    one = choose_pairs(np.full((2, 2), -9.0), pair_frame(2), pair_frame(2, "t"), **RULE)
    other = choose_pairs(np.full((2, 2), -9.0), pair_frame(2), pair_frame(2, "t"), **RULE, pair_mode="full_pair")
    with pytest.raises(ExclusionError, match="first list is of pairs and the second of samples"):
        rules.compare_lists(one, other)


# ---- thresholds


def test_the_population_leaves_out_dead_tests_and_zeros_and_says_so() -> None:
    """A dead test's column and a satisfied pair's zeros are no scale."""
    scores = np.array([[-4.0, 0.0, 0.0], [2.0, 0.0, -0.0], [0.0, 0.0, 6.0], [0.0, 0.0, 0.0]])
    people = rules.population(scores)
    assert sorted(people.values) == [-4.0, 2.0, 6.0]
    assert (people.live_tests, people.tests, people.share) == (2, 3, 0.25)
    assert people.describe() == "3 scores that are not 0 (25.0% of all), from the 2 live of 3 test pairs"


@settings(deadline=None, max_examples=40)
@given(scores=tables(), quantile=st.floats(0, 1), z=st.floats(-10, 10))
def test_relative_thresholds_are_their_formulas_and_never_above_zero(scores: np.ndarray, quantile: float, z: float) -> None:
    values = [score for row in scores for score in row if score != 0]
    if not values:
        for ask in (lambda: rules.quantile_threshold(scores, quantile), lambda: rules.robust_threshold(scores, z)):
            with pytest.raises(ExclusionError, match="Every influence is 0"):
                ask()
        return
    assert rules.quantile_threshold(scores, quantile) == min(float(np.quantile(values, quantile)), 0.0)
    median = float(np.median(values))
    deviation = float(np.median([abs(value - median) for value in values]))
    if deviation == 0:
        with pytest.raises(ExclusionError, match="undefined"):
            rules.robust_threshold(scores, z)
    else:
        assert rules.robust_threshold(scores, z) == pytest.approx(min(median + z * 1.4826 * deviation, 0.0))


def test_robust_z_survives_a_hinge() -> None:
    """Half zeros would make the median absolute deviation 0; without them it is that of the live scores."""
    live = np.array([-3.0, -1.0, 1.0, 2.0])
    scores = np.concatenate([live, np.zeros(20)]).reshape(-1, 1)
    assert rules.robust_threshold(scores, -2.0) == pytest.approx(0.0 - 2 * 1.4826 * 1.5)


def test_the_suggested_threshold_chooses_about_its_share() -> None:
    scores = np.random.default_rng(0).normal(size=(500, 12))
    threshold = rules.suggested_threshold(kth_lowest(scores, 3), share=0.02)
    assert (kth_lowest(scores, 3) < threshold).sum() == pytest.approx(10, abs=1)
    assert rules.suggested_threshold(kth_lowest(np.abs(scores), 3)) == 0.0
    assert rules.suggested_threshold(kth_lowest(scores, 13)) == 0.0


# ---- refusals


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"threshold": 0.1}, "threshold is 0.1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": float("-inf")}, "threshold is -inf"),
        ({"min_occurrences": 0}, "min_occurrences is 0"),
        ({"max_exclusions": 0}, "max_exclusions is 0"),
        ({"pair_mode": "both"}, "no pair mode 'both'; choose from ranking_pair, full_pair, sample"),
        ({"pair_mode": "sample"}, "needs the scores of samples"),
    ],
)
def test_a_rule_without_meaning_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ExclusionError, match=told):
        choose_pairs(np.zeros((2, 2)), pair_frame(2), pair_frame(2, "t"), **{**RULE, **change})


@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), float("inf")])
@pytest.mark.parametrize("mode", MODES)
def test_a_score_that_is_not_a_number_is_refused_by_name(bad: float, mode: PairMode) -> None:
    """NaN would pass each comparison in silence, -inf would be the most harmful of all."""
    scores = np.zeros((3, 2))
    scores[2, 1] = bad
    ids = np.array(["s0_s1", "s0_s2", "s0_s3"], dtype=object)
    with pytest.raises(ExclusionError, match=r"'s0_s3' on 't0_t2'"):
        choose_pairs(scores, pair_frame(3), pair_frame(2, "t"), **RULE, pair_mode=mode, sample_ids=ids, sample_scores=scores)
    with pytest.raises(ExclusionError, match="row 2, column 1"):
        kth_lowest(scores, 1)


SCORES = np.array([[-1.0, 2.0]])


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: rules.quantile_threshold(SCORES, 1.5), "quantile is 1.5"),
        (lambda: rules.quantile_threshold(SCORES, float("nan")), "quantile is nan"),
        (lambda: rules.robust_threshold(SCORES, float("nan")), "z-score is nan"),
        (lambda: rules.suggested_threshold(SCORES[0], share=0.0), "share is 0"),
        (lambda: kth_lowest(SCORES, 0), "min_occurrences is 0"),
        (lambda: rules.Sweep(SCORES[0], SCORES[0]).counts([-1.0, 0.5]), "threshold is 0.5"),
        (lambda: choose_pairs(None, pair_frame(1), pair_frame(1, "t"), **RULE), "needs the scores of pairs"),
    ],
)
def test_a_threshold_without_meaning_is_refused(ask: Callable[[], object], told: str) -> None:
    with pytest.raises(ExclusionError, match=told):
        ask()
