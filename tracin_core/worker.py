"""The one bridge between torch and the records: runs the workspace's jobs, one after the other, in a process of its own.

    python -m tracin_core.worker WORKSPACE

The process holds the workspace's worker lock, takes jobs from the catalogue in order, and ends after a while without work. Killed
at any instant, the next worker takes the job up again; finished blocks, checkpoints and recordings are found on disk, not redone.
"""

import argparse
import os
import platform
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import filelock
import numpy as np
import pandas as pd
import psutil

from tracin_core.blocks import BlockFailure, BlockSpec, Layers, Receipt, run_block
from tracin_core.data.files import read_json, write_text
from tracin_core.data.readers import PREPROCESSING, list_recordings, preview_png, preview_wav, read_inputs, sample_digest
from tracin_core.data.samples import require_classes
from tracin_core.data.simulated import read_truth, simulate_recordings
from tracin_core.errors import CheckpointError, DiskFullError, JobCancelledError, JobFailedError, NonFiniteError, TracInError
from tracin_core.recipe import EngineSection, ModelSection, Recipe, TaskSection
from tracin_core.records.checkpoint_files import list_checkpoints
from tracin_core.records.datasets import Inputs, dataset_key, keep_inputs, load_inputs, sealed_chunks, split_key, stored_split
from tracin_core.records.interchange import training_exclusions
from tracin_core.records.jobs import Job
from tracin_core.records.runs import Chunk, Manifest
from tracin_core.records.store import digest_of
from tracin_core.records.workspace import Workspace, open_workspace
from tracin_core.scores.losses import PairLoss

ATTEMPTS: Final = 3  # of a block, before it counts as failed
BEAT_SECONDS: Final = 0.25
IDLE_SECONDS: Final = float(os.environ.get("TRACIN_WORKER_IDLE", "60"))
LOCK_SECONDS: Final = 3.0
RECORDED_LOSSES: Final = {
    "standard": "margin",
    "margin": "margin",
    "ghm": "ghm",
    "ghm_legacy": "ghm_legacy",
    "logistic": "logistic",
    "squared_hinge": "squared_hinge",
}

KERNEL_BUDGET: Final = 256 * 2**20  # bytes of a checkpoint's kernels; beyond it, layers are kept as `rest` and `last`


class Interrupted(Exception):
    """SIGTERM: the job goes back to the queue and this process ends."""


class Progress:
    """What a running job tells: its step, how far it is, when it may end. Also where it learns that it should stop."""

    def __init__(self, workspace: Workspace, job: Job, owner: str, weights: dict[str, float]) -> None:
        self.workspace, self.job, self.owner = workspace, job, owner
        self._weights = weights
        self._before = 0.0
        self._step, self._done, self._total = "", 0, 1
        self._started = time.monotonic()
        self._skipped = 0.0
        self._seen: set[str] = set()
        self._last = 0.0
        self.stopping = False

    def step(self, name: str, total: int) -> None:
        """The named step begins; it has so many parts."""
        self._pass()
        self._step, self._done, self._total = name, 0, max(total, 1)
        self.say(f"{name}: {total}")
        self._tell(stalls=0)

    def skip(self, *names: str) -> None:
        """What these steps would do is on disk already."""
        self._pass()
        for name in names:
            self._step = name
            self._skipped += self._weight()
            self._pass()

    def _pass(self) -> None:
        self._before += self._weight()
        self._seen.add(self._step)
        self._step = ""

    def _weight(self) -> float:
        """The current step's share; a step that is done a second time is quick and has none."""
        return 0.0 if self._step in self._seen else self._weights.get(self._step, 0.0)

    def advance(self, done: int, total: int | None = None) -> None:
        """So many parts of the step are done.

        Raises:
            JobCancelledError: somebody cancelled the job.
            Interrupted: this process was asked to end.
        """
        self._done, self._total = done, total or self._total
        if time.monotonic() - self._last >= BEAT_SECONDS or self.stopping:
            self._tell()

    def say(self, line: str) -> None:
        """The line is in the job's log."""
        path = self.workspace.queue.log_path(self.job.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}\n")

    def set_run(self, run_id: str) -> None:
        """The job is known to make this run."""
        self._tell(run_id=run_id)

    def _tell(self, **more: object) -> None:
        if self.stopping:
            raise Interrupted
        self._last = time.monotonic()
        fraction = (self._before + self._weight() * self._done / self._total) / sum(self._weights.values())
        going = self.workspace.queue.beat(
            self.job.id,
            self.owner,
            step=self._step,
            done=self._done,
            total=self._total,
            fraction=min(fraction, 1.0),
            eta_seconds=self._remaining(fraction),
            **more,
        )
        if not going:
            raise JobCancelledError(f"'{self.job.title}' was cancelled during '{self._step}'; finished blocks are kept.")

    def _remaining(self, fraction: float) -> float | None:
        """Seconds left at the pace so far; None in the first three seconds, when it would be a guess."""
        elapsed = time.monotonic() - self._started
        made = fraction - self._skipped / sum(self._weights.values())
        if elapsed < 3 or made <= 0.02:
            return None
        return elapsed * max(1 - fraction, 0.0) / made


def main(arguments: list[str] | None = None) -> int:
    """Runs until there has been no work for a while; 0 also when another worker is at work already."""
    parser = argparse.ArgumentParser(prog="python -m tracin_core.worker", description="Runs the background jobs of a workspace.")
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--idle", type=float, default=IDLE_SECONDS, help="seconds without work before the process ends")
    chosen = parser.parse_args(arguments)
    workspace = open_workspace(chosen.workspace)
    lock = workspace.queue.worker_lock()
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except filelock.Timeout:
        return 0
    with lock:
        serve(workspace, chosen.idle)
    return 0


def serve(workspace: Workspace, idle_seconds: float) -> None:
    """Jobs are done one after the other until there has been none for so long, or SIGTERM arrives."""
    owner = f"{psutil.boot_time():.0f}:{os.getpid()}:{psutil.Process().create_time():.2f}:{uuid.uuid4().hex[:6]}"
    current: list[Progress] = []
    stopped: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stopped.append(number)
        for progress in current:
            progress.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    workspace.queue.recover()
    last_work = time.monotonic()
    while not stopped and time.monotonic() - last_work < idle_seconds:
        job = workspace.queue.claim(owner)
        if job is None:
            time.sleep(0.1)
            continue
        handler, weights = HANDLERS[job.kind]
        progress = Progress(workspace, job, owner, weights)
        current[:] = [progress]
        run_job(progress, handler)
        current.clear()
        last_work = time.monotonic()


def run_job(progress: Progress, handler: Callable[[Progress], dict[str, Any]]) -> None:
    """The job has ended in the catalogue, well or not; no error leaves here."""
    job, queue, owner = progress.job, progress.workspace.queue, progress.owner
    try:
        result = handler(progress)
    except Interrupted:
        progress.say("interrupted: queued again")
        queue.finish(job.id, owner, "queued")
    except JobCancelledError as failure:
        progress.say(str(failure))
        queue.finish(job.id, owner, "cancelled", error=str(failure))
    except DiskFullError as failure:
        progress.say(str(failure))
        queue.finish(job.id, owner, "paused", error=str(failure))
    except TracInError as failure:
        progress.say(f"{type(failure).__name__}: {failure}")
        queue.finish(job.id, owner, "failed", error=str(failure))
    except Exception as failure:
        incident = uuid.uuid4().hex[:8]
        progress.say(f"incident {incident}\n{traceback.format_exc()}")
        sentence = (
            f"Something unforeseen happened ({type(failure).__name__}: {failure}); the job's log has the details under {incident}."
        )
        queue.finish(job.id, owner, "failed", error=sentence)
    else:
        progress.say("done")
        queue.finish(job.id, owner, "done", result=result)


# ---- analysis ---------------------------------------------------------------------------------------------------------------


def analyse(progress: Progress) -> dict[str, Any]:
    """The run of the job's recipe is finished."""
    recipe = Recipe.from_dict(progress.job.request["recipe"])
    run_id = progress.job.request["run_id"]
    compute_run(progress, recipe, run_id)
    return {"run_id": run_id}


def compute_run(progress: Progress, recipe: Recipe, run_id: str) -> None:
    """Samples read, checkpoints taken in, model checked, missing blocks computed, manifest written: in this order."""
    from tracin_core.engine.health import check_model
    from tracin_core.engine.kernel import kernel_groups
    from tracin_core.engine.models import build_model

    workspace = progress.workspace
    use_threads(recipe.engine)
    samples, _, chunks = read_dataset(progress, recipe)
    model = build_model(recipe.model)
    checkpoints = take_in(
        progress, recipe.checkpoints.folder, recipe.checkpoints.prefix, recipe.model, epochs=recipe.checkpoints.epochs
    )
    loss = recorded_loss(recipe.task, checkpoints)
    train, test = (sum(len(chunk.ids) for chunk in chunks[side]) for side in ("train", "validation"))
    layers = kernel_groups(model, cells=train * (train + test) + test * test, budget=recipe.engine.kernel_budget or KERNEL_BUDGET)
    progress.say(f"kernels are kept by {len(layers)} layer groups: {', '.join(layers)}")
    groups = tuple(digest_of(group_definition(recipe, str(checkpoint["digest"]), tuple(layers))) for checkpoint in checkpoints)
    manifest = Manifest(
        id=run_id,
        recipe=recipe.to_dict(),
        created=time.time(),
        layers=tuple(layers),
        checkpoints=tuple(checkpoints),
        groups=groups,
        chunks={side: chunks[side] for side in ("train", "validation")},
        loss=asdict(loss),
        dataset=dataset_key(recipe),
        truth=tuple(asdict(fault) for fault in read_truth(recipe.data.root)),
        versions={"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy", "scipy")}},
    )
    progress.step("health", 1)
    load_checkpoint(model, workspace, checkpoints[-1])
    largest = max((chunk for side in manifest.chunks.values() for chunk in side), key=lambda chunk: len(chunk.ids))
    folder = workspace.root / "datasets" / manifest.dataset
    probes = to_tensor(load_inputs(folder, largest.digest), recipe.engine)
    health = tuple(asdict(check) for check in check_model(model.to(recipe.engine.device), probes[:8]))
    progress.say(estimate(model, probes, recipe.engine))
    compute_blocks(progress, recipe, manifest, layers)
    Manifest(**{**manifest.__dict__, "health": health}).write(workspace.root / "runs" / run_id, samples)
    workspace.register_run(run_id, recipe, state="done")


def compute_blocks(progress: Progress, recipe: Recipe, manifest: Manifest, layers: Layers) -> None:
    """Every block of the run is on disk; only missing ones are computed.

    Raises:
        JobFailedError: some blocks could not be computed; the others are kept.
    """
    workspace = progress.workspace
    per_checkpoint = [manifest.kernel_keys(group) for group in manifest.groups]
    total = sum(len(keys) for keys in per_checkpoint)
    progress.step("kernels", total)
    specs: list[BlockSpec] = []
    for checkpoint, keys in zip(manifest.checkpoints, per_checkpoint, strict=True):
        missing = workspace.store.missing(keys)
        digest = str(checkpoint["digest"])
        if missing:
            definition = group_definition(recipe, digest, manifest.layers)
            workspace.store.describe_group(digest_of(definition), definition)
        specs += [
            BlockSpec(str(workspace.root), manifest.dataset, digest, key, recipe.model, recipe.engine, layers) for key in missing
        ]
        progress.advance(0)
    found = total - len(specs)
    failures: list[BlockFailure] = []
    for done, outcome in enumerate(local_runner(specs), start=found + 1):
        if isinstance(outcome, BlockFailure):
            failures.append(outcome)
            progress.say(f"block {outcome.name} failed after {outcome.attempts} attempts: {outcome.reason}")
        else:
            record_block(workspace, outcome)
            for note in outcome.notes:
                progress.say(f"block {outcome.name}: {note}")
        progress.advance(done)
    progress.say(f"blocks computed: {len(specs) - len(failures)}, found: {found}")
    if failures:
        raise JobFailedError(
            f"{len(failures)} of {total} blocks failed, first '{failures[0].name}': {failures[0].reason} The other {total - len(failures)} "
            f"are kept; mend the cause, then resume."
        )


def local_runner(specs: Iterable[BlockSpec]) -> Iterator[Receipt | BlockFailure]:
    """The blocks one after the other, in this process; each is tried `ATTEMPTS` times before it counts as failed.

    Raises:
        DiskFullError: waits for room rather than counting as an attempt.
    """
    for spec in specs:
        yield tried(spec)


def tried(spec: BlockSpec) -> Receipt | BlockFailure:
    """The block's receipt, or why there is none after all attempts."""
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            return run_block(spec)
        except DiskFullError:
            raise
        except NonFiniteError as failure:
            return BlockFailure(spec.key.name, str(failure), 1)  # the same numbers would come again
        except (TracInError, OSError, RuntimeError, MemoryError) as failure:
            reason = str(failure) or type(failure).__name__
    return BlockFailure(spec.key.name, reason, ATTEMPTS)


def record_block(workspace: Workspace, receipt: Receipt) -> None:
    """The catalogue knows the block, once its bytes are on disk."""
    with workspace.catalogue.transaction() as connection:
        connection.execute(
            "INSERT INTO block (name, shape, crc, seconds, created) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET crc = excluded.crc, seconds = excluded.seconds, created = excluded.created",
            (receipt.name, str(list(receipt.shape)), receipt.crc, receipt.seconds, time.time()),
        )


def estimate(model: Any, inputs: Any, engine: EngineSection) -> str:
    """What the largest kernel block will take, in words, from the sizes that a few samples show."""
    from tracin_core.engine.kernel import memory_estimate

    need = memory_estimate(model, inputs, batch_size=engine.batch_size)
    return (
        f"estimate for a block of {len(inputs)} x {len(inputs)} samples: {need.total / 2**20:.0f} MiB "
        f"(gradients kept at once {need.gradients / 2**20:.0f} MiB), {need.differentiated} samples differentiated"
    )


def group_definition(recipe: Recipe, weights: str, layers: tuple[str, ...]) -> dict[str, Any]:
    """Everything that the bytes of one checkpoint's blocks depend on, beside the samples."""
    from tracin_core.engine import ENGINE_VERSION

    return {
        "weights": weights,
        "model": recipe.model.model_dump(mode="json"),
        "preprocessing": PREPROCESSING,
        "layers": list(layers),
        "cotangent": None,
        "precondition": None,
        "dtype": "float32",
        "batch_size": recipe.engine.batch_size,
        "threads": recipe.engine.threads,
        "device": recipe.engine.device,
        "engine": ENGINE_VERSION,
        "torch": version("torch"),
    }


def recorded_loss(task: TaskSection, checkpoints: list[dict[str, Any]]) -> PairLoss:
    """The loss of the recipe where it says one, else the loss that the last checkpoint records.

    Raises:
        CheckpointError: neither says it; it is asked for, never guessed.
    """
    arguments = checkpoints[-1].get("arguments") or {}
    name: Any = task.loss or RECORDED_LOSSES.get(str(arguments.get("loss_type", "")))
    margin = task.margin if task.margin is not None else arguments.get("margin")
    if name is None or margin is None:
        raise CheckpointError(
            f"'{checkpoints[-1]['source']}' records no {'loss' if name is None else 'margin'} (its args hold "
            f"{', '.join(list(arguments)[:4]) or 'nothing'}); give the loss and the margin that the model was trained with."
        )
    given = {"ghm_bins": task.ghm_bins, "ghm_alpha": task.ghm_alpha, "ghm_batch": task.ghm_batch}
    recorded = {
        "ghm_bins": arguments.get("ghm_bins"),
        "ghm_alpha": arguments.get("ghm_alpha"),
        "ghm_batch": arguments.get("batch_size"),
    }
    settings: dict[str, Any] = {key: value if value is not None else recorded[key] for key, value in given.items()}
    unsaid = [key for key, value in settings.items() if value is None]
    if name.startswith("ghm") and unsaid:
        raise CheckpointError(
            f"'{checkpoints[-1]['source']}' was trained with {name} but records no {', '.join(unsaid)}, which decide its weights; "
            f"give them in analysis.toml under [task]."
        )
    return PairLoss(name=name, margin=float(margin), **{key: value for key, value in settings.items() if value is not None})


# ---- samples ----------------------------------------------------------------------------------------------------------------


def read_dataset(progress: Progress, recipe: Recipe) -> tuple[pd.DataFrame, Inputs, dict[str, tuple[Chunk, ...]]]:
    """The samples with split and digest, their inputs, and the sealed chunks of each side; previews are on disk."""
    folder = progress.workspace.root / "datasets" / dataset_key(recipe)
    samples = list_recordings(recipe.data.root, recipe.data.material, recipe.data.frequency)
    samples = stored_split(samples, recipe.split, folder, progress.say)
    for side in ("train", "validation"):
        require_classes(samples[samples["split"] == side])
    progress.step("samples", len(samples))
    inputs = read_inputs(recipe.data.root, samples, progress=progress.advance)
    samples["digest"] = [sample_digest(array) for array in inputs]
    progress.step("previews", len(samples))
    for row, (digest, path) in enumerate(zip(samples["digest"], samples["path"], strict=True)):
        stem = folder / "previews" / digest
        if not stem.with_suffix(".wav").exists():
            preview_png(inputs[row], stem.with_suffix(".png"))
            preview_wav(recipe.data.root / path, stem.with_suffix(".wav"))
        progress.advance(row + 1)
    chunks = sealed_chunks(samples, folder / f"chunks-{split_key(recipe.split)}.json")
    place = {sample_id: row for row, sample_id in enumerate(samples["id"])}
    for chunk in (*chunks["train"], *chunks["validation"]):
        keep_inputs(folder, chunk, inputs[[place[sample_id] for sample_id in chunk.ids]])
    return samples, inputs, chunks


# ---- checkpoints ------------------------------------------------------------------------------------------------------------


def take_in(
    progress: Progress, folder: Path, prefix: str, section: ModelSection, *, epochs: tuple[int, ...] | None = None
) -> list[dict[str, Any]]:
    """The folder's checkpoints by epoch, each kept as canonical weights.

    Raises:
        CheckpointError: the first file that was refused, in its own words.
    """
    outcomes = inspect_files(progress, list_checkpoints(folder, prefix), section)
    for outcome in outcomes:
        if isinstance(outcome, CheckpointError):
            raise outcome
    checkpoints = [outcome for outcome in outcomes if isinstance(outcome, dict)]
    if epochs is not None:
        absent = sorted(set(epochs) - {checkpoint["epoch"] for checkpoint in checkpoints})
        if absent:
            raise CheckpointError(f"'{folder.name}' has no checkpoint of epoch {absent[0]}; correct the recipe's epochs.")
        checkpoints = [checkpoint for checkpoint in checkpoints if checkpoint["epoch"] in epochs]
    return checkpoints


def inspect_files(progress: Progress, paths: list[Path], section: ModelSection) -> list[dict[str, Any] | CheckpointError]:
    """Each file taken in, or refused with its sentence."""
    from tracin_core.engine.checkpoints import intake_folder
    from tracin_core.engine.models import build_model

    progress.step("checkpoints", len(paths))
    store = progress.workspace.root / "checkpoints"
    outcomes = intake_folder(paths, store, build_model(section), on_each=progress.advance)
    return [outcome if isinstance(outcome, CheckpointError) else outcome.to_dict() for outcome in outcomes]


def load_checkpoint(model: Any, workspace: Workspace, checkpoint: dict[str, Any]) -> None:
    from tracin_core.engine.checkpoints import load_weights

    load_weights(model, workspace.root / "checkpoints", str(checkpoint["digest"]))


def inspect(progress: Progress) -> dict[str, Any]:
    """One entry per file of the folder: what it is, or why it was refused."""
    request = progress.job.request
    paths = list_checkpoints(Path(request["folder"]), request["prefix"])
    outcomes = inspect_files(progress, paths, ModelSection(layout=request["layout"]))
    files = [
        {"file": path.name, "accepted": False, "reason": str(outcome)}
        if isinstance(outcome, CheckpointError)
        else {"file": path.name, "accepted": True, **outcome}
        for path, outcome in zip(paths, outcomes, strict=True)
    ]
    return {"files": files}


# ---- demo and training ------------------------------------------------------------------------------------------------------


def demo(progress: Progress) -> dict[str, Any]:
    """Simulated recordings with planted faults, a ranker trained on them, and its analysis."""
    material, frequency = progress.job.request["material"], progress.job.request["frequency"]
    name = f"SIMULATED_{material}_{frequency}"
    root = progress.workspace.root / "recordings" / name
    progress.step("recordings", 1)
    if not (root / "truth.json").exists():
        simulate_recordings(root, material=material, frequency=frequency, progress=progress.advance)
    folder = progress.workspace.root / "trainings" / name
    recipe = Recipe.from_dict(
        {
            "name": name.replace("_", " "),
            "simulated": True,
            "data": {"root": root, "material": material, "frequency": frequency},
            "checkpoints": {"folder": folder},
        }
    )
    if (folder / "training.json").exists():
        progress.skip("training")
    else:
        train_once(progress, recipe, folder, {})
    run_id = progress.workspace.run_id(recipe)
    progress.set_run(run_id)
    if not progress.workspace.is_done(run_id):
        progress.workspace.register_run(run_id, recipe)
        compute_run(progress, recipe, run_id)
    return {"run_id": run_id, "training": read_json(folder / "training.json")}


def train(progress: Progress) -> dict[str, Any]:
    """A ranker is trained; its checkpoints are in the requested folder, and beside them the recipe that analyses them."""
    request = progress.job.request
    folder = Path(request["folder"])
    train_once(progress, Recipe.from_dict(request["recipe"]), folder, request["settings"], request.get("exclusions"))
    analysis = Recipe.from_dict({**request["recipe"], "name": folder.name, "checkpoints": {"folder": folder}})
    write_text(folder / "analysis.toml", analysis.to_toml())
    return {"folder": str(folder), "recipe": str(folder / "analysis.toml"), **read_json(folder / "training.json")}


def train_once(
    progress: Progress, recipe: Recipe, folder: Path, settings: dict[str, Any], exclusions: dict[str, Any] | None = None
) -> None:
    """Checkpoints and `training.json` are in the folder; the split is the recipe's stored one, whatever is excluded.

    Args:
        settings: of the training, beside the recipe's task and model.
        exclusions: `file` (its name) and `lines` of an exclusion list.
    """
    from tracin_core.engine.training import train_ranker

    use_threads(recipe.engine)
    samples, inputs, _ = read_dataset(progress, recipe)
    listed = exclusions or {"file": None, "lines": []}
    excluded = training_exclusions(listed["lines"], samples)
    told = {name: list(getattr(excluded, name)) for name in ("matched", "elsewhere", "unmatched")}
    progress.step("training", 1)
    train_ranker(
        inputs,
        samples,
        folder,
        **recipe.task.model_dump(include={"loss", "margin", "ghm_bins", "ghm_alpha"}, exclude_none=True),
        **settings,
        layout=recipe.model.layout,
        exclude_samples=excluded.samples,
        exclude_pairs=excluded.pairs,
        exclusion_list={"file": listed["file"], **told},
        progress=progress.advance,
    )


def use_threads(engine: EngineSection) -> None:
    import torch

    torch.set_num_threads(engine.threads)


def to_tensor(array: Inputs, engine: EngineSection) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).to(engine.device)


HANDLERS: Final[dict[str, tuple[Callable[[Progress], dict[str, Any]], dict[str, float]]]] = {
    "analysis": (analyse, {"samples": 1, "previews": 1, "checkpoints": 2, "health": 1, "kernels": 8}),
    "inspection": (inspect, {"checkpoints": 1}),
    "training": (train, {"samples": 1, "previews": 1, "training": 20}),
    "demo": (demo, {"recordings": 2, "samples": 1, "previews": 1, "training": 20, "checkpoints": 2, "health": 1, "kernels": 4}),
}

if __name__ == "__main__":
    sys.exit(main())
