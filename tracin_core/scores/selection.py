"""Which training examples to leave out, or to look at: the harm rule and the suspect rule on the scores of one view.

The rules themselves are in `exclusions`; here they meet the scores, which are read in blocks, so that no table of all influences is held.
"""

from functools import cached_property
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.errors import ViewError
from tracin_core.scores import exclusions as rules
from tracin_core.scores.examples import ALL, Rows
from tracin_core.scores.exclusions import BLOCK_CELLS, Progress
from tracin_core.scores.influence import Array, Influence, require_known

SuspectScore = Literal["self_influence", "mean_loss"]


class Selection(Influence):
    """The influences, and what they choose."""

    @cached_property
    def _kth_lowest(self) -> dict[tuple[int, bool], Array]:
        return {}

    def exclusions(
        self,
        threshold: float = -5.0,
        min_occurrences: int = 3,
        max_exclusions: int | None = 50,
        pair_mode: rules.PairMode = "ranking_pair",
        among: npt.NDArray[np.int64] | None = None,
    ) -> pd.DataFrame:
        """The harm rule (`exclusions`) on the view's measure: pairs, both samples of chosen pairs, or samples with all their pairs.

        What a measure leaves undefined, for want of a gradient, is no harm. Under `rank` a score is the percentile minus 50, and 0 where
        the influence is not negative: -45 asks for the lowest 5 %. Where the examples are samples there is one mode, `sample`.

        Args:
            among: only these rows are candidates, of the training examples, or in mode `sample` of the training samples; None: all.

        Raises:
            ExclusionError: the rule cannot be applied.
            ViewError: mode `sample` of pairs under another measure than dot; `rank` beyond the budget.
        """
        rules.check_rule(threshold, min_occurrences, max_exclusions, pair_mode)
        by_sample = self._by_sample(pair_mode)
        candidates = np.flatnonzero(self._kth(min_occurrences, by_sample=by_sample) < threshold) if among is None else among
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

    def deciding_scores(self, min_occurrences: int = 3, pair_mode: rules.PairMode = "ranking_pair") -> Array:
        """Each candidate's `min_occurrences`-th lowest score: it is chosen iff that lies strictly below the threshold.

        One for each training example, [N]; in mode `sample` one for each training sample, [n].

        Raises:
            ExclusionError, ViewError: as `sweep`.
        """
        rules.check_rule(0.0, min_occurrences, None, pair_mode)
        return self._kth(min_occurrences, by_sample=self._by_sample(pair_mode)).copy()

    def removed(self, chosen: pd.DataFrame) -> npt.NDArray[np.bool_]:
        """Which training examples a list from `exclusions` takes out of a training: those it names, or all of the samples it names: [N]."""
        if self.train.members.shape[1] == 1:
            return self.train_pairs["id"].isin(chosen["id"]).to_numpy()
        if "id1" in chosen.columns:
            return np.isin(self._pair_keys(self.train.members), self._pair_keys(self._places(chosen)))
        return self.train_pairs[["id1", "id2"]].isin(chosen["id"].tolist()).any(axis=1).to_numpy()

    def named(self, chosen: pd.DataFrame) -> npt.NDArray[np.int64]:
        """How often a list names each training example: once; or a pair of a list of samples once for each of its ends: [N]."""
        if self.train.members.shape[1] == 1 or "id1" in chosen.columns:
            return self.removed(chosen).astype(np.int64)
        return self.train_pairs[["id1", "id2"]].isin(chosen["id"].tolist()).sum(axis=1).to_numpy(dtype=np.int64)

    def _places(self, chosen: pd.DataFrame) -> npt.NDArray[np.int64]:
        """Rows of the training samples that a list of pairs names; -1 for a sample that is not among them: [entries, 2]."""
        rows = pd.Series(np.arange(len(self.train_samples)), index=self.train_samples["id"])
        return np.stack([rows.reindex(chosen[end]).fillna(-1).to_numpy(dtype=np.int64) for end in ("id1", "id2")], axis=1)

    def _pair_keys(self, ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """One number per unordered pair."""
        return np.asarray(ends.min(axis=1) * len(self.train_samples) + ends.max(axis=1))

    def suggested_threshold(self, min_occurrences: int = 3, pair_mode: rules.PairMode = "ranking_pair") -> float:
        """A threshold to begin with, on this run's own scale: about 2 % of the pairs (or samples) are harmful below it.

        Raises:
            ExclusionError, ViewError: as `sweep`.
        """
        rules.check_rule(0.0, min_occurrences, None, pair_mode)
        kth = self._kth(min_occurrences, by_sample=self._by_sample(pair_mode))
        return float(f"{rules.suggested_threshold(kth):.3g}")

    def threshold_at(
        self, *, quantile: float | None = None, robust_z: float | None = None, pair_mode: rules.PairMode = "ranking_pair"
    ) -> tuple[float, rules.Population]:
        """A threshold relative to the scores' own scale, and the population that it is taken over: pairs, or samples in mode `sample`.

        Raises:
            ExclusionError: not exactly one of the two is given, or the scores have no scale.
            ViewError: all influences would be more than the budget.
        """
        if (quantile is None) == (robust_z is None):
            raise ViewError("Give either a quantile or a robust z-score for the threshold, and not both.")
        by_sample = self._by_sample(pair_mode)
        count = len(self.train_samples) if by_sample else len(self.train)
        self._require_budget(count)
        read = self._harm_of_sample if by_sample else self._harm_of
        scores = read(np.arange(count))[:, rules.first_of_each(self.test_pairs)]
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
        return self.suspects_by(self.suspect_scores(score), threshold, quantile)

    def suspect_scores(self, score: SuspectScore) -> Array:
        """What the suspect rule goes by, of each training example: [N]; the higher, the more suspect.

        Raises:
            ViewError: there is no such score.
        """
        require_known("suspect score", score, get_args(SuspectScore))
        return self.self_influence() if score == "self_influence" else np.asarray(self.train.losses.mean(axis=0))

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
