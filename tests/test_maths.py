"""The formulas of docs/maths.md are what the program computes: each block is run against the rule or loss that it derives."""

import math
import re
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
import torch
from engine_cases import FLOAT64
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import special
from test_docs_complete import run_blocks, sections_of, table_of, text_of
from torch import nn

from tracin_core.engine.layers import RULES
from tracin_core.recipe import LossName
from tracin_core.scores.losses import PairLoss, ghm_bins, ghm_table, ghm_weights, pair_derivative, pair_loss
from tracin_core.scores.methods import METHODS
from tracin_core.scores.sample_losses import SampleLoss, SampleLossName, sample_derivative, sample_loss

NUMBERS = st.floats(-20, 20)
SAMPLES = 3
# Each with what its inputs are shaped like, without the samples.
LAYERS: dict[str, list[tuple[nn.Module, tuple[int, ...]]]] = {
    "linear": [(nn.Linear(3, 2), (3,)), (nn.Linear(3, 2), (4, 3))],
    "conv2d": [(nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 3)), (2, 7, 6))],
    "batch_norm": [(nn.BatchNorm1d(3), (3,)), (nn.BatchNorm2d(3), (3, 4, 2))],
    "instance_norm": [(nn.InstanceNorm2d(3, affine=True), (3, 4, 2))],
    "group_norm": [(nn.GroupNorm(2, 4), (4, 3, 2))],
    "layer_norm": [(nn.LayerNorm(4), (5, 4)), (nn.LayerNorm((2, 3)), (5, 2, 3))],
    "rms_norm": [(nn.RMSNorm(4), (5, 4)), (nn.RMSNorm(4, eps=0.1), (4,))],
    "embedding": [(nn.Embedding(6, 3, padding_idx=2), (5,))],
    "embedding_bag": [(nn.EmbeddingBag(6, 3, mode=mode, padding_idx=2), (5,)) for mode in ("mean", "sum")],
    "attention": [(nn.MultiheadAttention(4, 2), (5, 4))],
}


@cache
def formulas() -> dict[str, Any]:
    """What the document's blocks define."""
    return run_blocks("maths.md")


def derivations(section: str) -> dict[str, str]:
    """The headings of this part of the document, with what stands under each."""
    return sections_of(sections_of(text_of("maths.md"), 2)[section], 3)


# ---- nothing is missing ---------------------------------------------------------------------------------------------------------


def test_every_rule_and_every_loss_has_a_derivation_with_its_source() -> None:
    told = {part: derivations(part) for part in ("Layer rules", "Losses of pairs", "Losses of samples")}
    headings = {part: [name for title in titles for name in re.findall(r"`(\w+)`", title)] for part, titles in told.items()}
    assert sorted(headings["Layer rules"]) == sorted(kind.__name__ for kind in RULES)
    assert sorted(headings["Losses of pairs"]) == sorted(get_args(LossName))
    assert sorted(headings["Losses of samples"]) == sorted(get_args(SampleLossName))
    for titles in told.values():
        for title, text in titles.items():
            assert re.search(r"\b(18|19|20)\d\d\b", text), f"{title} names no source"
            assert "```python" in text, f"{title} has no formula"


def test_every_method_is_listed_with_its_source() -> None:
    told = table_of(sections_of(text_of("maths.md"), 2)["Other methods on the same kernels"])
    assert {name: cells[-1] for name, cells in told.items()} == {name: method.paper for name, method in METHODS.items()}


# ---- the kernel -----------------------------------------------------------------------------------------------------------------


def test_a_pairs_influence_by_kernel_is_that_of_two_backward_passes() -> None:
    assert abs(formulas()["by_backward"]) > 1e-3
    torch.testing.assert_close(formulas()["by_kernel"], formulas()["by_backward"], **FLOAT64)


# ---- layer rules ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_formula_is_its_rule_and_its_gradient(name: str) -> None:
    """Sample by sample: the document's block, the rule's factors, and one backward pass."""
    for layer, shape in LAYERS[name]:
        layer = layer.double().eval()
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        inputs = torch.randint(0, 6, (SAMPLES, *shape)) if "embedding" in name else torch.randn(SAMPLES, *shape).double()
        # Of attention, what the rule is about comes out of the three projections, inside the layer.
        outputs = torch.randn(SAMPLES, shape[0], 12).double() if name == "attention" else torch.randn_like(layer(inputs))
        factors = RULES[type(layer)](layer, inputs, outputs)
        for sample in range(SAMPLES):
            told = formulas()[name](layer, inputs[sample], outputs[sample])
            assert set(told) == set(factors)
            known = told if name == "attention" else by_backward(layer, inputs[sample : sample + 1], outputs[sample : sample + 1])
            for parameter, gradient in told.items():
                rows = factors[parameter].matrices()[sample].flatten()
                torch.testing.assert_close(gradient.detach().flatten(), rows.detach(), **FLOAT64)
                torch.testing.assert_close(gradient.detach().flatten(), known[parameter].detach().flatten(), **FLOAT64)


def by_backward(layer: nn.Module, inputs: torch.Tensor, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
    names, parameters = zip(*layer.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad((layer(inputs) * outputs).sum(), parameters), strict=True))


def test_every_formula_of_a_layer_is_tried() -> None:
    blocks = "".join(derivations("Layer rules").values())
    assert sorted(re.findall(r"^def (\w+)\(", blocks, re.MULTILINE)) == sorted(LAYERS)


# ---- losses ---------------------------------------------------------------------------------------------------------------------


@example(first=1.0, second=1.0, target=1, margin=0.0, weight=1.0)  # at the kink
@given(first=NUMBERS, second=NUMBERS, target=st.sampled_from([-1, 1]), margin=st.floats(0, 20), weight=st.floats(0.1, 2))
def test_a_pair_loss_and_its_slope_are_as_derived(first: float, second: float, target: int, margin: float, weight: float) -> None:
    one, other, t = np.array([first]), np.array([second]), np.array([target])
    z = -target * (first - second) + margin
    for name in ("margin", "squared_hinge", "logistic"):
        loss = PairLoss(name=name, margin=margin)
        value, slope = formulas()[name](z)
        assert math.isclose(pair_loss(loss, one, other, t, weight)[0], weight * value, rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(pair_derivative(loss, one, other, t, weight)[0], -target * weight * slope, rel_tol=1e-9, abs_tol=1e-9)


@given(seed=st.integers(0, 10_000), pairs=st.integers(2, 30), batch=st.integers(1, 12), alpha=st.floats(0, 2))
def test_the_weight_of_ghm_is_the_expectation_that_is_derived(seed: int, pairs: int, batch: int, alpha: float) -> None:
    generator = np.random.default_rng(seed)
    first, second = generator.normal(size=(2, pairs))
    target = generator.choice([-1, 1], pairs)
    loss = PairLoss(name="ghm", margin=0.5, ghm_bins=4, ghm_alpha=alpha, ghm_batch=batch)
    table = ghm_table(loss, first, second, target)
    bins = np.minimum(np.floor(4 * special.expit(0.5 - target * (first - second))).astype(int), 3)
    told = [formulas()["ghm_weight"](pairs, int((bins == b).sum()), min(batch, pairs), alpha) for b in bins]
    np.testing.assert_allclose(ghm_weights(loss, table, first, second, target), told, rtol=1e-9)


@given(difference=st.floats(-10, 10), target=st.sampled_from([-1, 1]), margin=st.floats(0, 10))
def test_the_legacy_norm_decides_the_bin(difference: float, target: int, margin: float) -> None:
    loss = PairLoss(name="ghm_legacy", margin=margin, ghm_bins=7)
    found = ghm_bins(loss, np.array([difference]), np.array([0.0]), np.array([target]))[0]
    norm = formulas()["legacy_norm"](margin, target, difference)
    if abs(norm * 7 - round(norm * 7)) > 1e-9:
        assert found == math.floor(norm * 7)
    assert (found == -1) == (special.expit(margin - (2 * target - 1) * difference) >= 1)


@given(logits=st.lists(st.floats(-5, 5), min_size=2, max_size=4), setting=st.floats(0.1, 0.9), data=st.data())
def test_a_sample_loss_and_its_slope_are_as_derived(logits: list[float], setting: float, data: st.DataObject) -> None:
    label = data.draw(st.integers(0, len(logits) - 1))
    outputs, labels = np.array([logits]), np.array([label])
    p = float(special.softmax(logits)[label])
    cases: list[tuple[SampleLoss, tuple[float, float]]] = [
        (SampleLoss("cross_entropy"), formulas()["cross_entropy"](p)),
        (SampleLoss("focal", gamma=2 * setting), formulas()["focal"](p, 2 * setting)),
        (SampleLoss("generalized_cross_entropy", q=setting), formulas()["generalized_cross_entropy"](p, setting)),
    ]
    for loss, (value, slope) in cases:
        assert math.isclose(sample_loss(loss, outputs, labels)[0], value, rel_tol=1e-9, abs_tol=1e-12)
        # df/dl_y = 1, so the derivative at the label's own output is dL/df.
        assert math.isclose(sample_derivative(loss, outputs, labels)[0, label], slope, rel_tol=1e-9, abs_tol=1e-12)
    smooth = SampleLoss("label_smoothing", smoothing=setting)
    value, slopes = formulas()["label_smoothing"](torch.tensor(logits, dtype=torch.float64), label, setting)
    assert math.isclose(sample_loss(smooth, outputs, labels)[0], float(value), rel_tol=1e-9)
    np.testing.assert_allclose(sample_derivative(smooth, outputs, labels)[0], slopes.numpy(), atol=1e-12)


@given(output=st.floats(-15, 15), target=st.floats(-15, 15), delta=st.floats(0.1, 5), label=st.integers(0, 1))
def test_losses_of_one_output_are_as_derived(output: float, target: float, delta: float, label: int) -> None:
    outputs, targets = np.array([output]), np.array([target])
    for loss, wanted, (value, slope) in (
        (SampleLoss("squared_error"), targets, formulas()["squared_error"](output - target)),
        (SampleLoss("huber", delta=delta), targets, formulas()["huber"](output - target, delta)),
        (SampleLoss("binary_cross_entropy"), np.array([label]), formulas()["binary_cross_entropy"](output, label)),
    ):
        assert math.isclose(sample_loss(loss, outputs, wanted)[0], value, rel_tol=1e-9, abs_tol=1e-12)
        assert math.isclose(sample_derivative(loss, outputs, wanted)[0], slope, rel_tol=1e-8, abs_tol=1e-12)
