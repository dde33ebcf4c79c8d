"""The workspace's jobs are done one after the other, while no other worker does any: what kinds there are, and who takes them."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import filelock

from tracin_core.errors import DiskFullError, TracInError
from tracin_core.evaluating import calibrate, faithfulness, retrain
from tracin_core.recipe import Recipe
from tracin_core.records import processes
from tracin_core.records.progress import Progress, Pulse
from tracin_core.records.workspace import Workspace, open_workspace
from tracin_core.worker.analysis import analyse
from tracin_core.worker.checkpoints import inspect
from tracin_core.worker.computing import use_threads
from tracin_core.worker.ending import ROOM_SECONDS, run_job
from tracin_core.worker.training import demo, training

IDLE_SECONDS: Final = float(os.environ.get("TRACIN_WORKER_IDLE", "60"))
LOOK_SECONDS: Final = 0.1  # for work, while there is none
LOCK_SECONDS: Final = 3.0


def main(arguments: list[str] | None = None) -> int:
    """Runs until there has been no work for a while; 0 also when another worker is at work already."""
    parser = argparse.ArgumentParser(prog="python -m tracin_core.worker", description="Runs the background jobs of a workspace.")
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--idle", type=float, default=IDLE_SECONDS, help="seconds without work before the process ends")
    chosen = parser.parse_args(arguments)
    try:
        while serve_alone(open_workspace(chosen.workspace), chosen.idle):
            continue
    except TracInError as failure:
        print(f"{type(failure).__name__}: {failure}", file=sys.stderr)
        return 1
    return 0


def serve_alone(workspace: Workspace, idle_seconds: float) -> bool:
    """Jobs were served while no other worker could; True if somebody asked for more just when this one stopped looking."""
    lock = workspace.queue.worker_lock()
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except filelock.Timeout:
        return False
    with lock:
        ended = serve(workspace, idle_seconds)
    return not ended and workspace.queue.others_wait()


def serve(workspace: Workspace, idle_seconds: float) -> bool:
    """Jobs are done one after the other until there has been none for so long; True if SIGTERM came before."""
    owner = processes.this_process()
    pulse = Pulse(workspace.queue, owner)
    pulse.listen()
    looked_for_room = last_work = time.monotonic()
    while not pulse.stopping and time.monotonic() - last_work < idle_seconds:
        if do_next(workspace, owner, pulse.follow):
            last_work = time.monotonic()
            continue
        time.sleep(LOOK_SECONDS)
        if time.monotonic() - looked_for_room >= ROOM_SECONDS:
            looked_for_room = time.monotonic()
            if workspace.queue.any_paused():
                last_work = looked_for_room
    return pulse.stopping


def do_next(workspace: Workspace, owner: str, follow: Callable[[Progress | None], None] = lambda progress: None) -> bool:
    """The next job was taken and has ended or stepped back; False if there is none, or no room to take one.

    Args:
        follow: told which job runs, and None once it does not.
    """
    try:
        job = workspace.queue.claim(owner)
    except DiskFullError:
        workspace.queue.use_spare()
        return False
    if job is None:
        return False
    handler, weights = HANDLERS[job.kind]
    progress = Progress(workspace, job, owner, weights)
    follow(progress)
    try:
        run_job(progress, handler)
    finally:
        follow(None)
    return True


def measured(handler: Callable[[Progress], dict[str, Any]], progress: Progress) -> dict[str, Any]:
    """The job of an evaluation, on as many threads as its recipe says, and how much processor time it took."""
    use_threads(Recipe.from_dict(progress.job.request["recipe"]).engine)
    started = time.process_time()
    return {**handler(progress), "cpu_seconds": round(time.process_time() - started, 2)}


HANDLERS: Final[dict[str, tuple[Callable[[Progress], dict[str, Any]], dict[str, float]]]] = {
    "analysis": (analyse, {"samples": 1, "previews": 1, "checkpoints": 2, "curvature": 4, "health": 1, "kernels": 8}),
    "inspection": (inspect, {"checkpoints": 1}),
    "training": (training, {"samples": 1, "previews": 1, "training": 20}),
    "retraining": (partial(measured, retrain), {"samples": 1, "previews": 1, "retraining": 60}),
    "faithfulness": (partial(measured, faithfulness), {"samples": 1, "previews": 1, "subsets": 60, "judging": 20}),
    "calibration": (partial(measured, calibrate), {"samples": 1, "previews": 1, "calibrating": 60}),
    "demo": (demo, {"recordings": 2, "samples": 1, "previews": 1, "training": 20, "checkpoints": 2, "health": 1, "kernels": 4}),
}
