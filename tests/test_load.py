"""Twenty people at once: each opens a page or moves the threshold every five seconds. Run by `make test-load`.

The sessions are websockets that speak Streamlit's protocol. Twenty Chromiums would need more than the two cores that the server is to be
measured on, and would measure themselves; what the server does for a session is the same.
"""

import asyncio
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lab
import psutil
import pytest
from conftest import ROOT, start_server, stop_server
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.Element_pb2 import Element
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

SESSIONS, EVERY_SECONDS = 20, 5.0
MINUTES = 10 if os.environ.get("TRACIN_LONG") else 2
P95_SECONDS, WEB_MB = 1.0, 400
PAGES = ("", "distribution", "angles", "neighbours", "threshold", "threshold", "compute")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("TRACIN_LOAD"), reason="absolute figures: make test-load"),
]


@dataclass
class Figures:
    """What all sessions saw."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)


@pytest.fixture
def served(studio: lab.Studio, tmp_path: Path) -> Iterator[tuple[str, str, psutil.Process]]:
    """A dashboard over a small run: its address, the run, its process."""
    running, process = start_server(studio.place.root, ROOT / "app.py", tmp_path / "server.log")
    yield running.url, studio.run.id, psutil.Process(process.pid)
    stop_server(process)


class Person:
    """One session, which answers as a browser does: with the value of each widget on the page."""

    def __init__(self, line: ClientConnection, run_id: str, number: int) -> None:
        self.line, self.run_id, self.chance = line, run_id, random.Random(number)
        self.widgets: dict[str, WidgetState] = {}
        self.known: dict[str, WidgetState] = {}  # also of pages that were left

    async def act(self) -> list[str]:
        """Opens a page or moves the threshold, and waits until it is drawn; returns what went wrong."""
        page = self.chance.choice(PAGES)
        asked = BackMsg()
        asked.rerun_script.page_name = page
        asked.rerun_script.query_string = f"run={self.run_id}"
        if page == "threshold":
            asked.rerun_script.query_string += f"&T=-{self.chance.randint(1, 999) / 1000}"
        asked.rerun_script.context_info.locale = "en-US"
        asked.rerun_script.widget_states.widgets.extend(self.widgets.values())
        await self.line.send(asked.SerializeToString())
        self.widgets, wrong = {}, []
        while True:
            told = ForwardMsg.FromString(await asyncio.wait_for(self.line.recv(decode=False), 60))
            if told.WhichOneof("type") == "delta" and told.delta.WhichOneof("type") == "new_element":
                wrong += self.look_at(told.delta.new_element)
            if told.WhichOneof("type") == "script_finished":
                finished = told.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY
                return [f"{page or 'overview'}: {sentence}" for sentence in (wrong if finished else [*wrong, "not finished"])]

    def look_at(self, element: Element) -> list[str]:
        """What the element tells of an error; a widget's value is remembered."""
        kind = element.WhichOneof("type")
        shown = getattr(element, str(kind))
        if kind in VALUES:
            state = WidgetState(id=shown.id)
            VALUES[kind](shown, state)
            self.widgets[shown.id] = state if shown.set_value else self.known.get(shown.id, state)
            self.known[shown.id] = self.widgets[shown.id]
        if kind == "exception":
            return [shown.message]
        return [shown.body] if kind == "alert" and shown.format == shown.ERROR else []


def chosen_option(box: Any, state: WidgetState) -> None:
    value = box.raw_value if box.set_value else box.options[box.default] if box.options else ""
    state.string_value = value


def chosen_buttons(group: Any, state: WidgetState) -> None:
    values = group.raw_values if group.set_value else [group.options[place].content for place in group.default]
    state.string_array_value.data.extend(values)


def typed_number(field: Any, state: WidgetState) -> None:
    state.double_value = field.value if field.set_value else field.default


def typed_text(field: Any, state: WidgetState) -> None:
    state.string_value = field.value if field.set_value else field.default


VALUES: dict[str, Callable[[Any, WidgetState], None]] = {
    "selectbox": chosen_option,
    "button_group": chosen_buttons,
    "number_input": typed_number,
    "text_input": typed_text,
}


async def one_person(url: str, run_id: str, number: int, until: float, figures: Figures) -> None:
    """A session that opens at its own moment, and then acts on time whatever the answers take."""
    await asyncio.sleep(EVERY_SECONDS * number / SESSIONS)
    async with connect(
        f"{url.replace('http', 'ws', 1)}/_stcore/stream", subprotocols=[Subprotocol("streamlit")], max_size=None
    ) as line:
        person = Person(line, run_id, number)
        while time.monotonic() < until:
            begun = time.monotonic()
            figures.errors += await person.act()
            figures.seconds.append(time.monotonic() - begun)
            await asyncio.sleep(max(begun + EVERY_SECONDS - time.monotonic(), 0))


async def everybody(url: str, run_id: str, process: psutil.Process, figures: Figures) -> None:
    until = time.monotonic() + 60 * MINUTES
    people = [asyncio.create_task(one_person(url, run_id, number, until, figures)) for number in range(SESSIONS)]
    while not all(person.done() for person in people):
        figures.rss.append(process.memory_info().rss)
        await asyncio.sleep(0.5)
    figures.errors += [repr(person.exception()) for person in people if person.exception()]


def test_twenty_people_at_once(served: tuple[str, str, psutil.Process]) -> None:
    """No error, 95 % of the answers within a second, and at most 400 MB in the web process."""
    url, run_id, process = served
    figures, load = Figures(), os.getloadavg()[0]
    asyncio.run(everybody(url, run_id, process, figures))
    p50, p95 = statistics.median(figures.seconds), statistics.quantiles(figures.seconds, n=20)[-1]
    print(
        f"\n{SESSIONS} sessions, {MINUTES} minutes, {len(figures.seconds)} actions: {len(figures.errors)} errors; "
        f"p50 {p50:.3f} s, p95 {p95:.3f} s, longest {max(figures.seconds):.3f} s; "
        f"web process {figures.rss[0] / 2**20:.0f} MB at first, {max(figures.rss) / 2**20:.0f} MB at most; "
        f"load of the machine {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    )
    assert figures.errors == []
    assert max(figures.rss) <= WEB_MB * 2**20
    assert p95 <= P95_SECONDS
