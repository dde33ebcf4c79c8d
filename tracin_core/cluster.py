"""The dask runner: blocks computed by the workers of a Dask cluster, receipts brought back here.

    coordinator (the workspace's worker process) --spec--> scheduler --> worker: run_block(spec) --> block in the shared directory
                                                 <--receipt--

A worker sees the workspace's directory, writes blocks there and sends back a receipt of a few hundred bytes; nothing else travels, and only
the coordinator writes the catalogue. What is on disk is done, whoever wrote it: so a worker that dies, one that hangs and a scheduler that
is started anew cost at most the blocks in progress, and the bytes are those of the local runner.

`distributed` is an optional extra, `requirements-cluster.txt`, and imported only once a recipe asks for it.
"""

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeAlias

from tracin_core.blocks import BlockFailure, BlockSpec, Receipt, run_block
from tracin_core.data.files import read_json
from tracin_core.errors import ClusterError, DiskFullError, NonFiniteError
from tracin_core.recipe import EngineSection
from tracin_core.records.store import BlockStore, digest_of

BEAT_SECONDS: Final = 0.25
POLL_SECONDS: Final = 0.02
AHEAD: Final = 2  # blocks in flight for each worker: one that is computed, one that is there when it is done
LOOK_SECONDS: Final = 1.0  # between two looks at who is there
CONNECT_SECONDS: Final = 10.0
PATIENCE_SECONDS: Final = float(os.environ.get("TRACIN_CLUSTER_PATIENCE", "300"))  # with a scheduler that went away
LEASE_SECONDS: Final = float(os.environ.get("TRACIN_CLUSTER_LEASE", "30"))  # of a worker that has stopped answering
RECEIPT_SECONDS: Final = 5.0
SIGHT_SECONDS: Final = 90.0  # a network file system may take a minute to show what another machine wrote
CLOSE_SECONDS: Final = 3.0
INSTALL: Final = "scripts/setup requirements-cluster.txt (or: python -m pip install -r requirements-cluster.txt)"

Outcome = Receipt | BlockFailure
Client: TypeAlias = Any  # distributed's, which may not be there
Future: TypeAlias = Any


# ---- on a worker of the cluster ---------------------------------------------------------------------------------------------

_computing = threading.Lock()


def run_block_here(spec: BlockSpec) -> Receipt:
    """`run_block` in a process of the cluster, once that process has shown that it would write the right bytes.

    Raises:
        ClusterError: this process does not see the workspace, or has another torch or engine than the block is named for.
        NonFiniteError, DiskFullError, DamagedBlockError: as of `run_block`.
    """
    require_same_engine(spec)
    with _computing:  # the model and torch's number of threads belong to the process, not to one of its threads
        return run_block(spec)


def require_same_engine(spec: BlockSpec) -> None:
    """The block's group was described by the versions that are installed here."""
    from tracin_core.engine import ENGINE_VERSION

    here = f"The worker on '{socket.gethostname()}' (process {os.getpid()})"
    try:
        named = read_json(Path(spec.root) / "kernels" / spec.key.group / "group.json")
    except OSError as failure:
        raise ClusterError(
            f"{here} does not see the workspace at '{spec.root}' ({failure.strerror}); mount it there, or say in the recipe's "
            f"[engine] where it is, as shared_root."
        ) from failure
    for name, installed in (("torch", version("torch")), ("engine", ENGINE_VERSION)):
        if named[name] != installed:
            raise ClusterError(
                f"{here} has {name} {installed} and the analysis was asked for with {named[name]}, whose bytes may differ; install the "
                f"same version there and restart the worker."
            )


# ---- in the coordinator -----------------------------------------------------------------------------------------------------


@dataclass
class Task:
    """One block on its way. `sent` counts submissions and is part of the key: a scheduler remembers what became of a key."""

    spec: BlockSpec
    sent: int = 0
    failures: int = 0
    reason: str = ""

    def found(self) -> Receipt | None:
        """The receipt of the block if it is on disk, whole, whoever wrote it."""
        key, store = self.spec.key, BlockStore(Path(self.spec.root) / "kernels")
        return Receipt(key.name, key.shape, store.checksum(key), 0.0, computed=False) if store.holds(key) else None

    def sees(self, receipt: Receipt) -> bool:
        """The block that the receipt is about is on disk as seen from here."""
        try:
            return BlockStore(Path(self.spec.root) / "kernels").checksum(self.spec.key) == receipt.crc
        except OSError:
            return False

    def failed(self, reason: str, attempts: int) -> BlockFailure | None:
        """One more attempt went wrong; the block's failure if that was the last."""
        self.failures, self.reason = self.failures + 1, " ".join(reason.split())
        return BlockFailure(self.spec.key.name, self.reason, self.failures) if self.failures >= attempts else None


def dask_runner(
    specs: Iterable[BlockSpec], engine: EngineSection, *, attempts: int, say: Callable[[str], None] = lambda line: None
) -> Generator[Outcome | None, None, None]:
    """The blocks' outcomes in the order in which they come, and None several times a second while waiting.

    Closing the generator takes back what no worker has begun.

    Args:
        specs: looked at one by one, as far ahead as the cluster has workers for.
        engine: names the scheduler.
        attempts: of a block, before it counts as failed. An error on a worker is one, and so are the deaths of workers once the scheduler
            blames the block for them (Dask's KilledWorker); a lost scheduler or a worker that hangs is none.
        say: told what whoever looks after the cluster should know.

    Raises:
        ClusterError: the scheduler cannot be reached, or not any more.
        DiskFullError: a worker had no room.
    """
    coming = (Task(spec) for spec in specs)
    again: deque[Task] = deque()
    unseen: list[tuple[Task, Receipt, float]] = []
    task = next(coming, None)
    if task is None:
        return
    with closing(Cluster(engine, say)) as cluster:
        while task or unseen or cluster.flying:
            while task and cluster.has_room():
                receipt = task.found() if task.sent else None
                if receipt:
                    yield receipt
                else:
                    cluster.send(task)
                task = upcoming(again, coming)
            for ended, future in cluster.ended():
                outcome = settled(ended, future, attempts)
                if isinstance(outcome, Receipt):
                    unseen.append((ended, outcome, time.monotonic()))
                elif outcome:
                    yield outcome
                else:
                    again.append(ended)
            yield from seen(unseen, again, attempts)
            again.extend(cluster.stalled())
            task = task or upcoming(again, coming)
            yield None


def upcoming(again: deque[Task], coming: Iterator[Task]) -> Task | None:
    """What to send next: a block that is sent again, else a new one, if there is one."""
    return again.popleft() if again else next(coming, None)


def settled(task: Task, future: Future, attempts: int) -> Outcome | None:
    """What became of the block on the cluster; None if it is to be sent again.

    Raises:
        DiskFullError: the worker had no room.
    """
    if future.status not in ("finished", "error"):
        return None  # cancelled, because the scheduler went away
    try:
        receipt: Receipt = future.result(timeout=RECEIPT_SECONDS)
    except DiskFullError:
        raise
    except NonFiniteError as failure:
        return BlockFailure(task.spec.key.name, str(failure), 1)  # the same numbers would come again
    except (Exception, CancelledError) as failure:
        return None if future.cancelled() else task.failed(str(failure) or type(failure).__name__, attempts)
    return receipt


def seen(unseen: list[tuple[Task, Receipt, float]], again: deque[Task], attempts: int) -> Iterator[Outcome]:
    """Receipts of blocks that are on disk as seen from here leave the list; those that stay unseen too long are sent again."""
    for entry in list(unseen):
        task, receipt, since = entry
        if task.sees(receipt):
            unseen.remove(entry)
            yield receipt
        elif time.monotonic() - since > SIGHT_SECONDS:
            unseen.remove(entry)
            failure = task.failed(
                f"A worker wrote block '{receipt.name}', which is not to be seen under '{task.spec.root}' after {SIGHT_SECONDS:.0f} s; "
                f"the workspace has to be one directory for all.",
                attempts,
            )
            if failure:
                yield failure
            else:
                again.append(task)


class Cluster:
    """The connection to a scheduler: what is in flight there, and who is at work.

    Raises:
        ClusterError: there is no connection: `distributed` or a certificate is missing, or nothing answers.
    """

    def __init__(self, engine: EngineSection, say: Callable[[str], None]) -> None:
        self.flying: dict[str, tuple[Task, Future]] = {}
        self._engine, self._say = engine, say
        self._resources = {"GPU": 1} if engine.device == "cuda" else None
        self._left: list[Future] = []  # with workers that stopped answering; dropping them would free their place for more
        self._last_seen: dict[str, tuple[float, float]] = {}  # by worker: as the scheduler tells it, and since when by this clock
        self._workers: dict[str, Any] = {}
        self._looked = -LOOK_SECONDS
        self._away_since: float | None = None
        self._told = ""
        self._client = connect(engine, CONNECT_SECONDS)

    # ---- blocks -------------------------------------------------------------------------------------------------------------

    def has_room(self) -> bool:
        """The scheduler answers, and less is in flight than its workers should have."""
        return self._is_there() and len(self.flying) < AHEAD * max(len(self._at_work()), 1)

    def send(self, task: Task) -> None:
        """The block is in flight."""
        task.sent += 1
        name = f"{digest_of(task.spec.root)[:8]}/{task.spec.key.name}"
        key = name if task.sent == 1 else f"{name}#{task.sent}"
        root = str(self._engine.shared_root or task.spec.root)
        elsewhere = self._at_work() if self._silent() else None  # a task without a worker named could go to a silent one
        future = self._client.submit(
            run_block_here,
            replace(task.spec, root=root),
            key=key,
            retries=0,
            pure=True,
            resources=self._resources,
            workers=elsewhere or None,
            allow_other_workers=bool(elsewhere),
        )
        self.flying[key] = (task, future)

    def ended(self) -> list[tuple[Task, Future]]:
        """What came to an end, one way or another; waits a moment for the first."""
        deadline = time.monotonic() + BEAT_SECONDS
        while True:
            keys = [key for key, (_, future) in self.flying.items() if future.status != "pending"]
            if keys or time.monotonic() >= deadline:
                return [self.flying.pop(key) for key in keys]
            time.sleep(POLL_SECONDS)

    def stalled(self) -> list[Task]:
        """What lies with workers that have not answered for a lease is no longer in flight, once there are others to do it."""
        silent = self._silent()
        if not silent or not self._at_work() or not self._is_there():
            return []
        held = self._ask("processing") or {}
        keys = [key for worker in silent for key in held.get(worker, []) if key in self.flying]
        tasks = []
        for task, future in map(self.flying.pop, keys):
            self._left.append(future)
            tasks.append(task)
        if tasks:
            self._say(f"{', '.join(silent)} stopped answering {LEASE_SECONDS:.0f} s ago; blocks given to others: {len(tasks)}")
        return tasks

    def close(self) -> None:
        """Nothing is in flight: what no worker has begun is taken back; what one has begun it finishes."""
        with suppress(Exception):  # a scheduler that is gone has nothing to take back
            self._client.cancel([*(future for _, future in self.flying.values()), *self._left], force=True)
        with suppress(Exception):
            self._client.close(timeout=CLOSE_SECONDS)

    # ---- scheduler and workers ----------------------------------------------------------------------------------------------

    def _is_there(self) -> bool:
        """The scheduler answered a moment ago; one that went away is waited for.

        Raises:
            ClusterError: it has been away too long.
        """
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return self._away_since is None
        answer = self._ask("identity", n_workers=-1) if self._client.status == "running" else None
        self._looked = now = time.monotonic()
        if answer is not None:
            self._away_since = None
            self._note_workers(answer["workers"])
            return True
        if self._away_since is None:
            self._away_since = now
            self._tell(f"the scheduler at {self._engine.scheduler} does not answer; it is waited for")
        if now - self._away_since > PATIENCE_SECONDS:
            raise ClusterError(
                f"The Dask scheduler at {self._engine.scheduler} went away and did not come back within {PATIENCE_SECONDS:.0f} s; start "
                f"it, then resume: finished blocks are kept."
            )
        if self._client.status == "closed":
            with suppress(ClusterError):
                self._client = connect(self._engine, RECEIPT_SECONDS)
        return False

    def _ask(self, question: str, **details: Any) -> Any:
        """The scheduler's answer, None if there is none in time."""
        with suppress(OSError, TimeoutError, AttributeError):  # the last when the connection is lost between two lines
            return self._client.sync(getattr(self._client.scheduler, question), callback_timeout=RECEIPT_SECONDS, **details)
        return None

    def _note_workers(self, workers: dict[str, Any]) -> None:
        now = time.monotonic()
        self._workers = workers
        before, self._last_seen = self._last_seen, {}
        for address, worker in workers.items():
            told, since = before.get(address, (worker["last_seen"], now))
            self._last_seen[address] = (worker["last_seen"], since if told == worker["last_seen"] else now)
        self._tell(self._who_is_there())

    def _who_is_there(self) -> str:
        """One line on the workers, with what should be changed about them."""
        able, crowded = self._at_work(), [address for address, worker in self._workers.items() if worker["nthreads"] > 1]
        if self._workers and not able and self._resources:
            return "no worker offers the resource GPU, which blocks on cuda ask for; start workers with --resources GPU=1"
        if not able:
            return f"no worker at {self._engine.scheduler} is at work yet; blocks wait for one"
        asking = ", each block asks for the resource GPU=1" if self._resources else ""
        advice = f"; {crowded[0]} has several threads, of which one is used: start workers with --nthreads 1" if crowded else ""
        return f"workers at {self._engine.scheduler}: {len(able)}{asking}{advice}"

    def _at_work(self) -> list[str]:
        """Addresses of the workers that can take a block."""
        silent = self._silent()
        return [
            address
            for address, worker in self._workers.items()
            if address not in silent and (self._resources is None or worker["resources"].get("GPU", 0) >= 1)
        ]

    def _silent(self) -> list[str]:
        """Addresses of the workers that have not answered for a lease."""
        now = time.monotonic()
        return [address for address, (_, since) in self._last_seen.items() if now - since > LEASE_SECONDS]

    def _tell(self, line: str) -> None:
        """The line is said if it says something new."""
        if line != self._told:
            self._told = line
            self._say(line)


def connect(engine: EngineSection, seconds: float) -> Client:
    """A client of the recipe's scheduler, which is encrypted and shows certificates where the address is tls://.

    Raises:
        ClusterError: a package or a certificate is missing, or nothing answers within so many seconds.
    """
    try:
        distributed = import_module("distributed")
    except ImportError as failure:
        raise ClusterError(
            f'The recipe asks for executor = "dask", which needs the package {failure.name}; install it with {INSTALL}, or leave the '
            f"executor out."
        ) from failure
    files = {"tls_ca_file": engine.tls_ca, "tls_client_cert": engine.tls_cert, "tls_client_key": engine.tls_key}
    given = {name: str(file) for name, file in files.items() if file is not None}
    absent = [file for file in given.values() if not os.access(file, os.R_OK)]
    if absent:
        raise ClusterError(
            f"The certificate file '{absent[0]}' of the recipe's [engine] cannot be read; correct its path or its rights."
        )
    try:
        security = distributed.Security(require_encryption=bool(given), **given)
        return distributed.Client(engine.scheduler, security=security, timeout=seconds, set_as_default=False)
    except (OSError, TimeoutError) as failure:
        with_what = " with these certificates" if given else ""
        raise ClusterError(
            f"No Dask scheduler answers at {engine.scheduler} within {seconds:g} s{with_what}; start one there (docs/cluster.md), or "
            f"leave executor out of the recipe's [engine] to compute on this machine."
        ) from failure
