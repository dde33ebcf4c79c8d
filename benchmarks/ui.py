"""How the dashboard feels, in Chromium: first content, pages, the slider, for 441 and 100,000 training pairs. One line of JSON.

    python benchmarks/ui.py [--takes 82] [--repeats 7]

The runs are of SIMULATED recordings under rankers with random weights: what is timed does not depend on what a model has learnt. The line
is dragged with the mouse and let go; from then the time runs until the server's script has ended and the page has painted twice. That no
request leaves the browser while it is dragged is kept by tests/test_drag.py. Exit code 1 where a median is beyond its limit.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests")]

LIMITS = {"first_content": 3.0, "page_switch": 1.0, "slider": 0.4, "web_mib": 300.0}
PAGES = ("distribution", "angles", "neighbours", "threshold", "compare", "findings")
PAINTED = """async () => {
    const app = document.querySelector('[data-testid=stApp]');
    const settled = () =>
        app.getAttribute('data-test-script-state') === 'notRunning' && !document.querySelector('[data-testid=stSkeleton]');
    while (!settled()) await new Promise(requestAnimationFrame);
    await new Promise(requestAnimationFrame); await new Promise(requestAnimationFrame);
}"""


THRESHOLD = "() => document.querySelector('[data-testid=stNumberInput] input[aria-label=Threshold]').value"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--takes", type=int, default=82, help="training takes of each of 6 angles in the large run")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    from common import report, tell

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name, takes in (("small", 5), ("large", options.takes)):
            place, run_id, pairs = made(Path(folder) / name, takes)
            tell(f"{name}: {pairs} training pairs are ready")
            found[name] = {"train_pairs": pairs, **measured(place, run_id, options.repeats, tell)}
    beyond = [f"{name}.{what}" for name, told in found.items() for what, limit in LIMITS.items() if told[what] > limit]
    report("ui", packages=("streamlit", "plotly", "playwright"), data="SIMULATED", limits=LIMITS, beyond=beyond, **found)
    return 1 if beyond else 0


def made(root: Path, takes: int) -> tuple[Path, str, int]:
    """A workspace with one run of so many training takes per angle; its path, the run's id, and how many training pairs it has."""
    import torch

    from tracin_core.data.simulated import simulate_recordings
    from tracin_core.engine.models import build_model
    from tracin_core.recipe import RankerModel, Recipe, SplitSection
    from tracin_core.records.runs import Run
    from tracin_core.records.workspace import open_workspace

    place = open_workspace(root)
    split = SplitSection(train=takes, validation=2, test=1)
    recordings, checkpoints = place.root / "recordings" / "timed", place.root / "trainings" / "timed"
    simulate_recordings(recordings, material="box", frequency="1000hz", takes=takes + 3, split=split)
    checkpoints.mkdir(parents=True)
    for epoch in (1, 2, 3):
        torch.manual_seed(epoch)
        state = build_model(RankerModel()).state_dict()
        told = {"epoch": epoch, "model_state_dict": state, "args": {"learning_rate": 0.01, "margin": 1.0, "loss_type": "standard"}}
        torch.save(told, checkpoints / f"model_epoch_{epoch}.pt")
    data = {"root": recordings, "material": "box", "frequency": "1000hz"}
    recipe = {"name": "timed", "simulated": True, "data": data, "split": split.model_dump(), "checkpoints": {"folder": checkpoints}}
    run = place.compute(Recipe.from_dict(recipe))
    assert isinstance(run, Run)
    return place.root, run.id, len(run.train_pairs)


def measured(place: Path, run_id: str, repeats: int, tell: Any) -> dict[str, Any]:
    """Medians over this many repetitions, each on a server and in a browser context of its own."""
    from conftest import CHROMIUM_ARGUMENTS, ROOT, start_server, stop_server
    from playwright.sync_api import sync_playwright

    told: dict[str, list[float]] = {"first_content": [], "page_switch": [], "slider": [], "web_mib": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM_ARGUMENTS)
        for turn in range(repeats):
            server, process = start_server(place, ROOT / "app.py", place / f"server-{turn}.log")
            try:
                page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
                page.set_default_timeout(120_000)
                walk(page, server.url, run_id, told)
                told["web_mib"].append(psutil.Process(process.pid).memory_info().rss / 2**20)
            finally:
                stop_server(process)
            tell(f"turn {turn + 1} of {repeats}: " + ", ".join(f"{name} {taken[-1]:.2f}" for name, taken in told.items()))
        browser.close()
    medians = {name: statistics.median(taken) for name, taken in told.items()}
    return {**medians, "web_mib": max(told["web_mib"]), "longest": {name: max(taken) for name, taken in told.items()}}


def walk(page: Any, url: str, run_id: str, told: dict[str, list[float]]) -> None:
    """First content, every page once to import what it needs and once to be timed, and three steps of the slider."""
    told["first_content"].append(seconds(lambda: content(page, f"{url}/?run={run_id}")))
    page.evaluate(PAINTED)
    for timed in (False, True):
        for name in PAGES:
            taken = seconds(lambda name=name: opened(page, name))
            if timed:
                told["page_switch"].append(taken)
    opened(page, "threshold")
    told["slider"] += [released(page, share) for share in (0.2, 0.25, 0.3)]


def opened(page: Any, name: str) -> None:
    """The page is on the screen, after a click in the list of pages."""
    page.locator(f"[data-testid=stSidebarNavLink][href*='{name}']").click()
    page.wait_for_timeout(50)  # a click takes a moment to reach the server
    page.evaluate(PAINTED)


def released(page: Any, share: float) -> float:
    """Seconds from letting the line go at this share of the axis until the server has answered and everything is painted anew."""
    box = page.locator(".drag .scores").bounding_box()
    before, height = page.evaluate(THRESHOLD), box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.5 * box["width"], height)
    page.mouse.down()
    page.mouse.move(box["x"] + share * box["width"], height, steps=5)
    started = time.perf_counter()
    page.mouse.up()
    page.wait_for_function(f"before => ({THRESHOLD})() !== before", arg=before)
    page.evaluate(PAINTED)
    return time.perf_counter() - started


def content(page: Any, url: str) -> None:
    """The first figure of the run is on the screen."""
    page.goto(url)
    page.locator("[data-testid=stMetricValue]").first.wait_for()


def seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
