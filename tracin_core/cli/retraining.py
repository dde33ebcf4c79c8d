"""Before and after: a model trained without what a list names, beside one trained with it. Each is trained once, ever."""

import json
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracin_core.cli.asking import training_recipe
from tracin_core.cli.talk import in_columns, say, simulated_mark, watch

if TYPE_CHECKING:
    import pandas as pd

    from tracin_core.records.runs import Run
    from tracin_core.records.workspace import Workspace

FOLLOWED = ("epochs", "save_epochs", "learning_rate", "schedule", "momentum", "batch_pairs", "batch_size", "seed")
MEASURED = ("validation_", "test_")
CAUTION = (
    "One retraining proves little: another seed moves these numbers too. Before you believe the difference, train with several seeds, and "
    "with as many {noun}s left out at random beside them."
)
EVERY_JOB = 10**6


def before_and_after(place: "Workspace", run: "Run", chosen: "pd.DataFrame", file: Path, changed: dict[str, Any]) -> dict[str, Any]:
    """Validation and test results of the run's training, and of the same training without what is listed, said and given back.

    The run's own training is the one before where it was this product's and nothing of it is changed; else that is trained as well, so
    that the two differ in the list alone. What the run's training left out is left out again.

    Args:
        file: the list of what is chosen, in the workspace.
        changed: settings of the training to be other than the run's.
    """
    from tracin_core.records.evaluations import with_their_pairs
    from tracin_core.records.trainings import left_out_before, settings_of

    own = own_training(run)
    recorded = settings_of(run)[0] if own is None else own["settings"]
    settings = {**{name: value for name, value in recorded.items() if name in FOLLOWED}, **changed}
    if "epochs" in changed:
        settings.pop("save_epochs", None)
    earlier = sorted(left_out_before(run))
    if own is None or changed:
        say("Before: the same training is done without this list, because the run's own has other settings or is not known.")
        before = trained(place, run, settings, earlier)
    else:
        say("Before: the run's own training.")
        before = own
    gone = with_their_pairs(run, earlier)
    added = [name for name in chosen["id"].tolist() if name not in gone]
    if not added:
        say("Nothing more is listed, so there is nothing to train without.")
        return {"before": results_of(before), "after": None}
    after = trained(place, run, settings, [*earlier, *added], None if earlier else file)
    rows = table_of(before, after)
    say(f"Before and after leaving out {len(added)} more{simulated_mark(run.simulated)}:")
    for line in in_columns(rows):
        say(line)
    caution = CAUTION.format(noun="sample" if "id1" not in chosen.columns else "pair")
    say(caution)
    return {"before": results_of(before), "after": results_of(after), "left_out": added, "caution": caution}


def own_training(run: "Run") -> dict[str, Any] | None:
    """What `training.json` beside the run's checkpoints tells, if it is of these checkpoints, this split and this loss; else None."""
    from tracin_core.records.trainings import own_training as recorded

    found = recorded(run)
    if found is None or found["settings"].get("margin") != getattr(run.loss, "margin", None):
        return None
    if found.get("exclusions", {}).get("weighted_by"):
        return None
    split = {side: len(samples) for side, samples in run.splits.items()}
    return found if (found.get("split"), found["settings"].get("loss")) == (split, run.loss.name) else None


def trained(place: "Workspace", run: "Run", settings: dict[str, Any], lines: list[str], file: Path | None = None) -> dict[str, Any]:
    """The training of the run's data and task without these: in a folder named after all that decides it, so that none is done twice.

    One that was interrupted goes on as the job that it was.

    Args:
        file: where these lines, and no others, are listed already; None: a list of them is written into the folder.
    """
    from tracin_core.data.files import read_json, write_text

    recipe = training_recipe(place, run.id, data={}, task={})
    key = sha256(json.dumps([run.id, recipe.digest(), settings, sorted(set(lines))], sort_keys=True).encode()).hexdigest()[:12]
    mark = "SIMULATED_" if run.simulated else ""
    folder = place.root / "trainings" / f"{mark}{recipe.data.stem}_{run.loss.name}_without_{len(lines)}_{key}"
    told = folder / "training.json"
    if told.is_file():
        say(f"Trained already: {folder}")
        return {**read_json(told), "folder": str(folder)}
    earlier = [job for job in place.jobs(EVERY_JOB) if job.kind == "training" and job.request.get("folder") == str(folder)]
    if earlier and earlier[0].state != "done":
        job = earlier[0] if earlier[0].is_live else place.resume(earlier[0].id)
    else:
        if lines and file is None:
            file = folder / "exclusions.txt"
            write_text(file, "".join(f"{line}\n" for line in ["# left out of this training", *lines]))
        job = place.start_training(recipe, settings=settings, folder=folder, exclusions_file=file)
    return watch(place, job).result or {}


def results_of(training: dict[str, Any]) -> dict[str, Any]:
    """What a training reached on the sides that it did not see, and how much it was trained on."""
    reached = {name: value for name, value in training.items() if name.startswith(MEASURED) and value is not None}
    counted = {name: training.get(name) for name in ("train_samples", "train_pairs")}
    return {**reached, **counted, "folder": training.get("folder")}


def table_of(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per model, and what changed between them."""
    one, two = ({name: value for name, value in results_of(each).items() if name != "folder"} for each in (before, after))
    shared = [name for name in one if one[name] is not None and two.get(name) is not None]
    return [
        {"": "before", **{name: told(one[name]) for name in shared}},
        {"": "after", **{name: told(two[name]) for name in shared}},
        {"": "change", **{name: told(two[name] - one[name], sign="+") for name in shared}},
    ]


def told(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if isinstance(value, float) else f"{value:{sign}d}"
