"""The same verbs for the shell. Long work runs in the workspace's worker process; this only asks for it and watches.

Exit codes: 0 done, also when nothing was found; 1 the work failed; 2 the command was wrong.
"""

import ipaddress
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pandas as pd
import typer
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from tracin_core.errors import InputError, NotFoundError, RecipeError, TracInError
from tracin_core.recipe import LossName, Recipe
from tracin_core.records.jobs import Job
from tracin_core.records.runs import Run
from tracin_core.records.workspace import Workspace, open_workspace

app = typer.Typer(
    name="tracin",
    help="Exact influence of training examples, computed once and cached.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console()
PROJECT = Path(__file__).resolve().parents[1]
PairMode = Literal["ranking_pair", "full_pair", "sample"]
LOSS_TYPES: dict[str, str] = {"standard": "margin", **{name: name for name in get_args(LossName)}}

WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", envvar="TRACIN_WORKSPACE", help="Directory of runs, kernels and exports.", show_default=True)
]
RunOption = Annotated[str | None, typer.Option("--run", help="Id of a finished run; default: the newest.", show_default=False)]
MaterialOption = Annotated[str, typer.Option(help="Material of the recordings, as in their file names.")]
FrequencyOption = Annotated[str, typer.Option(help="500hz, 1000hz, 3000hz, ... or all.")]


def main() -> None:
    """Runs the command; a foreseen failure is one sentence on stderr."""
    try:
        app()
    except TracInError as failure:
        Console(stderr=True, soft_wrap=True).print(f"Error: {failure}", markup=False, highlight=False)
        sys.exit(1)


@app.command()
def demo(
    workspace: WorkspaceOption = Path("workspace"),
    material: Annotated[str, typer.Option(help="box, plastic or metal.")] = "box",
    frequency: Annotated[str, typer.Option(help="500hz, 1000hz or 3000hz.")] = "1000hz",
    wait: Annotated[bool, typer.Option("--wait/--background", help="Watch it, or let it run and return.")] = True,
) -> None:
    """Make SIMULATED recordings with planted faults, train a ranker on them and analyse it.

    Example: python -m tracin_core demo --material box --frequency 1000hz
    """
    place = open_workspace(workspace)
    job = place.start_demo(material, frequency)
    if not wait:
        console.print(f"Job {job.id} runs in the background.")
        return
    job = watch(place, job)
    summarise(place.run(str((job.result or {})["run_id"])))


@app.command()
def compute_influence(
    material: Annotated[str | None, typer.Option(help="Material of the recordings.", show_default=False)] = None,
    frequency: Annotated[str | None, typer.Option(help="500hz, 1000hz, 3000hz, ... or all.", show_default=False)] = None,
    checkpoint_dir: Annotated[Path | None, typer.Option(help="Folder of checkpoints.", show_default=False)] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder that holds deg000, deg036, ...", show_default=False)] = None,
    checkpoint_prefix: Annotated[str, typer.Option(help="What file names begin with, before the epoch.")] = "model_epoch_",
    layout: Annotated[Literal["small", "large"], typer.Option(help="Ranker: 5,733 or 422,337 parameters.")] = "small",
    loss_type: Annotated[str | None, typer.Option(help="standard, ghm, ...; default: as recorded.", show_default=False)] = None,
    margin: Annotated[float | None, typer.Option(help="Default: as recorded.", show_default=False)] = None,
    recipe: Annotated[Path | None, typer.Option(help="analysis.toml, instead of all of the above.", show_default=False)] = None,
    workspace: WorkspaceOption = Path("workspace"),
) -> None:
    """Compute every kernel of a folder of checkpoints, and show what the scores look like.

    Example: python -m tracin_core compute-influence --material plastic --frequency 500hz --data-root recordings --checkpoint-dir
    checkpoints/plastic_500hz_standard
    """
    if recipe is not None:
        chosen = Recipe.from_toml(recipe)
    else:
        needed = {"--material": material, "--frequency": frequency, "--checkpoint-dir": checkpoint_dir, "--data-root": data_root}
        absent = [name for name, value in needed.items() if value is None]
        if absent:
            raise typer.BadParameter(f"give {', '.join(absent)}, or --recipe analysis.toml")
        chosen = Recipe.from_dict(
            {
                "model": {"layout": layout},
                "data": {"root": data_root, "material": material, "frequency": frequency},
                "task": {"loss": loss_named(loss_type), "margin": margin},
                "checkpoints": {"folder": checkpoint_dir, "prefix": checkpoint_prefix},
            }
        )
    place = open_workspace(workspace)
    started = place.compute(chosen, wait=False)
    if isinstance(started, Job):
        started = place.run(str(watch(place, started).run_id))
    summarise(started)


@app.command()
def generate_exclusions(
    output_file: Annotated[Path, typer.Option(help="The list to write.")],
    run: RunOption = None,
    threshold: Annotated[float, typer.Option(help="Influence strictly below this is harm; at most 0.")] = -5.0,
    min_occurrences: Annotated[int, typer.Option(help="On how many test pairs a train pair must do harm.")] = 3,
    max_exclusions: Annotated[int, typer.Option(help="How many entries are listed at most.")] = 50,
    pair_mode: Annotated[
        PairMode, typer.Option(help="Pairs themselves, both their samples, or samples with all pairs.")
    ] = "ranking_pair",
    workspace: WorkspaceOption = Path("workspace"),
) -> None:
    """List the training pairs or samples that harm the test pairs, in the existing TXT format with JSON provenance beside it.

    Example: python -m tracin_core generate-exclusions --threshold -5 --min-occurrences 3 --output-file exclusions.txt
    """
    place = open_workspace(workspace)
    chosen_run = the_run(place, run)
    rule: dict[str, Any] = {
        "threshold": threshold,
        "min_occurrences": min_occurrences,
        "max_exclusions": max_exclusions,
        "pair_mode": pair_mode,
    }
    chosen = chosen_run.view().exclusions(**rule)
    text, provenance = place.export_exclusions(chosen_run, chosen, rule)
    output_file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(text, output_file)
    shutil.copyfile(provenance, output_file.with_suffix(".provenance.json"))
    kind = "pairs" if pair_mode == "ranking_pair" else "samples"
    console.print(f"{len(chosen)} {kind} listed in {output_file}{' (nothing is below the threshold)' if chosen.empty else ''}")
    console.print(
        f"Next: python -m tracin_core train --workspace {workspace} --run {chosen_run.id} --exclusions-file {output_file}"
    )


@app.command()
def train(
    run: RunOption = None,
    material: Annotated[str | None, typer.Option(help="Default: as in the run.", show_default=False)] = None,
    frequency: Annotated[str | None, typer.Option(help="Default: as in the run.", show_default=False)] = None,
    data_root: Annotated[Path | None, typer.Option(help="Default: as in the run.", show_default=False)] = None,
    exclusions_file: Annotated[
        Path | None, typer.Option(help="Samples or pairs to leave out of training.", show_default=False)
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Where checkpoints go; default: in the workspace.", show_default=False)
    ] = None,
    loss_type: Annotated[str | None, typer.Option(help="standard, ghm, ...; default: standard.", show_default=False)] = None,
    margin: Annotated[float | None, typer.Option(show_default=False)] = None,
    epochs: Annotated[int | None, typer.Option(show_default=False)] = None,
    learning_rate: Annotated[float | None, typer.Option(show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(show_default=False)] = None,
    workspace: WorkspaceOption = Path("workspace"),
) -> None:
    """Train a ranker, with an exclusion list if one is given: the split stays as it was, only the training side shrinks.

    Example: python -m tracin_core train --run 1a2b3c4d5e6f --exclusions-file exclusions.txt
    """
    place = open_workspace(workspace)
    data: dict[str, Any] = {"root": data_root, "material": material, "frequency": frequency}
    if any(value is None for value in data.values()):
        known = the_run(place, run).recipe.data
        data = {name: value if value is not None else getattr(known, name) for name, value in data.items()}
    data = {name: str(value) for name, value in data.items()}
    given = {"loss": loss_named(loss_type), "margin": margin, "epochs": epochs, "learning_rate": learning_rate, "seed": seed}
    if exclusions_file is not None and not exclusions_file.is_file():
        raise InputError(f"The exclusion list '{exclusions_file}' is not a file; check its path.")
    job = place.start_training(
        data=data,
        settings={name: value for name, value in given.items() if value is not None},
        folder=output_dir,
        exclusions_file=exclusions_file,
    )
    result = watch(place, job).result or {}
    console.print(f"Checkpoints: {result['folder']}")
    for line in result.get("exclusions", {}).get("report", []):
        console.print(line, markup=False)
    console.print(f"Pair accuracy on the test side: {result['test_accuracy']:.3f} ({result['train_pairs']} training pairs)")


@app.command()
def serve(
    workspace: WorkspaceOption = Path("workspace"),
    host: Annotated[str, typer.Option(help="A loopback address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TRACIN_PORT", min=1, max=65535)] = 8501,
    with_demo: Annotated[bool, typer.Option("--with-demo", help="Start computing the demo if there is no run yet.")] = False,
) -> None:
    """Start the dashboard on this machine.

    Example: python -m tracin_core serve --port 8501
    """
    if not is_loopback(host):
        raise InputError(
            f"The dashboard has no access control yet and does not listen on '{host}'; use 127.0.0.1, and reach it from elsewhere "
            f"through ssh -L {port}:127.0.0.1:{port}."
        )
    place = open_workspace(workspace)
    if with_demo and place.runs().empty:
        place.start_demo()
    os.environ["TRACIN_WORKSPACE"] = str(place.root)
    console.print(
        f"TracIn Studio: http://{host}:{port}   (workspace {place.root}; Ctrl-C ends it, computations go on)", soft_wrap=True
    )
    os.chdir(PROJECT)
    command = [sys.executable, "-m", "streamlit", "run", "app.py", f"--server.address={host}", f"--server.port={port}"]
    os.execv(sys.executable, command)


def is_loopback(host: str) -> bool:
    """The name or address reaches this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def loss_named(loss_type: str | None) -> str | None:
    """The loss behind the lab's name for it ('standard' is the margin loss)."""
    if loss_type is None:
        return None
    if loss_type not in LOSS_TYPES:
        raise RecipeError(f"There is no loss '{loss_type}'; choose from {', '.join(LOSS_TYPES)}.")
    return LOSS_TYPES[loss_type]


def the_run(place: Workspace, run_id: str | None) -> Run:
    """The named run, or the newest finished one."""
    if run_id is not None:
        return place.run(run_id)
    finished = place.runs().query("state == 'done'")
    if finished.empty:
        raise NotFoundError("There is no finished run in this workspace; start one with compute-influence, or with demo.")
    return place.run(str(finished["id"].iloc[0]))


def watch(place: Workspace, job: Job) -> Job:
    """The job once it is done, shown as it goes: a bar on a terminal, else a line per step."""
    with shown(job) as show:
        return place.queue.wait(job.id, on_change=show)


@contextmanager
def shown(job: Job) -> Iterator[Any]:
    if not console.is_terminal:
        last = [""]

        def line(now: Job) -> None:
            if now.step and now.step != last[0]:
                last[0] = now.step
                console.print(f"{job.title}: {now.step}")

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(job.title, total=1.0)
        yield lambda now: bar.update(task, completed=now.fraction, description=f"{job.title}: {now.step or now.state}")


def summarise(run: Run) -> None:
    """What a run holds, on a screenful."""
    view = run.view()
    own = pd.Series(view.self_influence(), index=run.train_pairs["id"])
    marker = " [SIMULATED data]" if run.simulated else ""
    console.print(f"Run {run.id}: {run.name}{marker}", markup=False)
    console.print(
        f"{len(run.checkpoints)} checkpoints, loss {run.loss.describe()}, summed over epochs {run.summed_epochs}", markup=False
    )
    console.print(
        f"{len(run.train_pairs)} train pairs x {len(run.test_pairs)} test pairs, {int(view.dead_tests.sum())} of the latter dead"
    )
    for _, check in run.health().iterrows():
        console.print(f"{'ok  ' if check['passed'] else 'LOOK'} {check['check']}: {check['detail']}", markup=False, soft_wrap=True)
    console.print("Highest self-influence:")
    for pair, value in own.nlargest(5).items():
        console.print(f"  {value:12.4g}  {pair}", markup=False)
    console.print(f"Next: python -m tracin_core generate-exclusions --run {run.id} --output-file exclusions.txt", soft_wrap=True)
