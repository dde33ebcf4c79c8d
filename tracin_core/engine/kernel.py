"""The exact tangent kernel: inner products of per-sample output gradients.

    K[i, j] = < c_i . df(x_i)/dtheta , c_j . df(x_j)/dtheta >

Every later score is algebra on it. `gradients` takes the gradients; here they meet, batch by batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psutil
import torch
from torch import Tensor, nn

from tracin_core.engine.batches import Samples, Side, borrowed, checked_outputs, device_of
from tracin_core.engine.gradients import Gradients, Held, nbytes
from tracin_core.engine.layers import formed_norms
from tracin_core.errors import UnknownParameterError


def tangent_kernel(
    model: nn.Module,
    left: Samples,
    right: Samples | None = None,
    *,
    left_cotangent: Tensor | None = None,
    right_cotangent: Tensor | None = None,
    parameters: Sequence[str] | None = None,
    precondition: Mapping[str, Tensor] | None = None,
    batch_size: int = 32,
    memory_budget: int | None = None,
) -> Tensor:
    """`[n, m]`: K[i, j] = g_i . g_j with g = the gradient of (cotangent . output) with respect to the parameters.

    Args:
        model: left as it was found: mode, requires_grad, hooks and gradients.
        left: samples; a Tensor, or a tuple / dict of Tensors that the model takes, first axis = samples.
        right: samples; None for `left` against itself, then K is symmetric to the last bit.
        left_cotangent: `[n, *outputs]`; None if the model gives one number per sample.
        right_cotangent: `[m, *outputs]`.
        parameters: names or prefixes of names; None for every trainable parameter. Frozen parameters are left out.
        precondition: positive factors D of the shape of the parameters they are named after: g_i . (D g_j).
        batch_size: samples per backward pass; it may change the last bits of the result.
        memory_budget: bytes of gradients kept at once; None for a quarter of the free memory. It never changes a bit.

    Raises:
        OutputShapeError, BatchCoupledModelError, NonFiniteError, UnknownParameterError, DataError.
    """
    names = selected(model, parameters)
    cotangents = (left_cotangent, right_cotangent)
    engine = Engine(model, (names,), batch_size, memory_budget, precondition)
    return engine.kernel(left, right, cotangents)[0]


def tangent_kernel_by_layer(
    model: nn.Module,
    left: Samples,
    right: Samples | None = None,
    *,
    left_cotangent: Tensor | None = None,
    right_cotangent: Tensor | None = None,
    parameters: Sequence[str] | None = None,
    precondition: Mapping[str, Tensor] | None = None,
    batch_size: int = 32,
    memory_budget: int | None = None,
) -> Tensor:
    """`[L, n, m]`: the summands of `tangent_kernel`, one per layer group, in one pass over the samples.

    Group l is the l-th of `layer_groups(model)`; with `parameters`, of the groups that hold one of them.
    """
    names = set(selected(model, parameters))
    groups = tuple(tuple(name for name in group if name in names) for group in layer_groups(model).values())
    engine = Engine(model, tuple(group for group in groups if group), batch_size, memory_budget, precondition)
    return engine.kernel(left, right, (left_cotangent, right_cotangent))


def tangent_norms(
    model: nn.Module,
    samples: Samples,
    *,
    cotangent: Tensor | None = None,
    parameters: Sequence[str] | None = None,
    batch_size: int = 32,
    memory_budget: int | None = None,
) -> Tensor:
    """`[n]`: squared norms of the gradients, the diagonal of `tangent_kernel` without its other entries."""
    engine = Engine(model, (selected(model, parameters),), batch_size, memory_budget)
    return engine.norms(samples, cotangent)


def model_outputs(model: nn.Module, inputs: Samples, batch_size: int = 32) -> Tensor:
    """`[n, *outputs]`: the model's outputs in eval mode.

    Raises:
        NonFiniteError: names the first sample whose output is not finite.
    """
    side = Side("inputs", inputs, None, batch_size)
    with borrowed(model, ()), torch.no_grad():
        outputs = [checked_outputs(model, side, batch) for batch in side.batches]
        return torch.cat(outputs) if outputs else torch.empty(0, device=device_of(model))


def layer_groups(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Names of the trainable parameters by the module that owns them, in the model's order.

    A parameter that belongs to the model itself forms a group of its own name. A tied parameter counts once, where it
    comes first.
    """
    groups: dict[str, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = name.rpartition(".")[0] or name
            groups[group] = (*groups.get(group, ()), name)
    return groups


def coverage(model: nn.Module, inputs: Samples | None = None) -> list[tuple[str, str]]:
    """How each parameter is served: `rule: <layer type>`, `torch.func`, `one at a time`, or `frozen`.

    Without inputs this is what the structure promises; with inputs, what a run on the first of them did.
    """
    names = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    gradients = Gradients(model, names)
    if inputs is None:
        gradients.vmap_works = not any(isinstance(module, nn.RNNBase) for module in model.modules())
    elif names:
        gradients.rehearse(inputs)
    return [(name, gradients.path_of(name)) for name, _ in model.named_parameters()]


def selected(model: nn.Module, parameters: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the trainable parameters that `parameters` names, in the model's order.

    Raises:
        UnknownParameterError: a name fits nothing, or only frozen parameters are left.
    """
    first = {id(parameter): name for name, parameter in reversed(list(model.named_parameters(remove_duplicate=False)))}
    aliases = {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    wanted = set(aliases.values())
    if parameters is not None:
        wanted = set()
        for asked in parameters:
            found = {to for name, to in aliases.items() if name == asked or name.startswith(asked.rstrip(".") + ".")}
            if not found:
                known = ", ".join(list(aliases)[:6])
                raise UnknownParameterError(
                    f"The model has no parameter '{asked}'; it has {known} and {max(0, len(aliases) - 6)} more. "
                    f"Give a full name or the path of a module."
                )
            wanted |= found
    names = tuple(name for name, parameter in model.named_parameters() if name in wanted and parameter.requires_grad)
    if not names:
        raise UnknownParameterError(
            f"None of the {len(wanted)} chosen parameters is trainable; set requires_grad on those whose gradients count."
        )
    return names


@dataclass
class Engine:
    """Products of the gradients of groups of parameters.

    Attributes:
        model: in any state; borrowed for each computation.
        groups: names of parameters, one tuple per layer of the result.
        batch_size: samples per backward pass.
        memory_budget: bytes of gradients kept at once.
        precondition: factors by parameter name.
    """

    model: nn.Module
    groups: tuple[tuple[str, ...], ...]
    batch_size: int
    memory_budget: int | None
    precondition: Mapping[str, Tensor] | None = None
    gradients: Gradients = field(init=False)

    def __post_init__(self) -> None:
        self.names = tuple(name for group in self.groups for name in group)
        self.gradients = Gradients(self.model, self.names, self.precondition)

    def kernel(self, left: Samples, right: Samples | None, cotangents: tuple[Tensor | None, Tensor | None]) -> Tensor:
        """`[groups, n, m]` products."""
        rows = Side("left", left, cotangents[0], self.batch_size)
        mirrored = right is None and cotangents[1] is None
        other = rows if mirrored else Side("right", left if right is None else right, cotangents[1], self.batch_size)
        pairs = rows.count * other.count
        self.gradients.plan = (rows.count, 0, pairs // 2 + 1) if mirrored else (rows.count, other.count, pairs)
        with borrowed(self.model, self.names):
            kernel = self.gradients.repeated(lambda: self._kernel(rows, None if mirrored else other))
            if not bool(torch.isfinite(kernel).all()):
                self.gradients.blame(kernel, rows, other)
        return kernel

    def norms(self, samples: Samples, cotangent: Tensor | None) -> Tensor:
        """`[n]` squared norms, all groups together."""
        side = Side("samples", samples, cotangent, self.batch_size)
        self.gradients.plan = (side.count, 0, side.count)
        with borrowed(self.model, self.names):
            norms = self.gradients.repeated(lambda: self._norms(side))
            if not bool(torch.isfinite(norms).all()):
                self.gradients.blame(norms[None, :, None], side, side)
        return norms

    def _empty(self, *shape: int) -> Tensor:
        first = self.gradients.parameters[self.names[0]]
        return torch.zeros(len(self.groups), *shape, dtype=first.dtype, device=first.device)

    def _kernel(self, rows: Side, columns: Side | None) -> Tensor:
        """Blocks of batch x batch. Which of them are in memory together depends on the budget; their sums do not."""
        kernel = self._empty(rows.count, rows.count if columns is None else columns.count)
        if kernel.numel() == 0:
            return kernel
        for side in [rows] if columns is None else [rows, columns]:
            self.gradients.probe(side)
        first = self.gradients.hold(rows, rows.batches[0])
        tile = max(1, int(self._budget() // max(1, nbytes(first))))
        if columns is None:
            self._fill_mirrored(kernel, rows, first, tile)
        else:
            self._fill(kernel, rows, columns, first, tile)
        return kernel

    def _fill(self, kernel: Tensor, rows: Side, columns: Side, first: dict[str, Held], tile: int) -> None:
        """Keeps a tile of the side that makes for fewer gradients, and streams the other one past it."""
        n, m = rows.count, columns.count
        keep_rows = n + -(-len(rows.batches) // tile) * m <= m + -(-len(columns.batches) // tile) * n
        kept, streamed = (rows, columns) if keep_rows else (columns, rows)
        for start in range(0, len(kept.batches), tile):
            batches = kept.batches[start : start + tile]
            held = [self._or(first, rows, kept, batch) for batch in batches]
            for there in streamed.batches:
                passing = self._or(first, rows, streamed, there)
                for here, ours in zip(batches, held, strict=True):
                    if keep_rows:
                        self._block(kernel[:, here, there], ours, passing)
                    else:
                        self._block(kernel[:, there, here], passing, ours)

    def _or(self, first: dict[str, Held], rows: Side, side: Side, batch: slice) -> dict[str, Held]:
        """The gradients of a batch, taken from `first` where they are those."""
        return first if side is rows and batch.start == 0 else self.gradients.hold(side, batch)

    def _fill_mirrored(self, kernel: Tensor, side: Side, first: dict[str, Held], tile: int) -> None:
        """The blocks on and above the diagonal; the rest is their mirror image."""
        batches = side.batches
        for start in range(0, len(batches), tile):
            kept = batches[start : start + tile]
            held = [self._or(first, side, side, batch) for batch in kept]
            for place, there in enumerate(batches[start:]):
                passing = held[place] if place < len(kept) else self.gradients.hold(side, there)
                for here, ours in zip(kept[: place + 1], held, strict=False):
                    self._block(kernel[:, here, there], ours, passing)
        upper = torch.triu(kernel)
        kernel.copy_(upper + torch.triu(kernel, 1).transpose(1, 2))

    def _block(self, block: Tensor, left: dict[str, Held], right: dict[str, Held]) -> None:
        for place, group in enumerate(self.groups):
            for name in group:
                if name in left and name in right:
                    block[place] += self.gradients.products(name, left[name], right[name])

    def _norms(self, side: Side) -> Tensor:
        norms = self._empty(side.count)[0]
        if side.count:
            self.gradients.probe(side)
        for batch in side.batches:
            for held in self.gradients.hold(side, batch).values():
                norms[batch] += formed_norms(held) if isinstance(held, Tensor) else held.squared_norms()
        return norms

    def _budget(self) -> int:
        if self.memory_budget is not None:
            return self.memory_budget
        device = device_of(self.model)
        if device.type == "cuda":
            return torch.cuda.mem_get_info(device)[0] // 4
        return int(psutil.virtual_memory().available) // 4
