"""Training: the losses against the scores' own formulas, the same bytes from the same seed, and exclusions that stay in training."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracin_core.data.samples import all_pairs, split_samples
from tracin_core.engine.models import Ranker
from tracin_core.engine.training import TrainingSettings, measure, pair_losses, train_ranker, training_pairs
from tracin_core.errors import JobCancelledError, NonFiniteError, TooFewClassesError
from tracin_core.recipe import LossName, SplitSection
from tracin_core.scores.losses import PairLoss, pair_derivative, pair_loss

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
