"""Which score to trust on this data: errors planted in a copy of the training side, and how early each score lists them.

The run, its data and its checkpoints stay as they are. What was planted is known, so every score is judged by it, over several draws of the
errors; the one that is recommended is kept for every run of the same data, model and task.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.data.files import read_json
from tracin_core.data.samples import all_pairs
from tracin_core.errors import InputError
from tracin_core.recipe import TaskSection
from tracin_core.records.jobs import Job
from tracin_core.records.runs import Run
from tracin_core.records.store import digest_of
from tracin_core.records.trainings import saved_epochs, settings_of
from tracin_core.scores.evaluation import SHARES, Interval, interval, recovery
from tracin_core.training_settings import OF_LOSS

if TYPE_CHECKING:
    from tracin_core.records.workspace import Workspace

Noise = Literal["labels", "pair_flips"]
NOISES: Final[tuple[Noise, ...]] = get_args(Noise)
SEEDS: Final = 3
SHARE: Final = 0.1
MOST: Final = 0.25  # of the training side; more is another data set
FAR: Final = 0.5  # standard deviations between two targets of a regression that are swapped
WEAKEST: Final = 0.6  # AUROC that the interval of a reliable score stays above
SIMPLEST: Final = ("mean_loss", "self_influence")  # take the place of a score that is not better by more than its interval
LABELLED: Final = ("target", "label", "label_name", "angle")  # columns that say what a sample is
FIGURES: Final = ("auroc", "average_precision", *(f"recovery_{round(100 * share)}" for share in SHARES), "ties", "zeros")


# ---- what is planted ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planted:
    """A copy of the samples, with errors.

    Attributes:
        samples: as given, but for the labels of some of the training side.
        flips: training pairs that are learnt the wrong way round.
        truth: one entry per error: sample, was, is; or id1, id2.
    """

    samples: pd.DataFrame
    flips: frozenset[frozenset[str]]
    truth: tuple[dict[str, Any], ...]

    @property
    def wrong(self) -> set[str]:
        """The samples that bear a wrong label."""
        return {error["sample"] for error in self.truth if "sample" in error}


def plant(samples: pd.DataFrame, task: TaskSection, noise: Noise, share: float, seed: int) -> Planted:
    """So large a share of the training side is wrong, and nothing else has changed.

    Labels: any other one that the training side has, all equally likely; targets of a regression are swapped between two samples that are
    more than half a standard deviation apart. Pair flips: training pairs turned round.

    Args:
        samples: id, split, and the columns of the task's labels.

    Raises:
        InputError: fewer than two errors would be planted, or too few targets differ enough to be swapped.
    """
    rows = np.flatnonzero((samples["split"] == "train").to_numpy())
    generator = np.random.default_rng(seed)
    if noise == "pair_flips":
        return _turned(samples, rows, share, generator)
    if task.kind == "regression":
        donors = _swaps(samples["target"].to_numpy(dtype=np.float64), rows, share, generator)
    else:
        donors = _others(samples["label"].to_numpy(), rows, share, generator)
    changed = np.array(sorted(donors))
    given = np.array([donors[row] for row in changed])
    columns = {name: samples[name].array for name in LABELLED if name in samples}
    copied = samples.copy()
    for name, values in columns.items():
        new = values.copy()
        new[changed] = values[given]
        copied[name] = pd.Series(new, index=samples.index)
    ids, told = samples["id"].tolist(), samples["target"].tolist()
    truth = tuple({"sample": ids[row], "was": told[row], "is": told[donor]} for row, donor in zip(changed, given, strict=True))
    return Planted(copied, frozenset(), truth)


def _turned(samples: pd.DataFrame, rows: npt.NDArray[np.int64], share: float, generator: np.random.Generator) -> Planted:
    pairs = all_pairs(samples.iloc[rows].reset_index(drop=True))
    chosen = pairs.iloc[np.sort(generator.choice(len(pairs), _count(share, len(pairs), "pairs"), replace=False))]
    ends = list(zip(chosen["id1"].tolist(), chosen["id2"].tolist(), strict=True))
    return Planted(samples, frozenset(frozenset(pair) for pair in ends), tuple({"id1": one, "id2": two} for one, two in ends))


def _others(labels: npt.NDArray[Any], rows: npt.NDArray[np.int64], share: float, generator: np.random.Generator) -> dict[int, int]:
    """Row -> a row of another label of the training side, each label equally likely."""
    examples = {label: int(rows[np.argmax(labels[rows] == label)]) for label in np.unique(labels[rows])}
    chosen = generator.choice(rows, _count(share, len(rows), "samples"), replace=False)
    known = list(examples)
    return {int(row): examples[generator.choice([label for label in known if label != labels[row]])] for row in chosen}


def _swaps(
    targets: npt.NDArray[np.float64], rows: npt.NDArray[np.int64], share: float, generator: np.random.Generator
) -> dict[int, int]:
    """Row -> the row that it swaps its target with."""
    _count(share, len(rows), "samples")
    wanted, apart = round(share * len(rows) / 2), FAR * float(targets[rows].std())
    free = generator.permutation(rows).tolist()
    swapped: dict[int, int] = {}
    while free and len(swapped) < 2 * wanted:
        one = free.pop()
        other = next((row for row in free if abs(targets[row] - targets[one]) > apart), None)
        if other is not None:
            free.remove(other)
            swapped |= {one: other, other: one}
    if len(swapped) < 2 * wanted:
        raise InputError(
            f"Of {len(rows)} training targets, only {len(swapped)} can be swapped with one more than {apart:.3g} away, not {2 * wanted}; "
            f"plant a smaller share."
        )
    return swapped


def _count(share: float, examples: int, what: str) -> int:
    count = round(share * examples)
    if count < 2:  # also the least that makes a swap
        raise InputError(
            f"A share of {share:g} of {examples} training {what} is {count} errors; plant a larger share, or more data."
        )
    return count


# ---- what is asked ------------------------------------------------------------------------------------------------------------------


def start_calibration(place: "Workspace", run: Run, *, noise: Noise = "labels", share: float = SHARE, seeds: int = SEEDS) -> Job:
    """Errors are being planted and found in the background; the same question is one calibration, and a seed that is done stays done.

    Each seed draws other errors and trains from other weights, in the settings of the run's own training, on its whole training side.

    Args:
        seeds: at least 2, or there is no interval.

    Raises:
        InputError: the run has no model to train, its data are gone, or the question has no answer.
    """
    if run.kind == "scores":
        raise InputError(f"Run '{run.name}' was imported from score files and has no model to train; compute one from checkpoints.")
    if seeds < 2:
        raise InputError(f"{seeds} seeds make no interval; choose at least 2.")
    if not 0 < share <= MOST:
        raise InputError(f"A share of {share:g} cannot be planted; choose more than 0 and at most {MOST:g}.")
    if noise not in NOISES or (noise == "pair_flips" and run.task != "ranking"):
        known = NOISES if run.task == "ranking" else NOISES[:1]
        raise InputError(f"'{noise}' cannot be planted in a {run.task}; choose from {', '.join(known)}.")
    plant(run.samples, run.recipe.task, noise, share, 0)  # refused now rather than after a training
    place.data_files(run.recipe)
    settings, assumed = calibration_settings(run)
    asked = {
        "run": run.id,
        "digest": run.digest,
        "subject": subject_of(run),
        "noise": noise,
        "share": share,
        "settings": settings,
        "seeds": list(range(1, seeds + 1)),
    }
    request = {
        **asked,
        "calibration": digest_of(asked)[:12],
        "assumed": assumed,
        "recipe": run.recipe.to_dict(),
        "simulated": run.simulated,
    }
    return place.queue.submit("calibration", request, title=f"{run.name}: {share:.0%} {noise}", run_id=run.id, who=place.who)


def calibration_settings(run: Run) -> tuple[dict[str, Any], list[str]]:
    """`settings_of(run)`, with the setting of its loss and the epochs of its checkpoints."""
    settings, assumed = settings_of(run)
    divided = [] if run.precondition == "none" else [f"plain gradients (this run divides its own: {run.precondition})"]
    return {**settings, "save_epochs": saved_epochs(run, settings["epochs"])}, [*assumed, *divided]


def subject_of(run: Run) -> str:
    """Names the data (contents, targets, sides), the model and the task with its loss: what a recommendation is about.

    The loss is the run's, whether its recipe says it or its checkpoints record it: of the two ways to write it neither is another task.
    """
    return _subjects(run)[0]


def subjects_of(run: Run) -> set[str]:
    """`subject_of`, and what it was in earlier versions, which took a loss in the recipe for another than the same one recorded."""
    return set(_subjects(run))


def _subjects(run: Run) -> tuple[str, str]:
    data = run.samples[["id", "digest", "target", "split"]].astype(str).sort_values("id").to_numpy().tolist()
    model, task = (section.model_dump(mode="json") for section in (run.recipe.model, run.recipe.task))
    open_task = {name: value for name, value in task.items() if name not in (*OF_LOSS, "ghm_batch")}
    return digest_of([data, model, open_task, run.manifest.loss]), digest_of([data, model, task, run.manifest.loss])


# ---- what came of it ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recommendation:
    """The score to trust on this data.

    Attributes:
        score: None: nothing here is reliable.
        best: the score that found the most, which a simpler one took the place of where it is another than `score`.
        judged: how many scores were.
    """

    score: str | None
    best: str | None
    judged: int


@dataclass(frozen=True)
class Calibration:
    """A finished calibration.

    Attributes:
        table: one row per seed and score: seed, score, and the figures of `scores.evaluation.Detection`.
        missing: score -> why it could not be judged, for at least one seed.
        planted: seed -> the errors, as `Planted.truth`.
        trainings: one row per seed: seed, examples, wrong, and what the model measured on the validation side.
    """

    number: str
    run_id: str
    digest: str
    subject: str
    noise: Noise
    share: float
    unit: Literal["sample", "pair"]
    simulated: bool
    settings: dict[str, Any]
    assumed: tuple[str, ...]
    created: float
    who: str
    table: pd.DataFrame
    missing: dict[str, str]
    planted: dict[str, list[dict[str, Any]]]
    trainings: pd.DataFrame

    @property
    def seeds(self) -> list[int]:
        return [int(seed) for seed in self.trainings["seed"]]

    @cached_property
    def scores(self) -> list[str]:
        """Those that were judged with every seed."""
        counts = self.table["score"].value_counts()
        return [str(name) for name in dict.fromkeys(self.table["score"]) if counts[name] == len(self.seeds)]

    def figures(self, score: str, figure: str) -> npt.NDArray[np.float64]:
        """One figure of one score, by seed."""
        rows = self.table[self.table["score"] == score].sort_values("seed")
        return rows[figure].to_numpy(dtype=np.float64)

    def figure(self, score: str, figure: str) -> Interval:
        """Its mean over the seeds, with the 95 % t-interval."""
        return interval(self.figures(score, figure))

    def shown(self, score: str, figure: str) -> Interval:
        """The same, its ends cut at 0 and 1, between which every figure lies."""
        found = self.figure(score, figure)
        ends = _ends(found, lowest=0.0)
        return replace(found, low=ends["_low"], high=ends["_high"])

    def against(self, score: str, other: str, figure: str = "average_precision") -> Interval:
        """The difference of two scores, paired by seed."""
        return interval(self.figures(score, figure) - self.figures(other, figure))

    def is_reliable(self, score: str) -> bool:
        """Its average precision is above that of chance by more than its interval, and its AUROC's interval stays above .6."""
        return score != "random" and self.against(score, "random").is_above and self.figure(score, "auroc").low >= WEAKEST

    def recommendation(self) -> Recommendation:
        """Of the reliable scores the one of the highest mean average precision; or the simplest that it does not clearly beat."""
        judged = [score for score in self.scores if score != "random"]
        reliable = [score for score in judged if self.is_reliable(score)]
        if not reliable:
            return Recommendation(None, None, len(judged))
        best = max(reliable, key=lambda score: self.figure(score, "average_precision").mean)
        tied = [score for score in SIMPLEST if score in reliable and (score == best or not self.against(best, score).is_above)]
        return Recommendation(tied[0] if tied else best, best, len(judged))

    def summary(self) -> pd.DataFrame:
        """One row per judged score, the highest mean average precision first.

        Columns: score, then of each of FIGURES mean, `_low` and `_high` (cut at 0 and 1); above_random, its `_low` and `_high` (average
        precision, paired by seed); reliable.
        """
        rows = []
        for score in self.scores:
            found = {name: self.figure(score, name) for name in FIGURES} | {"above_random": self.against(score, "random")}
            spread = {
                f"{name}{end}": value
                for name, one in found.items()
                for end, value in _ends(one, lowest=-1.0 if name == "above_random" else 0.0).items()
            }
            rows.append({"score": score, **spread, "reliable": self.is_reliable(score)})
        return pd.DataFrame(rows).sort_values("average_precision", ascending=False, kind="stable", ignore_index=True)

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain values, with the summary and what is recommended."""
        kept = {name: value for name, value in vars(self).items() if name in self.__dataclass_fields__}
        tables = {name: value.to_dict("records") for name, value in kept.items() if isinstance(value, pd.DataFrame)}
        return {
            **kept,
            **tables,
            "summary": self.summary().to_dict("records"),
            "recommendation": asdict(self.recommendation()),
        }


def found_by_share(place: "Workspace", found: Calibration, scores: Sequence[str], shares: Sequence[float]) -> pd.DataFrame:
    """The share of the planted errors among the first of each score, ties broken at random, in the mean over seeds; chance is the diagonal.

    Args:
        scores: of `found.scores`, but for random.
        shares: of all examples, from the top; the rows.

    Raises:
        InputError: a table of scores is gone or another than was written.
    """
    curves = []
    for seed in found.seeds:
        file = folder_of(place) / found.number / f"seed-{seed}.csv"
        try:
            kept = pd.read_csv(file, usecols=["planted", *scores])
        except (OSError, ValueError) as failure:
            raise InputError(
                f"The scores of seed {seed} in '{file.name}' cannot be read ({failure}); calibrate again."
            ) from failure
        curves.append([[recovery(kept[score], kept["planted"], share) for score in scores] for share in shares])
    return pd.DataFrame(np.mean(curves, axis=0), index=pd.Index(shares, name="share"), columns=list(scores))


def _ends(found: Interval, *, lowest: float) -> dict[str, float]:
    """Mean and interval of a figure that lies between `lowest` and 1, as few seeds know nothing of."""
    return {"": found.mean, "_low": max(found.low, lowest), "_high": min(found.high, 1.0)}


def calibrations(place: "Workspace", run: Run) -> list[Calibration]:
    """The finished calibrations of the run's data, model and task, newest first, and those of the run itself before it changed."""
    found = [read_calibration(file) for file in folder_of(place).glob("*/result.json")]
    subjects = subjects_of(run)
    ours = [one for one in found if one is not None and (one.subject in subjects or one.run_id == run.id)]
    return sorted(ours, key=lambda one: -one.created)


def recommended_score(place: "Workspace", run: Run) -> str | None:
    """The score that the newest calibration of this data, model and task recommends; None: there is none, or nothing was reliable.

    Nor is there one for a run that divides its gradients: a calibration is by plain ones.

    `self_influence`, `mean_influence` and `worst_influence` are the pages' own; a baseline has its method's name, and what another method
    makes of the first two is `<score>.<method>`.
    """
    if run.kind == "scores" or run.precondition != "none" or not has_calibrations(place):
        return None
    subjects = subjects_of(run)
    newest = next((one for one in calibrations(place, run) if one.subject in subjects), None)
    return None if newest is None else newest.recommendation().score


def has_calibrations(place: "Workspace") -> bool:
    """Whether anything was ever calibrated here; naming a run's subject reads all of its samples."""
    return any(folder_of(place).glob("*/result.json"))


def folder_of(place: "Workspace") -> Path:
    return place.root / "calibrations"


def read_calibration(file: Path) -> Calibration | None:
    """What the worker wrote of a finished calibration; None while it is not whole."""
    try:
        told = read_json(file)
        told |= {name: pd.DataFrame(told[name]) for name in ("table", "trainings")}
        return Calibration(number=file.parent.name, **{**told, "assumed": tuple(told["assumed"])})
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return None


def name_of(score: str) -> tuple[str, str]:
    """What a score is (self_influence, mean_influence or worst_influence; of a baseline nothing), and the name of its method."""
    kind, _, method = score.partition(".")
    return (kind, method or "tracin") if kind.endswith("_influence") else ("", score)
