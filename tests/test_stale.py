"""Nothing old is shown for something new: what decides a run, a split, a chunk or a block is part of its name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tracin_core.data.checks import refuse_reserved
from tracin_core.data.samples import require_labels, with_labels
from tracin_core.engine.training import train
from tracin_core.errors import CheckpointError, DataError, RecipeError, ViewError
from tracin_core.reading import truth_of
from tracin_core.recipe import ClassificationTask, PluginModel, Recipe, RegressionTask, SplitSection
from tracin_core.records.datasets import sealed_chunks, stored_split
from tracin_core.records.manifest import Manifest, read_samples
from tracin_core.records.workspace import Workspace, open_workspace
from tracin_core.scores.influence import Kernels
from tracin_core.scores.sample_losses import SampleLoss
from tracin_core.scores.view import View
from tracin_core.worker.checkpoints import require_ascending
from tracin_core.worker.computing import require_suited


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "model_epoch_1.pt").write_bytes(b"x")
    return open_workspace(tmp_path / "workspace")


def recipe(folder: Path, data: dict[str, Any], model: dict[str, Any], task: str, **sections: Any) -> Recipe:
    return Recipe.from_dict(
        {"data": data, "model": model, "task": {"kind": task}, "checkpoints": {"folder": folder / "c"}, **sections}
    )


# ---- runs ---------------------------------------------------------------------------------------------------------------------------


def plugin_model(place: Workspace, folder: Path) -> tuple[Recipe, Callable[[], object]]:
    file = place.root / "plugins" / "net.py"
    file.write_text("def build(): return 1\n", encoding="utf-8")
    np.savez(folder / "a.npz", x=np.zeros((12, 2)), y=np.arange(12) % 2)
    data = {"kind": "arrays", "file": folder / "a.npz"}
    asked = recipe(folder, data, {"kind": "plugin", "name": "net"}, "classification")
    return asked, lambda: file.write_text("def build(): return 2\n", encoding="utf-8")


def moved_picture(place: Workspace, folder: Path) -> tuple[Recipe, Callable[[], object]]:
    for level, path in enumerate(("cat/01.png", "cat/02.png", "dog/03.png", "dog/04.png")):
        (folder / "p" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), level, np.uint8)).save(folder / "p" / path)
    asked = recipe(folder, {"kind": "images", "root": folder / "p"}, {"kind": "cnn", "outputs": 2}, "classification")
    return asked, lambda: (folder / "p" / "cat" / "02.png").rename(folder / "p" / "dog" / "02.png")


def ids_of_a_plugin(place: Workspace, folder: Path) -> tuple[Recipe, Callable[[], object]]:
    (place.root / "plugins" / "d.py").write_text("def dataset(): return 1\n", encoding="utf-8")
    (folder / "t.txt").write_text("row0\nrow1\n", encoding="utf-8")
    (folder / "v.txt").write_text("row2\nrow3\n", encoding="utf-8")
    split = {"rule": "files", "train_ids": folder / "t.txt", "validation_ids": folder / "v.txt"}
    asked = recipe(folder, {"kind": "plugin", "name": "d"}, {"kind": "mlp", "inputs": 2}, "regression", split=split)
    return asked, lambda: (folder / "t.txt").write_text("row0\nrow1\nrow4\n", encoding="utf-8")


@pytest.mark.parametrize("case", [plugin_model, moved_picture, ids_of_a_plugin])
def test_what_a_run_is_made_of_is_part_of_its_name(
    place: Workspace, tmp_path: Path, case: Callable[[Workspace, Path], tuple[Recipe, Callable[[], object]]]
) -> None:
    asked, change = case(place, tmp_path)
    before = place.run_id(asked)
    assert place.run_id(asked) == before
    change()
    assert place.run_id(asked) != before


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    """A code keeps its zeros, and a column of numbers with a gap stays numbers."""
    samples = pd.DataFrame(
        {"id": ["a", "b"], "zip": ["007", "012"], "age": [np.nan, 3.0], "label": [0, 1], "split": "train", "digest": ["1", "2"]}
    )
    manifest = Manifest("run", {}, 0.0, (), (), (), {"train": (), "validation": ()}, {}, "data")
    manifest.write(tmp_path, samples)
    kept = read_samples(tmp_path, Manifest.read(tmp_path).columns)
    pd.testing.assert_frame_equal(kept, samples, check_dtype=False)
    assert kept["zip"].tolist() == ["007", "012"]
    assert pd.api.types.is_float_dtype(kept["age"])


# ---- splits and chunks --------------------------------------------------------------------------------------------------------------


def some_samples(count: int, **columns: Any) -> pd.DataFrame:
    labels = np.arange(count) % 2
    facts = {"target": labels, "label": labels, "label_name": labels.astype(str), "digest": [f"{row:032x}" for row in range(count)]}
    return pd.DataFrame({"id": [f"s{row:02d}" for row in range(count)], **facts, **columns})


def test_a_column_is_followed_when_it_changes(tmp_path: Path) -> None:
    said: list[str] = []
    section = SplitSection(rule="column", column="fold")
    before = some_samples(4, fold=["train", "train", "val", "test"])
    stored_split(before, section, tmp_path, said.append)
    assert not said
    after = before.assign(fold=["val", "train", "train", "test"])
    assert stored_split(after, section, tmp_path, said.append)["split"].tolist() == ["validation", "train", "train", "test"]
    assert "2 samples are on another side than before, as the column says now: s00, s02" in said[0]


def test_a_split_decided_anew_leaves_no_sample_on_two_sides(tmp_path: Path) -> None:
    """As is advised where a split is damaged: its file is removed, and the list of chunks stays."""
    samples, section = some_samples(20), SplitSection(rule="stratified")
    sealed_chunks(stored_split(samples.head(10), section, tmp_path, print), tmp_path / "chunks.json")
    next(tmp_path.glob("split-*.json")).unlink()
    anew = stored_split(samples, section, tmp_path, print)
    chunks = sealed_chunks(anew, tmp_path / "chunks.json")
    sides = {side: [sample for chunk in chunks[side] for sample in chunk.ids] for side in chunks}
    assert {sample: side for side in sides for sample in sides[side]} == dict(zip(anew["id"], anew["split"], strict=True))
    assert sum(map(len, sides.values())) == 20


def test_only_recordings_have_takes(tmp_path: Path) -> None:
    samples, said = some_samples(8, sequence=["ACGT"] * 8), []
    section = SplitSection(rule="stratified")
    stored_split(samples.head(7), section, tmp_path, said.append)
    assert stored_split(samples, section, tmp_path, said.append)["split"].iloc[7] == "train"
    assert "1 samples came after the split was decided: all of them are on train" in said[0]


# ---- labels and numbers -------------------------------------------------------------------------------------------------------------


def test_a_model_of_more_outputs_is_never_asked_about_other_classes() -> None:
    """Digits 1, 7 and 9 are outputs 1, 7 and 9 of a model of ten, not its first three."""
    samples = pd.DataFrame({"id": ["a", "b", "c"], "target": [1, 7, 9]})
    task = ClassificationTask()
    with pytest.raises(DataError, match="number 1, not number 0 as among the 3 classes of these data; write outputs = 10"):
        require_labels(with_labels(samples, task), task, 10)
    require_labels(with_labels(samples, task, classes=10), task, 10)
    require_labels(with_labels(samples, task), task, 3)


def test_metadata_changes_no_number() -> None:
    """A column of somebody's table may be called multiplicity; samples are trained on once."""
    chance = np.random.default_rng(0)
    features = chance.normal(size=(1, 9, 4))
    kernel = (features @ features.transpose(0, 2, 1)).astype(np.float32)[:, None]
    outputs = chance.normal(size=(1, 9)).astype(np.float32)
    kernels = Kernels(kernel[..., :6, :6], kernel[..., 6:, :6], kernel[..., 6:, 6:], outputs[:, :6], outputs[:, 6:])
    train, test = (
        pd.DataFrame({"id": [f"{side}{row}" for row in range(n)], "target": chance.normal(size=n)})
        for side, n in (("a", 6), ("b", 3))
    )
    settings: dict[str, Any] = {"loss": SampleLoss("squared_error"), "cotangent": "score", "target": "target"}
    settings |= {"checkpoint_weights": np.ones(1), "checkpoint_names": ["epoch 1"]}
    plain = View.of_samples(train, test, kernels, **settings)
    named = View.of_samples(train.assign(multiplicity=[5, 1, 1, 1, 1, 40]), test, kernels, **settings)
    np.testing.assert_array_equal(named.sample_influence(), plain.sample_influence())
    with pytest.raises(DataError, match="'multiplicity' of a column"):
        refuse_reserved(["multiplicity"], "'t.csv'")


def test_training_does_not_change_its_data(tmp_path: Path) -> None:
    """Not even with a model that overwrites its input."""
    source = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
    def forward(self, x):
        x.sub_(100.0)
        return self.layer(x)
def build():
    return Net()
"""
    (tmp_path / "net.py").write_text(source, encoding="utf-8")
    inputs = np.zeros((8, 2), dtype=np.float32)
    samples = some_samples(8).assign(target=np.arange(8) / 8, split=["train"] * 6 + ["validation"] * 2)
    settings: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-6}
    train(inputs, samples, tmp_path / "c", model=PluginModel(name="net"), task=RegressionTask(), plugins=tmp_path, **settings)
    assert not inputs.any()


# ---- refused before anything is computed --------------------------------------------------------------------------------------------


def test_two_files_that_record_one_epoch_are_refused() -> None:
    taken = [{"epoch": 5, "source": "model_epoch_5.pt"}, {"epoch": 5, "source": "model_epoch_10.pt"}]
    with pytest.raises(CheckpointError, match=r"'model_epoch_5.pt' and 'model_epoch_10.pt' both record epoch 5"):
        require_ascending(taken)
    require_ascending([{"epoch": 1, "source": "a"}, {"epoch": 2, "source": "b"}])


@pytest.mark.parametrize(
    ("loss", "cotangent", "outputs"),
    [(SampleLoss("label_smoothing"), "label_logit", 3), (SampleLoss("binary_cross_entropy"), "label_logit", 3)],
)
def test_a_loss_that_the_kernel_cannot_answer_is_refused(loss: SampleLoss, cotangent: Any, outputs: int) -> None:
    with pytest.raises(ViewError):
        require_suited(loss, cotangent, outputs)


def test_a_loss_that_it_can_answer_is_not() -> None:
    require_suited(SampleLoss("label_smoothing"), "outputs", 3)
    require_suited(SampleLoss("binary_cross_entropy"), "score", 1)
    require_suited(SampleLoss("squared_error"), "score", 1)


@pytest.mark.parametrize(
    "task",
    [
        {"kind": "classification", "loss": "cross_entropy", "smoothing": 0.1},
        {"kind": "regression", "loss": "squared_error", "delta": 1.0},
    ],
)
def test_a_setting_that_the_loss_would_not_look_at_is_refused(task: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="would change nothing with loss"):
        Recipe.from_dict(
            {
                "data": {"kind": "arrays", "file": "x.npz"},
                "model": {"kind": "mlp", "inputs": 2},
                "task": task,
                "checkpoints": {"folder": "."},
            }
        )


# ---- other people's files -----------------------------------------------------------------------------------------------------------


def test_gc_goes_on_when_an_unfinished_runs_plugin_is_gone(place: Workspace, tmp_path: Path) -> None:
    """Whose data those are cannot be told then, so all data are kept."""
    kept = place.root / "datasets" / "somebodys" / "inputs" / "x.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    place.register_run("abc", recipe(tmp_path, {"kind": "plugin", "name": "gone"}, {"kind": "mlp", "inputs": 1}, "regression"))
    assert place.gc(dry_run=True) == []


def test_a_truth_that_is_not_of_these_data_says_nothing(place: Workspace, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 2)), y=np.arange(2.0))
    asked = recipe(tmp_path, {"kind": "arrays", "file": tmp_path / "a.npz"}, {"kind": "mlp", "inputs": 2}, "regression")
    samples = pd.DataFrame({"id": ["0", "1"]})
    fault = {"sample": "0", "kind": "wrong_label", "detail": {}}
    for text, found in ({"labels": [1]}, 0), ({"faults": [fault, {**fault, "sample": "other"}]}, 1), ([1], 0):
        (tmp_path / "truth.json").write_text(json.dumps(text), encoding="utf-8")
        assert len(truth_of(asked, samples)) == found
    assert truth_of(recipe(tmp_path, {"kind": "plugin", "name": "d"}, {"kind": "mlp", "inputs": 2}, "regression"), samples) == []
