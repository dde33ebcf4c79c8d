"""Preconditioned kernels: g_i . (D g_j) with a diagonal D, or one that is diagonal in a Kronecker product of bases.

Gradients are changed once each, to D^(1/2) g; every product of them is then a plain one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from tracin_core.engine.layers import Factor, Formed, Outer
from tracin_core.errors import UnknownParameterError


@dataclass(frozen=True)
class KroneckerFactor:
    """D = (V (x) U) diag(scales) (V (x) U)^T for one layer: `D vec(G) = vec(V (scales * (V^T G U)) U^T)`.

    G is the layer's gradient as a matrix: the weight's first axis by all its others, in the parameter's own order, and the bias as
    one more column where the layer has one (Martens and Grosse 2015). With `scales` = 1 / (eigenvalues + damping) this is the
    inverse of the damped curvature of EKFAC (George et al. 2018, arXiv 1806.03884).

    Attributes:
        outputs: V, orthogonal, `[p, p]`.
        inputs: U, orthogonal, `[q, q]`; q counts the bias.
        scales: not negative, `[p, q]`.
    """

    outputs: Tensor
    inputs: Tensor
    scales: Tensor

    def root(self, weight: Factor, bias: Factor | None) -> Tensor:
        """`[n, p, q]`: D^(1/2) of each gradient, in the basis V (x) U, where products are the same."""
        return rotated(weight, bias, self.outputs, self.inputs) * self.scales.sqrt()


def rotated(weight: Factor, bias: Factor | None, outputs: Tensor, inputs: Tensor) -> Tensor:
    """`[n, p, q]`: V^T G U of each sample's gradient G = [weight, bias] of one layer, V and U being `outputs` and `inputs`.

    A sum of outer products b (x) a stays one, of V^T b and U^T a: that is cheaper than turning what it sums to.
    """
    turned = inputs if bias is None else inputs[:-1]  # the last row is the bias's
    if isinstance(weight, Outer) and weight.inputs.shape[1] == 1:
        rows, parts = in_parameter_order(weight)
        matrix = (parts @ outputs).transpose(1, 2) @ (rows @ turned)
    else:
        matrix = outputs.T @ weight.matrices() @ turned
    if bias is None:
        return matrix
    return matrix + (bias.matrices().flatten(1) @ outputs)[:, :, None] * inputs[-1]


def in_parameter_order(factor: Outer) -> tuple[Tensor, Tensor]:
    """Of the one group, inputs `[n, positions, q]` with channels before the kernel, as in the weight, and output gradients `[n, .., p]`."""
    inputs = factor.inputs[:, 0]
    if factor.kernel:
        inputs = inputs.unflatten(2, (*factor.kernel, -1)).movedim(-1, 2).flatten(2)
    return inputs, factor.outputs[:, 0]


@dataclass(frozen=True)
class Centred:
    """A diagonal D of gradients less a fixed one: (g_i - o) . D (g_j - o).

    Where only differences of gradients matter, as for pairs, o cancels: <g_i - g_j, D (g_p - g_q)> is the same for every o. But what is
    alike in all gradients, and large under D, does not bury the differences in single precision.

    Attributes:
        scales: the diagonal, in the parameter's shape.
        origin: o, in the parameter's shape.
    """

    scales: Tensor
    origin: Tensor


Precondition = Mapping[str, Tensor | KroneckerFactor | Centred]


@dataclass
class Preconditioner:
    """A `precondition` that fits the model.

    Attributes:
        given: a diagonal (or Centred) by the name of its parameter, or a KroneckerFactor by the path of its layer.
        parameters: all of the model.
        names: those whose gradients are taken.
    """

    given: Precondition
    parameters: Mapping[str, Tensor]
    names: tuple[str, ...]
    diagonals: dict[str, Tensor] = field(default_factory=dict, init=False)
    kroneckers: dict[str, KroneckerFactor] = field(default_factory=dict, init=False)
    origins: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for name, factor in self.given.items():
            if isinstance(factor, KroneckerFactor):
                self.kroneckers[name] = self._fitting(name, factor)
                continue
            scales = factor.scales if isinstance(factor, Centred) else factor
            self.diagonals[name] = positive(name, scales, self.parameters.get(name))
            if isinstance(factor, Centred):
                self.origins[name] = factor.origin.to(self.diagonals[name]).reshape(self.diagonals[name].shape)

    def applied(self, factors: dict[str, Factor], count: int) -> dict[str, Factor]:
        """The gradients D^(1/2) g of so many samples; those of a layer's bias are part of its weight's."""
        changed = dict(factors)
        for layer, kronecker in self.kroneckers.items():
            weight = changed.pop(own_name(layer, "weight"), None)
            bias = changed.pop(own_name(layer, "bias"), None)
            if weight is None:
                continue  # no sample of this batch reaches the layer
            changed[own_name(layer, "weight")] = Formed(kronecker.root(weight, bias))
        for name in self.origins.keys() & set(self.names) - changed.keys():  # which no sample of this batch reaches
            changed[name] = Formed(self.diagonals[name].new_zeros(count, *self.diagonals[name].shape))
        for name in self.diagonals.keys() & changed.keys():
            gradients = changed[name].matrices()
            if name in self.origins:
                gradients = gradients - self.origins[name].reshape(gradients.shape[1:])
            changed[name] = Formed(gradients * self.diagonals[name].sqrt().reshape(gradients.shape[1:]))
        return changed

    def _fitting(self, layer: str, factor: KroneckerFactor) -> KroneckerFactor:
        """The factor in the type and on the device of the layer that it fits."""
        weight, bias = (self.parameters.get(own_name(layer, own)) for own in ("weight", "bias"))
        shape = (0, 0) if weight is None else (len(weight), weight[0].numel() + (bias is not None))
        bases = (*factor.outputs.shape, *factor.inputs.shape)
        partly = bias is not None and not {own_name(layer, "weight"), own_name(layer, "bias")} <= set(self.names)
        partly |= weight is not None and bias is not None and len(bias) != len(weight)  # a transposed convolution's
        if weight is None or bases != (shape[0], shape[0], shape[1], shape[1]) or partly:
            raise UnknownParameterError(
                f"The preconditioner '{layer}' with bases of shape {bases[:2]} and {bases[2:]} fits no layer of the model; name it after "
                f"a layer whose weight, with the bias as one more column, has {shape[0]} x {shape[1]} entries, and "
                f"choose both of them."
            )
        scales = positive(layer, factor.scales, weight, shape)
        return KroneckerFactor(factor.outputs.to(weight), factor.inputs.to(weight), scales)


def own_name(layer: str, own: str) -> str:
    """The name of a layer's own parameter; the path of a model that is one layer is empty."""
    return f"{layer}.{own}" if layer else own


def positive(name: str, scales: Tensor, parameter: Tensor | None, shape: tuple[int, ...] | None = None) -> Tensor:
    """The scales in the type and on the device of the parameter.

    Raises:
        UnknownParameterError: they have another shape, or measure no length.
    """
    if parameter is None or scales.shape != (parameter.shape if shape is None else shape):
        raise UnknownParameterError(
            f"The preconditioner '{name}' of shape {tuple(scales.shape)} fits no parameter of the model; "
            f"name each factor after its parameter and give it the same shape."
        )
    wrong = int((~(scales >= 0)).sum())
    if wrong:
        raise UnknownParameterError(
            f"The preconditioner '{name}' has {wrong} entries that are negative or NaN, so it measures no length; add damping."
        )
    return scales.to(parameter)
