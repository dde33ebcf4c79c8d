"""The derivative of logit(p_y), the kernel through it, and the blocks that leave the class free: against plain autograd."""

import pytest
import torch
import torch.nn.functional as F
from engine_cases import FLOAT64, MODELS, Case, autograd_rows, image, joined, model_of, samples_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tracin_core.engine.classification import logit_cotangent, logit_kernel, tangent_diagonal_blocks
from tracin_core.engine.kernel import model_outputs, tangent_norms
from tracin_core.errors import DataError, NonFiniteError, OutputShapeError

CLASSIFIER = MODELS["classifier"]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 5), k=st.integers(2, 6), scale=st.sampled_from([0.1, 1.0, 10.0, 300.0]), seed=st.integers(0, 999))
def test_the_cotangent_is_the_derivative_of_the_logit(n: int, k: int, scale: float, seed: int) -> None:
    """Also where p_y is 0 or 1 to the last bit, where autograd through log(p / (1 - p)) gives nothing."""
    torch.manual_seed(seed)
    outputs = (scale * torch.randn(n, k, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(0, k, (n,))
    chosen = F.one_hot(labels, k).bool()
    others = outputs.masked_fill(chosen, float("-inf")).logsumexp(1) if n else outputs.sum(1)
    (expected,) = torch.autograd.grad((outputs[chosen] - others).sum(), outputs)
    torch.testing.assert_close(logit_cotangent(outputs, labels), expected if n else outputs.detach(), **FLOAT64)
    if n and scale <= 1:
        p = torch.softmax(outputs, 1)[chosen]
        (direct,) = torch.autograd.grad((p / (1 - p)).log().sum(), outputs)
        torch.testing.assert_close(logit_cotangent(outputs, labels), direct, rtol=1e-7, atol=1e-9)


def test_two_classes_are_their_difference() -> None:
    outputs, labels = torch.randn(3, 2), torch.tensor([0, 1, 1])
    assert torch.equal(logit_cotangent(outputs, labels), torch.tensor([[1.0, -1.0], [-1.0, 1.0], [-1.0, 1.0]]))


def test_losses_of_the_probability_scale_one_kernel() -> None:
    """grad(-log p_y) = -(1 - p_y) grad f: the influence of cross-entropy is the kernel's, times both factors."""
    model, train, test = model_of(CLASSIFIER), samples_of(CLASSIFIER, 6), samples_of(CLASSIFIER, 4, seed=5)
    here, there = torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([2, 0, 1, 1])

    def loss_rows(samples: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rows = []
        for row, label in zip(samples, labels, strict=True):
            gradient = torch.autograd.grad(F.cross_entropy(model(row[None]), label[None]), list(model.parameters()))
            rows.append(torch.cat([g.flatten() for g in gradient]))
        return torch.stack(rows)

    def wrongness(samples: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return 1 - torch.softmax(model(samples), 1).gather(1, labels[:, None]).squeeze(1).detach()

    kernel = logit_kernel(model, train, here, test, there, batch_size=4)
    influence = wrongness(train, here)[:, None] * wrongness(test, there) * kernel
    torch.testing.assert_close(influence, loss_rows(train, here) @ loss_rows(test, there).T, **FLOAT64)
    own = logit_kernel(model, train, here)
    assert torch.equal(own, own.T)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("name", ["classifier", "map", "tied embedding", "wide classifier"])
def test_diagonal_blocks_equal_autograd(name: str, batch_size: int) -> None:
    """All outputs against all outputs, sample by sample; small layers by forming, wide ones without."""
    wide = Case(lambda: nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3)), image(4), (3,))
    case = MODELS.get(name, wide)
    model, samples = model_of(case), samples_of(case, 5)
    outputs = model(samples)
    k = outputs[0].numel()
    rows = torch.stack(
        [
            joined(autograd_rows(model, samples, 5, torch.eye(k).double()[a].reshape(outputs[:1].shape).expand_as(outputs)))
            for a in range(k)
        ],
        1,
    )
    blocks = tangent_diagonal_blocks(model, samples, batch_size=batch_size)
    torch.testing.assert_close(blocks, rows @ rows.transpose(1, 2), **FLOAT64)


def test_any_label_is_free_in_the_blocks() -> None:
    """c^T B c is the squared norm for the cotangent c."""
    model, samples, labels = model_of(CLASSIFIER), samples_of(CLASSIFIER, 5), torch.tensor([2, 0, 1, 1, 2])
    blocks = tangent_diagonal_blocks(model, samples)
    cotangent = logit_cotangent(model_outputs(model, samples), labels)
    own = torch.einsum("na,nab,nb->n", cotangent, blocks, cotangent)
    torch.testing.assert_close(own, tangent_norms(model, samples, cotangent=cotangent), **FLOAT64)
    chosen = tangent_diagonal_blocks(model, samples, parameters=["2"]) + tangent_diagonal_blocks(model, samples, parameters=["0"])
    torch.testing.assert_close(chosen, blocks, **FLOAT64)
    assert tangent_diagonal_blocks(model, samples[:0]).numel() == 0


@pytest.mark.parametrize(
    ("outputs", "labels", "error", "message"),
    [
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.long), OutputShapeError, r"shape \(3, 1\).*single logit is a score"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), OutputShapeError, r"shape \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(3), DataError, "labels are float32"),
        (torch.zeros(3, 2), torch.tensor([0, 1]), DataError, r"shape \(2,\).* each of 3 samples"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), DataError, "from 0 to 2; give one whole number from 0 to 1"),
        (torch.zeros(3, 2), torch.tensor([0, -1, 1]), DataError, "from -1 to 1"),
    ],
)
def test_labels_and_outputs_must_fit(outputs, labels, error, message: str) -> None:
    with pytest.raises(error, match=message):
        logit_cotangent(outputs, labels)


def test_samples_without_labels_are_refused() -> None:
    model, samples = model_of(CLASSIFIER), samples_of(CLASSIFIER, 3)
    with pytest.raises(DataError, match="belong together"):
        logit_kernel(model, samples, torch.zeros(3, dtype=torch.long), samples)


def test_blocks_that_are_not_finite_name_the_sample() -> None:
    model, samples = nn.Linear(2, 2).double(), torch.tensor([[1.0, 2.0], [1e200, 0.0]], dtype=torch.float64)
    with pytest.raises(NonFiniteError, match="Sample 1 has NaN or infinite products"):
        tangent_diagonal_blocks(model, samples)
