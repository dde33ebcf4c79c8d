"""What score files from elsewhere are worth: whether their numbers can be influences of pairs at all.

A gradient that was averaged over a batch and shared out among its examples gives every pair of the batch one number. Such files look like
others. They are told by what influences of pairs must be: equal for (a, b) and (b, a), different for different pairs, and no more alike
for neighbours in the file than for others; and a self-influence, a sum of squares, is never negative.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy

from tracin_core.scores.exclusions import first_of_each

NOT_PER_PAIR: Final = ("mirrored", "blocks", "not_negative")  # checks whose failure says that the numbers are something else
TOLERANCE: Final = 1e-3  # of a score: two orders of a sum in float32 differ by less
SHARED: Final = 0.25  # of the scores with all digits that another pair has too
ALIKE: Final = 0.5  # how much nearer neighbours in the file may be than any two pairs
ENOUGH: Final = 100  # neighbours without a sample in common, before their likeness is judged
NAMED: Final = 3

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Check:
    """One finding, as a run's health tells it."""

    name: str
    passed: bool
    value: float
    detail: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def checked(
    rows: pd.DataFrame,
    tests: pd.DataFrame,
    arrays: Mapping[str, Array],
    different: Mapping[str, Mask],
    left_out: tuple[str, ...],
    loss: str | None,
) -> tuple[list[Check], dict[str, Array], pd.DataFrame, pd.DataFrame]:
    """Every check of the numbers, and the numbers and pairs without those of two equal angles, which are no ranking pairs.

    Args:
        different: which pairs of either side, train and test, are of two different labels.
        left_out: what the import left out before, in words.
        loss: that the files are of; None: they do not say.
    """
    axes = {"self_influence": (0, None), "influence": (0, 1), "self_contributions": (1, None), "contributions": (1, 2)}
    same = [rows["id"][~different["train"]].tolist(), tests["id"][~different["test"]].tolist()]
    kept: dict[str, Array] = {}
    for part, values in arrays.items():
        train, test = axes[part]
        chosen = np.compress(different["train"], values, axis=train)
        kept[part] = chosen if test is None else np.compress(different["test"], chosen, axis=test)
    rows, tests = (table[different[side]].reset_index(drop=True) for side, table in (("train", rows), ("test", tests)))
    both = sorted({*rows["id1"], *rows["id2"]} & {*tests["id1"], *tests["id2"]})
    checks = [
        _told("complete", left_out, "every pair has all of its numbers", "left out: {}"),
        _told("different_angles", [*same[0], *same[1]], "every pair is of two angles", "of two equal angles, left out: {}"),
        _told("sides", both, "no sample is on both sides", "{n} samples are in training pairs and in test pairs: {}"),
    ]
    if len(rows):
        checks += [mirrored(rows, tests, kept, loss), blocks(rows, tests, kept)]
    if "self_influence" in kept:
        checks.append(not_negative(rows, kept["self_influence"]))
    if "influence" in kept:
        dead = tests["id"][~np.any(kept["influence"] != 0, axis=0)].tolist()
        checks.append(
            _told("dead_tests", dead, f"all of {len(tests)} test pairs are live", "on {n} test pairs every score is 0: {}")
        )
    return checks, kept, rows, tests


def _told(name: str, found: Any, fine: str, otherwise: str) -> Check:
    """A check that passes where nothing was found; all that was found is named."""
    names = list(found)
    return Check(name, not names, float(len(names)), fine if not names else otherwise.format(", ".join(names), n=len(names)))


# ---- mirrored pairs --------------------------------------------------------------------------------------------------------------


def mirrored(rows: pd.DataFrame, tests: pd.DataFrame, arrays: Mapping[str, Array], loss: str | None = None) -> Check:
    """(a, b) and (b, a) are one constraint with one gradient, under every loss but `ghm_legacy`: their scores are equal."""
    if loss == "ghm_legacy":
        return Check("mirrored", True, 0.0, "under ghm_legacy (a, b) and (b, a) differ, so mirrored pairs say nothing")
    compared, unequal = 0, []
    for values, table in _tables(rows, tests, arrays):
        one, other = _mirrors(table)
        compared += len(one)
        scale = np.maximum(np.abs(values[one]), np.abs(values[other]))
        differs = (np.abs(values[one] - values[other]) > TOLERANCE * scale).any(axis=1)
        unequal += table["id"].to_numpy()[one[differs]].tolist()
    if not compared:
        return Check("mirrored", True, 0.0, "no pair is there in both orders, so there is nothing to compare")
    named = ", ".join(unequal[:NAMED])
    told = f"{len(unequal)} of {compared} pairs have other scores in the other order" + (f": {named}" if unequal else "")
    return Check("mirrored", not unequal, float(len(unequal)), told)


def _tables(rows: pd.DataFrame, tests: pd.DataFrame, arrays: Mapping[str, Array]) -> list[tuple[Array, pd.DataFrame]]:
    """Scores as [pairs, whatever], with the table of these pairs: of training pairs, and the other way round of tests."""
    found = []
    if "self_influence" in arrays:
        found.append((arrays["self_influence"][:, None], rows))
    if "influence" in arrays:
        found += [(arrays["influence"], rows), (arrays["influence"].T, tests)]
    return found


def _mirrors(table: pd.DataFrame) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows of pairs that are there in both orders, and those of their mirror images."""
    place = {ends: at for at, ends in enumerate(zip(table["id1"], table["id2"], strict=True))}
    met = [(at, place[two, one]) for (one, two), at in place.items() if (two, one) in place and at < place[two, one]]
    ends = np.array(met, dtype=np.int64).reshape(-1, 2)
    return ends[:, 0], ends[:, 1]


# ---- blocks ----------------------------------------------------------------------------------------------------------------------


def blocks(rows: pd.DataFrame, tests: pd.DataFrame, arrays: Mapping[str, Array]) -> Check:
    """Scores are not constant, or nearly so, within blocks of the file, as when one number of a batch was written to each of its pairs."""
    shares, ratios = [0.0], [1.0]
    for values, table in _tables(rows, tests, arrays):
        first = np.flatnonzero(first_of_each(table))  # mirror images are equal as they should be
        shares.append(shared(values[first]))
        ratios.append(nearness(values, table))
    share, ratio = max(shares), min(ratios)
    told = []
    if share > SHARED:
        told.append(f"{share:.0%} of the scores that are not 0 are shared with another pair, to the last digit")
    if ratio < ALIKE:
        told.append(
            f"pairs that follow each other in the file, without a sample in common, differ {ratio:.2f} times as much as any two pairs do"
        )
    fine = f"{share:.1%} of scores are shared with another pair, neighbours in the file differ {ratio:.2f} times as much as any two"
    return Check("blocks", not told, max(share, 1 - ratio), "; ".join(told) or fine)


def shared(values: Array) -> float:
    """Of the scores written with more than six digits, the share whose column has the same number again; 0 where there are none.

    Rounded numbers meet by chance, hence the digits.
    """
    met = total = 0
    for column in values.T:
        exact = column[(column != 0) & (_rounded(column) != column)]
        if len(exact) > 1:
            _, counts = np.unique(exact, return_counts=True)
            met += int(counts[counts > 1].sum())
            total += len(exact)
    return met / total if total else 0.0


def _rounded(values: Array) -> Array:
    """To six significant digits."""
    size = 10.0 ** (5 - np.floor(np.log10(np.abs(values, where=values != 0, out=np.ones_like(values)))))
    return np.asarray(np.round(values * size) / size)


def nearness(values: Array, table: pd.DataFrame) -> float:
    """How much pairs that follow each other differ, against any two: the von Neumann ratio of their ranks, 1 in random order.

    Only neighbours without a common sample count: others are alike for a reason. 1 where there are fewer than `ENOUGH` of them.
    The median over the columns that are not constant.
    """
    ends = table[["id1", "id2"]].to_numpy()
    before, after = ends[:-1], ends[1:]
    strangers = ~((before[:, :1] == after) | (before[:, 1:] == after)).any(axis=1)
    if strangers.sum() < ENOUGH:
        return 1.0
    ranks = scipy.stats.rankdata(values, axis=0)
    spread = ranks.var(axis=0)
    steps = (np.diff(ranks, axis=0)[strangers] ** 2).mean(axis=0)
    known = spread > 0
    return float(np.median(steps[known] / (2 * spread[known]))) if known.any() else 1.0


# ---- signs -----------------------------------------------------------------------------------------------------------------------


def not_negative(rows: pd.DataFrame, own: Array) -> Check:
    """A self-influence is a sum of squares."""
    below = rows["id"][own < 0].tolist()
    told = f"{len(below)} of {len(own)} self-influences are negative" + (f": {', '.join(below[:NAMED])}" if below else "")
    return Check("not_negative", not below, float(len(below)), told)
