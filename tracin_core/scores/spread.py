"""How a score is spread within groups of examples, and how well the model does on those with little and much of it."""

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy

from tracin_core.scores.rollups import Ends, groups
from tracin_core.scores.view import View

SHARES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
THIRDS: Final = ("low", "middle", "high")
STRATA: Final = ("self_influence", "mean_influence", "total_influence")


def group_spread(
    values: npt.ArrayLike, pairs: pd.DataFrame, samples: pd.DataFrame, *, by: str, ends: Ends = "both"
) -> pd.DataFrame:
    """The quantiles of the values of each group's examples, one row per group in the column's order; arguments as `rollups.groups`.

    An example belongs once to each group that one of its samples is of. Columns: group (or low, high), n (examples with a value), undefined
    (examples without), mean, and q05, q25, q50, q75, q95 (linear interpolation, as `numpy.quantile`); NaN where n is 0.

    Raises:
        ViewError: as `groups`.
    """
    given = np.asarray(values, dtype=float)
    found = groups(pairs, samples, by=by, ends=ends)
    part = found.part
    rows = [_told(given[part.indices[start:end]]) for start, end in zip(part.indptr[:-1], part.indptr[1:], strict=True)]
    return pd.concat([found.labels.reset_index(drop=True), pd.DataFrame(rows, columns=_COLUMNS)], axis=1)


_COLUMNS: Final = ["n", "undefined", "mean", *(f"q{share * 100:02.0f}" for share in SHARES)]


def _told(values: npt.NDArray[np.float64]) -> list[float]:
    known = values[~np.isnan(values)]
    told = [known.size, values.size - known.size]
    return [*told, known.mean(), *np.quantile(known, SHARES)] if known.size else [*told, *[np.nan] * (1 + len(SHARES))]


def third_of(values: npt.ArrayLike) -> npt.NDArray[np.object_]:
    """In which third each value is: low, middle, high, or None where it is NaN: [N].

    The lines are the quantiles 1/3 and 2/3 of the values that are known; equals stay together, in the lower third.
    """
    given = np.asarray(values, dtype=float)
    known = ~np.isnan(given)
    found = np.full(given.shape, None, dtype=object)
    if known.any():
        place = np.searchsorted(np.quantile(given[known], [1 / 3, 2 / 3]), given[known], side="left")
        found[known] = np.array(THIRDS, dtype=object)[place]
    return found


def thirds(values: npt.ArrayLike, reached: npt.ArrayLike) -> pd.DataFrame:
    """How the model does on the examples with the lowest, the middle and the highest values.

    Args:
        values: the score of each example, [N]; NaN: in no third.
        reached: what the model reaches on each: 1 right, 0.5 undecided, 0 wrong; or its squared error.

    Returns:
        One row per third (`third_of`) that holds any: third, n, lowest and highest value, reached (the mean), and its 95 % Wilson interval
        from below to above, as `share_interval` has it.
    """
    given, told = np.asarray(values, dtype=float), np.asarray(reached, dtype=float)
    table = pd.DataFrame({"third": third_of(given), "value": given, "reached": told}).dropna(subset="third")
    found = table.groupby("third").agg(
        n=("value", "size"), lowest=("value", "min"), highest=("value", "max"), reached=("reached", "mean")
    )
    ends = [share_interval(table.loc[table["third"] == name, "reached"]) for name in found.index]
    found = found.assign(below=[end[0] for end in ends], above=[end[1] for end in ends])
    return found.reindex([name for name in THIRDS if name in found.index]).reset_index()


def share_interval(reached: npt.ArrayLike) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (1927); undecided ones count half, and half a success in all is left out. NaN where no share is.

    It takes the examples for independent, which pairs of the same samples are not: of pairs it is narrower than it should be.
    """
    told = np.asarray(reached, dtype=float)
    if told.size == 0 or not np.isin(told, (0.0, 0.5, 1.0)).all():
        return float("nan"), float("nan")
    found = scipy.stats.binomtest(int(told.sum()), told.size).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def strata(view: View) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """What the examples of both sides can be divided by: train and test -> score -> values, [N] or [M].

        self_influence, mean_influence = the mean of I(e, test) over the live tests (`View.mean_influence`), or over the training examples,
        total_influence = sum of |I(e, test)| over them

    The table of influences is gone through once and never held.

    Raises:
        ViewError: the view does not measure dot, whose values alone add up.
    """
    view.require_dot()
    train_sum, train_total = np.zeros((2, len(view.train)))
    test_sum, test_total = np.zeros((2, len(view.test)))
    for place, scores in view.blocks():
        train_sum += scores.sum(axis=1)
        train_total += np.abs(scores).sum(axis=1)
        test_sum[place] = scores.sum(axis=0)
        test_total[place] = np.abs(scores).sum(axis=0)
    sides = {
        "train": (view.self_influence(), train_sum / max(int((~view.dead_tests).sum()), 1), train_total),
        "test": (view.test_self_influence(), test_sum / max(len(view.train), 1), test_total),
    }
    return {side: dict(zip(STRATA, values, strict=True)) for side, values in sides.items()}
