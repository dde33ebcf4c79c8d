"""How exact the scores are, and every pair of 54 spectra against every other at six checkpoints. One line of JSON.

    python benchmarks/exactness.py [--seeds 5]

A1: kernels in single precision against one backward pass per sample in double precision, the largest difference over the largest entry:
a ranker, a classifier (MLP) and a transformer, of other weights and inputs for each seed; and the same kernel in batches of 1, 7, 16 and
all. A2: 54 SIMULATED inputs 257 x 32 of as many targets, the 5,733-parameter ranker at six checkpoints of random weights: kernels by layer
and all 1,431 x 1,431 influences of pairs under the logistic loss, which no pair escapes.
"""

import argparse
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from common import report, timed
from torch import Tensor, nn

from tracin_core.data.samples import all_pairs
from tracin_core.engine.kernel import layer_groups, model_outputs, tangent_kernel, tangent_kernel_by_layer
from tracin_core.engine.models import build_model
from tracin_core.recipe import MlpModel, RankerModel, TransformerModel
from tracin_core.scores.evaluation import interval
from tracin_core.scores.influence import Kernels
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.view import View

SPECTRA, CHECKPOINTS, SAMPLES = 54, 6, 16
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ranker": (lambda: build_model(RankerModel(layout="small")), (1, 257, 32)),
    "mlp": (lambda: build_model(MlpModel(inputs=64, hidden=(128, 64))), (64,)),
    "transformer": (lambda: build_model(TransformerModel(features=12, length=10, width=32, heads=4)), (10, 12)),
}


def made(name: str, seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    build, shape = MODELS[name]
    model = build().eval()
    return model, torch.randn(SAMPLES, *shape)


def explicit(model: nn.Module, inputs: Tensor) -> Tensor:
    """One backward pass per sample, in double precision."""
    model, inputs = model.double(), inputs.double()
    rows = [torch.autograd.grad(model(sample[None]).sum(), list(model.parameters())) for sample in inputs]
    gradients = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    model.float()
    return gradients @ gradients.T


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


def exactness(name: str, seed: int) -> tuple[float, float]:
    """A1 of one model and seed: against brute force, and between batch sizes."""
    model, inputs = made(name, seed)
    kernels = [tangent_kernel(model, inputs, batch_size=size) for size in (1, 7, SAMPLES)]
    between = max(error(one, kernels[0].double()) for one in kernels)
    return error(kernels[-1], explicit(model, inputs)), between


def every_pair(seed: int) -> float:
    """A2: seconds from weights in memory to the 1,431 x 1,431 influences."""
    torch.manual_seed(seed)
    networks = [build_model(RankerModel(layout="small")).eval() for _ in range(CHECKPOINTS)]
    inputs = torch.randn(SPECTRA, 1, 257, 32)
    samples = pd.DataFrame(
        {"id": [f"spectrum_{row:02d}" for row in range(SPECTRA)], "label": range(SPECTRA), "angle": range(SPECTRA)}
    )
    found = []

    def compute() -> None:
        parts = []
        for model in networks:
            kernel = tangent_kernel_by_layer(model, inputs, groups=layer_groups(model)).numpy()
            outputs = model_outputs(model, inputs).numpy().squeeze(-1)
            parts.append((kernel, kernel, kernel, outputs, outputs))
        kernels = Kernels(*(np.stack(part) for part in zip(*parts, strict=True)))
        pairs = all_pairs(samples)
        summed = {"checkpoint_weights": np.ones(CHECKPOINTS), "checkpoint_names": [f"epoch {row}" for row in range(CHECKPOINTS)]}
        sides = {"train_samples": samples, "test_samples": samples}
        view = View.of_pairs(pairs, pairs, kernels, loss=PairLoss(name="logistic", margin=0.0), **sides, **summed)
        found.append(view.influence())

    seconds = timed(compute)
    if found[0].shape != (1431, 1431) or not np.isfinite(found[0]).all() or not found[0].any():
        raise SystemExit(f"The influences are of shape {found[0].shape}, or not all of them are numbers.")
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    found = interval(values)
    return {"mean": found.mean, "low": found.low, "high": found.high, "largest": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(1, parser.parse_args().seeds + 1)
    torch.set_num_threads(1)
    told = {name: [exactness(name, seed) for seed in seeds] for name in MODELS}
    every_pair(0)  # one-off initialisation
    report(
        "exactness",
        against_brute_force={name: spread([one for one, _ in both]) for name, both in told.items()},
        between_batch_sizes={name: spread([two for _, two in both]) for name, both in told.items()},
        every_pair_seconds=spread([every_pair(seed) for seed in seeds]),
    )


if __name__ == "__main__":
    main()
