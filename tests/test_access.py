"""Who is let in: links, the gate, and a server that others could reach; seen from outside, in a real browser, and in the files."""

import http.client
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, urlsplit

import lab
import numpy as np
import psutil
import pytest
import soundfile
from conftest import ROOT, idle, is_up, start_server, stop_server, visit
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from pages.shared import access as gate
from pages.shared import frame, server, spectrograms
from tracin_core.errors import InputError, NotFoundError, WorkspaceError
from tracin_core.records import access
from tracin_core.records.jobs import JobQueue
from tracin_core.records.runs import Run
from tracin_core.records.workspace import Workspace, open_workspace

MB = 2**20


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


@pytest.fixture
def configured(workspace_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`configured(address="0.0.0.0", hosts=[...])`: what Streamlit was told, in whatever way."""

    def configured_(address: str | None = "127.0.0.1", hosts: list[str] | None = None) -> None:
        known = {"server.address": address, "server.allowedHosts": hosts or [], "server.baseUrlPath": ""}
        usual = gate.config.get_option
        monkeypatch.setattr(gate.config, "get_option", lambda name: known[name] if name in known else usual(name))

    return configured_


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


CLOSED = [
    "/_stcore/metrics",
    "/_stcore/agent/interact",
    "/_stcore/agent/openapi.json",
    "/_stcore/agent/mcp",
    "/_stcore/upload_file/a/b",
]
CLOSED += ["/_stcore/script-health-check", "/component/x/index.html", "/auth/login", "/auth/logout", "/oauth2callback"]


@pytest.mark.parametrize("path", CLOSED)
def test_routes_that_nobody_needs_are_not_there(workspace_path: Path, path: str) -> None:
    assert status(scope(path)) == 404


NEEDS_LOGIN = [
    "/",
    "/threshold",
    "/media/abc.wav",
    "/static/js/index.js",
    "/_stcore/host-config",
    "/_stcore/bidi-components/a/b.js",
    "/uploads",
]


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


# ---- sign-in --------------------------------------------------------------------------------------------------------------------

SECRETS = {
    "redirect_uri": "https://lab.example/oauth2callback",
    "cookie_secret": "s" * 32,
    "client_id": "c",
    "server_metadata_url": "https://x",
}


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch, workspace_path: Path) -> Callable[..., dict[str, str]]:
    """`signed(email=...)`: the cookie that Streamlit gives to a person who signed in."""
    from streamlit.runtime.secrets import AttrDict, secrets_singleton
    from streamlit.web.server.starlette.starlette_app_utils import create_signed_value

    monkeypatch.setenv("TRACIN_ACCESS", "oidc")
    monkeypatch.setenv("TRACIN_OIDC_ALLOW", "mei@lab.example, @acoustics.example, group:Studio")
    monkeypatch.setattr(secrets_singleton, "load_if_toml_exists", lambda: True)
    monkeypatch.setattr(
        type(secrets_singleton), "get", lambda self, name, default=None: AttrDict(SECRETS) if name == "auth" else default
    )
    monkeypatch.setattr(gate.auth_util, "get_secrets_auth_section", lambda: AttrDict(SECRETS))

    def signed_(secret: str = "s" * 32, **told: Any) -> dict[str, str]:
        value = json.dumps({"is_logged_in": True, "origin": "https://lab.example", **told})
        return {"_streamlit_user": create_signed_value(secret, "_streamlit_user", value).decode()}

    return signed_


def test_only_listed_people_are_let_in_by_sign_in(signed: Callable[..., dict[str, str]]) -> None:
    assert gate.signed_in(signed(email="Mei@lab.example")) == "Mei@lab.example"
    assert gate.signed_in(signed(email="x@acoustics.example", email_verified=True)) == "x@acoustics.example"
    assert gate.signed_in(signed(name="Tom", groups=["studio", "other"])) == "Tom"
    refused = [
        {"email": "other@lab.example"},
        {"email": "mei@lab.example", "email_verified": False},
        {"email": "mei@lab.example", "is_logged_in": False},
        {"email": "mei@lab.example", "origin": "https://evil.example"},
        {"email": "x@evil-acoustics.example"},
        {"email": "@acoustics.example@evil.example"},
        {"name": "group:studio"},
        {"groups": "studio"},
        {"email": ["mei@lab.example"]},
    ]
    assert [gate.signed_in(signed(**told)) for told in refused] == [None] * len(refused)
    assert gate.signed_in(signed(secret="t" * 32, email="mei@lab.example")) is None
    assert gate.signed_in({"_streamlit_user": "nonsense"}) is None


def test_sign_in_guards_every_route_but_its_own(signed: Callable[..., dict[str, str]], configured: Callable[..., None]) -> None:
    configured(hosts=["lab.example"])
    cookie = "; ".join(f"{name}={value}" for name, value in signed(email="mei@lab.example").items())
    stranger = "; ".join(f"{name}={value}" for name, value in signed(email="other@lab.example").items())
    for path in NEEDS_LOGIN:
        answers = [status(scope(path, host="lab.example", cookie=told)) for told in (cookie, stranger, None)]
        assert answers == [None, 403, 403]
    assert [status(scope(path, host="lab.example")) for path in ("/auth/login", "/oauth2callback", "/enter")] == [None] * 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cookie_secret": "short"}, "can be guessed"),
        ({"client_id": ""}, "needs client_id"),
        ({}, "TRACIN_OIDC_ALLOW names nobody"),
    ],
)
def test_sign_in_that_cannot_work_does_not_start(
    signed: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch, change: dict[str, str], sentence: str
) -> None:
    from streamlit.runtime.secrets import AttrDict

    with monkeypatch.context() as patch:
        patch.setattr(gate.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(InputError, match="needs Authlib"):
            gate.require_oidc()
        patch.setattr(gate.importlib.util, "find_spec", lambda name: object())
        gate.require_oidc()
        patch.setattr(gate.auth_util, "get_secrets_auth_section", lambda: AttrDict({**SECRETS, **change}))
        if not change:
            patch.setenv("TRACIN_OIDC_ALLOW", " , ")
        with pytest.raises(InputError, match=sentence):
            gate.require_oidc()


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


@pytest.mark.browser
def test_a_link_is_taken_out_of_the_address_and_lets_its_person_in(guarded: Guarded, inside: Watched) -> None:
    assert "#" not in inside.page.url
    assert guarded.key not in inside.page.url
    expect(inside.page.get_by_test_id("stSidebar").get_by_text("Here as Mei")).to_be_visible()
    cookies = [cookie for cookie in inside.page.context.cookies() if cookie["name"].startswith("tracin_")]
    assert [(cookie["httpOnly"], cookie["sameSite"], cookie["value"] == guarded.key) for cookie in cookies] == [
        (True, "Strict", True)
    ]


@pytest.mark.browser
def test_a_link_on_another_site_leads_in_although_the_cookie_is_strict(guarded: Guarded, inside: Watched) -> None:
    page = inside.page.context.new_page()
    page.route(
        "http://elsewhere.example/",
        lambda route: route.fulfill(body=f"<a href='{guarded.url}/angles'>go</a>", content_type="text/html"),
    )
    page.goto("http://elsewhere.example/")
    page.get_by_text("go").click()
    expect(page.get_by_role("heading", name="Angles")).to_be_visible(timeout=60_000)
    page.close()


@pytest.mark.browser
def test_whoever_has_no_link_sees_a_sentence_and_a_wrong_one_opens_nothing(guarded: Guarded, browser: Browser) -> None:
    context = browser.new_context(locale="zh-TW")
    page = context.new_page()
    answer = page.goto(f"{guarded.url}/threshold")
    assert answer is not None
    assert answer.status == 403
    expect(page.locator("html")).to_have_attribute("lang", "zh-TW")
    expect(page.get_by_text("只有持有連結的人")).to_be_visible()
    page.goto(f"{guarded.url}/enter#wrong")
    expect(page.get_by_text("這個連結無法開啟")).to_be_visible()
    assert page.url == f"{guarded.url}/enter"
    context.close()


@pytest.mark.browser
def test_every_page_works_under_the_policy_and_names_no_path(guarded: Guarded, inside: Watched) -> None:
    """From page to page by the sidebar: none breaks a rule of the policy, and none is told where on the disk something lies."""
    visit(inside.page, f"{guarded.url}/?run={guarded.run.id}")
    links = inside.page.get_by_test_id("stSidebarNavLink")
    expect(links).to_have_count(sum(map(len, frame.SECTIONS.values())))
    for number in range(links.count()):
        links.nth(number).click()
        idle(inside.page)
        expect(inside.page.get_by_test_id("stHeading").first).to_be_visible()
        expect(inside.page.get_by_text("Something unexpected went wrong")).to_have_count(0)
    expect(inside.page.get_by_test_id("stException")).to_have_count(0)
    assert inside.console == []
    told = b"".join(inside.received) + inside.page.content().encode()
    assert len(told) > 50_000
    for path in (guarded.place.root, guarded.run.recipe.data.place, guarded.run.recipe.checkpoints.folder, ROOT, Path.home() / "x"):
        place = str(path).removesuffix("/x").encode()
        near = told.find(place)
        assert near < 0, told[max(near - 300, 0) : near + 200]


def address_of(guarded: Guarded, kind: str) -> str:
    preview = guarded.run.preview(str(guarded.run.samples["id"][0]))
    return f"/previews/{guarded.run.manifest.dataset}/{preview.picture.with_suffix(kind).name}"


@pytest.mark.browser
def test_a_sound_has_an_address_and_may_be_played(guarded: Guarded, inside: Watched) -> None:
    sound = guarded.run.preview(str(guarded.run.samples["id"][0])).sound
    heard = """url => new Promise(told => {
        const sound = new Audio(url);
        sound.onloadedmetadata = () => told(sound.duration);
        sound.onerror = () => told(sound.error.message);
    })"""
    length = inside.page.evaluate(heard, address_of(guarded, ".wav"))
    assert length == pytest.approx(soundfile.info(sound).duration, abs=0.01)


def test_pictures_and_sounds_are_for_those_who_are_let_in_and_are_kept_by_the_browser(guarded: Guarded) -> None:
    for kind, magic in ((".png", b"\x89PNG"), (".wav", b"RIFF")):
        address = address_of(guarded, kind)
        assert ask(guarded, "GET", address)[0] == 403
        status, headers, content = ask(guarded, "GET", address, Cookie=guarded.cookie)
        assert (status, content[:4], headers["cache-control"]) == (200, magic, "private, max-age=31536000, immutable")
        assert content == guarded.run.preview(str(guarded.run.samples["id"][0])).picture.with_suffix(kind).read_bytes()
    small = ask(guarded, "GET", f"{address_of(guarded, '.png')}?width=40", Cookie=guarded.cookie)[2]
    assert Image.open(io.BytesIO(small)).width == 40
    around = Image.open(io.BytesIO(ask(guarded, "GET", f"{address_of(guarded, '.png')}?tone=1000", Cookie=guarded.cookie)[2]))
    assert around.size == spectrograms.SMALL


def test_a_thumbnail_around_a_tone_is_brightest_where_the_tone_is(tmp_path: Path) -> None:
    """A sine 200 Hz above the middle of the band stands above the middle of the picture."""
    rate = 48_000
    file = tmp_path / "tone.wav"
    soundfile.write(file, 0.5 * np.sin(2 * np.pi * 1_200 * np.arange(rate // 4) / rate), rate)
    rows = np.asarray(Image.open(io.BytesIO(spectrograms.small(file, 1_000.0))).convert("L"), dtype=float).mean(axis=1)
    middle = spectrograms.SMALL[1] / 2
    assert rows.argmax() == pytest.approx(middle - 200 / 800 * spectrograms.SMALL[1], abs=8)


def test_a_server_below_a_base_path_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.config, "get_option", {"server.baseUrlPath": "/studio"}.get)
    with pytest.raises(InputError, match=r"server\.baseUrlPath is 'studio'"):
        server.require_top()


@pytest.mark.parametrize(
    "path",
    [
        "/previews/{dataset}/../../tracin.sqlite3",
        "/previews/{dataset}/..%2f..%2f..%2ftracin.sqlite3",
        "/previews/..%2f..%2fdatasets%2f{dataset}/{name}",
        "/previews/{dataset}/{stem}.json",
        "/previews/{dataset}/{stem}.PNG",
        "/previews/{dataset}/{name}%00.png",
        "/previews/{dataset}/{name}?tone=99999",
        "/previews/{dataset}/{name}?tone=nan",
        "/previews/{dataset}/{name}?tone=-1000",
        "/previews/{dataset}/{name}?width=0",
        "/previews/{dataset}/{name}?width=99999",
        "/previews/{dataset}/{name}?width=-40",
        "/previews/{dataset}/{name}?width=\u0664\u0660",
        "/previews/0123456789ab/{name}",
        "/previews/{dataset}/0123456789abcdef0123456789abcdef.png",
    ],
)
def test_an_address_leads_to_previews_only(guarded: Guarded, path: str) -> None:
    picture = guarded.run.preview(str(guarded.run.samples["id"][0])).picture
    asked = path.format(dataset=guarded.run.manifest.dataset, name=picture.name, stem=picture.stem)
    assert ask(guarded, "GET", quote(asked, safe="/%?="), Cookie=guarded.cookie)[0] in (400, 404)


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


def within_seconds(holds: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()


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


def test_foreign_requests_are_refused_on_every_kind_of_route(guarded: Guarded) -> None:
    cookie = {"Cookie": guarded.cookie}
    for path in ("/", "/healthz", "/readyz", "/_stcore/health", "/_stcore/host-config", "/static/js/x.js", "/media/x", "/enter"):
        assert ask(guarded, "GET", path, Host="evil.example", **cookie)[0] == 403
        assert ask(guarded, "GET", path, Origin="http://evil.example", **cookie)[0] == 403
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    for told in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Cookie": "tracin_x=y"}):
        code, _, _ = ask(guarded, "GET", "/_stcore/stream", **{**upgrade, **cookie, **told})
        assert code == 403
    for path in CLOSED:
        assert ask(guarded, "GET", path, **cookie)[0] == 404


def test_every_answer_carries_the_headers_also_a_refusal(guarded: Guarded) -> None:
    for path in ("/", "/enter", "/enter.js", "/healthz", "/_stcore/metrics", "/media/none", "/static/none.js"):
        _, headers, _ = ask(guarded, "GET", path, Cookie=guarded.cookie)
        assert {name: headers.get(name.lower()) for name in server.HEADERS} == server.HEADERS
    rules = dict(rule.split(" ", 1) for rule in server.HEADERS["Content-Security-Policy"].split("; "))
    assert "unsafe-inline" not in rules["script-src"]
    assert "unsafe-eval" not in server.HEADERS["Content-Security-Policy"]
    assert rules["script-src"].count("'sha256-") == 1


PATHS = ["/../access.json", "/..%2faccess.json", "/%2e%2e/access.json", "/%252e%252e/access.json", "/media/../../access.json"]
PATHS += [
    "/media/..%2f..%2faccess.json",
    "/static/../../../access.json",
    "/static/%2e%2e/%2e%2e/access.json",
    "/static/..%5c..%5caccess.json",
]
PATHS += [
    "//etc/passwd",
    "/\\\\host\\share",
    "/%5c%5chost%5cshare",
    "/media/%00",
    "/static/%00.js",
    "/_stcore/bidi-components/upload/../../x",
]
PATHS += [
    "/media//etc/passwd",
    "/_stcore/bidi-components/upload/%2e%2e/%2e%2e/upload.js",
    "/static//etc/passwd",
    "/enter.js/../access.py",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out_of_what_is_served(guarded: Guarded, path: str) -> None:
    """At most the shell, which is the same for every address, and holds nothing."""
    code, _, said = ask(guarded, "GET", path, Cookie=guarded.cookie)
    assert code in (200, 400, 403, 404, 405)
    assert code != 200 or b"<title>Streamlit</title>" in said
    assert not re.search(rb"root:|sha256|\"links\"|def guard", said)


def test_a_job_bears_the_name_of_whoever_started_it(workspace_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobQueue, "ensure_worker", lambda self: None)
    place = open_workspace(workspace_path)
    assert (place.by("Mei").start_demo().who, place.start_digits_demo().who) == ("Mei", "")
    assert place.by("Tom").start_demo().who == "Mei"  # it is on its way already


@pytest.mark.browser
def test_what_a_person_starts_bears_their_name(guarded: Guarded, inside: Watched) -> None:
    """Nobody is asked for a name that the server knows."""
    visit(inside.page, f"{guarded.url}/threshold?run={guarded.run.id}")
    expect(inside.page.get_by_role("textbox", name="Why (kept with the list)")).to_be_visible()
    expect(inside.page.get_by_role("textbox", name="Your name")).to_have_count(0)
    inside.page.get_by_role("button", name=re.compile("Write the list")).click()
    idle(inside.page)
    assert within_seconds(lambda: list(guarded.place.exported_exclusions(guarded.run)["who"]) == ["Mei"])


@pytest.mark.browser
def test_a_revoked_link_ends_open_sessions_at_their_next_rerun(guarded: Guarded, inside: Watched) -> None:
    """Mei's end: no page, no callback, no picture, no upload any more."""
    page = inside.page
    visit(page, f"{guarded.url}/threshold?run={guarded.run.id}")
    access.revoke(guarded.place.root, "Mei")
    inside.received.clear()
    written = len(guarded.place.exported_exclusions(guarded.run))
    page.get_by_role("button", name=re.compile("Write the list")).click()
    page.wait_for_timeout(1500)
    assert len(guarded.place.exported_exclusions(guarded.run)) == written
    assert b"".join(inside.received) == b""
    for method, path in (("GET", "/"), ("GET", "/media/x"), ("POST", "/uploads")):
        assert ask(guarded, method, path, Cookie=guarded.cookie_of(guarded.key), Origin=guarded.url)[0] == 403
    answer = page.reload()
    assert answer is not None
    assert answer.status == 403
    expect(page.get_by_text("open to people who have a link")).to_be_visible()


# ---- a provider to sign in with -------------------------------------------------------------------------------------------------


class Provider(BaseHTTPRequestHandler):
    """An OIDC provider that asks nobody for a password: whoever comes is `person`."""

    person: ClassVar[dict[str, Any]] = {}
    nonces: ClassVar[dict[str, str]] = {}
    key: ClassVar[Any] = None

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, value: Any, code: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        for name, told in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, told)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        here = f"http://{self.headers['Host']}"
        path, _, query = self.path.partition("?")
        asked = {name: values[0] for name, values in parse_qs(query).items()}
        if path == "/authorize":
            code = f"code{len(self.nonces)}"
            self.nonces[code] = asked["nonce"]
            self.answer({}, 302, Location=f"{asked['redirect_uri']}?code={code}&state={asked['state']}")
        elif path == "/jwks":
            self.answer({"keys": [self.key.as_dict(private=False)]})
        else:
            names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
            routes = dict(zip(names, ("/authorize", "/token", "/jwks"), strict=True))
            algorithms = {"id_token_signing_alg_values_supported": ["RS256"]}
            self.answer({"issuer": here, **{name: here + route for name, route in routes.items()}, **algorithms})

    def do_POST(self) -> None:
        from joserfc import jwt

        told = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        claims = {
            "iss": f"http://{self.headers['Host']}",
            "aud": "tracin",
            "sub": "1",
            "iat": int(time.time()),
            "exp": int(time.time()) + 60,
        }
        claims |= {"nonce": self.nonces[told["code"][0]], **self.person}
        token = jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.key)
        self.answer({"access_token": "a", "token_type": "Bearer", "expires_in": 60, "id_token": token})


@pytest.fixture
def provider() -> Iterator[str]:
    pytest.importorskip("authlib", reason="scripts/setup requirements-oidc.txt installs it")
    from joserfc.jwk import RSAKey

    Provider.key = RSAKey.generate_key(2048, parameters={"kid": "1"})
    with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()


@pytest.mark.browser
def test_listed_people_sign_in_with_a_provider_and_others_do_not_get_in(
    provider: str, page: Page, tmp_path: Path, workspace_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    lines = {"redirect_uri": f"{url}/oauth2callback", "cookie_secret": "s" * 40, "client_id": "tracin", "client_secret": "x"}
    lines["server_metadata_url"] = f"{provider}/.well-known/openid-configuration"
    (tmp_path / "secrets.toml").write_text("[auth]\n" + "".join(f'{name} = "{value}"\n' for name, value in lines.items()))
    told = {
        "TRACIN_ACCESS": "oidc",
        "TRACIN_OIDC_ALLOW": "mei@lab.example",
        "STREAMLIT_SECRETS_FILES": str(tmp_path / "secrets.toml"),
    }
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py"), f"--server.port={urlsplit(url).port}"]
    with (tmp_path / "log").open("wb") as log:
        environment = {**os.environ, **told, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        assert within_seconds(lambda: is_up(url), 60), (tmp_path / "log").read_text()
        for email, gets_in in (("other@lab.example", False), ("mei@lab.example", True)):
            Provider.person = {"email": email, "email_verified": True}
            answer = page.goto(url)
            assert answer is not None
            assert answer.status == 403
            page.get_by_role("link", name="Sign in").click()
            if gets_in:
                expect(page.get_by_text(f"Here as {email}")).to_be_visible(timeout=60_000)
            else:
                expect(page.get_by_text("open to people on its list")).to_be_visible()
    finally:
        stop_server(process)
