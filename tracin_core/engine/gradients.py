"""Exact gradients of single samples, from whole batches.

One backward pass per batch gives the output gradients of every layer; `layers` turns them into the gradients of single
samples. A rule is trusted only where the recorded graph proves that its layer's calls are all there is: each use of a
parameter must be a call that was seen, with the samples on its first axis. Every other parameter is differentiated by
`torch.func`, and one sample at a time where that cannot go. No parameter is left out.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import CheckpointError

from tracin_core.engine.attention import SeenAttention
from tracin_core.engine.batches import Samples, Side, borrowed, checked_outputs, device_of, forward, tensors_of
from tracin_core.engine.layers import (
    Factor,
    Formed,
    Path,
    cheaper_path,
    formed_inner,
    formed_products,
    joined,
    line_up,
    rule_for,
    total,
)
from tracin_core.engine.memory import is_out_of_memory
from tracin_core.engine.preconditioning import Precondition, Preconditioner
from tracin_core.errors import ModelError, NonFiniteError

Result = TypeVar("Result")


class Part(NamedTuple):
    """A factor of some of a unit's samples, on the Gram path."""

    rows: slice
    factor: Factor


Held = Tensor | list[Part]  # formed gradients `[n, entries]`, or factors
Room = dict[str, Tensor]  # memory for formed gradients, by parameter


@dataclass(frozen=True)
class Call:
    """One call of a layer: its input, where its output's gradient arrives, and that output's first axis."""

    layer: str
    inputs: Tensor
    edge: GradientEdge
    rows: int


class Hidden(Exception):
    """A signal inside the engine: a rule-served parameter turned out to be used where no call shows it."""

    def __init__(self, names: set[str]) -> None:
        super().__init__(", ".join(sorted(names)))
        self.names = names


@dataclass
class Gradients:
    """Per-sample gradients of chosen parameters, batch by batch, each on the path that suits it.

    Attributes:
        model: borrowed by the caller while gradients are taken.
        names: the parameters.
        precondition: see `tangent_kernel`.
        plan: samples left and right, and products of them, by which `paths` are chosen.
        vmap_works: False once `torch.func` has refused the model.
        owners: (module, own name) of each parameter that a rule serves; the others go through autograd.
        paths: the path of each parameter, chosen at its first batch.
        ready: a batch whose gradients were already taken.
    """

    model: nn.Module
    names: tuple[str, ...]
    precondition: Precondition | None = None
    plan: tuple[int, int, int] = field(default=(1, 1, 1), init=False)
    vmap_works: bool = field(default=True, init=False)
    owners: dict[str, tuple[str, str]] = field(init=False)
    paths: dict[str, Path] = field(default_factory=dict, init=False)
    ready: tuple[Side, slice, dict[str, Factor]] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.modules = dict(self.model.named_modules())
        self.parameters = dict(self.model.named_parameters())
        homes = Counter(id(p) for module in self.modules.values() for p in module.parameters(recurse=False))
        self.owners = {}
        for name in self.names:
            layer, _, own = name.rpartition(".")
            if rule_for(self.modules[layer]) is not None and homes[id(self.parameters[name])] == 1:
                self.owners[name] = (layer, own)
        self.preconditioner = Preconditioner(self.precondition, self.parameters, self.names) if self.precondition else None

    @property
    def functional(self) -> list[str]:
        return [name for name in self.names if name not in self.owners]

    def path_of(self, name: str) -> str:
        if name not in self.names:
            return "frozen"
        if name in self.owners:
            return f"rule: {type(self.modules[self.owners[name][0]]).__name__}"
        return "torch.func" if self.vmap_works else "one at a time"

    def rehearse(self, inputs: Samples) -> None:
        """Runs a few samples, so that `path_of` tells what was really done."""
        side = Side("inputs", inputs, None, 2)
        with borrowed(self.model, self.names):
            outputs = checked_outputs(self.model, side, side.batches[0])
            side.cotangent = torch.ones_like(outputs[:1]).expand(side.count, *outputs.shape[1:])

            def first() -> None:
                self.probe(side)
                self.factors(side, side.batches[0])

            self.repeated(first)

    def repeated(self, compute: Callable[[], Result]) -> Result:
        """`compute()`, again whenever a parameter turned out to need `torch.func`."""
        while True:
            try:
                return compute()
            except Hidden as found:
                self.owners = {name: owner for name, owner in self.owners.items() if name not in found.names}
                self.paths.clear()
                self.ready = None

    def hold(self, side: Side, batches: Sequence[slice], room: Room | None = None) -> dict[str, Held]:
        """What is kept of these consecutive batches, by parameter; formed gradients are written to `room`, if given."""
        start, count = batches[0].start, batches[-1].stop - batches[0].start
        room = {} if room is None else room
        formed: dict[str, Tensor] = {}
        parts: dict[str, list[Part]] = {}
        for batch in batches:
            here = slice(batch.start - start, batch.stop - start)
            factors = self.factors(side, batch)
            for name, factor in factors.items():
                if self._path(name, factor) == "gram":
                    parts.setdefault(name, []).append(Part(here, factor))
                    continue
                if name not in formed:
                    formed[name] = space(room, name, count, factor.cost().entries, self.parameters[name])
                    formed[name][: here.start] = 0
                factor.form(formed[name][here])
            for name in formed.keys() - factors.keys():
                formed[name][here] = 0  # a branch that none of these samples took
        return {**formed, **{name: merged(pieces) for name, pieces in parts.items()}}

    def factors(self, side: Side, rows: slice) -> dict[str, Factor]:
        """The gradients of one batch, not yet formed, in the preconditioner's coordinates."""
        if self.ready is not None and self.ready[0] is side and self.ready[1] == rows:
            factors, self.ready = self.ready[2], None
            return factors
        factors = {}
        if self.owners:
            factors |= self._by_rules(side, rows)
        if self.functional:
            factors |= self._by_autograd(side, rows)
        return self.preconditioner.applied(factors, rows.stop - rows.start) if self.preconditioner else factors

    def batch_bytes(self, side: Side, rows: slice) -> int:
        """What these samples' passes keep until their gradients are taken: activations, and the factors made from them."""
        activations: dict[int, int] = {}

        def seen(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            activations[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
            factors = self.factors(side, rows)
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.parameters.values()}
        kept = sum(size for place, size in activations.items() if place not in weights)
        return kept + sum(t.numel() * t.element_size() for factor in factors.values() for t in factor.tensors())

    def sample_bytes(self, side: Side, rows: slice) -> int:
        """What is kept of one sample, from a first batch, whose gradients the next call of `factors` for it returns."""
        factors = self.factors(side, rows)
        self.ready = (side, rows, factors)
        return sum(self._kept(name, factor) for name, factor in factors.items())

    def _kept(self, name: str, factor: Factor) -> int:
        tensors = factor.tensors()
        if self._path(name, factor) == "gram":
            return sum(tensor[:1].numel() * tensor.element_size() for tensor in tensors)
        return factor.cost().entries * self.parameters[name].element_size()

    def _path(self, name: str, factor: Factor) -> Path:
        """The parameter's path, chosen from shapes at its first batch."""
        if name not in self.paths:
            left, right, pairs = self.plan
            self.paths[name] = cheaper_path(factor.cost(), left=left, right=right, pairs=pairs)
        return self.paths[name]

    def _by_rules(self, side: Side, rows: slice) -> dict[str, Factor]:
        """Factors from one forward and one backward pass, which skips the gradients of the parameters."""
        outputs, calls = self._recorded(side, rows)
        reached = self._reached(outputs, calls, rows.stop - rows.start)
        cotangent = side.cotangent_of(rows, outputs)
        if not reached:
            return {}
        try:
            gradients = torch.autograd.grad(outputs, [call.edge for call in reached], cotangent)
        except CheckpointError:  # parts that are computed again on the way back are not computed in the pieces that were seen
            raise Hidden({name for name, (layer, _) in self.owners.items() if self._attends(layer)}) from None
        parts: dict[str, list[Factor]] = {}
        for call, gradient in zip(reached, gradients, strict=True):
            layer = self.modules[call.layer]
            rule = rule_for(layer)
            assert rule is not None  # owners hold only layers that have one
            for own, factor in rule(layer, call.inputs, gradient).items():
                name = f"{call.layer}.{own}" if call.layer else own
                if name in self.owners:
                    parts.setdefault(name, []).append(factor)
        return {name: total(factors) for name, factors in parts.items()}

    def probe(self, side: Side) -> None:
        """Looks at one sample alone: an axis that is 1 there and the batch's size in a batch is the axis of samples."""
        if self.owners and side.count > 1:
            outputs, calls = self._recorded(side, slice(0, 1))
            self._reached(outputs, calls, 1)

    def _recorded(self, side: Side, rows: slice) -> tuple[Tensor, list[Call]]:
        """The outputs of these rows, and every call of a layer that a rule serves."""
        calls: list[Call] = []
        paths = {layer for layer, _ in self.owners.values()}
        with ExitStack() as hooks:
            for path in paths:
                hook = recorder(path, calls)
                # First in line, so that hooks of the model's own, which may change the output, come after.
                handle = self.modules[path].register_forward_hook(hook, prepend=True, with_kwargs=True)
                hooks.callback(handle.remove)
            if any(self._attends(path) for path in paths):
                hooks.enter_context(SeenAttention(self.model, partial(note, calls)))
            outputs = checked_outputs(self.model, side, rows)
        return outputs, calls

    def _attends(self, layer: str) -> bool:
        """Whether the layer is an attention or its output projection."""
        return any(isinstance(self.modules[path], nn.MultiheadAttention) for path in (layer, layer.rpartition(".")[0]))

    def _reached(self, outputs: Tensor, calls: list[Call], count: int) -> list[Call]:
        """The calls that the outputs depend on.

        Raises:
            Hidden: for some parameter these calls are not all of its uses, or have no axis of samples in front.
        """
        nodes, uses = graph_of(outputs)
        reached = [call for call in calls if call.edge.node in nodes]
        seen = Counter(call.layer for call in reached)
        astray = {call.layer for call in reached if call.rows != count or call.inputs.shape[:1] != (count,)}
        hidden = {
            name for name, (layer, _) in self.owners.items() if layer in astray or uses[id(self.parameters[name])] != seen[layer]
        }
        if hidden:
            raise Hidden(hidden)
        return reached

    def _by_autograd(self, side: Side, rows: slice) -> dict[str, Factor]:
        """Gradients without a rule: all samples at once by `torch.func`, else one by one."""
        names = self.functional
        outputs = checked_outputs(self.model, side, rows)
        cotangent = side.cotangent_of(rows, outputs)
        samples = side.take(rows, device_of(self.model))
        if self.vmap_works:
            try:
                gradients = vectorised(self.model, {name: self.parameters[name] for name in names}, samples, cotangent)
                return {name: Formed(gradient.detach()) for name, gradient in gradients.items()}
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                self.vmap_works = False  # torch.func does not know this model's operations; the exact way is slower
        gradients = one_by_one(self.model, {name: self.parameters[name] for name in names}, samples, cotangent)
        return {name: Formed(gradient) for name, gradient in gradients.items()}

    def blame(self, kernel: Tensor, rows: Side, columns: Side) -> None:
        """Raises NonFiniteError for the first sample and parameter whose gradient is not finite."""
        bad = ~torch.isfinite(kernel).all(0)
        chosen = {name: self.parameters[name] for name in self.names}
        for side, per_sample in ((rows, bad.float().mean(1)), (columns, bad.float().mean(0))):
            for index in per_sample.argsort(descending=True).tolist()[:3]:
                row = slice(index, index + 1)
                cotangent = side.cotangent_of(row, checked_outputs(self.model, side, row))
                gradients = one_by_one(self.model, chosen, side.take(row, device_of(self.model)), cotangent)
                broken = next((name for name, g in gradients.items() if not bool(torch.isfinite(g).all())), None)
                if broken is not None:
                    raise NonFiniteError(
                        f"Sample {index} of '{side.name}' has a NaN or infinite gradient for parameter '{broken}'. "
                        f"Check that sample's values, or use an earlier checkpoint."
                    )
        where = bad.nonzero()[0].tolist()
        raise NonFiniteError(
            f"The product of samples {where} exceeds what {str(kernel.dtype).removeprefix('torch.')} can hold, though both "
            f"gradients are finite. Convert the model and the samples to float64."
        )


def recorder(path: str, calls: list[Call]) -> Any:
    """A forward hook that notes each call whose output has a gradient."""

    def hook(layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        given = [argument for argument in (*arguments, *named.values()) if argument is not None]
        if len(given) == 1 and isinstance(given[0], Tensor) and isinstance(output, Tensor):
            note(calls, path, given[0], output)  # a rule knows nothing of further arguments, such as the weights of a bag

    return hook


def note(calls: list[Call], path: str, inputs: Tensor, output: Tensor) -> None:
    """One more call, if its output has a gradient."""
    if output.requires_grad:
        # The edge stays that of the layer itself when a later operation (an in-place ReLU) overwrites the output.
        calls.append(Call(path, inputs.detach(), get_gradient_edge(output), output.shape[0] if output.dim() else 0))


def graph_of(outputs: Tensor) -> tuple[set[Node], Counter[int]]:
    """The operations behind the outputs, and how often each leaf (by id) enters one.

    Raises:
        ModelError: a part of the model runs where its graph cannot be seen, so its gradients would be lost.
    """
    nodes: set[Node] = set()
    uses: Counter[int] = Counter()
    waiting = [outputs.grad_fn] if outputs.grad_fn is not None else []
    while waiting:
        node = waiting.pop()
        if node in nodes:
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise ModelError(
                "The model uses torch.utils.checkpoint with use_reentrant=True, which hides its layers from autograd.grad; "
                "build it with use_reentrant=False, or without checkpointing."
            )
        nodes.add(node)
        for following, _ in node.next_functions:
            if following is None:
                continue
            if following.name() == "torch::autograd::AccumulateGrad":
                uses[id(cast(Any, following).variable)] += 1
            else:
                waiting.append(following)
    return nodes, uses


def vectorised(model: nn.Module, parameters: Mapping[str, Tensor], samples: Samples, cotangent: Tensor) -> dict[str, Tensor]:
    """`[n, *parameter]` gradients of (cotangent . output), by `torch.func`, each sample as a batch of one."""

    def response(weights: dict[str, Tensor], sample: Samples, direction: Tensor) -> Tensor:
        if isinstance(sample, dict):
            alone = functional_call(model, weights, (), {key: value[None] for key, value in sample.items()})
        else:
            alone = functional_call(model, weights, tuple(value[None] for value in tensors_of(sample)))
        return cast(Tensor, (alone[0] * direction).sum())

    weights = {name: parameter.detach() for name, parameter in parameters.items()}
    per_sample = vmap(grad(response), in_dims=(None, 0, 0), randomness="different")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # told by `coverage`, in plainer words
        return cast(dict[str, Tensor], per_sample(weights, samples, cotangent))


def one_by_one(model: nn.Module, parameters: Mapping[str, Tensor], samples: Samples, cotangent: Tensor) -> dict[str, Tensor]:
    """`[n, *parameter]` gradients of (cotangent . output), by one backward pass per sample."""
    side = Side("samples", samples, cotangent, 1)
    rows: list[tuple[Tensor, ...]] = []
    for row in side.batches:
        outputs = forward(model, side.take(row, cotangent.device))
        values = list(parameters.values())
        if outputs.requires_grad:
            gradients = torch.autograd.grad(outputs, values, cotangent[row], allow_unused=True, materialize_grads=True)
        else:
            gradients = tuple(torch.zeros_like(value) for value in values)
        rows.append(gradients)
    return {name: torch.stack(column) for name, column in zip(parameters, zip(*rows, strict=True), strict=True)}


def space(room: Room, name: str, count: int, entries: int, like: Tensor) -> Tensor:
    """`[count, entries]` of the room's memory: fresh memory costs more to get than a small gradient to compute."""
    if name not in room or len(room[name]) < count:
        room[name] = torch.empty(count, entries, dtype=like.dtype, device=like.device)
    return room[name][:count]


def merged(parts: Sequence[Part]) -> list[Part]:
    """The same gradients in as few parts as can be: adjacent ones that line up are one."""
    runs: list[list[Part]] = []
    for part in parts:
        last = runs[-1][-1] if runs else None
        if last is not None and last.rows.stop == part.rows.start and line_up(last.factor, part.factor):
            runs[-1].append(part)
        else:
            runs.append([part])
    return [Part(slice(run[0].rows.start, run[-1].rows.stop), joined([part.factor for part in run])) for run in runs]


def products(left: Held, right: Held, into: Tensor) -> Tensor:
    """The `[n, m]` inner products of one parameter's gradients, added to `into`."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return into.add_(formed_products(left, right))
    for here in cast(list[Part], left):
        for there in cast(list[Part], right):
            into[here.rows, there.rows] += here.factor.products(there.factor)
    return into


def norms(held: Held, into: Tensor) -> Tensor:
    """The `[n]` squared norms of one parameter's gradients, added to `into`."""
    if isinstance(held, Tensor):
        return into.add_(formed_inner(held, held))
    for part in held:
        into[part.rows] += part.factor.inner(part.factor)
    return into
