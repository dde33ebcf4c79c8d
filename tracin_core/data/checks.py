"""What every reader asks of files, names and values, said once.

Folders are walked without leaving them, files are opened only if they are regular, names and ids can be shown and listed, and a message
never repeats more of a hostile name than fits into a sentence.
"""

import math
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import psutil

from tracin_core.errors import DataError, UnknownSampleError, UnreadableSampleError

MOST_FILES: Final = 500_000  # a walk of 1 s; more is no data set but somebody's whole disk
LONGEST_ID: Final = 200
LONGEST_SHOWN: Final = 80
RESERVED: Final = frozenset(  # columns that the product writes
    {
        "id",
        "target",
        "path",
        "label",
        "label_name",
        "angle",
        "digest",
        "group",
        "score",
        "percentile",
        "multiplicity",
        "first",
        "second",
    }
)

Inputs = npt.NDArray[np.float32] | npt.NDArray[np.int64]


class LeftOut(NamedTuple):
    """Something in the data that is not part of it, and why."""

    name: str
    reason: str


def shown(text: object) -> str:
    """The text as it can stand in a sentence: printable, and not longer than a line."""
    letters = "".join(letter if letter.isprintable() else "?" for letter in str(text))
    return letters if len(letters) <= LONGEST_SHOWN else f"{letters[: LONGEST_SHOWN - 3]}..."


# ---- folders and files ------------------------------------------------------------------------------------------------------


def files_below(root: Path) -> tuple[list[str], list[LeftOut]]:
    """Relative paths of the regular files below a folder, sorted, and what is none or cannot be named. No file is opened.

    Links to files inside the folder are followed, links to folders are not.

    Raises:
        DataError: the folder is not there or has too many files, or a link in it leads out of it.
    """
    if not root.is_dir():
        raise DataError(f"The data folder '{shown(root.name)}' does not exist; choose the folder that holds the samples.")
    base = os.path.realpath(root)
    files: list[str] = []
    left_out: list[LeftOut] = []
    for folder, names, here in os.walk(base, onerror=_refuse_folder):
        linked = [name for name in names if os.path.islink(os.path.join(folder, name))]
        for name in (*here, *linked):
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, base)
            reason = _unusable(path, relative, base)
            if reason is None:
                files.append(relative)
            else:
                left_out.append(LeftOut(shown(relative), reason))
        if len(files) + len(left_out) > MOST_FILES:
            raise DataError(
                f"The data folder '{shown(root.name)}' has more than {MOST_FILES:,} files; choose the folder that holds the samples only."
            )
    return sorted(files), sorted(left_out)


def _refuse_folder(failure: OSError) -> None:
    raise DataError(
        f"The folder '{shown(os.path.basename(failure.filename))}' cannot be listed ({failure.strerror}); give this server the right "
        f"to read it, or move it away."
    ) from failure


def _unusable(path: str, relative: str, base: str) -> str | None:
    """Why this file is left out; None if it is not."""
    target = os.path.realpath(path)
    if os.path.commonpath([target, base]) != base:
        raise DataError(
            f"'{shown(relative)}' is a link that leads out of the data folder; copy what it points to into the folder, or remove the link."
        )
    if not relative.isprintable():
        return "its name has characters that cannot be shown"
    if os.path.isdir(target):
        return "it is a link to a folder"
    return None if os.path.isfile(target) else "it is no regular file"


def open_regular(path: Path, *, largest: int, root: Path | None = None) -> BinaryIO:
    """The file, open for reading; never a device, a pipe, or a file that a link outside of the root stands for.

    Raises:
        UnreadableSampleError: it cannot be opened, is no regular file, is empty, or is larger than `largest` bytes.
    """
    name = shown(path.name)
    try:
        target = os.path.realpath(path)
        if root is not None and os.path.commonpath([target, base := os.path.realpath(root)]) != base:
            raise UnreadableSampleError(f"'{name}' leads out of the data folder; copy the file itself into the folder.")
        # a link that was put there since `realpath` looked is not followed, and a pipe does not block
        handle = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as failure:
        reason = getattr(failure, "strerror", None) or failure
        raise UnreadableSampleError(
            f"'{name}' cannot be opened ({shown(reason)}); check that it is there and readable."
        ) from failure
    status = os.fstat(handle)
    told = ""
    if not stat.S_ISREG(status.st_mode):
        told = "is no regular file; name the file that holds the samples"
    elif status.st_size == 0:
        told = "is empty; write it again, or move it away"
    elif status.st_size > largest:
        told = f"has {status.st_size:,} bytes, more than the {largest:,} that are read; make it smaller, or write a plugin"
    if told:
        os.close(handle)
        raise UnreadableSampleError(f"'{name}' {told}.")
    return os.fdopen(handle, "rb")


# ---- tables of samples ------------------------------------------------------------------------------------------------------


def checked_ids(ids: Sequence[str], where: str) -> list[str]:
    """The ids, each of which can be shown in a page and listed in a line of a file.

    Raises:
        DataError: an id is empty, too long, not printable, begins as a comment does, or stands twice.
    """
    for row, name in enumerate(ids):
        if not name or name != name.strip() or not name.isprintable() or name.startswith("#") or len(name) > LONGEST_ID:
            raise DataError(
                f"The id '{shown(name)}' in row {row} of {where} cannot be listed in a file; give ids of 1 to {LONGEST_ID} printable "
                f"characters that neither begin with # nor begin or end with a space."
            )
    twice = pd.Index(ids).duplicated()
    if twice.any():
        raise DataError(f"The id '{shown(ids[int(twice.argmax())])}' stands twice in {where}; give each sample a name of its own.")
    return list(ids)


def row_names(count: int) -> list[str]:
    """Ids for samples that have none: their numbers, which stay theirs when rows are added at the end."""
    return [f"row{number}" for number in range(count)]


def sorted_by_id(samples: pd.DataFrame) -> pd.DataFrame:
    """The samples in the order of their ids: by number where all of them are whole numbers, else as text."""
    numbered = samples["id"].str.fullmatch("[0-9]{1,18}").all()
    return samples.sort_values("id", key=lambda ids: ids.astype("int64") if numbered else ids, kind="stable", ignore_index=True)


def refuse_reserved(names: Iterable[str], where: str) -> None:
    """No metadata has a name that the product gives to columns of its own.

    Raises:
        DataError: names the first one that does.
    """
    for name in names:
        if name in RESERVED:
            raise DataError(
                f"The name '{name}' of a column of {where} is taken by the product ({', '.join(sorted(RESERVED))}); rename the column."
            )


def rows_of(samples: pd.DataFrame, ids: Iterable[str]) -> npt.NDArray[np.int64]:
    """The place of each sample among these ids.

    Raises:
        UnknownSampleError: a sample is not there (any more).
    """
    rows = pd.Index(list(ids)).get_indexer(pd.Index(samples["id"].astype(str)))
    if (rows < 0).any():
        lost = samples["id"].iloc[int((rows < 0).argmax())]
        raise UnknownSampleError(f"The sample '{shown(lost)}' is not in the data any more; list the samples again.")
    return np.asarray(rows, dtype=np.int64)


# ---- values -----------------------------------------------------------------------------------------------------------------


def empty_inputs(count: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Room for this many samples of this shape; see `require_room`."""
    require_room(count, shape)
    return np.empty((count, *shape), dtype=np.float32)


def require_room(count: int, shape: tuple[int, ...]) -> None:
    """There are samples, and they fit into memory as float32.

    Raises:
        DataError: there are none, or they need more memory than is free.
    """
    if not count:
        raise DataError("There is no sample to read; choose a folder or file that has some.")
    needed, free = 4 * count * math.prod(shape), psutil.virtual_memory().available
    if needed > free:
        raise DataError(
            f"{count:,} samples of shape {list(shape)} need {needed / 2**30:.1f} GiB of memory, but {free / 2**30:.1f} GiB are free; "
            f"make them smaller or fewer, or use a machine with more memory."
        )


def refuse_infinite(inputs: Inputs, samples: pd.DataFrame) -> None:
    """Every value is a number.

    Raises:
        UnreadableSampleError: names the first sample that has a value which is none, and the value's place.
    """
    for row, values in enumerate(inputs):
        finite = np.isfinite(values)
        if not finite.all():
            place = [int(at) for at in np.unravel_index(int(np.argmin(finite)), finite.shape)]
            raise UnreadableSampleError(
                f"The sample '{shown(samples['id'].iloc[row])}' holds {values[tuple(place)]} at {place}, which is no number; mend the "
                f"value, or leave the sample out."
            )
