"""Nothing computed is lost or wrong, whatever is killed, fails or fills up.

Short forms by default; TRACIN_LONG=1 runs the long ones. Seeds are printed, and TRACIN_SEED repeats one.
"""

import errno
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lab
import pytest
import zygote
from zygote import Zygote

from tracin_core.data.readers import list_recordings, read_inputs
from tracin_core.data.samples import split_samples
from tracin_core.data.simulated import simulate_recordings
from tracin_core.recipe import Recipe, SplitSection
from tracin_core.records.workspace import Workspace, open_workspace

LONG = os.environ.get("TRACIN_LONG") == "1"
EPOCHS = 2
BLOCKS = 27  # a checkpoint: outputs of 4 + 2 chunks, 10 + 3 of a triangle, 4 x 2
TINY = SplitSection(train=2, validation=1, test=0)


@dataclass(frozen=True)
class Rig:
    """A run of many small blocks, done once undisturbed, and processes at hand."""

    zygote: Zygote
    recipe: Recipe
    toml: Path
    prepared: Path
    run_id: str
    kernels: dict[str, bytes]
    run_files: dict[str, bytes]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("rig")
    failing = folder / "failing.so"
    if shutil.which("cc"):
        subprocess.run(["cc", "-shared", "-fPIC", "-o", failing, Path(__file__).with_name("failing.c"), "-ldl"], check=True)
    parent = Zygote(uuid.uuid4().hex[:8], **({"LD_PRELOAD": str(failing)} if failing.exists() else {}))
    try:
        yield make_rig(folder, parent)
    finally:
        parent.end()


def make_rig(folder: Path, parent: Zygote) -> Rig:
    from tracin_core.engine.training import train_ranker

    recordings = folder / "recordings"
    simulate_recordings(recordings, material=lab.MATERIAL, frequency=lab.FREQUENCY, takes=3, split=TINY)
    samples = split_samples(list_recordings(recordings, lab.MATERIAL, lab.FREQUENCY), TINY)
    checkpoints = folder / "box_1000hz_margin"
    train_ranker(read_inputs(recordings, samples), samples, checkpoints, epochs=EPOCHS, save_epochs=tuple(range(EPOCHS)))
    recipe = Recipe.from_dict({**lab.recipe_for(recordings, checkpoints).to_dict(), "split": TINY.model_dump()})
    toml = folder / "analysis.toml"
    toml.write_text(recipe.to_toml())
    place = folder / "undisturbed"
    assert parent.run("client", str(place), str(toml)) == 0
    workspace = open_workspace(place)
    run_id = workspace.run_id(recipe)
    for pid in parent.living():
        zygote.kill(pid)
    rig = Rig(parent, recipe, toml, folder / "prepared", run_id, kernels_of(place), run_of(place, run_id))
    assert len(rig.kernels) == (EPOCHS + 1) * BLOCKS, "what happens between blocks needs many of them"
    shutil.copytree(place, rig.prepared)
    for name in ("kernels", "runs", "jobs", "tracin.sqlite3"):
        path = rig.prepared / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    return rig


def kernels_of(place: Path) -> dict[str, bytes]:
    """Every block by its name; partial files are not blocks."""
    root = place / "kernels"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("[!.]*.f32")}


def run_of(place: Path, run_id: str) -> dict[str, bytes]:
    """What a run consists of, without the time of its making."""
    folder = place / "runs" / run_id
    manifest = json.loads((folder / "run.json").read_text())
    manifest.pop("created")
    return {"run.json": json.dumps(manifest).encode(), "samples.csv": (folder / "samples.csv").read_bytes()}


def seeded() -> random.Random:
    seed = int(os.environ.get("TRACIN_SEED") or random.SystemRandom().randrange(2**32))
    print("seed", seed)
    return random.Random(seed)


def until(condition, seconds: float = 60.0, every: float = 0.02) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(every)


def job_of(place: Workspace) -> Any:
    """The newest job, looked at without waking anybody; None before there is one."""
    return next(iter(place.queue.all(1)), None)


# ---- kill -9 ----------------------------------------------------------------------------------------------------------------

KILLS = 200 if LONG else 12
KILLS_A_JOB = 7
REDONE = 0.05


def test_killed_at_random_the_bytes_are_the_same_and_little_is_redone(rig: Rig, tmp_path: Path) -> None:
    """Worker, command line and a dashboard's looks, killed at random moments; what is killed is started again by its user or by a look."""
    chance = seeded()
    counts: Counter[str] = Counter()
    while counts["kills"] < KILLS:
        disturbed(rig, tmp_path / str(counts["jobs"]), chance, min(KILLS_A_JOB, KILLS - counts["kills"]), counts)
    print(dict(counts))
    assert counts["twice"] + counts["lost"] <= REDONE * counts["blocks"]
    until(lambda: not rig.zygote.living(), seconds=5)


def disturbed(rig: Rig, place: Path, chance: random.Random, kills: int, counts: Counter[str]) -> None:
    """One job, with so many kills or fewer if it is quick; every third one begins with an empty workspace."""
    if counts["jobs"] % 3 != 1:
        shutil.copytree(rig.prepared, place)
    workspace = open_workspace(place)
    start = {"client": ("client", str(place), str(rig.toml)), "dashboard": ("dashboard", str(place))}
    pids = {name: rig.zygote.fork(*command) for name, command in start.items()}
    until(lambda: job_of(workspace) is not None)
    while kills and job_of(workspace).state != "done":
        time.sleep(chance.uniform(0.0, 0.6))
        victim = chance.choice(["worker", "worker", "worker", "client", "dashboard"])
        pid = worker_of(workspace) if victim == "worker" else pids[victim]
        if pid is None:
            continue
        if victim == "worker":
            counts["lost"] += job_of(workspace).step == "kernels"  # at most the block in progress
        zygote.kill(pid)
        if victim in start:
            pids[victim] = rig.zygote.fork(*start[victim])
        counts[victim] += 1
        counts["kills"] += 1
        kills -= 1
    until(lambda: job_of(workspace).state == "done")
    assert kernels_of(place) == rig.kernels
    assert run_of(place, rig.run_id) == rig.run_files
    for pid in pids.values():
        zygote.kill(pid)
    lines = [json.loads(line) for line in (place / "jobs" / "worker.jsonl").read_text().splitlines()]
    told = [line["block"] for line in lines if line["event"] == "block" and line["computed"]]
    counts["twice"] += len(told) - len(set(told))
    counts["blocks"] += len(rig.kernels)
    counts["jobs"] += 1


def worker_of(place: Workspace) -> int | None:
    """The worker that has the running job."""
    rows = place.catalogue.read("SELECT owner FROM job WHERE state = 'running'")
    return int(rows[0]["owner"].split(":")[1]) if rows else None


# ---- SIGSTOP ----------------------------------------------------------------------------------------------------------------


STOPPED_AT = 5  # the block before which a worker is stopped


@pytest.fixture
def place(rig: Rig, tmp_path: Path) -> Iterator[Workspace]:
    """A workspace in which the run is asked for."""
    place = open_workspace(shutil.copytree(rig.prepared, tmp_path / "workspace"))
    assert rig.zygote.run("asked", str(place.root), str(rig.toml)) == 0
    yield place
    for process in rig.zygote.living():
        zygote.kill(process)


def stopped_worker(rig: Rig, place: Workspace, *, lease: float | None = None, locked: bool = False) -> int:
    """A worker that stands still in the middle of the job; watched all the time, by a page that forgives so many seconds."""
    pid = rig.zygote.fork("stopping_worker", str(place.root), STOPPED_AT, locked)
    until((place.root / "jobs" / ".worker").exists)
    if lease:
        rig.zygote.fork("dashboard", str(place.root), lease)
    until(lambda: stands_still(pid))
    return pid


def stopped_outside_the_catalogue(place: Workspace, pid: int) -> bool:
    """The process stands still, or, if it has the catalogue open, goes on for a moment."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: stands_still(pid))
    with closing(sqlite3.connect(place.catalogue.path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)
            return False
    return True


def stands_still(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def ends_right(rig: Rig, place: Workspace) -> list[str]:
    """The job ends, with the right bytes; returns the blocks that were computed, each as often as it was."""
    until(lambda: job_of(place).state == "done")
    assert kernels_of(place.root) == rig.kernels
    assert run_of(place.root, rig.run_id) == rig.run_files
    lines = [json.loads(line) for line in (place.root / "jobs" / "worker.jsonl").read_text().splitlines()]
    return [line["block"] for line in lines if line["event"] == "block" and line["computed"]]


def test_a_worker_that_awakens_within_its_lease_goes_on(rig: Rig, place: Workspace) -> None:
    """Looks meanwhile start no other: the lock is held by one who stands still as by one who works."""
    pid = stopped_worker(rig, place, lease=600.0)
    assert len(kernels_of(place.root)) == STOPPED_AT - 1
    time.sleep(0.6)  # some looks
    assert len(kernels_of(place.root)) == STOPPED_AT - 1
    assert worker_of(place) == pid
    os.kill(pid, signal.SIGCONT)
    told = ends_right(rig, place)
    assert len(told) == len(set(told)) == len(rig.kernels)
    assert job_of(place).attempts == 1


@pytest.mark.parametrize("locked", [False, True], ids=["in a block", "in a transaction"])
def test_a_worker_that_stands_still_longer_than_its_lease_is_replaced(rig: Rig, place: Workspace, locked: bool) -> None:
    """Also if it holds the catalogue, which nobody can read meanwhile."""
    pid = stopped_worker(rig, place, lease=1.0, locked=locked)
    told = ends_right(rig, place)
    assert not zygote.is_of(Path(f"/proc/{pid}"), rig.zygote.tag)
    assert len(told) == len(set(told)) == len(rig.kernels)
    assert job_of(place).attempts == 2


def test_a_worker_whose_job_was_taken_meanwhile_changes_nothing_when_it_awakens(rig: Rig, place: Workspace) -> None:
    """Its lock's file was removed by hand and its name is that of another boot: another worker does the job, beside it."""
    first = stopped_worker(rig, place)
    (place.root / ".worker.lock").unlink()
    with place.catalogue.transaction() as connection:
        connection.execute("UPDATE job SET owner = 'another boot' || substr(owner, instr(owner, ':'))")
    second = stopped_worker(rig, place)
    assert worker_of(place) == second
    os.kill(first, signal.SIGCONT)
    until(lambda: not zygote.is_of(Path(f"/proc/{first}"), rig.zygote.tag))
    assert (worker_of(place), job_of(place).state) == (second, "running")
    os.kill(second, signal.SIGCONT)
    ends_right(rig, place)
    assert (job_of(place).attempts, job_of(place).error) == (2, None)
    events = [json.loads(line)["event"] for line in (place.root / "jobs" / "worker.jsonl").read_text().splitlines()]
    assert Counter(event for event in events if event in ("done", "cancelled", "failed", "taken_over")) == {
        "done": 1,
        "taken_over": 1,
    }


def test_a_worker_that_stands_still_without_a_job_is_replaced_too(rig: Rig, tmp_path: Path) -> None:
    """It holds the lock, and would keep what is asked for waiting for ever."""
    place = open_workspace(shutil.copytree(rig.prepared, tmp_path / "workspace"))
    pid = rig.zygote.fork("worker", str(place.root), "600")
    until((place.root / "jobs" / ".worker").exists)
    until(lambda: stopped_outside_the_catalogue(place, pid))
    assert rig.zygote.run("asked", str(place.root), str(rig.toml)) == 0
    rig.zygote.fork("dashboard", str(place.root), 1.0)
    ends_right(rig, place)
    assert not zygote.is_of(Path(f"/proc/{pid}"), rig.zygote.tag)
    for process in rig.zygote.living():
        zygote.kill(process)


# ---- failing calls ----------------------------------------------------------------------------------------------------------

CALLS = {"write": 1, "fsync": 2, "rename": 3, "open": 4}
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
LEFT = 3  # blocks that the hindered job has to compute
TRIED = 3  # numbers n of each kind in the short form


@pytest.fixture(scope="module")
def nearly(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which all but a few blocks of the run are there, and the rest is asked for."""
    place = shutil.copytree(rig.prepared, tmp_path_factory.mktemp("nearly") / "workspace")
    for name in sorted(rig.kernels)[LEFT:]:
        (place / "kernels" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "kernels" / name).write_bytes(rig.kernels[name])
    assert rig.zygote.run("asked", str(place), str(rig.toml)) == 0
    return place


@pytest.fixture(scope="module")
def calls(rig: Rig, nearly: Path, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """How many calls of each kind the job makes where none fails; a heartbeat more or less."""
    place = shutil.copytree(nearly, tmp_path_factory.mktemp("counted") / "workspace")
    assert rig.zygote.run("hindered", str(place), 0, 0, 0) == 0
    return json.loads(place.with_suffix(".calls").read_text())


@pytest.mark.skipif(shutil.which("cc") is None, reason="a C compiler is needed to make calls fail")
@pytest.mark.parametrize("kind", CALLS)
def test_whichever_call_fails_the_bytes_are_right_or_a_sentence_says_why(
    rig: Rig, nearly: Path, calls: list[int], tmp_path: Path, kind: str
) -> None:
    """The first, second, ... write (fsync, rename, open) of a job fails, for want of room or for a bad disk."""
    last, chance = calls[CALLS[kind]], seeded()
    every = [(number, error) for number in range(1, last + 1) for error in ERRORS]
    chosen = every if LONG else chance.sample(every, TRIED)
    states: Counter[str] = Counter()
    for number, error in chosen:
        place = shutil.copytree(nearly, tmp_path / "workspace")
        code = rig.zygote.run("hindered", str(place), CALLS[kind], ERRORS[error], number)
        assert code in (0, zygote.MET), f"{kind} {number} with {error} ended with {code}"
        states["not met"] += code == 0
        states[check_state(rig, place)] += 1
        check_recovery(rig, place)
        shutil.rmtree(place)
    print(f"{kind}: {len(chosen)} of {len(every)}, {dict(states)}")
    assert states["not met"] <= max(2, 0.1 * len(chosen))


def check_state(rig: Rig, place: Path) -> str:
    """Blocks are right or not there; the job is done with the right bytes, or one sentence says why it is not. Returns its state."""
    kernels = kernels_of(place)
    assert kernels.items() <= rig.kernels.items()
    job = job_of(open_workspace(place))
    if job.state == "done":
        assert kernels == rig.kernels
    elif job.state in ("failed", "paused"):
        assert job.error
        assert "\n" not in job.error
    else:
        assert job.state in ("queued", "running")  # its worker is gone: the next one takes it
    return str(job.state)


def check_recovery(rig: Rig, place: Path) -> None:
    """Without failures, the job ends with the right bytes."""
    queue = open_workspace(place).queue
    queue.ensure_worker = lambda: None  # type: ignore[method-assign]
    queue.resume(job_of(open_workspace(place)).id)
    assert rig.zygote.run("hindered", str(place), 0, 0, 0) == 0
    assert job_of(open_workspace(place)).state == "done"
    assert kernels_of(place) == rig.kernels
    assert run_of(place, rig.run_id) == rig.run_files


# ---- a full disk ------------------------------------------------------------------------------------------------------------

SIZES = 10 if LONG else 3
PATIENCE = 60.0
ROOMY = 64 * 2**20
MOUNTS = os.geteuid() == 0 and shutil.which("mount") is not None


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own, of which a test may change the size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.skipif(not MOUNTS, reason="only root may mount a small disk")
def test_on_a_full_disk_a_job_pauses_and_goes_on_by_itself(rig: Rig, mounted: Path) -> None:
    """The disk is full after so many bytes more: no process dies of it, nothing is damaged, and with room the job ends right."""
    ends: Counter[str] = Counter()
    whole = 4096 * len(rig.kernels)
    for number in range(SIZES):
        place = shutil.copytree(rig.prepared, mounted / f"workspace{number}")
        assert rig.zygote.run("asked", str(place), str(rig.toml)) == 0
        resize(mounted, shutil.disk_usage(mounted).used + whole * number // SIZES)
        pid = rig.zygote.fork("tight_worker", str(place))
        ends[settled(place)] += 1
        assert zygote.is_of(Path(f"/proc/{pid}"), rig.zygote.tag), "the worker died of the full disk"
        assert kernels_of(place).items() <= rig.kernels.items()
        resize(mounted, ROOMY)
        until(lambda place=place: state_of(place) == "done")
        assert kernels_of(place) == rig.kernels
        assert run_of(place, rig.run_id) == rig.run_files
        zygote.kill(pid)
        shutil.rmtree(place)
    print(dict(ends))
    assert ends["paused"] == SIZES


def resize(mounted: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={-(-size // 4096) * 4096}", mounted], check=True)


def settled(place: Path) -> str:
    """The job's state once it has ended or paused; `running` while not even that can be written down."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and state_of(place) in ("queued", "running"):
        time.sleep(0.05)
    return state_of(place)


def state_of(place: Path) -> str:
    """Looked up without writing a byte."""
    with closing(sqlite3.connect(f"file:{place / 'tracin.sqlite3'}?mode=ro", uri=True, timeout=10)) as catalogue:
        return str(catalogue.execute("SELECT state FROM job").fetchone()[0])


# ---- several at once --------------------------------------------------------------------------------------------------------


def test_dashboard_command_line_and_notebooks_share_a_workspace(rig: Rig, tmp_path: Path) -> None:
    """All at once: each gets its answers, equal work is done once, and one job runs at a time."""
    place = shutil.copytree(rig.prepared, tmp_path / "workspace")
    answers = [tmp_path / f"answer{number}" for number in range(2)]
    rig.zygote.fork("dashboard", str(place))
    for answer in answers:
        rig.zygote.fork("notebook", str(place), str(rig.toml), str(answer))
    assert rig.zygote.run("client", str(place), str(rig.toml)) == 0
    until(lambda: all(answer.exists() and answer.read_text() for answer in answers))
    first, second = (json.loads(answer.read_text()) for answer in answers)
    assert first == second
    assert first[0] == rig.run_id
    assert first[3] == [True] * (EPOCHS + 1)
    assert kernels_of(place) == rig.kernels
    kinds = Counter(job.kind for job in open_workspace(place).queue.all())
    assert kinds["analysis"] == 1
    lines = [json.loads(line) for line in (place / "jobs" / "worker.jsonl").read_text().splitlines()]
    told = [(line["event"], line["job"]) for line in lines if line["event"] in ("started", "done")]
    assert [event for event, _ in told] == ["started", "done"] * (len(told) // 2)
    assert all(told[at][1] == told[at + 1][1] for at in range(0, len(told), 2))
    for pid in rig.zygote.living():
        zygote.kill(pid)
