"""Kernel blocks on disk: content-addressed, checksummed, written whole, read as memory maps.

    kernels/<group>/group.json             what the group's digest stands for
    kernels/<group>/<left>-<right>.f32     inner products [layers, rows, columns]
    kernels/<group>/<left>.outputs.f32     model outputs [rows]

A group is one checkpoint under one way of computing (weights, model, preprocessing, batch, threads, ...); left and right are
digests of the samples of a block. A block is little-endian float32 followed by the CRC32C of those bytes. Its name says everything
that its content depends on, so a block that exists is never wrong, only damaged, and nothing is ever invalidated.
"""

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import numpy.typing as npt

from tracin_core.data.files import read_json, write_json, write_whole
from tracin_core.errors import DamagedBlockError, NonFiniteError

CHECKSUM_BYTES = 4
READ_BYTES = 4 * 2**20  # at once, where a whole file is gone through


def digest_of(value: Any) -> str:
    """SHA-256 of a plain value's canonical JSON, 32 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def block_damage(path: Path) -> str:
    """What is wrong with a block's file, whoever wrote it, as the rest of a sentence about it; empty if its checksum is right.

    Raises:
        OSError: the disk does not give the bytes back.
    """
    size = path.stat().st_size
    if size <= CHECKSUM_BYTES or size % 4:
        return f"has {size} bytes, which is no block"
    found = 0
    with path.open("rb") as file:
        left = size - CHECKSUM_BYTES
        while left and (piece := file.read(min(left, READ_BYTES))):
            found = int(crc32c.crc32c(piece, found))
            left -= len(piece)
        stored = int.from_bytes(file.read(CHECKSUM_BYTES), "little")
    return "" if found == stored and not left else f"has checksum {found:08x}, but {stored:08x} was written"


def stored_checksum(path: Path) -> int:
    """The CRC32C that a block's file ends with."""
    with path.open("rb") as file:
        file.seek(-CHECKSUM_BYTES, 2)
        return int.from_bytes(file.read(), "little")


@dataclass(frozen=True)
class BlockKey:
    """Which numbers a block holds. `right` is None for the outputs of the left samples."""

    group: str
    left: str
    right: str | None
    shape: tuple[int, ...]

    @property
    def file(self) -> str:
        return f"{self.left}.outputs.f32" if self.right is None else f"{self.left}-{self.right}.f32"

    @property
    def name(self) -> str:
        return f"{self.group}/{self.file}"

    @property
    def bytes(self) -> int:
        return 4 * math.prod(self.shape) + CHECKSUM_BYTES


class BlockStore:
    """The `kernels/` directory of a workspace."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._verified: set[str] = set()

    def path(self, key: BlockKey) -> Path:
        return self.root / key.group / key.file

    def describe_group(self, group: str, definition: dict[str, Any]) -> None:
        """`group.json` says what the group's digest stands for."""
        path = self.root / group / "group.json"
        if not path.exists():
            write_json(path, definition)

    def definition(self, group: str) -> dict[str, Any]:
        """What the group's digest stands for.

        Raises:
            FileNotFoundError: nothing of the group was ever computed.
        """
        told: dict[str, Any] = read_json(self.root / group / "group.json")
        return told

    def holds(self, key: BlockKey) -> bool:
        """The block is on disk, has its full length and its checksum is right, now: what this process saw before does not count."""
        self._verified.discard(key.name)
        try:
            self.read(key)
        except (FileNotFoundError, DamagedBlockError):
            return False
        return True

    def missing(self, keys: Iterable[BlockKey]) -> list[BlockKey]:
        """Those blocks that have to be computed."""
        return [key for key in keys if not self.holds(key)]

    def write(self, key: BlockKey, values: npt.NDArray[np.float32]) -> int:
        """The block is on disk, whole; the returned CRC32C is its last four bytes.

        Raises:
            NonFiniteError: a value is NaN or infinite: nothing is written.
            DiskFullError: there is no room: nothing is changed.
        """
        if values.shape != key.shape:
            raise ValueError(f"block {key.name} should have shape {key.shape}, not {values.shape}")
        if not np.isfinite(values).all():
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise NonFiniteError(
                f"Block '{key.name}' has the value {values[place]} at {place}; look at this checkpoint's weights for NaN "
                f"or infinity, or leave it out."
            )
        raw = np.ascontiguousarray(values, dtype="<f4")
        checksum = int(crc32c.crc32c(raw.view(np.uint8).reshape(-1).data))
        write_whole(self.path(key), [raw.data.cast("B"), checksum.to_bytes(CHECKSUM_BYTES, "little")])
        self._verified.add(key.name)
        return checksum

    def checksum(self, key: BlockKey) -> int:
        """The CRC32C that the block ends with."""
        return stored_checksum(self.path(key))

    def read(self, key: BlockKey) -> npt.NDArray[np.float32]:
        """The block's values as a read-only memory map; its checksum is compared on the first read of a process.

        Raises:
            FileNotFoundError: the block was never computed.
            DamagedBlockError: its length or checksum is wrong.
        """
        raw = self._mapped(key)
        body = raw[:-CHECKSUM_BYTES]
        if key.name not in self._verified:
            stored = int.from_bytes(raw[-CHECKSUM_BYTES:], "little")
            found = int(crc32c.crc32c(body))
            if stored != found:
                raise DamagedBlockError(
                    f"Block '{key.name}' has checksum {found:08x}, but {stored:08x} was written; compute the run again: "
                    f"only this block is redone."
                )
            self._verified.add(key.name)
        return np.frombuffer(body, dtype="<f4").reshape(key.shape)

    def _mapped(self, key: BlockKey) -> memoryview:
        """The file's bytes, as many as the key says. A row of a kernel opens hundreds of files, hence neither `Path` nor np.memmap."""
        file = os.open(f"{self.root}/{key.name}", os.O_RDONLY)
        try:
            size = os.fstat(file).st_size
            if size == key.bytes:
                return memoryview(mmap.mmap(file, size, access=mmap.ACCESS_READ))
        finally:
            os.close(file)
        raise DamagedBlockError(
            f"Block '{key.name}' has {size} bytes instead of {key.bytes}; compute the run again: only this block is redone."
        )


class Mosaic:
    """A kernel that lies on the disk in blocks, `[layers, rows, columns]`: any window of it, without the rest.

    Args:
        blocks: the keys in their places; each with True where the block is kept the other way round, as the lower half of a symmetric
            kernel is.
    """

    def __init__(self, store: BlockStore, blocks: Sequence[Sequence[tuple[BlockKey, bool]]]) -> None:
        self._store = store
        self._blocks = [list(row) for row in blocks]
        heights = [_shape(row[0])[1] for row in self._blocks]
        widths = [_shape(place)[2] for place in self._blocks[0]]
        self._rows, self._columns = _edges(heights), _edges(widths)
        self.shape = (_shape(self._blocks[0][0])[0], sum(heights), sum(widths))

    def window(self, rows: slice, columns: slice, layers: slice = slice(None)) -> npt.NDArray[np.float32]:
        """These rows, columns and layers, copied: `[layers, rows, columns]`. Only blocks that they lie in are read.

        Raises:
            FileNotFoundError, DamagedBlockError: as `BlockStore.read`.
        """
        top, bottom, _ = rows.indices(self.shape[1])
        left, right, _ = columns.indices(self.shape[2])
        values = np.empty((len(range(self.shape[0])[layers]), bottom - top, right - left), dtype=np.float32)
        for i, above, upper in _met(self._rows, top, bottom):
            for j, before, inner in _met(self._columns, left, right):
                values[:, above, before] = self._read(i, j)[layers, upper, inner]
        return values

    def row(self, index: int) -> npt.NDArray[np.float32]:
        """One row: `[layers, columns]`."""
        return self.window(slice(index, index + 1), slice(None))[:, 0]

    def column(self, index: int) -> npt.NDArray[np.float32]:
        """One column: `[layers, rows]`."""
        return self.window(slice(None), slice(index, index + 1))[:, :, 0]

    def _read(self, i: int, j: int) -> npt.NDArray[np.float32]:
        key, turned = self._blocks[i][j]
        values = self._store.read(key)
        return values.transpose(0, 2, 1) if turned else values


def _shape(place: tuple[BlockKey, bool]) -> tuple[int, ...]:
    key, turned = place
    layers, rows, columns = key.shape
    return (layers, columns, rows) if turned else key.shape


def _edges(lengths: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(lengths).tolist()]


def _met(edges: Sequence[int], start: int, stop: int) -> list[tuple[int, slice, slice]]:
    """The pieces between the edges that start..stop meets: number, where it goes in the window, which part of the piece it is."""
    first = max(int(np.searchsorted(edges, start, side="right")) - 1, 0)
    met = []
    for number in range(first, len(edges) - 1):
        low, high = max(edges[number], start), min(edges[number + 1], stop)
        if low >= high:
            break
        met.append((number, slice(low - start, high - start), slice(low - edges[number], high - edges[number])))
    return met
