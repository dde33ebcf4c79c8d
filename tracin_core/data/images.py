"""Pictures in one folder per class, decoded by Pillow: <root>/<class>/.../<name>.png"""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from tracin_core.data.arrays import readable
from tracin_core.data.checks import Inputs, LeftOut, checked_ids, empty_inputs, files_below, open_regular, shown
from tracin_core.data.previews import array_preview
from tracin_core.errors import DataError, UnreadableSampleError
from tracin_core.recipe import ImagesData

SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
FORMATS: Final = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
EIGHT_BITS: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})  # Pillow's modes
LARGEST_FILE: Final = 2**28
MOST_PIXELS: Final = 89_478_485  # of a picture, Pillow's own limit; here it is an error
NUMBER: Final = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]{1,15})?")


@dataclass(frozen=True)
class ImagesReader:
    """Samples are picture files; the first folder names the class."""

    section: ImagesData

    @property
    def preprocessing(self) -> str:
        scaled = f"-bilinear-{self.section.height}x{self.section.width}" if self.section.height else ""
        return f"image-{self.section.colours}-by255{scaled}-v1"

    def list(self) -> pd.DataFrame:
        """Ids are paths with `_` between the folders; targets are numbers where every class folder is named by one, else the names."""
        paths = self._files()[0]
        if not paths:
            raise DataError(
                f"'{shown(self.section.root.name)}' has no picture <class>/<name> with one of the endings {', '.join(sorted(SUFFIXES))}; "
                f"choose another folder, or write a plugin."
            )
        ids = ["_".join(PurePosixPath(path).with_suffix("").parts) for path in paths]
        first: dict[str, str] = {}
        for name, path in zip(ids, paths, strict=True):
            if first.setdefault(name, path) != path:
                raise DataError(
                    f"'{shown(first[name])}' and '{shown(path)}' would have one id, '{shown(name)}'; rename one of them."
                )
        classes = [PurePosixPath(path).parts[0] for path in paths]
        samples = pd.DataFrame({"id": checked_ids(ids, "the folder"), "target": class_targets(classes), "path": paths})
        return samples.sort_values("id", ignore_index=True)

    def read(self, samples: pd.DataFrame, progress: Callable[[int], None] | None = None) -> Inputs:
        """[n, 1, H, W] grey or [n, 3, H, W] of colours, in 0..1."""
        inputs: npt.NDArray[np.float32] | None = None
        for row, path in enumerate(samples["path"]):
            picture = read_picture(self.section, str(path))
            if inputs is None:
                inputs = empty_inputs(len(samples), picture.shape)
            if picture.shape != inputs.shape[1:]:
                high, wide, first = *inputs.shape[2:], samples["path"].iloc[0]
                raise DataError(
                    f"'{shown(path)}' has {picture.shape[1]} x {picture.shape[2]} pixels, but '{shown(first)}' has {high} x {wide}; give "
                    f"height = {high} and width = {wide} in [data] to have all pictures scaled."
                )
            inputs[row] = picture
            if progress is not None:
                progress(row + 1)
        return empty_inputs(0, ()) if inputs is None else inputs

    def preview(self, sample: pd.Series, values: npt.NDArray[Any], stem: Path) -> None:
        """The picture as the model sees it."""
        array_preview(values, stem)

    def left_out(self) -> Sequence[LeftOut]:
        """Files below the root that are no pictures in a class folder."""
        return self._files()[1]

    def _files(self) -> tuple[Sequence[str], Sequence[LeftOut]]:
        files, left_out = files_below(self.section.root)
        reasons = {path: _no_sample(PurePosixPath(path)) for path in files}
        left_out += [LeftOut(shown(path), reason) for path, reason in reasons.items() if reason]
        return [path for path, reason in reasons.items() if not reason], left_out


def _no_sample(path: PurePosixPath) -> str:
    """Why this file is no sample; empty if it is one."""
    if any(part.startswith(".") for part in path.parts):
        return "it is hidden"
    if path.suffix.lower() not in SUFFIXES:
        return "its name does not end as a picture's does"
    return "" if len(path.parts) > 1 else "it lies in no class folder"


def class_targets(classes: list[str]) -> list[str] | list[int] | list[float]:
    """The classes as numbers where every name is one, else as they are.

    Raises:
        DataError: two names are the same number.
    """
    names = sorted(set(classes))
    if not all(NUMBER.fullmatch(name) for name in names):
        return classes
    numbers: dict[float, str] = {}
    for name in names:
        if numbers.setdefault(float(name), name) != name:
            raise DataError(
                f"The class folders '{numbers[float(name)]}' and '{name}' are the same number; put their pictures together."
            )
    whole = all(number.is_integer() for number in numbers)
    return [int(float(name)) for name in classes] if whole else [float(name) for name in classes]


def read_picture(section: ImagesData, path: str) -> npt.NDArray[np.float32]:
    """One picture, [1 or 3, H, W] in 0..1. As stored: a camera's note of how it was held is not followed.

    Raises:
        UnreadableSampleError: it is damaged, has too many pixels, several frames, transparent parts, or more than 8 bits a channel.
    """
    name = Path(path).name
    with (
        open_regular(section.root / path, largest=LARGEST_FILE, root=section.root) as file,
        readable(name),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", UserWarning)  # of tags that are not pixels; broken pixels raise
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as image:
            _refuse_unclear(image, name)
            pixels = image.convert("L" if section.colours == "grey" else "RGB")
            if section.height is not None and section.width is not None:
                pixels = pixels.resize((section.width, section.height), Image.Resampling.BILINEAR)
            values = np.asarray(pixels, dtype=np.float32) / np.float32(255)
    return values[None] if values.ndim == 2 else np.ascontiguousarray(np.moveaxis(values, -1, 0))


def _refuse_unclear(image: Image.Image, name: str) -> None:
    """The picture can be one array of 8 bits a channel without a choice that nobody made."""
    frames = getattr(image, "n_frames", 1)
    told = ""
    if image.width * image.height > MOST_PIXELS:
        told = f"has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,} in all; scale it down"
    elif frames != 1:
        told = f"has {frames} frames; save the one that counts"
    elif image.mode not in EIGHT_BITS:
        told = f"has the pixel format {image.mode}, which 8 bits a channel cannot hold; convert it, or save arrays in a .npz file"
    elif image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        told = "is transparent in places; save it without transparency"
    if told:
        raise UnreadableSampleError(f"The picture '{shown(name)}' {told}.")
