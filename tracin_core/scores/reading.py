"""Reading scores although a few gradients are huge: percentiles, robust z, cosine beside raw, and examples that are listed for every test.

A few examples with large gradients can head the lists of all tests alike (Barshan, Brunet, Dziugaite 2020, arXiv 2003.11630). What is said
of one test then says nothing about that test. Nothing here changes a score; it is placed among the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.errors import ViewError
from tracin_core.scores.exclusions import MAD_TO_SIGMA
from tracin_core.scores.influence import Array, percentiles, require_known
from tracin_core.scores.rollups import live_tests
from tracin_core.scores.view import View

Rows = npt.NDArray[np.int64]
Side = Literal["strongest", "opponents", "proponents"]
NAMING = ("id", "id1", "id2", "angle1", "angle2", "label")


# ---- one score among the others -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Robust:
    """Each value's place, and the population that median and MAD were taken over."""

    table: pd.DataFrame
    median: float
    mad: float
    counted: int  # values that are not 0
    values: int
    undefined: int

    def describe(self) -> str:
        """The population in words, to stand beside a robust z."""
        share = 100 * self.counted / max(self.values, 1)
        told = f"{self.counted:,} scores that are not 0 ({share:.1f}% of {self.values:,})"
        if self.undefined:
            told += f"; {self.undefined:,} undefined"
        if self.counted == 0:
            return f"{told}: no robust z"
        if self.mad == 0:
            return f"{told}: more than half of them equal {self.median:g}, so a robust z is undefined"
        return f"{told}: median {self.median:g}, MAD {self.mad:g}"


def robust_table(values: npt.ArrayLike) -> Robust:
    """Where each value stands: its percentile, and its robust z = (value - median) / (1.4826 MAD).

    Median and MAD are those of the values that are not 0: a hinge makes half of all scores exact zeros, over which the MAD is 0. A 0 is no
    member of that population (it says that there was no gradient) and has no z. All z are NaN where the MAD is 0 or the population empty.

    Table, one row per value in their order: value, percentile (mid-rank among the values that are not NaN), robust_z. Without values: no
    row, median and MAD NaN.

    Raises:
        ViewError: the values are no list, or one is infinite.
    """
    given = _listed(values)
    members = given[~np.isnan(given) & (given != 0)]
    median = float(np.median(members)) if members.size else np.nan
    mad = float(np.median(np.abs(members - median))) if members.size else np.nan
    z = np.full(given.shape, np.nan)
    if mad > 0:
        z = np.where(given != 0, (given - median) / (MAD_TO_SIGMA * mad), np.nan)
    table = pd.DataFrame({"value": given, "percentile": _percentile(given), "robust_z": z})
    return Robust(table, median, mad, members.size, given.size, int(np.isnan(given).sum()))


def readings(examples: pd.DataFrame, influence: npt.ArrayLike, cosine: npt.ArrayLike) -> pd.DataFrame:
    """One test's influences read three ways side by side: raw, cosine and rank, one row per training example in the table's order.

    Columns: what names the example, influence, cosine (NaN where either side has no gradient), percentile (of the influence, mid-rank; near
    0 = most harmful), robust_z (as `robust_table`), cosine_percentile (among the defined cosines), shift = percentile - cosine_percentile:
    far from 0 where the size of the gradient and not its direction put the example there.

    Args:
        influence, cosine: `view.influence(test)` of a view with the measure dot and of one with cosine, [N].

    Raises:
        ViewError: not one of each for each example, or an infinite one.
    """
    raw, angle = _listed(influence), _listed(cosine)
    if not len(raw) == len(angle) == len(examples):
        raise ViewError(
            f"{len(raw)} influences and {len(angle)} cosines were given for {len(examples)} examples; give one of each, from two views of "
            f"one run."
        )
    robust = robust_table(raw).table
    named = examples[[name for name in NAMING if name in examples]].reset_index(drop=True)
    return named.assign(
        influence=raw,
        cosine=angle,
        percentile=robust["percentile"],
        robust_z=robust["robust_z"],
        cosine_percentile=_percentile(angle),
        shift=robust["percentile"] - _percentile(angle),
    )


def _percentile(values: Array) -> Array:
    """Mid-rank percentile among the values that are not NaN; NaN elsewhere."""
    known = ~np.isnan(values)
    place = np.full(values.shape, np.nan)
    place[known] = percentiles(values[known][:, None])[:, 0]
    return place


def _listed(values: npt.ArrayLike) -> Array:
    given = np.asarray(values, dtype=float)
    if given.ndim != 1:
        raise ViewError(f"One value per example is needed, not {given.shape}; give the influences on one test, or one score each.")
    if np.isinf(given).any():
        raise ViewError(f"The value in row {int(np.argmax(np.isinf(given)))} is infinite; compute the run again.")
    return given


# ---- the same examples for every test -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Influencers:
    """Who stands in the top lists of the live tests, and how alike these lists are."""

    table: pd.DataFrame
    overlap: float  # mean over pairs of lists; 1: the same suspects for every test
    expected_overlap: float  # of lists drawn at random
    cardinality: float  # distinct examples / entries; 1: no example is listed twice
    live_tests: int
    dead_tests: int
    empty_tests: int  # live, but nothing on the asked side


def influencers(view: View, *, k: int = 10, side: Side = "strongest", least_share: float = 0.5) -> Influencers:
    """Training examples that are among the k strongest of many tests, and the "same suspects" gauge.

    An example in the lists of at least `least_share` of the live tests is flagged a global influencer: it heads them by the size of its
    gradient more than for what it shares with each test, and a cosine or relative view shows what else is there.

    overlap of two lists A, B: |A and B| / sqrt(|A| |B|), which is |A and B| / k where both are full; its mean over all pairs of lists
    needs only how many lists each example is in. expected_overlap: the same for random lists, k / N if all are full. cardinality: distinct
    examples in the lists / their entries (k x tests if all are full). NaN where no list (for an overlap: no two) has an entry.

    A list holds the k highest |score| (strongest), the k lowest scores below 0 (opponents) or the k highest above 0 (proponents), equals in
    the order of the table; fewer where fewer are not 0 or undefined.

    Table: what names the example, tests (lists it is in), share (of the live tests), flagged; only examples in some list, most tests first,
    then in the table's order. With a single live test nothing is flagged.

    Raises:
        ViewError: k below 1, no such side, a share outside (0, 1], the measure rank, or every test is dead.
    """
    _require_lists(view, k, side, least_share)
    live = live_tests(view)
    lists = top_lists(view, live, k, side)
    count = len(view.train_pairs)
    sizes = np.array([len(rows) for rows in lists])
    entries = np.concatenate(lists)
    tests = np.bincount(entries, minlength=count)
    rows = np.flatnonzero(tests)
    rows = rows[np.argsort(-tests[rows], kind="stable")]
    named = view.train_pairs.iloc[rows][[name for name in NAMING if name in view.train_pairs]].reset_index(drop=True)
    share = tests[rows] / live.size
    return Influencers(
        named.assign(tests=tests[rows], share=share, flagged=(share >= least_share) & (live.size > 1)),
        _mean_overlap(lists, count),
        _expected_overlap(sizes, count),
        rows.size / entries.size if entries.size else np.nan,
        live.size,
        len(view.dead_tests) - live.size,
        int((sizes == 0).sum()),
    )


def top_lists(view: View, tests: Rows, k: int, side: Side) -> list[Rows]:
    """The rows of the k first training examples of each of these tests, in the order of the table, read block by block."""
    lists = []
    for place, scores in view.blocks():
        for column in tests[(tests >= place.start) & (tests < place.stop)] - place.start:
            values = scores[:, column]
            lists.append(_first(np.abs(values) if side == "strongest" else values if side == "proponents" else -values, k))
    return lists


def _first(values: Array, k: int) -> Rows:
    """The rows of the k highest of the values above 0, equals in their order."""
    able = np.flatnonzero(values > 0)
    if able.size <= k:
        return able
    held = values[able]
    line = np.partition(held, held.size - k)[held.size - k]
    above = able[held > line]
    return np.sort(np.concatenate([above, able[held == line][: k - above.size]]))


def _mean_overlap(lists: Sequence[Rows], count: int) -> float:
    """sum over i < j of |A_i and A_j| / sqrt(|A_i| |A_j|), from sum_e ((sum_i x_ei)^2 - sum_i x_ei^2) / 2 with x_ei = 1 / sqrt(|A_i|)."""
    full = [rows for rows in lists if rows.size]
    if len(full) < 2:
        return np.nan
    weights = np.concatenate([np.full(rows.size, rows.size**-0.5) for rows in full])
    summed = np.bincount(np.concatenate(full), weights=weights, minlength=count)
    return float((summed @ summed - len(full)) / (len(full) * (len(full) - 1)))


def _expected_overlap(sizes: Rows, count: int) -> float:
    roots = np.sqrt(sizes[sizes > 0])
    if roots.size < 2:
        return np.nan
    return float((roots.sum() ** 2 - (roots**2).sum()) / (roots.size * (roots.size - 1) * count))


def _require_lists(view: View, k: int, side: str, least_share: float) -> None:
    if k < 1:
        raise ViewError(f"The {k} strongest examples are none; choose at least 1.")
    require_known("side", side, get_args(Side))
    if not 0 < least_share <= 1:
        raise ViewError(f"least_share is {least_share}; choose a number above 0, up to 1.")
    if view.measure == "rank":
        raise ViewError("A percentile has no sign to list opponents by; take the lists of a view with the measure dot, or cosine.")
