"""What must hold for a model's kernel to mean what it says, tried on a few samples before a run."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tracin_core.engine.batches import Samples, Side, borrowed, checked_outputs, device_of
from tracin_core.engine.gradients import graph_of, one_by_one
from tracin_core.engine.kernel import coverage, tangent_kernel
from tracin_core.engine.memory import is_out_of_memory
from tracin_core.errors import BatchCoupledModelError, DataError, ModelError

PROBES = 8  # samples that are tried; a coupled batch shows with two
COMPARED = 4  # of these, samples whose gradients are also taken by plain autograd

# Layers that do something else in training.
TWO_MODES = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
)

# Relative difference that is still rounding: the same sums in another order, over networks of ordinary depth.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
COARSE_ROUNDING = 5e-2  # bfloat16 and float16


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        name: identifies the check.
        passed: whether the run may be trusted in this respect.
        value: the number that was measured; NaN where the model could not be run that far.
        sentence_key: of the sentence that tells people about it.
        detail: what was found, with values; if it failed, also what to do.
    """

    name: str
    passed: bool
    value: float
    sentence_key: str
    detail: str


def check_model(model: nn.Module, inputs: Samples, *, cotangent: Tensor | None = None) -> list[Check]:
    """Tries the model on the first few samples; the model is left as it was found.

    eval_mode         no layer that behaves otherwise in training was left in training mode
    finite_weights    every parameter and buffer is a number
    deterministic     the same samples give the same outputs, bit for bit
    batch_coupling    each sample alone gives what it gives in a batch
    trainable         no parameter is frozen, and so left out of every score
    coverage          every trainable parameter takes part in the outputs
    paths             how each parameter's gradient is taken; each is exact, without a rule it is slower
    products          the kernel equals the products of plain autograd's gradients, sample by sample

    Args:
        cotangent: `[n, *outputs]`; None lets a fixed mixture of the outputs stand for it.

    Raises:
        DataError: fewer than two samples, which cannot show whether a sample depends on its neighbours.
    """
    side = Side("inputs", inputs, cotangent, PROBES)
    if side.count < 2:
        raise DataError(f"A model is checked on at least 2 samples, not {side.count}; give the first few of the data set.")
    probes = Side("inputs", side.take(side.batches[0], torch.device("cpu")), None, PROBES)
    if cotangent is not None:
        probes.cotangent = cotangent[side.batches[0]]
    trials: dict[str, Callable[[nn.Module, Side], tuple[float, str, bool]]] = {
        "eval_mode": eval_mode,
        "finite_weights": finite_weights,
        "deterministic": deterministic,
        "batch_coupling": batch_coupling,
        "trainable": trainable_share,
        "coverage": reached_parameters,
        "paths": paths,
        "products": products,
    }
    checks = []
    for name, trial in trials.items():
        try:
            value, detail, passed = trial(model, probes)
        except ModelError as refusal:
            value, detail, passed = float("nan"), str(refusal), False
        except (RuntimeError, ValueError) as failure:
            if is_out_of_memory(failure):
                raise
            value, passed = float("nan"), False
            detail = f"The model fails on {probes.count} samples, or on one alone: {failure}. Try it with model.eval() on a batch of one."
        checks.append(Check(name, passed, value, f"health.{name}", detail))
    return checks


def eval_mode(model: nn.Module, probes: Side) -> tuple[float, str, bool]:
    """Counts the layers in training mode whose outputs would be others than in eval mode."""
    left = {path: type(layer).__name__ for path, layer in model.named_modules() if layer.training and isinstance(layer, TWO_MODES)}
    if not left:
        return 0.0, "The model is in eval mode.", True
    path, kind = next(iter(left.items()))
    detail = (
        f"{len(left)} layers are in training mode, first '{path}' ({kind}). Scores are computed in eval mode, with running statistics "
        f"and without dropout; call model.eval() so that the outputs you compare them with are computed so too."
    )
    return float(len(left)), detail, False


def finite_weights(model: nn.Module, probes: Side) -> tuple[float, str, bool]:
    """Counts the parameters' and buffers' entries that are NaN or infinite."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    broken = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in tensors}
    broken = {name: count for name, count in broken.items() if count}
    if not broken:
        return 0.0, f"All {sum(tensor.numel() for _, tensor in tensors)} weights are finite.", True
    first, count = next(iter(broken.items()))
    detail = (
        f"{count} entries of '{first}' are NaN or infinite, and {len(broken) - 1} more tensors hold such entries; "
        f"training diverged before this checkpoint was written, so use an earlier one."
    )
    return float(sum(broken.values())), detail, False


def deterministic(model: nn.Module, probes: Side) -> tuple[float, str, bool]:
    """The largest difference between two runs on the same samples."""
    first, second = outputs_of(model, probes, probes.batches[0]), outputs_of(model, probes, probes.batches[0])
    worst = float((first - second).abs().max())
    if worst == 0:
        return worst, "Two runs on the same samples gave the same outputs, bit for bit.", True
    detail = (
        f"Two runs on the same samples differ by up to {worst:.3g}: something draws random numbers in eval mode. Dropout "
        f"called as a function without training=self.training is the usual cause."
    )
    return worst, detail, False


def batch_coupling(model: nn.Module, probes: Side) -> tuple[float, str, bool]:
    """The largest difference between a sample alone and in a batch, relative to the largest output."""
    together = outputs_of(model, probes, probes.batches[0])
    together = together.reshape(together.shape[0], -1)
    alone = torch.cat([outputs_of(model, probes, slice(i, i + 1)) for i in range(together.shape[0])]).reshape(together.shape)
    differences = (alone - together).abs().amax(1)
    worst = relative(differences.max(), torch.maximum(alone.abs().max(), together.abs().max()))
    if worst <= rounding(together):
        return (
            worst,
            f"Each of {len(alone)} samples alone gives what it gives in a batch (difference {worst:.1e}).",
            True,
        )
    sample = int(differences.argmax())
    place = int((alone - together)[sample].abs().argmax())
    refusal = BatchCoupledModelError(
        f"Sample {sample} scores {float(alone[sample, place]):.4f} alone but {float(together[sample, place]):.4f} in a "
        f"batch of {len(together)}: its gradient would depend on its neighbours. Batch-wide normalisation is the usual "
        f"cause; use per-sample statistics, or layers in eval mode."
    )
    return worst, str(refusal), False


def trainable_share(model: nn.Module, probes: Side) -> tuple[float, str, bool]:
    """The share of the parameters' numbers that are trainable."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    share = 1 - sum(sizes[name] for name in frozen) / max(1, sum(sizes.values()))
    if not frozen:
        return share, f"All {len(sizes)} parameters are trainable.", True
    detail = (
        f"{len(frozen)} of {len(sizes)} parameters are frozen, first '{frozen[0]}', and left out of every score. Set requires_grad on "
        f"them if they were trained."
    )
    return share, detail, False


def paths(model: nn.Module, probes: Side) -> tuple[float, str, bool]:
    """The share of the trainable numbers that a rule serves; every parameter with its path."""
    served = dict(coverage(model, probes.samples))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    by_rule = sum(size for name, size in sizes.items() if served[name].startswith("rule"))
    slow = [name for name in sizes if not served[name].startswith("rule")]
    told = "Every trainable parameter is served by a rule"
    if slow:
        told = f"No rule reaches {len(slow)} parameters, first '{slow[0]}'; their gradients are as exact, and slower"
    listed = "; ".join(f"{name}: {path}" for name, path in served.items())
    return by_rule / max(1, sum(sizes.values())), f"{told}. {listed}.", True


def reached_parameters(model: nn.Module, probes: Side) -> tuple[float, str, bool]:
    """The share of trainable numbers that the outputs depend on."""
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with borrowed(model, tuple(trainable)):
        _, uses = graph_of(checked_outputs(model, probes, probes.batches[0]))
    unreached = [name for name, parameter in trainable.items() if not uses[id(parameter)]]
    total = sum(parameter.numel() for parameter in trainable.values())
    share = 1 - sum(trainable[name].numel() for name in unreached) / max(1, total)
    if not trainable:
        return 0.0, "No parameter is trainable; set requires_grad on those whose gradients count.", False
    if unreached:
        detail = (
            f"{len(unreached)} trainable parameters take no part in the outputs, first '{unreached[0]}'; their gradient is "
            f"zero. Check that the checkpoint belongs to this model, or freeze them."
        )
        return share, detail, False
    return share, f"All {len(trainable)} trainable parameters count.", True


def products(model: nn.Module, probes: Side) -> tuple[float, str, bool]:
    """The largest difference from plain autograd, relative to the two gradients' lengths."""
    count = min(COMPARED, probes.count)
    few = Side("inputs", probes.take(slice(0, count), torch.device("cpu")), None, count)
    cotangent = direction(model, probes)[:count]
    names = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    kernel = tangent_kernel(model, few.samples, left_cotangent=cotangent, batch_size=max(2, count - 1))
    with borrowed(model, names):
        chosen = {name: parameter for name, parameter in model.named_parameters() if name in names}
        gradients = one_by_one(model, chosen, few.take(slice(0, count), device_of(model)), cotangent)
    rows = torch.cat([gradient.reshape(count, -1) for gradient in gradients.values()], 1).double()
    lengths = rows.norm(dim=1)
    differences = (kernel.double() - rows @ rows.T).abs()
    worst = relative(differences.max(), lengths.max() ** 2)
    if worst <= rounding(kernel):
        return worst, f"Products of {count} samples equal plain autograd's (relative difference {worst:.1e}).", True
    i, j = divmod(int(differences.argmax()), count)
    detail = (
        f"The product of samples {i} and {j} is {float(kernel[i, j]):.6g}, by plain autograd {float(rows[i] @ rows[j]):.6g}: "
        f"the model moves values between the samples of a batch. Make every sample's output depend on that sample alone."
    )
    return worst, detail, False


def outputs_of(model: nn.Module, side: Side, rows: slice) -> Tensor:
    with borrowed(model, ()), torch.no_grad():
        return checked_outputs(model, side, rows)


def direction(model: nn.Module, probes: Side) -> Tensor:
    """The given cotangent, or a fixed one that mixes all outputs."""
    outputs = outputs_of(model, probes, probes.batches[0])
    if probes.cotangent is not None:
        return probes.cotangent_of(probes.batches[0], outputs)
    mixture = torch.cos(torch.arange(outputs[0].numel(), device=outputs.device)).to(outputs.dtype)
    return mixture.reshape(outputs.shape[1:]).expand(outputs.shape)


def relative(difference: Tensor, scale: Tensor) -> float:
    return float(difference) / max(float(scale), torch.finfo(torch.float32).tiny)


def rounding(values: Tensor) -> float:
    return ROUNDING.get(values.dtype, COARSE_ROUNDING)
