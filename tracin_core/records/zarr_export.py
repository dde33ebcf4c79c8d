"""A run's kernels as a Zarr v3 group, which zarr-python and xarray open. Written here: the format is a folder of small files.

<folder>/zarr.json                       the run: id, name, recipe, loss, versions, whether its data are simulated
<folder>/<array>/zarr.json, c/...        kernels [checkpoint, layer, rows, columns], outputs [checkpoint, samples]
<folder>/<dimension>/...                 names along a dimension: checkpoints, layers, sample ids

Numbers are little-endian float32 and each chunk ends with its CRC32C (codecs `bytes`, `crc32c`), as blocks do. A block itself is no chunk:
Zarr chunks are all of one size, and blocks are as large as what was added together.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final

import crc32c
import numpy as np
import numpy.typing as npt

from tracin_core.data.files import flush_directory, write_json, write_whole
from tracin_core.errors import InputError
from tracin_core.records.manifest import Chunk, Manifest
from tracin_core.records.runs import Run
from tracin_core.records.store import CHECKSUM_BYTES, BlockKey, BlockStore, Mosaic

CHUNK: Final = 1024  # rows and columns: 4 MiB
Window = Callable[[tuple[slice, ...]], npt.NDArray[np.float32]]


def export_zarr(run: Run, store: BlockStore, folder: Path) -> Path:
    """The folder holds the run as a Zarr v3 group, whole; it was not there before.

    Only the blocks of one chunk are in memory at once. `xarray.open_zarr(folder, consolidated=False)` gives a Dataset with names on every
    dimension; `zarr.open_group(folder, mode="r")["test_train"]` the plain array.

    Raises:
        InputError: the folder is there already, or cannot be made.
        DamagedBlockError, FileNotFoundError: a block is damaged or gone; nothing is left in the folder.
    """
    if folder.exists():
        raise InputError(f"'{folder}' is there already; name a folder that is not, so that nothing is mixed with the export.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    except OSError as failure:
        raise InputError(f"'{folder}' cannot be made ({failure.strerror}); name a folder where you may write.") from failure
    try:
        _write(run, store, beside)
        beside.chmod(0o755)
        os.rename(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    flush_directory(folder.parent)
    return folder


def _write(run: Run, store: BlockStore, folder: Path) -> None:
    manifest = run.manifest
    train, test = manifest.chunks["train"], manifest.chunks["validation"]
    names = {
        "checkpoint": [f"epoch {row['epoch']}" for row in manifest.checkpoints],
        "layer": list(manifest.layers),
        "test": [sample for chunk in test for sample in chunk.ids],
        "train": [sample for chunk in train for sample in chunk.ids],
    }
    names["other_test"], names["other_train"] = names["test"], names["train"]  # a dimension occurs once in an array
    kernels = {
        "test_train": (_rectangle(manifest, test, train), ("test", "train")),
        "train_train": (_symmetric(manifest, train), ("train", "other_train")),
        "test_test": (_symmetric(manifest, test), ("test", "other_test")),
    }
    for name, (blocks_of, sides) in kernels.items():
        mosaics = [Mosaic(store, blocks_of(group)) for group in manifest.groups]
        _write_array(folder / name, names, ("checkpoint", "layer", *sides), _kernel_window(mosaics))
    for side, chunks in (("train", train), ("test", test)):
        _write_array(folder / f"{side}_outputs", names, ("checkpoint", side), _outputs_window(store, manifest, chunks))
    for dimension, labels in names.items():
        _write_names(folder / dimension, labels)
    attributes = {
        "title": f"Tangent kernels of run {run.name}",
        "run": run.id,
        "digest": run.digest,
        "simulated": run.simulated,
        "created": manifest.created,
        "recipe": manifest.recipe,
        "loss": manifest.loss,
        "versions": manifest.versions,
        "checkpoint_digests": [str(row["digest"]) for row in manifest.checkpoints],
    }
    write_json(folder / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})


def _rectangle(manifest: Manifest, left: Sequence[Chunk], right: Sequence[Chunk]) -> Callable[[str], list[Any]]:
    return lambda group: [[(manifest.kernel_key(group, a, b), False) for b in right] for a in left]


def _symmetric(manifest: Manifest, chunks: Sequence[Chunk]) -> Callable[[str], list[Any]]:
    """Only the upper half is kept: the lower one is read from it, turned."""

    def places(group: str) -> list[Any]:
        return [[place(group, i, j) for j in range(len(chunks))] for i in range(len(chunks))]

    def place(group: str, i: int, j: int) -> tuple[BlockKey, bool]:
        return manifest.kernel_key(group, chunks[min(i, j)], chunks[max(i, j)]), i > j

    return places


def _kernel_window(mosaics: Sequence[Mosaic]) -> Window:
    def window(place: tuple[slice, ...]) -> npt.NDArray[np.float32]:
        checkpoints, layers, rows, columns = place
        return np.stack([mosaic.window(rows, columns, layers) for mosaic in mosaics[checkpoints]])

    return window


def _outputs_window(store: BlockStore, manifest: Manifest, chunks: Sequence[Chunk]) -> Window:
    def window(place: tuple[slice, ...]) -> npt.NDArray[np.float32]:
        checkpoints, samples = place
        groups = manifest.groups[checkpoints]
        return np.stack([np.concatenate([store.read(manifest.outputs_key(g, c)) for c in chunks])[samples] for g in groups])

    return window


def _write_array(folder: Path, names: Mapping[str, Sequence[str]], dimensions: Sequence[str], window: Window) -> None:
    """One chunk per checkpoint, layer and tile of rows and columns; chunks at an edge are filled up with NaN."""
    shape = [len(names[dimension]) for dimension in dimensions]
    chunk = [1, 1, *(min(length, CHUNK) for length in shape[2:])] if len(shape) == 4 else [1, shape[1]]
    codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    _describe(folder, shape, chunk, "float32", "NaN", codecs, dimensions)
    for number, place in _tiles(shape, chunk):
        values = np.full(chunk, np.nan, dtype="<f4")
        part = window(place)
        values[tuple(slice(length) for length in part.shape)] = part
        _write_chunk(folder, number, values.tobytes())


def _write_names(folder: Path, names: Sequence[str]) -> None:
    """Text along the dimension that the folder is named after: a count, then each name's length and UTF-8 (codec `vlen-utf8`)."""
    encoded = [name.encode("utf-8") for name in names]
    pieces = [len(names).to_bytes(4, "little"), *(len(name).to_bytes(4, "little") + name for name in encoded)]
    codecs: list[dict[str, Any]] = [{"name": "vlen-utf8"}, {"name": "crc32c"}]
    _describe(folder, [len(names)], [len(names)], "string", "", codecs, [folder.name])
    _write_chunk(folder, (0,), b"".join(pieces))


def _describe(
    folder: Path,
    shape: Sequence[int],
    chunk: Sequence[int],
    kind: str,
    fill: Any,
    codecs: Sequence[dict[str, Any]],
    dimensions: Sequence[str],
) -> None:
    write_json(
        folder / "zarr.json",
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": kind,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill,
            "codecs": list(codecs),
            "attributes": {},
            "dimension_names": list(dimensions),
        },
    )


def _tiles(shape: Sequence[int], chunk: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    for number in product(*(range(-(-length // size)) for length, size in zip(shape, chunk, strict=True))):
        yield (
            number,
            tuple(slice(n * size, min((n + 1) * size, length)) for n, size, length in zip(number, chunk, shape, strict=True)),
        )


def _write_chunk(folder: Path, number: tuple[int, ...], raw: bytes) -> None:
    place = folder.joinpath("c", *map(str, number))
    write_whole(place, [raw, int(crc32c.crc32c(raw)).to_bytes(CHECKSUM_BYTES, "little")])
