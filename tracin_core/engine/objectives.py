"""What a training lowers: the losses of pairs, or of samples, and what is measured beside them. The loop is in `training`.

Losses as torch takes their gradients; the same in numpy, with the formulas, are in `scores/losses.py` and `scores/sample_losses.py`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from tracin_core.data.samples import all_pairs
from tracin_core.errors import (
    DataError,
    ModelError,
    OutputShapeError,
    RecipeError,
    TooFewClassesError,
    TracInError,
    UnknownSampleError,
)
from tracin_core.recipe import LabelLossName, NumberLossName
from tracin_core.training_settings import SampleSettings, Settings, TrainingSettings, settings_of_loss

EVALUATION_BATCH: Final = 64
RECORDED_NAME: Final = {"margin": "standard"}

Rows = npt.NDArray[np.int64]


class Objective(Protocol):
    """What is learnt from the training rows that are kept.

    Attributes:
        task: as the recipe calls it.
        score: what is measured beside the loss: accuracy (larger is better), or error.
        kept: rows that are trained on.
        count: examples that the kept rows make; a batch holds their numbers.
    """

    @property
    def task(self) -> str: ...

    @property
    def score(self) -> str: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def kept(self) -> Rows: ...

    @property
    def count(self) -> int: ...

    def losses(self, model: nn.Module, inputs: Tensor, batch: Tensor) -> Tensor:
        """The loss of each of these examples, with its graph."""

    def measure(self, model: nn.Module, inputs: Tensor, rows: Rows) -> dict[str, float]:
        """Mean loss and score over these rows; empty where they make no example."""

    def recorded(self) -> dict[str, Any]:
        """What checkpoints say of the objective, under `args`."""


@dataclass(frozen=True)
class Pairs:
    """The ranking of all pairs of rows with different labels."""

    samples: pd.DataFrame
    kept: Rows
    pairs: dict[str, Tensor]
    settings: TrainingSettings
    weights: Tensor | None = None  # of each pair; None: 1
    task: Literal["ranking"] = "ranking"
    score: Literal["accuracy"] = "accuracy"

    @property
    def count(self) -> int:
        return len(self.pairs["target"])

    def losses(self, model: nn.Module, inputs: Tensor, batch: Tensor) -> Tensor:
        """Each sample of the batch is scored once; its pairs are formed by indexing."""
        ends = torch.stack([self.pairs["first"][batch], self.pairs["second"][batch]])
        rows, places = ends.unique(return_inverse=True)
        scores = model(inputs[rows]).squeeze(-1)[places]
        losses = pair_losses(scores[0], scores[1], self.pairs["target"][batch], self.settings)
        return losses if self.weights is None else losses * self.weights[batch]

    def measure(self, model: nn.Module, inputs: Tensor, rows: Rows) -> dict[str, float]:
        return measure(model, inputs, self.samples, rows, self.settings)

    def recorded(self) -> dict[str, Any]:
        chosen = self.settings
        return {
            "loss_type": RECORDED_NAME.get(chosen.loss, chosen.loss),
            "margin": chosen.margin,
            "ghm_bins": chosen.ghm_bins,
            "ghm_alpha": chosen.ghm_alpha,
        }


@dataclass(frozen=True)
class Samples:
    """The classification or regression of single samples.

    Attributes:
        targets: of every row of the table: its label, from 0, or the number to meet.
        score: accuracy is the share of samples whose own class has the largest output (one output: the right sign); error is the mean
            absolute difference from the target, in its unit.
    """

    kept: Rows
    targets: Tensor
    settings: SampleSettings
    task: Literal["classification", "regression"]
    weights: Tensor | None = None  # of each kept sample; None: 1

    @property
    def score(self) -> str:
        return "accuracy" if self.task == "classification" else "error"

    @property
    def count(self) -> int:
        return len(self.kept)

    def losses(self, model: nn.Module, inputs: Tensor, batch: Tensor) -> Tensor:
        rows = torch.from_numpy(self.kept)[batch]
        losses = sample_losses(model(inputs[rows]), self.targets[rows], self.settings)
        return losses if self.weights is None else losses * self.weights[batch]

    def measure(self, model: nn.Module, inputs: Tensor, rows: Rows) -> dict[str, float]:
        if not len(rows):
            return {}
        outputs, targets = evaluated(model, inputs, rows), self.targets[rows]
        if self.task == "regression":
            score = (outputs[:, 0] - targets).abs()
        elif outputs.shape[1] == 1:
            score = ((outputs[:, 0] > 0) == (targets == 1)).float()
        else:
            score = (outputs.argmax(1) == targets).float()
        return {"loss": float(sample_losses(outputs, targets, self.settings).mean()), self.score: float(score.mean())}

    def recorded(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "loss_type": self.settings.loss,
            **{name: getattr(self.settings, name) for name in settings_of_loss(self.settings.loss)},
        }


def sample_losses(outputs: Tensor, targets: Tensor, chosen: SampleSettings) -> Tensor:
    """`[n]`: the loss of each sample from its outputs `[n, k]` (math: `scores/sample_losses.py`)."""
    if chosen.loss == "squared_error":
        return ((outputs - targets[:, None]) ** 2).sum(1)
    if chosen.loss == "huber":
        wanted = targets[:, None].expand_as(outputs)
        return nn.functional.huber_loss(outputs, wanted, delta=chosen.delta, reduction="none").sum(1)
    if chosen.loss in ("cross_entropy", "label_smoothing"):
        smoothing = chosen.smoothing if chosen.loss == "label_smoothing" else 0.0
        return nn.functional.cross_entropy(outputs, targets, label_smoothing=smoothing, reduction="none")
    f = label_logit(outputs, targets)
    right = nn.functional.logsigmoid(f)
    if chosen.loss == "binary_cross_entropy":
        return -right
    if chosen.loss == "focal":
        # (1 - p_y)^gamma by its logarithm: a power of 0 would have no derivative
        return -torch.exp(chosen.gamma * nn.functional.logsigmoid(-f)) * right
    return -torch.expm1(chosen.q * right) / chosen.q


def label_logit(outputs: Tensor, labels: Tensor) -> Tensor:
    """`[n]`: logit(p_y), the label's own output minus log sum exp of the others; of one output s, (2 y - 1) s."""
    if outputs.shape[1] == 1:
        return (2 * labels - 1) * outputs[:, 0]
    own = labels[:, None]
    return outputs.gather(1, own)[:, 0] - outputs.scatter(1, own, float("-inf")).logsumexp(1)


@torch.no_grad()
def evaluated(model: nn.Module, inputs: Tensor, rows: Rows) -> Tensor:
    """`[n, k]`: outputs of these rows in eval mode."""
    model.eval()
    return torch.cat([model(inputs[batch]) for batch in torch.from_numpy(rows).split(EVALUATION_BATCH)])


# ---- what is trained on ------------------------------------------------------------------------------------------------------


def sample_targets(samples: pd.DataFrame, task: Literal["classification", "regression"], outputs: int) -> Tensor:
    """Of every row: its label as a whole number below the number of classes, or its target.

    Raises:
        DataError: a label is no class of the model, or a target is no finite number.
    """
    if task == "regression":
        numbers = samples["target"].to_numpy(dtype=np.float64)
        wrong = np.flatnonzero(~(np.abs(numbers) <= np.finfo(np.float32).max))
        if len(wrong):
            raise DataError(
                f"The target of '{samples['id'].iloc[wrong[0]]}' is {numbers[wrong[0]]}; each must be a finite number of single precision. "
                f"Correct it, or leave that sample out."
            )
        return torch.from_numpy(numbers.astype(np.float32))
    labels, classes = samples["label"].to_numpy(dtype=np.int64), max(outputs, 2)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(
            f"'{samples['id'].iloc[wrong[0]]}' has the label {labels[wrong[0]]}, but the model tells {classes} classes apart, 0 to "
            f"{classes - 1}; write outputs = {int(labels.max()) + 1} under [model]."
        )
    return torch.tensor(labels)


def output_count(model: nn.Module, inputs: Tensor) -> int:
    """How many outputs the model gives each sample, found on the first two.

    Raises:
        OutputShapeError: not one row per sample.
        ModelError: the model fails on them.
    """
    few = inputs[:2].clone()  # a model may overwrite its input
    try:
        with torch.no_grad():
            outputs = model.eval()(few)
    except TracInError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as failure:
        told = (str(failure).strip().splitlines() or [type(failure).__name__])[0].rstrip(".")
        raise ModelError(
            f"The model fails on samples of shape {tuple(few.shape[1:])}: {told}; correct [model], or the data."
        ) from failure
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(few):
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise OutputShapeError(
            f"Of {len(few)} samples the model gives {shape}; it must give [{len(few)}, outputs], one row per sample."
        )
    return outputs.shape[1]


def suitable_loss(task: str, loss: str | None, outputs: int) -> str:
    """The loss, by default that of the task and the number of outputs.

    Raises:
        RecipeError: the loss is not one of the task, or cannot be had with so many outputs.
    """
    if task == "regression":
        known, usual = get_args(NumberLossName), "squared_error"
        if outputs != 1:
            raise RecipeError(f"regression reads one output of the model, but it has {outputs}; give outputs = 1.")
    else:
        known = get_args(LabelLossName)
        usual = "cross_entropy" if outputs > 1 else "binary_cross_entropy"
    chosen = loss or usual
    unfit = ("binary_cross_entropy",) if outputs > 1 else ("cross_entropy", "label_smoothing") if task == "classification" else ()
    if chosen not in known or chosen in unfit:
        fit = ", ".join(name for name in known if name not in unfit)
        raise RecipeError(
            f"{task} with {outputs} output{'s' * (outputs > 1)} cannot be trained with the loss {chosen}; choose from {fit}."
        )
    return chosen


def kept_rows(samples: pd.DataFrame, trained: Rows, excluded: Collection[str], task: str = "ranking") -> Rows:
    """Those of the training rows whose samples are not excluded.

    Raises:
        TooFewClassesError: they have fewer than two angles, or labels; of a regression, none is left.
    """
    kept = trained[~samples["id"].iloc[trained].isin(list(excluded)).to_numpy()]
    left = "no sample"
    if task == "regression":
        needs = "at least one sample"
        enough = len(kept) > 0
    else:
        what = "angle" if task == "ranking" and "angle" in samples else "label"
        values = samples[what].iloc[kept].unique()
        needs = f"at least two different {what}s"
        enough = len(values) >= 2
        if len(values):
            left = f"only the {what} {values[0]}" + "°" * (what == "angle")
    if enough:
        return kept
    raise TooFewClassesError(
        f"{task.capitalize()} needs {needs}, but {len(trained) - len(kept)} of the {len(trained)} training samples are excluded, which "
        f"leaves {left}; exclude fewer samples."
    )


def training_pairs(
    samples: pd.DataFrame, rows: npt.NDArray[np.int64], excluded: Collection[frozenset[str]] = frozenset()
) -> dict[str, Tensor]:
    """All unordered pairs of these rows with different labels, without the excluded ones: positions in `samples` and targets.

    Raises:
        TooFewClassesError: no pair is left.
    """
    # pairs name the angles at their ends; other data than recordings have labels alone
    ordered = samples if "angle" in samples else samples.assign(angle=samples["label"])
    table = all_pairs(ordered.iloc[rows].reset_index(drop=True))
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


def turned(pairs: dict[str, Tensor], samples: pd.DataFrame, flips: Collection[frozenset[str]]) -> dict[str, Tensor]:
    """The same pairs, those of these two samples with the opposite target: errors that are planted on purpose.

    Raises:
        UnknownSampleError: one of them is no training pair.
    """
    if not flips:
        return pairs
    ids = samples["id"].to_numpy(dtype=object)
    named = [frozenset(ends) for ends in zip(ids[pairs["first"].numpy()], ids[pairs["second"].numpy()], strict=True)]
    strangers = set(flips) - set(named)
    if strangers:
        raise UnknownSampleError(
            f"'{' and '.join(sorted(min(strangers, key=sorted)))}' are no training pair ({len(strangers)} such); turn pairs of the "
            f"training side alone."
        )
    signs = torch.tensor([-1.0 if pair in flips else 1.0 for pair in named])
    return {**pairs, "target": pairs["target"] * signs}


def example_weights(
    samples: pd.DataFrame, ends: Sequence[Rows], weights: Mapping[str | frozenset[str], float] | None
) -> Tensor | None:
    """The weight of each example in the loss: of a pair its own, times those of its samples; None where nothing is weighted.

    Args:
        ends: rows of the samples that the examples are formed of: one array, or two.
        weights: id of a sample, or both ids of a pair -> weight; what is not named has 1.

    Raises:
        UnknownSampleError: what is named is no training example, nor a sample of one.
    """
    if not weights:
        return None
    ids = samples["id"].to_numpy(dtype=object)
    named = [ids[rows] for rows in ends]
    known = {*np.concatenate(named), *(frozenset(pair) for pair in zip(*named, strict=True) if len(named) == 2)}
    strangers = [key for key in weights if key not in known]
    if strangers:
        told = strangers[0] if isinstance(strangers[0], str) else " and ".join(sorted(strangers[0]))
        raise UnknownSampleError(f"'{told}' is not trained on ({len(strangers)} such); weight examples of the training side alone.")
    found = np.ones(len(named[0]))
    for side in named:
        found *= [weights.get(name, 1.0) for name in side]
    if len(named) == 2:
        found *= [weights.get(frozenset(pair), 1.0) for pair in zip(*named, strict=True)]
    return torch.from_numpy(found.astype(np.float32))


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
