"""Checkpoints and samples that are in memory already, checked as strictly as those from disk, and the kernels of them.

Nothing is taken by reference that could change later: weights are copied, and the training inputs are known by their digest.
"""

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from tracin_core.data.checks import checked_ids, shown
from tracin_core.engine.batches import Samples, tensors_of
from tracin_core.engine.checkpoints import Request, canonical, demands, expected_shapes, intake_folder, layouts, weights_of
from tracin_core.engine.classification import logit_kernel_by_layer, output_kernel_by_layer
from tracin_core.engine.intake import (
    ARGUMENT_KEYS,
    bytes_of,
    first_of,
    learning_rate,
    optimizer_name,
    optimizers_of,
    plain,
    recorded_epoch,
)
from tracin_core.engine.kernel import model_outputs, tangent_kernel_by_layer
from tracin_core.engine.memory import is_out_of_memory
from tracin_core.errors import CheckpointError, DataError, ModelError, NoCheckpointsError, UnreadableSampleError
from tracin_core.recipe import Cotangent

Values = npt.NDArray[Any]
Tell = Callable[[], None]
Model = nn.Module
FORMS: Final = "(x, y), (x, y, ids), (a DataFrame of samples, x) or a torch Dataset of (input, target)"


# ---- checkpoints ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """One checkpoint. `weights` are copies by the model's own names; what nobody says is None.

    `learning_rate` is the one that was given, else the one that the checkpoint records (`recorded_rate`).
    """

    name: str
    weights: dict[str, Tensor]
    learning_rate: float | None
    recorded_rate: float | None
    epoch: int | None
    arguments: dict[str, Any]
    optimizer: str | None = None


def snapshots(model: nn.Module, checkpoints: Sequence[Any], learning_rates: Sequence[float] | None = None) -> list[Snapshot]:
    """The checkpoints in their order, each one complete, finite, and of this model.

    Args:
        checkpoints: state dicts, dictionaries that hold one beside what a training records, or paths of files, which go through the
            limited child process and are never unpickled here; each by itself or as (checkpoint, learning rate).

    Raises:
        CheckpointError: one cannot be used, a rate is no number, rates and checkpoints do not match, or two are the same tensors.
    """
    if not isinstance(checkpoints, (list, tuple)) or not checkpoints:
        told = "none is there" if isinstance(checkpoints, (list, tuple)) else f"they are one {type(checkpoints).__name__}"
        raise NoCheckpointsError(f"Checkpoints come as a list, but {told}; give [state_dict, ...] or [path, ...].")
    contents, rates = with_rates(checkpoints, learning_rates)
    places = [place for place, content in enumerate(contents) if isinstance(content, (str, Path))]
    found = dict(zip(places, from_files(model, [Path(contents[place]) for place in places]), strict=True))
    refuse_same_tensors({place: content for place, content in enumerate(contents) if place not in found})
    request = Request(None, 0, {"": demands(model)}, layouts(), [])
    for place, content in enumerate(contents):
        if place not in found:
            found[place] = from_memory(f"checkpoint {place + 1}", content, request)
    return [
        Snapshot(**{**found[place].__dict__, "learning_rate": found[place].recorded_rate if rate is None else rate})
        for place, rate in enumerate(rates)
    ]


def own_snapshots(model: nn.Module, paths: Sequence[Path]) -> list[Snapshot]:
    """`snapshots` of files that this very process has just written; of anybody else's, give `snapshots` the paths.

    Raises:
        CheckpointError: as `snapshots`.
    """
    return snapshots(model, [torch.load(path, map_location="cpu", weights_only=True) for path in paths])


def with_rates(checkpoints: Sequence[Any], learning_rates: Sequence[float] | None) -> tuple[list[Any], list[float | None]]:
    """Each checkpoint without its learning rate, and the rates that were given.

    Raises:
        CheckpointError: as many rates as checkpoints are needed, each a finite number of at least 0, given once.
    """
    paired = [isinstance(entry, (tuple, list)) and len(entry) == 2 for entry in checkpoints]
    contents = [entry[0] if pair else entry for entry, pair in zip(checkpoints, paired, strict=True)]
    given: list[Any] = [entry[1] if pair else None for entry, pair in zip(checkpoints, paired, strict=True)]
    if learning_rates is not None:
        if any(paired):
            raise CheckpointError(
                f"Checkpoint {paired.index(True) + 1} comes with a learning rate, and learning_rates are given too; give them in one way."
            )
        given = list(learning_rates)
        if len(given) != len(contents):
            raise CheckpointError(f"{len(given)} learning rates were given for {len(contents)} checkpoints; give one each.")
    return contents, [None if rate is None else checked_rate(place, rate) for place, rate in enumerate(given, start=1)]


def checked_rate(place: int, rate: Any) -> float:
    number = rate.item() if isinstance(rate, np.generic) or (isinstance(rate, Tensor) and rate.numel() == 1) else rate
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number) or number < 0:
        raise CheckpointError(
            f"The learning rate of checkpoint {place} is {shown(rate)}; give a finite number of at least 0, the rate it was trained at."
        )
    return float(number)


def from_files(model: nn.Module, paths: Sequence[Path]) -> list[Snapshot]:
    """The files' weights and what they record, by way of the limited child process.

    Raises:
        CheckpointError: the first refusal.
    """
    if not paths:
        return []
    with tempfile.TemporaryDirectory(prefix="tracin-") as folder:
        taken = []
        for outcome in intake_folder(paths, Path(folder), model):
            if isinstance(outcome, CheckpointError):
                raise outcome
            stored = safetensors.torch.load_file(Path(folder) / f"{outcome.digest}.safetensors")
            weights = {name: value.clone() for name, value in stored.items()}
            rate = outcome.learning_rate
            taken.append(Snapshot(outcome.source, weights, rate, rate, outcome.epoch, outcome.arguments, outcome.optimizer))
    return taken


def from_memory(name: str, content: Any, request: Request) -> Snapshot:
    """A dictionary's weights and what it records.

    Raises:
        CheckpointError: it is none, or its weights are not the model's.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"'{name}' is of type {type(content).__name__}; give a state dict, a path, or a pair of one of them and its learning rate."
        )
    content = dict(content)
    found, _ = weights_of(name, content, request)
    on_cpu = {key: value.detach().cpu() for key, value in found.items()}
    weights = {key: value.clone() for key, value in canonical(name, on_cpu, request.models[""], None).items()}
    optimizers, arguments = optimizers_of(content), first_of(content, ARGUMENT_KEYS)
    rate, known = learning_rate(optimizers), plain(arguments) if isinstance(arguments, dict) else {}
    recorded = known if isinstance(known, dict) else {}
    return Snapshot(name, weights, rate, rate, recorded_epoch(content), recorded, optimizer_name(optimizers))


def refuse_same_tensors(contents: Mapping[int, Any]) -> None:
    """Raises CheckpointError where two state dicts are the same memory, as `model.state_dict()` is again and again."""
    seen: dict[frozenset[int], int] = {}
    for place, content in contents.items():
        storages = frozenset(
            value.untyped_storage().data_ptr() for value in tensors_in(content) if value.layout == torch.strided and value.numel()
        )
        if storages and storages in seen:
            raise CheckpointError(
                f"Checkpoints {seen[storages] + 1} and {place + 1} are the same tensors, as model.state_dict() gives them while training "
                f"goes on; keep copies: copy.deepcopy(model.state_dict())."
            )
        seen[storages] = place


def tensors_in(content: Any, depth: int = 0) -> list[Tensor]:
    """The tensors of a dictionary and of those in it."""
    if isinstance(content, Tensor):
        return [content]
    inner = content.values() if isinstance(content, Mapping) and depth < 3 else ()
    return [tensor for value in inner for tensor in tensors_in(value, depth + 1)]


# ---- samples ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gathered:
    """The samples of one side: what the model takes, and a table with id, target and what else is known of each."""

    inputs: Samples
    samples: pd.DataFrame

    @property
    def count(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> Tensor:
        """The labels of classes, as the engine takes them."""
        return torch.from_numpy(self.samples["label"].to_numpy(dtype=np.int64, copy=True))

    def digest(self) -> str:
        """Of the inputs' bytes."""
        seal = hashlib.sha256()
        for tensor in tensors_of(self.inputs):
            seal.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            seal.update(bytes_of(tensor.detach().cpu().contiguous()))
        return seal.hexdigest()


def side_of(name: str, given: Any, target: Sequence[str]) -> Gathered:
    """The samples that were given in one of the accepted forms (`FORMS`), in their order.

    Args:
        name: train or test; samples without ids are called by it and their number.
        target: names of the column of targets in a table of samples, the first that is there counts.

    Raises:
        DataError: another form, numbers of samples that do not match, an id twice, or a value that is no number; names the sample.
    """
    if isinstance(given, Dataset):
        inputs, targets, ids, others = items_of(name, given)
    elif isinstance(given, (tuple, list)) and len(given) in (2, 3):
        inputs, targets, ids, others = parts_of(name, given, target)
    else:
        told = f"{len(given)} parts" if isinstance(given, (tuple, list)) else f"a {type(given).__name__}"
        raise DataError(f"The {name} data are {told}; give {FORMS}.")
    tensors = tensors_of(inputs)
    counts = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors}
    if counts != {len(targets)}:
        told = " and ".join(str(count) for count in sorted(counts)) or "no"
        raise DataError(f"The {name} inputs hold {told} samples, but there are {len(targets)} targets; give one target per sample.")
    if not len(targets):
        raise DataError(f"The {name} data hold no sample; give at least one.")
    names = [f"{name}{row}" for row in range(len(targets))] if ids is None else [str(one) for one in ids]
    if len(names) != len(targets):
        raise DataError(f"{len(names)} ids were given for {len(targets)} {name} samples; give one each.")
    names = checked_ids(names, f"the {name} data")
    refuse_infinite(tensors, names)
    samples = pd.DataFrame({"id": pd.Series(names, dtype="str"), "target": targets})
    for column in others.columns.difference(samples.columns, sort=False):
        samples[column] = others[column].to_numpy()
    return Gathered(inputs, samples)


def parts_of(name: str, given: Sequence[Any], target: Sequence[str]) -> tuple[Samples, Values, Any, pd.DataFrame]:
    """Inputs, targets, ids (or None) and further columns of (x, y), (x, y, ids) or (table, x)."""
    if not isinstance(given[0], pd.DataFrame):
        x, y, *ids = given
        return inputs_of(name, x), targets_of(name, y), ids[0] if ids else None, pd.DataFrame()
    if len(given) != 2:
        raise DataError(f"The {name} data are a table and {len(given) - 1} more parts; give (a DataFrame of samples, x).")
    table = given[0].reset_index(drop=True)
    column = next((known for known in target if known in table), None)
    if column is None:
        there = ", ".join(shown(known) for known in table.columns[:8])
        raise DataError(f"The {name} table has no column {' or '.join(target)} (it has {there or 'none'}); add the targets to it.")
    return inputs_of(name, given[1]), targets_of(name, table[column]), table.get("id"), table


def items_of(name: str, given: Dataset[Any]) -> tuple[Samples, Values, Any, pd.DataFrame]:
    """The same of a data set's items, put together; an attribute `ids` names them."""
    if isinstance(given, IterableDataset) or not hasattr(given, "__len__"):
        raise DataError(f"The {name} data are a {type(given).__name__}, which has no len(); give {FORMS}.")
    items = [given[row] for row in range(len(given))]
    for row, item in enumerate(items):
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(f"Item {row} of the {name} data is a {type(item).__name__}, not (input, target); give {FORMS}.")
    if not items:
        raise DataError(f"The {name} data hold no sample; give at least one.")
    parts = [torch.as_tensor(item[0]) for item in items]
    odd = next((row for row, part in enumerate(parts) if part.shape != parts[0].shape), None)
    if odd is not None:
        shape, first = list(parts[odd].shape), list(parts[0].shape)
        raise DataError(f"Item {odd} of the {name} data has shape {shape}, but the first has {first}; give inputs of one shape.")
    targets = [target.item() if isinstance(target, (Tensor, np.ndarray)) and target.size else target for _, target in items]
    return torch.stack(parts), targets_of(name, targets), getattr(given, "ids", None), pd.DataFrame()


def inputs_of(name: str, given: Any) -> Samples:
    """Tensors as the engine takes them: one, or a tuple or dictionary of them for a model of several inputs."""

    def one(value: Any) -> Tensor:
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            return torch.from_numpy(value)
        if not isinstance(value, Tensor):
            raise DataError(
                f"The {name} inputs are a {type(value).__name__}; give a tensor or array whose first axis is the samples, or a tuple or "
                f"dictionary of them for a model that takes several."
            )
        return value

    if isinstance(given, Mapping) and given:
        return {key: one(value) for key, value in given.items()}
    return tuple(one(value) for value in given) if isinstance(given, tuple) and given else one(given)


def targets_of(name: str, given: Any) -> Values:
    """One target per sample."""
    values = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if values.ndim != 1:
        raise DataError(f"The {name} targets have shape {values.shape}; give one number or text per sample.")
    return np.asarray(values)


def refuse_infinite(tensors: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raises UnreadableSampleError for the first sample with a value that is no number."""
    for tensor in tensors:
        finite = torch.isfinite(tensor).reshape(len(names), -1)
        if not bool(finite.all()):
            row = int((~finite.all(1)).nonzero()[0])
            place = int((~finite[row]).nonzero()[0])
            value = float(tensor[row].reshape(-1)[place])
            at = [int(axis) for axis in np.unravel_index(place, tuple(tensor.shape[1:]) or (1,))]
            raise UnreadableSampleError(
                f"The sample '{shown(names[row])}' holds {value} at {at}, which is no number; mend the value, or leave the sample out."
            )


# ---- kernels ----------------------------------------------------------------------------------------------------------------


def load(model: nn.Module, snapshot: Snapshot) -> None:
    """The model has these weights; batch counters stay as they are."""
    if {name: list(value.shape) for name, value in snapshot.weights.items()} != expected_shapes(model):
        raise CheckpointError(f"'{snapshot.name}' does not fit the model any more; build TracIn again.")
    model.load_state_dict(snapshot.weights, strict=False)


def probe(model: nn.Module, name: str, inputs: Samples) -> tuple[int, ...]:
    """The shape of one sample's outputs, from the first two samples.

    Raises:
        DataError: the model cannot take them.
        ModelError: as `model_outputs`.
    """
    few = first_samples(inputs, 2)
    shapes = " and ".join(str(list(tensor.shape[1:])) for tensor in tensors_of(few))
    try:
        return tuple(model_outputs(model, few).shape[1:])
    except (RuntimeError, ValueError, TypeError, IndexError) as failure:
        if is_out_of_memory(failure):
            raise
        reason = shown(str(failure).strip().split("\n")[0])
        raise DataError(
            f"The model cannot take the {name} samples, of shape {shapes} ({reason}); give them as its forward() takes them, samples first."
        ) from failure


def first_samples(inputs: Samples, count: int) -> Samples:
    if isinstance(inputs, Tensor):
        return inputs[:count]
    if isinstance(inputs, dict):
        return {key: tensor[:count] for key, tensor in inputs.items()}
    return tuple(tensor[:count] for tensor in inputs)


@dataclass(frozen=True)
class KernelSettings:
    """Whose gradients a kernel holds products of, and how it is kept and computed."""

    cotangent: Cotangent
    groups: dict[str, tuple[str, ...]]
    batch_size: int


def kernel_of(model: nn.Module, settings: KernelSettings, left: Gathered, right: Gathered | None = None) -> Tensor:
    """`[L, n, m]` at the model's present weights; None: the left side against itself."""
    shared: dict[str, Any] = {"groups": settings.groups, "batch_size": settings.batch_size}
    others = None if right is None else right.inputs
    if settings.cotangent == "label_logit":
        labels = None if right is None else right.labels
        return logit_kernel_by_layer(model, left.inputs, left.labels, others, labels, **shared)
    compute = output_kernel_by_layer if settings.cotangent == "outputs" else tangent_kernel_by_layer
    return compute(model, left.inputs, others, **shared)


def kernels(
    model: nn.Module, taken: Sequence[Snapshot], settings: KernelSettings, left: Gathered, right: Gathered | None, tell: Tell
) -> Values:
    """`[C, L, n, m]`: `kernel_of` at every checkpoint. `tell` is called after each."""
    return at_each(model, taken, lambda: kernel_of(model, settings, left, right), tell)


def features_of(
    model: nn.Module, snapshot: Snapshot, settings: KernelSettings, train: Gathered, test: Gathered
) -> tuple[Values, Values] | None:
    """K_h[i, j] = h_i . h_j of what enters the linear layer that gives the model's outputs, a 1 appended where it has a bias: [n, n] and
    [m, n]; None: no linear layer gives them.
    """
    load(model, snapshot)
    own, other = (entering(model, side.inputs, settings.batch_size) for side in (train, test))
    return None if own is None or other is None else (own @ own.T, other @ own.T)


def entering(model: nn.Module, inputs: Samples, batch_size: int) -> Values | None:
    """h of each sample, [n, q], in float64; None where the outputs of the model are not those of a linear layer as they are."""
    newest: list[tuple[Tensor, Tensor]] = []
    found: list[Tensor] = []

    def called(layer: nn.Module, given: tuple[Tensor, ...], told: Tensor) -> None:
        ones = given[0].new_ones((*given[0].shape[:-1], int(layer.bias is not None)))
        newest[:] = [(torch.cat([given[0], ones], -1), told)]

    def ended(_: nn.Module, __: Any, outputs: Any) -> None:
        if newest and outputs is newest[0][1] and outputs.ndim == 2:
            found.append(newest[0][0].detach().cpu().double())

    hooks = [layer.register_forward_hook(called) for layer in model.modules() if isinstance(layer, nn.Linear)]
    hooks.append(model.register_forward_hook(ended))
    try:
        count = len(model_outputs(model, inputs, batch_size))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(found).numpy() if sum(map(len, found)) == count else None


def outputs(model: nn.Module, taken: Sequence[Snapshot], settings: KernelSettings, side: Gathered) -> Values:
    """`[C, n]`, or `[C, n, k]` of a model with k outputs."""
    found = at_each(model, taken, lambda: model_outputs(model, side.inputs, settings.batch_size), lambda: None)
    return found.reshape(found.shape[:2]) if found[0, 0].size == 1 else found


def at_each(model: nn.Module, taken: Sequence[Snapshot], compute: Callable[[], Tensor], tell: Tell) -> Values:
    """What is computed at each checkpoint, on the CPU, one below the other.

    Raises:
        ModelError: names the checkpoint.
    """
    found: Values | None = None
    for place, snapshot in enumerate(taken):
        load(model, snapshot)
        try:
            values = compute().detach().cpu().numpy()
        except ModelError as failure:
            raise type(failure)(f"At '{shown(snapshot.name)}': {failure}") from failure
        if found is None:
            found = np.empty((len(taken), *values.shape), dtype=values.dtype)
        found[place] = values
        tell()
    return np.empty(0) if found is None else found
