"""Patterns in one value per pair: which kind of example each is, what recurs among chosen pairs, and what drifts with a number.

Values are as in `rollups`: NaN is left out and counted, an infinite one refused, and a pair drawn m times counts as m copies in means.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy

from tracin_core.errors import ViewError
from tracin_core.scores.agreement import correlation
from tracin_core.scores.influence import Array
from tracin_core.scores.rollups import Rows, coded, members, one_each, roll_up
from tracin_core.scores.view import View

DRAW_BUDGET = 200_000_000
DRAW_BLOCK = 1_000_000  # draws held at a time
QUADRANTS = ("hard", "typical", "special_case", "redundant", "dead")


# ---- self-influence and mean influence -----------------------------------------------------------------------------------------------


def self_and_mean(view: View) -> pd.DataFrame:
    """How self-influence goes with mean influence, over all training examples and over the live ones.

    A hinge leaves many examples without a gradient, where both are 0; among `all` these agree with each other and with nothing else.

    Columns: population (all, live: self-influence other than 0), n, undefined, spearman, pearson.

    Raises:
        ViewError: every test is dead.
    """
    own, mean = view.self_influence(), view.mean_influence()
    rows = [
        {"population": name, **vars(correlation(own[of], mean[of]))}
        for name, of in (("all", np.full(own.shape, True)), ("live", own != 0))
    ]
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Quadrants:
    """Each example's quadrant and direction, and where the lines were drawn (NaN where no example is live)."""

    labels: npt.NDArray[np.object_]  # [N], of QUADRANTS
    directions: npt.NDArray[np.object_]  # [N]: helps, harms or neither
    self_cut: float
    mean_cut: float

    @property
    def counts(self) -> pd.DataFrame:
        """How many examples: one row per quadrant; columns quadrant, helps, harms, neither."""
        held = pd.DataFrame({"quadrant": self.labels, "direction": self.directions, "n": 1})
        table = held.pivot_table(index="quadrant", columns="direction", values="n", aggfunc="sum", fill_value=0)
        table = table.reindex(index=list(QUADRANTS), columns=["helps", "harms", "neither"], fill_value=0)
        return table.astype(np.int64).rename_axis(columns=None).reset_index()


def quadrants(self_influence: npt.ArrayLike, mean_influence: npt.ArrayLike) -> Quadrants:
    """Self-influence (how hard an example is to learn) against the size of its mean influence on live tests (how much it matters to them).

                      |mean| high     |mean| low
        self high     hard            special_case     (learnt with effort; matters to the tests | matters to itself alone)
        self low      typical         redundant        (learnt easily; carries a common pattern  | nothing is lost without it)

    The quadrant uses the size, and the sign is told beside it, since a hard example may be the one that holds the boundary or one with a
    wrong label: hard and helps = hard but useful; hard and harms = the first to listen to. By the signed mean, the most harmful examples
    would be called redundant. |mean| is small also where an example helps some tests as much as it harms others.

    High is strictly above the median of the live, non-zero values: of self-influence over the examples where it is not 0, of |mean| over
    those where neither is 0. An example with self-influence 0 had no gradient, or none above the kernel's rounding: it is `dead`, in no
    quadrant.

    Raises:
        ViewError: different lengths, a value that is no number, or a negative self-influence (from negative checkpoint weights).
    """
    own = one_each(self_influence, np.size(self_influence))
    mean = one_each(mean_influence, len(own))
    if np.isnan(own).any() or np.isnan(mean).any():
        raise ViewError("A self-influence or mean influence is undefined; take the quadrants of a view with the measure dot.")
    if (own < 0).any():
        raise ViewError(f"A self-influence is {own.min():g}; take the quadrants of a view whose checkpoint weights are at least 0.")
    live, size = own != 0, np.abs(mean)
    self_cut = _median(own[live])
    mean_cut = _median(size[live & (size != 0)])
    hard, matters = own > self_cut, size > mean_cut
    labels = np.select(
        [~live, hard & matters, ~hard & matters, hard & ~matters],
        ["dead", "hard", "typical", "special_case"],
        default="redundant",
    )
    directions = np.select([mean > 0, mean < 0], ["helps", "harms"], default="neither")
    return Quadrants(labels.astype(object), directions.astype(object), self_cut, mean_cut)


def _median(values: Array) -> float:
    return float(np.median(values)) if values.size else np.nan


# ---- what recurs among chosen pairs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recurrence:
    """How often each group is touched by the chosen pairs, against chance."""

    table: pd.DataFrame
    chosen: int
    pairs: int
    p_largest: float  # of the largest excess over all groups


def most_harmful(values: npt.ArrayLike, k: int) -> npt.NDArray[np.bool_]:
    """Which examples have the k lowest values, of those below 0 (fewer where fewer are), equals in the order of the table: [N].

    Raises:
        ViewError: k is below 1, or a value is infinite.
    """
    if k < 1:
        raise ViewError(f"The {k} most harmful pairs are none; choose at least 1.")
    given = one_each(values, np.size(values))
    order = np.argsort(given, kind="stable")[:k]
    chosen = np.zeros(len(given), dtype=bool)
    chosen[order[given[order] < 0]] = True
    return chosen


def recurrence(
    chosen: npt.ArrayLike,
    pairs: pd.DataFrame,
    samples: pd.DataFrame,
    *,
    by: str = "id",
    permutations: int = 9_999,
    seed: int = 0,
) -> Recurrence:
    """Which samples (or values of another column, such as the take number) stand in more of the chosen pairs than chance puts there.

    Chance: the k chosen pairs are any k of the N pairs. The number of them that touch group g, of whose n_g pairs each counts once, is then
    exactly Hypergeometric(N, n_g, k), and p = P(at least as many). A pair is unordered and counts once, however often it was drawn.
    p_familywise = P(the largest standardised count of all groups reaches this one), by random choices of k pairs (Westfall and Young 1993),
    which accounts for looking at every group; q is the false discovery rate of Benjamini and Hochberg (1995).

    A group touched by none or by all pairs cannot stand out: p = 1.

    Table: group, pairs (n_g), chosen (of them), expected, p, q, p_familywise; lowest p first, then in the group's order. Nothing chosen, or
    no pair: every p is 1. No group: no row, and p_largest = 1.

    Args:
        chosen: which pairs, [N] booleans: of `most_harmful`, or `view.removed(...)` of a list of pairs.

    Raises:
        ViewError: not one boolean for each pair, no such column, or more draws than the budget.
    """
    mask = np.asarray(chosen)
    if mask.shape != (len(pairs),) or mask.dtype != np.bool_:
        raise ViewError(
            f"One boolean is needed for each of {len(pairs)} pairs, not {mask.dtype} {mask.shape}; give a mask of the table."
        )
    codes, names = coded(samples, by, "samples")
    touched, picked = _once_each(codes, members(pairs, samples), mask, len(names))
    total, k = len(touched), int(picked.sum())
    if permutations < 1 or permutations * k > DRAW_BUDGET:
        raise ViewError(
            f"{permutations:,} permutations of {k:,} chosen pairs cannot be drawn; choose at least 1 and at most "
            f"{DRAW_BUDGET // max(k, 1):,}, or fewer pairs."
        )
    held, counts = (_count(codes_of[None], len(names))[0] for codes_of in (touched, touched[picked]))
    expected = held * (k / max(total, 1))
    spread = np.sqrt(k * held * (total - held))  # of each count, up to a factor that all groups share
    able = spread > 0
    p = np.where(able, scipy.stats.hypergeom.sf(counts - 1, total, held, k), 1.0)
    familywise = np.ones(len(names))
    if able.any():
        largest = _largest_excess(touched, picked, expected, spread, permutations, seed)
        reached = permutations - np.searchsorted(largest, (counts[able] - expected[able]) / spread[able])
        familywise[able] = (1 + reached) / (1 + permutations)
    table = pd.DataFrame({"group": names, "pairs": held, "chosen": counts, "expected": expected, "p": p})
    table = table.assign(q=scipy.stats.false_discovery_control(p) if len(p) else p, p_familywise=familywise)
    ordered = table.sort_values("p", kind="stable", ignore_index=True)
    return Recurrence(ordered, k, total, float(familywise.min(initial=1.0)))


def _once_each(codes: Rows, ends: Rows, mask: npt.NDArray[np.bool_], groups_: int) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """The groups that each distinct unordered pair touches, [distinct, E], and whether it is chosen. A group named twice is named once."""
    ends = np.sort(ends, axis=1)
    _, place, inverse = np.unique(ends[:, 0] * max(len(codes), 1) + ends[:, -1], return_index=True, return_inverse=True)
    picked = np.zeros(len(place), dtype=bool)
    picked[inverse[mask]] = True
    touched = codes[ends[place]]
    if touched.shape[1] == 2:
        touched[touched[:, 0] == touched[:, 1], 1] = groups_  # a group of its own, which `_count` drops
    return touched, picked


def _count(touched: Rows, groups_: int) -> Rows:
    """How many pairs of each draw touch each group: [draws, G], from [draws, pairs, E]."""
    draws = len(touched)
    place = np.arange(draws)[:, None, None] * (groups_ + 1) + touched
    return np.bincount(place.ravel(), minlength=draws * (groups_ + 1)).reshape(draws, groups_ + 1)[:, :-1]


def _largest_excess(
    touched: Rows, picked: npt.NDArray[np.bool_], expected: Array, spread: Array, permutations: int, seed: int
) -> Array:
    """The largest standardised count over the groups, for so many random choices of as many pairs, in order."""
    generator, k, total = np.random.default_rng(seed), int(picked.sum()), len(touched)
    able, found, batch = spread > 0, [], max(1, DRAW_BLOCK // k)
    for start in range(0, permutations, batch):
        draws = range(start, min(start + batch, permutations))
        rows = np.stack([generator.choice(total, k, replace=False, shuffle=False) for _ in draws])
        counts = _count(touched[rows], len(expected))[:, able]
        found.append(((counts - expected[able]) / spread[able]).max(axis=1))
    return np.sort(np.concatenate(found))


# ---- drift ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drift:
    """Whether a value goes with a number that every sample has, such as its take."""

    table: pd.DataFrame
    spearman: float
    p: float
    samples: int
    left_out: int


def drift(
    values: npt.ArrayLike,
    pairs: pd.DataFrame,
    samples: pd.DataFrame,
    *,
    by: str = "sequence",
    permutations: int = 9_999,
    seed: int = 0,
) -> Drift:
    """Whether the samples' values rise or fall with a number such as the sequence number, and which numbers stand out.

    The unit is the sample, with the mean of its pairs' values (over copies): pairs share samples, and a test over pairs would take each
    sample for as many as it has pairs. The Spearman correlation is tested two-sidedly by permuting the numbers among the samples
    (`scipy.stats.permutation_test`: all permutations where there are no more than asked for).

    Table, in the number's order: group, samples, mean, p (Mann-Whitney: its samples against all others), q (Benjamini and Hochberg). A p is
    NaN where there is nothing to compare: no other group, or all values equal. Spearman and p are NaN for fewer than 3 samples or where
    either side is constant.

    Samples without a number or without a defined value are left out and counted.

    Raises:
        ViewError: as `roll_up`; the column holds no numbers; or permutations is below 1.
    """
    if permutations < 1:
        raise ViewError(f"{permutations} permutations test nothing; choose at least 1.")
    if by in samples and not pd.api.types.is_numeric_dtype(samples[by]):
        raise ViewError(
            f"The column '{by}' holds {samples[by].dtype} values, which no drift can follow; choose a column of numbers."
        )
    rows = samples.assign(_row=np.arange(len(samples)))
    mean = roll_up(values, pairs, rows, by="_row")["mean"].to_numpy()
    coded(samples, by, "samples")
    number = samples[by].to_numpy(dtype=float, na_value=np.nan)
    known = ~(np.isnan(mean) | np.isnan(number))
    mean, number = mean[known], number[known]
    spearman, p = _permuted_spearman(number, mean, permutations, seed)
    return Drift(_by_number(number, mean), spearman, p, mean.size, int((~known).sum()))


def _permuted_spearman(number: Array, mean: Array, permutations: int, seed: int) -> tuple[float, float]:
    if mean.size < 3 or np.ptp(mean) == 0 or np.ptp(number) == 0:
        return np.nan, np.nan
    one, two = (scipy.stats.zscore(scipy.stats.rankdata(side)) for side in (number, mean))

    def correlate(order: Array, axis: int) -> Array:
        return np.asarray((order * two).mean(axis=axis))

    tested = scipy.stats.permutation_test(
        (one,),
        correlate,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=permutations,
        batch=max(1, DRAW_BLOCK // mean.size),
        rng=np.random.default_rng(seed),
    )
    return float(tested.statistic), float(tested.pvalue)


def _by_number(number: Array, mean: Array) -> pd.DataFrame:
    known, place = np.unique(number, return_inverse=True)
    p = np.full(len(known), np.nan)
    if len(known) > 1 and np.ptp(mean) > 0:
        p = np.array([scipy.stats.mannwhitneyu(mean[place == one], mean[place != one]).pvalue for one in range(len(known))])
    held = pd.DataFrame({"group": number, "mean": mean}).groupby("group")["mean"].agg(samples="size", mean="mean").reset_index()
    return held.assign(p=p, q=scipy.stats.false_discovery_control(p) if len(p) and not np.isnan(p).any() else p)
