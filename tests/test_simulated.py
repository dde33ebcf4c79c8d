"""Simulated recordings: the lab's layout, the same bytes each time, and faults that are what `truth.json` says they are."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import make_recordings

from tracin_core.data.readers import list_recordings, read_inputs, read_recording
from tracin_core.data.samples import split_samples
from tracin_core.data.simulated import (
    ANGLES,
    FREQUENCIES,
    MATERIALS,
    RATE,
    SECONDS,
    FaultPlan,
    fault_plan,
    read_truth,
    record,
    sample_name,
    simulate_recordings,
)
from tracin_core.errors import DataError
from tracin_core.recipe import SplitSection

LOUD = 0.98  # a clipped recording's ceiling


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recordings of the demo."""
    folder = tmp_path_factory.mktemp("demo")
    simulate_recordings(folder)
    return folder


def digests(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*.*")}


def test_recordings_are_in_the_labs_layout(root: Path) -> None:
    """6 angles x 20 takes of one length, 48 kHz, 16 bits, and a note that they are no measurements."""
    samples = list_recordings(root, "box", "1000hz")
    assert Counter(samples["angle"]) == dict.fromkeys(ANGLES, 20)
    for path in samples["path"]:
        told = soundfile.info(root / path)
        assert (told.samplerate, told.frames, told.channels, told.subtype) == (RATE, int(RATE * SECONDS), 1, "PCM_16")
    assert "SIMULATED" in (root / "SIMULATED.txt").read_text()


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """Everything follows the seed, and a second run over the first changes nothing."""
    first, again = make_recordings(tmp_path / "first"), make_recordings(tmp_path / "again")
    expected = digests(first)
    assert digests(again) == expected
    make_recordings(first)
    assert digests(first) == expected
    section = SplitSection(train=3, validation=2, test=1)
    simulate_recordings(tmp_path / "other", takes=6, split=section, seed=8)
    assert not set(digests(tmp_path / "other").values()) & {digest for path, digest in expected.items() if path.endswith(".wav")}


def test_truth_is_on_the_training_side(root: Path) -> None:
    """4 wrong labels, one bad take of 6, one clipped, one duplicate; `split_samples` puts all of them in training."""
    faults = read_truth(root)
    assert Counter(fault.kind for fault in faults) == {"wrong_label": 4, "bad_take": 6, "clipped": 1, "duplicate": 1}
    samples = split_samples(list_recordings(root, "box", "1000hz"), SplitSection()).set_index("id")
    assert len({fault.sample for fault in faults}) == len(faults)
    assert set(samples.loc[[fault.sample for fault in faults], "split"]) == {"train"}


def test_planted_faults_are_real(root: Path) -> None:
    """What the truth says of a recording can be heard in it."""
    waves = {path.stem: read_recording(path)[0] for path in root.rglob("*.wav")}
    clean = {kind: [fault for fault in read_truth(root) if fault.kind == kind] for kind in ("clipped", "duplicate")}
    clipped = waves[clean["clipped"][0].sample]
    assert np.mean(np.abs(clipped) > LOUD - 1e-3) > 0.3
    duplicate = clean["duplicate"][0]
    np.testing.assert_array_equal(waves[duplicate.sample], waves[duplicate.detail["of"]])
    assert duplicate.sample.split("_")[1] != duplicate.detail["of"].split("_")[1]


def test_only_the_duplicate_is_a_copy(root: Path) -> None:
    """A wrong label is a recording of its own, not a second copy of one that is there under its right label."""
    duplicate = next(fault for fault in read_truth(root) if fault.kind == "duplicate")
    groups: dict[str, set[str]] = {}
    for path in root.rglob("*.wav"):
        groups.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), set()).add(path.stem)
    assert [group for group in groups.values() if len(group) > 1] == [{duplicate.sample, duplicate.detail["of"]}]


def test_wrong_labels_sound_like_their_true_angle(root: Path) -> None:
    """The mean spectrum over time is nearer to the true angle's clean takes than to the labelled angle's."""
    samples = list_recordings(root, "box", "1000hz")
    spectra = read_inputs(root, samples).mean(axis=(1, 3))
    faulty = samples["id"].isin([fault.sample for fault in read_truth(root)]).to_numpy()
    centres = {angle: spectra[(samples["angle"] == angle).to_numpy() & ~faulty].mean(axis=0) for angle in ANGLES}
    for fault in read_truth(root):
        if fault.kind == "wrong_label":
            spectrum = spectra[samples.index[samples["id"] == fault.sample][0]]
            distances = {angle: float(np.linalg.norm(spectrum - centre)) for angle, centre in centres.items()}
            assert distances[fault.detail["true_angle"]] < distances[fault.detail["labelled"]]


def places(plan: FaultPlan) -> list[tuple[int, int]]:
    return [*plan.true_angles, plan.clipped, plan.original, plan.copy]


@settings(max_examples=300, deadline=None)
@given(train=st.integers(2, 12), other=st.integers(1, 6), split_seed=st.integers(0, 2**32 - 1), seed=st.integers(0, 10_000))
def test_every_plan_is_sound(train: int, other: int, split_seed: int, seed: int) -> None:
    """Whatever the numbers: one fault per recording, all in training takes, wrong labels two classes or more away."""
    section = SplitSection(train=train, validation=other, test=0, seed=split_seed)
    plan = fault_plan(train + other, section, seed)
    trained = set(np.random.RandomState(split_seed).permutation(np.arange(train + other))[:train])
    assert {take for _, take in places(plan)} | {plan.bad_take} <= trained
    assert plan.bad_take not in {take for _, take in places(plan)}
    assert len(set(places(plan))) == len(places(plan))
    assert plan.original[0] != plan.copy[0]
    assert all(abs(true - labelled) >= 72 for (labelled, _), true in plan.true_angles.items())


def test_too_few_takes_for_faults_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2 training takes, but 4 takes with 1 for training"):
        simulate_recordings(tmp_path / "new", takes=4, split=SplitSection(train=1, validation=2, test=1))
    assert not list((tmp_path / "new").rglob("*.wav"))


@pytest.mark.parametrize(("material", "frequency"), [("glass", "1000hz"), ("box", "700hz")])
def test_unknown_simulations_are_refused(tmp_path: Path, material: str, frequency: str) -> None:
    with pytest.raises(DataError, match=f"no simulation of '{material}' at '{frequency}'; choose from plastic, box, metal"):
        simulate_recordings(tmp_path, material=material, frequency=frequency)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("frequency", FREQUENCIES)
@pytest.mark.parametrize("material", MATERIALS)
def test_takes_are_finite_loud_and_differ(material: str, frequency: str) -> None:
    """Each material and frequency gives its own sound, and each take of it another."""
    takes = [record(72, take, material, frequency, seed=7) for take in range(3)]
    for wave in takes:
        assert np.isfinite(wave).all()
        assert np.abs(wave).max() == pytest.approx(0.8)
    assert not np.allclose(takes[0], takes[1])
    pitch = np.fft.rfftfreq(len(takes[0]), 1 / RATE)[np.argmax(np.abs(np.fft.rfft(takes[0])))]
    assert pitch == pytest.approx(FREQUENCIES[frequency], abs=1 / SECONDS)


def test_real_recordings_have_no_truth(tmp_path: Path) -> None:
    assert read_truth(tmp_path) == []
    assert sample_name("box", 0, "500hz", 4) == "box_deg000_500hz_04"


def test_progress_counts_every_recording(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    section = SplitSection(train=3, validation=2, test=1)
    simulate_recordings(tmp_path, takes=6, split=section, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 36) for done in range(1, 37)]
