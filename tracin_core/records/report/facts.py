"""What a report says of scores, as numbers. Nothing here is a word, and nothing rounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.errors import ViewError
from tracin_core.records.runs import Run, number_or_none
from tracin_core.scores.agreement import Comparison, ghm_and_margin
from tracin_core.scores.influence import Array, top_share
from tracin_core.scores.patterns import Recurrence, most_harmful, recurrence
from tracin_core.scores.rollups import live_tests, roll_up
from tracin_core.scores.view import View, percentiles_of

HIGH: Final = 0.95  # self-influence above this quantile is called high
HARMFUL: Final = 50  # so many of the most harmful examples are looked through for what recurs, or
HARMFUL_SHARE: Final = 0.05  # so many of all, where that is fewer
CHANCE: Final = 0.05  # a family-wise p above this is told as chance

Trend = Literal["falls", "rises", "neither"]


# ---- health -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Health:
    """The engine's checks of itself, the tests that are dead, and how well the last checkpoint does beside guessing."""

    checks: pd.DataFrame
    tests: int
    dead: int
    accuracy: float | None  # of the validation side, as the last checkpoint records it
    guess: float  # what guessing reaches: half of the pairs, or the share of the most frequent label

    @property
    def failed(self) -> list[str]:
        return [str(name) for name in self.checks.loc[~self.checks["passed"].astype(bool), "check"]]


def health(run: Run, view: View) -> Health:
    """The run's checks and its recorded accuracy."""
    known = run.checkpoints
    accuracy = number_or_none(known.iloc[-1].get("validation_accuracy")) if len(known) else None
    labels = run.splits["validation"]["label"] if run.task == "classification" else None
    return Health(
        run.health(),
        len(view.dead_tests),
        int(view.dead_tests.sum()),
        None if accuracy is None or np.isnan(accuracy) or run.task == "regression" else accuracy,
        0.5 if labels is None else float(labels.value_counts(normalize=True).iloc[0]),
    )


# ---- how scores are spread ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """How many scores, where the middle nine tenths lie, and how much the first per cent holds (None: all are 0, or some negative)."""

    n: int
    zeros: int
    low: float
    median: float
    high: float
    top: int
    top_share: float | None


def spread(scores: Array) -> Spread:
    """Of finite scores; at least one."""
    low, median, high = np.quantile(scores, [0.05, 0.5, 0.95]).tolist()
    shared = top_share(scores) if (scores >= 0).all() and scores.any() else None
    return Spread(len(scores), int(np.sum(scores == 0)), low, median, high, max(1, round(0.01 * len(scores))), shared)


@dataclass(frozen=True)
class Signs:
    """How many training examples help, harm, or neither, in the mean over live tests."""

    helps: int
    harms: int
    neither: int


def signs(mean: Array) -> Signs:
    return Signs(int(np.sum(mean > 0)), int(np.sum(mean < 0)), int(np.sum(mean == 0)))


# ---- groups -------------------------------------------------------------------------------------------------------------------------


def by_group(view: View, scores: Mapping[str, Array]) -> pd.DataFrame:
    """Per angle of a pair's two samples, or per group of samples: group, n, and the mean of each score."""
    return _rolled(view, scores, "angle" if view.train.noun == "pair" else "group", "both")


def by_gap(view: View, scores: Mapping[str, Array]) -> pd.DataFrame:
    """Per difference of the two angles: group, n, and the mean of each score."""
    return _rolled(view, scores, "gap", "own")


def _rolled(view: View, scores: Mapping[str, Array], by: str, ends: Any) -> pd.DataFrame:
    rolled = {name: roll_up(values, view.train_pairs, view.train_samples, by=by, ends=ends) for name, values in scores.items()}
    table = next(iter(rolled.values()))[["group", "n"]].assign(**{name: part["mean"] for name, part in rolled.items()})
    return table[table["n"] > 0].reset_index(drop=True)


def trend(values: Sequence[float]) -> Trend:
    """Whether each of at least three values is below the one before it, or above."""
    steps = np.diff(np.asarray(values, dtype=float))
    if len(steps) < 2:
        return "neither"
    return "falls" if (steps < 0).all() else "rises" if (steps > 0).all() else "neither"


# ---- notable examples ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Notable:
    """One training example among all of them."""

    example: pd.Series
    own: float
    own_percentile: float  # mid-rank
    mean: float
    mean_percentile: float
    harms: int  # on so many live tests is its influence below 0
    live: int


@dataclass(frozen=True)
class Strongest:
    """The most negative influence of any training example on any live test."""

    notable: Notable
    test: pd.Series
    value: float
    contributions: tuple[float, ...]  # none where an import did not hold them
    checkpoints: tuple[str, ...]

    @property
    def main_checkpoint(self) -> tuple[str, float] | None:
        """The checkpoint of at least three that adds more than half of all that is negative, with its share; None: no single one does."""
        if not self.contributions:
            return None
        terms = np.asarray(self.contributions)
        below = float(terms[terms < 0].sum())
        place = int(terms.argmin())
        held = float(terms[place]) / below if below < 0 else 0.0
        return (self.checkpoints[place], held) if len(terms) > 2 and held > 0.5 else None


@dataclass(frozen=True)
class Cases:
    """The examples that a reader should look at first."""

    hard_and_harmful: Notable | None  # of high self-influence and negative mean influence, the one with the lowest mean
    high: int  # examples of high self-influence
    strongest: Strongest | None  # None: no influence is below 0
    recurring: Recurrence
    harmful: int  # examples that were looked through for what recurs

    @property
    def standing_out(self) -> pd.Series | None:
        """The group that stands in more of the harmful examples than chance puts there, the least probable one; None: none does."""
        if self.recurring.table.empty or not self.recurring.table["p_familywise"].iloc[0] <= CHANCE:
            return None
        return self.recurring.table.iloc[0]


def cases(view: View, own: Array, mean: Array) -> Cases:
    """One pass over all influences finds the strongest negative one, and on how many tests each example harms."""
    harms, lowest = _harm(view)
    live = len(live_tests(view))

    def notable(row: int) -> Notable:
        rows = np.array([row])
        percentiles = (float(percentiles_of(values, rows)[0]) for values in (own, mean))
        at_own, at_mean = percentiles
        return Notable(view.train_pairs.iloc[row], float(own[row]), at_own, float(mean[row]), at_mean, int(harms[row]), live)

    high = (own >= np.quantile(own, HIGH)) & (own > 0)
    both = np.flatnonzero(high & (mean < 0))
    k = int(max(1, min(HARMFUL, np.ceil(HARMFUL_SHARE * len(own)))))
    chosen = most_harmful(mean, k)
    found = recurrence(chosen, view.train_pairs, view.train_samples, by="id" if view.train.noun == "pair" else "group")
    return Cases(
        notable(int(both[mean[both].argmin()])) if both.size else None,
        int(high.sum()),
        None if lowest is None else _strongest(view, *lowest, notable=notable),
        found,
        int(chosen.sum()),
    )


def _harm(view: View) -> tuple[npt.NDArray[np.int64], tuple[int, int, float] | None]:
    """On how many live tests each example's influence is below 0, and the lowest influence of all, if it is: (row, test, value)."""
    live = live_tests(view)
    harms, lowest = np.zeros(len(view.train_pairs), dtype=np.int64), (0, 0, 0.0)
    for place, scores in view.blocks():
        here = live[(live >= place.start) & (live < place.stop)]
        read = scores[:, here - place.start]
        harms += (read < 0).sum(axis=1)
        if read.size and read.min() < lowest[2]:
            row, column = np.unravel_index(int(read.argmin()), read.shape)
            lowest = int(row), int(here[column]), float(read[row, column])
    return harms, lowest if lowest[2] < 0 else None


def _strongest(view: View, row: int, test: int, value: float, *, notable: Any) -> Strongest:
    train_id, test_id = str(view.train_pairs["id"].iloc[row]), str(view.test_pairs["id"].iloc[test])
    try:
        terms = tuple(np.asarray(view.contributions(train_id, test_id)).tolist())
    except ViewError:
        terms = ()
    return Strongest(notable(row), view.test_pairs.iloc[test], value, terms, tuple(view.checkpoint_names))


# ---- another loss on the same kernels -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Losses:
    """Self-influence under GHM beside the same under another pair loss; `same[k]` of the first k are shared."""

    ghm: str
    other: str
    comparison: Comparison
    same: dict[int, int]


def losses(run: Run, view: View, tops: Sequence[int] = (10, 50, 200)) -> Losses:
    """The run's own view is one of the two. Only tops without a score of exactly 0 are compared: among zeros the order is none.

    Raises:
        ViewError: the examples are not pairs.
    """
    _ = run.ranking
    other = run.view(loss="margin" if view.ghm_tables else "ghm")
    ghm, plain = (view, other) if view.ghm_tables else (other, view)
    told = min(int(np.count_nonzero(one.self_influence())) for one in (ghm, plain))
    found = ghm_and_margin(ghm, plain, top=[k for k in tops if k <= told])
    same = {int(row["k"]): round(float(row["overlap"]) * int(row["k"])) for _, row in found.overlap.iterrows()}
    return Losses(ghm.train.described, plain.train.described, found, same)
