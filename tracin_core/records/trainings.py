"""What a training of this product wrote down of itself, in `training.json` beside its checkpoints."""

import json
from pathlib import Path
from typing import Any

from tracin_core.data.files import read_json
from tracin_core.records.runs import Run


def own_training(run: Run) -> dict[str, Any] | None:
    """What the training beside the run's checkpoints measured; None where it is not there, or is of other checkpoints than the run's."""
    told = training_record(Path(run.recipe.checkpoints.folder) / "training.json")
    if told is None or run.checkpoints.empty:
        return None
    last, recorded = told["history"][-1], run.checkpoints.iloc[-1]
    same = last.get("epoch") == int(recorded["epoch"]) and last.get("validation_loss") == recorded.get("validation_loss")
    return told if same else None


def training_record(file: Path) -> dict[str, Any] | None:
    """A training's record; None where there is none in the form that this product writes."""
    try:
        told = read_json(file)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    whole = isinstance(told, dict) and isinstance(told.get("history"), list) and told["history"]
    return told if whole and isinstance(told.get("settings"), dict) else None
