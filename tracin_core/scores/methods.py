"""Attribution methods by name, and those that are a choice of kernels and weights.

A method is a map from kernel to kernel: TracIn's own scores

    influence(e, e') = sum_c w_c a_e'^T K_c a_e,      self_influence(e) = sum_c w_c a_e^T K_c a_e

with other kernels K_c and weights w_c in their place. `Mapped` is what such a method makes of a run; a view then runs on it unchanged.
Positive influence: e lowered the loss of e', and removing e raises it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tracin_core.errors import ViewError
from tracin_core.scores.curvature import Array, CurvedKernel, Kernel, NoCurvature, require_positive
from tracin_core.scores.influence import DEAD_RATIO

ROWS_AT_ONCE = 4_000_000  # numbers: 32 MB


@dataclass(frozen=True)
class Mapped:
    """What a method makes of a run: kernels and their weights, of the checkpoints at these places among the run's.

    Attributes:
        without_curvature: the places that the method leaves out, each with its reason.
    """

    kernels: tuple[Kernel, ...]
    weights: Array
    places: tuple[int, ...]
    without_curvature: Mapping[int, str] = field(default_factory=dict)

    def stacked(self, checkpoints: int) -> tuple[Kernel, ...]:
        """One kernel for each of the run's checkpoints, 0 for those that are left out, so that weights of the run still fit.

        The weights are in them: a view sums them with weights 1.
        """
        blank = Kernel(*(np.zeros_like(getattr(self.kernels[0], each.name)) for each in fields(Kernel)))
        stack = [blank] * checkpoints
        for place, weight, kernel in zip(self.places, self.weights, self.kernels, strict=True):
            stack[place] = _times(kernel, float(weight))
        return tuple(stack)


# ---- methods that are kernels and weights ---------------------------------------------------------------------------------------


def tracin(kernels: Sequence[Kernel], weights: npt.ArrayLike) -> Mapped:
    """TracInCP: the kernels as they are (Pruthi, Liu, Kale, Sundararajan 2020, arXiv 2002.08484).

    Raises:
        ViewError: not one finite weight for each checkpoint, of which there is at least one.
    """
    given = np.asarray(weights, dtype=np.float64)
    _require_some(kernels)
    if given.shape != (len(kernels),) or not np.isfinite(given).all():
        raise ViewError(f"{given.size} weights were given for {len(kernels)} checkpoints; give one finite number each.")
    return Mapped(tuple(kernels), given, tuple(range(len(kernels))))


def last_checkpoint(kernels: Sequence[Kernel]) -> Mapped:
    """The product of gradients at the last checkpoint, weight 1 (Charpiat, Girard, Felardos, Tarabalka 2019, arXiv 2102.05262)."""
    _require_some(kernels)
    return Mapped((kernels[-1],), np.ones(1), (len(kernels) - 1,))


def curvature_mean(decomposed: Sequence[CurvedKernel | NoCurvature], delta: float) -> Mapped:
    """K_mu of each checkpoint that has curvature, mu_c = delta trace(L_c K_c) / rank, with equal weights that sum to 1.

    No learning rate enters: K_mu is a whole Newton step already. Where there is no curvature no training example has a gradient either,
    so that leaving the checkpoint out changes the scale of the mean and no order.

    Raises:
        ViewError: no checkpoint has curvature, or delta is not above 0.
    """
    live = _live(decomposed)
    reasons = {place: state.reason for place, state in enumerate(decomposed) if isinstance(state, NoCurvature)}
    return Mapped(tuple(state.at(state.damping(delta)) for _, state in live), _mean_weights(live), _places(live), reasons)


def training_time_mean(
    kernels: Sequence[Kernel], decomposed: Sequence[CurvedKernel | NoCurvature], rate_sum: float, examples: float
) -> Mapped:
    """`CurvedKernel.after_training` of each checkpoint, with equal weights that sum to 1; without curvature that is (tau / N) K.

    Raises:
        ViewError: tau or N is not above 0.
    """
    _require_some(kernels)
    require_positive("sum of learning rates", rate_sum)
    require_positive("number of training examples", examples)
    mapped = tuple(
        _times(kernel, rate_sum / examples) if isinstance(state, NoCurvature) else state.after_training(rate_sum, examples)
        for kernel, state in zip(kernels, decomposed, strict=True)
    )
    return Mapped(mapped, np.full(len(mapped), 1 / len(mapped)), tuple(range(len(mapped))))


def _times(kernel: Kernel, factor: float) -> Kernel:
    return Kernel(factor * kernel.train_train, factor * kernel.test_train, factor * kernel.test_test)


# ---- scores of any examples -----------------------------------------------------------------------------------------------------


def influence(mapped: Mapped, train: Sequence[Any], test: Sequence[Any]) -> Array:
    """sum_c w_c a_e^T K_c a_e' of all training on all test examples: [N, M].

    Args:
        train, test: a of each example at each checkpoint of the run, sparse [N, n] and [M, m].
    """
    total = np.zeros((train[0].shape[0], test[0].shape[0]))
    for weight, place, kernel in zip(mapped.weights, mapped.places, mapped.kernels, strict=True):
        total += weight * (train[place] @ np.asarray(test[place] @ kernel.test_train).T)
    return total


def self_influence(mapped: Mapped, train: Sequence[Any]) -> Array:
    """sum_c w_c a_e^T K_c a_e of each training example: [N]."""
    total = np.zeros(train[0].shape[0])
    for weight, place, kernel in zip(mapped.weights, mapped.places, mapped.kernels, strict=True):
        total += weight * squared_lengths(train[place], kernel.train_train)
    return total


def squared_lengths(rows: Any, kernel: Array) -> Array:
    """a_e^T K a_e of each sparse row, at least 0: [N]. A length lost in the rounding of a float32 kernel counts as 0, never as negative.

    Rows are taken together by how many entries they have, so that pairs cost four look-ups each and no N x n table.
    """
    given = sparse.csr_array(rows)
    counts = np.diff(given.indptr)
    total = np.zeros(given.shape[0])
    diagonal = np.diagonal(kernel)
    for count in np.unique(counts[counts > 0]):
        chosen = np.flatnonzero(counts == count)
        entries = given.indptr[chosen][:, None] + np.arange(count)
        places, values = given.indices[entries], given.data[entries]
        alone = (values**2 * diagonal[places]).sum(axis=1)
        length = alone.copy()
        for i in range(count):
            for j in range(i):
                length += 2 * values[:, i] * values[:, j] * kernel[places[:, i], places[:, j]]
        total[chosen] = np.where(length <= DEAD_RATIO * alone, 0.0, length)
    return total


def cosine(influences: Array, train_self: Array, test_self: Array) -> Array:
    """I / sqrt(S_e S_e'), [N, M]: of the whole run, both summed over checkpoints first; NaN where either example has no gradient.

    At the last checkpoint alone: Charpiat et al. 2019, arXiv 2102.05262; Hanawa, Yokoi, Hara, Inui 2021, arXiv 2006.04528.
    """
    return relative(influences, np.sqrt(train_self)[:, None] * np.sqrt(test_self)[None, :])


def l_relatif(influences: Array, train_self: Array) -> Array:
    """I_mu / sqrt(S_mu), [N, M]: influence per unit of what e does to its own loss (Barshan, Brunet, Dziugaite 2020, arXiv 2003.11630)."""
    return relative(influences, np.sqrt(train_self)[:, None])


def theta_relatif(influences: Array, lengths: Array) -> Array:
    """I_mu / |H^-1 g_e|, [N, M]: influence per unit of how far removing e moves the parameters (Barshan et al. 2020, arXiv 2003.11630).

    Args:
        lengths: `moved_lengths`, [N].
    """
    return relative(influences, lengths[:, None])


def moved_lengths(decomposed: Sequence[CurvedKernel | NoCurvature], train: Sequence[Any], delta: float) -> Array:
    """|H^-1 g_e| of each training example: [N]. Over several checkpoints the root of the mean square over those that have curvature.

    Args:
        train: a_e of every training example at each checkpoint, sparse [N, n].
    """
    live = _live(decomposed)
    return np.asarray(np.sqrt(sum(_moved(train[place], state, delta) for place, state in live) / len(live)))


def _moved(rows: Any, state: CurvedKernel, delta: float) -> Array:
    """|H^-1 g_e|^2 = |Y^T a_e / (e + mu)|^2: [N], from the rows themselves: a difference of products would lose what pairs are about."""
    half = state.train / (state.eigenvalues + state.damping(delta))
    given = sparse.csr_array(rows)
    step = max(1, ROWS_AT_ONCE // max(half.shape[1], 1))
    parts = [(np.asarray(given[first : first + step] @ half) ** 2).sum(axis=1) for first in range(0, given.shape[0], step)]
    return np.concatenate([np.empty(0), *parts])


def relative(influences: Array, lengths: Array) -> Array:
    """influences / lengths, NaN where a length is 0: undefined, not 0."""
    whole = np.broadcast_to(lengths, influences.shape)
    return np.asarray(np.divide(influences, whole, out=np.full(influences.shape, np.nan), where=whole > 0))


def trak(mapped: Mapped, train: Any, test: Any, slopes: npt.ArrayLike) -> Array:
    """TRAK without projection (Park, Georgiev, Ilyas, Leclerc, Madry 2023, arXiv 2303.14186): [N, M].

        mean_c(b_e^T K_mu,c b_e') mean_c(1 - p_c(e)),      K_mu of L = B^T B

    with b = df / d(outputs) of the margin f, which rises as an example is told better: for a pair t (e_i - e_j). Positive: removing e
    lowers the margin of e'. Models are the checkpoints of one run, or the last ones of several. Without damping, training examples on each
    other make the identity, which says nothing.

    Args:
        mapped: `curvature_mean` of L = fisher_curvature(B, multiplicity).
        train, test: b of each example, sparse [N, n] and [M, m].
        slopes: 1 - p of each training example at each model, -dL/df, at least 0: [C, N].

    Raises:
        ViewError: the slopes do not fit, or one is negative or no number.
    """
    given = np.asarray(slopes, dtype=np.float64)
    models = max(mapped.places) + 1
    if given.ndim != 2 or given.shape[1] != train.shape[0] or len(given) < models:
        raise ViewError(
            f"Slopes of shape {given.shape} do not fit {train.shape[0]} training examples and {models} models; give one row per model."
        )
    if not ((given >= 0) & (given < np.inf)).all():
        row, column = (int(place) for place in np.argwhere(~((given >= 0) & (given < np.inf)))[0])
        raise ViewError(
            f"The slope 1 - p of example {column} at model {row} is {given[row, column]}; it is a number of at least 0."
        )
    mean_slope = given[list(mapped.places)].mean(axis=0)
    return np.asarray(influence(mapped, [train] * models, [test] * models) * mean_slope[:, None])


# ---- baselines ------------------------------------------------------------------------------------------------------------------


def last_loss(losses: npt.ArrayLike) -> Array:
    """The loss at the last checkpoint, of losses [C, N]: [N]."""
    return np.asarray(_losses(losses)[-1])


def mean_loss(losses: npt.ArrayLike) -> Array:
    """The mean of the loss over the checkpoints, of losses [C, N]: [N]."""
    return np.asarray(_losses(losses).mean(axis=0))


def random_scores(examples: int, seed: int) -> Array:
    """One number in [0, 1) per example, the same for the same seed: [N]."""
    return np.random.default_rng(seed).random(examples)


def _losses(losses: npt.ArrayLike) -> Array:
    given = np.asarray(losses, dtype=np.float64)
    if given.ndim != 2 or not len(given) or not np.isfinite(given).all():
        raise ViewError(f"Losses of shape {given.shape} rank nothing; give finite ones, a row for each of at least one checkpoint.")
    return given


# ---- the methods by name --------------------------------------------------------------------------------------------------------

Score = Literal["self_influence", "influence"]
Need = Literal["train_train", "epoch_0", "learning_rates", "sgd", "smooth_loss", "last_layer_group"]


@dataclass(frozen=True)
class Method:
    """One attribution method.

    Attributes:
        answers: the question that its scores answer.
        means_nothing: when they do not answer it.
        needs: for each score that it defines, what a run must hold beyond outputs and kernels of test x train and test x test.
    """

    name: str
    paper: str
    answers: str
    means_nothing: str
    needs: Mapping[Score, frozenset[Need]]

    @property
    def defines(self) -> frozenset[Score]:
        """Which of the two scores it has."""
        return frozenset(self.needs)


def method(name: str) -> Method:
    """The method of this name.

    Raises:
        ViewError: there is none; lists those that exist.
    """
    if name not in METHODS:
        raise ViewError(f"There is no method '{name}'; choose from {', '.join(METHODS)}.")
    return METHODS[name]


NOTHING: frozenset[Need] = frozenset()
TRAIN_TRAIN: frozenset[Need] = frozenset({"train_train"})
PLAIN: dict[Score, frozenset[Need]] = {"self_influence": TRAIN_TRAIN, "influence": NOTHING}
CURVED: dict[Score, frozenset[Need]] = {"self_influence": TRAIN_TRAIN, "influence": TRAIN_TRAIN}
RATIO: dict[Score, frozenset[Need]] = {"influence": TRAIN_TRAIN}
BASELINE: dict[Score, frozenset[Need]] = {"self_influence": NOTHING}
TIMED: frozenset[Need] = frozenset({"train_train", "learning_rates", "sgd"})

METHODS: dict[str, Method] = {
    entry.name: entry
    for entry in (
        Method(
            "tracin",
            "Pruthi, Liu, Kale, Sundararajan 2020, arXiv 2002.08484",
            "How much did training on this example lower the loss of that test example, summed over the checkpoints?",
            "Under Adam, whose steps are not along the gradient; and for a test example that has no gradient at any checkpoint.",
            PLAIN,
        ),
        Method(
            "last_checkpoint",
            "Charpiat, Girard, Felardos, Tarabalka 2019, arXiv 2102.05262",
            "How much would one more step on this example lower the loss of that test example, after training?",
            "Once the model has learned its examples by heart: their gradients are then 0 or nearly so.",
            PLAIN,
        ),
        Method(
            "cosine",
            "Hanawa, Yokoi, Hara, Inui 2021, arXiv 2006.04528",
            "Which training examples pull the model in the same direction as that test example, however strongly?",
            "For questions of removal, which depend on the strength; on an example itself, where it is always 1.",
            RATIO,
        ),
        Method(
            "curvature",
            "Koh, Liang 2017, arXiv 1703.04730; Martens 2014, arXiv 1412.1193",
            "By how much would the test loss rise if this example were removed and the model settled again?",
            "Where the loss is not curved, as when no pair of a hinge is active; or with a damping that does not suit the run.",
            CURVED,
        ),
        Method(
            "l_relatif",
            "Barshan, Brunet, Dziugaite 2020, arXiv 2003.11630",
            "Which examples matter to that test example in particular, rather than to everything?",
            "For questions of removal: it divides by how much an example matters at all.",
            RATIO,
        ),
        Method(
            "theta_relatif",
            "Barshan, Brunet, Dziugaite 2020, arXiv 2003.11630",
            "Which examples matter most to that test example for how far they move the parameters?",
            "For questions of removal: it divides by how far the example moves the parameters.",
            RATIO,
        ),
        Method(
            "training_time",
            "Bae, Lin, Lorraine, Grosse 2024, arXiv 2405.12186 (one segment)",
            "By how much would the test loss rise without this example, after as much training as there was?",
            "Summed over stages of a run, which counts twice; and under Adam.",
            {"self_influence": TIMED, "influence": TIMED},
        ),
        Method(
            "linearised_retraining",
            "Jacot, Gabriel, Hongler 2018, arXiv 1806.07572; Lee et al. 2019, arXiv 1902.06720",
            "What would the outputs be if the whole training were run again without these examples, in a model linear in its parameters?",
            "Where the kernel changes much during training; and under Adam.",
            {"self_influence": TIMED | {"epoch_0"}, "influence": TIMED | {"epoch_0"}},
        ),
        Method(
            "trak",
            "Park, Georgiev, Ilyas, Leclerc, Madry 2023, arXiv 2303.14186",
            "By how much would the test example's margin fall without this training example, averaged over models?",
            "Without damping, on training examples themselves; and where no example is uncertain any more, so that every 1 - p is 0.",
            CURVED,
        ),
        Method(
            "representer_points",
            "Yeh, Kim, Yen, Ravikumar 2018, arXiv 1811.09720",
            "What does each training example add to that test output, in a last layer refitted to its minimum?",
            "For a hinge, or where the refitted outputs are far from the trained model's; what lies below the last layer does not count.",
            dict.fromkeys(("self_influence", "influence"), TRAIN_TRAIN | {"last_layer_group", "smooth_loss"}),
        ),
        Method(
            "last_loss",
            "Arpit et al. 2017, arXiv 1706.05394",
            "Which examples does the trained model still get wrong?",
            "Once the model has learned wrong labels by heart.",
            BASELINE,
        ),
        Method(
            "mean_loss",
            "Arpit et al. 2017, arXiv 1706.05394",
            "Which examples were hard to learn throughout?",
            "Where hard examples are right and matter: a high loss alone tells them from wrong ones in no way.",
            BASELINE,
        ),
        Method(
            "random",
            "none: chance",
            "What would a choice without any knowledge find?",
            "Always; every other method is to be better than this.",
            BASELINE,
        ),
    )
}


# ---- what the above share -------------------------------------------------------------------------------------------------------


def _live(decomposed: Sequence[CurvedKernel | NoCurvature]) -> list[tuple[int, CurvedKernel]]:
    """The checkpoints that have curvature, with their places; refuses where none has."""
    live = [(place, state) for place, state in enumerate(decomposed) if isinstance(state, CurvedKernel)]
    if not live:
        reasons = sorted({state.reason for state in decomposed if isinstance(state, NoCurvature)})
        raise ViewError(
            f"None of the {len(decomposed)} checkpoints has curvature ({'; '.join(reasons) or 'there is none'}); choose earlier ones, a "
            f"larger margin, or the curvature all_pairs."
        )
    return live


def _places(live: list[tuple[int, CurvedKernel]]) -> tuple[int, ...]:
    return tuple(place for place, _ in live)


def _mean_weights(live: list[tuple[int, CurvedKernel]]) -> Array:
    return np.full(len(live), 1 / len(live))


def _require_some(kernels: Sequence[Kernel]) -> None:
    if not kernels:
        raise ViewError("There is no checkpoint; choose at least one.")
