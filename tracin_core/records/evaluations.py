"""Exclusion lists put to the test: what was asked to be retrained, and what came of it.

A list is judged against training without it, against as many examples left out at random, and against its reverse (the most helpful ones),
with common seeds, the split fixed, and the effect measured on the test side, which neither the training nor the influence has seen.

A list is left out; or its examples stay, with less weight in the loss, with pairs turned round, or with another label. The arms then differ
in which examples that is done to.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.data.files import read_json
from tracin_core.errors import InputError, ViewError
from tracin_core.records.interchange import training_exclusions
from tracin_core.records.jobs import Job
from tracin_core.records.runs import Run
from tracin_core.records.store import digest_of
from tracin_core.records.trainings import left_out_before, settings_of
from tracin_core.scores.actions import WEIGHT, Action, actions_for
from tracin_core.scores.evaluation import Effect, paired_effect
from tracin_core.scores.rollups import roll_up

if TYPE_CHECKING:
    from tracin_core.records.workspace import Workspace

Lasting = Literal["epochs", "steps"]
SEEDS: Final = 3
DRAWS: Final = 3
MEASURE: Final = {"ranking": "accuracy", "classification": "accuracy", "regression": "error"}
Verdict = Literal["helps", "harms", "unproven"]


@dataclass(frozen=True)
class Arm:
    """What one kind of training leaves out, or changes."""

    name: str  # none, list, reverse, random_1, ...
    lines: tuple[str, ...]


def arms_of(run: Run, chosen: pd.DataFrame, *, draws: int, seed: int) -> list[Arm]:
    """None, the list, its reverse, and random draws of as many examples from the training side.

    The reverse of a list of k pairs (or samples) are the k with the highest mean influence (of samples: summed over all their pairs). What
    the run's own training left out already is in every arm, so that k counts only what the list adds to it.

    Raises:
        ViewError: the list is empty or adds nothing, names what is not on the training side, or leaves nothing to draw from.
    """
    view = run.view()
    of_pairs = "id1" in chosen.columns
    table = view.train_pairs if of_pairs else view.train_samples
    ids = table["id"].to_numpy(dtype=object)
    names = chosen["id"].tolist()
    if not names or not set(names) <= set(ids.tolist()):
        raise ViewError(f"The list names {len(names)} examples, not all of them on the training side; choose a list of this run.")
    before = with_their_pairs(run, left_out_before(run))
    trained_on = np.array([name for name in ids if name not in before], dtype=object)
    count = sum(name not in before for name in names)
    if not count:
        raise ViewError(f"The run's own training left out all {len(names)} that the list names already; choose another list.")
    if 2 * count > len(trained_on):
        raise ViewError(
            f"The list names {count}, and {len(trained_on)} examples are trained on, which leaves too few to compare with; choose a "
            f"shorter one."
        )
    worth = view.mean_influence()
    if not of_pairs and run.noun == "pair":
        numbered = view.train_samples.assign(_row=np.arange(len(ids)))
        sums = roll_up(worth, view.train_pairs, numbered, by="_row", ends="both")["sum_both"]
        worth = sums.to_numpy(dtype=np.float64)
    helpful = np.argsort(-worth, kind="stable")
    taken = set(names) | before
    reverse = [name for name in ids[helpful].tolist() if name not in taken][:count]
    generator = np.random.default_rng(seed)
    drawn = [tuple(sorted(generator.choice(trained_on, count, replace=False).tolist())) for _ in range(draws)]
    random = [Arm(f"random_{number}", lines) for number, lines in enumerate(drawn, start=1)]
    return [Arm("none", ()), Arm("list", tuple(names)), Arm("reverse", tuple(reverse)), *random]


def trainings_needed(seeds: int, draws: int, lasting: Sequence[Lasting]) -> int:
    """How many trainings a question takes: for each seed one of all examples, and of each lasting the list, its reverse and each draw."""
    return seeds * (1 + len(lasting) * (2 + draws))


def start_retraining(
    place: "Workspace",
    run: Run,
    chosen: pd.DataFrame,
    *,
    rule: dict[str, Any],
    seeds: int = SEEDS,
    draws: int = DRAWS,
    lasting: Sequence[Lasting] = ("epochs", "steps"),
    action: Action = "exclude",
    weight: float = WEIGHT,
) -> Job:
    """The list is being retrained in the background; the same question is one evaluation, and what is trained already is not redone.

    Args:
        chosen: as `view.exclusions` gives it.
        rule: what made the list, kept with the result.
        seeds: of training, the same in each arm; at least 2, or there is no interval.
        lasting: equal epochs (fewer examples make fewer steps), equal steps (to within an epoch), or both; where nothing is left out
            the two are one.
        action: what is done with the listed: left out; less weight in the loss; pairs learnt the other way round; samples of a
            classification with the label that the last checkpoint finds most likely but for their own.
        weight: where the action is down_weight, between 0 and 1.

    Raises:
        InputError: the run has no test side, its data are gone, there would be no interval, or such examples cannot be changed so.
        ViewError: as `arms_of`.
    """
    if seeds < 2 or draws < 1 or not lasting:
        raise InputError(f"{seeds} seeds and {draws} random draws show no difference; choose at least 2 seeds and 1 draw.")
    if run.splits.get("test") is None or run.splits["test"].empty:
        raise InputError(
            f"Run '{run.name}' has no test side to measure an effect on that influence has not seen; split the data with one "
            f"(`[split]` in docs/your-data.md) and train again."
        )
    if run.task == "ranking" and run.splits["test"]["label"].nunique() < 2:
        raise InputError(
            f"The test side of run '{run.name}' has one label only, so it has no pair to measure; split the data so that it has several."
        )
    noun: Literal["pair", "sample"] = "pair" if "id1" in chosen.columns else "sample"
    require_action(run, noun, action, weight)
    place.data_files(run.recipe)
    settings, assumed = settings_of(run)
    asked = {
        "run": run.id,
        "digest": run.digest,
        "recipe": run.recipe.to_dict(),
        "settings": settings,
        "rule": rule,
        "entries": len(chosen),
        "noun": noun,
        "seeds": list(range(1, seeds + 1)),
        "lasting": list(lasting) if action == "exclude" else ["epochs"],
        **({} if action == "exclude" else {"action": action}),
        **({"weight": weight} if action == "down_weight" else {}),
    }
    number = digest_of([asked, sorted(chosen["id"].tolist()), draws])[:12]
    arms = arms_of(run, chosen, draws=draws, seed=int(number, 16))
    request = {
        **asked,
        "evaluation": number,
        "assumed": assumed,
        "left_out_before": sorted(left_out_before(run)),
        "arms": [{"name": arm.name, "lines": list(arm.lines)} for arm in arms],
    }
    return place.queue.submit("retraining", request, title=f"{run.name}: {len(chosen)} {DONE[action]}", who=place.who)


DONE: Final[dict[Action, str]] = {
    "exclude": "left out",
    "down_weight": "down-weighted",
    "turn": "turned round",
    "relabel": "relabelled",
}


def require_action(run: Run, noun: Literal["pair", "sample"], action: Action, weight: float) -> None:
    """The action can be done with such a list.

    Raises:
        InputError: it cannot, or a down-weighted example would have no weight, or no less than the others.
    """
    offered = actions_for(run.task, noun)
    if action not in offered:
        raise InputError(f"A list of {noun}s of a {run.task} cannot be put to '{action}'; choose from {', '.join(offered)}.")
    if action == "down_weight" and not 0 < weight < 1:
        raise InputError(
            f"Examples of weight {weight:g} do not count less and still count; give one between 0 and 1, or leave them out (exclude)."
        )


def taken_out(run: Run, examples: pd.DataFrame, lines: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which of the run's training examples these lines take out of a training, which reads a pair's either way round: [N]."""
    found = training_exclusions(lines, run.samples)
    ends = examples[["id1", "id2"] if run.noun == "pair" else ["id"]]
    pairs = [frozenset(pair) in found.pairs for pair in ends.itertuples(index=False)]
    return np.asarray(ends.isin(found.samples).any(axis=1).to_numpy() | np.array(pairs, dtype=bool))


def with_their_pairs(run: Run, names: Collection[str]) -> set[str]:
    """These samples and pairs, as `left_out_before` names them, and the training pairs of these samples."""
    examples = run.train_pairs if run.noun == "pair" else run.splits["train"]
    return {*names, *examples["id"][taken_out(run, examples, sorted(names))]}


# ---- what came of it ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Retraining:
    """A finished evaluation of one list.

    Attributes:
        table: one row per training: lasting, arm, seed, score (test side), loss, validation_score, validation_loss, examples (trained
            on), epochs. Older results do not have the validation side's.
        measure: accuracy, larger is better; or error, smaller is.
        lines: the ids that the list names; None: an older result, which does not say.
    """

    number: str
    run_id: str
    digest: str
    rule: dict[str, Any]
    entries: int
    noun: str
    measure: str
    assumed: tuple[str, ...]
    created: float
    who: str
    table: pd.DataFrame
    action: Action = "exclude"
    weight: float | None = None
    lines: tuple[str, ...] | None = None

    @property
    def lasting(self) -> list[str]:
        return list(dict.fromkeys(self.table["lasting"]))

    def effect(self, arm: str, against: str, lasting: str) -> Effect:
        """The change of the test score, in the direction that is better, paired by seed; `random` is the mean of the draws of each seed."""
        sign = -1.0 if self.measure == "error" else 1.0
        return paired_effect(sign * self._by_seed(arm, lasting), sign * self._by_seed(against, lasting))

    def moved(self, name: Literal["validation_loss", "validation_score"]) -> Effect | None:
        """By how much the list raised the validation side's loss or score, paired by seed; None: an older result, which does not say.

        With as many steps as without it, where that was asked for, as the preview has.
        """
        if name not in self.table or self.table[name].isna().any():
            return None
        lasting = "steps" if "steps" in self.lasting else self.lasting[0]
        return paired_effect(self._by_seed("list", lasting, name), self._by_seed("none", lasting, name))

    def verdict(self, lasting: str) -> Verdict:
        """Whether the list did better than the same done to as many examples at random: helps, harms, or unproven (0 is in between)."""
        difference = self.effect("list", "random", lasting).difference
        return "helps" if difference.is_above else "harms" if difference.is_below else "unproven"

    def effects(self) -> pd.DataFrame:
        """One row per question: lasting, arm, against, difference, low, high, wins, losses, p."""
        rows = []
        for lasting in self.lasting:
            for arm, against in (("list", "none"), ("list", "random"), ("random", "none"), ("reverse", "none")):
                found = self.effect(arm, against, lasting)
                told = {"difference": found.difference.mean, "low": found.difference.low, "high": found.difference.high}
                rows.append(
                    {
                        "lasting": lasting,
                        "arm": arm,
                        "against": against,
                        **told,
                        "wins": found.wins,
                        "losses": found.losses,
                        "p": found.p,
                    }
                )
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain values, with the effects."""
        return {**vars(self), "effects": self.effects().to_dict("records"), "table": self.table.to_dict("records")}

    def _by_seed(self, arm: str, lasting: str, name: str = "score") -> npt.NDArray[np.float64]:
        rows = self.table[self.table["lasting"] == (lasting if arm != "none" else self.lasting[0])]
        of_arm = rows[rows["arm"].str.startswith("random_") if arm == "random" else rows["arm"] == arm]
        return of_arm.groupby("seed")[name].mean().sort_index().to_numpy(dtype=np.float64)


def retrainings(place: "Workspace", run: Run) -> list[Retraining]:
    """The finished evaluations of the run's lists, newest first; a file that cannot be read is not among them."""
    found = []
    for file in (place.root / "evaluations").glob("*/result.json"):
        result = read_result(file)
        if result is not None and result.run_id == run.id:
            found.append(result)
    return sorted(found, key=lambda result: -result.created)


def read_result(file: Path) -> Retraining | None:
    """What the worker wrote of a finished evaluation; None while it is not whole."""
    try:
        told = read_json(file)
        return Retraining(
            file.parent.name, told["run"], told["digest"], told["rule"], told["entries"], told["noun"], told["measure"],
            tuple(told["assumed"]), told["created"], told["who"], pd.DataFrame(told["table"]),
            told.get("action", "exclude"), told.get("weight"),
            next((tuple(arm["lines"]) for arm in told.get("arms", ()) if arm["name"] == "list"), None),
        )  # fmt: skip
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return None
