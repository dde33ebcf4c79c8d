"""Every attribution method on one view: the same kernels, outputs and examples, so that methods can be held against each other.

`methods` says what each is and cites it; here each meets a run. What one cannot answer for this run is a reason in words, not a number.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from tracin_core.errors import ViewError
from tracin_core.scores import curvature as curved
from tracin_core.scores import methods as known
from tracin_core.scores import retraining as replays
from tracin_core.scores.actions import WEIGHT, Action, require_weight
from tracin_core.scores.chance import label_reached, number_error, order_reached
from tracin_core.scores.curvature import CurvedKernel, Kernel, NoCurvature
from tracin_core.scores.damping import DELTAS, DampingChoice, best_by_linearised_retraining
from tracin_core.scores.examples import ALL_OUTPUTS, PairExamples, SampleExamples
from tracin_core.scores.influence import SummedKernels
from tracin_core.scores.objectives import Objective, PairObjective, SampleObjective, pair_rows
from tracin_core.scores.relabel import likeliest_others
from tracin_core.scores.representer import ClassRepresenters, Representers, class_representers, representer_points
from tracin_core.scores.sample_losses import label_logit, sample_derivative
from tracin_core.scores.view import View

Array = npt.NDArray[np.float64]
DEFAULT_RIDGE: Final = 1e-3
TIMED_STEPS: Final = 5
REPLAYED_PAIRS: Final = 3_000  # leaving out more examples one by one takes minutes; samples are left out in milliseconds


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

    def descent(self) -> replays.Descent:
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
        return replays.Descent(
            np.repeat(rates, steps), self.optimizer, momentum=self.known_momentum(), weight_decay=self.weight_decay
        )

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

    def start(self) -> replays.Start:
        """The outputs at epoch 0.

        Raises:
            ViewError: no checkpoint is of epoch 0.
        """
        return replays.Start.of(self.epochs, self.train_outputs, self.test_outputs)


class Methods:
    """The methods of `methods.METHODS` on one view.

    Args:
        curvature: of pairs: gauss_newton, fisher, softplus or all_pairs; None: gauss_newton where the loss has it, else fisher.
        delta: the relative damping of everything curved.
        ridge: of the refitted last layer.
        last_layer: the view of the last layer group alone; None: the run keeps none.
        features: K_h of that layer's features at the last checkpoint, train with train and test with train; None: nobody has them.
        inverted: the kernels hold an inverse curvature already; what is made for plain ones is refused.
        seed: of the random baseline.
    """

    def __init__(
        self,
        view: View,
        training: Training,
        *,
        curvature: str | None = None,
        delta: float = 1.0,
        ridge: float = DEFAULT_RIDGE,
        last_layer: View | None = None,
        features: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None,
        inverted: bool = False,
        seed: int = 0,
    ) -> None:
        curved.require_positive("relative damping delta", delta)
        if view.measure != "dot":
            raise ViewError(
                f"Methods are compared by their own influences, but this view measures {view.measure}; choose the measure dot."
            )
        self._view, self._training = view, training
        self._curvature, self._delta, self._ridge, self._seed = curvature, delta, ridge, seed
        self._last_layer, self._features, self._inverted = last_layer, features, inverted

    @property
    def view(self) -> View:
        """The view that all methods share."""
        return self._view

    @property
    def training(self) -> Training:
        """What is known of the training."""
        return self._training

    @property
    def delta(self) -> float:
        """The relative damping; another one is another `Methods`."""
        return self._delta

    # ---- questions ----------------------------------------------------------------------------------------------------------

    def self_influence(self, name: str) -> Array:
        """The method's one score per training example, higher = more suspect: its self-influence, or a baseline's score: [N].

        Raises:
            ViewError: no such method, it defines no such score, or this run lacks what it needs.
        """
        if "self_influence" not in known.method(name).defines:
            raise ViewError(f"The method {name} has no self-influence; choose from {', '.join(self._defining('self_influence'))}.")
        return self._own[name]()

    def influence(self, name: str, test: str) -> Array:
        """The method's score of every training example on one test: [N]; positive: removing the example raises the test's loss.

        Raises:
            NotFoundError: no such test.
            ViewError: as `self_influence`.
        """
        if "influence" not in known.method(name).defines:
            raise ViewError(f"The method {name} has no influence on a test; choose from {', '.join(self._defining('influence'))}.")
        return self._towards[name](test)

    def available(self) -> pd.DataFrame:
        """One row per method: method, paper, answers, means_nothing, self_influence, influence (bool), and why_not in words.

        Whether it can be answered is tried, not guessed, on the first test; of a replay, which takes its time, all that it needs is.
        """
        test = str(self.view.test_pairs["id"].iloc[0])
        rows = []
        for name, entry in known.METHODS.items():
            asked: dict[str, Callable[[], object]] = {
                "self_influence": partial(self.self_influence, name),
                "influence": partial(self.influence, name, test),
            }
            if name == "linearised_retraining":
                asked = dict.fromkeys(asked, self._require_replay)
            refusals = {score: _refusal(asked[score]) for score in entry.defines}
            rows.append(
                {
                    "method": name,
                    "paper": entry.paper,
                    "answers": entry.answers,
                    "means_nothing": entry.means_nothing,
                    **{score: score in refusals and not refusals[score] for score in asked},
                    "why_not": " ".join(sorted({told for told in refusals.values() if told})),
                }
            )
        return pd.DataFrame(rows)

    def compare(self, test: str | None = None) -> pd.DataFrame:
        """Every score that this run has, side by side: one row per training example, one column per method.

        Args:
            test: influences on this test; None: self-influences and baselines.
        """
        score = "self_influence" if test is None else "influence"
        columns: dict[str, Array] = {}
        for name in self._defining(score):
            try:
                columns[name] = self.self_influence(name) if test is None else self.influence(name, test)
            except ViewError:
                continue  # told by `available`
        return pd.DataFrame(columns, index=pd.Index(self.view.train_pairs["id"], name=self.view.train.noun))

    def agreement(self, test: str | None = None) -> pd.DataFrame:
        """Spearman's correlation between every two methods, over the examples that both score: methods x methods."""
        return self.compare(test).corr(method="spearman")

    def _defining(self, score: str) -> list[str]:
        return [name for name, entry in known.METHODS.items() if score in entry.defines]

    # ---- maps of the kernel -------------------------------------------------------------------------------------------------

    def mapped(self, name: str) -> View:
        """The view on what the method makes of the kernels: every list, roll-up and rule then runs on it unchanged.

        Raises:
            ViewError: the method is no map of kernels, or this run lacks what it needs.
        """
        if name not in self._maps:
            raise ViewError(f"The method {name} is no map of kernels; choose from {', '.join(self._maps)}.")
        if name not in self._mapped:
            self._mapped[name] = self.view if name == "tracin" else self._view_of(self._maps[name]())
        return self._mapped[name]

    def _view_of(self, mapped: known.Mapped) -> View:
        """The view on these kernels; a checkpoint that the method leaves out has weight 0, so that none of its gradients count."""
        count = len(self.view.checkpoint_weights)
        stacked = mapped.stacked(count)
        kernels = SummedKernels(*(np.stack([getattr(k, part) for k in stacked]) for part in PARTS))
        kept = np.zeros(count)
        kept[list(mapped.places)] = 1.0
        return self.view.mapped(lambda _view, _kernels: kernels, checkpoint_weights=kept)

    @cached_property
    def _mapped(self) -> dict[str, View]:
        return {}

    @property
    def _maps(self) -> dict[str, Callable[[], known.Mapped]]:
        return {
            "tracin": lambda: known.tracin(self._kernels, self.view.checkpoint_weights),
            "last_checkpoint": lambda: known.last_checkpoint(self._kernels),
            "curvature": lambda: known.curvature_mean(self.decomposed, self.delta),
            "training_time": self._training_time,
        }

    @cached_property
    def _kernels(self) -> list[Kernel]:
        kernels = self.view.kernels
        return [Kernel(*(getattr(kernels, part)[c] for part in PARTS)) for c in range(len(self.view.checkpoint_weights))]

    @cached_property
    def decomposed(self) -> list[CurvedKernel | NoCurvature]:
        """The slider form at each checkpoint: eigendecompositions once, then any damping."""
        self._require_not_inverted()
        return [curved.decompose(kernel, self.curvature_at(c)) for c, kernel in enumerate(self._kernels)]

    def curvature_at(self, checkpoint: int) -> Array:
        """L over the positions of the training side at a checkpoint.

        Raises:
            ViewError: the loss has no curvature of this name.
        """
        train = self.view.train
        copies = train.multiplicity
        if isinstance(train, PairExamples):
            outputs = train.outputs[checkpoint]
            ends = outputs[train.ends[:, 0]], outputs[train.ends[:, 1]], train.table["target"].to_numpy()
            name = self._curvature or curved.default_pair_curvature(train.loss)
            h = curved.pair_curvature(name, train.loss, *ends, train.weights[checkpoint])
            return curved.pair_laplacian(train.ends[:, 0], train.ends[:, 1], h, train.positions, copies)
        if self._curvature == "fisher" or (isinstance(train, SampleExamples) and train.cotangent == "label_logit"):
            return curved.fisher_curvature(self._rows(checkpoint), copies)
        if self._curvature not in (None, "gauss_newton"):
            raise ViewError(f"Samples have no curvature '{self._curvature}'; choose gauss_newton or fisher.")
        return self._objective(checkpoint).curvature(np.asarray(self._outputs_at(checkpoint), dtype=float), copies.astype(float))

    def _outputs_at(self, checkpoint: int) -> npt.NDArray[Any]:
        train = self.view.train
        if not isinstance(train, (PairExamples, SampleExamples)):
            raise ViewError("These examples are neither pairs nor samples, and their outputs are not known.")
        return np.asarray(train.outputs[checkpoint]).ravel()

    def _rows(self, checkpoint: int) -> Any:
        """a of every training example at one checkpoint: sparse [N, positions]."""
        weights = np.zeros(len(self.view.checkpoint_weights))
        weights[checkpoint] = 1.0
        positions = self.view.train.positions
        return self.view.train.incidence(weights, positions)[:, checkpoint * positions : (checkpoint + 1) * positions]

    def _training_time(self) -> known.Mapped:
        self._require_not_inverted()
        training = self.training
        if training.rate_sums is None:
            raise ViewError(f"The time of the training is not known: {training.missing}")
        replays.require_sgd(training.optimizer)
        tau = float(training.rate_sums[-1]) / (1 - training.known_momentum())
        return known.training_time_mean(self._kernels, self.decomposed, tau, float(self.view.train.multiplicity.sum()))

    def damped(self, delta: float) -> "Methods":
        """The same methods with another damping; what was decomposed is not decomposed again."""
        same: dict[str, Any] = {"ridge": self._ridge, "inverted": self._inverted, "seed": self._seed}
        other = Methods(self.view, self.training, curvature=self._curvature, delta=delta, **same)
        other.__dict__["decomposed"] = self.decomposed
        return other

    def choose_damping(self, deltas: Sequence[float] = DELTAS) -> DampingChoice:
        """The delta whose influences of samples agree best with linearised retraining without each of them; no retraining is needed.

        Raises:
            ViewError: the training cannot be replayed, or nothing is curved.
        """
        predicted = self.sample_rise()
        live = ~self.view.dead_tests

        def scores(delta: float) -> Array:
            return self.damped(delta).mapped("curvature").sample_influence()[:, live]

        return best_by_linearised_retraining(scores, predicted[:, live], deltas=deltas)

    # ---- self-influences and influences -------------------------------------------------------------------------------------

    @property
    def _own(self) -> dict[str, Callable[[], Array]]:
        losses = self.view.train.losses
        return {
            **{name: partial(self._mapped_own, name) for name in self._maps},
            "trak": self._trak_own,
            "representer_points": self._representer_own,
            "linearised_retraining": self._replayed_own,
            "last_loss": lambda: known.last_loss(losses),
            "mean_loss": lambda: known.mean_loss(losses),
            "random": lambda: known.random_scores(len(self.view.train), self._seed),
        }

    @property
    def _towards(self) -> dict[str, Callable[[str], Array]]:
        return {
            **{name: partial(self._mapped_influence, name) for name in self._maps},
            "cosine": lambda test: self._ratio("tracin", test, "cosine"),
            "l_relatif": lambda test: self._ratio("curvature", test, "relative"),
            "theta_relatif": self._theta_relatif,
            "trak": self._trak,
            "linearised_retraining": self._replayed,
            "representer_points": self._representer,
        }

    def _mapped_own(self, name: str) -> Array:
        return self.mapped(name).self_influence()

    def _mapped_influence(self, name: str, test: str) -> Array:
        return self.mapped(name).influence(test)

    def _ratio(self, name: str, test: str, kind: str) -> Array:
        view = self.mapped(name)
        place = slice(view.test_row(test), view.test_row(test) + 1)
        dot, own = view.influence(test)[:, None], view.self_influence()
        if kind == "relative":
            return known.l_relatif(dot, own)[:, 0]
        if (view.checkpoint_weights < 0).any():
            raise ViewError(
                "A cosine divides by self-influences, which a negative checkpoint weight can make negative; choose others."
            )
        return known.cosine(dot, own, view.test_self_influence()[place])[:, 0]

    def _theta_relatif(self, test: str) -> Array:
        return known.theta_relatif(self.mapped("curvature").influence(test)[:, None], self._moved)[:, 0]

    @cached_property
    def _moved(self) -> Array:
        """How far leaving out each training example moves the parameters: [N]."""
        return known.moved_lengths(self.decomposed, [self._rows(c) for c in range(len(self._kernels))], self.delta)

    # ---- TRAK ---------------------------------------------------------------------------------------------------------------

    @cached_property
    def _trak_parts(self) -> tuple[known.Mapped, Any, Array]:
        """K_mu of the margins' own Laplacian, the margins of the training examples, and 1 - p of each: -dL/df."""
        self._require_not_inverted()
        b = self._margins(self.view.train)
        laplacian = curved.fisher_curvature(b, self.view.train.multiplicity)
        states = [curved.decompose(kernel, laplacian) for kernel in self._kernels]
        slopes = np.abs(self.view.train.derivatives)
        return known.curvature_mean(states, self.delta), b, slopes

    def _margins(self, examples: Any) -> Any:
        """df/d(output) of each example, f its margin: sparse [N, positions]."""
        if isinstance(examples, PairExamples):
            target = examples.table["target"].to_numpy(dtype=float)
            return pair_rows(examples.ends[:, 0], examples.ends[:, 1], target, examples.positions)
        if isinstance(examples, SampleExamples) and examples.cotangent == "label_logit":
            return sparse.eye_array(len(examples), format="csr")
        if isinstance(examples, SampleExamples) and examples.cotangent == "score" and examples.loss.is_of_label:
            return sparse.diags_array(2.0 * examples.targets - 1, format="csr")
        raise ViewError(
            "TRAK is about a margin: that of a pair, or logit(p_y) of a sample. Compute a run of ranking, or one that keeps the "
            "kernel of logit(p_y)."
        )

    def _trak(self, test: str) -> Array:
        mapped, b, slopes = self._trak_parts
        row = self.view.test_row(test)
        return known.trak(mapped, b, self._margins(self.view.test)[[row]], slopes)[:, 0]

    def _trak_own(self) -> Array:
        mapped, b, slopes = self._trak_parts
        mean_slope = slopes[list(mapped.places)].mean(axis=0)
        return np.asarray(known.self_influence(mapped, [b] * (max(mapped.places) + 1)) * mean_slope)

    # ---- linearised retraining ----------------------------------------------------------------------------------------------

    def trained_reached(self) -> Array:
        """What the outputs at the last checkpoint reach on each test, as `test_reached`: [M]."""
        outputs = np.asarray(self.training.test_outputs[-1], dtype=np.float64)
        return np.asarray(self.test_reached(outputs.reshape(-1, 1))[:, 0])

    @property
    def middle(self) -> int:
        """The place among the view's checkpoints of the one whose kernel a replay holds fast."""
        return self._middle

    @cached_property
    def _middle(self) -> int:
        """The checkpoint whose kernel stands for the run: the middle of the view's."""
        return len(self.view.checkpoint_weights) // 2

    def _objective(self, checkpoint: int) -> Objective:
        train = self.view.train
        if isinstance(train, PairExamples):
            weights = train.weights[checkpoint] if train.loss.is_ghm else None
            first, second = train.ends.T
            return PairObjective(train.loss, first, second, train.table["target"].to_numpy(), train.positions, weights)
        if isinstance(train, SampleExamples) and train.cotangent != "label_logit":
            outputs = 1 if train.cotangent == "score" else train.outputs.shape[2]
            return SampleObjective(train.loss, train.targets, outputs)
        raise ViewError(
            "The kernel of logit(p_y) follows the output of each sample's own label alone, which is not enough to replay a training; "
            f"{ALL_OUTPUTS}."
        )

    def _require_not_inverted(self) -> None:
        if self._inverted:
            raise ViewError(
                "The kernels of this run hold the inverse curvature already (EKFAC), and this method is made for plain ones; read this "
                'run\'s own scores, or compute a run with precondition = "none".'
            )

    def _require_replay(self) -> None:
        self._require_not_inverted()
        self.training.start()
        self.training.descent()
        self._objective(self._middle)
        self._require_few()

    def _require_few(self) -> None:
        count = len(self.view.train)
        if count > REPLAYED_PAIRS:
            raise ViewError(
                f"Leaving out each of {count:,} examples in turn would replay the training {count:,} times; ask for samples "
                f"(`sample_rise`), or preview a list."
            )

    def _change(self, excluded: Any, *, one_copy: bool = False) -> replays.Change:
        self._require_not_inverted()
        middle, copies = self._middle, self.view.train.multiplicity.astype(float)
        return replays.predicted_change(
            self._kernels[middle],
            self.training.start(),
            self._objective(middle),
            self.training.descent(),
            excluded,
            copies,
            one_copy=one_copy,
        )

    def test_losses(self, outputs: Array) -> Array:
        """The test quantity of each test where the test samples have these outputs, [m, R] (of several each, row by row): [M, R]."""
        test = self.view.test
        if isinstance(test, PairExamples):
            weights = test.weights[self._middle] if test.loss.is_ghm else None
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

    def sample_rise(self) -> Array:
        """By how much the loss of each test would rise if each training sample were left out of the whole training: [n, M].

        Raises:
            ViewError: the training cannot be replayed.
        """
        return self._sample_rise.copy()

    @cached_property
    def _sample_rise(self) -> Array:
        change = self._change(replays.leave_out_samples(self._objective(self._middle)))
        return replays.predicted_rise(change, self.test_losses)

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
        objective, copies = self._objective(self._middle), self.view.train.multiplicity
        self._end(objective, copies, few)  # the first steps also make what all share
        begun = time.perf_counter()
        self._end(objective, copies, few)
        return (time.perf_counter() - begun) * 2 * descent.learning_rates.size / few.learning_rates.size

    def _baseline(self, left_out: npt.NDArray[np.bool_]) -> Array:
        """The test outputs of the replay in which nothing is done: [m, 1]."""
        known = left_out.tobytes()
        if known not in self._baselines:
            self._baselines[known] = self._end(self._objective(self._middle), self.view.train.multiplicity * ~left_out)
        return self._baselines[known]

    @cached_property
    def _baselines(self) -> dict[bytes, Array]:
        return {}

    def _end(self, objective: Objective, copies: npt.NDArray[Any], descent: replays.Descent | None = None) -> Array:
        self._require_not_inverted()
        start, steps = self.training.start(), self.training.descent() if descent is None else descent
        return replays.replay(self._kernels[self._middle], start, objective, steps, copies).test

    def _changed(self, named: npt.NDArray[np.int64], action: Action, weight: float) -> tuple[Objective, npt.NDArray[Any]]:
        """The objective of the changed training, and how often each example is in it."""
        objective, copies, train = self._objective(self._middle), self.view.train.multiplicity, self.view.train
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
        return {"target": target, "weight": there.weights[self._middle]}

    @cached_property
    def _example_change(self) -> replays.Change:
        self._require_few()
        count = len(self.view.train)
        return self._change(replays.leave_out_examples(count, np.arange(count)), one_copy=True)

    def _replayed(self, test: str) -> Array:
        row = self.view.test_row(test)
        rise = replays.predicted_rise(self._example_change, lambda outputs: self.test_losses(outputs)[[row]])
        return rise[:, 0]

    def _replayed_own(self) -> Array:
        rows = np.arange(len(self.view.train))
        return replays.own_rise(self._example_change, self._objective(self._middle), rows)

    # ---- representer points -------------------------------------------------------------------------------------------------

    @property
    def _last_kernels(self) -> SummedKernels:
        if self._last_layer is None:
            raise ViewError(
                'This run keeps no plain kernel of the last layer apart; compute it with its layer groups and precondition = "none".'
            )
        return self._last_layer.kernels

    @cached_property
    def representers(self) -> Representers:
        """The last layer, refitted on its kernel at the last checkpoint.

        Raises:
            ViewError: the run keeps no last layer group, or as `representer.representer_points`.
        """
        kernels = self._last_kernels
        objective = self._objective(len(kernels.train_train) - 1)
        copies = self.view.train.multiplicity
        return representer_points(
            kernels.train_train[-1], kernels.test_train[-1], objective, ridge=self._ridge, multiplicity=copies
        )

    @cached_property
    def _of_classes(self) -> ClassRepresenters:
        """The same of several outputs, whose features no kernel keeps apart."""
        train, test = self.view.train, self.view.test
        if not isinstance(train, SampleExamples) or not isinstance(test, SampleExamples) or train.cotangent != "label_logit":
            raise ViewError(
                "Representer points of several outputs need a run of classes; compute one with the kernel of logit(p_y)."
            )
        if train.loss.name != "cross_entropy":
            raise ViewError(f"Representer points of several outputs refit by cross_entropy, but the loss is {train.loss.name}.")
        if self._features is None:
            raise ViewError(
                "Representer points of several outputs need the features of the last layer, which a calibration has, of a model whose "
                "outputs a linear layer gives; calibrate such a model."
            )
        classes = train.outputs.shape[2]
        labels = np.asarray(train.targets), np.asarray(test.targets)
        return class_representers(*self._features, *labels, classes, ridge=self._ridge, multiplicity=train.multiplicity)

    @property
    def _has_classes(self) -> bool:
        train = self.view.train
        return isinstance(train, SampleExamples) and train.cotangent != "score"

    def _representer(self, test: str) -> Array:
        """What each training example adds to a margin, or to a label's output; of a number, how much its loss would rise without it."""
        view, row = self.view, self.view.test_row(test)
        if self._has_classes:
            return np.asarray(self._of_classes.values[:, row])
        values = self.representers.values
        if isinstance(view.test, PairExamples):
            first, second = view.test.ends[row]
            return np.asarray(view.test.table["target"].to_numpy()[row] * (values[:, first] - values[:, second]))
        if not isinstance(view.test, SampleExamples):
            raise ViewError("These test examples are neither pairs nor samples, so nothing is added to a margin of theirs.")
        target = view.test.targets[[row]]
        if view.test.loss.is_of_label:
            return np.asarray((2 * float(target[0]) - 1) * values[:, row])
        return -float(sample_derivative(view.test.loss, self.representers.test[[row]], target)[0]) * values[:, row]

    def _representer_own(self) -> Array:
        """What each training example adds to its own margin or output, and of a number to its own loss; never below 0."""
        if self._has_classes:
            return self._of_classes.own
        train, points = self.view.train, self.representers
        kernel = np.asarray(self._last_kernels.train_train[-1], dtype=np.float64)
        scale = 2 * self._ridge * float(train.multiplicity.sum())
        slopes = (
            abs(self._objective(len(self._last_kernels.train_train) - 1).derivatives(points.train)).max(axis=1).toarray().ravel()
        )
        if isinstance(train, PairExamples):
            first, second = train.ends.T
            return np.asarray(slopes * (kernel[first, first] - 2 * kernel[first, second] + kernel[second, second]) / scale)
        of_label = isinstance(train, SampleExamples) and train.loss.is_of_label
        return np.asarray((slopes if of_label else slopes**2) * np.diag(kernel) / scale)


PARTS: Final = ("train_train", "test_train", "test_test")


def _refusal(ask: Callable[[], Any]) -> str:
    try:
        ask()
    except ViewError as refusal:
        return str(refusal)
    return ""
