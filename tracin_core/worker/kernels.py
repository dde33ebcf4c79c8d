"""Every block of a run is on disk: the missing ones are computed, here or on a cluster, and recorded."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Final

from tracin_core.blocks import (
    BlockFailure,
    BlockSpec,
    CurvedPreconditioning,
    Layers,
    Preconditioning,
    Receipt,
    loaded_precondition,
    run_block,
)
from tracin_core.cluster import dask_runner
from tracin_core.errors import DiskFullError, JobFailedError, NonFiniteError, TracInError
from tracin_core.recipe import Cotangent, EngineSection, RankingTask, Recipe
from tracin_core.records.manifest import Manifest
from tracin_core.records.progress import Progress
from tracin_core.records.store import BlockKey, digest_of
from tracin_core.records.workspace import Workspace
from tracin_core.worker.ending import FULL, reason_of

ROOM_FACTOR: Final = 1.1  # what a run's blocks take on a disk, beside their bytes
NAMED_BLOCKS: Final = 3  # in a sentence
ATTEMPTS: Final = 3  # of a block, before it counts as failed


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
    first: str  # digest of the first training chunk

    def preconditioning(self, checkpoint: dict[str, Any]) -> Preconditioning | CurvedPreconditioning | None:
        """By what this checkpoint's gradients are divided."""
        form = self.recipe.engine.precondition
        if form == "none":
            return None
        if form == "ekfac":
            return CurvedPreconditioning(str(checkpoint["curvature"]), self.recipe.engine.damping)
        origin = self.first if isinstance(self.recipe.task, RankingTask) else None
        return Preconditioning(form, str(checkpoint["second_moment"]), origin)

    def loaded(self, model: Any, checkpoint: dict[str, Any], dataset: str) -> Any:
        """The same as the engine takes it."""
        root, chosen = self.workspace.root, self.preconditioning(checkpoint)
        return loaded_precondition(str(root), str(root / "datasets" / dataset), chosen, model, self.recipe.engine.device)

    def group(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Everything that one checkpoint's blocks have in common; its digest is their folder's name."""
        from tracin_core.engine import ENGINE_VERSION

        engine, divided = self.recipe.engine, self.preconditioning(checkpoint)
        return {
            "weights": str(checkpoint["digest"]),
            "model": self.recipe.model.model_dump(mode="json"),
            "preprocessing": self.preprocessing,
            "layers": list(self.layers),
            "cotangent": None if self.cotangent == "score" else self.cotangent,
            "precondition": None if divided is None else asdict(divided),
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
            precondition=self.preconditioning(checkpoint),
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
