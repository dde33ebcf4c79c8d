"""Jobs: asked for by anyone, owned by one worker, never lost."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from lab import stop_worker

from tracin_core.errors import JobCancelledError, JobFailedError, NotFoundError, WorkspaceError
from tracin_core.records import jobs, processes
from tracin_core.records.catalogue import Catalogue
from tracin_core.records.jobs import STALL_LIMIT, JobQueue


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    """A queue whose worker is this test: its lock is held, so that no process is started."""
    queue = JobQueue(Catalogue(tmp_path / "tracin.sqlite3"), tmp_path)
    lock = queue.worker_lock()
    with lock:
        yield queue


def test_jobs_are_done_in_the_order_they_were_asked_for(queue: JobQueue) -> None:
    first = queue.submit("analysis", {"n": 1}, title="first")
    second = queue.submit("analysis", {"n": 2}, title="second")
    claimed = []
    while (job := queue.claim("me")) is not None:
        claimed.append(job.id)
        assert job.state == "running"
        queue.finish(job.id, "me", "done")
    assert claimed == [first.id, second.id]


def test_a_look_into_files_goes_before_what_is_queued(queue: JobQueue) -> None:
    """Somebody waits for it, and it takes seconds."""
    running = queue.submit("retraining", {}, title="an hour")
    assert queue.claim("me") is not None
    waiting = queue.submit("analysis", {"n": 1}, title="waits")
    looks = [queue.submit("inspection", {"n": n}, title="a look") for n in (1, 2)]
    queue.finish(running.id, "me", "done")
    claimed = []
    while (job := queue.claim("me")) is not None:
        claimed.append(job.id)
        queue.finish(job.id, "me", "done")
    assert claimed == [looks[0].id, looks[1].id, waiting.id]


def test_a_worker_of_others_that_is_on_its_way_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three that ended here, in a broken environment, within the seconds that a whole one takes to import what it needs."""
    queue = JobQueue(Catalogue(tmp_path / "tracin.sqlite3"), tmp_path)
    ended = [subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"]) for _ in range(jobs.START_TRIES)]
    for process in ended:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # nobody has asked yet how it ended
    monkeypatch.setattr(queue, "_tries", ended)
    monkeypatch.setattr(queue, "_started_at", time.monotonic())
    job = queue.submit("inspection", {}, title="x")
    assert queue.get(job.id).state == "queued"
    assert queue._tries == ended  # nor is another one started
    monkeypatch.setattr(queue, "_started_at", time.monotonic() - jobs.START_SECONDS)
    with queue.worker_lock():
        queue.ensure_worker()
        assert queue.get(job.id).state == "queued"
    (tmp_path / "jobs").mkdir(exist_ok=True)
    (tmp_path / "jobs" / "worker.log").write_text("ImportError: cannot import name 'x' from 'y' (/home/ada/.venv/lib/y.py)\n")
    queue.ensure_worker()
    assert queue.get(job.id).state == "failed"
    assert "cannot import name 'x' from 'y'. Mend that" in str(queue.get(job.id).error)


def test_asking_twice_for_the_same_work_gives_one_job(queue: JobQueue) -> None:
    assert queue.submit("demo", {"a": 1}, title="x").id == queue.submit("demo", {"a": 1}, title="x").id
    queue.claim("me")
    assert len(queue.all()) == 1
    queue.finish(queue.all()[0].id, "me", "done")
    assert queue.submit("demo", {"a": 1}, title="x").state == "queued"


def test_a_job_whose_worker_died_is_taken_up_again(queue: JobQueue) -> None:
    job = queue.submit("demo", {}, title="x")
    queue.claim("dead")
    again = queue.claim("alive")
    assert again is not None
    assert (again.id, again.attempts) == (job.id, 2)
    assert not queue.beat(job.id, "dead", done=5)
    queue.finish(job.id, "dead", "done")
    assert queue.get(job.id).state == "running"
    assert queue.get(job.id).done == 0


def test_a_job_that_always_ends_its_worker_is_given_up_with_a_sentence(queue: JobQueue) -> None:
    job = queue.submit("demo", {}, title="x")
    for _ in range(STALL_LIMIT + 1):
        assert queue.claim("dead") is not None
    assert queue.claim("dead") is None
    lost = queue.get(job.id)
    assert lost.state == "lost"
    assert "memory" in str(lost.error)
    assert queue.resume(job.id).state == "queued"


def test_a_worker_that_cannot_start_fails_its_jobs_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter without the product's libraries, as after a half-finished installation; with a whole one the job is done."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    queue = JobQueue(Catalogue(tmp_path / "tracin.sqlite3"), tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", str(bare))
        job = queue.submit("inspection", {}, title="x")
        with pytest.raises(
            JobFailedError, match=r"cannot start with python \(exit code 1\): ModuleNotFoundError: No module named"
        ) as caught:
            queue.wait(job.id)
    assert "make setup" in str(caught.value)
    assert str(tmp_path.parent) not in str(caught.value)  # a page shows it
    assert queue.get(job.id).state == "failed"
    queue.resume(job.id)
    with pytest.raises(JobFailedError) as caught:  # of the job's own, by a worker that started: it was asked for nothing
        queue.wait(job.id)
    assert "cannot start" not in str(caught.value)
    stop_worker(SimpleNamespace(root=tmp_path))


def test_a_job_that_gets_on_is_never_given_up(queue: JobQueue) -> None:
    job = queue.submit("demo", {}, title="x")
    for _ in range(3 * STALL_LIMIT):
        assert queue.claim("dead") is not None
        queue.beat(job.id, "dead", stalls=0)
    assert queue.get(job.id).state == "running"


def test_cancelling(queue: JobQueue) -> None:
    waiting = queue.submit("demo", {"n": 1}, title="waiting")
    assert queue.cancel(waiting.id).state == "cancelled"
    running = queue.submit("demo", {"n": 2}, title="running")
    queue.claim("me")
    assert queue.cancel(running.id).cancelling
    assert not queue.beat(running.id, "me", done=1)
    queue.finish(running.id, "me", "cancelled")
    with pytest.raises(JobCancelledError, match="running"):
        queue.wait(running.id)
    resumed = queue.resume(running.id)
    assert (resumed.state, resumed.cancelling) == ("queued", False)


def test_waiting_tells_how_it_ended(queue: JobQueue) -> None:
    job = queue.submit("demo", {}, title="x")
    queue.claim("me")
    queue.finish(job.id, "me", "failed", error="The folder is gone; choose another.")
    with pytest.raises(JobFailedError, match="The folder is gone"):
        queue.wait(job.id)
    other = queue.submit("demo", {"n": 2}, title="y")
    queue.claim("me")
    queue.finish(other.id, "me", "done", result={"answer": 42})
    assert queue.wait(other.id).result == {"answer": 42}


def test_an_unknown_job_is_named(queue: JobQueue) -> None:
    with pytest.raises(NotFoundError, match="no job 'nope'"):
        queue.get("nope")


def test_requests_survive_as_they_were(queue: JobQueue) -> None:
    request = {"folder": "ünïcode/資料", "numbers": [1, 2.5, None]}
    assert queue.submit("demo", request, title="x").request == json.loads(json.dumps(request))


# ---- whose job it is --------------------------------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Another process that lives."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def name_of(pid: int, *, boot: str | None = None, start: str | None = None) -> str:
    """As `this_process` would name that process."""
    return f"{boot or processes.boot_of_machine()}:{pid}:{start or processes.start_of(pid)}:abc"


def test_a_name_stands_for_one_process_only(sleeper: subprocess.Popen[bytes]) -> None:
    """Not for another with its pid, nor for one of another boot, nor for the remains of the one that it was."""
    assert processes.lives(processes.this_process())
    assert processes.lives(name_of(sleeper.pid))
    assert not processes.lives(name_of(sleeper.pid, start="1"))
    assert not processes.lives(name_of(sleeper.pid, boot="another"))
    assert not any(processes.lives(odd) for odd in (None, "", "me", "a:b:c:d", f"{processes.boot_of_machine()}:x:1:d"))
    name = name_of(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
    assert not processes.lives(name)


def test_a_clock_that_is_set_makes_no_process_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    name = processes.this_process()
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert processes.lives(name)


def test_where_there_is_no_proc_the_system_is_asked(monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]) -> None:
    monkeypatch.setattr(processes, "PROC", Path("/nowhere"))
    name = name_of(sleeper.pid)
    assert processes.lives(name)
    sleeper.kill()
    sleeper.wait()
    assert not processes.lives(name)


@pytest.mark.parametrize("change", [{"start": "1"}, {"boot": "another"}])
def test_a_reused_pid_or_another_boot_keeps_no_job(
    queue: JobQueue, sleeper: subprocess.Popen[bytes], change: dict[str, str]
) -> None:
    job = queue.submit("demo", {}, title="x")
    assert queue.claim(name_of(sleeper.pid, **change)) is not None
    again = queue.claim("me")
    assert again is not None
    assert (again.id, again.attempts) == (job.id, 2)


def test_a_second_worker_takes_nothing_while_the_first_has_a_job(queue: JobQueue, sleeper: subprocess.Popen[bytes]) -> None:
    """Even if somebody removed the lock's file."""
    first, second = (queue.submit("demo", {"n": n}, title="x") for n in (1, 2))
    owner = name_of(sleeper.pid)
    assert queue.claim(owner) is not None
    assert queue.claim("me") is None
    queue.finish(first.id, owner, "done")
    taken = queue.claim("me")
    assert taken is not None
    assert taken.id == second.id


def test_a_claim_is_a_heartbeat(queue: JobQueue) -> None:
    """A worker that dies before its first own heartbeat has one all the same."""
    queue.submit("demo", {}, title="x")
    queue.claim("me")
    (row,) = queue.catalogue.read("SELECT owner, beat, started FROM job")
    assert row["owner"] == "me"
    assert row["beat"] == row["started"] is not None


def test_a_worker_whose_heart_stands_still_for_a_lease_is_ended(
    queue: JobQueue, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: -1e6 * now[0]))
    job = queue.submit("demo", {}, title="x")
    owner = name_of(sleeper.pid)
    queue.claim(owner)
    for _ in range(3):  # it beats: however the clock jumps, it is left alone
        now[0] += 0.9 * jobs.LEASE_SECONDS
        queue.beat(job.id, owner)
        queue.ensure_worker()
    now[0] += 0.9 * jobs.LEASE_SECONDS
    queue.ensure_worker()
    assert sleeper.poll() is None
    now[0] += 0.2 * jobs.LEASE_SECONDS
    queue.ensure_worker()
    assert sleeper.wait(10) < 0


def test_a_worker_that_stands_still_while_it_reads_is_ended_by_whoever_wants_to_write(
    queue: JobQueue, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no job and shows no heartbeat; but a reader's lock keeps everybody from asking for anything."""
    now = [1000.0]
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: 0.0))
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **{**k, "timeout": 0.01}))
    assert queue.claim(name_of(sleeper.pid)) is None
    with closing(connect(queue.catalogue.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM job").fetchall()
        for _ in range(3):
            assert sleeper.poll() is None
            with pytest.raises(WorkspaceError, match="locked"):
                queue.submit("demo", {}, title="x")
            now[0] += 0.7 * jobs.LEASE_SECONDS
    assert sleeper.wait(10) < 0
    assert queue.submit("demo", {}, title="x").state == "queued"


def test_a_cancelled_job_whose_worker_died_is_not_begun_again(queue: JobQueue) -> None:
    job = queue.submit("demo", {}, title="x")
    queue.claim("dead")
    queue.cancel(job.id)
    assert queue.claim("me") is None
    assert queue.get(job.id).state == "cancelled"


def test_a_job_that_steps_back_lets_the_others_go_first(queue: JobQueue) -> None:
    first, second = (queue.submit("demo", {"n": n}, title="x") for n in (1, 2))
    queue.claim("me")
    assert queue.others_wait()
    queue.step_back(first.id, "me")
    order = []
    while (job := queue.claim("me")) is not None:
        order.append((job.id, job.attempts))
        queue.finish(job.id, "me", "done")
    assert order == [(second.id, 1), (first.id, 1)]
    assert not queue.others_wait()


# ---- room -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A disk whose room the test decides."""
    disk = SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk)
    return disk


def paused(queue: JobQueue, needed: int) -> str:
    job = queue.submit("demo", {}, title="x")
    queue.claim("me")
    queue.finish(job.id, "me", "paused", error="No room.", result={"bytes_needed": needed})
    return job.id


def test_a_paused_job_goes_on_by_the_next_look_once_there_is_room(queue: JobQueue, disk: SimpleNamespace) -> None:
    job_id = paused(queue, needed=100)
    disk.free = 99
    queue.ensure_worker()
    assert queue.get(job_id).state == "paused"
    assert queue.any_paused()
    disk.free = 100
    queue.ensure_worker()
    job = queue.get(job_id)
    assert (job.state, job.error, job.result) == ("queued", None, None)
    assert not queue.any_paused()


def test_asking_again_for_paused_work_tries_it_at_once(queue: JobQueue, disk: SimpleNamespace) -> None:
    job_id = paused(queue, needed=100)
    again = queue.submit("demo", {}, title="x")
    assert (again.id, again.state) == (job_id, "queued")


def test_a_paused_job_can_be_cancelled(queue: JobQueue, disk: SimpleNamespace) -> None:
    job_id = paused(queue, needed=100)
    assert queue.cancel(job_id).state == "cancelled"
    disk.free = 1000
    queue.ensure_worker()
    assert queue.get(job_id).state == "cancelled"
