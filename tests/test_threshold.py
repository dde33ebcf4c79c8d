"""The threshold studio: levels against the rules themselves, what a step sends, every state of the page, and verdicts by key."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, idle, listed_of, start_server, stop_server, texts_of, visit
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_cases import CASES, SETTINGS, Case
from lab import Studio
from playwright.sync_api import Page, expect
from streamlit.testing.v1 import AppTest
from test_pages import said, viewer

from pages.shared.i18n import LANGUAGES
from pages.shared.threshold import dragging
from tracin_core import charts
from tracin_core.errors import ViewError
from tracin_core.records.workspace import open_workspace
from tracin_core.scores.exclusions import PairMode
from tracin_core.scores.levels import (
    Levels,
    cells_of,
    fewer_cells,
    harm_levels,
    most_occurrences,
    robust_line,
    surface,
    suspect_levels,
)
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.view import View

MODES = st.sampled_from(get_args(PairMode))

# ---- levels ---------------------------------------------------------------------------------------------------------------------


def thresholds_of(values: np.ndarray, *, at_most: float = np.inf) -> list[float]:
    """Every value, and one between each two: where counts change, and where they do not."""
    known = np.unique(values[np.isfinite(values)])
    both = np.unique([*known, *((known[1:] + known[:-1]) / 2), *(known[:1] - 1), *(known[-1:] + 1)])
    return [float(value) for value in both if value <= at_most]


@settings(deadline=None, max_examples=25)
@given(case=CASES, loss=SETTINGS, mode=MODES, least=st.integers(1, 4), place=st.floats(0, 1))
def test_harm_levels_are_the_harm_rule(case: Case, loss: PairLoss, mode: PairMode, least: int, place: float) -> None:
    """What is listed, counted, named and lost at any threshold is what the list itself says."""
    view = case.view(loss)
    levels = harm_levels(view, least, mode)
    asked = thresholds_of(view.deciding_scores(least, mode), at_most=0.0) or [0.0]
    threshold = asked[int(place * (len(asked) - 1))]
    chosen = view.exclusions(threshold, least, None, mode)
    assert set(levels.entries["id"][levels.chosen(threshold)]) == set(chosen["id"])
    told = levels.counts(threshold).iloc[0]
    by_sweep = view.sweep(least, mode).counts(threshold).iloc[0]
    assert (told["pairs"], told["samples"], told["entries"]) == (by_sweep["pairs"], by_sweep["samples"], len(chosen))
    removed = view.removed(chosen)
    np.testing.assert_array_equal(levels.lost < threshold, removed)
    lost_in_cells(view, levels, asked, threshold, removed)


def lost_in_cells(view: View, levels: Levels, asked: list[float], threshold: float, removed: np.ndarray) -> None:
    grid, cells = cells_of(view)
    steps = levels.in_cells(cells, len(grid), np.array(asked))
    expected = view.angle_grid(removed.astype(float))
    np.testing.assert_array_equal(steps[asked.index(threshold)], (expected["mean"] * expected["n"]).round().to_numpy())
    assert grid[["low", "high", "n"]].equals(expected[["low", "high", "n"]])


@settings(deadline=None, max_examples=20)
@given(case=CASES, loss=SETTINGS, score=st.sampled_from(["self_influence", "mean_loss"]), place=st.floats(0, 1))
def test_suspect_levels_are_the_suspect_rule(case: Case, loss: PairLoss, score: Any, place: float) -> None:
    view = case.view(loss)
    levels = suspect_levels(view, score)
    asked = thresholds_of(levels.listed)
    threshold = asked[int(place * (len(asked) - 1))]
    found = view.suspects(score, threshold)
    assert set(levels.entries["id"][levels.chosen(threshold)]) == set(found["id"])
    told = levels.counts(threshold).iloc[0]
    assert (told["pairs"], told["samples"]) == (len(found), len({*found["id1"], *found["id2"]}))
    lost_in_cells(view, levels, asked, threshold, view.removed(found))


@settings(deadline=None, max_examples=5)
@given(case=CASES, mode=MODES)
def test_the_surface_counts_the_lists_and_the_cure_is_the_highest_that_finds_any(case: Case, mode: PairMode) -> None:
    view = case.view()
    tests = len(view.test_pairs)
    thresholds = [-4.0, -1.0, 0.0]
    counts = surface(view, range(1, tests + 1), thresholds, mode)
    for row, least in enumerate(range(1, min(tests, 4) + 1)):
        assert counts[row].tolist() == [len(view.exclusions(threshold, least, None, mode)) for threshold in thresholds]
    best = most_occurrences(view, mode, tests)
    found = [least for least in range(1, tests + 1) if len(view.exclusions(0.0, least, None, mode))]
    assert best == max(found, default=0)


@given(
    listed=st.lists(st.sampled_from([-3.0, -2.0, -1.0, -0.5, 0.0, 1.0, np.inf]), min_size=1, max_size=12),
    threshold=st.sampled_from([-3.0, -1.5, -1.0, 0.0]),
    each=st.integers(1, 4),
    above=st.booleans(),
)
def test_the_borderline_is_what_stands_nearest_on_either_side(
    listed: list[float], threshold: float, each: int, above: bool
) -> None:
    values = np.array(listed) * (-1 if above else 1)
    threshold = -threshold if above else threshold
    ids = [f"e{place:02d}" for place in range(len(values))]
    levels = Levels(pd.DataFrame({"id": ids}), values, values, values, values, above=above)
    for rows, side in zip(levels.borderline(threshold, each), (True, False), strict=True):
        near = [
            (abs(value - threshold), row)
            for row, value in enumerate(values)
            if np.isfinite(value) and ((value > threshold) if above else (value < threshold)) == side
        ]
        assert rows.tolist() == [row for _, row in sorted(near)[:each]]


def test_a_robust_line_is_its_formula_over_what_is_not_zero() -> None:
    values = np.array([0.0, 0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 100.0])
    assert robust_line(values, 2.0) == 4.0 + 2.0 * 1.4826 * 3.0
    with pytest.raises(ViewError, match="undefined over 2 non-zero scores"):
        robust_line([0.0, 3.0, 3.0], 1.0)
    with pytest.raises(ViewError, match="undefined"):
        robust_line(values, float("nan"))


def test_many_cells_become_few_and_lose_none() -> None:
    grid = pd.DataFrame({"low": list("abcdef"), "high": list("abcdef"), "n": [3, 9, 1, 7, 2, 5]})
    cells = np.repeat(np.arange(6), grid["n"])
    few, places = fewer_cells(grid, cells, 4, "rest")
    assert few["low"].tolist() == ["b", "d", "f", "rest"]
    assert np.bincount(places, minlength=4).tolist() == few["n"].tolist() == [9, 7, 5, 6]
    assert fewer_cells(grid, cells, 6, "rest")[0] is grid


# ---- what a step sends ----------------------------------------------------------------------------------------------------------


def unpacked(text: str, *, falling: bool) -> list[int]:
    """As the browser does it."""
    counts, number, scale = [0], 0, 1
    for letter in text:
        part = dragging.LETTERS.index(letter)
        number += scale * (part % 32)
        scale *= 32
        if part < 32:
            counts.append(counts[-1] + number)
            number, scale = 0, 1
    return counts[:0:-1] if falling else counts[1:]


@given(steps=st.lists(st.integers(0, 70_000), max_size=20), falling=st.booleans())
def test_packed_counts_are_unpacked_as_they_were(steps: list[int], falling: bool) -> None:
    counts = np.cumsum(steps, dtype=np.int64)[:: -1 if falling else 1]
    assert unpacked(dragging.packed(counts, falling=falling), falling=falling) == counts.tolist()


@pytest.mark.parametrize(("examples", "cells"), [(441, 15), (100_000, 15), (1_670_000, 15), (100_000, 55), (60_000, 1000)])
def test_a_step_sends_no_more_than_20_kilobytes(examples: int, cells: int) -> None:
    """However many examples, angle pairs or groups there are."""
    generator = np.random.default_rng(1)
    scores = -np.abs(generator.standard_t(2, size=examples)) * 123.456
    names = [f"a rather long name {place:04d}" for place in range(cells)]
    places = np.arange(examples) % cells
    grid = pd.DataFrame({"low": names, "high": names, "n": np.bincount(places, minlength=cells)})
    grid, places = fewer_cells(grid, places, dragging.MOST_CELLS, "other")
    levels = Levels(pd.DataFrame({"id": np.arange(examples)}), scores, scores, scores, scores)
    bins = charts.histogram(scores)
    steps = charts.threshold_steps(bins.axis, -100.0, dragging.step_count(len(grid)))
    told = dragging.Cells(grid, levels.in_cells(places, len(grid), steps))
    data = dragging.payload(bins, levels.counts(steps), value=-100.0, total=examples, cells=told, above=False)
    assert len(steps) >= 60
    assert len(json.dumps(data, ensure_ascii=False).encode()) <= 20_000
    assert unpacked(data["cells"][-1][-1], falling=False)[-1] == (scores < steps[-1])[places == len(grid) - 1].sum()


# ---- the page -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def look(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., AppTest]]:
    """`look(m=1)`: the threshold page over the finished run; what is decided is forgotten afterwards."""
    view = viewer(studio.place.root, monkeypatch)
    yield lambda **parameters: view("threshold", run=studio.run.id, **parameters)
    (studio.place.root / "runs" / studio.run.id / "verdicts.jsonl").unlink(missing_ok=True)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("mode", get_args(PairMode))
@pytest.mark.parametrize("desk", ["borderline", "listed", "decided"])
def test_every_desk_of_the_harm_rule_is_drawn(look: Callable[..., AppTest], mode: str, desk: str, language: str) -> None:
    test = look(mode=mode, desk=desk, m=1, lang=language)
    assert not test.exception
    assert not test.error
    assert (said(language, "desk.decided.none") in texts_of(test)) == (desk == "decided")


def test_the_borderline_is_on_the_screen_with_its_sides(look: Callable[..., AppTest], studio: Studio) -> None:
    view = studio.run.view()
    threshold = view.suggested_threshold(1)
    test = look(m=1)
    levels = harm_levels(view, 1, "ranking_pair")
    told = deck_of(test)
    assert [side["title"] for side in told["sides"]] == [said("en", f"desk.{side}_side.harm") for side in ("listed", "not")]
    for side, rows in zip(told["sides"], levels.borderline(threshold), strict=True):
        cards = {card["id"]: card["told"] for card in side["cards"]}
        assert list(cards) == [str(levels.entries["id"].iloc[row]) for row in (rows[::-1] if side is told["sides"][0] else rows)]
        words = "on the list" if side is told["sides"][0] else "not listed"
        assert list(cards.values()) == [f"{levels.listed[levels.entries['id'] == name][0]:,.5g} · {words}" for name in cards]
    assert told["current"] == told["sides"][0]["cards"][0]["id"]


def deck_of(test: AppTest) -> dict[str, Any]:
    """What the browser is given to draw the cards from."""
    (deck,) = (element.proto for element in test.get("bidi_component") if element.proto.component_name == "threshold_deck")
    return dict(json.loads(deck.mixed.json if deck.HasField("mixed") else deck.json))


def test_the_last_step_is_what_came_and_went(look: Callable[..., AppTest], studio: Studio) -> None:
    view = studio.run.view()
    kth = view.deciding_scores(1)
    one, two, three = (float(np.quantile(kth, share)) for share in (0.1, 0.3, 0.2))
    test = look(m=1, T=one)
    assert "Last step" not in texts_of(test)
    test.number_input(key="T").set_value(two).run()
    entered = len(view.exclusions(two, 1, None)) - len(view.exclusions(one, 1, None))
    assert said("en", "threshold.last_step", entered=entered, left=0) in texts_of(test)
    test.number_input(key="T").set_value(three).run()
    left = len(view.exclusions(two, 1, None)) - len(view.exclusions(three, 1, None))
    assert said("en", "threshold.last_step", entered=0, left=left) in texts_of(test)


@pytest.mark.parametrize(("by", "key", "value", "given_"), [("quantile", "q", 5.0, 0.05), ("robust_z", "z", -1.5, -1.5)])
def test_a_relative_threshold_is_the_views_own(
    look: Callable[..., AppTest], studio: Studio, by: str, key: str, value: float, given_: float
) -> None:
    view = studio.run.view()
    threshold, population = view.threshold_at(**{by: given_})  # type: ignore[arg-type]
    test = look(given=by, m=1, most=0, **{key: value})
    assert listed_of(test)["id"].tolist() == view.exclusions(threshold, 1, None)["id"].tolist()
    assert f"{len(population.values):,} scores that are not 0" in texts_of(test)
    test.text_input(key="who").set_value("Ada").run()
    test.button(key="write_list").click().run()
    newest = studio.place.exported_exclusions(studio.run).iloc[0]
    told = json.loads(newest["provenance"].read_text(encoding="utf-8"))
    assert told["rule"][by] == given_
    assert told["rule"]["threshold"] == threshold


@pytest.mark.parametrize(
    ("key", "value"), [("rule", "both"), ("given", "eye"), ("desk", "kitchen"), ("look", "nobody"), ("suspect", "x"), ("m", "900")]
)
def test_a_value_of_the_link_that_does_not_exist_is_named(look: Callable[..., AppTest], key: str, value: str) -> None:
    test = look(**({"rule": "suspect"} if key == "suspect" else {}), **{key: value})
    assert not test.error
    assert any(f"{key} = {value}" in warning.value.replace("\\", "") for warning in test.warning)


def test_where_nothing_is_negative_so_often_the_cure_is_a_button(look: Callable[..., AppTest], studio: Studio) -> None:
    tests = len(studio.run.view().test_pairs)
    test = look(m=tests)
    best = most_occurrences(studio.run.view(), "ranking_pair", tests)
    assert 0 < best < tests
    assert test.button(key="lower").label == said("en", "threshold.nothing.cure", tests=tests, occurrences=tests, best=best)
    test.button(key="lower").click().run()
    assert test.number_input(key="m").value == best
    assert len(test.metric) == 4


def test_a_threshold_below_everything_says_where_the_scores_begin(look: Callable[..., AppTest], studio: Studio) -> None:
    lowest = charts.short(studio.run.view().deciding_scores(1).min())
    test = look(m=1, T=-1e6)
    assert said("en", "guard.too_low", threshold="-1e+06", lowest=lowest) in [warning.value for warning in test.warning]


def test_suspects_are_for_review_and_only_a_person_excludes(look: Callable[..., AppTest], studio: Studio) -> None:
    view = studio.run.view()
    own = view.self_influence()
    threshold = float(np.quantile(own, 0.9))
    found = view.suspects("self_influence", threshold)
    test = look(rule="suspect", S=threshold)
    assert [metric.value for metric in test.metric[:2]] == ["0", f"{len(found)}"]
    assert listed_of(test).empty
    one, other = found.iloc[3], view.train_pairs[~view.train_pairs["id"].isin(found["id"])].iloc[0]
    for entry in (one, other):
        studio.place.decide(studio.run, (entry["id2"], entry["id1"]), "exclude", who="Ada", rule="suspect")
    test.run()
    assert listed_of(test)["id"].tolist() == [one["id"]]
    test.button(key="write_list").click().run()
    newest = studio.place.exported_exclusions(studio.run).iloc[0]
    told = json.loads(newest["provenance"].read_text(encoding="utf-8"))
    assert (told["rule"]["rule"], told["rule"]["excluded_by_person"]) == ("suspect", 1)
    assert [(entry["id"], entry["decided_by"]) for entry in told["entries"]] == [(one["id"], "person")]


@pytest.mark.parametrize("mode", get_args(PairMode))
def test_verdicts_override_the_rule_and_both_counts_are_exported(
    look: Callable[..., AppTest], studio: Studio, mode: PairMode
) -> None:
    """The final list is the rule's, plus what a person excluded, minus what a person keeps; by hand."""
    view = studio.run.view()
    threshold = float(np.quantile(view.deciding_scores(1, mode), 0.4))
    chosen = view.exclusions(threshold, 1, 4, mode)
    of_pairs = "id1" in chosen
    table = view.train_pairs if of_pairs else view.train_samples
    added = table[~table["id"].isin(chosen["id"])].iloc[-1]

    def samples(entry: Any) -> tuple[str, ...]:
        return (entry["id1"], entry["id2"]) if of_pairs else (entry["id"],)

    studio.place.decide(studio.run, samples(chosen.iloc[0]), "keep", who="Ada", why="the take is fine")
    studio.place.decide(studio.run, samples(added), "exclude", who="Lin")
    studio.place.decide(studio.run, samples(chosen.iloc[1]), "look_again", who="Lin")
    test = look(mode=mode, m=1, most=4, T=threshold)
    expected = [*chosen["id"].tolist()[1:], added["id"]]
    assert listed_of(test)["id"].tolist() == expected
    assert said("en", "verdict.sum", rule=len(chosen), excluded=1, kept=1, final=len(chosen)) in texts_of(test)
    assert said("en", "export.checked", n=len(chosen), found=len(chosen)) in texts_of(test)
    test.button(key="write_list").click().run()
    assert not test.error
    newest = studio.place.exported_exclusions(studio.run).iloc[0]
    told = json.loads(newest["provenance"].read_text(encoding="utf-8"))
    assert told["verdicts"] | {"decisions": []} == {"rule": len(chosen), "excluded": 1, "kept": 1, "agreed": 0, "decisions": []}
    assert {decision["who"] for decision in told["verdicts"]["decisions"]} == {"Ada", "Lin"}
    assert [entry["id"] for entry in told["entries"]] == expected
    below = int((view.influence()[view.train_row(added["id"])] < threshold).sum()) if of_pairs else None
    assert below is None or told["entries"][-1]["occurrences"] == below
    assert studio.place.read_back(studio.run, newest["text"]) == (len(expected), len(expected))
    assert studio.place.verify().damages == []


def test_a_verdict_by_button_moves_on_and_can_be_undone(look: Callable[..., AppTest], studio: Studio) -> None:
    test = look(m=1, desk="listed")
    test.text_input(key="who").set_value("Ada").run()
    first, second = test.selectbox(key="look").options[:2]
    one = str(test.selectbox(key="look").value)
    test.text_input(key="verdict.why").set_value("clipped").run()
    test.button(key="verdict.keep").click().run()
    assert test.selectbox(key="look").options.index(second) == 1
    two = str(test.selectbox(key="look").value)
    assert two != one
    stands = studio.place.verdicts(studio.run)
    assert stands[["id", "verdict", "who", "why", "rule"]].to_numpy().tolist() == [[one, "keep", "Ada", "clipped", "harm"]]
    test.button(key="verdict.undo").click().run()
    assert studio.place.verdicts(studio.run).empty
    assert [decision.verdict for decision in studio.place.verdict_history(studio.run)] == ["keep", "none"]
    assert test.selectbox(key="look").value == one
    assert first.startswith("1. ")


def test_a_damaged_verdict_is_advice_and_hides_no_page_in_silence(look: Callable[..., AppTest], studio: Studio) -> None:
    studio.place.decide(studio.run, (studio.run.samples["id"].iloc[0],), "keep", who="Ada")
    path = studio.place.root / "runs" / studio.run.id / "verdicts.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Ada", b"Eve"))
    test = look(m=1)
    assert "Line 1 of 'verdicts.jsonl'" in test.error[0].value.replace("\\", "")


def test_a_copy_of_the_metadata_is_marked_and_the_file_stays(look: Callable[..., AppTest], studio: Studio, tmp_path: Path) -> None:
    samples = studio.run.splits["train"]["id"].tolist()
    source = studio.place.root / "recordings" / "lab_metadata.json"
    source.write_text(json.dumps({name: {"id": name, "notes": "mine"} for name in samples}), encoding="utf-8")
    before = source.read_bytes()
    test = look(m=1, mode="sample", most=2)
    test.button(key="write_list").click().run()
    listed = listed_of(test)["id"].tolist()
    test.toggle(key="mark").set_value(True).run()
    test.button(key="mark.start").click().run()
    assert not test.error
    assert said("en", "export.metadata.done", n=len(listed), missing=0, earlier=0) in texts_of(test)
    copies = list((studio.place.root / "exports" / studio.run.id / "metadata").glob("*_lab_metadata.json"))
    records = json.loads(copies[0].read_text(encoding="utf-8"))
    assert [name for name, record in records.items() if record.get("excluded")] == [name for name in samples if name in listed]
    assert source.read_bytes() == before
    decisions = len(studio.place.exported_exclusions(studio.run))
    same = open_workspace(shutil.copytree(studio.place.root, tmp_path / "same"))  # which no worker serves
    same.rebuild_catalogue()
    assert len(same.exported_exclusions(same.run(studio.run.id))) == decisions


def test_only_samples_of_the_run_are_decided_about(studio: Studio) -> None:
    with pytest.raises(Exception, match="has no sample 'nobody'"):
        studio.place.decide(studio.run, ("nobody",), "keep")
    assert studio.place.verdict_history(studio.run) == []


# ---- in a browser ---------------------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_verdicts_by_key_survive_a_restart_and_a_typed_reason_is_no_verdict(page: Page, studio: Studio, tmp_path: Path) -> None:
    first, process = start_server(studio.place.root, ROOT / "app.py", tmp_path / "first.log")
    address = f"threshold?run={studio.run.id}&m=1&desk=listed"
    try:
        visit(page, f"{first.url}/{address}")
        page.get_by_label("Your name").fill("Ada")
        page.get_by_label("Your name").press("Tab")
        idle(page)
        reason = page.get_by_label("Reason (optional)")
        reason.press_sequentially("Ken noise")
        reason.press("Tab")
        idle(page)
        assert studio.place.verdict_history(studio.run) == []
        for key in ("e", "k", "n"):
            page.get_by_role("heading", name="Look and decide").click()  # the focus is in no field
            page.keyboard.press(key)
            idle(page)
    finally:
        stop_server(process)
    listed = harm_listed(studio)
    told = studio.place.verdict_history(studio.run)
    assert [(one.verdict, one.id, one.who, one.why) for one in told] == [
        ("exclude", listed[0], "Ada", "Ken noise"),
        ("keep", listed[1], "Ada", ""),
        ("look_again", listed[2], "Ada", ""),
    ]
    second, process = start_server(studio.place.root, ROOT / "app.py", tmp_path / "second.log")
    try:
        visit(page, f"{second.url}/{address.replace('listed', 'decided')}")
        expect(page.get_by_text("keep 1 of them")).to_be_visible()
        page.get_by_role("heading", name="Look and decide").click()
        expect(page.get_by_test_id("stException")).to_have_count(0)
    finally:
        stop_server(process)
        (studio.place.root / "runs" / studio.run.id / "verdicts.jsonl").unlink()


@pytest.mark.browser
def test_a_card_is_chosen_decided_about_and_taken_back_where_it_lies(page: Page, studio: Studio, tmp_path: Path) -> None:
    """By mouse and by key, on the card, and from the slider, which keeps no letter to itself; a sound that plays goes on."""
    server, process = start_server(studio.place.root, ROOT / "app.py", tmp_path / "server.log")
    first, second, third = harm_listed(studio)[:3]

    def stands() -> list[tuple[str, str]]:
        told = studio.place.verdicts(studio.run)
        return sorted(zip(told["id"], told["verdict"], strict=True))

    try:
        visit(page, f"{server.url}/threshold?run={studio.run.id}&m=1&desk=listed")
        page.get_by_label("Your name").fill("Ada")
        page.get_by_label("Your name").press("Tab")
        idle(page)
        cards = page.locator(".deck .card")
        expect(cards.first).to_have_class("card current")
        cards.nth(1).locator("audio").first.evaluate("sound => { sound.muted = true; sound.loop = true; return sound.play(); }")
        cards.nth(2).get_by_role("button", name="Keep (K)").click()
        idle(page)
        assert stands() == [(third, "keep")]
        expect(cards.nth(2).get_by_role("button", name="Keep (K)")).to_have_attribute("aria-pressed", "true")
        expect(cards.first).to_have_class("card current")  # decided about without being looked at
        assert not cards.nth(1).locator("audio").first.evaluate("sound => sound.paused")
        cards.nth(2).get_by_role("button", name="Keep (K)").press("Enter")
        idle(page)
        assert stands() == []
        cards.nth(1).locator(".name").click()
        idle(page)
        expect(cards.nth(1)).to_have_class("card current")
        page.keyboard.press("n")  # the card has the focus, and the next is looked at
        idle(page)
        assert stands() == [(second, "look_again")]
        expect(cards.nth(2)).to_have_class("card current")
        page.keyboard.press("e")  # it still has, and the key is about the one that is looked at
        idle(page)
        assert stands() == sorted([(second, "look_again"), (third, "exclude")])
        page.locator(".drag .slider").focus()
        page.keyboard.press("u")
        idle(page)
        assert stands() == [(second, "look_again")]
        assert [decision.who for decision in studio.place.verdict_history(studio.run)] == ["Ada"] * 5
        assert first not in [name for name, _ in stands()]
    finally:
        stop_server(process)
        (studio.place.root / "runs" / studio.run.id / "verdicts.jsonl").unlink(missing_ok=True)


def harm_listed(studio: Studio) -> list[str]:
    view = studio.run.view()
    return [str(name) for name in view.exclusions(view.suggested_threshold(1), 1, 50)["id"]]


@pytest.mark.browser
def test_the_cells_of_the_page_follow_without_a_request_and_agree_with_the_list(page: Page, studio: Studio, tmp_path: Path) -> None:
    """The real page over a real run: while the mouse moves nothing is sent; where it is let go, the cells are those of the rule."""
    server, process = start_server(studio.place.root, ROOT / "app.py", tmp_path / "server.log")
    sent: list[Any] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda frame: sent.append(frame)))
    try:
        visit(page, f"{server.url}/threshold?run={studio.run.id}&m=1&most=0")
        box, line = (page.locator(f".drag .{name}").bounding_box() for name in ("scores", "line"))
        assert box is not None
        assert line is not None
        page.mouse.move(line["x"], box["y"] + 100)
        page.mouse.down()
        before, seen = len(sent), set()
        for step in range(1, 9):
            page.mouse.move(line["x"] + step * 0.04 * box["width"], box["y"] + 100)
            seen.add(" ".join(page.locator(".drag td.cell").all_inner_texts()))
        assert len(sent) == before
        assert len(seen) > 4
        page.mouse.up()
        idle(page)
        asked = re.search(r"[?&]T=([^&]+)", page.url)
        assert asked is not None
        view = studio.run.view()
        lost = view.removed(view.exclusions(float(asked[1]), 1, None))
        grid = view.angle_grid(lost.astype(float)).sort_values(["low", "high"])
        told = [text.removeprefix("\u26a0 ") for text in page.locator(".drag td.cell").all_inner_texts()]
        assert told == [f"{round(mean * n)}/{n}" for mean, n in zip(grid["mean"], grid["n"], strict=True)]
    finally:
        stop_server(process)
