"""In what two runs differ, as far as their checkpoints and data tell; and whether that is the seed of the training alone."""

from dataclasses import asdict
from typing import Any, Final

import pandas as pd

from tracin_core.records.runs import Run
from tracin_core.training_settings import OF_LOSS

SEED: Final = "arguments.seed"
NOT_RECORDED: Final = "–"


def differences(one: Run, other: Run) -> dict[str, tuple[str, str]]:
    """What differs -> the two values in words; empty where nothing recorded does.

    Compared: data (ids, targets and the digests of what the model took), sides of the samples, model, task, loss (whether a recipe says it
    or the checkpoints record it), epochs, learning rates and optimiser settings of every checkpoint, layers, and each argument of the
    training that they record (`arguments.<name>`).
    Not compared: names, places, and how the kernels were computed, which changes no score.
    """
    found: dict[str, tuple[Any, Any]] = dict(zip(NAMES, zip(_facts(one), _facts(other), strict=True), strict=True))
    found |= {f"arguments.{name}": values for name, values in _arguments(one, other).items()}
    return {name: (_told(a), _told(b)) for name, (a, b) in found.items() if a != b}


def differ_only_in_seed(one: Run, other: Run) -> bool:
    """The two trainings were alike but for a recorded seed, so that the difference of their scores is the noise of training.

    Not so where a training left out what a list names, or weighed examples: the checkpoints record names, not what was behind them.
    """
    weights = [[checkpoint["digest"] for checkpoint in run.manifest.checkpoints] for run in (one, other)]
    lists = [checkpoint.get("arguments") or {} for run in (one, other) for checkpoint in run.manifest.checkpoints]
    differing = differences(one, other)
    seeds = differing.get(SEED, (NOT_RECORDED,))
    return (
        set(differing) == {SEED}
        and NOT_RECORDED not in seeds
        and weights[0] != weights[1]
        and not any(told.get("exclusions_file") or told.get("weighted_by") for told in lists)
    )


NAMES: Final = ("data", "split", "model", "task", "loss", "epochs", "learning_rates", "optimizer", "precondition", "layers")


def _facts(run: Run) -> tuple[Any, ...]:
    """What `NAMES` names of a run, in plain values that can be compared."""
    samples = run.samples.sort_values("id")
    points = run.manifest.checkpoints
    return (
        _Rows(run.recipe.data.title, samples[["id", "target", "digest"]]),
        _Rows(", ".join(f"{side} {len(table)}" for side, table in run.splits.items()), samples[["id", "split"]]),
        run.recipe.model.model_dump(mode="json"),
        run.recipe.task.model_dump(mode="json", exclude_none=True, exclude={*OF_LOSS, "ghm_batch"}),
        asdict(run.loss),
        [int(point["epoch"]) for point in points],
        [(point.get("learning_rate"), point.get("rate_sum")) for point in points],
        [(point.get("optimizer"), point.get("descent")) for point in points],
        run.precondition if run.damping is None else f"{run.precondition}, damping {run.damping:g}",
        list(run.layers),
    )


class _Rows:
    """A table that is equal to another where all of its cells are, and that tells itself in a few words."""

    def __init__(self, words: str, table: pd.DataFrame) -> None:
        self._words = words
        self._rows = table.astype(str).to_numpy().tolist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rows) and self._rows == other._rows

    def __hash__(self) -> int:
        return hash(self._words)

    def __str__(self) -> str:
        return self._words


def _arguments(one: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """Every argument that a checkpoint of either run records, of all checkpoints in their order; a single value where they agree."""
    told = [[point.get("arguments") or {} for point in run.manifest.checkpoints] for run in (one, other)]
    names = sorted({name for run in told for arguments in run for name in arguments})
    return {name: (_single([a.get(name) for a in told[0]]), _single([a.get(name) for a in told[1]])) for name in names}


def _single(values: list[Any]) -> Any:
    return values[0] if values and all(value == values[0] for value in values) else values


def _told(value: Any) -> str:
    if value is None:
        return NOT_RECORDED
    if isinstance(value, dict):
        return ", ".join(f"{name} = {_told(told)}" for name, told in value.items())
    if isinstance(value, list):
        return ", ".join(_told(entry) for entry in value)
    if isinstance(value, tuple):
        return " / ".join(_told(entry) for entry in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
