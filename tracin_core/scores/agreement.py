"""How far two scores of the same examples agree: value by value, by rank, and at their tops."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy

from tracin_core.errors import ViewError
from tracin_core.scores.influence import Array, require_known
from tracin_core.scores.losses import ghm_bins
from tracin_core.scores.rollups import members, one_each
from tracin_core.scores.view import View

MOST: Final = 200
Score = Literal["self_influence", "mean_influence"]
Side = Literal["highest", "lowest"]


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
    first = one_each(one, np.size(one))
    second = one_each(other, len(first))
    known = ~(np.isnan(first) | np.isnan(second))
    a, b = first[known], second[known]
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Correlation(a.size, int((~known).sum()), np.nan, np.nan)
    return Correlation(
        a.size, int((~known).sum()), float(scipy.stats.spearmanr(a, b).statistic), float(scipy.stats.pearsonr(a, b).statistic)
    )


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
    a, b = (one_each(values.reindex(common), len(common)) for values in (one, other))
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


# ---- at their tops -------------------------------------------------------------------------------------------------------------------


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
