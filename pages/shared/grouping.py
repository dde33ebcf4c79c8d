"""Parts and groups of a run's examples: by angle, class, take, or any column that its data brought along."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import streamlit as st

from pages.shared import session, widgets
from pages.shared.i18n import has, t
from pages.shared.session import plain
from tracin_core import charts
from tracin_core.scores.rollups import Ends, influence_grid, members
from tracin_core.scores.spread import group_spread
from tracin_core.scores.view import View

OUR_OWN: Final = ("id", "digest", "path", "split", "label", "label_name", "target")  # not what a group would be made of
MOST: Final = 60  # values of a column: with more, a group is hardly one


def columns_of(view: View) -> list[str]:
    """What the examples can be grouped by, the task's own groups first: of pairs angle and gap, of samples group; then metadata."""
    first = ["angle", "gap"] if view.train.noun == "pair" else ["group"]
    samples = view.train_samples
    further = [name for name in samples if name not in (*OUR_OWN, *first) and 2 <= samples[name].nunique(dropna=False) <= MOST]
    known = [name for name in first if name == "gap" or name in samples]
    return [*known, *map(str, further)]


def column_label(column: str) -> str:
    """A column in words where it is one of ours, as it stands in the data otherwise."""
    return t(f"column.{column}") if has(f"column.{column}") else plain(column)


def ends_of(view: View, column: str) -> Ends:
    """How a pair belongs to the groups of this column: its own (gap), or once to the group of each of its samples."""
    return "own" if column == "gap" and view.train.noun == "pair" else "both"


def choose_column(view: View, *, key: str) -> str:
    """What to group by; tied to the address."""
    offered = columns_of(view)
    return str(
        st.selectbox(t("group.by"), offered, format_func=column_label, **session.linked(key, offered[0], valid=offered), width=220)
    )


def choose_part(view: View) -> npt.NDArray[np.bool_]:
    """Which training examples the page is about: all, or those with one value of one column; of pairs, with it at either end: [N]."""
    offered = columns_of(view)
    with st.container(horizontal=True, gap="small", width="content"):
        picker = session.linked("only", "", valid=["", *offered])
        column = str(
            st.selectbox(
                t("part.column"),
                ["", *offered],
                format_func=lambda name: column_label(name) if name else t("part.all"),
                width=190,
                **picker,
            )
        )
        if not column:
            return np.ones(len(view.train), dtype=bool)
        held = values_of(view, column)
        values = list(dict.fromkeys(_written(held)))
        picker = session.linked("is", values[0], valid=values)
        value = st.selectbox(t("part.value"), values, width=190, **picker)
    return (_cells(view, column) == value).any(axis=1)


def values_of(view: View, column: str) -> pd.Series:
    """The column's values in order, each once; a missing one last."""
    table = view.train_pairs if ends_of(view, column) == "own" else view.train_samples
    return pd.Series(pd.factorize(table[column], sort=True, use_na_sentinel=False)[1])


def _cells(view: View, column: str) -> npt.NDArray[np.object_]:
    """The column's value of each of an example's ends, as it is written: [N, ends]."""
    if ends_of(view, column) == "own":
        return _written(view.train_pairs[column])[:, None]
    return _written(view.train_samples[column])[members(view.train_pairs, view.train_samples)]


def _written(values: pd.Series) -> npt.NDArray[np.object_]:
    return np.array([group_name(value) for value in values], dtype=object)


def group_name(value: Any) -> str:
    """A group as it is written: a whole number without its `.0`, a missing value as a dash."""
    if pd.isna(value):
        return "–"
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


# ---- what groups look like --------------------------------------------------------------------------------------------------------


def boxes(view: View, values: npt.NDArray[np.float64], column: str, axis: charts.Axis, *, score: str) -> None:
    """A box per group, and its figures in a table."""
    spread = group_spread(values, view.train_pairs, view.train_samples, by=column, ends=ends_of(view, column))
    names = [group_name(value) for value in spread["group"]]
    figure = charts.boxes_figure(spread, names, axis, x=column_label(column), y=t(f"score.{score}"))
    held = spread.assign(name=names).dropna(subset="q50")
    if held.empty:
        widgets.nothing_matches(t("gallery.empty"))
        return
    low, high = held.loc[held["q50"].idxmin()], held.loc[held["q50"].idxmax()]
    told = t(
        "groups.words",
        low=plain(low["name"]),
        lowest=charts.short(low["q50"]),
        high=plain(high["name"]),
        highest=charts.short(high["q50"]),
    )
    widgets.chart(figure, key=f"groups.boxes.{column}", alt=told)
    st.markdown(told)
    if view.train.noun == "pair" and column != "gap":
        st.markdown(f":small[{t('groups.both')}]")
    shown = held[["name", "n", "mean", "q05", "q25", "q50", "q75", "q95"]]
    number = {
        name: st.column_config.NumberColumn(name.replace("q0", "q").replace("q", "") + " %", format="%.4g")
        for name in shown.columns[3:]
    }
    named = {"name": column_label(column), "n": "n", "mean": st.column_config.NumberColumn(t("statistic.mean"), format="%.4g")}
    st.dataframe(shown, hide_index=True, column_config={**named, **number})


def matrix(view: View, column: str) -> None:
    """The mean influence of groups of training examples on groups of test examples; by angle, of unordered pairs of angles."""
    of_pairs = view.train.noun == "pair"
    ends: Ends = "own" if column == "gap" else "unordered" if of_pairs and column == "angle" else "both" if of_pairs else "first"
    found = influence_grid(view, by=column, ends=ends)
    cells = pd.DataFrame(
        {"low": _named(found, "train"), "high": _named(found, "test"), "n": found["n"], "mean": found["mean"]}
    ).dropna(subset="mean")
    figure = charts.grid_figure(cells, "mean", x=t("groups.test"), y=t("groups.train"), name=t("statistic.mean"))
    low, high = cells.loc[cells["mean"].idxmin()], cells.loc[cells["mean"].idxmax()]
    helps = {"helper": plain(high["low"]), "helped": plain(high["high"]), "most": charts.short(high["mean"])}
    harms = {"harmer": plain(low["low"]), "harmed": plain(low["high"]), "least": charts.short(low["mean"])}
    told = t("groups.matrix.words", **helps, **harms)
    widgets.chart(figure, key=f"groups.matrix.{column}", alt=told)
    st.markdown(told)
    with st.expander(t("groups.table"), icon=":material/table:"):
        named = {"low": t("groups.train"), "high": t("groups.test"), "n": "n", "mean": t("statistic.mean")}
        st.dataframe(cells.sort_values("mean"), hide_index=True, column_config=named)


def _named(found: pd.DataFrame, side: str) -> list[str]:
    if f"{side}_group" in found:
        return [group_name(value) for value in found[f"{side}_group"]]
    ends = zip(found[f"{side}_low"], found[f"{side}_high"], strict=True)
    return [widgets.cell_label(low, high) for low, high in ends]
