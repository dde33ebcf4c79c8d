"""Gradient maps: samples and examples as points of a plane, near each other where their gradients are.

A kernel K[i, j] = <g_i, g_j> knows the cloud of its gradients up to rotation, without any gradient. Kernel PCA (Schölkopf, Smola, Müller
1998) shows it along its two widest directions: of the centred kernel H K H, H = I - 1 1^T / n, with eigenvalues l and eigenvectors u,

    coordinates = sqrt(l) u        share of the variance = l / trace(H K H)

t-SNE (van der Maaten, Hinton 2008) and UMAP (McInnes, Healy, Melville 2018, arXiv 1802.03426) keep neighbours together instead, by the
distance d_ij^2 = K_ii + K_jj - 2 K_ij.

The gradient of example e over a run lays its checkpoints side by side, sqrt(w_c) sum_k a_ck(e) g_c(position_k(e)), so that the examples'
kernel is Q = A diag(K_c) A^T with the sparse A of `Examples.incidence`. Its diagonal is the self-influence. Samples without a loss have the
same coefficient at each checkpoint, so theirs is sum_c w_c K_c.

Normalised maps divide each gradient by its norm; the products are then cosines. What has no gradient has no direction: it is left out by
name. scikit-learn and umap-learn are imported by the functions that need them, because they take the web process a second or more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import linalg, sparse
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from tracin_core.errors import ViewError
from tracin_core.scores.examples import ALL, Examples, Rows
from tracin_core.scores.influence import DEAD_RATIO, squared_norms

Array = npt.NDArray[np.float64]
Ids = Sequence[str] | pd.Series | npt.NDArray[np.object_]
NO_GRADIENT = "its gradient is 0"
LOST = "its gradient is lost in rounding"
MOST_DENSE = 1_000  # eigenvectors of so wide a kernel take a tenth of a second; more examples go through products with its factors
MOST_NEIGHBOURS = 2_500  # t-SNE of so many takes 20 s
PRODUCTS = 20  # Lanczos vectors kept at a time
RESTARTS = 300
SHOWN = ("id", "label", "angle", "id1", "id2", "angle1", "angle2", "gap", "split")


@dataclass(frozen=True)
class GradientMap:
    """Where each row lies.

    Attributes:
        coordinates: [n, 2]; NaN for a row that is left out. Of kernel PCA in the unit of a gradient (1 if normalised), else without a unit.
        ids: of the rows, [n].
        left_out: the rows without a place: id, why.
        axes: what to write at the two axes.
        shares: the share of the variance that each axis holds, [2]; None where axes hold none.
        method: kernel_pca, tsne or umap.
        settings: the method and its settings in words.
    """

    coordinates: Array
    ids: npt.NDArray[np.object_]
    left_out: pd.DataFrame
    axes: tuple[str, str]
    shares: tuple[float, float] | None
    method: str
    settings: str


# ---- kernels --------------------------------------------------------------------------------------------------------------------


def run_kernel(kernels: npt.ArrayLike, weights: npt.ArrayLike) -> Array:
    """sum_c w_c K_c: the samples' kernel over a run, [n, n] from [C, n, n].

    Raises:
        ViewError: not one weight per checkpoint, or a weight that is negative or no number, or none above 0.
    """
    stack = np.asarray(kernels, dtype=float)
    return np.asarray(np.tensordot(_weights(weights, stack), stack, axes=1))


def joint_kernel(train_train: npt.ArrayLike, test_train: npt.ArrayLike, test_test: npt.ArrayLike) -> Array:
    """The kernel of training and test samples together, training first: [..., n + m, n + m].

    Raises:
        ViewError: the three do not fit together.
    """
    among_train, across, among_test = (np.asarray(kernel, dtype=float) for kernel in (train_train, test_train, test_test))
    n, m = among_train.shape[-1], among_test.shape[-1]
    lead = among_train.shape[:-2]
    if (among_train.shape, across.shape, among_test.shape) != ((*lead, n, n), (*lead, m, n), (*lead, m, m)):
        raise ViewError(
            f"Kernels of shape {among_train.shape} (training), {across.shape} (test by training) and {among_test.shape} (test) do not fit "
            f"together; take all three of one run."
        )
    return np.block([[among_train, across.swapaxes(-1, -2)], [across, among_test]])


def example_kernel(examples: Examples, kernels: npt.ArrayLike, weights: npt.ArrayLike, rows: Rows = ALL) -> Array:
    """Q, the products of these examples' gradients over a run: [rows, rows].

    Args:
        kernels: [C, positions, positions].
        weights: w_c, [C].

    Raises:
        ViewError: as `run_kernel` and `kernel_pca`, or the rows are more than a kernel is made for.
    """
    stack, run_weights = _fitting(examples, kernels, weights)
    count = len(np.arange(len(examples))[rows])
    if count > MOST_NEIGHBOURS:
        raise ViewError(
            f"A kernel of {count:,} {examples.noun}s would be {count:,} x {count:,} numbers, more than {MOST_NEIGHBOURS:,} x "
            f"{MOST_NEIGHBOURS:,}; choose fewer {examples.noun}s (`stratified_pairs` takes them evenly), or the map by kernel PCA."
        )
    incidence = _live_incidence(examples, squared_norms(examples, stack), run_weights)[rows]
    return _products(incidence, stack)


# ---- methods --------------------------------------------------------------------------------------------------------------------


def kernel_pca(kernel: npt.ArrayLike, ids: Ids, *, normalised: bool = False) -> GradientMap:
    """The kernel's gradients along their two widest directions, exactly. Each axis points to where its largest coordinate is positive.

    Raises:
        ViewError: the kernel is not the products of gradients (square, symmetric, finite, positive semidefinite, all up to the rounding of
            float32), is of fewer than 2 rows that can be placed, or its gradients are all the same.
    """
    given, names = _gradient_products(kernel, ids)
    rows, scaled = _with_direction(given) if normalised else (np.arange(len(given)), given)
    _require_rows(rows, names, 2)
    _require_spread(*_variance(np.diagonal(scaled), scaled.sum()))
    coordinates, shares = _dense_axes(scaled)
    return _pca_map(coordinates, shares, rows, names, _no_direction(names, rows), normalised)


def example_pca(examples: Examples, kernels: npt.ArrayLike, weights: npt.ArrayLike, *, normalised: bool = False) -> GradientMap:
    """`kernel_pca` of all the examples' gradients over a run, however many they are, without a table of examples by examples.

    Beyond 1,000 examples the two eigenvectors are found by Lanczos iteration (ARPACK) to a relative residual of 1e-10, from products
    H A diag(K_c) A^T H u of sparse and small dense factors: C n^2 + O(N C) each. A part of a gradient that is lost in its kernel's rounding
    (`squared_norms`) counts as 0; without a gradient an example lies with all others that have none, or, normalised, nowhere.

    Args:
        kernels: [C, positions, positions].
        weights: w_c, [C].

    Raises:
        ViewError: as `run_kernel` and `kernel_pca`, or the second and third axis are too alike to tell apart.
    """
    stack, run_weights = _fitting(examples, kernels, weights)
    names = examples.table["id"].to_numpy(dtype=object)
    norms = squared_norms(examples, stack)
    own = run_weights @ norms
    rows = np.flatnonzero(own > 0) if normalised else np.arange(len(own))
    _require_rows(rows, names, 2)
    incidence = _live_incidence(examples, norms, run_weights)
    if normalised:
        incidence = sparse.diags_array(own[rows] ** -0.5) @ incidence[rows]
    size = np.ones(len(rows)) if normalised else own
    mean = incidence.T @ np.full(len(rows), 1 / len(rows))
    variance, total = _variance(size, len(rows) ** 2 * float(mean @ _blockwise(stack, mean)))
    _require_spread(variance, total)
    if len(rows) <= MOST_DENSE:
        coordinates, shares = _dense_axes(_products(incidence, stack))
    else:
        coordinates, shares = _sparse_axes(incidence, stack, variance)
    return _pca_map(coordinates, shares, rows, names, _without_gradient(examples, run_weights, rows), normalised)


def tsne(kernel: npt.ArrayLike, ids: Ids, *, perplexity: float = 30.0, seed: int = 0, normalised: bool = False) -> GradientMap:
    """Neighbours in the kernel's distance lie near each other; distances between groups, and the axes, mean nothing.

    The same kernel, settings and versions of the libraries give the same map. scikit-learn's TSNE, begun at random with this seed. One
    core takes about 3 s for 500 points and 20 s for 2,500, the most there may be.

    Args:
        perplexity: about how many neighbours each point attends to.

    Raises:
        ViewError: as `kernel_pca`, with at least 3 rows; too many rows; or a perplexity that is not above 1 and below their number.
    """
    _require_seed(seed)
    rows, names, distances = _distances(kernel, ids, normalised)
    if not 1 < perplexity < len(rows):
        raise ViewError(
            f"The perplexity is {perplexity:g}, but with {len(rows)} points it must lie above 1 and below {len(rows)}; choose about "
            f"{max(2, min(30, len(rows) // 4))}."
        )
    from sklearn.manifold import TSNE  # type: ignore[import-untyped]

    method = TSNE(perplexity=perplexity, metric="precomputed", init="random", random_state=seed)
    placed = method.fit_transform(distances)
    settings = f"t-SNE of {len(rows):,} points by the kernel's distance, perplexity {perplexity:g}, seed {seed}"
    return _neighbour_map(placed, rows, names, "tsne", "t-SNE", _told(settings, normalised))


def umap(
    kernel: npt.ArrayLike, ids: Ids, *, neighbours: int = 15, min_distance: float = 0.1, seed: int = 0, normalised: bool = False
) -> GradientMap:
    """As `tsne`, by umap-learn where it is installed. Its code is compiled at a process's first map, which takes up to a minute; then one
    core takes about 4 s for 2,000 points.

    Args:
        neighbours: how many neighbours each point is tied to, itself among them.
        min_distance: how close neighbours may come to each other in the map.

    Raises:
        ViewError: as `kernel_pca`, with at least 3 rows; too many rows; settings without a meaning; or umap-learn is not installed.
    """
    _require_seed(seed)
    rows, names, distances = _distances(kernel, ids, normalised)
    if not 2 <= neighbours < len(rows):
        raise ViewError(
            f"UMAP is asked for {neighbours} neighbours, but with {len(rows)} points it must be 2 to {len(rows) - 1}; choose about "
            f"{max(2, min(15, len(rows) // 4))}."
        )
    if not 0 <= min_distance <= 1:
        raise ViewError(f"UMAP's min_distance is {min_distance:g}; choose a number between 0 and 1, such as 0.1.")
    method = _umap_class()(
        n_neighbors=neighbours, min_dist=min_distance, metric="precomputed", random_state=seed, n_jobs=1, init="random"
    )
    placed = method.fit_transform(distances)
    settings = f"UMAP of {len(rows):,} points by the kernel's distance, {neighbours} neighbours, min_distance {min_distance:g}, seed {seed}"
    return _neighbour_map(placed, rows, names, "umap", "UMAP", _told(settings, normalised))


def _umap_class() -> Any:
    try:
        return import_module("umap").UMAP
    except ImportError as error:
        raise ViewError(
            f"UMAP needs the package umap-learn, which cannot be imported ({error}); run `scripts/setup requirements-umap.txt`, or choose "
            f"t-SNE."
        ) from error


# ---- tables ---------------------------------------------------------------------------------------------------------------------


def map_table(gradient_map: GradientMap, table: pd.DataFrame, *, excluded: npt.ArrayLike, **columns: npt.ArrayLike) -> pd.DataFrame:
    """One row per row of the map, in its order: x, y, what the table says of it (id, labels or angles, split), the columns, excluded.

    Args:
        table: the samples or pairs that the map is of, in its order.
        excluded: whether each row is on an exclusion list, [n]; or one boolean for all.
        columns: scores, one number per row; NaN where undefined.

    Raises:
        ViewError: the table is not of the map's rows, a column has another length or the name of another column.
    """
    if len(table) != len(gradient_map.ids) or (table["id"].to_numpy() != gradient_map.ids).any():
        raise ViewError(
            f"The table's {len(table)} ids are not the map's {len(gradient_map.ids)} in their order; give the table that was mapped."
        )
    made: dict[str, Any] = dict(zip(("x", "y"), gradient_map.coordinates.T, strict=True))
    made |= {name: table[name].to_numpy() for name in SHOWN if name in table}
    for name, values in columns.items():
        given = np.asarray(values)
        if name in (*made, "excluded") or given.shape != (len(table),):
            raise ViewError(
                f"The column '{name}' has shape {given.shape}; give one value for each of {len(table)} rows, under a name other than "
                f"{', '.join(made)} and excluded."
            )
        made[name] = given
    flags = np.asarray(excluded)
    if flags.dtype != bool or flags.shape not in ((), (len(table),)):
        raise ViewError(
            f"excluded is {flags.dtype} of shape {flags.shape}; give True or False for each of {len(table)} rows, as view.removed does."
        )
    return pd.DataFrame(made).assign(excluded=flags if flags.ndim else bool(flags))


# ---- axes -----------------------------------------------------------------------------------------------------------------------


def _dense_axes(kernel: Array) -> tuple[Array, Array]:
    """(sqrt(l) u of the two largest eigenvalues of H K H, largest first [n, 2]; their shares of its trace [2])."""
    centred = kernel - kernel.mean(axis=0) - kernel.mean(axis=1)[:, None] + kernel.mean()
    values, vectors = linalg.eigh(centred, subset_by_index=[len(centred) - 2, len(centred) - 1])
    return _oriented(values, vectors, float(np.trace(centred)))


def _sparse_axes(incidence: Any, stack: Array, variance: float) -> tuple[Array, Array]:
    """The same of A diag(K_c) A^T, from products with vectors."""
    back = incidence.T.tocsr()
    count = incidence.shape[0]

    def product(vector: Array) -> Array:
        flat = vector.ravel()
        image = incidence @ _blockwise(stack, back @ (flat - flat.mean()))
        return np.asarray(image - image.mean())

    operator = LinearOperator((count, count), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(count)  # ARPACK's own would differ from call to call
    try:
        values, vectors = eigsh(operator, k=2, ncv=PRODUCTS, tol=1e-10, maxiter=RESTARTS, v0=start)
    except ArpackNoConvergence as error:
        raise ViewError(
            f"The axes of these {count:,} examples are too alike to be told apart within {RESTARTS} restarts of the Lanczos iteration; "
            f"choose other checkpoints, or at most {MOST_DENSE:,} examples, whose axes need no iteration."
        ) from error
    return _oriented(values, vectors, variance)


def _products(incidence: Any, stack: Array) -> Array:
    """A diag(K_c) A^T: [N, N]."""
    return np.asarray(incidence @ _blockwise(stack, incidence.T.toarray()))


def _blockwise(stack: Array, columns: Array) -> Array:
    """diag(K_c) x, for one x [C p] or several [C p, m]."""
    image = np.matmul(stack, columns.reshape(len(stack), stack.shape[1], -1))
    return np.asarray(image.reshape(columns.shape))


def _oriented(values: Array, vectors: Array, variance: float) -> tuple[Array, Array]:
    """Largest first, each with the first of its largest entries positive; entries that differ by rounding alone are as large."""
    order = np.argsort(values)[::-1]
    lengths, axes = np.maximum(values[order], 0.0), vectors[:, order]
    sizes = np.abs(axes)
    leading = np.argmax(sizes >= (1 - 1e-6) * sizes.max(axis=0), axis=0)
    axes = axes * np.where(axes[leading, [0, 1]] < 0, -1.0, 1.0)
    return np.asarray(axes * np.sqrt(lengths)), np.asarray(lengths / variance)


def _variance(sizes: Array, total: float) -> tuple[float, float]:
    """(trace(H K H), trace(K)), from the diagonal of K and the sum of all of it."""
    trace = float(sizes.sum())
    return trace - total / len(sizes), trace


def _require_spread(variance: float, trace: float) -> None:
    if variance <= DEAD_RATIO * trace:
        raise ViewError(
            f"All gradients are the same (their variance is {variance:.3g} of {trace:.3g}), so that a map would be one point; choose other "
            f"checkpoints, or a loss or test quantity that is not flat."
        )


# ---- distances ------------------------------------------------------------------------------------------------------------------


def _distances(kernel: npt.ArrayLike, ids: Ids, normalised: bool) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.object_], Array]:
    """(rows that can be placed, all ids, |g_i - g_j| among these rows). Distances that are lost in the kernel's rounding are 0."""
    given, names = _gradient_products(kernel, ids)
    rows, scaled = _with_direction(given) if normalised else (np.arange(len(given)), given)
    _require_rows(rows, names, 3)
    if len(rows) > MOST_NEIGHBOURS:
        raise ViewError(
            f"A map by neighbours of {len(rows):,} points would take minutes; choose at most {MOST_NEIGHBOURS:,} of them, or kernel PCA."
        )
    sizes = np.diagonal(scaled)
    common = sizes[:, None] + sizes
    squared, rounding = common - 2 * scaled, DEAD_RATIO * np.abs(common)
    if (squared < -rounding).any():
        i, j = np.argwhere(squared < -rounding)[0]
        raise ViewError(
            f"The kernel gives '{names[rows[i]]}' and '{names[rows[j]]}' a squared distance of {squared[i, j]:.3g}, below 0 by more than "
            f"rounding, so it is not of gradients; compute the run again."
        )
    _require_spread(*_variance(sizes, scaled.sum()))
    return rows, names, np.sqrt(np.where(squared <= rounding, 0.0, squared))


# ---- what is asked of the input ---------------------------------------------------------------------------------------------------


def _gradient_products(kernel: npt.ArrayLike, ids: Ids) -> tuple[Array, npt.NDArray[np.object_]]:
    """(the kernel in float64, the mean of its two triangles; the ids). It could be of gradients, up to float32's rounding."""
    given, names = np.asarray(kernel, dtype=float), np.asarray(ids, dtype=object)
    if given.ndim != 2 or given.shape[0] != given.shape[1] or names.shape != given.shape[:1]:
        raise ViewError(
            f"A map needs a square kernel and one id per row, not {given.shape} and {names.shape}; give the kernel of one side."
        )
    _require_finite(given, names)
    sizes = np.diagonal(given)
    uneven = np.abs(given - given.T) > DEAD_RATIO * np.abs(sizes[:, None] + sizes)
    if uneven.any():
        i, j = np.argwhere(uneven)[0]
        raise ViewError(
            f"The kernel of '{names[i]}' and '{names[j]}' is {given[i, j]:.6g} one way and {given[j, i]:.6g} the other; a map needs a "
            f"symmetric kernel, such as that of the training samples among themselves."
        )
    _require_semidefinite(given)
    return (given + given.T) / 2, names


def _require_finite(kernel: Array, names: npt.NDArray[np.object_]) -> None:
    if not np.isfinite(kernel).all():
        i, j = np.argwhere(~np.isfinite(kernel))[0]
        raise ViewError(f"The kernel of '{names[i]}' and '{names[j]}' is {kernel[i, j]}; leave that checkpoint out.")


def _require_semidefinite(kernel: Array) -> None:
    """No eigenvalue is below -16 eps32 of the trace: about what rounding each product can do."""
    slack = DEAD_RATIO * float(np.abs(np.diagonal(kernel)).sum())
    if slack == 0 and not kernel.any():
        return
    try:
        np.linalg.cholesky(kernel + slack * np.eye(len(kernel)))
    except np.linalg.LinAlgError as error:
        raise ViewError(
            "The kernel is not positive semidefinite, even up to rounding, so it is not of gradients; give a tangent kernel, or compute "
            "the run again."
        ) from error


def _require_rows(rows: npt.NDArray[np.int64], names: npt.NDArray[np.object_], least: int) -> None:
    if len(rows) < least:
        raise ViewError(
            f"A map needs at least {least} points, but of {len(names)} only {len(rows)} can be placed (without gradient, no direction); "
            f"choose more, or a map that is not normalised."
        )


def _require_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ViewError(f"The seed is {seed}; choose a whole number from 0 to {2**32 - 1:,}.")


def _weights(weights: npt.ArrayLike, stack: Array) -> Array:
    given = np.asarray(weights, dtype=float)
    if stack.ndim != 3 or given.shape != stack.shape[:1]:
        raise ViewError(
            f"{given.size} weights do not fit kernels of shape {stack.shape}; give [C, n, n] and one weight per checkpoint."
        )
    if not (np.isfinite(given).all() and (given >= 0).all() and (given > 0).any()):
        raise ViewError(
            f"The checkpoint weights are {', '.join(f'{weight:g}' for weight in given)}; a map needs weights of at least 0, and one above."
        )
    return given


def _fitting(examples: Examples, kernels: npt.ArrayLike, weights: npt.ArrayLike) -> tuple[Array, Array]:
    """The kernels and weights of the checkpoints, each kernel checked as one of gradients."""
    stack = np.asarray(kernels, dtype=float)
    given = _weights(weights, stack)
    places = np.array([f"position {place}" for place in range(stack.shape[-1])], dtype=object)
    if stack.shape[1:] != (examples.positions, examples.positions) or len(given) != examples.derivatives.shape[0]:
        raise ViewError(
            f"Kernels of shape {stack.shape} do not fit {examples.positions} positions at {examples.derivatives.shape[0]} checkpoints; "
            f"give the kernels of this side of the run."
        )
    return np.stack([_gradient_products(kernel, places)[0] for kernel in stack]), given


# ---- rows with and without a place ------------------------------------------------------------------------------------------------


def _with_direction(kernel: Array) -> tuple[npt.NDArray[np.int64], Array]:
    """(rows whose gradient is not 0, their cosines)."""
    rows = np.flatnonzero(np.diagonal(kernel) > 0)
    norms = np.sqrt(np.diagonal(kernel)[rows])
    cosines = kernel[np.ix_(rows, rows)] / norms / norms[:, None]
    np.fill_diagonal(cosines, 1.0)
    return rows, cosines


def _live_incidence(examples: Examples, norms: Array, weights: Array) -> Any:
    """sqrt(w_c) a_c(e) over (checkpoint, position), and 0 where rounding took the gradient: sparse [N, C positions]."""
    incidence = examples.incidence(np.sqrt(weights), examples.positions)
    if np.any((norms == 0) & (examples.derivatives != 0)):
        rows = np.repeat(np.arange(len(examples)), np.diff(incidence.indptr))
        incidence.data *= norms[incidence.indices // examples.positions, rows] > 0
    return incidence


def _no_direction(names: npt.NDArray[np.object_], rows: npt.NDArray[np.int64]) -> pd.DataFrame:
    return pd.DataFrame({"id": np.delete(names, rows), "why": NO_GRADIENT})


def _without_gradient(examples: Examples, weights: Array, rows: npt.NDArray[np.int64]) -> pd.DataFrame:
    """The examples left out, and whether their loss is flat or their kernel too coarse."""
    flat = ~np.any(examples.derivatives[weights > 0] != 0, axis=0)
    why = np.where(flat, NO_GRADIENT, LOST).astype(object)
    return pd.DataFrame({"id": np.delete(examples.table["id"].to_numpy(dtype=object), rows), "why": np.delete(why, rows)})


# ---- results --------------------------------------------------------------------------------------------------------------------


def _pca_map(
    coordinates: Array,
    shares: Array,
    rows: npt.NDArray[np.int64],
    names: npt.NDArray[np.object_],
    left_out: pd.DataFrame,
    normalised: bool,
) -> GradientMap:
    axes = [f"axis {one} ({share:.1%} of the variance)" for one, share in enumerate(shares, 1)]
    settings = _told(f"kernel PCA of {len(rows):,} gradients", normalised)
    share = float(shares[0]), float(shares[1])
    return GradientMap(_spread(coordinates, rows, len(names)), names, left_out, (axes[0], axes[1]), share, "kernel_pca", settings)


def _neighbour_map(
    placed: npt.ArrayLike, rows: npt.NDArray[np.int64], names: npt.NDArray[np.object_], method: str, title: str, settings: str
) -> GradientMap:
    coordinates = _spread(np.asarray(placed, dtype=float), rows, len(names))
    return GradientMap(coordinates, names, _no_direction(names, rows), (f"{title} 1", f"{title} 2"), None, method, settings)


def _told(settings: str, normalised: bool) -> str:
    return f"{settings}, each divided by its norm" if normalised else settings


def _spread(coordinates: Array, rows: npt.NDArray[np.int64], count: int) -> Array:
    """NaN for rows that are not placed."""
    whole = np.full((count, 2), np.nan)
    whole[rows] = coordinates
    return whole
