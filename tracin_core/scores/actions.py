"""What can be done with the examples that a list names, in the next training and in its preview; and the first-order answer.

exclude: they are left out. down_weight: their loss counts with a weight, and the mean of a batch still divides by the number of examples;
a pair counts with its own weight times those of its samples. turn: pairs are learnt the other way round. relabel: samples of a
classification get the label, but for their own, that the last checkpoint finds likeliest.
"""

from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from tracin_core.errors import ViewError
from tracin_core.scores.view import View

Action = Literal["exclude", "down_weight", "turn", "relabel"]
WEIGHT: Final = 0.25  # of a down-weighted example in the loss


def actions_for(task: str, noun: Literal["pair", "sample"]) -> list[Action]:
    """What can be done with a list of pairs, or samples, of a task."""
    changed: list[Action] = ["turn"] if noun == "pair" else ["relabel"] if task == "classification" else []
    return ["exclude", "down_weight", *changed]


def require_weight(weight: float) -> None:
    """Raises ViewError unless the weight is at least 0 and below 1."""
    if not 0 <= weight < 1:
        raise ViewError(f"A weight of {weight:g} is no less weight; give one of at least 0 and below 1.")


def weights_by(scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """min(1, median / score) of each example: what scores above the median counts less, the more the higher; at or below it, in full.

    For scores that are not negative, high where an example is suspect: self-influence, or the mean loss over checkpoints.

    Raises:
        ViewError: the median is not above 0, so that nothing tells examples apart.
    """
    values = np.asarray(scores, dtype=np.float64)
    middle = float(np.median(values))
    if not middle > 0:
        raise ViewError(
            f"Half of the {values.size} scores are {middle:g} or less, so no weight follows from them; choose another score."
        )
    return middle / np.maximum(values, middle)


def first_order(view: View, named: npt.NDArray[np.int64], action: Action, weight: float = WEIGHT) -> npt.NDArray[np.float64]:
    """To first order, what the action does to each test: [M], in the units of influence; positive: the test's loss rises.

        sum_e (1 - weight^named_e) multiplicity_e I(e, test),       weight 0 where e is left out

    Nothing is replayed: each checkpoint's gradients stay those of the training that was. Where the checkpoints' weights are not sums of
    learning rates (`step_sum`), sign and order mean something and the size does not.

    Args:
        named: how often the list names each example, as `View.named` says.

    Raises:
        ViewError: the action has no such answer, a weight has no meaning, or the view does not measure dot.
    """
    if action not in ("exclude", "down_weight"):
        raise ViewError(f"Influences say what less of an example does, not what '{action}' does; choose exclude or down_weight.")
    if action == "down_weight":
        require_weight(weight)
    given_up = 1.0 - (weight if action == "down_weight" else 0.0) ** named.astype(np.float64)
    return view.summed_influence(given_up * view.train.multiplicity)
