"""What is wrong with an installation or a workspace, in plain words. It only looks; the file that it tries to write is gone again."""

import os
import platform
import shlex
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import filelock
import psutil

from tracin_core.errors import TracInError
from tracin_core.records.catalogue import Catalogue, catalogue_damage
from tracin_core.records.maintenance import CATALOGUE

OLDEST_PYTHON: Final = (3, 11)
WAL_MENDED: Final = (3, 51, 3)  # below it, racing checkpoints can corrupt a WAL file (sqlite.org/wal.html, "WAL-reset bug")
ROOM: Final = 2 * 2**30  # bytes
STALE_SECONDS: Final = 60.0  # blocks take 1 to 10 s, and a running job beats between them
WRITE_SECONDS: Final = 2.0
NETWORK: Final = (
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ncpfs"),
    *("lustre", "gpfs", "beegfs", "ceph", "gfs", "gfs2", "glusterfs"),
    *("fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.glusterfs"),
)
PINS: Final = Path(__file__).resolve().parents[2] / "requirements.txt"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: whether it is as it should be, and what to do where it is not."""

    name: str
    passed: bool
    detail: str


def examine(root: Path) -> list[Finding]:
    """Everything that the product needs of this machine and of this workspace, looked at once."""
    findings = [python(), packages(PINS), sqlite()]
    if not root.is_dir():
        return [*findings, Finding("workspace", True, f"'{root}' is not there yet; the first command that needs it makes it.")]
    return [*findings, writable(root), file_system(root), room(root), catalogue(root), worker(root)]


# ---- the installation -------------------------------------------------------------------------------------------------------


def python() -> Finding:
    """The interpreter is recent enough."""
    oldest = ".".join(map(str, OLDEST_PYTHON))
    return Finding("python", sys.version_info >= OLDEST_PYTHON, f"Python {platform.python_version()}; {oldest} or newer is needed.")


def packages(pins: Path) -> Finding:
    """Every package is there in the version that the requirements pin: another one can change the last bits of a result."""
    try:
        lines = [line.split("#")[0].strip() for line in pins.read_text(encoding="utf-8").splitlines()]
    except OSError as failure:
        return Finding("packages", False, f"'{pins.name}' cannot be read ({failure.strerror}); get it again with the program.")
    wanted = dict(line.split("==", 1) for line in lines if "==" in line)
    wrong = [
        f"{name} {found or 'is missing'} instead of {pin}" for name, pin in wanted.items() if (found := installed(name)) != pin
    ]
    if wrong:
        return Finding("packages", False, f"{'; '.join(wrong)}. Install them as pinned: scripts/setup")
    return Finding("packages", True, f"All {len(wanted)} packages are as {pins.name} pins them.")


def installed(name: str) -> str:
    """The package's version without the build's local part (2.13.0+cpu is 2.13.0); empty if it is not there."""
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return ""


def sqlite() -> Finding:
    """Which SQLite Python brought; the catalogue does without the mode in which old ones lose data."""
    mended = sqlite3.sqlite_version_info >= WAL_MENDED
    least = ".".join(map(str, WAL_MENDED))
    note = "" if mended else f" Below {least} its WAL mode can corrupt a file; the catalogue does not use that mode."
    return Finding("sqlite", True, f"SQLite {sqlite3.sqlite_version}.{note}")


# ---- the workspace ----------------------------------------------------------------------------------------------------------


def writable(root: Path) -> Finding:
    """A file can be made in the workspace."""
    try:
        with tempfile.NamedTemporaryFile(dir=root, prefix=".doctor."):
            pass
    except OSError as failure:
        return Finding(
            "workspace", False, f"'{root}' cannot be written to ({failure.strerror}); mend its rights, or choose another."
        )
    return Finding("workspace", True, f"'{root}' can be written to.")


def file_system(root: Path, mounts: Callable[[], Iterator[tuple[str, str]]] | None = None) -> Finding:
    """The workspace is on a local disk, on which SQLite's locks hold."""
    real = os.path.realpath(root)
    around = [(place, kind) for place, kind in (mounts or mounted)() if os.path.commonpath([place, real]) == place]
    if not around:
        return Finding("file system", True, "Its type cannot be told here; see that it is a local disk.")
    place, kind = max(around, key=lambda mount: len(mount[0]))
    if kind in NETWORK:
        told = f"'{place}' is a network file system ({kind}), on which SQLite's locks may fail and two workers may run"
        return Finding("file system", False, f"{told}; move the workspace to a local disk.")
    return Finding("file system", True, f"{kind}, a local disk.")


def mounted() -> Iterator[tuple[str, str]]:
    """Where each file system is mounted, and its type."""
    yield from ((partition.mountpoint, partition.fstype) for partition in psutil.disk_partitions(all=True))


def room(root: Path, least: int = ROOM) -> Finding:
    """The disk has room for blocks."""
    free = shutil.disk_usage(root).free
    told = f"{free / 2**30:.1f} GiB are free"
    if free < least:
        return Finding("disk", False, f"{told}; jobs pause when nothing is left: free some space, or see what gc --dry-run lists.")
    return Finding("disk", True, f"{told}.")


def catalogue(root: Path) -> Finding:
    """The catalogue is whole and knows the finished runs."""
    mend = f"restore it: {shlex.join(['python', '-m', 'tracin_core', 'rebuild-catalogue', '--workspace', str(root)])}"
    path = root / CATALOGUE
    on_disk = {folder.parent.name for folder in root.glob("runs/*/run.json")}
    try:
        reason = catalogue_damage(path)
        if reason == "is not there" and not on_disk:
            return Finding("catalogue", True, "There is none yet, and no run; the first command that needs it makes it.")
        if reason:
            return Finding("catalogue", False, f"'{CATALOGUE}' {reason}; {mend}")
        if is_wal(path):
            return Finding("catalogue", False, f"'{CATALOGUE}' was set to WAL mode by another program; {mend}")
        unknown = sorted(on_disk - {row["id"] for row in Catalogue(path, migrate=False).read("SELECT id FROM run")})
    except TracInError as failure:
        return Finding("catalogue", False, str(failure))
    if unknown:
        return Finding(
            "catalogue", False, f"It does not know {len(unknown)} of {len(on_disk)} finished runs ({unknown[0]}); {mend}"
        )
    return Finding("catalogue", True, f"Whole; it knows all {len(on_disk)} finished runs.")


def is_wal(path: Path) -> bool:
    """The file's header asks for WAL mode."""
    with path.open("rb") as file:
        return file.read(20)[18:20] == b"\x02\x02"


def worker(root: Path) -> Finding:
    """Whether a worker serves the workspace, and when the running job last gave a sign of life."""
    alive = worker_is_alive(root)
    state = "A worker is alive" if alive else "No worker is alive"
    if catalogue_damage(root / CATALOGUE):
        return Finding("worker", True, f"{state}; its jobs cannot be read without the catalogue.")
    rows = Catalogue(root / CATALOGUE, migrate=False).read(
        "SELECT id, state, beat FROM job WHERE state IN ('queued', 'running') ORDER BY position"
    )
    running = [row for row in rows if row["state"] == "running"]
    beat = f"; job {running[0]['id']} runs, last heartbeat {time.time() - running[0]['beat']:.0f} s ago" if running else ""
    if rows and not alive:
        return Finding("worker", False, f"{state}{beat}; {len(rows)} jobs wait. Open the dashboard: any look starts a new worker.")
    if running and time.time() - running[0]["beat"] > STALE_SECONDS:
        return Finding("worker", False, f"{state}{beat}: it may hang. See jobs/{running[0]['id']}.log, or cancel the job.")
    return Finding("worker", True, f"{state}{beat}{'' if rows else '; there is nothing to do'}.")


def worker_is_alive(root: Path) -> bool:
    """Somebody holds the lock that the living worker holds."""
    if not (root / ".worker.lock").exists():
        return False
    try:
        with filelock.FileLock(root / ".worker.lock", timeout=0):
            return False
    except filelock.Timeout:
        return True


# ---- readiness --------------------------------------------------------------------------------------------------------------


def readiness(root: Path) -> dict[str, str]:
    """What keeps the workspace from taking and doing work, by what is wrong; empty if it is ready. Takes milliseconds."""
    wrong = {
        "workspace": "" if writable(root).passed else "cannot be written to",
        "catalogue": _unwritable_catalogue(root),
    }
    if not wrong["catalogue"]:
        wrong["worker"] = _silent_worker(root)
    return {name: reason for name, reason in wrong.items() if reason}


def _unwritable_catalogue(root: Path) -> str:
    path = root / CATALOGUE
    if not path.is_file():
        return "is not there"
    try:
        with (
            closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=WRITE_SECONDS)) as connection,
            connection,
        ):
            number = int(connection.execute("PRAGMA user_version").fetchone()[0])
            connection.execute(f"PRAGMA user_version = {number}")  # the page is written, and stays what it was
            connection.execute("SELECT 1 FROM run LIMIT 1")
    except sqlite3.Error as failure:
        return f"cannot be written to ({failure})"
    return ""


def _silent_worker(root: Path) -> str:
    running = Catalogue(root / CATALOGUE, migrate=False).read("SELECT id, beat FROM job WHERE state = 'running' LIMIT 1")
    if not running:
        return ""
    if not worker_is_alive(root):
        return f"is dead, and job {running[0]['id']} runs"
    silent = time.time() - running[0]["beat"]
    return f"gave no sign of life for {silent:.0f} s, and job {running[0]['id']} runs" if silent > STALE_SECONDS else ""
