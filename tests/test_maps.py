"""Gradient maps against explicit gradients: principal axes by a singular value decomposition, distances one by one, in float64."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.decomposition import KernelPCA
from sklearn.manifold import TSNE

from tracin_core.data.samples import all_pairs
from tracin_core.errors import ViewError
from tracin_core.scores import maps
from tracin_core.scores.examples import Examples, PairExamples, SampleExamples
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.maps import GradientMap, example_kernel, example_pca, joint_kernel, kernel_pca, map_table, run_kernel, tsne
from tracin_core.scores.sample_losses import SampleLoss

ROOT = Path(__file__).resolve().parents[1]
FLOAT64 = {
    "rtol": 1e-7,
    "atol": 1e-7,
}  # an eigenvector moves by the rounding over the gap, which is a hundredth of the first eigenvalue
FEW = settings(deadline=None, max_examples=25)
CHECKPOINTS = 3


def gradients(seed: int, count: int, parameters: int = 12) -> np.ndarray:
    """A cloud that is wider along its first parameters, so that its widest directions are told apart."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, parameters)) * 0.7 ** np.arange(parameters) + generator.normal(size=parameters)


def names(count: int, prefix: str = "s") -> list[str]:
    return [f"{prefix}{place}" for place in range(count)]


def slow_axes(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(coordinates on the two widest directions of the centred features, shares of the variance)."""
    left, lengths, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    return left[:, :2] * lengths[:2], lengths[:2] ** 2 / (lengths**2).sum()


def has_definite_axes(features: np.ndarray) -> bool:
    """The three widest directions differ in variance, so that the first two are no matter of rounding."""
    lengths = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    return bool(min(-np.diff(lengths[:3] ** 2)) > 0.01 * lengths[0] ** 2)


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def assert_same_axes(found: GradientMap, features: np.ndarray) -> None:
    """The placed rows lie as in the explicit principal axes; the sign of an axis is its own business."""
    placed = found.coordinates[~np.isnan(found.coordinates[:, 0])]
    expected, shares = slow_axes(features)
    signs = np.sign((placed * expected).sum(axis=0))
    np.testing.assert_allclose(placed, signs * expected, **FLOAT64)
    np.testing.assert_allclose(found.shares, shares, **FLOAT64)


# ---- samples --------------------------------------------------------------------------------------------------------------------


@FEW
@given(seed=st.integers(0, 10_000), count=st.integers(4, 30))
def test_kernel_pca_is_pca_of_the_gradients(seed: int, count: int) -> None:
    """Coordinates, shares of the variance and what the axes say of them."""
    features = gradients(seed, count)
    assume(has_definite_axes(features))
    found = kernel_pca(features @ features.T, names(count))
    assert_same_axes(found, features)
    assert found.shares is not None
    assert found.axes == tuple(f"axis {one} ({share:.1%} of the variance)" for one, share in enumerate(found.shares, 1))
    assert found.left_out.empty
    assert found.ids.tolist() == names(count)


@FEW
@given(seed=st.integers(0, 10_000), count=st.integers(4, 30))
def test_kernel_pca_is_that_of_scikit_learn(seed: int, count: int) -> None:
    """Signs too: an axis points to where its largest coordinate is positive."""
    features = gradients(seed, count)
    assume(has_definite_axes(features))
    kernel = features @ features.T
    peer = KernelPCA(n_components=2, kernel="precomputed", eigen_solver="dense").fit_transform(kernel)
    np.testing.assert_allclose(kernel_pca(kernel, names(count)).coordinates, peer, **FLOAT64)


@FEW
@given(seed=st.integers(0, 10_000), count=st.integers(4, 30))
def test_the_order_of_rows_moves_no_point(seed: int, count: int) -> None:
    features = gradients(seed, count)
    assume(has_definite_axes(features))
    order = np.random.default_rng(seed).permutation(count)
    whole = kernel_pca(features @ features.T, names(count)).coordinates
    shuffled = kernel_pca(features[order] @ features[order].T, names(count)).coordinates
    np.testing.assert_allclose(shuffled, whole[order], **FLOAT64)


def test_a_tie_for_the_largest_coordinate_goes_to_the_first() -> None:
    """Rounding decides which of two mirrored points is the larger; it must not decide which way the axis points."""
    features = np.array([[-1.0, 0.3], [1.0, 0.3], [0.0, -0.6]])
    for _ in range(2):
        kernel = features @ features.T
        kernel[1, 1] *= 1 + 1e-12
        assert kernel_pca(kernel, names(3)).coordinates[0, 0] > 0
        kernel[0, 0] *= 1 + 1e-11
        assert kernel_pca(kernel, names(3)).coordinates[0, 0] > 0


@given(seed=st.integers(0, 10_000))
def test_three_points_keep_their_distances(seed: int) -> None:
    """Three points lie in a plane, so their map is their own picture; and 2 points lie on its first axis."""
    features = gradients(seed, 3)
    found = kernel_pca(features @ features.T, names(3)).coordinates
    np.testing.assert_allclose(cdist(found, found), cdist(features, features), **FLOAT64)
    two = kernel_pca(features[:2] @ features[:2].T, names(2))
    np.testing.assert_allclose(two.coordinates[:, 1], 0, atol=1e-6)
    np.testing.assert_allclose(two.shares, [1, 0], **FLOAT64)


@FEW
@given(seed=st.integers(0, 10_000), count=st.integers(6, 20), dead=st.sets(st.integers(0, 5), max_size=2))
def test_a_normalised_map_is_of_directions(seed: int, count: int, dead: set[int]) -> None:
    """Lengths do not matter; what has no gradient has no direction, so it has no place and is named."""
    features = gradients(seed, count) * np.random.default_rng(seed).uniform(0.1, 10, size=(count, 1))
    features[sorted(dead)] = 0.0
    directions = unit(np.delete(features, sorted(dead), axis=0))
    assume(has_definite_axes(directions))
    found = kernel_pca(features @ features.T, names(count), normalised=True)
    assert_same_axes(found, directions)
    assert np.flatnonzero(np.isnan(found.coordinates).any(axis=1)).tolist() == sorted(dead)
    assert found.left_out.to_dict("list") == {"id": [f"s{place}" for place in sorted(dead)], "why": [maps.NO_GRADIENT] * len(dead)}


@FEW
@given(seed=st.integers(0, 10_000), count=st.integers(3, 9), tests=st.integers(2, 6))
def test_train_and_test_lie_in_one_map(seed: int, count: int, tests: int) -> None:
    """Over several checkpoints: a weighted sum of kernels is gradients side by side."""
    each = np.stack([gradients(seed + c, count + tests) for c in range(CHECKPOINTS)])
    weights = np.array([0.5, 2.0, 0.0])
    train, test = each[:, :count], each[:, count:]
    across = train.swapaxes(1, 2)
    kernels = joint_kernel(train @ across, test @ across, test @ test.swapaxes(1, 2))
    features = np.concatenate(np.sqrt(weights)[:, None, None] * each, axis=1)
    assume(has_definite_axes(features))
    assert_same_axes(kernel_pca(run_kernel(kernels, weights), names(count) + names(tests, "x")), features)


# ---- examples -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Examples with the gradients of the outputs they stand on: [C, positions, parameters]."""

    examples: Examples
    outputs: np.ndarray
    weights: np.ndarray

    @property
    def kernels(self) -> np.ndarray:
        return self.outputs @ self.outputs.swapaxes(1, 2)

    @property
    def features(self) -> np.ndarray:
        """Each example's gradient at each checkpoint, one after the other: [N, C parameters]."""
        coefficients, rows = self.examples.coefficients(), []
        for row, ends in enumerate(self.examples.ends):
            each = [sum(coefficients[c, row, k] * self.outputs[c, end] for k, end in enumerate(ends)) for c in range(CHECKPOINTS)]
            rows.append(np.concatenate(np.sqrt(self.weights)[:, None] * np.array(each)))
        return np.array(rows)


def pair_case(seed: int, count: int = 9, loss: PairLoss | None = None) -> Case:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    samples = pd.DataFrame({"id": names(count), "label": labels, "angle": 36 * labels})
    outputs = (2 * generator.normal(size=(CHECKPOINTS, count))).astype(np.float32)
    examples = PairExamples(all_pairs(samples), samples, outputs, loss or PairLoss(name="logistic"))
    return Case(
        examples, np.stack([gradients(seed + c, count, 4) for c in range(CHECKPOINTS)]), generator.uniform(0.2, 2, size=CHECKPOINTS)
    )


def label_case(seed: int, count: int = 9) -> Case:
    """Samples with three outputs each, kept apart."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    samples = pd.DataFrame({"id": names(count), "label": labels})
    outputs = generator.normal(size=(CHECKPOINTS, count, 3)).astype(np.float32)
    examples = SampleExamples(samples, outputs, labels, SampleLoss(), "outputs")
    return Case(examples, np.stack([gradients(seed + c, 3 * count, 4) for c in range(CHECKPOINTS)]), np.array([1.0, 0.0, 0.5]))


HINGE = PairLoss(margin=1.0)  # flat for about a third of the pairs
CASES = st.integers(0, 10_000).flatmap(
    lambda seed: st.sampled_from([pair_case(seed), pair_case(seed, loss=HINGE), label_case(seed)])
)


@pytest.mark.parametrize("most_dense", [1_000, 0], ids=["dense", "by products"])
@pytest.mark.parametrize("normalised", [False, True])
@FEW
@given(case=CASES)
def test_examples_lie_as_their_explicit_gradients(case: Case, normalised: bool, most_dense: int) -> None:
    """Pairs under slopes that change from checkpoint to checkpoint, and samples of several outputs; few of them and many."""
    features = case.features
    if normalised:
        features = unit(features[features.any(axis=1)])
    assume(has_definite_axes(features))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "MOST_DENSE", most_dense)
        found = example_pca(case.examples, case.kernels, case.weights, normalised=normalised)
    assert_same_axes(found, features)
    assert found.ids.tolist() == case.examples.table["id"].tolist()


@FEW
@given(case=CASES)
def test_an_example_kernel_is_of_explicit_gradients(case: Case) -> None:
    """Of all the examples, or of the rows asked for; its diagonal is the self-influence."""
    expected = case.features @ case.features.T
    np.testing.assert_allclose(example_kernel(case.examples, case.kernels, case.weights), expected, **FLOAT64)
    rows = np.array([4, 1, 7])
    np.testing.assert_allclose(
        example_kernel(case.examples, case.kernels, case.weights, rows), expected[np.ix_(rows, rows)], **FLOAT64
    )


def test_the_map_of_examples_is_that_of_their_kernel() -> None:
    """Signs too, few or many; asked again, to the last bit."""
    case = pair_case(3, count=12)
    expected = kernel_pca(example_kernel(case.examples, case.kernels, case.weights), case.examples.table["id"])
    for most_dense in (1_000, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(maps, "MOST_DENSE", most_dense)
            found, again = (example_pca(case.examples, case.kernels, case.weights) for _ in range(2))
        np.testing.assert_array_equal(again.coordinates, found.coordinates)
        np.testing.assert_allclose(found.coordinates, expected.coordinates, **FLOAT64)
        assert found.axes == expected.axes


def test_what_has_no_gradient_lies_together_or_nowhere() -> None:
    """A flat loss, and two samples whose gradients differ by less than their products' rounding, are told apart by name."""
    samples = pd.DataFrame({"id": names(6), "label": range(6), "angle": 36 * np.arange(6)})
    outputs = np.array([[0, 0, 0, 0, 0, 50]] * CHECKPOINTS, dtype=np.float32)  # pairs with s5 are satisfied
    directions = gradients(1, 6, 4)
    directions[1] = directions[0] * (1 + 1e-5)
    directions[2] = directions[3] + [0, 1e-2, 0, 0]  # near, but to be told apart
    case = Case(PairExamples(all_pairs(samples), samples, outputs, PairLoss(margin=1.0)), np.stack([directions] * 3), np.ones(3))
    found = example_pca(case.examples, case.kernels, case.weights, normalised=True)
    assert found.left_out.to_dict("list") == {
        "id": ["s0_s1", "s0_s5", "s1_s5", "s2_s5", "s3_s5", "s4_s5"],
        "why": [maps.LOST] + [maps.NO_GRADIENT] * 5,
    }
    assert found.ids[np.isnan(found.coordinates).any(axis=1)].tolist() == found.left_out["id"].tolist()
    whole = example_pca(case.examples, case.kernels, case.weights)
    together = whole.coordinates[np.isin(whole.ids, found.left_out["id"].to_list())]
    np.testing.assert_allclose(together, np.broadcast_to(together[0], together.shape), atol=1e-12)
    assert not np.isnan(whole.coordinates).any()


def test_rounding_takes_a_gradient_at_its_own_checkpoint_only() -> None:
    """At the middle one two large gradients differ by a thousandth of a percent; the other two keep the pair in the map."""
    case = pair_case(0)
    case.outputs[1, 1] *= 1e5
    case.outputs[1, 0] = case.outputs[1, 1] * (1 + 1e-5)
    features = case.features.reshape(len(case.examples), CHECKPOINTS, -1)
    assert case.examples.table["id"].iloc[0] == "s0_s1"
    assert np.linalg.norm(features[0], axis=1).min() > 0.1
    features[0, 1] = 0.0
    expected = features.reshape(len(case.examples), -1)
    found = example_kernel(case.examples, case.kernels, case.weights)
    np.testing.assert_allclose(found, expected @ expected.T, **FLOAT64)


@pytest.mark.parametrize("normalised", [False, True])
def test_examples_without_gradients_are_refused(normalised: bool) -> None:
    """All of them satisfied, or only one that is not."""
    case = pair_case(0, count=4, loss=HINGE)
    case.examples.samples["label"] = range(4)
    satisfied = np.array([[0, 10, 20, 30]] * CHECKPOINTS, dtype=np.float32)
    pairs = all_pairs(case.examples.samples)
    told = "of 6 only 0 can be placed" if normalised else "All gradients are the same"
    with pytest.raises(ViewError, match=told):
        example_pca(PairExamples(pairs, case.examples.samples, satisfied, HINGE), case.kernels, case.weights, normalised=normalised)
    with pytest.raises(ViewError, match="at least 2 points, but of 1 only"):
        example_pca(
            PairExamples(pairs[:1], case.examples.samples, -satisfied, HINGE), case.kernels, case.weights, normalised=normalised
        )


def test_axes_that_do_not_come_to_rest_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case = pair_case(0, count=60)
    wide = np.random.default_rng(0).normal(size=(CHECKPOINTS, 60, 400))
    monkeypatch.setattr(maps, "MOST_DENSE", 0)
    monkeypatch.setattr(maps, "RESTARTS", 1)
    with pytest.raises(ViewError, match="too alike to be told apart within 1 restarts"):
        example_pca(case.examples, wide @ wide.swapaxes(1, 2), case.weights)


# ---- neighbours -----------------------------------------------------------------------------------------------------------------


def two_clusters(count: int = 40) -> np.ndarray:
    features = np.random.default_rng(0).integers(-3, 4, size=(count, 6)).astype(float)
    features[: count // 2, 0] += 100
    return features


def test_tsne_keeps_far_groups_apart_and_repeats_itself() -> None:
    features = two_clusters()
    kernel = features @ features.T
    found = tsne(kernel, names(40), perplexity=10, seed=1)
    one, other = found.coordinates[:20], found.coordinates[20:]
    between = np.linalg.norm(one.mean(axis=0) - other.mean(axis=0))
    assert between > 2 * max(np.linalg.norm(side - side.mean(axis=0), axis=1).max() for side in (one, other))
    np.testing.assert_array_equal(tsne(kernel, names(40), perplexity=10, seed=1).coordinates, found.coordinates)
    assert not np.array_equal(tsne(kernel, names(40), perplexity=10, seed=2).coordinates, found.coordinates)
    assert (found.axes, found.shares, found.method) == (("t-SNE 1", "t-SNE 2"), None, "tsne")
    assert found.settings == "t-SNE of 40 points by the kernel's distance, perplexity 10, seed 1"


@pytest.mark.parametrize("normalised", [False, True])
def test_tsne_sees_the_distances_of_the_gradients(normalised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Explicit ones, equal gradients at exactly 0, those without a direction left out."""
    features = two_clusters(12)
    features[3] = features[2]
    features[4] = features[5] * (1 + 1e-7)
    features[7] = 0.0 if normalised else features[7]
    seen: list[np.ndarray] = []

    def remember(self: TSNE, distances: np.ndarray) -> np.ndarray:
        assert (self.metric, self.init, self.random_state, self.perplexity) == ("precomputed", "random", 5, 4)
        seen.append(distances)
        return np.ones((len(distances), 2), dtype=np.float32)

    monkeypatch.setattr(TSNE, "fit_transform", remember)
    found = tsne(features @ features.T, names(12), perplexity=4, seed=5, normalised=normalised)
    if normalised:
        features = unit(np.delete(features, 7, axis=0))
        assert found.left_out["id"].tolist() == ["s7"]
        assert np.isnan(found.coordinates[7]).all()
    expected = cdist(features, features)
    assert 0 < expected[4, 5] < 1e-4
    np.testing.assert_allclose(seen[0], expected, rtol=1e-9, atol=1e-4)
    assert (seen[0][[2, 4], [3, 5]] == 0).all()
    assert np.isnan(found.coordinates).any(axis=1).sum() == normalised


class StandIn:
    """Takes what umap-learn's UMAP takes."""

    asked: dict[str, Any]

    def __init__(self, **asked: Any) -> None:
        StandIn.asked = asked

    def fit_transform(self, distances: np.ndarray) -> np.ndarray:
        return distances[:, :2]


def test_umap_is_asked_for_the_same_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=StandIn))
    features = two_clusters(12)
    found = maps.umap(features @ features.T, names(12), neighbours=5, min_distance=0.2, seed=3)
    np.testing.assert_allclose(found.coordinates, cdist(features, features)[:, :2], **FLOAT64)
    assert StandIn.asked == {
        "n_neighbors": 5,
        "min_dist": 0.2,
        "metric": "precomputed",
        "random_state": 3,
        "n_jobs": 1,
        "init": "random",
    }
    assert (found.axes, found.shares, found.method) == (("UMAP 1", "UMAP 2"), None, "umap")
    assert found.settings == "UMAP of 12 points by the kernel's distance, 5 neighbours, min_distance 0.2, seed 3"


def test_umap_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    features = two_clusters(12)
    with pytest.raises(ViewError, match=r"run `scripts/setup requirements-umap\.txt`, or choose t-SNE"):
        maps.umap(features @ features.T, names(12), neighbours=5)


@pytest.mark.slow
def test_umap_keeps_far_groups_apart_and_repeats_itself() -> None:
    """Where umap-learn is installed; it compiles for most of a minute at first."""
    pytest.importorskip("umap", reason="umap-learn is optional: scripts/setup requirements-umap.txt")
    features = two_clusters()
    found, again = (maps.umap(features @ features.T, names(40), seed=1).coordinates for _ in range(2))
    np.testing.assert_array_equal(found, again)
    one, other = found[:20], found[20:]
    between = np.linalg.norm(one.mean(axis=0) - other.mean(axis=0))
    assert between > 2 * max(np.linalg.norm(side - side.mean(axis=0), axis=1).max() for side in (one, other))


# ---- input that is refused --------------------------------------------------------------------------------------------------------


def changed(row: int, column: int, value: float) -> np.ndarray:
    features = two_clusters(12)
    kernel = features @ features.T
    kernel[row, column] = value
    return kernel


METHODS: list[Callable[..., GradientMap]] = [kernel_pca, tsne, maps.umap]
BAD_KERNELS = {
    "not square": (np.ones((3, 4)), r"\(3, 4\)"),
    "flat": (np.ones(3), r"\(3,\)"),
    "not symmetric": (changed(1, 2, 77.0), "'s1' and 's2' is 77 one way"),
    "NaN": (changed(4, 4, np.nan), "'s4' and 's4' is nan"),
    "infinite": (changed(4, 5, np.inf), "'s4' and 's5' is inf"),
    "not of gradients": (np.array([[1.0, 9.0, 0.0], [9.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), "not positive semidefinite"),
    "a negative square": (-np.eye(4), "not positive semidefinite"),
    "products of nothing": (np.ones((3, 3)) - np.eye(3), "not positive semidefinite"),
    "too few": (np.ones((1, 1)), "of 1 only 1 can be placed"),
    "none": (np.ones((0, 0)), "of 0 only 0 can be placed"),
    "no gradient": (np.zeros((9, 9)), "All gradients are the same"),
    "one gradient": (np.full((9, 9), 3.0), "All gradients are the same"),
}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("name", BAD_KERNELS)
def test_a_kernel_that_is_not_of_gradients_is_refused(name: str, method: Callable[..., GradientMap]) -> None:
    kernel, told = BAD_KERNELS[name]
    with pytest.raises(ViewError, match=told):
        method(kernel, names(len(kernel)))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_each_row_needs_an_id_and_a_direction(method: Callable[..., GradientMap]) -> None:
    features = two_clusters(12)
    with pytest.raises(ViewError, match="one id per row"):
        method(features @ features.T, names(11))
    features[1:] = 0.0
    with pytest.raises(ViewError, match="of 12 only 1 can be placed"):
        method(features @ features.T, names(12), normalised=True)


@pytest.mark.parametrize("method", [tsne, maps.umap])
def test_neighbours_need_three_points_and_not_too_many(method: Callable[..., GradientMap], monkeypatch: pytest.MonkeyPatch) -> None:
    features = two_clusters(12)
    with pytest.raises(ViewError, match="at least 3 points, but of 2"):
        method(features[:2] @ features[:2].T, names(2))
    monkeypatch.setattr(maps, "MOST_NEIGHBOURS", 11)
    with pytest.raises(ViewError, match="12 points would take minutes; choose at most 11"):
        method(features @ features.T, names(12))


@pytest.mark.parametrize(
    ("method", "asked", "told"),
    [
        (tsne, {"perplexity": 12}, "perplexity is 12, but with 12 points it must lie above 1 and below 12; choose about 3"),
        (tsne, {"perplexity": 1.0}, "perplexity is 1"),
        (tsne, {"perplexity": float("nan")}, "perplexity is nan"),
        (tsne, {"seed": -1}, "seed is -1"),
        (maps.umap, {"seed": 2**32}, "seed is 4294967296"),
        (maps.umap, {"neighbours": 12}, "12 neighbours, but with 12 points it must be 2 to 11"),
        (maps.umap, {"neighbours": 1}, "1 neighbours"),
        (maps.umap, {"neighbours": 5, "min_distance": 1.5}, "min_distance is 1.5"),
    ],
)
def test_settings_without_a_meaning_are_refused(method: Callable[..., GradientMap], asked: dict[str, Any], told: str) -> None:
    features = two_clusters(12)
    with pytest.raises(ViewError, match=told):
        method(features @ features.T, names(12), **asked)


def test_a_distance_below_zero_is_refused() -> None:
    """Within the slack that a large gradient elsewhere gives, but not between these two."""
    kernel = np.diag([1.0, 1.0, 1e7, 1.0])
    kernel[0, 1] = kernel[1, 0] = 1.001
    with pytest.raises(ViewError, match=r"'s0' and 's1' a squared distance of -0\.002"):
        tsne(kernel, names(4), perplexity=2)


def test_rounding_alone_is_not_refused() -> None:
    """Products of float32, of more samples than parameters, and not quite symmetric."""
    features = gradients(0, 40).astype(np.float32)
    kernel = features @ features.T
    kernel[3, 5] *= np.float32(1 + 1e-6)
    found = kernel_pca(kernel, names(40))
    expected, _ = slow_axes(features.astype(float))
    np.testing.assert_allclose(np.abs(found.coordinates), np.abs(expected), atol=1e-4)
    np.testing.assert_array_equal(kernel_pca(kernel.T, names(40)).coordinates, found.coordinates)


@pytest.mark.parametrize(
    ("weights", "told"),
    [([1.0, 1.0], "2 weights do not fit"), ([1, -1, 1], "1, -1, 1"), ([0, 0, 0], "one above"), ([1, 1, np.nan], "1, 1, nan")],
)
def test_weights_that_make_no_kernel_are_refused(weights: list[float], told: str) -> None:
    case = pair_case(0)
    for ask in (lambda: run_kernel(case.kernels, weights), lambda: example_pca(case.examples, case.kernels, weights)):
        with pytest.raises(ViewError, match=told):
            ask()


def test_kernels_that_do_not_fit_are_refused() -> None:
    case = pair_case(0)
    with pytest.raises(ViewError, match="do not fit 9 positions at 3 checkpoints"):
        example_pca(case.examples, case.kernels[:, :8, :8], case.weights)
    with pytest.raises(ViewError, match="do not fit 9 positions at 3 checkpoints"):
        example_kernel(case.examples, case.kernels[:2], case.weights[:2])
    with pytest.raises(ViewError, match="fit together"):
        joint_kernel(np.eye(3), np.ones((3, 2)), np.eye(2))
    broken = case.kernels.copy()
    broken[1, 2, 2] = np.nan
    with pytest.raises(ViewError, match="'position 2' and 'position 2' is nan"):
        example_pca(case.examples, broken, case.weights)


def test_too_many_examples_for_a_kernel_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case = pair_case(0)
    monkeypatch.setattr(maps, "MOST_NEIGHBOURS", 10)
    with pytest.raises(ViewError, match="A kernel of 27 pairs would be 27 x 27 numbers"):
        example_kernel(case.examples, case.kernels, case.weights)


# ---- tables ---------------------------------------------------------------------------------------------------------------------


def test_a_map_table_has_a_row_per_row() -> None:
    """Those without a place too, as NaN; with what the table says of them, the scores and the exclusions."""
    case = pair_case(0)
    pairs = case.examples.table
    found = example_pca(case.examples, case.kernels, case.weights)
    scores, chosen = np.arange(len(pairs)) / 7, np.arange(len(pairs)) % 4 == 0
    table = map_table(found, pairs, excluded=chosen, self_influence=scores)
    assert table.columns.tolist() == ["x", "y", "id", "id1", "id2", "angle1", "angle2", "gap", "self_influence", "excluded"]
    np.testing.assert_array_equal(table[["x", "y"]].to_numpy(), found.coordinates)
    np.testing.assert_array_equal(table["self_influence"], scores)
    np.testing.assert_array_equal(table["excluded"], chosen)
    assert table["id"].tolist() == pairs["id"].tolist()
    features = two_clusters(6)
    features[2] = 0.0
    samples = pd.DataFrame({"id": names(6), "label": range(6), "angle": 0, "split": "train", "path": "a.wav"})
    placed = map_table(kernel_pca(features @ features.T, names(6), normalised=True), samples, excluded=False)
    assert placed.columns.tolist() == ["x", "y", "id", "label", "angle", "split", "excluded"]
    assert np.isnan(placed["x"]).tolist() == [False, False, True, False, False, False]
    assert not placed["excluded"].any()
    assert placed["excluded"].dtype == bool


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"table": slice(0, 5)}, "5 ids are not the map's 6"),
        ({"table": slice(None, None, -1)}, "6 ids are not the map's 6 in their order"),
        ({"excluded": [True, False]}, r"excluded is bool of shape \(2,\)"),
        ({"excluded": np.arange(6)}, "excluded is int64"),
        ({"score": [1.0, 2.0]}, r"'score' has shape \(2,\)"),
        ({"label": np.arange(6)}, "under a name other than x, y, id, label"),
    ],
)
def test_a_table_that_does_not_fit_its_map_is_refused(change: dict[str, Any], told: str) -> None:
    features = two_clusters(6)
    found = kernel_pca(features @ features.T, names(6))
    samples = pd.DataFrame({"id": names(6), "label": range(6)})
    asked: dict[str, Any] = {"excluded": False, **change}
    with pytest.raises(ViewError, match=told):
        map_table(found, samples.iloc[asked.pop("table", slice(None))], **asked)


def test_the_module_is_light() -> None:
    """The web process imports it at its start, and most visitors never see a map."""
    program = (
        "import sys, tracin_core.scores.maps; print(*sorted({'sklearn', 'umap', 'numba', 'torch', 'streamlit'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert answer.stdout.strip() == ""
