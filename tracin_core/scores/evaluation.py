"""What scores are worth: whether they find planted errors, predict retraining, and stay the same from seed to seed.

Planted errors are known, so a score is judged by how early it lists them; ties are broken at random in expectation, never by position,
because a score that is 0 almost everywhere would otherwise look good or bad by the order of the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy

from tracin_core.errors import ViewError
from tracin_core.scores.agreement import overlap_curve

Array = npt.NDArray[np.float64]
SHARES: Final = (0.1, 0.2, 0.3)  # of all examples, from the top, that somebody would look at
LEVEL: Final = 0.95
ROUNDING: Final = 1e-12  # of a difference of accuracies or errors
RESAMPLES: Final = 1_000


# ---- finding planted errors -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detection:
    """How well one score finds planted errors, the more suspect the higher.

    Attributes:
        auroc: the chance that a planted error is scored above another example, ties counting half.
        average_precision: the mean precision at the planted errors, by steps; tied scores are one step.
        recovery: share of all examples, from the top -> expected share of the planted errors among them, ties broken at random.
        ties: the share of examples whose score another example has too.
        zeros: the share of scores that are exactly 0.
    """

    auroc: float
    average_precision: float
    recovery: dict[float, float]
    ties: float
    zeros: float


def detection(scores: npt.ArrayLike, planted: npt.ArrayLike) -> Detection:
    """How well the scores find the planted errors.

    Args:
        scores: [n], higher is more suspect.
        planted: [n], whether each example is a planted error.

    Raises:
        ViewError: a score is not finite, the two differ in length, or there is no planted error, or nothing else.
    """
    values, wrong = _scored(scores, planted)
    from sklearn.metrics import average_precision_score, roc_auc_score  # type: ignore[import-untyped]

    counts = pd.Series(values).value_counts()
    return Detection(
        auroc=float(roc_auc_score(wrong, values)),
        average_precision=float(average_precision_score(wrong, values)),
        recovery={share: recovery(values, wrong, share) for share in SHARES},
        ties=float(counts[counts > 1].sum() / values.size),
        zeros=float(np.mean(values == 0)),
    )


def recovery(scores: npt.ArrayLike, planted: npt.ArrayLike, share: float) -> float:
    """The expected share of the planted errors among the ceil(share n) highest scores, ties broken uniformly at random.

    Raises:
        ViewError: as `detection`; or the share is not above 0 and at most 1.
    """
    values, wrong = _scored(scores, planted)
    if not 0 < share <= 1:
        raise ViewError(f"The share looked at is {share:g}; choose more than 0 and at most 1.")
    looked = int(np.ceil(round(share * values.size, 9)))  # 0.1 x 50 is a little more than 5 in floating point
    line = np.partition(values, values.size - looked)[values.size - looked]
    above, tied = values > line, values == line
    open_places = looked - int(above.sum())
    found = wrong[above].sum() + wrong[tied].sum() * open_places / tied.sum()
    return float(found / wrong.sum())


def _scored(scores: npt.ArrayLike, planted: npt.ArrayLike) -> tuple[Array, npt.NDArray[np.bool_]]:
    values, wrong = np.asarray(scores, dtype=np.float64), np.asarray(planted, dtype=bool)
    if values.ndim != 1 or values.shape != wrong.shape:
        raise ViewError(f"{values.shape} scores do not fit {wrong.shape} marks of planted errors; give one of each per example.")
    if not np.isfinite(values).all():
        row = int(np.argmax(~np.isfinite(values)))
        raise ViewError(f"The score in row {row} is {values[row]}; leave that example out, or choose another score.")
    if not 0 < wrong.sum() < wrong.size:
        raise ViewError(f"{int(wrong.sum())} of {wrong.size} examples are planted errors; plant some, and leave some as they are.")
    return values, wrong


# ---- intervals and paired effects -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A mean over independent repetitions and its 95 % Student t-interval; both ends NaN for fewer than two."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def is_above(self) -> bool:
        """The whole interval lies above 0; one without width, of repetitions that do not differ at all, says nothing."""
        return bool(self.low > 0 and self.high > self.low)

    @property
    def is_below(self) -> bool:
        """The whole interval lies below 0; one without width says nothing."""
        return bool(self.high < 0 and self.high > self.low)


def interval(values: npt.ArrayLike) -> Interval:
    """The mean of one number per repetition, with its t-interval.

    Raises:
        ViewError: there is none, or one is not finite.
    """
    given = np.asarray(values, dtype=np.float64).ravel()
    if not given.size or not np.isfinite(given).all():
        raise ViewError(
            f"{given.size} repetitions, {int((~np.isfinite(given)).sum())} of them not finite, have no mean; repeat them."
        )
    mean = float(given.mean())
    if given.size < 2:
        return Interval(mean, np.nan, np.nan, given.size)
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, given.size - 1) * scipy.stats.sem(given))
    return Interval(mean, mean - half, mean + half, given.size)


@dataclass(frozen=True)
class Effect:
    """What one arm changed against another, repetition by repetition: the interval of the differences and a two-sided sign test.

    Attributes:
        wins: repetitions in which the difference is above 0; `losses`: below; equal ones count in neither.
        p: of the sign test among those that differ; 1 where none does.
    """

    difference: Interval
    wins: int
    losses: int
    p: float


def paired_effect(arm: npt.ArrayLike, control: npt.ArrayLike) -> Effect:
    """The effect of an arm against its control, both measured with the same seeds, in the same order: [repetitions].

    Raises:
        ViewError: their lengths differ, or as `interval`.
    """
    one, other = np.asarray(arm, dtype=np.float64).ravel(), np.asarray(control, dtype=np.float64).ravel()
    if one.shape != other.shape:
        raise ViewError(f"{one.size} repetitions of one arm cannot be paired with {other.size} of the other; use the same seeds.")
    difference = one - other
    difference[np.abs(difference) < ROUNDING] = 0.0  # means of equal figures differ in their last bits
    wins, losses = int(np.sum(difference > 0)), int(np.sum(difference < 0))
    p = float(scipy.stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    return Effect(interval(difference), wins, losses, p)


# ---- predicting retraining --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lds:
    """The linear datamodelling score: per test, the Spearman correlation over subsets between the predicted and the measured outcome.

    Attributes:
        per_test: [tests]; NaN where either side is constant over the subsets.
        mean: over the tests that have one.
        low, high: a 95 % percentile bootstrap interval of the mean over tests and subsets both, moved by the bootstrap's own bias.
    """

    per_test: Array
    mean: float
    low: float
    high: float


def lds(predicted: npt.ArrayLike, measured: npt.ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Lds:
    """The linear datamodelling score (Park, Georgiev, Ilyas, Leclerc, Madry 2023, arXiv 2303.14186).

    Args:
        predicted: [subsets, tests], for each subset S the sum over k in S of the influence of k on the test.
        measured: [subsets, tests], minus the test's loss after training on S alone.
        resamples: of the two-way bootstrap; 0: no interval (NaN).

    Raises:
        ViewError: the shapes differ, there are fewer than 3 subsets, or a number is not finite.
    """
    one, other = np.asarray(predicted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    if one.ndim != 2 or one.shape != other.shape or len(one) < 3:
        raise ViewError(
            f"Predictions of shape {one.shape} do not fit outcomes of shape {other.shape}; give at least 3 subsets of each."
        )
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ViewError("A prediction or an outcome is not finite; leave that test out.")
    per_test = _rank_correlations(one, other)
    if np.isnan(per_test).all():
        raise ViewError(
            "Every test has the same prediction or outcome over all subsets, so nothing can be ranked; choose other tests."
        )
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        rows, columns = (generator.integers(0, size, size) for size in one.shape)
        drawn = _rank_correlations(one[np.ix_(rows, columns)], other[np.ix_(rows, columns)])
        if not np.isnan(drawn).all():
            means.append(np.nanmean(drawn))
    mean = float(np.nanmean(per_test))
    low, high = _unbiased(means, mean) if means else (np.nan, np.nan)
    return Lds(per_test, mean, low, high)


def _unbiased(drawn: Sequence[np.floating[Any]], mean: float) -> tuple[float, float]:
    """The percentile interval, moved by what resampling itself changes: a subset drawn twice ties, and ties lower rank correlations."""
    ends = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) + mean - np.mean(drawn)
    low, high = np.clip(ends, -1.0, 1.0)
    return float(low), float(high)


def _rank_correlations(one: Array, other: Array) -> Array:
    """Spearman's correlation of each column of the two; NaN where either is constant."""
    ranks = [scipy.stats.rankdata(values, axis=0) for values in (one, other)]
    centred = [rank - rank.mean(axis=0) for rank in ranks]
    norms = [np.sqrt((part**2).sum(axis=0)) for part in centred]
    with np.errstate(invalid="ignore"):
        return np.asarray((centred[0] * centred[1]).sum(axis=0) / (norms[0] * norms[1]))


def half_subsets(examples: int, subsets: int, *, share: float = 0.5, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Random subsets of that share of the examples: [subsets, examples].

    Raises:
        ViewError: a subset would hold nothing or everything.
    """
    size = round(share * examples)
    if not 0 < size < examples:
        raise ViewError(
            f"A share of {share:g} of {examples} examples is {size} of them; choose a share that leaves some in and some out."
        )
    generator = np.random.default_rng(seed)
    kept = np.zeros((subsets, examples), dtype=bool)
    for row in kept:
        row[generator.choice(examples, size, replace=False)] = True
    return kept


# ---- stability --------------------------------------------------------------------------------------------------------------------


def stability(one: npt.ArrayLike, other: npt.ArrayLike, *, top: float = 0.05, signs: int = 100) -> dict[str, float]:
    """How alike two runs' scores of the same examples are.

    Returns:
        spearman; overlap: the Jaccard index of the two top shares, equals sharing their places (`agreement.overlap_curve`); signs: of the
        examples that are as large in size as the `signs`-th in either, the share with the same sign in both.

    Raises:
        ViewError: the lengths differ, a score is not finite, or there are fewer than 2.
    """
    a, b = np.asarray(one, dtype=np.float64).ravel(), np.asarray(other, dtype=np.float64).ravel()
    if a.shape != b.shape or a.size < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ViewError(f"{a.size} and {b.size} scores cannot be compared; give the same examples of both runs, all finite.")
    k = max(1, round(top * a.size))
    shared = float(overlap_curve(a, b, most=k)["shared"].iloc[-1])
    sizes = [np.abs(values) for values in (a, b)]
    large = np.any([size >= np.sort(size)[-min(signs, size.size)] for size in sizes], axis=0)
    constant = np.ptp(a) == 0 or np.ptp(b) == 0
    return {
        "spearman": np.nan if constant else float(scipy.stats.spearmanr(a, b).statistic),
        "overlap": shared / (2 * k - shared),
        "signs": float(np.mean(np.sign(a[large]) == np.sign(b[large]))),
    }


def signal_to_noise(scores: npt.ArrayLike) -> pd.DataFrame:
    """What repetitions with other seeds agree on, per example: mean, sd (n - 1), ratio = |mean| / sd, agreement (share of seeds of the
    mean's sign).

    Args:
        scores: [seeds, examples].

    Raises:
        ViewError: fewer than 2 seeds, or a score is not finite.
    """
    given: Any = np.asarray(scores, dtype=np.float64)
    if given.ndim != 2 or len(given) < 2 or not np.isfinite(given).all():
        raise ViewError(f"Scores of shape {given.shape} show no noise between seeds; give finite scores of at least 2 seeds.")
    mean, sd = given.mean(axis=0), given.std(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(sd > 0, np.abs(mean) / sd, np.where(mean != 0, np.inf, np.nan))
    return pd.DataFrame({"mean": mean, "sd": sd, "ratio": ratio, "agreement": (np.sign(given) == np.sign(mean)).mean(axis=0)})
