"""`evaluate quick` and `evaluate full`: every question of `evaluate` about one run, in one go, and one document of the answers."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tracin_core import __version__
from tracin_core.cli.asking import JsonOption, RunOption, WorkspaceOption, opened, the_run
from tracin_core.cli.evaluating import listed
from tracin_core.cli.talk import answer, plain, say, simulated_mark, watch

if TYPE_CHECKING:
    from tracin_core.records.jobs import Job
    from tracin_core.records.runs import Run
    from tracin_core.records.workspace import Workspace

ListOption = Annotated[
    Path | None,
    typer.Option(help="The list to judge; default: what the harm rule lists at the suggested threshold.", show_default=False),
]
OutputOption = Annotated[Path | None, typer.Option(help="Where to write; default: exports/<run>/evaluation.", show_default=False)]


@dataclass(frozen=True)
class Plan:
    """How often each question is asked.

    Attributes:
        calibration: seeds of planted errors.
        seeds, draws: trainings of each arm of the list, and random lists.
        subsets, repeats: random halves of the training side, and trainings of each.
    """

    calibration: int
    seeds: int
    draws: int
    subsets: int
    repeats: int

    @property
    def trainings(self) -> int:
        return self.calibration + self.seeds * (3 + self.draws) + self.subsets * self.repeats


PLANS: Final = {"quick": Plan(2, 2, 1, 12, 1), "full": Plan(5, 6, 3, 100, 2)}
MOST: Final = 50  # entries of the list that is made where none is given


def evaluate_quick(
    run: RunOption = None,
    exclusions_file: ListOption = None,
    output: OutputOption = None,
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """Ask every question about a run with few trainings: a first look. Intervals are wide.

    Example: python -m tracin_core evaluate quick
    """
    ask_all("quick", run, exclusions_file, output, workspace)


def evaluate_full(
    run: RunOption = None,
    exclusions_file: ListOption = None,
    output: OutputOption = None,
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """Ask every question about a run with as many trainings as a claim needs. Stopped, it goes on where it was.

    Example: python -m tracin_core evaluate full --exclusions-file exclusions.txt
    """
    ask_all("full", run, exclusions_file, output, workspace)


def ask_all(name: str, run: str | None, exclusions_file: Path | None, output: Path | None, workspace: Path) -> None:
    """What was answered before is not asked again; the document is beside the run's exports, as JSON and as Markdown."""
    from tracin_core.data.files import write_json, write_text

    place, plan = opened(workspace), PLANS[name]
    chosen = the_run(place, run)
    say(f"{plan.trainings} and more trainings of run {chosen.id}: {chosen.name}{simulated_mark(chosen.simulated)}")
    judged = retrained(place, chosen, plan, exclusions_file)  # first: a list that cannot be judged is refused before hours of work
    parts = [calibrated(place, chosen, plan), foretold(place, chosen, plan), judged]
    document = {
        "asked": name,
        "plan": asdict(plan),
        "run_id": chosen.id,
        "digest": chosen.digest,
        "name": chosen.name,
        "simulated": chosen.simulated,
        "versions": {"tracin": __version__, "python": platform.python_version(), **{it: version(it) for it in ("torch", "numpy")}},
        "cpu_seconds": sum(part["cpu_seconds"] for part in parts),
        "parts": parts,
    }
    folder = output or place.root / "exports" / chosen.id / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"evaluation-{name}.json", plain(document))
    write_text(folder / f"evaluation-{name}.md", in_markdown(document))
    say(f"Written: {folder / f'evaluation-{name}.md'} and .json")
    answer(document)


# ---- the questions --------------------------------------------------------------------------------------------------------------


def calibrated(place: "Workspace", run: "Run", plan: Plan) -> dict[str, Any]:
    """Which score finds errors that were planted."""
    from tracin_core.records.calibrations import SHARE, calibrations, start_calibration

    job = watch(place, start_calibration(place, run, noise="labels", share=SHARE, seeds=plan.calibration))
    found = next(one for one in calibrations(place, run) if one.number == (job.result or {})["calibration"])
    told = found.recommendation()
    figures = ("average_precision", "auroc", "recovery_10", "recovery_20", "recovery_30")
    rows = [
        {"score": row["score"], **{name: interval(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in figures}}
        for row in found.summary().to_dict("records")
    ]
    verdict = f"Recommended: {told.score}" if told.score else f"None of {told.judged} scores is reliable here"
    question = f"Which score finds {found.share:.0%} planted errors?"
    return part(question, job, rows, verdict, found.to_dict(), found.seeds)


def foretold(place: "Workspace", run: "Run", plan: Plan) -> dict[str, Any]:
    """How well influences foretell trainings on random halves."""
    from tracin_core.records.faithfulness import faithfulness, start_lds

    job = watch(place, start_lds(place, run, subsets=plan.subsets, repeats=plan.repeats))
    found = next(one for one in faithfulness(place, run) if one.number == (job.result or {})["evaluation"])
    rows = [
        {"method": row["method"], "LDS": interval(row["lds"], row["low"], row["high"]), "tests": row["tests"]}
        for row in found.methods.to_dict("records")
    ]
    ceiling = "" if found.ceiling is None else f"; losses of one seed foretell those of another to {found.ceiling:.3f}"
    verdict = f"On {found.reported_on} subsets of {found.unit}s{ceiling}"
    seeds = list(range(1, plan.repeats + 1))
    return part("Do influences foretell training? (linear datamodelling score)", job, rows, verdict, found.to_dict(), seeds)


def retrained(place: "Workspace", run: "Run", plan: Plan, exclusions_file: Path | None) -> dict[str, Any]:
    """Whether training without the list helps."""
    from tracin_core.records.evaluations import retrainings, start_retraining

    if exclusions_file is None:
        view = run.view()
        mode: Any = "ranking_pair" if run.noun == "pair" else "sample"
        threshold = view.suggested_threshold(1, mode)
        rule: dict[str, Any] = {"threshold": threshold, "min_occurrences": 1, "max_exclusions": MOST, "pair_mode": mode}
        chosen = view.exclusions(**rule)
    else:
        chosen, rule = listed(run, exclusions_file)
    asked: Any = {"seeds": plan.seeds, "draws": plan.draws, "lasting": ("epochs",)}
    job = watch(place, start_retraining(place, run, chosen, rule=rule, **asked))
    found = next(one for one in retrainings(place, run) if one.number == (job.result or {})["evaluation"])
    rows = [
        {
            "left out": row["arm"],
            "against": row["against"],
            f"change of test {found.measure}": interval(row["difference"], row["low"], row["high"]),
        }
        for row in found.effects().to_dict("records")
    ]
    verdict = f"Leaving out {len(chosen)} {found.noun}s against as many at random: {found.verdict('epochs')}"
    return part("Does leaving the list out help?", job, rows, verdict, found.to_dict(), list(range(1, plan.seeds + 1)))


# ---- the document ---------------------------------------------------------------------------------------------------------------


def interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def part(
    question: str, job: "Job", rows: Sequence[dict[str, Any]], verdict: str, content: dict[str, Any], seeds: list[int]
) -> dict[str, Any]:
    """A question with its answer; the seconds are those of the job, since it was last taken up."""
    say(f"{question} {verdict}.")
    taken = float((job.result or {}).get("cpu_seconds", 0.0))
    return {"question": question, "verdict": verdict, "rows": list(rows), "seeds": seeds, "cpu_seconds": taken, "content": content}


def in_markdown(document: dict[str, Any]) -> str:
    """The document for people."""
    mark = simulated_mark(document["simulated"])
    versions = ", ".join(f"{name} {told}" for name, told in document["versions"].items())
    lines = [
        f"# {document['name']}: what its scores are worth{mark}",
        "",
        f"`evaluate {document['asked']}` of run {document['run_id']} (scores {document['digest'][:12]}). Means with 95% intervals. "
        f"{versions}; {document['cpu_seconds']:.0f} s of processor time.",
    ]
    for told in document["parts"]:
        lines += ["", f"## {told['question']}", "", f"{told['verdict']}. Seeds {', '.join(map(str, told['seeds']))}.", ""]
        if told["rows"]:
            names = list(told["rows"][0])
            lines += ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
            lines += ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in told["rows"]]
    return "\n".join([*lines, ""])
