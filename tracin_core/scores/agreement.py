"""How far two scores of the same examples agree at their tops, on no scale but their order.

`rollups.compare` matches and ranks; here is what a curve over many k, equal scores and chance add to it.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.errors import ViewError
from tracin_core.scores.rollups import Side

Array = npt.NDArray[np.float64]
MOST: Final = 200


def overlap_curve(one: npt.ArrayLike, other: npt.ArrayLike, *, side: Side = "highest", most: int = MOST) -> pd.DataFrame:
    """How many examples the tops of both scores share: one row for each k = 1 ... `most`, at most N: k, shared, chance.

    Equal scores share their places: an example that ties for the last j places of a top with t - 1 others is in it by j / t, and

        shared(k) = sum_e p_e(k) p'_e(k),        chance(k) = k^2 / N,

    p and p' being those shares in the two tops: what is expected where ties are broken at random, each top for itself. (Breaking both by
    the same order of ids would call two scores alike where they are merely both 0.) Chance is what two random orders share.

    Args:
        one, other: a value per example, in the same order; examples with NaN in either are left out.
        side: which end of the scores is the top.

    Raises:
        ViewError: the scores are not of the same examples, one is infinite, or `most` is below 1.
    """
    a, b = (np.asarray(values, dtype=float) for values in (one, other))
    if a.shape != b.shape or a.ndim != 1:
        raise ViewError(f"The two scores are of {a.shape} and {b.shape} examples; match them first.")
    if most < 1:
        raise ViewError(f"The top {most} holds nothing; choose at least 1.")
    if np.isinf(a).any() or np.isinf(b).any():
        raise ViewError("A score is infinite, so that tops have no order; compute the run again.")
    kept = ~(np.isnan(a) | np.isnan(b))
    signed = [values[kept] if side == "highest" else -values[kept] for values in (a, b)]
    count = int(kept.sum())
    tops = np.arange(1, min(most, count) + 1)
    ordered = [-np.sort(-values) for values in signed]
    shared = [float(np.dot(*(_shares(v, s, k) for v, s in zip(signed, ordered, strict=True)))) for k in tops.tolist()]
    return pd.DataFrame({"k": tops, "shared": np.array(shared, dtype=float), "chance": tops**2 / max(count, 1)})


def _shares(values: Array, ordered: Array, k: int) -> Array:
    """By how much each example is among the k highest."""
    last = ordered[k - 1]
    above = int(np.searchsorted(-ordered, -last, side="left"))
    equal = int(np.searchsorted(-ordered, -last, side="right")) - above
    return np.where(values > last, 1.0, np.where(values == last, (k - above) / equal, 0.0))


def jaccard(lists: list[frozenset[str]]) -> Array:
    """How alike every two lists are: what both name, over what either names; 1 for two empty ones: [lists, lists]."""
    either = [[len(one | other) for other in lists] for one in lists]
    both = [[len(one & other) for other in lists] for one in lists]
    return np.array(
        [[b / e if e else 1.0 for b, e in zip(*rows, strict=True)] for rows in zip(both, either, strict=True)], dtype=float
    ).reshape(len(lists), len(lists))
