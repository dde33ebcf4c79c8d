"""Arrays of one `.npz` file: rows become samples, and what is no plain number, does not fit or is no such file is refused in a sentence."""

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tracin_core.data import arrays as module
from tracin_core.data.previews import LARGEST, MOST_VALUES, SMALLEST, array_preview
from tracin_core.data.readers import reader_for
from tracin_core.data.seals import unsealed_text
from tracin_core.errors import DataError, UnknownSampleError, UnreadableSampleError
from tracin_core.recipe import ArraysData

X, Y = np.arange(12, dtype=np.float64).reshape(4, 3), np.array([3, 1, 2, 1])


def put(folder: Path, **stored: object) -> ArraysData:
    """The section of a file of these arrays; x and y are there unless they are given."""
    path = folder / "data.npz"
    np.savez(path, **{"x": X, "y": Y, **stored})
    return ArraysData(file=path)


def test_rows_become_samples(tmp_path: Path) -> None:
    """Numbered rows stay in their order, beyond ten too; every array of one value per sample is a column."""
    count = 12
    section = put(
        tmp_path,
        x=np.ones((count, 2)),
        y=np.arange(count) / 2,
        site=np.array(["a", "é"] * 6),
        age=np.arange(count),
        ok=[True] * count,
    )
    samples = reader_for(section).list()
    assert list(samples.columns) == ["id", "target", "path", "site", "age", "ok"]
    assert list(samples["id"]) == [f"row{row}" for row in range(count)]
    assert list(samples["target"]) == [row / 2 for row in range(count)]
    assert samples["age"].dtype == np.int64
    assert set(samples["site"]) == {"a", "é"}
    assert (samples["path"] == "").all()


@pytest.mark.parametrize(
    ("ids", "expected"),
    [(np.array([10, 9, 2, 1]), ["1", "2", "9", "10"]), (np.array(["b", "a10", "a9", "c"]), ["a10", "a9", "b", "c"])],
    ids=["numbers by value", "text as text"],
)
def test_samples_are_sorted_by_their_ids(tmp_path: Path, ids: np.ndarray, expected: list[str]) -> None:
    """Targets and inputs go with the ids, whatever the order of the rows."""
    section = put(tmp_path, id=ids)
    reader = reader_for(section)
    samples = reader.list()
    assert list(samples["id"]) == expected
    where = {str(name): row for row, name in enumerate(ids)}
    assert list(samples["target"]) == [Y[where[name]] for name in expected]
    turned = samples.iloc[[2, 0]]
    np.testing.assert_array_equal(reader.read(turned), np.stack([X[where[name]] for name in turned["id"]]).astype(np.float32))


def test_other_names_can_be_given(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez_compressed(path, images=X, classes=Y[:, None], name=np.array([b"d", b"c", b"b", b"a"]))
    samples = reader_for(ArraysData(file=path, inputs="images", target="classes", ids="name")).list()
    assert samples[["id", "target"]].to_numpy().tolist() == [["a", 1], ["b", 2], ["c", 1], ["d", 3]]


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(["u1", "f2", "f4", "f8", ">f4", "i2", "i4", ">i8", "u4", "?"]),
    shape=st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(1, 3)),
    seed=st.integers(0, 1000),
)
def test_numbers_come_as_a_model_takes_them(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, shape: tuple[int, ...], seed: int
) -> None:
    """Bytes are a 255th, other whole numbers are tokens, the rest is float32: value by value."""
    stored = np.random.default_rng(seed).uniform(0, 256, shape).astype(dtype)
    reader = reader_for(put(tmp_path_factory.mktemp("any"), x=stored, y=np.arange(len(stored))))
    inputs = reader.read(reader.list())
    whole = stored.dtype.kind in "iu" and stored.dtype != np.uint8
    assert inputs.dtype == (np.int64 if whole else np.float32)
    for value, given_value in zip(inputs.ravel(), stored.ravel(), strict=True):
        expected = int(given_value) if whole else float(given_value) / (255 if stored.dtype == np.uint8 else 1)
        assert value == (expected if whole else np.float32(expected))


def test_yes_or_no_is_a_target(tmp_path: Path) -> None:
    samples = reader_for(put(tmp_path, y=np.array([True, False, True, True]))).list()
    assert samples["target"].tolist() == [1, 0, 1, 1]


def test_what_is_no_column_is_listed(tmp_path: Path) -> None:
    """An array with several values per sample, or one for all of them, is no metadata, and is said to be left out."""
    reader = reader_for(put(tmp_path, embedding=np.zeros((4, 2)), version=np.array(3), age=np.arange(4)))
    assert [(name, reason) for name, reason in reader.left_out()] == [
        ("embedding", "its shape [4, 2] is not one value per sample"),
        ("version", "its shape [] is not one value per sample"),
    ]
    assert "embedding" not in reader.list()


def test_pickled_objects_stay_closed(tmp_path: Path) -> None:
    """An array of Python objects would run code when it is opened; it is named, and its code did not run."""
    mark = tmp_path / "ran"

    class Dangerous:
        def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
            return os.system, (f"touch {mark}",)

    for name in ("x", "y", "id", "age"):
        reader = reader_for(put(tmp_path, **{name: np.array([Dangerous()] * 4, dtype=object)}))
        with pytest.raises(DataError, match=rf"'{name}' of 'data.npz' holds Python objects, .* x.astype\(float\)"):
            reader.read(reader.list())
    assert not mark.exists()


REFUSED = {
    "rows": ({"y": np.arange(3)}, r"'y' of 'data.npz' has shape \[3\], but there are 4 samples"),
    "metadata rows": ({"age": np.arange(5)}, r"'age' of 'data.npz' has shape \[5\], but there are 4 samples"),
    "no row": ({"x": np.zeros((0, 3)), "y": np.zeros(0)}, r"shape \[0, 3\] and so no row"),
    "scalar": ({"x": np.array(1.0)}, r"shape \[\] and so no row"),
    "two targets": ({"y": np.zeros((4, 2))}, r"shape \[4, 2\]"),
    "complex": ({"x": X.astype(complex)}, "type complex128; save numbers"),
    "text": ({"x": X.astype(str)}, "save numbers: float32"),
    "dates": ({"age": np.array(["2020-01-01"] * 4, dtype="datetime64[D]")}, "save numbers or text"),
    "records": ({"age": np.zeros(4, dtype=[("a", "i4")])}, "save numbers or text"),
    "nan": ({"x": np.where(np.arange(12).reshape(4, 3) == 7, np.nan, X)}, r"sample 'row2' holds nan at \[1\]"),
    "too large": ({"x": np.where(np.arange(12).reshape(4, 3) == 11, 1e300, X)}, r"sample 'row3' holds inf at \[2\]"),
    "64 bits": ({"x": np.full((4, 1), 2**63, dtype=np.uint64)}, "holds 9223372036854775808, more than 64 bits"),
    "same id": ({"id": np.array(["a", "b", "a", "c"])}, "'a' stands twice"),
    "empty id": ({"id": np.array(["a", "b", "", "c"])}, "id '' in row 2"),
    "comment": ({"id": np.array(["a", "b", "#c", "d"])}, "id '#c' in row 2"),
    "line": ({"id": np.array(["a", "b\nc", "d", "e"])}, r"id 'b\?c' in row 1"),
    "space": ({"id": np.array(["a ", "b", "c", "d"])}, "id 'a ' in row 0"),
    "decimal id": ({"id": np.array([0.5, 1, 2, 3])}, "decimal point, such as 0.5"),
    "own name": ({"label": np.arange(4)}, "name 'label' of a column"),
    "not utf-8": ({"age": np.array([b"\xff"] * 4)}, "cannot be read .*utf-8"),
}


@pytest.mark.parametrize(("stored", "told"), REFUSED.values(), ids=REFUSED)
def test_arrays_that_cannot_be_samples(tmp_path: Path, stored: dict[str, np.ndarray], told: str) -> None:
    reader = reader_for(put(tmp_path, **stored))
    with pytest.raises(DataError, match=told) as caught:
        reader.read(reader.list())
    assert_sentence(caught.value, tmp_path)


def assert_sentence(error: Exception, place: Path) -> None:
    """One sentence of one line, that does not tell where on this machine the data are."""
    assert "\n" not in str(error)
    assert str(error).endswith(".")
    assert str(place) not in str(error)
    assert len(str(error)) < 400


def member(name: str, content: bytes, **info: object) -> bytes:
    """A zip archive of one member."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content, **info)
    return buffer.getvalue()


def npy(header: str, values: bytes = b"") -> bytes:
    """An array file with this header, true or not."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + values


def good() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=X, y=Y)
    return buffer.getvalue()


def lies(shape: str, descr: str = "'<f8'", values: bytes = b"") -> bytes:
    return member("x.npy", npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}", values))


HOSTILE = {
    "empty": b"",
    "text": b"no archive at all",
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00.",
    "a single array": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", bytes(8)),
    "cut off": good()[:-30],
    "cut in the middle": good()[: len(good()) // 2],
    "no array": member("x.npy", b"plain text"),
    "huge shape": lies("(1000000000000,)"),
    "negative shape": lies("(-4, 3)", values=bytes(96)),
    "more than there is": lies("(4, 3)", values=bytes(8)),
    "less than there is": lies("(4, 3)", values=bytes(960)),
    "code in the header": member("x.npy", npy("__import__('os').system('true')")),
    "deep header": member("x.npy", npy("(" * 9000)),
    "strange type": lies("(4,)", "'<q99'"),
    "later version": member("x.npy", b"\x93NUMPY\x09\x00" + bytes(20)),
    "bzip2": member("x.npy", b"0" * 100, compress_type=zipfile.ZIP_BZIP2),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_files_that_are_no_arrays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"'data\.npz'") as caught:
        reader_for(ArraysData(file=path)).list()
    assert_sentence(caught.value, tmp_path)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Every single byte changed: the same table and inputs, or a refusal; never other numbers, never another error."""
    path = tmp_path / "data.npz"
    path.write_bytes(good())
    reader = reader_for(ArraysData(file=path))
    samples, inputs = reader.list(), reader.read(reader.list())
    generator, refused = np.random.default_rng(0), 0
    for place in generator.choice(len(good()), 150, replace=False):
        changed = bytearray(good())
        changed[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(changed)
        try:
            assert reader.list().equals(samples)
            np.testing.assert_array_equal(reader.read(samples), inputs)
        except DataError:
            refused += 1
    assert refused > 75


def test_a_bomb_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that would fill the memory is judged by its header, before any room is taken."""
    monkeypatch.setattr(module, "LARGEST_COLUMN", 1000)
    with pytest.raises(DataError, match="has 8,000 bytes, more than the 1,000 that are read"):
        reader_for(put(tmp_path, x=np.zeros((1000, 1)), y=np.zeros(1000))).list()
    monkeypatch.undo()
    reader = reader_for(put(tmp_path))
    samples = reader.list()
    monkeypatch.setattr(module, "LARGEST_INPUTS", 10)
    with pytest.raises(DataError, match=r"'x' of 'data\.npz' has 96 bytes"):
        reader.read(samples)


def test_inputs_larger_than_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are read, with what they need and what is free."""
    reader = reader_for(put(tmp_path))
    samples = reader.list()
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**5))
    with pytest.raises(DataError, match=r"4 samples of shape \[3\] need 0.0 GiB of memory, but 0.0 GiB are free"):
        reader.read(samples)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    """A pipe does not make the server wait, and a folder or nothing is said to be what it is."""
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    for name, told in (("pipe.npz", "no regular file"), ("folder.npz", "no regular file"), ("absent.npz", "cannot be opened")):
        with pytest.raises(UnreadableSampleError, match=told):
            reader_for(ArraysData(file=tmp_path / name)).list()
    with pytest.raises(UnreadableSampleError, match="cannot be opened"):
        reader_for(ArraysData(file=Path("/tmp/a\0b.npz"))).list()


def test_samples_that_are_gone_are_named(tmp_path: Path) -> None:
    reader = reader_for(put(tmp_path, id=np.array(["a", "b", "c", "d"])))
    samples = reader.list()
    put(tmp_path, id=np.array(["a", "b", "c", "e"]))
    with pytest.raises(UnknownSampleError, match="'d' is not in the data any more"):
        reader.read(samples)


@pytest.mark.parametrize(
    ("values", "size"),
    [
        (np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3), (84, 56)),
        (np.zeros((1, 28, 28), dtype=np.float32), (84, 84)),
        (np.ones((3, 100, 50), dtype=np.float32), (50, 100)),
        (np.ones((1, 1025, 4), dtype=np.float32), (1, LARGEST)),
    ],
    ids=["plane", "channel", "colours", "large"],
)
def test_pictures_keep_their_pixels(tmp_path: Path, values: np.ndarray, size: tuple[int, int]) -> None:
    """Small ones are enlarged by whole factors, so that the first pixel of each square is the value."""
    array_preview(values, tmp_path / "p")
    with Image.open(tmp_path / "p.png") as image:
        assert image.size == size
        assert image.mode == ("RGB" if values.shape[0] == 3 and values.ndim == 3 else "L")
        pixels = np.asarray(image)
    plane = values[0] if values.ndim == 3 else values
    if max(plane.shape) < SMALLEST:
        factor = size[0] // plane.shape[1]
        np.testing.assert_array_equal(pixels[::factor, ::factor], np.rint(255 * plane))


def test_values_outside_0_to_1_are_stretched(tmp_path: Path) -> None:
    """The smallest is black, the largest white; a picture of one value is black, not an error."""
    array_preview(np.array([[-2.0, 0.0, 2.0]], dtype=np.float32), tmp_path / "p")
    with Image.open(tmp_path / "p.png") as image:
        assert np.asarray(image)[0, ::28].tolist() == [0, 128, 255]
    array_preview(np.full((2, 2), 7, dtype=np.float32), tmp_path / "q")
    with Image.open(tmp_path / "q.png") as image:
        assert not np.asarray(image).any()


def test_other_shapes_are_told_in_text(tmp_path: Path) -> None:
    """How many values there are, the first of them, and how many more."""
    array_preview(np.arange(100, dtype=np.int64), tmp_path / "tokens")
    told = unsealed_text((tmp_path / "tokens.txt").read_text())
    assert told.startswith("100 values: 0 1 2 ")
    assert told.endswith(f" {MOST_VALUES - 1} ... ({100 - MOST_VALUES} more)\n")
    array_preview(np.array([0.25], dtype=np.float32), tmp_path / "one")
    assert unsealed_text((tmp_path / "one.txt").read_text()) == "1 value: 0.25\n"
    array_preview(np.zeros((2, 4, 4), dtype=np.float32), tmp_path / "deep")
    assert unsealed_text((tmp_path / "deep.txt").read_text()).startswith("2 x 4 x 4 values: 0 0 ")
