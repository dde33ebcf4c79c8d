"""A list of exclusions once it is chosen: what is said of it, and what else is written down about it."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tracin_core.cli.asking import Marking, Pictures
from tracin_core.cli.talk import say, simulated_mark
from tracin_core.errors import DamagedBlockError, InputError

if TYPE_CHECKING:
    import pandas as pd

    from tracin_core.records.runs import Run
    from tracin_core.records.workspace import Workspace


def say_list(chosen: "pd.DataFrame", path: Path, settings: dict[str, Any], marking: Marking, simulated: bool) -> None:
    """How many entries the list has; with --verbose each of them."""
    kind = "pairs" if settings["pair_mode"] == "ranking_pair" else "samples"
    say(f"{len(chosen)} {kind} listed in {path}{simulated_mark(simulated)}")
    if marking.verbose:
        for entry in chosen.itertuples():
            say(f"  {entry.id}: {entry.occurrences} occurrences, average influence {entry.average_influence:g}")


def say_limit(run: "Run", chosen: "pd.DataFrame", settings: dict[str, Any]) -> int:
    """How many meet the rule in all; said where the list holds only the first of them."""
    found = len(chosen)
    if found == settings["max_exclusions"]:
        found = len(run.view().exclusions(**{**settings, "max_exclusions": None}))
    if found > len(chosen):
        say(f"{found} meet the rule; the list has the first {len(chosen)} of them (--max-exclusions)")
    return found


def after_verdicts(
    place: "Workspace", run: "Run", chosen: "pd.DataFrame", settings: dict[str, Any], *, apply: bool
) -> tuple["pd.DataFrame", dict[str, int]]:
    """The list after people had their say, and in how many entries they changed it; said, also where it is the rule's alone."""
    from tracin_core.records.verdicts import decided

    try:
        final = decided(run.view(), chosen, place.verdicts(run), settings)
    except DamagedBlockError as failure:
        if apply:
            raise
        say(f"What people decided is left aside, and cannot be read: {failure}")
        return chosen, {}
    if not final.added and not final.kept:
        return chosen, {}
    if not apply:
        say(
            f"People exclude {final.added} more and keep {final.kept} of these (Threshold page); add --verdicts to have the list say so"
        )
        return chosen, {}
    say(f"People exclude {final.added} more and keep {final.kept} of the rule's {final.by_rule}")
    return final.entries, {"excluded_by_person": final.added, "kept_by_person": final.kept}


def told_of_list(chosen: "pd.DataFrame", settings: dict[str, Any], path: Path) -> dict[str, Any]:
    return {"rule": settings, "file": path, "entries": chosen.to_dict(orient="records")}


def list_provenance(run: "Run", settings: dict[str, Any]) -> dict[str, Any]:
    return {"run": run.id, "name": run.name, "digest": run.digest, "simulated": run.simulated, "rule": settings}


def require_metadata(marking: Marking, metadata_file: Path | None) -> None:
    """It is known which file is to be marked, and it is there; better now than after a computation."""
    target = marking.sample_metadata or metadata_file
    if marking.sample_metadata is not None and not marking.update_metadata and metadata_file is None:
        raise typer.BadParameter("--sample-metadata is only written to with --update-metadata; add it, or leave out the file.")
    if marking.update_metadata and target is None:
        raise typer.BadParameter("--update-metadata needs the file to mark; give --sample-metadata FILE.")
    if marking.update_metadata and target is not None and not target.is_file():
        raise InputError(
            f"The metadata file '{target}' is not there; give the file of the samples' records with --sample-metadata."
        )


def mark(marking: Marking, path: Path | None, chosen: "pd.DataFrame", provenance: dict[str, Any]) -> dict[str, Any] | None:
    """What is listed is marked in the metadata file, if that was asked for; samples that it has no record of are named."""
    if not marking.update_metadata or path is None:
        return None
    from tracin_core.records.score_files import update_sample_metadata

    done = update_sample_metadata(path, chosen, provenance)
    say(f"Marked in {path}: {len(done.marked)} records")
    if done.missing:
        say(f"It has no record of {len(done.missing)} of the listed samples: {', '.join(done.missing)}")
    if done.earlier:
        say(f"Still marked from before, and not on this list: {', '.join(done.earlier)}")
    return {"file": path, "marked": done.marked, "missing": done.missing, "earlier": done.earlier}


def plot(run: "Run", chosen: "pd.DataFrame", pictures: Pictures) -> list[Path]:
    """The picture of each sample that the list names is in the folder, numbered in the list's order; those without one are named."""
    if not pictures.plot_harmful_samples:
        return []
    ends = [name for name in ("id1", "id2") if name in chosen.columns] or ["id"]
    samples = list(dict.fromkeys(chosen[ends].to_numpy().ravel()))
    written, absent = [], []
    for place, sample in enumerate(samples, start=1):
        picture = run.preview(sample).picture
        target = pictures.plots_dir / f"{place:03d}_{sample}.png"
        if picture.is_file():
            copy_out(picture, target)
            written.append(target)
        else:
            absent.append(sample)
    say(f"{len(written)} pictures of listed samples in {pictures.plots_dir}{simulated_mark(run.simulated)}")
    if absent:
        say(f"There is no picture of {', '.join(absent)}")
    return written


def copy_out(source: Path, target: Path) -> None:
    """The file is also where it was asked for.

    Raises:
        InputError: the place cannot be written to; the file itself is kept.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as failure:
        raise InputError(
            f"'{target}' cannot be written ({failure.strerror or failure}); the list is kept as '{source}': copy it from there, or give "
            f"another --output-file."
        ) from failure
