"""TracIn in memory: the numbers of a workspace's run and of Captum's TracInCP, from whatever a notebook has at hand."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lab
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from captum.influence import TracInCP
from nbclient import NotebookClient
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from tracin_core import TracIn
from tracin_core.data.readers import read_inputs
from tracin_core.data.samples import split_samples, with_labels
from tracin_core.engine.models import build_model
from tracin_core.engine.training import train as train_model
from tracin_core.errors import (
    BatchCoupledModelError,
    CheckpointError,
    CheckpointMismatchError,
    DataError,
    NotFoundError,
    OutputShapeError,
    RecipeError,
    TooFewClassesError,
    TracInError,
    UnknownSampleError,
    UnsafeCheckpointError,
    ViewError,
)
from tracin_core.notebook import NotebookBar
from tracin_core.reading import reader_of
from tracin_core.records.runs import Run
from tracin_core.records.workspace import Workspace, open_workspace

FLOAT64 = {"rtol": 1e-9, "atol": 1e-12}
FLOAT32 = {"rtol": 2e-4, "atol": 2e-6}  # the same gradients in batches of other samples
NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
SMALLEST, LARGEST = 2, 500_000


# ---- a run of a workspace ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Analysed:
    """A finished run, and what a notebook would have at hand of it."""

    run: Run
    model: nn.Module
    files: list[Path]  # of the epochs that the run sums
    train: tuple[pd.DataFrame, Tensor]
    test: tuple[pd.DataFrame, Tensor]

    def tracin(self, checkpoints: list[Any] | None = None, **settings: Any) -> TracIn:
        loaded = [torch.load(file, weights_only=True) for file in self.files]
        return TracIn(self.model, checkpoints or loaded, self.train, self.test, progress=False, **settings)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    workspace = open_workspace(tmp_path_factory.mktemp("notebook"))
    yield workspace
    lab.stop_worker(workspace)


def analysed_by(place: Workspace, recipe: Any, read: Callable[[pd.DataFrame], Any]) -> Analysed:
    run = place.compute(recipe)
    assert isinstance(run, Run)
    files = [recipe.checkpoints.folder / f"model_epoch_{epoch}.pt" for epoch in run.summed_epochs]
    train, test = ((run.splits[side], torch.from_numpy(read(run.splits[side]))) for side in ("train", "validation"))
    return Analysed(run, build_model(recipe.model), files, train, test)


@pytest.fixture(scope="module")
def ranked(place: Workspace, shelf: lab.Shelf) -> Analysed:
    recipe = shelf.recipe()
    return analysed_by(place, recipe, lambda samples: read_inputs(recipe.data.root, samples))


@pytest.fixture(scope="module")
def points(place: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Analysed]:
    """`points("kind", {...}, 3)`: a small network trained and analysed on points."""
    file = lab.write_arrays(tmp_path_factory.mktemp("arrays") / "points.npz")

    def analysed(target: str, task: dict[str, Any], outputs: int) -> Analysed:
        recipe = lab.arrays_recipe(file, tmp_path_factory.mktemp(target) / "checkpoints", target, task, outputs)
        reader = reader_of(place, recipe.data)
        samples = split_samples(with_labels(reader.list(), recipe.task, classes=recipe.classes), recipe.split)
        folder = recipe.checkpoints.folder
        train_model(reader.read(samples), samples, folder, model=recipe.model, task=recipe.task, **lab.SHORT)
        return analysed_by(place, recipe, reader.read)

    return analysed


@pytest.mark.parametrize("settings", [{}, {"loss": "ghm", "margin": 2.0, "ghm_bins": 5, "ghm_alpha": 0.75, "ghm_batch": 16}])
def test_ranking_equals_a_run(ranked: Analysed, settings: dict[str, Any]) -> None:
    """Influence, self-influence and lists, with the learning rates that the checkpoints record."""
    ours, theirs = ranked.tracin(**settings), ranked.run.view(weights="learning_rate", **settings)
    np.testing.assert_allclose(ours.influence(), theirs.influence(), **FLOAT32)
    np.testing.assert_allclose(ours.self_influence(), theirs.self_influence(), **FLOAT32)
    assert ours.examples["id"].tolist() == ranked.run.train_pairs["id"].tolist()
    assert ours.checkpoints["epoch"].tolist() == ranked.run.summed_epochs
    test = str(theirs.test.table["id"][int(np.argmax(~theirs.dead_tests))])
    for one, other in zip(ours.top(test, k=5), theirs.top(test, k=5), strict=True):
        assert one["id"].tolist() == other["id"].tolist()
        np.testing.assert_allclose(one["influence"], other["influence"], **FLOAT32)
    harm = float(np.quantile(theirs.influence(), 0.02))
    chosen = ours.exclusions(harm, min_occurrences=1)
    assert len(chosen) > 0
    assert set(chosen["id"]) == set(theirs.exclusions(harm, min_occurrences=1)["id"])
    assert ours.suspects(quantile=0.9)["id"].tolist() == theirs.suspects(quantile=0.9)["id"].tolist()


def test_a_what_if_equals_one_of_a_run(ranked: Analysed) -> None:
    """Loss, weights and measure change without a new computation; pairs are those that were trained on."""
    ours = ranked.tracin()
    for change in ({"loss": "logistic", "margin": 1.0}, {"weights": "uniform"}, {"weights": [0.5, 2.0]}, {"measure": "cosine"}):
        theirs = ranked.run.view(**{"weights": "learning_rate", **change})
        np.testing.assert_allclose(ours.view(**change).influence(), theirs.influence(), **FLOAT32)
    drawn = ranked.tracin(pairs="drawn", draw_seed=3)
    np.testing.assert_allclose(
        drawn.influence(), ranked.run.view(pairs="drawn", draw_seed=3, weights="learning_rate").influence(), **FLOAT32
    )


def test_listed_pairs_are_those_rows_of_all_pairs() -> None:
    whole = rankable()
    listed = [(pair.id1, pair.id2) for pair in whole.examples.iloc[::4].itertuples()]
    few = rankable(pairs=listed, test_pairs=[("test1", "test0"), ("test1", "test2")])
    pd.testing.assert_frame_equal(few.influence(), whole.influence().loc[few.examples["id"], ["test0_test1", "test1_test2"]])
    assert len(few.examples) == len(listed)
    assert len(rankable(test_pairs=3).tests) == 3


CASES = {
    "classes": ("kind", {"kind": "classification", "loss": "cross_entropy"}, 3, {}),
    "every output": ("kind", {"kind": "classification", "loss": "label_smoothing", "smoothing": 0.1, "kernel": "outputs"}, 3, {}),
    "two classes": ("two", {"kind": "classification", "loss": "binary_cross_entropy"}, 1, {}),
    "numbers": ("number", {"kind": "regression", "loss": "huber", "delta": 0.5}, 1, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_samples_equal_a_run(points: Callable[..., Analysed], case: str) -> None:
    target, task, outputs, settings = CASES[case]
    known = points(target, task, outputs)
    ours, theirs = known.tracin(**settings), known.run.view(weights="learning_rate")
    assert ours.task == task["kind"]
    np.testing.assert_allclose(ours.influence(), theirs.influence(), **FLOAT32)
    np.testing.assert_allclose(ours.self_influence(), theirs.self_influence(), **FLOAT32)
    assert np.abs(theirs.influence()).max() > 1e-4


def test_what_a_training_saved_is_the_same_from_disk_and_from_memory(ranked: Analysed) -> None:
    as_saved = ranked.tracin()
    folder = ranked.files[0].parent
    from_disk = ranked.tracin(str(folder))  # its epoch 0 too
    assert from_disk.checkpoints["epoch"].tolist() == [0, 1, 2]
    pd.testing.assert_frame_equal(from_disk.checkpoints.iloc[1:, 1:].reset_index(drop=True), as_saved.checkpoints.iloc[:, 1:])
    np.testing.assert_array_equal(from_disk.view(weights=[0, 1, 1]).influence(), as_saved.view(weights="uniform").influence())
    bare = ranked.tracin(
        [torch.load(file, weights_only=True)["model_state_dict"] for file in ranked.files],
        learning_rates=as_saved.checkpoints["learning_rate"].tolist(),
        loss="standard",
        margin=as_saved.loss.margin,
    )
    np.testing.assert_array_equal(bare.influence(), as_saved.influence())


# ---- Captum -----------------------------------------------------------------------------------------------------------------


def small(outputs: int = 1, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


def states(outputs: int = 1, count: int = 2) -> list[dict[str, Tensor]]:
    return [small(outputs, seed).state_dict() for seed in range(count)]


def data(count: int = 9, classes: int = 3, seed: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(count, 4, dtype=torch.float64), torch.arange(count) % classes


@pytest.mark.parametrize(
    ("outputs", "loss", "ours"),
    [(3, nn.CrossEntropyLoss(reduction="none"), "cross_entropy"), (1, nn.MSELoss(reduction="none"), "squared_error")],
)
def test_influence_equals_captum(outputs: int, loss: nn.Module, ours: str, tmp_path: Path) -> None:
    (x, y), (other_x, other_y) = data(), data(4, seed=7)
    if outputs == 1:
        y, other_y = y.double()[:, None], other_y.double()[:, None]
    rates, files = [0.1, 0.03], [str(tmp_path / f"{epoch}.pt") for epoch in (1, 2)]
    for state, file in zip(states(outputs), files, strict=True):
        torch.save(state, file)

    def load(model: nn.Module, file: str) -> float:
        model.load_state_dict(torch.load(file, weights_only=True))
        return rates[files.index(file)]

    settings: dict[str, Any] = {
        "checkpoints_load_func": load,
        "loss_fn": loss,
        "batch_size": 4,
        "sample_wise_grads_per_batch": False,
    }
    peer = TracInCP(small(outputs), TensorDataset(x, y), files, **settings)
    tracin = TracIn(small(outputs), list(zip(files, rates, strict=True)), (x, y), (other_x, other_y), loss=ours, progress=False)
    expected = peer.influence((other_x, other_y)).T
    assert (expected != 0).all()
    np.testing.assert_allclose(tracin.influence(), expected, **FLOAT64)
    np.testing.assert_allclose(tracin.self_influence(), peer.self_influence(), **FLOAT64)


# ---- what it costs ----------------------------------------------------------------------------------------------------------


def rankable(**change: Any) -> TracIn:
    """Ranked points in three orders, seen by hand."""
    given: dict[str, Any] = {
        "model": small(),
        "checkpoints": states(),
        "train": data(),
        "test": data(5, seed=7),
        "loss": "margin",
        "margin": 1.0,
        "learning_rates": [0.1, 0.05],
        "progress": False,
    }
    return TracIn(**{**given, **change})


def test_no_question_after_the_first_computes_a_gradient() -> None:
    passes: list[int] = []
    model = small()
    model.register_forward_hook(lambda *_: passes.append(1))
    tracin = rankable(model=model)
    computed = len(passes)
    assert computed > 0
    test = tracin.tests["id"][0]
    tracin.influence()
    tracin.influence(test)
    tracin.top(test, 3)
    tracin.self_influence()
    tracin.exclusions(-0.001, min_occurrences=1)
    tracin.suspects(quantile=0.5)
    tracin.view(loss="logistic", margin=0.0, weights="uniform", measure="relative").influence()
    tracin._repr_html_()
    assert len(passes) == computed
    other = tracin.against(data(3, seed=9))
    assert computed < len(passes) < 2 * computed
    np.testing.assert_array_equal(other.influence(), rankable(test=data(3, seed=9)).influence())
    np.testing.assert_array_equal(tracin.influence(data(3, seed=9)), other.influence())


def test_what_was_given_is_left_alone_and_may_change_afterwards() -> None:
    """Modes, weights, flags and gradients of the model stay; a state dict that goes on living was copied."""
    model = small().train()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    live = small(seed=1)
    tracin = rankable(model=model, checkpoints=[live.state_dict()], learning_rates=[0.1])
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert "0.weight" in tracin.health().set_index("check")["detail"]["trainable"]
    expected = tracin.influence(data(3, seed=9))
    with torch.no_grad():
        for parameter in live.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(tracin.influence(data(3, seed=9)), expected)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_health_says_whose_steps_the_scores_are_about(kind: Any) -> None:
    model = small(seed=1)
    optimizer = kind(model.parameters(), lr=0.01)
    model(data()[0]).sum().backward()
    optimizer.step()
    content = {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    checks = rankable(checkpoints=[content], learning_rates=[0.01]).health().set_index("check")
    assert ("sgd_formula" in checks.index) == (kind is torch.optim.AdamW)
    if kind is torch.optim.AdamW:
        assert "a training by Adam" in checks.loc["sgd_formula", "detail"]
        assert not checks.loc["sgd_formula", "passed"]


def test_training_inputs_that_changed_are_not_mixed_with_kernels_of_old_ones() -> None:
    x, y = data()
    tracin = rankable(train=(x, y))
    x[0] += 1
    with pytest.raises(DataError, match="9 training samples were changed in memory"):
        tracin.against(data(3))


def test_every_form_of_data_gives_the_same_numbers() -> None:
    (x, y), ids = data(), [f"take {row}" for row in range(9)]

    class Named(Dataset[Any]):
        def __init__(self) -> None:
            self.ids = ids

        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, row: int) -> tuple[Tensor, int]:
            return x[row], int(y[row])

    expected = rankable(train=(x, y, ids)).influence()
    assert expected.index[0] == "take 0_take 1"
    frame = pd.DataFrame({"id": ids, "angle": y.numpy(), "take": range(9)})
    for given in (Named(), (frame, x), (x.numpy(), y.tolist(), ids), (frame.rename(columns={"angle": "target"}), x.numpy())):
        pd.testing.assert_frame_equal(rankable(train=given).influence(), expected)
    np.testing.assert_array_equal(rankable(train=TensorDataset(x, y)).influence(), expected)
    assert rankable(train=(frame, x)).train_samples["take"].tolist() == list(range(9))


def test_a_pair_is_named_by_its_samples_in_either_order() -> None:
    tracin = rankable()
    one = tracin.influence(("test0", "test1"))
    pd.testing.assert_series_equal(one, tracin.influence(("test1", "test0")))
    pd.testing.assert_series_equal(one, tracin.influence("test0_test1"))
    pd.testing.assert_series_equal(one, tracin.influence()["test0_test1"])


def test_without_tests_there_is_self_influence_alone() -> None:
    tracin = rankable(test=None)
    pd.testing.assert_series_equal(tracin.self_influence(), rankable().self_influence())
    assert len(tracin.suspects(quantile=0.5)) > 0
    for ask in (tracin.influence, tracin.exclusions, lambda: tracin.top("test0_test1")):
        with pytest.raises(ViewError, match="no tests to have an influence on; give test="):
            ask()
    assert "none yet" in repr(tracin)


# ---- what is refused --------------------------------------------------------------------------------------------------------


def changed(state: dict[str, Tensor], **change: Any) -> dict[str, Tensor]:
    return {**state, **{name.replace("__", "."): value for name, value in change.items()}}


def broken(value: float) -> tuple[Tensor, Tensor]:
    x, y = data()
    x[4, 2] = value
    return x, y


class Coupled(nn.Module):
    """A sample's score depends on its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x - x.mean(0))


LIVE = small()
REFUSED: dict[str, tuple[dict[str, Any], type[TracInError], str]] = {
    "no rate": ({"learning_rates": None}, CheckpointError, r"2 of 2 checkpoints have no learning rate, first 'checkpoint 1'; give"),
    "one rate": ({"learning_rates": [0.1]}, CheckpointError, "1 learning rates were given for 2 checkpoints"),
    "no number": ({"learning_rates": [0.1, math.nan]}, CheckpointError, "learning rate of checkpoint 2 is nan"),
    "negative": ({"learning_rates": [0.1, -1]}, CheckpointError, "learning rate of checkpoint 2 is -1; give a finite number"),
    "twice": ({"checkpoints": [(states()[0], 0.1)], "learning_rates": [0.1]}, CheckpointError, "give them in one way"),
    "no list": ({"checkpoints": states()[0]}, CheckpointError, "Checkpoints come as a list, but they are one"),
    "empty": ({"checkpoints": []}, CheckpointError, "none is there"),
    "a number": ({"checkpoints": [3, 4]}, CheckpointError, "'checkpoint 1' is of type int; give a state dict, a path"),
    "same tensors": (
        {"checkpoints": [LIVE.state_dict(), LIVE.state_dict()]},
        CheckpointError,
        r"Checkpoints 1 and 2 are the same tensors.*keep copies: copy.deepcopy\(model.state_dict\(\)\)",
    ),
    "another model": (
        {"checkpoints": states(3)},
        CheckpointMismatchError,
        r"'checkpoint 1': does not fit: '2.weight' has shape \[3, 6\]",
    ),
    "missing": (
        {"checkpoints": [{key: value for key, value in state.items() if key != "2.bias"} for state in states()]},
        CheckpointMismatchError,
        r"1 key missing \(2.bias\)",
    ),
    "not finite": (
        {"checkpoints": [states()[0], changed(states()[1], **{"2__bias": torch.tensor([math.inf]).double()})]},
        CheckpointError,
        "'checkpoint 2': '2.bias' holds NaN or infinity; choose a checkpoint from before training diverged",
    ),
    "no loss": ({"loss": None}, RecipeError, "A loss is needed, and 'checkpoint 2' records none.*one of standard, margin"),
    "odd loss": ({"loss": "triplet"}, RecipeError, "there is no loss 'triplet'"),
    "no margin": ({"margin": None}, RecipeError, r"The loss margin needs margin, .* give margin=\.\.\. as in training"),
    "ghm": ({"loss": "ghm"}, RecipeError, "needs ghm_bins, ghm_alpha, ghm_batch"),
    "odd setting": ({"gamma": 2.0}, RecipeError, "The loss margin has no setting 'gamma'; its settings are: margin"),
    "weights": ({"weights": "best"}, ViewError, "no weights 'best'; choose learning_rate, uniform"),
    "three weights": ({"weights": [1, 2, 3]}, ViewError, "3 weights were given for 2 checkpoints"),
    "too wide": (
        {"train": (torch.randn(9, 5).double(), data()[1])},
        DataError,
        r"cannot take the train samples, of shape \[5\] \(mat1",
    ),
    "too wide a test": ({"test": (torch.randn(3, 5).double(), torch.arange(3))}, DataError, r"the test samples, of shape \[5\]"),
    "another type": (
        {"train": (data()[0].float(), data()[1])},
        DataError,
        "holds float32 numbers, and the model, whose .* float64",
    ),
    "one target": ({"train": (data()[0], data()[1][:8])}, DataError, "train inputs hold 9 samples, but there are 8 targets"),
    "one id": ({"train": (*data(), ["a"])}, DataError, "1 ids were given for 9 train samples"),
    "id twice": ({"train": (*data(), list("abcdefgha"))}, DataError, "The id 'a' stands twice in the train data"),
    "NaN": ({"train": broken(math.nan)}, DataError, r"The sample 'train4' holds nan at \[2\], which is no number; mend the value"),
    "infinite test": ({"test": broken(math.inf)}, DataError, r"The sample 'test4' holds inf at \[2\]"),
    "NaN target": (
        {"train": (data()[0], [math.nan, *range(8)])},
        DataError,
        "1 of 14 samples have no target, the first of them 'train0'",
    ),
    "one order": ({"train": (data()[0], torch.ones(9))}, TooFewClassesError, "at least two different"),
    "no data": ({"train": data()[0]}, DataError, r"The train data are a Tensor; give \(x, y\)"),
    "no column": (
        {"train": (pd.DataFrame({"id": ["a"], "kind": [1]}), data(1)[0])},
        DataError,
        "no column target or angle or label",
    ),
    "odd items": ({"train": [(1, 2)] * 4}, DataError, "The train data are 4 parts; give"),
    "odd pair": ({"pairs": [("train0", "train99")]}, UnknownSampleError, "'train99', which is none of these 9 samples"),
    "equal pair": ({"pairs": [("train0", "train3")]}, ViewError, "None of the 1 training pairs joins two different targets"),
    "drawn": ({"pairs": "drawn"}, RecipeError, "give draw_seed"),
    "more outputs": (
        {"model": small(3), "checkpoints": states(3)},
        OutputShapeError,
        r"of shape \(3,\), but margin reads one output",
    ),
    "coupled": (
        {"model": Coupled(), "checkpoints": [Coupled().state_dict() for _ in range(2)]},
        BatchCoupledModelError,
        "alone but .* in a batch of 8",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_in_a_sentence(case: str) -> None:
    change, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message) as caught:
        rankable(**change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_beyond_the_outputs_is_refused(label: int) -> None:
    """Also where there are as many different labels as outputs: to count anew would be a guess."""
    x, _ = data()
    y = torch.tensor([label, 1, 2] * 3)
    with pytest.raises(DataError, match=f"label of 'train0' is {label}, but the model tells 3 classes apart, numbered 0 to 2"):
        TracIn(small(3), [(states(3)[0], 0.1)], (x, y), loss="cross_entropy", progress=False)


def test_a_kernel_of_one_logit_is_not_asked_for_more() -> None:
    given: dict[str, Any] = {"train": data(), "progress": False}
    with pytest.raises(ViewError, match="label_smoothing depends on more than logit"):
        TracIn(small(3), [(states(3)[0], 0.1)], loss="label_smoothing", smoothing=0.1, kernel="label_logit", **given)
    classes = TracIn(small(3), [(states(3)[0], 0.1)], loss="cross_entropy", **given)
    with pytest.raises(ViewError, match="huber is not one of classification"):
        classes.view(loss="huber", delta=1.0)
    with pytest.raises(NotFoundError, match="single samples"):
        classes.against(data(2)).influence(("test0", "test1"))


def test_a_file_that_is_no_plain_weights_is_never_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "was here",)

    file = tmp_path / "model_epoch_1.pt"
    torch.save({"epoch": 1, "model_state_dict": Evil()}, file)
    with pytest.raises(UnsafeCheckpointError, match=r"'model_epoch_1\.pt'"):
        rankable(checkpoints=[file], learning_rates=[0.1])
    assert not (tmp_path / "was here").exists()


# ---- what is seen -----------------------------------------------------------------------------------------------------------


def test_nothing_in_the_html_is_taken_as_html(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("<img src=x onerror=alert(1)>", nn.Linear(4, 1).double())
    file = tmp_path / "<b>model<b>1.pt"
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, file)
    tracin = rankable(model=model, checkpoints=[file], learning_rates=[0.1])
    shown = tracin._repr_html_()
    assert "<img" not in shown
    assert "<b>model" not in shown
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown
    assert "&lt;b&gt;model&lt;b&gt;1.pt (weight 0.1)" in shown
    for fact in ("ranking, margin, margin 1", "27 pairs of 9 samples", "8 pairs of 5 samples", "KiB in memory"):
        assert fact in shown


def test_progress_is_told_kernel_by_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int]] = []
    tracin = rankable(progress=lambda done, whole: seen.append((done, whole)))
    assert seen == [(done, 6) for done in range(1, 7)]  # two checkpoints: of train, of tests, of both
    seen.clear()
    tracin.against(data(3))
    assert seen == [(done, 4) for done in range(1, 5)]  # that of train is there
    rankable(progress=True)
    assert capsys.readouterr() == ("", "")  # no terminal, no bar


def test_a_bar_in_a_notebook_is_drawn_in_place() -> None:
    class Handle:
        def __init__(self) -> None:
            self.shown: list[str] = []

        def update(self, bar: NotebookBar) -> None:
            self.shown.append(bar._repr_html_())

    bar = NotebookBar(0, 2, Handle())
    bar.advance()
    bar.advance()
    assert bar.handle.shown[-1] == "<progress value='2' max='2'></progress> TracIn: 2 of 2 kernels"


# ---- the example ------------------------------------------------------------------------------------------------------------


def test_the_example_notebook_runs_as_it_stands() -> None:
    """A fresh kernel raises nothing, and what a reader sees without running it is there."""
    raw = NOTEBOOK.read_text(encoding="utf-8")
    assert len(raw.encode()) < LARGEST
    stored = nbformat.reads(raw, as_version=4)
    asked = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in asked] == list(range(1, len(asked) + 1))
    fresh = copy.deepcopy(stored)
    NotebookClient(fresh, timeout=60, resources={"metadata": {"path": str(NOTEBOOK.parents[1])}}).execute()
    ran = [cell for cell in fresh.cells if cell.cell_type == "code"]
    for before, after in zip(asked, ran, strict=True):
        kinds = [[output.output_type for output in cell.outputs] for cell in (before, after)]
        assert kinds[0] == kinds[1], (
            f"execute the notebook anew (docs/notebook.md); what is stored is not what comes of\n{before.source}"
        )
        assert "error" not in kinds[0]
    text = "\n".join(cell.source for cell in stored.cells if cell.cell_type == "markdown")
    assert text.count("SIMULATED") >= SMALLEST
    assert sum(len(cell.outputs) for cell in asked) >= 5
