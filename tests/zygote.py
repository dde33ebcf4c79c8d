"""Processes that are ready at once, so that hundreds of them can be killed in a test: a parent that has imported everything forks them.

    python tests/zygote.py TAG        one JSON request a line on stdin; the new process's pid on stdout

A request is [function of this file, arguments]. The processes are as real as any (own session, ended by the kernel), but for three
things: a worker that a client asks for is forked instead of started anew, chunks are small, so that a small run has many blocks, and the
engine's checks of itself, which touch no file, are left out.
TAG is in the environment of everything that is ever started from here, which is how nothing is overlooked.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

CHUNK = 3
MET = 3
ROOT = Path(__file__).resolve().parents[1]
FINE = {"TRACIN_WORKER_IDLE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Zygote:
    """The parent, as a test sees it."""

    def __init__(self, tag: str, **further: str) -> None:
        self.tag = tag
        path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
        environment = {**os.environ, **FINE, "TRACIN_TEST_TAG": tag, "PYTHONPATH": path, **further}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), tag], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def fork(self, function: str, *arguments: object) -> int:
        """The pid of a new process that runs this function."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([function, arguments]), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def run(self, function: str, *arguments: object, seconds: float = 120.0) -> int:
        """The exit code of a process that runs this function; -9 if it was killed by signal 9."""
        pid = self.fork("reported", function, list(arguments), str(self._codes()))
        end = time.monotonic() + seconds
        code = self._codes() / str(pid)
        while not code.exists():
            assert time.monotonic() < end, f"{function} did not end"
            time.sleep(0.005)
        return int(code.read_text() or 0)

    def _codes(self) -> Path:
        folder = (
            Path(f"/dev/shm/zygote-{self.tag}") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir(), f"zygote-{self.tag}")
        )
        folder.mkdir(exist_ok=True)
        return folder

    def living(self) -> list[int]:
        """The processes that come from here and live, but for the parent itself."""
        numbered = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [int(entry.name) for entry in numbered if int(entry.name) != self._process.pid and is_of(entry, self.tag)]

    def end(self) -> None:
        for pid in self.living():
            kill(pid)
        self._process.kill()
        self._process.wait()
        for code in self._codes().iterdir():
            code.unlink()
        self._codes().rmdir()


def is_of(entry: Path, tag: str) -> bool:
    try:
        if (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX":
            return False
        return f"TRACIN_TEST_TAG={tag}".encode() in (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


# ---- what the processes do --------------------------------------------------------------------------------------------------


def worker(workspace: str, idle: str = FINE["TRACIN_WORKER_IDLE"]) -> int:
    """`python -m tracin_core.worker`."""
    from tracin_core.worker import serving

    return serving.main([workspace, "--idle", idle])


def stopping_worker(workspace: str, block: int, locked: bool) -> int:
    """A worker that is stopped, as by SIGSTOP, when it is about to compute that block; if asked, while it holds the catalogue."""
    from tracin_core.worker import kernels

    compute, left = kernels.run_block, [block]

    def stopping(spec: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            with closing(sqlite3.connect(Path(workspace) / "tracin.sqlite3", timeout=30, isolation_level=None)) as connection:
                connection.execute("BEGIN EXCLUSIVE")  # the heartbeat is in no transaction now
                if not locked:
                    connection.execute("ROLLBACK")
                os.kill(os.getpid(), signal.SIGSTOP)
        return compute(spec)

    kernels.run_block = stopping
    return worker(workspace)


def client(workspace: str, recipe: str) -> int:
    """`python -m tracin_core compute-influence`, again until the run is there."""
    from tracin_core import cli

    sys.argv = ["tracin", "compute-influence", "--recipe", recipe, "--workspace", workspace]
    cli.main()
    return 0


def dashboard(workspace: str, lease: float = 60.0) -> int:
    """What the pages ask, all the time; a worker that stands still for so long is ended."""
    from tracin_core.errors import WorkspaceError
    from tracin_core.records import jobs
    from tracin_core.records.workspace import open_workspace

    jobs.LEASE_SECONDS = lease  # type: ignore[misc]
    connect = sqlite3.connect
    sqlite3.connect = lambda *a, **k: connect(*a, **{**k, "timeout": min(k["timeout"], max(lease, 2.0))})  # type: ignore
    place = open_workspace(workspace)
    while True:
        with suppress(WorkspaceError):  # a page says so, and is opened again
            place.jobs()
            place.runs()
        time.sleep(0.2)


def tight_worker(workspace: str) -> int:
    """A worker that leaves no room to others."""
    from tracin_core.records import progress

    progress.RESERVE_BYTES = 0  # type: ignore[misc]
    return worker(workspace)


def notebook(workspace: str, recipe: str, answer: str) -> int:
    """Asks for a look into the files and for the run, waits for all, reads the run."""
    from tracin_core.recipe import Recipe
    from tracin_core.records.workspace import open_workspace

    place, analysis = open_workspace(workspace), Recipe.from_toml(Path(recipe))
    look = place.start_inspection(analysis.checkpoints.folder)
    run = place.compute(analysis)
    accepted = [file["accepted"] for file in (place.queue.wait(look.id).result or {})["files"]]
    Path(answer).write_text(json.dumps([run.id, run.digest, float(run.view().influence().sum()), accepted]))
    return 0


def asked(workspace: str, recipe: str) -> int:
    """The run is asked for, and nobody does it."""
    from tracin_core.recipe import Recipe
    from tracin_core.records import jobs
    from tracin_core.records.workspace import open_workspace

    jobs.JobQueue.ensure_worker = lambda self: None  # type: ignore[method-assign]
    open_workspace(workspace).compute(Recipe.from_toml(Path(recipe)), wait=False)
    return 0


def hindered(workspace: str, kind: int, error: int, number: int) -> int:
    """A worker's work, of which the n-th call of a kind below the workspace fails; MET if there were so many calls.

    Of the kind 0 none fails. `<workspace>.calls` holds how many calls of each kind there were.
    """
    import ctypes

    from tracin_core.errors import TracInError
    from tracin_core.records import processes
    from tracin_core.records.workspace import open_workspace
    from tracin_core.worker import ending, serving

    ending.ROOM_SECONDS = 0.01  # type: ignore[misc]
    failing = ctypes.CDLL(None)
    place = open_workspace(workspace)
    owner = processes.this_process()
    failing.failing_arm(workspace.encode(), kind, error, ctypes.c_long(number))
    try:
        while serving.do_next(place, owner):
            continue
    except TracInError as failure:
        print(f"{type(failure).__name__}: {failure}", file=sys.stderr)
    counts = [failing.failing_calls(of_kind) for of_kind in range(5)]
    Path(workspace).with_suffix(".calls").write_text(json.dumps(counts))
    return MET if failing.failing_seen() else 0


def reported(function: str, arguments: list[Any], codes: str) -> int:
    """Runs the function in a process of its own and writes down how that ended."""
    pid = os.fork()
    if pid == 0:
        os._exit(outcome(globals()[function], arguments))
    _, status = os.waitpid(pid, 0)
    beside = Path(codes) / f".{os.getpid()}"
    beside.write_text(str(os.waitstatus_to_exitcode(status)))
    beside.rename(Path(codes) / str(os.getpid()))
    return 0


# ---- the parent -------------------------------------------------------------------------------------------------------------


class ForkedWorker:
    """Stands for `subprocess.Popen` where a queue starts its worker."""

    def __init__(self, command: list[str], **_: object) -> None:
        self.pid = fork(worker, [command[-1]])

    def poll(self) -> int | None:
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return 0
        return status if pid else None


def fork(function: Any, arguments: list[Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os._exit(outcome(function, arguments))


def outcome(function: Any, arguments: list[Any]) -> int:
    try:
        return int(function(*arguments))
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def prepare() -> None:
    """Everything that takes long to import is here, also what torch imports when it first differentiates."""
    import torch.fx.experimental.symbolic_shapes

    import tracin_core.engine.checkpoints
    import tracin_core.engine.health
    import tracin_core.engine.kernel
    import tracin_core.engine.models
    import tracin_core.worker.computing
    import tracin_core.worker.serving
    from tracin_core import cli, reading
    from tracin_core.records import jobs

    reading.CHUNK_SAMPLES = CHUNK  # type: ignore[misc, attr-defined]
    tracin_core.engine.health.check_model = lambda *_: []  # type: ignore[assignment]
    tracin_core.worker.computing.estimate = lambda *_: "no estimate"
    jobs.subprocess = type("Forking", (), {"Popen": ForkedWorker, "DEVNULL": subprocess.DEVNULL})  # type: ignore[assignment]
    assert cli.app
    assert torch.fx.experimental.symbolic_shapes
    assert threading.active_count() == 1


def main() -> None:
    prepare()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        function, arguments = json.loads(line)
        os.write(answers, f"{fork(globals()[function], arguments)}\n".encode())


if __name__ == "__main__":
    main()
