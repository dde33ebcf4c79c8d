"""Views of small tables, some of whose labels, takes and scores are missing: given matrices, and whole-number gradients.

@given(scores=given_scores())
def test_something(scores): ...      # what the roll-ups ask of a view, with a matrix that is simply given
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import settings
from hypothesis import strategies as st

from tracin_core.data.samples import all_pairs, every_draw, pairs_of
from tracin_core.scores.influence import Kernels
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.view import View

FLOAT64 = {"rtol": 1e-10, "atol": 1e-9}  # sums of a few hundred products of about 10
FEW = settings(deadline=None, max_examples=15)
COLUMNS = ("id", "angle", "sequence", "material")


@dataclass
class Scores:
    """What the roll-ups ask of a view, with a matrix that is simply given."""

    train_samples: pd.DataFrame
    train_pairs: pd.DataFrame
    test_samples: pd.DataFrame
    test_pairs: pd.DataFrame
    matrix: np.ndarray
    dead_tests: np.ndarray
    measure: str = "relative"  # one that is read in blocks
    width: int = 2

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        for start in range(0, len(self.test_pairs), self.width):
            place = slice(start, min(start + self.width, len(self.test_pairs)))
            yield place, self.matrix[:, place]


def sample_table(count: int, seed: int, prefix: str) -> pd.DataFrame:
    """Labels, takes and materials of which some are missing."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 3, size=count)
    return pd.DataFrame(
        {
            "id": [f"{prefix}{place}" for place in generator.permutation(count)],
            "label": label,
            "angle": 36 * label,
            "sequence": generator.choice([0.0, 1.0, 2.0, np.nan], size=count),
            "material": generator.choice(np.array(["box", "metal", None], dtype=object), size=count),
        }
    )


def drawn_pairs(samples: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The pairs of these samples, some drawn several times, some not at all."""
    draws = every_draw(len(samples)).assign(multiplicity=np.random.default_rng(seed).integers(0, 4, len(every_draw(len(samples)))))
    return pairs_of(samples, draws[draws["multiplicity"] > 0])


VALUES = st.sampled_from([-3.0, -1.0, -0.0, 0.0, 0.5, 2.0, np.nan])


@st.composite
def given_scores(draw: st.DrawFn, undefined: bool = True) -> Scores:
    """Small tables and a matrix of few different values, some undefined; one live test at least."""
    seed = draw(st.integers(0, 10_000))
    train, test = (sample_table(draw(st.integers(3, 6)), seed + place, name) for place, name in enumerate(("a", "x")))
    test = test.assign(label=range(len(test)), angle=[36 * label for label in range(len(test))])
    train_pairs, test_pairs = drawn_pairs(train, seed), all_pairs(test)
    generator = np.random.default_rng(seed)
    matrix = generator.choice([-3.0, -1.0, 0.0, 0.5, 2.0], size=(len(train_pairs), len(test_pairs)))
    if undefined:
        matrix[generator.random(matrix.shape) < 0.2] = np.nan
    dead = generator.random(len(test_pairs)) < 0.3
    dead[generator.integers(len(dead))] = False
    matrix[:, dead] = 50.0  # what a measure says of a dead test; nobody may read it
    return Scores(train, train_pairs, test, test_pairs, matrix, dead, width=draw(st.integers(1, 7)))


def make_view(seed: int, loss: PairLoss | None = None, calm: bool = False, **change: Any) -> View:
    """A view of whole-number gradients, 3 checkpoints, 7 training and 5 test samples; calm: the test samples are in order, far apart."""
    generator = np.random.default_rng(seed)
    train, test = sample_table(7, seed, "a"), sample_table(5, seed + 1, "x")
    train, test = (side.assign(label=np.arange(len(side)) % 3, angle=36 * (np.arange(len(side)) % 3)) for side in (train, test))
    left, right = (generator.integers(-3, 4, size=(3, 2, count, 4)).astype(float) for count in (7, 5))
    noise = [generator.integers(-12, 13, size=(3, count)) / 4 for count in (7, 5)]
    scale = 2, 90 if calm else 2
    outputs = [
        (size * side["label"].to_numpy() + part).astype(np.float32)
        for size, side, part in zip(scale, (train, test), noise, strict=True)
    ]
    products = (np.einsum("clip,cljp->clij", a, b).astype(np.float32) for a, b in ((left, left), (right, left), (right, right)))
    settings_: dict[str, Any] = {
        "train_pairs": drawn_pairs(train, seed),
        "test_pairs": all_pairs(test),
        "kernels": Kernels(*products, *outputs),
        "loss": loss or PairLoss(margin=4.0),
        "train_samples": train,
        "test_samples": test,
        "checkpoint_weights": np.array([1.0, 0.5, 2.0]),
        "checkpoint_names": ["epoch 1", "epoch 2", "epoch 3"],
    }
    return View.of_pairs(**{**settings_, **change})


VIEW = make_view(8)
ONES = np.ones(len(VIEW.train_pairs))


class Lazy(Scores):
    """Blocks that are made when they are asked for, as a view makes them."""

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        for start, stop in pairwise(range(0, len(self.test_pairs) + 1, self.width)):
            yield slice(start, stop), np.random.default_rng(start).normal(size=(len(self.train_pairs), self.width))
