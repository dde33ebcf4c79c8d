"""Attribution methods from kernels against explicit parameter space: gradients, Hessians and inverses written out, in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, sparse, special, stats

from tracin_core.errors import ViewError
from tracin_core.scores import curvature, damping, methods
from tracin_core.scores.curvature import CurvedKernel, Kernel, NoCurvature, curved, decompose
from tracin_core.scores.losses import PairLoss, pair_derivative, pair_loss
from tracin_core.scores.objectives import pair_rows
from tracin_core.scores.sample_losses import SampleLoss, sample_derivative

FLOAT64 = 1e-9  # of the largest entry: two inverses of condition up to 1e4, written in different ways
FLOAT32 = 1e-3  # of the largest entry: kernels stored in float32, whose differences are a hundredth of their entries
EXACT = 1e-15  # precision of kernels that were never rounded
FEW = settings(deadline=None, max_examples=30)
LOSSES = [PairLoss(name="logistic", margin=1.0), PairLoss(name="squared_hinge", margin=2.0), PairLoss(margin=2.0)]


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float = FLOAT64) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(float(np.abs(expected).max(initial=0)), 1e-300))


@dataclass(frozen=True)
class Case:
    """Gradients of outputs, [n, P] and [m, P], and pairs of the training samples; P may be below or above n."""

    train: np.ndarray
    test: np.ndarray
    scores: np.ndarray
    first: np.ndarray
    second: np.ndarray
    target: np.ndarray
    multiplicity: np.ndarray
    test_pairs: np.ndarray  # [M, 2]
    test_slopes: np.ndarray

    @property
    def kernel(self) -> Kernel:
        return Kernel(self.train @ self.train.T, self.test @ self.train.T, self.test @ self.test.T)

    @property
    def size(self) -> int:
        return len(self.train)

    def ends(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.scores[self.first], self.scores[self.second], self.target

    def slopes(self, loss: PairLoss) -> np.ndarray:
        return pair_derivative(loss, *self.ends())

    def rows(self, loss: PairLoss) -> Any:
        return pair_rows(self.first, self.second, self.slopes(loss), self.size)

    def test_rows(self) -> Any:
        return pair_rows(self.test_pairs[:, 0], self.test_pairs[:, 1], self.test_slopes, len(self.test))

    def laplacian(self, h: np.ndarray) -> np.ndarray:
        return curvature.pair_laplacian(self.first, self.second, h, self.size, self.multiplicity)

    def hessian(self, h: np.ndarray) -> np.ndarray:
        """sum_e multiplicity h (g_i - g_j)(g_i - g_j)^T, pair by pair."""
        total = np.zeros((self.train.shape[1], self.train.shape[1]))
        for i, j, weight, copies in zip(self.first, self.second, h, self.multiplicity, strict=True):
            step = self.train[i] - self.train[j]
            total += copies * weight * np.outer(step, step)
        return total

    def gradients(self, loss: PairLoss) -> np.ndarray:
        return self.slopes(loss)[:, None] * (self.train[self.first] - self.train[self.second])

    def test_gradients(self) -> np.ndarray:
        return self.test_slopes[:, None] * (self.test[self.test_pairs[:, 0]] - self.test[self.test_pairs[:, 1]])


def make_case(seed: int, samples: int | None = None, parameters: int | None = None) -> Case:
    generator = np.random.default_rng(seed)
    n = samples or int(generator.integers(3, 9))
    p = parameters or int(generator.choice([2, 4, 20]))
    m = int(generator.integers(2, 5))
    first, second = np.triu_indices(n, 1)
    turned = generator.random(len(first)) < 0.5
    first, second = np.where(turned, second, first), np.where(turned, first, second)
    return Case(
        generator.standard_normal((n, p)),
        generator.standard_normal((m, p)),
        2 * generator.standard_normal(n),
        first,
        second,
        generator.choice([-1, 1], size=len(first)),
        generator.integers(0, 4, size=len(first)),
        np.array([generator.choice(m, size=2, replace=False) for _ in range(4)]),
        generator.standard_normal(4),
    )


CASES = st.integers(0, 10_000).map(make_case)
KINDS = st.sampled_from(
    [(loss, kind) for loss, kind in product(LOSSES, curvature.PAIR_CURVATURES) if (kind, loss.name) != ("gauss_newton", "margin")]
).filter(lambda both: both[1] != "softplus" or both[0].name == "margin")


def h_of(case: Case, loss: PairLoss, kind: str) -> np.ndarray:
    return curvature.pair_curvature(kind, loss, *case.ends(), temperature=1.5)


# ---- K_mu -----------------------------------------------------------------------------------------------------------------------


def explicit(case: Case, hessian: np.ndarray, damping_: float) -> tuple[np.ndarray, ...]:
    """K_mu[t,t], K_mu[x,t], K_mu[x,x] and J H^-2 J^T, through the inverse over parameters."""
    inverse = np.linalg.inv(hessian + damping_ * np.eye(len(hessian)))
    train, test = case.train, case.test
    return train @ inverse @ train.T, test @ inverse @ train.T, test @ inverse @ test.T, train @ inverse @ inverse @ train.T


@FEW
@given(case=CASES, kind=KINDS, mu=st.sampled_from([0.03, 1.0, 40.0]))
def test_curved_kernels_are_products_under_the_inverse_curvature(case: Case, kind: tuple[PairLoss, str], mu: float) -> None:
    """For every loss and curvature, with multiplicities, and with more or fewer parameters than samples."""
    h = h_of(case, *kind)
    mapped = curved(case.kernel, case.laplacian(h), mu)
    blocks = mapped.train_train, mapped.test_train, mapped.test_test
    for actual, expected in zip(blocks, explicit(case, case.hessian(h), mu)[:3], strict=True):
        assert_close(actual, expected)
    np.testing.assert_array_equal(mapped.train_train, mapped.train_train.T)


@FEW
@given(case=CASES, kind=KINDS, mu=st.sampled_from([0.03, 1.0, 40.0]))
def test_the_slider_form_equals_the_solve(case: Case, kind: tuple[PairLoss, str], mu: float) -> None:
    h = h_of(case, *kind)
    state = decompose(case.kernel, case.laplacian(h), precision=EXACT)
    if isinstance(state, NoCurvature):
        assert not (h * case.multiplicity).any()
        return
    mapped = state.at(mu)
    for actual, expected in zip(
        (mapped.train_train, mapped.test_train, mapped.test_test, state.squared_at(mu)),
        explicit(case, case.hessian(h), mu),
        strict=True,
    ):
        assert_close(actual, expected)


@FEW
@given(case=CASES, kind=KINDS)
def test_under_heavy_damping_curvature_is_tracin(case: Case, kind: tuple[PairLoss, str]) -> None:
    """mu K_mu -> K, the error falling as 1 / mu."""
    laplacian, kernel = case.laplacian(h_of(case, *kind)), case.kernel
    whole = np.linalg.norm(np.vstack([case.train, case.test])) ** 2  # at least the norm of the kernel of both sides
    for mu in (1e6, 1e8, 1e10):
        mapped = curved(kernel, laplacian, mu)
        for name in ("train_train", "test_train", "test_test"):
            apart = np.abs(mu * getattr(mapped, name) - getattr(kernel, name)).max()
            assert apart <= np.linalg.norm(laplacian) * whole**2 / mu + 1e-12 * whole


@FEW
@given(case=CASES, data=st.data())
def test_curvature_of_samples_is_that_of_their_losses(case: Case, data: Any) -> None:
    """Gauss-Newton and empirical Fisher of losses of one output, and of several, against a loop over samples."""
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    copies = generator.integers(0, 3, size=case.size)
    loss, targets = data.draw(
        st.sampled_from(
            [
                (SampleLoss("binary_cross_entropy"), generator.integers(0, 2, case.size)),
                (SampleLoss("squared_error"), generator.standard_normal(case.size)),
                (SampleLoss("huber", delta=1.0), generator.standard_normal(case.size)),
            ]
        )
    )
    step = 1e-6
    slope = (sample_derivative(loss, case.scores + step, targets) - sample_derivative(loss, case.scores - step, targets)) / (
        2 * step
    )
    h = curvature.sample_second_derivative(loss, case.scores, targets)
    np.testing.assert_allclose(h, slope, atol=1e-7)
    gauss_newton = sum(c * w * np.outer(g, g) for c, w, g in zip(copies, h, case.train, strict=True))
    mapped = curved(case.kernel, curvature.sample_curvature(h, copies), 0.5)
    assert_close(mapped.test_train, explicit(case, gauss_newton, 0.5)[1])
    a = sample_derivative(loss, case.scores, targets)
    fisher = sum(c * s**2 * np.outer(g, g) for c, s, g in zip(copies, a, case.train, strict=True))
    mapped = curved(case.kernel, curvature.fisher_curvature(sparse.diags_array(a), copies), 0.5)
    assert_close(mapped.test_train, explicit(case, fisher, 0.5)[1])


def test_sample_fisher_in_units_of_the_mean_loss() -> None:
    """n C (M + n lambda I)^-1 with M_ij = a_i K_ij a_j and C_xj = a_x K_xj a_j is N times K_mu at mu = N lambda."""
    case, generator = make_case(3), np.random.default_rng(4)
    a, a_test, ridge, n = generator.standard_normal(case.size), generator.standard_normal(len(case.test)), 0.2, case.size
    m = a[:, None] * case.kernel.train_train * a
    c = a_test[:, None] * case.kernel.test_train * a
    mapped = curved(case.kernel, curvature.sample_curvature(a**2), n * ridge)
    assert_close(n * a_test[:, None] * mapped.test_train * a, n * c @ np.linalg.inv(m + n * ridge * np.eye(n)))


def test_the_softmax_curvature_is_the_hessian_of_cross_entropy() -> None:
    generator = np.random.default_rng(0)
    outputs, labels, copies = generator.standard_normal((4, 3)), np.array([0, 2, 1, 1]), np.array([1, 0, 2, 1])

    def slope(flat: np.ndarray) -> np.ndarray:
        each = sample_derivative(SampleLoss("cross_entropy"), flat.reshape(4, 3), labels)
        return (copies[:, None] * each).ravel()

    step = 1e-6 * np.eye(12)
    numeric = np.array([(slope(outputs.ravel() + s) - slope(outputs.ravel() - s)) / 2e-6 for s in step])
    np.testing.assert_allclose(curvature.softmax_curvature(outputs, copies), numeric, atol=1e-8)


@FEW
@given(case=CASES, loss=st.sampled_from(LOSSES))
def test_second_derivatives_of_pairs_are_those_of_their_losses(case: Case, loss: PairLoss) -> None:
    first, second, target = case.ends()
    step = 1e-5
    numeric = (
        pair_derivative(loss, first + step, second, target, 0.7) - pair_derivative(loss, first - step, second, target, 0.7)
    ) / (2 * step)
    np.testing.assert_allclose(curvature.pair_second_derivative(loss, first, second, target, 0.7), numeric, atol=1e-6)


def test_curvatures_of_a_hinge() -> None:
    """fisher weighs active pairs by 1; softplus is the second derivative of T log(1 + e^(z/T)); all_pairs weighs each by 1."""
    loss, score, target = PairLoss(margin=1.0), np.array([-2.0, 0.5, 1.0, 3.0]), np.ones(4)
    nothing = np.zeros(4)
    np.testing.assert_array_equal(curvature.pair_curvature("fisher", loss, score, nothing, target), [1, 1, 1, 0])
    np.testing.assert_array_equal(curvature.pair_curvature("fisher", loss, score, nothing, target, 0.5), [0.25, 0.25, 0.25, 0])
    np.testing.assert_array_equal(curvature.pair_curvature("all_pairs", loss, score, nothing, target), np.ones(4))

    def softplus(s: np.ndarray) -> np.ndarray:
        return 0.5 * np.logaddexp(0, (1.0 - s) / 0.5)

    numeric = (softplus(score + 1e-4) - 2 * softplus(score) + softplus(score - 1e-4)) / 1e-8
    soft = curvature.pair_curvature("softplus", loss, score, nothing, target, temperature=0.5)
    np.testing.assert_allclose(soft, numeric, atol=1e-6)
    assert [curvature.default_pair_curvature(PairLoss(name=name)) for name in ("margin", "ghm", "ghm_legacy")] == ["fisher"] * 3
    assert [curvature.default_pair_curvature(PairLoss(name=name)) for name in ("logistic", "squared_hinge")] == ["gauss_newton"] * 2


@FEW
@given(case=CASES, loss=st.sampled_from(LOSSES))
def test_the_empirical_fisher_of_pairs_is_the_laplacian_of_their_squared_slopes(case: Case, loss: PairLoss) -> None:
    fisher = curvature.fisher_curvature(case.rows(loss), case.multiplicity)
    np.testing.assert_allclose(fisher, case.laplacian(h_of(case, loss, "fisher")), atol=1e-12)
    np.testing.assert_array_equal(fisher, fisher.T)


# ---- what influence functions claim -----------------------------------------------------------------------------------------------


def test_influence_is_what_less_of_an_example_does_to_a_refitted_model() -> None:
    """The derivative of a test loss by an example's weight, at the minimum of a logistic pair ranker: both sign and units."""
    case, loss, ridge = make_case(5, samples=6, parameters=4), LOSSES[0], 0.7
    pairs = len(case.first)

    def fitted(weights: np.ndarray) -> np.ndarray:
        theta = np.zeros(4)
        for _ in range(50):  # Newton's method over parameters
            at = Case(**{**case.__dict__, "scores": case.train @ theta, "multiplicity": weights})
            second = h_of(at, loss, "gauss_newton")
            slope = at.gradients(loss).T @ weights + ridge * theta
            theta = theta - np.linalg.solve(at.hessian(second) + ridge * np.eye(4), slope)
        assert np.abs(slope).max() < 1e-12
        return theta

    copies = case.multiplicity.astype(float)
    theta = fitted(copies)
    at_minimum = Case(**{**case.__dict__, "scores": case.train @ theta})
    test = case.test @ theta
    p, q = case.test_pairs.T
    target = np.ones(len(p))
    test_rows = pair_rows(p, q, pair_derivative(loss, test[p], test[q], target), len(test))
    h = curvature.pair_curvature("gauss_newton", loss, *at_minimum.ends())
    mapped = methods.tracin([curved(case.kernel, at_minimum.laplacian(h), ridge)], [1.0])
    scores = methods.influence(mapped, [at_minimum.rows(loss)], [test_rows])

    def test_losses(weights: np.ndarray) -> np.ndarray:
        s = case.test @ fitted(weights)
        return pair_loss(loss, s[p], s[q], target)

    for pair in range(0, pairs, 4):
        nudge = 1e-4 * np.eye(pairs)[pair]
        rise = (test_losses(copies - nudge) - test_losses(copies + nudge)) / 2e-4
        np.testing.assert_allclose(scores[pair], rise, atol=1e-6)


@FEW
@given(case=CASES, kind=KINDS, mu=st.sampled_from([0.1, 3.0]))
def test_curved_scores_are_products_of_the_examples_gradients(case: Case, kind: tuple[PairLoss, str], mu: float) -> None:
    loss, h = kind[0], h_of(case, *kind)
    inverse = np.linalg.inv(case.hessian(h) + mu * np.eye(case.train.shape[1]))
    train, test = case.gradients(loss), case.test_gradients()
    mapped = methods.tracin([curved(case.kernel, case.laplacian(h), mu)], [1.0])
    assert_close(methods.influence(mapped, [case.rows(loss)], [case.test_rows()]), train @ inverse @ test.T)
    own = methods.self_influence(mapped, [case.rows(loss)])
    np.testing.assert_allclose(own, [g @ inverse @ g for g in train], rtol=1e-7, atol=1e-12)
    assert (own >= 0).all()


@FEW
@given(case=CASES, kind=KINDS, delta=st.sampled_from([0.1, 1.0, 30.0]))
def test_relative_influences_divide_by_what_an_example_does(case: Case, kind: tuple[PairLoss, str], delta: float) -> None:
    """l-RelatIF by sqrt(g H^-1 g), theta-RelatIF by |H^-1 g|; NaN, never 0 / 0, where the example has no gradient."""
    loss, h = kind[0], h_of(case, *kind)
    state = decompose(case.kernel, case.laplacian(h), precision=EXACT)
    if isinstance(state, NoCurvature):
        return
    mapped = methods.curvature_mean([state], delta)
    inverse = np.linalg.inv(case.hessian(h) + state.damping(delta) * np.eye(case.train.shape[1]))
    train, rows = case.gradients(loss), [case.rows(loss)]
    scores = methods.influence(mapped, rows, [case.test_rows()])
    dead = case.slopes(loss) == 0
    by_loss = methods.l_relatif(scores, methods.self_influence(mapped, rows))
    by_length = methods.theta_relatif(scores, methods.moved_lengths([state], rows, delta))
    assert np.isnan(by_loss[dead]).all()
    assert np.isnan(by_length[dead]).all()
    live = np.flatnonzero(~dead)
    if live.size:
        assert_close(by_loss[live], scores[live] / np.sqrt([[g @ inverse @ g] for g in train[live]]))
        assert_close(by_length[live], scores[live] / np.array([[np.linalg.norm(inverse @ g)] for g in train[live]]))


# ---- damping --------------------------------------------------------------------------------------------------------------------


@FEW
@given(case=CASES, kind=KINDS)
def test_relative_damping_is_in_mean_eigenvalues_of_the_curvature(case: Case, kind: tuple[PairLoss, str]) -> None:
    """trace / rank of sum h (g_i - g_j)(g_i - g_j)^T over parameters."""
    h = h_of(case, *kind)
    state = decompose(case.kernel, case.laplacian(h), precision=EXACT)
    if isinstance(state, NoCurvature):
        return
    e = np.linalg.eigvalsh(case.hessian(h))
    rank = np.linalg.matrix_rank(case.hessian(h), hermitian=True, tol=1e-11 * e[-1])
    if e[-1] > 1e-6 * e[-rank]:  # else the rank is a matter of taste
        assert state.rank == rank
    np.testing.assert_allclose(state.damping(0.3), 0.3 * e.sum() / state.rank, rtol=1e-9)


def test_pairs_survive_the_decomposition_of_a_kernel_with_a_large_common_part() -> None:
    """Gradients that mostly agree, as a ranker's do: their differences are small eigenvalues, which must not be taken for rounding."""
    generator = np.random.default_rng(0)
    n, p = 120, 400
    gradients = generator.standard_normal((n + 20, p)) * np.arange(1, p + 1) ** -0.7 + generator.standard_normal(p)
    train, test = gradients[:n], gradients[n:]
    exact = Kernel(train @ train.T, test @ train.T, test @ test.T)
    stored = Kernel(*(block.astype(np.float32) for block in (exact.train_train, exact.test_train, exact.test_test)))
    common = np.linalg.norm(train.mean(axis=0)) ** 2 / np.mean(np.var(train, axis=0).sum())
    assert common > 50  # else the case would be easy
    i, j = np.triu_indices(n, 1)
    laplacian = curvature.pair_laplacian(i, j, generator.random(len(i)) < 0.3, n)
    state = decompose(stored, laplacian)
    assert isinstance(state, CurvedKernel)
    assert state.rank == n - 1  # constants are what a Laplacian does not see
    for delta in (0.03, 1.0):
        mu = state.damping(delta)
        rows, test_rows = pair_rows(i, j, np.ones(len(i)), n), pair_rows([0, 3], [1, 7], np.ones(2), 20)
        expected = rows @ curved(exact, laplacian, mu).test_train.T @ test_rows.T
        assert_close(rows @ state.at(mu).test_train.T @ test_rows.T, expected, FLOAT32)


def test_the_rank_of_a_stored_kernel_is_not_that_of_its_rounding() -> None:
    generator = np.random.default_rng(1)
    train = (generator.standard_normal((150, 7)) + 2.0).astype(np.float32)
    kernel = Kernel(train @ train.T, np.zeros((0, 150)), np.zeros((0, 0)))
    state = decompose(kernel, np.eye(150))
    assert isinstance(state, CurvedKernel)
    assert state.rank == 7


def test_no_active_pair_is_no_curvature_and_no_division() -> None:
    case, loss = make_case(7), PairLoss(margin=0.0)
    satisfied = Case(**{**case.__dict__, "scores": 10.0 * np.arange(case.size)})
    target = np.where(case.first > case.second, 1, -1)
    h = curvature.pair_curvature("fisher", loss, satisfied.scores[case.first], satisfied.scores[case.second], target)
    dead = decompose(case.kernel, case.laplacian(h))
    assert isinstance(dead, NoCurvature)
    assert "active" in dead.reason
    live = decompose(case.kernel, case.laplacian(np.ones(len(h))), precision=EXACT)
    assert isinstance(live, CurvedKernel)
    mapped = methods.curvature_mean([live, dead, live], 1.0)
    assert mapped.places == (0, 2)
    assert mapped.without_curvature == {1: dead.reason}
    np.testing.assert_array_equal(mapped.weights, [0.5, 0.5])
    stack = mapped.stacked(3)
    assert not stack[1].train_train.any()
    np.testing.assert_array_equal(stack[2].test_train, 0.5 * live.at(live.damping(1.0)).test_train)
    with pytest.raises(ViewError, match="None of the 2 checkpoints has curvature"):
        methods.curvature_mean([dead, dead], 1.0)


def test_other_reasons_for_no_curvature() -> None:
    nothing = Kernel(np.zeros((3, 3)), np.zeros((1, 3)), np.eye(1))
    agreeing = Kernel(np.ones((3, 3)), np.ones((1, 3)), np.eye(1))
    laplacian = curvature.pair_laplacian([0, 1], [1, 2], [1.0, 1.0], 3)
    assert "zero" in getattr(decompose(nothing, laplacian), "reason", "")
    assert "agree" in getattr(decompose(agreeing, laplacian), "reason", "")


def test_best_lds_is_chosen_on_one_half_and_reported_on_the_other() -> None:
    seen: dict[float, set[int]] = {}

    def lds(delta: float, rows: np.ndarray) -> float:
        seen.setdefault(delta, set()).update(rows.tolist())
        return -abs(np.log10(delta) - 0.5) - 0.01 * rows.min()

    choice = damping.best_by_lds(lds, 20, deltas=(0.1, 1.0, 3.0, 30.0), seed=1)
    assert (choice.rule, choice.delta) == ("best_lds", 3.0)
    assert seen[3.0] == set(range(20))  # the winner alone is also seen on the other half
    assert all(len(seen[delta]) == 10 for delta in (0.1, 1.0, 30.0))
    chosen_on, reported = (set(half.tolist()) for half in damping.halves(20, 1))
    assert seen[0.1] == seen[1.0] == seen[30.0] == chosen_on
    assert reported == set(range(20)) - chosen_on
    assert choice.reported is not None
    assert damping.best_by_lds(lambda delta, rows: 0.5, 4).delta == 30.0


def test_the_delta_that_agrees_with_linearised_retraining_is_chosen() -> None:
    generator = np.random.default_rng(0)
    predicted = generator.standard_normal((12, 5))
    noise = {0.1: 2.0, 1.0: 0.1, 10.0: 1.0}
    tables = {delta: predicted + size * generator.standard_normal(predicted.shape) for delta, size in noise.items()}
    choice = damping.damping_rule("linearised_retraining")(tables.__getitem__, predicted, deltas=tuple(noise))
    assert (choice.delta, choice.reported) == (1.0, None)
    for delta, table in tables.items():
        expected = np.mean([stats.spearmanr(table[:, k], predicted[:, k]).statistic for k in range(5)])
        np.testing.assert_allclose(choice.tried[delta], expected, rtol=1e-12)
    flat = predicted.copy()
    flat[:, 0] = 1.0  # a dead test example takes no part
    np.testing.assert_allclose(damping.agreement(flat, predicted), 1.0)
    with pytest.raises(ViewError, match="None of the 2 test examples"):
        damping.agreement(np.ones((3, 2)), np.ones((3, 2)))


# ---- after so much training -----------------------------------------------------------------------------------------------------


@FEW
@given(case=CASES, kind=KINDS, rate_sum=st.sampled_from([0.01, 1.0, 50.0]))
def test_after_training_is_gradient_flow_under_constant_curvature(case: Case, kind: tuple[PairLoss, str], rate_sum: float) -> None:
    """J [integral over s from 0 to tau of exp(-s H)] J^T / N, by a block exponential over parameters."""
    h, examples = h_of(case, *kind), int(case.multiplicity.sum())
    state = decompose(case.kernel, case.laplacian(h), precision=EXACT)
    if isinstance(state, NoCurvature):
        return
    p = case.train.shape[1]
    block = np.zeros((2 * p, 2 * p))
    block[:p, :p], block[:p, p:] = -case.hessian(h) / examples, np.eye(p)
    phi = linalg.expm(rate_sum * block)[:p, p:] / examples
    mapped = state.after_training(rate_sum, examples)
    for actual, (left, right) in zip(
        (mapped.train_train, mapped.test_train, mapped.test_test),
        ((case.train, case.train), (case.test, case.train), (case.test, case.test)),
        strict=True,
    ):
        assert_close(actual, left @ phi @ right.T)


def test_after_training_joins_tracin_to_influence_functions() -> None:
    case = make_case(2, samples=5, parameters=8)
    laplacian = case.laplacian(np.ones(len(case.first)))
    state = decompose(case.kernel, laplacian + np.eye(5), precision=EXACT)
    assert isinstance(state, CurvedKernel)
    examples = 40
    assert_close(state.after_training(1e-7, examples).test_test, 1e-7 / examples * case.kernel.test_test, 1e-5)
    assert_close(state.after_training(1e7, examples).test_train, state.at(1e-9).test_train, 1e-5)
    none = NoCurvature("flat")
    mapped = methods.training_time_mean([case.kernel, case.kernel], [state, none], 2.0, examples)
    assert_close(mapped.kernels[1].test_train, 2.0 / examples * case.kernel.test_train)
    np.testing.assert_array_equal(mapped.weights, [0.5, 0.5])


# ---- TRAK, and the plain ones ---------------------------------------------------------------------------------------------------


@FEW
@given(case=CASES, delta=st.sampled_from([0.1, 1.0]))
def test_trak_is_its_formula_over_explicit_features(case: Case, delta: float) -> None:
    """mean over models of Phi (Phi^T Phi + mu I)^-1 phi', times the mean of 1 - p; margins t (s_i - s_j), copies counted."""
    generator = np.random.default_rng(0)
    margins = [case.train, generator.standard_normal(case.train.shape)]
    tests = [case.test, generator.standard_normal(case.test.shape)]
    slopes = generator.random((2, len(case.first)))
    p, q = case.test_pairs.T
    b, b_test = pair_rows(case.first, case.second, case.target, case.size), pair_rows(p, q, np.ones(len(p)), len(case.test))
    states = [
        decompose(Kernel(j @ j.T, x @ j.T, x @ x.T), curvature.fisher_curvature(b, case.multiplicity), precision=EXACT)
        for j, x in zip(margins, tests, strict=True)
    ]
    if not case.multiplicity.any():
        return
    expected = np.zeros((len(case.first), len(p)))
    for j, x, state in zip(margins, tests, states, strict=True):
        phi = case.target[:, None] * (j[case.first] - j[case.second])
        assert isinstance(state, CurvedKernel)
        ridge = state.damping(delta) * np.eye(j.shape[1])
        expected += phi @ np.linalg.inv(phi.T @ (case.multiplicity[:, None] * phi) + ridge) @ (x[p] - x[q]).T / 2
    scores = methods.trak(methods.curvature_mean(states, delta), b, b_test, slopes)
    assert_close(scores, expected * slopes.mean(axis=0)[:, None])


def test_trak_without_damping_says_nothing_of_training_examples_on_themselves() -> None:
    """Phi (Phi^T Phi)^-1 Phi^T is the identity for independent features: as mu falls, K_mu between training samples becomes it."""
    case = make_case(3, samples=5, parameters=20)
    assert_close(curved(case.kernel, np.eye(5), 1e-9).train_train, np.eye(5), 1e-6)


@FEW
@given(case=CASES, loss=st.sampled_from(LOSSES))
def test_plain_methods_are_choices_of_kernels_and_weights(case: Case, loss: PairLoss) -> None:
    later = Case(**{**case.__dict__, "train": np.tanh(case.train), "test": np.tanh(case.test)})
    kernels, rows, tests = [case.kernel, later.kernel], [case.rows(loss)] * 2, [case.test_rows()] * 2
    each = [c.gradients(loss) @ c.test_gradients().T for c in (case, later)]
    own = [(c.gradients(loss) ** 2).sum(axis=1) for c in (case, later)]
    tracin, last = methods.tracin(kernels, [0.5, 2.0]), methods.last_checkpoint(kernels)
    assert_close(methods.influence(tracin, rows, tests), 0.5 * each[0] + 2 * each[1])
    np.testing.assert_allclose(methods.self_influence(tracin, rows), 0.5 * own[0] + 2 * own[1], atol=1e-10)
    assert_close(methods.influence(last, rows, tests), each[1])
    np.testing.assert_allclose(methods.self_influence(last, rows), own[1], atol=1e-10)
    test_own = (later.test_gradients() ** 2).sum(axis=1)
    cosines = methods.cosine(methods.influence(last, rows, tests), methods.self_influence(last, rows), test_own)
    dead = own[1] == 0
    assert np.isnan(cosines[dead]).all()
    assert (np.abs(cosines[~dead]) <= 1 + 1e-12).all()
    assert_close(cosines[~dead], each[1][~dead] / np.sqrt(own[1][~dead, None] * test_own))


def test_squared_lengths_of_rows_of_any_width() -> None:
    """Rows of none, one, two and many entries; a length that a float32 kernel cannot tell from 0 is 0."""
    generator = np.random.default_rng(0)
    gradients = generator.standard_normal((6, 4))
    rows = sparse.csr_array(generator.standard_normal((9, 6)) * (generator.random((9, 6)) < np.arange(9)[:, None] / 8))
    expected = ((rows @ gradients) ** 2).sum(axis=1)
    np.testing.assert_allclose(methods.squared_lengths(rows, gradients @ gradients.T), expected, rtol=1e-12)
    twins = np.array([[1.0, 1 - 3e-7], [1 - 3e-7, 1.0]])
    assert methods.squared_lengths(pair_rows([0], [1], [1.0], 2), twins).tolist() == [0.0]


def test_baselines() -> None:
    losses = np.array([[1.0, 2.0, 3.0], [3.0, 0.0, 1.0]])
    assert methods.last_loss(losses).tolist() == [3.0, 0.0, 1.0]
    assert methods.mean_loss(losses).tolist() == [2.0, 1.0, 2.0]
    assert methods.random_scores(5, seed=3).tolist() == methods.random_scores(5, seed=3).tolist()
    assert methods.random_scores(5, seed=3).tolist() != methods.random_scores(5, seed=4).tolist()
    with pytest.raises(ViewError, match="finite"):
        methods.mean_loss([[1.0, np.nan]])


# ---- the registry ---------------------------------------------------------------------------------------------------------------


def test_every_method_says_what_it_is() -> None:
    for name, entry in methods.METHODS.items():
        assert methods.method(name) is entry
        assert entry.name == name
        assert entry.answers.endswith("?")
        assert entry.means_nothing.endswith(".")
        assert entry.paper
        assert entry.defines
        assert entry.defines <= {"self_influence", "influence"}
    assert methods.method("representer_points").needs["influence"] >= {"smooth_loss", "last_layer_group"}
    assert methods.method("linearised_retraining").needs["influence"] >= {"epoch_0", "learning_rates", "sgd"}
    assert methods.method("mean_loss").defines == {"self_influence"}


@pytest.mark.parametrize(
    ("ask", "exists"),
    [
        (lambda: methods.method("magic"), methods.METHODS),
        (lambda: damping.damping_rule("magic"), damping.DAMPING_RULES),
        (lambda: curvature.pair_curvature("magic", LOSSES[0], np.zeros(1), np.zeros(1), np.ones(1)), curvature.PAIR_CURVATURES),
    ],
)
def test_an_unknown_name_lists_what_exists(ask: Callable[[], Any], exists: dict[str, Any]) -> None:
    with pytest.raises(ViewError, match="magic") as refused:
        ask()
    assert all(name in str(refused.value) for name in exists)


# ---- bad input ------------------------------------------------------------------------------------------------------------------

KERNEL = make_case(1, samples=4, parameters=6).kernel
STATE = decompose(KERNEL, np.eye(4), precision=EXACT)
SKEW = np.eye(4) + np.triu(np.ones((4, 4)), 1)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_damping_must_be_a_number_above_zero(value: float) -> None:
    assert isinstance(STATE, CurvedKernel)
    for ask in (
        lambda: curved(KERNEL, np.eye(4), value),
        lambda: STATE.at(value),
        lambda: STATE.squared_at(value),
        lambda: STATE.damping(value),
        lambda: STATE.after_training(value, 10),
        lambda: STATE.after_training(1.0, value),
        lambda: methods.training_time_mean([KERNEL], [NoCurvature("flat")], value, 10),
        lambda: damping.best_by_lds(lambda delta, rows: 0.0, 8, deltas=(1.0, value)),
        lambda: curvature.pair_curvature("softplus", PairLoss(), np.zeros(1), np.zeros(1), np.ones(1), temperature=value),
    ):
        with pytest.raises(ViewError, match=f"{value}.*above 0"):
            ask()


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: curved(KERNEL, SKEW, 1.0), r"not symmetric: 1 at \(0, 1\), but 0 at \(1, 0\)"),
        (lambda: decompose(KERNEL, SKEW), "not symmetric"),
        (lambda: curved(KERNEL, np.eye(3), 1.0), r"\(3, 3\).*4 training positions"),
        (lambda: curved(KERNEL, np.ones(4), 1.0), r"\(4,\)"),
        (lambda: curved(KERNEL, np.diag([1, 1, np.nan, 1]), 1.0), r"\(2, 2\) is nan"),
        (lambda: curved(KERNEL, np.diag([1, 1, -2.0, 1]), 1.0), "-2 at position 2"),
        (lambda: decompose(KERNEL, np.ones((4, 4)) - 0.5 * np.eye(4)), "none can be below 0"),
        (lambda: curved(Kernel(np.ones((2, 2)), np.ones((1, 2)), np.eye(1)), np.ones((2, 2)), 1e-30), "1e-30 is lost"),
        (lambda: curved(KERNEL, np.diag([1e9, 0, 0, 0]), 1e-9), "1e-09 is lost"),
        (lambda: decompose(Kernel(np.diag([1.0, -1.0]), np.zeros((1, 2)), np.eye(1)), np.eye(2)), "-1 to 1"),
        (lambda: Kernel(np.eye(3), np.zeros((2, 4)), np.eye(2)), r"\(2, 4\); \(2, 3\)"),
        (lambda: Kernel(np.eye(2) + np.triu(np.ones((2, 2)), 1), np.zeros((2, 2)), np.eye(2)), "not symmetric"),
        (lambda: Kernel(np.full((2, 2), np.nan), np.zeros((2, 2)), np.eye(2)), "nan"),
        (lambda: curvature.pair_laplacian([0], [1], [1.0], 2, [-1]), "multiplicity of example 0 is -1"),
        (lambda: curvature.pair_laplacian([0], [1], [-1.0], 2), "h of example 0 is -1"),
        (lambda: curvature.pair_laplacian([0], [1], [np.nan], 2), "nan"),
        (lambda: curvature.pair_laplacian([0, 1], [1, 1], [1.0, 1.0], 2), "Pair 1 stands on the samples 1 and 1"),
        (lambda: curvature.pair_laplacian([0], [2], [1.0], 2), "0 and 2"),
        (lambda: curvature.pair_laplacian([0], [1, 0], [1.0], 2), "make no pairs"),
        (lambda: curvature.pair_laplacian([0], [1], [1.0, 2.0], 2), "2 weights h were given for 1 pairs"),
        (lambda: curvature.sample_curvature([1.0, 1.0], [1]), "1 multiplicities were given for 2"),
        (lambda: curvature.softmax_curvature([1.0, 2.0]), "at least two outputs"),
        (lambda: curvature.fisher_curvature(sparse.csr_array([[np.inf, 0.0]])), "not a finite number"),
        (lambda: curvature.pair_curvature("gauss_newton", PairLoss(), np.zeros(1), np.zeros(1), np.ones(1)), "is a hinge"),
        (lambda: curvature.pair_curvature("softplus", LOSSES[0], np.zeros(1), np.zeros(1), np.ones(1)), "stands in for a hinge"),
        (lambda: curvature.sample_second_derivative(SampleLoss("focal"), [0.0], [1]), "can be negative"),
        (lambda: curvature.sample_second_derivative(SampleLoss("cross_entropy"), [[0.0, 1.0]], [1]), "softmax_curvature"),
        (lambda: methods.tracin([KERNEL], [1.0, 2.0]), "2 weights were given for 1"),
        (lambda: methods.tracin([KERNEL], [np.nan]), "finite"),
        (lambda: methods.last_checkpoint([]), "no checkpoint"),
        (lambda: methods.trak(methods.tracin([KERNEL], [1.0]), sparse.eye_array(4), sparse.eye_array(2), [[1, 1, 1]]), r"\(1, 3\)"),
        (
            lambda: methods.trak(methods.tracin([KERNEL], [1.0]), sparse.eye_array(4), sparse.eye_array(2), [[1, 1, -1, 1]]),
            "example 2 at model 0 is -1",
        ),
        (lambda: damping.best_by_lds(lambda delta, rows: 0.0, 3), "at least 4"),
        (lambda: damping.best_by_lds(lambda delta, rows: np.nan, 8), "is nan"),
        (lambda: damping.agreement(np.ones((2, 2)), np.ones((2, 3))), "two equal tables"),
        (lambda: damping.agreement([[np.nan]], [[1.0]]), r"score at \(0, 0\) is nan"),
    ],
)
def test_what_has_no_answer_is_refused_with_its_values(ask: Callable[[], Any], told: str) -> None:
    with pytest.raises(ViewError, match=told):
        ask()


def test_expit_tails_of_the_logistic_curvature_keep_their_digits() -> None:
    """sigmoid(z) sigmoid(-z), not p (1 - p): at z = 40 the latter is 0."""
    h = curvature.pair_curvature("gauss_newton", PairLoss(name="logistic", margin=40.0), np.zeros(1), np.zeros(1), np.ones(1))
    np.testing.assert_allclose(h, special.expit(-40.0), rtol=1e-12)
