"""Every page can be used without seeing colours or holding a mouse: axe finds nothing on it, light and dark."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import ROOT, Server, idle, start_server, stop_server, visit
from lab import Studio
from playwright.sync_api import Page

from pages.shared import frame

PAGES = [name for pages in frame.SECTIONS.values() for name in pages]

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running, process = start_server(studio.place.root, ROOT / "app.py", tmp_path_factory.mktemp("log") / "server.log")
    yield running
    stop_server(process)


def violations(page: Page, *rules: str) -> list[str]:
    """What axe holds against the page, each with the first element that it names; by these rules, or by all."""
    page.locator("ul[data-testid=stSidebarNavItems][role=none]").wait_for()  # the document has been put right
    asked = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    found: list[dict[str, Any]] = Axe().run(page, options=asked).response["violations"]
    return [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}" for one in found]


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(page: Page, server: Server, studio: Studio, name: str) -> None:
    address = "" if name == frame.HOME else name
    visit(page, f"{server.url}/{address}?run={studio.run.id}")
    page.get_by_test_id("stHeading").first.wait_for()
    page.emulate_media(color_scheme="light")
    idle(page)
    assert violations(page) == []
    page.emulate_media(color_scheme="dark")
    idle(page)
    assert violations(page, "color-contrast") == []  # colours are all that is other in the dark


def test_axe_finds_nothing_on_an_empty_server(page: Page, tmp_path: Path) -> None:
    (tmp_path / "workspace").mkdir()
    running, process = start_server(tmp_path / "workspace", ROOT / "app.py", tmp_path / "server.log")
    try:
        for name in ("", "compute"):
            visit(page, f"{running.url}/{name}")
            assert violations(page) == []
    finally:
        stop_server(process)
