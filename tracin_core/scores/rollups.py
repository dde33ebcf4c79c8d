"""Roll-ups: one value per pair, or the pair x pair influences, summed and averaged by what the pairs are made of, and what recurs in them.

Examples are pairs (columns `first` and `second` are rows of the table of samples), or the samples themselves (no such columns; row i is
sample i). What is linear in dot influences is a product of sums, without any pair x pair table:
    sum_e sum_f influence(e, f) = sum_c w_c (sum_e a_e)^T K_c (sum_f a_f).
All else goes through `view.blocks()`, one block at a time. Only live tests are read.

A value that is NaN (a measure that is undefined for want of a gradient) is left out and counted as `undefined`; an infinite one is
refused. A pair drawn m times counts as m copies in sums and means, and once in counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy
from scipy import sparse

from tracin_core.errors import ViewError
from tracin_core.scores.influence import CELL_BUDGET, Array, ratio, require_known
from tracin_core.scores.losses import ghm_bins
from tracin_core.scores.view import View

Rows = npt.NDArray[np.int64]
Ends = Literal["half", "both", "touching", "first", "second", "unordered", "own"]
Score = Literal["self_influence", "mean_influence"]
Side = Literal["highest", "lowest"]
DRAW_BUDGET = 200_000_000
DRAW_BLOCK = 1_000_000  # draws held at a time
QUADRANTS = ("hard", "typical", "special_case", "redundant", "dead")


# ---- groups -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Groups:
    """G groups of N examples."""

    labels: pd.DataFrame  # one row per group
    part: Any  # sparse [G, N]: how much of each example belongs to each group
    total: str  # what to call a sum of these parts

    def weighed(self, copies: Array) -> Any:
        """The parts, each example as often as it was drawn: sparse [G, N]."""
        weighed = self.part.copy()
        weighed.data = weighed.data * copies[weighed.indices]
        return weighed


def groups(pairs: pd.DataFrame, samples: pd.DataFrame, *, by: str, ends: Ends = "half") -> Groups:
    """The groups that one column makes of the pairs, in its order (a missing value last, as a group of its own).

    Args:
        by: a column of `samples` (`id` groups by sample); with ends="own" a column of `pairs`, such as `gap`.
        ends: what of a pair belongs to the groups of its two samples:
            half       half to each: sums over the groups add up to the sum over the pairs; for shares.
            both       all to each: they add up to twice that; for a sample, what its removal takes away.
            touching   all to each, once where both are of one group: what the removal of a whole group takes away.
            first      all to that of the first sample;  second  likewise.
            unordered  all to the unordered pair of the two groups; labels `low` and `high` instead of `group`.
            own        all to the pair's own value.

    Raises:
        ViewError: no such column or choice, or the tables do not fit each other.
    """
    require_known("choice of ends", ends, get_args(Ends))
    if ends == "own":
        codes, names = _coded(pairs, by, "pairs")
        return _grouped(codes[:, None], pd.DataFrame({"group": names}), "sum")
    codes, names = _coded(samples, by, "samples")
    each = codes[members(pairs, samples)]
    if ends == "unordered":
        low, high = each.min(axis=1), each.max(axis=1)
        known, place = np.unique(low * max(len(names), 1) + high, return_inverse=True)
        one, two = np.divmod(known, max(len(names), 1))
        return _grouped(place[:, None], pd.DataFrame({"low": names[one], "high": names[two]}), "sum")
    labels = pd.DataFrame({"group": names})
    if ends in ("first", "second"):
        return _grouped(each[:, [0 if ends == "first" else -1]], labels, f"sum_{ends}")
    found = _grouped(each, labels, f"sum_{ends}")
    if ends == "half":
        found.part.data /= each.shape[1]
    if ends == "touching":
        found.part.data[:] = 1.0
    return found


def members(pairs: pd.DataFrame, samples: pd.DataFrame) -> Rows:
    """The rows of the samples that each example is made of: [N, 2] of pairs, [N, 1] where the examples are the samples.

    Raises:
        ViewError: the tables do not fit each other.
    """
    if {"first", "second"} <= set(pairs.columns):
        ends = pairs[["first", "second"]].to_numpy(dtype=np.int64)
        if len(ends) and not 0 <= ends.min() <= ends.max() < len(samples):
            raise ViewError(f"A pair points outside the {len(samples)} samples; give the samples that these pairs were formed of.")
        return ends
    if len(pairs) != len(samples):
        raise ViewError(
            f"{len(pairs)} examples without the columns first and second are samples, but the table has {len(samples)} of these; give "
            f"the tables of one side of one run."
        )
    return np.arange(len(samples))[:, None]


def _coded(table: pd.DataFrame, column: str, what: str) -> tuple[Rows, pd.Index]:
    """Each row's place among the column's values, and these in order."""
    if column not in table:
        raise ViewError(f"The table of {what} has no column '{column}'; choose from {', '.join(map(str, table.columns))}.")
    codes, names = pd.factorize(table[column], sort=True, use_na_sentinel=False)
    return codes.astype(np.int64), pd.Index(names)


def _grouped(codes: Rows, labels: pd.DataFrame, total: str) -> Groups:
    """All of example n to each of the groups codes[n]; twice where one group is named twice."""
    count, each = codes.shape
    entries = (np.ones(codes.size), (codes.ravel(), np.repeat(np.arange(count), each)))
    return Groups(labels, sparse.coo_array(entries, shape=(len(labels), count)).tocsr(), total)


def copies(pairs: pd.DataFrame) -> Array:
    """How often each pair was drawn: its multiplicity, or 1: [N]."""
    if not {"first", "multiplicity"} <= set(pairs.columns):  # of samples it would be somebody's metadata
        return np.ones(len(pairs))
    return pairs["multiplicity"].to_numpy(dtype=float)


# ---- sums and means ------------------------------------------------------------------------------------------------------------------


def roll_up(values: npt.ArrayLike, pairs: pd.DataFrame, samples: pd.DataFrame, *, by: str, ends: Ends = "half") -> pd.DataFrame:
    """The values of the pairs summed and averaged by group, one row each, also for a group without a pair; arguments as `groups`.

    Columns: group (or low, high), n (pairs with a value, whatever part of them counts), undefined (pairs without), weight (how many copies'
    worth is summed), the sum, named after its ends (sum_half, sum_both, sum_touching, sum_first, sum_second; sum where a pair has one
    group), and mean = sum / weight, NaN where nothing is summed. No row where there is neither a pair nor a sample.

    Raises:
        ViewError: as `groups`; not one value for each pair, or an infinite one.
    """
    given = _one_each(values, len(pairs))
    found = groups(pairs, samples, by=by, ends=ends)
    known = ~np.isnan(given)
    weighed = found.weighed(copies(pairs))
    held, weight = weighed @ np.where(known, given, 0.0), weighed @ known.astype(float)
    present = found.part.astype(bool).astype(np.int64)
    return found.labels.assign(
        n=present @ known.astype(np.int64),
        undefined=present @ (~known).astype(np.int64),
        weight=weight,
        **{found.total: held, "mean": ratio(held, weight)},
    )


def influence_grid(
    view: View, *, by: str = "angle", ends: Ends = "unordered", test_by: str | None = None, test_ends: Ends | None = None
) -> pd.DataFrame:
    """The view's measure of groups of training pairs on groups of test pairs, one row per two groups, over live tests.

    With the defaults: which training angle pairs help or harm which test angle pairs. by="gap", ends="own" gives influence against angle
    difference; any column of samples or pairs may stand on either side.

    Columns: train_group (or train_low, train_high), test_group (or ...), n (influences that are defined), undefined, sum, mean (over
    copies of the training pairs; a test counts once), live_tests and dead_tests of the test group. A group without a defined influence has
    sum 0 and mean NaN. No row where either side has no group.

    Args:
        test_by, test_ends: the same for the test side; None: as the training side.

    Raises:
        ViewError: as `groups`; every test is dead; or there would be too many rows.
    """
    train = groups(view.train_pairs, view.train_samples, by=by, ends=ends)
    test = groups(view.test_pairs, view.test_samples, by=test_by or by, ends=test_ends or ends)
    shape = len(train.labels), len(test.labels)
    if shape[0] * shape[1] > CELL_BUDGET // 10:
        raise ViewError(f"The grid would have {shape[0]:,} x {shape[1]:,} rows; group by columns with fewer values.")
    live = live_tests(view)
    total, weight, count, missing = _grid_sums(view, live, train, test)
    onto = test.part.astype(bool).astype(np.int64)
    rows, columns = (index.ravel() for index in np.indices(shape))
    named = [
        side.labels.add_prefix(f"{name}_").iloc[places].reset_index(drop=True)
        for name, side, places in (("train", train, rows), ("test", test, columns))
    ]
    return pd.concat(named, axis=1).assign(
        n=(count - missing).ravel().astype(np.int64),
        undefined=missing.ravel().astype(np.int64),
        sum=total.ravel(),
        mean=ratio(total, weight).ravel(),
        live_tests=(onto @ ~view.dead_tests)[columns],
        dead_tests=(onto @ view.dead_tests)[columns],
    )


def _grid_sums(view: View, live: Rows, train: Groups, test: Groups) -> tuple[Array, Array, Array, Array]:
    """Per training and test group: the sum over defined influences, the copies' worth summed, how many influences, how many undefined."""
    weighed, present = train.weighed(copies(view.train_pairs)), train.part.astype(bool).astype(float)
    onto = test.part.tocsc()
    onto_present = onto.astype(bool).astype(float)
    weight = np.outer(weighed.sum(axis=1), onto[:, live].sum(axis=1))
    count = np.outer(present.sum(axis=1), onto_present[:, live].sum(axis=1))
    total, missing = np.zeros((2, *weight.shape))
    if view.measure == "dot":
        return _dot_sums(view, weighed, _towards(view, live, onto[:, live])), weight, count, missing
    for place, scores in view.blocks():
        here = live[(live >= place.start) & (live < place.stop)]
        read = scores[:, here - place.start]
        unknown = np.isnan(read)
        if unknown.any():
            weight -= (weighed @ unknown.astype(float)) @ onto[:, here].T
            missing += (present @ unknown.astype(float)) @ onto_present[:, here].T
            read = np.where(unknown, 0.0, read)
        total += (weighed @ read) @ onto[:, here].T
    return total, weight, count, missing


def _towards(view: View, tests: Rows, part: Any) -> Array:
    """K_c sum_f a_f for groups of these tests, each with its part of each test [H, tests]: [C, H, n]."""
    kernel = view.kernels.test_train
    positions = kernel.shape[1]
    sums = (part @ view.test.incidence(np.ones(len(kernel)), positions)[tests]).tocsc()
    return np.stack([sums[:, c * positions : (c + 1) * positions] @ own for c, own in enumerate(kernel)])


def _dot_sums(view: View, part: Any, towards: Array) -> Array:
    """sum_c w_c (sum_e a_e) . v_c for groups of training examples [G, N] and v [C, H, n]: [G, H]."""
    positions = towards.shape[2]
    sums = (part @ view.train.incidence(view.checkpoint_weights, positions)).tocsc()
    return np.asarray(sum(sums[:, c * positions : (c + 1) * positions] @ own.T for c, own in enumerate(towards)))


def live_tests(view: View) -> Rows:
    """The places of the tests that have a gradient at some checkpoint.

    Raises:
        ViewError: there is none.
    """
    live = np.flatnonzero(~view.dead_tests)
    if live.size == 0:
        raise ViewError(
            f"All {len(view.dead_tests)} tests are dead, so every influence on them is 0; choose a larger margin, or the score "
            f"difference as test quantity."
        )
    return live


def _one_each(values: npt.ArrayLike, count: int) -> Array:
    given = np.asarray(values, dtype=float)
    if given.shape != (count,):
        raise ViewError(f"One value is needed for each of {count} examples, not {given.shape}; give the values of this table.")
    if np.isinf(given).any():
        raise ViewError(f"The value in row {int(np.argmax(np.isinf(given)))} is infinite; compute the run again.")
    return given


# ---- self-influence and mean influence ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Correlation:
    """How two values go together over the n examples where both are defined; NaN for n < 2 or where either is constant."""

    n: int
    undefined: int
    spearman: float
    pearson: float


def correlation(one: npt.ArrayLike, other: npt.ArrayLike) -> Correlation:
    """The Spearman (mid-ranks) and Pearson correlation of two values per example.

    No p-value: pairs share samples, so they are far fewer than n independent observations.

    Raises:
        ViewError: the two have different lengths, or an infinite value.
    """
    first = _one_each(one, np.size(one))
    second = _one_each(other, len(first))
    known = ~(np.isnan(first) | np.isnan(second))
    a, b = first[known], second[known]
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Correlation(a.size, int((~known).sum()), np.nan, np.nan)
    return Correlation(
        a.size, int((~known).sum()), float(scipy.stats.spearmanr(a, b).statistic), float(scipy.stats.pearsonr(a, b).statistic)
    )


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
    own = _one_each(self_influence, np.size(self_influence))
    mean = _one_each(mean_influence, len(own))
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
    given = _one_each(values, np.size(values))
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
    codes, names = _coded(samples, by, "samples")
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
    _coded(samples, by, "samples")
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


# ---- concentration --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Concentration:
    """Over how few training pairs the absolute influence is spread."""

    tests: pd.DataFrame
    pairs: int  # training pairs
    needed: int  # fewest pairs that carry `share` of the sum over live tests
    needed_share: float  # of all training pairs
    top_carries: float  # what the `top` pairs with the largest sums carry of the sum over live tests
    tests_carried: float  # share of the live tests of which these pairs carry at least half
    dead_tests: int


def concentration(view: View, *, share: float = 0.8, top: float = 0.1) -> Concentration:
    """The fewest training pairs that carry this share of the absolute influence, per live test and in all, and what the top pairs carry.

    The claim "10 % of the pairs matter for 80 % of the tests" reads: `tests_carried` >= .8. The top pairs are the ceil(top N) with the
    largest sums of |influence| over the live tests, the same for every test, equals in the order of the table. Two passes over the blocks.

    Tests: id, needed, needed_share (of all pairs), top_carries (by the top pairs of all tests), own_top_carries (by as many pairs of its
    own), undefined (pairs without a defined value). Where every influence on a live test is 0: needed 0, the carried shares NaN.

    Raises:
        ViewError: a share outside (0, 1], the measure rank, no training pair, or every test is dead.
    """
    for name, part in (("share", share), ("top", top)):
        if not 0 < part <= 1:
            raise ViewError(f"{name} is {part}; choose a number above 0, up to 1.")
    if view.measure == "rank":
        raise ViewError("Percentiles carry no influence; take the concentration of a view with the measure dot.")
    count = len(view.train_pairs)
    if count == 0:
        raise ViewError("There is no training pair, so nothing carries influence; choose a split with two different labels.")
    live = live_tests(view)
    number = int(np.ceil(round(top * count, 9)))  # .1 x 30 is 3, not 3.0000000000000004
    total, rows = np.zeros(count), []
    for sizes, undefined in _sizes(view, live):
        total += sizes
        rows.append((*_fewest(sizes, share, number), undefined))
    largest = np.argsort(-total, kind="stable")[:number]
    carried = np.array([_part(sizes[largest].sum(), sizes.sum()) for sizes, _ in _sizes(view, live)])
    needed, own, undefined_pairs = (np.array(column) for column in zip(*rows, strict=True))
    tests = pd.DataFrame(
        {
            "id": view.test_pairs["id"].to_numpy()[live],
            "needed": needed,
            "needed_share": needed / count,
            "top_carries": carried,
            "own_top_carries": own,
            "undefined": undefined_pairs,
        }
    )
    fewest, carries = _fewest(total, share, number)
    return Concentration(
        tests, count, fewest, fewest / count, carries, float(np.mean(carried >= 0.5)), len(view.dead_tests) - live.size
    )


def _sizes(view: View, live: Rows) -> Iterator[tuple[Array, int]]:
    """|measure| of every training pair on one live test after the other, 0 where it is undefined, and how many are."""
    for place, scores in view.blocks():
        for column in live[(live >= place.start) & (live < place.stop)] - place.start:
            sizes = np.abs(scores[:, column])
            unknown = np.isnan(sizes)
            yield np.where(unknown, 0.0, sizes), int(unknown.sum())


def _fewest(sizes: Array, share: float, number: int) -> tuple[int, float]:
    """The fewest that carry this share of the sum, and what the `number` largest carry."""
    carried = np.cumsum(np.sort(sizes)[::-1])
    if carried[-1] == 0:
        return 0, np.nan
    return int(np.searchsorted(carried, share * carried[-1])) + 1, _part(float(carried[number - 1]), float(carried[-1]))


def _part(held: float, whole: float) -> float:
    return float(held / whole) if whole else np.nan


# ---- checkpoint by checkpoint --------------------------------------------------------------------------------------------------------


def checkpoints_of(view: View, train: str, test: str) -> pd.DataFrame:
    """What each checkpoint adds to the dot influence of one training example on one test.

    Columns: checkpoint, weight, contribution (weight included; they sum to the influence), share (of the sum of |contributions|; NaN where
    all are 0), cumulative, train_live, test_live (whether each has a gradient there: a 0 is explained by the one that has none).

    Raises:
        NotFoundError: no such example.
    """
    parts = view.contributions(train, test)
    size = np.abs(parts)
    return pd.DataFrame(
        {
            "checkpoint": view.checkpoint_names,
            "weight": view.checkpoint_weights,
            "contribution": parts,
            "share": ratio(size, np.broadcast_to(size.sum(), size.shape)),
            "cumulative": np.cumsum(parts),
            "train_live": view.train_derivatives[:, view.train_row(train)] != 0,
            "test_live": view.test_derivatives[:, view.test_row(test)] != 0,
        }
    )


def mean_contributions(view: View) -> Array:
    """What each checkpoint adds to every training example's mean dot influence over the view's live tests, weights included: [C, N].

    They sum to `view.mean_influence()` of the measure dot: a test is live or dead for the whole view, not for each checkpoint.

    Raises:
        ViewError: every test is dead.
    """
    live = live_tests(view)
    mean = _towards(view, live, sparse.csr_array(np.full((1, live.size), 1 / live.size)))[:, 0]
    weighted = view.checkpoint_weights[:, None, None] * view.train.coefficients()
    return np.asarray((weighted * mean[:, view.train.ends]).sum(axis=2))


def checkpoint_table(parts: npt.ArrayLike, names: Sequence[str]) -> pd.DataFrame:
    """Which checkpoints matter to a score, from what each adds to it: `view.self_contributions()` or `mean_contributions(view)`.

    Columns: checkpoint, sum, absolute_share (of the sum of |parts|; NaN where all are 0), zero_share (examples to which it adds exactly 0;
    NaN without examples), agreement (Spearman correlation with the sum of the other checkpoints; NaN where either is constant, or there is
    no other).

    Args:
        parts: [C, N].

    Raises:
        ViewError: the parts do not fit the names, or one is not a number.
    """
    given = _parts(parts, names)
    sizes = np.abs(given).sum(axis=1)
    rest = given.sum(axis=0) - given
    agreement = [correlation(one, other).spearman for one, other in zip(given, rest, strict=True)]
    zeros = (given == 0).sum(axis=1).astype(float)
    return pd.DataFrame(
        {
            "checkpoint": list(names),
            "sum": given.sum(axis=1),
            "absolute_share": ratio(sizes, np.broadcast_to(sizes.sum(), sizes.shape)),
            "zero_share": ratio(zeros, np.full(zeros.shape, float(given.shape[1]))),
            "agreement": agreement if len(given) > 1 else np.nan,
        }
    )


def checkpoint_agreement(parts: npt.ArrayLike, names: Sequence[str]) -> pd.DataFrame:
    """The Spearman correlation between each two checkpoints' parts of a score: [C, C], NaN where one is constant (so also its own place).

    Raises:
        ViewError: as `checkpoint_table`.
    """
    given = _parts(parts, names)
    ranks = scipy.stats.rankdata(given, axis=1) if given.size else given
    centred = ranks - ranks.mean(axis=1, keepdims=True) if given.size else given
    norms = np.sqrt((centred**2).sum(axis=1))
    table = ratio(centred @ centred.T, np.outer(norms, norms))
    return pd.DataFrame(np.clip(table, -1.0, 1.0), index=list(names), columns=list(names))


def _parts(parts: npt.ArrayLike, names: Sequence[str]) -> Array:
    given = np.asarray(parts, dtype=float)
    if given.ndim != 2 or len(given) != len(names):
        raise ViewError(f"The parts are {given.shape}, for {len(names)} checkpoints; give one row for each, [C, N].")
    if not np.isfinite(given).all():
        row, column = (int(place) for place in np.argwhere(~np.isfinite(given))[0])
        raise ViewError(f"Checkpoint '{names[row]}' adds {given[row, column]} to example {column}; leave that checkpoint out.")
    return given


# ---- one view against another ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Two values of the same examples, side by side."""

    table: pd.DataFrame
    spearman: float
    overlap: pd.DataFrame
    only_one: int
    only_other: int


def compare(
    one: pd.Series,
    other: pd.Series,
    *,
    names: tuple[str, str] = ("one", "other"),
    side: Side = "highest",
    top: Sequence[int] = (10, 50, 200),
) -> Comparison:
    """Two values per example, matched by their index: values, ranks, how far each moved, and how much of the tops they share.

    Table, in the order of the index: the index's columns, the two values and their ranks (`<name>`, `<name>_rank`: 1 = highest, or lowest,
    ties share their mean; NaN where the value is), rank_change = rank in the other - rank in the first: positive where the first puts the
    example so many places nearer the top. Ranks are among the matched examples; how many only one of the two has is told.
    Overlap: k, overlap (share of the top k that both name, equals in the order of the index; NaN where fewer than k have a value).
    Spearman: NaN for fewer than 2 examples or where either is constant.

    Raises:
        ViewError: an index names one example twice, or has no names; a k below 1; an infinite value.
    """
    for which, values in zip(names, (one, other), strict=True):
        if values.index.has_duplicates or any(name is None for name in values.index.names):
            raise ViewError(f"The examples of '{which}' are not told apart by a named index; give each its own id.")
    if any(k < 1 for k in top):
        raise ViewError(f"The top {min(top)} holds nothing; choose at least 1.")
    require_known("side", side, get_args(Side))
    common = one.index.intersection(other.index).sort_values()
    a, b = (_one_each(values.reindex(common), len(common)) for values in (one, other))
    sign = -1.0 if side == "highest" else 1.0
    ranks = [scipy.stats.rankdata(sign * values, nan_policy="omit") if values.size else values for values in (a, b)]
    table = pd.DataFrame(
        {names[0]: a, names[1]: b, f"{names[0]}_rank": ranks[0], f"{names[1]}_rank": ranks[1], "rank_change": ranks[1] - ranks[0]},
        index=common,
    )
    shared = [{"k": k, "overlap": _overlap(sign * a, sign * b, k)} for k in top]
    return Comparison(
        table.reset_index(),
        correlation(a, b).spearman,
        pd.DataFrame(shared, columns=["k", "overlap"]),
        len(one) - len(common),
        len(other) - len(common),
    )


def _overlap(one: Array, other: Array, k: int) -> float:
    """The share of the k lowest that both have."""
    if min(np.count_nonzero(~np.isnan(values)) for values in (one, other)) < k:
        return np.nan
    return np.intersect1d(np.argsort(one, kind="stable")[:k], np.argsort(other, kind="stable")[:k]).size / k


def ghm_and_margin(
    ghm: View,
    margin: View,
    *,
    score: Score = "self_influence",
    checkpoint: int = -1,
    side: Side = "highest",
    top: Sequence[int] = (10, 50, 200),
) -> Comparison:
    """A score under GHM beside the same score under another pair loss, with the density bin that explains the difference.

    Pairs are matched by their two ids, in their orientation (`ghm_legacy` keeps the drawn one). Table: as `compare`, with names ghm and
    margin, and id, ghm_bin (as `losses.ghm_bins`, -1 where uncounted) and ghm_weight (expected training weight) at one checkpoint.

    Args:
        checkpoint: the place, among the GHM view's checkpoints, of bin and weight.

    Raises:
        ViewError: the first view is not of a GHM loss or the second is; no such score or checkpoint; or every test is dead.
    """
    require_known("score", score, get_args(Score))
    if not ghm.ghm_tables or margin.ghm_tables:
        raise ViewError("One view of a GHM loss and one of another pair loss are compared, in this order; choose their losses so.")
    count = len(ghm.checkpoint_weights)
    if not -count <= checkpoint < count:
        raise ViewError(f"The GHM view has {count} checkpoints, but place {checkpoint} was asked for; choose 0 to {count - 1}.")
    found = compare(_scored(ghm, score), _scored(margin, score), names=("ghm", "margin"), side=side, top=top)
    table = found.table.merge(_ghm_of(ghm, checkpoint), on=["id1", "id2"], how="left", validate="one_to_one")
    return Comparison(table, found.spearman, found.overlap, found.only_one, found.only_other)


def _scored(view: View, score: Score) -> pd.Series:
    values = view.self_influence() if score == "self_influence" else view.mean_influence()
    return pd.Series(values, index=pd.MultiIndex.from_frame(view.train_pairs[["id1", "id2"]]))


def _ghm_of(view: View, checkpoint: int) -> pd.DataFrame:
    train: Any = view.train  # `ghm_tables` says that these are pairs
    first, second = train.outputs[checkpoint][members(view.train_pairs, view.train_samples)].T
    bins = ghm_bins(train.loss, first, second, view.train_pairs["target"].to_numpy())
    return view.train_pairs[["id1", "id2", "id"]].assign(ghm_bin=bins, ghm_weight=train.weights[checkpoint])
