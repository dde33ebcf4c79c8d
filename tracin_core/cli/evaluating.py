"""Verbs that put scores to the test: which one finds errors on this data, and whether leaving a list out helped."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tracin_core.cli.asking import JsonOption, RunOption, WorkspaceOption, opened, the_run
from tracin_core.cli.talk import answer, in_columns, say, say_next, simulated_mark, watch
from tracin_core.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from tracin_core.records.calibrations import Calibration
    from tracin_core.records.evaluations import Retraining
    from tracin_core.records.faithfulness import Faithfulness
    from tracin_core.records.runs import Run

evaluate = typer.Typer(name="evaluate", help="Puts scores to the test on your own data.", rich_markup_mode=None)
LASTING = {"both": ("epochs", "steps"), "epochs": ("epochs",), "steps": ("steps",)}
NAMED = 3  # lines of a list that are named where they match nothing
NOISY = 0.3  # rank correlation between the losses of two seeds, below which little can be foretold
MEASURED = {
    "halves": "Linear datamodelling score",
    "groups": "Rank correlation with what leaving out groups changes,",
    "single": "Rank correlation with what leaving out one at a time changes,",
}
SHOWN = ("average_precision", "auroc", "recovery_10", "recovery_20", "recovery_30")


@evaluate.command("calibrate")
def evaluate_calibrate(
    run: RunOption = None,
    noise: Annotated[
        Literal["labels", "pair_flips"],
        typer.Option(help="Labels of samples (targets of a regression are swapped), or pairs of a ranking turned round."),
    ] = "labels",
    share: Annotated[float, typer.Option(help="Of the training side that is wrong: more than 0, at most 0.25.")] = 0.1,
    seeds: Annotated[int, typer.Option(help="How often, with other errors and other weights.", min=2)] = 3,
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """Plant known errors in a copy of the training side, and say which score finds them. The run and its data stay as they are.

    Example: python -m tracin_core evaluate calibrate --share 0.1 --seeds 3
    """
    from tracin_core.records.calibrations import calibrations, start_calibration

    place = opened(workspace)
    chosen = the_run(place, run)
    say(f"{seeds} trainings of run {chosen.id}: {chosen.name}{simulated_mark(chosen.simulated)}")
    job = watch(place, start_calibration(place, chosen, noise=noise, share=share, seeds=seeds))
    found = next(one for one in calibrations(place, chosen) if one.number == (job.result or {})["calibration"])
    say_calibration(found)
    say_next("serve", "--workspace", workspace)
    answer(found.to_dict())


def say_calibration(found: "Calibration") -> None:
    """What every score found, and which one to trust."""
    summary = found.summary()
    errors = f"{int(found.trainings['wrong'].min())} of {int(found.trainings['examples'].min())} training {found.unit}s"
    say(f"{errors} were made wrong; means over {len(found.seeds)} seeds, with 95% intervals{simulated_mark(found.simulated)}:")
    rows = [
        {
            "score": row["score"],
            **{name: f"{row[name]:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})" for name in SHOWN},
            "ties": f"{row['ties']:.0%}",
            "reliable": "yes" if row["reliable"] else "no",
        }
        for row in summary.to_dict("records")
    ]
    for line in in_columns(rows):
        say(line)
    for score, why in found.missing.items():
        say(f"Not judged: {score}. {why}")
    told = found.recommendation()
    if told.score is None:
        say(
            f"Nothing here is reliable: none of {told.judged} scores is clearly better than chance, with an AUROC that stays above 0.6."
        )
        return
    simpler = f" ({told.best} found no less, but not clearly more)" if told.best != told.score else ""
    say(f"Recommended on this data: {told.score}{simpler}")


@evaluate.command("retrain")
def evaluate_retrain(
    exclusions_file: Annotated[Path, typer.Option(help="The list to judge: ids of training samples, or of pairs.")],
    run: RunOption = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each arm.", min=2)] = 3,
    draws: Annotated[int, typer.Option(help="Random lists of the same length.", min=1)] = 3,
    lasting: Annotated[
        Literal["both", "epochs", "steps"], typer.Option(help="Equal epochs, equal steps (fewer examples make fewer), or both.")
    ] = "both",
    action: Annotated[
        Literal["exclude", "down-weight", "turn", "relabel"],
        typer.Option(help="Left out; less weight in the loss; pairs turned round; samples with the likeliest other label."),
    ] = "exclude",
    weight: Annotated[float, typer.Option(help="Of down-weighted examples in the loss.", min=0, max=1)] = 0.25,
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """Train without a list, against nothing left out, as much at random, and the most helpful examples; say whether it helped.

    Example: python -m tracin_core evaluate retrain --exclusions-file exclusions.txt
    """
    from tracin_core.records.evaluations import retrainings, start_retraining, trainings_needed

    place = opened(workspace)
    judged = the_run(place, run)
    chosen, rule = listed(judged, exclusions_file)
    kinds: Any = LASTING[lasting if action == "exclude" else "epochs"]
    count = trainings_needed(seeds, draws, kinds)
    say(f"{count} trainings without and with {len(chosen)} listed of run {judged.id}{simulated_mark(judged.simulated)}")
    doing: Any = action.replace("-", "_")
    asked = {"seeds": seeds, "draws": draws, "lasting": kinds, "action": doing, "weight": weight}
    job = watch(place, start_retraining(place, judged, chosen, rule=rule, **asked))
    found = next(one for one in retrainings(place, judged) if one.number == (job.result or {})["evaluation"])
    say_retraining(found, judged.simulated)
    verdicts = {lasting: found.verdict(lasting) for lasting in found.lasting}
    answer({**found.to_dict(), "simulated": judged.simulated, "verdicts": verdicts})


@evaluate.command("lds")
def evaluate_lds(
    run: RunOption = None,
    unit: Annotated[Literal["sample", "pair"], typer.Option(help="What subsets are drawn of.")] = "sample",
    subsets: Annotated[int, typer.Option(help="How many; half of them choose the damping of curved methods.", min=6)] = 40,
    repeats: Annotated[int, typer.Option(help="Trainings of each subset, with other weights.", min=1)] = 2,
    share: Annotated[float, typer.Option(help="Of the training side that a subset holds.")] = 0.5,
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """Train on random halves of the data, and say how well each method's influences foretold the losses of each test.

    Example: python -m tracin_core evaluate lds --subsets 40 --repeats 2
    """
    from tracin_core.records.faithfulness import faithfulness, start_lds

    place = opened(workspace)
    chosen = the_run(place, run)
    say(f"{subsets * repeats} trainings on {share:.0%} of the {unit}s of run {chosen.id}{simulated_mark(chosen.simulated)}")
    job = watch(place, start_lds(place, chosen, unit=unit, subsets=subsets, repeats=repeats, share=share))
    found = next(one for one in faithfulness(place, chosen) if one.number == (job.result or {})["evaluation"])
    say_faithfulness(found)
    answer(found.to_dict())


@evaluate.command("leave-out")
def evaluate_leave_out(
    run: RunOption = None,
    unit: Annotated[Literal["sample", "pair"], typer.Option(help="What is left out.")] = "sample",
    one: Annotated[bool, typer.Option("--one", help="One at a time, in place of groups.")] = False,
    share: Annotated[
        float | None, typer.Option(help="Of the training side that a group holds; default: 0.05.", show_default=False)
    ] = None,
    subsets: Annotated[int, typer.Option(help="How many trainings leave something else out.", min=6)] = 40,
    repeats: Annotated[int, typer.Option(help="Trainings of each, with other weights.", min=1)] = 3,
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """Train without groups of the data, or without one sample or pair at a time, and say how well influences foretold the losses.

    Up to half of the groups are of like influence, the rest are drawn at random.

    Example: python -m tracin_core evaluate leave-out --unit sample --one --repeats 5
    """
    from tracin_core.records.faithfulness import GROUP, faithfulness, start_lds

    place = opened(workspace)
    chosen = the_run(place, run)
    drawn: Literal["single", "groups"] = "single" if one else "groups"
    if one and share is not None:
        raise typer.BadParameter("--share is the size of groups; leave it out, or --one.")
    share = GROUP if share is None else share
    what = f"one {unit} at a time" if one else f"groups of {share:.0%} of the {unit}s"
    say(f"Up to {subsets * repeats} trainings of run {chosen.id} without {what}{simulated_mark(chosen.simulated)}")
    job = watch(place, start_lds(place, chosen, unit=unit, drawn=drawn, subsets=subsets, repeats=repeats, share=share))
    found = next(each for each in faithfulness(place, chosen) if each.number == (job.result or {})["evaluation"])
    say_faithfulness(found)
    if found.ceiling is not None and found.ceiling < NOISY:
        more = "leave out groups (without --one)" if one else "leave out more (--share)"
        say(f"Another seed moves these losses about as much as what was left out: {more}, or train more often (--repeats)")
    answer(found.to_dict())


def say_faithfulness(found: "Faithfulness") -> None:
    """Each method's score, what limits it, and which tests are foretold worst."""
    say(f"{MEASURED[found.drawn]} on {found.reported_on} subsets of {found.unit}s (95% bootstrap over tests and subsets):")
    rows = [
        {
            "method": row["method"],
            "lds": f"{row['lds']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
            "tests": row["tests"],
            "damping": "-" if row["delta"] is None else f"{row['delta']:g}",
        }
        for row in found.methods.astype(object).where(found.methods.notna(), None).to_dict("records")
    ]
    for line in in_columns(rows):
        say(line)
    for method, why in found.missing.items():
        say(f"Not judged: {method}. {why}")
    if found.ceiling is not None:
        say(f"Losses with one seed foretell those with another to {found.ceiling:.3f}: that noise limits every score.")
    if not rows:
        say("No method could be judged.")
        return
    best = str(found.methods.set_index("method")["lds"].idxmax())
    worst = found.per_test.dropna(subset=[best]).nsmallest(NAMED, best)
    say(f"Foretold worst by {best}: {', '.join(f'{row.test} ({getattr(row, best):.2f})' for row in worst.itertuples())}")


@evaluate.command("stability")
def evaluate_stability(
    run: RunOption = None,
    runs: Annotated[
        str | None,
        typer.Option(help="Ids with commas between; default: those that differ in their seed alone.", show_default=False),
    ] = None,
    across: Annotated[
        Literal["seeds", "checkpoints", "layers"], typer.Option(help="Runs of other seeds; or parts of one run, against the whole.")
    ] = "seeds",
    score: Annotated[Literal["self_influence", "mean_influence"], typer.Option(help="What is compared.")] = "self_influence",
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """Say how far scores agree that should: their ranks, tops and signs, and which examples stand out of the noise.

    Example: python -m tracin_core evaluate stability --across checkpoints
    """
    from tracin_core.records.stability import CLEAR, TOP, compare_parts, compare_runs, seeds_of

    place = opened(workspace)
    if across != "seeds":
        if runs:
            raise typer.BadParameter(f"--runs names several runs, and --across {across} is about one; give --run.")
        found, what = compare_parts(the_run(place, run), across, score), "parts"
    else:
        chosen = [place.run(name.strip()) for name in runs.split(",")] if runs else seeds_of(place, the_run(place, run))
        found, what = compare_runs(chosen, score), "runs"
    say(
        f"{score.replace('_', ' ')} of {found.examples} training examples in {len(found.runs)} {what}{simulated_mark(found.simulated)}:"
    )
    rows = [
        {"a": row["a"], "b": row["b"], **{name: f"{row[name]:.3f}" for name in ("spearman", "overlap", "signs")}}
        for row in found.pairs.to_dict("records")
    ]
    for line in in_columns(rows):
        say(line)
    say(f"overlap: of the two tops of {TOP:.0%}; signs: the same among the largest")
    if found.ensembles is not None:
        told = ", ".join(f"{name} {value:.3f}" for name, value in found.ensembles.items())
        say(f"Means over half of the runs against the other half, over {found.halvings} ways to divide them: {told}")
    if found.clear is not None:
        say(f"{found.clear:.0%} of the examples are more than {CLEAR:g} deviations between runs away from 0")
    answer(found.to_dict())


def listed(run: "Run", file: Path) -> tuple["pd.DataFrame", dict[str, Any]]:
    """The training examples that the list names, and the rule that made it, where its provenance lies beside it.

    Raises:
        InputError: it names none of them, or samples and pairs at once.
    """
    import pandas as pd

    from tracin_core.data.files import read_json
    from tracin_core.records.interchange import provenance_of, read_exclusions, training_exclusions

    lines = read_exclusions(file)
    found = training_exclusions(lines, run.samples)
    for what, names in (("Not in this data set", found.unmatched), ("Not on the training side", found.elsewhere)):
        if names:
            more = ", ..." if len(names) > NAMED else ""
            say(f"{what}, so left as they are: {len(names)} ({', '.join(names[:NAMED])}{more})")
    if not found.matched or (found.samples and found.pairs):
        told = "samples and pairs at once" if found.matched else "no training example"
        raise InputError(f"'{file.name}' names {told}; give a list of training samples, or one of training pairs.")
    if found.pairs:
        pairs = run.train_pairs
        ends = zip(pairs["id1"], pairs["id2"], strict=True)
        chosen = pairs[[frozenset(pair) in found.pairs for pair in ends]].reset_index(drop=True)
        if len(chosen) < len(found.pairs):
            say(f"Of equal labels, so no training pair: {len(found.pairs) - len(chosen)} of {len(found.pairs)}")
    else:
        chosen = pd.DataFrame({"id": sorted(found.samples)})
    provenance = provenance_of(file)
    told = read_json(provenance) if provenance.is_file() else {}
    same = sorted(str(entry["id"]) for entry in told.get("entries", [])) == sorted(lines)
    return chosen, told["rule"] if same and "rule" in told else {"file": file.name}


def say_retraining(found: "Retraining", simulated: bool) -> None:
    """What the list did against each control, and the verdict."""
    percent = found.measure == "accuracy"
    unit = "points of test accuracy" if percent else "test error, a fall counting as +"
    doing = {"down_weight": f"a weight of {found.weight} for", "turn": "turning round", "relabel": "relabelling"}
    done = doing.get(found.action, "leaving out")
    say(f"Effects of {done} {found.entries} {found.noun}s, in {unit}{simulated_mark(simulated)}:")
    factor = 100 if percent else 1
    rows = [
        {
            "equal": row["lasting"],
            "changed" if found.action != "exclude" else "left out": row["arm"],
            "against": row["against"],
            "difference": f"{factor * row['difference']:+.3g}",
            "from": f"{factor * row['low']:+.3g}",
            "to": f"{factor * row['high']:+.3g}",
        }
        for row in found.effects().to_dict("records")
    ]
    for line in in_columns(rows):
        say(line)
    words = {
        "helps": f"it helped: better than {done} as much at random, by more than the interval.",
        "harms": f"it did harm: worse than {done} as much at random, by more than the interval. Do not do this.",
        "unproven": f"unproven: the interval against {done} as much at random holds 0. More seeds may tell.",
    }
    for lasting in found.lasting:
        say(f"Equal {lasting}: {words[found.verdict(lasting)]}")
