"""How a score is spread within groups of examples."""

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.scores.rollups import Ends, groups

SHARES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)


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
