"""The loss that a training used: as its checkpoints record it, or as the recipe says; asked for where neither does, never guessed."""

from typing import Any, Final, get_args

from tracin_core.errors import CheckpointError
from tracin_core.recipe import ClassificationTask, LabelLossName, NumberLossName, RankingTask, RegressionTask
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.sample_losses import SETTINGS, SampleLoss

PAIR_LOSSES: Final = {
    "standard": "margin",
    "margin": "margin",
    "ghm": "ghm",
    "ghm_legacy": "ghm_legacy",
    "logistic": "logistic",
    "squared_hinge": "squared_hinge",
}


def recorded_loss(
    task: RankingTask | ClassificationTask | RegressionTask, checkpoints: list[dict[str, Any]]
) -> PairLoss | SampleLoss:
    """The loss of the recipe where it says one, else the loss that the last checkpoint records.

    Raises:
        CheckpointError: neither says it, or not with its settings.
    """
    source, arguments = checkpoints[-1]["source"], checkpoints[-1].get("arguments") or {}
    if isinstance(task, RankingTask):
        return recorded_pair_loss(task, source, arguments)
    known = get_args(LabelLossName if isinstance(task, ClassificationTask) else NumberLossName)
    recorded = str(arguments.get("loss_type", ""))
    name: Any = task.loss or (recorded if recorded in known else None)
    if name is None:
        raise CheckpointError(
            f"'{source}' records no loss of {task.kind} (its args hold {', '.join(list(arguments)[:4]) or 'nothing'}); give the loss that "
            f"the model was trained with, one of {', '.join(known)}."
        )
    if name not in SETTINGS:
        return SampleLoss(name=name)
    setting = SETTINGS[name][0]
    given = getattr(task, setting)
    value = given if given is not None else arguments.get(setting)
    if value is None:
        raise CheckpointError(
            f"'{source}' was trained with {name} but records no {setting}, which is part of it; give it in analysis.toml under [task]."
        )
    return SampleLoss(**{"name": name, setting: float(value)})


def recorded_pair_loss(task: RankingTask, source: str, arguments: dict[str, Any]) -> PairLoss:
    """The pair loss, with its margin and, for GHM, the settings that decide its weights."""
    name: Any = task.loss or PAIR_LOSSES.get(str(arguments.get("loss_type", "")))
    margin = task.margin if task.margin is not None else arguments.get("margin")
    if name is None or margin is None:
        raise CheckpointError(
            f"'{source}' records no {'loss' if name is None else 'margin'} (its args hold "
            f"{', '.join(list(arguments)[:4]) or 'nothing'}); give the loss and the margin that the model was trained with."
        )
    given = {"ghm_bins": task.ghm_bins, "ghm_alpha": task.ghm_alpha, "ghm_batch": task.ghm_batch}
    recorded = {
        "ghm_bins": arguments.get("ghm_bins"),
        "ghm_alpha": arguments.get("ghm_alpha"),
        "ghm_batch": arguments.get("batch_size"),
    }
    settings: dict[str, Any] = {key: value if value is not None else recorded[key] for key, value in given.items()}
    unsaid = [key for key, value in settings.items() if value is None]
    if name.startswith("ghm") and unsaid:
        raise CheckpointError(
            f"'{source}' was trained with {name} but records no {', '.join(unsaid)}, which decide its weights; give them in "
            f"analysis.toml under [task]."
        )
    return PairLoss(name=name, margin=float(margin), **{key: value for key, value in settings.items() if value is not None})
