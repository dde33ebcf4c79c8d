"""What decides a training of this product, beside its data and model; the loop itself is in `engine/training`, which needs torch."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from tracin_core.recipe import LabelLossName, LossName, NumberLossName

SAVED: Final = 11  # checkpoints after epoch 0, where nobody says which
SHARES: Final = (0.1, 0.25, 0.4, 0.6, 0.8, 1.0)  # of all epochs, after which a ranking's are saved

# Settings of the loss, which a recipe's task may say; where it does not, the checkpoints record them.
OF_LOSS: Final = frozenset({"loss", "margin", "ghm_bins", "ghm_alpha", "smoothing", "gamma", "q", "delta"})

# The setting that matters for a loss of samples, recorded with its checkpoints.
OF_SAMPLES: Final = {"label_smoothing": "smoothing", "focal": "gamma", "generalized_cross_entropy": "q", "huber": "delta"}

Schedule = Literal["cosine", "constant"]


@dataclass(frozen=True)
class TrainingSettings:
    """What decides the training of a ranking, beside its data. The defaults train the demo.

    Attributes:
        save_epochs: None: six of them, after the same shares of all epochs as the demo's.
    """

    loss: LossName = "margin"
    margin: float = 10.0
    ghm_bins: int = 10
    ghm_alpha: float = 0.75
    epochs: int = 20
    save_epochs: tuple[int, ...] | None = None
    learning_rate: float = 0.01
    schedule: Schedule = "cosine"
    momentum: float = 0.9
    batch_pairs: int = 256
    seed: int = 42
    layout: str = "small"

    def __post_init__(self) -> None:
        if self.save_epochs is None:
            object.__setattr__(self, "save_epochs", tuple(sorted({int(np.ceil(self.epochs * share)) for share in SHARES})))

    @property
    def batch(self) -> int:
        """Examples in one step."""
        return self.batch_pairs


@dataclass(frozen=True)
class SampleSettings:
    """What decides the training of a classification or regression, beside its data. The defaults train the demo of digits.

    Attributes:
        save_epochs: None spreads eleven over all epochs, closer together at the start, where weights move most.
    """

    loss: LabelLossName | NumberLossName
    smoothing: float = 0.1
    gamma: float = 2.0
    q: float = 0.7
    delta: float = 1.0
    epochs: int = 20
    save_epochs: tuple[int, ...] | None = None
    learning_rate: float = 0.02
    schedule: Schedule = "cosine"
    momentum: float = 0.9
    batch_size: int = 32
    seed: int = 42

    def __post_init__(self) -> None:
        if self.save_epochs is None:
            object.__setattr__(self, "save_epochs", spread(self.epochs))

    @property
    def batch(self) -> int:
        """Examples in one step."""
        return self.batch_size


Settings = TrainingSettings | SampleSettings


def spread(epochs: int) -> tuple[int, ...]:
    """At most eleven epochs up to the last, the i-th at the share (i / 11)^1.5 of them."""
    return tuple(sorted({int(np.ceil(epochs * (i / SAVED) ** 1.5)) for i in range(1, SAVED + 1)}))


def settings_of_loss(loss: str) -> tuple[str, ...]:
    """Which settings change this loss."""
    if loss in get_args(LossName):
        return ("margin", "ghm_bins", "ghm_alpha") if loss.startswith("ghm") else ("margin",)
    return (OF_SAMPLES[loss],) if loss in OF_SAMPLES else ()
