"""What can be done with a list: its preview against the product's own training of a model that is linear in its parameters."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_cases import FLOAT64, SETTINGS, make_case
from torch import nn

from tracin_core.data.samples import all_pairs
from tracin_core.engine.training import of_samples, ranking
from tracin_core.errors import ViewError
from tracin_core.evaluating.retraining import changed
from tracin_core.recipe import ClassificationTask, RegressionTask
from tracin_core.records.interchange import training_exclusions
from tracin_core.scores.actions import Action, actions_for, first_order
from tracin_core.scores.comparison import Methods
from tracin_core.scores.influence import Kernels
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.relabel import likeliest_others
from tracin_core.scores.retraining import Training
from tracin_core.scores.sample_losses import SampleLoss
from tracin_core.scores.view import View

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # the same steps in another order of sums
TRAIN, TESTS, FEATURES, EPOCHS, STEPS = 8, 5, 4, (0, 1, 2), 6
GENERATOR = np.random.default_rng(0)
INPUTS = GENERATOR.integers(-2, 3, (TRAIN + TESTS, FEATURES)).astype(float)  # small and whole: float32 kernels of them are exact
RATES = np.array([0.01, 0.01, 0.01, 0.02, 0.02, 0.02])
SUMS = np.array([0.0, RATES[:3].sum(), RATES.sum()])
MOMENTUM = 0.5
SAMPLES = pd.DataFrame(
    {
        "id": [f"a{k}" for k in range(TRAIN)] + [f"x{k}" for k in range(TESTS)],
        "label": [0, 0, 1, 1, 2, 2, 2, 0, 0, 1, 1, 2, 2],
        "split": ["train"] * TRAIN + ["validation"] * TESTS,
        "target": np.arange(TRAIN + TESTS) / 4 - 1.5,  # trainings keep float32
    }
).assign(angle=lambda table: 36 * table["label"])
SIDES = [SAMPLES[SAMPLES["split"] == side].reset_index(drop=True) for side in ("train", "validation")]
PLACES = np.arange(TRAIN), np.arange(TRAIN, TRAIN + TESTS)


def starting(outputs: int) -> np.ndarray:
    return np.random.default_rng(1).integers(-2, 3, (FEATURES, outputs)) / 2


def kernels_of(outputs: int) -> Kernels:
    """Of a linear model with so many outputs: the same at every checkpoint."""
    train, test = INPUTS[PLACES[0]], INPUTS[PLACES[1]]
    eye, ends = np.eye(outputs), INPUTS @ starting(outputs)
    told = np.stack([ends, ends + 1, ends - np.arange(outputs)]).astype(
        np.float32
    )  # only those of epoch 0 and the last are looked at
    told = told[:, :, 0] if outputs == 1 else told

    def products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.stack([np.kron(left @ right.T, eye)[None]] * len(EPOCHS)).astype(np.float32)

    return Kernels(products(train, train), products(test, train), products(test, test), told[:, PLACES[0]], told[:, PLACES[1]])


def training_of(kernels: Kernels) -> Training:
    known: dict[str, Any] = {"rate_sums": SUMS, "steps_per_epoch": STEPS // 2, "examples": TRAIN, "optimizer": "SGD"}
    return Training(EPOCHS, kernels.train_outputs, kernels.test_outputs, momentum=MOMENTUM, **known)


def trained(objective: Any, outputs: int) -> nn.Linear:
    """A linear model after torch's SGD on the objective, all of it in each step."""
    model = nn.Linear(FEATURES, outputs, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(starting(outputs).T))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=MOMENTUM)
    for rate in RATES:
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        objective.losses(model, torch.from_numpy(INPUTS), torch.arange(objective.count)).mean().backward()
        optimizer.step()
    return model


def outputs_of(model: nn.Linear) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(INPUTS[PLACES[1]])).numpy()


def pair_methods(loss: PairLoss) -> Methods:
    kernels, (train, test) = kernels_of(1), SIDES
    pairs = {"train_pairs": all_pairs(train), "test_pairs": all_pairs(test), "train_samples": train, "test_samples": test}
    weights = {"checkpoint_weights": np.ones(len(EPOCHS)), "checkpoint_names": [f"epoch {epoch}" for epoch in EPOCHS]}
    return Methods(View.of_pairs(**pairs, kernels=kernels, loss=loss, **weights), training_of(kernels))


def sample_methods(loss: SampleLoss, outputs: int, sides: list[pd.DataFrame], target: str) -> Methods:
    kernels = kernels_of(outputs)
    weights = {"checkpoint_weights": np.ones(len(EPOCHS)), "checkpoint_names": [f"epoch {epoch}" for epoch in EPOCHS]}
    cotangent: Any = "score" if outputs == 1 else "outputs"
    view = View.of_samples(*sides, kernels, loss=loss, cotangent=cotangent, target=target, **weights)
    return Methods(view, training_of(kernels))


def asked(action: Action, weight: float, lines: list[str], before: list[str]) -> dict[str, Any]:
    """What the job of a retraining hands to the training for this list."""
    request = {"action": action, "weight": weight, "left_out_before": before}
    own = [*before, *(lines if action == "exclude" else [])]
    left_out = training_exclusions(own, SAMPLES)
    _, changes = changed(None, request, {"lines": lines}, SAMPLES)  # type: ignore[arg-type]  # no run is asked for labels
    return {"exclude_samples": left_out.samples, "exclude_pairs": left_out.pairs, **changes}


def linear_ranking(loss: PairLoss, action: Action, weight: float, lines: list[str], before: list[str]) -> nn.Linear:
    told = asked(action, weight, lines, before)
    chosen = {"loss": loss.name, "margin": loss.margin}
    ways = told.get("flip_pairs", frozenset()), told.get("weights")
    return trained(ranking(SAMPLES, PLACES[0], told["exclude_samples"], told["exclude_pairs"], 1, chosen, *ways), 1)


LISTS = {
    "pairs": ["a0_a2", "a1_a4", "a3_a7", "a6_a7"],
    "samples": ["a0", "a4"],  # the pair of the two is named twice
}


@pytest.mark.parametrize("before", [[], ["a2_a4"], ["a5"]], ids=["whole", "without a pair", "without a sample"])
@pytest.mark.parametrize("name", ["margin", "logistic", "squared_hinge"])
@pytest.mark.parametrize(
    ("action", "weight", "listed"),
    [
        ("exclude", 0.25, "pairs"),
        ("exclude", 0.25, "samples"),
        ("down_weight", 0.25, "pairs"),
        ("down_weight", 0.25, "samples"),
        ("down_weight", 0.0, "samples"),
        ("turn", 0.25, "pairs"),
    ],
)
def test_the_preview_of_a_list_of_a_ranking_is_the_training_of_a_linear_model(
    action: Action, weight: float, listed: str, name: Any, before: list[str]
) -> None:
    loss, lines = PairLoss(name=name, margin=1.0), LISTS[listed]
    methods = pair_methods(loss)
    view = methods.view
    chosen = view.train_pairs[view.train_pairs["id"].isin(lines)] if listed == "pairs" else pd.DataFrame({"id": lines})
    left_out = view.train_pairs["id"].isin(before) | view.train_pairs[["id1", "id2"]].isin(before).any(axis=1)
    found = methods.replay.preview(view.named(chosen), action, weight=weight, left_out=left_out.to_numpy())
    without, there = (outputs_of(linear_ranking(loss, action, weight, names, before)) for names in ([], lines))
    target, ends = view.test_pairs["target"].to_numpy(), view.test.ends
    for outputs, suffix in ((without, ""), (there, "_after")):
        gaps = target * (outputs[ends[:, 0], 0] - outputs[ends[:, 1], 0])
        z = 1.0 - gaps
        losses = {"margin": np.maximum(z, 0), "squared_hinge": np.maximum(z, 0) ** 2, "logistic": np.log1p(np.exp(z))}[name]
        np.testing.assert_allclose(found[f"loss{suffix}"], losses, **EXACT)
        np.testing.assert_array_equal(found[f"reached{suffix}"], (gaps > 0) + 0.5 * (gaps == 0))
    assert np.abs(found["rise"]).max() > 1e-3
    np.testing.assert_array_equal(found["rise"], found["loss_after"] - found["loss"])


def classes(outputs: int) -> pd.DataFrame:
    return SAMPLES if outputs > 1 else SAMPLES.assign(label=SAMPLES["label"] % 2)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("action", ["exclude", "down_weight", "relabel"])
def test_the_preview_of_a_classification_is_the_training_of_a_linear_model(action: Action, outputs: int) -> None:
    """Relabelled: of two labels the other one; of several the largest output of the last checkpoint but for the sample's own."""
    samples, named = classes(outputs), ["a1", "a3", "a4"]
    sides = [samples[samples["split"] == side].reset_index(drop=True) for side in ("train", "validation")]
    loss = SampleLoss("cross_entropy" if outputs > 1 else "binary_cross_entropy")
    methods = sample_methods(loss, outputs, sides, "label")
    found = methods.replay.preview(methods.view.named(pd.DataFrame({"id": named})), action, weight=0.125)
    last = methods.training.train_outputs[-1]
    after = samples.copy()
    if action == "relabel":
        for row in samples.index[samples["id"].isin(named)]:
            own = samples.at[row, "label"]
            order = [1 - own] if outputs == 1 else [label for label in np.argsort(-last[row], kind="stable") if label != own]
            after.loc[row, "label"] = order[0]
        assert (after["label"] != samples["label"]).sum() == len(named)
    excluded = set(named) if action == "exclude" else set()
    weights: Any = dict.fromkeys(named, 0.125) if action == "down_weight" else None
    task, chosen = ClassificationTask(), {"loss": loss.name}
    ends = [
        outputs_of(trained(of_samples(table, PLACES[0], out, outputs, task, chosen, by), outputs))
        for table, out, by in ((samples, set(), None), (after, excluded, weights))
    ]
    wanted = torch.tensor(sides[1]["label"].tolist())
    for given_, suffix in zip(ends, ("", "_after"), strict=True):
        scores = torch.from_numpy(given_)
        if outputs == 1:
            losses = nn.functional.binary_cross_entropy_with_logits(scores[:, 0], wanted.double(), reduction="none")
            right = (scores[:, 0] > 0) == (wanted == 1)
        else:
            losses, right = nn.functional.cross_entropy(scores, wanted, reduction="none"), scores.argmax(1) == wanted
        np.testing.assert_allclose(found[f"loss{suffix}"], losses.numpy(), **EXACT)
        np.testing.assert_array_equal(found[f"reached{suffix}"], right.numpy().astype(float))
    assert np.abs(found["rise"]).max() > 1e-3


@pytest.mark.parametrize("action", ["exclude", "down_weight"])
def test_the_preview_of_a_regression_is_the_training_of_a_linear_model(action: Action) -> None:
    """What is reached is the error as a training measures it."""
    methods = sample_methods(SampleLoss("squared_error"), 1, SIDES, "target")
    named = ["a0", "a7"]
    found = methods.replay.preview(methods.view.named(pd.DataFrame({"id": named})), action, weight=0.5)
    excluded = set(named) if action == "exclude" else set()
    weights: Any = dict.fromkeys(named, 0.5) if action == "down_weight" else None
    for out, by, suffix in ((set(), None, ""), (excluded, weights, "_after")):
        objective = of_samples(SAMPLES, PLACES[0], out, 1, RegressionTask(), {"loss": "squared_error"}, by)
        model = trained(objective, 1)
        wanted = SIDES[1]["target"].to_numpy()
        np.testing.assert_allclose(found[f"loss{suffix}"], (outputs_of(model)[:, 0] - wanted) ** 2, **EXACT)
        np.testing.assert_allclose(found[f"reached{suffix}"], np.abs(outputs_of(model)[:, 0] - wanted), **EXACT)
    with pytest.raises(ViewError, match="cannot be put to 'relabel'"):
        methods.replay.preview(np.ones(TRAIN, dtype=int), "relabel")


def test_no_weight_at_all_is_not_leaving_out() -> None:
    """The mean still divides by all: each step is that of leaving out times what is left over all."""
    methods, none = pair_methods(PairLoss(name="logistic")), np.zeros(len(all_pairs(SIDES[0])), dtype=int)
    named = none.copy()
    named[:10] = 1
    left, everything = len(named) - 10, len(named)
    slower = Methods(methods.view, Training(**{**vars(methods.training), "rate_sums": SUMS * left / everything}))
    np.testing.assert_allclose(
        methods.replay.preview(named, "down_weight", weight=0.0)["loss_after"], slower.replay.preview(named)["loss_after"], **EXACT
    )
    without, lighter = methods.replay.preview(named), methods.replay.preview(named, "down_weight", weight=0.0)
    assert np.abs(without["loss_after"] - lighter["loss_after"]).max() > 1e-3


@pytest.mark.parametrize("name", ["ghm", "ghm_legacy"])
def test_a_turned_pair_has_the_weight_of_a_guest_with_its_new_target(name: Any) -> None:
    """By hand: each step's sum over pairs, one after the other, under the frozen weights of the middle checkpoint."""
    loss = PairLoss(name=name, margin=1.0, ghm_batch=5)
    methods = pair_methods(loss)
    view, pairs = methods.view, methods.view.train_pairs
    named = (np.arange(len(pairs)) % 4 == 0).astype(int)
    found = methods.replay.preview(named, "turn")
    turned = pairs.assign(target=np.where(named > 0, -pairs["target"], pairs["target"]))
    kernels = kernels_of(1)
    again = View.of_pairs(
        turned, view.test_pairs, kernels, loss=loss, train_samples=SIDES[0], test_samples=SIDES[1], population=pairs,
        strangers=named > 0, checkpoint_weights=np.ones(3), checkpoint_names=["0", "1", "2"],
    )  # fmt: skip
    by_hand = Methods(again, training_of(kernels)).replay.preview(np.zeros(len(pairs), dtype=int))["loss"]
    np.testing.assert_allclose(found["loss_after"], by_hand, **EXACT)
    assert np.abs(found["rise"]).max() > 1e-4


@pytest.mark.parametrize(
    ("action", "weight", "told"),
    [
        ("relabel", 0.25, "cannot be put to 'relabel'"),
        ("down_weight", 1.0, "at least 0 and below 1"),
        ("down_weight", -0.1, "below 1"),
    ],
)
def test_what_has_no_meaning_for_pairs_is_refused(action: Action, weight: float, told: str) -> None:
    methods = pair_methods(PairLoss())
    with pytest.raises(ViewError, match=told):
        methods.replay.preview(np.ones(len(methods.view.train_pairs), dtype=int), action, weight=weight)
    with pytest.raises(ViewError, match=r"Influences say|below 1"):
        first_order(methods.view, np.ones(len(methods.view.train_pairs), dtype=np.int64), action, weight)


def test_what_can_be_done_follows_the_task_and_the_list() -> None:
    assert actions_for("ranking", "pair") == ["exclude", "down_weight", "turn"]
    assert actions_for("ranking", "sample") == actions_for("regression", "sample") == ["exclude", "down_weight"]
    assert actions_for("classification", "sample") == ["exclude", "down_weight", "relabel"]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), loss=SETTINGS, of_pairs=st.booleans(), weight=st.sampled_from([0.0, 0.25, 0.5]))
def test_to_first_order_a_list_does_the_sum_of_its_influences(seed: int, loss: PairLoss, of_pairs: bool, weight: float) -> None:
    """Pair by pair and test by test, from the table of influences."""
    view = make_case(seed).view(loss)
    pairs, influence = view.train_pairs, view.influence()
    if of_pairs:
        chosen, counts = pairs.iloc[[0, 3]], [int(row in (0, 3)) for row in range(len(pairs))]
    else:
        chosen = view.train_samples.iloc[[0, 2]]
        counts = [sum(end in set(chosen["id"]) for end in (pair.id1, pair.id2)) for pair in pairs.itertuples()]
    named = view.named(chosen)
    assert named.tolist() == counts
    for action, kept in (("exclude", 0.0), ("down_weight", weight)):
        expected = np.zeros(len(view.test_pairs))
        for row, count in enumerate(counts):
            for test in range(len(expected)):
                expected[test] += (1 - (kept**count)) * influence[row, test]
        np.testing.assert_allclose(first_order(view, named, action, weight), expected, **FLOAT64)  # type: ignore[arg-type]


def test_values_that_do_not_add_up_are_not_summed() -> None:
    view = make_case(1).view(measure="cosine")
    with pytest.raises(ViewError, match="cosine do not add up"):
        view.summed_influence(np.ones(len(view.train_pairs)))


def test_the_likeliest_other_label_is_never_the_own() -> None:
    outputs = np.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    assert likeliest_others(outputs, np.array([0, 2, 0])).tolist() == [2, 0, 1]
    assert likeliest_others(np.array([5.0, -1.0]), np.array([1, 1])).tolist() == [0, 0]


def test_how_long_a_preview_takes_is_about_what_it_says() -> None:
    methods = pair_methods(PairLoss(name="logistic"))
    assert 0 < methods.replay.preview_seconds() < 1
    lacking = Methods(methods.view, Training(**{**vars(methods.training), "optimizer": "Adam"}))
    with pytest.raises(ViewError, match="Adam"):
        lacking.replay.preview_seconds()
