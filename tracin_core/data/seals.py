"""Checksums inside files whose format has none, so that damage shows: each bit of such a file counts.

A sealed JSON file is `{"sha256": ..., "value": ...}`, as `write_json` lays it out; the digest is of the value so laid out. A sealed WAV
file ends with a chunk `c32c`, which players pass over: the CRC32C of all bytes before that chunk. A sealed text ends with a line that
says it. PNG brings a checksum per chunk.
"""

import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any, Final

import crc32c

from tracin_core.data.files import json_text, read_json, write_json
from tracin_core.errors import DamagedBlockError

KEYS: Final = {"sha256", "value"}
PNG: Final = b"\x89PNG\r\n\x1a\n"
TAIL: Final = struct.Struct("<4sII")  # of a WAV file: the chunk's name, the length of what follows, the CRC32C
TAIL_NAME, TAIL_LENGTH = b"c32c", 4
LINE: Final = "crc32c "


def write_sealed(path: Path, value: Any) -> None:
    """The file holds this value as JSON, and its digest."""
    write_json(path, sealed(value))


def read_sealed(path: Path, remedy: str) -> Any:
    """The value of a sealed JSON file; one that was written before there were seals is taken as it is.

    Args:
        remedy: what to do about a damaged one, as the end of a sentence.

    Raises:
        DamagedBlockError: the file is not as it was sealed.
    """
    reason = json_damage(path)
    if reason:
        raise DamagedBlockError(f"'{path.name}' {reason}; {remedy}")
    said = read_json(path)
    return said if reason is None else said["value"]


def sealed(value: Any) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(json_text(value).encode()).hexdigest(), "value": value}


def json_damage(path: Path) -> str | None:
    """What is wrong with a sealed JSON file, as the rest of a sentence; empty if it is as it was sealed, None if it has no seal."""
    raw = path.read_bytes()
    try:
        said = read_json(path)
    except ValueError as failure:
        return f"cannot be read ({' '.join(str(failure).split())})"
    if isinstance(said, dict) and said and not KEYS & said.keys():  # a flipped bit hides one of the two, not both
        return None
    if not isinstance(said, dict) or said.keys() != KEYS:
        return "is no sealed file"
    return "" if json_text(sealed(said["value"])).encode() == raw else "is not as it was sealed"


def sealed_wav(raw: bytes) -> bytes:
    """The same WAV file with its checksum at its end."""
    length = len(raw) - 8 + TAIL.size  # RIFF counts what follows its own eight bytes
    body = raw[:4] + struct.pack("<I", length) + raw[8:]
    return body + TAIL.pack(TAIL_NAME, TAIL_LENGTH, int(crc32c.crc32c(body)))


def wav_damage(raw: bytes) -> str | None:
    """What is wrong with a WAV file, as the rest of a sentence; empty if it is as it was sealed, None if it has no seal.

    One without is whole in its form and ends with its sound: a single flipped bit makes no sealed file look so.
    """
    if len(raw) < TAIL.size:
        return "is cut off"
    found = int(crc32c.crc32c(raw[: -TAIL.size]))
    if TAIL.unpack(raw[-TAIL.size :]) == (TAIL_NAME, TAIL_LENGTH, found):
        return ""
    told = struct.unpack("<I", raw[4:8])[0]
    if raw[:4] == b"RIFF" and told == len(raw) - 8 and last_chunk(raw) == b"data":
        return None
    return f"has checksum {found:08x}, which is not what was written"


def last_chunk(raw: bytes) -> bytes:
    """The name of a RIFF file's last chunk; empty if its chunks do not fill it."""
    name, at = b"", 12
    while at + 8 <= len(raw):
        name, length = struct.unpack("<4sI", raw[at : at + 8])
        at += 8 + length + length % 2
    return name if at == len(raw) else b""


def sealed_text(text: str) -> str:
    """The text, which ends with a line break, and a line with its checksum."""
    return f"{text}{LINE}{int(crc32c.crc32c(text.encode())):08x}\n"


def unsealed_text(text: str) -> str:
    """The text as it was before it was sealed; as it is where it was not."""
    before, line, _ = text.rpartition(LINE)
    return before if line else text


def text_damage(raw: bytes) -> str | None:
    """What is wrong with a text, as the rest of a sentence; empty if it is as it was sealed, None if it has no seal.

    What ends with a line break, and nowhere near its end with what a seal begins with, had none.
    """
    length = len(LINE) + 9
    body, last = raw[:-length], raw[-length:]
    if last == f"{LINE}{int(crc32c.crc32c(body)):08x}\n".encode():
        return ""
    alike = sum(here == there for here, there in zip(last, LINE.encode(), strict=False))
    if raw.endswith(b"\n") and alike < len(LINE) - 1 and LINE.encode() not in raw[-2 * length :]:
        return None
    return "is not as it was sealed"


def png_damage(raw: bytes) -> str:
    """What is wrong with a PNG file, as the rest of a sentence; empty if each part's checksum is right and nothing follows the last."""
    if raw[: len(PNG)] != PNG:
        return "does not begin as a picture does"
    at, name = len(PNG), b""
    while at + 12 <= len(raw):
        length, name = struct.unpack(">I4s", raw[at : at + 8])
        body, stored = raw[at + 4 : at + 8 + length], raw[at + 8 + length : at + 12 + length]
        if zlib.crc32(body).to_bytes(4, "big") != stored:
            return f"has a wrong checksum in its part {name!r}"
        at += 12 + length
    return "" if at == len(raw) and name == b"IEND" else "is cut off, or goes on after its end"
