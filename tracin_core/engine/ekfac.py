"""Curvature of a model over samples, in a form that `precondition` takes: EKFAC per layer, and a diagonal for what has no matrix.

It approximates the second moment F = mean_n sum_c g_nc g_nc^T of gradients g_nc along cotangents c of the outputs. Along the roots of a
sample's own curvature (`fisher_roots`) that is the Fisher matrix, exactly as expected over the model's own labels; along derivatives of
the loss at the labels given, the empirical one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import psutil
import safetensors.torch
import torch
from torch import Tensor, nn

from tracin_core.engine.batches import Samples, Side, borrowed
from tracin_core.engine.checkpoints import is_whole, keep
from tracin_core.engine.gradients import Gradients
from tracin_core.engine.kernel import model_outputs, selected
from tracin_core.engine.layers import Factor, Outer
from tracin_core.engine.memory import enough_memory
from tracin_core.engine.preconditioning import KroneckerFactor, Precondition, in_parameter_order, own_name, rotated
from tracin_core.errors import CheckpointError, DataError, MachineError

Bases = dict[str, tuple[Tensor, Tensor]]
Outcome = Literal["softmax", "sigmoid", "number"]
Sides = Callable[[], Iterable[Side]]  # asked for twice: for the bases, and for what the gradients measure in them
OUTPUTS, INPUTS, EIGENVALUES = "/outputs", "/inputs", "/eigenvalues"  # of a layer or parameter, in a file
WORK: Final = 4  # times the largest basis: the sum, its eigenvectors, and what finding them takes


@dataclass(frozen=True)
class Curvature:
    """F', EKFAC's approximation of F, without any damping.

    Attributes:
        bases: (V, U) by the path of each layer, orthogonal, `[p, p]` and `[q, q]`.
        eigenvalues: of F': `[p, q]` by layer, and by name the diagonal of every other parameter, in its shape; float64, on the CPU.
    """

    bases: Bases
    eigenvalues: dict[str, Tensor]

    @property
    def mean(self) -> float:
        """Of all eigenvalues of the network: trace(F) by the number of parameters, which no choice of bases changes."""
        return sum(float(values.sum()) for values in self.eigenvalues.values()) / sum(map(Tensor.numel, self.eigenvalues.values()))

    def inverse(self, damping: float) -> Precondition:
        """(F' + damping I)^-1."""
        scales = {name: 1 / (values + damping) for name, values in self.eigenvalues.items()}
        return {name: KroneckerFactor(*self.bases[name], scale) if name in self.bases else scale for name, scale in scales.items()}

    def relative_inverse(self, damping: float) -> Precondition:
        """(F' + damping m I)^-1, m being `mean`: from much damping on, the order is that of plain gradients.

        Raises:
            DataError: all eigenvalues are 0, or there is no damping.
        """
        mean = self.mean
        if not (mean > 0 and damping > 0):
            raise DataError(f"A curvature of mean {mean:g} with a damping of {damping:g} has no inverse; both are above 0.")
        return self.inverse(damping * mean)


def ekfac(
    model: nn.Module,
    samples: Samples,
    *,
    cotangent: Tensor | None = None,
    damping: float,
    parameters: Sequence[str] | None = None,
    batch_size: int = 32,
) -> Precondition:
    """(F' + damping I)^-1 by layer, F' = the second moment of the gradients with its off-diagonal dropped in Kronecker bases.

    Of a linear or convolutional layer with inputs a (a one appended for the bias) and output gradients b at positions t:
        A = sum_nt a a^T = U diag U^T,   B = sum_nt b b^T = V diag V^T          (K-FAC's bases, Martens and Grosse 2015)
        S = mean_n (V^T G_n U)^2,        F' = (V (x) U) diag(S) (V (x) U)^T     (George et al. 2018, arXiv 1806.03884)
    Every other parameter has the diagonal of F. Layers are taken as uncorrelated.

    Args:
        cotangent: `[n, *outputs]`; None if the model gives one number per sample.
        damping: added to every eigenvalue; more than 0.

    Raises:
        DataError: no sample, or no damping.
    """
    side = Side("samples", samples, cotangent, batch_size)
    if side.count == 0 or not damping > 0:
        raise DataError(f"Curvature needs at least one sample and a damping above 0; there are {side.count} samples and {damping}.")
    return curvature(model, lambda: [side], side.count, parameters=parameters, batch_size=batch_size).inverse(damping)


def curvature(model: nn.Module, sides: Sides, count: int, *, parameters: Sequence[str] | None = None, batch_size: int) -> Curvature:
    """F' of `ekfac` where a sample may have several cotangents: sums over all sides, means over so many samples.

    Args:
        batch_size: of the sides; named where memory runs out.
    """
    gradients = Gradients(model, selected(model, parameters))
    with borrowed(model, gradients.names), enough_memory(batch_size):
        bases = gradients.repeated(lambda: kronecker_bases(gradients, sides()))
        moments = gradients.repeated(lambda: second_moments(gradients, sides(), bases))
    return Curvature(bases, {name: moment / count for name, moment in moments.items()})


def fisher(
    model: nn.Module,
    chunks: Sequence[Samples],
    outcome: Outcome,
    *,
    batch_size: int = 32,
    on_side: Callable[[], None] = lambda: None,
) -> Curvature:
    """F' of the Fisher matrix over the samples of all chunks: `fisher_roots` are the cotangents, so that each sample has as many passes.

    Args:
        on_side: called before each pass over a chunk; there are two for each root.

    Raises:
        DataError: no sample.
        MachineError: the bases do not fit into memory; told before they are computed.
    """
    count = sum(Side("samples", samples, None, batch_size).count for samples in chunks)
    if not count:
        raise DataError("Curvature needs at least one sample; there are 0.")
    require_memory(model, next(fisher_sides(model, chunks, outcome, batch_size)))

    def sides() -> Iterator[Side]:
        for side in fisher_sides(model, chunks, outcome, batch_size):
            on_side()
            yield side

    return curvature(model, sides, count, batch_size=batch_size)


def fisher_sides(model: nn.Module, chunks: Sequence[Samples], outcome: Outcome, batch_size: int) -> Iterator[Side]:
    """The samples of each chunk along each of their `fisher_roots`."""
    for samples in chunks:
        for root in fisher_roots(model_outputs(model, samples, batch_size), outcome):
            yield Side("samples", samples, root, batch_size)


def fisher_roots(outputs: Tensor, outcome: Outcome) -> Iterator[Tensor]:
    """Cotangents r_c, each in the outputs' shape, with sum_c r_c r_c^T = the Hessian of -log p in the outputs, whatever the label.

    softmax   r_c = sqrt(p_c) (e_c - p), of k classes:  sum_c r_c r_c^T = diag(p) - p p^T
    sigmoid   r = sqrt(p (1 - p)), of one logit
    number    r = 1: a normal distribution of variance 1 around the one output, whose Hessian is Gauss-Newton's
    """
    precise = outputs.detach().cpu().to(torch.float64)
    if outcome == "number":
        yield torch.ones_like(outputs)
    elif outcome == "sigmoid":
        yield (torch.sigmoid(precise) * torch.sigmoid(-precise)).sqrt().to(outputs)
    else:
        p = torch.softmax(precise, 1)
        for c in range(p.shape[1]):
            root = -p.clone()
            root[:, c] = p[:, :c].sum(1) + p[:, c + 1 :].sum(1)  # 1 - p_c, where that would round to 0
            yield (p[:, c : c + 1].sqrt() * root).to(outputs)


# ---- the two passes -------------------------------------------------------------------------------------------------------------


def kronecker_bases(gradients: Gradients, sides: Iterable[Side]) -> Bases:
    """(V, U) by the path of each layer whose weight is a plain sum of outer products, and whose bias, if any, is chosen too."""
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for side in sides:
        gradients.probe(side)
        for batch in side.batches:
            for layer, factor in matrix_layers(gradients, gradients.factors(side, batch)):
                inputs, outputs = (part.flatten(0, 1) for part in in_parameter_order(factor))
                if own_name(layer, "bias") in gradients.parameters:
                    inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)
                squares = in_double(outputs.T @ outputs), in_double(inputs.T @ inputs)
                sums[layer] = tuple(map(torch.add, sums[layer], squares)) if layer in sums else squares  # type: ignore[assignment]
    like = {layer: gradients.parameters[own_name(layer, "weight")] for layer in sums}
    return {layer: (eigenvectors(b).to(like[layer]), eigenvectors(a).to(like[layer])) for layer, (b, a) in sums.items()}


def second_moments(gradients: Gradients, sides: Iterable[Side], bases: Bases) -> dict[str, Tensor]:
    """sum (V^T G U)^2 by layer, and sum g^2 by parameter for what has no bases; float64. 0 for what no sample reaches."""
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device="cpu"))
    for side in sides:
        for batch in side.batches:
            factors = gradients.factors(side, batch)
            for layer in bases:
                weight, bias = (factors.pop(own_name(layer, own), None) for own in ("weight", "bias"))
                if weight is not None:  # else no sample of this batch reaches the layer
                    sums[layer] = sums[layer] + in_double(squares_in_bases(weight, bias, *bases[layer]))
            for name, factor in factors.items():
                squares = factor.matrices().square().sum(0)
                sums[name] = sums[name] + in_double(squares).reshape(gradients.parameters[name].shape)
    for name in gradients.names:
        if name not in sums and name.rpartition(".")[0] not in bases:
            sums[name] = torch.zeros(gradients.parameters[name].shape, dtype=torch.float64, device="cpu")
    return dict(sums)


def squares_in_bases(weight: Factor, bias: Factor | None, outputs: Tensor, inputs: Tensor) -> Tensor:
    """sum_n (V^T G_n U)^2, `[p, q]`; of one position, G = b a^T, the squares of V^T b times those of U^T a."""
    if isinstance(weight, Outer) and weight.inputs.shape[1:3] == (1, 1):
        a, b = (part[:, 0] for part in in_parameter_order(weight))
        if bias is None:
            return (b @ outputs).square().T @ (a @ inputs).square()
        if torch.equal(bias.matrices().flatten(1), b):
            return (b @ outputs).square().T @ (a @ inputs[:-1] + inputs[-1]).square()
    return rotated(weight, bias, outputs, inputs).square().sum(0)


def matrix_layers(gradients: Gradients, factors: dict[str, Factor]) -> Iterator[tuple[str, Outer]]:
    """The layers among them that have bases."""
    for name, factor in factors.items():
        layer, _, own = name.rpartition(".")
        if own == "weight" and isinstance(factor, Outer) and factor.inputs.shape[1] == 1 and whole(gradients, layer):
            yield layer, factor


def whole(gradients: Gradients, layer: str) -> bool:
    """Whether all parameters of the layer are chosen, so that its gradient is one matrix."""
    return all(own_name(layer, own) in gradients.names for own, _ in gradients.modules[layer].named_parameters(recurse=False))


def in_double(values: Tensor) -> Tensor:
    """In float64 on the CPU: sums over many batches lose nothing there, and not every device has it."""
    return values.cpu().to(torch.float64)


def eigenvectors(moment: Tensor) -> Tensor:
    vectors: Tensor = torch.linalg.eigh(moment)[1]
    return vectors


# ---- memory and files -----------------------------------------------------------------------------------------------------------


def sizes_of(model: nn.Module, side: Side) -> tuple[dict[str, tuple[int, int]], int]:
    """(p, q) of each layer that has bases, as two samples of the side show it, and how many numbers have a diagonal."""
    gradients = Gradients(model, selected(model, None))
    few = slice(0, min(2, side.count))
    with borrowed(model, gradients.names):

        def seen() -> dict[str, tuple[int, int]]:
            gradients.probe(side)
            found = matrix_layers(gradients, gradients.factors(side, few))
            parameters = gradients.parameters
            return {
                layer: (factor.outputs.shape[-1], factor.inputs.shape[-1] + (own_name(layer, "bias") in parameters))
                for layer, factor in found
            }

        layers = gradients.repeated(seen)
    total = sum(gradients.parameters[name].numel() for name in gradients.names)
    return layers, total - sum(p * q for p, q in layers.values())


def file_bytes(model: nn.Module, side: Side) -> int:
    """What one kept curvature takes on a disk: bases in float32, eigenvalues in float64."""
    layers, rest = sizes_of(model, side)
    return sum(4 * (p * p + q * q) + 8 * p * q for p, q in layers.values()) + 8 * rest


def require_memory(model: nn.Module, side: Side) -> None:
    """The bases fit into what is free.

    Raises:
        MachineError: they do not; names the largest layer.
    """
    layers, rest = sizes_of(model, side)
    if not layers:
        return
    largest = max(layers, key=lambda layer: max(layers[layer]))
    p, q = layers[largest]
    # sums of outer products in float64 and bases in float32; sums of squares and eigenvalues, both in float64
    kept = sum((8 + 4) * (p * p + q * q) + 2 * 8 * p * q for p, q in layers.values()) + 2 * 8 * rest
    need = kept + 8 * WORK * max(p, q) ** 2
    free = int(psutil.virtual_memory().available)
    if need > free:
        raise MachineError(
            f"EKFAC of this model needs about {need / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} are free: the layer '{largest}' "
            f'alone has bases of {p} x {p} and {q} x {q}. Free memory, or set precondition = "none" in the recipe\'s [engine] and use '
            f"the curvature in the span of the samples, whose size no layer enters."
        )


def keep_curvature(curvature: Curvature, store: Path) -> str:
    """The curvature is in the store; returns the SHA-256 of its bytes, which is its name."""
    tensors = {name + EIGENVALUES: values.contiguous() for name, values in curvature.eigenvalues.items()}
    for layer, (outputs, inputs) in curvature.bases.items():
        tensors |= {layer + OUTPUTS: outputs.cpu().contiguous(), layer + INPUTS: inputs.cpu().contiguous()}
    return keep(tensors, store)


def load_curvature(store: Path, digest: str) -> Curvature:
    """The kept curvature of this name.

    Raises:
        CheckpointError: it is not in the store any more, or damaged.
    """
    if not is_whole(store, digest):
        raise CheckpointError(f"The curvature {digest[:12]} is gone from the workspace or damaged; compute the run again.")
    kept = safetensors.torch.load_file(store / f"{digest}.safetensors")
    layers = [name.removesuffix(OUTPUTS) for name in kept if name.endswith(OUTPUTS)]
    bases = {layer: (kept[layer + OUTPUTS], kept[layer + INPUTS]) for layer in layers}
    values = {name.removesuffix(EIGENVALUES): kept[name] for name in kept if name.endswith(EIGENVALUES)}
    return Curvature(bases, values)
