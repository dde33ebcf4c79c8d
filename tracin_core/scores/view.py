"""One way to look at a run: its examples, a loss, weights and a measure, and every question that they answer."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.errors import ViewError
from tracin_core.recipe import Cotangent
from tracin_core.scores.examples import ALL_OUTPUTS, Examples, PairExamples, Rows, SampleExamples, TestQuantity, density_tables
from tracin_core.scores.exclusions import BLOCK_CELLS
from tracin_core.scores.influence import Array, Kernels, percentiles, require_known
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.relabel import relabel_effects
from tracin_core.scores.sample_losses import SampleLoss
from tracin_core.scores.selection import Selection

Together = Literal["mean", "sum"]
LOST: Final = 64 * float(np.finfo(np.float64).eps)  # of a sum's terms: rounding
NEARLY: Final = 1e-9  # of the largest influence; only those below it are looked at for having cancelled
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

    def tested_on(self, pairs: pd.DataFrame) -> Self:
        """The same with these pairs of its test samples for tests.

        Raises:
            ViewError: the tests are not pairs.
        """
        if not isinstance(self.test, PairExamples):
            raise ViewError("Only tests that are pairs can be exchanged for other pairs of their samples.")
        return self._but(test=replace(self.test, table=pairs, strangers=np.ones(len(pairs), dtype=bool)))

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

    def top_tests(self, train_id: str, k: int = 20) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The k tests that a training example helped most, and the k that it harmed most, strongest first, equals in the order of ids.

        Only tests on which it has an influence other than 0 are either. Columns: id, what names the test, influence (the view's measure),
        percentile (the training example's mid-rank among all of them on that test), contributions (as in `top`).

        Raises:
            NotFoundError: no such training example.
            ViewError: k is below 1.
        """
        if k < 1:
            raise ViewError(f"The {k} strongest tests are none; choose at least 1.")
        row = self.train_row(train_id)
        terms = self._terms_on_tests(row)
        dot = _summed_in_order(terms)
        measured = self._measured_on_tests(row, dot)
        signs = self._signs(dot, measured)
        helped, harmed = (
            strongest(self.test.table["id"], measured, k, ascending=ascending, among=np.flatnonzero(chosen))
            for chosen, ascending in ((signs > 0, False), (signs < 0, True))
        )
        return self._told_of_tests(helped, row, terms, measured), self._told_of_tests(harmed, row, terms, measured)

    def train_influence(self, train_id: str) -> Array:
        """The view's measure of one training example on every test: [M].

        Raises:
            NotFoundError: no such training example.
        """
        row = self.train_row(train_id)
        return self._measured_on_tests(row, _summed_in_order(self._terms_on_tests(row)))

    def _terms_on_tests(self, row: int) -> Array:
        """What each checkpoint and end of one training example adds to its dot influence on every test, weights included: [C, E, M]."""
        ends, positions, kernel = self.test.ends, self.train.ends[row], self.kernels.test_train
        coefficients, weighted = self.test.coefficients(), self._weighted(np.array([row]))[:, 0]
        towards = np.zeros((len(kernel), len(positions), len(ends)))
        for end in range(ends.shape[1]):
            towards += coefficients[:, None, :, end] * kernel[:, ends[:, end]][:, :, positions].transpose(0, 2, 1)
        return np.asarray(weighted[:, :, None] * towards)

    def _measured_on_tests(self, row: int, dot: Array) -> Array:
        """The measure of one training example on every test, from its dot influences; never more than a block of the table is held."""
        if self.measure == "rank":
            return np.concatenate([scores[row] for _, scores in self.blocks()])
        step = max(1, BLOCK_CELLS // max(self.kernels.test_train[:, 0].size, 1))
        rows = np.array([row])
        places = [slice(start, start + step) for start in range(0, len(dot), step)]
        return np.concatenate([self._measured(place, dot[None, place], rows)[0] for place in places])

    def _told_of_tests(self, tests: npt.NDArray[np.int64], row: int, terms: Array, measured: Array) -> pd.DataFrame:
        return (
            self.test.table.iloc[tests][list(self.test.shown)]
            .reset_index(drop=True)
            .assign(
                influence=measured[tests],
                percentile=[float(percentiles_of(self._dot(slice(test, test + 1))[:, 0], np.array([row]))[0]) for test in tests],
                contributions=pd.Series(terms.sum(axis=1).T[tests].tolist(), dtype=object),
            )
        )

    def group_influence(self, tests: Sequence[str], how: Together = "mean") -> Array:
        """The mean, or the sum, of the view's measure over the live ones of these tests: [N]. On a dead test every influence is 0.

        Raises:
            NotFoundError: no such test.
            ViewError: none of them is live.
        """
        return self._over(self._live_of(tests), how)[1]

    def top_of_group(self, tests: Sequence[str], k: int = 20, how: Together = "mean") -> tuple[pd.DataFrame, pd.DataFrame]:
        """The k strongest proponents and opponents of several tests together, by `group_influence`; columns and order as in `top`.

        Raises:
            NotFoundError, ViewError: as `group_influence`; or k is below 1.
        """
        if k < 1:
            raise ViewError(f"The {k} strongest pairs are none; choose at least 1.")
        live = self._live_of(tests)
        towards, measured = self._over(live, how)
        signs = self._incidence @ towards.ravel() if self.measure == "rank" else measured

        def told(rows: npt.NDArray[np.int64]) -> pd.DataFrame:
            terms = (self._weighted(rows) * towards[:, self.train.ends[rows]]).sum(axis=2).T
            return self._named(rows, signs, measured, terms)

        ids = self.train.table["id"]
        return (
            told(strongest(ids, measured, k, ascending=False, among=np.flatnonzero(signs > 0))),
            told(strongest(ids, measured, k, ascending=True, among=np.flatnonzero(signs < 0))),
        )

    def _live_of(self, tests: Sequence[str]) -> npt.NDArray[np.int64]:
        ids = self.test.table["id"]
        asked = np.flatnonzero(ids.isin(tests)).astype(np.int64)
        if len(asked) != len(set(tests)):  # a name that no test has, or several
            for test in tests:
                self.test_row(test)
        live = np.intersect1d(asked, self._live_tests())
        if live.size == 0:
            raise ViewError(
                f"None of the {len(asked)} test {self.test.noun}s chosen is live, so nothing has influence on them; choose others."
            )
        return live

    def _over(self, live: npt.NDArray[np.int64], how: Together) -> tuple[Array, Array]:
        """sum_f K_c a_f over these tests [C, n], and the measure over them [N]; both divided by their number for a mean.

        A sum of products is the product with a sum, so that no table of these tests is made for the measure dot.
        """
        require_known("way to take tests together", how, get_args(Together))
        kernel, share = self.kernels.test_train, 1 / live.size if how == "mean" else 1.0
        parts = self.test.incidence(np.full(len(kernel), share), kernel.shape[1])[live]
        towards = _through(parts, kernel)
        if self.measure == "dot":
            return towards, self._without_noise(np.asarray(self._incidence @ towards.ravel()), parts)
        total = np.zeros(len(self.train))
        step = max(1, BLOCK_CELLS // max(len(self.train), 1))
        for start in range(0, live.size, step):
            place: Rows = live[start : start + step]
            total += self._measured(place, self._dot(place)).sum(axis=1)
        return towards, total * share

    def _without_noise(self, values: Array, parts: Any) -> Array:
        """Influences on several tests, where those that cancel are 0: at most `LOST` of what the sizes of their terms add up to."""
        small = np.flatnonzero(np.abs(values) <= NEARLY * np.abs(values).max(initial=0.0))
        sizes = abs(self._incidence[small]) @ _through(abs(parts), np.abs(self.kernels.test_train)).ravel()
        values[small[np.abs(values[small]) <= LOST * sizes]] = 0.0
        return values

    def _weighted(self, rows: npt.NDArray[np.int64]) -> Array:
        """w_c a_c of these training examples: [C, rows, E]."""
        return np.asarray(self.checkpoint_weights[:, None, None] * self.train.coefficients(rows))

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
        return self._named(rows, dot, measured, self._terms(rows, test))

    def _named(self, rows: npt.NDArray[np.int64], ranked: Array, measured: Array, terms: Array) -> pd.DataFrame:
        return (
            self.train.table.iloc[rows][list(self.train.shown)]
            .reset_index(drop=True)
            .assign(
                influence=measured[rows],
                percentile=percentiles_of(ranked, rows),
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
        among: npt.NDArray[np.bool_] | None = None,
        k: int | None = None,
    ) -> pd.DataFrame:
        """The training examples by one value each, highest first (or lowest), equals by id, undefined values last.

        Columns: those of their table, score, percentile (mid-rank among the values that are not NaN).

        Args:
            cell: only pairs of this unordered angle pair, or samples of this group (twice), as `angle_grid` names them.
            among: only these examples, [N]; None: all. Percentiles stay those among all.
            k: only so many, and none whose value is NaN; None: all.
        """
        given = self._one_each(values)
        if k is not None and cell is None and among is None:
            rows = strongest(self.train.table["id"], given, k, ascending=ascending)
            return (
                self.train.table.iloc[rows].assign(score=given[rows], percentile=percentiles_of(given, rows)).reset_index(drop=True)
            )
        place = np.full(given.shape, np.nan)
        place[~np.isnan(given)] = percentiles(given[~np.isnan(given), None])[:, 0]
        table = self.train.table.assign(score=given, percentile=place)
        if among is not None:
            table = table[among]
        if cell is not None:
            table = table[in_cell(self.train, cell)]
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
                    f"its kernel is of logit(p_y), which fixes each label; {ALL_OUTPUTS}."
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
        frame = cells_of(self.train).assign(value=given)
        cells = frame.groupby(["low", "high"], observed=True)["value"].agg(n="count", mean="mean", median="median").reset_index()
        return cells.astype({"low": str, "high": str}) if isinstance(self.train, SampleExamples) else cells

    def test_cells(self) -> pd.DataFrame:
        """Per unordered angle pair of the test pairs, or group of test samples: low, high (as `angle_grid`), n, live."""
        frame = cells_of(self.test).assign(live=~self.dead_tests)
        cells = frame.groupby(["low", "high"], observed=True)["live"].agg(n="count", live="sum").reset_index()
        return cells.astype({"low": str, "high": str}) if isinstance(self.test, SampleExamples) else cells

    def tests_in(self, cell: tuple[Any, Any] | None) -> list[str]:
        """The ids of the tests of this cell, as `test_cells` names it; None: of all tests."""
        return self.test.table["id"][in_cell(self.test, cell)].tolist()

    def train_in(self, cell: tuple[Any, Any] | None) -> list[str]:
        """The ids of the training examples of this cell, as `angle_grid` names it; None: of all of them."""
        return self.train.table["id"][in_cell(self.train, cell)].tolist()


def cells_of(examples: Examples) -> pd.DataFrame:
    """Low and high of each example: its unordered angle pair in degrees, or the group that a sample is in, twice."""
    if isinstance(examples, SampleExamples):
        return pd.DataFrame({"low": examples.table["group"], "high": examples.table["group"]})
    angles = examples.table[["angle1", "angle2"]]
    return pd.DataFrame({"low": angles.min(axis=1), "high": angles.max(axis=1)})


def in_cell(examples: Examples, cell: tuple[Any, Any] | None) -> npt.NDArray[np.bool_]:
    """Which examples are of this cell; all of them where it is None."""
    if cell is None:
        return np.ones(len(examples), dtype=bool)
    own = cells_of(examples).astype(str) if isinstance(examples, SampleExamples) else cells_of(examples)
    return np.asarray((own["low"] == cell[0]) & (own["high"] == cell[1]), dtype=bool)


def _through(parts: Any, kernel: Array) -> Array:
    """sum_f K_c a_f of sparse a over (checkpoint, position), [tests, C m], and kernels [C, m, n]: [C, n]."""
    sums = np.asarray(parts.sum(axis=0)).reshape(len(kernel), -1)
    return np.stack([part @ own for part, own in zip(sums, kernel, strict=True)])


def _summed_in_order(terms: Array) -> Array:
    """The dot influence of terms [C, E, M]: [M], added in the order in which `influence` adds them, so that both have one sign."""
    total = np.zeros(terms.shape[2])
    for term in terms.reshape(-1, terms.shape[2]):
        total += term
    return total


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
