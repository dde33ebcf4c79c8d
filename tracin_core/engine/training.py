"""Training, with the checkpoints that influence needs: epoch 0, a spread of epochs, and the learning rate in force."""

import io
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from tracin_core.data.files import write_json, write_whole
from tracin_core.data.samples import require_labels
from tracin_core.engine.models import Mlp, build_model
from tracin_core.engine.objectives import (
    Objective,
    Pairs,
    Rows,
    Samples,
    evaluated,
    example_weights,
    kept_rows,
    measure,
    output_count,
    pair_losses,
    sample_targets,
    suitable_loss,
    training_pairs,
    turned,
)
from tracin_core.errors import ExclusionError, NonFiniteError, OutputShapeError
from tracin_core.recipe import ClassificationTask, ModelSection, PluginModel, RankerModel, RankingTask, RegressionTask, TaskSection
from tracin_core.training_settings import OF_LOSS, SampleSettings, Settings, TrainingSettings

__all__ = ["SampleSettings", "TrainingSettings", "measure", "pair_losses", "train", "train_ranker", "training_pairs"]

SIDES = ("train", "validation", "test")
Keep = Literal["checkpoints", "outputs"]
RUNAWAY = 100.0  # times the loss at the start, which momentum alone stays below


def train(
    inputs: npt.NDArray[Any],
    samples: pd.DataFrame,
    folder: Path,
    *,
    model: ModelSection,
    task: TaskSection,
    plugins: Path | None = None,
    exclude_samples: Collection[str] = frozenset(),
    exclude_pairs: Collection[frozenset[str]] = frozenset(),
    flip_pairs: Collection[frozenset[str]] = frozenset(),
    weights: Mapping[str | frozenset[str], float] | None = None,
    exclusion_list: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    keep: Keep = "checkpoints",
    **settings: Any,
) -> dict[str, Any]:
    """Checkpoints `model_epoch_<N>.pt` in the lab's format and then `training.json` are in the folder; the latter is returned.

    Stochastic gradient descent on the mean loss of each batch. Examples are all unordered pairs of the training side for a ranking, else
    its samples, shuffled anew in every epoch. What is excluded leaves the training side only. Everything random follows the seed.

    Args:
        inputs: [n, ...], in the order of `samples`.
        samples: id, label (whole number; of a ranking, its order), target (number, of a regression), and `split`: train is trained on,
            validation and test are measured.
        task: settings of its loss that it leaves open are the defaults of `TrainingSettings` or `SampleSettings`.
        plugins: folder of plugins, for a plugin's model.
        flip_pairs: training pairs of a ranking that are learnt the wrong way round, as planted errors; what is measured is not.
        weights: of single training samples (by id) or pairs (by both ids) in the loss, whose mean over a batch still divides by the
            number of examples; a pair's is its own times those of its samples, and what is not named has 1.
        exclusion_list: where exclusions and weights come from: `file`, its name, and `weighted_by`, a score, which checkpoints record; and
            whatever else `training.json` should.
        keep: checkpoints; or outputs alone, those of all samples after the last epoch, as `outputs.npy` ([n], or [n, outputs]).
        settings: fields of `TrainingSettings` for a ranking, else of `SampleSettings`; they go before those of the task.

    Raises:
        TooFewClassesError: nothing is left to learn after the exclusions.
        NonFiniteError: the loss is no longer a number.
        ExclusionError: pairs are excluded where single samples are trained on.
        InputError, ModelError: model, data and task do not fit each other.
    """
    settings = {**task.model_dump(include=set(OF_LOSS), exclude_none=True), **settings}
    if isinstance(model, RankerModel) and isinstance(task, RankingTask):
        settings = {"layout": model.layout, **settings}
    torch.manual_seed(settings.get("seed", TrainingSettings.seed))
    network = build_model(model, plugins)
    if isinstance(model, RankerModel):
        # channels last halves the time of a step on a CPU
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tensor = torch.from_numpy(inputs)
    sides = {side: np.flatnonzero(samples["split"].to_numpy() == side) for side in SIDES}
    if isinstance(network, Mlp):
        network.fit(tensor[sides["train"]])  # excluded or not: an exclusion changes the loss and nothing else
    outputs = output_count(network, tensor)
    if isinstance(model, PluginModel):  # other sections say how many outputs there are
        require_labels(samples, task, outputs)
    if isinstance(task, RankingTask):
        objective: Objective = ranking(
            samples, sides["train"], exclude_samples, exclude_pairs, outputs, settings, flip_pairs, weights
        )
    elif exclude_pairs or flip_pairs:
        raise ExclusionError(
            f"{len(exclude_pairs) + len(flip_pairs)} pairs are to be excluded or turned, but a {task.kind} is trained on single samples; "
            f"exclude samples instead."
        )
    else:
        objective = of_samples(samples, sides["train"], exclude_samples, outputs, task, settings, weights)
    return descend(network, objective, tensor, samples, sides, folder, exclusion_list, progress, keep)


def train_ranker(
    inputs: npt.NDArray[np.float32],
    samples: pd.DataFrame,
    folder: Path,
    *,
    exclude_samples: Collection[str] = frozenset(),
    exclude_pairs: Collection[frozenset[str]] = frozenset(),
    exclusion_list: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """`train` of one of the lab's rankers, whose `layout` is among the settings."""
    return train(
        inputs,
        samples,
        folder,
        model=RankerModel(layout=settings.get("layout", TrainingSettings.layout)),
        task=RankingTask(),
        exclude_samples=exclude_samples,
        exclude_pairs=exclude_pairs,
        exclusion_list=exclusion_list,
        progress=progress,
        **settings,
    )


def ranking(
    samples: pd.DataFrame,
    trained: Rows,
    exclude_samples: Collection[str],
    exclude_pairs: Collection[frozenset[str]],
    outputs: int,
    settings: Mapping[str, Any],
    flips: Collection[frozenset[str]] = frozenset(),
    weights: Mapping[str | frozenset[str], float] | None = None,
) -> Pairs:
    """All pairs of the rows that are kept.

    Raises:
        OutputShapeError: the model gives more than one score.
        TooFewClassesError: no pair is left.
        UnknownSampleError: as `turned` and `example_weights`.
    """
    if outputs != 1:
        raise OutputShapeError(f"Ranking reads one output of the model, but it gives {outputs}; write outputs = 1 under [model].")
    kept = kept_rows(samples, trained, exclude_samples)
    pairs = turned(training_pairs(samples, kept, exclude_pairs), samples, flips)
    ends = (pairs["first"].numpy(), pairs["second"].numpy())
    return Pairs(samples, kept, pairs, TrainingSettings(**settings), example_weights(samples, ends, weights))


def of_samples(
    samples: pd.DataFrame,
    trained: Rows,
    exclude_samples: Collection[str],
    outputs: int,
    task: ClassificationTask | RegressionTask,
    settings: Mapping[str, Any],
    weights: Mapping[str | frozenset[str], float] | None = None,
) -> Samples:
    """The samples that are kept, with what is wanted of each.

    Raises:
        UnknownSampleError: as `example_weights`.
    """
    loss = suitable_loss(task.kind, settings.get("loss"), outputs)
    kept = kept_rows(samples, trained, exclude_samples, task.kind)
    chosen = SampleSettings(**{**settings, "loss": cast(Any, loss)})
    return Samples(kept, sample_targets(samples, task.kind, outputs), chosen, task.kind, example_weights(samples, (kept,), weights))


def descend(
    model: nn.Module,
    objective: Objective,
    inputs: Tensor,
    samples: pd.DataFrame,
    sides: dict[str, Rows],
    folder: Path,
    exclusion_list: Mapping[str, Any] | None,
    progress: Callable[[int, int], None] | None,
    keep: Keep,
) -> dict[str, Any]:
    """Every epoch is trained; what was measured, with the settings, is written last and returned."""
    chosen, kept, begun = objective.settings, objective.kept, time.monotonic()
    optimizer = torch.optim.SGD(model.parameters(), lr=chosen.learning_rate, momentum=chosen.momentum)
    listed = dict(exclusion_list or {})
    history: list[dict[str, float]] = []
    scheduler = rate_scheduler(optimizer, chosen)
    rate_sum = 0.0
    for epoch in range(chosen.epochs + 1):
        if epoch > 0:
            loss, steps = train_epoch(model, optimizer, objective, inputs, epoch)
            require_descent(objective, loss, history[0].get("train_loss", 0.0), epoch)
            rate_sum += steps * float(scheduler.get_last_lr()[0])
        if epoch == 0 or epoch in (chosen.save_epochs or ()) or epoch == chosen.epochs:
            measured = {side: objective.measure(model, inputs, rows) for side, rows in {**sides, "train": kept}.items()}
            history.append(
                {"epoch": epoch, "rate_sum": rate_sum, **{f"{side}_{k}": v for side, m in measured.items() for k, v in m.items()}}
            )
            if keep == "checkpoints":
                save_checkpoint(folder, epoch, model, optimizer, objective, history[-1], listed)
        if epoch > 0:
            scheduler.step()  # after saving: a checkpoint records the rate that led to it
        if progress is not None:
            progress(epoch, chosen.epochs)
    pairs = objective.count if isinstance(objective, Pairs) else 0
    whole = len(training_pairs(samples, kept)["target"]) if isinstance(objective, Pairs) else 0
    manifest = {
        "task": objective.task,
        "settings": {**asdict(chosen), "save_epochs": list(chosen.save_epochs or ())},
        "history": history,
        # the random split has no test side
        **{f"{side}_{objective.score}": history[-1].get(f"{side}_{objective.score}") for side in ("test", "validation")},
        "split": {side: len(rows) for side, rows in sides.items()},
        "seconds": time.monotonic() - begun,
        "train_samples": len(kept),
        "train_pairs": pairs,
        "exclusions": {**listed, "samples": len(sides["train"]) - len(kept), "pairs": whole - pairs},
    }
    if keep == "outputs":
        save_outputs(folder / "outputs.npy", evaluated(model, inputs, np.arange(len(inputs))))
    write_json(folder / "training.json", manifest)
    return manifest


def save_outputs(path: Path, outputs: Tensor) -> None:
    """The outputs are on disk, whole, as float32."""
    buffer = io.BytesIO()
    np.save(buffer, outputs.numpy().astype(np.float32))
    write_whole(path, [buffer.getvalue()])


def require_descent(objective: Objective, loss: float, at_start: float, epoch: int) -> None:
    """The loss is a number, and of a regression not far above that of the weights drawn at random.

    Squared errors of large targets climb by many orders before they overflow, and the checkpoints until then would be analysed as if they
    had learnt something.

    Raises:
        NonFiniteError: says what to change.
    """
    told = f"choose a smaller learning rate than {objective.settings.learning_rate}"
    if isinstance(objective, Samples) and objective.task == "regression":
        deviation = float(objective.targets.std(correction=0))
        told = f"divide the targets by about their standard deviation, {deviation:.3g}, or {told}"
        if RUNAWAY * at_start < loss < np.inf:
            raise NonFiniteError(f"The training loss rose from {at_start:.3g} to {loss:.3g} by epoch {epoch}; {told}.")
    if not np.isfinite(loss):
        raise NonFiniteError(f"The training loss is {loss} in epoch {epoch}; {told}.")


def rate_scheduler(optimizer: torch.optim.Optimizer, chosen: Settings) -> torch.optim.lr_scheduler.LRScheduler:
    """Epoch e of E learns at the rate times (1 + cos(pi (e - 1) / E)) / 2 (Loshchilov and Hutter 2017), or at the rate itself.

    A rate that falls settles the last checkpoints: at a constant one, held-out accuracy still moved by several points between epochs.
    """
    if chosen.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(chosen.epochs, 1))


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, objective: Objective, inputs: Tensor, epoch: int
) -> tuple[float, int]:
    """Every example was used once; returns the mean loss and the number of steps."""
    model.train()
    chosen = objective.settings
    order = torch.randperm(objective.count, generator=torch.Generator().manual_seed(chosen.seed * 100_003 + epoch))
    total, batches = 0.0, order.split(chosen.batch)
    for batch in batches:
        loss = objective.losses(model, inputs, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(batch)
    model.eval()
    return total / len(order), len(batches)


def save_checkpoint(
    folder: Path,
    epoch: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    measured: dict[str, float],
    listed: Mapping[str, Any],
) -> None:
    """`model_epoch_<epoch>.pt` holds the lab's dictionary, in plain types that load with `weights_only=True`."""
    chosen = objective.settings
    content = {
        "epoch": epoch,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": {},
        "train_loss_main": measured.get("train_loss"),
        "val_loss_main": measured.get("validation_loss"),
        f"train_{objective.score}": measured.get(f"train_{objective.score}"),
        f"val_{objective.score}": measured.get(f"validation_{objective.score}"),
        "rate_sum": measured["rate_sum"],
        "args": {
            **objective.recorded(),
            "batch_size": chosen.batch,
            "learning_rate": chosen.learning_rate,
            "schedule": chosen.schedule,
            "momentum": chosen.momentum,
            "seed": chosen.seed,
            "exclusions_file": listed.get("file"),
            **{name: listed[name] for name in ("weighted_by",) if name in listed},
            "examples": objective.count,
        },
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(folder / f"model_epoch_{epoch}.pt", [buffer.getvalue()])
