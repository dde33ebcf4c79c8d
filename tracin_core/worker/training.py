"""Models are trained: of a recipe, or for a demo, which brings data of its own and is analysed at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tracin_core.data.files import read_json, write_text
from tracin_core.data.simulated import simulate_recordings
from tracin_core.reading import plugins_of, read_dataset
from tracin_core.recipe import Recipe, file_stem
from tracin_core.records.interchange import MatchedExclusions, training_exclusions
from tracin_core.records.progress import Progress
from tracin_core.records.runs import Run
from tracin_core.scores.actions import weights_by
from tracin_core.scores.selection import SuspectScore
from tracin_core.worker.computing import compute_run, use_threads

# How others trained a ranking; this product's training goes through all pairs, and its checkpoints record their batches.
OF_OTHERS: Final = ("pairs", "draw_seed", "ghm_batch")


def demo(progress: Progress) -> dict[str, Any]:
    """Data with planted faults, a model trained on them, and its analysis: simulated recordings, or real digits."""
    recipe, training_settings = digits_demo(progress) if progress.job.request.get("digits") else recordings_demo(progress)
    folder = recipe.checkpoints.folder
    if (folder / "training.json").exists():
        progress.skip("training")
    else:
        train_once(progress, recipe, folder, training_settings)
    run_id = progress.workspace.run_id(recipe)
    progress.set_run(run_id)
    if not progress.workspace.is_done(run_id):
        progress.workspace.register_run(run_id, recipe)
        compute_run(progress, recipe, run_id)
    return {"run_id": run_id, "training": read_json(folder / "training.json")}


def recordings_demo(progress: Progress) -> tuple[Recipe, dict[str, Any]]:
    """SIMULATED recordings are on disk; the recipe that ranks their angles, and the settings of its training."""
    material, frequency = progress.job.request["material"], progress.job.request["frequency"]
    name = f"SIMULATED_{material}_{frequency}"
    root = progress.workspace.root / "recordings" / name
    progress.step("recordings", 1)
    if not (root / "truth.json").exists():
        simulate_recordings(root, material=material, frequency=frequency, progress=progress.advance)
    settings = {
        "name": name.replace("_", " "),
        "simulated": True,
        "data": {"root": root, "material": material, "frequency": frequency},
        "checkpoints": {"folder": progress.workspace.root / "trainings" / name},
    }
    return Recipe.from_dict(settings), {}


def digits_demo(progress: Progress) -> tuple[Recipe, dict[str, Any]]:
    """Real digits with some labels wrong on purpose are on disk; the recipe that tells them apart, and its training's settings."""
    from tracin_core.data.demos import write_digits

    root = progress.workspace.root / "recordings" / "MNIST_digits"
    progress.step("recordings", 1)
    if not (root / "truth.json").exists():
        write_digits(root)
    settings = {
        "name": "MNIST digits, some mislabelled",
        "model": {"kind": "cnn", "widths": [16, 32], "outputs": 10},
        "data": {"kind": "arrays", "file": root / "digits.npz"},
        "split": {"rule": "column", "column": "side"},
        "task": {"kind": "classification"},
        "checkpoints": {"folder": progress.workspace.root / "trainings" / "MNIST_digits"},
    }
    return Recipe.from_dict(settings), {}


def training(progress: Progress) -> dict[str, Any]:
    """The recipe's model is trained; its checkpoints are in the requested folder, and beside them the recipe that analyses them."""
    request = progress.job.request
    folder = Path(request["folder"])
    recipe = Recipe.from_dict(request["recipe"])
    train_once(progress, recipe, folder, request["settings"], request.get("exclusions"), request.get("weighting"))
    trained = read_json(folder / "training.json")
    named = request.get("name") or name_after(recipe, folder)
    analysis = analysis_of(recipe, folder, trained["settings"]["loss"], named, read_again(recipe, request["settings"]))
    write_text(folder / "analysis.toml", analysis.to_toml())
    return {"folder": str(folder), "recipe": str(folder / "analysis.toml"), **trained}


def analysis_of(recipe: Recipe, folder: Path, loss: str, name: str, epochs: Sequence[int] | None = None) -> Recipe:
    """The recipe that analyses what this one trained into the folder by a loss: over all pairs of a ranking, as of SGD.

    Args:
        epochs: of the checkpoints that it reads; None: all of them.
    """
    told = {**recipe.to_dict(), "name": name, "checkpoints": {"folder": folder, "epochs": epochs}}
    task = {setting: value for setting, value in told["task"].items() if setting not in OF_OTHERS}
    if loss == "label_smoothing":  # no function of the label's logit alone, which the smaller kernel is of
        task["kernel"] = "outputs"
    analysis = Recipe.from_dict({**told, "task": task})
    return analysis.plain if analysis.engine.precondition in ("adam", "adam_full") else analysis


def read_again(recipe: Recipe, settings: dict[str, Any]) -> list[int] | None:
    """The epochs that the recipe picks of its checkpoints, where the training was asked to save the same; else None."""
    picked, saved = recipe.checkpoints.epochs, settings.get("save_epochs")
    return list(picked) if picked and saved and {*picked} - {0} == {*saved} else None


def name_after(recipe: Recipe, folder: Path) -> str:
    """Of the analysis of a training: the name that somebody gave the recipe, and the folder, which tells its trainings apart.

    The folder alone where it begins with that name.
    """
    given = {recipe.name} - {recipe.checkpoints.folder.name}
    return ", ".join([*(name for name in given if not folder.name.startswith(file_stem(name))), folder.name])


def train_once(
    progress: Progress,
    recipe: Recipe,
    folder: Path,
    settings: dict[str, Any],
    exclusions: dict[str, Any] | None = None,
    weighting: dict[str, Any] | None = None,
) -> None:
    """Checkpoints and `training.json` are in the folder; the split is the recipe's stored one, whatever is excluded.

    Args:
        settings: of the training, beside the recipe's task and model.
        exclusions: `file` (its name) and `lines` of an exclusion list.
        weighting: `run` and `by`: examples count in the loss by that run's score (`scores.actions.weights_by`).
    """
    from tracin_core.engine.training import train

    use_threads(recipe.engine)
    samples, inputs, _ = read_dataset(progress, recipe)
    listed = exclusions or {"file": None, "lines": []}
    excluded = training_exclusions(listed["lines"], samples)
    told: dict[str, Any] = {name: list(getattr(excluded, name)) for name in ("matched", "elsewhere", "unmatched")}
    weights = {} if weighting is None else weights_of(progress.workspace.run(weighting["run"]), weighting["by"], excluded)
    if weighting is not None:
        told |= {"weighted_by": weighting["by"], "weighting_run": weighting["run"], "weighted": len(weights)}
    progress.step("training", 1)
    train(
        inputs,
        samples,
        folder,
        model=recipe.model,
        task=recipe.task,
        plugins=plugins_of(progress.workspace),
        **settings,
        exclude_samples=excluded.samples,
        exclude_pairs=excluded.pairs,
        weights=weights,
        exclusion_list={"file": listed["file"], **told},
        progress=progress.advance,
    )


def weights_of(run: Run, by: SuspectScore, excluded: MatchedExclusions) -> dict[str | frozenset[str], float]:
    """The weight of each of the run's training examples that counts less than in full and is not left out."""
    view = run.view()
    table = view.train_pairs
    names = [frozenset(ends) for ends in table[["id1", "id2"]].to_numpy()] if "id1" in table else table["id"].tolist()
    found = dict(zip(names, weights_by(view.suspect_scores(by)).tolist(), strict=True))
    gone = {*excluded.samples, *excluded.pairs}
    return {
        name: weight
        for name, weight in found.items()
        if weight < 1 and name not in gone and not (isinstance(name, frozenset) and name & excluded.samples)
    }
