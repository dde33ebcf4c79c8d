"""Linearised retraining: the run replayed on outputs alone, with the kernel of one checkpoint held fast.

In a model that is linear in its parameters, a step of gradient descent moves the outputs f by the kernel and nothing else is needed:

    velocity <- momentum velocity + r,   r = sum_e multiplicity_e u_e a_e(f)   (divided by sum_e multiplicity_e for a mean loss)
    f        <- f - lr K[:,t] velocity                                          (torch's SGD: no dampening, no Nesterov)

So any exclusion, weight or relabelling is replayed without a gradient, exactly if K is constant (Jacot, Gabriel, Hongler 2018, arXiv
1806.07572; Lee et al. 2019, arXiv 1902.06720) and as well as one kernel stands for the run otherwise: one from the middle is a good choice.
It is a preview; what really happens is known from retraining.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tracin_core.errors import ViewError
from tracin_core.scores.curvature import Array, Kernel
from tracin_core.scores.objectives import ALL, Objective, Rows

Reduction = Literal["mean", "sum"]
CELLS_AT_ONCE = 4_000_000  # examples x replays that are followed together: 32 MB for each intermediate result


@dataclass(frozen=True)
class Start:
    """The outputs before the first step.

    Args:
        epoch: of the checkpoint that they are of; only 0 is before training.
        train, test: [n] and [m] positions; several outputs per sample flattened, position i k + c.

    Raises:
        ViewError: the checkpoint is not of epoch 0, or an output is not finite.
    """

    epoch: int
    train: Array
    test: Array

    def __post_init__(self) -> None:
        if self.epoch != 0:
            raise ViewError(
                f"Replaying a training starts from its outputs at epoch 0, but these are of epoch {self.epoch}; keep a checkpoint of "
                f"epoch 0."
            )
        for side in ("train", "test"):
            values = np.asarray(getattr(self, side), dtype=np.float64).ravel()
            object.__setattr__(self, side, values)
            if not np.isfinite(values).all():
                place = int(np.flatnonzero(~np.isfinite(values))[0])
                raise ViewError(f"The {side} output {place} at epoch 0 is {values[place]}; leave that sample out.")

    @classmethod
    def of(cls, epochs: Sequence[int], train_outputs: npt.ArrayLike, test_outputs: npt.ArrayLike) -> "Start":
        """Of a run's checkpoints [C, ...], that of epoch 0.

        Raises:
            ViewError: none is of epoch 0.
        """
        if 0 not in epochs:
            told = ", ".join(str(epoch) for epoch in epochs)
            raise ViewError(
                f"Replaying a training starts at epoch 0, but this run has the epochs {told}; keep a checkpoint of epoch 0."
            )
        row = list(epochs).index(0)
        return cls(0, np.asarray(train_outputs)[row], np.asarray(test_outputs)[row])


@dataclass(frozen=True)
class Descent:
    """Stochastic gradient descent, step by step.

    Args:
        learning_rates: of each step; a schedule per epoch is `np.repeat(rates, steps_per_epoch)`.
        optimizer: as the checkpoints record it. None is unknown: whoever knows says SGD.
        reduction: of the loss over a step's examples, copies counted.
        batches: rows of the examples of each step; None: all of them in each. A batch of which nothing is left makes no step.
        weight_decay: pulls at parameters, which outputs do not show: it must be 0.

    Raises:
        ViewError: the optimiser is not SGD, a learning rate is missing, or a setting has no meaning.
    """

    learning_rates: npt.NDArray[Any]
    optimizer: str | None
    momentum: float = 0.0
    reduction: Reduction = "mean"
    batches: Sequence[npt.NDArray[np.int64]] | None = None
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require_sgd(self.optimizer)
        rates = np.asarray(self.learning_rates, dtype=np.float64)
        object.__setattr__(self, "learning_rates", rates)
        if rates.ndim != 1 or not rates.size:
            raise ViewError(f"Learning rates of shape {rates.shape} make no steps; give one rate per step, in one row.")
        wrong = np.flatnonzero(~((rates >= 0) & (rates < np.inf)))
        if wrong.size:
            told = "missing" if np.isnan(rates[wrong[0]]) else f"{rates[wrong[0]]:g}"
            raise ViewError(
                f"The learning rate of step {wrong[0] + 1} of {rates.size} is {told}; give a finite rate for every step."
            )
        if not 0 <= self.momentum < 1:
            raise ViewError(f"The momentum is {self.momentum}; choose at least 0 and less than 1.")
        if self.reduction not in get_args(Reduction):
            raise ViewError(f"There is no reduction '{self.reduction}'; choose from {', '.join(get_args(Reduction))}.")
        if self.batches is not None and len(self.batches) != rates.size:
            raise ViewError(f"{len(self.batches)} batches were given for {rates.size} steps; give one each, or none.")
        if self.weight_decay != 0:
            raise ViewError(
                f"A weight decay of {self.weight_decay:g} pulls at parameters, which outputs do not show; retrain instead."
            )

    def steps(self) -> Iterator[tuple[float, Rows]]:
        """Learning rate and rows of each step."""
        for step, rate in enumerate(self.learning_rates):
            yield float(rate), ALL if self.batches is None else np.asarray(self.batches[step], dtype=np.int64)


@dataclass(frozen=True)
class Training:
    """What is known of the training that the checkpoints are of: more than a view holds.

    Args:
        epochs, train_outputs, test_outputs: of every checkpoint, also of those that a view leaves out.
        rate_sums: the sum of the learning rate over all steps up to each checkpoint, [C]; None: not known, and `missing` says why.
        steps_per_epoch: None: not known.
        examples: N, how many examples an epoch goes through.
        optimizer: SGD, Adam, or None where the checkpoints do not show it.
        momentum: None: not known.
    """

    epochs: tuple[int, ...]
    train_outputs: npt.NDArray[Any]
    test_outputs: npt.NDArray[Any]
    rate_sums: Array | None
    steps_per_epoch: int | None
    examples: int
    optimizer: str | None
    momentum: float | None = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    dampening: float = 0.0
    missing: str = ""

    def descent(self) -> Descent:
        """The steps of the training: between two checkpoints all at the mean rate of that gap.

        Raises:
            ViewError: the optimiser is not SGD, or steps and rates are not known.
        """
        if self.rate_sums is None or self.steps_per_epoch is None:
            raise ViewError(f"The training cannot be replayed: {self.missing}")
        epochs = np.append(0, self.epochs)
        sums = np.append(0.0, self.rate_sums)
        steps = np.diff(epochs) * self.steps_per_epoch
        rates = np.divide(np.diff(sums), steps, out=np.zeros(len(steps)), where=steps > 0)
        return Descent(np.repeat(rates, steps), self.optimizer, momentum=self.known_momentum(), weight_decay=self.weight_decay)

    def known_momentum(self) -> float:
        """The momentum of plain SGD.

        Raises:
            ViewError: it is not recorded, or the steps are not plain ones.
        """
        if self.momentum is None:
            raise ViewError(
                "The checkpoints do not record the momentum of their SGD, by which each step counts more; retrain, or use curvature."
            )
        if self.nesterov or self.dampening:
            raise ViewError(
                "The run was trained with Nesterov or dampened momentum, whose steps are not plain SGD's; use curvature."
            )
        return self.momentum

    def start(self) -> Start:
        """The outputs at epoch 0.

        Raises:
            ViewError: no checkpoint is of epoch 0.
        """
        return Start.of(self.epochs, self.train_outputs, self.test_outputs)


def require_sgd(optimizer: str | None) -> None:
    """Raises ViewError unless SGD trained the run."""
    if optimizer is None:
        raise ViewError("The checkpoints do not say which optimiser trained them, and only SGD can be replayed; say SGD if it was.")
    if optimizer.lower() != "sgd":
        raise ViewError(
            f"The run was trained with {optimizer}, whose steps depend on each parameter's own history and not on the kernel alone; only "
            f"SGD can be replayed. Use curvature, or retrain."
        )


@dataclass(frozen=True)
class Replayed:
    """Outputs at the end, one column per replay: [n, R] and [m, R]."""

    train: Array
    test: Array


def replay(
    kernel: Kernel, start: Start, objective: Objective, descent: Descent, multiplicity: npt.ArrayLike | None = None
) -> Replayed:
    """The outputs at the end of each replay.

    Args:
        kernel: of one checkpoint, at the positions of the objective and of the test outputs.
        objective: with R sets of targets or weights for R replays.
        multiplicity: copies of each example, [N] or one column per replay, [N, R]; 0: excluded. None: 1.

    Returns:
        Outputs in double precision: at a kink they may fall on the other side than the model's own arithmetic did.

    Raises:
        ViewError: the parts do not fit each other, a multiplicity is negative, a replay has no example, or the outputs diverge.
    """
    copies = _copies(multiplicity, objective)
    _require_fit(kernel, start, objective, descent)
    replays = max(copies.shape[1], objective.replays)
    outputs = np.repeat(start.train[:, None], replays, axis=1)
    velocity, moved = np.zeros_like(outputs), np.zeros_like(outputs)
    with np.errstate(over="ignore", invalid="ignore"):  # said in words by _require_bounded
        for step, (rate, rows) in enumerate(descent.steps()):
            velocity, move = _step(objective, descent, outputs, velocity, copies[rows], rate, rows)
            outputs -= kernel.train_train @ move
            moved += move
            _require_bounded(outputs, step, descent)
    return Replayed(outputs, start.test[:, None] - kernel.test_train @ moved)


def _step(
    objective: Objective, descent: Descent, outputs: Array, velocity: Array, copies: Array, rate: float, rows: Rows
) -> tuple[Array, Array]:
    """The new velocity, and what it moves over the training positions; neither changes where a batch has nothing left."""
    pull = objective.pull(outputs, copies, rows)
    number = copies.sum(axis=0)
    left = number > 0
    if descent.reduction == "mean":
        pull /= np.where(left, number, 1.0)
    new = descent.momentum * velocity + pull
    if left.all():
        return new, rate * new
    return np.where(left, new, velocity), np.where(left, rate * new, 0.0)


def _without(copies: Array, out: Array, *, one_copy: bool) -> Array:
    """The copies that are left, [N, R]."""
    return np.maximum(copies - out, 0.0) if one_copy else copies * (out == 0)


@dataclass(frozen=True)
class Change:
    """What leaving out does to the outputs at the end, one column per replay; and the outputs with nothing left out."""

    train: Array  # [n, R]
    test: Array  # [m, R]
    baseline: Replayed  # [n, 1] and [m, 1]


def predicted_change(
    kernel: Kernel,
    start: Start,
    objective: Objective,
    descent: Descent,
    excluded: Any,
    multiplicity: npt.ArrayLike | None = None,
    *,
    one_copy: bool = False,
) -> Change:
    """Outputs with each exclusion minus outputs with none; replayed side by side, so many at a time that memory stays bounded.

    Args:
        excluded: which examples each replay leaves out, sparse or dense of 0 and 1: [R, N]. `leave_out_samples(objective)`: each sample
            in turn, with all its examples; `leave_out_examples(N, rows)`: each of these examples in turn.
        multiplicity: [N]; None: 1.
        one_copy: leaves out one copy of what is excluded, not all of them: what a score of a single example is about.

    Raises:
        ViewError: as `replay`.
    """
    out = sparse.csr_array(excluded)
    if out.shape[1] != objective.examples:
        raise ViewError(f"The exclusions have {out.shape[1]} columns for {objective.examples} examples; give one column each.")
    if objective.replays != 1:
        raise ViewError(f"The targets or weights are those of {objective.replays} trainings; leave examples out of one.")
    copies = _copies(multiplicity, objective)
    if copies.shape[1] != 1:
        raise ViewError(f"The multiplicities are those of {copies.shape[1]} trainings; leave examples out of one.")
    baseline = replay(kernel, start, objective, descent, copies)
    width = max(1, CELLS_AT_ONCE // objective.examples)
    ends = [
        replay(kernel, start, objective, descent, _without(copies, out[first : first + width].toarray().T, one_copy=one_copy))
        for first in range(0, out.shape[0], width)
    ]
    train = np.hstack([np.empty((len(start.train), 0)), *(end.train for end in ends)])
    test = np.hstack([np.empty((len(start.test), 0)), *(end.test for end in ends)])
    return Change(train - baseline.train, test - baseline.test, baseline)


def predicted_rise(change: Change, quantity: Callable[[Array], Array]) -> Array:
    """By how much a quantity of the test outputs rises for each exclusion: [R, M], in the order of scores: left out x test.

    Args:
        quantity: test outputs [m, R] to values [M, R], such as the losses of test examples (`Objective.losses`).
    """
    return np.asarray((quantity(change.baseline.test + change.test) - quantity(change.baseline.test)).T)


def own_rise(change: Change, objective: Objective, rows: npt.ArrayLike) -> Array:
    """By how much the loss of each example rises when it is itself left out: [R], of a change by `leave_out_examples(N, rows)`."""
    chosen = np.asarray(rows, dtype=np.int64)
    after = objective.losses(change.baseline.train + change.train)[chosen, np.arange(len(chosen))]
    return np.asarray(after - objective.losses(change.baseline.train)[chosen, 0])


def leave_out_samples(objective: Objective) -> Any:
    """Each sample in turn, with all examples that stand on it: sparse [n, N]."""
    return objective.membership()


def leave_out_examples(examples: int, rows: npt.ArrayLike) -> Any:
    """Each of these examples in turn: sparse [R, N].

    Raises:
        ViewError: there is no such example.
    """
    chosen = np.asarray(rows, dtype=np.int64).ravel()
    wrong = chosen[(chosen < 0) | (chosen >= examples)]
    if wrong.size:
        raise ViewError(f"There is no example {wrong[0]}; choose from 0 to {examples - 1}.")
    return sparse.csr_array((np.ones(len(chosen)), (np.arange(len(chosen)), chosen)), shape=(len(chosen), examples))


def _copies(multiplicity: npt.ArrayLike | None, objective: Objective) -> Array:
    """[N, R or 1], with something left in each column."""
    copies = np.ones((objective.examples, 1)) if multiplicity is None else np.asarray(multiplicity, dtype=np.float64)
    copies = copies[:, None] if copies.ndim == 1 else copies
    if copies.ndim != 2 or len(copies) != objective.examples:
        raise ViewError(f"Multiplicities of shape {copies.shape} do not fit {objective.examples} examples; give [N] or [N, R].")
    if not ((copies >= 0) & (copies < np.inf)).all():
        row, column = (int(place) for place in np.argwhere(~((copies >= 0) & (copies < np.inf)))[0])
        raise ViewError(
            f"The multiplicity of example {row} in replay {column} is {copies[row, column]}; it is a number of at least 0."
        )
    if copies.shape[1] != 1 and objective.replays not in (1, copies.shape[1]):
        raise ViewError(
            f"There are multiplicities of {copies.shape[1]} replays, but targets or weights of {objective.replays}; give as many."
        )
    if not copies.any(axis=0).all():
        column = int(np.flatnonzero(~copies.any(axis=0))[0])
        raise ViewError(f"Replay {column} leaves none of the {objective.examples} training examples; exclude fewer.")
    return copies


def _require_fit(kernel: Kernel, start: Start, objective: Objective, descent: Descent) -> None:
    test, train = kernel.test_train.shape
    if not train == len(start.train) == objective.positions or test != len(start.test):
        raise ViewError(
            f"The kernel is of {train} training and {test} test positions, the outputs of {len(start.train)} and {len(start.test)}, the "
            f"objective of {objective.positions}; all must be of the same run."
        )
    for step, batch in enumerate(descent.batches or ()):
        rows = np.asarray(batch)
        if rows.size and not 0 <= rows.min() <= rows.max() < objective.examples:
            raise ViewError(
                f"Step {step + 1} uses the examples {rows.min()} to {rows.max()}; there are 0 to {objective.examples - 1}."
            )


def _require_bounded(outputs: Array, step: int, descent: Descent) -> None:
    if not np.isfinite(outputs).all():
        raise ViewError(
            f"The replayed outputs grew beyond all numbers at step {step + 1} of {descent.learning_rates.size}, at a learning rate of "
            f"{descent.learning_rates[step]:g}: with this kernel held fast the run does not settle. Choose another checkpoint's kernel."
        )
