"""What a monitor asks the web server: does it live, and can work be done."""

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from pages.shared import server
from tracin_core.records.workspace import open_workspace

Ask = Callable[[str], tuple[int, dict[str, str]]]


@pytest.fixture
def ask(workspace_path: Path) -> Ask:
    """`ask("/readyz")`: status and JSON of the server's own routes, without a socket; every answer carries the headers."""
    open_workspace(workspace_path)
    app = Starlette(routes=server.ROUTES, middleware=server.MIDDLEWARE)

    def ask_(path: str) -> tuple[int, dict[str, str]]:
        said: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request"}

        async def send(message: Any) -> None:
            said.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "headers": [(b"host", b"localhost:8501")], "query_string": b""}
        with ThreadPoolExecutor(1) as own_thread:  # Playwright leaves its own loop running in this one
            own_thread.submit(asyncio.run, app(scope, receive, send)).result()
        headers = {name.decode(): value.decode() for name, value in said[0]["headers"]}
        assert {name: headers.get(name.lower()) for name in server.HEADERS} == server.HEADERS
        return said[0]["status"], json.loads(said[1]["body"])

    return ask_


def test_a_server_over_a_sound_workspace_lives_and_is_ready(ask: Ask, workspace_path: Path) -> None:
    before = sorted(workspace_path.rglob("*"))
    assert ask("/healthz") == (200, {"status": "ok"})
    assert ask("/readyz") == (200, {"status": "ready"})
    assert sorted(workspace_path.rglob("*")) == before


def test_a_damaged_or_lost_catalogue_is_not_ready_but_lives(ask: Ask, workspace_path: Path) -> None:
    (workspace_path / "tracin.sqlite3").write_bytes(b"no database" * 1000)
    code, said = ask("/readyz")
    assert (code, said["status"]) == (503, "not ready")
    assert "cannot be written to" in said["catalogue"]
    assert str(workspace_path) not in json.dumps(said)
    (workspace_path / "tracin.sqlite3").unlink()
    assert ask("/readyz")[1]["catalogue"] == "is not there"
    assert ask("/healthz")[0] == 200


def test_a_job_without_a_living_worker_is_not_ready(ask: Ask, workspace_path: Path) -> None:
    place = open_workspace(workspace_path)
    with place.catalogue.transaction() as connection:
        connection.execute(
            "INSERT INTO job (id, kind, state, title, request, request_digest, created, position, beat) "
            "VALUES ('j', 'demo', 'running', 't', '{}', 'd', 1.0, 1, ?)",
            (time.time(),),
        )
    assert ask("/readyz") == (503, {"status": "not ready", "worker": "is dead, and job j runs"})
    with place.queue.worker_lock():
        assert ask("/readyz")[0] == 200


def test_a_workspace_that_is_gone_neither_lives_nor_is_ready(ask: Ask, workspace_path: Path) -> None:
    shutil.rmtree(workspace_path)
    assert ask("/healthz")[0] == 503
    code, said = ask("/readyz")
    assert (code, sorted(said)) == (503, ["catalogue", "status", "workspace"])
