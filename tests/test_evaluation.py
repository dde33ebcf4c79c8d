"""What scores are worth: each measure against its definition, counted out, and against scikit-learn and scipy."""

from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tracin_core.errors import ViewError
from tracin_core.scores.evaluation import (
    detection,
    half_subsets,
    interval,
    lds,
    paired_effect,
    recovery,
    signal_to_noise,
    stability,
)

MARKS = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=7).filter(
    lambda rows: 0 < sum(wrong for _, wrong in rows) < len(rows)
)


@given(MARKS, st.sampled_from([0.1, 0.2, 0.3, 0.5, 1.0]))
@settings(max_examples=100, deadline=None)
def test_recovery_is_the_mean_over_all_orders_of_ties(rows: list[tuple[int, bool]], share: float) -> None:
    scores, wrong = (np.array(side) for side in zip(*rows, strict=True))
    looked = int(np.ceil(round(share * len(rows), 9)))
    found = []
    for order in permutations(range(len(rows))):
        ranked = sorted(order, key=lambda row: -scores[row])  # sorted is stable: ties keep the permutation's order
        found.append(wrong[ranked[:looked]].sum() / wrong.sum())
    assert recovery(scores, wrong, share) == pytest.approx(np.mean(found))


@given(MARKS)
@settings(max_examples=100, deadline=None)
def test_auroc_is_the_share_of_couples_in_order(rows: list[tuple[int, bool]]) -> None:
    scores, wrong = (np.array(side) for side in zip(*rows, strict=True))
    couples = [(a > b) + 0.5 * (a == b) for a in scores[wrong] for b in scores[~wrong]]
    told = detection(scores, wrong)
    assert told.auroc == pytest.approx(np.mean(couples))
    assert told.zeros == pytest.approx(np.mean(scores == 0))
    assert told.ties == pytest.approx(np.mean([(scores == score).sum() > 1 for score in scores]))


def test_a_dead_score_finds_what_chance_finds_wherever_the_errors_stand() -> None:
    wrong = np.arange(50) < 5
    for planted in (wrong, wrong[::-1]):
        told = detection(np.zeros(50), planted)
        assert told.auroc == 0.5
        assert told.recovery == pytest.approx({0.1: 0.1, 0.2: 0.2, 0.3: 0.3})
        assert (told.ties, told.zeros) == (1, 1)


def test_a_perfect_score_finds_all() -> None:
    wrong = np.arange(40) % 10 == 0
    told = detection(wrong + 0.01 * np.arange(40) / 40, wrong)
    assert (told.auroc, told.average_precision) == (1, 1)
    assert told.recovery[0.1] == 1


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12))
@settings(max_examples=60, deadline=None)
def test_an_interval_is_students(values: list[float]) -> None:
    told = interval(values)
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    assert (told.mean, told.low, told.high) == pytest.approx(
        (np.mean(values), np.mean(values) - half, np.mean(values) + half), abs=1e-9
    )


def test_one_repetition_has_no_interval_and_proves_nothing() -> None:
    told = interval([3.0])
    assert np.isnan(told.low)
    assert not (told.is_above)
    assert not (told.is_below)


def test_effects_are_paired() -> None:
    """Common seeds move both arms alike; only the differences count."""
    noise = np.array([0.1, 0.5, -0.3, 0.9, 0.0, -0.7])
    told = paired_effect(noise + 0.02, noise)
    assert told.difference.is_above
    assert (told.wins, told.losses) == (6, 0)
    assert told.p == pytest.approx(2 * 0.5**6)
    assert paired_effect(noise, noise).p == 1
    with pytest.raises(ViewError, match="same seeds"):
        paired_effect(noise, noise[:3])


@given(st.integers(3, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_lds_is_the_mean_of_spearmans(subsets: int, tests: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    one, other = generator.integers(0, 4, (2, subsets, tests)).astype(float)
    alone = [stats.spearmanr(a, b).statistic if np.ptp(a) and np.ptp(b) else np.nan for a, b in zip(one.T, other.T, strict=True)]
    if np.isnan(alone).all():
        with pytest.raises(ViewError, match="nothing can be ranked"):
            lds(one, other, resamples=0)
        return
    told = lds(one, other, resamples=20)
    np.testing.assert_allclose(told.per_test, alone, atol=1e-12)
    assert told.mean == pytest.approx(np.nanmean(alone))
    assert told.low <= told.high


def test_predictions_of_a_linear_world_are_perfect() -> None:
    generator = np.random.default_rng(0)
    kept = half_subsets(30, 40, seed=1)
    assert (kept.sum(axis=1) == 15).all()
    worth = generator.normal(size=(30, 5))
    told = lds(kept @ worth, kept @ worth * 3 + 1)
    assert told.mean == pytest.approx(1)
    assert lds(kept @ worth, generator.normal(size=(40, 5))).mean < 0.5


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3, 1.0])
def test_the_interval_lies_around_its_mean(noise: float) -> None:
    """Subsets that a resample draws twice tie, and so its correlations are lower; with little noise all of them were below the mean."""
    generator = np.random.default_rng(3)
    kept = half_subsets(200, 50, seed=1)
    worth = generator.normal(size=(200, 60))
    outcome = kept @ worth
    told = lds(outcome, outcome + noise * outcome.std() * generator.normal(size=outcome.shape))
    assert told.low <= told.mean <= told.high
    assert (told.low < told.mean < told.high) or noise == 0.0


def test_stability_of_a_score_with_itself_and_with_its_opposite() -> None:
    values = np.random.default_rng(0).normal(size=200)
    assert stability(values, values) == pytest.approx({"spearman": 1, "overlap": 1, "signs": 1})
    assert stability(values, -values) == pytest.approx({"spearman": -1, "overlap": 0, "signs": 0})
    assert np.isnan(stability(values, np.ones(200))["spearman"])


def test_signal_to_noise_is_per_example() -> None:
    scores = np.array([[1.0, -1.0, 0.0], [1.0, 3.0, 0.0], [1.0, 1.0, 0.0]])
    told = signal_to_noise(scores)
    assert told["mean"].tolist() == [1, 1, 0]
    assert told["ratio"][0] == np.inf
    assert told["ratio"][1] == pytest.approx(1 / 2)
    assert np.isnan(told["ratio"][2])
    assert told["agreement"].tolist() == pytest.approx([1, 2 / 3, 1])


NONE = np.zeros(3, dtype=bool)


@pytest.mark.parametrize(
    ("scores", "planted", "told"),
    [
        ([1.0, np.nan, 2.0], [True, False, False], "row 1 is nan"),
        ([1.0, 2.0], [True, False, False], "do not fit"),
        ([1.0, 2.0, 3.0], NONE, "0 of 3"),
        ([1.0, 2.0, 3.0], ~NONE, "3 of 3"),
    ],
)
def test_what_cannot_be_judged_is_refused(scores: list[float], planted: npt.ArrayLike, told: str) -> None:
    with pytest.raises(ViewError, match=told):
        detection(scores, planted)


def test_equal_arms_differ_in_nothing_though_their_means_do_in_a_bit() -> None:
    """The mean of three equal draws may differ from the draw itself in its last bit, and no verdict rests on that."""
    for right in range(1, 31):
        control = np.array([[right / 30] * 3] * 4).mean(axis=1)
        found = paired_effect([right / 30] * 4, control)
        assert (found.wins, found.losses, found.p) == (0, 0, 1.0)
        assert not found.difference.is_above
        assert not found.difference.is_below


def test_an_interval_without_width_decides_nothing() -> None:
    found = paired_effect([0.9, 0.9], [0.8, 0.8]).difference
    assert found.mean == pytest.approx(0.1)
    assert not found.is_above
