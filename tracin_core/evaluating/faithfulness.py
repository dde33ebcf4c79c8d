"""Trainings on subsets of the training side, and how well each method's influences foretold their losses."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.data.files import write_json
from tracin_core.errors import InputError, ViewError
from tracin_core.evaluating.calibrating import require_same
from tracin_core.reading import plugins_of, read_dataset
from tracin_core.records.evaluations import with_their_pairs
from tracin_core.records.faithfulness import FEWEST, FOLDER, Unit
from tracin_core.records.interchange import training_exclusions
from tracin_core.records.progress import Progress
from tracin_core.records.runs import Run
from tracin_core.scores.comparison import Methods
from tracin_core.scores.damping import best_by_lds, halves
from tracin_core.scores.evaluation import Lds, half_subsets, lds

Array = npt.NDArray[np.float64]
Chosen = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
TRIES: Final = 50  # draws per random group until it is a new one
MAPS: Final = ("tracin", "last_checkpoint", "training_time")  # without a damping to choose


def faithfulness(progress: Progress) -> dict[str, Any]:
    """Every subset is trained on; what came of it is in `faithfulness/<evaluation>/result.json`.

    A training that was done before the job was interrupted is found on disk.

    Raises:
        InputError: the data are not what the run was computed on.
    """
    request = {"drawn": "halves", "trainings": progress.job.request["evaluation"], **progress.job.request}
    run = progress.workspace.run(request["run"])
    folder = progress.workspace.root / FOLDER
    samples, inputs, _ = read_dataset(progress, run.recipe)
    require_same(run, samples)
    methods = run.methods()
    before = with_their_pairs(run, request["left_out_before"])
    names = unit_names(methods, request["unit"], before)
    seed = int(request["trainings"], 16)
    kept = what_stays(methods, request, names, seed)
    measured = outcomes(progress, run, samples, inputs, folder / request["trainings"], names, kept, methods)
    examples = kept_examples(methods, request["unit"], names, kept, before)
    progress.step("judging", 1)
    told = judged(methods, examples, measured, seed)
    plain = ("digest", "unit", "drawn", "share", "repeats", "simulated", "assumed", "trainings")
    about = {name: request[name] for name in plain}
    result = {**about, "subsets": len(kept), "run_id": run.id, "created": time.time(), "who": progress.job.who, **told}
    write_json(folder / request["evaluation"] / "result.json", result)
    return {"evaluation": request["evaluation"], "run_id": run.id}


# ---- trainings ------------------------------------------------------------------------------------------------------------------


def unit_names(methods: Methods, unit: Unit, before: set[str]) -> list[str]:
    """What subsets are drawn of: samples of the training side, or its pairs, but for what the run's own training left out by a list."""
    table = methods.view.train_pairs if unit == "pair" else methods.view.train_samples
    return [str(name) for name in table["id"] if name not in before]


def what_stays(methods: Methods, request: dict[str, Any], names: list[str], seed: int) -> Chosen:
    """What each training keeps: [subsets, units]; no two keep the same.

    Groups are first of like influence (in its order, as many neighbours as the share holds; half of what is asked for, evenly along it),
    and then drawn at random. Single units are all of them, or as many as are asked for, drawn at random.

    Raises:
        InputError: there are too few units for `FEWEST` different subsets.
    """
    drawn, count, units = request["drawn"], request["subsets"], len(names)
    if drawn == "halves":
        return half_subsets(units, count, share=request["share"], seed=seed)
    generator = np.random.default_rng(seed)
    if drawn == "single":
        groups = [frozenset([int(unit)]) for unit in np.sort(generator.permutation(units)[:count])]
    else:
        size = max(round(request["share"] * units), 1)
        order = np.argsort(unit_influence(methods, request["unit"], names), kind="stable")
        starts = np.unique(np.linspace(0, units - size, count // 2).round().astype(int))
        groups = [frozenset(order[start : start + size].tolist()) for start in starts]
        for _ in range(TRIES * count):
            if len(groups) == count:
                break
            group = frozenset(generator.choice(units, size, replace=False).tolist())
            groups += [] if group in groups else [group]
    if len(groups) < FEWEST:
        raise InputError(f"{units} {request['unit']}s make {len(groups)} different subsets, of which at least {FEWEST} are needed.")
    kept = np.ones((len(groups), units), dtype=bool)
    for row, group in zip(kept, groups, strict=True):
        row[list(group)] = False
    return kept


def unit_influence(methods: Methods, unit: Unit, names: list[str]) -> Array:
    """The mean influence on live tests of each sample, with all its pairs, or of each pair: [units]."""
    view = methods.view
    each = view.mean_influence() * view.train.multiplicity
    table, members = view.train_pairs, np.arange(len(each))[:, None]
    if unit == "sample":
        table, members = view.train_samples, view.train.members
    sums = np.bincount(members.ravel(), weights=np.repeat(each, members.shape[1]), minlength=len(table))
    return np.asarray(sums[table["id"].isin(names).to_numpy()])


def outcomes(
    progress: Progress,
    run: Run,
    samples: pd.DataFrame,
    inputs: Any,
    folder: Path,
    names: list[str],
    kept: Chosen,
    methods: Methods,
) -> Array:
    """Minus the loss of each test after each training: [repeats, subsets, tests]."""
    request = progress.job.request
    rows = pd.Index(samples["id"]).get_indexer(methods.view.test_samples["id"])
    total = request["repeats"] * len(kept)
    progress.step("subsets", total)
    found = np.empty((request["repeats"], len(kept), len(methods.view.test_pairs)))
    for done, (repeat, subset) in enumerate(np.ndindex(request["repeats"], len(kept))):
        place = folder / f"{subset:03d}-{repeat + 1}"
        left_out = [name for name, stays in zip(names, kept[subset], strict=True) if not stays]
        if not (place / "training.json").exists():
            train_without(progress, run, samples, inputs, place, left_out, seed=repeat + 1)
        outputs = np.load(place / "outputs.npy")[rows].astype(np.float64)
        found[repeat, subset] = -methods.replay.test_losses(outputs.reshape(-1, 1))[:, 0]
        progress.advance(done + 1, total)
    return found


def train_without(
    progress: Progress, run: Run, samples: pd.DataFrame, inputs: Any, folder: Path, left_out: list[str], *, seed: int
) -> None:
    """One training of the run's model without these samples or pairs; its outputs for all samples are in the folder."""
    from tracin_core.engine.training import train

    request = progress.job.request
    settings = {**request["settings"], "seed": seed}
    excluded = training_exclusions([*request["left_out_before"], *left_out], samples)
    train(
        inputs,
        samples,
        folder,
        model=run.recipe.model,
        task=run.recipe.task,
        plugins=plugins_of(progress.workspace),
        exclude_samples=excluded.samples,
        exclude_pairs=excluded.pairs,
        keep="outputs",
        **{**settings, "save_epochs": (settings["epochs"],)},
    )


# ---- predictions ----------------------------------------------------------------------------------------------------------------


def kept_examples(methods: Methods, unit: Unit, names: list[str], kept: Chosen, before: set[str]) -> Chosen:
    """Which training examples each subset holds: [subsets, examples]; of a ranking's samples, pairs whose ends are both in it."""
    examples = methods.view.train_pairs
    ends = ["id1", "id2"] if unit == "sample" and "id1" in examples else ["id"]
    place = {name: column for column, name in enumerate(names)}
    padded = np.column_stack([kept, np.zeros(len(kept), dtype=bool)])  # its last column: in no subset
    columns = examples[ends].map(lambda name: place.get(name, len(names))).to_numpy()
    inside = padded[:, columns].all(axis=2) & ~examples["id"].isin(before).to_numpy()
    return np.asarray(inside)


def judged(methods: Methods, examples: Chosen, measured: Array, seed: int) -> dict[str, Any]:
    """Every method's LDS on the half of the subsets that chose no damping, with what could not be asked."""
    outcome = measured.mean(axis=0)
    _, reported = halves(len(examples), seed)
    found: dict[str, tuple[Lds, float | None]] = {}
    missing: dict[str, str] = {}
    for name, ask in questions(methods, examples, outcome, seed):
        try:
            predicted, delta = ask()
            found[name] = (lds(predicted[reported], outcome[reported], seed=seed), delta)
        except ViewError as refusal:
            missing[name] = str(refusal)
    rows = [
        {
            "method": name,
            "lds": one.mean,
            "low": one.low,
            "high": one.high,
            "tests": int(np.isfinite(one.per_test).sum()),
            "delta": delta,
        }
        for name, (one, delta) in found.items()
    ]
    per_test = pd.DataFrame({"test": methods.view.test_pairs["id"], **{name: one.per_test for name, (one, _) in found.items()}})
    return {
        "reported_on": len(reported),
        "methods": rows,
        "per_test": per_test.astype(object).where(per_test.notna(), None).to_dict("records"),
        "ceiling": ceiling(measured[:, reported]),
        "missing": missing,
    }


def ceiling(measured: Array) -> float | None:
    """How well one repetition's losses foretell another's, in the mean over pairs of repetitions; None with one, or where none varies."""
    repeats = len(measured)
    found = []
    for one in range(repeats):
        for other in range(one + 1, repeats):
            try:
                found.append(lds(measured[one], measured[other], resamples=0).mean)
            except ViewError:
                continue
    return float(np.mean(found)) if found else None


def questions(
    methods: Methods, examples: Chosen, outcome: Array, seed: int
) -> Iterator[tuple[str, Callable[[], tuple[Array, float | None]]]]:
    """Each method's prediction for every subset, [subsets, tests], with the damping that it took."""
    for name in MAPS:
        yield name, partial(undamped, methods, name, examples)
    yield "curvature", partial(damped, methods, examples, outcome, seed)
    yield "linearised_retraining", partial(replayed, methods, examples)


def summed(methods: Methods, name: str, examples: Chosen) -> Array:
    """The sum of the influences of what each subset holds, but for a constant where it holds most; drawn copies count.

    Minus the sum of what is left out has the same ranks, and where that is little, equal ones stay equal to the last digit.
    """
    view = methods.mapped(name)
    counted = examples.astype(np.float64)
    if examples.mean() > 0.5:
        counted = -(~examples & examples.any(axis=0)).astype(np.float64)
    return np.asarray((counted * view.train.multiplicity) @ view.influence(), dtype=np.float64)


def undamped(methods: Methods, name: str, examples: Chosen) -> tuple[Array, None]:
    return summed(methods, name, examples), None


def damped(methods: Methods, examples: Chosen, outcome: Array, seed: int) -> tuple[Array, float]:
    """The curvature's prediction at the damping that is best on the half of the subsets that nothing is reported on."""
    known: dict[float, Array] = {}

    def predicted(delta: float) -> Array:
        if delta not in known:
            known[delta] = summed(methods.damped(delta), "curvature", examples)
        return known[delta]

    choice = best_by_lds(lambda delta, rows: lds(predicted(delta)[rows], outcome[rows], resamples=0).mean, len(examples), seed=seed)
    return predicted(choice.delta), choice.delta


def replayed(methods: Methods, examples: Chosen) -> tuple[Array, None]:
    """Minus each test's loss after the linearised training without what the subset leaves out."""
    return np.stack([-methods.replay.preview(~row)["loss_after"].to_numpy() for row in examples]), None
