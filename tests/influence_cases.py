"""Gradients in small whole numbers, the view of their kernels, and the slow, obvious way to every score: example by example."""

from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

import numpy as np
import pandas as pd
from hypothesis import settings
from hypothesis import strategies as st

from tracin_core.data.samples import all_pairs
from tracin_core.recipe import LossName
from tracin_core.scores.influence import Kernels
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.view import View

FLOAT64 = {"rtol": 1e-10, "atol": 1e-9}  # sums of a few hundred products of about 10
FLOAT32 = {"rtol": 2e-4, "atol": 2e-4}  # kernels are stored in float32
LOSSES = get_args(LossName)
CHECKPOINTS, LAYERS, TRAIN, TEST, PARAMETERS = 3, 2, 7, 5, 4


@dataclass(frozen=True)
class Case:
    """Gradients of the outputs in small whole numbers, so that float32 kernels of them are exact."""

    train_gradients: np.ndarray  # [C, L, n, parameters]
    test_gradients: np.ndarray
    train_outputs: np.ndarray
    test_outputs: np.ndarray
    weights: np.ndarray
    train_samples: pd.DataFrame
    test_samples: pd.DataFrame

    @property
    def kernels(self) -> Kernels:
        def products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
            return np.einsum("clip,cljp->clij", left, right).astype(np.float32)

        train, test = self.train_gradients, self.test_gradients
        return Kernels(products(train, train), products(test, train), products(test, test), self.train_outputs, self.test_outputs)

    def view(self, loss: PairLoss | None = None, **change: Any) -> View:
        given_: dict[str, Any] = {
            "train_pairs": all_pairs(self.train_samples),
            "test_pairs": all_pairs(self.test_samples),
            "kernels": self.kernels,
            "loss": loss or PairLoss(margin=4.0),
            "checkpoint_weights": self.weights,
            "checkpoint_names": [f"epoch {epoch}" for epoch in range(len(self.weights))],
            "train_samples": self.train_samples,
            "test_samples": self.test_samples,
        }
        return View.of_pairs(**{**given_, **change})


def sample_table(labels: list[int], prefix: str) -> pd.DataFrame:
    ids = [f"{prefix}{place}" for place in range(len(labels))]
    return pd.DataFrame({"id": ids, "label": labels, "angle": [36 * label for label in labels]})


def make_case(seed: int, checkpoints: int = CHECKPOINTS) -> Case:
    generator = np.random.default_rng(seed)

    def gradients(count: int) -> np.ndarray:
        return generator.integers(-3, 4, size=(checkpoints, LAYERS, count, PARAMETERS)).astype(float)

    def outputs(count: int) -> np.ndarray:
        return (generator.integers(-12, 13, size=(checkpoints, count)) / 2).astype(np.float32)

    return Case(
        gradients(TRAIN),
        gradients(TEST),
        outputs(TRAIN),
        outputs(TEST),
        generator.choice([0.5, 1.0, 2.0, 0.0], size=checkpoints),
        sample_table([0, 0, 1, 1, 2, 2, 2], "a"),
        sample_table([0, 1, 1, 2, 2], "x"),
    )


CASES = st.integers(0, 10_000).map(make_case)
SETTINGS = st.builds(PairLoss, name=st.sampled_from(LOSSES), margin=st.sampled_from([0.0, 1.0, 4.0]), ghm_batch=st.just(5))


def gradient(slope: float, gradients: np.ndarray, first: int, second: int) -> np.ndarray:
    """grad L of one pair: dL/ds_first times the difference of two output gradients, over all parameters of all layers."""
    return np.asarray(slope * (gradients[:, first] - gradients[:, second])).ravel()


def explicit(view: View, case: Case, side: str) -> np.ndarray:
    """[C, pairs, parameters]: every pair's gradient, one after the other."""
    pairs, slopes = (view.train_pairs, view.train_derivatives) if side == "train" else (view.test_pairs, view.test_derivatives)
    gradients = case.train_gradients if side == "train" else case.test_gradients
    return np.array(
        [
            [gradient(slopes[c, row], gradients[c], pair.first, pair.second) for row, pair in enumerate(pairs.itertuples())]
            for c in range(len(gradients))
        ]
    )


def slow_influence(view: View, case: Case) -> np.ndarray:
    """sum_c w_c <grad L(e), grad L(e')>: [N, M]."""
    train, test = explicit(view, case, "train"), explicit(view, case, "test")
    total = np.zeros((train.shape[1], test.shape[1]))
    for c, weight in enumerate(view.checkpoint_weights):
        for e, f in product(range(train.shape[1]), range(test.shape[1])):
            total[e, f] += weight * float(train[c, e] @ test[c, f])
    return total


def slow_mean_cosine(view: View, case: Case) -> np.ndarray:
    """The mean of <g, g'> / |g| |g'| over the weighted checkpoints where both gradients are there; NaN where there is none."""
    train, test = explicit(view, case, "train"), explicit(view, case, "test")
    found = np.full((train.shape[1], test.shape[1]), np.nan)
    for e, f in product(range(train.shape[1]), range(test.shape[1])):
        pairs = [
            (g[e], h[f]) for g, h, w in zip(train, test, view.checkpoint_weights, strict=True) if w and g[e].any() and h[f].any()
        ]
        if pairs:
            found[e, f] = np.mean([float(g @ h) / np.sqrt(float(g @ g) * float(h @ h)) for g, h in pairs])
    return found


def slow_self(view: View, case: Case, side: str) -> np.ndarray:
    gradients = explicit(view, case, side)
    return np.array(
        [
            sum(w * float(g[e] @ g[e]) for w, g in zip(view.checkpoint_weights, gradients, strict=True))
            for e in range(gradients.shape[1])
        ]
    )


FEW = settings(deadline=None, max_examples=25)
