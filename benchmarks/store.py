"""How fast a kernel is looked at where it lies: the top 50 of one row, and one column, of 1,000 x 25,000 numbers. One line of JSON.

    python benchmarks/store.py [--looks 200]

Blocks of 512 x 512 SIMULATED numbers, as a run keeps them: rows are test samples, columns training samples. Warm: every block was read, and
its checksum compared, once before.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import report, tell

from tracin_core.records.datasets import CHUNK_SAMPLES
from tracin_core.records.store import BlockKey, BlockStore, Mosaic

ROWS, COLUMNS, TOP = 1_000, 25_000, 50
TARGET_MS = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--looks", type=int, default=200)
    options = parser.parse_args()
    chance = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store, blocks = BlockStore(Path(folder)), layout(ROWS, COLUMNS)
        started = time.perf_counter()
        for key in (key for row in blocks for key, _ in row):
            store.write(key, chance.normal(size=key.shape).astype(np.float32))
        written = time.perf_counter() - started
        mosaic = Mosaic(BlockStore(Path(folder)), blocks)
        started = time.perf_counter()
        whole = mosaic.window(slice(None), slice(None))[0]
        first = time.perf_counter() - started
        tell(f"{len(blocks) * len(blocks[0])} blocks written in {written:.1f} s, all read and verified in {first:.2f} s")
        agree(mosaic, whole)
        looks = {
            "top_50_of_a_row": [look(lambda i=i: top(mosaic, i, TOP)) for i in chance.integers(0, ROWS, options.looks).tolist()],
            "one_column": [look(lambda i=i: mosaic.column(i)) for i in chance.integers(0, COLUMNS, options.looks).tolist()],
        }
    report(
        "store",
        data=f"SIMULATED {ROWS} x {COLUMNS} float32",
        milliseconds={
            name: {"median": statistics.median(taken), "p95": np.quantile(taken, 0.95).item()} for name, taken in looks.items()
        },
        write_megabytes_per_second=4 * ROWS * COLUMNS / 1e6 / written,
        first_read_seconds=first,
        target=f"at most {TARGET_MS:g} ms",
    )


def layout(rows: int, columns: int, layers: int = 1, size: int = CHUNK_SAMPLES) -> list[list[tuple[BlockKey, bool]]]:
    """The blocks of a kernel of so many rows and columns, in their places."""
    heights = [min(size, rows - at) for at in range(0, rows, size)]
    widths = [min(size, columns - at) for at in range(0, columns, size)]
    return [
        [(BlockKey("simulated", f"{i:08x}", f"{j:08x}", (layers, height, width)), False) for j, width in enumerate(widths)]
        for i, height in enumerate(heights)
    ]


def top(mosaic: Mosaic, row: int, count: int) -> np.ndarray:
    """The columns with the largest values of a row, over all layers, largest first."""
    values = mosaic.row(row).sum(axis=0)
    chosen = np.argpartition(values, -count)[-count:]
    return chosen[np.argsort(-values[chosen], kind="stable")]


def agree(mosaic: Mosaic, whole: np.ndarray) -> None:
    """What is timed is right."""
    np.testing.assert_array_equal(top(mosaic, 7, TOP), np.argsort(-whole[7], kind="stable")[:TOP])
    np.testing.assert_array_equal(mosaic.column(24_999)[0], whole[:, 24_999])


def look(question: Callable[[], object]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    question()
    return 1e3 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
