"""From files to arrays: recordings in the lab's layout, their spectrograms, and the small previews that pages show.

<root>/<class>/<material>/<material>_<class>_<frequency>_<take>.wav        class: deg000, deg036, ...
"""

import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import soundfile
from PIL import Image
from scipy import fft, signal

from tracin_core.data.files import write_whole
from tracin_core.errors import DataError, UnreadableSampleError

WINDOW, HOP, FLOOR_DB = 2048, 256, -80.0
PREPROCESSING = "stft-hamming-2048-256-reflect-db80-v1"
PREVIEW_SECONDS = 10
PREVIEW_SIZE = (256, 160)
NAME = re.compile(r"(?P<material>.+)_(?P<label>deg(?P<angle>\d+))_(?P<frequency>\w+?hz)_(?P<sequence>\d+)", re.IGNORECASE)
COLUMNS = ["id", "label", "angle", "material", "frequency", "sequence", "path"]

Wave = npt.NDArray[np.float32]
Spectrum = npt.NDArray[np.float32]


def find_recordings(root: Path) -> pd.DataFrame:
    """Every recording under the root that follows the layout, whatever its material and frequency. No file is opened.

    Raises:
        DataError: the root cannot be read.
    """
    if not root.is_dir():
        raise DataError(f"The data folder '{root.name}' does not exist; choose the folder that holds deg000, deg036, ...")
    rows = []
    for path in sorted(root.glob("deg*/*/*.wav")):
        match = NAME.fullmatch(path.stem)
        if match is not None and match["label"] == path.parts[-3] and match["material"] == path.parts[-2]:
            rows.append(
                {
                    "id": path.stem,
                    "angle": int(match["angle"]),
                    "material": match["material"],
                    "frequency": match["frequency"],
                    "sequence": int(match["sequence"]),
                    "path": path.relative_to(root).as_posix(),
                }
            )
    return pd.DataFrame(rows, columns=[name for name in COLUMNS if name != "label"]).sort_values("id", ignore_index=True)


def list_recordings(root: Path, material: str, frequency: str) -> pd.DataFrame:
    """The samples table of one material and frequency ('all': every frequency), label = rank of the angle.

    Raises:
        DataError: nothing was found; the message says what was looked for and what there is. Also when two files have one take number.
    """
    found = find_recordings(root)
    chosen = found[(found["material"] == material) & ((frequency == "all") | (found["frequency"] == frequency))]
    if chosen.empty:
        kinds = sorted({f"{m} {f}" for m, f in zip(found["material"], found["frequency"], strict=True)})
        there = (
            "it has " + ", ".join(kinds[:6]) + (", ..." if len(kinds) > 6 else "")
            if kinds
            else "it has no recording in that layout"
        )
        raise DataError(
            f"'{root.name}' has no recordings named deg*/{material}/{material}_deg*_{frequency}_<take>.wav ({there}); choose another "
            f"material or frequency, or another folder."
        )
    twice = chosen[chosen.duplicated(["angle", "frequency", "sequence"], keep=False)]
    if not twice.empty:
        a, b = twice.sort_values(["angle", "frequency", "sequence"])["id"].iloc[:2]
        raise DataError(f"'{a}' and '{b}' are the same take of the same angle; rename or remove one of them.")
    labels = {angle: rank for rank, angle in enumerate(sorted(chosen["angle"].unique()))}
    return chosen.assign(label=chosen["angle"].map(labels))[COLUMNS].reset_index(drop=True)


def read_recording(path: Path) -> tuple[Wave, int]:
    """One channel of samples in -1..1 (stereo is averaged) and the rate in Hz.

    Raises:
        UnreadableSampleError: the file is damaged, empty or silent.
    """
    try:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as failure:
        reason = str(failure).rsplit(":", 1)[-1].strip().rstrip(".")
        raise UnreadableSampleError(
            f"The recording '{path.name}' cannot be read ({reason}); record it again, or move it away."
        ) from failure
    mono = np.asarray(wave.mean(axis=1), dtype=np.float32)  # opposite channels cancel: only this can be called silent
    if len(mono) < WINDOW or not np.any(mono):
        what = (
            "is silent: every value is 0" if len(mono) >= WINDOW else f"has {len(mono)} values, fewer than one window of {WINDOW}"
        )
        raise UnreadableSampleError(f"The recording '{path.name}' {what}; record it again, or move it away.")
    if not np.isfinite(mono).all():
        raise UnreadableSampleError(
            f"The recording '{path.name}' holds values that are not finite; record it again, or move it away."
        )
    return mono, int(rate)


def spectrogram(wave: Wave) -> Spectrum:
    """Magnitude in dB relative to the clip's maximum, floored at -80: [1, 1025, 1 + n // 256].

    Short-time Fourier transform with reflected edges and a periodic Hamming window of 2048 values every 256, as `torch.stft` with
    `center=True` computes it.
    """
    padded = np.pad(wave.astype(np.float32), WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    magnitude = np.abs(fft.rfft(frames * signal.get_window("hamming", WINDOW).astype(np.float32), axis=1)).T
    decibel = 20 * np.log10(np.maximum(magnitude, np.finfo(np.float32).tiny) / magnitude.max())
    return np.asarray(np.maximum(decibel, FLOOR_DB)[None], dtype=np.float32)


def read_inputs(root: Path, samples: pd.DataFrame, progress: Callable[[int], None] | None = None) -> Spectrum:
    """The spectrograms of all samples, in their order: [n, 1, 1025, T] in dB.

    Raises:
        UnreadableSampleError: names the first file that cannot be read.
        DataError: two recordings have different rates or lengths; all clips of a data set must agree.
    """
    inputs: Spectrum | None = None
    first = ("", 0, 0)
    for row, path in enumerate(samples["path"]):
        wave, rate = read_recording(root / path)
        if inputs is None:
            spectrum = spectrogram(wave)
            inputs, first = np.empty((len(samples), *spectrum.shape), dtype=np.float32), (Path(path).name, len(wave), rate)
        if (len(wave), rate) != first[1:]:
            raise DataError(
                f"'{Path(path).name}' has {len(wave)} values at {rate} Hz, but '{first[0]}' has {first[1]} at {first[2]} Hz; all "
                f"recordings of a data set must have one length and rate: cut them to the shortest."
            )
        inputs[row] = spectrogram(wave)
        if progress is not None:
            progress(row + 1)
    if inputs is None:
        raise DataError("There is no recording to read; choose a folder that has some.")
    return inputs


def sample_digest(array: Spectrum) -> str:
    """SHA-256 of shape and values: the sample's identity in every cache key."""
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array, dtype="<f4").tobytes()).hexdigest()[:32]


def preview_png(spectrum: Spectrum, path: Path) -> None:
    """A small picture of the spectrogram: low frequencies at the bottom, dark is quiet, in colours that stay ordered in grey."""
    level = (spectrum[0] - FLOOR_DB) / -FLOOR_DB
    colours = np.stack([np.interp(level, _STOPS, channel) for channel in _COLOURS.T], axis=-1)
    image = Image.fromarray(colours[::-1].astype(np.uint8), mode="RGB").resize(PREVIEW_SIZE, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_whole(path, [buffer.getvalue()])


def preview_wav(source: Path, path: Path) -> None:
    """A playable copy of the recording: one channel, 16 bits, at most 10 s."""
    wave, rate = read_recording(source)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave[: PREVIEW_SECONDS * rate], -1, 1), rate, format="WAV", subtype="PCM_16")
    write_whole(path, [buffer.getvalue()])


_STOPS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
_COLOURS = np.array([[8, 6, 30], [84, 24, 110], [185, 55, 100], [245, 140, 70], [252, 250, 200]], dtype=float)
