"""Methods on cached kernels: the same numbers as dattri's explicit influence functions, and what each costs. One line of JSON.

    OMP_NUM_THREADS=1 python benchmarks/check_methods.py [--repeats 5] [--samples 2000]

*agreement*: dattri forms the Hessian of a logistic regression over its parameters and solves with it; ours has the samples' kernel alone.
Influence and both relative influences, float64, in units of the summed loss. *seconds*: curvature of all pairs of 6 classes, for one
checkpoint, and replays of 20 epochs of SGD with momentum: in batches of 32 pairs, and with all pairs in each of 20 steps. Data are
SIMULATED.
"""

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import difference, medians, report, take_turns
from dattri.algorithm.influence_function import IFAttributorExplicit
from dattri.task import AttributionTask
from scipy import sparse
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tracin_core.scores import methods
from tracin_core.scores.curvature import CurvedKernel, Kernel, curved, decompose, pair_laplacian, sample_curvature
from tracin_core.scores.curvature import sample_second_derivative as second_derivative
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.objectives import PairObjective
from tracin_core.scores.retraining import Descent, Start, leave_out_samples, predicted_change, replay
from tracin_core.scores.sample_losses import SampleLoss, sample_derivative

RIDGE, TRAIN, TEST, FEATURES, CLASSES = 3.0, 200, 50, 30, 6
EPOCHS, BATCH, PARAMETERS = 20, 32, 5733
LOGISTIC = SampleLoss("binary_cross_entropy")


# ---- agreement with dattri ------------------------------------------------------------------------------------------------------


def agreement() -> dict[str, float]:
    """The largest difference of each score, relative to the largest score."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    train, test = ((torch.randn(count, FEATURES), torch.randint(0, 2, (count,)).double()) for count in (TRAIN, TEST))
    weights = 0.3 * torch.randn(1, FEATURES)
    kinds = {"influence": None, "l_relatif": "l", "theta_relatif": "theta"}
    ours = by_kernels(train, test, weights)
    return {kind: difference(torch.from_numpy(ours[kind]), by_dattri(train, test, weights, name)) for kind, name in kinds.items()}


def by_kernels(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], weights: Tensor) -> dict[str, np.ndarray]:
    (x, y), (x_test, y_test) = ((inputs.numpy(), labels.numpy()) for inputs, labels in (train, test))
    w = weights.numpy()[0]
    kernel = Kernel(x @ x.T, x_test @ x.T, x_test @ x_test.T)
    rows = [sparse.diags_array(sample_derivative(LOGISTIC, x @ w, y)).tocsr()]
    tests = [sparse.diags_array(sample_derivative(LOGISTIC, x_test @ w, y_test)).tocsr()]
    state = decompose(kernel, sample_curvature(second_derivative(LOGISTIC, x @ w, y)))
    assert isinstance(state, CurvedKernel)
    delta = RIDGE / state.mean_eigenvalue
    mapped = methods.curvature_mean([state], delta)
    scores = methods.influence(mapped, rows, tests)
    return {
        "influence": scores,
        "l_relatif": methods.l_relatif(scores, methods.self_influence(mapped, rows)),
        "theta_relatif": methods.theta_relatif(scores, methods.moved_lengths([state], rows, delta)),
    }


def by_dattri(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], weights: Tensor, relatif: str | None) -> Tensor:
    model = nn.Linear(FEATURES, 1, bias=False)
    model.load_state_dict({"weight": weights})

    def summed(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        outputs = torch.func.functional_call(model, parameters, (data[0],))
        return nn.functional.binary_cross_entropy_with_logits(outputs.reshape(-1), data[1].reshape(-1), reduction="sum")

    attributor = IFAttributorExplicit(AttributionTask(summed, model, [model.state_dict()]), regularization=RIDGE)
    trains, tests = (DataLoader(TensorDataset(*side), batch_size=len(side[0])) for side in (train, test))
    attributor.cache(trains)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its data loaders
        return attributor.attribute(trains, tests, relatif_method=relatif).detach()


# ---- seconds --------------------------------------------------------------------------------------------------------------------


def ranked(samples: int, tests: int) -> tuple[Kernel, np.ndarray, np.ndarray, np.ndarray]:
    """A kernel as a ranker's, whose gradients have a large part in common, stored in float32; and all pairs of 6 classes."""
    generator = np.random.default_rng(samples)
    g = generator.standard_normal((samples + tests, PARAMETERS)) * np.arange(1, PARAMETERS + 1) ** -0.7
    g += 0.1 * generator.standard_normal(PARAMETERS)
    g /= np.sqrt((g**2).sum(axis=1).mean())
    labels = np.arange(samples) % CLASSES
    first, second = np.triu_indices(samples, 1)
    apart = labels[first] != labels[second]
    first, second = first[apart], second[apart]
    whole = (g @ g.T).astype(np.float32)
    blocks = whole[:samples, :samples], whole[samples:, :samples], whole[samples:, samples:]
    return Kernel(*blocks), first, second, np.where(labels[first] > labels[second], 1, -1)


def curvature_work(samples: int, tests: int) -> dict[str, Callable[[], Any]]:
    kernel, first, second, _ = ranked(samples, tests)
    h = (np.random.default_rng(0).random(len(first)) < 0.4).astype(float)
    laplacian = pair_laplacian(first, second, h, samples)
    state = decompose(kernel, laplacian)
    assert isinstance(state, CurvedKernel)
    mu = state.damping(1.0)
    return {
        f"Laplacian of {len(first):,} pairs": lambda: pair_laplacian(first, second, h, samples),
        f"K_mu by one solve, n = {samples:,}": lambda: curved(kernel, laplacian, mu),
        f"slider form once, n = {samples:,}": lambda: decompose(kernel, laplacian),
        f"slider form at(mu), n = {samples:,}": lambda: state.at(mu),
    }


def replay_work(samples: int, tests: int) -> dict[str, Callable[[], Any]]:
    kernel, first, second, target = ranked(samples, tests)
    generator = np.random.default_rng(1)
    objective = PairObjective(PairLoss(margin=1.0), first, second, target, samples)
    start = Start(0, generator.standard_normal(samples), generator.standard_normal(tests))
    batches = [rows for _ in range(EPOCHS) for rows in np.split(generator.permutation(len(first)), range(BATCH, len(first), BATCH))]
    whole = Descent(np.full(EPOCHS, 0.05), "SGD", momentum=0.9)
    stochastic = Descent(np.full(len(batches), 0.05), "SGD", momentum=0.9, batches=batches)
    everyone = leave_out_samples(objective)
    told = f"n = {samples}, {len(first):,} pairs"
    return {
        f"one replay, {EPOCHS} steps, {told}": lambda: replay(kernel, start, objective, whole),
        f"one replay, {len(batches):,} batches, {told}": lambda: replay(kernel, start, objective, stochastic),
        f"without each sample, {EPOCHS} steps, {told}": lambda: predicted_change(kernel, start, objective, whole, everyone),
        f"without each sample, {len(batches):,} batches, {told}": lambda: predicted_change(
            kernel, start, objective, stochastic, everyone
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=2000)
    chosen = parser.parse_args()
    found = agreement()
    work = {
        **curvature_work(220, 66),
        **curvature_work(chosen.samples, 300),
        **replay_work(54, 24),
        **replay_work(200, 60),
    }
    seconds = take_turns(work, chosen.repeats)
    report("check_methods", ["numpy", "scipy", "dattri"], differences=found, seconds=medians(seconds), turns=seconds)


if __name__ == "__main__":
    main()
