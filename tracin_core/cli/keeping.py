"""Verbs that look after a workspace, and take things out of it."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from tracin_core.cli.asking import JsonOption, RunOption, WorkspaceOption, opened, the_run
from tracin_core.cli.talk import answer, say, simulated_mark, size, warn


def report(
    run: Annotated[
        str | None, typer.Argument(help="Id of a finished run; default: the newest.", show_default=False, metavar="[RUN]")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write: .html or .md.")] = Path("report.html"),
    language: Annotated[Literal["en", "zh-TW"], typer.Option(help="Of its texts.")] = "en",
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """Write what a run shows as one page that needs no server: HTML with its charts, or Markdown.

    Example: python -m tracin_core report --output report.html --language en
    """
    from tracin_core.records.report import write_report

    place = opened(workspace)
    chosen = the_run(place, run)
    written = write_report(chosen, output, language=language, place=place)
    say(f"Report of run {chosen.id}: {written}{simulated_mark(chosen.simulated)}")
    answer({"run": chosen.id, "report": written, "language": language, "simulated": chosen.simulated})


def export_zarr(
    output_dir: Annotated[Path, typer.Option(help="The folder to make.")],
    run: RunOption = None,
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """Write a run's kernels as a Zarr v3 group, which zarr-python and xarray open.

    Example: python -m tracin_core export-zarr --output-dir kernels.zarr
    """
    place = opened(workspace)
    chosen = the_run(place, run)
    folder = place.export_zarr(chosen, Path(os.path.abspath(output_dir)))
    say(f"Run {chosen.id} is in {folder}{simulated_mark(chosen.simulated)}")
    say(f"Open it: xarray.open_zarr({str(folder)!r}, consolidated=False)")
    answer({"run": chosen.id, "folder": folder, "simulated": chosen.simulated})


def verify(workspace: WorkspaceOption = Path("workspace"), as_json: JsonOption = False) -> None:
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
    answer(
        {
            "files": found.files,
            "bytes": found.bytes,
            "unsealed": found.unsealed,
            "damages": [asdict(each) for each in found.damages],
        }
    )
    if found.damages:
        warn(
            f"Error: {len(found.damages)} files are damaged or gone; each line says what to do; computing a run again redoes only these."
        )
        raise typer.Exit(1)
    say("Everything is as it was written")


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """Remove blocks, curvatures, inputs and previews that no run refers to, and unfinished files older than an hour.

    Example: python -m tracin_core gc --dry-run
    """
    from tracin_core.records.workspace import collect_garbage

    found = collect_garbage(workspace, dry_run=dry_run)
    for garbage in found:
        say(f"{'would be removed' if dry_run else 'removed'}: {garbage.kind} {garbage.path} ({size(garbage.bytes)})")
    say(f"{len(found)} files, {size(sum(garbage.bytes for garbage in found))}{'; nothing was removed' if dry_run else ''}")
    answer({"removed": not dry_run, "files": [asdict(garbage) for garbage in found]})


def rebuild_catalogue(workspace: WorkspaceOption = Path("workspace"), as_json: JsonOption = False) -> None:
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
    answer(asdict(rebuilt))
    if rebuilt.damages:
        warn(f"Error: {len(rebuilt.damages)} damaged files were left out; compute their runs again, which redoes only these.")
        raise typer.Exit(1)


def doctor(workspace: WorkspaceOption = Path("workspace"), as_json: JsonOption = False) -> None:
    """Say what is wrong with this installation and this workspace. Changes nothing; exit code 1 if something is.

    Example: python -m tracin_core doctor --workspace workspace
    """
    from tracin_core.records.workspace import examine

    findings = examine(workspace)
    for finding in findings:
        say(f"{'ok  ' if finding.passed else 'LOOK'} {finding.name}: {finding.detail}")
    passed = all(finding.passed for finding in findings)
    answer({"passed": passed, "findings": [asdict(finding) for finding in findings]})
    if not passed:
        raise typer.Exit(1)
