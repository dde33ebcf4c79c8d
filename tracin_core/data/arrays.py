"""NumPy's files: arrays with a row per sample in one `.npz`, and the single arrays of `.npy` and `.npz` files.

Nothing in them is unpickled: headers are parsed as literals, and arrays of Python objects are refused. Sizes are judged by the headers
before any room is taken for values.
"""

import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.data.checks import (
    Inputs,
    LeftOut,
    checked_ids,
    open_regular,
    refuse_infinite,
    refuse_reserved,
    require_room,
    row_names,
    rows_of,
    shown,
    sorted_by_id,
)
from tracin_core.data.previews import array_preview
from tracin_core.errors import DataError, TracInError, UnreadableSampleError
from tracin_core.recipe import ArraysData

LARGEST_FILE: Final = 64 * 2**30
LARGEST_INPUTS: Final = 32 * 2**30
LARGEST_COLUMN: Final = 2**28  # one value per sample, which the web process reads
MOST_ARRAYS: Final = 10_000
ENCRYPTED: Final = 0x1


@dataclass(frozen=True)
class Header:
    """What an array says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class ArraysReader:
    """Samples are the rows of arrays."""

    section: ArraysData
    preprocessing: ClassVar[str] = "array-float32-uint8by255-int64-v1"

    def list(self) -> pd.DataFrame:
        """Ids, targets and every other array of one value per sample; of the inputs only the header is read."""
        with open_npz(self.section.file) as file:
            return self._samples(file)

    def read(self, samples: pd.DataFrame, progress: Callable[[int], None] | None = None) -> Inputs:
        """Floats as float32, bytes (uint8) divided by 255, other whole numbers, which are tokens, as int64; in the order of the samples."""
        with open_npz(self.section.file) as file:
            rows = rows_of(samples, self._ids(file))
            require_room(self._count(file), file.header(self.section.inputs).shape[1:])
            stored = file.read(self.section.inputs, largest=LARGEST_INPUTS)
        inputs = model_inputs(stored[rows], self.section.inputs)
        refuse_infinite(inputs, samples)
        if progress is not None:
            progress(len(inputs))
        return inputs

    def preview(self, sample: pd.Series, values: npt.NDArray[Any], stem: Path) -> None:
        """A picture where the values make one, else the first of them."""
        array_preview(values, stem)

    def left_out(self) -> Sequence[LeftOut]:
        """Arrays that are neither inputs nor one value per sample."""
        with open_npz(self.section.file) as file:
            shapes = {name: file.headers[name].shape for name in self._others(file)}
        return [
            LeftOut(shown(name), f"its shape {told_shape(shape)} is not one value per sample")
            for name, shape in shapes.items()
            if len(shape) != 1
        ]

    def _samples(self, file: "Npz") -> pd.DataFrame:
        metadata = [name for name in self._others(file) if len(file.headers[name].shape) == 1]
        refuse_reserved(metadata, f"'{shown(file.name)}'")
        count = self._count(file)
        columns = {name: file.column(name, count) for name in metadata}
        target = file.column(self.section.target, count)
        target = target.astype(np.int64) if target.dtype.kind == "b" else target
        samples = pd.DataFrame({"id": self._ids(file), "target": target, "path": "", **columns})
        return samples if self._named_ids(file) is None else sorted_by_id(samples)

    def _count(self, file: "Npz") -> int:
        """The number of samples."""
        header = file.header(self.section.inputs)
        if not header.shape or not header.shape[0]:
            raise DataError(
                f"The array '{shown(self.section.inputs)}' of '{shown(file.name)}' has shape {told_shape(header.shape)} and so no row; "
                f"save one row per sample."
            )
        return header.shape[0]

    def _ids(self, file: "Npz") -> Sequence[str]:
        """In the order of the rows."""
        count, named = self._count(file), self._named_ids(file)
        if named is None:
            return row_names(count)
        ids = file.column(named, count)
        if ids.dtype.kind == "f":
            raise DataError(
                f"The ids in '{shown(named)}' of '{shown(file.name)}' are numbers with a decimal point, such as {ids[0]}; save them as "
                f"whole numbers or as text."
            )
        return checked_ids([str(name) for name in ids], f"the array '{shown(named)}'")

    def _named_ids(self, file: "Npz") -> str | None:
        return self.section.ids or ("id" if "id" in file.headers else None)

    def _others(self, file: "Npz") -> Sequence[str]:
        used = {self.section.inputs, self.section.target, self._named_ids(file)}
        return [name for name in file.headers if name not in used]


def told_shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(str(side) for side in shape) + "]"


def model_inputs(stored: npt.NDArray[Any], name: str) -> Inputs:
    """What a model takes of stored values: floats and yes-or-no as float32, bytes divided by 255, other whole numbers as int64.

    Raises:
        DataError: the values are of another kind, or too large.
    """
    if stored.dtype == np.uint8:
        return np.asarray(stored, dtype=np.float32) / np.float32(255)
    if stored.dtype.kind in "fb":
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused
            return np.ascontiguousarray(stored, dtype=np.float32)
    if stored.dtype.kind in "iu":
        return whole_numbers(stored, name)
    raise DataError(
        f"The inputs '{shown(name)}' are of type {stored.dtype}; save numbers: float32 values, uint8 pictures or int64 tokens."
    )


def whole_numbers(stored: npt.NDArray[Any], name: str) -> npt.NDArray[np.int64]:
    if stored.dtype == np.uint64 and stored.size and stored.max() > np.iinfo(np.int64).max:
        raise DataError(f"The array '{shown(name)}' holds {stored.max()}, more than 64 bits with a sign can; save smaller numbers.")
    return np.ascontiguousarray(stored, dtype=np.int64)


# ---- files ------------------------------------------------------------------------------------------------------------------


class Npz:
    """The arrays of an open `.npz` file: their headers now, their values when asked for."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.name = name
        self._archive = zipfile.ZipFile(file)
        members = self._archive.infolist()
        if len(members) > MOST_ARRAYS:
            raise UnreadableSampleError(
                f"'{shown(name)}' has {len(members):,} members, more than {MOST_ARRAYS:,}; save fewer arrays."
            )
        self._members = {member.filename.removesuffix(".npy"): member for member in members}
        if len(self._members) < len(members):
            raise UnreadableSampleError(f"'{shown(name)}' has two arrays of one name; save it again with numpy.savez.")
        self.headers = {array: self._header_of(array) for array in self._members}

    def header(self, array: str) -> Header:
        """The header of this array.

        Raises:
            DataError: there is none of this name; the message says which there are.
        """
        if array not in self.headers:
            there = ", ".join(shown(name) for name in list(self.headers)[:8]) or "none"
            raise DataError(f"'{shown(self.name)}' has no array '{shown(array)}' (it has {there}); name one of them in the recipe.")
        return self.headers[array]

    def read(self, array: str, *, largest: int) -> npt.NDArray[Any]:
        """The values of this array, at most `largest` bytes."""
        require_plain(self.header(array), f"The array '{shown(array)}' of '{shown(self.name)}'", largest)
        with self._archive.open(self._members[array]) as stream:
            return np.asarray(np.lib.format.read_array(stream))

    def column(self, array: str, count: int) -> npt.NDArray[Any]:
        """One value per sample: whole numbers as int64, other numbers as float64, yes-or-no, or text.

        Raises:
            DataError: the array has another number of rows, or more than one value in each.
        """
        header = self.header(array)
        if header.shape not in ((count,), (count, 1)):
            raise DataError(
                f"The array '{shown(array)}' of '{shown(self.name)}' has shape {told_shape(header.shape)}, but there are {count} samples; "
                f"save one value for each."
            )
        values = self.read(array, largest=LARGEST_COLUMN).reshape(count)
        kind = values.dtype.kind
        if kind in "US":
            return np.array([value.decode() if kind == "S" else value for value in values.tolist()], dtype=object)
        if kind in "iu":
            return whole_numbers(values, array)
        if kind in "fb":
            return values.astype(np.float64) if kind == "f" else values
        raise DataError(
            f"The array '{shown(array)}' of '{shown(self.name)}' is of type {shown(values.dtype)}; save numbers or text, or leave it out."
        )

    def _header_of(self, array: str) -> Header:
        member = self._members[array]
        if member.flag_bits & ENCRYPTED or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnreadableSampleError(
                f"The member '{shown(member.filename)}' of '{shown(self.name)}' is encrypted or packed in an uncommon way; save it again "
                f"with numpy.savez."
            )
        with self._archive.open(member) as stream:
            return read_header(stream, member.file_size, f"The array '{shown(array)}' of '{shown(self.name)}'")


@contextmanager
def open_npz(path: Path, root: Path | None = None) -> Iterator[Npz]:
    """The arrays of a `.npz` file.

    Raises:
        UnreadableSampleError: it is no such file, or damaged.
    """
    with open_regular(path, largest=LARGEST_FILE, root=root) as file, readable(path.name):
        yield Npz(file, path.name)


def read_single(path: Path, root: Path, largest: int) -> npt.NDArray[Any]:
    """The one array of a `.npy` file, or of a `.npz` file that has no other.

    Raises:
        UnreadableSampleError: the file is damaged, or has several arrays.
    """
    if path.suffix.lower() == ".npz":
        with open_npz(path, root) as npz:
            if len(npz.headers) != 1:
                raise UnreadableSampleError(f"'{shown(path.name)}' has {len(npz.headers)} arrays; save the spectrum alone.")
            return npz.read(next(iter(npz.headers)), largest=largest)
    with open_regular(path, largest=largest + 2**16, root=root) as file, readable(path.name):
        size = file.seek(0, 2)
        file.seek(0)
        require_plain(read_header(file, size, f"'{shown(path.name)}'"), f"'{shown(path.name)}'", largest)
        file.seek(0)
        return np.asarray(np.lib.format.read_array(file))


def read_header(stream: IO[bytes], size: int, what: str) -> Header:
    """The header at the beginning of an array's `size` bytes.

    Raises:
        UnreadableSampleError: there is none, or it promises more values than there are bytes.
    """
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    reader = readers.get(np.lib.format.read_magic(stream))
    if reader is None:
        raise UnreadableSampleError(f"{what} is in a later version of NumPy's format; save it as plain numbers.")
    shape, _, dtype = reader(stream)
    header = Header(tuple(int(side) for side in shape), dtype)
    if min(header.shape, default=0) < 0 or (not dtype.hasobject and header.bytes + stream.tell() != size):
        raise UnreadableSampleError(
            f"{what} says shape {told_shape(header.shape)} of {dtype}, but has {size:,} bytes in all; it is cut off or damaged: save it "
            f"again."
        )
    return header


def require_plain(header: Header, what: str, largest: int) -> None:
    """The array holds plain values that fit."""
    if header.dtype.hasobject:
        raise DataError(
            f"{what} holds Python objects, which are never unpickled; save it as numbers or text: x.astype(float) or x.astype(str)."
        )
    if header.bytes > largest:
        raise DataError(
            f"{what} has {header.bytes:,} bytes, more than the {largest:,} that are read; save fewer or smaller values."
        )


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Whatever a broken file makes of its decoder is told in one sentence.

    Raises:
        UnreadableSampleError: in place of every error that is not one of the product's own.
    """
    try:
        yield
    except TracInError:
        raise
    except MemoryError as failure:
        raise UnreadableSampleError(f"'{shown(name)}' does not fit into memory; make it smaller.") from failure
    except (
        Exception
    ) as failure:  # decoders raise what the broken bytes lead them to: ValueError, zlib.error, SyntaxError, struct.error, ...
        reason = shown(" ".join(str(failure).split()) or type(failure).__name__)
        raise UnreadableSampleError(
            f"'{shown(name)}' cannot be read ({reason.rstrip('.')}); write it again, or move it away."
        ) from failure
