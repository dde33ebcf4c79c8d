"""How many would be listed at every threshold and every minimum occurrences: one picture of the whole rule, with `you are here`."""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import streamlit as st

from pages.shared import session, widgets
from pages.shared.i18n import t, template
from pages.shared.threshold.exclusion import TIMES, USUAL, Line
from tracin_core import charts
from tracin_core.scores.levels import harm_levels, surface
from tracin_core.scores.view import View

Thresholds = npt.NDArray[np.float64]
ROWS: Final = 10
COLUMNS: Final = 40


def show(view: View, line: Line) -> None:
    """The surface, in which a click sets both settings, and the same as sentence and table; the fields above set both by key."""
    rule, tests = line.rule, len(view.test_pairs)
    least = list(range(1, min(ROWS, tests) + 1))
    thresholds, counts = session.prepared(view, ("surface", rule.mode), lambda: counted(view, line, least))

    def clicked() -> None:
        cell = st.session_state["surface"]["cell"]
        if cell is not None:
            session.choose("given", "score")
            session.choose("m", least[int(cell) // len(thresholds)])
            session.choose("T", float(thresholds[int(cell) % len(thresholds)]))

    words = in_words(view, line, thresholds, least, counts)
    _surface()(key="surface", data=payload(thresholds, least, counts, line, words), on_cell_change=clicked)
    st.markdown(words)
    with st.expander(t("surface.table"), icon=":material/table:"):
        columns = np.unique(np.linspace(0, len(thresholds) - 1, 9).round().astype(int))
        told = pd.DataFrame(counts[:, columns], index=least, columns=[f"< {thresholds[column]:g}" for column in columns])
        st.table(told.rename_axis(t("threshold.occurrences")))


def counted(view: View, line: Line, least: list[int]) -> tuple[Thresholds, npt.NDArray[np.int64]]:
    """Thresholds even on the histogram's scale from the lowest score to 0, and how many entries each would list."""
    bins = charts.histogram(harm_levels(view, 1, line.rule.mode).counted)
    thresholds = charts.threshold_steps(bins.axis, 0.0, COLUMNS)
    return thresholds, surface(view, least, thresholds, line.rule.mode)


def payload(thresholds: Thresholds, least: list[int], counts: npt.NDArray[np.int64], line: Line, words: str) -> dict[str, Any]:
    """What the browser draws: a cell per pair of settings, darker where more is listed, and the marks on them."""
    labels = {
        "rows": t("threshold.occurrences"),
        "columns": t("threshold.value"),
        "cell": template("surface.cell"),
        "picture": words,
    }
    return {
        "rows": least,
        "columns": [charts.short(threshold) for threshold in thresholds],
        "ticks": np.unique(np.linspace(0, len(thresholds) - 1, 9).round().astype(int)).tolist(),
        "counts": counts.ravel().tolist(),
        "most": charts.short(int(counts.max())),
        "marks": marks(thresholds, least, line),
        "labels": labels,
    }


def marks(thresholds: Thresholds, least: list[int], line: Line) -> list[dict[str, Any]]:
    """Where the line in view stands on the surface, and where the command line's defaults would, in columns and rows."""
    here, usual = ("here", line.threshold, line.rule.occurrences), ("usual", USUAL, TIMES)
    return [
        {
            "kind": kind,
            "name": t(f"surface.{kind}"),
            "column": float(np.interp(threshold, thresholds, np.arange(len(thresholds)))),
            "row": least.index(k),
        }
        for kind, threshold, k in (here, usual)
        if k <= least[-1] and threshold >= thresholds[0]
    ]


def in_words(view: View, line: Line, thresholds: Thresholds, least: list[int], counts: npt.NDArray[np.int64]) -> str:
    """Where the rule stands, and what one occurrence more or less would change."""
    here = line.rule.occurrences
    at = {k: int(harm_count(view, k, line)) for k in (here - 1, here, here + 1) if 1 <= k <= len(view.test_pairs)}
    told = "; ".join(t("surface.at", occurrences=k, n=n) for k, n in at.items())
    return t("surface.words", threshold=f"{line.threshold:g}", counts=told, most=int(counts.max()))


def harm_count(view: View, occurrences: int, line: Line) -> int:
    levels = session.prepared(view, ("harm", occurrences, line.rule.mode), lambda: harm_levels(view, occurrences, line.rule.mode))
    return int(levels.counts(line.threshold)["entries"].iloc[0])


@cache
def _surface() -> Callable[..., Any]:
    names = {kind: f"threshold/surface.{kind}" for kind in ("html", "css", "js")}
    return st.components.v2.component("threshold_surface", **{kind: widgets.asset(name) for kind, name in names.items()})
