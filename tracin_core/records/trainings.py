"""How a run's model was trained: what a training of this product wrote down of itself, in `training.json` beside its checkpoints, and what
the checkpoints record."""

import json
from pathlib import Path
from typing import Any, Final, get_args

from tracin_core.data.files import read_json
from tracin_core.records.interchange import match_exclusions, read_exclusions
from tracin_core.records.runs import Run, number_or_none
from tracin_core.training_settings import OF_LOSS, Schedule

FOLLOWED: Final = ("epochs", "learning_rate", "schedule", "momentum", "batch_pairs", "batch_size")  # of the run's own training


def own_training(run: Run) -> dict[str, Any] | None:
    """What the training beside the run's checkpoints measured; None where it is not there, or is of other checkpoints than the run's.

    The run may read some of them alone, and end before the training did.
    """
    told = training_record(Path(run.recipe.checkpoints.folder) / "training.json")
    if told is None or run.checkpoints.empty:
        return None
    recorded = run.checkpoints.iloc[-1]
    measured = next((entry for entry in told["history"] if entry.get("epoch") == int(recorded["epoch"])), None)
    same = measured is not None and measured.get("validation_loss") == recorded.get("validation_loss")
    return told if same else None


def training_record(file: Path) -> dict[str, Any] | None:
    """A training's record; None where there is none in the form that this product writes."""
    try:
        told = read_json(file)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    whole = isinstance(told, dict) and isinstance(told.get("history"), list) and told["history"]
    return told if whole and isinstance(told.get("settings"), dict) else None


def settings_of(run: Run) -> tuple[dict[str, Any], list[str]]:
    """The settings of the run's training, and the names of those that are this product's own instead, with what they are there.

    Nothing may record them; or the optimiser is another than this product's SGD, or has weight decay, dampening or Nesterov's momentum.
    """
    own = own_training(run)
    known = dict(own["settings"]) if own is not None else {}
    descent = run.training
    told = {**run.training_arguments, **{name: known[name] for name in FOLLOWED if name in known}}
    recorded: dict[str, Any] = {
        name: value for name, value in told.items() if name == "schedule" or number_or_none(value) is not None
    }
    if recorded.get("schedule") not in get_args(Schedule):
        recorded.pop("schedule", None)
    if descent.momentum is not None:
        recorded.setdefault("momentum", descent.momentum)
    if run.trained_by_other is not None:
        recorded = {name: value for name, value in recorded.items() if name not in ("learning_rate", "momentum")}
    batch = "batch_pairs" if run.task == "ranking" else "batch_size"
    settings: dict[str, Any] = {
        name: recorded[name] for name in ("epochs", "learning_rate", "schedule", "momentum") if name in recorded
    }
    size = recorded.get(batch) or recorded.get("batch_size")
    if size is not None:
        settings[batch] = int(size)
    settings.setdefault("epochs", int(run.checkpoints["epoch"].max()))
    settings |= {name: getattr(run.loss, name) for name in sorted(OF_LOSS - {"loss"}) if hasattr(run.loss, name)}
    settings["loss"] = run.loss.name
    assumed = [name for name in ("learning_rate", "schedule", "momentum", batch) if name not in settings]
    assumed += [f"optimizer ({run.trained_by_other})"] if run.trained_by_other else []
    assumed += [f"weight decay ({descent.weight_decay:g})"] if descent.weight_decay else []
    assumed += [f"dampening ({descent.dampening:g})"] if descent.dampening else []
    weighted = run.training_arguments.get("weighted_by")
    assumed += [f"full weight of every example (the run's training weighed them by {weighted})"] if weighted else []
    return settings, [*assumed, *(["Nesterov's momentum"] if descent.nesterov else [])]


def left_out_before(run: Run) -> set[str]:
    """The samples or pairs that the run's own training left out by a list, and every training that is compared with it leaves out again.

    A pair has the name that the run's tables give it, whichever way round the list had it.
    """
    own = own_training(run)
    lines = {str(name) for name in ((own or {}).get("exclusions") or {}).get("matched") or ()}
    if not lines or run.noun != "pair":
        return lines
    found = match_exclusions(sorted(lines), run.samples["id"].tolist())
    ends = [frozenset(pair) for pair in run.train_pairs[["id1", "id2"]].itertuples(index=False)]
    named = {name for name, pair in zip(run.train_pairs["id"], ends, strict=True) if pair in found.pairs}
    apart = found.pairs.difference(ends)  # of equal labels: no pair to train on
    return {*found.samples, *named, *found.unmatched, *("_".join(sorted(pair)) for pair in apart)}


def saved_epochs(run: Run, epochs: int) -> list[int]:
    """After which epochs, up to this one, the run has checkpoints: where another training is to be read at the same ones."""
    return [int(epoch) for epoch in run.checkpoints["epoch"] if 0 < epoch <= epochs]


def lines_listed(file: Path) -> int:
    """How many lines of an exclusion list name something; comments and blank lines do not.

    Raises:
        ExclusionError: the file cannot be read as text.
    """
    return len(read_exclusions(file))
