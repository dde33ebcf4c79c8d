"""The run of a recipe is finished, at once or while its training still goes on."""

import time
from pathlib import Path
from typing import Any, Final

from tracin_core.errors import CheckpointError, NoCheckpointsError
from tracin_core.reading import Dataset, read_dataset
from tracin_core.recipe import Recipe
from tracin_core.records.checkpoint_files import list_checkpoints
from tracin_core.records.progress import BEAT_SECONDS, Progress, SteppedBack
from tracin_core.records.store import digest_of
from tracin_core.worker.checkpoints import inspect_files, require_ascending
from tracin_core.worker.computing import compute_run, plugin_of, with_second_moments

SETTLE_SECONDS: Final = 2.0  # a file that did not change for so long may be whole


def analyse(progress: Progress) -> dict[str, Any]:
    """The run of the job's recipe is finished; a job that follows a training begins before that has ended."""
    request = progress.job.request
    recipe = Recipe.from_dict(request["recipe"])
    if "quiet_seconds" in request:
        return follow(progress, recipe, float(request["quiet_seconds"]))
    compute_run(progress, recipe, request["run_id"])
    return {"run_id": request["run_id"]}


# ---- a training that goes on ------------------------------------------------------------------------------------------------


def follow(progress: Progress, recipe: Recipe, quiet_seconds: float) -> dict[str, Any]:
    """The run of the recipe is finished once its training has ended; until then, each new checkpoint makes a run of those so far.

    The training has ended when `training.json` is there, or when no file of it changed for `quiet_seconds`. A file that is refused may
    still be being written: it is looked at again when it has changed, and refused for good only at the end. While nothing is new, other
    jobs go first.

    Raises:
        CheckpointError: the training left a file that cannot be taken in.
        SteppedBack: others wait.
    """
    dataset = read_dataset(progress, recipe)
    before: Files = {}
    refused: Files = {}
    progress.step("following", 1)
    while True:
        ended = ended_by(recipe, progress.job.created, quiet_seconds)
        standing = standing_files(progress, recipe)
        if ended and standing == files_of(recipe):
            progress.say(f"the training has ended: {ended}")
            return {"run_id": run_of_all(progress, recipe), "ended": ended}
        new = {path: state for path, state in standing.items() if refused.get(path) != state}
        if new != before:
            before = new
            outcomes = dict(zip(new, inspect_files(progress, list(new), recipe.model), strict=True))
            for path, outcome in outcomes.items():
                if isinstance(outcome, CheckpointError):
                    refused[path] = new[path]
                    progress.say(f"not yet: {outcome}")
            run_so_far(progress, recipe, dataset, [outcome for outcome in outcomes.values() if isinstance(outcome, dict)])
            progress.step("following", 1)
        elif progress.workspace.queue.others_wait():
            raise SteppedBack


Files = dict[Path, tuple[int, int]]  # size and time of change by path, in the order of epochs


def files_of(recipe: Recipe) -> Files:
    """The training's checkpoint files as they are now; none while its folder is not there."""
    try:
        paths = list_checkpoints(recipe.checkpoints.folder, recipe.checkpoints.prefix)
    except NoCheckpointsError:
        return {}
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def standing_files(progress: Progress, recipe: Recipe) -> Files:
    """Those files that did not change for a while."""
    before = files_of(recipe)
    end = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(BEAT_SECONDS, SETTLE_SECONDS))
        progress.advance(0)
    return {path: state for path, state in files_of(recipe).items() if before.get(path) == state}


def ended_by(recipe: Recipe, asked: float, quiet_seconds: float) -> str | None:
    """What tells that the training has ended, if it has."""
    if (recipe.checkpoints.folder / "training.json").exists():
        return "training.json is there"
    newest = max([asked, *(changed / 1e9 for _, changed in files_of(recipe).values())])
    return f"no checkpoint changed for {quiet_seconds:.0f} s" if time.time() - newest >= quiet_seconds else None


def run_so_far(progress: Progress, recipe: Recipe, dataset: Dataset, taken: list[dict[str, Any]]) -> None:
    """There is a run of these checkpoints, which takes the place of the one before; none before the first step of training."""
    asked = recipe.checkpoints.epochs
    chosen = [checkpoint for checkpoint in taken if asked is None or checkpoint["epoch"] in asked]
    if not any(checkpoint["epoch"] for checkpoint in chosen):
        return
    chosen = with_second_moments(progress, recipe, chosen)
    epochs = tuple(int(checkpoint["epoch"]) for checkpoint in chosen)
    place = progress.workspace
    require_ascending(chosen)
    data = dataset[0].to_csv(index=False)  # ids, targets, sides and digests of the inputs
    divided = recipe.engine.precondition in ("adam", "adam_full")
    weights = [
        [checkpoint["epoch"], checkpoint["digest"], *([checkpoint["second_moment"]] if divided else [])] for checkpoint in chosen
    ]
    run_id = digest_of([recipe.digest(), weights, data, plugin_of(progress.workspace, recipe)])[:12]
    part = recipe.model_copy(
        update={
            "name": f"{recipe.name}, up to epoch {epochs[-1]}",
            "checkpoints": recipe.checkpoints.model_copy(update={"epochs": epochs}),
        }
    )
    if not place.is_done(run_id):
        place.register_run(run_id, part)
        compute_run(progress, part, run_id, dataset=dataset, checkpoints=chosen)
    supersede(progress, run_id, part)


def run_of_all(progress: Progress, recipe: Recipe) -> str:
    """The recipe's own run, as if it had been asked for now: data that changed meanwhile are read again."""
    run_id = progress.workspace.run_id(recipe)
    if not progress.workspace.is_done(run_id):
        progress.workspace.register_run(run_id, recipe)
        compute_run(progress, recipe, run_id)
    supersede(progress, run_id, recipe)
    return run_id


def supersede(progress: Progress, run_id: str, recipe: Recipe) -> None:
    """The job makes this run; the one that it made before leaves the lists, and links to it go on working."""
    before = progress.workspace.queue.get(progress.job.id).run_id
    progress.set_run(run_id)
    if before not in (None, run_id):
        progress.workspace.register_run(str(before), recipe, state="superseded")
    progress.note("followed", superseded=before)
