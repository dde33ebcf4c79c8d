"""Linearised retraining against torch's own SGD on models that are linear in their parameters, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tracin_core.errors import ViewError
from tracin_core.scores import retraining
from tracin_core.scores.curvature import Kernel
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.objectives import Objective, PairObjective, SampleObjective
from tracin_core.scores.retraining import (
    Descent,
    Start,
    leave_out_examples,
    leave_out_samples,
    own_rise,
    predicted_change,
    predicted_rise,
    replay,
)
from tracin_core.scores.sample_losses import SampleLoss

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # the same steps in another order of sums; outputs are of about 1
STEPS, SAMPLES, TESTS, FEATURES = 15, 7, 4, 5
RATES = 0.05 * (1 + np.cos(np.pi * np.arange(STEPS) / STEPS))
GENERATOR = np.random.default_rng(0)
TRAIN, TEST = GENERATOR.standard_normal((SAMPLES, FEATURES)), GENERATOR.standard_normal((TESTS, FEATURES))
WEIGHTS = GENERATOR.standard_normal(FEATURES)  # before training
KERNEL = Kernel(TRAIN @ TRAIN.T, TEST @ TRAIN.T, TEST @ TEST.T)
START = Start(0, TRAIN @ WEIGHTS, TEST @ WEIGHTS)
FIRST, SECOND = (ends.astype(np.int64) for ends in np.triu_indices(SAMPLES, 1))
TARGET = np.where(GENERATOR.random(len(FIRST)) < 0.5, 1, -1)
PAIRS = len(FIRST)
BATCHES = [GENERATOR.choice(PAIRS, size=6, replace=False) for _ in range(STEPS)]


def torch_pair_losses(loss: PairLoss, scores: torch.Tensor, target: np.ndarray) -> torch.Tensor:
    z = loss.margin - torch.from_numpy(target.astype(float)) * (scores[FIRST] - scores[SECOND])
    if loss.name == "logistic":
        return nn.functional.softplus(z)
    return z.clamp(min=0) ** 2 if loss.name == "squared_hinge" else z.clamp(min=0)


def trained(
    losses: Callable[[torch.Tensor], torch.Tensor],
    descent: Descent,
    copies: np.ndarray,
    weights: np.ndarray = WEIGHTS,
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of train and test after torch's SGD over parameters; an excluded example is left out of each batch."""
    theta = torch.tensor(weights, requires_grad=True)
    optimizer = torch.optim.SGD([theta], lr=1.0, momentum=descent.momentum)
    train, test = torch.from_numpy(TRAIN), torch.from_numpy(TEST)
    for step, rate in enumerate(descent.learning_rates):
        rows = np.arange(len(copies)) if descent.batches is None else descent.batches[step]
        rows = np.repeat(rows, copies[rows])
        if not len(rows):
            continue
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        each = losses(train @ theta)[rows]
        (each.mean() if descent.reduction == "mean" else each.sum()).backward()
        optimizer.step()
    with torch.no_grad():
        return (train @ theta).numpy(), (test @ theta).numpy()


@pytest.mark.parametrize("name", ["margin", "logistic", "squared_hinge"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("batches", [None, BATCHES])
def test_a_replay_is_the_training_of_a_linear_model(name: Any, momentum: float, reduction: Any, batches: Any) -> None:
    """With a schedule, momentum, batches, and copies: none, one and several; each replay beside others equals it alone."""
    loss = PairLoss(name=name, margin=1.0)
    rates = RATES if reduction == "mean" else RATES / PAIRS
    descent = Descent(rates, "SGD", momentum=momentum, reduction=reduction, batches=batches)
    copies = np.random.default_rng(1).integers(0, 3, size=(PAIRS, 4))
    copies[:, 0] = 1
    ends = replay(KERNEL, START, PairObjective(loss, FIRST, SECOND, TARGET, SAMPLES), descent, copies)
    for column in range(4):
        train, test = trained(lambda scores: torch_pair_losses(loss, scores, TARGET), descent, copies[:, column])
        np.testing.assert_allclose(ends.train[:, column], train, **EXACT)
        np.testing.assert_allclose(ends.test[:, column], test, **EXACT)
    alone = replay(KERNEL, START, PairObjective(loss, FIRST, SECOND, TARGET, SAMPLES), descent)
    np.testing.assert_allclose(alone.test[:, 0], ends.test[:, 0], **EXACT)
    assert np.abs(alone.test[:, 0] - START.test).max() > 0.01  # it did train


def test_weights_scale_a_pair_without_counting_as_copies() -> None:
    """Frozen GHM weights, and another set of weights in each replay."""
    loss = PairLoss(name="ghm", margin=1.0)
    descent = Descent(RATES, "SGD", momentum=0.5)
    weights = np.random.default_rng(2).random((PAIRS, 3))
    ends = replay(KERNEL, START, PairObjective(loss, FIRST, SECOND, TARGET, SAMPLES, weights), descent)
    for column in range(3):
        scale = torch.from_numpy(weights[:, column])
        train, _ = trained(
            lambda scores, by=scale: by * torch_pair_losses(loss, scores, TARGET), descent, np.ones(PAIRS, dtype=int)
        )
        np.testing.assert_allclose(ends.train[:, column], train, **EXACT)


def test_relabelled_pairs_are_other_targets_in_each_replay() -> None:
    loss, descent = PairLoss(name="logistic", margin=0.0), Descent(RATES, "SGD")
    targets = np.stack([TARGET, -TARGET, np.where(FIRST == 2, -TARGET, TARGET)], axis=1)
    ends = replay(KERNEL, START, PairObjective(loss, FIRST, SECOND, targets, SAMPLES), descent)
    for column in range(3):
        train, test = trained(
            lambda scores, to=targets[:, column]: torch_pair_losses(loss, scores, to), descent, np.ones(PAIRS, dtype=int)
        )
        np.testing.assert_allclose(ends.train[:, column], train, **EXACT)
        np.testing.assert_allclose(ends.test[:, column], test, **EXACT)


@pytest.mark.parametrize("name", ["binary_cross_entropy", "squared_error", "huber"])
def test_samples_of_one_output_are_replayed(name: Any) -> None:
    """Other targets in each replay, a sample left out, and batches."""
    generator = np.random.default_rng(3)
    loss = SampleLoss(name)
    label = name == "binary_cross_entropy"
    targets = generator.integers(0, 2, (SAMPLES, 2)) if label else generator.standard_normal((SAMPLES, 2))
    batches = [generator.choice(SAMPLES, size=3) for _ in range(STEPS)]  # with replacement
    descent = Descent(RATES, "sgd", momentum=0.9, batches=batches)
    copies = np.ones((SAMPLES, 2), dtype=int)
    copies[4, 1] = 0
    ends = replay(KERNEL, START, SampleObjective(loss, targets), descent, copies)

    def losses(scores: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        if label:
            return nn.functional.binary_cross_entropy_with_logits(scores, to, reduction="none")
        if name == "huber":
            return nn.functional.huber_loss(scores, to, reduction="none")
        return nn.functional.mse_loss(scores, to, reduction="none")

    for column in range(2):
        to = torch.from_numpy(targets[:, column].astype(float))
        train, test = trained(lambda scores, to=to: losses(scores, to), descent, copies[:, column])
        np.testing.assert_allclose(ends.train[:, column], train, **EXACT)
        np.testing.assert_allclose(ends.test[:, column], test, **EXACT)


@pytest.mark.parametrize("name", ["cross_entropy", "label_smoothing", "squared_error"])
def test_samples_of_several_outputs_are_replayed(name: Any) -> None:
    """k linear outputs: the kernel of outputs apart is K (x) I; position i k + c."""
    k, generator = 3, np.random.default_rng(4)
    matrix = generator.standard_normal((FEATURES, k))
    numbers = generator.standard_normal((SAMPLES, k))
    labels = generator.integers(0, k, SAMPLES)
    loss = SampleLoss(name, smoothing=0.2)
    eye = np.eye(k)
    kernel = Kernel(np.kron(TRAIN @ TRAIN.T, eye), np.kron(TEST @ TRAIN.T, eye), np.kron(TEST @ TEST.T, eye))
    descent = Descent(RATES, "SGD", momentum=0.9)
    copies = generator.integers(1, 3, SAMPLES)
    objective = SampleObjective(loss, numbers if name == "squared_error" else labels, outputs=k)
    ends = replay(kernel, Start(0, TRAIN @ matrix, TEST @ matrix), objective, descent, copies)

    def losses(outputs: torch.Tensor) -> torch.Tensor:
        if name == "squared_error":
            return ((outputs - torch.from_numpy(numbers)) ** 2).sum(dim=1)
        smoothing = 0.2 if name == "label_smoothing" else 0.0
        return nn.functional.cross_entropy(outputs, torch.from_numpy(labels), reduction="none", label_smoothing=smoothing)

    train, test = trained(losses, descent, copies, weights=matrix)
    np.testing.assert_allclose(ends.train[:, 0], train.ravel(), **EXACT)
    np.testing.assert_allclose(ends.test[:, 0], test.ravel(), **EXACT)


def test_a_batch_with_nothing_left_makes_no_step() -> None:
    """As in a training that never forms it: momentum does not coast either."""
    loss = PairLoss(name="logistic", margin=1.0)
    batches = [np.array([step % 3]) for step in range(STEPS)]
    descent = Descent(RATES, "SGD", momentum=0.9, batches=batches)
    copies = np.ones((PAIRS, 2), dtype=int)
    copies[1, 1] = 0
    ends = replay(KERNEL, START, PairObjective(loss, FIRST, SECOND, TARGET, SAMPLES), descent, copies)
    for column in range(2):
        _, test = trained(lambda scores: torch_pair_losses(loss, scores, TARGET), descent, copies[:, column])
        np.testing.assert_allclose(ends.test[:, column], test, **EXACT)


# ---- what leaving out does ------------------------------------------------------------------------------------------------------

OBJECTIVE = PairObjective(PairLoss(name="logistic", margin=1.0), FIRST, SECOND, TARGET, SAMPLES)
DESCENT = Descent(RATES, "SGD", momentum=0.9)


def without(copies: np.ndarray) -> np.ndarray:
    return trained(lambda scores: torch_pair_losses(OBJECTIVE.loss, scores, TARGET), DESCENT, copies)[1]


@pytest.mark.parametrize("cells", [1, 50, 10**9])
def test_predicted_change_is_training_without_each_sample_or_pair(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are replayed at a time; copies count."""
    monkeypatch.setattr(retraining, "CELLS_AT_ONCE", cells)
    copies = np.random.default_rng(5).integers(1, 3, PAIRS)
    whole = without(copies)
    samples = predicted_change(KERNEL, START, OBJECTIVE, DESCENT, leave_out_samples(OBJECTIVE), copies)
    assert samples.test.shape == (TESTS, SAMPLES)
    for sample in range(SAMPLES):
        kept = np.where((sample == FIRST) | (sample == SECOND), 0, copies)
        np.testing.assert_allclose(samples.test[:, sample], without(kept) - whole, **EXACT)
    chosen = [3, 0, 11]
    pairs = predicted_change(KERNEL, START, OBJECTIVE, DESCENT, leave_out_examples(PAIRS, chosen), copies)
    for column, pair in enumerate(chosen):
        np.testing.assert_allclose(pairs.test[:, column], without(np.where(np.arange(PAIRS) == pair, 0, copies)) - whole, **EXACT)
    np.testing.assert_allclose(pairs.baseline.test[:, 0], whole, **EXACT)


def test_predicted_rise_is_of_the_test_losses() -> None:
    """Left out x test, and of the sign of influence: positive where the example had lowered the loss."""
    test_pairs = PairObjective(OBJECTIVE.loss, np.array([0, 1, 2]), np.array([3, 2, 0]), np.array([1, -1, 1]), TESTS)
    change = predicted_change(KERNEL, START, OBJECTIVE, DESCENT, leave_out_examples(PAIRS, range(PAIRS)))
    rise = predicted_rise(change, test_pairs.losses)
    assert rise.shape == (PAIRS, 3)
    after = test_pairs.losses(without(np.where(np.arange(PAIRS) == 6, 0, 1))[:, None])
    before = test_pairs.losses(without(np.ones(PAIRS, dtype=int))[:, None])
    np.testing.assert_allclose(rise[6], (after - before)[:, 0], **EXACT)
    own = own_rise(change, OBJECTIVE, np.arange(PAIRS))
    assert (own > 0).all()  # every pair is told better with itself than without
    train = trained(
        lambda scores: torch_pair_losses(OBJECTIVE.loss, scores, TARGET), DESCENT, np.where(np.arange(PAIRS) == 6, 0, 1)
    )[0]
    losses = OBJECTIVE.losses(np.stack([train, change.baseline.train[:, 0]], axis=1))
    np.testing.assert_allclose(own[6], losses[6, 0] - losses[6, 1], **EXACT)


def test_nothing_excluded_changes_nothing() -> None:
    change = predicted_change(KERNEL, START, OBJECTIVE, DESCENT, np.zeros((2, PAIRS)))
    np.testing.assert_allclose(change.test, np.zeros((TESTS, 2)), **EXACT)
    none = predicted_change(KERNEL, START, OBJECTIVE, DESCENT, leave_out_examples(PAIRS, []))
    assert none.test.shape == (TESTS, 0)


# ---- what cannot be replayed ----------------------------------------------------------------------------------------------------


def descent(**change: Any) -> Descent:
    return Descent(**{"learning_rates": RATES, "optimizer": "SGD", **change})


def pairs(**change: Any) -> PairObjective:
    given: dict[str, Any] = {"loss": PairLoss(), "first": FIRST, "second": SECOND, "target": TARGET, "samples": SAMPLES}
    return PairObjective(**{**given, **change})


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: descent(optimizer="Adam"), "trained with Adam"),
        (lambda: descent(optimizer=None), "do not say which optimiser"),
        (lambda: descent(learning_rates=[0.1, None, 0.1]), "step 2 of 3 is missing"),
        (lambda: descent(learning_rates=[0.1, -0.1]), "step 2 of 2 is -0.1"),
        (lambda: descent(learning_rates=[]), "make no steps"),
        (lambda: descent(momentum=1.0), "momentum is 1.0"),
        (lambda: descent(momentum=np.nan), "momentum is nan"),
        (lambda: descent(reduction="median"), "mean, sum"),
        (lambda: descent(batches=BATCHES[:2]), "2 batches were given for 15 steps"),
        (lambda: descent(weight_decay=0.01), "weight decay of 0.01"),
        (lambda: Start(5, START.train, START.test), "of epoch 5"),
        (lambda: Start(0, np.array([np.nan]), START.test), "train output 0 at epoch 0 is nan"),
        (lambda: Start.of([1, 5], np.zeros((2, 3)), np.zeros((2, 1))), "epochs 1, 5"),
        (lambda: replay(KERNEL, START, OBJECTIVE, DESCENT, np.ones(3)), r"\(3, 1\) do not fit 21"),
        (lambda: replay(KERNEL, START, OBJECTIVE, DESCENT, -np.ones(PAIRS)), "example 0 in replay 0 is -1"),
        (lambda: replay(KERNEL, START, OBJECTIVE, DESCENT, np.full(PAIRS, np.nan)), "is nan"),
        (lambda: replay(KERNEL, START, OBJECTIVE, DESCENT, np.zeros(PAIRS)), "Replay 0 leaves none of the 21"),
        (lambda: replay(KERNEL, Start(0, START.test, START.test), OBJECTIVE, DESCENT), "outputs of 4 and 4"),
        (lambda: replay(KERNEL, START, OBJECTIVE, descent(batches=[np.array([PAIRS])] * STEPS)), "there are 0 to 20"),
        (lambda: replay(KERNEL, START, pairs(target=np.ones((PAIRS, 2))), DESCENT, np.ones((PAIRS, 3))), "of 3 replays"),
        (lambda: replay(KERNEL, START, SampleObjective(SampleLoss("squared_error"), np.zeros(SAMPLES)), descent(
            learning_rates=np.full(600, 1e3))), "beyond all numbers at step"),
        (lambda: predicted_change(KERNEL, START, OBJECTIVE, DESCENT, np.zeros((1, 3))), "3 columns for 21 examples"),
        (lambda: predicted_change(KERNEL, START, pairs(target=np.ones((PAIRS, 2))), DESCENT, np.zeros((1, PAIRS))), "of 2 trainings"),
        (lambda: predicted_change(KERNEL, START, OBJECTIVE, DESCENT, np.zeros((1, PAIRS)), np.ones((PAIRS, 2))), "of 2 trainings"),
        (lambda: leave_out_examples(3, [3]), "no example 3"),
        (lambda: pairs(target=np.zeros(PAIRS)), "target is 0"),
        (lambda: pairs(target=np.ones(3)), r"finite target each.*\(3,\)"),
        (lambda: pairs(weight=np.full(PAIRS, np.nan)), "finite weight each"),
        (lambda: pairs(loss=PairLoss(name="ghm")), "give the pairs' weights"),
        (lambda: pairs(samples=3), "0 to 2"),
        (lambda: pairs(target=np.ones((PAIRS, 2)), weight=np.ones((PAIRS, 3))), "2 and 3 trainings"),
        (lambda: pairs(target=np.ones((PAIRS, 2))).derivatives(START.train), "give those of one"),
        (lambda: SampleObjective(SampleLoss("squared_error"), np.zeros((3, 2, 2, 2)), outputs=2), "do not fit"),
    ],
)  # fmt: skip
def test_what_cannot_be_replayed_is_refused_with_its_values(ask: Callable[[], Any], told: str) -> None:
    with pytest.raises(ViewError, match=told):
        ask()


def test_the_start_is_the_checkpoint_of_epoch_0() -> None:
    outputs = np.arange(6.0).reshape(3, 2)
    start = Start.of([2, 0, 1], outputs, outputs + 10)
    assert (start.train.tolist(), start.test.tolist()) == ([2.0, 3.0], [12.0, 13.0])


def test_objectives_agree_with_their_derivatives() -> None:
    """The pull is the gradient of the summed loss, and the sum of the examples' rows."""
    cases: list[tuple[Objective, int]] = [
        (OBJECTIVE, SAMPLES),
        (SampleObjective(SampleLoss("cross_entropy"), np.array([0, 2, 1]), outputs=3, weight=np.array([1.0, 0.5, 2.0])), 9),
        (SampleObjective(SampleLoss("huber"), np.array([0.3, -2.0, 1.0])), 3),
    ]
    for objective, positions in cases:
        outputs = np.random.default_rng(6).standard_normal(positions)
        copies = np.random.default_rng(7).integers(0, 3, objective.examples).astype(float)
        step = 1e-6 * np.eye(positions)
        total = copies @ (objective.losses(outputs[:, None] + step) - objective.losses(outputs[:, None] - step)) / 2e-6
        pull = objective.pull(outputs[:, None], copies[:, None])[:, 0]
        np.testing.assert_allclose(pull, total, atol=1e-7)
        np.testing.assert_allclose(objective.derivatives(outputs).T @ copies, pull, atol=1e-12)
        slopes = objective.pull(outputs[:, None] + step, copies[:, None]) - objective.pull(outputs[:, None] - step, copies[:, None])
        np.testing.assert_allclose(objective.curvature(outputs, copies), slopes / 2e-6, atol=1e-7)
