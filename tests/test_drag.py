"""The threshold follows the hand in a real browser, and the server hears of it once."""

import re
from collections.abc import Iterator
from pathlib import Path

import lab
import numpy as np
import pytest
from conftest import ROOT, idle, start_server, stop_server, visit
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
    see(page, url)
    yield page
    assert not failures


def see(page: Page, url: str) -> None:
    """The page is there, and the component has drawn itself, which comes after the page."""
    visit(page, url)
    expect(page.locator(".drag td.cell")).to_have_count(3)
    expect(page.locator(".drag rect")).to_have_count(50)


def said(page: Page) -> tuple[float, int, int]:
    """Threshold, pairs and samples, as the sentence above the bars says them."""
    words = page.locator(".drag .count").inner_text()
    numbers = re.fullmatch(r"(?:Below|Above) (\S+): (\d+) of 60 pairs \([\d.]+%\), (\d+) recordings", words)
    assert numbers, words
    return float(numbers[1]), int(numbers[2]), int(numbers[3])


def is_exact(page: Page) -> bool:
    threshold, pairs, samples = said(page)
    return pairs == int((threshold > SCORES).sum()) and samples == 2 * pairs


def cells_said(page: Page) -> list[tuple[int, int]]:
    """Lost and all, of each cell of the grid, row by row."""
    told = page.locator(".drag td.cell").all_inner_texts()
    return [tuple(int(number) for number in text.removeprefix("\u26a0 ").split("/")) for text in told]  # type: ignore[misc]


def cells_are_exact(page: Page) -> bool:
    """By hand: every third pair is of the same cell."""
    threshold = said(page)[0]
    lost = [int((scores < threshold).sum()) for scores in (SCORES[0::3], SCORES[1::3], SCORES[2::3])]
    half = page.locator(".drag td.cell.half").count()
    return cells_said(page) == [(count, 20) for count in lost] and half == sum(2 * count > 20 for count in lost)


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
    requests: list[str] = []
    drawn.on("request", lambda request: requests.append(request.url))
    seen, cells = [], []
    for share in np.linspace(0.75, 0.2, 12):
        move_to(drawn, share)
        assert is_exact(drawn)
        assert cells_are_exact(drawn)
        seen.append(said(drawn)[1])
        cells.append(cells_said(drawn))
    assert len({str(told) for told in cells}) > 8
    assert seen == sorted(seen, reverse=True)
    assert seen[0] - seen[-1] > 20
    drawn.wait_for_timeout(500)
    assert requests == []
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


def test_the_cells_are_a_table_with_the_worst_of_them_in_words(drawn: Page) -> None:
    table = drawn.get_by_role("table")
    assert table.get_by_role("columnheader").all_inner_texts() == ["36\u00b0", "72\u00b0"]
    assert table.get_by_role("rowheader").all_inner_texts() == ["0\u00b0", "36\u00b0"]
    assert cells_are_exact(drawn)
    lost = [told for told, _ in cells_said(drawn)]
    names = ["0° \u2013 36°", "0° \u2013 72°", "36° \u2013 72°"]
    worst = names[lost.index(max(lost))]
    expect(drawn.locator(".drag .worst")).to_contain_text(f"{worst}, {max(lost)} of 20.")


def test_above_a_threshold_everything_is_mirrored(page: Page, url: str) -> None:
    """The scores' sizes with the rule that chooses above: the same counts at the mirrored threshold."""
    see(page, f"{url}/?above=1")
    assert said(page) == (10.0, 40, 80)
    expect(page.locator(".drag rect.excluded")).to_have_count(40)
    slider = page.get_by_role("slider", name="Threshold")
    for _ in range(4):
        slider.press("ArrowRight")
    threshold, pairs, samples = said(page)
    assert (pairs, samples) == (int((threshold < -SCORES).sum()), 2 * pairs)
    assert cells_said(page) == [(int((-SCORES[place::3] > threshold).sum()), 20) for place in range(3)]
    expect(server_said(page)).to_have_text(f"runs: 2, threshold: {threshold:g}")


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


def test_a_click_on_the_surface_sets_threshold_and_occurrences(page: Page, studio: lab.Studio, tmp_path: Path) -> None:
    """On the page itself: what is read under the mouse is what the fields and the mark say after the click."""
    server, process = start_server(studio.place.root, ROOT / "app.py", tmp_path / "server.log")
    try:
        visit(page, f"{server.url}/threshold?run={studio.run.id}&m=2")
        expect(page.locator(".surface")).to_have_count(0)  # not counted before somebody asks for it
        page.get_by_text("Threshold × minimum occurrences").click()
        idle(page)
        field = page.locator(".surface .field")
        box = field.bounding_box()
        field.hover(position={"x": 0.9 * box["width"], "y": box["height"] - 4})
        read = re.fullmatch(r"1 occurrences × (\S+) → ([\d,]+) meet the rule", page.locator(".surface .reading").inner_text())
        assert read, page.locator(".surface .reading").inner_text()
        field.click(position={"x": 0.9 * box["width"], "y": box["height"] - 4})
        idle(page)
        expect(page.get_by_role("spinbutton", name="Minimum occurrences")).to_have_value("1")
        assert float(page.get_by_role("spinbutton", name="Threshold").input_value()) == pytest.approx(float(read[1]), rel=0.01)
        listed = re.search(r"verdicts\): 1: ([\d,]+);", page.locator(".surface .field").get_attribute("aria-label") or "")
        assert listed
        assert listed[1] == read[2]
    finally:
        stop_server(process)
