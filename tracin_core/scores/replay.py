"""A run's training replayed on its outputs: what leaving out, or changing, some of its examples is predicted to do to each test.

`retraining` is the method and cites it; here it meets a view. A preview, no evidence: what really happens is known from retraining.
"""

import time
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.errors import ViewError
from tracin_core.scores import retraining
from tracin_core.scores.actions import WEIGHT, Action, require_weight
from tracin_core.scores.chance import label_reached, number_error, order_reached
from tracin_core.scores.curvature import Kernel
from tracin_core.scores.examples import PairExamples, SampleExamples
from tracin_core.scores.objectives import Objective, PairObjective, SampleObjective, objective_of
from tracin_core.scores.relabel import likeliest_others
from tracin_core.scores.retraining import Descent, Training
from tracin_core.scores.sample_losses import label_logit
from tracin_core.scores.view import View

Array = npt.NDArray[np.float64]
TIMED_STEPS: Final = 5
REPLAYED_PAIRS: Final = 3_000  # leaving out more examples one by one takes minutes; samples are left out in milliseconds


def require_plain(inverted: bool) -> None:
    """The kernels are of plain gradients.

    Raises:
        ViewError: they hold an inverse curvature already.
    """
    if inverted:
        raise ViewError(
            "The kernels of this run hold the inverse curvature already (EKFAC), and this method is made for plain ones; read this "
            'run\'s own scores, or compute a run with precondition = "none".'
        )


class Replay:
    """The training of a view's run, replayed with the kernel of the view's middle checkpoint held fast.

    Args:
        inverted: the kernels hold an inverse curvature already; every replay is refused.
    """

    def __init__(self, view: View, training: Training, *, inverted: bool = False) -> None:
        self.view, self.training, self._inverted = view, training, inverted

    @property
    def checkpoint(self) -> int:
        """The place among the view's checkpoints of the one whose kernel is held fast: the middle."""
        return len(self.view.checkpoint_weights) // 2

    @cached_property
    def _objective(self) -> Objective:
        return objective_of(self.view.train, self.checkpoint)

    @cached_property
    def _kernel(self) -> Kernel:
        kernels = self.view.kernels
        return Kernel(*(part[self.checkpoint] for part in (kernels.train_train, kernels.test_train, kernels.test_test)))

    # ---- changed trainings ---------------------------------------------------------------------------------------------------------

    def preview(
        self,
        named: npt.NDArray[Any],
        action: Action = "exclude",
        *,
        weight: float = WEIGHT,
        left_out: npt.NDArray[np.bool_] | None = None,
    ) -> pd.DataFrame:
        """What a training with these examples left out, or changed, is predicted to do to each test. A preview, no evidence.

        The training is replayed on outputs (`retraining`) twice, both times with the same steps and rates, with (`actions`)

            exclude      multiplicity_e = 0 where e is named, so that a mean divides by what is left
            down_weight  u_e weight^(how often e is named), the divisor unchanged; as weight -> 0 the rest is therefore not weighed
                         more, as it is when e is left out: the step is that of exclusion times (what is left) / (all)
            turn         target_e = -target_e; a GHM weight is looked up anew, as a guest's
            relabel      target_e = the label but its own that the last checkpoint finds likeliest (of one output, the other one)

        Args:
            named: [N], how often a list names each example (`View.named`), or whether it does (`View.removed`).
            weight: where the action is down_weight: between 0 (included) and 1.
            left_out: [N], what the run's own training left out already, and both replays do; None: nothing.

        Returns:
            One row per test: id, loss, loss_after, rise (after - before), reached, reached_after (`test_reached`).

        Raises:
            ViewError: the training cannot be replayed, nothing would be left of it, or such examples cannot be changed so.
        """
        if named.shape != (len(self.view.train),):
            raise ViewError(f"One value is needed for each of {len(self.view.train)} training examples, not {named.shape}.")
        before = self._baseline(np.zeros(len(named), dtype=bool) if left_out is None else left_out)
        objective, copies = self._changed(named.astype(np.int64), action, weight)
        after = self._end(objective, copies if left_out is None else copies * ~left_out)
        (loss, loss_after), (own, own_after) = ((of(before)[:, 0], of(after)[:, 0]) for of in (self.test_losses, self.test_reached))
        told = {"loss": loss, "loss_after": loss_after, "rise": loss_after - loss, "reached": own, "reached_after": own_after}
        return pd.DataFrame({"id": self.view.test_pairs["id"], **told})

    def preview_seconds(self) -> float:
        """About how long `preview` takes here, by the clock: a few steps of the replay are done, as often as there are steps.

        Raises:
            ViewError: the training cannot be replayed.
        """
        descent = self.training.descent()
        few = replace(descent, learning_rates=descent.learning_rates[:TIMED_STEPS])
        objective, copies = self._objective, self.view.train.multiplicity
        self._end(objective, copies, few)  # the first steps also make what all share
        begun = time.perf_counter()
        self._end(objective, copies, few)
        return (time.perf_counter() - begun) * 2 * descent.learning_rates.size / few.learning_rates.size

    def _baseline(self, left_out: npt.NDArray[np.bool_]) -> Array:
        """The test outputs of the replay in which nothing is done: [m, 1]."""
        known = left_out.tobytes()
        if known not in self._baselines:
            self._baselines[known] = self._end(self._objective, self.view.train.multiplicity * ~left_out)
        return self._baselines[known]

    @cached_property
    def _baselines(self) -> dict[bytes, Array]:
        return {}

    def _end(self, objective: Objective, copies: npt.NDArray[Any], descent: Descent | None = None) -> Array:
        require_plain(self._inverted)
        start, steps = self.training.start(), self.training.descent() if descent is None else descent
        return retraining.replay(self._kernel, start, objective, steps, copies).test

    def _changed(self, named: npt.NDArray[np.int64], action: Action, weight: float) -> tuple[Objective, npt.NDArray[Any]]:
        """The objective of the changed training, and how often each example is in it."""
        objective, copies, train = self._objective, self.view.train.multiplicity, self.view.train
        if action == "exclude":
            return objective, copies * (named == 0)
        if action == "down_weight" and isinstance(objective, (PairObjective, SampleObjective)):
            require_weight(weight)
            own = 1.0 if objective.weight is None else objective.weight
            return replace(objective, weight=own * weight**named), copies
        if action == "turn" and isinstance(objective, PairObjective) and isinstance(train, PairExamples):
            return replace(objective, **self._turned(train, named > 0)), copies
        of_label = isinstance(train, SampleExamples) and train.loss.is_of_label
        if action == "relabel" and isinstance(objective, SampleObjective) and of_label:
            others = likeliest_others(np.asarray(self.training.train_outputs[-1]), objective.targets)
            return replace(objective, targets=np.where(named > 0, others, objective.targets)), copies
        raise ViewError(f"{train.noun.capitalize()}s under {train.described} cannot be put to '{action}'; choose exclude.")

    def _turned(self, train: PairExamples, turned: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """Targets, and the GHM weights that go with them."""
        target = train.table["target"].to_numpy() * np.where(turned, -1, 1)
        if not train.loss.is_ghm:
            return {"target": target}
        strangers = turned if train.strangers is None else turned | train.strangers
        there = replace(train, table=train.table.assign(target=target), strangers=strangers)
        return {"target": target, "weight": there.weights[self.checkpoint]}

    # ---- without each example ------------------------------------------------------------------------------------------------------

    def sample_rise(self) -> Array:
        """By how much the loss of each test would rise if each training sample were left out of the whole training: [n, M].

        Raises:
            ViewError: the training cannot be replayed.
        """
        return self._sample_rise.copy()

    @cached_property
    def _sample_rise(self) -> Array:
        change = self._change(retraining.leave_out_samples(self._objective))
        return retraining.predicted_rise(change, self.test_losses)

    @cached_property
    def _example_change(self) -> retraining.Change:
        self._require_few()
        count = len(self.view.train)
        return self._change(retraining.leave_out_examples(count, np.arange(count)), one_copy=True)

    def influence(self, test: str) -> Array:
        """By how much the loss of this test would rise if one copy of each training example were left out: [N].

        Raises:
            NotFoundError: no such test.
            ViewError: the training cannot be replayed, or there are too many examples.
        """
        row = self.view.test_row(test)
        rise = retraining.predicted_rise(self._example_change, lambda outputs: self.test_losses(outputs)[[row]])
        return rise[:, 0]

    def self_influence(self) -> Array:
        """By how much its own loss would rise if one copy of each training example were left out: [N].

        Raises:
            ViewError: as `influence`.
        """
        rows = np.arange(len(self.view.train))
        return retraining.own_rise(self._example_change, self._objective, rows)

    def require_each(self) -> None:
        """Each example can be left out in turn; nothing is replayed to find out.

        Raises:
            ViewError: the training cannot be replayed, or there are too many examples.
        """
        require_plain(self._inverted)
        self.training.start()
        self.training.descent()
        objective_of(self.view.train, self.checkpoint)
        self._require_few()

    def _require_few(self) -> None:
        count = len(self.view.train)
        if count > REPLAYED_PAIRS:
            raise ViewError(
                f"Leaving out each of {count:,} examples in turn would replay the training {count:,} times; ask for samples "
                f"(`sample_rise`), or preview a list."
            )

    def _change(self, excluded: Any, *, one_copy: bool = False) -> retraining.Change:
        require_plain(self._inverted)
        copies = self.view.train.multiplicity.astype(float)
        return retraining.predicted_change(
            self._kernel,
            self.training.start(),
            self._objective,
            self.training.descent(),
            excluded,
            copies,
            one_copy=one_copy,
        )

    # ---- what outputs of the tests reach -------------------------------------------------------------------------------------------

    def test_losses(self, outputs: Array) -> Array:
        """The test quantity of each test where the test samples have these outputs, [m, R] (of several each, row by row): [M, R]."""
        test = self.view.test
        if isinstance(test, PairExamples):
            weights = test.weights[self.checkpoint] if test.loss.is_ghm else None
            first, second = test.ends.T
            target = test.table["target"].to_numpy()
            if test.quantity == "score_difference":
                return np.asarray(-target[:, None] * (outputs[first] - outputs[second]))
            return PairObjective(test.loss, first, second, target, test.positions, weights).losses(outputs)
        if isinstance(test, SampleExamples):
            k = 1 if test.cotangent == "score" else test.outputs.shape[2]
            if test.quantity == "score_difference":
                each = outputs.reshape(len(test), k, -1)
                return np.stack([-label_logit(each[:, :, r], test.targets) for r in range(each.shape[2])], axis=1)
            return SampleObjective(test.loss, test.targets, k).losses(outputs)
        raise ViewError("These test examples are neither pairs nor samples.")

    def trained_reached(self) -> Array:
        """What the outputs at the last checkpoint reach on each test, as `test_reached`: [M]."""
        outputs = np.asarray(self.training.test_outputs[-1], dtype=np.float64)
        return np.asarray(self.test_reached(outputs.reshape(-1, 1))[:, 0])

    def test_reached(self, outputs: Array) -> Array:
        """What these outputs of the test samples, [m, R] (of several each, row by row), reach on each test: [M, R].

        1 in the right order or with the right label, 0.5 undecided, 0 wrong; of numbers the absolute difference from the target.
        """
        test = self.view.test
        if isinstance(test, PairExamples):
            first, second = test.ends.T
            return order_reached(test.table["target"].to_numpy()[:, None] * (outputs[first] - outputs[second]))
        if not isinstance(test, SampleExamples):
            raise ViewError("These test examples are neither pairs nor samples.")
        of_one = label_reached if test.loss.is_of_label else number_error
        k = 1 if test.cotangent == "score" else test.outputs.shape[2]
        each = outputs.reshape(len(test), k, -1)
        return np.stack([of_one(each[:, 0, r] if k == 1 else each[:, :, r], test.targets) for r in range(each.shape[2])], axis=1)
