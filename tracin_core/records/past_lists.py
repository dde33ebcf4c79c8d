"""Exclusion lists that were exported from any run: what they were made from, and how they overlap."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from tracin_core.data.files import read_json
from tracin_core.errors import TracInError
from tracin_core.records.interchange import read_exclusions
from tracin_core.records.runs import Run

if TYPE_CHECKING:
    from tracin_core.records.workspace import Workspace


@dataclass(frozen=True)
class PastList:
    """One exported list. `problem` says why its contents are not known, where they are not."""

    run: str
    run_name: str
    file: str
    created: float
    who: str
    why: str
    entries: int
    rule: dict[str, Any] = field(default_factory=dict)
    same_scores: bool = True  # the run still has the digest that the list was made from
    samples: frozenset[str] = frozenset()  # all that it names, alone or in pairs
    named: tuple[tuple[str, ...], ...] = ()  # the samples of each entry
    problem: str = ""

    @property
    def key(self) -> str:
        """Names the list among all of the workspace."""
        return f"{self.run}/{self.file}"


def past_lists(place: "Workspace") -> list[PastList]:
    """Every exported list of every finished run, newest first."""
    runs = place.runs()
    found: list[PastList] = []
    for run_id in runs.loc[runs["state"] == "done", "id"]:
        try:
            run = place.run(str(run_id))
        except TracInError:
            continue  # the page of the run says what is wrong with it
        found += [past_list(run, row) for _, row in place.exported_exclusions(run).iterrows()]
    return sorted(found, key=lambda past: -past.created)


def past_list(run: Run, row: pd.Series) -> PastList:
    """What the list's two files say; that they do not agree is its problem."""
    file = Path(row["text"])
    told: dict[str, Any] = {
        "run": run.id, "run_name": run.name, "file": file.name, "created": float(row["created"]), "who": str(row["who"] or ""),
        "why": str(row["why"] or ""), "entries": int(row["entries"]),
    }  # fmt: skip
    try:
        ids, provenance = read_exclusions(file), read_json(Path(row["provenance"]))
        entries = provenance["entries"]
        if [str(entry["id"]) for entry in entries] != ids:
            return PastList(**told, problem="its two files do not list the same ids")
        named = tuple(
            tuple(str(entry[end]) for end in ("id1", "id2")) if "id1" in entry else (str(entry["id"]),) for entry in entries
        )
        rule, digest = dict(provenance["rule"]), str(provenance["digest"])
    except (TracInError, OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as failure:
        return PastList(**told, problem=f"it cannot be read ({type(failure).__name__})")
    samples = frozenset(sample for entry in named for sample in entry)
    return PastList(**told, rule=rule, same_scores=digest == run.digest, samples=samples, named=named)


def origins(past: PastList, samples: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """How often the list's entries name each class (angle, label, or nothing for numbers) and each take (the last part of the id).

    An entry that names two samples of one class counts once for it.
    """
    column = next((name for name in ("angle", "label_name", "label") if name in samples), None)
    classes = {} if column is None else dict(zip(samples["id"].astype(str), samples[column], strict=True))
    of_class: Counter[Any] = Counter()
    of_take: Counter[str] = Counter()
    for entry in past.named:
        of_class.update({classes[sample] for sample in entry if sample in classes})
        of_take.update({sample.rpartition("_")[2] for sample in entry})
    by_class = pd.Series(of_class, dtype="int64").sort_index()
    return by_class, pd.Series(of_take, dtype="int64").sort_values(ascending=False, kind="stable")
