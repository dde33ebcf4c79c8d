"""Curvature of a model over samples, in a form that `precondition` takes: EKFAC per layer, and a diagonal for what has no matrix.

Both approximate the second moment F = mean_n g_n g_n^T of the samples' gradients g_n: the Fisher matrix where the cotangents are loss
derivatives at labels drawn from the model, the empirical one at the labels given.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tracin_core.engine.batches import Samples, Side, borrowed
from tracin_core.engine.gradients import Gradients
from tracin_core.engine.kernel import selected
from tracin_core.engine.layers import Factor, Outer
from tracin_core.engine.memory import enough_memory
from tracin_core.engine.preconditioning import KroneckerFactor, Precondition
from tracin_core.errors import DataError

Moments = dict[str, tuple[Tensor, Tensor]]


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
    gradients = Gradients(model, selected(model, parameters))
    with borrowed(model, gradients.names), enough_memory(batch_size):
        bases = gradients.repeated(lambda: kronecker_bases(gradients, side))
        moments = gradients.repeated(lambda: second_moments(gradients, side, bases))
    scales = {name: 1 / (moment / side.count + damping) for name, moment in moments.items()}
    return {name: KroneckerFactor(*bases[name], scale) if name in bases else scale for name, scale in scales.items()}


def kronecker_bases(gradients: Gradients, side: Side) -> Moments:
    """(V, U) by the path of each layer whose weight is a plain sum of outer products, and whose bias, if any, is chosen too."""
    gradients.probe(side)
    sums: dict[str, list[Tensor]] = {}
    for batch in side.batches:
        for name, factor in gradients.factors(side, batch).items():
            layer, _, own = name.rpartition(".")
            if own == "weight" and isinstance(factor, Outer) and factor.inputs.shape[1] == 1 and whole(gradients, layer):
                inputs, outputs = in_parameter_order(factor)
                if f"{layer}.bias" in gradients.parameters:
                    inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)
                found = sums.setdefault(layer, [outputs.new_zeros(()), inputs.new_zeros(())])
                found[0], found[1] = found[0] + outputs.T @ outputs, found[1] + inputs.T @ inputs
    return {layer: (torch.linalg.eigh(b)[1], torch.linalg.eigh(a)[1]) for layer, (b, a) in sums.items()}


def second_moments(gradients: Gradients, side: Side, bases: Moments) -> dict[str, Tensor]:
    """sum_n (V^T G_n U)^2 by layer, and sum_n g_n^2 by parameter for what has no bases."""
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
    for batch in side.batches:
        factors = gradients.factors(side, batch)
        for layer, (outputs, inputs) in bases.items():
            columns = [factors.pop(f"{layer}.{own}") for own in ("weight", "bias") if f"{layer}.{own}" in factors]
            if not columns:
                continue  # no sample of this batch reaches the layer
            matrix = torch.cat([column.matrices() for column in columns], 2)
            sums[layer] = sums[layer].to(matrix) + (outputs.T @ matrix @ inputs).square().sum(0)
        for name, factor in factors.items():
            sums[name] = sums[name].to(gradients.parameters[name]) + diagonal(factor, gradients.parameters[name])
    return dict(sums)


def diagonal(factor: Factor, parameter: Tensor) -> Tensor:
    return factor.matrices().square().sum(0).reshape(parameter.shape)


def whole(gradients: Gradients, layer: str) -> bool:
    """Whether all parameters of the layer are chosen, so that its gradient is one matrix."""
    return all(f"{layer}.{own}" in gradients.names for own, _ in gradients.modules[layer].named_parameters(recurse=False))


def in_parameter_order(factor: Outer) -> tuple[Tensor, Tensor]:
    """Inputs `[samples * positions, q]` with channels before the kernel, as in the weight, and output gradients `[.., p]`."""
    inputs = factor.inputs.flatten(0, 2)
    if factor.kernel:
        inputs = inputs.unflatten(1, (*factor.kernel, -1)).movedim(-1, 1).flatten(1)
    return inputs, factor.outputs.flatten(0, 2)
