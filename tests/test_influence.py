"""Scores from kernels against explicit gradients: one example at a time, in parameter space, in float64."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracin_core.data.samples import all_pairs, pair_table
from tracin_core.errors import ExclusionError, NotFoundError, ViewError
from tracin_core.recipe import LossName
from tracin_core.scores import exclusions as rules
from tracin_core.scores import influence, selection
from tracin_core.scores.exclusions import choose_pairs
from tracin_core.scores.influence import Kernels, percentiles
from tracin_core.scores.losses import PairLoss, ghm_table, ghm_weights, pair_derivative, pair_loss
from tracin_core.scores.view import View

FLOAT64 = {"rtol": 1e-10, "atol": 1e-9}  # sums of a few hundred products of about 10
FLOAT32 = {"rtol": 2e-4, "atol": 2e-4}  # kernels are stored in float32
TOP_COLUMNS = ["id", "id1", "id2", "angle1", "angle2", "influence", "percentile", "self_influence", "contributions"]
LOSSES = get_args(LossName)
CHECKPOINTS, LAYERS, TRAIN, TEST, PARAMETERS = 3, 2, 7, 5, 4


@dataclass(frozen=True)
class Case:
    """Gradients of the outputs in small whole numbers, so that float32 kernels of them are exact."""

    train_gradients: np.ndarray  # [C, L, n, parameters]
    test_gradients: np.ndarray
    train_outputs: np.ndarray
    test_outputs: np.ndarray
    weights: np.ndarray
    train_samples: pd.DataFrame
    test_samples: pd.DataFrame

    @property
    def kernels(self) -> Kernels:
        def products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
            return np.einsum("clip,cljp->clij", left, right).astype(np.float32)

        train, test = self.train_gradients, self.test_gradients
        return Kernels(products(train, train), products(test, train), products(test, test), self.train_outputs, self.test_outputs)

    def view(self, loss: PairLoss | None = None, **change: Any) -> View:
        given_: dict[str, Any] = {
            "train_pairs": all_pairs(self.train_samples),
            "test_pairs": all_pairs(self.test_samples),
            "kernels": self.kernels,
            "loss": loss or PairLoss(margin=4.0),
            "checkpoint_weights": self.weights,
            "checkpoint_names": [f"epoch {epoch}" for epoch in range(len(self.weights))],
            "train_samples": self.train_samples,
            "test_samples": self.test_samples,
        }
        return View.of_pairs(**{**given_, **change})


def sample_table(labels: list[int], prefix: str) -> pd.DataFrame:
    ids = [f"{prefix}{place}" for place in range(len(labels))]
    return pd.DataFrame({"id": ids, "label": labels, "angle": [36 * label for label in labels]})


def make_case(seed: int, checkpoints: int = CHECKPOINTS) -> Case:
    generator = np.random.default_rng(seed)

    def gradients(count: int) -> np.ndarray:
        return generator.integers(-3, 4, size=(checkpoints, LAYERS, count, PARAMETERS)).astype(float)

    def outputs(count: int) -> np.ndarray:
        return (generator.integers(-12, 13, size=(checkpoints, count)) / 2).astype(np.float32)

    return Case(
        gradients(TRAIN),
        gradients(TEST),
        outputs(TRAIN),
        outputs(TEST),
        generator.choice([0.5, 1.0, 2.0, 0.0], size=checkpoints),
        sample_table([0, 0, 1, 1, 2, 2, 2], "a"),
        sample_table([0, 1, 1, 2, 2], "x"),
    )


CASES = st.integers(0, 10_000).map(make_case)
SETTINGS = st.builds(PairLoss, name=st.sampled_from(LOSSES), margin=st.sampled_from([0.0, 1.0, 4.0]), ghm_batch=st.just(5))


def gradient(slope: float, gradients: np.ndarray, first: int, second: int) -> np.ndarray:
    """grad L of one pair: dL/ds_first times the difference of two output gradients, over all parameters of all layers."""
    return np.asarray(slope * (gradients[:, first] - gradients[:, second])).ravel()


def explicit(view: View, case: Case, side: str) -> np.ndarray:
    """[C, pairs, parameters]: every pair's gradient, one after the other."""
    pairs, slopes = (view.train_pairs, view.train_derivatives) if side == "train" else (view.test_pairs, view.test_derivatives)
    gradients = case.train_gradients if side == "train" else case.test_gradients
    return np.array(
        [
            [gradient(slopes[c, row], gradients[c], pair.first, pair.second) for row, pair in enumerate(pairs.itertuples())]
            for c in range(len(gradients))
        ]
    )


def slow_influence(view: View, case: Case) -> np.ndarray:
    """sum_c w_c <grad L(e), grad L(e')>: [N, M]."""
    train, test = explicit(view, case, "train"), explicit(view, case, "test")
    total = np.zeros((train.shape[1], test.shape[1]))
    for c, weight in enumerate(view.checkpoint_weights):
        for e, f in product(range(train.shape[1]), range(test.shape[1])):
            total[e, f] += weight * float(train[c, e] @ test[c, f])
    return total


def slow_mean_cosine(view: View, case: Case) -> np.ndarray:
    """The mean of <g, g'> / |g| |g'| over the weighted checkpoints where both gradients are there; NaN where there is none."""
    train, test = explicit(view, case, "train"), explicit(view, case, "test")
    found = np.full((train.shape[1], test.shape[1]), np.nan)
    for e, f in product(range(train.shape[1]), range(test.shape[1])):
        pairs = [
            (g[e], h[f]) for g, h, w in zip(train, test, view.checkpoint_weights, strict=True) if w and g[e].any() and h[f].any()
        ]
        if pairs:
            found[e, f] = np.mean([float(g @ h) / np.sqrt(float(g @ g) * float(h @ h)) for g, h in pairs])
    return found


def slow_self(view: View, case: Case, side: str) -> np.ndarray:
    gradients = explicit(view, case, side)
    return np.array(
        [
            sum(w * float(g[e] @ g[e]) for w, g in zip(view.checkpoint_weights, gradients, strict=True))
            for e in range(gradients.shape[1])
        ]
    )


FEW = settings(deadline=None, max_examples=25)


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
    assert np.nanmax(np.abs(np.nan_to_num(views["cosine"].influence()))) <= 1 + 1e-9
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


# ---- rankings


@FEW
@given(case=CASES, loss=SETTINGS, k=st.integers(1, 30), measure=st.sampled_from(["dot", "cosine", "relative", "rank"]))
def test_top_lists_the_strongest_of_each_sign(case: Case, loss: PairLoss, k: int, measure: Any) -> None:
    """Strongest first, ties by id, no pair without influence; percentile, self-influence and contributions are each pair's own."""
    view, plain = case.view(loss, measure=measure), case.view(loss)
    test = view.test_pairs["id"].iloc[3]
    dot, values, own = plain.influence(test), view.influence(test), view.self_influence()
    ids = view.train_pairs["id"].tolist()
    sides = view.top(test, k)
    for listed, sign in zip(sides, (1, -1), strict=True):
        rows = [row for row in range(len(ids)) if sign * dot[row] > 0 and not np.isnan(values[row])]
        expected = sorted(rows, key=lambda row: (-sign * values[row], ids[row]))[:k]
        assert list(listed.columns) == TOP_COLUMNS
        assert listed["id"].tolist() == [ids[row] for row in expected]
        np.testing.assert_array_equal(listed["influence"], values[expected])
        np.testing.assert_array_equal(listed["percentile"], percentiles(dot[:, None])[expected, 0])
        np.testing.assert_array_equal(listed["self_influence"], own[expected])
        assert (listed["id1"] + "_" + listed["id2"]).tolist() == listed["id"].tolist()
        for row, parts in zip(expected, listed["contributions"], strict=True):
            assert len(parts) == CHECKPOINTS
            np.testing.assert_allclose(parts, view.contributions(ids[row], test), **FLOAT64)
            np.testing.assert_allclose(sum(parts), dot[row], **FLOAT64)


def test_top_of_a_dead_test_is_empty_with_its_columns() -> None:
    case = make_case(9)
    calm = replace(case, test_outputs=np.float32(90 * case.test_samples["label"].to_numpy())[None].repeat(CHECKPOINTS, axis=0))
    for listed in calm.view().top("x0_x1"):
        assert list(listed.columns) == TOP_COLUMNS
        assert len(listed) == 0


def test_equal_influences_are_ordered_by_id_on_both_sides() -> None:
    case = make_case(10)
    flat = replace(case, train_gradients=np.ones_like(case.train_gradients), weights=np.ones(CHECKPOINTS))
    flat.train_gradients[:, :, 2:] += 1
    for listed in flat.view(PairLoss(name="logistic", margin=0.0), test_quantity="score_difference").top("x0_x3"):
        tied = listed.groupby("influence", sort=False)["id"].apply(list)
        assert all(names == sorted(names) for names in tied)


@FEW
@given(case=CASES, loss=SETTINGS, k=st.integers(1, 12), measure=st.sampled_from(get_args(influence.Measure)))
def test_top_tests_reads_a_row_of_the_table(case: Case, loss: PairLoss, k: int, measure: Any) -> None:
    """Which tests a training pair helped or harmed: the whole table's row, sorted by hand; places and checkpoints are each test's own."""
    view, plain = case.view(loss, measure=measure), case.view(loss)
    table, dot = view.influence(), plain.influence()
    ids, pair = view.test_pairs["id"].tolist(), view.train_pairs["id"].iloc[3]
    np.testing.assert_allclose(view.train_influence(pair), table[3], **FLOAT64)
    np.testing.assert_array_equal(plain.train_influence(pair), dot[3])
    signs = table if measure == "cosine_mean" else dot
    for listed, sign in zip(view.top_tests(pair, k), (1, -1), strict=True):
        chosen = [column for column in range(len(ids)) if sign * signs[3, column] > 0 and not np.isnan(table[3, column])]
        np.testing.assert_allclose(listed["influence"], sorted((table[3, chosen]), key=lambda value: -sign * value)[:k], **FLOAT64)
        assert len(listed) == min(k, len(chosen))
        assert list(listed.columns) == [name for name in TOP_COLUMNS if name != "self_influence"]
        for row in listed.itertuples():
            column = ids.index(row.id)
            assert column in chosen
            np.testing.assert_allclose(row.influence, table[3, column], **FLOAT64)
            assert row.percentile == percentiles(dot[:, [column]])[3, 0]
            np.testing.assert_allclose(row.contributions, plain.contributions(pair, row.id), **FLOAT64)


def test_equal_influences_on_tests_are_ordered_by_id() -> None:
    case = make_case(10)
    flat = replace(case, test_gradients=np.ones_like(case.test_gradients), weights=np.ones(CHECKPOINTS))
    flat.test_gradients[:, :, 2:] += 1
    backwards = all_pairs(flat.test_samples).iloc[::-1].reset_index(drop=True)
    view = flat.view(PairLoss(name="logistic", margin=0.0), test_quantity="score_difference", test_pairs=backwards)
    for listed in view.top_tests(view.train_pairs["id"].iloc[5]):
        tied = listed.groupby("influence", sort=False)["id"].apply(list)
        assert all(names == sorted(names) for names in tied)


@FEW
@given(
    case=CASES,
    loss=SETTINGS,
    measure=st.sampled_from(get_args(influence.Measure)),
    how=st.sampled_from(["mean", "sum"]),
    cell=st.sampled_from([None, (0, 36), (0, 72), (36, 72)]),
)
def test_a_groups_influence_is_that_of_its_live_tests_together(
    case: Case, loss: PairLoss, measure: Any, how: Any, cell: Any
) -> None:
    """The columns of the whole table, taken one by one; a dead test is no part of a mean."""
    view = case.view(loss, measure=measure)
    names = [pair.id for pair in view.test_pairs.itertuples() if cell is None or sorted((pair.angle1, pair.angle2)) == list(cell)]
    assert view.tests_in(cell) == names
    without = measure in ("cosine", "cosine_mean") and view.test_self_influence() <= 0  # a direction lost in rounding
    columns = [row for row, pair in enumerate(view.test_pairs["id"]) if pair in names and not (view.dead_tests | without)[row]]
    if not columns:
        with pytest.raises(ViewError, match=r"dead|live"):
            view.group_influence(names, how)
        return
    expected = sum(view.influence()[:, column] for column in columns) / (len(columns) if how == "mean" else 1)
    np.testing.assert_allclose(view.group_influence(names, how), expected, **FLOAT64)
    if cell is None and how == "mean":
        np.testing.assert_allclose(view.group_influence(names), view.mean_influence(), **FLOAT64)
    sides = view.top_of_group(names, 4, how)
    for listed, sign in zip(sides, (1, -1), strict=True):
        assert list(listed.columns) == TOP_COLUMNS
        assert (np.diff(sign * listed["influence"]) <= 0).all()
        for row in listed.itertuples():
            place = view.train_row(row.id)
            np.testing.assert_allclose(row.influence, expected[place], **FLOAT64)
            assert row.self_influence == view.self_influence()[place]
            parts = sum(case.view(loss).contributions(row.id, view.test_pairs["id"].iloc[column]) for column in columns)
            np.testing.assert_allclose(row.contributions, parts / (len(columns) if how == "mean" else 1), **FLOAT64)
    if measure == "dot":
        assert len(sides[0]) == min(4, int((view.group_influence(names, how) > 0).sum()))


def test_influences_that_cancel_are_none() -> None:
    """Under a hinge of whole numbers every influence is exact; thirds of those that add up to 0 would leave rounding, of either sign."""
    cancelled = 0
    for seed in range(40):
        view = make_case(seed).view(PairLoss(margin=4.0))
        names = view.test_pairs["id"][~view.dead_tests].head(7).tolist()
        if len(names) == 7:
            exact = sum(view.influence(name) for name in names)
            together = view.group_influence(names)
            np.testing.assert_array_equal(together == 0, exact == 0)
            listed = pd.concat(view.top_of_group(names, k=100))
            assert set(listed["id"]) == set(view.train_pairs["id"][exact != 0])
            cancelled += int((~view.dead_train & (exact == 0)).sum())
    assert cancelled


def test_a_group_counts_its_live_tests() -> None:
    case = make_case(8)
    outputs = case.test_outputs.copy()
    outputs[:, 3] = 90  # label 2, far above all others
    view = replace(case, test_outputs=outputs, weights=np.ones(CHECKPOINTS)).view()
    cells = view.test_cells().set_index(["low", "high"])
    for cell, told in cells.iterrows():
        names = view.tests_in(cell)
        assert told["n"] == len(names)
        assert told["live"] == sum(not view.dead_tests[view.test_row(name)] for name in names)
    assert cells["n"].sum() > cells["live"].sum() > 0
    dead = view.test_pairs["id"][view.dead_tests].tolist()
    with pytest.raises(ViewError, match=f"None of the {len(dead)} test pairs chosen is live"):
        view.group_influence(dead)


# ---- roll-ups


@FEW
@given(case=CASES, loss=SETTINGS)
def test_sample_influence_sums_the_samples_pairs(case: Case, loss: PairLoss) -> None:
    """Each pair stands with both of its samples, so the sum over samples is twice the sum over pairs."""
    view = case.view(loss)
    expected = np.zeros((TRAIN, len(view.test_pairs)))
    for row, pair in enumerate(view.train_pairs.itertuples()):
        expected[pair.first] += view.influence()[row]
        expected[pair.second] += view.influence()[row]
    np.testing.assert_allclose(view.sample_influence(), expected, **FLOAT64)
    np.testing.assert_allclose(view.sample_influence().sum(axis=0), 2 * view.influence().sum(axis=0), **FLOAT64)


def test_the_angle_grid_rolls_up_unordered_angle_pairs() -> None:
    view = make_case(11).view()
    values = np.arange(len(view.train_pairs), dtype=float)
    values[0] = np.nan
    grid = view.angle_grid(values)
    assert grid[["low", "high"]].to_numpy().tolist() == [[0, 36], [0, 72], [36, 72]]
    for cell in grid.itertuples():
        own = [
            value
            for value, pair in zip(values, view.train_pairs.itertuples(), strict=True)
            if sorted((pair.angle1, pair.angle2)) == [cell.low, cell.high] and not np.isnan(value)
        ]
        assert (cell.n, cell.mean, cell.median) == (len(own), np.mean(own), np.median(own))
    with pytest.raises(ViewError, match="One value is needed for each of 16 training pairs"):
        view.angle_grid(values[:3])


# ---- choosing


@FEW
@given(case=CASES, threshold=st.sampled_from([-30.0, -5.0, -0.5]), least=st.integers(1, 4))
@pytest.mark.parametrize("mode", ["ranking_pair", "full_pair", "sample"])
def test_a_views_exclusions_are_the_rule_on_its_scores(mode: Any, case: Case, threshold: float, least: int) -> None:
    """And its sweep counts, at that threshold, what the list holds."""
    view = case.view()
    chosen = view.exclusions(threshold, least, None, mode)
    expected = choose_pairs(
        view.influence(),
        view.train_pairs,
        view.test_pairs,
        threshold=threshold,
        min_occurrences=least,
        max_exclusions=None,
        pair_mode=mode,
        sample_ids=case.train_samples["id"].to_numpy(),
        sample_scores=view.sample_influence(),
    )
    pd.testing.assert_frame_equal(chosen, expected)
    counts = view.sweep(least, mode).counts(threshold).iloc[0]
    assert counts["pairs" if mode == "ranking_pair" else "samples"] == len(chosen)
    assert len(view.exclusions(threshold, least, 2, mode)) == min(2, len(chosen))


@FEW
@given(case=CASES, loss=SETTINGS, measure=st.sampled_from(["cosine", "cosine_mean", "relative", "rank"]), least=st.integers(1, 3))
def test_the_harm_rule_reads_any_measure(case: Case, loss: PairLoss, measure: Any, least: int) -> None:
    """Undefined values are no harm; a rank is read as its distance below the middle, where the influence is negative."""
    view = case.view(loss, measure=measure)
    scores = view.influence()
    if measure == "rank":
        scores = np.where(case.view(loss).influence() < 0, np.minimum(scores - 50, 0), 0.0)
    scores = np.where(np.isnan(scores), 0.0, scores)
    threshold = {"rank": -20.0, "relative": -2.0}.get(measure, -0.2)
    rule: dict[str, Any] = {"threshold": threshold, "min_occurrences": least, "max_exclusions": None}
    expected = choose_pairs(scores, view.train_pairs, view.test_pairs, **rule)
    pd.testing.assert_frame_equal(view.exclusions(**rule), expected)
    assert view.sweep(least).counts([threshold])["pairs"][0] == len(expected)


def test_relative_thresholds_say_what_they_are_relative_to() -> None:
    view = make_case(14).view()
    scores = view.influence()
    for asked, expected in (
        ({"quantile": 0.2}, rules.quantile_threshold(scores, 0.2)),
        ({"robust_z": -1.5}, rules.robust_threshold(scores, -1.5)),
    ):
        threshold, people = view.threshold_at(**asked)
        assert threshold == expected < 0
        assert people.describe() == rules.population(scores).describe()
        assert not view.exclusions(threshold, 1).empty


def test_suspects_lie_strictly_above_the_line_highest_first() -> None:
    case = make_case(12)
    view = case.view()
    own = view.self_influence()
    line = float(np.sort(own)[10])
    found = view.suspects(threshold=line)
    assert list(found.columns) == ["id", "id1", "id2", "score"]
    assert set(found["id"]) == {pair for pair, value in zip(view.train_pairs["id"], own, strict=True) if value > line}
    ranked = list(zip(found["score"], found["id"], strict=True))
    assert all(-one <= -two and (one != two or a < b) for (one, a), (two, b) in pairwise(ranked))
    pd.testing.assert_frame_equal(view.suspects(quantile=0.5), view.suspects(threshold=float(np.quantile(own, 0.5))))
    assert view.suspects(quantile=1.0).empty
    loss = PairLoss(margin=4.0)
    first, second = (case.train_outputs[:, view.train_pairs[end]] for end in ("first", "second"))
    mean = pair_loss(loss, first, second, view.train_pairs["target"].to_numpy()).mean(axis=0)
    assert view.suspects("mean_loss", quantile=0.9)["score"].iloc[0] == mean.max()


# ---- refusals


def test_all_influences_above_the_budget_are_refused_with_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """One test pair, blocks, samples and the harm rule still answer: they never hold the table."""
    whole = make_case(13).view()
    expected = whole.exclusions(-1.0, 2), whole.sweep(2).counts([-9.0, -1.0, 0.0])
    monkeypatch.setattr(influence, "CELL_BUDGET", 100)
    monkeypatch.setattr(influence, "BLOCK_CELLS", 10)  # as many blocks as can be
    monkeypatch.setattr(rules, "BLOCK_CELLS", 10)
    monkeypatch.setattr(selection, "BLOCK_CELLS", 10)
    view = make_case(13).view()
    for ask in (view.influence, lambda: view.threshold_at(quantile=0.1), make_case(13).view(measure="rank").exclusions):
        with pytest.raises(ViewError, match=r"16 x 8 = 128 numbers, more than 100.*view\.blocks"):
            ask()
    assert view.influence("x0_x1").shape == (16,)
    assert len(list(view.blocks(4))) == 2
    assert view.sample_influence().shape == (TRAIN, 8)
    told: list[tuple[int, int]] = []
    pd.testing.assert_frame_equal(
        view.sweep(2, progress=lambda done, all_: told.append((done, all_))).counts([-9.0, -1.0, 0.0]), expected[1]
    )
    pd.testing.assert_frame_equal(view.exclusions(-1.0, 2), expected[0])
    assert len(told) > 2
    assert told[-1][0] == told[-1][1]
    assert told == sorted(told)


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


VIEW = make_case(0).view()


@pytest.mark.parametrize(
    ("ask", "kind", "told"),
    [
        (lambda: VIEW.influence("nobody"), NotFoundError, "no test pair 'nobody'"),
        (lambda: VIEW.contributions("nobody", "x0_x1"), NotFoundError, "no training pair 'nobody'"),
        (lambda: VIEW.top("nobody"), NotFoundError, "no test pair 'nobody'"),
        (lambda: VIEW.top("x0_x1", 0), ViewError, "choose at least 1"),
        (lambda: VIEW.top_tests("nobody"), NotFoundError, "no training pair 'nobody'"),
        (lambda: VIEW.top_tests("a0_a2", 0), ViewError, "choose at least 1"),
        (lambda: VIEW.train_influence("nobody"), NotFoundError, "no training pair 'nobody'"),
        (lambda: VIEW.group_influence(["nobody"]), NotFoundError, "no test pair 'nobody'"),
        (lambda: VIEW.group_influence(["x0_x1"], "median"), ViewError, "no way to take tests together 'median'"),
        (lambda: VIEW.top_of_group(["x0_x1"], 0), ViewError, "choose at least 1"),
        (lambda: next(VIEW.blocks(0)), ViewError, "width of at least 1"),
        (lambda: VIEW.suspects(), ViewError, "either a threshold or a quantile"),
        (lambda: VIEW.suspects(threshold=1.0, quantile=0.5), ViewError, "not both"),
        (lambda: VIEW.suspects(threshold=float("nan")), ViewError, "threshold is nan"),
        (lambda: VIEW.suspects(quantile=1.5), ViewError, "quantile is 1.5"),
        (lambda: VIEW.suspects("drift", quantile=0.5), ViewError, "no suspect score 'drift'; choose from self_influence"),
        (lambda: VIEW.exclusions(threshold=1.0), ExclusionError, "threshold is 1"),
        (lambda: VIEW.sweep(0), ExclusionError, "min_occurrences is 0"),
        (lambda: make_case(0).view(measure="rank").exclusions(pair_mode="sample"), ViewError, "which rank values do not"),
        (lambda: make_case(0).view(measure="cosine").sweep(pair_mode="sample"), ViewError, "which cosine values do not"),
        (lambda: VIEW.threshold_at(), ViewError, "either a quantile or a robust z-score"),
        (lambda: VIEW.suspects_by([1.0], quantile=0.5), ViewError, "One value is needed for each of 16"),
    ],
)
def test_a_question_without_an_answer_is_refused(ask: Callable[[], object], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        ask()
