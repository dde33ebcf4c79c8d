"""Which training pairs or samples to leave out: the harm rule, its three modes and three kinds of threshold.

A pair's *negative occurrences* are its scores strictly below the threshold, one per test pair. It is a candidate when it has at least
`min_occurrences` of them. Equivalently: when its `min_occurrences`-th lowest score is below the threshold, which makes every count a
binary search in one sorted list. Order and averages depend on the threshold and are computed for the chosen pairs only.

A pair is unordered: of (a, b) and (b, a), or of repeated draws, the first in the table counts and the others do not, on the test side
(else one test would give two occurrences) as on the training side (else one pair would be listed twice).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.errors import ExclusionError

PairMode = Literal["ranking_pair", "full_pair", "sample"]
Scores = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
Reader = Callable[[Rows], Scores]  # the scores of these rows on every test
PAIR_COLUMNS = ["id", "id1", "id2", "occurrences", "average_influence", "affected_tests"]
SAMPLE_COLUMNS = ["id", "occurrences", "total_harm", "average_influence", "affected_tests"]
PAIR_ORDER = {"occurrences": False, "average_influence": True, "id": True}
SAMPLE_ORDER = {"total_harm": True, "occurrences": False, "id": True}
COLUMN_TYPES = {"occurrences": "int64", "total_harm": "float64", "average_influence": "float64"}
MAD_TO_SIGMA = 1.4826
SUGGESTED_QUANTILE = 0.02
BLOCK_CELLS = 4_000_000  # 32 MB of scores at a time


# ---- the rule -------------------------------------------------------------------------------------------------------------------


def choose_pairs(
    scores: Scores | Reader | None,
    pairs: pd.DataFrame,
    tests: pd.DataFrame,
    *,
    threshold: float,
    min_occurrences: int,
    max_exclusions: int | None,
    pair_mode: PairMode = "ranking_pair",
    sample_ids: npt.NDArray[np.object_] | None = None,
    sample_scores: Scores | Reader | None = None,
    candidates: Rows | None = None,
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
        scores: [N, M], train pairs x test pairs, or what reads some rows of it; not read in mode `sample`.
        pairs, tests: id, id1, id2 of the N and the M pairs.
        max_exclusions: how many pairs, or samples, are listed at most; None: all.
        sample_ids, sample_scores: [n] and [n, M], for mode `sample`.
        candidates: rows known to hold all that can be chosen; None: every row is looked at.

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
        rule = _Rule(_reader(sample_scores, counted), test_ids, threshold, min_occurrences)
        return choose_samples(rule, pd.DataFrame({"id": sample_ids}), max_exclusions, candidates)
    if scores is None:
        raise ExclusionError(f"Mode '{pair_mode}' needs the scores of pairs; give them, or choose sample.")
    rule = _Rule(_reader(scores, counted), test_ids, threshold, min_occurrences)
    kept = first_of_each(pairs)
    rows = np.flatnonzero(kept) if candidates is None else candidates[kept[candidates]]
    found = rule.harmful(pairs[["id", "id1", "id2"]], rows, None if pair_mode == "full_pair" else max_exclusions)
    if pair_mode == "full_pair":
        listed = _ordered(_both_samples(found), SAMPLE_ORDER, max_exclusions)
        return _typed(listed.assign(affected_tests=rule.affected_of(listed["id"], found)), SAMPLE_COLUMNS)
    listed = _ordered(found, PAIR_ORDER, max_exclusions)
    return _typed(listed.assign(affected_tests=rule.affected(listed["row"])), PAIR_COLUMNS)


def choose_samples(rule: "_Rule", table: pd.DataFrame, most: int | None, candidates: Rows | None = None) -> pd.DataFrame:
    """The pair rule on samples, in the pair rule's order, with the columns of a list of samples."""
    found = rule.harmful(table, np.arange(len(table)) if candidates is None else candidates, most)
    listed = _ordered(found, PAIR_ORDER, most)
    return _typed(listed.assign(affected_tests=rule.affected(listed["row"])), SAMPLE_COLUMNS)


@dataclass(frozen=True)
class _Rule:
    """The rule on scores that are read a block of rows at a time."""

    read: Reader
    test_ids: npt.NDArray[np.object_]
    threshold: float
    min_occurrences: int

    def harmful(self, table: pd.DataFrame, rows: Rows, most: int | None = None) -> pd.DataFrame:
        """Those of the rows that are candidates: row, the table's columns, occurrences, total_harm, average_influence.

        Args:
            most: of them the first so many in the order of pairs, and those that equal the last but for their id.
        """
        ids = table["id"].to_numpy()
        occurrences, harm = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows))
        for place, scores in self._blocks(rows):
            check_scores(scores, ids[rows[place]], self.test_ids)
            below = scores < self.threshold
            occurrences[place] = below.sum(axis=1)
            harm[place] = np.where(below, scores, 0.0).sum(axis=1)
        chosen = np.flatnonzero(occurrences >= self.min_occurrences)
        if most is not None and len(chosen) > most:
            chosen = chosen[_leads(-occurrences[chosen], harm[chosen] / occurrences[chosen], most)]
        numbers = {"row": rows[chosen], "occurrences": occurrences[chosen], "total_harm": harm[chosen]}
        found = table.iloc[rows[chosen]].reset_index(drop=True)
        return found.assign(**numbers, average_influence=harm[chosen] / occurrences[chosen])

    def affected(self, rows: pd.Series) -> pd.Series:
        """The tests on which each row's score lies below the threshold."""
        found: list[list[str]] = []
        for _, scores in self._blocks(rows.to_numpy(dtype=np.int64)):
            found.extend(list(self.test_ids[hit]) for hit in scores < self.threshold)
        return pd.Series(found, index=rows.index, dtype=object)

    def affected_of(self, samples: pd.Series, found: pd.DataFrame) -> pd.Series:
        """The tests that any chosen pair of each sample harms, by id."""
        hit = np.zeros((len(samples), len(self.test_ids)), dtype=bool)
        place = {sample: row for row, sample in enumerate(samples)}
        ends = found[["id1", "id2"]].map(lambda sample: place.get(sample, -1)).to_numpy(dtype=np.int64).reshape(-1, 2)
        for block, scores in self._blocks(found["row"].to_numpy(dtype=np.int64)):
            for end in ends[block].T:
                listed = end >= 0
                np.logical_or.at(hit, end[listed], (scores < self.threshold)[listed])
        return pd.Series([sorted(self.test_ids[row]) for row in hit], index=samples.index, dtype=object)

    def _blocks(self, rows: Rows) -> Iterator[tuple[slice, Scores]]:
        step = max(1, BLOCK_CELLS // max(len(self.test_ids), 1))
        for start in range(0, len(rows), step):
            place = slice(start, min(start + step, len(rows)))
            yield place, self.read(rows[place])


def _leads(first: npt.NDArray[Any], second: Scores, most: int) -> npt.NDArray[np.bool_]:
    """Which entries are among the first so many by two numbers, ascending; of those that equal the last of them, all."""
    last = np.lexsort((second, first))[most - 1]
    return np.asarray((first < first[last]) | ((first == first[last]) & (second <= second[last])))


def _reader(scores: Scores | Reader, counted: npt.NDArray[np.bool_]) -> Reader:
    read = scores if callable(scores) else scores.__getitem__
    return read if counted.all() else lambda rows: read(rows)[:, counted]


def _both_samples(chosen: pd.DataFrame) -> pd.DataFrame:
    """Each sample of the chosen pairs with the sums of its pairs."""
    ends = pd.concat([chosen.assign(id=chosen[end]) for end in ("id1", "id2")], ignore_index=True)
    sums = ends.groupby("id")[["occurrences", "total_harm"]].sum().reset_index()
    return sums.assign(average_influence=sums["total_harm"] / sums["occurrences"])


def _ordered(found: pd.DataFrame, order: dict[str, bool], most: int | None) -> pd.DataFrame:
    ordered = found.sort_values(list(order), ascending=list(order.values()), ignore_index=True)
    return ordered if most is None else ordered.head(most)


def _typed(listed: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Every column has its type, also when there is no row."""
    return listed[columns].astype({name: kind for name, kind in COLUMN_TYPES.items() if name in columns})


def compare_lists(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Which entries two lists share: id, side (`both`, `first only`, `second only`), place1, place2 (from 1; NaN: not in that list).

    A pair is the same in either orientation, and keeps its id of the first list. Order: both, then the first's, then the second's.

    Raises:
        ExclusionError: one list is of pairs and the other of samples, or neither has entries to tell by.
    """
    kinds = ["pairs" if "id1" in listed.columns else "samples" for listed in (one, other)]
    if kinds[0] != kinds[1]:
        raise ExclusionError(
            f"The first list is of {kinds[0]} and the second of {kinds[1]}; compare lists of one kind, or write both in one pair mode."
        )
    keyed = [
        pd.DataFrame({"id": listed["id"].to_numpy(), "key": _keys(listed), place: np.arange(1, len(listed) + 1)}).drop_duplicates(
            "key"
        )
        for listed, place in ((one, "place1"), (other, "place2"))
    ]
    met = keyed[0].merge(keyed[1], on="key", how="outer", suffixes=("", "_other"), indicator="side")
    told = {"both": "both", "left_only": "first only", "right_only": "second only"}
    met = met.assign(id=met["id"].where(met["id"].notna(), met["id_other"]), side=met["side"].map(told).astype("str"))
    order = met["side"].map({side: place for place, side in enumerate(told.values())})
    ordered = met.assign(order=order).sort_values(["order", "place1", "place2"], ignore_index=True)
    return ordered[["id", "side", "place1", "place2"]]


def _keys(listed: pd.DataFrame) -> list[str]:
    if "id1" not in listed.columns:
        return [str(name) for name in listed["id"]]
    return ["\n".join(sorted(ends)) for ends in zip(listed["id1"], listed["id2"], strict=True)]


def first_of_each(pairs: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Which rows are the first of their unordered pair (first, second), or (id1, id2) in a table without positions."""
    if not {"first", "id1"} & set(pairs.columns):
        return np.ones(len(pairs), dtype=bool)  # samples: each is its own
    if {"first", "second"} <= set(pairs.columns):
        one, two = pairs["first"].to_numpy(), pairs["second"].to_numpy()
        width = int(max(one.max(initial=0), two.max(initial=0))) + 1
    else:
        codes, names = pd.factorize(pd.concat([pairs["id1"], pairs["id2"]]))
        one, two, width = codes[: len(pairs)].astype(np.int64), codes[len(pairs) :].astype(np.int64), len(names)
    key = np.minimum(one, two) * width + np.maximum(one, two)
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
    check_finite(scores)
    if k > scores.shape[1]:
        return np.full(len(scores), np.inf)
    return np.asarray(np.partition(scores, k - 1, axis=1)[:, k - 1])


def streamed_kth_lowest(parts: Sequence[Reader], rows: int, k: int, tests: int, progress: Progress | None = None) -> Scores:
    """`kth_lowest` of a table that is read in parts, each a reader of some of its columns, and a block of rows at a time.

    Args:
        rows, tests: the shape of the whole table.
        progress: told how many of how many rows of parts are done.

    Raises:
        ExclusionError: k is below 1, or a score is not a number.
    """
    check_occurrences(k)
    if k > tests:
        return np.full(rows, np.inf)
    lowest = np.full((rows, k if len(parts) > 1 else 1), np.inf)
    step = max(1, BLOCK_CELLS // -(-tests // max(len(parts), 1)))
    for number, part in enumerate(parts):
        for start in range(0, rows, step):
            place = np.arange(start, min(start + step, rows))
            scores = part(place)
            if len(parts) == 1:
                lowest[place, 0] = kth_lowest(scores, k)
            else:
                check_finite(scores)
                lowest[place] = np.partition(np.concatenate([lowest[place], scores], axis=1), k - 1, axis=1)[:, :k]
            if progress is not None:
                progress(number * rows + int(place[-1]) + 1, rows * len(parts))
    return np.asarray(lowest.max(axis=1))


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
            f"{len(self.values):,} scores that are not 0 ({100 * self.share:.1f}% of all), "
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


def suggested_threshold(kth: Scores, share: float = SUGGESTED_QUANTILE) -> float:
    """Chooses about this share of the train pairs: the quantile of their k-th lowest scores, k = min_occurrences, capped at 0.

    0, which chooses the pairs with as many negative scores, where fewer than this share of pairs are harmful at all.
    """
    if not 0 < share <= 1:
        raise ExclusionError(f"The share is {share}; choose a number above 0, up to 1.")
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


def check_finite(scores: Scores) -> None:
    if not np.isfinite(scores.sum()) and not np.isfinite(scores).all():
        row, column = (int(place) for place in np.argwhere(~np.isfinite(scores))[0])
        raise ExclusionError(f"The score in row {row}, column {column} is {scores[row, column]}; compute the run again.")


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
