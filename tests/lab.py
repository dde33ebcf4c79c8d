"""A small lab for tests: real recordings, a really trained ranker, a workspace; two minutes of the demo in a few seconds."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from filelock import FileLock

from tracin_core.data.readers import list_recordings, read_inputs
from tracin_core.data.samples import split_samples
from tracin_core.data.simulated import simulate_recordings
from tracin_core.recipe import Recipe, SplitSection
from tracin_core.records.runs import Run
from tracin_core.records.workspace import Workspace, open_workspace

MATERIAL, FREQUENCY = "box", "1000hz"
SPLIT = SplitSection(train=3, validation=2, test=1)
SHORT = {"epochs": 2, "save_epochs": (1, 2), "learning_rate": 0.1}  # a training on a few numbers


@dataclass(frozen=True)
class Studio:
    """A workspace, and the finished run in it."""

    place: Workspace
    run: Run


@dataclass(frozen=True)
class Shelf:
    """What several test files start from, made by the first test process that asks for it; nobody changes it there."""

    home: Path

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder of this name, as `make(folder)` made it; if that fails, the next who asks begins anew."""
        folder = self.home / name
        with FileLock(self.home / f"{name}.lock"):
            if not (self.home / f"{name}.made").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                make(folder)
                (self.home / f"{name}.made").touch()
        return folder

    def recordings(self) -> Path:
        return self.once("recordings", make_recordings)

    def checkpoints(self, epochs: int = 2) -> Path:
        """Of the small ranker on those recordings."""
        return self.once(f"box_1000hz_margin_{epochs}", lambda folder: train_small(self.recordings(), folder, epochs))

    def recipe(self, epochs: int = 2) -> Recipe:
        return recipe_for(self.recordings(), self.checkpoints(epochs))

    def studio(self, root: Path, epochs: int = 2) -> Studio:
        """A workspace of one's own with the run of that recipe, and copies of the recordings and the training to start from."""
        recipe = self.recipe(epochs)

        def compute(folder: Path) -> None:
            place = open_workspace(folder)
            place.compute(recipe)
            stop_worker(place)
            shutil.copytree(recipe.data.root, folder / "recordings" / "small")
            shutil.copytree(recipe.checkpoints.folder, folder / "trainings" / "small")

        shutil.copytree(self.once(f"studio_{epochs}", compute), root, dirs_exist_ok=True)
        place = open_workspace(root)
        return Studio(place, place.run(place.run_id(recipe)))


def make_recordings(root: Path, takes: int = 6) -> Path:
    """Simulated recordings of 6 angles x `takes` in the lab's layout."""
    simulate_recordings(root, material=MATERIAL, frequency=FREQUENCY, takes=takes, split=SPLIT)
    return root


def train_small(recordings: Path, folder: Path, epochs: int = 2) -> Path:
    """Checkpoints of epochs 0, 1, ... of the small ranker."""
    from tracin_core.engine.training import train_ranker

    samples = split_samples(list_recordings(recordings, MATERIAL, FREQUENCY), SPLIT)
    train_ranker(read_inputs(recordings, samples), samples, folder, epochs=epochs, save_epochs=tuple(range(1, epochs + 1)))
    return folder


def recipe_for(recordings: Path, checkpoints: Path, **engine: object) -> Recipe:
    """The analysis of these recordings under these checkpoints."""
    return Recipe.from_dict(
        {
            "name": "small lab",
            "simulated": True,
            "data": {"root": recordings, "material": MATERIAL, "frequency": FREQUENCY},
            "split": SPLIT.model_dump(),
            "checkpoints": {"folder": checkpoints},
            "engine": {"threads": 1, **engine},
        }
    )


def write_arrays(file: Path) -> Path:
    """Three classes of points, a number that depends on them, and an order."""
    generator = np.random.default_rng(5)
    labels = np.arange(30) % 3
    x = generator.normal(size=()) + 2 * np.eye(3, 4)[labels]
    ids = np.array([f"point_{row:02d}" for row in range(30)])
    number = x @ np.array([1.0, -1.0, 0.5, 0.0])
    np.savez(file, x=x.astype(np.float32), kind=labels, two=labels > 0, number=number, order=labels * 10, id=ids)
    return file


def arrays_recipe(file: Path, checkpoints: Path, target: str, task: dict[str, Any], outputs: int = 1) -> Recipe:
    """The analysis of these points by a small network."""
    return Recipe.from_dict(
        {
            "data": {"kind": "arrays", "file": file, "target": target},
            "model": {"kind": "mlp", "inputs": 4, "hidden": [5], "outputs": outputs},
            "task": task,
            "checkpoints": {"folder": checkpoints},
            "engine": {"threads": 1},
        }
    )


def worker_pids(place: Workspace) -> list[int]:
    """The living processes that serve this workspace, found by their command line."""
    pids = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "tracin_core.worker" in command and str(place.root) in command:
            pids.append(process.pid)
    return pids


def stop_worker(place: Workspace) -> None:
    for pid in worker_pids(place):
        os.kill(pid, signal.SIGKILL)
