"""Files that are either whole or not there: write beside, flush to disk, rename, flush the directory."""

import errno
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tracin_core.errors import DiskFullError


def write_whole(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """The file holds exactly these bytes, or (after a crash at any instant) what it held before.

    Raises:
        DiskFullError: the file system has no room; nothing was changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        flush_directory(path.parent)
    except OSError as failure:
        Path(beside).unlink(missing_ok=True)
        if failure.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"No room on the disk for '{path.name}'; free some space: finished work is kept, and a paused job goes on by itself."
            ) from failure
        raise


def write_text(path: Path, text: str) -> None:
    """The file holds this text in UTF-8."""
    write_whole(path, [text.encode("utf-8")])


def write_json(path: Path, value: Any) -> None:
    """The file holds this value as indented JSON; NaN and infinity are refused."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """The value as `write_json` lays it out."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """The value in this JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def flush_directory(folder: Path) -> None:
    """A rename inside this folder survives a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
