"""The tangent kernel against one backward pass per sample, and the laws that it obeys whatever the model."""

from itertools import combinations

import pytest
import torch
from engine_cases import (
    CASES,
    FLOAT32,
    FLOAT64,
    MODELS,
    Case,
    Checkpointed,
    Head,
    Overwriting,
    autograd_rows,
    cotangent_of,
    image,
    joined,
    model_of,
    part,
    samples_of,
    tokens,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tracin_core.engine import memory
from tracin_core.engine.gradients import Gradients
from tracin_core.engine.kernel import (
    coverage,
    kernel_groups,
    layer_groups,
    memory_estimate,
    model_outputs,
    tangent_kernel,
    tangent_kernel_by_layer,
    tangent_norms,
)
from tracin_core.errors import (
    BatchCoupledModelError,
    DataError,
    ModelError,
    NonFiniteError,
    OutputShapeError,
    UnknownParameterError,
)

COUNT = 17
CONV_NET = MODELS["conv net"]
CLASSIFIER = MODELS["classifier"]


@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_autograd(name: str) -> None:
    """Whatever the layers and however they are wired, in batches of 1, 7, 16 and all."""
    case = CASES[name]
    model, samples, cotangent = model_of(case), samples_of(case, COUNT), cotangent_of(case, COUNT)
    rows = joined(autograd_rows(model, samples, COUNT, cotangent))
    for batch_size in (1, 7, 16, COUNT):
        kernel = tangent_kernel(model, samples, left_cotangent=cotangent, batch_size=batch_size)
        torch.testing.assert_close(kernel, rows @ rows.T, **FLOAT64)
        norms = tangent_norms(model, samples, cotangent=cotangent, batch_size=batch_size)
        torch.testing.assert_close(norms, (rows**2).sum(1), **FLOAT64)


@pytest.mark.parametrize("name", MODELS)
def test_each_layer_equals_autograd(name: str) -> None:
    """Two sets of samples, each with its cotangent, layer by layer; layers add up to the kernel."""
    case = MODELS[name]
    model, left, right = model_of(case), samples_of(case, 5), samples_of(case, 8, seed=3)
    here, there = cotangent_of(case, 5), cotangent_of(case, 8, seed=4)
    rows, columns = autograd_rows(model, left, 5, here), autograd_rows(model, right, 8, there)
    settings_ = {"left_cotangent": here, "right_cotangent": there, "batch_size": 3}
    by_layer = tangent_kernel_by_layer(model, left, right, **settings_)
    groups = layer_groups(model)
    assert by_layer.shape == (len(groups), 5, 8)
    for products, names in zip(by_layer, groups.values(), strict=True):
        ours, theirs = joined({n: rows[n] for n in names}), joined({n: columns[n] for n in names})
        torch.testing.assert_close(products, ours @ theirs.T, **FLOAT64)
    torch.testing.assert_close(by_layer.sum(0), tangent_kernel(model, left, right, **settings_), **FLOAT64)


@pytest.mark.parametrize("name", [name for name, case in MODELS.items() if case.paths])
def test_parameters_take_the_expected_path(name: str) -> None:
    """A rule where it is exact; autograd where hooks cannot see a use or find the samples."""
    case = MODELS[name]
    served = dict(coverage(model_of(case), samples_of(case, 7)))
    assert {parameter: served[parameter] for parameter in case.paths} == case.paths
    assert list(served) == [parameter for parameter, _ in model_of(case).named_parameters()]


def test_coverage_without_samples_tells_the_structure() -> None:
    assert dict(coverage(model_of(MODELS["lstm"])))["recurrent.weight_hh_l0"] == "one at a time"
    assert dict(coverage(model_of(MODELS["bare parameters"])))["scale"] == "torch.func"
    assert set(dict(coverage(model_of(MODELS["ranker large"]))).values()) == {
        "rule: Conv2d",
        "rule: BatchNorm2d",
        "rule: Linear",
    }


def test_pair_identity() -> None:
    """Every pair influence of the margin loss is the kernel's, for all train pairs against all test pairs."""
    case = MODELS["ranker small"]
    model, train, test, margin = model_of(case), samples_of(case, 6), samples_of(case, 5, seed=9), 0.3

    def pairs_of(samples: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of every pair's loss by plain autograd, and its derivatives by sample: `[pairs, P]`, `[pairs, n]`."""
        gradients, derivatives = [], []
        for i, j in combinations(range(len(samples)), 2):
            target = torch.tensor(1.0 if (i + j) % 2 else -1.0).double()
            first, second = model(samples[i : i + 1]).squeeze(), model(samples[j : j + 1]).squeeze()
            loss = nn.functional.margin_ranking_loss(first, second, target, margin=margin)
            gradient = torch.autograd.grad(loss, list(model.parameters()))
            gradients.append(torch.cat([g.flatten() for g in gradient]))
            row = torch.zeros(len(samples)).double()
            if margin - target * (first - second) >= 0:
                row[i], row[j] = -target, target
            derivatives.append(row)
        return torch.stack(gradients), torch.stack(derivatives)

    (ours, a), (theirs, b) = pairs_of(train), pairs_of(test)
    assert 0 < int((a.abs().sum(1) == 0).sum()) < len(a)
    torch.testing.assert_close(a @ tangent_kernel(model, train, test) @ b.T, ours @ theirs.T, **FLOAT64)
    between = a @ tangent_kernel(model, train) @ a.T
    torch.testing.assert_close(between.diag(), (ours**2).sum(1), **FLOAT64)


def test_outputs_with_and_without_gradients_are_those_of_one_model() -> None:
    """PyTorch's fused attention, which it takes only without gradients, puts zeros where a sequence is padded."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(9, 4)
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return torch.sin(self.encoder(self.tokens(tokens), src_key_padding_mask=tokens > 6)).sum((1, 2))

    case = Case(Padded, tokens)
    model, samples = model_of(case), samples_of(case, 6)
    samples.clamp_(max=6)
    samples[0, 5:], samples[1, 3:] = 8, 7
    plain = model(samples).detach()
    torch.testing.assert_close(model_outputs(model, samples), plain, **FLOAT64)
    rows = joined(autograd_rows(model, samples, 6))
    torch.testing.assert_close(tangent_kernel(model, samples), rows @ rows.T, **FLOAT64)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("name", ["ranker small", "ranker large"])
def test_single_precision_is_single_precision(name: str) -> None:
    """float32 in, float32 out, as near to float64 as rounding allows."""
    model, samples = model_of(MODELS[name]), samples_of(MODELS[name], 8)
    exact = tangent_kernel(model, samples)
    rounded = tangent_kernel(model.float(), samples.float())
    assert rounded.dtype == torch.float32
    torch.testing.assert_close((rounded / exact.max()).double(), exact / exact.max(), **FLOAT32)


@pytest.mark.parametrize("unit_bytes", [0, 40_000])
@pytest.mark.parametrize(("n", "m"), [(23, 9), (9, 23)])
def test_memory_budget_never_changes_a_bit(n: int, m: int, unit_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many units are kept at once, each block of products is the same computation."""
    monkeypatch.setattr(memory, "UNIT_BYTES", unit_bytes)
    model, left, right = model_of(CONV_NET), samples_of(CONV_NET, n), samples_of(CONV_NET, m, seed=3)
    model, left, right = model.float(), left.float(), right.float()
    whole = tangent_kernel_by_layer(model, left, right, batch_size=4)
    mirrored = tangent_kernel_by_layer(model, left, batch_size=4)
    for budget in (0, 20_000, 60_000):
        assert torch.equal(tangent_kernel_by_layer(model, left, right, batch_size=4, memory_budget=budget), whole)
        assert torch.equal(tangent_kernel_by_layer(model, left, batch_size=4, memory_budget=budget), mirrored)
    norms = tangent_norms(model, left, batch_size=4)
    assert torch.equal(tangent_norms(model, left, batch_size=4, memory_budget=0), norms)


def test_units_do_not_matter_beyond_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many batches meet in one product is settled by sizes alone; any number gives the same products."""
    case = MODELS["positions"]
    model, left, right = model_of(case), samples_of(case, 11), samples_of(case, 6, seed=3)
    whole = tangent_kernel_by_layer(model, left, right, batch_size=2), tangent_kernel_by_layer(model, left, batch_size=2)
    monkeypatch.setattr(memory, "UNIT_BYTES", 0)
    apart = tangent_kernel_by_layer(model, left, right, batch_size=2), tangent_kernel_by_layer(model, left, batch_size=2)
    for one, other in zip(whole, apart, strict=True):
        torch.testing.assert_close(one, other, **FLOAT64)


def test_each_gradient_is_taken_once_when_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """n + m samples, not n x m, are differentiated; with a small budget the shorter side is kept. The estimate says as much."""
    taken: list[int] = []
    take = Gradients._by_rules

    def counting(gradients: Gradients, side, rows: slice):
        taken.append(rows.stop - rows.start)
        return take(gradients, side, rows)

    monkeypatch.setattr(Gradients, "_by_rules", counting)
    monkeypatch.setattr(memory, "UNIT_BYTES", 0)
    model, left, right = model_of(CONV_NET), samples_of(CONV_NET, 20), samples_of(CONV_NET, 8)
    for budget, expected in ((None, 28), (0, 8 + 20 + 20)):
        settings_ = {"batch_size": 4, "memory_budget": budget}
        taken.clear()
        tangent_kernel(model, left, right, **settings_)
        assert expected - 4 <= sum(taken) <= expected  # the first batch, which sizes are read from, may serve the first unit
        assert memory_estimate(model, left, right, **settings_).differentiated == expected
    taken.clear()
    tangent_kernel(model, left, batch_size=4)
    assert sum(taken) == 20
    assert memory_estimate(model, left, batch_size=4).differentiated == 20


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(["conv net", "siamese", "lstm", "classifier"]), order=st.permutations(range(6)))
def test_a_product_belongs_to_two_samples(name: str, order: list[int]) -> None:
    """Reordering the samples reorders rows and columns, and does nothing else."""
    case = MODELS[name]
    model, samples, cotangent = model_of(case), samples_of(case, 6), cotangent_of(case, 6)
    kernel = tangent_kernel(model, samples, left_cotangent=cotangent, batch_size=4)
    index = torch.tensor(order)
    moved = None if cotangent is None else cotangent[index]
    again = tangent_kernel(model, part(samples, index), left_cotangent=moved, batch_size=4)
    torch.testing.assert_close(again, kernel[index][:, index], **FLOAT64)


@pytest.mark.parametrize("name", ["conv net", "classifier", "tied embedding"])
def test_against_itself_the_kernel_is_symmetric_and_positive(name: str) -> None:
    """Symmetric to the last bit; its eigenvalues are not negative beyond rounding."""
    case = MODELS[name]
    model, samples, cotangent = model_of(case), samples_of(case, 10), cotangent_of(case, 10)
    kernel = tangent_kernel(model, samples, left_cotangent=cotangent, batch_size=4)
    assert torch.equal(kernel, kernel.T)
    assert (kernel.diag() >= 0).all()
    assert torch.linalg.eigvalsh(kernel).min() >= -1e-10 * kernel.diag().max()
    norms = tangent_norms(model, samples, cotangent=cotangent)
    torch.testing.assert_close(norms, kernel.diag(), **FLOAT64)


def test_one_set_of_samples_with_two_cotangents() -> None:
    """`right=None` with a cotangent of its own: the same samples, asked about another output."""
    model, samples = model_of(CLASSIFIER), samples_of(CLASSIFIER, 5)
    first, second = cotangent_of(CLASSIFIER, 5), cotangent_of(CLASSIFIER, 5, seed=8)
    rows, columns = (joined(autograd_rows(model, samples, 5, c)) for c in (first, second))
    kernel = tangent_kernel(model, samples, left_cotangent=first, right_cotangent=second, batch_size=2)
    torch.testing.assert_close(kernel, rows @ columns.T, **FLOAT64)


def test_cotangents_scale_the_kernel() -> None:
    """The kernel is linear in each cotangent, also when the model gives one number."""
    model, samples = model_of(CONV_NET), samples_of(CONV_NET, 4)
    scale = torch.tensor([2.0, -1.0, 0.0, 0.5]).double()
    kernel = tangent_kernel(model, samples, samples, left_cotangent=scale)
    torch.testing.assert_close(kernel, scale[:, None] * tangent_kernel(model, samples), **FLOAT64)


def test_parameters_are_chosen_by_name_or_prefix() -> None:
    """Any selection is the sum of its parameters' products."""
    model, samples = model_of(CONV_NET), samples_of(CONV_NET, 4)
    rows = autograd_rows(model, samples, 4)
    chosen = ["layers.0", "layers.5.bias"]
    names = ["layers.0.weight", "layers.0.bias", "layers.5.bias"]
    expected = joined({name: rows[name] for name in names})
    torch.testing.assert_close(tangent_kernel(model, samples, parameters=chosen), expected @ expected.T, **FLOAT64)
    by_layer = tangent_kernel_by_layer(model, samples, parameters=chosen)
    torch.testing.assert_close(by_layer[0], tangent_kernel(model, samples, parameters=["layers.0."]), **FLOAT64)
    assert len(by_layer) == 2
    torch.testing.assert_close(
        tangent_norms(model, samples, parameters=["layers.5.bias"]), (rows["layers.5.bias"] ** 2).sum(1), **FLOAT64
    )


def test_a_tied_parameter_answers_to_both_names() -> None:
    case = MODELS["tied embedding"]
    model, samples, cotangent = model_of(case), samples_of(case, 4), cotangent_of(case, 4)
    kernels = [
        tangent_kernel(model, samples, left_cotangent=cotangent, parameters=[name]) for name in ("embedding.weight", "decoder")
    ]
    assert torch.equal(*kernels)
    assert list(layer_groups(model)) == ["embedding", "hidden"]


def test_layer_groups_follow_the_model() -> None:
    assert layer_groups(model_of(MODELS["bare parameters"])) == {
        "scale": ("scale",),
        "factor": ("factor",),
        "layer": ("layer.weight", "layer.bias"),
        "shift": ("shift.0",),
    }
    assert layer_groups(model_of(MODELS["frozen part"])) == {
        "layers.2": ("layers.2.bias",),
        "layers.4": ("layers.4.weight", "layers.4.bias"),
    }


@pytest.mark.parametrize("name", ["conv net", "conv1d", "embedding", "tied layers", "lstm"])
def test_a_preconditioner_weighs_every_entry(name: str) -> None:
    """g_i . (D g_j), with D in the order of the parameter whatever order the engine keeps."""
    case = CASES[name]
    model, left, right = model_of(case), samples_of(case, 5), samples_of(case, 3, seed=4)
    torch.manual_seed(3)
    scales = {name: torch.rand_like(p) + 0.5 for name, p in model.named_parameters()}
    scales.pop(next(iter(scales)))
    rows, columns = autograd_rows(model, left, 5), autograd_rows(model, right, 3)
    weighted = joined({n: g * scales[n].flatten() if n in scales else g for n, g in columns.items()})
    kernel = tangent_kernel(model, left, right, precondition=scales, batch_size=2)
    torch.testing.assert_close(kernel, joined(rows) @ weighted.T, **FLOAT64)
    kernel = tangent_kernel(model, left, precondition=scales, batch_size=2)
    assert torch.equal(kernel, kernel.T)


def test_a_preconditioner_must_fit() -> None:
    model, samples = model_of(CONV_NET), samples_of(CONV_NET, 2)
    with pytest.raises(UnknownParameterError, match=r"'layers.9' of shape \(2,\)"):
        tangent_kernel(model, samples, precondition={"layers.9": torch.ones(2)})


@pytest.mark.parametrize("name", ["conv net", "lstm", "embedding with max norm"])
def test_the_model_is_left_as_it_was_found(name: str) -> None:
    """Mode, requires_grad, hooks, gradients, weights, running statistics and precision, also after an error."""
    case = CASES[name]
    model, samples = model_of(case), samples_of(case, 4)
    model.train()
    next(model.children()).eval()
    parameters = list(model.parameters())
    parameters[-1].requires_grad_(False)
    parameters[0].requires_grad_(True)
    parameters[0].grad = torch.full_like(parameters[0], 3.0)

    def state() -> tuple[object, ...]:
        return (
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in parameters],
            [None if parameter.grad is None else parameter.grad.tolist() for parameter in parameters],
            {name: value.tolist() for name, value in model.state_dict().items()},
            [len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules()],
            torch.get_float32_matmul_precision(),
            torch.backends.mkldnn.matmul.fp32_precision,
            torch.backends.cudnn.conv.fp32_precision,
            torch.backends.cudnn.allow_tf32,
            torch.is_grad_enabled(),
        )

    before = state()
    tangent_kernel(model, samples, batch_size=3)
    tangent_norms(model, samples)
    model_outputs(model, samples)
    coverage(model, samples)
    with pytest.raises(OutputShapeError):
        tangent_kernel(model, samples, left_cotangent=torch.ones(4, 5, 6))
    assert state() == before


def test_the_surroundings_do_not_matter() -> None:
    """No grad, inference mode, autocast and reduced matrix precision around the call change no bit."""
    model, samples = model_of(CONV_NET).float(), samples_of(CONV_NET, 4).float()
    kernel = tangent_kernel(model, samples)
    with torch.no_grad():
        assert torch.equal(tangent_kernel(model, samples), kernel)
    with torch.inference_mode():
        assert torch.equal(tangent_kernel(model, samples.clone()), kernel)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tangent_kernel(model, samples), kernel)
        assert torch.equal(model_outputs(model, samples), model_outputs(model.eval(), samples))
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(tangent_kernel(model, samples), kernel)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(precision)


def test_samples_are_not_overwritten() -> None:
    """A model that works in place works on a copy."""
    model, samples = model_of(Case(Overwriting, image(2, 5, 5))), image(2, 5, 5)(6)
    before = samples.clone()
    tangent_kernel(model, samples, batch_size=2)
    model_outputs(model, samples)
    assert torch.equal(samples, before)


def test_dropout_is_off() -> None:
    """Eval mode, whatever mode the model was in."""
    case = Case(lambda: Head(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)), image(3))
    model, samples = model_of(case).train(), samples_of(case, 5)
    assert torch.equal(tangent_kernel(model, samples), tangent_kernel(model, samples))


def test_a_use_that_only_some_batches_show_is_counted() -> None:
    """The last, smaller batch uses a weight behind its layer's back; the engine starts again without that rule."""

    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.layer(x) if x.shape[0] == 4 else x @ self.layer.weight.T + self.layer.bias
            return torch.tanh(hidden).sum(1)

    model, samples = model_of(Case(Fickle, image(3))), image(3)(10)
    rows = joined(autograd_rows(model, samples, 10))
    torch.testing.assert_close(tangent_kernel(model, samples, batch_size=4), rows @ rows.T, **FLOAT64)
    torch.testing.assert_close(tangent_norms(model, samples, batch_size=4), (rows**2).sum(1), **FLOAT64)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(0, 6), m=st.integers(0, 6), batch=st.integers(1, 4))
def test_any_number_of_samples(n: int, m: int, batch: int) -> None:
    """None, one, or a last batch of any size, on either side."""
    model, left, right = model_of(CONV_NET), samples_of(CONV_NET, n), samples_of(CONV_NET, m, seed=3)
    kernel = tangent_kernel(model, left, right, batch_size=batch)
    assert kernel.shape == (n, m)
    if n and m:
        rows, columns = joined(autograd_rows(model, left, n)), joined(autograd_rows(model, right, m))
        torch.testing.assert_close(kernel, rows @ columns.T, **FLOAT64)
    assert tangent_norms(model, left, batch_size=batch).shape == (n,)
    assert tangent_kernel(model, left, batch_size=batch).shape == (n, n)


def test_samples_of_unlike_lengths_meet() -> None:
    """Left and right may have unlike numbers of positions, if the model takes both."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.layer(x)).mean((1, 2))

    model, left, right = model_of(Case(Mean, image(3))), image(2, 3)(4), image(5, 3)(3)
    rows, columns = joined(autograd_rows(model, left, 4)), joined(autograd_rows(model, right, 3))
    torch.testing.assert_close(tangent_kernel(model, left, right), rows @ columns.T, **FLOAT64)


def test_model_outputs_are_the_models() -> None:
    model, samples = model_of(CLASSIFIER), samples_of(CLASSIFIER, 7)
    outputs = model_outputs(model, samples, batch_size=3)
    assert not outputs.requires_grad
    torch.testing.assert_close(outputs, model(samples).detach(), **FLOAT64)


class Wrong(nn.Module):
    """A model whose output is changed on its way out."""

    def __init__(self, change) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.layer(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y, r"\(2,\) numbers per sample.*cotangent of shape \(4, 2\)"),
        (lambda y: y.mean(), r"shape \(\) for"),
        (lambda y: y.sum(0), r"shape \(2,\) for"),
        (lambda y: (y, y), "returns a tuple"),
    ],
)
def test_outputs_of_the_wrong_shape_are_refused(change, message: str) -> None:
    model = Wrong(change).double()
    with pytest.raises(OutputShapeError, match=message):
        tangent_kernel(model, image(3)(4), batch_size=3)


@pytest.mark.parametrize("shape", [(4, 3), (4,), (3, 2), ()])
def test_cotangents_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(OutputShapeError, match="cotangent"):
        tangent_kernel(Wrong(lambda y: y).double(), image(3)(4), left_cotangent=torch.ones(shape).double())


def test_a_sample_that_is_not_finite_is_named() -> None:
    model, samples = model_of(CONV_NET), samples_of(CONV_NET, 9)
    samples[5, 0, 2, 2] = float("nan")
    for call in (tangent_kernel, tangent_norms, model_outputs):
        with pytest.raises(NonFiniteError, match=r"Sample 5 of '\w+' has the output \[nan\]: every parameter is finite"):
            call(model, samples, batch_size=4)
    with pytest.raises(NonFiniteError, match="Sample 5 of 'right'"):
        tangent_kernel(model, samples[:3], samples, batch_size=4)


def test_weights_that_are_not_finite_are_named() -> None:
    model = model_of(CONV_NET)
    model.layers[0].weight.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"parameter 'layers.0.weight' is not finite"):
        tangent_kernel(model, samples_of(CONV_NET, 3))


@pytest.mark.parametrize("layer", [nn.Linear(3, 3, bias=False), nn.Bilinear(3, 3, 3, bias=False)])
def test_a_gradient_that_is_not_finite_names_sample_and_parameter(layer: nn.Module) -> None:
    """Finite outputs can have infinite slopes: the square root of zero. By a rule and by autograd."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x) if isinstance(self.layer, nn.Linear) else self.layer(x, x)
            return y.square().sum(1).sqrt()

    model, samples = Root().double(), image(3)(6)
    samples[4] = 0
    for call in (tangent_kernel, tangent_norms, tangent_kernel_by_layer):
        with pytest.raises(NonFiniteError, match=r"Sample 4 of '\w+' .* parameter 'layer.weight'"):
            call(model, samples, batch_size=4)
    with pytest.raises(NonFiniteError, match="Sample 1 of 'right'"):
        tangent_kernel(model, samples[:4], samples[3:], batch_size=4)


def test_a_product_too_large_for_the_type_says_so() -> None:
    model = nn.Linear(2, 1).double()
    with pytest.raises(NonFiniteError, match=r"product of samples \[1, 1\] exceeds what float64"):
        tangent_kernel(model, torch.tensor([[1.0, 2.0], [1e200, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(2, track_running_stats=False)])
def test_normalisation_over_the_batch_is_refused(norm: nn.Module) -> None:
    model = Head(nn.Conv2d(2, 2, 3), norm).double()
    for call in (tangent_kernel, tangent_norms, model_outputs):
        with pytest.raises(BatchCoupledModelError, match=r"'layers.1' is a BatchNorm2d without running statistics"):
            call(model, image(2, 4, 4)(3))


def test_reentrant_checkpoints_are_refused() -> None:
    with pytest.raises(ModelError, match="use_reentrant=False"):
        tangent_kernel(model_of(Case(lambda: Checkpointed(reentrant=True), image(3))), image(3)(3))


def test_unknown_and_frozen_parameters_are_refused() -> None:
    model, samples = model_of(CONV_NET), samples_of(CONV_NET, 2)
    with pytest.raises(UnknownParameterError, match=r"no parameter 'layers.0.wight'; it has layers.0.weight"):
        tangent_kernel(model, samples, parameters=["layers.0.wight"])
    with pytest.raises(UnknownParameterError, match=r"no parameter 'layers.0.w'"):
        tangent_kernel(model, samples, parameters=["layers.0.w"])
    model.requires_grad_(False)
    with pytest.raises(UnknownParameterError, match="None of the 6 chosen parameters is trainable"):
        tangent_kernel(model, samples)
    assert set(dict(coverage(model, samples)).values()) == {"frozen"}


@pytest.mark.parametrize(
    ("name", "samples", "message"),
    [
        (
            "classifier",
            torch.ones(3, 4, dtype=torch.int64),
            r"'left' holds int64 numbers, and the model, whose weights are float64",
        ),
        ("classifier", torch.ones(3, 4), r"holds float32 numbers.*the weights' own"),
        ("conv net", torch.ones(3, 2, 6, 6, dtype=torch.uint8), r"holds uint8 numbers"),
        ("embedding", torch.ones(3, 6), r"'left' holds float32 numbers.*int64 for an embedding"),
    ],
)
def test_numbers_of_the_wrong_type_are_refused(name: str, samples: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tangent_kernel(model_of(CASES[name]), samples)


def test_an_error_of_the_models_own_is_left_as_it_is() -> None:
    """Only a type that is wrong is called wrong."""
    model = model_of(MODELS["classifier"])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        tangent_kernel(model, torch.ones(3, 5, dtype=torch.float64))


def test_samples_that_do_not_match_are_refused() -> None:
    model = model_of(MODELS["siamese"])
    with pytest.raises(DataError, match=r"'left' holds tensors of \[3, 4\] samples"):
        tangent_kernel(model, (image(1, 6, 6)(3), image(1, 6, 6)(4)))
    with pytest.raises(DataError, match="batch_size is 0"):
        tangent_kernel(model, (image(1, 6, 6)(3), image(1, 6, 6)(3)), batch_size=0)


def test_groups_above_a_budget_are_the_last_layer_and_the_rest() -> None:
    """The same products in two summands instead of six; what fits is kept by layer."""
    model, samples = model_of(CONV_NET), samples_of(CONV_NET, 5)
    every = layer_groups(model)
    assert kernel_groups(model, cells=25, budget=25 * 8 * len(every)) == every
    two = kernel_groups(model, cells=25, budget=25 * 8 * len(every) - 1)
    assert two == {
        "rest": ("layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"),
        "last": ("layers.5.weight", "layers.5.bias"),
    }
    by_layer, by_two = tangent_kernel_by_layer(model, samples), tangent_kernel_by_layer(model, samples, groups=two)
    torch.testing.assert_close(by_two, torch.stack([by_layer[:-1].sum(0), by_layer[-1]]), **FLOAT64)
    with pytest.raises(UnknownParameterError, match=r"no parameter 'layers.7.weight' to group"):
        tangent_kernel_by_layer(model, samples, groups={"x": ["layers.7.weight"]})
