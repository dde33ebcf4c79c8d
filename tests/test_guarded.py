"""A server that asks who comes, seen from outside and in a real browser: links, the policy, headers, paths and names."""

import re
from pathlib import Path

import pytest
from conftest import ROOT, idle, visit
from guarded import CLOSED, Guarded, Watched, ask, within_seconds
from playwright.sync_api import Browser, expect

from pages.shared import frame, server
from tracin_core.records import access
from tracin_core.records.jobs import JobQueue
from tracin_core.records.workspace import open_workspace


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
