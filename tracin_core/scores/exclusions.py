"""Which training pairs or samples to leave out: the harm rule, its three modes and three kinds of threshold.

A pair's *negative occurrences* are its scores strictly below the threshold, one per test pair. It is a candidate when it has at least
`min_occurrences` of them. Equivalently: when its `min_occurrences`-th lowest score is below the threshold, which makes every count a
binary search in one sorted list. Order and averages depend on the threshold and are computed for the chosen pairs only.

A pair is unordered: of (a, b) and (b, a), or of repeated draws, the first in the table counts and the others do not, on the test side
(else one test would give two occurrences) as on the training side (else one pair would be listed twice).
"""

from dataclasses import dataclass
from math import fsum
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.errors import ExclusionError

PairMode = Literal["ranking_pair", "full_pair", "sample"]
Scores = npt.NDArray[np.float64]
PAIR_COLUMNS = ["id", "id1", "id2", "occurrences", "average_influence", "affected_tests"]
SAMPLE_COLUMNS = ["id", "occurrences", "total_harm", "average_influence", "affected_tests"]
COLUMN_TYPES = {"occurrences": "int64", "total_harm": "float64", "average_influence": "float64"}
MAD_TO_SIGMA = 1.4826
SUGGESTED_QUANTILE = 0.02


# ---- the rule -------------------------------------------------------------------------------------------------------------------


def choose_pairs(
    scores: Scores | None,
    pairs: pd.DataFrame,
    tests: pd.DataFrame,
    *,
    threshold: float,
    min_occurrences: int,
    max_exclusions: int | None,
    pair_mode: PairMode = "ranking_pair",
    sample_ids: npt.NDArray[np.object_] | None = None,
    sample_scores: Scores | None = None,
) -> pd.DataFrame:
    """What the harm rule leaves out, most harmful first; an empty frame with the same columns where it finds nothing.

    ranking_pair: the pairs; order occurrences descending, average ascending, id. Columns id, id1, id2, occurrences, average_influence (mean
    of the scores strictly below the threshold), affected_tests (ids of those test pairs).

    full_pair: both samples of every chosen pair. For sample x with chosen pairs E_x: occurrences = sum of theirs, total_harm = sum of
    their scores below the threshold, average_influence = total_harm / occurrences; order total_harm ascending, occurrences descending, id.
    Columns id, occurrences, total_harm, average_influence, affected_tests.

    sample: the pair rule, in the pair rule's order, on `sample_scores`: what removing each sample with all its pairs does. Columns as
    full_pair.

    Args:
        scores: [N, M], train pairs x test pairs; not read in mode `sample`.
        pairs, tests: id, id1, id2 of the N and the M pairs.
        max_exclusions: how many pairs, or samples, are listed at most; None: all.
        sample_ids, sample_scores: [n] and [n, M], for mode `sample`.

    Raises:
        ExclusionError: the rule or a score cannot be used.
    """
    check_rule(threshold, min_occurrences, max_exclusions, pair_mode)
    counted = first_of_each(tests)
    test_ids = tests["id"].to_numpy()[counted]
    if pair_mode == "sample":
        if sample_ids is None or sample_scores is None:
            raise ExclusionError(
                "Mode 'sample' needs the scores of samples; give sample_ids and sample_scores, or choose ranking_pair."
            )
        table = pd.DataFrame({"id": sample_ids})
        chosen = _harmful(sample_scores[:, counted], table, test_ids, threshold, min_occurrences)
        return _listed(chosen, SAMPLE_COLUMNS, {"occurrences": False, "average_influence": True, "id": True}, max_exclusions)
    if scores is None:
        raise ExclusionError(f"Mode '{pair_mode}' needs the scores of pairs; give them, or choose sample.")
    kept = first_of_each(pairs)
    once = scores if kept.all() and counted.all() else scores[np.ix_(kept, counted)]
    chosen = _harmful(once, pairs.loc[kept, ["id", "id1", "id2"]], test_ids, threshold, min_occurrences)
    if pair_mode == "full_pair":
        order = {"total_harm": True, "occurrences": False, "id": True}
        return _listed(_both_samples(chosen), SAMPLE_COLUMNS, order, max_exclusions)
    return _listed(chosen, PAIR_COLUMNS, {"occurrences": False, "average_influence": True, "id": True}, max_exclusions)


def _harmful(
    scores: Scores, table: pd.DataFrame, test_ids: npt.NDArray[np.object_], threshold: float, min_occurrences: int
) -> pd.DataFrame:
    """The table's rows that are candidates, with occurrences, total_harm, average_influence and affected_tests."""
    check_scores(scores, table["id"].to_numpy(), test_ids)
    occurrences = (scores < threshold).sum(axis=1)
    rows = np.flatnonzero(occurrences >= min_occurrences)
    below = scores[rows] < threshold
    harm = np.array([fsum(score[hit]) for score, hit in zip(scores[rows], below, strict=True)], dtype=np.float64)
    return table.iloc[rows].assign(
        occurrences=occurrences[rows],
        total_harm=harm,
        average_influence=harm / occurrences[rows],
        affected_tests=pd.Series([list(test_ids[hit]) for hit in below], index=table.index[rows], dtype=object),
    )


def _both_samples(chosen: pd.DataFrame) -> pd.DataFrame:
    ends = pd.concat([chosen.assign(id=chosen[end]) for end in ("id1", "id2")], ignore_index=True)
    rows = [
        {
            "id": sample,
            "occurrences": int(part["occurrences"].sum()),
            "total_harm": fsum(part["total_harm"]),
            "average_influence": fsum(part["total_harm"]) / int(part["occurrences"].sum()),
            "affected_tests": sorted({test for tests in part["affected_tests"] for test in tests}),
        }
        for sample, part in ends.groupby("id")
    ]
    return pd.DataFrame(rows, columns=SAMPLE_COLUMNS)


def _listed(chosen: pd.DataFrame, columns: list[str], order: dict[str, bool], most: int | None) -> pd.DataFrame:
    """Ordered, then cut; every column has its type, also when there is no row."""
    ordered = chosen.sort_values(list(order), ascending=list(order.values()), ignore_index=True)[columns]
    typed = ordered.astype({name: kind for name, kind in COLUMN_TYPES.items() if name in columns})
    return typed if most is None else typed.head(most)


def first_of_each(pairs: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Which rows are the first of their unordered pair (id1, id2)."""
    codes, names = pd.factorize(pd.concat([pairs["id1"], pairs["id2"]]))
    one, two = codes[: len(pairs)].astype(np.int64), codes[len(pairs) :].astype(np.int64)
    key = np.minimum(one, two) * len(names) + np.maximum(one, two)
    return np.asarray(~pd.Series(key).duplicated().to_numpy())


# ---- how many, at every threshold at once ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """Sorted k-th lowest scores: how many pairs and samples are touched is exact at every threshold, by binary search, before any cap."""

    pairs: Scores
    samples: Scores

    def counts(self, thresholds: npt.ArrayLike) -> pd.DataFrame:
        """One row per threshold: threshold, pairs, samples.

        Raises:
            ExclusionError: a threshold is above 0 or not a number.
        """
        asked = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
        for value in asked:
            check_threshold(float(value))
        return pd.DataFrame(
            {"threshold": asked, "pairs": count_below(self.pairs, asked), "samples": count_below(self.samples, asked)}
        )


def sweep_of_pairs(kth: Scores, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], samples: int) -> Sweep:
    """The sweep of the pair modes: a sample is touched when one of its pairs (positions first, second of `samples`) is chosen."""
    touched = np.full(samples, np.inf)
    np.minimum.at(touched, first, kth)
    np.minimum.at(touched, second, kth)
    return Sweep(np.sort(kth), np.sort(touched))


def sweep_of_samples(kth: Scores, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> Sweep:
    """The sweep of mode `sample`: a pair goes when one of its samples is chosen."""
    return Sweep(np.sort(np.minimum(kth[first], kth[second])), np.sort(kth))


def kth_lowest(scores: Scores, k: int) -> Scores:
    """Each row's k-th lowest score, +inf where a row has fewer: `kth_lowest(scores, k) < T` iff at least k scores are below T.

    Raises:
        ExclusionError: k is below 1, or a score is not a number.
    """
    check_occurrences(k)
    if not np.isfinite(scores).all():
        row, column = (int(place) for place in np.argwhere(~np.isfinite(scores))[0])
        raise ExclusionError(f"The score in row {row}, column {column} is {scores[row, column]}; compute the run again.")
    if k > scores.shape[1]:
        return np.full(len(scores), np.inf)
    return np.asarray(np.partition(scores, k - 1, axis=1)[:, k - 1])


def count_below(kth_sorted: Scores, thresholds: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """How many of the sorted k-th lowest scores lie strictly below each threshold: how many entries the rule chooses, uncapped."""
    return np.searchsorted(kth_sorted, np.asarray(thresholds, dtype=np.float64), side="left").astype(np.int64)


# ---- thresholds -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Population:
    """The scores that a quantile or a robust z is taken over: of live test pairs, and not exactly 0.

    A hinge makes half of all scores exact zeros, over which the median absolute deviation is 0 and every z undefined.
    """

    values: Scores
    live_tests: int
    tests: int
    share: float  # of all N x M scores

    def describe(self) -> str:
        """The population in words, to stand beside a threshold."""
        return (
            f"{len(self.values):,} scores that are not 0 ({100 * self.share:.1f} % of all), "
            f"from the {self.live_tests:,} live of {self.tests:,} test pairs"
        )


def population(scores: Scores) -> Population:
    """The population of this influence table [N, M]. A test pair is live when some score on it is not 0."""
    values = np.asarray(scores[scores != 0])
    live = int(np.any(scores != 0, axis=0).sum())
    return Population(values, live, scores.shape[1], len(values) / max(scores.size, 1))


def quantile_threshold(scores: Scores, quantile: float) -> float:
    """The quantile of the population's scores as a threshold, capped at 0: a positive influence is never harm.

    Raises:
        ExclusionError: the quantile is not in [0, 1], or no score differs from 0.
    """
    if not 0 <= quantile <= 1:
        raise ExclusionError(f"The quantile is {quantile}; choose a number between 0 and 1.")
    return min(float(np.quantile(_values(scores), quantile)), 0.0)


def robust_threshold(scores: Scores, z: float) -> float:
    """median + z * 1.4826 MAD of the population's scores as a threshold, capped at 0.

    Raises:
        ExclusionError: z is not a number, no score differs from 0, or the scores have no spread.
    """
    if not np.isfinite(z):
        raise ExclusionError(f"The robust z-score is {z}; choose a number such as -3.")
    values = _values(scores)
    median = float(np.median(values))
    deviation = float(np.median(np.abs(values - median)))
    if deviation == 0:
        raise ExclusionError(
            f"More than half of the {len(values):,} non-zero scores equal {median:g}, so a robust z-score is undefined; choose a "
            f"quantile or an absolute threshold."
        )
    return min(median + z * MAD_TO_SIGMA * deviation, 0.0)


def _values(scores: Scores) -> Scores:
    values = population(scores).values
    if values.size == 0:
        raise ExclusionError(
            "Every influence is 0, so there is no scale for a threshold; choose the score difference as test quantity, or an absolute "
            "threshold."
        )
    return values


def suggested_threshold(scores: Scores, min_occurrences: int, share: float = SUGGESTED_QUANTILE) -> float:
    """Chooses about this share of the train pairs: the quantile of their `min_occurrences`-th lowest scores (all pairs), capped at 0.

    0, which chooses the pairs with as many negative scores, where fewer than this share of pairs are harmful at all.
    """
    if not 0 < share <= 1:
        raise ExclusionError(f"The share is {share}; choose a number above 0, up to 1.")
    kth = kth_lowest(scores, min_occurrences)
    finite = kth[np.isfinite(kth)]
    return 0.0 if finite.size == 0 else min(float(np.quantile(finite, share)), 0.0)


# ---- refusals -------------------------------------------------------------------------------------------------------------------


def check_rule(threshold: float, min_occurrences: int, max_exclusions: int | None, pair_mode: str) -> None:
    """The rule can be applied.

    Raises:
        ExclusionError: the first setting that has no meaning.
    """
    if pair_mode not in get_args(PairMode):
        raise ExclusionError(f"There is no pair mode '{pair_mode}'; choose from {', '.join(get_args(PairMode))}.")
    check_threshold(threshold)
    check_occurrences(min_occurrences)
    if max_exclusions is not None and max_exclusions < 1:
        raise ExclusionError(f"max_exclusions is {max_exclusions}; choose at least 1, or leave it open.")


def check_threshold(threshold: float) -> None:
    if not np.isfinite(threshold) or threshold > 0:
        raise ExclusionError(f"The threshold is {threshold:g}; harm is a negative influence, so choose a number of at most 0.")


def check_occurrences(count: int) -> None:
    if count < 1:
        raise ExclusionError(f"min_occurrences is {count}; choose at least 1.")


def check_scores(scores: Scores, ids: npt.NDArray[np.object_], test_ids: npt.NDArray[np.object_]) -> None:
    """Every score is a number: a NaN would pass every comparison in silence.

    Raises:
        ExclusionError: names the first pair and test whose score is not finite.
    """
    if not np.isfinite(scores).all():
        row, column = (int(place) for place in np.argwhere(~np.isfinite(scores))[0])
        raise ExclusionError(
            f"The influence of '{ids[row]}' on '{test_ids[column]}' is {scores[row, column]}; compute the run again, or leave out the "
            f"checkpoint it comes from."
        )
