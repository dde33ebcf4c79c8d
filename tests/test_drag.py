"""The threshold follows the hand in a real browser, and the server hears of it once."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import idle, start_server, stop_server, visit
from playwright.sync_api import Locator, Page, expect

SCRIPT = Path(__file__).parent / "scripts" / "drag.py"
SCORES = np.concatenate([np.arange(-50.0, 0.0), np.zeros(10)])

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("drag")
    server, process = start_server(folder, SCRIPT, folder / "server.log")
    yield server.url
    stop_server(process)


@pytest.fixture
def drawn(page: Page, url: str) -> Iterator[Page]:
    """The component alone, at T = -10, for a new visitor."""
    failures: list[str] = []
    page.on("pageerror", lambda failure: failures.append(str(failure)))
    visit(page, url)
    yield page
    assert not failures


def said(page: Page) -> tuple[float, int, int]:
    """Threshold, pairs and samples, as the sentence above the bars says them."""
    words = page.locator(".drag .count").inner_text()
    numbers = re.fullmatch(r"Below (\S+): (\d+) of 60 pairs \([\d.]+ %\), (\d+) recordings", words)
    assert numbers, words
    return float(numbers[1]), int(numbers[2]), int(numbers[3])


def is_exact(page: Page) -> bool:
    threshold, pairs, samples = said(page)
    return pairs == int((threshold > SCORES).sum()) and samples == 2 * pairs


def server_said(page: Page) -> Locator:
    return page.get_by_text(re.compile(r"^runs: \d+, threshold: "))


def move_to(page: Page, share: float) -> None:
    box = page.locator(".drag .scores").bounding_box()
    page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)


def test_dragging_counts_without_the_server_which_hears_of_it_once(drawn: Page) -> None:
    expect(server_said(drawn)).to_have_text("runs: 1, threshold: -10")
    assert said(drawn) == (-10.0, 40, 80)
    move_to(drawn, 0.8)
    drawn.mouse.down()
    seen = []
    for share in np.linspace(0.75, 0.2, 12):
        move_to(drawn, share)
        assert is_exact(drawn)
        seen.append(said(drawn)[1])
    assert seen == sorted(seen, reverse=True)
    assert seen[0] - seen[-1] > 20
    drawn.wait_for_timeout(500)
    expect(server_said(drawn)).to_have_text("runs: 1, threshold: -10")

    let_go = said(drawn)
    drawn.mouse.up()
    expect(server_said(drawn)).to_have_text(f"runs: 2, threshold: {let_go[0]:g}")
    idle(drawn)
    assert said(drawn) == let_go
    expect(drawn).to_have_url(re.compile(rf"T={let_go[0]:g}"))


def test_a_held_key_is_one_move(drawn: Page) -> None:
    slider = drawn.get_by_role("slider", name="Threshold")
    slider.focus()
    for _ in range(5):
        slider.press("ArrowLeft")
    assert is_exact(drawn)
    assert said(drawn)[0] == -12.5
    expect(slider).to_have_attribute("aria-valuetext", drawn.locator(".drag .count").inner_text())
    expect(server_said(drawn)).to_have_text("runs: 2, threshold: -12.5")
    idle(drawn)
    assert said(drawn) == (-12.5, 38, 76)


def test_the_number_and_the_line_are_one_threshold(drawn: Page) -> None:
    """A typed threshold, also one between two steps, moves the line; the line can then go back to where it was."""
    slider = drawn.get_by_role("slider", name="Threshold")
    slider.press("ArrowLeft")
    expect(server_said(drawn)).to_have_text("runs: 2, threshold: -10.5")
    drawn.get_by_label("T", exact=True).fill("-20.25")
    drawn.get_by_label("T", exact=True).press("Enter")
    expect(server_said(drawn)).to_have_text("runs: 3, threshold: -20.25")
    idle(drawn)
    assert said(drawn) == (-20.25, 30, 60)
    drawn.get_by_label("T", exact=True).fill("-11")
    drawn.get_by_label("T", exact=True).press("Enter")
    idle(drawn)
    slider.press("ArrowRight")
    expect(server_said(drawn)).to_have_text("runs: 5, threshold: -10.5")


def test_bars_left_of_the_line_are_the_excluded_ones_and_words_stand_out(drawn: Page) -> None:
    """The bars are the scores counted: 50 of one score each, 40 of them below -10; the zeros stand apart. On light and on dark."""
    for scheme in ("light", "dark"):
        drawn.emulate_media(color_scheme=scheme)
        visit(drawn, drawn.url)
        expect(drawn.locator(".drag rect")).to_have_count(50)
        expect(drawn.locator(".drag rect.excluded")).to_have_count(40)
        expect(drawn.locator(".drag .zeros-count")).to_have_text("10")
        ink = drawn.locator(".drag").evaluate("drag => getComputedStyle(drag).color")
        paper = drawn.get_by_test_id("stApp").evaluate("app => getComputedStyle(app).backgroundColor")
        assert contrast(ink, paper) > 7


def contrast(*colours: str) -> float:
    """The WCAG 2 contrast ratio of two CSS colours."""
    lights = []
    for colour in colours:
        channels = np.array([float(number) for number in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(lights) + 0.05) / (min(lights) + 0.05)
