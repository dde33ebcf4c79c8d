"""Classification, regression and ranking of arrays, from a file on disk through a real worker to scores, against plain autograd."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lab
import numpy as np
import pytest
import torch

from tracin_core.engine.checkpoints import load_weights
from tracin_core.engine.models import build_model
from tracin_core.errors import CheckpointError, OutputShapeError, ViewError
from tracin_core.recipe import Recipe
from tracin_core.records.runs import Run
from tracin_core.records.workspace import Workspace, open_workspace

FLOAT32 = {"rtol": 2e-4, "atol": 2e-6}  # float32 kernels against float64 gradients


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    workspace = open_workspace(tmp_path_factory.mktemp("tasks"))
    yield workspace
    lab.stop_worker(workspace)


@pytest.fixture(scope="module")
def analysed(place: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """`analysed("label", {...}, outputs=3)`: trained once by the product's own training, then analysed."""
    file = lab.write_arrays(tmp_path_factory.mktemp("arrays") / "points.npz")
    trained: dict[tuple[str, str, int], Path] = {}

    def run_of(target: str, task: dict[str, Any], outputs: int = 1, **changes: Any) -> Run:
        key = target, task["kind"], outputs
        if key not in trained:
            folder = place.root / "trainings" / f"{target}-{task['kind']}-{outputs}"
            wanted = {name: value for name, value in task.items() if name != "kernel"}
            job = place.start_training(lab.arrays_recipe(file, folder, target, wanted, outputs), settings=lab.SHORT, folder=folder)
            place.queue.wait(job.id)
            trained[key] = folder
        run = place.compute(lab.arrays_recipe(file, trained[key], target, {**task, **changes}, outputs))
        assert isinstance(run, Run)
        return run

    return run_of


def gradients(place: Workspace, run: Run, loss: Callable[..., torch.Tensor], side: str) -> np.ndarray:
    """The gradient of each sample's loss at each summed checkpoint, by one backward pass each in float64: [C, n, p]."""
    samples = run.splits[side]
    with np.load(run.recipe.data.place) as arrays:
        rows = [list(arrays["id"]).index(sample) for sample in samples["id"]]
        x = torch.from_numpy(arrays["x"][rows]).double()
    found = []
    for checkpoint in run.manifest.checkpoints:
        if checkpoint["epoch"] not in run.summed_epochs:
            continue
        model = build_model(run.recipe.model)
        load_weights(model, place.root / "checkpoints", checkpoint["digest"])
        model = model.double()
        each = []
        for row in range(len(samples)):
            model.zero_grad()
            loss(model(x[row : row + 1])[0], samples.iloc[row]).backward()
            each.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).numpy())
        found.append(np.array(each))
    return np.array(found)


def cross_entropy(outputs: torch.Tensor, sample: Any) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs[None], torch.tensor([int(sample["label"])]))


def binary(outputs: torch.Tensor, sample: Any) -> torch.Tensor:
    wanted = torch.tensor(float(sample["label"]), dtype=outputs.dtype)
    return torch.nn.functional.binary_cross_entropy_with_logits(outputs[0], wanted)


def squared(outputs: torch.Tensor, sample: Any) -> torch.Tensor:
    return (outputs[0] - float(sample["target"])) ** 2


CASES = {
    "classes": ("kind", {"kind": "classification"}, 3, cross_entropy),
    "classes, all outputs": ("kind", {"kind": "classification", "kernel": "outputs"}, 3, cross_entropy),
    "two classes, one output": ("two", {"kind": "classification", "loss": "binary_cross_entropy"}, 1, binary),
    "numbers": ("number", {"kind": "regression"}, 1, squared),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_one_backward_pass_per_sample(place: Workspace, analysed: Callable[..., Run], case: str) -> None:
    target, task, outputs, loss = CASES[case]
    run = analysed(target, task, outputs)
    train, test = (gradients(place, run, loss, side) for side in ("train", "validation"))
    view = run.view()
    np.testing.assert_allclose(view.influence(), np.einsum("cip,cjp->ij", train, test), **FLOAT32)
    np.testing.assert_allclose(view.self_influence(), np.einsum("cip,cip->i", train, train), **FLOAT32)
    assert (run.noun, run.counts) == ("sample", (len(run.splits["train"]), len(run.splits["validation"])))
    assert set(run.health().query("not passed")["check"]) <= {"above_chance"}  # a few steps may have taught nothing


def test_arrays_are_ranked_as_recordings_are(place: Workspace, analysed: Callable[..., Run]) -> None:
    run = analysed("order", {"kind": "ranking", "loss": "margin", "margin": 5.0})
    assert sorted(run.classes.values()) == [0, 10, 20]
    assert set(run.train_pairs["gap"]) == {10, 20}

    def score(outputs: torch.Tensor, sample: Any) -> torch.Tensor:
        return outputs[0]

    of_scores = gradients(place, run, score, "train")
    ends, target = run.train_pairs[["first", "second"]].to_numpy(), run.train_pairs["target"].to_numpy()
    rows = [list(run.checkpoints["epoch"]).index(epoch) for epoch in run.summed_epochs]
    outputs = run.kernels.train_outputs[rows]
    slopes = np.where(5.0 - target * (outputs[:, ends[:, 0]] - outputs[:, ends[:, 1]]) >= 0, -target, 0)
    of_pairs = slopes[..., None] * (of_scores[:, ends[:, 0]] - of_scores[:, ends[:, 1]])
    np.testing.assert_allclose(run.view().self_influence(), np.einsum("cip,cip->i", of_pairs, of_pairs), **FLOAT32)


def test_all_outputs_leave_loss_and_label_free_and_one_logit_fixes_them(analysed: Callable[..., Run]) -> None:
    free = analysed("kind", {"kind": "classification", "kernel": "outputs"}, 3)
    fixed = analysed("kind", {"kind": "classification"}, 3)
    np.testing.assert_allclose(free.view().influence(), fixed.view().influence(), **FLOAT32)
    sample = str(free.splits["train"]["id"][0])
    other = (int(free.splits["train"]["label"][0]) + 1) % 3
    view = free.view(relabel={sample: other}, loss="label_smoothing", smoothing=0.2)
    assert view.train.table["label_name"][0] == free.classes[other]
    effects = free.relabel_effects()
    moved = free.view(relabel={sample: other}).mean_influence()[0] - free.view().mean_influence()[0]
    np.testing.assert_allclose(effects.loc[sample, other], moved, **FLOAT32)
    with pytest.raises(ViewError, match="kernel of logit"):
        fixed.view(relabel={sample: other})
    with pytest.raises(ViewError, match="label_smoothing depends on more"):
        fixed.view(loss="label_smoothing")


def test_a_second_recipe_on_the_same_data_computes_only_what_it_lacks(place: Workspace, analysed: Callable[..., Run]) -> None:
    analysed("kind", {"kind": "classification"}, 3)
    blocks = place.catalogue.read("SELECT COUNT(*) FROM block")[0][0]
    focal = analysed("kind", {"kind": "classification"}, 3, loss="focal", gamma=2.0)
    assert focal.loss.describe() == "focal, gamma 2"
    assert place.catalogue.read("SELECT COUNT(*) FROM block")[0][0] == blocks


@pytest.mark.parametrize(
    ("case", "settings", "message"),
    [
        ("numbers", {"margin": 1.0}, "The losses of regression have no margin"),
        ("numbers", {"loss": "cross_entropy"}, "not one of regression; choose from squared_error, huber"),
        ("numbers", {"relabel": {"point_00": 1}}, "Targets of regression are numbers"),
        ("classes", {"loss": "huber"}, "not one of classification"),
        ("classes", {"pairs": "drawn"}, "whose examples are single samples, not pairs"),
        ("classes", {"q": 0.5, "loss": "focal", "gamma": -1.0}, "gamma is -1.0"),
    ],
)
def test_settings_of_another_task_are_refused(
    analysed: Callable[..., Run], case: str, settings: dict[str, Any], message: str
) -> None:
    target, task, outputs, _ = CASES[case]
    with pytest.raises(ViewError, match=message):
        analysed(target, task, outputs).view(**settings)


def test_pairs_are_not_asked_of_samples(analysed: Callable[..., Run]) -> None:
    with pytest.raises(ViewError, match="is of regression"):
        _ = analysed("number", {"kind": "regression"}).train_pairs


def test_a_loss_that_nobody_recorded_is_asked_for(place: Workspace, analysed: Callable[..., Run]) -> None:
    numbers = analysed("number", {"kind": "regression"})
    with pytest.raises(Exception, match="records no loss of classification") as caught:
        place.compute(
            numbers.recipe.model_copy(
                update={
                    "task": lab.arrays_recipe(Path("x"), Path("y"), "two", {"kind": "classification"}).task,
                    "data": numbers.recipe.data.model_copy(update={"target": "two"}),
                }
            )
        )
    assert "binary_cross_entropy" in str(caught.value)
    assert not isinstance(caught.value, CheckpointError | OutputShapeError)  # it comes as the job's failure


def test_data_that_did_not_change_are_not_read_again(place: Workspace, analysed: Callable[..., Run]) -> None:
    run = analysed("number", {"kind": "regression"})
    again = place.compute(run.recipe.model_copy(update={"task": type(run.recipe.task)(loss="huber", delta=0.5)}))
    assert isinstance(again, Run)
    assert "30 samples are as they were" in "\n".join(place.job_log(place.jobs(limit=1)[0].id))
    assert again.samples["digest"].tolist() == run.samples["digest"].tolist()
    file = run.recipe.data.place
    with np.load(file) as arrays:
        changed = {name: arrays[name] for name in arrays}
    changed["x"] = changed["x"] + 1
    kept = file.read_bytes()
    np.savez(file, **changed)
    moved = place.compute(run.recipe)
    file.write_bytes(kept)
    assert isinstance(moved, Run)
    assert not set(moved.samples["digest"]) & set(run.samples["digest"])


PLUGIN = """
import torch
from torch.utils.data import Dataset


def build(width):
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 2))


class Points(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, row):
        torch.manual_seed(row)
        return torch.randn(3) + row % 2, row % 2, {"colour": "red" if row % 3 else "blue"}


def dataset():
    return Points()
"""


def test_a_plugins_model_and_data_go_all_the_way(place: Workspace) -> None:
    """Trained, analysed, and computed anew once the plugin's file is another one."""
    file = place.root / "plugins" / "points.py"
    file.write_text(PLUGIN, encoding="utf-8")
    folder = place.root / "trainings" / "points"
    settings = {
        "data": {"kind": "plugin", "name": "points"},
        "model": {"kind": "plugin", "name": "points", "settings": {"width": 4}},
        "task": {"kind": "classification"},
        "checkpoints": {"folder": folder},
        "engine": {"threads": 1},
    }
    asked = Recipe.from_dict(settings)
    place.queue.wait(place.start_training(asked, settings=lab.SHORT, folder=folder).id)
    run = place.compute(asked)
    assert isinstance(run, Run)
    assert set(run.samples["colour"]) == {"red", "blue"}
    train, test = (gradients_of(place, run, side) for side in ("train", "validation"))
    np.testing.assert_allclose(run.view().influence(), np.einsum("cip,cjp->ij", train, test), **FLOAT32)
    file.write_text(PLUGIN + "# another file\n", encoding="utf-8")
    other = place.compute(asked)
    assert isinstance(other, Run)
    assert other.id != run.id
    assert not set(other.manifest.groups) & set(run.manifest.groups)


def gradients_of(place: Workspace, run: Run, side: str) -> np.ndarray:
    """As `gradients`, for the plugin above."""
    found = []
    for checkpoint in run.manifest.checkpoints:
        if checkpoint["epoch"] not in run.summed_epochs:
            continue
        model = build_model(run.recipe.model, place.root / "plugins")
        load_weights(model, place.root / "checkpoints", checkpoint["digest"])
        model = model.double()
        each = []
        for sample in run.splits[side].itertuples():
            row = int(str(sample.id).removeprefix("row"))
            torch.manual_seed(row)
            point = (torch.randn(3) + row % 2).double()
            model.zero_grad()
            torch.nn.functional.cross_entropy(model(point[None]), torch.tensor([int(sample.label)])).backward()
            each.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).numpy())
        found.append(np.array(each))
    return np.array(found)
