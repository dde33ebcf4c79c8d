"""Whether a run's influences foretell what training on other subsets of its data does: what was asked, and what came of it.

The linear datamodelling score (LDS; Park, Georgiev, Ilyas, Leclerc, Madry 2023, arXiv 2303.14186): half of the training side is drawn again
and again, the model is trained on each half, and per test the Spearman correlation over the halves is taken between minus the loss that was
measured and the sum of the influences of what the half holds.

The same question with less left out: groups (up to half of them of like influence, the rest drawn at random), or one sample or pair at
a time (leave-one-out). Of a network, one at a time moves a loss less than another seed does; the ceiling shows it.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import pandas as pd

from tracin_core.data.files import read_json
from tracin_core.errors import InputError
from tracin_core.records.jobs import Job
from tracin_core.records.runs import Run
from tracin_core.records.store import digest_of
from tracin_core.records.trainings import left_out_before, settings_of

if TYPE_CHECKING:
    from tracin_core.records.workspace import Workspace

Unit = Literal["sample", "pair"]
UNITS: Final[tuple[Unit, ...]] = get_args(Unit)
Drawn = Literal["halves", "groups", "single"]
DRAWN: Final[tuple[Drawn, ...]] = get_args(Drawn)
FOLDER: Final = "faithfulness"
SUBSETS: Final = 40
REPEATS: Final = 2
LARGEST: Final = 0.5  # share of a group
HALF, GROUP = 0.5, 0.05  # of the training side: what a half holds, and what is usually left out as a group
FEWEST: Final = 6  # half of them choose the damping, and three can be ranked


@dataclass(frozen=True)
class Faithfulness:
    """A finished evaluation.

    Attributes:
        drawn: halves; or all but a group, or all but one.
        unit: what subsets are drawn of; of a ranking's samples, pairs stay whose ends are both in.
        methods: one row per method: method, lds (mean over tests), low, high (95 % bootstrap over tests and subsets), tests (how many
            have a score), delta (the damping that the other half of the subsets chose; None where there is none).
        per_test: test id, then one column per method; NaN where a prediction or the outcome is the same for every subset.
        ceiling: the LDS of one repetition's losses as the prediction of another's, per mean of what is left of seed noise; None with one
            repetition.
        missing: method -> why it could not be asked.
        reported_on: how many subsets all figures are of; the rest chose the damping.
        trainings: number of the evaluation whose subsets and trainings these are. What a run divides its gradients by changes neither, so
            it is judged on those of the plain run of its checkpoints, where the workspace has that; but for groups, which follow the
            run's own influences.
    """

    number: str
    run_id: str
    digest: str
    unit: Unit
    drawn: Drawn
    share: float
    subsets: int
    repeats: int
    reported_on: int
    simulated: bool
    assumed: tuple[str, ...]
    created: float
    who: str
    methods: pd.DataFrame
    per_test: pd.DataFrame
    ceiling: float | None
    missing: dict[str, str]
    trainings: str

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain values."""
        return {name: value.to_dict("records") if isinstance(value, pd.DataFrame) else value for name, value in vars(self).items()}


def start_lds(
    place: "Workspace",
    run: Run,
    *,
    unit: Unit = "sample",
    drawn: Drawn = "halves",
    subsets: int = SUBSETS,
    repeats: int = REPEATS,
    share: float = HALF,
) -> Job:
    """The run's model is being trained on subsets of its training side; what is trained already is not trained again.

    Args:
        share: of the training side: what a half holds, or what a group leaves out; without meaning for single ones.

    Raises:
        InputError: too few subsets or repetitions, a share that is none, pairs of what has none, or a run without a model.
    """
    if subsets < FEWEST or repeats < 1:
        raise InputError(f"{subsets} subsets, {repeats} times each, rank nothing; ask for at least {FEWEST} subsets, once.")
    if drawn not in DRAWN:
        raise InputError(f"Subsets are not drawn as '{drawn}'; choose from {', '.join(DRAWN)}.")
    if drawn == "groups" and share > LARGEST:
        raise InputError(f"Groups of {share:.0%} are no groups to leave out; give at most {LARGEST:.0%}, or ask for halves.")
    if drawn == "single":
        share = 0.0
    elif not 0 < share < 1:
        raise InputError(f"A share of {share:g} leaves nothing in or nothing out; give one between 0 and 1.")
    if unit == "pair" and run.noun != "pair":
        raise InputError(f"Run '{run.name}' is of single samples; draw subsets of samples.")
    if run.kind == "scores":
        raise InputError(
            f"Run '{run.name}' was imported from score files, so there is no model to train; compute it from its checkpoints."
        )
    place.data_files(run.recipe)
    settings, assumed = settings_of(run)
    drawing = {
        "settings": settings,
        "unit": unit,
        **({} if drawn == "halves" else {"drawn": drawn}),
        "share": share,
        "subsets": subsets,
        "repeats": repeats,
    }
    of_trainings = run if drawn == "groups" else plain_run(place, run)  # groups follow the run's own influences
    asked = {**identity(run), **drawing}
    request = {
        **asked,
        "evaluation": digest_of(asked)[:12],
        "trainings": digest_of({**identity(of_trainings), **drawing})[:12],
        "assumed": assumed,
        "simulated": run.simulated,
        "left_out_before": sorted(left_out_before(run)),
    }
    return place.queue.submit("faithfulness", request, title=f"{run.name}: {subsets} subsets", run_id=run.id, who=place.who)


def identity(run: Run) -> dict[str, Any]:
    """What tells the run from every other."""
    return {"run": run.id, "digest": run.digest, "recipe": run.recipe.to_dict()}


def plain_run(place: "Workspace", run: Run) -> Run:
    """The workspace's first run of the same checkpoints and samples by plain gradients; where it has none, the run itself."""
    if run.precondition == "none":
        return run
    finished = place.runs().query("state == 'done'")["id"][::-1]
    alike = (place.run(name) for name in finished)
    return next((one for one in alike if one.precondition == "none" and one.digest == run.plain_digest), run)


def faithfulness(place: "Workspace", run: Run) -> list[Faithfulness]:
    """The finished evaluations of the run, newest first; a file that cannot be read is not among them."""
    found = []
    for file in (place.root / FOLDER).glob("*/result.json"):
        try:
            told = read_json(file)
            usual = {"drawn": "halves", "trainings": file.parent.name}  # as older results have it, which do not say so
            tables = {name: pd.DataFrame(told[name]) for name in ("methods", "per_test")}
            found.append(Faithfulness(number=file.parent.name, **{**usual, **told, **tables, "assumed": tuple(told["assumed"])}))
        except (OSError, json.JSONDecodeError, KeyError, TypeError):
            continue
    return sorted((one for one in found if one.run_id == run.id), key=lambda one: -one.created)
