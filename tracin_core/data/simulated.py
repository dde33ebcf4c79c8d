"""SIMULATED recordings for the demo: sine tones from a loudspeaker at an angle, heard through the wall of a small enclosure.

A tone with the driver's harmonics and the amplifier's hiss reaches the microphone directly, off the end wall and off the floor. Each
path is shadowed by the enclosure (one pole, one zero: Brown and Duda 1998), passes its wall (mass law with coincidence at oblique
incidence: Fahy and Gardonio, Sound and Structural Vibration, chapter 5) and leaks a little. The hiss carries the angle over the whole
band; the back face is heavier than the front, so 0 and 180 degrees differ. Takes vary in angle, distance, drive, gain and room noise.

Faults are planted among the training takes and written to `truth.json`, so that a user can see which of them the scores find.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import soundfile

from tracin_core.data.files import write_json, write_text
from tracin_core.errors import DataError
from tracin_core.recipe import SIMULATED_MARK, SplitSection

RATE: Final = 48_000
SECONDS: Final = 0.25
ANGLES: Final = tuple(range(0, 181, 36))
FREQUENCIES: Final = {"500hz": 500.0, "1000hz": 1000.0, "3000hz": 3000.0}
AIR_DENSITY: Final = 1.21
SOUND_SPEED: Final = 343.0
RADIUS: Final = 0.09
HARMONICS_DB: Final = (0, -36, -46, -54, -60, -64)
HISS_DB: Final = -40.0  # carries the angle over the whole band: at -46 a ranker of 60 recordings stays below .85
WRONG_LABELS: Final = 4
TRUTH: Final = "truth.json"

Wave = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]


@dataclass(frozen=True)
class Wall:
    """A panel: mass in kg/m2, loss factor, coincidence frequency in Hz, share of sound that leaks past it, loudness inside."""

    mass: float
    loss: float
    coincidence: float
    leak: float
    room_noise: float


MATERIALS: Final = {
    "plastic": Wall(2.4, 0.03, 6500.0, 0.02, 0.02),
    "box": Wall(0.55, 0.08, 9000.0, 0.04, 0.06),
    "metal": Wall(7.8, 0.01, 12000.0, 0.008, 0.06),
}


@dataclass(frozen=True)
class PlantedFault:
    """One thing that is wrong with one recording on purpose. `kind`: wrong_label, bad_take, clipped, duplicate."""

    sample: str
    kind: str
    detail: dict[str, Any]


def simulate_recordings(
    root: Path,
    *,
    material: str = "box",
    frequency: str = "1000hz",
    takes: int = 20,
    seed: int = 7,
    split: SplitSection | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[PlantedFault]:
    """6 angles x `takes` WAV files (48 kHz, 16 bits, 0.25 s) in the lab's layout, `SIMULATED.txt`, and `truth.json`, written last.

    Args:
        split: the rule by which takes are dealt out; faults are planted on its training side.

    Raises:
        DataError: no such material or frequency, or too few training takes to plant faults in.
    """
    if material not in MATERIALS or frequency not in FREQUENCIES:
        raise DataError(
            f"There is no simulation of '{material}' at '{frequency}'; choose from {', '.join(MATERIALS)} and {', '.join(FREQUENCIES)}."
        )
    plan = fault_plan(takes, split or SplitSection(), seed)
    faults: list[PlantedFault] = []
    write_text(root / SIMULATED_MARK, f"SIMULATED recordings ({material}, {frequency}), made by TracIn Studio; not measurements.\n")
    for done, (angle, take) in enumerate((angle, take) for angle in ANGLES for take in range(takes)):
        name = sample_name(material, angle, frequency, take)
        wave = record(angle, take, material, frequency, seed, bad=take == plan.bad_take)
        fault: tuple[str, dict[str, Any]] | None = ("bad_take", {"take": take}) if take == plan.bad_take else None
        if (angle, take) in plan.true_angles:
            true_angle = plan.true_angles[angle, take]
            # a take of its own: the recording of that angle and take is on disk under its right label
            wave = record(true_angle, takes + take, material, frequency, seed)
            fault = ("wrong_label", {"true_angle": true_angle, "labelled": angle})
        elif (angle, take) == plan.clipped:
            wave, fault = np.clip(4.0 * wave, -0.98, 0.98), ("clipped", {"gain": 4.0})
        elif (angle, take) == plan.copy:
            wave, fault = (
                record(*plan.original, material, frequency, seed),
                ("duplicate", {"of": sample_name(material, plan.original[0], frequency, plan.original[1])}),
            )
        path = root / f"deg{angle:03d}" / material / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, RATE, subtype="PCM_16")
        if fault is not None:
            faults.append(PlantedFault(name, *fault))
        if progress is not None:
            progress(done + 1, len(ANGLES) * takes)
    write_json(root / TRUTH, {"simulated": True, "seed": seed, "faults": [asdict(fault) for fault in faults]})
    return faults


def read_truth(root: Path) -> list[PlantedFault]:
    """The planted faults of simulated recordings; none for real ones."""
    try:
        truth = json.loads((root / TRUTH).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [PlantedFault(**fault) for fault in truth["faults"]]


@dataclass(frozen=True)
class FaultPlan:
    """Which (angle, take) gets which fault."""

    true_angles: dict[tuple[int, int], int]
    bad_take: int
    clipped: tuple[int, int]
    original: tuple[int, int]
    copy: tuple[int, int]


def fault_plan(takes: int, split: SplitSection, seed: int) -> FaultPlan:
    """Faults in distinct training takes: one bad, one clipped, one copied, and wrong labels at least two classes away in the others."""
    generator = np.random.default_rng([seed, takes])
    if split.rule != "sequence":
        raise DataError(f'Faults are planted in whole takes, but the split rule is "{split.rule}"; choose rule = "sequence".')
    if min(takes, split.train) < 2:
        raise DataError(
            f"Faults need at least 2 training takes, but {takes} takes with {split.train} for training were asked for; simulate more."
        )
    trained = np.random.RandomState(split.seed).permutation(np.arange(takes))[: split.train]
    order = [int(take) for take in generator.permutation(trained)]
    bad_take, others = order[0], order[1:]
    places = [(int(angle), take) for take in others for angle in generator.permutation(ANGLES)]
    chosen = [places[i] for i in generator.permutation(len(places))]
    count = min(WRONG_LABELS, len(trained) * len(ANGLES) // 12)
    true_angles = {}
    for angle, take in chosen[:count]:
        far = [other for other in ANGLES if abs(other - angle) >= 2 * 36]
        true_angles[angle, take] = int(generator.choice(far))
    clipped, original = chosen[count], chosen[count + 1]
    free = [place for place in chosen[count + 2 :] if place[0] != original[0]]
    copy = min(free, key=lambda place: abs(place[0] - original[0]))
    return FaultPlan(true_angles, bad_take, clipped, original, copy)


def sample_name(material: str, angle: int, frequency: str, take: int) -> str:
    return f"{material}_deg{angle:03d}_{frequency}_{take:02d}"


def record(angle: int, take: int, material: str, frequency: str, seed: int, *, bad: bool = False) -> Wave:
    """One take: 12,000 values within +-0.8. A bad take was placed carelessly in a noisy room."""
    generator = np.random.default_rng([seed, angle, take, list(MATERIALS).index(material), int(FREQUENCIES[frequency])])
    wall, tone = MATERIALS[material], FREQUENCIES[frequency]
    count = int(RATE * SECONDS)
    bins = np.fft.rfftfreq(count, 1 / RATE)
    theta = abs(np.deg2rad(angle + generator.normal(0, 14.0 if bad else 2.5)))
    drive, distance, end_wall = generator.normal(0, 1.5), 1 + generator.normal(0, 0.004), 1.4 + generator.normal(0, 0.004)
    spectrum = np.fft.rfft(generator.normal(size=count)) * 10 ** (HISS_DB / 20)
    spectrum += np.fft.rfft(loudspeaker(tone, drive, np.arange(count) / RATE, generator))
    heard = np.fft.irfft(spectrum * transfer(np.maximum(bins, 20), theta, wall, distance, end_wall), count) * 10 ** (drive / 20)
    pink = np.fft.irfft(np.fft.rfft(generator.normal(size=count)) / np.sqrt(np.maximum(bins, 40)), count)
    room_db = (8.0 if bad else 0.0) - 6.0 + generator.normal(0, 1)
    hum = 0.01 * np.sin(2 * np.pi * 60 * np.arange(count) / RATE + generator.uniform(0, 2 * np.pi))
    heard += wall.room_noise * (0.05 * 10 ** (room_db / 20) * pink / pink.std() + hum)
    return np.asarray(0.8 * heard / np.abs(heard).max())


def loudspeaker(tone: float, drive: float, seconds: Wave, generator: np.random.Generator) -> Wave:
    """The tone with the driver's harmonics; more drive, more distortion."""
    sound = np.zeros_like(seconds)
    for order, level in enumerate(HARMONICS_DB, start=1):
        pitch = order * tone * (1 + generator.normal(0, 1e-4))
        sound += 10 ** ((level + (order - 1) * drive * 0.5) / 20) * np.sin(
            2 * np.pi * pitch * seconds + generator.uniform(0, 2 * np.pi)
        )
    return sound


def transfer(frequencies: Wave, theta: float, wall: Wall, distance: float, end_wall: float, floor: float = 0.8) -> Complex:
    """Complex response from loudspeaker to microphone: direct path, end-wall image and floor image, each from its own angle."""
    x, y = distance * np.cos(theta), distance * np.sin(theta)
    total = np.zeros_like(frequencies, dtype=complex)
    for at_x, at_y, at_z, reflection in ((x, y, 0.0, 1.0), (-2 * end_wall - x, y, 0.0, 0.55), (x, y, -2 * floor, 0.4)):
        length = np.sqrt(at_x**2 + at_y**2 + at_z**2)
        arrival = float(np.arccos(np.clip(at_x / length, -1, 1)))
        steepest = np.deg2rad(88)
        lit = 1 / (1 + np.exp((arrival - np.pi / 2) / 0.25))
        through = lit * transmission(frequencies, min(arrival, steepest), wall)
        through += (1 - lit) * transmission(frequencies, min(np.pi - arrival, steepest), wall, heavier=2.2) + wall.leak
        delay = np.exp(-2j * np.pi * frequencies * length / SOUND_SPEED)
        total += reflection / length * head_shadow(frequencies, arrival) * through * delay
    return total


def transmission(frequencies: Wave, incidence: float, wall: Wall, heavier: float = 1.0) -> Complex:
    """Amplitude through a panel at an angle of incidence: 1 / (1 + Z cos(phi) / (2 rho c))."""
    omega = 2 * np.pi * frequencies
    ratio = (frequencies / wall.coincidence) ** 2 * np.sin(incidence) ** 4
    impedance = omega * wall.mass * heavier * (wall.loss * ratio + 1j * (1 - ratio))
    return np.asarray(1 / (1 + impedance * np.cos(incidence) / (2 * AIR_DENSITY * SOUND_SPEED)))


def head_shadow(frequencies: Wave, arrival: float) -> Complex:
    """One-pole, one-zero model of a sphere's shadow."""
    corner = SOUND_SPEED / RADIUS
    farthest = np.deg2rad(150)
    alpha = 1.05 + 0.95 * np.cos(min(arrival, farthest) / farthest * np.pi)
    return np.asarray((1 + 1j * alpha * np.pi * frequencies / corner) / (1 + 1j * np.pi * frequencies / corner))
