"""What a running job tells and is told, and the heartbeat of the worker that runs it."""

import os
import select
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from tracin_core.errors import DiskFullError, JobCancelledError, MachineError
from tracin_core.records.events import event_log
from tracin_core.records.jobs import Job, JobQueue
from tracin_core.records.workspace import Workspace

BEAT_SECONDS: Final = 0.25
PULSE_SECONDS: Final = 2.0
END_SECONDS: Final = 8.0  # what the job has left after SIGTERM, of the ten in which the process ends
CANCEL_SECONDS: Final = 20.0  # what a block that does not look has left after its job was cancelled
RESERVE_BYTES: Final = int(os.environ.get("TRACIN_DISK_RESERVE", 256 * 2**20))


class InterruptedJob(Exception):
    """SIGTERM: the job goes back to the queue and this process ends."""


class SteppedBack(Exception):
    """The job has nothing to do for now, and others wait: it goes behind them."""


class TakenOver(SteppedBack):
    """Another worker has the job: this one stood still for so long that it was thought dead."""


class Progress:
    """What a running job tells: its step, how far it is, when it may end. Also where it learns that it should stop."""

    def __init__(self, workspace: Workspace, job: Job, owner: str, weights: dict[str, float]) -> None:
        self.workspace, self.job, self.owner = workspace, job, owner
        self._weights = weights
        self._before = 0.0
        self._step, self._done, self._total = "", 0, 1
        self._started = time.monotonic()
        self._skipped = 0.0
        self._seen: set[str] = set()
        self._last = 0.0
        self._log = event_log(workspace.root).bind(job=job.id, run=job.run_id)
        self.stopping = False
        self.bytes_needed: int | None = None
        self.failures: list[dict[str, Any]] = []

    def step(self, name: str, total: int) -> None:
        """The named step begins; it has so many parts."""
        self._pass()
        self._step, self._done, self._total = name, 0, max(total, 1)
        self.say(f"{name}: {total}")
        self.note("step", step=name, parts=total)
        self._tell(stalls=0)

    def skip(self, *names: str) -> None:
        """What these steps would do is on disk already."""
        self._pass()
        for name in names:
            self._step = name
            self._skipped += self._weight()
            self._pass()

    def _pass(self) -> None:
        self._before += self._weight()
        self._seen.add(self._step)
        self._step = ""

    def _weight(self) -> float:
        """The current step's share; a step that is done a second time is quick and has none."""
        return 0.0 if self._step in self._seen else self._weights.get(self._step, 0.0)

    def advance(self, done: int, total: int | None = None) -> None:
        """So many parts of the step are done.

        Raises:
            JobCancelledError: somebody cancelled the job.
            TakenOver: another worker has it by now.
            InterruptedJob: this process was asked to end.
        """
        self._done, self._total = done, total or self._total
        if time.monotonic() - self._last >= BEAT_SECONDS or self.stopping:
            self._tell()

    def say(self, line: str) -> None:
        """The line is in the job's log, which people read; where it cannot be written, the work goes on and stderr has the line."""
        path = self.workspace.queue.log_path(self.job.id)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as log:
                log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}\n")
        except OSError as failure:
            print(f"job {self.job.id}: {line} (not in its log: {failure.strerror})", file=sys.stderr)

    def note(self, event: str, **facts: object) -> None:
        """The event is in the worker's log, which machines read."""
        self._log.info(event, **facts)

    def set_run(self, run_id: str) -> None:
        """The job is known to make this run."""
        self._log = self._log.bind(run=run_id)
        self._tell(run_id=run_id)

    def require_room(self, need: int, what: str) -> None:
        """The disk has room for so many bytes, and some is left over for the catalogue and for others.

        Raises:
            DiskFullError: it has not: the job pauses before anything is damaged.
        """
        free = self.workspace.queue.free_bytes()
        if free >= need + RESERVE_BYTES:
            return
        self.bytes_needed = need + RESERVE_BYTES
        raise DiskFullError(
            f"The disk has {megabytes(free)} free, but {what} takes {megabytes(need)} and {megabytes(RESERVE_BYTES)} are left for others; "
            f"free some space, and the job goes on by itself."
        )

    def _tell(self, **more: object) -> None:
        if self.stopping:
            raise InterruptedJob
        self._last = time.monotonic()
        fraction = (self._before + self._weight() * self._done / self._total) / sum(self._weights.values())
        going = self.workspace.queue.beat(
            self.job.id,
            self.owner,
            step=self._step,
            done=self._done,
            total=self._total,
            fraction=min(fraction, 1.0),
            eta_seconds=self._remaining(fraction),
            **more,
        )
        if not going and not self.workspace.queue.belongs_to(self.job.id, self.owner):
            self.note("taken_over", step=self._step)
            raise TakenOver
        if not going:
            kept = "resuming trains from the start" if self._step == "training" else "finished blocks are kept"
            raise JobCancelledError(f"'{self.job.title}' was cancelled during '{self._step}'; {kept}.")

    def _remaining(self, fraction: float) -> float | None:
        """Seconds left at the pace so far; None in the first three seconds, when it would be a guess."""
        elapsed = time.monotonic() - self._started
        made = fraction - self._skipped / sum(self._weights.values())
        if elapsed < 3 or made <= 0.02:
            return None
        return elapsed * max(1 - fraction, 0.0) / made


class Pulse(threading.Thread):
    """The worker's heartbeat, whatever its main thread computes; ends the process where that thread does not answer in time.

    A signal reaches this thread at once through a socket: Python's own handlers wait for the end of a long call into torch.
    """

    def __init__(self, queue: JobQueue, owner: str) -> None:
        super().__init__(daemon=True)
        self._queue, self._owner = queue, owner
        self._progress: Progress | None = None
        self._deadline = float("inf")
        self._ear, self._mouth = socket.socketpair()
        self.stopping = False

    def listen(self) -> None:
        """SIGTERM and SIGINT are heard from now on, and the heartbeat begins. Called by the main thread."""
        self._mouth.setblocking(False)
        signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)
        self.start()

    def follow(self, progress: Progress | None) -> None:
        """This job's heart beats from now on; None: there is none."""
        self._progress, self._deadline = progress, float("inf")
        if self.stopping:
            self._stop()

    def run(self) -> None:
        while True:
            if select.select([self._ear], [], [], PULSE_SECONDS)[0] and self._ear.recv(64):
                self._stop()
            with suppress(MachineError):  # no room for a heartbeat: whoever watches it may end this process
                self._beat()
            if time.monotonic() > self._deadline:
                self._leave()

    def _stop(self) -> None:
        self.stopping = True
        self._deadline = min(self._deadline, time.monotonic() + END_SECONDS)
        if self._progress is not None:
            self._progress.stopping = True

    def _beat(self) -> None:
        progress = self._progress
        if progress is not None and not self._queue.beat(progress.job.id, self._owner) and progress is self._progress:
            self._deadline = min(self._deadline, time.monotonic() + CANCEL_SECONDS)

    def _leave(self) -> None:
        """The job is in the catalogue as it should be, and this process has ended: the block in progress is lost."""
        progress = self._progress
        if progress is None and not self.stopping:
            self._deadline = float("inf")
            return
        if progress is not None:
            with suppress(MachineError):
                state = "queued" if self.stopping else "cancelled"
                self._queue.finish(progress.job.id, self._owner, state)
            progress.note("left", state=state, step=progress.job.step)
        os._exit(0)


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
