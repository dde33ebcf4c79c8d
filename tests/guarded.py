"""A dashboard that asks who comes: requests to its gate without a socket, a real server with two links, and a browser inside.

def test_something(guarded, inside):        # a server of this file's own; Mei's browser, after she opened her link
    visit(inside.page, f"{guarded.url}/angles")
    code, headers, body = ask(guarded, "GET", "/", Cookie=guarded.cookie)
"""

import http.client
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import lab
import pytest
from conftest import ROOT, idle, start_server, stop_server
from playwright.sync_api import Browser, Page

from pages.shared import access as gate
from tracin_core.records import access
from tracin_core.records.runs import Run
from tracin_core.records.workspace import Workspace

# ---- what the server asks for ---------------------------------------------------------------------------------------------------


@pytest.fixture
def configured(workspace_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`configured(address="0.0.0.0", hosts=[...])`: what Streamlit was told, in whatever way."""

    def configured_(address: str | None = "127.0.0.1", hosts: list[str] | None = None) -> None:
        known = {"server.address": address, "server.allowedHosts": hosts or [], "server.baseUrlPath": ""}
        usual = gate.config.get_option
        monkeypatch.setattr(gate.config, "get_option", lambda name: known[name] if name in known else usual(name))

    return configured_


# ---- the gate, without a socket -------------------------------------------------------------------------------------------------


def scope(path: str = "/", **told: Any) -> dict[str, Any]:
    """A request as the web server hands it on; `host`, `origin` and other headers by name."""
    known: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 8501),
    }
    known.update({name: told.pop(name) for name in list(told) if name in known})
    headers = {"host": "127.0.0.1:8501", **{name.replace("_", "-"): value for name, value in told.items()}}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items() if value is not None]
    return {**known, "path": path, "query_string": b"", "headers": pairs}


def status(asked: dict[str, Any]) -> int | None:
    """What the gate answers by itself; None if it lets the request pass."""
    refusal = gate.Gate(None).refusal(asked)  # type: ignore[arg-type]
    return None if refusal is None else refusal.status_code


CLOSED = [
    "/_stcore/metrics",
    "/_stcore/agent/interact",
    "/_stcore/agent/openapi.json",
    "/_stcore/agent/mcp",
    "/_stcore/upload_file/a/b",
]
CLOSED += ["/_stcore/script-health-check", "/component/x/index.html", "/auth/login", "/auth/logout", "/oauth2callback"]


NEEDS_LOGIN = [
    "/",
    "/threshold",
    "/media/abc.wav",
    "/static/js/index.js",
    "/_stcore/host-config",
    "/_stcore/bidi-components/a/b.js",
    "/uploads",
]


# ---- a real server, and a real browser ------------------------------------------------------------------------------------------


@dataclass
class Guarded:
    """A dashboard into which Mei has a link for her browser, and Tom one for requests without any."""

    url: str
    place: Workspace
    run: Run
    process: subprocess.Popen[bytes]
    key: str
    other_key: str

    def cookie_of(self, key: str) -> str:
        return f"tracin_{gate.sha256(str(self.place.root).encode()).hexdigest()[:8]}={key}"

    @property
    def cookie(self) -> str:
        return self.cookie_of(self.other_key)


@pytest.fixture(scope="module")
def guarded(studio: lab.Studio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    place = studio.place
    key, other_key = access.add(place.root, "Mei"), access.add(place.root, "Tom")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACIN_UPLOAD_LIMIT", "70MB")
        running, process = start_server(place.root, ROOT / "app.py", tmp_path_factory.mktemp("log") / "server.log")
    yield Guarded(running.url, place, studio.run, process, key, other_key)
    stop_server(process)


@dataclass
class Watched:
    """What a page's browser was sent and complained about."""

    page: Page
    console: list[str]
    received: list[bytes]


@pytest.fixture(scope="module")
def inside(browser: Browser, browser_context_args: dict[str, Any], guarded: Guarded) -> Iterator[Watched]:
    """Mei's browser, after she opened her link."""
    context = browser.new_context(**browser_context_args)
    page = context.new_page()
    seen = Watched(page, [], [])
    page.on("console", lambda message: seen.console.append(message.text) if "Content Security Policy" in message.text else None)
    page.on("pageerror", lambda failure: seen.console.append(str(failure)))
    page.on("websocket", lambda opened: opened.on("framereceived", lambda frame: seen.received.append(as_bytes(frame))))
    page.goto(f"{guarded.url}/enter#{guarded.key}")
    page.wait_for_url(f"{guarded.url}/**")
    idle(page)
    yield seen
    context.close()


def as_bytes(frame: str | bytes) -> bytes:
    return frame.encode() if isinstance(frame, str) else frame


def ask(guarded: Guarded, method: str, path: str, *, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One raw request, with nothing added to it but what is told; paths are sent as they stand."""
    there = urlsplit(guarded.url)
    with closing(http.client.HTTPConnection(there.hostname or "", there.port, timeout=60)) as line:
        line.request(method, path, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = line.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def within_seconds(holds: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()
