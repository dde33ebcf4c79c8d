"""Checkpoint files are taken in as canonical weights, or refused with a sentence, and models are built to hold them."""

from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from tracin_core.data.files import read_json, write_json
from tracin_core.errors import CheckpointError
from tracin_core.reading import plugins_of
from tracin_core.recipe import MODEL_FORMS, ModelSection, PluginModel
from tracin_core.records.checkpoint_files import list_checkpoints
from tracin_core.records.plugins import plugin_digest
from tracin_core.records.progress import Progress
from tracin_core.records.store import digest_of
from tracin_core.records.workspace import Workspace


def take_in(
    progress: Progress, folder: Path, prefix: str, section: ModelSection, *, epochs: tuple[int, ...] | None = None
) -> list[dict[str, Any]]:
    """The folder's checkpoints by epoch, each kept as canonical weights.

    Raises:
        CheckpointError: the first file that was refused, in its own words.
    """
    outcomes = inspect_files(progress, list_checkpoints(folder, prefix), section)
    for outcome in outcomes:
        if isinstance(outcome, CheckpointError):
            raise outcome
    checkpoints = [outcome for outcome in outcomes if isinstance(outcome, dict)]
    require_ascending(checkpoints)
    if epochs is not None:
        absent = sorted(set(epochs) - {checkpoint["epoch"] for checkpoint in checkpoints})
        if absent:
            raise CheckpointError(f"'{folder.name}' has no checkpoint of epoch {absent[0]}; correct the recipe's epochs.")
        checkpoints = [checkpoint for checkpoint in checkpoints if checkpoint["epoch"] in epochs]
    return checkpoints


def require_ascending(checkpoints: list[dict[str, Any]]) -> None:
    """Each file records a later epoch than the one before it.

    Raises:
        CheckpointError: names the first two that do not.
    """
    for one, next_one in pairwise(sorted(checkpoints, key=lambda checkpoint: int(checkpoint["epoch"]))):
        if one["epoch"] == next_one["epoch"]:
            raise CheckpointError(
                f"'{one['source']}' and '{next_one['source']}' both record epoch {one['epoch']}; keep one of them, or save the later part "
                f"of the training with epochs that go on."
            )


def inspect_files(progress: Progress, paths: list[Path], section: ModelSection) -> list[dict[str, Any] | CheckpointError]:
    """Each file taken in, or refused with its sentence; files that are as they were when they were taken in are not read again."""
    from tracin_core.engine.checkpoints import intake_folder

    progress.step("checkpoints", len(paths))
    store = progress.workspace.root / "checkpoints"
    known_as = partial(identity_of, section=section, plugins=plugins_of(progress.workspace))
    notes = {path: store / "known" / f"{known_as(path)}.json" for path in paths}
    outcomes: dict[Path, dict[str, Any] | CheckpointError | None] = {path: known_checkpoint(note) for path, note in notes.items()}
    new = [path for path, outcome in outcomes.items() if outcome is None]
    found = len(paths) - len(new)
    progress.advance(found)
    if new:
        taken = intake_folder(
            new, store, model_of(progress.workspace, section), on_each=lambda done: progress.advance(found + done)
        )
        for path, outcome in zip(new, taken, strict=True):
            outcomes[path] = outcome if isinstance(outcome, CheckpointError) else outcome.to_dict()
            if not isinstance(outcome, CheckpointError) and notes[path].stem == known_as(path):
                write_json(notes[path], outcome.to_dict())
    return [outcome for outcome in outcomes.values() if outcome is not None]


def identity_of(path: Path, section: ModelSection, plugins: Path) -> str:
    """Another one whenever the file was written to or replaced, and for other rules of taking it in: its time of change cannot be set."""
    from tracin_core.engine import ENGINE_VERSION

    try:
        status = path.stat(follow_symlinks=False)
    except OSError:
        return "gone"
    facts = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, path.name]
    plugin = [plugin_digest(plugins, section.name)] if isinstance(section, PluginModel) else []
    return digest_of([facts, section.model_dump(mode="json"), ENGINE_VERSION, version("torch"), *plugin])


def known_checkpoint(note: Path) -> dict[str, Any] | None:
    """What was found in the file when it was taken in; None if nothing was noted, or what was kept of it is not whole any more.

    None as well where the note is from before second moments were read, and the file is by Adam.
    """
    from tracin_core.engine.checkpoints import Checkpoint, is_whole

    try:
        checkpoint = Checkpoint.from_dict(read_json(note))
        digests = [checkpoint.digest, *([checkpoint.second_moment] if checkpoint.second_moment else [])]
        whole = all(is_whole(note.parents[1], digest) for digest in digests)
    except (OSError, ValueError, TypeError, AttributeError, CheckpointError):
        return None
    unread = checkpoint.optimizer == "Adam" and checkpoint.second_moment is None and checkpoint.no_second_moment is None
    return checkpoint.to_dict() if whole and not unread else None


def model_of(workspace: Workspace, section: ModelSection) -> Any:
    """The recipe's network; a plugin's code runs here and nowhere before."""
    from tracin_core.engine.models import build_model

    return build_model(section, plugins_of(workspace))


def load_checkpoint(model: Any, workspace: Workspace, checkpoint: dict[str, Any]) -> None:
    from tracin_core.engine.checkpoints import load_weights

    load_weights(model, workspace.root / "checkpoints", str(checkpoint["digest"]))


def inspect(progress: Progress) -> dict[str, Any]:
    """One entry per file of the folder: what it is, or why it was refused."""
    request = progress.job.request
    paths = list_checkpoints(Path(request["folder"]), request["prefix"])
    outcomes = inspect_files(progress, paths, MODEL_FORMS.validate_python(request["model"]))
    files = [
        {"file": path.name, "accepted": False, "reason": str(outcome)}
        if isinstance(outcome, CheckpointError)
        else {"file": path.name, "accepted": True, **outcome}
        for path, outcome in zip(paths, outcomes, strict=True)
    ]
    return {"files": files}
