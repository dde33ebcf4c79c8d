"""Checkpoints of other people's training loops: what they hold, against the loop itself; and the loops of the document."""

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lab
import numpy as np
import pytest
import torch
from test_docs_complete import run_blocks
from test_pages import texts_of, viewer

from tracin_core import RecordTraining, open_workspace
from tracin_core.engine.models import build_model
from tracin_core.errors import InputError, NonFiniteError
from tracin_core.recipe import Recipe
from tracin_core.records.runs import Run
from tracin_core.records.trainings import settings_of

SETTINGS: dict[str, Any] = {"loss": "cross_entropy", "batch_size": 10, "examples": 30, "seed": 3}
REST = {name: value for name, value in SETTINGS.items() if name != "loss"}


def loop(folder: Path, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, kind: str = "SGD") -> list[float]:
    """Three epochs with a warm-up by step; returns the rate of every step."""
    optimizers = {"SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.5), "Adam": partial(torch.optim.AdamW, lr=0.01)}
    optimizer = optimizers[kind](model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))
    rates = []
    with RecordTraining(folder, model, optimizer, **SETTINGS) as record:
        for _ in range(3):
            for rows in torch.arange(len(x)).split(10):
                loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                scheduler.step()
            record.epoch(train_loss=loss, validation_accuracy=0.5)
    return rates


@pytest.fixture
def points(tmp_path: Path) -> tuple[Path, torch.Tensor, torch.Tensor]:
    file = lab.write_arrays(tmp_path / "points.npz")
    with np.load(file) as arrays:
        return file, torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["kind"])


def recipe_of(file: Path, folder: Path) -> Recipe:
    return lab.arrays_recipe(file, folder, "kind", {"kind": "classification"}, 3)


def test_each_checkpoint_holds_what_was_in_force(points: tuple[Path, torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    file, x, y = points
    model = build_model(recipe_of(file, tmp_path).model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rates = loop(tmp_path / "trained", model, x, y)
    held = [torch.load(tmp_path / "trained" / f"model_epoch_{epoch}.pt", weights_only=True) for epoch in range(4)]
    assert all(torch.equal(held[0]["model_state_dict"][name], value) for name, value in before.items())
    assert all(torch.equal(held[3]["model_state_dict"][name], value) for name, value in model.state_dict().items())
    for epoch in range(4):
        assert held[epoch]["rate_sum"] == pytest.approx(sum(rates[: 3 * epoch]), rel=1e-12)
        in_force = rates[max(0, 3 * epoch - 1)]
        assert held[epoch]["optimizer_state_dict"]["param_groups"][0]["lr"] == in_force
        assert held[epoch]["args"]["learning_rate"] == 0.1  # what the training was set to
    told = json.loads((tmp_path / "trained" / "training.json").read_text(encoding="utf-8"))
    assert (told["steps"], told["settings"], len(told["history"])) == (9, {"loss_type": SETTINGS["loss"], **REST}, 4)


def test_such_a_training_is_analysed_like_one_of_ours(
    points: tuple[Path, torch.Tensor, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, x, y = points
    recipe = recipe_of(file, tmp_path / "trained")
    rates = loop(recipe.checkpoints.folder, build_model(recipe.model), x, y)
    place = open_workspace(tmp_path / "workspace")
    try:
        run = place.compute(recipe)
        assert isinstance(run, Run)
        assert run.training.rate_sums == pytest.approx([sum(rates[: 3 * epoch]) for epoch in range(4)])
        assert (run.training.optimizer, run.training.momentum, run.training.steps_per_epoch) == ("SGD", 0.5, 3)
        assert run.checkpoints["validation_accuracy"].tolist()[1:] == [0.5] * 3
        assert len(run.view(weights="step_sum").self_influence()) == len(run.splits["train"])
        assert "sgd_formula" not in set(run.health()["check"])
        settings, assumed = settings_of(run)
        assert {name: settings[name] for name in ("learning_rate", "momentum", "batch_size")} == {
            "learning_rate": 0.1, "momentum": 0.5, "batch_size": 10,
        }  # fmt: skip
        assert assumed == ["schedule"]
        told = {"schedule": "linear", "momentum": None, "epochs": None, "learning_rate": 1}
        recorded = tuple(
            {**point, "arguments": {**point["arguments"], **told}, "descent": {**point["descent"], "dampening": 0.5}}
            for point in run.manifest.checkpoints
        )
        strange = copy.copy(run)
        vars(strange).pop("training")  # known of the arguments before
        strange.manifest = replace(run.manifest, checkpoints=recorded)
        settings, assumed = settings_of(strange)
        assert {name: settings.get(name) for name in told} == {"schedule": None, "momentum": 0.5, "epochs": 3, "learning_rate": 1}
        assert assumed == ["schedule", "dampening (0.5)"]  # another than this product's, which would be taken for its own
        other = recipe_of(file, tmp_path / "by_adam")
        loop(other.checkpoints.folder, build_model(other.model), x, y, "Adam")
        adam = place.compute(other)
        assert isinstance(adam, Run)
        settings, assumed = settings_of(adam)
        assert "learning_rate" not in settings  # a rate of Adam is none of SGD
        assert assumed == ["learning_rate", "schedule", "momentum", "optimizer (Adam)", "weight decay (0.01)"]
        assert adam.health().set_index("check").loc["sgd_formula", "detail"].startswith("The checkpoints are of a training by Adam")
        badges = {one.id: texts_of(viewer(place.root, monkeypatch)("overview", run=one.id)) for one in (run, adam)}
        assert ["SGD formula on Adam" in badges[one.id] for one in (run, adam)] == [False, True]
    finally:
        lab.stop_worker(place)


def test_a_failed_training_says_that_it_did_not_end(points: tuple[Path, torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 3)
    record = RecordTraining(tmp_path / "a", model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(NonFiniteError, match="train_loss is nan after epoch 1"), record:
        record.epoch(train_loss=float("nan"))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model_epoch_0.pt"]


def test_what_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with RecordTraining(tmp_path / "a", model, optimizer):
        pass
    with pytest.raises(InputError, match="name a new folder"):
        RecordTraining(tmp_path / "a", model, optimizer)
    with pytest.raises(InputError, match="The setting transform is a Linear"):
        RecordTraining(tmp_path / "b", model, optimizer, transform=model)  # type: ignore[arg-type]
    assert not (tmp_path / "b").exists()


def test_groups_of_different_rates_have_no_single_one(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 3)
    groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with RecordTraining(tmp_path, model, optimizer) as record:
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        record.epoch()
    held = torch.load(tmp_path / "model_epoch_1.pt", weights_only=True)
    assert (held["rate_sum"], held["args"]["learning_rate"]) == (None, None)


def test_the_loops_of_the_document_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_blocks("your-training-loop.md")
    assert len(names["influence"].self_influence()) == 60
    for name, epochs in (("plain", 5), ("lightning", 3)):
        held = torch.load(f"checkpoints/{name}/model_epoch_{epochs}.pt", weights_only=True)
        assert held["train_loss_main"] > 0
        assert Path(f"checkpoints/{name}/training.json").exists()
    assert held["rate_sum"] == pytest.approx(0.1 * 9)
