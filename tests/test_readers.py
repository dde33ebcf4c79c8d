"""From files to arrays: the lab's names, every kind of WAV, the spectrogram against torch, and clear words for what cannot be read."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tracin_core.data import recordings as module
from tracin_core.data.readers import READERS, reader_for, sample_digest
from tracin_core.data.recordings import (
    AS_STORED,
    FLOOR_DB,
    HOP,
    PREPROCESSING,
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
from tracin_core.recipe import PluginData, RecordingsData

RATE = 48_000
DECIBEL = {"rtol": 0.0, "atol": 2e-2}  # dB; float32 transforms differ by 1e-4 of a bin's magnitude near the floor of -80 dB


def tone(values: int = 4096, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=values)
    return (0.5 * np.sin(np.arange(values) / 7) + 0.05 * noise).astype(np.float32)


def place(root: Path, name: str, suffix: str = "wav", folder: str | None = None) -> Path:
    """Where the layout wants a recording, or in `folder`; its folder is there."""
    material, angle = name.split("_deg")[0], "deg" + name.split("_deg")[1].split("_")[0]
    path = root / (folder or f"{angle}/{material}") / f"{name}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def put(root: Path, name: str, wave: np.ndarray | None = None, *, folder: str | None = None, subtype: str = "PCM_16") -> Path:
    """A recording in its place."""
    path = place(root, name, folder=folder)
    soundfile.write(path, tone() if wave is None else wave, RATE, subtype=subtype)
    return path


def put_spectrum(root: Path, name: str, spectrum: np.ndarray, suffix: str = "npy") -> Path:
    """A finished spectrum in its place."""
    path = place(root, name, suffix)
    (np.save if suffix == "npy" else np.savez)(path, spectrum)
    return path


def box(root: Path, frequency: str = "500hz") -> RecordingsData:
    return RecordingsData(root=root, material="box", frequency=frequency)


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


def test_what_is_left_out_is_listed(tmp_path: Path) -> None:
    """Every file that is no recording, with the reason; the notes of a simulation are its own."""
    put(tmp_path, "box_deg000_500hz_00")
    put(tmp_path, "metal_deg000_500hz_00")
    put(tmp_path, "box_deg036_500hz_00", folder="deg000/box")
    put(tmp_path, "box_deg036_500hz_00", folder="more/deg036/box")
    (tmp_path / "deg000/box/box_deg000_500hz.wav").write_text("no take number")
    (tmp_path / "deg000/box/notes.txt").write_text("a note")
    (tmp_path / "SIMULATED.txt").write_text("simulated")
    (tmp_path / "truth.json").write_text("{}")
    assert dict(reader_for(box(tmp_path)).left_out()) == {
        "deg000/box/box_deg000_500hz.wav": "its name does not read <material>_deg<angle>_<frequency>hz_<take>",
        "deg000/box/box_deg036_500hz_00.wav": "its name says that it belongs into deg036/box",
        "deg000/box/notes.txt": "its name does not end in .flac, .npy, .npz, .wav",
        "more/deg036/box/box_deg036_500hz_00.wav": "its name says that it belongs into deg036/box",
    }


def test_takes_are_in_order(tmp_path: Path) -> None:
    """By number, however it is spelled and whatever the ending; angles and frequencies as they are written, as ever."""
    for take in ("10", "9", "008", "4", "05"):
        put(tmp_path, f"box_deg000_500hz_{take}")
    put(tmp_path, "box_deg036_500hz_1").rename(tmp_path / "deg036/box/box_deg036_500hz_1.WAV")
    samples = list_recordings(tmp_path, "box", "500hz")
    assert [name.rpartition("_")[2] for name in samples["id"]] == ["4", "05", "008", "9", "10", "1"]
    assert list(samples["sequence"]) == [4, 5, 8, 9, 10, 1]
    two_digits = [f"box_deg{angle:03d}_{tone}_{take:02d}" for angle in (0, 36) for tone in ("500hz", "1000hz") for take in (2, 1)]
    for name in two_digits:
        put(tmp_path / "plain", name)
    assert list(find_recordings(tmp_path / "plain")["id"]) == sorted(two_digits)


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


def test_one_take_in_two_kinds_of_file_is_refused(tmp_path: Path) -> None:
    """With their endings, for their names are the same."""
    path = put(tmp_path, "box_deg000_500hz_04")
    soundfile.write(path.with_suffix(".flac"), tone(), RATE)
    with pytest.raises(DataError, match=r"'box_deg000_500hz_04\.flac' and 'box_deg000_500hz_04\.wav' are the same take"):
        list_recordings(tmp_path, "box", "500hz")


def test_flac_is_sound(tmp_path: Path) -> None:
    """The same values as the same WAV, among WAVs."""
    wav = put(tmp_path, "box_deg000_500hz_00")
    flac = place(tmp_path, "box_deg036_500hz_00", "flac")
    soundfile.write(flac, soundfile.read(wav, dtype="int16")[0], RATE, subtype="PCM_16")
    np.testing.assert_array_equal(read_recording(flac)[0], read_recording(wav)[0])
    inputs = read_inputs(tmp_path, list_recordings(tmp_path, "box", "500hz"))
    np.testing.assert_array_equal(inputs[0], inputs[1])


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7)])
def test_finished_spectra_are_taken_as_they_are(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    """[F, T] or [1, F, T] in the same layout: the same values, a picture, no sound, and another name for what happened to them."""
    stored = np.random.default_rng(0).normal(size=(2, *shape))
    for take, spectrum in enumerate(stored):
        put_spectrum(tmp_path, f"box_deg000_500hz_{take}", spectrum, suffix)
    reader = reader_for(box(tmp_path))
    samples = reader.list()
    inputs = reader.read(samples.iloc[::-1])
    np.testing.assert_array_equal(inputs[::-1], stored.reshape(2, 1, 5, 7).astype(np.float32))
    assert reader.preprocessing == AS_STORED
    reader.preview(samples.iloc[0], inputs[1], tmp_path / "seen")
    with Image.open(tmp_path / "seen.png") as image:
        level = np.asarray(image.convert("L"))
    assert level.min() < 30
    assert level.max() > 180
    assert not (tmp_path / "seen.wav").exists()


def test_sound_and_spectra_do_not_mix(tmp_path: Path) -> None:
    put(tmp_path, "box_deg000_500hz_00")
    put_spectrum(tmp_path, "box_deg036_500hz_00", np.ones((1025, 17)))
    with pytest.raises(DataError, match=r"'box_deg000_500hz_00\.wav' is one of 1 sound files, 'box_deg036_500hz_00\.npy' one of 1"):
        list_recordings(tmp_path, "box", "500hz")


class Dangerous:
    """Ends the test run if it is ever unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("import os; os._exit(3)",)


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        (np.array([Dangerous()], dtype=object), "holds Python objects, which are never unpickled"),
        (np.ones((2, 5, 7)), r"float64 of shape \[2, 5, 7\]; save decimal numbers of shape \[F, T\]"),
        (np.ones(7), r"shape \[7\]"),
        (np.ones((0, 7)), r"shape \[0, 7\]"),
        (np.ones((5, 7), dtype=int), "is int64"),
        (np.full((5, 7), np.nan), "not finite"),
        (np.full((5, 7), 1e300), "not finite"),
    ],
    ids=["objects", "two channels", "one row", "nothing", "whole numbers", "nan", "too large"],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_spectra_that_are_none_are_named(tmp_path: Path, stored: np.ndarray, told: str, suffix: str) -> None:
    put_spectrum(tmp_path, "box_deg000_500hz_00", stored, suffix)
    with pytest.raises(DataError, match=rf"box_deg000_500hz_00\.{suffix}'.* {told}"):
        read_inputs(tmp_path, list_recordings(tmp_path, "box", "500hz"))


def test_damaged_spectra_are_named(tmp_path: Path) -> None:
    path = put_spectrum(tmp_path, "box_deg000_500hz_00", np.ones((5, 7)))
    whole = path.read_bytes()
    for content, told in (
        (b"", "is empty"),
        (whole[:-8], "is cut off"),
        (whole + b"0", "is cut off or damaged"),
        (b"text", "cannot be read"),
    ):
        path.write_bytes(content)
        with pytest.raises(UnreadableSampleError, match=told):
            read_inputs(tmp_path, list_recordings(tmp_path, "box", "500hz"))
    np.savez(path.with_suffix(".npz"), a=np.ones((5, 7)), b=np.ones((5, 7)))
    path.unlink()
    with pytest.raises(UnreadableSampleError, match="has 2 arrays; save the spectrum alone"):
        read_inputs(tmp_path, list_recordings(tmp_path, "box", "500hz"))


def test_unequal_spectra_are_refused(tmp_path: Path) -> None:
    put_spectrum(tmp_path, "box_deg000_500hz_00", np.ones((5, 7)))
    put_spectrum(tmp_path, "box_deg036_500hz_00", np.ones((5, 8)))
    with pytest.raises(
        DataError, match=r"'box_deg036_500hz_00\.npy' has 5 x 8 values, but 'box_deg000_500hz_00\.npy' has 5 x 7 values"
    ):
        read_inputs(tmp_path, list_recordings(tmp_path, "box", "500hz"))


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


def test_the_reader_of_recordings(tmp_path: Path) -> None:
    """The table of `list_recordings` with the angle as target, its spectra, a picture and a sound."""
    put(tmp_path, "box_deg000_500hz_00")
    put(tmp_path, "box_deg036_500hz_00", tone(seed=1))
    reader = reader_for(box(tmp_path))
    samples = reader.list()
    pd.testing.assert_frame_equal(samples.drop(columns="target"), list_recordings(tmp_path, "box", "500hz"))
    assert list(samples["target"]) == [0, 36]
    inputs = reader.read(samples)
    np.testing.assert_array_equal(inputs, read_inputs(tmp_path, samples))
    assert reader.preprocessing == PREPROCESSING == "stft-hamming-2048-256-reflect-db80-v1"  # cached kernels are named by it
    reader.preview(samples.iloc[1], inputs[1], tmp_path / "seen")
    assert soundfile.info(tmp_path / "seen.wav").frames == 4096
    with Image.open(tmp_path / "seen.png") as image:
        assert image.size == PREVIEW_SIZE


def test_no_recording_is_read_through_a_link_out(tmp_path: Path) -> None:
    """Neither by listing it, nor by a path that says so, nor by a link that came after the listing."""
    outside = put(tmp_path / "outside", "box_deg000_500hz_00")
    inside = put(tmp_path / "root", "box_deg000_500hz_00")
    samples = list_recordings(tmp_path / "root", "box", "500hz")
    inside.unlink()
    inside.symlink_to(outside)
    with pytest.raises(DataError, match="is a link that leads out of the data folder"):
        find_recordings(tmp_path / "root")
    with pytest.raises(UnreadableSampleError, match="leads out of the data folder"):
        read_inputs(tmp_path / "root", samples)
    with pytest.raises(UnreadableSampleError, match="leads out of the data folder"):
        read_inputs(tmp_path / "root", samples.assign(path="../outside/deg000/box/box_deg000_500hz_00.wav"))


def test_a_recording_has_a_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all channels, by its header, before room is taken."""
    path = put(tmp_path, "box_deg000_500hz_00", np.stack([tone()] * 2, axis=1))
    monkeypatch.setattr(module, "MOST_VALUES", 8191)
    with pytest.raises(UnreadableSampleError, match="has 8,192 values, more than the 8,191 that are read"):
        read_recording(path)


def test_flipped_bytes_are_sound_or_a_sentence(tmp_path: Path) -> None:
    """Headers that lie about sizes, channels and rates end in a refusal or in finite values."""
    for suffix in ("wav", "flac"):
        path = place(tmp_path, "box_deg000_500hz_00", suffix)
        soundfile.write(path, tone(), RATE, subtype="PCM_16")
        raw, generator = path.read_bytes(), np.random.default_rng(0)
        for _ in range(100):
            changed = bytearray(raw)
            changed[int(generator.integers(0, 100))] = int(generator.integers(256))
            path.write_bytes(changed)
            try:
                wave, _ = read_recording(path)
            except UnreadableSampleError:
                continue
            assert np.isfinite(wave).all()


def test_other_types_have_digests_of_their_own() -> None:
    """Whole numbers are not the decimal ones of equal value; float32 is digested as it always was."""
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert sample_digest(values) == hashlib.sha256(b"(2, 3)" + values.tobytes()).hexdigest()[:32]
    kinds = ("<f4", "<f8", "<i8", "<i4", "|u1")
    assert len({sample_digest(values.astype(kind)) for kind in kinds}) == len(kinds)
    nothing = np.zeros((2, 3))  # of the same bytes in types of the same width
    assert sample_digest(nothing.astype("<i8")) != sample_digest(nothing.astype("<f8"))
    assert sample_digest(nothing.astype("<i4")) != sample_digest(nothing.astype("<f4"))
    assert sample_digest(values.astype("<i8")) == sample_digest(np.asfortranarray(values.astype(">i8")))


def test_plugins_are_read_elsewhere() -> None:
    with pytest.raises(DataError, match=r"kind 'plugin' are read in the worker only; .*recordings, arrays, images, table"):
        reader_for(PluginData(name="mine"))
    assert list(READERS) == ["recordings", "arrays", "images", "table"]
