"""One run: its samples, model and loss are suited to each other, its blocks are there, and its manifest is written last."""

import platform
import time
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Final

import numpy as np
import pandas as pd

from tracin_core.data.readers import Inputs
from tracin_core.data.samples import require_labels
from tracin_core.errors import CheckpointError, OutputShapeError
from tracin_core.reading import MEASURED, Dataset, plugins_of, read_dataset, reader_of, truth_of
from tracin_core.recipe import ClassificationTask, Cotangent, EngineSection, PluginModel, Recipe
from tracin_core.records.datasets import dataset_key, load_inputs
from tracin_core.records.manifest import Manifest
from tracin_core.records.plugins import plugin_digest
from tracin_core.records.progress import Progress
from tracin_core.records.store import digest_of
from tracin_core.records.workspace import Workspace
from tracin_core.scores.examples import SampleExamples
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.recorded import recorded_loss
from tracin_core.scores.sample_losses import SampleLoss, sample_loss
from tracin_core.worker.checkpoints import load_checkpoint, model_of, take_in
from tracin_core.worker.curvatures import with_curvatures
from tracin_core.worker.kernels import Blocks, compute_blocks

KERNEL_BUDGET: Final = 256 * 2**20  # bytes of a checkpoint's kernels; beyond it, layers are kept as `rest` and `last`


def compute_run(
    progress: Progress,
    recipe: Recipe,
    run_id: str,
    *,
    dataset: Dataset | None = None,
    checkpoints: list[dict[str, Any]] | None = None,
) -> None:
    """Samples read, checkpoints taken in, model checked, missing blocks computed, manifest written: in this order.

    Args:
        dataset, checkpoints: where the caller has them already.
    """
    from tracin_core.engine.health import check_model
    from tracin_core.engine.kernel import kernel_groups

    workspace = progress.workspace
    use_threads(recipe.engine)
    samples, _, chunks = dataset or read_dataset(progress, recipe)
    plugin = plugin_of(workspace, recipe)  # before its code runs, so that no other code is taken for it
    model = model_of(workspace, recipe.model)
    checkpoints = checkpoints or take_in(
        progress, recipe.checkpoints.folder, recipe.checkpoints.prefix, recipe.model, epochs=recipe.checkpoints.epochs
    )
    checkpoints = with_second_moments(progress, recipe, checkpoints)
    loss = recorded_loss(recipe.task, checkpoints)
    folder = workspace.root / "datasets" / dataset_key(recipe, plugins_of(workspace))
    largest = max((chunk for side in MEASURED for chunk in chunks[side]), key=lambda chunk: len(chunk.ids))
    load_checkpoint(model, workspace, checkpoints[-1])
    model, probes = model.to(recipe.engine.device), to_tensor(load_inputs(folder, largest.digest)[0], recipe.engine)
    outputs = outputs_of(model, probes[:2], recipe, samples)
    require_labels(samples, recipe.task, outputs)
    cotangent = cotangent_of(recipe, outputs)
    require_suited(loss, cotangent, outputs)
    each = outputs if cotangent == "outputs" else 1
    train, test = (each * sum(len(chunk.ids) for chunk in chunks[side]) for side in MEASURED)
    layers = kernel_groups(model, cells=train * (train + test) + test * test, budget=recipe.engine.kernel_budget or KERNEL_BUDGET)
    progress.say(f"kernels are kept by {len(layers)} layer groups: {', '.join(layers)}")
    preprocessing = reader_of(workspace, recipe.data).preprocessing
    facts = {"preprocessing": preprocessing, "plugin": plugin}
    checkpoints = with_curvatures(progress, recipe, checkpoints, model, folder, chunks["train"], outputs, facts)
    first = chunks["train"][0].digest
    blocks = Blocks(workspace, recipe, layers, cotangent, outputs, preprocessing, plugin, first)
    manifest = Manifest(
        id=run_id,
        recipe=recipe.to_dict(),
        created=time.time(),
        layers=tuple(layers),
        checkpoints=tuple(checkpoints),
        groups=tuple(digest_of(blocks.group(checkpoint)) for checkpoint in checkpoints),
        chunks={side: chunks[side] for side in MEASURED},
        loss=asdict(loss),
        dataset=folder.name,
        truth=tuple(asdict(fault) for fault in truth_of(recipe, samples)),
        versions={"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy", "scipy")}},
        cotangent=cotangent,
        outputs=outputs,
        who=progress.job.who,
    )
    progress.step("health", 1)
    health = tuple(asdict(check) for check in check_model(model, probes[:8]))
    precondition = blocks.loaded(model, checkpoints[-1], folder.name)
    progress.say(estimate(model, probes, recipe.engine, outputs, precondition))
    compute_blocks(progress, blocks, manifest)
    Manifest(**{**manifest.__dict__, "health": health}).write(workspace.root / "runs" / run_id, samples)
    workspace.register_run(run_id, recipe, state="done")


def outputs_of(model: Any, probes: Any, recipe: Recipe, samples: pd.DataFrame) -> int:
    """How many outputs the model has for each sample.

    Raises:
        OutputShapeError: not as many as the task reads.
    """
    from tracin_core.engine.kernel import model_outputs

    shape = tuple(model_outputs(model, probes).shape[1:])
    outputs = int(np.prod(shape))
    classes = int(samples["label"].max()) + 1 if isinstance(recipe.task, ClassificationTask) else 1
    wanted = "one output" if classes == 1 else "one output, or two," if classes == 2 else f"at least {classes} outputs"
    if len(shape) > 1 or (outputs < classes and (outputs, classes) != (1, 2)) or (outputs > 1 and classes == 1):
        raise OutputShapeError(
            f"The model gives each sample outputs of shape {shape}, but {recipe.task.kind} of this data needs {wanted} per sample; choose "
            f"the model that the checkpoints belong to, or another task."
        )
    return outputs


def cotangent_of(recipe: Recipe, outputs: int) -> Cotangent:
    """Whose gradients the kernels hold products of."""
    return recipe.task.kernel if isinstance(recipe.task, ClassificationTask) and outputs > 1 else "score"


def require_suited(loss: PairLoss | SampleLoss, cotangent: Cotangent, outputs: int) -> None:
    """The loss can be asked of such a kernel and of so many outputs.

    Raises:
        ViewError: it cannot, and what to choose; better now than after the computation.
    """
    if isinstance(loss, SampleLoss):
        shape, target = (1,) if outputs == 1 else (1, outputs), np.zeros(1, dtype=np.int64)
        SampleExamples(pd.DataFrame({"id": ["probe"]}), np.zeros((1, *shape), dtype=np.float32), target, loss, cotangent)
        sample_loss(loss, np.zeros(shape), target)


def plugin_of(workspace: Workspace, recipe: Recipe) -> str | None:
    """Digest of the file that builds the recipe's model, where it is a plugin's."""
    return plugin_digest(plugins_of(workspace), recipe.model.name) if isinstance(recipe.model, PluginModel) else None


def with_second_moments(progress: Progress, recipe: Recipe, checkpoints: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The checkpoints whose gradients the recipe can have divided: all, but by Adam for an epoch 0 that it does not name, before its first
    step.

    Raises:
        CheckpointError: the first that has no second moment, and why.
    """
    form, named = recipe.engine.precondition, recipe.checkpoints.epochs or ()
    if form in ("none", "ekfac"):
        return checkpoints
    chosen = [one for one in checkpoints if one["epoch"] or one.get("second_moment") or 0 in named] or checkpoints
    if len(chosen) < len(checkpoints):
        progress.say("epoch 0 is left out: Adam had taken no step yet")
    for checkpoint in chosen:
        if checkpoint.get("second_moment") is None:
            reason = checkpoint.get("no_second_moment") or "the file holds no state of Adam or AdamW"
            raise CheckpointError(
                f"'{checkpoint['source']}' has no second moment to divide by: {reason}; set precondition = \"none\" in the recipe's "
                f"[engine], or leave out its epoch {checkpoint['epoch']}."
            )
    return chosen


def estimate(model: Any, inputs: Any, engine: EngineSection, outputs: int, precondition: Any = None) -> str:
    """What the largest kernel block will take, in words, from the sizes that a few samples show."""
    import torch

    from tracin_core.engine.kernel import memory_estimate

    cotangent = None if outputs == 1 else torch.ones(len(inputs), outputs, device=inputs.device)
    need = memory_estimate(model, inputs, left_cotangent=cotangent, precondition=precondition, batch_size=engine.batch_size)
    return (
        f"estimate for a block of {len(inputs)} x {len(inputs)} samples: {need.total / 2**20:.0f} MiB "
        f"(gradients kept at once {need.gradients / 2**20:.0f} MiB), {need.differentiated} samples differentiated"
    )


def use_threads(engine: EngineSection) -> None:
    import torch

    torch.set_num_threads(engine.threads)


def to_tensor(array: Inputs, engine: EngineSection) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).to(engine.device)
