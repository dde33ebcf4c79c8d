"""Representer points: a model's outputs as sums over its training examples, by a refit of the last layer.

Yeh, Kim, Yen, Ravikumar 2018, arXiv 1811.09720. With the features h of the last linear layer and K_h[i,j] = h_i . h_j, the minimum of
(1/N) sum_e L_e + lambda |W|^2 over that layer's weights W has

    f(x) = sum_i alpha_i K_h[x,i],      alpha = -(1 / (2 lambda N)) sum_e multiplicity_e a_e,      N = sum_e multiplicity_e

This holds at the minimum alone, and training does not end there: the layer is refitted on the kernel until it does. Newton's method solves
r(K_h alpha) + 2 lambda N alpha = 0, r = sum_e multiplicity_e a_e, by steps of -(L K_h + 2 lambda N I)^-1 times the left side. What is then
explained is the refitted model: hold its outputs against those of the trained one.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy
from scipy import linalg, special

from tracin_core.errors import ViewError
from tracin_core.scores.curvature import Array
from tracin_core.scores.examples import PairExamples, SampleExamples
from tracin_core.scores.influence import SummedKernels
from tracin_core.scores.objectives import Objective, objective_of
from tracin_core.scores.sample_losses import sample_derivative
from tracin_core.scores.view import View

DEFAULT_RIDGE: Final = 1e-3
HALVINGS = 40
RANK = 1e-7  # of the largest eigenvalue; below it a kernel of single precision holds rounding


@dataclass(frozen=True)
class Representers:
    """The refitted last layer.

    Attributes:
        values: what one copy of each training example adds to each test output, [N, m]; times the multiplicities they add up to it.
        alpha: of each position, all copies of all examples on it together: [n].
        train, test: outputs of the refitted model, [n] and [m].
        residual: |r + 2 lambda N alpha| / (|r| + |2 lambda N alpha|): 0 at the minimum, 1 where nothing holds.
        steps: of Newton's method.
    """

    values: Array
    alpha: Array
    train: Array
    test: Array
    residual: float
    steps: int


def representer_points(
    train_train: npt.ArrayLike,
    test_train: npt.ArrayLike,
    objective: Objective,
    *,
    ridge: float,
    multiplicity: npt.ArrayLike | None = None,
    tolerance: float = 1e-10,
    max_steps: int = 100,
) -> Representers:
    """The last layer is refitted and its outputs are sums over the training examples.

    Args:
        train_train, test_train: K_h, [n, n] and [m, n]; with a bias h has a 1 more, and the ridge holds the bias too. For k outputs per
            sample `np.kron(K_h, np.eye(k))`, position i k + c.
        ridge: lambda.
        multiplicity: [N]; None: 1.
        tolerance: of the residual.

    Raises:
        ViewError: the loss is not smooth and convex, the ridge is not above 0, the parts do not fit, or the refit did not converge.
    """
    objective.require_smooth()
    _require_ridge(ridge)
    kernel, to_test = np.asarray(train_train, dtype=np.float64), np.asarray(test_train, dtype=np.float64)
    copies = _copies(multiplicity, objective.examples)
    _require_kernel(kernel, to_test, objective)
    scale = 2 * ridge * float(copies.sum())
    alpha, residual, steps = _refit(kernel, objective, copies, scale, tolerance, max_steps)
    train = kernel @ alpha
    values = -np.asarray(objective.derivatives(train) @ to_test.T) / scale
    return Representers(values, alpha, train, to_test @ alpha, residual, steps)


@dataclass(frozen=True)
class ClassRepresenters:
    """The last layer of a classifier, refitted: what examples add to its outputs, one output per class.

    Attributes:
        alpha: of one copy of each example, (one-hot(y_i) - p_i) / (2 lambda N): [n, k]; outputs are K_h (multiplicity * alpha).
        own: what each example adds to its own label's output, alpha[i, y_i] K_h[i, i] >= 0: high where it holds that up by itself, [n].
        values: what each adds to the output of each test's label, alpha[i, y_t] K_h[t, i]: [n, m].
        residual: as of `Representers`.
    """

    alpha: Array
    own: Array
    values: Array
    residual: float


def class_representers(
    train_train: npt.ArrayLike,
    test_train: npt.ArrayLike,
    labels: npt.ArrayLike,
    test_labels: npt.ArrayLike,
    classes: int,
    *,
    ridge: float,
    multiplicity: npt.ArrayLike | None = None,
    tolerance: float = 1e-4,
) -> ClassRepresenters:
    """`representer_points` of cross-entropy, whose k outputs share one kernel of features: no k n x k n matrix is built.

    (1/N) sum_i multiplicity_i L_i + lambda |W|^2 is minimised over W [r, k] on Phi with Phi Phi^T = K_h, by scipy's trust-region
    Newton method.

    Args:
        train_train, test_train: K_h, [n, n] and [m, n].
        labels, test_labels: [n] and [m], from 0 to `classes` - 1.
        tolerance: of the residual.

    Raises:
        ViewError: the ridge is not above 0, or the refit did not converge.
    """
    _require_ridge(ridge)
    kernel, to_test = np.asarray(train_train, dtype=np.float64), np.asarray(test_train, dtype=np.float64)
    own, wanted = np.asarray(labels, dtype=np.int64), np.asarray(test_labels, dtype=np.int64)
    copies = _copies(multiplicity, len(own))
    share, meant = copies / copies.sum(), np.eye(classes)[own]
    values, vectors = linalg.eigh(kernel)
    held = values > RANK * values[-1]
    features = vectors[:, held] * np.sqrt(values[held])
    shape = features.shape[1], classes

    def total(flat: Array) -> tuple[float, Array]:
        weights = flat.reshape(shape)
        told = special.log_softmax(features @ weights, axis=1)
        slope = features.T @ (share[:, None] * (np.exp(told) - meant)) + 2 * ridge * weights
        return float(-share @ told[np.arange(len(own)), own] + ridge * (flat @ flat)), slope.ravel()

    def curved(flat: Array, towards: Array) -> Array:
        likely = special.softmax(features @ flat.reshape(shape), axis=1)
        moved = features @ towards.reshape(shape)
        bent = likely * (moved - (likely * moved).sum(axis=1, keepdims=True))
        return np.asarray((features.T @ (share[:, None] * bent)).ravel() + 2 * ridge * towards)

    start = np.zeros(shape[0] * shape[1])
    found = scipy.optimize.minimize(total, start, jac=True, hessp=curved, method="trust-ncg", options={"gtol": 1e-9})
    scale = 2 * ridge * float(copies.sum())
    alpha = -(special.softmax(features @ found.x.reshape(shape), axis=1) - meant) / scale
    pull = special.softmax(kernel @ (copies[:, None] * alpha), axis=1) - meant
    residual = _relative(pull + scale * alpha, pull, scale * alpha)
    if not residual <= tolerance:
        raise ViewError(
            f"The refit of the last layer stands at a residual of {residual:.2g}, above {tolerance:g}, so its outputs are no sums over the "
            f"examples; choose a larger ridge than {ridge:g}."
        )
    return ClassRepresenters(alpha, alpha[np.arange(len(own)), own] * np.diag(kernel), alpha[:, wanted] * to_test.T, residual)


def _refit(
    kernel: Array, objective: Objective, copies: Array, scale: float, tolerance: float, max_steps: int
) -> tuple[Array, float, int]:
    """alpha at the minimum, its residual, and how many steps led there."""
    alpha = np.zeros(len(kernel))
    for step in range(max_steps + 1):
        pull = objective.pull((kernel @ alpha)[:, None], copies[:, None])[:, 0]
        slope = pull + scale * alpha
        residual = _relative(slope, pull, scale * alpha)
        if residual <= tolerance:
            return alpha, residual, step
        if step == max_steps:
            break
        system = objective.curvature(kernel @ alpha, copies) @ kernel + scale * np.eye(len(kernel))
        towards = -linalg.solve(system, slope, assume_a="gen")
        size = _step_size(kernel, objective, copies, scale, alpha, towards, float(slope @ kernel @ towards))
        if size == 0.0:
            break
        alpha = alpha + size * towards
    raise ViewError(
        f"The refit of the last layer stands at a residual of {residual:.2g} after {step} steps, above {tolerance:g}, so its outputs are "
        f"no sums over the examples; choose a larger ridge than {scale / (2 * copies.sum()):g}."
    )


def _step_size(
    kernel: Array, objective: Objective, copies: Array, scale: float, alpha: Array, towards: Array, descent: float
) -> float:
    """The first of 1, 1/2, 1/4, ... that lowers the loss enough (Armijo); 0 if none does."""

    def total(at: Array) -> float:
        outputs = kernel @ at
        return float(copies @ objective.losses(outputs[:, None])[:, 0] + scale / 2 * (at @ outputs))

    before = total(alpha)
    rounding = 1e-13 * abs(before)  # near the minimum the loss no longer falls by what a number can show
    for halving in range(HALVINGS):
        size = 0.5**halving
        if total(alpha + size * towards) <= before + 1e-4 * size * descent + rounding:
            return size
    return 0.0


def _relative(slope: Array, pull: Array, hold: Array) -> float:
    whole = float(np.linalg.norm(pull) + np.linalg.norm(hold))
    return float(np.linalg.norm(slope)) / whole if whole else 0.0


def _copies(multiplicity: npt.ArrayLike | None, examples: int) -> Array:
    copies = np.ones(examples) if multiplicity is None else np.asarray(multiplicity, dtype=np.float64)
    if copies.shape != (examples,) or not ((copies >= 0) & (copies < np.inf)).all() or not copies.any():
        raise ViewError(
            f"Multiplicities of shape {copies.shape} were given for {examples} examples; give each one of at least 0, and not all 0."
        )
    return copies


def _require_ridge(ridge: float) -> None:
    if not 0 < ridge < np.inf:
        raise ViewError(f"The ridge lambda is {ridge}; choose a finite number above 0: only the ridge ties outputs to examples.")


def _require_kernel(kernel: Array, to_test: Array, objective: Objective) -> None:
    size = objective.positions
    if kernel.shape != (size, size) or to_test.ndim != 2 or to_test.shape[1] != size:
        raise ViewError(
            f"Kernels of shape {kernel.shape} and {to_test.shape} do not fit an objective of {size} positions; give [n, n] and [m, n] of "
            f"the last layer."
        )
    if not (np.isfinite(kernel).all() and np.isfinite(to_test).all()):
        raise ViewError("The last layer's kernel holds something that is not a finite number; leave that checkpoint out.")


# ---- of a run ------------------------------------------------------------------------------------------------------------------


class RefittedLayer:
    """The last layer of a view's model at its last checkpoint, refitted, and what each training example then adds.

    Args:
        view: of the examples, over all layers.
        last_layer: the view of the last layer group alone; None: the run keeps none.
        features: K_h of that layer's features, train with train and test with train, of several outputs; None: nobody has them.
        ridge: lambda.
    """

    def __init__(
        self, view: View, last_layer: View | None, features: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None, ridge: float
    ) -> None:
        self._view, self._last_layer, self._features, self._ridge = view, last_layer, features, ridge

    @property
    def _last_kernels(self) -> SummedKernels:
        if self._last_layer is None:
            raise ViewError(
                'This run keeps no plain kernel of the last layer apart; compute it with its layer groups and precondition = "none".'
            )
        return self._last_layer.kernels

    @property
    def _objective(self) -> Objective:
        return objective_of(self._view.train, len(self._last_kernels.train_train) - 1)

    @cached_property
    def representers(self) -> Representers:
        """The last layer, refitted on its kernel at the last checkpoint.

        Raises:
            ViewError: the run keeps no last layer group, or as `representer.representer_points`.
        """
        kernels = self._last_kernels
        objective = self._objective
        copies = self._view.train.multiplicity
        return representer_points(
            kernels.train_train[-1], kernels.test_train[-1], objective, ridge=self._ridge, multiplicity=copies
        )

    @cached_property
    def _of_classes(self) -> ClassRepresenters:
        """The same of several outputs, whose features no kernel keeps apart."""
        train, test = self._view.train, self._view.test
        if not isinstance(train, SampleExamples) or not isinstance(test, SampleExamples) or train.cotangent != "label_logit":
            raise ViewError(
                "Representer points of several outputs need a run of classes; compute one with the kernel of logit(p_y)."
            )
        if train.loss.name != "cross_entropy":
            raise ViewError(f"Representer points of several outputs refit by cross_entropy, but the loss is {train.loss.name}.")
        if self._features is None:
            raise ViewError(
                "Representer points of several outputs need the features of the last layer, which a calibration has, of a model whose "
                "outputs a linear layer gives; calibrate such a model."
            )
        classes = train.outputs.shape[2]
        labels = np.asarray(train.targets), np.asarray(test.targets)
        return class_representers(*self._features, *labels, classes, ridge=self._ridge, multiplicity=train.multiplicity)

    @property
    def _has_classes(self) -> bool:
        train = self._view.train
        return isinstance(train, SampleExamples) and train.cotangent != "score"

    def influence(self, test: str) -> Array:
        """What each training example adds to a margin, or to a label's output; of a number, how much its loss would rise without it: [N].

        Raises:
            NotFoundError: no such test.
            ViewError: the run lacks what the refit needs.
        """
        view, row = self._view, self._view.test_row(test)
        if self._has_classes:
            return np.asarray(self._of_classes.values[:, row])
        values = self.representers.values
        if isinstance(view.test, PairExamples):
            first, second = view.test.ends[row]
            return np.asarray(view.test.table["target"].to_numpy()[row] * (values[:, first] - values[:, second]))
        if not isinstance(view.test, SampleExamples):
            raise ViewError("These test examples are neither pairs nor samples, so nothing is added to a margin of theirs.")
        target = view.test.targets[[row]]
        if view.test.loss.is_of_label:
            return np.asarray((2 * float(target[0]) - 1) * values[:, row])
        return -float(sample_derivative(view.test.loss, self.representers.test[[row]], target)[0]) * values[:, row]

    def self_influence(self) -> Array:
        """What each training example adds to its own margin or output, and of a number to its own loss; never below 0: [N].

        Raises:
            ViewError: as `influence`.
        """
        if self._has_classes:
            return self._of_classes.own
        train, points = self._view.train, self.representers
        kernel = np.asarray(self._last_kernels.train_train[-1], dtype=np.float64)
        scale = 2 * self._ridge * float(train.multiplicity.sum())
        slopes = abs(self._objective.derivatives(points.train)).max(axis=1).toarray().ravel()
        if isinstance(train, PairExamples):
            first, second = train.ends.T
            return np.asarray(slopes * (kernel[first, first] - 2 * kernel[first, second] + kernel[second, second]) / scale)
        of_label = isinstance(train, SampleExamples) and train.loss.is_of_label
        return np.asarray((slopes if of_label else slopes**2) * np.diag(kernel) / scale)
