"""The page of proponents and opponents in both directions, its pair card, and the pictures on it."""

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lab
import numpy as np
import pytest
import soundfile
from conftest import Server, idle, texts_of, visit
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from playwright.sync_api import Page, expect
from streamlit.testing.v1 import AppTest
from test_pages import said, viewer

from pages.shared import examples, spectrograms
from pages.shared.i18n import LANGUAGES
from tracin_core import charts
from tracin_core.data.recordings import FLOOR_DB, HOP, WINDOW, spectrogram
from tracin_core.records.runs import Run
from tracin_core.records.workspace import Workspace, open_workspace

RATE = 8000
FLOAT32_DB = 0.05  # the engine's spectrum is float32; at -80 dB that is its last digits


@dataclass(frozen=True)
class Studio:
    """A workspace with two finished runs: one whose tests are all live, one of margin 0, with dead ones."""

    place: Workspace
    live: Run
    calm: Run


@pytest.fixture(scope="module")
def studio(shelf: lab.Shelf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    place = open_workspace(tmp_path_factory.mktemp("neighbours"))
    recipe = shelf.recipe()
    runs = [
        place.compute(recipe.model_copy(update={"name": name, "task": recipe.task.model_copy(update={"margin": margin})}))
        for name, margin in (("calm", 0.0), ("live", 10.0))
    ]
    assert all(isinstance(run, Run) for run in runs)
    yield Studio(place, runs[1], runs[0])
    lab.stop_worker(place)


@pytest.fixture
def look(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """`look(direction="train")`: the page over the run whose tests are live."""
    see = viewer(studio.place.root, monkeypatch)

    def look_(run: Run = studio.live, **parameters: object) -> AppTest:
        test = see("neighbours", run=run.id, **parameters)
        assert not test.exception
        return test

    return look_


# ---- pictures -------------------------------------------------------------------------------------------------------------------


def waves(seed: int, length: int, loudness: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=length), loudness * generator.normal(size=length)


def slow_power(wave: np.ndarray) -> np.ndarray:
    """|X|^2 of a Hamming window around every `HOP`-th value, one after the other."""
    mirrored = np.pad(wave, WINDOW // 2, mode="reflect")
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    starts = range(0, len(wave) + 1, HOP)
    return np.array([np.abs(np.fft.rfft(mirrored[start : start + WINDOW] * window)) ** 2 for start in starts]).T


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 99), length=st.integers(WINDOW, 4 * WINDOW), loudness=st.sampled_from([1.0, 0.1, 7.0]), tone=st.booleans()
)
def test_two_spectrograms_have_one_scale(seed: int, length: int, loudness: float, tone: bool) -> None:
    """dB below the loudest point of both, at the band's frequencies; the louder one by the power in that band."""
    pair = waves(seed, length, loudness)
    found = spectrograms.spectra(pair, RATE, (1000.0,) if tone else None)
    powers = [slow_power(wave) for wave in pair]
    frequencies = np.arange(1 + WINDOW // 2) * RATE / WINDOW
    band = np.abs(frequencies - 1000) <= spectrograms.AROUND if tone else frequencies >= 0
    most = max(power.max() for power in powers)
    for level, power in zip(found.levels, powers, strict=True):
        np.testing.assert_allclose(level, np.maximum(10 * np.log10(power[band] / most), FLOOR_DB), atol=1e-6)
    assert (found.low, found.high) == (frequencies[band].min(), frequencies[band].max())
    assert found.seconds == length / RATE
    expected = 10 * np.log10(powers[0][band].sum() / powers[1][band].sum())
    np.testing.assert_allclose(found.louder, expected, atol=1e-6)
    turned = spectrograms.spectra((pair[1], pair[0]), RATE, (1000.0,) if tone else None)
    np.testing.assert_allclose(turned.louder, -expected, atol=1e-6)


@pytest.mark.parametrize("loudness", [1.0, 0.2])
def test_the_picture_is_what_the_model_sees_but_for_one_level(loudness: float) -> None:
    """The engine's own spectrum of each recording, shifted to the scale of both."""
    pair = waves(3, 9000, loudness)
    found = spectrograms.spectra(pair, RATE, None)
    assert max(level.max() for level in found.levels) == 0
    for level, wave in zip(found.levels, pair, strict=True):
        seen = spectrogram(wave.astype(np.float32))[0]
        above = np.minimum(level, seen + level.max()) > FLOOR_DB + 1
        np.testing.assert_allclose(level[above], (seen + level.max())[above], atol=FLOAT32_DB)


def test_without_a_named_frequency_the_strongest_one_is_the_tone() -> None:
    time = np.arange(8000) / RATE
    pair = np.sin(2 * np.pi * 2500 * time), 0.1 * np.sin(2 * np.pi * 600 * time)
    found = spectrograms.spectra(pair, RATE, ())
    assert found.low == pytest.approx(2500 - spectrograms.AROUND, abs=RATE / WINDOW)
    assert found.high == pytest.approx(2500 + spectrograms.AROUND, abs=RATE / WINDOW)
    assert spectrograms.spectra((pair[0], pair[1][:-1]), RATE, ()) is None


@pytest.mark.parametrize(
    ("frequency", "tone"), [("1000hz", 1000.0), ("2.5kHz", 2500.0), ("all", None), (float("nan"), None), ("1000", None)]
)
def test_a_tone_is_read_from_the_samples_frequency(frequency: object, tone: float | None) -> None:
    assert spectrograms.tone_of({"frequency": frequency}) == tone
    assert spectrograms.tone_of({}) is None


def test_the_axes_say_where_the_tone_is(tmp_path: Path) -> None:
    """A sine that stops half way: bright where the axes put 1200 Hz and the first half, purple in the difference, orange turned round."""
    time = np.arange(2 * RATE) / RATE
    sine = np.sin(2 * np.pi * 1200 * time) * (time < 1)
    hiss = 0.0005 * np.random.default_rng(0).normal(size=time.size)
    files = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for file, wave in zip(files, (0.5 * sine + hiss, hiss[::-1]), strict=True):
        soundfile.write(file, wave, RATE)
    drawn = spectrograms.pictures.__wrapped__(str(files[0]), str(files[1]), (1000.0,))
    left, top, (width, height) = spectrograms.LEFT, spectrograms.TOP, spectrograms.PLOT
    x = [left + int(width * second / 2) for second in (0.5, 1.5)]
    y = top + int(height * (drawn.high - 1200) / (drawn.high - drawn.low))

    def colour(png: bytes, place: int) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int)[y, place]

    assert colour(drawn.sides[0], x[0]).sum() > 500
    assert colour(drawn.sides[0], x[1]).sum() < 200
    assert colour(drawn.sides[1], x[0]).sum() < 200
    red, _, blue = colour(drawn.difference, x[0])
    assert blue > red
    turned = spectrograms.pictures.__wrapped__(str(files[1]), str(files[0]), (1000.0,))
    red, _, blue = colour(turned.difference, x[0])
    assert red > blue
    assert Image.open(io.BytesIO(drawn.difference)).width == 2 * spectrograms.WIDTH


@given(low=st.floats(0, 20_000), size=st.floats(0.01, 20_000))
def test_ticks_are_a_few_even_steps_within(low: float, size: float) -> None:
    found = spectrograms.ticks(low, low + size)
    assert 1 <= len(found) <= 6
    assert all(low - 1e-6 * size <= tick <= low + size * (1 + 1e-6) for tick in found)
    steps = np.diff(found)
    assert np.allclose(steps, steps[:1], rtol=1e-3)


# ---- choosing a test ------------------------------------------------------------------------------------------------------------


def test_a_list_shows_losses_and_the_dead_last(look: Callable[..., AppTest], studio: Studio) -> None:
    view = studio.calm.view()
    assert 0 < view.dead_tests.sum() < len(view.dead_tests)
    test = look(studio.calm)
    test.session_state["tests.open"] = True
    test.run()
    listed = next(frame.value for frame in test.dataframe if said("en", "neighbours.list.loss") in frame.value)
    state = (listed[said("en", "neighbours.list.state")] == said("en", "neighbours.list.dead")).tolist()
    assert state == sorted(view.dead_tests.tolist())
    losses = listed[said("en", "neighbours.list.loss")].to_numpy()
    alive = ~np.array(state)
    assert losses[alive].tolist() == sorted(view.test.losses[-1][~view.dead_tests], reverse=True)
    assert said("en", "neighbours.list", n=len(listed), dead=view.dead_tests.sum()) in [e.label for e in test.expander]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_dead_test_is_told(look: Callable[..., AppTest], studio: Studio, language: str) -> None:
    view = studio.calm.view()
    test = look(studio.calm, lang=language, test=view.test_pairs["id"][view.dead_tests].iloc[0])
    assert said(language, "neighbours.dead") in [info.value for info in test.info]
    assert not test.error


def test_an_angle_pair_narrows_the_tests(look: Callable[..., AppTest], studio: Studio) -> None:
    test = look(tests="36-108")
    pairs = studio.live.test_pairs
    expected = [pair.id for pair in pairs.itertuples() if {pair.angle1, pair.angle2} == {36, 108}]
    assert len(test.selectbox(key="test").options) == len(expected) > 1
    assert test.selectbox(key="test").value == expected[0]


def test_where_there_are_many_words_narrow_the_list(
    look: Callable[..., AppTest], studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "LISTED", 5)
    pairs = studio.live.train_pairs
    asked = str(pairs["id"].iloc[-1])
    test = look(direction="train", train=asked)
    assert test.selectbox(key="train").value == asked  # though it is not among the first
    assert len(test.selectbox(key="train").options) == 6
    assert said("en", "example.search.more", shown=5, total=len(pairs)) in texts_of(test)
    test.text_input(key="train.search").set_value("deg036_1000hz_00 DEG072").run()
    found = [pair for pair in pairs["id"] if "deg036_1000hz_00" in pair and "deg072" in pair]
    assert len(test.selectbox(key="train").options) == len(found) + 1 <= 6
    test.text_input(key="train.search").set_value("nowhere").run()
    assert said("en", "example.search.none") in texts_of(test)
    assert test.selectbox(key="train").value == asked


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    "link", [{"test": "nobody"}, {"direction": "train", "train": "nobody"}, {"direction": "up"}, {"tests": "7-8"}]
)
def test_a_link_to_what_is_not_there_says_so(look: Callable[..., AppTest], language: str, link: dict[str, str]) -> None:
    test = look(lang=language, **link)
    name, value = list(link.items())[-1]
    assert f"{name} = {value}" in test.warning[0].value.replace("\\", "")
    assert not test.error


# ---- both directions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["helped", "harmed"])
def test_the_other_direction_lists_a_training_pairs_tests(look: Callable[..., AppTest], studio: Studio, side: str) -> None:
    """By hand: the row of the whole table, sorted."""
    view = studio.live.view()
    pair = view.train_pairs["id"][5]
    row = view.influence()[5]
    sign = 1 if side == "helped" else -1
    order = [view.test_pairs["id"][place] for place in np.argsort(-sign * row, kind="stable") if sign * row[place] > 0]
    test = look(direction="train", train=pair, pushed=side)
    assert test.dataframe[0].value["id"].tolist() == order[:20]
    assert said("en", "gallery.shown", shown=min(20, len(order)), total=len(order)) in texts_of(test)


@pytest.mark.parametrize(("cell", "how"), [("", "mean"), ("", "sum"), ("0-36", "mean"), ("36-72", "sum")])
def test_several_tests_together_are_their_columns_together(
    look: Callable[..., AppTest], studio: Studio, cell: str, how: str
) -> None:
    view = studio.calm.view()
    angles = [tuple(sorted(pair)) for pair in view.test_pairs[["angle1", "angle2"]].to_numpy().tolist()]
    chosen = np.array([not cell or "-".join(f"{angle:g}" for angle in pair) == cell for pair in angles]) & ~view.dead_tests
    together = view.influence()[:, chosen].sum(axis=1) / (max(chosen.sum(), 1) if how == "mean" else 1)
    test = look(studio.calm, direction="group", tests=cell, how=how, side="opponents")
    if not chosen.any():
        assert said("en", "neighbours.group.dead") in texts_of(test)
        return
    found = test.dataframe[0].value
    rows = [view.train_row(pair) for pair in found["id"]]
    np.testing.assert_allclose(found["influence"], together[rows], rtol=1e-9)
    np.testing.assert_allclose(found["influence"], np.sort(together)[: len(found)], rtol=1e-9)
    assert len(found) == min(20, (together < 0).sum())


def test_a_walk_goes_from_a_proponent_to_its_tests_and_back(look: Callable[..., AppTest], studio: Studio) -> None:
    view = studio.live.view()
    start = view.test_pairs["id"][7]
    strongest = view.top(start, 1)[0]["id"].iloc[0]
    test = look(test=start)
    test.button(key="turn").click().run()
    assert test.selectbox(key="train").value == strongest
    assert test.button_group(key="direction").value == "train"
    pushed = view.top_tests(strongest, 1)[0]["id"].iloc[0]
    test.button(key="turn").click().run()
    assert test.selectbox(key="test").value == pushed
    assert test.button_group(key="direction").value == "test"
    assert not test.error
    assert not test.warning


# ---- the card -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "language"), [("test", "en"), ("train", "zh-TW"), ("group", "en")])
def test_the_card_says_what_the_model_said(look: Callable[..., AppTest], studio: Studio, direction: str, language: str) -> None:
    """The table beside the charts holds each sample's score and each contribution, at each checkpoint."""
    view = studio.live.view()
    test = look(direction=direction, lang=language)
    table = test.dataframe[-1].value
    assert table.iloc[:, 0].tolist() == view.checkpoint_names
    if direction == "train":
        train = test.selectbox(key="train").value
        told = view.top_tests(train, 1)[0].iloc[0]
        pairs = [(view.train, view.train_row(train)), (view.test, view.test_row(told["id"]))]
    else:
        own = test.selectbox(key="test").value if direction == "test" else None
        told = (view.top(own, 1) if own else view.top_of_group(view.test_pairs["id"].tolist(), 1))[0].iloc[0]
        pairs = [(view.train, view.train_row(told["id"]))] + ([(view.test, view.test_row(own))] if own else [])
    expected = [side.outputs[:, end] for side, row in pairs for end in side.ends[row]] + [told["contributions"]]
    np.testing.assert_allclose(table.iloc[:, 1:].to_numpy().T, np.array(expected), rtol=1e-6)


@pytest.mark.parametrize("language", LANGUAGES)
def test_another_label_is_answered_with_its_effect_and_four_counts(
    look: Callable[..., AppTest], studio: Studio, language: str
) -> None:
    run, view = studio.live, studio.live.view()
    own = view.test_pairs["id"][3]
    first = view.top(own, 1)[0].iloc[0]
    test = look(test=own, flip=True, lang=language)
    label = {sample.id: int(sample.label) for sample in run.samples.itertuples()}
    sample, other = first["id1"], label[first["id2"]]
    effect = run.relabel_effects(own).loc[sample, other]
    assert effect != 0
    text = texts_of(test).replace("\\", "")
    told = {"sample": sample, "label": f"{run.classes[other]}°", "own": f"{run.classes[label[sample]]}°"}
    of = said(language, "card.relabel.of.one")
    kind = "helps" if effect > 0 else "harms"
    assert said(language, f"card.relabel.{kind}", tests=of, value=charts.short(abs(effect)), **told) in text
    assert said(language, "card.relabel.counts", **vars(run.relabel_counts({sample: other}))) in text


def test_a_damaged_or_missing_sound_is_told_and_the_rest_is_shown(look: Callable[..., AppTest], studio: Studio) -> None:
    view = studio.live.view()
    start = view.test_pairs["id"][11]
    sound = studio.live.preview(view.top(start, 1)[0]["id1"].iloc[0]).sound
    kept = sound.read_bytes()
    spectrograms.pictures.clear()
    try:
        sound.write_bytes(kept[:60])
        test = look(test=start, lang="zh-TW")
        assert said("zh-TW", "error.DataError") in test.error[0].value
        assert len(test.dataframe) == 2
        sound.unlink()
        test = look(test=start)
        assert not test.error
        assert len(test.dataframe) == 2
    finally:
        sound.write_bytes(kept)


# ---- in a browser ---------------------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_a_row_a_walk_and_a_link_in_a_browser(page: Page, serve: Callable[..., Server], studio: Studio) -> None:
    """Pictures are drawn and have words; the next step is in the address, and a cold visit to it shows the same."""
    failures: list[str] = []
    page.on("pageerror", lambda failure: failures.append(str(failure)))
    server = serve(studio.place.root)
    view = studio.live.view()
    start = view.test_pairs["id"][7]
    visit(page, f"{server.url}/neighbours?run={studio.live.id}&test={start}")
    expect(page.get_by_text("Difference", exact=True)).to_have_count(2)
    page.wait_for_function("() => [...document.querySelectorAll('img')].every(image => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("() => [...document.querySelectorAll('img')].filter(image => !image.alt).length") == 0
    page.get_by_role("radio", name="All", exact=True).or_(page.get_by_role("button", name="All", exact=True)).click()
    idle(page)
    expect(page).to_have_url(re.compile("band=full"))
    page.get_by_test_id("stDataFrame").first.scroll_into_view_if_needed()
    box = page.get_by_test_id("stDataFrame").first.bounding_box()
    page.mouse.click(box["x"] + 18, box["y"] + 36 + 72 * 1.5)  # the second row's mark
    idle(page)
    second = view.top(start, 2)[0].iloc[1]
    page.get_by_role("button", name="Which tests does this one push?").click()
    idle(page)
    expect(page).to_have_url(re.compile(f"train={second['id']}"))
    expect(page).to_have_url(re.compile("direction=train"))
    link = page.url
    visit(page, link)
    expect(page.get_by_role("combobox", name="Training pair")).to_have_value(examples_label(second))
    assert not failures


def examples_label(pair: object) -> str:
    takes = ", ".join(pair[end].rpartition("_")[2] for end in ("id1", "id2"))  # type: ignore[index]
    return f"{pair['angle1']}° – {pair['angle2']}° · takes {takes}"  # type: ignore[index]
