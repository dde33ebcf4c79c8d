"""Pictures and sounds have addresses of their own, for those who are let in, and these lead to nothing else."""

import io
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import soundfile
from guarded import Guarded, Watched, ask
from PIL import Image

from pages.shared import spectrograms


def address_of(guarded: Guarded, kind: str) -> str:
    preview = guarded.run.preview(str(guarded.run.samples["id"][0]))
    return f"/previews/{guarded.run.manifest.dataset}/{preview.picture.with_suffix(kind).name}"


@pytest.mark.browser
def test_a_sound_has_an_address_and_may_be_played(guarded: Guarded, inside: Watched) -> None:
    sound = guarded.run.preview(str(guarded.run.samples["id"][0])).sound
    heard = """url => new Promise(told => {
        const sound = new Audio(url);
        sound.onloadedmetadata = () => told(sound.duration);
        sound.onerror = () => told(sound.error.message);
    })"""
    length = inside.page.evaluate(heard, address_of(guarded, ".wav"))
    assert length == pytest.approx(soundfile.info(sound).duration, abs=0.01)


def test_pictures_and_sounds_are_for_those_who_are_let_in_and_are_kept_by_the_browser(guarded: Guarded) -> None:
    for kind, magic in ((".png", b"\x89PNG"), (".wav", b"RIFF")):
        address = address_of(guarded, kind)
        assert ask(guarded, "GET", address)[0] == 403
        status, headers, content = ask(guarded, "GET", address, Cookie=guarded.cookie)
        assert (status, content[:4], headers["cache-control"]) == (200, magic, "private, max-age=31536000, immutable")
        assert content == guarded.run.preview(str(guarded.run.samples["id"][0])).picture.with_suffix(kind).read_bytes()
    small = ask(guarded, "GET", f"{address_of(guarded, '.png')}?width=40", Cookie=guarded.cookie)[2]
    assert Image.open(io.BytesIO(small)).width == 40
    around = Image.open(io.BytesIO(ask(guarded, "GET", f"{address_of(guarded, '.png')}?tone=1000", Cookie=guarded.cookie)[2]))
    assert around.size == spectrograms.SMALL


def test_a_thumbnail_around_a_tone_is_brightest_where_the_tone_is(tmp_path: Path) -> None:
    """A sine 200 Hz above the middle of the band stands above the middle of the picture."""
    rate = 48_000
    file = tmp_path / "tone.wav"
    soundfile.write(file, 0.5 * np.sin(2 * np.pi * 1_200 * np.arange(rate // 4) / rate), rate)
    rows = np.asarray(Image.open(io.BytesIO(spectrograms.small(file, 1_000.0))).convert("L"), dtype=float).mean(axis=1)
    middle = spectrograms.SMALL[1] / 2
    assert rows.argmax() == pytest.approx(middle - 200 / 800 * spectrograms.SMALL[1], abs=8)


@pytest.mark.parametrize(
    "path",
    [
        "/previews/{dataset}/../../tracin.sqlite3",
        "/previews/{dataset}/..%2f..%2f..%2ftracin.sqlite3",
        "/previews/..%2f..%2fdatasets%2f{dataset}/{name}",
        "/previews/{dataset}/{stem}.json",
        "/previews/{dataset}/{stem}.PNG",
        "/previews/{dataset}/{name}%00.png",
        "/previews/{dataset}/{name}?tone=99999",
        "/previews/{dataset}/{name}?tone=nan",
        "/previews/{dataset}/{name}?tone=-1000",
        "/previews/{dataset}/{name}?width=0",
        "/previews/{dataset}/{name}?width=99999",
        "/previews/{dataset}/{name}?width=-40",
        "/previews/{dataset}/{name}?width=\u0664\u0660",
        "/previews/0123456789ab/{name}",
        "/previews/{dataset}/0123456789abcdef0123456789abcdef.png",
    ],
)
def test_an_address_leads_to_previews_only(guarded: Guarded, path: str) -> None:
    picture = guarded.run.preview(str(guarded.run.samples["id"][0])).picture
    asked = path.format(dataset=guarded.run.manifest.dataset, name=picture.name, stem=picture.stem)
    assert ask(guarded, "GET", quote(asked, safe="/%?="), Cookie=guarded.cookie)[0] in (400, 404)
