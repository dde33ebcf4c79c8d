"""Training: the losses against the scores' own formulas, the same bytes from the same seed, and exclusions that stay in training."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from engine_cases import FLOAT64
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tracin_core.data.samples import all_pairs, split_samples
from tracin_core.engine.models import Ranker, build_model
from tracin_core.engine.objectives import measure, pair_losses, sample_losses, training_pairs
from tracin_core.engine.training import ranking, train, train_ranker
from tracin_core.errors import (
    DataError,
    ExclusionError,
    JobCancelledError,
    ModelError,
    NonFiniteError,
    OutputShapeError,
    RecipeError,
    TooFewClassesError,
    UnknownSampleError,
)
from tracin_core.recipe import (
    ClassificationTask,
    CnnModel,
    LabelLossName,
    LossName,
    MlpModel,
    NumberLossName,
    PluginModel,
    RankingTask,
    RegressionTask,
    SplitSection,
    TransformerModel,
)
from tracin_core.scores.losses import PairLoss, pair_derivative, pair_loss
from tracin_core.scores.sample_losses import SampleLoss, sample_derivative, sample_loss
from tracin_core.training_settings import SampleSettings, TrainingSettings, spread

FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}  # scores and margins of about 10 in float32
TINY: dict[str, Any] = {"epochs": 2, "save_epochs": (1,), "batch_pairs": 16}


@pytest.fixture(scope="module")
def samples() -> pd.DataFrame:
    """3 angles x 5 takes, three of them for training."""
    rows = [(f"box_deg{36 * label:03d}_500hz_{take}", label, 36 * label, take) for label in range(3) for take in range(5)]
    table = pd.DataFrame(rows, columns=["id", "label", "angle", "sequence"])
    return split_samples(table, SplitSection(train=3, validation=1, test=1))


@pytest.fixture(scope="module")
def inputs(samples: pd.DataFrame) -> np.ndarray:
    """Small pictures, brighter in a band that rises with the label."""
    pictures = np.random.default_rng(0).normal(size=(len(samples), 1, 48, 32)).astype(np.float32)
    for row, label in enumerate(samples["label"]):
        pictures[row, 0, 16 * label : 16 * label + 16] += 2
    return pictures


def load(folder: Path, epoch: int) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / f"model_epoch_{epoch}.pt", weights_only=True)
    return content


def ids(samples: pd.DataFrame, side: str) -> list[str]:
    return samples.loc[samples["split"] == side, "id"].tolist()


def test_checkpoints_are_in_the_labs_format(samples: pd.DataFrame, inputs: np.ndarray, tmp_path: Path) -> None:
    """Epoch 0, the asked epochs and the last; plain types; weights that load; the rate and what led to it."""
    manifest = train_ranker(inputs, samples, tmp_path, **TINY, margin=3.0, exclusion_list={"file": "list.txt"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(f"model_epoch_{n}.pt" for n in range(3)), "training.json"]
    for epoch in range(3):
        content = load(tmp_path, epoch)
        assert content["epoch"] == epoch
        Ranker().load_state_dict(content["model_state_dict"])
        assert content["optimizer_state_dict"]["param_groups"][0]["lr"] == pytest.approx([0.01, 0.01, 0.005][epoch])
        assert content["args"]["loss_type"] == "standard"
        assert (content["args"]["margin"], content["args"]["exclusions_file"]) == (3.0, "list.txt")
        assert content["rate_sum"] == pytest.approx([0, 0.02, 0.03][epoch])  # 27 pairs make 2 batches of 16
        assert content["val_accuracy"] == manifest["history"][epoch]["validation_accuracy"]
    assert json.loads((tmp_path / "training.json").read_text()) == manifest
    assert (manifest["train_samples"], manifest["train_pairs"]) == (9, 27)


@pytest.mark.parametrize(("schedule", "share"), [("cosine", [1, 1, 0.75, 0.25]), ("constant", [1, 1, 1, 1])])
def test_a_checkpoint_records_the_rate_that_led_to_it(
    samples: pd.DataFrame, inputs: np.ndarray, tmp_path: Path, schedule: str, share: list[float]
) -> None:
    train_ranker(inputs, samples, tmp_path, epochs=3, save_epochs=(1, 2), batch_pairs=16, learning_rate=0.1, schedule=schedule)
    rates = [load(tmp_path, epoch)["optimizer_state_dict"]["param_groups"][0]["lr"] for epoch in range(4)]
    assert rates == pytest.approx([0.1 * part for part in share])
    sums = np.diff([load(tmp_path, epoch)["rate_sum"] for epoch in range(4)])
    assert sums == pytest.approx([2 * rate for rate in rates[1:]])


def test_same_seed_same_bytes(samples: pd.DataFrame, inputs: np.ndarray, tmp_path: Path) -> None:
    """Checkpoints are equal to the byte, whatever state torch's generator was in; another seed gives others."""
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        torch.rand(seed)
        train_ranker(inputs, samples, tmp_path / name, **TINY, seed=seed)
    for epoch in range(3):
        first, again, other = ((tmp_path / n / f"model_epoch_{epoch}.pt").read_bytes() for n in ("first", "again", "other"))
        assert first == again
        assert first != other


def test_training_lowers_its_loss(samples: pd.DataFrame, inputs: np.ndarray, tmp_path: Path) -> None:
    """On separable pictures the loss falls and most pairs come out right, on the held-out sides too."""
    history = train_ranker(inputs, samples, tmp_path, epochs=30, save_epochs=(30,), batch_pairs=16, schedule="constant")["history"]
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    assert min(history[-1][f"{side}_accuracy"] for side in ("train", "validation", "test")) > 0.8


@pytest.mark.parametrize("loss", get_args(LossName))
def test_every_loss_trains(samples: pd.DataFrame, inputs: np.ndarray, tmp_path: Path, loss: LossName) -> None:
    """The checkpoint names the loss that was asked for, and the weights have moved."""
    train_ranker(inputs, samples, tmp_path, **TINY, loss=loss)
    before, after = (load(tmp_path, epoch)["model_state_dict"]["classifier.0.weight"] for epoch in (0, 2))
    assert not torch.equal(before, after)
    assert load(tmp_path, 2)["args"]["loss_type"] == {"margin": "standard"}.get(loss, loss)


SCORES = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=20)


@settings(deadline=None)
@given(
    first=SCORES,
    seed=st.integers(0, 1000),
    margin=st.sampled_from([0.0, 1.0, 10.0]),
    loss=st.sampled_from(["margin", "logistic", "squared_hinge"]),
)
def test_losses_are_those_of_the_scores(first: list[float], seed: int, margin: float, loss: LossName) -> None:
    """Value and derivative agree with the numpy formulas that views use; the second score's derivative is the negative."""
    generator = np.random.default_rng(seed)
    a, b = np.float32(first), generator.normal(scale=8, size=len(first)).astype(np.float32)
    target = generator.choice([-1.0, 1.0], size=len(first)).astype(np.float32)
    one, two = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
    values = pair_losses(one, two, torch.tensor(target), TrainingSettings(loss=loss, margin=margin))
    values.sum().backward()
    assert one.grad is not None
    assert two.grad is not None
    expected = PairLoss(name=loss, margin=margin)
    np.testing.assert_allclose(values.detach().numpy(), pair_loss(expected, a, b, target), **FLOAT32)
    np.testing.assert_allclose(one.grad.numpy(), pair_derivative(expected, a, b, target), **FLOAT32)
    torch.testing.assert_close(two.grad, -one.grad)


def test_a_pair_on_the_kink_still_pulls() -> None:
    """At z = 0 exactly the margin loss has derivative 1, as `margin_ranking_loss` has."""
    first = torch.tensor([10.0], requires_grad=True)
    pair_losses(first, torch.tensor([0.0]), torch.tensor([1.0]), TrainingSettings(margin=10.0)).sum().backward()
    assert first.grad is not None
    assert first.grad.item() == -1.0


def slow_ghm(first: list[float], second: list[float], target: list[float], margin: float, *, legacy: bool) -> list[float]:
    """Hinge times count(bin) ** -0.75, one pair after the other, in float32 like torch."""

    def density(i: int) -> np.float32:
        sign = 2 * target[i] - 1 if legacy else target[i]
        return torch.sigmoid(torch.tensor(margin - sign * (first[i] - second[i]), dtype=torch.float32)).numpy()[()]

    densities = [density(i) for i in range(len(first))]
    bins = [min(int(g * np.float32(10)), 9) for g in densities]
    values = []
    for i, place in enumerate(bins):
        count = sum(1 for g, other in zip(densities, bins, strict=True) if other == place and not (legacy and g == 1))
        values.append(max(0.0, margin - target[i] * (first[i] - second[i])) * max(count, 1) ** -0.75)
    return values


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("margin", [0.0, 1.0, 10.0])
def test_ghm_is_its_formula(margin: float, legacy: bool) -> None:
    """Each hinge is divided by count^0.75 of its bin; legacy has its sign error and leaves g = 1 uncounted."""
    generator = np.random.default_rng(3)
    first, second = (generator.normal(scale=6, size=60).astype(np.float32) for _ in range(2))
    target = generator.choice([-1.0, 1.0], size=60).astype(np.float32)
    chosen = TrainingSettings(loss="ghm_legacy" if legacy else "ghm", margin=margin)
    values = pair_losses(torch.tensor(first), torch.tensor(second), torch.tensor(target), chosen)
    np.testing.assert_allclose(values.numpy(), slow_ghm(first, second, target, margin, legacy=legacy), **FLOAT32)


def test_ghm_weights_carry_no_gradient() -> None:
    """The derivative of a pair is its weight, or 0 where the hinge is satisfied."""
    first, second = torch.tensor([0.0, 1.0, 30.0], requires_grad=True), torch.zeros(3)
    chosen = TrainingSettings(loss="ghm", margin=1.0)
    values = pair_losses(first, second, torch.ones(3), chosen)
    values.sum().backward()
    weights = [1.0, 1.0]  # sigmoid(1) and sigmoid(0) are in bins of their own
    assert first.grad is not None
    assert first.grad.tolist() == [-weights[0], -weights[1], 0.0]


def test_training_pairs_point_into_the_table(samples: pd.DataFrame) -> None:
    """Positions are rows of the whole table, and every pair of different labels is there once."""
    rows = np.flatnonzero((samples["split"] == "train").to_numpy())
    pairs = training_pairs(samples, rows)
    labels = samples["label"].to_numpy()
    first, second = pairs["first"].numpy(), pairs["second"].numpy()
    assert set(first) | set(second) == set(rows)
    assert len({frozenset(pair) for pair in zip(first, second, strict=True)}) == len(first) == 27
    np.testing.assert_array_equal(np.sign(labels[first] - labels[second]), pairs["target"].numpy())


def test_exclusions_leave_the_training_side_only(samples: pd.DataFrame, inputs: np.ndarray, tmp_path: Path) -> None:
    """A sample goes with all its pairs, a pair in either order; what is measured on the other sides stays the same."""
    sample, other = ids(samples, "train")[0], ids(samples, "train")[4]
    last = ids(samples, "train")[-1]
    held_out = ids(samples, "validation")
    none = train_ranker(inputs, samples, tmp_path / "none", **TINY)
    some = train_ranker(
        inputs,
        samples,
        tmp_path / "some",
        **TINY,
        exclude_samples={sample, held_out[0]},
        exclude_pairs={frozenset((last, other)), frozenset(held_out[:2])},
        exclusion_list={"file": "list.txt", "unmatched": ["nobody"]},
    )
    assert some["exclusions"] == {"file": "list.txt", "unmatched": ["nobody"], "samples": 1, "pairs": 1}
    assert some["split"] == none["split"] == {"train": 9, "validation": 3, "test": 3}
    assert (some["train_samples"], some["train_pairs"]) == (8, 27 - 6 - 1)
    start = [{key: value for key, value in run["history"][0].items() if "train" not in key} for run in (none, some)]
    assert start[0] == start[1]
    assert torch.equal(
        load(tmp_path / "none", 0)["model_state_dict"]["features.0.weight"],
        load(tmp_path / "some", 0)["model_state_dict"]["features.0.weight"],
    )


def test_nothing_left_to_train_on_is_refused(samples: pd.DataFrame, inputs: np.ndarray, tmp_path: Path) -> None:
    """One angle left, or every pair excluded; no checkpoint is written."""
    trained = samples[samples["split"] == "train"].reset_index(drop=True)
    higher = trained.loc[trained["label"] > 0, "id"]
    with pytest.raises(TooFewClassesError, match="6 of the 9 training samples are excluded, which leaves only the angle 0°"):
        train_ranker(inputs, samples, tmp_path / "samples", **TINY, exclude_samples=set(higher))
    every = all_pairs(trained)
    pairs = {frozenset(pair) for pair in zip(every["id1"], every["id2"], strict=True)}
    with pytest.raises(TooFewClassesError, match="No training pair is left of 9 samples after 27 pairs"):
        train_ranker(inputs, samples, tmp_path / "pairs", **TINY, exclude_pairs=pairs)
    assert not list(tmp_path.rglob("*.pt"))


def test_a_split_without_a_test_side_trains(samples: pd.DataFrame, inputs: np.ndarray, tmp_path: Path) -> None:
    """The lab's random split has none: its test accuracy is absent, not a number made up."""
    halves = split_samples(samples.drop(columns="split"), SplitSection(rule="random"))
    manifest = train_ranker(inputs, halves, tmp_path, **TINY)
    assert manifest["test_accuracy"] is None
    assert manifest["validation_accuracy"] is not None


def test_a_diverging_training_says_so(samples: pd.DataFrame, inputs: np.ndarray, tmp_path: Path) -> None:
    """The message names rate and epoch; no checkpoint with broken weights and no `training.json` is left."""
    with pytest.raises(NonFiniteError, match=r"in epoch \d+; choose a smaller learning rate than 1e\+20"):
        train_ranker(inputs, samples, tmp_path, **{**TINY, "epochs": 5}, learning_rate=1e20)
    for path in tmp_path.glob("*.pt"):
        assert all(value.isfinite().all() for value in torch.load(path, weights_only=True)["model_state_dict"].values())
    assert not (tmp_path / "training.json").exists()


def test_cancelling_ends_between_epochs(samples: pd.DataFrame, inputs: np.ndarray, tmp_path: Path) -> None:
    """Progress is told after each epoch, and what it raises ends the training before `training.json`."""
    told: list[tuple[int, int]] = []
    train_ranker(inputs, samples, tmp_path / "whole", **TINY, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2), (2, 2)]

    def cancel(done: int, _: int) -> None:
        if done == 1:
            raise JobCancelledError("The job was cancelled.")

    with pytest.raises(JobCancelledError):
        train_ranker(inputs, samples, tmp_path / "part", **TINY, progress=cancel)
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == ["model_epoch_0.pt", "model_epoch_1.pt"]


def test_accuracy_counts_ties_as_half(samples: pd.DataFrame, inputs: np.ndarray) -> None:
    """A model that says the same of everything is right half the time and loses the margin on every pair."""
    model = Ranker().eval()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    measured = measure(model, torch.from_numpy(inputs), samples, np.arange(len(samples)), TrainingSettings(margin=7.0))
    assert measured == {"loss": 7.0, "accuracy": 0.5}


# ---- other models, and samples instead of pairs ------------------------------------------------------------------------------

SHORT: dict[str, Any] = {"epochs": 3, "batch_size": 4}
SHORT_OF: dict[str, dict[str, Any]] = {"ranking": TINY, "classification": SHORT, "regression": SHORT}
CNN = CnnModel(widths=(4, 4), outputs=3)
LABELS = ClassificationTask()
NUMBERS = RegressionTask()


@pytest.fixture(scope="module")
def numbered(samples: pd.DataFrame) -> pd.DataFrame:
    """The samples of a data set that has no angles: a label and a target each."""
    return samples.drop(columns=["angle", "sequence"]).assign(target=samples["label"] - 1.0)


def outputs_and_targets(outputs: int, seed: int, *, labels: bool) -> tuple[torch.Tensor, np.ndarray]:
    generator = np.random.default_rng(seed)
    values = generator.normal(scale=4, size=(9, outputs))
    targets = generator.integers(0, max(outputs, 2), 9) if labels else generator.normal(scale=4, size=9)
    return torch.tensor(values, requires_grad=True), targets


@settings(deadline=None)
@given(
    loss=st.sampled_from(get_args(LabelLossName) + get_args(NumberLossName)),
    outputs=st.integers(1, 5),
    seed=st.integers(0, 1000),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    gamma=st.sampled_from([0.0, 0.5, 2.0]),
    q=st.sampled_from([0.1, 0.7, 1.0]),
    delta=st.sampled_from([0.1, 1.0, 5.0]),
)
def test_sample_losses_are_those_of_the_scores(
    loss: Any, outputs: int, seed: int, smoothing: float, gamma: float, q: float, delta: float
) -> None:
    """Value and derivative agree with the numpy formulas that views use, in float64."""
    of_number = loss in get_args(NumberLossName)
    assume(
        outputs == 1
        if of_number or loss == "binary_cross_entropy"
        else outputs > 1 or loss not in ("cross_entropy", "label_smoothing")
    )
    values, targets = outputs_and_targets(outputs, seed, labels=not of_number)
    each = {"smoothing": smoothing, "gamma": gamma, "q": q, "delta": delta}
    losses = sample_losses(values, torch.tensor(targets), SampleSettings(loss=loss, **each))
    losses.sum().backward()
    expected = SampleLoss(loss, **each)
    assert values.grad is not None
    np.testing.assert_allclose(losses.detach().numpy(), sample_loss(expected, values.detach().numpy(), targets), **FLOAT64)
    np.testing.assert_allclose(values.grad.numpy(), sample_derivative(expected, values.detach().numpy(), targets), **FLOAT64)


@pytest.mark.parametrize("loss", ["focal", "generalized_cross_entropy", "binary_cross_entropy", "cross_entropy"])
@pytest.mark.parametrize("size", [30.0, 200.0])
def test_a_sure_output_has_finite_derivatives(loss: Any, size: float) -> None:
    """Right or wrong beyond what a probability of single precision can tell from 0 and 1."""
    outputs = torch.tensor([[size], [-size]] if loss == "binary_cross_entropy" else [[size, 0.0], [-size, 0.0]], requires_grad=True)
    losses = sample_losses(outputs, torch.tensor([0, 0]), SampleSettings(loss=loss, gamma=0.5))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()


@pytest.mark.parametrize(
    ("task", "model", "recorded"),
    [
        (LABELS, CNN, {"task": "classification", "loss_type": "cross_entropy"}),
        (ClassificationTask(loss="focal", gamma=1.5), CNN, {"task": "classification", "loss_type": "focal", "gamma": 1.5}),
        (ClassificationTask(loss="label_smoothing", smoothing=0.2), CNN, {"loss_type": "label_smoothing", "smoothing": 0.2}),
        (ClassificationTask(loss="generalized_cross_entropy"), CNN, {"loss_type": "generalized_cross_entropy", "q": 0.7}),
        (NUMBERS, CnnModel(widths=(4,)), {"task": "regression", "loss_type": "squared_error"}),
        (RegressionTask(loss="huber", delta=0.5), MlpModel(inputs=48 * 32, hidden=(4,)), {"loss_type": "huber", "delta": 0.5}),
    ],
)
def test_checkpoints_record_the_task(
    numbered: pd.DataFrame, inputs: np.ndarray, tmp_path: Path, task: Any, model: Any, recorded: dict[str, Any]
) -> None:
    """The lab's dictionary, and under args what an analysis needs: of a loss's settings the one that matters."""
    manifest = train(inputs, numbered, tmp_path, model=model, task=task, **SHORT, seed=5, exclusion_list={"file": "list.txt"})
    score = "error" if task.kind == "regression" else "accuracy"
    for epoch in range(4):
        content = load(tmp_path, epoch)
        build_model(model).load_state_dict(content["model_state_dict"])
        assert content["epoch"] == epoch
        assert content["rate_sum"] == pytest.approx(0.02 * 3 * sum([1, 0.75, 0.25][:epoch]))  # 9 samples make 3 batches of 4
        assert content["val_loss_main"] == manifest["history"][epoch]["validation_loss"]
        assert content[f"val_{score}"] == manifest["history"][epoch][f"validation_{score}"]
        assert content["args"].items() >= recorded.items()
        assert set(content["args"]) & {"margin", "smoothing", "gamma", "q", "delta"} == set(recorded) - {"task", "loss_type"}
        assert (content["args"]["batch_size"], content["args"]["seed"], content["args"]["exclusions_file"]) == (4, 5, "list.txt")
    assert json.loads((tmp_path / "training.json").read_text()) == manifest
    assert manifest[f"test_{score}"] == manifest["history"][-1][f"test_{score}"]
    assert (manifest["task"], manifest["train_samples"], manifest["train_pairs"]) == (task.kind, 9, 0)


def test_what_is_measured_is_the_mean_over_a_side(numbered: pd.DataFrame, inputs: np.ndarray, tmp_path: Path) -> None:
    """Loss, accuracy and error by hand from the outputs of the last checkpoint."""
    rows = (numbered["split"] == "validation").to_numpy()
    pictures = torch.from_numpy(inputs[rows])
    for task, form in ((LABELS, CNN), (NUMBERS, CnnModel(widths=(4,)))):
        history = train(inputs, numbered, tmp_path / task.kind, model=form, task=task, **SHORT)["history"]
        model = build_model(form)
        model.load_state_dict(load(tmp_path / task.kind, 3)["model_state_dict"])
        outputs = model(pictures).detach().numpy().astype(float)
        if task.kind == "classification":
            labels = numbered["label"].to_numpy()[rows]
            assert history[-1]["validation_accuracy"] == pytest.approx((outputs.argmax(1) == labels).mean())
            assert history[-1]["validation_loss"] == pytest.approx(sample_loss(SampleLoss(), outputs, labels).mean(), rel=1e-5)
        else:
            away = np.abs(outputs[:, 0] - numbered["target"].to_numpy()[rows])
            assert history[-1]["validation_error"] == pytest.approx(away.mean(), rel=1e-5)
            assert history[-1]["validation_loss"] == pytest.approx((away**2).mean(), rel=1e-5)


def test_two_classes_in_one_output(numbered: pd.DataFrame, inputs: np.ndarray, tmp_path: Path) -> None:
    """Its sign tells them apart, by binary cross-entropy where nothing is said."""
    two = numbered.assign(label=(numbered["label"] > 0).astype(int))
    manifest = train(inputs, two, tmp_path, model=CnnModel(widths=(4,)), task=LABELS, epochs=20, batch_size=4, learning_rate=0.1)
    assert load(tmp_path, 20)["args"]["loss_type"] == "binary_cross_entropy"
    assert manifest["history"][-1]["train_accuracy"] == 1


RATES = {"mlp": 0.002, "cnn": 0.02, "transformer": 0.1}


@pytest.mark.parametrize(("task", "outputs"), [(LABELS, 3), (NUMBERS, 1), (RankingTask(margin=2.0), 1)])
@pytest.mark.parametrize("kind", ["mlp", "cnn", "transformer"])
def test_every_model_learns_every_task(
    numbered: pd.DataFrame, inputs: np.ndarray, tmp_path: Path, kind: str, task: Any, outputs: int
) -> None:
    """Pictures, or for the transformer their rows, in batches: the loss of the training side falls to half."""
    form: Any = {
        "mlp": MlpModel(inputs=48 * 32, hidden=(8,), outputs=outputs),
        "cnn": CnnModel(widths=(4, 4), outputs=outputs),
        "transformer": TransformerModel(features=32, length=48, width=8, heads=2, layers=1, outputs=outputs),
    }[kind]
    batch = {"batch_pairs": 8} if task.kind == "ranking" else {"batch_size": 4}
    given_ = inputs[:, 0] if kind == "transformer" else inputs
    told = train(given_, numbered, tmp_path, model=form, task=task, epochs=25, learning_rate=RATES[kind], **batch)
    assert told["history"][-1]["train_loss"] < 0.5 * told["history"][0]["train_loss"]


@pytest.mark.parametrize("pictures", [True, False])
def test_the_mlp_is_fitted_to_the_training_side(numbered: pd.DataFrame, inputs: np.ndarray, tmp_path: Path, pictures: bool) -> None:
    """Excluded samples count too, so that an exclusion changes the loss and nothing else; pictures share one scale."""
    form = MlpModel(inputs=48 * 32, hidden=(4,), outputs=3)
    given_ = inputs if pictures else inputs.reshape(len(inputs), -1)
    for name, excluded in (("all", []), ("some", ids(numbered, "train")[:2])):
        train(given_, numbered, tmp_path / name, model=form, task=LABELS, **SHORT, exclude_samples=excluded)
    train_rows = inputs[(numbered["split"] == "train").to_numpy()].reshape(9, -1)
    axis = None if pictures else 0
    for epoch in (0, 3):
        states = [load(tmp_path / name, epoch)["model_state_dict"] for name in ("all", "some")]
        for state in states:
            np.testing.assert_allclose(state["mean"].numpy(), np.broadcast_to(train_rows.mean(axis), 48 * 32), **FLOAT32)
            np.testing.assert_allclose(state["deviation"].numpy(), np.broadcast_to(train_rows.std(axis), 48 * 32), **FLOAT32)
        assert torch.equal(states[0]["layers.0.weight"], states[1]["layers.0.weight"]) == (epoch == 0)


def test_excluded_samples_are_not_trained_on(numbered: pd.DataFrame, inputs: np.ndarray, tmp_path: Path) -> None:
    """Neither their label nor their picture matters any more; the held-out sides stay whole."""
    chosen = ids(numbered, "train")[2]
    row = int(np.flatnonzero(numbered["id"] == chosen)[0])
    other = inputs.copy()
    other[row] = 9
    relabelled = numbered.assign(label=[2 if place == row else label for place, label in enumerate(numbered["label"])])
    runs = [
        train(x, table, tmp_path / name, model=CNN, task=LABELS, **SHORT, exclude_samples={chosen, ids(numbered, "validation")[0]})
        for name, x, table in (("one", inputs, numbered), ("other", other, relabelled))
    ]
    assert {**runs[0], "seconds": None} == {**runs[1], "seconds": None}
    assert (runs[0]["train_samples"], runs[0]["exclusions"]["samples"]) == (8, 1)
    assert runs[0]["split"] == {"train": 9, "validation": 3, "test": 3}


@pytest.mark.parametrize(("model", "task", "options", "changes", "error", "told"), [
    (CNN, LABELS, {"exclude_pairs": {frozenset("ab")}}, {}, ExclusionError, "a classification is trained on single samples"),
    (CNN, ClassificationTask(loss="binary_cross_entropy"), {}, {}, RecipeError, "with 3 outputs cannot be trained with"),
    (CnnModel(), ClassificationTask(loss="cross_entropy"), {}, {}, RecipeError, "with 1 output cannot be trained .* choose from focal"),
    (CNN, LABELS, {"loss": "huber"}, {}, RecipeError, "cannot be trained with the loss huber"),
    (CnnModel(outputs=2), LABELS, {}, {}, DataError, "has the label 2, but the model tells 2 classes apart, 0 to 1; write outputs = 3"),
    (CNN, LABELS, {}, {"label": 1}, TooFewClassesError, "two different labels, but 0 of the 9 .* which leaves only the label 1"),
    (CNN, NUMBERS, {}, {}, RecipeError, "regression reads one output of the model, but it has 3"),
    (CNN, RankingTask(), {}, {}, OutputShapeError, "Ranking reads one output of the model, but it gives 3"),
    (CnnModel(), NUMBERS, {}, {"target": np.nan}, DataError, "The target of 'box_deg000_500hz_0' is nan"),
    (CnnModel(), NUMBERS, {}, {"target": 1e300}, DataError, "is 1e"),
    (CnnModel(), NUMBERS, {"exclude_samples": "all"}, {}, TooFewClassesError, "at least one sample, but 9 of the 9"),
    (CnnModel(), RankingTask(), {}, {"label": 0}, TooFewClassesError, "only the label 0"),
    (MlpModel(inputs=5), NUMBERS, {}, {}, DataError, "the mlp takes 5"),
    (TransformerModel(features=2, length=2), NUMBERS, {}, {}, DataError, "do not fit this transformer"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(
    numbered: pd.DataFrame,
    inputs: np.ndarray,
    tmp_path: Path,
    model: Any,
    task: Any,
    options: Any,
    changes: Any,
    error: Any,
    told: str,
) -> None:
    """Before anything is written."""
    options = {"exclude_samples": set(ids(numbered, "train"))} if "exclude_samples" in options else options
    with pytest.raises(error, match=told):
        train(inputs, numbered.assign(**changes), tmp_path, model=model, task=task, **SHORT_OF[task.kind], **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        (
            "torch.nn.Linear(7, 2)",
            ModelError,
            r"fails on samples of shape \(1, 48, 32\): .*cannot be multiplied.*; correct \[model\]",
        ),
        ("torch.nn.Conv2d(1, 2, 3)", OutputShapeError, r"the model gives \(2, 2, 46, 30\); it must give \[2, outputs\]"),
    ],
)
def test_a_plugins_model_that_does_not_fit_is_refused(
    numbered: pd.DataFrame, inputs: np.ndarray, tmp_path: Path, text: str, error: Any, told: str
) -> None:
    (tmp_path / "mine.py").write_text(f"import torch\ndef build(): return {text}\n")
    with pytest.raises(error, match=told):
        train(inputs, numbered, tmp_path / "run", model=PluginModel(name="mine"), task=LABELS, plugins=tmp_path, **SHORT)


def test_targets_that_run_away_are_refused(numbered: pd.DataFrame, inputs: np.ndarray, tmp_path: Path) -> None:
    """Squared errors of large targets climb for epochs before they overflow; the message says how large the targets are."""
    large = numbered.assign(target=300 * numbered["target"])
    with pytest.raises(NonFiniteError, match=r"divide the targets by about their standard deviation, 245, or choose a smaller"):
        train(inputs, large, tmp_path, model=MlpModel(inputs=48 * 32), task=NUMBERS, **SHORT, learning_rate=0.01)
    assert not (tmp_path / "training.json").exists()


@given(epochs=st.integers(0, 200))
def test_checkpoints_are_spread_over_all_epochs(epochs: int) -> None:
    """At most eleven after epoch 0, the last one among them, gaps that widen but for rounding."""
    saved = spread(epochs)
    assert len(saved) <= 11
    assert saved[-1] == epochs
    gaps = np.diff([0, *saved])
    assert (np.diff(gaps) >= -1).all()
    if epochs >= 20:
        assert len(saved) == 11


def test_weights_multiply_the_losses_of_what_they_name() -> None:
    """Of a pair its own times those of both samples; the order, the score and everything else stay."""
    samples = pd.DataFrame({"id": list("abcd"), "label": [0, 1, 2, 2], "split": "train"})
    rows = np.arange(4)
    plain = ranking(samples, rows, (), (), 1, {"loss": "logistic"})
    weights = {"a": 0.5, "c": 0.2, frozenset(("c", "a")): 0.3}
    weighted = ranking(samples, rows, (), (), 1, {"loss": "logistic"}, weights=weights)
    model = torch.nn.Linear(3, 1)
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    batch = torch.arange(plain.count)
    with torch.no_grad():
        ratio = (weighted.losses(model, inputs, batch) / plain.losses(model, inputs, batch)).tolist()
    ends = zip(plain.pairs["first"].tolist(), plain.pairs["second"].tolist(), strict=True)
    named = ["".join(sorted(samples["id"][list(pair)])) for pair in ends]
    assert dict(zip(named, ratio, strict=True)) == pytest.approx({"ab": 0.5, "ac": 0.03, "ad": 0.5, "bc": 0.2, "bd": 1.0})
    assert weighted.measure(model, inputs, rows) == plain.measure(model, inputs, rows)
    for stranger in ("e", frozenset(("c", "d")), frozenset(("a", "e"))):
        with pytest.raises(UnknownSampleError, match="not trained on"):
            ranking(samples, rows, (), (), 1, {}, weights={stranger: 0.5})
