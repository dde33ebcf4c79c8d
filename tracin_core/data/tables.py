"""CSV files with a row per sample, parsed by pandas: a column is of numbers if every cell is one, and text as it stands if not."""

import codecs
import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.data.arrays import readable
from tracin_core.data.checks import (
    Inputs,
    LeftOut,
    checked_ids,
    open_regular,
    refuse_reserved,
    row_names,
    rows_of,
    shown,
    sorted_by_id,
)
from tracin_core.data.previews import lines_preview
from tracin_core.errors import DataError, UnreadableSampleError
from tracin_core.recipe import TableData

LARGEST_FILE: Final = 2**28  # the web process reads it
MOST_COLUMNS: Final = 10_000
MOST_CELLS: Final = 2**26
OTHER_SEPARATORS: Final = (";", "\t", "|")


@dataclass
class TableReader:
    """Samples are rows. One reader reads one state of the file, the first time it is asked."""

    section: TableData
    preprocessing: ClassVar[str] = "table-float32-v1"

    def list(self) -> pd.DataFrame:
        """Ids, targets and the columns that are neither: numbers where every cell is one, else text as it stands."""
        cells, used = self._cells, {*self._features, self.section.target, self._named_ids}
        metadata = [name for name in cells.columns if name not in used]
        refuse_reserved(metadata, f"'{shown(self.section.file.name)}'")
        columns = {name: values_of(cells[name]) for name in metadata}
        target = values_of(cells[self.section.target])
        samples = pd.DataFrame({"id": pd.Series(self._ids, dtype="str"), "target": target, "path": "", **columns})
        return samples if self._named_ids is None else sorted_by_id(samples)

    def read(self, samples: pd.DataFrame, progress: Callable[[int], None] | None = None) -> Inputs:
        """[n, features], in the order of the samples and of the columns.

        Raises:
            UnreadableSampleError: names the first column and sample whose cell is no finite number.
        """
        columns = [self._numbers(name) for name in self._features]
        inputs = np.stack(columns, axis=1)[rows_of(samples, self._ids)]
        if progress is not None:
            progress(len(inputs))
        return inputs

    def preview(self, sample: pd.Series, values: npt.NDArray[Any], stem: Path) -> None:
        """`column: value` line by line."""
        lines_preview([f"{name}: {value:.6g}" for name, value in zip(self._features, values, strict=True)], stem)

    def left_out(self) -> Sequence[LeftOut]:
        """Nothing: a column is a feature, the target, the id or metadata."""
        return []

    @cached_property
    def _cells(self) -> pd.DataFrame:
        cells = read_cells(self.section.file, self._stays_text)
        wanted = [
            ("target", self.section.target),
            ("id", self.section.id),
            *(("features", name) for name in self.section.features or ()),
        ]
        for setting, name in wanted:
            if name is not None and name not in cells.columns:
                there = ", ".join(shown(column) for column in cells.columns[:12])
                raise DataError(
                    f"'{shown(self.section.file.name)}' has no column '{shown(name)}' for {setting} (it has {there}); name one of them in "
                    f"the recipe."
                )
        return cells

    def _stays_text(self, name: str) -> bool:
        """Whether pandas may not make numbers of a column: of ids and codes their zeros count."""
        if self.section.features is not None:
            return name not in self.section.features
        return name in (self.section.target, self.section.id or "id")

    @property
    def _named_ids(self) -> str | None:
        return self.section.id or ("id" if "id" in self._cells.columns else None)

    @cached_property
    def _ids(self) -> Sequence[str]:
        """In the order of the rows."""
        if self._named_ids is None:
            return row_names(len(self._cells))
        return checked_ids(self._cells[self._named_ids].tolist(), f"the column '{shown(self._named_ids)}'")

    @cached_property
    def _features(self) -> Sequence[str]:
        """The columns of the recipe, else every column of numbers that is left.

        Raises:
            DataError: a column has numbers in some rows only, so that nobody can tell what it is; or there is no feature.
        """
        if self.section.features is not None:
            return list(self.section.features)
        left = [name for name in self._cells.columns if name not in (self.section.target, self._named_ids)]
        features = [name for name in left if self._is_of_numbers(name)]
        if not features:
            raise DataError(
                f"'{shown(self.section.file.name)}' has no column of numbers beside the target '{shown(self.section.target)}'; name the "
                f"features in the recipe."
            )
        return features

    def _is_of_numbers(self, name: str) -> bool:
        cells = self._cells[name]
        if pd.api.types.is_bool_dtype(cells):
            return False
        numbers = pd.to_numeric(cells, errors="coerce").notna()
        if numbers.any() and not numbers.all():
            row = int((~numbers).to_numpy().argmax())
            raise DataError(
                f"The column '{shown(name)}' has {int(numbers.sum())} numbers, but '{shown(cells.iloc[row])}' for the sample "
                f"'{shown(self._ids[row])}'; mend the cell, or name the features in the recipe (features = [...])."
            )
        return bool(numbers.all())

    def _numbers(self, name: str) -> npt.NDArray[np.float32]:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused
            numbers = pd.to_numeric(self._cells[name], errors="coerce").to_numpy(dtype=np.float64).astype(np.float32)
        finite = np.isfinite(numbers)
        if not finite.all():
            row = int(np.argmin(finite))
            raise UnreadableSampleError(
                f"The column '{shown(name)}' holds '{shown(self._cells[name].iloc[row])}' for the sample '{shown(self._ids[row])}', which "
                f"is no finite number; mend the cell, or leave the column or the row out."
            )
        return numbers


def values_of(cells: pd.Series) -> pd.Series:
    """The cells as numbers if each is one (or, of numbers, missing) and none has a leading zero as codes do; else as they stand."""
    if pd.api.types.is_bool_dtype(cells) or pd.api.types.is_numeric_dtype(cells):
        return cells
    numbers = pd.to_numeric(cells, errors="coerce")
    told = cells.str.strip() != ""
    coded = cells.str.fullmatch(r"\s*[+-]?0[0-9].*")
    return numbers if bool(told.any()) and bool(numbers[told].notna().all()) and not bool(coded.any()) else cells


def read_cells(path: Path, stays_text: Callable[[str], bool]) -> pd.DataFrame:
    """The cells below the names of the first line.

    Raises:
        UnreadableSampleError: the file is no UTF-8 text, or has NUL bytes.
        DataError: another separator than a comma, a name missing or twice, or rows of different lengths.
    """
    name = shown(path.name)
    with open_regular(path, largest=LARGEST_FILE) as file:
        raw = file.read().removeprefix(codecs.BOM_UTF8)
    if b"\0" in raw:
        raise UnreadableSampleError(f"'{name}' has NUL bytes, so it is no text in UTF-8; save it as CSV UTF-8.")
    line, body = [*re.split(rb"\r\n|\r|\n", raw, maxsplit=1), b""][:2]
    cells_in_all = raw.count(b",") + raw.count(b"\n")
    if line.count(b",") >= MOST_COLUMNS or cells_in_all > MOST_CELLS:
        raise DataError(
            f"'{name}' has {line.count(b',') + 1:,} columns and about {cells_in_all:,} cells, but at most {MOST_COLUMNS:,} and "
            f"{MOST_CELLS:,} are read; save arrays in a .npz file instead."
        )
    with readable(path.name):
        names = checked_names(next(csv.reader([line.decode()], strict=True), []), name)
        refuse_ragged(body.decode(), len(names), name)
        text = {place: "str" for place, column in enumerate(names) if stays_text(column)}
        cells = pd.read_csv(io.BytesIO(body), header=None, dtype=text, keep_default_na=False, low_memory=False, encoding="utf-8")
    cells.columns = pd.Index(names)
    return cells


def refuse_ragged(body: str, columns: int, file: str) -> None:
    """There are rows, and each has a cell for every column; pandas would fill short ones up.

    Raises:
        DataError: names the first row that has not.
    """
    count = 0
    for cells in csv.reader(io.StringIO(body, newline=""), strict=True):
        if cells and len(cells) != columns:
            raise DataError(
                f"Row {count} of '{file}' (the first below the header is 0) has {len(cells)} cells, but the header has {columns}; write "
                f"every cell, also empty ones."
            )
        count += bool(cells)
    if not count:
        raise DataError(f"'{file}' has a header, but no row below it; add the samples.")


def checked_names(names: list[str], file: str) -> list[str]:
    """The names of columns, each there once.

    Raises:
        DataError: a name is empty, cannot be shown, or stands twice; or another separator than a comma stands between them.
    """
    if not names:
        raise DataError(f"The first line of '{file}' is empty; write the names of the columns there.")
    if len(names) == 1 and any(separator in names[0] for separator in OTHER_SEPARATORS):
        raise DataError(
            f"'{file}' has its columns apart by something other than a comma ('{shown(names[0])}'); save it with commas."
        )
    known: set[str] = set()
    for place, name in enumerate(names):
        if not name.strip() or not name.isprintable():
            raise DataError(
                f"Column {place + 1} of '{file}' has no name that can be shown ('{shown(name)}'); name it in the first line."
            )
        if name in known:
            raise DataError(f"The column '{shown(name)}' stands twice in '{file}'; rename one of them.")
        known.add(name)
    return names
