"""Scores that were computed elsewhere, behind the questions of a view: no kernel, no loss, no gradient, and hence no what-if.

Between pairs, influence itself is a kernel: each pair stands on a position of its own with coefficient 1, and the products of positions are
the numbers of the file. What goes over tests, samples and thresholds is then the same algebra as for a computed run. Everything that would
need the kernels of samples, or the loss, is refused with what to do about it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.errors import ViewError
from tracin_core.scores.examples import ALL, Examples, Rows
from tracin_core.scores.exclusions import first_of_each
from tracin_core.scores.influence import Array
from tracin_core.scores.view import WHAT_IFS, View, percentiles_of

UNSAID = "a loss that the score files do not name"
REASON = "the run was imported from score files, which hold scores and no kernels; compute a run from the checkpoints"


def lack(what: str, file: str) -> NoReturn:
    """Says which file was not imported.

    Raises:
        ViewError: always.
    """
    raise ViewError(
        f"The imported score files hold no {what}; import the file <material>_<frequency>_{file}.json together with them."
    )


def refuse(what: str) -> NoReturn:
    """Says why an imported run does not answer.

    Raises:
        ViewError: always.
    """
    raise ViewError(
        f"This run was imported from score files, which hold scores and no kernels, so it cannot give {what}; compute a run from the "
        f"checkpoints for that."
    )


@dataclass(frozen=True)
class ImportedPairs(Examples):
    """Pairs whose scores are known, and nothing of their outputs."""

    table: pd.DataFrame
    samples: pd.DataFrame
    described: str = UNSAID
    shown: tuple[str, ...] = ("id", "id1", "id2", "angle1", "angle2")
    noun: str = "pair"

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        return np.arange(len(self.table))[:, None]

    @cached_property
    def members(self) -> npt.NDArray[np.int64]:
        return np.asarray(self.table[["first", "second"]].to_numpy())

    @property
    def positions(self) -> int:
        return len(self.table)

    def coefficients(self, rows: Rows = ALL) -> Array:
        return np.ones((1, len(self.ends[rows]), 1))

    @property
    def derivatives(self) -> Array:
        refuse("derivatives of a loss")

    @property
    def losses(self) -> Array:
        refuse("losses")

    @property
    def fixed(self) -> dict[str, str]:
        return {name: REASON for name in WHAT_IFS if name != "exclusions"}


@dataclass(frozen=True)
class ImportedScores:
    """The numbers of the files, for N training and M test pairs and C checkpoints; None: no file gave them."""

    self_influence: Array | None  # [N]
    influence: Array | None  # [N, M]
    self_contributions: Array | None = None  # [C, N]
    contributions: Array | None = None  # [C, N, M]
    checkpoints: tuple[str, ...] = ()


class PairKernel:
    """The products that imported scores are: tests by training pairs, as [1, M, N]."""

    def __init__(self, influence: Array) -> None:
        self.test_train = influence.T[None]

    @property
    def train_train(self) -> Array:
        refuse("products among training pairs")

    @property
    def test_test(self) -> Array:
        refuse("products among test pairs")


class ImportedView(View):
    """The scores of an imported run: one loss, one choice of checkpoints and weights, whatever they were, and the measure of the file."""

    def __init__(self, train: ImportedPairs, test: ImportedPairs, scores: ImportedScores) -> None:
        self.train, self.test, self.scores, self.measure = train, test, scores, "dot"
        self.checkpoint_weights = np.ones(1)
        self.checkpoint_names = list(scores.checkpoints) or ["all checkpoints"]

    def mapped(self, *_: Any, **__: Any) -> NoReturn:
        refuse("what a method makes of the kernels")

    @cached_property
    def kernels(self) -> PairKernel:  # type: ignore[override]
        influence = self.scores.influence
        return PairKernel(np.zeros((len(self.train), 0)) if influence is None else influence)

    @cached_property
    def _incidence(self) -> Any:
        return self.train.incidence(self.checkpoint_weights, len(self.train))

    @cached_property
    def dead_tests(self) -> npt.NDArray[np.bool_]:
        """Tests on which every influence is exactly 0."""
        return np.asarray(~np.any(self.kernels.test_train[0] != 0, axis=1))

    @cached_property
    def dead_train(self) -> npt.NDArray[np.bool_]:
        """Training pairs all of whose scores are exactly 0."""
        alive = np.any(self.kernels.test_train[0] != 0, axis=0)
        return np.asarray(~alive if self.scores.self_influence is None else ~alive & (self.scores.self_influence == 0))

    @cached_property
    def _own_train(self) -> Array:
        if self.scores.self_influence is None:
            lack("self-influence", "metadata")
        return self.scores.self_influence

    @cached_property
    def _own_test(self) -> Array:
        refuse("self-influence of tests")

    @cached_property
    def _norms_train(self) -> Array:
        if self.scores.self_contributions is None:
            lack("share of each checkpoint in self-influence", "per_checkpoint_metadata")
        return self.scores.self_contributions

    @cached_property
    def _norms_test(self) -> Array:
        refuse("what each checkpoint adds to the self-influence of tests")

    def self_contributions(self) -> Array:
        return self._norms_train.copy()

    def _live_tests(self) -> npt.NDArray[np.int64]:
        if len(self.test) == 0:
            lack("influence on test pairs", "influence_metadata")
        return super()._live_tests()

    def _terms(self, rows: npt.NDArray[np.int64], test: str) -> Array:
        if self.scores.contributions is None:
            lack("share of each checkpoint in an influence", "per_checkpoint_influence_metadata")
        return np.asarray(self.scores.contributions[:, rows, self.test_row(test)].T)

    def _explained(self, rows: npt.NDArray[np.int64], dot: Array, measured: Array, test: str) -> pd.DataFrame:
        known = self.scores.contributions is not None
        return self._named(rows, dot, measured, self._terms(rows, test) if known else np.zeros((len(rows), 0)))

    def _named(self, rows: npt.NDArray[np.int64], ranked: Array, measured: Array, terms: Array) -> pd.DataFrame:
        """As of any view; without self-influence, or what each checkpoint adds, where no file told it."""
        own = self.scores.self_influence
        told = terms if terms.shape[1] == len(self.scores.checkpoints) else np.zeros((len(rows), 0))
        return (
            self.train.table.iloc[rows][list(self.train.shown)]
            .reset_index(drop=True)
            .assign(
                influence=measured[rows],
                percentile=percentiles_of(ranked, rows),
                self_influence=np.full(len(rows), np.nan) if own is None else own[rows],
                contributions=pd.Series(told.tolist(), dtype=object),
            )
        )

    def _told_of_tests(self, tests: npt.NDArray[np.int64], row: int, terms: Array, measured: Array) -> pd.DataFrame:
        parts = self.scores.contributions
        told = np.zeros((len(tests), 0)) if parts is None else parts[:, row, tests].T
        return super()._told_of_tests(tests, row, terms, measured).assign(contributions=pd.Series(told.tolist(), dtype=object))

    @cached_property
    def _sample_influence(self) -> Array:
        """Of (a, b) and (b, a), which are one pair, the first counts."""
        total = np.zeros((len(self.train.samples), len(self.test)))
        counted = first_of_each(self.train.table)
        scores = self.kernels.test_train[0].T[counted]
        for member in self.train.members[counted].T:
            np.add.at(total, member, scores)
        return total

    def _towards_one(self, test: str | None) -> Array:
        refuse("the direction of a test")

    def relabel_effects(self, draws: pd.DataFrame, labels: Sequence[int], test: str | None = None) -> pd.DataFrame:
        refuse("what another label would change")
