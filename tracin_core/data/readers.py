"""From files to arrays: one reader for each kind of data. A reader lists samples, reads what the model takes, and writes previews.

None of them executes or unpickles anything, and none needs torch: pages list samples too. Sets of a plugin are read by the engine.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.data.arrays import ArraysReader
from tracin_core.data.checks import Inputs, LeftOut
from tracin_core.data.images import ImagesReader
from tracin_core.data.previews import array_preview
from tracin_core.data.recordings import (
    PREPROCESSING,
    RecordingsReader,
    find_recordings,
    list_recordings,
    preview_png,
    preview_wav,
    read_inputs,
    read_recording,
    spectrogram,
)
from tracin_core.data.tables import TableReader
from tracin_core.errors import DataError
from tracin_core.recipe import DataSection

__all__ = [
    "PREPROCESSING",
    "Inputs",
    "LeftOut",
    "Reader",
    "array_preview",
    "find_recordings",
    "list_recordings",
    "preview_png",
    "preview_wav",
    "read_inputs",
    "read_recording",
    "reader_for",
    "sample_digest",
    "spectrogram",
]


class Reader(Protocol):
    """What the product asks of data, whatever they are."""

    @property
    def preprocessing(self) -> str:
        """Names everything that happens between file and input; part of every cache key."""

    def list(self) -> pd.DataFrame:
        """One row per sample, sorted: `id` (text, unique), `target` (numbers or text), `path` ('' where there is none), then metadata.

        Inputs are not read.

        Raises:
            DataError: what is wrong, with the values and the next step.
        """

    def read(self, samples: pd.DataFrame, progress: Callable[[int], None] | None = None) -> Inputs:
        """What the model takes, in the order of the samples: finite float32, or int64 for tokens; [n, ...].

        Raises:
            UnreadableSampleError: names the first sample that cannot be read.
        """

    def preview(self, sample: pd.Series, values: npt.NDArray[Any], stem: Path) -> None:
        """`<stem>.png` (a picture), `<stem>.wav` (sound) and `<stem>.txt` (a few lines), those of them that the sample has."""

    def left_out(self) -> Sequence[LeftOut]:
        """What lies in the place of the data and is no part of them, each with the reason."""


READERS: Final[dict[str, Callable[[Any], Reader]]] = {
    "recordings": RecordingsReader,
    "arrays": ArraysReader,
    "images": ImagesReader,
    "table": TableReader,
}


def reader_for(section: DataSection) -> Reader:
    """The reader of this kind of data.

    Raises:
        DataError: data of a plugin, which only the worker reads.
    """
    if section.kind not in READERS:
        raise DataError(
            f"Data of the kind '{section.kind}' are read in the worker only; what can be listed here: {', '.join(READERS)}."
        )
    return READERS[section.kind](section)


def sample_digest(array: npt.NDArray[Any]) -> str:
    """SHA-256 of shape and values, and of the type unless it is float32: the sample's identity in every cache key."""
    plain = array.dtype.kind == "f" and array.dtype.itemsize == 4
    stored = np.ascontiguousarray(array, dtype="<f4" if plain else array.dtype.newbyteorder("<"))
    said = repr(array.shape) if plain else repr((array.shape, stored.dtype.str))
    return hashlib.sha256(said.encode() + stored.tobytes()).hexdigest()[:32]
