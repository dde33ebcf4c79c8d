"""Representer points against a direct minimisation over the last layer's weights, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import optimize

from tracin_core.errors import ViewError
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.objectives import Objective, PairObjective, SampleObjective
from tracin_core.scores.representer import Representers, class_representers, representer_points
from tracin_core.scores.sample_losses import SampleLoss

EXACT = {"rtol": 1e-9, "atol": 1e-9}  # the refit's residual is below 1e-10
MINIMISED = {"rtol": 0, "atol": 2e-6}  # the peer stops where its gradient is about 1e-8
RIDGE, SAMPLES, TESTS, CLASSES = 0.05, 9, 4, 3
GENERATOR = np.random.default_rng(0)
FEATURES, TEST_FEATURES = GENERATOR.standard_normal((SAMPLES, 5)), GENERATOR.standard_normal((TESTS, 5))
FIRST, SECOND = (ends.astype(np.int64) for ends in np.triu_indices(SAMPLES, 1))
TARGET = np.where(FEATURES[FIRST, 0] + GENERATOR.standard_normal(len(FIRST)) > FEATURES[SECOND, 0], 1, -1)
LABELS = GENERATOR.integers(0, CLASSES, SAMPLES)


def pairs(name: Any, **settings: Any) -> PairObjective:
    return PairObjective(PairLoss(name=name, margin=1.0), FIRST, SECOND, TARGET, SAMPLES, **settings)


OBJECTIVES: dict[str, Objective] = {
    "logistic pairs": pairs("logistic"),
    "squared hinge pairs": pairs("squared_hinge"),
    "weighted pairs": pairs("logistic", weight=GENERATOR.random(len(FIRST))),
    "binary": SampleObjective(SampleLoss("binary_cross_entropy"), LABELS > 0),
    "numbers": SampleObjective(SampleLoss("squared_error"), GENERATOR.standard_normal(SAMPLES)),
    "robust numbers": SampleObjective(SampleLoss("huber", delta=0.3), GENERATOR.standard_normal(SAMPLES)),
    "classes": SampleObjective(SampleLoss("cross_entropy"), LABELS, outputs=CLASSES),
    "smoothed classes": SampleObjective(SampleLoss("label_smoothing"), LABELS, outputs=CLASSES),
    "vectors": SampleObjective(SampleLoss("squared_error"), GENERATOR.standard_normal((SAMPLES, CLASSES)), outputs=CLASSES),
}


def kernels(objective: Objective) -> tuple[np.ndarray, np.ndarray]:
    each = np.eye(objective.positions // SAMPLES)
    return np.kron(FEATURES @ FEATURES.T, each), np.kron(TEST_FEATURES @ FEATURES.T, each)


def refit(objective: Objective, **settings: Any) -> Representers:
    return representer_points(*kernels(objective), objective, **{"ridge": RIDGE, **settings})


def minimised(objective: Objective, copies: np.ndarray) -> np.ndarray:
    """The test outputs of the last layer W at the minimum of the mean loss + RIDGE |W|^2, over W itself."""
    shape = FEATURES.shape[1], objective.positions // SAMPLES

    def total(flat: np.ndarray) -> tuple[float, np.ndarray]:
        outputs = (FEATURES @ flat.reshape(shape)).reshape(-1, 1)
        loss = copies @ objective.losses(outputs)[:, 0] / copies.sum() + RIDGE * flat @ flat
        pull = objective.pull(outputs, copies[:, None]) / copies.sum()
        return float(loss), (FEATURES.T @ pull.reshape(SAMPLES, -1)).ravel() + 2 * RIDGE * flat

    found = optimize.minimize(total, np.zeros(shape).ravel(), jac=True, method="BFGS", options={"gtol": 1e-9})
    return np.asarray((TEST_FEATURES @ found.x.reshape(shape)).ravel())


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("copied", [False, True])
def test_values_add_up_to_the_outputs_at_the_minimum(name: str, copied: bool) -> None:
    """Over the examples, copies counted; the minimum is that of a search over the weights themselves."""
    objective = OBJECTIVES[name]
    copies = np.random.default_rng(1).integers(0, 3, objective.examples).astype(float) if copied else np.ones(objective.examples)
    points = refit(objective, multiplicity=copies)
    assert points.residual <= 1e-10
    assert points.values.shape == (objective.examples, len(points.test))
    np.testing.assert_allclose(copies @ points.values, points.test, **EXACT)
    np.testing.assert_allclose(points.test, minimised(objective, copies), **MINIMISED)


def test_alpha_is_the_derivative_at_the_minimum() -> None:
    """alpha_i = -(1 / (2 lambda N)) dL_i / df_i, and a value is alpha_i times a product of features."""
    objective = OBJECTIVES["binary"]
    points = refit(objective)
    slope = 1 / (1 + np.exp(-points.train)) - (LABELS > 0)
    np.testing.assert_allclose(points.alpha, -slope / (2 * RIDGE * SAMPLES), **EXACT)
    np.testing.assert_allclose(points.values, points.alpha[:, None] * (FEATURES @ TEST_FEATURES.T), **EXACT)


@pytest.mark.parametrize("copied", [False, True])
def test_classes_that_share_one_kernel_have_the_values_of_the_whole_refit(copied: bool) -> None:
    objective = OBJECTIVES["classes"]
    copies = np.random.default_rng(1).integers(1, 3, SAMPLES).astype(float) if copied else None
    whole = refit(objective, multiplicity=copies)
    kernel, to_test = FEATURES @ FEATURES.T, TEST_FEATURES @ FEATURES.T
    wanted = np.array([0, 1, 2, 1])
    found = class_representers(kernel, to_test, LABELS, wanted, CLASSES, ridge=RIDGE, multiplicity=copies)
    towards = whole.values.reshape(SAMPLES, TESTS, CLASSES)[:, np.arange(TESTS), wanted]
    np.testing.assert_allclose(found.values, towards, rtol=0, atol=1e-6)
    assert found.residual < 1e-7
    np.testing.assert_allclose(found.own, found.alpha[np.arange(SAMPLES), LABELS] * np.diag(kernel))
    assert (found.own >= 0).all()


def test_more_features_than_samples_and_copied_samples() -> None:
    """The kernel may be singular: two samples may be one."""
    features = np.vstack([FEATURES, FEATURES[:2]])
    objective = SampleObjective(SampleLoss("binary_cross_entropy"), np.append(LABELS > 0, [True, False]))
    points = representer_points(features @ features.T, TEST_FEATURES @ features.T, objective, ridge=RIDGE)
    np.testing.assert_allclose(points.values.sum(axis=0), points.test, **EXACT)


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: refit(pairs("margin")), "margin has a kink"),
        (lambda: refit(pairs("ghm", weight=np.ones(len(FIRST)))), "ghm has a kink"),
        (lambda: refit(SampleObjective(SampleLoss("focal"), LABELS > 0)), "not convex"),
        (lambda: refit(OBJECTIVES["binary"], max_steps=1), "residual of .* after 1 steps, above 1e-10"),
        (lambda: refit(OBJECTIVES["binary"], tolerance=1e-30), "above 1e-30"),
        (lambda: refit(OBJECTIVES["binary"], ridge=0.0), "ridge lambda is 0.0"),
        (lambda: refit(OBJECTIVES["binary"], ridge=np.nan), "ridge lambda is nan"),
        (lambda: refit(OBJECTIVES["binary"], multiplicity=-np.ones(SAMPLES)), "at least 0"),
        (lambda: refit(OBJECTIVES["binary"], multiplicity=np.zeros(SAMPLES)), "not all 0"),
        (lambda: refit(OBJECTIVES["binary"], multiplicity=np.ones(2)), r"\(2,\)"),
        (lambda: class_representers(np.eye(2), np.eye(2), [0, 1], [0, 1], 2, ridge=-1.0), "ridge lambda is -1.0"),
        (lambda: class_representers(np.eye(2), np.eye(2), [0, 1], [0, 1], 2, ridge=1.0, tolerance=0.0), "residual of .* above 0"),
        (lambda: representer_points(np.eye(3), np.eye(3), OBJECTIVES["binary"], ridge=1.0), "9 positions"),
        (lambda: representer_points(np.full((9, 9), np.nan), np.eye(9), OBJECTIVES["binary"], ridge=1.0), "finite"),
    ],
)
def test_what_has_no_representers_is_refused(ask: Callable[[], Any], told: str) -> None:
    with pytest.raises(ViewError, match=told):
        ask()
