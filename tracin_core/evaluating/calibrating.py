"""Errors planted in a copy of the training side, a model trained on it, and every score asked where they are."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.data.files import read_json, write_json, write_whole
from tracin_core.data.readers import Inputs
from tracin_core.data.samples import all_pairs
from tracin_core.errors import InputError, ViewError
from tracin_core.reading import plugins_of, read_dataset
from tracin_core.records.calibrations import Planted, plant
from tracin_core.records.checkpoint_files import list_checkpoints
from tracin_core.records.evaluations import MEASURE
from tracin_core.records.progress import Progress
from tracin_core.records.runs import Run
from tracin_core.scores.comparison import Methods
from tracin_core.scores.evaluation import Detection, detection
from tracin_core.scores.influence import Kernels
from tracin_core.scores.methods import METHODS, random_scores
from tracin_core.scores.retraining import Training
from tracin_core.scores.rollups import roll_up
from tracin_core.scores.view import View

Array = npt.NDArray[np.float64]
PREFIX: Final = "model_epoch_"
DRAWS: Final = 20  # random orders whose mean is what chance finds
PARTS: Final = {"training": 50, "kernels": 40, "scores": 10}  # of a seed's work, for the progress
EACH: Final = sum(PARTS.values())
MAPS: Final = ("tracin", "last_checkpoint", "curvature", "training_time")  # whose mean influence is one product
# What is not asked for its mean influence on the validation side, and why.
NOT_MEANT: Final = {"linearised_retraining": "It would replay the training once for each example and test; retrain instead."}


def calibrate(progress: Progress) -> dict[str, Any]:
    """Every seed's errors are planted, learnt and looked for; what came of it is in `calibrations/<calibration>/result.json`.

    Beside it `seed-<seed>.json` holds the figures and `seed-<seed>.csv` the scores that they are of. A seed that was done before the job
    was interrupted is found there.

    Raises:
        InputError: the data are not what the run was computed on.
    """
    request = progress.job.request
    run = progress.workspace.run(request["run"])
    folder = progress.workspace.root / "calibrations" / request["calibration"]
    samples, inputs, _ = read_dataset(progress, run.recipe)
    require_same(run, samples)
    progress.step("calibrating", EACH * len(request["seeds"]))
    found = []
    for place, seed in enumerate(request["seeds"]):
        file = folder / f"seed-{seed}.json"
        if not file.exists():
            one_seed(progress, run, samples, inputs, folder, seed, Share(progress, place, len(request["seeds"])))
        found.append(read_json(file))
        progress.advance(EACH * (place + 1))
    kept = {name: request[name] for name in ("digest", "subject", "noise", "share", "simulated", "settings", "assumed")}
    result = {
        "run_id": request["run"],
        **kept,
        "unit": "pair" if request["noise"] == "pair_flips" else "sample",
        "created": time.time(),
        "who": progress.job.who,
        "table": [{"seed": one["seed"], **row} for one in found for row in one["figures"]],
        "missing": {score: why for one in found for score, why in one["missing"].items()},
        "planted": {str(one["seed"]): one["planted"] for one in found},
        "trainings": [{"seed": one["seed"], **one["training"]} for one in found],
    }
    write_json(folder / "result.json", result)
    return {"calibration": request["calibration"], "run_id": request["run"]}


def require_same(run: Run, samples: pd.DataFrame) -> None:
    """The files hold what they held when the run was computed.

    Raises:
        InputError: names the first sample that is new, gone or another.
    """
    before, now = (dict(zip(table["id"], table["digest"], strict=True)) for table in (run.samples, samples))
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        raise InputError(
            f"{len(changed)} samples are not as they were when run '{run.name}' was computed, '{changed[0]}' for one; compute it again."
        )


@dataclass(frozen=True)
class Share:
    """A seed's share of the progress."""

    progress: Progress
    place: int
    seeds: int

    def tell(self, part: str, done: int, of: int) -> None:
        """So many of so many are done of this part of the seed."""
        before = sum(size for name, size in PARTS.items() if list(PARTS).index(name) < list(PARTS).index(part))
        self.progress.advance(EACH * self.place + before + PARTS[part] * done // max(of, 1), EACH * self.seeds)


def one_seed(progress: Progress, run: Run, samples: pd.DataFrame, inputs: Inputs, folder: Path, seed: int, share: Share) -> None:
    """`seed-<seed>.csv` and then `seed-<seed>.json` are in the folder; the checkpoints are gone."""
    from tracin_core.engine.training import train

    request, recipe = progress.job.request, run.recipe
    planted = plant(samples, recipe.task, request["noise"], request["share"], seed)
    trained = folder / f"seed-{seed}"
    told = train(
        inputs,
        planted.samples,
        trained,
        model=recipe.model,
        task=recipe.task,
        plugins=plugins_of(progress.workspace),
        flip_pairs=planted.flips,
        progress=partial(share.tell, "training"),
        **{**request["settings"], "save_epochs": tuple(request["settings"]["save_epochs"]), "seed": seed},
    )
    plugins = plugins_of(progress.workspace)
    methods = methods_of(plugins, run, planted, inputs, trained, told, seed=seed, tell=partial(share.tell, "kernels"))
    scores, missing = scores_of(methods, partial(share.tell, "scores"))
    wrong, table = judged(run, methods.view, scores, planted)
    figures = {score: figures_of(detection(table[score], wrong)) for score in scores}
    figures["random"] = chance(wrong, seed)
    csv = table.assign(planted=wrong).to_csv(index=False, float_format="%.17g")
    write_whole(folder / f"seed-{seed}.csv", [csv.encode()])
    measure = f"validation_{MEASURE[recipe.task.kind]}"
    write_json(
        folder / f"seed-{seed}.json",
        {
            "seed": seed,
            "figures": [{"score": score, **row} for score, row in figures.items()],
            "missing": missing,
            "planted": list(planted.truth),
            "training": {"examples": len(wrong), "wrong": int(wrong.sum()), measure: told[measure]},
        },
    )
    for checkpoint in trained.glob("*.pt"):
        checkpoint.unlink()


# ---- the methods on what was trained --------------------------------------------------------------------------------------------------


def methods_of(
    plugins: Path,
    run: Run,
    planted: Planted,
    inputs: Inputs,
    trained: Path,
    told: dict[str, Any],
    *,
    seed: int,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Methods:
    """Every method on the planted training side and the run's validation side: the view that the run opens with, of these checkpoints.

    Args:
        inputs: of all samples, in the order of `planted.samples`.
        trained: folder of the checkpoints; `told` is what their training returned.
        tell: called with how much of the kernels is done, and how much there is.
    """
    from tracin_core.engine import in_memory
    from tracin_core.engine.kernel import kernel_groups
    from tracin_core.engine.models import build_model

    model = build_model(run.recipe.model, plugins)
    taken = in_memory.own_snapshots(model, list_checkpoints(trained, PREFIX))
    tables = {side: planted.samples.set_index("id", drop=False).loc[run.splits[side]["id"]] for side in ("train", "validation")}
    rows = {name: row for row, name in enumerate(planted.samples["id"])}
    train, test = (
        in_memory.Gathered(
            in_memory.inputs_of(side, np.ascontiguousarray(inputs[[rows[name] for name in table["id"]]])),
            table.reset_index(drop=True),
        )
        for side, table in tables.items()
    )
    groups = kernel_groups(model, cells=1, budget=0)  # the last layer apart, for representer points
    settings = in_memory.KernelSettings(run.manifest.cotangent, groups, run.recipe.engine.batch_size)
    summed = told["settings"]["save_epochs"]  # those of the run, which may end before its training
    learnt = [snapshot for snapshot in taken if snapshot.epoch and (snapshot.epoch in summed or not summed)]
    done = iter(range(1, 3 * len(learnt) + 1))

    def tell_next() -> None:
        tell(next(done), 3 * len(learnt))

    parts = {
        name: in_memory.kernels(model, learnt, settings, *sides, tell_next)
        for name, sides in {"train_train": (train, None), "test_train": (test, train), "test_test": (test, None)}.items()
    }
    outputs = [in_memory.outputs(model, taken, settings, side) for side in (train, test)]
    kept = [taken.index(snapshot) for snapshot in learnt]
    kernels = Kernels(**parts, train_outputs=outputs[0][kept], test_outputs=outputs[1][kept])
    batch = int(told["settings"].get("batch_pairs") or told["settings"]["batch_size"])
    examples = told["train_pairs"] or told["train_samples"]
    training = Training(
        epochs=tuple(int(entry["epoch"]) for entry in told["history"]),
        train_outputs=outputs[0],
        test_outputs=outputs[1],
        rate_sums=np.array([entry["rate_sum"] for entry in told["history"]]),
        steps_per_epoch=-(-examples // batch),
        examples=examples,
        optimizer="SGD",
        momentum=told["settings"]["momentum"],
    )
    names = [f"epoch {snapshot.epoch}" for snapshot in learnt]
    shared: dict[str, Any] = {"checkpoint_weights": np.ones(len(learnt)), "checkpoint_names": names}
    view = partial(view_of, run, planted, train.samples, test.samples, kernels, shared)
    last = view([len(groups) - 1]) if len(groups) > 1 else None
    features = in_memory.features_of(model, learnt[-1], settings, train, test) if run.manifest.cotangent == "label_logit" else None
    return Methods(view(None), training, last_layer=last, features=features, seed=seed)


def view_of(
    run: Run,
    planted: Planted,
    train: pd.DataFrame,
    test: pd.DataFrame,
    kernels: Kernels,
    shared: dict[str, Any],
    layers: list[int] | None,
) -> View:
    """The examples as they were learnt, and the run's tests."""
    loss: Any = run.loss
    if run.task != "ranking":
        target = "target" if run.task == "regression" else "label"
        cotangent = run.manifest.cotangent
        return View.of_samples(train, test, kernels, loss=loss, cotangent=cotangent, target=target, layers=layers, **shared)
    pairs = all_pairs(train)
    turned = [frozenset(ends) in planted.flips for ends in zip(pairs["id1"], pairs["id2"], strict=True)]
    pairs["target"] = np.where(turned, -pairs["target"], pairs["target"])
    return View.of_pairs(pairs, run.test_pairs, kernels, loss=loss, train_samples=train, test_samples=test, layers=layers, **shared)


# ---- scores and what they find --------------------------------------------------------------------------------------------------------


def scores_of(methods: Methods, tell: Callable[[int, int], None]) -> tuple[dict[str, Array], dict[str, str]]:
    """Every score of each training example, the more suspect the higher; and why a score is not there."""
    scores: dict[str, Array] = {}
    missing: dict[str, str] = {}
    asked = list(questions(methods))
    for done, (score, ask) in enumerate(asked):
        tell(done, len(asked))
        try:
            values = ask()
        except ViewError as refusal:
            missing[score] = str(refusal)
            continue
        undefined = int((~np.isfinite(values)).sum())
        if undefined:
            missing[score] = f"{undefined} of {len(values)} training examples have no such score: they have no gradient."
        else:
            scores[score] = values
    return scores, missing


def questions(methods: Methods) -> Iterator[tuple[str, Callable[[], Array]]]:
    """Each score by name, but for chance: what every method says of an example itself, and minus its mean influence on the validation."""
    for name, entry in METHODS.items():
        suffix = "" if name == "tracin" else f".{name}"
        baseline = "influence" not in entry.defines
        if baseline and name != "random":
            yield name, partial(methods.self_influence, name)
        elif not baseline:
            if "self_influence" in entry.defines:
                yield f"self_influence{suffix}", partial(methods.self_influence, name)
            yield f"mean_influence{suffix}", partial(harm, methods, name)
    yield "worst_influence", lambda: -methods.view.worst_influence()


def harm(methods: Methods, name: str) -> Array:
    """Minus the mean influence of each training example on the live tests: [N].

    Raises:
        ViewError: the method has none here, or it is not meant to.
    """
    if name in NOT_MEANT:
        raise ViewError(NOT_MEANT[name])
    if name in MAPS:
        return -methods.mapped(name).mean_influence()
    live = methods.view.test_pairs["id"][~methods.view.dead_tests]
    if live.empty:
        raise ViewError("Every test is dead, so nothing has influence on any; choose a larger margin, or another loss.")
    return np.asarray(-np.mean([methods.influence(name, test) for test in live], axis=0))


def judged(run: Run, view: View, scores: dict[str, Array], planted: Planted) -> tuple[npt.NDArray[np.bool_], pd.DataFrame]:
    """Which examples are planted errors, and the scores that are judged: of pairs as they are, of samples the mean over their pairs.

    Returns:
        [n] and a table with id and one column per score, in the same order.
    """
    if planted.flips:
        pairs = view.train_pairs
        wrong = [frozenset(ends) in planted.flips for ends in zip(pairs["id1"], pairs["id2"], strict=True)]
        return np.array(wrong), pd.DataFrame({"id": pairs["id"].tolist(), **scores})
    samples = view.train_samples
    if run.task == "ranking":
        numbered = samples.assign(_row=np.arange(len(samples)))
        means = {
            name: roll_up(values, view.train_pairs, numbered, by="_row", ends="both")["mean"].to_numpy()
            for name, values in scores.items()
        }
    else:
        means = dict(scores)
    return samples["id"].isin(planted.wrong).to_numpy(), pd.DataFrame({"id": samples["id"].tolist(), **means})


def figures_of(found: Detection) -> dict[str, float]:
    """The figures as they are kept."""
    return {
        "auroc": found.auroc,
        "average_precision": found.average_precision,
        **{f"recovery_{round(100 * share)}": value for share, value in found.recovery.items()},
        "ties": found.ties,
        "zeros": found.zeros,
    }


def chance(wrong: npt.NDArray[np.bool_], seed: int) -> dict[str, float]:
    """What random orders find, in the mean over `DRAWS` of them: one order alone would widen every interval against it."""
    drawn = [figures_of(detection(random_scores(len(wrong), DRAWS * seed + draw), wrong)) for draw in range(DRAWS)]
    return {name: float(np.mean([one[name] for one in drawn])) for name in drawn[0]}
