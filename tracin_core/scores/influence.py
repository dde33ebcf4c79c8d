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
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy

from tracin_core.errors import NotFoundError, ViewError
from tracin_core.scores.examples import ALL, Examples, PairExamples, Rows
from tracin_core.scores.exclusions import BLOCK_CELLS
from tracin_core.scores.losses import GhmTable

Array = npt.NDArray[np.float64]
Measure = Literal["dot", "cosine", "cosine_mean", "relative", "rank"]
CELL_BUDGET = 100_000_000
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
        """The same for some checkpoints; all of them in their order are these kernels themselves, not a copy."""
        if list(rows) == list(range(len(self.train_outputs))):
            return self
        return Kernels(*(getattr(self, name)[list(rows)] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class SummedKernels:
    """The layers' kernels summed, of each checkpoint: what a method maps to another kernel. float64."""

    train_train: Array  # [C, n, n]
    test_train: Array  # [C, m, n]
    test_test: Array  # [C, m, m]


KernelMap = Callable[["Influence", SummedKernels], SummedKernels]


class Influence:
    """The influences of training on test examples under one loss, one choice of checkpoints and weights. No gradient is computed.

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
        require_known("measure", measure, get_args(Measure))
        _require_weights(np.asarray(checkpoint_weights, dtype=float), len(kernels.train_outputs), measure)
        _require_layers(layers, kernels.train_train.shape[1])
        _require_fit("training", train, kernels.train_outputs, kernels.train_train.shape[-1])
        _require_fit("test", test, kernels.test_outputs, kernels.test_test.shape[-1])
        self.train, self.test, self.measure = train, test, measure
        self.checkpoint_weights, self.checkpoint_names = np.asarray(checkpoint_weights, dtype=float), list(checkpoint_names)
        self._kernels, self._kernel_map = kernels, kernel_map
        self._layers = range(kernels.train_train.shape[1]) if layers is None else list(layers)

    def mapped(self, kernel_map: KernelMap | None, *, checkpoint_weights: Array | None = None) -> Self:
        """The same on what a method makes of the kernels."""
        weights = self.checkpoint_weights if checkpoint_weights is None else checkpoint_weights
        return self._but(kernel_map=kernel_map, checkpoint_weights=weights)

    def _but(self, *, test: Examples | None = None, **changed: Any) -> Self:
        """The same with other tests, or other settings of `__init__`."""
        settings = {
            "checkpoint_weights": self.checkpoint_weights,
            "checkpoint_names": self.checkpoint_names,
            "measure": self.measure,
            "layers": list(self._layers),
            "kernel_map": self._kernel_map,
        }
        return type(self)(self.train, self.test if test is None else test, self._kernels, **{**settings, **changed})

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

    @cached_property
    def dead_train(self) -> npt.NDArray[np.bool_]:
        """Which training examples have no gradient at any checkpoint of the view: influence 0, cosine and relative undefined: [N]."""
        counted = self.checkpoint_weights != 0
        return np.asarray(~np.any(self.train.derivatives[counted] != 0, axis=0))

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

    def test_self_influence(self) -> Array:
        """The same of every test, in its test quantity: [M]."""
        return self._own_test.copy()

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
            raise ViewError(f"A block of {width} test {self.test.noun}s holds nothing; choose a width of at least 1.")
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

    def summed_influence(self, shares: npt.ArrayLike) -> Array:
        """One number per test: the sum of the influences of all training examples on it, each times its share: [M].

        A sum of products is the product with a sum, so that no table of influences is made.

        Raises:
            ViewError: the view does not measure dot, whose values alone add up; or there is not one share per training example.
        """
        self.require_dot()
        kernel = self.kernels.test_train
        summed = (self._incidence.T @ self._one_each(shares)).reshape(len(kernel), -1)
        towards = np.stack([own @ part for own, part in zip(kernel, summed, strict=True)])
        return np.asarray(np.einsum("cme,cme->m", self.test.coefficients(), towards[:, self.test.ends]))

    def require_dot(self) -> None:
        """Raises ViewError unless the view measures dot, whose values alone add up."""
        if self.measure != "dot":
            raise ViewError(f"Values of {self.measure} do not add up; choose the measure dot.")

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
        alive = ~self.dead_tests
        if self.measure in ("cosine", "cosine_mean"):  # a gradient that is lost in rounding has no direction
            alive &= (self._norms_test[self.checkpoint_weights != 0] > 0).any(axis=0)
        live = np.flatnonzero(alive)
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
            return ratio(dot, np.sqrt(self._own_train[rows])[:, None] * np.sqrt(self._own_test[tests])[None, :])
        if self.measure == "relative":
            return ratio(dot, np.sqrt(self._own_train[rows])[:, None])
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
            cosine = ratio(dot, np.sqrt(self._norms_train[c, rows])[:, None] * np.sqrt(self._norms_test[c, tests])[None, :])
            counted += ~np.isnan(cosine)
            total += np.where(np.isnan(cosine), 0.0, cosine)
        return ratio(total, counted)

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

    # ---- roll-ups to samples -------------------------------------------------------------------------------------------------

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

    def _towards_one(self, test: str | None) -> Array:
        """v_c of a test, or in the mean over live tests: [C, n]."""
        place: Rows = self._live_tests() if test is None else self._place(test)
        return np.asarray(self._towards(place).mean(axis=1)).reshape(len(self.checkpoint_weights), -1)

    @cached_property
    def _all_towards(self) -> Array:
        return self._towards(ALL)

    def _one_each(self, values: npt.ArrayLike) -> Array:
        given = np.asarray(values, dtype=float)
        if given.shape != (len(self.train),):
            raise ViewError(f"One value is needed for each of {len(self.train)} training {self.train.noun}s, not {given.shape}.")
        return given

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
    rows, noun = examples.rows_of(name), examples.noun
    if not rows:
        raise NotFoundError(f"There is no {side} {noun} '{name}' in this run; choose one from its list of {side} {noun}s.")
    if len(rows) > 1:
        raise ViewError(
            f"'{name}' names {len(rows)} {side} {noun}s of this run, whose samples' ids join to the same text; rename a sample."
        )
    return rows[0]


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
    return np.asarray(100 * (scipy.stats.rankdata(scores, method="average", axis=0) - 0.5) / len(scores))


def top_share(values: Array, share: float = 0.01) -> float:
    """How much of the sum of |values| the largest `share` of them holds (at least one of them); 0 where all are 0."""
    sizes = np.sort(np.abs(values))[::-1]
    total = float(sizes.sum())
    return float(sizes[: max(1, round(share * sizes.size))].sum()) / total if total else 0.0


def ratio(dot: Array, scale: Array) -> Array:
    """dot / scale, and NaN where the scale is 0: undefined, not 0."""
    return np.asarray(np.divide(dot, scale, out=np.full(dot.shape, np.nan), where=np.broadcast_to(scale > 0, dot.shape)))


def require_known(what: str, asked: str, known: Sequence[str]) -> None:
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
