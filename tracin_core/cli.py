"""The same verbs for the shell. Long work runs in the workspace's worker process; this only asks for it and watches.

Exit codes: 0 done, also when nothing was found; 1 the work failed; 2 the command, or a file it names, was wrong and nothing was
started; 130 Ctrl-C.
"""

import json
import math
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from tracin_core.errors import InputError, MachineError, NotFoundError, RecipeError, TracInError, WorkspaceError
from tracin_core.recipe import LossName, RankerModel, Recipe, is_loopback

if TYPE_CHECKING:  # help and refusals of a wrong command do not wait for pandas and scipy
    from tracin_core.records.jobs import Job
    from tracin_core.records.runs import Run
    from tracin_core.records.workspace import Workspace

app = typer.Typer(
    name="tracin",
    help="Exact influence of training examples, computed once and cached.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console()
PROJECT = Path(__file__).resolve().parents[1]
PairMode = Literal["ranking_pair", "full_pair", "sample"]
INTERRUPTED = 130
LOSS_TYPES: dict[str, str] = {"standard": "margin", **{name: name for name in get_args(LossName)}}

WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", envvar="TRACIN_WORKSPACE", help="Directory of runs, kernels and exports.", show_default=True)
]
RunOption = Annotated[str | None, typer.Option("--run", help="Id of a finished run; default: the newest.", show_default=False)]


def main() -> None:
    """Runs the command; a foreseen failure is one sentence on stderr."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.TyperException as failure:
        code = refuse(f"{failure.format_message().rstrip('.')} (add --help to see what the command takes).", 2)
    except (InputError, WorkspaceError) as failure:
        code = refuse(str(failure), 2)
    except TracInError as failure:
        code = refuse(str(failure), 1)
    except OSError as failure:
        code = refuse(f"{failure}; check that the path exists and that you may write there.", 1)
    sys.exit(code)


def refuse(sentence: str, code: int) -> int:
    """The sentence is on stderr as an error, on one line; returns the exit code."""
    warn(f"Error: {' '.join(sentence.split())}")
    return code


def warn(line: str) -> None:
    """The line is on stderr as it is."""
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """The line is on stdout as it is: not wrapped, for whoever pipes or copies it."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def say_next(*words: str | Path) -> None:
    """The command to go on with, ready to be pasted."""
    say(f"Next: {shlex.join(['python', '-m', 'tracin_core', *map(str, words)])}")


def finite(value: float | None) -> float | None:
    """The number, which is neither infinite nor NaN."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


@app.command()
def demo(
    workspace: WorkspaceOption = Path("workspace"),
    material: Annotated[Literal["box", "plastic", "metal"], typer.Option(help="What the simulated enclosure is made of.")] = "box",
    frequency: Annotated[Literal["500hz", "1000hz", "3000hz"], typer.Option(help="Of the simulated tone.")] = "1000hz",
    digits: Annotated[
        bool, typer.Option("--digits", help="Real MNIST digits, some mislabelled, and a classifier instead.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--background", help="Watch it, or let it run and return.")] = True,
) -> None:
    """Make SIMULATED recordings with planted faults, train a ranker on them and analyse it.

    Example: python -m tracin_core demo --material box --frequency 1000hz
    """
    place = opened(workspace)
    job = place.start_digits_demo() if digits else place.start_demo(material, frequency)
    if not wait:
        say(f"Job {job.id} computes {job.title} in the background.")
        say_next("serve", "--workspace", workspace)
        return
    result = watch(place, job).result or {}
    report_training(result["training"])
    summarise(place.run(str(result["run_id"])), workspace)


@app.command()
def compute_influence(
    material: Annotated[str | None, typer.Option(help="Material of the recordings.", show_default=False)] = None,
    frequency: Annotated[str | None, typer.Option(help="500hz, 1000hz, 3000hz, ... or all.", show_default=False)] = None,
    checkpoint_dir: Annotated[Path | None, typer.Option(help="Folder of checkpoints.", show_default=False)] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder that holds deg000, deg036, ...", show_default=False)] = None,
    checkpoint_prefix: Annotated[
        str | None, typer.Option(help="What file names begin with; default: model_epoch_", show_default=False)
    ] = None,
    layout: Annotated[
        Literal["small", "large", "large_dropout", "large_resized"] | None,
        typer.Option(
            help="Ranker: small (5,733 parameters, the default), or one of 422,337: docs/your-model.md.", show_default=False
        ),
    ] = None,
    loss_type: Annotated[str | None, typer.Option(help="standard, ghm, ...; default: as recorded.", show_default=False)] = None,
    margin: Annotated[float | None, typer.Option(help="Default: as recorded.", min=0, callback=finite, show_default=False)] = None,
    recipe: Annotated[Path | None, typer.Option(help="analysis.toml, instead of all of the above.", show_default=False)] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Follow a training still in progress: each new checkpoint is analysed as it appears.")
    ] = False,
    workspace: WorkspaceOption = Path("workspace"),
) -> None:
    """Compute every kernel of a folder of checkpoints, and show what the scores look like.

    Example: python -m tracin_core compute-influence --material plastic --frequency 500hz --data-root recordings --checkpoint-dir
    checkpoints/plastic_500hz_standard
    """
    needed = {"--material": material, "--frequency": frequency, "--data-root": data_root, "--checkpoint-dir": checkpoint_dir}
    further = {"--checkpoint-prefix": checkpoint_prefix, "--layout": layout, "--loss-type": loss_type, "--margin": margin}
    if recipe is not None:
        if named := given({**needed, **further}):
            raise typer.BadParameter(f"--recipe decides everything; leave out {', '.join(named)}, or --recipe.")
        chosen = Recipe.from_toml(recipe)
    else:
        if absent := needed.keys() - given(needed).keys():
            raise typer.BadParameter(f"give {', '.join(sorted(absent))}, or --recipe analysis.toml.")
        chosen = Recipe.from_dict(
            {
                "model": given({"layout": layout}),
                "data": {"root": data_root, "material": material, "frequency": frequency},
                "task": {"loss": loss_named(loss_type), "margin": margin},
                "checkpoints": given({"folder": checkpoint_dir, "prefix": checkpoint_prefix}),
            }
        )
    from tracin_core.records.jobs import Job  # brings pandas along

    place = opened(workspace)
    if follow:
        result = watch(place, place.follow(chosen)).result or {}
        summarise(place.run(str(result["run_id"])), workspace)
        return
    started = place.compute(chosen, wait=False)
    summarise(place.run(str(watch(place, started).run_id)) if isinstance(started, Job) else started, workspace)


@app.command()
def generate_exclusions(
    output_file: Annotated[Path, typer.Option(help="The list to write.")],
    run: RunOption = None,
    threshold: Annotated[float, typer.Option(help="Influence strictly below this is harm.", max=0, callback=finite)] = -5.0,
    min_occurrences: Annotated[int, typer.Option(help="On how many test pairs a train pair must do harm.", min=1)] = 3,
    max_exclusions: Annotated[int, typer.Option(help="How many entries are listed at most.", min=1)] = 50,
    pair_mode: Annotated[
        PairMode, typer.Option(help="Pairs themselves, both their samples, or samples with all pairs.")
    ] = "ranking_pair",
    workspace: WorkspaceOption = Path("workspace"),
) -> None:
    """List the training pairs or samples that harm the test pairs, in the existing TXT format with JSON provenance beside it.

    Example: python -m tracin_core generate-exclusions --threshold -5 --min-occurrences 3 --output-file exclusions.txt
    """
    place = opened(workspace)
    chosen_run = the_run(place, run)
    pair_mode = pair_mode if chosen_run.noun == "pair" else "sample"
    rule: dict[str, Any] = {
        "threshold": threshold,
        "min_occurrences": min_occurrences,
        "max_exclusions": max_exclusions,
        "pair_mode": pair_mode,
    }
    view = chosen_run.view()
    chosen = view.exclusions(**rule)
    text, provenance = place.export_exclusions(chosen_run, chosen, rule)
    copy_out(text, output_file)
    copy_out(provenance, output_file.with_suffix(".provenance.json"))
    kind = "pairs" if pair_mode == "ranking_pair" else "samples"
    say(f"{len(chosen)} {kind} listed in {output_file}{simulated_mark(chosen_run.simulated)}")
    if chosen.empty:
        suggested = view.suggested_threshold(min_occurrences, pair_mode)
        say(
            f"Nothing does harm below {threshold:g} on {min_occurrences} test pairs; on this run's scale, try --threshold {suggested:g}"
        )
        return
    say_next("train", "--workspace", workspace, "--run", chosen_run.id, "--exclusions-file", output_file)


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
    loss_type: Annotated[str | None, typer.Option(help="standard, ghm, ...; default: as in the run.", show_default=False)] = None,
    margin: Annotated[
        float | None, typer.Option(help="Default: as in the run.", min=0, callback=finite, show_default=False)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Default: 20.", min=1, show_default=False)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default: 0.01.", min=0, callback=finite, show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Default: 42.", min=0, max=2**31, show_default=False)] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="analysis.toml: model, data, split and task of the training.", show_default=False)
    ] = None,
    workspace: WorkspaceOption = Path("workspace"),
) -> None:
    """Train as a run was, or as a recipe says, with an exclusion list if one is given: only the training side of the split shrinks.

    Example: python -m tracin_core train --run 1a2b3c4d5e6f --exclusions-file exclusions.txt
    """
    data = {"root": data_root, "material": material, "frequency": frequency}
    task = {"loss": loss_named(loss_type), "margin": margin}
    settings = {"epochs": epochs, "learning_rate": learning_rate, "seed": seed}
    place = opened(workspace)
    if recipe is None:
        chosen = training_recipe(place, run, data=given(data), task=given(task))
    elif run is not None or given({**data, **task}):
        raise typer.BadParameter("--recipe decides run, data, loss and margin; leave these out, or --recipe.")
    else:
        chosen = Recipe.from_toml(recipe)
    job = place.start_training(chosen, settings=given(settings), folder=output_dir, exclusions_file=exclusions_file)
    result = watch(place, job).result or {}
    report_training(result)
    say(f"Checkpoints: {result['folder']}{simulated_mark(chosen.simulated)}")
    say_next("compute-influence", "--workspace", workspace, "--recipe", result["recipe"])


@app.command()
def serve(
    workspace: WorkspaceOption = Path("workspace"),
    host: Annotated[str, typer.Option(help="Another than a loopback address needs access control.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TRACIN_PORT", min=1, max=65535)] = 8501,
    with_demo: Annotated[bool, typer.Option("--with-demo", help="Start computing the demo if there is no run yet.")] = False,
) -> None:
    """Start the dashboard on this machine; for others too, once they have links (access add).

    Example: python -m tracin_core serve --port 8501
    """
    if not is_loopback(host):
        require_access_control(workspace, host, port)
    require_free(host, port)
    place = opened(workspace)
    if with_demo and place.runs().empty:
        place.start_demo()
    os.environ["TRACIN_WORKSPACE"] = str(place.root)
    os.environ.setdefault(
        "MALLOC_ARENA_MAX", "2"
    )  # a thread per visitor, each with a heap of its own, would hold much that is free
    say(f"TracIn Studio: http://{host}:{port}   (workspace {place.root}; Ctrl-C ends it, computations go on)")
    os.chdir(PROJECT)
    command = [sys.executable, "-m", "streamlit", "run", "app.py", f"--server.address={host}", f"--server.port={port}"]
    os.execv(sys.executable, command)


@app.command()
def export_zarr(
    output_dir: Annotated[Path, typer.Option(help="The folder to make.")],
    run: RunOption = None,
    workspace: WorkspaceOption = Path("workspace"),
) -> None:
    """Write a run's kernels as a Zarr v3 group, which zarr-python and xarray open.

    Example: python -m tracin_core export-zarr --output-dir kernels.zarr
    """
    place = opened(workspace)
    chosen = the_run(place, run)
    folder = place.export_zarr(chosen, Path(os.path.abspath(output_dir)))
    say(f"Run {chosen.id} is in {folder}{simulated_mark(chosen.simulated)}")
    say(f"Open it: xarray.open_zarr({str(folder)!r}, consolidated=False)")


@app.command()
def verify(workspace: WorkspaceOption = Path("workspace")) -> None:
    """Read every checksum again, and name each damaged file. Changes nothing; exit code 1 if there is one.

    Example: python -m tracin_core verify --workspace workspace
    """
    from tracin_core.records.workspace import verify as read_again

    found = read_again(workspace)
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.files.items())
    say(f"Read again: {kinds or 'nothing'}; {size(found.bytes)}")
    for run_id in found.unsealed:
        say(f"Run {run_id} was made before runs had checksums of their own; only its blocks, inputs and weights were read")
    for damage in found.damages:
        say(f"DAMAGED {damage}")
    if found.damages:
        warn(
            f"Error: {len(found.damages)} files are damaged or gone; each line says what to do; computing a run again redoes only these."
        )
        raise typer.Exit(1)
    say("Everything is as it was written")


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    workspace: WorkspaceOption = Path("workspace"),
) -> None:
    """Remove blocks, inputs and previews that no run refers to, and unfinished files older than an hour.

    Example: python -m tracin_core gc --dry-run
    """
    from tracin_core.records.workspace import collect_garbage

    found = collect_garbage(workspace, dry_run=dry_run)
    for garbage in found:
        say(f"{'would be removed' if dry_run else 'removed'}: {garbage.kind} {garbage.path} ({size(garbage.bytes)})")
    say(f"{len(found)} files, {size(sum(garbage.bytes for garbage in found))}{'; nothing was removed' if dry_run else ''}")


@app.command()
def rebuild_catalogue(workspace: WorkspaceOption = Path("workspace")) -> None:
    """Restore the catalogue from blocks, runs and exported lists. A damaged one is moved aside, never deleted.

    Example: python -m tracin_core rebuild-catalogue --workspace workspace
    """
    from tracin_core.records.workspace import rebuild_catalogue as restored

    rebuilt = restored(workspace)
    if rebuilt.aside is not None:
        say(f"The damaged catalogue is now {rebuilt.aside}")
    say(f"The catalogue knows {rebuilt.runs} finished runs, {rebuilt.decisions} exclusion lists and {rebuilt.blocks} blocks")
    for run_id in rebuilt.dropped:
        say(f"Run {run_id} is not in it any more: its files are gone")
    for damage in rebuilt.damages:
        say(f"Left out, DAMAGED: {damage}")
    if rebuilt.damages:
        warn(f"Error: {len(rebuilt.damages)} damaged files were left out; compute their runs again, which redoes only these.")
        raise typer.Exit(1)


@app.command()
def doctor(workspace: WorkspaceOption = Path("workspace")) -> None:
    """Say what is wrong with this installation and this workspace. Changes nothing; exit code 1 if something is.

    Example: python -m tracin_core doctor --workspace workspace
    """
    from tracin_core.records.workspace import examine

    findings = examine(workspace)
    for finding in findings:
        say(f"{'ok  ' if finding.passed else 'LOOK'} {finding.name}: {finding.detail}")
    if not all(finding.passed for finding in findings):
        raise typer.Exit(1)


@app.command()
def inspect(
    files: Annotated[list[Path], typer.Argument(help="Checkpoint files.", show_default=False)],
    recipe: Annotated[Path | None, typer.Option(help="analysis.toml, whose model they should fit.", show_default=False)] = None,
    layout: Annotated[
        str | None, typer.Option(help="Layout of the ranker they should fit; default: any of them.", show_default=False)
    ] = None,
    workspace: WorkspaceOption = Path("workspace"),
) -> None:
    """Say what checkpoint files hold, or why they are refused, one line each. Keeps nothing; exit code 1 if one is refused.

    Example: python -m tracin_core inspect --layout small checkpoints/model_epoch_5.pt
    """
    if recipe is not None and layout is not None:
        raise typer.BadParameter("--recipe decides the model; leave out --layout, or --recipe.")
    known = get_args(RankerModel.model_fields["layout"].annotation)
    if layout is not None and layout not in known:
        raise typer.BadParameter(f"there is no layout '{layout}'; choose {' or '.join(known)}.")
    model = Recipe.from_toml(recipe).to_dict()["model"] if recipe is not None else layout and {"kind": "ranker", "layout": layout}
    paths = [os.path.join(os.path.realpath(file.parent), file.name) for file in files]  # the file itself may be no link
    request = {"paths": paths, "model": model, "plugins": os.path.abspath(workspace / "plugins")}
    refused = 0
    try:
        for answer in answers_of("tracin_core.engine.inspection", request):
            if "failed" in answer:
                raise (InputError if answer["by_input"] else MachineError)(answer["failed"])
            say(f"{'accepted' if answer['accepted'] else 'refused'}: {answer['line']}")
            refused += not answer["accepted"]
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if refused:
        raise typer.Exit(1)


def answers_of(module: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The JSON lines that this module answers in a process of its own, as they come.

    Raises:
        MachineError: it ended without answering all.
    """
    command = [sys.executable, "-m", module]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None:
            raise MachineError("The process that reads checkpoints has no pipes; start the program again.")
        with suppress(BrokenPipeError):  # it has ended, and said on stderr why
            process.stdin.write(json.dumps(request))
            process.stdin.close()
        yield from (json.loads(line) for line in process.stdout)
    if process.returncode:
        told = f"The process that reads checkpoints ended with status {process.returncode}"
        raise MachineError(f"{told}; check the installation with 'make setup'.")


access = typer.Typer(name="access", help="Who may come in over the network: one link per person.", rich_markup_mode=None)
app.add_typer(access)


@access.command("add")
def access_add(
    name: Annotated[str, typer.Argument(help="Of the person; it goes with every run and every list that they make.")],
    url: Annotated[str, typer.Option(help="Where people reach the dashboard.")] = "http://127.0.0.1:8501",
    workspace: WorkspaceOption = Path("workspace"),
) -> None:
    """Give a person a link. It is shown this once; only a hash of it is kept. From the first link on, nobody gets in without one.

    Example: python -m tracin_core access add Mei --url https://tracin.lab.example
    """
    from tracin_core.records import access as people

    key = people.add(workspace, name)
    say(f"{name}'s link, shown only now; whoever has it comes in as {name}:")
    say(f"{url.rstrip('/')}/enter#{key}")


@access.command("list")
def access_list(workspace: WorkspaceOption = Path("workspace")) -> None:
    """List who was given a link, and whether it still opens.

    Example: python -m tracin_core access list
    """
    from tracin_core.records import access as people

    known = people.links(workspace)
    for link in known:
        revoked = "" if link.revoked is None else f", revoked {datetime.fromtimestamp(link.revoked):%Y-%m-%d %H:%M}"
        say(f"{link.name}: since {datetime.fromtimestamp(link.created):%Y-%m-%d %H:%M}{revoked}")
    if not known:
        say("Nobody was given a link; the dashboard serves this machine alone.")


@access.command("revoke")
def access_revoke(
    name: Annotated[str, typer.Argument(help="Of the person.")],
    workspace: WorkspaceOption = Path("workspace"),
) -> None:
    """Make a person's link open nothing, now: open sessions end too.

    Example: python -m tracin_core access revoke Mei
    """
    from tracin_core.records import access as people

    link = people.revoke(workspace, name)
    say(f"{link.name}'s link opens nothing any more")


def size(count: int) -> str:
    """So many bytes, in words."""
    return f"{count / 2**20:.1f} MiB"


def opened(workspace: Path) -> "Workspace":
    """The workspace in this directory, made if it is not there."""
    from tracin_core.records.workspace import open_workspace

    return open_workspace(workspace)


def require_access_control(workspace: Path, host: str, port: int) -> None:
    """Whoever reaches the dashboard on an address that others reach will be asked who they are. The server itself checks again.

    Raises:
        InputError: nobody would be asked.
    """
    from tracin_core.records import access as people

    if os.environ.get("TRACIN_ACCESS", "").strip().lower() != "oidc" and not people.is_kept(workspace):
        raise InputError(
            f"The dashboard asks nobody who they are and does not listen on '{host}'; use 127.0.0.1 (from elsewhere: ssh -L "
            f"{port}:127.0.0.1:{port}), or give each person a link: python -m tracin_core access add NAME"
        )


def require_free(host: str, port: int) -> None:
    """Nothing listens on this port of this machine.

    Raises:
        InputError: something does, or the port may not be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as failure:
        raise InputError(
            f"Port {port} of {host} cannot be used ({os.strerror(failure.errno or 0)}); end what uses it, or choose another with --port or "
            f"TRACIN_PORT."
        ) from failure


def simulated_mark(simulated: bool) -> str:
    return " [SIMULATED data]" if simulated else ""


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def copy_out(source: Path, target: Path) -> None:
    """The exported file is also where it was asked for.

    Raises:
        InputError: the place cannot be written to; the export itself is kept.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as failure:
        raise InputError(
            f"'{target}' cannot be written ({failure.strerror or failure}); the list is kept as '{source}': copy it from there, or give "
            f"another --output-file."
        ) from failure


def training_recipe(place: "Workspace", run_id: str | None, *, data: dict[str, Any], task: dict[str, Any]) -> Recipe:
    """What a training follows: the named run, or the newest, but for the data and task that are given.

    With the whole of the data given and no run named, none is needed.
    """
    if run_id is None and len(data) == 3:
        known: dict[str, Any] = {"checkpoints": {"folder": place.root / "trainings"}, "data": {"kind": "recordings"}}
    else:
        run = the_run(place, run_id)
        known = run.recipe.to_dict()
        settings = {
            name: getattr(run.loss, name, None) for name in ("margin", "ghm_bins", "ghm_alpha", "smoothing", "gamma", "q", "delta")
        }
        fields = type(run.recipe.task).model_fields
        recorded = {name: value for name, value in settings.items() if name in fields and value is not None}
        task = {**known["task"], "loss": run.loss.name, **recorded, **task}
        say(f"As run {run.id}: {run.name}{simulated_mark(run.simulated)}")
    data = {**known["data"], **data}
    simulated = data == known["data"] and known.get("simulated", False)
    return Recipe.from_dict({**known, "data": data, "task": task, "simulated": simulated})


def loss_named(loss_type: str | None) -> str | None:
    """The loss behind the lab's name for it ('standard' is the margin loss)."""
    if loss_type is None:
        return None
    if loss_type not in LOSS_TYPES:
        raise RecipeError(f"There is no loss '{loss_type}'; choose from {', '.join(LOSS_TYPES)}.")
    return LOSS_TYPES[loss_type]


def the_run(place: "Workspace", run_id: str | None) -> "Run":
    """The named run, or the newest finished one."""
    if run_id is not None:
        return place.run(run_id)
    finished = place.runs().query("state == 'done'")
    if finished.empty:
        raise NotFoundError("There is no finished run in this workspace; start one with compute-influence, or with demo.")
    return place.run(str(finished["id"].iloc[0]))


def watch(place: "Workspace", job: "Job") -> "Job":
    """The job once it is done, shown as it goes: a bar on a terminal, else a line per step. Ctrl-C ends the watching only."""
    try:
        with shown(job) as show:
            return place.queue.wait(job.id, on_change=show)
    except KeyboardInterrupt:
        warn(f"No longer watching: job {job.id} goes on in the background; the dashboard shows it (python -m tracin_core serve).")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def shown(job: "Job") -> Iterator[Any]:
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


def report_training(result: dict[str, Any]) -> None:
    """What a training used, left out and reached."""
    sides = ", ".join(f"{count} {side}" for side, count in result["split"].items())
    pairs = f" in {result['train_pairs']} pairs" if result.get("train_pairs") else ""
    say(f"Split: {sides} samples; trained on {result['train_samples']} samples{pairs}")
    if result["exclusions"]["file"] is not None:
        report_exclusions(result["exclusions"])
    reached = {name: value for name, value in result.items() if name.startswith(("test_", "validation_")) and value is not None}
    name, value = next(iter(reached.items()))
    side, _, what = name.partition("_")
    what = "pair accuracy" if pairs else "accuracy" if what == "accuracy" else "mean absolute error"
    say(f"{what.capitalize()} on the {side} side: {value:.3f}")


def report_exclusions(found: dict[str, Any]) -> None:
    """How many lines of the list matched, what that left out, and by name each line that left out nothing."""
    lines = sum(len(found[name]) for name in ("matched", "elsewhere", "unmatched"))
    say(f"Exclusions: {len(found['matched'])} of {lines} lines of {found['file']} matched")
    say(f"Left out of training: {found['samples']} samples with all their pairs, and {found['pairs']} other pairs")
    if found["unmatched"]:
        say(f"Not in this data set, so check their spelling: {len(found['unmatched'])} ({', '.join(found['unmatched'])})")
    if found["elsewhere"]:
        say(f"Not on the training side, so left as they are: {len(found['elsewhere'])} ({', '.join(found['elsewhere'])})")


def summarise(run: "Run", workspace: Path) -> None:
    """What a run holds, on a screenful."""
    view = run.view()
    own = view.self_influence()
    say(f"Run {run.id}: {run.name}{simulated_mark(run.simulated)}")
    say(f"{len(run.checkpoints)} checkpoints, loss {run.loss.describe()}, summed over epochs {run.summed_epochs}")
    train, test = run.counts
    say(f"{train} train {run.noun}s x {test} test {run.noun}s, {int(view.dead_tests.sum())} of the latter dead")
    for _, check in run.health().iterrows():
        say(f"{'ok  ' if check['passed'] else 'LOOK'} {check['check']}: {check['detail']}")
    say("Highest self-influence:")
    for row in (-own).argsort(kind="stable")[:5]:
        say(f"  {own[row]:12.4g}  {view.train.table['id'].iloc[row]}")
    say_next("generate-exclusions", "--workspace", workspace, "--run", run.id, "--output-file", "exclusions.txt")
