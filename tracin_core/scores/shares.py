"""Who carries the influence: over how few training pairs it is spread, and which checkpoints it comes from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy
from scipy import sparse

from tracin_core.errors import ViewError
from tracin_core.scores.agreement import correlation
from tracin_core.scores.influence import Array, ratio
from tracin_core.scores.rollups import Rows, live_tests, towards
from tracin_core.scores.view import View

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
    mean = towards(view, live, sparse.csr_array(np.full((1, live.size), 1 / live.size)))[:, 0]
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
