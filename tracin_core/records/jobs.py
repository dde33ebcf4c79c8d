"""Background jobs: asked for by anyone, done by the workspace's one worker process, remembered in the catalogue.

    queued -> running -> done | failed | cancelled | lost
      ^          |----- queued again when its worker died, was told to end, or lets others go first
      '----------+----- paused: no room on the disk; queued again by the next look once there is

The worker holds an operating-system lock on the workspace for as long as it lives; whoever holds that lock knows that no other
worker is alive, whatever pids and clocks say. So a job found `running` by a new worker lost its old one, and is simply taken up
again: the blocks it had finished are on disk. Should the lock's file be removed by hand, the owner's name still tells a living worker
(`processes`), and a second one takes nothing while the first has a job. A worker that holds the lock but stands still (stopped,
swapped out) is ended by whoever has watched it for a lease: its heartbeat stays what it was, it leaves jobs waiting, or it stands in the
middle of a transaction and lets nobody read. One that awakens sooner goes on.
"""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import filelock

from tracin_core.data.files import write_text, write_whole
from tracin_core.errors import DiskFullError, JobCancelledError, JobFailedError, NotFoundError, WorkspaceError
from tracin_core.records import processes
from tracin_core.records.catalogue import Catalogue
from tracin_core.records.store import digest_of

QUICK: Final = ("inspection",)  # seconds of work, for which somebody waits: they go before what is queued
LAST: Final = "(SELECT COALESCE(MAX(position), 0) + 1 FROM job)"
FIRST: Final = f"COALESCE((SELECT MIN(position) - 0.5 FROM job WHERE state = 'queued' AND kind NOT IN {(*QUICK, '')}), {LAST})"
LIVE: Final = ("queued", "running")
# A worker's threads sleep while they wait for each other. Spinning ones take the core that the last of them needs on a shared machine: with
# one of two cores busy the demo takes 135 s with them, and 76 s without.
WAITING: Final = {"OMP_WAIT_POLICY": "PASSIVE"}
ENDED: Final = ("done", "failed", "cancelled", "paused", "lost")
STALL_LIMIT: Final = 10
START_SECONDS: Final = 5.0
START_TRIES: Final = 3  # of a worker that ends by itself before it looks for work
SPARE_BYTES: Final = 128 * 2**10  # room for a journal and a few pages of the catalogue
LEASE_SECONDS: Final = 60.0  # a worker beats every few seconds, whatever it computes


@dataclass(frozen=True)
class Job:
    """One row of the job table as it was when read."""

    id: str
    kind: str
    state: str
    title: str
    request: dict[str, Any]
    run_id: str | None
    step: str
    done: int
    total: int
    fraction: float
    eta_seconds: float | None
    error: str | None
    result: dict[str, Any] | None
    created: float
    started: float | None
    finished: float | None
    attempts: int
    cancelling: bool
    who: str = ""  # asked for it; empty where the server asks nobody's name

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> "Job":
        plain = {name: row[name] for name in row.keys() if name in cls.__dataclass_fields__}  # noqa: SIM118
        plain["request"] = json.loads(row["request"])
        plain["result"] = json.loads(row["result"]) if row["result"] else None
        plain["cancelling"] = bool(row["cancel"]) and row["state"] in LIVE
        return cls(**plain)


REQUEUE: Final = "UPDATE job SET state = 'queued', error = NULL, result = NULL, finished = NULL"


def is_busy(failure: WorkspaceError) -> bool:
    """Somebody has held the catalogue for as long as one waits for it."""
    return getattr(failure.__cause__, "sqlite_errorname", "").startswith("SQLITE_BUSY")


class JobQueue:
    """The jobs of one workspace, first come first served."""

    def __init__(self, catalogue: Catalogue, root: Path) -> None:
        self.catalogue = catalogue
        self.root = root
        self._started: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._tries: list[subprocess.Popen[bytes]] = []  # workers started here since one served
        self._sign_of_life: tuple[object, ...] = ()
        self._seen_at = 0.0
        self._spare = root / "jobs" / ".spare"
        # the name of the worker that served last; not in the lock, which each look empties
        self._serving = root / "jobs" / ".worker"
        self._signed = ""

    def submit(self, kind: str, request: dict[str, Any], *, title: str, run_id: str | None = None, who: str = "") -> Job:
        """The job is in the catalogue and a worker is on its way; a live job with the same request is returned as it is, whoever
        asked for it first, and a paused one is tried again."""
        digest = digest_of([kind, request])
        with suppress(OSError, DiskFullError):  # a worker will say so
            self.keep_spare()
        try:
            job_id = self._enter(kind, request, digest, title, run_id, who)
        except WorkspaceError as failure:
            if is_busy(failure):  # a worker that stands still while it reads keeps others from writing
                self._end_if_overdue(None, "busy")
            raise
        self.ensure_worker()
        return self.get(job_id)

    def _enter(self, kind: str, request: dict[str, Any], digest: str, title: str, run_id: str | None, who: str) -> str:
        """The id of the job that does this, queued if it was not or was paused."""
        with self.catalogue.transaction() as connection:
            row = connection.execute(
                "SELECT id FROM job WHERE request_digest = ? AND state IN ('queued', 'running', 'paused') AND cancel = 0",
                (digest,),
            ).fetchone()
            if row is None:
                job_id = uuid.uuid4().hex[:12]
                connection.execute(
                    "INSERT INTO job (id, kind, state, title, request, request_digest, run_id, who, created, position) "
                    "VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?, " + (FIRST if kind in QUICK else LAST) + ")",
                    (job_id, kind, title, json.dumps(request), digest, run_id, who, time.time()),
                )
            else:
                job_id = row["id"]
                connection.execute(f"{REQUEUE} WHERE id = ? AND state = 'paused'", (job_id,))
        return str(job_id)

    def get(self, job_id: str) -> Job:
        """The job as it is now."""
        rows = self.catalogue.read("SELECT * FROM job WHERE id = ?", (job_id,))
        if not rows:
            raise NotFoundError(f"There is no job '{job_id}' in this workspace; choose one from the list of jobs.")
        return Job.from_row(rows[0])

    def all(self, limit: int = 50) -> list[Job]:
        """The most recent jobs, newest first."""
        rows = self.catalogue.read("SELECT * FROM job ORDER BY created DESC LIMIT ?", (limit,))
        return [Job.from_row(row) for row in rows]

    def cancel(self, job_id: str) -> Job:
        """The job ends before its next block; what it finished is kept."""
        with self.catalogue.transaction() as connection:
            connection.execute(
                "UPDATE job SET state = 'cancelled', finished = ? WHERE id = ? AND state IN ('queued', 'paused')",
                (time.time(), job_id),
            )
            connection.execute("UPDATE job SET cancel = 1 WHERE id = ? AND state = 'running'", (job_id,))
        return self.get(job_id)

    def resume(self, job_id: str) -> Job:
        """An ended job is queued again and takes up where it was."""
        with self.catalogue.transaction() as connection:
            connection.execute(
                f"{REQUEUE}, cancel = 0, stalls = 0 WHERE id = ? AND state IN ('failed', 'cancelled', 'paused', 'lost')", (job_id,)
            )
        self.ensure_worker()
        return self.get(job_id)

    def wait(self, job_id: str, *, on_change: Callable[[Job], None] | None = None, every: float = 0.1) -> Job:
        """The job once it is done; a worker that dies meanwhile is replaced.

        Raises:
            JobCancelledError, JobFailedError: it ended otherwise; the message is the job's own.
        """
        while True:
            job = self._seen(job_id)
            if on_change is not None:
                on_change(job)
            if job.state == "done":
                return job
            if job.state == "cancelled":
                raise JobCancelledError(f"'{job.title}' was cancelled; resume job {job.id} to go on from the finished blocks.")
            if job.state in ENDED:
                raise JobFailedError(job.error or f"'{job.title}' ended as '{job.state}' without a message; see its log.")
            time.sleep(every)

    def _seen(self, job_id: str) -> Job:
        """The job as it is now, looked after; somebody who holds the catalogue is waited for, until it cannot be a worker that lives.

        Raises:
            WorkspaceError: the catalogue cannot be read.
        """
        end = time.monotonic() + 2 * LEASE_SECONDS
        while True:
            try:
                self.ensure_worker()
                return self.get(job_id)
            except WorkspaceError as failure:
                if not is_busy(failure) or time.monotonic() > end:
                    raise

    def log_path(self, job_id: str) -> Path:
        return self.root / "jobs" / f"{job_id}.log"

    def log(self, job_id: str, last: int = 200) -> list[str]:
        """The last lines of the job's log."""
        try:
            return self.log_path(job_id).read_text(encoding="utf-8").splitlines()[-last:]
        except FileNotFoundError:
            return []

    # ---- the worker process -------------------------------------------------------------------------------------------------

    def worker_lock(self) -> filelock.FileLock:
        """Held by the living worker; released by the operating system however it ends."""
        return filelock.FileLock(self.root / ".worker.lock", timeout=0)

    def worker_is_alive(self) -> bool:
        try:
            with self.worker_lock():
                return False
        except filelock.Timeout:
            return True

    def ensure_worker(self) -> None:
        """If there is work and no worker that lives, one is started, detached from this process; paused jobs go on if there is room."""
        try:
            self.wake_paused()
            work = self.catalogue.read(
                "SELECT id, owner, beat, attempts FROM job WHERE state IN ('queued', 'running') "
                "ORDER BY state DESC, position LIMIT 1"
            )
        except WorkspaceError as failure:
            if is_busy(failure):
                self._end_if_overdue(None, "busy")
            raise
        if not work:
            return
        starting = self._started is not None and self._started.poll() is None
        if starting and time.monotonic() - self._started_at < START_SECONDS:
            return
        if self.worker_is_alive():
            self._end_if_overdue(work[0]["owner"], *work[0])
            return
        if self._fail_unstartable():
            return
        log = self.root / "jobs" / "worker.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._started = subprocess.Popen(
                [sys.executable, "-m", "tracin_core.worker", str(self.root)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=Path(__file__).resolve().parents[2],
                env={**WAITING, **os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            )
        self._started_at = time.monotonic()
        self._tries.append(self._started)

    def _fail_unstartable(self) -> bool:
        """Workers that were started here end by themselves before they look for work: no more are; after a while the waiting jobs fail.

        A while, because another process' worker may be on its way, which holds the lock once it has imported what it needs.
        """
        codes = [process.poll() for process in self._tries]
        served = self._last_worker() or ""
        if any(code is not None and code <= 0 for code in codes) or any(f":{process.pid}:" in served for process in self._tries):
            self._tries.clear()
            return False
        if sum(code is not None for code in codes) < START_TRIES:
            return False
        if time.monotonic() - self._started_at < START_SECONDS or self.worker_is_alive():
            return True
        self._tries.clear()
        said = (self.root / "jobs" / "worker.log").read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
        # whoever reads it need not know where things lie here
        said = re.sub(r"\s*\(?(/[^\s/()]+){2,}\)?", "", said)[:300].rstrip(".")
        error = (
            f"The worker process cannot start with {Path(sys.executable).name} (exit code {codes[-1]}): {said}. Mend that, for "
            f"instance by 'make setup', then try again; jobs/worker.log in the workspace holds all of it."
        )
        with self.catalogue.transaction() as connection:
            waiting = connection.execute("SELECT id, owner FROM job WHERE state IN ('queued', 'running')").fetchall()
            connection.executemany(
                "UPDATE job SET state = 'failed', error = ?, finished = ? WHERE id = ?",
                [(error, time.time(), row["id"]) for row in waiting if not processes.lives(row["owner"])],
            )
        return True

    def _end_if_overdue(self, owner: str | None, *sign_of_life: object) -> None:
        """A worker whose signs of life are the same for a lease, by this process's own clock, is ended: the next look starts another."""
        now = time.monotonic()
        if sign_of_life != self._sign_of_life:
            self._sign_of_life, self._seen_at = sign_of_life, now
        elif now - self._seen_at > LEASE_SECONDS:
            for name in (owner, self._last_worker()):
                processes.kill(name)

    def _last_worker(self) -> str | None:
        try:
            return self._serving.read_text(encoding="utf-8")
        except OSError:
            return None

    def _sign(self, owner: str) -> None:
        """Whoever watches this worker knows its name, also while it has no job."""
        if owner != self._signed:
            with suppress(OSError, DiskFullError):
                write_text(self._serving, owner)
                self._signed = owner

    def wake_paused(self) -> None:
        """Paused jobs for which the disk has room by now are queued again."""
        for row in self.catalogue.read("SELECT id, result FROM job WHERE state = 'paused'"):
            needed = int(json.loads(row["result"] or "{}").get("bytes_needed", 0))
            if self.free_bytes() < needed:
                continue
            with self.catalogue.transaction() as connection:
                connection.execute(f"{REQUEUE} WHERE id = ? AND state = 'paused'", (row["id"],))

    def keep_spare(self) -> None:
        """A little room is set aside, so that on a full disk it can still be written down that it is full.

        Raises:
            DiskFullError: it is.
        """
        if not self._spare.exists():
            write_whole(self._spare, [bytes(SPARE_BYTES)])

    def use_spare(self) -> None:
        """The room that was set aside is free."""
        with suppress(OSError):
            self._spare.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Room on the workspace's disk, as this user may fill it."""
        return shutil.disk_usage(self.root).free

    # ---- called by the worker only ------------------------------------------------------------------------------------------

    def claim(self, owner: str) -> Job | None:
        """The next job is running and belongs to this owner, heartbeat included; None if there is nothing to do.

        A job whose worker died is queued again where it was. While another worker that lives has one, there is nothing to do.
        """
        self._sign(owner)
        if not self.catalogue.read("SELECT 1 FROM job WHERE state IN ('queued', 'running') LIMIT 1"):
            return None
        now = time.time()
        with self.catalogue.transaction() as connection:
            for row in connection.execute("SELECT id, owner FROM job WHERE state = 'running'").fetchall():
                if row["owner"] != owner and processes.lives(row["owner"]):
                    return None
                self._take_from_dead(connection, row["id"])
            row = connection.execute("SELECT id FROM job WHERE state = 'queued' ORDER BY position, created LIMIT 1").fetchone()
            if row is None:
                return None
            connection.execute(
                "UPDATE job SET state = 'running', owner = ?, beat = ?, started = COALESCE(started, ?), attempts = attempts + 1 "
                "WHERE id = ?",
                (owner, now, now, row["id"]),
            )
        return self.get(row["id"])

    def _take_from_dead(self, connection: sqlite3.Connection, job_id: str) -> None:
        """The job is queued again, unless its workers died again and again without finishing a step, or it was being cancelled."""
        connection.execute(
            "UPDATE job SET state = 'lost', finished = ?, error = ? WHERE id = ? AND stalls >= ?",
            (
                time.time(),
                f"The worker process ended {STALL_LIMIT} times in a row without finishing a step: it was probably short of "
                f"memory. Choose a smaller batch size, or free memory, then resume.",
                job_id,
                STALL_LIMIT,
            ),
        )
        connection.execute(
            "UPDATE job SET state = 'cancelled', cancel = 0, finished = ? WHERE id = ? AND state = 'running' AND cancel = 1",
            (time.time(), job_id),
        )
        connection.execute("UPDATE job SET state = 'queued', stalls = stalls + 1 WHERE id = ? AND state = 'running'", (job_id,))

    def step_back(self, job_id: str, owner: str) -> None:
        """The job waits behind all others: it has nothing to do for now."""
        with self.catalogue.transaction() as connection:
            connection.execute(
                "UPDATE job SET state = 'queued', attempts = attempts - 1, position = (SELECT MAX(position) + 1 FROM job) "
                "WHERE id = ? AND owner = ? AND state = 'running'",
                (job_id, owner),
            )

    def any_paused(self) -> bool:
        """Some job waits for room; those for which there is some are queued again by this look."""
        self.wake_paused()
        return bool(self.catalogue.read("SELECT 1 FROM job WHERE state = 'paused' LIMIT 1"))

    def others_wait(self) -> bool:
        """Somebody waits for the worker."""
        return bool(self.catalogue.read("SELECT 1 FROM job WHERE state = 'queued' LIMIT 1"))

    def beat(self, job_id: str, owner: str, **progress: object) -> bool:
        """Progress and heartbeat are stored; True if the job should go on (not cancelled, still this owner's)."""
        columns = "".join(f", {name} = ?" for name in progress)
        with self.catalogue.transaction() as connection:
            connection.execute(
                f"UPDATE job SET beat = ?{columns} WHERE id = ? AND owner = ? AND state = 'running'",
                (time.time(), *progress.values(), job_id, owner),
            )
            row = connection.execute("SELECT cancel, owner, state FROM job WHERE id = ?", (job_id,)).fetchone()
        return bool(row is not None and not row["cancel"] and row["owner"] == owner and row["state"] == "running")

    def belongs_to(self, job_id: str, owner: str) -> bool:
        """This owner has the job, running."""
        return bool(self.catalogue.read("SELECT 1 FROM job WHERE id = ? AND owner = ? AND state = 'running'", (job_id, owner)))

    def finish(
        self, job_id: str, owner: str, state: str, *, error: str | None = None, result: dict[str, Any] | None = None
    ) -> None:
        """The job has ended (or is queued again); nothing happens if it belongs to another owner by now."""
        with self.catalogue.transaction() as connection:
            connection.execute(
                "UPDATE job SET state = ?, error = ?, result = ?, finished = ?, eta_seconds = NULL, "
                "cancel = CASE WHEN ? = 'queued' THEN cancel ELSE 0 END WHERE id = ? AND owner = ? AND state = 'running'",
                (
                    state,
                    error,
                    json.dumps(result) if result is not None else None,
                    None if state == "queued" else time.time(),
                    state,
                    job_id,
                    owner,
                ),
            )
