"""Samples in compute batches, and a model lent for a computation and given back as it was."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from tracin_core.engine.memory import is_out_of_memory
from tracin_core.errors import BatchCoupledModelError, DataError, NonFiniteError, OutputShapeError

Samples = Tensor | tuple[Tensor, ...] | dict[str, Tensor]

# Where hidden reduced precision lives: TF32 on NVIDIA GPUs, bfloat16 on CPUs.
PRECISIONS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")


@dataclass
class Side:
    """The samples of one axis of the kernel, cut into compute batches.

    Attributes:
        name: as errors call it.
        samples: first axis = samples.
        cotangent: `[n, *outputs]` or None.
        batch_size: every batch but the last has this many samples.
    """

    name: str
    samples: Samples
    cotangent: Tensor | None
    batch_size: int
    count: int = field(init=False)

    def __post_init__(self) -> None:
        tensors = tensors_of(self.samples)
        if self.batch_size < 1:
            raise DataError(f"batch_size is {self.batch_size}; it must be at least 1.")
        counts = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors}
        if len(counts) != 1:
            raise DataError(f"'{self.name}' holds tensors of {sorted(counts)} samples; all of them need the same first axis.")
        self.count = counts.pop()
        if self.cotangent is not None and self.cotangent.shape[:1] != (self.count,):
            raise OutputShapeError(
                f"The cotangent of '{self.name}' has shape {tuple(self.cotangent.shape)} for {self.count} samples; "
                f"give one row per sample."
            )

    @property
    def batches(self) -> list[slice]:
        starts = range(0, self.count, self.batch_size)
        return [slice(start, min(start + self.batch_size, self.count)) for start in starts]

    def units(self, size: int) -> list[list[slice]]:
        """Consecutive batches, `size` of them together."""
        batches = self.batches
        return [batches[start : start + size] for start in range(0, len(batches), size)]

    def take(self, rows: slice, device: torch.device) -> Samples:
        def moved(tensor: Tensor) -> Tensor:
            return tensor[rows].detach().to(device, copy=True)  # a model may overwrite its input

        if isinstance(self.samples, dict):
            return {key: moved(tensor) for key, tensor in self.samples.items()}
        if isinstance(self.samples, Tensor):
            return moved(self.samples)
        return tuple(moved(tensor) for tensor in self.samples)

    def cotangent_of(self, rows: slice, outputs: Tensor) -> Tensor:
        """The cotangent of these rows in the shape of their outputs."""
        if self.cotangent is not None:
            cotangent = self.cotangent[rows].to(outputs)
            if cotangent.shape == outputs.shape or (cotangent.numel() == outputs.numel() == outputs.shape[0]):
                return cotangent.reshape(outputs.shape)
            raise OutputShapeError(
                f"The cotangent of '{self.name}' has shape {tuple(cotangent.shape[1:])} per sample, the outputs "
                f"{tuple(outputs.shape[1:])}; the two must be equal."
            )
        if outputs.numel() == outputs.shape[0]:
            return torch.ones_like(outputs)
        raise OutputShapeError(
            f"The model gives {tuple(outputs.shape[1:])} numbers per sample, so their gradient needs a direction; pass a "
            f"cotangent of shape {(self.count, *outputs.shape[1:])}, for a classifier the gradient of logit(p_y)."
        )


def tensors_of(samples: Samples) -> list[Tensor]:
    if isinstance(samples, Tensor):
        return [samples]
    return list(samples.values()) if isinstance(samples, dict) else list(samples)


def device_of(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def forward(model: nn.Module, samples: Samples) -> Any:
    if isinstance(samples, dict):
        return model(**samples)
    return model(samples) if isinstance(samples, Tensor) else model(*samples)


def checked_outputs(model: nn.Module, side: Side, rows: slice) -> Tensor:
    """The outputs of these rows.

    Raises:
        OutputShapeError: not one Tensor with one row per sample.
        NonFiniteError: names the first sample with a NaN or infinite output.
        DataError: the samples are numbers of another type than the model takes.
    """
    samples = side.take(rows, device_of(model))
    try:
        outputs = forward(model, samples)
    except (RuntimeError, ValueError) as error:
        refuse_types(model, side, error)
        raise
    if not isinstance(outputs, Tensor):
        raise OutputShapeError(
            f"The model returns a {type(outputs).__name__}; wrap it so that it returns the one Tensor to be explained."
        )
    if outputs.dim() == 0 or outputs.shape[0] != rows.stop - rows.start:
        raise OutputShapeError(
            f"The model returns shape {tuple(outputs.shape)} for {rows.stop - rows.start} samples; "
            f"the first axis must be the samples, without a mean or sum over them."
        )
    finite = torch.isfinite(outputs.detach())
    if not bool(finite.all()):
        where = int((~finite.reshape(finite.shape[0], -1).all(1)).nonzero()[0])
        broken = next((name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())), None)
        cause = f"parameter '{broken}' is not finite" if broken else "every parameter is finite, so look at the sample"
        raise NonFiniteError(
            f"Sample {rows.start + where} of '{side.name}' has the output {outputs[where].flatten().tolist()[:3]}: "
            f"{cause}. Use an earlier checkpoint, or leave the sample out."
        )
    return outputs


def refuse_types(model: nn.Module, side: Side, error: Exception) -> None:
    """Raises DataError where the samples' type, other than the weights', is what the model may have failed on."""
    weights = {parameter.dtype for parameter in model.parameters()}
    types = {tensor.dtype for tensor in tensors_of(side.samples)}
    if types <= weights or is_out_of_memory(error) or "type" not in str(error).lower():
        return
    given, taken = (", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds)) for kinds in (types, weights))
    raise DataError(
        f"'{side.name}' holds {given} numbers, and the model, whose weights are {taken}, cannot take them ({error}). Convert the samples "
        f"to the type that its first layer takes: the weights' own, or int64 for an embedding."
    ) from error


@contextmanager
def borrowed(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """The model in eval mode with only `names` requiring gradients and full float32 precision; all restored on exit.

    Raises:
        BatchCoupledModelError: a normalisation without running statistics, which uses those of the batch.
    """
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise BatchCoupledModelError(
                f"'{path}' is a {type(module).__name__} without running statistics: a sample's output would depend on its "
                f"neighbours in the batch. Build it with track_running_stats=True, or use GroupNorm or LayerNorm."
            )
    wanted = set(names)
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    renormed = [m.weight for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.max_norm is not None]
    # A look-up may shorten rows for good, and a model may keep its normalisation in training mode and so update its statistics.
    changeable = [(tensor, tensor.detach().clone()) for tensor in (*renormed, *model.buffers())]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        refuse_training(model)
        # Fused attention calls no layer and cuts padding off, so outputs without a gradient would be others than those with one.
        torch.backends.mha.set_fastpath_enabled(False)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad != (name in wanted):
                parameter.requires_grad_(name in wanted)
        with ExitStack() as stack:
            stack.enter_context(full_precision(model))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.autocast(device_of(model).type, enabled=False))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
        for tensor, found in changeable:
            tensor.data.copy_(found)


def refuse_training(model: nn.Module) -> None:
    """Raises BatchCoupledModelError for a batch normalisation that eval mode does not reach."""
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise BatchCoupledModelError(
                f"'{path}' is a {type(module).__name__} that stays in training mode after model.eval(): a sample's output would depend "
                f"on its neighbours in the batch. Let its train() follow the mode that it is given."
            )


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """float32 means float32, on every device; restored on exit."""
    backends = [attrgetter(path)(torch.backends) for path in PRECISIONS]
    found = [backend.fp32_precision for backend in backends]
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    cudnn = torch.backends.cudnn.enabled
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        if recurrent:
            torch.backends.cudnn.enabled = False  # cuDNN refuses the backward pass of a recurrent layer in eval mode
        yield
    finally:
        torch.backends.cudnn.enabled = cudnn
        for backend, precision in zip(backends, found, strict=True):
            backend.fp32_precision = precision
