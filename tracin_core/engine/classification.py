"""Models with several outputs: the kernel of logit(p_y), and what stays free of the chosen class.

With f = logit(p_y), every loss psi(p_y) of the softmax (cross-entropy, focal, ...) has a gradient that is a scaling of f's:
grad(-log p_y) = -(1 - p_y) grad f. Unlike the loss's own, f's gradient does not vanish for a memorised sample.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

from tracin_core.engine.batches import Samples, Side, borrowed, checked_outputs
from tracin_core.engine.gradients import Gradients
from tracin_core.engine.kernel import model_outputs, selected, tangent_kernel, tangent_kernel_by_layer
from tracin_core.engine.layers import Factor, cheaper_path
from tracin_core.engine.memory import enough_memory
from tracin_core.engine.preconditioning import Precondition
from tracin_core.errors import DataError, NonFiniteError, OutputShapeError


def logit_cotangent(outputs: Tensor, labels: Tensor) -> Tensor:
    """`[n, k]`: the derivative of f = logit(p_y) with respect to the outputs z, for p = softmax(z).

    f = z_y - log sum_{j != y} exp z_j, hence df/dz is 1 at y and minus the softmax of the others elsewhere. With two classes f is
    the difference of the two outputs.

    Raises:
        OutputShapeError: not `[n, k]` outputs with k >= 2.
        DataError: not one whole number from 0 to k - 1 per sample.
    """
    if outputs.dim() != 2 or outputs.shape[1] < 2:
        raise OutputShapeError(
            f"The outputs have shape {tuple(outputs.shape)}; logit(p_y) needs one row per sample and at least two classes. A single "
            f"logit is a score already, and needs no cotangent."
        )
    n, k = outputs.shape
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.shape != (n,) or not whole or (n and not 0 <= int(labels.min()) <= int(labels.max()) < k):
        raise DataError(
            f"The labels are {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}, from "
            f"{labels.min().item() if labels.numel() else '-'} to {labels.max().item() if labels.numel() else '-'}; give one whole "
            f"number from 0 to {k - 1} for each of {n} samples."
        )
    place = labels.to(outputs.device, torch.int64)[:, None]
    others = torch.softmax(outputs.detach().scatter(1, place, float("-inf")), 1)
    return (-others).scatter(1, place, 1.0)


def logit_kernel(
    model: nn.Module,
    left: Samples,
    left_labels: Tensor,
    right: Samples | None = None,
    right_labels: Tensor | None = None,
    *,
    parameters: Sequence[str] | None = None,
    precondition: Precondition | None = None,
    batch_size: int = 32,
    memory_budget: int | None = None,
) -> Tensor:
    """`[n, m]`: the tangent kernel of f = logit(p_y), each sample for its own label.

    Raises:
        DataError: labels do not fit; see `logit_cotangent`.
    """
    ours, theirs = logit_cotangents(model, left, left_labels, right, right_labels, batch_size)
    return tangent_kernel(
        model,
        left,
        right,
        left_cotangent=ours,
        right_cotangent=theirs,
        parameters=parameters,
        precondition=precondition,
        batch_size=batch_size,
        memory_budget=memory_budget,
    )


def logit_kernel_by_layer(
    model: nn.Module,
    left: Samples,
    left_labels: Tensor,
    right: Samples | None = None,
    right_labels: Tensor | None = None,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    precondition: Precondition | None = None,
    batch_size: int = 32,
    memory_budget: int | None = None,
) -> Tensor:
    """`[L, n, m]`: the summands of `logit_kernel`, one per layer group. Groups and `precondition` as `tangent_kernel_by_layer`."""
    ours, theirs = logit_cotangents(model, left, left_labels, right, right_labels, batch_size)
    return tangent_kernel_by_layer(
        model,
        left,
        right,
        left_cotangent=ours,
        right_cotangent=theirs,
        groups=groups,
        precondition=precondition,
        batch_size=batch_size,
        memory_budget=memory_budget,
    )


def logit_cotangents(
    model: nn.Module, left: Samples, left_labels: Tensor, right: Samples | None, right_labels: Tensor | None, batch_size: int
) -> tuple[Tensor, Tensor | None]:
    """The cotangents of both sides; None for the right one where the left is taken against itself.

    Raises:
        DataError: right samples without labels, or the other way round.
    """
    if (right is None) != (right_labels is None):
        raise DataError(
            "Right samples and right labels belong together; give both, or neither for the left ones against themselves."
        )
    ours = logit_cotangent(model_outputs(model, left, batch_size), left_labels)
    if right is None or right_labels is None:
        return ours, None
    return ours, logit_cotangent(model_outputs(model, right, batch_size), right_labels)


def output_kernel_by_layer(
    model: nn.Module,
    left: Samples,
    right: Samples | None = None,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    precondition: Precondition | None = None,
    batch_size: int = 32,
    memory_budget: int | None = None,
) -> Tensor:
    """`[L, n k, m k]`: products of the gradients of every one of the k outputs; output a of sample i stands at i k + a.

    Nothing of a loss or a label is fixed in it: any cotangents c, d of two samples give c^T K d of their block. It costs k times the
    passes and k^2 times the numbers of `logit_kernel`. Groups and `precondition` as
    `tangent_kernel_by_layer`.

    Raises:
        OutputShapeError: not one axis of outputs per sample.
    """

    def every_output(samples: Samples | None) -> tuple[Samples | None, Tensor | None]:
        if samples is None:
            return None, None
        outputs = model_outputs(model, samples, batch_size)
        if outputs.dim() != 2:
            raise OutputShapeError(
                f"The outputs have shape {tuple(outputs.shape)}; this kernel is of [n, k] outputs, one row per sample."
            )
        n, k = outputs.shape
        return repeated(samples, k), torch.eye(k, dtype=outputs.dtype, device=outputs.device).repeat(n, 1)

    (ours, our_cotangent), (theirs, their_cotangent) = every_output(left), every_output(right)
    return tangent_kernel_by_layer(
        model,
        left if ours is None else ours,
        theirs,
        left_cotangent=our_cotangent,
        right_cotangent=their_cotangent,
        groups=groups,
        precondition=precondition,
        batch_size=batch_size,
        memory_budget=memory_budget,
    )


def repeated(samples: Samples, times: int) -> Samples:
    """Every sample so many times in a row."""
    if isinstance(samples, Tensor):
        return samples.repeat_interleave(times, 0)
    if isinstance(samples, Mapping):
        return {name: tensor.repeat_interleave(times, 0) for name, tensor in samples.items()}
    return tuple(tensor.repeat_interleave(times, 0) for tensor in samples)


def tangent_diagonal_blocks(
    model: nn.Module, samples: Samples, *, parameters: Sequence[str] | None = None, batch_size: int = 32
) -> Tensor:
    """`[n, k, k]`: B[i, a, b] = <grad z_a(x_i), grad z_b(x_i)> for the k outputs z of each sample.

    A sample's own part of the kernel for any cotangent c is c^T B c: its self-influence under any loss and any label.

    Raises:
        NonFiniteError: names the first sample whose block is not finite.
    """
    side = Side("samples", samples, None, batch_size)
    gradients = Gradients(model, selected(model, parameters))
    with borrowed(model, gradients.names), enough_memory(batch_size):
        blocks = gradients.repeated(lambda: diagonal_blocks(gradients, side))
    finite = torch.isfinite(blocks).flatten(1).all(1)
    if not bool(finite.all()):
        raise NonFiniteError(
            f"Sample {int((~finite).nonzero()[0])} has NaN or infinite products of its outputs' gradients. Check that sample's values, "
            f"or use an earlier checkpoint."
        )
    return blocks


def diagonal_blocks(gradients: Gradients, side: Side) -> Tensor:
    """One pass per output and batch; `[n, k, k]`."""
    gradients.probe(side)
    blocks: list[Tensor] = []
    for batch in side.batches:
        outputs = checked_outputs(gradients.model, side, batch).detach()
        shape = outputs.shape[1:]
        units = torch.eye(shape.numel(), dtype=outputs.dtype, device=outputs.device)
        towards = [Side(side.name, side.samples, unit.reshape(shape).expand(side.count, *shape), side.batch_size) for unit in units]
        factors = [gradients.factors(one, batch) for one in towards]
        block = outputs.new_zeros(len(outputs), len(units), len(units))
        for name in gradients.names:
            if all(name in of_output for of_output in factors):
                block += own_products([of_output[name] for of_output in factors])
        blocks.append(block)
    return torch.cat(blocks) if blocks else torch.empty(0, 0, 0)


def own_products(factors: Sequence[Factor]) -> Tensor:
    """`[n, k, k]`: each sample's inner products between its k gradients of one parameter."""
    k = len(factors)
    if cheaper_path(factors[0].cost(), left=k, right=0, pairs=k * (k + 1) // 2) == "materialise":
        formed = torch.stack([factor.matrices().flatten(1) for factor in factors], 1)
        return formed @ formed.transpose(1, 2)
    block = factors[0].tensors()[-1].new_empty(len(factors[0].tensors()[0]), k, k)
    for a, b in combinations_with_replacement(range(k), 2):
        block[:, a, b] = block[:, b, a] = factors[a].inner(factors[b])
    return block
