"""Saved views: kept at once and for good, opened as they were saved, listed, edited, removed, brought back, exported."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from tracin_core import __version__
from tracin_core.errors import InputError, NotFoundError
from tracin_core.records.findings import SavedView, SavedViews
from tracin_core.records.workspace import rebuild_catalogue

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
    from tracin_core.records.workspace import open_workspace

    place = open_workspace(tmp_path)
    saved = SavedViews(place.root).save(**example())
    del place
    rebuild_catalogue(tmp_path)
    assert SavedViews(tmp_path).all() == [saved]
    assert isinstance(saved, SavedView)
