"""What the shell says: lines for people on stdout, or one JSON document for machines; errors on stderr; jobs as they go."""

import json
import math
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:  # help and refusals of a wrong command do not wait for pandas and scipy
    from tracin_core.records.jobs import Job
    from tracin_core.records.workspace import Workspace

INTERRUPTED = 130
_listener = {"machine": False}


def listen(*, machine: bool) -> None:
    """Who listens from now on: a machine, which gets one JSON document on stdout and nothing else there, or people."""
    _listener["machine"] = machine


def is_machine() -> bool:
    return _listener["machine"]


def people() -> Console:
    """Where lines for people go: stdout. While a machine listens there, stderr, and only if somebody sits before it."""
    return Console(stderr=True, quiet=not sys.stderr.isatty()) if is_machine() else Console()


def say(line: str) -> None:
    """The line is before people as it is: not wrapped, for whoever pipes or copies it."""
    people().print(line, markup=False, highlight=False, soft_wrap=True)


def warn(line: str) -> None:
    """The line is on stderr as it is."""
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def say_next(*words: str | Path) -> None:
    """The command to go on with, ready to be pasted."""
    say(f"Next: {shlex.join([python_here(), '-m', 'tracin_core', *map(str, words)])}")


def python_here() -> str:
    """The Python that runs this, as a shell in this folder would name it."""
    near = os.path.relpath(sys.executable)
    return sys.executable if near.startswith(os.pardir) else near


def answer(document: dict[str, Any]) -> None:
    """The document is on stdout as JSON, if a machine listens; said once per command."""
    if is_machine():
        sys.stdout.write(json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        sys.stdout.flush()


def refuse(sentence: str, code: int) -> int:
    """The sentence is on stderr as an error, on one line, and in the document of a machine; returns the exit code."""
    sentence = " ".join(sentence.split())
    warn(f"Error: {sentence}")
    answer({"error": sentence, "exit_code": code})
    return code


def plain(value: Any) -> Any:
    """The value as JSON has it. What JSON has no number for is a text: "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


# ---- jobs -------------------------------------------------------------------------------------------------------------------


def watch(place: "Workspace", job: "Job") -> "Job":
    """The job once it is done, shown as it goes: a bar on a terminal, else a line per step. Ctrl-C ends the watching only."""
    try:
        with shown(job) as show:
            return place.queue.wait(job.id, on_change=show)
    except KeyboardInterrupt:
        warn(f"No longer watching: job {job.id} goes on in the background; the dashboard shows it (python -m tracin_core serve).")
        answer({"job": job.id, "state": place.queue.get(job.id).state, "watched": False})
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def shown(job: "Job") -> Iterator[Any]:
    console = people()
    if not console.is_terminal:
        last = [""]

        def line(now: "Job") -> None:
            if now.step and step_of(now) != last[0]:
                last[0] = step_of(now)
                say(f"{job.title}: {last[0]}")

        yield line
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(job.title, total=1.0)
        yield lambda now: bar.update(task, completed=now.fraction, description=f"{job.title}: {step_of(now)}")


def step_of(job: "Job") -> str:
    """What the job does now, and where it follows a training, the run that holds what there is so far."""
    so_far = f" (run {job.run_id} so far)" if "quiet_seconds" in job.request and job.run_id else ""
    return f"{job.step or job.state}{so_far}"


# ---- words ------------------------------------------------------------------------------------------------------------------


def size(count: int) -> str:
    """So many bytes, in words."""
    return f"{count / 2**20:.1f} MiB"


def simulated_mark(simulated: bool) -> str:
    return " [SIMULATED data]" if simulated else ""


def in_columns(rows: list[dict[Any, Any]]) -> list[str]:
    """The rows as lines of text under their names, numbers to the right."""
    names = list(rows[0])
    cells = [names, *([f"{row[name]:g}" if isinstance(row[name], float) else str(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(names))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
