"""Trainings with and without what an exclusion list names, or with it changed, side by side."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tracin_core.data.files import read_json, write_json
from tracin_core.evaluating.calibrating import require_same
from tracin_core.reading import plugins_of, read_dataset
from tracin_core.recipe import Recipe
from tracin_core.records.evaluations import MEASURE
from tracin_core.records.interchange import training_exclusions
from tracin_core.records.progress import Progress
from tracin_core.records.runs import Run
from tracin_core.scores.relabel import likeliest_others


def retrain(progress: Progress) -> dict[str, Any]:
    """Every arm is trained with every seed; the test scores are in `evaluations/<evaluation>/result.json`.

    A training that was done before the job was interrupted is found on disk.

    Raises:
        InputError: the data are not what the run was computed on, nor what earlier arms were trained on.
    """
    request = progress.job.request
    recipe = Recipe.from_dict(request["recipe"])
    folder = progress.workspace.root / "evaluations" / request["evaluation"]
    dataset = read_dataset(progress, recipe)
    require_same(progress.workspace.run(request["run"]), dataset[0])
    asked = [
        (lasting, arm, seed)
        for lasting in request["lasting"]
        for seed in request["seeds"]
        for arm in request["arms"]
        if arm["name"] != "none" or lasting == request["lasting"][0]  # the whole data set takes as many steps either way
    ]
    progress.step("retraining", len(asked))
    whole: dict[int, dict[str, Any]] = {}
    rows = []
    for done, (lasting, arm, seed) in enumerate(asked):
        settings = {**request["settings"], "seed": seed}
        if lasting == "steps" and arm["name"] != "none":
            settings["epochs"] = epochs_for(whole[seed], lines_of(request, arm), recipe, dataset, request["settings"])
        place = folder / f"{lasting}-{arm['name']}-{seed}"
        told = trained(progress, recipe, dataset, place, settings, arm, done=done, total=len(asked))
        if arm["name"] == "none":
            whole[seed] = told
        rows.append({"lasting": lasting, "arm": arm["name"], "seed": seed, **outcome(told, recipe)})
        progress.advance(done + 1)
    kept = {name: request[name] for name in ("run", "digest", "rule", "entries", "noun", "assumed", "settings")}
    kept |= {name: request[name] for name in ("action", "weight") if name in request}
    kept["arms"] = request["arms"]
    result = {**kept, "measure": MEASURE[recipe.task.kind], "created": time.time(), "who": progress.job.who, "table": rows}
    write_json(folder / "result.json", result)
    return {"evaluation": request["evaluation"], "run_id": request["run"]}


def trained(
    progress: Progress,
    recipe: Recipe,
    dataset: Any,
    folder: Path,
    settings: dict[str, Any],
    arm: dict[str, Any],
    *,
    done: int,
    total: int,
) -> dict[str, Any]:
    """What `training.json` of this training says; it is done now unless it was before."""
    if not (folder / "training.json").exists():
        from tracin_core.engine.training import train

        samples, inputs, _ = dataset
        request = progress.job.request
        excluded = training_exclusions(lines_of(request, arm), samples)
        samples, changes = changed(progress, request, arm, samples)
        train(
            inputs,
            samples,
            folder,
            model=recipe.model,
            task=recipe.task,
            plugins=plugins_of(progress.workspace),
            exclude_samples=excluded.samples,
            exclude_pairs=excluded.pairs,
            progress=lambda epoch, epochs: progress.advance(done, total) if epochs else None,
            keep="outputs",
            **changes,
            **{**settings, "save_epochs": (settings["epochs"],)},
        )
    told: dict[str, Any] = read_json(folder / "training.json")
    return told


def lines_of(request: dict[str, Any], arm: dict[str, Any]) -> list[str]:
    """What the run's own training left out, and what this arm does."""
    own = arm["lines"] if request.get("action", "exclude") == "exclude" else ()
    return list(dict.fromkeys([*request.get("left_out_before", ()), *own]))


def changed(
    progress: Progress, request: dict[str, Any], arm: dict[str, Any], samples: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The samples and the settings of `train` in which this arm's examples are not left out but changed."""
    action = request.get("action", "exclude")
    if action == "exclude" or not arm["lines"]:
        return samples, {}
    before = training_exclusions(request.get("left_out_before", ()), samples)
    named = training_exclusions(arm["lines"], samples)
    if action == "down_weight":
        stay = [*(named.samples - before.samples), *(named.pairs - before.pairs)]
        return samples, {"weights": dict.fromkeys(stay, request["weight"])}
    if action == "turn":
        return samples, {"flip_pairs": named.pairs - before.pairs}
    others = other_labels(progress.workspace.run(request["run"]))
    labels = samples["id"].map({name: others[name] for name in named.samples})
    return samples.assign(label=labels.fillna(samples["label"]).astype(np.int64)), {}


def other_labels(run: Run) -> dict[str, int]:
    """Of each training sample of a classification the label that the last checkpoint finds most likely, but for its own."""
    side = run.splits["train"]
    others = likeliest_others(run.kernels.train_outputs[-1], side["label"].to_numpy())
    return dict(zip(side["id"], others.tolist(), strict=True))


def epochs_for(whole: dict[str, Any], lines: list[str], recipe: Recipe, dataset: Any, settings: dict[str, Any]) -> int:
    """So many epochs of the smaller training side take as many steps as the whole one took, to within an epoch."""
    from tracin_core.engine.objectives import kept_rows, training_pairs

    samples = dataset[0]
    excluded = training_exclusions(lines, samples)
    rows = (samples["split"] == "train").to_numpy().nonzero()[0]
    kept = kept_rows(samples, rows, excluded.samples, recipe.task.kind)
    left = len(training_pairs(samples, kept, excluded.pairs)["target"]) if recipe.task.kind == "ranking" else len(kept)
    batch = int(whole["settings"].get("batch_pairs") or whole["settings"]["batch_size"])
    everything = whole["train_pairs"] or whole["train_samples"]
    steps = -(-everything // batch) * int(settings["epochs"])
    return int(max(1, round(steps / -(-left // batch))))


def outcome(told: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The test side's figures of one training; and the validation side's, which its preview is about."""
    last, measure = told["history"][-1], MEASURE[recipe.task.kind]
    return {
        "score": last[f"test_{measure}"],
        "loss": last["test_loss"],
        "validation_score": last.get(f"validation_{measure}"),
        "validation_loss": last.get("validation_loss"),
        "examples": told["train_pairs"] or told["train_samples"],
        "epochs": told["settings"]["epochs"],
    }
