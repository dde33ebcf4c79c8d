"""No path from a browser leads out of the folders that this server may read: ids, links, `..` in every disguise, names of runs."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import texts_of
from streamlit.testing.v1 import AppTest

from tracin_core.errors import NotFoundError, OutsideRootsError, TracInError
from tracin_core.records.workspace import Workspace, open_workspace

SECRET = "this is nobody's business"

CORPUS = [
    *(
        "..",
        "../",
        "../outside",
        "workspace/..",
        "workspace/../outside",
        "workspace/recordings/../../outside",
        "workspace/./../outside",
    ),
    *(
        "workspace//..//outside",
        "workspace/recordings/....//outside",
        "/etc",
        "//etc",
        "///etc/",
        "workspace//etc",
        "workspace/../../../../etc",
    ),
    *(
        "\\\\host\\share",
        "//host/share",
        "workspace/\\\\host\\share",
        "\\\\?\\C:\\",
        "C:\\Windows",
        "C:/Windows",
        "file:///etc",
        "http://127.0.0.1/",
    ),
    *(
        "workspace\0/etc",
        "workspace/\0",
        "workspace/recordings\0.txt",
        "%2e%2e/outside",
        "workspace/%2e%2e/outside",
        "workspace/..%2foutside",
    ),
    *(
        "workspace/%252e%252e/outside",
        "workspace/..%c0%afoutside",
        "workspace/．．/outside",
        "workspace/..\\outside",
        "~",
        "~root",
        "workspace/~/x",
    ),
    *(
        "$HOME",
        "workspace/link",
        "workspace/link/inner",
        "workspace/recordings/chain",
        "workspace/loop",
        "",
        "/",
        ".",
        "other",
        "WORKSPACE/../x",
    ),
    *(
        "workspace/" + "../" * 50 + "etc",
        "workspace/" + "a/" * 3000,
        "workspace/" + "x" * 5000,
        "proc/self/root/etc",
        "workspace/recordings/proc",
    ),
]


@pytest.fixture
def place(workspace_path: Path) -> Workspace:
    """A workspace beside a folder that nobody may see, with links that lead to it."""
    outside = workspace_path.parent / "outside"
    (outside / "inner").mkdir(parents=True)
    (outside / "model_epoch_1.pt").write_text(SECRET)
    (outside / "deg000").mkdir()
    found = open_workspace(workspace_path)
    (workspace_path / "link").symlink_to(outside, target_is_directory=True)
    (workspace_path / "recordings" / "chain").symlink_to(workspace_path / "link")
    (workspace_path / "recordings" / "proc").symlink_to("/proc/self/root")
    (workspace_path / "loop").symlink_to(workspace_path / "loop")
    return found


@pytest.mark.parametrize("told", CORPUS, ids=lambda told: repr(told[:30]))
def test_no_folder_id_resolves_to_anything_outside(place: Workspace, told: str) -> None:
    """What is not refused lies, all links followed, below the workspace. A refusal repeats at most the start of what was told."""
    try:
        found = place.resolve(told)
    except (OutsideRootsError, NotFoundError) as failure:
        refusal = str(failure)
    else:
        refusal, inside = "", os.path.realpath(found)
        assert os.path.commonpath([inside, place.root]) == str(place.root)
    assert len(refusal) < 400
    assert str(place.root) not in refusal


def test_pickers_offer_no_folder_that_a_link_leads_to(place: Workspace) -> None:
    """Also not under another name; what they offer is resolved."""
    offered = [*place.checkpoint_folders(), *place.recording_folders()]
    assert [told for told in offered if "link" in told or "chain" in told or "outside" in told] == []
    for told in offered:
        place.resolve(told)


def test_a_folder_that_was_uploaded_is_offered(place: Workspace) -> None:
    folder = place.root / "uploads" / "20260101-000000-abcdef" / "mine"
    folder.mkdir(parents=True)
    (folder / "model_epoch_1.pt").touch()
    (place.root / "uploads" / ".incoming" / "x").mkdir(parents=True)
    (place.root / "uploads" / ".incoming" / "x" / "model_epoch_1.pt").touch()
    assert place.checkpoint_folders() == ["workspace/uploads/20260101-000000-abcdef/mine"]
    assert place.resolve("workspace/uploads/20260101-000000-abcdef/mine") == folder


@pytest.mark.parametrize("told", [told for told in CORPUS if told], ids=lambda told: repr(told[:30]))
def test_no_run_or_job_id_is_taken_for_a_path(place: Workspace, told: str) -> None:
    """An id is looked up, never joined to a folder."""
    for ask in (place.run, place.job):
        with pytest.raises(TracInError) as refusal:
            ask(told)
        assert SECRET not in str(refusal.value)


@pytest.mark.parametrize(
    "told", ["../outside", "workspace/../outside", "/etc", "workspace/link", "\\\\host\\share", "workspace/%2e%2e/outside"]
)
def test_an_address_with_a_foreign_folder_shows_none_of_it(place: Workspace, open_page: Callable[..., AppTest], told: str) -> None:
    """The query parameters of a page that reads folders; the page says that the link's value is unknown, or shows nothing of it."""
    page = open_page("compute", folder=told, data=told, run=told)
    said = texts_of(page)
    assert not page.exception
    assert SECRET not in said
    assert "model_epoch_1.pt" not in said
    assert str(place.root.parent) not in said
