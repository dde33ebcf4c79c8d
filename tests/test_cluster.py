"""Blocks computed on a cluster: a real scheduler and real `dask worker` processes, started from their own command lines."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import distributed
import lab
import numpy as np
import pytest
import torch
from lab import stop_worker

from tracin_core import cluster
from tracin_core.blocks import BlockFailure, BlockSpec, Receipt, run_block
from tracin_core.cluster import dask_runner
from tracin_core.data.files import read_json, write_json
from tracin_core.engine.models import Ranker
from tracin_core.errors import ClusterError, JobCancelledError, RecipeError
from tracin_core.recipe import EngineSection, Recipe
from tracin_core.records.jobs import Job
from tracin_core.records.manifest import Manifest
from tracin_core.records.store import BlockStore
from tracin_core.records.workspace import Workspace, open_workspace

ROOT = Path(__file__).resolve().parents[1]
DASK = Path(sys.executable).with_name("dask")
SECONDS = 120.0  # in which anything here ends, however busy the machine


@dataclass
class LabCluster:
    """A scheduler on a port of its own and the workers that were started for it; all end with `close`."""

    folder: Path
    tls: tuple[Path, Path, Path] | None = None
    port: int = 0
    scheduler: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{'tls' if self.tls else 'tcp'}://127.0.0.1:{self.port}"

    @property
    def engine(self) -> EngineSection:
        return EngineSection(**self.settings)

    @property
    def settings(self) -> dict[str, object]:
        """Of the recipe's [engine]."""
        files = dict(zip(("tls_ca", "tls_cert", "tls_key"), self.tls or (), strict=False))
        return {"threads": 1, "executor": "dask", "scheduler": self.address, **files}

    def start_scheduler(self) -> None:
        self.port = self.port or free_port()
        self.scheduler = self.start(
            "scheduler", "--host", f"{self.address.partition(':')[0]}://127.0.0.1", "--port", str(self.port)
        )
        until(lambda: answers(self.port))

    def start_worker(self, *more: str) -> subprocess.Popen[bytes]:
        place = ("--nthreads", "1", "--no-nanny", "--memory-limit", "0", "--host", "127.0.0.1", "--death-timeout", "60")
        local = ("--local-directory", str(self.folder / "scratch"))
        self.workers.append(self.start("worker", self.address, *place, *local, *more))
        return self.workers[-1]

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """A Dask command, as a lab would type it; its log is beside it."""
        certificates = zip(("--tls-ca-file", "--tls-cert", "--tls-key"), map(str, self.tls or ()), strict=False)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
        with (self.folder / f"{command[0]}.log").open("ab") as log:
            return subprocess.Popen(
                [DASK, *command, "--no-dashboard", *(word for pair in certificates for word in pair)],
                env=environment, stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip

    def make_whole(self) -> None:
        """A scheduler and two workers are there and answer."""
        if self.scheduler is None or self.scheduler.poll() is not None:
            end(*self.workers)  # as they do by themselves when their scheduler is gone, unless they stand still
            self.start_scheduler()
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        for worker in self.workers:
            worker.send_signal(signal.SIGCONT)
        while len(self.workers) < 2:
            self.start_worker()
        with self.client() as client:
            client.wait_for_workers(2, timeout=SECONDS)

    def client(self) -> distributed.Client:
        names = ("tls_ca_file", "tls_client_cert", "tls_client_key")
        files = dict(zip(names, map(str, self.tls or ()), strict=False))
        return distributed.Client(self.address, timeout=30, security=distributed.Security(**files), set_as_default=False)

    def hold(self) -> None:
        """The workers stand still and can be given blocks."""
        for worker in self.workers:
            worker.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        end(*self.workers, *([self.scheduler] if self.scheduler else []))


def end(*processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as caller:
        caller.settimeout(1)
        return caller.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def recordings(shelf: lab.Shelf) -> Path:
    return shelf.recordings()


@pytest.fixture(scope="module")
def checkpoints(shelf: lab.Shelf) -> Path:
    return shelf.checkpoints(1)


@pytest.fixture(scope="module")
def computed(recordings: Path, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which the analysis was computed here, undisturbed."""
    place = open_workspace(tmp_path_factory.mktemp("local"))
    place.compute(lab.recipe_for(recordings, checkpoints))
    yield place
    stop_worker(place)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCluster]:
    with closing(LabCluster(tmp_path_factory.mktemp("dask"))) as dask:
        yield dask


@pytest.fixture
def dask(started: LabCluster) -> LabCluster:
    started.make_whole()
    return started


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    workspace = open_workspace(tmp_path / "workspace")
    yield workspace
    stop_worker(workspace)


@pytest.fixture
def specs(computed: Workspace, tmp_path: Path) -> list[BlockSpec]:
    """Every block of the analysis, in a workspace that has weights and inputs and no block yet."""
    return specs_in(shutil.copytree(computed.root, tmp_path / "workspace", ignore=shutil.ignore_patterns("*.f32", "jobs")))


def specs_in(root: Path) -> list[BlockSpec]:
    from tracin_core.engine.kernel import kernel_groups
    from tracin_core.engine.models import build_model

    (folder,) = (root / "runs").iterdir()
    manifest = Manifest.read(folder)
    recipe = Recipe.from_dict(manifest.recipe)
    layers = kernel_groups(build_model(recipe.model), cells=1, budget=2**30)
    return [
        BlockSpec(str(root), manifest.dataset, str(checkpoint["digest"]), key, recipe.model, recipe.engine, layers)
        for checkpoint, group in zip(manifest.checkpoints, manifest.groups, strict=True)
        for key in manifest.kernel_keys(group)
    ]


def kernel_bytes(root: Path | str) -> dict[str, bytes]:
    kernels = Path(root) / "kernels"
    return {str(path.relative_to(kernels)): path.read_bytes() for path in sorted(kernels.rglob("*.f32"))}


class Watched:
    """A runner under way, with what came of it and what it said."""

    def __init__(self, specs: list[BlockSpec], engine: EngineSection) -> None:
        self.said: list[str] = []
        self.outcomes: list[Receipt | BlockFailure] = []
        self.given = 0
        self.runner = dask_runner(self.count(specs), engine, attempts=3, say=self.said.append)

    def count(self, specs: list[BlockSpec]) -> Iterator[BlockSpec]:
        for spec in specs:
            self.given += 1
            yield spec

    def run(self, enough: Callable[[], object] = lambda: False) -> list[Receipt | BlockFailure]:
        """What came of it until enough is true, or to the end."""
        deadline = time.monotonic() + SECONDS
        for outcome in self.runner:
            if outcome is not None:
                self.outcomes.append(outcome)
            assert time.monotonic() < deadline, f"{len(self.outcomes)} outcomes, said {self.said}"
            if enough():
                break
        return self.outcomes

    def run_until_in_flight(self, dask: LabCluster, tasks: int = 4) -> None:
        """Workers have as many blocks as they are given ahead."""
        with dask.client() as client:
            self.run(lambda: sum(map(len, client.processing().values())) >= tasks)


def names(outcomes: list[Receipt | BlockFailure]) -> list[str]:
    return sorted(outcome.name for outcome in outcomes)


# ---- the same bytes ---------------------------------------------------------------------------------------------------------


def test_a_run_computed_on_a_cluster_is_the_run_computed_here(
    recordings: Path, checkpoints: Path, computed: Workspace, place: Workspace, dask: LabCluster
) -> None:
    """By the workspace's own worker; cancelled once while its blocks lie with workers, and resumed."""
    recipe = lab.recipe_for(recordings, checkpoints, **dask.settings)
    dask.hold()
    job = place.compute(recipe, wait=False)
    assert isinstance(job, Job)
    with dask.client() as client:
        until(lambda: sum(map(len, client.processing().values())) == 4)
        place.cancel(job.id)
        with pytest.raises(JobCancelledError):
            place.queue.wait(job.id)
        until(lambda: not any(client.processing().values()))
    dask.make_whole()
    place.resume(job.id)
    place.queue.wait(job.id)
    run = place.run(computed.run_id(lab.recipe_for(recordings, checkpoints)))
    assert kernel_bytes(place.root) == kernel_bytes(computed.root)
    recorded = {row["name"]: row["crc"] for row in place.catalogue.read("SELECT name, crc FROM block")}
    assert recorded == {row["name"]: row["crc"] for row in computed.catalogue.read("SELECT name, crc FROM block")}
    np.testing.assert_array_equal(run.view().influence(), computed.run(run.id).view().influence())
    log = "\n".join(place.job_log(job.id))
    assert f"workers at {dask.address}: 2" in log
    assert f"blocks computed: {len(recorded)}, found: 0" in log


def test_gradients_are_divided_there_as_here(recordings: Path, dask: LabCluster, tmp_path: Path) -> None:
    """By Adam's second moment, which the workers read from the workspace."""
    model = Ranker("small")
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(4, 1, 33, 40)).diff(dim=0).square().sum().backward()
    optimizer.step()
    content = {"epoch": 1, "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    (tmp_path / "by_adam").mkdir()
    torch.save({**content, "args": {"loss_type": "margin", "margin": 5.0}}, tmp_path / "by_adam" / "model_epoch_1.pt")
    here, there = (open_workspace(tmp_path / name) for name in ("here", "there"))
    try:
        for workspace, settings in ((here, {}), (there, dask.settings)):
            workspace.compute(lab.recipe_for(recordings, tmp_path / "by_adam", precondition="adam", **settings))
        assert kernel_bytes(here.root) == kernel_bytes(there.root)
        groups = [read_json(path) for path in there.root.glob("kernels/*/group.json")]
        assert [group["precondition"]["form"] for group in groups] == ["adam"]
    finally:
        stop_worker(here)
        stop_worker(there)


def test_curvature_is_measured_here_and_read_there(dask: LabCluster, tmp_path: Path) -> None:
    here, there = (open_workspace(tmp_path / name) for name in ("here", "there"))
    file, folder = lab.write_arrays(tmp_path / "points.npz"), here.root / "trainings" / "points"
    recipe = lab.arrays_recipe(file, folder, "kind", {"kind": "classification"}, 3)
    try:
        here.queue.wait(here.start_training(recipe, settings=lab.SHORT, folder=folder).id)
        for workspace, settings in ((here, {}), (there, dask.settings)):
            engine = {**recipe.to_dict()["engine"], "precondition": "ekfac", **settings}
            workspace.compute(Recipe.from_dict({**recipe.to_dict(), "engine": engine}))
        assert kernel_bytes(here.root) == kernel_bytes(there.root)
        kept = [sorted(path.name for path in one.root.glob("checkpoints/curvatures/*.json")) for one in (here, there)]
        assert kept[0] == kept[1] != []
    finally:
        stop_worker(here)
        stop_worker(there)


def test_each_block_has_one_receipt_of_its_own_checksum(specs: list[BlockSpec], computed: Workspace, dask: LabCluster) -> None:
    outcomes = Watched(specs, dask.engine).run()
    assert names(outcomes) == sorted(spec.key.name for spec in specs)
    assert kernel_bytes(specs[0].root) == kernel_bytes(computed.root)
    store = BlockStore(Path(specs[0].root) / "kernels")
    sums = {spec.key.name: store.checksum(spec.key) for spec in specs}
    assert all(isinstance(outcome, Receipt) and outcome.computed and outcome.crc == sums[outcome.name] for outcome in outcomes)


def test_two_threads_of_torch_give_the_bytes_of_two_threads(specs: list[BlockSpec], dask: LabCluster, tmp_path: Path) -> None:
    """The number of threads is set in the thread that computes, which on a worker is not the process's first."""
    two = [replace(spec, engine=spec.engine.model_copy(update={"threads": 2})) for spec in specs if spec.key.right][:2]
    here = shutil.copytree(two[0].root, tmp_path / "here")
    Watched(two, dask.engine).run()
    before = torch.get_num_threads()
    try:
        for spec in two:
            run_block(replace(spec, root=str(here)))
    finally:
        torch.set_num_threads(before)
    assert kernel_bytes(here) == kernel_bytes(two[0].root)


def test_where_it_is_computed_is_in_no_digest(recordings: Path, checkpoints: Path, dask: LabCluster) -> None:
    here = lab.recipe_for(recordings, checkpoints)
    there = lab.recipe_for(recordings, checkpoints, **dask.settings, shared_root="/mnt/workspace")
    assert there.digest() == here.digest()
    assert Recipe.from_dict(there.to_dict()) == there
    assert lab.recipe_for(recordings, checkpoints, **{**dask.settings, "batch_size": 7}).digest() != here.digest()


def test_workers_that_see_the_workspace_elsewhere_are_told_where(
    specs: list[BlockSpec], computed: Workspace, dask: LabCluster, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "mounted"
    elsewhere.symlink_to(specs[0].root)
    real = Path(specs[0].root)
    Watched(specs[:3], dask.engine.model_copy(update={"shared_root": elsewhere})).run()
    assert len(kernel_bytes(real)) == 3
    nowhere = dask.engine.model_copy(update={"shared_root": tmp_path / "not mounted"})
    (failure,) = Watched(specs[3:4], nowhere).run()
    assert isinstance(failure, BlockFailure)
    assert failure.attempts == 3
    assert re.search(r"does not see the workspace at '.*not mounted' .*shared_root", failure.reason)


# ---- what goes wrong --------------------------------------------------------------------------------------------------------


def test_a_worker_killed_mid_run_costs_nothing_but_its_block(specs: list[BlockSpec], computed: Workspace, dask: LabCluster) -> None:
    """The scheduler here forgives no death, so each is an attempt of the blocks that lay with the worker."""
    dask.hold()
    watched = Watched(specs, dask.engine)
    watched.run_until_in_flight(dask)
    dask.workers[0].kill()
    dask.workers[1].send_signal(signal.SIGCONT)
    outcomes = watched.run()
    assert names(outcomes) == sorted(spec.key.name for spec in specs)
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert kernel_bytes(specs[0].root) == kernel_bytes(computed.root)


def test_a_worker_that_hangs_loses_its_blocks_after_a_lease(
    specs: list[BlockSpec], computed: Workspace, dask: LabCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "LEASE_SECONDS", 3.0)
    dask.hold()
    watched = Watched(specs, dask.engine)
    watched.run_until_in_flight(dask)
    dask.workers[1].send_signal(signal.SIGCONT)
    outcomes = watched.run()
    assert names(outcomes) == sorted(spec.key.name for spec in specs)
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert kernel_bytes(specs[0].root) == kernel_bytes(computed.root)
    assert any("stopped answering 3 s ago; blocks given to others: 2" in line for line in watched.said)


def test_closing_a_runner_takes_back_what_no_worker_has_begun(specs: list[BlockSpec], dask: LabCluster) -> None:
    """And a later one sends the same blocks again."""
    dask.hold()
    watched = Watched(specs[:5], dask.engine)
    watched.run_until_in_flight(dask)
    watched.runner.close()
    with dask.client() as client:
        until(lambda: not any(client.processing().values()))
    dask.make_whole()
    assert len(Watched(specs[:5], dask.engine).run()) == 5


def test_an_error_on_a_worker_is_told_as_here(specs: list[BlockSpec], dask: LabCluster) -> None:
    """The inputs of one chunk are gone: its blocks fail after three attempts, the others are there."""
    lost = specs[0].key.left
    (inputs,) = Path(specs[0].root).rglob(f"inputs/{lost}.safetensors")
    inputs.unlink()
    outcomes = Watched(specs, dask.engine).run()
    touched = {spec.key.name for spec in specs if lost in (spec.key.left, spec.key.right)}
    failures = [outcome for outcome in outcomes if isinstance(outcome, BlockFailure)]
    assert {failure.name for failure in failures} == touched
    assert all(failure.attempts == 3 and lost in failure.reason for failure in failures)
    assert len(kernel_bytes(specs[0].root)) == len(specs) - len(touched) > 0


def test_a_worker_with_another_torch_is_refused(specs: list[BlockSpec], dask: LabCluster) -> None:
    """Its bytes would lie under the name of the other's."""
    group = Path(specs[0].root) / "kernels" / specs[0].key.group / "group.json"
    write_json(group, {**read_json(group), "torch": "2.9.9"})
    (failure,) = Watched(specs[:1], dask.engine).run()
    assert isinstance(failure, BlockFailure)
    assert re.search(rf"has torch {re.escape(torch.__version__)} and the analysis was asked for with 2\.9\.9", failure.reason)
    assert not kernel_bytes(specs[0].root)


def test_a_worker_with_several_threads_computes_one_block_at_a_time(
    specs: list[BlockSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model and the number of torch's threads belong to the process."""
    at_once: list[int] = []
    inside: list[BlockSpec] = []

    def watched(spec: BlockSpec) -> Receipt:
        inside.append(spec)
        at_once.append(len(inside))
        time.sleep(0.02)
        inside.remove(spec)
        return Receipt(spec.key.name, spec.key.shape, 0, 0.0, computed=True)

    monkeypatch.setattr(cluster, "run_block", watched)
    with ThreadPoolExecutor(4) as threads:
        assert len(list(threads.map(cluster.run_block_here, specs))) == len(specs)
    assert set(at_once) == {1}


def test_a_receipt_without_a_block_is_not_believed(
    specs: list[BlockSpec], dask: LabCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers have a copy of the workspace instead of the workspace."""
    monkeypatch.setattr(cluster, "SIGHT_SECONDS", 0.5)
    copy = shutil.copytree(specs[0].root, tmp_path / "copy")
    (failure,) = Watched(specs[:1], dask.engine.model_copy(update={"shared_root": copy})).run()
    assert isinstance(failure, BlockFailure)
    assert "not to be seen" in failure.reason
    assert (len(kernel_bytes(copy)), len(kernel_bytes(specs[0].root))) == (1, 0)


def test_blocks_for_a_gpu_wait_for_a_worker_that_has_one(specs: list[BlockSpec], dask: LabCluster) -> None:
    watched = Watched(specs, dask.engine.model_copy(update={"device": "cuda"}))
    watched.run(lambda: watched.said and any("--resources GPU=1" in line for line in watched.said))
    watched.runner.close()
    assert "no worker offers the resource GPU" in watched.said[-1]
    assert watched.given <= 3
    assert not kernel_bytes(specs[0].root)


def test_a_scheduler_started_anew_is_found_again(specs: list[BlockSpec], computed: Workspace, dask: LabCluster) -> None:
    dask.hold()
    watched = Watched(specs, dask.engine)
    watched.run_until_in_flight(dask)
    end(dask.scheduler)
    watched.run(lambda: any("does not answer" in line for line in watched.said))
    dask.make_whole()
    outcomes = watched.run()
    assert names(outcomes) == sorted(spec.key.name for spec in specs)
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert kernel_bytes(specs[0].root) == kernel_bytes(computed.root)


def test_a_scheduler_that_stays_away_ends_the_job_in_a_sentence(
    specs: list[BlockSpec], dask: LabCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 2.0)
    dask.hold()
    watched = Watched(specs, dask.engine)
    watched.run_until_in_flight(dask)
    end(dask.scheduler)
    with pytest.raises(ClusterError, match=r"went away and did not come back within 2 s; start it, then resume"):
        watched.run()


def test_no_block_left_asks_for_no_cluster(specs: list[BlockSpec]) -> None:
    assert Watched([], EngineSection(executor="dask", scheduler="tcp://127.0.0.1:1")).run() == []


# ---- who may be asked -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"scheduler": "tcp://10.0.0.7:8786"}, r"TLS is required off this machine.*'10\.0\.0\.7'.*tls://10\.0\.0\.7:8786.*tls_ca"),
        ({"scheduler": "tcp://cluster.lab:8786"}, r"TLS is required off this machine.*'cluster\.lab'"),
        ({"scheduler": "tcp://[2001:db8::1]:8786"}, r"TLS is required off this machine"),
        ({"scheduler": "tcp://127.0.0.1.lab:8786"}, r"TLS is required off this machine"),
        ({"scheduler": "tcp://0.0.0.0:8786"}, r"TLS is required off this machine"),
        ({"scheduler": "ws://127.0.0.1:8786"}, r"a scheduler's address reads tls://host:port"),
        ({"scheduler": "127.0.0.1:8786"}, r"a scheduler's address reads tls://host:port"),
        ({"scheduler": "tls://10.0.0.7:8786"}, r"all three.*but there is none"),
        ({"scheduler": "tls://10.0.0.7:8786", "tls_ca": "ca.pem"}, r"all three.*but there is tls_ca\b"),
        ({"scheduler": "tcp://127.0.0.1:8786", "tls_ca": "ca.pem"}, r"tcp:// with none, but there is tls_ca\b"),
        ({}, r"needs scheduler"),
        ({"executor": "local", "scheduler": "tcp://127.0.0.1:8786"}, r"scheduler would change nothing without executor"),
        ({"scheduler": "tcp://127.0.0.1:8786", "shared_root": "relative"}, r"has to be absolute"),
        ({"executor": "ray"}, r"'dask'"),
    ],
)
def test_addresses_that_are_refused(tmp_path: Path, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        lab.recipe_for(tmp_path, tmp_path, **{"executor": "dask", **settings})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "[::1]", "localhost"])
def test_plain_addresses_of_this_machine_are_taken(tmp_path: Path, host: str) -> None:
    assert lab.recipe_for(tmp_path, tmp_path, executor="dask", scheduler=f"tcp://{host}:8786").engine.executor == "dask"


def test_a_missing_package_is_named_with_the_line_that_installs_it(specs: list[BlockSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterError, match=r"the package distributed; install it with .*pip install -r requirements-cluster\.txt"):
        Watched(specs, EngineSection(executor="dask", scheduler="tcp://127.0.0.1:1")).run()


def test_nobody_at_the_address_is_told(specs: list[BlockSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    with pytest.raises(ClusterError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:\d+ within 0\.5 s; start one"):
        Watched(specs, EngineSection(executor="dask", scheduler=f"tcp://127.0.0.1:{free_port()}")).run()


def test_tls_is_spoken_with_the_recipes_certificates_only(specs: list[BlockSpec], tmp_path: Path) -> None:
    """A cluster with certificates computes for a client that shows one of its authority, and not for another."""
    ours, theirs = (certificates(tmp_path / name) for name in ("ours", "theirs"))
    with closing(LabCluster(tmp_path, tls=ours)) as secured:
        secured.start_scheduler()
        secured.start_worker()
        (receipt,) = Watched(specs[:1], secured.engine).run()
        assert isinstance(receipt, Receipt)
        with pytest.raises(ClusterError, match="with these certificates"):
            cluster.connect(secured.engine.model_copy(update={"tls_cert": theirs[1], "tls_key": theirs[2]}), 1.0)
        with pytest.raises(ClusterError, match=r"certificate file '.*gone\.pem' .* cannot be read"):
            cluster.connect(secured.engine.model_copy(update={"tls_ca": tmp_path / "gone.pem"}), 1.0)


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """An authority, and a certificate of it with its key, as docs/cluster.md makes them."""
    folder.mkdir()
    for line in re.findall(r"^openssl .*$", (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8"), re.MULTILINE):
        subprocess.run(line, shell=True, check=True, capture_output=True, cwd=folder)
    return folder / "ca.pem", folder / "node.pem", folder / "node.key"
