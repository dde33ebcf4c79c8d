"""Verbs of decisions: which training examples do harm, at which threshold, and what leaving them out changes."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracin_core.cli.asking import (
    SCORE_NAME,
    Analysis,
    Files,
    JsonOption,
    Marking,
    Pictures,
    Rule,
    RunOption,
    WorkspaceOption,
    finite,
    given,
    listed,
    numbers,
    opened,
    recipes_of,
    the_run,
)
from tracin_core.cli.computing import computed, differences, names_of, write_files
from tracin_core.cli.existing import from_file, samples_known
from tracin_core.cli.lists import (
    after_verdicts,
    copy_out,
    list_provenance,
    mark,
    plot,
    require_metadata,
    say_limit,
    say_list,
    told_of_list,
)
from tracin_core.cli.retraining import before_and_after
from tracin_core.cli.talk import answer, in_columns, say, say_next, simulated_mark

if TYPE_CHECKING:
    import pandas as pd

    from tracin_core.records.runs import Run
    from tracin_core.records.workspace import Workspace

ThresholdsOption = Annotated[str, typer.Option(help="Thresholds to compare, with commas between them.")]
VerdictsOption = Annotated[
    bool, typer.Option("--verdicts", help="Apply what people decided about single entries on the Threshold page.")
]
WhyOption = Annotated[
    str, typer.Option(help="A reason, kept with the list; needed where such a list was measured to do harm.", show_default=False)
]
FrequenciesOption = Annotated[
    str | None, typer.Option(help="Several, one after the other: 500hz,1000hz, or all.", show_default=False)
]


def generate_exclusions(
    output_file: Annotated[Path, typer.Option(help="The list to write.")],
    rule: Rule,
    marking: Marking,
    pictures: Pictures,
    run: RunOption = None,
    metadata_file: Annotated[
        Path | None, typer.Option(help="An existing score file, in place of a run.", show_default=False)
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Recordings of the score file, where it does not name them itself.", show_default=False)
    ] = None,
    influence_score_name: Annotated[str, typer.Option(help="What keys of influences begin with in the score file.")] = SCORE_NAME,
    verdicts: VerdictsOption = False,
    why: WhyOption = "",
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """List the training pairs or samples that harm the test pairs, in the existing TXT format with JSON provenance beside it.

    Example: python -m tracin_core generate-exclusions --threshold -5 --min-occurrences 3 --output-file exclusions.txt
    """
    require_metadata(marking, metadata_file)
    if metadata_file is not None:
        if verdicts:
            raise typer.BadParameter("a score file has no verdicts; leave out --verdicts, or give --run.")
        if pictures.plot_harmful_samples:
            raise typer.BadParameter(
                "a score file has no pictures of its samples; leave out --plot-harmful-samples, or give --run."
            )
        samples = samples_known(metadata_file, workspace, run, data_root, marking.sample_metadata)
        from_file(metadata_file, output_file, rule, marking, samples=samples, score_name=influence_score_name, why=why)
        return
    if data_root is not None:
        raise typer.BadParameter("--data-root names the recordings of --metadata-file; leave it out, or give that.")
    place = opened(workspace)
    chosen_run = the_run(place, run)
    settings = rule.settings(chosen_run.noun)
    view = chosen_run.view()
    chosen = view.exclusions(**settings)
    meet = say_limit(chosen_run, chosen, settings)
    nothing = chosen.empty
    chosen, people = after_verdicts(place, chosen_run, chosen, settings, apply=verdicts)
    told = {**settings, **people}
    text, provenance = place.export_exclusions(chosen_run, chosen, told, why=why)
    copy_out(text, output_file)
    copy_out(provenance, output_file.with_suffix(".provenance.json"))
    say_list(chosen, output_file, settings, marking, chosen_run.simulated)
    document = {"run": chosen_run.id, "simulated": chosen_run.simulated, **told_of_list(chosen, settings, output_file)}
    document |= {"meet_the_rule": meet, "verdicts": people}
    if nothing:
        suggested = view.suggested_threshold(settings["min_occurrences"], settings["pair_mode"])
        say(
            f"Nothing does harm below {rule.threshold:g} on {rule.min_occurrences} test pairs; on this run's scale, try --threshold "
            f"{suggested:g}"
        )
        document["suggested_threshold"] = suggested
    elif chosen.empty:
        say("People keep all that the rule lists")
    if not chosen.empty:
        say_next("train", "--workspace", workspace, "--run", chosen_run.id, "--exclusions-file", output_file)
    document["marked"] = mark(marking, marking.sample_metadata, chosen, list_provenance(chosen_run, told))
    document["plots"] = plot(chosen_run, chosen, pictures)
    answer(document)


def pair_exclusion(
    analysis: Analysis,
    rule: Rule,
    thresholds: ThresholdsOption = "-5.0,-10.0,-15.0",
    run: RunOption = None,
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """Show what each threshold would leave out, of a run or of checkpoints that are analysed first. Writes no list.

    Example: python -m tracin_core test-pair-exclusion --thresholds -5.0,-10.0,-15.0 --min-occurrences 3
    """
    asked = numbers(thresholds)
    place = opened(workspace)
    documents = []
    for chosen in runs_of(place, analysis, run, None):
        document = compare_thresholds(chosen, asked, rule.settings(chosen.noun))
        documents.append({"run": chosen.id, "name": chosen.name, "simulated": chosen.simulated, **document})
        best = next((row["threshold"] for row in document["thresholds"] if row["listed"]), document.get("suggested_threshold"))
        words = ("--workspace", workspace, "--run", chosen.id, "--threshold", f"{best:g}", "--output-file", "exclusions.txt")
        say_next("generate-exclusions", *words)
    answer({"runs": documents})


def exclude_harmful_pairs(
    analysis: Analysis,
    rule: Rule,
    files: Files,
    marking: Marking,
    pictures: Pictures,
    thresholds: ThresholdsOption = "-5.0,-10.0,-15.0",
    frequencies: FrequenciesOption = None,
    run: RunOption = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Where lists go; default: with the run's exports.", show_default=False)
    ] = None,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train without what is listed, and compare accuracies.")] = False,
    epochs: Annotated[
        int | None, typer.Option(help="Of the retraining; default: as the run's training.", min=1, show_default=False)
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Of the retraining; default: as the run's training.", min=0, callback=finite, show_default=False),
    ] = None,
    why: WhyOption = "",
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """Analyse, compare thresholds, list what does harm, and with --retrain measure what leaving it out changes. Goes on where it was.

    Example: python -m tracin_core exclude-harmful-pairs --material plastic --frequencies 500hz,1000hz --data-root recordings
    --checkpoint-dir checkpoints --threshold -5 --retrain
    """
    asked = numbers(thresholds)
    require_metadata(marking, None)
    place = opened(workspace)
    documents = []
    for chosen in runs_of(place, analysis, run, None if frequencies is None else listed(frequencies)):
        settings = rule.settings(chosen.noun)
        compared = compare_thresholds(chosen, asked, settings)
        entries, text, written = listed_once(place, chosen, settings, output_dir, why)
        say_list(entries, written, settings, marking, chosen.simulated)
        document = {"run": chosen.id, "name": chosen.name, "simulated": chosen.simulated, **compared}
        document |= told_of_list(entries, settings, written)
        document["meet_the_rule"] = say_limit(chosen, entries, settings)
        document["files"] = write_files(place, chosen, files)
        document["marked"] = mark(marking, marking.sample_metadata, entries, list_provenance(chosen, settings))
        document["plots"] = plot(chosen, entries, pictures)
        if retrain:
            changed = given({"epochs": epochs, "learning_rate": learning_rate})
            document["retraining"] = before_and_after(place, chosen, entries, text, changed)
        elif not entries.empty:
            say_next("train", "--workspace", workspace, "--run", chosen.id, "--exclusions-file", written)
        documents.append(document)
    answer({"runs": documents})


# ---- steps ------------------------------------------------------------------------------------------------------------------


def runs_of(place: "Workspace", analysis: Analysis, run_id: str | None, frequencies: list[str] | None) -> "Iterator[Run]":
    """The runs of what is to be analysed, each computed when its turn comes; where nothing is, the named run, or the newest."""
    if not analysis.options() and frequencies is None:
        yield the_run(place, run_id)
        return
    if run_id is not None:
        named = [*analysis.options(), *(["--frequencies"] if frequencies else [])]
        raise typer.BadParameter(f"--run names what is analysed already; leave out {', '.join(named)}, or --run.")
    yield from (computed(place, recipe) for recipe in recipes_of(analysis, frequencies))


def compare_thresholds(run: "Run", thresholds: list[float], settings: dict[str, Any]) -> dict[str, Any]:
    """What each threshold would leave out, said as a table and given back."""
    from tracin_core.scores.thresholds import threshold_table

    view = run.view()
    rule = {name: value for name, value in settings.items() if name != "threshold"}
    rows: list[dict[Any, Any]] = threshold_table(view, thresholds, **rule).to_dict(orient="records")
    say(f"Run {run.id}: {run.name}{simulated_mark(run.simulated)}")
    for line in [*differences(run), *in_columns(rows)]:
        say(line)
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in rule.items())
    say(f"occurrences: scores below the threshold; candidates: {run.noun}s with enough of them; {told}")
    document: dict[str, Any] = {"rule": rule, "thresholds": rows, "dead_tests": int(view.dead_tests.sum())}
    if not any(row["listed"] for row in rows):
        suggested = view.suggested_threshold(settings["min_occurrences"], settings["pair_mode"])
        say(f"No threshold lists anything; on this run's scale, try --threshold {suggested:g}")
        document["suggested_threshold"] = suggested
    return document


def listed_once(
    place: "Workspace", run: "Run", settings: dict[str, Any], output_dir: Path | None, why: str
) -> "tuple[pd.DataFrame, Path, Path]":
    """The list's entries, its file in the workspace, and where it was asked for; one that was exported before is not exported again."""
    from tracin_core.data.files import read_json

    chosen = run.view().exclusions(**settings)
    text: Path | None = None
    for _, known in place.exported_exclusions(run).iterrows():
        told = read_json(known["provenance"])
        if told["rule"] == settings and [entry["id"] for entry in told["entries"]] == chosen["id"].tolist():
            text, provenance = known["text"], known["provenance"]
            break
    if text is None:
        text, provenance = place.export_exclusions(run, chosen, settings, why=why)
    if output_dir is None:
        return chosen, text, text
    written = output_dir / f"{'_'.join(names_of(run))}_exclusions.txt"
    copy_out(text, written)
    copy_out(provenance, written.with_suffix(".provenance.json"))
    return chosen, text, written
