"""Recordings in the lab's layout, their spectrograms, and what pages show and play of them.

<root>/<class>/<material>/<material>_<class>_<frequency>_<take>.wav        class: deg000, deg036, ...

In place of sound (.wav, .flac) a file may hold a finished spectrum (.npy, .npz) of [F, T] or [1, F, T], which is taken as it is.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy
import soundfile
from PIL import Image
from scipy import fft

from tracin_core.data.arrays import read_single
from tracin_core.data.checks import Inputs, LeftOut, empty_inputs, files_below, open_regular, shown
from tracin_core.data.files import write_whole
from tracin_core.data.seals import sealed_wav
from tracin_core.errors import DataError, UnreadableSampleError
from tracin_core.recipe import SIMULATED_MARK, RecordingsData

WINDOW, HOP, FLOOR_DB = 2048, 256, -80.0
PREPROCESSING = "stft-hamming-2048-256-reflect-db80-v1"
AS_STORED: Final = "spectrum-as-stored-v1"
SOUND, SPECTRA = frozenset({".wav", ".flac"}), frozenset({".npy", ".npz"})
LARGEST_SOUND, LARGEST_SPECTRUM = 2**31, 2**28  # bytes of a file
MOST_VALUES: Final = 2**27  # of a recording over all channels: 23 minutes of stereo at 48 kHz
PREVIEW_SECONDS = 10
PREVIEW_SIZE = (256, 160)
NAME = re.compile(
    r"(?P<material>.+)_(?P<label>deg(?P<angle>[0-9]{1,9}))_(?P<frequency>\w+?hz)_(?P<sequence>[0-9]{1,9})", re.IGNORECASE
)
COLUMNS = ["id", "label", "angle", "material", "frequency", "sequence", "path"]
OWN_FILES: Final = frozenset({SIMULATED_MARK, "truth.json"})

Wave = npt.NDArray[np.float32]
Spectrum = npt.NDArray[np.float32]


@dataclass
class RecordingsReader:
    """Samples are recordings of one material and frequency; the target is the angle."""

    section: RecordingsData

    @cached_property
    def preprocessing(self) -> str:
        """Spectra are taken as they are stored, sound becomes decibels."""
        return PREPROCESSING if is_sound(self.list()["path"].iloc[0]) else AS_STORED

    def list(self) -> pd.DataFrame:
        """The table of `list_recordings`, and the target."""
        samples = list_recordings(self.section.root, self.section.material, self.section.frequency)
        return samples.assign(target=samples["angle"])

    def read(self, samples: pd.DataFrame, progress: Callable[[int], None] | None = None) -> Inputs:
        """[n, 1, F, T]."""
        return read_inputs(self.section.root, samples, progress)

    def preview(self, sample: pd.Series, values: npt.NDArray[Any], stem: Path) -> None:
        """The spectrum as a picture; of sound also what can be heard."""
        if is_sound(sample["path"]):
            preview_png(values, stem.with_suffix(".png"))
            preview_wav(self.section.root / sample["path"], stem.with_suffix(".wav"), root=self.section.root)
        else:
            span = float(values.max() - values.min()) or 1.0
            preview_png((values - values.max()) / span * -FLOOR_DB, stem.with_suffix(".png"))

    def left_out(self) -> Sequence[LeftOut]:
        """Files below the root that are no recordings in the layout, whatever their material."""
        return _look(self.section.root)[1]


def is_sound(path: str) -> bool:
    """Whether the file of this name is heard, not a finished spectrum."""
    return PurePosixPath(path).suffix.lower() in SOUND


# ---- names ------------------------------------------------------------------------------------------------------------------


def find_recordings(root: Path) -> pd.DataFrame:
    """Every recording under the root that follows the layout, whatever its material and frequency, takes in order. No file is opened.

    Raises:
        DataError: the root cannot be read, or a link leads out of it.
    """
    return _look(root)[0]


def _look(root: Path) -> tuple[pd.DataFrame, list[LeftOut]]:
    """The recordings, and what else lies there."""
    if not root.is_dir():
        raise DataError(f"The data folder '{shown(root.name)}' does not exist; choose the folder that holds deg000, deg036, ...")
    rows: list[dict[str, Any]] = []
    files, left_out = files_below(root)
    for path in files:
        row, reason = _row_of(PurePosixPath(path))
        if reason is None:
            rows.append(row)
        elif path not in OWN_FILES:
            left_out.append(LeftOut(shown(path), reason))
    order = [(row["id"].rpartition("_")[0] + "_", row["sequence"], row["id"]) for row in rows]
    rows = [rows[place] for place in sorted(range(len(rows)), key=order.__getitem__)]
    return pd.DataFrame(rows, columns=[name for name in COLUMNS if name != "label"]), left_out


def _row_of(path: PurePosixPath) -> tuple[dict[str, Any], str | None]:
    """What the name of a file says, and why it is not taken; None if it is."""
    match = NAME.fullmatch(path.stem)
    if path.suffix.lower() not in SOUND | SPECTRA:
        return {}, "its name does not end in " + ", ".join(sorted(SOUND | SPECTRA))
    if match is None:
        return {}, "its name does not read <material>_deg<angle>_<frequency>hz_<take>"
    if path.parts[:-1] != (match["label"], match["material"]):
        return {}, f"its name says that it belongs into {match['label']}/{match['material']}"
    row = {
        "id": path.stem,
        "angle": int(match["angle"]),
        "material": match["material"],
        "frequency": match["frequency"],
        "sequence": int(match["sequence"]),
        "path": path.as_posix(),
    }
    return row, None


def list_recordings(root: Path, material: str, frequency: str) -> pd.DataFrame:
    """The samples table of one material and frequency ('all': every frequency), label = rank of the angle.

    Raises:
        DataError: nothing was found; the message says what was looked for and what there is. Also when two files have one take number, or
            some hold sound and some spectra.
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
            f"'{shown(root.name)}' has no recordings named deg*/{material}/{material}_deg*_{frequency}_<take>.wav ({there}); choose "
            f"another material or frequency, or another folder."
        )
    twice = chosen[chosen.duplicated(["angle", "frequency", "sequence"], keep=False)]
    if not twice.empty:
        a, b = (shown(path.rpartition("/")[2]) for path in twice.sort_values(["angle", "frequency", "sequence"])["path"].iloc[:2])
        raise DataError(f"'{a}' and '{b}' are the same take of the same angle; rename or remove one of them.")
    sound = chosen["path"].map(is_sound)
    if sound.nunique() > 1:
        a, b = (shown(chosen.loc[kind, "path"].iloc[0].rpartition("/")[2]) for kind in (sound, ~sound))
        raise DataError(
            f"'{a}' is one of {int(sound.sum())} sound files, '{b}' one of {int((~sound).sum())} finished spectra; a data set has one of "
            f"the two: move the others to a folder of their own."
        )
    labels = {angle: rank for rank, angle in enumerate(sorted(chosen["angle"].unique()))}
    return chosen.assign(label=chosen["angle"].map(labels))[COLUMNS].reset_index(drop=True)


# ---- sound and spectra ------------------------------------------------------------------------------------------------------


def read_recording(path: Path, root: Path | None = None) -> tuple[Wave, int]:
    """One channel of samples in -1..1 (stereo is averaged) and the rate in Hz.

    Args:
        root: folder that a link may not lead out of; None: not looked at.

    Raises:
        UnreadableSampleError: the file is damaged, empty, silent or longer than `MOST_VALUES`.
    """
    name = shown(path.name)
    with open_regular(path, largest=LARGEST_SOUND, root=root) as file:
        try:
            promised = soundfile.info(file)
            if promised.frames * promised.channels > MOST_VALUES:
                raise UnreadableSampleError(
                    f"The recording '{name}' has {promised.frames * promised.channels:,} values, more than the {MOST_VALUES:,} that are "
                    f"read; cut it."
                )
            file.seek(0)
            wave, rate = soundfile.read(file, dtype="float32", always_2d=True)
        except (OSError, RuntimeError, TypeError, ValueError, OverflowError, MemoryError) as failure:
            reason = shown(str(failure).rsplit(":", 1)[-1].strip().rstrip("."))
            raise UnreadableSampleError(
                f"The recording '{name}' cannot be read ({reason}); record it again, or move it away."
            ) from failure
    mono = np.asarray(wave.mean(axis=1), dtype=np.float32)  # opposite channels cancel: only this can be called silent
    if len(mono) < WINDOW or not np.any(mono):
        what = (
            "is silent: every value is 0" if len(mono) >= WINDOW else f"has {len(mono)} values, fewer than one window of {WINDOW}"
        )
        raise UnreadableSampleError(f"The recording '{name}' {what}; record it again, or move it away.")
    if not np.isfinite(mono).all():
        raise UnreadableSampleError(f"The recording '{name}' holds values that are not finite; record it again, or move it away.")
    return mono, int(rate)


def spectrogram(wave: Wave) -> Spectrum:
    """Magnitude in dB relative to the clip's maximum, floored at -80: [1, 1025, 1 + n // 256].

    Short-time Fourier transform with reflected edges and a periodic Hamming window of 2048 values every 256, as `torch.stft` with
    `center=True` computes it.
    """
    padded = np.pad(wave.astype(np.float32), WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    magnitude = np.abs(fft.rfft(frames * scipy.signal.get_window("hamming", WINDOW).astype(np.float32), axis=1)).T
    decibel = 20 * np.log10(np.maximum(magnitude, np.finfo(np.float32).tiny) / magnitude.max())
    return np.asarray(np.maximum(decibel, FLOOR_DB)[None], dtype=np.float32)


def read_spectrum(path: Path, root: Path) -> Spectrum:
    """A finished spectrum, [1, F, T].

    Raises:
        UnreadableSampleError: the file is damaged, or does not hold one array of that shape with finite values.
    """
    stored = read_single(path, root, LARGEST_SPECTRUM)
    if stored.dtype.kind != "f" or stored.ndim not in (2, 3) or stored.shape[:-2] not in ((), (1,)) or not stored.size:
        raise UnreadableSampleError(
            f"The spectrum '{shown(path.name)}' is {stored.dtype} of shape {list(stored.shape)}; save decimal numbers of shape [F, T] or "
            f"[1, F, T]."
        )
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused
        spectrum = np.asarray(stored, dtype=np.float32).reshape(1, *stored.shape[-2:])
    if not np.isfinite(spectrum).all():
        raise UnreadableSampleError(f"The spectrum '{shown(path.name)}' holds values that are not finite; compute it again.")
    return spectrum


def read_inputs(root: Path, samples: pd.DataFrame, progress: Callable[[int], None] | None = None) -> Spectrum:
    """The spectra of all samples, in their order: [n, 1, F, T]; of sound [n, 1, 1025, T] in dB.

    Raises:
        UnreadableSampleError: names the first file that cannot be read.
        DataError: two recordings have different rates or lengths; all clips of a data set must agree.
    """
    inputs: Spectrum | None = None
    first = ("", "")
    for row, path in enumerate(samples["path"]):
        spectrum, size = _spectrum_and_size(root, path)
        if inputs is None:
            inputs, first = empty_inputs(len(samples), spectrum.shape), (Path(path).name, size)
        if size != first[1]:
            raise DataError(
                f"'{shown(Path(path).name)}' has {size}, but '{shown(first[0])}' has {first[1]}; all recordings of a data set must have "
                f"one length and rate: cut them to the shortest."
            )
        inputs[row] = spectrum
        if progress is not None:
            progress(row + 1)
    if inputs is None:
        raise DataError("There is no recording to read; choose a folder that has some.")
    return inputs


def _spectrum_and_size(root: Path, path: str) -> tuple[Spectrum, str]:
    """The spectrum of one file, and what has to be the same in all of them."""
    if not is_sound(path):
        spectrum = read_spectrum(root / path, root)
        return spectrum, f"{spectrum.shape[1]} x {spectrum.shape[2]} values"
    wave, rate = read_recording(root / path, root)
    return spectrogram(wave), f"{len(wave)} values at {rate} Hz"


# ---- previews ---------------------------------------------------------------------------------------------------------------


def preview_png(spectrum: Spectrum, path: Path) -> None:
    """A small picture of the spectrogram: low frequencies at the bottom, dark is quiet, in colours that stay ordered in grey."""
    level = (spectrum[0] - FLOOR_DB) / -FLOOR_DB
    colours = np.stack([np.interp(level, _STOPS, channel) for channel in _COLOURS.T], axis=-1)
    image = Image.fromarray(colours[::-1].astype(np.uint8), mode="RGB").resize(PREVIEW_SIZE, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_whole(path, [buffer.getvalue()])


def preview_wav(source: Path, path: Path, root: Path | None = None) -> None:
    """A playable copy of the recording: one channel, 16 bits, at most 10 s."""
    wave, rate = read_recording(source, root)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave[: PREVIEW_SECONDS * rate], -1, 1), rate, format="WAV", subtype="PCM_16")
    write_whole(path, [sealed_wav(buffer.getvalue())])


_STOPS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
_COLOURS = np.array([[8, 6, 30], [84, 24, 110], [185, 55, 100], [245, 140, 70], [252, 250, 200]], dtype=float)
