"""TracIn of ranking pairs as algebra on cached tangent kernels (Pruthi, Liu, Kale, Sundararajan, NeurIPS 2020, arXiv 2002.08484).

    influence(e, e') = sum_c w_c <grad L(e'; theta_c), grad L(e; theta_c)> = sum_c w_c a_e^T K_c a_e'

with K_c[i, j] = <grad f(x_i), grad f(x_j)> and a_e = dL_e / df. For a pair e = (i, j): a_e = (a, -a), so that

    influence((i,j), (p,q)) = sum_c w_c a a' (K[i,p] - K[i,q] - K[j,p] + K[j,q])
    self_influence((i,j))   = sum_c w_c a^2 (K[i,i] + K[j,j] - 2 K[i,j])

Positive: training on e lowered the loss of e' (proponent); negative: raised it (opponent). Kernels are float32 per layer group; sums are
float64, over layers and then checkpoints in their order.

Measures, with I = influence and S = self_influence, both summed over checkpoints first:

    dot        I
    cosine     I / sqrt(S_e S_e')        of the whole run; NaN where either example has no gradient
    relative   I / sqrt(S_e)             Barshan, Brunet, Dziugaite 2020 (arXiv 2003.11630), without curvature; NaN where e has no gradient
    rank       mid-rank percentile of I over the training pairs, per test pair: near 0 = most harmful; 50 throughout for a dead test pair
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse, stats

from tracin_core.errors import NotFoundError, ViewError
from tracin_core.scores import exclusions as rules
from tracin_core.scores.losses import GhmTable, PairLoss, ghm_table, ghm_weights, pair_derivative, pair_loss

Array = npt.NDArray[np.float64]
Measure = Literal["dot", "cosine", "relative", "rank"]
TestQuantity = Literal["loss", "score_difference"]
SuspectScore = Literal["self_influence", "mean_loss"]
CELL_BUDGET = 100_000_000
DEAD_RATIO = 16 * float(np.finfo(np.float32).eps)
TOP_COLUMNS = ["id", "id1", "id2", "angle1", "angle2", "influence", "percentile", "self_influence", "contributions"]


@dataclass(frozen=True)
class Kernels:
    """What the engine computed, for C checkpoints and L layer groups: n training samples, m test samples. float32."""

    train_train: npt.NDArray[np.float32]  # [C, L, n, n]
    test_train: npt.NDArray[np.float32]  # [C, L, m, n]
    test_test: npt.NDArray[np.float32]  # [C, L, m, m]
    train_outputs: npt.NDArray[np.float32]  # [C, n]
    test_outputs: npt.NDArray[np.float32]  # [C, m]

    def at(self, rows: Sequence[int]) -> "Kernels":
        """The same for some checkpoints."""
        return Kernels(*(getattr(self, name)[list(rows)] for name in self.__dataclass_fields__))


class View:
    """The scores of one run under one loss, one choice of checkpoints and weights. Nothing here computes a gradient.

    Args:
        train_pairs, test_pairs: as `all_pairs` makes them; `first` and `second` are positions in the samples of the kernels.
        checkpoint_weights: w_c, [C].
        layers: places of the layer groups to sum; None: all of them.

    Raises:
        ViewError: the settings have no answer, or the tables do not fit the kernels.
    """

    def __init__(
        self,
        train_pairs: pd.DataFrame,
        test_pairs: pd.DataFrame,
        kernels: Kernels,
        *,
        loss: PairLoss,
        checkpoint_weights: Array,
        checkpoint_names: Sequence[str],
        train_samples: pd.DataFrame,
        test_samples: pd.DataFrame,
        measure: Measure = "dot",
        test_quantity: TestQuantity = "loss",
        layers: Sequence[int] | None = None,
    ) -> None:
        _require_known("measure", measure, get_args(Measure))
        _require_known("test quantity", test_quantity, get_args(TestQuantity))
        _require_weights(np.asarray(checkpoint_weights, dtype=float), len(kernels.train_outputs), measure)
        _require_layers(layers, kernels.train_train.shape[1])
        _require_fit("training", train_pairs, train_samples, kernels.train_outputs)
        _require_fit("test", test_pairs, test_samples, kernels.test_outputs)
        self.train_pairs, self.test_pairs = train_pairs, test_pairs
        self.train_samples, self.test_samples = train_samples, test_samples
        self.loss, self.measure, self.test_quantity = loss, measure, test_quantity
        self.checkpoint_weights, self.checkpoint_names = np.asarray(checkpoint_weights, dtype=float), list(checkpoint_names)
        self._kernels = kernels
        self._layers = range(kernels.train_train.shape[1]) if layers is None else list(layers)
        self._test_rows = {str(pair): row for row, pair in enumerate(test_pairs["id"])}
        self._train_rows = {str(pair): row for row, pair in enumerate(train_pairs["id"])}

    # ---- what the loss asks of each pair ------------------------------------------------------------------------------------

    def _ends(self, outputs: npt.NDArray[np.float32], pairs: pd.DataFrame) -> tuple[Any, Any, Any]:
        return outputs[:, pairs["first"]], outputs[:, pairs["second"]], pairs["target"].to_numpy()

    @cached_property
    def train_derivatives(self) -> Array:
        """dL/ds_first of every training pair at every checkpoint: [C, N]."""
        first, second, target = self._ends(self._kernels.train_outputs, self.train_pairs)
        return np.stack(
            [pair_derivative(self.loss, a, b, target, u) for a, b, u in zip(first, second, self._train_weights, strict=True)]
        )

    @cached_property
    def test_derivatives(self) -> Array:
        """The same for the test quantity of every test pair: [C, M]. That of `score_difference`, -t (s_a - s_b), is -t: it never dies."""
        first, second, target = self._ends(self._kernels.test_outputs, self.test_pairs)
        if self.test_quantity == "score_difference":
            return np.broadcast_to(-target.astype(float), first.shape).copy()
        return np.stack(
            [pair_derivative(self.loss, a, b, target, u) for a, b, u in zip(first, second, self._test_weights, strict=True)]
        )

    @cached_property
    def train_losses(self) -> Array:
        """The loss of every training pair at every checkpoint: [C, N]."""
        first, second, target = self._ends(self._kernels.train_outputs, self.train_pairs)
        return np.stack([pair_loss(self.loss, a, b, target, u) for a, b, u in zip(first, second, self._train_weights, strict=True)])

    @cached_property
    def _train_weights(self) -> Array:
        return self._weights(self._kernels.train_outputs, self.train_pairs, guest=False)

    @cached_property
    def _test_weights(self) -> Array:
        return self._weights(self._kernels.test_outputs, self.test_pairs, guest=True)

    def _weights(self, outputs: npt.NDArray[np.float32], pairs: pd.DataFrame, *, guest: bool) -> Array:
        """Each pair's expected GHM weight at each checkpoint, from the training population; 1 for other losses."""
        if not self.loss.is_ghm:
            return np.ones((len(outputs), len(pairs)))
        first, second, target = self._ends(outputs, pairs)
        return np.stack(
            [
                ghm_weights(self.loss, table, a, b, target, guest=guest)
                for table, a, b in zip(self.ghm_tables, first, second, strict=True)
            ]
        )

    @cached_property
    def ghm_tables(self) -> list[GhmTable]:
        """The training pairs' density table at each checkpoint, from which GHM weights are read; each pair counts once."""
        first, second, target = self._ends(self._kernels.train_outputs, self.train_pairs)
        return [ghm_table(self.loss, a, b, target) for a, b in zip(first, second, strict=True)]

    # ---- kernels ------------------------------------------------------------------------------------------------------------

    @cached_property
    def _train_train(self) -> Array:
        return self._summed(self._kernels.train_train)

    @cached_property
    def _test_test(self) -> Array:
        return self._summed(self._kernels.test_test)

    @cached_property
    def _test_train(self) -> Array:
        return self._summed(self._kernels.test_train)

    def _summed(self, kernel: npt.NDArray[np.float32]) -> Array:
        """The layers' kernels summed in float64, in their order: [C, rows, columns]."""
        total = np.zeros((kernel.shape[0], *kernel.shape[2:]))
        for layer in self._layers:
            total += kernel[:, layer]
        return total

    # ---- scores -------------------------------------------------------------------------------------------------------------

    @cached_property
    def dead_tests(self) -> npt.NDArray[np.bool_]:
        """Which test pairs have no gradient at any checkpoint of the view, so that every influence on them is exactly 0: [M]."""
        counted = self.checkpoint_weights != 0
        return np.asarray(~np.any(self.test_derivatives[counted] != 0, axis=0))

    @cached_property
    def live_share(self) -> Array:
        """The share of training pairs that have a gradient, at each checkpoint: [C]."""
        return np.asarray((self.train_derivatives != 0).mean(axis=1))

    def self_influence(self) -> Array:
        """sum_c w_c |grad L(e; theta_c)|^2 of every training pair: [N], in the units of the loss; at least 0 for weights of at least 0."""
        return self._own_train.copy()

    @cached_property
    def _own_train(self) -> Array:
        return self._own(self._train_train, self.train_pairs, self.train_derivatives)

    @cached_property
    def _own_test(self) -> Array:
        return self._own(self._test_test, self.test_pairs, self.test_derivatives)

    def _own(self, kernels: Array, pairs: pd.DataFrame, derivatives: Array) -> Array:
        """sum_c w_c a^2 |g_i - g_j|^2. A norm lost in the kernel's rounding counts as 0, never as negative."""
        first, second = pairs["first"].to_numpy(), pairs["second"].to_numpy()
        total = np.zeros(len(pairs))
        for weight, kernel, slope in zip(self.checkpoint_weights, kernels, derivatives, strict=True):
            diagonal = np.diagonal(kernel)
            common = diagonal[first] + diagonal[second]
            norm = common - 2 * kernel[first, second]
            total += weight * slope**2 * np.where(norm <= DEAD_RATIO * common, 0.0, norm)
        return total

    def influence(self, test: str | None = None) -> Array:
        """The view's measure of every training pair on one test pair [N], or on all of them [N, M].

        Raises:
            NotFoundError: no such test pair.
            ViewError: all of them would be more than the budget; use `blocks`.
        """
        if test is None:
            self._require_budget(len(self.train_pairs))
            return self._influence
        place = self._place(test)
        return self._measured(place, self._dot(place))[:, 0]

    @cached_property
    def _influence(self) -> Array:
        scores = self._measured(slice(None), self._dot(slice(None)))
        scores.setflags(write=False)
        return scores

    def _require_budget(self, rows: int) -> None:
        cells = rows * len(self.test_pairs)
        if cells > CELL_BUDGET:
            raise ViewError(
                f"All influences are {rows:,} x {len(self.test_pairs):,} = {cells:,} numbers, more than {CELL_BUDGET:,}; ask for one test "
                f"pair, go through view.blocks(), or compute a run with fewer test pairs."
            )

    def blocks(self, width: int = 64) -> Iterator[tuple[slice, Array]]:
        """The influence matrix, so many test pairs at a time: (their places, [N, width])."""
        if width < 1:
            raise ViewError(f"A block of {width} test pairs holds nothing; choose a width of at least 1.")
        for start in range(0, len(self.test_pairs), width):
            place = slice(start, min(start + width, len(self.test_pairs)))
            yield place, self._measured(place, self._dot(place))

    def mean_rank(self) -> Array:
        """One number per training pair: its mid-rank percentile, averaged over the live test pairs; near 0 = most harmful: [N].

        Raises:
            ViewError: every test pair is dead.
        """
        live = self._live_tests()
        total = np.zeros(len(self.train_pairs))
        for row in live:
            total += percentiles(self._dot(slice(row, row + 1)))[:, 0]
        return np.asarray(total / live.size)

    def mean_influence(self) -> Array:
        """One number per training pair: the view's measure, averaged over the live test pairs: [N].

        Raises:
            ViewError: every test pair is dead.
        """
        live = self._live_tests()
        total = np.zeros(len(self.train_pairs))
        for place, scores in self.blocks():
            here = live[(live >= place.start) & (live < place.stop)] - place.start
            total += scores[:, here].sum(axis=1)
        return np.asarray(total / live.size)

    def worst_influence(self) -> Array:
        """One number per training pair: its lowest measure over the live test pairs: [N]; below 0 where it harms any of them.

        Raises:
            ViewError: every test pair is dead.
        """
        live = self._live_tests()
        lowest = np.full(len(self.train_pairs), np.inf)
        for place, scores in self.blocks():
            here = live[(live >= place.start) & (live < place.stop)] - place.start
            lowest = np.minimum(lowest, scores[:, here].min(axis=1, initial=np.inf))
        return lowest

    def _live_tests(self) -> npt.NDArray[np.int64]:
        """Places of the test pairs that have a gradient at some checkpoint; refuses where there is none."""
        live = np.flatnonzero(~self.dead_tests)
        if live.size == 0:
            raise ViewError(
                f"All {len(self.test_pairs)} test pairs are dead under {self.loss.describe()}, so there is nothing to average; choose a "
                f"larger margin, or the score difference as test quantity."
            )
        return live

    def _measured(self, place: slice, dot: Array) -> Array:
        """The measure, from the dot influences on the test pairs of this place."""
        if self.measure == "rank":
            return percentiles(dot)
        if self.measure == "cosine":
            return _ratio(dot, np.sqrt(self._own_train)[:, None] * np.sqrt(self._own_test[place])[None, :])
        if self.measure == "relative":
            return _ratio(dot, np.sqrt(self._own_train)[:, None])
        return dot

    def _dot(self, place: slice) -> Array:
        """sum_c w_c a_e (v_c[i] - v_c[j]): [N, tests], one product with two non-zeros per pair and checkpoint."""
        return np.asarray(self._weighted_gradients @ self._towards(place))

    @cached_property
    def _weighted_gradients(self) -> Any:
        """w_c a_e of every training pair over (checkpoint, sample), checkpoints in their order: sparse [N, C n]."""
        weighted = self.checkpoint_weights[:, None] * self.train_derivatives
        samples = len(self.train_samples)
        ends = self.train_pairs[["first", "second"]].to_numpy()
        columns = (samples * np.arange(len(weighted))[:, None, None] + ends[None]).transpose(1, 0, 2).ravel().astype(np.int32)
        values = np.stack([weighted, -weighted], axis=2).transpose(1, 0, 2).ravel()
        starts = 2 * len(weighted) * np.arange(len(ends) + 1, dtype=np.int64)
        return sparse.csr_array((values, columns, starts), shape=(len(ends), samples * len(weighted)))

    def _towards(self, place: slice) -> Array:
        """v_c = a_e' (K_c[:, p] - K_c[:, q]) of these test pairs, checkpoints below each other: [C n, tests]."""
        p, q = self.test_pairs["first"].to_numpy()[place], self.test_pairs["second"].to_numpy()[place]
        slopes = self.test_derivatives[:, place]
        v = slopes[:, :, None] * (self._test_train[:, p] - self._test_train[:, q])
        return np.ascontiguousarray(v.transpose(0, 2, 1)).reshape(-1, len(p))

    def contributions(self, train: str, test: str) -> Array:
        """What each checkpoint adds to one dot influence, weights included: [C]."""
        return np.asarray(self._terms(np.array([self.train_row(train)]), test)[0])

    def _terms(self, rows: npt.NDArray[np.int64], test: str) -> Array:
        """What each checkpoint adds to the dot influence of these training pairs on a test pair: [rows, C]."""
        v = self._towards(self._place(test)).reshape(len(self.checkpoint_weights), -1)
        first, second = (self.train_pairs[end].to_numpy()[rows] for end in ("first", "second"))
        weighted = self.checkpoint_weights[:, None] * self.train_derivatives[:, rows]
        return np.asarray((weighted * (v[:, first] - v[:, second])).T)

    def top(self, test_id: str, k: int = 20) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The k strongest proponents and the k strongest opponents of a test pair, strongest first; equals in the order of their ids.

        Only pairs with an influence other than 0 are either. Columns: id, id1, id2, angle1, angle2, influence (the view's measure),
        percentile (mid-rank, see `percentiles`), self_influence, contributions (what each checkpoint adds to the dot influence, weights
        included).

        Raises:
            NotFoundError: no such test pair.
            ViewError: k is below 1.
        """
        if k < 1:
            raise ViewError(f"The {k} strongest pairs are none; choose at least 1.")
        place = self._place(test_id)
        dot = self._dot(place)
        table = pd.DataFrame(
            {"influence": self._measured(place, dot)[:, 0], "percentile": percentiles(dot)[:, 0], "self_influence": self._own_train}
        )
        table = self.train_pairs[["id", "id1", "id2", "angle1", "angle2"]].reset_index(drop=True).join(table)
        sides = (dot[:, 0] > 0, False), (dot[:, 0] < 0, True)
        proponents, opponents = (
            table[chosen].dropna(subset="influence").sort_values(["influence", "id"], ascending=[ascending, True]).head(k)
            for chosen, ascending in sides
        )
        return self._explained(proponents, test_id), self._explained(opponents, test_id)

    def count(self, test_id: str, side: Literal["proponents", "opponents"]) -> int:
        """How many training pairs are proponents, or opponents, of a test pair at all."""
        dot = self._dot(self._place(test_id))[:, 0]
        return int(np.sum(dot > 0 if side == "proponents" else dot < 0))

    def _explained(self, ranked: pd.DataFrame, test: str) -> pd.DataFrame:
        terms = self._terms(ranked.index.to_numpy(), test)
        return ranked.assign(contributions=pd.Series(terms.tolist(), index=ranked.index, dtype=object))[TOP_COLUMNS].reset_index(
            drop=True
        )

    # ---- roll-ups -----------------------------------------------------------------------------------------------------------

    def sample_influence(self) -> Array:
        """What removing a training sample with all its pairs takes away: the sum of its pairs' dot influences: [n, M].

        r_x^T K a_e' with r_x = sum of a_e over the pairs e of x (each pair stands with both of its samples); no pair x pair table is made.
        """
        self._require_budget(len(self.train_samples))
        ends = self.train_pairs[["first", "second"]].to_numpy()
        pairs = len(ends)
        member = sparse.csr_array(
            (np.ones(2 * pairs), (ends.T.ravel(), np.tile(np.arange(pairs), 2))), shape=(len(self.train_samples), pairs)
        )
        return np.asarray((member @ self._weighted_gradients) @ self._towards(slice(None)))

    def angle_grid(self, values: npt.ArrayLike) -> pd.DataFrame:
        """Per unordered angle pair of the training pairs: low, high (degrees), n, mean, median of the values that are not NaN."""
        given = self._one_each(values)
        low = np.minimum(self.train_pairs["angle1"].to_numpy(), self.train_pairs["angle2"].to_numpy())
        high = np.maximum(self.train_pairs["angle1"].to_numpy(), self.train_pairs["angle2"].to_numpy())
        frame = pd.DataFrame({"low": low, "high": high, "value": given})
        return frame.groupby(["low", "high"])["value"].agg(n="count", mean="mean", median="median").reset_index()

    def _one_each(self, values: npt.ArrayLike) -> Array:
        given = np.asarray(values, dtype=float)
        if given.shape != (len(self.train_pairs),):
            raise ViewError(f"One value is needed for each of {len(self.train_pairs)} training pairs, not {given.shape}.")
        return given

    def ranked(self, values: npt.ArrayLike, *, ascending: bool = False, cell: tuple[int, int] | None = None) -> pd.DataFrame:
        """The training pairs by one value each, highest first (or lowest), equals by id; those of one angle pair, if one is named.

        Columns: those of `train_pairs`, score, percentile (mid-rank among the values that are not NaN).
        """
        given = self._one_each(values)
        place = np.full(given.shape, np.nan)
        place[~np.isnan(given)] = percentiles(given[~np.isnan(given), None])[:, 0]
        table = self.train_pairs.assign(score=given, percentile=place)
        if cell is not None:
            table = table[
                (table[["angle1", "angle2"]].min(axis=1) == cell[0]) & (table[["angle1", "angle2"]].max(axis=1) == cell[1])
            ]
        return table.sort_values(["score", "id"], ascending=[ascending, True], ignore_index=True)

    # ---- choosing -----------------------------------------------------------------------------------------------------------

    def exclusions(
        self,
        threshold: float = -5.0,
        min_occurrences: int = 3,
        max_exclusions: int | None = 50,
        pair_mode: rules.PairMode = "ranking_pair",
    ) -> pd.DataFrame:
        """The harm rule (`scores/exclusions.py`): pairs, both samples of chosen pairs, or samples with all their pairs.

        Raises:
            ExclusionError: the rule cannot be applied.
            ViewError: the view's measure is not the dot product, or the table would be more than the budget.
        """
        rules.check_rule(threshold, min_occurrences, max_exclusions, pair_mode)
        self._require_dot()
        samples = pair_mode == "sample"
        return rules.choose_pairs(
            None if samples else self.influence(),
            self.train_pairs,
            self.test_pairs,
            threshold=threshold,
            min_occurrences=min_occurrences,
            max_exclusions=max_exclusions,
            pair_mode=pair_mode,
            sample_ids=self.train_samples["id"].to_numpy() if samples else None,
            sample_scores=self.sample_influence() if samples else None,
        )

    def sweep(self, min_occurrences: int = 3, pair_mode: rules.PairMode = "ranking_pair") -> rules.Sweep:
        """How many pairs and samples the harm rule touches, ready for any number of thresholds: `sweep.counts(thresholds)`.

        Raises:
            ExclusionError: min_occurrences is below 1, or there is no such mode.
            ViewError: as `exclusions`.
        """
        rules.check_rule(0.0, min_occurrences, None, pair_mode)
        self._require_dot()
        counted = rules.first_of_each(self.test_pairs)
        kept = rules.first_of_each(self.train_pairs)
        first, second = self.train_pairs["first"].to_numpy()[kept], self.train_pairs["second"].to_numpy()[kept]
        if pair_mode == "sample":
            return rules.sweep_of_samples(rules.kth_lowest(self.sample_influence()[:, counted], min_occurrences), first, second)
        scores = self.influence()
        once = scores if kept.all() and counted.all() else scores[np.ix_(kept, counted)]
        return rules.sweep_of_pairs(rules.kth_lowest(once, min_occurrences), first, second, len(self.train_samples))

    def removed(self, chosen: pd.DataFrame) -> npt.NDArray[np.bool_]:
        """Which training pairs a list from `exclusions` takes out of a training: the pairs it names, or all pairs of the samples: [N]."""
        if "id1" in chosen.columns:
            return self.train_pairs["id"].isin(chosen["id"]).to_numpy()
        return self.train_pairs[["id1", "id2"]].isin(chosen["id"].tolist()).any(axis=1).to_numpy()

    def suggested_threshold(self, min_occurrences: int = 3, pair_mode: rules.PairMode = "ranking_pair") -> float:
        """A threshold to begin with, on this run's own scale: about 2 % of the pairs (or samples) are harmful below it.

        Raises:
            ExclusionError, ViewError: as `sweep`.
        """
        rules.check_rule(0.0, min_occurrences, None, pair_mode)
        self._require_dot()
        counted = rules.first_of_each(self.test_pairs)
        scores = self.sample_influence() if pair_mode == "sample" else self.influence()
        return float(f"{rules.suggested_threshold(scores[:, counted], min_occurrences):.3g}")

    def _require_dot(self) -> None:
        if self.measure != "dot":
            raise ViewError(
                f"The harm rule's threshold is an influence, but this view measures {self.measure}; choose the measure dot."
            )

    def suspects(
        self, score: SuspectScore = "self_influence", threshold: float | None = None, quantile: float | None = None
    ) -> pd.DataFrame:
        """The suspect rule: training pairs whose score lies strictly above a threshold, highest first. A list for review, not for removal.

        Columns id, id1, id2, score.

        Args:
            score: self_influence, or mean_loss (the plain mean of the loss over the view's checkpoints).
            quantile: the threshold as this quantile of the scores of all training pairs.

        Raises:
            ViewError: not exactly one of threshold and quantile, either is no number, or there is no such score.
        """
        _require_known("suspect score", score, get_args(SuspectScore))
        if (threshold is None) == (quantile is None):
            raise ViewError("Give either a threshold or a quantile to the suspect rule, and not both.")
        if threshold is not None and not np.isfinite(threshold):
            raise ViewError(f"The suspect threshold is {threshold}; choose a number.")
        if quantile is not None and not 0 <= quantile <= 1:
            raise ViewError(f"The suspect quantile is {quantile}; choose a number between 0 and 1.")
        values = self._own_train if score == "self_influence" else self.train_losses.mean(axis=0)
        line = float(np.quantile(values, quantile)) if quantile is not None else float(threshold or 0.0)
        table = self.train_pairs[["id", "id1", "id2"]].assign(score=values)
        return table[values > line].sort_values(["score", "id"], ascending=[False, True], ignore_index=True)

    # ---- names --------------------------------------------------------------------------------------------------------------

    def _place(self, test: str) -> slice:
        row = self.test_row(test)
        return slice(row, row + 1)

    def test_row(self, test: str) -> int:
        """The test pair's column."""
        if test not in self._test_rows:
            raise NotFoundError(f"There is no test pair '{test}' in this run; choose one from its list of test pairs.")
        return self._test_rows[test]

    def train_row(self, train: str) -> int:
        """The training pair's row."""
        if train not in self._train_rows:
            raise NotFoundError(f"There is no training pair '{train}' in this run; choose one from its list of training pairs.")
        return self._train_rows[train]


def percentiles(scores: Array) -> Array:
    """Mid-rank percentile of each score in its column: the share of rows below it, ties half, in percent; near 0 = most harmful."""
    if scores.size == 0:
        return np.zeros_like(scores)
    return np.asarray(100 * (stats.rankdata(scores, method="average", axis=0) - 0.5) / len(scores))


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
    if measure in ("cosine", "relative") and (weights < 0).any():
        raise ViewError(
            f"The measure {measure} divides by a self-influence, which a negative checkpoint weight ({weights.min():g}) can make negative; "
            f"choose weights of at least 0, or the measure dot."
        )


def _require_layers(layers: Sequence[int] | None, known: int) -> None:
    if layers is not None and (not layers or len(set(layers)) < len(layers) or not all(0 <= layer < known for layer in layers)):
        raise ViewError(f"The view asks for layers {list(layers)}; this run has 0 to {known - 1}: choose one or more, each once.")


def _require_fit(side: str, pairs: pd.DataFrame, samples: pd.DataFrame, outputs: npt.NDArray[np.float32]) -> None:
    if outputs.shape[1] != len(samples):
        raise ViewError(
            f"The kernels are of {outputs.shape[1]} {side} samples, but the table has {len(samples)}; compute the run again."
        )
    if len(pairs) and not 0 <= pairs[["first", "second"]].to_numpy().min() <= pairs[["first", "second"]].to_numpy().max() < len(
        samples
    ):
        raise ViewError(f"A {side} pair points outside the {len(samples)} samples; form the pairs from this table of samples.")
    if not np.isfinite(outputs).all():
        row, column = (int(place) for place in np.argwhere(~np.isfinite(outputs))[0])
        sample = samples["id"].iloc[column]
        raise ViewError(
            f"The output of sample '{sample}' at checkpoint {row + 1} of {len(outputs)} is {outputs[row, column]}; leave that "
            f"checkpoint out."
        )
