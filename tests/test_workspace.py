"""The whole path below the pages, with real files and real worker processes."""

import errno
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import lab
import numpy as np
import psutil
import pytest
from lab import stop_worker, worker_pids

from tracin_core import blocks
from tracin_core.blocks import BlockSpec, Receipt
from tracin_core.errors import (
    CheckpointError,
    CheckpointMismatchError,
    DataError,
    ExclusionError,
    InputError,
    JobCancelledError,
    JobFailedError,
    NoCheckpointsError,
    NotFoundError,
    OutsideRootsError,
    WorkspaceError,
)
from tracin_core.recipe import Recipe
from tracin_core.records.jobs import Job, JobQueue
from tracin_core.records.manifest import Manifest
from tracin_core.records.progress import Progress
from tracin_core.records.workspace import Workspace, open_workspace
from tracin_core.worker import analysis, computing, kernels, serving

KILLS = 10


@pytest.fixture(scope="module")
def recordings(shelf: lab.Shelf) -> Path:
    return shelf.recordings()


@pytest.fixture(scope="module")
def checkpoints(shelf: lab.Shelf) -> Path:
    return shelf.checkpoints(3)


@pytest.fixture(scope="module")
def recipe(shelf: lab.Shelf) -> Recipe:
    return shelf.recipe(3)


@pytest.fixture(scope="module")
def computed(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which the recipe was computed once, undisturbed."""
    place = open_workspace(tmp_path_factory.mktemp("undisturbed"))
    place.compute(recipe)
    yield place
    stop_worker(place)


@pytest.fixture
def place(computed: Workspace, tmp_path: Path) -> Workspace:
    """A workspace into which the lab's checkpoints were taken before, and nothing else."""
    shutil.copytree(computed.root / "checkpoints", tmp_path / "workspace" / "checkpoints")
    workspace = open_workspace(tmp_path / "workspace")
    yield workspace
    stop_worker(workspace)


def kernel_bytes(place: Workspace) -> dict[str, bytes]:
    return {str(path.relative_to(place.root)): path.read_bytes() for path in sorted((place.root / "kernels").rglob("*.f32"))}


def blocks_recorded(place: Workspace) -> int:
    return int(place.catalogue.read("SELECT COUNT(*) FROM block")[0][0])


def test_a_second_identical_request_returns_at_once_and_starts_nothing(computed: Workspace, recipe: Recipe) -> None:
    jobs = len(computed.queue.all())
    run = computed.compute(recipe, wait=False)
    assert not isinstance(run, Job)
    assert len(computed.queue.all()) == jobs


def test_a_run_has_the_tables_the_design_promises(computed: Workspace, recipe: Recipe) -> None:
    run = computed.run(computed.run_id(recipe))
    assert [len(run.splits[side]) for side in ("train", "validation", "test")] == [18, 12, 6]
    assert run.checkpoints["epoch"].tolist() == [0, 1, 2, 3]
    assert run.summed_epochs == [1, 2, 3]
    assert set(run.train_pairs["id1"]) <= set(run.splits["train"]["id"])
    view = run.view()
    assert view.self_influence().shape == (len(run.train_pairs),)
    assert view.influence().shape == (len(run.train_pairs), len(run.test_pairs))
    health = run.health()
    assert set(health["check"][~health["passed"]]) == {"above_chance"}  # three epochs teach next to nothing, and that is told
    assert {"finite_weights", "deterministic", "batch_coupling", "coverage", "products", "dead_tests", "above_chance"} <= set(
        health["check"]
    )
    log = "\n".join(computed.job_log(computed.jobs()[-1].id))
    assert "estimate for a block of 18 x 18 samples" in log
    picture, sound, _ = run.preview(run.samples["id"][0])
    assert picture.stat().st_size > 0
    assert sound.stat().st_size > 0


def test_dead_test_pairs_are_told(recordings: Path, checkpoints: Path, place: Workspace) -> None:
    """Without a margin, a pair in the right order at every checkpoint has no gradient."""
    recipe = lab.recipe_for(recordings, checkpoints)
    run = place.compute(Recipe.from_dict({**recipe.to_dict(), "task": {"margin": 0.0}}))
    dead = run.view().dead_tests
    told = run.health().set_index("check").loc["dead_tests"]
    assert dead.any()
    assert (told["passed"], told["value"]) == (False, dead.sum())
    assert str(run.test_pairs["id"][dead].iloc[0]) in told["detail"]


def test_views_change_loss_margin_weights_and_checkpoints_without_a_job(computed: Workspace, recipe: Recipe) -> None:
    run = computed.run(computed.run_id(recipe))
    parts = [run.view(checkpoints=[epoch], margin=3.0).self_influence() for epoch in (1, 2)]
    np.testing.assert_allclose(run.view(checkpoints=[1, 2], margin=3.0).self_influence(), parts[0] + parts[1], rtol=1e-12)
    layers = [run.view(layers=[layer]).influence() for layer in run.layers]
    np.testing.assert_allclose(sum(layers), run.view().influence(), rtol=1e-9, atol=1e-9 * np.abs(run.view().influence()).max())
    rate = run.checkpoints.set_index("epoch")["learning_rate"][1]
    weighted = run.view(checkpoints=[1], weights="learning_rate").self_influence()
    np.testing.assert_allclose(weighted, rate * run.view(checkpoints=[1]).self_influence(), rtol=1e-12)


def test_an_added_checkpoint_computes_only_itself(recordings: Path, checkpoints: Path, place: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "growing"
    folder.mkdir()
    for epoch in (0, 1, 2):
        shutil.copy2(checkpoints / f"model_epoch_{epoch}.pt", folder)
    recipe = lab.recipe_for(recordings, folder)
    first = place.compute(recipe)
    before, per_checkpoint = kernel_bytes(place), blocks_recorded(place) // 3
    times = {path: path.stat().st_mtime_ns for path in (place.root / "kernels").rglob("*.f32")}
    shutil.copy2(checkpoints / "model_epoch_3.pt", folder)
    second = place.compute(recipe)
    assert first.id != second.id
    assert blocks_recorded(place) == 4 * per_checkpoint
    assert {name: kernel_bytes(place)[name] for name in before} == before
    assert all(path.stat().st_mtime_ns == written for path, written in times.items())


@pytest.mark.slow  # test_faults.py kills more, and whoever looks on too
def test_killed_at_ten_random_moments_the_bytes_are_the_same(computed: Workspace, recipe: Recipe, place: Workspace) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    moments = random.Random(seed)
    job = place.compute(recipe, wait=False)
    assert isinstance(job, Job)
    for _ in range(KILLS):
        time.sleep(moments.uniform(0.0, 4.0))
        stop_worker(place)
        if place.job(job.id).state == "done":
            break
    run = place.compute(recipe)
    assert kernel_bytes(place) == kernel_bytes(computed)
    reference = computed.run(run.id)
    np.testing.assert_array_equal(run.view().influence(), reference.view().influence())
    assert not list((place.root / "kernels").rglob("*.partial")) or set(run.health().query("not passed")["check"]) <= {
        "above_chance"
    }


def test_a_damaged_block_is_named_and_only_it_is_redone(recipe: Recipe, place: Workspace, computed: Workspace) -> None:
    run = place.compute(recipe)
    path = sorted((place.root / "kernels").rglob("*-*.f32"))[0]
    raw = bytearray(path.read_bytes())
    raw[5] ^= 16
    path.write_bytes(raw)
    with pytest.raises(Exception, match=path.name):
        _ = open_workspace(place.root).run(run.id).kernels
    place.compute(recipe)
    assert kernel_bytes(place) == kernel_bytes(computed)


def test_cancel_keeps_what_is_finished_and_resume_goes_on(recipe: Recipe, place: Workspace, computed: Workspace) -> None:
    job = place.compute(recipe, wait=False)
    assert isinstance(job, Job)
    until(lambda: place.job(job.id).state == "running")
    place.cancel(job.id)
    with pytest.raises(JobCancelledError):
        place.queue.wait(job.id)
    place.resume(job.id)
    place.queue.wait(job.id)
    assert kernel_bytes(place) == kernel_bytes(computed)


@pytest.mark.parametrize("chosen", [None, "ACTIVE"])
def test_threads_of_a_worker_sleep_while_they_wait_unless_somebody_chose(
    recipe: Recipe, place: Workspace, monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_WAIT_POLICY", chosen)
    place.compute(recipe, wait=False)
    until(lambda: worker_pids(place))
    (pid,) = worker_pids(place)
    assert psutil.Process(pid).environ()["OMP_WAIT_POLICY"] == (chosen or "PASSIVE")
    stop_worker(place)


def test_sigterm_ends_the_worker_within_ten_seconds_and_the_job_goes_on_later(recipe: Recipe, place: Workspace) -> None:
    job = place.compute(recipe, wait=False)
    assert isinstance(job, Job)
    until(lambda: place.queue.get(job.id).state == "running")
    (pid,) = worker_pids(place)
    process = psutil.Process(pid)
    process.terminate()
    process.wait(10)
    assert place.queue.get(job.id).state in ("queued", "done")
    place.queue.wait(job.id)


def test_two_workers_never_serve_one_workspace(place: Workspace) -> None:
    with place.queue.worker_lock():
        second = subprocess.run([sys.executable, "-m", "tracin_core.worker", str(place.root)], timeout=60, capture_output=True)
    assert second.returncode == 0
    assert not second.stderr


def test_the_split_is_stored_once_and_survives_new_recordings(place: Workspace, tmp_path: Path, checkpoints: Path) -> None:
    root = lab.make_recordings(tmp_path / "recordings")
    recipe = lab.recipe_for(root, checkpoints)
    before = place.compute(recipe).samples.set_index("id")["split"]
    old = sorted(root.rglob("*_00.wav"))
    for path in old:
        shutil.copyfile(path, path.with_name(path.name.replace("_00.wav", "_90.wav")))
    after = place.compute(recipe).samples.set_index("id")["split"]
    assert after[before.index].equals(before)
    assert (after.drop(before.index) == "train").all()


def test_exports_are_checked_against_the_data_set(computed: Workspace, recipe: Recipe) -> None:
    run = computed.run(computed.run_id(recipe))
    rule = {"threshold": 0.0, "min_occurrences": 1, "max_exclusions": 5, "pair_mode": "ranking_pair"}
    chosen = run.view().exclusions(**rule)
    text, provenance = computed.export_exclusions(run, chosen, rule, who="tester")
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert lines == chosen["id"].tolist()
    assert len(lines) == 5
    assert "SIMULATED" in text.read_text(encoding="utf-8")
    assert run.digest in provenance.read_text(encoding="utf-8")
    listed = open_workspace(computed.root).exported_exclusions(run)
    assert listed[["text", "provenance", "entries", "who"]].iloc[0].tolist() == [text, provenance, 5, "tester"]
    wrong = chosen.assign(id=["nobody_somebody"] * len(chosen), id1="nobody")
    with pytest.raises((ExclusionError, DataError), match="nobody"):
        computed.export_exclusions(run, wrong, rule)


class TestBadInput:
    @pytest.fixture(scope="class")
    def place(self, computed: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
        """One workspace, and one worker, for all that is refused."""
        root = tmp_path_factory.mktemp("refusing") / "workspace"
        shutil.copytree(computed.root / "checkpoints", root / "checkpoints")
        workspace = open_workspace(root)
        yield workspace
        stop_worker(workspace)

    def test_missing_and_empty_checkpoint_folders(self, recordings: Path, place: Workspace, tmp_path: Path) -> None:
        with pytest.raises(NoCheckpointsError, match="gone"):
            place.compute(lab.recipe_for(recordings, tmp_path / "gone"))
        (tmp_path / "empty").mkdir()
        with pytest.raises(NoCheckpointsError, match="nothing"):
            place.compute(lab.recipe_for(recordings, tmp_path / "empty"))

    def test_a_checkpoint_of_another_model_names_three_keys(
        self, recordings: Path, checkpoints: Path, place: Workspace, tmp_path: Path
    ) -> None:
        recipe = lab.recipe_for(recordings, checkpoints)
        other = Recipe.from_dict({**recipe.to_dict(), "model": {"kind": "ranker", "layout": "large"}})
        with pytest.raises(JobFailedError, match="features") as failure:
            place.compute(other)
        assert "\n" not in str(failure.value)
        assert issubclass(CheckpointMismatchError, InputError)

    def test_a_pickle_that_is_not_plain_weights_is_refused_and_not_executed(
        self, recordings: Path, checkpoints: Path, place: Workspace, tmp_path: Path
    ) -> None:
        folder = tmp_path / "hostile"
        folder.mkdir()
        marker = tmp_path / "executed"
        (folder / "model_epoch_1.pt").write_bytes(b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
        with pytest.raises(JobFailedError, match=r"model_epoch_1\.pt"):
            place.compute(lab.recipe_for(recordings, folder))
        assert not marker.exists()

    def test_an_unreadable_recording_is_named(self, checkpoints: Path, place: Workspace, tmp_path: Path) -> None:
        root = lab.make_recordings(tmp_path / "recordings")
        broken = sorted(root.rglob("*.wav"))[3]
        broken.write_bytes(b"RIFF not a recording")
        with pytest.raises(JobFailedError, match=broken.name):
            place.compute(lab.recipe_for(root, checkpoints))

    def test_fewer_than_two_angles(self, checkpoints: Path, place: Workspace, tmp_path: Path) -> None:
        root = lab.make_recordings(tmp_path / "recordings")
        for folder in sorted(root.glob("deg*"))[1:]:
            shutil.rmtree(folder)
        with pytest.raises((DataError, JobFailedError), match="angle"):
            place.compute(lab.recipe_for(root, checkpoints))

    def test_folders_outside_the_allowed_roots(self, place: Workspace, tmp_path: Path) -> None:
        (place.root / "trainings" / "inside").mkdir()
        (place.root / "trainings" / "link").symlink_to(tmp_path)
        assert place.resolve("workspace/trainings/inside") == place.root / "trainings" / "inside"
        for wrong in ("workspace/../..", "workspace/trainings/link", "elsewhere/x", "/etc", "workspace/trainings/../../.."):
            with pytest.raises(OutsideRootsError):
                place.resolve(wrong)
        with pytest.raises(NotFoundError):
            place.resolve("workspace/trainings/nothing")
        with pytest.raises(OutsideRootsError):
            place.folder_id(tmp_path)

    def test_a_checkpoint_without_a_recorded_loss_is_asked_about(
        self, recordings: Path, checkpoints: Path, place: Workspace, tmp_path: Path
    ) -> None:
        import torch

        folder = tmp_path / "bare"
        folder.mkdir()
        whole = torch.load(checkpoints / "model_epoch_1.pt", weights_only=True)
        torch.save({"model_state_dict": whole["model_state_dict"]}, folder / "model_epoch_1.pt")
        with pytest.raises(JobFailedError, match="records no loss"):
            place.compute(lab.recipe_for(recordings, folder))
        assert issubclass(CheckpointError, InputError)

    def test_a_ghm_checkpoint_without_its_settings_is_asked_about(
        self, recordings: Path, checkpoints: Path, place: Workspace, tmp_path: Path
    ) -> None:
        import torch

        folder = tmp_path / "partial"
        folder.mkdir()
        whole = torch.load(checkpoints / "model_epoch_1.pt", weights_only=True)
        torch.save({**whole, "args": {"loss_type": "ghm", "margin": 1.0}}, folder / "model_epoch_1.pt")
        with pytest.raises(JobFailedError, match="records no ghm_bins, ghm_alpha, ghm_batch"):
            place.compute(lab.recipe_for(recordings, folder))

    def test_a_damaged_catalogue_is_told_in_a_sentence(self, tmp_path: Path) -> None:
        open_workspace(tmp_path / "workspace")
        (tmp_path / "workspace" / "tracin.sqlite3").write_bytes(b"this is no database at all" * 100)
        with pytest.raises(WorkspaceError, match="move a damaged file away"):
            open_workspace(tmp_path / "workspace")

    def test_unknown_runs_and_samples_are_named(self, computed: Workspace, recipe: Recipe) -> None:
        with pytest.raises(NotFoundError, match="no run 'gone'"):
            computed.run("gone")
        with pytest.raises(NotFoundError, match="no sample"):
            computed.run(computed.run_id(recipe)).preview("nobody")


def until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_kernels_beyond_their_budget_are_kept_as_rest_and_last(computed: Workspace, recipe: Recipe, place: Workspace) -> None:
    """Two layer groups in place of all; their sum is what it was, to rounding."""
    whole = computed.compute(recipe)
    run = place.compute(lab.recipe_for(recipe.data.root, recipe.checkpoints.folder, kernel_budget=1))
    assert len(whole.layers) > 2
    assert run.layers == ["rest", "last"]
    np.testing.assert_allclose(
        run.view().influence(), whole.view().influence(), rtol=1e-4, atol=1e-4 * np.abs(whole.view().influence()).max()
    )
    last = whole.view(layers=whole.layers[-1:]).influence()
    np.testing.assert_allclose(run.view(layers=["last"]).influence(), last, rtol=1e-6, atol=1e-6 * np.abs(last).max())
    log = place.queue.log_path(place.queue.all()[0].id).read_text()
    assert "kept by 2 layer groups: rest, last" in log


class TestFailingBlocks:
    """A block that really cannot be computed is tried again and again, named, and costs no other block."""

    @pytest.fixture
    def hindered(self, place: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
        """A workspace whose worker is the test itself."""
        monkeypatch.setattr(JobQueue, "ensure_worker", lambda self: None)
        return place

    def test_it_is_named_with_its_reason_and_mended_by_resuming(
        self, hindered: Workspace, recipe: Recipe, computed: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The inputs of one chunk are damaged after they were kept: every block that needs them fails."""
        job = hindered.compute(recipe, wait=False)
        assert isinstance(job, Job)
        kept = kernels.compute_blocks

        def damaged(progress: Progress, of_run: kernels.Blocks, manifest: Manifest) -> None:
            (chunk,) = manifest.chunks["validation"]
            path = next(hindered.root.rglob(f"inputs/{chunk.digest}.safetensors"))
            path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
            kept(progress, of_run, manifest)

        monkeypatch.setattr(computing, "compute_blocks", damaged)
        blocks.chunk_tensors.cache_clear()
        assert serving.do_next(hindered, "me")
        failed = hindered.job(job.id)
        assert failed.state == "failed"
        names = [block["name"] for block in (failed.result or {})["failed_blocks"]]
        whole = kernel_bytes(computed)
        missing = [name.removeprefix("kernels/") for name in whole if name not in kernel_bytes(hindered)]
        assert sorted(names) == sorted(missing)
        assert all(block["attempts"] == kernels.ATTEMPTS for block in failed.result["failed_blocks"])
        assert str(failed.error).startswith(f"Done with {len(names)} of {len(whole)} blocks failed: '{names[0]}'")
        assert "damaged" in str(failed.error)
        log = "\n".join(hindered.job_log(job.id))
        assert all(name in log for name in names)
        monkeypatch.setattr(computing, "compute_blocks", kept)
        hindered.resume(job.id)
        assert serving.do_next(hindered, "me")
        assert hindered.job(job.id).state == "done"
        assert kernel_bytes(hindered) == whole

    def test_a_block_that_fails_once_costs_nothing(
        self, hindered: Workspace, recipe: Recipe, computed: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fewer failures than attempts, whatever fails."""
        failures = iter([OSError(errno.EIO, "Input/output error", "x"), RuntimeError("out of memory")])
        whole = kernels.run_block

        def shaky(spec: BlockSpec) -> Receipt:
            if (failure := next(failures, None)) is not None:
                raise failure
            return whole(spec)

        monkeypatch.setattr(kernels, "run_block", shaky)
        hindered.compute(recipe, wait=False)
        assert serving.do_next(hindered, "me")
        assert hindered.queue.all()[0].state == "done"
        assert kernel_bytes(hindered) == kernel_bytes(computed)

    def test_an_incident_is_found_under_its_number_in_both_logs(
        self, hindered: Workspace, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = hindered.compute(recipe, wait=False)
        assert isinstance(job, Job)

        def broken(*_: object) -> None:
            raise KeyError("nobody expected this")

        monkeypatch.setattr(analysis, "compute_run", broken)
        assert serving.do_next(hindered, "me")
        sentence = str(hindered.job(job.id).error)
        (incident,) = re.findall(r"under ([0-9a-f]{8})\.", sentence)
        assert "\n" not in sentence
        assert f"incident {incident}" in "\n".join(hindered.job_log(job.id))
        lines = [json.loads(line) for line in (hindered.root / "jobs" / "worker.jsonl").read_text().splitlines()]
        (told,) = [line for line in lines if line.get("incident") == incident]
        assert (told["job"], told["run"]) == (job.id, job.run_id)
        assert "nobody expected this" in told["exception"]
