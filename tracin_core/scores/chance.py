"""Whether a model does better than guessing: its influences explain what it has learnt, and at chance that is nothing."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

ERRORS = 2.0  # standard errors by which a model must do better


@dataclass(frozen=True)
class Chance:
    """What a model reaches, beside guessing.

    Attributes:
        reached: accuracy; of numbers, by how much the squared error is below that of the training mean, larger being better.
        guess: what guessing reaches; of numbers 0.
        error: the standard error of the difference.
        detail: in words.
    """

    reached: float
    guess: float
    error: float
    detail: str

    @property
    def passed(self) -> bool:
        """It is better than guessing by more than `ERRORS` standard errors."""
        return bool(self.reached > self.guess + ERRORS * self.error)

    def told(self) -> dict[str, Any]:
        """As one check of a run's health."""
        return {"name": "above_chance", "passed": self.passed, "value": self.reached, "detail": self.detail}


def order_reached(gaps: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Of pairs, by target x (difference of scores): 1 in the right order, 0.5 tied, 0 wrong."""
    return np.asarray(np.heaviside(np.asarray(gaps, dtype=np.float64), 0.5))


def label_reached(outputs: npt.ArrayLike, labels: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Of labels: 1 where the largest of the outputs [n, k], or the sign of the one output [n], tells the label, else 0."""
    given = np.asarray(outputs)
    chosen = given.argmax(axis=1) if given.ndim == 2 else given > 0
    return np.asarray(chosen == np.asarray(labels), dtype=np.float64)


def number_error(outputs: npt.ArrayLike, targets: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Of numbers: the absolute difference from the target, in its unit; of several outputs each, their mean: [n]."""
    wanted = np.asarray(targets, dtype=np.float64)
    given = np.asarray(outputs, dtype=np.float64).reshape(len(wanted), -1)
    return np.asarray(np.abs(given - wanted.reshape(len(wanted), -1)).mean(axis=1))


def order_chance(gaps: npt.ArrayLike, labels: npt.ArrayLike) -> Chance:
    """Of pairs, by target x (difference of scores); a tie is half right, and guessing orders half of them.

    Pairs share samples, so that their number says too little of the error. Of all pairs with different labels of n samples in random order
    it is sqrt((n (n - 1) (2 n + 5) - sum t (t - 1) (2 t + 5)) / 18) / (n^2 - sum t^2), t the samples of each label: the deviation of
    Kendall's S with ties in one ranking (Kendall 1945), over twice the number of pairs.

    Args:
        gaps: [pairs].
        labels: of the samples that the pairs are formed of, each sample once.
    """
    given = np.asarray(gaps, dtype=np.float64)
    accuracy = float(np.mean(order_reached(given)))
    tied = np.unique(np.asarray(labels), return_counts=True)[1].astype(np.float64)
    samples = int(tied.sum())
    spread = samples * (samples - 1) * (2 * samples + 5) - float((tied * (tied - 1) * (2 * tied + 5)).sum())
    error = float(np.sqrt(spread / 18) / (samples**2 - float((tied**2).sum())))
    told = f"{accuracy:.3f} of {given.size} validation pairs are in the right order; guessing reaches 0.5, with a standard error of"
    return Chance(accuracy, 0.5, error, f"{told} {error:.3f} for the {samples} samples that they are formed of.")


def label_chance(outputs: npt.ArrayLike, labels: npt.ArrayLike) -> Chance:
    """Of labels: the share that is told right, beside the share of the most frequent one, with the latter's binomial standard error.

    Args:
        outputs: [n, k], the largest is told; or [n], whose sign is.
        labels: [n], from 0.
    """
    wanted = np.asarray(labels)
    accuracy = float(np.mean(label_reached(outputs, wanted)))
    guess = float(np.unique(wanted, return_counts=True)[1].max() / wanted.size)
    error = float(np.sqrt(guess * (1 - guess) / wanted.size))
    told = f"{accuracy:.3f} of {wanted.size} validation samples get their label; the most frequent one has {guess:.3f}"
    return Chance(accuracy, guess, error, f"{told}, with a standard error of {error:.3f}.")


def number_chance(outputs: npt.ArrayLike, targets: npt.ArrayLike, mean: float) -> Chance:
    """Of numbers: by how much the squared error is below that of the training mean, with the standard error of the mean difference.

    Args:
        outputs, targets: [n].
        mean: of the training targets.
    """
    given, wanted = np.asarray(outputs, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    own, guessed = (given - wanted) ** 2, (mean - wanted) ** 2
    gain = guessed - own
    error = float(gain.std(ddof=1) / np.sqrt(gain.size)) if gain.size > 1 else float("inf")
    told = (
        f"The mean squared error of {gain.size} validation samples is {own.mean():.4g}; the training mean has {guessed.mean():.4g}"
    )
    return Chance(float(gain.mean()), 0.0, error, f"{told}, with a standard error of {error:.4g} of the difference.")
