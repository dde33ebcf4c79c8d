"""Sample losses: values and derivatives against torch's autograd and 600-digit decimals; kernels scaled by them against gradients."""

from decimal import Decimal, localcontext
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tracin_core.engine.kernel import tangent_kernel, tangent_norms
from tracin_core.errors import ViewError
from tracin_core.scores.sample_losses import (
    SampleLoss,
    SampleLossName,
    label_logit,
    label_logit_cotangent,
    label_logit_derivative,
    sample_derivative,
    sample_loss,
)

FLOAT64 = {"rtol": 1e-10, "atol": 1e-12}  # torch goes through 1 - p, which loses digits of its own
EXACT = {"rtol": 1e-12, "atol": 0.0}  # some roundings; nothing may cancel, however small the number
NAMES = get_args(SampleLossName)
OF_PROBABILITY = ["cross_entropy", "focal", "generalized_cross_entropy"]

# Halves, so that residuals exactly at 0 and at delta are common and exact; ends that saturate every probability.
NUMBERS = st.integers(-20, 20).map(lambda value: value / 2)
LOGITS = st.one_of(NUMBERS, st.sampled_from([-500.0, -40.0, 40.0, 500.0]), st.floats(-8, 8))


def losses(name: SampleLossName) -> st.SearchStrategy[SampleLoss]:
    return st.builds(
        SampleLoss,
        name=st.just(name),
        smoothing=st.sampled_from([0.0, 0.1, 0.9]),
        gamma=st.sampled_from([0.0, 1.0, 2.0, 3.5]),
        q=st.sampled_from([1e-3, 0.5, 0.7, 1.0]),
        delta=st.sampled_from([0.5, 1.0, 2.5]),
    )


def in_torch(loss: SampleLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    """The textbook formula of the sum over all samples; of p_y, not of its logit."""
    if loss.name == "binary_cross_entropy":
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="sum")
    if loss.name == "squared_error":
        return F.mse_loss(outputs, targets, reduction="sum")
    if loss.name == "huber":
        return F.huber_loss(outputs, targets, delta=loss.delta, reduction="sum")
    if loss.name in ("cross_entropy", "label_smoothing"):
        smoothing = loss.smoothing if loss.name == "label_smoothing" else 0.0
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing, reduction="sum")
    log_p = F.log_softmax(outputs, dim=1).gather(1, targets[:, None])[:, 0]
    if loss.name == "focal":
        return (-((1 - log_p.exp()) ** loss.gamma) * log_p).sum()
    return ((1 - log_p.exp() ** loss.q) / loss.q).sum()


def compare(loss: SampleLoss, outputs: np.ndarray, targets: np.ndarray) -> None:
    """Loss and derivative of each sample, one after the other, are autograd's; so is the derivative of the sum over all."""
    values, derivatives = sample_loss(loss, outputs, targets), sample_derivative(loss, outputs, targets)
    assert (values.shape, derivatives.shape) == ((len(outputs),), outputs.shape)
    assert values.dtype == derivatives.dtype == np.float64
    leaf = torch.tensor(outputs, requires_grad=True)
    total = in_torch(loss, leaf, torch.tensor(targets))
    total.backward()
    np.testing.assert_allclose(values.sum(), total.item(), **FLOAT64)
    np.testing.assert_allclose(derivatives, leaf.grad.numpy(), **FLOAT64)
    for row in range(len(outputs)):
        alone = in_torch(loss, torch.tensor(outputs[row : row + 1]), torch.tensor(targets[row : row + 1]))
        np.testing.assert_allclose(values[row], alone.item(), **FLOAT64)


# ---- against autograd -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    data=st.data(), classes=st.integers(2, 5), samples=st.integers(1, 6), name=st.sampled_from(["cross_entropy", "label_smoothing"])
)
def test_cross_entropy_and_smoothing_are_those_of_autograd(
    data: st.DataObject, classes: int, samples: int, name: SampleLossName
) -> None:
    """Saturated logits too; a label's smoothing is torch's."""
    rows = st.lists(LOGITS, min_size=classes, max_size=classes)
    outputs = np.array(data.draw(st.lists(rows, min_size=samples, max_size=samples)))
    labels = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=samples, max_size=samples)))
    compare(data.draw(losses(name)), outputs, labels)


@settings(deadline=None)
@given(data=st.data(), seed=st.integers(0, 10_000), classes=st.integers(2, 5), name=st.sampled_from(OF_PROBABILITY[1:]))
def test_losses_of_the_label_probability_are_those_of_autograd(
    data: st.DataObject, seed: int, classes: int, name: SampleLossName
) -> None:
    """Where torch's own way through 1 - p holds; its ends are compared with decimals below."""
    generator = np.random.default_rng(seed)
    compare(data.draw(losses(name)), generator.normal(scale=2, size=(5, classes)), generator.integers(0, classes, size=5))


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(LOGITS, st.integers(0, 1)), min_size=1, max_size=8), column=st.booleans())
def test_binary_cross_entropy_is_that_of_autograd(pairs: list[tuple[float, int]], column: bool) -> None:
    """With one output as a row of numbers or as a column; labels then have the same shape for torch alone."""
    outputs, labels = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    loss = SampleLoss("binary_cross_entropy")
    compare(loss, outputs, labels)
    if column:
        np.testing.assert_array_equal(
            sample_derivative(loss, outputs[:, None], labels), sample_derivative(loss, outputs, labels)[:, None]
        )
        np.testing.assert_array_equal(sample_loss(loss, outputs[:, None], labels), sample_loss(loss, outputs, labels))


@settings(deadline=None)
@given(data=st.data(), width=st.integers(0, 3), samples=st.integers(1, 6), name=st.sampled_from(["squared_error", "huber"]))
def test_regression_losses_are_those_of_autograd(data: st.DataObject, width: int, samples: int, name: SampleLossName) -> None:
    """Summed over a sample's outputs, one ([n] or [n, 1]) or several; at a residual of 0 and of delta exactly, too."""
    shape = (samples, width) if width else (samples,)
    table = st.lists(NUMBERS, min_size=samples * max(width, 1), max_size=samples * max(width, 1))
    outputs, targets = (np.array(data.draw(table)).reshape(shape) for _ in range(2))
    compare(data.draw(losses(name)), outputs, targets)


@pytest.mark.parametrize("residual", [-2.0, -1.5, -1.0, 0.0, 1.0, 1.5, 2.0])
def test_the_boundaries_of_residuals(residual: float) -> None:
    """Squared error has no half; Huber joins at |r| = delta with slope delta from either side."""
    outputs, targets = np.array([3.0 + residual]), np.array([3.0])
    square, huber = SampleLoss("squared_error"), SampleLoss("huber", delta=1.5)
    assert sample_derivative(square, outputs, targets).tolist() == [2 * residual]
    assert sample_derivative(huber, outputs, targets).tolist() == [min(max(residual, -1.5), 1.5)]
    assert sample_loss(huber, outputs, targets).tolist() == [
        residual**2 / 2 if abs(residual) <= 1.5 else 1.5 * (abs(residual) - 0.75)
    ]
    compare(square, outputs, targets)
    compare(huber, outputs, targets)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_summed_never_averaged(name: SampleLossName) -> None:
    """A sample's loss and derivative are the same alone as beside others; no sample, no loss."""
    generator = np.random.default_rng(0)
    loss = SampleLoss(name)
    outputs = generator.normal(size=(6,) if name == "binary_cross_entropy" else (6, 3))
    targets = generator.integers(0, 2, size=6) if loss.is_of_label else generator.normal(size=(6, 3))
    for function in (sample_loss, sample_derivative):
        alone = [function(loss, outputs[row : row + 1], targets[row : row + 1])[0] for row in range(6)]
        np.testing.assert_allclose(function(loss, outputs, targets), alone, **EXACT)
        assert function(loss, outputs[:0], targets[:0]).shape == function(loss, outputs, targets)[:0].shape


# ---- where probabilities round to 0 and 1 -----------------------------------------------------------------------------------------


def in_decimals(loss: SampleLoss, outputs: list[float], label: int) -> tuple[float, float, list[float]]:
    """The loss, dL/df and dL/doutputs, by the textbook formula with 600 digits: 1 - p_y cancels, and yet keeps some."""
    with localcontext() as context:
        context.prec = 600
        powers = [Decimal(output).exp() for output in outputs]
        p = [power / sum(powers) for power in powers]
        right, wrong = p[label], 1 - p[label]
        if loss.name == "cross_entropy":
            value, by_p = -right.ln(), -1 / right
        elif loss.name == "focal":
            gamma = Decimal(loss.gamma)
            value = -(wrong**gamma) * right.ln()
            by_p = gamma * wrong ** (gamma - 1) * right.ln() - wrong**gamma / right
        else:
            q = Decimal(loss.q)
            value, by_p = (1 - right**q) / q, -(right ** (q - 1))
        by_outputs = [by_p * right * ((1 if place == label else 0) - p[place]) for place in range(len(p))]
        by_outputs[label] = by_p * right * wrong
        return float(value), float(by_p * right * wrong), [float(number) for number in by_outputs]


@pytest.mark.parametrize(
    "outputs", [[500.0, -500.0, 0.0], [500.0, 499.0, -500.0], [-500.0, 500.0, 500.0], [40.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
)
@pytest.mark.parametrize("label", [0, 1, 2])
@pytest.mark.parametrize(
    "loss",
    [
        SampleLoss("cross_entropy"),
        SampleLoss("focal", gamma=0.5),
        SampleLoss("focal", gamma=2.0),
        SampleLoss("generalized_cross_entropy", q=0.25),
        SampleLoss("generalized_cross_entropy", q=1.0),
    ],
    ids=lambda loss: loss.describe(),
)
def test_saturated_probabilities_keep_their_digits(loss: SampleLoss, outputs: list[float], label: int) -> None:
    """Logits of +-500: p_y rounds to 1 or 0, but 1 - p_y = e^-1000 or so is not lost before it is smaller than any float."""
    value, by_logit, by_outputs = in_decimals(loss, outputs, label)
    given_ = np.array([outputs]), np.array([label])
    smallest = {"rtol": 1e-12, "atol": 1e-300}  # some of the true numbers are below what a float can hold
    np.testing.assert_allclose(sample_loss(loss, *given_), [value], **smallest)
    np.testing.assert_allclose(label_logit_derivative(loss, *given_), [by_logit], **smallest)
    np.testing.assert_allclose(sample_derivative(loss, *given_), [by_outputs], **smallest)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_cotangent_never_vanishes(classes: int) -> None:
    """f and its cotangent at logits of +-500, for every label, right and wrong; where 1 - p_y is 0 in any float, f still tells."""
    outputs = np.full((classes, classes), -500.0)
    outputs[:, 0] = 500.0
    labels = np.arange(classes)
    f, cotangent = label_logit(outputs, labels), label_logit_cotangent(outputs, labels)
    np.testing.assert_allclose(f, [1000 - np.log(classes - 1)] + [-1000.0] * (classes - 1), **EXACT)
    np.testing.assert_array_equal(cotangent[labels, labels], 1.0)
    np.testing.assert_allclose(cotangent.sum(axis=1), 0.0, atol=1e-12)
    np.testing.assert_allclose(cotangent[0, 1:], -1 / (classes - 1), **EXACT)
    np.testing.assert_array_equal(cotangent[1:, 0], -1.0)
    assert label_logit_derivative(SampleLoss(), outputs, labels).tolist() == [-0.0] + [-1.0] * (classes - 1)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5))
def test_the_label_logit_and_its_cotangent_are_those_of_autograd(seed: int, classes: int) -> None:
    """f = logit(p_y), through torch's own log-probabilities, and grad CE = -(1 - p_y) grad f."""
    generator = np.random.default_rng(seed)
    outputs, labels = generator.normal(size=(6, classes)), generator.integers(0, classes, size=6)
    leaf = torch.tensor(outputs, requires_grad=True)
    p = leaf.softmax(dim=1).gather(1, torch.tensor(labels)[:, None])[:, 0]
    logit = torch.logit(p)
    logit.sum().backward()
    np.testing.assert_allclose(label_logit(outputs, labels), logit.detach().numpy(), **FLOAT64)
    np.testing.assert_allclose(label_logit_cotangent(outputs, labels), leaf.grad.numpy(), **FLOAT64)
    np.testing.assert_allclose(label_logit_derivative(SampleLoss(), outputs, labels), -(1 - p.detach().numpy()), **FLOAT64)


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(LOGITS, st.integers(0, 1)), min_size=1, max_size=8), name=st.sampled_from(OF_PROBABILITY))
def test_one_output_is_two_classes(pairs: list[tuple[float, int]], name: SampleLossName) -> None:
    """An output s says what the outputs (0, s) say: the same loss and slope, and the label's logit is (2 y - 1) s."""
    one, labels = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    two = np.stack([np.zeros(len(one)), one], axis=1)
    np.testing.assert_array_equal(label_logit(one, labels), (2 * labels - 1) * one)
    np.testing.assert_array_equal(label_logit_cotangent(one[:, None], labels), 2 * labels[:, None] - 1.0)
    single = SampleLoss("binary_cross_entropy" if name == "cross_entropy" else name)
    np.testing.assert_allclose(sample_loss(single, one, labels), sample_loss(SampleLoss(name), two, labels), **EXACT)
    np.testing.assert_allclose(
        sample_derivative(single, one, labels), sample_derivative(SampleLoss(name), two, labels)[:, 1], **EXACT
    )


def test_losses_become_cross_entropy_at_the_end_of_their_setting() -> None:
    """No smoothing, no focus, and q towards 0."""
    generator = np.random.default_rng(0)
    outputs, labels = generator.normal(scale=4, size=(20, 4)), generator.integers(0, 4, size=20)
    plain = SampleLoss("cross_entropy")
    ends = {
        SampleLoss("label_smoothing", smoothing=0.0): 1e-14,
        SampleLoss("focal", gamma=0.0): 1e-14,
        SampleLoss("generalized_cross_entropy", q=1e-9): 1e-7,
    }
    for loss, error in ends.items():
        for function in (sample_loss, sample_derivative):
            np.testing.assert_allclose(function(loss, outputs, labels), function(plain, outputs, labels), rtol=error)


# ---- with a kernel: influence without the loss's own gradients -------------------------------------------------------------------


def network(outputs: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, outputs)).double()


def gradients(model: nn.Module, loss: SampleLoss, inputs: Tensor, targets: Tensor) -> np.ndarray:
    """The gradient of each sample's loss, by one backward pass per sample: [n, parameters]."""
    rows = []
    for row in range(len(inputs)):
        outputs = model(inputs[row : row + 1])
        if outputs.shape[1] == 1:
            outputs = outputs[:, 0]
        gradient = torch.autograd.grad(in_torch(loss, outputs, targets[row : row + 1]), tuple(model.parameters()))
        rows.append(torch.cat([part.flatten() for part in gradient]).numpy())
    return np.stack(rows)


def outputs_of(model: nn.Module, inputs: Tensor) -> np.ndarray:
    return model(inputs).detach().numpy()


def sides(kind: str, outputs: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Inputs with targets, of 7 training samples and of 4 test samples."""
    torch.manual_seed(5)
    drawn = []
    for count in (7, 4):
        inputs = 2 * torch.randn(count, 4, dtype=torch.float64)
        numbers = 2 * torch.randn(*((count, outputs) if outputs > 1 else (count,)), dtype=torch.float64)
        drawn.append((inputs, torch.arange(count) % 3 if kind == "label" else numbers))
    return drawn


@pytest.mark.parametrize("test_name", OF_PROBABILITY)
@pytest.mark.parametrize("train_name", OF_PROBABILITY)
def test_one_kernel_of_the_label_logit_serves_every_loss_of_it(train_name: SampleLossName, test_name: SampleLossName) -> None:
    """influence = dL/df K dL'/df', whatever the loss on either side, is the product of the losses' gradients; so is its diagonal."""
    model = network(3)
    (train, labels), (test, wanted) = sides("label")
    train_outputs, test_outputs = outputs_of(model, train), outputs_of(model, test)
    cotangents = [torch.tensor(label_logit_cotangent(*side)) for side in ((train_outputs, labels), (test_outputs, wanted))]
    kernel = tangent_kernel(model, train, test, left_cotangent=cotangents[0], right_cotangent=cotangents[1]).numpy()
    norms = tangent_norms(model, train, cotangent=cotangents[0]).numpy()
    of_train, of_test = SampleLoss(train_name), SampleLoss(test_name)
    slope = label_logit_derivative(of_train, train_outputs, labels)
    influence = slope[:, None] * kernel * label_logit_derivative(of_test, test_outputs, wanted)
    rows = gradients(model, of_train, train, labels)
    np.testing.assert_allclose(influence, rows @ gradients(model, of_test, test, wanted).T, **FLOAT64)
    np.testing.assert_allclose(slope**2 * norms, (rows**2).sum(axis=1), **FLOAT64)


@pytest.mark.parametrize(
    "loss",
    [SampleLoss("squared_error"), SampleLoss("huber", delta=1.5), SampleLoss("cross_entropy"), SampleLoss("label_smoothing")],
    ids=lambda loss: loss.describe(),
)
def test_a_kernel_of_the_derivatives_is_the_influence(loss: SampleLoss) -> None:
    """With a loss's derivative as the cotangent the kernel is the influence itself, for any loss of several outputs."""
    model = network(3)
    (train, targets), (test, wanted) = sides("label" if loss.is_of_label else "number")
    left, right = (torch.tensor(sample_derivative(loss, outputs_of(model, x), y)) for x, y in ((train, targets), (test, wanted)))
    expected = gradients(model, loss, train, targets) @ gradients(model, loss, test, wanted).T
    kernel = tangent_kernel(model, train, test, left_cotangent=left, right_cotangent=right)
    np.testing.assert_allclose(kernel.numpy(), expected, **FLOAT64)
    if loss.name == "huber":
        far = np.abs(left.numpy()) == loss.delta
        assert 0 < far.mean() < 1, "residuals on both sides of delta"


def full_kernel(model: nn.Module, left: Tensor, right: Tensor, outputs: int) -> np.ndarray:
    """K[i, a, j, b] = grad o_a(x_i) . grad o_b(x_j): every sample once per output, with that output as its cotangent."""
    units = torch.eye(outputs, dtype=torch.float64)
    sides = [side.repeat_interleave(outputs, dim=0) for side in (left, right)]
    cotangents = [units.repeat(len(side), 1) for side in (left, right)]
    kernel = tangent_kernel(model, *sides, left_cotangent=cotangents[0], right_cotangent=cotangents[1])
    return kernel.reshape(len(left), outputs, len(right), outputs).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_a_full_kernel_leaves_the_loss_and_the_targets_free(name: SampleLossName) -> None:
    """Computed once, it gives the influence under any loss, and its diagonal blocks any self-influence."""
    loss = SampleLoss(name, delta=1.5)
    outputs = 1 if name == "binary_cross_entropy" else 3
    model = network(outputs)
    (train, targets), (test, wanted) = sides("label" if loss.is_of_label else "number", outputs)
    if outputs == 1:
        targets, wanted = targets % 2, wanted % 2
    full = full_kernel(model, train, torch.cat([test, train]), outputs)
    left, right = (sample_derivative(loss, outputs_of(model, x), y) for x, y in ((train, targets), (test, wanted)))
    rows, columns = gradients(model, loss, train, targets), gradients(model, loss, test, wanted)
    np.testing.assert_allclose(np.einsum("ia,iajb,jb->ij", left, full[:, :, :4], right), rows @ columns.T, **FLOAT64)
    blocks = np.einsum("iaib->iab", full[:, :, 4:])
    np.testing.assert_allclose(np.einsum("ia,iab,ib->i", left, blocks, left), (rows**2).sum(axis=1), **FLOAT64)


@pytest.mark.parametrize(
    "loss",
    [SampleLoss("squared_error"), SampleLoss("huber", delta=1.5), SampleLoss("binary_cross_entropy")],
    ids=lambda loss: loss.name,
)
def test_one_output_needs_no_cotangent(loss: SampleLoss) -> None:
    """influence = dL/ds K dL'/ds' with the kernel of the outputs alone, [n, 1]."""
    model = network(1)
    (train, targets), (test, wanted) = sides("label" if loss.is_of_label else "number", 1)
    if loss.is_of_label:
        targets, wanted = targets % 2, wanted % 2
    left, right = (sample_derivative(loss, outputs_of(model, x), y) for x, y in ((train, targets), (test, wanted)))
    expected = gradients(model, loss, train, targets) @ gradients(model, loss, test, wanted).T
    np.testing.assert_allclose(left * tangent_kernel(model, train, test).numpy() * right[:, 0], expected, **FLOAT64)


def test_a_memorised_sample_keeps_its_norm_in_float32() -> None:
    """1 - p_y below float32's rounding: of the loss's own cotangent in float32 its largest part is 0, of the logit's nothing is lost."""
    model = network(3)
    with torch.no_grad():
        model[-1].weight.mul_(120)
    (train, _), _ = sides("label")
    outputs = outputs_of(model, train)
    labels = torch.tensor(outputs.argmax(axis=1))
    slope = label_logit_derivative(SampleLoss(), outputs, labels)
    memorised = (np.abs(slope) < 1e-8) & (np.abs(slope) > 1e-12)  # and still above the rounding of autograd's float64
    assert memorised.any()
    expected = (gradients(model, SampleLoss(), train, labels) ** 2).sum(axis=1)
    single = model.float()
    norms = tangent_norms(single, train.float(), cotangent=torch.tensor(label_logit_cotangent(outputs, labels)).float())
    np.testing.assert_allclose((slope**2 * norms.numpy())[memorised], expected[memorised], rtol=2e-4)
    own = torch.tensor(outputs).float().softmax(dim=1) - F.one_hot(labels, 3)
    lost = tangent_norms(single, train.float(), cotangent=own).numpy()[memorised] / expected[memorised]
    assert (np.abs(lost - 1) > 0.1).all()


# ---- what is refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings_", "told"),
    [
        ({"name": "margin"}, "no loss 'margin'; choose from cross_entropy"),
        ({"smoothing": 1.0}, "smoothing is 1.0; choose a number of at least 0 and below 1"),
        ({"smoothing": -0.1}, "smoothing is -0.1"),
        ({"smoothing": float("nan")}, "smoothing is nan"),
        ({"delta": 0.0}, "delta is 0.0; choose a number above 0"),
        ({"delta": -1}, "delta is -1"),
        ({"delta": float("inf")}, "delta is inf"),
        ({"delta": float("nan")}, "delta is nan"),
        ({"delta": "wide"}, "delta is wide"),
        ({"gamma": -1.0}, "gamma is -1.0"),
        ({"gamma": float("inf")}, "gamma is inf"),
        ({"q": 0.0}, "q is 0.0; choose a number above 0 and at most 1"),
        ({"q": 1.5}, "q is 1.5"),
        ({"q": None}, "q is None"),
    ],
)
def test_settings_without_meaning_are_refused(settings_: dict[str, Any], told: str) -> None:
    with pytest.raises(ViewError, match=told):
        SampleLoss(**settings_)


def test_a_loss_describes_what_matters_for_it() -> None:
    assert SampleLoss().describe() == "cross_entropy"
    assert SampleLoss("huber", delta=2.5).describe() == "huber, delta 2.5"
    assert SampleLoss("label_smoothing").describe() == "label_smoothing, smoothing 0.1"


@pytest.mark.parametrize("function", [sample_loss, sample_derivative])
@pytest.mark.parametrize(
    ("name", "outputs", "targets", "told"),
    [
        ("cross_entropy", np.zeros((2, 3)), [0, 3], "Label 1 is 3; labels of 3 classes are whole numbers from 0 to 2"),
        ("cross_entropy", np.zeros((2, 3)), [-1, 0], "Label 0 is -1"),
        ("cross_entropy", np.zeros((2, 3)), [0, 0.5], "Label 1 is 0.5"),
        ("cross_entropy", np.zeros((2, 3)), [0, np.nan], "label at 1 is nan"),
        ("cross_entropy", np.zeros((2, 3)), ["cat", "dog"], "label must be a number"),
        ("cross_entropy", np.zeros((2, 3)), [0], r"2 samples need as many labels, in one row; they have the shape \(1,\)"),
        ("cross_entropy", np.zeros((2, 3)), np.eye(2, 3), r"shape \(2, 3\)"),
        ("cross_entropy", np.zeros(2), [0, 1], "needs at least two outputs per sample, not one; choose binary_cross_entropy"),
        ("label_smoothing", np.zeros((2, 1)), [0, 1], "needs at least two outputs"),
        ("cross_entropy", np.array([[0, 1], [0, np.nan]]), [0, 1], "output at 1, 1 is nan"),
        ("cross_entropy", np.array([[0, np.inf], [0, 0]]), [0, 1], "output at 0, 1 is inf"),
        ("cross_entropy", np.zeros((2, 3, 4)), [0, 1], r"shape \(2, 3, 4\)"),
        ("focal", np.zeros((2, 0)), [0, 1], r"shape \(2, 0\)"),
        ("binary_cross_entropy", np.zeros(2), [0, 2], "Label 1 is 2; labels of 2 classes"),
        ("binary_cross_entropy", np.zeros((2, 2)), [0, 1], "takes one output per sample, not 2; choose cross_entropy"),
        ("focal", np.zeros(2), [0, 2], "labels of 2 classes"),
        ("squared_error", np.zeros(2), [0, np.nan], "target at 1 is nan"),
        ("huber", np.zeros((2, 3)), np.full((2, 3), np.inf), "target at 0, 0 is inf"),
        ("huber", np.zeros((2, 3)), np.zeros(2), r"shape \(2, 3\) cannot meet targets of shape \(2,\)"),
        ("squared_error", np.zeros((3, 1)), np.zeros(2), r"shape \(3, 1\) cannot meet targets of shape \(2,\)"),
        ("squared_error", np.zeros(2), [None, 1.0], "target must be a number"),
        ("squared_error", np.array([np.nan, 0]), [0.0, 1.0], "output at 0 is nan"),
    ],
)
def test_outputs_and_targets_without_a_loss_are_refused(
    function: Any, name: SampleLossName, outputs: np.ndarray, targets: Any, told: str
) -> None:
    with pytest.raises(ViewError, match=told):
        function(SampleLoss(name), outputs, targets)


@pytest.mark.parametrize("name", ["label_smoothing", "squared_error", "huber"])
def test_a_loss_of_more_than_the_label_probability_scales_no_kernel_of_it(name: SampleLossName) -> None:
    with pytest.raises(ViewError, match="no scaling of that probability's kernel; choose from cross_entropy, focal"):
        label_logit_derivative(SampleLoss(name), np.zeros((2, 3)), [0, 1])


def test_a_column_of_one_output_meets_a_row_of_targets() -> None:
    """[n, 1] against [n] is one residual per sample, never the n x n of broadcasting."""
    outputs, targets = np.array([[1.0], [2.0]]), np.array([0.0, 4.0])
    assert sample_loss(SampleLoss("squared_error"), outputs, targets).tolist() == [1.0, 4.0]
    assert sample_derivative(SampleLoss("squared_error"), outputs, targets).tolist() == [[2.0], [-4.0]]
