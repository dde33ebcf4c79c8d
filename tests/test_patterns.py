"""Quadrants, recurrence and drift against plain loops, and chance against every possible choice."""

from collections.abc import Callable
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_scores import FEW, FLOAT64, ONES, VALUES, VIEW, drawn_pairs, make_view, sample_table
from scipy import stats

from tracin_core.data.samples import all_pairs
from tracin_core.errors import ViewError
from tracin_core.scores import patterns
from tracin_core.scores.losses import PairLoss


def test_dead_examples_are_in_one_population_and_not_in_the_other() -> None:
    view = make_view(8, PairLoss(margin=1.0))
    live = view.self_influence() != 0
    table = patterns.self_and_mean(view).set_index("population")
    assert table.loc[["all", "live"], "n"].tolist() == [live.size, live.sum()]
    assert 0 < live.sum() < live.size
    for population, rows in (("all", np.arange(live.size)), ("live", np.flatnonzero(live))):
        expected = stats.spearmanr(view.self_influence()[rows], view.mean_influence()[rows]).statistic
        np.testing.assert_allclose(table.loc[population, "spearman"], expected, **FLOAT64)


def test_quadrants_are_named_as_documented() -> None:
    """Size of the mean influence against self-influence; the sign is told beside it; a dead example is in none."""
    expected = [
        (9.0, 6.0, "hard", "helps"),
        (9.0, -6.0, "hard", "harms"),
        (9.0, 0.1, "special_case", "helps"),
        (9.0, -0.1, "special_case", "harms"),
        (1.0, 6.0, "typical", "helps"),
        (3.0, -1.0, "typical", "harms"),
        (1.0, 0.1, "redundant", "helps"),
        (1.0, 0.0, "redundant", "neither"),
        (1.0, 0.1, "redundant", "helps"),
        (0.0, 0.0, "dead", "neither"),
    ]
    own, mean, labels, directions = (np.array(column) for column in zip(*expected, strict=True))
    found = patterns.quadrants(own, mean)
    assert (found.self_cut, found.mean_cut) == (3.0, 0.55)
    assert found.labels.tolist() == labels.tolist()
    assert found.directions.tolist() == directions.tolist()
    table = found.counts.set_index("quadrant")
    assert table.loc["hard"].tolist() == [1, 1, 0]
    assert table.loc["dead"].tolist() == [0, 0, 1]


@FEW
@given(values=st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.0, 5.0]), st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0])), max_size=9))
def test_every_example_is_in_one_quadrant(values: list[tuple[float, float]]) -> None:
    values = [(own, mean if own else 0.0) for own, mean in values]
    found = patterns.quadrants([own for own, _ in values], [mean for _, mean in values])
    live = [(own, abs(mean)) for own, mean in values if own]
    self_cut = np.median([own for own, _ in live]) if live else np.nan
    sizes = [size for _, size in live if size]
    mean_cut = np.median(sizes) if sizes else np.nan
    np.testing.assert_equal([found.self_cut, found.mean_cut], [self_cut, mean_cut])
    names = {(True, True): "hard", (False, True): "typical", (True, False): "special_case", (False, False): "redundant"}
    for (own, mean), label, direction in zip(values, found.labels, found.directions, strict=True):
        assert label == (names[bool(own > self_cut), bool(abs(mean) > mean_cut)] if own else "dead")
        assert direction == {1: "helps", -1: "harms", 0: "neither"}[int(np.sign(mean))]
    counts = found.counts
    assert counts["quadrant"].tolist() == list(patterns.QUADRANTS)
    assert counts[["helps", "harms", "neither"]].to_numpy().sum() == len(values)


# ---- recurrence


SQUARE = pd.DataFrame({"id": list("abcde"), "label": range(5), "angle": [0, 36, 72, 108, 144], "sequence": [0, 0, 0, 1, 1]})


def slow_counts(pairs: pd.DataFrame, samples: pd.DataFrame, chosen: Any, by: str) -> dict[Any, int]:
    found = dict.fromkeys(samples[by], 0)
    for row in chosen:
        for group in {samples[by].iloc[pairs[end].iloc[row]] for end in ("first", "second")}:
            found[group] += 1
    return found


@pytest.mark.parametrize("by", ["id", "sequence"])
@pytest.mark.parametrize("kept", [range(10), [0, 1, 2, 3, 4, 5, 9]])  # in the second, samples have from 2 to 4 pairs
@pytest.mark.parametrize("chosen", [(0, 1, 2), (0, 4, 5), (4, 6)])
def test_chance_is_that_of_every_choice_of_as_many_pairs(by: str, kept: Any, chosen: tuple[int, ...]) -> None:
    """All choices of k pairs: p per group exactly; the p of the largest excess within what 9,999 draws can tell."""
    pairs = all_pairs(SQUARE).iloc[list(kept)].reset_index(drop=True)
    mask = np.isin(np.arange(len(pairs)), chosen)
    found = patterns.recurrence(mask, pairs, SQUARE, by=by)
    table = found.table.set_index("group")
    every = [slow_counts(pairs, SQUARE, choice, by) for choice in combinations(range(len(pairs)), len(chosen))]
    seen, held = slow_counts(pairs, SQUARE, chosen, by), slow_counts(pairs, SQUARE, range(len(pairs)), by)
    drawn = pd.DataFrame(every)
    excess = (drawn - drawn.mean()) / drawn.std(ddof=0)
    largest = excess.max(axis=1).to_numpy()
    for group in table.index:
        assert (table["chosen"][group], table["pairs"][group]) == (seen[group], held[group])
        np.testing.assert_allclose(table["expected"][group], drawn[group].mean(), **FLOAT64)
        np.testing.assert_allclose(table["p"][group], (drawn[group] >= seen[group]).mean(), **FLOAT64)
        mine = (seen[group] - drawn[group].mean()) / drawn[group].std(ddof=0)
        assert abs(table["p_familywise"][group] - (largest >= mine - 1e-9).mean()) < 0.02  # 4 standard errors of 9,999 draws
    np.testing.assert_allclose(table["q"], stats.false_discovery_control(table["p"]), **FLOAT64)
    assert found.p_largest == table["p_familywise"].min()
    assert (found.chosen, found.pairs) == (len(chosen), len(pairs))
    assert found.table["p"].is_monotonic_increasing


def test_a_pair_counts_once_however_it_was_drawn() -> None:
    """Mirrored pairs, of an oriented table, are one pair: chosen if either is."""
    pairs = all_pairs(SQUARE)
    mask = np.arange(len(pairs)) < 4
    mirrored = pairs.rename(columns={"first": "second", "second": "first", "id1": "id2", "id2": "id1"})[list(pairs.columns)]
    both = pd.concat([pairs.assign(multiplicity=3), mirrored], ignore_index=True)
    once = patterns.recurrence(mask, pairs, SQUARE)
    for chosen in (np.r_[mask, mask], np.r_[mask, ~mask & False], np.r_[mask & False, mask]):
        twice = patterns.recurrence(chosen, both, SQUARE)
        assert (twice.chosen, twice.pairs) == (4, 10)
        pd.testing.assert_frame_equal(twice.table.drop(columns="p_familywise"), once.table.drop(columns="p_familywise"))


def test_a_planted_sample_stands_out_and_a_random_choice_does_not() -> None:
    samples = sample_table(40, 0, "a").assign(label=np.arange(40) % 5)
    pairs = all_pairs(samples)
    generator = np.random.default_rng(0)
    values = generator.normal(size=len(pairs)) - 4 * ((pairs["first"] == 7) | (pairs["second"] == 7))
    found = patterns.recurrence(patterns.most_harmful(values, 25), pairs, samples)
    assert found.table["group"].iloc[0] == samples["id"].iloc[7]
    assert found.p_largest == 1 / 10_000
    assert (found.table["q"].iloc[1:] > 0.05).all()
    largest = [
        patterns.recurrence(generator.permutation(len(pairs)) < 25, pairs, samples, permutations=99, seed=seed).p_largest
        for seed in range(60)
    ]
    for level in (0.05, 0.2, 0.5):  # counts are whole numbers, so p is at most uniform
        assert np.sum(np.array(largest) <= level) <= stats.binom.ppf(0.999, len(largest), level)
    assert min(largest) < 0.5


def test_what_touches_all_pairs_cannot_stand_out() -> None:
    samples = SQUARE.assign(material="box")
    found = patterns.recurrence(np.arange(10) < 3, all_pairs(samples), samples, by="material")
    assert found.table[["pairs", "chosen", "p", "q", "p_familywise"]].to_numpy().tolist() == [[10, 3, 1, 1, 1]]


@FEW
@given(values=st.lists(VALUES, min_size=1, max_size=9), k=st.integers(1, 9))
def test_the_most_harmful_are_below_zero_and_the_lowest(values: list[float], k: int) -> None:
    negative = sorted((value, place) for place, value in enumerate(values) if value < 0)
    assert np.flatnonzero(patterns.most_harmful(values, k)).tolist() == sorted(place for _, place in negative[:k])


# ---- drift


def test_drift_is_tested_by_every_order_of_the_samples() -> None:
    """5 samples, 120 orders: the exact two-sided p of scipy's convention, twice the smaller tail."""
    pairs = all_pairs(SQUARE)
    samples = SQUARE.assign(sequence=[3, 1, 4, 0, 2])
    values = np.random.default_rng(1).normal(size=len(pairs))
    found = patterns.drift(values, pairs, samples)
    mean = np.array([values[((pairs["first"] == x) | (pairs["second"] == x)).to_numpy()].mean() for x in range(5)])
    every = np.array([stats.spearmanr(order, mean).statistic for order in permutations(samples["sequence"])])
    mine = stats.spearmanr(samples["sequence"], mean).statistic
    np.testing.assert_allclose(found.spearman, mine, **FLOAT64)
    np.testing.assert_allclose(found.p, min(1.0, 2 * min((every >= mine - 1e-9).mean(), (every <= mine + 1e-9).mean())), **FLOAT64)
    np.testing.assert_allclose(found.table["mean"], mean[np.argsort(samples["sequence"])], **FLOAT64)
    assert found.samples == 5


def test_a_planted_drift_is_found_and_copies_weigh() -> None:
    samples = sample_table(30, 2, "a").assign(label=np.arange(30) % 5, sequence=np.arange(30) // 5)
    pairs = drawn_pairs(samples, 2)
    take = samples["sequence"].to_numpy()
    noise = np.random.default_rng(0).normal(size=len(pairs))
    found = patterns.drift(noise + take[pairs["first"]] + take[pairs["second"]], pairs, samples)
    assert found.spearman > 0.7
    assert found.p == pytest.approx(2 / 10_000)
    assert found.table["group"].tolist() == [0, 1, 2, 3, 4, 5]
    assert found.table["samples"].tolist() == [5] * 6
    mean = [
        np.average(noise[own], weights=pairs["multiplicity"][own])
        for own in (((pairs["first"] == x) | (pairs["second"] == x)).to_numpy() for x in range(30))
    ]
    still = patterns.drift(noise, pairs, samples)
    for group, row in still.table.iterrows():
        np.testing.assert_allclose(row["mean"], np.mean(np.array(mean)[take == group]), **FLOAT64)
        expected = stats.mannwhitneyu(np.array(mean)[take == group], np.array(mean)[take != group]).pvalue
        np.testing.assert_allclose(row["p"], expected, **FLOAT64)
    np.testing.assert_allclose(still.table["q"], stats.false_discovery_control(still.table["p"]), **FLOAT64)


def test_samples_without_a_number_or_a_value_are_counted() -> None:
    samples = SQUARE.assign(sequence=[0.0, 1.0, 2.0, 3.0, np.nan])
    pairs = all_pairs(samples)
    values = np.where((pairs["first"] == 0) | (pairs["second"] == 0), np.nan, np.arange(10.0))
    found = patterns.drift(values, pairs, samples)
    assert (found.samples, found.left_out) == (3, 2)
    same = patterns.drift(np.ones(10), pairs, samples)
    assert np.isnan([same.spearman, same.p]).all()
    assert same.table["p"].isna().all()
    assert same.table["mean"].tolist() == [1.0] * 4


# ---- what is refused


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: patterns.self_and_mean(make_view(0, calm=True)), "All 8 test pairs are dead"),
        (lambda: patterns.quadrants([1.0, -2.0], [1.0, 1.0]), "A self-influence is -2; take the quadrants"),
        (lambda: patterns.quadrants([1.0, np.nan], [1.0, 1.0]), "is undefined; take the quadrants"),
        (lambda: patterns.most_harmful([1.0], 0), "The 0 most harmful pairs are none"),
        (lambda: patterns.recurrence(ONES, VIEW.train_pairs, VIEW.train_samples), "One boolean is needed for each of"),
        (lambda: patterns.recurrence(ONES > 0, VIEW.train_pairs, VIEW.train_samples, permutations=0), "choose at least 1"),
        (lambda: patterns.recurrence(ONES > 0, VIEW.train_pairs, VIEW.train_samples, permutations=10**9), "cannot be drawn"),
        (lambda: patterns.drift(ONES, VIEW.train_pairs, VIEW.train_samples, by="material"), "no drift can follow"),
        (lambda: patterns.drift(ONES, VIEW.train_pairs, VIEW.train_samples, by="take"), "no column 'take'"),
        (lambda: patterns.drift(ONES, VIEW.train_pairs, VIEW.train_samples, permutations=0), "0 permutations test nothing"),
    ],
)
def test_what_has_no_answer_is_refused(ask: Callable[[], Any], told: str) -> None:
    with pytest.raises(ViewError, match=told):
        ask()
