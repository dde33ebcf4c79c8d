"""The curvature that EKFAC inverts: the Fisher matrix of the model's own labels, by its definition, in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import FLOAT64, Case, autograd_rows, image, joined, model_of, samples_of
from test_preconditioning import dense, matrix_rows
from torch import Tensor, nn

from tracin_core.engine import ekfac
from tracin_core.engine.kernel import tangent_kernel
from tracin_core.errors import DataError, MachineError


def test_the_roots_make_the_hessian_of_the_negative_log_likelihood() -> None:
    """Whatever the label; also of a sample that the model is nearly certain of, where 1 - p is lost in single precision."""
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.0, 0.0], [30.0, -5.0, 4.0]], dtype=torch.float64)
    roots = torch.stack(list(ekfac.fisher_roots(logits, "softmax")))
    for label in range(3):
        hessians = torch.stack([torch.autograd.functional.hessian(lambda z, y=label: -z.log_softmax(0)[y], row) for row in logits])
        torch.testing.assert_close(torch.einsum("cni,cnj->nij", roots, roots), hessians, rtol=1e-9, atol=1e-15)
    certain = torch.stack(list(ekfac.fisher_roots(torch.tensor([[30.0, 0.0]]), "softmax")))
    assert float(certain.square().sum()) == pytest.approx(4 * np.exp(-30.0) / 2, rel=1e-5)
    (root,) = ekfac.fisher_roots(logits[:, :1], "sigmoid")
    chances = torch.sigmoid(logits[:, :1])
    torch.testing.assert_close(root**2, chances * (1 - chances), **FLOAT64)
    assert [each.tolist() for each in ekfac.fisher_roots(logits[:1, :1], "number")] == [[[1.0]]]


def test_the_second_moment_is_that_expected_over_the_model_s_own_labels() -> None:
    """Its trace, which no choice of bases changes: mean_n sum_y p_y |grad -log p_y|^2; and each diagonal in the bases."""
    case = Case(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), image(3), (3,))
    model, samples = model_of(case), samples_of(case, 10)
    found = ekfac.fisher(model, [samples[:7], samples[7:]], "softmax", batch_size=4)
    chances = model(samples).softmax(1).detach()
    for layer in ("0", "2"):
        outputs, inputs = found.bases[layer]
        expected = torch.zeros(found.eigenvalues[layer].shape, dtype=torch.float64)
        for label in range(3):
            slopes = chances - nn.functional.one_hot(torch.tensor(label), 3)
            rows = matrix_rows(autograd_rows(model, samples, 10, slopes), model, layer).reshape(10, *expected.shape)
            turned = outputs.T @ rows @ inputs
            expected += (chances[:, label, None, None] * turned**2).mean(0)
        torch.testing.assert_close(found.eigenvalues[layer], expected.cpu(), **FLOAT64)


def test_each_pass_over_a_chunk_is_told_once() -> None:
    """Two for each of the three roots of each of the two chunks."""
    case = Case(lambda: nn.Sequential(nn.Linear(3, 3)), image(3), (3,))
    samples, told = samples_of(case, 10), []
    ekfac.fisher(model_of(case), [samples[:7], samples[7:]], "softmax", batch_size=4, on_side=lambda: told.append(None))
    assert len(told) == 2 * 3 * 2


def test_damping_is_measured_by_the_mean_eigenvalue() -> None:
    """Of the whole network: trace(F) by the number of parameters."""
    case = Case(lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)), image(3), (1,))
    found = ekfac.fisher(model_of(case), [samples_of(case, 9)], "number", batch_size=4)
    model, samples = model_of(case), samples_of(case, 9)
    mean = float(joined(autograd_rows(model, samples, 9)).square().sum()) / 9 / sum(map(Tensor.numel, model.parameters()))
    assert found.mean == pytest.approx(mean)
    inverse = found.relative_inverse(0.5)
    assert set(inverse) == {"0", "1.weight", "1.bias", "2"}
    for name, values in found.eigenvalues.items():
        scales = inverse[name].scales if name in found.bases else inverse[name]
        torch.testing.assert_close(scales, 1 / (values + 0.5 * mean), **FLOAT64)
    with pytest.raises(DataError, match="A curvature of mean 0 with a damping of 1 has no inverse"):
        ekfac.Curvature({}, {"a": torch.zeros(2)}).relative_inverse(1.0)


class Branched(nn.Module):
    """One of its layers no training sample reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.aside, self.norm, self.last = nn.Linear(3, 4), nn.Linear(3, 4), nn.LayerNorm(3), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        taken = self.first(x)
        if (beside := x[:, 0] > 100).any():
            taken = torch.where(beside[:, None], self.aside(self.norm(x)), taken)
        return self.last(torch.tanh(taken))  # type: ignore[no-any-return]


def test_what_no_training_sample_reaches_has_no_curvature_but_the_damping() -> None:
    case = Case(Branched, image(3), (1,))
    model, samples = model_of(case), samples_of(case, 9)
    found = ekfac.fisher(model, [samples], "number", batch_size=4)
    mean = float(joined(autograd_rows(model, samples, 9)).square().sum()) / 9 / sum(map(Tensor.numel, model.parameters()))
    assert found.mean == pytest.approx(mean)
    inverse = found.relative_inverse(0.5)
    for name in ("aside.weight", "aside.bias", "norm.weight", "norm.bias"):
        expected = torch.full_like(model.get_parameter(name), 1 / (0.5 * mean)).cpu()
        torch.testing.assert_close(inverse[name], expected, **FLOAT64)


@pytest.mark.parametrize(("outcome", "spread"), [("number", 1.0), ("sigmoid", 0.0), ("sigmoid", 1.0)])
def test_of_one_linear_layer_with_one_output_the_inverse_is_exact_where_every_sample_counts_alike(
    outcome: Any, spread: float
) -> None:
    """F = mean_n s_n x x^T has the eigenvectors of sum_n x x^T where all s_n are alike; else only its diagonal in these is kept."""
    case = Case(lambda: nn.Linear(4, 1), image(4), (1,))
    layer, samples = model_of(case), samples_of(case, 30)
    model = nn.Sequential(layer)
    with torch.no_grad():
        layer.weight.mul_(3 * spread)
        layer.bias.mul_(spread)
    found = ekfac.fisher(model, [samples], outcome)
    x = torch.cat([samples, torch.ones(30, 1).double()], 1)
    chances = torch.sigmoid(model(samples).detach())
    weights = chances * (1 - chances) if outcome == "sigmoid" else torch.ones(30, 1)
    exact = (weights * x).T @ x / 30
    kept = dense(found.inverse(0.1)["0"])
    wanted = torch.linalg.inv(exact + 0.1 * torch.eye(5).double())
    basis = found.bases["0"][1]
    torch.testing.assert_close(found.eigenvalues["0"][0], (basis.T @ exact @ basis).diagonal().cpu(), rtol=1e-8, atol=1e-10)
    assert found.mean * 5 == pytest.approx(float(exact.trace()))
    distance = float((kept - wanted).norm() / wanted.norm())
    if outcome == "sigmoid" and spread:
        assert 1e-4 < distance < 0.2
    else:
        assert distance < 1e-10


def test_bases_that_do_not_fit_into_memory_are_refused_before_they_are_computed() -> None:
    model = nn.Sequential(nn.Linear(300_000, 2))
    with pytest.raises(MachineError, match=r"the layer '0' alone has bases of 2 x 2 and 300001 x 300001\. Free memory"):
        ekfac.fisher(model, [torch.zeros(2, 300_000)], "softmax")


@pytest.mark.parametrize("bias", [True, False])
def test_a_model_that_is_one_layer_has_the_curvature_of_that_layer_among_others(bias: bool) -> None:
    """Its path is empty and its parameters' names have no dot."""
    case = Case(lambda: nn.Linear(3, 4, bias=bias), image(3), (4,))
    alone, samples = model_of(case), samples_of(case, 12)
    found = ekfac.fisher(alone, [samples], "softmax", batch_size=5)
    within = ekfac.fisher(nn.Sequential(alone), [samples], "softmax", batch_size=5)
    assert set(found.bases) == {""}
    torch.testing.assert_close(found.eigenvalues[""], within.eigenvalues["0"], **FLOAT64)
    assert found.mean == pytest.approx(within.mean)
    cotangent = torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(12, 4)
    one, other = (
        tangent_kernel(model, samples, left_cotangent=cotangent, precondition=curvature.relative_inverse(0.3))
        for model, curvature in ((alone, found), (nn.Sequential(alone), within))
    )
    torch.testing.assert_close(one, other, **FLOAT64)
