"""The exact tangent kernel: inner products of per-sample output gradients.

    K[i, j] = < c_i . df(x_i)/dtheta , c_j . df(x_j)/dtheta >

Every later score is algebra on it. `gradients` takes the gradients; here they meet, batch by batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from tracin_core.engine.batches import Samples, Side, borrowed, checked_outputs, device_of
from tracin_core.engine.gradients import Gradients, Held, Room, norms, products
from tracin_core.engine.memory import MemoryEstimate, Tiling, attempt, default_budget, enough_memory, plan_tiling, smaller_tile
from tracin_core.engine.preconditioning import Precondition
from tracin_core.errors import UnknownParameterError


def tangent_kernel(
    model: nn.Module,
    left: Samples,
    right: Samples | None = None,
    *,
    left_cotangent: Tensor | None = None,
    right_cotangent: Tensor | None = None,
    parameters: Sequence[str] | None = None,
    precondition: Precondition | None = None,
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
        precondition: D in g_i . (D g_j): a diagonal (or Centred) by the name of its parameter and in its shape, or a KroneckerFactor by
            the path of its layer; what has none is taken as it is.
        batch_size: samples per backward pass; it may change the last bits of the result. An accelerator wants some hundreds.
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
    groups: Mapping[str, Sequence[str]] | None = None,
    precondition: Precondition | None = None,
    batch_size: int = 32,
    memory_budget: int | None = None,
) -> Tensor:
    """`[L, n, m]`: the summands of `tangent_kernel`, one per layer group, in one pass over the samples.

    Group l is the l-th of `groups`, by default of `layer_groups(model)`; with `parameters`, of the groups that hold one of them.
    """
    names = set(selected(model, parameters))
    wanted = layer_groups(model) if groups is None else groups
    strangers = sorted({name for group in wanted.values() for name in group} - set(dict(model.named_parameters())))
    if strangers:
        raise UnknownParameterError(f"The model has no parameter '{strangers[0]}' to group; see layer_groups(model).")
    chosen = tuple(tuple(name for name in group if name in names) for group in wanted.values())
    engine = Engine(model, tuple(group for group in chosen if group), batch_size, memory_budget, precondition)
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


def memory_estimate(
    model: nn.Module,
    left: Samples,
    right: Samples | None = None,
    *,
    left_cotangent: Tensor | None = None,
    right_cotangent: Tensor | None = None,
    parameters: Sequence[str] | None = None,
    precondition: Precondition | None = None,
    batch_size: int = 32,
    memory_budget: int | None = None,
) -> MemoryEstimate:
    """What `tangent_kernel` with these arguments will take, from the sizes that two samples show."""
    engine = Engine(model, (selected(model, parameters),), batch_size, memory_budget, precondition)
    return engine.estimate(left, right, (left_cotangent, right_cotangent))


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


def kernel_groups(model: nn.Module, *, cells: int, budget: int) -> dict[str, tuple[str, ...]]:
    """The layer groups that a kernel of this many cells is kept by: every layer if that fits the budget in bytes, else two.

    The two are `last`, the last layer, which representer points and the last-layer shortcut need, and `rest`.
    """
    groups = layer_groups(model)
    size = max((parameter.element_size() for parameter in model.parameters()), default=4)
    if len(groups) <= 2 or len(groups) * cells * size <= budget:
        return groups
    *rest, last = groups.values()
    return {"rest": tuple(name for group in rest for name in group), "last": last}


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
        precondition: see `tangent_kernel`.
    """

    model: nn.Module
    groups: tuple[tuple[str, ...], ...]
    batch_size: int
    memory_budget: int | None
    precondition: Precondition | None = None
    gradients: Gradients = field(init=False)

    def __post_init__(self) -> None:
        self.names = tuple(name for group in self.groups for name in group)
        self.gradients = Gradients(self.model, self.names, self.precondition)

    def kernel(self, left: Samples, right: Samples | None, cotangents: tuple[Tensor | None, Tensor | None]) -> Tensor:
        """`[groups, n, m]` products."""
        rows, columns = self._sides(left, right, cotangents)
        with borrowed(self.model, self.names), enough_memory(self.batch_size):
            kernel = self.gradients.repeated(lambda: self._kernel(rows, columns))
            if not bool(torch.isfinite(kernel).all()):
                self.gradients.blame(kernel, rows, rows if columns is None else columns)
        return kernel

    def estimate(self, left: Samples, right: Samples | None, cotangents: tuple[Tensor | None, Tensor | None]) -> MemoryEstimate:
        """What `kernel` will take."""
        rows, columns = self._sides(left, right, cotangents)
        if not rows.count:
            return MemoryEstimate(0, 0, 0, 0)
        few = slice(0, min(2, rows.count))
        with borrowed(self.model, self.names):

            def measure() -> tuple[int, Tiling]:
                self.gradients.probe(rows)
                return self.gradients.batch_bytes(rows, few), self._tiling(rows, columns, few)

            bytes_, plan = self.gradients.repeated(measure)
        kernel = self._empty(rows.count, rows.count if columns is None else columns.count, device="meta").nbytes
        return MemoryEstimate(kernel, plan.held_bytes, bytes_ * self.batch_size // few.stop, plan.differentiated)

    def _sides(
        self, left: Samples, right: Samples | None, cotangents: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Side, Side | None]:
        """Rows and columns, the latter None for the rows themselves; the gradients know how many products are to come."""
        rows = Side("left", left, cotangents[0], self.batch_size)
        if right is None and cotangents[1] is None:
            self.gradients.plan = (rows.count, 0, rows.count**2 // 2 + 1)
            return rows, None
        columns = Side("right", left if right is None else right, cotangents[1], self.batch_size)
        self.gradients.plan = (rows.count, columns.count, rows.count * columns.count)
        return rows, columns

    def norms(self, samples: Samples, cotangent: Tensor | None) -> Tensor:
        """`[n]` squared norms, all groups together."""
        side = Side("samples", samples, cotangent, self.batch_size)
        self.gradients.plan = (side.count, 0, side.count)
        with borrowed(self.model, self.names), enough_memory(self.batch_size):
            norms = self.gradients.repeated(lambda: self._norms(side))
            if not bool(torch.isfinite(norms).all()):
                self.gradients.blame(norms[None, :, None], side, side)
        return norms

    def _empty(self, *shape: int, device: str | None = None) -> Tensor:
        first = self.gradients.parameters[self.names[0]]
        return torch.zeros(len(self.groups), *shape, dtype=first.dtype, device=device or first.device)

    def _kernel(self, rows: Side, columns: Side | None) -> Tensor:
        """Blocks of unit x unit. Which of them are in memory together depends on the budget; their sums do not."""
        kernel = self._empty(rows.count, rows.count if columns is None else columns.count)
        if kernel.numel() == 0:
            return kernel
        for side in [rows] if columns is None else [rows, columns]:
            self.gradients.probe(side)
        plan = self._tiling(rows, columns, rows.batches[0])
        if columns is None:
            self._fill(kernel, rows, rows, plan)
            upper = torch.triu(kernel)
            kernel.copy_(upper + torch.triu(kernel, 1).transpose(1, 2))
        elif plan.keep_rows:
            self._fill(kernel, rows, columns, plan)
        else:
            self._fill(kernel, columns, rows, plan)
        return kernel

    def _tiling(self, rows: Side, columns: Side | None, first: slice) -> Tiling:
        budget = default_budget(device_of(self.model)) if self.memory_budget is None else self.memory_budget
        sample_bytes = self.gradients.sample_bytes(rows, first)
        others = None if columns is None else columns.count
        return plan_tiling(rows.count, others, batch_size=self.batch_size, sample_bytes=sample_bytes, budget=budget)

    def _fill(self, kernel: Tensor, kept: Side, streamed: Side, plan: Tiling) -> None:
        """Tile after tile of the kept side's units, past which the other side is streamed.

        Where memory runs out, the stripe is done again with half as large a tile.
        """
        units = kept.units(plan.unit)
        start, tile = 0, min(plan.tile, len(units))
        rooms: list[Room] = []
        while start < len(units):
            rooms += [{} for _ in range(tile + 1 - len(rooms))]
            places = range(len(units))[start : start + tile]
            problem = attempt(partial(self._stripe, kernel, kept, streamed, plan, places, rooms))
            if problem is None:
                start += tile
                continue
            rooms.clear()
            tile = smaller_tile(tile, problem, device_of(self.model))

    def _stripe(self, kernel: Tensor, kept: Side, streamed: Side, plan: Tiling, places: range, rooms: list[Room]) -> None:
        """The products of some of the kept side's units with all others; of one side with itself, with those that follow."""
        mirrored = kept is streamed
        ours, theirs = kept.units(plan.unit), streamed.units(plan.unit)
        held = {place: self.gradients.hold(kept, ours[place], room) for place, room in zip(places, rooms, strict=False)}
        for there in range(places[0] if mirrored else 0, len(theirs)):
            own = mirrored and there in held
            passing = held[there] if own else self.gradients.hold(streamed, theirs[there], rooms[-1])
            for here in places:
                if mirrored and here > there:
                    continue  # the mirror image of a block that is there
                if plan.keep_rows:
                    self._block(kernel[:, span(ours[here]), span(theirs[there])], held[here], passing)
                else:
                    self._block(kernel[:, span(theirs[there]), span(ours[here])], passing, held[here])

    def _block(self, block: Tensor, left: dict[str, Held], right: dict[str, Held]) -> None:
        """Parameters are added in the model's order, in float64 where the device has it."""
        wide = torch.float64 if block.device.type != "mps" else block.dtype
        for place, group in enumerate(self.groups):
            total = torch.zeros(block.shape[1:], dtype=wide, device=block.device)
            for name in group:
                if name in left and name in right:
                    total += products(left[name], right[name], block.new_zeros(block.shape[1:]))
            block[place] = total

    def _norms(self, side: Side) -> Tensor:
        norms_ = self._empty(side.count)[0]
        if side.count:
            self.gradients.probe(side)
        room: Room = {}
        for batch in side.batches:
            for held in self.gradients.hold(side, [batch], room).values():
                norms_[batch] += norms(held, norms_.new_zeros(batch.stop - batch.start))
        return norms_


def span(batches: Sequence[slice]) -> slice:
    """The samples of consecutive batches."""
    return slice(batches[0].start, batches[-1].stop)
