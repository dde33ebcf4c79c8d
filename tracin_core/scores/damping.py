"""Damping that means the same at every checkpoint, and two rules that choose it.

mu_c = delta trace(L_c K_c) / rank: delta in units of the mean eigenvalue of the curvature. A rule tries a grid of deltas and says which one
it took, by what measure, and every value that it saw.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from tracin_core.errors import ViewError
from tracin_core.scores.curvature import Array

DEFAULT_DELTA = 1.0
DELTAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class DampingChoice:
    """The delta that a rule took, of the table of all that it tried: `tried[delta]` is what the rule went by.

    Attributes:
        reported: the measure on data that the choice did not see; None where the rule has none.
    """

    rule: str
    delta: float
    tried: dict[float, float]
    reported: float | None = None


def best_by_lds(
    lds: Callable[[float, npt.NDArray[np.int64]], float], subsets: int, *, deltas: Sequence[float] = DELTAS, seed: int = 0
) -> DampingChoice:
    """The delta with the highest linear datamodelling score on a random half of the retraining subsets; reported on the other half.

    LDS: Park, Georgiev, Ilyas, Leclerc, Madry 2023, arXiv 2303.14186. Of equals, the larger delta.

    Args:
        lds: the score of this delta on the subsets with these numbers.
        subsets: how many retraining subsets there are.

    Raises:
        ViewError: fewer than 4 subsets, the grid is not of numbers above 0, or a score is no number.
    """
    if subsets < 4:
        raise ViewError(f"{subsets} retraining subsets cannot be halved into two that rank anything; retrain on at least 4.")
    chosen_on, other = halves(subsets, seed)
    tried = _tried(deltas, lambda delta: lds(delta, chosen_on))
    best = _best(tried)
    return DampingChoice("best_lds", best, tried, float(lds(best, other)))


def halves(subsets: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers of the random half of the retraining subsets that a damping is chosen on, and of the other, which figures are reported on."""
    order = np.random.default_rng(seed).permutation(subsets)
    return np.sort(order[: subsets // 2]), np.sort(order[subsets // 2 :])


def best_by_linearised_retraining(
    scores: Callable[[float], Array], predicted: Array, *, deltas: Sequence[float] = DELTAS
) -> DampingChoice:
    """The delta whose scores agree best with linearised retraining, by `agreement`; needs no retraining. Of equals, the larger delta.

    Args:
        scores: of this delta, [R, M]: what was left out x test examples, as rises of the test loss.
        predicted: the rises by `retraining.predicted_rise`, [R, M].

    Raises:
        ViewError: the grid is not of numbers above 0, or as `agreement`.
    """
    tried = _tried(deltas, lambda delta: agreement(scores(delta), predicted))
    return DampingChoice("linearised_retraining", _best(tried), tried)


DAMPING_RULES: dict[str, Callable[..., DampingChoice]] = {
    "best_lds": best_by_lds,
    "linearised_retraining": best_by_linearised_retraining,
}


def damping_rule(name: str) -> Callable[..., DampingChoice]:
    """The rule of this name.

    Raises:
        ViewError: there is none; lists those that exist.
    """
    if name not in DAMPING_RULES:
        raise ViewError(f"There is no damping rule '{name}'; choose from {', '.join(DAMPING_RULES)}.")
    return DAMPING_RULES[name]


def agreement(scores: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Spearman's correlation over what was left out, averaged over the test examples for which both tables vary: -1 to 1.

    Raises:
        ViewError: the tables differ in shape, hold something that is no number, or vary together for no test example.
    """
    given, wanted = np.asarray(scores, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if given.shape != wanted.shape or given.ndim != 2:
        raise ViewError(
            f"Scores of shape {given.shape} cannot be held against predictions of shape {wanted.shape}; give two equal tables."
        )
    for what, table in (("score", given), ("prediction", wanted)):
        if not np.isfinite(table).all():
            row, column = (int(index) for index in np.argwhere(~np.isfinite(table))[0])
            raise ViewError(f"The {what} at ({row}, {column}) is {table[row, column]}; leave out what has no finite score.")
    varying = (np.ptp(given, axis=0) > 0) & (np.ptp(wanted, axis=0) > 0)
    if not varying.any():
        raise ViewError(f"None of the {given.shape[1]} test examples has both scores and predictions that differ; choose others.")
    ranks, wanted_ranks = scipy.stats.rankdata(given[:, varying], axis=0), scipy.stats.rankdata(wanted[:, varying], axis=0)
    centred, wanted_centred = ranks - ranks.mean(axis=0), wanted_ranks - wanted_ranks.mean(axis=0)
    together = (centred * wanted_centred).sum(axis=0)
    return float(np.mean(together / np.sqrt((centred**2).sum(axis=0) * (wanted_centred**2).sum(axis=0))))


def _tried(deltas: Sequence[float], measure: Callable[[float], Any]) -> dict[float, float]:
    wrong = [delta for delta in deltas if not 0 < delta < np.inf]
    if wrong or not deltas:
        raise ViewError(f"The deltas to try are {list(deltas)}; give at least one, each a finite number above 0.")
    tried = {float(delta): float(measure(delta)) for delta in sorted(deltas)}
    for delta, value in tried.items():
        if not np.isfinite(value):
            raise ViewError(f"The measure of delta {delta:g} is {value}, so no delta can be chosen; leave that one out.")
    return tried


def _best(tried: dict[float, float]) -> float:
    """The delta of the highest value; the last, hence largest, of equals."""
    return max(tried, key=lambda delta: (tried[delta], delta))
