"""What comes in through the browser: streamed to disk, within limits, under names that are labels, whole or not there at all.

uploads/
    <id>/                   one upload, under the names that its files had; `.upload.json` says who sent it, and when
    .incoming/<id>/         one that is on its way: `owner` is the process that receives it
        files/              what has arrived whole
        part-<n>            what is arriving

An upload becomes visible by one rename. What a dead process left is swept by the next one that starts. Nothing that arrives is ever run or
unpickled; it is read later as files are that lie in any other folder.
"""

import errno
import itertools
import os
import re
import secrets
import shutil
import stat
import struct
import threading
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from tracin_core.data.files import flush_directory, read_json, write_json, write_text
from tracin_core.errors import InputError, NotFoundError
from tracin_core.records import processes

SUFFIXES: Final = (
    *(".pt", ".pth", ".safetensors", ".wav", ".npy", ".npz", ".csv", ".png", ".jpg", ".jpeg", ".zip", ".toml", ".json", ".txt"),
)
ARCHIVES: Final = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")  # inside an archive: refused
UNPACKED: Final = tuple(suffix for suffix in SUFFIXES if suffix not in ARCHIVES)
LITTER: Final = frozenset({"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"})  # operating systems add it by themselves
DEVICES: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no file names on Windows
FORBIDDEN: Final = frozenset('<>:"|?*\\/')
ID: Final = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
NOTE: Final = ".upload.json"

PIECE: Final = 2**20  # bytes read or written at once
NAME_BYTES: Final = 200
DEPTH: Final = 6
RATIO: Final = 10
DIRECTORY_BYTES: Final = 16 * 2**20  # of an archive's table of contents, which is read into memory
OPEN_UPLOADS: Final = 32
IDLE_SECONDS: Final = 600.0
SPARE_ROOM: Final = 2**30  # bytes that stay free on the disk, for what is being computed

UNITS: Final = {"": 1, "B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}


class UploadRefusedError(InputError):
    """Something that was sent is not taken; `status` says why in HTTP's terms."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What this server takes. Set where it is started, never from a browser."""

    file: int  # bytes of one file
    total: int  # bytes of everything that was uploaded and not removed
    files: int  # in one upload


def limits() -> Limits:
    """From `TRACIN_UPLOAD_LIMIT` (2GB), `TRACIN_UPLOAD_TOTAL` (20GB) and `TRACIN_UPLOAD_FILES` (20000).

    Raises:
        InputError: one of them is no size or number.
    """
    return Limits(
        file=size_of("TRACIN_UPLOAD_LIMIT", "2GB"),
        total=size_of("TRACIN_UPLOAD_TOTAL", "20GB"),
        files=size_of("TRACIN_UPLOAD_FILES", "20000"),
    )


def size_of(variable: str, usual: str) -> int:
    """The bytes that an environment variable names: `500MB`, `2GB`, `1000`."""
    told = os.environ.get(variable, "").strip() or usual
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", told.upper())
    if match is None or match[2] in ("K", "M", "G", "T"):
        raise InputError(f"{variable} is '{told[:40]}'; give a number of bytes, or one with KB, MB, GB or TB, as in {usual}.")
    return int(float(match[1]) * UNITS[match[2]])


def in_words(count: int) -> str:
    """So many bytes: `1.5 GB`."""
    unit = next((name for name in ("TB", "GB", "MB", "KB") if count >= UNITS[name]), "")
    return f"{count / UNITS[unit]:.1f} {unit}" if unit else f"{count} bytes"


# ---- names ----------------------------------------------------------------------------------------------------------------------


def safe_path(label: str, suffixes: tuple[str, ...] = SUFFIXES) -> PurePosixPath:
    """The relative path that a sent name stands for, every part of it an ordinary visible file name.

    Raises:
        UploadRefusedError: it is anything else; nothing is repaired, because two names could become one.
    """
    parts = unicodedata.normalize("NFC", label).split("/")
    if len(parts) > DEPTH:
        raise UploadRefusedError(f"'{shown(label)}' lies {len(parts)} folders deep; send at most {DEPTH} levels.")
    for part in parts:
        wrong = fault_of(part)
        if wrong:
            raise UploadRefusedError(f"'{shown(label)}' cannot be a file name here: {wrong}; rename it and send it again.")
    path = PurePosixPath(*parts)
    if path.suffix.lower() not in suffixes:
        raise UploadRefusedError(f"'{shown(label)}' is none of the kinds that are taken ({', '.join(suffixes)}).", 415)
    return path


def fault_of(part: str) -> str:
    """What keeps this from being one part of a path; empty if nothing does."""
    if part in ("", ".", ".."):
        return "a part of it is empty or dots"
    if part[0] in ".~" or part[0].isspace() or part[-1] in ". " or part[-1].isspace():
        return "a part of it begins with a dot, tilde or space, or ends with a dot or space"
    if any(unicodedata.category(sign)[0] == "C" or unicodedata.category(sign) in ("Zl", "Zp") for sign in part):
        return "it holds a sign that cannot be seen"
    if not FORBIDDEN.isdisjoint(part):
        return 'it holds one of < > : " | ? * \\'
    if len(part.encode()) > NAME_BYTES:
        return f"a part of it is longer than {NAME_BYTES} bytes"
    return "it is a device on Windows" if DEVICES.fullmatch(part) else ""


def shown(label: str) -> str:
    """A sent name in a message: short, and with nothing that could hide in it."""
    return "".join(sign if sign.isprintable() else "?" for sign in label[:80])


# ---- what comes in --------------------------------------------------------------------------------------------------------------


@dataclass
class Upload:
    """One that is on its way."""

    id: str
    session: str
    who: str
    folder: Path
    bytes: int = 0
    names: set[str] = field(default_factory=set)
    left_out: list[str] = field(default_factory=list)
    touched: float = field(default_factory=time.monotonic)

    @property
    def files(self) -> Path:
        return self.folder / "files"


class Inbox:
    """The uploads of one workspace. Any number of threads may use it; every limit holds for all of them together."""

    def __init__(self, root: Path, limits: Limits) -> None:
        self.place = root / "uploads"
        self.incoming = self.place / ".incoming"
        self.limits = limits
        self._open: dict[str, Upload] = {}
        self._kept = 0
        self._lock = threading.RLock()
        self._owner = processes.this_process()
        self._numbers = itertools.count()

    def sweep(self) -> list[str]:
        """What processes left that are no more is gone; returns its ids."""
        swept = []
        for folder in sorted(self.incoming.glob("*")) if self.incoming.is_dir() else []:
            if folder.name not in self._open and is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)
                swept.append(folder.name)
        return swept

    def begin(self, session: str, who: str = "", *, lives: Callable[[str], bool] = lambda session: True) -> Upload:
        """An empty upload that this session alone can add to. Those of sessions that no longer live are gone.

        Raises:
            UploadRefusedError: too many are on their way, or there is no room.
        """
        with self._lock:
            for old in list(self._open.values()):
                if not lives(old.session) or time.monotonic() - old.touched > IDLE_SECONDS:
                    self.cancel(old)
            self.sweep()
            if len(self._open) >= OPEN_UPLOADS:
                raise UploadRefusedError(f"{OPEN_UPLOADS} uploads are on their way; wait until one has ended, and try again.", 429)
            self._kept = sum(upload.bytes for upload in kept(self.place))
            self.require_room(0)
            upload_id = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
            upload = Upload(upload_id, session, who, self.incoming / upload_id)
            upload.folder.mkdir(parents=True)
            write_text(upload.folder / "owner", self._owner)
            upload.files.mkdir()
            self._open[upload_id] = upload
        return upload

    def find(self, upload_id: str, session: str) -> Upload:
        """The upload that this session began.

        Raises:
            UploadRefusedError: there is none, or it is another's, which is told apart by nothing.
        """
        upload = self._open.get(upload_id)
        if upload is None or upload.session != session:
            raise UploadRefusedError("This upload is not on its way any more; begin again.", 404)
        upload.touched = time.monotonic()
        return upload

    def receive(self, upload: Upload, label: str, declared: int | None = None) -> "Arrival":
        """A file that arrives piece by piece.

        Args:
            declared: its size in bytes, where the sender told it; checked before anything is read.

        Raises:
            UploadRefusedError: its name or its size is not taken.
        """
        path = safe_path(label)
        with self._lock:
            if len(upload.names) >= self.limits.files:
                raise UploadRefusedError(f"One upload takes at most {self.limits.files} files; send the rest in another.", 413)
            if str(path).casefold() in upload.names:
                raise UploadRefusedError(f"'{shown(label)}' was sent already in this upload; give the files different names.", 409)
            if declared is not None:
                self._require_size(label, declared)
                self.require_room(declared)
            self._require_open(upload)
            upload.names.add(str(path).casefold())
            return Arrival(self, upload, path, upload.folder / f"part-{next(self._numbers)}")

    def take(self, upload: Upload, label: str, so_far: int, more: int) -> None:
        """These bytes more of a file are counted, or refused before they are written."""
        with self._lock:
            self._require_open(upload)
            self._require_size(label, so_far + more)
            self.require_room(more)
            upload.bytes += more
            upload.touched = time.monotonic()

    def give_back(self, upload: Upload, count: int) -> None:
        """These bytes are not there any more; of an upload that was cancelled, nothing is."""
        with self._lock:
            upload.bytes -= count
            if upload.id not in self._open:
                shutil.rmtree(upload.folder, ignore_errors=True)

    @contextmanager
    def placing(self, upload: Upload) -> Iterator[None]:
        """Nobody cancels the upload while something is put into it.

        Raises:
            UploadRefusedError: somebody did before.
        """
        with self._lock:
            self._require_open(upload)
            yield

    def _require_open(self, upload: Upload) -> None:
        if upload.id not in self._open:
            raise UploadRefusedError("This upload was cancelled.", 409)

    def _require_size(self, label: str, count: int) -> None:
        if count > self.limits.file:
            raise UploadRefusedError(
                f"'{shown(label)}' is larger than the {in_words(self.limits.file)} that this server takes per file "
                f"(TRACIN_UPLOAD_LIMIT); put it into a folder that the server reads (TRACIN_ROOTS) instead.",
                413,
            )

    def require_room(self, more: int) -> None:
        """There is room for these bytes, by the limit and on the disk.

        Raises:
            UploadRefusedError: there is not.
        """
        if more > self.free():
            raise UploadRefusedError(
                f"Uploads may take {in_words(self.limits.total)} in all (TRACIN_UPLOAD_TOTAL), and {in_words(max(self.free(), 0))} of it "
                f"are free; remove some that are no longer needed.",
                413,
            )
        self.place.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.place).free - more < SPARE_ROOM:
            raise UploadRefusedError("The server's disk is nearly full; ask whoever runs it to make room.", 507)

    def free(self) -> int:
        """Bytes that may still be sent, by the limit on all uploads."""
        return self.limits.total - self._kept - sum(upload.bytes for upload in self._open.values())

    def finish(self, upload: Upload) -> "Kept":
        """The upload is a folder like any other, under `uploads/`.

        Raises:
            UploadRefusedError: it holds no file; it is gone then.
        """
        with self._lock:
            count = sum(1 for _ in regular_files(upload.files))
            if not count:
                self.cancel(upload)
                raise UploadRefusedError("No file arrived; choose some and try again.")
            note = {"who": upload.who, "created": time.time(), "files": count, "bytes": upload.bytes}
            write_json(upload.files / NOTE, note)
            os.rename(upload.files, self.place / upload.id)
            flush_directory(self.place)
            self._kept += upload.bytes
            self._open.pop(upload.id, None)
            shutil.rmtree(upload.folder, ignore_errors=True)
        return Kept(upload.id, self.place / upload.id, upload.who, count, upload.bytes)

    def cancel(self, upload: Upload) -> None:
        """Nothing of it is left."""
        with self._lock:
            self._open.pop(upload.id, None)
            shutil.rmtree(upload.folder, ignore_errors=True)


class Arrival:
    """One file on its way to the disk. `write` its pieces, then `keep` it, or `drop` it."""

    def __init__(self, inbox: Inbox, upload: Upload, path: PurePosixPath, part: Path) -> None:
        self.inbox, self.upload, self.path, self.part = inbox, upload, path, part
        self.bytes = 0
        self._file: BinaryIO = part.open("xb")

    def write(self, piece: bytes | bytearray) -> None:
        """The piece is on the disk, and counted.

        Raises:
            UploadRefusedError: it would be too much.
        """
        self.inbox.take(self.upload, str(self.path), self.bytes, len(piece))
        self.bytes += len(piece)
        with told_of_a_full_disk():
            self._file.write(piece)

    def keep(self, declared: int | None = None) -> None:
        """The file lies in its place; an archive is unpacked there instead.

        Raises:
            UploadRefusedError: less arrived than was declared, or the archive is not taken.
        """
        try:
            with told_of_a_full_disk():
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            if declared is not None and self.bytes != declared:
                raise UploadRefusedError(
                    f"Only {self.bytes} of {declared} bytes arrived of '{shown(str(self.path))}'; send it again."
                )
            if self.path.suffix.lower() == ".zip":
                self._unpack()
            else:
                with self.inbox.placing(self.upload):
                    make_folders(self.upload.files, self.path)
                    os.link(self.part, self.upload.files / self.path)  # unlike a rename, never over another file
                    self.part.unlink()
        except FileExistsError:
            self.drop()
            raise UploadRefusedError(f"'{shown(str(self.path))}' is there already in this upload.", 409) from None
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Nothing of it is left, and nothing of it counts."""
        self._file.close()
        self.part.unlink(missing_ok=True)
        self.inbox.give_back(self.upload, self.bytes)
        self.upload.names.discard(str(self.path).casefold())
        self.bytes = 0

    def _unpack(self) -> None:
        """The archive's members lie where it would, below a folder of its name unless they share one."""
        beside = self.part.with_name(f"{self.part.name}-unpacked")
        taken = [0]

        def take(name: str, so_far: int, more: int) -> None:
            self.inbox.take(self.upload, name, so_far, more)
            taken[0] += more

        try:
            with told_of_a_full_disk():
                self.upload.left_out += unpack(self.part, beside, self.inbox.limits, take)
            tops = list(beside.iterdir())
            inside = tops[0] if len(tops) == 1 and tops[0].is_dir() else beside
            name = inside.name if inside is not beside else self.path.stem
            with self.inbox.placing(self.upload):
                make_folders(self.upload.files, self.path)
                os.rename(inside, (self.upload.files / self.path).with_name(name))
                self.part.unlink()
            self.inbox.give_back(self.upload, self.bytes)
            self.bytes = taken[0]
        except BaseException as failure:
            self.inbox.give_back(self.upload, taken[0])
            if isinstance(failure, OSError) and failure.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError from failure
            raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def make_folders(root: Path, path: PurePosixPath) -> None:
    """The folders above the path are there, and are folders.

    Raises:
        UploadRefusedError: one of them is a file.
    """
    try:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UploadRefusedError(f"'{shown(str(path))}' would lie in a folder whose name a file has already.", 409) from None


@contextmanager
def told_of_a_full_disk() -> Iterator[None]:
    """A disk without room is told as a refusal."""
    try:
        yield
    except OSError as failure:
        if failure.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UploadRefusedError("The server's disk is full; ask whoever runs it to make room.", 507) from failure
        raise


# ---- archives -------------------------------------------------------------------------------------------------------------------


NO_ARCHIVE: Final = (
    *(zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, EOFError, RuntimeError, ValueError, OverflowError),
    FileExistsError,
)


def unpack(archive: Path, folder: Path, limits: Limits, take: Callable[[str, int, int], None]) -> list[str]:
    """The archive's files lie in the folder, which is made; returns the names that were left out.

    Taken are plain ZIP archives: members stored or deflated, not encrypted, no links, no archives inside, at most 10 times smaller than
    what they hold, each and together. What operating systems add by themselves and kinds that are not taken are left out, and told.

    Args:
        take: called with a name, the bytes so far and the bytes to come before they are written; it may refuse.

    Raises:
        UploadRefusedError: it is anything else; what was written is for the caller to remove.
    """
    try:
        with archive.open("rb") as file:
            members, left_out = contents(file, limits)
            folder.mkdir()
            with zipfile.ZipFile(file) as opened:
                for member, path in members:
                    make_folders(folder, path)
                    _unpack_one(opened, member, folder / path, partial(take, str(path)))
        return left_out
    except NO_ARCHIVE as failure:
        told = " ".join(str(failure).split())[:80] or type(failure).__name__
        raise UploadRefusedError(f"The archive is damaged or no plain ZIP file ({told}); make it again.") from failure


def _unpack_one(opened: zipfile.ZipFile, member: zipfile.ZipInfo, place: Path, take: Callable[[int, int], None]) -> None:
    written = 0
    with opened.open(member) as source, place.open("xb") as target:
        while piece := source.read(PIECE):  # the checksum is compared with the last piece
            take(written, len(piece))
            written += len(piece)
            target.write(piece)
    if written != member.file_size:
        raise UploadRefusedError(f"'{shown(member.filename)}' is not as long as the archive says.")


def contents(file: BinaryIO, limits: Limits) -> tuple[list[tuple[zipfile.ZipInfo, PurePosixPath]], list[str]]:
    """The members that are files and are taken, each with its path, and the names of the others.

    Raises:
        UploadRefusedError: a member is not taken, which makes the whole archive one that is not.
        zipfile.BadZipFile: it is no ZIP archive.
    """
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # what ZipFile itself believes, before it reads the table into memory
    if not end:
        raise zipfile.BadZipFile("it does not end as one")
    if end[5] > DIRECTORY_BYTES:
        raise UploadRefusedError(
            f"The archive's table of contents has {in_words(end[5])}; at most {in_words(DIRECTORY_BYTES)} are read."
        )
    with zipfile.ZipFile(file) as opened:
        infos = opened.infolist()
    if len(infos) > limits.files:
        raise UploadRefusedError(f"The archive holds {len(infos)} files; at most {limits.files} are taken at once.", 413)
    _require_apart(file, infos)
    for info in infos:
        _require_plain(info)
    return _named(infos)


def _named(infos: list[zipfile.ZipInfo]) -> tuple[list[tuple[zipfile.ZipInfo, PurePosixPath]], list[str]]:
    chosen: dict[str, tuple[zipfile.ZipInfo, PurePosixPath]] = {}
    left_out = []
    for info in (info for info in infos if not info.is_dir()):
        litter = not LITTER.isdisjoint(info.filename.split("/"))
        try:
            path = safe_path(info.filename, UNPACKED) if not litter else PurePosixPath()
        except UploadRefusedError as refusal:
            if refusal.status != 415:
                raise
            litter = True
        if litter:
            left_out.append(shown(info.filename))
        elif str(path).casefold() in chosen:
            raise UploadRefusedError(f"The archive holds '{shown(info.filename)}' twice.")
        else:
            chosen[str(path).casefold()] = info, path
    return list(chosen.values()), left_out


def _require_plain(info: zipfile.ZipInfo) -> None:
    """The member is an ordinary file or folder, packed in an ordinary way."""
    name, kind = shown(info.filename), stat.S_IFMT(info.external_attr >> 16)
    if "\0" in info.orig_filename:
        raise UploadRefusedError("A name in the archive holds a NUL.")
    if info.flag_bits & (0x1 | 0x40 | 0x2000):
        raise UploadRefusedError(f"'{name}' in the archive is encrypted; send it unencrypted.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UploadRefusedError(f"'{name}' in the archive is neither stored nor deflated; pack it with an ordinary ZIP program.")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UploadRefusedError(f"'{name}' in the archive is a link or a device; pack the files themselves.")
    if PurePosixPath(info.filename).suffix.lower() in ARCHIVES:
        raise UploadRefusedError(f"'{name}' is an archive inside the archive; unpack it first.")
    if info.file_size > RATIO * info.compress_size:  # so all together hold no more either, for no two share a byte
        raise UploadRefusedError(
            f"'{name}' in the archive holds {in_words(info.file_size)} in {in_words(info.compress_size)}; at most {RATIO} times is taken: "
            f"send it unpacked."
        )


def _require_apart(file: BinaryIO, infos: list[zipfile.ZipInfo]) -> None:
    """No byte of the archive belongs to two members, so that it cannot hold more than it is."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        file.seek(info.header_offset)
        header = file.read(30)
        if len(header) != 30 or info.header_offset < end:
            raise UploadRefusedError(f"'{shown(info.filename)}' shares its place in the archive with another member.")
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        end = info.header_offset + 30 + lengths + info.compress_size


# ---- what is there --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """An upload that arrived whole."""

    id: str
    folder: Path
    who: str
    files: int
    bytes: int


def kept(place: Path) -> list[Kept]:
    """Every upload, newest first; sizes are counted on the disk."""
    found = []
    for folder in sorted(place.iterdir(), reverse=True) if place.is_dir() else []:
        if ID.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            sizes = [path.lstat().st_size for path in regular_files(folder)]
            found.append(Kept(folder.name, folder, _sender(folder), len(sizes), sum(sizes)))
    return found


def _sender(folder: Path) -> str:
    try:
        return str(read_json(folder / NOTE)["who"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def regular_files(folder: Path) -> Iterator[Path]:
    """The sent files below the folder; links are not followed."""
    for here, _, names in os.walk(folder):
        yield from (Path(here) / name for name in names if name != NOTE)


def remove(place: Path, upload_id: str) -> None:
    """The upload is gone, at once for whoever looks.

    Raises:
        NotFoundError: there is none of that id.
    """
    folder = place / upload_id
    if not ID.fullmatch(upload_id) or not folder.is_dir():
        raise NotFoundError(f"There is no upload '{shown(upload_id)}'; choose one from the list.")
    (place / ".incoming").mkdir(exist_ok=True)
    gone = place / ".incoming" / f"{upload_id}.gone"
    os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def is_abandoned(folder: Path) -> bool:
    """Nobody is receiving this any more."""
    try:
        return not processes.lives((folder / "owner").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return folder.name.endswith(".gone") or time.time() - folder.stat().st_mtime > 60
