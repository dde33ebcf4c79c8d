"""Checkpoint weights w_c of `sum_c w_c <grad L(e'), grad L(e)>`: a named rule on the checkpoints that a view sums.

    uniform        1
    learning_rate  the rate that the checkpoint records (Pruthi et al. 2020, algorithm 1)
    step_sum       (V(previous, c) + V(c, next)) / 2 with V(b, c) = sum of the learning rate over the steps in (b, c], over N: the trapezoid
                   of what a mean loss over N examples moves each of them. The ends take their one side; without an epoch 0 the first
                   checkpoint takes the whole of its left side
    recency        0.5 ** ((last epoch - epoch) / half_life), or, without a half-life, what weight decay leaves of a step: the product of
                   (1 - learning_rate * weight_decay) over the later steps, as exp(-weight_decay * sum of the learning rate)

They belong to the chosen checkpoints: another choice has other gaps. With evenly spaced checkpoints and a constant rate all but recency
agree up to a factor. Momentum would multiply all of them by 1 / (1 - beta), which no ranking sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.errors import ViewError

Array = npt.NDArray[np.float64]
WeightRule = Literal["uniform", "learning_rate", "step_sum", "recency"]
CheckpointWeights = WeightRule | Sequence[float]


@dataclass(frozen=True)
class Weights:
    """Weights and what must be known to read them: `note` is empty, or says what was assumed."""

    values: Array  # [C]
    note: str = ""


def checkpoint_weights(
    asked: CheckpointWeights,
    checkpoints: pd.DataFrame,
    *,
    examples: int,
    rows: Sequence[int] | None = None,
    half_life: float | None = None,
) -> Weights:
    """The weights of some checkpoints.

    Args:
        asked: a rule, or the weights themselves.
        checkpoints: all that are known, by epoch: epoch, learning_rate, rate_sum (None where not recorded), arguments.
        rows: those that are summed, ascending; None: all.
        examples: N, how many training examples an epoch goes through, copies counted.
        half_life: in epochs, for `recency`.

    Raises:
        ViewError: no such rule, weights that do not fit, or something the rule needs is not recorded.
    """
    if half_life is not None and not (np.isfinite(half_life) and half_life > 0):
        raise ViewError(f"The half-life is {half_life} epochs; choose a number above 0.")
    chosen = list(range(len(checkpoints))) if rows is None else list(rows)
    if chosen != sorted(set(chosen)):
        raise ViewError(f"The checkpoints {chosen} are not in the order of their epochs; give each once, earliest first.")
    if not isinstance(asked, str):
        return Weights(_given(asked, len(chosen)))
    if asked not in RULES:
        raise ViewError(
            f"There are no checkpoint weights named '{asked}'; choose {', '.join(get_args(WeightRule))}, or a list of numbers."
        )
    return RULES[asked](checkpoints, chosen, examples, half_life)


def _given(asked: Sequence[float], count: int) -> Array:
    given = np.asarray(asked, dtype=float)
    if given.shape != (count,) or not np.isfinite(given).all():
        raise ViewError(f"{given.size} checkpoint weights were given for {count} checkpoints; give one finite number each.")
    return given


def _uniform(checkpoints: pd.DataFrame, rows: list[int], examples: int, half_life: float | None) -> Weights:
    return Weights(np.ones(len(rows)))


def _learning_rate(checkpoints: pd.DataFrame, rows: list[int], examples: int, half_life: float | None) -> Weights:
    chosen = checkpoints.iloc[rows]
    return Weights(_rates(chosen), _after_the_step(chosen))


def _step_sum(checkpoints: pd.DataFrame, rows: list[int], examples: int, half_life: float | None) -> Weights:
    whole, note = rate_sums(checkpoints, examples)
    sums = whole[rows]
    gaps = np.diff(sums) / examples
    left = np.append(sums[0] / examples, gaps / 2)
    right = np.append(gaps / 2, 0.0)
    return Weights(left + right, note)


def _recency(checkpoints: pd.DataFrame, rows: list[int], examples: int, half_life: float | None) -> Weights:
    epochs = checkpoints["epoch"].to_numpy(dtype=float)[rows]
    if half_life is not None:
        return Weights(0.5 ** ((epochs[-1] - epochs) / half_life))
    decay = _argument(checkpoints, "weight_decay")
    if not decay:
        told = "record no weight decay" if decay is None else "were trained without weight decay, so there is nothing"
        raise ViewError(f"The checkpoints {told} to derive recency from; give a half_life in epochs.")
    whole, note = rate_sums(checkpoints, examples)
    sums = whole[rows]
    return Weights(np.exp(-float(decay) * (sums[-1] - sums)), note)


RULES = {"uniform": _uniform, "learning_rate": _learning_rate, "step_sum": _step_sum, "recency": _recency}


def rate_sums(checkpoints: pd.DataFrame, examples: int) -> tuple[Array, str]:
    """The sum of the learning rate over all steps up to each checkpoint [C], and what was assumed: nothing where they record it.

    Else steps per epoch = ceil(N / batch_size), each at the mean of the rates stored at the two ends of its gap. A rate that changed
    inside a gap cannot be recovered from its ends.

    Raises:
        ViewError: neither the sum, nor rates and batch size are recorded.
    """
    recorded = checkpoints["rate_sum"].to_numpy(dtype=float)
    if not np.isnan(recorded).any():
        return recorded, ""
    rates, batch = _rates(checkpoints), _argument(checkpoints, "batch_size")
    if not batch:
        raise ViewError(
            "The checkpoints record neither the sum of the learning rate nor a batch size, so steps cannot be counted; choose uniform or "
            "learning_rate weights, or give the weights by hand."
        )
    epochs = np.append(0.0, checkpoints["epoch"].to_numpy(dtype=float))
    ends = np.append(rates[0], rates)
    steps = np.diff(epochs) * np.ceil(examples / float(batch))
    note = f"steps are counted as epochs x {int(np.ceil(examples / float(batch)))} batches of {batch}"
    if np.ptp(rates):
        note += "; the rate changed between checkpoints, and each gap takes the mean of its two ends"
    return np.cumsum(steps * (ends[1:] + ends[:-1]) / 2), note


def _rates(checkpoints: pd.DataFrame) -> Array:
    rates = checkpoints["learning_rate"].to_numpy(dtype=float)
    if np.isnan(rates).any():
        epoch = int(checkpoints["epoch"].iloc[int(np.flatnonzero(np.isnan(rates))[0])])
        raise ViewError(
            f"The checkpoint of epoch {epoch} records no learning rate; choose uniform weights, or give the weights by hand."
        )
    return rates


def _after_the_step(checkpoints: pd.DataFrame) -> str:
    rates = checkpoints["learning_rate"].to_numpy(dtype=float)
    if np.ptp(rates) == 0:
        return ""
    return "a training whose scheduler steps before saving records the rate after the checkpoint, not the one that led to it"


def _argument(checkpoints: pd.DataFrame, name: str) -> Any:
    told = [checkpoints[column].iloc[-1] for column in ("descent", "arguments") if column in checkpoints]
    return next((known[name] for known in told if isinstance(known, dict) and known.get(name) is not None), None)
