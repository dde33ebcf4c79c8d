"""Small pictures and short texts by which people recognise a sample."""

import io
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from tracin_core.data.files import write_text, write_whole
from tracin_core.data.seals import sealed_text

SMALLEST, LARGEST = 84, 512  # pixels on the long side of a picture
MOST_VALUES: Final = 24
MOST_LINES: Final = 40


def array_preview(values: npt.NDArray[Any], stem: Path) -> None:
    """`<stem>.png` of values that make a picture ([H, W], [1, H, W] or [3, H, W] of floats), else `<stem>.txt` of the first of them.

    Values in 0..1 are shown as they are; others from the smallest, black, to the largest, white. Small pictures are enlarged by a whole
    factor without smoothing, so that their pixels can be counted.
    """
    plane = values[0] if values.ndim == 3 and values.shape[0] == 1 else values
    coloured = values.ndim == 3 and values.shape[0] == 3
    if values.dtype.kind == "f" and values.size and (plane.ndim == 2 or coloured):
        write_png(Image.fromarray(_levels(np.moveaxis(values, 0, -1) if coloured else plane)), stem.with_suffix(".png"))
    else:
        write_text(stem.with_suffix(".txt"), sealed_text(_first_values(values)))


def _levels(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """0..255 of values that are in 0..1, or are stretched to it."""
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        values = (values.astype(np.float64) - low) / ((high - low) or 1.0)
    return np.asarray(np.rint(255 * values), dtype=np.uint8)


def write_png(image: Image.Image, path: Path) -> None:
    """The file holds the picture, at least `SMALLEST` and at most `LARGEST` pixels long."""
    long = max(image.size)
    if long < SMALLEST:
        factor = -(-SMALLEST // long)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    elif long > LARGEST:
        image = image.resize((max(1, image.width * LARGEST // long), max(1, image.height * LARGEST // long)), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_whole(path, [buffer.getvalue()])


def _first_values(values: npt.NDArray[Any]) -> str:
    """How many values there are, and the first of them."""
    flat = values.ravel()[:MOST_VALUES]
    count = " x ".join(str(side) for side in values.shape) if values.ndim > 1 else str(values.size)
    numbers = " ".join(f"{value:.4g}" if values.dtype.kind == "f" else str(value) for value in flat)
    more = f" ... ({values.size - len(flat)} more)" if values.size > len(flat) else ""
    return f"{count} {'value' if values.size == 1 else 'values'}: {numbers}{more}\n"


def lines_preview(lines: list[str], stem: Path) -> None:
    """`<stem>.txt` with these lines; beyond `MOST_LINES` it says how many there are more."""
    more = [f"... and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    write_text(stem.with_suffix(".txt"), sealed_text("\n".join([*lines[:MOST_LINES], *more]) + "\n"))
