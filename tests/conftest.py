"""Fixtures for the dashboard: a server of its own on a free port, a Chromium, and pages run without a browser.

def test_something(open_page, studio):      # AppTest, no browser
    page = open_page("angles", run=studio.run_id)

@pytest.mark.browser
def test_something_seen(page, serve, workspace_path):
    server = serve(workspace_path)
    visit(page, f"{server.url}/angles")
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pandas as pd
import pytest
from lab import Shelf, Studio, stop_worker
from playwright.sync_api import Page, expect
from streamlit.testing.v1 import AppTest

from tracin_core.cli.people import ALLOCATOR

ROOT = Path(__file__).resolve().parents[1]
ROUTER = ROOT / "pages" / "shared" / "router.py"
HOME = "overview"
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 30_000  # machines are shared and busy
expect.set_options(timeout=PATIENCE_MS)
hypothesis.settings.register_profile("shared machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("shared machine")
pytest.register_assert_rewrite("good_files")  # a plugin of the files that name it, because it imports torch
pytest_plugins = ("guarded", "made_runs")  # fixtures that several files share

LONGEST = (
    "test_journey.py",
    "test_workspace.py",
    "test_cli.py",
    "test_pages.py",
    "test_cluster.py",
    "test_faults.py",
    "test_guarded.py",
    "test_upload_requests.py",
    "test_follow.py",
    "test_cli_verbs.py",
    "test_neighbours.py",
    "test_getting_started.py",
    "test_store_format.py",
    "test_report.py",
    "test_compare.py",
    "test_findings.py",
    "test_threshold.py",
    "test_notebook.py",
    "test_calibration.py",
    "test_import.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that two cores end together."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


# ---- made once ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Shelf:
    """Recordings, checkpoints and a finished run of the small lab, shared by all test processes of this test run."""
    home = tmp_path_factory.getbasetemp()
    home = (home if worker_id == "master" else home.parent) / "shelf"
    home.mkdir(exist_ok=True)
    return Shelf(home)


@pytest.fixture(scope="module")
def studio(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A workspace of this test file's own with the finished run of the small lab; its recordings are the shelf's."""
    made = shelf.studio(tmp_path_factory.mktemp("studio"))
    yield made
    stop_worker(made.place)


# ---- without a browser ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that the dashboard takes for its workspace."""
    place = tmp_path / "workspace"
    place.mkdir()
    monkeypatch.setenv("TRACIN_WORKSPACE", str(place))
    return place


@pytest.fixture
def open_page(workspace_path: Path) -> Callable[..., AppTest]:
    """`open_page("angles", run="abc")`: the page in its frame as a visitor with this link sees it, drawn once."""

    def open_(name: str = HOME, **parameters: Any) -> AppTest:
        return opened(name, **parameters)

    return open_


def opened(name: str = HOME, **parameters: Any) -> AppTest:
    """The page over `TRACIN_WORKSPACE`, in a session of its own, drawn once."""
    test = AppTest.from_file(str(ROUTER), default_timeout=60)
    if name != HOME:
        test.switch_page(str(ROOT / "pages" / f"{name}.py"))
    for key, value in parameters.items():
        test.query_params[key] = str(value)
    return test.run()


def texts_of(test: AppTest) -> str:
    """Everything that a page says in words, for looking something up in it."""
    kinds = ("title", "header", "subheader", "markdown", "error", "warning", "info", "success", "caption")
    return "\n".join(str(element.value) for kind in kinds for element in getattr(test, kind))


def listed_of(test: AppTest) -> pd.DataFrame:
    """The list that the threshold page shows, whatever tables stand before it."""
    return next(table.value for table in test.dataframe if "id" in table.value)


# ---- with one -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A dashboard that runs."""

    url: str
    log: Path


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`serve(workspace)`: a freshly started dashboard on a free port of this machine; ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(workspace: Path, script: Path = ROOT / "app.py") -> Server:
        log = tmp_path / f"server-{len(started)}.log"
        server, process = start_server(workspace, script, log)
        started.append(process)
        return server

    yield start
    for process in started:
        stop_server(process)


def start_server(workspace: Path, script: Path, log: Path) -> tuple[Server, subprocess.Popen[bytes]]:
    """A dashboard that answers, and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.address=127.0.0.1", f"--server.port={port}"]
    environment = {**ALLOCATOR, **os.environ, "TRACIN_WORKSPACE": str(workspace), "PYTHONPATH": str(ROOT)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    server = Server(f"http://127.0.0.1:{port}", log)
    deadline = time.monotonic() + 60
    while not is_up(server.url):
        if process.poll() is not None or time.monotonic() > deadline:
            stop_server(process)
            pytest.fail(f"the dashboard did not start:\n{log.read_text(encoding='utf-8')}")
        time.sleep(0.1)
    return server, process


def is_up(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(f"{url}/_stcore/health", timeout=1).read() == b"ok")
    except (OSError, urllib.error.URLError):
        return False


def stop_server(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any]) -> dict[str, Any]:
    """The system's Chromium where it has one that answers, else Playwright's own."""
    chromium = next((name for name in ("chromium", "chromium-browser", "google-chrome") if answers(name)), None)
    own = {} if chromium is None else {"executable_path": shutil.which(chromium)}
    return {**browser_type_launch_args, **own, "args": CHROMIUM_ARGUMENTS}


def answers(program: str) -> bool:
    """The program is there and is no stub."""
    path = shutil.which(program)
    return path is not None and subprocess.run([path, "--version"], capture_output=True, timeout=30).returncode == 0


@pytest.fixture(scope="session")
def browser_context_args(browser_context_args: dict[str, Any]) -> dict[str, Any]:
    return {**browser_context_args, "viewport": {"width": 1400, "height": 1000}, "locale": "en-US", "reduced_motion": "reduce"}


def visit(page: Page, url: str) -> None:
    """The page is drawn, and nothing more is on its way."""
    page.goto(url)
    idle(page)


def idle(page: Page) -> None:
    """The script has run and the page shows what it said."""
    page.wait_for_timeout(250)  # a click takes a moment to reach the server
    for state in ("[data-test-connection-state=CONNECTED]", "[data-test-script-state=notRunning]"):
        page.locator(f"[data-testid=stApp]{state}").wait_for(state="attached", timeout=PATIENCE_MS)
    page.wait_for_function("() => !document.querySelector('[data-testid=stSkeleton]')", timeout=PATIENCE_MS)
