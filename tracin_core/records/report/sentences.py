"""Which sentences the facts bear. A sentence is a text key with its values; it is told where its claim is true, and nowhere else."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tracin_core.charts import marked, short
from tracin_core.records.report.decisions import Listed, Retrained, Trainings
from tracin_core.records.report.facts import CHANCE, HIGH, Cases, Health, Losses, Notable, Signs, Spread, Strongest, trend


@dataclass(frozen=True)
class Sentence:
    """A text of the catalogue, and what its placeholders stand for."""

    key: str
    values: dict[str, Any]


Sentences = list[Sentence]


def say(key: str, /, **values: Any) -> Sentence:
    return Sentence(key, values)


# ---- health and spread --------------------------------------------------------------------------------------------------------------


def of_health(found: Health) -> Sentences:
    """Checks, accuracy beside guessing, and tests that nothing can have influence on."""
    total, failed = len(found.checks), len(found.failed)
    told = [say("health.failed", failed=failed, total=total) if failed else say("health.all", total=total)]
    if found.accuracy is not None:
        told.append(say("accuracy", accuracy=found.accuracy, guess=found.guess))
        if found.accuracy <= found.guess:
            told.append(say("accuracy.guessing"))
    if not found.tests:
        return told
    if found.dead == found.tests:
        return [*told, say("tests.all_dead", tests=found.tests)]
    return [*told, say("tests.dead", dead=found.dead, tests=found.tests) if found.dead else say("tests.live", tests=found.tests)]


def of_spread(found: Spread) -> Sentences:
    """Where self-influence lies, how much of it is exactly 0, and how much its first per cent holds."""
    if found.zeros == found.n:
        return [say("spread.nothing", n=found.n)]
    told = [say("spread", n=found.n, low=short(found.low), median=short(found.median), high=short(found.high))]
    told.append(say("spread.zeros", zeros=found.zeros, share=found.zeros / found.n) if found.zeros else say("spread.no_zeros"))
    if found.zeros > found.n / 2:
        told.append(say("spread.mostly_zeros"))
    if found.top_share is not None:
        told.append(say("spread.top", top=found.top, share=found.top_share))
    return told


def of_signs(found: Signs) -> Sentences:
    return [say("signs", helps=found.helps, harms=found.harms, neither=found.neither)]


# ---- groups -------------------------------------------------------------------------------------------------------------------------


def of_cells(cells: pd.DataFrame, score: str) -> Sentences:
    """The highest and the lowest cell of a grid, where these are two."""
    known = cells.dropna(subset="mean")
    if len(known) < 2 or known["mean"].min() == known["mean"].max():
        return [say(f"cells.{score}.same")] if len(known) else []
    means = known["mean"].to_numpy()
    low, high = known.iloc[int(means.argmin())], known.iloc[int(means.argmax())]
    told = {
        f"{name}{part}": value
        for name, cell in (("low", low), ("high", high))
        for part, value in (("", cell_name(cell)), ("_value", short(cell["mean"])), ("_n", int(cell["n"])))
    }
    return [say(f"cells.{score}", **told)]


def of_gaps(gaps: pd.DataFrame) -> Sentences:
    """Whether self-influence falls, or rises, with every step of the angle difference; nothing is said of fewer than three."""
    if len(gaps) < 3 or "self_influence" not in gaps:
        return []
    first, last = gaps.iloc[0], gaps.iloc[-1]
    direction = trend(gaps["self_influence"].tolist())
    if direction == "neither":
        peak = gaps.iloc[int(gaps["self_influence"].to_numpy().argmax())]
        return [say("gaps.neither", gap=marked(peak["group"]), value=short(peak["self_influence"]))]
    ends = {"first": marked(first["group"]), "last": marked(last["group"])}
    return [say(f"gaps.{direction}", **ends, start=short(first["self_influence"]), end=short(last["self_influence"]))]


def cell_name(cell: pd.Series) -> str:
    """An angle pair, or a group."""
    return str(cell["low"]) if cell["low"] == cell["high"] else f"{marked(cell['low'])} – {marked(cell['high'])}"


# ---- cases --------------------------------------------------------------------------------------------------------------------------


def of_hard(found: Cases) -> Sentences:
    """The example of high self-influence that harms most, or that there is none."""
    share = 1 - HIGH
    if found.hard_and_harmful is None:
        return [say("hard.none", high=found.high, share=share)]
    return [
        say("hard", high=found.high, share=share, name=example_name(found.hard_and_harmful.example)),
        standing(found.hard_and_harmful),
    ]


def standing(one: Notable) -> Sentence:
    """An example's place among all others."""
    return say(
        "standing",
        own=short(one.own), own_percentile=one.own_percentile, mean=short(one.mean), mean_percentile=one.mean_percentile,
        harms=one.harms, live=one.live,
    )  # fmt: skip


def of_strongest(found: Strongest | None) -> Sentences:
    """The most negative single influence, and the checkpoint that it comes from, where one adds more than half."""
    if found is None:
        return [say("strongest.none")]
    names = {"train": example_name(found.notable.example), "test": example_name(found.test)}
    told = [say("strongest", value=short(found.value), **names), standing(found.notable)]
    if found.main_checkpoint:
        name, share = found.main_checkpoint
        told.append(say("strongest.checkpoint", name=name, share=share))
    return told


def of_recurrence(found: Cases) -> Sentences:
    """The recording (or group) that stands in more of the most harmful examples than chance puts there, or that none does."""
    if found.harmful == 0:
        return [say("recurs.nothing")]
    one = found.standing_out
    if one is None:
        return [say("recurs.none", harmful=found.harmful, p=found.recurring.p_largest, chance=CHANCE)]
    return [
        say(
            "recurs", name=str(one["group"]), chosen=int(one["chosen"]), harmful=found.harmful, expected=float(one["expected"]),
            p=float(one["p_familywise"]),
        )
    ]  # fmt: skip


def example_name(example: pd.Series) -> str:
    """A pair by its two recordings and their angles, or a sample by its id and what it is said to be."""
    if "id1" in example:
        return f"{example['id1']} ({marked(example['angle1'])}) – {example['id2']} ({marked(example['angle2'])})"
    said = example.get("label_name", example.get("label", example.get("target")))
    return f"{example['id']} ({said if isinstance(said, str) else f'{said:.4g}'})"


# ---- losses, lists, trainings -------------------------------------------------------------------------------------------------------


def of_losses(found: Losses) -> Sentences:
    """How far the order by self-influence under GHM is that under the other loss."""
    told = [say("losses", ghm=found.ghm, other=found.other)]
    rho = found.comparison.spearman
    told.append(say("losses.undefined") if np.isnan(rho) else say("losses.spearman", rho=rho))
    for k, same in found.same.items():
        told.append(say("losses.all_same", k=k) if same == k else say("losses.overlap", k=k, same=same))
    return told


def of_lists(found: list[Listed]) -> Sentences:
    """How many lists there are, and what the newest takes away."""
    if not found:
        return [say("lists.none")]
    told, newest = [say("lists", n=len(found))], found[0]
    if newest.problem:
        return told
    if newest.entries == 0:
        return [*told, say("lists.empty")]
    told.append(say("lists.newest", entries=newest.entries, removed=newest.removed, of=newest.of, share=newest.removed / newest.of))
    return [*told, say("lists.halved", n=newest.halved)] if newest.halved else told


def of_trainings(found: Trainings) -> Sentences:
    """Whether there is a before and an after; two trainings alone are never called evidence."""
    if not found.recorded:
        return [say("trainings.unknown")]
    told = [say("trainings.left_out", samples=found.left_out[0], pairs=found.left_out[1])] if any(found.left_out) else []
    told += [say("trainings.strange", folder=folder) for folder in found.strange]
    return told if found.after else [*told, say("trainings.none")]


def of_retrained(found: Retrained) -> Sentences:
    """What one training without the list measured, beside the one before."""
    told = [say("retrained", folder=found.folder, file=found.file, samples=found.samples, pairs=found.pairs)]
    if len(found.measured):
        before, after = found.main["before"], found.main["after"]
        kind = "same" if after == before else "higher" if after > before else "lower"
        values = {"measure": found.main["measure"], "before": before} | ({} if kind == "same" else {"after": after})
        told.append(Sentence(f"retrained.{kind}", values))
    if found.differing:
        told.append(say("retrained.settings", names=", ".join(found.differing)))
    return [*told, say("retrained.no_evidence")]
