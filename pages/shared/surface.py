"""How many would be listed at every threshold and every minimum occurrences: one picture of the whole rule, with `you are here`."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from pages.shared import session
from pages.shared.exclusion import TIMES, USUAL, Line, prepared
from pages.shared.i18n import t
from tracin_core import charts
from tracin_core.scores.levels import harm_levels, surface
from tracin_core.scores.view import View

Thresholds = npt.NDArray[np.float64]
ROWS: Final = 10
COLUMNS: Final = 40
HERE: Final = "#e9a23b"


def show(view: View, line: Line) -> None:
    """The surface, in which a click sets both settings, and the same as sentence and table; the fields above set both by key."""
    rule, tests = line.rule, len(view.test_pairs)
    least = list(range(1, min(ROWS, tests) + 1))
    thresholds, counts = prepared(view, ("surface", rule.mode), lambda: counted(view, line, least))

    def clicked() -> None:
        cell = charts.clicked(st.session_state["surface"])
        if cell is not None:
            session.choose("given", "score")
            session.choose("m", least[cell // len(thresholds)])
            session.choose("T", float(thresholds[cell % len(thresholds)]))

    figure = surface_figure(thresholds, least, counts, line)
    config = {"displayModeBar": False}
    words = in_words(view, line, thresholds, least, counts)
    st.plotly_chart(figure, key="surface", alt=words, on_select=clicked, selection_mode="points", config=config)
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


def surface_figure(thresholds: Thresholds, least: list[int], counts: npt.NDArray[np.int64], line: Line) -> go.Figure:
    """A cell per pair of settings, darker where more is listed, with the place of the line in view and of the command line's defaults."""
    places = np.arange(len(thresholds))
    words = [f"{threshold:g} → {int(count):,}" for row in counts for threshold, count in zip(thresholds, row, strict=True)]
    cells = {
        "type": "heatmap", "z": np.log1p(counts), "x": places, "y": least, "colorscale": charts.SEQUENTIAL, "hoverinfo": "skip",
        "xgap": 1, "ygap": 1, "colorbar": scale(counts),
    }  # fmt: skip
    squares = {
        "type": "scatter", "x": np.tile(places, len(least)), "y": np.repeat(least, len(places)), "mode": "markers", "text": words,
        "customdata": list(range(counts.size)), "marker": {"symbol": "square", "size": 20, "opacity": 0}, "showlegend": False,
        "hovertemplate": f"%{{y}} × %{{text}}<extra>{t('surface.cell')}</extra>",
    }  # fmt: skip
    ticks = np.unique(np.linspace(0, len(thresholds) - 1, 9).round().astype(int))
    across = {"tickvals": ticks, "ticktext": [charts.short(thresholds[place]) for place in ticks], "showgrid": False}
    return charts.figure(
        [cells, squares, *marks(thresholds, least, line)],
        x=charts.titled(t("threshold.value"), **across, range=[-0.5, len(thresholds) - 0.5]),
        y=charts.titled(t("threshold.occurrences"), tickvals=least, range=[0.5, least[-1] + 0.5], showgrid=False),
        height=110 + 28 * len(least), showlegend=True, legend=charts.ABOVE,
    )  # fmt: skip


def marks(thresholds: Thresholds, least: list[int], line: Line) -> list[charts.Trace]:
    """Where the line in view stands on the surface, and where the command line's defaults would."""
    here = (t("surface.here"), line.threshold, line.rule.occurrences, "circle", HERE)
    usual = (t("surface.usual"), USUAL, TIMES, "diamond", "#ffffff")
    return [
        {
            "type": "scatter", "x": [np.interp(threshold, thresholds, np.arange(len(thresholds)))], "y": [k], "mode": "markers",
            "name": name, "hovertemplate": f"{name}<extra></extra>",
            "marker": {"symbol": symbol, "size": 15, "color": colour, "line": {"width": 2, "color": charts.INK}},
        }
        for name, threshold, k, symbol, colour in (here, usual)
        if k <= least[-1] and threshold >= thresholds[0]
    ]  # fmt: skip


def scale(counts: npt.NDArray[np.int64]) -> dict[str, Any]:
    """The colour bar in counts, though colours go by their logarithm."""
    most = int(counts.max())
    shown = [count for count in (0, 1, 10, 100, 1_000, 10_000, 100_000, 1_000_000) if count < most] + [most]
    return {"thickness": 12, "tickvals": np.log1p(shown).tolist(), "ticktext": [charts.short(count) for count in shown]}


def in_words(view: View, line: Line, thresholds: Thresholds, least: list[int], counts: npt.NDArray[np.int64]) -> str:
    """Where the rule stands, and what one occurrence more or less would change."""
    here = line.rule.occurrences
    at = {k: int(harm_count(view, k, line)) for k in (here - 1, here, here + 1) if 1 <= k <= len(view.test_pairs)}
    told = "; ".join(t("surface.at", occurrences=k, n=n) for k, n in at.items())
    return t("surface.words", threshold=f"{line.threshold:g}", counts=told, most=int(counts.max()))


def harm_count(view: View, occurrences: int, line: Line) -> int:
    levels = prepared(view, ("harm", occurrences, line.rule.mode), lambda: harm_levels(view, occurrences, line.rule.mode))
    return int(levels.counts(line.threshold)["entries"].iloc[0])
