"""How a score is spread within groups of examples, and how well the model does on those with little and much of it."""

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.scores.rollups import Ends, groups

SHARES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
THIRDS: Final = ("low", "middle", "high")


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


def thirds(values: npt.ArrayLike, reached: npt.ArrayLike) -> pd.DataFrame:
    """How the model does on the examples with the lowest, the middle and the highest values.

    The lines are the quantiles 1/3 and 2/3 of the values that are known; equals stay together, in the lower third.

    Args:
        values: the score of each example, [N]; NaN: in no third.
        reached: what the model reaches on each: 1 right, 0.5 undecided, 0 wrong; or its squared error.

    Returns:
        One row per third that holds any: third (low, middle, high), n, lowest and highest value, reached (the mean).
    """
    given, told = np.asarray(values, dtype=float), np.asarray(reached, dtype=float)
    known = ~np.isnan(given)
    third = np.searchsorted(np.quantile(given[known], [1 / 3, 2 / 3]), given[known], side="left") if known.any() else []
    table = pd.DataFrame({"third": np.array(THIRDS, dtype=object)[third], "value": given[known], "reached": told[known]})
    found = table.groupby("third").agg(
        n=("value", "size"), lowest=("value", "min"), highest=("value", "max"), reached=("reached", "mean")
    )
    return found.reindex([name for name in THIRDS if name in found.index]).reset_index()
