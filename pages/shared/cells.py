"""Pieces of the page of angles: a score per pair of angles, or per group, and the examples of one cell."""

from typing import Final

import numpy as np
import numpy.typing as npt
import streamlit as st

from pages.shared import examples, widgets
from pages.shared.i18n import t
from tracin_core import charts
from tracin_core.records.runs import Run
from tracin_core.scores.view import View

LOOKS: Final = ("each", "onto")
BEYOND: Final = 0.05  # the share of all examples that counts as one of the tails


def explore(run: Run, view: View, score: str, statistic: str, part: npt.NDArray[np.bool_]) -> None:
    """The grid of cells, and beside it the examples of the chosen cell, or of all of them."""
    values = np.where(part, widgets.score_values(view, score), np.nan)
    drawn = values
    if statistic == "share":
        line = tail_line(values, score)
        drawn = np.where(np.isnan(values), np.nan, values > line if score == "self_influence" else values < line)
        st.markdown(t(f"cells.share.{'above' if score == 'self_influence' else 'below'}", line=charts.short(line)))
    grid = view.angle_grid(drawn).rename(columns={"mean": statistic}) if statistic == "share" else view.angle_grid(drawn)
    grid = grid[grid["n"] > 0].reset_index(drop=True)
    if grid.empty:
        widgets.nothing_matches(t("gallery.empty"))
        return
    with st.container(horizontal=True, gap="medium"):  # below each other where there is no room
        left, right = st.container(width=410), st.container(width=476)
    with right:
        cell = widgets.choose_cell(grid, key="cell", label=t("angles.cell"))
    with left:
        figure = charts.grid_figure(
            grid, statistic, x=t("angles.larger"), y=t("angles.smaller"), name=t(f"statistic.{statistic}"), chosen=cell
        )
        widgets.grid(grid, figure, key="cell", alt=widgets.grid_in_words(grid, statistic))
        st.markdown(widgets.grid_in_words(grid, statistic))
    with right:
        ranked = view.ranked(values, ascending=score != "self_influence", cell=cell, among=part)
        columns = examples.score_columns(score, percentile=False)
        example = examples.picked(run, ranked, key=f"angles.{score}.{cell}", columns=columns, sounds=False)
    if example is not None:
        examples.example_card(run, example)


def doorway(view: View, own: npt.NDArray[np.float64]) -> str | None:
    """The mean self-influence of each cell, to be looked at; gives back the name of a cell that was clicked, once."""
    grid = view.angle_grid(own)
    grid = grid[grid["n"] > 0].reset_index(drop=True)
    figure = charts.grid_figure(
        grid, "mean", x=t("angles.larger"), y=t("angles.smaller"), name=t("statistic.mean"), height=340, small=True
    )
    clicked = widgets.pressed(figure, key="overview.grid", alt=widgets.grid_in_words(grid, "mean"))
    return None if clicked is None else widgets.cell_name(grid["low"].iloc[clicked], grid["high"].iloc[clicked])


def tail_line(values: npt.NDArray[np.float64], score: str) -> float:
    """The score that 5 % of the examples lie beyond: above of self-influence, below of influence; three digits."""
    known = values[~np.isnan(values)]
    at = 1 - BEYOND if score == "self_influence" else BEYOND
    return float(f"{np.quantile(known, at):.3g}") if known.size else 0.0
