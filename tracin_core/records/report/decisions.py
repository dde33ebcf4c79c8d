"""What was decided about a run, and what became of it: exclusion lists, and trainings that left out what they list."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from tracin_core.data.files import read_json
from tracin_core.errors import TracInError
from tracin_core.records.interchange import read_exclusions
from tracin_core.records.runs import Run
from tracin_core.records.trainings import left_out_before, own_training, training_record
from tracin_core.scores.view import View

if TYPE_CHECKING:
    from tracin_core.records.workspace import Workspace

HALF: Final = 0.5
SIDES: Final = ("test", "validation", "train")
WEIGHTS: Final = ("weighted_by", "weighting_run", "weighted")  # how a training's record says that examples counted less


# ---- lists --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """One exclusion list of the run; `problem` says why the rest is not known."""

    file: str
    created: float
    who: str
    why: str
    entries: int
    ids: tuple[str, ...] = ()
    rule: dict[str, Any] | None = None
    removed: int = 0  # training examples that a training with this list does without
    of: int = 0
    halved: int = 0  # cells (angle pairs, or groups) that lose more than half of their examples
    problem: str = ""


def lists(place: "Workspace", run: Run, view: View) -> list[Listed]:
    """The lists of the run that are in the workspace, newest first."""
    return [listed(row, view) for _, row in place.exported_exclusions(run).iterrows()]


def listed(row: pd.Series, view: View) -> Listed:
    """What a list's two files say, and what it takes away."""
    known = Listed(row["text"].name, float(row["created"]), str(row["who"] or ""), str(row["why"] or ""), int(row["entries"]))
    try:
        ids, told = read_exclusions(row["text"]), read_json(row["provenance"])
        entries = pd.DataFrame(told["entries"], columns=["id"] if not told["entries"] else None)
        if entries["id"].tolist() != ids:
            return Listed(**{**vars(known), "problem": "its two files do not list the same ids"})
        removed = view.removed(entries)
    except (TracInError, OSError, json.JSONDecodeError, KeyError, TypeError, ValueError) as failure:
        return Listed(**{**vars(known), "problem": f"it cannot be read ({type(failure).__name__})"})
    lost = view.angle_grid(removed.astype(float))
    return Listed(
        known.file, known.created, known.who, known.why, len(ids), tuple(ids), dict(told["rule"]), int(removed.sum()), len(removed),
        int(np.sum(lost["mean"] > HALF)),
    )  # fmt: skip


# ---- trainings ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Retrained:
    """A training without what a list names, beside the training that the run is of."""

    folder: str
    file: str
    samples: int  # left out
    pairs: int
    measured: pd.DataFrame  # measure (test_accuracy, ...), before, after
    differing: tuple[str, ...]  # settings in which the two trainings differ besides

    @property
    def main(self) -> pd.Series:
        """The first measure: of the test side where there is one, else of the validation side."""
        return self.measured.iloc[0]


@dataclass(frozen=True)
class Trainings:
    """The run's own training and those after it; `strange` name a list of this run, but were trained with other lines or elsewise."""

    recorded: bool  # the run's own training is known
    left_out: tuple[int, int]  # samples and pairs that the run's own training left out
    after: tuple[Retrained, ...]
    strange: tuple[str, ...]


def trainings(place: "Workspace", run: Run, known: list[Listed]) -> Trainings:
    """Trainings in the workspace whose list is one of the run's, by name and by every line."""
    before = own_training(run)
    if before is None:
        return Trainings(False, (0, 0), (), ())
    excluded = before.get("exclusions") or {}
    earlier = left_out_before(run) | {
        str(line) for line in excluded.get("matched") or ()
    }  # as this product names them, and as a list did
    by_name = {one.file: one for one in known if not one.problem}
    after, strange = [], []
    for file in sorted((place.root / "trainings").glob("*/training.json")):
        told = training_record(file)
        lines = (told or {}).get("exclusions") or {}
        if told is None or lines.get("file") not in by_name:
            continue
        trained = {str(line) for part in ("matched", "elsewhere", "unmatched") for line in lines.get(part) or ()}
        if trained - earlier != set(by_name[lines["file"]].ids) - earlier or told.get("task") != run.task:
            strange.append(file.parent.name)
            continue
        after.append(retrained(file.parent.name, before, told, again=left_out_before(run) <= trained))
    return Trainings(True, (int(excluded.get("samples") or 0), int(excluded.get("pairs") or 0)), tuple(after), tuple(strange))


def retrained(folder: str, before: dict[str, Any], after: dict[str, Any], *, again: bool) -> Retrained:
    """The last epoch of both, measure by measure.

    Args:
        again: what the training before left out was left out again.
    """
    old, new = before["history"][-1], after["history"][-1]
    score = "loss" if after.get("task") == "regression" else "accuracy"
    rows = [
        {"measure": name, "before": float(old[name]), "after": float(new[name])}
        for name in (f"{side}_{score}" for side in SIDES)
        if old.get(name) is not None and new.get(name) is not None
    ]
    weights = ({name: (told.get("exclusions") or {}).get(name) for name in WEIGHTS} for told in (before, after))
    settings = [{**told["settings"], **weighed} for told, weighed in zip((before, after), weights, strict=True)]
    settings[1] |= {} if again else {"left_out_before": False}
    differing = sorted(name for name in settings[0].keys() | settings[1].keys() if settings[0].get(name) != settings[1].get(name))
    excluded = after["exclusions"]
    return Retrained(
        folder, str(excluded["file"]), int(excluded["samples"]), int(excluded["pairs"]),
        pd.DataFrame(rows, columns=["measure", "before", "after"]), tuple(differing),
    )  # fmt: skip
