"""Who is let in: links, and what the gate answers, asked without a socket."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from guarded import CLOSED, NEEDS_LOGIN, scope, status

from pages.shared import access as gate
from pages.shared import server
from tracin_core.errors import InputError, NotFoundError, WorkspaceError
from tracin_core.records import access

# ---- links ----------------------------------------------------------------------------------------------------------------------


def test_a_link_opens_until_it_is_revoked_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    assert not access.is_kept(tmp_path)
    mei, tomás = access.add(tmp_path, "Mei"), access.add(tmp_path, "Tomás d'Arc 2")
    assert (access.holder(tmp_path, mei), access.holder(tmp_path, tomás)) == ("Mei", "Tomás d'Arc 2")
    assert [access.holder(tmp_path, key) for key in ("", mei[:-1], mei + "x", mei.swapcase(), "\ud800", "x" * 10_000)] == [None] * 6
    kept = (tmp_path / access.FILE).read_text(encoding="utf-8")
    assert mei not in kept
    assert access.hash_of(mei) in kept
    assert (tmp_path / access.FILE).stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match="has a link already"):
        access.add(tmp_path, "MEI")
    access.revoke(tmp_path, "mei")
    assert access.holder(tmp_path, mei) is None
    with pytest.raises(NotFoundError, match="those who have one: Tomás"):
        access.revoke(tmp_path, "Mei")
    again = access.add(tmp_path, "Mei")
    assert (access.holder(tmp_path, mei), access.holder(tmp_path, again)) == (None, "Mei")
    assert [(link.name, link.opens) for link in access.links(tmp_path)] == [("Mei", False), ("Tomás d'Arc 2", True), ("Mei", True)]


@pytest.mark.parametrize("name", ["", " Mei", "-rf", "a\nb", "<b>", "x" * 61, "a/b", "_", "Mei "])
def test_a_name_is_an_ordinary_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot name a person"):
        access.add(tmp_path, name)
    assert not access.is_kept(tmp_path)


def test_a_damaged_file_of_links_opens_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = access.add(tmp_path, "Mei")
    (tmp_path / access.FILE).write_text("{", encoding="utf-8")
    with pytest.raises(WorkspaceError, match="so nobody gets in"):
        access.holder(tmp_path, key)
    monkeypatch.setenv("TRACIN_WORKSPACE", str(tmp_path))
    assert not gate.is_let_in(scope(), {gate.cookie_name(): key})


def test_wrong_tries_are_counted_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(access.time, "monotonic", lambda: now[0])
    tries = access.Tries(most=3, seconds=60, addresses=10)
    for number in range(3):
        assert not tries.are_too_many("a")
        tries.add("a")
        now[0] += number
    assert tries.are_too_many("a")
    assert not tries.are_too_many("b")
    now[0] += 58
    assert not tries.are_too_many("a")
    for number in range(1000):
        tries.add(f"host {number}")
    assert len(tries._wrong) == 10


# ---- what the server asks for ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "hosts"),
    [("0.0.0.0", []), ("", []), (None, []), ("::", []), ("192.0.2.7", []), ("lab.example", []), ("127.0.0.1", ["lab.example"])],
)
def test_an_open_door_is_refused_until_somebody_has_a_link(
    configured: Callable[..., None], workspace_path: Path, address: str | None, hosts: list[str]
) -> None:
    configured(address, hosts)
    with pytest.raises(InputError, match=r"would be open to whoever reaches .*access add NAME.*docs/deploy\.md"):
        gate.require_control()
    access.add(workspace_path, "Mei")
    gate.require_control()
    access.revoke(workspace_path, "Mei")
    with pytest.raises(InputError, match="Nobody has a link"):
        gate.require_control()


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_alone_needs_no_link(configured: Callable[..., None], address: str) -> None:
    configured(address)
    gate.require_control()
    assert gate.control() == ""


def test_the_rule_is_one_of_the_known_words(monkeypatch: pytest.MonkeyPatch, configured: Callable[..., None]) -> None:
    configured()
    monkeypatch.setenv("TRACIN_ACCESS", "password")
    with pytest.raises(InputError, match="set it to links, oidc or none"):
        gate.require_control()
    monkeypatch.setenv("TRACIN_ACCESS", "links")
    with pytest.raises(InputError, match="Nobody has a link"):
        gate.require_control()


def test_a_server_that_others_could_reach_does_not_start(workspace_path: Path) -> None:
    """Nothing is served, and one sentence says how it is done; told by the environment, against what the file says."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py"), f"--server.port={port}"]
    environment = {**os.environ, "STREAMLIT_SERVER_ADDRESS": "0.0.0.0", "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 2
    assert re.search(r"^Error: The dashboard would be open to whoever reaches '0\.0\.0\.0'.*access add NAME", answer.stderr, re.M)
    assert "Traceback" not in answer.stderr


def test_a_server_below_a_base_path_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.config, "get_option", {"server.baseUrlPath": "/studio"}.get)
    with pytest.raises(InputError, match=r"server\.baseUrlPath is 'studio'"):
        server.require_top()


# ---- the gate, without a socket -------------------------------------------------------------------------------------------------

OWN = [
    {"host": "127.0.0.1:8501"},
    {"host": "localhost"},
    {"host": "LOCALHOST.:1"},
    {"host": "[::1]:8501", "server": ("::1", 8501), "client": ("::1", 5)},
    {"host": "127.0.0.1:8501", "origin": "http://127.0.0.1:8501"},
    {"method": "PUT", "origin": "http://127.0.0.1:8501"},
    {"method": "PUT", "origin": "http://127.0.0.1:8501", "sec_fetch_site": "same-origin"},
]
FOREIGN = [
    {"host": "evil.example"},
    {"host": "evil.example:8501"},
    {"host": None},
    {"host": ""},
    {"host": "127.0.0.1.evil.example"},
    {"host": "localhost@evil.example"},
    {"host": "evil.example/127.0.0.1"},
    {"host": "localhost:99999999"},
    {"host": "192.0.2.7"},
    {"origin": "http://evil.example"},
    {"origin": "http://127.0.0.1:9999"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:8501.evil.example"},
    {"origin": "file://"},
    {"method": "PUT"},
    {"method": "POST", "sec_fetch_site": "cross-site"},
    {"method": "POST", "origin": "http://127.0.0.1:8501", "sec_fetch_site": "cross-site"},
    {"method": "DELETE", "origin": "http://evil.example"},
    {"method": "OPTIONS", "origin": "http://evil.example"},
]
ELSEWHERE = [
    {"client": ("192.0.2.9", 5)},
    {"server": ("192.0.2.7", 8501), "host": "192.0.2.7:8501"},
    {"x_forwarded_for": "192.0.2.9"},
    {"forwarded": "for=192.0.2.9"},
    {"via": "1.1 proxy"},
]


@pytest.mark.parametrize("told", OWN, ids=str)
def test_the_servers_own_pages_pass(workspace_path: Path, told: dict[str, Any]) -> None:
    assert status(scope(**dict(told))) is None


@pytest.mark.parametrize("told", [*FOREIGN, *ELSEWHERE], ids=str)
def test_foreign_names_sites_and_machines_are_refused(workspace_path: Path, told: dict[str, Any]) -> None:
    """Also on a websocket, and where nobody is asked who they are."""
    assert status(scope(**dict(told))) == 403
    if "method" not in told:
        assert status(scope("/_stcore/stream", type="websocket", **dict(told))) == 403


def test_names_that_the_configuration_allows_are_own_ones(configured: Callable[..., None], workspace_path: Path) -> None:
    configured(hosts=["lab.example", "*.tracin.example"])
    key = access.add(workspace_path, "Mei")
    cookie = f"{gate.cookie_name()}={key}"
    for host in ("lab.example", "a.tracin.example", "127.0.0.1"):
        assert status(scope(host=host, cookie=cookie)) is None
    assert status(scope(host="other.example", cookie=cookie)) == 403


@pytest.mark.parametrize("path", CLOSED)
def test_routes_that_nobody_needs_are_not_there(workspace_path: Path, path: str) -> None:
    assert status(scope(path)) == 404


@pytest.mark.parametrize("path", NEEDS_LOGIN)
def test_nothing_is_shown_to_whoever_has_no_link(workspace_path: Path, path: str) -> None:
    key = access.add(workspace_path, "Mei")
    name = gate.cookie_name()
    assert status(scope(path)) == 403
    assert status(scope(path, cookie=f"{name}={key}x")) == 403
    assert status(scope(path, cookie=f"{name}={key}")) is None
    assert status(scope("/_stcore/stream", type="websocket")) == 403
    assert status(scope("/_stcore/stream", type="websocket", cookie=f"{name}={key}")) is None
    assert status(scope("/elsewhere", type="websocket", cookie=f"{name}={key}")) == 404
    assert [status(scope(open_)) for open_ in ("/healthz", "/readyz", "/_stcore/health", "/enter")] == [None] * 4
    access.revoke(workspace_path, "Mei")
    assert status(scope(path, cookie=f"{name}={key}")) == 403


def test_whoever_guesses_has_to_wait_and_others_do_not(workspace_path: Path) -> None:
    key = access.add(workspace_path, "Mei")
    watched = gate.Gate(None)  # type: ignore[arg-type]
    wrong = scope(cookie=f"{gate.cookie_name()}=wrong", client=("192.0.2.9", 5))
    assert [watched.refusal(wrong).status_code for _ in range(12)] == [403] * 10 + [429] * 2  # type: ignore[union-attr]
    assert watched.refusal(scope(cookie=f"{gate.cookie_name()}={key}", client=("192.0.2.9", 5))) is None
