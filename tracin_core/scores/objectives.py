"""A training loss as a function of the outputs at the training positions: what replaying and refitting a training need.

    sum_e multiplicity_e weight_e L_e(outputs),     pull = its derivative = sum_e multiplicity_e weight_e a_e

Several trainings are followed side by side: outputs are [positions, R], one column each. Weights and multiplicities do not depend on the
outputs: a GHM weight stays what it was given as. A multiplicity counts copies and enters a mean loss's denominator; a weight does not.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tracin_core.errors import ViewError
from tracin_core.scores.curvature import (
    Array,
    pair_laplacian,
    pair_second_derivative,
    require_ends,
    sample_curvature,
    sample_second_derivative,
    softmax_curvature,
)
from tracin_core.scores.examples import ALL_OUTPUTS, Examples, PairExamples, SampleExamples
from tracin_core.scores.losses import PairLoss, pair_derivative, pair_loss
from tracin_core.scores.sample_losses import SampleLoss, sample_derivative, sample_loss

Rows = slice | npt.NDArray[np.int64]
ALL: Final = slice(None)


class Objective(ABC):
    """N examples over some positions of the outputs.

    Attributes:
        positions: how many outputs there are: n samples, or n k for k outputs each, position i k + c.
        examples: N.
        replays: R where a target or weight differs between the trainings, else 1.
    """

    @property
    @abstractmethod
    def positions(self) -> int: ...

    @property
    @abstractmethod
    def examples(self) -> int: ...

    @property
    @abstractmethod
    def replays(self) -> int: ...

    @abstractmethod
    def losses(self, outputs: Array) -> Array:
        """The loss of each example, weights included: [N, R]."""

    @abstractmethod
    def pull(self, outputs: Array, copies: Array, rows: Rows = ALL) -> Array:
        """sum over the examples in these rows of copies weight a: [positions, R]; copies is [rows, R or 1]."""

    @abstractmethod
    def derivatives(self, outputs: Array) -> Any:
        """weight a of each example at one training's outputs [positions], sparse: [N, positions]."""

    @abstractmethod
    def curvature(self, outputs: Array, multiplicity: Array) -> Array:
        """L of the Gauss-Newton curvature at one training's outputs [positions], dense: [positions, positions]."""

    @abstractmethod
    def membership(self) -> Any:
        """Which examples stand on each sample, sparse of 0 and 1: [n, N]."""

    @abstractmethod
    def require_smooth(self) -> None:
        """Raises ViewError unless the loss is convex with a continuous derivative."""


@dataclass(frozen=True)
class PairObjective(Objective):
    """Ranking pairs.

    Args:
        first, second: positions of each pair's samples, [N].
        target: +1 or -1, [N]; or [N, R], other targets in each training (a relabelling).
        samples: n.
        weight: [N] or [N, R]; None: 1. GHM losses need it: see `losses.ghm_weights`.

    Raises:
        ViewError: the arrays do not describe pairs, a target is neither +1 nor -1, or a GHM loss comes without weights.
    """

    loss: PairLoss
    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    target: npt.NDArray[Any]
    samples: int
    weight: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        require_ends(self.first, self.second, self.samples)
        wrong = self._targets[~np.isin(self._targets, (-1.0, 1.0))]
        if wrong.size:
            raise ViewError(f"A pair's target is {wrong[0]:g}; it is +1 where the first sample has the higher label, else -1.")
        if self.loss.is_ghm and self.weight is None:
            raise ViewError(f"{self.loss.name} weighs each pair by its density; give the pairs' weights, from ghm_weights.")
        _replays(self._targets, self._weights)

    @property
    def positions(self) -> int:
        return self.samples

    @property
    def examples(self) -> int:
        return len(self.first)

    @property
    def replays(self) -> int:
        return _replays(self._targets, self._weights)

    @cached_property
    def _targets(self) -> Array:
        return _columns("target", self.target, self.examples)

    @cached_property
    def _weights(self) -> Array:
        return _columns("weight", self.weight, self.examples)

    @cached_property
    def _ends(self) -> Any:
        """+1 at the first sample, -1 at the second: sparse [N, n]."""
        return pair_rows(self.first, self.second, np.ones(self.examples), self.samples)

    @cached_property
    def _spread(self) -> Any:
        return self._ends.T.tocsr()

    def losses(self, outputs: Array) -> Array:
        return pair_loss(self.loss, outputs[self.first], outputs[self.second], self._targets, self._weights)

    def pull(self, outputs: Array, copies: Array, rows: Rows = ALL) -> Array:
        first, second = outputs[self.first[rows]], outputs[self.second[rows]]
        slopes = pair_derivative(self.loss, first, second, self._targets[rows], self._weights[rows]) * copies
        spread = self._spread if isinstance(rows, slice) else self._ends[rows].T
        return np.asarray(spread @ slopes)

    def derivatives(self, outputs: Array) -> Any:
        _require_one(self.replays)
        slopes = pair_derivative(self.loss, outputs[self.first], outputs[self.second], self._targets[:, 0], self._weights[:, 0])
        return pair_rows(self.first, self.second, slopes, self.samples)

    def curvature(self, outputs: Array, multiplicity: Array) -> Array:
        _require_one(self.replays)
        ends = outputs[self.first], outputs[self.second]
        h = pair_second_derivative(self.loss, *ends, self._targets[:, 0], self._weights[:, 0])
        return pair_laplacian(self.first, self.second, h, self.samples, multiplicity)

    def membership(self) -> Any:
        return abs(self._spread)

    def require_smooth(self) -> None:
        if self.loss.name not in ("logistic", "squared_hinge"):
            raise ViewError(
                f"The loss {self.loss.name} has a kink, where its derivative is a dual variable and not a number; choose logistic or "
                f"squared_hinge."
            )


@dataclass(frozen=True)
class SampleObjective(Objective):
    """Samples with k outputs each.

    Args:
        targets: labels [n]; or numbers to meet, [n] or for k > 1 [n, k]. One axis more, [.., R], for other targets in each training.
            For a kernel of logit(p_y) the one output is that logit and every target is 1: binary_cross_entropy is then cross-entropy.
        outputs: k.
        weight: [n] or [n, R]; None: 1.
    """

    loss: SampleLoss
    targets: npt.NDArray[Any]
    outputs: int = 1
    weight: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        if self.targets.ndim not in (self._own_axes, self._own_axes + 1) or not self.targets.size:
            raise ViewError(
                f"Targets of shape {self.targets.shape} do not fit samples of {self.outputs} outputs under {self.loss.name}; give one row "
                f"per sample."
            )
        _replays(self._several_targets, self._weights)

    @property
    def _own_axes(self) -> int:
        """How many axes the targets of one training have."""
        return 1 if self.loss.is_of_label or self.outputs == 1 else 2

    @property
    def positions(self) -> int:
        return self.examples * self.outputs

    @property
    def examples(self) -> int:
        return len(self.targets)

    @property
    def replays(self) -> int:
        return _replays(self._several_targets, self._weights)

    @property
    def _several_targets(self) -> npt.NDArray[Any]:
        """[n, R or 1], or [n, k, R or 1]."""
        return self.targets if self.targets.ndim > self._own_axes else self.targets[..., None]

    @cached_property
    def _weights(self) -> Array:
        return _columns("weight", self.weight, self.examples)

    def _listed(self, outputs: Array, rows: Rows) -> tuple[Array, npt.NDArray[Any], tuple[int, int]]:
        """Outputs [samples R, k] and targets of these rows, replay by replay within a sample; and (samples, R)."""
        each = outputs.reshape(self.examples, self.outputs, -1)[rows].transpose(0, 2, 1)
        targets = np.moveaxis(self._several_targets[rows], -1, 1)
        targets = np.broadcast_to(targets, (*each.shape[:2], *targets.shape[2:]))
        return each.reshape(-1, self.outputs), targets.reshape(-1, *targets.shape[2:]), each.shape[:2]

    def losses(self, outputs: Array) -> Array:
        values, targets, shape = self._listed(outputs, ALL)
        return sample_loss(self.loss, values, targets).reshape(shape) * self._weights

    def pull(self, outputs: Array, copies: Array, rows: Rows = ALL) -> Array:
        values, targets, shape = self._listed(outputs, rows)
        slopes = sample_derivative(self.loss, values, targets).reshape(*shape, self.outputs).transpose(0, 2, 1)
        total = np.zeros((self.examples, self.outputs, shape[1]))
        # add.at, not +=: a batch drawn with replacement may hold a sample twice
        np.add.at(total, np.arange(self.examples)[rows], slopes * (self._weights[rows] * copies)[:, None, :])
        return total.reshape(self.positions, shape[1])

    def derivatives(self, outputs: Array) -> Any:
        _require_one(self.replays)
        slopes = self.pull(outputs[:, None], np.ones((self.examples, 1)))[:, 0]
        rows = np.repeat(np.arange(self.examples), self.outputs)
        return sparse.csr_array((slopes, (rows, np.arange(self.positions))), shape=(self.examples, self.positions))

    def curvature(self, outputs: Array, multiplicity: Array) -> Array:
        _require_one(self.replays)
        copies = multiplicity * self._weights[:, 0]
        if self.loss.name in ("cross_entropy", "label_smoothing"):
            return softmax_curvature(outputs.reshape(self.examples, self.outputs), copies)
        targets = np.asarray(self.targets, dtype=np.float64).ravel()
        return sample_curvature(sample_second_derivative(self.loss, outputs, targets), np.repeat(copies, self.outputs))

    def membership(self) -> Any:
        return sparse.eye_array(self.examples, format="csr")

    def require_smooth(self) -> None:
        if self.loss.name in ("focal", "generalized_cross_entropy"):
            raise ViewError(
                f"The loss {self.loss.name} is not convex, so a refit may end anywhere; choose a convex one, such as cross_entropy."
            )


def objective_of(train: Examples, checkpoint: int) -> Objective:
    """The training loss of these examples; a GHM weight is what the checkpoint in this place gives.

    Raises:
        ViewError: the outputs of the examples do not determine it.
    """
    if isinstance(train, PairExamples):
        weights = train.weights[checkpoint] if train.loss.is_ghm else None
        first, second = train.ends.T
        return PairObjective(train.loss, first, second, train.table["target"].to_numpy(), train.positions, weights)
    if isinstance(train, SampleExamples) and train.cotangent != "label_logit":
        outputs = 1 if train.cotangent == "score" else train.outputs.shape[2]
        return SampleObjective(train.loss, train.targets, outputs)
    raise ViewError(
        "The kernel of logit(p_y) follows the output of each sample's own label alone, which is not enough to replay a training; "
        f"{ALL_OUTPUTS}."
    )


def pair_rows(first: Any, second: Any, slopes: Any, samples: int) -> Any:
    """Each pair's a (e_first - e_second) as a row: sparse [N, n]. Slopes -t give the directions of falling margins."""
    a, ends = np.asarray(slopes, dtype=np.float64), np.stack([first, second], axis=1)
    starts = 2 * np.arange(len(ends) + 1)
    return sparse.csr_array((np.stack([a, -a], axis=1).ravel(), ends.ravel(), starts), shape=(len(ends), samples))


def _columns(what: str, given: Any, examples: int) -> Array:
    """[N, R or 1]; None: ones."""
    if given is None:
        return np.ones((examples, 1))
    values = np.asarray(given, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) != examples or not np.isfinite(values).all():
        raise ViewError(f"{examples} examples need a finite {what} each, [N] or [N, R]; these have the shape {np.shape(given)}.")
    return values


def _replays(*columns: npt.NDArray[Any]) -> int:
    """R of arrays whose last axis is R or 1 long each."""
    lengths = {array.shape[-1] for array in columns} - {1}
    if len(lengths) > 1:
        raise ViewError(
            f"Targets and weights are those of {' and '.join(map(str, sorted(lengths)))} trainings; give as many of each."
        )
    return lengths.pop() if lengths else 1


def _require_one(replays: int) -> None:
    if replays != 1:
        raise ViewError(f"The targets or weights are those of {replays} trainings; give those of one.")
