"""The one bridge between torch and the records: runs the workspace's jobs, one after the other, in a process of its own.

    python -m tracin_core.worker WORKSPACE

The process holds the workspace's worker lock, takes jobs from the catalogue in order, and ends after a while without work. Killed
at any instant, the next worker takes the job up again; finished blocks, checkpoints and recordings are found on disk, not redone.
"""

import argparse
import errno
import os
import platform
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import filelock
import numpy as np
import pandas as pd

from tracin_core.blocks import BlockFailure, BlockSpec, Layers, Receipt, run_block
from tracin_core.cluster import dask_runner
from tracin_core.data.files import read_json, write_json, write_text
from tracin_core.data.readers import Inputs
from tracin_core.data.samples import require_labels
from tracin_core.data.simulated import simulate_recordings
from tracin_core.errors import (
    CheckpointError,
    DiskFullError,
    JobCancelledError,
    JobFailedError,
    NoCheckpointsError,
    NonFiniteError,
    OutputShapeError,
    TracInError,
    WorkspaceError,
)
from tracin_core.evaluating import calibrate, faithfulness, retrain
from tracin_core.reading import MEASURED, Dataset, plugins_of, read_dataset, reader_of, truth_of
from tracin_core.recipe import (
    MODEL_FORMS,
    ClassificationTask,
    Cotangent,
    EngineSection,
    ModelSection,
    PluginModel,
    Recipe,
)
from tracin_core.records import processes
from tracin_core.records.checkpoint_files import list_checkpoints
from tracin_core.records.datasets import dataset_key, load_inputs
from tracin_core.records.interchange import training_exclusions
from tracin_core.records.plugins import plugin_digest
from tracin_core.records.progress import BEAT_SECONDS, InterruptedJob, Progress, Pulse, SteppedBack
from tracin_core.records.runs import Manifest
from tracin_core.records.store import BlockKey, digest_of
from tracin_core.records.workspace import Workspace, open_workspace
from tracin_core.scores.examples import SampleExamples
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.recorded import recorded_loss
from tracin_core.scores.sample_losses import SampleLoss, sample_loss

ROOM_FACTOR: Final = 1.1  # what a run's blocks take on a disk, beside their bytes
NAMED_BLOCKS: Final = 3  # in a sentence
ATTEMPTS: Final = 3  # of a block, before it counts as failed
IDLE_SECONDS: Final = float(os.environ.get("TRACIN_WORKER_IDLE", "60"))
LOOK_SECONDS: Final = 0.1  # for work, while there is none
ROOM_SECONDS: Final = 1.0  # for room on a full disk
RECORD_TRIES: Final = 30
LOCK_SECONDS: Final = 3.0
MORE_ROOM: Final = 2**20
SETTLE_SECONDS: Final = 2.0  # a file that did not change for so long may be whole
FULL: Final = (errno.ENOSPC, errno.EDQUOT)
KERNEL_BUDGET: Final = 256 * 2**20  # bytes of a checkpoint's kernels; beyond it, layers are kept as `rest` and `last`


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


# ---- analysis ---------------------------------------------------------------------------------------------------------------


def analyse(progress: Progress) -> dict[str, Any]:
    """The run of the job's recipe is finished; a job that follows a training begins before that has ended."""
    request = progress.job.request
    recipe = Recipe.from_dict(request["recipe"])
    if "quiet_seconds" in request:
        return follow(progress, recipe, float(request["quiet_seconds"]))
    compute_run(progress, recipe, request["run_id"])
    return {"run_id": request["run_id"]}


def compute_run(
    progress: Progress,
    recipe: Recipe,
    run_id: str,
    *,
    dataset: Dataset | None = None,
    checkpoints: list[dict[str, Any]] | None = None,
) -> None:
    """Samples read, checkpoints taken in, model checked, missing blocks computed, manifest written: in this order.

    Args:
        dataset, checkpoints: where the caller has them already.
    """
    from tracin_core.engine.health import check_model
    from tracin_core.engine.kernel import kernel_groups

    workspace = progress.workspace
    use_threads(recipe.engine)
    samples, _, chunks = dataset or read_dataset(progress, recipe)
    plugin = plugin_of(workspace, recipe)  # before its code runs, so that no other code is taken for it
    model = model_of(workspace, recipe.model)
    checkpoints = checkpoints or take_in(
        progress, recipe.checkpoints.folder, recipe.checkpoints.prefix, recipe.model, epochs=recipe.checkpoints.epochs
    )
    loss = recorded_loss(recipe.task, checkpoints)
    folder = workspace.root / "datasets" / dataset_key(recipe, plugins_of(workspace))
    largest = max((chunk for side in MEASURED for chunk in chunks[side]), key=lambda chunk: len(chunk.ids))
    load_checkpoint(model, workspace, checkpoints[-1])
    model, probes = model.to(recipe.engine.device), to_tensor(load_inputs(folder, largest.digest)[0], recipe.engine)
    outputs = outputs_of(model, probes[:2], recipe, samples)
    require_labels(samples, recipe.task, outputs)
    cotangent = cotangent_of(recipe, outputs)
    require_suited(loss, cotangent, outputs)
    each = outputs if cotangent == "outputs" else 1
    train, test = (each * sum(len(chunk.ids) for chunk in chunks[side]) for side in MEASURED)
    layers = kernel_groups(model, cells=train * (train + test) + test * test, budget=recipe.engine.kernel_budget or KERNEL_BUDGET)
    progress.say(f"kernels are kept by {len(layers)} layer groups: {', '.join(layers)}")
    preprocessing = reader_of(workspace, recipe.data).preprocessing
    blocks = Blocks(workspace, recipe, layers, cotangent, outputs, preprocessing, plugin)
    manifest = Manifest(
        id=run_id,
        recipe=recipe.to_dict(),
        created=time.time(),
        layers=tuple(layers),
        checkpoints=tuple(checkpoints),
        groups=tuple(digest_of(blocks.group(checkpoint)) for checkpoint in checkpoints),
        chunks={side: chunks[side] for side in MEASURED},
        loss=asdict(loss),
        dataset=folder.name,
        truth=tuple(asdict(fault) for fault in truth_of(recipe, samples)),
        versions={"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy", "scipy")}},
        cotangent=cotangent,
        outputs=outputs,
        who=progress.job.who,
    )
    progress.step("health", 1)
    health = tuple(asdict(check) for check in check_model(model, probes[:8]))
    progress.say(estimate(model, probes, recipe.engine, outputs))
    compute_blocks(progress, blocks, manifest)
    Manifest(**{**manifest.__dict__, "health": health}).write(workspace.root / "runs" / run_id, samples)
    workspace.register_run(run_id, recipe, state="done")


def outputs_of(model: Any, probes: Any, recipe: Recipe, samples: pd.DataFrame) -> int:
    """How many outputs the model has for each sample.

    Raises:
        OutputShapeError: not as many as the task reads.
    """
    from tracin_core.engine.kernel import model_outputs

    shape = tuple(model_outputs(model, probes).shape[1:])
    outputs = int(np.prod(shape))
    classes = int(samples["label"].max()) + 1 if isinstance(recipe.task, ClassificationTask) else 1
    wanted = "one output" if classes == 1 else "one output, or two," if classes == 2 else f"at least {classes} outputs"
    if len(shape) > 1 or (outputs < classes and (outputs, classes) != (1, 2)) or (outputs > 1 and classes == 1):
        raise OutputShapeError(
            f"The model gives each sample outputs of shape {shape}, but {recipe.task.kind} of this data needs {wanted} per sample; choose "
            f"the model that the checkpoints belong to, or another task."
        )
    return outputs


def cotangent_of(recipe: Recipe, outputs: int) -> Cotangent:
    """Whose gradients the kernels hold products of."""
    return recipe.task.kernel if isinstance(recipe.task, ClassificationTask) and outputs > 1 else "score"


def require_suited(loss: PairLoss | SampleLoss, cotangent: Cotangent, outputs: int) -> None:
    """The loss can be asked of such a kernel and of so many outputs.

    Raises:
        ViewError: it cannot, and what to choose; better now than after the computation.
    """
    if isinstance(loss, SampleLoss):
        shape, target = (1,) if outputs == 1 else (1, outputs), np.zeros(1, dtype=np.int64)
        SampleExamples(pd.DataFrame({"id": ["probe"]}), np.zeros((1, *shape), dtype=np.float32), target, loss, cotangent)
        sample_loss(loss, np.zeros(shape), target)


def plugin_of(workspace: Workspace, recipe: Recipe) -> str | None:
    """Digest of the file that builds the recipe's model, where it is a plugin's."""
    return plugin_digest(plugins_of(workspace), recipe.model.name) if isinstance(recipe.model, PluginModel) else None


@dataclass(frozen=True)
class Blocks:
    """What the bytes of a run's blocks depend on, beside the samples."""

    workspace: Workspace
    recipe: Recipe
    layers: Layers
    cotangent: Cotangent
    outputs: int
    preprocessing: str
    plugin: str | None  # digest of the file that builds the model

    def group(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Everything that one checkpoint's blocks have in common; its digest is their folder's name."""
        from tracin_core.engine import ENGINE_VERSION

        engine = self.recipe.engine
        return {
            "weights": str(checkpoint["digest"]),
            "model": self.recipe.model.model_dump(mode="json"),
            "preprocessing": self.preprocessing,
            "layers": list(self.layers),
            "cotangent": None if self.cotangent == "score" else self.cotangent,
            "precondition": None,
            "dtype": "float32",
            "batch_size": engine.batch_size,
            "threads": engine.threads,
            "device": engine.device,
            "engine": ENGINE_VERSION,
            "torch": version("torch"),
            **({} if self.outputs == 1 else {"outputs": self.outputs}),
            **({} if self.plugin is None else {"plugin": self.plugin}),
        }

    def spec(self, manifest: Manifest, checkpoint: dict[str, Any], key: BlockKey) -> BlockSpec:
        return BlockSpec(
            root=str(self.workspace.root),
            dataset=manifest.dataset,
            checkpoint=str(checkpoint["digest"]),
            key=key,
            model=self.recipe.model,
            engine=self.recipe.engine,
            layers=self.layers,
            cotangent=self.cotangent,
            plugin=self.plugin,
        )


def compute_blocks(progress: Progress, blocks: Blocks, manifest: Manifest) -> None:
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
        if missing:
            group = blocks.group(checkpoint)
            workspace.store.describe_group(digest_of(group), group)
        specs += [blocks.spec(manifest, checkpoint, key) for key in missing]
        progress.advance(0)
    progress.require_room(
        int(ROOM_FACTOR * sum(spec.key.bytes for spec in specs)), f"what is left of the run ({len(specs)} blocks)"
    )
    found = total - len(specs)
    failures: list[BlockFailure] = []
    with closing(outcomes_of(progress, blocks.recipe.engine, specs, found)) as outcomes:
        for done, outcome in enumerate(outcomes, start=found + 1):
            if isinstance(outcome, BlockFailure):
                failures.append(outcome)
                progress.say(f"block {outcome.name} failed after {outcome.attempts} attempts: {outcome.reason}")
                progress.note("block_failed", block=outcome.name, reason=outcome.reason, attempts=outcome.attempts)
            else:
                record_block(workspace, outcome)
                note_block(progress, outcome)
            progress.advance(done)
    progress.say(f"blocks computed: {len(specs) - len(failures)}, found: {found}")
    if failures:
        progress.failures = [asdict(failure) for failure in failures]
        named = ", ".join(f"'{failure.name}'" for failure in failures[:NAMED_BLOCKS])
        more = f" and {len(failures) - NAMED_BLOCKS} more, which the job's log names" if len(failures) > NAMED_BLOCKS else ""
        raise JobFailedError(
            f"Done with {len(failures)} of {total} blocks failed: {named}{more} ({failures[0].reason}) The other {total - len(failures)} "
            f"are kept; mend the cause, then resume."
        )


def outcomes_of(
    progress: Progress, engine: EngineSection, specs: Iterable[BlockSpec], done: int
) -> Generator[Receipt | BlockFailure, None, None]:
    """What became of each block, wherever the recipe has it computed; the job goes on telling that it lives while it waits."""
    with closing(runner_for(engine, progress.say)(with_room(progress, specs))) as outcomes:
        for outcome in outcomes:
            if outcome is None:
                progress.advance(done)
            else:
                done += 1
                yield outcome


def runner_for(
    engine: EngineSection, say: Callable[[str], None]
) -> Callable[[Iterable[BlockSpec]], Generator[Receipt | BlockFailure | None, None, None]]:
    """Here or on a cluster: the same bytes. None stands for nothing new."""
    return local_runner if engine.executor == "local" else partial(dask_runner, engine=engine, attempts=ATTEMPTS, say=say)


def with_room(progress: Progress, specs: Iterable[BlockSpec]) -> Iterator[BlockSpec]:
    """Each spec, once the disk has room for its block.

    Raises:
        DiskFullError: it has not.
    """
    for spec in specs:
        progress.require_room(spec.key.bytes, "the next block")
        yield spec


def note_block(progress: Progress, receipt: Receipt) -> None:
    """What became of the block is in the logs."""
    facts = {"checkpoint": receipt.name.partition("/")[0], "ms": round(1000 * receipt.seconds), "rss": receipt.rss_mb}
    progress.note("block", block=receipt.name, computed=receipt.computed, **facts)
    for note in receipt.notes:
        progress.say(f"block {receipt.name}: {note}")


def local_runner(specs: Iterable[BlockSpec]) -> Generator[Receipt | BlockFailure, None, None]:
    """The blocks one after the other, in this process; each is tried `ATTEMPTS` times before it counts as failed.

    Raises:
        DiskFullError: waits for room rather than counting as an attempt.
    """
    for spec in specs:
        yield tried(spec)


def tried(spec: BlockSpec) -> Receipt | BlockFailure:
    """The block's receipt, or why there was none at the first of all attempts: later ones may fail of what that one left."""
    reasons: list[str] = []
    while len(reasons) < ATTEMPTS:
        try:
            return run_block(spec)
        except DiskFullError:
            raise
        except NonFiniteError as failure:
            return BlockFailure(spec.key.name, str(failure), 1)  # the same numbers would come again
        except (TracInError, OSError, RuntimeError, MemoryError) as failure:
            if isinstance(failure, OSError) and failure.errno in FULL:
                raise
            reasons.append(reason_of(failure))
    return BlockFailure(spec.key.name, reasons[0], ATTEMPTS)


def record_block(workspace: Workspace, receipt: Receipt) -> None:
    """The catalogue knows the block, once its bytes are on disk."""
    with workspace.catalogue.transaction() as connection:
        connection.execute(
            "INSERT INTO block (name, shape, crc, seconds, created) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET crc = excluded.crc, seconds = excluded.seconds, created = excluded.created",
            (receipt.name, str(list(receipt.shape)), receipt.crc, receipt.seconds, time.time()),
        )


def estimate(model: Any, inputs: Any, engine: EngineSection, outputs: int) -> str:
    """What the largest kernel block will take, in words, from the sizes that a few samples show."""
    import torch

    from tracin_core.engine.kernel import memory_estimate

    cotangent = None if outputs == 1 else torch.ones(len(inputs), outputs, device=inputs.device)
    need = memory_estimate(model, inputs, left_cotangent=cotangent, batch_size=engine.batch_size)
    return (
        f"estimate for a block of {len(inputs)} x {len(inputs)} samples: {need.total / 2**20:.0f} MiB "
        f"(gradients kept at once {need.gradients / 2**20:.0f} MiB), {need.differentiated} samples differentiated"
    )


# ---- a training that goes on ------------------------------------------------------------------------------------------------


def follow(progress: Progress, recipe: Recipe, quiet_seconds: float) -> dict[str, Any]:
    """The run of the recipe is finished once its training has ended; until then, each new checkpoint makes a run of those so far.

    The training has ended when `training.json` is there, or when no file of it changed for `quiet_seconds`. A file that is refused may
    still be being written: it is looked at again when it has changed, and refused for good only at the end. While nothing is new, other
    jobs go first.

    Raises:
        CheckpointError: the training left a file that cannot be taken in.
        SteppedBack: others wait.
    """
    dataset = read_dataset(progress, recipe)
    before: Files = {}
    refused: Files = {}
    progress.step("following", 1)
    while True:
        ended = ended_by(recipe, progress.job.created, quiet_seconds)
        standing = standing_files(progress, recipe)
        if ended and standing == files_of(recipe):
            progress.say(f"the training has ended: {ended}")
            return {"run_id": run_of_all(progress, recipe), "ended": ended}
        new = {path: state for path, state in standing.items() if refused.get(path) != state}
        if new != before:
            before = new
            outcomes = dict(zip(new, inspect_files(progress, list(new), recipe.model), strict=True))
            for path, outcome in outcomes.items():
                if isinstance(outcome, CheckpointError):
                    refused[path] = new[path]
                    progress.say(f"not yet: {outcome}")
            run_so_far(progress, recipe, dataset, [outcome for outcome in outcomes.values() if isinstance(outcome, dict)])
            progress.step("following", 1)
        elif progress.workspace.queue.others_wait():
            raise SteppedBack


Files = dict[Path, tuple[int, int]]  # size and time of change by path, in the order of epochs


def files_of(recipe: Recipe) -> Files:
    """The training's checkpoint files as they are now; none while its folder is not there."""
    try:
        paths = list_checkpoints(recipe.checkpoints.folder, recipe.checkpoints.prefix)
    except NoCheckpointsError:
        return {}
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def standing_files(progress: Progress, recipe: Recipe) -> Files:
    """Those files that did not change for a while."""
    before = files_of(recipe)
    end = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(BEAT_SECONDS, SETTLE_SECONDS))
        progress.advance(0)
    return {path: state for path, state in files_of(recipe).items() if before.get(path) == state}


def ended_by(recipe: Recipe, asked: float, quiet_seconds: float) -> str | None:
    """What tells that the training has ended, if it has."""
    if (recipe.checkpoints.folder / "training.json").exists():
        return "training.json is there"
    newest = max([asked, *(changed / 1e9 for _, changed in files_of(recipe).values())])
    return f"no checkpoint changed for {quiet_seconds:.0f} s" if time.time() - newest >= quiet_seconds else None


def run_so_far(progress: Progress, recipe: Recipe, dataset: Dataset, taken: list[dict[str, Any]]) -> None:
    """There is a run of these checkpoints, which takes the place of the one before; none before the first step of training."""
    asked = recipe.checkpoints.epochs
    chosen = [checkpoint for checkpoint in taken if asked is None or checkpoint["epoch"] in asked]
    epochs = tuple(int(checkpoint["epoch"]) for checkpoint in chosen)
    if not any(epochs):
        return
    place = progress.workspace
    require_ascending(chosen)
    data = dataset[0].to_csv(index=False)  # ids, targets, sides and digests of the inputs
    weights = [[checkpoint["epoch"], checkpoint["digest"]] for checkpoint in chosen]
    run_id = digest_of([recipe.digest(), weights, data, plugin_of(progress.workspace, recipe)])[:12]
    part = recipe.model_copy(
        update={
            "name": f"{recipe.name}, up to epoch {epochs[-1]}",
            "checkpoints": recipe.checkpoints.model_copy(update={"epochs": epochs}),
        }
    )
    if not place.is_done(run_id):
        place.register_run(run_id, part)
        compute_run(progress, part, run_id, dataset=dataset, checkpoints=chosen)
    supersede(progress, run_id, part)


def run_of_all(progress: Progress, recipe: Recipe) -> str:
    """The recipe's own run, as if it had been asked for now: data that changed meanwhile are read again."""
    run_id = progress.workspace.run_id(recipe)
    if not progress.workspace.is_done(run_id):
        progress.workspace.register_run(run_id, recipe)
        compute_run(progress, recipe, run_id)
    supersede(progress, run_id, recipe)
    return run_id


def supersede(progress: Progress, run_id: str, recipe: Recipe) -> None:
    """The job makes this run; the one that it made before leaves the lists, and links to it go on working."""
    before = progress.workspace.queue.get(progress.job.id).run_id
    progress.set_run(run_id)
    if before not in (None, run_id):
        progress.workspace.register_run(str(before), recipe, state="superseded")
    progress.note("followed", superseded=before)


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
    require_ascending(checkpoints)
    if epochs is not None:
        absent = sorted(set(epochs) - {checkpoint["epoch"] for checkpoint in checkpoints})
        if absent:
            raise CheckpointError(f"'{folder.name}' has no checkpoint of epoch {absent[0]}; correct the recipe's epochs.")
        checkpoints = [checkpoint for checkpoint in checkpoints if checkpoint["epoch"] in epochs]
    return checkpoints


def require_ascending(checkpoints: list[dict[str, Any]]) -> None:
    """Each file records a later epoch than the one before it.

    Raises:
        CheckpointError: names the first two that do not.
    """
    for one, next_one in pairwise(sorted(checkpoints, key=lambda checkpoint: int(checkpoint["epoch"]))):
        if one["epoch"] == next_one["epoch"]:
            raise CheckpointError(
                f"'{one['source']}' and '{next_one['source']}' both record epoch {one['epoch']}; keep one of them, or save the later part "
                f"of the training with epochs that go on."
            )


def inspect_files(progress: Progress, paths: list[Path], section: ModelSection) -> list[dict[str, Any] | CheckpointError]:
    """Each file taken in, or refused with its sentence; files that are as they were when they were taken in are not read again."""
    from tracin_core.engine.checkpoints import intake_folder

    progress.step("checkpoints", len(paths))
    store = progress.workspace.root / "checkpoints"
    known_as = partial(identity_of, section=section, plugins=plugins_of(progress.workspace))
    notes = {path: store / "known" / f"{known_as(path)}.json" for path in paths}
    outcomes: dict[Path, dict[str, Any] | CheckpointError | None] = {path: known_checkpoint(note) for path, note in notes.items()}
    new = [path for path, outcome in outcomes.items() if outcome is None]
    found = len(paths) - len(new)
    progress.advance(found)
    if new:
        taken = intake_folder(
            new, store, model_of(progress.workspace, section), on_each=lambda done: progress.advance(found + done)
        )
        for path, outcome in zip(new, taken, strict=True):
            outcomes[path] = outcome if isinstance(outcome, CheckpointError) else outcome.to_dict()
            if not isinstance(outcome, CheckpointError) and notes[path].stem == known_as(path):
                write_json(notes[path], outcome.to_dict())
    return [outcome for outcome in outcomes.values() if outcome is not None]


def identity_of(path: Path, section: ModelSection, plugins: Path) -> str:
    """Another one whenever the file was written to or replaced, and for other rules of taking it in: its time of change cannot be set."""
    from tracin_core.engine import ENGINE_VERSION

    try:
        status = path.stat(follow_symlinks=False)
    except OSError:
        return "gone"
    facts = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, path.name]
    plugin = [plugin_digest(plugins, section.name)] if isinstance(section, PluginModel) else []
    return digest_of([facts, section.model_dump(mode="json"), ENGINE_VERSION, version("torch"), *plugin])


def known_checkpoint(note: Path) -> dict[str, Any] | None:
    """What was found in the file when it was taken in; None if nothing was noted, or its weights are not whole any more."""
    from tracin_core.engine.checkpoints import Checkpoint, file_digest

    try:
        checkpoint = Checkpoint.from_dict(read_json(note))
        whole = file_digest(note.parents[1] / f"{checkpoint.digest}.safetensors") == checkpoint.digest
    except (OSError, ValueError, TypeError, AttributeError, CheckpointError):
        return None
    return checkpoint.to_dict() if whole else None


def model_of(workspace: Workspace, section: ModelSection) -> Any:
    """The recipe's network; a plugin's code runs here and nowhere before."""
    from tracin_core.engine.models import build_model

    return build_model(section, plugins_of(workspace))


def load_checkpoint(model: Any, workspace: Workspace, checkpoint: dict[str, Any]) -> None:
    from tracin_core.engine.checkpoints import load_weights

    load_weights(model, workspace.root / "checkpoints", str(checkpoint["digest"]))


def inspect(progress: Progress) -> dict[str, Any]:
    """One entry per file of the folder: what it is, or why it was refused."""
    request = progress.job.request
    paths = list_checkpoints(Path(request["folder"]), request["prefix"])
    outcomes = inspect_files(progress, paths, MODEL_FORMS.validate_python(request["model"]))
    files = [
        {"file": path.name, "accepted": False, "reason": str(outcome)}
        if isinstance(outcome, CheckpointError)
        else {"file": path.name, "accepted": True, **outcome}
        for path, outcome in zip(paths, outcomes, strict=True)
    ]
    return {"files": files}


# ---- demo and training ------------------------------------------------------------------------------------------------------


def demo(progress: Progress) -> dict[str, Any]:
    """Data with planted faults, a model trained on them, and its analysis: simulated recordings, or real digits."""
    recipe, training_settings = digits_demo(progress) if progress.job.request.get("digits") else recordings_demo(progress)
    folder = recipe.checkpoints.folder
    if (folder / "training.json").exists():
        progress.skip("training")
    else:
        train_once(progress, recipe, folder, training_settings)
    run_id = progress.workspace.run_id(recipe)
    progress.set_run(run_id)
    if not progress.workspace.is_done(run_id):
        progress.workspace.register_run(run_id, recipe)
        compute_run(progress, recipe, run_id)
    return {"run_id": run_id, "training": read_json(folder / "training.json")}


def recordings_demo(progress: Progress) -> tuple[Recipe, dict[str, Any]]:
    """SIMULATED recordings are on disk; the recipe that ranks their angles, and the settings of its training."""
    material, frequency = progress.job.request["material"], progress.job.request["frequency"]
    name = f"SIMULATED_{material}_{frequency}"
    root = progress.workspace.root / "recordings" / name
    progress.step("recordings", 1)
    if not (root / "truth.json").exists():
        simulate_recordings(root, material=material, frequency=frequency, progress=progress.advance)
    settings = {
        "name": name.replace("_", " "),
        "simulated": True,
        "data": {"root": root, "material": material, "frequency": frequency},
        "checkpoints": {"folder": progress.workspace.root / "trainings" / name},
    }
    return Recipe.from_dict(settings), {}


def digits_demo(progress: Progress) -> tuple[Recipe, dict[str, Any]]:
    """Real digits with some labels wrong on purpose are on disk; the recipe that tells them apart, and its training's settings."""
    from tracin_core.data.demos import write_digits

    root = progress.workspace.root / "recordings" / "MNIST_digits"
    progress.step("recordings", 1)
    if not (root / "truth.json").exists():
        write_digits(root)
    settings = {
        "name": "MNIST digits, some mislabelled",
        "model": {"kind": "cnn", "widths": [16, 32], "outputs": 10},
        "data": {"kind": "arrays", "file": root / "digits.npz"},
        "split": {"rule": "column", "column": "side"},
        "task": {"kind": "classification"},
        "checkpoints": {"folder": progress.workspace.root / "trainings" / "MNIST_digits"},
    }
    return Recipe.from_dict(settings), {}


def training(progress: Progress) -> dict[str, Any]:
    """The recipe's model is trained; its checkpoints are in the requested folder, and beside them the recipe that analyses them."""
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
    from tracin_core.engine.training import train

    use_threads(recipe.engine)
    samples, inputs, _ = read_dataset(progress, recipe)
    listed = exclusions or {"file": None, "lines": []}
    excluded = training_exclusions(listed["lines"], samples)
    told = {name: list(getattr(excluded, name)) for name in ("matched", "elsewhere", "unmatched")}
    progress.step("training", 1)
    train(
        inputs,
        samples,
        folder,
        model=recipe.model,
        task=recipe.task,
        plugins=plugins_of(progress.workspace),
        **settings,
        exclude_samples=excluded.samples,
        exclude_pairs=excluded.pairs,
        exclusion_list={"file": listed["file"], **told},
        progress=progress.advance,
    )


def with_threads(handler: Callable[[Progress], dict[str, Any]], progress: Progress) -> dict[str, Any]:
    """The job of an evaluation, on as many threads as its recipe says."""
    use_threads(Recipe.from_dict(progress.job.request["recipe"]).engine)
    return handler(progress)


def use_threads(engine: EngineSection) -> None:
    import torch

    torch.set_num_threads(engine.threads)


def to_tensor(array: Inputs, engine: EngineSection) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).to(engine.device)


HANDLERS: Final[dict[str, tuple[Callable[[Progress], dict[str, Any]], dict[str, float]]]] = {
    "analysis": (analyse, {"samples": 1, "previews": 1, "checkpoints": 2, "health": 1, "kernels": 8}),
    "inspection": (inspect, {"checkpoints": 1}),
    "training": (training, {"samples": 1, "previews": 1, "training": 20}),
    "retraining": (partial(with_threads, retrain), {"samples": 1, "previews": 1, "retraining": 60}),
    "faithfulness": (partial(with_threads, faithfulness), {"samples": 1, "previews": 1, "retraining": 60}),
    "calibration": (partial(with_threads, calibrate), {"samples": 1, "previews": 1, "calibrating": 60}),
    "demo": (demo, {"recordings": 2, "samples": 1, "previews": 1, "training": 20, "checkpoints": 2, "health": 1, "kernels": 4}),
}

if __name__ == "__main__":
    sys.exit(main())
