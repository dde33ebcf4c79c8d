"""Preconditioned kernels against the dense matrix that a preconditioner stands for, and EKFAC against its definition."""

import pytest
import torch
from engine_cases import CASES, FLOAT64, MODELS, Case, autograd_rows, cotangent_of, image, joined, model_of, samples_of
from torch import Tensor, nn

from tracin_core.engine.ekfac import ekfac
from tracin_core.engine.kernel import layer_groups, tangent_kernel, tangent_kernel_by_layer
from tracin_core.engine.preconditioning import Centred, KroneckerFactor
from tracin_core.errors import DataError, UnknownParameterError

NAMES = ["classifier", "conv net", "conv1d", "linear without bias", "siamese", "lstm", "tied layers"]


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Those that a Kronecker factor can be named after."""
    return {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(getattr(layer, "weight", None), Tensor) and layer.weight.dim() > 1
    }


def orthogonal(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0]


def random_factor(layer: nn.Module) -> KroneckerFactor:
    p, q = len(layer.weight), layer.weight[0].numel() + (getattr(layer, "bias", None) is not None)
    return KroneckerFactor(orthogonal(p), orthogonal(q), torch.rand(p, q, dtype=torch.float64) + 0.1)


def dense(factor: KroneckerFactor) -> Tensor:
    """The matrix of `vec(G) -> vec(V (scales * (V^T G U)) U^T)`, G row by row."""
    basis = torch.kron(factor.outputs, factor.inputs)
    return basis @ torch.diag(factor.scales.flatten().to(basis)) @ basis.T


def matrix_rows(rows: dict[str, Tensor], model: nn.Module, layer: str) -> Tensor:
    """`[n, p * q]`: a layer's gradients as its factor sees them, the bias as the last column."""
    parameters = dict(model.named_parameters())
    own = [f"{layer}.{name}" for name in ("weight", "bias") if f"{layer}.{name}" in parameters]
    return torch.cat([rows[name].reshape(len(rows[name]), len(parameters[name]), -1) for name in own], 2).flatten(1)


@pytest.mark.parametrize("name", ["conv net", "conv1d", "embedding", "tied layers", "lstm", "partly used"])
def test_gradients_are_measured_from_an_origin(name: str) -> None:
    """(g_i - o) . D (g_j - o), by layer and in batches, also where a batch does not reach a layer; differences do not depend on o."""
    case = CASES[name]
    model, left, right = model_of(case), samples_of(case, 5), samples_of(case, 3, seed=4)
    torch.manual_seed(3)
    scales = {name: torch.rand_like(parameter) + 0.5 for name, parameter in model.named_parameters()}
    origins = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    rows, columns = autograd_rows(model, left, 5), autograd_rows(model, right, 3)
    here, there = ({name: each[name] - origins[name].flatten() for name in each} for each in (rows, columns))
    weighted = {name: values * scales[name].flatten() for name, values in there.items()}
    centred = {name: Centred(scales[name], origins[name]) for name in rows}
    for batch in (1, 2, 5):
        kernel = tangent_kernel(model, left, right, precondition=centred, batch_size=batch)
        torch.testing.assert_close(kernel, joined(here) @ joined(weighted).T, **FLOAT64)
    plain = tangent_kernel(model, left, right, precondition={name: scales[name] for name in rows})
    torch.testing.assert_close(kernel.diff(dim=0).diff(dim=1), plain.diff(dim=0).diff(dim=1), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_kronecker_factor_is_the_dense_matrix_it_stands_for(name: str) -> None:
    """g_i . (D g_j), by layer, beside layers that have a diagonal or nothing; in batches, and symmetric to the last bit."""
    case = CASES[name]
    model, left, right = model_of(case), samples_of(case, 5), samples_of(case, 4, seed=4)
    here, there = cotangent_of(case, 5), cotangent_of(case, 4, seed=3)
    torch.manual_seed(3)
    chosen = {
        path: random_factor(layer) for path, layer in layers_of(model).items() if f"{path}.weight" in dict(model.named_parameters())
    }
    rows, columns = autograd_rows(model, left, 5, here), autograd_rows(model, right, 4, there)
    settings = {"precondition": chosen, "batch_size": 2}
    kernels = tangent_kernel_by_layer(model, left, right, left_cotangent=here, right_cotangent=there, **settings)
    assert name == "lstm" or chosen
    for products, (group, names) in zip(kernels, layer_groups(model).items(), strict=True):
        if group in chosen:
            expected = matrix_rows(rows, model, group) @ dense(chosen[group]) @ matrix_rows(columns, model, group).T
        else:
            expected = joined({n: rows[n] for n in names}) @ joined({n: columns[n] for n in names}).T
        torch.testing.assert_close(products, expected, **FLOAT64)
    own = tangent_kernel(model, left, left_cotangent=here, **settings)
    assert torch.equal(own, own.T)


def test_a_factor_must_fit_its_layer() -> None:
    model, samples = model_of(MODELS["conv net"]), samples_of(MODELS["conv net"], 2)
    good = random_factor(model.layers[5])
    for wrong in ({"layers.0": good}, {"layers.2": good}, {"layers.9": good}):
        with pytest.raises(UnknownParameterError, match=r"bases of shape \(3, 3\) and \(37, 37\) fits no layer"):
            tangent_kernel(model, samples, precondition=wrong)
    with pytest.raises(UnknownParameterError, match="choose both of them"):
        tangent_kernel(model, samples, parameters=["layers.5.weight"], precondition={"layers.5": good})
    with pytest.raises(UnknownParameterError, match="name each factor after"):
        tangent_kernel(model, samples, precondition={"layers.5": KroneckerFactor(good.outputs, good.inputs, good.scales[:, :3])})
    transposed = model_of(MODELS["transposed convolution"])
    with pytest.raises(UnknownParameterError, match="fits no layer"):  # its bias belongs to the weight's second axis
        tangent_kernel(transposed, image(2, 3, 3)(2), precondition={"layers.0": random_factor(transposed.layers[0])})
    for bad in (-1.0, float("nan")):
        scales = good.scales.clone()
        scales[0, 0] = bad
        with pytest.raises(UnknownParameterError, match="1 entries that are negative or NaN"):
            tangent_kernel(model, samples, precondition={"layers.5": KroneckerFactor(good.outputs, good.inputs, scales)})
    with pytest.raises(UnknownParameterError, match="negative or NaN"):
        tangent_kernel(model, samples, precondition={"layers.5.bias": torch.tensor([-1.0, 1.0, 1.0])})


def textbook(inputs: Tensor, outputs: Tensor, gradients: Tensor, damping: float) -> tuple[Tensor, Tensor, Tensor]:
    """EKFAC's dense inverse from per-position inputs `[m, q]` and output gradients `[m, p]`; its bases and eigenvalues."""
    v, u = torch.linalg.eigh(outputs.T @ outputs)[1], torch.linalg.eigh(inputs.T @ inputs)[1]
    basis = torch.kron(v, u)
    eigenvalues = (gradients @ basis).square().mean(0)
    return basis @ torch.diag(1 / (eigenvalues + damping)) @ basis.T, basis, eigenvalues


@pytest.mark.parametrize("batch_size", [4, 32])
def test_ekfac_is_its_definition(batch_size: int) -> None:
    """A two-layer classifier, everything explicit in float64; the inverse does not depend on the signs of eigenvectors."""
    case = Case(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), image(3), (2,))
    model, samples, cotangent = model_of(case), samples_of(case, 40), cotangent_of(case, 40)
    damping = 1e-2
    factors = ekfac(model, samples, cotangent=cotangent, damping=damping, batch_size=batch_size)
    assert set(factors) == {"0", "2"}
    rows = autograd_rows(model, samples, 40, cotangent)
    hidden = model[0](samples).detach()
    slopes = cotangent @ model[2].weight.detach() * (1 - torch.tanh(hidden) ** 2)
    ones = torch.ones(40, 1).double()
    for layer, inputs, outputs in (("0", samples, slopes), ("2", torch.tanh(hidden), cotangent)):
        expected, *_ = textbook(torch.cat([inputs, ones], 1), outputs, matrix_rows(rows, model, layer), damping)
        torch.testing.assert_close(dense(factors[layer]), expected, rtol=1e-7, atol=1e-9)
    kernel = tangent_kernel(model, samples, left_cotangent=cotangent, precondition=factors)
    total = sum(matrix_rows(rows, model, layer) @ dense(factors[layer]) @ matrix_rows(rows, model, layer).T for layer in ("0", "2"))
    torch.testing.assert_close(kernel, total, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["conv net", "conv2d reflect"])
def test_ekfac_of_a_convolution_sums_over_positions(name: str) -> None:
    """Its bases are those of all patches and of all output gradients, each position counting once."""
    case = CASES[name]
    model, samples = model_of(case), samples_of(case, 12)
    layer: nn.Conv2d = model.layers[0]
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(
        lambda _, inputs, output: (seen.append(inputs[0]), output.retain_grad(), seen.append(output))[2]
    )
    model(samples).sum().backward()
    handle.remove()
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = nn.functional.pad(seen[0], layer._reversed_padding_repeated_twice, mode=mode)
    patches = nn.functional.unfold(padded, layer.kernel_size).transpose(1, 2).flatten(0, 1).detach()
    inputs = torch.cat([patches, torch.ones(len(patches), 1).double()], 1)
    outputs = seen[1].grad.flatten(2).transpose(1, 2).flatten(0, 1)
    rows = matrix_rows(autograd_rows(model, samples, 12), model, "layers.0")
    expected, basis, eigenvalues = textbook(inputs, outputs, rows, 0.1)
    factors = ekfac(model, samples, damping=0.1, batch_size=5)
    torch.testing.assert_close(dense(factors["layers.0"]), expected, rtol=1e-7, atol=1e-9)
    fisher = rows.T @ rows / 12
    remade = basis @ torch.diag(eigenvalues) @ basis.T
    other = torch.kron(outputs.T @ outputs, inputs.T @ inputs) / 12 / len(patches)
    assert (fisher - remade).norm() <= (
        fisher - other
    ).norm()  # no eigenvalues in these bases are nearer to F (George et al., eq. 9)


def test_ekfac_gives_what_has_no_matrix_its_diagonal() -> None:
    """Normalisations, biases of layers without a rule, embeddings and frozen partners: one entry per number."""
    model, samples = model_of(MODELS["positions"]), samples_of(MODELS["positions"], 9)
    model.encoder.linear1.bias.requires_grad_(False)
    factors = ekfac(model, samples, damping=0.5, batch_size=4)
    rows = autograd_rows(model, samples, 9)
    kronecker = {name for name, factor in factors.items() if isinstance(factor, KroneckerFactor)}
    assert kronecker == {"encoder.self_attn.out_proj", "encoder.linear2"}
    diagonals = {name: factor for name, factor in factors.items() if name not in kronecker}
    assert {"tokens.weight", "positions.weight", "encoder.norm1.weight", "encoder.linear1.weight"} <= set(diagonals)
    assert "encoder.linear1.bias" not in diagonals
    for name, scales in diagonals.items():
        torch.testing.assert_close(scales.flatten(), 1 / (rows[name].square().mean(0).cpu() + 0.5), **FLOAT64)
    tangent_kernel(model, samples, precondition=factors)


@pytest.mark.parametrize(("count", "damping"), [(0, 1.0), (3, 0.0), (3, -1.0), (3, float("nan"))])
def test_curvature_needs_samples_and_damping(count: int, damping: float) -> None:
    case = MODELS["conv net"]
    with pytest.raises(DataError, match=f"there are {count} samples and {damping}"):
        ekfac(model_of(case), samples_of(case, count), damping=damping)
