"""A run follows a training: its influence is there while it trains, and the end is as if it had been computed afterwards."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lab
import pytest

from tracin_core.errors import JobFailedError
from tracin_core.recipe import Recipe
from tracin_core.records.jobs import JobQueue
from tracin_core.records.workspace import Workspace, open_workspace
from tracin_core.worker import analysis, serving

SETTLE = 0.2


@pytest.fixture(scope="module")
def recordings(shelf: lab.Shelf) -> Path:
    return shelf.recordings()


@pytest.fixture(scope="module")
def trained(shelf: lab.Shelf) -> Path:
    return shelf.checkpoints()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A workspace whose worker is a thread of the test."""
    monkeypatch.setattr(JobQueue, "ensure_worker", lambda self: None)
    monkeypatch.setattr(analysis, "SETTLE_SECONDS", SETTLE)
    workspace = open_workspace(tmp_path / "workspace")
    ending = threading.Event()

    def work() -> None:
        while not ending.is_set():
            if not serving.do_next(workspace, "the thread"):
                time.sleep(0.02)

    thread = threading.Thread(target=work)
    thread.start()
    yield workspace
    for job in workspace.queue.all():
        workspace.cancel(job.id)
    ending.set()
    thread.join(60)


def until(condition: Callable[[], object], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def listed(place: Workspace) -> list[str]:
    return place.runs().query("state == 'done'")["name"].tolist()


def test_influence_appears_while_a_training_goes_on(place: Workspace, recordings: Path, trained: Path, tmp_path: Path) -> None:
    """Whole checkpoints count, half-written ones do not yet; other jobs go first while nothing is new; nothing is computed twice."""
    folder = tmp_path / "growing"
    recipe = lab.recipe_for(recordings, folder)
    job = place.follow(recipe)
    until(lambda: place.job(job.id).step == "following")
    folder.mkdir()
    shutil.copy2(trained / "model_epoch_0.pt", folder)
    raw = (trained / "model_epoch_1.pt").read_bytes()
    half = folder / "model_epoch_1.pt"
    half.write_bytes(raw[: len(raw) // 2])
    until(lambda: any("not yet" in line and "model_epoch_1.pt" in line for line in place.job_log(job.id)))
    assert listed(place) == []
    half.write_bytes(raw)
    until(lambda: listed(place) == ["small lab, up to epoch 1"])
    so_far = place.run(str(place.job(job.id).run_id))
    assert so_far.checkpoints["epoch"].tolist() == [0, 1]
    early = so_far.view(checkpoints=[1]).influence()
    other = place.start_inspection(trained)
    until(lambda: place.job(other.id).state == "done")
    assert place.job(job.id).is_live
    shutil.copy2(trained / "model_epoch_2.pt", folder)
    until(lambda: listed(place) == ["small lab, up to epoch 2"])
    (folder / "training.json").write_text("{}")
    until(lambda: not place.job(job.id).is_live)
    ended = place.job(job.id)
    assert (ended.state, ended.error) == ("done", None)
    assert ended.result == {"run_id": place.run_id(recipe), "ended": "training.json is there"}
    assert listed(place) == ["small lab"]
    run = place.run(ended.result["run_id"])
    assert (run.view(checkpoints=[1]).influence() == early).all()
    assert place.run(so_far.id).id == so_far.id  # a link to it goes on working
    told = [line for line in (place.root / "jobs" / "worker.jsonl").read_text().splitlines() if '"event": "block"' in line]
    assert len(told) == len(set(place.root.rglob("*.f32")))


def test_a_training_that_has_gone_quiet_has_ended(place: Workspace, recordings: Path, trained: Path) -> None:
    job = place.follow(lab.recipe_for(recordings, trained.parent / "nothing"), quiet_seconds=0.1)
    with pytest.raises(JobFailedError, match="nothing"):
        place.queue.wait(job.id)


def test_following_ends_when_it_is_cancelled(place: Workspace, recordings: Path, tmp_path: Path) -> None:
    job = place.follow(lab.recipe_for(recordings, tmp_path / "nothing"))
    until(lambda: place.job(job.id).step == "following")
    place.cancel(job.id)
    until(lambda: place.job(job.id).state == "cancelled")


def test_what_a_training_left_unusable_is_told_at_its_end(
    place: Workspace, recordings: Path, trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(trained, folder)
    (folder / "model_epoch_2.pt").write_bytes(b"never finished")
    job = place.follow(Recipe.from_dict(lab.recipe_for(recordings, folder).to_dict()))
    with pytest.raises(JobFailedError, match=r"model_epoch_2\.pt"):
        place.queue.wait(job.id)


def test_the_shell_follows_a_folder_that_grows(recordings: Path, trained: Path, tmp_path: Path) -> None:
    """A real command and its real worker: each checkpoint's influence is there before the next checkpoint, and the last run is shown."""
    folder, toml = tmp_path / "growing", tmp_path / "analysis.toml"
    recipe = lab.recipe_for(recordings, folder)
    toml.write_text(recipe.to_toml())
    place = open_workspace(tmp_path / "workspace")
    command = [sys.executable, "-m", "tracin_core", "compute-influence", "--recipe", str(toml), "--workspace", str(place.root)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "TRACIN_WORKER_IDLE": "1"}
    shell = subprocess.Popen([*command, "--follow"], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        for epoch in (0, 1, 2):
            folder.mkdir(exist_ok=True)
            shutil.copy2(trained / f"model_epoch_{epoch}.pt", folder)
            until(lambda epoch=epoch: epoch == 0 or listed(place) == [f"small lab, up to epoch {epoch}"])
            assert shell.poll() is None
        (folder / "training.json").write_text("{}")
        said, _ = shell.communicate(timeout=90)
    finally:
        shell.kill()
        lab.stop_worker(place)
    assert shell.returncode == 0
    run = place.run(place.run_id(recipe))
    assert f"Run {run.id}: small lab [SIMULATED data]" in said
    told = re.findall(r"^small lab: following \(run (\w+) so far\)$", said, re.MULTILINE)
    assert len(told) >= 2
    assert all(place.run(run_id).manifest.groups == run.manifest.groups[: len(place.run(run_id).checkpoints)] for run_id in told)
