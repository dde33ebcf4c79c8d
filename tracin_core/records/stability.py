"""How far scores are the same for runs that should say the same: other seeds, other checkpoints, other layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import pandas as pd

from tracin_core.errors import InputError
from tracin_core.records.differences import differ_only_in_seed
from tracin_core.records.runs import Run
from tracin_core.scores.evaluation import signal_to_noise, stability

if TYPE_CHECKING:
    from tracin_core.records.workspace import Workspace

Score = Literal["self_influence", "mean_influence"]
SCORES: Final[tuple[Score, ...]] = get_args(Score)
TOP: Final = 0.05
CLEAR: Final = 2.0  # standard deviations between seeds that a mean must be away from 0


@dataclass(frozen=True)
class Stability:
    """What several runs agree on.

    Attributes:
        examples: how many training examples all of them have.
        pairs: one row per two runs: a, b, and the figures of `scores.evaluation.stability`.
        ensembles: the same of the means over the first and the second half of the runs; None with fewer than 4.
        noise: one row per example: id, and the columns of `scores.evaluation.signal_to_noise`.
    """

    score: Score
    runs: tuple[str, ...]
    simulated: bool
    examples: int
    pairs: pd.DataFrame
    ensembles: dict[str, float] | None
    noise: pd.DataFrame

    @property
    def clear(self) -> float:
        """The share of the examples whose mean is more than `CLEAR` standard deviations between the runs away from 0."""
        return float((self.noise["ratio"] > CLEAR).mean())

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain values."""
        tables = {name: getattr(self, name).to_dict("records") for name in ("pairs", "noise")}
        return {**vars(self), **tables, "clear": self.clear}


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
    values = [pd.Series(getattr(run.view(), score)(), index=run.view().train_pairs["id"].to_numpy()) for run in runs]
    table = pd.concat(values, axis=1, join="inner").dropna()
    if len(table) < 2:
        raise InputError(f"The {len(runs)} runs share {len(table)} training examples; name runs of the same data.")
    scores = table.to_numpy(dtype=np.float64).T
    rows = [
        {"a": runs[one].id, "b": runs[other].id, **stability(scores[one], scores[other], top=TOP)}
        for one, other in combinations(range(len(runs)), 2)
    ]
    half = len(runs) // 2
    ensembles = stability(scores[:half].mean(0), scores[half : 2 * half].mean(0), top=TOP) if half >= 2 else None
    noise = signal_to_noise(scores)
    noise.insert(0, "id", table.index)
    simulated = any(run.simulated for run in runs)
    return Stability(score, tuple(run.id for run in runs), simulated, len(table), pd.DataFrame(rows), ensembles, noise)
