"""What this workspace has measured about a rule: whether lists of its kind helped when retrained, and whether its score finds wrong labels.

A rule that a measurement shows to be harmful is exported only with a reason, which stays with the list.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from tracin_core.errors import ExclusionError
from tracin_core.records.calibrations import Calibration, calibrations, has_calibrations, subjects_of
from tracin_core.records.evaluations import Retraining, Verdict, retrainings
from tracin_core.records.runs import Run
from tracin_core.scores.evaluation import Interval

if TYPE_CHECKING:
    from tracin_core.records.workspace import Workspace

CHANCE: Final = 0.5  # AUROC
ORDER: Final[tuple[Verdict, ...]] = ("harms", "unproven", "helps")


@dataclass(frozen=True)
class Evidence:
    """One measurement of a kind of rule.

    Attributes:
        number: of the evaluation or calibration.
        verdict: helps, where its interval is on the good side of doing as much at random; harms, where on the other; else unproven.
        score: what the rule goes by.
        measure: what `found` is of: accuracy or error (the test score's change against random, better upwards), or auroc (.5 by chance).
        about: what it was measured on: equal epochs or steps of a retraining; labels or pair_flips that a calibration planted.
    """

    kind: Literal["retraining", "calibration"]
    number: str
    verdict: Verdict
    score: str
    measure: str
    about: str
    found: Interval

    def to_dict(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name != "found"}
        return {**own, "mean": self.found.mean, "low": self.found.low, "high": self.found.high}


def score_of(rule: dict[str, Any]) -> str:
    """What a rule goes by: the score of a suspect rule; of a harm rule, which counts tests, the worst influence."""
    return str(rule.get("score", "worst_influence"))


def evidence(place: "Workspace", run: Run, rule: dict[str, Any]) -> list[Evidence]:
    """What the newest retraining of such a list of the run, and the newest calibration of its data, model and task say.

    A retraining is of the run's scores as they are now. A calibration judges what the rule lists: pairs by pairs turned round, where that
    was planted, samples by wrong labels.

    Args:
        rule: its settings in plain values, as beside an exported list. Rules are of one kind if they go by the same score and list
            the same (pairs, samples); their thresholds differ.
    """
    score, mode = score_of(rule), rule.get("pair_mode")
    retrained = [
        one
        for one in retrainings(place, run)
        if one.digest == run.digest and one.action == "exclude" and (score_of(one.rule), one.rule.get("pair_mode")) == (score, mode)
    ]
    judged = [] if run.kind == "scores" else _judged(place, run, score)
    fitting = [one for one in judged if (one.unit == "pair") == (mode == "ranking_pair")] or judged
    return [*map(_of_retraining, retrained[:1]), *(_of_calibration(one, score) for one in fitting[:1])]


def _judged(place: "Workspace", run: Run, score: str) -> list[Calibration]:
    if not has_calibrations(place):
        return []
    subjects = subjects_of(run)
    return [one for one in calibrations(place, run) if one.subject in subjects and score in one.scores]


def _of_retraining(result: Retraining) -> Evidence:
    """Of equal epochs and equal steps, what speaks more against the list."""
    found = [(result.verdict(lasting), lasting, result.effect("list", "random", lasting).difference) for lasting in result.lasting]
    verdict, lasting, worst = min(found, key=lambda one: (ORDER.index(one[0]), one[2].low))
    return Evidence("retraining", result.number, verdict, score_of(result.rule), result.measure, lasting, worst)


def _of_calibration(result: Calibration, score: str) -> Evidence:
    """A score harms where it lists what is sound before what is wrong: its AUROC's interval stays below that of chance."""
    auroc = result.shown(score, "auroc")
    verdict: Verdict = "harms" if auroc.high < CHANCE else "helps" if result.is_reliable(score) else "unproven"
    return Evidence("calibration", result.number, verdict, score, "auroc", result.noise, auroc)


def in_words(value: float, measure: str) -> str:
    """A figure of a measurement with its unit: percentage points of an accuracy, a change of an error, an AUROC."""
    return {"accuracy": f"{100 * value:+.2f} pp", "auroc": f"{value:.2f}"}.get(measure, f"{value:+.3g}")


def require_reason(found: list[Evidence], why: str) -> None:
    """A rule that a measurement shows to be harmful goes out with a reason only.

    Raises:
        ExclusionError: it has none.
    """
    harmful = next((one for one in found if one.verdict == "harms"), None)
    if harmful is None or why.strip():
        return
    low, high = (in_words(value, harmful.measure) for value in (harmful.found.low, harmful.found.high))
    told = (
        f"retraining {harmful.number} found that such a list does worse than as many examples left out at random "
        f"({harmful.measure} {low} to {high}, better upwards)"
        if harmful.kind == "retraining"
        else f"calibration {harmful.number} found that this score lists sound examples before wrong ones (AUROC {low} to {high})"
    )
    raise ExclusionError(f"On this data, {told}; say why the list is wanted all the same (--why), or use another rule.")
