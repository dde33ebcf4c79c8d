"""Which process an owner's name stands for: `<boot>:<pid>:<start>:<nonce>`.

A pid alone is given to another process sooner or later, and after a reboot to anyone. The start is counted by the kernel from the boot
where /proc tells it, so that a clock that is set does not make a living process another one.
"""

import os
import signal
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

PROC: Final = Path("/proc")
START_FIELD: Final = 19  # of /proc/<pid>/stat behind the name: clock ticks from the boot to the process's start


def this_process() -> str:
    """The name under which this process owns what it works on; each call gives another nonce."""
    return f"{boot_of_machine()}:{os.getpid()}:{start_of(os.getpid())}:{uuid.uuid4().hex[:6]}"


def lives(owner: str | None) -> bool:
    """The named process is still there: same boot, same pid, same start, and not merely waiting to be reaped."""
    if owner is None or owner.count(":") != 3:
        return False
    boot, pid, start, _ = owner.split(":")
    return pid.isdigit() and boot == boot_of_machine() and start_of(int(pid)) == start


def kill(owner: str | None) -> None:
    """The named process has been told to end at once; nobody else's is. One that another user started is left to that user's looks."""
    if owner is not None and lives(owner):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(int(owner.split(":")[1]), signal.SIGKILL)


def boot_of_machine() -> str:
    """Another one after each reboot, and on each machine."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"


def start_of(pid: int) -> str | None:
    """When the process started; None if there is none, or only its remains."""
    if not (PROC / "self").exists():
        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
        except psutil.Error:
            return None
    try:
        fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[START_FIELD]
