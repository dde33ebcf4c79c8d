"""CSV files with a row per sample, read by pandas as text and judged cell by cell: nothing that is no number becomes one."""

import io
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
        cells = read_cells(self.section.file)
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
        numbers = pd.to_numeric(self._cells[name], errors="coerce").notna()
        if numbers.any() and not numbers.all():
            row = int((~numbers).to_numpy().argmax())
            raise DataError(
                f"The column '{shown(name)}' has {int(numbers.sum())} numbers, but '{shown(self._cells[name].iloc[row])}' for the sample "
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
    numbers = pd.to_numeric(cells, errors="coerce")
    told = cells.str.strip() != ""
    coded = cells.str.fullmatch(r"\s*[+-]?0[0-9].*")
    return numbers if bool(told.any()) and bool(numbers[told].notna().all()) and not bool(coded.any()) else cells


def read_cells(path: Path) -> pd.DataFrame:
    """The text of every cell, under the names of the first line.

    Raises:
        UnreadableSampleError: the file is no UTF-8 text, or has NUL bytes.
        DataError: another separator than a comma, a name missing or twice, or rows of different lengths.
    """
    name = shown(path.name)
    with open_regular(path, largest=LARGEST_FILE) as file:
        raw = file.read()
    if b"\0" in raw:
        raise UnreadableSampleError(f"'{name}' has NUL bytes, so it is no text in UTF-8; save it as CSV UTF-8.")
    with readable(path.name):
        cells = pd.read_csv(io.BytesIO(raw), header=None, dtype="str", keep_default_na=False, encoding="utf-8-sig")
    header, cells = cells.iloc[0], cells.iloc[1:].reset_index(drop=True)
    if len(header) == 1 and any(separator in str(header.iloc[0]) for separator in OTHER_SEPARATORS):
        raise DataError(
            f"'{name}' has its columns apart by something other than a comma ('{shown(header.iloc[0])}'); save it with commas."
        )
    cells.columns = pd.Index(checked_names([str(told) for told in header], name))
    if cells.empty:
        raise DataError(f"'{name}' has a header, but no row below it; add the samples.")
    short = cells.isna().any(axis=1).to_numpy()
    if short.any():
        row = int(short.argmax())
        raise DataError(
            f"Row {row} of '{name}' (the first below the header is 0) has {int(cells.iloc[row].notna().sum())} cells, but there are "
            f"{len(header)} columns; write every cell, also empty ones."
        )
    return cells


def checked_names(names: list[str], file: str) -> list[str]:
    """The names of columns, each there once.

    Raises:
        DataError: a name is empty, cannot be shown, or stands twice.
    """
    for place, name in enumerate(names):
        if not name.strip() or not name.isprintable():
            raise DataError(
                f"Column {place + 1} of '{file}' has no name that can be shown ('{shown(name)}'); name it in the first line."
            )
        if name in names[:place]:
            raise DataError(f"The column '{shown(name)}' stands twice in '{file}'; rename one of them.")
    return names
