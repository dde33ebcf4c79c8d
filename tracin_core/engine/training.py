"""Training a ranker, with the checkpoints that influence needs: epoch 0, a spread of epochs, and the learning rate in force."""

import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from tracin_core.data.files import write_json, write_whole
from tracin_core.data.samples import all_pairs
from tracin_core.engine.models import build_model
from tracin_core.errors import NonFiniteError, TooFewClassesError
from tracin_core.recipe import LossName, RankerModel

EVALUATION_BATCH: Final = 64
RECORDED_NAME: Final = {"margin": "standard"}


@dataclass(frozen=True)
class TrainingSettings:
    """What decides a training, beside its data. The defaults train the demo."""

    loss: LossName = "margin"
    margin: float = 10.0
    ghm_bins: int = 10
    ghm_alpha: float = 0.75
    epochs: int = 20
    save_epochs: tuple[int, ...] = (2, 5, 8, 12, 16, 20)
    learning_rate: float = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    momentum: float = 0.9
    batch_pairs: int = 256
    seed: int = 42
    layout: str = "small"


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
    """Checkpoints `model_epoch_<N>.pt` in the lab's format and then `training.json` are in the folder; the latter is returned.

    Stochastic gradient descent on all unordered pairs of the training side, shuffled into batches; each batch scores its samples once and
    forms its pairs by indexing. Samples and pairs that are excluded leave the training side only. Everything random follows the seed.

    Args:
        inputs: [n, 1, F, T], in the order of `samples`.
        samples: with the column `split`; train is trained on, validation and test are measured.
        exclusion_list: where the exclusions come from: `file`, its name, which checkpoints record, and whatever `training.json` should.
        settings: fields of `TrainingSettings`.

    Raises:
        TooFewClassesError: nothing is left to rank after the exclusions.
        NonFiniteError: the loss is no longer a number.
    """
    chosen = TrainingSettings(**settings)
    torch.manual_seed(chosen.seed)
    # channels last halves the time of a step on a CPU
    model = build_model(RankerModel(layout=chosen.layout)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=chosen.learning_rate, momentum=chosen.momentum)
    sides = {side: np.flatnonzero(samples["split"].to_numpy() == side) for side in ("train", "validation", "test")}
    kept = kept_rows(samples, sides["train"], exclude_samples)
    pairs = training_pairs(samples, kept, exclude_pairs)
    tensor = torch.from_numpy(inputs)
    listed = dict(exclusion_list or {})
    history: list[dict[str, float]] = []
    scheduler = rate_scheduler(optimizer, chosen)
    rate_sum = 0.0
    for epoch in range(chosen.epochs + 1):
        loss = 0.0
        if epoch > 0:
            loss, steps = train_epoch(model, optimizer, tensor, pairs, chosen, epoch)
            if not np.isfinite(loss):
                raise NonFiniteError(
                    f"The training loss is {loss} in epoch {epoch}; choose a smaller learning rate than {chosen.learning_rate}."
                )
            rate_sum += steps * float(scheduler.get_last_lr()[0])
        if epoch == 0 or epoch in chosen.save_epochs or epoch == chosen.epochs:
            measured = {side: measure(model, tensor, samples, rows, chosen) for side, rows in {**sides, "train": kept}.items()}
            history.append(
                {"epoch": epoch, "rate_sum": rate_sum, **{f"{side}_{k}": v for side, m in measured.items() for k, v in m.items()}}
            )
            save_checkpoint(folder, epoch, model, optimizer, chosen, history[-1], listed.get("file"))
        if epoch > 0:
            scheduler.step()  # after saving: a checkpoint records the rate that led to it
        if progress is not None:
            progress(epoch, chosen.epochs)
    excluded_pairs = len(training_pairs(samples, kept)["target"]) - len(pairs["target"])
    manifest = {
        "settings": {**asdict(chosen), "save_epochs": list(chosen.save_epochs)},
        "history": history,
        "test_accuracy": history[-1].get("test_accuracy"),  # the random split has no test side
        "validation_accuracy": history[-1].get("validation_accuracy"),
        "split": {side: len(rows) for side, rows in sides.items()},
        "train_samples": len(kept),
        "train_pairs": len(pairs["target"]),
        "exclusions": {**listed, "samples": len(sides["train"]) - len(kept), "pairs": excluded_pairs},
    }
    write_json(folder / "training.json", manifest)
    return manifest


def kept_rows(samples: pd.DataFrame, trained: npt.NDArray[np.int64], excluded: Collection[str]) -> npt.NDArray[np.int64]:
    """Those of the training rows whose samples are not excluded.

    Raises:
        TooFewClassesError: they have fewer than two angles.
    """
    kept = trained[~samples["id"].iloc[trained].isin(list(excluded)).to_numpy()]
    angles = samples["angle"].iloc[kept].unique()
    if len(angles) < 2:
        there = f"only the angle {angles[0]}°" if len(angles) else "no sample"
        raise TooFewClassesError(
            f"Ranking needs at least two different angles, but {len(trained) - len(kept)} of the {len(trained)} training samples are "
            f"excluded, which leaves {there}; exclude fewer samples."
        )
    return kept


def rate_scheduler(optimizer: torch.optim.Optimizer, chosen: TrainingSettings) -> torch.optim.lr_scheduler.LRScheduler:
    """Epoch e of E learns at the rate times (1 + cos(pi (e - 1) / E)) / 2 (Loshchilov and Hutter 2017), or at the rate itself.

    A rate that falls settles the last checkpoints: at a constant one, held-out accuracy still moved by several points between epochs.
    """
    if chosen.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(chosen.epochs, 1))


def training_pairs(
    samples: pd.DataFrame, rows: npt.NDArray[np.int64], excluded: Collection[frozenset[str]] = frozenset()
) -> dict[str, Tensor]:
    """All unordered pairs of these rows with different labels, without the excluded ones: positions in `samples` and targets.

    Raises:
        TooFewClassesError: no pair is left.
    """
    table = all_pairs(samples.iloc[rows].reset_index(drop=True))
    if excluded:
        table = table[[frozenset(pair) not in excluded for pair in zip(table["id1"], table["id2"], strict=True)]]
    if table.empty:
        raise TooFewClassesError(
            f"No training pair is left of {len(rows)} samples after {len(excluded)} pairs were excluded; exclude fewer pairs."
        )
    return {
        "first": torch.from_numpy(rows[table["first"].to_numpy()]),
        "second": torch.from_numpy(rows[table["second"].to_numpy()]),
        "target": torch.from_numpy(table["target"].to_numpy().astype(np.float32)),
    }


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    pairs: dict[str, Tensor],
    chosen: TrainingSettings,
    epoch: int,
) -> tuple[float, int]:
    """Every pair was used once; returns the mean loss and the number of steps."""
    model.train()
    order = torch.randperm(len(pairs["target"]), generator=torch.Generator().manual_seed(chosen.seed * 100_003 + epoch))
    total, batches = 0.0, order.split(chosen.batch_pairs)
    for batch in batches:
        ends = torch.stack([pairs["first"][batch], pairs["second"][batch]])
        rows, places = ends.unique(return_inverse=True)
        scores = model(inputs[rows]).squeeze(-1)[places]
        loss = pair_losses(scores[0], scores[1], pairs["target"][batch], chosen).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(batch)
    model.eval()
    return total / len(order), len(batches)


def pair_losses(first: Tensor, second: Tensor, target: Tensor, chosen: TrainingSettings) -> Tensor:
    """The loss of each pair; GHM weights are counted in this batch and carry no gradient (math: `scores/losses.py`)."""
    gap = -target * (first - second) + chosen.margin
    if chosen.loss == "logistic":
        return nn.functional.softplus(gap)
    hinge = gap.clamp(min=0)
    if chosen.loss == "squared_hinge":
        return hinge**2
    if chosen.loss == "margin":
        return hinge
    sign = 2 * target - 1 if chosen.loss == "ghm_legacy" else target
    density = torch.sigmoid(chosen.margin - sign * (first - second)).detach()
    place = (density * chosen.ghm_bins).floor().clamp(max=chosen.ghm_bins - 1).long()
    counted = place[density < 1] if chosen.loss == "ghm_legacy" else place
    counts = torch.bincount(counted, minlength=chosen.ghm_bins).clamp(min=1)
    return hinge * counts[place].to(hinge.dtype) ** -chosen.ghm_alpha


@torch.no_grad()
def measure(
    model: nn.Module, inputs: Tensor, samples: pd.DataFrame, rows: npt.NDArray[np.int64], chosen: TrainingSettings
) -> dict[str, float]:
    """Mean loss and accuracy over all pairs of these rows; a tie is half right. NaN-free: no pairs give no entry."""
    if samples["label"].iloc[rows].nunique() < 2:
        return {}
    model.eval()
    pairs = training_pairs(samples, rows)
    scores = torch.empty(len(samples))
    for batch in torch.from_numpy(rows).split(EVALUATION_BATCH):
        scores[batch] = model(inputs[batch]).squeeze(-1)
    first, second = scores[pairs["first"]], scores[pairs["second"]]
    right = pairs["target"] * (first - second)
    accuracy = float(((right > 0).float() + 0.5 * (right == 0).float()).mean())
    # batches as in training: GHM weights are densities within a batch, and would shrink with a larger one
    batches = torch.randperm(len(right), generator=torch.Generator().manual_seed(chosen.seed)).split(chosen.batch_pairs)
    losses = [pair_losses(first[batch], second[batch], pairs["target"][batch], chosen) for batch in batches]
    return {"loss": float(torch.cat(losses).mean()), "accuracy": accuracy}


def save_checkpoint(
    folder: Path,
    epoch: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    chosen: TrainingSettings,
    measured: dict[str, float],
    exclusions_file: str | None,
) -> None:
    """`model_epoch_<epoch>.pt` holds the lab's dictionary, in plain types that load with `weights_only=True`."""

    content = {
        "epoch": epoch,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": {},
        "train_loss_main": measured.get("train_loss"),
        "val_loss_main": measured.get("validation_loss"),
        "train_accuracy": measured.get("train_accuracy"),
        "val_accuracy": measured.get("validation_accuracy"),
        "rate_sum": measured["rate_sum"],
        "args": {
            "loss_type": RECORDED_NAME.get(chosen.loss, chosen.loss),
            "margin": chosen.margin,
            "ghm_bins": chosen.ghm_bins,
            "ghm_alpha": chosen.ghm_alpha,
            "batch_size": chosen.batch_pairs,
            "learning_rate": chosen.learning_rate,
            "schedule": chosen.schedule,
            "momentum": chosen.momentum,
            "seed": chosen.seed,
            "exclusions_file": exclusions_file,
        },
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(folder / f"model_epoch_{epoch}.pt", [buffer.getvalue()])
