"""One way to look at a run: its examples, a loss, weights and a measure, and every question that they answer."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.errors import ViewError
from tracin_core.recipe import Cotangent
from tracin_core.scores.examples import PairExamples, SampleExamples, TestQuantity, density_tables
from tracin_core.scores.influence import Array, Kernels, percentiles, require_known
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.relabel import relabel_effects
from tracin_core.scores.sample_losses import SampleLoss
from tracin_core.scores.selection import Selection

WHAT_IFS = (
    "checkpoints",
    "weights",
    "layers",
    "measure",
    "exclusions",
    "loss",
    "score_difference",
    "relabel",
    "gauss_newton",
    "fisher",
    "trak",
    "linearised_retraining",
    "representer_points",
)


class View(Selection):
    """The scores of one run under one loss, one choice of checkpoints and weights. Nothing here computes a gradient.

    `influence` has the algebra, `selection` the rules that choose; here the examples get their loss, and scores their lists.
    """

    @classmethod
    def of_pairs(
        cls,
        train_pairs: pd.DataFrame,
        test_pairs: pd.DataFrame,
        kernels: Kernels,
        *,
        loss: PairLoss,
        train_samples: pd.DataFrame,
        test_samples: pd.DataFrame,
        test_quantity: TestQuantity = "loss",
        population: pd.DataFrame | None = None,
        strangers: npt.NDArray[np.bool_] | None = None,
        **settings: Any,
    ) -> "View":
        """The view of ranking pairs.

        Args:
            train_pairs, test_pairs: as `pair_table` makes them.
            population: the pairs that the model was trained on, whose densities GHM weights are read from; None: the training pairs.
            strangers: training pairs that are not members of that population, [N]; None: all are.
            settings: of the view itself.
        """
        require_known("test quantity", test_quantity, get_args(TestQuantity))
        _require_samples("training", train_pairs, train_samples, kernels.train_outputs)
        _require_samples("test", test_pairs, test_samples, kernels.test_outputs)
        densities = density_tables(loss, kernels.train_outputs, train_pairs if population is None else population)
        train = PairExamples(train_pairs, train_samples, kernels.train_outputs, loss, densities, strangers)
        guests = np.ones(len(test_pairs), dtype=bool)
        test = PairExamples(test_pairs, test_samples, kernels.test_outputs, loss, densities, guests, test_quantity)
        return cls(train, test, kernels, **settings)

    @classmethod
    def of_samples(
        cls,
        train_samples: pd.DataFrame,
        test_samples: pd.DataFrame,
        kernels: Kernels,
        *,
        loss: SampleLoss,
        cotangent: Cotangent,
        target: str = "label",
        test_quantity: TestQuantity = "loss",
        **settings: Any,
    ) -> "View":
        """The view of classification or regression samples.

        Args:
            cotangent: whose gradients the kernels hold products of, see `SampleExamples`; it decides which what-ifs there are.
            target: the column of labels, or of numbers to meet.
        """
        require_known("test quantity", test_quantity, get_args(TestQuantity))
        targets = train_samples[target].to_numpy(), test_samples[target].to_numpy()
        train_samples, test_samples = with_groups(train_samples, test_samples, target, of_label=loss.is_of_label)
        train = SampleExamples(train_samples, kernels.train_outputs, targets[0], loss, cotangent)
        test = SampleExamples(test_samples, kernels.test_outputs, targets[1], loss, cotangent, test_quantity)
        return cls(train, test, kernels, **settings)

    # ---- lists --------------------------------------------------------------------------------------------------------------

    def top(self, test_id: str, k: int = 20) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The k strongest proponents and the k strongest opponents of a test, strongest first; equals in the order of their ids.

        Only examples with an influence other than 0 are either. Columns: id, what names the example (of pairs id1, id2, angle1, angle2),
        influence (the view's measure), percentile (mid-rank, see `percentiles`), self_influence, contributions (what each checkpoint adds
        to the dot influence, weights included).

        Raises:
            NotFoundError: no such test.
            ViewError: k is below 1.
        """
        if k < 1:
            raise ViewError(f"The {k} strongest pairs are none; choose at least 1.")
        place = self._place(test_id)
        dot = self._dot(place)
        measured = self._measured(place, dot)[:, 0]
        proponents, opponents = (
            strongest(self.train.table["id"], measured, k, ascending=ascending, among=np.flatnonzero(chosen))
            for chosen, ascending in ((self._signs(dot[:, 0], measured) > 0, False), (self._signs(dot[:, 0], measured) < 0, True))
        )
        return self._explained(proponents, dot[:, 0], measured, test_id), self._explained(opponents, dot[:, 0], measured, test_id)

    def count(self, test_id: str, side: Literal["proponents", "opponents"]) -> int:
        """How many training examples are proponents, or opponents, of a test at all."""
        place = self._place(test_id)
        dot = self._dot(place)
        signs = self._signs(dot[:, 0], self._measured(place, dot)[:, 0])
        return int(np.sum(signs > 0 if side == "proponents" else signs < 0))

    def _signs(self, dot: Array, measured: Array) -> Array:
        """What makes a proponent or an opponent: the influence, or where the measure has a sign of its own, the measure."""
        return measured if self.measure == "cosine_mean" else dot

    def _explained(self, rows: npt.NDArray[np.int64], dot: Array, measured: Array, test: str) -> pd.DataFrame:
        terms = self._terms(rows, test)
        return (
            self.train.table.iloc[rows][list(self.train.shown)]
            .reset_index(drop=True)
            .assign(
                influence=measured[rows],
                percentile=percentiles_of(dot, rows),
                self_influence=self._own_train[rows],
                contributions=pd.Series(terms.tolist(), dtype=object),
            )
        )

    def ranked(
        self,
        values: npt.ArrayLike,
        *,
        ascending: bool = False,
        cell: tuple[Any, Any] | None = None,
        k: int | None = None,
    ) -> pd.DataFrame:
        """The training examples by one value each, highest first (or lowest), equals by id, undefined values last.

        Columns: those of their table, score, percentile (mid-rank among the values that are not NaN).

        Args:
            cell: only pairs of this unordered angle pair, or samples of this group (twice), as `angle_grid` names them.
            k: only so many, and none whose value is NaN; None: all.
        """
        given = self._one_each(values)
        if k is not None and cell is None:
            rows = strongest(self.train.table["id"], given, k, ascending=ascending)
            return (
                self.train.table.iloc[rows].assign(score=given[rows], percentile=percentiles_of(given, rows)).reset_index(drop=True)
            )
        place = np.full(given.shape, np.nan)
        place[~np.isnan(given)] = percentiles(given[~np.isnan(given), None])[:, 0]
        table = self.train.table.assign(score=given, percentile=place)
        if cell is not None and isinstance(self.train, SampleExamples):
            table = table[table["group"].astype(str) == cell[0]]
        elif cell is not None:
            low, high = table[["angle1", "angle2"]].min(axis=1), table[["angle1", "angle2"]].max(axis=1)
            table = table[(low == cell[0]) & (high == cell[1])]
        ordered = table.sort_values(["score", "id"], ascending=[ascending, True], ignore_index=True)
        return ordered if k is None else ordered.dropna(subset="score").head(k)

    def what_ifs(self) -> pd.DataFrame:
        """Which questions this run's kernels leave free: what_if, available, why_not (what the kernel fixes, and what would free it)."""
        fixed = self.train.fixed
        rows = [{"what_if": name, "available": name not in fixed, "why_not": fixed.get(name, "")} for name in WHAT_IFS]
        return pd.DataFrame(rows)

    # ---- labels and angles ---------------------------------------------------------------------------------------------------

    def relabel_effects(self, draws: pd.DataFrame, labels: Sequence[int], test: str | None = None) -> pd.DataFrame:
        """What each other label of each training sample would change (`relabel`), on one test, or in the mean over live tests.

        One row per sample, one column per label, in the units of influence; 0 at the sample's own label. Positive: training on the sample
        under that label would lower the test's loss more than under its own.

        Args:
            draws: the pairs of positions that the training drew from, equal labels included.
            labels: the columns.

        Raises:
            NotFoundError: no such test.
            ViewError: the examples are not pairs, or every test is dead.
        """
        if isinstance(self.train, SampleExamples):
            return self._relabelled_samples(self.train, labels, test)
        if not isinstance(self.train, PairExamples):
            raise ViewError("Only pairs and samples can be relabelled; these examples are neither.")
        towards = self.checkpoint_weights[:, None] * self._towards_one(test)
        effects = relabel_effects(self.train, draws, labels, towards)
        return pd.DataFrame(effects, index=pd.Index(self.train.samples["id"], name="sample"), columns=list(labels))

    def _relabelled_samples(self, known: SampleExamples, labels: Sequence[int], test: str | None) -> pd.DataFrame:
        if known.cotangent == "label_logit" or not known.loss.is_of_label:
            raise ViewError(
                f"This run cannot relabel under {known.described}: "
                + (
                    "its kernel is of logit(p_y), which fixes each label; compute a run that keeps all outputs."
                    if known.loss.is_of_label
                    else "it meets numbers, not labels."
                )
            )
        v = self._towards_one(test)

        def towards(examples: SampleExamples) -> Array:
            slopes = examples.coefficients()
            return np.asarray(np.einsum("c,cne,cne->n", self.checkpoint_weights, slopes, v[:, examples.ends]))

        now = towards(known)
        effects = {label: towards(replace(known, targets=np.full(len(known), label))) - now for label in labels}
        return pd.DataFrame(effects, index=pd.Index(known.samples["id"], name="sample"))

    def angle_grid(self, values: npt.ArrayLike) -> pd.DataFrame:
        """Per unordered angle pair of the training pairs: low, high (degrees), n, mean, median of the values that are not NaN.

        Where the examples are samples: per group of them (`with_groups`), which is low and high both.
        """
        given = self._one_each(values)
        table = self.train_pairs
        if isinstance(self.train, SampleExamples):
            low = high = table["group"]
        else:
            low, high = table[["angle1", "angle2"]].min(axis=1), table[["angle1", "angle2"]].max(axis=1)
        frame = pd.DataFrame({"low": low, "high": high, "value": given})
        cells = frame.groupby(["low", "high"], observed=True)["value"].agg(n="count", mean="mean", median="median").reset_index()
        return cells.astype({"low": str, "high": str}) if isinstance(self.train, SampleExamples) else cells


def with_groups(train: pd.DataFrame, test: pd.DataFrame, target: str, *, of_label: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables with the column `group`: what to call each sample's class in a chart, in order.

    The name of its label; or, of six ranges of the training targets that are about equally full, the one that its number lies in, or
    beyond which it lies at either end.
    """
    if of_label:
        name = "label_name" if "label_name" in train else target
        both = pd.DataFrame({end: pd.concat([train[end], test[end]]) for end in (target, name)}).drop_duplicates()
        names = both.sort_values(target)[name].astype(str).drop_duplicates().tolist()
        one, two = (pd.Categorical(side[name].astype(str), categories=names, ordered=True) for side in (train, test))
        return train.assign(group=one), test.assign(group=two)
    edges = np.unique(np.quantile(train[target].to_numpy(dtype=float), np.linspace(0, 1, 7)))
    inner = edges[1:-1]
    names = [f"{low:.3g} – {high:.3g}" for low, high in pairwise(edges)] or [f"{edges[0]:.3g}"]
    names = names if len(set(names)) == len(names) else [f"{place + 1}. {name}" for place, name in enumerate(names)]
    codes = [np.searchsorted(inner, side[target].to_numpy(dtype=float), side="right") for side in (train, test)]
    kind = pd.CategoricalDtype(names, ordered=True)
    of_train, of_test = (pd.Categorical.from_codes(code, dtype=kind) for code in codes)
    return train.assign(group=of_train), test.assign(group=of_test)


def percentiles_of(scores: Array, rows: npt.NDArray[np.int64]) -> Array:
    """`percentiles` of some rows alone, among the scores that are not NaN; quick for rows near either end."""
    if rows.size == 0:
        return np.zeros(0)
    numbers = scores.size - int(np.count_nonzero(np.isnan(scores)))
    low, high = float(scores[rows].min()), float(scores[rows].max())
    near = np.sort(scores[(scores >= low) & (scores <= high)])
    under = int(np.count_nonzero(scores < low))
    first, past = (np.searchsorted(near, scores[rows], side=side) for side in ("left", "right"))
    return np.asarray(100 * (under + (first + past) / 2) / numbers)


def strongest(
    ids: pd.Series, values: Array, k: int, *, ascending: bool, among: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64]:
    """Rows of the k highest (or lowest) values, equals in the order of their ids; none that is NaN. Only those near the top are sorted."""
    rows = np.arange(len(values)) if among is None else among
    signed = values[rows] if ascending else -values[rows]
    known = ~np.isnan(signed)
    if not known.all():
        rows, signed = rows[known], signed[known]
    if rows.size > k:
        near = np.flatnonzero(signed <= np.partition(signed, k - 1)[k - 1])
        rows, signed = rows[near], signed[near]
    order = pd.DataFrame({"value": signed, "id": ids.iloc[rows].to_numpy()}).sort_values(["value", "id"]).index
    return np.asarray(rows[order[:k]])


def _require_samples(side: str, pairs: pd.DataFrame, samples: pd.DataFrame, outputs: npt.NDArray[np.float32]) -> None:
    if outputs.shape[1] != len(samples):
        raise ViewError(
            f"The kernels are of {outputs.shape[1]} {side} samples, but the table has {len(samples)}; compute the run again."
        )
    if len(pairs) and not 0 <= pairs[["first", "second"]].to_numpy().min() <= pairs[["first", "second"]].to_numpy().max() < len(
        samples
    ):
        raise ViewError(f"A {side} pair points outside the {len(samples)} samples; form the pairs from this table of samples.")
