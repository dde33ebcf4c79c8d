"""What a large analysis costs: measured per block, multiplied out; and a kernel of 10,000 x 1,000,000 browsed. One line of JSON.

    python benchmarks/scale.py [--only blocks|browse] [--size 96] [--repeats 3]

*blocks*: seconds of `run_block` for blocks of 512 samples of SIMULATED spectra, of both rankers, from kept inputs and canonical weights
to the flushed file, and of its row in the catalogue; then files, bytes and hours per checkpoint for 1e4, 1e5 and 1e6 training samples.
*browse*: a sparse SIMULATED store of one checkpoint, 40 GB in 39,080 files of which the disk holds little; a process of its own finds the
top 100 of one test sample and reads one training sample's column, and says how much memory it took. Exit code 1 beyond 500 MB; a wrong
answer is an error.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tracin_core.records.datasets import CHUNK_SAMPLES
from tracin_core.records.store import CHECKSUM_BYTES, BlockKey, BlockStore, Mosaic

TRAIN, TEST, TOP = 1_000_000, 10_000, 100
LIMIT_MB = 500
KNOWN_ROW, KNOWN_COLUMN = 4_321, 765_432
WORKERS = (1, 8, 64)
LAYERS = 2  # `rest` and `last`: at these sizes each layer alone would be beyond the kernel budget


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=("blocks", "browse"))
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--look-at", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look_at:
        print(json.dumps(looked(options.look_at)))
        return 0
    findings: dict[str, Any] = {}
    if options.only != "browse":
        findings |= blocks(options.size, options.repeats)
    if options.only != "blocks":
        findings["browse"] = browse()
    from common import report

    report("scale", data="SIMULATED", **findings)
    taken = findings.get("browse", {}).get("peak_rss_mb", 0)
    return 0 if taken <= LIMIT_MB else 1


# ---- blocks -----------------------------------------------------------------------------------------------------------------


def blocks(size: int, repeats: int) -> dict[str, Any]:
    """Seconds per block of each ranker, and what follows from the small one's."""
    seconds = {layout: block_seconds(layout, size, repeats) for layout in ("small", "large_resized")}
    return {"seconds_per_block": seconds, "per_checkpoint": {layout: projected(taken) for layout, taken in seconds.items()}}


def block_seconds(layout: str, size: int, repeats: int) -> dict[str, float]:
    """Medians of `run_block` for each kind of block, and of recording one in the catalogue."""
    import torch
    from common import tell

    from tracin_core.blocks import BlockSpec, run_block
    from tracin_core.data.readers import sample_digest
    from tracin_core.engine.checkpoints import keep
    from tracin_core.engine.kernel import kernel_groups
    from tracin_core.engine.models import build_model
    from tracin_core.recipe import EngineSection, RankerModel
    from tracin_core.records.datasets import keep_inputs
    from tracin_core.records.manifest import Chunk, chunk_digest
    from tracin_core.records.workspace import open_workspace
    from tracin_core.worker.kernels import record_block

    chance = np.random.default_rng(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        place = open_workspace(folder)
        model = RankerModel(layout=layout)
        built = build_model(model)
        weights = keep(
            {k: v for k, v in built.state_dict().items() if not k.endswith("num_batches_tracked")}, place.root / "checkpoints"
        )
        groups = kernel_groups(built, cells=10**9, budget=1)
        chunks = []
        for _ in range(2):
            inputs = chance.normal(size=(CHUNK_SAMPLES, 1, size, size)).astype(np.float32)
            chunks.append(Chunk((), chunk_digest([sample_digest(sample) for sample in inputs])))
            keep_inputs(place.root / "datasets" / "simulated", chunks[-1], inputs)
        a, b = (chunk.digest for chunk in chunks)
        shape = (len(groups), CHUNK_SAMPLES, CHUNK_SAMPLES)
        kinds = {"outputs": (a, None, shape[1:2]), "diagonal": (a, a, shape), "rectangle": (a, b, shape)}
        taken: dict[str, list[float]] = {kind: [] for kind in (*kinds, "catalogue")}
        for turn in range(repeats + 1):  # the first reads inputs and weights, which later blocks find in memory
            for kind, (left, right, form) in kinds.items():
                key = BlockKey(f"turn{turn}", left, right, form)
                engine = EngineSection(threads=1)
                spec = BlockSpec(str(place.root), "simulated", weights, key, model, engine, groups)
                started = time.perf_counter()
                receipt = run_block(spec)
                done = time.perf_counter()
                record_block(place, receipt)
                if turn:
                    taken[kind].append(done - started)
                    taken["catalogue"].append(time.perf_counter() - done)
            tell(f"{layout}, turn {turn}: " + ", ".join(f"{kind} {times[-1]:.2f} s" for kind, times in taken.items() if times))
    return {kind: statistics.median(times) for kind, times in taken.items()}


def projected(seconds: dict[str, float]) -> list[dict[str, Any]]:
    """Files, bytes and hours of one checkpoint for each size: of test x train with test x test and outputs, and of train x train."""
    rows = []
    for train in (10**4, 10**5, 10**6):
        for test in (10**3, 10**4):
            n, m = -(-train // CHUNK_SAMPLES), -(-test // CHUNK_SAMPLES)
            cells = {
                "test_train": train * test + test * (test + CHUNK_SAMPLES) // 2,
                "train_train": train * (train + CHUNK_SAMPLES) // 2,
            }
            files = {"test_train": n * m + m * (m + 1) // 2 + n + m, "train_train": n * (n + 1) // 2}
            work = {
                "test_train": (n * m + m * (m - 1) / 2) * seconds["rectangle"]
                + m * seconds["diagonal"]
                + (n + m) * seconds["outputs"],
                "train_train": n * (n - 1) / 2 * seconds["rectangle"] + n * seconds["diagonal"],
            }
            rows += [
                {
                    "train": train,
                    "test": test,
                    "kernel": kernel,
                    "files": files[kernel],
                    "gigabytes": 4 * LAYERS * cells[kernel] / 1e9,
                    "catalogue_hours": files[kernel] * seconds["catalogue"] / 3600,
                    "hours": {str(workers): work[kernel] / workers / 3600 for workers in WORKERS},
                }
                for kernel in ("test_train", "train_train")
            ]
    return rows


# ---- browse -----------------------------------------------------------------------------------------------------------------


def browse() -> dict[str, Any]:
    """The sparse store is made, and a process without torch looks at it."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        files = make_sparse(Path(folder))
        made = time.perf_counter() - started
        held = sum(path.stat().st_blocks for path in Path(folder).rglob("*.f32")) * 512
        command = [sys.executable, __file__, "--look-at", folder]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(answer.stdout)
    return {
        "rows": TEST,
        "columns": TRAIN,
        "files": files,
        "on_disk_mb": held / 1e6,
        "made_seconds": made,
        "limit_mb": LIMIT_MB,
        **found,
    }


def layout() -> list[list[tuple[BlockKey, bool]]]:
    edges = {side: range(0, count, CHUNK_SAMPLES) for side, count in (("test", TEST), ("train", TRAIN))}
    heights = [min(CHUNK_SAMPLES, TEST - at) for at in edges["test"]]
    widths = [min(CHUNK_SAMPLES, TRAIN - at) for at in edges["train"]]
    return [
        [(BlockKey("simulated", f"{i:08x}", f"{j:08x}", (1, height, width)), False) for j, width in enumerate(widths)]
        for i, height in enumerate(heights)
    ]


def known(index: int, length: int) -> np.ndarray:
    return np.random.default_rng(index).normal(size=length).astype("<f4")


def make_sparse(folder: Path) -> int:
    """Every block has its length and its checksum; all numbers are 0 but for one row and one column."""
    import crc32c

    (folder / "simulated").mkdir()
    row, column = known(KNOWN_ROW, TRAIN), known(KNOWN_COLUMN, TEST)
    column[KNOWN_ROW] = row[KNOWN_COLUMN]
    zeros: dict[int, bytes] = {}
    files = 0
    for i, line in enumerate(layout()):
        for j, (key, _) in enumerate(line):
            body = key.bytes - CHECKSUM_BYTES
            values = np.zeros(key.shape[1:], dtype="<f4")
            r, c = KNOWN_ROW - i * CHUNK_SAMPLES, KNOWN_COLUMN - j * CHUNK_SAMPLES
            touched = sorted({r} & set(range(len(values)))) if not 0 <= c < values.shape[1] else list(range(len(values)))
            if 0 <= r < len(values):
                values[r] = row[j * CHUNK_SAMPLES :][: values.shape[1]]
            if 0 <= c < values.shape[1]:
                values[:, c] = column[i * CHUNK_SAMPLES :][: len(values)]
            if body not in zeros:
                zeros[body] = int(crc32c.crc32c(bytes(body))).to_bytes(CHECKSUM_BYTES, "little")
            tail = int(crc32c.crc32c(values.tobytes())).to_bytes(CHECKSUM_BYTES, "little") if touched else zeros[body]
            with (folder / key.name).open("wb") as file:
                for line_number in touched:
                    file.seek(4 * line_number * values.shape[1])
                    file.write(values[line_number].tobytes())
                file.seek(body)
                file.write(tail)
            files += 1
    return files


def looked(folder: Path) -> dict[str, Any]:
    """The two questions, asked for the first time and again; right, or an AssertionError."""
    mosaic = Mosaic(BlockStore(folder), layout())
    row, column = known(KNOWN_ROW, TRAIN), known(KNOWN_COLUMN, TEST)
    column[KNOWN_ROW] = row[KNOWN_COLUMN]

    def top() -> np.ndarray:
        values = mosaic.row(KNOWN_ROW)[0]
        chosen = np.argpartition(values, -TOP)[-TOP:]
        return chosen[np.argsort(-values[chosen], kind="stable")]

    def one_column() -> np.ndarray:
        return mosaic.column(KNOWN_COLUMN)[0]

    before = rss_mb()
    milliseconds: dict[str, float] = {}
    for name, question, expected in (
        ("top_100_of_a_test", top, np.argsort(-row, kind="stable")[:TOP]),
        ("one_train_column", one_column, column),
    ):
        for visit, repeats in (("first", 1), ("warm", 20)):
            taken = []
            for _ in range(repeats):
                started = time.perf_counter()
                np.testing.assert_array_equal(question(), expected)
                taken.append(1e3 * (time.perf_counter() - started))
            milliseconds[f"{name}_{visit}"] = statistics.median(taken)
    return {"milliseconds": milliseconds, "peak_rss_mb": rss_mb(), "rss_before_mb": before}


def rss_mb() -> float:
    """The most memory that this process ever held, mapped files included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


if __name__ == "__main__":
    sys.exit(main())
