"""From files to arrays: the lab's names, every kind of WAV, the spectrogram against torch, and clear words for what cannot be read."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tracin_core.data.readers import sample_digest
from tracin_core.data.recordings import (
    FLOOR_DB,
    HOP,
    PREVIEW_SECONDS,
    PREVIEW_SIZE,
    WINDOW,
    find_recordings,
    list_recordings,
    preview_png,
    preview_wav,
    read_inputs,
    read_recording,
    spectrogram,
)
from tracin_core.errors import DataError, UnreadableSampleError

RATE = 48_000
DECIBEL = {"rtol": 0.0, "atol": 2e-2}  # dB; float32 transforms differ by 1e-4 of a bin's magnitude near the floor of -80 dB


def tone(values: int = 4096, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=values)
    return (0.5 * np.sin(np.arange(values) / 7) + 0.05 * noise).astype(np.float32)


def put(root: Path, name: str, wave: np.ndarray | None = None, *, folder: str | None = None, subtype: str = "PCM_16") -> Path:
    """A recording where the layout wants it, or in `folder`."""
    material, angle = name.split("_deg")[0], "deg" + name.split("_deg")[1].split("_")[0]
    path = root / (folder or f"{angle}/{material}") / f"{name}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone() if wave is None else wave, RATE, subtype=subtype)
    return path


def test_recordings_are_listed_by_name(tmp_path: Path) -> None:
    """Material with an underscore, takes with one digit, 0 degrees as an angle, labels by rank of the angle."""
    for name in ("my_box_deg000_500hz_4", "my_box_deg090_500hz_04", "my_box_deg036_500hz_00", "my_box_deg036_1000hz_00"):
        put(tmp_path, name)
    samples = list_recordings(tmp_path, "my_box", "500hz")
    assert list(samples["id"]) == ["my_box_deg000_500hz_4", "my_box_deg036_500hz_00", "my_box_deg090_500hz_04"]
    assert samples[["label", "angle", "sequence"]].to_numpy().tolist() == [[0, 0, 4], [1, 36, 0], [2, 90, 4]]
    assert list(samples.columns) == ["id", "label", "angle", "material", "frequency", "sequence", "path"]
    assert samples["path"].iloc[0] == "deg000/my_box/my_box_deg000_500hz_4.wav"
    assert list(list_recordings(tmp_path, "my_box", "all")["frequency"]) == ["500hz", "1000hz", "500hz", "500hz"]


def test_other_files_are_not_recordings(tmp_path: Path) -> None:
    """A name that contradicts its folders, or follows no layout, is not taken."""
    put(tmp_path, "box_deg000_500hz_00")
    put(tmp_path, "box_deg036_500hz_00", folder="deg000/box")
    put(tmp_path, "box_deg000_500hz_01", folder="deg000/metal")
    (tmp_path / "deg000/box/notes.wav").write_text("no take number")
    assert list(find_recordings(tmp_path)["id"]) == ["box_deg000_500hz_00"]


def test_nothing_found_says_what_there_is(tmp_path: Path) -> None:
    put(tmp_path, "box_deg000_500hz_00")
    with pytest.raises(DataError, match=r"metal_deg\*_3000hz_<take>\.wav \(it has box 500hz\)"):
        list_recordings(tmp_path, "metal", "3000hz")
    with pytest.raises(DataError, match="does not exist"):
        list_recordings(tmp_path / "nowhere", "box", "500hz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no recording in that layout"):
        list_recordings(tmp_path / "empty", "box", "500hz")


def test_one_take_in_two_files_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "box_deg000_500hz_4")
    put(tmp_path, "box_deg000_500hz_04")
    with pytest.raises(DataError, match="the same take of the same angle"):
        list_recordings(tmp_path, "box", "500hz")


@pytest.mark.parametrize(
    ("subtype", "tolerance"), [("PCM_16", 2**-15), ("PCM_24", 2**-23), ("PCM_32", 1e-6), ("FLOAT", 0.0), ("DOUBLE", 1e-7)]
)
def test_every_wav_reads_the_same(tmp_path: Path, subtype: str, tolerance: float) -> None:
    """16, 24 and 32 bits and floats give the same values, to their last bit."""
    wave, rate = read_recording(put(tmp_path, "box_deg000_500hz_00", subtype=subtype))
    assert (rate, wave.dtype, wave.ndim) == (RATE, np.float32, 1)
    np.testing.assert_allclose(wave, tone(), rtol=0, atol=tolerance)


def test_stereo_is_averaged(tmp_path: Path) -> None:
    both = np.stack([tone(seed=1), tone(seed=2)], axis=1)
    wave, _ = read_recording(put(tmp_path, "box_deg000_500hz_00", both, subtype="FLOAT"))
    np.testing.assert_allclose(wave, both.mean(axis=1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("wave", "told"),
    [
        (np.zeros(4096), "is silent"),
        (np.stack([tone(), -tone()], axis=1), "is silent"),
        (tone(WINDOW - 1), "has 2047 values, fewer than one window of 2048"),
        (np.zeros(0), "has 0 values"),
        (np.where(np.arange(4096) == 9, np.nan, tone()), "not finite"),
        (np.where(np.arange(4096) == 9, np.inf, tone()), "not finite"),
    ],
    ids=["silent", "opposite channels", "short", "empty", "nan", "infinite"],
)
def test_useless_recordings_are_named(tmp_path: Path, wave: np.ndarray, told: str) -> None:
    path = put(tmp_path, "box_deg000_500hz_00", wave, subtype="FLOAT")
    with pytest.raises(UnreadableSampleError, match=rf"'{path.name}' .*{told}"):
        read_recording(path)


@pytest.mark.parametrize("content", [b"", b"not audio at all", b"RIFF\x10\x00\x00\x00WAVEfmt "], ids=["empty", "text", "cut off"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "box_deg000_500hz_00.wav"
    path.write_bytes(content)
    with pytest.raises(UnreadableSampleError, match=path.name) as caught:
        read_recording(path)
    assert str(tmp_path) not in str(caught.value)


def torch_spectrogram(wave: np.ndarray) -> np.ndarray:
    """The same picture by torch: centred, reflected, periodic Hamming, dB relative to the maximum."""
    window = torch.hamming_window(WINDOW, periodic=True)
    parts = torch.stft(
        torch.from_numpy(wave), WINDOW, HOP, window=window, center=True, pad_mode="reflect", return_complex=True
    ).abs()
    return (20 * torch.log10(parts / parts.max())).clamp(min=FLOOR_DB)[None].numpy()


@settings(max_examples=20, deadline=None)
@given(values=st.integers(WINDOW, 9000), seed=st.integers(0, 100))
def test_spectrogram_is_torchs(values: int, seed: int) -> None:
    wave = tone(values, seed)
    spectrum = spectrogram(wave)
    assert spectrum.shape == (1, 1025, 1 + values // HOP)
    assert spectrum.dtype == np.float32
    np.testing.assert_allclose(spectrum, torch_spectrogram(wave), **DECIBEL)


@settings(max_examples=20, deadline=None)
@given(gain=st.floats(1e-4, 1.0), seed=st.integers(0, 100))
def test_loudness_does_not_matter(gain: float, seed: int) -> None:
    """Decibels are relative to the clip: 0 at its maximum, never below the floor."""
    wave = tone(seed=seed)
    np.testing.assert_allclose(spectrogram(np.float32(gain) * wave), spectrogram(wave), **DECIBEL)
    assert spectrogram(wave).max() == 0.0
    assert spectrogram(wave).min() >= FLOOR_DB


def test_inputs_follow_the_samples(tmp_path: Path) -> None:
    """Row i is the spectrogram of sample i, and progress counts every one."""
    names = ("box_deg000_500hz_00", "box_deg036_500hz_00", "box_deg072_500hz_00")
    for seed, name in enumerate(names):
        put(tmp_path, name, tone(seed=seed))
    samples = list_recordings(tmp_path, "box", "500hz").iloc[::-1].reset_index(drop=True)
    told: list[int] = []
    inputs = read_inputs(tmp_path, samples, progress=told.append)
    assert told == [1, 2, 3]
    for row, path in enumerate(samples["path"]):
        np.testing.assert_array_equal(inputs[row], spectrogram(read_recording(tmp_path / path)[0]))


def test_unequal_recordings_are_refused(tmp_path: Path) -> None:
    """Also when the number of frames would be the same: 4,096 and 4,100 values both give 17."""
    put(tmp_path, "box_deg000_500hz_00")
    put(tmp_path, "box_deg036_500hz_00", tone(4100))
    with pytest.raises(
        DataError, match=r"'box_deg036_500hz_00\.wav' has 4100 values at 48000 Hz, but 'box_deg000_500hz_00\.wav' has 4096"
    ):
        read_inputs(tmp_path, list_recordings(tmp_path, "box", "500hz"))
    with pytest.raises(DataError, match="no recording to read"):
        read_inputs(tmp_path, list_recordings(tmp_path, "box", "500hz").iloc[:0])


def test_digest_is_of_shape_and_values() -> None:
    """Memory order and byte order do not matter; one changed value or another shape does."""
    spectrum = spectrogram(tone())
    changed = spectrum.copy()
    changed[0, 5, 5] = np.nextafter(changed[0, 5, 5], np.float32(1))
    assert sample_digest(spectrum) == sample_digest(np.asfortranarray(spectrum)) == sample_digest(spectrum.astype(">f4"))
    assert len({sample_digest(array) for array in (spectrum, changed, spectrum[0], spectrum.reshape(1, -1))}) == 4


def test_previews_can_be_shown_and_played(tmp_path: Path) -> None:
    """A small picture with low frequencies at the bottom, and one channel of 16 bits, at most 10 s."""
    low = np.full((1, 1025, 20), FLOOR_DB, dtype=np.float32)
    low[0, :300] = 0.0
    preview_png(low, tmp_path / "low.png")
    with Image.open(tmp_path / "low.png") as image:
        assert image.size == PREVIEW_SIZE
        pixels = np.asarray(image.convert("L"))
    assert pixels[-1].mean() > 200 > 30 > pixels[0].mean()
    source = put(tmp_path, "box_deg000_500hz_00", np.stack([tone(11 * RATE)] * 2, axis=1), subtype="PCM_24")
    preview_wav(source, tmp_path / "play.wav")
    told = soundfile.info(tmp_path / "play.wav")
    assert (told.channels, told.subtype, told.frames, told.samplerate) == (1, "PCM_16", PREVIEW_SECONDS * RATE, RATE)
