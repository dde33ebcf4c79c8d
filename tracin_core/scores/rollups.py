"""Roll-ups: one value per pair, or the pair x pair influences, summed and averaged by what the pairs are made of.

Examples are pairs (columns `first` and `second` are rows of the table of samples), or the samples themselves (no such columns; row i is
sample i). What is linear in dot influences is a product of sums, without any pair x pair table:
    sum_e sum_f influence(e, f) = sum_c w_c (sum_e a_e)^T K_c (sum_f a_f).
All else goes through `view.blocks()`, one block at a time. Only live tests are read.

A value that is NaN (a measure that is undefined for want of a gradient) is left out and counted as `undefined`; an infinite one is
refused. A pair drawn m times counts as m copies in sums and means, and once in counts.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from tracin_core.errors import ViewError
from tracin_core.scores.influence import CELL_BUDGET, Array, ratio, require_known
from tracin_core.scores.view import View

Rows = npt.NDArray[np.int64]
Ends = Literal["half", "both", "touching", "first", "second", "unordered", "own"]


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
        codes, names = coded(pairs, by, "pairs")
        return _grouped(codes[:, None], pd.DataFrame({"group": names}), "sum")
    codes, names = coded(samples, by, "samples")
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


def coded(table: pd.DataFrame, column: str, what: str) -> tuple[Rows, pd.Index]:
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
    given = one_each(values, len(pairs))
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
        return _dot_sums(view, weighed, towards(view, live, onto[:, live])), weight, count, missing
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


def towards(view: View, tests: Rows, part: Any) -> Array:
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


def one_each(values: npt.ArrayLike, count: int) -> Array:
    given = np.asarray(values, dtype=float)
    if given.shape != (count,):
        raise ViewError(f"One value is needed for each of {count} examples, not {given.shape}; give the values of this table.")
    if np.isinf(given).any():
        raise ViewError(f"The value in row {int(np.argmax(np.isinf(given)))} is infinite; compute the run again.")
    return given
