"""Scores from kernels against explicit gradients: one example at a time, in parameter space, in float64."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_cases import (
    CASES,
    CHECKPOINTS,
    FEW,
    FLOAT32,
    FLOAT64,
    LAYERS,
    LOSSES,
    SETTINGS,
    TEST,
    TRAIN,
    Case,
    make_case,
    sample_table,
    slow_influence,
    slow_mean_cosine,
    slow_self,
)

from tracin_core.data.samples import all_pairs, pair_table
from tracin_core.errors import ViewError
from tracin_core.recipe import LossName
from tracin_core.scores.influence import Kernels, percentiles
from tracin_core.scores.losses import PairLoss, ghm_table, ghm_weights, pair_derivative


@FEW
@given(case=CASES, loss=SETTINGS, quantity=st.sampled_from(["loss", "score_difference"]))
def test_influence_is_the_product_of_the_pairs_gradients(case: Case, loss: PairLoss, quantity: Any) -> None:
    """For every loss; whole, one test pair at a time, in blocks, and checkpoint by checkpoint."""
    view = case.view(loss, test_quantity=quantity)
    expected = slow_influence(view, case)
    np.testing.assert_allclose(view.influence(), expected, **FLOAT64)
    names = view.test_pairs["id"].tolist()
    np.testing.assert_allclose(np.stack([view.influence(test) for test in names], axis=1), expected, **FLOAT64)
    blocks = list(view.blocks(width=3))
    assert [(place.start, place.stop) for place, _ in blocks] == [(n, min(n + 3, len(names))) for n in range(0, len(names), 3)]
    np.testing.assert_allclose(np.concatenate([block for _, block in blocks], axis=1), expected, **FLOAT64)
    pair = view.train_pairs["id"].iloc[4]
    assert view.contributions(pair, names[1]).shape == (CHECKPOINTS,)
    np.testing.assert_allclose(view.contributions(pair, names[1]).sum(), expected[4, 1], **FLOAT64)


@FEW
@given(case=CASES, loss=SETTINGS)
def test_self_influence_is_the_squared_gradient_and_the_diagonal(case: Case, loss: PairLoss) -> None:
    """Never negative; equal to the influence of each pair on itself where the test side is the training side."""
    view = case.view(loss)
    own = view.self_influence()
    np.testing.assert_allclose(own, slow_self(view, case, "train"), **FLOAT64)
    assert (own >= 0).all()
    if not loss.is_ghm:  # as a guest of the density table a pair weighs a little less than as a member
        itself = replace(
            case, test_gradients=case.train_gradients, test_outputs=case.train_outputs, test_samples=case.train_samples
        ).view(loss)
        np.testing.assert_allclose(np.diagonal(itself.influence()), own, **FLOAT64)
        np.testing.assert_allclose(itself.influence(), itself.influence().T, **FLOAT64)


@pytest.mark.parametrize("name", LOSSES)
def test_kernels_give_what_autograd_gives(name: LossName) -> None:
    """A real network: gradients of each pair's loss by one backward pass per pair, in float64."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    inputs = {side: torch.randn(count, 3, dtype=torch.float64) for side, count in (("train", TRAIN), ("test", TEST))}
    layers = [list(model[0].parameters()), list(model[2].parameters())]

    def jacobian(values: torch.Tensor) -> list[np.ndarray]:
        rows = [[torch.autograd.grad(model(value).sum(), group) for group in layers] for value in values]
        return [np.stack([torch.cat([p.flatten() for p in row[layer]]).numpy() for row in rows]) for layer in range(2)]

    gradients = {side: jacobian(values) for side, values in inputs.items()}
    outputs = {side: model(values).detach().numpy().ravel()[None] for side, values in inputs.items()}

    def products(left: str, right: str) -> np.ndarray:
        return np.stack([gradients[left][layer] @ gradients[right][layer].T for layer in range(2)])[None].astype(np.float32)

    kernels = Kernels(
        products("train", "train"), products("test", "train"), products("test", "test"), outputs["train"], outputs["test"]
    )
    loss = PairLoss(name=name, margin=0.2, ghm_batch=4)
    view = make_case(0, checkpoints=1).view(loss, kernels=kernels, checkpoint_weights=np.array([0.3]))

    def backward(side: str, pairs: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
        found = []
        for pair, weight in zip(pairs.itertuples(), weights, strict=True):
            scores = model(inputs[side]).ravel()
            z = 0.2 - pair.target * (scores[pair.first] - scores[pair.second])
            value = {"logistic": torch.nn.functional.softplus(z), "squared_hinge": z.clamp(min=0) ** 2}.get(name, z.clamp(min=0))
            grads = torch.autograd.grad(weight * value, list(model.parameters()))
            found.append(torch.cat([grad.flatten() for grad in grads]).numpy())
        return np.stack(found)

    train = backward("train", view.train_pairs, view.train.weights[0])
    test = backward("test", view.test_pairs, view.test.weights[0])
    np.testing.assert_allclose(view.influence(), 0.3 * train @ test.T, **FLOAT32)
    np.testing.assert_allclose(view.self_influence(), 0.3 * (train**2).sum(axis=1), **FLOAT32)
    assert np.abs(train @ test.T).max() > 100 * FLOAT32["atol"]


@FEW
@given(case=CASES, loss=SETTINGS, data=st.data())
def test_checkpoints_and_layers_add_up_and_weights_are_linear(case: Case, loss: PairLoss, data: st.DataObject) -> None:
    whole = case.view(loss)
    kernels = case.kernels
    parts = [
        case.view(loss, kernels=kernels.at([c]), checkpoint_weights=case.weights[[c]], checkpoint_names=["one"])
        for c in range(CHECKPOINTS)
    ]
    np.testing.assert_allclose(sum(part.influence() for part in parts), whole.influence(), **FLOAT64)
    np.testing.assert_allclose(sum(part.self_influence() for part in parts), whole.self_influence(), **FLOAT64)
    layers = [case.view(loss, layers=[layer]) for layer in range(LAYERS)]
    np.testing.assert_allclose(sum(part.influence() for part in layers), whole.influence(), **FLOAT64)
    np.testing.assert_allclose(sum(part.self_influence() for part in layers), whole.self_influence(), **FLOAT64)
    factor = data.draw(st.floats(0.1, 10))
    other = np.array(data.draw(st.lists(st.floats(-3, 3), min_size=CHECKPOINTS, max_size=CHECKPOINTS)))
    mixed = case.view(loss, checkpoint_weights=factor * case.weights + other)
    added = case.view(loss, checkpoint_weights=other)
    np.testing.assert_allclose(mixed.influence(), factor * whole.influence() + added.influence(), **FLOAT64)


@FEW
@given(case=CASES, loss=SETTINGS.filter(lambda loss: loss.name != "ghm_legacy"))
def test_mirrored_pairs_have_equal_scores(case: Case, loss: PairLoss) -> None:
    """(b, a, -t) scores as (a, b, t), as a training pair and as a test pair."""
    view = case.view(loss)
    turned = [
        pair_table(samples, pairs["second"].to_numpy(), pairs["first"].to_numpy())
        for samples, pairs in ((case.train_samples, view.train_pairs), (case.test_samples, view.test_pairs))
    ]
    mirrored = case.view(loss, train_pairs=turned[0], test_pairs=turned[1])
    np.testing.assert_array_equal(mirrored.train_pairs["target"], -view.train_pairs["target"])
    np.testing.assert_allclose(mirrored.influence(), view.influence(), **FLOAT64)
    np.testing.assert_allclose(mirrored.self_influence(), view.self_influence(), **FLOAT64)


def test_ghm_legacy_keeps_the_drawn_orientation() -> None:
    """The one loss under which a mirrored pair is another pair."""
    case, loss = make_case(1), PairLoss(name="ghm_legacy", margin=1.0, ghm_batch=5)
    view = case.view(loss)
    turned = pair_table(case.train_samples, view.train_pairs["second"].to_numpy(), view.train_pairs["first"].to_numpy())
    assert not np.allclose(case.view(loss, train_pairs=turned).self_influence(), view.self_influence())


def test_a_near_duplicate_has_no_gradient_rather_than_a_rounded_one() -> None:
    """Two samples whose gradients differ by less than float32 can tell: |g_i - g_j|^2 is 0, never negative."""
    case = make_case(3)
    same = np.full((CHECKPOINTS, LAYERS, TRAIN, TRAIN), 1000.0, dtype=np.float32)
    same[:, :, 0, 2] = same[:, :, 2, 0] = np.nextafter(np.float32(1000), np.float32(2000))
    same[:, :, 0, 4] = same[:, :, 4, 0] = 990.0
    view = case.view(PairLoss(name="logistic"), kernels=replace(case.kernels, train_train=same), checkpoint_weights=np.ones(3))
    own = pd.Series(view.self_influence(), index=view.train_pairs["id"])
    assert own["a0_a2"] == 0.0
    assert own["a1_a3"] == 0.0
    assert own["a0_a4"] > 0


@pytest.mark.parametrize("name", ["ghm", "ghm_legacy"])
def test_ghm_weights_come_from_the_training_pairs_with_test_pairs_as_guests(name: LossName) -> None:
    """One density table per checkpoint, of training pairs only; a test pair is not a member of it."""
    case, loss = make_case(4), PairLoss(name=name, margin=2.0, ghm_bins=3, ghm_batch=5)
    view = case.view(loss)
    for c in range(CHECKPOINTS):
        sides = [
            (outputs[c, pairs["first"]], outputs[c, pairs["second"]], pairs["target"].to_numpy())
            for outputs, pairs in ((case.train_outputs, view.train_pairs), (case.test_outputs, view.test_pairs))
        ]
        table = ghm_table(loss, *sides[0])
        member, guest = ghm_weights(loss, table, *sides[0]), ghm_weights(loss, table, *sides[1], guest=True)
        np.testing.assert_array_equal(view.train_derivatives[c], pair_derivative(loss, *sides[0], member))
        np.testing.assert_array_equal(view.test_derivatives[c], pair_derivative(loss, *sides[1], guest))


# ---- dead tests


def test_a_test_pair_without_gradient_is_dead_and_the_score_difference_is_not() -> None:
    """Satisfied at every counted checkpoint: influence exactly 0. A checkpoint of weight 0 gives no life."""
    case = make_case(5, checkpoints=2)
    outputs = np.zeros((2, TEST), dtype=np.float32)
    outputs[:, 3] = 50  # label 2, far above labels 0 and 1: satisfied
    outputs[1, 4] = 50
    case = replace(case, test_outputs=outputs, weights=np.array([1.0, 0.0]))
    view = case.view(PairLoss(margin=4.0))
    dead = dict(zip(view.test_pairs["id"], view.dead_tests, strict=True))
    assert dead == {pair: "x3" in pair for pair in dead}
    assert (view.influence()[:, view.dead_tests] == 0).all()
    assert not case.view(PairLoss(margin=4.0), test_quantity="score_difference").dead_tests.any()
    assert case.view(PairLoss(margin=4.0), checkpoint_weights=np.array([0.0, 1.0])).dead_tests.sum() == 6


def test_the_score_difference_has_its_plain_derivative() -> None:
    case = make_case(6)
    view = case.view(test_quantity="score_difference")
    np.testing.assert_array_equal(
        view.test_derivatives, np.tile(-view.test_pairs["target"].to_numpy(dtype=float), (CHECKPOINTS, 1))
    )


# ---- measures


@FEW
@given(case=CASES, loss=SETTINGS)
def test_measures_are_their_formulas(case: Case, loss: PairLoss) -> None:
    """cosine and relative undefined where an example has no gradient; rank is the mid-rank percentile per test pair."""
    views = {measure: case.view(loss, measure=measure) for measure in ("dot", "cosine", "relative", "rank")}
    dot = slow_influence(views["dot"], case)
    train, test = (slow_self(views["dot"], case, side) for side in ("train", "test"))
    for e, f in product(range(dot.shape[0]), range(dot.shape[1])):
        cosine = dot[e, f] / np.sqrt(train[e] * test[f]) if train[e] > 0 and test[f] > 0 else np.nan
        relative = dot[e, f] / np.sqrt(train[e]) if train[e] > 0 else np.nan
        np.testing.assert_allclose(views["cosine"].influence()[e, f], cosine, **FLOAT64)
        np.testing.assert_allclose(views["relative"].influence()[e, f], relative, **FLOAT64)
    assert np.nanmax(np.abs(views["cosine"].influence())) <= 1 + 1e-9
    np.testing.assert_allclose(case.view(loss, measure="cosine_mean").influence(), slow_mean_cosine(views["dot"], case), **FLOAT64)
    name = views["dot"].test_pairs["id"].iloc[2]
    column = views["dot"].influence()[:, 2]
    below = np.array([np.sum(column < value) + 0.5 * np.sum(column == value) for value in column])
    np.testing.assert_allclose(views["rank"].influence()[:, 2], 100 * below / len(column), **FLOAT64)
    for measure, view in views.items():
        np.testing.assert_array_equal(view.influence(name), next(block for _, block in view.blocks(5))[:, 2], err_msg=measure)


@settings(max_examples=25, deadline=None)
@given(case=CASES, loss=SETTINGS)
def test_mean_and_worst_influence_are_over_live_tests(case: Case, loss: PairLoss) -> None:
    view = case.view(loss)
    live = ~view.dead_tests
    if not live.any():
        with pytest.raises(ViewError, match="nothing to average"):
            view.mean_influence()
        return
    slow = slow_influence(view, case)[:, live]
    np.testing.assert_allclose(view.mean_influence(), slow.mean(axis=1), **FLOAT64)
    np.testing.assert_allclose(view.worst_influence(), slow.min(axis=1), **FLOAT64)


def test_an_undefined_score_spoils_no_other() -> None:
    """A dead test pair leaves cosines undefined, a dead training pair its own rank: neither reaches another pair's number."""
    case = make_case(8)
    outputs = case.test_outputs.copy()
    outputs[:, 3] = 90
    view = replace(case, test_outputs=outputs, weights=np.ones(CHECKPOINTS)).view(measure="cosine")
    assert view.dead_tests.any()
    live = view.influence()[:, ~view.dead_tests]
    np.testing.assert_array_equal(np.isnan(live).all(axis=1), view.dead_train)
    np.testing.assert_allclose(view.mean_influence(), live.mean(axis=1), **FLOAT64)
    assert np.isfinite(view.mean_influence()).any()
    values = np.arange(len(view.train_pairs), dtype=float)
    values[2] = np.nan
    ranked = view.ranked(values).set_index("id")["percentile"]
    assert np.isnan(ranked[view.train_pairs["id"][2]])
    assert ranked[view.train_pairs["id"].iloc[-1]] == pytest.approx(100 * (len(values) - 1.5) / (len(values) - 1))


def test_opponents_and_proponents_are_counted_whole() -> None:
    view = make_case(3).view()
    test = view.test_pairs["id"][2]
    assert (view.count(test, "proponents"), view.count(test, "opponents")) == tuple(len(side) for side in view.top(test, 10_000))


@pytest.mark.parametrize("pair_mode", ["ranking_pair", "full_pair", "sample"])
def test_the_suggested_threshold_chooses_a_few(pair_mode: str) -> None:
    view = make_case(1).view()
    threshold = view.suggested_threshold(2, pair_mode)
    below = view.sweep(2, pair_mode).counts([threshold, 0.0])
    counted = "samples" if pair_mode == "sample" else "pairs"
    assert threshold <= 0
    assert below[counted][0] < below[counted][1]


def test_the_mean_rank_is_over_live_tests() -> None:
    """A dead test ranks every pair in the middle; it would only pull the mean there."""
    case = make_case(8)
    outputs = case.test_outputs.copy()
    outputs[:, 3] = 90
    case = replace(case, test_outputs=outputs, weights=np.ones(CHECKPOINTS))
    view = case.view(measure="rank")
    assert view.dead_tests.any()
    assert (view.influence()[:, view.dead_tests] == 50).all()
    np.testing.assert_allclose(view.mean_influence(), view.influence()[:, ~view.dead_tests].mean(axis=1), **FLOAT64)
    calm = replace(case, test_outputs=np.float32(90 * case.test_samples["label"].to_numpy())[None].repeat(CHECKPOINTS, axis=0))
    with pytest.raises(ViewError, match="All 8 test pairs are dead under margin, margin 4"):
        calm.view().mean_influence()


def test_percentiles_share_ties() -> None:
    assert percentiles(np.array([[1.0], [0.0], [1.0], [3.0]]))[:, 0].tolist() == [50.0, 12.5, 50.0, 87.5]


# ---- refusals


LONG = sample_table([0, 1, 2], "a")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"measure": "angle"}, "no measure 'angle'; choose from dot, cosine, cosine_mean, relative, rank"),
        ({"test_quantity": "margin"}, "no test quantity 'margin'; choose from loss, score_difference"),
        ({"checkpoint_weights": np.ones(2)}, "2 weights were given for 3 checkpoints"),
        ({"checkpoint_weights": np.array([1, np.nan, 1])}, "one finite number each"),
        ({"checkpoint_weights": np.array([1, -2.0, 1]), "measure": "cosine"}, r"negative checkpoint weight \(-2\)"),
        ({"checkpoint_weights": np.array([1, -2.0, 1]), "measure": "relative"}, "divides by a self-influence"),
        ({"kernels": make_case(0).kernels.at([]), "checkpoint_weights": np.ones(0)}, "no checkpoint"),
        ({"layers": []}, r"layers \[\]; this run has 0 to 1"),
        ({"layers": [2]}, r"layers \[2\]"),
        ({"layers": [1, 1]}, "each once"),
        ({"train_samples": LONG}, "of 7 training samples, but the table has 3"),
        ({"test_samples": LONG}, "of 5 test samples, but the table has 3"),
        ({"test_pairs": all_pairs(make_case(0).train_samples)}, "A test pair points outside the 5 samples"),
    ],
)
def test_a_view_without_an_answer_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ViewError, match=told):
        make_case(0).view(**change)


def test_an_output_that_is_not_finite_is_refused_by_name() -> None:
    """A NaN would read as a satisfied pair."""
    case = make_case(0)
    case.train_outputs[1, 4] = np.nan
    with pytest.raises(ViewError, match="sample 'a4' at checkpoint 2 of 3 is nan"):
        case.view()
