"""Every layer rule against one backward pass per sample, on both of its paths."""

from itertools import pairwise
from typing import get_args

import pytest
import torch
from engine_cases import FLOAT64, LAYERS, Case, Head, autograd_rows, image, joined, model_of, samples_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tracin_core.engine import gradients, layers
from tracin_core.engine.kernel import coverage, layer_groups, tangent_kernel, tangent_kernel_by_layer, tangent_norms
from tracin_core.engine.layers import RULES, Cost, Path, cheaper_path, rule_for

PATHS = get_args(Path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", LAYERS)
def test_both_paths_equal_autograd(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forming gradients and multiplying factors are two ways to the same numbers, for each parameter by itself."""
    monkeypatch.setattr(gradients, "cheaper_path", lambda *_, **__: path)
    case = LAYERS[name]
    model, left, right = model_of(case), samples_of(case, 5), samples_of(case, 4, seed=7)
    rows, columns = autograd_rows(model, left, 5), autograd_rows(model, right, 4)
    for parameter, expected in rows.items():
        products = tangent_kernel(model, left, right, parameters=[parameter], batch_size=3)
        torch.testing.assert_close(products, expected @ columns[parameter].T, **FLOAT64)
        norms = tangent_norms(model, left, parameters=[parameter], batch_size=3)
        torch.testing.assert_close(norms, (expected**2).sum(1), **FLOAT64)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_served_by_its_rule(name: str) -> None:
    """No layer of the registry takes the slow way round, neither by promise nor in fact."""
    model = model_of(LAYERS[name])
    expected = f"rule: {type(model.layers[0]).__name__}"
    assert {path for _, path in coverage(model)} == {expected}
    assert {path for _, path in coverage(model, samples_of(LAYERS[name], 3))} == {expected}


def test_every_registered_layer_has_a_case() -> None:
    built = {type(model_of(case).layers[0]) for case in LAYERS.values()}
    inside = {nn.MultiheadAttention, nn.modules.linear.NonDynamicallyQuantizableLinear}  # the models with attention
    assert set(RULES) - built == inside


@pytest.mark.parametrize("path", PATHS)
def test_calls_of_one_layer_add_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that is called three times has one gradient, the sum; also when each call sees another number of positions."""

    class Thrice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 4)
            self.conv = nn.Conv1d(4, 4, 2)
            self.norm = nn.LayerNorm(4)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = (self.table(tokens) * self.table(tokens.flip(1))).transpose(1, 2)
            y = self.conv(torch.tanh(self.conv(torch.tanh(self.conv(x)))))
            return torch.tanh(self.norm(y.transpose(1, 2)) * self.norm(x.transpose(1, 2))[:, 3:]).sum((1, 2))

    monkeypatch.setattr(gradients, "cheaper_path", lambda *_, **__: path)
    case = Case(Thrice, lambda n: torch.randint(0, 9, (n, 6)))
    model, samples = model_of(case), samples_of(case, 5)
    assert {path.partition(":")[0] for _, path in coverage(model, samples)} == {"rule"}
    rows = autograd_rows(model, samples, 5)
    by_layer = tangent_kernel_by_layer(model, samples, batch_size=2)
    expected = [joined({name: rows[name] for name in group}) for group in layer_groups(model).values()]
    torch.testing.assert_close(by_layer, torch.stack([g @ g.T for g in expected]), **FLOAT64)


@pytest.mark.parametrize("name", ["conv1d", "linear at positions", "conv2d depthwise", "embedding with padding"])
@pytest.mark.parametrize("entries", [1, 40])
def test_gram_products_do_not_depend_on_tiles(name: str, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large Gram product is cut into tiles that fit; the cuts leave no seam."""
    case = LAYERS[name]
    model, samples = model_of(case), samples_of(case, 6)
    monkeypatch.setattr(gradients, "cheaper_path", lambda *_, **__: "gram")
    whole, norms = tangent_kernel(model, samples), tangent_norms(model, samples)
    monkeypatch.setattr(layers, "GRAM_ENTRIES", entries)
    torch.testing.assert_close(tangent_kernel(model, samples), whole, **FLOAT64)
    torch.testing.assert_close(tangent_norms(model, samples), norms, **FLOAT64)


@settings(max_examples=40, deadline=None)
@given(
    kernel_size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    size=st.tuples(st.integers(5, 7), st.integers(5, 7)),
    batch=st.integers(1, 5),
)
def test_any_convolution(kernel_size, stride, padding, dilation, groups, widths, size, batch) -> None:
    """Stride, padding, dilation and groups in any combination."""
    convolution = nn.Conv2d(widths[0] * groups, widths[1] * groups, kernel_size, stride, padding, dilation, groups)
    case = Case(lambda: Head(convolution), image(widths[0] * groups, *size))
    model, samples = model_of(case), samples_of(case, 4)
    rows = joined(autograd_rows(model, samples, 4))
    torch.testing.assert_close(tangent_kernel(model, samples, batch_size=batch), rows @ rows.T, **FLOAT64)


@settings(max_examples=30, deadline=None)
@given(
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    positions=st.lists(st.integers(1, 3), max_size=3),
    batch=st.integers(1, 6),
)
def test_any_linear_net(widths: list[int], positions: list[int], batch: int) -> None:
    """Any depth, width and number of axes between the samples and the features."""
    stack = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.Tanh())]
    case = Case(lambda: Head(*stack), image(*positions, widths[0]))
    model, samples = model_of(case), samples_of(case, 5)
    rows = joined(autograd_rows(model, samples, 5))
    torch.testing.assert_close(tangent_kernel(model, samples, batch_size=batch), rows @ rows.T, **FLOAT64)


def outer_cost(positions: int, inputs: int, outputs: int) -> Cost:
    layer = layers.Outer(torch.empty(1, 1, positions, inputs), torch.empty(1, 1, positions, outputs))
    return layer.cost()


@pytest.mark.parametrize(
    ("positions", "inputs", "outputs", "path"),
    [
        (2048, 25, 32, "materialise"),  # a ranker's first convolution: many positions, few weights
        (32, 1152, 256, "materialise"),  # its last: forming is shared by all 128 + 64 samples
        (1, 256, 128, "gram"),  # its head: the last-layer shortcut
        (1, 10, 1, "materialise"),  # so few weights that nothing beats one product
        (2, 4096, 4096, "gram"),  # a wide layer with few positions
    ],
)
def test_the_path_follows_from_shapes(positions: int, inputs: int, outputs: int, path: Path) -> None:
    assert cheaper_path(outer_cost(positions, inputs, outputs), left=128, right=64, pairs=128 * 64) == path


def test_norms_choose_for_themselves() -> None:
    """One product per sample cannot share the cost of forming its gradient, so a norm takes the Gram path earlier."""
    cost = outer_cost(positions=32, inputs=1152, outputs=256)
    assert cheaper_path(cost, left=100, right=0, pairs=100) == "gram"
    assert cheaper_path(cost, left=100, right=0, pairs=5000) == "materialise"


@given(
    cost=st.builds(Cost, *[st.integers(1, 10**9)] * 3),
    n=st.integers(1, 1000),
    m=st.integers(0, 1000),
    more=st.integers(2, 9),
)
def test_more_products_never_favour_the_gram_path_that_costs_more_per_pair(cost: Cost, n: int, m: int, more: int) -> None:
    """Forming is amortised: once it pays, it pays for every larger kernel of the same samples."""
    few, many = (cheaper_path(cost, left=n, right=m, pairs=n * max(1, m) * times) for times in (1, more))
    assert not (few == "materialise" and many == "gram" and cost.gram >= cost.entries)


def test_a_layer_that_is_not_what_its_type_says_has_no_rule() -> None:
    class Squared(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) ** 2

    patched = nn.Linear(2, 2)
    patched.forward = lambda x: x  # type: ignore[method-assign]
    assert rule_for(nn.Linear(2, 2)) is not None
    assert rule_for(Squared(2, 2)) is None
    assert rule_for(patched) is None
    assert rule_for(nn.Embedding(3, 2, max_norm=1.0)) is None
    assert rule_for(nn.Embedding(3, 2, scale_grad_by_freq=True)) is None
    case = Case(lambda: Head(Squared(3, 2)), image(3))
    rows = joined(autograd_rows(model_of(case), samples_of(case, 4), 4))
    torch.testing.assert_close(tangent_kernel(model_of(case), samples_of(case, 4)), rows @ rows.T, **FLOAT64)
