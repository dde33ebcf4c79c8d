"""The child process that reads checkpoints, watched: what each file costs, and whatever it does beside reading it.

    python -m tests.intake_child     as `python -m tracin_core.engine.checkpoints`; each answer also says `cost`

`standing` is one such child for many requests: most of a child's time is torch's import.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tracin_core.engine import checkpoints

ROOT = Path(__file__).resolve().parents[1]
COMMAND = ("-m", "tests.intake_child")
ACTS = ("os.", "shutil.", "subprocess.", "socket.", "ctypes.dlopen", "pty.", "signal.", "urllib.")  # of `sys.addaudithook`
HARMLESS = ("os.listdir", "os.scandir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Everything but computing and reading that Python notices in this process while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.acts: list[str] = []
        sys.addaudithook(self.notice)

    def notice(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open" and int(arguments[2] or 0) & WRITING:
            self.acts.append(f"opens {arguments[0]!r} for writing")
        elif event.startswith(ACTS) and event not in HARMLESS:
            self.acts.append(event)


def memory(field: str) -> int:
    """Bytes of this field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def watch_answers() -> None:
    """From here on, an answer says what it cost: CPU seconds, bytes above what the process had before, acts."""
    watch, answer_to = Watch(), checkpoints.answer_to

    def answer(path: Path, request: checkpoints.Request) -> dict[str, Any]:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
        before, started = memory("VmRSS"), time.process_time()
        watch.on = True
        answered = answer_to(path, request)
        watch.on = False
        cost = {"seconds": time.process_time() - started, "bytes": memory("VmHWM") - before, "acts": list(watch.acts)}
        watch.acts.clear()
        return {**answered, "cost": cost}

    checkpoints.answer_to = answer


class Standing:
    """A watched child that answers one request after the other, in the place of `checkpoints.child`; `costs` is by file name."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.costs: dict[str, dict[str, Any]] = {}

    @contextmanager
    def child(self, request: dict[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        yield self.answers(request)

    def answers(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps(request)}\n")
        self.process.stdin.flush()
        assert self.line() == {}
        for path in request["paths"]:
            answer = self.line()
            self.costs[Path(path).name] = answer.pop("cost")
            yield answer

    def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        read = self.process.stdout.readline()
        assert read.endswith("\n"), "the child has ended"
        return dict(json.loads(read))


@contextmanager
def standing() -> Iterator[Standing]:
    """The child that is there until the end of the block."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, *COMMAND]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Standing(process)
        finally:
            process.kill()


if __name__ == "__main__":
    strays = {"pandas", "pydantic", "scipy", "sklearn"} & set(sys.modules)
    assert not strays, f"the child needs torch alone, but imports {strays}: each start is slower, and hostile files find more in it"
    watch_answers()
    checkpoints.serve()
