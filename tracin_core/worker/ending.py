"""A job has ended in the catalogue and in its log: done, failed, cancelled, paused for want of room, or queued again."""

import errno
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tracin_core.errors import DiskFullError, JobCancelledError, TracInError, WorkspaceError
from tracin_core.records.progress import InterruptedJob, Progress, SteppedBack

ROOM_SECONDS: Final = 1.0  # for room on a full disk
RECORD_TRIES: Final = 30
MORE_ROOM: Final = 2**20
FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def run_job(progress: Progress, handler: Callable[[Progress], dict[str, Any]]) -> None:
    """The job has ended in the catalogue, well or not; no error leaves here but that of a catalogue that cannot be written."""
    progress.note("started", kind=progress.job.kind, attempt=progress.job.attempts)
    try:
        progress.require_room(0, "a job")
        progress.workspace.queue.keep_spare()
        result = handler(progress)
    except InterruptedJob:
        end(progress, "queued", "interrupted: queued again")
    except SteppedBack:
        progress.workspace.queue.step_back(progress.job.id, progress.owner)
    except JobCancelledError as failure:
        end(progress, "cancelled", str(failure), error=str(failure))
    except DiskFullError as failure:
        pause(progress, str(failure))
    except OSError as failure:
        if failure.errno in FULL:
            pause(progress, f"No room on the disk ({reason_of(failure)}); free some space, and the job goes on by itself.")
        else:
            fail(progress, f"The disk refused ({reason_of(failure)}); look after it, then resume: finished work is kept.")
    except TracInError as failure:
        failed = {"failed_blocks": progress.failures} if progress.failures else None
        end(progress, "failed", f"{type(failure).__name__}: {failure}", error=str(failure), result=failed)
    except Exception as failure:
        fail(progress, f"Something unforeseen happened ({type(failure).__name__}: {failure}).")
    else:
        end(progress, "done", "done", result=result)


def fail(progress: Progress, sentence: str) -> None:
    """The job has failed; an incident's number leads from its sentence to the traceback, in both logs."""
    incident = uuid.uuid4().hex[:8]
    progress.note("incident", incident=incident, exc_info=True)
    sentence = f"{' '.join(sentence.split())} The job's log has the details under {incident}."
    end(progress, "failed", f"incident {incident}\n{traceback.format_exc()}", error=sentence)


def pause(progress: Progress, sentence: str) -> None:
    """The job waits for room: as much as it asked for, or noticeably more than there is."""
    needed = progress.bytes_needed or progress.workspace.queue.free_bytes() + MORE_ROOM
    end(progress, "paused", sentence, error=sentence, result={"bytes_needed": needed})


def end(progress: Progress, state: str, line: str, *, error: str | None = None, result: dict[str, Any] | None = None) -> None:
    """The line is in the logs and the state in the catalogue, as soon as that can be written.

    Raises:
        WorkspaceError: it cannot, again and again; the job is taken up by the next worker.
    """
    progress.say(line)
    progress.note(state, **({} if error is None else {"error": error}))
    tries = 0
    while True:
        try:
            progress.workspace.queue.finish(progress.job.id, progress.owner, state, error=error, result=result)
            return
        except DiskFullError:
            if progress.stopping:
                return
            progress.workspace.queue.use_spare()
        except WorkspaceError:
            tries += 1
            if progress.stopping or tries >= RECORD_TRIES:
                raise
        time.sleep(ROOM_SECONDS)


def reason_of(failure: BaseException) -> str:
    """Why, in a few words and without the folders of this machine."""
    if isinstance(failure, OSError) and failure.strerror:
        return failure.strerror if failure.filename is None else f"{failure.strerror}: '{Path(str(failure.filename)).name}'"
    return " ".join(str(failure).split()) or type(failure).__name__
