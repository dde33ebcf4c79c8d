"""Curvature in the span of the samples: influence functions without parameters, as a map from kernel to kernel.

With J the output gradients of the n training samples at one checkpoint, K_tt = J J^T, and L a positive semi-definite n x n matrix over the
samples, the curvature of the training loss is H = J^T L J + mu I. Everything that H^-1 is asked for follows from the kernel:

    K_mu[x,t]    = J_x H^-1 J^T   = K_xt (L K_tt + mu I)^-1
    K_mu[t,t]    = J H^-1 J^T     = K_tt (L K_tt + mu I)^-1                              (symmetric)
    K_mu[x,x]    = J_x H^-1 J_x^T = (K_xx - K_xt (L K_tt + mu I)^-1 L K_tx) / mu
    |H^-1 g_e|^2 = a_e^T K_tt (L K_tt + mu I)^-2 a_e

a_e'^T K_mu a_e is the predicted rise of the loss L' of e' if e is removed, in units of the summed loss (Koh, Liang 2017, arXiv 1703.04730).
For the mean of N examples with ridge lambda, mu = N lambda. As mu grows, mu K_mu becomes K: TracIn.

    samples   L = diag(h)                 pairs   L = diag(W 1) - W,  W_ij = sum over the pairs {i, j} of multiplicity h

    gauss_newton   h = u psi''(z)                                  Schraudolph 2002; Martens 2014, arXiv 1412.1193
    fisher         h = (u psi'(z))^2                               empirical Fisher: Kunstner, Balles, Hennig 2019, arXiv 1905.12558
    softplus       h = u sigmoid(z/T) sigmoid(-z/T) / T            Gauss-Newton of T log(1 + e^(z/T)), which becomes the hinge as T falls
    all_pairs      h = 1

A hinge has psi'' = 0: its default is fisher, which for the margin loss weighs the active pairs by 1 and the others by 0. Where no pair
is active L = 0 and there is no curvature: see `NoCurvature`.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse, special

from tracin_core.errors import ViewError
from tracin_core.scores.losses import PairLoss, pair_derivative, slack
from tracin_core.scores.sample_losses import SampleLoss

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

EPS32 = float(np.finfo(np.float32).eps)  # kernels are stored in float32: what lies below this of the largest eigenvalue is rounding
EPS64 = float(np.finfo(np.float64).eps)
BEYOND_ROUNDING = 1e-3  # of the largest entry or eigenvalue: more than float32 sums over any number of parameters lose


@dataclass(frozen=True)
class Kernel:
    """One checkpoint's kernel, layers summed, float64: of n training and m test positions (samples, or a sample's outputs apart).

    Raises:
        ViewError: the blocks do not fit each other, are not finite, or are not symmetric.
    """

    train_train: Array  # [n, n]
    test_train: Array  # [m, n]
    test_test: Array  # [m, m]

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _finite(f"kernel {field.name}", getattr(self, field.name)))
        _require_symmetric("train_train kernel", self.train_train, BEYOND_ROUNDING)
        _require_symmetric("test_test kernel", self.test_test, BEYOND_ROUNDING)
        expected = (len(self.test_test), len(self.train_train))
        if self.test_train.shape != expected:
            raise ViewError(f"The test_train kernel has the shape {self.test_train.shape}; {expected} fits the two others.")


@dataclass(frozen=True)
class NoCurvature:
    """There is no curvature at this checkpoint: a state to show, not an error. No damping relative to it exists."""

    reason: str


# ---- what a loss weighs its examples with ---------------------------------------------------------------------------------------


def pair_second_derivative(
    loss: PairLoss, first: Any, second: Any, target: Any, weight: npt.NDArray[Any] | float = 1.0
) -> npt.NDArray[np.float64]:
    """u psi''(z) of each pair, float64: z = m - t (s_i - s_j); arguments as `pair_derivative`.

    logistic sigmoid(z) sigmoid(-z); squared_hinge 2 [z >= 0], which jumps at 0; margin, ghm and ghm_legacy 0.
    """
    z = slack(loss, first, second, target)
    if loss.name == "logistic":
        wide = z.astype(np.float64)
        return np.asarray(weight * special.expit(wide) * special.expit(-wide))
    if loss.name == "squared_hinge":
        return np.asarray(weight * 2.0 * (z >= 0))
    return np.zeros(np.broadcast_shapes(z.shape, np.shape(weight)))


def default_pair_curvature(loss: PairLoss) -> str:
    """gauss_newton where the loss has a second derivative, fisher for the hinges."""
    return "gauss_newton" if _has_second_derivative(loss) else "fisher"


def pair_curvature(
    curvature: str,
    loss: PairLoss,
    first: Any,
    second: Any,
    target: Any,
    weight: npt.NDArray[Any] | float = 1.0,
    *,
    temperature: float = 1.0,
) -> npt.NDArray[np.float64]:
    """h of each pair, [N], at least 0, without its multiplicity; arguments as `pair_derivative`.

    Args:
        temperature: T of softplus, in units of the scores.

    Raises:
        ViewError: there is no such curvature, this loss has none of that name, or the temperature is not above 0.
    """
    if curvature not in PAIR_CURVATURES:
        raise ViewError(f"There is no curvature '{curvature}'; choose from {', '.join(PAIR_CURVATURES)}.")
    if not 0 < temperature < np.inf:
        raise ViewError(f"The softplus temperature is {temperature}; choose a finite number above 0.")
    return PAIR_CURVATURES[curvature](loss, first, second, target, weight, temperature)


def _gauss_newton(loss: PairLoss, first: Any, second: Any, target: Any, weight: Any, temperature: float) -> Array:
    if not _has_second_derivative(loss):
        raise ViewError(
            f"The loss {loss.name} is a hinge, whose second derivative is 0; choose the curvature fisher, softplus or all_pairs."
        )
    return pair_second_derivative(loss, first, second, target, weight)


def _fisher(loss: PairLoss, first: Any, second: Any, target: Any, weight: Any, temperature: float) -> Array:
    return pair_derivative(loss, first, second, target, weight) ** 2


def _softplus(loss: PairLoss, first: Any, second: Any, target: Any, weight: Any, temperature: float) -> Array:
    if _has_second_derivative(loss):
        raise ViewError(f"softplus stands in for a hinge, but {loss.name} has a second derivative; choose gauss_newton or fisher.")
    z = slack(loss, first, second, target).astype(np.float64) / temperature
    return np.asarray(weight * special.expit(z) * special.expit(-z) / temperature)


def _all_pairs(loss: PairLoss, first: Any, second: Any, target: Any, weight: Any, temperature: float) -> Array:
    return np.ones(np.broadcast_shapes(np.shape(first), np.shape(second)))


PAIR_CURVATURES: dict[str, Callable[[PairLoss, Any, Any, Any, Any, float], Array]] = {
    "gauss_newton": _gauss_newton,
    "fisher": _fisher,
    "softplus": _softplus,
    "all_pairs": _all_pairs,
}


def _has_second_derivative(loss: PairLoss) -> bool:
    return loss.name in ("logistic", "squared_hinge")


def sample_second_derivative(loss: SampleLoss, outputs: npt.ArrayLike, targets: npt.ArrayLike) -> Array:
    """d2L/ds2 of each output, in the shape of the outputs, for the convex losses that take outputs one by one.

    binary_cross_entropy p (1 - p); squared_error 2; huber [|r| <= delta], which jumps there.

    Raises:
        ViewError: the loss couples its outputs (`softmax_curvature`), or its second derivative can be negative.
    """
    s = np.asarray(outputs, dtype=np.float64)
    if loss.name == "binary_cross_entropy":
        return np.asarray(special.expit(s) * special.expit(-s))
    if loss.name == "squared_error":
        return np.full(s.shape, 2.0)
    if loss.name == "huber":
        return (np.abs(s - np.asarray(targets, dtype=np.float64).reshape(s.shape)) <= loss.delta).astype(np.float64)
    if loss.name in ("cross_entropy", "label_smoothing"):
        raise ViewError(
            f"{loss.name} couples the outputs of a sample, so it has no second derivative of each; use softmax_curvature."
        )
    raise ViewError(
        f"The second derivative of {loss.name} can be negative, and H^-1 then means nothing; choose the curvature fisher."
    )


# ---- L: the curvature over samples ----------------------------------------------------------------------------------------------


def pair_laplacian(
    first: npt.ArrayLike, second: npt.ArrayLike, h: npt.ArrayLike, samples: int, multiplicity: npt.ArrayLike | None = None
) -> Array:
    """L = diag(W 1) - W over the samples, W_ij = sum over the pairs {i, j} of multiplicity h: [n, n]. Equals B^T diag(h) B.

    Raises:
        ViewError: h or multiplicity is negative or no number, or a pair does not stand on two of the samples.
    """
    i, j = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    require_ends(i, j, samples)
    strength = _strengths(h, multiplicity)
    if strength.shape != i.shape:
        raise ViewError(f"{len(strength)} weights h were given for {len(i)} pairs; give one each.")
    one_way = np.bincount(i * samples + j, weights=strength, minlength=samples**2).reshape(samples, samples)
    weights = one_way + one_way.T
    return np.asarray(np.diag(weights.sum(axis=1)) - weights)


def sample_curvature(h: npt.ArrayLike, multiplicity: npt.ArrayLike | None = None) -> Array:
    """L = diag(multiplicity h): [n, n].

    Raises:
        ViewError: h or multiplicity is negative or no number.
    """
    return np.diag(_strengths(h, multiplicity))


def softmax_curvature(outputs: npt.ArrayLike, multiplicity: npt.ArrayLike | None = None) -> Array:
    """L of cross-entropy and label smoothing: diag(p) - p p^T in each sample's block: [n k, n k], position i k + c. p = softmax(outputs).

    Args:
        outputs: [n, k], k >= 2.
    """
    values = _finite("output", outputs)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ViewError(f"The softmax needs at least two outputs per sample, [n, k]; these have the shape {values.shape}.")
    p = special.softmax(values, axis=1)
    blocks = p[:, :, None] * np.eye(values.shape[1]) - p[:, :, None] * p[:, None, :]
    strength = _strengths(np.ones(len(values)), multiplicity)
    return np.asarray(linalg.block_diag(*(strength[:, None, None] * blocks)))


def fisher_curvature(derivatives: Any, multiplicity: npt.ArrayLike | None = None) -> Array:
    """L = A^T diag(multiplicity) A, the empirical Fisher of any examples; for pairs the Laplacian of h = (u psi')^2: [n, n].

    Args:
        derivatives: A, the examples' a_e as rows, sparse [N, n].
    """
    rows = sparse.csr_array(derivatives)
    if not np.isfinite(rows.data).all():
        raise ViewError("A derivative of a training example is not a finite number; leave that checkpoint out.")
    strength = _strengths(np.ones(rows.shape[0]), multiplicity)
    product = (rows.T @ sparse.diags_array(strength) @ rows).toarray()
    return np.asarray((product + product.T) / 2)  # the two triangles are summed in different orders


# ---- K_mu -----------------------------------------------------------------------------------------------------------------------


def curved(kernel: Kernel, curvature: Array, damping: float) -> Kernel:
    """K_mu by one solve of (K_tt L + mu I) [K_mu[t,t], K_mu[t,x]] = [K_tt, K_tx], mu = damping. For several mu use `decompose`.

    K_mu[x,x] is a difference divided by mu: it loses digits as mu falls, about eps K_xx / mu.

    Raises:
        ViewError: mu is not above 0, L does not fit or is not symmetric, or mu is lost beside L K in double precision.
    """
    require_positive("damping mu", damping)
    _require_curvature(curvature, len(kernel.train_train))
    size = len(curvature)
    system = kernel.train_train @ curvature + damping * np.eye(size)
    with warnings.catch_warnings():
        warnings.simplefilter("error", linalg.LinAlgWarning)
        try:
            solved = linalg.solve(system, np.hstack([kernel.train_train, kernel.test_train.T]), assume_a="gen")
        except (linalg.LinAlgError, linalg.LinAlgWarning) as failure:
            raise ViewError(
                f"A damping of {damping:g} is lost beside a curvature of {np.abs(system).max():g} in double precision; choose a larger "
                f"one, or use decompose, which drops what the kernel cannot resolve."
            ) from failure
    test_train = solved[:, size:].T
    test = (kernel.test_test - test_train @ curvature @ kernel.test_train.T) / damping
    return Kernel(_evened(solved[:, :size]), test_train, _evened(test))


def _evened(square: Array) -> Array:
    """A symmetric result without the rounding of its solve, so that K_ij and K_ji are one number."""
    return np.asarray((square + square.T) / 2)


@dataclass(frozen=True)
class CurvedKernel:
    """K_mu of one checkpoint for any mu: the slider form. See `decompose`.

    K_mu[x,t] = Y_x diag(1 / (e + mu)) Y^T, and what of the test gradients lies outside the span of the training gradients meets mu alone.
    """

    train: Array  # Y, [n, r]
    test: Array  # Y_x, [m, r]
    eigenvalues: Array  # e of Z^T L Z, ascending, at least 0: [r]
    outside: Array  # K_xx - Y_x Y_x^T, [m, m]
    rank: int  # how many eigenvalues are not 0 within rounding

    @property
    def mean_eigenvalue(self) -> float:
        """trace(L K) / rank."""
        return float(self.eigenvalues.sum() / self.rank)

    def damping(self, delta: float) -> float:
        """mu = delta trace(L K) / rank: the same delta means the same at every checkpoint.

        Raises:
            ViewError: delta is not above 0.
        """
        require_positive("relative damping delta", delta)
        return delta * self.mean_eigenvalue

    def at(self, damping: float) -> Kernel:
        """K_mu, mu = damping.

        Raises:
            ViewError: mu is not above 0.
        """
        require_positive("damping mu", damping)
        return self._weighted(1 / (self.eigenvalues + damping), 1 / damping)

    def squared_at(self, damping: float) -> Array:
        """J H^-2 J^T = Y diag((e + mu)^-2) Y^T, whose a_e^T . a_e is |H^-1 g_e|^2: [n, n].

        Raises:
            ViewError: mu is not above 0.
        """
        require_positive("damping mu", damping)
        half = self.train / (self.eigenvalues + damping)
        return np.asarray(half @ half.T)

    def after_training(self, rate_sum: float, examples: float) -> Kernel:
        """J phi(H) J^T / N, phi(e) = (1 - exp(-tau e)) / e with e the eigenvalues of H = J^T L J / N: curvature without free damping.

        Gradient descent on the mean loss of N examples for the training time tau, under constant curvature, predicts this rise of a loss
        if an example is removed (one segment of Bae, Lin, Lorraine, Grosse 2024, arXiv 2405.12186). tau e << 1: tau / N K, which is TracIn
        with the weight step_sum; tau e >> 1: influence functions without damping. Average it over checkpoints, each with the whole tau: a
        sum over segments counts twice, for what one segment learned is worked on by the later ones, which needs kernels across checkpoints.

        Args:
            rate_sum: tau, the sum of the learning rate over all steps of the mean loss; times 1 / (1 - momentum) with momentum.
            examples: N, multiplicities counted.

        Raises:
            ViewError: tau or N is not above 0.
        """
        require_positive("sum of learning rates", rate_sum)
        require_positive("number of training examples", examples)
        weight = rate_sum / examples
        return self._weighted(weight * special.exprel(-weight * self.eigenvalues), weight)

    def _weighted(self, inside: Array, outside: float) -> Kernel:
        root = np.sqrt(inside)
        train, test = self.train * root, self.test * root
        return Kernel(train @ train.T, test @ train.T, test @ test.T + outside * self.outside)


def decompose(kernel: Kernel, curvature: Array, *, precision: float = EPS32) -> CurvedKernel | NoCurvature:
    """The slider form of K_mu: two symmetric eigendecompositions once (one where L is a multiple of I), then two products for each mu.

        K_tt = U diag(d) U^T, d below 4 precision sqrt(n) max(K_ii) dropped;   Z = U sqrt(d), Z_x = K_xt U / sqrt(d)
        Z^T L Z = V diag(e) V^T;   Y = Z V, Y_x = Z_x V

    What is dropped is what rounding alone would put there: errors of precision K_ii in each entry have eigenvalues of about sqrt(n) times
    that. A larger bound, such as precision n max(d), takes away what pairs are about: gradients mostly have a large part in common, which
    makes max(d) about n K_ii, while pairs see differences only.

    Args:
        curvature: L, [n, n].
        precision: relative, of the numbers in the kernel; float32 as stored.

    Returns:
        NoCurvature where L = 0, or where L does not see any gradient.

    Raises:
        ViewError: L does not fit, is not symmetric, or has a negative eigenvalue; or the kernel has.
    """
    size = len(kernel.train_train)
    _require_curvature(curvature, size)
    if not curvature.any():
        return NoCurvature("no training example has curvature here: for a hinge, no pair is active")
    d, u = linalg.eigh(kernel.train_train)
    if d[0] < -BEYOND_ROUNDING * max(abs(d[0]), abs(d[-1])):
        raise ViewError(
            f"The train_train kernel has the eigenvalues {d[0]:.3g} to {d[-1]:.3g}, and none can be below 0; compute it again."
        )
    kept = d > 4 * precision * np.sqrt(size) * np.diagonal(kernel.train_train).max()
    if not kept.any():
        return NoCurvature("every training sample's gradient is zero here")
    root = np.sqrt(d[kept])
    z, z_test = u[:, kept] * root, kernel.test_train @ u[:, kept] / root
    if np.array_equal(curvature, curvature[0, 0] * np.eye(size)):  # one scale for all: Z^T Z is diag(d) already
        e, v = curvature[0, 0] * d[kept], np.eye(int(kept.sum()))
    else:
        e, v = linalg.eigh(z.T @ curvature @ z)
    noise = 10 * EPS64 * size * float(np.abs(curvature).sum(axis=1).max()) * float(d[-1])  # of this product, in double precision
    if e[0] < -noise:
        raise ViewError(
            f"The curvature has the eigenvalue {e[0]:.3g} in the span of the gradients, and none can be below 0; check L."
        )
    if e[-1] <= noise:
        return NoCurvature("all training gradients agree wherever the loss is curved here")
    y_test = z_test @ v
    return CurvedKernel(z @ v, y_test, np.maximum(e, 0.0), kernel.test_test - y_test @ y_test.T, int((e > noise).sum()))


# ---- what comes in --------------------------------------------------------------------------------------------------------------


def require_ends(first: Positions, second: Positions, samples: int) -> None:
    """Raises ViewError unless each pair stands on two different ones of the samples."""
    if first.shape != second.shape or first.ndim != 1:
        raise ViewError(
            f"First ends of shape {first.shape} and second ends of shape {second.shape} make no pairs; give one row of each."
        )
    wrong = np.flatnonzero((first == second) | (np.minimum(first, second) < 0) | (np.maximum(first, second) >= samples))
    if wrong.size:
        i, j = int(first[wrong[0]]), int(second[wrong[0]])
        raise ViewError(
            f"Pair {wrong[0]} stands on the samples {i} and {j}; a pair needs two different ones of 0 to {samples - 1}."
        )


def _finite(what: str, given: Any) -> Array:
    values = np.asarray(given, dtype=np.float64)
    if not np.isfinite(values).all():
        place = tuple(int(index) for index in np.argwhere(~np.isfinite(values))[0])
        raise ViewError(f"The {what} at {place} is {values[place]}; each must be a finite number. Leave that checkpoint out.")
    return values


def _require_symmetric(what: str, matrix: Array, tolerance: float) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ViewError(f"The {what} has the shape {matrix.shape}; it needs as many rows as columns.")
    apart = np.abs(matrix - matrix.T)
    if matrix.size and apart.max() > tolerance * np.abs(matrix).max():
        row, column = np.unravel_index(apart.argmax(), apart.shape)
        raise ViewError(
            f"The {what} is not symmetric: {matrix[row, column]:g} at ({row}, {column}), but {matrix[column, row]:g} at ({column}, {row}); "
            f"its rows and columns must be the same samples in the same order."
        )


def _require_curvature(curvature: Array, size: int) -> None:
    values = _finite("curvature L", curvature)
    if values.shape != (size, size):
        raise ViewError(
            f"The curvature L has the shape {values.shape}, but the kernel is of {size} training positions; give one row each."
        )
    _require_symmetric("curvature L", values, 1e-10)
    if size and np.diagonal(values).min() < 0:
        place = int(np.diagonal(values).argmin())
        raise ViewError(f"The curvature L is {values[place, place]:g} at position {place}; its diagonal is at least 0. Check h.")


def _strengths(h: npt.ArrayLike, multiplicity: npt.ArrayLike | None) -> Array:
    """h times multiplicity, in one row."""
    weights = np.ravel(_at_least_zero("curvature weight h", h))
    if multiplicity is None:
        return weights
    copies = np.ravel(_at_least_zero("multiplicity", multiplicity))
    if copies.shape != weights.shape:
        raise ViewError(f"{len(copies)} multiplicities were given for {len(weights)} examples; give one each.")
    return np.asarray(weights * copies)


def _at_least_zero(what: str, given: npt.ArrayLike) -> Array:
    values = _finite(what, given)
    if values.size and values.min() < 0:
        raise ViewError(f"The {what} of example {int(np.argmin(values))} is {values.min():g}; it is at least 0.")
    return values


def require_positive(what: str, value: float) -> None:
    """Raises ViewError unless the value is finite and above 0."""
    if not 0 < value < np.inf:
        raise ViewError(f"The {what} is {value}; choose a finite number above 0.")
