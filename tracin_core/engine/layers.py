"""One exact rule per layer type: from a layer's inputs and output gradients to its per-sample parameter gradients.

A rule returns a *factor* per parameter. A factor knows two ways to the same inner products: `form`, which forms every
sample's gradient, and `products`, which never does (the Gram path). `cheaper_path` chooses between them from shapes alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Path = Literal["gram", "materialise"]

# Both in multiply-adds of a large matrix product, measured on CPU: what one entry of a T x T product of two Gram matrices
# costs (it is read and written, not reused), and how much slower many small products are than one large one.
ELEMENTWISE = 64
SMALL_PRODUCT = 2

# Entries of a Gram product that exist at once. A constant, not the memory budget: the order of sums must never change.
GRAM_ENTRIES = 1 << 22


class Cost(NamedTuple):
    """What a factor costs on either path, in multiply-adds.

    Attributes:
        gram: per pair of samples on the Gram path.
        form: per sample, to form its gradient.
        entries: numbers in one gradient, so also per pair of formed gradients.
    """

    gram: int
    form: int
    entries: int


def cheaper_path(cost: Cost, *, left: int, right: int, pairs: int) -> Path:
    """The path with fewer multiply-adds for `pairs` inner products among `left` + `right` samples.

    Forming a gradient is paid once per sample and shared by all of its products:
        Gram         pairs * T^2 (d + p)
        materialise  (left + right) * T d p + pairs * d p
    for T positions, d inputs and p outputs. Norms (one product per sample) and whole kernels so choose differently.
    """
    materialise = (left + right) * cost.form + pairs * cost.entries
    return "gram" if pairs * cost.gram < materialise else "materialise"


class Factor(Protocol):
    """The per-sample gradients of one parameter, not yet formed."""

    def cost(self) -> Cost: ...

    def form(self, into: Tensor) -> None:
        """Writes each sample's gradient to `[n, entries]`, its entries in an order of the factor's own."""

    def matrices(self) -> Tensor:
        """`[n, rows, columns]`: each sample's gradient in the parameter's own order, its first axis by all others."""

    def products(self, other: Self) -> Tensor:
        """`[n, m]`: inner products with the samples of another factor of the same parameter."""

    def inner(self, other: Self) -> Tensor:
        """`[n]`: inner products of the same samples' gradients, of the same call or for another cotangent."""

    def plus(self, other: Self) -> Self:
        """The sum of the gradients of two calls of one layer, for the same samples."""

    def tensors(self) -> tuple[Tensor, ...]:
        """What the factor keeps in memory."""


@dataclass(frozen=True)
class Formed:
    """Gradients that are cheapest in full: biases, and scales and shifts of normalisations.

    Attributes:
        values: `[n, *parameter]`.
    """

    values: Tensor

    def cost(self) -> Cost:
        entries = self.values[:1].numel()
        return Cost(gram=entries, form=0, entries=entries)

    def form(self, into: Tensor) -> None:
        into.copy_(self._rows())

    def matrices(self) -> Tensor:
        return self.values.reshape(len(self.values), self.values[0].shape[0] if self.values.dim() > 1 else 1, -1)

    def products(self, other: Self) -> Tensor:
        return formed_products(self._rows(), other._rows())

    def inner(self, other: Self) -> Tensor:
        return formed_inner(self._rows(), other._rows())

    def _rows(self) -> Tensor:
        return self.values.reshape(len(self.values), -1)

    def plus(self, other: Self) -> Self:
        return type(self)(self.values + other.values)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)


@dataclass(frozen=True)
class Outer:
    """A weight whose gradient is a sum of outer products over positions: `dW[n,g] = sum_t b[n,g,t] (x) a[n,g,t]`.

    Hence `<dW_n, dW_m> = sum_g sum_ts (a[n,g,t] . a[m,g,s]) (b[n,g,t] . b[m,g,s])`. With one position and one group this
    is the last-layer shortcut of TracIn (Pruthi et al. 2020, appendix F).

    Attributes:
        inputs: a, `[n, groups, positions, d]`.
        outputs: b, the output gradients, `[n, groups, positions, p]`.
        kernel: spatial size of a convolution's kernel; then d runs over (kernel, channels of a group).
    """

    inputs: Tensor
    outputs: Tensor
    kernel: tuple[int, ...] = ()

    def cost(self) -> Cost:
        _, groups, positions, d = self.inputs.shape
        p = self.outputs.shape[-1]
        return Cost(
            gram=groups * positions**2 * (d + p + ELEMENTWISE),
            form=SMALL_PRODUCT * groups * positions * d * p,
            entries=groups * d * p,
        )

    def form(self, into: Tensor) -> None:
        n, groups, _, d = self.inputs.shape
        outputs = self.outputs.transpose(2, 3).flatten(0, 1)
        torch.bmm(outputs, self.inputs.flatten(0, 1), out=into.view(n * groups, -1, d))

    def matrices(self) -> Tensor:
        n, _, _, d = self.inputs.shape
        gradient: Tensor = (self.outputs.transpose(2, 3) @ self.inputs).reshape(n, -1, d)
        if not self.kernel:
            return gradient
        in_order: Tensor = gradient.unflatten(2, (*self.kernel, -1)).movedim(-1, 2).flatten(2)
        return in_order

    def products(self, other: Self) -> Tensor:
        n, groups, positions, _ = self.inputs.shape
        m, _, others, _ = other.inputs.shape
        rows = max(1, GRAM_ENTRIES // max(1, m * positions * others))
        columns = m if rows > 1 else max(1, GRAM_ENTRIES // max(1, positions * others))
        total = self.outputs.new_zeros(n, m)
        for group in range(groups):
            for row in range(0, n, rows):
                for column in range(0, m, columns):
                    here, there = slice(row, row + rows), slice(column, column + columns)
                    total[here, there] += self._tile(other, group, here, there)
        return total

    def _tile(self, other: Self, group: int, here: slice, there: slice) -> Tensor:
        a, b = self.inputs[here, group], self.outputs[here, group]
        c, d = other.inputs[there, group], other.outputs[there, group]
        shape = (a.shape[0], a.shape[1], c.shape[0], c.shape[1])
        inputs = a.flatten(0, 1) @ c.flatten(0, 1).T
        outputs = b.flatten(0, 1) @ d.flatten(0, 1).T
        return inputs.mul_(outputs).view(shape).sum((1, 3))

    def inner(self, other: Self) -> Tensor:
        n, groups, positions, _ = self.inputs.shape
        rows = max(1, GRAM_ENTRIES // max(1, groups * positions * other.inputs.shape[2]))
        parts = []
        for row in range(0, n, rows):
            here = slice(row, row + rows)
            inputs = self.inputs[here] @ other.inputs[here].transpose(2, 3)
            parts.append(inputs.mul_(self.outputs[here] @ other.outputs[here].transpose(2, 3)).sum((1, 2, 3)))
        return torch.cat(parts)

    def plus(self, other: Self) -> Self:
        inputs = torch.cat([self.inputs, other.inputs], 2)
        return type(self)(inputs, torch.cat([self.outputs, other.outputs], 2), self.kernel)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.inputs, self.outputs


@dataclass(frozen=True)
class Lookup:
    """An embedding: `dW[n, v] = sum_t [index[n,t] = v] b[n,t]`, so products sum `b . b` over equal indices.

    Attributes:
        indices: `[n, positions]`.
        outputs: b, the output gradients, `[n, positions, p]`.
        rows: rows of the table.
    """

    indices: Tensor
    outputs: Tensor
    rows: int

    def cost(self) -> Cost:
        _, positions, p = self.outputs.shape
        return Cost(
            gram=positions**2 * (p + ELEMENTWISE),
            form=(self.rows + SMALL_PRODUCT * positions) * p,
            entries=self.rows * p,
        )

    def form(self, into: Tensor) -> None:
        table = into.zero_().view(len(into), self.rows, -1)
        table.scatter_add_(1, self.indices[..., None].expand_as(self.outputs), self.outputs)

    def matrices(self) -> Tensor:
        n, _, p = self.outputs.shape
        flat = self.outputs.new_empty(n, self.rows * p)
        self.form(flat)
        return flat.view(n, self.rows, p)

    def products(self, other: Self) -> Tensor:
        n, positions, _ = self.outputs.shape
        m, others, _ = other.outputs.shape
        rows = max(1, GRAM_ENTRIES // max(1, m * positions * others))
        products = []
        for row in range(0, n, rows):
            outputs = self.outputs[row : row + rows].flatten(0, 1) @ other.outputs.flatten(0, 1).T
            equal = self.indices[row : row + rows].reshape(-1, 1) == other.indices.reshape(1, -1)
            products.append((outputs * equal).view(-1, positions, m, others).sum((1, 3)))
        return torch.cat(products)

    def inner(self, other: Self) -> Tensor:
        equal = self.indices[:, :, None] == other.indices[:, None, :]
        return (self.outputs @ other.outputs.transpose(1, 2) * equal).sum((1, 2))

    def plus(self, other: Self) -> Self:
        indices = torch.cat([self.indices, other.indices], 1)
        return type(self)(indices, torch.cat([self.outputs, other.outputs], 1), self.rows)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.indices, self.outputs


def line_up(one: Factor, other: Factor) -> bool:
    """Whether the two differ in their samples only, so that one product can serve both."""
    shapes = [[tensor.shape[1:] for tensor in factor.tensors()] for factor in (one, other)]
    return type(one) is type(other) and shapes[0] == shapes[1]


def joined(factors: Sequence[Factor]) -> Factor:
    """One factor of all these samples, in this order; the factors line up."""
    first: Any = factors[0]
    names = [field.name for field in fields(first) if isinstance(getattr(first, field.name), Tensor)]
    return cast(Factor, replace(first, **{name: torch.cat([getattr(factor, name) for factor in factors]) for name in names}))


def formed_products(left: Tensor, right: Tensor) -> Tensor:
    """`[n, m]` inner products of gradients `[n, P]` and `[m, P]`."""
    return left @ right.T


def formed_inner(left: Tensor, right: Tensor) -> Tensor:
    """`[n]` inner products of gradients `[n, P]`, row by row."""
    inner: Tensor = torch.linalg.vecdot(left, right)
    return inner


Rule = Callable[[Any, Tensor, Tensor], dict[str, Factor]]

RULES: dict[type[nn.Module], Rule] = {}


def layer_rule(*types: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Registers the decorated function as the exact rule of these layer types.

    A rule takes (layer, inputs, output gradients) of one call, both with the samples on the first axis, and returns the
    factors of the layer's parameters by name. Subclasses are not covered: they may compute something else.
    """

    def register(rule: Rule) -> Rule:
        for kind in types:
            RULES[kind] = rule
        return rule

    return register


def rule_for(layer: nn.Module) -> Rule | None:
    """The layer's rule, or None where the layer does not do what its type says."""
    if "forward" in vars(layer):
        return None
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and (layer.max_norm is not None or layer.scale_grad_by_freq):
        return None
    if isinstance(layer, nn.EmbeddingBag) and layer.mode == "max":
        return None
    return RULES.get(type(layer))


@layer_rule(nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
def linear(layer: nn.Linear, inputs: Tensor, outputs: Tensor) -> dict[str, Factor]:
    """`y[t] = W a[t] + c` at any number of positions t: `dW = sum_t b[t] (x) a[t]`, `dc = sum_t b[t]`."""
    n = inputs.shape[0]
    a = inputs.reshape(n, 1, -1, layer.in_features)
    b = outputs.reshape(n, 1, -1, layer.out_features)
    return {"weight": Outer(a, b), "bias": Formed(b.sum((1, 2)))}


@layer_rule(nn.MultiheadAttention)
def attention(layer: nn.MultiheadAttention, inputs: Tensor, outputs: Tensor) -> dict[str, Factor]:
    """Query, key and value are one linear layer; `attention.SeenAttention` shows its input and output. `out_proj` is another."""
    n, width = inputs.shape[0], layer.embed_dim
    b = outputs.reshape(n, 1, -1, 3 * width)
    return {"in_proj_weight": Outer(inputs.reshape(n, 1, -1, width), b), "in_proj_bias": Formed(b.sum((1, 2)))}


@layer_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(layer: nn.Conv2d, inputs: Tensor, outputs: Tensor) -> dict[str, Factor]:
    """A linear layer on patches: position t is an output pixel, a[t] the padded patch that it sees, per group."""
    if inputs.dim() == len(layer.kernel_size) + 1:
        inputs, outputs = inputs[None], outputs[None]  # one image without an axis of samples
    n, groups = inputs.shape[0], layer.groups
    b = outputs.reshape(n, groups, layer.out_channels // groups, -1)
    weight = Outer(patches(layer, inputs, outputs.shape[2:]), b.transpose(2, 3), tuple(layer.kernel_size))
    return {"weight": weight, "bias": Formed(b.sum(3).flatten(1))}


def patches(layer: nn.Conv2d, inputs: Tensor, positions: Sequence[int]) -> Tensor:
    """`[n, groups, positions, kernel * channels of a group]`: what each output pixel sees.

    The image is laid out with channels last, so that patches are overlapping windows of one buffer and are gathered in a
    single copy of long runs; this is two to three times faster than `F.unfold` on late, narrow layers.
    """
    padding: list[int] = layer._reversed_padding_repeated_twice
    if any(padding):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        inputs = F.pad(inputs, padding, mode=mode)
    n, channels = inputs.shape[:2]
    image = inputs.movedim(1, -1).contiguous()
    per_group = channels // layer.groups
    steps = image.stride()[1:-1]
    windows = image.as_strided(
        (n, layer.groups, *positions, *layer.kernel_size, per_group),
        (
            image.stride(0),
            per_group,
            *(step * stride for step, stride in zip(steps, layer.stride, strict=True)),
            *(step * dilation for step, dilation in zip(steps, layer.dilation, strict=True)),
            1,
        ),
        image.storage_offset(),
    )
    count = 1
    for length in positions:
        count *= length
    return windows.reshape(n, layer.groups, count, -1)


@layer_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm(layer: nn.BatchNorm2d, inputs: Tensor, outputs: Tensor) -> dict[str, Factor]:
    """In eval mode an affine map per channel by the running statistics, which are constants."""
    mean, variance = layer.running_mean, layer.running_var
    assert mean is not None  # without running statistics the model is refused before it runs
    assert variance is not None
    return per_channel(inputs, mean[None], torch.rsqrt(variance + layer.eps)[None], outputs)


@layer_rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm(layer: nn.InstanceNorm2d, inputs: Tensor, outputs: Tensor) -> dict[str, Factor]:
    """Each channel of each sample by its own statistics, or by the running ones where the layer keeps them."""
    if layer.running_mean is not None and layer.running_var is not None:
        mean, variance = layer.running_mean[None], layer.running_var[None]
    else:
        variance, mean = torch.var_mean(inputs.flatten(2), dim=2, correction=0)
    return per_channel(inputs, mean, torch.rsqrt(variance + layer.eps), outputs)


def per_channel(inputs: Tensor, mean: Tensor, scale: Tensor, outputs: Tensor) -> dict[str, Factor]:
    """`dweight[n,c] = scale sum_t (x - mean) b`, `dbias[n,c] = sum_t b`, statistics `[n or 1, channels]`."""
    n, channels = inputs.shape[:2]
    b = outputs.reshape(n, channels, -1)
    centred = inputs.reshape(n, channels, -1) - mean[:, :, None]
    return {"weight": Formed(torch.linalg.vecdot(centred, b) * scale), "bias": Formed(b.sum(2))}


@layer_rule(nn.GroupNorm)
def group_norm(layer: nn.GroupNorm, inputs: Tensor, outputs: Tensor) -> dict[str, Factor]:
    """Groups of channels of each sample by their own statistics."""
    n, channels = inputs.shape[:2]
    normal = F.group_norm(inputs, layer.num_groups, eps=layer.eps).reshape(n, channels, -1)
    b = outputs.reshape(n, channels, -1)
    return {"weight": Formed((normal * b).sum(2)), "bias": Formed(b.sum(2))}


@layer_rule(nn.LayerNorm)
def layer_norm(layer: nn.LayerNorm, inputs: Tensor, outputs: Tensor) -> dict[str, Factor]:
    """Each position by the statistics of its last axes; positions add up."""
    normal = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    return {
        "weight": Formed(over_positions(normal * outputs, layer.normalized_shape)),
        "bias": Formed(over_positions(outputs, layer.normalized_shape)),
    }


@layer_rule(nn.RMSNorm)
def rms_norm(layer: nn.RMSNorm, inputs: Tensor, outputs: Tensor) -> dict[str, Factor]:
    """Each position by the root mean square of its last axes; positions add up."""
    normal = F.rms_norm(inputs, list(layer.normalized_shape), eps=layer.eps)
    return {"weight": Formed(over_positions(normal * outputs, layer.normalized_shape))}


def over_positions(values: Tensor, shape: Sequence[int]) -> Tensor:
    """`[n, *shape]`: the sum over every axis between the samples and `shape`."""
    return values.reshape(values.shape[0], -1, *shape).sum(1)


@layer_rule(nn.Embedding)
def embedding(layer: nn.Embedding, inputs: Tensor, outputs: Tensor) -> dict[str, Factor]:
    """Rows looked up by index; the padding row has no gradient."""
    n = inputs.shape[0]
    indices = inputs.reshape(n, -1)
    b = outputs.reshape(n, -1, layer.embedding_dim)
    if layer.padding_idx is not None:
        b = b * (indices != layer.padding_idx)[..., None]
    return {"weight": Lookup(indices, b, layer.num_embeddings)}


@layer_rule(nn.EmbeddingBag)
def embedding_bag(layer: nn.EmbeddingBag, inputs: Tensor, outputs: Tensor) -> dict[str, Factor]:
    """The sum or mean of the rows looked up, for bags of one length `[n, length]`; padding is in no bag."""
    counted = torch.ones_like(inputs) if layer.padding_idx is None else inputs != layer.padding_idx
    share = counted.to(outputs)
    if layer.mode == "mean":
        share = share / share.sum(1, keepdim=True).clamp(min=1)
    return {"weight": Lookup(inputs, share[:, :, None] * outputs[:, None, :], layer.num_embeddings)}


def total(factors: Sequence[Factor]) -> Factor:
    """The factor of a parameter whose layer was called several times."""
    result = factors[0]
    for _, factor in pairwise(factors):
        result = result.plus(factor)
    return result
