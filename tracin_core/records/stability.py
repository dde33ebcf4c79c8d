"""How far scores are the same for runs that should say the same: other seeds, other checkpoints, other layers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.errors import InputError
from tracin_core.records.differences import differ_only_in_seed
from tracin_core.records.runs import Run
from tracin_core.scores.evaluation import signal_to_noise, stability
from tracin_core.scores.view import View

if TYPE_CHECKING:
    from tracin_core.records.workspace import Workspace

Across = Literal["checkpoints", "layers"]
WHOLE: Final = "all"
Score = Literal["self_influence", "mean_influence"]
SCORES: Final[tuple[Score, ...]] = get_args(Score)
TOP: Final = 0.05
HALVINGS: Final = 200
CLEAR: Final = 2.0  # standard deviations between seeds that a mean must be away from 0


@dataclass(frozen=True)
class Stability:
    """What several runs agree on, or one run's score with those of parts of it.

    Attributes:
        runs: their ids, or the names of the parts.
        examples: how many training examples all of them have.
        pairs: one row per two runs, or for each part with the whole: a, b, and the figures of `scores.evaluation.stability`.
        ensembles: the same of the means over two halves of the runs, in the mean over the ways to divide them; None with fewer than 4.
        halvings: how many ways that are.
        noise: one row per example: id, and the columns of `scores.evaluation.signal_to_noise`; None of parts, which overlap and sum over
            different numbers of checkpoints, so that their spread is no noise.
    """

    score: Score
    runs: tuple[str, ...]
    simulated: bool
    examples: int
    pairs: pd.DataFrame
    ensembles: dict[str, float] | None
    noise: pd.DataFrame | None
    halvings: int = 0

    @property
    def clear(self) -> float | None:
        """The share of the examples whose mean is more than `CLEAR` standard deviations between the runs away from 0; None of parts."""
        return None if self.noise is None else float((self.noise["ratio"] > CLEAR).mean())

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain values."""
        noise = None if self.noise is None else self.noise.to_dict("records")
        return {**vars(self), "pairs": self.pairs.to_dict("records"), "noise": noise, "clear": self.clear}


def seeds_of(place: "Workspace", run: Run) -> list[Run]:
    """The run and the finished runs that differ from it in the seed of their training alone."""
    others = [place.run(str(name)) for name in place.runs().query("state == 'done'")["id"] if name != run.id]
    return [run, *(other for other in others if differ_only_in_seed(run, other))]


def compare_runs(runs: Sequence[Run], score: Score = "self_influence") -> Stability:
    """How stable a score is over these runs, example by example (evaluation protocol: Spearman, top overlap, signs, signal to noise).

    Raises:
        InputError: fewer than two runs, or they share too few training examples.
    """
    if len(runs) < 2:
        raise InputError(f"{len(runs)} run shows no stability; train the same with another seed, or name two runs.")
    values = [scores_of(run.view(), score) for run in runs]
    table = pd.concat(values, axis=1, join="inner").dropna()
    if len(table) < 2:
        raise InputError(f"The {len(runs)} runs share {len(table)} training examples; name runs of the same data.")
    scores = table.to_numpy(dtype=np.float64).T
    rows = [
        {"a": runs[one].id, "b": runs[other].id, **stability(scores[one], scores[other], top=TOP)}
        for one, other in combinations(range(len(runs)), 2)
    ]
    parts = halvings(len(runs))
    alike = [stability(scores[list(one)].mean(0), scores[list(other)].mean(0), top=TOP) for one, other in parts]
    ensembles = {name: float(np.mean([each[name] for each in alike])) for name in alike[0]} if alike else None
    simulated = any(run.simulated for run in runs)
    names = tuple(run.id for run in runs)
    return Stability(score, names, simulated, len(table), pd.DataFrame(rows), ensembles, noise_of(scores, table.index), len(parts))


def halvings(count: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The ways to divide so many runs, but for an odd last one, into two halves of at least 2; beyond `HALVINGS`, every so-many-th."""
    half = count // 2
    if half < 2:
        return []
    firsts = [(0, *others) for others in combinations(range(1, 2 * half), half - 1)]
    kept = firsts[:: -(-len(firsts) // HALVINGS)]
    return [(first, tuple(sorted(set(range(2 * half)) - set(first)))) for first in kept]


def compare_parts(run: Run, across: Across, score: Score = "self_influence") -> Stability:
    """How far a score depends on which checkpoints, or which layers, it sums: each part against the whole.

    Parts are every checkpoint alone, the earlier and the later half, and every second one; or every layer group alone, and all but it.

    Raises:
        InputError: the run sums a single checkpoint, or keeps a single layer group.
    """
    parts = parts_of(run, across)
    if len(parts) < 2:
        raise InputError(
            f"Run '{run.name}' has its {across} in one piece, so no part stands against the whole; compare other seeds."
        )
    whole = scores_of(run.view(), score)
    table = pd.DataFrame({name: scores_of(run.view(**settings), score) for name, settings in parts.items()})
    rows = [{"a": WHOLE, "b": name, **stability(whole, table[name], top=TOP)} for name in table]
    return Stability(score, tuple(parts), run.simulated, len(table), pd.DataFrame(rows), None, None)


def parts_of(run: Run, across: Across) -> dict[str, dict[str, Any]]:
    """Name of each part -> settings of the view that sums it alone."""
    if across == "layers":
        return {name: {"layers": part} for name, part in layer_parts(run.layers).items()}
    return {name: {"checkpoints": part} for name, part in checkpoint_parts(run.summed_epochs).items()}


def layer_parts(layers: Iterable[str]) -> dict[str, list[str]]:
    """Each layer group alone, and all but it; nothing of a single one."""
    known = list(layers)
    if len(known) < 2:
        return {}
    return {layer: [layer] for layer in known} | {
        f"without {layer}": [other for other in known if other != layer] for layer in known
    }


def checkpoint_parts(epochs: Sequence[int]) -> dict[str, list[int]]:
    """Each epoch alone; and halves, but those that are one epoch alone again."""
    middle = len(epochs) // 2
    halves = {
        "earlier half": list(epochs[:middle]),
        "later half": list(epochs[middle:]),
        "every second": list(epochs[::2]),
        "every second, from the second": list(epochs[1::2]),
    }
    return {f"epoch {epoch}": [epoch] for epoch in epochs} | {name: part for name, part in halves.items() if len(part) > 1}


def scores_of(view: View, score: Score) -> pd.Series:
    """The score by training example."""
    return pd.Series(getattr(view, score)(), index=view.train_pairs["id"].to_numpy())


def noise_of(scores: npt.NDArray[np.float64], names: pd.Index) -> pd.DataFrame:
    noise = signal_to_noise(scores)
    noise.insert(0, "id", names)
    return noise
