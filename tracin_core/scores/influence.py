"""TracIn as algebra on cached tangent kernels (Pruthi, Liu, Kale, Sundararajan, NeurIPS 2020, arXiv 2002.08484).

    influence(e, e') = sum_c w_c <grad L(e'; theta_c), grad L(e; theta_c)> = sum_c w_c a_e^T K_c a_e'

with K_c[i, j] = <grad f(x_i), grad f(x_j)> and a_e = dL_e / df (`examples`). For a pair e = (i, j): a_e = (a, -a), so that

    influence((i,j), (p,q)) = sum_c w_c a a' (K[i,p] - K[i,q] - K[j,p] + K[j,q])
    self_influence((i,j))   = sum_c w_c a^2 (K[i,i] + K[j,j] - 2 K[i,j])

Positive: training on e lowered the loss of e' (proponent); negative: raised it (opponent). Kernels are float32 per layer group; sums are
float64, over layers and then checkpoints in their order.

Measures, with I = influence and S = self_influence, both summed over checkpoints first:

    dot          I
    cosine       I / sqrt(S_e S_e')      of the whole run; NaN where either example has no gradient
    cosine_mean  mean of the checkpoints' own cosines, over those of weight other than 0 where both examples have a gradient; NaN where
                 there is none. Another measure than cosine, and blind to the weights' sizes
    relative     I / sqrt(S_e)           Barshan, Brunet, Dziugaite 2020 (arXiv 2003.11630), without curvature; NaN where e has no gradient
    rank         mid-rank percentile of I over the training examples, per test: near 0 = most harmful; 50 throughout for a dead test

What would be large is never held: one test, one sample and self-influence are single products, and whatever goes over all tests goes
through them in blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from tracin_core.errors import NotFoundError, ViewError
from tracin_core.scores import exclusions as rules
from tracin_core.scores.examples import ALL, Cotangent, Examples, PairExamples, Rows, SampleExamples, TestQuantity, density_tables
from tracin_core.scores.losses import GhmTable, PairLoss
from tracin_core.scores.relabel import relabel_effects
from tracin_core.scores.sample_losses import SampleLoss

Array = npt.NDArray[np.float64]
Measure = Literal["dot", "cosine", "cosine_mean", "relative", "rank"]
SuspectScore = Literal["self_influence", "mean_loss"]
Progress = Callable[[int, int], None]
CELL_BUDGET = 100_000_000
BLOCK_CELLS = 4_000_000  # 32 MB of scores at a time
DEAD_RATIO = 16 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Kernels:
    """What the engine computed, for C checkpoints and L layer groups: n training samples, m test samples. float32.

    n and m stand for positions: with every one of k outputs kept apart (cotangent `outputs`) there are k for each sample.
    """

    train_train: npt.NDArray[np.float32]  # [C, L, n, n]
    test_train: npt.NDArray[np.float32]  # [C, L, m, n]
    test_test: npt.NDArray[np.float32]  # [C, L, m, m]
    train_outputs: npt.NDArray[np.float32]  # [C, n], or [C, n, k]
    test_outputs: npt.NDArray[np.float32]  # [C, m], or [C, m, k]

    def at(self, rows: Sequence[int]) -> "Kernels":
        """The same for some checkpoints."""
        return Kernels(*(getattr(self, name)[list(rows)] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class SummedKernels:
    """The layers' kernels summed, of each checkpoint: what a method maps to another kernel. float64."""

    train_train: Array  # [C, n, n]
    test_train: Array  # [C, m, n]
    test_test: Array  # [C, m, m]


KernelMap = Callable[["View", SummedKernels], SummedKernels]


class View:
    """The scores of one run under one loss, one choice of checkpoints and weights. Nothing here computes a gradient.

    Args:
        train, test: the examples of the two sides; their positions are those of the kernels.
        checkpoint_weights: w_c, [C].
        layers: places of the layer groups to sum; None: all of them.
        kernel_map: what a method makes of the summed kernels; None: they stay as they are.

    Raises:
        ViewError: the settings have no answer, or the tables do not fit the kernels.
    """

    def __init__(
        self,
        train: Examples,
        test: Examples,
        kernels: Kernels,
        *,
        checkpoint_weights: Array,
        checkpoint_names: Sequence[str],
        measure: Measure = "dot",
        layers: Sequence[int] | None = None,
        kernel_map: KernelMap | None = None,
    ) -> None:
        _require_known("measure", measure, get_args(Measure))
        _require_weights(np.asarray(checkpoint_weights, dtype=float), len(kernels.train_outputs), measure)
        _require_layers(layers, kernels.train_train.shape[1])
        _require_fit("training", train, kernels.train_outputs, kernels.train_train.shape[-1])
        _require_fit("test", test, kernels.test_outputs, kernels.test_test.shape[-1])
        self.train, self.test, self.measure = train, test, measure
        self.checkpoint_weights, self.checkpoint_names = np.asarray(checkpoint_weights, dtype=float), list(checkpoint_names)
        self._kernels, self._kernel_map = kernels, kernel_map
        self._layers = range(kernels.train_train.shape[1]) if layers is None else list(layers)
        self._kth_lowest: dict[tuple[int, bool], Array] = {}

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
        _require_known("test quantity", test_quantity, get_args(TestQuantity))
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
        _require_known("test quantity", test_quantity, get_args(TestQuantity))
        targets = train_samples[target].to_numpy(), test_samples[target].to_numpy()
        train = SampleExamples(train_samples, kernels.train_outputs, targets[0], loss, cotangent)
        test = SampleExamples(test_samples, kernels.test_outputs, targets[1], loss, cotangent, test_quantity)
        return cls(train, test, kernels, **settings)

    def mapped(self, kernel_map: KernelMap | None, *, checkpoint_weights: Array | None = None) -> "View":
        """The same view on what a method makes of the kernels."""
        return View(
            self.train,
            self.test,
            self._kernels,
            checkpoint_weights=self.checkpoint_weights if checkpoint_weights is None else checkpoint_weights,
            checkpoint_names=self.checkpoint_names,
            measure=self.measure,
            layers=list(self._layers),
            kernel_map=kernel_map,
        )

    # ---- the examples ------------------------------------------------------------------------------------------------------

    @property
    def train_pairs(self) -> pd.DataFrame:
        """The training examples, one row each."""
        return self.train.table

    @property
    def test_pairs(self) -> pd.DataFrame:
        """The test examples, one row each."""
        return self.test.table

    @property
    def train_samples(self) -> pd.DataFrame:
        return self.train.samples

    @property
    def test_samples(self) -> pd.DataFrame:
        return self.test.samples

    @property
    def train_derivatives(self) -> Array:
        """dL/ds_first of every training pair at every checkpoint: [C, N]."""
        return self.train.derivatives

    @property
    def test_derivatives(self) -> Array:
        """The same for the test quantity of every test pair: [C, M]."""
        return self.test.derivatives

    @property
    def train_losses(self) -> Array:
        """The loss of every training example at every checkpoint: [C, N]."""
        return self.train.losses

    @property
    def ghm_tables(self) -> tuple[GhmTable, ...]:
        """The density table at each checkpoint, from which GHM weights are read; none under another loss."""
        return self.train.densities if isinstance(self.train, PairExamples) else ()

    @cached_property
    def dead_tests(self) -> npt.NDArray[np.bool_]:
        """Which tests have no gradient at any checkpoint of the view, so that every influence on them is exactly 0: [M]."""
        counted = self.checkpoint_weights != 0
        return np.asarray(~np.any(self.test.derivatives[counted] != 0, axis=0))

    # ---- kernels ------------------------------------------------------------------------------------------------------------

    @cached_property
    def kernels(self) -> SummedKernels:
        """The layers' kernels summed in float64, in their order, as the view's method maps them."""
        if self._kernel_map is None:
            raw = self._kernels
            return SummedKernels(*(self._summed(kernel) for kernel in (raw.train_train, raw.test_train, raw.test_test)))
        return self._kernel_map(self, self.mapped(None).kernels)

    def _summed(self, kernel: npt.NDArray[np.float32]) -> Array:
        """[C, rows, columns]."""
        total = np.zeros((kernel.shape[0], *kernel.shape[2:]))
        for layer in self._layers:
            total += kernel[:, layer]
        return total

    # ---- scores -------------------------------------------------------------------------------------------------------------

    def self_influence(self) -> Array:
        """sum_c w_c |grad L(e; theta_c)|^2 of every training example: [N], in the units of the loss; >= 0 for weights >= 0."""
        return self._own_train.copy()

    def self_contributions(self) -> Array:
        """What each checkpoint adds to every self-influence, weights included: [C, N]."""
        return np.asarray(self.checkpoint_weights[:, None] * self._norms_train)

    @cached_property
    def _own_train(self) -> Array:
        return np.asarray(self.checkpoint_weights @ self._norms_train)

    @cached_property
    def _own_test(self) -> Array:
        return np.asarray(self.checkpoint_weights @ self._norms_test)

    @cached_property
    def _norms_train(self) -> Array:
        return squared_norms(self.train, self.kernels.train_train)

    @cached_property
    def _norms_test(self) -> Array:
        return squared_norms(self.test, self.kernels.test_test)

    def influence(self, test: str | None = None) -> Array:
        """The view's measure of every training example on one test [N], or on all of them [N, M].

        Raises:
            NotFoundError: no such test.
            ViewError: all of them would be more than the budget; use `blocks`.
        """
        if test is None:
            self._require_budget(len(self.train))
            return self._influence
        place = self._place(test)
        return self._measured(place, self._dot(place))[:, 0]

    @cached_property
    def _influence(self) -> Array:
        scores = self._measured(ALL, self._dot(ALL))
        scores.setflags(write=False)
        return scores

    def _require_budget(self, rows: int) -> None:
        cells = rows * len(self.test)
        if cells > CELL_BUDGET:
            raise ViewError(
                f"All influences are {rows:,} x {len(self.test):,} = {cells:,} numbers, more than {CELL_BUDGET:,}; ask for one test "
                f"{self.test.noun}, go through view.blocks(), or compute a run with fewer test {self.test.noun}s."
            )

    def blocks(self, width: int | None = None) -> Iterator[tuple[slice, Array]]:
        """The influence matrix, so many tests at a time: (their places, [N, width]). None: as many as fit 32 MB.

        Raises:
            ViewError: a width below 1.
        """
        if width is not None and width < 1:
            raise ViewError(f"A block of {width} test pairs holds nothing; choose a width of at least 1.")
        step = width or max(1, BLOCK_CELLS // max(len(self.train), 1))
        for start in range(0, len(self.test), step):
            place = slice(start, min(start + step, len(self.test)))
            yield place, self._measured(place, self._dot(place))

    def mean_influence(self) -> Array:
        """One number per training example: the view's measure, averaged over the live tests: [N].

        Raises:
            ViewError: every test is dead.
        """
        live = self._live_tests()
        if self.measure == "dot":  # a mean of products is the product with a mean
            return np.asarray(self._incidence @ self._towards(live).mean(axis=1))
        total = np.zeros(len(self.train))
        for place, scores in self.blocks():
            here = live[(live >= place.start) & (live < place.stop)] - place.start
            total += scores[:, here].sum(axis=1)
        return np.asarray(total / live.size)

    def worst_influence(self) -> Array:
        """One number per training example: its lowest measure over the live tests: [N]; below 0 where it harms any of them.

        Raises:
            ViewError: every test is dead.
        """
        live = self._live_tests()
        lowest = np.full(len(self.train), np.inf)
        for place, scores in self.blocks():
            here = live[(live >= place.start) & (live < place.stop)] - place.start
            lowest = np.minimum(lowest, scores[:, here].min(axis=1, initial=np.inf))
        return lowest

    def _live_tests(self) -> npt.NDArray[np.int64]:
        """Places of the tests that have a gradient at some checkpoint; refuses where there is none."""
        live = np.flatnonzero(~self.dead_tests)
        if live.size == 0:
            raise ViewError(
                f"All {len(self.test)} test {self.test.noun}s are dead under {self.test.described}, so there is nothing to average; "
                f"choose a larger margin, or the score difference as test quantity."
            )
        return live

    def _measured(self, tests: Rows, dot: Array, rows: Rows = ALL) -> Array:
        """The measure of these rows, from their dot influences on these tests."""
        if self.measure == "rank":
            return percentiles(dot)
        if self.measure == "cosine":
            return _ratio(dot, np.sqrt(self._own_train[rows])[:, None] * np.sqrt(self._own_test[tests])[None, :])
        if self.measure == "relative":
            return _ratio(dot, np.sqrt(self._own_train[rows])[:, None])
        if self.measure == "cosine_mean":
            return self._mean_cosine(tests, rows)
        return dot

    def _mean_cosine(self, tests: Rows, rows: Rows) -> Array:
        towards = self._towards(tests)
        total, counted = np.zeros((2, len(self.train.ends[rows]), towards.shape[1]))
        positions = self.kernels.train_train.shape[1]
        for c in np.flatnonzero(self.checkpoint_weights):
            here = slice(c * positions, (c + 1) * positions)
            dot = (self._unweighted[c][rows] if rows is not ALL else self._unweighted[c]) @ towards[here]
            cosine = _ratio(dot, np.sqrt(self._norms_train[c, rows])[:, None] * np.sqrt(self._norms_test[c, tests])[None, :])
            counted += ~np.isnan(cosine)
            total += np.where(np.isnan(cosine), 0.0, cosine)
        return _ratio(total, counted)

    @cached_property
    def _unweighted(self) -> list[Any]:
        """a_c(e) over positions, one sparse [N, n] per checkpoint."""
        positions, count = self.kernels.train_train.shape[1], len(self.checkpoint_weights)
        every = self.train.incidence(np.ones(count), positions).tocsc()
        return [every[:, c * positions : (c + 1) * positions].tocsr() for c in range(count)]

    def _dot(self, place: Rows) -> Array:
        """sum_c w_c a_e . v_c: [N, tests], one product with a few non-zeros per example and checkpoint."""
        return np.asarray(self._incidence @ self._towards(place))

    @cached_property
    def _incidence(self) -> Any:
        return self.train.incidence(self.checkpoint_weights, self.kernels.train_train.shape[1])

    def _towards(self, place: Rows) -> Array:
        """v_c = K_c a_e' of these tests, checkpoints below each other: [C n, tests]."""
        ends, kernel = self.test.ends[place], self.kernels.test_train
        coefficients = self.test.coefficients(place)
        v = np.zeros((len(kernel), len(ends), kernel.shape[2]))
        for end in range(ends.shape[1]):
            v += coefficients[:, :, end, None] * kernel[:, ends[:, end]]
        return np.ascontiguousarray(v.transpose(0, 2, 1)).reshape(-1, len(ends))

    def contributions(self, train: str, test: str) -> Array:
        """What each checkpoint adds to one dot influence, weights included: [C]."""
        return np.asarray(self._terms(np.array([self.train_row(train)]), test)[0])

    def checkpoint_influence(self, test: str) -> Array:
        """What each checkpoint adds to the dot influence of every training example on a test: [N, C]."""
        return self._terms(np.arange(len(self.train)), test)

    def _terms(self, rows: npt.NDArray[np.int64], test: str) -> Array:
        v = self._towards(self._place(test)).reshape(len(self.checkpoint_weights), -1)
        weighted = self.checkpoint_weights[:, None, None] * self.train.coefficients(rows)
        return np.asarray((weighted * v[:, self.train.ends[rows]]).sum(axis=2).T)

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
            for chosen, ascending in ((dot[:, 0] > 0, False), (dot[:, 0] < 0, True))
        )
        return self._explained(proponents, dot[:, 0], measured, test_id), self._explained(opponents, dot[:, 0], measured, test_id)

    def count(self, test_id: str, side: Literal["proponents", "opponents"]) -> int:
        """How many training examples are proponents, or opponents, of a test at all."""
        dot = self._dot(self._place(test_id))[:, 0]
        return int(np.sum(dot > 0 if side == "proponents" else dot < 0))

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
        cell: tuple[int, int] | None = None,
        k: int | None = None,
    ) -> pd.DataFrame:
        """The training examples by one value each, highest first (or lowest), equals by id, undefined values last.

        Columns: those of their table, score, percentile (mid-rank among the values that are not NaN).

        Args:
            cell: only pairs of this unordered angle pair.
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
        if cell is not None:
            low, high = table[["angle1", "angle2"]].min(axis=1), table[["angle1", "angle2"]].max(axis=1)
            table = table[(low == cell[0]) & (high == cell[1])]
        ordered = table.sort_values(["score", "id"], ascending=[ascending, True], ignore_index=True)
        return ordered if k is None else ordered.dropna(subset="score").head(k)

    def _one_each(self, values: npt.ArrayLike) -> Array:
        given = np.asarray(values, dtype=float)
        if given.shape != (len(self.train),):
            raise ViewError(f"One value is needed for each of {len(self.train)} training pairs, not {given.shape}.")
        return given

    # ---- roll-ups -----------------------------------------------------------------------------------------------------------

    def sample_influence(self) -> Array:
        """What removing a training sample with all its examples takes away: the sum of their dot influences: [n, M].

        r_x^T K a_e' with r_x = sum of a_e over the examples e of x, each as often as it was drawn (each pair stands with both of its
        samples); no pair x pair table is made.
        """
        self._require_budget(len(self.train.samples))
        return self._sample_influence.copy()

    @cached_property
    def _sample_influence(self) -> Array:
        total = np.zeros((len(self.train.samples), len(self.test)))
        towards = self._all_towards.reshape(len(self.checkpoint_weights), -1, len(self.test))
        for c, weight in enumerate(self.checkpoint_weights):
            total += weight * (self.sample_rows(c) @ towards[c])
        return total

    def sample_rows(self, checkpoint: int) -> Array:
        """r_x of every training sample at a checkpoint, without its weight: [n, positions]."""
        members, ends = self.train.members, self.train.ends
        shape = (len(self.train.samples), self.kernels.train_train.shape[1])
        values = self.train.coefficients_at(checkpoint) * self.train.multiplicity[:, None]
        total = np.zeros(shape[0] * shape[1])
        for member in members.T:
            for end in range(ends.shape[1]):
                total += np.bincount(member * shape[1] + ends[:, end], weights=values[:, end], minlength=total.size)
        return total.reshape(shape)

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

    def _towards_one(self, test: str | None) -> Array:
        """v_c of a test, or in the mean over live tests: [C, n]."""
        place: Rows = self._live_tests() if test is None else self._place(test)
        return np.asarray(self._towards(place).mean(axis=1)).reshape(len(self.checkpoint_weights), -1)

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
        """Per unordered angle pair of the training pairs: low, high (degrees), n, mean, median of the values that are not NaN."""
        given = self._one_each(values)
        low = np.minimum(self.train_pairs["angle1"].to_numpy(), self.train_pairs["angle2"].to_numpy())
        high = np.maximum(self.train_pairs["angle1"].to_numpy(), self.train_pairs["angle2"].to_numpy())
        frame = pd.DataFrame({"low": low, "high": high, "value": given})
        return frame.groupby(["low", "high"])["value"].agg(n="count", mean="mean", median="median").reset_index()

    # ---- choosing -----------------------------------------------------------------------------------------------------------

    def exclusions(
        self,
        threshold: float = -5.0,
        min_occurrences: int = 3,
        max_exclusions: int | None = 50,
        pair_mode: rules.PairMode = "ranking_pair",
    ) -> pd.DataFrame:
        """The harm rule (`exclusions`) on the view's measure: pairs, both samples of chosen pairs, or samples with all their pairs.

        What a measure leaves undefined, for want of a gradient, is no harm. Under `rank` a score is the percentile minus 50, and 0 where
        the influence is not negative: -45 asks for the lowest 5 %. Where the examples are samples there is one mode, `sample`.

        Raises:
            ExclusionError: the rule cannot be applied.
            ViewError: mode `sample` of pairs under another measure than dot; `rank` beyond the budget.
        """
        rules.check_rule(threshold, min_occurrences, max_exclusions, pair_mode)
        by_sample = self._by_sample(pair_mode)
        candidates = np.flatnonzero(self._kth(min_occurrences, by_sample=by_sample) < threshold)
        return rules.choose_pairs(
            None if by_sample else self._harm_of,
            self.train_pairs,
            self.test_pairs,
            threshold=threshold,
            min_occurrences=min_occurrences,
            max_exclusions=max_exclusions,
            pair_mode="sample" if by_sample else pair_mode,
            sample_ids=self.train_samples["id"].to_numpy() if by_sample else None,
            sample_scores=self._harm_of_sample if by_sample else None,
            candidates=candidates,
        )

    def sweep(
        self, min_occurrences: int = 3, pair_mode: rules.PairMode = "ranking_pair", progress: Progress | None = None
    ) -> rules.Sweep:
        """How many pairs and samples the harm rule touches, ready for any number of thresholds: `sweep.counts(thresholds)`.

        Prepared once for each `min_occurrences`, in blocks, without the matrix of all influences.

        Args:
            progress: told how many of how many blocks are done.

        Raises:
            ExclusionError: min_occurrences is below 1, or there is no such mode.
            ViewError: as `exclusions`.
        """
        rules.check_rule(0.0, min_occurrences, None, pair_mode)
        by_sample = self._by_sample(pair_mode)
        kth = self._kth(min_occurrences, by_sample=by_sample, progress=progress)
        if self.train.members.shape[1] == 1:
            return rules.Sweep(np.sort(kth), np.sort(kth))
        kept = np.flatnonzero(rules.first_of_each(self.train_pairs))
        first, second = self.train.members[kept].T
        if by_sample:
            return rules.sweep_of_samples(kth, first, second)
        return rules.sweep_of_pairs(kth[kept], first, second, len(self.train_samples))

    def removed(self, chosen: pd.DataFrame) -> npt.NDArray[np.bool_]:
        """Which training examples a list from `exclusions` takes out of a training: those it names, or all of the samples it names: [N]."""
        if "id1" in chosen.columns or self.train.members.shape[1] == 1:
            return self.train_pairs["id"].isin(chosen["id"]).to_numpy()
        return self.train_pairs[["id1", "id2"]].isin(chosen["id"].tolist()).any(axis=1).to_numpy()

    def suggested_threshold(self, min_occurrences: int = 3, pair_mode: rules.PairMode = "ranking_pair") -> float:
        """A threshold to begin with, on this run's own scale: about 2 % of the pairs (or samples) are harmful below it.

        Raises:
            ExclusionError, ViewError: as `sweep`.
        """
        rules.check_rule(0.0, min_occurrences, None, pair_mode)
        kth = self._kth(min_occurrences, by_sample=self._by_sample(pair_mode))
        return float(f"{rules.suggested_threshold(kth):.3g}")

    def threshold_at(self, *, quantile: float | None = None, robust_z: float | None = None) -> tuple[float, rules.Population]:
        """A threshold relative to the scores' own scale, and the population that it is taken over.

        Raises:
            ExclusionError: not exactly one of the two is given, or the scores have no scale.
            ViewError: all influences would be more than the budget.
        """
        if (quantile is None) == (robust_z is None):
            raise ViewError("Give either a quantile or a robust z-score for the threshold, and not both.")
        self._require_budget(len(self.train))
        scores = self._harm_of(np.arange(len(self.train)))[:, rules.first_of_each(self.test_pairs)]
        chosen = (
            rules.quantile_threshold(scores, quantile)
            if quantile is not None
            else rules.robust_threshold(scores, float(robust_z or 0))
        )
        return chosen, rules.population(scores)

    def _by_sample(self, pair_mode: str) -> bool:
        """Whether the rule goes over samples with all their examples."""
        by_sample = pair_mode == "sample" or self.train.members.shape[1] == 1
        if by_sample and self.train.members.shape[1] > 1 and self.measure != "dot":
            raise ViewError(
                f"Mode 'sample' adds up the influences of a sample's pairs, which {self.measure} values do not; choose the measure dot, or "
                f"another mode."
            )
        return by_sample

    def _kth(self, k: int, *, by_sample: bool, progress: Progress | None = None) -> Array:
        """Each training example's, or sample's, k-th lowest score over the distinct tests: one partition serves every count."""
        if (k, by_sample) not in self._kth_lowest:
            tests = np.flatnonzero(rules.first_of_each(self.test_pairs))
            rows = len(self.train_samples) if by_sample else len(self.train)
            if by_sample or self.measure == "rank":
                read = self._harm_of_sample if by_sample else self._harm_of
                parts: list[rules.Reader] = [lambda rows: read(rows)[:, tests]]
            else:
                width = max(1, 4 * BLOCK_CELLS // self._incidence.shape[1])
                parts = [self._harm_towards(tests[at : at + width]) for at in range(0, len(tests), width)]
            self._kth_lowest[k, by_sample] = rules.streamed_kth_lowest(parts, rows, k, len(tests), progress)
        return self._kth_lowest[k, by_sample]

    def _harm_towards(self, tests: npt.NDArray[np.int64]) -> rules.Reader:
        """Reads the scores of some rows on these tests, whose side of the product is formed when the first of them is asked for."""
        towards: list[Array] = []

        def read(rows: npt.NDArray[np.int64]) -> Array:
            if not towards:
                towards.append(self._towards(tests))
            return self._harm(rows, tests, towards[0])

        return read

    def _harm(self, rows: npt.NDArray[np.int64], tests: Rows, towards: Array) -> Array:
        """The measure of these rows on these tests, 0 where it is undefined."""
        every = len(rows) == len(self.train) and bool((np.diff(rows) > 0).all())
        incidence = self._incidence if every else self._incidence[rows]
        dot = np.asarray(incidence @ towards)
        if self.measure == "dot":
            return dot
        measured = self._measured(tests, dot, rows)
        return np.where(np.isnan(measured), 0.0, measured)

    def _harm_of(self, rows: npt.NDArray[np.int64]) -> Array:
        """The scores of these training examples on all tests, for the rule."""
        if self.measure == "rank":
            self._require_budget(len(self.train))
            return np.where(self._dots[rows] < 0, np.minimum(self._influence[rows] - 50, 0.0), 0.0)
        return self._harm(rows, ALL, self._all_towards)

    def _harm_of_sample(self, rows: npt.NDArray[np.int64]) -> Array:
        if self.train.members.shape[1] == 1:
            return self._harm_of(rows)
        self._require_budget(len(self.train.samples))
        return np.asarray(self._sample_influence[rows])

    @cached_property
    def _all_towards(self) -> Array:
        return self._towards(ALL)

    @cached_property
    def _dots(self) -> Array:
        return self._dot(ALL)

    def suspects(
        self, score: SuspectScore = "self_influence", threshold: float | None = None, quantile: float | None = None
    ) -> pd.DataFrame:
        """The suspect rule: training examples whose score lies strictly above a threshold, highest first. A list for review, not removal.

        Columns: id, of pairs id1, id2, and score.

        Args:
            score: self_influence, or mean_loss (the plain mean of the loss over the view's checkpoints).
            quantile: the threshold as this quantile of the scores of all training examples.

        Raises:
            ViewError: not exactly one of threshold and quantile, either is no number, or there is no such score.
        """
        _require_known("suspect score", score, get_args(SuspectScore))
        values = self._own_train if score == "self_influence" else self.train.losses.mean(axis=0)
        return self.suspects_by(values, threshold, quantile)

    def suspects_by(self, values: npt.ArrayLike, threshold: float | None = None, quantile: float | None = None) -> pd.DataFrame:
        """The suspect rule on any score of the training examples, one each; arguments, columns and errors as `suspects`."""
        if (threshold is None) == (quantile is None):
            raise ViewError("Give either a threshold or a quantile to the suspect rule, and not both.")
        if threshold is not None and not np.isfinite(threshold):
            raise ViewError(f"The suspect threshold is {threshold}; choose a number.")
        if quantile is not None and not 0 <= quantile <= 1:
            raise ViewError(f"The suspect quantile is {quantile}; choose a number between 0 and 1.")
        given = self._one_each(values)
        line = float(np.quantile(given, quantile)) if quantile is not None else float(threshold or 0.0)
        named = [name for name in ("id", "id1", "id2") if name in self.train_pairs]
        table = self.train_pairs[named].assign(score=given)
        return table[given > line].sort_values(["score", "id"], ascending=[False, True], ignore_index=True)

    # ---- names --------------------------------------------------------------------------------------------------------------

    def _place(self, test: str) -> slice:
        row = self.test_row(test)
        return slice(row, row + 1)

    def test_row(self, test: str) -> int:
        """The test's column.

        Raises:
            NotFoundError: no such test.
        """
        return _found(self.test, "test", test)

    def train_row(self, train: str) -> int:
        """The training example's row.

        Raises:
            NotFoundError: no such training example.
        """
        return _found(self.train, "training", train)


def _found(examples: Examples, side: str, name: str) -> int:
    row = examples.row(name)
    if row is None:
        noun = examples.noun
        raise NotFoundError(f"There is no {side} {noun} '{name}' in this run; choose one from its list of {side} {noun}s.")
    return row


def squared_norms(examples: Examples, kernels: Array) -> Array:
    """|grad L(e; theta_c)|^2 = a^T K a: [C, N]. A norm lost in the kernel's rounding is 0, never negative.

    Of a pair: a^2 (K_ii + K_jj - 2 K_ij), lost where it is at most 16 eps32 of a^2 (K_ii + K_jj).
    """
    ends = examples.ends
    norms = np.empty((len(kernels), len(ends)))
    for c, kernel in enumerate(kernels):
        coefficients, diagonal = examples.coefficients_at(c), np.diagonal(kernel)
        common = np.zeros(len(ends))
        mixed = np.zeros(len(ends))
        for one in range(ends.shape[1]):
            common += coefficients[:, one] ** 2 * diagonal[ends[:, one]]
            for two in range(one):
                mixed += 2 * coefficients[:, one] * coefficients[:, two] * kernel[ends[:, one], ends[:, two]]
        norms[c] = np.where(common + mixed <= DEAD_RATIO * common, 0.0, common + mixed)
    return norms


def block_self_influence(blocks: Array, slopes: Array, weights: Array) -> Array:
    """sum_c w_c a^T B_c a of samples whose k outputs have the products B_c [C, n, k, k] among themselves: [n], under any loss or label.

    Args:
        slopes: dL/d(outputs), [C, n, k] (`sample_derivative`).
    """
    return np.asarray(np.einsum("c,cna,cnab,cnb->n", weights, slopes, blocks, slopes, optimize=True))


def percentiles(scores: Array) -> Array:
    """Mid-rank percentile of each score in its column: the share of rows below it, ties half, in percent; near 0 = most harmful."""
    if scores.size == 0:
        return np.zeros_like(scores)
    return np.asarray(100 * (stats.rankdata(scores, method="average", axis=0) - 0.5) / len(scores))


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


def top_share(values: Array, share: float = 0.01) -> float:
    """How much of the sum of |values| the largest `share` of them holds (at least one of them); 0 where all are 0."""
    sizes = np.sort(np.abs(values))[::-1]
    total = float(sizes.sum())
    return float(sizes[: max(1, round(share * sizes.size))].sum()) / total if total else 0.0


def _ratio(dot: Array, scale: Array) -> Array:
    """dot / scale, and NaN where the scale is 0: undefined, not 0."""
    return np.asarray(np.divide(dot, scale, out=np.full(dot.shape, np.nan), where=np.broadcast_to(scale > 0, dot.shape)))


def _require_known(what: str, asked: str, known: Sequence[str]) -> None:
    if asked not in known:
        raise ViewError(f"There is no {what} '{asked}'; choose from {', '.join(known)}.")


def _require_weights(weights: Array, checkpoints: int, measure: str) -> None:
    if checkpoints == 0:
        raise ViewError("The view has no checkpoint; choose at least one.")
    if weights.shape != (checkpoints,) or not np.isfinite(weights).all():
        raise ViewError(f"{weights.size} weights were given for {checkpoints} checkpoints; give one finite number each.")
    if measure in ("cosine", "cosine_mean", "relative") and (weights < 0).any():
        raise ViewError(
            f"The measure {measure} divides by a self-influence, which a negative checkpoint weight ({weights.min():g}) can make negative; "
            f"choose weights of at least 0, or the measure dot."
        )


def _require_layers(layers: Sequence[int] | None, known: int) -> None:
    if layers is not None and (not layers or len(set(layers)) < len(layers) or not all(0 <= layer < known for layer in layers)):
        raise ViewError(f"The view asks for layers {list(layers)}; this run has 0 to {known - 1}: choose one or more, each once.")


def _require_samples(side: str, pairs: pd.DataFrame, samples: pd.DataFrame, outputs: npt.NDArray[np.float32]) -> None:
    if outputs.shape[1] != len(samples):
        raise ViewError(
            f"The kernels are of {outputs.shape[1]} {side} samples, but the table has {len(samples)}; compute the run again."
        )
    if len(pairs) and not 0 <= pairs[["first", "second"]].to_numpy().min() <= pairs[["first", "second"]].to_numpy().max() < len(
        samples
    ):
        raise ViewError(f"A {side} pair points outside the {len(samples)} samples; form the pairs from this table of samples.")


def _require_fit(side: str, examples: Examples, outputs: npt.NDArray[np.float32], positions: int) -> None:
    if outputs.shape[1] != len(examples.samples):
        raise ViewError(
            f"The kernels are of {outputs.shape[1]} {side} samples, but the table has {len(examples.samples)}; compute the run again."
        )
    if examples.positions != positions:
        raise ViewError(
            f"The kernels have {positions} {side} positions, but the samples' outputs stand on {examples.positions}; choose the cotangent "
            f"that the kernels were computed with."
        )
    if not np.isfinite(outputs).all():
        row, column = (int(place) for place in np.argwhere(~np.isfinite(outputs))[0][:2])
        sample = examples.samples["id"].iloc[column]
        raise ViewError(
            f"The output of sample '{sample}' at checkpoint {row + 1} of {len(outputs)} is {outputs[row, column]}; leave that "
            f"checkpoint out."
        )
