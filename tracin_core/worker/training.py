"""Models are trained: of a recipe, or for a demo, which brings data of its own and is analysed at once."""

from pathlib import Path
from typing import Any

from tracin_core.data.files import read_json, write_text
from tracin_core.data.simulated import simulate_recordings
from tracin_core.reading import plugins_of, read_dataset
from tracin_core.recipe import Recipe
from tracin_core.records.interchange import training_exclusions
from tracin_core.records.progress import Progress
from tracin_core.worker.computing import compute_run, use_threads


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
    train_once(progress, Recipe.from_dict(request["recipe"]), folder, request["settings"], request.get("exclusions"))
    analysis = Recipe.from_dict({**request["recipe"], "name": folder.name, "checkpoints": {"folder": folder}})
    if analysis.engine.precondition in ("adam", "adam_full"):  # this training is by SGD
        analysis = analysis.plain
    write_text(folder / "analysis.toml", analysis.to_toml())
    return {"folder": str(folder), "recipe": str(folder / "analysis.toml"), **read_json(folder / "training.json")}


def train_once(
    progress: Progress, recipe: Recipe, folder: Path, settings: dict[str, Any], exclusions: dict[str, Any] | None = None
) -> None:
    """Checkpoints and `training.json` are in the folder; the split is the recipe's stored one, whatever is excluded.

    Args:
        settings: of the training, beside the recipe's task and model.
        exclusions: `file` (its name) and `lines` of an exclusion list.
    """
    from tracin_core.engine.training import train

    use_threads(recipe.engine)
    samples, inputs, _ = read_dataset(progress, recipe)
    listed = exclusions or {"file": None, "lines": []}
    excluded = training_exclusions(listed["lines"], samples)
    told = {name: list(getattr(excluded, name)) for name in ("matched", "elsewhere", "unmatched")}
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
        exclusion_list={"file": listed["file"], **told},
        progress=progress.advance,
    )
