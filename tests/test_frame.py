"""The frame is around every page, whatever the address, also on a freshly started server; links keep their meaning."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, idle, start_server, stop_server, visit
from playwright.sync_api import Page, expect
from streamlit.testing.v1 import AppTest

from pages.shared import frame, server

PAGE = """
import streamlit as st
from pages.shared import frame
from tracin_core.errors import ViewError

def fail():
    raise RuntimeError("secret detail")

with frame.page("page.{name}"):
    st.write("body of {name}")
    if st.button("expected"):
        raise ViewError("The [margin](x) is 3; choose another.")
    st.button("unexpected", on_click=fail)
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real frame around small pages, over an empty workspace, on a fresh server."""
    folder = tmp_path_factory.mktemp("frame")
    app, workspace = folder / "app", folder / "workspace"
    workspace.mkdir()
    shutil.copytree(ROOT / "pages" / "shared", app / "pages" / "shared")
    for name in ("app.py", ".streamlit/config.toml"):
        (app / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, app / name)
    for pages in frame.SECTIONS.values():
        for name in pages:
            (app / "pages" / f"{name}.py").write_text(PAGE.format(name=name), encoding="utf-8")
    running, process = start_server(workspace, app / "app.py", folder / "server.log")
    yield running.url
    stop_server(process)


@pytest.mark.browser
def test_a_fresh_server_answers_a_deep_link_in_the_frame(page: Page, url: str) -> None:
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url) if "127.0.0.1" not in request.url else None)
    visit(page, f"{url}/threshold")
    expect(page.get_by_text("body of threshold")).to_be_visible()
    expect(page.get_by_test_id("stSidebarNavLink")).to_have_count(sum(map(len, frame.SECTIONS.values())))

    page.get_by_text("繁體中文").click()
    expect(page.get_by_role("heading", name="閾值")).to_be_visible()
    expect(page).to_have_url(f"{url}/threshold?lang=zh-TW")
    expect(page.locator("html")).to_have_attribute("lang", "zh-TW")
    page.get_by_test_id("stSidebarNavLink").filter(has_text="角度").click()
    expect(page.get_by_text("body of angles")).to_be_visible()
    expect(page).to_have_url(f"{url}/angles?lang=zh-TW")
    page.go_back()
    expect(page.get_by_text("body of threshold")).to_be_visible()
    assert [address for address in outside if not address.startswith(("data:", "blob:"))] == []


@pytest.mark.browser
def test_what_goes_wrong_is_told_without_its_innards(page: Page, url: str) -> None:
    visit(page, f"{url}/angles")
    page.get_by_role("button", name="expected", exact=True).click()
    expect(page.get_by_test_id("stAlert")).to_contain_text("The [margin](x) is 3; choose another.")
    visit(page, f"{url}/angles")
    page.get_by_role("button", name="unexpected").click()
    idle(page)
    expect(page.get_by_test_id("stAlert")).to_contain_text(re.compile(r"under the number [0-9a-f]{8}"))
    expect(page.get_by_text("secret detail")).to_have_count(0)


@pytest.mark.browser
def test_every_answer_carries_the_headers(page: Page, url: str) -> None:
    for path in ("/", "/healthz", "/_stcore/health"):
        answer = page.request.get(url + path)
        assert answer.ok
        assert {name: answer.headers.get(name.lower()) for name in server.HEADERS} == server.HEADERS
    assert page.request.get(f"{url}/healthz").json() == {"status": "ok"}


# ---- links ----------------------------------------------------------------------------------------------------------------------


def tied() -> None:
    import streamlit as st

    from pages.shared import session

    st.number_input("T", **session.linked("T", -5.0, valid=lambda value: value <= 0))
    st.selectbox("test", ["a", "b"], format_func=str.upper, **session.linked("test", "a", valid=["a", "b"]))
    st.text_input("quiet", **session.linked("quiet", "usual", quiet=True))


@pytest.fixture
def opened(workspace_path: Path) -> Callable[..., AppTest]:
    def open_(**parameters: str) -> AppTest:
        test = AppTest.from_function(tied)
        for name, value in parameters.items():
            test.query_params[name] = value
        return test.run()

    return open_


def address(test: AppTest) -> dict[str, str]:
    return {name: value if isinstance(value, str) else value[0] for name, value in test.query_params.items()}


def test_the_address_holds_defaults_as_plain_values(opened: Callable[..., AppTest]) -> None:
    assert address(opened()) == {"T": "-5", "test": "a"}


def test_a_link_says_what_is_shown(opened: Callable[..., AppTest]) -> None:
    test = opened(T="-7.25", test="b", quiet="odd")
    assert (test.number_input[0].value, test.selectbox[0].value, test.text_input[0].value) == (-7.25, "b", "odd")
    assert address(test) == {"T": "-7.25", "test": "b", "quiet": "odd"}
    assert not test.warning


def test_a_choice_is_written_to_the_address(opened: Callable[..., AppTest]) -> None:
    test = opened(T="-7.25")
    test.number_input[0].set_value(-3.0).run()
    test.selectbox[0].set_value("b").run()
    assert address(test) == {"T": "-3", "test": "b"}


@pytest.mark.parametrize(("name", "value"), [("T", "7"), ("T", "nan"), ("T", "-inf"), ("T", "x"), ("test", "c"), ("test", "B")])
def test_a_link_that_makes_no_sense_is_named(opened: Callable[..., AppTest], name: str, value: str) -> None:
    test = opened(**{name: value})
    assert (test.number_input[0].value, test.selectbox[0].value) == (-5.0, "a")
    assert f"{name} = " in test.warning[0].value
    assert not test.run().warning
