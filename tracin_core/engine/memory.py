"""How many gradients are in memory together: a plan from sizes alone, and what to do when it was too hopeful.

Samples are differentiated in compute batches. Consecutive batches form a *unit*, whose gradients meet another unit's in one matrix
product; several units are kept at once as a *tile*, past which the other side is streamed. Batches and units follow from the model and
never from free memory, so that a product's last bits do not either; only the tile gives way.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import psutil
import torch

from tracin_core.errors import MachineError

# A product of few rows reads more than it multiplies: 32 x 32 samples run at 3/5 of the speed of 128 x 128 (CPU).
UNIT_BYTES: Final = 256 * 2**20

OUT_OF_MEMORY: Final = ("out of memory", "not enough memory", "can't allocate memory")


class SmallerTileWarning(UserWarning):
    """Memory ran out; the computation goes on with fewer gradients kept at once, and gives the same bytes."""


@dataclass(frozen=True)
class Tiling:
    """A plan for one kernel.

    Attributes:
        unit: compute batches whose gradients are multiplied together.
        tile: units kept at once.
        keep_rows: whether the rows' gradients are kept and the columns' streamed, or the other way round.
        differentiated: samples that a gradient is taken of, repeated ones counted again.
        held_bytes: of the gradients that exist at once: a tile and one passing unit.
    """

    unit: int
    tile: int
    keep_rows: bool
    differentiated: int
    held_bytes: int


@dataclass(frozen=True)
class MemoryEstimate:
    """What a kernel will take, told before it is computed; in bytes.

    Attributes:
        kernel: the result.
        gradients: kept at once; this alone follows the budget.
        batch: activations of one compute batch, and what its gradients are made from.
        differentiated: samples that a forward and a backward pass go through, repeated ones counted again.
    """

    kernel: int
    gradients: int
    batch: int
    differentiated: int

    @property
    def total(self) -> int:
        return self.kernel + self.gradients + self.batch


def plan_tiling(rows: int, columns: int | None, *, batch_size: int, sample_bytes: int, budget: int) -> Tiling:
    """The plan that keeps within the budget, or the smallest there is: one unit kept and one passing.

    With t of the kept side's u units at once, the other side is differentiated ceil(u / t) times; the side that makes for less is kept,
    of equals the shorter one.

    Args:
        columns: None for the rows against themselves; then a tile is met by itself and by what follows it.
        sample_bytes: what one sample's gradients take.
    """
    batch_bytes = max(1, batch_size * sample_bytes)
    unit = max(1, min(UNIT_BYTES // batch_bytes, -(-max(rows, columns or 0) // batch_size)))
    tile = max(1, budget // (unit * batch_bytes) - 1)
    if columns is None:
        span = tile * unit * batch_size
        return Tiling(
            unit,
            tile,
            True,
            sum(rows - start for start in range(0, rows, span)),
            held(rows, rows, unit, tile, batch_size, sample_bytes),
        )
    turns = {side: -(-count // (unit * batch_size * tile)) for side, count in (("rows", rows), ("columns", columns))}
    by_rows, by_columns = rows + turns["rows"] * columns, columns + turns["columns"] * rows
    keep_rows = (by_rows, rows) <= (by_columns, columns)
    kept, streamed = (rows, columns) if keep_rows else (columns, rows)
    return Tiling(unit, tile, keep_rows, min(by_rows, by_columns), held(kept, streamed, unit, tile, batch_size, sample_bytes))


def held(kept: int, streamed: int, unit: int, tile: int, batch_size: int, sample_bytes: int) -> int:
    """Bytes of a tile of the kept side and a passing unit of the other."""
    whole = unit * batch_size
    return (min(kept, tile * whole) + min(streamed, whole)) * sample_bytes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: each device and each allocator says it in its own way."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def default_budget(device: torch.device) -> int:
    """A quarter of what is free where the model is."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    return int(psutil.virtual_memory().available) // 4


def attempt(work: Callable[[], None]) -> str | None:
    """None when the work is done; what the allocator said when memory ran out, with all that the work held already released."""
    try:
        work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return str(error).strip().split("\n")[0]
    return None


def smaller_tile(tile: int, problem: str, device: torch.device) -> int:
    """Half of the tile, and everyone is told.

    Raises:
        MemoryError: one unit is the least there is.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if tile == 1:
        raise MemoryError(problem)
    warnings.warn(
        f"Memory ran out ({problem}): {tile // 2} units of gradients are kept from here on instead of {tile}. The result is the same; "
        f"it takes longer, because the other side is differentiated more often.",
        SmallerTileWarning,
        stacklevel=3,
    )
    return tile // 2


@contextmanager
def enough_memory(batch_size: int) -> Iterator[None]:
    """Turns an allocation that failed for good into an error that says what can be done.

    Raises:
        MachineError: there is not enough memory for what must be there at once.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise MachineError(
            f"Memory ran out with the fewest gradients kept that there can be ({error}). Free memory, or choose a smaller batch_size "
            f"than {batch_size}, which may change the last bits of the result."
        ) from error
