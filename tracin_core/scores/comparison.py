"""Every attribution method on one view: the same kernels, outputs and examples, so that methods can be held against each other.

`methods` says what each is and cites it; here each meets a run. What one cannot answer for this run is a reason in words, not a number.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from tracin_core.errors import ViewError
from tracin_core.scores import curvature as curved
from tracin_core.scores import methods as known
from tracin_core.scores.curvature import CurvedKernel, Kernel, NoCurvature
from tracin_core.scores.damping import DELTAS, DampingChoice, best_by_linearised_retraining
from tracin_core.scores.examples import PairExamples, SampleExamples
from tracin_core.scores.influence import SummedKernels
from tracin_core.scores.objectives import objective_of, pair_rows
from tracin_core.scores.replay import Replay, require_plain
from tracin_core.scores.representer import DEFAULT_RIDGE, RefittedLayer
from tracin_core.scores.retraining import Training, require_sgd
from tracin_core.scores.view import View

Array = npt.NDArray[np.float64]


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
        self._curvature, self._delta, self._inverted, self._seed = curvature, delta, inverted, seed
        self._replay = Replay(view, training, inverted=inverted)
        self._refitted_layer = RefittedLayer(view, last_layer, features, ridge)

    @property
    def view(self) -> View:
        """The view that all methods share."""
        return self._view

    @property
    def training(self) -> Training:
        """What is known of the training."""
        return self._training

    @property
    def replay(self) -> Replay:
        """The training replayed on outputs: what leaving examples out, or changing them, is predicted to do."""
        return self._replay

    @property
    def refitted_layer(self) -> RefittedLayer:
        """The last layer, which representer points are of."""
        return self._refitted_layer

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
                asked = dict.fromkeys(asked, self.replay.require_each)
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
        require_plain(self._inverted)
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
        return objective_of(train, checkpoint).curvature(
            np.asarray(self._outputs_at(checkpoint), dtype=float), copies.astype(float)
        )

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
        require_plain(self._inverted)
        training = self.training
        if training.rate_sums is None:
            raise ViewError(f"The time of the training is not known: {training.missing}")
        require_sgd(training.optimizer)
        tau = float(training.rate_sums[-1]) / (1 - training.known_momentum())
        return known.training_time_mean(self._kernels, self.decomposed, tau, float(self.view.train.multiplicity.sum()))

    def damped(self, delta: float) -> "Methods":
        """The same methods with another damping; what was decomposed is not decomposed again."""
        other = Methods(self.view, self.training, curvature=self._curvature, delta=delta, inverted=self._inverted, seed=self._seed)
        other._replay, other._refitted_layer = self._replay, self._refitted_layer
        other.__dict__["decomposed"] = self.decomposed
        return other

    def choose_damping(self, deltas: Sequence[float] = DELTAS) -> DampingChoice:
        """The delta whose influences of samples agree best with linearised retraining without each of them; no retraining is needed.

        Raises:
            ViewError: the training cannot be replayed, or nothing is curved.
        """
        predicted = self.replay.sample_rise()
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
            "representer_points": self.refitted_layer.self_influence,
            "linearised_retraining": self.replay.self_influence,
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
            "linearised_retraining": self.replay.influence,
            "representer_points": self.refitted_layer.influence,
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
        require_plain(self._inverted)
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


PARTS: Final = ("train_train", "test_train", "test_test")


def _refusal(ask: Callable[[], Any]) -> str:
    try:
        ask()
    except ViewError as refusal:
        return str(refusal)
    return ""
