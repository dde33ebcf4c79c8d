"""Jobs: asked for by anyone, owned by one worker, never lost."""

import json
from pathlib import Path

import pytest

from tracin_core.errors import JobCancelledError, JobFailedError, NotFoundError
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
    claimed = [queue.claim("me"), queue.claim("me"), queue.claim("me")]
    assert [job and job.id for job in claimed] == [first.id, second.id, None]
    assert claimed[0] is not None
    assert claimed[0].state == "running"


def test_asking_twice_for_the_same_work_gives_one_job(queue: JobQueue) -> None:
    assert queue.submit("demo", {"a": 1}, title="x").id == queue.submit("demo", {"a": 1}, title="x").id
    queue.claim("me")
    assert len(queue.all()) == 1
    queue.finish(queue.all()[0].id, "me", "done")
    assert queue.submit("demo", {"a": 1}, title="x").state == "queued"


def test_a_job_whose_worker_died_is_taken_up_again(queue: JobQueue) -> None:
    job = queue.submit("demo", {}, title="x")
    queue.claim("dead")
    queue.recover()
    again = queue.claim("alive")
    assert again is not None
    assert (again.id, again.attempts) == (job.id, 2)
    assert not queue.beat(job.id, "dead", done=5)
    queue.finish(job.id, "dead", "done")
    assert queue.get(job.id).state == "running"
    assert queue.get(job.id).done == 0


def test_a_job_that_always_ends_its_worker_is_given_up_with_a_sentence(queue: JobQueue) -> None:
    job = queue.submit("demo", {}, title="x")
    for _ in range(STALL_LIMIT):
        assert queue.claim("dead") is not None
        queue.recover()
    queue.claim("dead")
    queue.recover()
    lost = queue.get(job.id)
    assert lost.state == "lost"
    assert "memory" in str(lost.error)
    assert queue.resume(job.id).state == "queued"


def test_a_job_that_gets_on_is_never_given_up(queue: JobQueue) -> None:
    job = queue.submit("demo", {}, title="x")
    for _ in range(3 * STALL_LIMIT):
        assert queue.claim("dead") is not None
        queue.beat(job.id, "dead", stalls=0)
        queue.recover()
    assert queue.get(job.id).state == "queued"


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
