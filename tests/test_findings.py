"""Saved views: kept at once and for good, opened as they were saved, listed, edited, removed, brought back, exported."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from conftest import ROOT, idle, opened, start_server, stop_server, texts_of, visit
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import Studio
from playwright.sync_api import Page, expect
from streamlit.testing.v1 import AppTest

from pages.shared import frame
from pages.shared.i18n import LANGUAGES, texts
from tracin_core import __version__
from tracin_core.errors import InputError, NotFoundError
from tracin_core.records.findings import SavedView, SavedViews
from tracin_core.records.past_lists import origins, past_lists
from tracin_core.records.report.saved import saved_html
from tracin_core.records.workspace import open_workspace, rebuild_catalogue

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


def example(**changed: Any) -> dict[str, Any]:
    return {
        "title": "Take 04", "note": "Look at the tail.\n它在前二十名裡。", "author": "Ada", "page": "distribution",
        "parameters": {"run": "r1", "score": "self_influence"}, "run": "r1", "digest": "d" * 32, "run_name": "small", **changed,
    }  # fmt: skip


@pytest.fixture
def views(tmp_path: Path) -> SavedViews:
    return SavedViews(tmp_path)


# ---- on disk --------------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)  # a disk may take its time
@given(
    title=TEXTS.filter(lambda text: bool(text.split())),
    note=TEXTS,
    author=TEXTS,
    parameters=st.dictionaries(TEXTS, TEXTS, max_size=4),
)
def test_what_was_saved_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, title: str, note: str, author: str, parameters: dict[str, str]
) -> None:
    root = tmp_path_factory.mktemp("views")
    saved = SavedViews(root).save(**example(title=title, note=note, author=author, parameters=parameters))
    found = SavedViews(root).get(saved.id)
    assert found == saved
    assert (found.title, found.note, found.author) == (" ".join(title.split()), note, author)
    assert (found.parameters, found.version) == (parameters, __version__)
    assert SavedViews(root).all() == [saved]


def test_ids_are_short_and_never_shared(views: SavedViews, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1.0)  # the same view in the same instant
    ids = [views.save(**example()).id for _ in range(3)]
    views.remove(ids[0])
    ids.append(views.save(**example()).id)
    assert len(set(ids)) == 4
    assert all(len(id_) <= 12 for id_ in ids)


def test_editing_keeps_the_id_and_what_was_there(views: SavedViews) -> None:
    saved = views.save(**example())
    edited = views.edit(saved.id, title=" New  title ", note="", who="Bo")
    assert views.get(saved.id) == edited
    assert (edited.id, edited.title, edited.note, edited.created) == (saved.id, "New title", "", saved.created)
    assert [(edit["who"], edit["title"], edit["note"]) for edit in edited.edits] == [("Bo", saved.title, saved.note)]


def test_what_was_removed_is_not_listed_and_comes_back_as_it_was(views: SavedViews) -> None:
    saved, other = views.save(**example()), views.save(**example(title="other"))
    views.remove(saved.id)
    assert views.all() == [other]
    assert views.removed() == [saved]
    with pytest.raises(NotFoundError, match="was removed"):
        views.get(saved.id)
    with pytest.raises(NotFoundError):
        views.remove(saved.id)
    assert views.restore(saved.id) == saved
    assert views.all() == [other, saved]
    with pytest.raises(NotFoundError):
        views.restore(saved.id)


@pytest.mark.parametrize("asked", ["", "nothere0", "../../etc/passwd", "0" * 5000, "abc\0def0", "ABCDEF01", "removed/00000000"])
def test_an_unknown_id_is_said_to_be_none(views: SavedViews, asked: str) -> None:
    views.save(**example())
    for ask in (views.get, views.remove, views.restore):
        with pytest.raises(NotFoundError):
            ask(asked)


@pytest.mark.parametrize("changed", [{"title": " \n"}, {"title": "x" * 201}, {"note": "x" * 20_001}, {"note": "\ud800"}])
def test_what_cannot_be_kept_is_refused_and_leaves_nothing(views: SavedViews, changed: dict[str, str]) -> None:
    with pytest.raises(InputError):
        views.save(**example(**changed))
    assert views.all() == []


@pytest.mark.parametrize("content", ["", "[]", "null", '{"id": 3}', "{}", '"x"', "{\n"])
def test_a_damaged_file_is_named_and_hides_no_other(views: SavedViews, tmp_path: Path, content: str) -> None:
    saved = views.save(**example())
    (tmp_path / "findings" / "deadbeef.json").write_text(content)
    assert views.all() == [saved]
    assert [strange.file for strange in views.unreadable()] == ["deadbeef.json"]


@pytest.mark.parametrize(
    "changed", [{"id": "00000000"}, {"title": 3}, {"parameters": {"run": 3}}, {"format": 2}, {"created": None}]
)
def test_a_file_that_is_no_saved_view_is_named(views: SavedViews, tmp_path: Path, changed: dict[str, Any]) -> None:
    saved = views.save(**example())
    file = tmp_path / "findings" / f"{saved.id}.json"
    file.write_text(json.dumps({**saved.to_dict(), **changed}))
    assert views.all() == []
    assert [strange.file for strange in views.unreadable()] == [file.name]


SAVING = """
import sys
from pathlib import Path
from tracin_core.records.findings import SavedViews
views = SavedViews(Path(sys.argv[1]))
for number in range(100000):
    saved = views.save(title=f"view {number}", note="x" * 5000, author="", page="angles", parameters={}, run="", digest="", run_name="")
    views.edit(saved.id, title=f"edited {number}", note="y" * 5000, who="")
    print(saved.id, flush=True)
"""


def test_a_kill_loses_nothing_that_was_said_to_be_saved(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", SAVING, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    said = [child.stdout.readline().strip() for _ in range(5)]
    os.kill(child.pid, signal.SIGKILL)
    said += [line.strip() for line in child.stdout if line.endswith("\n")]
    child.wait(10)
    views = SavedViews(tmp_path)
    assert views.unreadable() == []
    kept = {saved.id: saved for saved in views.all()}
    assert all(kept[id_].title.startswith("edited") for id_ in said)
    assert len(kept) <= len(said) + 1


def test_saved_views_outlive_the_catalogue(tmp_path: Path) -> None:
    place = open_workspace(tmp_path)
    saved = SavedViews(place.root).save(**example())
    del place
    rebuild_catalogue(tmp_path)
    assert SavedViews(tmp_path).all() == [saved]
    assert isinstance(saved, SavedView)


# ---- on the pages ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def look(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., AppTest]]:
    """`look("angles", score="mean_influence")`: a page over the finished run, in a session of its own."""
    place = studio.place
    monkeypatch.setenv("TRACIN_WORKSPACE", str(place.root))
    yield opened
    for kept in SavedViews(place.root).all():
        SavedViews(place.root).remove(kept.id)


def said(key: str, **values: object) -> str:
    return texts("en")[key].format(**values)


def shown(test: AppTest) -> dict[str, str]:
    """What the address holds, without where it came from."""
    return {key: value[0] if isinstance(value, list) else value for key, value in test.query_params.items() if key != "from"}


def keep(test: AppTest, title: str, note: str = "", who: str = "Ada") -> SavedView:
    test.text_input(key="finding.title").set_value(title)
    test.text_area(key="finding.note").set_value(note)
    test.text_input(key="finding.who").set_value(who)
    test.button(key="finding.keep").click().run()
    assert not test.exception
    assert not test.error
    return SavedViews(Path(os.environ["TRACIN_WORKSPACE"])).all()[0]


def test_a_saved_view_holds_the_address_and_the_run(look: Callable[..., AppTest], studio: Studio) -> None:
    test = look("angles", score="worst_influence", statistic="median", cell="36-72")
    saved = keep(test, "Cell", "why")
    run = studio.run
    assert saved.parameters == shown(test)
    assert saved.parameters["cell"] == "36-72"
    assert (saved.page, saved.run, saved.digest, saved.author, saved.note) == ("angles", run.id, run.digest, "Ada", "why")
    assert any(saved.id in code.value for code in test.code)
    assert "lang" not in keep(look("findings", lang="zh-TW"), "the language is the reader's").parameters


@pytest.mark.parametrize("name", [name for pages in frame.SECTIONS.values() for name in pages])
def test_every_page_can_be_saved_and_opened(look: Callable[..., AppTest], name: str) -> None:
    saved = keep(look(name), f"of {name}")
    assert saved.page == name
    opened = look(f=saved.id)
    assert not opened.exception
    assert not opened.error
    assert opened.header[0].value == said(f"page.{name}")
    assert shown(opened) == saved.parameters


def test_a_link_shows_what_was_saved_and_nothing_that_the_session_remembers(look: Callable[..., AppTest]) -> None:
    saved = keep(look("angles", score="mean_influence"), "all cells")
    test = look("angles", score="self_influence", cell="36-72")
    test.query_params["f"] = saved.id
    test.run()
    assert shown(test) == saved.parameters
    assert "cell" not in shown(test)
    assert test.selectbox(key="cell").value == ""
    told = said("finding.opened", title="all cells", who="Ada", when="")[:-1]
    assert told in texts_of(test)
    assert said("finding.left", link="")[:30] not in texts_of(test)
    test.button_group(key="score").set_value("self_influence").run()
    assert said("finding.left", link="")[:30] in texts_of(test)


def test_what_changed_since_is_said(look: Callable[..., AppTest], studio: Studio) -> None:
    place, run = studio.place, studio.run
    saved = keep(look("distribution"), "old")
    file = place.root / "findings" / f"{saved.id}.json"
    file.write_text(json.dumps({**saved.to_dict(), "digest": "0" * 32, "version": "0.0.1"}))
    test = look(f=saved.id)
    assert said("finding.changed.scores", then="0" * 8, now=run.digest[:8]) in texts_of(test)
    assert said("finding.changed.version", version="0.0.1").replace(".", "") in texts_of(test).replace("\\", "").replace(".", "")


def test_a_view_of_a_run_that_is_gone_says_so(look: Callable[..., AppTest], studio: Studio) -> None:
    saved = SavedViews(studio.place.root).save(**example(parameters={"run": "gone"}, run="gone"))
    test = look(f=saved.id)
    assert "There is no run 'gone'" in test.error[0].value
    test = look(f="0123abcd")
    assert "There is no saved view '0123abcd'" in test.error[0].value
    assert not test.metric


def test_a_title_is_asked_for(look: Callable[..., AppTest], studio: Studio) -> None:
    test = look("angles")
    test.button(key="finding.keep").click().run()
    assert "has no title" in test.error[0].value
    assert SavedViews(studio.place.root).all() == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_list_edits_removes_and_brings_back(look: Callable[..., AppTest], studio: Studio, language: str) -> None:
    views = SavedViews(studio.place.root)
    saved = views.save(**example(title="<b>*first*</b>", note="[x](y)\nsecond line"))
    test = look("findings", lang=language)
    assert not test.exception
    assert r"**\<b\>\*first\*\</b\>**" in texts_of(test)
    test.text_input(key=f"edit.title.{saved.id}").set_value("better")
    test.button(key=f"edit.keep.{saved.id}").click().run()
    assert views.get(saved.id).title == "better"
    test.button(key=f"remove.{saved.id}").click().run()
    assert views.all() == []
    assert texts(language)["finding.none"] in texts_of(test)
    test.button(key=f"restore.{saved.id}").click().run()
    assert [view.title for view in views.all()] == ["better"]
    assert not test.error


# ---- past lists -----------------------------------------------------------------------------------------------------------------


def test_past_lists_say_what_they_are_of(look: Callable[..., AppTest], studio: Studio) -> None:
    place, run = studio.place, studio.run
    view = run.view()
    for mode in ("ranking_pair", "sample"):
        rule: dict[str, Any] = {"threshold": -0.001, "min_occurrences": 1, "max_exclusions": 4, "pair_mode": mode}
        place.export_exclusions(run, view.exclusions(**rule), rule, who="Bo", why="a test")
    damaged = place.export_exclusions(run, view.exclusions(-0.001, 1, 2), {"pair_mode": "damaged"})
    damaged[1].write_text("{}")
    found = past_lists(place)
    assert [past.rule.get("pair_mode", "") for past in found] == ["", "sample", "ranking_pair"]
    assert found[0].problem
    pairs = view.exclusions(-0.001, 1, 4)
    assert found[2].samples == frozenset(pairs["id1"]) | frozenset(pairs["id2"])
    angle = run.samples.set_index("id")["angle"]
    by_class, by_take = origins(found[2], run.samples)
    for each, count in by_class.items():
        assert count == sum(each in (angle[one], angle[two]) for one, two in zip(pairs["id1"], pairs["id2"], strict=True))
    for take, count in by_take.items():
        assert count == sum(any(end.endswith(f"_{take}") for end in ends) for ends in zip(pairs["id1"], pairs["id2"], strict=True))
    test = look("findings", list=found[2].key)
    assert not test.exception
    assert not test.error
    assert said("past.scores.same") in test.dataframe[0].value["scores"].tolist()
    assert test.selectbox(key="list").value == found[2].key


# ---- the exported file ----------------------------------------------------------------------------------------------------------


def test_the_export_says_everything_and_escapes_it(studio: Studio) -> None:
    place, run = studio.place, studio.run
    attack = '<script>alert(1)</script><img src=x onerror="alert(2)">'
    known = {"run": run.id, "score": "self_influence", "scale": "asinh", "tail": "high"}
    listed = {"run": run.id, "mode": "ranking_pair", "m": "1", "most": "3", "T": "-0.001"}
    views = [
        SavedViews(place.root).save(**example(run=run.id, digest=run.digest, **changed))
        for changed in (
            {"title": attack, "note": attack, "author": attack, "parameters": {**known, attack: attack}},
            {"page": "distribution", "parameters": known},
            {"page": "angles", "parameters": {"run": run.id, "score": "mean_influence", "statistic": "mean", "cell": "36-72"}},
            {"page": "neighbours", "parameters": {"run": run.id, "test": run.view().test_pairs["id"][0], "side": "opponents"}},
            {"page": "threshold", "parameters": {**listed, "rule": "harm", "given": "score", "desk": "listed", "look": "a"}},
            {"page": "threshold", "parameters": {**listed, "rule": "suspect", "S": "0.1"}},
            {"page": "distribution", "parameters": {**known, "over": "loss:ghm"}},
            {"page": "compare", "parameters": {"run": run.id}},
        )
    ]
    for language in LANGUAGES:
        html = saved_html(views, language, place=place)
        assert len(html.encode()) < 8_000_000
        assert "<script>alert" not in html
        assert "<img src=x" not in html
        assert html.count("Look at the tail.") == 7
        assert html.count(texts_of_report(language)["saved.no_chart"]) == 4  # what is not understood is not drawn
    assert run.view().exclusions(-0.001, 1, 3)["id"][0] in html


def texts_of_report(language: str) -> dict[str, str]:
    return dict(json.loads((ROOT / "tracin_core" / "records" / "report" / f"{language}.json").read_text(encoding="utf-8")))


# ---- in a browser ---------------------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_a_link_opens_what_was_saved_on_a_restarted_server(page: Page, studio: Studio, tmp_path: Path) -> None:
    place, run = studio.place, studio.run
    first, process = start_server(place.root, ROOT / "app.py", tmp_path / "first.log")
    try:
        visit(page, f"{first.url}/angles?run={run.id}&score=mean_influence&statistic=median&cell=36-72")
        before = page.get_by_test_id("stMarkdownContainer").filter(has_text="Lowest:").first.inner_text()
        page.get_by_role("button", name="Save this view").click()
        page.get_by_role("textbox", name="Title").fill("The cell 36 - 72")
        page.get_by_role("button", name="Save", exact=True).click()
        idle(page)
        link = page.get_by_test_id("stCode").inner_text().strip()
    finally:
        stop_server(process)
    assert link.startswith(f"{first.url}/?f=")
    second, process = start_server(place.root, ROOT / "app.py", tmp_path / "second.log")
    try:
        visit(page, link.replace(first.url, second.url))
        expect(page.get_by_role("heading", name="Angles")).to_be_visible()
        expect(page.get_by_text("The cell 36 - 72")).to_be_visible()
        asked = dict(parse_qsl(urlsplit(page.url).query))
        saved = SavedViews(place.root).all()[0]
        assert {key: value for key, value in asked.items() if key != "from"} == saved.parameters
        assert page.get_by_test_id("stMarkdownContainer").filter(has_text="Lowest:").first.inner_text() == before
        expect(page.get_by_test_id("stException")).to_have_count(0)
    finally:
        stop_server(process)
        SavedViews(place.root).remove(SavedViews(place.root).all()[0].id)


@pytest.mark.browser
def test_the_exported_file_opens_from_disk_and_asks_nobody(page: Page, studio: Studio, tmp_path: Path) -> None:
    place, run = studio.place, studio.run
    known = {"run": run.id, "score": "self_influence", "scale": "asinh", "tail": "high"}
    saved = SavedViews(place.root).save(**example(run=run.id, digest=run.digest, parameters=known))
    file = tmp_path / "saved.html"
    file.write_text(saved_html([saved], place=place), encoding="utf-8")
    asked: list[str] = []
    failures: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda failure: failures.append(str(failure)))
    page.goto(file.as_uri())
    expect(page.locator(".js-plotly-plot .bars path").first).to_be_attached()
    expect(page.get_by_role("heading", name="Take 04").first).to_be_visible()
    assert [address for address in asked if not address.startswith(("data:", "blob:"))] == [file.as_uri()]
    assert failures == []
