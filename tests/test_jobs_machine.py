"""The queue, the worker's loop and the block store against a plain model, over random histories. TRACIN_LONG=1 runs the long form."""

import hashlib
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tracin_core.blocks import BlockSpec, Receipt
from tracin_core.errors import DiskFullError
from tracin_core.recipe import Recipe
from tracin_core.records import processes, progress
from tracin_core.records.jobs import JobQueue
from tracin_core.records.manifest import Chunk, Manifest
from tracin_core.records.store import BlockKey, BlockStore, digest_of
from tracin_core.records.workspace import Workspace
from tracin_core.worker import ending, kernels, serving

LONG = os.environ.get("TRACIN_LONG") == "1"
FOLDER = "/dev/shm" if Path("/dev/shm").is_dir() else None
LAYERS = ("all",)
RUNS = 3
PLENTY = 10**12
ROOM = [PLENTY] * 4 + [0, progress.RESERVE_BYTES, progress.RESERVE_BYTES + 100]
STEPS = ["submit", "cancel", "resume", "look", "restart", "delete_a_block", "disk_has", *["undisturbed", "killed"] * 2]
STEPS += ["cancelled", "without_room"]
runs = st.integers(0, RUNS - 1)


class Killed(BaseException):
    """What kill -9 is to this process: nobody handles it."""


def weights_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """All that a group depends on here."""
    return {"weights": checkpoint["digest"]}


class Blocks(kernels.Blocks):
    def group(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        return weights_of(checkpoint)


def manifest_of(number: int) -> Manifest:
    """Two checkpoints, of which the run before has one; one chunk a side: 5 blocks a checkpoint."""
    checkpoints = tuple({"digest": f"{weights:064d}"} for weights in (number, number + 1))
    groups = tuple(digest_of(weights_of(row)) for row in checkpoints)
    chunks = {side: (Chunk((side,), hashlib.sha256(side.encode()).hexdigest()[:32]),) for side in ("train", "validation")}
    return Manifest(str(number), {}, 0.0, LAYERS, checkpoints, groups, chunks, {}, "data")


RECIPE = Recipe.from_dict({"data": {"root": "/none", "material": "box", "frequency": "1000hz"}, "checkpoints": {"folder": "/none"}})
MANIFESTS = [manifest_of(number) for number in range(RUNS)]
KEYS = [[key for group in manifest.groups for key in manifest.kernel_keys(group)] for manifest in MANIFESTS]


@cache
def numbers_of(key: BlockKey) -> Any:
    seed = int.from_bytes(hashlib.sha256(key.name.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).normal(size=key.shape).astype(np.float32)


def handler(telling: progress.Progress) -> dict[str, Any]:
    manifest = MANIFESTS[telling.job.request["run"]]
    kernels.compute_blocks(telling, Blocks(telling.workspace, RECIPE, {"all": ("weight",)}, "score", 1, "none", None, ""), manifest)
    return {"run_id": manifest.id}


class Histories(RuleBasedStateMachine):
    """`self.jobs` is the model: one row per job in the order of asking. `self.there` are the names of the blocks on disk."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="histories", dir=FOLDER))
        self.place = Workspace(self.root)
        self.jobs: list[dict[str, Any]] = []
        self.there: set[str] = set()
        self.free = PLENTY
        self.after: Any = None
        self.kept = (
            kernels.run_block,
            progress.BEAT_SECONDS,
            shutil.disk_usage,
            JobQueue.ensure_worker,
            serving.HANDLERS["training"],
        )
        kernels.run_block = self.run_block
        progress.BEAT_SECONDS = 0.0  # type: ignore[misc]
        shutil.disk_usage = lambda path: SimpleNamespace(free=self.free)  # type: ignore[assignment, return-value]
        JobQueue.ensure_worker = JobQueue.wake_paused  # type: ignore[method-assign]
        serving.HANDLERS["training"] = (handler, {"kernels": 1.0})

    def teardown(self) -> None:
        kernels.run_block, progress.BEAT_SECONDS, shutil.disk_usage, JobQueue.ensure_worker, known = self.kept  # type: ignore
        serving.HANDLERS["training"] = known
        shutil.rmtree(self.root)

    def run_block(self, spec: BlockSpec) -> Receipt:
        """Writes the numbers that the block's name stands for; something happens before the n-th."""
        if self.after is not None:
            self.after()
        store = BlockStore(Path(spec.root) / "kernels")
        crc = store.write(spec.key, numbers_of(spec.key))
        return Receipt(spec.key.name, spec.key.shape, crc, 0.0, computed=True)

    def happens(self, at: int, what: Any) -> None:
        """`what` is done before block number `at` is computed."""
        left = [at]

        def count() -> None:
            left[0] -= 1
            if left[0] < 0:
                self.after = None
                what()

        self.after = count

    # ---- the model ----------------------------------------------------------------------------------------------------------

    def next_job(self) -> dict[str, Any] | None:
        """The first that is queued, after what dead workers left has been queued again where it was."""
        for job in self.jobs:
            if job["state"] == "running":
                job["state"], job["cancel"] = "cancelled" if job["cancel"] else "queued", False
        return next((job for job in self.jobs if job["state"] == "queued"), None)

    def wake(self) -> None:
        for job in self.jobs:
            if job["state"] == "paused" and self.free >= job["needed"]:
                job["state"] = "queued"

    def worked(self, at: int | None, state: str) -> None:
        """The next job computes `at` of its missing blocks and is then in that state; done, if it has no more to do."""
        job = self.next_job()
        if job is None:
            return
        missing = [key for key in KEYS[job["run"]] if key.name not in self.there]
        need = int(kernels.ROOM_FACTOR * sum(key.bytes for key in missing)) + progress.RESERVE_BYTES
        if self.free < need:
            job["state"] = "paused"
            job["needed"] = progress.RESERVE_BYTES if self.free < progress.RESERVE_BYTES else need
        elif at is None or at >= len(missing):
            self.there |= {key.name for key in missing}
            job["state"] = "done"
        else:
            self.there |= {key.name for key in missing[:at]}
            job["state"] = state
            job["needed"] = self.free + ending.MORE_ROOM

    def work(self) -> bool:
        try:
            return serving.do_next(self.place, processes.this_process()[:-6] + "dead:x")
        except Killed:
            return True
        finally:
            self.after = None

    # ---- what people and machines do ------------------------------------------------------------------------------------------

    @initialize(run=runs)
    def begin(self, run: int) -> None:
        self.submit(run)

    @rule(what=st.sampled_from(STEPS), run=runs, number=st.integers(0, 9), at=st.integers(0, 7), free=st.sampled_from(ROOM))
    def happen(self, what: str, run: int, number: int, at: int, free: int) -> None:
        """One rule for everything: Hypothesis leaves whole rules out of a history, which would leave most jobs undone."""
        arguments = {
            "submit": (run,),
            "cancel": (number,),
            "resume": (number,),
            "delete_a_block": (run, number),
            "disk_has": (free,),
        }
        at_block = {"killed": (at,), "cancelled": (at,), "without_room": (at,)}
        event(what)
        getattr(self, what)(*{**arguments, **at_block}.get(what, ()))

    def submit(self, run: int) -> None:
        same = [
            job for job in self.jobs if job["run"] == run and job["state"] in ("queued", "running", "paused") and not job["cancel"]
        ]
        job_id = self.place.queue.submit("training", {"run": run}, title=str(run)).id
        if same:
            assert job_id == same[0]["id"]
            same[0]["state"] = "queued" if same[0]["state"] == "paused" else same[0]["state"]
        else:
            self.jobs.append({"id": job_id, "run": run, "state": "queued", "cancel": False, "needed": 0})
        self.wake()

    def cancel(self, number: int) -> None:
        if self.jobs:
            job = self.jobs[number % len(self.jobs)]
            self.place.cancel(job["id"])
            if job["state"] in ("queued", "paused"):
                job["state"] = "cancelled"
            elif job["state"] == "running":
                job["cancel"] = True

    def resume(self, number: int) -> None:
        if self.jobs:
            job = self.jobs[number % len(self.jobs)]
            self.place.resume(job["id"])
            if job["state"] in ("failed", "cancelled", "paused"):
                job["state"] = "queued"
            self.wake()

    def undisturbed(self) -> None:
        self.work()
        self.worked(None, "done")

    def killed(self, at: int) -> None:
        def die() -> None:
            raise Killed

        self.happens(at, die)
        self.work()
        self.worked(at, "running")

    def cancelled(self, at: int) -> None:
        """The block that is begun is finished, and no other."""

        def cancel_running() -> None:
            for job in self.place.queue.all(1000):
                if job.state == "running":
                    self.place.cancel(job.id)

        self.happens(at, cancel_running)
        job = self.next_job()
        missing = [] if job is None else [key for key in KEYS[job["run"]] if key.name not in self.there]
        self.work()
        self.worked(at + 1, "cancelled")
        if job is not None and at < len(missing) and job["state"] == "done":
            job["state"] = "cancelled"  # during its last block

    def without_room(self, at: int) -> None:
        def no_room() -> None:
            raise DiskFullError("No room on the disk for a block.")

        self.happens(at, no_room)
        self.work()
        self.worked(at, "paused")

    def disk_has(self, free: int) -> None:
        self.free = free

    def look(self) -> None:
        self.place.jobs()
        self.wake()

    def delete_a_block(self, run: int, number: int) -> None:
        key = KEYS[run][number]
        self.place.store.path(key).unlink(missing_ok=True)
        self.there.discard(key.name)

    def restart(self) -> None:
        self.place = Workspace(self.root)

    @invariant()
    def jobs_are_as_the_model_says(self) -> None:
        found = {job.id: job.state for job in self.place.queue.all(1000)}
        assert found == {job["id"]: job["state"] for job in self.jobs}

    @invariant()
    def blocks_are_there_and_right(self) -> None:
        on_disk = {str(path.relative_to(self.root / "kernels")) for path in (self.root / "kernels").rglob("*.f32")}
        assert on_disk == self.there
        for key in {key.name: key for keys in KEYS for key in keys}.values():
            if key.name in self.there:
                assert np.array_equal(BlockStore(self.root / "kernels").read(key), numbers_of(key)), key


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=500 if LONG else 50, stateful_step_count=30, deadline=None)
