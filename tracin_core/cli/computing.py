"""Verbs of long work: the demo, analyses, trainings; and what checkpoint files hold."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from tracin_core.cli.asking import (
    LOSS_TYPES,
    PROJECT,
    AlphaOption,
    Analysis,
    BinsOption,
    DeviceOption,
    Files,
    JsonOption,
    RunOption,
    WorkersOption,
    WorkspaceOption,
    finite,
    found_device,
    given,
    loss_named,
    opened,
    recipes_of,
    the_run,
    training_recipe,
)
from tracin_core.cli.talk import INTERRUPTED, answer, say, say_next, simulated_mark, watch
from tracin_core.errors import InputError, MachineError
from tracin_core.recipe import EngineSection, RankerModel, RankingTask, Recipe, RecordingsData

if TYPE_CHECKING:
    from tracin_core.records.runs import Run
    from tracin_core.records.workspace import Workspace


def demo(
    workspace: WorkspaceOption = Path("workspace"),
    material: Annotated[Literal["box", "plastic", "metal"], typer.Option(help="What the simulated enclosure is made of.")] = "box",
    frequency: Annotated[Literal["500hz", "1000hz", "3000hz"], typer.Option(help="Of the simulated tone.")] = "1000hz",
    digits: Annotated[
        bool, typer.Option("--digits", help="Real MNIST digits, some mislabelled, and a classifier instead.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--background", help="Watch it, or let it run and return.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Make SIMULATED recordings with planted faults, train a ranker on them and analyse it.

    Example: python -m tracin_core demo --material box --frequency 1000hz
    """
    place = opened(workspace)
    job = place.start_digits_demo() if digits else place.start_demo(material, frequency)
    if not wait:
        say(f"Job {job.id} computes {job.title} in the background.")
        say_next("serve", "--workspace", workspace)
        answer({"job": job.id, "state": job.state})
        return
    result = watch(place, job).result or {}
    report_training(result["training"])
    run = place.run(str(result["run_id"]))
    summarise(run, workspace)
    answer({"training": result["training"], "runs": [told_of(run)]})


def compute_influence(
    analysis: Analysis,
    files: Files,
    follow: Annotated[
        bool, typer.Option("--follow", help="Follow a training still in progress: each new checkpoint is analysed as it appears.")
    ] = False,
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """Compute every kernel of a folder of checkpoints, and show what the scores look like.

    Example: python -m tracin_core compute-influence --material plastic --frequency 500hz --data-root recordings --checkpoint-dir
    checkpoints/plastic_500hz_standard
    """
    recipes = recipes_of(analysis)
    if follow and len(recipes) > 1:
        raise typer.BadParameter("--follow follows one training; give one --frequency.")
    place = opened(workspace)
    documents = []
    for recipe in recipes:
        run = followed(place, recipe) if follow else computed(place, recipe)
        summarise(run, workspace)
        documents.append({**told_of(run), "files": write_files(place, run, files)})
    answer({"runs": documents})


def write_files(place: "Workspace", run: "Run", files: Files) -> list[Path]:
    """The score files that were asked for are written, and named."""
    if not files.wanted:
        if files.metadata_dir is not None or files.save_per_checkpoint_influence:
            say("No score file is written: add --compute-self-influence, --compute-influence, or both.")
        return []
    from tracin_core.records.score_files import write_scores

    material, frequency = names_of(run)
    written = write_scores(
        files.metadata_dir or place.root / "exports" / run.id,
        run,
        run.view(),
        material=material,
        frequency=frequency,
        self_influence=files.compute_self_influence,
        influence=files.compute_influence,
        per_checkpoint=files.save_per_checkpoint_influence,
        score_name=files.influence_score_name,
    )
    for path in written:
        say(f"Written: {path}{simulated_mark(run.simulated)}")
    return written


def names_of(run: "Run") -> tuple[str, str]:
    """What the names of a run's files begin with: material and frequency; of other data what they are of, and the task."""
    data = run.recipe.data
    return (data.material, data.frequency) if isinstance(data, RecordingsData) else (data.stem, run.task)


def followed(place: "Workspace", recipe: Recipe) -> "Run":
    """The run of all checkpoints, once the training has ended."""
    return place.run(str((watch(place, place.follow(recipe)).result or {})["run_id"]))


def computed(place: "Workspace", recipe: Recipe) -> "Run":
    """The recipe's run, finished; at once if nothing of it changed."""
    from tracin_core.records.jobs import Job  # brings pandas along

    started = place.compute(recipe, wait=False)
    return place.run(str(watch(place, started).run_id)) if isinstance(started, Job) else started


def train(
    run: RunOption = None,
    material: Annotated[str | None, typer.Option(help="Default: as in the run.", show_default=False)] = None,
    frequency: Annotated[str | None, typer.Option(help="Default: as in the run.", show_default=False)] = None,
    data_root: Annotated[Path | None, typer.Option(help="Default: as in the run.", show_default=False)] = None,
    exclusions_file: Annotated[
        Path | None, typer.Option(help="Samples or pairs to leave out of training.", show_default=False)
    ] = None,
    weight_by: Annotated[
        Literal["self_influence", "mean_loss"] | None,
        typer.Option(help="Examples above the run's median of this score count less in the loss.", show_default=False),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            "--checkpoint-dir",
            help="Where checkpoints go; default: in the workspace.",
            show_default=False,
        ),
    ] = None,
    loss_type: Annotated[str | None, typer.Option(help="standard, ghm, ...; default: as in the run.", show_default=False)] = None,
    margin: Annotated[
        float | None, typer.Option(help="Default: as in the run.", min=0, callback=finite, show_default=False)
    ] = None,
    ghm_bins: BinsOption = None,
    ghm_alpha: AlphaOption = None,
    epochs: Annotated[int | None, typer.Option(help="Default: 20.", min=1, show_default=False)] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Default: 0.01 (0.02).", min=0, callback=finite, show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pairs (or samples) in one step; default: 256 (32).", min=1, show_default=False)
    ] = None,
    schedule: Annotated[
        Literal["cosine", "constant"] | None,
        typer.Option(help="Of the learning rate; default: it falls along a cosine.", show_default=False),
    ] = None,
    momentum: Annotated[float | None, typer.Option(help="Default: 0.9.", min=0, max=0.999, show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Default: 42.", min=0, max=2**31, show_default=False)] = None,
    num_workers: WorkersOption = None,
    device: DeviceOption = None,
    recipe: Annotated[
        Path | None, typer.Option(help="analysis.toml: model, data, split and task of the training.", show_default=False)
    ] = None,
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """Train as a run was, or as a recipe says, with an exclusion list if one is given: only the training side of the split shrinks.

    Example: python -m tracin_core train --run 1a2b3c4d5e6f --exclusions-file exclusions.txt
    """
    data = given({"root": data_root, "material": material, "frequency": frequency})
    task = given({"loss": loss_named(loss_type), "margin": margin, "ghm_bins": ghm_bins, "ghm_alpha": ghm_alpha})
    place = opened(workspace)
    if recipe is None:
        chosen = training_recipe(place, run, data=data, task=task)
    elif run is not None or data or task or weight_by:
        raise typer.BadParameter("--recipe decides run, data, loss, margin and weights; leave these out, or --recipe.")
    else:
        chosen = Recipe.from_toml(recipe)
    if num_workers is not None:
        say(f"--num-workers {num_workers} changes nothing: recordings are read by one process, once.")
    chosen = on_device(chosen, device)
    per_step = "batch_pairs" if isinstance(chosen.task, RankingTask) else "batch_size"
    settings = given(
        {
            "epochs": epochs,
            "learning_rate": learning_rate,
            "schedule": schedule,
            "momentum": momentum,
            "seed": seed,
            per_step: batch_size,
        }
    )
    weighting = None if weight_by is None else (the_run(place, run).id, weight_by)
    job = place.start_training(chosen, settings=settings, folder=output_dir, exclusions_file=exclusions_file, weighting=weighting)
    result = watch(place, job).result or {}
    report_training(result)
    say(f"Checkpoints: {result['folder']}{simulated_mark(chosen.simulated)}")
    say_next("compute-influence", "--workspace", workspace, "--recipe", result["recipe"])
    answer({**result, "simulated": chosen.simulated})


def on_device(recipe: Recipe, device: str | None) -> Recipe:
    """The recipe for this device, which its analysis uses; the training itself does not."""
    if device is None:
        return recipe
    found = found_device() if device == "auto" else device
    say(f"--device {found} is for the analysis of these checkpoints (it is in their analysis.toml); training runs on the CPU.")
    known = recipe.to_dict()
    if recipe.engine.batch_size == EngineSection(device=recipe.engine.device).batch_size:
        del known["engine"]["batch_size"]  # nobody chose it: each device has its own
    return Recipe.from_dict({**known, "engine": {**known["engine"], "device": found}})


def inspect(
    files: Annotated[list[Path], typer.Argument(help="Checkpoint files.", show_default=False)],
    recipe: Annotated[Path | None, typer.Option(help="analysis.toml, whose model they should fit.", show_default=False)] = None,
    layout: Annotated[
        str | None, typer.Option(help="Layout of the ranker they should fit; default: any of them.", show_default=False)
    ] = None,
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
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
    found = []
    try:
        for told in answers_of("tracin_core.engine.inspection", request):
            if "failed" in told:
                raise (InputError if told["by_input"] else MachineError)(told["failed"])
            say(f"{'accepted' if told['accepted'] else 'refused'}: {told['line']}")
            found.append(told)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    answer({"files": found})
    if not all(told["accepted"] for told in found):
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


# ---- what came of it --------------------------------------------------------------------------------------------------------


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
    say(f"Run {run.id}: {run.name}{simulated_mark(run.simulated)}")
    say(f"{len(run.checkpoints)} checkpoints, loss {run.loss.describe()}, summed over epochs {run.summed_epochs}")
    for line in differences(run):
        say(line)
    train, test = run.counts
    say(f"{train} train {run.noun}s x {test} test {run.noun}s, {int(view.dead_tests.sum())} of the latter dead")
    for _, check in run.health().iterrows():
        say(f"{'ok  ' if check['passed'] else 'LOOK'} {check['check']}: {check['detail']}")
    highest = highest_self_influence(run)
    say("Highest self-influence:" if highest else "No file has its self-influence.")
    for row in highest:
        say(f"  {row['self_influence']:12.4g}  {row['id']}")
    say_next("generate-exclusions", "--workspace", workspace, "--run", run.id, "--output-file", "exclusions.txt")


def told_of(run: "Run") -> dict[str, Any]:
    """The same for a machine."""
    view = run.view()
    return {
        "run": run.id,
        "name": run.name,
        "simulated": run.simulated,
        "task": run.task,
        "data": run.recipe.data.title,
        "loss": vars(run.loss),
        "differences": differences(run),
        "epochs": [int(epoch) for epoch in run.checkpoints["epoch"]],
        "summed_epochs": run.summed_epochs,
        "train": run.counts[0],
        "test": run.counts[1],
        "dead_tests": view.test.table["id"][view.dead_tests].tolist(),
        "health": run.health().to_dict(orient="records"),
        "highest_self_influence": highest_self_influence(run),
        **(
            {"verdict": verdict, "lacks": getattr(run, "lacks", ())}
            if (verdict := getattr(run, "verdict", None)) is not None
            else {}
        ),
    }


def highest_self_influence(run: "Run") -> list[dict[str, Any]]:
    """The first five; none where the run was made of files that lack it."""
    if "self_influence" in getattr(run, "lacks", ()):
        return []
    view = run.view()
    own, ids = view.self_influence(), view.train.table["id"]
    return [{"id": ids.iloc[row], "self_influence": own[row]} for row in (-own).argsort(kind="stable")[:5]]


def differences(run: "Run") -> list[str]:
    """A sentence for each setting of the loss that is not what the checkpoints record."""
    if run.manifest.kind == "scores":  # whose files tell of no training
        return []
    recorded = run.manifest.checkpoints[-1].get("arguments") or {}
    names = {"loss": "name", "margin": "margin", **({"ghm_bins": "ghm_bins", "ghm_alpha": "ghm_alpha"} if is_ghm(run) else {})}
    known = {**recorded, "loss": LOSS_TYPES.get(str(recorded.get("loss_type")), recorded.get("loss_type"))}
    sentences = []
    for setting, field in names.items():
        used, trained = getattr(run.loss, field, None), known.get(setting)
        if used is None or used == trained:
            continue
        told = f"record {setting} {worded(trained)}" if trained is not None else f"record no {setting}"
        sentences.append(f"The scores are under {setting} {worded(used)}, as asked for; the checkpoints {told}.")
    return sentences


def worded(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def is_ghm(run: "Run") -> bool:
    return bool(getattr(run.loss, "is_ghm", False))
