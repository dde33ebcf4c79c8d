"""Files are sent to a real server: from a browser and as raw requests, without staying in memory, whole or not at all."""

import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from conftest import idle, visit
from guarded import Guarded, Watched, ask, within_seconds
from playwright.sync_api import expect

MB = 2**20


@pytest.mark.browser
def test_files_are_sent_from_the_keyboard_and_a_cancelled_upload_leaves_nothing(
    guarded: Guarded, inside: Watched, tmp_path: Path
) -> None:
    page, place = inside.page, guarded.place.root / "uploads"
    visit(page, f"{guarded.url}/compute")
    page.get_by_text("Upload files to this server").click()
    idle(page)
    folder = tmp_path / "mine" / "deg000" / "plastic"
    folder.mkdir(parents=True)
    (folder / "a.wav").write_bytes(b"w" * 5000)
    (tmp_path / "mine" / "notes.md").write_text("hello")
    with page.expect_file_chooser() as chosen:
        page.get_by_role("button", name="Choose a folder").press("Enter")
    chosen.value.set_files(tmp_path / "mine")
    expect(page.locator(".said")).to_contain_text("1 files arrived. Left out, because their kind is not taken: 1 (mine/notes.md).")
    idle(page)
    kept = [path for path in place.iterdir() if not path.name.startswith(".")]
    assert [(path / "mine/deg000/plastic/a.wav").read_bytes() for path in kept] == [b"w" * 5000]
    assert json.loads((kept[0] / ".upload.json").read_text())["who"] == "Mei"
    expect(page.get_by_text(f"{kept[0].name}: 1 files, 4.9 KB")).to_be_visible()

    with (tmp_path / "large.pt").open("wb") as large:
        large.truncate(71 * MB)
    page.locator(".files-input").set_input_files(tmp_path / "large.pt")
    expect(page.locator(".said")).to_have_text("Larger than the 70.0 MB that are taken per file: large.pt")
    page.route("**/uploads/*", lambda route: None)  # the file never gets through
    page.locator(".files-input").set_input_files([{"name": "slow.pt", "mimeType": "", "buffer": b"x" * MB}])
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".said")).to_have_text("Cancelled; nothing was kept.")
    page.unroute("**/uploads/*")


@pytest.fixture
def trusted(guarded: Guarded, inside: Watched) -> dict[str, str]:
    """Headers of a request as the upload page of an open session makes it."""
    visit(inside.page, f"{guarded.url}/compute")
    tokens = re.findall(rb"[0-9a-f-]{36}\.[0-9a-f]{64}", b"".join(inside.received))
    return {"Cookie": guarded.cookie, "Origin": guarded.url, "X_Upload_Token": tokens[-1].decode()}


@pytest.mark.browser
def test_large_uploads_pass_through_without_staying_in_memory(guarded: Guarded, trusted: dict[str, str]) -> None:
    """60 MB here; TRACIN_LONG sends 300. What the web process holds grows by at most 20 MB."""
    size = 300 * MB if os.environ.get("TRACIN_LONG") else 60 * MB
    process = psutil.Process(guarded.process.pid)
    identity = json.loads(ask(guarded, "POST", "/uploads", **trusted)[2])["id"]
    before, most = process.memory_info().rss, [0]

    def body() -> Iterator[bytes]:
        for _ in range(60):
            yield bytes(MB)
            most[0] = max(most[0], process.memory_info().rss)

    for number in range(size // (60 * MB)):
        length = {"Content_Length": str(60 * MB)}
        code, _, said = ask(guarded, "PUT", f"/uploads/{identity}?name=large{number}.pt", body=body(), **trusted, **length)
        assert (code, json.loads(said)) == (201, {"left_out": []})
    grown = max(most[0], process.memory_info().rss) - before
    assert grown <= 20 * MB
    assert ask(guarded, "DELETE", f"/uploads/{identity}", **trusted)[0] == 204
    incoming = guarded.place.root / "uploads" / ".incoming"
    assert list(incoming.iterdir()) == []


@pytest.mark.browser
def test_whoever_leaves_in_the_middle_of_a_file_leaves_nothing(guarded: Guarded, trusted: dict[str, str]) -> None:
    incoming = guarded.place.root / "uploads" / ".incoming"
    identity = json.loads(ask(guarded, "POST", "/uploads", **trusted)[2])["id"]
    there = urlsplit(guarded.url)
    with socket.create_connection((there.hostname or "", there.port or 0)) as line:
        told = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in {**trusted, "Host": there.netloc}.items())
        line.sendall(
            f"PUT /uploads/{identity}?name=a.pt HTTP/1.1\r\n{told}Content-Length: {9 * MB}\r\n\r\n".encode() + bytes(3 * MB)
        )
        assert within_seconds(lambda: any(part.stat().st_size for part in incoming.glob("*/part-*")))
    assert within_seconds(lambda: not list(incoming.iterdir()))


@pytest.mark.browser
def test_an_upload_that_is_refused_says_why_and_leaves_nothing(guarded: Guarded, trusted: dict[str, str]) -> None:
    incoming = guarded.place.root / "uploads" / ".incoming"

    def put(name: str, body: Any, **headers: str) -> tuple[int, str]:
        identity = json.loads(ask(guarded, "POST", "/uploads", **trusted)[2])["id"]
        code, _, said = ask(guarded, "PUT", f"/uploads/{identity}?name={name}", body=body, **{**trusted, **headers})
        if code in (400, 408, 413, 415):
            assert list(incoming.iterdir()) == []
        else:
            ask(guarded, "DELETE", f"/uploads/{identity}", **trusted)
        return code, said.decode()

    code, said = put("large.pt", (bytes(MB) for _ in range(71)), Content_Length=str(71 * MB))
    assert (code, json.loads(said)["error"].split(" that ")[0]) == (413, "'large.pt' is larger than the 70.0 MB")
    chunks = (bytes(MB) for _ in range(71))
    assert put("large.pt", chunks)[0] == 413  # in pieces, whose sum nobody told before
    for name in (
        "..%2f..%2fa.pt",
        "%2e%2e/a.pt",
        "%252e%252e%252fa.pt",
        "%5c%5chost%5cshare%5ca.pt",
        "a%00.pt",
        "",
        ".a.pt",
        "C%3a%5ca.pt",
    ):
        code, said = put(name, b"x")
        assert code == 400 or (code == 201 and name.startswith("%252e")), (name, said)
    assert put("a.py", b"x")[0] == 415
    assert put("a.zip", b"no archive")[0] == 400
    assert put("a.pt", b"x", X_Upload_Token="made.up")[0] == 403
    assert put("a.pt", b"x", Origin="http://evil.example")[0] == 403
    assert put("a.pt", b"x", Host="evil.example")[0] == 403
    assert put("a.pt", b"x", Cookie="")[0] == 403
    assert not list(incoming.iterdir())
    for identity in ("..", "%2e%2e", "20260101-000000-abcdef", "..%2f..%2fruns", "x" * 500):
        assert ask(guarded, "PUT", f"/uploads/{identity}?name=a.pt", body=b"x", **trusted)[0] in (400, 404, 405)
