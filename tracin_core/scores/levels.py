"""Where each training example stands to a threshold that moves: what is listed, lost and near the line, at any threshold at once.

Every entry that a rule could list has one number, its *level*: for the harm rule its `min_occurrences`-th lowest score, which is listed
strictly below the threshold; for the suspect rule a score of its own, listed strictly above. So all counts are binary searches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.errors import ViewError
from tracin_core.scores.exclusions import MAD_TO_SIGMA, PairMode, count_below, first_of_each
from tracin_core.scores.influence import Array
from tracin_core.scores.selection import Selection, SuspectScore
from tracin_core.scores.view import View

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Levels:
    """The levels of one rule on one view. An entry that stands for another's copy has a level that no threshold reaches."""

    entries: pd.DataFrame  # what can be listed: the training examples, or the training samples
    listed: Array  # [entries]
    counted: Array  # of the distinct training examples: what a histogram shows and the count goes over
    touched: Array  # [n]: a training sample is named by the list, alone or in a pair
    lost: Array  # [N]: a training example is lost to a training with the list
    above: bool = False

    def chosen(self, threshold: float) -> npt.NDArray[np.bool_]:
        """Which entries the rule lists, before any cap: [entries]."""
        return self.listed > threshold if self.above else self.listed < threshold

    def counts(self, thresholds: npt.ArrayLike) -> pd.DataFrame:
        """One row per threshold: threshold, pairs (examples that meet the rule), samples (named by the list), entries (of the list)."""
        asked = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
        sides = zip(("pairs", "samples", "entries"), self._sorted, strict=True)
        return pd.DataFrame({"threshold": asked, **{name: self._beyond(levels, asked) for name, levels in sides}})

    def in_cells(self, cells: Rows, count: int, thresholds: Array) -> Rows:
        """How many of each cell's training examples are lost at each threshold: [thresholds, count].

        Args:
            cells: the cell of each training example, [N].
            thresholds: ascending.
        """
        side: Literal["left", "right"] = "left" if self.above else "right"
        first = np.searchsorted(thresholds, self.lost, side=side)  # the first step at which it is lost, or is lost no more
        steps = np.bincount(first * count + cells, minlength=(len(thresholds) + 1) * count).reshape(-1, count)
        if self.above:
            return np.asarray(steps[::-1].cumsum(axis=0)[::-1][1:], dtype=np.int64)
        return np.asarray(steps.cumsum(axis=0)[:-1], dtype=np.int64)

    def borderline(self, threshold: float, each: int = 6) -> tuple[Rows, Rows]:
        """The entries nearest the line, nearest first: so many of those listed, and of those that are not. Equals in the order of ids."""
        chosen, within = self.chosen(threshold), np.isfinite(self.listed)
        gaps = np.abs(self.listed - threshold)
        return self._nearest(np.flatnonzero(chosen & within), gaps, each), self._nearest(
            np.flatnonzero(~chosen & within), gaps, each
        )

    def _nearest(self, rows: Rows, gaps: Array, each: int) -> Rows:
        if len(rows) > each:
            rows = rows[gaps[rows] <= np.partition(gaps[rows], each - 1)[each - 1]]  # with all that are as near as the last
        near = pd.DataFrame({"row": rows, "gap": gaps[rows], "id": self.entries["id"].iloc[rows].to_numpy()})
        return near.sort_values(["gap", "id"])["row"].to_numpy(dtype=np.int64)[:each]

    @cached_property
    def _sorted(self) -> tuple[Array, Array, Array]:
        return np.sort(self.counted), np.sort(self.touched), np.sort(self.listed)

    def _beyond(self, levels: Array, thresholds: Array) -> Rows:
        if not self.above:
            return count_below(levels, thresholds)
        return np.asarray(np.isfinite(levels).sum() - np.searchsorted(levels[np.isfinite(levels)], thresholds, side="right"))


def harm_levels(view: Selection, min_occurrences: int, pair_mode: PairMode) -> Levels:
    """The levels of the harm rule (`exclusions`).

    full_pair lists a sample when one of its pairs is chosen, and loses a pair when one of its samples is listed.

    Raises:
        ExclusionError, ViewError: as `Selection.sweep`.
    """
    kth = view.deciding_scores(min_occurrences, pair_mode)
    if view.train.members.shape[1] == 1:
        return Levels(view.train.table, kth, kth, kth, kth)
    first, second = view.train.members.T
    kept = first_of_each(view.train_pairs)
    if pair_mode == "sample":
        lost = np.minimum(kth[first], kth[second])
        return Levels(view.train_samples, kth, lost[kept], kth, lost)
    touched = _touched(view, kth, np.inf, np.minimum)
    if pair_mode == "full_pair":
        return Levels(view.train_samples, touched, kth[kept], touched, np.minimum(touched[first], touched[second]))
    return Levels(view.train_pairs, np.where(kept, kth, np.inf), kth[kept], touched, kth)


def suspect_levels(view: Selection, score: SuspectScore) -> Levels:
    """The levels of the suspect rule (`Selection.suspects`) on one of its scores."""
    values = view.suspect_scores(score)
    if view.train.members.shape[1] == 1:
        return Levels(view.train.table, values, values, values, values, above=True)
    kept = first_of_each(view.train_pairs)
    touched = _touched(view, values, -np.inf, np.maximum)
    return Levels(view.train_pairs, np.where(kept, values, -np.inf), values[kept], touched, values, above=True)


def _touched(view: Selection, levels: Array, never: float, extreme: np.ufunc) -> Array:
    touched = np.full(len(view.train_samples), never)
    for end in view.train.members.T:
        extreme.at(touched, end, levels)
    return touched


def surface(view: Selection, occurrences: Sequence[int], thresholds: npt.ArrayLike, pair_mode: PairMode) -> Rows:
    """How many entries the harm rule would list for each of the minimum occurrences and thresholds, uncapped: [occurrences, thresholds]."""
    rows = [np.sort(harm_levels(view, least, pair_mode).listed) for least in occurrences]
    return np.stack([count_below(row, thresholds) for row in rows])


def most_occurrences(view: Selection, pair_mode: PairMode, tests: int) -> int:
    """The highest minimum occurrences with which anything is harmful at all; 0 where nothing is."""
    low, high = 0, tests
    while low < high:  # what is negative k times is negative k - 1 times
        middle = (low + high + 1) // 2
        if (view.deciding_scores(middle, pair_mode) < 0).any():
            low = middle
        else:
            high = middle - 1
    return low


def robust_line(values: npt.ArrayLike, z: float) -> float:
    """median + z * 1.4826 MAD of the values that are not 0: a threshold for the suspect rule.

    Raises:
        ViewError: z is not a number, or the values have no spread.
    """
    given = np.asarray(values, dtype=np.float64)
    given = given[np.isfinite(given) & (given != 0)]
    median = float(np.median(given)) if given.size else 0.0
    deviation = float(np.median(np.abs(given - median))) if given.size else 0.0
    if not np.isfinite(z) or deviation == 0:
        raise ViewError(
            f"A robust z-score of {z:g} is undefined over {given.size:,} non-zero scores, more than half of them {median:g}; choose a "
            f"quantile or a score."
        )
    return median + z * MAD_TO_SIGMA * deviation


def cells_of(view: View) -> tuple[pd.DataFrame, Rows]:
    """The cells of `View.angle_grid` (low, high, n), and the cell of each training example: [N]."""
    grid = view.angle_grid(np.zeros(len(view.train)))[["low", "high", "n"]]
    table = view.train.table
    if view.train.members.shape[1] == 1:
        return grid, pd.Index(grid["low"]).get_indexer(pd.Index(table["group"].astype(str))).astype(np.int64)
    ends = table[["angle1", "angle2"]].to_numpy()
    found = pd.MultiIndex.from_frame(grid[["low", "high"]]).get_indexer(
        pd.MultiIndex.from_arrays([ends.min(axis=1), ends.max(axis=1)])
    )
    return grid, found.astype(np.int64)


def fewer_cells(grid: pd.DataFrame, cells: Rows, most: int, rest: str) -> tuple[pd.DataFrame, Rows]:
    """At most so many cells: the largest, in their order, and one for the rest, whose low and high are this name."""
    if len(grid) <= most:
        return grid, cells
    large = np.sort(grid["n"].to_numpy().argsort(kind="stable")[::-1][: most - 1])
    place = np.full(len(grid), most - 1, dtype=np.int64)
    place[large] = np.arange(most - 1)
    other = pd.DataFrame({"low": [rest], "high": [rest], "n": [int(grid["n"].sum() - grid["n"].iloc[large].sum())]})
    return pd.concat([grid.iloc[large], other], ignore_index=True), place[cells]
