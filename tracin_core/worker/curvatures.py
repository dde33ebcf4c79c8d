"""The curvature of a run's training side at each checkpoint, computed once and kept beside the weights, whatever damping a run asks for."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tracin_core.data.files import read_json, write_json
from tracin_core.errors import CheckpointError
from tracin_core.recipe import ClassificationTask, Recipe
from tracin_core.records.checkpoint_files import CURVATURES
from tracin_core.records.datasets import load_inputs
from tracin_core.records.manifest import Chunk
from tracin_core.records.progress import Progress
from tracin_core.records.store import digest_of
from tracin_core.worker.checkpoints import load_checkpoint

if TYPE_CHECKING:
    from tracin_core.engine.ekfac import Outcome

FORM: Final = "2"  # of the curvature: raised with what can alter it; 2: a model that is one layer has that layer's bases


def with_curvatures(
    progress: Progress,
    recipe: Recipe,
    checkpoints: list[dict[str, Any]],
    model: Any,
    folder: Path,
    chunks: tuple[Chunk, ...],
    outputs: int,
    facts: dict[str, Any],
) -> list[dict[str, Any]]:
    """Each checkpoint with `curvature`, the digest of its kept copy, where the recipe divides by it; else the checkpoints as they are.

    A copy is written whole or not at all, and noted after that: what was killed is computed again.

    Args:
        model: on its device; left with the last checkpoint's weights.
        folder: of the data set, which has the chunks' inputs.
        facts: what else the inputs and the model depend on.

    Raises:
        MachineError: the bases do not fit into memory.
        CheckpointError: a checkpoint's eigenvalues are all 0.
        DiskFullError: a copy has no room.
    """
    from tracin_core.engine import ENGINE_VERSION

    if recipe.engine.precondition != "ekfac":
        return checkpoints
    progress.step("curvature", len(checkpoints))
    engine, outcome = recipe.engine, outcome_of(recipe, outputs)
    shared = {
        **facts,
        "model": recipe.model.model_dump(mode="json"),
        "outcome": outcome,
        "samples": [chunk.digest for chunk in chunks],
        "batch_size": engine.batch_size,
        "threads": engine.threads,
        "device": engine.device,
        "engine": ENGINE_VERSION,
        "form": FORM,
        "torch": version("torch"),
    }
    store, found = progress.workspace.root / "checkpoints", []
    for done, checkpoint in enumerate(checkpoints):
        definition = {**shared, "weights": str(checkpoint["digest"])}
        note = store / CURVATURES / f"{digest_of(definition)}.json"
        digest = known_curvature(note)
        if digest is None:
            load_checkpoint(model, progress.workspace, checkpoint)
            digest = computed(progress, model, folder, chunks, outcome, engine.batch_size, checkpoint, done)
            write_json(note, {**definition, "curvature": digest})
        found.append({**checkpoint, "curvature": digest})
        progress.advance(done + 1)
    load_checkpoint(model, progress.workspace, checkpoints[-1])
    return found


def outcome_of(recipe: Recipe, outputs: int) -> "Outcome":
    """What the model's outputs give a distribution of."""
    if not isinstance(recipe.task, ClassificationTask):
        return "number"
    return "sigmoid" if outputs == 1 else "softmax"


def known_curvature(note: Path) -> str | None:
    """The digest that the note names; None where there is none, or what was kept is not whole any more."""
    from tracin_core.engine.checkpoints import is_whole

    try:
        digest = str(read_json(note)["curvature"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest if is_whole(note.parents[1], digest) else None


def computed(
    progress: Progress,
    model: Any,
    folder: Path,
    chunks: tuple[Chunk, ...],
    outcome: "Outcome",
    batch_size: int,
    checkpoint: dict[str, Any],
    done: int,
) -> str:
    """The digest of the curvature at this checkpoint, which is in the store now."""
    import torch

    from tracin_core.engine import ekfac

    samples = [torch.from_numpy(load_inputs(folder, chunk.digest)[0]) for chunk in chunks]
    first = next(ekfac.fisher_sides(model, samples[:1], outcome, batch_size))
    progress.require_room(ekfac.file_bytes(model, first), f"the curvature of epoch {checkpoint['epoch']}")
    curvature = ekfac.fisher(model, samples, outcome, batch_size=batch_size, on_side=lambda: progress.advance(done))
    if not curvature.mean > 0:
        raise CheckpointError(
            f"'{checkpoint['source']}' has no curvature to divide by: the model is certain of every training sample. Leave out its epoch "
            f'{checkpoint["epoch"]}, or set precondition = "none" in the recipe\'s [engine].'
        )
    return ekfac.keep_curvature(curvature, progress.workspace.root / "checkpoints")
