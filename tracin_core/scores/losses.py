"""Losses of ranking pairs, and their derivatives with respect to the two scores. Plain numpy; torch's training uses the same formulas.

For a pair (i, j, t) with t = +1 if label(i) > label(j), else -1, margin m and z = m - t (s_i - s_j):

    margin           L = u max(0, z)              dL/ds_i = -t u [z >= 0]          (1 at the boundary, as torch's margin_ranking_loss)
    squared_hinge    L = u max(0, z)^2            dL/ds_i = -2 t u max(0, z)
    logistic         L = u log(1 + e^z)           dL/ds_i = -t u sigmoid(z)        (RankNet, Burges et al. 2005, for m = 0)
    ghm, ghm_legacy  as margin, with a weight u from the density of gradient norms (Li, Liu, Wang 2019, arXiv 1811.05181)

dL/ds_j = -dL/ds_i always. u is 1 except for GHM and carries no gradient.
"""

from dataclasses import dataclass
from numbers import Real
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import scipy
from scipy import special

from tracin_core.errors import ViewError
from tracin_core.recipe import LossName

Values = npt.NDArray[Any]


@dataclass(frozen=True)
class PairLoss:
    """A pair loss with its settings. `ghm_batch` is the number of pairs in a training batch, among which densities were counted.

    Raises:
        ViewError: a setting has no meaning.
    """

    name: LossName = "margin"
    margin: float = 10.0
    ghm_bins: int = 10
    ghm_alpha: float = 0.75
    ghm_batch: int = 32

    def __post_init__(self) -> None:
        if self.name not in get_args(LossName):
            raise ViewError(f"There is no loss '{self.name}'; choose from {', '.join(get_args(LossName))}.")
        if not (isinstance(self.margin, Real) and np.isfinite(self.margin) and self.margin >= 0):
            raise ViewError(f"The margin is {self.margin}; choose a number of at least 0.")
        for name, least in (("ghm_bins", 1), ("ghm_alpha", 0), ("ghm_batch", 1)):
            value = getattr(self, name)
            if not (isinstance(value, Real) and np.isfinite(value) and value >= least):
                raise ViewError(f"{name} is {value}; choose a number of at least {least}.")
            if name != "ghm_alpha" and value != int(value):
                raise ViewError(f"{name} is {value}, but it counts whole things; choose an integer of at least {least}.")

    @property
    def is_ghm(self) -> bool:
        return self.name in ("ghm", "ghm_legacy")

    def describe(self) -> str:
        """Name and the settings that matter for it."""
        told = f"{self.name}, margin {self.margin:g}"
        if self.is_ghm:
            told += f", {self.ghm_bins} bins, alpha {self.ghm_alpha:g}, batch {self.ghm_batch}"
        return told


def slack(loss: PairLoss, first: Values, second: Values, target: Values) -> Values:
    """z = m - t (s_i - s_j), evaluated in the scores' own dtype as torch does, because rounding decides which side of the kink it is."""
    kind = _kind(first, second)
    return np.asarray(-target.astype(kind) * (first - second) + kind.type(loss.margin))


def _kind(first: Values, second: Values) -> np.dtype[Any]:
    """The dtype of the arithmetic: that of the scores, float64 where they are whole numbers, which would cut the margin down to one."""
    kind = np.result_type(first, second)
    return kind if kind.kind == "f" else np.dtype(np.float64)


def pair_loss(loss: PairLoss, first: Values, second: Values, target: Values, weight: Values | float = 1.0) -> Values:
    """The loss of each pair, float64."""
    z = slack(loss, first, second, target).astype(np.float64)
    if loss.name == "logistic":
        return np.asarray(weight * np.logaddexp(0.0, z))
    hinge = np.maximum(z, 0.0)
    return np.asarray(weight * (hinge**2 if loss.name == "squared_hinge" else hinge))


def pair_derivative(loss: PairLoss, first: Values, second: Values, target: Values, weight: Values | float = 1.0) -> Values:
    """dL/ds_i of each pair, float64; dL/ds_j is its negative."""
    z = slack(loss, first, second, target)
    if loss.name == "logistic":
        slope = special.expit(z.astype(np.float64))
    elif loss.name == "squared_hinge":
        slope = 2.0 * np.maximum(z.astype(np.float64), 0.0)
    else:
        slope = (z >= 0).astype(np.float64)
    return np.asarray(-target * weight * slope)


@dataclass(frozen=True)
class GhmTable:
    """Gradient densities of a training population: `counts[b]` of `total` drawn pairs fall into bin b."""

    counts: npt.NDArray[np.int64]
    total: int


def ghm_bins(loss: PairLoss, first: Values, second: Values, target: Values) -> npt.NDArray[np.int64]:
    """Each pair's bin, floor(g B) clipped to B - 1, g = sigmoid(m - t (s_i - s_j)); -1 where `ghm_legacy` counts no bin.

    `ghm_legacy` uses 2t - 1 where t is meant (a factor -3 for t = -1) and leaves a g that rounds to 1 uncounted; its weight is still
    read at the last bin. Both in the scores' own dtype: the code that trained such checkpoints has float32 scores.
    """
    return np.asarray(np.where(_uncounted(loss, first, second, target), -1, _places(loss, first, second, target)))


def _density(loss: PairLoss, first: Values, second: Values, target: Values) -> Values:
    kind = _kind(first, second)
    sign = (2 * target - 1 if loss.name == "ghm_legacy" else target).astype(kind)
    return np.asarray(special.expit(kind.type(loss.margin) - sign * (first - second)))


def _places(loss: PairLoss, first: Values, second: Values, target: Values) -> npt.NDArray[np.int64]:
    place = np.floor(_density(loss, first, second, target) * loss.ghm_bins).astype(np.int64)
    return np.asarray(np.minimum(place, loss.ghm_bins - 1))


def _uncounted(loss: PairLoss, first: Values, second: Values, target: Values) -> npt.NDArray[np.bool_]:
    if loss.name != "ghm_legacy":
        return np.zeros(len(target), dtype=bool)
    return np.asarray(_density(loss, first, second, target) >= 1)


def ghm_table(loss: PairLoss, first: Values, second: Values, target: Values, multiplicity: Values | None = None) -> GhmTable:
    """The density table of the pairs that the model was trained on."""
    bins = ghm_bins(loss, first, second, target)
    weights = np.ones(len(bins), dtype=np.int64) if multiplicity is None else multiplicity.astype(np.int64)
    counted = bins >= 0
    counts = np.bincount(bins[counted], weights=weights[counted], minlength=loss.ghm_bins).astype(np.int64)
    return GhmTable(counts, int(weights.sum()))


def ghm_weights(
    loss: PairLoss, table: GhmTable, first: Values, second: Values, target: Values, *, guest: bool = False
) -> npt.NDArray[np.float64]:
    """Each pair's expected training weight, exact for batches of `ghm_batch` pairs drawn without replacement from the population.

    A pair of a bin with C of the N population pairs meets X ~ Hypergeometric(N - 1, C - 1, B - 1) others of its bin in its batch, so
    u = E[(1 + X)^-alpha]. A guest (a test pair) is not in the population: X ~ Hypergeometric(N, C, B - 1), and u = 1 in an empty bin.
    `ghm_legacy` counts X alone, at least 1, where the pair itself is uncounted. Summed exactly over the distribution's support.
    """
    places = _places(loss, first, second, target)
    uncounted = _uncounted(loss, first, second, target)
    weights = np.empty(len(places))
    for itself in (False, True):
        chosen = uncounted == itself
        lookup = np.array([_expected_weight(loss, table, int(count), guest=guest, itself=not itself) for count in table.counts])
        weights[chosen] = lookup[places[chosen]]
    return weights


def _expected_weight(loss: PairLoss, table: GhmTable, count: int, *, guest: bool, itself: bool) -> float:
    """E[n^-alpha] for a bin with this count, n = how many of the batch are counted in it, the pair itself included if it counts."""
    batch = min(loss.ghm_batch, table.total)
    inside = itself and not guest
    if inside and count == 0:
        return 1.0  # no pair of the population asks for this bin
    population = table.total - (0 if guest else 1)
    others = count - (1 if inside else 0)
    drawn = max(min(batch - 1, population), 0)  # a guest of an empty population is a batch of its own
    met = np.arange(0, drawn + 1)
    chance = scipy.stats.hypergeom.pmf(met, population, others, drawn) if population > 0 else np.array([1.0])
    number = np.maximum(met + 1 if itself else met, 1).astype(float)
    return float(np.sum(chance * number**-loss.ghm_alpha))
