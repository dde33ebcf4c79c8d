"""The threshold that is dragged: what it would leave out is told in the browser, and the server hears of it when it is let go."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import streamlit as st

from pages.shared import widgets
from pages.shared.i18n import t, template
from tracin_core import charts

MOST_CELLS: Final = 60
NUMBERS: Final = 4_000  # counts in one payload, so that it stays within 20 KB with what draws it
FINE: Final = 10_000  # places on the axis from 0 to 1 are told as whole numbers up to this
LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@dataclass(frozen=True)
class Cells:
    """Angle pairs, or groups, and how many of each one's training examples are lost at each step."""

    grid: pd.DataFrame  # low, high, n
    lost: npt.NDArray[np.int64]  # [steps, cells]


def drag_threshold(
    key: str,
    histogram: charts.Histogram,
    steps: pd.DataFrame,
    *,
    value: float,
    total: int,
    scores: str,
    on_release: Callable[[float], None],
    cells: Cells | None = None,
    above: bool = False,
) -> None:
    """A histogram whose threshold follows the mouse, or the keyboard, with exact counts and no word to the server until it is let go.

    Args:
        histogram: of the scores that the threshold is compared with, so that the bars beyond the line are what is counted.
        steps: threshold (ascending, distinct, `value` among them), pairs, samples; as `Levels.counts` gives it.
        value: where the threshold stands, and what the counts are shown for until it is moved.
        total: how many pairs there are.
        scores: what the bars are, in words.
        on_release: called with the new threshold, before the page is drawn again.
        cells: what is lost of each cell at each of the steps.
        above: what lies above the threshold is chosen, not what lies below.
    """

    def released() -> None:
        threshold = st.session_state[key]["threshold"]
        if threshold is not None:
            on_release(float(threshold))

    data = payload(histogram, steps, value=value, total=total, cells=cells, above=above)
    _drag()(key=key, data={**data, "labels": labels(scores, above=above)}, on_threshold_change=released)


def payload(
    histogram: charts.Histogram, steps: pd.DataFrame, *, value: float, total: int, cells: Cells | None, above: bool
) -> dict[str, Any]:
    """What the browser needs to tell every count by itself, in at most 20 KB."""
    drawn = histogram.to_dict()
    places = histogram.axis.place(steps["threshold"].to_numpy()).clip(0, 1)  # a typed threshold may lie beyond all scores
    bars = [count for _, _, count in drawn.pop("bars")]  # of equal width
    return {
        **drawn,
        "bars": bars,
        "thresholds": steps["threshold"].tolist(),
        "places": packed(np.rint(places * FINE).astype(np.int64), falling=False),
        "pairs": packed(steps["pairs"].to_numpy(), falling=above),
        "samples": packed(steps["samples"].to_numpy(), falling=above),
        "start": int(steps["threshold"].sub(value).abs().to_numpy().argmin()),
        "total": total,
        "above": above,
        "cells": [] if cells is None else _cells(cells, falling=above),
    }


def labels(scores: str, *, above: bool) -> dict[str, str]:
    """The words, those with numbers as templates."""
    side = ".above" if above else ""
    told = {name: template(f"drag.{name}") for name in ("name", "zeros", "none_lost")}
    told |= {name: template(f"drag.{name}{side}") for name in ("count", "picture", "worst", "cells")}
    return {**told, "hint": f"{scores} {t('drag.hint')}"}


def step_count(cells: int) -> int:
    """How many steps a slider has beside so many cells."""
    return int(np.clip(NUMBERS // (cells + 2), 80, 300))


def steps_above(axis: charts.Axis, value: float, steps: int) -> npt.NDArray[np.float64]:
    """Thresholds for a slider over the whole axis, ascending: evenly spaced on the screen, with three digits, and the value itself."""
    rounded = [float(f"{score:.3g}") for score in axis.score(np.linspace(0, 1, steps))]
    return np.asarray(np.unique(np.array([*rounded, value]) + 0.0))


def packed(counts: npt.NDArray[np.int64], *, falling: bool) -> str:
    """Counts that only rise (or, read from their end, only rise) as the letters of their increases: five bits a letter, lowest first."""
    rising = counts[::-1] if falling else counts
    return "".join(map(_letters, np.diff(rising, prepend=0).tolist()))


def _letters(number: int) -> str:
    told = ""
    while number > 31:
        told += LETTERS[32 + number % 32]
        number //= 32
    return told + LETTERS[number]


def _cells(cells: Cells, *, falling: bool) -> list[list[Any]]:
    """Of each cell its row (empty where cells are groups and stand in a list), column, name, size and packed counts."""
    listed = bool((cells.grid["low"] == cells.grid["high"]).any())
    told = []
    for place, (low, high, n) in enumerate(cells.grid[["low", "high", "n"]].itertuples(index=False)):
        name = widgets.cell_label(low, high)
        ends = ["", name] if listed else [charts.marked(low), charts.marked(high)]
        told.append([*ends, name, int(n), packed(cells.lost[:, place], falling=falling)])
    return told


@cache
def _drag() -> Callable[..., Any]:
    names = {kind: f"threshold/drag.{kind}" for kind in ("html", "css", "js")}
    return st.components.v2.component("threshold_drag", **{kind: widgets.asset(name) for kind, name in names.items()})
