"""A newcomer's path in a real browser: fresh server, demo, scores, neighbours, threshold, list. Nothing is prepared."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import lab
import pytest
from conftest import ROOT, Server, idle, start_server, stop_server, visit
from playwright.sync_api import Locator, Page, expect

from tracin_core.records.workspace import Workspace, open_workspace

DEMO_MS = 400_000  # a busy machine; on a free one the demo takes about a minute

pytestmark = pytest.mark.browser


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workspace]:
    workspace = open_workspace(tmp_path / "workspace")
    yield workspace
    lab.stop_worker(workspace)


@pytest.fixture
def watched(page: Page) -> Iterator[Page]:
    """The browser, in which nothing may fail and nothing may leave this machine."""
    failures: list[str] = []
    outside: list[str] = []
    page.on("pageerror", lambda failure: failures.append(str(failure)))
    page.on("request", lambda request: outside.append(request.url) if "127.0.0.1" not in request.url else None)
    yield page
    assert not failures
    assert [address for address in outside if not address.startswith(("data:", "blob:"))] == []


def test_from_a_fresh_server_to_an_exclusion_list(
    watched: Page, serve: Callable[..., Server], place: Workspace, tmp_path: Path
) -> None:
    server = serve(place.root)
    start_demo(watched, server)
    run = place.run(str(place.runs()["id"][0]))
    assert run.simulated
    assert json.loads((run.recipe.checkpoints.folder / "training.json").read_text())["test_accuracy"] >= 0.85
    enter_by_the_grid(watched)
    choose_a_cell(watched)
    look_at_the_distribution(watched)
    look_at_neighbours(watched)
    drag_the_threshold(watched)
    listed = download_the_list(watched, tmp_path)
    expected = run.view().exclusions(**rule_in_view(watched))["id"].tolist()
    assert listed == expected
    pairs = run.train_pairs.set_index("id")
    assert set(pairs.loc[listed, ["id1", "id2"]].to_numpy().ravel()) <= set(run.samples["id"])
    train_with_the_list(watched)


def start_demo(page: Page, server: Server) -> None:
    """One button; the page may be reloaded and the server restarted meanwhile; the overview fills itself in."""
    visit(page, server.url)
    page.get_by_role("button", name="Try the demo").click()
    expect(page.get_by_text("The first run is being computed.")).to_be_visible()
    page.reload()
    expect(page.get_by_test_id("stSidebar").get_by_text("SIMULATED box 1000hz")).to_be_visible()
    expect(page.get_by_text("Inspect these first")).to_be_visible(timeout=DEMO_MS)
    idle(page)
    expect(page.get_by_test_id("stMain").get_by_text("SIMULATED").first).to_be_visible()
    expect(page.get_by_test_id("stMetric").first).to_contain_text("1,500")
    page.wait_for_function("() => [...document.querySelectorAll('audio')].every(sound => sound.duration > 0.2)")


def look_at_the_distribution(page: Page) -> None:
    go_to(page, "Distribution")
    expect(page.locator(".js-plotly-plot")).to_have_count(1)
    page.get_by_role("radio", name="Mean influence").or_(page.get_by_role("button", name="Mean influence")).click()
    idle(page)
    expect(page).to_have_url(re.compile("score=mean_influence"))
    expect(page.get_by_test_id("stAlert")).to_have_count(0)


def enter_by_the_grid(page: Page) -> None:
    """A click in the grid of the overview opens that cell on the page of angles."""
    click_in_grid(page.locator(".js-plotly-plot").nth(1).locator(".nsewdrag"), page, column=2, row=1)
    expect(page).to_have_url(re.compile("/angles.*cell=36-108"))
    expect(page.get_by_role("heading", name="Angles")).to_be_visible()
    idle(page)


def choose_a_cell(page: Page) -> None:
    """A click in the grid chooses the cell, and the picker beside it says so."""
    click_in_grid(page.locator(".js-plotly-plot .nsewdrag").first, page, column=1, row=1)
    idle(page)
    expect(page).to_have_url(re.compile("cell=36-72"))
    expect(page.get_by_text("Showing 20 of 100.")).to_be_visible()


def click_in_grid(grid: Locator, page: Page, *, column: int, row: int) -> None:
    box = grid.bounding_box()
    page.mouse.click(box["x"] + (column + 0.5) / 5 * box["width"], box["y"] + (row + 0.5) / 5 * box["height"])


def look_at_neighbours(page: Page) -> None:
    go_to(page, "Proponents and opponents")
    expect(page.locator(".js-plotly-plot")).to_have_count(5)
    picker = page.get_by_role("combobox", name="Test pair")
    picker.click()
    picker.fill("36° – 108°")
    page.get_by_role("option").first.click()
    idle(page)
    expect(page).to_have_url(re.compile(r"test=box_deg036_1000hz_\d+_box_deg108_1000hz_\d+"))
    page.get_by_text("Opponents", exact=True).click()
    idle(page)
    expect(page).to_have_url(re.compile("side=opponents"))
    expect(page.locator("audio")).to_have_count(4)


def drag_the_threshold(page: Page) -> None:
    """The count follows the mouse; the list follows when it is let go."""
    go_to(page, "Threshold")
    box = page.locator(".drag .scores").bounding_box()
    line = page.locator(".drag .line").bounding_box()
    middle = box["y"] + box["height"] / 2
    before = page.locator(".drag .count").inner_text()
    page.mouse.move(line["x"], middle)
    page.mouse.down()
    said = []
    for step in range(1, 6):
        page.mouse.move(line["x"] - step * 0.008 * box["width"], middle)
        said.append(page.locator(".drag .count").inner_text())
    assert len({before, *said}) > 2
    listed = page.get_by_test_id("stMetric").first.inner_text()
    page.mouse.up()
    idle(page)
    assert page.locator(".drag .count").inner_text() == said[-1]
    assert page.get_by_test_id("stMetric").first.inner_text() != listed
    count = re.search(r": (\d+) of 1,500 pairs", said[-1])
    expect(page.get_by_test_id("stMetric").nth(1)).to_contain_text(count[1])


def rule_in_view(page: Page) -> dict[str, object]:
    asked = dict(pair.split("=") for pair in page.url.split("?")[1].split("&"))
    return {
        "threshold": float(asked["T"]),
        "min_occurrences": int(asked["m"]),
        "max_exclusions": int(asked["most"]),
        "pair_mode": asked["mode"],
    }


def download_the_list(page: Page, folder: Path) -> list[str]:
    page.get_by_role("button", name=re.compile("Write the list")).click()
    idle(page)
    files = {}
    for label in ("TXT", "JSON with provenance"):
        with page.expect_download() as begun:
            page.get_by_role("button", name=label).click()
        files[label] = folder / begun.value.suggested_filename
        begun.value.save_as(files[label])
    text = files["TXT"].read_text(encoding="utf-8")
    assert "SIMULATED" in text
    listed = [line for line in text.splitlines() if not line.startswith("#")]
    provenance = json.loads(files["JSON with provenance"].read_text(encoding="utf-8"))
    assert [entry["id"] for entry in provenance["entries"]] == listed
    assert len(listed) > 0
    return listed


def train_with_the_list(page: Page) -> None:
    """The command on the page is one that works, as it stands, from the product's folder."""
    command = page.get_by_test_id("stCode").inner_text().strip().split()
    assert command[:4] == [".venv/bin/python", "-m", "tracin_core", "train"]
    done = subprocess.run([sys.executable, *command[1:], "--epochs", "1"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Checkpoints:" in done.stdout


def go_to(page: Page, name: str) -> None:
    page.get_by_test_id("stSidebarNavLink").filter(has_text=re.compile(f"^.*{name}$")).click()
    expect(page.get_by_role("heading", name=name).first).to_be_visible()
    idle(page)
    expect(page.get_by_test_id("stException")).to_have_count(0)


def test_a_job_is_cancelled_and_resumed_and_outlives_its_server(watched: Page, place: Workspace, tmp_path: Path) -> None:
    first, process = start_server(place.root, ROOT / "app.py", tmp_path / "first.log")
    visit(watched, f"{first.url}/")
    watched.get_by_role("button", name="Try the demo").click()
    idle(watched)
    go_to(watched, "Compute")
    watched.get_by_role("button", name="Cancel", exact=True).click()
    expect(watched.get_by_text("cancelled", exact=True)).to_be_visible()
    watched.get_by_role("button", name="Resume").click()
    expect(watched.get_by_role("button", name="Cancel", exact=True)).to_be_visible()
    stop_server(process)
    job = place.queue.all(1)[0]
    assert job.state in ("queued", "running")
    second, process = start_server(place.root, ROOT / "app.py", tmp_path / "second.log")
    try:
        visit(watched, f"{second.url}/compute")
        watched.get_by_role("button", name="Cancel", exact=True).click()
        expect(watched.get_by_text("cancelled", exact=True)).to_be_visible()
    finally:
        stop_server(process)
