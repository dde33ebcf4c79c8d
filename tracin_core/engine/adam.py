"""The kernel of a training by Adam, its second moment frozen: g_i^T D^-1 g_j.

A step of Adam moves the parameters by -eta m / D with D = sqrt(v / (1 - beta2^t)) + eps, v being the running mean of squared gradients
(Kingma and Ba 2015, arXiv 1412.6980, algorithm 1). With v frozen at a checkpoint, what one example adds to the step is -eta D^-1 g, so that

    K_D[i, j] = g_i^T D^-1 g_j

takes the place of the tangent kernel.
"""

from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from tracin_core.engine.checkpoints import is_whole
from tracin_core.engine.preconditioning import Centred, Precondition
from tracin_core.engine.second_moments import EPS
from tracin_core.errors import CheckpointError, CheckpointMismatchError

Form = Literal["adam", "adam_full"]


def load_precondition(model: nn.Module, store: Path, digest: str, form: Form, origin: Tensor | None = None) -> Precondition:
    """D^-1 by the name of its parameter, as `tangent_kernel` takes it.

    `adam_full`: D = sqrt(v) + eps, entry by entry. `adam`: of the v of each matrix (first axis by all others) only the row and column
    means are kept, v[i, j] ~ mean_j v[i, :] * mean_i v[:, j] / mean v (Shazeer and Stern 2018, arXiv 1804.04235, section 3); vectors
    are as they are.

    A training on pairs moves nothing that is alike in all scores' gradients, as the last bias's is, or that of a unit which every sample
    switches on: there v is rounding, and 1 / D, up to 1 / eps, would bury all else in single precision. It cancels in every pair, so
    gradients are then measured from what some samples have in common (`origin_of`).

    Args:
        model: with the checkpoint's weights, in eval mode.
        origin: these samples, `[n, ...]`, where the kernel is of scores that are compared in pairs; else None.

    Raises:
        CheckpointError: the copy is not in the store any more, or damaged.
        CheckpointMismatchError: it is another model's.
    """
    if not is_whole(store, digest):
        raise CheckpointError(f"The second moment {digest[:12]} is gone from the workspace or damaged; take the folder in again.")
    kept = safetensors.torch.load_file(store / f"{digest}.safetensors")
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    inverse: dict[str, Tensor] = {}
    for name in (name for name in kept if not name.endswith(EPS)):
        if kept[name].shape != shapes.get(name) or name + EPS not in kept:
            raise CheckpointMismatchError(
                f"The second moment {digest[:12]} does not fit this model; choose the one it was trained with."
            )
        moment = kept[name].to(torch.float64)
        moment = factored(moment) if form == "adam" else moment
        inverse[name] = 1 / (moment.sqrt() + kept[name + EPS])
    absent = [name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in inverse]
    if absent:
        raise CheckpointMismatchError(f"The second moment {digest[:12]} lacks '{absent[0]}'; choose the model it was trained with.")
    if origin is None:
        return inverse
    return {name: Centred(inverse[name], gradient) for name, gradient in origin_of(model, origin).items()}


def origin_of(model: nn.Module, samples: Tensor) -> dict[str, Tensor]:
    """What most of these samples' score gradients have in common, by the name of its parameter: the lower median, entry by entry.

    It is the gradient itself where all are alike, and 0 where most samples do not reach.
    """
    chosen = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    rows = []
    with torch.backends.cudnn.flags(enabled=False):  # which refuses the backward pass of a recurrent layer in eval mode
        for sample in samples.split(1):
            score = model(sample).sum()
            rows.append(torch.autograd.grad(score, list(chosen.values()), allow_unused=True, materialize_grads=True))
    return {name: torch.stack(column).median(0).values for name, column in zip(chosen, zip(*rows, strict=True), strict=True)}


def factored(moment: Tensor) -> Tensor:
    """v[i, j] ~ mean_j v[i, :] * mean_i v[:, j] / mean v, first axis by all others; a vector as it is. Zero where all of v is."""
    if moment.dim() < 2 or not moment.any():
        return moment
    matrix = moment.flatten(1)
    return (matrix.mean(1, keepdim=True) * matrix.mean(0, keepdim=True) / matrix.mean()).reshape(moment.shape)
