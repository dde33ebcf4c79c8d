"""Dask with two workers beside two plain processes, on the same blocks. One line of JSON.

    python benchmarks/cluster.py [--samples 80] [--chunks 4] [--repeats 3]

The blocks are kernels of `--samples` x `--samples` spectra under the ranker of 422,337 parameters, one thread each, about two seconds. Both
ways compute all pairs of chunks into an empty store and record each receipt in a catalogue; the processes of both are started and have
imported torch before. Bytes are compared. Beside it: what store and catalogue take of a block's time. SIMULATED spectra.
"""

import argparse
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import torch
from common import medians, report, take_turns, timed

from tracin_core.blocks import BlockSpec, Receipt, run_block
from tracin_core.cluster import dask_runner
from tracin_core.data.readers import sample_digest
from tracin_core.engine import ENGINE_VERSION
from tracin_core.engine.checkpoints import keep
from tracin_core.engine.kernel import kernel_groups
from tracin_core.engine.models import build_model
from tracin_core.recipe import EngineSection, RankerModel
from tracin_core.records.datasets import keep_inputs
from tracin_core.records.manifest import Chunk, chunk_digest
from tracin_core.records.store import BlockKey, BlockStore, digest_of
from tracin_core.records.workspace import Workspace, open_workspace
from tracin_core.worker.kernels import ATTEMPTS, record_block

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = 2
SIDE = 96
DATASET = "simulated"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=80)
    parser.add_argument("--chunks", type=int, default=4, help="of which all pairs make a block each, with themselves too")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workspaces = {name: open_workspace(root / name) for name in ("processes", "dask")}
        specs = {name: prepare(place, options.samples, options.chunks) for name, place in workspaces.items()}
        pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(PROCESSES))
        engine = EngineSection(threads=1, executor="dask", scheduler=stack.enter_context(dask_cluster(root)))
        seconds: list[float] = []

        def by_processes() -> None:
            empty(workspaces["processes"])
            for receipt in pool.imap_unordered(run_block, specs["processes"]):
                record_block(workspaces["processes"], receipt)
                seconds.append(receipt.seconds)

        def by_dask() -> None:
            empty(workspaces["dask"])
            with closing(dask_runner(specs["dask"], engine, attempts=ATTEMPTS)) as outcomes:
                for receipt in outcomes:
                    if isinstance(receipt, Receipt):
                        record_block(workspaces["dask"], receipt)

        by_processes()
        by_dask()
        seconds.clear()
        turns = take_turns({"processes": by_processes, "dask": by_dask}, options.repeats)
        bytes_of = [contents(place) for place in workspaces.values()]
        keeping = time_of_keeping(workspaces["processes"], specs["processes"])
    middle = medians(turns)
    report(
        "cluster",
        packages=("distributed",),
        data=f"SIMULATED spectra of {SIDE} x {SIDE}, ranker of 422,337 parameters",
        blocks=len(specs["dask"]),
        seconds_per_block=float(np.median(seconds)),
        bytes_per_block=specs["dask"][0].key.bytes,
        two_processes=middle["processes"],
        dask_two_workers=middle["dask"],
        ratio=middle["dask"] / middle["processes"],
        same_bytes=bytes_of[0] == bytes_of[1] and len(bytes_of[0]) == len(specs["dask"]),
        milliseconds_to_keep_a_block=1000 * keeping,
        share_of_keeping=keeping / float(np.median(seconds)),
        target="ratio <= 1.15; store and catalogue <= 1 % of the time at blocks of 2 s",
        turns=turns,
    )


def prepare(place: Workspace, samples: int, chunks: int) -> list[BlockSpec]:
    """The blocks of all pairs of chunks, whose weights and inputs are in the workspace."""
    torch.manual_seed(0)
    section, engine = RankerModel(layout="large_resized"), EngineSection(threads=1)
    model = build_model(section)
    weights = {name: value.detach() for name, value in model.state_dict().items() if value.is_floating_point()}
    checkpoint = keep(weights, place.root / "checkpoints")
    layers = kernel_groups(model, cells=(samples * chunks) ** 2, budget=2**30)
    generator = np.random.default_rng(0)
    digests = []
    for _ in range(chunks):
        inputs = generator.standard_normal((samples, 1, SIDE, SIDE)).astype(np.float32)
        names = [sample_digest(sample) for sample in inputs]
        digests.append(chunk_digest(names))
        keep_inputs(place.root / "datasets" / DATASET, Chunk(tuple(names), digests[-1]), inputs)
    definition = {"weights": checkpoint, "torch": torch.__version__, "engine": ENGINE_VERSION}
    group = digest_of(definition)
    place.store.describe_group(group, definition)
    pairs = [(left, right) for row, left in enumerate(digests) for right in digests[row:]]
    keys = [BlockKey(group, left, right, (len(layers), samples, samples)) for left, right in pairs]
    return [BlockSpec(str(place.root), DATASET, checkpoint, key, section, engine, layers) for key in keys]


def empty(place: Workspace) -> None:
    for path in (place.root / "kernels").rglob("*.f32"):
        path.unlink()


def contents(place: Workspace) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (place.root / "kernels").rglob("*.f32")}


def time_of_keeping(place: Workspace, specs: Iterable[BlockSpec]) -> float:
    """Median seconds that a block's look-up, writing and recording take, all on the disk of the workspace."""
    taken = []
    for spec in specs:
        values = np.array(place.store.read(spec.key))
        place.store.path(spec.key).unlink()

        def keep_it(spec: BlockSpec = spec, values: np.ndarray = values) -> None:
            store = BlockStore(place.root / "kernels")
            store.holds(spec.key)
            crc = store.write(spec.key, values)
            record_block(place, Receipt(spec.key.name, spec.key.shape, crc, 0.0, computed=True))

        taken.append(timed(keep_it))
    return float(np.median(taken))


@contextmanager
def dask_cluster(folder: Path) -> Iterator[str]:
    """The address of a scheduler with two workers, on this machine."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    dask, address = Path(sys.executable).with_name("dask"), f"tcp://127.0.0.1:{port}"
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    worker = ["worker", address, "--nthreads", "1", "--no-nanny", "--host", "127.0.0.1", "--no-dashboard", "--memory-limit", "0"]
    with ExitStack() as stack, (folder / "dask.log").open("wb") as log:
        for command in (scheduler, *[worker] * PROCESSES):
            process = subprocess.Popen(
                [dask, *command], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield address


if __name__ == "__main__":
    main()
