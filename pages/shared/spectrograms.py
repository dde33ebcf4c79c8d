"""Two recordings as pictures on one scale: their spectrograms, whole or around the tone, and the difference of the two.

What is read are the previews that the worker wrote; the windows are those that the engine reads recordings with, so that up to the level
that 0 dB stands for the picture is what the model saw.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy
import streamlit as st
from PIL import Image, ImageColor, ImageDraw, ImageFont
from plotly.colors import diverging, sequential

from tracin_core.data.recordings import FLOOR_DB, HOP, WINDOW, read_recording

Array = npt.NDArray[np.float64]
BANDS: Final = ("tone", "full")
AROUND: Final = 400.0  # Hz on either side of the tone
REACH: Final = 30.0  # dB; beyond, a difference has the colour of the end of its scale
PLOT: Final = (360, 300)  # pixels of the field, drawn at twice the size that it is shown at
LEFT, TOP, RIGHT, BOTTOM = 76, 14, 92, 52
WIDTH: Final = (LEFT + PLOT[0] + RIGHT) // 2  # pixels on the page
CARD: Final = 290  # pixels of the card around it: three stand side by side in the frame of the threshold page
SMALL: Final = (216, 140)  # pixels of a thumbnail, at twice the size that it is shown at
GROUND, TEXT = "#101522", "#d5dae3"  # of the margins, in either theme
LEVELS: Final = np.array([ImageColor.getrgb(colour) for colour in sequential.Inferno], dtype=float)
DIFFERENCES: Final = np.array([ImageColor.getrgb(colour) for colour in diverging.PuOr], dtype=float)
FREQUENCY: Final = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<kilo>k?)hz", re.IGNORECASE)


@dataclass(frozen=True)
class Spectra:
    """Two recordings in dB below the loudest point of both, within a band: each [F, T]."""

    levels: tuple[Array, Array]
    low: float  # Hz
    high: float
    seconds: float
    louder: float  # dB by which the power of the first in the band is above that of the second


@dataclass(frozen=True)
class Pictures:
    """The two spectrograms and their difference as PNG, and what they show."""

    sides: tuple[bytes, bytes]
    difference: bytes
    low: float
    high: float
    seconds: float
    louder: float


def tone_of(sample: Any) -> float | None:
    """The frequency in Hz that a sample's metadata names, as `1000hz` or `2.5khz`; None where it names none."""
    match = FREQUENCY.fullmatch(str(sample.get("frequency", "")))
    return None if match is None else float(match["number"]) * (1000 if match["kilo"] else 1)


def spectra(waves: tuple[Array, Array], rate: int, tones: Sequence[float] | None) -> Spectra | None:
    """Both recordings on one scale: dB below the loudest point of both at any frequency, floored as the engine floors them.

    Args:
        tones: show `AROUND` Hz around these; where there are none, around the strongest frequency of both. None: every frequency.

    Returns:
        None where the recordings are not of one length: there is no difference to take.
    """
    if len(waves[0]) != len(waves[1]):
        return None
    powers = [power(wave, rate) for wave in waves]
    loudest = max(float(part.max()) for part in powers)
    frequencies = np.arange(len(powers[0])) * rate / WINDOW
    low, high = 0.0, float(frequencies[-1])
    if tones is not None:
        near = list(tones) or [float(frequencies[(powers[0] + powers[1]).sum(axis=1).argmax()])]
        low, high = max(low, min(near) - AROUND), min(high, max(near) + AROUND)
    band = (frequencies >= low) & (frequencies <= high)
    if not band.any():
        raise ValueError(f"No frequency of a recording at {rate} Hz lies between {low} and {high} Hz.")
    shown = [part[band] for part in powers]
    levels = [np.maximum(decibel(part / loudest), FLOOR_DB) for part in shown]
    return Spectra(
        (levels[0], levels[1]),
        low=float(frequencies[band][0]),
        high=float(frequencies[band][-1]),
        seconds=len(waves[0]) / rate,
        louder=float(decibel(shown[0].sum()) - decibel(shown[1].sum())),
    )


def power(wave: Array, rate: int) -> Array:
    """|short-time Fourier transform|^2, reflected at the edges, a periodic Hamming window every `HOP` values: [1 + WINDOW / 2, T]."""
    windows = scipy.signal.ShortTimeFFT(scipy.signal.get_window("hamming", WINDOW), HOP, fs=rate)
    return np.asarray(np.abs(windows.stft(wave, p0=0, p1=1 + len(wave) // HOP, padding="even")) ** 2)


def decibel(power_: Any) -> Any:
    return 10 * np.log10(np.maximum(power_, np.finfo(float).tiny))


@st.cache_data(max_entries=300, show_spinner=False)
def pictures(first: str, second: str, tones: tuple[float, ...] | None) -> Pictures | None:
    """Both recordings and their difference, drawn. Previews are named by their content: what is kept is never stale.

    Args:
        first, second: preview files.
        tones: as `spectra`.

    Raises:
        UnreadableSampleError: a file is damaged.
    """
    (one, rate), (other, other_rate) = (read_recording(Path(file)) for file in (first, second))
    found = None if rate != other_rate else spectra((one.astype(float), other.astype(float)), rate, tones)
    if found is None:
        return None
    left, right = (drawn(level, LEVELS, (FLOOR_DB, 0.0), found) for level in found.levels)
    difference = drawn(found.levels[0] - found.levels[1], DIFFERENCES, (-REACH, REACH), found)
    return Pictures((left, right), difference, found.low, found.high, found.seconds, found.louder)


def small(file: Path, tone: float) -> bytes:
    """A PNG of one recording around its tone, in dB below its own loudest point, without axes: enough to tell two from each other.

    Raises:
        UnreadableSampleError: the file is damaged.
        ValueError: it holds no such frequency.
    """
    wave, rate = read_recording(file)
    found = power(wave.astype(float), rate)
    frequencies = np.arange(len(found)) * rate / WINDOW
    band = (frequencies >= tone - AROUND) & (frequencies <= tone + AROUND)
    if not band.any():
        raise ValueError(f"No frequency of a recording at {rate} Hz lies within {AROUND:g} Hz of {tone:g} Hz.")
    levels = np.maximum(decibel(found[band] / max(float(found.max()), np.finfo(float).tiny)), FLOOR_DB)
    image = Image.fromarray(painted(levels[::-1], LEVELS, (FLOOR_DB, 0.0))).resize(SMALL, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


# ---- drawing --------------------------------------------------------------------------------------------------------------------


def drawn(values: Array, colours: Array, span: tuple[float, float], shown: Spectra) -> bytes:
    """A PNG of values [F, T], low frequencies at the bottom, with its axes in Hz and s and its scale in dB."""
    field = Image.fromarray(painted(values[::-1], colours, span)).resize(PLOT, Image.Resampling.BILINEAR)
    image = Image.new("RGB", (LEFT + PLOT[0] + RIGHT, TOP + PLOT[1] + BOTTOM), GROUND)
    image.paste(field, (LEFT, TOP))
    ramp = np.linspace(span[1], span[0], PLOT[1])[:, None].repeat(16, axis=1)
    image.paste(Image.fromarray(painted(ramp, colours, span)), (LEFT + PLOT[0] + 14, TOP))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=21)
    bottom, right = TOP + PLOT[1], LEFT + PLOT[0]
    for tick in ticks(shown.low, shown.high):
        y = bottom - (tick - shown.low) / (shown.high - shown.low) * PLOT[1]
        pen.line([(LEFT - 8, y), (LEFT, y)], fill=TEXT, width=2)
        pen.text((LEFT - 12, y), f"{tick:g}", fill=TEXT, font=font, anchor="rm")
    for tick in ticks(0.0, shown.seconds):
        x = LEFT + tick / shown.seconds * PLOT[0]
        pen.line([(x, bottom), (x, bottom + 8)], fill=TEXT, width=2)
        pen.text((x, bottom + 12), f"{tick:g}", fill=TEXT, font=font, anchor="mt")
    pen.text((8, bottom + 12), "Hz", fill=TEXT, font=font, anchor="lt")
    pen.text((right + 8, bottom + 12), "s", fill=TEXT, font=font, anchor="lt")
    for share, value in ((0.0, span[1]), (0.5, sum(span) / 2), (1.0, span[0])):
        text = f"{value:+g}" if span[1] > 0 else f"{value:g}"
        anchor = {0.0: "lt", 0.5: "lm", 1.0: "lb"}[share]
        pen.text((right + 37, TOP + share * PLOT[1]), text.replace("+0", "0"), fill=TEXT, font=font, anchor=anchor)
    pen.text((image.width - 6, bottom + 12), "dB", fill=TEXT, font=font, anchor="rt")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)  # a picture for one screen: time counts, not bytes
    return buffer.getvalue()


def painted(values: Array, colours: Array, span: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Values as colours of a scale from the first to the last: [F, T, 3]; what lies beyond has the colour of the end."""
    place = (values - span[0]) / (span[1] - span[0])
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(place, stops, channel) for channel in colours.T], axis=-1).astype(np.uint8)


def ticks(low: float, high: float) -> list[float]:
    """About four round numbers between two."""
    rough = (high - low) / 4
    size = 10.0 ** np.floor(np.log10(rough))
    step = size * next(factor for factor in (1, 2, 5, 10) if factor * size >= rough)
    return [float(f"{place * step:.10g}") for place in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]
